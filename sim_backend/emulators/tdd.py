"""The transfer trigger: the generic TDD engine of the FPGA image, which starts buffers at a pulse.

Facts: Analog Devices' `axi_tdd` core and its Linux driver `adi-axi-tdd`. Timing registers are locked while the core is
enabled: writing them then does nothing, and says nothing. Counts are cycles of the sample clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sim_backend.emulators.attribute_tree import Attribute, Channel, Device, Store, constant, integer, millionths

NAME, LABEL = "adi-iio-fakedev", "iio-axi-tdd-0"
_WORD = (1 << 32) - 1
_CHANNELS = 3
_NS_S = 10**9
_ARMED, _IDLE = 1, 0


@dataclass(frozen=True)
class TddChannel:
    """One output of the engine; 1 starts the receive transfer, 2 the transmit transfer."""

    enable: bool = False
    on_raw: int = 0
    off_raw: int = 0
    polarity: bool = False


@dataclass(frozen=True)
class TddState:
    """What the registers hold.

    Attributes:
        enable: whether the core runs; buffers run freely otherwise.
        sync_external: whether a pulse on the pin starts it.
        sync_internal: whether its own generator starts it.
        sync_reset: whether a pulse restarts a running frame.
        startup_delay_raw: cycles from the pulse to the first frame.
        frame_length_raw: cycles of a frame.
        burst_count: frames after a pulse; 0 without end.
        sync_period_raw: cycles between two pulses of its own generator.
        channels: its outputs.
    """

    enable: bool = False
    sync_external: bool = False
    sync_internal: bool = False
    sync_reset: bool = False
    startup_delay_raw: int = 0
    frame_length_raw: int = 0
    burst_count: int = 0
    sync_period_raw: int = 0
    channels: tuple[TddChannel, ...] = field(default=(TddChannel(),) * _CHANNELS)


class TddEngine:
    """The registers behind the attributes.

    Args:
        rate_hz: tells the sample rate as the driver knows it.
        soft_trigger: called when `sync_soft` is written.
    """

    def __init__(self, rate_hz: Callable[[], int], soft_trigger: Callable[[], None]) -> None:
        self._rate_hz = rate_hz
        self._soft_trigger = soft_trigger
        self._switches: dict[str, bool] = {}
        self._counts: dict[str, int] = {}
        self._outputs: list[dict[str, int]] = [{} for _ in range(_CHANNELS)]
        self.reset()

    def reset(self) -> None:
        """As after power-up."""
        self._switches.update(dict.fromkeys(("enable", "sync_external", "sync_internal", "sync_reset"), False))
        self._counts.update(dict.fromkeys(("startup_delay", "frame_length", "burst_count", "internal_sync_period"), 0))
        for registers in self._outputs:
            registers.update(dict.fromkeys(("enable", "polarity", "on", "off"), 0))

    @property
    def state(self) -> TddState:
        """What the registers hold now."""
        counts = self._counts
        return TddState(
            **self._switches,
            startup_delay_raw=counts["startup_delay"],
            frame_length_raw=counts["frame_length"],
            burst_count=counts["burst_count"],
            sync_period_raw=counts["internal_sync_period"],
            channels=tuple(
                TddChannel(bool(output["enable"]), output["on"], output["off"], bool(output["polarity"]))
                for output in self._outputs
            ),
        )

    def device(self, identifier: str) -> Device:
        """Its attributes."""
        attributes = [
            constant("version", "2.00.a"),
            constant("core_id", "0"),
            constant("magic", "0x5444444e"),
            Attribute("state", lambda: str(_ARMED if self._switches["enable"] else _IDLE)),
            Attribute("sync_soft", store=self._pulse),
            self._count("burst_count", self._counts, "burst_count"),
        ]
        attributes += [self._switch(name) for name in self._switches]
        for name in ("startup_delay", "frame_length"):
            attributes += self._timing(name, self._counts, name)
        attributes += self._timing("internal_sync_period", self._counts, "internal_sync_period", (1 << 64) - 1)
        channels = tuple(self._output(index) for index in range(_CHANNELS))
        return Device(identifier, NAME, channels, tuple(attributes), label=LABEL)

    def _output(self, index: int) -> Channel:
        registers = self._outputs[index]
        attributes = [
            Attribute("enable", lambda: str(registers["enable"]), self._flag(registers, "enable", locked=False)),
            Attribute("polarity", lambda: str(registers["polarity"]), self._flag(registers, "polarity", locked=True)),
            *self._timing("on", registers, "on"),
            *self._timing("off", registers, "off"),
        ]
        return Channel(f"channel{index}", True, tuple(attributes))

    def _pulse(self, value: str) -> None:
        if integer(value, highest=_WORD):
            self._soft_trigger()

    def _switch(self, name: str) -> Attribute:
        def store(value: str) -> None:
            self._switches[name] = bool(integer(value, highest=_WORD))

        return Attribute(name, lambda: str(int(self._switches[name])), store)

    def _flag(self, registers: dict[str, int], key: str, *, locked: bool) -> Store:
        def store(value: str) -> None:
            flag = int(bool(integer(value, highest=_WORD)))
            if not (locked and self._switches["enable"]):
                registers[key] = flag

        return store

    def _count(self, name: str, registers: dict[str, int], key: str, highest: int = _WORD) -> Attribute:
        def store(value: str) -> None:
            self._load(registers, key, integer(value, highest=highest))

        return Attribute(name, lambda: str(registers[key]), store)

    def _timing(self, name: str, registers: dict[str, int], key: str, highest: int = _WORD) -> list[Attribute]:
        def show_ms() -> str:
            nanoseconds = registers[key] * _NS_S // self._rate_hz()
            return f"{nanoseconds // 10**6}.{nanoseconds % 10**6:06d}"

        def store_ms(value: str) -> None:
            cycles = (abs(millionths(value)) * self._rate_hz() + _NS_S // 2) // _NS_S
            self._load(registers, key, integer(str(cycles), highest=highest))

        return [self._count(f"{name}_raw", registers, key, highest), Attribute(f"{name}_ms", show_ms, store_ms)]

    def _load(self, registers: dict[str, int], key: str, value: int) -> None:
        if not self._switches["enable"]:
            registers[key] = value
