"""The optimum of a round's batches and transmit scale where energy limits bind; see `budget` for the problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

ROUNDING = 1e-9
"""Relative; a batch this little below a whole number is that number."""

_SECTION = (math.sqrt(5.0) - 1.0) / 2.0
_SECTIONS = 34
_LEAST_SCALE = 1e-7


@dataclass(frozen=True)
class EnergyLimits:
    """Cases in which an energy limit binds; rows are cases, columns clients.

    Attributes:
        each_j: c_m, joules of one sample, which grow with the cube of the batch, shape [num_cases, num_clients].
        most: largest batch that time and data allow, shape [num_cases, num_clients].
        client_j: E_m, shape [num_clients].
        energy_j: E, shape [num_cases].
        importance: A_m, shape [num_clients].
        transmit_j: e_m, shape [num_clients].
        noise: M.
    """

    each_j: np.ndarray
    most: np.ndarray
    client_j: np.ndarray
    energy_j: np.ndarray
    importance: np.ndarray
    transmit_j: np.ndarray
    noise: float

    def highest_scale(self, batch: np.ndarray) -> np.ndarray:
        """The largest beta that these batches leave energy for, shape [num_cases]."""
        spent_j = self.each_j * batch**3
        with np.errstate(divide="ignore", invalid="ignore"):
            alone = np.where(self.transmit_j > 0, (self.client_j - spent_j) / self.transmit_j, np.inf).min(axis=1)
            total_j = self.transmit_j.sum()
            shared = (self.energy_j - spent_j.sum(axis=1)) / total_j if total_j > 0 else np.full(len(batch), np.inf)
        return np.clip(np.minimum(alone, shared), 0.0, 1.0)

    def batches(self, scale: np.ndarray) -> np.ndarray:
        """The best batches for each case's beta: clip(x t, 1, cap) with t where the energy is spent."""
        left_j = np.maximum(self.client_j - scale[:, None] * self.transmit_j, self.each_j)
        cap = np.clip(np.cbrt(left_j / self.each_j), 1.0, self.most)
        total_j = self.energy_j - scale * self.transmit_j.sum()
        pull = np.maximum(self.importance / (3.0 * self.each_j), 1e-300) ** 0.25
        # every client's share changes its form at two values of t, shape [num_cases, 2 num_clients]
        bends = np.sort(np.concatenate([1.0 / pull, cap / pull], axis=1), axis=1)
        at_bends = np.clip(pull[:, None, :] * bends[:, :, None], 1.0, cap[:, None, :])
        spent_j = (self.each_j[:, None, :] * at_bends**3).sum(axis=2)
        segment = np.clip((spent_j <= total_j[:, None]).sum(axis=1) - 1, 0, bends.shape[1] - 1)
        start = np.take_along_axis(bends, segment[:, None], axis=1)
        follow = np.take_along_axis(bends, np.minimum(segment + 1, bends.shape[1] - 1)[:, None], axis=1)
        moving = (pull * start * (1 + 1e-12) >= 1.0) & (pull * follow <= cap * (1 + 1e-12)) & (follow > start)
        fixed_j = (np.where(moving, 0.0, self.each_j * np.clip(pull * start, 1.0, cap) ** 3)).sum(axis=1)
        slope_j = np.where(moving, self.each_j * pull**3, 0.0).sum(axis=1)
        cube = np.divide(total_j - fixed_j, slope_j, out=start[:, 0] ** 3, where=slope_j > 0)
        level = np.clip(np.cbrt(np.maximum(cube, 0.0)), start[:, 0], follow[:, 0])
        return np.clip(pull * level[:, None], 1.0, cap)

    def value(self, batch: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """sum_m A_m / b_m + M / beta, shape [num_cases]."""
        return (self.importance / batch).sum(axis=1) + self.noise / np.maximum(scale, 1e-300)

    def relaxed(self) -> tuple[np.ndarray, np.ndarray]:
        """The optimum over real batches and beta: convex in beta, hence unimodal in its logarithm."""
        high = self.highest_scale(np.ones_like(self.most))
        if self.noise == 0.0 or self.transmit_j.sum() == 0.0:
            # without noise a lower scale is free, without cost a higher one
            scale = high if self.transmit_j.sum() == 0.0 else _LEAST_SCALE * high
            return self.batches(scale), scale
        scale = self._section(np.log(_LEAST_SCALE * high), np.log(high))
        # the end of the interval may be the optimum, which sections only approach
        whole_scale, inner = self.batches(high), self.batches(scale)
        at_end = self.value(whole_scale, high) <= self.value(inner, scale)
        return np.where(at_end[:, None], whole_scale, inner), np.where(at_end, high, scale)

    def _section(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """beta by golden sections of its logarithm, shape [num_cases]."""

        def worth(point: np.ndarray) -> np.ndarray:
            scale = np.exp(point)
            return self.value(self.batches(scale), scale)

        lower, upper = high - _SECTION * (high - low), low + _SECTION * (high - low)
        at_lower, at_upper = worth(lower), worth(upper)
        for _ in range(_SECTIONS):
            # the half that is kept already holds one of the two new points
            left = at_lower <= at_upper
            low, high = np.where(left, low, lower), np.where(left, upper, high)
            fresh = np.where(left, high - _SECTION * (high - low), low + _SECTION * (high - low))
            at_fresh = worth(fresh)
            lower, upper = np.where(left, fresh, upper), np.where(left, lower, fresh)
            at_lower, at_upper = np.where(left, at_fresh, at_upper), np.where(left, at_lower, at_fresh)
        return np.exp((low + high) / 2)

    def rounded(self, batch: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole batches: rounded down, then filled up, then exchanged sample by sample while that helps."""
        down = np.maximum(whole_batches(batch), 1.0)
        filled = self._filled(down, scale)
        better = self.value(filled, self.highest_scale(filled)) < self.value(down, self.highest_scale(down))
        best = np.where(better[:, None], filled, down)
        steps = _exchanges(batch.shape[1])
        moving = np.arange(len(best))
        while len(moving):
            part = self._rows(moving)
            # [num_moving, num_exchanges, num_clients]
            tried = best[moving][:, None, :] + steps
            legal = ((tried >= 1) & (tried <= part.most[:, None, :] * (1 + ROUNDING))).all(axis=2)
            worth = np.full(legal.shape, np.inf)
            for index in range(len(steps)):
                sizes = np.maximum(tried[:, index], 1.0)
                legal[:, index] &= part._affordable(sizes)
                worth[:, index] = part.value(sizes, part.highest_scale(sizes))
            worth[~legal] = np.inf
            choice = np.argmin(worth, axis=1)
            rows = np.arange(len(moving))
            here = part.value(best[moving], part.highest_scale(best[moving]))
            helps = worth[rows, choice] < here * (1 - ROUNDING)
            best[moving[helps]] = tried[rows, choice][helps]
            moving = moving[helps]
        return best, self.highest_scale(best)

    def _affordable(self, batch: np.ndarray) -> np.ndarray:
        """Whether computing alone keeps the limits, shape [num_cases]."""
        spent_j = self.each_j * batch**3
        return (spent_j <= self.client_j).all(axis=1) & (spent_j.sum(axis=1) <= self.energy_j)

    def _rows(self, which: np.ndarray) -> EnergyLimits:
        return replace(
            self, each_j=self.each_j[which], most=self.most[which], energy_j=self.energy_j[which]
        )  # fmt: skip

    def _filled(self, batch: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Adds one sample at a time where it lowers the objective most for its energy, while it fits."""
        batch = batch.copy()
        rows = np.arange(len(batch))
        sent_j = scale[:, None] * self.transmit_j
        while True:
            step_j = self.each_j * ((batch + 1) ** 3 - batch**3)
            room_j = self.energy_j - (self.each_j * batch**3 + sent_j).sum(axis=1)
            fits = (batch + 1 <= self.most * (1 + ROUNDING)) & (step_j <= room_j[:, None])
            fits &= self.each_j * (batch + 1) ** 3 + sent_j <= self.client_j
            if not fits.any():
                return batch
            worth = np.where(fits, (self.importance / batch - self.importance / (batch + 1)) / step_j, -1.0)
            best = np.argmax(worth, axis=1)
            batch[rows, best] += fits[rows, best]


def _exchanges(num_clients: int) -> np.ndarray:
    """One sample more, one less, and one from a client to another, shape [num_exchanges, num_clients]."""
    one = np.eye(num_clients)
    swaps = [
        one[first] - one[second] for first in range(num_clients) for second in range(num_clients) if first != second
    ]
    return np.array([*one, *-one, *swaps])


def whole_batches(batch: np.ndarray) -> np.ndarray:
    """Batches rounded down."""
    return np.floor(batch * (1 + ROUNDING))
