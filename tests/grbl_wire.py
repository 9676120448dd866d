"""An emulated GRBL controller without a port in between: every byte and every second is in hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from drivers.grbl import GrblStage
from drivers.transport import TransportClosed, TransportTimeout
from sim_backend.clock import VirtualClock
from sim_backend.emulators.grbl_carriage import Machine
from sim_backend.emulators.grbl_firmware import GrblFirmware
from sim_backend.emulators.grbl_settings import Eeprom
from testbed.core.bench import StageSpec

REGION_M = ((0.0, 0.3), (0.0, 0.2))
TRAVEL_M = (0.32, 0.22, 0.1)
SPEC = {"speed_m_s": 0.1, "acceleration_m_s2": 0.5, "settle_s": 0.2, "power_w": 6.0}


class Firmware:
    """An emulated controller as a transport and as what the clock moves; what it says passes through `mangle`."""

    description = "serial /dev/ttyTEST"

    def __init__(self, eeprom: Eeprom | None = None, machine: Machine | None = None) -> None:
        stock = Eeprom.for_stage(travel_m=TRAVEL_M, speed_m_s=0.1, acceleration_m_s2=0.5, hard_limits=True)
        self.grbl = GrblFirmware(eeprom or stock, machine)
        self.clock = Clock(self)
        self.said = bytearray()
        self.sent = bytearray()
        self.mangle: Callable[[bytes], bytes] = bytes
        self.gone = False
        self.hears: Callable[[bytes], bytes] = bytes
        self.num_opened = 0

    def say(self, data: bytes) -> None:
        self.said += self.mangle(data)

    # Wire and Transport

    def serial(self, url: str, *, baud: int) -> Firmware:
        assert (url, baud) == ("/dev/ttyTEST", 115_200)
        self.num_opened += 1
        return self

    def tcp(self, host: str, port: int, *, connect_timeout_s: float) -> Firmware:
        raise AssertionError("a stage needs no TCP")

    def send(self, *parts: bytes) -> None:
        if self.gone:
            raise TransportClosed(f"{self.description}: gone", remedy="plug it in")
        data = b"".join(bytes(part) for part in parts)
        self.sent += data
        self.say(self.grbl.feed(self.hears(data), self.clock.now_s()))

    def receive(self, most: int, *, timeout_s: float) -> bytes:
        if self.gone:
            raise TransportClosed(f"{self.description}: gone", remedy="plug it in")
        if not self.said:
            raise TransportTimeout("nothing came")
        data = bytes(self.said[:most])
        del self.said[:most]
        return data

    def receive_into(self, view: memoryview, *, timeout_s: float) -> int:
        raise AssertionError("lines are not received into buffers")

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.num_opened -= 1


class Clock(VirtualClock):
    """Passes in steps, so that the firmware runs and events strike on the way."""

    def __init__(self, firmware: Firmware) -> None:
        super().__init__(1.0)
        self.firmware = firmware
        self.events: list[tuple[float, Callable[[], object]]] = []

    def wait_until(self, at_s: float) -> None:
        for event in sorted(self.events, key=lambda event: event[0]):
            if event[0] <= at_s:
                self.events.remove(event)
                self._pass(event[0])
                event[1]()
        self._pass(at_s)

    def _pass(self, at_s: float) -> None:
        super().wait_until(at_s)
        self.firmware.say(self.firmware.grbl.advance(self.now_s()))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self.events.append((self.now_s() + seconds, action))


def stage_on(firmware: Firmware, *, home_m: tuple[float, float] = (0.1, 0.1), **changes: Any) -> GrblStage:
    device = {"port": "/dev/ttyTEST", **changes.pop("device", {})}
    spec = StageSpec(**{**SPEC, "device": device, **changes})
    return GrblStage(spec, region_m=REGION_M, home_m=home_m, clock=firmware.clock, wire=firmware)


def ready_stage(firmware: Firmware, **changes: Any) -> GrblStage:
    stage = stage_on(firmware, **changes)
    stage.make_ready()
    firmware.sent.clear()
    return stage


def really_m(firmware: Firmware) -> np.ndarray:
    """Where the carriages are in the stage frame: the upper end stop is one pull-off below machine zero."""
    return firmware.grbl.machine_m(firmware.clock.now_s())[:2] + np.array([0.301, 0.201])


def jogs(firmware: Firmware) -> list[str]:
    return re.findall(r"\$J=[^\n]*", firmware.sent.decode("latin-1"))
