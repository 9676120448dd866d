"""What a node radiates when it is asked to: the bursts of every kind of uplink, and what it must remember for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from testbed.core import messages
from testbed.core.adapter import Layout
from testbed.core.bench import WaveformSpec
from testbed.core.errors import ProtocolError
from testbed.core.orders import Payload
from testbed.lora import parcel
from testbed.phy import frames, ofdm, overair, packets, papr, payload, voting
from testbed.phy.coding_schemes import scheme_named
from testbed.phy.flexframe import modulate


def without_offset(
    samples: np.ndarray, cfo_hz: float, since_s: float, waveform: WaveformSpec, rate_hz: float
) -> np.ndarray:
    """Take a carrier offset out before sending.

    x(t) exp(-j 2 pi f (t - t_0))

    Args:
        samples: shape [num_elements].
        cfo_hz: f.
        since_s: time of the first element after t_0, the instant for which the channel's phase is known.
        waveform: at level symbols the phase is that of each block's body.
        rate_hz: elements in a second.

    Returns:
        shape [num_elements], complex64.
    """
    if cfo_hz == 0.0:
        return samples
    index = np.arange(len(samples), dtype=np.float64)
    if waveform.level == "symbols":
        index = index // waveform.num_active * waveform.num_active + ofdm.body_middle(waveform)
    turns = cfo_hz * (since_s + index / rate_hz)
    return samples * np.exp(-2j * np.pi * (turns % 1.0)).astype(np.complex64)


@dataclass
class Uplink:
    """One node's update on its way to the controller.

    Attributes:
        update: trained minus published adapter, shape [num_values] float32; None before the first training.
        residual: what earlier payloads left out, shape [num_values]; None where nothing is fed back.
        layout: order of the update's values, for payloads that choose among them.
        before: published adapter that the update started from, shape [num_values].
    """

    update: np.ndarray | None = None
    residual: np.ndarray | None = None
    layout: Layout | None = None
    before: np.ndarray | None = None
    _transfer: int | None = None
    _encoded: bytes = field(default=b"", repr=False)

    def trained(self, update: np.ndarray, before: np.ndarray | None = None, layout: Layout | None = None) -> None:
        """Take a new update and what it started from, shape [num_values]; nothing of it is encoded yet."""
        self.update, self.before, self.layout, self._transfer = update, before, layout, None

    def analogue(
        self, update: np.ndarray, request: messages.SendAnalogue, precoder: np.ndarray, rate_hz: float
    ) -> np.ndarray:
        """The burst of `SendAnalogue`, complex64 in square-root watts."""
        symbols = overair.symbols_of(update, request.mean, request.std, request.first, request.count)
        samples = frames.build(symbols, request.waveform, _coefficient(precoder))
        samples = without_offset(samples, request.cfo_hz, request.at_s - request.cfo_from_s, request.waveform, rate_hz)
        return samples if request.clip is None else papr.clip(samples, request.clip)

    def signs(
        self, update: np.ndarray, request: messages.SendSigns, precoder: np.ndarray, rate_hz: float
    ) -> np.ndarray:
        """The burst of `SendSigns`, complex64 in square-root watts."""
        waveform = request.waveform
        # on pairs of subcarriers a value takes two symbols, on QPSK symbols half of one
        first, count = (
            (request.first // 2, request.count // 2) if request.pairs else (2 * request.first, 2 * request.count)
        )
        votes = voting.signs(update[first : first + count], request.threshold)
        if request.pairs:
            symbols = voting.fsk_symbols(votes, waveform, seed=_phase_seed(request.node, request.first))
        else:
            symbols = voting.obda_symbols(votes)
        samples = frames.build(symbols, waveform, _coefficient(precoder))
        return without_offset(samples, request.cfo_hz, request.at_s - request.cfo_from_s, waveform, rate_hz)

    def packets(
        self, update: np.ndarray, request: messages.SendPackets, allocation: np.ndarray, rate_hz: float
    ) -> np.ndarray:
        """The burst of `SendPackets`, complex64 in square-root watts."""
        data = self.encoded(update, request.payload, request.transfer)
        every = packets.segment(data, request.packet_bytes, node=request.index, transfer=request.transfer)
        chosen = [every[number] for number in request.sequence]
        samples = modulate(chosen, scheme_named(request.scheme), allocation, request.waveform, request.power_w)
        return without_offset(samples, request.cfo_hz, 0.0, request.waveform, rate_hz)

    def encoded(self, update: np.ndarray, kind: Payload, transfer: int) -> bytes:
        """The update's bytes, the same for every request of one transfer."""
        if self._transfer != transfer:
            self._encoded = self._encode(update, kind, transfer)
            self._transfer = transfer
        return self._encoded

    def _encode(self, update: np.ndarray, kind: Payload, transfer: int) -> bytes:
        if kind.error_feedback and self.residual is None:
            self.residual = np.zeros_like(update)
        if parcel.is_whole(kind):
            if not kind.error_feedback or self.residual is None:
                return payload.encode(update, kind)
            data, self.residual = payload.with_error_feedback(update, self.residual, kind)
            return data
        if self.layout is None or self.before is None:
            raise ProtocolError("a payload that sends a part of an update needs to know its layout")
        whole = update + self.residual if kind.error_feedback and self.residual is not None else update
        data = parcel.encode(self.layout, kind, self.before, whole, seed=transfer)
        if kind.error_feedback:
            self.residual = whole - parcel.decode(self.layout, kind, data)[0]
        return data


def _coefficient(precoder: np.ndarray) -> complex | np.ndarray:
    return complex(precoder[0]) if precoder.size == 1 else precoder


def _phase_seed(node: str, first: int) -> int:
    """Phases must differ from node to node, and may repeat from round to round."""
    return int.from_bytes(node.encode()[-6:], "little") * 1_000_003 + first
