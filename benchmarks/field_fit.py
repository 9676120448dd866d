"""The channel at unseen positions, from few measurements: plane waves, sparse powers, a Gaussian process, a raster.

    .venv/bin/python benchmarks/field_fit.py [--seeds 40]

3 to 6 plane waves from the half-space before a square of three by three wavelengths, every measurement 25 dB above its
noise; even seeds with gains alike (Rayleigh), odd ones with a line of sight (Rician, 3 dB). The error is that of h(r)
on a grid of 31 x 31 positions, over the channel's power there: median, the level that nine of ten rooms stay below,
the worst room, and the share of rooms below -20 dB.

paths        plane waves fitted to positions of a Latin hypercube (`testbed.phy.field_fit`)
adaptive     the same, four positions at a time where the waves found so far are least certain
sparse       powers on a grid of directions (`testbed.phy.field_alternatives`)
gaussian     waves from everywhere alike
raster       a grid with its edges on those of the square, cubic splines between its points
raster+paths plane waves fitted to the raster's points

"bound" is the Cramer-Rao bound of the true model at the same positions, beside the mean of the rooms' errors.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from scipy.interpolate import RectBivariateSpline

from testbed.phy.array import field_response
from testbed.phy.field_alternatives import fit_isotropic, fit_sparse
from testbed.phy.field_fit import fit_paths
from testbed.phy.field_model import PathField, Samples, path_slopes

WAVELENGTH_M = 0.125
SIDE_M = 3 * WAVELENGTH_M
NOISE = 10**-2.5
AXIS_M = np.linspace(0.0, SIDE_M, 31)
UNSEEN_M = np.stack(np.meshgrid(AXIS_M, AXIS_M, indexing="ij"), axis=-1).reshape(-1, 2)

Answer = Callable[["Room"], np.ndarray]


class Room:
    """Plane waves, and what an antenna measures of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        count = 3 + seed // 2 % 4
        cosine, azimuth_rad = self.rng.uniform(-1, 1, count), self.rng.uniform(0, np.pi, count)
        self.directions = np.stack([np.sqrt(1 - cosine**2) * np.cos(azimuth_rad), cosine], axis=1)
        gains = self.rng.standard_normal((count, 2)) @ np.array([1, 1j]) / math.sqrt(2 * count)
        if seed % 2:
            gains *= math.sqrt(count / (count - 1) / 3)
            gains[0] = math.sqrt(2 / 3) * np.exp(2j * np.pi * self.rng.random())
        self.gains = gains
        self.variance = NOISE * float(np.sum(np.abs(gains) ** 2))
        self.positions_m = np.zeros((0, 2))

    def channel(self, positions_m: np.ndarray) -> np.ndarray:
        """Without noise."""
        return field_response(positions_m, self.directions, WAVELENGTH_M) @ self.gains

    def measure(self, positions_m: np.ndarray) -> Samples:
        """With noise."""
        self.positions_m = positions_m
        noise = self.rng.standard_normal((len(positions_m), 2)) @ np.array([1, 1j]) * math.sqrt(self.variance / 2)
        return Samples.of(self.channel(positions_m) + noise, positions_m, self.variance)

    def latin(self, count: int) -> np.ndarray:
        """Positions of a Latin hypercube."""
        shares = [(self.rng.permutation(count) + self.rng.random(count)) / count for _ in range(2)]
        return SIDE_M * np.stack(shares, axis=1)

    def error(self, guess: np.ndarray) -> float:
        """On unseen positions, over the channel's power."""
        true = self.channel(UNSEEN_M)
        return float(np.sum(np.abs(guess - true) ** 2) / np.sum(np.abs(true) ** 2))

    def bound(self) -> float:
        """Cramer-Rao bound of `error` for the positions last measured."""

        def slopes(positions_m: np.ndarray) -> np.ndarray:
            waves = field_response(positions_m, self.directions, WAVELENGTH_M)
            return path_slopes(waves, positions_m, self.gains, WAVELENGTH_M)

        seen, unseen = slopes(self.positions_m), slopes(UNSEEN_M)
        covariance = np.linalg.pinv(2 / self.variance * (seen.conj().T @ seen).real)
        told = np.einsum("ni,ij,nj->", unseen, covariance, unseen.conj()).real
        return float(told / np.sum(np.abs(self.channel(UNSEEN_M)) ** 2))


def paths(count: int) -> Answer:
    def answer(room: Room) -> np.ndarray:
        return fit_paths(room.measure(room.latin(count)), WAVELENGTH_M).field.predict(UNSEEN_M)[0]

    return answer


def adaptive(count: int) -> Answer:
    def answer(room: Room) -> np.ndarray:
        samples = room.measure(room.latin(max(16, 2 * count // 5)))
        while len(samples) < count:
            field = known = fit_paths(samples, WAVELENGTH_M).field
            chosen = []
            for _ in range(min(4, count - len(samples))):
                candidates_m = SIDE_M * room.rng.random((400, 2))
                chosen.append(candidates_m[int(np.argmax(known.predict(candidates_m)[1]))])
                known = known.after(chosen[-1], room.variance)
            assert isinstance(field, PathField)
            more = room.measure(np.array(chosen))
            samples = Samples.of(
                np.concatenate([samples.channel, more.channel]),
                np.concatenate([samples.positions_m, more.positions_m]),
                room.variance,
            )
        room.positions_m = samples.positions_m
        return fit_paths(samples, WAVELENGTH_M).field.predict(UNSEEN_M)[0]

    return answer


def sparse(count: int) -> Answer:
    return lambda room: fit_sparse(room.measure(room.latin(count)), WAVELENGTH_M).predict(UNSEEN_M)[0]


def gaussian(count: int) -> Answer:
    return lambda room: fit_isotropic(room.measure(room.latin(count)), WAVELENGTH_M).predict(UNSEEN_M)[0]


def raster(per_side: int) -> Answer:
    def answer(room: Room) -> np.ndarray:
        axis_m, positions_m = _raster(per_side)
        measured = room.measure(positions_m).channel.reshape(per_side, per_side)
        real, imag = (
            RectBivariateSpline(axis_m, axis_m, part)(AXIS_M, AXIS_M) for part in (measured.real, measured.imag)
        )
        return (real + 1j * imag).reshape(-1)

    return answer


def raster_paths(per_side: int) -> Answer:
    return lambda room: fit_paths(room.measure(_raster(per_side)[1]), WAVELENGTH_M).field.predict(UNSEEN_M)[0]


def _raster(per_side: int) -> tuple[np.ndarray, np.ndarray]:
    axis_m = np.linspace(0.0, SIDE_M, per_side)
    return axis_m, np.stack(np.meshgrid(axis_m, axis_m, indexing="ij"), axis=-1).reshape(-1, 2)


def row(name: str, count: int, answer: Answer, seeds: int) -> None:
    """One line of the table."""
    errors, bounds, seconds = [], [], []
    for seed in range(seeds):
        room = Room(seed)
        began_s = time.perf_counter()
        guess = answer(room)
        seconds.append(time.perf_counter() - began_s)
        errors.append(room.error(guess))
        bounds.append(room.bound())
    levels_db = 10 * np.log10(errors)
    ends = np.median(levels_db), np.quantile(levels_db, 0.9), levels_db.max()
    below = np.mean(levels_db < -20)
    mean_db, bound_db = 10 * np.log10(np.mean(errors)), 10 * np.log10(np.mean(bounds))
    cells = [f"{value:6.1f}" for value in (*ends, mean_db, bound_db)]
    print(
        f"| {name:<22} | {count:4d} | {' | '.join(cells)} | {below:5.0%} | {1e3 * np.mean(seconds):5.0f} |", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    seeds = parser.parse_args().seeds
    print("| method                 | meas. | median | 90 % | worst | mean | bound | < -20 dB | ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for count in (16, 20, 24, 30, 40, 50, 60):
        row("paths", count, paths(count), seeds)
    for count in (24, 30, 40, 60):
        row("adaptive", count, adaptive(count), seeds)
    for count in (30, 40, 60):
        row("sparse", count, sparse(count), seeds)
    for count in (60, 120, 240):
        row("gaussian", count, gaussian(count), seeds)
    for per_side in (7, 10, 13, 16, 19, 25):
        row(f"raster, lambda/{(per_side - 1) / 3:g}", per_side**2, raster(per_side), seeds)
    row("raster+paths, lambda/2", 49, raster_paths(7), seeds)


if __name__ == "__main__":
    main()
