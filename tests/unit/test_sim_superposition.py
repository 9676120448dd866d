import threading

import numpy as np
import pytest

from sim_backend import superposition, threads
from sim_backend.superposition import (
    add_flat,
    add_selective,
    add_subcarriers,
    fft_length,
    fir_spectrum,
    sounded_frequencies,
)

LEAD, TAIL = 64, 192


def normals(seed: int, *shape: int) -> np.ndarray:
    pairs = np.random.default_rng(seed).standard_normal((*shape, 2), dtype=np.float32)
    return pairs.view(np.complex64)[..., 0]


def placed(bursts, offsets, num_elements: int) -> np.ndarray:
    """Each burst in its row of silence, [num_bursts, num_elements], complex128."""
    rows = np.zeros((len(bursts), num_elements + 40_000), np.complex128)
    for row, burst, offset in zip(rows, bursts, offsets, strict=True):
        row[20_000 + offset :][: burst.size] = burst
    return rows[:, 20_000 : 20_000 + num_elements]


@pytest.mark.parametrize("num_rows", [1, 2, 8])
@pytest.mark.parametrize("num_elements", [1, 100, 8192, 20_001])
def test_flat_channels_are_a_matrix_product(num_rows, num_elements):
    lengths = (20_001, 9000, 1, 30_000, 300, 10)
    offsets = (0, 8190, 8191, -300, -300, 50_000)
    bursts = [normals(index, length) for index, length in enumerate(lengths)]
    channel = normals(20, num_rows, len(bursts))
    heard = normals(21, num_rows, num_elements)
    expected = heard + channel.astype(np.complex128) @ placed(bursts, offsets, 60_000)[:, :num_elements]
    add_flat(heard, bursts, offsets, lambda index, active: channel[:, active])
    assert heard.dtype == np.complex64
    np.testing.assert_allclose(heard, expected, atol=3e-6 * np.abs(expected).max())


def test_a_moving_channel_is_asked_at_the_middle_of_each_chunk():
    asked = []

    def channel_at(index: float, active) -> np.ndarray:
        asked.append(index)
        return np.full((2, 1), index, np.complex64)

    heard = np.zeros((2, 20_000), np.complex64)
    add_flat(heard, [np.ones(20_000, np.complex64)], [0], channel_at)
    assert asked == [4096.0, 12_288.0, 18_192.0]
    assert np.unique(heard.real).tolist() == asked


def test_nothing_larger_than_chunks_is_allocated():
    import tracemalloc

    bursts = [np.ones(400_000, np.complex64) for _ in range(4)]
    heard = np.zeros((2, 400_000), np.complex64)
    spectrum = np.ones((fft_length(LEAD, TAIL), 2, 4), np.complex64)
    gains = np.ones((192, 2, 4), np.complex64)
    for add in (
        lambda: add_flat(heard, bursts, [0] * 4, lambda index, active: gains[0]),
        lambda: add_selective(heard, bursts, [0] * 4, lambda index, active: spectrum, lead=LEAD, tail=TAIL),
        lambda: add_subcarriers(heard, bursts, [0] * 4, lambda index, active: gains, 192),
    ):
        tracemalloc.start()
        add()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000  # one burst is 3.2 MB, a chunk of all four 0.26 MB


def delayed_tone(frequency: float, num_elements: int, *, begin: int, end: int) -> np.ndarray:
    tone = np.exp(2j * np.pi * frequency * np.arange(num_elements)).astype(np.complex64)
    return tone[begin:end]


def response_of(delays: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[num_frequencies, num_rows, num_bursts]; delays in samples and gains are [num_rows, num_bursts, num_paths]."""
    frequencies = sounded_frequencies(LEAD, TAIL)
    turned = np.exp(-2j * np.pi * frequencies[:, None, None, None] * delays)
    return np.sum(gains * turned, axis=-1)


@pytest.mark.parametrize("frequency", [-0.4, -0.123, 0.0, 0.301, 0.4])
def test_a_tone_meets_the_response_at_its_frequency(frequency):
    generator = np.random.default_rng(3)
    delays = generator.uniform(0, 60, (2, 1, 4))
    gains = generator.standard_normal((2, 1, 4)) + 1j * generator.standard_normal((2, 1, 4))
    spectrum = fir_spectrum(response_of(delays, gains), lead=LEAD, tail=TAIL)
    heard = np.zeros((2, 20_000), np.complex64)
    tone = delayed_tone(frequency, 22_000, begin=0, end=22_000)
    add_selective(heard, [tone], [-1000], lambda index, active: spectrum, lead=LEAD, tail=TAIL)
    gain = np.sum(gains * np.exp(-2j * np.pi * frequency * delays), axis=-1)
    expected = gain * np.exp(2j * np.pi * frequency * np.arange(1000, 21_000))
    np.testing.assert_allclose(heard, expected, atol=1e-3 * np.abs(gains).sum(axis=-1).max())


def test_bursts_with_edges_meet_fractional_delays_as_in_direct_convolution():
    generator = np.random.default_rng(4)
    # bursts of 0.8 of the band
    spectrum = np.fft.fft(normals(5, 3, 4096), axis=1)
    spectrum[:, np.abs(np.fft.fftfreq(4096)) > 0.4] = 0
    bursts = list(np.fft.ifft(spectrum, axis=1).astype(np.complex64) * np.hanning(4096).astype(np.float32))
    offsets = [0, 1500, 12_345]
    delays = generator.uniform(0, 40, (2, 3, 3))
    gains = generator.standard_normal((2, 3, 3)) + 1j * generator.standard_normal((2, 3, 3))
    taps = fir_spectrum(response_of(delays, gains), lead=LEAD, tail=TAIL)
    heard = np.zeros((2, 18_000), np.complex64)
    add_selective(heard, bursts, offsets, lambda index, active: taps[..., active], lead=LEAD, tail=TAIL)
    expected = np.zeros((2, 18_000), np.complex128)
    reach = np.arange(-2000, 2001)
    for row in range(2):
        for k, burst in enumerate(bursts):
            # ideal band-limited interpolation: sincs that are far longer than the filter's taps
            filter_taps = np.sum(gains[row, k][:, None] * np.sinc(reach - delays[row, k][:, None]), axis=0)
            full = np.convolve(burst, filter_taps)
            at = offsets[k] - 2000
            low, high = max(at, 0), min(at + full.size, 18_000)
            expected[row, low:high] += full[low - at : high - at]
    np.testing.assert_allclose(heard, expected, atol=2e-3 * np.sqrt(np.mean(np.abs(expected) ** 2)))


def test_whole_delays_are_an_exact_convolution_to_the_edges():
    gains = np.array([[[1.0, 0.5j, -0.25]]])
    delays = np.array([[[0.0, 3.0, 64.0]]])
    spectrum = fir_spectrum(response_of(delays, gains), lead=LEAD, tail=TAIL)
    burst = normals(6, 5000)
    heard = np.zeros((1, 9000), np.complex64)
    add_selective(heard, [burst], [2000], lambda index, active: spectrum, lead=LEAD, tail=TAIL)
    expected = np.zeros(9000, np.complex128)
    for gain, delay in zip(gains[0, 0], (0, 3, 64), strict=True):
        expected[2000 + delay : 7000 + delay] += gain * burst
    np.testing.assert_allclose(heard[0], expected, atol=1e-5)


def test_a_channel_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="longer than 128 samples"):
        fir_spectrum(response_of(np.full((1, 1, 1), 250.0), np.ones((1, 1, 1))), lead=LEAD, tail=TAIL)


@pytest.mark.parametrize("offset", [0, 192, 100, -77, 8191])
def test_every_subcarrier_meets_its_own_gain_wherever_the_burst_begins(offset):
    burst, late = normals(7, 192 * 50), normals(8, 192 * 3 - 5)
    response = normals(9, 192, 2, 2)
    heard = np.zeros((2, 18_000), np.complex64)
    add_subcarriers(heard, [burst, late], [offset, 9000], lambda index, active: response[..., active], 192)
    expected = np.zeros((2, 60_000), np.complex128)
    for k, (sent, at) in enumerate(((burst, offset), (late, 9000))):
        gains = np.resize(response[:, :, k].T, (2, 192))[:, np.arange(sent.size) % 192]
        expected[:, 20_000 + at :][:, : sent.size] += gains * sent
    np.testing.assert_allclose(heard, expected[:, 20_000:38_000], atol=1e-5)


def added_by(num_cores: int, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Captures of all three kinds of channels, worked on by so many threads however short they are."""
    monkeypatch.setattr(threads, "_THREAD", 1)
    monkeypatch.setattr(threads, "num_cores", lambda: num_cores)
    bursts = [normals(index, 100_000 - 7000 * index) for index in range(5)]
    offsets = [0, -300, 9000, 40_000, 8191]
    flat, taps, gains = normals(30, 3, 5), normals(31, fft_length(LEAD, TAIL), 3, 5), normals(32, 192, 3, 5)
    captures = [normals(33, 3, 100_000) for _ in range(3)]
    add_flat(captures[0], bursts, offsets, lambda index, active: np.complex64(index) * flat[:, active])
    add_selective(captures[1], bursts, offsets, lambda index, active: taps[..., active], lead=LEAD, tail=TAIL)
    add_subcarriers(captures[2], bursts, offsets, lambda index, active: gains[..., active], 192)
    return captures


@pytest.mark.parametrize("num_cores", [2, 3, 100])
def test_captures_do_not_depend_on_the_number_of_threads(num_cores, monkeypatch):
    alone = added_by(1, monkeypatch)
    running = threading.active_count()
    for one, several in zip(alone, added_by(num_cores, monkeypatch), strict=True):
        np.testing.assert_array_equal(several, one)
    assert threading.active_count() == running


@pytest.mark.parametrize("num_cores", [1, 2])
def test_a_channel_that_cannot_be_told_ends_every_thread(num_cores, monkeypatch):
    monkeypatch.setattr(threads, "_THREAD", 1)
    monkeypatch.setattr(threads, "num_cores", lambda: num_cores)
    asked = []

    def channel_at(index: float, active) -> np.ndarray:
        asked.append(index)
        if len(asked) == 3:
            raise ValueError("outside the recorded points")
        return np.ones((2, 2), np.complex64)

    running = threading.active_count()
    with pytest.raises(ValueError, match="outside"):
        add_flat(np.zeros((2, 200_000), np.complex64), [normals(1, 200_000)] * 2, [0, 0], channel_at)
    assert len(asked) == 3
    assert threading.active_count() == running


def test_rows_are_combined_as_by_a_product():
    row, capture = normals(40, 5), normals(41, 5, 20_000)
    combined = superposition.multiply_rows(row, capture)
    assert combined.shape == (1, 20_000)
    np.testing.assert_allclose(combined[0], row.astype(np.complex128) @ capture, atol=2e-5)
