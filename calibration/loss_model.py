"""loss-model: the constants that convergence bounds take for granted, from short runs on the actual model and data.

Smoothness L, gradient variance sigma^2, alpha1 and alpha2, the Polyak-Lojasiewicz constant mu, the dissimilarity of the
nodes, and how far each node's data are from what the base model was trained on. Bounds ask for constants that hold
everywhere; a run sees the region that it passes, so largest values are reported, and called what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.loss_constants import descend, secants, top_curvature
from calibration.loss_fit import fit_losses
from calibration.losses import Losses
from calibration.routine import Fit, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, Spec, TrainingSpec

_ALONG = (0.25, 0.5, 1.0)
"""Shares of a round's update at which the gradient is looked at."""


class LossModelOptions(Spec):
    """Model, adapter, data and training as in the experiment file, and how much is measured."""

    seed: int = Field(0, ge=0, description="of the experiment: partition, adapter, order of rows")
    model: ModelSpec = ModelSpec()
    lora: LoraSpec = LoraSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    pretraining: DataSpec | None = Field(
        None, description="a sample of what the base model was trained on; known by itself for builtin models"
    )
    rows: int = Field(48, ge=2, description="rows of each node that stand for its loss in curvature and descent")
    batch_sizes: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1, description="of the gradient's variance")
    pairs: int = Field(12, ge=4, description="pairs of batches for each batch size and node")
    directions: int = Field(4, ge=1, description="random directions along which the gradient's change is measured")
    products: int = Field(8, ge=2, description="Hessian products for the largest curvature, at most")
    probe_share: float = Field(
        0.02, gt=0, le=1, description="step of their differences, as a share of a round's update"
    )
    steps: int = Field(12, ge=4, description="steps of the descent without noise")
    points: int = Field(4, ge=2, description="points of the descent at which single rows are measured")
    point_rows: int = Field(48, ge=8, description="rows of each node there")
    quantile: float = Field(0.95, gt=0, le=1, description="of rows that alpha1 and alpha2 hold for")
    states: int = Field(
        2000, ge=2, description="texts of each node, and of the pre-training, whose states are compared"
    )

    def job(self, bench: BenchSpec) -> JobSpec:
        """What the nodes load."""
        return JobSpec(
            seed=self.seed,
            nodes=bench.node_names,
            model=self.model,
            lora=self.lora,
            data=self.data,
            training=self.training,
        )

    @property
    def knows_pretraining(self) -> bool:
        """Whether there is text that the base model was trained on."""
        return self.pretraining is not None or self.model.base.startswith("builtin:")


@final
class LossModel:
    """Constants of (A1) to (A5), see `calibration.loss_constants`, measured on the nodes' models; touches no radio."""

    name: ClassVar[str] = "loss-model"
    about: ClassVar[str] = "smoothness, gradient noise and data shift of the model and data that the nodes train"
    Options: ClassVar[type[Spec]] = LossModelOptions
    validity: ClassVar[tuple[str, ...]] = ()
    lasts_s: ClassVar[float] = 365 * 86400.0

    def next_step(
        self, bench: BenchSpec, options: LossModelOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """Curvature first: it gives the step size of the descent. None too where it is not finite."""
        seed = int(rng.integers(2**31))
        plan: list[dict[str, Any]] = [{"measure": "curvature"}]
        plan += [{"measure": "variance", "batch_size": size} for size in options.batch_sizes]
        if done:
            top = abs(float(done[0][1]["top"]))
            if not (np.isfinite(top) and top > 0):
                return None
            plan.append({"measure": "descent", "rate": 1.0 / top})
        if options.knows_pretraining:
            plan.append({"measure": "states", "of": "pretraining", "node": bench.node_names[0]})
            plan += [{"measure": "states", "of": "rows", "node": name} for name in bench.node_names]
        return {**plan[len(done)], "seed": seed} if len(done) < len(plan) else None

    def num_steps(self, bench: BenchSpec, options: LossModelOptions) -> int:
        """Curvature, each batch size, the descent, and the states of everybody."""
        return 2 + len(options.batch_sizes) + (1 + len(bench.node_names) if options.knows_pretraining else 0)

    def measure(self, access: Access, options: LossModelOptions, step: Step) -> Raw:
        """Ask the nodes; every step begins with the same adapter and depends on nothing but its own words."""
        losses = Losses.of(access, options.job(access.bench))
        rng = np.random.default_rng(int(step["seed"]))
        match step["measure"]:
            case "curvature":
                return _curvature(losses, options, rng)
            case "variance":
                rows = losses.drawn(rng, 2 * options.pairs, int(step["batch_size"]))
                found = losses.measured(losses.start[None], rows)
                return {"half": np.stack([_half_distances(found[name])[0] for name in losses.num_rows])}
            case "descent":
                return _descent(losses, options, float(step["rate"]), rng)
        states = losses.states(
            str(step["node"]),
            options.states,
            int(step["seed"]),
            pretraining=step["of"] == "pretraining",
            source=options.pretraining,
        )
        return {"states": states}

    def fit(self, bench: BenchSpec, options: LossModelOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """See `calibration.loss_fit`."""
        return fit_losses(
            bench.node_names,
            done,
            about=f"{options.model.base} with rank {options.lora.rank} on {options.data.source}",
            quantile=options.quantile,
            knows_pretraining=options.knows_pretraining,
            num_steps=self.num_steps(bench, options),
        )


def _curvature(losses: Losses, options: LossModelOptions, rng: np.random.Generator) -> Raw:
    """Largest curvature where training begins, and how the gradient changes over the length of a round's update."""
    start, update = losses.start, losses.update()
    length = float(np.linalg.norm(update))
    rows = losses.subset(rng, options.rows, options.training.batch_size)
    top, residual, direction = _top(losses, start, update, rows, options.probe_share * length, options.products, rng)
    # the same curvature on rows that had no part in finding the direction
    step = options.probe_share * length * direction
    fresh = losses.drawn(rng, max(4, options.rows // options.training.batch_size), options.training.batch_size)
    found = losses.measured(np.stack([start + step, start - step]), fresh, direction=direction)
    slopes = np.stack([found[name]["slopes"] for name in losses.num_rows])
    ways = rng.standard_normal((options.directions, len(start)))
    ways *= length / np.linalg.norm(ways, axis=1, keepdims=True)
    points = start + np.concatenate([np.zeros((1, len(start))), ways, np.outer(_ALONG, update)])
    values, gradients = losses.whole(points, rows)
    changes = np.linalg.norm(gradients[1:] - gradients[0], axis=1) / np.linalg.norm(points[1:] - start, axis=1)
    return {
        "top": np.float64(top),
        "residual": np.float64(residual),
        # [num_nodes, num_batches]
        "fresh": (slopes[:, 0] - slopes[:, 1]) / (2 * options.probe_share * length),
        "random": changes[: options.directions],
        "along": changes[options.directions :],
        "update_length": np.float64(length),
        "loss": np.float64(values[0]),
        "gradient_length": np.float64(np.linalg.norm(gradients[0])),
        "num_rows": np.array(list(losses.num_rows.values())),
    }


def _descent(losses: Losses, options: LossModelOptions, rate: float, rng: np.random.Generator) -> Raw:
    """Gradient descent on a subset of the rows, and single fresh rows at some of its points."""
    rows = losses.subset(rng, options.rows, options.training.batch_size)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        values, gradients = losses.whole(point[None], rows)
        return float(values[0]), gradients[0]

    points, values, gradients = descend(loss, losses.start, rate=rate, steps=options.steps)
    length = float(np.linalg.norm(points[-1] - points[0]))
    top, residual, _ = _top(
        losses, points[-1], points[-1] - points[0], rows, options.probe_share * length, options.products, rng
    )
    picked = np.unique(np.linspace(0, options.steps, options.points).round().astype(int))
    found = losses.measured(points[picked], losses.drawn(rng, options.point_rows // 4 * 4, 1), blocks=4)
    parts = [found[name] for name in losses.num_rows]
    # [num_points, num_nodes, blocks, size]
    means = np.stack([part["means"].astype(np.float64) for part in parts], axis=1)
    return {
        "losses": values,
        "squared": np.sum(gradients**2, axis=1),
        "secants": secants(points, gradients),
        "top": np.float64(top),
        "residual": np.float64(residual),
        "picked": picked,
        # [num_points, num_nodes, num_rows]
        "row_squares": np.stack([part["norms"] for part in parts], axis=1),
        "half": np.stack([_half_distances(part) for part in parts], axis=1),
        # [num_points, num_nodes, blocks, num_nodes, blocks]
        "products": np.einsum("pmbi,pnci->pmbnc", means, means, optimize=True),
        "weights": losses.weights,
    }


def _top(
    losses: Losses,
    point: np.ndarray,
    toward: np.ndarray,
    rows: Raw,
    step: float,
    most: int,
    rng: np.random.Generator,
) -> tuple[float, float, np.ndarray]:
    """Largest curvature at a point: value, residual and unit direction; NaN where gradients are not finite."""

    def product(way: np.ndarray) -> np.ndarray:
        _, gradients = losses.whole(np.stack([point + step * way, point - step * way]), rows)
        return np.asarray((gradients[0] - gradients[1]) / (2 * step))

    # training's own direction, and all others: the wanted one is orthogonal to neither
    other = rng.standard_normal(len(point))
    try:
        found = top_curvature(product, toward / np.linalg.norm(toward) + other / np.linalg.norm(other), most=most)
    except ValueError:
        return np.nan, np.nan, np.zeros_like(point)
    return found.value, found.residual, found.direction


def _half_distances(found: Raw) -> np.ndarray:
    """Half the squared distance of the gradients of two batches each, shape [num_points, num_pairs]."""
    norms = found["norms"]
    return np.asarray((norms[:, ::2] + norms[:, 1::2]) / 2 - found["products"])
