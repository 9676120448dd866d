import numpy as np
import pytest
from scipy.special import j0

from sim_backend.fading import NUM_SINUSOIDS, Fading, product
from sim_backend.paths import Paths
from testbed.core.world_specs import WorldSpec

POWERS = np.array([0.5, 2.0])


def paths_of(scattered: np.ndarray, gains: np.ndarray | None = None, doppler_hz: float = 0.0) -> Paths:
    num_paths = len(scattered)
    return Paths(
        directions=np.zeros((num_paths, 2)),
        gains=np.sqrt(scattered).astype(np.complex128) if gains is None else gains,
        doppler_hz=np.full(num_paths, doppler_hz),
        delays_s=np.zeros(num_paths),
        scattered=scattered,
    )


def gains_at(paths: Paths, at_s: np.ndarray, world: WorldSpec, seed: int, index: int) -> np.ndarray:
    return Fading(paths, world, seed, index).gains(at_s)


def test_a_block_is_constant_and_the_next_one_is_new():
    world = WorldSpec(fading="block", coherence_s=0.1)
    gains = gains_at(paths_of(POWERS), np.array([0.0, 0.05, 0.0999, 0.1, 0.3, 0.35]), world, seed=1, index=0)
    np.testing.assert_array_equal(gains[0], gains[1])
    np.testing.assert_array_equal(gains[0], gains[2])
    assert not np.any(np.isclose(gains[0], gains[3]))
    # 0.3 / 0.1 is just below 3 in floating point: it begins block 3 all the same
    np.testing.assert_array_equal(gains[4], gains[5])


def test_blocks_are_rayleigh_and_independent():
    world = WorldSpec(fading="block", coherence_s=0.5)
    num_blocks = 6000
    gains = gains_at(paths_of(POWERS), 0.5 * np.arange(num_blocks), world, seed=2, index=3) / np.sqrt(POWERS)
    bound = 4 / np.sqrt(num_blocks)
    power = np.abs(gains) ** 2
    np.testing.assert_allclose(power.mean(axis=0), 1.0, atol=bound)
    np.testing.assert_allclose(np.mean(power > np.log(2), axis=0), 0.5, atol=bound / 2)  # median of an exponential
    assert np.all(np.abs(np.mean(gains**2, axis=0)) < bound * np.sqrt(2))  # circular
    assert np.all(np.abs(np.mean(gains[1:] * gains[:-1].conj(), axis=0)) < bound)
    assert abs(np.mean(gains[:, 0] * gains[:, 1].conj())) < bound


def test_other_nodes_and_other_seeds_fade_otherwise():
    world = WorldSpec(fading="block")
    at_s = np.arange(2000.0)
    one, other, reseeded = (gains_at(paths_of(np.ones(1)), at_s, world, *ids)[:, 0] for ids in ((1, 0), (1, 1), (2, 0)))
    for another in (other, reseeded):
        assert abs(np.mean(one * another.conj())) < 4 / np.sqrt(len(at_s))


def test_instants_before_zero_have_their_own_blocks():
    world = WorldSpec(fading="block", coherence_s=1.0)
    gains = gains_at(paths_of(np.ones(1)), np.array([-1.5, -1.2, -0.5, 0.5, 1.5]), world, 1, 0)[:, 0]
    assert gains[0] == gains[1]
    assert len(set(gains.tolist())) == 4


def test_a_line_of_sight_rests_in_block_fading_and_turns_in_jakes_fading():
    scattered, gains = np.array([0.0, 1.0]), np.array([3.0 + 1j, 1.0])
    at_s = np.array([0.0, 0.7, 1.9])
    paths = paths_of(scattered, gains, doppler_hz=2.0)
    block = gains_at(paths, at_s, WorldSpec(fading="block", doppler_hz=2.0, coherence_s=0.5), 1, 0)
    np.testing.assert_array_equal(block[:, 0], np.full(3, 3.0 + 1j))
    jakes = gains_at(paths, at_s, WorldSpec(fading="jakes", doppler_hz=5.0), 1, 0)
    np.testing.assert_allclose(jakes[:, 0], (3.0 + 1j) * np.exp(2j * np.pi * 2.0 * at_s), rtol=1e-9)
    assert abs(jakes[1, 1] - jakes[0, 1]) > 1e-3


def test_jakes_fading_has_the_autocorrelation_j0():
    doppler_hz, num_nodes = 30.0, 4000
    # up to the fourth lobe
    lags_s = np.linspace(0.0, 2.0, 41) / doppler_hz
    world = WorldSpec(fading="jakes", doppler_hz=doppler_hz)
    start_s = 12.3
    gains = np.stack(
        [gains_at(paths_of(np.ones(1)), start_s + lags_s, world, seed=5, index=node)[:, 0] for node in range(num_nodes)]
    )
    correlation = np.mean(gains * gains[:, :1].conj(), axis=0)
    np.testing.assert_allclose(correlation, j0(2 * np.pi * doppler_hz * lags_s), atol=4 / np.sqrt(num_nodes))
    # Rayleigh: E|g|^4 = 2 for power 1, less one part for the number of sinusoids
    assert np.mean(np.abs(gains[:, 0]) ** 4) == pytest.approx(2 - 1 / NUM_SINUSOIDS, abs=4 * np.sqrt(20 / num_nodes))
    assert abs(np.mean(gains[:, 0] ** 2)) < 4 * np.sqrt(2 / num_nodes)


def test_one_long_jakes_process_has_j0_too():
    doppler_hz = 10.0
    at_s = np.arange(40_000) / 203.0
    world = WorldSpec(fading="jakes", doppler_hz=doppler_hz)
    gain = gains_at(paths_of(np.array([2.0])), at_s, world, seed=6, index=0)[:, 0]
    for lag in (0, 5, 9, 20, 41):
        correlation = np.mean(gain[lag:] * gain[: gain.size - lag].conj())
        # over 2000 Doppler periods cross products of the sinusoids leave a few percent
        assert correlation == pytest.approx(2 * j0(2 * np.pi * doppler_hz * lag / 203.0), abs=0.15)


def test_paths_and_powers_of_jakes_fading_are_apart():
    world = WorldSpec(fading="jakes", doppler_hz=10.0)
    gains = np.concatenate([gains_at(paths_of(POWERS), np.zeros(1), world, 7, node) for node in range(3000)])
    bound = 4 / np.sqrt(3000)
    np.testing.assert_allclose(np.mean(np.abs(gains) ** 2, axis=0) / POWERS, 1.0, atol=bound)
    assert abs(np.mean(gains[:, 0] * gains[:, 1].conj())) < bound * np.sqrt(POWERS.prod())


@pytest.mark.parametrize("world", [WorldSpec(fading="block", coherence_s=0.2), WorldSpec(fading="jakes", doppler_hz=4)])
def test_instants_may_be_asked_in_any_order_and_company(world):
    paths = paths_of(POWERS)
    at_s = np.random.default_rng(0).uniform(0, 5, 50)
    together = gains_at(paths, at_s, world, 1, 2)
    backwards = np.concatenate([gains_at(paths, at_s[[number]], world, 1, 2) for number in range(50)[::-1]])[::-1]
    np.testing.assert_allclose(together, backwards, rtol=1e-12, atol=1e-12)


def test_a_product_in_pieces_is_the_product():
    generator = np.random.default_rng(1)
    left, right = generator.standard_normal((701, 300)), generator.standard_normal((300, 7))
    np.testing.assert_allclose(product(left, right), np.einsum("ij,jk->ik", left, right), rtol=1e-9, atol=1e-10)
