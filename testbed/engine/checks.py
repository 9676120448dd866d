"""What every device and every scheme must do: plain functions, run alike over sim, emulated and lab.

A new radio, stage, clock or scheme is handed to its check; the check raises AssertionError with the sentence that does
not hold. Checks leave devices mute and still.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from testbed.core.adapter import Adapter
from testbed.core.bench import BenchSpec
from testbed.core.devices import Clock, Radio, Stage
from testbed.core.errors import BenchError, LimitError
from testbed.core.fleet import Fleet
from testbed.core.orders import Order, Reply
from testbed.core.record import difference
from testbed.core.scheme import Scheme
from testbed.engine.config import ExperimentSpec
from testbed.engine.dry import DryBench
from testbed.engine.limits import check_needs, check_order, claimed_capabilities
from testbed.engine.perform import Replay, perform
from testbed.engine.recorder import Step


def check_clock(clock: Clock) -> None:
    """Time never runs back, waiting for the past returns at once, side-by-side tasks end with the last."""
    before_s = clock.now_s()
    clock.wait_until(before_s - 1.0)
    assert clock.now_s() >= before_s, "waiting for the past turned the clock back"
    target_s = clock.now_s() + 0.02
    clock.wait_until(target_s)
    assert clock.now_s() >= target_s, "wait_until returned early"
    start_s = clock.now_s()

    def task(seconds: float) -> float:
        clock.wait_until(start_s + seconds)
        return seconds

    results = clock.concurrently([lambda: task(0.03), lambda: task(0.01)])
    assert results == [0.03, 0.01], "concurrently lost the order of results"
    elapsed_s = clock.now_s() - start_s
    assert elapsed_s >= 0.03 - 1e-9, "concurrently returned before its last task"
    clock.set(before_s)
    assert before_s <= clock.now_s() < start_s, "set did not turn the clock"


def check_stage(stage: Stage, inside_m: np.ndarray, beyond_m: np.ndarray, *, tolerance_m: float = 1e-5) -> None:
    """It arrives where it was sent, says how long it takes, refuses what is beyond its end stops, and stops for ever.

    Args:
        inside_m: a legal target, stage frame, shape [2].
        beyond_m: a target beyond the end stops, shape [2].
    """
    home_m = stage.position_m
    expected_s = stage.duration_s(inside_m)
    spent = stage.move_to(inside_m)
    assert np.allclose(stage.position_m, inside_m, atol=tolerance_m), "the stage is not where it was sent"
    assert spent.seconds > 0, "a move takes no time"
    assert abs(spent.seconds - expected_s) <= 0.1 * expected_s + 0.05, "duration_s and move_to disagree"
    assert abs(spent.travel_m - np.linalg.norm(inside_m - home_m)) <= tolerance_m, (
        "travel is not the way that was moved"
    )
    assert stage.duration_s(inside_m) == 0.0, "staying takes time"
    refused = False
    try:
        stage.move_to(beyond_m)
    except LimitError:
        refused = True
    assert refused, "a target beyond the end stops was accepted"
    assert np.allclose(stage.position_m, inside_m, atol=tolerance_m), "a refused target moved the stage"
    stage.move_to(home_m)
    for _ in range(2):
        stage.stop()
        stage.close()


def check_radio(radio: Radio, *, frequency_hz: float, sample_rate_hz: float, soon_s: Callable[[], float]) -> None:
    """It claims capabilities, refuses what they exclude, sends or hears within them, and ends mute.

    Args:
        soon_s: gives an instant that has not passed yet.
    """
    can = radio.capabilities
    assert can.max_power_w > 0 or can.num_antennas > 0, "a radio that neither sends nor hears"
    _check_tuning(radio, frequency_hz, sample_rate_hz)
    if can.max_power_w > 0:
        _check_transmitter(radio, soon_s)
    if can.num_antennas > 0:
        _check_receiver(radio, soon_s)
    for _ in range(2):
        radio.mute()
        radio.close()


def _check_transmitter(radio: Radio, soon_s: Callable[[], float]) -> None:
    """It sends within its limit and refuses what is beyond."""
    amplitude = np.sqrt(radio.capabilities.max_power_w)
    radio.transmit(np.full(256, amplitude, np.complex64), at_s=soon_s())
    refused = {
        "a burst above max_power_w": np.full(256, 1.1 * amplitude, np.complex64),
        "a burst that is not finite": np.full(16, np.nan, np.complex64),
        "an empty burst": np.zeros(0, np.complex64),
        "a burst of two rows": np.zeros((2, 8), np.complex64),
    }
    for what, burst in refused.items():
        _refused(partial(radio.transmit, burst, at_s=soon_s()), f"{what} was accepted")


def _check_receiver(radio: Radio, soon_s: Callable[[], float]) -> None:
    """It returns what was armed, all antennas or their combination, complex64 and finite, and nothing that was not."""
    num_antennas = radio.capabilities.num_antennas
    failed = False
    try:
        radio.read()
    except BenchError:
        failed = True
    assert failed, "read returned samples that nobody armed"
    radio.arm(512, at_s=soon_s())
    samples = radio.read()
    assert samples.shape == (num_antennas, 512), f"a capture has shape {samples.shape}"
    assert samples.dtype == np.complex64, f"a capture is {samples.dtype}"
    assert np.isfinite(samples).all(), "a capture holds values that are not finite"
    radio.arm(512, at_s=soon_s())
    combined = radio.read(np.ones(num_antennas) / np.sqrt(num_antennas))
    assert combined.shape == (1, 512), f"a combined capture has shape {combined.shape}"
    assert combined.dtype == np.complex64, f"a combined capture is {combined.dtype}"
    _refused(partial(radio.arm, 0, at_s=soon_s()), "an empty capture was accepted")


def check_scheme(
    scheme: Scheme[Any], experiment: ExperimentSpec, bench: BenchSpec, adapter: Adapter, *, rounds: int = 3
) -> None:
    """It keeps the bench's limits, decides the same from the same replies, and replays its own record.

    The bench answers with made-up channels and unit updates; see `testbed.engine.dry`.
    """
    answerer = DryBench(bench, experiment, adapter.layout, np.random.default_rng(experiment.seed))
    check_needs(type(scheme).__name__, scheme.needs, claimed_capabilities(bench), bench)
    fleet = Fleet.of(bench, {name: 10 + index for index, name in enumerate(bench.node_names)})
    steps: list[Step] = []

    def answer(order: Order) -> Reply:
        check_order(order, bench, adapter.size)
        reply = answerer.answer(order)
        steps.append(Step(len(steps), answerer.round_index, 0.0, order, reply, {}))
        return reply

    first = _rounds(scheme, fleet, adapter, experiment.seed, rounds, answerer, answer)
    replay = Replay(steps)
    second = _rounds(scheme, fleet, adapter, experiment.seed, rounds, replay, replay.answer)
    assert difference(first, second) is None, "the scheme reports other figures when the same replies come again"


def _rounds(
    scheme: Scheme[Any], fleet: Fleet, adapter: Adapter, seed: int, rounds: int, answerer: Any, answer: Any
) -> list[dict[str, float | str]]:
    state = scheme.start(fleet, adapter)
    reports = []
    for index in range(1, rounds + 1):
        answerer.round_index = index
        state = perform(scheme.round(state, np.random.default_rng([seed, index])), answer)
        reports.append(dict(scheme.report(state)))
    return reports


def _check_tuning(radio: Radio, frequency_hz: float, sample_rate_hz: float) -> None:
    radio.tune(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
    radio.tune(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
    beyond_hz = 2.0 * max(high for _, high in radio.capabilities.frequencies_hz)
    _refused(
        lambda: radio.tune(frequency_hz=beyond_hz, sample_rate_hz=sample_rate_hz),
        "a carrier outside the allowed bands was accepted",
    )


def _refused(action: Any, sentence: str) -> None:
    try:
        action()
    except LimitError:
        return
    raise AssertionError(sentence)
