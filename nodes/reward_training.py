"""Training of reward models on preference pairs: heads by Newton's method, heads with an adapter by gradient steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from nodes.preferences import Pair, hold_out, of_kind
from nodes.reward_model import Backbone, RewardModel
from nodes.tokens import Encoded
from testbed.core.errors import ConfigError

_RIDGES = tuple(10.0 ** (1.0 - 0.5 * step) for step in range(9))
"""From strong to weak, on features of unit spread."""

_PATIENCE = 2


@dataclass(frozen=True)
class Fit:
    """How a reward model's training ended.

    Attributes:
        chosen: ridge of each head, or the number of steps, at which training stopped.
        validation_loss: Bradley-Terry loss there on held-out prompts of the training part, nats a pair; ln 2 is chance.
        trace: validation loss along the way, one tuple for each head, or one for all.
    """

    chosen: tuple[float, ...]
    validation_loss: tuple[float, ...]
    trace: tuple[tuple[float, ...], ...]


def bradley_terry(margins: np.ndarray) -> float:
    """Mean negative log-likelihood of the preferences, nats a pair.

        mean of -log sigmoid( r(x, y+) - r(x, y-) )

    Args:
        margins: r(x, y+) - r(x, y-), shape [num_pairs].

    Returns:
        ln 2 where all margins are 0.

    Reference: Bradley and Terry, "Rank analysis of incomplete block designs", Biometrika 1952.
    """
    return float(np.logaddexp(0.0, -margins).mean())


def ridge_head(differences: np.ndarray, ridge: float) -> np.ndarray:
    """The head that minimises the Bradley-Terry loss with a ridge, by Newton's method with step halving.

        min_w  mean of log(1 + exp(-d_i . w)) + (ridge / 2) ||w||^2

    Args:
        differences: d_i = f(x, y+) - f(x, y-), shape [num_pairs, hidden].
        ridge: positive, so that the minimum is unique.

    Returns:
        w, shape [hidden].
    """
    count, hidden = differences.shape
    head = np.zeros(hidden)

    def value(candidate: np.ndarray) -> float:
        return bradley_terry(differences @ candidate) + 0.5 * ridge * float(candidate @ candidate)

    current = value(head)
    for _ in range(50):
        margins = differences @ head
        wrong = 0.5 * (1.0 - np.tanh(0.5 * margins))  # sigmoid(-margin), without overflow
        gradient = ridge * head - differences.T @ wrong / count
        curvature = (differences.T * (wrong * (1.0 - wrong) / count)) @ differences + ridge * np.eye(hidden)
        step = np.linalg.solve(curvature, gradient)
        decrement = float(gradient @ step)
        if decrement <= 1e-16 * max(1.0, current):
            break
        size = 1.0
        while size > 1e-8 and value(head - size * step) > current - 0.25 * size * decrement:
            size *= 0.5
        head = head - size * step
        current = value(head)
    return head


def train_heads(
    backbone: Backbone, pairs: Sequence[Pair], objectives: Sequence[str], rng: np.random.Generator
) -> tuple[RewardModel, Fit]:
    """A head for each objective on the frozen backbone.

    The ridge weakens from 10 by half decades until the loss on held-out prompts has not fallen twice in a row: early
    stopping along the regularisation path. The head is then fitted to all pairs at the best ridge.

    Args:
        backbone: gives the features.
        pairs: training pairs of every objective.
        objectives: kinds of pairs, each of which gets a head.
        rng: draws the prompts that are held out.

    Raises:
        ConfigError: an objective has too few pairs.
    """
    heads, chosen, losses, traces = [], [], [], []
    for name in objectives:
        own = _pairs_of(pairs, name)
        kept, held = hold_out(own, 0.2, rng)
        everything = _differences(backbone, own)
        spread = np.maximum(everything.std(0), 1e-12)
        scaled = dict(zip(own, everything / spread, strict=True))
        learnt, checked = (np.stack([scaled[pair] for pair in part]) for part in (kept, held))
        trace: list[float] = []
        for ridge in _RIDGES:
            trace.append(bradley_terry(checked @ ridge_head(learnt, ridge)))
            if len(trace) - 1 - int(np.argmin(trace)) >= _PATIENCE:
                break
        best = int(np.argmin(trace))
        heads.append(ridge_head(everything / spread, _RIDGES[best]) / spread)
        chosen.append(_RIDGES[best])
        losses.append(trace[best])
        traces.append(tuple(trace))
    count = len(heads)
    model = RewardModel(backbone, tuple(objectives), np.stack(heads), np.zeros(count), np.ones(count))
    return model, Fit(tuple(chosen), tuple(losses), tuple(traces))


def train_with_adapter(
    start: RewardModel,
    pairs: Sequence[Pair],
    rng: np.random.Generator,
    *,
    max_steps: int = 200,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    centre: float = 0.01,
    check_every: int = 10,
    patience: int = 5,
) -> tuple[RewardModel, Fit]:
    """Train the heads together with the backbone's flat adapter.

        loss = mean of -log sigmoid(r+ - r-) + centre (r+ + r-)^2

    Stops where the loss on held-out prompts has not fallen for `patience` looks, and returns the best that was seen;
    that is the start if no step helped.

    Args:
        start: heads to begin with, for instance those of `train_heads`.
        pairs: training pairs of the model's objectives.
        rng: draws held-out prompts and batches.
        max_steps: most optimiser steps.
        batch_size: pairs of one step.
        learning_rate: of AdamW, for adapter and heads.
        centre: weight of the term that keeps rewards near 0.
        check_every: steps between two looks at the held-out prompts.
        patience: looks without improvement after which training stops.

    Raises:
        ConfigError: an objective has too few pairs, or the loss is not finite.
    """
    backbone, adapter = start.backbone, start.backbone.adapter
    wanted = [pair for name in start.objectives for pair in _pairs_of(pairs, name)]
    kept, held = hold_out(wanted, 0.2, rng)
    kinds = {name: index for index, name in enumerate(start.objectives)}
    rows = {pair: _rows(backbone, pair) for pair in wanted}
    standing = adapter.read()
    adapter.write(backbone.vector)
    flat = torch.nn.Parameter(adapter.values)
    heads = torch.nn.Parameter(torch.from_numpy(start.heads.astype(np.float32)).to(adapter.values.device))
    flat.grad = adapter.gradient
    optimizer = torch.optim.AdamW([flat, heads], learning_rate, weight_decay=0.0)

    def rewards(part: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        both = [rows[pair][0] for pair in part] + [rows[pair][1] for pair in part]
        index = torch.tensor([kinds[pair.kind] for pair in part], device=heads.device)
        values = (backbone.pooled(both) * heads[torch.cat([index, index])]).sum(-1)
        return values[: len(part)], values[len(part) :]

    @torch.no_grad()
    def validation(step: int) -> float:
        size = backbone.batch_size
        parts = [rewards(held[first : first + size]) for first in range(0, len(held), size)]
        margins = torch.cat([good - bad for good, bad in parts]).double()
        _check_finite(float(margins.sum()), step)
        return bradley_terry(margins.cpu().numpy())

    try:
        trace = [validation(0)]
        best = (0, adapter.read(), start.heads)
        for step in range(1, max_steps + 1):
            part = [kept[index] for index in rng.choice(len(kept), min(batch_size, len(kept)), replace=False)]
            adapter.gradient.zero_()
            heads.grad = None
            good, bad = rewards(part)
            loss = -functional.logsigmoid(good - bad).mean() + centre * (good + bad).square().mean()
            _check_finite(float(loss.detach()), step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([flat, heads], 1.0)
            optimizer.step()
            if step % check_every == 0 or step == max_steps:
                trace.append(validation(step))
                if trace[-1] < min(trace[:-1]):
                    best = (step, adapter.read(), heads.detach().double().cpu().numpy())
                elif len(trace) - 1 - int(np.argmin(trace)) >= patience:
                    break
    finally:
        adapter.write(standing)
    steps, vector, found = best
    model = replace(start, backbone=replace(backbone, vector=vector), heads=found)
    return model, Fit((float(steps),), (min(trace),), (tuple(trace),))


def _pairs_of(pairs: Sequence[Pair], kind: str) -> tuple[Pair, ...]:
    own = of_kind(pairs, kind)
    if len(own) < 2:
        raise ConfigError(
            f"{len(own)} training pairs of kind {kind!r} cannot train a reward model",
            key="data.source",
            remedy="give more pairs of that kind, or use a programmatic reward",
        )
    return tuple(dict.fromkeys(own))


def _differences(backbone: Backbone, pairs: Sequence[Pair]) -> np.ndarray:
    """f(x, y+) - f(x, y-), shape [num_pairs, hidden]."""
    rows = [_rows(backbone, pair) for pair in pairs]
    features = backbone.features([chosen for chosen, _ in rows] + [rejected for _, rejected in rows])
    return features[: len(rows)] - features[len(rows) :]


def _rows(backbone: Backbone, pair: Pair) -> tuple[Encoded, Encoded]:
    return backbone.encode(pair.prompt, pair.chosen), backbone.encode(pair.prompt, pair.rejected)


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss of the reward model is {loss} at step {step}",
            key="alignment.learning_rate",
            remedy="lower the learning rate of the reward model",
        )
