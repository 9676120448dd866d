import numpy as np
import pytest

from testbed.phy import array

WAVELENGTH_M = 0.123


def unit_vectors(num: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_phase_is_that_of_a_source_far_away():
    generator = np.random.default_rng(1)
    directions = unit_vectors(6, 1)
    positions_m = generator.uniform(-0.3, 0.3, (5, 3))
    sources_m = 1e6 * directions
    # how much nearer the antenna is than the origin, [num_antennas, num_paths]
    nearer_m = 1e6 - np.linalg.norm(positions_m[:, None] - sources_m[None], axis=-1)
    expected = np.exp(2j * np.pi * nearer_m / WAVELENGTH_M)
    np.testing.assert_allclose(array.field_response(positions_m, directions, WAVELENGTH_M), expected, atol=1e-4)


def test_antennas_in_the_plane_need_no_third_coordinate():
    directions = unit_vectors(6, 2)
    positions_m = np.random.default_rng(2).uniform(-0.3, 0.3, (5, 2))
    flat = array.field_response(positions_m, directions[:, :2], WAVELENGTH_M)
    lifted_m = np.pad(positions_m, ((0, 0), (0, 1)))
    np.testing.assert_allclose(array.field_response(lifted_m, directions, WAVELENGTH_M), flat, rtol=1e-12)


def test_half_a_wavelength_of_height_turns_a_wave_from_the_normal_by_half_a_turn():
    positions_m = np.array([[0.4, -0.2, WAVELENGTH_M / 2]])
    np.testing.assert_allclose(array.field_response(positions_m, np.array([[0.0, 0.0, 1.0]]), WAVELENGTH_M), [[-1.0]])
    channel = array.channel(positions_m, np.array([[0.0, 0.0, 1.0]]), np.array([2j]), WAVELENGTH_M)
    np.testing.assert_allclose(channel, [-2j], atol=1e-12)


@pytest.mark.parametrize(("antenna", "wave"), [(2, 3), (3, 2), (1, 1), (4, 4)])
def test_coordinates_that_do_not_fit_are_refused(antenna, wave):
    with pytest.raises(ValueError, match="must have 2 coordinates, or both 3"):
        array.field_response(np.zeros((1, antenna)), np.zeros((1, wave)), WAVELENGTH_M)
    with pytest.raises(ValueError, match="must have 2 coordinates, or both 3"):
        array.channel(np.zeros((1, antenna)), np.zeros((1, wave)), np.ones(1), WAVELENGTH_M)
