"""From a sounding and the statistics of trained updates to the order that collects their sum through the air."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from testbed.core.fleet import Fleet
from testbed.core.orders import Analogue, Collect, Sounding, Trained
from testbed.phy.combiner import dominant
from testbed.phy.overair import aggregation_mse
from testbed.phy.papr import clipping
from testbed.phy.policies import Policy, precode
from testbed.phy.precoding import quantise_phase


def analogue_order(
    fleet: Fleet,
    sounding: Sounding,
    trained: Trained,
    names: list[str],
    num_values: int,
    *,
    combine: Callable[[np.ndarray], np.ndarray],
    policy: Policy = "uniform",
    threshold: float = 0.1,
    per_subcarrier: bool = False,
    phase_bits: int | None = None,
    clip: float | None = None,
) -> Collect:
    """Who sends with which coefficient, and how the array listens.

    The combiner is that of the auxiliary channels h_m sqrt(P_m) / (D_m nu_m), which hold the powers already.

    Args:
        fleet: power limits P_m.
        sounding: the channels.
        trained: D_m, and mean and standard deviation nu_m of each update.
        names: nodes that send; each stands in `sounding` and `trained` and has an update that is not constant.
        num_values: length of the update.
        combine: auxiliary channels, shape [num_antennas, num_nodes], to the combiner, shape [num_antennas].
        policy: precoding, see `testbed.phy.policies`.
        threshold: of truncated inversion.
        per_subcarrier: precode every subcarrier, where the sounding has them.
        phase_bits: bits of each node's phase feedback; exact if None.
        clip: peaks above this multiple of the average power are clipped; None clips nothing.
    """
    # [num_nodes]
    columns = np.array([sounding.nodes.index(name) for name in names])
    weight = np.array([trained.results[name].num_samples for name in names], dtype=np.float64)
    mean = np.array([trained.results[name].update_mean for name in names])
    std = np.array([trained.results[name].update_std for name in names])
    power_w = np.array([fleet.node(name).max_power_w for name in names])
    if per_subcarrier and sounding.response is not None:
        # [num_antennas, num_nodes, num_active]
        channel = sounding.response[:, columns].astype(np.complex128)
        flat = dominant(channel)
    else:
        # [num_antennas, num_nodes]
        channel = flat = sounding.channel[:, columns]
    combiner = combine(flat * (np.sqrt(power_w) / (weight * std)))
    precoded = precode(
        policy, channel, combiner, weight=weight, mean=mean, std=std, max_power_w=power_w, threshold=threshold
    )
    coefficients = precoded.precoder
    if phase_bits is not None:
        coefficients = quantise_phase(coefficients, phase_bits)
    uplinks = {
        names[node]: Analogue(
            weight=float(precoded.weight[index]),
            precoder=complex(coefficients[index]) if coefficients.ndim == 1 else coefficients[index],
            mean=float(precoded.mean[index]),
            std=float(precoded.std[index]),
            cfo_hz=float(sounding.cfo_hz[columns[node]]),
            cfo_from_s=float(sounding.heard_s[columns[node]]),
            clip=clip,
        )
        for index, node in enumerate(np.flatnonzero(precoded.sends))
    }
    # clipping shrinks what arrives by a known factor
    scale = precoded.scale * (1.0 if clip is None else clipping(clip)[0])
    expected_mse = aggregation_mse(num_values, sounding.noise_w, scale, float(precoded.weight.sum()))
    if (share := precoded.share) is not None:
        expected_mse *= float(np.sum(share[share > 0] ** -2.0)) / len(share)
    return Collect(uplinks, combiner, scale, precoded.share, expected_mse)
