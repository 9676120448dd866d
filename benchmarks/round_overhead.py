"""What the controller adds to a round: nodes that do nothing, against bare pyzmq in the same run.

    .venv/bin/python -m benchmarks.round_overhead [--nodes 10] [--megabytes 1] [--repeats 20]

One round broadcasts a state to every node, fetches one of the same size from each and averages them. `testbed` is
`drivers.zmq_link` with validated messages and `weighted_mean`; `pyzmq` is a ROUTER and DEALERs with whole frames and a
numpy mean. The ratio is the claim; the times depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import zmq

from drivers.zmq_link import ZmqLink
from testbed.core import messages
from testbed.lora.aggregate import weighted_mean


def idle_nodes(address: str, names: list[str], update: np.ndarray) -> None:
    """Nodes that speak the protocol and do nothing, in one thread."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    socket.send_multipart(messages.encode(messages.Hello(nodes=tuple(names))))
    while True:
        packet = messages.decode([frame.buffer for frame in socket.recv_multipart(copy=False)])
        request = packet.message
        if isinstance(request, messages.Bye):
            break
        if isinstance(request, messages.SetAdapter):
            socket.send_multipart(messages.encode(messages.Done(node=request.node, serial=request.serial)))
        elif isinstance(request, messages.SendUpdate):
            answer = messages.Update(node=request.node, serial=request.serial)
            socket.send_multipart(messages.encode(answer, {"update": update}), copy=False)
    context.destroy(0)


def bare_node(address: str, identity: bytes, update: np.ndarray) -> None:
    """A DEALER that answers every state with its update until an empty frame arrives."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(address)
    socket.send(b"hello")
    while len(socket.recv(copy=False).buffer):
        socket.send(update.view(np.uint8).data, copy=False)
    context.destroy(0)


def timed(action: Callable[[], object], repeats: int) -> float:
    """Median seconds, after one warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def measure_testbed(count: int, state: np.ndarray, repeats: int) -> float:
    """Median seconds of a round over the control link."""
    link = ZmqLink()
    names = [f"node-{index}" for index in range(count)]
    # as many processes' worth of sockets as the simulated fleet uses
    threads = [
        threading.Thread(target=idle_nodes, args=(link.address, part, state))
        for part in (names[::2], names[1::2])
        if part
    ]
    for thread in threads:
        thread.start()
    link.wait_for(names, timeout_s=10)
    weights = dict.fromkeys(names, 1.0)

    def one_round() -> None:
        link.ask({name: (messages.SetAdapter(node=name), {"adapter": state}) for name in names}, timeout_s=60)
        answers = link.ask({name: (messages.SendUpdate(node=name), {}) for name in names}, timeout_s=60)
        weighted_mean({name: packet.arrays["update"] for name, packet in answers.items()}, weights)

    seconds = timed(one_round, repeats)
    link.close()
    for thread in threads:
        thread.join()
    return seconds


def measure_pyzmq(count: int, state: np.ndarray, repeats: int) -> float:
    """Median seconds of the same exchange in bare pyzmq."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
    identities = [str(index).encode() for index in range(count)]
    threads = [threading.Thread(target=bare_node, args=(address, identity, state)) for identity in identities]
    for thread in threads:
        thread.start()
    for _ in identities:
        socket.recv_multipart()
    payload = state.view(np.uint8).data

    def one_round() -> None:
        for identity in identities:
            socket.send_multipart([identity, payload], copy=False)
        total = np.zeros_like(state)
        for _ in identities:
            _, frame = socket.recv_multipart(copy=False)
            total += np.frombuffer(frame.buffer, np.float32)
        total /= count

    seconds = timed(one_round, repeats)
    for identity in identities:
        socket.send_multipart([identity, b""])
    for thread in threads:
        thread.join()
    context.destroy(0)
    return seconds


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    state = np.random.default_rng(0).standard_normal(int(options.megabytes * 250_000), dtype=np.float32)
    ours = measure_testbed(options.nodes, state, options.repeats)
    bare = measure_pyzmq(options.nodes, state, options.repeats)
    print(
        f"{options.nodes} nodes x {options.megabytes:g} MB: testbed {ours * 1e3:.1f} ms, "
        f"pyzmq {bare * 1e3:.1f} ms, ratio {ours / bare:.2f}"
    )


if __name__ == "__main__":
    main()
