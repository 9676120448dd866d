"""One AD936x through pyadi-iio and libiio, inside the process that `drivers.adi_process` is.

Attributes go through `adi.Pluto` (one channel) or `adi.ad9361` (two), buffers through `iio.Buffer` on the same context,
since a receive buffer has to be open long before its samples are read. Facts about both libraries are those of
pyadi-iio 0.0.21 with pylibiio 0.25 and libiio 0.24.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from drivers.adi_install import import_adi
from drivers.pluto_port import MUTED_DB, PlutoFacts, PlutoSettings
from testbed.core.errors import BenchError, DeviceError, LimitError, RadioFault

CALIBRATION_STEP_HZ = 100e6
"""A transmit carrier that moves further makes the chip calibrate, at full power."""

_LOWEST_RATE_HZ = 520_834  # 25 MHz through all filters, the FIR by four included
_STEP_HZ = 10  # how far carriers and rates are rounded at most
_BETWEEN_RATE_HZ = 3_000_000  # at which the filters may be switched
_BLOCK = 8  # transfers are multiples of so many samples, of eight bytes at least
_TAIL = 64  # zeros behind a burst, so that its last samples leave the filters
# a timeout inside libiio leaves its link one answer behind for ever; the parent kills this process long before
_TIMEOUT_MS = 120_000
_TRIGGER = "iio-axi-tdd-0"
_TRIGGER_LINES = ("phaser_enable", "tdd_ext_sync")
_MOST_TRIGGER_CYCLES = 2**32 - 1


class AdiSession:
    """The radio at a URI; at most one receive and one transmit buffer live at a time.

    Args:
        uri: "ip:HOST" or "ip:HOST:PORT".

    Raises:
        ConfigError: pyadi-iio cannot be imported.
        DeviceError: nothing answers there, or something else than an AD936x.
    """

    def __init__(self, uri: str) -> None:
        adi, self._iio = import_adi()
        self._uri = uri
        try:
            # given the context, pyadi-iio cannot swallow why there is none
            context = self._iio.Context(uri)
        except OSError as error:
            raise DeviceError(
                f"{uri}: libiio cannot open it: {error.strerror or error}",
                remedy="check address and port, and that the radio's iiod runs (iio_info -u says the same)",
            ) from error
        self._phy = self._device(context, "ad9361-phy")
        self._adc = self._device(context, "cf-ad9361-lpc")
        self._dac = self._device(context, "cf-ad9361-dds-core-lpc")
        self._trigger = context.find_device(_TRIGGER)
        self._gpio = context.find_device("one-bit-adc-dac")
        self._context = context
        self._num_rx = self._count(self._adc, output=False)
        self._num_tx = self._count(self._dac, output=True)
        self._sdr = adi.ad9361(context) if self._num_rx > 1 else adi.Pluto(context)
        context.set_timeout(_TIMEOUT_MS)
        self._rx: Any = None
        self._tx: Any = None
        self._num_samples = 0
        self._rx_triggered = self._tx_triggered = False
        self._filters: str | None = None
        self._tx_gain_db = MUTED_DB

    # --- settings -----------------------------------------------------------------------------------------------------

    def facts(self) -> PlutoFacts:
        """Who answers."""
        told = self._context.attrs
        return PlutoFacts(
            uri=self._uri,
            serial=told.get("hw_serial", ""),
            firmware=told.get("fw_version", ""),
            model=told.get("hw_model", ""),
            num_rx=self._num_rx,
            num_tx=self._num_tx,
            triggered=self._trigger is not None,
        )

    def settings(self) -> PlutoSettings:
        """What is set, read now; where channels differ, the higher gain."""
        sdr = self._sdr
        rx_hz, tx_hz = _whole(sdr.rx_lo), _whole(sdr.tx_lo)
        if abs(rx_hz - tx_hz) > _STEP_HZ:
            raise RadioFault(f"{self._uri}: receiver and transmitter are tuned apart, to {rx_hz} and {tx_hz} Hz")
        gains_db = [float(sdr.rx_hardwaregain_chan0)]
        if self._num_rx > 1:
            gains_db.append(float(sdr.rx_hardwaregain_chan1))
        correction = self._phy.attrs.get("xo_correction")
        return PlutoSettings(
            frequency_hz=tx_hz,
            sample_rate_hz=_whole(sdr.sample_rate),
            bandwidth_hz=max(_whole(sdr.rx_rf_bandwidth), _whole(sdr.tx_rf_bandwidth)),
            rx_gain_db=max(gains_db),
            tx_gain_db=max(self._transmit_gains_db()),
            xo_correction=None if correction is None else int(correction.value),
        )

    def configure(self, wanted: PlutoSettings, filters: str | None = None) -> PlutoSettings:
        """Set everything, the rate first, since it resets what comes after it, and read it back.

        Args:
            wanted: what to set.
            filters: text of `filter_fir_config`, where the rate needs FIR filters.

        Raises:
            LimitError: the chip cannot do it, or a buffer lives that would radiate the chip's calibration; nothing is
                written.
            RadioFault: the chip took something else.
        """
        self._check(wanted)
        if wanted.xo_correction is not None:
            self._write(self._phy, "xo_correction", str(wanted.xo_correction))
        self._set_rate(int(wanted.sample_rate_hz), filters)
        # after the rate, whose change resets the transmit gain
        self._set_transmit_gain(MUTED_DB)
        self._try("DDS", self._sdr.disable_dds)
        # pyadi-iio takes whole numbers of Python for these, and floats for gains
        self._set("rx_rf_bandwidth", int(wanted.bandwidth_hz))
        self._set("tx_rf_bandwidth", int(wanted.bandwidth_hz))
        for name in ("rx_lo", "tx_lo"):
            # a synthesiser that is written again comes back with another phase
            if _apart(getattr(self._sdr, name), wanted.frequency_hz) > _STEP_HZ:
                self._set(name, int(wanted.frequency_hz))
        for channel in range(self._num_rx):
            # a gain is ignored without a word in every other mode
            mode = f"gain_control_mode_chan{channel}"
            self._set(mode, "manual")
            if (found := getattr(self._sdr, mode)) != "manual":
                raise RadioFault(f"{self._uri}: the gain mode is {found}; manual was set", remedy="restart the radio")
            self._set(f"rx_hardwaregain_chan{channel}", float(wanted.rx_gain_db))
        self._set_transmit_gain(wanted.tx_gain_db)
        self._tx_gain_db = wanted.tx_gain_db
        return self._read_back(wanted)

    def unsilence(self) -> None:
        """The transmit synthesiser runs, and the gain is that of `configure`."""
        self._write(self._phy.find_channel("altvoltage1", True), "powerdown", "0")
        self._set_transmit_gain(self._tx_gain_db)

    def _check(self, wanted: PlutoSettings) -> None:
        low_hz, _, high_hz = _interval(self._available("altvoltage1", "frequency"))
        if not low_hz <= wanted.frequency_hz <= high_hz:
            raise LimitError(
                f"{self._uri}: {wanted.frequency_hz} Hz is outside the radio's range of {low_hz:.12g} to "
                f"{high_hz:.12g} Hz"
            )
        step_hz = _apart(self._sdr.tx_lo, wanted.frequency_hz)
        if self._tx is not None and step_hz > CALIBRATION_STEP_HZ:
            raise LimitError(
                f"{self._uri}: a carrier step of {step_hz / 1e6:.0f} MHz while a transmit buffer lives would radiate "
                "the chip's calibration at full power",
                remedy="end the burst first",
            )
        _, _, highest_hz = _interval(self._available("voltage0", "sampling_frequency"))
        if not _LOWEST_RATE_HZ <= wanted.sample_rate_hz <= highest_hz:
            raise LimitError(
                f"{self._uri}: {wanted.sample_rate_hz} samples a second; {_LOWEST_RATE_HZ} to {highest_hz:.0f} are "
                "possible"
            )
        lowest_db, _, highest_db = _interval(self._available("voltage0", "hardwaregain", output=False))
        if not lowest_db <= wanted.rx_gain_db <= highest_db:
            raise LimitError(
                f"{self._uri}: a receive gain of {wanted.rx_gain_db:g} dB; {lowest_db:g} to {highest_db:g} are possible"
            )
        if not MUTED_DB <= wanted.tx_gain_db <= 0:
            raise LimitError(
                f"{self._uri}: a transmit gain of {wanted.tx_gain_db:g} dB; {MUTED_DB:g} to 0 are possible"
            )

    def _set_rate(self, rate_hz: int, filters: str | None) -> None:
        """Not by pyadi-iio's own property, whose filters take 6 dB from the transmitter at 20 MS/s and below."""
        switch = self._phy.find_channel("out")
        filtered = switch.attrs["voltage_filter_fir_en"].value == "1"
        if filtered != (filters is not None) or filters != self._filters:
            self._write_rate(_BETWEEN_RATE_HZ)
            if filtered:
                self._write(switch, "voltage_filter_fir_en", "0")
            if filters is not None:
                self._write(self._phy, "filter_fir_config", filters)
                self._write(switch, "voltage_filter_fir_en", "1")
            self._filters = filters
        if _apart(self._sdr.sample_rate, rate_hz) > _STEP_HZ:
            self._write_rate(rate_hz)

    def _write_rate(self, rate_hz: int) -> None:
        """Of both directions, one clock."""
        self._write(self._phy.find_channel("voltage0"), "sampling_frequency", str(rate_hz))

    def _read_back(self, wanted: PlutoSettings) -> PlutoSettings:
        found = self.settings()
        for name, told, value, unit, tolerance in (
            ("frequency", wanted.frequency_hz, found.frequency_hz, "Hz", _STEP_HZ),
            ("sample rate", wanted.sample_rate_hz, found.sample_rate_hz, "Hz", _STEP_HZ),
            ("bandwidth", wanted.bandwidth_hz, found.bandwidth_hz, "Hz", 1_000),
            ("receive gain", wanted.rx_gain_db, found.rx_gain_db, "dB", 0.99),
            ("transmit gain", wanted.tx_gain_db, found.tx_gain_db, "dB", 0.24),
            ("xo_correction", wanted.xo_correction, found.xo_correction, "Hz", 0),
        ):
            if told is not None and value is not None and not abs(value - told) <= tolerance:
                raise RadioFault(
                    f"{self._uri}: the {name} is {value:.12g} {unit}; {told:.12g} {unit} was set",
                    remedy="check that no other program uses this radio, and restart it",
                )
        return found

    def _set_transmit_gain(self, gain_db: float) -> None:
        """The channel in use; the other one stays muted."""
        self._set("tx_hardwaregain_chan0", float(gain_db))
        if self._num_rx > 1:
            self._set("tx_hardwaregain_chan1", float(MUTED_DB))

    def _transmit_gains_db(self) -> list[float]:
        gains_db = [float(self._sdr.tx_hardwaregain_chan0)]
        if self._num_rx > 1:
            gains_db.append(float(self._sdr.tx_hardwaregain_chan1))
        return gains_db

    # --- buffers ------------------------------------------------------------------------------------------------------

    def open_receive(self, num_samples: int, channels: int, triggered: bool) -> None:
        """A fresh receive buffer in a queue of one."""
        self.close_receive()
        padded = -(-num_samples // _BLOCK) * _BLOCK
        if triggered:
            self._arm_trigger("channel1", on=0, off=padded, end=padded)
            self._rx_triggered = True
        else:
            self._release_trigger()
        self._enable(self._adc, 2 * channels, output=False)
        try:
            self._adc.set_kernel_buffers_count(1)  # before the buffer exists, or it keeps its four
            self._rx = self._iio.Buffer(self._adc, padded, False)
        except OSError as error:
            raise self._buffer_error(error, "receive") from error
        self._num_samples = num_samples

    def receive(self) -> np.ndarray:
        """The samples, shape [num_samples, 2 * channels] int16, once they are there."""
        if self._rx is None:
            raise RadioFault(f"{self._uri}: no receive buffer is open")
        try:
            self._rx.refill()
        except OSError as error:
            raise RadioFault(f"{self._uri}: the receive buffer failed: {error.strerror or error}") from error
        codes = np.frombuffer(self._rx.read(), "<i2").reshape(-1, self._adc.sample_size // 2)
        return (codes[: self._num_samples] << 4) >> 4  # twelve of sixteen bits count, the sign with them

    def close_receive(self) -> None:
        """Destroy the receive buffer."""
        self._rx = None
        if self._rx_triggered:
            self._rx_triggered = False
            self._disarm_trigger("channel1")

    def open_transmit(self, codes: np.ndarray, delay_samples: int | None, cyclic: bool) -> None:
        """A fresh transmit buffer with one waveform; it is on its way if it is cyclic or waits for the trigger."""
        self.close_transmit()
        if not cyclic:
            zeros = _TAIL + -len(codes) % _BLOCK
            codes = np.concatenate([codes, np.zeros((zeros, 2), np.int16)])
        else:
            codes = np.tile(codes, (_BLOCK // math.gcd(len(codes), _BLOCK), 1))
        if delay_samples is not None:
            end = delay_samples + len(codes)
            self._arm_trigger("channel2", on=delay_samples, off=end, end=end)
            self._tx_triggered = True
        else:
            self._release_trigger()
        self._try("DDS", self._sdr.disable_dds)
        self._enable(self._dac, 2, output=True)
        data = bytearray(np.ascontiguousarray(codes, "<i2"))
        try:
            self._tx = self._iio.Buffer(self._dac, len(codes), cyclic)
        except OSError as error:
            raise self._buffer_error(error, "transmit") from error
        if (taken := self._tx.write(data)) != len(data):
            self.close_transmit()
            raise RadioFault(f"{self._uri}: the transmit buffer holds {taken} bytes of {len(data)}")
        if cyclic or delay_samples is not None:
            self.push()

    def push(self) -> None:
        """Send the transmit buffer's waveform."""
        if self._tx is None:
            raise RadioFault(f"{self._uri}: no transmit buffer is open")
        try:
            self._tx.push()
        except OSError as error:
            raise RadioFault(f"{self._uri}: the transmit buffer failed: {error.strerror or error}") from error

    def close_transmit(self) -> None:
        """Destroy the transmit buffer."""
        self._tx = None
        if self._tx_triggered:
            self._tx_triggered = False
            self._disarm_trigger("channel2")

    def _buffer_error(self, error: OSError, kind: str) -> BenchError:
        if error.errno == errno.EBUSY:
            return RadioFault(
                f"{self._uri}: another program holds the {kind} buffer",
                remedy="end the other program; testbed doctor names who leases the radio",
            )
        return RadioFault(f"{self._uri}: the {kind} buffer cannot be opened: {error.strerror or error}")

    # --- trigger ------------------------------------------------------------------------------------------------------

    def _arm_trigger(self, channel: str, *, on: int, off: int, end: int) -> None:
        """Have the next external trigger start one transfer.

        The generic TDD engine counts sample clocks from the trigger, once; its channel 1 starts the receive transfer,
        channel 2 releases the transmit transfer, when their counts begin. That is this project's reading of ADI's HDL
        (pull requests 1184 and 1215) and waits for confirmation on a radio.
        """
        if self._trigger is None:
            raise RadioFault(f"{self._uri}: the radio has no transfer trigger", remedy="install firmware 0.38 or newer")
        if self._rx_triggered or self._tx_triggered:
            raise RadioFault(f"{self._uri}: one transfer waits for the trigger already; setting the second starts it")
        if end >= _MOST_TRIGGER_CYCLES:
            raise LimitError(f"{self._uri}: a transfer that ends {end} samples after its trigger")
        for line in self._gpio.channels if self._gpio is not None else ():
            if line.output and "label" in line.attrs and line.attrs["label"].value.lower() in _TRIGGER_LINES:
                self._write(line, "raw", "1")
        # its counts are locked while it is enabled
        self._write(self._trigger, "enable", "0")
        output = self._trigger.find_channel(channel, True)
        for name, value in (("polarity", 0), ("on_raw", on), ("off_raw", off), ("enable", 1)):
            self._write(output, name, str(value))
        for name, value in (("startup_delay_raw", 0), ("frame_length_raw", end + 1), ("burst_count", 1)):
            self._write(self._trigger, name, str(value))
        for name, value in (("sync_internal", 0), ("sync_external", 1), ("enable", 1)):
            self._write(self._trigger, name, str(value))

    def _release_trigger(self) -> None:
        """Let buffers run freely, unless a transfer waits: left on by whoever was here before it holds all of them."""
        if self._trigger is not None and not (self._rx_triggered or self._tx_triggered):
            self._write(self._trigger, "enable", "0")

    def _disarm_trigger(self, channel: str) -> None:
        self._write(self._trigger, "enable", "0")
        self._write(self._trigger.find_channel(channel, True), "enable", "0")

    # --- libiio -------------------------------------------------------------------------------------------------------

    def _device(self, context: Any, name: str) -> Any:
        found = context.find_device(name)
        if found is None:
            others = ", ".join(device.name or device.id for device in context.devices) or "no device at all"
            raise DeviceError(
                f"{self._uri}: no device {name} there, but {others}; is this a PlutoSDR?",
                remedy="check that an AD936x radio, such as a PlutoSDR, answers there, with its usual firmware",
            )
        return found

    @staticmethod
    def _count(device: Any, *, output: bool) -> int:
        """Complex channels with samples."""
        return sum(channel.scan_element and channel.output == output for channel in device.channels) // 2

    @staticmethod
    def _enable(device: Any, count: int, *, output: bool) -> None:
        """The first so many elements and no others are in the buffer."""
        for channel in device.channels:
            if channel.scan_element and channel.output == output:
                channel.enabled = int(channel.id.removeprefix("voltage")) < count

    def _available(self, channel: str, attribute: str, *, output: bool = True) -> str:
        return str(self._phy.find_channel(channel, output).attrs[f"{attribute}_available"].value)

    def _set(self, name: str, value: int | float | str) -> None:
        """One of pyadi-iio's properties."""
        self._try(name, partial(setattr, self._sdr, name, value))

    def _write(self, place: Any, attribute: str, value: str) -> None:
        """One attribute of a device or a channel."""
        self._try(attribute, partial(setattr, place.attrs[attribute], "value", value))

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise  # the link is lost
            raise RadioFault(f"{self._uri}: the radio refused the {what}") from error


def _whole(value: object) -> int:
    return round(_number(value))


def _apart(value: object, other: float) -> float:
    return abs(_number(value) - other)


def _number(value: object) -> float:
    """pyadi-iio returns a list where an attribute holds no single number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RadioFault(f"the radio answered {value!r} where a number belongs")
    return float(value)


def _interval(text: str) -> Sequence[float]:
    """Lowest, step, highest of "[low step high]"."""
    numbers = [float(word) for word in text.strip(" []\n").split()]
    if len(numbers) != 3:
        raise RadioFault(f"the radio answered {text!r} where a range belongs")
    return numbers
