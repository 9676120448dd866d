"""Dividing the flat adapter into shared and private parts: counts, bytes, patterns, and the mean of what arrived."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.adapter import Factor, Layout
from testbed.core.errors import ConfigError, ProtocolError
from testbed.lora.partial import divide, mean_of_received


def layout(num_blocks: int = 3, hidden: int = 6, rank: int = 2, width: int = 4) -> Layout:
    """LoRA on q_proj of every block, then a bottleneck behind every mlp."""
    factors = []
    for block in range(num_blocks):
        module = f"model.layers.{block}.self_attn.q_proj"
        for kind, shape in (("A", (rank, hidden)), ("B", (hidden, rank))):
            factors.append(
                Factor(name=f"base_model.model.{module}.lora_{kind}.weight", shape=shape, kind=kind, module=module)
            )
    for block in range(num_blocks):
        module = f"model.layers.{block}.mlp"
        for name, kind, shape in (
            ("down_weight", "down", (width, hidden)),
            ("down_bias", "bias", (width,)),
            ("up_weight", "up", (hidden, width)),
            ("up_bias", "bias", (hidden,)),
        ):
            factors.append(
                Factor(name=f"base_model.model.{module}.bottleneck.{name}", shape=shape, kind=kind, module=module)
            )
    return Layout(factors=tuple(factors))


BOTTLENECK = ("down", "up", "bias")


def test_sharing_the_bottlenecks_carries_their_values_and_no_other() -> None:
    whole = layout()
    sharing = divide(whole, kinds=BOTTLENECK)
    assert sharing.shared.size == 3 * (2 * 4 * 6 + 4 + 6)
    assert sharing.private.size == 3 * 2 * 2 * 6
    assert not any("lora" in factor.name for factor in sharing.shared.factors)
    assert sharing.slices == (slice(72, 72 + 174),), "neighbours are one piece"
    vector = np.arange(whole.size, dtype=np.float32)
    np.testing.assert_array_equal(sharing.phi(vector), np.arange(72, 246, dtype=np.float32))
    np.testing.assert_array_equal(sharing.psi(vector), np.arange(72, dtype=np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_the_two_parts_make_the_whole_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = layout(num_blocks=int(rng.integers(1, 5)))
    names = [factor.name for factor in whole.factors if rng.random() < 0.5]
    sharing = divide(whole, patterns=names)
    vector = rng.normal(size=whole.size).astype(np.float32)
    taken = np.concatenate([np.zeros(0, bool)] + [np.full(f.size, f.name in names) for f in whole.factors])
    np.testing.assert_array_equal(sharing.phi(vector), vector[taken])
    np.testing.assert_array_equal(sharing.psi(vector), vector[~taken])
    assert sharing.merge(sharing.phi(vector), sharing.psi(vector)).tobytes() == vector.tobytes()


def test_aggregation_makes_phi_equal_and_leaves_every_byte_of_psi() -> None:
    whole = layout()
    sharing = divide(whole, kinds=BOTTLENECK)
    rng = np.random.default_rng(3)
    vectors = {name: rng.normal(size=whole.size).astype(np.float32) for name in ("a", "b", "c")}
    vectors["a"][:3] = [np.nan, -0.0, np.float32(1e-42)]  # values that arithmetic would not carry over
    weights = {"a": 1.0, "b": 3.0, "c": 100.0}
    received = {name: sharing.phi(vectors[name]) for name in ("a", "b")}  # the upload of c was lost
    phi = mean_of_received(received, weights, otherwise=np.zeros(sharing.shared.size, np.float32))
    expected = 0.25 * vectors["a"][72:].astype(float) + 0.75 * vectors["b"][72:].astype(float)
    np.testing.assert_allclose(phi, expected, atol=1e-6)
    after = {name: sharing.with_phi(vector, phi) for name, vector in vectors.items()}
    for name, vector in vectors.items():
        assert after[name][:72].tobytes() == vector[:72].tobytes()
        np.testing.assert_array_equal(after[name][72:], phi)


def test_phi_stays_where_nothing_arrived() -> None:
    before = np.arange(5, dtype=np.float32)
    kept = mean_of_received({}, {}, otherwise=before)
    np.testing.assert_array_equal(kept, before)
    assert not np.shares_memory(kept, before)


def test_one_client_gets_its_own_values_back() -> None:
    own = np.random.default_rng(0).normal(size=40).astype(np.float32)
    np.testing.assert_array_equal(mean_of_received({"a": own}, {"a": 17.0}, otherwise=own * 0), own)


def test_only_the_last_blocks_are_shared_where_that_is_asked() -> None:
    sharing = divide(layout(num_blocks=3), patterns=("*",), last_blocks=2)
    assert {factor.module.split(".")[2] for factor in sharing.shared.factors} == {"1", "2"}
    assert {factor.module.split(".")[2] for factor in sharing.private.factors} == {"0"}
    assert sharing.shared.size == 2 * (24 + 58)


def test_sharing_nothing_is_local_training_and_sharing_all_is_federated_averaging() -> None:
    whole = layout()
    vector = np.arange(whole.size, dtype=np.float32)
    assert divide(whole).phi(vector).size == 0
    np.testing.assert_array_equal(divide(whole, patterns=("*",)).phi(vector), vector)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kinds": ("C",)}, "no factor of kind 'C'; it has A, B, down, bias, up"),
        ({"patterns": ("*.lora_C.*",)}, "no factor's name fits '\\*.lora_C.\\*'"),
        ({"patterns": ("*",), "last_blocks": 4}, "the last 4 blocks cannot be shared: the adapter spans 3"),
        ({"patterns": ("*",), "last_blocks": 0}, "the last 0 blocks"),
    ],
)
def test_what_fits_nothing_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        divide(layout(), **asked)  # type: ignore[arg-type]


def test_parts_of_another_length_are_refused() -> None:
    sharing = divide(layout(), kinds=("A",))
    vector = np.zeros(sharing.layout.size, np.float32)
    with pytest.raises(ProtocolError, match="does not fit"):
        sharing.phi(vector[1:])
    with pytest.raises(ProtocolError, match="does not fit"):
        sharing.with_phi(vector, np.zeros(sharing.shared.size + 1, np.float32))
    with pytest.raises(ProtocolError, match="does not fit"):
        sharing.merge(np.zeros(sharing.shared.size, np.float32), np.zeros(3, np.float32))
