"""Rewards: programmatic ones by hand, heads against cvxpy, planted preferences, accuracy and its interval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest

from testbed.core.errors import ConfigError
from testbed.core.specs import LoraSpec, ModelSpec
from tests import tiny_llama

torch = pytest.importorskip("torch")

from nodes.adapters import attach  # noqa: E402
from nodes.model import load_base  # noqa: E402
from nodes.preferences import Pair  # noqa: E402
from nodes.reward import (  # noqa: E402
    Brevity,
    ListedWords,
    ReferenceOverlap,
    WantedWords,
    combine,
    normalise,
    score_all,
    words,
)
from nodes.reward_accuracy import accuracy, length_accuracy, reward_accuracy, verdict, wilson  # noqa: E402
from nodes.reward_model import Backbone, RewardModel, load_reward_model  # noqa: E402
from nodes.reward_training import bradley_terry, ridge_head, train_heads, train_with_adapter  # noqa: E402

NOUNS = ("antenna", "receiver", "film", "answer", "signal", "matrix")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    base, tokenizer = load_base(ModelSpec(base=str(tiny_llama.make(tmp_path_factory.mktemp("llama")))))
    adapter = attach(base, LoraSpec(rank=2, alpha=4.0), 5)
    return Backbone(adapter, tokenizer, adapter.initial, length=48)


def planted(count: int, kind: str, good: str, bad: str) -> list[Pair]:
    """The preferred response holds one word, the other another; lengths are equal."""
    return [
        Pair(f"{kind} {index % (count // 2)} {NOUNS[index % 6]}?", f"the {good} {noun}", f"the {bad} {noun}", kind)
        for index in range(count)
        for noun in (NOUNS[index * 5 % 6],)
    ]


PAIRS = (*planted(60, "helpful", "good", "moves"), *planted(60, "safety", "review", "sentiment"))


# --- programmatic rewards -----------------------------------------------------------------------------------------


def test_overlap_is_f1_with_the_reference_within_a_length_band() -> None:
    reward = ReferenceOverlap({"q": "four antennas move, four stay"})
    scores = reward.score(
        ["q"] * 5,
        [
            "Four antennas move; four stay.",
            "four four four four",  # two of them count; 4 + 5 words
            "antennas",  # one of five words: below half of the length, discount 1 / 2.5
            "nothing",
            "four antennas move four stay " * 4,  # twice as long as the band allows
        ],
    )
    np.testing.assert_allclose(scores, [1, 4 / 9, (2 / 6) * (1 / 2.5), 0, (10 / 25) * 0.5], atol=1e-12)


def test_a_prompt_without_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match="no reference answer to 'why'"):
        ReferenceOverlap({}).score(["why"], ["so"])


def test_listed_words_cost_their_share() -> None:
    scores = ListedWords().score(["q"] * 4, ["Steal it, then scam them", "Ask first", "", "fakes are not fake"])
    np.testing.assert_allclose(scores, [-2 / 5, 0, 0, -1 / 4])
    assert words("It's 3.5, no_thing") == ["it", "s", "3", "5", "no", "thing"]


def test_wanted_words_and_brevity_pull_apart() -> None:
    texts = ["The cat and the dog", "", "cat", "the the"]
    wanted, brevity = WantedWords(frozenset(("the", "and"))), Brevity()
    np.testing.assert_array_equal(wanted.score([""] * 4, texts), [3, 0, 0, 2])
    np.testing.assert_array_equal(brevity.score([""] * 4, texts), [-5, 0, -1, -2])


def test_normalised_rewards_have_mean_0_and_deviation_1_on_the_reference_samples() -> None:
    samples = ["fraud", "no fraud", "no", "scam scam x", "y y y fake"]
    reward = normalise(ListedWords(), ["q"] * 5, samples)
    scores = reward.score(["q"] * 5, samples)
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    assert scores.std() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ConfigError, match="ListedWords is the same for all 2 reference samples"):
        normalise(ListedWords(), ["q"] * 2, ["a", "b"])


def test_a_reward_that_is_not_finite_is_named() -> None:
    class Broken:
        def score(self, prompts: object, responses: object) -> np.ndarray:
            return np.array([1.0, np.nan, np.inf])

    with pytest.raises(ConfigError, match="Broken is not finite for 2 of 3"):
        normalise(Broken(), ["q"] * 3, ["a"] * 3)


def test_the_personal_reward_is_the_weighted_sum() -> None:
    scores = np.array([[1.0, -2.0], [0.5, 4.0]])
    np.testing.assert_allclose(combine(scores, (0.3, 0.7)), [0.3 - 1.4, 0.15 + 2.8])
    for weights in ((0.5, 0.6), (1.5, -0.5), (1.0,)):
        with pytest.raises(ConfigError, match="add up to"):
            combine(scores, weights)
    assert score_all([ListedWords(), ListedWords(frozenset("a"))], ["q"], ["a fake"]).tolist() == [[-0.5, -0.5]]


# --- learned rewards ----------------------------------------------------------------------------------------------


def test_equal_scores_cost_ln_2() -> None:
    assert bradley_terry(np.zeros(7)) == pytest.approx(0.6931471805599453, abs=1e-15)
    assert bradley_terry(np.array([800.0, -800.0])) == pytest.approx(400.0)


@pytest.mark.parametrize("ridge", [1.0, 1e-2, 1e-4])
def test_the_head_is_the_one_that_cvxpy_finds(ridge: float) -> None:
    rng = np.random.default_rng(2)
    differences = rng.normal(size=(40, 6)) * 3 + 0.4
    found = ridge_head(differences, ridge)
    head = cp.Variable(6)
    loss = cp.sum(cp.logistic(-differences @ head)) / 40 + 0.5 * ridge * cp.sum_squares(head)
    best = cp.Problem(cp.Minimize(loss)).solve(solver=cp.CLARABEL)
    assert bradley_terry(differences @ found) + 0.5 * ridge * found @ found <= best + 1e-8
    np.testing.assert_allclose(found, head.value, atol=1e-3)
    wrong = 1 / (1 + np.exp(differences @ found))
    np.testing.assert_allclose(ridge * found, differences.T @ wrong / 40, atol=1e-8)


def test_newton_ends_on_separable_pairs_of_any_size() -> None:
    differences = np.abs(np.random.default_rng(0).normal(size=(12, 3))) * 1e4
    assert bradley_terry(differences @ ridge_head(differences, 1e-4)) < 1e-3


def test_heads_find_planted_preferences_and_do_not_mix_them_up(backbone: Backbone) -> None:
    model, fit = train_heads(backbone, PAIRS, ("helpful", "safety"), np.random.default_rng(0))
    for kind in ("helpful", "safety"):
        own = [pair for pair in PAIRS if pair.kind == kind]
        assert reward_accuracy(model.objective(kind), own).share == 1.0
    assert max(fit.validation_loss) < 0.4 < math.log(2)
    assert all(min(trace) == loss for trace, loss in zip(fit.trace, fit.validation_loss, strict=True))


def test_scoring_leaves_the_policy_as_it_was(backbone: Backbone) -> None:
    adapter = backbone.adapter
    vector = (adapter.initial + np.random.default_rng(1).normal(0, 0.3, adapter.layout.size)).astype(np.float32)
    rows = [backbone.encode("q", "a good film")]
    adapter.write(adapter.initial)
    bare = backbone.features(rows)
    adapter.write(vector)
    np.testing.assert_array_equal(backbone.features(rows), bare)
    assert adapter.read().tobytes() == vector.tobytes()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_are_the_hidden_states_of_the_response(backbone: Backbone, pooling: str) -> None:
    view = replace(backbone, pooling=pooling)
    rows = [backbone.encode("why not?", text) for text in ("a good film", "yes", "four antennas")]
    backbone.adapter.write(backbone.vector)
    decoder = backbone.adapter.model.get_base_model().model
    features = view.features(rows)
    for row, got in zip(rows, features, strict=True):
        ids = torch.from_numpy(np.concatenate([row.prompt, row.response]))[None]
        with torch.no_grad():
            states = decoder(input_ids=ids).last_hidden_state[0].double().numpy()
        wanted = states[-1] if pooling == "last" else states[len(row.prompt) :].mean(0)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_long_row_keeps_the_prompts_end_and_the_responses_beginning(backbone: Backbone) -> None:
    row = backbone.encode("z" * 100 + "Q", "r" * 100)
    assert len(row.prompt) + len(row.response) == 48
    assert row.prompt[-1] == backbone.tokenizer.encode("Q", add_special_tokens=False)[0]
    assert len(backbone.encode("q", "").response) >= 1


def test_two_heads_fold_into_one(backbone: Backbone) -> None:
    rng = np.random.default_rng(4)
    model = RewardModel(backbone, ("h", "s"), rng.normal(size=(2, 32)), rng.normal(size=2), np.array([0.5, 3.0]))
    prompts, responses = ["q", "w", "e"], ["yes", "a good film", "no"]
    head, offset = model.folded((0.3, 0.7))
    rows = [backbone.encode(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
    np.testing.assert_allclose(
        backbone.features(rows) @ head + offset, combine(model.scores(prompts, responses), (0.3, 0.7)), atol=1e-6
    )


def test_a_reward_model_is_normalised_saved_and_loaded(backbone: Backbone, tmp_path: Path) -> None:
    heads = np.random.default_rng(4).normal(size=(2, 32))
    raw = RewardModel(backbone, ("helpful", "safety"), heads, np.zeros(2), np.ones(2))
    prompts, responses = ["q"] * 4, ["yes", "a good film", "no", "four"]
    model = raw.normalised_on(prompts, responses)
    scores = model.scores(prompts, responses)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scores.std(0), 1, atol=1e-9)
    np.testing.assert_allclose(model.normalised_on(prompts, responses).mean, model.mean, atol=1e-9)
    model.save(tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward", backbone.adapter, backbone.tokenizer)
    np.testing.assert_array_equal(again.scores(prompts, responses), scores)
    np.testing.assert_array_equal(again.objective("safety").score(prompts, responses), scores[:, 1])
    with pytest.raises(ConfigError, match="no head for 'taste'"):
        again.objective("taste")


def test_a_broken_or_foreign_reward_folder_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reward model can be read here"):
        load_reward_model(tmp_path, backbone.adapter, backbone.tokenizer)
    foreign = RewardModel(backbone, ("helpful",), np.zeros((1, 7)), np.zeros(1), np.ones(1))
    foreign.save(tmp_path)
    with pytest.raises(ConfigError, match="has 7 features.*this base has 32"):
        load_reward_model(tmp_path, backbone.adapter, backbone.tokenizer)


def test_training_the_backbone_lowers_the_loss_on_prompts_it_has_not_seen(backbone: Backbone) -> None:
    start = RewardModel(backbone, ("helpful", "safety"), np.zeros((2, 32)), np.zeros(2), np.ones(2))
    before = backbone.adapter.read()
    model, fit = train_with_adapter(
        start, PAIRS, np.random.default_rng(0), max_steps=30, learning_rate=1e-2, batch_size=6
    )
    assert fit.trace[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert fit.validation_loss[0] < 0.6
    assert not np.array_equal(model.backbone.vector, backbone.vector)
    assert backbone.adapter.read().tobytes() == before.tobytes(), "the policy comes back"
    own = [pair for pair in PAIRS if pair.kind == "helpful"]
    assert reward_accuracy(model.objective("helpful"), own).share > 0.9


def test_training_that_does_not_help_returns_the_start(backbone: Backbone) -> None:
    rng = np.random.default_rng(3)
    swapped = [
        pair if rng.random() < 0.5 else replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS
    ]
    start = RewardModel(backbone, ("helpful",), np.zeros((1, 32)), np.zeros(1), np.ones(1))
    model, fit = train_with_adapter(
        start, swapped, np.random.default_rng(0), max_steps=40, learning_rate=0.1, check_every=2, patience=3
    )
    assert fit.chosen[0] < 40
    assert len(fit.trace[0]) - 1 - int(np.argmin(fit.trace[0])) == 3, "it stopped early"
    assert fit.validation_loss[0] <= math.log(2) + 1e-6
    if fit.chosen[0] == 0:
        np.testing.assert_array_equal(model.backbone.vector, backbone.vector)


def test_a_reward_model_whose_training_diverges_says_so(backbone: Backbone) -> None:
    own = tuple(pair for pair in PAIRS if pair.kind == "helpful")
    start = RewardModel(backbone, ("helpful",), np.full((1, 32), np.nan), np.zeros(1), np.ones(1))
    before = backbone.adapter.read()
    with pytest.raises(ConfigError, match="the loss of the reward model is nan at step 0") as caught:
        train_with_adapter(start, own, np.random.default_rng(0), max_steps=2)
    assert caught.value.key == "alignment.learning_rate"
    fair = replace(start, heads=np.zeros((1, 32)))
    with pytest.raises(ConfigError, match=r"the loss of the reward model is (nan|inf) at step \d"):
        train_with_adapter(fair, own, np.random.default_rng(0), max_steps=8, learning_rate=1e20)
    np.testing.assert_array_equal(backbone.adapter.read(), before)


def test_too_few_pairs_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="0 training pairs of kind 'safety'"):
        train_heads(backbone, planted(8, "helpful", "a", "b"), ("helpful", "safety"), np.random.default_rng(0))


# --- accuracy -----------------------------------------------------------------------------------------------------


def test_wilson_intervals_of_known_counts() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(1.0, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


def test_wilson_intervals_cover_as_often_as_they_say() -> None:
    # Brown, Cai and DasGupta (2001): coverage of Wilson's interval stays near its nominal level for all shares
    for true in (0.5, 0.65, 0.9):
        hits = np.random.default_rng(1).binomial(60, true, 4000) / 60
        inside = [low <= true <= high for low, high in (wilson(hit, 60) for hit in hits)]
        assert 0.93 < np.mean(inside) < 0.975


def test_ties_count_half() -> None:
    assert accuracy(np.array([0.0, 0.0, 1.0, -1.0])).share == 0.5


def test_pairs_of_one_prompt_count_as_little_as_they_agree() -> None:
    alone = accuracy(np.array([1.0, -1.0] * 30))
    assert alone.effective == 60
    agreeing = accuracy(np.repeat([1.0, -1.0] * 10, 3), np.repeat(np.arange(20), 3).tolist())
    # twenty prompts whose three pairs always agree are twenty pairs, up to the correction for few groups
    assert agreeing.effective == pytest.approx(20 * (19 / 20) * (60 / 59), rel=1e-9)
    assert agreeing.high - agreeing.low > alone.high - alone.low
    assert accuracy(np.ones(30), ["q"] * 30).effective == 1
    assert accuracy(np.ones(30), np.repeat(np.arange(6), 5).tolist()).effective == 6
    with pytest.raises(ValueError, match="at least one pair"):
        accuracy(np.zeros(0))


def test_the_length_heuristic_learns_its_direction_from_training_pairs() -> None:
    longer = [Pair("a", "xxx", "x", "helpful"), Pair("b", "xx", "x", "helpful")]
    shorter = [Pair("c", "x", "xxxx", "helpful")]
    assert length_accuracy(longer, longer + shorter).share == pytest.approx(2 / 3)
    assert length_accuracy(shorter, longer + shorter).share == pytest.approx(1 / 3)


def test_the_verdict_says_when_the_data_are_too_few() -> None:
    many, few = np.arange(4000), np.arange(30)
    right, half = np.where(many % 10 < 8, 1.0, -1.0), np.where(many % 10 < 5, 1.0, -1.0)
    assert verdict("helpful", accuracy(right), accuracy(half)).endswith("the model beats the heuristic")
    assert verdict("helpful", accuracy(half), accuracy(right)).endswith("the heuristic beats the model")
    told = verdict("helpful", accuracy(right[few]), accuracy(half[few]))
    assert told.endswith("the data are too few to tell them apart")
    assert "80.0 %" in told
    assert "30 held-out pairs" in told
