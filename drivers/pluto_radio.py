"""The transmitter of a node on an AD936x: limits, codes, and the start of every burst.

Trigger "clock": the burst waits in the radio, which sends it a counted number of samples after the common trigger.
Trigger "network": the burst waits in the link to the radio, and is let go when the node's clock shows the time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from drivers.pluto_port import MUTED_DB, Burst, PlutoPort, PlutoSettings
from drivers.pluto_release import TimedRelease
from drivers.pluto_scale import (
    PLUTO_FULL_SCALE_DBM,
    TransmitScale,
    changed,
    check_samples_level,
    pluto_capabilities,
    settings_for,
)
from drivers.trigger import Timepiece
from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import BenchError, ConfigError, LimitError, RadioFault
from testbed.phy.burst import check_burst
from testbed.phy.coherence import JITTER_DEVIATIONS

_GAIN_TOLERANCE_DB = 0.01


def check_trigger(bench: BenchSpec, port: PlutoPort, name: str) -> None:
    """Refuse a trigger that a radio does not have.

    Raises:
        ConfigError: says what to set instead.
    """
    if bench.radio.trigger == "beacon":
        raise ConfigError(
            f"{name}: the FPGA image of a PlutoSDR cannot start a burst at a beacon it hears",
            key="radio.trigger",
            remedy='set radio.trigger = "clock" and wire a trigger line, or "network" with a measured start_jitter_s',
        )
    if bench.radio.trigger == "clock" and not port.facts.triggered:
        raise ConfigError(
            f"{name} at {port.facts.uri} has no transfer trigger (its firmware is {port.facts.firmware})",
            key="radio.trigger",
            remedy='install PlutoSDR firmware 0.38 or newer, or set radio.trigger = "network" with a measured '
            "start_jitter_s",
        )


class PlutoTransmitter:
    """A node's radio, see `testbed.core.devices.Radio`. It sends one burst at a time and does not receive.

    Once muted, by `mute` or from outside (a watchdog, an emergency stop, another program), it sends nothing until it is
    tuned anew.

    Args:
        bench: the bench.
        node: whose transmitter it is.
        port: the radio; this object owns it from now on.
        flags: what it claims, see `testbed.phy.coherence.claimed_flags`.
        clock: the controller's time as this node knows it, for trigger "network".
        full_scale_dbm: radiated by a full-scale tone at 0 dB attenuation, where the node's radio does not say.

    Raises:
        ConfigError: the waveform has no samples, the radio has not the trigger, or its attenuator cannot be set for the
            node's power limit.
    """

    def __init__(
        self,
        bench: BenchSpec,
        node: str,
        port: PlutoPort,
        *,
        flags: Mapping[str, bool],
        clock: Timepiece,
        full_scale_dbm: float = PLUTO_FULL_SCALE_DBM,
    ) -> None:
        check_samples_level(bench)
        check_trigger(bench, port, node)
        board = next(board for board in bench.boards if board.name == node)
        self._node, self._board, self._port, self._clock = node, board, port, clock
        self._waveform, self._rate_hz = bench.waveform, bench.sample_rate_hz
        self._triggered = bench.radio.trigger == "clock"
        self._patience_s = JITTER_DEVIATIONS * bench.radio.start_jitter_s
        self._scale = self._tuned_scale = TransmitScale.of(bench, board, full_scale_dbm=full_scale_dbm)
        self._capabilities = pluto_capabilities(bench, flags, num_antennas=0, max_power_w=self._scale.limit_w)
        self._lock = threading.Lock()  # one order at a time; mute does not wait for it
        self._muted = threading.Event()
        self._closed = False
        self._burst: Burst | None = None
        self._release: TimedRelease | None = None
        self._set: PlutoSettings | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; it does not receive."""
        return self._capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate, end the last burst, and undo a mute.

        Raises:
            LimitError: outside the allowed bands, another sample rate than the bench's, or more than the chip can do.
            RadioFault: the radio did not take it, or radiates more than it should.
        """
        self._capabilities.check_tuning(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
        with self._lock:
            self._refuse_if_closed()
            self._end_burst()
            self._scale = self._tuned_scale
            wanted = settings_for(self._board.radio, frequency_hz, sample_rate_hz, tx_gain_db=self._scale.gain_db)
            self._set = None
            self._muted.clear()
            try:
                found = self._port.configure(wanted)
                if found.tx_gain_db > wanted.tx_gain_db + _GAIN_TOLERANCE_DB:
                    raise RadioFault(
                        f"{self._node}: the transmit gain is {found.tx_gain_db:g} dB; {wanted.tx_gain_db:g} dB was set",
                        remedy="restart the radio",
                    )
                self._port.unsilence()
            except BaseException:
                self._muted.set()
                with suppress(BenchError):  # the first error says what is wrong
                    self._port.silence()
                raise
            if self._muted.is_set():
                self._port.silence()  # a mute that came meanwhile wins
            self._set = found

    def adjust(
        self, *, rx_gain: float | None = None, tx_gain: float | None = None, crystal_hz: int | None = None
    ) -> None:
        """Change the attenuation or the crystal, until the radio is tuned anew; see `testbed.core.devices.Adjustable`.

        Raises:
            LimitError: the radio does not receive, or the gain is none that it has.
            RadioFault: the radio was not tuned, or did not take it.
        """
        if rx_gain is not None:
            raise LimitError(f"{self._node}: a node's radio does not receive, so it has no receive gain to set")
        with self._lock:
            self._refuse_if_closed()
            self._end_burst()
            self._check_state()
            assert self._set is not None  # _check_state saw to it
            wanted = self._set
            if tx_gain is not None:
                self._scale = self._tuned_scale.at(tx_gain)
                wanted = replace(wanted, tx_gain_db=self._scale.gain_db)
            if crystal_hz is not None:
                wanted = replace(wanted, xo_correction=crystal_hz)
            self._set = self._port.configure(wanted)

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Send one burst, then be mute; returns when it waits for the trigger or for its time.

        Args:
            samples: square-root watts, shape [num_samples], complex64. Average power is that of
                `testbed.phy.ofdm.body_power_w`.
            at_s: instant of the first sample.
            trigger_s: instant of the trigger; `at_s` itself if None.

        Raises:
            LimitError: not one row of finite complex64 samples, an average power above the node's limit, a sample
                beyond the transmit converter's full scale, or a burst before its trigger; nothing is sent.
            RadioFault: the radio is muted, was never tuned or was tuned by somebody else, failed, or the order came too
                late; nothing is sent. Where no trigger starts bursts, also that the burst before this one was not sent.
        """
        samples = np.asarray(samples)
        check_burst(self._node, samples, at_s, limit_w=self._scale.limit_w, waveform=self._waveform)
        delay = self._delay_samples(at_s, trigger_s)
        codes = self._scale.codes(samples)
        with self._lock:
            self._refuse_if_closed()
            failure = self._end_burst()
            self._check_state()
            if failure is not None:
                raise RadioFault(
                    f"{self._node}: the burst before this one was not sent: {failure.message}", remedy=failure.remedy
                ) from failure
            self._burst = self._port.burst(codes, delay_samples=delay)
            try:
                self._refuse_if_muted()
                if delay is None:
                    self._refuse_if_late(at_s)
                    self._release = TimedRelease(self._burst, at_s, clock=self._clock, check=self._refuse_if_muted)
            except BaseException:
                self._end_burst()
                raise

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Refused: this radio only transmits.

        Raises:
            RadioFault: always.
        """
        raise RadioFault(f"{self._node}: a node of this bench does not receive")

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """Refused: this radio only transmits.

        Raises:
            RadioFault: always.
        """
        raise RadioFault(f"{self._node}: a node of this bench does not receive")

    def mute(self) -> None:
        """Stop radiating at once, and until it is tuned anew; from any thread.

        Raises:
            RadioFault: the radio cannot be reached, so it may still radiate.
        """
        self._muted.set()
        if not self._closed:
            self._port.silence()

    def close(self) -> None:
        """Mute and let go; may be repeated.

        Raises:
            RadioFault: the radio cannot be reached, so it may still radiate.
        """
        self._muted.set()
        self._closed = True
        try:
            self._port.close()
        finally:
            if (release := self._release) is not None:
                release.cancel()

    def _delay_samples(self, at_s: float, trigger_s: float | None) -> int | None:
        """Samples from the trigger to the first sample; None where no trigger starts the burst."""
        if not self._triggered:
            return None
        delay = 0 if trigger_s is None else round((at_s - trigger_s) * self._rate_hz)
        if delay < 0:
            raise LimitError(f"{self._node}: a burst at {at_s:.6f} s begins before its trigger at {trigger_s:.6f} s")
        return delay

    def _refuse_if_late(self, at_s: float) -> None:
        late_s = self._clock.now_s() - at_s
        if late_s > self._patience_s:
            raise RadioFault(
                f"{self._node}: the burst was ready {1e3 * late_s:.3g} ms late, where radio.start_jitter_s allows "
                f"{1e3 * self._patience_s:.3g} ms; it was not sent",
                remedy="look for what slows the network or this computer, or raise radio.start_jitter_s to what is "
                "measured",
            )

    def _check_state(self) -> None:
        """Return where the radio is still as it was tuned."""
        self._refuse_if_muted()
        if self._set is None:
            raise RadioFault(f"{self._node}: the radio was not tuned")
        now = self._port.settings()
        if now.tx_gain_db <= MUTED_DB + _GAIN_TOLERANCE_DB:
            self._muted.set()
            raise RadioFault(
                f"{self._node}: the radio at {self._port.facts.uri} was muted from outside",
                remedy="look into the watchdog's log, or ask who stopped the bench; tuning the radio anew frees it",
            )
        if differences := changed(self._set, now):
            raise RadioFault(
                f"{self._node}: another program changed the radio at {self._port.facts.uri}: {', '.join(differences)}",
                remedy="one program at a time may own a radio; end the other one, and tune this one anew",
            )

    def _refuse_if_muted(self) -> None:
        if self._muted.is_set():
            raise RadioFault(f"{self._node}: the radio was muted; it sends nothing until it is tuned anew")

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RadioFault(f"{self._node}: the radio was closed")

    def _end_burst(self) -> BenchError | None:
        """Nothing of the last burst radiates any more; returns what kept it from being sent."""
        burst, self._burst = self._burst, None
        release, self._release = self._release, None
        failure = None if release is None else release.cancel()
        if burst is not None:
            burst.close()
        return failure
