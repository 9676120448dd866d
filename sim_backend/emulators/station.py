"""One radio as the air knows it: where it is, what it radiates, and how it listens, now and before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from drivers.pluto_port import MUTED_DB
from sim_backend.emulators.chip import Chip
from sim_backend.emulators.converters import Tone
from sim_backend.emulators.emission import Emission, Sounding, tone_sounding
from sim_backend.emulators.history import History, Window
from sim_backend.emulators.transmit_path import TransmitPath
from testbed.core.units import w_to_dbm

_FAINTEST_DB = 127.0  # the weakest that the chip shows
_SLACK_S = 0.1  # bursts may start so much later or earlier than ordered


@dataclass(frozen=True)
class Transmitting:
    """How a radio transmits.

    Attributes:
        lo_hz: its carrier.
        gains_db: of each channel, 0 or below.
        powerdown: the synthesiser is off.
        tones: what each channel plays by itself; none while a buffer lives.
        rate_hz: of the converter.
        fir_gain: amplitude that the programmable filter adds.
    """

    lo_hz: float
    gains_db: tuple[float, ...]
    powerdown: bool
    tones: tuple[tuple[Tone, ...], ...]
    rate_hz: float
    fir_gain: float

    @property
    def levels_db(self) -> tuple[float, ...]:
        """Gain of each channel from its codes to the antenna."""
        return tuple(gain_db + _amplitude_db(self.fir_gain) for gain_db in self.gains_db)


@dataclass(frozen=True)
class Receiving:
    """How a radio receives.

    Attributes:
        lo_hz: its carrier.
        gains_db: manual gain of each channel.
        automatic: whether the gain of each channel follows the power.
        powerdown: the synthesiser is off.
        loopback: the converters' codes come from the transmitter.
        fir_gain: amplitude that the programmable filter adds.
    """

    lo_hz: float
    gains_db: tuple[float, ...]
    automatic: tuple[bool, ...]
    powerdown: bool
    loopback: bool
    fir_gain: float


class Station:
    """One radio on the air. Changes are noted by whoever holds the time's lock.

    Args:
        name: of the radio.
        chip: its state.
        num_channels: receive channels, and as many transmit channels.
        path: from codes to what is radiated.
        rx_full_scale_dbm: input power of a tone that fills the receive converter at 0 dB gain.
        node: whose radio it is; None for one of the array.
        antennas: of the array, one for each channel that has one.
        index: keeps the draws of the radios apart.
    """

    def __init__(
        self,
        name: str,
        chip: Chip,
        *,
        num_channels: int,
        path: TransmitPath,
        rx_full_scale_dbm: float,
        node: str | None = None,
        antennas: tuple[int, ...] = (),
        index: int = 0,
    ) -> None:
        self.name, self.node, self.antennas, self.index = name, node, antennas, index
        self.num_channels, self.rx_full_scale_dbm = num_channels, rx_full_scale_dbm
        self._chip, self._path = chip, path
        self._emissions: tuple[Emission, ...] = ()
        self._has_buffer = False
        self.transmits = History(self._transmitting())
        self.receives = History(self._receiving())

    def note(self, at_s: float) -> None:
        """The chip's settings may have changed at this instant."""
        self.transmits.record(at_s, self._transmitting())
        self.receives.record(at_s, self._receiving())

    def note_buffer(self, at_s: float, *, lives: bool) -> None:
        """A transmit buffer was opened, which silences the chip's own tones, or destroyed."""
        self._has_buffer = lives
        self.note(at_s)

    def emit(self, emission: Emission) -> None:
        """Put a waveform on the air."""
        self._emissions = (*self._emissions, emission)

    def forget(self, at_s: float, wanted: list[tuple[float, float]]) -> None:
        """Drop what was over by then, unless it sounds in a stretch of time that is still wanted."""
        stretches = [*wanted, (at_s, float("inf"))]
        self._emissions = tuple(
            emission
            for emission in self._emissions
            if any(_overlaps(emission, start_s - _SLACK_S, stop_s + _SLACK_S) for start_s, stop_s in stretches)
        )
        oldest_s = min(start for start, _ in stretches) - _SLACK_S
        self.transmits.forget_before(oldest_s)
        self.receives.forget_before(oldest_s)

    def sounding(
        self, window: Window, receiver_lo_hz: float, margin: tuple[int, int]
    ) -> Iterator[tuple[int, Sounding]]:
        """What it radiates into a window, with the number of the transmit channel.

        Args:
            window: of the receiver.
            receiver_lo_hz: the receiver's carrier; what lies wholly outside its band is left out.
            margin: samples before and after the window that count as well.
        """
        ahead_s, behind_s = (samples / window.rate_hz + _SLACK_S for samples in margin)
        emissions = [
            item for item in self._emissions if _overlaps(item, window.start_s - ahead_s, window.stop_s + behind_s)
        ]
        for start_s, stop_s, state in self.transmits.between(window.start_s - ahead_s, window.stop_s + behind_s):
            shift_hz = state.lo_hz - receiver_lo_hz
            if state.powerdown or abs(shift_hz) >= (window.rate_hz + state.rate_hz) / 2:
                continue
            span = max(-margin[0], window.index(start_s)), min(window.count + margin[1], window.index(stop_s))
            for channel, gain_db in enumerate(state.levels_db):
                setting = (self._path, gain_db, shift_hz, window, span)
                found = [emission.sounding(channel, *setting) for emission in emissions]
                found += [tone_sounding(own, *setting) for own in state.tones[channel : channel + 1]]
                yield from ((channel, sounding) for sounding in found if sounding is not None)

    def playing_in(self, window: Window) -> list[Emission]:
        """Waveforms that may sound in a window."""
        return [item for item in self._emissions if _overlaps(item, window.start_s, window.stop_s)]

    def radiated_w(self, at_s: float) -> float:
        """Average power of what it radiates at an instant, all channels together, watts."""
        state = self.transmits.latest
        if state.powerdown:
            return 0.0
        return sum(
            self._path.power_w(self._mean_square(channel, at_s), gain_db)
            for channel, gain_db in enumerate(state.levels_db)
        )

    def transmitting(self, at_s: float) -> bool:
        """Whether anything leaves its antenna at an instant but what the highest attenuation lets through."""
        state = self.transmits.latest
        return not state.powerdown and any(
            gain_db > MUTED_DB and self._mean_square(channel, at_s) > 0
            for channel, gain_db in enumerate(state.gains_db)
        )

    def heard(self, channel: int, *, power_w: float, gain_db: float) -> None:
        """Tell the chip what a receive channel heard last, for those who read its strength."""
        rssi_db = self.rx_full_scale_dbm - w_to_dbm(power_w) if power_w > 0 else _FAINTEST_DB
        self._chip.heard(channel, gain_db=gain_db, rssi_db=min(max(rssi_db, 0.0), _FAINTEST_DB))

    def _mean_square(self, channel: int, at_s: float) -> float:
        emissions = [item for item in self._emissions if item.begin_s <= at_s < item.end_s]
        own = self.transmits.latest.tones
        scales = [scale for _, scale, _, enabled in own[channel] if enabled] if channel < len(own) else []
        return sum(item.mean_square(channel) for item in emissions) + sum(scale**2 / 2 for scale in scales)

    def _transmitting(self) -> Transmitting:
        chip = self._chip
        own: tuple[tuple[Tone, ...], ...] = ()
        if not self._has_buffer:
            own = tuple(tuple(channel) for channel in chip.dds_tones)
        return Transmitting(
            lo_hz=chip.tx_lo_hz,
            gains_db=tuple(chip.tx_gain_db(channel) for channel in range(self.num_channels)),
            powerdown=chip.tx_powerdown,
            tones=own,
            rate_hz=chip.sample_rate_hz,
            fir_gain=chip.fir_gain(True),
        )

    def _receiving(self) -> Receiving:
        chip = self._chip
        channels = range(self.num_channels)
        return Receiving(
            lo_hz=chip.rx_lo_hz,
            gains_db=tuple(chip.rx_gain_db(channel) for channel in channels),
            automatic=tuple(chip.gain_mode(channel) != "manual" for channel in channels),
            powerdown=chip.rx_powerdown,
            loopback=chip.loopback == 1,
            fir_gain=chip.fir_gain(False),
        )


def _overlaps(emission: Emission, start_s: float, stop_s: float) -> bool:
    return emission.begin_s < stop_s and emission.end_s > start_s


def _amplitude_db(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else 2 * MUTED_DB
