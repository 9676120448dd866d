"""Benches, orders and whole trials whose outcome a closed form predicts; for tests and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.orders import Analogue, Collect, MajorityVote, Sound, Sounding
from testbed.core.units import dbm_to_w
from testbed.phy import coherence
from testbed.phy.combiner import max_min_combiner
from testbed.phy.ofdm import in_band_noise_w
from testbed.phy.overair import aggregation_mse
from testbed.phy.precoding import uniform_forcing
from tests.loopback import loopback

SPACING_M = 0.15
"""Between two antennas: more than a wavelength, so that scattered waves reach them nearly independently."""


def air_bench(num_nodes: int, num_antennas: int, *, level: str = "symbols", **changes: Any) -> BenchSpec:
    """A line of fixed antennas in a room of scattered waves.

    Args:
        num_nodes: K.
        num_antennas: N.
        level: of the waveform.
        changes: keys of `[world]`; those of `[world.impairments]`, `[waveform]`, `[radio]` in mappings of that name.
    """
    parts = {name: changes.pop(name, {}) for name in ("waveform", "radio", "impairments")}
    positions = changes.pop("positions_m", None)
    nodes = (
        [{"count": num_nodes}]
        if positions is None
        else [{"name": f"node-{index:02d}", "position_m": list(place)} for index, place in enumerate(positions)]
    )
    return BenchSpec.model_validate(
        {
            "name": "air",
            "waveform": {"level": level, **parts["waveform"]},
            "radio": parts["radio"],
            "array": {
                "origin_m": [4.0, 0.0, 1.0],
                "region_m": [[0.0, SPACING_M * num_antennas], [0.0, 1.0]],
                "min_spacing_m": 0.06,
                "antennas": [{"home_m": [SPACING_M * index, 0.0]} for index in range(num_antennas)],
            },
            "nodes": nodes,
            "world": {
                "model": "isotropic",
                "line_of_sight": False,
                "num_paths": 16,
                "impairments": parts["impairments"],
                **changes,
            },
        }
    )


def circle_m(num_nodes: int, radius_m: float = 3.0) -> list[tuple[float, float, float]]:
    """Places equally far from the array of `air_bench`, so that all nodes have one mean gain."""
    angles = np.linspace(0.2, np.pi - 0.2, num_nodes)
    return [(4.0 + radius_m * float(np.cos(a)), radius_m * float(np.sin(a)), 1.0) for a in angles]


def updates_of(bench: BenchSpec, num_values: int, seed: int) -> dict[str, np.ndarray]:
    """Independent Gaussian updates with unlike means and spreads, float32."""
    generator = np.random.default_rng(seed)
    updates = {}
    for name in bench.node_names:
        mean, std = generator.normal(0.0, 1e-3), generator.uniform(1e-3, 3e-3)
        updates[name] = generator.standard_normal(num_values, dtype=np.float32) * np.float32(std) + np.float32(mean)
    return updates


def alike_updates(bench: BenchSpec, num_values: int, seed: int) -> dict[str, np.ndarray]:
    """Independent standard normal updates, float32."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(num_values, dtype=np.float32) for name in bench.node_names}


@dataclass(frozen=True)
class Facts:
    """What each node is and holds, in the order of `names`.

    Attributes:
        weight: D_m; mean, std: of the update; power_w: highest average power; each of shape [num_nodes].
    """

    names: tuple[str, ...]
    weight: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    power_w: np.ndarray

    @classmethod
    def of(
        cls, bench: BenchSpec, updates: dict[str, np.ndarray], names: Sequence[str] = (), *, alike: bool = False
    ) -> Facts:
        """Weights 1, 2, 3, 1, 2, ..., or all 1 where nodes are alike."""
        names = tuple(names) or tuple(updates)
        boards = {board.name: board for board in bench.boards}
        return cls(
            names,
            weight=np.ones(len(names)) if alike else 1.0 + np.arange(len(names)) % 3,
            mean=np.array([updates[name].mean(dtype=np.float64) for name in names]),
            std=np.array([updates[name].std(dtype=np.float64) for name in names]),
            power_w=np.array([dbm_to_w(boards[name].max_power_dbm) for name in names]),
        )


def true_channel(bench: BenchSpec, seed: int, names: Sequence[str], at_s: float = 0.0) -> np.ndarray:
    """What the room does to a node's signal, shape [num_antennas, num_nodes], complex128."""
    home_m = np.array([antenna.home_m for antenna in bench.array.antennas])
    return World(bench, seed).channels(tuple(names), home_m, np.array([at_s]))[0]


def noise_of(bench: BenchSpec, seed: int = 0) -> float:
    """Noise power of one data symbol and antenna, watts."""
    return in_band_noise_w(World(bench, seed).noise_w, bench.waveform)


def forced(
    channel: np.ndarray,
    facts: Facts,
    *,
    noise_w: float,
    num_values: int,
    back_off: float = 1.0,
    sounding: Sounding | None = None,
    clip: float | None = None,
) -> Collect:
    """Uniform forcing for a channel that is known or was sounded, and the error that noise leaves in closed form.

    Args:
        channel: of `facts.names`, shape [num_antennas, num_nodes].
        facts: of the nodes.
        noise_w: of one symbol.
        num_values: d.
        back_off: every node's limit is divided by it: a linear step of the signal-to-noise ratio.
        sounding: whose carrier offsets the nodes take out.
        clip: highest power of a sample over the average that the nodes let pass, linear.
    """
    combiner = max_min_combiner(channel * np.sqrt(facts.power_w) / (facts.weight * facts.std))
    # a part of the last block and pilots of unit power leave the average of a burst a little off
    limit_w = facts.power_w / back_off * 0.98
    forcing = uniform_forcing(channel, combiner, facts.weight, facts.std, limit_w)
    uplinks = {}
    for index, name in enumerate(facts.names):
        offset: dict[str, float] = {}
        if sounding is not None:
            at = sounding.nodes.index(name)
            offset = {"cfo_hz": float(sounding.cfo_hz[at]), "cfo_from_s": float(sounding.heard_s[at])}
        uplinks[name] = Analogue(
            weight=float(facts.weight[index]),
            precoder=complex(forcing.precoder[index]),
            mean=float(facts.mean[index]),
            std=float(facts.std[index]),
            clip=clip,
            **offset,
        )
    expected = aggregation_mse(num_values, noise_w, forcing.scale, float(facts.weight.sum()))
    return Collect(uplinks, combiner, forcing.scale, expected_mse=expected)


def votes(names: Sequence[str], power_w: float) -> Collect:
    """Non-coherent votes of all these nodes."""
    return Collect({name: MajorityVote(power_w) for name in names})


def weighted(facts: Facts, updates: dict[str, np.ndarray]) -> np.ndarray:
    """sum_m D_m g_m / D_S, shape [num_values], float64."""
    stacked = np.stack([updates[name] for name in facts.names]).astype(np.float64)
    mean: np.ndarray = facts.weight @ stacked / facts.weight.sum()
    return mean


# --- trials ---------------------------------------------------------------------------------------------------------


def sounded_error(
    bench: BenchSpec, num_values: int, seed: int, folder: Path, num_pilots: int = 16, *, each_antenna: bool = False
) -> tuple[float, float]:
    """Squared error of one sounded and forced mean over its closed form, and the pilots' coherence.

    The estimate of the channel adds at most K / (192 num_pilots) of the noise's error: 0.65 % for 20 nodes, 16 blocks.
    With `each_antenna` the combiner is given subcarrier by subcarrier, so that the receiver must read every antenna.
    """
    updates = updates_of(bench, num_values, seed)
    facts = Facts.of(bench, updates)
    with loopback(bench, updates, folder, seed) as air:
        air.live.audit = False
        sounding = air.answer(Sound(num_pilots=num_pilots))
        assert isinstance(sounding, Sounding)
        assert 0.9 < sounding.noise_w / noise_of(bench) < 1.1
        order = forced(sounding.channel, facts, noise_w=noise_of(bench), num_values=num_values, sounding=sounding)
        if each_antenna:
            assert order.combiner is not None
            order = replace(order, combiner=np.tile(order.combiner, (bench.waveform.num_active, 1)))
        collected = air.collect(order)
    assert collected.lost == 0
    assert collected.missing == ()
    error = collected.mean - weighted(facts, updates)
    assert order.expected_mse is not None
    # unbiased: the mean error of all values is within five of its standard deviations
    assert abs(error.mean()) < 5 * math.sqrt(order.expected_mse) / num_values
    return float(error @ error) / order.expected_mse, float(collected.coherence or 0.0)


def quiet_bench(num_nodes: int, level: str = "samples", **parts: Any) -> BenchSpec:
    """One antenna, no noise."""
    return air_bench(num_nodes, 1, level=level, temperature_k=0.0, **parts)


def floors(
    bench: BenchSpec, num_values: int, trials: int, seed: int, folder: Path, clip: float | None = None
) -> np.ndarray:
    """Squared errors of means over a known channel without noise, in units of the sum's power, shape [trials]."""
    updates = alike_updates(bench, num_values, seed)
    facts = Facts.of(bench, updates, alike=True)
    truth = weighted(facts, updates)
    power = num_values * float(np.sum((facts.std / len(facts.names)) ** 2))
    channel = true_channel(bench, seed, facts.names)
    order = forced(channel, facts, noise_w=1e-30, num_values=num_values, clip=clip)
    found = []
    with loopback(bench, updates, folder, seed) as air:
        air.live.audit = False
        for _ in range(trials):
            collected = air.collect(order)
            assert collected.lost == 0
            found.append(float(np.sum((collected.mean - truth) ** 2)) / power)
    return np.array(found)


def seen(phase_std_rad: float, num_nodes: int) -> float:
    """Floor of alike nodes with phase errors of which the receiver's pilots take out the mean.

    2 (1 - exp(-s^2 / 2)) of the part 1 - 1/K of the variance that is not common
    """
    return coherence.misalignment_mse(np.ones(1), phase_std_rad * math.sqrt(1.0 - 1.0 / num_nodes))


def group_errors(bench: BenchSpec, num_values: int, group: int, seed: int, folder: Path) -> np.ndarray:
    """Squared errors of groups of values over a known channel, each a trial of its own, in units of the closed form."""
    updates = updates_of(bench, num_values, seed)
    facts = Facts.of(bench, updates)
    channel = true_channel(bench, seed, facts.names)
    order = forced(channel, facts, noise_w=noise_of(bench), num_values=num_values)
    with loopback(bench, updates, folder, seed) as air:
        air.live.audit = False
        collected = air.collect(order)
    error = collected.mean - weighted(facts, updates)
    assert order.expected_mse is not None
    groups: np.ndarray = np.sum(error.reshape(-1, group) ** 2, axis=1) * num_values / (group * order.expected_mse)
    return groups


def vote_error(
    num_plus: int, num_minus: int, snr: float, num_antennas: int, num_values: int, folder: Path, seed: int = 21
) -> float:
    """Share of wrong majorities over channels that are Rayleigh, value by value and block by block.

    Nodes at one distance have one mean gain. Block fading draws every path anew with each chunk of the simulated room;
    two microseconds of delay spread make some eight independent channels across the band. The votes' signs differ from
    value to value, the number of voters on each side does not.
    """
    num_nodes = num_plus + num_minus
    bench = air_bench(
        num_nodes,
        num_antennas,
        positions_m=circle_m(num_nodes),
        fading="block",
        coherence_s=1e-3,
        selective=True,
        delay_spread_s=2e-6,
        num_paths=32,
        excess_loss_db=40,
    )
    sides = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), num_values)
    updates = {name: sides * np.float32(1 if i < num_plus else -1) for i, name in enumerate(bench.node_names)}
    power_w = snr * noise_of(bench) / (2 * World(bench, 0).path_gain(bench.node_names[0]))
    with loopback(bench, updates, folder, seed) as air:
        collected = air.collect(votes(bench.node_names, power_w))
        measured = air.live.last_audit["vote_error"]
    assert measured == np.mean(collected.mean != sides * np.float32(np.sign(num_plus - num_minus)))
    return measured
