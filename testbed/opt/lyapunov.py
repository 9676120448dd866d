"""Long-term limits kept slot by slot: virtual queues, and the penalty that is minimised in their stead.

A limit on a mean, (1/T) sum_t y(t) <= Y, is a queue that grows by what a slot uses above it,

    Q(t+1) = max(Q(t) + y(t) - Y, 0),                                                        (virtual queue)
    minimise in every slot   V phi(t) + sum_k Q_k(t) y_k(t),                                 (drift plus penalty)

and a small queue in the end means that the limit was kept. A mean that must not fall below a value is the same with
both signs turned. Nothing here knows what the uses are.

Reference: M. J. Neely, "Stochastic network optimization with application to communication and queueing systems", Morgan
and Claypool 2010, chapters 2 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class VirtualQueues:
    """The state of several limits on means.

    Attributes:
        limit: Y_k, largest mean use; of a queue that asks for a least mean, its negative; shape [num_queues].
        backlog: Q_k now, shape [num_queues].
        initial: Q_k(0), shape [num_queues].
        total: sum of the uses y_k so far, shape [num_queues].
        slots: T, slots so far.
    """

    limit: np.ndarray
    backlog: np.ndarray
    initial: np.ndarray
    total: np.ndarray
    slots: int = 0

    @classmethod
    def at_most(cls, limit: np.ndarray | float, initial: np.ndarray | float = 0.0) -> VirtualQueues:
        """Queues for mean y_k <= limit_k.

        Args:
            limit: shape [num_queues], in the unit of the uses.
            initial: Q_k(0) >= 0; a positive one is careful from the first slot, which counts in short runs.

        Raises:
            ValueError: a limit is not finite, or an initial backlog is negative or not finite.
        """
        # [num_queues]
        limit = np.atleast_1d(np.asarray(limit, np.float64))
        start = np.broadcast_to(np.asarray(initial, np.float64), limit.shape).copy()
        if not np.all(np.isfinite(limit)):
            raise ValueError(f"limits on means must be finite, not {limit}")
        if not np.all(np.isfinite(start) & (start >= 0)):
            raise ValueError(f"a queue cannot start at {start}: give a finite backlog of at least 0")
        return cls(limit, start, start, np.zeros_like(limit))

    @classmethod
    def at_least(cls, required: np.ndarray | float, initial: np.ndarray | float = 0.0) -> VirtualQueues:
        """Queues for mean y_k >= required_k: step them with -y_k.

        Args:
            required: shape [num_queues], in the unit of the uses.
            initial: as of `at_most`.

        Raises:
            ValueError: as `at_most`.
        """
        return cls.at_most(-np.atleast_1d(np.asarray(required, np.float64)), initial)

    def after(self, use: np.ndarray) -> VirtualQueues:
        """The queues after one slot, Q <- max(Q + y - Y, 0).

        Args:
            use: y_k of the slot, shape [num_queues].

        Raises:
            ValueError: another number of uses than of queues, or a use that is not finite.
        """
        use = np.asarray(use, np.float64)
        if use.shape != self.limit.shape or not np.all(np.isfinite(use)):
            raise ValueError(f"a slot needs {self.limit.size} finite uses, one for each queue, not {use}")
        backlog = np.maximum(self.backlog + use - self.limit, 0.0)
        return replace(self, backlog=backlog, total=self.total + use, slots=self.slots + 1)

    @property
    def mean(self) -> np.ndarray:
        """(1/T) sum_t y_k(t), shape [num_queues]; 0 before the first slot."""
        return self.total / max(self.slots, 1)

    @property
    def excess(self) -> np.ndarray:
        """By how much each mean lies above its limit, at least 0, shape [num_queues]."""
        return np.maximum(self.mean - self.limit, 0.0) if self.slots else np.zeros_like(self.limit)

    @property
    def excess_bound(self) -> np.ndarray:
        """What no mean can exceed its limit by: (Q_k(T) - Q_k(0)) / T, on every path; shape [num_queues].

        Summing Q(t+1) >= Q(t) + y(t) - Y over the slots gives sum y <= T Y + Q(T) - Q(0).
        """
        return (self.backlog - self.initial) / max(self.slots, 1)

    def left(self, horizon: int) -> np.ndarray:
        """What the slots from now to the horizon may use together if the mean is to be kept there exactly.

        Args:
            horizon: slots in all.

        Returns:
            horizon Y_k - sum of the uses so far, shape [num_queues]; negative where it is too late.
        """
        return horizon * self.limit - self.total


def drift_plus_penalty(tradeoff: float, penalty: np.ndarray, queues: np.ndarray, use: np.ndarray) -> np.ndarray:
    """What a slot minimises, V phi + sum_k Q_k y_k, for many choices at once.

    Args:
        tradeoff: V >= 0: large values favour the penalty, at the cost of longer queues.
        penalty: phi of each choice, shape [...].
        queues: Q_k, shape [num_queues].
        use: y_k of each choice, shape [..., num_queues].

    Returns:
        shape [...].
    """
    return tradeoff * np.asarray(penalty) + np.asarray(use) @ np.asarray(queues)


def drift_constant(limit: np.ndarray, smallest: np.ndarray, largest: np.ndarray) -> float:
    """B0 = 1/2 sum_k max((y_min - Y)^2, (y_max - Y)^2): the most that one slot adds to the queues' half square.

    Args:
        limit: Y_k, shape [num_queues].
        smallest, largest: bounds of the uses of one slot, shape [num_queues].
    """
    below, above = np.square(np.asarray(smallest) - limit), np.square(np.asarray(largest) - limit)
    return float(0.5 * np.sum(np.maximum(below, above)))


def penalty_excess(tradeoff: float, constant: float, error: float = 0.0) -> float:
    """How far the mean penalty can end above the best stationary policy's: (B0 + C) / V.

    Args:
        tradeoff: V > 0.
        constant: B0 of `drift_constant`.
        error: C, by how much a slot's minimisation may fall short.
    """
    return (constant + error) / tradeoff


def backlog_limit(tradeoff: float, constant: float, penalty_range: float, slack: float, error: float = 0.0) -> float:
    """What the mean sum of queues cannot exceed: (B0 + C + V (phi_max - phi_min)) / slack.

    Args:
        tradeoff: V.
        constant: B0 of `drift_constant`.
        penalty_range: phi_max - phi_min.
        slack: by how much some policy keeps every limit (Slater); positive.
        error: C, by how much a slot's minimisation may fall short.

    Raises:
        ValueError: no slack.
    """
    if not slack > 0:
        raise ValueError(f"a bound on queues needs a policy that keeps every limit with room to spare, not {slack}")
    return (constant + error + tradeoff * penalty_range) / slack


def worthwhile_limit(gain: np.ndarray, least: np.ndarray, largest: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """What no queue can exceed where nothing is used unless the gain outweighs its price.

    A use y > 0 happens only if Q y <= gain, and then y >= least: so only while Q <= gain / least, and

        Q_k(t) <= gain_k / least_k + max(y_max,k - Y_k, 0)     for every t, if Q_k(0) is not above it already.

    Args:
        gain: most that a slot's objective can fall by a use, V times the penalty's range; shape [num_queues].
        least, largest: smallest positive use and largest use of one slot, shape [num_queues]; no bound where
            `least` is 0.
        limit: Y_k, shape [num_queues].

    Returns:
        shape [num_queues].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        paid = np.where(np.asarray(gain) > 0, np.asarray(gain) / np.asarray(least), 0.0)
    return paid + np.maximum(np.asarray(largest) - limit, 0.0)
