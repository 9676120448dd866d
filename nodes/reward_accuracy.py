"""How often a reward finds the preferred response, how sure that is, and whether it beats the length of the texts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from nodes.preferences import Pair
from nodes.reward import Reward


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs decided rightly, with its 95 % interval.

    Attributes:
        share: pairs whose preferred response scores higher; ties count half.
        num_pairs: pairs looked at.
        num_groups: distinct prompts among them.
        effective: independent pairs that would leave the same uncertainty; pairs of one prompt are not independent.
        low: lower end of the Wilson interval at `effective` pairs.
        high: upper end.
    """

    share: float
    num_pairs: int
    num_groups: int
    effective: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(share: float, count: float, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share.

        ( p + z^2/2n -+ z sqrt( p (1 - p)/n + z^2/4n^2 ) ) / (1 + z^2/n)

    Args:
        share: p, between 0 and 1.
        count: n, positive.
        z: quantile of the normal distribution; 95 % by default.

    Returns:
        Lower and upper end.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    middle = share + z * z / (2.0 * count)
    reach = z * math.sqrt(share * (1.0 - share) / count + z * z / (4.0 * count * count))
    scale = 1.0 + z * z / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def accuracy(margins: np.ndarray, groups: Sequence[Hashable] | None = None) -> Accuracy:
    """Accuracy of a reward from its margins.

    The interval is Wilson's at n / deff pairs. deff, at least 1, is the cluster-robust variance of the share over its
    variance under independence: pairs that share a prompt agree more often than chance.

    Args:
        margins: r(x, chosen) - r(x, rejected), shape [num_pairs], not empty.
        groups: prompt of each pair; all differ by default.

    Raises:
        ValueError: no pairs.
    """
    if not margins.size:
        raise ValueError("an accuracy needs at least one pair")
    hits = np.where(margins == 0, 0.5, margins > 0).astype(float)
    share, count = float(hits.mean()), hits.size
    names = list(range(count)) if groups is None else list(groups)
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    totals = np.bincount([index[name] for name in names], hits - share)
    effective = count / _design_effect(hits - share, totals)
    low, high = wilson(share, effective)
    return Accuracy(share, count, len(index), effective, low, high)


def reward_accuracy(reward: Reward, pairs: Sequence[Pair]) -> Accuracy:
    """Accuracy of a reward on preference pairs.

    Args:
        reward: of the pairs' kind.
        pairs: held-out pairs, not empty.
    """
    prompts = [pair.prompt for pair in pairs]
    margins = reward.score(prompts, [pair.chosen for pair in pairs]) - reward.score(
        prompts, [pair.rejected for pair in pairs]
    )
    return accuracy(margins, prompts)


def length_accuracy(train: Sequence[Pair], test: Sequence[Pair]) -> Accuracy:
    """Accuracy of the length heuristic: the longer response, or the shorter where the training pairs say so.

    Args:
        train: pairs that decide the direction.
        test: held-out pairs of the same kind, not empty.
    """
    sign = -1.0 if float(np.sign(_longer(train)).sum()) < 0 else 1.0
    return accuracy(sign * _longer(test), [pair.prompt for pair in test])


def verdict(kind: str, model: Accuracy, length: Accuracy) -> str:
    """One sentence: whether a reward model beats the length heuristic, or that the data are too few to say.

    Args:
        kind: what the reward judges.
        model: accuracy of the reward model.
        length: accuracy of the heuristic on the same pairs.
    """
    told = (
        f"{kind}: the reward model finds {model} of {model.num_pairs} held-out pairs ({model.num_groups} prompts, as "
        f"good as {model.effective:.0f} independent pairs), the length heuristic {length}"
    )
    if model.low > length.high:
        return f"{told}: the model beats the heuristic"
    if model.high < length.low:
        return f"{told}: the heuristic beats the model"
    return f"{told}: the intervals overlap, the data are too few to tell them apart"


def _design_effect(residuals: np.ndarray, totals: np.ndarray) -> float:
    """Variance of a share of grouped pairs over that of independent pairs, at least 1.

    Args:
        residuals: hit minus share of each pair, shape [num_pairs].
        totals: their sums over the groups, shape [num_groups].
    """
    independent = float((residuals**2).sum())
    if totals.size == residuals.size:
        return 1.0
    # one group, or no spread at all, says nothing about how alike the pairs of a group are: count groups
    if totals.size == 1 or independent == 0.0:
        return residuals.size / totals.size
    bias = (totals.size / (totals.size - 1)) / (residuals.size / (residuals.size - 1))
    return max(1.0, float((totals**2).sum()) / independent * bias)


def _longer(pairs: Sequence[Pair]) -> np.ndarray:
    return np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], float)
