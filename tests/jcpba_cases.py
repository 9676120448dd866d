"""Rounds of JCPBA for tests: clients drawn as in the usual cell, and two clients solved by plain formulas."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from testbed.problems.jcpba.model import ClientCosts
from testbed.problems.jcpba.penalty import PenaltyCurves, chord, magnitude
from testbed.problems.jcpba.uplink import FixedEfficiency, Shannon

BAND_HZ = 1e6
BUDGET = 0.3


def drawn(
    seed: int, num_clients: int, *, curved: bool = False, linear: bool = False, fixed: bool = False
) -> ClientCosts:
    """Computing U(2, 20) s, 50 to 500 m, 16 Mbit; with `fixed`, parts that do not shrink as well."""
    rng = np.random.default_rng([seed, num_clients])
    ones, distance_km = np.ones(num_clients), rng.uniform(0.05, 0.5, num_clients)
    gamma_hz = 0.1 / 3.98e-21 * 10 ** (-12.81 - 3.76 * np.log10(distance_km)) * rng.exponential(size=num_clients)
    weights = [rng.standard_normal(500) / np.sqrt(500) for _ in range(num_clients)]
    return ClientCosts(
        fixed_s=rng.uniform(0.5, 3, num_clients) if fixed else 0.0 * ones,
        scalable_s=rng.uniform(2, 20, num_clients),
        payload_bits=16e6 * ones,
        uplink=FixedEfficiency(rng.uniform(0.5, 8, num_clients)) if linear else Shannon(gamma_hz),
        weight=rng.dirichlet(5 * ones) if fixed else ones / num_clients,
        penalty=magnitude(weights, 8) if curved else chord(ones),
        max_ratio=0.9 * ones,
        fixed_payload_bits=rng.uniform(0, 2e6, num_clients) if fixed else 0.0 * ones,
    )


def subset(costs: ClientCosts, order: np.ndarray) -> ClientCosts:
    """The same clients in another order."""
    assert isinstance(costs.uplink, Shannon)
    return ClientCosts(
        costs.fixed_s[order],
        costs.scalable_s[order],
        costs.payload_bits[order],
        Shannon(costs.uplink.gamma_hz[order]),
        costs.weight[order],
        PenaltyCurves(costs.penalty.ratio[order], costs.penalty.removed[order]),
        costs.max_ratio[order],
        costs.fixed_payload_bits[order],
    )


def two_client_optimum(costs: ClientCosts, band_hz: float, budget: float) -> float:
    """The shortest round of two clients whose penalty is p rho, by nested scalar searches over plain formulas."""
    assert isinstance(costs.uplink, Shannon)
    gamma_hz = costs.uplink.gamma_hz

    def client_s(k: int, ratio: float, share_hz: float) -> float:
        rate = share_hz * np.log2(1 + gamma_hz[k] / share_hz)
        kept = 1 - ratio
        return float(
            costs.fixed_s[k]
            + kept * costs.scalable_s[k]
            + (kept * costs.payload_bits[k] + costs.fixed_payload_bits[k]) / rate
        )

    def round_s(ratio: float) -> float:
        other = min((budget - costs.weight[0] * ratio) / costs.weight[1], costs.max_ratio[1])

        def gap(share_hz: float) -> float:
            return client_s(0, ratio, share_hz) - client_s(1, other, band_hz - share_hz)

        share_hz = brentq(gap, 1e-3, band_hz - 1e-3, xtol=1e-9, rtol=1e-15)
        return client_s(0, ratio, share_hz)

    most = min(costs.max_ratio[0], budget / costs.weight[0])
    ends = [round_s(0.0), round_s(most)]
    inner = minimize_scalar(round_s, bounds=(0.0, most), method="bounded", options={"xatol": 1e-11})
    return min(*ends, float(inner.fun))
