"""A scheduler of LoRA switching that takes the mean gain for the gain, so that no packet is ever lost in its plans.

    minimise over x, p, b   sum_k x_km [Q_k (E^cp_km + p tau) - A_km],      p >= psi_km(b),      sum_k b_k <= B

Without losses the cheapest power just meets the rate, p = psi(b), and where psi exceeds P_max the module is out of
reach. In the world a fraction 1 - 1 / e of what is sent so is lost. A baseline of ours: it shows what the loss
probability in the scheduler's objective is worth.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import lambertw

from testbed.phy.outage import required_power_w
from testbed.problems.lora_switching.steps import Terms

_GRID = 64
"""Shares at which a device compares its modules."""


def unaware_choice(terms: Terms, total_hz: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Modules, powers and shares without a thought of losses.

    Args:
        terms: of every device and module, shape [num_devices, num_modules].
        total_hz: B.

    Returns:
        m_k, 0 for idle; p_k; b_k; shape [num_devices] each.
    """
    rows = np.arange(len(terms.worth))
    least_hz = _least_hz(terms, total_hz)
    within = np.isfinite(least_hz) & (terms.worth > 0)
    safe_hz = np.where(within, least_hz, total_hz)[..., None]
    # [num_devices, num_modules, grid]
    share = safe_hz * (total_hz / safe_hz) ** np.linspace(0.0, 1.0, _GRID)
    wide = terms.wide()
    cost = wide.price_per_w * required_power_w(share, wide.load_hz, wide.noise_over_gain_w_hz)
    cost = np.where(within[..., None], cost + wide.fixed_cost - wide.worth, np.inf)
    flat_cost, flat_hz = cost.reshape(len(rows), -1), share.reshape(len(rows), -1)
    worthwhile = float(np.max(-flat_cost / flat_hz))
    module = np.zeros(len(rows), np.int64)
    if worthwhile > 0:
        low, high = math.log(worthwhile) - 60.0, math.log(worthwhile) + 1e-9
        for _ in range(60):
            middle = 0.5 * (low + high)
            asked = flat_cost + math.exp(middle) * flat_hz
            best = np.argmin(asked, axis=1)
            active = asked[rows, best] < 0
            if np.sum(flat_hz[rows, best][active]) > total_hz:
                low = middle
            else:
                high, module = middle, np.where(active, 1 + best // _GRID, 0)
    index = np.maximum(module - 1, 0)
    chosen, active = terms.of(index), module > 0
    band_hz = _shared(chosen, active, least_hz[rows, index], total_hz)
    required_w = required_power_w(np.where(active, band_hz, total_hz), chosen.load_hz, chosen.noise_over_gain_w_hz)
    # scaling rounds the last digit
    return module, np.where(active, np.minimum(required_w, chosen.max_power_w), 0.0), band_hz


def _least_hz(terms: Terms, total_hz: float) -> np.ndarray:
    """The share at which full power just meets the rate; infinite where the whole band does not; shape of the terms."""
    low, high = np.log(terms.load_hz) - 7.0, np.full(terms.worth.shape, math.log(total_hz))
    reached = required_power_w(np.exp(high), terms.load_hz, terms.noise_over_gain_w_hz) <= terms.max_power_w
    for _ in range(60):
        middle = 0.5 * (low + high)
        enough = required_power_w(np.exp(middle), terms.load_hz, terms.noise_over_gain_w_hz) <= terms.max_power_w
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reached, np.exp(high), np.inf)


def _shared(terms: Terms, active: np.ndarray, least_hz: np.ndarray, total_hz: float) -> np.ndarray:
    """min sum C psi(b) of the active ones, b >= least, sum b = B, as (A11) with omega = C; 0 where idle."""
    if not active.any():
        return np.zeros(len(active))
    weight = np.where(active, terms.price_per_w * terms.noise_over_gain_w_hz, 0.0)
    heavy = weight > 0
    share = np.where(active, least_hz, 0.0)
    if heavy.any():
        logs = np.log(np.where(heavy, weight, 1.0))
        low, high = float(logs[heavy].min()) - 60.0, float(logs[heavy].max()) + 60.0
        for _ in range(100):
            middle = 0.5 * (low + high)
            root = 1.0 + lambertw((np.exp(np.minimum(middle - logs, 600.0)) - 1.0) / math.e).real
            asked = np.where(heavy, np.maximum(terms.load_hz / np.maximum(root, 1e-300), least_hz), share)
            fits = float(np.sum(asked[active])) <= total_hz
            low, high = (low, middle) if fits else (middle, high)
            share = np.where(heavy & fits, asked, share)
    # what nobody pays for goes to everybody alike
    return share * (total_hz / float(np.sum(share)))
