"""Transmit beams, in both readings of what the paper means by transmit beamformers (which of them it means is unknown).

"downlink": the base station broadcasts the adapter with a beam w, best for the client that hears it worst,

    maximise over ||w|| = 1   min_m |h_m^H w|^2 / sigma_m^2,

which is the receive combiner's problem with other channels. "clients": client m has several antennas, channel H_m and a
unit-norm beam w_m. For a given combiner the best one is closed form, w_m = H_m^H f / ||H_m^H f||, and for given beams
H_m w_m is a channel of plane waves as before: the two are found in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from testbed.opt.solution import Solution
from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.placement import Placement
from testbed.problems.multicast import multicast

_TURNS = 6
_SETTLED = 1e-4


class Placer(Protocol):
    """Where antennas go and how they listen, for given auxiliary channels."""

    def __call__(
        self,
        paths: PathSet,
        aperture: Aperture,
        *,
        rng: np.random.Generator,
        num_starts: int,
        warm: np.ndarray | None,
    ) -> Solution[Placement]:
        """Maximise the weakest gain min_m |f^H h~_m(r)|^2."""


@dataclass(frozen=True)
class ClientArrays:
    """Clients' own antennas, which see the same plane waves under their angles of departure.

    Attributes:
        departures: direction cosines v_ml along the client's array, shape [num_clients, num_paths].
        offsets_m: places t_a of its antennas on that line, shape [num_client_antennas].
    """

    departures: np.ndarray
    offsets_m: np.ndarray

    def responses(self, wavelength_m: float) -> np.ndarray:
        """exp(j 2 pi / lambda v_ml t_a), shape [num_clients, num_paths, num_client_antennas]."""
        phases_rad = self.departures[:, :, None] * self.offsets_m * (2.0 * np.pi / wavelength_m)
        return np.exp(1j * phases_rad)

    def channels(self, paths: PathSet, positions_m: np.ndarray) -> np.ndarray:
        """H_m, shape [num_clients, num_antennas, num_client_antennas].

        Args:
            paths: the plane waves.
            positions_m: of the base station's antennas, shape [num_antennas, 2].
        """
        waves = paths.waves(positions_m)
        return np.einsum("nml,mla->mna", waves, self.responses(paths.wavelength_m))

    def steered(self, paths: PathSet, beams: np.ndarray) -> PathSet:
        """The plane waves of H_m w_m.

        Args:
            paths: the plane waves.
            beams: w_m, shape [num_clients, num_client_antennas].
        """
        factors = np.einsum("mla,ma->ml", self.responses(paths.wavelength_m), beams)
        return replace(paths, gains=paths.gains * factors)

    def part(self, clients: Sequence[int]) -> ClientArrays:
        """The arrays of some clients, in that order."""
        return replace(self, departures=self.departures[np.asarray(clients, np.int64)])


def matched_beams(channels: np.ndarray, combiner: np.ndarray) -> np.ndarray:
    """w_m = H_m^H f / ||H_m^H f||, the best beams for a combiner.

    Args:
        channels: H_m, shape [num_clients, num_antennas, num_client_antennas].
        combiner: f, shape [num_antennas].

    Returns:
        shape [num_clients, num_client_antennas]; where nothing is heard, the first antenna alone.
    """
    back = np.einsum("mna,n->ma", channels.conj(), combiner)
    norm = np.linalg.norm(back, axis=1, keepdims=True)
    first = np.eye(channels.shape[2], dtype=np.complex128)[:1]
    return np.where(norm > 0, back / np.where(norm > 0, norm, 1.0), first)


def strongest_beams(channels: np.ndarray) -> np.ndarray:
    """Each client's beam that reaches the whole array best: the first right singular vector of H_m.

    Args:
        channels: H_m, shape [num_clients, num_antennas, num_client_antennas].

    Returns:
        shape [num_clients, num_client_antennas].
    """
    return np.linalg.svd(channels, full_matrices=False)[2][:, 0].conj()


def place_with_beams(
    paths: PathSet,
    arrays: ClientArrays,
    aperture: Aperture,
    placer: Placer,
    *,
    rng: np.random.Generator,
    num_starts: int,
    warm: np.ndarray | None,
) -> tuple[Solution[Placement], np.ndarray]:
    """Positions and combiner, and clients' beams, in turn until neither gains.

    Args:
        paths: auxiliary plane waves of the clients that send.
        arrays: their antennas.
        aperture: where the base station's antennas may be.
        placer: finds positions and combiner for given beams.
        rng: for the placer.
        num_starts: of the first turn; later turns start where the one before ended.
        warm: positions to start from.

    Returns:
        the placement, its gain with the beams counted in, and the beams, shape [num_clients, num_client_antennas].
    """
    beams = strongest_beams(arrays.channels(paths, aperture.home_m if warm is None else warm))
    best: Solution[Placement] | None = None
    best_beams = beams
    for turn in range(_TURNS):
        found = placer(
            arrays.steered(paths, beams), aperture, rng=rng, num_starts=num_starts if turn == 0 else 1, warm=warm
        )
        channels = arrays.channels(paths, found.point.positions_m)
        beams = matched_beams(channels, found.point.combiner)
        heard = np.einsum("n,mna,ma->m", found.point.combiner.conj(), channels, beams)
        gain = float(np.min(np.abs(heard) ** 2))
        before = 0.0 if best is None else best.value
        if best is None or gain > before:
            best = replace(found, point=replace(found.point, gain=gain), value=gain)
            best_beams, warm = beams, found.point.positions_m
        if gain <= before * (1 + _SETTLED):
            break
    assert best is not None
    return best, best_beams


def broadcast_beam(channel: np.ndarray, noise_w: np.ndarray) -> Solution[np.ndarray]:
    """The base station's beam for a broadcast that the worst client hears as well as possible.

    maximise over ||w|| = 1   min_m |h_m^H w|^2 / sigma_m^2

    Args:
        channel: h_m, shape [num_antennas, num_clients].
        noise_w: sigma_m^2 at the clients, shape [num_clients].

    Returns:
        w, shape [num_antennas]; `value` times the power is the worst client's signal-to-noise ratio.

    Raises:
        ValueError: a channel is zero or not finite.
    """
    return multicast(channel / np.sqrt(np.asarray(noise_w, np.float64)))
