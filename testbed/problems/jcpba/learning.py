"""What pruning costs in rounds: a convergence bound, its inverse, and the whole fine-tuning time.

F_k is L-smooth, client k's stochastic gradient is taken at its pruned weights w m_k with variance sigma^2 and
||w - w m_k||^2 <= e_k(rho_k). The update w+ = w - eta sum_k p_k g_k with eta <= 1/L then has

    (1/T) sum_t E ||grad F(w_t)||^2 <= 2 (F_0 - F*) / (eta T) + M^2 sum_k p_k e_k(rho_k) + L eta sigma^2 sum_k p_k^2,
                                                                                                            (4)
M = L; where adapters are trained on a pruned, frozen base, M is the smoothness across the two. The proof takes
<a, b> = (|a|^2 + |b|^2 - |a - b|^2) / 2 in the descent lemma. This bound is ours, the paper's is not available. It
gives the rounds that reach an average squared gradient, and from them

    (P-A2)  minimise over rho, b: N(rho) max_k T_k,

    N = (2 (F_0 - F*) / eta) / (eps' - M^2 sum_k p_k e_k(rho_k)),    eps' = eps - L eta sigma^2 sum_k p_k^2,

which is (P-A1) at the best penalty budget, a search on a line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.opt.roots import falling_root
from testbed.opt.solution import Solution
from testbed.problems.jcpba.joint import joint_optima
from testbed.problems.jcpba.model import Allocation, ClientCosts, equal_shares_hz, obstacle

_BESIDE = 1e-6


@dataclass(frozen=True)
class Learning:
    """The constants of the bound.

    Attributes:
        initial_gap: F_0 - F*, positive.
        step: eta, at most 1 / smoothness.
        smoothness: L.
        gradient_variance: sigma^2 of a client's stochastic gradient.
        cross_smoothness: M; L if absent.
    """

    initial_gap: float
    step: float
    smoothness: float
    gradient_variance: float = 0.0
    cross_smoothness: float | None = None

    def __post_init__(self) -> None:
        if not (self.initial_gap > 0 and self.step > 0 and self.smoothness > 0 and self.gradient_variance >= 0):
            raise ValueError("gap, step and smoothness must be positive, the gradient's variance not negative")
        if self.step * self.smoothness > 1.0 + 1e-12:
            raise ValueError(f"the bound needs a step of at most 1/L = {1 / self.smoothness:g}, not {self.step:g}")

    @property
    def penalty_factor(self) -> float:
        """M^2."""
        return (self.smoothness if self.cross_smoothness is None else self.cross_smoothness) ** 2

    def noise_floor(self, weight: np.ndarray) -> float:
        """L eta sigma^2 sum_k p_k^2 for weights of shape [num_clients]."""
        return self.smoothness * self.step * self.gradient_variance * float(np.sum(np.square(weight)))

    def bound(self, weight: np.ndarray, penalty: float, num_rounds: float) -> float:
        """Right side of (4) after so many rounds at a penalty sum_k p_k e_k."""
        start = 2.0 * self.initial_gap / (self.step * num_rounds)
        return start + self.penalty_factor * penalty + self.noise_floor(weight)

    def num_rounds(self, weight: np.ndarray, penalty: float, target: float) -> float:
        """N(rho): rounds after which (4) is at most the target; infinite where it never is."""
        left = target - self.noise_floor(weight) - self.penalty_factor * penalty
        return 2.0 * self.initial_gap / (self.step * left) if left > 0 else float("inf")

    def penalty_budget(self, weight: np.ndarray, target: float, num_rounds: float) -> float:
        """Gamma: the largest penalty with which (4) reaches the target in so many rounds; negative where none does."""
        start = 2.0 * self.initial_gap / (self.step * num_rounds)
        return (target - self.noise_floor(weight) - start) / self.penalty_factor


@dataclass(frozen=True)
class Campaign:
    """A whole fine-tuning.

    Attributes:
        allocation: of every round.
        penalty_budget: Gamma, at the optimum of (P-A2).
        num_rounds: N, not rounded.
    """

    allocation: Allocation
    penalty_budget: float
    num_rounds: float


def solve_total(
    costs: ClientCosts, bandwidth_hz: float, learning: Learning, target: float, *, num_points: int = 33
) -> Solution[Campaign]:
    """Pruning and bandwidth that reach a target gradient soonest, problem (P-A2).

    The best of evenly spaced budgets, then the zero of the derivative M^2 / (eps' - M^2 Gamma) - price / tau between
    its neighbours. N tau* is not known to have one minimum only; the even spacing covers several.

    Args:
        costs: of the clients.
        bandwidth_hz: B.
        learning: constants of the bound.
        target: eps, average squared gradient to be reached.
        num_points: budgets that are tried first.

    Returns:
        value: seconds of all rounds; trace: the best so far among the budgets tried first, then the end;
        kkt_residual: what the slope of ln(N tau*) by Gamma has of the wrong sign a millionth of the range to either
        side, times the range.

    Raises:
        ValueError: the band is not positive.
    """
    reserve = target - learning.noise_floor(costs.weight)
    text = obstacle(costs, bandwidth_hz, 0.0)
    if reserve <= 0:
        text = (
            f"learning constraint: the gradient noise alone keeps the bound at {target - reserve:.6g}, "
            f"{-reserve:.6g} above the target {target:.6g}"
        )
    if text:
        none = Allocation.of(costs, np.zeros(costs.num_clients), equal_shares_hz(costs, bandwidth_hz))
        return Solution(Campaign(none, 0.0, float("inf")), float("inf"), "infeasible", message=text)
    most = min(float(costs.total_penalty(costs.max_ratio)), (1.0 - 1e-9) * reserve / learning.penalty_factor)

    def slope(budgets: np.ndarray) -> np.ndarray:
        """Of ln(N tau*) by Gamma, shape [num_budgets]."""
        found = joint_optima(costs, bandwidth_hz, budgets)
        return learning.penalty_factor / (reserve - learning.penalty_factor * budgets) - found.price_s / found.round_s

    def total_s(budgets: np.ndarray) -> np.ndarray:
        rounds = 2.0 * learning.initial_gap / (learning.step * (reserve - learning.penalty_factor * budgets))
        return rounds * joint_optima(costs, bandwidth_hz, budgets).round_s

    tried = np.linspace(0.0, most, num_points)
    tried_s = total_s(tried)
    best = int(np.argmin(tried_s))
    low, high = tried[max(best - 1, 0)], tried[min(best + 1, num_points - 1)]
    budget = falling_root(lambda x: -slope(x), np.array([low]), np.array([high]), tolerance=1e-8 * max(most, 1e-300))
    end_s = float(total_s(budget)[0])
    if end_s > tried_s[best]:
        budget, end_s = tried[best : best + 1], float(tried_s[best])
    found = joint_optima(costs, bandwidth_hz, budget)
    allocation = Allocation.of(costs, found.pruning[0], found.bandwidth_hz[0], float(found.price_s[0]))
    gamma = float(budget[0])
    # a minimum may lie on a kink: the slope must not rise before it nor fall after it
    around = np.clip(gamma + most * np.array([-_BESIDE, _BESIDE]), 0.0, most)
    before, after = slope(around)
    residual = most * max(0.0, float(before) if gamma > 0 else 0.0, float(-after) if gamma < most else 0.0)
    trace = (*np.minimum.accumulate(tried_s).tolist(), end_s)
    campaign = Campaign(allocation, gamma, learning.num_rounds(costs.weight, gamma, target))
    return Solution(campaign, end_s, "stationary", residual, iterations=len(trace), trace=trace)
