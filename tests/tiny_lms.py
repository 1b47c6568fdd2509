"""Tokenizers and language models of a few thousand parameters, made in memory."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

torch.set_num_threads(1)  # models of this size are fastest so, above all when tests run side by side

TEXTS = ["Human: A nurse plans care. Assistant: You watch wounds and pay bills.", "engineer builds bridges"] * 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_bpe(special: list[str], vocab_size: int) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return bpe


def plain_tokenizer(bos: bool = False, pad: str | None = "<pad>"):
    """Byte-level BPE with EOS and pad, without chat template; with ``bos`` it writes a BOS as Llama's does."""
    special = ["<eos>", *([pad] if pad else []), *(["<bos>"] if bos else [])]
    bpe = _byte_bpe(special, 300)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", bpe.token_to_id("<bos>"))]
        )
    names = {"eos_token": "<eos>"} | ({"pad_token": pad} if pad else {}) | ({"bos_token": "<bos>"} if bos else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def chat_tokenizer():
    """Like Qwen's: ChatML, EOS <|im_end|>, a spare pad token, and an added token that does not count as special."""
    bpe = _byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"], 300)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(
    tokenizer, kind: str = "llama", context: int = 512, seed: int = 0, width: int = 32, spread: float = 0.02
):
    """A random Llama, Qwen2 or (with learned positions) GPT-2 of two layers; ``spread``: deviation of its weights."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=width, n_layer=2, n_head=4, n_positions=context, initializer_range=spread,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    config, model = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    return model(
        config(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, initializer_range=spread,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
