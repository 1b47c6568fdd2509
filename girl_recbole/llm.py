"""Language models: load, adapt, score, sample. No other file loads an LLM.

Any causal language model of Hugging Face transformers, by name or by folder, with its own tokenizer; a folder may
also hold a LoRA adapter (``adapter_model.safetensors``), whose base model is then loaded first. Weights are
safetensors only, code from the hub is never run (no ``trust_remote_code``).

Shapes: B sequences, T tokens, V vocabulary.

    log p(v_t | v_<t)    :func:`token_log_probs`, (B, T-1) float32, position t-1 holds the log-probability of token t
    sampling             :func:`sample`: v_t = F^-1(u_t), F = the distribution function, over token ids in their order,
                         of softmax(logits / temperature) cut to the nucleus of mass top_p; u_t uniform in [0, 1)

The uniforms come from a counter-based generator (Philox) keyed by the caller, one stream a sequence, u_t its t-th
number (:func:`uniforms`). So a text depends on its prompt and its key, not on its batch, its place in it, or the
order of work, as far as the hardware adds up floats in the same order: on a CPU in float32 a change of the padding
moves logits by about 1e-6, which moves a token where u_t is that close to a step of F. Greedy decoding is temperature
0.

No text is blank: where a stop token comes up while the text so far has no character but white space, the token is drawn
again without the stop tokens, with the number at that place of the stream of ``key ^ 1``. All other texts are those
that would be drawn without this rule.

Padding is never trained or scored: labels are -100 by position, not by comparing ids with the pad token, and the pad
token is one that differs from EOS (taken from the tokenizer's spare tokens, else added).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import file_hash, text_hash

__all__ = [
    "DTYPES",
    "LanguageModel",
    "Sampled",
    "collate",
    "continuation_log_probs",
    "load",
    "load_tokenizer",
    "lora_config",
    "sample",
    "sample_key",
    "token_log_probs",
    "uniforms",
]

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IGNORED = -100  # the label that no loss counts


@dataclass
class LanguageModel:
    """A model with its tokenizer. ``name`` is what it was loaded from, ``fingerprint`` the hash of its weights."""

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a text: the tokenizer's EOS first, then those of the model's generation config."""
        more = self.model.generation_config.eos_token_id
        more = [more] if isinstance(more, int) else list(more or [])
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *more]))


# ----------------------------------------------------------------------------------------------------------- loading


def load(name: str, dtype: str = "fp32", device: str | None = None, merge: bool = False) -> LanguageModel:
    """Load a causal LM (or base model and LoRA adapter) by hub name or folder, for inference or further training.

    ``merge``: the adapter is added into the base's weights, and the model has none. An adapter whose base is itself an
    adapter (a generator that was aligned by LoRA after fine-tuning by LoRA) has that one merged.

    Raises ``ConfigError`` for an unknown dtype and for a name that is neither a folder nor found in the hub or its
    cache.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"lm_dtype: {dtype!r} is unknown; known: {', '.join(DTYPES)}.")
    folder = Path(name)
    if folder.is_dir() and not list(folder.glob("*config.json")):
        raise DataError(f"{name}: a folder without config.json or adapter_config.json; it holds no model.")
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.exists() else name
    if adapter.exists() and not Path(base).is_absolute() and (folder / base).is_dir():
        base = str(folder / base)  # relative to the adapter, so that both can move together
    tokenizer = _from_hub(transformers.AutoTokenizer, name)
    if (Path(base) / "adapter_config.json").exists() and base != name:
        under = load(base, dtype, device, merge=True)
        model, fingerprint = under.model, under.fingerprint
        ensure_pad_token(tokenizer, model)
    else:
        model = _from_hub(transformers.AutoModelForCausalLM, base, dtype=DTYPES[dtype], use_safetensors=True)
        ensure_pad_token(tokenizer, model)
        fingerprint = _fingerprint(base, model)
    if adapter.exists():
        import peft

        weights = folder / "adapter_model.safetensors"
        if not weights.exists():
            raise DataError(f"{name}: no adapter_model.safetensors; adapters in other formats are not loaded.")
        model = peft.PeftModel.from_pretrained(model, name, is_trainable=False)
        fingerprint = text_hash(fingerprint, file_hash(weights))
        if merge:
            model = model.merge_and_unload()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    return LanguageModel(model, tokenizer, name, fingerprint[:32])


def load_tokenizer(name: str) -> Any:
    """The tokenizer alone of a model that :func:`load` would load."""
    tokenizer = _from_hub(transformers.AutoTokenizer, name)
    ensure_pad_token(tokenizer)
    return tokenizer


def _from_hub(kind: Any, name: str, **kwargs: Any) -> Any:
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise DataError(f"{name}: cannot be loaded: {_first_line(error)}") from None
        raise ConfigError(
            f"lm_base: {name!r} is no folder here, and it is neither in the local Hugging Face cache nor can it be "
            f"fetched ({_first_line(error)}). Give the path of a folder with config.json, tokenizer and *.safetensors, "
            f"or `tiny` for the generator that is trained from scratch."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _fingerprint(name: str, model: Any) -> str:
    """Hash of a folder's weights, or a hub name with its commit."""
    files = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    if files:
        return text_hash(*(file_hash(file) for file in files))
    return text_hash(name, str(getattr(model.config, "_commit_hash", None)))


def ensure_pad_token(tokenizer: Any, model: Any | None = None) -> None:
    """Give the tokenizer a pad token that is not EOS: its own, a spare special token, or a new one."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{tokenizer.name_or_path}: its tokenizer has no EOS token, so generation could never stop.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        used = {tokenizer.eos_token, tokenizer.bos_token}
        words = [token for token in tokenizer.get_added_vocab() if "pad" in token.lower() and token not in used]
        spare = [token for token in (*words, tokenizer.unk_token) if token and token not in used]
        if spare:
            tokenizer.pad_token = spare[0]
        else:
            tokenizer.add_special_tokens({"pad_token": "<|girl_pad|>"})
    if model is None:
        return
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def lora_config(rank: int, alpha: int, dropout: float, targets: str) -> Any:
    """LoRA on ``targets``: "all-linear" (every linear layer but the head) or module names separated by commas."""
    import peft

    modules = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ scoring


def collate(examples: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels`` (-100 where padded), each (B, T) int64."""
    width = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), width)
    ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, example in enumerate(examples):
        size = len(example["input_ids"])
        ids[row, :size] = torch.tensor(example["input_ids"])
        labels[row, :size] = torch.tensor(example["labels"])
        mask[row, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def token_log_probs(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """log p(token t | tokens before t) for t = 1..T-1: (B, T-1) float32."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1].float()
    return -F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


def continuation_log_probs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    pad_id: int,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(logits / temperature) of each token of ``continuations`` after its prompt, and the mask, (B, T) each.

    Prompts are padded on the left and continuations on the right, so that both begin in the same column and only the
    continuations are projected onto the vocabulary. T is the longest continuation; 0 where the mask is False.
    """
    device = next(model.parameters()).device
    width, length = max(map(len, prompts)), max(map(len, continuations))
    rows = list(zip(prompts, continuations, strict=True))
    ids = [[pad_id] * (width - len(p)) + [*p, *c] + [pad_id] * (length - len(c)) for p, c in rows]
    real = [[0] * (width - len(p)) + [1] * (len(p) + len(c)) + [0] * (length - len(c)) for p, c in rows]
    input_ids, attention_mask = torch.tensor(ids, device=device), torch.tensor(real, device=device)
    logits = model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False, logits_to_keep=length + 1,
    ).logits[:, :-1]  # fmt: skip
    logp = -F.cross_entropy((logits.float() / temperature).transpose(1, 2), input_ids[:, width:], reduction="none")
    mask = attention_mask[:, width:].bool()
    return torch.where(mask, logp, torch.zeros_like(logp)), mask


# ----------------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Sampled:
    """Token ids that were sampled, without the stop token, and whether a stop token ended them.

    ``log_probs``: log p of each id, and of the stop token at the end if there is one, where they were asked for.
    ``stop``: the stop token, or None.
    """

    ids: list[int]
    ended: bool
    log_probs: list[float] | None = None
    stop: int | None = None


def sample_key(seed: int, cv: str, sample: int) -> int:
    """The 128-bit key of sample number ``sample`` for a CV text: :func:`uniforms` turns it into random numbers."""
    return int(text_hash(str(seed), cv, str(sample))[:32], 16)


def uniforms(keys: Sequence[int], count: int) -> np.ndarray:
    """(len(keys), count) float64 in [0, 1): row i is the Philox stream of the 128-bit ``keys[i]``."""
    return np.stack([np.random.Generator(np.random.Philox(key=key)).random(count) for key in keys])


@torch.inference_mode()
def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    log_probs: bool = False,
) -> list[list[Sampled]]:
    """Continue each prompt once for each of its keys, all in one batch. Every prompt needs the same number of keys.

    The prompts are read once (left-padded), their caches are repeated for the keys, and finished rows leave the batch.
    ``log_probs``: keep log softmax(logits / temperature) of each token that was drawn (before top_p cuts it).
    """
    n = len(keys[0])
    if any(len(k) != n for k in keys):
        raise ValueError("every prompt needs the same number of keys")
    width = max(map(len, prompts))
    pad = lm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = lm.model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )  # fmt: skip
    cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(n, 0)
    _make_room(cache, max_new_tokens, n)
    mask = F.pad(mask.repeat_interleave(n, 0), (0, max_new_tokens), value=1)  # a column for each token to come
    position = positions[:, -1:].repeat_interleave(n, 0)
    flat = [key for row in keys for key in row]
    draws = torch.from_numpy(uniforms(flat, max_new_tokens)).to(lm.device)
    stop = torch.tensor(lm.stop_ids, device=lm.device)
    rows = torch.arange(len(draws), device=lm.device)  # which sequence each row of the batch continues
    written = torch.full((len(draws), max_new_tokens), -1, device=lm.device)
    ended = torch.zeros(len(draws), dtype=torch.bool, device=lm.device)
    alive = torch.ones(len(draws), dtype=torch.bool, device=lm.device)
    scored = torch.zeros((len(draws), max_new_tokens), device=lm.device) if log_probs else None
    stopped = torch.full((len(draws),), -1, device=lm.device)
    for step in range(max_new_tokens):
        token = choose(logits, draws[rows, step], temperature, top_p)
        stops = torch.isin(token, stop) & alive
        early = [i for i in stops.nonzero().squeeze(1).tolist() if _is_blank(lm, written[rows[i]])]
        if early:
            again = uniforms([flat[rows[i]] ^ 1 for i in early], step + 1)[:, step]
            others = logits[early].index_fill(1, stop, -torch.inf)
            token[early] = choose(others, torch.from_numpy(again).to(lm.device), temperature, top_p)
            stops[early] = False
        if scored is not None:
            logp = torch.log_softmax(logits.float() / (temperature or 1.0), -1).gather(-1, token[:, None]).squeeze(-1)
            scored[rows[alive], step] = logp[alive]
        ended[rows[stops]] = True
        stopped[rows[stops]] = token[stops]
        alive = alive & ~stops
        written[rows[alive], step] = token[alive]
        living = int(alive.sum())
        if not living or step + 1 == max_new_tokens:
            break
        if living < 0.75 * len(alive):
            kept = alive.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, mask, position, token, alive = rows[kept], mask[kept], position[kept], token[kept], alive[kept]
        position = position + 1
        out = lm.model(
            input_ids=token[:, None], attention_mask=mask[:, : width + step + 1], position_ids=position,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache, logits = out.past_key_values, out.logits[:, -1]
    texts = [[token for token in row if token >= 0] for row in written.tolist()]
    kept = [None] * len(texts) if scored is None else [
        row[: len(text) + end] for row, text, end in zip(scored.tolist(), texts, ended.tolist(), strict=True)
    ]  # fmt: skip
    done = [
        Sampled(text, end, row, stop if end else None)
        for text, end, row, stop in zip(texts, ended.tolist(), kept, stopped.tolist(), strict=True)
    ]
    return [done[start : start + n] for start in range(0, len(done), n)]


class _RoomyLayer(transformers.cache_utils.DynamicLayer):
    """A layer of the cache with room for the tokens to come: a step writes its own keys and values in place and copies
    none of those before. ``keys`` and ``values`` (B, heads, tokens, width) are the beginnings of the two buffers."""

    def __init__(self, layer: transformers.cache_utils.DynamicLayer, room: int, repeats: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._room = layer.keys.shape[-2] + room
        self._hold(layer.keys.repeat_interleave(repeats, 0), layer.values.repeat_interleave(repeats, 0))

    def _hold(self, *states: torch.Tensor) -> None:
        size = states[0].shape[-2]
        self._buffers = [kept.new_empty((*kept.shape[:-2], self._room, kept.shape[-1])) for kept in states]
        for buffer, kept in zip(self._buffers, states, strict=True):
            buffer[..., :size, :] = kept
        self.keys, self.values = (buffer[..., :size, :] for buffer in self._buffers)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._hold(self.keys[indices], self.values[indices])


def _make_room(cache: Any, room: int, repeats: int) -> None:
    """Repeat each row of ``cache`` and give its layers room for ``room`` tokens more; those of other kinds (sliding
    windows, states of recurrent layers) grow in their own way."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is transformers.cache_utils.DynamicLayer:
            cache.layers[number] = _RoomyLayer(layer, room, repeats)
        elif repeats > 1:
            layer.batch_repeat_interleave(repeats)


def _is_blank(lm: LanguageModel, written: torch.Tensor) -> bool:
    return not lm.tokenizer.decode(
        [token for token in written.tolist() if token >= 0], skip_special_tokens=True
    ).strip()


def choose(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token a row, (B,) int64: the inverse distribution function at ``draws``; the argmax if temperature is 0."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.double() / temperature, -1)
    if top_p < 1:
        probs = probs.masked_fill(probs < nucleus_floor(probs, top_p), 0)
    steps = probs.cumsum(-1)
    target = draws[:, None] * steps[:, -1:]
    token = torch.searchsorted(steps, target, right=True).squeeze(-1)
    return token.clamp(max=logits.shape[-1] - 1)


def nucleus_floor(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The probability of the token with which the likeliest tokens of a row reach ``top_p``: (B, 1). Tokens that are as
    likely as that one belong to the nucleus too, so that it does not depend on an order among equals."""
    size, k = probs.shape[-1], 16
    floor, rest = probs.new_empty(len(probs), 1), torch.arange(len(probs), device=probs.device)
    while len(rest):  # a nucleus is small: to sort the whole vocabulary took more time than the model itself
        ranked = probs[rest].topk(min(k, size)).values
        mass = ranked.cumsum(-1)
        inside = (mass - ranked < top_p).sum(-1, keepdim=True)
        floor[rest] = ranked.gather(-1, inside - 1)
        rest = rest[mass[:, -1] < top_p] if k < size else rest[:0]
        k *= 8
    return floor
