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


def _experiment(name: str) -> ExperimentSpec:
    return ExperimentSpec.model_validate({"name": "check", "rounds": 3, "scheme": {"name": name}})


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_the_schemes_of_the_house(name: str) -> None:
    check_scheme(scheme_class(name)(), _experiment(name), small_bench(), ADAPTER)


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
    ("fedavg", {"link": "ideal", "payload": "topk", "error_feedback": True}),
    ("fedavg", {"coding": "qpsk-hamming", "payload": "int8"}),
]


@pytest.mark.parametrize(("name", "changes"), OPTIONS)
def test_options_of_the_schemes(name: str, changes: dict[str, Any]) -> None:
    check_scheme(scheme_class(name)(**changes), _experiment(name), small_bench(), ADAPTER)


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
