"""The receiver of the controller: every burst through the room, and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sim_backend import superposition
from sim_backend.air import AirHub, Burst
from sim_backend.capabilities import check_level, radio_capabilities
from sim_backend.jammer import add_jammer
from sim_backend.level_error import LevelError
from sim_backend.receive_chain import ReceiveChain
from sim_backend.transmit_chain import subcarriers_hz
from sim_backend.world import World
from testbed.core.bench import BenchSpec
from testbed.core.devices import Capabilities
from testbed.core.errors import ConfigError, LimitError, ProtocolError, RadioFault
from testbed.core.units import from_db

_LEAD = 64  # taps of a channel before its first path: how far a delay of a fraction of a sample reaches back


class SimReceiver:
    """The controller's radio: hears every burst through the room.

    Args:
        bench: the bench; the room answers as at its carrier.
        world: channels and noise.
        hub: the medium.
        positions_m: tells where the antennas are, array frame, shape [num_antennas, 2].
        seed: of the receive chain.

    Raises:
        ConfigError: an impairment needs samples and the waveform has none.
    """

    def __init__(
        self, bench: BenchSpec, *, world: World, hub: AirHub, positions_m: Callable[[], np.ndarray], seed: int = 0
    ) -> None:
        check_level(bench)
        self._waveform, self._sample_rate_hz = bench.waveform, bench.sample_rate_hz
        self._world = world
        self._hub = hub
        self._positions_m = positions_m
        self._rate_hz = bench.waveform.elements_per_second(bench.sample_rate_hz)
        self._chain = ReceiveChain(bench.world.impairments, seed=seed)
        self._bench, own = bench, bench.world.impairments
        self._carrier_hz = bench.carrier_hz
        # [num_antennas, 1]
        self._levels = np.array(
            [
                [LevelError.of_antenna(bench, antenna, seed).amplitude(from_db(own.rx_gain_db))]
                for antenna in range(len(bench.array.antennas))
            ],
            np.float32,
        )
        alike = bool(np.all(self._levels == 1.0)) and bench.world.jammer_dbm is None
        self._linear = self._chain.linear and alike
        self._stale_s = bench.world.impairments.stale_samples / self._rate_hz
        self._window: tuple[float, int] | None = None
        self._capabilities = radio_capabilities(bench, num_antennas=len(bench.array.antennas), max_power_w=0.0)

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; it does not transmit."""
        return self._capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """Set carrier and sample rate.

        Raises:
            LimitError: outside the allowed bands, or another sample rate than the bench's.
        """
        self._capabilities.check_tuning(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
        self._carrier_hz = frequency_hz

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Refused: this radio only listens.

        Raises:
            LimitError: always.
        """
        raise LimitError("the receiver of the simulated bench does not transmit")

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """Capture so many samples from that instant on; bursts that ended before are stale and dropped.

        Raises:
            LimitError: there is nothing to capture, or no instant.
        """
        if num_samples < 1 or not math.isfinite(at_s):
            raise LimitError(f"a capture of {num_samples} samples at {at_s} s")
        self._window = (at_s, num_samples)
        self._hub.drop_until(at_s - self._stale_s)

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """The armed capture, or one combination of its antennas.

        y_n[i] = sum_k h_nk(t_i) x_k[i - offset_k] + noise_n[i],   f^H y

        Where the receive chain leaves signals as they are, the combination takes f^H h and one stream of noise of
        power ||f||^2: a realisation of the same distribution, for a fraction of the work.

        Args:
            combiner: f, shape [num_antennas]; None reads every antenna.

        Returns:
            shape [num_antennas, num_samples], or [1, num_samples] with a combiner; complex64.

        Raises:
            RadioFault: nothing was armed.
            ProtocolError: the combiner is not one finite weight for each antenna.
            ConfigError: the room's delays are too long for the waveform.
        """
        if self._window is None:
            raise RadioFault("the receiver was read before it was armed")
        positions_m = np.asarray(self._positions_m(), dtype=np.float64)
        if combiner is not None:
            combiner = np.asarray(combiner, dtype=np.complex128)
            if combiner.shape != (len(positions_m),) or not np.isfinite(combiner).all():
                raise ProtocolError(
                    f"a combiner has {len(positions_m)} finite weights; shape {combiner.shape} was given"
                )
        (at_s, num_samples), self._window = self._window, None
        early = combiner if self._linear else None
        heard = self._hear(num_samples, at_s, positions_m, early)
        if not self._linear:
            heard *= self._levels
        self._chain.receive(heard)
        if combiner is None or early is not None:
            return heard
        return superposition.multiply_rows(combiner.conj().astype(np.complex64), heard)

    def mute(self) -> None:
        """Nothing to do: this radio never radiates."""

    def close(self) -> None:
        """Let go; may be repeated."""
        self._window = None

    def _hear(self, num_samples: int, at_s: float, positions_m: np.ndarray, combiner: np.ndarray | None) -> np.ndarray:
        """What arrives at the antenna ports, stretch by stretch of time, shape [num_rows, num_samples]."""
        stretches = self._chain.stretches(num_samples, at_s)
        first, last = stretches[0], stretches[-1]
        num_heard = last.source + last.stop - last.start - first.source
        first_s = at_s + first.source / self._rate_hz
        bursts = self._hub.bursts(first_s, num_heard)
        num_rows = len(positions_m) if combiner is None else 1
        whole = len(stretches) == 1
        heard = np.empty((num_rows, 0 if whole else num_samples), np.complex64)
        for stretch in stretches:
            begin_s = at_s + stretch.source / self._rate_hz
            part = self._noise((len(positions_m), stretch.stop - stretch.start), begin_s, combiner)
            if combiner is None:
                add_jammer(part, self._bench, at_s=begin_s, carrier_hz=self._carrier_hz, rate_hz=self._sample_rate_hz)
            if bursts:
                self._superpose(part, bursts, positions_m, begin_s, combiner)
            if whole:
                heard = part
            else:
                heard[:, stretch.start : stretch.stop] = part
        self._hub.drop_until(first_s + num_heard / self._rate_hz)
        return heard

    def _noise(self, shape: tuple[int, int], at_s: float, combiner: np.ndarray | None) -> np.ndarray:
        """Noise at the antenna ports or behind the combiner; a symbol holds that of the band it fills."""
        wave = self._waveform
        scale = 1.0 if wave.level == "samples" else math.sqrt(wave.num_active / wave.num_subcarriers)
        if combiner is None:
            noise = self._world.noise(shape, at_s)
        else:
            noise = self._world.combined_noise(shape[1], at_s)[None]
            scale *= float(np.linalg.norm(combiner))
        if scale != 1.0:
            noise *= np.float32(scale)
        return noise

    def _superpose(
        self,
        heard: np.ndarray,
        bursts: Sequence[Burst],
        positions_m: np.ndarray,
        at_s: float,
        combiner: np.ndarray | None,
    ) -> None:
        """Add every burst through the channel to what is heard from `at_s` on."""
        offsets = [round((burst.at_s - at_s) * self._rate_hz) for burst in bursts]
        samples = [burst.samples for burst in bursts]
        channels = _Channels(self._world, [burst.node for burst in bursts], positions_m, at_s, self._rate_hz, combiner)
        if not self._world.selective:
            superposition.add_flat(heard, samples, offsets, channels.flat)
        elif self._waveform.level == "symbols":
            tones_hz = subcarriers_hz(self._waveform, self._sample_rate_hz)
            response_at = partial(channels.response, tones_hz)
            superposition.add_subcarriers(heard, samples, offsets, response_at, self._waveform.num_active)
        else:
            tail = 2 * max(_LEAD, self._waveform.cyclic_prefix) + _LEAD
            spectrum_at = partial(channels.spectrum, _LEAD, tail)
            superposition.add_selective(heard, samples, offsets, spectrum_at, lead=_LEAD, tail=tail)


class _Channels:
    """The room's channels at an index of a capture; asked once if the room stands still."""

    def __init__(
        self,
        world: World,
        nodes: Sequence[str],
        positions_m: np.ndarray,
        at_s: float,
        rate_hz: float,
        combiner: np.ndarray | None,
    ) -> None:
        self._world, self._nodes, self._positions_m = world, nodes, positions_m
        self._at_s, self._rate_hz = at_s, rate_hz
        self._combiner = combiner
        self._known: np.ndarray | None = None

    def flat(self, index: float, bursts: Sequence[int]) -> np.ndarray:
        """Shape [num_rows, num_bursts], complex64."""

        def ask(nodes: Sequence[str], instants_s: np.ndarray) -> np.ndarray:
            return self._combined(self._world.channels(nodes, self._positions_m, instants_s)[0])

        return self._once(index, bursts, ask)

    def response(self, frequencies_hz: np.ndarray, index: float, bursts: Sequence[int]) -> np.ndarray:
        """Shape [num_frequencies, num_rows, num_bursts], complex64."""

        def ask(nodes: Sequence[str], instants_s: np.ndarray) -> np.ndarray:
            return self._combined(self._world.response(nodes, self._positions_m, instants_s, frequencies_hz)[0])

        return self._once(index, bursts, ask)

    def spectrum(self, lead: int, tail: int, index: float, bursts: Sequence[int]) -> np.ndarray:
        """`superposition.fir_spectrum` of the response, shape [fft, num_rows, num_bursts]."""
        frequencies_hz = self._rate_hz * superposition.sounded_frequencies(lead, tail)

        def ask(nodes: Sequence[str], instants_s: np.ndarray) -> np.ndarray:
            response = self._world.response(nodes, self._positions_m, instants_s, frequencies_hz)[0]
            try:
                return superposition.fir_spectrum(self._combined(response), lead=lead, tail=tail)
            except ValueError as error:
                raise ConfigError(
                    str(error), key="world.delay_spread_s", remedy="lengthen waveform.cyclic_prefix"
                ) from error

        return self._once(index, bursts, ask)

    def _once(
        self, index: float, bursts: Sequence[int], ask: Callable[[Sequence[str], np.ndarray], np.ndarray]
    ) -> np.ndarray:
        if self._world.moves:
            at_s = np.array([self._at_s + index / self._rate_hz])
            return ask([self._nodes[burst] for burst in bursts], at_s)
        if self._known is None:
            self._known = ask(self._nodes, np.array([self._at_s]))
        if len(bursts) == len(self._nodes):
            return self._known
        return np.ascontiguousarray(self._known[..., bursts])

    def _combined(self, channel: np.ndarray) -> np.ndarray:
        """f^H h if there is a combiner: [..., num_antennas, num_bursts] gives [..., num_rows, num_bursts]."""
        if self._combiner is None:
            return channel.astype(np.complex64)
        return (self._combiner.conj() @ channel)[..., None, :].astype(np.complex64)
