"""A random GPT-2 of a few thousand parameters with its own tokenizer, made on the spot: linear layers are Conv1D."""

from __future__ import annotations

from pathlib import Path

from tests import tiny_llama


def make(folder: Path, *, layers: int = 2) -> Path:
    """Write model and tokenizer in Hugging Face format; the tokenizer is that of `tests.tiny_llama`."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tiny_llama.make(folder)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=layers,
            n_head=4,
            n_positions=128,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.2,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
