"""One virtual PlutoSDR: its chip, its transfers, and its place on the air."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import numpy as np

from sim_backend.emulators.buffers import ReceiveBuffer, TransmitBuffer, failure
from sim_backend.emulators.chip import Chip
from sim_backend.emulators.emission import Emission
from sim_backend.emulators.ether import Ether
from sim_backend.emulators.faults import RADIO_FAULTS, FaultPlan
from sim_backend.emulators.history import Window
from sim_backend.emulators.station import Station
from sim_backend.emulators.transmit_path import TransmitPath
from testbed.core.errors import BenchError
from testbed.core.hardware import PlutoSpec
from testbed.core.units import w_to_dbm

_MOST_BYTES = 256 << 20
_RECEIVE, _TRANSMIT = 1, 2  # outputs of the transfer trigger
_TX_FULL_SCALE_DBM = 7.0


class VirtualRadio:
    """What an iiod server serves.

    Args:
        name: of the radio on the control port.
        chip: the AD936x.
        ether: the air.
        spec: levels of its converters.
        node: whose radio it is; None for one of the array.
        antennas: numbers of the array's antennas behind its channels.
        faults: what goes wrong with its transfers.
    """

    def __init__(
        self,
        name: str,
        chip: Chip,
        ether: Ether,
        *,
        spec: PlutoSpec,
        node: str | None = None,
        antennas: tuple[int, ...] = (),
        faults: FaultPlan | None = None,
    ) -> None:
        self.name, self.chip, self.ether = name, chip, ether
        self.node, self.antennas = node, antennas
        self.faults = FaultPlan(RADIO_FAULTS) if faults is None else faults
        self._timebase = ether.timebase
        self._num_elements = 4 if chip.identity.two_channels else 2
        if node is None:
            full_scale_dbm = _TX_FULL_SCALE_DBM if spec.tx_full_scale_dbm is None else spec.tx_full_scale_dbm
            path = TransmitPath(full_scale_dbm)
        else:
            path = TransmitPath.of_node(ether.bench, node, ether.seed)
        self.station = Station(
            name,
            chip,
            num_channels=self._num_elements // 2,
            path=path,
            rx_full_scale_dbm=spec.rx_full_scale_dbm,
            node=node,
            antennas=antennas,
            index=-1 - antennas[0] if node is None else ether.bench.node_names.index(node),
        )
        self._receive: ReceiveBuffer | None = None
        self._transmit: TransmitBuffer | None = None
        chip.changed = self._chip_changed
        chip.soft_trigger = self._soft_trigger
        ether.add(self.station, self)

    def open_receive(self, num_samples: int, mask: int, num_blocks: int) -> ReceiveBuffer:
        """Begin to receive, or to wait for the trigger.

        Args:
            num_samples: of a block.
            mask: enabled scan elements, one bit each.
            num_blocks: blocks of the kernel.

        Returns:
            the buffer, which lives until it is closed.

        Raises:
            OSError: EBUSY while one lives, EINVAL for nothing to receive, ENOMEM for too much.
        """
        with self._timebase.lock:
            elements = self._elements(num_samples, mask, num_blocks)
            if self._receive is not None:
                raise failure(errno.EBUSY)
            self._timebase.settle()
            self._receive = ReceiveBuffer(
                self._timebase,
                self._render,
                num_samples=num_samples,
                elements=elements,
                num_blocks=num_blocks,
                rate_hz=self.chip.sample_rate_hz,
                triggered=self._armed(_RECEIVE),
                faults=self.faults,
                lost=lambda: self.chip.lost_samples(False),
                closed=self._receive_closed,
            )
            return self._receive

    def open_transmit(self, num_samples: int, mask: int, cyclic: bool, num_blocks: int) -> TransmitBuffer:
        """Silence the chip's own tones and take what is to be transmitted.

        Args:
            num_samples: of a block.
            mask: enabled scan elements, one bit each; the others transmit silence.
            cyclic: the first block repeats until the buffer is closed.
            num_blocks: blocks of the kernel.

        Returns:
            the buffer, which lives until it is closed.

        Raises:
            OSError: EBUSY while one lives, EINVAL for nothing to transmit, ENOMEM for too much.
        """
        with self._timebase.lock:
            elements = self._elements(num_samples, mask, num_blocks)
            if self._transmit is not None:
                raise failure(errno.EBUSY)
            self._transmit = TransmitBuffer(
                self._timebase,
                self._emit,
                num_samples=num_samples,
                elements=elements,
                num_elements=self._num_elements,
                num_blocks=1 if cyclic else num_blocks,
                cyclic=cyclic,
                rate_hz=self.chip.sample_rate_hz,
                num_tunings=lambda: self.chip.tunings,
                armed=lambda: self._armed(_TRANSMIT),
                faults=self.faults,
                lost=lambda: self.chip.lost_samples(True),
                closed=self._transmit_closed,
            )
            self.chip.transmit_buffer_opened()
            self.station.note_buffer(self._timebase.now_s(), lives=True)
            return self._transmit

    def trigger(self, at_s: float, *, external: bool) -> None:
        """A pulse of the trigger: transfers that wait for it begin after their delays; under the time's lock.

        Args:
            at_s: when.
            external: it came by the line that all radios share.
        """
        tdd = self.chip.tdd
        if not tdd.enable or (external and not tdd.sync_external):
            return
        begins = self._begins(at_s, tdd.startup_delay_raw + tdd.channels[_RECEIVE].on_raw)
        if self._receive is not None and self._receive.waits and tdd.channels[_RECEIVE].enable:
            self._receive.begin(begins)
        begins = self._begins(at_s, tdd.startup_delay_raw + tdd.channels[_TRANSMIT].on_raw)
        if self._transmit is not None and self._transmit.waits and tdd.channels[_TRANSMIT].enable:
            self._transmit.begin(begins)

    def wanted(self) -> list[tuple[float, float]]:
        """Stretches of time of which samples may still be read."""
        return [] if self._receive is None else self._receive.wanted()

    def state(self) -> dict[str, object]:
        """What it does now, for the control port."""
        with self._timebase.lock:
            now_s = self._timebase.now_s()
            transmits = self.station.transmits.latest
            radiated_w = self.station.radiated_w(now_s)
            return {
                "transmitting": self.station.transmitting(now_s),
                "radiated_dbm": w_to_dbm(radiated_w) if radiated_w > 0 else None,
                "tx_lo_hz": transmits.lo_hz,
                "rx_lo_hz": self.station.receives.latest.lo_hz,
                "tx_gain_db": max(transmits.gains_db),
                "dds": any(enabled and scale > 0 for own in transmits.tones for _, scale, _, enabled in own),
                "powerdown": transmits.powerdown,
                "buffers": sum(buffer is not None for buffer in (self._receive, self._transmit)),
                "sample_rate_hz": transmits.rate_hz,
            }

    def close(self) -> None:
        """End all transfers; may be repeated."""
        for buffer in (self._transmit, self._receive):
            if buffer is not None:
                buffer.close()

    def _begins(self, at_s: float, cycles: int) -> float:
        return at_s + cycles / self.chip.sample_rate_hz

    def _armed(self, output: int) -> bool:
        tdd = self.chip.tdd
        return tdd.enable and tdd.channels[output].enable

    def _elements(self, num_samples: int, mask: int, num_blocks: int) -> list[int]:
        elements = [element for element in range(self._num_elements) if mask >> element & 1]
        if num_samples < 1 or num_blocks < 1 or not elements or mask >> self._num_elements:
            raise failure(errno.EINVAL)
        if num_samples * 2 * len(elements) * num_blocks > _MOST_BYTES:
            raise failure(errno.ENOMEM)
        return elements

    def _render(self, window: Window, channels: Sequence[int]) -> np.ndarray:
        try:
            return self.ether.receive(self.station, window, channels)
        except BenchError as error:
            raise failure(errno.EIO) from error

    def _emit(self, emission: Emission) -> None:
        self.ether.forget(self._timebase.now_s())
        self.station.emit(emission)

    def _chip_changed(self, attribute: str) -> None:
        """A setting was written: the air notes it, and transfers run freely once the trigger is off."""
        with self._timebase.lock:
            now_s = self._timebase.now_s()
            self.ether.forget(now_s)
            self.station.note(now_s)
            if self._receive is not None and self._receive.waits and not self._armed(_RECEIVE):
                self._receive.begin(now_s)
            if self._transmit is not None and self._transmit.waits and not self._armed(_TRANSMIT):
                self._transmit.begin(now_s)

    def _soft_trigger(self) -> None:
        with self._timebase.lock:
            self.trigger(self._timebase.now_s(), external=False)

    def _receive_closed(self) -> None:
        self._receive = None

    def _transmit_closed(self) -> None:
        self._transmit = None
        self.chip.transmit_buffer_closed()
        self.station.note_buffer(self._timebase.now_s(), lives=False)
