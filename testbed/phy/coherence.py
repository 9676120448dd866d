"""What impairments cost a coherent sum, in closed form, and what radios with them can honestly promise.

Phase errors are independent Gaussian angles of each node's signal against the channel that was sounded; powers are
relative to the signal. `radio_flags` turns a bench's figures into the four capability flags.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from testbed.core.bench import BenchSpec, WaveformSpec
from testbed.core.devices import Capabilities
from testbed.core.units import to_db

HOLD_S = 5e-3
"""Assumed time from the middle of a node's pilots to the data that rely on them."""
SOUNDING_PILOTS = 4
"""Assumed pilot blocks of a sounding, from which offsets are estimated."""
SOUNDING_SNR = 100.0
"""Assumed signal-to-noise ratio of a pilot symbol: 20 dB."""
LARGEST_FLOOR = 0.1
"""Misalignment, as a share of the signal's power, up to which radios count as phase-coherent."""
JITTER_DEVIATIONS = 6.0
"""Standard deviations of a burst's start that have to fit into the cyclic prefix."""


# --- phases -----------------------------------------------------------------------------------------------------------


def mean_rotation(phase_std_rad: np.ndarray | float) -> np.ndarray:
    """Mean amplitude that is left of a signal with a random phase.

    E[exp(j phi)] = exp(-s^2 / 2),   phi ~ N(0, s^2)

    Args:
        phase_std_rad: s.

    Returns:
        shape of the argument, at most 1.

    Reference:
        R. Mudumbai, G. Barriac, U. Madhow, "On the feasibility of distributed beamforming in wireless networks", 2007.
    """
    return np.asarray(np.exp(-0.5 * np.asarray(phase_std_rad, dtype=np.float64) ** 2))


def misalignment_mse(variance: np.ndarray, phase_std_rad: np.ndarray | float) -> float:
    """Squared error that phase errors leave in every value of a sum of independent updates.

    E|e|^2 = sum_m p_m E|exp(j phi_m) - 1|^2 = sum_m 2 p_m (1 - exp(-s_m^2 / 2)),   p_m = (w_m nu_m)^2

    Of each term (1 - exp(-s^2/2))^2 is a shrinkage that is the same in every draw, and 1 - exp(-s^2) scatter. The
    updates have zero mean and are independent, two values ride on the real and imaginary part of each symbol, and what
    leaks between them counts. Divided by sum_m p_m it is the floor that no power and no antenna removes.

    Args:
        variance: p_m, of each node's contribution to a value of the sum, shape [num_nodes].
        phase_std_rad: s_m, a scalar or shape [num_nodes].

    Returns:
        in units of p.

    Raises:
        ValueError: a variance is negative.

    Reference:
        derived here; A. Sahin, 2025, arXiv 2506.22252 gives the statistics of such phase errors.
    """
    variance = np.asarray(variance, dtype=np.float64)
    if not np.all(variance >= 0):
        raise ValueError("variances cannot be negative")
    return float(np.sum(-2.0 * variance * np.expm1(-0.5 * np.asarray(phase_std_rad, dtype=np.float64) ** 2)))


def phase_std_of_offset(offset_std_hz: float, elapsed_s: float) -> float:
    """Phase error that a residual carrier offset builds up: s = 2 pi sigma_f T, rad."""
    return 2.0 * math.pi * offset_std_hz * elapsed_s


def phase_std_of_drift(drift_std_hz_s: float, elapsed_s: float) -> float:
    """Phase error that a drift builds up after the offset was estimated: s = pi sigma_d T^2, rad."""
    return math.pi * drift_std_hz_s * elapsed_s**2


def phase_std_of_jitter(start_jitter_s: float, waveform: WaveformSpec, sample_rate_hz: float) -> float:
    """Phase error that a late start makes over the band, within the cyclic prefix.

    s = 2 pi sigma_t sqrt(mean_k f_k^2),   mean_k f_k^2 = (half + 1)(2 half + 1) / 6 spacing^2

    Args:
        start_jitter_s: sigma_t.
        waveform: numerology; half of num_active subcarriers lie on each side of DC.
        sample_rate_hz: of the waveform.

    Returns:
        root mean square over the active subcarriers, rad.
    """
    half = waveform.num_active // 2
    spacing_hz = sample_rate_hz / waveform.num_subcarriers
    return 2.0 * math.pi * start_jitter_s * spacing_hz * math.sqrt((half + 1) * (2 * half + 1) / 6.0)


def phase_std_of_noise(rms_rad: float, corner_hz: float, elapsed_s: float, num_synthesisers: int = 1) -> float:
    """By how much synthesisers' phase noise moves the phase between two instants.

    s^2 = 2 n rms^2 (1 - exp(-2 pi f_c T)):  n stationary Ornstein-Uhlenbeck processes of corner frequency f_c

    Args:
        rms_rad: of each synthesiser.
        corner_hz: f_c.
        elapsed_s: T.
        num_synthesisers: n; the receiver's is common to all nodes, so that pilots of the sum may take it out and only
            the transmitter's counts; 2 counts both.

    Returns:
        s, rad. It bounds the error against a channel that was averaged over pilots longer than 1 / f_c.
    """
    return rms_rad * math.sqrt(-2.0 * num_synthesisers * math.expm1(-2.0 * math.pi * corner_hz * elapsed_s))


def offset_std_hz(num_pilots: int, snr: float, waveform: WaveformSpec, sample_rate_hz: float) -> float:
    """Smallest standard deviation of a carrier offset that is estimated from the turn between pilot blocks.

    var(f) >= 6 / ((2 pi T_b)^2 snr num_active L (L^2 - 1))

    Args:
        num_pilots: L pilot blocks in a row, at least 2.
        snr: of one pilot symbol, linear.
        waveform: numerology; a block with its prefix lasts T_b.
        sample_rate_hz: of the waveform.

    Returns:
        Cramer-Rao bound as a standard deviation, hertz.

    Raises:
        ValueError: fewer than two pilots, or an SNR that is not positive.

    Reference:
        D. Rife, R. Boorstyn, "Single-tone parameter estimation from discrete-time observations", 1974.
    """
    if num_pilots < 2 or not snr > 0:
        raise ValueError(f"no offset can be told from {num_pilots} pilots with an SNR of {snr:g}")
    block_s = (waveform.num_subcarriers + waveform.cyclic_prefix) / sample_rate_hz
    variance = 6.0 / (snr * waveform.num_active * num_pilots * (num_pilots**2 - 1))
    return math.sqrt(variance) / (2.0 * math.pi * block_s)


# --- converters and mixers --------------------------------------------------------------------------------------------


def intercarrier_interference(offset_hz: float, waveform: WaveformSpec, sample_rate_hz: float) -> float:
    """Power that leaks into a subcarrier from all others when the carrier is off.

    ICI = (1 / num_active) sum_{k != l} |D(l - k + eps)|^2,   |D(x)| = |sin(pi x) / (N sin(pi x / N))|

    eps is the offset in subcarrier spacings. With all N subcarriers active it is 1 - |D(eps)|^2, for small offsets
    (pi eps)^2 / 3.

    Args:
        offset_hz: between transmitter and receiver.
        waveform: numerology; symbols of unit power on the active subcarriers.
        sample_rate_hz: of the waveform.

    Returns:
        average over the active subcarriers, relative to the power of one symbol.

    Reference:
        P. Moose, "A technique for orthogonal frequency division multiplexing frequency offset correction", 1994.
    """
    size, half = waveform.num_subcarriers, waveform.num_active // 2
    active = np.zeros(size)
    active[1 : half + 1] = active[size - half :] = 1.0
    # pairs of active subcarriers at each cyclic distance, [num_subcarriers]
    pairs = np.fft.irfft(np.abs(np.fft.rfft(active)) ** 2, size)
    # D by its geometric sum, which has no gap at whole distances
    ramp = np.exp(2j * np.pi * (offset_hz / sample_rate_hz) * np.arange(size)) / size
    leak = np.abs(np.fft.fft(ramp)) ** 2
    return float(pairs[1:] @ leak[1:]) / waveform.num_active


def quantisation_noise(bits: int, headroom: float) -> float:
    """Rounding and clipping error of a converter on each branch of a complex Gaussian signal.

    E(Q(v) - v)^2 / E v^2 = sum over codes q of the integral of (q - v)^2 phi(v) over the cell of q

    Codes are step (-2^(b-1) .. 2^(b-1) - 1), step = 2 A / 2^b, cells half a step around them; the outer cells reach to
    infinity, which is the clipping. An OFDM signal is Gaussian to good accuracy.

    Args:
        bits: b of each branch, at least 1.
        headroom: A^2 / P, full scale of a branch squared over the power of the complex signal; linear. A branch has
            half of the power, so A is sqrt(2 headroom) of its standard deviations.

    Returns:
        error power relative to the signal's power.

    Raises:
        ValueError: fewer than one bit or more than 20, or a headroom that is not positive.

    Reference:
        J. Max, "Quantizing for minimum distortion", 1960.
    """
    if not 1 <= bits <= 20 or not 0 < headroom < math.inf:
        raise ValueError(f"no converter has {bits} bits and a headroom of {headroom:g}")
    count = 2**bits
    step = 2.0 * math.sqrt(2.0 * headroom) / count
    codes = step * np.arange(-count // 2, count // 2)
    edges = np.concatenate([[-np.inf], codes[1:] - step / 2, [np.inf]])
    density = np.exp(-0.5 * edges**2) / math.sqrt(2.0 * math.pi)
    first = np.where(np.isfinite(edges), edges, 0.0) * density
    # integrals of v^2 phi, v phi and phi over each cell, [2^bits]
    second = np.diff(ndtr(edges)) - np.diff(first)
    return float(np.sum(second + 2.0 * codes * np.diff(density) + codes**2 * np.diff(ndtr(edges))))


def image_rejection(gain: float, phase_rad: float) -> float:
    """Power of the wanted signal over that of its mirror image in a mixer with unequal branches.

    (1 + 2 g cos(phi) + g^2) / (1 - 2 g cos(phi) + g^2)

    Args:
        gain: g, amplitude of the Q branch over I, linear.
        phase_rad: phi, angle missing between the branches.

    Returns:
        linear; infinite for equal branches.

    Raises:
        ValueError: a gain that is not positive.

    Reference:
        M. Valkama, M. Renfors, V. Koivunen, "Advanced methods for I/Q imbalance compensation in communication
        receivers", 2001.
    """
    if not gain > 0:
        raise ValueError(f"a branch cannot have a gain of {gain:g}")
    # (1 - g)^2 + 4 g sin^2(phi / 2): no difference of nearly equal numbers
    image = (1.0 - gain) ** 2 + 4.0 * gain * math.sin(phase_rad / 2) ** 2
    return (1.0 + 2.0 * gain * math.cos(phase_rad) + gain**2) / image if image > 0 else math.inf


# --- what a bench's radios can promise --------------------------------------------------------------------------------


def predicted_phase_errors(bench: BenchSpec, hold_s: float = HOLD_S) -> dict[str, float]:
    """Standard deviation of a node's phase between its sounding and the data, by the key of the bench that causes it.

    Where clocks are not shared offsets are estimated from `SOUNDING_PILOTS` blocks at `SOUNDING_SNR` and taken out;
    what is left is the estimator's bound, or the oscillators' own spread where that is smaller. Both bursts start with
    jitter. The receiver's phase noise, the motion of the room and the sampling clocks' slip inside a burst do not
    count.

    Args:
        bench: whose `radio` and `world.impairments` are read.
        hold_s: from the middle of the pilots to the data.

    Returns:
        key -> rad; the errors are independent.
    """
    impairments = bench.world.impairments
    residual_hz = drift_hz_s = 0.0
    if not _shared_clock(bench):
        drift_hz_s = 1e-6 * impairments.drift_ppm_s * bench.carrier_hz
        residual_hz = offset_std_hz(SOUNDING_PILOTS, SOUNDING_SNR, bench.waveform, bench.sample_rate_hz)
        if impairments.oscillator_ppm > 0 and drift_hz_s == 0:
            residual_hz = min(residual_hz, 1e-6 * impairments.oscillator_ppm * bench.carrier_hz)
    jitter_s = math.sqrt(2.0) * bench.start_std_s
    rms_rad = math.radians(impairments.phase_noise_deg)
    return {
        "world.impairments.oscillator_ppm": phase_std_of_offset(residual_hz, hold_s),
        "world.impairments.drift_ppm_s": phase_std_of_drift(drift_hz_s, hold_s),
        "radio.start_jitter_s": phase_std_of_jitter(jitter_s, bench.waveform, bench.sample_rate_hz),
        "world.impairments.phase_noise_deg": phase_std_of_noise(rms_rad, impairments.phase_noise_hz, hold_s),
    }


def misalignment_floor(bench: BenchSpec, hold_s: float = HOLD_S) -> float:
    """Predicted error of a coherent sum of independent updates, relative to the power of the sum.

    2 (1 - exp(-s^2 / 2)),   s^2 = sum of the squared `predicted_phase_errors`

    Args:
        bench: whose radios are meant.
        hold_s: from the middle of the pilots to the data.

    Returns:
        between 0 and 2. Phases that jump with every burst are not in it.
    """
    phase_std_rad = math.hypot(*predicted_phase_errors(bench, hold_s).values())
    return misalignment_mse(np.ones(1), phase_std_rad)


def radio_flags(bench: BenchSpec) -> dict[str, bool]:
    """The capability flags of a bench's radios: what its file says, and where it says nothing what its figures imply.

    timed_tx: 6 standard deviations of a burst's start, fixed delay and jitter, fit into the cyclic prefix.
    shared_clock: oscillators neither differ nor drift. phase_coherent: phases do not jump between bursts, and
    `misalignment_floor` is below 10 %.

    Args:
        bench: a flag that is set in `radio` holds; one that is None is derived.

    Returns:
        timed_tx, shared_clock, phase_coherent, full_duplex -> whether the radios can.
    """
    radio, jumps = bench.radio, bench.world.impairments.phase_jumps
    flags = {
        "timed_tx": JITTER_DEVIATIONS * _start_std_s(bench) <= _prefix_s(bench),
        "shared_clock": _shared_clock(bench),
        "phase_coherent": jumps != "burst" and misalignment_floor(bench) < LARGEST_FLOOR,
        "full_duplex": radio.full_duplex,
    }
    return {name: derived if getattr(radio, name) is None else getattr(radio, name) for name, derived in flags.items()}


def claimed_flags(bench: BenchSpec) -> dict[str, bool]:
    """The capability flags that a bench file claims for real radios: what it leaves open is not claimed."""
    return {name: bool(getattr(bench.radio, name)) for name in Capabilities.FLAGS}


def why_not(bench: BenchSpec, flag: str) -> str:
    """One sentence on what keeps a bench's radios from a capability: the key, its value and what it would take.

    Args:
        bench: whose radios are asked about.
        flag: timed_tx, shared_clock, phase_coherent or full_duplex.

    Returns:
        a sentence without a full stop at its end.

    Raises:
        ValueError: there is no such flag.
    """
    if flag not in Capabilities.FLAGS:
        raise ValueError(f"there is no capability {flag}; known are {', '.join(Capabilities.FLAGS)}")
    if getattr(bench.radio, flag) is False:
        return f"radio.{flag} = false says so"
    if radio_flags(bench)[flag]:
        return f"radio.{flag} is not set, and only in simulation it is derived: measure it and set it"
    reasons = {"timed_tx": _why_not_timed, "shared_clock": _why_not_shared, "phase_coherent": _why_not_coherent}
    return reasons[flag](bench)


def alternatives(bench: BenchSpec) -> str:
    """One sentence on the uplinks that a bench's radios can carry.

    Args:
        bench: whose radios are asked about.

    Returns:
        a sentence without a full stop at its end.
    """
    flags = radio_flags(bench)
    possible = ["packets (Digital)"]
    if flags["timed_tx"]:
        possible.insert(0, "non-coherent majority votes (MajorityVote)")
        if flags["phase_coherent"]:
            possible.insert(0, "coherent sums and one-bit votes (Analogue, OneBit)")
    listed = ", ".join(possible[:-1]) + (" and " if len(possible) > 1 else "") + possible[-1]
    return f"these radios can carry {listed}"


def _prefix_s(bench: BenchSpec) -> float:
    return bench.waveform.cyclic_prefix / bench.sample_rate_hz


def _start_std_s(bench: BenchSpec) -> float:
    return math.hypot(bench.start_std_s, bench.world.impairments.start_offset_s)


def _shared_clock(bench: BenchSpec) -> bool:
    if bench.radio.shared_clock is not None:
        return bench.radio.shared_clock
    impairments = bench.world.impairments
    return impairments.oscillator_ppm == 0 and impairments.drift_ppm_s == 0


def _why_not_timed(bench: BenchSpec) -> str:
    offset_s = bench.world.impairments.start_offset_s
    fixed = f" and world.impairments.start_offset_s = {offset_s:g}" if offset_s else ""
    return (
        f"radio.start_jitter_s = {bench.radio.start_jitter_s:g}{fixed} with trigger {bench.radio.trigger} starts "
        f"bursts up to {1e6 * JITTER_DEVIATIONS * _start_std_s(bench):.3g} us off ({JITTER_DEVIATIONS:g} standard "
        f"deviations), and the cyclic prefix lasts {1e6 * _prefix_s(bench):.3g} us"
    )


def _why_not_shared(bench: BenchSpec) -> str:
    impairments = bench.world.impairments
    return (
        f"world.impairments.oscillator_ppm = {impairments.oscillator_ppm:g} and drift_ppm_s = "
        f"{impairments.drift_ppm_s:g} put the carriers "
        f"{1e-6 * impairments.oscillator_ppm * bench.carrier_hz:.3g} Hz apart and let them drift by "
        f"{1e-6 * impairments.drift_ppm_s * bench.carrier_hz:.3g} Hz a second"
    )


def _why_not_coherent(bench: BenchSpec) -> str:
    if bench.world.impairments.phase_jumps == "burst":
        return (
            'world.impairments.phase_jumps = "burst" gives every burst a new random phase, so none is left of a '
            "channel's phase when data follow its pilots"
        )
    errors = predicted_phase_errors(bench)
    worst = max(errors, key=lambda key: errors[key])
    return (
        f"{1e3 * HOLD_S:g} ms after a sounding phases are off by {math.hypot(*errors.values()):.2g} rad, which costs "
        f"{100 * misalignment_floor(bench):.3g} % of the signal's power where {100 * LARGEST_FLOOR:g} % are allowed; "
        f"{errors[worst]:.2g} rad come from {worst}" + _as_estimated(bench, worst)
    )


def _as_estimated(bench: BenchSpec, key: str) -> str:
    if key != "world.impairments.oscillator_ppm":
        return ""
    return (
        f", left over from an estimate of the offsets by {SOUNDING_PILOTS} pilot blocks at {to_db(SOUNDING_SNR):g} dB"
    )
