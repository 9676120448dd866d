"""What is sounding, through the room, to the antennas of one receiver.

The receivers' antennas hear nodes through the channels of `sim_backend.world`, and nodes hear the antennas through the
same channels: the room is reciprocal. Every radio hears itself, and the radios of the array hear each other, by a
constant leakage. Not modelled: what nodes hear of each other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sim_backend import superposition
from sim_backend.emulators.emission import Sounding
from sim_backend.emulators.history import Track, Window
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.units import from_db

LEAKAGE = math.sqrt(from_db(-40.0))
"""Amplitude at which a radio hears itself."""

_LEAD = 64  # taps of a channel before its first path, as many as the simulated receiver's channels have


@dataclass(frozen=True)
class Arrival:
    """Something that sounds, and whence.

    Attributes:
        sounding: what.
        source: name of the node that sends it, or number of the array's antenna.
    """

    sounding: Sounding
    source: str | int


class Propagation:
    """The room's channels, antennas in motion included.

    Args:
        bench: the bench.
        world: its room.
        track: where the array's antennas were.
    """

    def __init__(self, bench: BenchSpec, world: World, track: Track) -> None:
        self._world, self._track = world, track
        self._tail = 2 * max(_LEAD, bench.waveform.cyclic_prefix) + _LEAD
        self._lock = threading.Lock()  # the room's fading keeps what it has drawn

    @property
    def margin(self) -> tuple[int, int]:
        """Samples that are heard in a window although they were sent before it, and after it."""
        return (self._tail, _LEAD) if self._world.selective else (0, 0)

    def to_array(self, heard: np.ndarray, antennas: Sequence[int], arrivals: Sequence[Arrival], window: Window) -> None:
        """Add what the antennas of one of the array's radios hear.

        Args:
            heard: square-root watts, shape [len(antennas), window.count], complex64, in place.
            antennas: their numbers.
            arrivals: from nodes, and from radios of the array.
            window: when.
        """
        _leak(heard, [arrival for arrival in arrivals if isinstance(arrival.source, int)])
        sent = [arrival for arrival in arrivals if isinstance(arrival.source, str)]
        nodes = [str(arrival.source) for arrival in sent]

        def gains(bursts: Sequence[int], at_s: float, frequencies_hz: np.ndarray) -> np.ndarray:
            response = self._response([nodes[burst] for burst in bursts], at_s, frequencies_hz)
            return response[:, list(antennas)]

        self._add(heard, sent, window, gains)

    def to_node(self, heard: np.ndarray, node: str, arrivals: Sequence[Arrival], window: Window) -> None:
        """Add what a node hears.

        Args:
            heard: square-root watts, shape [num_rows, window.count], complex64, in place.
            node: its name.
            arrivals: from the array's antennas, and its own.
            window: when.
        """
        _leak(heard, [arrival for arrival in arrivals if arrival.source == node])
        sent = [arrival for arrival in arrivals if isinstance(arrival.source, int)]
        antennas = [int(arrival.source) for arrival in sent]

        def gains(bursts: Sequence[int], at_s: float, frequencies_hz: np.ndarray) -> np.ndarray:
            response = self._response([node], at_s, frequencies_hz)[:, :, 0]
            row = response[:, None, [antennas[burst] for burst in bursts]]
            return np.repeat(row, len(heard), axis=1)

        self._add(heard, sent, window, gains)

    def _response(self, nodes: Sequence[str], at_s: float, frequencies_hz: np.ndarray) -> np.ndarray:
        """[num_frequencies, num_antennas, num_nodes], complex64."""
        positions_m = self._track.at(at_s)
        with self._lock:
            response = self._world.response(nodes, positions_m, np.array([at_s]), frequencies_hz)
        return response[0].astype(np.complex64)

    def _add(
        self,
        heard: np.ndarray,
        arrivals: Sequence[Arrival],
        window: Window,
        gains: Callable[[Sequence[int], float, np.ndarray], np.ndarray],
    ) -> None:
        if not arrivals:
            return
        samples = [arrival.sounding.samples for arrival in arrivals]
        offsets = [arrival.sounding.offset for arrival in arrivals]
        if not self._world.selective:
            at = _Once(self, window, lambda bursts, at_s: gains(bursts, at_s, np.zeros(1))[0])
            superposition.add_flat(heard, samples, offsets, at)
            return
        lead, tail = _LEAD, self._tail
        frequencies_hz = window.rate_hz * superposition.sounded_frequencies(lead, tail)

        def spectrum(bursts: Sequence[int], at_s: float) -> np.ndarray:
            try:
                return superposition.fir_spectrum(gains(bursts, at_s, frequencies_hz), lead=lead, tail=tail)
            except ValueError as error:
                raise ConfigError(
                    str(error), key="world.delay_spread_s", remedy="lengthen waveform.cyclic_prefix"
                ) from error

        at = _Once(self, window, spectrum)
        superposition.add_selective(heard, samples, offsets, at, lead=lead, tail=tail)

    def standing(self, at_s: float) -> np.ndarray | None:
        """What channels depend on beside the bursts, the same object while nothing changes; None if they always do."""
        return None if self._world.moves else self._track.at(at_s)


class _Once:
    """Channels at an index of a window; asked once for as long as room and antennas stand still."""

    def __init__(
        self, propagation: Propagation, window: Window, ask: Callable[[Sequence[int], float], np.ndarray]
    ) -> None:
        self._propagation, self._window, self._ask = propagation, window, ask
        self._known: tuple[tuple[int, ...], np.ndarray, np.ndarray] | None = None

    def __call__(self, index: float, bursts: Sequence[int]) -> np.ndarray:
        at_s = self._window.start_s + index / self._window.rate_hz
        positions_m = self._propagation.standing(at_s)
        known = self._known
        if known is not None and known[1] is positions_m and known[0] == tuple(bursts):
            return known[2]
        found = np.ascontiguousarray(self._ask(bursts, at_s))
        self._known = None if positions_m is None else (tuple(bursts), positions_m, found)
        return found


def _leak(heard: np.ndarray, arrivals: Sequence[Arrival]) -> None:
    for arrival in arrivals:
        samples, offset = arrival.sounding.samples, arrival.sounding.offset
        start, stop = max(offset, 0), min(offset + samples.size, heard.shape[1])
        if start < stop:
            heard[:, start:stop] += np.complex64(LEAKAGE) * samples[start - offset : stop - offset]
