import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import frames, ofdm, preamble, tracking
from testbed.phy.estimate import pilot_symbols

WAVEFORM = WaveformSpec()
SYMBOLS = WaveformSpec(level="symbols")
SHORT_FRAMES = WaveformSpec(frame_blocks=8)
SMALL = WaveformSpec(num_subcarriers=64, num_active=48, cyclic_prefix=16, frame_blocks=10, pilot_every=3)
SUBCARRIERS = np.concatenate([np.arange(1, 97), np.arange(-96, 0)])
ONE = np.ones(1)


def noise(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Circular Gaussian of unit power, complex64."""
    normals = generator.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return normals * np.float32(np.sqrt(0.5))


def qpsk(generator: np.random.Generator, count: int) -> np.ndarray:
    return ((generator.integers(0, 2, (count, 2)) * 2 - 1) @ np.array([1, 1j]) / np.sqrt(2)).astype(np.complex64)


def placed(burst: np.ndarray, start: int, length: int) -> np.ndarray:
    samples = np.zeros(length, np.complex64)
    samples[start : start + len(burst)] = burst
    return samples


def stretched(burst: np.ndarray, ppm: float) -> np.ndarray:
    """What a sampling clock that is off by so much makes of a burst: band-limited, eightfold, then cubic."""
    padded = np.pad(burst, (64, 64))
    spectrum, half = np.fft.fft(padded), len(padded) // 2
    wide = np.zeros(8 * len(padded), complex)
    wide[:half], wide[-half:] = spectrum[:half], spectrum[-half:]
    fine = 8 * np.fft.ifft(wide)
    at = 8 * ((1 + 1e-6 * ppm) * np.arange(len(burst)) + 64)
    whole = np.minimum(at.astype(int), len(fine) - 3)
    part = at - whole
    a, b, c, d = (fine[whole + shift] for shift in (-1, 0, 1, 2))
    return b + 0.5 * part * (c - a + part * (2 * a - 5 * b + 4 * c - d + part * (3 * (b - c) + d - a)))


# --- what is sent ---------------------------------------------------------------------------------------------------


def test_a_segment_is_preambles_pilots_and_data_in_their_order():
    generator = np.random.default_rng(1)
    # two whole frames of ten blocks and one of four; pilots after data blocks 3, 6 and 9 of a frame
    symbols = qpsk(generator, 23 * 48 + 5)
    burst = frames.build(symbols, SMALL)
    pilot = pilot_symbols(1, SMALL)
    data = np.append(symbols, np.zeros(43)).reshape(-1, 48)
    blocks, done = [], 0
    for size in (10, 10, 4):
        blocks += [preamble.short_symbols(SMALL), pilot, pilot]
        for index in range(size):
            blocks.append(data[done])
            done += 1
            if index + 1 in (3, 6, 9) and index + 1 < size:
                blocks.append(pilot)
    expected = np.concatenate([ofdm.modulate(block, SMALL) for block in blocks])
    assert len(burst) == frames.segment_length(len(symbols), SMALL) == len(blocks) * 80
    np.testing.assert_allclose(burst, expected, atol=1e-6)


def test_no_pilot_follows_the_last_data_block_of_a_frame():
    even = SMALL.model_copy(update={"frame_blocks": 9})
    assert frames.segment_length(9 * 48, even) == (3 + 9 + 2) * 80
    assert frames.segment_length(3 * 48, even) == (3 + 3) * 80
    bare = SMALL.model_copy(update={"pilot_every": 0})
    assert frames.segment_length(10 * 48 + 1, bare) == (3 + 10 + 3 + 1) * 80
    assert frames.segment_length(0, SMALL) == 0
    assert frames.build(np.zeros(0), SMALL).shape == (0,)


@pytest.mark.parametrize("waveform", [WAVEFORM, SYMBOLS])
def test_the_precoder_multiplies_everything_on_its_subcarrier(waveform):
    generator = np.random.default_rng(2)
    symbols, precoder = qpsk(generator, 192 * 40), noise(generator, 192)
    plain, precoded = frames.build(symbols, waveform), frames.build(symbols, waveform, precoder)
    if waveform.level == "samples":
        plain, precoded = ofdm.demodulate(plain, waveform), ofdm.demodulate(precoded, waveform)
    plain, precoded = plain.reshape(-1, 192), precoded.reshape(-1, 192)
    np.testing.assert_allclose(precoded[1:], plain[1:] * precoder, atol=1e-5)
    # the short training has twelve subcarriers only, and the average power on them
    level = precoder / np.abs(precoder) * np.sqrt(np.mean(np.abs(precoder) ** 2))
    np.testing.assert_allclose(precoded[0], plain[0] * (precoder if waveform.level == "symbols" else level), atol=1e-4)
    np.testing.assert_allclose(frames.build(symbols, waveform, 2j), 2j * frames.build(symbols, waveform), atol=1e-6)


def test_both_levels_take_the_same_seconds_and_joules():
    generator = np.random.default_rng(3)
    symbols = qpsk(generator, 192 * 300)
    bursts = [frames.build(symbols, waveform) for waveform in (WAVEFORM, SYMBOLS)]
    seconds = [
        len(burst) / waveform.elements_per_second(5e6)
        for burst, waveform in zip(bursts, (WAVEFORM, SYMBOLS), strict=True)
    ]
    assert seconds[0] == pytest.approx(seconds[1])
    powers = [np.mean(np.abs(burst) ** 2) for burst in bursts]
    # the prefixes repeat samples at random: they do not have exactly unit power
    assert powers[1] == pytest.approx(1.0, rel=1e-6)
    assert powers[0] == pytest.approx(1.0, rel=5e-3)


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [0, 400])
@pytest.mark.parametrize("reference", [None, 0.5])
@pytest.mark.parametrize("waveform", [WAVEFORM, SYMBOLS, SMALL, WaveformSpec(pilot_every=0, cyclic_prefix=16)])
def test_what_was_sent_is_read_without_noise(waveform, reference, guard):
    generator = np.random.default_rng(4)
    symbols = qpsk(generator, 20_001)
    burst = frames.build(symbols, waveform, 0.5)
    samples = placed(burst, 500, len(burst) + 1000)[None]
    said = frames.read(samples, waveform, 20_001, combiner=ONE, start=500, guard=guard, reference=reference)
    np.testing.assert_allclose(said.symbols, 0.5 * symbols, atol=2e-5)
    assert said.symbols.dtype == np.complex64
    assert said.lost == 0
    assert said.lag == pytest.approx(0.0, abs=1e-3)
    assert said.cfo == pytest.approx(0.0, abs=1e-8)
    assert said.gain == pytest.approx(0.5 if reference is None else 1.0, rel=1e-4)
    assert said.noise_w is not None
    assert said.noise_w < 1e-9
    at_antennas, lost = frames.demodulate(samples, waveform, 20_001, start=500, guard=guard)
    assert lost == 0
    np.testing.assert_allclose(np.abs(at_antennas), 0.5, atol=1e-3)


@pytest.mark.parametrize("guard", [0, 200])
def test_antennas_are_combined_flat_or_on_every_subcarrier(guard):
    generator = np.random.default_rng(5)
    symbols, channel = qpsk(generator, 30_000), noise(generator, 3, 1)
    burst = frames.build(symbols, WAVEFORM)
    samples = channel * placed(burst, 300, len(burst) + 600) + 0.01 * noise(generator, 3, len(burst) + 600)
    combiner = channel[:, 0] / np.linalg.norm(channel) ** 2
    flat = frames.read(samples, WAVEFORM, 30_000, combiner=combiner, start=300, guard=guard, reference=1.0)
    each = frames.read(
        samples, WAVEFORM, 30_000, combiner=np.tile(combiner, (192, 1)), start=300, guard=guard, reference=1.0
    )
    for said in (flat, each):
        expected_w = 1e-4 * 0.75 * np.linalg.norm(combiner) ** 2
        assert np.mean(np.abs(said.symbols - symbols) ** 2) == pytest.approx(expected_w, rel=0.05)
        assert said.noise_w == pytest.approx(expected_w, rel=0.4)
    np.testing.assert_allclose(flat.symbols, each.symbols, atol=2e-3)


def test_a_combiner_of_each_subcarrier_undoes_a_selective_channel():
    generator = np.random.default_rng(6)
    symbols, taps = qpsk(generator, 5000), np.array([[1, 0, 0.5j], [0.3, -0.6, 0]])
    burst = frames.build(symbols, WAVEFORM)
    samples = np.stack([np.convolve(burst, tap)[: len(burst)] for tap in taps])
    # [num_active, num_antennas]
    response = np.exp(-2j * np.pi / 256 * np.outer(SUBCARRIERS, np.arange(3))) @ taps.T
    combiner = response / np.sum(np.abs(response) ** 2, axis=1, keepdims=True)
    said = frames.read(samples, WAVEFORM, 5000, combiner=combiner)
    np.testing.assert_allclose(said.symbols, symbols, atol=1e-4)


@pytest.mark.parametrize("delay", [-16, -5, 20, 48])
def test_early_and_late_nodes_suffer_no_intersymbol_interference(delay):
    generator = np.random.default_rng(7)
    symbols = qpsk(generator, 192 * 50)
    burst = frames.build(symbols, WAVEFORM)
    samples = placed(burst, 100 + delay, len(burst) + 200)[None]
    said = frames.read(samples, WAVEFORM, len(symbols), combiner=ONE, start=100)
    ramp = np.exp(-2j * np.pi / 256 * SUBCARRIERS * delay)
    np.testing.assert_allclose(said.symbols.reshape(-1, 192), symbols.reshape(-1, 192) * ramp, atol=1e-4)
    tracked = frames.read(samples, WAVEFORM, len(symbols), combiner=ONE, start=100, reference=1.0)
    np.testing.assert_allclose(tracked.symbols, symbols, atol=1e-4)
    assert tracked.lag == pytest.approx(delay, abs=1e-3)


# --- tracking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waveform", [WAVEFORM, SYMBOLS])
@pytest.mark.parametrize("snr_db", [0.0, 15.0])
def test_tracking_costs_less_than_a_hundredth_of_the_noise(waveform, snr_db):
    generator = np.random.default_rng(8)
    noise_w = 10 ** (-snr_db / 10)
    # one frame: nothing is averaged over several
    count, extra = 192 * 128, []
    for _ in range(25):
        symbols = qpsk(generator, count)
        burst = frames.build(symbols, waveform)
        sample_w = noise_w if waveform.level == "symbols" else noise_w * 256 / 192
        error = np.float32(np.sqrt(sample_w)) * noise(generator, 1, len(burst))
        turn = np.exp(2j * np.pi * generator.uniform())
        said = frames.read(turn * burst + error, waveform, count, combiner=ONE, reference=1.0)
        alone = frames.read(error, waveform, count, combiner=ONE)
        assert said.lost == 0
        extra.append((np.mean(np.abs(said.symbols - symbols) ** 2) - np.mean(np.abs(alone.symbols) ** 2)) / noise_w)
    assert np.mean(extra) < 0.006
    assert np.mean(extra) > 0.0005  # it is an estimate: it cannot be free


@pytest.mark.parametrize("ppm", [-50.0, -7.0, 20.0, 50.0])
def test_offsets_of_carrier_and_sampling_clock_are_followed(ppm):
    generator = np.random.default_rng(9)
    symbols, snr = qpsk(generator, 192 * 128 * 2), 100.0
    burst = stretched(frames.build(symbols, WAVEFORM), ppm)
    cfo = 1e-6 * ppm * 2.4e9 / 5e6
    samples = placed(burst, 700, len(burst) + 1400) * np.exp(2j * np.pi * cfo * np.arange(len(burst) + 1400))
    samples = samples + np.sqrt(256 / 192 / snr) * noise(generator, len(samples))
    said = frames.read(samples[None], WAVEFORM, len(symbols), combiner=ONE, start=500, guard=500, reference=1.0)
    assert said.lost == 0
    assert np.mean(np.abs(said.symbols - symbols) ** 2) < 1.03 / snr
    assert said.cfo == pytest.approx(cfo, abs=1e-5)
    assert abs(said.gain) == pytest.approx(1.0, abs=0.01)
    # the delay at the heads of the two frames, the second 134 blocks on
    assert said.lag == pytest.approx(200 - 1e-6 * ppm * 134 * 320 / 2, abs=0.1)


@pytest.mark.parametrize("waveform", [WAVEFORM, SYMBOLS])
def test_a_slow_turn_between_pilots_is_taken_out(waveform):
    generator = np.random.default_rng(10)
    symbols = qpsk(generator, 192 * 128 * 3)
    burst = frames.build(symbols, waveform)
    # several whole turns, and an offset that drifts on top of them
    at = np.arange(len(burst)) / len(burst)
    phase = 2 * np.pi * 3 * at + 2 * np.sin(np.pi * at)
    said = frames.read((burst * np.exp(1j * phase))[None], waveform, len(symbols), combiner=ONE, reference=1.0)
    assert np.mean(np.abs(said.symbols - symbols) ** 2) < 1e-3


@pytest.mark.parametrize(("delay", "drift"), [(-3.2, 0.0), (0.4, 0.0), (20.3, 0.01), (0.0, -0.02)])
def test_without_ofdm_a_delay_that_all_share_is_followed(delay, drift):
    generator = np.random.default_rng(24)
    symbols = qpsk(generator, 192 * 100)
    blocks = frames.build(symbols, SYMBOLS).reshape(-1, 192)
    # samples of delay of every block, [num_blocks]
    late = delay + drift * np.arange(len(blocks))
    burst = (blocks * np.exp(-2j * np.pi / 256 * np.outer(late, SUBCARRIERS))).reshape(1, -1)
    said = frames.read(burst, SYMBOLS, len(symbols), combiner=ONE, reference=1.0)
    np.testing.assert_allclose(said.symbols, symbols, atol=2e-3)
    assert said.gain == pytest.approx(1.0, abs=1e-3)
    # an element lasts 320 / 192 samples; the head is two blocks long
    assert said.lag == pytest.approx(delay * 192 / 320, abs=0.03)
    # without a reference nothing is taken out: the first data block is the fourth
    untouched = frames.read(burst, SYMBOLS, len(symbols), combiner=ONE)
    np.testing.assert_allclose(untouched.symbols[:192], burst[0, 3 * 192 : 4 * 192], atol=1e-5)


def test_a_loss_of_coherence_stays_visible():
    generator = np.random.default_rng(11)
    symbols = qpsk(generator, 192 * 64)
    burst = frames.build(symbols, WAVEFORM)
    # two equal nodes 60 degrees apart: cos(30 degrees) of the aligned sum, at half of their angle
    samples = 0.5 * burst * (1 + np.exp(1j * np.pi / 3)) + 0.01 * noise(generator, len(burst))
    said = frames.read(samples[None], WAVEFORM, len(symbols), combiner=ONE, reference=1.0)
    assert said.gain.real == pytest.approx(np.cos(np.pi / 6), rel=1e-3)
    assert abs(said.gain.imag) < 1e-3
    amplitude = np.vdot(symbols, said.symbols) / len(symbols)
    assert amplitude == pytest.approx(np.cos(np.pi / 6), rel=1e-3)


def test_superposed_nodes_are_found_and_their_sum_is_read():
    generator = np.random.default_rng(12)
    count, snr = 192 * 128 * 2, 10.0
    total, length = np.zeros(count, complex), frames.segment_length(count, WAVEFORM) + 1000
    samples = np.sqrt(256 / 192 / snr) * noise(generator, length).astype(complex)
    for late in (-2, 0, 2):
        symbols = qpsk(generator, count) / 3
        # every node sends its pilots with its share of the reference
        burst = frames.build(3 * symbols, WAVEFORM, 1 / 3 * np.exp(2j * np.pi / 256 * SUBCARRIERS * late))
        samples[: length - 100] += placed(burst, 480 + late, length)[: length - 100]
        total += symbols
    said = frames.read(samples[None], WAVEFORM, count, combiner=ONE, start=400, guard=300, reference=1.0)
    assert said.lost == 0
    assert np.mean(np.abs(said.symbols - total) ** 2) < 1.02 / snr
    assert said.lag == pytest.approx(80, abs=0.05)
    assert said.noise_w == pytest.approx(1 / snr, rel=0.25)


# --- frames that are lost -------------------------------------------------------------------------------------------


def lossy(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Symbols of six frames, their capture from sample 900 on at 20 dB, and the length of a frame."""
    generator = np.random.default_rng(seed)
    symbols = qpsk(generator, 192 * 128 * 6)
    burst = frames.build(symbols, WAVEFORM)
    samples = placed(burst, 900, len(burst) + 5000) + np.float32(0.1) * noise(generator, len(burst) + 5000)
    return symbols, samples, len(burst) // 6


@pytest.mark.parametrize("missing", [0, 3, 5])
def test_a_frame_that_is_not_there_is_lost_and_zero(missing):
    symbols, samples, frame = lossy(13)
    begin = 900 + missing * frame
    samples[begin : begin + frame] = 0.1 * noise(np.random.default_rng(14), frame)
    said = frames.read(samples[None], WAVEFORM, len(symbols), combiner=ONE, guard=2000, reference=1.0)
    energies, lost = frames.demodulate(samples[None], WAVEFORM, len(symbols), start=0, guard=2000)
    assert said.lost == lost == 1
    for read in (said.symbols, energies[0]):
        parts = read.reshape(6, -1)
        assert not parts[missing].any()
        assert np.all(np.abs(np.delete(parts, missing, axis=0)) > 0.3)
    error = np.delete((said.symbols - symbols).reshape(6, -1), missing, axis=0)
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.0075, rel=0.03)


@pytest.mark.parametrize("change", [-1024, -300, -64, 40, 256, 700])
def test_samples_lost_or_gained_inside_a_capture_cost_one_frame(change):
    symbols, samples, frame = lossy(15)
    at = 900 + 2 * frame + 9000
    if change < 0:
        samples = np.delete(samples, np.arange(at, at - change))
    else:
        samples = np.insert(samples, at, 0.1 * noise(np.random.default_rng(16), change))
    said = frames.read(samples[None], WAVEFORM, len(symbols), combiner=ONE, guard=2000, reference=1.0)
    error = (said.symbols - symbols).reshape(6, -1)
    assert said.lost == 1
    assert not said.symbols.reshape(6, -1)[2].any()
    assert np.mean(np.abs(np.delete(error, 2, axis=0)) ** 2) == pytest.approx(0.0075, rel=0.03)


def test_where_nothing_was_sent_everything_is_lost():
    samples = noise(np.random.default_rng(17), 2, 150_000)
    said = frames.read(samples, WAVEFORM, 192 * 128 * 3, combiner=np.ones(2), start=3000, guard=3000, reference=1.0)
    assert said.lost == 3
    assert not said.symbols.any()
    assert (said.gain, said.noise_w) == (0j, None)
    energies, lost = frames.demodulate(samples, WAVEFORM, 192 * 128 * 3, start=3000, guard=3000)
    assert lost == 3
    assert not energies.any()


def test_a_segment_that_the_capture_cuts_loses_its_end():
    symbols, samples, frame = lossy(18)
    cut = samples[: 900 + 5 * frame + 1000]
    said = frames.read(cut[None], WAVEFORM, len(symbols), combiner=ONE, start=800, guard=400, reference=1.0)
    assert said.lost == 1
    assert not said.symbols.reshape(6, -1)[5].any()


@pytest.mark.parametrize(("level", "cfo"), [("samples", 0.0), ("samples", 0.012), ("symbols", 0.0)])
@pytest.mark.parametrize("snr_db", [-5.0, 5.0, 50.0])
def test_scheduled_frames_that_are_silent_are_lost_and_spoil_no_other(level, snr_db, cfo):
    waveform = SHORT_FRAMES.model_copy(update={"level": level})
    generator = np.random.default_rng(25)
    noise_w = 10 ** (-snr_db / 10)
    sample_w = noise_w if level == "symbols" else noise_w * 256 / 192
    symbols = qpsk(generator, 192 * 8 * 12)
    burst = frames.build(symbols, waveform)
    # the first two frames and the last five
    frame = len(burst) // 12
    burst[: 2 * frame], burst[7 * frame :] = 0, 0
    if level == "samples":
        burst = burst * np.exp(2j * np.pi * cfo * np.arange(len(burst)))
    samples = burst + np.sqrt(sample_w) * noise(generator, 1, len(burst))
    said = frames.read(samples, waveform, len(symbols), combiner=ONE, reference=1.0)
    assert said.lost == 7
    parts = said.symbols.reshape(12, -1)
    assert not parts[[0, 1, 7, 8, 9, 10, 11]].any()
    error = parts[2:7] - symbols.reshape(12, -1)[2:7]
    # one pilot of two blocks for eight blocks of data costs a few hundredths of the noise
    assert np.mean(np.abs(error) ** 2) == pytest.approx(noise_w, rel=0.06)
    assert said.gain.real == pytest.approx(1.0, abs=0.15 if snr_db < 0 else 0.05)


def test_where_all_scheduled_frames_are_silent_everything_is_lost():
    generator = np.random.default_rng(26)
    length = frames.segment_length(192 * 8 * 3, SHORT_FRAMES)
    for samples in (0.1 * noise(generator, 1, length), np.zeros((1, length), np.complex64)):
        said = frames.read(samples, SHORT_FRAMES, 192 * 8 * 3, combiner=ONE, reference=1.0)
        assert (said.lost, said.gain, said.noise_w) == (3, 0j, None)
        assert not said.symbols.any()


@pytest.mark.parametrize("snr_db", [-12.0, -5.0, 0.0])
def test_no_frame_that_is_sent_passes_as_absent(snr_db):
    # 3000 heads, late anywhere in the prefix; the closed form allows one in a million
    generator = np.random.default_rng(27)
    late = generator.uniform(-16, 48, 3000)
    phases = np.exp(2j * np.pi * generator.uniform(size=(3000, 1)))
    sent = np.repeat(phases * np.exp(-2j * np.pi / 256 * np.outer(late, SUBCARRIERS)), 3, axis=0)
    response = (sent + 10 ** (-snr_db / 20) * noise(generator, 9000, 192)).astype(np.complex64)
    short, element = np.tile([True, False, False], 3000), 320 * np.arange(9000)
    heads = tracking.Pilots(response, np.repeat(np.arange(3000), 3), short, element)
    assert not len(tracking.absent(heads, WAVEFORM, 1.0))
    # silence is told from frames, unless noise could hide pilots of half the amplitude
    silent = tracking.Pilots(response - sent.astype(np.complex64), heads.frame, short, element)
    assert len(tracking.absent(silent, WAVEFORM, 1.0)) >= (2985 if snr_db > -8 else 0)


def test_a_head_of_noise_does_not_drive_the_drift():
    generator = np.random.default_rng(28)
    drift, num_blocks = 1e-4, 6
    # four frames of a head and three more pilots, 32 blocks apart; the third is noise
    place = np.array([0, 1, 2, 34, 66, 98])
    element = np.concatenate([320 * (place + 110 * frame) for frame in range(4)])
    frame = np.repeat(np.arange(4), num_blocks)
    late = 2.0 + drift * (element - 110 * 320 * frame)
    response = np.exp(-2j * np.pi / 256 * np.outer(late, SUBCARRIERS)) * (frame != 2)[:, None]
    response = (response + 0.1 * noise(generator, len(frame), 192)).astype(np.complex64)
    pilots = tracking.Pilots(response, frame, np.tile(np.arange(num_blocks) == 0, 4), element)
    track = tracking.follow(pilots, WAVEFORM, 0.0, correct=True)
    assert track.drift == pytest.approx(drift, rel=0.01)
    np.testing.assert_allclose(np.delete(track.lag, 2), 2.0 + drift * 320, atol=0.02)


@pytest.mark.parametrize("guard", [0, 50])
@pytest.mark.parametrize("snr_db", [0.0, 40.0])
@pytest.mark.parametrize("end", ["silence", "lost samples"])
def test_a_last_frame_that_breaks_before_its_last_pilots_is_lost(end, snr_db, guard):
    generator = np.random.default_rng(30)
    symbols = qpsk(generator, 192 * 128 * 2)
    burst = frames.build(symbols, WAVEFORM)
    samples = placed(burst, guard, len(burst) + 2 * guard)
    at = guard + len(burst) // 2 + 60 * 320
    if end == "silence":
        samples[at:] = 0
    else:
        samples = np.append(np.delete(samples, at + np.arange(5000)), np.zeros(5000, np.complex64))
    noise_w = 10 ** (-snr_db / 10)
    samples = samples + np.sqrt(noise_w * 256 / 192) * noise(generator, len(samples))
    said = frames.read(samples[None], WAVEFORM, len(symbols), combiner=ONE, start=guard, guard=guard, reference=1.0)
    assert said.lost == 1
    parts = said.symbols.reshape(2, -1)
    assert not parts[1].any()
    assert np.mean(np.abs(parts[0] - symbols[: 192 * 128]) ** 2) == pytest.approx(noise_w, rel=0.03)


@pytest.mark.parametrize(
    ("at", "gone", "lost"),
    [
        # inside a frame; inside its head; with the head of the next one; with two heads, so that frames cannot be told
        (1500, 2048, {4}),
        (1500, 2500, {4, 5}),
        (400, 1024, {3, 4}),
        (3000, 2048, {4, 5}),
        (3000, 4200, set(range(4, 12))),
        (1500, 64, {4}),
    ],
)
@pytest.mark.parametrize("guard", [2, 60])
def test_lost_samples_cost_the_frames_they_are_in_however_small_the_guard(guard, at, gone, lost):
    generator = np.random.default_rng(29)
    symbols = qpsk(generator, 192 * 8 * 12)
    burst = frames.build(symbols, SHORT_FRAMES)
    frame = len(burst) // 12
    samples = placed(burst, guard, len(burst) + 2 * guard)
    samples = np.delete(samples, guard + 4 * frame + at + np.arange(gone))
    samples = np.append(samples, np.zeros(gone)) + 1e-3 * noise(generator, len(burst) + 2 * guard)
    said = frames.read(samples[None], SHORT_FRAMES, len(symbols), combiner=ONE, start=guard, guard=guard, reference=1.0)
    parts = said.symbols.reshape(12, -1)
    assert {int(index) for index in np.flatnonzero(~parts.any(axis=1))} == lost
    assert said.lost == len(lost)
    kept = sorted(set(range(12)) - lost)
    error = parts[kept] - symbols.reshape(12, -1)[kept]
    assert np.mean(np.abs(error) ** 2) == pytest.approx(0.75e-6, rel=0.06)


# --- blocks at given places -----------------------------------------------------------------------------------------


def test_an_advanced_window_reads_the_same_symbols():
    generator = np.random.default_rng(19)
    symbols = qpsk(generator, 192 * 10)
    samples = ofdm.modulate(symbols, WAVEFORM)
    assert ofdm.window_advance(WAVEFORM) == 16
    for advance in (0, 16, 32, 64):
        read = ofdm.demodulate_at(samples, np.arange(10)[::-1] * 320, WAVEFORM, advance=advance)
        np.testing.assert_allclose(read[::-1].reshape(-1), symbols, atol=1e-5)
    turned = samples * np.exp(2j * np.pi * 0.0123 * np.arange(3200))
    read = ofdm.demodulate_at(turned, np.arange(10) * 320, WAVEFORM, advance=16, cfo=0.0123)
    np.testing.assert_allclose(read.reshape(-1), symbols, atol=1e-5)
    assert ofdm.demodulate_at(samples, np.zeros(0, int), WAVEFORM).shape == (0, 192)
    for starts, advance in (([2881], 0), ([-65], 0), ([0], 65), ([0], -1)):
        with pytest.raises(ValueError, match="outside"):
            ofdm.demodulate_at(samples, np.array(starts), WAVEFORM, advance=advance)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    good = np.zeros((2, 5000), np.complex64)
    for precoder in (np.ones(191), np.ones((1, 192)), np.nan, np.full(192, np.inf)):
        with pytest.raises(ValueError, match="precoder"):
            frames.build(np.ones(10), WAVEFORM, precoder)
    with pytest.raises(ValueError, match="num_symbols"):
        frames.build(np.ones((2, 10)), WAVEFORM)
    with pytest.raises(ValueError, match="negative"):
        frames.segment_length(-1, WAVEFORM)
    for combiner in (np.ones(3), np.ones((191, 2)), np.ones((2, 192))):
        with pytest.raises(ValueError, match="combiner"):
            frames.read(good, WAVEFORM, 192, combiner=combiner)
    with pytest.raises(ValueError, match="combiner"):
        frames.read(good, WAVEFORM, 192, combiner=np.array([1, np.nan]))
    for reference in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="reference"):
            frames.read(good, WAVEFORM, 192, combiner=np.ones(2), reference=reference)
    with pytest.raises(ValueError, match="shape"):
        frames.read(good[0], WAVEFORM, 192, combiner=ONE)
    with pytest.raises(ValueError, match="negative"):
        frames.demodulate(good, WAVEFORM, 192, start=0, guard=-1)
    for waveform in (WAVEFORM, SYMBOLS):
        for start in (-1, 4900):
            with pytest.raises(ValueError, match="outside"):
                frames.read(good, waveform, 192, combiner=np.ones(2), start=start)
    good[0, 3000] = np.nan
    for guard in (0, 100):
        with pytest.raises(ValueError, match="not finite"):
            frames.read(good, WAVEFORM, 192, combiner=np.ones(2), start=100, guard=guard)


def test_deep_fades_that_are_inverted_do_not_make_the_preamble_loud():
    generator = np.random.default_rng(23)
    # half of the power goes into two subcarriers, one of them of the short training
    precoder = np.exp(1j * generator.uniform(0, 2 * np.pi, 192))
    precoder[[15, 50]] *= 10.0
    symbols = (generator.standard_normal((20 * 192, 2)) @ np.array([1, 1j]) / np.sqrt(2)).astype(np.complex64)
    burst = frames.build(symbols, WAVEFORM, precoder)
    average_w = np.mean(np.abs(precoder) ** 2)
    assert ofdm.body_power_w(burst[:320], WAVEFORM) == pytest.approx(average_w, rel=1e-4)
    assert ofdm.body_power_w(burst[320:960], WAVEFORM) == pytest.approx(average_w, rel=1e-4)
    # through the channels that it inverts, two nodes' preambles and data add up in phase
    channel = 1 / precoder
    received = ofdm.modulate((ofdm.demodulate(burst, WAVEFORM).reshape(-1, 192) * channel).reshape(-1), WAVEFORM)
    read = frames.read(received[None], WAVEFORM, len(symbols), combiner=np.ones(1), reference=1.0)
    np.testing.assert_allclose(read.symbols, symbols, atol=1e-4)
