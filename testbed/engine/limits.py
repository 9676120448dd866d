"""What is checked before an order may touch the bench. A refused order changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

import numpy as np

from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError, LimitError
from testbed.core.frames import end_stops_m, to_stage
from testbed.core.orders import (
    Analogue,
    Collect,
    Digital,
    Evaluate,
    Move,
    Order,
    Publish,
    Sound,
    Together,
    Train,
    Uplink,
)
from testbed.core.units import dbm_to_w, w_to_dbm

_TOLERANCE = 1e-6


def claimed_capabilities(bench: BenchSpec) -> Capabilities:
    """What the bench file says of its radios, before any of them is opened."""
    return Capabilities(
        **bench.radio.model_dump(),
        num_antennas=len(bench.array.antennas),
        max_power_w=dbm_to_w(bench.limits.max_power_dbm),
        frequencies_hz=bench.limits.frequencies_hz,
        sample_rate_hz=(bench.sample_rate_hz, bench.sample_rate_hz),
    )


def check_needs(scheme_name: str, needs: Iterable[str], capabilities: Capabilities) -> None:
    """Raises ConfigError where the bench's radios lack what a scheme needs."""
    lacking = [flag for flag in sorted(needs) if not getattr(capabilities, flag)]
    if lacking:
        raise ConfigError(
            f"the scheme {scheme_name} needs radios that are {', '.join(lacking)}, and this bench's are not",
            key="radio",
            remedy="choose a scheme without that need (testbed schemes), or another bench",
        )


def check_order(order: Order, bench: BenchSpec, num_values: int) -> None:
    """Refuse an order that breaks a limit of the bench.

    Args:
        order: what the scheme asks.
        bench: whose limits hold.
        num_values: length of the adapter vector.

    Raises:
        LimitError: naming the quantity, its value and the limit.
    """
    match order:
        case Sound(nodes=nodes, num_pilots=num_pilots):
            _check_names(nodes, bench)
            if num_pilots < 1:
                raise LimitError(f"Sound: num_pilots = {num_pilots}; at least one pilot symbol is needed")
        case Move():
            _check_positions(order.positions_m, bench)
        case Train(work=work):
            _check_names(work, bench)
            boards = {board.name: board for board in bench.boards}
            for name, part in work.items():
                cpu_hz = part.cpu_hz
                if cpu_hz is not None and not 0 < cpu_hz <= boards[name].cpu_hz * (1 + _TOLERANCE):
                    raise LimitError(
                        f"Train: {name} cannot run at {cpu_hz:g} Hz; its range is up to {boards[name].cpu_hz:g} Hz"
                    )
                for what, value in (("local_steps", part.local_steps), ("batch_size", part.batch_size)):
                    if value is not None and value < 1:
                        raise LimitError(f"Train: {name}: {what} = {value}; at least 1 is needed")
        case Collect():
            _check_collect(order, bench)
        case Publish(adapter=adapter):
            _check_vector("Publish: adapter", adapter, num_values)
        case Evaluate():
            pass
        case Together(move=move, train=train):
            check_order(move, bench, num_values)
            check_order(train, bench, num_values)
        case _:
            assert_never(order)


def _check_names(names: Iterable[str], bench: BenchSpec) -> None:
    strangers = [name for name in names if name not in bench.node_names]
    if strangers:
        raise LimitError(f"the bench has no node {strangers[0]!r}; it has {', '.join(bench.node_names[:8])}")


def _check_vector(what: str, vector: np.ndarray, num_values: int) -> None:
    if vector.shape != (num_values,):
        raise LimitError(f"{what} has shape {vector.shape}; the adapter has {num_values} values")
    if not np.isfinite(vector).all():
        raise LimitError(f"{what} holds {np.count_nonzero(~np.isfinite(vector))} values that are not finite")


def _check_positions(positions_m: np.ndarray, bench: BenchSpec) -> None:
    array = bench.array
    if positions_m.shape != (len(array.antennas), 2):
        raise LimitError(
            f"Move: positions of shape {positions_m.shape} for {len(array.antennas)} antennas; give [num_antennas, 2]"
        )
    if not np.isfinite(positions_m).all():
        raise LimitError("Move: a position is not finite")
    for index, (point, antenna) in enumerate(zip(positions_m, array.antennas, strict=True)):
        if antenna.stage is None and not np.allclose(point, antenna.home_m, atol=1e-9):
            raise LimitError(f"Move: antenna {index} has no stage and stays at {antenna.home_m} m")
        for axis, (value, (low, high)) in enumerate(zip(point, array.region_m, strict=True)):
            if not low - _TOLERANCE <= value <= high + _TOLERANCE:
                raise LimitError(
                    f"Move: antenna {index}, axis {axis}: {value:.4f} m is outside the region [{low:g}, {high:g}] m",
                    remedy="array.region_m in the bench file says where antennas may be",
                )
        if antenna.stage is not None:
            stops_m, target_m = end_stops_m(antenna.stage, array.region_m), to_stage(point, antenna.stage)
            for axis, (value, (low, high)) in enumerate(zip(target_m, stops_m, strict=True)):
                if not low - _TOLERANCE <= value <= high + _TOLERANCE:
                    raise LimitError(
                        f"Move: antenna {index}, stage axis {axis}: {value:.4f} m is beyond the end stops "
                        f"[{low:g}, {high:g}] m",
                        remedy="array.antennas.stage.travel_m in the bench file says how far each stage goes",
                    )
    distance = np.linalg.norm(positions_m[:, None] - positions_m[None], axis=-1)
    for left, right in zip(*np.triu_indices(len(positions_m), 1), strict=True):
        if distance[left, right] < array.min_spacing_m - _TOLERANCE:
            raise LimitError(
                f"Move: antennas {left} and {right} would stand {distance[left, right]:.4f} m apart; "
                f"array.min_spacing_m is {array.min_spacing_m:g} m"
            )


def _check_collect(order: Collect, bench: BenchSpec) -> None:
    _check_names(order.uplinks, bench)
    if not order.uplinks:
        raise LimitError("Collect: nobody is asked to send")
    kinds = {type(uplink) for uplink in order.uplinks.values()}
    if len(kinds) > 1:
        raise LimitError("Collect: analogue and digital uplinks cannot be mixed in one order")
    boards = {board.name: board for board in bench.boards}
    for name, uplink in order.uplinks.items():
        _check_uplink(name, uplink, min(dbm_to_w(boards[name].max_power_dbm), dbm_to_w(bench.limits.max_power_dbm)))
    if kinds == {Digital}:
        total_hz = sum(uplink.bandwidth_hz for uplink in order.uplinks.values() if isinstance(uplink, Digital))
        if total_hz > bench.bandwidth_hz * (1 + _TOLERANCE):
            raise LimitError(f"Collect: the shares add up to {total_hz:g} Hz; the band has {bench.bandwidth_hz:g} Hz")
        return
    num_antennas = len(bench.array.antennas)
    if order.combiner is None or order.scale is None:
        raise LimitError("Collect: analogue uplinks need a combiner and a scale")
    if order.combiner.shape != (num_antennas,) or not np.isfinite(order.combiner).all():
        raise LimitError(f"Collect: the combiner must be {num_antennas} finite weights, shape [{num_antennas}]")
    if not (np.isfinite(order.scale) and order.scale > 0):
        raise LimitError(f"Collect: scale = {order.scale}; it must be positive and finite")


def _check_uplink(name: str, uplink: Uplink, limit_w: float) -> None:
    match uplink:
        case Analogue():
            power_w = abs(uplink.precoder) ** 2
            numbers = (uplink.weight, uplink.mean, uplink.std, power_w)
            if not uplink.std > 0:
                raise LimitError(f"Collect: {name}: std = {uplink.std}; it must be positive")
        case Digital():
            power_w = uplink.power_w
            numbers = (uplink.weight, uplink.bandwidth_hz, power_w, uplink.rate_bit_s)
            if not (uplink.bandwidth_hz > 0 and uplink.rate_bit_s > 0):
                raise LimitError(
                    f"Collect: {name}: bandwidth {uplink.bandwidth_hz:g} Hz and rate {uplink.rate_bit_s:g} bit/s "
                    "must be positive"
                )
            if uplink.bits_per_value not in (16, 32):
                raise LimitError(f"Collect: {name}: bits_per_value = {uplink.bits_per_value}; choose 16 or 32")
        case _:
            assert_never(uplink)
    if not all(np.isfinite(number) for number in numbers):
        raise LimitError(f"Collect: {name}: a number is not finite: {uplink}")
    if uplink.weight <= 0:
        raise LimitError(
            f"Collect: {name}: weight = {uplink.weight}; a node that shall not count is left out of the order"
        )
    if power_w > limit_w * (1 + _TOLERANCE):
        raise LimitError(
            f"Collect: {name} would transmit {w_to_dbm(power_w):.2f} dBm; its limit is {w_to_dbm(limit_w):.2f} dBm",
            remedy="the smaller of the node's max_power_dbm and limits.max_power_dbm in the bench file holds",
        )
