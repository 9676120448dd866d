"""From soundings and shares to digital uplinks, and what their packets attain."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.orders import Collected, Delivery, Digital, Ideal, Payload, Sounding
from testbed.lora import parcel
from testbed.problems.digital_order import (
    UplinkSpec,
    attained,
    audible,
    digital_uplinks,
    loudness_hz,
    update_bits,
)
from tests.digital_bench import BAND_HZ, NOISE_W, fleet_of, lora_layout

FLEET = fleet_of([1e9, 1e9, 1e9], [1, 2, 3])
CHANNEL = np.array([[1e-4, 2e-4j, 0.0], [3e-4, 0.0, 0.0]])
ZEROS = np.zeros(3)
SOUNDING = Sounding(FLEET.names, CHANNEL, NOISE_W, FLEET.array.home_m, ZEROS, ZEROS, ZEROS)
SHARES_HZ = {"n0": 7e5, "n1": 3e5}


def test_the_rate_is_that_of_the_problems() -> None:
    gamma_hz = loudness_hz(FLEET, SOUNDING, ["n0", "n1"], 2.0)
    np.testing.assert_allclose(gamma_hz, 0.1 * np.array([1e-7, 4e-8]) * BAND_HZ / NOISE_W / 2.0)
    uplinks = digital_uplinks(
        FLEET, SOUNDING, {"n0": 1.0, "n1": 2.0}, Payload(), UplinkSpec(link="ideal"), shares_hz=SHARES_HZ
    )
    for name, loud in zip(SHARES_HZ, gamma_hz, strict=True):
        uplink = uplinks[name]
        assert isinstance(uplink, Ideal)
        assert uplink.rate_bit_s == pytest.approx(SHARES_HZ[name] * np.log2(1 + loud / SHARES_HZ[name]), rel=1e-12)


def test_who_is_not_heard_takes_no_part() -> None:
    names, gamma_hz = audible(FLEET, SOUNDING)
    assert names == ["n0", "n1"]
    assert (gamma_hz > 0).all()


def test_packets_listen_with_maximum_ratio_combining_in_their_share() -> None:
    uplinks = digital_uplinks(FLEET, SOUNDING, {"n0": 1.0, "n1": 2.0}, Payload(), UplinkSpec(), shares_hz=SHARES_HZ)
    first = uplinks["n0"]
    assert isinstance(first, Digital)
    assert abs(np.vdot(first.combiner, CHANNEL[:, 0])) ** 2 == pytest.approx(1e-7)
    assert first.snr == pytest.approx(0.1 * 1e-7 / (NOISE_W * 0.7))


def test_what_packets_attain_is_measured_also_of_who_was_late() -> None:
    uplinks = digital_uplinks(FLEET, SOUNDING, {"n0": 1.0, "n1": 2.0}, Payload(), UplinkSpec(), shares_hz=SHARES_HZ)
    # 1000 bytes in 0.1 s; half of 1000 bytes in 0.2 s
    deliveries = {"n0": Delivery("qpsk", 1000, 10, 12, 9.0), "n1": Delivery("qpsk", 1000, 10, 5, None)}
    collected = Collected(
        np.zeros(1), {"n0": np.zeros(1)}, missing=("n1",), energy_j={"n0": 0.01, "n1": 0.02}, deliveries=deliveries
    )
    gamma_hz = loudness_hz(FLEET, SOUNDING, ["n0", "n1"], 2.0)
    parts = attained(uplinks, collected, 2.0)
    for name, loud, rate_bit_s in zip(SHARES_HZ, gamma_hz, (80e3, 20e3), strict=True):
        share_hz = SHARES_HZ[name]
        assert parts[name] == pytest.approx(rate_bit_s / (share_hz * np.log2(1 + loud / share_hz)))


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "sign"])
@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_bits_of_a_choice_are_its_share_of_the_values_and_the_head(kind: str, keep: float) -> None:
    layout = lora_layout(4, width=64)
    payload = Payload(kind, keep, choice="pairs")  # type: ignore[arg-type]
    values_bit, header_bit = update_bits(layout, payload)
    update = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    length = 8 * len(parcel.encode(layout, payload, update, update, seed=0))
    assert length <= keep * values_bit + header_bit
    assert length == pytest.approx(keep * values_bit + header_bit, abs=40)
