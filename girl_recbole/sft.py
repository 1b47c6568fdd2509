"""Supervised fine-tuning of the generator (Zheng et al. 2023, arXiv:2307.02157, section IV-A, Eq. 1).

For a matched pair of a CV C and a JD J = (v_1 ... v_l), and the prompt template T (prompts.py):

    Eq. (1)   L_sft = - sum_{t=1..l} log p(v_t | v_<t, C, T)

We read the printed Pr(C | J, T, G) as p(J | C, T), as the sum that follows it does. v_l is the EOS token, which the
paper does not mention: it is trained, or generation would never stop. The loss counts the JD's tokens only; role,
instruction and CV have label -100. Over a batch the sum is divided by the number of JD tokens in it (the mean over
tokens of the whole accumulated batch, not a mean of means), so that long JDs weigh as much a token as short ones. A
CV may have several JDs: each matched pair is one example. No packing: sequences are grouped by length instead, so
that padding stays small.

The training loop is TRL's SFTTrainer, on examples that we tokenize and label ourselves (:func:`encode_pairs`). Run it
with `accelerate launch` for several GPUs (DDP, FSDP, DeepSpeed). Base model: any causal LM with LoRA (``lora_rank`` >
0) or in full (0), or ``tiny``, the embedded default (tiny_lm.py), which learns all that it knows from Eq. (1).

Seekers held out of the stage (a share of CV texts, chosen by hash) give the evaluation loss, the mean of -log p over
all their JD tokens, and the sample JDs in ``samples.jsonl``.

Output: ``<saved_folder>/NAME/<generator>/``, a Hugging Face folder (adapter only with LoRA), with its manifest beside
it. While training runs, checkpoints lie in ``<generator>.checkpoints/``; a run that was killed goes on from the last
whole one when it is started again with the same settings. A generator that is there, of the same settings and inputs,
is not trained again: delete its folder to do so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
import torch.nn.functional as F

from girl_recbole import llm, memory, tiny_lm
from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.generate import (
    JDGenerator,
    LocalEngine,
    check_language_model,
    check_least,
    claim,
    cv_room,
    generator_folder,
)
from girl_recbole.llm import IGNORED, LanguageModel
from girl_recbole.manifest import file_hash, manifest_path, read_manifest, text_hash, write_manifest
from girl_recbole.prompts import Prompt, encode_text, make_prompt, parse_jd
from girl_recbole.trainers import (
    LengthSampler,
    adapter,
    check_training,
    fit,
    last_checkpoint,
    this_process,
    training_arguments,
    write_lines,
)

__all__ = ["SFTConfig", "encode_pairs", "hold_out", "read_texts", "sft_loss", "train"]

log = logging.getLogger(__name__)

T = TypeVar("T")  # anything with a ``cv``
_REPORTED = ("pairs", "held_out_pairs", "parameters", "train_loss", "eval_loss", "samples", "samples_structured")


@dataclass(frozen=True)
class SFTConfig:
    """Keys and meanings: properties/overall.yaml, section "Language model"."""

    seed: int
    generator: str
    saved_folder: str
    lm_base: str
    lm_dtype: str
    prompt_language: str
    max_cv_tokens: int
    max_sequence_tokens: int
    max_jd_tokens: int
    temperature: float
    top_p: float
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str
    tiny_vocab_size: int
    tiny_width: int
    tiny_layers: int
    tiny_heads: int
    tiny_kv_heads: int
    sft_epochs: float
    sft_batch_size: int
    sft_accumulation: int
    sft_learning_rate: float
    sft_warmup_ratio: float
    sft_weight_decay: float
    sft_eval_share: float
    sft_save_steps: int
    sft_sample_jds: int
    gradient_checkpointing: bool


def sft_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Eq. (1) as a mean over the JD tokens of a batch. logits (B, T, V), labels (B, T) with -100 outside the JDs."""
    return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)


# ----------------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True)
class Pair:
    """One matched pair, in words."""

    user: str
    item: str
    cv: str
    jd: str


def encode_pairs(
    pairs: list[Pair], prompt: Prompt, tokenizer: Any, max_cv_tokens: int, max_sequence_tokens: int
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Examples with ``input_ids`` = prompt, JD, EOS and ``labels`` = -100 for the prompt.

    A CV longer than ``max_cv_tokens``, or than what the JD leaves of ``max_sequence_tokens``, is cut at its end. A pair
    whose instruction and JD alone do not fit is left out. Returns the examples and the counts of both.
    """
    head, tail = prompt.head_ids(tokenizer), prompt.tail_ids(tokenizer)
    examples, counts = [], {"cvs_cut": 0, "pairs_too_long": 0}
    for pair in pairs:
        jd = [*encode_text(tokenizer, pair.jd.strip()), tokenizer.eos_token_id]
        room = max_sequence_tokens - len(head) - len(tail) - len(jd)
        if room < 0:
            counts["pairs_too_long"] += 1
            continue
        cv = encode_text(tokenizer, pair.cv.strip())
        limit = min(max_cv_tokens, room)
        counts["cvs_cut"] += len(cv) > limit
        before = [*head, *cv[:limit], *tail]
        ids = before + jd
        examples.append({"input_ids": ids, "labels": [IGNORED] * len(before) + jd})
    return examples, counts


def read_pairs(files: DatasetFiles) -> tuple[list[Pair], int]:
    """The matched pairs of the sft stage with their texts, and the number of mismatched rows that are not used."""
    path = files.stage("sft")
    table = read_interactions(path)
    matched = table[table["label"] == 1]
    if matched.empty:
        raise DataError(f"{path}: no matched pair (label 1) among {len(table)} rows; fine-tuning needs some.")
    cvs, jds = read_texts(files, path, matched)
    rows = zip(matched["user_id"], matched["item_id"], strict=True)
    return [Pair(user, item, cvs[user], jds[item]) for user, item in rows], len(table) - len(matched)


def read_texts(files: DatasetFiles, path: Path, table: pd.DataFrame) -> tuple[dict[str, str], dict[str, str]]:
    """All CVs and all JDs; ``DataError`` where an id of ``table``, which was read from ``path``, has none."""
    cvs, jds = read_docs(files.udoc), read_docs(files.idoc)
    for column, docs, where in (("user_id", cvs, files.udoc), ("item_id", jds, files.idoc)):
        ids = table[column].unique()
        missing = [i for i in ids if not docs.get(i, "").strip()]
        if missing:
            raise DataError(
                f"{where}: {len(missing)} of {len(ids)} ids of {path.name} have no text there ({some_of(missing)}); "
                f"each needs one. Add the texts or take the rows out."
            )
    return cvs, jds


def hold_out(pairs: list[T], share: float, seed: int, key: str = "sft_eval_share") -> tuple[list[T], list[T]]:
    """(training, held-out) pairs. Whole CV texts are held out, chosen by their hash, so no CV is on both sides; one at
    least. ``key``: the setting that ``share`` is, for messages.

    A JD may be: where several seekers match one job, the JDs of most held-out pairs are in training too.
    """
    hashes = {cv: int(text_hash(str(seed), cv)[:12], 16) for cv in {pair.cv for pair in pairs}}
    least = max(share * 16**12, min(hashes.values()) + 1) if share and len(hashes) > 1 else share * 16**12
    held = {cv for cv, number in hashes.items() if number < least}
    training = [pair for pair in pairs if pair.cv not in held]
    if share > 0 and (not held or not training):
        side = "held-out" if not held else "training"
        raise DataError(f"{key} {share} of {len(pairs)} pairs leaves no {side} CV; change it, or set it to 0.")
    return training, [pair for pair in pairs if pair.cv in held]


# ------------------------------------------------------------------------------------------------------------- training


def train(files: DatasetFiles, config: SFTConfig) -> dict[str, Any]:
    """Fine-tune on the matched pairs of ``NAME.sft.inter`` and save the generator. Returns a report.

    ``eval_loss`` is that of all held-out pairs, ``eval_loss_unseen_jds`` of those whose JD is not in training either.

    Raises ``DataError`` for missing texts, and when checkpoints of a run with other data or settings are in the way.
    """
    start = time.monotonic()
    _check(config)
    folder = generator_folder(config.saved_folder, files.name, config.generator)
    work = folder.with_name(folder.name + ".checkpoints")
    inputs = [files.stage("sft"), files.udoc, files.idoc]
    hashes = {path.name: file_hash(path) for path in inputs if path.exists()}
    settings = dataclasses.asdict(config)
    recorded = (read_manifest(folder) if folder.exists() else None) or {}
    if recorded.get("inputs") == hashes and recorded.get("config") == json.loads(json.dumps(settings)):
        kept = {key: value for key, value in recorded.items() if key in _REPORTED}
        said = "all: trained already with these settings on these files; delete the folder to train again"
        return {"folder": str(folder), **kept, "reused": said}
    process = this_process()
    pairs, mismatched = read_pairs(files)
    if process.is_main_process:
        claim(work, settings | hashes, 1 if last_checkpoint(work) else 0, "checkpoints", "girl sft")
    process.wait_for_everyone()
    training, held = hold_out(pairs, config.sft_eval_share, config.seed)
    if config.lm_base != "tiny":
        _check_memory(config, memory.model_config(config.lm_base), [], [])  # before the weights are loaded
    lm = _base(config, training)
    prompt = make_prompt(config.prompt_language, lm.tokenizer)
    limits = (config.max_cv_tokens, min(config.max_sequence_tokens, lm.context))
    examples, counts = encode_pairs(training, prompt, lm.tokenizer, *limits)
    held_examples, _ = encode_pairs(held, prompt, lm.tokenizer, *limits)
    if not examples:
        raise DataError(
            f"{inputs[0]}: instruction and JD of all {len(training)} training pairs exceed {limits[1]} tokens; raise "
            f"max_sequence_tokens (the model reads {lm.context})."
        )
    if config.sft_sample_jds:
        cv_room(lm, prompt, config.max_jd_tokens)  # an error now, not after training
    if counts["pairs_too_long"]:
        log.warning("%d pairs left out: instruction and JD exceed %d tokens", counts["pairs_too_long"], limits[1])
    _check_memory(config, lm.model.config, examples, [lm.model])
    trainer = _fit(lm, examples, held_examples, config, work)
    history = trainer.state.log_history
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    partial = folder.with_name(f".{folder.name}.partial")
    trainer.save_model(str(partial))
    process.wait_for_everyone()
    if not process.is_main_process:
        return {"folder": str(folder)}
    for left_over in ("training_args.bin", "README.md"):  # a pickle, and a model card that knows nothing of the data
        (partial / left_over).unlink(missing_ok=True)
    base_fingerprint = lm.fingerprint
    lm = llm.load(str(partial), config.lm_dtype)  # what follows judges what was saved
    samples = _samples(lm, prompt, held, config)
    known = {pair.jd for pair in training}
    unseen, _ = encode_pairs([pair for pair in held if pair.jd not in known], prompt, lm.tokenizer, *limits)
    report = {
        "folder": str(folder),
        "pairs": len(examples),
        "held_out_pairs": len(held_examples),
        "mismatched_rows_ignored": mismatched,
        **counts,
        "jd_tokens": sum(sum(label != IGNORED for label in example["labels"]) for example in examples),
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "trained_parameters": trained,
        "train_loss": next((line["loss"] for line in reversed(history) if "loss" in line), None),
        "eval_loss": mean_loss(lm, held_examples, config.sft_batch_size) if held_examples else None,
        "eval_loss_unseen_jds": mean_loss(lm, unseen, config.sft_batch_size) if unseen else None,
        "held_out_pairs_unseen_jds": len(unseen),
        "samples": len(samples),
        "samples_structured": sum(not line["problem"] for line in samples),
        "wall_time_s": round(time.monotonic() - start, 1),
    }
    write_lines(partial / "log.jsonl", history)
    write_lines(partial / "samples.jsonl", samples)
    manifest_path(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    facts = {key: value for key, value in report.items() if key not in ("folder", "wall_time_s")}
    write_manifest(
        folder, "generator", config=dataclasses.asdict(config), inputs=inputs, seed=config.seed,
        wall_time_s=report["wall_time_s"], prompt=prompt.id, fingerprint=lm.fingerprint,
        base_fingerprint=base_fingerprint, **facts,
    )  # fmt: skip
    shutil.rmtree(work)
    return report


def mean_loss(lm: LanguageModel, examples: list[dict[str, list[int]]], batch_size: int) -> float:
    """The mean of -log p over all labelled tokens of ``examples`` (Eq. 1, a token), whatever the batches."""
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(ordered), batch_size):
            batch = llm.collate(ordered[start : start + batch_size], lm.tokenizer.pad_token_id)
            batch = {name: tensor.to(lm.device) for name, tensor in batch.items()}
            logp = llm.token_log_probs(lm.model, batch["input_ids"], batch["attention_mask"])
            is_jd = batch["labels"][:, 1:] != IGNORED
            total -= logp[is_jd].double().sum().item()
            count += int(is_jd.sum())
    return total / count


def _check(config: SFTConfig) -> None:
    check_language_model(config)
    check_training(config, "sft")
    check_least(config, max_sequence_tokens=1, sft_sample_jds=0)
    if config.lm_base == "tiny":
        check_least(config, tiny_vocab_size=260, tiny_width=1, tiny_layers=1, tiny_heads=1, tiny_kv_heads=1)
        if config.tiny_width % (2 * config.tiny_heads) or config.tiny_heads % config.tiny_kv_heads:
            raise ConfigError(
                f"tiny_width {config.tiny_width}, tiny_heads {config.tiny_heads}, tiny_kv_heads "
                f"{config.tiny_kv_heads}: the width must be a multiple of twice the heads, and the heads a "
                "multiple of the key-value heads."
            )
    if config.lm_base == "tiny" and config.lora_rank:
        raise ConfigError("lora_rank: the base `tiny` is trained from scratch, in full; set lora_rank to 0.")


def _check_memory(config: SFTConfig, base: Any, examples: list[dict[str, list[int]]], loaded: list[Any]) -> None:
    """Raise ``ConfigError`` where training on batches of the longest of ``examples`` cannot fit into the memory."""
    process = this_process()
    estimate = memory.sft_estimate(
        base, dtype=config.lm_dtype, batch_size=min(config.sft_batch_size, len(examples)),
        tokens=max((len(example["input_ids"]) for example in examples), default=0),
        projected=max((1 + sum(label != IGNORED for label in example["labels"]) for example in examples), default=0),
        lora_rank=config.lora_rank, lora_targets=config.lora_targets,
        gradient_checkpointing=config.gradient_checkpointing, **memory.sharing(process),
    )  # fmt: skip
    lower = f"sft_batch_size ({config.sft_batch_size}) or max_sequence_tokens ({config.max_sequence_tokens})"
    lower += "" if config.gradient_checkpointing else ", or set gradient_checkpointing"
    lower += "" if config.lora_rank or config.lm_base == "tiny" else ", or train an adapter (lora_rank)"
    memory.check(estimate, process.device, lower, loaded=loaded, processes=process.num_processes)


def _base(config: SFTConfig, training: list[Pair]) -> LanguageModel:
    """The model before training: the tiny one of random weights, or what ``lm_base`` names."""
    if config.lm_base != "tiny":
        # LoRA keeps the base in lm_dtype; full training keeps float32 weights and computes in lm_dtype (autocast)
        return llm.load(config.lm_base, config.lm_dtype if config.lora_rank else "fp32")
    prompt = make_prompt(config.prompt_language)
    texts = (text for pair in training for text in (pair.cv.strip(), pair.jd.strip()))
    return tiny_lm.build(
        texts, prompt, vocab_size=config.tiny_vocab_size, width=config.tiny_width, layers=config.tiny_layers,
        heads=config.tiny_heads, kv_heads=config.tiny_kv_heads, context=config.max_sequence_tokens, seed=config.seed,
    )  # fmt: skip


def _fit(lm: LanguageModel, examples: list[dict], held: list[dict], config: SFTConfig, folder: Path) -> Any:
    """Train ``lm.model`` in place with TRL's SFTTrainer, from the last whole checkpoint in ``folder``."""
    import datasets
    import trl

    class Trainer(trl.SFTTrainer):
        """On a CPU TRL projects every position onto the vocabulary, prompts too; here only the JDs' (faster)."""

        def _get_train_sampler(self, train_dataset=None):
            return LengthSampler(
                [len(example["input_ids"]) for example in examples], config.sft_batch_size, config.seed
            )

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs["labels"]
            if labels.device.type != "cpu" or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            first = int((labels != IGNORED).any(0).nonzero()[0])
            kept = labels.shape[1] - max(first - 1, 0)
            out = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False,
                logits_to_keep=kept,
            )  # fmt: skip
            counted = (labels[:, -kept:] != IGNORED)[:, 1:].sum()
            loss = sft_loss(out.logits, labels[:, -kept:])
            if num_items_in_batch is not None:  # the JD tokens of all devices and accumulated batches
                loss = loss * counted / num_items_in_batch * self.accelerator.num_processes
            return loss

    arguments = trl.SFTConfig(
        **training_arguments(config, "sft", folder, bool(held)),
        max_length=None,  # lengths are settled by encode_pairs
        packing=False,
    )
    trainer = Trainer(
        model=lm.model, args=arguments, train_dataset=datasets.Dataset.from_list(examples),
        eval_dataset=datasets.Dataset.from_list(held) if held else None,
        processing_class=lm.tokenizer, peft_config=adapter(config),
    )  # fmt: skip
    fit(trainer, folder)
    return trainer


def _samples(lm: LanguageModel, prompt: Prompt, held: list[Pair], config: SFTConfig) -> list[dict[str, Any]]:
    """JDs written for the first held-out seekers: ids, JD and what is wrong with it, but no CV."""
    seekers = list({pair.user: pair for pair in held}.values())[: config.sft_sample_jds]
    if not seekers:
        return []
    engine = LocalEngine(lm, config.max_jd_tokens, config.temperature, config.top_p, config.sft_batch_size)
    limit = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
    generator = JDGenerator(engine, lm.tokenizer, prompt, config.seed, 1, limit)
    lines = []
    for pair, written in zip(seekers, generator.write([pair.cv for pair in seekers]), strict=True):
        jd, ended = written.texts[0], written.ended[0]
        lines.append({"user_id": pair.user, "jd": jd, "ended": ended, "problem": parse_jd(jd).problem})
    return lines
