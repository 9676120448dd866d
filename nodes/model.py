"""The frozen base model that all nodes of a process share, and its tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nodes.hub import hub_may_answer
from testbed.core.errors import ConfigError
from testbed.core.specs import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = {"tiny": Path(__file__).parent / "builtin" / "tiny"}
"""Models that ship with the testbed."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "nf4": torch.bfloat16}
"""Of what is not quantised, and of what is computed."""


def load_base(spec: ModelSpec, device: torch.device | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pre-trained model, frozen and in evaluation mode, and its tokenizer with a pad token.

    A hub name is looked for in the cache of this machine first, so that a node works without network.

    Args:
        spec: which base, and the number format of its weights.
        device: where weights of 4 bits are made and will stay; the CPU if None. Others are loaded to the CPU.

    Raises:
        ConfigError: the model is not there or cannot be read, or weights of 4 bits cannot be had here.
    """
    device = device or torch.device("cpu")
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = _folder(spec.base)
    if folder is not None:
        return _from_folder(str(folder), spec, device, offline=True)
    try:
        return _from_folder(spec.base, spec, device, offline=True)
    except ConfigError:
        if not hub_may_answer():
            raise ConfigError(
                f"{spec.base} is no folder here and not in this machine's cache, and the hub cannot be reached",
                key="model.base",
                remedy="fetch it on a machine with network, copy it here and give the folder; or use builtin:tiny",
            ) from None
        return _from_folder(spec.base, spec, device, offline=False)


def _folder(base: str) -> Path | None:
    """The local folder that `base` means; None for a hub name."""
    if base.startswith("builtin:"):
        name = base.removeprefix("builtin:")
        if name not in BUILTIN:
            raise ConfigError(
                f"unknown built-in model {base!r}",
                key="model.base",
                remedy=f"use {' or '.join(f'builtin:{known}' for known in BUILTIN)}",
            )
        return BUILTIN[name]
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                "this folder holds no model: config.json is missing",
                file=path,
                key="model.base",
                remedy="give a folder written by save_pretrained",
            )
        return path
    if path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        raise ConfigError(
            "this model folder does not exist on this machine",
            file=path.absolute(),
            key="model.base",
            remedy="give a folder in Hugging Face format, a hub name such as openlm-research/open_llama_3b_v2, "
            "or builtin:tiny",
        )
    return None


def _from_folder(
    name: str, spec: ModelSpec, device: torch.device, *, offline: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = _four_bits(device) if spec.dtype == "nf4" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=offline)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=_DTYPES[spec.dtype], local_files_only=offline, **quantised
        )
    except Exception as error:  # the libraries below raise a dozen unrelated kinds
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        four = ", or that this device can hold weights of 4 bits: dtype bfloat16 needs nothing" if quantised else ""
        raise ConfigError(
            f"{spec.base} cannot be loaded as a causal language model ({type(error).__name__}: {reason})",
            key="model.base",
            remedy="give a complete folder in Hugging Face format; for a hub name, check name and network, or fetch it "
            f"elsewhere with save_pretrained and give the folder{four}",
        ) from error
    if quantised:
        _keep_weights(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    model.requires_grad_(False)
    model.eval()
    return model, tokenizer


def _four_bits(device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` has to be told for 4-bit weights.

    Linear layers but the output layer hold W in blocks of 64 values of the 16 quantiles of a normal law (NF4), with one
    scale a block, the scales themselves in 8 bits; every product is computed in bfloat16.

    Raises:
        ConfigError: the library is not here, or does not run here.

    Reference: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
    arXiv 2305.14314.
    """
    remedy = 'pip install "testbed[quantized]" on every board, or take dtype = "bfloat16"'
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "weights of 4 bits need bitsandbytes, which is not installed here",
            key="model.dtype",
            remedy=remedy,
        )
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except Exception as error:  # a missing shared object, another processor, another torch
        raise ConfigError(
            f"weights of 4 bits need bitsandbytes, which does not run here ({type(error).__name__}: {error})",
            key="model.dtype",
            remedy=remedy,
        ) from error
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _keep_weights(model: torch.nn.Module) -> None:
    """Forbid the library to repack weights, with rounded scales, when a CPU first evaluates: scores and later rounds
    would then depend on what was computed before.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def linear_layers(model: torch.nn.Module) -> dict[str, bool]:
    """Path of every linear layer that LoRA can adapt -> whether its weight is stored [in, out], as GPT-2's `Conv1D` has
    it, instead of [out, in]; in the model's order, without the output layer.
    """
    from transformers.pytorch_utils import Conv1D

    return {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name != "lm_head"
    }


def linear_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Last names of the linear layers that LoRA can adapt, in the model's order; the output layer is none of them."""
    return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear_layers(model)))


def check_targets(model: torch.nn.Module, targets: tuple[str, ...]) -> bool:
    """Refuse targets that match no linear layer.

    Returns:
        whether the adapted weights are stored [in, out], what peft calls `fan_in_fan_out`.

    Raises:
        ConfigError: lists the names the model has; or the targets' weights are stored in both ways.
    """
    layers = linear_layers(model)
    found = {
        target: [turned for path, turned in layers.items() if f".{path}".endswith(f".{target}")] for target in targets
    }
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    name = f"the model {getattr(config, '_name_or_path', '')} (type {kind})".replace("  ", " ")
    unknown = [target for target, hits in found.items() if not hits]
    if unknown:
        raise ConfigError(
            f"{name} has no linear layer named {', '.join(map(repr, unknown))}",
            key="lora.targets",
            remedy=f"choose from {', '.join(linear_names(model)) or 'none: the model has no linear layers'}",
        )
    turned = {one for hits in found.values() for one in hits}
    if len(turned) > 1:
        raise ConfigError(
            f"the targets {', '.join(targets)} of {name} store their weights in both ways, [in, out] and [out, in], "
            "and one adapter takes only one",
            key="lora.targets",
            remedy="choose targets of one kind of layer",
        )
    return True in turned
