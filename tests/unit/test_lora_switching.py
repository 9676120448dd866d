"""Each step of LoRA switching equals an independent solver, and a slot equals brute force."""

from __future__ import annotations

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest

from testbed.problems.lora_switching import slot as slot_module
from testbed.problems.lora_switching.model import Slot, SwitchingModel, describe, objective, slot_terms
from testbed.problems.lora_switching.policies import POLICIES, Situation
from testbed.problems.lora_switching.slot import solve_slot
from testbed.problems.lora_switching.steps import (
    Terms,
    alternate,
    best_power_w,
    majorised_share,
    reduced,
    share_band,
    stationary_ratio,
)

RANKS = np.array([2, 4, 8, 16])


def instance(seed: int, num_devices: int, num_modules: int = 4) -> tuple[SwitchingModel, Slot, np.ndarray]:
    """A cell with half of its devices near their limits; a third of the instances has strongly concave shares."""
    rng = np.random.default_rng(seed)
    ranks = RANKS[-num_modules:]
    cpu_hz, cycles = rng.uniform(0.5e9, 2e9, num_devices), 2e9 * (1 + 0.02 * ranks)
    distance_km = rng.uniform(0.05, 0.5, num_devices)
    gain = 10 ** (-(128.1 + 37.6 * np.log10(distance_km) + 8 * rng.standard_normal(num_devices)) / 10)
    model = SwitchingModel(
        10 ** rng.uniform(5.0, 6.0) * num_devices,
        10**-20.4,
        ranks * 36_864 * 32.0,
        8.0 - cycles / cpu_hz[:, None],
        1e-28 * cpu_hz[:, None] ** 2 * cycles,
        np.full(num_devices, 0.2),
        np.ones((num_devices, num_modules), bool),
    )
    exponent = rng.choice([1.0, 2.0, 3.0], (num_devices, 1))
    share = 1 - rng.uniform(0.2, 0.9, (num_devices, 1)) * (1 - ranks / 16) ** exponent
    backlog = rng.uniform(0, 5, num_devices) * (rng.uniform(size=num_devices) < 0.7)
    return model, Slot(gain, rng.dirichlet(np.ones(num_devices)), share), backlog


def drawn_terms(seed: int, count: int) -> tuple[Terms, np.ndarray]:
    """Terms of single devices, and shares of the band, over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    terms = Terms(
        rng.uniform(0.05, 3, count),
        10 ** rng.uniform(-2, 2.5, count) * (rng.uniform(size=count) < 0.9),
        rng.uniform(0, 0.1, count),
        10 ** rng.uniform(4.5, 6, count),
        10 ** rng.uniform(-9.5, -7.5, count),
        10 ** rng.uniform(-2, 0, count),
    )
    return terms, terms.load_hz / rng.uniform(0.3, 8, count)


def cost_of(terms: Terms, required_w: np.ndarray, power_w: np.ndarray) -> np.ndarray:
    """J(p) = -A exp(-psi / p) + C p, from its definition; 0 at p = 0."""
    sent = power_w > 0
    return terms.price_per_w * power_w - terms.worth * np.where(
        sent, np.exp(-required_w / np.where(sent, power_w, 1.0)), 0.0
    )


# --- power ----------------------------------------------------------------------------------------------------------


def test_power_is_never_worse_than_a_grid() -> None:
    terms, band_hz = drawn_terms(0, 4000)
    required_w = reduced(terms, band_hz).required_w
    chosen = cost_of(terms, required_w, best_power_w(terms, required_w))
    best = np.zeros(4000)
    for fraction in np.linspace(0, 1, 1001)[1:] ** 2:
        best = np.minimum(best, cost_of(terms, required_w, fraction * terms.max_power_w))
    assert np.all(chosen <= best + 1e-15)
    assert np.all(chosen >= best - 1e-3 * terms.worth)
    assert 0.2 < np.mean(chosen < 0) < 0.95


def test_power_equals_a_geometric_program() -> None:
    """max v s.t. (v + C psi / z) exp(z) <= A, z >= psi / P_max is log-log convex in v > 0 and z = psi / p."""
    terms, band_hz = drawn_terms(1, 40)
    required_w = reduced(terms, band_hz).required_w
    power_w = best_power_w(terms, required_w)
    checked = 0
    for row in np.flatnonzero(cost_of(terms, required_w, power_w) < -0.05 * terms.worth)[:6]:
        value, ratio = cp.Variable(pos=True), cp.Variable(pos=True)
        spent = terms.price_per_w[row] * required_w[row] / terms.worth[row]
        held = value + spent / ratio if spent > 0 else value
        limits = [held * cp.exp(ratio) <= 1, ratio >= required_w[row] / terms.max_power_w[row]]
        problem = cp.Problem(cp.Maximize(value), limits)
        problem.solve(gp=True, solver=cp.CLARABEL)
        assert -cost_of(terms, required_w, power_w)[row] / terms.worth[row] == pytest.approx(value.value, rel=1e-6)
        checked += 1
    assert checked == 6


def test_transmission_pays_below_one_over_e_and_not_above() -> None:
    required_w = np.array([0.01])
    for level, sends in ((0.3678, True), (0.3680, False)):
        terms = Terms(*(np.array([x]) for x in (1.0, level / 0.01, 0.0, 1e5, 1e-9, 1e6)))
        assert (best_power_w(terms, required_w)[0] > 0) == sends
    levels = np.linspace(0, 4 * math.exp(-2), 500)
    ratio = stationary_ratio(levels)
    # two roots meet at the last level: there the smaller is known to half the digits
    assert ratio**2 * np.exp(-ratio) == pytest.approx(levels, abs=2e-4)
    assert (ratio**2 * np.exp(-ratio))[:340] == pytest.approx(levels[:340], rel=1e-14, abs=1e-300)
    free = Terms(*(np.array([x]) for x in (1.0, 0.0, 0.0, 1e5, 1e-9, 0.3)))
    assert best_power_w(free, required_w)[0] == 0.3


# --- bandwidth ------------------------------------------------------------------------------------------------------


def active_terms(seed: int, count: int) -> tuple[Terms, np.ndarray, float]:
    """Devices that all pay for themselves, with powers, and a band."""
    rng = np.random.default_rng(seed)
    terms = Terms(
        rng.uniform(0.3, 2, count),
        rng.uniform(0.01, 2, count),
        np.zeros(count),
        10 ** rng.uniform(4.5, 5.5, count),
        10 ** rng.uniform(-8.9, -8.0, count),
        np.full(count, 0.2),
    )
    return terms, rng.uniform(0.02, 0.2, count), float(terms.load_hz.sum() / rng.uniform(0.8, 2.5))


@pytest.mark.parametrize("seed", range(4))
def test_bandwidth_equals_an_exponential_cone_program(seed: int) -> None:
    terms, power_w, total_hz = active_terms(seed, 6)
    start = np.full(6, total_hz / 6)
    share = majorised_share(terms, power_w, start, total_hz)
    assert share.sum() == pytest.approx(total_hz, rel=1e-12)
    state = reduced(terms, start)
    omega = terms.worth * np.exp(-state.required_w / power_w) / power_w
    # minimise sum omega N0 / beta (b exp(load / b) - b) in units of B
    part, reached = cp.Variable(6), cp.Variable(6)
    scale = omega * terms.noise_over_gain_w_hz
    scale = scale / scale.max()
    limits = [cp.constraints.ExpCone(terms.load_hz / total_hz * np.ones(6), part, reached), cp.sum(part) == 1]
    problem = cp.Problem(cp.Minimize(scale @ (reached - part)), limits)
    problem.solve(solver=cp.CLARABEL)

    def worth(b: np.ndarray) -> float:
        return float(scale @ (b * np.expm1(terms.load_hz / total_hz / b)))

    assert worth(share / total_hz) == pytest.approx(problem.value, rel=1e-6)
    assert share / total_hz == pytest.approx(part.value, abs=1e-4)
    # equal prices
    y = terms.load_hz / share
    prices = scale * (y * np.exp(y) - np.expm1(y))
    assert np.ptp(prices) <= 1e-11 * prices.max()


def test_equal_devices_share_equally() -> None:
    one, power_w, _ = active_terms(0, 1)
    terms = Terms(*(np.repeat(getattr(one, name), 5) for name in Terms.__dataclass_fields__))
    total_hz = 4.0 * float(one.load_hz[0])
    uneven = total_hz * np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    assert majorised_share(terms, np.repeat(power_w, 5), np.full(5, total_hz / 5), total_hz) == pytest.approx(
        np.full(5, total_hz / 5), rel=1e-12
    )
    share, _ = share_band(Terms(*(getattr(terms, name)[None] for name in Terms.__dataclass_fields__)),
                          np.ones((1, 5), bool), uneven[None], total_hz)  # fmt: skip
    assert share[0] == pytest.approx(np.full(5, total_hz / 5), rel=1e-9)


def test_slopes_of_the_reduced_objective_equal_differences() -> None:
    terms, band_hz = drawn_terms(5, 300)
    state = reduced(terms, band_hz)
    step = 1e-4 * band_hz
    low, high = reduced(terms, band_hz - step), reduced(terms, band_hz + step)
    ratio = state.required_w / state.power_w
    kink = ((low.power_w >= terms.max_power_w) != (high.power_w >= terms.max_power_w)) | (ratio > 1.5)
    good = ~kink & (np.abs(state.slope * band_hz) > 1e-6 * terms.worth)
    assert np.sum(good) > 100
    assert state.slope[good] == pytest.approx(((high.cost - low.cost) / (2 * step))[good], rel=1e-4)
    assert state.curvature[good] == pytest.approx(((high.slope - low.slope) / (2 * step))[good], rel=1e-4)
    # convex wherever z <= 1, and below the majorant's curvature
    assert np.all(state.curvature[ratio <= 1] >= 0)
    assert np.all(state.curvature <= state.majorant)


@pytest.mark.parametrize("seed", range(6))
def test_alternation_never_rises_and_ends_where_newton_does(seed: int) -> None:
    terms, _, total_hz = active_terms(seed, 5)
    power_w, share, trace = alternate(terms, np.full(5, total_hz / 5), total_hz)
    assert np.all(np.diff(trace) <= 1e-13 * np.abs(trace[-1]))
    row = Terms(*(getattr(terms, name)[None] for name in Terms.__dataclass_fields__))
    found, value = share_band(row, share[None] > 0, np.full((1, 5), total_hz / 5), total_hz)
    assert trace[-1] == pytest.approx(value[0], rel=1e-8)
    assert trace[-1] >= value[0] - 1e-12
    assert found[0] == pytest.approx(share, rel=1e-3)
    assert power_w[share > 0] == pytest.approx(
        best_power_w(terms, reduced(terms, found[0]).required_w)[share > 0], rel=1e-3
    )


# --- a whole slot ---------------------------------------------------------------------------------------------------


def brute_force(model: SwitchingModel, slot: Slot, backlog: np.ndarray, tradeoff: float) -> float:
    """Two devices: every pair of modules, a grid of shares that is refined twice, and a grid of powers for each."""
    power_w = np.concatenate([[0.0], np.geomspace(1e-4, 0.2, 500)])
    best = np.inf
    for pair in itertools.product(range(model.num_modules + 1), repeat=2):
        low, high = 0.0, 1.0
        for _ in range(3):
            parts = np.linspace(low, high, 101)
            total = np.zeros(101)
            for device, module in enumerate(pair):
                band_hz = model.total_hz * (parts if device == 0 else 1.0 - parts)
                total += _device_cost(model, slot, backlog, tradeoff, device, module, band_hz, power_w)
            at = int(np.argmin(total))
            best = min(best, float(total[at]))
            low, high = parts[max(at - 1, 0)], parts[min(at + 1, 100)]
    return best


def _device_cost(
    model: SwitchingModel,
    slot: Slot,
    backlog: np.ndarray,
    tradeoff: float,
    device: int,
    module: int,
    band_hz: np.ndarray,
    power_w: np.ndarray,
) -> np.ndarray:
    """V w G^2 (1 - rho (1 - q)) + Q e from the sheet's equations (A3) to (A7), the best of the powers."""
    weight = tradeoff * slot.importance[device]
    if module == 0:
        return np.full(band_hz.shape, weight)
    window_s, size = model.window_s[device, module - 1], model.payload_bit[module - 1]
    band_hz = np.maximum(band_hz, 1.0)
    with np.errstate(over="ignore", divide="ignore"):
        snr = np.exp2(np.minimum(size / (band_hz * window_s), 1000)) - 1
        psi = model.noise_w_hz * band_hz / slot.gain[device] * snr
        success = np.where(power_w > 0, np.exp(-psi[:, None] / power_w), 0.0)
    energy_j = model.compute_j[device, module - 1] + power_w * window_s
    cost = weight * (1 - slot.share[device, module - 1] * success) + backlog[device] * energy_j
    return cost.min(axis=1)


@pytest.mark.parametrize("seed", range(12))
def test_a_slot_equals_brute_force_over_switchings_shares_and_powers(seed: int) -> None:
    model, slot, backlog = instance(seed, 2)
    found = solve_slot(model, slot, backlog, 3.0)
    best = brute_force(model, slot, backlog, 3.0)
    assert found.value <= best + 1e-9
    # the grid's powers lie at most 0.8 % from the best one, where the objective is flat
    assert found.value >= best - 1e-4
    one = found.point
    again = sum(
        float(_device_cost(model, slot, backlog, 3.0, k, int(one.module[k]), one.bandwidth_hz[k : k + 1],
                           one.power_w[k : k + 1])[0])
        for k in range(2)
    )  # fmt: skip
    assert found.value == pytest.approx(again, rel=1e-12)
    assert one.bound <= found.value + 1e-12


def test_slots_equal_the_enumeration_of_all_switchings() -> None:
    worst = 0.0
    for seed in range(105, 120):
        num_devices = 3 + seed % 3
        model, slot, backlog = instance(seed, num_devices, {3: 4, 4: 3, 5: 2}[num_devices])
        found = solve_slot(model, slot, backlog, 3.0)
        now = Situation(model, slot, backlog, 3.0, None, backlog, np.random.default_rng(0))
        best = POLICIES["enumerate"](now)
        worst = max(worst, found.value - best.value)
        assert found.point.bound <= best.value + 1e-9
        assert found.kkt_residual < 1e-9
        assert found.feasibility < 1e-12
        assert all(later <= former for former, later in itertools.pairwise(found.trace))
        if found.status == "optimal":
            assert found.value - best.value <= 1e-6 * 3.0
        else:
            assert "dual bound" in found.message
    assert worst <= 1e-9


def test_fifty_devices_end_near_their_dual_bound_and_never_overfill_the_band() -> None:
    for seed in (1, 2):
        model, slot, backlog = instance(seed, 50)
        found = solve_slot(model, slot, backlog, 3.0)
        assert found.value - found.point.bound <= 2e-3
        assert found.point.bandwidth_hz.sum() <= model.total_hz * (1 + 1e-12)
        assert found.kkt_residual < 1e-9
        active = found.point.module > 0
        assert np.all((found.point.power_w[active] > 0) & (found.point.power_w[active] <= 0.2))
        # nobody takes part who does not pay for it
        state = reduced(slot_terms(model, slot, backlog, 3.0).of(np.maximum(found.point.module - 1, 0)),
                        np.where(active, found.point.bandwidth_hz, 1e6))  # fmt: skip
        assert np.all(state.cost[active] < 0)


def test_work_grows_no_faster_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of the objective, each of a fixed number of operations; 200 devices are four times 50."""
    counted = []

    def counting(terms: Terms, band_hz: np.ndarray, *, full_power: bool = False) -> object:
        counted[-1] += np.size(band_hz)
        return reduced(terms, band_hz, full_power=full_power)

    monkeypatch.setattr(slot_module, "reduced", counting)
    monkeypatch.setattr("testbed.problems.lora_switching.steps.reduced", counting)
    for num_devices in (50, 200):
        counted.append(0)
        solve_slot(*instance(7, num_devices), 3.0)
    assert counted[0] < 150_000
    assert counted[1] < 8 * counted[0]


def test_longer_queues_scale_with_v() -> None:
    for seed in range(5):
        model, slot, backlog = instance(seed, 4)
        first, scaled = solve_slot(model, slot, backlog, 3.0), solve_slot(model, slot, 10 * backlog, 30.0)
        assert np.array_equal(first.point.module, scaled.point.module)
        assert first.point.power_w == pytest.approx(scaled.point.power_w, rel=1e-6)
        assert scaled.value == pytest.approx(10 * first.value, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_more_band_or_power_never_hurts(seed: int) -> None:
    model, slot, backlog = instance(seed, 3)
    values = []
    for scale in (0.5, 1.0, 2.0):
        wider = SwitchingModel(scale * model.total_hz, *(getattr(model, name) for name in list(
            SwitchingModel.__dataclass_fields__)[1:]))  # fmt: skip
        stronger = SwitchingModel(**{**model.__dict__, "max_power_w": scale * model.max_power_w})
        values.append([solve_slot(one, slot, backlog, 3.0).value for one in (wider, stronger)])
    assert np.all(np.diff(values, axis=0) <= 1e-9)


def test_limits_of_the_queues() -> None:
    model, slot, _ = instance(3, 4)
    free = solve_slot(model, slot, np.zeros(4), 3.0).point
    assert np.all(free.power_w[free.module > 0] == 0.2)
    poor = solve_slot(model, slot, np.full(4, 1e6), 3.0).point
    assert not poor.module.any()
    assert not poor.energy_j.any()
    assert poor.penalty == pytest.approx(slot.importance.sum())


def test_what_is_forbidden_or_late_is_not_done() -> None:
    model, slot, _ = instance(3, 4)
    allowed = np.ones((4, 4), bool)
    allowed[0, 2:] = False
    window_s = model.window_s.copy()
    window_s[1] = -1.0
    limited = SwitchingModel(**{**model.__dict__, "allowed": allowed, "window_s": window_s})
    found = solve_slot(limited, slot, np.zeros(4), 3.0).point
    assert found.module[0] <= 2
    assert found.module[1] == 0
    assert limited.most_energy_j[1] == 0
    assert limited.least_compute_j[1] == np.inf


def test_a_module_that_is_owed_participation_is_chosen_more() -> None:
    model, slot, backlog = instance(4, 4)
    plain = solve_slot(model, slot, np.zeros(4), 3.0)
    bonus = np.array([5.0, 0.0, 0.0, 0.0])
    owed = solve_slot(model, slot, np.zeros(4), 3.0, bonus)
    assert np.sum(owed.point.module == 1) > np.sum(plain.point.module == 1)
    assert owed.value == pytest.approx(objective(owed.point, np.zeros(4), 3.0, bonus))
    now = Situation(model, slot, backlog, 3.0, bonus, backlog, np.random.default_rng(0))
    assert solve_slot(model, slot, backlog, 3.0, bonus).value <= POLICIES["enumerate"](now).value + 1e-9


def test_no_policy_beats_the_enumeration() -> None:
    model, slot, backlog = instance(11, 3)
    now = Situation(model, slot, backlog, 3.0, None, np.full(3, 0.15), np.random.default_rng(0))
    best = POLICIES["enumerate"](now).value
    for name, decide in POLICIES.items():
        one = decide(now).point
        assert objective(one, backlog, 3.0) >= best - 1e-9, name
        assert one.bandwidth_hz.sum() <= model.total_hz * (1 + 1e-9)
        assert describe(model, slot, one.module, one.power_w, one.bandwidth_hz).penalty == pytest.approx(one.penalty)
    assert np.all(POLICIES["myopic"](now).point.energy_j <= 0.15 + 1e-12)
    assert np.all(POLICIES["full-power"](now).point.power_w[POLICIES["full-power"](now).point.module > 0] == 0.2)


def test_bad_arguments_are_refused() -> None:
    model, slot, backlog = instance(0, 3)
    with pytest.raises(ValueError, match="must not be negative"):
        solve_slot(model, slot, -np.ones(3), 3.0)
    with pytest.raises(ValueError, match="gains must be positive"):
        solve_slot(model, Slot(np.zeros(3), slot.importance, slot.share), backlog, 3.0)
    with pytest.raises(ValueError, match="does not fit"):
        solve_slot(model, Slot(slot.gain, slot.importance, slot.share[:, :2]), backlog, 3.0)
