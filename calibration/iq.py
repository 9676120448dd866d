"""DC offsets, carrier leaks and mirror images of all receivers and transmitters, from combs that nodes send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from calibration.access import Access
from calibration.reception import burst_power_w, require_samples, saturated, why_unheard
from calibration.routine import Curve, Fit, Quantity, Raw, Step
from testbed.core.bench import BenchSpec
from testbed.core.specs import Spec
from testbed.core.units import to_db
from testbed.phy.combs import Comb, burst_start
from testbed.phy.widely_linear import ImageEquations, estimate_blind, image_equations

_MARGIN = 64  # samples at the edges of a comb that filters and delays spoil
_WIDEST_OFFSET = 1 / 32  # of the sample rate: where carriers are looked for
_FAINTEST = 1e-12  # square-root watts: far below thermal noise, for worlds without any
_HARMLESS = 0.1  # amplitude of what an image may be off, over that of the noise
_ALONE = 5.0  # by how much an image is known worse than alone, where the images fall on one place
_DEPARTURE = 6.0  # standard deviations between two halves of the data that chance does not explain


class IqOptions(Spec):
    """What may be chosen."""

    num_tones: int = Field(12, ge=12, le=32, description="tones of a comb")
    num_samples: int = Field(16384, ge=2048, le=1 << 18, description="of a comb, and as many of its mirror")
    repeats: int = Field(2, ge=2, description="bursts of every node; halves of them check each other")
    power_share: float = Field(0.25, gt=0, le=1, description="share of each node's highest average power")
    worst_image: float = Field(
        1e-3,
        gt=0,
        description="largest standard deviation of an image's amplitude that may be used; 1e-3 is -60 dB; more where "
        "it stays 20 dB below the noise",
    )


@dataclass(frozen=True)
class _Unknowns:
    """Solved: receivers' images, transmitters' images and leaks, with E|error|^2 = std^2."""

    rx_image: np.ndarray
    tx_image: np.ndarray
    leak: np.ndarray
    rx_std: np.ndarray
    tx_std: np.ndarray
    leak_std: np.ndarray


class Iq:
    """Each node sends a comb and then its mirror; all receivers' and transmitters' images are solved for together.

    See `testbed.phy.widely_linear.image_equations`. `<node>.leak` is in the node's nominal square-root watts, as
    ordered; `antenna-<n>.dc` as delivered.
    """

    name: ClassVar[str] = "iq"
    about: ClassVar[str] = "DC offsets, carrier leaks and mirror images of all radios"
    Options: ClassVar[type[Spec]] = IqOptions
    validity: ClassVar[tuple[str, ...]] = ("frequency_hz", "sample_rate_hz", "gain")
    lasts_s: ClassVar[float] = 7 * 86400.0

    def next_step(
        self, bench: BenchSpec, options: IqOptions, done: Sequence[tuple[Step, Raw]], rng: np.random.Generator
    ) -> Step | None:
        """One silent capture, then every node in turn, again and again."""
        if not done:
            return {"node": None}
        turn, index = divmod(len(done) - 1, len(bench.node_names))
        return {"node": bench.node_names[index], "repeat": turn} if turn < options.repeats else None

    def num_steps(self, bench: BenchSpec, options: IqOptions) -> int:
        """How many there will be."""
        return 1 + options.repeats * len(bench.node_names)

    def measure(self, access: Access, options: IqOptions, step: Step) -> Raw:
        """One capture: of nobody, or of one node's comb and its mirror."""
        require_samples(access.bench)
        node, length = step["node"], options.num_samples
        if node is None:
            return {"samples": access.capture(2 * length).samples}
        heard = access.capture(2 * length, {node: _burst(access.bench, options, node)})
        return {"samples": heard.samples, "guard": np.array(heard.guard), "sent": np.array(node in heard.sent)}

    def fit(self, bench: BenchSpec, options: IqOptions, done: Sequence[tuple[Step, Raw]]) -> Fit:
        """All images, leaks and offsets, and what is left of the images where one half of the data corrects the other.

        Every standard deviation covers the noise and the disagreement of the halves, whichever is larger.
        """
        heard: list[tuple[int, int, ImageEquations]] = []
        silence: np.ndarray | None = None
        for step, raw in done:
            samples = raw["samples"]
            if not np.isfinite(samples).all() or (step["node"] is not None and not np.any(samples)):
                return _refused(f"the capture {_words(step)} is empty; check the receiver, then start again")
            if saturated(samples):
                return _refused(
                    f"the receiver saturates in the capture {_words(step)}; lower gain_db of array.radios, or this "
                    "calibration's option power_share"
                )
            if step["node"] is None:
                silence = samples
                continue
            if not raw["sent"]:
                return _refused(f"{step['node']} did not answer; check the node, then start again")
            equations = _equations(bench, options, step["node"], raw)
            if not equations.found:
                return _refused(f"{step['node']} was not heard: {why_unheard(samples, bench)}")
            heard.append((bench.node_names.index(step["node"]), int(step["repeat"]), equations))
        if silence is None or {index for index, _, _ in heard} != set(range(len(bench.node_names))):
            return _refused("not every node has been measured; resume the calibration")
        return _result(bench, options, heard, silence)


def _burst(bench: BenchSpec, options: IqOptions, node: str) -> np.ndarray:
    """A node's comb and its mirror, shape [2 num_samples], complex64."""
    comb, length = _comb(bench, options, node), options.num_samples
    return np.concatenate([comb.samples(length), comb.mirrored.samples(length, first=length)])


def _comb(bench: BenchSpec, options: IqOptions, node: str) -> Comb:
    return Comb.of(options.num_tones, burst_power_w(bench, node, options.power_share))


def _equations(bench: BenchSpec, options: IqOptions, node: str, raw: Raw) -> ImageEquations:
    """What a burst tells; where bursts may start very early or late, the burst is found by its energy."""
    samples, guard, length = raw["samples"], int(raw["guard"]), options.num_samples
    start, margin = guard, guard + _MARGIN
    if margin > length // 8:
        start, margin = burst_start(samples, 2 * length), length // 8
    parts = (
        samples[:, start + margin : start + length - margin],
        samples[:, start + length + margin : start + 2 * length - margin],
    )
    return image_equations(
        parts, (margin, length + margin), _comb(bench, options, node), limit=_WIDEST_OFFSET, latest=margin
    )


def _solved(num_nodes: int, heard: Sequence[tuple[int, int, ImageEquations]], silence: np.ndarray) -> _Unknowns:
    """Normal equations of all bursts and of the silence put together: [receivers' images, dc, transmitters', leaks]."""
    num_antennas = len(silence)
    size = 2 * num_antennas + 2 * num_nodes
    matrix, right = np.zeros((size, size), np.complex128), np.zeros(size, np.complex128)
    for node, _, equations in heard:
        for antenna in range(num_antennas):
            places = np.array(
                [antenna, 2 * num_antennas + node, 2 * num_antennas + num_nodes + node, num_antennas + antenna]
            )
            matrix[np.ix_(places, places)] += equations.matrix[antenna]
            right[places] += equations.right[antenna]
    quiet = estimate_blind(silence)
    weight = 1 / np.maximum(quiet.dc_std, _FAINTEST) ** 2
    index = num_antennas + np.arange(num_antennas)
    matrix[index, index] += weight
    right[index] += weight * quiet.dc
    # columns of unlike units: images are ratios, leaks and offsets square-root watts
    scale = 1 / np.sqrt(np.diagonal(matrix).real)
    balanced = matrix * scale[:, None] * scale
    values, vectors = np.linalg.eigh(balanced)
    values = np.maximum(values, 1e-12)
    covariance = (vectors / values) @ vectors.conj().T
    found = scale * (covariance @ (scale * right))
    std = scale * np.sqrt(np.diagonal(covariance).real)
    parts = np.split(found, [num_antennas, 2 * num_antennas, 2 * num_antennas + num_nodes])
    stds = np.split(std, [num_antennas, 2 * num_antennas, 2 * num_antennas + num_nodes])
    return _Unknowns(parts[0], parts[2], parts[3], stds[0], stds[2], stds[3])


def _result(
    bench: BenchSpec, options: IqOptions, heard: Sequence[tuple[int, int, ImageEquations]], silence: np.ndarray
) -> Fit:
    num_nodes = len(bench.node_names)
    everything = _solved(num_nodes, heard, silence)
    halves = [_solved(num_nodes, [item for item in heard if item[1] % 2 == odd], silence) for odd in (0, 1)]
    rx_left, tx_left = abs(halves[0].rx_image - halves[1].rx_image), abs(halves[0].tx_image - halves[1].tx_image)
    rx_std = _widened(everything.rx_std, rx_left, halves[0].rx_std, halves[1].rx_std)
    tx_std = _widened(everything.tx_std, tx_left, halves[0].tx_std, halves[1].tx_std)
    leaks = abs(halves[0].leak - halves[1].leak)
    leak_std = _widened(everything.leak_std, leaks, halves[0].leak_std, halves[1].leak_std)
    values: dict[str, Quantity] = {}
    # of the silence alone: where oscillators agree, mirrored leaks lie on the offsets as well
    quiet = estimate_blind(silence)
    for antenna, (image, std, left) in enumerate(zip(everything.rx_image, rx_std, rx_left, strict=True)):
        name = f"antenna-{antenna}"
        values[f"{name}.dc"] = _complex(quiet.dc[antenna], quiet.dc_std[antenna], "W^0.5")
        values.update(_image(name, image, std, left))
    for index, node in enumerate(bench.node_names):
        values.update(_image(node, everything.tx_image[index], tx_std[index], tx_left[index]))
        values[f"{node}.leak"] = _complex(everything.leak[index], leak_std[index], "W^0.5")
    names = [f"antenna-{antenna}" for antenna in range(len(rx_std))] + list(bench.node_names)
    stds = np.concatenate([rx_std, tx_std])
    chance = np.concatenate([everything.rx_std, everything.tx_std])
    worst = int(np.argmax(stds / _tolerated(bench, options, heard)))
    before = np.abs(np.concatenate([everything.rx_image, everything.tx_image])) ** 2
    after = np.concatenate([rx_left, tx_left]) ** 2
    curves = (_curve(before, after, stds),)
    if np.any(stds > _tolerated(bench, options, heard)):
        return Fit(values, False, _too_vague(names[worst], float(stds[worst]), float(chance[worst]), heard), curves)
    return Fit(
        values,
        True,
        f"images are known to {to_db(float(stds.max()) ** 2):.1f} dB of the signal or better; they were at "
        f"{to_db(float(before.max())):.1f} dB or lower, and half of the data leaves {to_db(float(after.max())):.1f} dB "
        "of them in the other half",
        curves,
    )


def _tolerated(bench: BenchSpec, options: IqOptions, heard: Sequence[tuple[int, int, ImageEquations]]) -> np.ndarray:
    """Standard deviations that do no harm, receivers first: those asked for, or 20 dB below the noise at full power."""
    num_antennas = len(heard[0][2].matrix)
    ratios = np.zeros((num_antennas, len(bench.node_names)))
    for node, _, equations in heard:
        for fit in equations.fits:
            ratios[:, node] = np.maximum(ratios[:, node], fit.power_w / np.maximum(fit.noise_w, 1e-300))
    strongest = np.concatenate([ratios.max(axis=1), ratios.max(axis=0)]) / options.power_share
    return np.maximum(options.worst_image, _HARMLESS / np.sqrt(np.maximum(strongest, 1e-12)))


def _too_vague(name: str, std: float, chance: float, heard: Sequence[tuple[int, int, ImageEquations]]) -> str:
    """Why images are not known well enough: too little signal, or nothing that tells the images apart."""
    alone = max(
        float(np.max(1 / np.sqrt(np.diagonal(item.matrix, axis1=1, axis2=2)[:, :2].real))) for *_, item in heard
    )
    said = f"the image of {name} is known to {to_db(std**2):.1f} dB only"
    if chance > _ALONE * alone:
        return (
            f"{said}: the oscillators agree, so the images of transmitters and receivers fall on one place, and the "
            "channels' phases are too much alike to tell them apart; detune a node's crystal, use more nodes or "
            "antennas, or move the antennas"
        )
    if std > chance:
        return f"{said}: one half of the data contradicts the other; something moves, or somebody else sends"
    return f"{said}: the signal is too weak; raise num_samples, repeats or power_share"


def _widened(std: np.ndarray, apart: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Standard deviations that also cover what the two halves of the data disagree beyond chance."""
    return np.where(apart > _DEPARTURE * np.hypot(first, second), np.maximum(std, apart / 2), std)


def _image(name: str, image: complex, std: float, left: float) -> dict[str, Quantity]:
    """An image, and the power it has before and after it is corrected by half of the data."""
    size = float(abs(image))
    return {
        f"{name}.image": _complex(image, std, "1"),
        f"{name}.image_before": Quantity(size**2, "1", 2 * size * float(std)),
        f"{name}.image_after": Quantity(float(left) ** 2, "1", 2 * float(left) * float(std)),
    }


def _complex(value: complex, std: float, unit: str) -> Quantity:
    """[re, im]; of a circular error each part has 1 / sqrt(2) of its standard deviation."""
    part = float(std) / math.sqrt(2)
    return Quantity((float(value.real), float(value.imag)), unit, (part, part))


def _curve(before: np.ndarray, after: np.ndarray, stds: np.ndarray) -> Curve:
    floor = np.maximum(after, stds**2 / 100)
    return Curve(
        "Images before (measured) and after correction (fitted)",
        "receivers, then transmitters",
        "power of the image / dB of the signal",
        np.arange(len(before), dtype=np.float64),
        10 * np.log10(np.maximum(before, 1e-12)),
        10 * np.log10(np.maximum(floor, 1e-12)),
    )


def _words(step: Step) -> str:
    return "of nobody" if step["node"] is None else f"of {step['node']}"


def _refused(why: str) -> Fit:
    return Fit({}, False, why)
