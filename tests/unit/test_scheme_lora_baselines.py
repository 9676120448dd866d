"""FlexLoRA, HetLoRA, FSLoRA, FLoRA, FedSVD, EcoLoRA-like and FedSRD-like: what is trained, sent and published."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from testbed.core.errors import ConfigError
from testbed.core.orders import Collect, Publish, Tail, Train, Work
from testbed.core.uplinks import Part
from testbed.lora.choice import part_mask
from testbed.lora.refactor import places, stack_layout
from testbed.lora.sparse_baselines import cross_scores
from testbed.lora.sparse_orthogonal import RankPairs
from testbed.lora.switch import slice_mask
from testbed.schemes.ecolora import EcoLora
from testbed.schemes.fedavg import FedAvg
from testbed.schemes.fedsrd import FedSrd
from testbed.schemes.fedsvd import FedSvd
from testbed.schemes.flexlora import FlexLora
from testbed.schemes.flora import Flora
from testbed.schemes.fslora import FsLora
from testbed.schemes.hetlora import HetLora
from tests.digital_bench import DigitalBench, fleet_of, lora_adapter, lora_layout
from tests.unit.test_lora_refactor import full_mean, products

RANK, WIDTH = 4, 24
LAYOUT = lora_layout(RANK, ("q_proj", "v_proj"), WIDTH)
ADAPTER = lora_adapter(LAYOUT)
SAMPLES = [10, 30, 20]
WEIGHTS = {"n0": 10.0, "n1": 30.0, "n2": 20.0}
RANKS = {"n0": 4, "n1": 2, "n2": 1}
EXACT = {"link": "ideal", "payload": "float32"}


def learn(name: str, index: int, start: np.ndarray, work: Work) -> np.ndarray:
    """A step at random on what is trained."""
    step = np.random.default_rng([int(name[1:]), index]).standard_normal(LAYOUT.size) * 0.3
    step[~places(LAYOUT, work.factors)] = 0.0
    if work.sketch is not None:
        step[~part_mask(LAYOUT, Part(columns=work.sketch))] = 0.0
    return step if work.ranks is None else np.where(slice_mask(LAYOUT, work.ranks), step, 0.0)


def bench_of() -> DigitalBench:
    gains = {"n0": 3e-8, "n1": 4e-9, "n2": 1e-8}
    return DigitalBench(fleet_of([4e9, 8e9, 2e9], SAMPLES), gains, learn, [ADAPTER.initial], LAYOUT)


def came_to(bench: DigitalBench, index: int, ranks: dict[str, int]) -> dict[str, np.ndarray]:
    """The nodes' own adapters of a round, cut to their ranks."""
    before, works = bench.published[index - 1], bench.of(Train)[index - 1].work
    return {
        name: np.where(slice_mask(LAYOUT, ranks[name]), before + learn(name, index, before, works[name]), 0)
        for name in ranks
    }


def best_of_rank(weight: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(weight)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def ranks_of_work(bench: DigitalBench, index: int) -> dict[str, tuple[int | None, str]]:
    return {name: (work.ranks, work.others) for name, work in bench.of(Train)[index].work.items()}


TRUNCATED = {"n0": (None, "frozen"), "n1": (2, "absent"), "n2": (1, "absent")}


def test_flexlora_gives_every_node_the_best_of_its_rank() -> None:
    bench = bench_of()
    states = bench.run(FlexLora.model_validate({"ranks": [4, 2, 1], "uplink": EXACT}), ADAPTER, 3)
    for index in (1, 2, 3):
        assert ranks_of_work(bench, index - 1) == TRUNCATED
        means = full_mean(LAYOUT, came_to(bench, index, RANKS), WEIGHTS)
        published = bench.published[index]
        lost = sum(np.sum(np.square(mean - best_of_rank(mean, RANK))) for mean in means)
        assert states[index].figures["left_out"] == pytest.approx(
            (lost / sum(np.sum(np.square(mean)) for mean in means)) ** 0.5, rel=1e-4
        )
        for rank in (4, 2, 1):
            cut = np.where(slice_mask(LAYOUT, rank), published, 0)
            for mean, ours in zip(means, products(LAYOUT, cut), strict=True):
                np.testing.assert_allclose(ours, best_of_rank(mean, rank), atol=1e-5)


def test_a_smaller_rank_sends_fewer_bytes() -> None:
    for scheme in (FlexLora, HetLora, Flora):
        bench = bench_of()
        bench.run(scheme.model_validate({"ranks": [4, 2, 1], "uplink": {"link": "ideal"}}), ADAPTER, 1)
        values = 2 * 2 * WIDTH * 2
        assert bench.sizes[0] == {"n0": 16 + 4 * values, "n1": 16 + 2 * values, "n2": 16 + values}


def test_hetlora_pads_with_zeros_and_weighs_by_norms() -> None:
    bench = bench_of()
    bench.run(HetLora.model_validate({"ranks": [4, 2, 1], "decay": 1.0, "uplink": EXACT}), ADAPTER, 2)
    for index in (1, 2):
        assert ranks_of_work(bench, index - 1) == TRUNCATED
        adapters = came_to(bench, index, RANKS)
        norms = {
            name: np.sqrt(sum(np.linalg.norm(one) ** 2 for one in products(LAYOUT, adapter)))
            for name, adapter in adapters.items()
        }
        expected = sum(norms[name] * adapters[name] for name in adapters) / sum(norms.values())
        np.testing.assert_allclose(bench.published[index], expected, atol=1e-6)


def test_hetlora_by_data_is_plain_averaging_where_ranks_are_equal() -> None:
    bench = bench_of()
    bench.run(HetLora.model_validate({"weighting": "samples", "decay": 1.0, "uplink": EXACT}), ADAPTER, 1)
    mean = sum(WEIGHTS[name] * bench.updates[name] for name in WEIGHTS) / 60.0
    np.testing.assert_allclose(bench.published[1], ADAPTER.initial + mean, atol=1e-6)


def fading(name: str, index: int, start: np.ndarray, work: Work) -> np.ndarray:
    """Node n0 takes back a tenth of its fourth rank and grows otherwise; the others grow everywhere."""
    step = 0.1 * start + 0.01 * learn(name, index, start, work)
    if name == "n0":
        step = np.where(slice_mask(LAYOUT, 4, 3), -0.1 * start, step)
    return step if work.ranks is None else np.where(slice_mask(LAYOUT, work.ranks), step, 0.0)


def test_hetlora_nodes_prune_ranks_that_have_become_smaller() -> None:
    full = ADAPTER.model_copy(
        update={"initial": np.random.default_rng(5).standard_normal(LAYOUT.size).astype(np.float32)}
    )
    gains = {"n0": 3e-8, "n1": 4e-9, "n2": 1e-8}
    bench = DigitalBench(fleet_of([4e9, 8e9, 2e9], SAMPLES), gains, fading, [full.initial], LAYOUT)
    changes = {"ranks": [4, 4, 2], "weighting": "samples", "decay": 0.8, "penalty": 0.5, "uplink": EXACT}
    states = bench.run(HetLora.model_validate(changes), full, 2)
    first, second = (order.work for order in bench.of(Train))
    # floor(0.8 * 4) = 3 and floor(0.8 * 2) = 1 ranks stay
    assert {name: work.tail for name, work in first.items()} == {
        "n0": Tail(0.5, 3, 4),
        "n1": Tail(0.5, 3, 4),
        "n2": Tail(0.5, 1, 2),
    }
    assert dict(states[1].ranks) == {"n0": 3, "n1": 4, "n2": 2}
    assert states[1].figures["mean_rank"] == 3.0
    assert second["n0"].ranks == 3
    assert second["n0"].tail == Tail(0.5, 2, 3)
    assert bench.sizes[1]["n0"] == 16 + 4 * 2 * 2 * WIDTH * 3
    # what is pruned is out of the mean at once: of the fourth rank only n1's part is left
    fourth = slice_mask(LAYOUT, 4, 3)
    own = full.initial + fading("n1", 1, full.initial, Work())
    np.testing.assert_allclose(bench.published[1][fourth], (30 / 60 * own)[fourth], rtol=1e-5)


def test_hetlora_prunes_nothing_where_the_tail_is_still_zero_or_ranks_are_least() -> None:
    bench = bench_of()
    states = bench.run(HetLora.model_validate({"decay": 0.5, "least_rank": 3, "uplink": EXACT}), ADAPTER, 1)
    assert all(work.tail is None for work in bench.of(Train)[0].work.values())
    assert set(states[1].ranks.values()) == {RANK}
    zero = bench_of()
    zero.learn = lambda name, index, start, work: -0.5 * start
    states = zero.run(HetLora.model_validate({"decay": 0.5, "uplink": EXACT}), ADAPTER, 1)
    assert set(states[1].ranks.values()) == {RANK}


def test_fslora_trains_and_sends_ranks_drawn_by_lot() -> None:
    bench = bench_of()
    bench.run(FsLora.model_validate({"ranks": [4, 2, 1], "uplink": EXACT}), ADAPTER, 40)
    counts = np.zeros(RANK)
    for index, (order, sent) in enumerate(zip(bench.of(Train), bench.of(Collect), strict=True), start=1):
        total = np.zeros(LAYOUT.size)
        for name, rank in RANKS.items():
            sketch = order.work[name].sketch
            assert len(sketch) == rank
            assert sent.uplinks[name].payload.part == Part(columns=sketch)
            assert bench.sizes[index - 1][name] == 16 + 4 * 2 * 2 * WIDTH * rank
            update = learn(name, index, bench.published[index - 1], order.work[name])
            # the sketch applies: the update lies in its ranks and nowhere else
            touched = [
                rank
                for rank in range(RANK)
                if any(down[rank].any() or up[:, rank].any() for down, up in RankPairs.of(LAYOUT).factors(update))
            ]
            assert touched == list(sketch)
            total += WEIGHTS[name] / 60.0 * update
        counts[list(order.work["n2"].sketch)] += 1
        np.testing.assert_allclose(bench.published[index] - bench.published[index - 1], total, atol=1e-5)
    # each rank is a one-rank sketch in a quarter of 40 rounds; five standard deviations are 13.7
    assert (counts > 0).all()
    assert np.abs(counts - 10).max() < 13.7


def test_fslora_may_average_over_those_who_trained_a_value() -> None:
    bench = bench_of()
    changes = {"ranks": [1, 1, 1], "coverage": "present", "uplink": EXACT}
    bench.run(FsLora.model_validate(changes), ADAPTER, 1)
    work, moved = bench.of(Train)[0].work, bench.published[1] - bench.published[0]
    for rank in range(RANK):
        names = [name for name in work if work[name].sketch == (rank,)]
        mask = part_mask(LAYOUT, Part(columns=(rank,)))
        total = sum(WEIGHTS[name] for name in names) or 1.0
        expected = sum((WEIGHTS[name] / total * bench.updates[name] for name in names), np.zeros(LAYOUT.size))
        np.testing.assert_allclose(moved[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize("scheme", [FedAvg, FlexLora, HetLora, FsLora, Flora, FedSvd, EcoLora, FedSrd])
def test_over_ideal_links_nobody_waits_for_the_slowest_board(scheme: Any) -> None:
    bench = bench_of()
    changes = {"link": "ideal"} if scheme is FedAvg else {"uplink": {"link": "ideal"}}
    bench.run(scheme.model_validate(changes), ADAPTER, 2)
    for order in bench.of(Collect):
        ahead_s = {name: uplink.head_start_s for name, uplink in order.uplinks.items()}
        # 1000 tokens of 2 million cycles each
        assert ahead_s == pytest.approx({"n0": 1.0 - 0.5, "n1": 1.0 - 0.25, "n2": 0.0})


def test_flora_folds_the_exact_mean_product_and_starts_anew() -> None:
    bench = bench_of()
    bench.run(Flora.model_validate({"ranks": [4, 2, 1], "uplink": EXACT}), ADAPTER, 2)
    for index, order in enumerate(bench.of(Publish), start=1):
        assert order.fold_rank == 7
        means = full_mean(LAYOUT, came_to(bench, index, RANKS), WEIGHTS)
        for mean, folded in zip(means, products(stack_layout(LAYOUT, 7), order.fold), strict=True):
            np.testing.assert_allclose(folded, mean, atol=1e-6)
        assert not order.adapter[places(LAYOUT, "B")].any()
    first, second = (order.adapter[places(LAYOUT, "A")] for order in bench.of(Publish))
    assert np.std(first) == pytest.approx(np.std(ADAPTER.initial[places(LAYOUT, "A")]), rel=0.15)
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_fedsvd_trains_and_sends_b_and_turns_the_factors() -> None:
    bench = bench_of()
    bench.run(FedSvd.model_validate({"uplink": EXACT}), ADAPTER, 3)
    for index in (1, 2, 3):
        assert {work.factors for work in bench.of(Train)[index - 1].work.values()} == {"B"}
        assert set(bench.sizes[index - 1].values()) == {16 + 4 * 2 * WIDTH * RANK}
        ranks = dict.fromkeys(WEIGHTS, RANK)
        # A rests, so that the mean of the products has the rank: nothing is lost
        for mean, ours in zip(
            full_mean(LAYOUT, came_to(bench, index, ranks), WEIGHTS),
            products(LAYOUT, bench.published[index]),
            strict=True,
        ):
            np.testing.assert_allclose(ours, mean, atol=1e-5)
        for down, up in RankPairs.of(LAYOUT).factors(bench.published[index]):
            np.testing.assert_allclose(down @ down.T, np.eye(RANK), atol=1e-5)
            gram = up.T @ up
            np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-4 * gram.max())


def test_fedsvd_without_turns_is_ffa_lora() -> None:
    bench = bench_of()
    bench.run(FedSvd.model_validate({"period": 0, "uplink": EXACT}), ADAPTER, 2)
    resting = places(LAYOUT, "A")
    np.testing.assert_array_equal(bench.published[2][resting], ADAPTER.initial[resting])


def test_ecolora_sends_complementary_segments_in_turn() -> None:
    bench = bench_of()
    bench.run(EcoLora.model_validate({"uplink": {"link": "ideal"}}), ADAPTER, 3)
    told: dict[str, list[np.ndarray]] = {name: [] for name in WEIGHTS}
    for order in bench.of(Collect):
        masks = {name: part_mask(LAYOUT, uplink.payload.part) for name, uplink in order.uplinks.items()}
        np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 1)
        for name, mask in masks.items():
            told[name].append(mask)
    for masks in told.values():
        np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    assert {uplink.payload.positions for order in bench.of(Collect) for uplink in order.uplinks.values()} == {"golomb"}
    # the bench's loss is 2 / round: the share falls with it from k_max
    keeps = [next(iter(order.uplinks.values())).payload.keep for order in bench.of(Collect)]
    np.testing.assert_allclose(keeps, 0.1 + 0.4 * np.exp(-(2.0 - 2.0 / np.arange(1, 4))))


def test_ecolora_averages_a_segment_over_those_who_sent_it() -> None:
    bench = bench_of()
    bench.run(EcoLora.model_validate({"segments": 2, "keep": 1.0, "uplink": {"link": "ideal"}}), ADAPTER, 1)
    moved = bench.published[1] - bench.published[0]
    halves = [part_mask(LAYOUT, Part(segment=(index, 2))) for index in range(2)]
    np.testing.assert_allclose(moved[halves[1]], bench.updates["n1"][halves[1]], rtol=1e-3, atol=1e-5)
    both = (10 * bench.updates["n0"] + 20 * bench.updates["n2"]) / 30
    np.testing.assert_allclose(moved[halves[0]], both[halves[0]], rtol=1e-2, atol=1e-3)


def test_ecolora_treats_a_and_b_apart_in_two_orders() -> None:
    bench = bench_of()
    changes = {"steepness_a": 2.0, "steepness_b": 0.0, "error_feedback": False, "uplink": {"link": "ideal"}}
    states = bench.run(EcoLora.model_validate(changes), ADAPTER, 2)
    orders = bench.of(Collect)
    kinds = [next(iter(order.uplinks.values())).payload.part.kinds for order in orders]
    assert kinds == [("A",), ("B",), ("A",), ("B",)]
    assert states[2].figures["keep_b"] == pytest.approx(0.5)
    assert states[2].figures["keep_a"] == pytest.approx(0.1 + 0.4 * np.exp(-2.0))
    changed = bench.published[1] != bench.published[0]
    assert changed[places(LAYOUT, "A")].any()
    assert changed[places(LAYOUT, "B")].any()


def test_fedsrd_sends_the_largest_scores_and_averages_products() -> None:
    bench = bench_of()
    bench.run(FedSrd.model_validate({"keep": 0.25, "uplink": {"link": "ideal"}}), ADAPTER, 1)
    pairs, kept = RankPairs.of(LAYOUT), int(np.ceil(0.25 * LAYOUT.size))
    adapters = {}
    for name in WEIGHTS:
        update = bench.updates[name]
        score = cross_scores(pairs, ADAPTER.initial, update)
        sent = np.where(score >= np.sort(score)[-kept], update, 0)
        adapters[name] = ADAPTER.initial + sent
    for mean, ours in zip(full_mean(LAYOUT, adapters, WEIGHTS), products(LAYOUT, bench.published[1]), strict=True):
        np.testing.assert_allclose(ours, best_of_rank(mean, RANK), atol=2e-3)
    factors = bench_of()
    factors.run(FedSrd.model_validate({"keep": 1.0, "aggregation": "factors", "uplink": {"link": "ideal"}}), ADAPTER, 1)
    mean = sum(WEIGHTS[name] * factors.updates[name] for name in WEIGHTS) / 60.0
    np.testing.assert_allclose(factors.published[1] - factors.published[0], mean, atol=1e-3)


def test_fedsrd_may_fit_b_and_a_in_turn() -> None:
    bench = bench_of()
    changes = {"keep": 1.0, "aggregation": "alternating", "error_feedback": True, "uplink": {"link": "ideal"}}
    states = bench.run(FedSrd.model_validate(changes), ADAPTER, 3)
    for index, factors in ((1, "B"), (2, "A"), (3, "B")):
        changed = bench.published[index] != bench.published[index - 1]
        assert changed[places(LAYOUT, factors)].mean() > 0.9  # type: ignore[arg-type]
        assert not changed[~places(LAYOUT, factors)].any()  # type: ignore[arg-type]
        assert 0 < states[index].figures["left_out"] < 1


@pytest.mark.parametrize("scheme", [FlexLora, HetLora, FsLora, Flora])
def test_a_rank_that_the_adapter_does_not_have_is_refused(scheme: Any) -> None:
    with pytest.raises(ConfigError, match="cannot have rank 8 of an adapter of rank 4") as caught:
        scheme.model_validate({"ranks": [4, 8]}).start(fleet_of([1e9], [1]), ADAPTER)
    assert caught.value.key == "scheme.ranks"


@pytest.mark.parametrize("scheme", [FlexLora, HetLora, FsLora, Flora, FedSvd, EcoLora, FedSrd])
def test_an_adapter_without_a_is_refused(scheme: Any) -> None:
    half = LAYOUT.model_copy(update={"factors": tuple(one for one in LAYOUT.factors if one.kind == "B")})
    frozen = ADAPTER.model_copy(update={"layout": half, "initial": np.zeros(half.size, np.float32)})
    with pytest.raises(ConfigError, match="needs? an? adapter that trains A and B"):
        scheme().start(fleet_of([1e9], [1]), frozen)


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        (EcoLora, {"steepness_a": 2.0}, "set error_feedback = false"),
        (EcoLora, {"keep": 0.1, "least_keep": 0.2}, "least_keep = 0.2 is above keep = 0.1"),
        (FedSrd, {"error_feedback": True}, "what was left out belongs to the old ones"),
    ],
)
def test_options_that_do_not_go_together_are_refused(scheme: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        scheme.model_validate(changes)
