"""The formulas of alignment on log-likelihoods of responses: preference losses, policy gradient, and combiners.

Which terms the paper (arXiv 2404.13238) uses is not known beyond its abstract, local multi-objective alignment with a
personalised loss; the objective below is our reading of it.

    max_psi  E[R_k(x, y)] - beta KL(pi || pi_ref) - (zeta / 2) ||theta_sh - theta_sh^0||^2      (B6)

The last term is the same for every response, so as a reward a baseline would cancel it: here it is a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


def dpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Direct preference optimisation.

        -log sigmoid( beta ( log pi(y+)/pi_ref(y+) - log pi(y-)/pi_ref(y-) ) )

    Args:
        chosen: log pi(y+) - log pi_ref(y+), shape [num_pairs].
        rejected: log pi(y-) - log pi_ref(y-), shape [num_pairs].
        beta: strength of the leash.

    Returns:
        Loss of each pair, shape [num_pairs].

    Reference: Rafailov et al., arXiv 2305.18290, equation 7.
    """
    return -functional.logsigmoid(beta * (chosen - rejected))


def modpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor, *, beta: float, weight: float
) -> torch.Tensor:
    """Multi-objective direct preference optimisation on the pairs of objective 1.

        u(y) = ( beta log pi(y)/pi_ref(y) - sum_{j>=2} w_j r_j(y) ) / w_1,   -log sigmoid( u(y+) - u(y-) )      (B7)

    Args:
        chosen: log pi(y+) - log pi_ref(y+), shape [num_pairs].
        rejected: log pi(y-) - log pi_ref(y-), shape [num_pairs].
        margin: sum over j >= 2 of w_j (r_j(y+) - r_j(y-)), shape [num_pairs].
        beta: strength of the leash.
        weight: w_1, positive.

    Returns:
        Loss of each pair, shape [num_pairs].

    Reference: Zhou et al., arXiv 2310.03708.
    """
    return -functional.logsigmoid((beta * (chosen - rejected) - margin) / weight)


def leashed_returns(
    rewards: torch.Tensor, log_probs: torch.Tensor, reference: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """What a whole response is worth under the leash.

        R(x, y) - beta sum_t ( log pi(y_t) - log pi_ref(y_t) )

    Args:
        rewards: R, shape [num_rows].
        log_probs: log pi of every token, 0 where there is none, shape [num_rows, num_positions].
        reference: log pi_ref of every token, likewise.
        beta: strength of the leash.

    Returns:
        Shape [num_rows].
    """
    return rewards - beta * (log_probs - reference).sum(-1)


def leave_one_out(returns: torch.Tensor) -> torch.Tensor:
    """Advantages of several responses to each prompt: the baseline is the mean of the others.

        A_i = R_i - (1 / (G - 1)) sum_{j != i} R_j

    The baseline does not depend on response i, so the policy gradient stays without bias.

    Args:
        returns: shape [num_prompts, group], group at least 2.

    Returns:
        Shape [num_prompts, group].

    Reference: Ahmadian et al., arXiv 2402.14740.
    """
    group = returns.shape[1]
    return (returns - returns.mean(1, keepdim=True)) * (group / (group - 1))


def clipped_loss(
    log_probs: torch.Tensor, old: torch.Tensor, counts: torch.Tensor, advantages: torch.Tensor, *, clip: float
) -> torch.Tensor:
    """Proximal policy optimisation of the tokens of each response.

        -sum_t min( rho_t A, clamp(rho_t, 1 - clip, 1 + clip) A ),   rho_t = pi(y_t) / pi_old(y_t)

    Args:
        log_probs: log pi, shape [num_rows, num_positions]; gradients flow.
        old: log pi_old, likewise, without gradient.
        counts: where there is a token, likewise, bool.
        advantages: A of each response, shape [num_rows].
        clip: how far the ratio may go from 1.

    Returns:
        Loss of each response, shape [num_rows].

    Reference: Schulman et al., arXiv 1707.06347, equation 7.
    """
    ratio = (log_probs - old).exp()
    each = torch.minimum(ratio * advantages[:, None], ratio.clamp(1.0 - clip, 1.0 + clip) * advantages[:, None])
    return -torch.where(counts, each, 0.0).sum(-1)


def mgda_weight(first: torch.Tensor, second: torch.Tensor) -> float:
    """The weight of the first of two gradients in their shortest convex combination.

        a = clamp( (g_2 - g_1) . g_2 / ||g_1 - g_2||^2, 0, 1 ) minimises ||a g_1 + (1 - a) g_2||

    A step along the negative combination improves both objectives to first order, unless it is zero.

    Args:
        first: g_1, shape [num_values].
        second: g_2, shape [num_values].

    Returns:
        a; one half where both are equal.

    Reference: Désidéri, "Multiple-gradient descent algorithm (MGDA)", Comptes Rendus Mathematique 2012.
    """
    apart = (first - second).double()
    length = float(apart @ apart)
    if length == 0.0:
        return 0.5
    return min(1.0, max(0.0, -float(apart @ second.double()) / length))


@dataclass(frozen=True)
class CostQueue:
    """The multiplier of a limit on the mean cost, as a virtual queue.

        Z <- max( Z + step (cost - limit), 0 ),   hence mean cost - limit <= (Z(T) - Z(0)) / (step T)

    Attributes:
        backlog: Z, not negative.
        limit: most mean cost.
        step: how strongly a violation counts, positive.
    """

    backlog: float
    limit: float
    step: float = 1.0

    def after(self, cost: float) -> CostQueue:
        """The queue after a batch.

        Args:
            cost: mean cost of the batch.
        """
        return CostQueue(max(self.backlog + self.step * (cost - self.limit), 0.0), self.limit, self.step)


def lagrangian_reward(scores: np.ndarray, backlog: float) -> np.ndarray:
    """Reward under a limit on the cost of the second objective, scaled to keep its size.

        ( r_1 + Z r_2 ) / (1 + Z),   cost = -r_2

    Args:
        scores: normalised rewards, shape [num_responses, 2].
        backlog: Z, not negative.

    Returns:
        Shape [num_responses].

    Reference: Dai et al., "Safe RLHF", arXiv 2310.12773.
    """
    return (scores[:, 0] + backlog * scores[:, 1]) / (1.0 + backlog)
