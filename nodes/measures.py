"""What a node measures for the constants of convergence bounds: gradients of its loss, and states of the base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nodes import corpus, data
from nodes.templates import TEMPLATES
from nodes.tokens import Encoded, collate
from nodes.trainer import Trainer
from testbed.core.errors import ConfigError, DeviceError, ProtocolError
from testbed.core.specs import DataSpec

_STATE_BATCH = 16
_SHORTEST = 2
"""Tokens of a piece of pre-training text, at least: the begin mark and a word."""


@dataclass(frozen=True)
class GradientFacts:
    """What there is to know of gradients without sending every one of them.

    Two batches that were drawn apart make estimates without bias: half the squared distance of their gradients has the
    variance as its mean, their inner product the squared length of the mean gradient.

    Attributes:
        losses: mean over a batch's target tokens, nats a token, shape [num_points, num_batches] float64.
        norms: squared length of a batch's gradient, same shape.
        products: inner product of the gradients of batches 0 and 1, 2 and 3, ..., shape [num_points, num_batches // 2].
        slopes: inner product of a batch's gradient with the direction, shape [num_points, num_batches], or [0, 0].
        means: mean gradient of each block, shape [num_points, blocks, layout.size] float32.
    """

    losses: np.ndarray
    norms: np.ndarray
    products: np.ndarray
    slopes: np.ndarray
    means: np.ndarray


@dataclass(frozen=True)
class Measures:
    """Measures through a trainer, and leaves no trace that a later round could see.

    Args:
        trainer: model, adapter and data of the experiment.
    """

    trainer: Trainer

    def gradients(
        self,
        node: str,
        points: np.ndarray,
        rows: np.ndarray,
        *,
        blocks: int = 1,
        direction: np.ndarray | None = None,
        progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> GradientFacts:
        """Gradients of the mean loss over a batch's target tokens, as training computes them, but neither shortened to
        `max_grad_norm` nor with dropout.

        Args:
            node: whose rows.
            points: flat adapters, shape [num_points, layout.size].
            rows: numbers of the node's rows from 0, shape [num_batches, batch_size].
            blocks: consecutive batches are averaged in so many groups.
            direction: what gradients are projected on, shape [layout.size].
            progress: called after each batch with the fraction done.
            should_stop: asked after each batch.

        Raises:
            ProtocolError: an unknown node, or arrays that do not fit.
            DeviceError: stopped.
        """
        encoded = self._rows_of(node)
        self._check(points, rows, blocks, direction, len(encoded))
        adapter = self.trainer._adapter
        (num_points, size), num_batches = points.shape, len(rows)
        facts = GradientFacts(
            losses=np.zeros((num_points, num_batches)),
            norms=np.zeros((num_points, num_batches)),
            products=np.zeros((num_points, num_batches // 2)),
            slopes=np.zeros((0, 0) if direction is None else (num_points, num_batches)),
            means=np.zeros((num_points, blocks, size), np.float32),
        )
        adapter.model.eval()
        for point in range(num_points):
            adapter.write(points[point])
            before: torch.Tensor | None = None
            for batch in range(num_batches):
                facts.losses[point, batch] = self._backward([encoded[row] for row in rows[batch]])
                # sums of tens of thousands of squares: single precision would lose what differences are made of
                found = adapter.gradient.double()
                facts.norms[point, batch] = float(found @ found)
                if direction is not None:
                    facts.slopes[point, batch] = float(found.cpu().numpy() @ direction)
                if batch % 2 and before is not None:
                    facts.products[point, batch // 2] = float(before @ found)
                before = found
                facts.means[point, batch * blocks // num_batches] += (found * blocks / num_batches).cpu().numpy()
                if progress is not None:
                    progress((point * num_batches + batch + 1) / (num_points * num_batches))
                if should_stop is not None and should_stop():
                    raise DeviceError(f"{node} was stopped while it measured gradients")
        return facts

    def states(self, rows: Sequence[Encoded], *, progress: Callable[[float], None] | None = None) -> np.ndarray:
        """What the base model makes of texts, before any fine-tuning.

        Args:
            rows: encoded texts.
            progress: called after each batch with the fraction done.

        Returns:
            last hidden state, averaged over the tokens of each text, shape [num_rows, hidden] float32.
        """
        trainer = self.trainer
        trainer._adapter.model.eval()
        trainer._adapter.write(trainer.initial)
        backbone = trainer._adapter.model.get_base_model().base_model
        # rows of like length together, so that little is padded
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        pooled: dict[int, np.ndarray] = {}
        with torch.no_grad():
            for first in range(0, len(rows), _STATE_BATCH):
                picked = order[first : first + _STATE_BATCH]
                batch = collate([rows[index] for index in picked], pad=trainer._pad, loss_on="all")
                mask = torch.from_numpy(batch.attention_mask).to(trainer._device)
                ids = torch.from_numpy(batch.input_ids).to(trainer._device)
                # [num_rows, length, hidden]
                last = backbone(input_ids=ids, attention_mask=mask).last_hidden_state.double()
                mean = (last * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
                pooled.update(zip(picked, mean.float().cpu().numpy(), strict=True))
                if progress is not None:
                    progress(min(1.0, (first + _STATE_BATCH) / len(rows)))
        return np.stack([pooled[index] for index in range(len(rows))])

    def own_rows(self, node: str, count: int, rng: np.random.Generator) -> list[Encoded]:
        """Rows of a node, at most `count`, drawn without repetition."""
        encoded = self._rows_of(node)
        return [encoded[row] for row in rng.permutation(len(encoded))[:count]]

    def pretraining_rows(self, spec: DataSpec | None, count: int, rng: np.random.Generator) -> list[Encoded]:
        """Pieces of the text that the base model was trained on, from anywhere in it.

        Each piece has as many tokens as some row of the fine-tuning data: an average over few tokens scatters more, and
        what is compared should be the text, not its length.

        Args:
            spec: a data set of that text; None is the built-in text.
            count: pieces.
            rng: draws places and lengths.

        Raises:
            ConfigError: there is no such text.
        """
        trainer = self.trainer
        texts = self._pretraining_texts(spec)
        sizes = np.array([len(text) for text in texts], np.float64)
        share = trainer._data.train
        lengths = [
            max(_SHORTEST, len(trainer._encoder.encode(share[index])))
            for index in rng.integers(len(share), size=min(count, 256))
        ]
        bos = trainer._encoder.tokenizer.bos_token_id
        begin = [] if bos is None else [bos]
        rows = []
        for number, document in enumerate(rng.choice(len(texts), size=count, p=sizes / sizes.sum())):
            length = lengths[number % len(lengths)]
            ids = self._piece(texts[document], length - len(begin), rng)
            rows.append(Encoded(prompt=np.asarray(begin, np.int64), response=np.asarray(ids, np.int64)))
        return rows

    def _piece(self, text: str, num_tokens: int, rng: np.random.Generator) -> list[int]:
        """So many tokens from a place in the text, from its beginning where it is short."""
        # more characters than so many tokens can need, less than a whole book
        most = 16 * num_tokens
        start = int(rng.integers(max(1, len(text) - 4 * num_tokens)))
        word = text.find(" ", start) if start else 0
        return self.trainer._encoder.ids(text[max(word, 0) :][:most])[:num_tokens]

    def _pretraining_texts(self, spec: DataSpec | None) -> list[str]:
        base = self.trainer.job.model.base
        if spec is None:
            if not base.startswith("builtin:"):
                raise ConfigError(
                    f"what {base} was trained on is not known here",
                    key="pretraining",
                    remedy="name a data set of that text, or of a sample of it: source, template and fields",
                )
            return [text for text in corpus.pretraining()[0] if text]
        train, _ = data.read(spec)
        examples = [TEMPLATES[spec.template](row) for row in train]
        texts = [text for example in examples if (text := example.prompt + example.cue + example.response)]
        if not texts:
            raise ConfigError("the pre-training text is empty", file=spec.source, key="pretraining.source")
        return texts

    def _rows_of(self, node: str) -> list[Encoded]:
        trainer = self.trainer
        if node not in trainer._encoded:
            share = trainer._data.shares[trainer._index(node)]
            trainer._encoded[node] = trainer._encoder.encode_all([trainer._data.train[index] for index in share])
        return trainer._encoded[node]

    def _backward(self, rows: Sequence[Encoded]) -> float:
        """Gradient of the mean loss over the rows' target tokens; returns that loss."""
        job, pad = self.trainer.job.training, self.trainer._pad
        batches = [
            collate(rows[first : first + job.batch_size], pad=pad, loss_on=job.loss_on)
            for first in range(0, len(rows), job.batch_size)
        ]
        return self.trainer._accumulate(batches)

    def _check(
        self, points: np.ndarray, rows: np.ndarray, blocks: int, direction: np.ndarray | None, num_rows: int
    ) -> None:
        size = self.trainer.layout.size
        if points.ndim != 2 or points.shape[1] != size or len(points) == 0:
            raise ProtocolError(f"adapters of shape {points.shape} came; [num_points, {size}] was expected")
        if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind != "i":
            raise ProtocolError(f"row numbers of shape {rows.shape} came; [num_batches, batch_size] was expected")
        if rows.min() < 0 or rows.max() >= num_rows:
            raise ProtocolError(f"rows {rows.min()} to {rows.max()} were asked for; the node has {num_rows}")
        if len(rows) % blocks:
            raise ProtocolError(f"{len(rows)} batches do not make {blocks} blocks of equal size")
        if direction is not None and direction.shape != (size,):
            raise ProtocolError(f"a direction of shape {direction.shape} came; [{size}] was expected")
