"""Uplinks that meet in the air: analogue sums, coherent one-bit votes and non-coherent majority votes.

A long update goes in several windows of whole frames, so that neither a node nor the receiver ever holds more than one
window of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from testbed.core import messages
from testbed.core.bench import WaveformSpec
from testbed.core.errors import DeviceError
from testbed.core.orders import Analogue, Collect, Collected, MajorityVote, OneBit, Spent
from testbed.engine.air import LONGEST, Air
from testbed.phy import frames, overair, voting
from testbed.phy.ofdm import num_symbols_of


@dataclass(frozen=True)
class Window:
    """A part of the update: `count` symbols from `first` on, sent from `begin_s` on."""

    first: int
    count: int
    begin_s: float


@dataclass
class _Tally:
    """What the windows of one order add up to."""

    sent: list[str]
    energy_j: dict[str, float]
    gains: list[float] = field(default_factory=list)
    lost: int = 0
    air_time_s: float = 0.0


Request = Callable[[str, Window], messages.Message]
Listen = Callable[[np.ndarray, Window, _Tally], None]


def segments(num_symbols: int, waveform: WaveformSpec) -> Iterator[tuple[int, int]]:
    """First symbol and number of symbols of each window: whole frames that fit into `LONGEST` elements."""
    frame = waveform.frame_blocks * waveform.num_active
    count = frame * max(1, LONGEST // frames.segment_length(frame, waveform))
    for first in range(0, num_symbols, count):
        yield first, min(count, num_symbols - first)


def air_time(num_symbols: int, waveform: WaveformSpec) -> int:
    """Elements of all windows together, guards not counted."""
    return sum(frames.segment_length(count, waveform) for _, count in segments(num_symbols, waveform))


def collect_mean(air: Air, order: Collect, num_values: int) -> Collected:
    """Carry out a `Collect` of `Analogue` uplinks: the weighted mean.

    Raises:
        DeviceError: no node transmitted.
    """
    uplinks = {name: uplink for name, uplink in order.uplinks.items() if isinstance(uplink, Analogue)}
    scale = order.scale
    assert scale is not None  # check_order saw to it
    mean = np.zeros(num_values, np.float32)

    def request(name: str, window: Window) -> messages.Message:
        uplink = uplinks[name]
        return messages.SendAnalogue(
            node=name,
            at_s=window.begin_s,
            mean=uplink.mean,
            std=uplink.std,
            first=window.first,
            count=window.count,
            cfo_hz=uplink.cfo_hz,
            cfo_from_s=uplink.cfo_from_s,
            clip=uplink.clip,
            waveform=air.bench.waveform,
        )

    def listen(samples: np.ndarray, window: Window, tally: _Tally) -> None:
        # [num_nodes, 3]
        facts = np.array([(uplinks[name].weight, uplinks[name].std, uplinks[name].mean) for name in tally.sent])
        reference = overair.pilot_reference(scale, facts[:, 0], facts[:, 1])
        if order.share is not None:
            reference *= float(np.mean(order.share))
        symbols = _coherent(air, order, samples, window, tally, reference)
        part = mean[2 * window.first : 2 * (window.first + window.count)]
        part[:] = overair.mean_of(
            symbols, scale=scale, weights=facts[:, 0], means=facts[:, 2], num_values=len(part), share=order.share
        )

    precoders = {name: uplink.precoder for name, uplink in uplinks.items()}
    return _collect(air, order, mean, num_symbols_of(num_values), precoders, request, listen)


def collect_signs(air: Air, order: Collect, num_values: int) -> Collected:
    """Carry out a `Collect` of `OneBit` uplinks: the signs of the sum.

    Raises:
        DeviceError: no node transmitted.
    """
    uplinks = {name: uplink for name, uplink in order.uplinks.items() if isinstance(uplink, OneBit)}
    scale = order.scale
    assert scale is not None  # check_order saw to it
    votes = np.zeros(num_values, np.float32)

    def request(name: str, window: Window) -> messages.Message:
        return messages.SendSigns(
            node=name,
            at_s=window.begin_s,
            pairs=False,
            first=window.first,
            count=window.count,
            cfo_hz=uplinks[name].cfo_hz,
            cfo_from_s=uplinks[name].cfo_from_s,
            waveform=air.bench.waveform,
        )

    def listen(samples: np.ndarray, window: Window, tally: _Tally) -> None:
        symbols = _coherent(air, order, samples, window, tally, scale * len(tally.sent))
        part = votes[2 * window.first : 2 * (window.first + window.count)]
        part[:] = voting.obda_decide(symbols, len(part))

    precoders = {name: uplink.precoder for name, uplink in uplinks.items()}
    return _collect(air, order, votes, num_symbols_of(num_values), precoders, request, listen)


def collect_votes(air: Air, order: Collect, num_values: int) -> Collected:
    """Carry out a `Collect` of `MajorityVote` uplinks: the sign whose subcarriers hold more energy.

    Raises:
        DeviceError: no node transmitted.
    """
    uplinks = {name: uplink for name, uplink in order.uplinks.items() if isinstance(uplink, MajorityVote)}
    waveform = air.bench.waveform
    votes = np.zeros(num_values, np.float32)

    def request(name: str, window: Window) -> messages.Message:
        return messages.SendSigns(
            node=name,
            at_s=window.begin_s,
            pairs=True,
            threshold=uplinks[name].threshold,
            first=window.first,
            count=window.count,
            cfo_hz=uplinks[name].cfo_hz,
            cfo_from_s=window.begin_s,
            waveform=waveform,
        )

    def listen(samples: np.ndarray, window: Window, tally: _Tally) -> None:
        symbols, lost = frames.demodulate(samples, waveform, window.count, start=air.guard, guard=air.guard)
        tally.lost += lost
        part = votes[window.first // 2 : (window.first + window.count) // 2]
        part[:], _ = voting.fsk_decide(symbols, len(part))

    amplitudes = {name: complex(np.sqrt(uplink.power_w)) for name, uplink in uplinks.items()}
    return _collect(air, order, votes, voting.fsk_num_symbols(num_values, waveform), amplitudes, request, listen)


def _coherent(
    air: Air, order: Collect, samples: np.ndarray, window: Window, tally: _Tally, reference: float
) -> np.ndarray:
    """The combined symbols of a window, tracked against the pilots' known amplitude."""
    assert order.combiner is not None  # check_order saw to it
    found = frames.read(
        samples,
        air.bench.waveform,
        window.count,
        combiner=np.ones(1, np.complex128) if order.combiner.ndim == 1 else order.combiner,
        start=air.guard,
        guard=air.guard,
        reference=reference or None,
    )
    tally.lost += found.lost
    tally.gains.append(abs(found.gain))
    return found.symbols


def _collect(
    air: Air,
    order: Collect,
    result: np.ndarray,
    num_symbols: int,
    precoders: Mapping[str, complex | np.ndarray],
    request: Request,
    listen: Listen,
) -> Collected:
    """Window by window; a node that falls silent between two of them counts as missing and is asked no more."""
    names = sorted(name for name in precoders if name in air.crew.holding)
    tally = _Tally(names, dict.fromkeys(names, 0.0))
    arrays = {name: {"precoder": np.atleast_1d(np.asarray(precoders[name], np.complex128))} for name in names}
    flat = order.combiner if order.combiner is not None and order.combiner.ndim == 1 else None
    start_s = air.devices.clock.now_s()
    for first, count in segments(num_symbols, air.bench.waveform):
        window = Window(first, count, air.begin_s())
        length = frames.segment_length(count, air.bench.waveform)
        requests = {name: request(name, window) for name in tally.sent}
        samples, sent = air.capture(requests, length, window.begin_s, arrays=arrays, combiner=flat)
        tally.sent = [name for name in tally.sent if name in sent]
        if not tally.sent:
            raise DeviceError("no node transmitted", remedy="look at the logs of the nodes")
        for name, answer in sent.items():
            tally.energy_j[name] += air.joules(answer)
        tally.air_time_s += length / air.rate_hz
        listen(samples, window, tally)
    return Collected(
        result,
        missing=tuple(name for name in order.uplinks if name not in tally.sent),
        energy_j={name: tally.energy_j[name] for name in tally.sent},
        coherence=float(np.mean(tally.gains)) if tally.gains else None,
        lost=tally.lost,
        spent=Spent(air.devices.clock.now_s() - start_s, sum(tally.energy_j.values()), tally.air_time_s),
    )
