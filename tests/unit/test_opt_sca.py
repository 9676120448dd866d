"""Successive convex approximation on functions whose maxima are known."""

import math

import pytest

from testbed.opt.sca import Model, Proposal, climb


class Wave:
    """cos x, with a model of given curvature: a minoriser where the curvature is at least 1."""

    def __init__(self, curvature: float) -> None:
        self.curvature = curvature

    def value(self, point: float) -> float:
        return math.cos(point)

    def model(self, point: float) -> Model[float]:
        def maximise(damping: float) -> Proposal[float] | None:
            bend = self.curvature + damping
            step = -math.sin(point) / bend
            return Proposal(point + step, self.value(point + step), 0.5 * bend * step**2)

        return maximise


def test_a_minoriser_climbs_to_the_crest_without_a_fall() -> None:
    found = climb(Wave(1.0), 2.5, max_steps=100, tolerance=1e-14)
    assert found.status == "stationary"
    assert found.point == pytest.approx(0.0, abs=1e-6)
    assert all(later >= earlier for earlier, later in zip(found.trace, found.trace[1:], strict=False))


def test_a_bold_model_needs_damping() -> None:
    # its step from 2.5 leads past the crest and down the other side
    undamped = climb(Wave(0.1), 2.5, max_steps=100, tolerance=1e-14)
    assert undamped.status == "stalled"
    assert undamped.point == 2.5
    damped = climb(Wave(0.1), 2.5, max_steps=100, tolerance=1e-14, damping=0.1)
    assert damped.status == "stationary"
    assert math.cos(damped.point) == pytest.approx(1.0, abs=1e-9)
    assert all(later >= earlier for earlier, later in zip(damped.trace, damped.trace[1:], strict=False))


def test_steps_that_run_out_are_said() -> None:
    found = climb(Wave(50.0), 2.5, max_steps=3, tolerance=1e-14)
    assert found.status == "unfinished"
    assert found.iterations == 3


def test_a_model_that_offers_nothing_stalls() -> None:
    class Nothing(Wave):
        def model(self, point: float) -> Model[float]:
            return lambda damping: None

    found = climb(Nothing(1.0), 1.0, max_steps=200, tolerance=1e-9, damping=1.0)
    assert found.status == "stalled"
    assert found.point == 1.0
