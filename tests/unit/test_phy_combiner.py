import numpy as np
import pytest
from scipy.optimize import minimize

from testbed.phy.combiner import max_min_combiner


def weakest(combiner: np.ndarray, channel: np.ndarray) -> float:
    return float(np.min(np.abs(combiner.conj() @ channel) ** 2))


def rayleigh(generator: np.random.Generator, num_antennas: int, num_nodes: int) -> np.ndarray:
    return generator.standard_normal((num_antennas, num_nodes, 2)) @ np.array([1, 1j])


def polished(start: np.ndarray, channel: np.ndarray) -> float:
    """The local optimum that sequential quadratic programming reaches from a start."""
    size = len(start)

    def combiner(point: np.ndarray) -> np.ndarray:
        return point[:size] + 1j * point[size:-1]

    def slack(point: np.ndarray) -> np.ndarray:
        return np.abs(combiner(point).conj() @ channel) ** 2 - point[-1]

    def slack_jacobian(point: np.ndarray) -> np.ndarray:
        gradient = 2 * (combiner(point).conj() @ channel).conj() * channel
        return np.concatenate([gradient.real, gradient.imag, -np.ones((1, channel.shape[1]))]).T

    down = np.concatenate([np.zeros(2 * size), [-1.0]])
    result = minimize(
        lambda point: -point[-1],
        np.concatenate([start.real, start.imag, [weakest(start, channel)]]),
        jac=lambda _: down,
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": slack, "jac": slack_jacobian},
            {"type": "ineq", "fun": lambda p: 1 - p[:-1] @ p[:-1], "jac": lambda p: np.append(-2 * p[:-1], 0.0)},
        ],
    )
    best = combiner(result.x)
    return weakest(best / np.linalg.norm(best), channel)


def test_one_node_gets_maximum_ratio_combining():
    channel = 1e-4 * rayleigh(np.random.default_rng(0), 6, 1)
    assert weakest(max_min_combiner(channel), channel) == pytest.approx(np.sum(np.abs(channel) ** 2), rel=1e-12)


def test_fixture_of_two_nodes():
    channel = np.array([[1, 1j, 0.5, -0.2], [0.3, 0.8, -0.6j, 1]]).T
    assert abs(np.vdot(channel[:, 0], channel[:, 1])) == pytest.approx(1.1045361, abs=1e-7)
    assert weakest(max_min_combiner(channel), channel) == pytest.approx(1.6426617, abs=1e-7)


def test_two_nodes_reach_the_closed_form():
    generator = np.random.default_rng(1)
    regimes = set()
    for _ in range(200):
        channel = 1e-5 * rayleigh(generator, 2, 2) * np.array([1.0, generator.uniform(0.2, 1.0)])
        first, second = np.sum(np.abs(channel) ** 2, axis=0)
        cross = abs(np.vdot(channel[:, 0], channel[:, 1]))
        served_anyway = cross >= min(first, second)
        regimes.add(bool(served_anyway))
        best = min(first, second) if served_anyway else (first * second - cross**2) / (first + second - 2 * cross)
        assert weakest(max_min_combiner(channel), channel) == pytest.approx(best, rel=1e-9)
    assert regimes == {True, False}


def test_two_parallel_channels():
    channel = np.array([[1.0, 1.0j], [2.0, 2.0j]])
    assert weakest(max_min_combiner(channel), channel) == pytest.approx(5.0)


@pytest.mark.parametrize(("num_antennas", "num_nodes"), [(2, 3), (4, 8), (8, 20), (1, 4)])
def test_many_nodes_are_never_worse_than_a_start_and_the_scale_does_not_matter(num_antennas, num_nodes):
    generator = np.random.default_rng(2)
    for _ in range(5):
        channel = rayleigh(generator, num_antennas, num_nodes)
        combiner = max_min_combiner(channel)
        assert np.linalg.norm(combiner) == pytest.approx(1.0)
        own = channel / np.linalg.norm(channel, axis=0)
        assert weakest(combiner, channel) >= max(weakest(start, channel) for start in own.T) - 1e-12
        scaled = weakest(max_min_combiner(1e-6 * channel), channel)
        assert scaled == pytest.approx(weakest(combiner, channel), rel=1e-6)


def test_many_nodes_come_close_to_the_best_of_many_polished_starts():
    generator = np.random.default_rng(3)
    ratios = []
    for _ in range(20):
        channel = rayleigh(generator, 4, 6)
        starts = rayleigh(generator, 12, 4)
        starts /= np.linalg.norm(starts, axis=1, keepdims=True)
        best = max(polished(start, channel) for start in starts)
        ratios.append(weakest(max_min_combiner(channel), channel) / best)
    assert np.mean(np.array(ratios) >= 0.9) >= 0.95
    assert min(ratios) > 0.75


@pytest.mark.parametrize("channel", [np.zeros((3, 0)), np.zeros((3, 2)), np.full((2, 1), np.nan)])
def test_a_channel_without_a_signal_is_refused(channel):
    with pytest.raises(ValueError, match="at least one node"):
        max_min_combiner(channel)
