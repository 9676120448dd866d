"""The nodes as the engine sees them: who is there, who holds which adapter, who holds an update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from testbed.core import messages
from testbed.core.bench import BenchSpec
from testbed.core.devices import Devices
from testbed.core.errors import ConfigError, DeviceError, LinkTimeout, ProtocolError
from testbed.core.messages import Packet
from testbed.core.orders import WHOLE, Part, Payload, Publish
from testbed.core.specs import JobSpec, ModelSpec
from testbed.engine.keeping import Keeping
from testbed.engine.observe import Observer
from testbed.engine.shared_time import share_time
from testbed.lora.refactor import Stack

Answer = TypeVar("Answer", bound=messages.Request)
_NO_ARRAYS: Mapping[str, np.ndarray] = {}
_KEEPS_TIME_S = 10.0
"""Two crystals of 20 ppm are 0.4 ms apart by then."""
_NO_REQUEST_ARRAYS: Mapping[str, Mapping[str, np.ndarray]] = {}


def check_folding(order: Publish, model: ModelSpec) -> None:
    """Raises ConfigError where base weights cannot take a fold: those of 4 bits are not numbers one can add to."""
    if order.fold is not None and model.dtype == "nf4":
        raise ConfigError(
            "the scheme folds updates into the base weights, and weights of 4 bits cannot take them",
            key="model.dtype",
            remedy='use dtype = "bfloat16" or "float32", or a scheme that does not fold',
        )


@dataclass
class Crew:
    """Asks nodes and keeps track of what they know.

    Args:
        devices: whose link is used.
        backend: its name, sent to the nodes.
        job: model, data and training, sent to the nodes.
    """

    devices: Devices
    bench: BenchSpec
    backend: str
    job: JobSpec
    observer: Observer
    holding: set[str] = field(default_factory=set)
    """Nodes that trained since they joined, and so hold an update."""
    serials: dict[str, str] = field(default_factory=dict)
    """Serial numbers of the nodes' radios, once they are ready."""
    folds: list[Stack] = field(default_factory=list)
    """All that was folded into the base weights, in its order."""
    keeping: Keeping = field(default_factory=Keeping)
    """What nodes have for themselves."""
    _folded: dict[str, int] = field(default_factory=dict)
    _published: np.ndarray | None = None
    _part: Part = WHOLE
    _behind: set[str] = field(default_factory=set)
    _time_shared_s: float = 0.0

    def assemble(self) -> dict[str, Packet]:
        """Wait for every node of the bench and let it load model and data; its `Ready` packet by name.

        Raises:
            LinkTimeout: a node never connected, or did not get ready.
            ProtocolError: the nodes do not agree on the adapter they start from.
        """
        names, link = self.bench.node_names, self.bench.link
        self.observer.phase(
            f"waiting for {len(names)} nodes" + ("" if link.listen.endswith("*") else f" at {link.listen}")
        )
        self.devices.link.wait_for(names, timeout_s=link.connect_timeout_s)
        self.devices.link.take_joined()
        self.observer.phase("nodes load model and data")
        ready = self._configure(names)
        if silent := [name for name in names if name not in ready]:
            raise LinkTimeout(f"{', '.join(silent)} did not get ready", remedy="look at the log of these nodes")
        first = ready[names[0]]
        for name, packet in ready.items():
            if isinstance(packet.message, messages.Ready):
                self.serials[name] = packet.message.radio_serial
            if any(not np.array_equal(packet.arrays[key], first.arrays[key]) for key in ("initial", "frozen")):
                raise ProtocolError(
                    f"{name} starts from another adapter than {names[0]}",
                    remedy="give every node the same base model and the same versions of torch and peft",
                )
        self._published = first.arrays["initial"]
        self.share_time(names)
        return ready

    def present(self, names: Iterable[str] = ()) -> list[str]:
        """Those of the names (of all nodes, if none is given) that are connected.

        Raises:
            DeviceError: not one of them is.
        """
        connected = set(self.devices.link.nodes)
        found = [name for name in (tuple(names) or self.bench.node_names) if name in connected]
        if not found:
            raise DeviceError("no node is connected", remedy="look at the logs of the nodes")
        return found

    def ask(
        self,
        requests: Mapping[str, messages.Message],
        kind: type[Answer],
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> dict[str, Answer]:
        """One request, with its arrays, to each node; the answers of those who gave one.

        Raises:
            BenchError: what a node reported.
            ProtocolError: a node answered something else.
        """
        return {name: _expect(packet, kind) for name, packet in self._packets(requests, arrays or {}).items()}

    def publish(self, adapter: np.ndarray, fold: Stack | None = None, part: Part = WHOLE) -> tuple[str, ...]:
        """Give everybody a part of the adapter, shape [num_values], and a fold if there is one; who has it now."""
        self._published, self._part = adapter, part
        if fold is not None:
            self.folds.append(fold)
        names = self.devices.link.nodes
        answers = self._hand_over(names, adapter, part)
        self._behind = set(names) - set(answers)
        return answers

    def fetch(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The updates of nodes that hold one, as they are, shape [num_values] float32 each, over the control link."""
        requests: dict[str, messages.Message] = {
            name: messages.SendUpdate(node=name) for name in names if name in self.holding
        }
        return {name: packet.arrays["update"] for name, packet in self._packets(requests).items()}

    def fetch_encoded(self, payloads: Mapping[str, Payload], transfer: int) -> dict[str, bytes]:
        """The encoded updates of nodes that hold one, over the control link."""
        requests: dict[str, messages.Message] = {
            name: messages.SendUpdate(node=name, payload=payload, transfer=transfer)
            for name, payload in payloads.items()
            if name in self.holding
        }
        return {name: packet.arrays["payload"].tobytes() for name, packet in self._packets(requests).items()}

    def encoded_bytes(self, payloads: Mapping[str, Payload], transfer: int) -> dict[str, int]:
        """How many bytes the updates of nodes that hold one become."""
        requests: dict[str, messages.Message] = {
            name: messages.EncodeUpdate(node=name, payload=payload, transfer=transfer)
            for name, payload in payloads.items()
            if name in self.holding
        }
        return {name: answer.num_bytes for name, answer in self.ask(requests, messages.Encoded).items()}

    def residuals(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """What the payloads of connected nodes have left out, shape [num_values] float32 each."""
        connected = self.devices.link.nodes
        requests: dict[str, messages.Message] = {
            name: messages.SendResidual(node=name) for name in sorted(names) if name in connected
        }
        return {name: packet.arrays["residual"] for name, packet in self._packets(requests).items()}

    def give_residuals(self, residuals: Mapping[str, np.ndarray]) -> None:
        """Bring nodes back to what their payloads had left out when the run was cut off."""
        requests: dict[str, messages.Message] = {name: messages.SetResidual(node=name) for name in residuals}
        self._packets(requests, {name: {"residual": residual} for name, residual in residuals.items()})

    def own_values(self) -> dict[str, dict[str, np.ndarray]]:
        """What nodes have for themselves; of those that are away, as it was."""
        connected, shared = self.devices.link.nodes, self.keeping.shared
        holders = self.keeping.holders if shared != WHOLE else self.keeping.copies
        if holders:
            requests: dict[str, messages.Message] = {
                name: messages.SendOwn(node=name, shared=shared) for name in sorted(holders) if name in connected
            }
            self.keeping.stored_beside = shared
            self.keeping.stored |= {name: dict(packet.arrays) for name, packet in self._packets(requests).items()}
        return self.keeping.stored

    def give_back(self, names: Iterable[str]) -> None:
        """Bring nodes back to what they had for themselves at the last checkpoint, where that is known."""
        arrays = {name: self.keeping.stored[name] for name in names if name in self.keeping.stored}
        requests: dict[str, messages.Message] = {
            name: messages.SetOwn(node=name, shared=self.keeping.stored_beside) for name in arrays
        }
        if requests:
            self._packets(requests, arrays)

    def catch_up(self) -> None:
        """Bring nodes that came back, or missed a broadcast, to the published adapter, and to what was their own."""
        back = self.devices.link.take_joined()
        self.holding -= set(back)
        if back:
            self._configure(back)
            self.share_time(back)
        behind = {name for name in (*back, *self._behind) if name in self.devices.link.nodes}
        if behind and self._published is not None:
            reached: set[str] = set()
            # who comes back has nothing yet that could stay
            for names, part in ((behind - set(back), self._part), (behind & set(back), WHOLE)):
                if names:
                    reached |= set(self._hand_over(tuple(sorted(names)), self._published, part))
            self._behind = behind - reached
            self.give_back(sorted(reached & set(back)))
            if lost := self.keeping.lost(back):
                self.observer.warning(
                    f"{', '.join(lost)} came back before a round's end had kept its own values: they start anew"
                )

    def share_time(self, names: Iterable[str]) -> None:
        """Tell nodes the controller's time where their bursts start by it."""
        share_time(self.devices, names, timeout_s=self.bench.link.answer_timeout_s)
        if self.devices.shares_time:
            self._time_shared_s = self.devices.clock.now_s()

    def keep_time(self) -> None:
        """`share_time` again where crystals may have drifted apart since."""
        if self.devices.clock.now_s() - self._time_shared_s > _KEEPS_TIME_S:
            self.share_time(self.present())

    def _hand_over(self, names: tuple[str, ...], adapter: np.ndarray, part: Part) -> tuple[str, ...]:
        packets: dict[str, tuple[messages.Message, Mapping[str, np.ndarray]]] = {}
        for name in names:
            known = self._folded.pop(name, 0)
            new = self.folds[known:]
            arrays = {f"fold-{index}": fold.vector for index, fold in enumerate(new)}
            ranks = tuple(fold.rank for fold in new)
            message = messages.SetAdapter(node=name, folded=known, fold_ranks=ranks, part=part)
            packets[name] = (message, {"adapter": adapter, **arrays})
        answers = tuple(self.devices.link.ask(packets, timeout_s=self.bench.link.answer_timeout_s))
        # who did not answer may or may not have got its folds, and gets all of them next time
        self._folded |= dict.fromkeys(answers, len(self.folds))
        return answers

    def _configure(self, names: tuple[str, ...]) -> dict[str, Packet]:
        for name in names:
            self._folded.pop(name, None)
        bench: dict[str, Any] = self.bench.model_dump(mode="json")
        devices = dict(self.devices.node_devices)
        return self._packets(
            {
                name: messages.Configure(node=name, job=self.job, backend=self.backend, devices=devices, bench=bench)
                for name in names
            }
        )

    def _packets(
        self,
        requests: Mapping[str, messages.Message],
        arrays: Mapping[str, Mapping[str, np.ndarray]] = _NO_REQUEST_ARRAYS,
    ) -> dict[str, Packet]:
        return self.devices.link.ask(
            {name: (message, arrays.get(name, _NO_ARRAYS)) for name, message in requests.items()},
            timeout_s=self.bench.link.answer_timeout_s,
            progress=self.observer.node_progress,
        )


def _expect(packet: Packet, kind: type[Answer]) -> Answer:
    if not isinstance(packet.message, kind):
        raise ProtocolError(f"a node answered {packet.message.kind!r} where {kind.__name__} was due")
    return packet.message
