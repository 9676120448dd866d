"""The AD936x itself, as the Linux driver `ad9361` runs it: carriers, rate, filters, gains, and their rounding.

Facts: the driver, Analog Devices UG-570, and texts of PlutoSDRs. The driver's ways that surprise are kept: a receive
gain written outside manual mode does nothing and says nothing, a bandwidth beyond the chip's is cut down silently,
switching the filter off below 2.083 MHz is refused, and a new sample rate sets the transmit gain back.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from sim_backend.emulators.attribute_tree import refusal
from sim_backend.emulators.fir import FirPair
from sim_backend.emulators.synthesiser import CarrierWords, ClockChain

RX, TX = 0, 1
"""Indices of the two directions."""
FIRST_ATTENUATION_MDB = 10_000
"""Of a radio that was switched on."""
_QUARTER_MDB = 250
_MOST_ATTENUATION_MDB = 89_750
_FIRST_CARRIERS_HZ = (2_400_000_000, 2_450_000_000)
_FIRST_RATE_HZ = 30_720_000
_FIRST_BANDWIDTH_HZ = 18_000_000
_CALIBRATED_SPAN_HZ = 100_000_000
_RX_GAINS_DB = ((1_300_000_000, -1, 73), (4_000_000_000, -3, 71), (1 << 62, -10, 62))
"""Full gain tables of the receiver: carriers up to, lowest and highest gain."""
_SILENT_RSSI_DB = 100.0
_RESTING = ("sleep", "wait", "alert")


@dataclass(frozen=True)
class Calibration:
    """One quadrature calibration of the transmitter: it radiates at full drive, whatever the attenuation.

    Attributes:
        reason: what set it off: "carrier", "rate" or "order".
        buffer_open: whether a transmit buffer lived then.
    """

    reason: str
    buffer_open: bool


@dataclass(frozen=True)
class Grade:
    """What a board's maker soldered, and what its firmware takes it for.

    Attributes:
        lowest_hz: lowest carrier.
        highest_hz: highest carrier.
        widest_hz: widest analogue filter.
        num_channels: of each direction.
        crystal_hz: what the maker measured; `xo_correction` begins there.
        crystal_error_ppm: of the real crystal from that.
        rate_resets_tx_gain: whether a new rate sets the transmit gain back to its first value.
    """

    lowest_hz: int
    highest_hz: int
    widest_hz: int
    num_channels: int
    crystal_hz: int
    crystal_error_ppm: float
    rate_resets_tx_gain: bool


@dataclass
class Settings:
    """Registers as they are after power-up.

    Attributes:
        crystal_hz: what the driver takes the crystal for.
        carriers: of both directions.
        chain: clocks.
        manual_gain_db: of each receive channel.
        agc_gain_db: where the automatic loop of each receive channel is.
        rssi_db: what each receive channel shows as strength.
        attenuation_mdb: of each transmit channel.
    """

    crystal_hz: int
    carriers: list[CarrierWords]
    chain: ClockChain
    gain_modes: list[str]
    manual_gain_db: list[int]
    agc_gain_db: list[int]
    rssi_db: list[float]
    attenuation_mdb: list[int]
    powerdown: list[bool] = field(default_factory=lambda: [False, False])
    firs: FirPair = field(default_factory=FirPair)
    fir_enabled: list[bool] = field(default_factory=lambda: [False, False])
    bandwidth_hz: list[int] = field(default_factory=lambda: [_FIRST_BANDWIDTH_HZ, _FIRST_BANDWIDTH_HZ])
    governor: str = "nominal"
    ensm_mode: str = "fdd"
    calib_mode: str = "auto"
    loopback: int = 0
    calibrated_hz: int = _FIRST_CARRIERS_HZ[TX]
    others: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, grade: Grade) -> Settings:
        """As that board starts."""
        most_db, channels = _RX_GAINS_DB[1][2], grade.num_channels
        return cls(
            crystal_hz=grade.crystal_hz,
            carriers=[CarrierWords.for_frequency(first_hz, grade.crystal_hz) for first_hz in _FIRST_CARRIERS_HZ],
            chain=ClockChain.for_rate(_FIRST_RATE_HZ, grade.crystal_hz),
            gain_modes=["slow_attack"] * channels,
            manual_gain_db=[most_db] * channels,
            agc_gain_db=[most_db] * channels,
            rssi_db=[_SILENT_RSSI_DB] * channels,
            attenuation_mdb=[FIRST_ATTENUATION_MDB] * channels,
        )


class Transceiver:
    """One AD936x.

    Args:
        grade: which.

    Attributes:
        now: its registers.
        tunings: how often each direction's carrier was set, or the chip started anew.
        calibrations: of the transmitter, so far.
        transmit_buffers: how many live.
    """

    def __init__(self, grade: Grade) -> None:
        self.grade = grade
        self.now = Settings.of(grade)
        self.tunings = [0, 0]
        self.calibrations: list[Calibration] = []
        self.transmit_buffers = 0

    def reset(self) -> None:
        """Power off and on."""
        self.now = Settings.of(self.grade)
        self.tunings = [count + 1 for count in self.tunings]

    @property
    def true_crystal_hz(self) -> float:
        """The crystal's real frequency."""
        return self.grade.crystal_hz * (1 + 1e-6 * self.grade.crystal_error_ppm)

    @property
    def rate_hz(self) -> int:
        """The sample rate as the driver knows it."""
        return self.now.chain.shown_hz(self.now.crystal_hz, transmit=False)[-1]

    @property
    def crystal_range_hz(self) -> tuple[int, int]:
        """What `xo_correction` may be: 200 ppm around the maker's."""
        span_hz = self.grade.crystal_hz // 5000
        return self.grade.crystal_hz - span_hz, self.grade.crystal_hz + span_hz

    @property
    def gain_range_db(self) -> tuple[int, int]:
        """Lowest and highest receive gain at this carrier."""
        carrier_hz = self.carrier_hz(RX)
        return next((lowest, highest) for up_to_hz, lowest, highest in _RX_GAINS_DB if carrier_hz <= up_to_hz)

    @property
    def resting(self) -> bool:
        """Whether the state machine keeps both directions off."""
        return self.now.ensm_mode in _RESTING

    def carrier_hz(self, direction: int) -> int:
        """A carrier as the driver knows it."""
        return self.now.carriers[direction].shown_hz(self.now.crystal_hz)

    def tune(self, direction: int, frequency_hz: int) -> None:
        """Set a carrier, rounded to the synthesiser's step.

        Raises:
            OSError: EINVAL, out of range or asleep.
        """
        self._check_awake()
        if not self.grade.lowest_hz <= frequency_hz <= self.grade.highest_hz:
            raise refusal(errno.EINVAL)
        now = self.now
        now.carriers[direction] = CarrierWords.for_frequency(frequency_hz, now.crystal_hz)
        self.tunings[direction] += 1
        if direction == RX:
            lowest_db, highest_db = self.gain_range_db
            now.manual_gain_db = [min(max(gain_db, lowest_db), highest_db) for gain_db in now.manual_gain_db]
            now.agc_gain_db = [min(max(gain_db, lowest_db), highest_db) for gain_db in now.agc_gain_db]
        elif now.calib_mode == "auto" and abs(frequency_hz - now.calibrated_hz) > _CALIBRATED_SPAN_HZ:
            self.calibrate("carrier")

    def calibrate(self, reason: str) -> None:
        """Calibrate the transmitter, at full drive."""
        self.calibrations.append(Calibration(reason, self.transmit_buffers > 0))
        self.now.calibrated_hz = self.carrier_hz(TX)

    def set_rate(self, rate_hz: int) -> None:
        """Set the one sample rate of both directions.

        Raises:
            OSError: EINVAL, no clock chain makes it, or asleep.
        """
        self._check_awake()
        now = self.now
        now.chain = self._chain(rate_hz, now.fir_enabled)
        if now.calib_mode == "auto":
            self.calibrate("rate")
        if self.grade.rate_resets_tx_gain:
            now.attenuation_mdb = [FIRST_ATTENUATION_MDB] * self.grade.num_channels

    def load_firs(self, firs: FirPair) -> None:
        """Load both filters' taps.

        Raises:
            OSError: EINVAL, a filter in use would get another factor, for which the clocks are not set.
        """
        now = self.now
        factors = [(pair.receive.factor, pair.transmit.factor) for pair in (now.firs, firs)]
        if any(now.fir_enabled) and factors[0] != factors[1]:
            raise refusal(errno.EINVAL)
        now.firs = firs

    def enable_firs(self, directions: tuple[int, ...], enable: bool) -> None:
        """Switch filters; the sample rate stays.

        Raises:
            OSError: EINVAL, nothing is loaded, too many taps for the clocks, or no clock chain keeps the rate.
        """
        now, rate_hz = self.now, self.rate_hz
        wanted = [enable if direction in directions else was for direction, was in enumerate(now.fir_enabled)]
        if wanted == now.fir_enabled:
            return
        firs = (now.firs.receive, now.firs.transmit)
        if any(on and not fir.taps for on, fir in zip(wanted, firs, strict=True)):
            raise refusal(errno.EINVAL)
        chain = self._chain(rate_hz, wanted)
        adc_hz, dac_hz = (chain.shown_hz(now.crystal_hz, transmit=transmit)[1] for transmit in (False, True))
        most = (adc_hz // 2 // rate_hz * 16, dac_hz // rate_hz * 16 if firs[TX].factor > 1 else 64)
        if any(on and len(fir.taps) > taps for on, fir, taps in zip(wanted, firs, most, strict=True)):
            raise refusal(errno.EINVAL)
        now.fir_enabled, now.chain = wanted, chain

    def set_gain_mode(self, channel: int, mode: str) -> None:
        """Who sets the receive gain; it stays where the automatic loop left it."""
        now = self.now
        if mode == "manual" and now.gain_modes[channel] != "manual":
            now.manual_gain_db[channel] = now.agc_gain_db[channel]
        now.gain_modes[channel] = mode

    def set_gain(self, channel: int, gain_db: int) -> None:
        """Set the receive gain; nothing happens outside manual mode.

        Raises:
            OSError: EINVAL, out of range.
        """
        if self.now.gain_modes[channel] != "manual":
            return
        lowest_db, highest_db = self.gain_range_db
        if not lowest_db <= gain_db <= highest_db:
            raise refusal(errno.EINVAL)
        self.now.manual_gain_db[channel] = gain_db

    def set_attenuation(self, channel: int, attenuation_mdb: int) -> None:
        """Set the transmit attenuation, in thousandths of a decibel; it is cut down to quarters of a decibel.

        Raises:
            OSError: EINVAL, out of range or asleep.
        """
        self._check_awake()
        if not 0 <= attenuation_mdb <= _MOST_ATTENUATION_MDB:
            raise refusal(errno.EINVAL)
        self.now.attenuation_mdb[channel] = attenuation_mdb // _QUARTER_MDB * _QUARTER_MDB

    def set_bandwidth(self, direction: int, bandwidth_hz: int) -> None:
        """Set an analogue filter; what is wider than the chip's widest is cut down."""
        self.now.bandwidth_hz[direction] = min(bandwidth_hz, self.grade.widest_hz)

    def _chain(self, rate_hz: int, fir_enabled: list[bool]) -> ClockChain:
        now = self.now
        return ClockChain.for_rate(
            rate_hz,
            now.crystal_hz,
            decimation=now.firs.receive.factor if fir_enabled[RX] else 1,
            interpolation=now.firs.transmit.factor if fir_enabled[TX] else 1,
            slowest=now.governor == "nominal",
        )

    def _check_awake(self) -> None:
        if self.now.ensm_mode == "sleep":
            raise refusal(errno.EINVAL)
