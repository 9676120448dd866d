"""One node's local training: what is asked of it, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from testbed.core.uplinks import WHOLE, Part


@dataclass(frozen=True)
class Pruning:
    """Weights of the frozen base model that a node leaves out while it trains.

    Structured pruning removes whole key-value heads with their query heads, and channels of the feed-forward blocks, as
    many in every layer: the node trains a smaller model, and values of the adapter that belong to what was removed stay
    as they were published. Unstructured pruning sets the least important weights of every output row to zero during the
    node's training, which is as slow as without.

    Attributes:
        ratio: share of the prunable weights (attention and feed-forward, neither embedding nor output layer) to be
            removed; what really is removed is the nearest whole number of heads and channels, or weights of a row, not
            above. A larger ratio removes a superset.
        kind: as above.
        importance: by what the least important are found: data, the first-order Taylor estimate |w dL/dw| of heads and
            channels, or Wanda's |w| ||x|| of single weights, on some batches of the node's own rows, so that nodes
            differ; magnitude, w^2, the same on every node.
    """

    ratio: float
    kind: Literal["structured", "unstructured"] = "structured"
    importance: Literal["data", "magnitude"] = "data"


@dataclass(frozen=True)
class Alignment:
    """Local alignment with preferences instead of training on rows; None means what `[alignment]` says.

    Attributes:
        weights: of helpfulness and safety, not negative, adding up to 1.
        reference: the policy that the leash holds to: first, the node's adapter before its first alignment; start, the
            one before this alignment.
        method, combine, steps, learning_rate, beta, zeta: as of `testbed.core.specs.AlignmentSpec`.
    """

    weights: tuple[float, ...]
    reference: Literal["first", "start"] = "first"
    method: Literal["dpo", "modpo", "ppo"] | None = None
    combine: Literal["weighted", "mgda", "safe"] | None = None
    steps: int | None = None
    learning_rate: float | None = None
    beta: float | None = None
    zeta: float | None = None


@dataclass(frozen=True)
class Tail:
    """Ranks of every LoRA module on which a board lays a penalty, lambda sum over modules ||B_tail||_F ||A_tail||_F.

    Under it those that the data do not need fade, so that they can be pruned (HetLoRA, arXiv 2401.06432).

    Attributes:
        weight: lambda.
        first, last: ranks first <= i < last, counted from 0.
    """

    weight: float
    first: int
    last: int


@dataclass(frozen=True)
class Work:
    """One node's local training; None means what the experiment's `[training]` says.

    Attributes:
        local_steps: optimiser steps.
        batch_size: rows of one forward pass.
        cpu_hz: CPU frequency; the board's highest if None.
        proximal: mu of the term (mu / 2) ||w - w_published||^2 that the board adds to its loss (FedProx,
            arXiv 1812.06127); it counts in `max_grad_norm` but not in the losses that are reported.
        drift: constant vector that is added to the gradient of every step, after that was shortened to
            `max_grad_norm`, shape [num_values]; SCAFFOLD's c - c_m (arXiv 1910.06378).
        factors: which LoRA factors are trained; the others stay as they were published.
        pruning: weights of the base model that are left out while training; none if None.
        ranks: only the first so many ranks of every module are trained, the update is zero elsewhere; all if None.
        others: what the other ranks do meanwhile: frozen, they act but rest; absent, they are taken out of the forward
            pass, as truncation to a smaller rank does (HetLoRA).
        sketch: only these ranks of every module, counted from 0 and ascending, act and are trained, and what they add
            to the frozen weight is multiplied by rank / len(sketch): B S A with S = (rank / k) diag(0, 1) (FSLoRA,
            arXiv 2501.19389); the update is zero elsewhere. All of them, once, if None.
        tail: penalty on some ranks that the board adds to its loss; it counts as `proximal` does.
        orthogonality: lambda of the term lambda Omega(A, B) that the board adds to its loss, with Omega the mean over
            modules of ||B^T B - diag(B^T B)||_F^2 + ||A A^T - diag(A A^T)||_F^2 (SOFT, arXiv 2505.00333); it counts
            as `proximal` does.
        part: which values are trained; the others stay as they were published.
        pulled: values to which `proximal` applies.
        objective: what is minimised; None for the loss of the node's rows. Of the other attributes, alignment knows
            `cpu_hz`, `part` and `pulled`, which its own pull zeta obeys.
        keep: the node goes on from what it has trained, without waiting for a `Publish`.
        beside: what is trained is a copy that the node keeps beside its adapter, from where that copy got to, and from
            the adapter the first time; `proximal` pulls it to the adapter (Ditto, arXiv 2012.04221). The adapter and
            the update that is to be sent stay as they were, no `Publish` changes the copy, and personal scores are its.
    """

    local_steps: int | None = None
    batch_size: int | None = None
    cpu_hz: float | None = None
    proximal: float = 0.0
    drift: np.ndarray | None = None
    factors: Literal["both", "A", "B"] = "both"
    pruning: Pruning | None = None
    ranks: int | None = None
    others: Literal["frozen", "absent"] = "frozen"
    orthogonality: float = 0.0
    part: Part = WHOLE
    pulled: Part = WHOLE
    objective: Alignment | None = None
    keep: bool = False
    sketch: tuple[int, ...] | None = None
    tail: Tail | None = None
    beside: bool = False


@dataclass(frozen=True)
class LocalResult:
    """One node's local training and the statistics of its update (trained minus published adapter).

    Attributes:
        loss_first, loss_last, loss_mean: training loss per token, first and last step and mean of all.
        num_samples: rows the node owns, its weight D_m in federated averaging.
        num_tokens: tokens it trained on.
        update_mean, update_std: over the values of the update; side information of the analogue uplink.
        seconds, joules: of this node.
        num_steps: optimiser steps it took.
        step_size: of plain gradient descent, where update = -step_size * sum of the steps' gradients; 0 where the
            optimiser scales or remembers them (AdamW, momentum).
        work_share: operations of a token, forward and backward, relative to the whole model; 1 without structured
            pruning.
        pruned: share of the squared norm of the prunable weights that was taken out, e_k(ratio).
        pruned_ratio: share of the prunable weights that was really taken out.
        measures: of alignment, on held-out prompts: mean normalised helpfulness and safety, before and after, their
            standard errors after, kl to the reference in nats a response, diverged 1 or 0; empty for training.
    """

    loss_first: float
    loss_last: float
    loss_mean: float
    num_samples: int
    num_tokens: int
    update_mean: float
    update_std: float
    seconds: float
    joules: float
    num_steps: int = 0
    step_size: float = 0.0
    work_share: float = 1.0
    pruned: float = 0.0
    pruned_ratio: float = 0.0
    measures: Mapping[str, float] = field(default_factory=dict)
