"""Plane waves from every node: where they come from, how strong and how late they arrive.

Modelled: far-field plane waves over the aperture; a line of sight, and scattered waves whose gains are circular
Gaussian. Not modelled: near field, polarisation, the extra delay across the aperture (it is far below a sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from testbed.core.bench import SPEED_OF_LIGHT_M_S, BenchSpec
from testbed.core.units import from_db
from testbed.core.world_specs import WorldSpec


class Draw(IntEnum):
    """What a random number of the world is for; together with the seed it starts a generator of its own."""

    GEOMETRY = 0
    NOISE = 1
    SHADOWING = 101
    ALIKE = 102
    DELAYS = 103
    BLOCK = 104
    JAKES = 105
    COMBINED_NOISE = 106


def generator_of(seed: int, draw: Draw, *words: int) -> np.random.Generator:
    """The generator of one kind of draw, the same in every process and in every order of calls.

    Args:
        seed: of the world.
        draw: what the numbers are for.
        words: which of them, for instance the node's index; not negative.

    Returns:
        a fresh generator.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, int(draw), *words))))


@dataclass(frozen=True)
class Paths:
    """Plane waves from one node.

    Attributes:
        directions: direction cosines towards the source along the array axes, shape [num_paths, 2].
        gains: complex, at the array origin and time 0, shape [num_paths].
        doppler_hz: shift of each path, shape [num_paths].
        delays_s: behind the first arrival, shape [num_paths].
        scattered: mean power gain of each path that fades, 0 for one that is steady (a line of sight), shape
            [num_paths].
    """

    directions: np.ndarray
    gains: np.ndarray
    doppler_hz: np.ndarray
    delays_s: np.ndarray
    scattered: np.ndarray


def circular_gaussian(generator: np.random.Generator, variance: np.ndarray) -> np.ndarray:
    """CN(0, variance): independent circular Gaussian numbers.

    Args:
        generator: source of the numbers.
        variance: mean of |g|^2, any shape.

    Returns:
        shape of variance, complex128.
    """
    return np.sqrt(variance / 2) * (generator.standard_normal((*variance.shape, 2)) @ np.array([1.0, 1.0j]))


def first_share(world: WorldSpec) -> float:
    """Share of the power that a node's first path carries.

    K / (K + 1), or 1 / L where all paths are alike; all of it where there is no other path.

    Args:
        world: Rician factor and number of paths.

    Returns:
        above 0, at most 1.
    """
    if world.num_paths == 1:
        return 1.0
    if not world.line_of_sight:
        return 1 / world.num_paths
    return from_db(world.rician_k_db) / (1 + from_db(world.rician_k_db))


def towards(bench: BenchSpec, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far points of the room are from the array origin, and in which direction.

    Args:
        bench: array origin and axes.
        points_m: room frame, shape [num_points, 3].

    Returns:
        lengths in metres, shape [num_points]; direction cosines along the array axes, shape [num_points, 2].
    """
    towards_m = points_m - np.array(bench.array.origin_m)
    length_m = np.linalg.norm(towards_m, axis=1)
    return length_m, towards_m / np.maximum(length_m, 1e-9)[:, None] @ np.array(bench.array.axes).T


def isotropic_directions(generator: np.random.Generator, num_paths: int) -> np.ndarray:
    """Direction cosines of waves from anywhere in the half-space before the array.

    u = (sin theta cos phi, cos theta),  theta = arccos U[-1, 1],  phi ~ U[0, pi]

    Args:
        generator: source of the angles.
        num_paths: how many.

    Returns:
        shape [num_paths, 2].
    """
    cosine = generator.uniform(-1.0, 1.0, num_paths)
    azimuth_rad = generator.uniform(0.0, np.pi, num_paths)
    return np.stack([np.sqrt(1 - cosine**2) * np.cos(azimuth_rad), cosine], axis=1)


def draw_room(
    bench: BenchSpec, node_m: np.ndarray, path_gain: float, generator: np.random.Generator, alike: np.random.Generator
) -> Paths:
    """A line of sight and single reflections at points of the room.

    tau_l = (|node - scatterer_l| + |scatterer_l - array| - |node - array|) / c: the line of sight arrives at 0

    Args:
        bench: room, array and the world's statistics.
        node_m: where the node stands, room frame, shape [3].
        path_gain: its mean power gain beta.
        generator: source of reflections, gains and Doppler shifts.
        alike: source of the first gain where all paths are alike.

    Returns:
        `num_paths` waves.
    """
    world = bench.world
    num_reflections = world.num_paths - 1
    scatterers_m = generator.uniform(0.0, bench.room_m, (num_reflections, 3))
    # the last point before the array, shape [num_paths, 3]
    last_m = np.concatenate([node_m[None], scatterers_m])
    length_m, directions = towards(bench, last_m)
    share = first_share(world)
    if not world.line_of_sight:
        # [num_paths]
        scattered = np.full(world.num_paths, path_gain / world.num_paths)
        first = circular_gaussian(alike, scattered[:1])
    else:
        others = (1 - share) * path_gain / max(num_reflections, 1)
        scattered = np.concatenate([[0.0], np.full(num_reflections, others)])
        first = np.sqrt(share * path_gain) * np.exp(-2j * np.pi * length_m[:1] / bench.wavelength_m)
    reflections = circular_gaussian(generator, scattered[1:])
    arrival_rad = generator.uniform(0.0, 2 * np.pi, world.num_paths)
    way_m = np.linalg.norm(last_m - node_m, axis=1) + length_m
    return Paths(
        directions=directions,
        gains=np.concatenate([first, reflections]),
        doppler_hz=world.doppler_hz * np.cos(arrival_rad),
        delays_s=np.maximum(way_m - length_m[0], 0.0) / SPEED_OF_LIGHT_M_S,
        scattered=scattered,
    )


def draw_isotropic(world: WorldSpec, path_gain: float, generator: np.random.Generator) -> Paths:
    """Waves from anywhere in the half-space before the array; alike, or with one of them steady.

    a_l ~ CN(0, beta / L); with a Rician factor K, |a_1|^2 = beta K / (K + 1) and the others share the rest.
    tau_1 = 0, and the others' delays are exponential with the mean delay_spread_s / sqrt(1 - s^2), where s is the
    first path's share of the power: the rms of this delay profile is delay_spread_s.

    Args:
        world: statistics.
        path_gain: mean power gain beta.
        generator: source of everything.

    Returns:
        `num_paths` waves.
    """
    num_paths = world.num_paths
    directions = isotropic_directions(generator, num_paths)
    share = first_share(world)
    # [num_paths]
    scattered = np.full(num_paths, (1 - share) * path_gain / max(num_paths - 1, 1))
    scattered[0] = path_gain * share if not world.line_of_sight else 0.0
    gains = circular_gaussian(generator, scattered)
    phase_rad = generator.uniform(0.0, 2 * np.pi)
    if world.line_of_sight:
        gains[0] = np.sqrt(share * path_gain) * np.exp(1j * phase_rad)
    arrival_rad = generator.uniform(0.0, 2 * np.pi, num_paths)
    delays_s = generator.exponential(1.0, num_paths)
    delays_s[0] = 0.0
    if num_paths > 1:
        delays_s *= world.delay_spread_s / np.sqrt(1 - share**2)
    return Paths(directions, gains, world.doppler_hz * np.cos(arrival_rad), delays_s, scattered)
