"""The record gives back what it was given, bit for bit."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from testbed.core.orders import (
    Analogue,
    Collect,
    Collected,
    Delivery,
    Digital,
    Ideal,
    LocalResult,
    MajorityVote,
    Move,
    OneBit,
    Payload,
    Pruning,
    Publish,
    Sounding,
    Spent,
    Together,
    Train,
    Trained,
    Work,
)
from testbed.core.record import difference, from_plain, to_plain

_floats = st.floats(allow_nan=True, allow_infinity=True)
_finite = st.floats(-1e9, 1e9)
_names = st.text(st.characters(codec="utf-8", exclude_characters="$"), min_size=1, max_size=8)
_arrays = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.complex64, np.complex128]),
    npst.array_shapes(min_dims=1, max_dims=2, min_side=0),
)
_spent = st.builds(Spent, _floats, _finite, _finite, _finite)
_payloads = st.builds(Payload, st.sampled_from(["float32", "sign"]), _finite, st.booleans())
_uplink = st.one_of(
    st.builds(Analogue, _finite, st.complex_numbers(allow_nan=False) | _arrays, _finite, _finite),
    st.builds(OneBit, st.complex_numbers(allow_nan=False) | _arrays, _finite, _finite),
    st.builds(MajorityVote, _finite, _finite, _finite),
    st.builds(Ideal, _finite, _finite, _finite, _finite, _payloads),
    st.builds(Digital, _finite, _finite, _finite, _finite, _arrays, st.none() | _names, _payloads),
)
_uplinks = st.dictionaries(_names, _uplink, max_size=3)
_values = st.one_of(
    st.builds(Move, _arrays),
    st.builds(
        Together,
        st.builds(Move, _arrays),
        st.builds(
            Train,
            st.dictionaries(
                _names,
                st.builds(
                    Work,
                    proximal=_finite,
                    drift=st.none() | _arrays,
                    factors=st.sampled_from(["both", "A", "B"]),
                    pruning=st.none() | st.builds(Pruning, _finite, st.sampled_from(["structured", "unstructured"])),
                    ranks=st.none() | st.integers(1, 9),
                    others=st.sampled_from(["frozen", "absent"]),
                    orthogonality=_finite,
                ),
                max_size=2,
            ),
        ),
    ),
    st.builds(Publish, _arrays, st.none() | _arrays, st.integers(0, 9)),
    st.builds(Collect, _uplinks, _arrays, _floats, st.none() | _arrays, st.none() | _finite),
    st.builds(
        Sounding,
        st.tuples(_names),
        _arrays,
        _floats,
        _arrays,
        _arrays,
        _arrays,
        _arrays,
        st.none() | _arrays,
        st.tuples(_names),
        _spent,
    ),
    st.builds(
        Trained,
        st.dictionaries(
            _names,
            st.builds(
                LocalResult,
                _floats,
                _floats,
                _floats,
                st.integers(0, 9),
                st.integers(0, 9),
                _floats,
                _floats,
                _floats,
                _floats,
                st.integers(0, 9),
                _floats,
                _floats,
                _floats,
                _floats,
            ),
            max_size=2,
        ),
        st.tuples(),
        _spent,
    ),
    st.builds(
        Collected,
        _arrays,
        st.dictionaries(_names, _arrays, max_size=2),
        st.tuples(),
        st.just({}),
        st.dictionaries(
            _names, st.builds(Delivery, _names, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), _floats)
        ),
        st.none() | _finite,
        st.integers(0, 9),
        _spent,
    ),
)


def _through_the_record(value: Any) -> Any:
    import json

    memory = bytearray()

    def store(array: np.ndarray) -> int:
        offset = len(memory)
        memory.extend(array.tobytes())
        return offset

    def load(offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(bytes(memory[offset : offset + size]), dtype).reshape(shape)

    line = json.dumps(to_plain(value, store), allow_nan=False)
    return from_plain(json.loads(line), load)


@given(_values)
def test_what_is_recorded_comes_back(value: Any) -> None:
    back = _through_the_record(value)
    assert type(back) is type(value)
    assert difference(back, value) is None


@given(_arrays.filter(lambda array: array.size > 0))
def test_one_changed_bit_is_found(array: np.ndarray) -> None:
    changed = array.copy()
    flat = changed.reshape(-1).view(np.uint8)
    flat[0] ^= 1
    assert difference(Move(changed), Move(array)) is not None


def test_work_recorded_before_it_had_terms_is_still_understood() -> None:
    old = {"$type": "Work", "local_steps": 3, "batch_size": None, "cpu_hz": 1e9}
    assert from_plain(old, lambda *_: np.zeros(0)) == Work(local_steps=3, cpu_hz=1e9)


def test_the_first_difference_is_named() -> None:
    left = Train({"a": Work(local_steps=3), "b": Work()})
    right = Train({"a": Work(local_steps=4), "b": Work()})
    assert difference(left, right) == "work.a.local_steps: 3 instead of 4"
    assert difference(Train({}), Move(np.zeros(2))) == "Move: Train instead of Move"
