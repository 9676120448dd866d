"""What arrived against what was sent: the error that a run's table shows is measured, not modelled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from testbed.core.orders import Analogue, Collect, Digital, Ideal, MajorityVote
from testbed.lora.aggregate import weighted_mean
from testbed.phy import voting


def audit(order: Collect, arrived: np.ndarray, truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Error of a collection.

    Args:
        order: what was asked.
        arrived: mean, or votes, shape [num_values].
        truth: node -> its update, shape [num_values], of the nodes that arrived.

    Returns:
        error_norm2 and true_norm2, squared norms of the mean's error and of the true mean; for votes vote_error, the
        share of values with a majority whose sign arrived wrong.
    """
    uplinks = {name: order.uplinks[name] for name in truth}
    weights = {
        name: uplink.weight for name, uplink in uplinks.items() if isinstance(uplink, Analogue | Digital | Ideal)
    }
    if weights:
        mean = weighted_mean(truth, weights)
        error = arrived.astype(np.float64) - mean
        return {
            "error_norm2": float(error @ error),
            "true_norm2": float(np.dot(mean, mean.astype(np.float64))),
        }
    # [num_values]
    balance = np.zeros(len(arrived), np.int32)
    for name, uplink in uplinks.items():
        balance += voting.signs(truth[name], uplink.threshold if isinstance(uplink, MajorityVote) else 0.0)
    decided = balance != 0
    if not decided.any():
        return {}
    return {"vote_error": float(np.mean(np.sign(balance[decided]) != arrived[decided]))}
