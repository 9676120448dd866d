"""Alignment: its formulas on tabular policies, the policy's samples and likelihoods, and a client that improves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.core.specs import LoraSpec, ModelSpec
from tests import tiny_llama

torch = pytest.importorskip("torch")

from nodes.adapters import attach  # noqa: E402
from nodes.alignment import align_on_pairs, align_on_rewards, measure  # noqa: E402
from nodes.alignment_losses import (  # noqa: E402
    CostQueue,
    clipped_loss,
    dpo_loss,
    lagrangian_reward,
    leashed_returns,
    leave_one_out,
    mgda_weight,
    modpo_loss,
)
from nodes.alignment_recipe import Recipe  # noqa: E402
from nodes.bottleneck import extend  # noqa: E402
from nodes.model import load_base  # noqa: E402
from nodes.policy import Policy  # noqa: E402
from nodes.preferences import Pair, encode  # noqa: E402
from nodes.reward import combine  # noqa: E402
from nodes.tokens import Encoded  # noqa: E402

RNG = np.random.default_rng
PROMPTS = ("how many antennas?", "a good film", "the receiver", "which signal moves?")


# --- tabular policies ---------------------------------------------------------------------------------------------


def table(seed: int, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A reference policy over `count` responses and two rewards of each."""
    rng = RNG(seed)
    reference = rng.dirichlet(np.ones(count))
    return reference, rng.normal(size=(count, 2))


def tilted(reference: np.ndarray, rewards: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    """pi_ref exp(R / beta) / Z and Z."""
    unnormalised = reference * np.exp(rewards / beta)
    return unnormalised / unnormalised.sum(), float(unnormalised.sum())


@pytest.mark.parametrize("weight", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_population_optimum_of_modpo_is_the_tilted_policy(weight: float, seed: int) -> None:
    beta = 0.4
    reference, scores = table(seed)
    wanted, _ = tilted(reference, combine(scores, (weight, 1 - weight)), beta)
    logits = torch.from_numpy(np.log(wanted)).requires_grad_(True)
    first, second = (index.flatten() for index in np.meshgrid(np.arange(6), np.arange(6)))
    # everybody compares all pairs; y beats y' with probability sigmoid(r_1(y) - r_1(y'))
    wins = 1 / (1 + np.exp(scores[second, 0] - scores[first, 0]))
    margin = torch.from_numpy((1 - weight) * (scores[first, 1] - scores[second, 1]))

    def population(values: torch.Tensor) -> torch.Tensor:
        ratio = values.log_softmax(-1) - torch.from_numpy(np.log(reference))
        losses = modpo_loss(ratio[first], ratio[second], margin, beta=beta, weight=weight)
        return (torch.from_numpy(wins / 36) * losses).sum()

    population(logits).backward()
    assert float(logits.grad.abs().max()) < 1e-15
    # convex in the ratios, so a stationary point is the minimum: there the loss is the mean entropy of the comparisons
    entropy = -(wins * np.log(wins) + (1 - wins) * np.log(1 - wins)).sum() / 72
    least = float(population(logits).detach())
    assert least == pytest.approx(entropy, abs=1e-12)
    assert float(population(logits.detach() + 0.1 * torch.arange(6))) > least + 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_the_leashed_return_of_the_tilted_policy_is_the_same_for_all_responses(seed: int) -> None:
    beta = 0.3
    reference, scores = table(seed)
    rewards = combine(scores, (0.4, 0.6))
    best, partition = tilted(reference, rewards, beta)
    own, other = (torch.from_numpy(np.log(policy))[:, None] for policy in (best, reference))
    returns = leashed_returns(torch.from_numpy(rewards), own, other, beta=beta)
    np.testing.assert_allclose(returns.numpy(), beta * math.log(partition), atol=1e-12)
    # so the policy gradient vanishes there, and the optimal value is beta log Z
    value = float(best @ (rewards - beta * np.log(best / reference)))
    assert value == pytest.approx(beta * math.log(partition), abs=1e-12)
    for other in RNG(seed + 100).dirichlet(np.ones(6), 200):
        assert other @ (rewards - beta * np.log(other / reference)) <= value + 1e-12


def test_the_policy_gradient_is_the_gradient_of_the_leashed_objective() -> None:
    beta = 0.3
    reference, scores = table(1)
    rewards = torch.from_numpy(scores[:, 0])
    logits = torch.from_numpy(RNG(5).normal(size=6)).requires_grad_(True)
    probability = logits.softmax(-1)
    objective = (probability * (rewards - beta * (probability.log() - torch.from_numpy(np.log(reference))))).sum()
    (wanted,) = torch.autograd.grad(objective, logits)
    now = logits.log_softmax(-1)
    old = now.detach()
    returns = leashed_returns(rewards, old[:, None], torch.from_numpy(np.log(reference))[:, None], beta=beta)
    losses = clipped_loss(now[:, None], old[:, None], torch.ones(6, 1, dtype=torch.bool), returns - 0.7, clip=0.2)
    (got,) = torch.autograd.grad((old.exp() * losses).sum(), logits)
    np.testing.assert_allclose(got.numpy(), -wanted.numpy(), atol=1e-14)


def test_a_larger_weight_of_safety_never_lowers_safety() -> None:
    beta, step = 0.5, 1e-5
    reference, scores = table(3)

    def mean_difference(weight: float) -> float:
        policy, _ = tilted(reference, combine(scores, (1 - weight, weight)), beta)
        return float(policy @ (scores[:, 1] - scores[:, 0]))

    for weight in (0.1, 0.5, 0.9):
        policy, _ = tilted(reference, combine(scores, (1 - weight, weight)), beta)
        difference = scores[:, 1] - scores[:, 0]
        variance = policy @ difference**2 - (policy @ difference) ** 2
        slope = (mean_difference(weight + step) - mean_difference(weight - step)) / (2 * step)
        assert slope == pytest.approx(variance / beta, rel=1e-6)
        assert slope >= 0


def test_modpo_with_all_weight_on_one_objective_is_dpo() -> None:
    chosen, rejected = (torch.from_numpy(RNG(seed).normal(size=50)) for seed in (0, 1))
    one = modpo_loss(chosen, rejected, torch.zeros(50), beta=0.1, weight=1.0)
    assert one.tolist() == dpo_loss(chosen, rejected, beta=0.1).tolist()


def test_dpo_and_its_gradient_by_hand() -> None:
    chosen = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(chosen, rejected, beta=0.1)
    # -log sigmoid(0.08)
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-0.08)), abs=1e-15)
    loss.sum().backward()
    assert float(chosen.grad) == pytest.approx(-0.1 / (1 + math.exp(0.08)), abs=1e-15)
    assert float(rejected.grad) == pytest.approx(0.1 / (1 + math.exp(0.08)), abs=1e-15)
    assert float(dpo_loss(torch.zeros(1, dtype=torch.float64), torch.zeros(1), beta=0.1)) == pytest.approx(math.log(2))


def test_the_baseline_of_a_response_is_the_mean_of_the_others() -> None:
    returns = RNG(0).normal(size=(5, 4))
    got = leave_one_out(torch.from_numpy(returns)).numpy()
    for row, own in zip(returns, got, strict=True):
        for index in range(4):
            assert own[index] == pytest.approx(row[index] - np.delete(row, index).mean(), abs=1e-14)


def test_the_clip_stops_gains_and_keeps_losses() -> None:
    ratio = torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.5]], dtype=torch.float64)
    counts = torch.tensor([[True, True, True, True, True]])
    old = torch.zeros_like(ratio)
    gain = clipped_loss(ratio.log(), old, counts, torch.tensor([2.0], dtype=torch.float64), clip=0.2)
    loss = clipped_loss(ratio.log(), old, counts, torch.tensor([-2.0], dtype=torch.float64), clip=0.2)
    assert float(gain) == pytest.approx(-2 * (0.5 + 0.9 + 1.0 + 1.1 + 1.2), abs=1e-12)
    assert float(loss) == pytest.approx(2 * (0.8 + 0.9 + 1.0 + 1.1 + 1.5), abs=1e-12)
    counts[0, 4] = False
    assert float(
        clipped_loss(ratio.log(), old, counts, torch.tensor([1.0], dtype=torch.float64), clip=0.2)
    ) == pytest.approx(-3.5, abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_the_mgda_weight_is_that_of_a_grid(seed: int) -> None:
    rng = RNG(seed)
    first, second = rng.normal(size=(2, 4)) * rng.uniform(0.2, 3, (2, 1))
    grid = np.linspace(0, 1, 20001)
    lengths = ((grid[:, None] * first + (1 - grid[:, None]) * second) ** 2).sum(1)
    weight = mgda_weight(torch.from_numpy(first), torch.from_numpy(second))
    assert weight == pytest.approx(grid[lengths.argmin()], abs=1e-4)
    joint = weight * first + (1 - weight) * second
    assert joint @ first >= -1e-12
    assert joint @ second >= -1e-12


def test_equal_gradients_share_evenly() -> None:
    assert mgda_weight(torch.ones(3), torch.ones(3)) == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_the_mean_cost_leaves_its_limit_by_no_more_than_the_queue_says(seed: int) -> None:
    rng = RNG(seed)
    costs = rng.normal(rng.uniform(-1, 1), 1.0, 80)
    queue = CostQueue(0.0, limit=0.2)
    for count, cost in enumerate(costs, 1):
        queue = queue.after(float(cost))
        assert queue.backlog >= 0
        assert costs[:count].mean() - 0.2 <= queue.backlog / count + 1e-12


def test_a_long_queue_makes_safety_the_reward() -> None:
    scores = np.array([[2.0, -1.0], [0.0, 3.0]])
    np.testing.assert_allclose(lagrangian_reward(scores, 0.0), [2.0, 0.0])
    np.testing.assert_allclose(lagrangian_reward(scores, 1.0), [0.5, 1.5])
    np.testing.assert_allclose(lagrangian_reward(scores, 1e9), [-1.0, 3.0], atol=1e-8)


# --- the policy ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    base, tokenizer = load_base(ModelSpec(base=str(tiny_llama.make(tmp_path_factory.mktemp("llama")))))
    return Policy(extend(attach(base, LoraSpec(rank=2, alpha=4.0), 5), width=3, seed=5), tokenizer)


@pytest.fixture(scope="module")
def start(policy: Policy) -> np.ndarray:
    """A flat adapter that is not the initial one."""
    initial = policy.adapter.initial
    return (initial + RNG(1).normal(0, 0.1, initial.size)).astype(np.float32)


def ids(policy: Policy, *texts: str) -> list[np.ndarray]:
    return [np.array([0, *policy.tokenizer.encode(text, add_special_tokens=False)]) for text in texts]


def test_nearly_cold_samples_are_those_of_greedy_generation(policy: Policy, start: np.ndarray) -> None:
    policy.adapter.write(start)
    prompts = ids(policy, *PROMPTS)
    got = replace(policy, logit_scale=1e6).sample(prompts, 12, RNG(0))
    for prompt, response in zip(prompts, got, strict=True):
        wanted = policy.adapter.model.generate(
            input_ids=torch.from_numpy(prompt)[None], max_new_tokens=12, do_sample=False, pad_token_id=1
        )[0, len(prompt) :]
        assert response.tolist() == wanted.tolist()


def test_samples_are_distributed_as_the_model_says(policy: Policy, start: np.ndarray) -> None:
    policy.adapter.write(start)
    warm = replace(policy, logit_scale=2.0)
    (prompt,) = ids(policy, "a good film")
    count = 4000
    first = np.array([response[0] for response in warm.sample([prompt] * count, 1, RNG(3))])
    with torch.no_grad():
        logits = policy.adapter.model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1].double()
    expected = count * (logits * 2.0).softmax(-1).numpy()
    common = expected > 20
    observed = np.bincount(first, minlength=expected.size)
    table = np.stack([np.append(array[common], array[~common].sum()) for array in (observed, expected)])
    statistic = ((table[0] - table[1]) ** 2 / table[1]).sum()
    degrees = table.shape[1] - 1
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_a_response_does_not_depend_on_its_neighbours_and_ends_with_the_end_mark(
    policy: Policy, start: np.ndarray
) -> None:
    policy.adapter.write(start)
    prompts = ids(policy, *PROMPTS)
    hot = replace(policy, logit_scale=0.5)
    responses = hot.sample(prompts * 30, 20, RNG(8))
    assert responses[0].tolist() == hot.sample(prompts * 30, 20, RNG(8))[0].tolist()
    ended = [response for response in responses if response[-1] == 1]
    assert ended, "some responses end"
    assert all((response[:-1] != 1).all() and 1 <= len(response) <= 20 for response in responses)
    assert all(len(response) == 20 for response in responses if response[-1] != 1)
    rows = [Encoded(prompt, response) for prompt, response in zip(prompts * 30, responses, strict=True)]
    with torch.no_grad():
        scores = hot.log_probs(rows)
    assert scores.counts.sum(1).tolist() == [len(response) for response in responses]


def test_likelihoods_are_those_of_a_plain_forward_pass(policy: Policy, start: np.ndarray) -> None:
    policy.adapter.write(start)
    rows = [Encoded(prompt, response) for prompt, response in zip(
        ids(policy, *PROMPTS), ([5, 6, 7], [8], [9, 10, 11, 12, 1], [3, 3]), strict=True)]  # fmt: skip
    rows = [Encoded(row.prompt, np.asarray(row.response)) for row in rows]
    with torch.no_grad():
        got = replace(policy, logit_scale=1.4).log_probs(rows).sums
    for row, total in zip(rows, got, strict=True):
        tokens = torch.from_numpy(np.concatenate([row.prompt, row.response]))
        with torch.no_grad():
            logs = (policy.adapter.model(input_ids=tokens[None]).logits[0] * 1.4).log_softmax(-1)
        wanted = sum(float(logs[place - 1, tokens[place]]) for place in range(len(row.prompt), len(tokens)))
        assert float(total) == pytest.approx(wanted, abs=1e-4)


def test_the_divergence_is_the_sum_over_the_vocabulary(policy: Policy, start: np.ndarray) -> None:
    policy.adapter.write(start)
    (prompt,) = ids(policy, "the receiver")
    rows = [Encoded(prompt, np.array([7, 9, 1]))]
    assert policy.divergence(rows, start)[0] == pytest.approx(0, abs=1e-6)
    got = policy.divergence(rows, policy.adapter.initial)[0]
    assert policy.adapter.read().tobytes() == start.tobytes()
    logs = []
    for vector in (start, policy.adapter.initial):
        policy.adapter.write(vector)
        with torch.no_grad():
            tokens = torch.from_numpy(np.append(prompt, [7, 9, 1]))[None]
            logs.append(policy.adapter.model(input_ids=tokens).logits[0].double().log_softmax(-1))
    places = slice(len(prompt) - 1, len(prompt) + 2)
    wanted = float((logs[0].exp() * (logs[0] - logs[1]))[places].sum())
    assert got == pytest.approx(wanted, abs=1e-4)
    assert got > 0


# --- a client -----------------------------------------------------------------------------------------------------


class Share:
    """How many letters of a response a set holds."""

    def __init__(self, letters: str) -> None:
        self.letters = set(letters)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return np.array([sum(letter in self.letters for letter in text) / 4 for text in responses])


REWARDS = (Share("aeiou"), Share("rstlnm"))
RECIPE = Recipe((0.5, 0.5), steps=10, learning_rate=0.06, beta=0.02, batch_size=4, group=12, max_tokens=4, length=64)


def private(policy: Policy) -> slice:
    """Where LoRA lies."""
    layout = policy.adapter.layout
    return slice(0, sum(factor.size for factor in layout.factors if factor.kind in "AB"))


def test_alignment_raises_both_rewards_and_leaves_what_is_shared(policy: Policy, start: np.ndarray) -> None:
    where = private(policy)
    aligned = align_on_rewards(policy, start, PROMPTS, REWARDS, RECIPE, RNG(0), trained=[where])
    assert aligned.status == "finished"
    assert len(aligned.trace) == RECIPE.steps
    assert aligned.trace[0].kl == pytest.approx(0, abs=1e-5)
    assert aligned.vector[where.stop :].tobytes() == start[where.stop :].tobytes()
    assert not np.array_equal(aligned.vector[where], start[where])
    before, after = (
        measure(policy, vector, start, PROMPTS * 4, REWARDS, RECIPE, RNG(9)) for vector in (start, aligned.vector)
    )
    gain = after.rewards - before.rewards
    assert (gain > 2 * np.hypot(before.error, after.error)).all(), gain
    assert before.kl == pytest.approx(0, abs=1e-5)
    assert after.kl > 0.05


def test_the_same_seed_aligns_alike(policy: Policy, start: np.ndarray) -> None:
    recipe = replace(RECIPE, steps=2, group=4)
    first, second, other = (
        align_on_rewards(policy, start, PROMPTS, REWARDS, recipe, RNG(seed)).vector for seed in (0, 0, 1)
    )
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


class Balance:
    """How many letters of a response are of the alphabet's first half less those of the second, or the other way."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        letters = [[letter < "n" for letter in text.lower() if letter.isalpha()] for text in responses]
        return np.array([self.sign * (2 * np.mean(own) - 1 if own else 0.0) for own in letters])


def test_the_trade_moves_with_the_clients_weights(policy: Policy, start: np.ndarray) -> None:
    opposed = (Balance(1.0), Balance(-1.0))
    found = []
    for weights in ((0.9, 0.1), (0.1, 0.9)):
        recipe = replace(RECIPE, weights=weights, steps=8)
        vector = align_on_rewards(policy, start, PROMPTS, opposed, recipe, RNG(0)).vector
        found.append(measure(policy, vector, start, PROMPTS * 4, opposed, recipe, RNG(9)))
    gap = found[0].rewards - found[1].rewards
    error = np.hypot(found[0].error, found[1].error)
    assert gap[0] > 3 * error[0]
    assert gap[1] < -3 * error[1]


@pytest.mark.parametrize("combine_by", ["mgda", "safe"])
def test_other_combiners_take_steps_of_their_own(policy: Policy, start: np.ndarray, combine_by: str) -> None:
    recipe = replace(RECIPE, combine=combine_by, steps=3, group=4, cost_limit=-0.5)
    aligned = align_on_rewards(policy, start, PROMPTS, REWARDS, recipe, RNG(0))
    assert aligned.status == "finished"
    if combine_by == "mgda":
        assert all(0 <= step.mixing <= 1 for step in aligned.trace)
    else:
        backlog = 0.0
        for step in aligned.trace:
            backlog = max(backlog - step.rewards[1] + 0.5, 0.0)
            assert step.backlog == pytest.approx(backlog)


def test_a_policy_that_runs_away_ends_inside_its_limit(policy: Policy, start: np.ndarray) -> None:
    recipe = replace(RECIPE, learning_rate=0.5, beta=1e-6, kl_limit=0.5, steps=30, group=4)
    aligned = align_on_rewards(policy, start, PROMPTS, REWARDS, recipe, RNG(0))
    assert aligned.status == "diverged"
    assert "nats a response from its reference, the limit is 0.5" in aligned.message
    assert len(aligned.trace) < 30
    assert policy.adapter.read().tobytes() == aligned.vector.tobytes()


def test_rewards_that_explode_end_alignment(policy: Policy, start: np.ndarray) -> None:
    class Broken:
        def __init__(self, value: float) -> None:
            self.value = value

        def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
            return np.full(len(responses), self.value)

    for value, said in ((math.nan, "mean rewards are"), (1e3, "reference deviations from 0, the limit is 20")):
        aligned = align_on_rewards(policy, start, PROMPTS, (REWARDS[0], Broken(value)), RECIPE, RNG(0))
        assert aligned.status == "diverged"
        assert said in aligned.message
        assert aligned.vector.tobytes() == start.tobytes()


def test_alignment_may_be_asked_to_stop(policy: Policy, start: np.ndarray) -> None:
    aligned = align_on_rewards(policy, start, PROMPTS, REWARDS, RECIPE, RNG(0), should_stop=lambda: True)
    assert (aligned.status, len(aligned.trace)) == ("stopped", 1)


PAIRS = tuple(Pair(prompt, " aeio", " xzkq", "helpful") for prompt in PROMPTS)
OTHER = tuple(Pair(prompt, " rstl", " xzkq", "safety") for prompt in PROMPTS)


def ratio_gap(policy: Policy, vector: np.ndarray, start: np.ndarray, pairs: Sequence[Pair]) -> float:
    """Mean of log pi/pi_start of the chosen less that of the rejected response."""
    encoded = [encode(pair, policy.tokenizer, 64) for pair in pairs]
    sums = []
    for values in (vector, start):
        policy.adapter.write(values)
        with torch.no_grad():
            good = policy.log_probs([pair.chosen for pair in encoded]).sums
            sums.append(good - policy.log_probs([pair.rejected for pair in encoded]).sums)
    return float((sums[0] - sums[1]).mean())


def test_a_dpo_step_is_that_of_a_plain_loop(policy: Policy, start: np.ndarray) -> None:
    recipe = replace(RECIPE, weights=(1.0,), steps=1, batch_size=4, beta=0.1, max_grad_norm=1e9)
    aligned = align_on_pairs(policy, start, (PAIRS,), recipe, RNG(0))
    assert aligned.trace[0].loss == pytest.approx(math.log(2), abs=1e-5)
    policy.adapter.write(start)
    policy.adapter.gradient.zero_()
    # at the reference the gradient of every pair is -(beta / 2) grad( log pi(y+) - log pi(y-) )
    for pair in PAIRS:
        rows = encode(pair, policy.tokenizer, recipe.length)
        for row, sign in ((rows.chosen, 1), (rows.rejected, -1)):
            tokens = torch.from_numpy(np.concatenate([row.prompt, row.response]))[None]
            labels = tokens.clone()
            labels[0, : len(row.prompt)] = -100
            mean = -policy.adapter.model(input_ids=tokens, labels=labels).loss
            (-0.05 * sign / len(PAIRS) * mean * len(row.response)).backward()
    gradient = policy.adapter.gradient.numpy()
    clear = np.abs(gradient) > 1e-4 * np.abs(gradient).max()
    # the first step of AdamW goes by the learning rate against the sign of the gradient
    np.testing.assert_array_equal(np.sign(start - aligned.vector)[clear], np.sign(gradient)[clear])
    np.testing.assert_allclose(np.abs(aligned.vector - start)[clear], recipe.learning_rate, rtol=0.02)


def test_dpo_raises_the_chosen_responses_of_all_objectives_that_count(policy: Policy, start: np.ndarray) -> None:
    recipe = replace(RECIPE, beta=0.1)
    both = align_on_pairs(policy, start, (PAIRS, OTHER), recipe, RNG(0)).vector
    assert ratio_gap(policy, both, start, PAIRS) > 1
    assert ratio_gap(policy, both, start, OTHER) > 1
    mgda = align_on_pairs(policy, start, (PAIRS, OTHER), replace(recipe, combine="mgda"), RNG(0))
    assert all(0 <= step.mixing <= 1 for step in mgda.trace)


def test_modpo_moves_the_ratio_by_the_margin_of_the_other_reward(policy: Policy, start: np.ndarray) -> None:
    class Likes:
        def __init__(self, value: float) -> None:
            self.value = value

        def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
            return np.array([self.value if "aeio" in text else 0.0 for text in responses])

    # half of the people prefer either response, so r_1 tells nothing and beta log-ratio gap = w_2 (r_2 gap)
    divided = (PAIRS[0], replace(PAIRS[0], chosen=PAIRS[0].rejected, rejected=PAIRS[0].chosen))
    recipe = replace(RECIPE, weights=(0.6, 0.4), beta=0.1, batch_size=2, steps=40, learning_rate=0.01)
    for value in (0.5, -0.5):
        aligned = align_on_pairs(policy, start, (divided, ()), recipe, RNG(0), rewards=(Likes(9.0), Likes(value)))
        assert ratio_gap(policy, aligned.vector, start, PAIRS[:1]) == pytest.approx(0.4 * value / 0.1, abs=0.2)


def test_the_zeta_term_holds_the_shared_part(policy: Policy, start: np.ndarray) -> None:
    shared = slice(private(policy).stop, start.size)
    moved = []
    for zeta in (0.0, 100.0):
        recipe = replace(RECIPE, beta=0.1, zeta=zeta, steps=8, learning_rate=0.003)
        vector = align_on_pairs(policy, start, (PAIRS, OTHER), recipe, RNG(0), anchored=[shared]).vector
        moved.append(float(np.linalg.norm((vector - start)[shared])))
    assert moved[1] < 0.5 * moved[0]


def test_what_cannot_be_aligned_on_is_said(policy: Policy, start: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="no preference pairs of objective 2, whose weight is 0.5"):
        align_on_pairs(policy, start, (PAIRS, ()), RECIPE, RNG(0))
    with pytest.raises(ConfigError, match="needs rewards of samples"):
        align_on_pairs(policy, start, (PAIRS, OTHER), replace(RECIPE, combine="safe"), RNG(0))
    with pytest.raises(ConfigError, match="no prompts to align on"):
        align_on_rewards(policy, start, (), REWARDS, RECIPE, RNG(0))
    with pytest.raises(ConfigError, match="add up to"):
        align_on_rewards(policy, start, PROMPTS, REWARDS[:1], RECIPE, RNG(0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": (0.5, 0.4)}, "add up to 0.9"),
        ({"group": 1}, "alignment.group: group is 1"),
        ({"beta": 0.0}, "alignment.beta"),
        ({"learning_rate": -1.0}, "alignment.learning_rate"),
        ({"max_tokens": 64}, "alignment.max_tokens"),
        ({"weights": (1.0,), "combine": "mgda"}, "joins two objectives, there are 1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(RECIPE, **change)  # type: ignore[arg-type]
