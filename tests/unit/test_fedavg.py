"""What federated averaging does with factors: apart, in turns, or as products."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.adapter import Adapter
from testbed.core.errors import ConfigError
from testbed.core.orders import Work
from testbed.engine.checks import check_scheme
from testbed.engine.config import ExperimentSpec
from testbed.lora.refactor import places
from testbed.schemes.fedavg import FedAvg
from tests.benches import small_bench
from tests.in_process import InProcess
from tests.unit.test_lora_refactor import full_mean, layout_of, products

NUM_SAMPLES = {"node-00": 10, "node-01": 30, "node-02": 25}
LAYOUT = layout_of([(14, 12), (6, 20)], 3)
ADAPTER = Adapter(layout=LAYOUT, initial=np.random.default_rng(1).standard_normal(LAYOUT.size).astype(np.float32))


def learn(name: str, index: int, start: np.ndarray, work: Work) -> tuple[np.ndarray, int, float]:
    """A step at random on the factors that are trained."""
    rng = np.random.default_rng([int(name[-1]), index])
    step = np.where(places(LAYOUT, work.factors), rng.standard_normal(LAYOUT.size), 0.0)
    return (start + step).astype(np.float32), 1, 0.0


def local(bench: InProcess, index: int) -> dict[str, np.ndarray]:
    """Where the nodes came to in a round."""
    return {
        name: learn(name, index, bench.published[index - 1], work)[0] for name, work in bench.works[index - 1].items()
    }


def test_products_are_averaged_and_brought_back_to_the_rank() -> None:
    bench = InProcess(small_bench(), NUM_SAMPLES, learn, [ADAPTER.initial])
    scheme = FedAvg(link="ideal", aggregation="product")
    states = bench.run(scheme, ADAPTER, 3)
    for index in (1, 2, 3):
        means = full_mean(LAYOUT, local(bench, index), {name: float(count) for name, count in NUM_SAMPLES.items()})
        lost = whole = 0.0
        for mean, ours in zip(means, products(LAYOUT, bench.published[index]), strict=True):
            u, s, vt = np.linalg.svd(mean)
            np.testing.assert_allclose(ours, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5 * s[0])
            lost, whole = lost + float(np.sum(s[3:] ** 2)), whole + float(np.sum(s**2))
        left_out = float(scheme.report(states[index])["left_out"])
        assert left_out == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
        assert 0.01 < left_out < 1


def test_turns_average_exactly_and_both_factors_learn() -> None:
    bench = InProcess(small_bench(), NUM_SAMPLES, learn, [ADAPTER.initial])
    bench.run(FedAvg(link="ideal", aggregation="alternate"), ADAPTER, 4)
    for index, kind in ((1, "B"), (2, "A"), (3, "B"), (4, "A")):
        assert {work.factors for work in bench.works[index - 1].values()} == {kind}
        changed = bench.published[index] != bench.published[index - 1]
        np.testing.assert_array_equal(changed, places(LAYOUT, kind))  # type: ignore[arg-type]
        means = full_mean(LAYOUT, local(bench, index), {name: float(count) for name, count in NUM_SAMPLES.items()})
        for mean, ours in zip(means, products(LAYOUT, bench.published[index]), strict=True):
            np.testing.assert_allclose(ours, mean, atol=1e-5)


def test_the_pull_is_ordered_of_every_node() -> None:
    bench = InProcess(small_bench(), NUM_SAMPLES, learn, [ADAPTER.initial])
    bench.run(FedAvg(link="ideal", proximal=0.3), ADAPTER, 1)
    assert {name: work.proximal for name, work in bench.works[0].items()} == dict.fromkeys(NUM_SAMPLES, 0.3)


@pytest.mark.parametrize("aggregation", ["alternate", "product"])
def test_modes_keep_limits_and_replay(aggregation: str) -> None:
    experiment = ExperimentSpec.model_validate({"name": "check", "rounds": 3, "scheme": {"name": "fedavg"}})
    check_scheme(FedAvg(aggregation=aggregation), experiment, small_bench(), ADAPTER)  # type: ignore[arg-type]


@pytest.mark.parametrize("aggregation", ["alternate", "product"])
def test_an_adapter_without_a_is_refused(aggregation: str) -> None:
    half = layout_of([(14, 12)], 3, kinds="B")
    bench = InProcess(small_bench(), NUM_SAMPLES, learn, [np.zeros(half.size, np.float32)])
    with pytest.raises(ConfigError, match="needs an adapter that trains A and B") as caught:
        bench.run(FedAvg(aggregation=aggregation), Adapter(layout=half, initial=np.zeros(half.size, np.float32)), 1)  # type: ignore[arg-type]
    assert caught.value.key == "scheme.aggregation"
