"""The precodings of `testbed.phy.precoding` by their names, with what node and receiver need to know in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

import numpy as np

from testbed.phy.precoding import cotaf, phase_alignment, truncated_inversion, uniform_forcing

Policy: TypeAlias = Literal["uniform", "truncated", "cotaf", "phase"]


@dataclass(frozen=True)
class Precoded:
    """What a policy decided, for the nodes that send.

    Attributes:
        sends: which nodes send at all, shape [num_nodes], bool; everything below holds for those.
        precoder: b_m, square-root watts, shape [num_sending] or [num_sending, num_active].
        scale: f^H h_m b_m = scale * weight * std.
        weight, mean, std: of each node's update in the sum, shape [num_sending].
        share: part of the weights on each active subcarrier, shape [num_active]; None if it is all of them everywhere.
    """

    sends: np.ndarray
    precoder: np.ndarray
    scale: float
    weight: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    share: np.ndarray | None


def precode(
    policy: Policy,
    channel: np.ndarray,
    combiner: np.ndarray,
    *,
    weight: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    max_power_w: np.ndarray,
    threshold: float,
) -> Precoded:
    """Transmit coefficients of the chosen policy.

    Args:
        policy: uniform forcing, truncated inversion, COTAF, or alignment of phases alone.
        channel: shape [num_antennas, num_nodes] or [num_antennas, num_nodes, num_active].
        combiner: shape [num_antennas] or [num_active, num_antennas].
        weight, mean, std: D_m, and of each update's values, shape [num_nodes].
        max_power_w: P_m, shape [num_nodes].
        threshold: of truncated inversion, relative to each node's mean gain.

    Returns:
        coefficients and what goes with them.

    Raises:
        ValueError: as the policy.
    """
    share: np.ndarray | None = None
    match policy:
        case "uniform":
            forcing = uniform_forcing(channel, combiner, weight, std, max_power_w)
        case "truncated":
            truncated = truncated_inversion(channel, combiner, weight, std, max_power_w, threshold)
            forcing, share = truncated.forcing, truncated.share
        case "cotaf":
            common = cotaf(channel, combiner, weight, mean, std, max_power_w)
            forcing, mean, std = common.forcing, np.full_like(mean, common.mean), np.full_like(std, common.std)
        case "phase":
            aligned = phase_alignment(channel, combiner, std, max_power_w)
            forcing, weight, share = aligned.forcing, aligned.weight, aligned.share
        case _:
            assert_never(policy)
    precoder = forcing.precoder
    # [num_nodes]
    sends = precoder != 0 if precoder.ndim == 1 else np.any(precoder != 0, axis=1)
    if share is not None:
        # one channel for the whole band: a node sends everywhere or nowhere
        share = None if share.ndim == 0 else share * (weight.sum() / weight[sends].sum())
    return Precoded(sends, precoder[sends], forcing.scale, weight[sends], mean[sends], std[sends], share)
