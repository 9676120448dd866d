"""What a calibration may ask of nodes that train: a model, and local steps at a batch size and a CPU frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibration.access import Access
from testbed.core import messages
from testbed.core.errors import LinkTimeout, ProtocolError
from testbed.core.messages import Message
from testbed.core.specs import JobSpec

_NO_ARRAYS: Mapping[str, np.ndarray] = {}


@dataclass
class TrainingAccess:
    """Nodes of an opened bench that load a model and train.

    Args:
        access: the bench.
        job: model, data and training; its nodes are all of the bench.
    """

    access: Access
    job: JobSpec

    def configure(self, node: str) -> messages.Ready:
        """Let a node load model and data, and open its devices again; it starts from the initial adapter.

        Raises:
            LinkTimeout: it did not get ready.
            BenchError: what the node reported.
        """
        access = self.access
        request = messages.Configure(
            node=node,
            job=self.job,
            backend=access.backend,
            devices=dict(access.devices.node_devices),
            bench=access.bench.model_dump(mode="json"),
        )
        answer = self._ask(node, request, _NO_ARRAYS)
        if not isinstance(answer, messages.Ready):
            raise ProtocolError(f"{node} answered {answer.kind!r} where Ready was due")
        return answer

    def train(
        self, node: str, *, steps: int, batch_size: int, cpu_hz: float | None = None, round_index: int = 0
    ) -> messages.TrainDone:
        """Train locally; the run's time passes as the node says that it took.

        Args:
            node: its name.
            steps: optimiser steps.
            batch_size: rows of one forward pass.
            cpu_hz: of the processor; the board's highest if None.
            round_index: of the draw of rows.

        Returns:
            tokens, seconds and joules, among others.

        Raises:
            LinkTimeout: it did not answer.
            LimitError: the board cannot run at that frequency.
        """
        begun_s = self.access.now_s()
        request = messages.TrainTask(
            node=node, round_index=round_index, local_steps=steps, batch_size=batch_size, cpu_hz=cpu_hz
        )
        answer = self._ask(node, request, _NO_ARRAYS)
        if not isinstance(answer, messages.TrainDone):
            raise ProtocolError(f"{node} answered {answer.kind!r} where TrainDone was due")
        self.access.devices.clock.wait_until(begun_s + answer.seconds)
        return answer

    def send(self, node: str, num_values: int) -> float:
        """Seconds from handing over so many adapter values, 4 bytes each, to the answer.

        The node's adapter is spoilt afterwards, until it is configured again. Where the run's time is virtual, the
        control link takes none.

        Raises:
            LinkTimeout: it did not answer.
        """
        begun_s = self.access.now_s()
        self._ask(node, messages.SetAdapter(node=node), {"adapter": np.zeros(num_values, np.float32)})
        return self.access.now_s() - begun_s

    def _ask(self, node: str, request: Message, arrays: Mapping[str, np.ndarray]) -> Message:
        timeout_s = self.access.bench.link.answer_timeout_s
        packets = self.access.devices.link.ask({node: (request, arrays)}, timeout_s=timeout_s)
        if node not in packets:
            raise LinkTimeout(f"{node} did not answer within {timeout_s:g} s", remedy="look at the log of this node")
        return packets[node].message
