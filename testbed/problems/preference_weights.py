"""Every client's weights of helpfulness and safety, l_k^h and l_k^s with l_k^h + l_k^s = 1.

"Personalized Wireless Federated Learning for Large Language Models" (arXiv 2404.13238) lets clients weigh two rewards;
that the weights are shares of 1, and how they spread where nobody gives them, is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from testbed.core.errors import ConfigError

SPREAD = (0.9, 0.1)
"""Weight of helpfulness of the first and of the last client, where none are given."""


def client_weights(given: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """(l_k^h, l_k^s) of every client.

    Args:
        given: one pair for each client, one for all, or none for an even spread between the ends of `SPREAD`.
        count: number of clients.

    Returns:
        One pair for each client.

    Raises:
        ConfigError: another number of pairs, or weights that are no shares of 1.
    """
    if len(given) not in (0, 1, count):
        raise ConfigError(
            f"{len(given)} pairs of weights for {count} nodes",
            key="scheme.weights",
            remedy="give one pair for each node, one for all, or none",
        )
    for helpful, safe in given:
        if min(helpful, safe) < 0 or abs(helpful + safe - 1.0) > 1e-9:
            raise ConfigError(
                f"the weights {helpful:g} and {safe:g} are no shares of 1",
                key="scheme.weights",
                remedy="give weights that are not negative and add up to 1",
            )
    if given:
        return [given[index % len(given)] for index in range(count)]
    return [(float(one), float(1.0 - one)) for one in np.linspace(*SPREAD, count)]
