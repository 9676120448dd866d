"""The scheme soft-tsfa: its queue, decisions against the problem's solution, bytes on air, misses, and the pilot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.core.orders import Collect, Publish, Train, Work
from testbed.core.uplinks import Part, Payload
from testbed.lora import parcel
from testbed.lora.covariance import aggregation_covariance
from testbed.lora.sparse_orthogonal import RankPairs, residual_curve, update_energies
from testbed.problems.tsfa.apart import solve_apart
from testbed.problems.tsfa.model import Clients
from testbed.problems.tsfa.online import node_curves, seen_squares, sparse_payload
from testbed.problems.tsfa.slot import solve_round
from testbed.schemes.soft_tsfa import SoftTsfa
from tests.digital_bench import BAND_HZ, NOISE_W, DigitalBench, fleet_of, lora_adapter, lora_layout
from tests.unit.test_lora_refactor import full_mean, products

RANK, WIDTH = 8, 512
LAYOUT = lora_layout(RANK, ("q_proj", "v_proj"), WIDTH)
PAIRS = RankPairs.of(LAYOUT)
ADAPTER = lora_adapter(LAYOUT)
CPU_HZ, SAMPLES = [4e9, 8e9, 2e9], [10, 30, 20]
GAINS = {"n0": 3e-8, "n1": 4e-9, "n2": 1e-8}
HEAD = 16
LIMIT_S = 1.25


def learn(name: str, index: int, start: np.ndarray, work: Work) -> np.ndarray:
    """Rank i moves by 0.7^i; ranks that are taken out stay."""
    rng = np.random.default_rng([int(name[1:]), index])
    update = np.zeros(LAYOUT.size, np.float32)
    ranks = RANK if work.ranks is None else work.ranks
    scale = 0.1 * 0.7 ** np.arange(RANK) * (np.arange(RANK) < ranks)
    for down, up in PAIRS.factors(update):
        down[:] = 0.1 * scale[:, None] * rng.standard_normal(down.shape)
        up[:] = scale * rng.standard_normal(up.shape)
    return update


def bench_of(**facts: Any) -> DigitalBench:
    return DigitalBench(fleet_of(CPU_HZ, SAMPLES), GAINS, learn, [ADAPTER.initial], LAYOUT, **facts)


def scheme_of(**changes: Any) -> SoftTsfa:
    uplink = {"link": "ideal", "snr_gap": 2.0, **changes.pop("uplink", {})}
    return SoftTsfa.model_validate({"latency_s": LIMIT_S, "tradeoff": 20.0, "uplink": uplink, **changes})


def true_clients(bench: DigitalBench, index: int) -> Clients:
    """The round's clients from the bench's own numbers and the updates of the rounds before."""
    gamma_hz = 0.1 * np.array([GAINS[name] for name in bench.fleet.names]) / (NOISE_W / BAND_HZ) / 2.0
    compute_s = 1000 * 2e6 / np.array(CPU_HZ)
    bits = 16.0 * LAYOUT.size, 8.0 * (2 * RANK // 8 + HEAD)
    each = []
    for name in bench.fleet.names:
        # everything was sent once; later rounds only refresh what they send
        seen = update_energies(PAIRS, bench.published[0], learn(name, 1, bench.published[0], Work()))
        for later in range(2, index + 1):
            squares = update_energies(PAIRS, bench.published[later - 1], learn(name, later, bench.published[0], Work()))
            keep = bench.of(Collect)[later - 1].uplinks[name].payload.keep
            count = round(keep * PAIRS.num_pairs)
            best = np.argsort(-squares, kind="stable")[:count]
            seen[best] = squares[best]
        curve = residual_curve(seen, PAIRS.num_values)
        each.append(Clients.of(np.array(SAMPLES, float), compute_s, gamma_hz, *bits, curve, 1.0 / RANK))
    one = each[0]
    corners = np.stack([one.corner_residual[n] for n, one in enumerate(each)])
    return Clients(one.weight, one.compute_s, one.gamma_hz, one.payload_bit, one.header_bit, one.corner_share, corners)


def keeps(bench: DigitalBench, index: int) -> np.ndarray:
    return np.array([bench.of(Collect)[index].uplinks[name].payload.keep for name in bench.fleet.names])


def test_without_a_queue_everything_is_sent_and_then_the_queue_decides() -> None:
    bench = bench_of()
    states = bench.run(scheme_of(uplink={"payload": "float16"}), ADAPTER, 6)
    np.testing.assert_array_equal(keeps(bench, 0), 1.0)
    backlog = 0.0
    for index in range(1, 6):
        backlog = max(backlog + states[index].figures["round_s"] - LIMIT_S, 0.0)
        assert states[index].figures["backlog_s"] == pytest.approx(backlog, rel=1e-12)
        clients = true_clients(bench, index)
        best = solve_round(clients, BAND_HZ, backlog, 20.0, whole_pairs=True).point
        # float16 rounds the energies that the server sees
        np.testing.assert_allclose(keeps(bench, index), best.share, atol=1e-9)
        shares_hz = [bench.of(Collect)[index].uplinks[name].bandwidth_hz for name in bench.fleet.names]
        np.testing.assert_allclose(shares_hz, best.bandwidth_hz, rtol=1e-6)
        assert states[index + 1].figures["planned_s"] == pytest.approx(best.latency_s, rel=1e-6)
    assert keeps(bench, 5).min() < 1.0


def test_the_planned_end_is_the_measured_one_and_nobody_misses_it() -> None:
    bench = bench_of()
    states = bench.run(scheme_of(), ADAPTER, 8)
    for index, state in enumerate(states[1:]):
        assert state.figures["late"] == ""
        planned_s = state.figures["planned_s"]
        assert state.figures["round_s"] == pytest.approx(planned_s, rel=1e-9)
        np.testing.assert_allclose(list(bench.ends[index].values()), planned_s, rtol=1e-9)
    # the invariant of the queue
    spent_s = sum(state.figures["round_s"] for state in states[1:])
    assert spent_s <= 8 * LIMIT_S + states[-1].figures["backlog_s"] + 1e-9
    assert states[-1].figures["mean_s"] == pytest.approx(spent_s / 8)


def test_bytes_on_air_are_the_kept_pairs_their_bitmap_and_a_head() -> None:
    bench = bench_of()
    bench.run(scheme_of(backlog_s=50.0), ADAPTER, 3)
    for index, sizes in enumerate(bench.sizes):
        for name, length in sizes.items():
            payload = bench.of(Collect)[index].uplinks[name].payload
            assert payload.choice == "pairs"
            assert payload.error_feedback
            kept = round(payload.keep * PAIRS.num_pairs)
            assert length == HEAD + 2 + kept * 2 * WIDTH * 2
    assert keeps(bench, 0).min() < 0.2, "a queue from the start leaves pairs out"


def test_a_slower_link_than_was_sounded_is_lost_to_the_round_and_said_so() -> None:
    bench = bench_of(slower={"n1": 1.2})
    states = bench.run(scheme_of(), ADAPTER, 2)
    assert states[1].figures["late"] == "n1"
    assert states[1].figures["round_s"] == pytest.approx(states[1].figures["planned_s"], rel=1e-9)
    mean = np.average([bench.updates["n0"], bench.updates["n2"]], axis=0, weights=[10, 20])
    moved = bench.published[2] - bench.published[1]
    kept = moved != 0
    np.testing.assert_allclose(moved[kept], mean[kept], rtol=1e-2, atol=1e-4)
    patient = bench_of(slower={"n1": 1.2})
    states = patient.run(scheme_of(deadline=False), ADAPTER, 1)
    assert states[1].figures["late"] == ""
    assert states[1].figures["round_s"] > states[1].figures["planned_s"]
    with_slack = bench_of(slower={"n1": 1.2}).run(scheme_of(slack=1.3), ADAPTER, 1)
    assert with_slack[1].figures["late"] == ""


@pytest.mark.parametrize(("tradeoff", "share"), [(1e-9, 1.0 / RANK), (1e9, 1.0)])
def test_the_limits_of_the_tradeoff(tradeoff: float, share: float) -> None:
    bench = bench_of()
    bench.run(scheme_of(tradeoff=tradeoff, backlog_s=1.0), ADAPTER, 1)
    np.testing.assert_allclose(keeps(bench, 0), share)


def test_a_myopic_round_ends_at_the_limit() -> None:
    bench = bench_of()
    states = bench.run(scheme_of(controller="myopic", latency_s=1.3), ADAPTER, 2)
    for state in states[1:]:
        # whole pairs: at the limit, or less than two pairs' time before it
        assert 1.2 < state.figures["round_s"] <= 1.3 * (1 + 1e-9)


def test_a_fixed_share_in_equal_bands() -> None:
    bench = bench_of()
    states = bench.run(scheme_of(controller="fixed", keep=0.5, bandwidth="equal"), ADAPTER, 2)
    uplinks = bench.of(Collect)[1].uplinks.values()
    np.testing.assert_allclose([uplink.bandwidth_hz for uplink in uplinks], BAND_HZ / 3)
    np.testing.assert_allclose(keeps(bench, 1), 0.5)
    assert states[2].figures["round_s"] == pytest.approx(max(bench.ends[1].values()))


def test_a_queue_for_each_node_grows_by_its_own_measured_end() -> None:
    own_s = [1.25, 0.9]
    bench = bench_of()
    states = bench.run(scheme_of(queues="each", own_latency_s=own_s, backlog_s=0.2), ADAPTER, 6)
    limit_s, backlog = np.array([1.25, 0.9, 1.25]), np.full(3, 0.2)
    for index in range(6):
        clients = true_clients(bench, index) if index else None
        ended_s = np.array([bench.ends[index][name] for name in bench.fleet.names])
        if clients is not None:
            best = solve_apart(clients, BAND_HZ, backlog, 20.0)
            np.testing.assert_allclose(keeps(bench, index), best.point.share, atol=1e-9)
            assert states[index + 1].figures["planned_s"] == pytest.approx(best.point.latency_s, rel=1e-6)
        backlog = np.maximum(backlog + ended_s - limit_s, 0.0)
        np.testing.assert_allclose(states[index + 1].queue.backlog, backlog, rtol=1e-9, atol=1e-12)
        told = [float(one) for one in str(states[index + 1].figures["backlogs_s"]).split()]
        np.testing.assert_allclose(told, backlog, rtol=1e-3, atol=1e-12)
    assert np.ptp(ended_s) > 0.01, "boards end apart"


def test_with_a_queue_for_each_who_is_late_counts_until_the_end() -> None:
    bench = bench_of(slower={"n1": 1.5})
    state = bench.run(scheme_of(queues="each"), ADAPTER, 1)[1]
    assert state.figures["late"] == "n1"
    assert state.queue.total[1] == pytest.approx(state.figures["round_s"])


@pytest.mark.parametrize("selection", ["pairs", "separate", "random", "scores", "values", "all"])
@pytest.mark.parametrize("share", [1 / 8, 0.4, 1.0])
@pytest.mark.parametrize("rank", [4, 8])
def test_every_selection_stays_within_its_bits(selection: Any, share: float, rank: int) -> None:
    share = max(share, 1.0 / rank)
    payload = sparse_payload(LAYOUT, selection, "float16", rank, share, error_feedback=False)
    update = learn("n0", 1, ADAPTER.initial, Work(ranks=rank))
    length = len(parcel.encode(LAYOUT, payload, ADAPTER.initial, update, seed=1)) if payload.choice != "all" else None
    if length is None:
        length = parcel.num_bytes(LAYOUT, payload)
    assert length is not None
    values = rank / RANK * LAYOUT.size
    bitmap = {"pairs": 2, "random": 2, "separate": 4}.get(selection, 0)
    assert length <= HEAD + bitmap + 2 * (1.0 if selection == "all" else share) * values + 1e-6
    if share == 1.0 and selection in ("pairs", "random", "separate", "all"):
        assert length == HEAD + bitmap + 2 * values


def test_error_feedback_coverage_and_orthogonality_reach_the_boards() -> None:
    bench = bench_of()
    bench.run(scheme_of(orthogonality=0.3, error_feedback=False), ADAPTER, 1)
    assert {work.orthogonality for work in bench.of(Train)[0].work.values()} == {0.3}
    assert not any(uplink.payload.error_feedback for uplink in bench.of(Collect)[0].uplinks.values())


def test_a_value_that_few_sent_counts_by_the_rule() -> None:
    moved = {}
    for rule in ("present", "all"):
        bench = bench_of()
        bench.run(scheme_of(coverage=rule, backlog_s=50.0), ADAPTER, 1)
        moved[rule] = np.abs(bench.published[1] - bench.published[0])
    sent = moved["all"] > 0
    assert np.all(moved["present"][sent] >= moved["all"][sent] * (1 - 1e-6))
    assert moved["present"].sum() > 1.05 * moved["all"].sum()


def test_pairs_that_do_not_travel_keep_what_was_seen_of_them() -> None:
    update = learn("n0", 1, ADAPTER.initial, Work())
    whole = seen_squares(PAIRS, ADAPTER.initial, {"n0": update}, {})["n0"]
    kept = np.arange(PAIRS.num_pairs) % 2 == 0
    half = seen_squares(PAIRS, ADAPTER.initial, {"n0": np.where(PAIRS.mask(kept), 2 * update, 0)}, {"n0": whole})["n0"]
    np.testing.assert_array_equal(half[~kept], whole[~kept])
    assert np.all(half[kept] > whole[kept])
    stranger, known = node_curves(PAIRS, RANK, ["n1", "n0"], {"n0": whole}, 0.8)
    np.testing.assert_array_equal(stranger.residual, known.residual)


def test_pairs_that_never_travelled_count_as_the_least_that_did() -> None:
    squares = np.zeros(PAIRS.num_pairs)
    squares[:4] = 8.0, 4.0, 2.0, 1.0
    curve = node_curves(PAIRS, RANK, ["n0"], {"n0": squares}, 0.8)[0]
    count = PAIRS.num_pairs
    energies = np.concatenate([squares[:4], np.ones(count - 4)])
    for kept in (1, 4, 9):
        assert curve(np.array(kept / count)) == pytest.approx(energies[kept:].sum() / energies.sum())


def test_a_pilot_fixes_the_rank_of_the_rest_of_the_run() -> None:
    bench = bench_of()
    scheme = scheme_of(ranks=[2, 4, 8], latency_s=1.2, rank_costs=[0.05, 1.0, 1.0])
    states = bench.run(scheme, ADAPTER, 3)
    rank = states[1].rank
    assert states[1].figures["backlog_s"] == 0.0, "the pilot is no round of the queue"
    assert rank in (2, 4)
    # the pilot's adapter is the best approximation of that rank of the mean product
    adapters = {name: ADAPTER.initial + learn(name, 1, ADAPTER.initial, Work()) for name in GAINS}
    weights = dict(zip(GAINS, map(float, SAMPLES), strict=True))
    for mean, ours in zip(full_mean(LAYOUT, adapters, weights), products(LAYOUT, bench.published[1]), strict=True):
        u, s, vt = np.linalg.svd(mean)
        np.testing.assert_allclose(ours, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=2e-3 * s[0])
    for index in (1, 2):
        assert all(
            work == Work(ranks=rank, others="absent", orthogonality=0.1)
            for work in bench.of(Train)[index].work.values()
        )
        assert all(uplink.payload.part == Part(ranks=rank) for uplink in bench.of(Collect)[index].uplinks.values())
    views = LAYOUT.unpack(bench.of(Publish)[2].adapter)
    assert not views["l.q_proj.lora_B.weight"][:, rank:].any()
    assert max(bench.sizes[1].values()) < 0.6 * max(bench.sizes[0].values())


def test_a_pilot_weighs_rank_against_covariance() -> None:
    chosen = []
    for costs in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
        bench = bench_of()
        chosen.append(bench.run(scheme_of(ranks=[1, 2, 4, 8], latency_s=9.0, rank_costs=costs), ADAPTER, 1)[1].rank)
    assert chosen[0] == 8, "what no small rank follows argues for the largest"
    drift = [
        aggregation_covariance(
            PAIRS,
            [np.where(_first(rank), ADAPTER.initial + learn(name, 1, ADAPTER.initial, Work()), 0) for name in GAINS],
            np.array(SAMPLES, float),
        ).relative
        for rank in (1, 2, 4, 8)
    ]
    assert chosen[1] == (1, 2, 4, 8)[int(np.argmin(drift))]


def _first(rank: int) -> np.ndarray:
    return PAIRS.mask(np.tile(np.arange(RANK) < rank, 2))


def test_a_limit_that_no_rank_keeps_is_refused_with_the_amount() -> None:
    with pytest.raises(
        ConfigError, match=r"no rank is fast enough: .* rank 2 takes .* more than the limit of 1.01 s"
    ) as caught:
        bench_of().run(scheme_of(ranks=[2, 4], latency_s=1.01), ADAPTER, 1)
    assert caught.value.key == "scheme.latency_s"


def test_bad_choices_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="weighs ranks 4, 16, and the adapter has 8") as caught:
        scheme_of(ranks=[4, 16]).start(fleet_of(CPU_HZ, SAMPLES), ADAPTER)
    assert caught.value.key == "scheme.ranks"
    half = LAYOUT.model_copy(update={"factors": tuple(one for one in LAYOUT.factors if one.kind == "B")})
    frozen = ADAPTER.model_copy(update={"layout": half, "initial": np.zeros(half.size, np.float32)})
    with pytest.raises(ConfigError, match="trains A and B"):
        scheme_of().start(fleet_of(CPU_HZ, SAMPLES), frozen)


def test_all_selected_and_no_penalty_is_plain_averaging() -> None:
    bench = bench_of()
    changes = {"selection": "all", "orthogonality": 0.0, "error_feedback": False, "deadline": False}
    bench.run(scheme_of(uplink={"payload": "float32"}, **changes), ADAPTER, 1)
    assert {uplink.payload for uplink in bench.of(Collect)[0].uplinks.values()} == {Payload()}
    mean = np.average([bench.updates[name] for name in GAINS], axis=0, weights=SAMPLES)
    np.testing.assert_allclose(bench.published[1] - bench.published[0], mean, atol=1e-6)
