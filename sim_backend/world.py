"""The simulated room: a pure function of the bench file, a seed and the time.

Modelled: far-field plane waves over the aperture, by way of a room's geometry, from anywhere, or as profiles of
3GPP TR 38.901 tell, or channels as they were recorded; path loss, shadowing, a Rician factor, Doppler shifts, block and
Jakes fading, delay spread, mutual coupling of the antennas, thermal noise. Not modelled: near field, polarisation, the
antennas' patterns. What the radios do to their signals is not a matter of the room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sim_backend.fading import Fading, is_moving, product
from sim_backend.paths import Draw, Paths, draw_isotropic, draw_room, generator_of, towards
from sim_backend.recorded_channel import RecordedChannel
from sim_backend.sionna_channel import draw_cdl, draw_tdl, load_profile
from sim_backend.threads import in_parallel
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.units import from_db
from testbed.phy.array import field_response
from testbed.phy.coupling import coupling_matrix

BOLTZMANN_J_K = 1.380649e-23


class World:
    """Channels and noise of a room.

    Args:
        bench: room, array, nodes and the world's statistics.
        seed: of the geometry and of the noise.

    Raises:
        ConfigError: a recording that does not fit the bench, or tables that are not installed.
    """

    def __init__(self, bench: BenchSpec, seed: int) -> None:
        world = bench.world
        self._bench = bench
        self._seed = seed
        self.noise_w = BOLTZMANN_J_K * world.temperature_k * from_db(world.noise_figure_db) * bench.sample_rate_hz
        """Noise power of one sample of one antenna: k T F B over the whole sample rate."""
        self.moves = is_moving(world)
        """Whether channels change with time."""
        self.selective = world.selective
        """Whether channels vary in frequency."""
        self.positions_m: dict[str, np.ndarray] = {}
        """Where the nodes stand, room frame, each of shape [3]."""
        self.paths: dict[str, Paths] = {}
        """Plane waves of each node; none where the channels are recorded."""
        self._fading: dict[str, Fading] = {}
        self._index = {name: index for index, name in enumerate(bench.node_names)}
        self._shadowing = {name: self._draw_shadowing(index) for name, index in self._index.items()}
        self._recording = _open_recording(bench) if world.model == "recorded" else None
        draw_paths = None if world.model == "recorded" else self._choose_paths()
        for name, board in zip(self._index, bench.boards, strict=True):
            generator = generator_of(seed, Draw.GEOMETRY, self._index[name])
            drawn_m = generator.uniform(0.0, bench.room_m)
            self.positions_m[name] = drawn_m if board.position_m is None else np.array(board.position_m)
            if draw_paths is not None:
                paths = self.paths[name] = draw_paths(name, generator)
                self._fading[name] = Fading(paths, world, seed, self._index[name])

    def path_gain(self, node: str) -> float:
        """Mean power gain from a node to one antenna, averaged over the phases of its paths.

        beta = 10^(X / 10) d^-n / (reference loss * excess loss), d at least one wavelength, X ~ N(0, shadowing_db^2);
        of a recorded channel the mean over its points and frequencies

        Args:
            node: its name.

        Returns:
            linear power ratio.

        Raises:
            KeyError: a stranger.
        """
        if self._recording is not None:
            return self._recording.path_gain(node)
        distance_m = float(np.linalg.norm(self.positions_m[node] - np.array(self._bench.array.origin_m)))
        return self._path_gain(distance_m) * self._shadowing[node]

    def channel(self, node: str, positions_m: np.ndarray, at_s: float) -> np.ndarray:
        """Baseband gain from one node to every antenna, at the carrier.

        h_n(t) = sum_l a_l(t) exp(j 2 pi / lambda * r_n . u_l); a_l(t) as `sim_backend.fading.Fading` tells

        Args:
            node: its name.
            positions_m: antennas, array frame, shape [num_antennas, 2].
            at_s: instant.

        Returns:
            shape [num_antennas], complex128.

        Raises:
            KeyError: a stranger.
            LimitError: an antenna is outside the recorded points.
        """
        return self.channels((node,), positions_m, np.array([at_s]))[0, :, 0]

    def channels(self, nodes: Sequence[str], positions_m: np.ndarray, at_s: np.ndarray) -> np.ndarray:
        """`channel` of several nodes at several instants.

        Args:
            nodes: their names.
            positions_m: antennas, array frame, shape [num_antennas, 2].
            at_s: instants, shape [num_instants].

        Returns:
            shape [num_instants, num_antennas, num_nodes], complex128.

        Raises:
            KeyError: a stranger.
            LimitError: an antenna is outside the recorded points.
        """
        return self._response(nodes, positions_m, at_s, None)[:, 0]

    def response(
        self, nodes: Sequence[str], positions_m: np.ndarray, at_s: np.ndarray, frequencies_hz: np.ndarray
    ) -> np.ndarray:
        """Channels at several instants and baseband frequencies.

        h_n(t, f) = sum_l a_l(t) exp(-j 2 pi f tau_l) exp(j 2 pi / lambda * r_n . u_l)

        Args:
            nodes: their names.
            positions_m: antennas, array frame, shape [num_antennas, 2].
            at_s: instants, shape [num_instants].
            frequencies_hz: offsets from the carrier, shape [num_frequencies].

        Returns:
            shape [num_instants, num_frequencies, num_antennas, num_nodes], complex128; read-only where the channels
            are flat. At frequency 0 it is `channels`.

        Raises:
            KeyError: a stranger.
            LimitError: an antenna is outside the recorded points.
        """
        frequencies_hz = np.asarray(frequencies_hz, dtype=np.float64)
        if self.selective:
            return self._response(nodes, positions_m, at_s, frequencies_hz)
        flat = self._response(nodes, positions_m, at_s, None)
        return np.broadcast_to(flat, (len(flat), len(frequencies_hz), *flat.shape[2:]))

    def noise(self, shape: tuple[int, int], at_s: float) -> np.ndarray:
        """Circular Gaussian receiver noise, a function of seed, antenna and the instant of the first sample.

        Args:
            shape: [num_antennas, num_samples].
            at_s: instant of the first sample, counted in nanoseconds.

        Returns:
            shape [num_antennas, num_samples], complex64; the mean of |n|^2 is `noise_w`.
        """
        noise = np.zeros(shape, np.complex64)

        def fill(rows: Iterator[tuple[int, np.ndarray]]) -> None:
            for antenna, row in rows:
                self._fill_noise(row, (Draw.NOISE, *_words(at_s), antenna))

        # a normal costs as much as some ten complex multiplications
        in_parallel(iter(enumerate(noise)), fill, 16 * noise.size)
        return noise

    def combined_noise(self, num_samples: int, at_s: float) -> np.ndarray:
        """Receiver noise behind a combiner of unit norm: f^H n has the distribution of one antenna's noise.

        Args:
            num_samples: how many.
            at_s: instant of the first sample, counted in nanoseconds.

        Returns:
            shape [num_samples], complex64; a function of seed and instant, independent of `noise`.
        """
        noise = np.zeros(num_samples, np.complex64)
        self._fill_noise(noise, (Draw.COMBINED_NOISE, *_words(at_s)))
        return noise

    def _fill_noise(self, row: np.ndarray, words: tuple[int, ...]) -> None:
        if self.noise_w == 0.0:
            return
        entropy = (self._seed, *(int(word) for word in words))
        generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))
        parts = row.view(np.float32)
        generator.standard_normal(dtype=np.float32, out=parts)
        parts *= np.float32(math.sqrt(self.noise_w / 2))

    def _response(
        self, nodes: Sequence[str], positions_m: np.ndarray, at_s: np.ndarray, frequencies_hz: np.ndarray | None
    ) -> np.ndarray:
        """[num_instants, num_frequencies, num_antennas, num_nodes]; without frequencies, one: the carrier."""
        num_instants = len(at_s)
        if self._recording is not None:
            carrier_hz = np.zeros(1) if frequencies_hz is None else frequencies_hz
            columns = self._recording.response(nodes, positions_m, carrier_hz)[None]
        else:
            instants_s = np.asarray(at_s, dtype=np.float64)[: None if self.moves else 1]
            columns = np.stack(
                [self._node_response(node, positions_m, instants_s, frequencies_hz) for node in nodes], axis=-1
            )
        if self._bench.world.coupling:
            columns = coupling_matrix(positions_m, self._bench.wavelength_m) @ columns
        if len(columns) == num_instants:
            return columns
        return np.repeat(columns, num_instants, axis=0)

    def _node_response(
        self, node: str, positions_m: np.ndarray, at_s: np.ndarray, frequencies_hz: np.ndarray | None
    ) -> np.ndarray:
        """[num_instants, num_frequencies, num_antennas]."""
        paths = self.paths[node]
        # [num_antennas, num_paths]
        waves = field_response(positions_m, paths.directions, self._bench.wavelength_m)
        gains = self._fading[node].gains(at_s)
        if frequencies_hz is None:
            return product(gains, waves.T)[:, None]
        # neighbours that arrive together are one tap, [num_instants, num_taps, num_antennas]
        first = np.flatnonzero(np.diff(paths.delays_s, prepend=-1.0))
        taps = np.add.reduceat(gains[:, :, None] * waves.T, first, axis=1)
        # [num_frequencies, num_taps]
        delayed = np.exp(-2j * np.pi * np.multiply.outer(frequencies_hz, paths.delays_s[first]))
        return np.stack([product(delayed, tap) for tap in taps])

    def _path_gain(self, distance_m: float) -> float:
        """Without shadowing."""
        world, wavelength_m = self._bench.world, self._bench.wavelength_m
        if world.reference_loss_db is None:
            reference = (wavelength_m / (4 * math.pi)) ** 2
        else:
            reference = 1.0 / from_db(world.reference_loss_db)
        distance_m = max(distance_m, wavelength_m)
        return reference * distance_m**-world.path_loss_exponent / from_db(world.excess_loss_db)

    def _draw_shadowing(self, index: int) -> float:
        deviation = self._bench.world.shadowing_db
        if deviation == 0:
            return 1.0
        return from_db(deviation * float(generator_of(self._seed, Draw.SHADOWING, index).standard_normal()))

    def _choose_paths(self) -> Callable[[str, np.random.Generator], Paths]:
        """How this model draws a node's paths, from its name and its generator."""
        bench, world = self._bench, self._bench.world
        profile = load_profile(world.model, world.profile) if world.model in ("tdl", "cdl") else None

        def draw(name: str, generator: np.random.Generator) -> Paths:
            node_m = self.positions_m[name]
            length_m, directions = towards(bench, node_m[None])
            power = self._path_gain(float(length_m[0])) * self._shadowing[name]
            if world.model == "room":
                alike = generator_of(self._seed, Draw.ALIKE, self._index[name])
                return draw_room(bench, node_m, power, generator, alike)
            if profile is None:
                return draw_isotropic(world, power, generator)
            if world.model == "tdl":
                return draw_tdl(profile, world, power, generator)
            return draw_cdl(profile, world, power, directions[0], generator)

        return draw


def _words(at_s: float) -> tuple[int, ...]:
    """An instant in nanoseconds as words of a seed, which are not negative."""
    instant_ns = round(at_s * 1e9)
    return (instant_ns,) if instant_ns >= 0 else (-instant_ns, 0xFFFFFFFF)


def _open_recording(bench: BenchSpec) -> RecordedChannel:
    world = bench.world
    for key, off in (("fading", "static"), ("doppler_hz", 0), ("shadowing_db", 0)):
        if getattr(world, key) != off:
            raise ConfigError(
                "a recorded channel is as it was measured", key=f"world.{key}", remedy=f"leave out {key}, or give {off}"
            )
    assert world.recording is not None  # WorldSpec sees to it
    recording = RecordedChannel(world.recording, bench.node_names)
    if world.selective:
        _check_band(bench, recording.frequencies_hz)
    return recording


def _check_band(bench: BenchSpec, frequencies_hz: np.ndarray | None) -> None:
    file, half_hz = bench.world.recording, bench.bandwidth_hz / 2
    if frequencies_hz is None:
        raise ConfigError(
            "world.selective is on, but the channels were recorded at one frequency",
            file=file,
            key="frequencies_hz",
            remedy="record channels at several frequencies, or leave out selective",
        )
    if frequencies_hz[0] > -half_hz or frequencies_hz[-1] < half_hz:
        raise ConfigError(
            f"recorded from {frequencies_hz[0]:g} to {frequencies_hz[-1]:g} Hz around the carrier; the waveform fills "
            f"{-half_hz:g} to {half_hz:g} Hz",
            file=file,
            key="frequencies_hz",
            remedy="record the whole band that the waveform fills",
        )
