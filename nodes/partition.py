"""How training rows are dealt to the nodes: every row to exactly one node, no node without rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from testbed.core.errors import ConfigError
from testbed.core.specs import PartitionSpec

_DRAWS = 200


def partition(
    spec: PartitionSpec,
    num_nodes: int,
    num_rows: int,
    rng: np.random.Generator,
    *,
    labels: Sequence[object] | None = None,
    sources: Sequence[object] | None = None,
) -> list[np.ndarray]:
    """Deal rows to nodes.

    - iid: random shares that differ by one row at most.
    - dirichlet: for each label, the nodes' shares are drawn from Dirichlet(alpha) (Hsu et al., arXiv 1909.06335, with
      labels dealt out exactly); drawn again while a node is empty.
    - label: node i holds the labels i k, ..., i k + k - 1 (modulo their number, shuffled), k = labels_per_node;
      the holders of a label share its rows evenly. Labels beyond num_nodes k are dealt on one by one, so that no row is
      lost: those nodes then hold more than k labels.
    - source: each source goes whole to one node, large ones first, to the node with the fewest rows so far.

    Args:
        spec: kind of partition.
        num_nodes: number of nodes.
        num_rows: number of training rows.
        rng: the generator all draws come from.
        labels: class of every row, length num_rows.
        sources: origin of every row, length num_rows.

    Returns:
        One ascending index array per node; together they hold each of 0..num_rows-1 once.

    Raises:
        ConfigError: a node would be empty, or the rows lack the label or source that the kind needs.
    """
    if num_rows < num_nodes:
        raise ConfigError(
            f"{num_rows} training rows cannot be dealt to {num_nodes} nodes",
            key="data.max_train",
            remedy="take more rows or fewer nodes",
        )
    match spec.kind:
        case "iid":
            shares = np.array_split(rng.permutation(num_rows), num_nodes)
        case "dirichlet":
            shares = _dirichlet(_classes(labels, "label"), num_nodes, spec.alpha, rng)
        case "label":
            shares = _by_label(_classes(labels, "label"), num_nodes, spec.labels_per_node, rng)
        case "source":
            shares = _by_source(_classes(sources, "source"), num_nodes)
    empty = [index for index, share in enumerate(shares) if len(share) == 0]
    if empty:
        raise ConfigError(
            f"the {spec.kind} partition leaves {len(empty)} of {num_nodes} nodes without rows",
            key="data.partition",
            remedy="take more rows, fewer nodes, a larger alpha, or kind = 'iid'",
        )
    return [np.sort(share) for share in shares]


def dealt_alike(
    shares: Sequence[np.ndarray],
    classes: Sequence[object],
    held_out: Sequence[object],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Deal held-out rows as the training rows are dealt: of each class, a node gets the same part.

    What does not divide goes to the largest remainders. Rows of a class that no training row has are dealt by the
    nodes' total. A node may get none where held-out rows are few.

    Args:
        shares: training rows of each node, as `partition` gave them.
        classes: class of every training row; None where it has none.
        held_out: class of every held-out row.
        rng: draws which row goes where.

    Returns:
        One ascending index array per node; together they hold each held-out row once.
    """
    of_train, of_test = (np.array([repr(value) for value in values]) for values in (classes, held_out))
    total = np.array([len(share) for share in shares], np.float64)
    pieces: list[list[np.ndarray]] = [[] for _ in shares]
    for name in dict.fromkeys(of_test.tolist()):
        rows = rng.permutation(np.flatnonzero(of_test == name))
        counts = np.array([np.count_nonzero(of_train[share] == name) for share in shares], np.float64)
        weights = counts if counts.any() else total
        wanted = weights / weights.sum() * len(rows)
        sizes = np.floor(wanted).astype(np.int64)
        # a remainder of rounding counts as none
        order = np.argsort(-np.round(wanted - sizes, 9), kind="stable")
        sizes[order[: len(rows) - int(sizes.sum())]] += 1
        for piece, part in zip(pieces, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
            piece.append(part)
    return [np.sort(np.concatenate(piece)) for piece in pieces]


def _classes(values: Sequence[object] | None, field: str) -> list[np.ndarray]:
    """Rows of each distinct value, the values in the order of their text; numbers in theirs."""
    if values is None or any(value is None for value in values):
        raise ConfigError(
            f"this partition needs a {field} for every row",
            key="data.partition.kind",
            remedy=f'name its column, for instance data.fields = {{ {field} = "category" }}, or use kind = "iid"',
        )
    keys = [f"{value:020d}" if isinstance(value, int) else str(value) for value in values]
    _, inverse = np.unique(np.asarray(keys), return_inverse=True)
    return [np.flatnonzero(inverse == index) for index in range(int(inverse.max()) + 1)]


def _dirichlet(classes: list[np.ndarray], num_nodes: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    for _ in range(_DRAWS):
        pieces: list[list[np.ndarray]] = [[] for _ in range(num_nodes)]
        for rows in classes:
            shares = rng.dirichlet(np.full(num_nodes, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for node, piece in enumerate(np.split(rng.permutation(rows), np.clip(cuts, 0, len(rows)))):
                pieces[node].append(piece)
        result = [np.concatenate(piece) for piece in pieces]
        if all(len(rows) for rows in result):
            break
    return result


def _by_label(
    classes: list[np.ndarray], num_nodes: int, labels_per_node: int, rng: np.random.Generator
) -> list[np.ndarray]:
    num_labels = len(classes)
    if labels_per_node > num_labels:
        raise ConfigError(
            f"labels_per_node is {labels_per_node}, but the data have {num_labels} labels",
            key="data.partition.labels_per_node",
            remedy=f"use at most {num_labels}",
        )
    order = rng.permutation(num_labels)
    holders: list[list[int]] = [[] for _ in range(num_labels)]
    for slot in range(max(num_nodes * labels_per_node, num_labels)):
        # slots beyond num_nodes * labels_per_node deal on the labels nobody holds yet
        within = slot < num_nodes * labels_per_node
        holders[order[slot % num_labels]].append(slot // labels_per_node if within else slot % num_nodes)
    pieces: list[list[np.ndarray]] = [[] for _ in range(num_nodes)]
    for rows, nodes in zip(classes, holders, strict=True):
        for node, piece in zip(nodes, np.array_split(rng.permutation(rows), len(nodes)), strict=True):
            pieces[node].append(piece)
    return [np.concatenate(piece) for piece in pieces]


def _by_source(classes: list[np.ndarray], num_nodes: int) -> list[np.ndarray]:
    if len(classes) < num_nodes:
        raise ConfigError(
            f"the data have {len(classes)} sources for {num_nodes} nodes",
            key="data.partition.kind",
            remedy=f"use at most {len(classes)} nodes, or another kind",
        )
    pieces: list[list[np.ndarray]] = [[] for _ in range(num_nodes)]
    filled = np.zeros(num_nodes, np.int64)
    for index in sorted(range(len(classes)), key=lambda i: (-len(classes[i]), i)):
        node = int(np.argmin(filled))
        pieces[node].append(classes[index])
        filled[node] += len(classes[index])
    return [np.concatenate(piece) for piece in pieces]
