"""What sparsifying an update costs beside training it, and what it loses: SOFT against singular value decompositions.

    .venv/bin/python -m benchmarks.sparsification [--keep 0.25 0.5] [--quick]

Two models: `builtin:tiny`, and a Llama of random weights from a configuration (hidden 512, six layers). Adapters have
rank 8 on all seven kinds of linear layers. A training step is that of `nodes.trainer`, four rows of 128 tokens; all
times are processor time of one thread, medians.

- penalty: SOFT's gradient of the orthogonality penalty, in every step;
- sparsify: what a round adds to it: importance, choice of pairs, encoding in float16 and error feedback, as
  `nodes.uplink` does it. The same with all values is what any method pays; the difference is SOFT's;
- QR-core SVD: a decomposition of every module's change that never forms it, and encoding of its largest triples;
- full SVD: of every module's change itself; one module of each shape is timed and counts for all like it.

Shares are of one step, though all but the penalty occur once a round of many. Then, for an update of the built-in model
in 10 steps (trained with the penalty and without; random weights have no spectra that mean anything), the energy of the
change that is lost at equal bits, and its ratio to what the largest singular triples of all modules lose (Eckart and
Young; a triple is as long as a pair): rank pairs, rows and columns chosen apart, and single values by FedSRD's score,
whose indices count. Nothing of so low a rank loses less than the triples; single values, whose change has no low rank,
may.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nodes.local_terms import Orthogonality
from nodes.trainer import Trainer
from nodes.uplink import Uplink
from testbed.core.orders import Payload
from testbed.core.specs import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec
from testbed.lora.covariance import product_energy
from testbed.lora.refactor import product_svd
from testbed.lora.sparse_baselines import cross_scores, largest_values, separate_norms, values_bit
from testbed.lora.sparse_orthogonal import RankPairs, keep_best, update_energies
from testbed.phy import payload as coding

NODE, STEPS, WEIGHT, VALUE_BIT = "node-00", 10, 0.1, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_llama(folder: Path) -> str:
    """A Llama of some 20 million parameters with random weights and the built-in model's tokenizer; its folder."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from nodes.model import BUILTIN

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(BUILTIN["tiny"]), local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trainer_of(base: str) -> Trainer:
    """Four rows of 128 tokens a step, rank 8 everywhere."""
    return Trainer(
        JobSpec(
            seed=0,
            nodes=(NODE,),
            model=ModelSpec(base=base),
            lora=LoraSpec(rank=8, alpha=16.0, targets=TARGETS),
            data=DataSpec(source="builtin:docstrings", template="text", max_train=400, max_test=8),
            training=TrainingSpec(
                optimizer="adamw", learning_rate=3e-3, local_steps=STEPS, batch_size=4, sequence_length=128,
                loss_on="all",
            ),
        ),
        device="cpu",
    )  # fmt: skip


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return 1e3 * statistics.median(times)


@dataclass(frozen=True)
class Update:
    """What training changed in the second round, when both factors move.

    Attributes:
        pairs: of the layout.
        before, change: adapter and what was added to it, shape [layout.size].
    """

    pairs: RankPairs
    before: np.ndarray
    change: np.ndarray

    @classmethod
    def of(cls, trainer: Trainer, weight: float, steps: int = STEPS) -> Update:
        """Two rounds of so many steps with a penalty of that weight."""
        before = trainer.train(NODE, 1, trainer.initial, orthogonality=weight, local_steps=steps).vector
        after = trainer.train(NODE, 2, before, orthogonality=weight, local_steps=steps).vector
        return cls(RankPairs.of(trainer.layout), before, after - before)

    def products(self, sent: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every module's change of B A as two thin matrices, [out, 2 rank] and [2 rank, in].

        Args:
            sent: shape [layout.size]; what of the change is missing if this is sent, instead of the change.
        """
        ends = self.before + self.change
        begins = self.before if sent is None else self.before + sent
        for (down, up), (new_down, new_up) in zip(self.pairs.factors(begins), self.pairs.factors(ends), strict=True):
            left = np.concatenate([new_up, -up], axis=1).astype(np.float64)
            yield left, np.concatenate([new_down, down]).astype(np.float64)

    def energy(self, sent: np.ndarray | None = None) -> float:
        """Squared norm of the change, or of what is missing of it."""
        return sum(product_energy(left, right) for left, right in self.products(sent))


def print_costs(name: str, trainer: Trainer, keep: float, repeats: int) -> None:
    """Milliseconds of everything, and as shares of a step."""
    update, layout = Update.of(trainer, WEIGHT, 2), trainer.layout
    step = milliseconds(lambda: trainer.train(NODE, 1, trainer.initial, local_steps=2), repeats) / 2
    flat, gradient = torch.from_numpy(update.before.copy()), torch.zeros(layout.size)
    penalty = Orthogonality.of(layout, WEIGHT)
    bent = milliseconds(lambda: penalty.add_gradient(flat, gradient), 10 * repeats)
    sparse = _encoding(update, Payload("float16", keep, error_feedback=True, choice="pairs"), 5 * repeats)
    whole = _encoding(update, Payload("float16"), 5 * repeats)
    core = milliseconds(lambda: _core_encoded(update, keep), repeats)
    full = _full_svd(update)
    size = sum(parameter.numel() for parameter in trainer._adapter.model.parameters())
    print(
        f"\n{name}: {size / 1e6:.1f} million parameters, {layout.size:,} adapter values, {update.pairs.num_pairs} "
        f"pairs, keep {keep:g}"
    )
    print(f"{'':44}{'ms':>10}{'of a step':>12}")
    print(f"{'training step':44}{step:10.2f}{1:12.2%}")
    for label, cost in (
        ("penalty's gradient, every step", bent),
        ("sparsify: choose, encode, feed back, a round", sparse),
        ("encode all values, a round", whole),
        ("what SOFT adds to that", sparse - whole),
        (f"SOFT, penalty and a {STEPS}th of sparsify", bent + sparse / STEPS),
        ("SOFT, penalty and all of sparsify", bent + sparse),
        ("QR-core SVD and encoding, a round", core),
        ("full SVD, a round", full),
    ):
        print(f"{label:44}{cost:10.3f}{cost / step:12.2%}")


def _encoding(update: Update, kind: Payload, repeats: int) -> float:
    uplink, count = Uplink(), 0

    def once() -> None:
        nonlocal count
        count += 1
        uplink.residual = None  # each round's feedback starts alike
        uplink.trained(update.change, update.before, update.pairs.layout)
        uplink.encoded(update.change, kind, count)

    return milliseconds(once, repeats)


def _core_encoded(update: Update, keep: float) -> bytes:
    """The largest triples of every module within the budget, as bytes."""
    found = [product_svd(left, right) for left, right in update.products()]
    parts = []
    squares, sizes = _triples(found)
    kept = keep_best(squares, sizes, keep * float(update.pairs.num_values.sum()))
    first = 0
    for left, strength, right in found:
        chosen = kept[first : first + len(strength)]
        root = np.sqrt(strength[chosen])
        parts += [(left[:, chosen] * root).ravel(), (root[:, None] * right[chosen]).ravel()]
        first += len(strength)
    return coding.encode(np.concatenate(parts).astype(np.float32), Payload("float16"))


def _triples(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values of all modules, and the values that each triple takes."""
    squares = np.concatenate([strength**2 for _, strength, _ in found])
    sizes = np.concatenate([np.full(len(s), left.shape[0] + right.shape[1]) for left, s, right in found])
    return squares, sizes


def _full_svd(update: Update) -> float:
    shapes = Counter((left.shape[0], right.shape[1]) for left, right in update.products())
    total = 0.0
    for left, right in update.products():
        shape = (left.shape[0], right.shape[1])
        if shape in shapes:
            product = left @ right
            begin = time.process_time()
            np.linalg.svd(product, full_matrices=False)
            total += shapes.pop(shape) * (time.process_time() - begin)
    return 1e3 * total


def print_losses(name: str, trainer: Trainer, keeps: list[float]) -> None:
    """Energy lost at equal bits, as a share of the change and over that of the largest triples."""
    print(f"\n{name}: share of the change's energy that is lost at equal bits (ratio to triples)")
    print(f"{'penalty':>8}{'keep':>7}{'triples':>9}{'rank pairs':>19}{'norms apart':>19}{'FedSRD scores':>19}")
    for weight in (WEIGHT, 0.0):
        update = Update.of(trainer, weight)
        pairs, total = update.pairs, update.energy()
        squares, sizes = _triples([product_svd(left, right) for left, right in update.products()])
        energies = update_energies(pairs, update.before, update.change)
        scores = cross_scores(pairs, update.before, update.change)
        for keep in keeps:
            budget = keep * float(pairs.num_values.sum())
            kept = keep_best(energies, pairs.num_values, budget)
            sent_values = int(pairs.num_values[kept].sum())
            least = float(squares[~keep_best(squares, sizes, sent_values)].sum()) / total
            num = _values_for(sent_values * VALUE_BIT + pairs.num_pairs, len(scores))
            masks = (
                pairs.mask(kept),
                separate_norms(pairs, update.change, keep),
                largest_values(scores, num),
            )
            lost = [update.energy(np.where(mask, update.change, np.float32(0))) / total for mask in masks]
            shown = "".join(f"{f'{one:.4f} ({one / max(least, 1e-12):.2f})':>19}" for one in lost)
            print(f"{weight:8g}{keep:7g}{least:9.4f}{shown}")


def _values_for(budget_bit: float, size: int) -> int:
    """Most single values, with their places, within a budget."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if values_bit(middle, size, VALUE_BIT) <= budget_bit:
            low = middle
        else:
            high = middle - 1
    return low


def main() -> int:
    """Print costs and losses of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.125, 0.25, 0.5], help="shares of the values")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the built-in model, few repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 3 if options.quick else options.repeats
    middle = sorted(options.keep)[len(options.keep) // 2]
    with tempfile.TemporaryDirectory(prefix="sparsification-") as folder:
        models = {"builtin:tiny": "builtin:tiny"}
        if not options.quick:
            models["random Llama"] = random_llama(Path(folder))
        for name, base in models.items():
            trainer = trainer_of(base)
            print_costs(name, trainer, middle, repeats)
            if base.startswith("builtin:"):
                print_losses(name, trainer, options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
