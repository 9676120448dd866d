"""On quadratic losses every constant is known: the routine finds it, or says that it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibration.access import Access
from calibration.loss_constants import (
    Estimate,
    descend,
    gradient_variance,
    growth,
    mean_gradients,
    polyak,
    secants,
    top_curvature,
    variance_exponent,
)
from calibration.loss_model import LossModel, LossModelOptions
from calibration.routine import Fit, Raw, Step
from testbed.core import messages
from testbed.core.adapter import Factor, Layout
from testbed.core.errors import LinkTimeout
from testbed.core.messages import Message, Packet
from testbed.core.specs import DataSpec, ModelSpec
from tests.benches import small_bench

BENCH = small_bench()
NAMES = BENCH.node_names
SIZE = 12
LAYOUT = Layout(factors=(Factor(name="m.lora_B.weight", shape=(SIZE, 1), kind="B", module="m"),))
SMALL = {"batch_sizes": (1, 2, 4), "pairs": 60, "point_rows": 400, "rows": 200, "states": 400, "products": 12}
"""Enough for a law that costs nothing to draw from."""


class Quadratics:
    """Answers as nodes do whose rows' losses are (w - xi)^T H (w - xi) / 2.

    Args:
        noise: standard deviation of a row's xi around its node's.
        apart: standard deviation of the nodes' around the common one.
        shift: of the fine-tuning data's states against those of pre-training.
        curvature: eigenvalues of H, from smallest to largest.
    """

    def __init__(
        self,
        *,
        noise: float = 0.5,
        apart: float = 0.3,
        shift: float = 1.0,
        curvature: tuple[float, float] = (0.5, 4.0),
        num_rows: tuple[int, ...] = (500, 400, 300),
    ) -> None:
        rng = np.random.default_rng(0)
        turned, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
        self.hessian = turned @ np.diag(np.linspace(*curvature, SIZE)) @ turned.T
        self.rows = {
            name: rng.normal(size=SIZE) * apart + noise * rng.normal(size=(count, SIZE))
            for name, count in zip(NAMES, num_rows, strict=True)
        }
        self.start = rng.normal(size=SIZE).astype(np.float32)
        self.shift = shift
        self.silent: set[str] = set()
        self.spoilt = False

    @property
    def weights(self) -> np.ndarray:
        counts = np.array([len(rows) for rows in self.rows.values()])
        return counts / counts.sum()

    @property
    def centres(self) -> np.ndarray:
        return np.stack([rows.mean(axis=0) for rows in self.rows.values()])

    def ask(
        self, requests: Mapping[str, tuple[Message, Mapping[str, np.ndarray]]], *, timeout_s: float
    ) -> dict[str, Packet]:
        return {
            name: Packet(*self.answer(message, arrays))
            for name, (message, arrays) in requests.items()
            if name not in self.silent
        }

    def answer(self, message: Message, arrays: Mapping[str, np.ndarray]) -> tuple[Message, Mapping[str, np.ndarray]]:
        match message:
            case messages.Configure(node=node):
                count = len(self.rows[node])
                empty = Layout(factors=())
                ready = messages.Ready(node=node, num_samples=count, layout=LAYOUT, frozen_layout=empty, peft_config={})
                return ready, {"initial": self.start}
            case messages.TrainTask(node=node):
                facts: dict[str, Any] = dict.fromkeys(
                    ("loss_first", "loss_last", "loss_mean", "update_mean", "update_std", "seconds", "joules"), 0.0
                )
                return messages.TrainDone(node=node, num_tokens=1, **facts), {}
            case messages.SendUpdate(node=node):
                away = (self.start - self.rows[node].mean(axis=0)).astype(np.float32)
                return messages.Update(node=node), {"update": -0.1 * away}
            case messages.MeasureGradients(node=node, blocks=blocks):
                return messages.Gradients(node=node), self.gradients(node, arrays, blocks)
            case messages.MeasureStates(node=node, pretraining=pretraining, count=count, seed=seed):
                drawn = np.random.default_rng(seed).normal(size=(count, 16))
                away = 0.0 if pretraining else self.shift / 4
                return messages.States(node=node), {"states": (drawn + away).astype(np.float32)}
        raise AssertionError(message)

    def gradients(self, node: str, arrays: Mapping[str, np.ndarray], blocks: int) -> dict[str, np.ndarray]:
        points, rows = arrays["points"].astype(np.float64), arrays["rows"]
        # [num_points, num_batches, batch_size, size]
        away = points[:, None, None] - self.rows[node][rows][None]
        pulled = away @ self.hessian
        found = pulled.mean(axis=2)
        found[:] = np.nan if self.spoilt else found
        means = found.reshape(len(points), blocks, -1, SIZE).mean(axis=2)
        direction = arrays.get("direction")
        return {
            "losses": 0.5 * np.einsum("pbri,pbri->pbr", away, pulled).mean(axis=2),
            "norms": np.sum(found**2, axis=-1),
            "products": np.einsum("pbi,pbi->pb", found[:, ::2][:, : len(rows) // 2], found[:, 1::2]),
            "slopes": np.zeros((0, 0)) if direction is None else found @ direction,
            "means": means.astype(np.float32),
        }


def access(world: Quadratics) -> Access:
    devices: Any = SimpleNamespace(link=world, node_devices={})
    return Access(BENCH, devices, "sim")


def measured(world: Quadratics, options: LossModelOptions) -> list[tuple[Step, Raw]]:
    routine, bench = LossModel(), access(world)
    done: list[tuple[Step, Raw]] = []
    while (step := routine.next_step(BENCH, options, done, np.random.default_rng([3, len(done)]))) is not None:
        done.append((step, routine.measure(bench, options, step)))
    return done


def calibrated(world: Quadratics, **options: Any) -> Fit:
    chosen = LossModelOptions(**{**SMALL, **options})
    done = measured(world, chosen)
    assert len(done) == LossModel().num_steps(BENCH, chosen)
    return LossModel().fit(BENCH, chosen, done)


@pytest.fixture(scope="module")
def world() -> Quadratics:
    return Quadratics()


@pytest.fixture(scope="module")
def fit(world: Quadratics) -> Fit:
    return calibrated(world)


def test_smoothness_is_the_largest_eigenvalue(fit: Fit) -> None:
    assert fit.passed, fit.why
    found = fit.values["smoothness"]
    assert found.value == pytest.approx(4.0, rel=0.01)
    assert abs(found.value - 4.0) < 3 * found.std + 1e-3
    assert 0.5 < fit.values["smoothness_typical"].value < 4.0


def test_gradient_variance_is_that_of_the_noisiest_node(fit: Fit, world: Quadratics) -> None:
    true = {name: np.trace(np.cov((rows @ world.hessian).T, bias=True)) for name, rows in world.rows.items()}
    for name in NAMES:
        found = fit.values[f"{name}.gradient_variance"]
        assert found.std < 0.15 * found.value
        assert abs(found.value - true[name]) < 4 * found.std
    assert fit.values["gradient_variance"].value == max(fit.values[f"{name}.gradient_variance"].value for name in NAMES)
    assert "b^-1.0" in fit.why or "b^-0.9" in fit.why


def test_dissimilarity_is_that_of_the_mean_gradients(fit: Fit, world: Quadratics) -> None:
    apart = (world.centres - world.weights @ world.centres) @ world.hessian
    true = float(world.weights @ np.sum(apart**2, axis=1))
    found = fit.values["dissimilarity"]
    assert abs(found.value - true) < 4 * found.std
    assert found.value == pytest.approx(true, rel=0.3)


def test_alpha_hold_for_the_share_of_rows_they_are_said_to(fit: Fit, world: Quadratics) -> None:
    alpha1, alpha2 = fit.values["alpha1"].value, fit.values["alpha2"].value
    assert alpha1 > 0 <= alpha2
    everybody = np.concatenate(list(world.rows.values()))
    for point in (world.start.astype(float), world.weights @ world.centres):
        rows = np.sum(((point - everybody) @ world.hessian) ** 2, axis=1)
        mean = float(np.sum((world.hessian @ (point - everybody.mean(axis=0))) ** 2))
        assert np.mean(rows <= alpha1 + alpha2 * mean) > 0.9


def test_the_shift_of_translated_laws(fit: Fit) -> None:
    for name in NAMES:
        found = fit.values[f"{name}.wasserstein"]
        assert abs(found.value - 1.0) < 3 * found.std
        assert found.std < 0.2
    assert "lower bounds" in fit.why


def test_one_law_is_not_told_from_another(world: Quadratics) -> None:
    fit = calibrated(Quadratics(shift=0.0))
    found = fit.values[f"{NAMES[0]}.wasserstein"]
    assert found.value < 2 * found.std
    assert "cannot be told from chance" in fit.why


def test_the_constant_of_a_descent_on_a_round_bowl() -> None:
    fit = calibrated(Quadratics(curvature=(2.0, 2.0)), steps=12, products=2)
    assert fit.values["smoothness"].value == pytest.approx(2.0, rel=0.01)
    anisotropic = calibrated(Quadratics(curvature=(1.0, 3.0)), steps=30)
    assert anisotropic.values["pl"].value == pytest.approx(1.0, rel=0.3)
    assert anisotropic.values["pl"].value < 2 * anisotropic.values["smoothness"].value


def test_bound_of_a_round_holds_with_the_constants_found(fit: Fit, world: Quadratics) -> None:
    """E F(w+) <= F(w) - gamma (1 - L gamma / 2) ||grad F||^2 + L gamma^2 sigma^2 / (2 b), by many noisy steps."""
    rng, size = np.random.default_rng(1), 4
    smooth, noise = fit.values["smoothness"].value, fit.values["gradient_variance"].value
    rows = np.concatenate(list(world.rows.values()))
    point, rate = world.start.astype(float), 0.5 / smooth

    def loss(at: np.ndarray) -> np.ndarray:
        away = at[..., None, :] - rows
        return 0.5 * np.einsum("...ri,...ri->...r", away @ world.hessian, away).mean(axis=-1)

    whole = world.hessian @ (point - rows.mean(axis=0))
    drawn = rows[rng.integers(len(rows), size=(2000, size))].mean(axis=1)
    after = loss(point - rate * (point - drawn) @ world.hessian).mean()
    apart = fit.values["dissimilarity"].value
    bound = (
        loss(point) - rate * (1 - smooth * rate / 2) * whole @ whole + smooth * rate**2 * (noise + apart) / (2 * size)
    )
    assert after <= bound
    assert bound - after < 0.5 * (loss(point) - after), "a bound that says nothing would hold too"


def test_cut_off_it_goes_on_with_the_same_steps(world: Quadratics) -> None:
    options = LossModelOptions(**{**SMALL, "pairs": 4})
    done = measured(world, options)
    again = LossModel().next_step(BENCH, options, done[:2], np.random.default_rng([3, 2]))
    assert again == done[2][0]
    raw = LossModel().measure(access(world), options, done[2][0])
    np.testing.assert_array_equal(raw["half"], done[2][1]["half"])
    fit = LossModel().fit(BENCH, options, done[:3])
    assert not fit.passed
    assert "3 of" in fit.why


def test_losses_that_are_not_finite() -> None:
    world, options = Quadratics(), LossModelOptions(**SMALL)
    world.spoilt = True
    done = measured(world, options)
    fit = LossModel().fit(BENCH, options, done)
    assert not fit.passed
    assert not fit.values
    assert "no finite curvature" in fit.why


def test_few_rows_are_said_to_be_few() -> None:
    fit = calibrated(Quadratics(noise=20.0, num_rows=(4, 3, 5)), pairs=6, batch_sizes=(1,), rows=4, point_rows=8)
    variance = fit.values["gradient_variance"]
    assert variance.std > 0.1 * variance.value
    assert "one batch size alone" in fit.why


def test_unknown_pre_training_text_is_said_to_be_unknown() -> None:
    fit = calibrated(Quadratics(), model=ModelSpec(base="owner/model"))
    found = fit.values[f"{NAMES[0]}.wasserstein"]
    assert np.isnan(found.value)
    assert np.isinf(found.std)
    assert "pretraining.source" in fit.why
    known = LossModelOptions(model=ModelSpec(base="owner/model"), pretraining=DataSpec(source="text.jsonl"))
    assert LossModel().num_steps(BENCH, known) == LossModel().num_steps(BENCH, LossModelOptions())


def test_a_silent_node_is_an_error() -> None:
    world = Quadratics()
    world.silent = {NAMES[1]}
    with pytest.raises(LinkTimeout, match=f"{NAMES[1]} did not answer"):
        LossModel().measure(access(world), LossModelOptions(), {"measure": "curvature", "seed": 0})


# --- the mathematics alone --------------------------------------------------------------------------------------------


def test_lanczos_finds_the_largest_by_size() -> None:
    rng = np.random.default_rng(2)
    turned, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    matrix = turned @ np.diag(np.concatenate([[-9.0], rng.uniform(-3, 6, 199)])) @ turned.T
    found = top_curvature(lambda way: matrix @ way, rng.normal(size=200), most=30)
    assert found.value == pytest.approx(-9.0, rel=1e-3)
    assert abs(found.value + 9.0) <= found.residual <= 0.01 * 9.0
    assert found.products < 30
    np.testing.assert_allclose(matrix @ found.direction, found.value * found.direction, atol=2 * found.residual)
    few = top_curvature(lambda way: matrix @ way, rng.normal(size=200), most=3)
    assert few.residual > found.residual
    assert few.products == 3


def test_lanczos_ends_in_an_invariant_subspace() -> None:
    found = top_curvature(lambda way: 3.0 * way, np.ones(5), most=10)
    assert found.value == pytest.approx(3.0)
    assert found.products == 1
    zero = top_curvature(lambda way: 0.0 * way, np.ones(5), most=10)
    assert (zero.value, zero.residual) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no direction"):
        top_curvature(lambda way: way, np.zeros(3), most=2)
    with pytest.raises(ValueError, match="not finite"):
        top_curvature(lambda way: way * np.nan, np.ones(3), most=2)


def test_a_descent_slows_where_the_curvature_grows() -> None:
    """(w^2 - 1)^2 / 4 has curvature 2 at its minimum; from 1.5 with a rate ten times too large for it."""
    points, losses, gradients = descend(
        lambda w: (float(((w**2 - 1) ** 2).sum() / 4), w**3 - w), np.array([0.1]), rate=1.01, steps=60
    )
    assert losses[-1] < 1e-6
    assert np.nanmax(secants(points, gradients)) <= 2.5
    assert secants(np.zeros((2, 3)), np.zeros((2, 3))).tolist() == [pytest.approx(np.nan, nan_ok=True)]


def test_variance_estimates_cover_the_truth() -> None:
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pairs = []
        for size in (1, 2, 4, 8):
            # [num_pairs, 2, batch_size, dimension]
            means = rng.normal(0, 1.5, size=(12, 2, size, 30)).mean(axis=2)
            pairs.append((size, np.sum((means[:, 0] - means[:, 1]) ** 2, axis=1) / 2))
        found = gradient_variance(pairs)
        inside += abs(found.value - 30 * 1.5**2) < 2 * found.std
        assert abs(variance_exponent(pairs).value - 1) < 4 * variance_exponent(pairs).std
    assert inside >= 35


def test_alpha_of_a_line_that_is_known() -> None:
    rng = np.random.default_rng(5)
    x = np.array([0.1, 1.0, 4.0, 9.0])
    rows = [rng.uniform(0, 1, size=4000) * (2.0 + 3.0 * value) for value in x]
    alpha1, alpha2 = growth([Estimate(value, 0.0) for value in x], rows, quantile=1.0, rng=rng)
    assert alpha1.value == pytest.approx(2.0, abs=0.1)
    assert alpha2.value == pytest.approx(3.0, abs=0.1)
    assert max(alpha1.std, alpha2.std) < 0.2


def test_gradients_of_one_length_do_not_tell_alpha1_from_alpha2() -> None:
    rng = np.random.default_rng(6)
    rows = [rng.uniform(0, 5, size=500) for _ in range(3)]
    alpha1, alpha2 = growth([Estimate(2.0, 0.0)] * 3, rows, quantile=0.95, rng=rng)
    assert alpha1.std > 0.9 * 4.7
    assert alpha2.std > 0.9 * 4.7 / 2


def test_a_mean_gradient_lost_in_noise_excuses_nothing() -> None:
    rng = np.random.default_rng(6)
    rows = [rng.uniform(0, 5, size=500) for _ in range(3)]
    alpha1, alpha2 = growth([Estimate(value, 0.02) for value in (0.01, 0.02, 0.03)], rows, quantile=0.95, rng=rng)
    assert alpha1.value == pytest.approx(4.75, rel=0.03)
    assert alpha2.value < alpha2.std


def test_polyak_of_a_round_bowl_and_of_nothing() -> None:
    losses = 0.7 + np.geomspace(5, 1e-3, 20)
    (mu, lowest) = polyak(losses, 2 * 1.3 * (losses - 0.7))
    assert mu.value == pytest.approx(1.3, rel=1e-3)
    assert lowest.value == pytest.approx(0.7, abs=1e-4)
    for squared in (np.ones(20), np.full(20, np.nan), losses[::-1].copy()):
        assert np.isinf(polyak(losses, squared)[0].std)


def test_mean_gradients_have_no_share_of_the_noise() -> None:
    rng = np.random.default_rng(7)
    weights, true = np.array([0.5, 0.3, 0.2]), 0.1 * rng.normal(size=(3, 50))
    mean = weights @ true
    squared, apart = float(mean @ mean), float(weights @ np.sum((true - mean) ** 2, axis=1))
    found = []
    for _ in range(300):
        noisy = true[:, None] + 0.2 * rng.normal(size=(3, 4, 50))
        found.append(mean_gradients(np.einsum("mbi,nci->mbnc", noisy, noisy), weights))
    for place, truth in enumerate((squared, apart)):
        values = np.array([one[place].value for one in found])
        stds = np.array([one[place].std for one in found])
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(300)
        # of few blocks a jackknife errs on the large side
        assert 0.9 * values.std() < np.sqrt(np.mean(stds**2)) < 2 * values.std()
