"""The timing calibration finds when bursts begin, and proves it by lining them up."""

import json

import numpy as np
import pytest

from calibration.access import Access
from calibration.routine import Routine
from calibration.timing import Timing, TimingOptions
from sim_backend.emulated import open_bench as open_emulated
from sim_backend.open import open_bench
from sim_backend.transmit_chain import Crystal
from testbed.core.errors import ConfigError
from tests.benches import small_bench
from tests.closed_form_access import ClosedFormAccess, Transmitter, calibrate

SAMPLE_S = 1 / 5e6
BENCH = small_bench()
JITTERY = small_bench(radio={"start_jitter_s": 2e-7})
POWER_W = 0.5 * 10e-3 * 1e-8
AT_20_DB = POWER_W / 100
OPTIONS = TimingOptions()


def senders(**first):
    return {
        "node-00": Transmitter(**{"delay_s": 7.3 * SAMPLE_S, "offset_hz": 2000.0, **first}),
        "node-01": Transmitter(delay_s=-3.45 * SAMPLE_S, offset_hz=-40e3),
        "node-02": Transmitter(delay_s=0.0),
    }


def test_it_is_a_routine_whose_steps_are_json_and_known_in_number():
    routine: Routine = Timing()
    fit, done = calibrate(routine, ClosedFormAccess(BENCH, senders(), noise_w=AT_20_DB), OPTIONS)
    assert fit.passed, fit.why
    assert len(done) == routine.num_steps(BENCH, OPTIONS)
    assert [json.loads(json.dumps(step)) for step, _ in done] == [dict(step) for step, _ in done]
    assert not vars(routine)


def test_at_20_db_delays_are_found_within_a_tenth_of_a_sample_and_bursts_line_up():
    nodes = senders()
    fit, _ = calibrate(Timing(), ClosedFormAccess(BENCH, nodes, noise_w=AT_20_DB), OPTIONS)
    for name, sender in nodes.items():
        found = fit.values[f"{name}.delay"]
        assert abs(found.value - sender.delay_s) < 0.1 * SAMPLE_S
        assert abs(found.value - sender.delay_s) < 5 * found.std
        assert fit.values[f"{name}.jitter"].value < 0.01 * SAMPLE_S
        assert abs(fit.values[f"{name}.residual"].value) < 0.02 * SAMPLE_S
    assert fit.values["alignment"].value < 0.01 * SAMPLE_S
    assert "-3.45 to 7.30 samples late" in fit.why


def test_jitter_is_told_from_repeats_and_limits_the_alignment():
    nodes = {name: Transmitter(jitter_s=2e-7) for name in BENCH.node_names}
    options = TimingOptions(repeats=60, closed_repeats=30)
    fit, _ = calibrate(Timing(), ClosedFormAccess(JITTERY, nodes, noise_w=AT_20_DB, seed=2), options)
    assert fit.passed, fit.why
    for name in BENCH.node_names:
        jitter, delay = fit.values[f"{name}.jitter"], fit.values[f"{name}.delay"]
        assert jitter.value == pytest.approx(2e-7, abs=4 * jitter.std)
        assert delay.std == pytest.approx(2e-7 / np.sqrt(60), rel=0.4)
        assert abs(delay.value) < 4 * delay.std
    assert fit.values["alignment"].value == pytest.approx(2e-7, rel=0.25)


def test_jitter_beyond_the_cyclic_prefix_is_named():
    bench = small_bench(radio={"start_jitter_s": 3e-6})
    nodes = {name: Transmitter(jitter_s=3e-6) for name in bench.node_names}
    options = TimingOptions(repeats=12, search_s=4e-5)
    fit, _ = calibrate(Timing(), ClosedFormAccess(bench, nodes, noise_w=AT_20_DB), options)
    assert fit.passed, fit.why
    assert "radio.timed_tx cannot be claimed" in fit.why


@pytest.mark.parametrize(
    ("first", "world", "sentence"),
    [
        ({"silent": True}, {}, "of 12 bursts of node-00 0 were found: nothing but noise arrives"),
        ({}, {"rail": 1e-6}, "the receiver saturates"),
        ({}, {"noise_w": 1e-8}, "the band is occupied"),
        ({"silent": True}, {"jammer": (1e-6, 0.1)}, "somebody else transmits at 2450.500 MHz"),
        ({"jitter_s": 2e-7}, {}, "set radio.start_jitter_s"),
        ({"delay_s": 1e-3}, {}, "of 12 bursts of node-00 0 were found"),
    ],
)
def test_what_cannot_be_measured_is_no_number_but_a_sentence(first, world, sentence):
    settings = {"noise_w": AT_20_DB, **world}
    fit, _ = calibrate(Timing(), ClosedFormAccess(BENCH, senders(**first), **settings), OPTIONS)
    assert not fit.passed
    assert sentence in fit.why


def test_bursts_that_do_not_move_when_they_are_advanced_are_noticed():
    class Stubborn(ClosedFormAccess):
        def capture(self, num_samples, bursts=None, *, offsets=None):
            if len(bursts) > 1:
                offsets = {node: offset + 4 * (node == "node-00") for node, offset in offsets.items()}
            return super().capture(num_samples, bursts, offsets=offsets)

    fit, _ = calibrate(Timing(), Stubborn(BENCH, senders(), noise_w=AT_20_DB), OPTIONS)
    assert not fit.passed
    assert "bursts of node-00 are still 4.00 samples late after they were advanced by 7.30" in fit.why


def test_nothing_measured_is_nothing_found_and_half_of_it_neither():
    assert not Timing().fit(BENCH, OPTIONS, []).passed
    _, done = calibrate(Timing(), ClosedFormAccess(BENCH, senders(), noise_w=AT_20_DB), OPTIONS)
    half = Timing().fit(BENCH, OPTIONS, done[:36])
    assert not half.passed
    assert "the closed loop was not measured" in half.why


def test_a_bench_without_samples_is_refused():
    with pytest.raises(ConfigError, match="level"):
        calibrate(Timing(), ClosedFormAccess(small_bench(waveform={"level": "symbols"}), senders()), OPTIONS)


@pytest.mark.parametrize(("backend", "opened"), [("sim", open_bench), ("emulated", open_emulated)])
def test_opened_benches_give_the_delays_that_were_drawn(tmp_path, backend, opened):
    impairments = {"oscillator_ppm": 20.0, "start_offset_s": 1e-6}
    bench = small_bench(world={"excess_loss_db": 40.0, "impairments": impairments})
    devices = opened(bench, seed=1, folder=tmp_path, node_processes=1)
    try:
        access = Access(bench, devices, backend)
        access.open_nodes()
        fit, _ = calibrate(Timing(), access, TimingOptions(repeats=4, closed_repeats=3))
    finally:
        devices.close()
    assert fit.passed, fit.why
    for index, name in enumerate(bench.node_names):
        truth = Crystal.draw(bench, index, 1)
        assert fit.values[f"{name}.delay"].value == pytest.approx(truth.delay_s, abs=0.01 * SAMPLE_S)
        assert abs(fit.values[f"{name}.residual"].value) < 0.01 * SAMPLE_S
