"""One radio as its attributes show it: AD936x, FPGA cores and firmware. No sockets, no time, no samples."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sim_backend.emulators.attribute_tree import Attribute, Channel, Device, Kind, constant, refusal
from sim_backend.emulators.converters import OVERFLOW, RECEIVE, TRANSMIT, UNDERFLOW, Core, Tone
from sim_backend.emulators.tdd import TddEngine, TddState
from sim_backend.emulators.transceiver import RX, TX, Calibration, Grade, Transceiver
from sim_backend.emulators.transceiver_files import TransceiverFiles

PHY = "ad9361-phy"
_RANGES_HZ = {
    "ad9363a": (325_000_000, 3_800_000_000, 20_000_000),
    "ad9364": (70_000_000, 6_000_000_000, 56_000_000),
    "ad9361": (70_000_000, 6_000_000_000, 56_000_000),
}


@dataclass(frozen=True)
class Identity:
    """Which radio it is.

    Attributes:
        serial: hw_serial.
        firmware: fw_version.
        model: hw_model.
        two_channels: whether both receivers and transmitters are in use.
        triggered: whether its FPGA image has the transfer trigger.
        xo_ppm: how far the crystal is from the frequency that the maker measured.
        xo_hz: the frequency that the maker measured.
        transceiver: what the firmware takes the chip for; only "ad9363a" has the guaranteed ranges alone.
        rate_resets_tx_gain: whether a new sample rate sets the transmit gain to -10 dB, as users report.
    """

    serial: str
    firmware: str = "v0.38"
    model: str = "Analog Devices PlutoSDR Rev.C (Z7010-AD9364)"
    two_channels: bool = False
    triggered: bool = False
    xo_ppm: float = 0.0
    xo_hz: int = 40_000_000
    transceiver: Literal["ad9363a", "ad9364", "ad9361"] = "ad9363a"
    rate_resets_tx_gain: bool = True

    @property
    def num_channels(self) -> int:
        """Complex channels of each direction."""
        return 2 if self.two_channels else 1


class Chip:
    """State behind the attributes; safe to use from several threads.

    Its lock orders writes and is free again before anybody else is called, so whoever calls it, or is called by it, may
    hold locks of their own. Reading takes no lock.

    Args:
        identity: which radio it is.

    Attributes:
        changed: called after every successful write with the attribute's name.
        soft_trigger: called when the trigger engine is told to pulse by itself.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.changed: Callable[[str], None] | None = None
        self.soft_trigger: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._pulsed = False
        lowest_hz, highest_hz, widest_hz = _RANGES_HZ[identity.transceiver]
        self._phy = Transceiver(
            Grade(
                lowest_hz,
                highest_hz,
                widest_hz,
                identity.num_channels,
                identity.xo_hz,
                identity.xo_ppm,
                identity.rate_resets_tx_gain,
            )
        )
        self._receive = Core(False, identity.num_channels, lambda: self._phy.rate_hz)
        self._transmit = Core(True, identity.num_channels, lambda: self._phy.rate_hz)
        self._tdd = TddEngine(lambda: self._phy.rate_hz, self._pulse)
        self.devices = self._devices()
        """In the order of the context. The trigger's image numbers them otherwise than the stock one: go by names."""
        self._by_name = {
            name: device for device in self.devices for name in (device.name, device.label, device.id) if name
        }

    # --- attributes -------------------------------------------------------------------------------------------------

    def device(self, name: str) -> Device:
        """Find a device by id, name or label.

        Raises:
            OSError: ENODEV, there is none.
        """
        device = self._by_name.get(name)
        if device is None:
            raise refusal(errno.ENODEV)
        return device

    def read(self, device: str, channel: str | None, output: bool | None, attribute: str, kind: Kind = "") -> str:
        """An attribute's text, without line end.

        Args:
            device: id, name or label.
            channel: id or name; None for the device's own attributes.
            output: whether the channel is an output.
            attribute: name.
            kind: "debug" or "buffer" for those of a device.

        Raises:
            OSError: with the kernel's errno.
        """
        return self.device(device).attribute(channel, output, attribute, kind).read()

    def write(
        self, device: str, channel: str | None, output: bool | None, attribute: str, kind: Kind = "", value: str = ""
    ) -> None:
        """Set an attribute, see `read`.

        Raises:
            OSError: with the kernel's errno; nothing has changed then.
        """
        found = self.device(device).attribute(channel, output, attribute, kind)
        with self._lock:
            found.write(value)
            pulsed, self._pulsed = self._pulsed, False
        self._tell(attribute)
        if pulsed and self.soft_trigger is not None:
            self.soft_trigger()

    def reset(self) -> None:
        """Power off and on; what happened so far stays counted."""
        with self._lock:
            self._phy.reset()
            for part in (self._receive, self._transmit, self._tdd):
                part.reset()
        self._tell("reset")

    def _tell(self, attribute: str) -> None:
        if self.changed is not None:
            self.changed(attribute)

    def _pulse(self) -> None:
        self._pulsed = True

    # --- what the radio does: true values after rounding ------------------------------------------------------------

    @property
    def rx_lo_hz(self) -> float:
        """Carrier of the receiver."""
        return self._phy.now.carriers[RX].true_hz(self._phy.true_crystal_hz)

    @property
    def tx_lo_hz(self) -> float:
        """Carrier of the transmitter."""
        return self._phy.now.carriers[TX].true_hz(self._phy.true_crystal_hz)

    @property
    def sample_rate_hz(self) -> float:
        """Of both directions."""
        return self._phy.now.chain.true_hz(self._phy.true_crystal_hz)

    @property
    def rx_bandwidth_hz(self) -> float:
        """Of the receiver's analogue filter, both sides of the carrier together."""
        return float(self._phy.now.bandwidth_hz[RX])

    @property
    def tx_bandwidth_hz(self) -> float:
        """Of the transmitter's analogue filter."""
        return float(self._phy.now.bandwidth_hz[TX])

    def rx_gain_db(self, channel: int) -> float:
        """Manual gain of a receive channel, 0 or 1."""
        return float(self._phy.now.manual_gain_db[channel])

    def gain_mode(self, channel: int) -> str:
        """Who sets the gain of a receive channel: "manual", "slow_attack", "fast_attack" or "hybrid"."""
        return self._phy.now.gain_modes[channel]

    def tx_gain_db(self, channel: int) -> float:
        """Gain of a transmit channel, 0 down to -89.75."""
        return -self._phy.now.attenuation_mdb[channel] / 1000

    @property
    def rx_powerdown(self) -> bool:
        """Whether the receiver hears nothing: its synthesiser is off, or the chip sleeps."""
        return self._phy.now.powerdown[RX] or self._phy.resting

    @property
    def tx_powerdown(self) -> bool:
        """Whether the transmitter radiates nothing: its synthesiser is off, or the chip sleeps."""
        return self._phy.now.powerdown[TX] or self._phy.resting

    @property
    def loopback(self) -> int:
        """0 none, 1 transmit samples come back inside the chip, 2 the reverse at the antenna side."""
        return self._phy.now.loopback

    @property
    def dds_tones(self) -> list[list[Tone]]:
        """Of each transmit channel, first and second of I, then of Q; they sound while no transmit buffer lives."""
        return [[generator.tone for generator in channel] for channel in self._transmit.generators]

    def fir_enabled(self, output: bool) -> bool:
        """Whether the programmable filter of that direction is on."""
        return self._phy.now.fir_enabled[output]

    def fir_gain(self, output: bool) -> float:
        """Amplitude that the programmable filter adds near the carrier; 1 where it is off."""
        if not self._phy.now.fir_enabled[output]:
            return 1.0
        firs = self._phy.now.firs
        return firs.transmit.gain(interpolates=True) if output else firs.receive.gain(interpolates=False)

    @property
    def tdd(self) -> TddState:
        """The trigger engine; at rest where the image has none."""
        return self._tdd.state if self.identity.triggered else TddState()

    @property
    def tunings(self) -> int:
        """Transmit carriers set so far, and starts of the chip: each begins with another phase."""
        return self._phy.tunings[TX]

    @property
    def rx_tunings(self) -> int:
        """Receive carriers set so far, and starts of the chip."""
        return self._phy.tunings[RX]

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """Calibrations of the transmitter so far, each a burst at full drive."""
        return tuple(self._phy.calibrations)

    @property
    def calibration_bursts(self) -> int:
        """Calibrations that happened while a transmit buffer lived."""
        return sum(calibration.buffer_open for calibration in self._phy.calibrations)

    # --- told by the buffers and by who renders -----------------------------------------------------------------------

    def transmit_buffer_opened(self) -> None:
        """A transmit buffer lives from now on: calibrations would radiate into it."""
        with self._lock:
            self._phy.transmit_buffers += 1

    def transmit_buffer_closed(self) -> None:
        """It lives no more."""
        with self._lock:
            self._phy.transmit_buffers -= 1

    def lost_samples(self, output: bool) -> None:
        """A buffer overflowed, or underflowed where it transmits: set the bit that clients look at."""
        core, bit = (self._transmit, UNDERFLOW) if output else (self._receive, OVERFLOW)
        core.status |= bit

    def heard(self, channel: int, *, gain_db: float, rssi_db: float) -> None:
        """What a receive channel's automatic gain has come to, and the strength it shows.

        Args:
            channel: 0 or 1.
            gain_db: of the loop.
            rssi_db: below full strength, as the attribute `rssi` counts.
        """
        self._phy.now.agc_gain_db[channel] = round(gain_db)
        self._phy.now.rssi_db[channel] = rssi_db

    # --- the context ------------------------------------------------------------------------------------------------

    def _devices(self) -> tuple[Device, ...]:
        builders: list[Callable[[str], Device]] = [self._phy_device, _xadc_device]
        if self.identity.triggered:
            builders += [_pins_device]
        builders += [self._transmit.device, self._receive.device]
        if self.identity.triggered:
            builders += [self._tdd.device]
        return tuple(build(f"iio:device{number}") for number, build in enumerate(builders))

    def _phy_device(self, identifier: str) -> Device:
        files = TransceiverFiles(self._phy)
        channels = [
            Channel("altvoltage0", True, files.carrier(RX), "RX_LO"),
            Channel("altvoltage1", True, files.carrier(TX), "TX_LO"),
            Channel("temp0", False, (constant("input", "34211"),)),
            Channel("out", False, (files.both_firs(),)),
        ]
        for index in range(self.identity.num_channels):
            channels.append(Channel(f"voltage{index}", True, files.transmit(index)))
            channels.append(Channel(f"voltage{index}", False, files.receive(index)))
        return Device(identifier, PHY, tuple(channels), files.device(), files.debug())


def _xadc_device(identifier: str) -> Device:
    channels = [
        Channel(
            "temp0", False, (constant("offset", "-2219"), constant("raw", "2640"), constant("scale", "123.040771484"))
        )
    ]
    for index, (name, raw) in enumerate((("vccint", 1372), ("vccaux", 2470), ("vccbram", 1373))):
        attributes = (constant("raw", str(raw)), constant("scale", "0.732421875"))
        channels.append(Channel(f"voltage{index}", False, attributes, name))
    return Device(identifier, "xadc", tuple(channels))


def _pins_device(identifier: str) -> Device:
    """Output pins of the trigger's image; what they drive is not modelled."""
    channels = []
    for index, label in enumerate(("phaser_enable", "tdd_ext_sync")):
        channels.append(Channel(f"voltage{index}", True, (constant("label", label), _pin())))
    return Device(identifier, "one-bit-adc-dac", tuple(channels))


def _pin() -> Attribute:
    levels = ["0"]

    def store(value: str) -> None:
        if value.strip() not in ("0", "1"):
            raise refusal(errno.EINVAL)
        levels[0] = value.strip()

    return Attribute("raw", lambda: levels[0], store)


__all__ = ["PHY", "RECEIVE", "TRANSMIT", "Chip", "Identity"]
