"""Bytes on air in a round's row, from seconds and rates of error-free links and from packets."""

import numpy as np

from testbed.core.orders import Analogue, Collect, Collected, Delivery, Digital, Ideal
from testbed.engine.recorder import Step
from testbed.engine.rounds import round_row

MEAN = np.zeros(3, np.float32)


def row(order: Collect, reply: Collected) -> dict[str, object]:
    return round_row(1, [Step(0, 1, 0.0, order, reply, {})], {})


def ideal(power_w: float, rate_bit_s: float) -> Ideal:
    return Ideal(1.0, 1e4, power_w, rate_bit_s)


def test_error_free_links_count_what_was_sent_until_the_deadline_too() -> None:
    order = Collect({"a": ideal(0.1, 8000.0), "b": ideal(0.01, 800.0)})
    # a sent for 2 s, b for 3 s and in vain
    reply = Collected(MEAN, missing=("b",), energy_j={"a": 0.2, "b": 0.03})
    assert row(order, reply)["uplink_bytes"] == 2000 + 300


def test_packets_that_were_sent_again_count_again() -> None:
    order = Collect({"a": Digital(1.0, 1e4, 0.1, 10.0, np.ones(1)), "b": Digital(1.0, 1e4, 0.1, 10.0, np.ones(1))})
    reply = Collected(MEAN, missing=("b",), deliveries={"a": Delivery("qpsk", 1000, 4, 6, 10.0)})
    assert row(order, reply)["uplink_bytes"] == 1500


def test_analogue_signals_have_no_bytes() -> None:
    order = Collect({"a": Analogue(1.0, 1.0 + 0j, 0.0, 1.0)})
    assert row(order, Collected(MEAN))["uplink_bytes"] is None
