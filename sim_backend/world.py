"""The simulated room: a pure function of the bench file, a seed and the time.

Modelled: far-field plane waves over the aperture (a line of sight and single-bounce reflections), path loss, a Rician
factor, Doppler shifts, thermal noise. Not modelled: near field, polarisation, coupling of antennas, delay spread (the
channel is flat in frequency), carrier and sampling offsets, converters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.core.bench import BenchSpec
from testbed.core.units import from_db
from testbed.phy.array import field_response

BOLTZMANN_J_K = 1.380649e-23

_GEOMETRY, _NOISE = 0, 1  # keep the two kinds of draws apart


@dataclass(frozen=True)
class Paths:
    """Plane waves from one node.

    Attributes:
        directions: direction cosines towards the source along the array axes, shape [num_paths, 2].
        gains: complex, at the array origin and time 0, shape [num_paths].
        doppler_hz: shift of each path, shape [num_paths].
    """

    directions: np.ndarray
    gains: np.ndarray
    doppler_hz: np.ndarray


class World:
    """Channels and noise of a room.

    Args:
        bench: room, array, nodes and the world's statistics.
        seed: of the geometry and of the noise.
    """

    def __init__(self, bench: BenchSpec, seed: int) -> None:
        self._bench = bench
        self._seed = seed
        self.noise_w = (
            BOLTZMANN_J_K * bench.world.temperature_k * from_db(bench.world.noise_figure_db) * bench.sample_rate_hz
        )
        """Noise power of one sample of one antenna: k T F B over the whole sample rate."""
        self.positions_m: dict[str, np.ndarray] = {}
        """Where the nodes stand, room frame, each of shape [3]."""
        self.paths: dict[str, Paths] = {}
        for index, board in enumerate(bench.boards):
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _GEOMETRY, index))))
            drawn_m = generator.uniform(0.0, bench.room_m)
            self.positions_m[board.name] = drawn_m if board.position_m is None else np.array(board.position_m)
            self.paths[board.name] = self._draw_paths(self.positions_m[board.name], generator)

    def path_gain(self, node: str) -> float:
        """Mean power gain from a node to one antenna, averaged over the phases of its paths.

        beta = d^-n / (reference loss * excess loss), d at least one wavelength

        Args:
            node: its name.

        Returns:
            linear power ratio.
        """
        distance_m = float(np.linalg.norm(self.positions_m[node] - np.array(self._bench.array.origin_m)))
        return self._path_gain(distance_m)

    def channel(self, node: str, positions_m: np.ndarray, at_s: float) -> np.ndarray:
        """Baseband gain from one node to every antenna.

        h_n(t) = sum_l a_l exp(j 2 pi f_l t) exp(j 2 pi / lambda * r_n . u_l)

        Args:
            node: its name.
            positions_m: antennas, array frame, shape [num_antennas, 2].
            at_s: instant.

        Returns:
            shape [num_antennas], complex128.

        Raises:
            KeyError: a stranger.
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
        """
        columns = []
        for node in nodes:
            paths = self.paths[node]
            # [num_instants, num_paths]
            gains = paths.gains * np.exp(2j * np.pi * np.multiply.outer(at_s, paths.doppler_hz))
            columns.append(gains @ field_response(positions_m, paths.directions, self._bench.wavelength_m).T)
        return np.stack(columns, axis=-1)

    def noise(self, shape: tuple[int, int], at_s: float) -> np.ndarray:
        """Circular Gaussian receiver noise, a function of seed, antenna and the instant of the first sample.

        Args:
            shape: [num_antennas, num_samples].
            at_s: instant of the first sample, counted in nanoseconds.

        Returns:
            shape [num_antennas, num_samples], complex64; the mean of |n|^2 is `noise_w`.
        """
        if self.noise_w == 0.0:
            return np.zeros(shape, np.complex64)
        noise = np.empty(shape, np.complex64)
        instant_ns = round(at_s * 1e9)
        for antenna, row in enumerate(noise.view(np.float32)):
            entropy = (self._seed, _NOISE, instant_ns, antenna)
            generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))
            generator.standard_normal(dtype=np.float32, out=row)
            row *= np.float32(math.sqrt(self.noise_w / 2))
        return noise

    def _path_gain(self, distance_m: float) -> float:
        world, wavelength_m = self._bench.world, self._bench.wavelength_m
        if world.reference_loss_db is None:
            reference = (wavelength_m / (4 * math.pi)) ** 2
        else:
            reference = 1.0 / from_db(world.reference_loss_db)
        distance_m = max(distance_m, wavelength_m)
        return reference * distance_m**-world.path_loss_exponent / from_db(world.excess_loss_db)

    def _draw_paths(self, node_m: np.ndarray, generator: np.random.Generator) -> Paths:
        bench, world = self._bench, self._bench.world
        origin_m, axes = np.array(bench.array.origin_m), np.array(bench.array.axes)
        num_reflections = world.num_paths - 1
        scatterers_m = generator.uniform(0.0, bench.room_m, (num_reflections, 3))
        # the last point before the array, shape [num_paths, 3]
        towards_m = np.concatenate([node_m[None], scatterers_m]) - origin_m
        length_m = np.linalg.norm(towards_m, axis=1)
        directions = towards_m / np.maximum(length_m, 1e-9)[:, None] @ axes.T
        power = self._path_gain(float(length_m[0]))
        share = from_db(world.rician_k_db) / (1 + from_db(world.rician_k_db)) if num_reflections else 1.0
        sight = np.sqrt(share * power) * np.exp(-2j * np.pi * length_m[:1] / bench.wavelength_m)
        normals = generator.standard_normal((num_reflections, 2)) @ np.array([1.0, 1.0j])
        reflections = np.sqrt((1 - share) * power / (2 * max(num_reflections, 1))) * normals
        arrival_rad = generator.uniform(0.0, 2 * np.pi, world.num_paths)
        return Paths(directions, np.concatenate([sight, reflections]), world.doppler_hz * np.cos(arrival_rad))
