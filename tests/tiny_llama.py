"""A random Llama of a few thousand parameters with its own tokenizer, made on the spot: as a model it knows nothing."""

from __future__ import annotations

from pathlib import Path

TEXT = [
    "Question: how many antennas does the receiver have? Answer: four, and one of them moves.",
    "Review: a good film. Sentiment: positive negative yes no",
    "### Instruction: ### Response: Topic: statistics signals matrices optimization arrays",
]


def make(folder: Path, *, layers: int = 2) -> Path:
    """Write model and tokenizer in Hugging Face format; the tokenizer has no pad token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    # matrices this small are slower on several threads
    torch.set_num_threads(1)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.2,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
