"""The receiver of the controller and the transmitters of the nodes, over the simulated medium.

Not modelled: lost bursts, timing and frequency offsets, converters. Bursts start on the receiver's sample grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim_backend.air import AirHub, AirPort, Burst
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import LimitError, RadioFault
from testbed.core.units import dbm_to_w, w_to_dbm
from testbed.phy.ofdm import body_power_w

_CHUNK = 8192  # samples; the room stands still within one
# complex multiplications of one product. OpenBLAS keeps those up to 2^16 on one thread; where other processes keep the
# cores busy, waiting for its other threads costs a hundred times the product
_PRODUCT = 65_536
_POWER_TOLERANCE = 1e-6


def _capabilities(bench: BenchSpec, *, num_antennas: int, max_power_w: float) -> Capabilities:
    return Capabilities(
        timed_tx=bench.radio.timed_tx,
        shared_clock=bench.radio.shared_clock,
        phase_coherent=bench.radio.phase_coherent,
        full_duplex=bench.radio.full_duplex,
        num_antennas=num_antennas,
        max_power_w=max_power_w,
        frequencies_hz=bench.limits.frequencies_hz,
        sample_rate_hz=(bench.sample_rate_hz, bench.sample_rate_hz),
    )


def _check_tuning(capabilities: Capabilities, frequency_hz: float, sample_rate_hz: float) -> None:
    low_hz, high_hz = capabilities.sample_rate_hz
    if not low_hz <= sample_rate_hz <= high_hz:
        raise LimitError(f"a sample rate of {sample_rate_hz:g} Hz; the radios of this bench run at {low_hz:g} Hz")
    half_hz = sample_rate_hz / 2
    if not any(
        low <= frequency_hz - half_hz and frequency_hz + half_hz <= high for low, high in capabilities.frequencies_hz
    ):
        bands = ", ".join(f"[{low:g}, {high:g}]" for low, high in capabilities.frequencies_hz)
        raise LimitError(
            f"{frequency_hz:g} +- {half_hz:g} Hz is outside the allowed bands {bands}",
            remedy="limits.frequencies_hz in the bench file names the bands your licence covers",
        )


class SimReceiver:
    """The controller's radio: hears every burst through the room.

    Args:
        bench: the bench; the room answers as at its carrier.
        world: channels and noise.
        hub: the medium.
        positions_m: tells where the antennas are, array frame, shape [num_antennas, 2].
    """

    def __init__(self, bench: BenchSpec, *, world: World, hub: AirHub, positions_m: Callable[[], np.ndarray]) -> None:
        self._world = world
        self._hub = hub
        self._positions_m = positions_m
        self._sample_rate_hz = bench.sample_rate_hz
        self._moves = bench.world.doppler_hz > 0
        self._window: tuple[float, int] | None = None
        self._capabilities = _capabilities(bench, num_antennas=len(bench.array.antennas), max_power_w=0.0)

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; it does not transmit."""
        return self._capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate.

        Raises:
            LimitError: outside the allowed bands, or another sample rate than the bench's.
        """
        _check_tuning(self._capabilities, frequency_hz, sample_rate_hz)

    def transmit(self, samples: np.ndarray, *, at_s: float) -> None:
        """Refused: this radio only listens.

        Raises:
            LimitError: always.
        """
        raise LimitError("the receiver of the simulated bench does not transmit")

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Capture so many samples from that instant on; bursts that ended before are stale and dropped."""
        self._window = (at_s, num_samples)
        self._hub.drop_until(at_s)

    def read(self) -> np.ndarray:
        """The armed capture.

        y_n[i] = sum_k h_nk(t_i) x_k[i - offset_k] + noise_n[i]

        Returns:
            shape [num_antennas, num_samples], complex64.

        Raises:
            RadioFault: nothing was armed.
        """
        if self._window is None:
            raise RadioFault("the receiver was read before it was armed")
        (at_s, num_samples), self._window = self._window, None
        bursts = self._hub.bursts(at_s, num_samples)
        positions_m = np.asarray(self._positions_m(), dtype=np.float64)
        # [num_antennas, num_samples]
        heard = self._world.noise((len(positions_m), num_samples), at_s)
        if bursts:
            self._superpose(heard, bursts, positions_m, at_s)
        self._hub.drop_until(at_s + num_samples / self._sample_rate_hz)
        return heard

    def mute(self) -> None:
        """Nothing to do: this radio never radiates."""

    def close(self) -> None:
        """Let go; may be repeated."""
        self._window = None

    def _superpose(self, heard: np.ndarray, bursts: list[Burst], positions_m: np.ndarray, at_s: float) -> None:
        """Add every burst through the channel, chunk by chunk: no temporary is larger than a chunk."""
        num_samples = heard.shape[1]
        starts = range(0, num_samples, _CHUNK)
        offsets = [round((burst.at_s - at_s) * self._sample_rate_hz) for burst in bursts]
        names = [burst.node for burst in bursts]
        middle = (
            np.array([(start + min(start + _CHUNK, num_samples)) / 2 for start in starts]) if self._moves else [0.0]
        )
        # [num_chunks or 1, num_antennas, num_bursts]
        channels = self._world.channels(names, positions_m, at_s + np.asarray(middle) / self._sample_rate_hz)
        channels = channels.astype(np.complex64)
        width = max(64, _PRODUCT // (len(heard) * len(bursts)))
        for index, start in enumerate(starts):
            stop = min(start + _CHUNK, num_samples)
            # [num_bursts, chunk]
            sent = np.zeros((len(bursts), stop - start), np.complex64)
            for row, burst, offset in zip(sent, bursts, offsets, strict=True):
                begin, end = max(start, offset), min(stop, offset + burst.samples.size)
                if begin < end:
                    row[begin - start : end - start] = burst.samples[begin - offset : end - offset]
            channel = channels[index if self._moves else 0]
            for left in range(0, stop - start, width):
                product = channel @ sent[:, left : left + width]
                heard[:, start + left : start + left + product.shape[1]] += product


class SimTransmitter:
    """A node's radio: posts what it sends to the medium.

    Args:
        bench: the bench.
        node: whose transmitter it is.
        port: the way to the medium.
    """

    def __init__(self, bench: BenchSpec, *, node: str, port: AirPort) -> None:
        board = next(board for board in bench.boards if board.name == node)
        self._node = node
        self._port = port
        self._waveform = bench.waveform
        limit_w = min(dbm_to_w(board.max_power_dbm), dbm_to_w(bench.limits.max_power_dbm))
        self._capabilities = _capabilities(bench, num_antennas=0, max_power_w=limit_w)

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; it does not receive."""
        return self._capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate.

        Raises:
            LimitError: outside the allowed bands, or another sample rate than the bench's.
        """
        _check_tuning(self._capabilities, frequency_hz, sample_rate_hz)

    def transmit(self, samples: np.ndarray, *, at_s: float) -> None:
        """Send one burst, then be mute; returns when the medium has it.

        Args:
            samples: square-root watts, shape [num_samples]. Average power is that of `testbed.phy.ofdm.body_power_w`.
            at_s: instant of the first sample.

        Raises:
            LimitError: the average power exceeds the node's limit, or is not finite; nothing is sent.
            RadioFault: the medium does not answer or refuses the burst.
        """
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.size == 0:
            raise LimitError(f"{self._node}: a burst is one row of samples; shape {samples.shape} was given")
        power_w, limit_w = body_power_w(samples, self._waveform), self._capabilities.max_power_w
        if not power_w <= limit_w * (1 + _POWER_TOLERANCE):
            raise LimitError(
                f"{self._node} would transmit {power_w:.6g} W ({w_to_dbm(power_w):.2f} dBm) on average; "
                f"its limit is {limit_w:.6g} W ({w_to_dbm(limit_w):.2f} dBm)",
                remedy="the smaller of the node's max_power_dbm and limits.max_power_dbm in the bench file holds",
            )
        self._port.post(self._node, at_s, samples)

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Refused: this radio only transmits.

        Raises:
            RadioFault: always.
        """
        raise RadioFault(f"{self._node}: a node of the simulated bench does not receive")

    def read(self) -> np.ndarray:
        """Refused: this radio only transmits.

        Raises:
            RadioFault: always.
        """
        raise RadioFault(f"{self._node}: a node of the simulated bench does not receive")

    def mute(self) -> None:
        """Nothing to do: a burst that was sent ends by itself, and nothing radiates between bursts."""

    def close(self) -> None:
        """Let go; may be repeated."""
        self._port.close()
