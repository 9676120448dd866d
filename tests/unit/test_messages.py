"""Messages: what is sent arrives bit for bit, what is malformed is refused with a sentence."""

import json

import numpy as np
import pytest

from testbed.core import messages
from testbed.core.errors import ProtocolError
from testbed.core.specs import JobSpec


def test_arrays_travel_without_a_copy() -> None:
    update = np.arange(6, dtype=np.float32)
    frames = messages.encode(messages.Update(node="a"), {"update": update})
    assert np.shares_memory(np.frombuffer(frames[1], np.float32), update)
    packet = messages.decode(frames)
    assert np.shares_memory(packet.arrays["update"], update)
    assert not packet.arrays["update"].flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64", "int8", "float64"])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 5), ()])
def test_round_trip(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    packet = messages.decode(messages.encode(messages.Update(node="n", serial=3), {"update": array}))
    assert packet.message == messages.Update(node="n", serial=3)
    assert packet.arrays["update"].dtype == array.dtype
    assert np.array_equal(packet.arrays["update"], array)


def test_a_job_travels_whole() -> None:
    job = JobSpec(seed=3, nodes=("a", "b"))
    packet = messages.decode(messages.encode(messages.Configure(node="a", job=job, backend="sim")))
    assert isinstance(packet.message, messages.Configure)
    assert packet.message.job == job


def _head(**changes: object) -> bytes:
    return json.dumps({"protocol": messages.PROTOCOL, "kind": "done", "node": "a", "arrays": [], **changes}).encode()


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "empty packet"),
        ([b"\xff\xfe"], "not a JSON object"),
        ([b"[1, 2]"], "not a JSON object"),
        ([b"{}"], "not a JSON object with a protocol version"),
        ([_head(protocol=99)], "protocol version 99, this side 4"),
        ([_head(kind="launch")], "malformed 'launch' message"),
        ([_head(surprise=1)], "surprise"),
        ([_head(node=5)], "node"),
        ([_head(), b"1234"], "1 array frames arrived, the head names 0"),
        ([_head(arrays=[{"name": "x", "dtype": "float32", "shape": [2]}]), b"1234"], "4 bytes do not fit"),
        ([_head(arrays=[{"name": "x", "dtype": "object", "shape": [1]}]), b"12345678"], "do not fit"),
        ([_head(arrays=[{"name": "x", "dtype": "float32", "shape": [-1]}]), b"1234"], "malformed"),
    ],
)
def test_malformed_packets_are_refused(frames: list[bytes], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        messages.decode(frames)


def test_objects_cannot_travel() -> None:
    with pytest.raises(ProtocolError, match="cannot travel"):
        messages.encode(messages.Update(node="a"), {"update": np.array([object()])})
