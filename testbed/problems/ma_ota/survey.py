"""What soundings at different places tell of every node's channel anywhere: the survey before antennas are placed.

The channels are plane waves, h_m(r) = sum_l a_ml exp(j 2 pi / lambda u_ml . r). All antennas of one sounding share a
phase; whether it holds from one visit to the next depends on the bench's clocks, so both readings are fitted and the
Bayesian information criterion decides. Our reading: the paper takes the channels as known.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from testbed.core.fleet import ArrayFacts
from testbed.core.orders import Order, Reply, Sounding, move, sound
from testbed.phy.field_fit import PathFit, fit_paths
from testbed.phy.field_model import PathField, Samples
from testbed.phy.ports import nearest_assignment, random_layout

_DRAWS = 64
_LEVEL = 0.1
_KEPT = 12  # visits: older ones may tell of another room
_MISSED = 0.1  # share of a channel's power that its field may miss before it is fitted anew


@dataclass(frozen=True)
class Survey:
    """Soundings of the same nodes at several layouts of the array.

    Attributes:
        visits: the layouts, each of shape [num_antennas, 2].
        heard: for each visit, node -> (channel [num_antennas], variance of each of its entries).
    """

    visits: tuple[np.ndarray, ...] = ()
    heard: tuple[Mapping[str, tuple[np.ndarray, float]], ...] = ()

    def with_sounding(self, sounding: Sounding) -> Survey:
        """This survey and one more visit."""
        variance = np.zeros(len(sounding.nodes)) if sounding.variance is None else sounding.variance
        told = {name: (sounding.channel[:, k], float(variance[k])) for k, name in enumerate(sounding.nodes)}
        return replace(self, visits=(*self.visits, sounding.positions_m), heard=(*self.heard, told))

    def latest(self, count: int) -> Survey:
        """The last so many visits."""
        return Survey(self.visits[-count:], self.heard[-count:])

    def samples(self, node: str) -> Samples | None:
        """Everything heard of one node; None where it was never heard."""
        chosen = [index for index, told in enumerate(self.heard) if node in told]
        if not chosen:
            return None
        num_antennas = len(self.visits[chosen[0]])
        return Samples(
            channel=np.concatenate([self.heard[index][node][0] for index in chosen]).astype(np.complex128),
            positions_m=np.concatenate([self.visits[index] for index in chosen]),
            variance=np.repeat([self.heard[index][node][1] for index in chosen], num_antennas),
            antenna=np.tile(np.arange(num_antennas), len(chosen)),
            visit=np.repeat(np.arange(len(chosen)), num_antennas),
        )

    def fit(self, node: str, wavelength_m: float, max_paths: int) -> PathFit | None:
        """The plane waves of one node's channel; None where too little was heard of it.

        Args:
            node: its name.
            wavelength_m: lambda.
            max_paths: no more are tried.
        """
        samples = self.samples(node)
        if samples is None:
            return None
        fits = []
        for free in (False, True):
            try:
                fits.append(fit_paths(samples, wavelength_m, max_paths=max_paths, free_phases=free))
            except ValueError:
                continue  # too few samples for so many unknowns
        return min(fits, key=lambda fit: fit.criterion, default=None)


def visit_layouts(
    array: ArrayFacts, here_m: np.ndarray, visits: int, rng: np.random.Generator, *, num_pilots: int, moves: bool
) -> Generator[Order, Reply, tuple[Survey, Sounding]]:
    """Sound at the fixed array, then at random layouts, each antenna going to the nearest place of the next one.

    Args:
        array: the antennas.
        here_m: where they are, shape [num_antennas, 2].
        visits: soundings.
        rng: draws the layouts.
        num_pilots: of each sounding.
        moves: whether antennas move at all; without, every sounding is made where they are.

    Returns:
        the survey, and its last sounding.

    Raises:
        ValueError: fewer than one visit, or so many antennas do not fit.
    """
    if visits < 1:
        raise ValueError(f"{visits} visits make no survey")
    survey, movable = Survey(), array.movable
    for visit in range(visits):
        if moves:
            layout_m = array.home_m.copy()
            if visit > 0:
                drawn_m = random_layout(
                    array.region_m, array.home_m[~movable], int(movable.sum()), array.min_spacing_m, rng
                )
                layout_m[movable] = nearest_assignment(drawn_m, here_m[movable])
            here_m = (yield from move(layout_m)).positions_m
        sounding = yield from sound(num_pilots=num_pilots)
        survey = survey.with_sounding(sounding)
    return survey, sounding


def robust_gain(
    fields: Sequence[PathField],
    factor: np.ndarray,
    positions_m: np.ndarray,
    combiner: np.ndarray,
    rng: np.random.Generator,
    *,
    position_std_m: float = 0.0,
) -> float:
    """What the weakest node is heard with in nine cases of ten, given how well channels and places are known.

    the 10 % quantile of min_m factor_m^2 |f^H h_m(r + e)|^2, h_m drawn from its field's posterior, e ~ N(0, s^2)

    The combiner stays that of the nominal channels, so this is a lower bound for one that is computed from a sounding
    at the places themselves.

    Args:
        fields: of the nodes.
        factor: sqrt(P_m) / (D_m nu_m), shape [num_nodes].
        positions_m: r, shape [num_antennas, 2].
        combiner: f, shape [num_antennas].
        rng: draws.
        position_std_m: s, of every antenna and axis.
    """
    # [num_draws, num_antennas, 2]
    places_m = positions_m + position_std_m * rng.standard_normal((_DRAWS, *positions_m.shape))
    weakest = np.full(_DRAWS, np.inf)
    for field, weight in zip(fields, factor, strict=True):
        size = len(field.gains)
        known = np.linalg.eigh((field.covariance + field.covariance.T) / 2)
        root = known.eigenvectors * np.sqrt(np.maximum(known.eigenvalues, 0.0))
        error = rng.standard_normal((_DRAWS, 4 * size)) @ root.T
        # unknowns of a field: all u_x, all u_y, all Re a, all Im a
        directions = field.directions + np.stack([error[:, :size], error[:, size : 2 * size]], axis=-1)
        gains = field.gains + error[:, 2 * size : 3 * size] + 1j * error[:, 3 * size :]
        phases_rad = np.einsum("dni,dli->dnl", places_m, directions) * (2 * np.pi / field.wavelength_m)
        heard = np.einsum("dnl,dl,n->d", np.exp(1j * phases_rad), gains, combiner.conj())
        weakest = np.minimum(weakest, weight**2 * np.abs(heard) ** 2)
    return float(np.quantile(weakest, _LEVEL))


def refreshed(
    survey: Survey, fields: Mapping[str, PathField], sounding: Sounding, max_paths: int
) -> tuple[Survey, dict[str, PathField]]:
    """Survey and fields after one more sounding: nodes whose channel is not what its field says are fitted anew.

        miss = min over c of ||h - c h_field||^2 / ||h||^2,   |c| = 1

    Args:
        survey: so far; its latest visits are kept.
        fields: so far.
        sounding: at places that the fields had to predict.
        max_paths: of a fit.
    """
    survey = survey.with_sounding(sounding).latest(_KEPT)
    renewed = dict(fields)
    for column, name in enumerate(sounding.nodes):
        if name not in fields:
            continue
        heard, told = sounding.channel[:, column], fields[name].predict(sounding.positions_m)[0]
        power = float(np.sum(np.abs(heard) ** 2))
        miss = power + float(np.sum(np.abs(told) ** 2)) - 2 * abs(np.vdot(told, heard))
        if miss > _MISSED * power and (fit := survey.fit(name, fields[name].wavelength_m, max_paths)) is not None:
            renewed[name] = fit.field
    return survey, renewed
