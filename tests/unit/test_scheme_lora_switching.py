"""The scheme lora-switching against a bench of known channels: modules, deadlines, queues and what is aggregated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.fleet import ArrayFacts, Fleet, NodeFacts
from testbed.core.orders import (
    Collect,
    Collected,
    Digital,
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
)
from testbed.engine.perform import perform
from testbed.lora.choice import part_mask
from testbed.phy.coding_schemes import scheme_named
from testbed.schemes.lora_switching import LoraSwitching

RANK = 8
LAYOUT = Layout(
    factors=(
        Factor(name="m.lora_A.weight", shape=(RANK, 40), kind="A", module="m"),
        Factor(name="m.lora_B.weight", shape=(24, RANK), kind="B", module="m"),
    )
)
ADAPTER = Adapter(layout=LAYOUT, initial=np.zeros(LAYOUT.size, np.float32))
NUM_NODES, JOULES = 4, 3.0
PLAN = {
    "compute_s": 10.0, "tokens": 1000, "mean_energy_j": 1.0, "upload_s": 0.01, "snr_gap_db": 3.0, "modem_share": 1.0
}  # fmt: skip


def fleet_of(cycles_per_token: float = 3e6) -> Fleet:
    array = ArrayFacts(np.zeros((2, 2)), np.zeros(2, bool), np.array([[0, 1.0], [0, 1.0]]), 0.0)
    # kappa cycles f^2 with 1000 tokens: 3 J
    nodes = tuple(
        NodeFacts(f"n{k}", 100 * (k + 1), 0.1, 1e9, cycles_per_token, JOULES / (1000 * 3e6 * 1e18))
        for k in range(NUM_NODES)
    )
    return Fleet(nodes, array, 2.4e9, 1e6)


@dataclass
class Bench:
    """Channels of unit gain times `gains`; every update is all ones on what was trained."""

    gains: np.ndarray
    noise_w: float = 1e-6
    joules: float = JOULES
    lost: tuple[str, ...] = ()
    late: Callable[[str, int], bool] = lambda name, training: False
    asked: list[Order] = field(default_factory=list)

    def answer(self, order: Order) -> Reply:
        self.asked.append(order)
        match order:
            case Sound():
                names = tuple(f"n{k}" for k in range(NUM_NODES))
                zero = np.zeros(NUM_NODES)
                channel = np.sqrt(self.gains / 2) * np.ones((2, 1), complex)
                return Sounding(names, channel, self.noise_w, np.zeros((2, 2)), zero, zero, zero)
            case Train(work=work):
                past = [name for one in self.asked if isinstance(one, Train) for name in one.work]
                took_s = {name: 10.5 if self.late(name, past.count(name)) else 3.0 for name in work}
                return Trained(
                    {name: LocalResult(1, 1, 1, 1, 1000, 0.1, 0.2, took_s[name], self.joules) for name in work}
                )
            case Collect(uplinks=uplinks):
                updates, energy_j = {}, {}
                for name, uplink in uplinks.items():
                    assert isinstance(uplink, Digital | Ideal)
                    energy_j[name] = uplink.power_w * (order.deadline_s or 0.0)
                    if name not in self.lost:
                        updates[name] = part_mask(LAYOUT, uplink.payload.part).astype(np.float32)
                missing = tuple(name for name in uplinks if name not in updates)
                return Collected(np.zeros(LAYOUT.size, np.float32), updates, {}, missing, energy_j=energy_j)
            case Publish():
                return Published()
        raise AssertionError(order)


def played(scheme: LoraSwitching, bench: Bench, rounds: int, fleet: Fleet | None = None) -> Any:
    state = scheme.start(fleet or fleet_of(), ADAPTER)
    for index in range(1, rounds + 1):
        state = perform(scheme.round(state, np.random.default_rng(index)), bench.answer)
    return state


def test_the_mean_energy_keeps_to_its_limit_as_the_queues_promise() -> None:
    bench = Bench(np.full(NUM_NODES, 1e-3))
    # V w_k spreads the queues at which boards rest over more than a round's energy, so they fall out of step
    state = played(LoraSwitching(**PLAN, tradeoff=40.0), bench, 120)
    queues = state.queues
    assert np.all(queues.mean <= queues.limit + queues.backlog / queues.slots + 1e-12)
    # with 3 J a round and 1 J allowed, every board trains in about a third of the rounds
    np.testing.assert_allclose(queues.mean, 1.0, atol=0.15)
    trained = [set(order.work) for order in bench.asked if isinstance(order, Train)]
    late = trained[-30:]
    assert any(names != late[0] for names in late), "boards take turns"
    assert all(any(f"n{k}" in names for names in late) for k in range(NUM_NODES)), "nobody starves"
    assert state.figures["queue_per_round_j"] == pytest.approx(queues.backlog.max() / 120)


def test_modules_that_must_be_trained_are_paid_for_by_their_queue() -> None:
    """Only the largest module is worth anything here; the smallest is trained because it is owed."""
    plan = {**PLAN, "share": "linear", "policy": "switching", "tradeoff": 40.0, "mean_energy_j": 2.0}
    alone, owed = Bench(np.full(NUM_NODES, 1e-2)), Bench(np.full(NUM_NODES, 1e-2))
    played(LoraSwitching(**plan), alone, 60)
    state = played(LoraSwitching(**plan, participation=(0.5, 0.0, 0.0)), owed, 60)
    ranks = [
        [work.ranks for order in bench.asked if isinstance(order, Train) for work in order.work.values()]
        for bench in (alone, owed)
    ]
    assert ranks[0].count(2) == 0
    assert ranks[1].count(2) >= 60 * 0.5 - float(state.owed.backlog[0])
    assert ranks[1].count(2) > 20
    assert state.figures["owed"] == pytest.approx(state.owed.backlog.max())


def test_a_penalty_on_size_beyond_what_modules_are_worth_makes_boards_rest() -> None:
    plan = {**PLAN, "policy": "unconstrained", "share": "linear"}
    free = played(LoraSwitching(**plan), Bench(np.full(NUM_NODES, 1e-2)), 1)
    priced = played(LoraSwitching(**plan, generalisation=2.0), Bench(np.full(NUM_NODES, 1e-2)), 1)
    # rho = r / 8 against 2 sqrt(64 r / 1000)
    worth = {rank: rank / 8 - 2.0 * np.sqrt(64 * rank / 1000) for rank in (2, 4, 8)}
    assert max(worth.values()) < 0
    assert free.figures["modules"] == "8 8 8 8"
    assert priced.figures["modules"] == "0 0 0 0"
    assert priced.figures["phi"] == pytest.approx(1.0)


def test_what_is_measured_is_what_counts() -> None:
    hungry = Bench(np.full(NUM_NODES, 1e-3), joules=12.0)
    state = played(LoraSwitching(**PLAN, tradeoff=4.0), hungry, 120)
    spent = np.zeros(NUM_NODES)
    for order in hungry.asked:
        if isinstance(order, Train):
            spent += [12.0 if f"n{k}" in order.work else 0.0 for k in range(NUM_NODES)]
        elif isinstance(order, Collect):
            spent += [getattr(order.uplinks.get(f"n{k}"), "power_w", 0.0) * 0.01 for k in range(NUM_NODES)]
    np.testing.assert_allclose(state.queues.total, spent, rtol=1e-9)


def test_weak_links_get_small_modules_or_rest() -> None:
    """Energy is free here, so only the link decides: what fits the sending phase."""
    strong, weak = Bench(np.full(NUM_NODES, 1e-2)), Bench(np.full(NUM_NODES, 4e-6))
    scheme = LoraSwitching(**{**PLAN, "policy": "unconstrained", "share": "linear"})
    at_ease, in_need = played(scheme, strong, 1), played(scheme, weak, 1)
    ranks = [[int(one) for one in state.figures["modules"].split()] for state in (at_ease, in_need)]
    assert ranks[0] == [8] * NUM_NODES
    assert sum(ranks[1]) < sum(ranks[0])


def test_only_the_slices_that_were_trained_travel_within_the_phase() -> None:
    bench = Bench(np.full(NUM_NODES, 1e-3))
    played(LoraSwitching(**PLAN, policy="small"), bench, 1)
    work = next(order for order in bench.asked if isinstance(order, Train)).work
    sent = next(order for order in bench.asked if isinstance(order, Collect))
    assert {one.ranks for one in work.values()} == {2}
    assert sent.deadline_s == 0.01
    shares = [uplink.bandwidth_hz for uplink in sent.uplinks.values()]  # type: ignore[union-attr]
    assert sum(shares) == pytest.approx(1e6)
    assert {uplink.payload.part.ranks for uplink in sent.uplinks.values()} == {2}  # type: ignore[union-attr]


def test_a_lost_update_counts_as_no_change_and_slices_are_averaged_over_all_data() -> None:
    bench = Bench(np.full(NUM_NODES, 1e-3), lost=("n3",))
    state = played(LoraSwitching(**PLAN, policy="large"), bench, 1)
    # weights 100, 200, 300 of 1000 arrived, each with ones
    np.testing.assert_allclose(state.adapter, 0.6, rtol=1e-6)
    assert state.figures["arrived"] == 3
    other = Bench(np.full(NUM_NODES, 1e-3), lost=("n3",))
    fair = played(LoraSwitching(**PLAN, policy="large", rule="renormalised"), other, 1)
    np.testing.assert_allclose(fair.adapter, 1.0, rtol=1e-6)


def test_drawn_losses_are_as_frequent_as_the_formula_says() -> None:
    bench = Bench(np.full(NUM_NODES, 2e-5))
    scheme = LoraSwitching(**{**PLAN, "snr_gap_db": 0.0}, policy="large", link="outage")
    state = scheme.start(fleet_of(), ADAPTER)
    arrived, expected, variance = 0.0, 0.0, 0.0
    for index in range(300):
        state = perform(scheme.round(state, np.random.default_rng(index)), bench.answer)
        arrived += float(state.figures["arrived"])
        # equal shares, full power: q from the exponent, per board
        psi = 1e-6 / 1e6 * 2.5e5 / 2e-5 * (2 ** ((RANK * 64 * 16 + 128) / (2.5e5 * 0.01)) - 1)
        success = np.exp(-psi / 0.1)
        expected, variance = expected + 4 * success, variance + 4 * success * (1 - success)
    assert 0.2 < expected / 1200 < 0.98, "the test would show nothing"
    assert abs(arrived - expected) < 4 * np.sqrt(variance)


def test_boards_that_cannot_compute_in_time_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="no device finishes any module") as caught:
        LoraSwitching(**{**PLAN, "compute_s": 1.0}).start(fleet_of(), ADAPTER)
    assert caught.value.key == "scheme"


def rounds_of(bench: Bench, name: str) -> list[int]:
    """Rounds, from 1, in which a board trained; each begins with a sounding."""
    found, index = [], 0
    for order in bench.asked:
        index += isinstance(order, Sound)
        if isinstance(order, Train) and name in order.work:
            found.append(index)
    return found


def test_a_board_that_was_late_once_gets_another_chance() -> None:
    """Of its third training, which takes 10.5 s of 10 s, it rests one round."""
    bench = Bench(np.full(NUM_NODES, 1e-2), late=lambda name, training: name == "n2" and training == 3)
    state = played(LoraSwitching(**PLAN, policy="unconstrained"), bench, 8)
    assert rounds_of(bench, "n2") == [1, 2, 3, 5, 6, 7, 8]
    assert rounds_of(bench, "n1") == list(range(1, 9))
    assert not state.known.late.any()


def test_a_board_that_is_late_every_time_is_asked_ever_more_seldom() -> None:
    bench = Bench(np.full(NUM_NODES, 1e-2), late=lambda name, training: name == "n2")
    played(LoraSwitching(**PLAN, policy="unconstrained"), bench, 100)
    # rests of 1, 3, 7, 15, 31 and 31 rounds
    assert rounds_of(bench, "n2") == [1, 3, 7, 15, 31, 63, 95]


def test_energies_that_no_schedule_keeps_are_refused_before_the_start() -> None:
    with pytest.raises(ConfigError, match="takes 1.5 J in a round of rest, 0.5 J more than its mean limit of 1 J"):
        LoraSwitching(**PLAN, idle_j=1.5).start(fleet_of(), ADAPTER)
    # four boards with 1 J of 3 J train 4 / 3 modules a round at most
    with pytest.raises(ConfigError, match="trained 2 times a round, but devices' energies and deadlines allow 1.333"):
        LoraSwitching(**PLAN, participation=(2.0, 0.0, 0.0)).start(fleet_of(), ADAPTER)
    LoraSwitching(**PLAN, participation=(1.3, 0.0, 0.0)).start(fleet_of(), ADAPTER)
    with pytest.raises(ValueError, match="one for each module"):
        LoraSwitching(**PLAN, participation=(1.0,))


def test_overheads_of_the_modem_raise_the_rate_that_is_planned() -> None:
    """Twice the overhead, half the payload: the coding scheme must carry twice as many bits on a symbol."""
    bits = []
    for share in (0.5, 0.25):
        bench = Bench(np.full(NUM_NODES, 1e-2))
        played(LoraSwitching(**{**PLAN, "modem_share": share}, policy="large"), bench, 1)
        sent = next(order for order in bench.asked if isinstance(order, Collect))
        uplink = sent.uplinks["n0"]
        assert isinstance(uplink, Digital)
        needed = (RANK * 64 * 16 + 128) / (0.01 * 2.5e5 * share)
        bits.append(scheme_named(str(uplink.scheme)).bits_per_symbol)
        assert bits[-1] >= min(needed, 8.0)
    assert bits[1] > bits[0]


def test_a_module_larger_than_the_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match="the largest module has rank 16, the adapter has 8"):
        LoraSwitching(**PLAN, ranks=(4, 16)).start(fleet_of(), ADAPTER)
    with pytest.raises(ValueError, match="do not rise"):
        LoraSwitching(ranks=(4, 2))
