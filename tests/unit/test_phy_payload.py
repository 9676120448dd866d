import struct
import zlib

import numpy as np
import pytest

from testbed.core.orders import Payload
from testbed.phy import payload as codec

KINDS = [
    Payload("float32"),
    Payload("float16"),
    Payload("int8"),
    Payload("sign"),
    Payload("topk", keep=0.01),
    Payload("topk", keep=0.4),
]


def drawn(num_values, seed=0, std=1e-4):
    return np.random.default_rng(seed).normal(0, std, num_values).astype(np.float32)


def through(values, payload):
    return codec.decode(codec.encode(values, payload), values.size)


@pytest.mark.parametrize("payload", KINDS, ids=str)
@pytest.mark.parametrize("num_values", [0, 1, 7, 255, 256, 257, 10_001])
def test_the_length_is_known_beforehand(payload, num_values):
    data = codec.encode(drawn(num_values), payload)
    assert len(data) == codec.num_bytes(payload, num_values)
    values = codec.decode(data, num_values)
    assert values.shape == (num_values,)
    assert values.dtype == np.float32


def test_lengths_are_those_of_the_definition():
    head, d = 16, 100_000
    assert codec.num_bytes(Payload("float32"), d) == head + 4 * d
    assert codec.num_bytes(Payload("float16"), d) == head + 2 * d
    assert codec.num_bytes(Payload("int8"), d) == head + d + 4 * 391
    assert codec.num_bytes(Payload("sign"), d) == head + 12_500 + 4
    # 1000 places of 17 bits against a bitmap of 12 500 bytes, and the other way round
    assert codec.num_bytes(Payload("topk", keep=0.01), d) == head + 2125 + 2000
    assert codec.num_bytes(Payload("topk", keep=0.1), d) == head + 12_500 + 20_000


def test_the_share_that_is_kept_is_rounded_up_once():
    assert codec.num_kept(Payload("topk", keep=0.1), 30) == 3
    assert codec.num_kept(Payload("topk", keep=0.1), 31) == 4
    assert codec.num_kept(Payload("topk", keep=1e-9), 5) == 1
    assert codec.num_kept(Payload("topk", keep=1.0), 5) == 5


def test_float32_is_exact():
    values = np.concatenate([drawn(1000), np.float32([0, -0.0, 1e-45, 3.4e38, -3.4e38])])
    np.testing.assert_array_equal(through(values, Payload("float32")), values)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-4, 1.0, 1e6, 1e38])
def test_float16_keeps_eleven_bits_at_every_scale_and_never_overflows(scale):
    values = drawn(10_000, std=1.0) * np.float32(scale / 4)
    values[0] = scale
    decoded = through(values, Payload("float16"))
    # 11 significant bits down to 2^-28 of the largest value, a fixed step below
    bound = np.maximum(np.abs(values) * 2.0**-11, np.abs(values).max() * 2.0**-38)
    assert np.all(np.abs(decoded - values.astype(np.float64)) <= bound * (1 + 1e-6))


def test_int8_errs_by_half_a_step_of_its_block():
    values = drawn(1000)
    values[256:512] *= 1000
    decoded = through(values, Payload("int8"))
    for first in range(0, 1000, 256):
        block = slice(first, first + 256)
        step = np.abs(values[block]).max() / 127
        assert np.abs(decoded[block] - values[block]).max() <= step / 2 * (1 + 1e-5)


def test_int8_has_the_noise_of_a_uniform_quantiser():
    values = np.random.default_rng(1).uniform(-1, 1, 256 * 400).astype(np.float32)
    error = through(values, Payload("int8")).astype(np.float64) - values
    # E e^2 = step^2 / 12 with step = max / 127, max of 256 uniform magnitudes close to 256 / 257
    assert np.mean(error**2) == pytest.approx((256 / 257 / 127) ** 2 / 12, rel=0.01)


@pytest.mark.parametrize("payload", KINDS, ids=str)
def test_the_largest_float32_survives(payload):
    values = np.full(300, np.finfo(np.float32).max)
    decoded = through(values, payload)
    sent = decoded[decoded != 0]
    assert sent.size == codec.num_kept(payload, 300)
    np.testing.assert_allclose(sent, values[: sent.size], rtol=2.0**-11)


def test_the_scale_of_signs_leaves_the_least_squared_error():
    values = drawn(5000)
    decoded = through(values, Payload("sign"))
    np.testing.assert_array_equal(np.sign(decoded), np.sign(values))
    scale = float(decoded[0] * np.sign(values[0]))

    def error(a):
        return np.sum((values.astype(np.float64) - a * np.sign(values)) ** 2)

    assert error(scale) < min(error(scale * 1.001), error(scale * 0.999))
    # a Gaussian keeps 2 / pi of its energy
    assert error(scale) / np.sum(values.astype(np.float64) ** 2) == pytest.approx(1 - 2 / np.pi, abs=0.02)


@pytest.mark.parametrize("keep", [0.001, 0.03, 0.1, 0.5, 1.0])
def test_topk_keeps_the_largest_and_nothing_else(keep):
    values = drawn(20_000, seed=2)
    kept = codec.num_kept(Payload("topk", keep=keep), values.size)
    decoded = through(values, Payload("topk", keep=keep))
    order = np.argsort(-np.abs(values), kind="stable")
    np.testing.assert_allclose(decoded[order[:kept]], values[order[:kept]], rtol=2.0**-11, atol=1e-12)
    assert not decoded[order[kept:]].any()


def test_error_feedback_loses_nothing_over_time():
    generator = np.random.default_rng(3)
    payload = Payload("topk", keep=0.05, error_feedback=True)
    residual, sent, given = np.zeros(2000, np.float32), np.zeros(2000), np.zeros(2000)
    for _ in range(200):
        update = generator.normal(1e-3, 1e-3, 2000).astype(np.float32)
        data, residual = codec.with_error_feedback(update, residual, payload)
        sent += codec.decode(data, 2000)
        given += update
    # what was sent and what is still owed are what was given, up to rounding
    np.testing.assert_allclose(sent + residual, given, atol=1e-5)
    # Karimireddy et al.: the residual stays bounded, so the mean of what is sent is right
    assert np.linalg.norm(residual) < 0.3 * np.linalg.norm(given)


@pytest.mark.parametrize("payload", KINDS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(payload, bad):
    values = drawn(100)
    values[17] = bad
    with pytest.raises(ValueError, match="NaN, infinity"):
        codec.encode(values, payload)


def test_a_residual_that_overflows_is_refused():
    large = np.full(4, 3e38, np.float32)
    with pytest.raises(ValueError, match="infinity"):
        codec.with_error_feedback(large, large, Payload("sign"))
    with pytest.raises(ValueError, match="differ in shape"):
        codec.with_error_feedback(large, large[:2], Payload("sign"))


@pytest.mark.parametrize("payload", KINDS, ids=str)
def test_a_flipped_bit_is_noticed_wherever_it_is(payload):
    data = codec.encode(drawn(300), payload)
    for place in range(0, 8 * len(data), 7):
        wrong = bytearray(data)
        wrong[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError):  # noqa: PT011 - the sentence depends on the place
            codec.decode(bytes(wrong), 300)


def test_bytes_of_another_length_are_refused():
    data = codec.encode(drawn(300), Payload("int8"))
    for wrong in (b"", data[:10], data[:-1], data + b"\0"):
        with pytest.raises(ValueError, match="too few|CRC-32"):
            codec.decode(wrong, 300)
    with pytest.raises(ValueError, match="301 are expected"):
        codec.decode(data, 301)


def forged(kind, version, exponent, count, kept, body):
    head = struct.pack("<BBhIII", kind, version, exponent, count, kept, 0)
    return head[:-4] + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (forged(0, 9, 0, 2, 2, bytes(8)), "version 9"),
        (forged(7, 1, 0, 2, 2, bytes(8)), "kind 7"),
        (forged(0, 1, 0, 2, 2, bytes(9)), "not the length"),
        (forged(0, 1, 0, 2, 1, bytes(8)), "not the length"),
        (forged(0, 1, 0, 2, 2, np.float32([1, np.nan]).tobytes()), "not finite"),
        (forged(1, 1, 900, 2, 2, np.float16([1, 1]).tobytes()), "not finite"),
        (forged(4, 1, 0, 2, 1, b"\xc0" + bytes(2)), "ascending places"),
        (forged(4, 1, 0, 2, 3, bytes(7)), "not the length"),
    ],
)
def test_a_forged_payload_with_a_right_check_is_refused(data, complaint):
    with pytest.raises(ValueError, match=complaint):
        codec.decode(data, 2)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="none of"):
        codec.num_bytes(Payload("float8"), 10)  # type: ignore[arg-type]
    for keep in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            codec.num_bytes(Payload("topk", keep=keep), 10)
    with pytest.raises(ValueError, match="does not fit"):
        codec.num_bytes(Payload(), -1)
    with pytest.raises(ValueError, match="shape"):
        codec.encode(np.zeros((2, 2)), Payload())
    with pytest.raises(ValueError, match="beyond float32"):
        codec.encode(np.array([1e39]), Payload())
