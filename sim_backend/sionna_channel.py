"""Tapped and clustered delay lines of 3GPP TR 38.901, as plane waves over the aperture.

The profiles' tables come with the optional package `sionna-no-rt`; they are read from its data files, so that none of
its own requirements is imported. Not modelled: polarisation and the antennas' patterns.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim_backend.paths import Paths, circular_gaussian, isotropic_directions
from testbed.core.errors import ConfigError
from testbed.core.units import from_db
from testbed.core.world_specs import WorldSpec

_REMEDY = "pip install 'testbed[sionna]'"

RAY_OFFSETS = np.array([0.0447, 0.1413, 0.2492, 0.3715, 0.5129, 0.6797, 0.8844, 1.1481, 1.5195, 2.1551])
"""Offset angles of a cluster's rays for a spread of 1, each with either sign (TR 38.901, table 7.5-3)."""


@dataclass(frozen=True)
class Profile:
    """A delay line of TR 38.901, sections 7.7.1 and 7.7.2.

    Attributes:
        shares: part of the power of every tap or cluster, sum 1, shape [num_clusters].
        delays: in units of the rms delay spread, shape [num_clusters].
        sight: whether the first one is a line of sight, which does not fade.
        azimuth_rad: of departure at the base station, shape [num_clusters]; None for a tapped delay line.
        zenith_rad: likewise.
        spread_rad: azimuth and zenith spread of departure within a cluster.
    """

    shares: np.ndarray
    delays: np.ndarray
    sight: bool
    azimuth_rad: np.ndarray | None = None
    zenith_rad: np.ndarray | None = None
    spread_rad: tuple[float, float] = (0.0, 0.0)


def load_profile(model: str, letter: str) -> Profile:
    """A profile from the tables of the installed package.

    Args:
        model: tdl or cdl.
        letter: A to E.

    Returns:
        the profile; where the package has several releases of TR 38.901, of the newest.

    Raises:
        ConfigError: the package, or the profile's table in it, is absent.
    """
    name = f"{model.upper()}-{letter}.json"
    spec = importlib.util.find_spec("sionna")
    folders = () if spec is None else spec.submodule_search_locations or ()
    tables = [table for folder in folders for table in sorted(Path(folder).rglob(f"tr38901/models/**/{name}"))]
    if not tables:
        absent = "is not installed" if spec is None else f"has no table {name}"
        raise ConfigError(
            f"model {model} needs the tables of sionna-no-rt, which {absent}", key="world.model", remedy=_REMEDY
        )
    # folders of releases sort by their number
    return _profile_of(json.loads(tables[-1].read_text(encoding="utf-8")), angles=model == "cdl")


def draw_tdl(profile: Profile, world: WorldSpec, path_gain: float, generator: np.random.Generator) -> Paths:
    """Each tap as `num_paths` waves from anywhere in the half-space before the array; the line of sight is one wave.

    a_l ~ CN(0, beta p_c / num_paths),  tau_l = delay_c delay_spread_s

    Args:
        profile: taps.
        world: number of waves, delay spread and Doppler shift.
        path_gain: mean power gain beta.
        generator: source of directions and gains.

    Returns:
        the waves, tap by tap.
    """
    waves = np.full(len(profile.shares), world.num_paths)
    if profile.sight:
        waves[0] = 1
    tap = np.repeat(np.arange(len(waves)), waves)
    directions = isotropic_directions(generator, len(tap))
    return _faded(profile, tap, waves, directions, world, path_gain, generator)


def draw_cdl(
    profile: Profile, world: WorldSpec, path_gain: float, towards_node: np.ndarray, generator: np.random.Generator
) -> Paths:
    """Each cluster as 20 rays around its angle of departure at the base station, which receives here.

    phi_nm = phi_n + c_ASD alpha_m,  theta_nm = theta_n + c_ZSD alpha_m' (rays of both angles coupled at random),
    u = (sin theta sin phi, cos theta),  a_nm ~ CN(0, beta p_n / 20). All angles are turned together so that the line
    of sight, or else the mean angle, points to the node. The azimuth counts from the normal of the array's plane.

    Args:
        profile: clusters.
        world: delay spread and Doppler shift.
        path_gain: mean power gain beta.
        towards_node: direction cosines from the array to the node, shape [2].
        generator: source of couplings and gains.

    Returns:
        the rays, cluster by cluster; a line of sight is one wave.

    Reference:
        3GPP TR 38.901, sections 7.7.1 and 7.7.5.1, equations 7.7-0a and 7.7-5.
    """
    assert profile.azimuth_rad is not None and profile.zenith_rad is not None
    offsets = np.concatenate([RAY_OFFSETS, -RAY_OFFSETS])
    num_clusters = len(profile.shares)
    waves = np.full(num_clusters, len(offsets))
    # [num_clusters, 20]
    azimuth_rad = profile.azimuth_rad[:, None] + profile.spread_rad[0] * offsets
    coupled = generator.permuted(np.tile(offsets, (num_clusters, 1)), axis=1)
    zenith_rad = profile.zenith_rad[:, None] + profile.spread_rad[1] * coupled
    if profile.sight:
        waves[0] = 1
        azimuth_rad[0, 0], zenith_rad[0, 0] = profile.azimuth_rad[0], profile.zenith_rad[0]
    kept = np.arange(len(offsets)) < waves[:, None]
    # [num_paths]
    tap = np.repeat(np.arange(num_clusters), waves)
    share = np.repeat(profile.shares / waves, waves)
    azimuth_rad, zenith_rad = azimuth_rad[kept], zenith_rad[kept]
    node_zenith_rad = float(np.arccos(np.clip(towards_node[1], -1.0, 1.0)))
    node_azimuth_rad = float(np.arcsin(np.clip(towards_node[0] / max(np.sin(node_zenith_rad), 1e-9), -1.0, 1.0)))
    reference = np.array([1.0]) if profile.sight else share
    azimuth_rad += node_azimuth_rad - _mean_angle(azimuth_rad[: len(reference)], reference)
    zenith_rad += node_zenith_rad - _mean_angle(zenith_rad[: len(reference)], reference)
    directions = np.stack([np.sin(zenith_rad) * np.sin(azimuth_rad), np.cos(zenith_rad)], axis=1)
    return _faded(profile, tap, waves, directions, world, path_gain, generator)


def _profile_of(table: dict[str, Any], *, angles: bool) -> Profile:
    linear = np.array([from_db(decibels) for decibels in table["powers"]])
    return Profile(
        shares=linear / linear.sum(),
        delays=np.array(table["delays"], dtype=np.float64),
        sight=bool(table["los"]),
        azimuth_rad=np.radians(table["aod"]) if angles else None,
        zenith_rad=np.radians(table["zod"]) if angles else None,
        spread_rad=(np.radians(table["cASD"]), np.radians(table["cZSD"])) if angles else (0.0, 0.0),
    )


def _mean_angle(angle_rad: np.ndarray, share: np.ndarray) -> float:
    return float(np.angle(share @ np.exp(1j * angle_rad)))


def _faded(
    profile: Profile,
    tap: np.ndarray,
    waves: np.ndarray,
    directions: np.ndarray,
    world: WorldSpec,
    path_gain: float,
    generator: np.random.Generator,
) -> Paths:
    # [num_paths]
    scattered = (path_gain * profile.shares / waves)[tap]
    gains = circular_gaussian(generator, scattered)
    phase_rad = generator.uniform(0.0, 2 * np.pi)
    if profile.sight:
        gains[0] = np.sqrt(scattered[0]) * np.exp(1j * phase_rad)
        scattered[0] = 0.0
    arrival_rad = generator.uniform(0.0, 2 * np.pi, len(tap))
    return Paths(
        directions=directions,
        gains=gains,
        doppler_hz=world.doppler_hz * np.cos(arrival_rad),
        delays_s=profile.delays[tap] * world.delay_spread_s,
        scattered=scattered,
    )
