"""Golomb's code of places: known words, the best divisor, the entropy, and bytes that are none of its."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from testbed.core.orders import Payload
from testbed.lora import parcel
from testbed.phy import golomb
from testbed.phy import payload as codec
from tests.digital_bench import lora_layout


def words(places: list[int], count: int, divisor: int) -> str:
    """Bit by bit from the definition: unary parts, leading bits, last bits."""
    gaps = np.diff([-1, *places]) - 1
    width = math.ceil(math.log2(divisor)) if divisor > 1 else 0
    short = 2**width - divisor
    unary = "".join("0" * int(gap // divisor) + "1" for gap in gaps)
    leading = last = ""
    for gap in gaps:
        rest = int(gap % divisor)
        word = format(rest + short, f"0{width}b") if rest >= short else format(rest, f"0{width - 1}b")
        if width:
            leading += word[: width - 1]
            last += word[width - 1 :]
    return unary + leading + last


@pytest.mark.parametrize(("count", "places"), [(40, [2, 3, 17, 30]), (100, [0, 50]), (16, [3, 9, 15]), (9, [1, 4, 8])])
def test_words_are_those_of_the_definition(count: int, places: list[int]) -> None:
    data = golomb.encode(np.array(places), count)
    divisor = int.from_bytes(data[:4], "little")
    bits = "".join(format(byte, "08b") for byte in data[4:])
    expected = words(places, count, divisor)
    assert bits.startswith(expected)
    assert set(bits[len(expected) :]) <= {"0"}
    assert len(bits) - len(expected) < 8


@pytest.mark.parametrize("kept", [1, 3, 7, 20, 45, 90, 140, 199])
def test_the_divisor_is_the_smallest_that_gallager_and_van_voorhis_allow(kept: int) -> None:
    free = 1 - Fraction(kept, 400)
    divisor = golomb.best_divisor(400, kept)
    assert free**divisor + free ** (divisor + 1) <= 1
    if divisor > 1:
        assert free ** (divisor - 1) + free**divisor > 1


@pytest.mark.parametrize("seed", range(40))
def test_what_is_encoded_is_decoded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 3000))
    for kept in {0, 1, count, int(rng.integers(0, count + 1)), max(count - 1, 0)}:
        places = np.sort(rng.choice(count, kept, replace=False))
        data = golomb.encode(places, count)
        np.testing.assert_array_equal(golomb.decode(data, count, kept), places)
        assert len(data) <= golomb.most_bytes(count, kept)
    # all in one heap, at either end
    for places in (np.arange(count // 3), np.arange(count - count // 3, count)):
        data = golomb.encode(places, count)
        np.testing.assert_array_equal(golomb.decode(data, count, places.size), places)
        assert len(data) <= golomb.most_bytes(count, places.size)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.75, 0.97])
def test_random_places_cost_little_more_than_their_entropy(share: float) -> None:
    count, kept = 200_000, round(200_000 * share)
    places = np.sort(np.random.default_rng(5).permutation(count)[:kept])
    entropy_bit = -count * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    ways_bit = (math.lgamma(count + 1) - math.lgamma(kept + 1) - math.lgamma(count - kept + 1)) / math.log(2)
    spent_bit = 8 * len(golomb.encode(places, count))
    # no code of so many places takes less on average; one draw strays from that by well below a percent
    assert 0.99 * ways_bit < spent_bit < 1.06 * entropy_bit


def test_bytes_that_are_none_of_its_are_refused() -> None:
    places = np.array([5, 70, 300])
    data = golomb.encode(places, 400)
    for wrong, kept in ((data[:-1], 3), (data + b"\0", 3), (b"", 3), (data, 0), (data, 400), (bytes(4) + data[4:], 3)):
        with pytest.raises(ValueError, match="places"):
            golomb.decode(wrong, 400, kept)
    with pytest.raises(ValueError, match="no code of 3 of 250 places"):
        golomb.decode(data, 250, 3)
    with pytest.raises(ValueError, match="have no gaps"):
        golomb.best_divisor(4, 5)


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.7, 1.0])
def test_topk_says_the_same_in_fewer_bytes(keep: float) -> None:
    values = np.random.default_rng(3).normal(0, 1e-3, 20_000).astype(np.float32)
    plain, coded = Payload("topk", keep), Payload("topk", keep, positions="golomb")
    data, other = codec.encode(values, coded), codec.encode(values, plain)
    np.testing.assert_array_equal(codec.decode(data, values.size), codec.decode(other, values.size))
    kept = codec.num_kept(coded, values.size)
    assert len(data) == 16 + 2 * kept + len(golomb.encode(np.flatnonzero(codec.decode(data, values.size)), values.size))
    assert len(data) < len(other)
    assert len(data) <= codec.num_bytes(coded, values.size)


def test_damage_is_noticed_and_a_forged_code_is_refused() -> None:
    values = np.random.default_rng(4).normal(size=500).astype(np.float32)
    data = codec.encode(values, Payload("topk", 0.1, positions="golomb"))
    for place in range(0, 8 * len(data), 11):
        wrong = bytearray(data)
        wrong[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError):  # noqa: PT011 - the sentence depends on the place
            codec.decode(bytes(wrong), 500)


@pytest.mark.parametrize("choice", ["all", "scores"])
def test_a_parcel_with_golomb_codes_its_length_is_that_of_the_update(choice: str) -> None:
    layout = lora_layout(4, width=32)
    rng = np.random.default_rng(6)
    before, update = (rng.standard_normal(layout.size).astype(np.float32) for _ in range(2))
    coded = Payload("topk", 0.2, choice=choice, positions="golomb")  # type: ignore[arg-type]
    plain = Payload("topk", 0.2, choice=choice)  # type: ignore[arg-type]
    assert parcel.num_bytes(layout, coded) is None
    data = parcel.encode(layout, coded, before, update, seed=1)
    assert len(data) <= parcel.typical_bytes(layout, coded)
    other = parcel.encode(layout, plain, before, update, seed=1)
    np.testing.assert_array_equal(parcel.decode(layout, coded, data)[0], parcel.decode(layout, plain, other)[0])
