"""The model of LoRA switching: devices, modules, losses, energies, and what a slot's decision is worth.

Paper: Wang, Wang, Li, Wang, Zhao, Quek, "A federated fine-tuning paradigm of foundation models in heterogenous wireless
networks", arXiv 2509.19306. From its abstract: devices switch between LoRA modules dynamically, which answers both
their heterogeneity and unreliable transmission; an upper bound on the inference risk gap; a mixed-integer problem with
long-term constraints, decoupled into switching, power and bandwidth, solved online in polynomial time. Its equations
were not at hand: all of them here are our reconstruction. Modules are nested slices of one LoRA that differ in rank
(our choice; modules of equal size for clusters of data, or on and off only, are special cases).

    psi_km(b) = (N0 b / beta_k) (2^{S_m / (b tau_km)} - 1),     q_km(p, b) = 1 - exp(-psi / p)             (A3, A4)
    e_km(p) = E^cp_km + p tau_km                                                                              (A5)
    Phi = sum_k w_k G_k^2 [1 - sum_m x_km rho_km (1 - q_km)]                                                  (A7)
          + lambda_g sum_k w_k sum_m x_km (1 - q_km) sqrt(d_m / n)          (only if asked for)

    each slot:  minimise over x, p, b   V Phi + sum_k Q_k e_k - sum_m Z_m sum_k x_km (1 - q_km),   sum_k b_k <= B

Devices that stay idle cost nothing. The term with lambda_g is ordinal: the generalisation bound of Occam's razor, from
which its shape comes, is far above 1 for adapters of this size, so it ranks modules and says nothing about a risk. Its
complexity counts where an update arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.phy.outage import load_of_hz, outage, required_power_w
from testbed.problems.lora_switching.steps import Terms


@dataclass(frozen=True)
class SwitchingModel:
    """What does not change from slot to slot.

    Attributes:
        total_hz: B.
        noise_w_hz: N0, W/Hz, with the modem's gap to capacity in it.
        payload_bit: S_m, shape [num_modules].
        window_s: tau_km, left for sending after computing, shape [num_devices, num_modules]; not positive where the
            device cannot finish the module in time.
        compute_j: E^cp_km, shape [num_devices, num_modules].
        max_power_w: P_max, shape [num_devices].
        allowed: which modules a device may train (memory), shape [num_devices, num_modules], bool.
    """

    total_hz: float
    noise_w_hz: float
    payload_bit: np.ndarray
    window_s: np.ndarray
    compute_j: np.ndarray
    max_power_w: np.ndarray
    allowed: np.ndarray

    @property
    def num_devices(self) -> int:
        return len(self.max_power_w)

    @property
    def num_modules(self) -> int:
        return len(self.payload_bit)

    @property
    def possible(self) -> np.ndarray:
        """Which modules a device can and may train, shape [num_devices, num_modules], bool."""
        return self.allowed & (self.window_s > 0)

    @property
    def most_energy_j(self) -> np.ndarray:
        """Largest energy of a round, shape [num_devices]; 0 for devices that can only idle."""
        energy_j = self.compute_j + self.max_power_w[:, None] * self.window_s
        return np.max(np.where(self.possible, energy_j, 0.0), axis=1)

    @property
    def least_compute_j(self) -> np.ndarray:
        """Smallest energy of computing, shape [num_devices]; infinite for devices that can only idle."""
        return np.min(np.where(self.possible, self.compute_j, np.inf), axis=1)


@dataclass(frozen=True)
class Slot:
    """What is known of one round.

    Attributes:
        gain: beta_k, mean power gain of the channel, shape [num_devices].
        importance: w_k G_k^2, shape [num_devices].
        share: rho_km, of the gradient's energy that a module expresses, shape [num_devices, num_modules].
        complexity: lambda_g w_k sqrt(d_m / n), shape [num_devices, num_modules]; none if absent.
    """

    gain: np.ndarray
    importance: np.ndarray
    share: np.ndarray
    complexity: np.ndarray | None = None

    @property
    def worth(self) -> np.ndarray:
        """What an update of each device and module takes off Phi if it arrives, shape [num_devices, num_modules]."""
        gain = self.importance[:, None] * self.share
        return gain if self.complexity is None else gain - self.complexity


@dataclass(frozen=True)
class SlotDecision:
    """Who does what in one round; of each device, shape [num_devices].

    Attributes:
        module: m_k, 0 for idle, else 1 + index of the module.
        power_w: p_k.
        bandwidth_hz: b_k.
        failure: q_k, probability that the update is lost; 1 where idle.
        energy_j: e_k.
        penalty: Phi.
        bound: what the slot's objective cannot fall below; minus infinity where it was not computed.
    """

    module: np.ndarray
    power_w: np.ndarray
    bandwidth_hz: np.ndarray
    failure: np.ndarray
    energy_j: np.ndarray
    penalty: float
    bound: float = -np.inf


def slot_terms(
    model: SwitchingModel, slot: Slot, backlog: np.ndarray, tradeoff: float, bonus: np.ndarray | None = None
) -> Terms:
    """The coefficients of every device and module, shape [num_devices, num_modules].

    Args:
        model: what stays.
        slot: what changes.
        backlog: Q_k, shape [num_devices].
        tradeoff: V.
        bonus: Z_m, shape [num_modules]; none if absent.
    """
    possible = model.possible
    worth = np.maximum(tradeoff * slot.worth + (0.0 if bonus is None else bonus), 0.0)
    window_s = np.where(possible, model.window_s, 1.0)
    shape = possible.shape
    # a bit at least: a module without bits of its own would need no band, and no power
    load_hz = load_of_hz(np.maximum(np.broadcast_to(model.payload_bit, shape), 1.0), window_s)
    return Terms(
        np.where(possible, worth, 0.0),
        backlog[:, None] * window_s,
        backlog[:, None] * np.where(possible, model.compute_j, 0.0),
        load_hz,
        np.broadcast_to((model.noise_w_hz / slot.gain)[:, None], shape),
        np.broadcast_to(model.max_power_w[:, None], shape),
    )


def describe(
    model: SwitchingModel,
    slot: Slot,
    module: np.ndarray,
    power_w: np.ndarray,
    bandwidth_hz: np.ndarray,
    bound: float = -np.inf,
) -> SlotDecision:
    """The consequences of a decision, from the model's equations.

    Args:
        model: what stays.
        slot: what changes.
        module: m_k, 0 for idle, shape [num_devices].
        power_w: p_k, shape [num_devices].
        bandwidth_hz: b_k, shape [num_devices].
        bound: of the slot's objective.
    """
    active = module > 0
    index, devices = np.maximum(module - 1, 0), np.arange(model.num_devices)
    window_s = np.where(active, model.window_s[devices, index], 0.0)
    load_hz = load_of_hz(np.where(active, model.payload_bit[index], 0.0), window_s)
    required_w = required_power_w(bandwidth_hz, load_hz, model.noise_w_hz / slot.gain)
    failure = np.where(active, outage(required_w, power_w), 1.0)
    energy_j = np.where(active, model.compute_j[devices, index] + power_w * window_s, 0.0)
    arrived = np.where(active, slot.worth[devices, index], 0.0) * (1.0 - failure)
    penalty = float(np.sum(slot.importance) - np.sum(arrived))
    zero = np.zeros(model.num_devices)
    return SlotDecision(
        module.copy(),
        np.where(active, power_w, zero),
        np.where(active, bandwidth_hz, zero),
        failure,
        energy_j,
        penalty,
        bound,
    )


def objective(decision: SlotDecision, backlog: np.ndarray, tradeoff: float, bonus: np.ndarray | None = None) -> float:
    """V Phi + sum_k Q_k e_k - sum_m Z_m sum_k x_km (1 - q_km) of a decision.

    Args:
        decision: of the slot.
        backlog: Q_k, shape [num_devices].
        tradeoff: V.
        bonus: Z_m, shape [num_modules]; none if absent.
    """
    value = tradeoff * decision.penalty + float(backlog @ decision.energy_j)
    if bonus is not None:
        active = decision.module > 0
        value -= float(np.sum(bonus[decision.module[active] - 1] * (1.0 - decision.failure[active])))
    return value
