import cvxpy as cp
import numpy as np
import pytest

from testbed.phy import precoding

NUM_NODES, NUM_ANTENNAS, NUM_ACTIVE = 5, 4, 24


def complex_normal(generator, *shape):
    return generator.standard_normal((*shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)


class Draw:
    """Channels, combiners and nodes; `flat` and `selective` channels share their statistics."""

    def __init__(self, seed: int = 21) -> None:
        generator = np.random.default_rng(seed)
        self.generator = generator
        self.flat = 1e-4 * complex_normal(generator, NUM_ANTENNAS, NUM_NODES)
        self.selective = 1e-4 * complex_normal(generator, NUM_ANTENNAS, NUM_NODES, NUM_ACTIVE)
        self.combiner = complex_normal(generator, NUM_ANTENNAS)
        self.combiner /= np.linalg.norm(self.combiner)
        self.combiners = complex_normal(generator, NUM_ACTIVE, NUM_ANTENNAS)
        self.combiners /= np.linalg.norm(self.combiners, axis=1, keepdims=True)
        self.weight = generator.integers(10, 100, NUM_NODES).astype(np.float64)
        self.std = generator.uniform(5e-4, 2e-3, NUM_NODES)
        self.max_power_w = generator.uniform(0.005, 0.02, NUM_NODES)
        self.nodes = (self.weight, self.std, self.max_power_w)

    def cases(self):
        """Channel, combiner and the gains, computed one by one."""
        for channel, combiner in [
            (self.flat, self.combiner),
            (self.selective, self.combiner),
            (self.flat, self.combiners),
            (self.selective, self.combiners),
        ]:
            if channel.ndim == combiner.ndim + 1 == 2:
                gain = np.array([np.vdot(combiner, channel[:, m]) for m in range(NUM_NODES)])
            else:
                gain = np.array(
                    [
                        [
                            np.vdot(
                                combiner if combiner.ndim == 1 else combiner[k],
                                channel[:, m] if channel.ndim == 2 else channel[:, m, k],
                            )
                            for k in range(NUM_ACTIVE)
                        ]
                        for m in range(NUM_NODES)
                    ]
                )
            yield channel, combiner, gain


def column(values, gain):
    return values[:, None] if gain.ndim == 2 else values


# --- uniform forcing --------------------------------------------------------------------------------------------------


def test_forcing_aligns_every_node_on_every_subcarrier():
    draw = Draw()
    for channel, combiner, gain in draw.cases():
        forcing = precoding.uniform_forcing(channel, combiner, *draw.nodes)
        assert forcing.precoder.shape == gain.shape
        expected = forcing.scale * column(draw.weight * draw.std, gain) * np.ones_like(gain)
        np.testing.assert_allclose(gain * forcing.precoder, expected, rtol=1e-10)


def test_average_powers_keep_their_limits_and_the_bottleneck_meets_its():
    draw = Draw()
    for channel, combiner, gain in draw.cases():
        forcing = precoding.uniform_forcing(channel, combiner, *draw.nodes)
        sent_w = np.mean(np.abs(forcing.precoder.reshape(NUM_NODES, -1)) ** 2, axis=1)
        np.testing.assert_allclose(forcing.power_w, sent_w, rtol=1e-12)
        assert np.max(sent_w / draw.max_power_w) == pytest.approx(1.0, rel=1e-12)
        # complementary slackness: a node with power to spare does not bound the scale, the one without does
        bottleneck = np.argmax(sent_w / draw.max_power_w)
        for index in range(NUM_NODES):
            louder = draw.max_power_w * np.where(np.arange(NUM_NODES) == index, 1.01, 1.0)
            scale = precoding.uniform_forcing(channel, combiner, draw.weight, draw.std, louder).scale
            assert (scale > forcing.scale * (1 + 1e-9)) == (index == bottleneck)
        assert gain.shape == forcing.precoder.shape


def test_no_aligned_precoders_within_the_limits_have_a_larger_scale():
    generator = np.random.default_rng(31)
    gain = complex_normal(generator, 3, 4)
    loudness, limit_w = np.array([1.0, 2.0, 0.5]), np.array([1.0, 2.0, 0.3])
    forcing = precoding.uniform_forcing(gain[None], np.ones(1), loudness, np.ones(3), limit_w)
    precoder, scale = cp.Variable((3, 4), complex=True), cp.Variable()
    aligned = cp.multiply(gain, precoder) == scale * np.outer(loudness, np.ones(4))
    within = [cp.sum_squares(precoder[m]) / 4 <= limit_w[m] for m in range(3)]
    cp.Problem(cp.Maximize(scale), [aligned, *within]).solve(solver=cp.CLARABEL)
    assert forcing.scale == pytest.approx(float(scale.value), rel=1e-5)


def test_the_same_channel_on_every_subcarrier_gives_the_flat_precoder():
    draw = Draw()
    flat = precoding.uniform_forcing(draw.flat, draw.combiner, *draw.nodes)
    repeated = np.repeat(draw.flat[:, :, None], NUM_ACTIVE, axis=2)
    each = precoding.uniform_forcing(repeated, draw.combiner, *draw.nodes)
    assert each.scale == pytest.approx(flat.scale, rel=1e-12)
    np.testing.assert_allclose(each.precoder, np.repeat(flat.precoder[:, None], NUM_ACTIVE, axis=1), rtol=1e-12)


def test_a_constant_update_is_silent_and_does_not_bound_the_scale_on_subcarriers_either():
    draw = Draw()
    draw.selective[:, 2] *= 1e-6
    std = np.where(np.arange(NUM_NODES) == 2, 0.0, draw.std)
    forcing = precoding.uniform_forcing(draw.selective, draw.combiner, draw.weight, std, draw.max_power_w)
    others = np.arange(NUM_NODES) != 2
    without = precoding.uniform_forcing(
        draw.selective[:, others], draw.combiner, draw.weight[others], draw.std[others], draw.max_power_w[others]
    )
    assert forcing.scale == without.scale
    assert not forcing.precoder[2].any()
    assert forcing.power_w[2] == 0.0
    silent = precoding.uniform_forcing(draw.selective, draw.combiner, draw.weight, 0 * std, draw.max_power_w)
    assert 0 < silent.scale < np.inf
    assert not silent.precoder.any()


def everybody(channel, combiner, weight, std, max_power_w):
    """Each policy on the same arguments."""
    yield lambda: precoding.uniform_forcing(channel, combiner, weight, std, max_power_w)
    yield lambda: precoding.truncated_inversion(channel, combiner, weight, std, max_power_w, 0.1)
    yield lambda: precoding.cotaf(channel, combiner, weight, np.zeros(len(std)), std, max_power_w)
    yield lambda: precoding.phase_alignment(channel, combiner, std, max_power_w)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_channels_and_combiners_that_are_not_finite_are_refused(value):
    draw = Draw()
    bad = draw.flat.copy()
    bad[1, 2] = value
    for policy in everybody(bad, draw.combiner, *draw.nodes):
        with pytest.raises(ValueError, match="not finite"):
            policy()
    for policy in everybody(draw.flat, np.array([1, 0, value, 0]), *draw.nodes):
        with pytest.raises(ValueError, match="not finite"):
            policy()
    for policy in everybody(draw.flat, draw.combiner, draw.weight, np.full(NUM_NODES, value), draw.max_power_w):
        with pytest.raises(ValueError, match="finite"):
            policy()


def test_shapes_that_do_not_fit_are_refused():
    draw = Draw()
    for channel, combiner in [
        (draw.flat, np.ones(3)),
        (draw.flat[0], draw.combiner),
        (draw.selective, draw.combiners[:7]),
        (draw.selective, draw.combiners.T),
        (draw.flat[:, :0], draw.combiner),
    ]:
        for policy in everybody(channel, combiner, *draw.nodes):
            with pytest.raises(ValueError, match="do not fit"):
                policy()
    with pytest.raises(ValueError, match="weights of shape \\[3\\] do not fit 5 nodes"):
        precoding.uniform_forcing(draw.flat, draw.combiner, np.ones(3), draw.std, draw.max_power_w)


def test_negative_numbers_and_deaf_combiners_are_refused():
    draw = Draw()
    for index, name in enumerate(("weights", "standard deviations", "power limits")):
        nodes = list(draw.nodes)
        nodes[index] = -nodes[index]
        with pytest.raises(ValueError, match=f"{name} cannot be negative"):
            precoding.uniform_forcing(draw.flat, draw.combiner, *nodes)
    deaf = draw.selective.copy()
    deaf[:, 3, 5] = 0.0
    with pytest.raises(ValueError, match=r"index \[3\]"):
        precoding.uniform_forcing(deaf, draw.combiner, *draw.nodes)
    with pytest.raises(ValueError, match=r"index \[3\]"):
        precoding.phase_alignment(deaf, draw.combiner, draw.std, draw.max_power_w)
    with pytest.raises(ValueError, match="does not hear"):
        precoding.uniform_forcing(0 * draw.flat, draw.combiner, draw.weight, 0 * draw.std, draw.max_power_w)


# --- truncated inversion ----------------------------------------------------------------------------------------------


def test_without_a_threshold_truncation_is_forcing():
    draw = Draw()
    for channel, combiner, _ in draw.cases():
        forcing = precoding.uniform_forcing(channel, combiner, *draw.nodes)
        truncated = precoding.truncated_inversion(channel, combiner, *draw.nodes, 0.0)
        assert truncated.forcing.scale == forcing.scale
        assert np.array_equal(truncated.forcing.precoder, forcing.precoder)
        assert truncated.active.all()
        np.testing.assert_allclose(truncated.share, 1.0)


def test_weak_subcarriers_are_silent_and_the_rest_louder():
    draw = Draw()
    channel, combiner, gain = list(draw.cases())[1]
    truncated = precoding.truncated_inversion(channel, combiner, *draw.nodes, 0.4)
    weak = np.abs(gain) ** 2 < 0.4 * np.mean(np.abs(gain) ** 2, axis=1, keepdims=True)
    assert weak.any()
    assert np.array_equal(truncated.active, ~weak)
    assert not truncated.forcing.precoder[weak].any()
    aligned = (truncated.forcing.scale * draw.weight * draw.std)[:, None] * ~weak
    np.testing.assert_allclose(gain * truncated.forcing.precoder, aligned, rtol=1e-10)
    assert truncated.forcing.scale > precoding.uniform_forcing(channel, combiner, *draw.nodes).scale
    sent_w = np.mean(np.abs(truncated.forcing.precoder) ** 2, axis=1)
    assert np.max(sent_w / draw.max_power_w) == pytest.approx(1.0, rel=1e-12)


def test_the_share_turns_what_is_received_into_the_mean_of_the_active_nodes():
    draw = Draw()
    channel, combiner, gain = list(draw.cases())[1]
    truncated = precoding.truncated_inversion(channel, combiner, *draw.nodes, 0.4)
    updates = draw.std[:, None] * complex_normal(draw.generator, NUM_NODES, NUM_ACTIVE)
    received = np.sum(gain * truncated.forcing.precoder * updates / draw.std[:, None], axis=0)
    estimate = received / (truncated.forcing.scale * draw.weight.sum() * truncated.share)
    for k in range(NUM_ACTIVE):
        alive = truncated.active[:, k]
        expected = np.average(updates[alive, k], weights=draw.weight[alive])
        assert estimate[k] == pytest.approx(expected, rel=1e-9)


def test_flat_truncation_leaves_whole_nodes_out():
    channel = np.array([[1.0, 0.1, 2.0, 0.0]])
    weight, std, limit_w = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1, 1, 0]), np.ones(4)
    truncated = precoding.truncated_inversion(channel, np.ones(1), weight, std, limit_w, 0.05)
    # the fourth has nothing to send, so its update is known although it is not heard
    assert truncated.active.tolist() == [True, False, True, True]
    assert float(truncated.share) == pytest.approx(0.8)
    assert truncated.forcing.scale == pytest.approx(2 / 3)
    assert np.abs(truncated.forcing.precoder).tolist() == pytest.approx([2 / 3, 0, 1, 0])
    kept = precoding.truncated_inversion(channel, np.ones(1), weight, std, limit_w, 0.05, mean_gain=channel[0] ** 2)
    assert kept.active.all()


def test_a_subcarrier_that_nobody_uses_has_no_share():
    channel = np.array([[[1.0, 1e-3, 1.0], [1.0, 1e-3, 1e-3]]])
    truncated = precoding.truncated_inversion(channel, np.ones(1), np.array([1.0, 3.0]), np.ones(2), np.ones(2), 0.1)
    assert truncated.share.tolist() == [1.0, 0.0, 0.25]


def test_thresholds_that_silence_everybody_or_are_no_number_are_refused():
    draw = Draw()
    with pytest.raises(ValueError, match="silences every node"):
        precoding.truncated_inversion(draw.selective, draw.combiner, *draw.nodes, 100.0)
    for threshold in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="threshold"):
            precoding.truncated_inversion(draw.flat, draw.combiner, *draw.nodes, threshold)
    for mean_gain in (np.ones(2), -np.ones(NUM_NODES), np.full(NUM_NODES, np.nan)):
        with pytest.raises(ValueError, match="mean_gain"):
            precoding.truncated_inversion(draw.flat, draw.combiner, *draw.nodes, 0.1, mean_gain)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.5])
def test_under_rayleigh_fading_truncation_sends_and_costs_what_the_closed_form_says(threshold):
    generator = np.random.default_rng(41)
    channel = complex_normal(generator, 1, 1, 400_000)
    activation, inverse_gain = precoding.rayleigh_truncation(threshold)
    truncated = precoding.truncated_inversion(
        channel, np.ones(1), np.full(1, 2.0), np.full(1, 0.5), np.full(1, 3.0), threshold, np.ones(1)
    )
    assert np.mean(truncated.active) == pytest.approx(activation, rel=0.01)
    assert truncated.forcing.scale**2 == pytest.approx(3.0 / inverse_gain, rel=0.02)


def test_inverting_all_of_a_rayleigh_channel_costs_unbounded_power():
    assert precoding.rayleigh_truncation(0.0) == (1.0, np.inf)
    with pytest.raises(ValueError, match="threshold"):
        precoding.rayleigh_truncation(-1.0)


# --- one factor for all -----------------------------------------------------------------------------------------------


def test_one_factor_serves_all_nodes_without_their_statistics():
    draw = Draw()
    means = np.array([0.0, 1e-3, -2e-3, 5e-4, 0.0])
    rms = np.sqrt(means**2 + draw.std**2)
    updates = means[:, None] + draw.std[:, None] * draw.generator.standard_normal((NUM_NODES, 50_000))
    for channel, combiner, gain in draw.cases():
        common = precoding.cotaf(channel, combiner, draw.weight, means, draw.std, draw.max_power_w)
        assert (common.mean, common.std) == (0.0, pytest.approx(rms.max()))
        received = gain * common.forcing.precoder if gain.ndim == 1 else (gain * common.forcing.precoder)[:, 7]
        estimate = received.real @ (updates / common.std) / (common.forcing.scale * draw.weight.sum())
        np.testing.assert_allclose(estimate, draw.weight @ updates / draw.weight.sum(), rtol=1e-9, atol=1e-15)


def test_nobody_sends_more_than_its_limit_with_one_factor_for_all():
    draw = Draw()
    means = np.array([0.0, 1e-3, -2e-3, 5e-4, 0.0])
    common = precoding.cotaf(draw.flat, draw.combiner, draw.weight, means, draw.std, draw.max_power_w)
    values = means[:, None] + draw.std[:, None] * draw.generator.standard_normal((NUM_NODES, 200_000))
    measured_w = common.forcing.power_w * np.mean((values / common.std) ** 2, axis=1)
    np.testing.assert_allclose(common.sent_w, measured_w, rtol=0.02)
    assert np.all(common.sent_w <= common.forcing.power_w)
    assert np.max(common.forcing.power_w / draw.max_power_w) == pytest.approx(1.0, rel=1e-12)
    # over equal channels and weights the paper's p = P / max E||Delta||^2 per value, met by the largest update
    equal = precoding.cotaf(np.ones((1, NUM_NODES)), np.ones(1), np.ones(NUM_NODES), means, draw.std, np.full(5, 0.02))
    rms = np.sqrt(means**2 + draw.std**2)
    assert equal.forcing.scale**2 == pytest.approx(0.02 / np.max(rms) ** 2)
    np.testing.assert_allclose(equal.sent_w, 0.02 * (rms / rms.max()) ** 2)


def test_updates_that_are_all_zero_have_no_common_factor():
    draw = Draw()
    zeros = np.zeros(NUM_NODES)
    with pytest.raises(ValueError, match="all updates are zero"):
        precoding.cotaf(draw.flat, draw.combiner, draw.weight, zeros, zeros, draw.max_power_w)


# --- phases only ------------------------------------------------------------------------------------------------------


def test_aligned_phases_at_full_power_give_the_weights_that_are_reported():
    draw = Draw()
    for channel, combiner, gain in draw.cases():
        aligned = precoding.phase_alignment(channel, combiner, draw.std, draw.max_power_w)
        np.testing.assert_allclose(aligned.forcing.power_w, draw.max_power_w, rtol=1e-12)
        expected = column(np.sqrt(draw.max_power_w), gain) * np.ones(gain.shape)
        np.testing.assert_allclose(np.abs(aligned.forcing.precoder), expected, rtol=1e-12)
        arrives = gain * aligned.forcing.precoder / column(draw.std, gain)
        np.testing.assert_allclose(arrives, aligned.forcing.scale * aligned.effective, rtol=1e-10, atol=1e-15)
        assert aligned.weight.sum() == pytest.approx(1.0)
        assert np.mean(aligned.share) == pytest.approx(1.0)
        np.testing.assert_allclose(aligned.effective.sum(axis=0), aligned.share, rtol=1e-12)


def test_phase_alignment_is_louder_than_forcing_and_biased():
    draw = Draw()
    loudness = np.ones(NUM_NODES) * draw.std
    forcing = precoding.uniform_forcing(draw.flat, draw.combiner, np.ones(NUM_NODES), draw.std, draw.max_power_w)
    aligned = precoding.phase_alignment(draw.flat, draw.combiner, draw.std, draw.max_power_w)
    # every node's amplitude is at least what forcing leaves it
    assert np.all(aligned.forcing.scale * aligned.weight * draw.std >= forcing.scale * loudness * (1 - 1e-12))
    updates = draw.std[:, None] * draw.generator.standard_normal((NUM_NODES, 1000))
    gain = draw.combiner.conj() @ draw.flat
    received = (gain * aligned.forcing.precoder / draw.std) @ updates / aligned.forcing.scale
    bias = (aligned.weight - 1 / NUM_NODES) @ updates
    np.testing.assert_allclose(received.real, updates.mean(axis=0) + bias, rtol=1e-9, atol=1e-15)
    assert np.std(bias) > 0.1 * np.std(updates.mean(axis=0))


def test_equal_channels_powers_and_spreads_are_not_biased():
    aligned = precoding.phase_alignment(np.exp(1j * np.arange(4))[None], np.ones(1), np.full(4, 2.0), np.full(4, 0.1))
    np.testing.assert_allclose(aligned.weight, 0.25, rtol=1e-12)


def test_phase_alignment_of_a_constant_update_or_without_power_is_refused():
    draw = Draw()
    for std, limit_w in [(np.zeros(NUM_NODES), draw.max_power_w), (draw.std, np.zeros(NUM_NODES))]:
        with pytest.raises(ValueError, match="positive"):
            precoding.phase_alignment(draw.flat, draw.combiner, std, limit_w)


# --- phase feedback ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_rounded_phases_keep_amplitudes_and_lose_what_the_closed_form_says(bits):
    generator = np.random.default_rng([51, bits])
    precoder = complex_normal(generator, 400_000)
    rounded = precoding.quantise_phase(precoder, bits)
    np.testing.assert_allclose(np.abs(rounded), np.abs(precoder), rtol=1e-12)
    error = np.angle(rounded * precoder.conj())
    assert np.max(np.abs(error)) <= np.pi / 2**bits + 1e-9
    gain = precoding.phase_feedback_gain(bits)
    assert np.mean(np.exp(1j * error)) == pytest.approx(gain, abs=4 / np.sqrt(400_000))
    assert np.mean(np.abs(np.exp(1j * error) - 1) ** 2) == pytest.approx(2 * (1 - gain), rel=0.02)
    # only so many phases are told
    assert len(np.unique(np.round(np.angle(rounded * np.exp(0.01j)) / (2 * np.pi) * 2**bits, 3))) == 2**bits


def test_phases_without_bits_and_precoders_without_numbers_are_refused():
    for call in (lambda: precoding.quantise_phase(np.ones(1), 0), lambda: precoding.phase_feedback_gain(0)):
        with pytest.raises(ValueError, match="at least one bit"):
            call()
    with pytest.raises(ValueError, match="not finite"):
        precoding.quantise_phase(np.array([np.nan]), 2)
    assert precoding.phase_feedback_gain(3) == pytest.approx(0.974, abs=1e-3)
    assert precoding.quantise_phase(np.zeros((2, 3)), 2).shape == (2, 3)
