"""The embedded default generator: a small Llama and its tokenizer, both made from a dataset's own fine-tuning texts.

It exists so that the whole pipeline runs without a download and without a GPU. The tokenizer is a byte-level BPE (any
Unicode text encodes, nothing is unknown); the model has rotary positions, RMS norms, SwiGLU and tied embeddings, its
weights are random and depend on the seed alone. What it learns is in sft.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from girl_recbole.llm import LanguageModel
from girl_recbole.prompts import Prompt

__all__ = ["build"]

_PAD, _EOS = "<pad>", "<eos>"


def build(
    texts: Iterable[str],
    prompt: Prompt,
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    seed: int,
) -> LanguageModel:
    """Train the tokenizer on ``texts`` and build a model of random weights over it. No BOS, no chat template.

    Head and tail of ``prompt``, the same in every sequence, become one token each: 60 tokens a sequence less to read.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, special_tokens=[_PAD, _EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(part, normalized=False) for part in (prompt.head, prompt.tail)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=_PAD,
        eos_token=_EOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=-(-width * 8 // 3 // 32) * 32,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=context, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    return LanguageModel(model, tokenizer, "tiny", "")
