"""What is checked before an order may touch the bench. A refused order changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

import numpy as np

from testbed.core.adapter import Layout
from testbed.core.bench import BenchSpec, WaveformSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError, LimitError
from testbed.core.frames import end_stops_m, to_stage
from testbed.core.orders import (
    WHOLE,
    Alignment,
    Analogue,
    Collect,
    Digital,
    Evaluate,
    Ideal,
    MajorityVote,
    Move,
    OneBit,
    Order,
    Part,
    Payload,
    Pruning,
    Publish,
    Sound,
    Together,
    Train,
    Uplink,
    Work,
)
from testbed.core.scheme import Scheme
from testbed.core.specs import AlignmentSpec
from testbed.core.units import dbm_to_w, w_to_dbm
from testbed.engine.scheme_names import scheme_class
from testbed.lora.choice import part_mask
from testbed.lora.refactor import stack_layout
from testbed.lora.switch import max_rank
from testbed.phy.coding_schemes import SCHEMES
from testbed.phy.coherence import alternatives, claimed_flags, radio_flags, why_not
from testbed.phy.subcarriers import max_nodes
from testbed.schemes import SCHEMES as SCHEME_CLASSES

_TOLERANCE = 1e-6
_MOST_PRUNED = 0.95
"""A model of which less is left cannot be trained usefully."""


def claimed_capabilities(bench: BenchSpec, *, derived: bool = True) -> Capabilities:
    """What the bench file says of its radios, before any of them is opened.

    Args:
        derived: flags that it leaves open follow from its figures; else they are false.
    """
    return Capabilities(
        **(radio_flags(bench) if derived else claimed_flags(bench)),
        num_antennas=len(bench.array.antennas),
        max_power_w=dbm_to_w(bench.limits.max_power_dbm),
        frequencies_hz=bench.limits.frequencies_hz,
        sample_rate_hz=(bench.sample_rate_hz, bench.sample_rate_hz),
    )


def check_needs(
    name: str, needs: Iterable[str], capabilities: Capabilities, bench: BenchSpec, instead: str = ""
) -> None:
    """Raises ConfigError where the bench's radios lack what a scheme needs, with the reason and the alternatives."""
    lacking = [flag for flag in sorted(needs) if not getattr(capabilities, flag)]
    if lacking:
        reasons = "; ".join(why_not(bench, flag) for flag in lacking)
        raise ConfigError(
            f"the scheme {name} needs radios that are {', '.join(lacking)}, and this bench's are not: {reasons}",
            key="radio",
            remedy=f"{alternatives(bench)}: the schemes {', '.join(possible_schemes(capabilities))}"
            + (f"; {instead} is the nearest to {name}" if instead else ""),
        )


def possible_schemes(capabilities: Capabilities) -> list[str]:
    """Schemes that need no more than the radios can do."""
    can = {flag for flag in Capabilities.FLAGS if getattr(capabilities, flag)}
    return [name for name in SCHEME_CLASSES if scheme_class(name).needs <= can]


def check_aligns(name: str, scheme: Scheme[Any], alignment: AlignmentSpec | None) -> None:
    """Raises ConfigError where a scheme asks boards to align and the experiment does not say with what."""
    if scheme.aligns and alignment is None:
        raise ConfigError(
            f"the scheme {name} aligns with preferences, and the experiment has no [alignment]",
            key="alignment",
            remedy="name preference pairs, --set alignment.source=FOLDER, or set alignment_rounds = 0 in [scheme]",
        )


def check_order(order: Order, bench: BenchSpec, num_values: int, layout: Layout | None = None) -> None:
    """Refuse an order that breaks a limit of the bench.

    Args:
        order: what the scheme asks.
        bench: whose limits hold.
        num_values: length of the adapter vector.
        layout: its order, against which ranks and folds are checked; they are not if None.

    Raises:
        LimitError: naming the quantity, its value and the limit.
    """
    match order:
        case Sound(nodes=nodes, num_pilots=num_pilots):
            _check_names(nodes, bench)
            if num_pilots < 2:
                raise LimitError(f"Sound: num_pilots = {num_pilots}; at least 2 pilot symbols are needed")
        case Move():
            _check_positions(order.positions_m, bench)
        case Train(work=work):
            _check_names(work, bench)
            limits_hz = {board.name: board.cpu_hz for board in bench.boards}
            for name, part in work.items():
                _check_work(f"Train: {name}", part, limits_hz[name], num_values, layout)
                _check_part(f"Train: {name}: part", part.part, layout)
                _check_part(f"Train: {name}: sketch", Part(columns=part.sketch), layout)
                _check_part(f"Train: {name}: pulled", part.pulled, layout)
                if part.objective is not None:
                    _check_objective(f"Train: {name}", part.objective)
        case Collect():
            _check_collect(order, bench)
        case Publish():
            _check_vector("Publish: adapter", order.adapter, num_values)
            _check_part("Publish: part", order.part, layout)
            _check_fold(order, layout)
        case Evaluate():
            pass
        case Together(move=move, train=train):
            check_order(move, bench, num_values, layout)
            check_order(train, bench, num_values, layout)
        case _:
            assert_never(order)


def _check_names(names: Iterable[str], bench: BenchSpec) -> None:
    strangers = [name for name in names if name not in bench.node_names]
    if strangers:
        raise LimitError(f"the bench has no node {strangers[0]!r}; it has {', '.join(bench.node_names[:8])}")


def _check_work(who: str, work: Work, limit_hz: float, num_values: int, layout: Layout | None) -> None:
    """What a board cannot do in training, or should not."""
    cpu_hz = work.cpu_hz
    if cpu_hz is not None and not 0 < cpu_hz <= limit_hz * (1 + _TOLERANCE):
        raise LimitError(f"{who} cannot run at {cpu_hz:g} Hz; its range is up to {limit_hz:g} Hz")
    for what, value in (("local_steps", work.local_steps), ("batch_size", work.batch_size)):
        if value is not None and value < 1:
            raise LimitError(f"{who}: {what} = {value}; at least 1 is needed")
    for what, weight in (("proximal", work.proximal), ("orthogonality", work.orthogonality)):
        if not (np.isfinite(weight) and weight >= 0):
            raise LimitError(f"{who}: {what} = {weight}; it must be finite and not negative")
    if work.factors not in ("both", "A", "B"):
        raise LimitError(f"{who}: factors = {work.factors!r}; choose both, A or B")
    if work.drift is not None:
        _check_vector(f"{who}: drift", work.drift, num_values)
    if work.others not in ("frozen", "absent"):
        raise LimitError(f"{who}: others = {work.others!r}; choose frozen or absent")
    if work.ranks is not None:
        if layout is not None and any(factor.kind not in ("A", "B") for factor in layout.factors):
            raise LimitError(
                f"{who}: ranks = {work.ranks}; this adapter has more than LoRA factors, and those no ranks"
            )
        most = np.inf if layout is None else max_rank(layout)
        if not 1 <= work.ranks <= most:
            raise LimitError(f"{who}: ranks = {work.ranks}; the adapter has ranks from 1 to {most:g}")
    if work.tail is not None and not (work.tail.weight >= 0 and 0 <= work.tail.first < work.tail.last):
        raise LimitError(f"{who}: tail = {work.tail}; it needs a weight of at least 0 and ranks first < last")
    if work.sketch is not None and work.ranks is not None:
        raise LimitError(f"{who}: sketch and ranks both choose ranks; use one of them")
    if work.pruning is not None:
        _check_pruning(who, work.pruning)


def _check_part(what: str, part: Part, layout: Layout | None) -> None:
    """A part that leaves nothing, or that no adapter of this layout has."""
    if layout is None or part == WHOLE:
        return
    try:
        part_mask(layout, part)
    except ValueError as error:
        raise LimitError(f"{what}: {error}") from None


def _check_objective(who: str, objective: Alignment) -> None:
    weights = np.asarray(objective.weights, np.float64)
    if weights.shape != (2,) or not (weights >= 0).all() or abs(weights.sum() - 1.0) > 1e-9:
        raise LimitError(
            f"{who}: weights {', '.join(f'{one:g}' for one in weights.ravel())}; give one of helpfulness and one of "
            "safety, not negative, that add up to 1"
        )
    for what, value in (("steps", objective.steps), ("learning_rate", objective.learning_rate)):
        if value is not None and not value > 0:
            raise LimitError(f"{who}: objective.{what} = {value:g}; it must be positive")


def _check_pruning(who: str, pruning: Pruning) -> None:
    if not 0 <= pruning.ratio <= _MOST_PRUNED:
        raise LimitError(f"{who}: pruning.ratio = {pruning.ratio:g}; it must be from 0 to {_MOST_PRUNED:g}")
    if pruning.kind not in ("structured", "unstructured"):
        raise LimitError(f"{who}: pruning.kind = {pruning.kind!r}; choose structured or unstructured")
    if pruning.importance not in ("data", "magnitude"):
        raise LimitError(f"{who}: pruning.importance = {pruning.importance!r}; choose data or magnitude")


def _check_fold(order: Publish, layout: Layout | None) -> None:
    """Factors that shall join the base weights have the shapes of the adapter's modules."""
    if order.fold is None:
        if order.fold_rank:
            raise LimitError(f"Publish: fold_rank = {order.fold_rank} without a fold")
        return
    if order.fold_rank < 1:
        raise LimitError(f"Publish: a fold of rank {order.fold_rank}; at least 1 is needed")
    if layout is None:
        return
    try:
        size = stack_layout(layout, order.fold_rank).size
    except ValueError as error:
        raise LimitError(
            f"Publish: this adapter cannot be folded: {error}", remedy="set lora.freeze_a = false"
        ) from None
    if order.fold.shape != (size,):
        raise LimitError(
            f"Publish: a fold of shape {order.fold.shape}; of rank {order.fold_rank} it has {size} values",
            remedy="testbed.lora.refactor.stacked makes it",
        )
    if not np.isfinite(order.fold).all():
        raise LimitError(f"Publish: the fold holds {np.count_nonzero(~np.isfinite(order.fold))} values not finite")


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
    if order.deadline_s is not None and not 0 < order.deadline_s < np.inf:
        raise LimitError(f"Collect: deadline_s = {order.deadline_s}; it must be positive and finite")
    if not order.uplinks:
        raise LimitError("Collect: nobody is asked to send")
    kinds = {type(uplink) for uplink in order.uplinks.values()}
    if len(kinds) > 1:
        names = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise LimitError(f"Collect: {names} uplinks cannot be mixed in one order")
    boards = {board.name: board for board in bench.boards}
    for name, uplink in order.uplinks.items():
        limit_w = min(dbm_to_w(boards[name].max_power_dbm), dbm_to_w(bench.limits.max_power_dbm))
        _check_uplink(name, uplink, limit_w, bench)
    if kinds <= {Digital, Ideal}:
        shares_hz = [uplink.bandwidth_hz for uplink in order.uplinks.values() if isinstance(uplink, Digital | Ideal)]
        if sum(shares_hz) > bench.bandwidth_hz * (1 + _TOLERANCE):
            raise LimitError(
                f"Collect: the shares add up to {sum(shares_hz):g} Hz; the band has {bench.bandwidth_hz:g} Hz"
            )
        if kinds == {Digital}:
            _check_packets(bench.waveform)
    elif kinds <= {Analogue, OneBit}:
        _check_combination(order, bench)
    elif kinds == {MajorityVote} and bench.waveform.num_active % 4:
        raise LimitError(
            f"Collect: votes need pairs of neighbouring subcarriers, and {bench.waveform.num_active} leave one pair at "
            "the two edges of the band",
            remedy="make waveform.num_active in the bench file a multiple of 4",
        )


def _check_packets(waveform: WaveformSpec) -> None:
    """What the packet modem cannot do with a numerology."""
    if waveform.level == "symbols":
        raise LimitError(
            "Collect: packets need samples, and waveform.level is symbols",
            remedy='set waveform.level = "samples" in the bench file, or use error-free links (link = "ideal")',
        )
    size, prefix = waveform.num_subcarriers, waveform.cyclic_prefix
    if max_nodes(waveform) < 1 or size < 32 or 2 * prefix > size:
        raise LimitError(
            f"Collect: no packet fits {waveform.num_active} of {size} subcarriers with a cyclic prefix of {prefix}",
            remedy="give the waveform at least 32 subcarriers and a prefix of at most half a block",
        )


def _check_combination(order: Collect, bench: BenchSpec) -> None:
    """Combiner, scale and share of a coherent order."""
    num_antennas, num_active = len(bench.array.antennas), bench.waveform.num_active
    if order.combiner is None or order.scale is None:
        raise LimitError("Collect: uplinks that add up need a combiner and a scale")
    if order.combiner.shape not in ((num_antennas,), (num_active, num_antennas)):
        raise LimitError(
            f"Collect: a combiner of shape {order.combiner.shape}; give [{num_antennas}], or "
            f"[{num_active}, {num_antennas}] for each subcarrier"
        )
    if not np.isfinite(order.combiner).all():
        raise LimitError("Collect: a combiner weight is not finite")
    if not (np.isfinite(order.scale) and order.scale > 0):
        raise LimitError(f"Collect: scale = {order.scale}; it must be positive and finite")
    if order.share is not None and (
        order.share.shape != (num_active,) or not np.isfinite(order.share).all() or (order.share < 0).any()
    ):
        raise LimitError(f"Collect: share must hold {num_active} finite weights that are not negative")


def _check_uplink(name: str, uplink: Uplink, limit_w: float, bench: BenchSpec) -> None:
    numbers: tuple[float, ...]
    match uplink:
        case Analogue():
            power_w = _precoder_power_w(name, uplink.precoder, bench)
            numbers = (uplink.weight, uplink.mean, uplink.std, power_w, uplink.cfo_hz, uplink.cfo_from_s)
            if not uplink.std > 0:
                raise LimitError(f"Collect: {name}: std = {uplink.std}; it must be positive")
            _check_weight(name, uplink.weight)
        case OneBit():
            power_w = _precoder_power_w(name, uplink.precoder, bench)
            numbers = (power_w, uplink.cfo_hz, uplink.cfo_from_s)
        case MajorityVote():
            power_w = uplink.power_w
            numbers = (power_w, uplink.threshold, uplink.cfo_hz)
            if not uplink.threshold >= 0:
                raise LimitError(f"Collect: {name}: threshold = {uplink.threshold}; it cannot be negative")
        case Ideal():
            power_w = uplink.power_w
            numbers = (uplink.weight, uplink.bandwidth_hz, power_w, uplink.rate_bit_s, uplink.head_start_s)
            if not uplink.head_start_s >= 0:
                raise LimitError(f"Collect: {name}: head_start_s = {uplink.head_start_s}; it cannot be negative")
            _check_positive(name, bandwidth_hz=uplink.bandwidth_hz, rate_bit_s=uplink.rate_bit_s)
            _check_payload(name, uplink.payload)
            _check_weight(name, uplink.weight)
        case Digital():
            power_w = uplink.power_w
            numbers = (uplink.weight, uplink.bandwidth_hz, power_w, uplink.snr, uplink.cfo_hz)
            _check_positive(name, bandwidth_hz=uplink.bandwidth_hz, max_tries=uplink.max_tries)
            _check_payload(name, uplink.payload)
            _check_weight(name, uplink.weight)
            if uplink.combiner.shape != (len(bench.array.antennas),) or not np.isfinite(uplink.combiner).all():
                raise LimitError(f"Collect: {name}: the combiner must be {len(bench.array.antennas)} finite weights")
            known = [scheme.name for scheme in SCHEMES]
            if uplink.scheme is not None and uplink.scheme not in known:
                raise LimitError(
                    f"Collect: {name}: there is no coding scheme {uplink.scheme!r}; choose from {', '.join(known)}"
                )
        case _:
            assert_never(uplink)
    if not all(np.isfinite(number) for number in numbers):
        raise LimitError(f"Collect: {name}: a number is not finite: {uplink}")
    if power_w < 0:
        raise LimitError(f"Collect: {name}: power_w = {power_w:g}; it cannot be negative")
    if power_w > limit_w * (1 + _TOLERANCE):
        raise LimitError(
            f"Collect: {name} would transmit {w_to_dbm(power_w):.2f} dBm; its limit is {w_to_dbm(limit_w):.2f} dBm",
            remedy="the smaller of the node's max_power_dbm and limits.max_power_dbm in the bench file holds",
        )


def _precoder_power_w(name: str, precoder: complex | np.ndarray, bench: BenchSpec) -> float:
    """Average power of symbols of unit power; a precoder for every subcarrier has one weight for each."""
    weights = np.atleast_1d(np.asarray(precoder))
    if weights.shape not in ((1,), (bench.waveform.num_active,)):
        raise LimitError(
            f"Collect: {name}: a precoder of shape {weights.shape}; give one number, or {bench.waveform.num_active}"
        )
    return float(np.mean(np.abs(weights) ** 2))


def _check_weight(name: str, weight: float) -> None:
    if weight <= 0:
        raise LimitError(f"Collect: {name}: weight = {weight}; a node that shall not count is left out of the order")


def _check_positive(name: str, **numbers: float) -> None:
    for what, value in numbers.items():
        if not value > 0:
            raise LimitError(f"Collect: {name}: {what} = {value:g}; it must be positive")


def _check_payload(name: str, payload: Payload) -> None:
    if payload.choice == "scores" and payload.kind != "topk":
        raise LimitError(f"Collect: {name}: choice scores sends single values; make the payload's kind topk")
    if payload.choice != "all" and payload.choice != "scores" and payload.kind == "topk":
        raise LimitError(f"Collect: {name}: choice {payload.choice} and kind topk both choose values; use one of them")
    if not 0 < payload.keep <= 1:
        raise LimitError(f"Collect: {name}: keep = {payload.keep:g}; the share of values that are sent is in (0, 1]")
