import numpy as np
import pytest

from testbed.core.bench import WaveformSpec
from testbed.phy import frames, ofdm, overair

WAVEFORM = WaveformSpec()
NUM_NODES, NUM_ANTENNAS = 5, 4


class Draw:
    """One aggregation through the whole chain of samples."""

    def __init__(self, num_values: int, noise_w: float, seed: int = 7) -> None:
        generator = np.random.default_rng(seed)
        self.channel = 1e-4 * generator.standard_normal((NUM_ANTENNAS, NUM_NODES, 2)) @ np.array([1, 1j])
        offsets, spreads = generator.normal(0, 1e-4, NUM_NODES), generator.uniform(5e-4, 2e-3, NUM_NODES)
        normals = generator.standard_normal((NUM_NODES, num_values))
        self.updates = (offsets[:, None] + spreads[:, None] * normals).astype(np.float32)
        self.weight = generator.integers(10, 100, NUM_NODES).astype(np.float64)
        self.mean = self.updates.mean(axis=1, dtype=np.float64)
        self.std = self.updates.std(axis=1, dtype=np.float64)
        self.max_power_w = generator.uniform(0.005, 0.02, NUM_NODES)
        self.combiner = overair.max_min_combiner(np.sqrt(self.max_power_w) * self.channel / (self.weight * self.std))
        self.forcing = overair.uniform_forcing(self.channel, self.combiner, self.weight, self.std, self.max_power_w)
        self.bursts = np.stack(
            [
                frames.build(overair.symbols_of(update, mean, std), WAVEFORM, precoder)
                for update, mean, std, precoder in zip(
                    self.updates, self.mean, self.std, self.forcing.precoder, strict=True
                )
            ]
        )
        received = self.channel.astype(np.complex64) @ self.bursts
        if noise_w:
            normals = generator.standard_normal((*received.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
            received += np.float32(np.sqrt(noise_w / 2)) * normals
        scale = self.forcing.scale
        reference = overair.pilot_reference(scale, self.weight, self.std)
        num_symbols = ofdm.num_symbols_of(num_values)
        self.read = frames.read(received, WAVEFORM, num_symbols, combiner=self.combiner, reference=reference)
        self.estimate = overair.mean_of(
            self.read.symbols, scale=scale, weights=self.weight, means=self.mean, num_values=num_values
        )
        self.truth = self.weight @ self.updates.astype(np.float64) / self.weight.sum()
        self.error = self.estimate - self.truth


def test_without_noise_the_mean_is_exact():
    draw = Draw(10_001, 0.0)
    assert draw.estimate.dtype == np.float32
    assert np.abs(draw.error).max() < 2e-6 * np.abs(draw.truth).max()


def test_the_bottleneck_sends_at_its_limit_and_nobody_above():
    draw = Draw(10_000, 0.0)
    assert np.max(draw.forcing.power_w / draw.max_power_w) == pytest.approx(1.0, rel=1e-12)
    aligned = draw.combiner.conj() @ draw.channel * draw.forcing.precoder
    np.testing.assert_allclose(aligned, draw.forcing.scale * draw.weight * draw.std, rtol=1e-10)
    # 5000 symbols leave the last of 27 data blocks with 8: silence there, all else is as loud as planned
    for burst, power_w in zip(draw.bursts, draw.forcing.power_w, strict=True):
        blocks = len(burst) / (WAVEFORM.num_subcarriers + WAVEFORM.cyclic_prefix)
        filled = (blocks - 1 + 8 / 192) / blocks
        assert ofdm.body_power_w(burst, WAVEFORM) == pytest.approx(power_w * filled, rel=1e-3)


def test_error_of_the_whole_chain_agrees_with_the_closed_form():
    num_values, noise_w = 400_000, 1e-13
    draw = Draw(num_values, noise_w)
    in_band_w = ofdm.in_band_noise_w(noise_w, WAVEFORM)
    expected = overair.aggregation_mse(num_values, in_band_w, draw.forcing.scale, draw.weight.sum())
    assert np.sum(draw.error**2) == pytest.approx(expected, rel=0.01)
    assert abs(draw.read.gain) == pytest.approx(1.0, abs=0.01)
    # unbiased: the mean of the error is within four of its standard deviations
    assert abs(draw.error.mean()) < 4 * np.sqrt(expected) / num_values


def test_one_real_value_on_a_symbol_leaves_half_the_error():
    generator = np.random.default_rng(8)
    num_values, noise_w, scale, total_weight = 400_000, 1e-3, 0.2, 30.0
    noise = np.sqrt(noise_w / 2) * generator.standard_normal((num_values, 2)) @ np.array([1, 1j])
    values = generator.standard_normal(num_values)
    estimate = (scale * total_weight * values + noise).real / (scale * total_weight)
    expected = overair.aggregation_mse(num_values, noise_w, scale, total_weight, convention="real")
    assert np.sum((estimate - values) ** 2) == pytest.approx(expected, rel=0.01)
    assert expected == overair.aggregation_mse(num_values, noise_w, scale, total_weight, convention="iq") / 2


def test_doubling_all_powers_halves_the_error():
    draw = Draw(100, 0.0)
    louder = overair.uniform_forcing(draw.channel, draw.combiner, draw.weight, draw.std, 2 * draw.max_power_w)
    errors = [overair.aggregation_mse(100, 1e-13, forcing.scale, 1.0) for forcing in (draw.forcing, louder)]
    assert errors[0] == pytest.approx(2 * errors[1])


def test_a_constant_update_costs_no_power_and_still_counts():
    channel = np.array([[1e-4, 2e-4j]])
    forcing = overair.uniform_forcing(channel, np.ones(1), np.array([1.0, 3.0]), np.array([0.5, 0.0]), np.full(2, 0.01))
    assert forcing.power_w.tolist() == pytest.approx([0.01, 0.0])
    updates = np.array([[1.0, 2.0, 0.0], [7.0, 7.0, 7.0]], np.float32)
    symbols = np.stack(
        [forcing.precoder[k] * overair.symbols_of(updates[k], (1.0, 7.0)[k], (0.5, 0.0)[k]) for k in (0, 1)]
    )
    assert not symbols[1].any()
    estimate = overair.mean_of(
        (channel @ symbols)[0], scale=forcing.scale, weights=np.array([1, 3]), means=np.array([1, 7]), num_values=3
    )
    np.testing.assert_allclose(estimate, np.array([1, 3]) @ updates / 4, rtol=1e-5)


def test_where_all_updates_are_constant_the_scale_is_finite():
    forcing = overair.uniform_forcing(np.array([[1e-4, 2e-4]]), np.ones(1), np.ones(2), np.zeros(2), np.full(2, 0.01))
    assert forcing.scale == pytest.approx(1e-5)
    assert not forcing.precoder.any()


def test_what_the_combiner_does_not_hear_is_refused():
    with pytest.raises(ValueError, match=r"index \[1\]"):
        overair.uniform_forcing(np.eye(2), np.array([1.0, 0.0]), np.ones(2), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="negative"):
        overair.uniform_forcing(np.ones((1, 1)), np.ones(1), np.ones(1), -np.ones(1), np.ones(1))


def test_a_part_of_an_update_is_that_part_of_its_symbols():
    update = np.random.default_rng(3).standard_normal(1001).astype(np.float32)
    whole = overair.symbols_of(update, 0.1, 2.0)
    assert whole.shape == (501,)
    np.testing.assert_array_equal(overair.symbols_of(update, 0.1, 2.0, 100, 7), whole[100:107])
    np.testing.assert_array_equal(overair.symbols_of(update, 0.1, 2.0, 490, 192), whole[490:])


def test_where_only_some_send_on_a_subcarrier_their_mean_is_taken():
    # two nodes of weight 1 and 3; the second is silent on the first of two subcarriers, both on the third
    waveform_values = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [-1.0, 0.5, 2.0, 1.0, 0.0, 2.0]], np.float32)
    symbols = [overair.symbols_of(values, 0.0, 1.0) for values in waveform_values]
    received = 0.7 * np.array([symbols[0][0], symbols[0][1] + 3 * symbols[1][1], 0.0])
    share = np.array([0.25, 1.0, 0.0])
    estimate = overair.mean_of(
        received, scale=0.7, weights=np.array([1, 3]), means=np.zeros(2), num_values=6, share=share
    )
    expected = [1.0, 2.0, (3.0 + 3 * 2.0) / 4, (4.0 + 3 * 1.0) / 4, 0.0, 0.0]
    np.testing.assert_allclose(estimate, expected, rtol=1e-6, atol=1e-7)
