"""How likely the model finds target tokens and label words."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from nodes.tokens import Batch, Encoded, collate, collate_candidates

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class EvalSums:
    """Sums over held-out rows; those of disjoint shards add up.

    Attributes:
        loss_sum: negative log-likelihood of all target tokens, nats.
        num_tokens: number of target tokens.
        num_correct: rows whose right label word is the likeliest; None without classification.
        num_rows: number of rows.
    """

    loss_sum: float
    num_tokens: int
    num_correct: int | None
    num_rows: int

    def __add__(self, other: EvalSums) -> EvalSums:
        correct = None if self.num_correct is None else self.num_correct + (other.num_correct or 0)
        return EvalSums(
            self.loss_sum + other.loss_sum, self.num_tokens + other.num_tokens, correct, self.num_rows + other.num_rows
        )


@dataclass(frozen=True)
class Likelihood:
    """Losses of one model.

    Attributes:
        model: the base with its LoRA layers.
        pad: token id that fills batches.
        loss_on: "response", or "all" for prompt and response.
        picks_logits: whether the model computes logits at chosen positions only.
        device: where the model lives.
    """

    model: PeftModel
    pad: int
    loss_on: str
    picks_logits: bool
    device: torch.device

    @staticmethod
    def of(model: PeftModel, *, pad: int, loss_on: str) -> Likelihood:
        """Losses of a model as it stands on its device."""
        picks = "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
        return Likelihood(model=model, pad=pad, loss_on=loss_on, picks_logits=picks, device=model.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Summed negative log-likelihood of the target tokens, nats."""
        counts = batch.loss_mask[:, 1:]
        # positions from which some row predicts a target; the others need no logits
        positions = np.flatnonzero(counts.any(axis=0)) if self.picks_logits else np.arange(counts.shape[1])
        targets = np.where(counts, batch.input_ids[:, 1:], -100)[:, positions]
        keep = {"logits_to_keep": self._tensor(positions)} if self.picks_logits else {}
        logits = self.model(
            input_ids=self._tensor(batch.input_ids), attention_mask=self._tensor(batch.attention_mask), **keep
        ).logits
        logits = logits if self.picks_logits else logits[:, :-1]
        return functional.cross_entropy(
            logits.float().flatten(0, 1), self._tensor(targets).flatten(), ignore_index=-100, reduction="sum"
        )

    def score(self, rows: Sequence[Encoded]) -> EvalSums:
        batch = collate(rows, pad=self.pad, loss_on=self.loss_on)
        return EvalSums(float(self.loss(batch)), batch.num_targets, None, len(rows))

    def classify(self, rows: Sequence[Encoded]) -> EvalSums:
        """Likelihood of every label word in one pass: all of them follow the prompt, each blind to the others."""
        batch = collate_candidates(rows, pad=self.pad)
        dtype = next(self.model.parameters()).dtype
        mask = torch.where(self._tensor(batch.sees), 0.0, torch.finfo(dtype).min).to(dtype)
        counts = batch.predecessor >= 0 if self.loss_on == "all" else batch.owner >= 0
        length = batch.input_ids.shape[1]
        positions = np.unique(batch.predecessor[counts]) if self.picks_logits else np.arange(length)
        keep = {"logits_to_keep": self._tensor(positions)} if self.picks_logits else {}
        logits = self.model(
            input_ids=self._tensor(batch.input_ids),
            attention_mask=mask,
            position_ids=self._tensor(batch.position_ids),
            **keep,
        ).logits.float()
        # where the logits that predict each token stand: [num_rows, length], any place where none does
        place = np.minimum(np.searchsorted(positions, batch.predecessor), len(positions) - 1)
        index = torch.arange(len(rows), device=self.device)[:, None]
        normal = logits.logsumexp(-1)
        chosen = logits[index, self._tensor(place), self._tensor(batch.input_ids)] - normal[index, self._tensor(place)]
        scores = torch.where(self._tensor(counts), chosen, 0.0).double().cpu().numpy()
        correct, num_tokens, loss = 0, 0, 0.0
        for row, score, owner in zip(rows, scores, batch.owner, strict=True):
            likelihood = [score[owner == number].sum() for number in range(len(row.candidates))]
            correct += int(np.argmax(likelihood) == row.label)
            counted = (owner == row.label) if self.loss_on == "response" else _with_prompt(row, owner)
            loss -= float(score[counted].sum())
            num_tokens += int(counted.sum())
        return EvalSums(loss, num_tokens, correct, len(rows))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _with_prompt(row: Encoded, owner: np.ndarray) -> np.ndarray:
    """Tokens of the prompt, less its first, and of the right candidate."""
    counted = owner == row.label
    counted[1 : len(row.prompt)] = True
    return counted
