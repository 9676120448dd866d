"""Whether LoRA, trained centrally on the clients' rows, raises the accuracy of a prepared base.

Plain AdamW on the factors of every layer, no federation and no air: what a federated run can hope for. The p-value is
of an exact sign test (McNemar) over the held-out rows whose verdict changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from benchmarks.prepared_base import TARGETS, accuracy_of, descend, encoded_rows, endless_batches, score
from nodes import data
from nodes.adapters import attach
from nodes.likelihood import Likelihood
from nodes.model import load_base
from nodes.tokens import Encoded, Encoder
from testbed.core.specs import DataSpec, LoraSpec, ModelSpec

_DRAW = 13


@dataclass(frozen=True)
class Gain:
    """What central LoRA on the clients' rows changes.

    Attributes:
        learning_rate: of AdamW.
        accuracy: on the held-out split, before and after each part.
        loss: nats a label-word token, likewise.
        gained, lost: rows whose verdict became right, and wrong.
        p_value: of so uneven a change by chance, two-sided.
    """

    learning_rate: float
    accuracy: list[float]
    loss: list[float]
    gained: int
    lost: int
    p_value: float


def lora_gain(
    folder: Path,
    *,
    learning_rate: float,
    parts: int = 10,
    samples: int = 600,
    batch_size: int = 20,
    rank: int = 8,
    most_held_out: int | None = None,
) -> Gain:
    """Fine-tune LoRA on the clients' rows, centrally, with AdamW of one constant learning rate.

    Args:
        folder: as `prepare` left it.
        learning_rate: of AdamW.
        parts: after each of which it measures; the optimiser starts afresh, as in a federated round.
        samples: rows of a part.
        batch_size: rows of a step.
        rank: r of all layers; alpha is 2 r.
        most_held_out: rows that score; all by default.
    """
    facts = json.loads((folder / "prepared.json").read_text())["recipe"]
    spec = DataSpec(source=str(folder / "data"), template=facts["template"])
    train, test = data.read(spec)
    model, tokenizer = load_base(ModelSpec(base=str(folder)))
    encoder = Encoder(tokenizer, facts["length"])
    rng = np.random.default_rng([facts["seed"], _DRAW])
    picked = rng.permutation(len(train))[: min(parts * samples, len(train))]
    rows = encoded_rows([train[index] for index in picked], encoder, facts["template"])
    held_out = encoded_rows(test[:most_held_out], encoder, facts["template"])
    adapter = attach(model, LoraSpec(rank=rank, alpha=2.0 * rank, targets=TARGETS), facts["seed"])
    likelihood = Likelihood.of(adapter.model, pad=int(tokenizer.pad_token_id), loss_on="response")
    flat = torch.nn.Parameter(adapter.values)
    flat.grad = adapter.gradient
    verdicts, sums = _verdicts(likelihood, held_out), [score(likelihood, held_out)]
    batches = endless_batches(rows, batch_size, facts["seed"])
    for _ in range(parts):
        optimizer = torch.optim.AdamW([flat], lr=learning_rate, weight_decay=0.0)
        for _ in range(samples // batch_size):
            descend(likelihood, next(batches), optimizer, [flat])
            adapter.gradient.zero_()
        sums.append(score(likelihood, held_out))
    after = _verdicts(likelihood, held_out)
    gained, lost = int(np.sum(after & ~verdicts)), int(np.sum(verdicts & ~after))
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    losses = [one.loss_sum / one.num_tokens for one in sums]
    return Gain(learning_rate, [accuracy_of(one) for one in sums], losses, gained, lost, p_value)


def _verdicts(likelihood: Likelihood, rows: Sequence[Encoded]) -> np.ndarray:
    """Which rows are right, shape [num_rows]."""
    with torch.no_grad():
        return np.array([bool(likelihood.classify([row]).num_correct) for row in rows])
