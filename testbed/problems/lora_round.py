"""The part of a round that digital schemes for LoRA have in common: sound, train, send, each in a band of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping

from testbed.core.fleet import Fleet
from testbed.core.orders import Collected, Order, Payload, Reply, Trained, Work, collect, sound, train
from testbed.problems.digital_order import UplinkSpec, digital_uplinks, head_starts_s, sample_weights


def exchange(
    fleet: Fleet, work: Callable[[str], Work], payload: Callable[[str], Payload], spec: UplinkSpec
) -> Generator[Order, Reply, tuple[Trained, Collected]]:
    """`trained, collected = yield from exchange(...)`: everybody trains, then sends over an equal share of the band.

    Over error-free links a node sends as soon as it has trained; packets start together.

    Args:
        fleet: highest powers, and the band.
        work: of a node.
        payload: of a node.
        spec: how updates travel; its `payload` is the caller's business.
    """
    sounding = yield from sound(num_pilots=spec.num_pilots)
    trained = yield from train({name: work(name) for name in sounding.nodes})
    weights = sample_weights(trained, sounding.nodes)
    payloads: Mapping[str, Payload] = {name: payload(name) for name in weights}
    ahead_s = head_starts_s(trained)
    uplinks = digital_uplinks(fleet, sounding, weights, payloads, spec, head_start_s=ahead_s)
    return trained, (yield from collect(uplinks))
