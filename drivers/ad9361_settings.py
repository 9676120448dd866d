"""Settings of an AD936x through the attributes of its Linux driver: what it can do, how it is set, what it says.

Every setting is written only where it differs - a synthesiser that is written again comes back with another phase -
and all of them are read back. Surprises of the driver that this order takes care of: a sample rate resets the transmit
gain, a receive gain is ignored outside manual mode, the tone generators transmit when no buffer does, a bandwidth
beyond the chip's is cut down silently.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeVar

from drivers.ad9361_fir import fir_config
from drivers.iiod_client import BrokenLink, IiodClient
from drivers.iiod_context import DeviceEntry, ScanFormat
from drivers.pluto_port import MUTED_DB, PlutoSettings
from testbed.core.errors import DeviceError, LimitError, RadioFault

LOWEST_RATE_HZ = 520_834
"""25 MHz through all of its filters, FIR by four included."""
LOWEST_RATE_WITHOUT_FIR_HZ = 2_083_334
_BETWEEN_RATE_HZ = 3_000_000
"""A rate at which the FIR filters may be switched."""
_AD9363_BANDWIDTH_HZ = 20_000_000
_FREQUENCY_STEP_HZ = 8
"""The synthesiser's step is 4.8 Hz at most, and the driver drops odd hertz."""
RATE_STEP_HZ = 8
"""Largest distance of a rate from what was asked for."""
_Value = TypeVar("_Value", int, float)
_RX_LO, _TX_LO = "altvoltage0", "altvoltage1"


@dataclass(frozen=True)
class Registers:
    """What the chip says of itself, receive and transmit apart."""

    rx_frequency_hz: int
    tx_frequency_hz: int
    rx_rate_hz: int
    tx_rate_hz: int
    rx_bandwidth_hz: int
    tx_bandwidth_hz: int
    rx_gains_db: tuple[float, ...]
    gain_modes: tuple[str, ...]
    tx_gain_db: float
    tx_down: bool
    xo_correction: int

    @property
    def muted(self) -> bool:
        """Whether it was silenced."""
        return self.tx_down or self.tx_gain_db <= MUTED_DB

    def summary(self, wanted: PlutoSettings | None) -> PlutoSettings:
        """In short: where receive and transmit differ, what is farther from what is wanted."""
        order = wanted or PlutoSettings(
            self.tx_frequency_hz, self.rx_rate_hz, self.rx_bandwidth_hz, self.rx_gains_db[0], self.tx_gain_db
        )
        return PlutoSettings(
            frequency_hz=_farther(order.frequency_hz, self.tx_frequency_hz, self.rx_frequency_hz),
            sample_rate_hz=_farther(order.sample_rate_hz, self.rx_rate_hz, self.tx_rate_hz),
            bandwidth_hz=_farther(order.bandwidth_hz, self.rx_bandwidth_hz, self.tx_bandwidth_hz),
            rx_gain_db=_farther(order.rx_gain_db, *self.rx_gains_db),
            tx_gain_db=self.tx_gain_db,
            xo_correction=self.xo_correction,
        )


class Ad9361:
    """One chip with the FPGA cores around it.

    Args:
        client: where it is.

    Raises:
        DeviceError: no such chip is there; the message lists what is.
    """

    def __init__(self, client: IiodClient) -> None:
        self._client = client
        context = client.context
        self.phy = context.device("ad9361-phy")
        self.receiver = context.device("cf-ad9361-lpc")
        self.transmitter = context.device("cf-ad9361-dds-core-lpc")
        self._rx = _channels_with(self.phy, "gain_control_mode", output=False)
        self._tx = _channels_with(self.phy, "hardwaregain", output=True)
        self.num_rx = _complex_channels(self.receiver, output=False)
        self.num_tx = _complex_channels(self.transmitter, output=True)
        if not self._rx or not self._tx or not self.num_rx or not self.num_tx:
            raise DeviceError(
                f"{client.uri}: the ad9361-phy there has no receive or no transmit channel",
                remedy="check that a PlutoSDR with its usual firmware answers there",
            )
        self._narrow = "ad9363" in context.attributes.get("ad9361-phy,model", "")
        self._fir_loaded = False

    # --- what it says -----------------------------------------------------------------------------------------------

    def registers(self) -> Registers:
        """Read all of it."""
        return Registers(
            rx_frequency_hz=self._integer("frequency", _RX_LO, output=True),
            tx_frequency_hz=self._integer("frequency", _TX_LO, output=True),
            rx_rate_hz=self._integer("sampling_frequency", self._rx[0]),
            tx_rate_hz=self._integer("sampling_frequency", self._tx[0], output=True),
            rx_bandwidth_hz=self._integer("rf_bandwidth", self._rx[0]),
            tx_bandwidth_hz=self._integer("rf_bandwidth", self._tx[0], output=True),
            rx_gains_db=tuple(self._number("hardwaregain", each) for each in self._rx),
            gain_modes=tuple(self._text("gain_control_mode", each) for each in self._rx),
            tx_gain_db=self._number("hardwaregain", self._tx[0], output=True),
            tx_down=self._text("powerdown", _TX_LO, output=True) == "1",
            xo_correction=self._integer("xo_correction"),
        )

    def check(self, wanted: PlutoSettings) -> PlutoSettings:
        """Whole numbers and steps of the chip for what is wanted.

        Raises:
            LimitError: the chip cannot do it; nothing is written.
        """
        frequency_hz = self._whole(wanted.frequency_hz, "frequency_hz")
        for channel in (_RX_LO, _TX_LO):
            self._within(frequency_hz, "frequency_hz", "frequency_available", channel, output=True)
        rate_hz = self._whole(wanted.sample_rate_hz, "sample_rate_hz")
        highest_hz = self._range("sampling_frequency_available", self._rx[0], output=False)[1]
        self._inside(rate_hz, "sample_rate_hz", LOWEST_RATE_HZ, highest_hz)
        bandwidth_hz = self._whole(wanted.bandwidth_hz, "bandwidth_hz")
        self._within(bandwidth_hz, "bandwidth_hz", "rf_bandwidth_available", self._rx[0])
        self._within(bandwidth_hz, "bandwidth_hz", "rf_bandwidth_available", self._tx[0], output=True)
        if self._narrow:
            self._inside(bandwidth_hz, "bandwidth_hz", 0, _AD9363_BANDWIDTH_HZ)
        self._within(wanted.rx_gain_db, "rx_gain_db", "hardwaregain_available", self._rx[0])
        self._within(wanted.tx_gain_db, "tx_gain_db", "hardwaregain_available", self._tx[0], output=True)
        crystal_hz = wanted.xo_correction
        if crystal_hz is not None:
            crystal_hz = self._whole(crystal_hz, "xo_correction")
            self._within(crystal_hz, "xo_correction", "xo_correction_available")
        return PlutoSettings(
            frequency_hz,
            rate_hz,
            bandwidth_hz,
            float(round(wanted.rx_gain_db)),
            math.floor(wanted.tx_gain_db * 4 + 1e-6) / 4,  # never more than was asked for
            crystal_hz,
        )

    def differences(self, wanted: PlutoSettings, found: Registers) -> list[str]:
        """What differs by more than the chip's rounding, in words."""
        pairs: list[tuple[str, float, float, float]] = [
            ("receive frequency in Hz", found.rx_frequency_hz, wanted.frequency_hz, _FREQUENCY_STEP_HZ),
            ("transmit frequency in Hz", found.tx_frequency_hz, wanted.frequency_hz, _FREQUENCY_STEP_HZ),
            ("receive rate in Hz", found.rx_rate_hz, wanted.sample_rate_hz, RATE_STEP_HZ),
            ("transmit rate in Hz", found.tx_rate_hz, wanted.sample_rate_hz, RATE_STEP_HZ),
            ("receive bandwidth in Hz", found.rx_bandwidth_hz, wanted.bandwidth_hz, 2),
            ("transmit bandwidth in Hz", found.tx_bandwidth_hz, wanted.bandwidth_hz, 2),
            *(("receive gain in dB", gain_db, wanted.rx_gain_db, 0.5) for gain_db in found.rx_gains_db),
            ("transmit gain in dB", found.tx_gain_db, wanted.tx_gain_db, 0.01),
        ]
        if wanted.xo_correction is not None:
            pairs.append(("xo_correction", found.xo_correction, wanted.xo_correction, 0))
        words = [
            f"{name} is {now:.10g}, not {then:.10g}" for name, now, then, off in pairs if not abs(now - then) <= off
        ]
        words += [f"gain control is {mode}, not manual" for mode in found.gain_modes if mode != "manual"]
        return words + (["the transmit synthesiser is off"] if found.tx_down else [])

    # --- how it is set ----------------------------------------------------------------------------------------------

    def apply(self, wanted: PlutoSettings, *, transmitting: bool) -> Registers:
        """Set all of it; mute while what changes could be heard, unless a buffer transmits.

        Args:
            wanted: as `check` gave it.
            transmitting: whether a transmit buffer lives; neither the rate nor a far frequency may change then.

        Raises:
            RadioFault: the chip took something else than its rounding explains.
        """
        if not transmitting:
            self.mute_gain()
            self.stop_tones()
        self._change("ensm_mode", "fdd")
        if "loopback" in self.phy.debug_attributes:
            client, phy = self._client, self.phy.identity
            if client.read(phy, "loopback", kind="DEBUG") != "0":
                client.write(phy, "loopback", "0", kind="DEBUG")
        # what was set by another crystal is set again, even where the figures that are shown agree
        crystal_changed = wanted.xo_correction is not None and self._change("xo_correction", str(wanted.xo_correction))
        if not transmitting:
            self._set_rate(wanted.sample_rate_hz, again=crystal_changed)
        for channel, output in ((self._rx[0], False), (self._tx[0], True)):
            self._change("rf_bandwidth", str(wanted.bandwidth_hz), channel, output=output)
        for channel in (_RX_LO, _TX_LO):
            self._change("powerdown", "0", channel, output=True)
            off_hz = abs(self._integer("frequency", channel, output=True) - wanted.frequency_hz)
            if crystal_changed or off_hz > _FREQUENCY_STEP_HZ:
                self._write("frequency", str(wanted.frequency_hz), channel, output=True)
        for channel in self._rx:
            self._change("gain_control_mode", "manual", channel)
            self._write("hardwaregain", f"{wanted.rx_gain_db:.6f}", channel)
        self._write("hardwaregain", f"{wanted.tx_gain_db:.6f}", self._tx[0], output=True)
        found = self.registers()
        if words := self.differences(wanted, found):
            raise RadioFault(
                f"{self._client.uri}: the radio did not take its settings: {'; '.join(words)}",
                remedy="check that no other program sets this radio, then power-cycle it",
            )
        return found

    def mute_gain(self) -> None:
        """Lowest gain of every transmit channel, read back."""
        for channel in self._tx:
            self._write("hardwaregain", f"{MUTED_DB:.6f}", channel, output=True)
            gain_db = self._number("hardwaregain", channel, output=True)
            if gain_db > MUTED_DB:
                raise RadioFault(
                    f"{self._client.uri}: the transmit gain of {channel} stays at {gain_db:g} dB",
                    remedy="switch the radio off: it may radiate",
                )

    def stop_tones(self) -> None:
        """Switch the tone generators off, which transmit whenever no buffer does."""
        device = self.transmitter
        for channel in device.channels:
            if channel.output and "raw" in channel.attributes:
                self._client.write(device.identity, "raw", "0", channel=channel.identity, output=True)

    def power_down(self) -> None:
        """Switch the transmit synthesiser off."""
        self._write("powerdown", "1", _TX_LO, output=True)

    def _set_rate(self, rate_hz: int, *, again: bool) -> None:
        """Below 2.083 MS/s the FIR filters have to be on, with our taps; above they are off."""
        filtered = self._text("voltage_filter_fir_en", "out") == "1"
        needed = rate_hz < LOWEST_RATE_WITHOUT_FIR_HZ
        if filtered != needed or (needed and not self._fir_loaded):
            self._write("sampling_frequency", str(_BETWEEN_RATE_HZ), self._rx[0])
            if filtered:
                self._write("voltage_filter_fir_en", "0", "out")
            if needed:
                self._write("filter_fir_config", fir_config())
                self._write("voltage_filter_fir_en", "1", "out")
                self._fir_loaded = True
        if again or abs(self._integer("sampling_frequency", self._rx[0]) - rate_hz) > RATE_STEP_HZ:
            self._write("sampling_frequency", str(rate_hz), self._rx[0])
        self._set_fpga_rate(self.receiver, self._integer("sampling_frequency", self._rx[0]), output=False)
        self._set_fpga_rate(
            self.transmitter, self._integer("sampling_frequency", self._tx[0], output=True), output=True
        )

    def _set_fpga_rate(self, device: DeviceEntry, rate_hz: int, *, output: bool) -> None:
        """Switch off the FPGA's own division by eight, where it has one."""
        channel = device.scanned(output=output)[0]
        if "sampling_frequency" not in channel.attributes:
            return
        client, name = self._client, "sampling_frequency"
        if client.read(device.identity, name, channel=channel.identity, output=output) == str(rate_hz):
            return
        client.write(device.identity, name, str(rate_hz), channel=channel.identity, output=output)
        found = client.read(device.identity, name, channel=channel.identity, output=output)
        if found != str(rate_hz):
            raise RadioFault(
                f"{client.uri}: {device.name} runs at {found} samples a second, the chip at {rate_hz}",
                remedy="power-cycle the radio",
            )

    # --- attributes -------------------------------------------------------------------------------------------------

    def _text(self, attribute: str, channel: str | None = None, *, output: bool = False) -> str:
        return self._client.read(self.phy.identity, attribute, channel=channel, output=output)

    def _number(self, attribute: str, channel: str | None = None, *, output: bool = False) -> float:
        text = self._text(attribute, channel, output=output)
        try:
            number = float(text.removesuffix(" dB"))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BrokenLink(
                f"{self._client.uri}: {attribute} of {channel or self.phy.name} reads {text!r}, which is no number",
                remedy="power-cycle the radio where it says so again",
            )
        return number

    def _integer(self, attribute: str, channel: str | None = None, *, output: bool = False) -> int:
        return int(self._number(attribute, channel, output=output))

    def _write(self, attribute: str, value: str, channel: str | None = None, *, output: bool = False) -> None:
        self._client.write(self.phy.identity, attribute, value, channel=channel, output=output)

    def _change(self, attribute: str, value: str, channel: str | None = None, *, output: bool = False) -> bool:
        """Write what differs; whether it did."""
        if self._text(attribute, channel, output=output) == value:
            return False
        self._write(attribute, value, channel, output=output)
        return True

    def _range(self, attribute: str, channel: str | None, *, output: bool) -> tuple[float, float]:
        """Ends of a range written [low step high]."""
        text = self._text(attribute, channel, output=output)
        found = re.fullmatch(r"\[(\S+) \S+ (\S+)\]", text.strip())
        if found is None:
            raise BrokenLink(
                f"{self._client.uri}: {attribute} reads {text!r}, which is no range",
                remedy="power-cycle the radio where it says so again",
            )
        return float(found[1]), float(found[2])

    def _within(
        self, value: float, name: str, attribute: str, channel: str | None = None, *, output: bool = False
    ) -> None:
        self._inside(value, name, *self._range(attribute, channel, output=output))

    def _inside(self, value: float, name: str, lowest: float, highest: float) -> None:
        if not lowest <= value <= highest:
            raise LimitError(
                f"{self._client.uri}: {name} = {value:.10g} is beyond this radio",
                remedy=f"choose {lowest:.10g} to {highest:.10g}",
            )

    def _whole(self, value: float, name: str) -> int:
        if not math.isfinite(value) or value != int(value):
            raise LimitError(f"{self._client.uri}: {name} = {value} is no whole number", remedy="give whole hertz")
        return int(value)


def _farther(ordered: _Value, *found: _Value) -> _Value:
    return max(found, key=lambda value: abs(value - ordered))


def _channels_with(device: DeviceEntry, attribute: str, *, output: bool) -> tuple[str, ...]:
    return tuple(each.identity for each in device.channels if each.output == output and attribute in each.attributes)


def _complex_channels(device: DeviceEntry, *, output: bool) -> int:
    """How many, each of two elements of 16 bits."""
    scanned = device.scanned(output=output)
    for channel in scanned:
        form = channel.scan_format
        bits = 16 if output else 12
        if form != ScanFormat(True, True, bits, 16, 0):
            raise DeviceError(
                f"{device.name}: samples of {channel.identity} are not int16 with {bits} bits in use, but {form}",
                remedy="check that a PlutoSDR with its usual firmware answers there",
            )
    return len(scanned) // 2
