"""How a client aligns, and what it reports: settings, measures, and the record of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nodes.reward import check_weights
from testbed.core.errors import ConfigError

Status = Literal["finished", "stopped", "diverged"]
"""finished: all steps. stopped: asked to end early. diverged: a limit was left; the vector is the last inside it."""


@dataclass(frozen=True)
class Recipe:
    """How a client aligns.

    Attributes:
        weights: l_k, one for each objective, not negative, adding up to 1.
        combine: weighted: the sum by `weights`; mgda: the direction that improves both, whatever the weights; safe:
            the first objective under a limit on the cost, minus the second.
        steps: optimiser steps; on rewards, batches of samples.
        learning_rate: of AdamW.
        beta: strength of the leash to the reference policy.
        zeta: weight of the distance from the shared values, where these are trained.
        batch_size: prompts, or pairs, of a step.
        group: responses sampled to each prompt, at least 2.
        epochs: passes over each batch of samples.
        clip: how far the ratio to the sampling policy may go from 1.
        max_tokens: most tokens of a response.
        length: most tokens of prompt and response.
        max_grad_norm: gradients longer than this are shortened to it.
        cost_limit: most mean cost under `safe`, in standard deviations of the reference samples.
        queue_step: step of its virtual queue.
        kl_limit: nats a response at which alignment ends as diverged.
        reward_limit: mean normalised reward, in absolute value, at which it does: no honest gain is this large.
    """

    weights: tuple[float, ...]
    combine: Literal["weighted", "mgda", "safe"] = "weighted"
    steps: int = 20
    learning_rate: float = 1e-3
    beta: float = 0.05
    zeta: float = 0.0
    batch_size: int = 8
    group: int = 4
    epochs: int = 1
    clip: float = 0.2
    max_tokens: int = 32
    length: int = 192
    max_grad_norm: float = 1.0
    cost_limit: float = 0.0
    queue_step: float = 1.0
    kl_limit: float = 50.0
    reward_limit: float = 20.0

    def __post_init__(self) -> None:
        check_weights(self.weights, len(self.weights))
        wrong = [
            (name, value, bound)
            for name, value, holds, bound in (
                ("steps", self.steps, self.steps >= 1, "at least 1"),
                ("learning_rate", self.learning_rate, self.learning_rate > 0, "positive"),
                ("beta", self.beta, self.beta > 0, "positive"),
                ("zeta", self.zeta, self.zeta >= 0, "not negative"),
                ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
                ("group", self.group, self.group >= 2, "at least 2, since the others are the baseline"),
                ("max_tokens", self.max_tokens, 1 <= self.max_tokens < self.length, "between 1 and the length"),
                ("queue_step", self.queue_step, self.queue_step > 0, "positive"),
            )
            if not holds
        ]
        for name, value, bound in wrong:
            raise ConfigError(f"{name} is {value}", key=f"alignment.{name}", remedy=f"give a value that is {bound}")
        if self.combine != "weighted" and len(self.weights) != 2:
            raise ConfigError(
                f"combine = {self.combine!r} joins two objectives, there are {len(self.weights)}",
                key="alignment.combine",
                remedy='give two weights, or use combine = "weighted"',
            )


@dataclass(frozen=True)
class Measures:
    """What a policy's samples are worth.

    Attributes:
        rewards: mean of each normalised reward, shape [num_objectives].
        error: standard errors of these means, by prompts, shape [num_objectives].
        kl: KL(pi || pi_ref), nats a response.
        num_samples: responses looked at.
        num_tokens: their tokens.
    """

    rewards: np.ndarray
    error: np.ndarray
    kl: float
    num_samples: int
    num_tokens: int


@dataclass(frozen=True)
class StepRecord:
    """One step of alignment.

    Attributes:
        loss: of the step, summed over the passes.
        rewards: mean of each normalised reward over the samples, shape [num_objectives]; NaN on pairs.
        kl: estimate of KL(pi || pi_ref) before the step, nats a response; on pairs, NaN.
        backlog: virtual queue of the cost limit after the step.
        mixing: weight of the first objective's gradient under `mgda`, else NaN.
    """

    loss: float
    rewards: np.ndarray
    kl: float = math.nan
    backlog: float = 0.0
    mixing: float = math.nan


@dataclass(frozen=True)
class Aligned:
    """What alignment gave.

    Attributes:
        vector: flat adapter, shape [layout.size] float32.
        status: see `Status`.
        message: why it diverged: which limit, and by how much.
        trace: one record a step.
        num_tokens: tokens sampled and trained on, for time and energy.
    """

    vector: np.ndarray
    status: Status
    message: str
    trace: tuple[StepRecord, ...]
    num_tokens: int
