"""Pre-training of the small base model that ships with the testbed.

A byte-level BPE tokenizer and a Llama of a few million parameters are trained from nothing on the documentation that
`nodes.corpus` reads. Seeds, step count and corpus fix the result up to the rounding of the machine's matrix kernels.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from nodes import corpus
from nodes.checkpoint import restore, save
from testbed.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
Report = Callable[[str], None]


class PretrainOptions(BaseModel):
    """Everything that decides the pre-trained model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="folder that receives the model, its tokenizer and pretraining.json")
    seed: int = Field(0, ge=0)
    steps: int = Field(3000, ge=1, description="optimiser steps")
    decay_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="last part of the steps: the learning rate falls to zero, sequences have full length",
    )
    threads: int = Field(1, ge=1, description="CPU threads")
    vocab_size: int = Field(4096, ge=300)
    hidden: int = Field(192, ge=16)
    layers: int = Field(6, ge=1)
    heads: int = Field(6, ge=1)
    kv_heads: int = Field(3, ge=1)
    mlp: int = Field(512, ge=16)
    context: int = Field(512, ge=16, description="tokens of one packed sequence, the longest input of the model")
    batch_size: int = Field(8, ge=1, description="packed sequences of one step")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="of the weight matrices; the rest takes AdamW")
    learning_rate: float = Field(4e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    warmup_steps: int = Field(100, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    autocast: bool = Field(True, description="matrix products in bfloat16")
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints and held-out measurements")
    max_documents: int | None = Field(None, ge=1, description="use only so many documents; for a quick trial")


def pretrain(options: PretrainOptions, report: Report = print) -> dict[str, Any]:
    """Train the base model, or go on where a stopped run left its checkpoint.

    Args:
        options: what decides the model. A folder that holds a checkpoint of other options is refused.
        report: called with one line of progress at a time.

    Returns:
        The content of `pretraining.json`.

    Raises:
        ConfigError: the folder holds a run with other options.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    _claim(options)
    train_texts, test_texts = corpus.pretraining()
    train_texts, test_texts = train_texts[: options.max_documents], test_texts[: options.max_documents]
    shifted_texts = [passage.text for passage in corpus.shifted()[1]][: options.max_documents]
    report(f"corpus: {len(train_texts)} documents, {sum(map(len, train_texts))} characters")

    tokenizer = _tokenizer(train_texts, options)
    documents = [np.asarray(ids, np.int32) for ids in _encode(tokenizer, train_texts)]
    num_corpus_tokens = sum(map(len, documents))
    report(f"tokenizer: {len(tokenizer)} words, {num_corpus_tokens} tokens in the corpus")

    model = _model(options, tokenizer)
    optimizers = _optimizers(model, options)
    state: dict[str, float] = {"step": 0, "steps": options.steps, "seconds": 0.0}
    restore(options.out, model, optimizers, state)
    if state["steps"] != options.steps and state["step"] > min(state["steps"], options.steps) * (
        1 - options.decay_share
    ):
        raise ConfigError(
            f"the learning rate of this run already falls for {state['steps']:.0f} steps",
            file=options.out,
            remedy="keep the number of steps, or choose another folder",
        )
    batches = _batches(documents, options, start=int(state["step"]))
    held_out = {"pretraining": test_texts[:400], "shifted": shifted_texts[:400]}

    losses: list[float] = []
    begun = time.perf_counter() - state["seconds"]
    for step in range(int(state["step"]), options.steps):
        losses.append(_step(model, optimizers, next(batches), step, options))
        if (step + 1) % 20 == 0:
            seconds = time.perf_counter() - begun
            report(f"step {step + 1}/{options.steps}  loss {np.mean(losses[-20:]):.3f}  {seconds:.0f} s")
        if (step + 1) % options.checkpoint_every == 0:
            state = {"step": step + 1, "steps": options.steps, "seconds": time.perf_counter() - begun}
            save(options.out, model, optimizers, state)
            report(f"step {step + 1} held-out perplexity {_perplexities(model, tokenizer, held_out)}")

    seconds = time.perf_counter() - begun
    facts = {
        "options": options.model_dump(mode="json", exclude={"out"}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "documents": len(train_texts),
        "characters": sum(map(len, train_texts)),
        "corpus_tokens": num_corpus_tokens,
        "trained_tokens": options.steps * options.batch_size * options.context,
        "seconds": round(seconds),
        "final_loss": float(np.mean(losses[-50:])) if losses else None,
        "corpus_sha256": corpus.digest(train_texts),
        "shifted_test_sha256": corpus.digest(shifted_texts),
        "versions": _versions(),
    }
    export(model, tokenizer, options.out)
    # measured on the float16 weights that ship
    reloaded = _exported(options.out)
    facts["held_out"] = _perplexities(reloaded, tokenizer, {"pretraining": test_texts, "shifted": shifted_texts})
    (options.out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    report(f"done: {facts['held_out']}")
    return facts


def _claim(options: PretrainOptions) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "options.json"
    mine = options.model_dump(mode="json", exclude={"out", "threads", "steps"})
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise ConfigError(
            "this folder holds a pre-training run with other options", file=options.out, remedy="choose another folder"
        )
    path.write_text(json.dumps(mine, indent=2) + "\n")


def _tokenizer(texts: Sequence[str], options: PretrainOptions) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    path = options.out / "tokenizer.json"
    if path.is_file():
        words = Tokenizer.from_file(str(path))
    else:
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                # deep indentation becomes one piece
                pre_tokenizers.Split(Regex(r"\n+ *"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        words.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=options.vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=options.context
    )
    tokenizer.save_pretrained(options.out)
    return tokenizer


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text between the begin and the end mark."""
    bos, eos = tokenizer.convert_tokens_to_ids([BOS, EOS])
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[bos, *item.ids, eos] for item in encoded]


def _model(options: PretrainOptions, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=options.mlp,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    # residual branches start small, as deep sums would otherwise grow with the depth
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data /= math.sqrt(2 * options.layers)
    return model


def _optimizers(model: LlamaForCausalLM, options: PretrainOptions) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    rest = torch.optim.AdamW(others, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    if options.optimizer == "adamw":
        return [
            torch.optim.AdamW(matrices, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay),
            rest,
        ]
    # its step has the root mean square of AdamW's, so that one learning rate serves both
    muon = torch.optim.Muon(
        matrices, lr=options.learning_rate, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, rest]


def _batches(documents: Sequence[np.ndarray], options: PretrainOptions, *, start: int) -> Iterator[torch.Tensor]:
    """Packed sequences of shape [batch_size, context] from step `start` on; each epoch shuffles and packs anew."""
    size = options.batch_size * options.context
    per_epoch = sum(map(len, documents)) // size
    if per_epoch == 0:
        raise ConfigError("the corpus is smaller than one batch", remedy="lower batch_size or context")
    epoch, first = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([options.seed, epoch])
        stream = np.concatenate([documents[index] for index in rng.permutation(len(documents))])
        sequences = stream[: per_epoch * size].reshape(-1, options.context)[
            rng.permutation(per_epoch * options.batch_size)
        ]
        for index in range(first, per_epoch):
            rows = sequences[index * options.batch_size : (index + 1) * options.batch_size]
            yield torch.from_numpy(rows.astype(np.int64))
        epoch, first = epoch + 1, 0


def _decay_start(options: PretrainOptions) -> int:
    return round(options.steps * (1 - options.decay_share))


def _rate(step: int, options: PretrainOptions) -> float:
    """Warm-up, a constant part, then a straight line down to zero.

    Nothing before the decay depends on the number of steps, so a run may be lengthened until then.
    """
    start = _decay_start(options)
    return min(1.0, (step + 1) / max(1, options.warmup_steps), (options.steps - step) / max(1, options.steps - start))


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, autocast: bool, reduction: str = "mean") -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


def _step(
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    ids: torch.Tensor,
    step: int,
    options: PretrainOptions,
) -> float:
    model.train()
    if step < _decay_start(options):
        # [batch_size, context] -> [2 batch_size, context / 2]: shorter attention while most is learnt
        ids = ids.reshape(2 * len(ids), -1)
    loss = _loss(model, ids, options.autocast)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _rate(step, options)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _perplexities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: dict[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Perplexity of a token and bits of a UTF-8 byte; documents are scored one by one, cut to the context."""
    model.eval()
    context = model.config.max_position_embeddings
    result = {}
    for name, items in texts.items():
        total, num_tokens, num_bytes = 0.0, 0, 0
        for ids in _encode(tokenizer, items):
            ids = ids[:context]
            with torch.no_grad():
                total += float(_loss(model, torch.tensor([ids]), False, "sum"))
            num_tokens += len(ids) - 1
            num_bytes += len(tokenizer.decode(ids, skip_special_tokens=True).encode())
        result[name] = {
            "perplexity": round(math.exp(total / num_tokens), 3),
            "bits_per_byte": round(total / math.log(2) / num_bytes, 4),
        }
    return result


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the folder that ships: float16 weights and the tokenizer. The model itself keeps its number format."""
    import copy

    copy.deepcopy(model).half().save_pretrained(out)
    # safetensors writes files that only their owner may read
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)


def _exported(out: Path) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name in (*corpus.SHIFTED_PACKAGES, *corpus.PRETRAINING_PACKAGES[1:]):
        try:
            versions[name] = version({"yaml": "pyyaml", "zmq": "pyzmq"}.get(name, name))
        except PackageNotFoundError:
            continue
    return versions
