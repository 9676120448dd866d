"""Runs of LoRA switching keep the exact invariants, trade penalty against queues, and obey the bound; instances."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from pydantic import ValidationError

from testbed.core.errors import ConfigError
from testbed.engine.config import load_instance
from testbed.problems.cell import cell_gain
from testbed.problems.lora_switching.horizon import (
    Limits,
    Outcome,
    backlog_bound,
    gradient_bound,
    risk_bound,
    run,
)
from testbed.problems.lora_switching.instance import LoraSwitchingInstance
from testbed.problems.lora_switching.model import Slot, SwitchingModel

RANKS = np.array([2, 4, 8, 16])


def setting(seed: int, num_slots: int, total_hz: float = 2.5e6) -> tuple[SwitchingModel, list[Slot], Limits]:
    """Three devices of the toy that the reference's table was made with."""
    rng = np.random.default_rng(seed)
    cpu_hz, cycles = rng.uniform(0.5e9, 2e9, 3), 2e9 * (1 + 0.02 * RANKS)
    gain = cell_gain(rng.uniform(50, 500, 3), 8 * rng.standard_normal(3))
    model = SwitchingModel(
        total_hz, 10**-20.4, RANKS * 36_864 * 32.0, 8.0 - cycles / cpu_hz[:, None],
        1e-28 * cpu_hz[:, None] ** 2 * cycles, np.full(3, 0.2), np.ones((3, 4), bool),
    )  # fmt: skip
    share = np.broadcast_to(1 - 0.5 * (1 - RANKS / 16), (3, 4))
    slots = [Slot(gain * 10 ** (0.6 * rng.standard_normal(3)), np.full(3, 1 / 3), share) for _ in range(num_slots)]
    return model, slots, Limits(np.full(3, 0.15), np.zeros(3))


def go(seed: int, num_slots: int, tradeoff: float, policy: str = "switching", total_hz: float = 2.5e6) -> Outcome:
    model, slots, limits = setting(seed, num_slots, total_hz)
    return run(model, slots, limits, tradeoff, policy, np.random.default_rng(seed))


@pytest.mark.parametrize("policy", ["switching", "equal-band", "random", "large"])
def test_the_sample_path_bounds_the_mean_energy_of_every_policy(policy: str) -> None:
    outcome = go(1, 25, 3.0, policy)
    spent_j = np.sum([one.energy_j for one in outcome.decisions], axis=0)
    assert np.all(spent_j <= 25 * 0.15 + outcome.backlog[-1] + 1e-12)
    assert np.all(np.diff(outcome.backlog, axis=0) <= np.array([one.energy_j for one in outcome.decisions]))


def test_the_hard_bound_holds_and_v_trades_penalty_for_queues() -> None:
    penalties, backlogs = [], []
    for tradeoff in (0.3, 3.0, 30.0):
        outcome = go(2, 60, tradeoff)
        model, slots, limits = setting(2, 60)
        assert np.all(outcome.backlog <= backlog_bound(model, slots, limits, tradeoff) + 1e-12)
        penalties.append(outcome.mean_penalty)
        backlogs.append(outcome.backlog.mean())
    assert penalties[0] > penalties[1] > penalties[2]
    assert backlogs[0] < backlogs[1] < backlogs[2]
    free = go(2, 60, 3.0, "unconstrained").mean_penalty
    assert free < penalties[2]


def test_queues_are_mean_rate_stable_and_the_energy_meets_its_limit_in_the_long_run() -> None:
    outcome = go(3, 250, 1.0)
    # Q(t) / t falls towards 0: the excess of the mean is at most that
    assert outcome.backlog[250].sum() / 250 < 0.5 * outcome.backlog[50].sum() / 50
    assert np.all(outcome.queues.mean <= 0.15 * 1.05)


def test_less_band_smaller_modules() -> None:
    ranks = np.array([0, *RANKS])
    mean_rank = []
    for total_hz in (2.5e6, 1.5e5):
        chosen = ranks[np.array([one.module for one in go(4, 25, 3.0, total_hz=total_hz).decisions])]
        mean_rank.append(chosen[chosen > 0].mean())
    assert mean_rank[1] < 0.7 * mean_rank[0]


def test_no_energy_no_training_and_much_energy_full_power() -> None:
    model, slots, _ = setting(5, 30)
    rich = run(model, slots, Limits(np.full(3, 1e3), np.zeros(3)), 3.0, "switching", np.random.default_rng(0))
    assert not rich.backlog.any()
    for one in rich.decisions:
        assert np.all(one.power_w[one.module > 0] == 0.2)
    poor = run(model, slots, Limits(np.full(3, 1e-4), np.zeros(3)), 3.0, "switching", np.random.default_rng(0))
    assert np.mean([one.module == 0 for one in poor.decisions[5:]]) > 0.9


def test_a_participation_limit_is_met() -> None:
    model, slots, limits = setting(6, 40)
    wanted = Limits(limits.mean_energy_j, limits.idle_j, np.array([0.3, 0.0, 0.0, 0.3]))
    assert wanted.unmeetable(model) == ()
    outcome = run(model, slots, wanted, 1.0, "switching", np.random.default_rng(0))
    assert outcome.participation is not None
    assert np.all(-outcome.participation.mean >= wanted.participation - outcome.participation.excess_bound - 1e-12)  # type: ignore[operator]
    assert -outcome.participation.mean[0] > 0.15


# --- the bound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_one_step_obeys_the_bound_in_exact_expectation_over_all_losses(seed: int) -> None:
    """Five quadratics F_k = 1/2 sum_i h_i (theta_i - c_ki)^2 in 16 dimensions, masks of 4, 8 and 16; 2^5 outcomes."""
    rng = np.random.default_rng(seed)
    hessian, centre = rng.uniform(0.1, 1.0, 16), rng.standard_normal((5, 16))
    weight, theta = rng.dirichlet(np.ones(5)), 2 * rng.standard_normal(16)
    failure, sizes = rng.uniform(0.05, 0.4, 5), rng.choice([4, 8, 16], 5)
    mask = np.arange(16) < sizes[:, None]

    def value(point: np.ndarray) -> float:
        return float(weight @ (0.5 * np.sum(hessian * (point - centre) ** 2, axis=1)))

    smoothness, start = 1.0, theta
    penalties, gap = [], []
    best = value(np.average(centre, axis=0, weights=weight))
    for _ in range(6):
        gradient = hessian * (theta - centre)
        share = np.sum((mask * gradient) ** 2, axis=1) / np.sum(gradient**2, axis=1)
        penalty = float(weight @ (np.sum(gradient**2, axis=1) * (1 - share * (1 - failure))))
        expected = 0.0
        for arrived in itertools.product([0.0, 1.0], repeat=5):
            chance = np.prod(np.where(np.array(arrived) > 0, 1 - failure, failure))
            step = (weight * np.array(arrived)) @ (mask * gradient) / smoothness
            expected += float(chance) * value(theta - step)
        whole = weight @ gradient
        assert expected <= value(theta) - whole @ whole / 2 + penalty / 2 + 1e-12
        penalties.append(penalty)
        gap.append(value(theta) - best)
        # go on with the mean step, whose value lies below the expectation (Jensen)
        theta = theta - (weight * (1 - failure)) @ (mask * gradient) / smoothness
    final = value(theta) - best
    assert final <= risk_bound(smoothness, 0.1, value(start) - best, np.array(penalties))
    assert gradient_bound(2.0, 3.0, np.array([1.0, 2.0])) == pytest.approx(7.5)
    assert risk_bound(2.0, 1.0, 8.0, np.array([1.0, 2.0])) == pytest.approx(2.0 + (0.5 + 2.0) / 4)


# --- what no schedule can keep, and instances -----------------------------------------------------------------------


def test_limits_that_no_schedule_keeps_name_device_or_module_and_by_how_much() -> None:
    model, _, limits = setting(0, 1)
    assert limits.unmeetable(model) == ()
    resting = Limits(np.array([0.15, 0.15, 0.05]), np.array([0.0, 0.0, 0.08]))
    assert "device 2" in resting.unmeetable(model)[0]
    assert "0.03 J more" in resting.unmeetable(model)[0]
    owed = Limits(limits.mean_energy_j, limits.idle_j, np.array([0.0, 4.0, 0.0, 0.0]))
    assert "module 2" in owed.unmeetable(model)[0]
    late = SwitchingModel(**{**model.__dict__, "window_s": model.window_s - 10.0})
    assert "are missing" in limits.unmeetable(late)[0]


@pytest.mark.parametrize("name", ["slot", "horizon", "crowd"])
def test_instances_that_ship_are_solved(name: str) -> None:
    instance = load_instance(LoraSwitchingInstance, f"lora-switching-{name}", ["slots=4"] if name == "horizon" else [])
    answer = instance.solve("switching")
    json.dumps(answer.decisions)
    assert answer.solution.status in ("optimal", "stationary")
    assert np.isfinite(answer.solution.value)
    if name == "slot":
        assert answer.solution.status == "optimal"
        assert answer.solution.value < instance.solve("equal-band").solution.value
        few = instance.model_copy(update={"devices": instance.devices[:3]})
        assert few.solve("switching").solution.value == pytest.approx(few.solve("enumerate").solution.value, abs=1e-9)
    if name == "horizon":
        assert len(answer.decisions["ranks"]) == 4
        short = instance.model_copy(update={"slots": 2})
        planned = short.solve("offline")
        json.dumps(planned.decisions)
        assert planned.decisions["penalty_bound"] <= planned.solution.value == planned.decisions["mean_penalty"]
        assert np.all(np.array(planned.decisions["mean_energy_j"]) <= 0.15 + 1e-9)
        with pytest.raises(ConfigError, match="too many decisions to plan"):
            instance.model_copy(update={"slots": 40}).solve("offline")
    if name == "crowd":
        with pytest.raises(ConfigError, match="50 devices"):
            instance.solve("enumerate")


def test_an_infeasible_instance_says_which_device_and_by_how_much() -> None:
    text = {"devices": [{"distance_m": 100.0}, {"distance_m": 100.0, "mean_energy_j": 0.1, "idle_j": 0.15}]}
    answer = LoraSwitchingInstance.model_validate(text).solve("switching")
    assert answer.solution.status == "infeasible"
    assert "device 1" in answer.solution.message
    assert "0.05 J" in answer.solution.message
    assert answer.solution.feasibility == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": []}, "one of the two"),
        ({"devices": [{}]}, "give distance_m or gain"),
        ({"devices": [{"distance_m": 100.0, "compute_s": [1.0]}]}, "one for each module"),
        ({"modules": {"ranks": [4, 2]}}, "do not rise"),
        ({"modules": {"shares": [0.5, 1.0]}}, "2 numbers for 4 modules"),
        ({"modules": {"shares": [0.5, 0.6, 0.7, 1.5]}}, "not all from 0 to 1"),
        ({"gains": [[1e-12, 1e-12]]}, "1 rows of 1 numbers"),
        ({"gains": [[0.0]]}, "positive"),
        ({"bound": {"convexity": 2.0}}, "cannot exceed L"),
        ({"draw": {"num_devices": 3}}, "one of the two"),
        ({"devices": [], "draw": {"num_devices": 2, "cpu_hz": [2e9, 1e9]}}, "no range"),
    ],
)
def test_bad_instances_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraSwitchingInstance.model_validate({"devices": [{"distance_m": 100.0}], **change})


def test_a_cell_by_hand() -> None:
    assert cell_gain(1000.0) == pytest.approx(10**-12.81)
    assert cell_gain(100.0, 10.0) == pytest.approx(10 ** (-(128.1 - 37.6 - 10) / 10))
    with pytest.raises(ValueError, match="positive distances"):
        cell_gain(0.0)
