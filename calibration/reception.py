"""What bursts a calibration sends, and why it may hear nothing, or nothing that it can trust."""

from __future__ import annotations

import numpy as np

from testbed.core.bench import BenchSpec
from testbed.core.errors import ConfigError
from testbed.core.units import dbm_to_w, from_db, w_to_dbm
from testbed.phy.tone import estimate_tone

_BOLTZMANN_J_K = 1.380649e-23
_ROOM_K = 290.0
_LOUD = from_db(25.0)
"""Power over the thermal noise of an ideal receiver, beyond which no receiver's own noise explains it."""
_RAILS = 1e-3
_RAILS_OVER_NEXT = 5.0


def require_samples(bench: BenchSpec) -> None:
    """Refuse a bench whose bursts have no samples.

    Raises:
        ConfigError: waveform.level is symbols.
    """
    if bench.waveform.level != "samples":
        raise ConfigError(
            "a calibration sends samples, and this bench's waveform has none",
            key="waveform.level",
            remedy='set waveform.level = "samples"',
        )


def burst_power_w(bench: BenchSpec, node: str, share: float) -> float:
    """A share of the highest average power that a node may radiate, watts."""
    board = next(board for board in bench.boards if board.name == node)
    return share * dbm_to_w(min(board.max_power_dbm, bench.limits.max_power_dbm))


def saturated(samples: np.ndarray) -> bool:
    """Whether a converter's rails cut a capture off.

    Clipped branches pile up at their extremes: more than 0.1 % of all values, and five times as many as at the next
    code. A tone that just fits piles up as well, but at most 2.4 times as high.

    Args:
        samples: shape [..., num_samples], complex64.
    """
    rows = np.ascontiguousarray(samples, np.complex64).view(np.float32).reshape(-1, 2 * np.shape(samples)[-1])
    return any(_piled(sign * row) for row in rows for sign in (1.0, -1.0))


def _piled(values: np.ndarray) -> bool:
    top = values.max()
    # codes are many float32 roundings apart
    at_top = values >= top - 1e-5 * abs(top)
    count = int(np.count_nonzero(at_top))
    if top <= 0 or count < _RAILS * values.size or count == values.size:
        return False
    below = values[~at_top].max()
    at_next = np.count_nonzero((values >= below - 1e-5 * abs(below)) & ~at_top)
    return count > _RAILS_OVER_NEXT * int(at_next)


def why_unheard(samples: np.ndarray, bench: BenchSpec) -> str:
    """What keeps a receiver from hearing a burst that was sent, as the rest of a sentence.

    Args:
        samples: the capture, shape [num_antennas, num_samples].
        bench: whose sample rate tells the thermal noise.
    """
    if saturated(samples):
        return "the receiver saturates: lower gain_db of array.radios, or attenuate"
    power_w = float(np.mean(np.square(np.abs(samples), dtype=np.float64)))
    thermal_w = _BOLTZMANN_J_K * _ROOM_K * bench.sample_rate_hz
    if power_w > _LOUD * thermal_w:
        return (
            f"the band is occupied ({w_to_dbm(power_w):.0f} dBm): find the transmitter, "
            "or choose a carrier that `testbed calibrate noise` found clean"
        )
    line = estimate_tone(samples, about=0.25, reach=0.245) or estimate_tone(samples, about=-0.25, reach=0.245)
    if line is not None:
        at_hz = bench.carrier_hz + line.cycles * bench.sample_rate_hz
        return (
            f"somebody else transmits at {1e-6 * at_hz:.3f} MHz: silence it, or choose a carrier that "
            "`testbed calibrate noise` found clean"
        )
    return "nothing but noise arrives: look at antennas and cables, and whether the node's radio is tuned"


def listed(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
