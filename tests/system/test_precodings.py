"""What every precoding of `ota-fedavg` brings home, through frames, room and receiver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core.fleet import Fleet
from testbed.core.orders import Collect, LocalResult, Sound, Sounding, Trained
from testbed.schemes.ota_fedavg import OtaFedAvg
from tests.benches import small_bench
from tests.loopback import Loopback, loopback

NUM_VALUES = 40_000
SPREADS = (1.0, 2.0, 0.5)
ROWS = {"node-00": 10, "node-01": 30, "node-02": 60}
SELECTIVE = {"model": "isotropic", "line_of_sight": False, "selective": True, "delay_spread_s": 300e-9}


def updates(seed: int = 5) -> dict[str, np.ndarray]:
    """Independent updates of different spread around different means."""
    generator = np.random.default_rng(seed)
    return {
        name: (0.1 * index + spread * generator.standard_normal(NUM_VALUES)).astype(np.float32)
        for index, (name, spread) in enumerate(zip(ROWS, SPREADS, strict=True))
    }


def planned(bench: Loopback, **options: Any) -> Collect:
    """The order that the scheme makes of a sounding and of what the nodes report."""
    scheme = OtaFedAvg(num_pilots=16, **options)
    sounding = bench.answer(Sound(num_pilots=16, per_subcarrier=scheme.per_subcarrier))
    assert isinstance(sounding, Sounding)
    results = {
        name: LocalResult(0, 0, 0, ROWS[name], 1, float(update.mean()), float(update.std()), 0, 0)
        for name, update in bench.updates.items()
    }
    order = scheme._plan(Fleet.of(bench.bench, ROWS), sounding, Trained(results), NUM_VALUES)
    assert order is not None
    return order


def error_of(mean: np.ndarray, truth: np.ndarray) -> float:
    """Squared error relative to the truth's power."""
    error = mean.astype(np.float64) - truth
    return float(error @ error) / float(truth @ truth)


def weighted(bench: Loopback, weights: dict[str, float]) -> np.ndarray:
    total = sum(weights.values())
    return np.asarray(sum(weight * bench.updates[name].astype(np.float64) for name, weight in weights.items()) / total)


@pytest.mark.parametrize("precoding", ["uniform", "cotaf"])
def test_precodings_without_bias_bring_the_mean_by_rows(tmp_path: Path, precoding: str) -> None:
    with loopback(small_bench(world={"excess_loss_db": 30.0}), updates(), tmp_path) as bench:
        order = planned(bench, precoding=precoding)
        collected = bench.collect(order)
        truth = weighted(bench, dict(ROWS))
        assert order.expected_mse is not None
        expected = order.expected_mse / float(truth @ truth)
        assert error_of(collected.mean, truth) == pytest.approx(expected, rel=0.15)
        assert collected.coherence == pytest.approx(1.0, abs=0.02)


def test_cotaf_sends_the_largest_update_at_its_limit_and_the_others_below(tmp_path: Path) -> None:
    with loopback(small_bench(), updates(), tmp_path) as bench:
        order = planned(bench, precoding="cotaf")
        assert len({uplink.std for uplink in order.uplinks.values()}) == 1
        assert {uplink.mean for uplink in order.uplinks.values()} == {0.0}
        assert max(abs(uplink.precoder) ** 2 for uplink in order.uplinks.values()) == pytest.approx(0.01)


def test_aligned_phases_bring_the_mean_by_loudness(tmp_path: Path) -> None:
    with loopback(small_bench(world={"excess_loss_db": 30.0}), updates(), tmp_path) as bench:
        order = planned(bench, precoding="phase")
        for uplink in order.uplinks.values():
            assert abs(uplink.precoder) ** 2 == pytest.approx(0.01)
        collected = bench.collect(order)
        arrived = weighted(bench, {name: uplink.weight for name, uplink in order.uplinks.items()})
        assert error_of(collected.mean, arrived) < 1e-3
        # which is not the mean by rows
        assert error_of(collected.mean, weighted(bench, dict(ROWS))) > 0.05


def test_few_bits_of_phase_cost_what_rounding_costs(tmp_path: Path) -> None:
    with loopback(small_bench(world={"excess_loss_db": 0.0}), updates(), tmp_path) as bench:
        truth = weighted(bench, dict(ROWS))
        errors = [error_of(bench.collect(planned(bench, phase_bits=bits)).mean, truth) for bits in (3, 5, 7)]
        # a phase error uniform in +- pi / 2^bits: its square falls sixteenfold with two bits more
        assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_in_a_selective_room_every_subcarrier_is_inverted(tmp_path: Path) -> None:
    with loopback(small_bench(world={**SELECTIVE, "excess_loss_db": 20.0}), updates(), tmp_path, seed=2) as bench:
        truth = weighted(bench, dict(ROWS))
        order = planned(bench, per_subcarrier=True)
        for uplink in order.uplinks.values():
            assert np.shape(uplink.precoder) == (192,)
        assert order.expected_mse is not None
        expected = order.expected_mse / float(truth @ truth)
        assert error_of(bench.collect(order).mean, truth) == pytest.approx(expected, rel=0.25)
        assert error_of(bench.collect(planned(bench)).mean, truth) > 0.1


def test_truncation_leaves_out_deep_fades_and_the_receiver_knows(tmp_path: Path) -> None:
    with loopback(small_bench(world={**SELECTIVE, "excess_loss_db": 20.0}), updates(), tmp_path, seed=2) as bench:
        order = planned(bench, per_subcarrier=True, precoding="truncated", threshold=0.3)
        assert order.share is not None
        precoders = {name: np.asarray(uplink.precoder) for name, uplink in order.uplinks.items()}
        # [num_active]: rows of those that send there, over the rows of all
        share = sum(ROWS[name] * (precoder != 0) for name, precoder in precoders.items()) / 100
        np.testing.assert_allclose(order.share, share, rtol=1e-6)
        assert 0.3 < np.mean(share) < 0.95
        mean = bench.collect(order).mean
        # on every subcarrier the mean of those that send there
        carrier = np.resize(np.repeat(np.arange(192), 2), NUM_VALUES)
        sums = np.zeros(NUM_VALUES)
        for name, precoder in precoders.items():
            uplink = order.uplinks[name]
            sums += ROWS[name] * (precoder[carrier] != 0) * (bench.updates[name] - uplink.mean)
        heard = share[carrier] > 0
        expected = (
            sums[heard] / (100 * share[carrier][heard])
            + sum(ROWS[name] * order.uplinks[name].mean for name in precoders) / 100
        )
        assert error_of(mean[heard], expected) < 0.01


def test_clipping_costs_its_distortion_and_no_amplitude(tmp_path: Path) -> None:
    with loopback(small_bench(world={"excess_loss_db": 0.0}), updates(), tmp_path) as bench:
        truth = weighted(bench, dict(ROWS))
        centred = truth - truth.mean()
        for clip_db, floor in ((3.0, 0.1), (8.0, 1e-3)):
            mean = bench.collect(planned(bench, clip_db=clip_db)).mean
            gain = float(mean @ centred) / float(truth @ centred)
            assert gain == pytest.approx(1.0, abs=0.02)
            assert error_of(mean, truth) < floor
