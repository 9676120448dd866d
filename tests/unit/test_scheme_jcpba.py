"""The scheme jcpba: what it decides against the problem's solution, what travels, who counts, who is late."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from testbed.core.orders import Collect, Digital, Part, Payload, Train, Work
from testbed.opt.bounded_share import equal_split
from testbed.problems.digital_order import UplinkSpec, loudness_hz, share_limits
from testbed.problems.jcpba.baselines import uniform_pruning
from testbed.problems.jcpba.descent import least_pruning, solve_bcd
from testbed.problems.jcpba.joint import solve_joint
from testbed.problems.jcpba.measured import Experience, penalty_curves, shrinking_share
from testbed.problems.jcpba.model import ClientCosts
from testbed.problems.jcpba.penalty import chord
from testbed.problems.jcpba.together import solve_together
from testbed.problems.jcpba.uplink import Bounded, Shannon
from testbed.problems.packet_links import PacketLinks, trusted_snr
from testbed.schemes.jcpba import Jcpba
from tests.digital_bench import BAND_HZ, NOISE_W, DigitalBench, fleet_of, lora_adapter, lora_layout

WIDTH = 1000
LAYOUT = lora_layout(4, width=WIDTH)
ADAPTER = lora_adapter(LAYOUT)
CPU_HZ, SAMPLES = [2e9, 4e9, 1e9, 1.5e9], [10, 30, 20, 40]
GAINS = {"n0": 3e-6, "n1": 2e-8, "n2": 1e-7, "n3": 1e-6}
BUDGET = 0.2
HEAD = 16


def learn(name: str, index: int, start: np.ndarray, work: Work) -> np.ndarray:
    """Outputs of q_proj and inputs of o_proj are pruned, the last ones first; what is left moves at random."""
    update = np.random.default_rng([int(name[1:]), index]).uniform(0.5, 1.0, LAYOUT.size).astype(np.float32)
    if work.pruning is not None and work.pruning.kind == "structured":
        kept, views = WIDTH - int(WIDTH * work.pruning.ratio), LAYOUT.unpack(update)
        views["l.q_proj.lora_B.weight"][kept:] = 0
        views["l.o_proj.lora_A.weight"][:, kept:] = 0
    return update


def bench_of(**facts: Any) -> DigitalBench:
    return DigitalBench(fleet_of(CPU_HZ, SAMPLES), GAINS, learn, [ADAPTER.initial], LAYOUT, **facts)


def scheme_of(**changes: Any) -> Jcpba:
    uplink = {"link": "ideal", "snr_gap": 2.0}
    return Jcpba.model_validate({"penalty_budget": BUDGET, "uplink": uplink, **changes})


def true_costs(max_ratio: float = 0.5) -> ClientCosts:
    """What the bench really costs, reckoned from its own numbers."""
    whole_s = 1000 * 2e6 / np.array(CPU_HZ)
    gamma_hz = 0.1 * np.array([GAINS[f"n{k}"] for k in range(4)]) / (NOISE_W / BAND_HZ) / 2.0
    bitmap = -(-(4 * WIDTH) // 8)
    ones = np.ones(4)
    return ClientCosts(
        fixed_s=0.25 * whole_s,
        scalable_s=0.75 * whole_s,
        payload_bits=16.0 * LAYOUT.size / 2 * ones,
        uplink=Shannon(gamma_hz),
        weight=np.array(SAMPLES) / sum(SAMPLES),
        penalty=chord(ones),
        max_ratio=max_ratio * ones,
        fixed_payload_bits=(16.0 * LAYOUT.size / 2 + 8 * (bitmap + HEAD)) * ones,
    )


def decided(bench: DigitalBench, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Ratios and shares of a round, in the order of the fleet."""
    work, uplinks = bench.of(Train)[index].work, bench.of(Collect)[index].uplinks
    ratios = [0.0 if work[f"n{k}"].pruning is None else work[f"n{k}"].pruning.ratio for k in range(4)]
    return np.array(ratios), np.array([uplinks[f"n{k}"].bandwidth_hz for k in range(4)])


def test_half_of_the_update_lies_on_pruned_sides() -> None:
    assert shrinking_share(LAYOUT) == 0.5
    assert shrinking_share(lora_layout(2, ("lm_head",))) == 0.0


@pytest.mark.parametrize("allocation", ["joint", "bcd"])
def test_once_costs_are_known_the_decision_is_the_problems_solution(allocation: str) -> None:
    bench, solve = bench_of(), {"joint": solve_joint, "bcd": solve_bcd}[allocation]
    states = bench.run(scheme_of(allocation=allocation, tokens=200.0, prunable=0.4), ADAPTER, 4)
    best = solve(true_costs(), BAND_HZ, BUDGET)
    ratios, shares_hz = decided(bench, 3)
    # channels come whole, and who is not pruned needs no bitmap
    np.testing.assert_allclose(ratios, best.point.pruning, atol=3e-3)
    np.testing.assert_allclose(shares_hz, best.point.bandwidth_hz, rtol=5e-3)
    figures = states[4].figures
    assert figures["planned_s"] == pytest.approx(best.value, rel=2e-3)
    # all end together, when it was planned: who trained faster was sending meanwhile
    ends_s = np.array(list(bench.ends[3].values()))
    np.testing.assert_allclose(ends_s, figures["planned_s"], rtol=1.2e-2)
    assert figures["round_s"] == pytest.approx(figures["slowest_s"], rel=1e-9)
    assert figures["round_s"] == pytest.approx(ends_s.max(), rel=1e-9)


def test_the_gap_of_the_descent_is_reported() -> None:
    bench = bench_of()
    figures = bench.run(scheme_of(), ADAPTER, 3)[3].figures
    joint, descent = solve_joint(true_costs(), BAND_HZ, BUDGET), solve_bcd(true_costs(), BAND_HZ, BUDGET)
    assert figures["joint_s"] == figures["planned_s"]
    assert figures["bcd_gap"] == pytest.approx(descent.value / joint.value - 1.0, abs=5e-3)
    assert figures["bcd_gap"] > 0.01
    assert figures["status"] == "optimal"


def test_the_first_round_goes_by_what_is_said_of_the_boards() -> None:
    bench = bench_of()
    bench.run(scheme_of(tokens=1000.0, prunable=0.75), ADAPTER, 1)
    best = solve_joint(true_costs(), BAND_HZ, BUDGET).point
    np.testing.assert_allclose(decided(bench, 0)[0], best.pruning, atol=1e-9)


def test_a_board_slower_than_it_says_is_pruned_more_in_the_next_round() -> None:
    bench = bench_of(slow_cpu={"n1": 8.0})
    bench.run(scheme_of(tokens=1000.0, prunable=0.75), ADAPTER, 2)
    before, after = decided(bench, 0)[0][1], decided(bench, 1)[0][1]
    assert after > before + 0.05


def test_what_was_pruned_does_not_travel() -> None:
    bench = bench_of()
    bench.run(scheme_of(), ADAPTER, 2)
    ratios, _ = decided(bench, 1)
    assert ratios.max() > 0.1
    for k, ratio in enumerate(ratios):
        gone = 2 * 4 * int(WIDTH * ratio)
        bitmap = 500 if ratio > 0 else 0
        assert bench.sizes[1][f"n{k}"] == HEAD + bitmap + 2 * (LAYOUT.size - gone)


def test_values_are_averaged_over_those_who_trained_them() -> None:
    rules = {}
    for rule in ("present", "all"):
        bench = bench_of()
        # float32, so that what arrives is what was trained
        bench.run(scheme_of(coverage=rule, uplink={"link": "ideal", "payload": "float32"}), ADAPTER, 1)
        rules[rule] = bench
        moved = bench.published[1] - bench.published[0]
        place = LAYOUT.slices["l.q_proj.lora_B.weight"]
        # [num_nodes, out, rank]
        each = np.stack([bench.updates[f"n{k}"][place].reshape(WIDTH, 4) for k in range(4)])
        weight = np.array(SAMPLES, float)[:, None, None] * (each != 0 if rule == "present" else 1)
        total = weight.sum(axis=0)
        expected = np.where(total > 0, (weight * each).sum(axis=0) / np.where(total > 0, total, 1), 0)
        np.testing.assert_allclose(moved[place].reshape(WIDTH, 4), expected, atol=1e-6)
    assert np.abs(rules["present"].published[1]).sum() > np.abs(rules["all"].published[1]).sum()


def test_who_is_late_is_lost_and_said_so() -> None:
    bench = bench_of(slower={"n1": 3.0})
    length_s = solve_joint(true_costs(), BAND_HZ, BUDGET).value
    states = bench.run(scheme_of(deadline_s=1.02 * length_s, tokens=1000.0, prunable=0.75), ADAPTER, 1)
    assert states[1].figures["late"] == "n1"
    moved = bench.published[1] - bench.published[0]
    place = LAYOUT.slices["l.q_proj.lora_A.weight"]
    others = np.average([bench.updates[f"n{k}"][place] for k in (0, 2, 3)], axis=0, weights=[10, 20, 40])
    np.testing.assert_allclose(moved[place], others, atol=1e-3)
    assert states[1].figures["round_s"] == pytest.approx(1.02 * length_s, rel=1e-6)


def test_a_deadline_that_nothing_meets_is_said_with_the_amount_and_nothing_moves() -> None:
    bench = bench_of()
    states = bench.run(scheme_of(deadline_s=0.4, tokens=1000.0, prunable=0.75), ADAPTER, 1)
    assert "infeasible: deadline: the shortest round lasts" in states[1].figures["status"]
    assert states[1].figures["late"] == "n0 n1 n2 n3"
    np.testing.assert_array_equal(bench.published[1], bench.published[0])


def test_rules_to_compare_with() -> None:
    costs = true_costs()
    equal_hz = np.full(4, BAND_HZ / 4)
    found = {}
    for allocation, bandwidth in (("none", "equal"), ("none", "optimal"), ("uniform", "optimal"), ("joint", "equal")):
        bench = bench_of()
        states = bench.run(scheme_of(allocation=allocation, bandwidth=bandwidth), ADAPTER, 3)
        found[allocation, bandwidth] = (*decided(bench, 2), states[3].figures["round_s"])
    np.testing.assert_array_equal(found["none", "equal"][0], 0)
    np.testing.assert_allclose(found["none", "equal"][1], equal_hz)
    np.testing.assert_allclose(found["uniform", "optimal"][0], uniform_pruning(costs, BUDGET), rtol=1e-6)
    np.testing.assert_allclose(found["joint", "equal"][1], equal_hz)
    np.testing.assert_allclose(found["joint", "equal"][0], least_pruning(costs, equal_hz, BUDGET), atol=3e-3)
    bench = bench_of()
    best_s = bench.run(scheme_of(), ADAPTER, 3)[3].figures["round_s"]
    assert best_s < min(seconds for _, _, seconds in found.values())
    bench = bench_of()
    bench.run(scheme_of(allocation="random"), ADAPTER, 2)
    weight = np.array(SAMPLES) / sum(SAMPLES)
    assert weight @ decided(bench, 1)[0] == pytest.approx(BUDGET, rel=1e-9)
    assert np.abs(decided(bench, 1)[0] - decided(bench, 0)[0]).max() > 0.01


def test_masks_send_whole_updates() -> None:
    bench = bench_of()
    bench.run(scheme_of(pruning="unstructured", importance="magnitude"), ADAPTER, 2)
    works = bench.of(Train)[1].work.values()
    kinds = {(work.pruning.kind, work.pruning.importance) for work in works if work.pruning is not None}
    assert kinds == {("unstructured", "magnitude")}
    payloads = {uplink.payload for uplink in bench.of(Collect)[1].uplinks.values()}
    assert payloads == {Payload("float16", part=Part())}
    assert set(bench.sizes[1].values()) == {HEAD + 2 * LAYOUT.size}


def test_measured_penalties_are_the_convex_curve_below_the_points() -> None:
    known = [Experience(1.0, 0.5, 0.5, {0.5: 0.1, 0.25: 0.08, 0.75: 0.4}), Experience(1.0, 0.5, 0.5)]
    curves = penalty_curves(known, "measured")
    # (0.25, 0.08) lies above the line from (0, 0) to (0.5, 0.1)
    np.testing.assert_allclose(curves.at(np.array([0.25, 0.25])), [0.05, 0.25])
    np.testing.assert_allclose(curves.at(np.array([0.5, 0.5])), [0.1, 0.5])
    np.testing.assert_allclose(curves.at(np.array([0.75, 1.0])), [0.4, 1.0])


def test_nodes_that_report_cheap_pruning_are_pruned_more() -> None:
    bench = bench_of()
    bench.run(scheme_of(penalty="measured"), ADAPTER, 4)
    first, last = decided(bench, 0)[0], decided(bench, 3)[0]
    assert last.mean() > first.mean() + 0.05


def test_with_packets_shares_keep_the_modems_limits_and_the_plan_is_that_of_a_common_start() -> None:
    spec = UplinkSpec(link="packets", snr_gap=4.0)
    bench = bench_of()
    bench.fleet = replace(bench.fleet, subcarrier_hz=BAND_HZ / 192)
    bench.gains = {**GAINS, "n1": 1e-9}
    scheme = scheme_of(uplink=spec, tokens=1000.0, prunable=0.75, efficiency=1.0)
    steps = scheme.round(scheme.start(bench.fleet, ADAPTER), np.random.default_rng(1))
    next(steps)
    sounding = bench._sound(bench.fleet.names)
    asked = steps.send(sounding)
    assert isinstance(asked, Train)
    sent = steps.send(bench.answer(asked))
    assert isinstance(sent, Collect)
    names = list(bench.fleet.names)
    # 2 dB, as long as nothing is known of the links
    links = PacketLinks.of(names, 1.0)
    limits = links.trusted(names, share_limits(bench.fleet, sounding, names, spec))
    free = Shannon(loudness_hz(bench.fleet, sounding, names, 4.0))
    # before the first round the staircase of codes at equal shares says what part of the rate packets reach
    steps = links.staircase(names, free.gamma_hz, spec, bench.fleet)
    assert steps is not None
    slow = 1.0 / steps(equal_split(limits.least_hz, limits.most_hz, limits.total_hz))
    bits = true_costs()
    costs = replace(
        bits,
        uplink=Bounded(free, limits.least_hz, limits.most_hz),
        payload_bits=slow * bits.payload_bits,
        fixed_payload_bits=slow * bits.fixed_payload_bits,
    )
    best = solve_together(costs, limits.total_hz, BUDGET)
    uplinks = [sent.uplinks[name] for name in names]
    packets = [one for one in uplinks if isinstance(one, Digital)]
    shares_hz = np.array([one.bandwidth_hz for one in packets])
    sounded = loudness_hz(bench.fleet, sounding, names) / shares_hz
    np.testing.assert_allclose([one.snr for one in packets], trusted_snr(sounded, 10**0.2))
    np.testing.assert_allclose(shares_hz, best.point.bandwidth_hz, rtol=1e-4)
    # the faint board has no more band than its code bears
    assert shares_hz[1] == pytest.approx(limits.most_hz[1])
    assert shares_hz.sum() <= limits.total_hz * (1 + 1e-9)
    ratios = [0.0 if asked.work[name].pruning is None else asked.work[name].pruning.ratio for name in names]
    np.testing.assert_allclose(ratios, best.point.pruning, atol=1e-4)
