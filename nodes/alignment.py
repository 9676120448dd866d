"""Local alignment of a client: its own weights of helpfulness and safety, a leash to the policy it starts from.

The client sends nothing while it aligns. It trains a part of the flat adapter (its private LoRA by default choice of
the caller), by one of two routes to the optimum of

    max_psi  E[R_k(x, y)] - beta KL(pi || pi_ref) - (zeta / 2) ||theta_sh - theta_sh^0||^2      (B6)

- `align_on_rewards`: sample, score, and step by clipped policy gradient, the mean of the other samples of a prompt as
  baseline; two objectives meet as a weighted sum, by MGDA, or as reward under a cost limit (a virtual queue);
- `align_on_pairs`: DPO on the pairs of every objective, or MODPO on those of the weightiest with margins from rewards.

All of this is our reading of "local multi-objective alignment" (arXiv 2404.13238, abstract); the body is not available.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nodes.alignment_losses import (
    CostQueue,
    clipped_loss,
    dpo_loss,
    lagrangian_reward,
    leashed_returns,
    leave_one_out,
    modpo_loss,
)
from nodes.alignment_recipe import Aligned, Measures, Recipe, StepRecord
from nodes.descent import Descent
from nodes.policy import Policy, TokenScores, holding
from nodes.preferences import EncodedPair, Pair, encode, encode_prompt
from nodes.reward import Reward, check_weights, score_all
from nodes.tokens import Encoded
from testbed.core.errors import ConfigError


def measure(
    policy: Policy,
    vector: np.ndarray,
    reference: np.ndarray,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    recipe: Recipe,
    rng: np.random.Generator,
) -> Measures:
    """Sample `recipe.group` responses to each prompt and score them.

    A generator of the same seed for two policies compares them on common random numbers.

    Args:
        policy: the model.
        vector: flat adapter of the policy that is measured, shape [layout.size].
        reference: flat adapter of pi_ref, shape [layout.size].
        prompts: what is asked.
        rewards: one for each objective.
        recipe: lengths and group.
        rng: draws the samples.
    """
    scores, kl, num_tokens = [], [], 0
    with holding(policy.adapter, vector):
        for first in range(0, len(prompts), recipe.batch_size):
            batch = _sample(policy, prompts[first : first + recipe.batch_size], rewards, recipe, rng)
            scores.append(batch.scores.reshape(-1, recipe.group, len(rewards)))
            kl.append(policy.divergence(batch.rows, reference))
            num_tokens += batch.num_tokens
    # [num_prompts, num_objectives]
    means = np.concatenate(scores).mean(1)
    error = means.std(0, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else np.full(len(rewards), math.nan)
    return Measures(means.mean(0), error, float(np.concatenate(kl).mean()), len(means) * recipe.group, num_tokens)


def align_on_rewards(
    policy: Policy,
    start: np.ndarray,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    reference: np.ndarray | None = None,
    trained: Sequence[slice] | None = None,
    anchored: Sequence[slice] = (),
    should_stop: Callable[[], bool] | None = None,
) -> Aligned:
    """Align by sampling: clipped policy gradient on the leashed rewards.

    Args:
        policy: the model; its values are those of `vector` of the result afterwards.
        start: flat adapter to begin with, shape [layout.size].
        prompts: what the client asks.
        rewards: normalised, one for each objective.
        recipe: how.
        rng: draws prompts and samples.
        reference: flat adapter of pi_ref; `start` by default.
        trained: parts of the vector that change; all by default. Every byte of the others stays.
        anchored: parts to which the zeta-term applies.
        should_stop: asked after each step; True ends alignment early.

    Raises:
        ConfigError: no prompts, or not one reward for each weight.
    """
    check_weights(recipe.weights, len(rewards))
    if not prompts:
        raise ConfigError("there are no prompts to align on", key="data.source", remedy="give this client prompts")
    leash = start.copy() if reference is None else reference
    descent = Descent(policy.adapter, start, recipe, trained, anchored)
    queue = CostQueue(0.0, recipe.cost_limit, recipe.queue_step)
    order = _endless(len(prompts), rng)
    trace: list[StepRecord] = []
    num_tokens = 0
    for _ in range(recipe.steps):
        asked = [prompts[next(order)] for _ in range(recipe.batch_size)]
        batch = _sample(policy, asked, rewards, recipe, rng)
        num_tokens += batch.num_tokens * (1 + recipe.epochs)
        with torch.no_grad():
            old = policy.log_probs(batch.rows)
            with holding(policy.adapter, leash):
                kept = policy.log_probs(batch.rows)
        kl = float((old.sums - kept.sums).mean())
        means = batch.scores.mean(0)
        trouble = _departure(kl, means, recipe)
        if trouble:
            return descent.diverged(trouble, trace, num_tokens)
        descent.commit()
        if recipe.combine == "safe":
            queue = queue.after(-float(means[1]))
        targets = _targets(batch.scores, recipe, queue)
        advantages = [_advantages(target, old, kept, recipe) for target in targets]
        loss, mixing = 0.0, math.nan
        for _ in range(recipe.epochs):
            parts = [_ppo_part(policy, batch.rows, old, advantage, recipe) for advantage in advantages]
            value, mixing = descent.step(parts)
            loss += value
            if not math.isfinite(value):
                return descent.diverged("the loss or its gradient is not finite", trace, num_tokens)
        trace.append(StepRecord(loss, means, kl, queue.backlog, mixing))
        if should_stop is not None and should_stop():
            return descent.ended("stopped", trace, num_tokens)
    return descent.ended("finished", trace, num_tokens)


def align_on_pairs(
    policy: Policy,
    start: np.ndarray,
    pairs: Sequence[Sequence[Pair]],
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    rewards: Sequence[Reward] | None = None,
    reference: np.ndarray | None = None,
    trained: Sequence[slice] | None = None,
    anchored: Sequence[slice] = (),
    should_stop: Callable[[], bool] | None = None,
) -> Aligned:
    """Align on preference pairs, without sampling.

    With rewards: MODPO on the pairs of the weightiest objective, margins from the others' rewards. Without: the DPO
    losses of all objectives, summed by weight or by MGDA.

    Args:
        policy: the model; its values are those of `vector` of the result afterwards.
        start: flat adapter to begin with, shape [layout.size].
        pairs: the client's pairs, one sequence for each objective.
        recipe: how.
        rng: draws the pairs of each step.
        rewards: normalised, one for each objective; that of the weightiest is not asked, its pairs speak for it.
        reference: flat adapter of pi_ref; `start` by default.
        trained: parts of the vector that change; all by default. Every byte of the others stays.
        anchored: parts to which the zeta-term applies.
        should_stop: asked after each step; True ends alignment early.

    Raises:
        ConfigError: an objective that counts has no pairs, the combination needs samples, or weights do not fit.
    """
    weights = check_weights(recipe.weights, len(pairs))
    if recipe.combine == "safe" or (rewards is not None and recipe.combine == "mgda"):
        raise ConfigError(
            f"combine = {recipe.combine!r} cannot be had from these pairs: it needs rewards of samples",
            key="alignment.combine",
            remedy='use combine = "weighted", or align on rewards',
        )
    primary = int(np.argmax(weights))
    used = [primary] if rewards is not None else [index for index, weight in enumerate(weights) if weight > 0]
    for index in used:
        if not pairs[index]:
            raise ConfigError(
                f"there are no preference pairs of objective {index + 1}, whose weight is {weights[index]:g}",
                key="data.partition",
                remedy="give this client such pairs, set the weight to 0, or align on rewards",
            )
    leash = start.copy() if reference is None else reference
    objectives = []
    for index in used:
        margins = np.zeros(len(pairs[index]))
        if rewards is not None:
            margins = _margins(pairs[index], rewards, weights, primary)
        own = [encode(pair, policy.tokenizer, recipe.length) for pair in pairs[index]]
        share = 1.0 if rewards is not None or recipe.combine == "mgda" else float(weights[index])
        objectives.append((own, margins, share))
    descent = Descent(policy.adapter, start, recipe, trained, anchored)
    orders = [_endless(len(own), rng) for own, _, _ in objectives]
    leashes = [_Leash(policy, own, leash) for own, _, _ in objectives]
    scale = float(weights[primary]) if rewards is not None else None
    trace: list[StepRecord] = []
    num_tokens = 0
    nothing = np.full(len(pairs), math.nan)
    for _ in range(recipe.steps):
        parts = []
        for (own, margins, share), order, held in zip(objectives, orders, leashes, strict=True):
            picked = [next(order) for _ in range(recipe.batch_size)]
            batch = [own[index] for index in picked]
            num_tokens += sum(len(pair.chosen) + len(pair.rejected) for pair in batch)
            parts.append(_pair_part(policy, batch, margins[picked], held.of(picked), recipe, share, scale))
        value, mixing = descent.step(parts)
        if not math.isfinite(value):
            return descent.diverged("the loss or its gradient is not finite", trace, num_tokens)
        descent.commit()
        trace.append(StepRecord(value, nothing, mixing=mixing))
        if should_stop is not None and should_stop():
            return descent.ended("stopped", trace, num_tokens)
    return descent.ended("finished", trace, num_tokens)


@dataclass(frozen=True)
class _Samples:
    rows: list[Encoded]
    scores: np.ndarray
    num_tokens: int


def _sample(
    policy: Policy, prompts: Sequence[str], rewards: Sequence[Reward], recipe: Recipe, rng: np.random.Generator
) -> _Samples:
    """`recipe.group` responses to each prompt, those of a prompt side by side, and their scores."""
    asked = [prompt for prompt in prompts for _ in range(recipe.group)]
    room = recipe.length - recipe.max_tokens
    ids = [encode_prompt(prompt, policy.tokenizer, room) for prompt in prompts]
    ids = [row for row in ids for _ in range(recipe.group)]
    responses = policy.sample(ids, recipe.max_tokens, rng)
    rows = [Encoded(prompt=prompt, response=response) for prompt, response in zip(ids, responses, strict=True)]
    scores = score_all(rewards, asked, [policy.text(response) for response in responses])
    return _Samples(rows, scores, sum(map(len, rows)))


def _targets(scores: np.ndarray, recipe: Recipe, queue: CostQueue) -> list[np.ndarray]:
    """The rewards whose policy gradients are taken, each of shape [num_responses]."""
    match recipe.combine:
        case "weighted":
            return [scores @ np.asarray(recipe.weights)]
        case "mgda":
            return [scores[:, 0], scores[:, 1]]
        case "safe":
            return [lagrangian_reward(scores, queue.backlog)]


def _advantages(target: np.ndarray, old: TokenScores, kept: TokenScores, recipe: Recipe) -> torch.Tensor:
    rewards = torch.from_numpy(target).to(old.values)
    returns = leashed_returns(rewards, old.values, kept.values, beta=recipe.beta)
    return leave_one_out(returns.view(-1, recipe.group)).flatten()


def _ppo_part(
    policy: Policy, rows: Sequence[Encoded], old: TokenScores, advantages: torch.Tensor, recipe: Recipe
) -> Callable[[], torch.Tensor]:
    def loss() -> torch.Tensor:
        now = policy.log_probs(rows)
        return clipped_loss(now.values, old.values, now.counts, advantages, clip=recipe.clip).mean()

    return loss


def _pair_part(
    policy: Policy,
    batch: Sequence[EncodedPair],
    margins: np.ndarray,
    kept: torch.Tensor,
    recipe: Recipe,
    share: float,
    scale: float | None,
) -> Callable[[], torch.Tensor]:
    """DPO loss times `share`, or MODPO loss with w_1 = `scale`; `kept` is log pi_ref, shape [2, num_pairs]."""
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]

    def loss() -> torch.Tensor:
        chosen, rejected = policy.log_probs(rows).sums.view(2, -1) - kept
        if scale is None:
            return share * dpo_loss(chosen, rejected, beta=recipe.beta).mean()
        apart = torch.from_numpy(margins).to(chosen)
        return modpo_loss(chosen, rejected, apart, beta=recipe.beta, weight=scale).mean()

    return loss


class _Leash:
    """log pi_ref of pairs, computed where it is first asked for: the reference does not change.

    Args:
        policy: the model.
        pairs: of one objective.
        reference: flat adapter of pi_ref.
    """

    def __init__(self, policy: Policy, pairs: Sequence[EncodedPair], reference: np.ndarray) -> None:
        self._policy, self._pairs, self._reference = policy, pairs, reference
        self._known: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def of(self, picked: Sequence[int]) -> torch.Tensor:
        """log pi_ref of the chosen and of the rejected responses, shape [2, num_picked]."""
        new = [index for index in dict.fromkeys(picked) if index not in self._known]
        if new:
            rows = [self._pairs[index].chosen for index in new] + [self._pairs[index].rejected for index in new]
            with holding(self._policy.adapter, self._reference):
                sums = self._policy.log_probs(rows).sums.view(2, -1)
            self._known.update(zip(new, sums.unbind(1), strict=True))
        return torch.stack([self._known[index] for index in picked], 1)


def _margins(pairs: Sequence[Pair], rewards: Sequence[Reward], weights: np.ndarray, primary: int) -> np.ndarray:
    """Sum over the other objectives of w_j (r_j(y+) - r_j(y-)), shape [num_pairs]."""
    prompts = [pair.prompt for pair in pairs]
    total = np.zeros(len(pairs))
    for index, (reward, weight) in enumerate(zip(rewards, weights, strict=True)):
        if index != primary and weight > 0:
            good = reward.score(prompts, [pair.chosen for pair in pairs])
            total += weight * (good - reward.score(prompts, [pair.rejected for pair in pairs]))
    return total


def _departure(kl: float, means: np.ndarray, recipe: Recipe) -> str:
    """Which limit a batch of samples has left; empty for none."""
    if not np.isfinite(means).all():
        return f"the mean rewards are {', '.join(f'{value:g}' for value in means)}"
    if not kl <= recipe.kl_limit:
        return f"the policy is {kl:.3g} nats a response from its reference, the limit is {recipe.kl_limit:g}"
    worst = float(np.abs(means).max())
    if worst > recipe.reward_limit:
        return f"a mean reward is {worst:.3g} reference deviations from 0, the limit is {recipe.reward_limit:g}"
    return ""


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Indices of one permutation after the other."""
    while True:
        yield from rng.permutation(count).tolist()
