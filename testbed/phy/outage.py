"""How often a packet is lost that is sent at a fixed rate into a channel of which only the mean gain is known.

A payload of S bits that must arrive within a window tau is sent at the rate S / tau. In Rayleigh fading, h = beta g
with g ~ Exp(1), it is lost where the channel does not carry that rate:

    psi(b) = (N0 b / beta) (2^{S / (b tau)} - 1),     q(p, b) = P[loss] = 1 - exp(-psi(b) / p)

psi, a power, is convex and falling in b (the perspective of an exponential), and log-convex: size, power and bandwidth
meet in one exponent.

Reference: L. H. Ozarow, S. Shamai, A. D. Wyner, "Information theoretic considerations for cellular mobile radio", IEEE
Trans. Veh. Technol. 43(2), 1994 (outage).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import kn

_LN2 = math.log(2.0)


def required_power_w(bandwidth_hz: np.ndarray, load_hz: np.ndarray, noise_over_gain_w_hz: np.ndarray) -> np.ndarray:
    """psi(b), the power at which the mean channel just carries the rate.

    Args:
        bandwidth_hz: b, at least 0; any shape.
        load_hz: S ln 2 / tau, nats each second; any shape.
        noise_over_gain_w_hz: N0 / beta, with the modem's gap to capacity in N0; any shape.

    Returns:
        watts, broadcast shape; infinite at b = 0 or where the exponential overflows.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        power_w = noise_over_gain_w_hz * bandwidth_hz * np.expm1(np.asarray(load_hz) / bandwidth_hz)
    return np.where(np.asarray(bandwidth_hz) > 0, power_w, np.inf)


def required_power_slopes(
    bandwidth_hz: np.ndarray, load_hz: np.ndarray, noise_over_gain_w_hz: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """psi'(b) < 0 and psi''(b) > 0.

    With y = S ln 2 / (tau b):   psi' = (N0 / beta) (e^y - 1 - y e^y),    psi'' = (N0 / beta) y^2 e^y / b

    Args:
        bandwidth_hz: b, positive; any shape.
        load_hz: as of `required_power_w`.
        noise_over_gain_w_hz: as of `required_power_w`.

    Returns:
        W/Hz and W/Hz^2, broadcast shape.
    """
    y = load_hz / bandwidth_hz
    with np.errstate(over="ignore", invalid="ignore"):
        grown = np.exp(y)
        direct = np.expm1(y) - y * grown
        # sum over n >= 2 of (1 - n) / n! y^n, where the difference cancels
        series = -y * y * (1 / 2 + y * (1 / 3 + y * (1 / 8 + y * (1 / 30 + y / 144))))
        curvature = noise_over_gain_w_hz * y * y * grown / bandwidth_hz
    return noise_over_gain_w_hz * np.where(y < 1e-2, series, direct), curvature


def load_of_hz(payload_bit: np.ndarray, window_s: np.ndarray) -> np.ndarray:
    """S ln 2 / tau; infinite where the window is not positive and there is something to send.

    Args:
        payload_bit: S; any shape.
        window_s: tau; any shape.
    """
    payload_bit, window_s = np.broadcast_arrays(np.asarray(payload_bit, np.float64), np.asarray(window_s, np.float64))
    open_s = np.where(window_s > 0, window_s, 1.0)
    return np.where(window_s > 0, payload_bit * _LN2 / open_s, np.where(payload_bit > 0, np.inf, 0.0))


def outage(required_w: np.ndarray, power_w: np.ndarray) -> np.ndarray:
    """q = 1 - exp(-psi / p); 1 where nothing is sent.

    Args:
        required_w: psi; any shape.
        power_w: p, at least 0; any shape.
    """
    required_w, power_w = np.broadcast_arrays(np.asarray(required_w, np.float64), np.asarray(power_w, np.float64))
    sent = power_w > 0
    return np.where(sent, -np.expm1(-required_w / np.where(sent, power_w, 1.0)), 1.0)


def waterfall_loss(level: np.ndarray) -> np.ndarray:
    """The packet error rate 1 - exp(-w N0 b / (p h)) averaged over Rayleigh fading: 1 - 2 sqrt(a) K_1(2 sqrt(a)).

    A payload's size does not appear in it: an alternative to `outage` for modems whose threshold is their own.

    Args:
        level: a = w N0 b / (p beta), w the modem's waterfall threshold; positive; any shape.

    Reference: M. Chen et al., "A joint learning and communications framework for federated learning over wireless
    networks", arXiv 1909.07972.
    """
    root = 2.0 * np.sqrt(np.asarray(level, np.float64))
    return 1.0 - root * kn(1, root)
