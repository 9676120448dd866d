"""Every scheme keeps the limits, is deterministic and replays its own record; a scheme that does not is caught."""

from typing import Any

import numpy as np
import pytest

from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.errors import LimitError, ReplayDeparture
from testbed.core.fleet import Fleet
from testbed.core.orders import Steps, publish, sound
from testbed.core.scheme import Scheme
from testbed.engine.checks import check_scheme
from testbed.engine.config import ExperimentSpec
from testbed.engine.scheme_names import scheme_class
from testbed.schemes import SCHEMES
from tests.benches import small_bench

LAYOUT = Layout(factors=(Factor(name="m.lora_B.weight", shape=(30, 7), kind="B", module="m"),))
ADAPTER = Adapter(layout=LAYOUT, initial=np.zeros(LAYOUT.size, np.float32))

PAIRED_LAYOUT = Layout(
    factors=tuple(
        Factor(name=f"m{index}.q_proj.lora_{kind}.weight", shape=shape, kind=kind, module=f"m{index}.q_proj")
        for index in range(2)
        for kind, shape in (("A", (4, 12)), ("B", (10, 4)))
    )
)
_SPREAD = np.where([factor.kind == "A" for factor in PAIRED_LAYOUT.factors for _ in range(factor.size)], 0.3, 0.0)
PAIRED = Adapter(
    layout=PAIRED_LAYOUT,
    initial=(_SPREAD * np.random.default_rng(0).standard_normal(PAIRED_LAYOUT.size)).astype(np.float32),
)
_BOTTLENECK = (("down", (3, 12)), ("bias", (3,)), ("up", (12, 3)), ("bias", (12,)))
MIXED_LAYOUT = Layout(
    factors=(
        *PAIRED_LAYOUT.factors,
        *(
            Factor(name=f"layers.0.mlp.bottleneck.{index}", shape=shape, kind=kind, module="layers.0.mlp")  # type: ignore[arg-type]
            for index, (kind, shape) in enumerate(_BOTTLENECK)
        ),
    )
)
MIXED = Adapter(layout=MIXED_LAYOUT, initial=np.zeros(MIXED_LAYOUT.size, np.float32))
EIGHT_LAYOUT = Layout(
    factors=tuple(
        Factor(name=f"m.lora_{kind}.weight", shape=shape, kind=kind, module="m")  # type: ignore[arg-type]
        for kind, shape in (("A", (8, 12)), ("B", (10, 8)))
    )
)
EIGHT = Adapter(layout=EIGHT_LAYOUT, initial=np.zeros(EIGHT_LAYOUT.size, np.float32))
_OF_PRODUCTS = ("soft-tsfa", "flexlora", "hetlora", "fslora", "flora", "fedsvd", "ecolora", "fedsrd")


def _adapter(name: str) -> Adapter:
    """One that trains A and B, for schemes that need both; or one with bottlenecks."""
    if name == "pwff":
        return MIXED
    if name == "lora-switching":
        return EIGHT
    return PAIRED if name in _OF_PRODUCTS else ADAPTER


def _experiment(name: str) -> ExperimentSpec:
    # plain gradient descent suits every scheme; some need it
    training = {"optimizer": "sgd"}
    return ExperimentSpec.model_validate({"name": "check", "rounds": 3, "training": training, "scheme": {"name": name}})


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_the_schemes_of_the_house(name: str) -> None:
    check_scheme(scheme_class(name)(), _experiment(name), small_bench(), _adapter(name))


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("ota-fedavg", {"truncate_db": 1.0}),
    ("ota-fedavg", {"search_every": 2}),
    ("ota-fedavg", {"visits": 1}),
    ("ota-fedavg", {"move": False}),
    ("ota-fedavg", {"precoding": "truncated", "per_subcarrier": True}),
    ("ota-fedavg", {"precoding": "truncated", "threshold": 0.9}),
    ("ota-fedavg", {"precoding": "cotaf", "clip_db": 3.0}),
    ("ota-fedavg", {"precoding": "phase", "phase_bits": 2}),
    ("obda", {"truncate_db": 1.0}),
    ("fsk-mv", {"align_power": False, "abstain": 0.5}),
    ("ma-fsk-mv", {"move": False, "abstain": 0.5}),
    ("ma-fsk-mv", {"search_every": 2, "voters": 2, "visits": 3}),
    ("ma-fsk-mv", {"max_error": 100.0, "visits": 5, "max_paths": 2, "num_starts": 1}),
    ("fedavg", {"link": "ideal", "payload": "topk", "error_feedback": True}),
    ("fedavg", {"payload": "topk", "positions": "golomb"}),
    ("fedavg", {"coding": "qpsk-hamming", "payload": "int8"}),
    ("fedavg", {"proximal": 0.1}),
    ("scaffold", {"server_rate": 0.5}),
    ("jcpba", {"allocation": "bcd", "uplink": {"link": "ideal"}}),
    ("jcpba", {"allocation": "uniform", "bandwidth": "equal", "coverage": "all"}),
    ("jcpba", {"allocation": "none", "bandwidth": "equal", "uplink": {"payload": "int8"}}),
    ("jcpba", {"allocation": "random", "penalty": "measured"}),
    ("jcpba", {"bandwidth": "equal", "pruning": "unstructured", "importance": "magnitude"}),
    ("jcpba", {"deadline_s": 1.0, "uplink": {"link": "ideal"}}),
    ("soft-tsfa", {"ranks": [1, 2, 4], "latency_s": 60.0, "uplink": {"link": "ideal"}}),
    ("soft-tsfa", {"controller": "myopic", "selection": "separate", "latency_s": 0.5}),
    ("soft-tsfa", {"controller": "fixed", "keep": 0.5, "bandwidth": "equal", "selection": "random"}),
    ("soft-tsfa", {"selection": "scores", "error_feedback": False, "backlog_s": 100.0}),
    ("soft-tsfa", {"selection": "values", "backlog_s": 100.0, "bandwidth": "equal", "least_keep": 0.1}),
    ("soft-tsfa", {"selection": "all", "deadline": False, "orthogonality": 0.0, "coverage": "present"}),
    ("flexlora", {"ranks": [4, 2, 1], "uplink": {"link": "ideal"}}),
    ("hetlora", {"ranks": [4, 2], "weighting": "samples"}),
    ("hetlora", {"decay": 1.0, "uplink": {"link": "ideal"}}),
    ("fslora", {"ranks": [4, 2], "coverage": "present", "uplink": {"link": "ideal"}}),
    ("flora", {"ranks": [1, 2]}),
    ("fedsvd", {"period": 0}),
    ("ecolora", {"segments": 2, "steepness_a": 0.5, "error_feedback": False}),
    ("pwff", {"shared": [], "weights": [[1.0, 0.0]]}),
    ("pwff", {"tuning_rounds": 1, "alignment_rounds": 2, "uplink": {"link": "ideal"}}),
    ("pwff", {"tuning_rounds": 0, "alignment_rounds": 3, "aligned": "shared", "private": "resting"}),
    ("pwff", {"shared": ["A", "B", "down", "up", "bias"], "pull": 0.1}),
    ("pwff", {"interleave": 1, "alignment_rounds": 1, "last_blocks": 1}),
    ("fedsrd", {"aggregation": "factors", "error_feedback": True}),
    ("fedsrd", {"aggregation": "alternating", "error_feedback": True}),
]


@pytest.mark.parametrize(("name", "changes"), OPTIONS)
def test_options_of_the_schemes(name: str, changes: dict[str, Any]) -> None:
    check_scheme(scheme_class(name)(**changes), _experiment(name), small_bench(), _adapter(name))


@pytest.mark.parametrize("seed", range(20))
def test_the_search_keeps_clear_of_an_antenna_without_stage(seed: int) -> None:
    experiment = _experiment("ota-fedavg").model_copy(update={"seed": seed})
    array = small_bench().array.model_dump()
    array["antennas"][2]["home_m"] = [0.19, 0.19]
    check_scheme(scheme_class("ota-fedavg")(visits=12), experiment, small_bench(array=array), ADAPTER, rounds=1)


_CALLS: list[int] = []


class _Remembers(Scheme[Fleet]):
    """Asks for one pilot more every time it is called: a hidden global."""

    def start(self, fleet: Fleet, adapter: Adapter) -> Fleet:
        return fleet

    def round(self, state: Fleet, rng: np.random.Generator) -> Steps[Fleet]:
        _CALLS.append(1)
        yield from sound(num_pilots=1 + len(_CALLS))
        return state


class _TooLong(Scheme[Fleet]):
    """Publishes an adapter of the wrong length."""

    def start(self, fleet: Fleet, adapter: Adapter) -> Fleet:
        return fleet

    def round(self, state: Fleet, rng: np.random.Generator) -> Steps[Fleet]:
        yield from publish(np.zeros(3, np.float32))
        return state


def test_a_scheme_with_a_hidden_memory_is_caught() -> None:
    with pytest.raises(ReplayDeparture, match="num_pilots"):
        check_scheme(_Remembers(), _experiment("fedavg"), small_bench(), ADAPTER)


def test_a_scheme_that_breaks_a_limit_is_caught() -> None:
    with pytest.raises(LimitError, match="the adapter has 210 values"):
        check_scheme(_TooLong(), _experiment("fedavg"), small_bench(), ADAPTER)
