"""A PlutoSDR, or another radio with an AD936x, without libiio: over the network protocol of its own server, iiod.

A USB PlutoSDR is a network device, too: ip:192.168.2.1. The attributes are in `drivers.ad9361_settings`, the trigger in
`drivers.ad9361_trigger`; here are the rules of buffers, silence and lost links.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from drivers.ad9361_settings import RATE_STEP_HZ, Ad9361
from drivers.ad9361_trigger import TransferTrigger
from drivers.iiod_buffer import IiodBuffer
from drivers.iiod_client import IiodClient, IiodRefusal
from drivers.iiod_transfers import LOST, NativeBurst, NativeCapture
from drivers.pluto_port import MUTED_DB, PlutoFacts, PlutoSettings
from drivers.transport import Wire
from testbed.core.errors import BenchError, DeviceError, LimitError, RadioFault

_BLOCK = 8
"""Blocks are multiples of so many samples: transfers are multiples of eight bytes."""
_TAIL = 64
"""Zeros behind a burst, so that its last samples leave the filters."""
_CALIBRATED_SPAN_HZ = 100_000_000
_BUSY_S = 0.1
_MUTE_TIMEOUT_S = 0.6


class NativePort:
    """One AD936x, see `drivers.pluto_port.PlutoPort`.

    Args:
        uri: ip:HOST or ip:HOST:PORT.
        serial: hw_serial that has to answer; anyone if None.
        wire: where connections come from; LiveWire by default.
        timeout_s: for each exchange.

    Raises:
        TransportClosed, TransportTimeout: nothing answers there.
        ProtocolError: what answers is no iiod.
        DeviceError: it serves no AD936x, or one with another serial number.
    """

    def __init__(
        self, uri: str, *, serial: str | None = None, wire: Wire | None = None, timeout_s: float = 2.0
    ) -> None:
        self._lock = threading.RLock()
        self._mute_lock = threading.Lock()
        self._wanted: PlutoSettings | None = None
        self._receive: NativeCapture | None = None
        self._transmit: NativeBurst | None = None
        self._num_silences = 0
        self._silent = False
        self._closed = False
        self._serial = serial
        self._client = IiodClient(uri, wire=wire, timeout_s=timeout_s)
        try:
            self._describe()
            self._muting = IiodClient(uri, wire=wire, timeout_s=_MUTE_TIMEOUT_S, connect_timeout_s=_MUTE_TIMEOUT_S)
        except BaseException:
            self._client.close()
            raise

    @property
    def facts(self) -> PlutoFacts:
        """Who answers."""
        return self._facts

    def configure(self, settings: PlutoSettings) -> PlutoSettings:
        """Set everything and read it back; it also ends a silence. See `PlutoPort.configure`.

        Raises:
            LimitError: the chip cannot do it, or a transmit buffer lives and the rate or a far frequency would change.
            RadioFault: the chip did not take it, or it was silenced meanwhile.
        """
        with self._guarded("setting the radio"):
            wanted = self._chip.check(settings)
            live = self._live(self._transmit)
            if live:
                self._check_live(wanted)
            mark = self._num_silences
            self._silent = False
            self._wanted = wanted
            try:
                self._chip.apply(wanted, transmitting=live)
                self._refuse_if_silenced_since(mark)
            except BaseException:
                with suppress(BenchError):  # half set, or silenced meanwhile; the first error says what is wrong
                    self.silence()
                raise
            return self._read()

    def settings(self) -> PlutoSettings:
        """What is set, read now. Where receive and transmit differ, what is farther from what was ordered."""
        with self._guarded("reading the settings"):
            return self._read()

    def capture(self, num_samples: int, *, triggered: bool = False, channels: int = 1) -> NativeCapture:
        """Open a fresh receive buffer of one block, so that nothing older is ever read; see `PlutoPort.capture`.

        Raises:
            LimitError: no samples, or more channels than the radio has.
            RadioFault: another client receives.
        """
        if num_samples < 1:
            raise LimitError(f"{self._facts.uri}: a capture of {num_samples} samples", remedy="ask for one at least")
        if not 1 <= channels <= self._facts.num_rx:
            raise LimitError(
                f"{self._facts.uri}: {channels} receive channels are asked of a radio with {self._facts.num_rx}",
                remedy="set radios.channels = 1, or set the radio up as 2R2T (fw_setenv mode 2r2t)",
            )
        padded = -(-num_samples // _BLOCK) * _BLOCK
        with self._guarded("opening the receive buffer"):
            if self._receive is not None:
                self._receive.close()
            self._prepare_trigger(self._transmit)
            if triggered:
                self._trigger.hold_receive(padded)
            receiver = self._chip.receiver
            # One block, filled once, right after the opening: nothing older can be read. The count holds for buffers
            # that are opened later, and is refused while one lives.
            self._patiently("receive", lambda: self._client.set_buffers_count(receiver.identity, 1))
            buffer = IiodBuffer(self._client, receiver)
            self._patiently("receive", lambda: buffer.open(padded, (1 << 2 * channels) - 1))
            self._receive = NativeCapture(
                buffer,
                uri=self._facts.uri,
                num_samples=num_samples,
                num_padded=padded,
                channels=channels,
                triggered=triggered,
                lost=self._recovered,
            )
            return self._receive

    def burst(self, codes: np.ndarray, *, delay_samples: int | None = None) -> NativeBurst:
        """Load one burst; see `PlutoPort.burst`.

        Raises:
            LimitError: the codes are no int16 pairs, or the delay is negative.
            RadioFault: another client transmits, or the radio is silenced.
        """
        codes = self._checked(codes)
        padded = -(-(len(codes) + _TAIL) // _BLOCK) * _BLOCK
        block = np.zeros((padded, 2), "<i2")
        block[: len(codes)] = codes
        return self._load(block, delay_samples)

    def cyclic(self, codes: np.ndarray) -> NativeBurst:
        """Repeat a waveform until it is closed; see `PlutoPort.cyclic`."""
        codes = self._checked(codes)
        block = np.tile(codes, (_BLOCK // math.gcd(len(codes), _BLOCK), 1))
        burst = self._load(block, None, cyclic=True)
        burst.release()
        return burst

    def silence(self) -> None:
        """Stop radiating at once; see `PlutoPort.silence`.

        Raises:
            RadioFault: the radio could not be reached or did not obey: it may radiate.
        """
        self._num_silences += 1
        self._silent = True
        burst = self._transmit
        if burst is not None:
            burst.abort()
        with self._mute_lock:
            try:
                try:
                    self._mute()
                except LOST:
                    self._mute()  # on a fresh connection
            except BenchError as error:
                raise RadioFault(
                    f"{self._facts.uri}: could not be silenced: {error.message}",
                    remedy="switch the radio off: it may radiate",
                ) from error

    def unsilence(self) -> None:
        """Undo `silence`: what `configure` set holds again."""
        with self._guarded("ending the silence"):
            if self._silent and self._wanted is not None:
                self.configure(self._wanted)

    def close(self) -> None:
        """Silence and let go; may be repeated.

        Raises:
            RadioFault: the radio could not be silenced; it is let go all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.silence()
            with suppress(BenchError):  # it is silent; who uses it next sets the trigger anew
                self._trigger.release()
        finally:
            for transfer in (self._receive, self._transmit):
                if transfer is not None:
                    transfer.close()
            self._client.close()
            self._muting.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """One at a time; a lost link is reopened and verified before the error is raised, or before the next try."""
        with self._lock:
            if self._closed:
                raise RadioFault(f"{self._facts.uri}: the radio is closed", remedy="open it again")
            if self._client.broken:
                try:
                    self._recover()
                except BenchError as error:
                    raise RadioFault(f"{what}: {error.message}", remedy=error.remedy) from error
            try:
                yield
            except LOST as error:
                raise self._recovered(what, error) from error

    def _recovered(self, what: str, error: BenchError) -> RadioFault:
        """Reopen the link after it was lost and verify the settings; the error to raise, which says how it stands."""
        with self._lock:
            try:
                outcome = self._recover()
            except BenchError as again:
                outcome = f"the radio could not be reached again ({again.message})"
        return RadioFault(f"{what}: {error.message}; {outcome}", remedy=error.remedy)

    def _describe(self) -> None:
        """Who answers, from the description of the devices as it was read last."""
        client = self._client
        attributes = client.context.attributes
        found = attributes.get("hw_serial", "")
        if self._serial is not None and found != self._serial:
            raise DeviceError(
                f"{client.uri}: the radio with serial number {found or 'unknown'} answers, not {self._serial}",
                remedy="check which radio has this address (iio_info shows hw_serial), or mend radio.serial",
            )
        self._serial = found or None
        self._chip = Ad9361(client)
        self._trigger = TransferTrigger(client)
        self._facts = PlutoFacts(
            uri=client.uri,
            serial=found,
            firmware=attributes.get("fw_version", ""),
            model=attributes.get("hw_model", ""),
            num_rx=self._chip.num_rx,
            num_tx=self._chip.num_tx,
            triggered=self._trigger.present,
        )

    def _recover(self) -> str:
        """Open the link afresh and verify who answers and how it is set; in words. The link stays closed otherwise."""
        self._client.drop()
        try:
            self._client.refresh()
            self._describe()
            return self._verify()
        except BaseException:
            self._client.drop()
            raise

    def _verify(self) -> str:
        if self._wanted is None:
            return "the link is open again"
        found = self._chip.registers()
        words = self._chip.differences(self._wanted, found)
        if self._silent or (found.muted and self._wanted.tx_gain_db > MUTED_DB):
            self._silent = True
            return "the link is open again; the radio is silenced until it is tuned anew"
        if not words:
            return "the link is open again and the settings hold"
        if self._transmit is not None:
            self._transmit.abort()
        self._chip.apply(self._wanted, transmitting=False)
        return f"the link is open again; settings had changed and were set anew ({'; '.join(words)})"

    def _read(self) -> PlutoSettings:
        return self._chip.registers().summary(self._wanted)

    def _check_live(self, wanted: PlutoSettings) -> None:
        """The chip calibrates at full power after a far step of its carrier, and loses its gain after a new rate."""
        found = self._chip.registers()
        step_hz = abs(wanted.frequency_hz - found.tx_frequency_hz)
        if step_hz > _CALIBRATED_SPAN_HZ:
            what = f"a step of the carrier by {step_hz / 1e6:.1f} MHz would calibrate the chip at full power"
        elif abs(wanted.sample_rate_hz - found.tx_rate_hz) > RATE_STEP_HZ:
            what = "another sample rate would lose the transmit gain"
        else:
            return
        raise LimitError(
            f"{self._facts.uri}: a transmit buffer lives, and {what}", remedy="close the burst before tuning the radio"
        )

    def _checked(self, codes: np.ndarray) -> np.ndarray:
        if codes.ndim != 2 or codes.shape[1] != 2 or not len(codes):
            raise LimitError(
                f"{self._facts.uri}: codes of shape {codes.shape} were given",
                remedy="give rows of I and Q, one at least",
            )
        if codes.dtype.kind not in "iu" or (
            codes.dtype.itemsize > 1 and (int(codes.min()) < -(2**15) or int(codes.max()) >= 2**15)
        ):
            raise LimitError(
                f"{self._facts.uri}: codes are whole numbers from -32768 to 32767; {codes.dtype} from {codes.min()} to "
                f"{codes.max()} was given",
                remedy="scale the samples; beyond that range they would wrap round",
            )
        return codes.astype("<i2", copy=False)

    def _load(self, block: np.ndarray, delay_samples: int | None, *, cyclic: bool = False) -> NativeBurst:
        transmitter = self._chip.transmitter
        with self._guarded("loading the burst"):
            mark = self._num_silences
            if self._silent:
                raise RadioFault(f"{self._facts.uri}: the radio is silenced", remedy="tune it anew")
            if self._wanted is None:
                raise RadioFault(f"{self._facts.uri}: the radio has not been set", remedy="tune it before it transmits")
            if self._transmit is not None:
                self._transmit.close()
            self._prepare_trigger(self._receive)
            if delay_samples is not None:
                self._trigger.hold_transmit(delay_samples, len(block))
            self._chip.stop_tones()
            buffer = IiodBuffer(self._client, transmitter)
            # known before it is open: a silence that comes meanwhile ends it
            burst = self._transmit = NativeBurst(
                buffer, uri=self._facts.uri, triggered=delay_samples is not None, lost=self._recovered
            )
            try:
                self._patiently("transmit", lambda: buffer.open(len(block), 0b11, cyclic=cyclic))
                burst.load(block)
                self._refuse_if_silenced_since(mark)
            except BaseException:
                burst.abort()
                raise
            return burst

    def _prepare_trigger(self, other: NativeCapture | NativeBurst | None) -> None:
        """Let buffers run freely, unless the other direction waits: the trigger is locked while it holds a transfer."""
        if self._live(other) and other is not None and other.triggered:
            raise RadioFault(
                f"{self._facts.uri}: another transfer of this radio waits for the trigger",
                remedy="end it first: the trigger cannot be set while it is armed",
            )
        self._trigger.release()

    @staticmethod
    def _live(transfer: NativeCapture | NativeBurst | None) -> bool:
        return transfer is not None and transfer.open

    def _patiently(self, direction: str, action: Callable[[], None]) -> None:
        """Once more after a moment where the buffer is busy: its last owner's connection may still be closing."""
        try:
            action()
        except IiodRefusal as first:
            if first.code != errno.EBUSY:
                raise
            time.sleep(_BUSY_S)
            try:
                action()
            except IiodRefusal as error:
                if error.code != errno.EBUSY:
                    raise
                raise RadioFault(
                    f"{self._facts.uri}: another client holds the {direction} buffer of this radio",
                    remedy="end the other program that uses it (GNU Radio, IIO Oscilloscope, another run); where there "
                    "is none, a connection broke a moment ago and the radio has yet to notice: try again",
                ) from error

    def _mute(self) -> None:
        """On the connection that nothing else uses; all is tried, then the first failure is raised."""
        chip = Ad9361(self._muting)
        failure: RadioFault | None = None
        for action in (chip.mute_gain, chip.stop_tones, chip.power_down):
            try:
                action()
            except LOST:
                raise
            except RadioFault as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _refuse_if_silenced_since(self, mark: int) -> None:
        if self._num_silences != mark:
            raise RadioFault(f"{self._facts.uri}: the radio was silenced meanwhile", remedy="tune it anew")
