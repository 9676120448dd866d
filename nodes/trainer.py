"""Local fine-tuning and evaluation: one base model, one flat adapter, any number of nodes.

Rows of a round: the node's rows, in the order of consecutive permutations that
`numpy.random.default_rng([seed, node index, round index])` draws over the node's ascending row numbers; a batch takes
the next `batch_size` of that endless sequence, one optimiser step the next `gradient_accumulation` batches. A step's
loss is the mean over all its target tokens, so accumulation equals one large batch. The optimiser starts afresh every
round, and dropout is seeded by the same three numbers: a round depends on nothing but its arguments and on what was
folded into the base. Pruning looks at the first batches of a permutation of its own, the same in every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from nodes import data
from nodes.adapters import Factors, FlatAdapter, attach
from nodes.aligner import Aligner
from nodes.bottleneck import extend
from nodes.folding import Folding
from nodes.likelihood import EvalSums, Likelihood
from nodes.local_terms import LocalTerms
from nodes.model import load_base
from nodes.pruning import Pruner, PruningFacts
from nodes.tokens import Batch, Encoded, Encoder, collate
from testbed.core.adapter import Layout
from testbed.core.errors import ConfigError, ProtocolError
from testbed.core.orders import WHOLE, Part, Pruning, Tail
from testbed.core.specs import JobSpec
from testbed.lora.refactor import Stack

__all__ = ["EvalSums", "TrainOutcome", "Trainer"]

_IMPORTANCE_BATCHES = 4
_IMPORTANCE_DRAW = 1


@dataclass(frozen=True)
class TrainOutcome:
    """What a round of local training gave.

    Attributes:
        vector: flat adapter after training, shape [layout.size] float32.
        loss_first: loss of the first step, nats a token, before any change.
        loss_last: loss of the last step.
        loss_mean: mean over the steps.
        num_samples: rows seen, repetitions counted.
        num_tokens: tokens seen, padding not counted.
        steps: optimiser steps taken.
        step_size: of plain gradient descent; 0 where the optimiser scales or remembers gradients.
        pruning: what was left out of the base.
    """

    vector: np.ndarray
    loss_first: float
    loss_last: float
    loss_mean: float
    num_samples: int
    num_tokens: int
    steps: int
    step_size: float
    pruning: PruningFacts = field(default_factory=PruningFacts)


class Trainer:
    """Trains and evaluates the adapters of all nodes of this process, one at a time.

    Args:
        job: model, adapter, data and training of the experiment.
        device: where the model lives; the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: model, data or adapter cannot be made from the job.
    """

    def __init__(self, job: JobSpec, *, device: str | None = None) -> None:
        self.job = job
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._data = data.load(job.data, len(job.nodes), job.seed)
        if job.training.task == "classification" and not self._data.test[0].label_words:
            raise ConfigError(
                f"template {job.data.template!r} has no label words to classify by",
                key="training.task",
                remedy='use task = "language", or a template with labels',
            )
        base, tokenizer = load_base(job.model, self._device)
        self._pad = int(tokenizer.pad_token_id)
        self._encoder = Encoder(tokenizer, job.training.sequence_length)
        self._adapter: FlatAdapter = attach(base.to(self._device), job.lora, job.seed)
        if job.lora.bottleneck:
            self._adapter = extend(self._adapter, width=job.lora.bottleneck, seed=job.seed)
        self._likelihood = Likelihood.of(self._adapter.model, pad=self._pad, loss_on=job.training.loss_on)
        self._folding = Folding(self._adapter, job.lora.alpha / job.lora.rank)
        self._pruner: Pruner | None = None
        # preference data that cannot be used are told before anything is sent
        self._aligner = None if job.alignment is None else Aligner(job, self._adapter, tokenizer)
        self._tokenizer = tokenizer
        self._encoded: dict[str, list[Encoded]] = {}
        self._test: list[Encoded] | None = None

    @property
    def layout(self) -> Layout:
        """Order of the trained factors in the flat vector."""
        return self._adapter.layout

    @property
    def frozen_layout(self) -> Layout:
        """Order of the factors that are not trained: A under `freeze_a`, else empty."""
        return self._adapter.frozen_layout

    @property
    def initial(self) -> np.ndarray:
        """Flat adapter every node starts from, shape [layout.size] float32."""
        return self._adapter.initial

    @property
    def frozen(self) -> np.ndarray:
        """Values of the frozen factors, shape [frozen_layout.size] float32."""
        return self._adapter.frozen

    @property
    def peft_config(self) -> dict[str, Any]:
        """Content of `adapter_config.json`."""
        return {**self._adapter.peft_config, "base_model_name_or_path": self.job.model.base}

    @property
    def num_test_rows(self) -> int:
        """Rows of the held-out split."""
        return len(self._data.test)

    @property
    def aligner(self) -> Aligner:
        """Aligns instead of training. Raises ConfigError where the experiment has no `[alignment]`."""
        return self._aligner or Aligner(self.job, self._adapter, self._tokenizer)

    def num_samples(self, node: str) -> int:
        """Training rows the node holds."""
        return len(self._data.shares[self._index(node)])

    def num_steps(self, node: str, *, local_steps: int | None = None, batch_size: int | None = None) -> int:
        """Optimiser steps of a round: as asked, else as the job says; passes are rounded up."""
        training = self.job.training
        steps = local_steps or training.local_steps
        if steps is not None:
            return steps
        rows = (batch_size or training.batch_size) * training.gradient_accumulation
        return math.ceil((training.local_epochs or 1) * self.num_samples(node) / rows)

    def fold(self, folds: Sequence[Stack]) -> None:
        """Let the base weights have exactly these folds of `testbed.core.orders.Publish`; none by default.

        Raises:
            ConfigError: weights of 4 bits cannot take a fold.
        """
        if self._folding.bring(folds) and self._pruner is not None:
            self._pruner.forget()

    def prepare(self, node: str, pruning: Pruning) -> None:
        """Find what a node leaves out at a ratio, and build the smaller model, so that `train` only trains.

        Raises:
            ConfigError: the model cannot be pruned.
        """
        if pruning.kind == "structured":
            self._pruning().smaller(node, pruning)
        else:
            self._pruning().masks(node, pruning)

    def train(
        self,
        node: str,
        round_index: int,
        start: np.ndarray,
        *,
        local_steps: int | None = None,
        batch_size: int | None = None,
        proximal: float = 0.0,
        drift: np.ndarray | None = None,
        factors: Factors = "both",
        pruning: Pruning | None = None,
        ranks: int | None = None,
        others: Literal["frozen", "absent"] = "frozen",
        sketch: tuple[int, ...] | None = None,
        tail: Tail | None = None,
        orthogonality: float = 0.0,
        part: Part = WHOLE,
        pulled: Part = WHOLE,
        published: np.ndarray | None = None,
        progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainOutcome:
        """Fine-tune the adapter on the node's rows. Losses are those of the data, without what a scheme adds to it.

        Args:
            node: whose rows.
            round_index: seeds the order of the rows and dropout.
            start: flat adapter to begin with, shape [layout.size]; left as it is.
            local_steps: optimiser steps; those of the job by default.
            batch_size: rows of a forward pass; that of the job by default.
            proximal, drift, factors, ranks, others, sketch, tail, orthogonality, part, pulled: as of
                `testbed.core.orders.Work`, carried out by `nodes.local_terms`.
            pruning: as of `testbed.core.orders.Work`, carried out by `nodes.pruning`.
            published: flat adapter that `proximal` pulls to, shape [layout.size]; `start` by default.
            progress: called after each step with the fraction done.
            should_stop: asked after each step; True ends the round early.

        Raises:
            ConfigError: the loss is not finite, no factor is trained, or the model cannot be pruned.
            ProtocolError: unknown node, or a vector of another length.
        """
        seeds = [self.job.seed, self._index(node), round_index]
        if start.shape != (self.layout.size,):
            self.layout.unpack(start)  # raises the error that names both sizes
        if drift is not None:
            self.layout.unpack(drift)
        net = _Net(self._adapter, self._likelihood)
        with ExitStack() as stack:
            facts = PruningFacts()
            if pruning is not None and pruning.kind == "unstructured":
                facts = stack.enter_context(self._pruning().masked(node, pruning))
            elif pruning is not None and (smaller := self._pruning().smaller(node, pruning)) is not None:
                net, facts = _Net(smaller.adapter, smaller.likelihood, smaller.places), smaller.facts
            steps = self.num_steps(node, local_steps=local_steps, batch_size=batch_size)
            net.adapter.write(net.gathered(start))
            beyond = net.adapter.beyond(ranks) if others == "absent" else None
            if sketch is not None:
                beyond = stack.enter_context(net.adapter.sketched(sketch))
                part = replace(part, columns=sketch)
            if beyond is not None:
                net.adapter.values.masked_fill_(beyond, 0.0)
            resting = stack.enter_context(net.adapter.training(factors, ranks, part))
            terms = LocalTerms.of(
                net.adapter,
                proximal=proximal,
                drift=None if drift is None else net.gathered(drift),
                resting=resting,
                max_norm=self.job.training.max_grad_norm,
                orthogonality=orthogonality,
                tail=tail,
                pulled=pulled,
                published=None if published is None else net.gathered(published),
            )
            batches = self._batches(node, seeds, batch_size or self.job.training.batch_size)
            done = self._steps(net, terms, seeds, steps, batches, progress, should_stop)
        return replace(done, vector=net.scattered(start, beyond), pruning=facts)

    def _steps(
        self,
        net: _Net,
        terms: LocalTerms,
        seeds: Sequence[int],
        steps: int,
        batches: Iterator[Batch],
        progress: Callable[[float], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> TrainOutcome:
        """The steps of a round, from what the adapter holds; the outcome is without its vector."""
        adapter, training = net.adapter, self.job.training
        adapter.model.train()
        flat = torch.nn.Parameter(adapter.values)  # shares its memory
        flat.grad = adapter.gradient
        optimizer = self._optimizer(flat)
        losses: list[float] = []
        num_samples = num_tokens = 0
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]) >> 1)
            for step in range(steps):
                group = [next(batches) for _ in range(training.gradient_accumulation)]
                loss = net.accumulate(group)
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"the training loss of {self.job.nodes[seeds[1]]} in round {seeds[2]} is {loss} "
                        f"at step {step + 1}",
                        key="training.learning_rate",
                        remedy="lower the learning rate, or the precoder noise that reaches the adapter",
                    )
                terms.bend(flat)
                optimizer.step()
                terms.rest(flat)
                losses.append(loss)
                num_samples += sum(len(batch.input_ids) for batch in group)
                num_tokens += sum(batch.num_tokens for batch in group)
                if progress is not None:
                    progress((step + 1) / steps)
                if should_stop is not None and should_stop():
                    break
        adapter.model.eval()
        return TrainOutcome(
            vector=np.zeros(0, np.float32),
            loss_first=losses[0],
            loss_last=losses[-1],
            loss_mean=float(np.mean(losses)),
            num_samples=num_samples,
            num_tokens=num_tokens,
            steps=len(losses),
            step_size=training.learning_rate if training.optimizer == "sgd" and training.momentum == 0 else 0.0,
        )

    def evaluate(
        self,
        vector: np.ndarray,
        *,
        shard: int = 0,
        num_shards: int = 1,
        node: str | None = None,
        batch_size: int = 32,
    ) -> EvalSums:
        """Loss on every num_shards-th held-out row from row `shard` on, and accuracy where the task is classification.

        Args:
            vector: flat adapter, shape [layout.size].
            shard: which part of the rows, 0 .. num_shards-1.
            num_shards: number of parts.
            node: its own held-out rows instead, which are dealt as the training rows are.
            batch_size: rows of one forward pass.
        """
        self._adapter.write(vector)
        if self._test is None:
            self._test = self._encoder.encode_all(self._data.test)
        # rows of like length together, so that little is padded
        test, own = self._test, None if node is None else self._data.test_shares[self._index(node)]
        rows = sorted(test[shard::num_shards] if own is None else [test[index] for index in own], key=len)
        classify = self.job.training.task == "classification"
        total = EvalSums(0.0, 0, 0 if classify else None, 0)
        score = self._likelihood.classify if classify else self._likelihood.score
        with torch.no_grad():
            for first in range(0, len(rows), batch_size):
                total = total + score(rows[first : first + batch_size])
        return total

    def _index(self, node: str) -> int:
        if node not in self.job.nodes:
            raise ProtocolError(f"{node} is none of the experiment's nodes {', '.join(self.job.nodes)}")
        return self.job.nodes.index(node)

    def _batches(self, node: str, seeds: Sequence[int], batch_size: int) -> Iterator[Batch]:
        if node not in self._encoded:
            share = self._data.shares[self._index(node)]
            self._encoded[node] = self._encoder.encode_all([self._data.train[index] for index in share])
        rows = self._encoded[node]
        rng = np.random.default_rng(seeds)
        waiting: list[int] = []
        while True:
            while len(waiting) < batch_size:
                waiting.extend(rng.permutation(len(rows)).tolist())
            picked, waiting = waiting[:batch_size], waiting[batch_size:]
            yield collate([rows[index] for index in picked], pad=self._pad, loss_on=self.job.training.loss_on)

    def _optimizer(self, flat: torch.nn.Parameter) -> torch.optim.Optimizer:
        training = self.job.training
        if training.optimizer == "sgd":
            return torch.optim.SGD(
                [flat], training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
            )
        return torch.optim.AdamW([flat], training.learning_rate, weight_decay=training.weight_decay)

    def _accumulate(self, batches: Sequence[Batch]) -> float:
        """Gradient of the whole model's mean loss over all target tokens of the batches; returns that loss."""
        return _Net(self._adapter, self._likelihood).accumulate(batches)

    def _pruning(self) -> Pruner:
        if self.job.lora.bottleneck:
            raise ConfigError(
                "a model with bottleneck adapters cannot be pruned",
                key="lora.bottleneck",
                remedy="set bottleneck = 0, or use a scheme that does not prune",
            )
        if self._pruner is None:
            self._pruner = Pruner(
                self._adapter, self._likelihood, self.job.lora, self.job.seed, self._importance_batches
            )
        return self._pruner

    def _importance_batches(self, node: str) -> list[Batch]:
        """A few of the node's batches, the same whatever the round."""
        seeds = [self.job.seed, self._index(node), 0, _IMPORTANCE_DRAW]
        batches = self._batches(node, seeds, self.job.training.batch_size)
        return [next(batches) for _ in range(_IMPORTANCE_BATCHES)]


@dataclass(frozen=True)
class _Net:
    """What is trained: the whole model, or a smaller one whose values lie at `places` of the whole adapter."""

    adapter: FlatAdapter
    likelihood: Likelihood
    places: np.ndarray | None = None

    def gathered(self, vector: np.ndarray) -> np.ndarray:
        """The values of a whole vector that this net has."""
        return vector if self.places is None else vector[self.places]

    def scattered(self, start: np.ndarray, beyond: torch.Tensor | None) -> np.ndarray:
        """The whole vector after training; values that this net has not, or that were absent, as at the start."""
        own = self.adapter.read()
        if beyond is not None:
            absent = beyond.cpu().numpy()
            own[absent] = self.gathered(start)[absent]
        if self.places is None:
            return own
        vector = np.array(start, np.float32)
        vector[self.places] = own
        return vector

    def accumulate(self, batches: Sequence[Batch]) -> float:
        """Gradient of the mean loss over all target tokens of the batches; returns that loss."""
        self.adapter.gradient.zero_()
        num_targets = max(1, sum(batch.num_targets for batch in batches))
        total = 0.0
        for batch in batches:
            loss = self.likelihood.loss(batch) / num_targets
            loss.backward()
            total += float(loss.detach())
        return total
