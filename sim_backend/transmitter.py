"""The transmitter of a node: posts what it radiates to the simulated medium."""

from __future__ import annotations

import numpy as np

from sim_backend.air import AirPort
from sim_backend.beacon import Beacon
from sim_backend.capabilities import check_level, radio_capabilities
from sim_backend.level_error import LevelError
from sim_backend.transmit_chain import TransmitChain
from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import RadioFault
from testbed.core.units import dbm_to_w
from testbed.phy.burst import check_burst


class SimTransmitter:
    """A node's radio: posts what it sends, after its transmit chain, to the medium.

    Args:
        bench: the bench.
        node: whose transmitter it is.
        port: the way to the medium.
        seed: of the transmit chain.

    Raises:
        ConfigError: an impairment needs samples and the waveform has none.
    """

    def __init__(self, bench: BenchSpec, *, node: str, port: AirPort, seed: int = 0) -> None:
        check_level(bench)
        index, board = next((index, board) for index, board in enumerate(bench.boards) if board.name == node)
        self._node = node
        self._port = port
        self._waveform = bench.waveform
        limit_w = min(dbm_to_w(board.max_power_dbm), dbm_to_w(bench.limits.max_power_dbm))
        self._capabilities = radio_capabilities(bench, num_antennas=0, max_power_w=limit_w)
        level = LevelError.of_node(bench, index, seed).amplitude(1.0)
        self._chain = TransmitChain(bench, node_index=index, seed=seed, max_power_w=limit_w, level=level)
        self._beacon = (
            Beacon(bench, node=node, node_index=index, offset=self._chain.crystal.offset, seed=seed)
            if bench.radio.trigger == "beacon"
            else None
        )
        self._num_tunings = 0

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; it does not receive."""
        return self._capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate.

        Raises:
            LimitError: outside the allowed bands, or another sample rate than the bench's.
        """
        self._capabilities.check_tuning(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
        self._num_tunings += 1

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Send one burst, then be mute; returns when the medium has it. A node that misses its beacon sends nothing.

        Args:
            samples: square-root watts, shape [num_samples], complex64. Average power is that of
                `testbed.phy.ofdm.body_power_w`, or at level symbols that of all symbols.
            at_s: instant of the first sample.
            trigger_s: not needed: the simulated clock starts every burst.

        Raises:
            LimitError: not one row of finite complex64 samples, an average power above the node's limit, or a sample
                beyond the transmit converter's full scale; nothing is sent.
            RadioFault: the medium does not answer or refuses the burst.
        """
        samples = np.asarray(samples)
        check_burst(self._node, samples, at_s, limit_w=self._capabilities.max_power_w, waveform=self._waveform)
        late_s = 0.0 if self._beacon is None else self._beacon.late_s(at_s)
        if late_s is None:
            return  # it did not hear the beacon and waits for the next
        if self._waveform.level == "symbols":
            self._port.post(self._node, at_s, self._chain.radiate_symbols(samples, at_s, self._num_tunings, late_s))
        else:
            radiated, begin_s = self._chain.radiate(samples, at_s, self._num_tunings, late_s)
            self._port.post(self._node, begin_s, radiated)

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Refused: this radio only transmits.

        Raises:
            RadioFault: always.
        """
        raise RadioFault(f"{self._node}: a node of the simulated bench does not receive")

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
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
