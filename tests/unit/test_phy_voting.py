import numpy as np
import pytest
from scipy import stats

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm, voting

WAVEFORM = WaveformSpec()


def complex_normal(generator, *shape):
    return generator.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)


def within(successes, trials, probability, deviations=4.0):
    """Whether a count agrees with a probability, to so many standard deviations and one count for the discreteness."""
    spread = np.sqrt(trials * probability * (1 - probability))
    return abs(successes - trials * probability) <= deviations * spread + 1


# --- votes ------------------------------------------------------------------------------------------------------------


def test_values_up_to_the_threshold_abstain():
    update = np.array([-2.0, -0.5, -0.1, 0.0, 0.1, 0.5, 0.500001], np.float32)
    assert voting.signs(update, 0.5).tolist() == [-1, 0, 0, 0, 0, 0, 1]
    assert voting.signs(update, 0.0).tolist() == [-1, -1, -1, 0, 1, 1, 1]
    assert voting.signs(update).dtype == np.int8


@pytest.mark.parametrize("threshold", [-1e-9, np.nan, np.inf])
def test_a_threshold_that_is_no_magnitude_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        voting.signs(np.zeros(3), threshold)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_has_no_sign(value):
    with pytest.raises(ValueError, match="not finite"):
        voting.signs(np.array([1.0, value]))


# --- FSK-MV -----------------------------------------------------------------------------------------------------------


def test_the_demonstrated_network_needs_303_blocks():
    assert ofdm.num_blocks(voting.fsk_num_symbols(29_034, WAVEFORM), WAVEFORM) == 303
    assert voting.fsk_num_symbols(96, WAVEFORM) == WAVEFORM.num_active


def test_energy_lies_on_the_first_of_a_pair_for_plus_and_on_the_second_for_minus():
    symbols = voting.fsk_symbols(np.array([1, -1, 0], np.int8), WAVEFORM, seed=3)
    assert symbols.dtype == np.complex64
    np.testing.assert_allclose(np.abs(symbols), np.sqrt(2) * np.array([1, 0, 0, 1, 0, 0]), rtol=1e-6)


def test_both_subcarriers_of_every_pair_are_neighbours_in_frequency():
    half = WAVEFORM.num_active // 2
    index = np.concatenate([np.arange(1, half + 1), np.arange(-half, 0)])
    assert set(np.diff(index.reshape(-1, 2), axis=1).ravel()) == {1}
    with pytest.raises(ValueError, match="multiple of 4"):
        voting.fsk_symbols(np.ones(3), WaveformSpec(num_active=190), seed=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        voting.fsk_num_symbols(3, WaveformSpec(num_active=190))


def test_a_full_ballot_has_unit_power_and_an_abstention_saves_its_share():
    generator = np.random.default_rng(5)
    votes = generator.choice([-1, 1], 96 * 40).astype(np.int8)
    samples = ofdm.modulate(voting.fsk_symbols(votes, WAVEFORM, seed=1), WAVEFORM)
    assert ofdm.body_power_w(samples, WAVEFORM) == pytest.approx(1.0, rel=1e-5)
    votes[::4] = 0
    samples = ofdm.modulate(voting.fsk_symbols(votes, WAVEFORM, seed=1), WAVEFORM)
    assert ofdm.body_power_w(samples, WAVEFORM) == pytest.approx(0.75, rel=1e-5)


def test_phases_come_from_the_seed_alone_and_are_uniform():
    votes = np.ones(40_000, np.int8)
    first, again, other = (voting.fsk_symbols(votes, WAVEFORM, seed=seed) for seed in (11, 11, 12))
    assert np.array_equal(first, again)
    phasors, others = first[::2] / np.sqrt(2), other[::2] / np.sqrt(2)
    # uniform: no mean, no second harmonic, no likeness between two seeds, to four standard deviations
    for mean in (phasors.mean(), (phasors**2).mean(), (phasors * others.conj()).mean()):
        assert abs(mean) < 4 / np.sqrt(len(votes))


def test_votes_that_all_agree_have_no_higher_peaks_than_random_data():
    blocks = 200
    votes = np.ones(96 * blocks, np.int8)
    generator = np.random.default_rng(6)
    data = np.exp(0.5j * np.pi * generator.integers(0, 4, 192 * blocks))

    def peak(symbols):
        power = np.abs(ofdm.modulate(symbols, WAVEFORM)).reshape(blocks, -1) ** 2
        return np.median(power.max(axis=1))

    ballot = peak(voting.fsk_symbols(votes, WAVEFORM, seed=2))
    assert ballot < 1.2 * peak(data)
    # without the phases the peaks would be those of a pulse train
    assert peak(np.tile([np.sqrt(2), 0], 96 * blocks)) > 5 * ballot


def test_a_clear_majority_survives_the_whole_chain_of_samples():
    generator = np.random.default_rng(7)
    num_values, num_nodes = 96 * 20, 3
    votes = generator.choice([-1, 1], num_values).astype(np.int8)
    bursts = np.stack([ofdm.modulate(voting.fsk_symbols(votes, WAVEFORM, seed=k), WAVEFORM) for k in range(num_nodes)])
    received = complex_normal(generator, 4, num_nodes).astype(np.complex64) @ bursts
    decided, energies = voting.fsk_decide(ofdm.demodulate(received, WAVEFORM, 2 * num_values), num_values)
    assert np.array_equal(decided, votes)
    assert decided.dtype == np.int8
    assert energies.dtype == np.float32
    assert energies.shape == (2, num_values)


def test_energies_add_over_antennas_with_their_weights_and_only_a_tie_gives_zero():
    symbols = np.array([[1, 2j, 3, 3j], [2, 1, 1j, 1]], np.complex64)
    votes, energies = voting.fsk_decide(symbols, 2)
    assert energies.tolist() == [[5.0, 10.0], [5.0, 10.0]]
    assert votes.tolist() == [0, 0]
    votes, energies = voting.fsk_decide(symbols, 2, np.array([1.0, 0.5]))
    assert energies.tolist() == [[3.0, 9.5], [4.5, 9.5]]
    assert votes.tolist() == [-1, 0]
    assert voting.fsk_decide(symbols[0], 1)[0].tolist() == [-1]


def test_symbols_or_weights_that_do_not_fit_are_refused():
    symbols = np.ones((2, 6), np.complex64)
    with pytest.raises(ValueError, match="4 votes need 8 symbols, 6 are given"):
        voting.fsk_decide(symbols, 4)
    for weight in (np.ones(3), np.array([1.0, -1.0]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="weights"):
            voting.fsk_decide(symbols, 3, weight)


@pytest.mark.parametrize("num_antennas", [1, 2, 4])
@pytest.mark.parametrize("snr", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("num_plus", "num_minus"), [(1, 0), (3, 2), (2, 5), (8, 1), (3, 3)])
def test_votes_under_rayleigh_fading_fail_as_often_as_the_closed_form_says(num_plus, num_minus, snr, num_antennas):
    generator = np.random.default_rng([num_plus, num_minus, int(10 * snr), num_antennas])
    trials, num_nodes = 20_000, num_plus + num_minus
    votes = np.concatenate([np.ones(num_plus, np.int8), -np.ones(num_minus, np.int8)])
    # each trial is a value, with channels of its own: [num_nodes, trials, 2]
    sent = np.stack(
        [voting.fsk_symbols(np.full(trials, votes[k]), WAVEFORM, seed=k).reshape(-1, 2) for k in range(num_nodes)]
    )
    channel = np.sqrt(snr / 2) * complex_normal(generator, num_antennas, num_nodes, trials)
    received = np.einsum("nkt,ktp->ntp", channel, sent) + complex_normal(generator, num_antennas, trials, 2)
    decided, _ = voting.fsk_decide(received.reshape(num_antennas, -1), trials)
    majority = 1 if num_plus >= num_minus else -1
    expected = float(voting.fsk_vote_error(num_plus, num_minus, snr, num_antennas))
    assert within(np.count_nonzero(decided != majority), trials, expected)


def test_vote_error_agrees_with_the_f_distribution_and_its_limits():
    for plus, minus, snr, antennas in [(4, 1, 2.0, 3), (0, 6, 0.3, 8), (5, 5, 7.0, 2)]:
        large, small = 1 + max(plus, minus) * snr, 1 + min(plus, minus) * snr
        expected = stats.f(2 * antennas, 2 * antennas).cdf(small / large)
        assert float(voting.fsk_vote_error(plus, minus, snr, antennas)) == pytest.approx(expected, rel=1e-12)
    # one antenna: the ratio of two exponentials
    assert float(voting.fsk_vote_error(3, 1, 2.0, 1)) == pytest.approx(3 / 10)
    assert voting.fsk_vote_error(4, 1, 0.0, 2) == pytest.approx(0.5)
    # noise vanishes: the minority still wins now and then
    assert voting.fsk_vote_error(3, 1, 1e12, 1) == pytest.approx(0.25)
    grid = voting.fsk_vote_error(np.array([[1], [5]]), 0, np.array([0.1, 1.0, 10.0]), 2)
    assert grid.shape == (2, 3)
    assert np.all(np.diff(grid, axis=0) < 0)
    assert np.all(np.diff(grid, axis=1) < 0)


@pytest.mark.parametrize("num_antennas", [1, 2, 5])
@pytest.mark.parametrize("snr", [0.5, 2.0, 5.0])
def test_votes_of_one_node_without_fading_fail_as_often_as_the_closed_form_says(snr, num_antennas):
    generator = np.random.default_rng([int(10 * snr), num_antennas])
    trials = 50_000
    sent = voting.fsk_symbols(np.full(trials, -1), WAVEFORM, seed=4)
    phases = np.exp(2j * np.pi * generator.random((num_antennas, 1)))
    received = np.sqrt(snr / 2) * phases * sent + complex_normal(generator, num_antennas, 2 * trials)
    decided, _ = voting.fsk_decide(received, trials)
    expected = float(voting.fsk_vote_error_awgn(snr, num_antennas))
    assert within(np.count_nonzero(decided != -1), trials, expected)


def test_without_fading_one_antenna_gives_the_classic_exponential():
    snr = np.array([0.0, 1.0, 10.0])
    np.testing.assert_allclose(voting.fsk_vote_error_awgn(snr), 0.5 * np.exp(-snr / 2), rtol=1e-12)
    assert float(voting.fsk_vote_error_awgn(0.0, 6)) == pytest.approx(0.5)


def test_vote_errors_of_nonsense_are_refused():
    for arguments in [(-1, 0, 1.0, 1), (1, -1, 1.0, 1), (1, 0, -1.0, 1), (1, 0, np.nan, 1)]:
        with pytest.raises(ValueError, match="negative"):
            voting.fsk_vote_error(*arguments)
        with pytest.raises(ValueError, match="negative"):
            voting.obda_vote_error(*arguments[:3])
    with pytest.raises(ValueError, match="antenna"):
        voting.fsk_vote_error(1, 0, 1.0, 0)
    with pytest.raises(ValueError, match="antenna"):
        voting.fsk_vote_error_awgn(1.0, 0)
    with pytest.raises(ValueError, match="negative"):
        voting.fsk_vote_error_awgn(-1.0)


# --- OBDA -------------------------------------------------------------------------------------------------------------


def test_two_votes_ride_on_one_symbol_of_unit_power_and_an_abstention_is_silent():
    symbols = voting.obda_symbols(np.array([1, -1, 0, 1, -1], np.int8))
    np.testing.assert_allclose(symbols, np.array([1 - 1j, 1j, -1]) / np.sqrt(2), rtol=1e-6)
    assert symbols.dtype == np.complex64


def test_the_sum_of_aligned_votes_gives_the_majority():
    generator = np.random.default_rng(9)
    votes = generator.choice([-1, 0, 1], (7, 1001)).astype(np.int8)
    total = sum(voting.obda_symbols(row) for row in votes)
    decided = voting.obda_decide(total, 1001)
    assert decided.dtype == np.int8
    clear = votes.sum(axis=0) != 0
    assert np.array_equal(decided[clear], np.sign(votes.sum(axis=0))[clear])
    with pytest.raises(ValueError, match="5 values need 3 symbols"):
        voting.obda_decide(np.ones(2), 5)


@pytest.mark.parametrize("snr", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("num_plus", "num_minus"), [(1, 0), (3, 2), (2, 5), (3, 3)])
def test_coherent_votes_fail_as_often_as_the_closed_form_says(num_plus, num_minus, snr):
    generator = np.random.default_rng([num_plus, num_minus, int(100 * snr)])
    trials = 100_000
    symbols = (num_plus - num_minus) * np.sqrt(snr) * voting.obda_symbols(np.ones(trials))
    decided = voting.obda_decide(symbols + complex_normal(generator, trials // 2), trials)
    majority = 1 if num_plus >= num_minus else -1
    expected = float(voting.obda_vote_error(num_plus, num_minus, snr))
    assert within(np.count_nonzero(decided != majority), trials, expected)
