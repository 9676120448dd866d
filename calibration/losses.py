"""The loss over all nodes as a calibration sees it: values and gradients at any adapter, measured by the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from calibration.access import Access
from testbed.core import messages
from testbed.core.errors import LinkTimeout, ProtocolError
from testbed.core.messages import Message, Packet
from testbed.core.specs import DataSpec, JobSpec

Answer = TypeVar("Answer", bound=messages.Request)
Arrays = Mapping[str, np.ndarray]
_NO_ARRAYS: Arrays = {}


@dataclass(frozen=True)
class Losses:
    """F = sum_m rho_m F_m, with rho_m the node's share of all training rows.

    Attributes:
        access: an opened bench.
        num_rows: training rows of each node.
        start: adapter that training begins with, shape [size] float64.
    """

    access: Access
    num_rows: Mapping[str, int]
    start: np.ndarray

    @staticmethod
    def of(access: Access, job: JobSpec) -> Losses:
        """Let every node load model and data; what a node has loaded already it keeps.

        Raises:
            LinkTimeout: a node did not answer.
            ConfigError: model, data or adapter cannot be made from the job.
        """
        devices, content = access.devices, access.bench.model_dump(mode="json")
        answers = _asked(
            access,
            {
                name: messages.Configure(
                    node=name, job=job, backend=access.backend, devices=dict(devices.node_devices), bench=content
                )
                for name in job.nodes
            },
            messages.Ready,
        )
        first = answers[job.nodes[0]][1]["initial"]
        return Losses(
            access, {name: ready.num_samples for name, (ready, _) in answers.items()}, first.astype(np.float64)
        )

    @property
    def weights(self) -> np.ndarray:
        """rho_m, shape [num_nodes]."""
        rows = np.array(list(self.num_rows.values()), np.float64)
        return rows / rows.sum()

    def drawn(self, rng: np.random.Generator, num_batches: int, batch_size: int) -> dict[str, np.ndarray]:
        """Rows drawn independently, as the mathematics of noise wants them: shape [num_batches, batch_size] a node."""
        return {name: rng.integers(count, size=(num_batches, batch_size)) for name, count in self.num_rows.items()}

    def subset(self, rng: np.random.Generator, most: int, batch_size: int) -> dict[str, np.ndarray]:
        """Different rows, `most` or nearly all a node has, in whole batches: a smaller loss, without noise."""
        rows = {}
        for name, count in self.num_rows.items():
            size = min(batch_size, count)
            kept = max(1, min(most, count) // size) * size
            rows[name] = rng.permutation(count)[:kept].reshape(-1, size)
        return rows

    def measured(
        self, points: np.ndarray, rows: Arrays, *, blocks: int = 1, direction: np.ndarray | None = None
    ) -> dict[str, Arrays]:
        """What each node's gradients are like; see `testbed.core.messages.Gradients`.

        Args:
            points: adapters, shape [num_points, size].
            rows: of each node, shape [num_batches, batch_size].
            blocks: groups of batches that are averaged.
            direction: what gradients are projected on, shape [size].
        """
        beside = {} if direction is None else {"direction": direction.astype(np.float32)}
        requests: dict[str, Message] = {name: messages.MeasureGradients(node=name, blocks=blocks) for name in rows}
        arrays = {name: {"points": points.astype(np.float32), "rows": mine, **beside} for name, mine in rows.items()}
        return {name: found for name, (_, found) in _asked(self.access, requests, messages.Gradients, arrays).items()}

    def whole(self, points: np.ndarray, rows: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """F and its gradient on these rows, shapes [num_points] and [num_points, size]."""
        found = self.measured(points, rows)
        parts = [found[name] for name in self.num_rows]
        losses = sum(rho * part["losses"].mean(axis=1) for rho, part in zip(self.weights, parts, strict=True))
        gradients = sum(
            rho * part["means"][:, 0].astype(np.float64) for rho, part in zip(self.weights, parts, strict=True)
        )
        return np.asarray(losses), np.asarray(gradients)

    def update(self) -> np.ndarray:
        """Mean change of the adapter by one round of local training, shape [size]."""
        names = tuple(self.num_rows)
        _asked(self.access, {name: messages.TrainTask(node=name, round_index=0) for name in names}, messages.TrainDone)
        sent = _asked(self.access, {name: messages.SendUpdate(node=name) for name in names}, messages.Update)
        updates = np.stack([sent[name][1]["update"].astype(np.float64) for name in names])
        return np.asarray(self.weights @ updates)

    def states(self, node: str, count: int, seed: int, *, pretraining: bool, source: DataSpec | None) -> np.ndarray:
        """The base model's pooled states of a node's rows or of pre-training text, shape [num_rows, hidden]."""
        request = messages.MeasureStates(node=node, count=count, seed=seed, pretraining=pretraining, source=source)
        return _asked(self.access, {node: request}, messages.States)[node][1]["states"]


def _asked(
    access: Access, requests: Mapping[str, Message], kind: type[Answer], arrays: Mapping[str, Arrays] | None = None
) -> dict[str, tuple[Answer, Arrays]]:
    """Every node's answer: a loss over some of the nodes would be another loss.

    Raises:
        LinkTimeout: a node did not answer.
        ProtocolError: it answered something else.
    """
    packets: dict[str, Packet] = access.devices.link.ask(
        {name: (request, (arrays or {}).get(name, _NO_ARRAYS)) for name, request in requests.items()},
        timeout_s=access.bench.link.answer_timeout_s,
    )
    if silent := [name for name in requests if name not in packets]:
        raise LinkTimeout(f"{', '.join(silent)} did not answer", remedy="look at the logs of these nodes")
    answers: dict[str, tuple[Answer, Arrays]] = {}
    for name, packet in packets.items():
        if not isinstance(packet.message, kind):
            raise ProtocolError(f"{name} answered {packet.message.kind!r} where {kind.__name__} was expected")
        answers[name] = packet.message, packet.arrays
    return answers
