"""A process's side of alignment: the pairs of its nodes, the rewards on one scale, and one node's round of alignment.

"Personalized Wireless Federated Learning for Large Language Models" (arXiv 2404.13238) aligns locally, with two reward
models and weights of each client; its body is not available. Our choices: the rewards are put on the scale of the base
model's samples, once and for all nodes, so that one node's weights mean the same as another's and figures can be
compared; learned rewards are heads on the base model, fitted in every process to all training pairs with one seed, as
if they had been trained once and handed out. Measures are taken on held-out prompts, the same for all nodes, outside of
the time and energy of a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nodes import preferences
from nodes.adapters import FlatAdapter
from nodes.alignment import align_on_pairs, align_on_rewards, measure
from nodes.alignment_recipe import Aligned, Measures, Recipe
from nodes.policy import Policy, holding
from nodes.preferences import KINDS, Pair
from nodes.reward import (
    COMMON_WORDS,
    LISTED_WORDS,
    Brevity,
    ListedWords,
    ReferenceOverlap,
    Reward,
    WantedWords,
    normalise,
    score_all,
)
from nodes.reward_model import Backbone, load_reward_model
from nodes.reward_training import train_heads
from testbed.core.errors import ConfigError
from testbed.core.orders import Alignment, Part
from testbed.core.specs import AlignmentSpec, DataSpec, JobSpec
from testbed.lora.choice import part_mask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PARTITION_DRAW, _PAIR_DRAW, _HEAD_DRAW, _SCALE_DRAW, _ALIGN_DRAW, _MEASURE_DRAW = 21, 22, 23, 24, 25, 26
_KEPT_BY_RECIPE = (
    "steps", "learning_rate", "beta", "zeta", "combine", "batch_size", "group", "epochs", "clip", "max_tokens",
    "length", "max_grad_norm", "cost_limit", "queue_step", "kl_limit", "reward_limit",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What a round of alignment gave, and what it is worth.

    Attributes:
        aligned: adapter, status and trace.
        measures: as of `testbed.core.orders.LocalResult`.
    """

    aligned: Aligned
    measures: dict[str, float]

    @property
    def losses(self) -> list[float]:
        """Of the steps, those that are finite."""
        return [step.loss for step in self.aligned.trace if math.isfinite(step.loss)]


class Aligner:
    """Aligns the adapters of all nodes of this process, one at a time.

    Args:
        job: of the experiment, with `[alignment]`.
        adapter: of the base model; with the values of whoever works.
        tokenizer: of the base model.

    Raises:
        ConfigError: the pairs cannot be read, one is empty or identical, or a node lacks pairs of a kind it needs.
    """

    def __init__(self, job: JobSpec, adapter: FlatAdapter, tokenizer: PreTrainedTokenizerBase) -> None:
        if job.alignment is None:
            raise ConfigError(
                "a node was asked to align, and the experiment has no [alignment]",
                key="alignment",
                remedy="say in [alignment] where the preference pairs are, or use a scheme that does not align",
            )
        self._job, self._spec, self._adapter = job, job.alignment, adapter
        self._policy = Policy(adapter, tokenizer)
        spec = self._spec
        self._train, self._test = preferences.load(DataSpec(source=spec.source, fields=spec.fields))
        if spec.max_pairs is not None and spec.max_pairs < len(self._train):
            drawn = self._rng(_PAIR_DRAW).choice(len(self._train), spec.max_pairs, replace=False)
            self._train = tuple(self._train[index] for index in np.sort(drawn))
        self._dealt = preferences.deal(self._train, job.nodes, spec.partition, self._rng(_PARTITION_DRAW))
        for node in job.nodes:
            preferences.require(self._dealt, node, spec.requires)

    def align(
        self,
        node: str,
        round_index: int,
        start: np.ndarray,
        objective: Alignment,
        *,
        reference: np.ndarray,
        part: Part,
        pulled: Part,
        should_stop: Callable[[], bool] | None = None,
    ) -> Aligned:
        """Align one node's adapter on its own pairs or prompts.

        Args:
            node: whose pairs.
            round_index: seeds prompts and samples.
            start: flat adapter to begin with, shape [layout.size].
            objective: how, where it differs from `[alignment]`.
            reference: flat adapter of the policy that the leash holds to, shape [layout.size].
            part: values that are trained.
            pulled: values to which the zeta-term applies.
            should_stop: asked after each step; True ends alignment early.

        Raises:
            ConfigError: weights that do not fit, or no pairs of a kind that counts.
        """
        recipe, method = self._recipe(objective), objective.method or self._spec.method
        trained = part_mask(self._adapter.layout, part)
        anchored = trained & part_mask(self._adapter.layout, pulled) if recipe.zeta > 0 else trained & False
        rng = np.random.default_rng([self._job.seed, self._job.nodes.index(node), round_index, _ALIGN_DRAW])
        own = self._dealt[node]
        common = {
            "reference": reference,
            "trained": _stretches(trained),
            "anchored": _stretches(anchored),
            "should_stop": should_stop,
        }
        if method == "ppo":
            # an objective that does not count needs no prompts of its kind
            kinds = [kind for kind, weight in zip(KINDS, recipe.weights, strict=True) if weight > 0]
            prompts = _prompts([pair for pair in own if pair.kind in kinds])
            return align_on_rewards(self._policy, start, prompts, self.rewards, recipe, rng, **common)  # type: ignore[arg-type]
        pairs = [preferences.of_kind(own, kind) for kind in KINDS]
        rewards = self.rewards if method == "modpo" else None
        return align_on_pairs(self._policy, start, pairs, recipe, rng, rewards=rewards, **common)  # type: ignore[arg-type]

    def measured(
        self, start: np.ndarray, aligned: Aligned, objective: Alignment, reference: np.ndarray
    ) -> tuple[Aligned, dict[str, float]]:
        """What alignment is worth on held-out prompts; a policy that has left the leash behind is taken back.

        Args:
            start: flat adapter before, shape [layout.size].
            aligned: what `align` returned.
            objective: as of `align`.
            reference: as of `align`.

        Returns:
            The alignment, diverged where its KL is beyond the limit; and `LocalResult.measures`.
        """
        before = self.measure(start, reference)
        after = self.measure(aligned.vector, reference)
        limit = self._recipe(objective).kl_limit
        if aligned.status != "diverged" and not after.kl <= limit:
            told = f"the policy is {after.kl:.3g} nats a response from its reference, the limit is {limit:g}"
            aligned = Aligned(start.astype(np.float32), "diverged", told, aligned.trace, aligned.num_tokens)
            after = before
        names = ("helpfulness", "safety")
        found = {
            **{f"{name}_before": float(value) for name, value in zip(names, before.rewards, strict=True)},
            **{name: float(value) for name, value in zip(names, after.rewards, strict=True)},
            **{f"{name}_error": float(value) for name, value in zip(names, after.error, strict=True)},
            "kl": after.kl,
            "diverged": float(aligned.status == "diverged"),
        }
        return aligned, {name: value for name, value in found.items() if math.isfinite(value)}

    def measure(self, vector: np.ndarray, reference: np.ndarray) -> Measures:
        """Rewards and KL of a policy on `prompts`, on the same random numbers whoever asks.

        Args:
            vector: flat adapter of the policy, shape [layout.size].
            reference: flat adapter of pi_ref, shape [layout.size].
        """
        rng, recipe = self._rng(_MEASURE_DRAW), self._recipe(Alignment((0.5, 0.5)))
        prompts = _drawn(_prompts(self._test), self._spec.measure_prompts, rng)
        return measure(self._policy, vector, reference, prompts, self.rewards, recipe, rng)

    def scores_of_base(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Both rewards of what the base model answers to `prompts`.

        Args:
            num_samples: answers to each prompt.
            rng: draws them.

        Returns:
            Shape [num_prompts, num_samples, 2].
        """
        policy, room, found = self._policy, self._spec.length - self._spec.max_tokens, []
        with holding(self._adapter, self._adapter.initial):
            self._adapter.model.eval()
            for prompt in self.prompts:
                ids = [preferences.encode_prompt(prompt, policy.tokenizer, room)] * num_samples
                texts = [policy.text(one) for one in policy.sample(ids, self._spec.max_tokens, rng)]
                found.append(score_all(self.rewards, [prompt] * num_samples, texts))
        return np.stack(found)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Held-out prompts that measures are taken on, the same for all nodes."""
        return tuple(_drawn(_prompts(self._test), self._spec.measure_prompts, self._rng(_MEASURE_DRAW)))

    @cached_property
    def rewards(self) -> tuple[Reward, ...]:
        """Helpfulness and safety on the scale of the base model's samples."""
        prompts, responses = self._reference_samples()
        spec: AlignmentSpec = self._spec
        tokenizer = self._policy.tokenizer
        if spec.rewards == "programmatic":
            references = {pair.prompt: pair.chosen for pair in (*self._test, *self._train)}
            raw = (ReferenceOverlap(references), ListedWords(frozenset(spec.listed) or LISTED_WORDS))
            return tuple(normalise(reward, prompts, responses) for reward in raw)
        if spec.rewards == "opposed":
            opposed = (WantedWords(frozenset(spec.listed) or COMMON_WORDS), Brevity())
            return tuple(normalise(reward, prompts, responses) for reward in opposed)
        if spec.rewards == "learned":
            backbone = Backbone(self._adapter, tokenizer, self._adapter.initial, spec.length)
            model, _ = train_heads(backbone, self._train, KINDS, self._rng(_HEAD_DRAW))
        else:
            model = load_reward_model(Path(spec.rewards), self._adapter, tokenizer)
        scaled = model.normalised_on(prompts, responses)
        return tuple(scaled.objective(kind) for kind in KINDS)

    def _reference_samples(self) -> tuple[list[str], list[str]]:
        """Prompts of the training pairs and what the base model answers."""
        rng, spec = self._rng(_SCALE_DRAW), self._spec
        asked = _drawn(_prompts(self._train), spec.reference_prompts, rng)
        room = spec.length - spec.max_tokens
        prompts = [prompt for prompt in asked for _ in range(spec.group)]
        responses: list[str] = []
        with holding(self._adapter, self._adapter.initial):
            self._adapter.model.eval()
            for first in range(0, len(prompts), 8 * spec.group):
                ids = [
                    preferences.encode_prompt(prompt, self._policy.tokenizer, room)
                    for prompt in prompts[first : first + 8 * spec.group]
                ]
                responses += [self._policy.text(one) for one in self._policy.sample(ids, spec.max_tokens, rng)]
        return prompts, responses

    def _recipe(self, objective: Alignment) -> Recipe:
        spec = self._spec
        given = {name: getattr(spec, name) for name in _KEPT_BY_RECIPE}
        own = {name: value for name in _KEPT_BY_RECIPE if (value := getattr(objective, name, None)) is not None}
        if len(objective.weights) != len(KINDS):
            raise ConfigError(
                f"{len(objective.weights)} weights for {len(KINDS)} objectives, helpfulness and safety",
                key="scheme.weights",
                remedy="give two weights for each node",
            )
        return Recipe(weights=objective.weights, **{**given, **own})

    def _rng(self, draw: int) -> np.random.Generator:
        return np.random.default_rng([self._job.seed, draw])


def _prompts(pairs: Sequence[Pair]) -> list[str]:
    """Distinct prompts in the order of the pairs."""
    return list(dict.fromkeys(pair.prompt for pair in pairs))


def _drawn(prompts: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    if len(prompts) <= most:
        return list(prompts)
    return [prompts[index] for index in np.sort(rng.choice(len(prompts), most, replace=False))]


def _stretches(mask: np.ndarray) -> list[slice]:
    """Where a mask is true, as slices."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [slice(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]
