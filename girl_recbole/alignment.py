"""What every way of aligning a generator shares: whose CVs, from which generator, and how the result is saved.

PPO (ppo.py) and its rivals (rivals.py) read CVs of seekers, start from a trained generator, which is also the frozen
reference, and write a generator of the same kind, which `girl generate` uses as any other.

Seekers of valid and test are never trained on: those of the stage rl may not be there at all (an error), those of
other stages are left out and counted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girl_recbole import llm
from girl_recbole.atomic import DatasetFiles, read_docs, read_table, read_users
from girl_recbole.curves import draw_curves
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.generate import (
    TRAINED,
    JDGenerator,
    LocalEngine,
    cv_room,
    generator_folder,
    load_generator,
)
from girl_recbole.llm import LanguageModel
from girl_recbole.manifest import manifest_path, read_manifest, write_manifest
from girl_recbole.prompts import Prompt, parse_jd
from girl_recbole.trainers import write_lines

__all__ = [
    "SeekerCV",
    "evaluation_seekers",
    "load_start",
    "read_seekers",
    "save_aligned",
    "settings_of_start",
    "trained_already",
    "true_match_watch",
]

log = logging.getLogger(__name__)

SEEKER_STAGES = ("rl", "sft", "reward")


@dataclass(frozen=True)
class SeekerCV:
    """One seeker's id and CV."""

    user: str
    cv: str


def settings_of_start(files: DatasetFiles, config: Any) -> dict[str, Any]:
    """The settings of ``start_generator`` that the aligned generator has too; {} where it has no manifest."""
    manifest = read_manifest(generator_folder(config.saved_folder, files.name, config.start_generator)) or {}
    return {key: value for key, value in manifest.get("config", {}).items() if key in TRAINED}


def load_start(files: DatasetFiles, config: Any) -> tuple[LanguageModel, Prompt]:
    """The generator ``start_generator``, a LoRA adapter merged into its weights, and the prompt of its training."""
    if config.generator == config.start_generator:
        raise ConfigError(
            f"generator: {config.generator!r} is the generator to start from; the aligned one needs another name."
        )
    return load_generator(
        files, config.start_generator, config.saved_folder, config.lm_dtype, config.prompt_language, merge=True
    )  # fmt: skip


def evaluation_seekers(files: DatasetFiles) -> dict[str, str]:
    """Seekers of every valid and test part that is there -> the name of a file that has them."""
    found: dict[str, str] = {}
    for part in ("valid", "test"):
        for path in sorted(files.folder.glob(f"{files.name}.*.{part}.inter")):
            found.update(dict.fromkeys(read_table(path, required=("user_id",))["user_id"], path.name))
    return found


def read_seekers(files: DatasetFiles, stages: Iterable[str] | str) -> tuple[list[SeekerCV], int]:
    """The seekers of ``stages`` with their CVs, each CV text once, in file order; and how many were left out because
    they are in valid or test."""
    stages = [stages] if isinstance(stages, str) else list(stages)
    unknown = [stage for stage in stages if stage not in SEEKER_STAGES]
    if unknown or not stages:
        raise ConfigError(f"rl_stages: {', '.join(map(str, unknown)) or 'none'}; known: {', '.join(SEEKER_STAGES)}.")
    judged = evaluation_seekers(files)
    users: dict[str, None] = {}
    left_out = 0
    for stage in stages:
        path = files.stage(stage)
        here = read_users(path) if stage == "rl" else read_table(path, required=("user_id",))["user_id"].unique()
        overlap = [user for user in here if user in judged]
        if stage == "rl" and overlap:
            raise DataError(
                f"{path}: {len(overlap)} of {len(here)} seekers are in valid or test too, first {overlap[0]} in "
                f"{judged[overlap[0]]}; a generator aligned on them would be judged by them. Take them out of "
                f"{path.name}, or split again."
            )
        left_out += len(set(overlap) - users.keys())
        users.update(dict.fromkeys(user for user in here if user not in judged))
    if not users:
        raise DataError(f"{files.folder}: the stages {', '.join(stages)} have no seeker to learn from.")
    docs = read_docs(files.udoc)
    missing = [user for user in users if not docs.get(user, "").strip()]
    if missing:
        raise DataError(
            f"{files.udoc}: {len(missing)} of {len(users)} seekers have no CV ({some_of(missing)}); each needs one."
        )
    distinct: dict[str, str] = {}
    for user in users:
        distinct.setdefault(docs[user], user)
    return [SeekerCV(user, cv) for cv, user in distinct.items()], left_out


def true_match_watch(files: DatasetFiles) -> Callable[[Sequence[str], Sequence[str]], dict[str, float]] | None:
    """For a simulated market: (seekers, JDs) -> the mean true probability of a match, for the log alone, to show where
    the reward rises and what it stands for does not. None for other datasets."""
    if not files.path("truth.npz").exists():
        return None
    from girl_recbole.market.judge import true_probability
    from girl_recbole.market.simulation import read_truth

    truth = read_truth(files)

    def watch(users: Sequence[str], jds: Sequence[str]) -> dict[str, float]:
        probability, readable = true_probability(truth, users, jds)
        return {"true_probability": float(probability.mean()), "readable": float(readable.mean())}

    return watch


def trained_already(
    folder: Path, work: Path, config: Any, made_from: dict[str, Any], reported: Sequence[str]
) -> dict[str, Any] | None:
    """The report of the generator in ``folder``, its values ``reported``, if ``config`` made it from ``made_from``.

    ``made_from``: hashes of all that was read. What a kill has left in ``work`` after the end of the run goes.
    """
    recorded = (read_manifest(folder) if folder.exists() else None) or {}
    if recorded.get("kind", "generator") != "generator":
        raise ConfigError(f"generator: {folder} holds a {recorded['kind']}; give the aligned generator another name.")
    same = json.loads(json.dumps(dataclasses.asdict(config)))
    if recorded.get("config") != same or recorded.get("made_from") != made_from:
        return None
    shutil.rmtree(work, ignore_errors=True)
    kept = {key: value for key, value in recorded.items() if key in reported}
    said = "all: trained already with these settings on these files; delete the folder to train again"
    return {"folder": str(folder), **kept, "reused": said}


def save_aligned(
    folder: Path,
    work: Path,
    model: Any,
    lm: LanguageModel,
    prompt: Prompt,
    *,
    files: DatasetFiles,
    config: Any,
    method: str,
    seekers: Sequence[SeekerCV],
    history: list[dict[str, Any]],
    report: dict[str, Any],
    began: float,
    inputs: Sequence[Path],
    made_from: dict[str, Any],
) -> dict[str, Any]:
    """Save what ``girl <method>`` trained as the generator ``folder``, delete ``work``, and return the report.

    Beside the weights lie ``history`` as log.jsonl, its curves, and JDs for the first of ``seekers`` as samples.jsonl,
    written by the weights as they were saved. ``began``: time.monotonic() at the start of the stage.
    """
    wall_time_s = round(time.monotonic() - began, 1)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    start = generator_folder(config.saved_folder, files.name, config.start_generator)
    _save_weights(model, lm.tokenizer, partial, start)
    write_lines(partial / "log.jsonl", history)
    if method != "dpo":
        draw_curves(history, partial / "curves.html", f"{files.name}: {config.generator}")
    saved = llm.load(str(partial), config.lm_dtype)
    samples = _samples(saved, prompt, seekers[: getattr(config, f"{method}_sample_jds")], config)
    write_lines(partial / "samples.jsonl", samples)
    report = {**report, "samples": len(samples)}
    manifest_path(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    write_manifest(
        folder, "generator", config=dataclasses.asdict(config), inputs=inputs, seed=config.seed,
        wall_time_s=wall_time_s, made_by=f"girl {method} {files.name} --generator={config.generator}", prompt=prompt.id,
        start_fingerprint=lm.fingerprint, made_from=made_from, fingerprint=saved.fingerprint, **report,
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return {"folder": str(folder), **report, "wall_time_s": wall_time_s}


def _save_weights(model: Any, tokenizer: Any, folder: Path, start: Path) -> None:
    """The model as a Hugging Face folder. A LoRA adapter alone is saved, and names its base by the path to ``start``,
    relative to ``folder``, so that both can move together."""
    if hasattr(model, "peft_config"):
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = os.path.relpath(start, folder)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a model card that knows nothing of the data


def _samples(lm: LanguageModel, prompt: Prompt, seekers: Sequence[SeekerCV], config: Any) -> list[dict[str, Any]]:
    """A JD for each of ``seekers`` as `girl generate` would write it: ids, JD and what is wrong with it, but no CV."""
    if not seekers:
        return []
    engine = LocalEngine(lm, config.max_jd_tokens, config.temperature, config.top_p, config.gen_batch_size)
    limit = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
    written = JDGenerator(engine, lm.tokenizer, prompt, config.seed, 1, limit).write([seeker.cv for seeker in seekers])
    return [
        {"user_id": seeker.user, "jd": w.texts[0], "ended": w.ended[0], "problem": parse_jd(w.texts[0]).problem}
        for seeker, w in zip(seekers, written, strict=True)
    ]
