"""What to leave out of a frozen model: orders of importance, nested sets, and the energy that goes with them.

Structured pruning takes groups out, uniformly in every layer: a key-value head with its query heads, and a channel of
the feed-forward block with its three vectors. One chain of counts (heads, channels) serves all ratios: channels go one
by one, and the k-th head goes as soon as the share of channels that are gone has reached k / heads. A ratio takes the
longest piece of the chain that removes no more than it, so that a larger ratio removes a superset, whatever the
importance: kept(rho_2) is inside kept(rho_1) for rho_1 < rho_2. One head and one channel of a layer always stay.

Unstructured pruning takes the floor(rho n) least important of the n weights of each output row.

The energy that is taken out, e(rho), is what the convergence bound of pruned training asks for; for weights in rising
order of their squares it is convex, nondecreasing and piecewise linear, and rho ||w||^2 is its chord.

Paper: "Low-latency federated LLM fine-tuning over wireless networks" (JCPBA), arXiv 2602.01024, prunes clients at
rates of their own; its criterion is not known here. The Taylor estimate is LLM-Pruner's (arXiv 2305.11627), |w| ||x||
Wanda's (arXiv 2306.11695); chain, nesting and curve are our choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ROUNDING = 1e-9


@dataclass(frozen=True)
class LayerShape:
    """What a layer can lose.

    Attributes:
        heads: key-value heads.
        head_values: weights of one, with its query heads.
        channels: of the feed-forward block.
        channel_values: weights of one.
    """

    heads: int
    head_values: int
    channels: int
    channel_values: int

    @property
    def size(self) -> int:
        """Prunable weights of the layer."""
        return self.heads * self.head_values + self.channels * self.channel_values

    @cached_property
    def chain(self) -> np.ndarray:
        """(heads, channels) that are gone, step by step from none to all but one each, shape [num_steps, 2]."""
        steps, heads = [(0, 0)], 0
        for channels in range(1, self.channels):
            steps.append((heads, channels))
            while heads + 1 < self.heads and (heads + 1) * self.channels <= channels * self.heads:
                heads += 1
                steps.append((heads, channels))
        while heads + 1 < self.heads:
            heads += 1
            steps.append((heads, self.channels - 1))
        return np.array(steps, np.int64)

    def removed(self, ratio: float) -> tuple[int, int]:
        """Heads and channels that a ratio takes out of the layer: the most of the chain that is not above it.

        Args:
            ratio: share of the layer's weights, from 0 to below 1.

        Raises:
            ValueError: another ratio.
        """
        _check_ratio(ratio)
        values = self.chain @ np.array([self.head_values, self.channel_values])
        last = int(np.searchsorted(values, ratio * self.size * (1 + _ROUNDING), side="right")) - 1
        heads, channels = self.chain[last]
        return int(heads), int(channels)

    def ratio(self, heads: int, channels: int) -> float:
        """Share of the layer's weights that so many heads and channels are.

        Args:
            heads: taken out.
            channels: taken out.
        """
        return (heads * self.head_values + channels * self.channel_values) / self.size


def kept(importance: np.ndarray, removed: int) -> np.ndarray:
    """What stays when the least important go; of equal ones the first go first.

    Args:
        importance: of each member of a row, shape [..., num_members].
        removed: how many of each row go.

    Returns:
        shape [..., num_members], bool; a larger number keeps a subset.

    Raises:
        ValueError: more than there are, or an importance that is not finite.
    """
    importance = np.asarray(importance)
    if not 0 <= removed <= importance.shape[-1]:
        raise ValueError(f"{removed} of {importance.shape[-1]} members cannot be taken out")
    if not np.isfinite(importance).all():
        raise ValueError("an importance is not finite: the model's loss or weights are not")
    order = np.argsort(importance, axis=-1, kind="stable")
    mask = np.ones(importance.shape, bool)
    np.put_along_axis(mask, order[..., :removed], False, axis=-1)
    return mask


def row_removed(ratio: float, num_columns: int) -> int:
    """floor(rho n) weights of a row of n, of unstructured pruning.

    Args:
        ratio: rho, from 0 to below 1.
        num_columns: n.

    Raises:
        ValueError: another ratio.
    """
    _check_ratio(ratio)
    return int(ratio * num_columns * (1 + _ROUNDING))


def work_share(prunable: float, kept_values: float, fixed: float, full_lora: float = 0.0, lora: float = 0.0) -> float:
    """Operations of a token, forward and backward, relative to the whole model.

        (4 N_kept + 4 N_fixed + 6 n_lora) / (4 N + 4 N_fixed + 6 n_full)

    A frozen matrix costs 2 operations a weight forward and 2 for the gradient of its input, a trained one 2 more for
    its own gradient. The products of attention, which grow with the length of a row, are left out.

    Args:
        prunable: N, weights of attention and feed-forward blocks.
        kept_values: N_kept, those of them that stay.
        fixed: N_fixed, weights of other matrices: the output layer.
        full_lora: n_full, LoRA values of the whole model.
        lora: n_lora, those of the pruned model.
    """
    return (4.0 * (kept_values + fixed) + 6.0 * lora) / (4.0 * (prunable + fixed) + 6.0 * full_lora)


@dataclass(frozen=True)
class PrunedEnergy:
    """e(rho) / ||w||^2: which share of the energy goes with a share of the weights.

    Attributes:
        ratio: share of the weights at the corners, from 0 to 1, shape [num_corners].
        energy_share: share of the energy that is gone there, from 0 to 1, shape [num_corners].
    """

    ratio: np.ndarray
    energy_share: np.ndarray

    def __call__(self, ratio: np.ndarray | float) -> np.ndarray:
        """The share at `ratio`, shape as `ratio`."""
        return np.interp(ratio, self.ratio, self.energy_share)

    @property
    def slopes(self) -> np.ndarray:
        """Slope of each piece, shape [num_corners - 1]."""
        return np.diff(self.energy_share) / np.diff(self.ratio)


def pruned_energy(weights: np.ndarray, corners: int = 64) -> PrunedEnergy:
    """The curve of magnitude pruning over all weights at once: sums of the smallest squares.

    Args:
        weights: in any shape.
        corners: pieces that the curve is thinned to; a chord of a convex curve lies above it, so the thinned curve is
            convex and never below the exact one.

    Returns:
        A convex, nondecreasing curve.

    Raises:
        ValueError: no weights, or none that differs from zero.
    """
    squares = np.sort(np.square(np.asarray(weights, np.float64)).ravel())
    total = float(squares.sum())
    if not total > 0:
        raise ValueError("weights without energy have no curve")
    places = np.unique(np.linspace(0, squares.size, min(corners, squares.size) + 1).round().astype(np.int64))
    sums = np.concatenate([[0.0], np.cumsum(squares)])
    energy = sums[places] / sums[-1]
    return PrunedEnergy(places / squares.size, energy)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise ValueError(f"a ratio of {ratio:g} is not in [0, 1)")
