"""Calibration of what the optimisers take for granted: seconds and joules of local training, the link's time.

    seconds = s_task + s_step steps + C tokens / f,   joules = kappa C tokens f^2 + p_idle seconds

C cycles per token, f the CPU frequency, kappa the effective switched capacitance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy.optimize import nnls

from calibration.access import Access
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from calibration.training_access import TrainingAccess
from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, Spec, TrainingSpec

_CERTAIN = 1e-6  # relative; nothing is known better, however exact a simulated meter is
_UNUSABLE = 0.5  # relative standard deviation of cycles or kappa
_BENT = 0.25  # departure of the exponent of joules over frequency that is told
_FOLLOWS = 4.0  # by how much squared residuals fall where the processor obeys the ordered frequency


class CostOptions(Spec):
    """What may be chosen."""

    nodes: tuple[str, ...] = Field((), description="nodes that are measured; all by default")
    model: ModelSpec = Field(default=ModelSpec(), description="as in the experiment file")
    lora: LoraSpec = Field(default=LoraSpec(), description="as in the experiment file")
    data: DataSpec = Field(default=DataSpec(), description="as in the experiment file")
    training: TrainingSpec = Field(default=TrainingSpec(), description="as in the experiment file")
    batch_sizes: tuple[int, ...] = Field((2, 8), min_length=1, description="rows of one forward pass")
    frequency_share: tuple[float, ...] = Field(
        (0.5, 0.75, 1.0), min_length=1, description="CPU frequencies, as shares of each board's highest"
    )
    steps: tuple[int, ...] = Field((1, 3), min_length=1, description="optimiser steps of one task")
    link_values: tuple[int, ...] = Field(
        (1_000, 100_000, 1_000_000), description="adapter values, 4 bytes each, that are sent to time the control link"
    )


class Cost:
    """See `calibration.routine.Routine`."""

    name: ClassVar[str] = "cost"
    about: ClassVar[str] = "seconds and joules of every node's training, and of the control link"
    Options: ClassVar[type[Spec]] = CostOptions
    validity: ClassVar[tuple[str, ...]] = ()
    lasts_s: ClassVar[float] = 30 * 86400.0

    def next_step(
        self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """See `calibration.routine.Routine`.

        Raises:
            ConfigError: the bench has no node of that name, or a frequency is none that a board has.
        """
        steps = _planned(bench, options)
        return steps[len(done)] if len(done) < len(steps) else None

    def num_steps(self, bench: BenchSpec, options: Any) -> int:
        """See `calibration.routine.Routine`."""
        return len(_planned(bench, options))

    def measure(self, access: Access, options: Any, step: Step) -> Raw:
        """See `calibration.routine.Routine`.

        Raises:
            LinkTimeout: the node did not answer.
            BenchError: what the node reported.
        """
        node = str(step["node"])
        job = JobSpec(
            nodes=access.bench.node_names,
            model=options.model,
            lora=options.lora,
            data=options.data,
            training=options.training,
        )
        training = TrainingAccess(access, job)
        if step["what"] == "link":
            values = np.array(options.link_values)
            seconds = np.array([training.send(node, int(count)) for count in values])
            return {"num_bytes": 4 * values, "seconds": seconds}
        training.configure(node)
        # model, caches and processor warm up before anything counts
        training.train(node, steps=1, batch_size=options.batch_sizes[0])
        board_hz = next(board.cpu_hz for board in access.bench.boards if board.name == node)
        rows = []
        for share in options.frequency_share:
            for batch_size in options.batch_sizes:
                for steps in options.steps:
                    took = training.train(node, steps=steps, batch_size=batch_size, cpu_hz=share * board_hz)
                    rows.append((share * board_hz, steps, took.num_tokens, took.seconds, took.joules))
        cpu_hz, counts, tokens, seconds, joules = np.array(rows, dtype=np.float64).T
        return {"cpu_hz": cpu_hz, "steps": counts, "tokens": tokens, "seconds": seconds, "joules": joules}

    def fit(self, bench: BenchSpec, options: Any, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """See `calibration.routine.Routine`: for each node cycles_per_token, kappa, seconds_per_step,
        seconds_per_task, idle_power, link_latency and link_rate; what stages and the broadcast draw is the bench
        file's."""
        values = _taken_for_granted(bench)
        problems, remarks, curves = [], [], []
        for step, raw in done:
            node = str(step["node"])
            if step["what"] == "link":
                values |= {f"{node}.{key}": value for key, value in _fit_link(raw).items()}
                if not np.any(raw["seconds"] > 0):
                    remarks.append(f"the control link to {node} takes no time on this backend")
                continue
            found = _fit_node(raw)
            values |= {f"{node}.{key}": value for key, value in found.values.items()}
            problems += [f"{node}: {text}" for text in found.problems]
            remarks += [f"{node}: {text}" for text in found.remarks]
            curves += [_curve(node, raw, found)]
        if not done:
            problems.append("nothing was measured")
        remarks.append("powers of stages and of the broadcast are the bench file's")
        return Fit(values, not problems, "; ".join(problems or remarks), tuple(curves))


@dataclass
class _Found:
    values: dict[str, Quantity]
    problems: list[str]
    remarks: list[str]
    explained_s: np.ndarray


def _planned(bench: BenchSpec, options: CostOptions) -> list[Step]:
    for name in options.nodes:
        if name not in bench.node_names:
            raise ConfigError(f"the bench has no node {name!r}", key="nodes", remedy="name nodes of the bench file")
    if not all(0 < share <= 1 for share in options.frequency_share):
        raise ConfigError(
            "a frequency is no share of the highest", key="frequency_share", remedy="give shares above 0, at most 1"
        )
    return [{"node": node, "what": what} for node in options.nodes or bench.node_names for what in ("train", "link")]


def _taken_for_granted(bench: BenchSpec) -> dict[str, Quantity]:
    """What is not measured: the bench file's, with no certainty at all."""
    values = {
        f"stage-{index}.power": Quantity(antenna.stage.power_w, "W", math.inf)
        for index, antenna in enumerate(bench.array.antennas)
        if antenna.stage is not None
    }
    values["publish.rate"] = Quantity(bench.link.downlink_bit_s, "bit/s", math.inf)
    values["publish.power"] = Quantity(bench.link.server_power_w, "W", math.inf)
    return values


def _fit_node(raw: Raw) -> _Found:
    steps, tokens = raw["steps"], raw["tokens"]
    found = _Found({}, [], [], np.zeros(len(tokens)))
    unknown = {"cycles_per_token": "1", "kappa": "J s^2", "seconds_per_step": "s", "seconds_per_task": "s"}
    found.values = {key: Quantity(0.0, unit, math.inf) for key, unit in unknown.items()}
    found.values["idle_power"] = Quantity(0.0, "W", math.inf)
    if not np.all(np.isfinite(raw["seconds"])) or np.any(raw["seconds"] <= 0) or np.any(tokens <= 0):
        found.problems.append("its meter reports no time for work that was done; look at the board's clock")
        return found
    effective_hz = _obeyed_hz(raw, found)
    fitted, stds, found.explained_s = _least_squares(
        np.stack([tokens / effective_hz, steps, np.ones(len(tokens))], axis=1), raw["seconds"]
    )
    cycles, cycles_std = float(fitted[0]), float(stds[0])
    found.values["cycles_per_token"] = Quantity(cycles, "1", cycles_std)
    found.values["seconds_per_step"] = Quantity(float(fitted[1]), "s", float(stds[1]))
    found.values["seconds_per_task"] = Quantity(float(fitted[2]), "s", float(stds[2]))
    if not cycles_std < _UNUSABLE * cycles:
        found.problems.append(
            "its times do not grow with the tokens, or scatter too much; end other programs on the board, or train "
            "with larger batch_sizes and steps"
        )
        return found
    _fit_energy(raw, effective_hz, found)
    return found


def _obeyed_hz(raw: Raw, found: _Found) -> np.ndarray:
    """The frequencies that were ordered, or the highest of them where times do not depend on the order."""
    cpu_hz, ones = raw["cpu_hz"], np.ones(len(raw["cpu_hz"]))
    highest_hz = np.full(len(cpu_hz), float(cpu_hz.max()))
    if np.ptp(cpu_hz) == 0:
        return highest_hz
    errors = []
    for frequency_hz in (cpu_hz, highest_hz):
        columns = np.stack([raw["tokens"] / frequency_hz, raw["steps"], ones], axis=1)
        explained = _least_squares(columns, raw["seconds"])[2]
        errors.append(float(np.sum((raw["seconds"] / explained - 1) ** 2)))
    if errors[0] * _FOLLOWS < errors[1]:
        return np.asarray(cpu_hz)
    if errors[1] * _FOLLOWS < errors[0]:
        found.remarks.append("its processor does not follow the ordered frequency, so that its highest one is assumed")
        return highest_hz
    found.remarks.append("whether its processor follows the ordered frequency does not show in its times")
    return np.asarray(cpu_hz)


def _fit_energy(raw: Raw, cpu_hz: np.ndarray, found: _Found) -> None:
    tokens, joules = raw["tokens"], raw["joules"]
    if not np.all(np.isfinite(joules)) or np.any(joules <= 0):
        found.problems.append(
            "its meter reports no energy for work that was done; check meter.energy and its sensor, whose counter may "
            "be too slow for so little work: raise steps"
        )
        return
    cycles = found.values["cycles_per_token"]
    work = cycles.value * tokens * cpu_hz**2
    columns = [work, raw["seconds"]] if np.ptp(cpu_hz) > 0 else [work]
    fitted, stds, _ = _least_squares(np.stack(columns, axis=1), joules)
    kappa, relative = float(fitted[0]), cycles.std / cycles.value
    if len(columns) == 1:
        # whatever share of it the idle power is
        found.values["kappa"] = Quantity(kappa, "J s^2", kappa)
        found.remarks.append("at one frequency alone kappa holds for that one, with the idle power in it")
        return
    std = math.hypot(float(stds[0]), kappa * relative)
    found.values["kappa"] = Quantity(kappa, "J s^2", std)
    found.values["idle_power"] = Quantity(float(fitted[1]), "W", float(stds[1]))
    exponent = float(np.polyfit(np.log(cpu_hz), np.log(joules / tokens), 1)[0])
    if abs(exponent - 2) > _BENT:
        found.remarks.append(
            f"its joules per token grow with the frequency to the power of {exponent:.2f}, where the model has 2"
        )
    if not std < _UNUSABLE * kappa:
        found.problems.append(
            "kappa does not show in its energy: idle power, or a constant, outweighs what work takes; set meter.energy "
            "to a sensor, or let meter.cpu_frequency set frequencies"
        )


def _fit_link(raw: Raw) -> dict[str, Quantity]:
    """seconds = latency + 8 bytes / rate."""
    num_bits, seconds = 8.0 * raw["num_bytes"], raw["seconds"]
    unknown = {"link_latency": Quantity(0.0, "s", math.inf), "link_rate": Quantity(0.0, "bit/s", math.inf)}
    if len(seconds) < 2 or not np.all(seconds > 0):
        return unknown
    fitted, stds, _ = _least_squares(np.stack([num_bits, np.ones(len(num_bits))], axis=1), seconds)
    unknown["link_latency"] = Quantity(float(fitted[1]), "s", float(stds[1]))
    if fitted[0] > 0:
        unknown["link_rate"] = Quantity(float(1 / fitted[0]), "bit/s", float(stds[0] / fitted[0] ** 2))
    return unknown


def _least_squares(columns: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors of columns, none negative, their standard deviations, and what they explain; errors are relative.

    A column that the others can replace gets an infinite standard deviation.
    """
    # relative errors, columns of unit size
    weighted = columns / measured[:, None]
    sizes = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
    scaled = weighted / sizes
    factors, _ = nnls(scaled, np.ones(len(measured)))
    residual = 1 - scaled @ factors
    freedom = max(len(measured) - columns.shape[1], 1)
    variance = max(float(residual @ residual) / freedom, _CERTAIN**2)
    stds = np.full(columns.shape[1], math.inf)
    if len(measured) > columns.shape[1] and np.linalg.matrix_rank(scaled, tol=1e-6) == columns.shape[1]:
        stds = np.sqrt(variance * np.diag(np.linalg.inv(scaled.T @ scaled)))
    return factors / sizes, stds / sizes, columns @ (factors / sizes)


def _curve(node: str, raw: Raw, found: _Found) -> Curve:
    return Curve(f"{node}: training", "tokens", "time / s", raw["tokens"], raw["seconds"], found.explained_s)
