"""Orders that break a limit are refused with the quantity, its value and the limit."""

from dataclasses import replace

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError, LimitError
from testbed.core.orders import (
    Analogue,
    Collect,
    Digital,
    Evaluate,
    Ideal,
    MajorityVote,
    Move,
    OneBit,
    Order,
    Payload,
    Pruning,
    Publish,
    Sound,
    Together,
    Train,
    Work,
)
from testbed.engine.limits import check_needs, check_order
from tests.benches import small_bench

BENCH = small_bench()
HOME = np.array([antenna.home_m for antenna in BENCH.array.antennas])
ONE = Analogue(weight=1.0, precoder=0.05 + 0.05j, mean=0.0, std=1.0)
COMBINER = np.ones(3) / np.sqrt(3)
LINE = Ideal(weight=1.0, bandwidth_hz=1e6, power_w=0.01, rate_bit_s=1e6)
BAND = Digital(weight=1.0, bandwidth_hz=1e6, power_w=0.01, snr=10.0, combiner=COMBINER)
VOTE = MajorityVote(power_w=0.01)
PAIR = Layout(
    factors=(
        Factor(name="m.A", shape=(2, 1), kind="A", module="m"),
        Factor(name="m.B", shape=(1, 2), kind="B", module="m"),
    )
)


def _moved(index: int, x: float, y: float) -> Move:
    positions = HOME.copy()
    positions[index] = (x, y)
    return Move(positions)


def _analogue(**changes: object) -> Collect:
    return Collect({"node-00": replace(ONE, **changes)}, COMBINER, 1.0)  # type: ignore[arg-type]


def _digital(**changes: object) -> Collect:
    return Collect({"node-00": replace(BAND, **changes)})  # type: ignore[arg-type]


def _ideal(**changes: object) -> Collect:
    return Collect({"node-00": replace(LINE, **changes)})  # type: ignore[arg-type]


def _vote(**changes: object) -> Collect:
    return Collect({"node-00": replace(VOTE, **changes)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "order",
    [
        Sound(),
        Sound(("node-02",)),
        Move(HOME),
        _moved(0, 0.3, 0.3),
        Train({"node-00": Work(local_steps=1, cpu_hz=1e9)}),
        Together(Move(HOME), Train({"node-00": Work()})),
        Train({"node-00": Work(proximal=0.1, drift=np.zeros(4), factors="A")}),
        Train({"node-00": Work(pruning=Pruning(0.95), ranks=2, others="absent", orthogonality=0.1)}),
        Publish(np.zeros(4, np.float32), np.zeros(6, np.float32), 3),
        _analogue(),
        _analogue(precoder=np.full(192, 0.05j)),
        Collect({"node-00": ONE}, np.tile(COMBINER, (192, 1)), 1.0, np.ones(192)),
        Collect({"node-00": OneBit(0.1j)}, COMBINER, 1.0),
        _digital(),
        _digital(scheme="qpsk"),
        _ideal(),
        _vote(),
        Publish(np.zeros(4, np.float32)),
        Evaluate(),
    ],
)
def test_orders_within_the_limits_pass(order: Order) -> None:
    check_order(order, BENCH, 4, PAIR)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (Sound(("node-77",)), "no node 'node-77'"),
        (Sound(num_pilots=1), "at least 2 pilot"),
        (Move(HOME[:2]), r"shape \(2, 2\) for 3 antennas"),
        (_moved(0, np.nan, 0), "not finite"),
        (_moved(0, 0.4, 0.0), r"antenna 0, axis 0: 0.4000 m is outside the region \[0, 0.375\]"),
        (_moved(0, 0.1, 0.05), "antennas 0 and 1 would stand 0.0500 m apart"),
        (_moved(2, 0.3, 0.3), "antenna 2 has no stage"),
        (Train({"node-77": Work()}), "no node 'node-77'"),
        (Train({"node-00": Work(cpu_hz=9e9)}), "node-00 cannot run at 9e"),
        (Train({"node-00": Work(batch_size=0)}), "batch_size = 0"),
        (Train({"node-00": Work(proximal=-1.0)}), "node-00: proximal = -1.0; it must be finite and not negative"),
        (Train({"node-00": Work(proximal=np.inf)}), "proximal = inf"),
        (Train({"node-00": Work(factors="C")}), "factors = 'C'; choose both, A or B"),  # type: ignore[arg-type]
        (Train({"node-00": Work(drift=np.zeros(3))}), r"node-00: drift has shape \(3,\); the adapter has 4 values"),
        (Train({"node-00": Work(drift=np.array([0, np.nan, 0, 0]))}), "drift holds 1 values that are not finite"),
        (Train({"node-00": Work(orthogonality=-0.1)}), "orthogonality = -0.1; it must be finite"),
        (Train({"node-00": Work(ranks=0)}), "ranks = 0; the adapter has ranks from 1 to 2"),
        (Train({"node-00": Work(ranks=3)}), "ranks = 3; the adapter has ranks from 1 to 2"),
        (Train({"node-00": Work(others="out")}), "others = 'out'; choose frozen or absent"),  # type: ignore[arg-type]
        (Train({"node-00": Work(pruning=Pruning(0.96))}), "pruning.ratio = 0.96; it must be from 0 to 0.95"),
        (Train({"node-00": Work(pruning=Pruning(np.nan))}), "pruning.ratio = nan"),
        (Train({"node-00": Work(pruning=Pruning(0.5, "half"))}), "pruning.kind = 'half'"),  # type: ignore[arg-type]
        (
            Train({"node-00": Work(pruning=Pruning(0.5, importance="luck"))}),  # type: ignore[arg-type]
            "pruning.importance = 'luck'; choose data or magnitude",
        ),
        (Publish(np.zeros(4, np.float32), None, 2), "fold_rank = 2 without a fold"),
        (Publish(np.zeros(4, np.float32), np.zeros(2, np.float32)), "fold of rank 0"),
        (Publish(np.zeros(4, np.float32), np.zeros(5, np.float32), 3), "of rank 3 it has 6 values"),
        (Publish(np.zeros(4, np.float32), np.full(6, np.nan, np.float32), 3), "holds 6 values not finite"),
        (Together(_moved(0, -1, 0), Train({})), "outside the region"),
        (Collect({}), "nobody"),
        (Collect({"node-00": ONE, "node-01": BAND}, COMBINER, 1.0), "Analogue and Digital uplinks cannot be mixed"),
        (Collect({"node-00": ONE}), "need a combiner and a scale"),
        (Collect({"node-00": OneBit(0.1j)}), "need a combiner and a scale"),
        (Collect({"node-00": ONE}, COMBINER[:2], 1.0), r"combiner of shape \(2,\); give \[3\]"),
        (Collect({"node-00": ONE}, COMBINER * np.nan, 1.0), "combiner weight is not finite"),
        (Collect({"node-00": ONE}, COMBINER, 1.0, np.ones(3)), "share must hold 192"),
        (Collect({"node-00": ONE}, COMBINER, 0.0), "scale = 0"),
        (_analogue(precoder=0.2), "would transmit 16.02 dBm; its limit is 10.00 dBm"),
        (_analogue(std=0.0), "std = 0"),
        (_analogue(mean=np.inf), "not finite"),
        (_analogue(weight=0.0), "weight = 0"),
        (_digital(power_w=0.2), "would transmit 23.01 dBm"),
        (_digital(bandwidth_hz=9e6), "band has 3.75e"),
        (_analogue(precoder=np.ones(3)), r"precoder of shape \(3,\); give one number, or 192"),
        (_analogue(precoder=np.full(192, 0.2)), "would transmit 16.02 dBm"),
        (_analogue(cfo_hz=np.nan), "not finite"),
        (Collect({"node-00": OneBit(0.2)}, COMBINER, 1.0), "would transmit 16.02 dBm"),
        (_digital(combiner=COMBINER[:2]), "combiner must be 3 finite"),
        (_digital(scheme="qam-1e9"), "no coding scheme 'qam-1e9'; choose from"),
        (_digital(max_tries=0), "max_tries = 0; it must be positive"),
        (_digital(snr=np.inf), "not finite"),
        (_digital(payload=Payload("topk", keep=0.0)), "keep = 0"),
        (_ideal(rate_bit_s=0.0), "rate_bit_s = 0; it must be positive"),
        (_ideal(bandwidth_hz=9e6), "band has 3.75e"),
        (_ideal(payload=Payload("topk", keep=1.5)), "keep = 1.5"),
        (_vote(power_w=0.2), "would transmit 23.01 dBm"),
        (_vote(power_w=-0.01), "power_w = -0.01; it cannot be negative"),
        (_vote(threshold=-1.0), "threshold = -1.0"),
        (Publish(np.zeros(3, np.float32)), "the adapter has 4 values"),
        (Publish(np.array([0, np.nan, 0, np.inf], np.float32)), "2 values that are not finite"),
    ],
)
def test_orders_beyond_the_limits_are_refused(order: Order, says: str) -> None:
    with pytest.raises(LimitError, match=says):
        check_order(order, BENCH, 4, PAIR)


def test_what_an_adapter_lacks_cannot_be_folded_or_sliced() -> None:
    narrow = Layout(factors=(*PAIR.factors, Factor(name="m.down", shape=(4,), kind="bias", module="m")))
    with pytest.raises(LimitError, match="more than LoRA factors"):
        check_order(Train({"node-00": Work(ranks=1)}), BENCH, 4, narrow)
    alone = Layout(factors=(Factor(name="m.B", shape=(4, 1), kind="B", module="m"),))
    with pytest.raises(LimitError, match="cannot be folded: a product needs an A and a B"):
        check_order(Publish(np.zeros(4, np.float32), np.zeros(2, np.float32), 1), BENCH, 4, alone)


def test_end_stops_of_a_stage_count_before_anything_moves() -> None:
    array = BENCH.array.model_dump()
    array["antennas"][1]["stage"]["travel_m"] = [[0.1, 0.2], [0.0, 0.3]]
    bench = small_bench(array=array)
    check_order(_moved(1, 0.18, 0.3), bench, 4)
    with pytest.raises(LimitError, match=r"antenna 1, stage axis 0: 0\.2200 m is beyond the end stops"):
        check_order(_moved(1, 0.22, 0.3), bench, 4)


def test_the_allow_list_binds_the_power_of_the_bench() -> None:
    bench = small_bench(limits={"max_power_dbm": 10.0})
    with pytest.raises(LimitError, match=r"its limit is 10\.00 dBm"):
        check_order(_analogue(precoder=0.11), bench, 4)


def test_lacking_capabilities_are_named() -> None:
    can = Capabilities(True, False, False, False, 1, 0.1, ((1e9, 2e9),), (1e6, 2e6))
    bench = small_bench(world={"impairments": {"oscillator_ppm": 20.0, "phase_jumps": "burst"}})
    check_needs("mine", {"timed_tx"}, can, bench)
    with pytest.raises(ConfigError, match="mine needs radios that are phase_coherent, shared_clock") as refusal:
        check_needs("mine", {"timed_tx", "shared_clock", "phase_coherent"}, can, bench)
    assert "phase_jumps" in str(refusal.value)
    assert "oscillator_ppm" in str(refusal.value)
    assert "majority votes" in (refusal.value.remedy or "")


def test_numerologies_that_an_uplink_cannot_use_are_refused() -> None:
    bench = small_bench(waveform={"num_active": 190})
    check_order(_digital(), bench, 4)
    with pytest.raises(LimitError, match="190 leave one pair") as refusal:
        check_order(_vote(), bench, 4)
    assert "multiple of 4" in (refusal.value.remedy or "")
    for waveform in (
        {"num_subcarriers": 16, "num_active": 8, "cyclic_prefix": 4},
        {"num_subcarriers": 256, "cyclic_prefix": 160},
    ):
        with pytest.raises(LimitError, match="no packet fits"):
            check_order(_digital(), small_bench(waveform=waveform), 4)


def test_packets_are_refused_where_no_samples_are_sent() -> None:
    bench = small_bench(waveform={"level": "symbols"})
    check_order(_vote(), bench, 4)
    with pytest.raises(LimitError, match="packets need samples"):
        check_order(_digital(), bench, 4)
