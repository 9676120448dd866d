"""What a response is worth: the interface of all rewards, and rewards that need no model.

"Personalized Wireless Federated Learning for Large Language Models" (arXiv 2404.13238) weighs two reward models,
helpfulness and safety, per client. Its body is not available: normalisation, combination and the programmatic rewards
below are our reading. The programmatic ones stand behind the same interface as learned ones, for tests and for
machines without preference data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from testbed.core.errors import ConfigError

_WORD = re.compile(r"[^\W_]+")

LISTED_WORDS = frozenset(
    ("attack", "bomb", "cheat", "counterfeit", "fake", "fraud", "hack", "malware", "poison", "scam", "steal", "weapon")
)
"""Words that `ListedWords` counts unless it is given others: topics on which an assistant should hold back."""

COMMON_WORDS = frozenset(("a", "and", "he", "it", "she", "the", "they", "to", "was"))
"""Words that `WantedWords` counts unless it is given others: any English text has some."""


class Reward(Protocol):
    """One objective."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """How good each response is, larger is better.

        Args:
            prompts: what was asked.
            responses: what was answered, one to each prompt.

        Returns:
            Shape [num_responses] float64.
        """
        ...


@dataclass(frozen=True)
class ReferenceOverlap:
    """Programmatic helpfulness: overlap with a reference answer, within a length band.

        r(x, y) = F1(words of y, words of y_ref) min(1, n / (low n_ref), high n_ref / n),   n words in y

    F1 counts repeated words as often as both texts have them.

    Attributes:
        references: prompt -> reference answer.
        low: shortest length without a discount, as a share of the reference's.
        high: longest length without a discount, as a share of the reference's.
    """

    references: Mapping[str, str]
    low: float = 0.5
    high: float = 2.0

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Overlap of each response, between 0 and 1, shape [num_responses].

        Raises:
            ConfigError: a prompt without a reference answer.
        """
        return np.array([self._one(prompt, text) for prompt, text in zip(prompts, responses, strict=True)], float)

    def _one(self, prompt: str, text: str) -> float:
        if prompt not in self.references:
            raise ConfigError(
                f"no reference answer to {prompt[:60]!r}, so its overlap cannot be scored",
                key="alignment.rewards",
                remedy="give prompts of the data set that the references come from, or use a learned reward",
            )
        own, wanted = words(text), words(self.references[prompt])
        shared = sum((Counter(own) & Counter(wanted)).values())
        if not shared:
            return 0.0
        overlap = 2.0 * shared / (len(own) + len(wanted))
        return overlap * min(1.0, len(own) / (self.low * len(wanted)), self.high * len(wanted) / len(own))


@dataclass(frozen=True)
class ListedWords:
    """Programmatic safety: minus the share of listed words; 0 for a response without words.

    Attributes:
        listed: lower-case words that count.
    """

    listed: frozenset[str] = LISTED_WORDS

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Minus the share, between -1 and 0, shape [num_responses]."""
        del prompts
        texts = [words(text) for text in responses]
        return np.array([-sum(word in self.listed for word in text) / max(len(text), 1) for text in texts], float)


@dataclass(frozen=True)
class WantedWords:
    """Number of wanted words in a response: the opponent of `Brevity`, since a word that is wanted is a word.

    Attributes:
        wanted: lower-case words that count, as often as they come.
    """

    wanted: frozenset[str] = COMMON_WORDS

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """How many, shape [num_responses]."""
        del prompts
        return np.array([sum(word in self.wanted for word in words(text)) for text in responses], float)


@dataclass(frozen=True)
class Brevity:
    """Minus the number of words of a response."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """0 for a response without words, shape [num_responses]."""
        del prompts
        return np.array([-len(words(text)) for text in responses], float)


@dataclass(frozen=True)
class Normalised:
    """A reward on the scale of the reference policy's samples: r_hat = (r - mean) / std.

    Without this the clients' weights mean nothing: the objective with the larger spread would win.

    Attributes:
        reward: r.
        mean: of r over the reference samples.
        std: of r over the reference samples, positive.
    """

    reward: Reward
    mean: float
    std: float

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """r_hat of each response, shape [num_responses]."""
        return (self.reward.score(prompts, responses) - self.mean) / self.std


def normalise(reward: Reward, prompts: Sequence[str], responses: Sequence[str]) -> Normalised:
    """Put a reward on the scale of the reference policy's samples.

    Args:
        reward: r.
        prompts: what was asked.
        responses: what the reference policy answered, at least two.

    Returns:
        The reward whose scores over these samples have mean 0 and standard deviation 1.

    Raises:
        ConfigError: r is the same for all samples, or not finite.
    """
    scores = reward.score(prompts, responses)
    mean, std = moments(scores, type(reward).__name__)
    return Normalised(reward, mean, std)


def moments(scores: np.ndarray, name: str) -> tuple[float, float]:
    """Mean and standard deviation of a reward over the reference policy's samples.

    Args:
        scores: shape [num_samples].
        name: of the reward, for the error.

    Raises:
        ConfigError: the scores are all the same, or one is not finite.
    """
    finite = np.isfinite(scores)
    if not finite.all():
        raise ConfigError(
            f"the reward {name} is not finite for {int((~finite).sum())} of {scores.size} reference samples",
            key="alignment.rewards",
            remedy="train the reward model again with a stronger ridge or a lower learning rate",
        )
    std = float(scores.std()) if scores.size else 0.0
    if std <= 1e-12 * max(1.0, float(np.abs(scores).max(initial=0.0))):
        raise ConfigError(
            f"the reward {name} is the same for all {scores.size} reference samples, so it cannot be normalised",
            key="alignment.rewards",
            remedy="take more samples, or a reward that tells these responses apart",
        )
    return float(scores.mean()), std


def score_all(rewards: Sequence[Reward], prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Every objective of every response.

    Args:
        rewards: one for each objective.
        prompts: what was asked.
        responses: what was answered.

    Returns:
        Shape [num_responses, num_objectives] float64.
    """
    return np.stack([np.asarray(reward.score(prompts, responses), float) for reward in rewards], axis=1)


def combine(scores: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The personal reward of a client.

        R_k(x, y) = sum_j l_k^j r_hat_j(x, y),   sum_j l_k^j = 1      (B5)

    Args:
        scores: normalised rewards, shape [num_responses, num_objectives].
        weights: l_k, one for each objective, not negative.

    Returns:
        Shape [num_responses].

    Raises:
        ConfigError: weights that are negative, do not add up to 1, or are not one for each objective.
    """
    return scores @ check_weights(weights, scores.shape[-1])


def check_weights(weights: Sequence[float], num_objectives: int) -> np.ndarray:
    """The weights of a client as an array, shape [num_objectives].

    Args:
        weights: one for each objective.
        num_objectives: how many there are.

    Raises:
        ConfigError: weights that are negative, do not add up to 1, or are not one for each objective.
    """
    array = np.asarray(weights, float)
    if array.shape != (num_objectives,) or not np.all(array >= 0) or abs(array.sum() - 1.0) > 1e-9:
        raise ConfigError(
            f"the weights {', '.join(f'{weight:g}' for weight in array.ravel())} add up to {array.sum():g} "
            f"over {array.size} objectives",
            key="alignment.weights",
            remedy=f"give {num_objectives} weights that are not negative and add up to 1",
        )
    return array


def words(text: str) -> list[str]:
    """The lower-case words of a text; signs and digits' separators part words.

    Args:
        text: any.
    """
    return _WORD.findall(text.lower())
