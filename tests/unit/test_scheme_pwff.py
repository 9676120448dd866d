"""The scheme pwff against a bench whose nodes keep what is theirs: what travels, what stays, who aligns, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.orders import (
    WHOLE,
    Collect,
    Collected,
    Ideal,
    LocalResult,
    Order,
    Publish,
    Published,
    Reply,
    Sound,
    Sounding,
    Train,
    Trained,
    Work,
)
from testbed.engine.perform import perform
from testbed.lora.choice import part_mask
from testbed.schemes.pwff import Pwff
from tests.digital_bench import fleet_of

LAYOUT = Layout(
    factors=tuple(
        Factor(name=f"model.layers.{block}.{name}", shape=shape, kind=kind, module=f"model.layers.{block}.{module}")
        for block in range(3)
        for name, shape, kind, module in (
            ("q_proj.lora_A.weight", (2, 5), "A", "q_proj"),
            ("q_proj.lora_B.weight", (4, 2), "B", "q_proj"),
            ("mlp.bottleneck.down_weight", (3, 5), "down", "mlp"),
            ("mlp.bottleneck.down_bias", (3,), "bias", "mlp"),
            ("mlp.bottleneck.up_weight", (5, 3), "up", "mlp"),
        )
    )
)
SHARED = np.concatenate([np.full(one.size, one.kind not in ("A", "B")) for one in LAYOUT.factors])
ADAPTER = Adapter(layout=LAYOUT, initial=np.linspace(-1, 1, LAYOUT.size).astype(np.float32))
NAMES, SAMPLES = ("n0", "n1", "n2"), (10, 20, 50)
IDEAL = {"uplink": {"link": "ideal", "payload": "float32"}}
MEASURES = {"helpfulness_before": 0.0, "helpfulness": 0.5, "safety_before": 0.1, "safety": 0.2, "kl": 1.0}


@dataclass
class Bench:
    """Quadratic losses: a step goes half of the way from where a node is to its target."""

    fleet: Fleet
    targets: dict[str, np.ndarray]
    lost: tuple[str, ...] = ()
    own: dict[str, np.ndarray] = field(default_factory=dict)
    beside: dict[str, np.ndarray] = field(default_factory=dict)
    updates: dict[str, np.ndarray] = field(default_factory=dict)
    asked: list[Order] = field(default_factory=list)

    def answer(self, order: Order) -> Reply:
        self.asked.append(order)
        match order:
            case Sound():
                zero = np.zeros(len(NAMES))
                channel = np.full((2, len(NAMES)), 1e-3, complex)
                return Sounding(NAMES, channel, 1e-9, np.zeros((2, 2)), zero, zero, zero)
            case Train(work=work):
                return Trained({name: self._train(name, one) for name, one in work.items()})
            case Collect(uplinks=uplinks):
                updates, covered = {}, {}
                for name, uplink in uplinks.items():
                    assert isinstance(uplink, Ideal)
                    if name not in self.lost:
                        covered[name] = part_mask(LAYOUT, uplink.payload.part)
                        updates[name] = np.where(covered[name], self.updates[name], 0).astype(np.float32)
                missing = tuple(name for name in uplinks if name not in updates)
                return Collected(np.zeros(LAYOUT.size, np.float32), updates, covered, missing)
            case Publish(adapter=adapter, part=part):
                taken = part_mask(LAYOUT, part)
                self.own = {name: np.where(taken, adapter, own) for name, own in self.own.items()}
                return Published()
        raise AssertionError(order)

    def _train(self, name: str, work: Work) -> LocalResult:
        before = self.beside.get(name, self.own[name]) if work.beside else self.own[name]
        trained = part_mask(LAYOUT, work.part)
        pull = 0.5 * work.proximal * (self.own[name] - before) if work.beside else 0.0
        after = np.where(trained, before + 0.5 * (self.targets[name] - before) + pull, before).astype(np.float32)
        if work.beside:
            self.beside[name] = after
        else:
            self.updates[name] = after - before
            if work.keep:
                self.own[name] = after
        aligns = {} if work.objective is None else MEASURES
        samples = self.fleet.node(name).num_samples
        return LocalResult(1, 1, 1, samples, 100, 0.0, 1.0, 1.0, 1.0, measures=aligns)

    def of(self, kind: type) -> list[Any]:
        return [order for order in self.asked if isinstance(order, kind)]


def bench(lost: tuple[str, ...] = (), seed: int = 0) -> Bench:
    rng = np.random.default_rng(seed)
    targets = {name: rng.standard_normal(LAYOUT.size).astype(np.float32) for name in NAMES}
    own = dict.fromkeys(NAMES, ADAPTER.initial)
    return Bench(fleet_of([1e9] * 3, list(SAMPLES)), targets, lost, own)


def played(scheme: Pwff, on: Bench, rounds: int) -> Any:
    state = scheme.start(on.fleet, ADAPTER)
    for index in range(1, rounds + 1):
        state = perform(scheme.round(state, np.random.default_rng(index)), on.answer)
    return state


def test_only_what_is_shared_travels_and_only_who_was_heard_counts() -> None:
    on = bench(lost=("n1",))
    state = played(Pwff(**IDEAL), on, 1)
    for uplink in on.of(Collect)[0].uplinks.values():
        np.testing.assert_array_equal(part_mask(LAYOUT, uplink.payload.part), SHARED)
    (told,) = on.of(Publish)
    np.testing.assert_array_equal(part_mask(LAYOUT, told.part), SHARED)
    # half of the way to the targets, weights 10 and 50
    goal = (10 * on.targets["n0"] + 50 * on.targets["n2"]) / 60
    wanted = ADAPTER.initial + 0.5 * (goal - ADAPTER.initial)
    np.testing.assert_allclose(state.adapter[SHARED], wanted[SHARED], atol=1e-6)
    np.testing.assert_array_equal(state.adapter[~SHARED], ADAPTER.initial[~SHARED])
    assert state.figures["arrived"] == 2
    assert state.figures["shared"] == SHARED.sum()


def test_after_a_round_phi_is_the_same_everywhere_and_psi_is_everybodys_own() -> None:
    on = bench()
    played(Pwff(**IDEAL), on, 2)
    for name in NAMES[1:]:
        np.testing.assert_array_equal(on.own[name][SHARED], on.own["n0"][SHARED])
        assert np.all(on.own[name][~SHARED] != on.own["n0"][~SHARED])
    # two steps, each half of the way
    wanted = on.targets["n1"] + 0.25 * (ADAPTER.initial - on.targets["n1"])
    np.testing.assert_allclose(on.own["n1"][~SHARED], wanted[~SHARED], atol=1e-6)


def test_nothing_arrives_and_nothing_changes() -> None:
    on = bench(lost=NAMES)
    state = played(Pwff(**IDEAL), on, 1)
    np.testing.assert_array_equal(state.adapter, ADAPTER.initial)


def test_personal_models_beat_the_shared_one_where_targets_differ() -> None:
    """Squared distance to the own target, over five draws of targets; all shared is the global model."""
    apart = []
    for seed in range(5):
        loss = {}
        for what, shared in (("personal", ["down", "up", "bias"]), ("global", ["A", "B", "down", "up", "bias"])):
            on = bench(seed=seed)
            played(Pwff(shared=shared, **IDEAL), on, 8)
            loss[what] = np.mean([np.sum((on.own[name] - on.targets[name]) ** 2) for name in NAMES])
        apart.append(loss["global"] - loss["personal"])
    assert np.mean(apart) > 3 * np.std(apart, ddof=1) / np.sqrt(5)


def test_the_stages_follow_one_another_and_alignment_sends_nothing() -> None:
    on, scheme = bench(), Pwff(tuning_rounds=2, alignment_rounds=2, **IDEAL)
    assert scheme.aligns
    state = scheme.start(on.fleet, ADAPTER)
    stages = []
    while not scheme.done(state):
        before = len(on.asked)
        state = perform(scheme.round(state, np.random.default_rng(1)), on.answer)
        stages.append([type(order).__name__ for order in on.asked[before:]])
    assert stages == [["Sound", "Train", "Collect", "Publish"]] * 2 + [["Train"]] * 2
    work = on.of(Train)[-1].work
    for name, helpful in zip(NAMES, (0.9, 0.5, 0.1), strict=True):
        objective = work[name].objective
        assert objective.weights == pytest.approx((helpful, 1 - helpful))
        assert objective.reference == "first"
        np.testing.assert_array_equal(part_mask(LAYOUT, work[name].part), ~SHARED)
        assert work[name].keep
    assert state.figures["safety"] == pytest.approx(0.2)
    assert state.figures["stage"] == "align"


def test_interleaved_alignment_leashes_to_the_policy_of_the_moment() -> None:
    on, scheme = bench(), Pwff(tuning_rounds=5, interleave=2, alignment_rounds=2, **IDEAL)
    played(scheme, on, 7)
    aligned = [any(one.objective for one in order.work.values()) for order in on.of(Train)]
    assert aligned == [False, False, True, False, False, True, False]
    assert {one.objective.reference for one in on.of(Train)[2].work.values()} == {"start"}


def test_shared_alignment_is_sent_and_averaged() -> None:
    scheme = Pwff(
        shared=["A", "B", "down", "up", "bias"], aligned="shared", tuning_rounds=0, alignment_rounds=1,
        weights=[(0.5, 0.5)], **IDEAL,
    )  # fmt: skip
    on = bench()
    state = played(scheme, on, 1)
    assert [type(order).__name__ for order in on.asked] == ["Sound", "Train", "Collect", "Publish"]
    assert {one.objective.weights for one in on.of(Train)[0].work.values()} == {(0.5, 0.5)}
    goal = sum(share * on.targets[name] for share, name in zip(SAMPLES, NAMES, strict=True)) / sum(SAMPLES)
    np.testing.assert_allclose(state.adapter, 0.5 * (ADAPTER.initial + goal), atol=1e-6)


def test_the_last_blocks_alone_and_all_but_the_last_blocks() -> None:
    last = np.concatenate([np.full(one.size, ".2." in one.name) for one in LAYOUT.factors])
    every = ["A", "B", "down", "up", "bias"]
    for changes, wanted in (
        ({"last_blocks": 1}, last),
        ({"private_blocks": 1}, ~last),
        ({"last_blocks": 1, "shared": ["up"]}, last & (SHARED & _of_kind("up"))),
    ):
        on = bench()
        played(Pwff(**{"shared": every, **IDEAL, **changes}), on, 1)
        np.testing.assert_array_equal(part_mask(LAYOUT, on.of(Publish)[0].part), wanted)


def _of_kind(kind: str) -> np.ndarray:
    return np.concatenate([np.full(one.size, one.kind == kind) for one in LAYOUT.factors])


def test_local_only_asks_for_training_and_nothing_else() -> None:
    on = bench()
    played(Pwff(shared=[]), on, 3)
    assert [type(order) for order in on.asked] == [Train] * 3
    wanted = on.targets["n2"] + (ADAPTER.initial - on.targets["n2"]) / 8
    np.testing.assert_allclose(on.own["n2"], wanted, atol=1e-6)


def test_resting_private_values_stay_where_they_started() -> None:
    on = bench()
    played(Pwff(private="resting", **IDEAL), on, 2)
    np.testing.assert_array_equal(on.own["n1"][~SHARED], ADAPTER.initial[~SHARED])


def test_as_in_ditto_everybody_has_a_copy_that_goes_on_and_the_global_adapter_goes_its_own_way() -> None:
    every = ["A", "B", "down", "up", "bias"]
    on, plain = bench(), bench()
    pulled = played(Pwff(shared=every, pull=0.1, **IDEAL), on, 3)
    averaged = played(Pwff(shared=every, **IDEAL), plain, 3)
    np.testing.assert_allclose(pulled.adapter, averaged.adapter, atol=1e-6)
    np.testing.assert_array_equal(on.own["n0"], on.own["n1"])
    copies = on.of(Train)[-1].work["n0"]
    assert (copies.proximal, copies.keep, copies.beside, copies.pulled) == (0.1, False, True, WHOLE)
    # v <- v - 0.5 ((v - target) + 0.1 (v - w^t)), round after round, with w^t before the round's mean
    goal = sum(share * on.targets[name] for share, name in zip(SAMPLES, NAMES, strict=True)) / sum(SAMPLES)
    for name in NAMES:
        common = copy = ADAPTER.initial
        for _ in range(3):
            copy = copy - 0.5 * ((copy - on.targets[name]) + 0.1 * (copy - common))
            common = common + 0.5 * (goal - common)
        np.testing.assert_allclose(on.beside[name], copy, atol=1e-5)


def test_every_client_has_a_rank_of_its_own_in_what_it_keeps() -> None:
    on = bench()
    played(Pwff(ranks=[1, 2], tuning_rounds=1, alignment_rounds=1, **IDEAL), on, 2)
    for order in on.of(Train):
        for name, rank in zip(NAMES, (1, 2, 1), strict=True):
            assert order.work[name].part.ranks == rank
    views = LAYOUT.unpack(on.own["n0"] - ADAPTER.initial)
    for factor in LAYOUT.factors:
        if factor.kind == "A":
            assert not views[factor.name][1:].any()
            assert np.all(views[factor.name][:1] != 0)
        elif factor.kind == "B":
            assert not views[factor.name][:, 1:].any()
            assert np.all(views[factor.name][:, :1] != 0)
        else:
            assert np.all(views[factor.name] != 0), "bottlenecks have no rank"
    assert np.all(on.own["n1"][~SHARED] != ADAPTER.initial[~SHARED])
    np.testing.assert_array_equal(part_mask(LAYOUT, on.of(Publish)[0].part), SHARED)


def test_one_client_is_central_training() -> None:
    """B-4: alone, phi and psi take the steps of a single trainer."""
    alone = bench(lost=NAMES[1:])
    state = played(Pwff(**IDEAL), alone, 4)
    wanted = ADAPTER.initial
    for _ in range(4):
        wanted = wanted + 0.5 * (alone.targets["n0"] - wanted)
    np.testing.assert_allclose(state.adapter[SHARED], wanted[SHARED], rtol=0, atol=1e-6)
    np.testing.assert_allclose(alone.own["n0"], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"shared": ["A", "B", "down", "up", "bias"], "alignment_rounds": 1}, "scheme.aligned", "no value is private"),
        ({"shared": [], "aligned": "shared", "alignment_rounds": 1}, "scheme.aligned", "no value is shared"),
        ({"weights": [(0.5, 0.5), (1.0, 0.0)]}, "scheme.weights", "2 pairs of weights for 3 nodes"),
        ({"weights": [(0.5, 0.6)]}, "scheme.weights", "no shares of 1"),
        ({"last_blocks": 4}, "scheme.last_blocks", "adapter spans 3"),
        ({"private_blocks": 3}, "scheme.private_blocks", "no factor of the shared kinds"),
        ({"ranks": [3]}, "scheme.ranks", "rank 3 of an adapter of rank 2"),
        ({"ranks": [1], "shared": ["A"]}, "scheme.ranks", "stay with their node"),
        ({"ranks": [1], "private": "resting"}, "scheme.ranks", "stay with their node"),
        ({"pull": 0.1, "alignment_rounds": 1}, "scheme.pull", "alignment does not know them"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_order(
    changes: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Pwff(**changes).start(bench().fleet, ADAPTER)
    assert caught.value.key == key


def test_an_adapter_without_bottlenecks_is_refused() -> None:
    lora = Layout(factors=tuple(one for one in LAYOUT.factors if one.kind in ("A", "B")))
    with pytest.raises(ConfigError, match="no factor of kind 'down'; it has A, B"):
        Pwff().start(bench().fleet, replace_layout(lora))


def replace_layout(layout: Layout) -> Adapter:
    return Adapter(layout=layout, initial=np.zeros(layout.size, np.float32))
