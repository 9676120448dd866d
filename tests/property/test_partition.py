"""Partitions deal every row exactly once, leave no node empty, and repeat themselves from the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.partition import partition
from testbed.core.errors import ConfigError
from testbed.core.specs import PartitionSpec

KINDS = ("iid", "dirichlet", "label", "source")


def deal(spec: PartitionSpec, num_nodes: int, classes: np.ndarray, seed: int) -> list[np.ndarray]:
    values = classes.tolist()
    return partition(spec, num_nodes, len(values), np.random.default_rng(seed), labels=values, sources=values)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    num_nodes=st.integers(1, 12),
    num_classes=st.integers(1, 8),
    num_rows=st.integers(1, 300),
    alpha=st.floats(0.05, 100),
    labels_per_node=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_every_row_once(
    kind: str, num_nodes: int, num_classes: int, num_rows: int, alpha: float, labels_per_node: int, seed: int
) -> None:
    spec = PartitionSpec(kind=kind, alpha=alpha, labels_per_node=labels_per_node)
    classes = np.random.default_rng(seed).integers(num_classes, size=num_rows)
    try:
        shares = deal(spec, num_nodes, classes, seed)
    except ConfigError:
        # equal shares of enough rows are never refused
        assert kind != "iid" or num_rows < num_nodes
        return
    assert len(shares) == num_nodes
    assert min(map(len, shares)) > 0
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(num_rows))
    assert all(np.all(np.diff(share) > 0) for share in shares)
    again = deal(spec, num_nodes, classes, seed)
    assert all(np.array_equal(one, other) for one, other in zip(shares, again, strict=True))


@given(num_nodes=st.integers(1, 9), num_rows=st.integers(9, 100))
def test_iid_shares_differ_by_one_row_at_most(num_nodes: int, num_rows: int) -> None:
    shares = deal(PartitionSpec(kind="iid"), num_nodes, np.zeros(num_rows, int), 0)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("alpha", [0.3, 1.0, 20.0])
def test_dirichlet_shares_follow_their_moments(alpha: float) -> None:
    num_nodes, num_labels, rows_per_label = 4, 5, 400
    classes = np.repeat(np.arange(num_labels), rows_per_label)
    shares = []
    for seed in range(120):
        dealt = deal(PartitionSpec(kind="dirichlet", alpha=alpha), num_nodes, classes, seed)
        shares.append([np.bincount(classes[share], minlength=num_labels) / rows_per_label for share in dealt])
    observed = np.asarray(shares)
    # mean 1/N, variance (N-1) / (N^2 (N alpha + 1))
    assert observed.mean() == pytest.approx(1 / num_nodes)
    np.testing.assert_allclose(observed.mean(axis=(0, 2)), 1 / num_nodes, atol=0.05)
    variance = (num_nodes - 1) / (num_nodes**2 * (num_nodes * alpha + 1))
    assert observed.var() == pytest.approx(variance, rel=0.15)


def test_label_partition_gives_each_node_its_labels() -> None:
    classes = np.repeat(np.arange(6), 30)
    shares = deal(PartitionSpec(kind="label", labels_per_node=2), 6, classes, 1)
    assert [len(np.unique(classes[share])) for share in shares] == [2] * 6
    # each label has two holders with half of its rows
    assert [len(share) for share in shares] == [30] * 6


def test_labels_nobody_would_hold_are_dealt_on() -> None:
    classes = np.repeat(np.arange(7), 10)
    shares = deal(PartitionSpec(kind="label", labels_per_node=2), 2, classes, 0)
    assert sorted(len(np.unique(classes[share])) for share in shares) == [3, 4]


def test_each_source_stays_whole() -> None:
    classes = np.random.default_rng(0).integers(9, size=200)
    shares = deal(PartitionSpec(kind="source"), 3, classes, 0)
    owners = [{int(value) for value in classes[share]} for share in shares]
    assert sum(map(len, owners)) == 9
    assert set.union(*owners) == set(range(9))


@pytest.mark.parametrize(
    ("spec", "num_nodes", "classes", "words"),
    [
        (PartitionSpec(kind="iid"), 5, [0, 0], "2 training rows cannot be dealt to 5 nodes"),
        (PartitionSpec(kind="label", labels_per_node=3), 2, [0, 1, 0, 1], "labels_per_node is 3"),
        # two holders share the one row of label 1
        (PartitionSpec(kind="label", labels_per_node=1), 4, [0, 0, 0, 1], "leaves 1 of 4 nodes without rows"),
        (PartitionSpec(kind="source"), 3, [0, 0, 1, 1], "2 sources for 3 nodes"),
        (PartitionSpec(kind="dirichlet", alpha=0.01), 20, [0] * 20, "leaves"),
    ],
)
def test_what_cannot_be_dealt(spec: PartitionSpec, num_nodes: int, classes: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        deal(spec, num_nodes, np.asarray(classes), 0)


def test_labels_are_needed() -> None:
    with pytest.raises(ConfigError, match="needs a label for every row"):
        partition(PartitionSpec(kind="dirichlet"), 2, 4, np.random.default_rng(0), labels=[0, None, 1, 1])
