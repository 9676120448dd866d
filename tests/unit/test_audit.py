import numpy as np
import pytest

from testbed.core.orders import Analogue, Collect, Digital, Ideal, MajorityVote, OneBit
from testbed.engine.audit import audit


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def analogue(weight: float) -> Analogue:
    return Analogue(weight=weight, precoder=1.0 + 0j, mean=0.0, std=1.0)


def ideal(weight: float) -> Ideal:
    return Ideal(weight, bandwidth_hz=1e6, power_w=0.01, rate_bit_s=1e6)


def digital(weight: float) -> Digital:
    return Digital(weight, bandwidth_hz=1e6, power_w=0.01, snr=10.0, combiner=np.ones(1))


TRUTH = {"a": values(1.0, 2.0, -4.0), "b": values(5.0, -2.0, 0.0)}


@pytest.mark.parametrize("uplink", [analogue, ideal, digital], ids=lambda kind: kind.__name__)
def test_the_error_is_against_the_weighted_mean(uplink):
    # (1 * a + 3 * b) / 4 = (4, -1, -1)
    order = Collect({"a": uplink(1.0), "b": uplink(3.0)})
    found = audit(order, values(4.0, 0.0, 1.0), TRUTH)
    assert found == {"error_norm2": pytest.approx(1.0 + 4.0), "true_norm2": pytest.approx(16.0 + 1.0 + 1.0)}


def test_a_mean_that_arrives_whole_has_no_error():
    order = Collect({"a": analogue(2.0), "b": analogue(2.0)})
    found = audit(order, values(3.0, 0.0, -2.0), TRUTH)
    assert found == {"error_norm2": 0.0, "true_norm2": pytest.approx(13.0)}


def test_only_nodes_that_arrived_count():
    order = Collect({"a": analogue(1.0), "b": analogue(3.0), "silent": analogue(100.0)})
    assert audit(order, values(4.0, -1.0, -1.0), TRUTH)["error_norm2"] == 0.0
    assert audit(order, TRUTH["b"], {"b": TRUTH["b"]}) == {"error_norm2": 0.0, "true_norm2": 29.0}


def test_norms_keep_their_digits_over_many_small_values():
    truth = {"a": np.full(100_000, 1e-4, np.float32)}
    found = audit(Collect({"a": analogue(1.0)}), np.full(100_000, 1.1e-4, np.float32), truth)
    assert found["true_norm2"] == pytest.approx(100_000 * 1e-8, rel=1e-5)
    assert found["error_norm2"] == pytest.approx(100_000 * 1e-10, rel=1e-5)


def test_a_vote_is_wrong_where_its_sign_is_not_the_majoritys():
    truth = {
        "a": values(1.0, -1.0, 1.0, 1.0),
        "b": values(1.0, -1.0, -1.0, -1.0),
        "c": values(-1.0, -1.0, 1.0, 0.0),
    }
    # majorities: +, -, +, and a tie, which has no right answer
    order = Collect(dict.fromkeys(truth, MajorityVote(0.01)))
    assert audit(order, values(1, -1, 1, -1), truth) == {"vote_error": 0.0}
    assert audit(order, values(1, 1, 1, 1), truth) == {"vote_error": pytest.approx(1 / 3)}
    # no decision is a wrong one
    assert audit(order, values(0, -1, 1, 0), truth) == {"vote_error": pytest.approx(1 / 3)}


def test_votes_count_above_each_nodes_own_threshold():
    truth = {"a": values(0.4, 0.4), "b": values(-2.0, 0.1), "c": values(0.3, 0.3)}
    order = Collect({"a": MajorityVote(0.01), "b": MajorityVote(0.01, threshold=1.0), "c": MajorityVote(0.01, 0.5)})
    # a: + +; b: - abstains; c abstains: a tie, and +
    assert audit(order, values(-1, 1), truth) == {"vote_error": 0.0}
    assert audit(order, values(1, -1), truth) == {"vote_error": 1.0}


def test_one_bit_votes_abstain_at_zero_alone():
    truth = {"a": values(1e-9, 0.0, 1.0), "b": values(0.0, 0.0, 1.0)}
    order = Collect(dict.fromkeys(truth, OneBit(1.0 + 0j)))
    assert audit(order, values(1, 1, 1), truth) == {"vote_error": 0.0}
    assert audit(order, values(-1, 1, 1), truth) == {"vote_error": pytest.approx(1 / 2)}


def test_without_a_majority_there_is_nothing_to_say():
    truth = {"a": values(1.0, 0.0), "b": values(-1.0, 0.0)}
    assert audit(Collect(dict.fromkeys(truth, MajorityVote(0.01))), values(1, 1), truth) == {}
