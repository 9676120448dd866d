"""A small base that already knows a task in part, so that accuracy tells fine-tuning methods apart.

    .venv/bin/python -m benchmarks.prepared_base [DATA] --set sst2 --out FOLDER [--base new] [--check]

The bases that ship or lie in DATA/models are at chance on SST-2, QNLI and DBpedia, and stay there for as many rounds as
a small machine can afford: every method then has the same accuracy. Here a base is trained in full, centrally, on a
part of the training rows that no client ever sees, chosen by a seeded hash of the prompt; prompts and label words are
those of `nodes.trainer`. Then it is taken back on purpose: every matrix that LoRA can adapt goes part of the way from
its trained to its first value, W_0 + a (W - W_0), embeddings and norms stay, with a such that accuracy lies two thirds
of the way from chance to what full training reaches. So it is like a foundation model before it is tuned for a task:
it knows the words, and how to tell what they say is left to learn. (Stopping early instead leaves the words to learn,
which sit in embeddings that LoRA does not change: accuracy then hardly rises in as many steps as a run can afford.)

By default the base is new: a Llama of two layers and 0.2 million random weights, with a tokenizer made of those rows,
in which most words are one token. Per second of a small machine it learns these tasks far better than the pretrained
ones, whose vocabularies are stories' and source code's: reading words out of pieces of them takes most of the training.
`--base stories260K` or `--base builtin:tiny` start from those instead.

It is NOT a foundation model: what it knows it knows from rows of the same task and from no other text, and its full
training reaches what a small model can. Tables that use it must say so.

The course is measured on rows of that part that are set aside; the held-out split of the data chooses nothing. FOLDER
gets an ordinary Hugging Face model, `prepared.json` with the facts, and `data/train.jsonl`, `data/test.jsonl`, the rows
that are left for clients and the held-out split:

    testbed run soft-sst2 --set model.base=FOLDER --set data.source=FOLDER/data

`--check` tells whether LoRA on the clients' rows still raises accuracy (`benchmarks.lora_gain`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nodes import data
from nodes.likelihood import EvalSums, Likelihood
from nodes.model import load_base
from nodes.pretrain import PretrainOptions, _model, _tokenizer
from nodes.templates import TEMPLATES, Row
from nodes.tokens import Encoded, Encoder, collate
from testbed.core.errors import ConfigError
from testbed.core.specs import DataSpec, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ORDER_DRAW, _VALIDATION_DRAW = 11, 12
_GROUP = 16
"""Batches of rows of like length are cut out of so many batches of the random order."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers that LoRA adapts in the check."""


NEW = "new"
"""A base of random weights, instead of a pretrained one."""


@dataclass(frozen=True)
class Recipe:
    """How a base is prepared.

    Attributes:
        template: of the rows, one with label words.
        length: most tokens of a row; experiments take the same `training.sequence_length`.
        steps: of full training.
        batch_size: rows of a step.
        learning_rate: of AdamW after its warm-up.
        share: of the training rows, which clients never see.
        way: from chance to what full training reaches, to which the base is taken back.
        measure_every: steps between two measurements.
        num_validation: rows of the share that measure the course and are not trained on.
        vocab_size: of a new base's tokenizer.
        seed: of everything drawn.
    """

    template: str
    length: int
    steps: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    share: float = 0.6
    way: float = 2 / 3
    measure_every: int = 50
    num_validation: int = 500
    vocab_size: int = 2048
    seed: int = 0


RECIPES = {
    "sst2": Recipe("sst2", 48, 900, batch_size=32),
    "qnli": Recipe("qnli", 96, 1500, batch_size=32),
    "dbpedia14": Recipe("dbpedia14", 96, 500, batch_size=32),
}
"""Data sets of the shared folder, and what takes less than four minutes of a core on each."""


@dataclass(frozen=True)
class Prepared:
    """Facts of a prepared base, the content of `prepared.json`.

    Attributes:
        source, base: what it was made of.
        recipe: how.
        rows: training rows used, set aside for measuring, left for clients, and held out.
        chance: share of the commonest label among the rows set aside.
        full: accuracy full training reaches on them, best of its course.
        step: at which it reached that.
        kept: a, what is kept of the trained matrices.
        accuracy: on the rows set aside, of the base.
        held_out_before, held_out: accuracy on the held-out split before preparation and of the base.
        held_out_loss: nats a label-word token on the held-out split, of the base.
        course: step, loss and accuracy on the rows set aside, in full training.
        took_s: seconds it took.
    """

    source: str
    base: str
    recipe: dict[str, Any]
    rows: dict[str, int]
    chance: float
    full: float
    step: int
    kept: float
    accuracy: float
    held_out_before: float
    held_out: float
    held_out_loss: float
    course: list[tuple[int, float, float]]
    took_s: float


def divided(rows: Sequence[Row], template: str, share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows for preparation and rows for clients; a prompt that occurs twice falls on one side.

    Args:
        rows: training rows.
        template: that makes prompts of them.
        share: of the prompts that prepare, more or less.
        seed: of the hash.
    """
    ours: list[Row] = []
    theirs: list[Row] = []
    for row in rows:
        example = TEMPLATES[template](row)
        digest = hashlib.sha256(f"{seed}\n{example.prompt}".encode()).digest()
        (ours if int.from_bytes(digest[:8], "big") < share * 2**64 else theirs).append(row)
    return ours, theirs


def prepare(
    source: str | Path, base: str | Path, out: Path, recipe: Recipe, report: Callable[[str], None] = print
) -> Prepared:
    """Make a base and the clients' data.

    Args:
        source: as data.source of an experiment.
        base: as model.base, or "new".
        out: folder that receives them.
        recipe: how.
        report: gets lines of progress.

    Raises:
        ConfigError: data or base cannot be used, shares out of range, or full training does not leave chance.
    """
    for name, value in (("share", recipe.share), ("way", recipe.way)):
        if not 0 < value <= 1:
            raise ConfigError(
                f"{name} = {value:g} is no part of 1", key=name, remedy="give a number above 0, at most 1"
            )
    begun = time.perf_counter()
    torch.manual_seed(recipe.seed)
    train, test = data.read(DataSpec(source=str(source), template=recipe.template))
    ours, theirs = divided(train, recipe.template, recipe.share, recipe.seed)
    model, tokenizer = _new(ours, recipe) if base == NEW else load_base(ModelSpec(base=str(base)))
    encoded = encoded_rows(ours, Encoder(tokenizer, recipe.length), recipe.template)
    held_out = encoded_rows(test, Encoder(tokenizer, recipe.length), recipe.template)
    order = np.random.default_rng([recipe.seed, _VALIDATION_DRAW]).permutation(len(encoded))
    if len(encoded) < recipe.num_validation + recipe.batch_size or not theirs:
        raise ConfigError(
            f"{len(encoded)} of {len(train)} rows prepare, {recipe.num_validation} of them only measure",
            file=source,
            key="share",
            remedy="give more rows, or another share",
        )
    aside = [encoded[index] for index in order[: recipe.num_validation]]
    used = [encoded[index] for index in order[recipe.num_validation :]]
    likelihood = _likelihood(model, int(tokenizer.pad_token_id))
    before = score(likelihood, held_out)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    trained, course = _train(model, likelihood, used, aside, recipe, report)
    labels = [row.label for row in aside]
    chance = max(labels.count(label) for label in set(labels)) / len(labels)
    step, _, full = max(course, key=lambda one: one[2])
    if full < chance + 2 * math.sqrt(chance * (1 - chance) / len(aside)):
        raise ConfigError(
            f"full training reaches {full:.3f} of rows it has not seen, the commonest label alone {chance:.3f}",
            file=source,
            key="base",
            remedy="take a larger base, more steps or another learning rate",
        )
    kept, accuracy = _taken_back(model, likelihood, first, trained, aside, chance + recipe.way * (full - chance))
    after = score(likelihood, held_out)
    _write(out, model, tokenizer, theirs, test)
    facts = Prepared(
        source=str(source),
        base=str(base),
        recipe=asdict(recipe),
        rows={"prepare": len(used), "measure": len(aside), "clients": len(theirs), "held_out": len(test)},
        chance=chance,
        full=full,
        step=step,
        kept=kept,
        accuracy=accuracy,
        held_out_before=accuracy_of(before),
        held_out=accuracy_of(after),
        held_out_loss=after.loss_sum / after.num_tokens,
        course=course,
        took_s=round(time.perf_counter() - begun, 1),
    )
    (out / "prepared.json").write_text(json.dumps(asdict(facts), indent=2) + "\n")
    return facts


def score(likelihood: Likelihood, rows: Sequence[Encoded], batch_size: int = 64) -> EvalSums:
    """Loss and right answers over rows, as `nodes.trainer.Trainer.evaluate` counts them."""
    total = EvalSums(0.0, 0, 0, 0)
    ordered = sorted(rows, key=len)
    with torch.no_grad():
        for first in range(0, len(ordered), batch_size):
            total = total + likelihood.classify(ordered[first : first + batch_size])
    return total


# --- parts ------------------------------------------------------------------------------------------------------------


def _new(rows: Sequence[Row], recipe: Recipe) -> tuple[PreTrainedModel, Any]:
    """A Llama of random weights, and a tokenizer made of the rows."""
    examples = [TEMPLATES[recipe.template](row) for row in rows]
    texts = [example.prompt + example.cue + example.response for example in examples]
    with tempfile.TemporaryDirectory(prefix="prepared-") as folder:
        options = PretrainOptions(
            out=Path(folder),
            seed=recipe.seed,
            vocab_size=recipe.vocab_size,
            hidden=64,
            layers=2,
            heads=4,
            kv_heads=2,
            mlp=128,
            context=512,
        )
        tokenizer = _tokenizer(texts, options)
        model = _model(options, tokenizer)
    return model.requires_grad_(False).eval(), tokenizer


def encoded_rows(rows: Sequence[Row], encoder: Encoder, template: str) -> list[Encoded]:
    """Rows as tokens, with their label words. Raises ConfigError where the template has none."""
    encoded = encoder.encode_all([TEMPLATES[template](row) for row in rows])
    if not all(row.candidates for row in encoded):
        raise ConfigError(
            f"template {template!r} has no label words to classify by", key="template", remedy="take one with labels"
        )
    return encoded


def _likelihood(model: PreTrainedModel, pad: int) -> Likelihood:
    return Likelihood(model=model, pad=pad, loss_on="response", picks_logits=True, device=torch.device("cpu"))


def accuracy_of(sums: EvalSums) -> float:
    """Share of right answers."""
    return (sums.num_correct or 0) / sums.num_rows


def _train(
    model: PreTrainedModel,
    likelihood: Likelihood,
    rows: Sequence[Encoded],
    aside: Sequence[Encoded],
    recipe: Recipe,
    report: Callable[[str], None],
) -> tuple[dict[str, torch.Tensor], list[tuple[int, float, float]]]:
    """Full training; weights where accuracy was best, and step, loss and accuracy of each measurement."""
    model.requires_grad_(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    batches = endless_batches(rows, recipe.batch_size, recipe.seed)
    best: dict[str, torch.Tensor] = {}
    course: list[tuple[int, float, float]] = []
    warm_up = max(1, recipe.steps // 20)
    for step in range(1, recipe.steps + 1):
        # falls to a tenth, so that the end of the course is what full training reaches
        fall = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, step / warm_up) * fall
        descend(likelihood, next(batches), optimizer, parameters)
        optimizer.zero_grad(set_to_none=True)
        if step % recipe.measure_every == 0 or step == recipe.steps:
            found = score(likelihood, aside)
            if accuracy_of(found) > max((accuracy for _, _, accuracy in course), default=-1.0):
                best = {name: value.clone() for name, value in model.state_dict().items()}
            course.append((step, round(found.loss_sum / found.num_tokens, 4), accuracy_of(found)))
            report(f"step {step}/{recipe.steps}  loss {course[-1][1]:.4f}  accuracy {course[-1][2]:.3f}")
    model.requires_grad_(False)
    return best, course


def _taken_back(
    model: PreTrainedModel,
    likelihood: Likelihood,
    first: dict[str, torch.Tensor],
    trained: dict[str, torch.Tensor],
    aside: Sequence[Encoded],
    goal: float,
) -> tuple[float, float]:
    """Put the least part of the trained matrices into the model that reaches a goal; that part, and its accuracy."""
    adapted = {name for name in trained if any(f"{target}." in name for target in TARGETS)}

    def reached(kept: float) -> float:
        mixed = {
            name: torch.lerp(first[name], value, kept) if name in adapted else value for name, value in trained.items()
        }
        model.load_state_dict(mixed)
        return accuracy_of(score(likelihood, aside))

    # not bisection alone: accuracy need not rise everywhere
    coarse = next(step for step in range(11) if step == 10 or reached(step / 10) >= goal)
    fine = next(step for step in range(10 * coarse - 9, 10 * coarse + 1) if step >= 0 and reached(step / 100) >= goal)
    return fine / 100, reached(fine / 100)


def descend(
    likelihood: Likelihood,
    rows: Sequence[Encoded],
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
) -> None:
    """One step on a batch, its gradient's norm cut at 1."""
    batch = collate(rows, pad=likelihood.pad, loss_on="response")
    (likelihood.loss(batch) / batch.num_targets).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def endless_batches(rows: Sequence[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless random batches of rows of like length, so that little is padded; all rows once before any comes again."""
    rng = np.random.default_rng([seed, _ORDER_DRAW])
    while True:
        order = rng.permutation(len(rows))
        for first in range(0, len(rows), size * _GROUP):
            group = sorted(order[first : first + size * _GROUP], key=lambda index: len(rows[index]))
            starts = np.arange(0, len(group), size)
            for start in rng.permutation(starts):
                yield [rows[index] for index in group[start : start + size]]


def _write(out: Path, model: PreTrainedModel, tokenizer: Any, train: Sequence[Row], test: Sequence[Row]) -> None:
    (out / "data").mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    # safetensors writes files that only their owner may read
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    for name, rows in (("train", train), ("test", test)):
        lines = (json.dumps(dict(row.values), ensure_ascii=False) + "\n" for row in rows)
        (out / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    """Prepare a base, tell its facts, and whether LoRA still learns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("TESTBED_SHARED_DATA", "../shared/data"))
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--set", dest="name", choices=tuple(RECIPES), default="sst2")
    parser.add_argument("--out", type=Path, help="folder that receives the base; runs/bases/SET by default")
    parser.add_argument("--base", default=NEW, help="new, builtin:tiny, or a folder in DATA/models")
    for name in ("steps", "seed", "batch-size"):
        parser.add_argument(f"--{name}", type=int, help="instead of the recipe's")
    for name in ("learning-rate", "share", "way"):
        parser.add_argument(f"--{name}", type=float, help="instead of the recipe's")
    parser.add_argument("--check", action="store_true", help="train LoRA on the clients' rows, several learning rates")
    parser.add_argument("--check-rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--check-rows", type=int, default=900, help="held-out rows that score the check, at most")
    parser.add_argument("--quick", action="store_true", help="at most 600 steps")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about itself
    given = ("steps", "seed", "batch_size", "learning_rate", "share", "way")
    changes = {name: value for name in given if (value := getattr(options, name)) is not None}
    recipe = Recipe(**{**asdict(RECIPES[options.name]), **changes})
    if options.quick:
        recipe = replace(recipe, steps=min(recipe.steps, 600))
    known = options.base == NEW or options.base.startswith("builtin:")
    base = options.base if known else options.data / "models" / options.base
    out = options.out or Path("runs/bases") / options.name
    try:
        facts = prepare(options.data.resolve() / options.name, base, out, recipe, lambda line: print(line, flush=True))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{out}: held-out accuracy {facts.held_out_before:.3f} -> {facts.held_out:.3f} with {facts.kept:g} of the "
        f"trained matrices; chance {facts.chance:.3f}, full training {facts.full:.3f} after {facts.step} of "
        f"{recipe.steps} steps; rows {facts.rows}; {facts.took_s:.0f} s"
    )
    from benchmarks.lora_gain import lora_gain

    for rate in options.check_rates if options.check else ():
        gain = lora_gain(out, learning_rate=rate, most_held_out=options.check_rows)
        print(
            f"LoRA, learning rate {rate:g}: accuracy {' '.join(f'{one:.3f}' for one in gain.accuracy)}; "
            f"+{gain.gained} -{gain.lost} rows, p = {gain.p_value:.2g}; loss {gain.loss[0]:.3f} -> {gain.loss[-1]:.3f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
