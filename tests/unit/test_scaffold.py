"""SCAFFOLD against a plain loop on a language model, and against drift on quadratics whose optimum is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.trainer import Trainer
from testbed.core.adapter import Adapter, Factor, Layout
from testbed.core.errors import ConfigError
from testbed.core.orders import Work
from testbed.schemes.fedavg import FedAvg
from testbed.schemes.scaffold import Scaffold
from tests.benches import small_bench
from tests.in_process import InProcess
from tests.unit.test_nodes_trainer import folder, job, plain_round  # noqa: F401

pytest.importorskip("torch")

NODES = ("node-00", "node-01", "node-02")
STEP = 0.05


class Quadratics:
    """F_m(w) = (w - a_m)^T H_m (w - a_m) / 2: gradient descent on unlike nodes drifts to another point."""

    def __init__(self, seed: int, dimension: int = 6) -> None:
        rng = np.random.default_rng(seed)
        self.num_samples = dict(zip(NODES, (10, 25, 40), strict=True))
        self.centres = {name: rng.normal(0, 3, dimension) for name in NODES}
        roots = {name: rng.normal(0, 1, (dimension, dimension)) for name in NODES}
        self.curvatures = {name: root @ root.T / dimension + 0.3 * np.eye(dimension) for name, root in roots.items()}
        total = sum(self.num_samples.values())
        shares = {name: count / total for name, count in self.num_samples.items()}
        hessian = sum(shares[name] * self.curvatures[name] for name in NODES)
        slope = sum(shares[name] * self.curvatures[name] @ self.centres[name] for name in NODES)
        self.optimum = np.linalg.solve(np.asarray(hessian), np.asarray(slope))
        names = Factor(name="m.lora_B.weight", shape=(dimension, 1), kind="B", module="m")
        self.adapter = Adapter(layout=Layout(factors=(names,)), initial=np.zeros(dimension, np.float32))

    def learn(self, name: str, index: int, start: np.ndarray, work: Work) -> tuple[np.ndarray, int, float]:
        drift = np.zeros(start.size) if work.drift is None else work.drift
        w = start.astype(np.float64)
        steps = {"node-00": 4, "node-01": 9, "node-02": 16}[name]
        for _ in range(steps):
            w = w - STEP * (self.curvatures[name] @ (w - self.centres[name]) + work.proximal * (w - start) + drift)
        return w.astype(np.float32), steps, STEP

    def distances(self, scheme: Any, rounds: int, silent: dict[int, tuple[str, ...]] | None = None) -> list[float]:
        bench = InProcess(small_bench(), self.num_samples, self.learn, [self.adapter.initial], silent or {})
        bench.run(scheme, self.adapter, rounds)
        return [float(np.linalg.norm(adapter - self.optimum)) for adapter in bench.published]


@pytest.mark.parametrize("seed", range(3))
def test_drift_is_taken_out(seed: int) -> None:
    """Unlike curvatures and unlike numbers of steps: FedAvg stops elsewhere, FedProx nearer, SCAFFOLD there."""
    problem = Quadratics(seed)
    fedavg = problem.distances(FedAvg(link="ideal"), 200)
    fedprox = problem.distances(FedAvg(link="ideal", proximal=3.0), 400)
    scaffold = problem.distances(Scaffold(), 400)
    assert fedavg[-1] == pytest.approx(fedavg[-20], rel=1e-2)
    assert fedavg[-1] > 0.3, "here is something to take out"
    assert fedprox[-1] < 0.8 * fedavg[-1]
    assert scaffold[-1] < 1e-4


def test_silent_nodes_keep_their_variates() -> None:
    problem = Quadratics(11)
    silent = {index: (NODES[index % 3],) for index in range(1, 900)}
    assert problem.distances(Scaffold(server_rate=0.5), 900, silent)[-1] < 1e-3


def test_equals_a_plain_loop(folder: Path) -> None:  # noqa: F811
    """Algorithm 1 with option II in plain torch and dictionaries: two rounds, three nodes of unlike size."""
    spec = job(folder, optimizer="sgd", learning_rate=0.1, local_steps=2, max_grad_norm=0.5)
    trainer = Trainer(spec)
    layout = trainer.layout
    names = dict(zip(NODES, spec.nodes, strict=True))
    num_samples = {ours: trainer.num_samples(theirs) for ours, theirs in names.items()}
    assert len(set(num_samples.values())) > 1

    def learn(name: str, index: int, start: np.ndarray, work: Work) -> tuple[np.ndarray, int, float]:
        done = trainer.train(names[name], index, start, drift=work.drift)
        return done.vector, done.steps, done.step_size

    bench = InProcess(small_bench(), num_samples, learn, [trainer.initial])
    states = bench.run(Scaffold(), Adapter(layout=layout, initial=trainer.initial), 3)

    x = layout.unpack(trainer.initial.astype(np.float64))
    keys, total = list(x), sum(num_samples.values())
    c = {key: np.zeros_like(x[key]) for key in keys}
    own = [{key: np.zeros_like(x[key]) for key in keys} for _ in NODES]
    for index in (1, 2, 3):
        moved, changed = ({key: np.zeros_like(x[key]) for key in keys} for _ in range(2))
        for number, name in enumerate(NODES):
            start = {key: x[key].astype(np.float32) for key in keys}
            drift = {key: (c[key] - own[number][key]).astype(np.float32) for key in keys}
            y = plain_round(folder, spec, start, number, index, drift=drift)
            share = num_samples[name] / total
            for key in keys:
                new = own[number][key] - c[key] + (x[key] - y[key]) / (2 * 0.1)
                moved[key] += share * (y[key] - x[key])
                changed[key] += share * (new - own[number][key])
                own[number][key] = new
        x = {key: x[key] + moved[key] for key in keys}
        c = {key: c[key] + changed[key] for key in keys}
    ours = layout.unpack(bench.published[-1])
    travelled = np.linalg.norm(bench.published[-1] - trainer.initial)
    assert travelled > 0.05
    assert sum(float(np.sum((ours[key] - x[key]) ** 2)) for key in keys) ** 0.5 < 1e-3 * travelled
    control = layout.unpack(states[-1].control)
    apart = sum(float(np.sum((control[key] - c[key]) ** 2)) for key in keys) ** 0.5
    assert apart < 2e-3 * np.linalg.norm(states[-1].control)
    assert np.abs(bench.works[2]["node-00"].drift).max() > 1e-3  # type: ignore[arg-type]  # there was one
    assert Scaffold().report(states[0]) == {}
    assert 0.1 < float(Scaffold().report(states[-1])["drift"]) < 10


def test_other_optimisers_are_refused() -> None:
    problem = Quadratics(0)

    def learn(name: str, index: int, start: np.ndarray, work: Work) -> tuple[np.ndarray, int, float]:
        return (*problem.learn(name, index, start, work)[:2], 0.0)

    bench = InProcess(small_bench(), problem.num_samples, learn, [problem.adapter.initial])
    with pytest.raises(ConfigError, match="needs plain gradient descent, and node-00") as caught:
        bench.run(Scaffold(), problem.adapter, 1)
    assert caught.value.key == "training.optimizer"
