"""A movable array's aperture, and the channels of several nodes as functions of where its antennas stand.

h_m(r_n) = sum_l a_ml exp(j 2 pi / lambda u_ml . r_n)      (field-response channel)

Reference: W. Ma, L. Zhu, R. Zhang, "MIMO capacity characterization for movable antenna systems", arXiv 2210.05396.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from testbed.phy.field_model import PathField


@dataclass(frozen=True)
class Aperture:
    """Where receive antennas may be.

    Attributes:
        home_m: places of the fixed array, array frame, shape [num_antennas, 2]; antennas that cannot move stay there.
        movable: which antennas have a stage, shape [num_antennas], bool.
        region_m: [axis, (low, high)], shape [2, 2].
        min_spacing_m: smallest distance D of two antennas.
        wavelength_m: lambda.
    """

    home_m: np.ndarray
    movable: np.ndarray
    region_m: np.ndarray
    min_spacing_m: float
    wavelength_m: float

    @property
    def num_antennas(self) -> int:
        return len(self.home_m)

    def violation_m(self, positions_m: np.ndarray) -> float:
        """By how much positions leave the region, come too close or move what is fixed; 0 where they do not.

        Args:
            positions_m: array frame, shape [num_antennas, 2].
        """
        moved = positions_m[self.movable]
        outside = np.maximum(self.region_m[:, 0] - moved, moved - self.region_m[:, 1])
        worst = [0.0, float(outside.max(initial=0.0))]
        if not self.movable.all():
            worst.append(float(np.abs(positions_m - self.home_m)[~self.movable].max()))
        if len(positions_m) > 1:
            first, second = np.triu_indices(len(positions_m), 1)
            pairs = self.movable[first] | self.movable[second]
            apart_m = np.linalg.norm(positions_m[first] - positions_m[second], axis=1)[pairs]
            worst.append(float((self.min_spacing_m - apart_m).max(initial=0.0)))
        return max(worst)


@dataclass(frozen=True)
class PathSet:
    """Plane waves of several nodes, padded with waves of no gain to a common number.

    Attributes:
        directions: direction cosines u_ml along the array axes, shape [num_nodes, num_paths, 2].
        gains: a_ml at the array origin, shape [num_nodes, num_paths], complex128.
        wavelength_m: lambda.
    """

    directions: np.ndarray
    gains: np.ndarray
    wavelength_m: float

    @property
    def num_nodes(self) -> int:
        return len(self.gains)

    def waves(self, positions_m: np.ndarray) -> np.ndarray:
        """a_ml exp(j 2 pi / lambda u_ml . r), shape [..., num_nodes, num_paths].

        Args:
            positions_m: array frame, shape [..., 2].
        """
        phases_rad = np.einsum("...i,mli->...ml", positions_m, self.directions) * (2.0 * np.pi / self.wavelength_m)
        return self.gains * np.exp(1j * phases_rad)

    def channel(self, positions_m: np.ndarray) -> np.ndarray:
        """h_m(r), shape [..., num_nodes]; for the positions of an array [num_antennas, num_nodes].

        Args:
            positions_m: array frame, shape [..., 2].
        """
        return self.waves(positions_m).sum(axis=-1)

    def scaled(self, factor: np.ndarray) -> PathSet:
        """Each node's channel times a factor, shape [num_nodes]: sqrt(P_m) / (D_m nu_m) gives the auxiliary channel."""
        return replace(self, gains=self.gains * np.asarray(factor)[:, None])

    def part(self, nodes: Sequence[int] | np.ndarray) -> PathSet:
        """The waves of some of the nodes, in that order."""
        index = np.asarray(nodes, dtype=np.int64)
        return replace(self, directions=self.directions[index], gains=self.gains[index])

    @classmethod
    def of(cls, fields: Sequence[PathField]) -> PathSet:
        """The waves of fitted fields, one for each node, all at one wavelength."""
        most = max(len(field.gains) for field in fields)
        directions = np.zeros((len(fields), most, 2))
        gains = np.zeros((len(fields), most), np.complex128)
        for row, field in enumerate(fields):
            directions[row, : len(field.gains)] = field.directions
            gains[row, : len(field.gains)] = field.gains
        return cls(directions, gains, fields[0].wavelength_m)

    @classmethod
    def draw(
        cls, rng: np.random.Generator, num_nodes: int, num_paths: int, wavelength_m: float, *, rician_k: float = 0.0
    ) -> PathSet:
        """Waves from the half space in front of the array, with E|h_m|^2 = 1.

        theta = arccos U[-1, 1], phi ~ U[0, pi], u = (sin theta cos phi, cos theta); a_ml ~ CN(0, 1 / L), or with a
        Rician factor the first wave has the power K / (K + 1) and a random phase, the others share the rest.

        Args:
            rng: draws.
            num_nodes: M.
            num_paths: L.
            wavelength_m: lambda.
            rician_k: K, linear; without line of sight if 0.
        """
        cosine, phi = rng.uniform(-1.0, 1.0, (num_nodes, num_paths)), rng.uniform(0.0, np.pi, (num_nodes, num_paths))
        directions = np.stack([np.sqrt(1.0 - cosine**2) * np.cos(phi), cosine], axis=-1)
        normal = rng.standard_normal((2, num_nodes, num_paths)) / np.sqrt(2.0)
        gains = normal[0] + 1j * normal[1]
        if rician_k > 0 or num_paths == 1:
            direct = 1.0 if num_paths == 1 and rician_k > 0 else rician_k / (rician_k + 1.0)
            scattered = 0.0 if num_paths == 1 else np.sqrt((1.0 - direct) / (num_paths - 1))
            first = np.sqrt(direct) * np.exp(1j * np.angle(gains[:, 0])) if rician_k > 0 else gains[:, 0]
            gains = gains * scattered
            gains[:, 0] = first
        else:
            gains = gains / np.sqrt(num_paths)
        return cls(directions, gains, wavelength_m)
