"""A PlutoSDR, or another AD936x behind an iiod, through pyadi-iio and libiio: `driver = "pyadi"`.

Needs `pip install "pyadi-iio==0.0.21" "pylibiio==0.25"` and `apt-get install libiio0`. Both libraries live in a process
of their own, see `drivers.adi_process`. Muting needs neither: it has a connection of its own, in iiod's text protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from drivers.ad9361_fir import fir_config
from drivers.ad9361_settings import LOWEST_RATE_WITHOUT_FIR_HZ
from drivers.adi_child import AdiChild
from drivers.pluto_port import PlutoFacts, PlutoSettings
from drivers.pluto_scale import changed
from drivers.silencer import Silencer
from testbed.core.errors import BenchError, DeviceError, LimitError, RadioFault

ATTRIBUTE_TIMEOUT_S = 5.0
"""For an order that moves no samples; setting a rate computes filters and calibrates."""
OPEN_TIMEOUT_S = 10.0
"""For a fresh process to import its libraries and to connect."""
_SLOWEST_LINK_BYTES_S = 4e6
_BUSY_S = 0.3


class AdiPort:
    """One AD936x, see `drivers.pluto_port.PlutoPort`.

    Args:
        uri: "ip:HOST" or "ip:HOST:PORT".
        serial: its hw_serial; any radio is taken if None.

    Raises:
        ConfigError: pyadi-iio or libiio are missing or do not fit; the remedy says what to install.
        DeviceError: nothing answers there, or what answers is no AD936x or has another serial number.
    """

    def __init__(self, uri: str, *, serial: str | None = None) -> None:
        self._uri = uri
        self._lock = threading.RLock()  # one order at a time; silence does not wait for it
        self._child: AdiChild | None = None
        self._facts: PlutoFacts | None = None
        self._settings: PlutoSettings | None = None
        self._verified = False
        self._closed = False
        self._buffers = {"receive": 0, "transmit": 0}  # numbers of those opened last
        # first, since it says why nothing answers; libiio does not
        self._silencer = Silencer(uri)
        try:
            self._running()
            self._check_serial(serial)
        except BaseException:
            self._drop()
            self._silencer.close()
            raise

    @property
    def facts(self) -> PlutoFacts:
        """Who answers."""
        assert self._facts is not None  # since it was opened
        return self._facts

    def configure(self, settings: PlutoSettings) -> PlutoSettings:
        """Set everything and read it back.

        Raises:
            LimitError: the chip cannot do it; nothing is written.
            RadioFault: it took something else, or pyadi-iio failed.
        """
        with self._lock:
            filters = fir_config() if settings.sample_rate_hz < LOWEST_RATE_WITHOUT_FIR_HZ else None
            order = {"do": "configure", "settings": asdict(settings), "filters": filters}
            found = PlutoSettings(**self._ask(order, verify=False)[0])  # what was set before does not matter any more
            self._settings, self._verified = found, True
            return found

    def settings(self) -> PlutoSettings:
        """What is set, read now."""
        with self._lock:
            return PlutoSettings(**self._ask({"do": "settings"}, verify=False)[0])

    def capture(self, num_samples: int, *, triggered: bool = False, channels: int = 1) -> AdiCapture:
        """Open a fresh receive buffer; when this returns the transfer runs, or waits for the trigger."""
        if not 1 <= channels <= self.facts.num_rx:
            raise LimitError(f"{self._uri}: {channels} receive channels; it has {self.facts.num_rx}")
        order = {"do": "open_receive", "num_samples": int(num_samples), "channels": channels, "triggered": triggered}
        with self._lock:
            self._ask(order)
            return AdiCapture(self._bound("receive"), num_samples, channels)

    def burst(self, codes: np.ndarray, *, delay_samples: int | None = None) -> AdiBurst:
        """Load one burst, shape [num_samples, 2] int16, with zeros behind it."""
        return self._transmit(codes, delay_samples=delay_samples, cyclic=False)

    def cyclic(self, codes: np.ndarray) -> AdiBurst:
        """Repeat a waveform, shape [num_samples, 2] int16, from now on."""
        return self._transmit(codes, delay_samples=None, cyclic=True)

    def silence(self) -> None:
        """Stop radiating at once, through a connection of its own; from any thread.

        Raises:
            RadioFault: the radio does not answer there, so that it may still radiate.
        """
        try:
            self._silencer.mute()
        finally:
            self._end_transmission()

    def unsilence(self) -> None:
        """The transmit synthesiser runs, and the gain is what `configure` set."""
        with self._lock:
            self._ask({"do": "unsilence"})

    def close(self) -> None:
        """Silence and let go; may be repeated.

        Raises:
            RadioFault: the radio does not answer, so that it may still radiate; all else is let go.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.silence()
        finally:
            if (child := self._child) is not None:
                child.kill()  # an order that hangs in another thread gives its lock back
            with self._lock:
                self._drop()
            self._silencer.close()

    def _end_transmission(self) -> None:
        """Destroy the transmit buffer. Its connection may hang: after a moment its process ends, and all buffers."""
        if not self._lock.acquire(timeout=_BUSY_S):
            if (child := self._child) is not None:
                child.kill()
            return
        try:
            self._buffers["transmit"] += 1
            if self._child is not None and not self._child.killed:
                self._asked(self._child, {"do": "close_transmit"}, timeout_s=1.0)
        except BenchError:
            self._drop()
        finally:
            self._lock.release()

    def _check_serial(self, serial: str | None) -> None:
        if serial is not None and self.facts.serial != serial:
            raise DeviceError(
                f"{self._uri}: the radio there has the serial number {self.facts.serial or '(none)'}; the bench file "
                f"says {serial}",
                key="serial",
                remedy="check which radio stands where; addresses move when radios are plugged in another order",
            )

    def _transmit(self, codes: np.ndarray, *, delay_samples: int | None, cyclic: bool) -> AdiBurst:
        if codes.ndim != 2 or codes.shape[1] != 2 or codes.dtype != np.int16 or not len(codes):
            raise LimitError(
                f"{self._uri}: codes of shape {codes.shape} and {codes.dtype}; [num_samples, 2] int16 go out"
            )
        order = {"do": "open_transmit", "delay_samples": delay_samples, "cyclic": cyclic}
        with self._lock:
            self._ask(order, codes)
            return AdiBurst(self._bound("transmit"))

    def _bound(self, direction: str) -> Callable[..., bytearray]:
        """Asks about the buffer that was just opened, and about no other that may come after it."""
        child = self._child
        self._buffers[direction] += 1
        number = self._buffers[direction]

        def ask(what: str, *, timeout_s: float = ATTRIBUTE_TIMEOUT_S) -> bytearray:
            with self._lock:
                if child is None or child is not self._child or child.killed or number != self._buffers[direction]:
                    raise RadioFault(f"{self._uri}: the {direction} buffer is gone", remedy="open another")
                return self._asked(child, {"do": what}, timeout_s=timeout_s)[1]

        return ask

    def _ask(
        self, order: dict[str, Any], codes: np.ndarray | None = None, *, verify: bool = True
    ) -> tuple[dict[str, Any], bytearray]:
        """One order to a process that runs; after a restart only where the radio is still as it was set."""
        child = self._running()
        if verify and not self._verified and self._settings is not None:
            found = PlutoSettings(**self._asked(child, {"do": "settings"}, timeout_s=ATTRIBUTE_TIMEOUT_S)[0])
            if differences := changed(self._settings, found):
                raise RadioFault(
                    f"{self._uri}: while the link was broken the radio changed: {', '.join(differences)}",
                    remedy="tune it anew",
                )
            self._verified = True
        data = b"" if codes is None else np.ascontiguousarray(codes, "<i2").data.cast("B")
        return self._asked(child, order, data, timeout_s=ATTRIBUTE_TIMEOUT_S + len(data) / _SLOWEST_LINK_BYTES_S)

    def _asked(
        self, child: AdiChild, order: dict[str, Any], data: bytes | memoryview = b"", *, timeout_s: float
    ) -> tuple[dict[str, Any], bytearray]:
        try:
            return child.ask(order, data, timeout_s=timeout_s)
        finally:
            if child.killed:
                self._drop()

    def _running(self) -> AdiChild:
        """The process; started, and connected to the same radio as ever, if there is none."""
        if self._closed:
            raise RadioFault(f"{self._uri}: the radio is closed", remedy="open it again")
        if self._child is not None and not self._child.killed:
            return self._child
        self._drop()
        self._verified = False
        child = self._child = AdiChild(self._uri)
        try:
            facts = PlutoFacts(**self._asked(child, {"do": "open", "uri": self._uri}, timeout_s=OPEN_TIMEOUT_S)[0])
            if self._facts is not None and facts.serial != self._facts.serial:
                raise DeviceError(
                    f"{self._uri}: the radio there has the serial number {facts.serial or '(none)'}, where it was "
                    f"{self._facts.serial or '(none)'}",
                    remedy="check which radio stands where",
                )
        except BaseException:
            self._drop()
            raise
        self._facts = facts
        return child

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


class AdiCapture:
    """A receive buffer, see `drivers.pluto_port.Capture`."""

    def __init__(self, ask: Callable[..., bytearray], num_samples: int, channels: int) -> None:
        self._ask = ask
        self._shape = (num_samples, 2 * channels)
        self._open = True

    def wait(self, timeout_s: float) -> np.ndarray:
        """The samples, shape [num_samples, 2 * num_channels] int16.

        Raises:
            RadioFault: they do not come in time, or the buffer was lost.
        """
        if not self._open:
            raise RadioFault("the receive buffer was closed")
        try:
            codes = np.frombuffer(self._ask("receive", timeout_s=timeout_s), np.int16)
        except BaseException:
            self.close()
            raise
        if codes.size != self._shape[0] * self._shape[1]:
            self.close()
            raise RadioFault(f"{codes.size} codes came where {self._shape[0]} samples of {self._shape[1]} were due")
        return codes.reshape(self._shape)

    def close(self) -> None:
        """Destroy the buffer; may be repeated."""
        if self._open:
            self._open = False
            with suppress(BenchError):  # a process that was lost took the buffer along
                self._ask("close_receive")


class AdiBurst:
    """A transmit buffer, see `drivers.pluto_port.Burst`."""

    def __init__(self, ask: Callable[..., bytearray]) -> None:
        self._ask = ask
        self._open = True

    def release(self) -> None:
        """Send it now. Raises RadioFault when the buffer is closed or lost."""
        if not self._open:
            raise RadioFault("the transmit buffer was closed")
        self._ask("push")

    def close(self) -> None:
        """Destroy the buffer; may be repeated."""
        if self._open:
            self._open = False
            with suppress(BenchError):  # a process that was lost took the buffer along
                self._ask("close_transmit")
