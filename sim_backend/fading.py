"""How the gains of plane waves change with time: static, block and Jakes fading.

Only scattered paths fade. A line of sight keeps its power; it turns with its Doppler shift, in block fading it rests.
"""

from __future__ import annotations

import numpy as np

from sim_backend.paths import Draw, Paths, circular_gaussian, generator_of
from testbed.core.world_specs import WorldSpec

NUM_SINUSOIDS = 64
"""Waves that make one Rayleigh process; its fourth moment is 2 - 1/64 instead of 2."""

_PRODUCT = 65_536  # complex multiplications of one product: OpenBLAS keeps those on one thread


def is_moving(world: WorldSpec) -> bool:
    """Whether the gains change with time."""
    return world.fading != "static" or world.doppler_hz > 0


class Fading:
    """The gains of one node's paths as a function of time.

    static: a_l(t) = a_l exp(j 2 pi f_l t)
    block: a_l(t) ~ CN(0, p_l), drawn anew in every block of coherence_s
    jakes: a_l(t) = sqrt(p_l / S) sum_s exp(j (2 pi f_D t cos(alpha_s) + phi_ls)), whose autocorrelation over the
    draws is p_l J_0(2 pi f_D tau)

    Args:
        paths: of the node.
        world: kind of fading, coherence time and Doppler shift.
        seed: of the world.
        index: of the node.

    Reference:
        R. H. Clarke, "A statistical theory of mobile-radio reception", Bell Syst. Tech. J. 1968; Y. R. Zheng, C. Xiao,
        "Simulation models with correct statistical properties for Rayleigh fading channels", IEEE Trans. Commun. 2003.
    """

    def __init__(self, paths: Paths, world: WorldSpec, seed: int, index: int) -> None:
        self._paths, self._world, self._seed, self._index = paths, world, seed, index
        if world.fading == "jakes":
            generator = generator_of(seed, Draw.JAKES, index)
            # one wave from each of equal sectors, [num_sinusoids]
            arrival_rad = 2 * np.pi * (np.arange(NUM_SINUSOIDS) + generator.uniform()) / NUM_SINUSOIDS
            self._turning_rad_s = 2 * np.pi * world.doppler_hz * np.cos(arrival_rad)
            phase_rad = generator.uniform(0.0, 2 * np.pi, (NUM_SINUSOIDS, len(paths.gains)))
            self._weights = np.sqrt(paths.scattered / NUM_SINUSOIDS) * np.exp(1j * phase_rad)

    def gains(self, at_s: np.ndarray) -> np.ndarray:
        """The paths' gains at some instants.

        Args:
            at_s: instants, shape [num_instants].

        Returns:
            shape [num_instants, num_paths], complex128.
        """
        at_s = np.asarray(at_s, dtype=np.float64)
        if self._world.fading == "block":
            return self._block_gains(at_s)
        if self._world.fading == "jakes":
            return self._jakes_gains(at_s)
        return self._paths.gains * np.exp(2j * np.pi * np.multiply.outer(at_s, self._paths.doppler_hz))

    def _block_gains(self, at_s: np.ndarray) -> np.ndarray:
        paths = self._paths
        # an instant that is a whole number of blocks but for its rounding begins that block
        numbers = np.floor(at_s / self._world.coherence_s + 1e-9).astype(np.int64)
        blocks, which = np.unique(numbers, return_inverse=True)
        # [num_blocks, num_paths]
        gains = np.empty((len(blocks), len(paths.gains)), np.complex128)
        for row, block in zip(gains, blocks.tolist(), strict=True):
            word = 2 * block if block >= 0 else -2 * block - 1  # a seed's words are not negative
            row[:] = circular_gaussian(generator_of(self._seed, Draw.BLOCK, self._index, word), paths.scattered)
        # [num_instants, num_paths]
        return np.where(paths.scattered > 0, gains[which], paths.gains)

    def _jakes_gains(self, at_s: np.ndarray) -> np.ndarray:
        paths = self._paths
        turned_rad = np.multiply.outer(at_s, self._turning_rad_s)
        # cos and sin apart take half the time of a complex exponential, [num_instants, num_sinusoids]
        gains = product(np.cos(turned_rad) + 1j * np.sin(turned_rad), self._weights)
        steady = np.flatnonzero(paths.scattered == 0)
        turns = np.multiply.outer(at_s, paths.doppler_hz[steady])
        gains[:, steady] = paths.gains[steady] * np.exp(2j * np.pi * turns)
        return gains


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right in rows so few at a time that no product wakes other threads.

    Args:
        left: shape [num_rows, num_inner].
        right: shape [num_inner, num_columns].

    Returns:
        shape [num_rows, num_columns].
    """
    rows = max(1, _PRODUCT // max(1, right.size))
    if len(left) <= rows:
        return left @ right
    return np.concatenate([left[start : start + rows] @ right for start in range(0, len(left), rows)])
