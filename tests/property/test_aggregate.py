"""Aggregation does not depend on the order of arrival, and the flat vector is its factors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ProtocolError
from testbed.lora.aggregate import weighted_mean

_sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6)


@given(st.integers(1, 9), st.integers(0, 40), st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_order_of_arrival_changes_no_bit(count: int, size: int, shuffle: object, seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = {f"node-{index}": rng.standard_normal(size).astype(np.float32) for index in range(count)}
    weights = {name: float(rng.integers(1, 100)) for name in updates}
    names = list(updates)
    shuffle.shuffle(names)  # type: ignore[attr-defined]
    mean = weighted_mean(updates, weights)
    again = weighted_mean({name: updates[name] for name in names}, {name: weights[name] for name in reversed(names)})
    assert np.array_equal(mean, again)
    exact = sum(weights[name] * updates[name].astype(np.float64) for name in names) / sum(weights.values())
    assert np.allclose(mean, exact, rtol=1e-5, atol=1e-5)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one update"):
        weighted_mean({}, {})


@given(_sizes, st.integers(0, 2**32 - 1))
def test_pack_and_unpack_are_inverse(shapes: list[tuple[int, int]], seed: int) -> None:
    layout = Layout(
        factors=tuple(
            Factor(name=f"m{index}.lora_A.weight", shape=shape, kind="A", module=f"m{index}")
            for index, shape in enumerate(shapes)
        )
    )
    vector = np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)
    factors = layout.unpack(vector)
    assert all(np.shares_memory(factor, vector) for factor in factors.values())
    assert np.array_equal(layout.pack(factors), vector)
    with pytest.raises(ProtocolError, match="does not fit"):
        layout.unpack(vector[:-1])
    with pytest.raises(ProtocolError, match="m0"):
        layout.pack({name: factor for name, factor in factors.items() if name != "m0.lora_A.weight"})
