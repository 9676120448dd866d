"""The controller's receiver: one or several AD936x, one antenna behind each of their channels.

Every capture has buffers of its own, opened after it was ordered and destroyed when it was read: a kernel's queue of
filled buffers would otherwise deliver what the antennas heard before they moved.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from drivers.pluto_port import MUTED_DB, Capture, PlutoPort, PlutoSettings
from drivers.pluto_radio import check_trigger
from drivers.pluto_scale import (
    changed,
    check_codes,
    check_samples_level,
    pluto_capabilities,
    receive_scale,
    received,
    settings_for,
)
from drivers.trigger import Timepiece, TriggerLine
from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import BenchError, ConfigError, LimitError, ProtocolError, RadioFault
from testbed.core.hardware import PlutoSpec
from testbed.phy.coherence import JITTER_DEVIATIONS

_GLANCE_S = 0.05
_SLOWEST_LINK_HZ = 2e6
"""Samples that the slowest link to a radio carries in a second: USB 2.0 with two channels."""
_PATIENCE_S = 5.0

Result = TypeVar("Result")


@dataclass
class _Armed:
    """A capture that was ordered."""

    num_samples: int
    at_s: float
    captures: list[Future[Capture]]
    cancelled: threading.Event = field(default_factory=threading.Event)


class PlutoArray:
    """The receiver, see `testbed.core.devices.Radio`. It does not transmit: its radios' transmitters stay muted.

    Args:
        bench: the bench.
        ports: the radios in the order of `array.radios`, by default one with one channel for each antenna; this object
            owns them from now on.
        flags: what it claims, see `testbed.phy.coherence.claimed_flags`.
        clock: the run's time.
        trigger: what starts captures and bursts where `radio.trigger` is "clock".

    Raises:
        ConfigError: the waveform has no samples, radios are missing, lack channels or the trigger, or nothing pulls it.
    """

    def __init__(
        self,
        bench: BenchSpec,
        ports: Sequence[PlutoPort],
        *,
        flags: Mapping[str, bool],
        clock: Timepiece,
        trigger: TriggerLine | None = None,
    ) -> None:
        check_samples_level(bench)
        self._specs = self._tuned_specs = bench.array.radios or tuple(PlutoSpec() for _ in bench.array.antennas)
        self._ports, self._clock = tuple(ports), clock
        self._names = tuple(f"receiver-{index}" for index in range(len(self._specs)))
        self._check_ports(bench)
        self._trigger = trigger if bench.radio.trigger == "clock" else None
        if bench.radio.trigger == "clock" and trigger is None:
            raise ConfigError(
                'radio.trigger = "clock" needs a line that starts all radios at once',
                key="radio.trigger_line",
                remedy='name it, for instance "rts:/dev/ttyUSB0", or set radio.trigger = "network"',
            )
        self._rate_hz = bench.sample_rate_hz
        self._patience_s = JITTER_DEVIATIONS * bench.radio.start_jitter_s
        self._num_antennas = len(bench.array.antennas)
        self._capabilities = pluto_capabilities(bench, flags, num_antennas=self._num_antennas, max_power_w=0.0)
        self._pool = ThreadPoolExecutor(max_workers=len(self._ports), thread_name_prefix="receiver")
        self._set: list[PlutoSettings] = []
        self._armed: _Armed | None = None
        self._sequence = 0
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; it does not transmit."""
        return self._capabilities

    @property
    def sequence(self) -> int:
        """Number of the capture that was armed last, from 1 on; errors name it."""
        return self._sequence

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier, sample rate and the radios' gains; a capture that was armed is lost.

        Raises:
            LimitError: outside the allowed bands, another sample rate than the bench's, or more than the chip can do.
            RadioFault: a radio did not take it.
        """
        self._capabilities.check_tuning(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
        self._refuse_if_closed()
        self._disarm()
        self._set = []
        self._specs = self._tuned_specs

        def configure(index: int) -> PlutoSettings:
            spec = self._specs[index]
            return self._ports[index].configure(settings_for(spec, frequency_hz, sample_rate_hz, tx_gain_db=MUTED_DB))

        self._set = self._each(configure)

    def adjust(
        self, *, rx_gain: float | None = None, tx_gain: float | None = None, crystal_hz: int | None = None
    ) -> None:
        """Change the receive gain of all radios, or their crystals, until they are tuned anew.

        See `testbed.core.devices.Adjustable`.

        Raises:
            LimitError: the receiver does not transmit, or the gain is none that the chip has.
            RadioFault: a radio was not tuned, or did not take it.
        """
        if tx_gain is not None:
            raise LimitError("the receiver of this bench does not transmit, so it has no transmit gain to set")
        self._refuse_if_closed()
        if not self._set:
            raise RadioFault("the receiver was adjusted before it was tuned")
        self._disarm()
        before, self._set = self._set, []

        def configure(index: int) -> PlutoSettings:
            wanted = before[index]
            if rx_gain is not None:
                wanted = replace(wanted, rx_gain_db=10 * math.log10(rx_gain))
            if crystal_hz is not None:
                wanted = replace(wanted, xo_correction=crystal_hz)
            return self._ports[index].configure(wanted)

        self._set = self._each(configure)
        self._specs = tuple(
            spec.model_copy(update={"gain_db": found.rx_gain_db})
            for spec, found in zip(self._specs, self._set, strict=True)
        )

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Refused: this radio only listens.

        Raises:
            LimitError: always.
        """
        raise LimitError("the receiver of this bench does not transmit")

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Open fresh buffers for so many samples, from the trigger on, or from `at_s` on where there is none.

        Raises:
            LimitError: there is nothing to capture, or no instant.
            RadioFault: a radio was not tuned or failed; no buffer is left open.
        """
        if num_samples < 1 or not math.isfinite(at_s):
            raise LimitError(f"a capture of {num_samples} samples at {at_s} s")
        self._refuse_if_closed()
        if not self._set:
            raise RadioFault("the receiver was armed before it was tuned")
        self._disarm()
        self._sequence += 1
        armed = _Armed(num_samples, at_s, [])
        armed.captures = [self._pool.submit(self._open, index, armed) for index in range(len(self._ports))]
        self._armed = armed
        if self._trigger is not None:
            self._gather(armed.captures, _PATIENCE_S)

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """The armed capture, or one combination of its antennas, f^H y.

        Args:
            combiner: f, shape [num_antennas]; None reads every antenna.

        Returns:
            shape [num_antennas, num_samples], or [1, num_samples] with a combiner; complex64, square-root watts.

        Raises:
            RadioFault: nothing was armed, a radio failed or clips, or somebody else changed its settings.
            ProtocolError: the combiner is not one finite weight for each antenna.
        """
        armed = self._armed
        if armed is None:
            raise RadioFault("the receiver was read before it was armed")
        if combiner is not None:
            combiner = np.asarray(combiner, dtype=np.complex128)
            if combiner.shape != (self._num_antennas,) or not np.isfinite(combiner).all():
                raise ProtocolError(
                    f"a combiner has {self._num_antennas} finite weights; shape {combiner.shape} was given"
                )
        try:
            if self._trigger is not None:
                self._trigger.pulse(armed.at_s)
            until_s = max(0.0, armed.at_s - self._clock.now_s())
            captures = self._gather(armed.captures, until_s + _PATIENCE_S)
            heard = np.empty((self._num_antennas, armed.num_samples), np.complex64)
            # the transfers run by now; radios are told this number, and a recorded session has to find it again
            timeout_s = _PATIENCE_S + armed.num_samples * (1 / self._rate_hz + 1 / _SLOWEST_LINK_HZ)
            self._each(lambda index: self._fetch(index, captures[index], heard, timeout_s))
        finally:
            self._disarm()
        if combiner is None:
            return heard
        # [1, num_samples]
        return combiner.conj().astype(np.complex64)[None] @ heard

    def mute(self) -> None:
        """Make sure that the receiver's radios do not radiate, and drop what was armed; from any thread.

        Raises:
            RadioFault: a radio cannot be reached, so it may radiate; all others are silent.
        """
        self._disarm()
        if not self._closed:
            self._all(lambda port: port.silence())

    def close(self) -> None:
        """Mute and let go; may be repeated.

        Raises:
            RadioFault: a radio cannot be reached, so it may radiate; all others are let go.
        """
        self._disarm()
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._all(lambda port: port.close())

    def _check_ports(self, bench: BenchSpec) -> None:
        if len(self._ports) != len(self._specs):
            raise ConfigError(
                f"{len(self._ports)} receivers were opened and the bench has {len(self._specs)}",
                key="array.radios",
                remedy="name every radio behind the antennas",
            )
        for port, spec, name in zip(self._ports, self._specs, self._names, strict=True):
            check_trigger(bench, port, name)
            if port.facts.num_rx < spec.channels:
                raise ConfigError(
                    f"{name} at {port.facts.uri} has {port.facts.num_rx} receive channel; {spec.channels} are in use",
                    key="array.radios.channels",
                    remedy="set channels = 1, or switch the radio to two channels: fw_setenv attr_val ad9361; "
                    "fw_setenv mode 2r2t",
                )

    def _open(self, index: int, armed: _Armed) -> Capture:
        """In a thread of its own: open one radio's buffer, now for the trigger or else when it is time."""
        channels = self._specs[index].channels
        if self._trigger is not None:
            return self._ports[index].capture(armed.num_samples, triggered=True, channels=channels)
        late_s = self._clock.now_s() - armed.at_s
        if late_s > self._patience_s:
            raise RadioFault(
                f"{self._names[index]}: capture {self._sequence} was ordered {1e3 * late_s:.3g} ms late, where "
                f"radio.start_jitter_s allows {1e3 * self._patience_s:.3g} ms",
                remedy="raise radio.start_jitter_s to what is measured",
            )
        # in slices, so that whoever disarms need not wait
        while (left_s := armed.at_s - self._clock.now_s()) > 0:
            if armed.cancelled.is_set():
                raise RadioFault(f"{self._names[index]}: the capture was given up")
            self._clock.wait_until(armed.at_s - left_s + min(left_s, _GLANCE_S))
        return self._ports[index].capture(armed.num_samples, channels=channels)

    def _fetch(self, index: int, capture: Capture, heard: np.ndarray, timeout_s: float) -> None:
        """In a thread of its own: wait for one radio's codes and put its antennas' rows into `heard`."""
        spec, name, port = self._specs[index], self._names[index], self._ports[index]
        num_samples = heard.shape[1]
        codes = capture.wait(timeout_s)
        capture.close()
        if codes.shape != (num_samples, 2 * spec.channels):
            raise RadioFault(
                f"{name}: capture {self._sequence} has shape {codes.shape} where {num_samples} samples were ordered"
            )
        if differences := changed(self._set[index], port.settings()):
            raise RadioFault(
                f"{name}: another program changed the radio at {port.facts.uri}: {', '.join(differences)}",
                remedy="one program at a time may own a radio; end the other one, and tune this one anew",
            )
        check_codes(codes, spec, name)
        first = sum(other.channels for other in self._specs[:index])
        received(codes, receive_scale(spec), heard[first : first + spec.channels])

    def _each(self, task: Callable[[int], Result]) -> list[Result]:
        """Do it for every radio side by side. An error disarms, which wakes those that wait, and is raised last."""
        futures = [self._pool.submit(task, index) for index in range(len(self._ports))]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((future for future in futures if future in done and future.exception() is not None), None)
        if failed is not None:
            self._disarm()
            wait(futures)
            failed.result()
        return [future.result() for future in futures]

    def _gather(self, captures: Sequence[Future[Capture]], timeout_s: float) -> list[Capture]:
        """The open buffers; where one could not be opened, none is left open."""
        try:
            return [future.result(timeout_s) for future in captures]
        except FutureTimeout as error:
            self._disarm()
            raise RadioFault(
                f"capture {self._sequence}: a receiver's buffer was not open after {timeout_s:.3g} s",
                remedy="check the network to the receivers, and restart them",
            ) from error
        except BaseException:
            self._disarm()
            raise

    def _disarm(self) -> None:
        """Destroy every buffer of the armed capture, those too that are still being opened."""
        armed, self._armed = self._armed, None
        if armed is None:
            return
        armed.cancelled.set()
        for future in armed.captures:
            if not future.cancel():
                future.add_done_callback(_close_opened)

    def _all(self, action: Callable[[PlutoPort], None]) -> None:
        """Do it to every radio whatever happens with others; then the first error."""
        first: BenchError | None = None
        for port in self._ports:
            try:
                action(port)
            except BenchError as error:
                first = first or error
        if first is not None:
            raise first

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RadioFault("the receiver was closed")


def _close_opened(future: Future[Capture]) -> None:
    """Destroy a buffer that has been opened; a buffer that could not be opened needs nothing."""
    if not future.cancelled() and future.exception() is None:
        with suppress(BenchError):  # a radio that cannot be reached drops its buffers by itself
            future.result().close()
