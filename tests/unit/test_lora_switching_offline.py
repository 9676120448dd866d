"""The offline optimum of LoRA switching against brute force on tiny horizons, and against every online policy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from testbed.problems.lora_switching.horizon import Limits, run
from testbed.problems.lora_switching.model import Slot, SwitchingModel
from testbed.problems.lora_switching.offline import solve_horizon
from testbed.problems.lora_switching.policies import POLICIES


def tiny(seed: int, num_devices: int, num_slots: int) -> tuple[SwitchingModel, list[Slot], np.ndarray]:
    """Devices of two modules whose computing takes a fraction of the mean energy."""
    rng = np.random.default_rng(seed)
    model = SwitchingModel(
        total_hz=5e5 * num_devices,
        noise_w_hz=1e-20,
        payload_bit=np.array([1e6, 3e6]),
        window_s=np.full((num_devices, 2), 4.0),
        compute_j=np.tile([0.03, 0.04], (num_devices, 1)),
        max_power_w=np.full(num_devices, 0.2),
        allowed=np.ones((num_devices, 2), bool),
    )
    share = np.tile([0.6, 1.0], (num_devices, 1))
    weight = rng.dirichlet(np.ones(num_devices))
    slots = [Slot(10 ** rng.uniform(-13.5, -12, num_devices), weight, share) for _ in range(num_slots)]
    return model, slots, np.full(num_devices, 0.1)


def options(model: SwitchingModel, slot: Slot, num_powers: int, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Penalty [num] and energies [num, num_devices] of all choices on a grid, from the model's equations alone."""
    powers = np.linspace(0, 1, num_powers + 1)[1:] ** 2
    found: list[tuple[float, list[float]]] = []
    for split in splits:
        of_device = []
        for device, share in enumerate([split, 1 - split][: model.num_devices]):
            mine = [(1.0, 0.0)]
            for module in range(2 if share > 0 else 0):
                window_s = model.window_s[device, module]
                band_hz = share * model.total_hz
                for power_w in powers * model.max_power_w[device]:
                    exponent = model.payload_bit[module] / (band_hz * window_s)
                    required_w = model.noise_w_hz * band_hz / slot.gain[device] * (2**exponent - 1)
                    kept = slot.share[device, module] * np.exp(-required_w / power_w)
                    mine.append((1 - kept, model.compute_j[device, module] + power_w * window_s))
            of_device.append(mine)
        for one in itertools.product(*of_device):
            found.append((float(slot.importance @ [part[0] for part in one]), [part[1] for part in one]))
    return np.array([one[0] for one in found]), np.array([one[1] for one in found])


@pytest.mark.parametrize("seed", range(6))
def test_one_device_and_three_rounds_equal_the_best_on_a_fine_grid(seed: int) -> None:
    model, slots, spare_j = tiny(seed, 1, 3)
    total_j = 3 * spare_j[0]
    first, second, third = (options(model, slot, 300, np.array([1.0])) for slot in slots)
    # the best of the last round within each energy
    order = np.argsort(third[1][:, 0], kind="stable")
    least = np.minimum.accumulate(third[0][order])
    left_j = total_j - first[1][:, None, 0] - second[1][None, :, 0]
    place = np.searchsorted(third[1][order, 0], left_j, side="right") - 1
    whole = first[0][:, None] + second[0][None, :] + least[np.maximum(place, 0)]
    best = float(np.min(np.where(left_j >= 0, whole, np.inf))) / 3
    solution = solve_horizon(model, slots, spare_j)
    assert solution.point.bound <= best + 1e-9
    assert solution.point.bound <= solution.value + 1e-12
    # the grid's own error is of the order of 1e-4
    assert best - 3e-3 <= solution.value <= best + 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_two_devices_and_two_rounds_are_not_beaten_by_a_grid_of_powers_and_shares(seed: int) -> None:
    model, slots, spare_j = tiny(10 + seed, 2, 2)
    first, second = (options(model, slot, 7, np.linspace(0, 1, 11)) for slot in slots)
    total_j = 2 * spare_j
    best = min(
        float(penalty + np.min(second[0][np.all(second[1] <= total_j - spent_j, axis=1)], initial=np.inf))
        for penalty, spent_j in zip(*first, strict=True)
        if np.all(spent_j <= total_j)
    )
    solution = solve_horizon(model, slots, spare_j)
    assert solution.point.bound <= best / 2 + 1e-9
    assert solution.value <= best / 2 + 2e-3


def test_a_schedule_keeps_every_limit_and_no_policy_that_does_is_better_than_the_bound() -> None:
    model, slots, spare_j = tiny(20, 3, 4)
    solution = solve_horizon(model, slots, spare_j)
    decisions = solution.point.decisions
    assert np.all(np.sum([one.energy_j for one in decisions], axis=0) <= 4 * spare_j)
    assert all(np.sum(one.bandwidth_hz) <= model.total_hz * (1 + 1e-9) for one in decisions)
    assert all(np.all(one.power_w <= model.max_power_w) for one in decisions)
    assert solution.value == pytest.approx(np.mean([one.penalty for one in decisions]))
    assert solution.value < 1.0
    kept = 0
    for policy in POLICIES:
        outcome = run(model, slots, Limits(spare_j, np.zeros(3)), 1.0, policy, np.random.default_rng(0))
        if np.all(outcome.queues.excess == 0):
            kept += 1
            assert outcome.mean_penalty >= solution.point.bound - 1e-12
    assert kept >= 1, "myopic keeps every limit"


def test_free_energy_gives_the_unconstrained_optimum_and_none_gives_rest() -> None:
    model, slots, _ = tiny(30, 2, 3)
    free = solve_horizon(model, slots, np.full(2, 10.0))
    unconstrained = run(
        model, slots, Limits(np.full(2, 10.0), np.zeros(2)), 1.0, "unconstrained", np.random.default_rng(0)
    )
    assert free.status == "optimal"
    assert free.value == pytest.approx(unconstrained.mean_penalty, rel=1e-6)
    poor = solve_horizon(model, slots, np.full(2, 1e-3))
    assert poor.value == pytest.approx(1.0)
    assert not any(one.module.any() for one in poor.point.decisions)
    with pytest.raises(ValueError, match="needs slots"):
        solve_horizon(model, [], np.ones(2))
