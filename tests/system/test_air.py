"""Physics of the whole chain: orders through engine, nodes, radios and room, against closed forms."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri

from nodes.uplink import Uplink
from sim_backend.air import AirPort
from sim_backend.transmit_chain import Crystal
from sim_backend.world import World
from testbed.core import messages
from testbed.core.bench import BenchSpec
from testbed.core.errors import BenchError, DeviceError
from testbed.core.orders import Collect, Collected, Digital, Sound, Sounding
from testbed.core.units import from_db, to_db
from testbed.phy import coherence, papr, voting
from testbed.phy.coding_schemes import choose, scheme_named
from tests.air_orders import (
    Facts,
    air_bench,
    alike_updates,
    circle_m,
    floors,
    forced,
    group_errors,
    noise_of,
    quiet_bench,
    seen,
    sounded_error,
    true_channel,
    updates_of,
    vote_error,
    votes,
    weighted,
)
from tests.loopback import Loopback, loopback

# --- the error that noise leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_antennas", [1, 2, 4, 8])
@pytest.mark.parametrize("num_nodes", [1, 2, 5, 20])
def test_the_error_agrees_with_the_closed_form_at_every_decibel(num_nodes, num_antennas, tmp_path):
    # 60 000 values: a standard error of 0.6 %
    for loss_db in range(30, 41):
        bench = air_bench(num_nodes, num_antennas, excess_loss_db=loss_db)
        seed = 1000 * num_nodes + 100 * num_antennas + loss_db
        ratio, aligned = sounded_error(bench, 60_000, seed, tmp_path)
        assert ratio == pytest.approx(1.0, abs=0.03), f"at {loss_db} dB"
        assert aligned == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("num_nodes", "num_antennas", "loss_db"), [(1, 1, 30), (2, 8, 40), (5, 4, 35), (20, 2, 32)])
def test_samples_leave_the_same_error(num_nodes, num_antennas, loss_db, tmp_path):
    bench = air_bench(num_nodes, num_antennas, level="samples", excess_loss_db=loss_db)
    ratio, aligned = sounded_error(bench, 60_000, loss_db, tmp_path)
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert aligned == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("level", ["samples", "symbols"])
@pytest.mark.parametrize(("num_nodes", "num_antennas"), [(2, 8), (5, 2), (20, 4)])
def test_antennas_that_are_combined_by_the_controller_leave_the_same_error(num_nodes, num_antennas, level, tmp_path):
    bench = air_bench(num_nodes, num_antennas, level=level, excess_loss_db=36)
    ratio, aligned = sounded_error(bench, 60_000, 7, tmp_path, each_antenna=True)
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert aligned == pytest.approx(1.0, abs=0.05)


def off_by(ppm: float, seed: int) -> dict[str, float]:
    """Impairments that put the first node's carrier off by so many parts per million."""
    drawn = Crystal.draw(air_bench(1, 1, impairments={"oscillator_ppm": 1.0}), 0, seed).offset * 1e6
    assert drawn * ppm >= 0
    return {"oscillator_ppm": ppm / drawn}


def seed_of(ppm: float) -> int:
    """A seed whose first node's oscillator is off in that direction."""
    crystals = [Crystal.draw(air_bench(1, 1, impairments={"oscillator_ppm": 1.0}), 0, seed) for seed in range(20)]
    return next(seed for seed, crystal in enumerate(crystals) if crystal.offset * ppm >= 0)


@pytest.mark.parametrize("ppm", [-50.0, -20.0, 5.0, 50.0])
def test_a_carrier_tens_of_ppm_off_is_sounded_taken_out_and_followed(ppm, tmp_path):
    # one node: every loss of coherence is common, and the receiver may follow it. 50 ppm are 122.5 kHz, and a clock
    # that slips by 2.6 samples in the 160 blocks. Pilots are few: with 16 blocks the slip while they last blurs the
    # channel by 2.5 %
    bench = air_bench(1, 4, level="samples", excess_loss_db=45, impairments=off_by(ppm, seed_of(ppm)))
    ratio, aligned = sounded_error(bench, 60_000, seed_of(ppm), tmp_path, num_pilots=4)
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert aligned == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("ppm", [-50.0, 0.0, 50.0])
def test_symbols_of_qpsk_err_as_theory_says_whatever_the_carrier(ppm, tmp_path):
    # an update of +-1 is QPSK. 200 000 values: the share of errors is known to 1.5 %, 0.03 dB
    num_values, seed = 200_000, seed_of(ppm)
    bench = air_bench(1, 2, level="samples", excess_loss_db=30, impairments=off_by(ppm, seed))
    updates = {"node-00": np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), num_values)}
    one = np.ones(1)
    with loopback(bench, updates, tmp_path, seed) as air:
        sounding = air.answer(Sound(num_pilots=4))
        assert isinstance(sounding, Sounding)
        loudest = Facts(("node-00",), one, 0 * one, one, one)
        power_w = forced(sounding.channel, loudest, noise_w=noise_of(bench), num_values=num_values).expected_mse
        assert power_w is not None
        # 1 W over this leaves a variance of 0.25 in every value: errors with Q(2) = 2.3 %
        facts = Facts(("node-00",), one, 0 * one, one, one * power_w / (0.25 * num_values))
        order = forced(sounding.channel, facts, noise_w=noise_of(bench), num_values=num_values, sounding=sounding)
        collected = air.collect(order)
    wrong = np.sign(collected.mean) != updates["node-00"]
    assert order.expected_mse is not None
    snr_db = -to_db(order.expected_mse / num_values)
    assert -2 * to_db(1 / float(ndtri(1 - wrong.mean()))) == pytest.approx(snr_db, abs=0.1)
    # two values on a symbol err independently
    pairs = wrong.reshape(-1, 2).any(axis=1).mean()
    assert pairs == pytest.approx(1 - (1 - wrong.mean()) ** 2, rel=0.03)
    evm2 = float(np.mean((collected.mean - updates["node-00"]) ** 2))
    assert evm2 == pytest.approx(order.expected_mse / num_values, rel=0.03)


# --- the floor that impairments leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_without_impairments_there_is_no_floor(level, tmp_path):
    assert floors(quiet_bench(5, level), 1536, 1, 1, tmp_path)[0] < 1e-10


@pytest.mark.parametrize(("num_nodes", "trials", "within"), [(2, 400, 0.25), (20, 80, 0.12)])
def test_jitter_leaves_the_phase_errors_over_the_band(num_nodes, trials, within, tmp_path):
    # a chi-square of trials (K - 1) freedoms: standard errors of 7 % and 3.6 %
    bench = quiet_bench(num_nodes, radio={"start_jitter_s": 2e-8})
    expected = seen(coherence.phase_std_of_jitter(2e-8, bench.waveform, bench.sample_rate_hz), num_nodes)
    assert floors(bench, 384, trials, 2, tmp_path).mean() == pytest.approx(expected, rel=within)


@pytest.mark.parametrize("level", ["samples", "symbols"])
@pytest.mark.parametrize("degrees", [3.0, 12.0])
def test_slow_phase_noise_leaves_its_misalignment(degrees, level, tmp_path):
    # it stands still within a burst and is drawn anew with each; 19 * 80 freedoms: a standard error of 3.6 %
    bench = quiet_bench(20, level, impairments={"phase_noise_deg": degrees, "phase_noise_hz": 0.1})
    found = floors(bench, 384, 80, 3, tmp_path).mean()
    assert found == pytest.approx(seen(math.radians(degrees), 20), rel=0.12)


def test_fast_phase_noise_leaves_its_misalignment_and_what_it_scatters(tmp_path):
    # many times faster than a block, so that nothing of it is common and nothing can be followed: of |exp(j phi) - 1|^2
    # the mean (1 - exp(-s^2 / 2))^2 stays on the subcarrier and the rest spreads evenly over all, active or not
    bench = quiet_bench(1, impairments={"phase_noise_deg": 8.0, "phase_noise_hz": 1e6})
    shrunk = 1 - float(coherence.mean_rotation(math.radians(8.0)))
    scattered = 1 - float(coherence.mean_rotation(math.radians(8.0))) ** 2
    expected = shrunk**2 + scattered * bench.waveform.num_active / bench.waveform.num_subcarriers
    assert floors(bench, 38_400, 2, 4, tmp_path).mean() == pytest.approx(expected, rel=0.1)


def test_a_carrier_offset_that_nobody_takes_out_leaves_the_phase_it_builds_up(tmp_path):
    # 20 nodes off by 20 Hz (standard deviation), an hour of drift aside: a burst of 5 blocks in the first
    # milliseconds of a run; every seed draws new crystals
    offset_hz, found = 20.0, []
    for seed in range(40):
        bench = quiet_bench(20, radio={"shared_clock": True}, impairments={"oscillator_ppm": offset_hz / 2.45e9 * 1e6})
        found.append(floors(bench, 384, 1, seed, tmp_path)[0])
    # the burst begins 1 ms after the run; its one data block is its last of four, 64 us each
    expected = seen(coherence.phase_std_of_offset(offset_hz, 1e-3 + 3.6 * 64e-6), 20)
    assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_sounded_offsets_leave_the_phase_that_their_estimates_allow(tmp_path):
    # nearly alike channels of 20 nodes; 40 soundings and sums: 760 freedoms, a standard error of 5 %
    bench = air_bench(
        20,
        1,
        level="samples",
        positions_m=circle_m(20),
        line_of_sight=True,
        rician_k_db=50.0,
        excess_loss_db=27,
        impairments={"oscillator_ppm": 2.0, "sampling_offset": False},
    )
    updates = alike_updates(bench, 1536, 14)
    facts = Facts.of(bench, updates, alike=True)
    truth, noise_w = weighted(facts, updates), noise_of(bench)
    power = 1536 * float(np.sum((facts.std / 20) ** 2))
    snr = float(facts.power_w[0] * World(bench, 14).path_gain("node-00") / noise_w)
    found, expected = [], []
    with loopback(bench, updates, tmp_path, 14) as air:
        air.live.audit = False
        for _ in range(40):
            sounding = air.answer(Sound(num_pilots=4))
            assert isinstance(sounding, Sounding)
            order = forced(sounding.channel, facts, noise_w=noise_w, num_values=1536, sounding=sounding)
            elapsed_s = air.live.now_s() + 1e-3 + 5 * 64e-6 - sounding.heard_s
            collected = air.collect(order)
            assert order.expected_mse is not None
            found.append((float(np.sum((collected.mean - truth) ** 2)) - order.expected_mse) / power)
            bound_hz = coherence.offset_std_hz(4, snr, bench.waveform, bench.sample_rate_hz)
            turned = [seen(coherence.phase_std_of_offset(bound_hz, elapsed), 20) for elapsed in elapsed_s]
            # what four blocks of pilots leave in amplitude and phase of each node, the common phase aside
            expected.append(np.mean(turned) + (1 - 0.5 / 20) / (4 * 192 * snr))
    # the offset comes from the turn between neighbouring blocks, which needs 1 / 0.9 of the bound
    assert 0.9 < np.mean(found) / np.mean(expected) < 1.3


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_converter_leaves_its_rounding_and_clipping(bits, tmp_path):
    # white over all subcarriers, of which the active ones count; the gain control leaves 12 dB
    bench = quiet_bench(1, impairments={"adc_bits": bits, "agc": "block"})
    share = bench.waveform.num_active / bench.waveform.num_subcarriers
    expected = coherence.quantisation_noise(bits, from_db(12.0)) * share
    assert floors(bench, 38_400, 2, 5, tmp_path).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("clip_db", [3.0, 5.0])
def test_clipped_peaks_leave_shrinkage_and_distortion(clip_db, tmp_path):
    gain, distortion = papr.clipping(from_db(clip_db))
    found = floors(quiet_bench(1), 38_400, 1, 6, tmp_path, clip=from_db(clip_db))[0]
    # what falls beside the band does not count: the distortion is nearly, not quite, white
    share = 192 / 256
    assert (1 - gain) ** 2 + distortion * share * 0.9 < found < (1 - gain) ** 2 + distortion


@pytest.mark.parametrize("side", ["tx", "rx"])
@pytest.mark.parametrize(("gain_db", "phase_deg"), [(1.0, 0.0), (0.0, 5.0), (0.7, -4.0)])
def test_unequal_branches_leave_their_image(side, gain_db, phase_deg, tmp_path):
    gain, phase_rad = math.sqrt(from_db(gain_db)), math.radians(phase_deg)
    bench = quiet_bench(1, impairments={f"{side}_iq_gain_db": gain_db, f"{side}_iq_phase_deg": phase_deg})
    # |mu|, whose phase the pilots show, and the image next to it
    wanted = 0.5 * math.sqrt(1 + 2 * gain * math.cos(phase_rad) + gain**2)
    expected = (wanted - 1) ** 2 + wanted**2 / coherence.image_rejection(gain, phase_rad)
    assert floors(bench, 38_400, 1, 7, tmp_path)[0] == pytest.approx(expected, rel=0.05)


QUIET = 1e-9


@pytest.mark.parametrize(
    ("num_nodes", "radio", "impairments"),
    [
        (5, {"start_jitter_s": 2e-8}, {}),
        (5, {}, {"start_offset_s": 2e-8}),
        (5, {"shared_clock": True}, {"oscillator_ppm": 0.01, "sampling_offset": False}),
        (5, {"shared_clock": True}, {"drift_ppm_s": 10.0, "sampling_offset": False}),
        (5, {}, {"phase_noise_deg": 2.0}),
        (5, {}, {"phase_jumps": "tune"}),
        (5, {}, {"phase_jumps": "burst"}),
        (1, {}, {"tx_iq_gain_db": 0.5}),
        (1, {}, {"tx_iq_phase_deg": 2.0}),
        (1, {}, {"dac_bits": 6}),
        (1, {}, {"pa_saturation_dbm": 15.0}),
        (1, {}, {"fir_loss_db": 1.0}),
        (1, {}, {"rx_iq_gain_db": 0.5}),
        (1, {}, {"rx_iq_phase_deg": 2.0}),
        (1, {}, {"adc_bits": 6, "agc": "block"}),
        (1, {}, {"adc_bits": 12, "adc_full_scale_dbm": -50.0}),
        (1, {}, {"stale_samples": 100}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_every_impairment_does_something_by_itself(num_nodes, radio, impairments, tmp_path):
    assert floors(quiet_bench(num_nodes), 1536, 1, 8, tmp_path)[0] < QUIET
    assert floors(quiet_bench(num_nodes, radio=radio, impairments=impairments), 1536, 1, 8, tmp_path)[0] > 1e-4


@pytest.mark.parametrize("key", ["tx_dc_db", "rx_dc_dbm"])
def test_a_leak_at_the_carrier_reaches_subcarriers_where_carriers_differ(key, tmp_path):
    leak = {"tx_dc_db": -10.0, "rx_dc_dbm": -60.0}[key]
    offset = {"oscillator_ppm": 1.0, "sampling_offset": False}
    plain = quiet_bench(1, impairments={key: leak})
    assert floors(plain, 1536, 1, 9, tmp_path)[0] < QUIET  # on the empty subcarrier in the middle
    nodes = 1 if key == "rx_dc_dbm" else 2
    radio = {"shared_clock": True}
    turning = floors(quiet_bench(nodes, radio=radio, impairments=offset), 1536, 1, 9, tmp_path)[0]
    leaking = floors(quiet_bench(nodes, radio=radio, impairments={**offset, key: leak}), 1536, 1, 9, tmp_path)[0]
    assert abs(leaking - turning) > 1e-4


def test_a_clock_that_is_off_slides_out_of_a_long_burst(tmp_path):
    # 100 blocks of 64 us at tens of ppm: tenths of a sample
    offset = {"oscillator_ppm": 20.0}
    slid = floors(quiet_bench(2, impairments={**offset}), 38_400, 1, 10, tmp_path)[0]
    held = floors(quiet_bench(2, impairments={**offset, "sampling_offset": False}), 38_400, 1, 10, tmp_path)[0]
    assert abs(slid - held) > 1e-3


def test_the_gain_step_that_turns_the_phase_shows_in_a_sounding(tmp_path):
    channels = []
    for flip_db in (None, 10.0):
        bench = quiet_bench(2, impairments={"rx_gain_db": 20.0, "phase_flip_gain_db": flip_db})
        with loopback(bench, alike_updates(bench, 384, 1), tmp_path, 11) as air:
            sounding = air.answer(Sound())
            assert isinstance(sounding, Sounding)
            channels.append(sounding.channel)
    np.testing.assert_allclose(channels[1], -channels[0], rtol=1e-4)


# --- symbols against samples ----------------------------------------------------------------------------------------


def test_symbols_and_samples_err_alike_in_mean_and_variance(tmp_path):
    # 180 000 trials each; standard error of a variance sqrt((2 + 12/20) / 180 000) = 0.4 %
    symbols, samples = (
        np.concatenate(
            [
                group_errors(air_bench(5, 4, level=level, excess_loss_db=35), 900_000, 20, seed, tmp_path)
                for seed in range(4)
            ]
        )
        for level in ("symbols", "samples")
    )
    assert symbols.mean() == pytest.approx(samples.mean(), rel=0.03)
    assert symbols.var() == pytest.approx(samples.var(), rel=0.03)
    # and as a chi-square of 20 freedoms
    assert symbols.mean() == pytest.approx(1.0, abs=0.03)
    assert symbols.var() == pytest.approx(2 / 20, rel=0.03)


def test_symbols_and_samples_err_alike_under_slow_phase_noise(tmp_path):
    # radios draw from seed, node and instant, so both levels meet the same phases burst by burst: 60 bursts suffice
    found = []
    for level in ("symbols", "samples"):
        bench = quiet_bench(5, level, impairments={"phase_noise_deg": 6.0, "phase_noise_hz": 0.1})
        found.append(floors(bench, 1536, 60, 12, tmp_path))
    assert found[0].mean() == pytest.approx(found[1].mean(), rel=0.03)
    assert found[0].var() == pytest.approx(found[1].var(), rel=0.03)


def test_symbols_and_samples_err_alike_under_jitter(tmp_path):
    # both levels begin each burst at the same instant, hence draw the same delays
    found = []
    for level in ("symbols", "samples"):
        bench = quiet_bench(3, level, radio={"start_jitter_s": 2e-8})
        updates = alike_updates(bench, 1536, 13)
        facts = Facts.of(bench, updates, alike=True)
        channel = true_channel(bench, 13, facts.names)
        order = forced(channel, facts, noise_w=1e-30, num_values=1536)
        errors = []
        with loopback(bench, updates, tmp_path, 13) as air:
            air.live.audit = False
            for burst in range(60):
                clock = air.live.devices.clock
                begin_s = (burst + 1) * 0.1
                # `Air.begin_s` adds a millisecond and the guard
                rate_hz = bench.waveform.elements_per_second(bench.sample_rate_hz)
                clock.set(begin_s - 1e-3 - math.ceil(6 * 2e-8 * rate_hz) / rate_hz)
                errors.append(float(np.sum((air.collect(order).mean - weighted(facts, updates)) ** 2)))
        found.append(np.array(errors))
    assert found[0].mean() == pytest.approx(found[1].mean(), rel=0.03)
    assert found[0].var() == pytest.approx(found[1].var(), rel=0.03)


# --- votes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_plus", "num_minus", "snr", "num_antennas"),
    [(1, 0, 4.0, 1), (3, 0, 1.0, 1), (3, 1, 10.0, 1), (4, 1, 2.0, 1), (3, 1, 10.0, 2), (2, 0, 1.0, 4)],
)
def test_votes_fail_as_often_as_the_closed_form_says(num_plus, num_minus, snr, num_antennas, tmp_path):
    measured = vote_error(num_plus, num_minus, snr, num_antennas, 400_000, tmp_path)
    expected = float(voting.fsk_vote_error(num_plus, num_minus, snr, num_antennas))
    assert measured == pytest.approx(expected, rel=0.12)


# --- bad input ------------------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, node: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """From now on this node radiates what `change` makes of its bursts."""
    plain = Uplink.analogue

    def changed(
        self: Uplink, update: np.ndarray, request: messages.SendAnalogue, precoder: np.ndarray, rate_hz: float
    ) -> np.ndarray:
        burst = plain(self, update, request, precoder, rate_hz)
        return change(burst) if request.node == node else burst

    monkeypatch.setattr(Uplink, "analogue", changed)


def as_noise(burst: np.ndarray) -> np.ndarray:
    """Noise as long and nearly as loud as a burst."""
    return white(burst.size, 0.9 * float(np.mean(np.abs(burst) ** 2)))


@dataclass
class Case:
    """Nodes over a known channel, and the order that collects all but the last of them."""

    air: Loopback
    order: Collect
    truth: np.ndarray
    expected_mse: float

    def relative_error(self, collected: Collected) -> float:
        """Squared error over its closed form."""
        return float(np.sum((collected.mean - self.truth) ** 2)) / self.expected_mse

    def jam(self, begin_s: float, seconds: float, power_w: float) -> None:
        """The last node, which is not asked, radiates noise."""
        rate_hz = self.air.bench.waveform.elements_per_second(self.air.bench.sample_rate_hz)
        port = AirPort(str(self.air.live.devices.node_devices["air"]))
        port.post(self.air.bench.node_names[-1], begin_s, white(round(seconds * rate_hz), power_w))
        port.close()


def white(count: int, power_w: float) -> np.ndarray:
    pairs = np.random.default_rng(9).standard_normal((count, 2), dtype=np.float32)
    return np.float32(math.sqrt(power_w / 2)) * pairs.view(np.complex64)[:, 0]


@contextlib.contextmanager
def case(bench: BenchSpec, num_values: int, folder: Path, seed: int = 31) -> Iterator[Case]:
    updates = updates_of(bench, num_values, seed)
    facts = Facts.of(bench, updates, bench.node_names[:-1])
    channel = true_channel(bench, seed, facts.names)
    order = forced(channel, facts, noise_w=noise_of(bench), num_values=num_values)
    assert order.expected_mse is not None
    with loopback(bench, updates, folder, seed) as air:
        air.live.audit = False
        yield Case(air, order, weighted(facts, updates), order.expected_mse)


SEARCHED = {"start_jitter_s": 1e-8}
"""Bursts that start with jitter, however little: their frames are looked for."""


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_an_update_that_is_not_finite_is_an_error_that_names_its_node(level, tmp_path):
    with case(air_bench(3, 2, level=level), 4000, tmp_path) as found:
        found.air.updates["node-01"][17] = np.nan
        with pytest.raises(BenchError, match="node-01"):
            found.air.collect(found.order)


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_a_vote_on_nothing_is_an_error_that_names_its_node(level, tmp_path):
    with case(air_bench(3, 2, level=level), 4000, tmp_path) as found:
        found.air.updates["node-01"][17] = np.nan
        with pytest.raises((BenchError, ValueError), match="node-01|not finite"):
            found.air.collect(votes(("node-00", "node-01"), 1e-3))


def test_a_loud_interferer_costs_the_frames_it_hits_and_no_other(tmp_path):
    # 8 blocks in a frame, 12 frames: 11 blocks of 64 us each with their heads
    bench = air_bench(3, 2, level="samples", radio=SEARCHED, waveform={"frame_blocks": 8})
    with case(bench, 8 * 384 * 12, tmp_path) as found:
        clean = found.air.collect(found.order)
        assert clean.lost == 0
        begin_s = found.air.live.devices.clock.now_s() + 1e-3
        found.jam(begin_s + 3.2 * 11 * 64e-6, 2 * 11 * 64e-6, 1.0)
        jammed = found.air.collect(found.order)
    assert 1 <= jammed.lost <= 4
    hit = np.abs(jammed.mean - found.truth).reshape(12, -1).max(axis=1) > 3 * np.abs(clean.mean - found.truth).max()
    assert np.count_nonzero(hit) <= 4
    assert not hit[:2].any()
    assert not hit[-4:].any()


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_interference_all_over_a_burst_does_not_pass_as_coherent(level, tmp_path):
    with case(air_bench(3, 2, level=level), 40_000, tmp_path) as found:
        begin_s = found.air.live.devices.clock.now_s()
        found.jam(begin_s, 0.05, 1.0)
        jammed = found.air.collect(found.order)
    assert found.relative_error(jammed) > 100
    assert jammed.coherence is not None
    assert not 0.8 < jammed.coherence < 1.2


@pytest.mark.parametrize("level", ["samples", "symbols"])
def test_noise_instead_of_frames_does_not_pass_as_coherent(level, tmp_path, monkeypatch):
    with case(air_bench(2, 2, level=level), 40_000, tmp_path) as found:
        spoil(monkeypatch, "node-00", as_noise)
        collected = found.air.collect(found.order)
    assert collected.coherence is not None
    assert collected.coherence < 0.5


def test_noise_instead_of_frames_is_counted_where_frames_are_looked_for(tmp_path, monkeypatch):
    with case(air_bench(2, 2, level="samples", radio=SEARCHED), 40_000, tmp_path) as found:
        spoil(monkeypatch, "node-00", as_noise)
        collected = found.air.collect(found.order)
    assert collected.lost == 1
    assert collected.coherence == 0.0


@pytest.mark.parametrize("radio", [pytest.param({}, id="scheduled"), pytest.param(SEARCHED, id="searched")])
def test_frames_that_a_truncated_burst_lacks_are_lost_and_spoil_no_other(radio, tmp_path, monkeypatch):
    bench = air_bench(2, 2, level="samples", radio=radio, waveform={"frame_blocks": 8})
    with case(bench, 8 * 384 * 12, tmp_path) as found:
        spoil(monkeypatch, "node-00", lambda burst: burst[: burst.size // 2])
        collected = found.air.collect(found.order)
    assert collected.lost == 6
    heard = (collected.mean - found.truth)[: 6 * 8 * 384]
    assert float(np.sum(heard**2)) / found.expected_mse == pytest.approx(0.5, rel=0.1)


def test_frames_around_lost_buffers_are_lost_and_the_others_are_right(tmp_path):
    # 24 frames of 11 blocks, buffers of about half a frame of which one in twenty is lost
    radio, waveform = SEARCHED, {"frame_blocks": 8}
    errors, lost = [], []
    for dropped in (0.0, 0.05):
        impairments = {"dropped_buffers": dropped, "buffer_samples": 2048}
        bench = air_bench(3, 2, level="samples", radio=radio, waveform=waveform, impairments=impairments)
        with case(bench, 8 * 384 * 24, tmp_path) as found:
            collected = found.air.collect(found.order)
        lost.append(collected.lost)
        errors.append(np.sum(((collected.mean - found.truth) ** 2).reshape(24, -1), axis=1))
    assert lost[0] == 0
    assert 2 <= lost[1] < 24
    assert np.count_nonzero(errors[1] > 2 * errors[0].max()) <= lost[1]


def test_lost_buffers_inside_scheduled_frames_show_in_the_coherence(tmp_path):
    impairments = {"dropped_buffers": 0.2, "buffer_samples": 2048}
    bench = air_bench(3, 2, level="samples", waveform={"frame_blocks": 8}, impairments=impairments)
    with case(bench, 8 * 384 * 24, tmp_path) as found:
        collected = found.air.collect(found.order)
    assert collected.coherence is not None
    assert collected.coherence < 0.8


def test_a_node_that_falls_silent_between_windows_is_missing(tmp_path):
    num_values = 2_200_000  # two windows at level symbols
    with case(air_bench(4, 2, excess_loss_db=10), num_values, tmp_path) as found:
        whole = found.air.collect(found.order)
        assert whole.missing == ()
        assert found.relative_error(whole) == pytest.approx(1.0, abs=0.03)
        ask, asked = found.air.link.ask, []

        def falls_silent(requests, **options):
            asked.append(tuple(requests))
            if len(asked) == 2:
                found.air.link.deaf.add("node-01")
            return ask(requests, **options)

        found.air.link.ask = falls_silent
        collected = found.air.collect(found.order)
    assert asked == [("node-00", "node-01", "node-02")] * 2
    assert collected.missing == ("node-01",)
    assert set(collected.energy_j) == {"node-00", "node-02"}


def test_nobody_left_is_an_error(tmp_path):
    with case(air_bench(3, 1), 4000, tmp_path) as found:
        found.air.link.deaf.update(found.air.bench.node_names)
        with pytest.raises(DeviceError, match="no node"):
            found.air.collect(found.order)
        with pytest.raises(DeviceError, match="no node"):
            found.air.answer(Sound())


def test_packets_that_fail_at_the_sounded_ratio_get_a_more_robust_code(tmp_path):
    bench = air_bench(2, 2, level="samples", excess_loss_db=38)
    with case(bench, 3000, tmp_path) as found:
        uplink = Digital(1.0, 1.8e6, 5e-3, snr=1.0, combiner=np.array([1.0, 0.0]), scheme="qpsk-golay", max_tries=8)
        heard = found.air.collect(Collect({"node-00": uplink})).deliveries["node-00"].snr
        assert heard is not None
        assert scheme_named("qpsk-golay").threshold_snr < heard < 100
        promised = choose(30 * heard)
        assert promised is not None
        assert promised.threshold_snr > 10 * heard
        with pytest.raises(DeviceError, match="no node delivered"):
            found.air.collect(Collect({"node-00": replace(uplink, scheme=promised.name)}))
        collected = found.air.collect(Collect({"node-00": replace(uplink, scheme=None, snr=30 * heard)}))
    np.testing.assert_array_equal(collected.mean, found.air.updates["node-00"])
    used = scheme_named(collected.deliveries["node-00"].scheme)
    assert heard / 10 < used.threshold_snr < 2 * heard


def test_packets_under_interference_are_tried_again_and_then_missing(tmp_path):
    bench = air_bench(2, 2, level="samples", excess_loss_db=0)
    with case(bench, 3000, tmp_path) as found:
        combiner = np.array([1.0, 0.0])
        uplink = Digital(1.0, 1.8e6, 5e-3, snr=100.0, combiner=combiner, scheme="qpsk-golay", max_tries=2)
        order = Collect({"node-00": uplink})
        found.jam(found.air.live.devices.clock.now_s(), 0.5, 1.0)
        with pytest.raises(DeviceError, match="no node delivered"):
            found.air.collect(order)
        found.air.live.devices.clock.wait_until(2.0)
        collected = found.air.collect(order)
    assert collected.missing == ()
    np.testing.assert_array_equal(collected.mean, found.air.updates["node-00"])
