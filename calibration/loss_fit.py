"""From what the nodes measured of their losses to the constants of the bounds, each with what it does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibration.loss_constants import (
    Estimate,
    gradient_variance,
    growth,
    mean_gradients,
    mean_of,
    polyak,
    variance_exponent,
)
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.opt.wasserstein import Sliced, sliced

_MOST_SPREAD = 0.5
"""Standard deviation, as a share of the value, beyond which smoothness or variance are of no use."""
_UNKNOWN = Estimate(math.nan, math.inf)


def fit_losses(
    nodes: Sequence[str],
    done: Sequence[tuple[Step, Raw]],
    *,
    about: str,
    quantile: float,
    knows_pretraining: bool,
    num_steps: int,
) -> Fit:
    """Constants of (A1) to (A5), see `calibration.loss_constants`.

    Args:
        nodes: names in their order.
        done: measurements of `calibration.loss_model.LossModel`.
        about: model and data, for the sentence.
        quantile: of rows that alpha1 and alpha2 hold for.
        knows_pretraining: whether states of pre-training text were to be measured.
        num_steps: measurements that make it complete.
    """
    if len(done) < num_steps:
        if done and not 0 < abs(float(done[0][1]["top"])) < math.inf:
            return Fit(
                {}, False, "the loss has no finite curvature: lower training.learning_rate, or use float32 weights"
            )
        return Fit({}, False, f"{len(done)} of {num_steps} measurements are there: go on with the calibration")
    if broken := [str(step["measure"]) for step, raw in done if not _finite(step, raw)]:
        return Fit({}, False, f"not finite: {', '.join(dict.fromkeys(broken))}; lower training.learning_rate")
    curvature, descent = _one(done, "curvature"), _one(done, "descent")
    values: dict[str, Estimate] = {}
    notes = [about]
    values["smoothness"], values["smoothness_typical"], note = _smoothness(curvature, descent)
    notes.append(note)
    pairs = _pairs(done, len(nodes))
    values["gradient_variance"], per_node, note = _variance(nodes, pairs, descent)
    values.update(per_node)
    notes.append(note)
    rng = np.random.default_rng(0)
    values["alpha1"], values["alpha2"] = _growth(descent, quantile, rng)
    told = values["alpha1"].std < values["alpha1"].value and values["alpha2"].std < values["alpha2"].value
    notes.append(
        f"alpha1 and alpha2 hold for {quantile:.0%} of the rows where the descent passed"
        + ("" if told else ", which does not tell one from the other")
    )
    values["dissimilarity"] = _largest([mean_gradients(one, descent["weights"])[1] for one in descent["products"]])
    values["pl"], _ = polyak(descent["losses"], descent["squared"])
    notes.append(
        "mu is seen from above by a short run" if math.isfinite(values["pl"].std) else "the run was too short for mu"
    )
    shifts, note = _shifts(nodes, done, rng) if knows_pretraining else (dict.fromkeys(nodes), _NO_TEXT)
    values.update({f"{name}.wasserstein": _of(shift) for name, shift in shifts.items()})
    notes.append(note)
    loose = [
        name
        for name in ("smoothness", "gradient_variance")
        if not values[name].value > 0 or values[name].std > _MOST_SPREAD * values[name].value
    ]
    if loose:
        notes.insert(0, f"{' and '.join(loose)} hardly known: measure with more rows and pairs")
    return Fit(
        values={name: Quantity(one.value, "1", one.std) for name, one in values.items()},
        passed=not loose,
        why="; ".join(notes),
        curves=_curves(pairs, values, descent, quantile),
    )


_NO_TEXT = "no text that the base model was trained on is known: name a data set with pretraining.source"


def _finite(step: Step, raw: Raw) -> bool:
    """Secants are left out: neighbours that nearly coincide have none."""
    return all(np.isfinite(array).all() for name, array in raw.items() if name != "secants")


def _one(done: Sequence[tuple[Step, Raw]], measure: str) -> Raw:
    return next(raw for step, raw in done if step["measure"] == measure)


def _pairs(done: Sequence[tuple[Step, Raw]], num_nodes: int) -> list[list[tuple[int, np.ndarray]]]:
    """For each node, batch sizes with half the squared distances of their pairs."""
    found = [(int(step["batch_size"]), raw["half"]) for step, raw in done if step["measure"] == "variance"]
    return [[(size, half[node]) for size, half in found] for node in range(num_nodes)]


def _smoothness(curvature: Raw, descent: Raw) -> tuple[Estimate, Estimate, str]:
    """The largest change of gradient over distance that was seen, and the usual one.

    The largest curvature of a sample of rows is too large in the mean, and its direction's curvature on other rows is
    too small: the difference is part of the spread.
    """
    start, end = abs(float(curvature["top"])), abs(float(descent["top"]))
    fresh = mean_of((curvature["num_rows"] / curvature["num_rows"].sum()) @ curvature["fresh"])
    by_rows = math.hypot(start - abs(fresh.value), fresh.std) / start
    seen = descent["secants"][np.isfinite(descent["secants"])]
    chords = np.concatenate([curvature["random"], curvature["along"], seen])
    tops = [(start, float(curvature["residual"])), (end, float(descent["residual"]))]
    value, residual = max([*tops, (float(chords.max()), 0.0)])
    typical = float(np.median(chords))
    low, high = np.quantile(chords, [0.25, 0.75])
    note = (
        f"the gradient changes by at most {value:.3g} of the way where it was looked at ({start:.3g} where training "
        f"begins, {end:.3g} at the end of the descent), and a global constant is at least that"
    )
    return Estimate(value, math.hypot(by_rows * value, residual)), Estimate(typical, float(high - low) / 2), note


def _variance(
    nodes: Sequence[str], pairs: Sequence[Sequence[tuple[int, np.ndarray]]], descent: Raw
) -> tuple[Estimate, dict[str, Estimate], str]:
    """sigma^2 of the noisiest node, each node's own, and whether variances fall with the batch as they should."""
    own = {}
    for index, name in enumerate(nodes):
        later = [mean_of(half[index]) for half in descent["half"]]
        own[f"{name}.gradient_variance"] = _largest([gradient_variance(pairs[index]), *later])
    # all nodes together: each knows little
    joint = [(size, np.concatenate([mine[place][1] for mine in pairs])) for place, (size, _) in enumerate(pairs[0])]
    exponent = variance_exponent(joint)
    note = "one batch size alone cannot show how the variance falls"
    if math.isfinite(exponent.std):
        note = f"the gradient's variance falls as b^-{exponent.value:.2f} (+- {exponent.std:.2f}; 1 is assumed)"
    return _largest(list(own.values())), own, note


def _growth(descent: Raw, quantile: float, rng: np.random.Generator) -> tuple[Estimate, Estimate]:
    squared = [mean_gradients(one, descent["weights"])[0] for one in descent["products"]]
    rows = [squares.ravel() for squares in descent["row_squares"]]
    return growth(squared, rows, quantile=quantile, rng=rng)


def _shifts(
    nodes: Sequence[str], done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
) -> tuple[dict[str, Sliced | None], str]:
    """Sliced distance of every node's states from those of the pre-training text."""
    states: Mapping[str, Any] = {
        ("" if step["of"] == "pretraining" else str(step["node"])): raw["states"]
        for step, raw in done
        if step["measure"] == "states"
    }
    text, found = states[""], {}
    for name in nodes:
        enough = min(len(text), len(states[name])) >= 2
        found[name] = sliced(text, states[name], rng) if enough else None
    close = [name for name, one in found.items() if one is None or one.raw < 1.5 * one.floor]
    note = "the Wasserstein distances are sliced ones of pooled states: exact for translated laws, else lower bounds"
    if close:
        note += f"; that of {', '.join(close)} cannot be told from chance"
    return found, note


def _of(shift: Sliced | None) -> Estimate:
    return _UNKNOWN if shift is None else Estimate(shift.value, shift.std)


def _largest(found: Sequence[Estimate]) -> Estimate:
    return max(found, key=lambda one: one.value)


def _curves(
    pairs: Sequence[Sequence[tuple[int, np.ndarray]]], values: Mapping[str, Estimate], descent: Raw, quantile: float
) -> tuple[Curve, ...]:
    sizes = np.array([size for size, _ in pairs[0]], np.float64)
    means = np.array([np.mean([mine[place][1].mean() for mine in pairs]) for place in range(len(sizes))])
    level = np.mean([gradient_variance(mine).value for mine in pairs])
    squared = np.array([mean_gradients(one, descent["weights"])[0].value for one in descent["products"]])
    tops = np.array([np.quantile(rows, quantile) for rows in descent["row_squares"]])
    line = values["alpha1"].value + values["alpha2"].value * np.maximum(squared, 0.0)
    steps = np.arange(len(descent["losses"]), dtype=np.float64)
    return (
        Curve(
            "variance of the gradient, mean of the nodes", "rows of a batch", "variance", sizes, means, level / sizes
        ),
        Curve("squared gradients of rows", "squared mean gradient", f"{quantile:.0%} quantile", squared, tops, line),
        Curve("descent without noise", "step", "loss, nats a token", steps, descent["losses"]),
        Curve("descent without noise", "loss, nats a token", "squared gradient", descent["losses"], descent["squared"]),
    )
