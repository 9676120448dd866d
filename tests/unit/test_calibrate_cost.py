"""Costs of training: fits of made-up measurements, and what a node is asked."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest

from calibration.access import Access
from calibration.cost import Cost, CostOptions
from calibration.routine import Fit, Raw, Step
from sim_backend.clock import VirtualClock
from testbed.core import messages
from testbed.core.adapter import Layout
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError, LinkTimeout
from testbed.core.messages import Packet
from tests.benches import small_bench

CYCLES, KAPPA, STEP_S, TASK_S = 3e6, 2e-28, 0.02, 0.1


def bench() -> BenchSpec:
    return small_bench(nodes=[{"name": "board"}])


def measured(*, noise: float = 0.0, idle_w: float = 0.0, follows: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """A board of 1.5 GHz; errors are relative."""
    rng = np.random.default_rng(seed)
    grid = np.array([(f, b, s) for f in (0.75e9, 1.125e9, 1.5e9) for b in (2, 8) for s in (1, 3)], dtype=float)
    cpu_hz, batch, steps = grid.T
    tokens = np.round(80 * batch * steps * rng.uniform(0.9, 1.1, len(grid)))
    real_hz = cpu_hz if follows else np.full(len(grid), 1.5e9)
    seconds = TASK_S + STEP_S * steps + CYCLES * tokens / real_hz
    joules = KAPPA * CYCLES * tokens * real_hz**2 + idle_w * seconds
    return {
        "cpu_hz": cpu_hz,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds * (1 + noise * rng.standard_normal(len(grid))),
        "joules": joules * (1 + noise * rng.standard_normal(len(grid))),
    }


def fitted(raw: dict[str, np.ndarray], what: str = "train") -> Fit:
    return Cost().fit(bench(), CostOptions(), [({"node": "board", "what": what}, raw)])


def test_exact_times_and_energies_give_the_model_back() -> None:
    fit = fitted(measured(idle_w=0.5))
    assert fit.passed, fit.why
    truth = {
        "cycles_per_token": CYCLES, "kappa": KAPPA, "seconds_per_step": STEP_S, "seconds_per_task": TASK_S,
        "idle_power": 0.5,
    }  # fmt: skip
    for key, value in truth.items():
        assert fit.values[f"board.{key}"].value == pytest.approx(value, rel=1e-6), key
    assert len(fit.curves) == 1


def test_noisy_measurements_say_how_well_they_know() -> None:
    errors = []
    for seed in range(60):
        fit = fitted(measured(noise=0.02, seed=seed))
        assert fit.passed, fit.why
        for key, value in (("cycles_per_token", CYCLES), ("kappa", KAPPA)):
            found = fit.values[f"board.{key}"]
            errors.append((found.value - value) / found.std)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize("key", ["seconds", "joules"])
def test_a_meter_that_reports_zero_fails_the_fit(key: str) -> None:
    raw = measured()
    fit = fitted({**raw, key: np.zeros_like(raw[key])})
    assert not fit.passed
    assert "board: its meter reports no" in fit.why
    assert math.isinf(fit.values["board.kappa"].std)


def test_a_processor_that_ignores_the_order_is_found_out() -> None:
    fit = fitted(measured(follows=False, noise=0.01))
    assert fit.passed, fit.why
    assert "does not follow" in fit.why
    assert fit.values["board.cycles_per_token"].value == pytest.approx(CYCLES, rel=0.05)
    kappa = fit.values["board.kappa"]
    assert kappa.std == kappa.value


def test_energy_that_is_a_constant_power_gives_no_kappa() -> None:
    raw = measured(noise=0.01)
    fit = fitted({**raw, "joules": 5.0 * raw["seconds"]})
    assert not fit.passed
    assert "kappa does not show" in fit.why


def test_times_that_scatter_fail_the_fit() -> None:
    raw = measured()
    fit = fitted({**raw, "seconds": np.random.default_rng(1).uniform(0.1, 3.0, len(raw["seconds"]))})
    assert not fit.passed
    assert "tokens" in fit.why


def test_the_links_time_is_a_line() -> None:
    num_bytes = np.array([4e3, 4e5, 4e6])
    fit = fitted({"num_bytes": num_bytes, "seconds": 2e-3 + 8 * num_bytes / 5e7}, "link")
    assert fit.values["board.link_latency"].value == pytest.approx(2e-3, rel=1e-3)
    assert fit.values["board.link_rate"].value == pytest.approx(5e7, rel=1e-3)


def test_a_link_that_takes_no_time_says_so() -> None:
    fit = fitted({"num_bytes": np.array([4e3, 4e6]), "seconds": np.zeros(2)}, "link")
    assert "takes no time" in fit.why
    assert math.isinf(fit.values["board.link_rate"].std)


def test_what_is_not_measured_is_the_bench_files_and_without_certainty() -> None:
    fit = fitted(measured())
    assert fit.values["stage-0.power"].value == 6.0
    assert math.isinf(fit.values["publish.rate"].std)
    assert not Cost().fit(bench(), CostOptions(), []).passed


class FakeLink:
    """A node that answers by the cost model; a deaf one does not."""

    def __init__(self, clock: VirtualClock, *, deaf: bool = False) -> None:
        self.clock, self.deaf = clock, deaf
        self.asked: list[messages.Message] = []

    def ask(self, requests: dict[str, Any], *, timeout_s: float) -> dict[str, Packet]:
        return {} if self.deaf else {name: Packet(self.answer(message)) for name, (message, _) in requests.items()}

    def answer(self, request: messages.Message) -> messages.Message:
        self.asked.append(request)
        match request:
            case messages.Configure(node=node):
                empty = Layout(factors=())
                return messages.Ready(node=node, num_samples=9, layout=empty, frozen_layout=empty, peft_config={})
            case messages.TrainTask(node=node, local_steps=steps, batch_size=batch, cpu_hz=cpu_hz):
                tokens = 100 * (steps or 0) * (batch or 0)
                return messages.TrainDone(
                    node=node, loss_first=1, loss_last=1, loss_mean=1, num_tokens=tokens, update_mean=0, update_std=0,
                    seconds=CYCLES * tokens / (cpu_hz or 1.5e9), joules=KAPPA * CYCLES * tokens * (cpu_hz or 1.5e9)**2,
                )  # fmt: skip
            case _:
                self.clock.wait_until(self.clock.now_s() + 0.5)
                return messages.Done(node="board")


class FakeDevices:
    def __init__(self, *, deaf: bool = False) -> None:
        self.clock = VirtualClock()
        self.link = FakeLink(self.clock, deaf=deaf)
        self.node_devices: dict[str, Any] = {}


def test_a_node_is_warmed_up_and_then_trains_every_combination() -> None:
    devices, routine, options = FakeDevices(), Cost(), CostOptions()
    access = Access(bench(), cast(Any, devices), "sim")
    done: list[tuple[Step, Raw]] = []
    while (step := routine.next_step(bench(), options, done, np.random.default_rng(0))) is not None:
        done.append((step, routine.measure(access, options, step)))
    assert len(done) == routine.num_steps(bench(), options) == 2
    tasks = [message for message in devices.link.asked if isinstance(message, messages.TrainTask)]
    assert len(tasks) == 1 + 3 * 2 * 2
    assert access.now_s() == pytest.approx(float(np.sum(done[0][1]["seconds"])) + CYCLES * 200 / 1.5e9 + 3 * 0.5)
    fit = routine.fit(bench(), options, done)
    assert fit.passed, fit.why
    assert fit.values["board.cycles_per_token"].value == pytest.approx(CYCLES, rel=1e-6)
    assert fit.values["board.link_latency"].value == pytest.approx(0.5)


def test_a_node_that_does_not_answer_is_a_timeout() -> None:
    access = Access(bench(), cast(Any, FakeDevices(deaf=True)), "sim")
    with pytest.raises(LinkTimeout, match="board did not answer"):
        Cost().measure(access, CostOptions(), {"node": "board", "what": "train"})


@pytest.mark.parametrize(
    ("options", "key"), [({"nodes": ("nobody",)}, "nodes"), ({"frequency_share": (1.5,)}, "share")]
)
def test_impossible_options_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Cost().num_steps(bench(), CostOptions(**options))
