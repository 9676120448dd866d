import numpy as np
import pytest
from scipy.integrate import quad

from testbed.phy.coupling import coupling_matrix, mutual_impedance

WAVELENGTH_M = 0.125


def test_published_impedances_of_half_wave_dipoles():
    # Balanis, "Antenna Theory", section 8.5 and figure 8.22; Kraus, "Antennas", chapter 10
    at_m = np.array([0.0, 0.25, 0.5, 1.0]) * WAVELENGTH_M
    published_ohm = [73.1 + 42.5j, 40.8 - 28.3j, -12.5 - 29.9j, 4.0 + 17.7j]
    np.testing.assert_allclose(mutual_impedance(at_m, WAVELENGTH_M), published_ohm, atol=0.06)


@pytest.mark.parametrize("distance", [0.05, 0.31, 0.5, 0.77, 2.3])
def test_the_closed_form_is_the_integral_of_the_induced_field(distance):
    def integrand(height: float) -> complex:
        # near field of a sinusoidal current on the other dipole, wavelengths
        ends = np.hypot(distance, np.array([height - 0.25, height + 0.25]))
        return 1j * 29.9792458 * np.sin(2 * np.pi * (0.25 - abs(height))) * np.sum(np.exp(-2j * np.pi * ends) / ends)

    integral_ohm = 2 * quad(integrand, 0, 0.25, complex_func=True)[0]
    assert mutual_impedance(np.array(distance), 1.0) == pytest.approx(integral_ohm, rel=1e-6)


def test_a_lone_antenna_and_distant_ones_are_not_coupled():
    np.testing.assert_allclose(coupling_matrix(np.array([[0.3, 0.2]]), WAVELENGTH_M), [[1.0]], rtol=1e-12)
    far = coupling_matrix(np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]]) * WAVELENGTH_M, WAVELENGTH_M)
    np.testing.assert_allclose(far, np.eye(3), atol=1e-3)


def test_two_antennas_have_an_even_and_an_odd_mode():
    positions_m = np.array([[0.0, 0.0], [0.3, 0.4]]) * WAVELENGTH_M  # half a wavelength apart
    own_ohm, mutual_ohm = mutual_impedance(np.array([0.0, 0.5]), 1.0)
    coupling = coupling_matrix(positions_m, WAVELENGTH_M)
    for mode, sign in (([1, 1], 1), ([1, -1], -1)):
        expected = 2 * own_ohm.real / (2 * own_ohm.real + sign * mutual_ohm)
        np.testing.assert_allclose(coupling @ mode, expected * np.array(mode), rtol=1e-9)


def test_the_matrix_depends_on_distances_only_and_is_symmetric():
    generator = np.random.default_rng(3)
    positions_m = generator.uniform(0, 3 * WAVELENGTH_M, (5, 2))
    coupling = coupling_matrix(positions_m, WAVELENGTH_M)
    np.testing.assert_allclose(coupling, coupling.T, atol=1e-12)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    np.testing.assert_allclose(coupling_matrix(positions_m @ turn + 1.0, WAVELENGTH_M), coupling, atol=1e-9)
    lifted_m = np.pad(positions_m, ((0, 0), (0, 1)), constant_values=0.7)
    np.testing.assert_allclose(coupling_matrix(lifted_m, WAVELENGTH_M), coupling, atol=1e-9)


def test_antennas_at_one_point_stay_finite():
    assert np.all(np.isfinite(coupling_matrix(np.zeros((3, 2)), WAVELENGTH_M)))
