"""What soundings tell of energies: which fields may be trusted elsewhere, and the best places that were measured.

On a bench whose phases are new at every visit a field is fitted with a free phase for each visit, which several
antennas of one sounding can tell and one antenna alone cannot. A field is trusted where it predicts left-out
measurements; where some client's is not, the antennas go by the energies that were measured. All of it is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.core.orders import Sounding
from testbed.phy.aperture import Aperture
from testbed.phy.field_checks import cross_validated
from testbed.phy.field_fit import fit_paths, straightened
from testbed.phy.field_model import FieldModel, PathField, Samples
from testbed.problems.ma_ota.energy import exchanged
from testbed.problems.ma_ota.survey import Survey

_SAME_M = 1e-6
_FOLDS = 3


def trusted_field(
    survey: Survey, node: str, wavelength_m: float, *, max_paths: int, max_error: float
) -> PathField | None:
    """A node's plane waves, where they predict what the fit has not seen; else None.

    Args:
        survey: soundings at several layouts.
        node: its name.
        wavelength_m: lambda.
        max_paths: of the fit.
        max_error: largest cross-validated error, a share of the channel's power.
    """
    samples, fit = survey.samples(node), survey.fit(node, wavelength_m, max_paths)
    if samples is None or fit is None:
        return None
    alone = len(np.unique(samples.antenna)) == 1
    if alone and np.any(fit.phases_rad != 0):
        return None

    power = float(np.sum(np.abs(samples.channel) ** 2))
    missed = float(np.sum(np.abs(fit.residual) ** 2) - np.sum(samples.variance))
    if missed > max_error * power:
        return None

    def again(part: Samples) -> FieldModel:
        return fit_paths(part, wavelength_m, max_paths=max_paths).field

    error, _ = cross_validated(straightened(samples, fit), again, num_folds=_FOLDS)
    return fit.field if error <= max_error else None


def cautious_energy(fields: list[PathField], power_w: np.ndarray, positions_m: np.ndarray) -> np.ndarray:
    """Energy that each client surely brings: P_m sum_n max(|h_m(r_n)| - 1.28 std, 0)^2, shape [num_nodes].

    Args:
        fields: of the clients.
        power_w: P_m, shape [num_nodes].
        positions_m: shape [num_antennas, 2].
    """
    told = [field.predict(positions_m) for field in fields]
    sure = [float(np.sum(np.maximum(np.abs(channel) - 1.28 * std, 0.0) ** 2)) for channel, std in told]
    return np.asarray(power_w, np.float64) * np.array(sure)


@dataclass(frozen=True)
class Heard:
    """Energies at all places where an antenna has measured.

    Attributes:
        places_m: shape [num_places, 2].
        energy_w: of each client at full power there, watts, 0 where it was not heard, shape [num_places, num_nodes].
    """

    places_m: np.ndarray
    energy_w: np.ndarray

    @classmethod
    def nothing(cls, num_nodes: int) -> Heard:
        """Before the first sounding."""
        return cls(np.zeros((0, 2)), np.zeros((0, num_nodes)))

    def with_sounding(self, sounding: Sounding, names: tuple[str, ...], power_w: np.ndarray) -> Heard:
        """These energies and those of one more sounding, which replace earlier ones at the same places.

        Args:
            sounding: of some or all clients.
            names: of all clients, in the order of `energy_w`.
            power_w: P_m of all clients, shape [num_nodes].
        """
        energy_w = np.zeros((len(sounding.positions_m), len(names)))
        for column, name in enumerate(sounding.nodes):
            index = names.index(name)
            energy_w[:, index] = power_w[index] * np.abs(sounding.channel[:, column]) ** 2
        apart_m = np.linalg.norm(self.places_m[:, None] - sounding.positions_m[None], axis=2)
        kept = np.all(apart_m > _SAME_M, axis=1)
        return Heard(
            np.concatenate([self.places_m[kept], sounding.positions_m]), np.concatenate([self.energy_w[kept], energy_w])
        )

    def at(self, layout_m: np.ndarray) -> np.ndarray:
        """Energy of each client at measured places, all antennas together, shape [num_nodes].

        Args:
            layout_m: shape [num_antennas, 2].

        Raises:
            ValueError: a place was not measured.
        """
        return self._each(layout_m).sum(axis=0)

    def best(self, aperture: Aperture, start_m: np.ndarray) -> np.ndarray:
        """Measured places that together serve the weakest client best, of those that were heard anywhere; by exchange.

        Args:
            aperture: where antennas may be.
            start_m: measured places to begin at, shape [num_antennas, 2].

        Returns:
            shape [num_antennas, 2].

        Raises:
            ValueError: a place to begin at was not measured.
        """
        own = self._each(start_m)
        audible = np.flatnonzero(self.energy_w.max(axis=0) > 0)
        if not len(audible):
            return start_m
        return exchanged(aperture, self.places_m, self.energy_w[:, audible], start_m, own[:, audible])

    def _each(self, layout_m: np.ndarray) -> np.ndarray:
        """Energies at measured places, shape [num_antennas, num_nodes]."""
        apart_m = np.linalg.norm(self.places_m[:, None] - layout_m[None], axis=2)
        if not len(apart_m) or np.any(apart_m.min(axis=0) > _SAME_M):
            raise ValueError("no antenna has measured at some of these places: begin at a layout that was sounded")
        return self.energy_w[np.argmin(apart_m, axis=0)]
