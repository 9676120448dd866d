"""From soundings and shares to digital uplinks, and what their packets attain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.core.fleet import Fleet
from testbed.core.orders import Digital, Ideal, Payload, Sounding
from testbed.engine.config import load_experiment
from testbed.lora import parcel
from testbed.phy.coding_schemes import SCHEMES, scheme_named
from testbed.phy.subcarriers import GUARD, MIN_SHARE, allocate, max_nodes
from testbed.problems.digital_order import (
    UplinkSpec,
    audible,
    digital_uplinks,
    edge_snr,
    loudness_hz,
    num_waves,
    share_limits,
    update_bits,
)
from tests.benches import small_bench
from tests.digital_bench import BAND_HZ, NOISE_W, fleet_of, lora_layout

FLEET = fleet_of([1e9, 1e9, 1e9], [1, 2, 3])
CHANNEL = np.array([[1e-4, 2e-4j, 0.0], [3e-4, 0.0, 0.0]])
ZEROS = np.zeros(3)
SOUNDING = Sounding(FLEET.names, CHANNEL, NOISE_W, FLEET.array.home_m, ZEROS, ZEROS, ZEROS)
SHARES_HZ = {"n0": 7e5, "n1": 3e5}


def test_the_rate_is_that_of_the_problems() -> None:
    gamma_hz = loudness_hz(FLEET, SOUNDING, ["n0", "n1"], 2.0)
    np.testing.assert_allclose(gamma_hz, 0.1 * np.array([1e-7, 4e-8]) * BAND_HZ / NOISE_W / 2.0)
    uplinks = digital_uplinks(
        FLEET, SOUNDING, {"n0": 1.0, "n1": 2.0}, Payload(), UplinkSpec(link="ideal"), shares_hz=SHARES_HZ
    )
    for name, loud in zip(SHARES_HZ, gamma_hz, strict=True):
        uplink = uplinks[name]
        assert isinstance(uplink, Ideal)
        assert uplink.rate_bit_s == pytest.approx(SHARES_HZ[name] * np.log2(1 + loud / SHARES_HZ[name]), rel=1e-12)


def test_who_is_not_heard_takes_no_part() -> None:
    names, gamma_hz = audible(FLEET, SOUNDING)
    assert names == ["n0", "n1"]
    assert (gamma_hz > 0).all()


def test_packets_listen_with_maximum_ratio_combining_in_their_share() -> None:
    uplinks = digital_uplinks(FLEET, SOUNDING, {"n0": 1.0, "n1": 2.0}, Payload(), UplinkSpec(), shares_hz=SHARES_HZ)
    first = uplinks["n0"]
    assert isinstance(first, Digital)
    assert abs(np.vdot(first.combiner, CHANNEL[:, 0])) ** 2 == pytest.approx(1e-7)
    assert first.snr == pytest.approx(0.1 * 1e-7 / (NOISE_W * 0.7))


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "sign"])
@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_bits_of_a_choice_are_its_share_of_the_values_and_the_head(kind: str, keep: float) -> None:
    layout = lora_layout(4, width=64)
    payload = Payload(kind, keep, choice="pairs")  # type: ignore[arg-type]
    values_bit, header_bit = update_bits(layout, payload)
    update = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    length = 8 * len(parcel.encode(layout, payload, update, update, seed=0))
    assert length <= keep * values_bit + header_bit
    assert length == pytest.approx(keep * values_bit + header_bit, abs=40)


WAVEFORM = WaveformSpec(num_subcarriers=256, num_active=192)
RATE_HZ = BAND_HZ * 256 / 192
SPACING_HZ = RATE_HZ / 256


def heard(num_nodes: int, gain: float) -> tuple[Fleet, Sounding]:
    """Nodes that are heard alike, on a band of 192 subcarriers."""
    fleet = replace(fleet_of([1e9] * num_nodes, [1] * num_nodes), subcarrier_hz=SPACING_HZ)
    zeros = np.zeros(num_nodes)
    channel = np.full((2, num_nodes), np.sqrt(gain / 2), complex)
    return fleet, Sounding(fleet.names, channel, NOISE_W, fleet.array.home_m, zeros, zeros, zeros)


def test_error_free_links_divide_the_band_at_will() -> None:
    limits = share_limits(FLEET, SOUNDING, ["n0", "n1"], UplinkSpec(link="ideal"))
    assert limits.total_hz == BAND_HZ
    np.testing.assert_array_equal(limits.least_hz, 0)
    np.testing.assert_array_equal(limits.most_hz, np.inf)


@pytest.mark.parametrize("num_nodes", [1, 4, 10, 11, 23])
def test_shares_within_the_limits_are_what_the_modem_gives(num_nodes: int) -> None:
    fleet, sounding = heard(num_nodes, 1e-6)
    limits = share_limits(fleet, sounding, list(fleet.names), UplinkSpec())
    waves = num_waves(fleet, num_nodes)
    assert waves == -(-num_nodes // max_nodes(WAVEFORM))
    assert np.all(limits.least_hz.sum() <= limits.total_hz)
    # every wave has the band to itself: its shares grow
    wave = list(fleet.names)[::waves]
    spread = np.random.default_rng(1).dirichlet(np.full(len(wave), 0.3))
    free_hz = limits.total_hz - waves * limits.least_hz[0] * len(wave)
    shares_hz = waves * limits.least_hz[0] + free_hz * spread
    given = allocate(dict(zip(wave, shares_hz, strict=True)), WAVEFORM, RATE_HZ)
    counts = np.array([np.count_nonzero(one) for one in given.values()])
    assert np.all(np.abs(counts - shares_hz / SPACING_HZ) < 1.0)
    assert counts.sum() + GUARD * (len(wave) - 1) == pytest.approx(WAVEFORM.num_active, abs=1)


def test_no_share_is_wider_than_its_code_bears() -> None:
    fleet, sounding = heard(3, 1e-8)
    names = list(fleet.names)
    for spec in (UplinkSpec(), UplinkSpec(coding="bpsk-golay")):
        limits = share_limits(fleet, sounding, names, spec)
        snr = loudness_hz(fleet, sounding, names) / limits.most_hz
        np.testing.assert_allclose(snr, edge_snr(spec))
    # the scheme that makes most of a power: no other carries more bits at its own edge
    best = [one for one in SCHEMES if 1.0 < edge_snr(UplinkSpec()) / one.threshold_snr < 1.2]
    assert max(one.bits_per_symbol / one.threshold_snr for one in SCHEMES) == pytest.approx(
        best[0].bits_per_symbol / best[0].threshold_snr
    )
    assert edge_snr(UplinkSpec(coding="bpsk-golay")) > scheme_named("bpsk-golay").threshold_snr
    # who is hardly heard has the narrowest share
    faint, faintly = heard(3, 1e-13)
    np.testing.assert_allclose(share_limits(faint, faintly, names, UplinkSpec()).most_hz, MIN_SHARE * SPACING_HZ)


def test_a_benchs_fleet_knows_its_subcarriers() -> None:
    bench = small_bench(sample_rate_hz=1e6, waveform={"num_subcarriers": 512, "num_active": 384})
    fleet = Fleet.of(bench, dict.fromkeys(bench.node_names, 1))
    assert fleet.subcarrier_hz == pytest.approx(1e6 / 512)
    assert round(fleet.bandwidth_hz / fleet.subcarrier_hz) == 384
    assert num_waves(fleet, 3) == 1
    assert num_waves(fleet, max_nodes(bench.waveform)) == 1
    assert num_waves(fleet, max_nodes(bench.waveform) + 1) == 2


def test_the_cell_leaves_its_ten_boards_room_to_differ() -> None:
    bench = load_experiment("jcpba-packets").bench
    fleet = Fleet.of(bench, dict.fromkeys(bench.node_names, 1))
    zeros, count = np.zeros(10), len(fleet.names)
    sounding = Sounding(fleet.names, np.full((4, count), 1e-4), NOISE_W, fleet.array.home_m, zeros, zeros, zeros)
    limits = share_limits(fleet, sounding, list(fleet.names), UplinkSpec())
    assert num_waves(fleet, count) == 1
    # what nine guards leave of 768 subcarriers, and twelve for everybody
    assert limits.total_hz == pytest.approx((768 - 72) * 2e5 / 1024)
    assert limits.least_hz.sum() < 0.2 * limits.total_hz
