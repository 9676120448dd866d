"""What packets make of shares: the staircase of codes, measured parts, and margins that rise with trouble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.core.fleet import ArrayFacts, Fleet
from testbed.core.orders import Collected, Delivery, Digital, Ideal, Uplink
from testbed.core.units import from_db
from testbed.phy.coding_schemes import choose, scheme_named
from testbed.problems.digital_order import ShareLimits, UplinkSpec, num_waves
from testbed.problems.packet_links import PacketLinks, table_rate_bit_s, trusted_snr

SPACING_HZ = 200.0


NAMES = ("a", "b")
# 256 subcarriers, into which thirteen shares fit side by side; who the nodes are does not matter here
FLEET = Fleet(
    (), ArrayFacts(np.zeros((1, 2)), np.zeros(1, bool), np.zeros((2, 2)), 0.0), 2.4e9, 256 * SPACING_HZ, SPACING_HZ
)


@pytest.mark.parametrize("waves", [1, 2])
def test_parts_hold_for_waves_too(waves: int) -> None:
    """What is learnt of a burst and planned for the next agrees, in however many waves nodes send."""
    names = tuple(f"n{index}" for index in range(13 * waves))
    share_hz = 9_000.0 / waves
    assert num_waves(FLEET, len(names)) == waves
    uplinks: dict[str, Uplink] = {name: uplink(share_hz, 100.0) for name in names}
    # each sends at its code's rate in a share as wide as the wave gives it, for its wave's part of the time
    width_hz, snr = waves * share_hz, 100.0 / waves
    links = PacketLinks(dict.fromkeys(names, 0.5), dict.fromkeys(names, 1.0))
    rate_bit_s = 0.8 * table_rate_bit_s(np.array([width_hz]), trusted_snr(np.array([snr]), 1.0), SPACING_HZ)[0]
    code = choose(float(trusted_snr(snr, 1.0)))
    assert code is not None
    sent = Delivery(code.name, 8000, 8, 8, snr)
    learnt = links.after(
        uplinks, reply(dict.fromkeys(names, 64_000 / rate_bit_s), **dict.fromkeys(names, sent)), None, FLEET
    )
    assert learnt.part["n0"] == pytest.approx(0.8)
    steps = replace(learnt, margin=links.margin).staircase(
        names, np.full(len(names), share_hz * 100.0), UplinkSpec(snr_gap=1.0), FLEET
    )
    assert steps is not None
    planned_bit_s = steps(np.full(len(names), share_hz))[0] * share_hz * np.log2(1 + 100.0)
    assert planned_bit_s == pytest.approx(rate_bit_s / waves)


def uplink(share_hz: float = 20_000.0, snr: float = 100.0) -> Digital:
    return Digital(weight=1.0, bandwidth_hz=share_hz, power_w=0.1, snr=snr, combiner=np.ones(1))


def reply(seconds: dict[str, float], missing: tuple[str, ...] = (), **deliveries: Delivery) -> Collected:
    energy_j = {name: 0.1 * one for name, one in seconds.items()}
    return Collected(np.zeros(1), missing=missing, energy_j=energy_j, deliveries=deliveries)


def test_the_table_is_the_code_on_the_data_subcarriers() -> None:
    # 100 subcarriers at 14.9 dB with 12 pilots, 12 at 24.1 dB with 4
    share_hz = np.array([20_000.0, 2_400.0])
    found = table_rate_bit_s(share_hz, np.array([from_db(14.9), from_db(24.1)]), SPACING_HZ)
    assert found == pytest.approx([2.0 * 88 * 200, 6 * 8 / 9 * 8 * 200])
    # narrower than the narrowest is sent in 12; too weak for any code is sent in the most robust one
    assert table_rate_bit_s(np.array([100.0]), np.array([0.01]), SPACING_HZ) == pytest.approx([8 * 200 / 6])
    fixed = table_rate_bit_s(np.array([20_000.0]), np.array([1.0]), SPACING_HZ, "qpsk")
    assert fixed == pytest.approx([2.0 * 88 * 200])
    whole = table_rate_bit_s(np.array([800.0]), np.array([from_db(13.5)]), 0.0)
    assert whole == pytest.approx([2.0 * 700])


def test_parts_of_the_shannon_rate_follow_from_table_and_margin() -> None:
    links = PacketLinks({"a": 0.5, "b": 0.8}, {"a": 1.0, "b": from_db(3.0)})
    spec = UplinkSpec(snr_gap=4.0)
    share_hz = np.array([20_000.0, 20_000.0])
    loud_hz = share_hz * from_db(15.0)
    attained = links.staircase(NAMES, loud_hz / 4.0, spec, FLEET)
    assert attained is not None
    shannon = 20_000 * np.log2(1 + from_db(15.0) / 4.0)
    # at 15 dB uncoded QPSK (13 dB), at 12 dB its SEC-DED code (10.75 dB)
    assert attained(share_hz) == pytest.approx(np.array([0.5 * 2.0, 0.8 * 16 / 9]) * 88 * 200 / shannon)
    assert links.staircase(NAMES, loud_hz, UplinkSpec(link="ideal"), FLEET) is None


def test_uplinks_and_caps_leave_the_margin() -> None:
    links = PacketLinks({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 10.0})
    ideal = Ideal(1.0, 1e4, 0.1, 1e5)
    given: dict[str, Uplink] = {"a": uplink(snr=100.0), "b": ideal}
    found = links.backed_off(given)
    assert found["a"].snr == pytest.approx(0.5 / (0.01 + 10**-3.35))  # type: ignore[union-attr]
    assert found["b"] is ideal
    limits = ShareLimits(1e5, np.array([2400.0, 2400.0]), np.array([1e4, 1e4]))
    assert links.trusted(NAMES, limits).most_hz == pytest.approx([5e3, 2400.0])
    free = ShareLimits(1e5, np.zeros(2), np.full(2, np.inf))
    assert np.all(np.isinf(links.trusted(NAMES, free).most_hz))


def test_a_loud_signal_brings_noise_of_its_own() -> None:
    """However loud, uncoded 256-QAM is not chosen: it needs 32.75 dB."""
    links = PacketLinks.of(("a",), 0.8)
    for snr_db in (30.0, 40.0, 80.0):
        trusted = links.backed_off({"a": uplink(snr=from_db(snr_db))})["a"].snr  # type: ignore[union-attr]
        assert trusted < from_db(min(snr_db - 2.0, 31.5)) * (1 + 1e-9)


def test_the_part_is_bits_over_seconds_of_the_code_that_was_used() -> None:
    links = PacketLinks.of(NAMES, 0.8)
    deliveries = {"a": Delivery("qpsk", 8800, 10, 10, 50.0), "b": Delivery("qam16", 8800, 10, 5, 200.0)}
    after = links.after(
        {"a": uplink(), "b": uplink()}, reply({"a": 2.5, "b": 2.0}, missing=("b",), **deliveries), 2.1, FLEET
    )
    assert after.part["a"] == pytest.approx(8 * 8800 / 2.5 / (2.0 * 88 * 200))
    # half of the packets were sent
    assert after.part["b"] == pytest.approx(8 * 4400 / 2.0 / (4.0 * 88 * 200))
    assert scheme_named("qam16").bits_per_symbol == 4.0
    # b used nearly all the time there was: it was late, and its code did not fail
    assert after.margin["b"] == after.margin["a"] < links.margin["a"]
    quiet = links.after({"a": uplink()}, reply({}, missing=("a",), a=Delivery("qpsk", 8800, 10, 0)), 2.0, FLEET)
    assert quiet == links, "who sent nothing tells nothing"


@pytest.mark.parametrize(
    ("sent", "missing", "step_db"),
    [(10, (), -0.1), (11, (), -0.1), (13, (), 1.0), (40, ("a",), 3.0)],
)
def test_margins_rise_with_trouble_and_fall_slowly(sent: int, missing: tuple[str, ...], step_db: float) -> None:
    links = PacketLinks({"a": 0.8}, {"a": 2.0})
    for deadline_s in (None, 10.0):
        collected = reply({"a": 1.0}, missing, a=Delivery("qpsk", 8800, 10, sent, 50.0))
        after = links.after({"a": uplink()}, collected, deadline_s, FLEET)
        assert 10 * np.log10(after.margin["a"] / 2.0) == pytest.approx(step_db)
    for _ in range(60):
        after = after.after({"a": uplink()}, collected, None, FLEET)
    assert after.margin["a"] in (pytest.approx(10.0), pytest.approx(10**0.1)), "between 1 and 10 dB"
