"""What a plan is worth: bounds on the loss that federated fine-tuning through the air reaches.

The paper's own bound is not available. Everything here is our derivation along the lines of its relatives (Liu, Yuan,
Zhang, arXiv 2011.10282; Kalarde et al., arXiv 2302.14336; two stages with a Wasserstein shift between them as in Lyu
et al.). It assumes: F_p (pre-training) and F = sum_m (D_m / D) F_m (fine-tuning) are L-smooth; the loss is
G_xi-Lipschitz in the data; gradients of a batch are unbiased with variance sigma_g^2 / b_m at client m and sigma_p^2 /
b_0 at the server; ||grad l||^2 <= alpha_1 + alpha_2 ||grad F||^2 for every datum; both are mu-PL; step sizes gamma and
eta_p are at most 1 / L; the error e of the aggregation has mean zero and is independent of the batches. With
s = 1 - D_S / D, the part of the data that a round leaves out, and V = sum_{m in S} (D_m / D_S)^2 sigma_g^2 / b_m:

    (1)  ||grad F_S - grad F||^2 <= 4 s^2 (alpha_1 + alpha_2 ||grad F||^2)
    (2)  E F(w+) <= F - gamma/2 ||grad F||^2 + gamma/2 ||grad F_S - grad F||^2 + L gamma^2 / 2 (V + E||e||^2)
    (3)  mean_t E||grad F||^2 <= [2 Delta_0 / (gamma T) + mean_t(4 alpha_1 s_t^2 + L gamma (V_t + E||e_t||^2))]
                                 / (1 - 4 alpha_2 max_t s_t^2)
    (4)  E F(w_T) - F* <= prod_t rho_t Delta_0 + sum_t (prod_{k>t} rho_k) c_t
         c_t = 2 gamma alpha_1 s_t^2 + L gamma^2 / 2 (V_t + E||e_t||^2),    rho_t = 1 - mu gamma (1 - 4 alpha_2 s_t^2)
         Delta_0 = (1 - mu eta_p)^N_p Delta_p + L eta_p sigma_p^2 / (2 mu b_0) + 2 G_xi W_1

Where 4 alpha_2 s_t^2 > 1 the gradient's term is positive, and smoothness bounds it instead of PL:
rho_t = 1 + L gamma (4 alpha_2 s_t^2 - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from testbed.problems.instance import InstanceSpec


class Constants(InstanceSpec):
    """What the bound has to know of losses, data and step sizes; measured by short runs without noise."""

    smoothness: float = Field(gt=0, description="L: gradients of both losses are L-Lipschitz in the parameters")
    pl: float = Field(gt=0, description="mu of the Polyak-Lojasiewicz condition: ||grad F||^2 >= 2 mu (F - F*)")
    step_size: float = Field(gt=0, description="gamma, step size of fine-tuning, at most 1 / smoothness")
    gradient_variance: float = Field(ge=0, description="sigma_g^2, variance of one sample's gradient at a client")
    alpha1: float = Field(gt=0, description="part of a sample's squared gradient that does not vanish with grad F")
    alpha2: float = Field(ge=0, description="part of a sample's squared gradient in proportion to ||grad F||^2")
    initial_gap: float = Field(
        ge=0, description="Delta_p = F_p(w_0) - F_p*, loss above its optimum before pre-training"
    )
    pretraining_step_size: float | None = Field(
        None, gt=0, description="eta_p, step size of pre-training, at most 1 / smoothness; step_size if absent"
    )
    pretraining_variance: float = Field(0.0, ge=0, description="sigma_p^2, variance of one sample's gradient there")
    data_lipschitz: float = Field(0.0, ge=0, description="G_xi: how fast a loss changes with its datum")
    wasserstein: float = Field(0.0, ge=0, description="W_1 between pre-training and fine-tuning data")

    @model_validator(mode="after")
    def _consistent(self) -> Constants:
        if self.pl > self.smoothness:
            raise ValueError(f"pl: {self.pl:g} is above smoothness = {self.smoothness:g}, which no loss has; lower pl")
        for name in ("step_size", "pretraining_step_size"):
            value = getattr(self, name)
            if value is not None and value * self.smoothness > 1 + 1e-12:
                most = 1 / self.smoothness
                raise ValueError(f"{name}: {value:g} is above 1 / smoothness = {most:g}; shorten the step")
        return self

    @property
    def pretraining_step(self) -> float:
        """eta_p."""
        return self.step_size if self.pretraining_step_size is None else self.pretraining_step_size


@dataclass(frozen=True)
class LossBound:
    """Bound (4) on E F(w_T) - F*, term by term; numbers, or arrays of one shape.

    Attributes:
        initial: what is left of the loss before pre-training.
        pretraining: what is left of the noise of pre-training's batches.
        shift: what is left of the distance between pre-training and fine-tuning data.
        selection: of the clients that a round leaves out.
        sampling: of batches instead of all data.
        noise: of the receiver's noise in the aggregate.
    """

    initial: float | np.ndarray
    pretraining: float | np.ndarray
    shift: float | np.ndarray
    selection: float | np.ndarray
    sampling: float | np.ndarray
    noise: float | np.ndarray

    @property
    def total(self) -> float | np.ndarray:
        """Psi, the sum of all terms."""
        return self.initial + self.pretraining + self.shift + self.selection + self.sampling + self.noise


def unselected(selected: Sequence[int] | np.ndarray, weights: np.ndarray) -> float:
    """s = 1 - D_S / D, the part of the data that a round leaves out.

    Args:
        selected: indices of the clients in S.
        weights: D_m, shape [num_clients].
    """
    weights = np.asarray(weights, np.float64)
    index = _members(selected, len(weights))
    return max(0.0, 1.0 - float(weights[index].sum() / weights.sum()))


def sampling_variance(
    constants: Constants, selected: Sequence[int] | np.ndarray, weights: np.ndarray, batch_sizes: np.ndarray
) -> float:
    """V = sum_{m in S} (D_m / D_S)^2 sigma_g^2 / b_m.

    Args:
        constants: sigma_g^2.
        selected: indices of the clients in S.
        weights: D_m, shape [num_clients].
        batch_sizes: b_m of the clients in S, in the order of `selected`, shape [num_selected].
    """
    chosen = np.asarray(weights, np.float64)[_members(selected, len(weights))]
    return float(np.sum((chosen / chosen.sum()) ** 2 / np.asarray(batch_sizes)) * constants.gradient_variance)


def aggregation_error(
    gain: float, total_weight: float, num_values: int, noise_w: float, *, backoff: float = 1.0
) -> float:
    """E||e||^2 = d sigma^2 / (beta q D_S^2), two values on each complex symbol.

    Args:
        gain: q = min_{m in S} |f^H h~_m|^2 with the auxiliary channels h~_m = sqrt(P_m) h_m / (D_m nu_m).
        total_weight: D_S.
        num_values: d.
        noise_w: sigma^2 of one symbol, watts.
        backoff: beta = eta / eta*, at most 1: below it every client sends with beta times its power.

    Returns:
        expected squared error, in units of the update squared; infinite for a gain of 0.

    Reference:
        arXiv 2302.14336; `testbed.phy.overair.aggregation_mse` with sqrt(eta) = sqrt(beta q).
    """
    return num_values * noise_w / (backoff * gain * total_weight**2) if gain > 0 else math.inf


def phi(
    selected: Sequence[int] | np.ndarray,
    weights: np.ndarray,
    gains: np.ndarray,
    num_values: int,
    noise_w: float,
    *,
    gradient_square: float = 1.0,
) -> float:
    """One round's physical objective: what selection and channel add to the bound, relative to the gradient.

    Phi(S, f, r) = 4 (1 - D_S / D)^2 + d sigma^2 / (D_S^2 G^2) max_{m in S} 1 / |f^H h~_m|^2

    With nu_m^2 = G^2 / d in the auxiliary channels it is sigma^2 / D_S^2 max D_m^2 / (P_m |f^H h_m|^2), the objective
    of the relatives. Lower is better.

    Args:
        selected: indices of the clients in S.
        weights: D_m, shape [num_clients].
        gains: |f^H h~_m|^2 of all clients, shape [num_clients].
        num_values: d.
        noise_w: sigma^2, watts.
        gradient_square: G^2 = alpha_1 + alpha_2 ||grad F||^2, what the error is relative to.

    Returns:
        Phi; infinite where a selected client is not heard.

    Raises:
        ValueError: no client, or one that does not exist, is selected.

    Reference:
        arXiv 2011.10282; arXiv 2302.14336.
    """
    weights = np.asarray(weights, np.float64)
    index = _members(selected, len(weights))
    weakest = float(np.asarray(gains)[index].min())
    error = aggregation_error(weakest, float(weights[index].sum()), num_values, noise_w)
    return 4.0 * unselected(index, weights) ** 2 + error / gradient_square


def selection_bias(constants: Constants, left_out: float, gradient_square: float) -> float:
    """Bound (1) on ||grad F_S - grad F||^2.

    Args:
        constants: alpha_1, alpha_2.
        left_out: s.
        gradient_square: ||grad F||^2.
    """
    return 4.0 * left_out**2 * (constants.alpha1 + constants.alpha2 * gradient_square)


def one_round(
    constants: Constants, loss: float, gradient_square: float, bias_square: float, variance: float, error: float
) -> float:
    """Bound (2) on the expected loss after one round.

    Args:
        constants: L, gamma.
        loss: F(w).
        gradient_square: ||grad F(w)||^2.
        bias_square: ||grad F_S - grad F||^2, or a bound on it.
        variance: V.
        error: E||e||^2.
    """
    gamma = constants.step_size
    return loss + gamma / 2 * (bias_square - gradient_square) + constants.smoothness * gamma**2 / 2 * (variance + error)


def average_gradient(
    constants: Constants, start_gap: float, left_out: np.ndarray, variance: np.ndarray, error: np.ndarray
) -> float:
    """Bound (3) on the mean over the rounds of E||grad F||^2; needs no PL condition.

    Args:
        constants: L, gamma, alpha_1, alpha_2.
        start_gap: Delta_0, loss above the optimum before the first round.
        left_out: s_t, shape [num_rounds].
        variance: V_t, shape [num_rounds].
        error: E||e_t||^2, shape [num_rounds].

    Returns:
        the bound; infinite where 4 alpha_2 s_t^2 >= 1 in some round, which it cannot deal with.
    """
    left_out = np.asarray(left_out, np.float64)
    margin = 1.0 - 4.0 * constants.alpha2 * float(left_out.max()) ** 2
    if margin <= 0:
        return math.inf
    gamma = constants.step_size
    floor = 4.0 * constants.alpha1 * left_out**2 + constants.smoothness * gamma * (np.add(variance, error))
    return (2.0 * start_gap / (gamma * len(left_out)) + float(np.mean(floor))) / margin


def contraction(constants: Constants, left_out: float | np.ndarray) -> np.ndarray:
    """rho, the factor by which a round shrinks the loss above the optimum, before its errors.

    Args:
        constants: mu, L, gamma, alpha_2.
        left_out: s, any shape.
    """
    margin = 1.0 - 4.0 * constants.alpha2 * np.square(left_out)
    rate = np.where(margin >= 0, constants.pl, constants.smoothness)
    return np.asarray(1.0 - constants.step_size * rate * margin)


def start_terms(
    constants: Constants, pretraining_rounds: np.ndarray | int, pretraining_batch: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The three terms of Delta_0, the fine-tuning loss above its optimum at the pre-trained point.

    The noise of pre-training's batches is counted at its stationary level for every N_p, as in the sum (4).

    Args:
        constants: mu, L, eta_p, Delta_p, sigma_p^2, G_xi, W_1.
        pretraining_rounds: N_p, any shape.
        pretraining_batch: b_0, any shape.

    Returns:
        what is left of Delta_p, noise of the batches, and 2 G_xi W_1 (once for the loss at the pre-trained point, once
        for the two optima).
    """
    eta = constants.pretraining_step
    left = (1.0 - constants.pl * eta) ** np.asarray(pretraining_rounds, np.float64) * constants.initial_gap
    noise = constants.smoothness * eta * constants.pretraining_variance / (2.0 * constants.pl)
    shift = 2.0 * constants.data_lipschitz * constants.wasserstein
    return left, noise / np.asarray(pretraining_batch, np.float64), shift


def final_loss(
    constants: Constants,
    left_out: np.ndarray,
    variance: np.ndarray,
    error: np.ndarray,
    *,
    pretraining_rounds: int = 0,
    pretraining_batch: int = 1,
) -> LossBound:
    """Bound (4) on the final fine-tuning loss, with rounds that may differ.

    Args:
        constants: of the losses.
        left_out: s_t, shape [num_rounds].
        variance: V_t, shape [num_rounds].
        error: E||e_t||^2, shape [num_rounds].
        pretraining_rounds: N_p.
        pretraining_batch: b_0.

    Returns:
        the bound's terms, numbers.
    """
    left_out = np.atleast_1d(np.asarray(left_out, np.float64))
    rho = contraction(constants, left_out)
    # prod_{k > t} rho_k, shape [num_rounds]
    after = np.append(np.cumprod(rho[::-1])[::-1][1:], 1.0)
    begin = start_terms(constants, pretraining_rounds, pretraining_batch)
    gamma = constants.step_size
    step = constants.smoothness * gamma**2 / 2.0
    whole = float(np.prod(rho))
    return LossBound(
        initial=whole * float(begin[0]),
        pretraining=whole * float(begin[1]),
        shift=whole * begin[2],
        selection=float(2.0 * gamma * constants.alpha1 * after @ left_out**2),
        sampling=float(step * after @ np.broadcast_to(variance, after.shape)),
        noise=float(step * after @ np.broadcast_to(error, after.shape)),
    )


def static_loss(
    constants: Constants,
    left_out: float,
    variance: np.ndarray | float,
    error: np.ndarray | float,
    num_rounds: np.ndarray | int,
    *,
    pretraining_rounds: np.ndarray | int = 0,
    pretraining_batch: np.ndarray | int = 1,
) -> LossBound:
    """Bound (4) for rounds that are all alike, on a whole grid at once.

    Psi = rho^T Delta_0 + (1 - rho^T) / (1 - rho) c

    Args:
        constants: of the losses.
        left_out: s.
        variance: V, broadcasts.
        error: E||e||^2, broadcasts.
        num_rounds: T, broadcasts.
        pretraining_rounds: N_p, broadcasts.
        pretraining_batch: b_0, broadcasts.

    Returns:
        the bound's terms, arrays of the common shape.
    """
    rho = float(contraction(constants, left_out))
    count = np.asarray(num_rounds, np.float64)
    whole = rho**count
    mass = rounds_mass(rho, count)
    begin = start_terms(constants, pretraining_rounds, pretraining_batch)
    gamma = constants.step_size
    step = constants.smoothness * gamma**2 / 2.0
    return LossBound(
        initial=whole * begin[0],
        pretraining=whole * begin[1],
        shift=whole * begin[2],
        selection=mass * (2.0 * gamma * constants.alpha1 * left_out**2),
        sampling=mass * step * np.asarray(variance),
        noise=mass * step * np.asarray(error),
    )


def rounds_mass(rho: float, num_rounds: np.ndarray | int) -> np.ndarray:
    """sum_{t < T} rho^t = (1 - rho^T) / (1 - rho), and T for rho = 1.

    Args:
        rho: contraction of one round.
        num_rounds: T, any shape.
    """
    count = np.asarray(num_rounds, np.float64)
    return count if abs(1.0 - rho) < 1e-14 else (1.0 - rho**count) / (1.0 - rho)


def _members(selected: Sequence[int] | np.ndarray, num_clients: int) -> np.ndarray:
    index = np.asarray(selected, np.int64)
    if index.ndim != 1 or index.size == 0 or len(set(index.tolist())) != index.size:
        raise ValueError("a selection is a list of at least one client, each named once")
    if index.min() < 0 or index.max() >= num_clients:
        raise ValueError(f"clients are 0 to {num_clients - 1}; {index.tolist()} are selected")
    return index
