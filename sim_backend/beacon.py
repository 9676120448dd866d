"""The beacon that starts a burst, as a node hears it: a preamble through its own channel and its own noise."""

from __future__ import annotations

import math

import numpy as np

from sim_backend.impairments import stream
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.units import dbm_to_w
from testbed.phy import preamble, sounding

_BEACON = 120  # keeps these draws apart from those of the transmit chains
_QUIET = 512  # samples that the node listens before the beacon is due, and after it has ended


class Beacon:
    """When one node thinks that the beacon came.

    The receiver's first antenna, at its home, sends short training and two pilot blocks; the channel is that of the
    uplink (reciprocity), the node's noise figure that of the receiver, its clock not aligned with the beacon's samples.
    The node looks for the preamble as every receiver of the testbed does, and sends a fixed time after the sample it
    found.

    Args:
        bench: beacon power, room and waveform.
        node: its name.
        node_index: of the node on the bench.
        offset: of the node's oscillator from the beacon's, relative.
        seed: of the run.
    """

    def __init__(self, bench: BenchSpec, *, node: str, node_index: int, offset: float, seed: int) -> None:
        self._bench, self._node, self._index, self._seed = bench, node, node_index, seed
        self._world = World(bench, seed)
        self._home_m = np.array([bench.array.antennas[0].home_m])
        self._waveform = bench.waveform.model_copy(update={"level": "samples"})
        sent = sounding.build(2, self._waveform, dbm_to_w(bench.radio.beacon_dbm))
        self._sent = np.concatenate([np.zeros(_QUIET), sent, np.zeros(_QUIET)]).astype(np.complex128)
        self._cfo = -offset * bench.carrier_hz / bench.sample_rate_hz

    def late_s(self, at_s: float) -> float | None:
        """How much later than ordered the node starts a burst that was ordered for this instant.

        Returns:
            seconds, negative where it is early; None if it did not hear the beacon.
        """
        generator = stream(self._seed, _BEACON, self._index, round(at_s * 1e9))
        fraction = generator.uniform(-0.5, 0.5)
        size = self._sent.size
        # the node's samples lie a fraction beside the beacon's
        shift = np.exp(-2j * np.pi * np.fft.fftfreq(size) * fraction)
        turn = np.exp(2j * np.pi * self._cfo * np.arange(size))
        gain = self._world.channel(self._node, self._home_m, at_s)[0]
        heard = gain * np.fft.ifft(np.fft.fft(self._sent) * shift) * turn
        noise = generator.standard_normal((size, 2)) @ np.array([1.0, 1.0j])
        heard = (heard + math.sqrt(self._world.noise_w / 2) * noise).astype(np.complex64)
        found = preamble.search(heard[None], self._waveform, 0, 2 * _QUIET)
        if found is None:
            return None
        return (found.start - _QUIET - fraction) / self._bench.sample_rate_hz
