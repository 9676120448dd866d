"""AD936x ports without a radio behind them, on one air that multiplies by a known gain; and a clock that jumps."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import numpy as np

from drivers.pluto_port import FULL_SCALE_RX, FULL_SCALE_TX, MUTED_DB, PlutoFacts, PlutoSettings
from testbed.core.errors import RadioFault
from testbed.core.hardware import PlutoSpec
from testbed.core.units import dbm_to_w, from_db


class JumpingClock:
    """Waiting for a time makes it that time."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def now_s(self) -> float:
        return self._now_s

    def wait_until(self, at_s: float) -> None:
        with self._lock:
            self._now_s = max(self._now_s, at_s)


@dataclass
class FakeAir:
    """Carries bursts from transmitters to receivers; sample 0 is the trigger, or a capture's begin."""

    gain: complex = 0.1
    emissions: list[tuple[int, np.ndarray]] = field(default_factory=list)
    ports: list[FakePort] = field(default_factory=list)
    pulses_s: list[float] = field(default_factory=list)
    closed: bool = False

    def pulse(self, at_s: float) -> None:
        """As a trigger line."""
        self.pulses_s.append(at_s)
        for port in self.ports:
            port.trigger()

    def close(self) -> None:
        self.closed = True

    def heard(self, num_samples: int) -> np.ndarray:
        """Square-root watts at every antenna, shape [num_samples]."""
        total = np.zeros(num_samples, np.complex128)
        for begin, samples in self.emissions:
            stop = min(num_samples, begin + len(samples))
            if stop > begin:
                total[begin:stop] += self.gain * samples[: stop - begin]
        return total


class FakePort:
    """See `drivers.pluto_port.PlutoPort`."""

    def __init__(
        self,
        air: FakeAir,
        *,
        spec: PlutoSpec | None = None,
        triggered: bool = True,
        num_rx: int = 1,
        full_scale_dbm: float = 23.0,
    ) -> None:
        self.air, self.spec, self.full_scale_dbm = air, spec or PlutoSpec(), full_scale_dbm
        self.facts = PlutoFacts("ip:fake", "0001", "v0.38", "fake", num_rx, 1, triggered)
        self.log: list[str] = []
        self.set: PlutoSettings | None = None
        self.chip: PlutoSettings | None = None
        self.silent = False
        self.failing: set[str] = set()
        self.captures: list[FakeCapture] = []
        self.bursts: list[FakeBurst] = []
        air.ports.append(self)

    def note(self, what: str) -> None:
        self.log.append(what)
        if what in self.failing:
            raise RadioFault(f"the fake radio fails at {what}")

    def trigger(self) -> None:
        for capture in self.captures:
            capture.begun = capture.begun or (capture.triggered and not capture.closed)
        for burst in self.bursts:
            if burst.delay_samples is not None and not burst.closed:
                burst.emit(burst.delay_samples)

    def configure(self, settings: PlutoSettings) -> PlutoSettings:
        self.note("configure")
        self.set = self.chip = settings
        return settings

    def settings(self) -> PlutoSettings:
        assert self.chip is not None
        return self.chip

    def capture(self, num_samples: int, *, triggered: bool = False, channels: int = 1) -> FakeCapture:
        self.note("capture")
        capture = FakeCapture(self, num_samples, triggered, channels)
        self.captures.append(capture)
        return capture

    def burst(self, codes: np.ndarray, *, delay_samples: int | None = None) -> FakeBurst:
        self.note("burst")
        burst = FakeBurst(self, codes, delay_samples)
        self.bursts.append(burst)
        return burst

    def cyclic(self, codes: np.ndarray) -> FakeBurst:
        raise NotImplementedError

    def silence(self) -> None:
        self.silent = True
        if self.chip is not None:
            self.chip = replace(self.chip, tx_gain_db=MUTED_DB)
        for burst in self.bursts:
            burst.closed = True
        self.note("silence")

    def unsilence(self) -> None:
        self.silent = False
        self.chip = self.set
        self.note("unsilence")

    def close(self) -> None:
        self.silent = True
        self.note("close")


class FakeCapture:
    """See `drivers.pluto_port.Capture`."""

    def __init__(self, port: FakePort, num_samples: int, triggered: bool, channels: int) -> None:
        self.port, self.num_samples, self.triggered, self.channels = port, num_samples, triggered, channels
        self.begun, self.closed = not triggered, False
        self.codes: np.ndarray | None = None

    def wait(self, timeout_s: float) -> np.ndarray:
        self.port.note("wait")
        if self.closed or not self.begun:
            raise RadioFault("no samples came")
        if self.codes is not None:
            return self.codes
        spec = self.port.spec
        heard = self.port.air.heard(self.num_samples)
        heard *= FULL_SCALE_RX / np.sqrt(dbm_to_w(spec.rx_full_scale_dbm - spec.gain_db))
        branches = np.stack([heard.real, heard.imag], axis=1)
        # the second channel hears the same upside down
        columns = [branches if index == 0 else -branches for index in range(self.channels)]
        codes = np.rint(np.concatenate(columns, axis=1))
        return np.clip(codes, -FULL_SCALE_RX, FULL_SCALE_RX - 1).astype(np.int16)

    def close(self) -> None:
        self.closed = True


class FakeBurst:
    """See `drivers.pluto_port.Burst`."""

    def __init__(self, port: FakePort, codes: np.ndarray, delay_samples: int | None) -> None:
        self.port, self.codes, self.delay_samples = port, codes, delay_samples
        self.closed = False
        self.released = threading.Event()

    def emit(self, begin: int) -> None:
        port = self.port
        assert port.chip is not None
        if port.silent:
            return
        full_scale_w = dbm_to_w(port.full_scale_dbm) * from_db(port.chip.tx_gain_db)
        codes = self.codes.astype(np.float64)
        port.air.emissions.append((begin, np.sqrt(full_scale_w) / FULL_SCALE_TX * (codes[:, 0] + 1j * codes[:, 1])))

    def release(self) -> None:
        try:
            self.port.note("release")
            if self.closed or self.delay_samples is not None:
                raise RadioFault("there is nothing to release")
            self.emit(0)
        finally:
            self.released.set()

    def close(self) -> None:
        self.closed = True
        self.port.log.append("end")
