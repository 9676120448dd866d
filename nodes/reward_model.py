"""Learned rewards: one frozen backbone, a linear head for each objective, trained on preference pairs.

    r_j(x, y) = w_j . f(x, y),   loss = -log sigmoid( r_j(x, y+) - r_j(x, y-) )      (Bradley-Terry)

f is the backbone's last hidden state, of the last token or averaged over the response. The backbone is the model that
is fine-tuned anyway, computing with another flat adapter: the initial one (the bare base), or one that was trained
together with the heads. So a reward costs no second model in memory. Two heads on one backbone fold into one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from nodes.adapters import FlatAdapter
from nodes.policy import holding
from nodes.preferences import encode_prompt, encode_response
from nodes.reward import moments
from nodes.tokens import Encoded, collate
from testbed.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class Backbone:
    """What turns a prompt and a response into features.

    Attributes:
        adapter: the model and its flat adapter.
        tokenizer: of the base model, with a pad token.
        vector: flat adapter the features are computed with, shape [layout.size] float32.
        length: most tokens of a row.
        pooling: hidden state of the last token, or the mean over the response.
        batch_size: rows of one forward pass.
    """

    adapter: FlatAdapter
    tokenizer: PreTrainedTokenizerBase
    vector: np.ndarray
    length: int = 256
    pooling: Pooling = "mean"
    batch_size: int = 32

    @property
    def hidden(self) -> int:
        """Number of features."""
        return int(self.adapter.model.get_base_model().config.hidden_size)

    def encode(self, prompt: str, response: str) -> Encoded:
        """Token ids of a prompt with its response, each cut for itself: half of the length stays for the response.

        Args:
            prompt: what was asked; of a long one the end is kept.
            response: what was answered; of a long one the beginning is kept.
        """
        asked = encode_prompt(prompt, self.tokenizer, self.length // 2)
        answered = encode_response(response, self.tokenizer)[: self.length - len(asked)]
        # a response without any token is judged by its prompt alone
        return Encoded(prompt=asked, response=answered if len(answered) else asked[-1:])

    def pooled(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """Features under the values that the model has now, shape [num_rows, hidden] float32; gradients flow.

        Args:
            rows: prompts with their responses.
        """
        base, device = self.adapter.model.get_base_model(), self.adapter.values.device
        batch = collate(rows, pad=int(self.tokenizer.pad_token_id), loss_on="response")
        decoder = getattr(base, base.base_model_prefix)
        states = decoder(
            input_ids=torch.from_numpy(batch.input_ids).to(device),
            attention_mask=torch.from_numpy(batch.attention_mask).to(device),
        ).last_hidden_state.float()
        if self.pooling == "last":
            last = torch.from_numpy(batch.attention_mask.sum(1) - 1).to(device)
            return states[torch.arange(len(rows), device=device), last]
        share = torch.from_numpy(batch.loss_mask / batch.loss_mask.sum(1, keepdims=True)).to(device, torch.float32)
        return torch.einsum("nt,nth->nh", share, states)

    @torch.no_grad()
    def features(self, rows: Sequence[Encoded]) -> np.ndarray:
        """Features under `vector`, shape [num_rows, hidden] float64; the model's own values come back afterwards.

        Args:
            rows: prompts with their responses.
        """
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        features = np.empty((len(rows), self.hidden))
        with holding(self.adapter, self.vector):
            for first in range(0, len(order), self.batch_size):
                part = order[first : first + self.batch_size]
                features[part] = self.pooled([rows[index] for index in part]).double().cpu().numpy()
        return features


@dataclass(frozen=True)
class RewardModel:
    """Linear heads on a backbone.

    Attributes:
        backbone: gives the features.
        objectives: names of the heads.
        heads: w_j, shape [num_objectives, hidden].
        mean: of each reward over the reference samples, shape [num_objectives]; 0 before normalisation.
        std: its standard deviation there, shape [num_objectives]; 1 before normalisation.
    """

    backbone: Backbone
    objectives: tuple[str, ...]
    heads: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """r_hat of every objective, shape [num_responses, num_objectives].

        Args:
            prompts: what was asked.
            responses: what was answered.
        """
        rows = [self.backbone.encode(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        return (self.backbone.features(rows) @ self.heads.T - self.mean) / self.std

    def objective(self, name: str) -> LearnedReward:
        """One objective behind the interface of all rewards.

        Args:
            name: one of `objectives`.

        Raises:
            ConfigError: there is no such head.
        """
        if name not in self.objectives:
            raise ConfigError(
                f"the reward model has no head for {name!r}",
                key="alignment.rewards",
                remedy=f"use {', '.join(self.objectives)}, or train a head on pairs of that kind",
            )
        return LearnedReward(self, self.objectives.index(name))

    def folded(self, weights: Sequence[float]) -> tuple[np.ndarray, float]:
        """The head and offset that give the weighted sum of the normalised rewards in one product.

            sum_j l_j (w_j . f - mean_j) / std_j = ( sum_j l_j w_j / std_j ) . f - sum_j l_j mean_j / std_j

        Args:
            weights: l_j, shape [num_objectives].

        Returns:
            Head, shape [hidden], and offset.
        """
        scaled = np.asarray(weights, float) / self.std
        return scaled @ self.heads, -float(scaled @ self.mean)

    def normalised_on(self, prompts: Sequence[str], responses: Sequence[str]) -> RewardModel:
        """The model on the scale of the reference policy's samples.

        Args:
            prompts: what was asked.
            responses: what the reference policy answered, at least two.

        Raises:
            ConfigError: a reward is the same for all samples, or not finite.
        """
        raw = replace(self, mean=np.zeros_like(self.mean), std=np.ones_like(self.std)).scores(prompts, responses)
        pairs = [moments(raw[:, index], name) for index, name in enumerate(self.objectives)]
        return replace(self, mean=np.array([mean for mean, _ in pairs]), std=np.array([std for _, std in pairs]))

    def save(self, folder: Path) -> None:
        """Write `reward.safetensors` and `reward.json`.

        Args:
            folder: made if it does not exist.
        """
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"heads": self.heads, "mean": self.mean, "std": self.std, "vector": self.backbone.vector}
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "reward.safetensors")
        content = {
            "objectives": list(self.objectives),
            "length": self.backbone.length,
            "pooling": self.backbone.pooling,
            "hidden": self.backbone.hidden,
        }
        (folder / "reward.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class LearnedReward:
    """One head of a reward model.

    Attributes:
        model: all heads.
        index: which one.
    """

    model: RewardModel
    index: int

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """r_hat of each response, shape [num_responses]."""
        return self.model.scores(prompts, responses)[:, self.index]


def load_reward_model(folder: Path, adapter: FlatAdapter, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """A reward model on the backbone that it was trained with.

    Args:
        folder: what `RewardModel.save` wrote.
        adapter: flat adapter on the same base, of the same layout.
        tokenizer: of the base model.

    Raises:
        ConfigError: a file is missing or broken, or the heads or the adapter are of another size.
    """
    from safetensors.numpy import load_file

    try:
        content = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "reward.safetensors")
        length, pooling, objectives = int(content["length"]), content["pooling"], tuple(content["objectives"])
        vector, heads, mean, std = (tensors[name] for name in ("vector", "heads", "mean", "std"))
    except Exception as error:  # safetensors raises kinds of its own
        raise ConfigError(
            f"no reward model can be read here ({type(error).__name__}: {str(error).splitlines()[0]})",
            file=folder,
            key="alignment.rewards",
            remedy="give a folder that holds reward.json and reward.safetensors, or train the reward models again",
        ) from error
    backbone = Backbone(adapter, tokenizer, vector, length, pooling)
    if heads.shape != (len(objectives), backbone.hidden) or vector.shape != (adapter.layout.size,):
        raise ConfigError(
            f"the reward model has {heads.shape[-1]} features and an adapter of {vector.size} values, this base has "
            f"{backbone.hidden} and {adapter.layout.size}",
            file=folder,
            key="alignment.rewards",
            remedy="use the base model, LoRA and bottleneck that the reward model was trained with",
        )
    return RewardModel(backbone, objectives, heads, mean, std)
