"""Radios that use what calibrations have found: any transmitter, any receiver, on any backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from testbed.core.corrections import ReceiveCorrection, TransmitCorrection
from testbed.core.devices import Capabilities, Radio
from testbed.core.errors import ProtocolError
from testbed.phy.corrections import equalised, predistorted
from testbed.phy.reference import delayed


class _Corrected:
    """What both directions pass on."""

    def __init__(self, radio: Radio) -> None:
        self._radio = radio
        self._tuned_hz = (0.0, 1.0)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the radio."""
        return self._radio.capabilities

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        """See `testbed.core.devices.Radio`."""
        self._radio.tune(frequency_hz=frequency_hz, sample_rate_hz=sample_rate_hz)
        self._tuned_hz = (frequency_hz, sample_rate_hz)

    def arm(self, num_samples: int, *, at_s: float) -> None:
        """See `testbed.core.devices.Radio`."""
        self._radio.arm(num_samples, at_s=at_s)

    def mute(self) -> None:
        """See `testbed.core.devices.Radio`."""
        self._radio.mute()

    def close(self) -> None:
        """See `testbed.core.devices.Radio`."""
        self._radio.close()


class CorrectedTransmitter(_Corrected):
    """A node's radio that sends what was meant.

    Args:
        radio: as it is.
        correction: what is wrong with it.
    """

    def __init__(self, radio: Radio, correction: TransmitCorrection) -> None:
        super().__init__(radio)
        self._correction = correction

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """Send one burst, earlier by the radio's delay and distorted so that it leaves undistorted.

        Whole samples of the delay move the start, the rest moves the burst within its samples; what that adds to the
        largest peaks is cut, since a converter may have no room for it. A radio that a trigger
        starts cannot send before it: `Devices.advance_s` lets captures begin early enough.
        """
        carrier_hz, rate_hz = self._tuned_hz
        lag = self._correction.delay_s * rate_hz
        start_s = at_s - round(lag) / rate_hz
        if trigger_s is not None:
            start_s = max(start_s, trigger_s)
        given = np.asarray(samples)
        if given.ndim == 1 and given.size and given.dtype == np.complex64:  # anything else the radio itself refuses
            given = predistorted(given, self._correction, at_s=at_s, carrier_hz=carrier_hz, sample_rate_hz=rate_hz)
            moved, margin = delayed(given, round(lag) - lag)
            given = _no_louder(moved[margin : margin + given.size], np.asarray(samples))
        self._radio.transmit(given, at_s=start_s, trigger_s=trigger_s)

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """See `testbed.core.devices.Radio`."""
        return self._radio.read(combiner)


def _no_louder(samples: np.ndarray, than: np.ndarray) -> np.ndarray:
    """The samples with both branches cut at the largest of another burst's, shape [num_samples], complex64."""
    largest = float(np.max(np.abs(np.ascontiguousarray(than).view(np.float32))))
    branches = np.array(samples, np.complex64).view(np.float32)
    np.clip(branches, -largest, largest, out=branches)
    return branches.view(np.complex64)


class CorrectedReceiver(_Corrected):
    """The controller's receiver, delivering what arrived at the antennas.

    Args:
        radio: as it is.
        corrections: one for each antenna.

    Raises:
        ProtocolError: there are not as many corrections as antennas.
    """

    def __init__(self, radio: Radio, corrections: Sequence[ReceiveCorrection]) -> None:
        super().__init__(radio)
        if len(corrections) != radio.capabilities.num_antennas:
            raise ProtocolError(
                f"{len(corrections)} corrections for a receiver with {radio.capabilities.num_antennas} antennas"
            )
        self._corrections = tuple(corrections)

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        """See `testbed.core.devices.Radio`."""
        self._radio.transmit(samples, at_s=at_s, trigger_s=trigger_s)

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        """The armed capture, each antenna put right, then combined if there is a combiner."""
        heard = self._radio.read()
        rows = np.stack([equalised(row, one) for row, one in zip(heard, self._corrections, strict=True)])
        if combiner is None:
            return rows
        weights = np.asarray(combiner, dtype=np.complex128)
        if weights.shape != (len(rows),) or not np.isfinite(weights).all():
            raise ProtocolError(f"a combiner has {len(rows)} finite weights; shape {weights.shape} was given")
        return weights.conj().astype(np.complex64)[None] @ rows
