"""Antenna places among the ports of a grid: grown one by one, and exchanged until no exchange helps.

Ports are ranked by what the weakest client is then heard with, in two sieves: simple combiners for all of them, and a
climb of the combiner for the best of these. For one and two clients the first sieve is exact.

Reference: greedy selection of measured ports, arXiv 2409.03386.
"""

from __future__ import annotations

import numpy as np

from testbed.phy.aperture import Aperture, PathSet
from testbed.problems.ma_ota.batch_gains import climbed_gains
from testbed.problems.ma_ota.starts import quick_gain

_TOLERANCE = 1e-9
_LARGEST = 20_000
_CLIMBED = 32
_HELPS = 1e-6


def port_grid(aperture: Aperture, step_m: float) -> np.ndarray:
    """Ports that fill the region evenly, both ends of each axis included.

    The step is shortened until it divides the region; an axis of no length has one port.

    Args:
        aperture: where antennas may be.
        step_m: largest distance of neighbours along an axis.

    Returns:
        shape [num_ports, 2].

    Raises:
        ValueError: the step is not positive, or so small that the ports are more than 20 000.
    """
    if not step_m > 0:
        raise ValueError(f"ports {step_m:g} m apart make no grid: give a positive step")
    spans_m = aperture.region_m[:, 1] - aperture.region_m[:, 0]
    counts = [1 if span_m <= 0 else int(np.ceil(span_m / step_m - _TOLERANCE)) + 1 for span_m in spans_m]
    if counts[0] * counts[1] > _LARGEST:
        raise ValueError(f"a step of {step_m:g} m makes {counts[0]} x {counts[1]} ports, above {_LARGEST}: widen it")
    axes = [np.linspace(low_m, high_m, count) for (low_m, high_m), count in zip(aperture.region_m, counts, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def free_ports(ports_m: np.ndarray, others_m: np.ndarray, min_spacing_m: float) -> np.ndarray:
    """Which ports keep the spacing from antennas elsewhere.

    Args:
        ports_m: shape [num_ports, 2].
        others_m: shape [num_others, 2].
        min_spacing_m: D.

    Returns:
        shape [num_ports], bool.
    """
    if not len(others_m):
        return np.ones(len(ports_m), bool)
    # [num_ports, num_others]
    apart_m = np.linalg.norm(ports_m[:, None] - others_m[None], axis=-1)
    return np.all(apart_m >= min_spacing_m * (1 - _TOLERANCE), axis=1)


def grown_ports(paths: PathSet, aperture: Aperture, ports_m: np.ndarray) -> np.ndarray | None:
    """Antennas added port by port, each where it helps the weakest client most.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        ports_m: shape [num_ports, 2].

    Returns:
        shape [num_antennas, 2]; None where the free ports run out.
    """
    offered = paths.channel(ports_m)
    layout_m, placed = aperture.home_m.copy(), np.flatnonzero(~aperture.movable).tolist()
    for antenna in np.flatnonzero(aperture.movable):
        free = np.flatnonzero(free_ports(ports_m, layout_m[placed], aperture.min_spacing_m))
        if not len(free):
            return None
        port, _ = _best_port(paths.channel(layout_m[placed]), offered, free)
        layout_m[antenna] = ports_m[port]
        placed.append(int(antenna))
    return layout_m


def exchanged_ports(
    paths: PathSet, aperture: Aperture, ports_m: np.ndarray, start_m: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Antennas moved one at a time to the best free port, until none helps.

    Args:
        paths: auxiliary channels.
        aperture: where antennas may be.
        ports_m: shape [num_ports, 2].
        start_m: keeps the aperture, shape [num_antennas, 2].

    Returns:
        shape [num_antennas, 2], and the gain of the weakest client at the start and after each exchange.
    """
    offered, layout_m = paths.channel(ports_m), start_m.copy()
    trace = [float(climbed_gains(paths.channel(layout_m)[None])[0][0])]
    improved = True
    while improved:
        improved = False
        for antenna in np.flatnonzero(aperture.movable):
            others = np.arange(len(layout_m)) != antenna
            free = np.flatnonzero(free_ports(ports_m, layout_m[others], aperture.min_spacing_m))
            if not len(free):
                continue
            port, gain = _best_port(paths.channel(layout_m[others]), offered, free)
            if gain > trace[-1] * (1 + _HELPS):
                layout_m[antenna], improved = ports_m[port], True
                trace.append(gain)
    return layout_m, trace


def _best_port(others: np.ndarray, offered: np.ndarray, free: np.ndarray) -> tuple[int, float]:
    """The free port whose antenna helps the weakest client most beside the others, and the gain then.

    Args:
        others: channels of the other antennas, shape [num_others, num_nodes].
        offered: channels of all ports, shape [num_ports, num_nodes].
        free: indices of ports.
    """
    # [num_free, num_others + 1, num_nodes]
    channel = np.concatenate([np.broadcast_to(others, (len(free), *others.shape)), offered[free][:, None]], axis=1)
    gains = quick_gain(channel)
    if channel.shape[2] <= 2:
        choice = int(np.argmax(gains))
        return int(free[choice]), float(gains[choice])
    promising = np.argsort(-gains)[:_CLIMBED]
    climbed, _ = climbed_gains(channel[promising], num_steps=12)
    choice = int(np.argmax(climbed))
    return int(free[promising[choice]]), float(climbed[choice])
