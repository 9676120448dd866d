"""One slot of LoRA switching: which module every device trains, with which power and which share of the band.

A price on bandwidth separates the devices: at each price a device takes the module and the share that suit it best, and
bisection finds the price at which the band is full. That gives a lower bound on the slot's optimum (the dual function),
and the choices of modules met on the way. Each is finished exactly by Newton's method, and single switches are tried
until none helps: O(K M) work for every price and switch. The gap to the bound is reported.

The order of the paper's three subproblems, and this way of solving them, are our reconstruction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from testbed.opt.solution import Solution, Status
from testbed.problems.lora_switching.model import Slot, SlotDecision, SwitchingModel, describe, objective, slot_terms
from testbed.problems.lora_switching.steps import Reduced, Terms, reduced, share_band

_GRID = 48
"""Shares of the band at which a device's choices are compared first."""

_SMALL = 8
"""Devices up to which every choice on the way of the price is finished."""

_WORK = 6000
"""Choices times devices that may be finished at once."""


def solve_slot(
    model: SwitchingModel,
    slot: Slot,
    backlog: np.ndarray,
    tradeoff: float,
    bonus: np.ndarray | None = None,
    *,
    full_power: bool = False,
    most_power_w: np.ndarray | None = None,
    tolerance: float = 1e-6,
) -> Solution[SlotDecision]:
    """One slot's modules, powers and shares.

    Args:
        model: what stays.
        slot: what changes.
        backlog: Q_k >= 0, shape [num_devices].
        tradeoff: V >= 0.
        bonus: Z_m >= 0, shape [num_modules]; none if absent.
        full_power: send with P_max instead of (A10).
        most_power_w: limits that differ from module to module, at most P_max, shape [num_devices, num_modules]; modules
            without a positive one are not trained.
        tolerance: gap to the lower bound, relative to V sum w G^2, below which the end is called optimal.

    Returns:
        The decision; status optimal within the tolerance, else stationary, with the gap in the message; kkt_residual is
        the relative spread of the prices of bandwidth.

    Raises:
        ValueError: shapes that do not fit, negative queues or gains that are not positive.
    """
    _check(model, slot, backlog, tradeoff)
    terms = slot_terms(model, slot, backlog, tradeoff, bonus)
    if most_power_w is not None:
        most_w = np.minimum(terms.max_power_w, most_power_w)
        terms = replace(terms, worth=np.where(most_w > 0, terms.worth, 0.0), max_power_w=np.maximum(most_w, 1e-12))
    constant = tradeoff * float(np.sum(slot.importance))
    search = _Search(terms, model.total_hz, full_power)
    choices, starts = search.by_price()
    module, share, value, bound = search.proven(*search.finished(choices, starts), starts[-1])
    module = np.where(share > 0, module, 0)
    index = np.maximum(module - 1, 0)
    state = reduced(terms.of(index), np.where(share > 0, share, model.total_hz), full_power=full_power)
    decision = describe(model, slot, module, np.where(module > 0, state.power_w, 0.0), share, constant + bound)
    gap = value - bound
    scale = constant if constant > 0 else 1.0
    status: Status = "optimal" if gap <= tolerance * scale else "stationary"
    message = "" if status == "optimal" else f"at most {gap / scale:.2g} of V sum w G^2 above the optimum (dual bound)"
    return Solution(
        decision,
        objective(decision, backlog, tradeoff, bonus),
        status,
        price_spread(state, module > 0),
        max(float(np.sum(share)) / model.total_hz - 1.0, 0.0),
        len(search.trace),
        tuple(constant + one for one in search.trace),
        message,
    )


def price_spread(state: Reduced, active: np.ndarray) -> float:
    """Largest relative difference of f'_k(b_k) among devices that share a band: 0 where the shares are stationary."""
    prices = -state.slope[active]
    if len(prices) < 2 or not prices.max() > 0:
        return 0.0
    return float((prices.max() - prices.min()) / prices.max())


class _Search:
    """Modules and shares of one slot. `trace` holds the best objective so far, without the constant."""

    def __init__(self, terms: Terms, total_hz: float, full_power: bool) -> None:
        self.terms, self.total_hz, self.full_power = terms, total_hz, full_power
        self.num_devices = len(terms.worth)
        self.small = self.num_devices <= _SMALL
        self.trace: list[float] = []
        self.bound, self.asked = -np.inf, np.zeros_like(terms.worth)

    def by_price(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Choices of modules near the price that fills the band, shape [num, num_devices]; for each the shares of all
        modules at its price, [num_devices, num_modules]. Sets the dual bound and what options cost at its price."""
        grid_hz = _grid(self.terms, self.total_hz)
        state = reduced(self.terms.wide(), grid_hz, full_power=self.full_power)
        cost = np.minimum(state.cost, 0.0)
        flat_cost, flat_hz = cost.reshape(self.num_devices, -1), grid_hz.reshape(self.num_devices, -1)
        highest = float(np.max(-flat_cost / flat_hz))
        if highest <= 0:
            self.bound = 0.0
            return np.zeros((1, self.num_devices), np.int64), [grid_hz[..., -1]]
        low, high = np.log(highest) - 60.0, np.log(highest) + 1e-9
        rows = np.arange(self.num_devices)
        for _ in range(30 if not self.small else 22):
            middle = 0.5 * (low + high)
            picked = np.argmin(flat_cost + np.exp(middle) * flat_hz, axis=1)
            taken = np.sum(np.where(flat_cost[rows, picked] < 0, flat_hz[rows, picked], 0.0))
            low, high = (middle, high) if taken > self.total_hz else (low, middle)
        # stationary shares lie where f is convex, also those that are worth hardly more than idling
        cost = np.where(state.curvature > 0, state.cost, np.inf)
        cost[..., -1] = state.cost[..., -1]
        return self._polished(cost, grid_hz, 0.5 * (low + high))

    def _polished(self, cost: np.ndarray, grid_hz: np.ndarray, start: float) -> tuple[np.ndarray, list[np.ndarray]]:
        """Bisection of the exact dual, each module's share found by Newton's method from the best of the grid."""
        low, high, at = start - 0.4, start + 0.4, start
        choices, starts = [], []
        rows = np.arange(self.num_devices)
        for _ in range(24):
            price = float(np.exp(at))
            best = np.argmin(cost + price * grid_hz, axis=-1)
            share = np.take_along_axis(grid_hz, best[..., None], axis=-1)[..., 0]
            share, asked, give = self._at_price(share, price)
            choice, least = np.argmin(asked, axis=1), np.min(asked, axis=1)
            active = least < 0
            dual = float(np.sum(np.minimum(least, 0.0))) - price * self.total_hz
            if dual > self.bound:
                self.bound, self.asked = dual, asked
            choices.append(np.where(active, choice + 1, 0))
            starts.append(share)
            over_hz = float(np.sum(share[rows, choice][active])) - self.total_hz
            low, high = (at, high) if over_hz > 0 else (low, at)
            if abs(over_hz) <= 1e-9 * self.total_hz or high - low < 1e-4:
                break
            # Newton's method on the demand; where devices switch it jumps, and halving takes over
            fall = price * float(np.sum(give[rows, choice][active]))
            at = at + over_hz / fall if fall > 0 else low
            at = at if low < at < high else 0.5 * (low + high)
        # a price of zero bounds as well, where the band is no limit
        free = reduced(self.terms, np.full_like(share, self.total_hz), full_power=self.full_power).cost
        unlimited = float(np.sum(np.minimum(free.min(axis=1), 0.0)))
        if unlimited > self.bound:
            self.bound, self.asked = unlimited, free
        return np.array(choices), starts

    def _at_price(self, share: np.ndarray, price: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each module's best share at a price, f(b) + price b there, and -db / dprice; all [devices, modules]."""
        best, least = share, np.full(share.shape, np.inf)
        for _ in range(8):
            state = reduced(self.terms, share, full_power=self.full_power)
            asked = state.cost + price * share
            best, least = np.where(asked < least, share, best), np.minimum(asked, least)
            curvature = np.where(state.curvature > 0.05 * state.majorant, state.curvature, state.majorant)
            give = np.where(curvature > 0, 1.0 / np.where(curvature > 0, curvature, 1.0), 0.0)
            step = -(state.slope + price) * give
            moved = np.clip(np.clip(share + step, 0.5 * share, 2.0 * share), 0.0, self.total_hz)
            if np.all(np.abs(moved - share) <= 1e-9 * share):
                break
            share = moved
        return best, least, give

    def finished(self, choices: np.ndarray, starts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
        """Every choice met on the way with its best shares; the best of them: modules, shares, value."""
        unique, first = np.unique(choices[::-1], axis=0, return_index=True)
        keep = np.argsort(first)[: 24 if self.small else 6]
        unique, first = unique[keep], len(choices) - 1 - first[keep]
        index = np.maximum(unique - 1, 0)
        start = np.stack([starts[at][np.arange(self.num_devices), one] for at, one in zip(first, index, strict=True)])
        share, value = share_band(self.terms.of(index), unique > 0, start, self.total_hz, full_power=self.full_power)
        best = int(np.argmin(value))
        self.trace.append(float(value[best]))
        return np.where(share[best] > 0, unique[best], 0), share[best], float(value[best])

    def proven(
        self, module: np.ndarray, share: np.ndarray, value: float, reference: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Better choices among those that the price has not ruled out; modules, shares, value and a lower bound.

        An option whose cost at the price lies above the device's best by more than the gap is in no better choice. If
        what is left is little enough, all of it is tried, and the best is the optimum; else single switches are, as
        long as one helps.
        """
        for _ in range(20):
            gap = value - self.bound
            if gap <= 1e-10 * abs(value):
                break
            asked = np.concatenate([np.zeros((self.num_devices, 1)), self.asked], axis=1)
            extra = asked - asked.min(axis=1, keepdims=True)
            open_options = (extra <= gap * (1 + 1e-9)) & np.pad(
                self.terms.worth > 0, ((0, 0), (1, 0)), constant_values=True
            )
            # a first choice stands for what Newton's method found in it, even where the price has ruled it out
            left = np.prod(np.maximum(open_options.sum(axis=1), 1).astype(np.float64))
            everything = left * self.num_devices <= _WORK
            if everything:
                tried = _products([np.flatnonzero(one) for one in open_options])
            else:
                tried = self._neighbours(module, extra, open_options)
            found, values = self._finish(tried, module, share, reference)
            best = int(np.argmin(values)) if len(values) else 0
            better = len(values) > 0 and values[best] < value - 1e-13 * abs(value)
            if better:
                module, share, value = np.where(found[best] > 0, tried[best], 0), found[best], float(values[best])
                self.trace.append(value)
            if everything:
                return module, share, value, value
            if not better:
                break
        return module, share, value, min(self.bound, value)

    def _finish(
        self, tried: np.ndarray, module: np.ndarray, share: np.ndarray, reference: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shares and values of choices, begun at those of a present choice where they agree with it."""
        if not len(tried):
            return np.zeros((0, self.num_devices)), np.zeros(0)
        index = np.maximum(tried - 1, 0)
        start = np.where((tried != module) | (share <= 0), reference[np.arange(self.num_devices), index], share)
        return share_band(self.terms.of(index), tried > 0, start, self.total_hz, full_power=self.full_power)

    def _neighbours(self, module: np.ndarray, extra: np.ndarray, open_options: np.ndarray) -> np.ndarray:
        """Choices one switch away, the most promising at the price first, as many as the work allows."""
        useful = open_options & (np.arange(open_options.shape[1]) != module[:, None])
        device, other = np.nonzero(useful)
        nearest = np.argsort(extra[useful], kind="stable")[: max(_WORK // (4 * self.num_devices), 12)]
        tried = np.repeat(module[None], len(nearest), axis=0)
        tried[np.arange(len(nearest)), device[nearest]] = other[nearest]
        return tried


def _products(options: list[np.ndarray]) -> np.ndarray:
    """Every combination of one option of each device, shape [num_combinations, num_devices]."""
    made = np.zeros((1, 0), np.int64)
    for one in options:
        made = np.column_stack([np.repeat(made, len(one), axis=0), np.tile(one, len(made))])
    return made


def _grid(terms: Terms, total_hz: float) -> np.ndarray:
    """Shares of each device and module from where nothing gets through to the whole band, [devices, modules, grid]."""
    # (e^y - 1) / y = 40 max(P_max / (load N0 / beta), 1): even full power is lost there
    goal = 40.0 * np.maximum(terms.max_power_w / (terms.load_hz * terms.noise_over_gain_w_hz), 1.0)
    y = np.log1p(goal)
    for _ in range(3):
        y = np.log1p(goal * y)
    lowest_hz = np.minimum(terms.load_hz / y, 0.5 * total_hz)
    fraction = np.linspace(0.0, 1.0, _GRID)
    return lowest_hz[..., None] * (total_hz / lowest_hz[..., None]) ** fraction


def _check(model: SwitchingModel, slot: Slot, backlog: np.ndarray, tradeoff: float) -> None:
    shape = (model.num_devices, model.num_modules)
    if model.window_s.shape != shape or model.compute_j.shape != shape or model.allowed.shape != shape:
        raise ValueError(f"windows, energies and permissions must have one entry for each device and module, {shape}")
    if slot.share.shape != shape or slot.gain.shape != shape[:1] or slot.importance.shape != shape[:1]:
        raise ValueError(f"a slot of {slot.gain.shape} devices and {slot.share.shape} shares does not fit {shape}")
    if not (np.all(np.asarray(backlog) >= 0) and np.shape(backlog) == shape[:1] and tradeoff >= 0):
        raise ValueError(f"queues and V must not be negative, one queue for each of {shape[0]} devices")
    if not (np.all(slot.gain > 0) and np.all(slot.importance >= 0) and np.all(slot.share >= 0)):
        raise ValueError("gains must be positive, importances and shares at least 0")
