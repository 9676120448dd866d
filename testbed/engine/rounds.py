"""A round's row of figures, from its recorded steps alone, so that a live run and its replay write the same row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from testbed.core.orders import Collect, Collected, Digital, Ideal, MovedAndTrained, Scores, Sounding, Spent, Trained
from testbed.engine.recorder import Step


def round_row(index: int, steps: Sequence[Step], figures: Mapping[str, float | str]) -> dict[str, Any]:
    """The row of `rounds.jsonl`.

    Args:
        index: round number; 0 scores the base model.
        steps: all steps of the round.
        figures: what the scheme reports of itself.

    Returns:
        round; loss, perplexity, accuracy of the held-out split (None where not scored); participants and missing nodes;
        train_loss, the mean over nodes weighted by samples; aggregation_error and expected_error, squared error of the
        mean over its squared norm (None where not measured or not predicted); vote_error, the share of wrong votes;
        coherence of the sum in the air; start_spread_s, standard deviation over the nodes of their delays in the
        last sounding; packets and transmissions of digital uplinks; uplink_bytes, all that nodes sent over digital and
        error-free links, in vain too; air_time_s, latency_s, energy_j, travel_m of the round; clock_s at its end;
        scheme. Where nodes were scored each for itself, node_loss by node, its worst and spread among the scheme's
        figures; where nodes aligned, alignment: node -> measures.
    """
    spent = sum((step.reply.spent for step in steps), Spent())
    row: dict[str, Any] = {
        "round": index,
        "loss": None,
        "perplexity": None,
        "accuracy": None,
        "participants": [],
        "missing": sorted({name for step in steps for name in getattr(step.reply, "missing", ())}),
        "train_loss": None,
        "aggregation_error": None,
        "expected_error": None,
        "vote_error": None,
        "coherence": None,
        "start_spread_s": None,
        "packets": None,
        "transmissions": None,
        "uplink_bytes": None,
        "air_time_s": spent.air_time_s,
        "latency_s": spent.seconds,
        "energy_j": spent.joules,
        "travel_m": spent.travel_m,
        "clock_s": steps[-1].clock_s if steps else 0.0,
        "scheme": dict(figures),
    }
    for step in steps:
        reply = step.reply.trained if isinstance(step.reply, MovedAndTrained) else step.reply
        if isinstance(reply, Scores):
            row.update(loss=reply.loss, perplexity=reply.perplexity, accuracy=reply.accuracy)
            if reply.nodes:
                losses = {name: score.loss for name, score in reply.nodes.items()}
                row["node_loss"] = losses
                row["scheme"] |= {"worst_loss": max(losses.values()), "loss_spread": float(np.std([*losses.values()]))}
        elif isinstance(reply, Sounding):
            row["start_spread_s"] = float(np.std(reply.delay_s))
        elif isinstance(reply, Trained) and any(result.measures for result in reply.results.values()):
            row["alignment"] = {name: dict(result.measures) for name, result in reply.results.items()}
        elif isinstance(reply, Trained) and reply.results:
            total = sum(result.num_samples for result in reply.results.values())
            row["train_loss"] = sum(result.num_samples * result.loss_mean for result in reply.results.values()) / total
        elif isinstance(reply, Collected) and isinstance(step.order, Collect):
            row["participants"] = sorted(set(step.order.uplinks) - set(reply.missing))
            row["vote_error"], row["coherence"] = step.audit.get("vote_error"), reply.coherence
            if reply.deliveries:
                row["packets"] = sum(delivery.packets for delivery in reply.deliveries.values())
                row["transmissions"] = sum(delivery.sent for delivery in reply.deliveries.values())
            if (sent := _sent_bytes(step.order, reply)) is not None:
                row["uplink_bytes"] = (row["uplink_bytes"] or 0) + sent
            true_norm2 = step.audit.get("true_norm2", 0.0)
            if true_norm2 > 0:
                row["aggregation_error"] = step.audit["error_norm2"] / true_norm2
                if step.order.expected_mse is not None:
                    row["expected_error"] = step.order.expected_mse / true_norm2
    return row


def _sent_bytes(order: Collect, reply: Collected) -> int | None:
    """Bytes of all updates of an order, as they were sent; None where they travelled as analogue signals."""
    sent: float | None = None
    for name, uplink in order.uplinks.items():
        if isinstance(uplink, Ideal):
            # for so long at that rate, until the deadline at most
            on_air_s = reply.energy_j.get(name, 0.0) / uplink.power_w if uplink.power_w > 0 else 0.0
            sent = (sent or 0.0) + on_air_s * uplink.rate_bit_s / 8.0
        elif isinstance(uplink, Digital) and (delivery := reply.deliveries.get(name)) is not None:
            sent = (sent or 0.0) + delivery.num_bytes * delivery.sent / max(delivery.packets, 1)
    return None if sent is None else round(sent)


def summarise(rows: Sequence[Mapping[str, Any]], status: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        rows: of `rounds.jsonl`.
        status: done, budget, interrupted or failed.
        facts: name, scheme, backend, seed, config_sha256.
    """
    scored = [row for row in rows if row["loss"] is not None]
    before, after = (scored[0], scored[-1]) if scored else ({}, {})
    return {
        **facts,
        "status": status,
        "rounds": max((row["round"] for row in rows), default=0),
        **{
            f"{key}_{when}": row.get(key)
            for key in ("loss", "perplexity", "accuracy")
            for when, row in (("before", before), ("after", after))
        },
        **{key: sum(row[key] for row in rows) for key in ("latency_s", "energy_j", "air_time_s", "travel_m")},
    }
