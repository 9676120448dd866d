"""The air of an emulated bench: what every radio radiates, and what every receiver's converter makes of it.

The room answers as at the bench's carrier, whatever the radios are tuned to. Radios on other carriers hear each other
at the difference of their carriers, and not at all where their bands do not meet. Not modelled: the analogue filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from drivers.pluto_port import FULL_SCALE_RX
from sim_backend.emulators.history import Track, Window
from sim_backend.emulators.propagation import Arrival, Propagation
from sim_backend.emulators.station import Receiving, Station
from sim_backend.emulators.timebase import Timebase
from sim_backend.impairments import stream
from sim_backend.jammer import add_jammer
from sim_backend.level_error import LevelError
from sim_backend.receive_chain import ReceiveChain
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.units import dbm_to_w, from_db, w_to_dbm

_CHUNK = 8192
_BACKOFF_DB = 12.0  # of an automatic gain, below full scale
_GAINS_DB = (-3.0, 71.0)
_LOOK_S = 0.01  # between two looks at antennas that move
_NOISE = 32  # keeps the draws apart from those of the impairments


class Wanting(Protocol):
    """Whoever may still ask for samples of times that have passed."""

    def wanted(self) -> list[tuple[float, float]]:
        """Stretches of time, as (from, to)."""


class Ether:
    """One world for all radios; a listener of the time.

    Args:
        bench: room, array, nodes, impairments.
        seed: of the world and of the radios.
        timebase: the time; the antennas' positioners are to be added to it before the ether is.
        positions_m: tells where the antennas are now, array frame, shape [num_antennas, 2].
        moving: tells whether any of them moves.

    Raises:
        ConfigError: a recording that does not fit the bench, or tables that are not installed.
    """

    def __init__(
        self,
        bench: BenchSpec,
        seed: int,
        timebase: Timebase,
        positions_m: Callable[[], np.ndarray],
        *,
        moving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.bench, self.seed, self.timebase = bench, seed, timebase
        self.world = World(bench, seed)
        """The room."""
        self._track = Track(positions_m)
        self._moving = moving
        self._moves = False
        self._propagation = Propagation(bench, self.world, self._track)
        self._stations: tuple[Station, ...] = ()
        self._wanting: tuple[Wanting, ...] = ()
        # positions of fixed antennas never change: the converters' effects depend on gain alone
        self._chains: dict[float, ReceiveChain] = {}
        antennas = range(len(bench.array.antennas))
        self._levels = [LevelError.of_antenna(bench, antenna, seed) for antenna in antennas]

    def add(self, station: Station, wanting: Wanting) -> None:
        """Let a radio hear and be heard.

        Args:
            station: the radio.
            wanting: tells what it may still read.
        """
        with self.timebase.lock:
            self._stations = (*self._stations, station)
            self._wanting = (*self._wanting, wanting)

    def settle(self, now_s: float) -> None:
        """Look where the antennas are."""
        moved = self._track.look(now_s)
        self._moves = moved or self._moving()
        if moved:
            self.forget(now_s)

    def next_event_s(self, now_s: float) -> float | None:
        """When to look at moving antennas again."""
        return now_s + _LOOK_S if self._moves else None

    def forget(self, now_s: float) -> None:
        """Drop what nobody can ask for any more; called under the time's lock."""
        wanted = [stretch for wanting in self._wanting for stretch in wanting.wanted()]
        for station in self._stations:
            station.forget(now_s, wanted)
        self._track.forget_before(min([now_s, *(start_s for start_s, _ in wanted)]))

    def receive(self, station: Station, window: Window, channels: Sequence[int]) -> np.ndarray:
        """What a radio's converters deliver.

        y = sum_k h_k x_k + leakage + noise;   code = clip(rint(2048 y / sqrt(P)), -2048, 2047)

        P is the full scale in front of the amplifier, rx_full_scale_dbm - gain.

        Args:
            station: the radio.
            window: samples wanted, all of them in the past.
            channels: receive channels wanted.

        Returns:
            I and Q of the channels, shape [window.count, 2 * len(channels)], int16.

        Raises:
            LimitError: an antenna is outside the recorded points.
            ConfigError: the room's delays are too long for the waveform.
        """
        codes = np.zeros((window.count, 2 * len(channels)), np.int16)
        for start_s, stop_s, state in station.receives.between(window.start_s, window.stop_s):
            start, stop = max(0, window.index(start_s)), min(window.count, window.index(stop_s))
            if start >= stop or state.powerdown:
                continue
            part = window.part(start, stop)
            if state.loopback:
                _loop(codes[start:stop], station, part, channels)
            else:
                heard = self._hear(station, part, channels, state)
                self._convert(codes[start:stop], heard, station, channels, state)
        return codes

    def _hear(self, station: Station, window: Window, channels: Sequence[int], state: Receiving) -> np.ndarray:
        """What arrives at the ports, shape [len(channels), window.count], complex64."""
        heard = self._noise(station, window, channels)
        add_jammer(heard, self.bench, at_s=window.start_s, carrier_hz=state.lo_hz, rate_hz=window.rate_hz)
        margin = self._propagation.margin
        arrivals = [
            Arrival(sounding, source)
            for other in self._stations
            for channel, sounding in other.sounding(window, state.lo_hz, margin)
            if (source := _source(other, channel)) is not None
        ]
        if not arrivals:
            return heard
        if station.node is not None:
            self._propagation.to_node(heard, station.node, arrivals, window)
            return heard
        rows = [row for row, channel in enumerate(channels) if channel < len(station.antennas)]
        antennas = [station.antennas[channels[row]] for row in rows]
        reached = heard if len(rows) == len(heard) else heard[rows]
        self._propagation.to_array(reached, antennas, arrivals, window)
        if reached is not heard:
            heard[rows] = reached
        return heard

    def _noise(self, station: Station, window: Window, channels: Sequence[int]) -> np.ndarray:
        """Shape [len(channels), window.count], complex64; antennas of the array hear that of the room."""
        noise = np.zeros((len(channels), window.count), np.complex64)
        for row, channel in zip(noise, channels, strict=True):
            if station.node is None and channel < len(station.antennas):
                antenna = station.antennas[channel]
                row[:] = self.world.noise((antenna + 1, window.count), window.start_s)[antenna]
            elif self.world.noise_w > 0:
                generator = stream(self.seed, _NOISE, station.index, channel, round(window.start_s * 1e9))
                generator.standard_normal(dtype=np.float32, out=row.view(np.float32))
                row *= np.float32(math.sqrt(self.world.noise_w / 2))
        wider = window.rate_hz / self.bench.sample_rate_hz
        if abs(wider - 1) > 1e-6:
            noise *= np.float32(math.sqrt(wider))
        return noise

    def _convert(
        self, codes: np.ndarray, heard: np.ndarray, station: Station, channels: Sequence[int], state: Receiving
    ) -> None:
        """Amplifier and converter of each channel, into codes of shape [count, 2 * len(channels)]."""
        scaled = np.empty(2 * min(_CHUNK, heard.shape[1]), np.float32)
        for column, (row, channel) in enumerate(zip(heard, channels, strict=True)):
            gain_db = state.gains_db[channel]
            power_w = float(np.vdot(row, row).real) / row.size
            if state.automatic[channel]:
                gain_db = _automatic_gain_db(power_w, station.rx_full_scale_dbm)
            station.heard(channel, power_w=power_w, gain_db=gain_db)
            if station.node is None and channel < len(station.antennas):
                row *= np.float32(self._levels[station.antennas[channel]].amplitude(from_db(gain_db)))
            self._chain(gain_db).receive(row[None])
            scale = FULL_SCALE_RX * state.fir_gain / math.sqrt(dbm_to_w(station.rx_full_scale_dbm - gain_db))
            branches, out = row.view(np.float32), codes[:, 2 * column : 2 * column + 2]
            for start in range(0, row.size, _CHUNK):
                part = branches[2 * start : 2 * (start + _CHUNK)]
                view = scaled[: part.size]
                np.multiply(part, np.float32(scale), out=view)
                np.rint(view, out=view)
                np.clip(view, -FULL_SCALE_RX, FULL_SCALE_RX - 1, out=view)
                out[start : start + _CHUNK] = view.reshape(-1, 2)

    def _chain(self, gain_db: float) -> ReceiveChain:
        """What a receiver at this gain does to its signal, but for its converter and its buffers."""
        if gain_db not in self._chains:
            converted = {"adc_bits": None, "agc": "manual", "rx_gain_db": gain_db, "stale_samples": 0}
            own = self.bench.world.impairments.model_copy(update={**converted, "dropped_buffers": 0.0})
            self._chains[gain_db] = ReceiveChain(own, seed=self.seed)
        return self._chains[gain_db]


def _source(station: Station, channel: int) -> str | int | None:
    """Whence a transmit channel radiates; None if it has no antenna."""
    if station.node is not None:
        return station.node
    return station.antennas[channel] if channel < len(station.antennas) else None


def _automatic_gain_db(power_w: float, full_scale_dbm: float) -> float:
    """The whole gain that leaves some headroom."""
    if power_w == 0:
        return _GAINS_DB[1]
    return float(np.clip(math.floor(full_scale_dbm - w_to_dbm(power_w) - _BACKOFF_DB), *_GAINS_DB))


def _loop(codes: np.ndarray, station: Station, window: Window, channels: Sequence[int]) -> None:
    """Digital loopback: the twelve bits that the transmitter plays."""
    for emission in station.playing_in(window):
        played = emission.codes_in(window) >> 4
        for column, channel in enumerate(channels):
            if 2 * channel < played.shape[1]:
                codes[:, 2 * column : 2 * column + 2] += played[:, 2 * channel : 2 * channel + 2]
