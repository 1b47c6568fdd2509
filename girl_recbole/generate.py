"""Write n JDs for every CV with a generator: CVs -> ``NAME.<generator>.gdoc``.

For a CV C and a sample number i, J_i ~ p(. | C, T): the prompt T(C) of prompts.py with blank output, continued until
EOS or ``max_jd_tokens``. The random numbers of J_i depend on (seed, C, i) alone (llm.py), so the JDs of a CV do not
depend on which other CVs are written, in which order or batch, or on how often the work was stopped; the first of n
samples is the one that n = 1 gives. Equal CV texts are written once. The file has the order of ``NAME.udoc``.

:class:`JDGenerator` owns the prompt, the keys, the limits and the reading; an engine (engines/base.py) maps prompts and
keys to completions: ``local`` runs the model in this process, ``api`` asks a server, ``ray`` runs either in actors of a
Ray cluster and writes the same bytes.

Work is cut into shards of ``gen_shard_size`` distinct CVs (shards.py), in ``NAME.<generator>.gdoc.shards/``. A shard
appears when it is whole. After a kill at any moment the same command goes on with what is missing, and the final file
equals that of an undisturbed run. Shards of another model, prompt, sampling or engine are refused, not mixed in. The
folder goes when the final file, its ``.cvs`` and its manifest are written. While one process writes a file, another is
refused.

Incremental: where a finished file was made with the same settings, the JDs of CVs that it holds are taken over, and new
or changed CVs alone are written. With other settings all are.

CVs are streamed from ``NAME.udoc``: what is held of each is a key of 16 bytes, its number and its place in the shards.

The limits and the prompt are those of the training: ``max_cv_tokens``, ``max_jd_tokens``, ``prompt_language`` and
``lm_dtype`` come from the generator's manifest (:func:`trained_with`) where the user does not set them himself.
A generator that was trained on another ``NAME.sft.inter`` than the present one is refused.

Best of n (``gen_best_of`` = n > 1): for each wanted JD, n candidates are written and the one with the highest reward
R(u, C, J) (rewards.py) is kept:

    J_i = argmax over k = i n ... i n + n - 1 of R(u, C, J'_k)        J'_k: the JD that sample number k has with n = 1

The first candidate wins a tie. Seekers with one CV text share its JDs; u is then the first of them in ``NAME.udoc``.
The file is ``NAME.<gen_as>.gdoc``, by default ``NAME.<generator>-best-of-<n>.gdoc``, beside the generator's own.

A JD that is cut by the limit, or without the structure of a JD (:func:`girl_recbole.prompts.parse_jd`) is kept
as it is, counted, and flagged by seeker in the report and in the manifest: whether to use it is the reader's choice.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import logging
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from girl_recbole import llm
from girl_recbole.atomic import (
    DatasetFiles,
    atomic_write,
    iter_generated,
    write_generated,
)
from girl_recbole.engines.base import Asked, Completion, Engine
from girl_recbole.engines.local import LocalEngine
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import file_hash, read_manifest, require, write_manifest
from girl_recbole.prompts import INSTRUCTIONS, Prompt, make_prompt, parse_jd
from girl_recbole.rewards import Rewards, check_rewards, make_rewards
from girl_recbole.seekers import Seekers, find_seekers, walk, wanted_seekers
from girl_recbole.shards import (
    KEY_BYTES,
    Kept,
    Shards,
    Written,
    as_keys,
    kept_path,
    key_of,
    only_writer,
    read_kept,
    unfinished_folder,
    write_kept,
)

__all__ = [
    "Completion",
    "Engine",
    "GenerateConfig",
    "JDGenerator",
    "LocalEngine",
    "Recipe",
    "Task",
    "Written",
    "check_language_model",
    "check_least",
    "claim",
    "cv_room",
    "generate",
    "generator_folder",
    "keep_best",
    "load_generator",
    "make_generator",
    "trained_with",
]

log = logging.getLogger(__name__)

ENGINES = ("local", "api", "ray")
TRAINED = ("max_cv_tokens", "max_jd_tokens", "prompt_language", "lm_dtype")
_ROWS = 4096  # documents looked up at a time
# without a tokenizer a piece counts as a token: four letters, or a character of Chinese, Japanese or Korean
_CJK = "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_PIECE = re.compile(rf"{_CJK}|(?:(?!{_CJK})[^\W_]){{1,4}}|[^\w\s]|_")
_SHOWN = 20  # seekers named in a report for each kind of problem


@dataclass(frozen=True)
class GenerateConfig:
    """Keys and meanings: properties/overall.yaml, sections "Language model", "Served model" and, for the best of n,
    "Reinforcement learning" and "Text encoder"."""

    seed: int
    generator: str
    saved_folder: str
    lm_dtype: str
    prompt_language: str
    max_cv_tokens: int
    max_jd_tokens: int
    temperature: float
    top_p: float
    gen_samples: int
    gen_best_of: int
    gen_as: str | None
    gen_stages: tuple | str
    gen_model: str | None
    gen_batch_size: int
    gen_shard_size: int
    gen_engine: str
    ray_engine: str
    ray_workers: int | None
    ray_num_cpus: float
    ray_num_gpus: float | None
    ray_retries: int
    api_url: str | None
    api_model: str | None
    api_endpoint: str
    api_concurrency: int
    api_retries: int
    api_timeout: float
    api_max_failures: int
    api_body: dict
    rewards: dict
    reward_model: str
    retrieval_search: str
    length_words: tuple
    faithfulness_terms: str | None
    reward_batch: int
    encoder: str
    max_text_tokens: int | None
    text_windows: int
    encoder_batch_tokens: int | None
    encoder_precision: str


def generator_folder(saved_folder: str, dataset: str, generator: str) -> Path:
    """Where the generator of a dataset lies: ``saved/NAME/sft``."""
    return Path(saved_folder) / dataset / generator


def trained_with(files: DatasetFiles, config: GenerateConfig) -> dict[str, Any]:
    """The settings that the generator of ``config`` was trained with and that generation has too; {} where unknown."""
    if config.gen_model:
        return {}
    manifest = read_manifest(generator_folder(config.saved_folder, files.name, config.generator)) or {}
    return {key: value for key, value in manifest.get("config", {}).items() if key in TRAINED}


# ------------------------------------------------------------------------------------------------------------- checks


def check_least(config: Any, **least: float) -> None:
    """Raise ``ConfigError`` where a number of ``config`` is below its least value."""
    for key, low in least.items():
        if not getattr(config, key) >= low:  # NaN too
            raise ConfigError(f"{key}: {getattr(config, key)}; at least {low} is required.")


def check_language_model(config: Any) -> None:
    """The settings that training and generation share."""
    if config.lm_dtype not in llm.DTYPES:
        raise ConfigError(f"lm_dtype: {config.lm_dtype!r} is unknown; known: {', '.join(llm.DTYPES)}.")
    make_prompt(config.prompt_language)
    check_least(config, max_cv_tokens=1, max_jd_tokens=1, temperature=0)
    if not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p: {config.top_p} is not in (0, 1]; 1 samples from all tokens.")


def cv_room(lm: llm.LanguageModel, prompt: Prompt, max_jd_tokens: int) -> int:
    """The tokens that instruction and JD leave for a CV; ``ConfigError`` where that is none."""
    room = lm.context - prompt.overhead(lm.tokenizer) - max_jd_tokens
    if room < 1:
        raise ConfigError(
            f"max_jd_tokens: {max_jd_tokens} tokens of JD and {prompt.overhead(lm.tokenizer)} of instruction "
            f"leave no room for a CV in the {lm.context} tokens that {lm.name} reads; lower max_jd_tokens."
        )
    return room


def _made_with(folder: Path) -> dict[str, Any] | None:
    """The settings of the unfinished work in ``folder``, None where there is none."""
    marker = folder / "settings.json"
    return json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else None


def claim(folder: Path, settings: dict[str, Any], finished: int, of: str, command: str) -> None:
    """Take the folder of unfinished work for ``settings``; refuse it if what is ``finished`` was made with others."""
    old, now = _made_with(folder), json.loads(json.dumps(settings))
    if not finished or old is None:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_write(folder / "settings.json") as file:
            json.dump(settings, file)
        return
    changed = [
        f"{key} was {old.get(key)}, now {now.get(key)}" for key in {**old, **now} if old.get(key) != now.get(key)
    ]
    if changed:
        raise DataError(
            f"{folder}: {finished} finished {of} of an unfinished run were made with other settings "
            f"({'; '.join(changed)}) and are not mixed in. Run `{command}` with the old settings to finish it, or "
            f"delete the folder to begin anew."
        )


# ------------------------------------------------------------------------------------------------ writing JDs for CVs


@dataclass(frozen=True)
class JDGenerator:
    """CVs -> JDs, whatever the engine. Without a tokenizer (a server's, which is not known here) prompts have no token
    ids, and ``max_cv_tokens`` counts pieces of at most four letters."""

    engine: Engine
    tokenizer: Any
    prompt: Prompt
    seed: int
    samples: int
    max_cv_tokens: int

    def write(self, cvs: Sequence[str]) -> list[Written]:
        """``samples`` JDs for each CV."""
        asked = [self._ask(cv) for cv in cvs]
        completions = self.engine.complete([one for one, _ in asked])
        return [
            Written([c.text.strip() for c in row], [c.ended for c in row], cut)
            for row, (_, cut) in zip(completions, asked, strict=True)
        ]

    def _ask(self, cv: str) -> tuple[Asked, int]:
        """The prompt of a CV, and how many of its tokens were cut off."""
        keys, text = [llm.sample_key(self.seed, cv, i) for i in range(self.samples)], cv.strip()
        if self.tokenizer is None:
            ids, pieces = [], [piece.end() for piece in _PIECE.finditer(text)]
            cut = max(0, len(pieces) - self.max_cv_tokens)
            text = text[: pieces[self.max_cv_tokens - 1]] if cut else text
        else:
            ids, cut = self.prompt.encode(self.tokenizer, cv, self.max_cv_tokens)
            if cut:
                end = len(ids) - len(self.prompt.tail_ids(self.tokenizer))
                kept = ids[end - self.max_cv_tokens : end]
                text = self.tokenizer.decode(kept).rstrip("\ufffd")  # half of a character
        return Asked(ids, f"{INSTRUCTIONS[self.prompt.language]}\n\n{text}", keys), cut


@dataclass(frozen=True)
class Task:
    """A shard to write: the CVs, whose they are, and the keys of their JDs."""

    keys: list[bytes]
    users: list[str]
    cvs: list[str]


@dataclass(frozen=True)
class Recipe:
    """All that a process needs to write JDs; it can be sent to another machine. ``engine``: local or api; ``model``:
    what is loaded there by name or folder, the language model or, for a server, its tokenizer alone."""

    config: GenerateConfig
    engine: str
    prompt: Prompt
    max_cv_tokens: int
    model: str | None
    fingerprint: str | None


def make_generator(recipe: Recipe, lm: llm.LanguageModel | None = None) -> JDGenerator:
    """The generator of a recipe. ``lm``: its language model, where it is loaded already. ``DataError`` where another
    one lies under its name."""
    config = recipe.config
    if recipe.engine == "api":
        from girl_recbole.engines.api import make_api_engine

        engine: Engine = make_api_engine(config)
        tokenizer = llm.load_tokenizer(recipe.model) if recipe.model else None
    else:
        lm = lm or llm.load(str(recipe.model), config.lm_dtype)
        if lm.fingerprint != recipe.fingerprint:
            raise DataError(
                f"{recipe.model}: holds other weights on this machine ({lm.fingerprint}) than where the run was "
                f"started ({recipe.fingerprint}); every machine needs the same generator under this name."
            )
        engine = LocalEngine(lm, config.max_jd_tokens, config.temperature, config.top_p, config.gen_batch_size)
        tokenizer = lm.tokenizer
    samples = config.gen_samples * config.gen_best_of
    return JDGenerator(engine, tokenizer, recipe.prompt, config.seed, samples, recipe.max_cv_tokens)


def keep_best(written: Written, rewards: np.ndarray) -> Written:
    """Of each row of candidates the first with the highest reward. ``rewards`` (samples, n), as the candidates lie."""
    kept = [row * rewards.shape[1] + int(best) for row, best in enumerate(rewards.argmax(axis=1))]
    return Written(
        [written.texts[i] for i in kept], [written.ended[i] for i in kept], written.cut, rewards.tolist()
    )  # fmt: skip


def _best(task: Task, candidates: Sequence[Written], rewards: Rewards, best_of: int) -> list[Written]:
    """The best by ``rewards`` of each ``best_of`` JDs that were written for CV i, of seeker i."""
    count = len(candidates[0].texts)
    scored = rewards(
        [user for user in task.users for _ in range(count)], [cv for cv in task.cvs for _ in range(count)],
        [text for written in candidates for text in written.texts],
        [ended for written in candidates for ended in written.ended],
    )  # fmt: skip
    totals = scored.total.reshape(len(task.cvs), -1, best_of)
    return [keep_best(written, total) for written, total in zip(candidates, totals, strict=True)]


# ---------------------------------------------------------------------------------------------------------- the stage


def generate(files: DatasetFiles, config: GenerateConfig) -> dict[str, Any]:
    """Write the ``.gdoc`` and its manifest; returns the report. Nothing is done if it is there already.

    Raises ``DataError`` for seekers without a CV, for a generator that was trained with another prompt, for shards in
    the way that another model, prompt or sampling made, and where another process is writing the file.
    """
    start = time.monotonic()
    check_language_model(config)
    check_least(config, gen_samples=1, gen_best_of=1, gen_batch_size=1, gen_shard_size=1)
    _check_engine(config)
    path, best_of = files.gdoc(_output(files, config)), config.gen_best_of
    wanted = wanted_seekers(files, config.gen_stages)
    with only_writer(path):
        seekers = find_seekers(files, wanted, config.gen_stages, by_seeker=best_of > 1)
        rewards = make_rewards(files, config) if best_of > 1 else None
        if rewards:
            rewards.check(user for user, _, first, _ in walk(files, seekers) if first)
        recipe, settings, generator = _prepare(files, config)
        if rewards:
            settings |= {"best_of": best_of, "rewards": rewards.fingerprint}
        folder, manifest = unfinished_folder(path), _same_settings(path, settings)
        if manifest and _same_cvs(path, manifest, files, wanted, seekers):
            if _made_with(folder) == manifest["settings"]:  # a run was killed when all but this was done
                shutil.rmtree(folder)
            return {**manifest["report"], "file": str(path), "reused": "all: the file was there already"}
        del wanted
        claim(folder, settings, len(list(folder.glob("*.jsonl"))), "shards", "girl generate")
        shards = Shards(folder)
        found = len(shards)
        if manifest:
            _take_over(path, manifest, seekers, shards, config.gen_shard_size)
        missing = seekers.first & shards.missing(seekers.keys)
        distinct, to_write = int(seekers.first.sum()), int(missing.sum())
        tasks = _tasks(files, seekers, missing, config.gen_shard_size)
        samples = config.gen_samples * best_of
        with tqdm(total=distinct * samples, initial=(distinct - to_write) * samples, desc=path.name, unit="JD") as bar:
            for task, rows in _run(recipe, generator, tasks, bool(rewards)):
                shards.write(task.keys, _best(task, rows, rewards, best_of) if rewards else rows)
                bar.update(len(task.keys) * samples)
        findings = _Findings()
        with write_kept(path) as keep:
            write_generated(path, findings.watch(_assemble(files, seekers, shards), keep))
        report = {
            "file": str(path),
            "seekers": len(seekers.keys),
            "distinct_cvs": distinct,
            "empty_cvs": seekers.empty,
            **findings.report(),
        }
        once = {
            "shards": len(shards),
            "shards_reused": found,
            **({"shards_corrupt": shards.corrupt} if shards.corrupt else {}),
            "cvs_reused": distinct - to_write,
            "cvs_written": to_write,
            **({"requests": dict(generator.engine.counts)} if config.gen_engine == "api" else {}),
            "wall_time_s": round(time.monotonic() - start, 1),
        }
        write_manifest(
            path, "gdoc", config=dataclasses.asdict(config), inputs=[files.udoc], seed=config.seed,
            wall_time_s=once["wall_time_s"], settings=settings, source=seekers.source, sha256=file_hash(path),
            cvs_sha256=file_hash(kept_path(path)), report={k: v for k, v in report.items() if k != "file"},
        )  # fmt: skip
        shutil.rmtree(folder)
        return report | once


def _check_engine(config: GenerateConfig) -> None:
    if config.gen_engine not in ENGINES:
        raise ConfigError(f"gen_engine: {config.gen_engine!r} is unknown; known: {', '.join(ENGINES)}.")
    if config.gen_engine == "ray":
        if config.ray_engine not in ENGINES[:2]:
            raise ConfigError(f"ray_engine: {config.ray_engine!r} is unknown; known: {', '.join(ENGINES[:2])}.")
        check_least(config, ray_num_cpus=0, ray_retries=0)
        check_least(config, **{key: least for key, least in (("ray_workers", 1), ("ray_num_gpus", 0))
                               if getattr(config, key) is not None})  # fmt: skip


def _prepare(files: DatasetFiles, config: GenerateConfig) -> tuple[Recipe, dict[str, Any], JDGenerator | None]:
    """How JDs are written, all that decides their texts, and the generator of this process where one writes here."""
    kind = config.ray_engine if config.gen_engine == "ray" else config.gen_engine
    if kind == "api":
        model, prompt = _served(files, config)
        lm, recipe = None, Recipe(config, kind, prompt, config.max_cv_tokens, model, None)
    else:
        lm, prompt = _load(files, config)
        room = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
        recipe = Recipe(config, kind, prompt, room, lm.name, lm.fingerprint)
    generator = make_generator(recipe, lm)
    settings = {
        **generator.engine.settings, "prompt": prompt.id, "seed": config.seed, "samples": config.gen_samples,
        "max_cv_tokens": config.max_cv_tokens, **({} if generator.tokenizer else {"cv_tokens": "pieces"}),
    }  # fmt: skip
    if config.gen_engine != "ray":
        return recipe, settings, generator
    del lm, generator  # a model that writes elsewhere needs no memory here
    gc.collect()
    return recipe, settings, None


def _run(
    recipe: Recipe, generator: JDGenerator | None, tasks: Iterator[Task], with_cvs: bool
) -> Iterator[tuple[Task, list[Written]]]:
    """The JDs of each task as they come; from Ray in any order, and CVs come back only where they are asked for."""
    if generator:
        return ((task, generator.write(task.cvs)) for task in tasks)
    from girl_recbole.engines.ray import Workers, write_shards

    config = recipe.config
    workers = Workers(config.ray_workers, config.ray_num_cpus, config.ray_num_gpus, config.ray_retries)
    make: Callable[[], JDGenerator] = functools.partial(make_generator, recipe)
    return write_shards(make, tasks, workers, needs_gpu=recipe.engine == "local", with_cvs=with_cvs)


def _output(files: DatasetFiles, config: GenerateConfig) -> str:
    """The name of the ``.gdoc``, after a check of the settings that belong to it."""
    name, best_of = config.generator, config.gen_best_of
    if best_of > 1:
        check_rewards(config)
        name = f"{name}-best-of-{best_of}"
        if config.temperature == 0:
            raise ConfigError(
                f"gen_best_of: at temperature 0 all {best_of} candidates are the same; set temperature above 0."
            )
    if config.gen_as is not None:
        name = config.gen_as
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"gen_as: {name!r} cannot be a name; use letters, digits, '-', '_' and '.'.")
    folder = generator_folder(config.saved_folder, files.name, name)
    if folder.exists() and (name != config.generator or best_of > 1):
        raise ConfigError(
            f"gen_as: {name!r} names the trained generator {folder}, whose own JDs go by that name; give these another."
        )
    return name


def load_generator(
    files: DatasetFiles, name: str, saved_folder: str, lm_dtype: str, prompt_language: str, merge: bool = False
) -> tuple[llm.LanguageModel, Prompt]:
    """The trained generator ``name`` of a dataset, and the prompt that it was trained with.

    ``merge``: a LoRA adapter is added into the weights. Raises ``DataError`` for one that is not there, is unfinished,
    or was trained on another ``NAME.sft.inter`` or with another prompt.
    """
    folder = generator_folder(saved_folder, files.name, name)
    rebuild = f"girl sft {files.name} --generator={name}"
    if not folder.exists():
        raise DataError(f"{folder}: no such generator. {_how_to_write(files, name, saved_folder, rebuild)}")
    rebuild = (read_manifest(folder) or {}).get("made_by", rebuild)
    inputs = require(folder, rebuild)["inputs"]
    stage = files.stage("sft")
    if stage.name in inputs and stage.exists() and inputs[stage.name] != file_hash(stage):
        raise DataError(
            f"{folder}: trained on another {stage.name} than {stage}. Run `{rebuild}`, or put the old file back."
        )
    lm = llm.load(str(folder), lm_dtype, merge=merge)
    prompt = make_prompt(prompt_language, lm.tokenizer)
    require(folder, rebuild, prompt=prompt.id, fingerprint=lm.fingerprint)
    return lm, prompt


def _how_to_write(files: DatasetFiles, name: str, saved_folder: str, train: str) -> str:
    """What to do about JDs that go by the name of no trained generator: they may be named by gen_as."""
    made = (read_manifest(files.gdoc(name)) or {}).get("config", {})
    best_of = re.fullmatch(r"(.+)-best-of-(\d+)", name)
    if made.get("gen_as") == name:
        said = f"--generator={made['generator']} --gen_as={name}"
        said += f" --gen_best_of={made['gen_best_of']}" * (made["gen_best_of"] > 1)
    elif best_of and generator_folder(saved_folder, files.name, best_of[1]).exists():
        said = f"--generator={best_of[1]} --gen_best_of={best_of[2]}"
    else:
        return f"Run `{train}`, or name a model with gen_model."
    return f"These JDs are another generator's: run `girl generate {files.name} {said}`."


def _load(files: DatasetFiles, config: GenerateConfig) -> tuple[llm.LanguageModel, Prompt]:
    """The model that writes, and its prompt."""
    if not config.gen_model:
        return load_generator(
            files, config.generator, config.saved_folder, config.lm_dtype, config.prompt_language
        )  # fmt: skip
    _check_name_is_free(files, config)
    lm = llm.load(config.gen_model, config.lm_dtype)
    return lm, make_prompt(config.prompt_language, lm.tokenizer)


def _served(files: DatasetFiles, config: GenerateConfig) -> tuple[str | None, Prompt]:
    """Where the tokenizer of a server's model is found, if anywhere, and the prompt that the server gets."""
    folder = generator_folder(config.saved_folder, files.name, config.generator)
    if config.gen_model:
        _check_name_is_free(files, config)
    model = config.gen_model or (str(folder) if folder.exists() else None)
    if config.api_endpoint != "completions":  # the chat template is the server's
        return model, make_prompt(config.prompt_language)
    if model is None:
        raise ConfigError(
            f"api_endpoint: completions sends token ids, which need the tokenizer of the served model: name it with "
            f"gen_model, or train {folder}. Or set api_endpoint: chat."
        )
    prompt = make_prompt(config.prompt_language, llm.load_tokenizer(model))
    if not config.gen_model:
        require(folder, f"girl sft {files.name} --generator={config.generator}", prompt=prompt.id)
    return model, prompt


def _check_name_is_free(files: DatasetFiles, config: GenerateConfig) -> None:
    folder = generator_folder(config.saved_folder, files.name, config.generator)
    if folder.exists():
        raise ConfigError(
            f"generator: {config.generator!r} names the trained generator {folder}; give the JDs of gen_model "
            f"{config.gen_model!r} another name (--generator=base)."
        )


# --------------------------------------------------------------------------------------------------------- the shards


def _tasks(files: DatasetFiles, seekers: Seekers, missing: np.ndarray, size: int) -> Iterator[Task]:
    """The CVs of the seekers ``missing`` (S,) bool, ``size`` at a time, in their order."""
    raw = seekers.keys.tobytes()

    def chosen() -> Iterator[tuple[bytes, str, str]]:
        for user, cv, _, at in walk(files, seekers) if missing.any() else ():
            key = raw[at * KEY_BYTES : (at + 1) * KEY_BYTES]
            if missing[at]:
                if not seekers.is_key(key, user, cv):
                    raise _changed(files)
                yield key, user, cv

    cvs = chosen()
    while part := list(islice(cvs, size)):
        yield Task(*map(list, zip(*part, strict=True)))


def _changed(files: DatasetFiles) -> DataError:
    return DataError(f"{files.udoc}: changed while JDs were written for its CVs; run the same command again.")


# ------------------------------------------------------------------------------------------------- finished JDs, again


def _same_settings(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished file that ``settings`` made and nobody changed."""
    manifest = read_manifest(path) if path.exists() else None
    if not manifest or manifest.get("settings") != json.loads(json.dumps(settings)):
        return None
    if manifest["sha256"] != file_hash(path):
        log.warning("%s was changed after it was written; it is written again", path)
        return None
    return manifest


def _same_cvs(path: Path, manifest: dict[str, Any], files: DatasetFiles, wanted: np.ndarray, seekers: Seekers) -> bool:
    """Whether a finished file is that of the wanted seekers' present CVs, in whatever order."""
    if manifest["source"] == seekers.source:
        return True
    if manifest["inputs"].get(files.udoc.name) != seekers.udoc_sha256:
        return False
    return np.array_equal(np.sort(as_keys(key_of(user) for user, _ in iter_generated(path))), wanted)


def _take_over(path: Path, manifest: dict[str, Any], seekers: Seekers, shards: Shards, size: int) -> None:
    """Copy the JDs that are wanted and not in ``shards`` yet from a finished file into shards."""
    if not kept_path(path).exists() or manifest.get("cvs_sha256") != file_hash(kept_path(path)):
        return
    wanted = np.sort(seekers.keys[seekers.first & shards.missing(seekers.keys)])
    taken = np.zeros(len(wanted), bool)
    pairs = zip(iter_generated(path), read_kept(path), strict=True)
    keys: list[bytes] = []
    rows: list[Written] = []
    while len(wanted) and (block := list(islice(pairs, _ROWS))):
        held = as_keys(kept.key for _, kept in block)
        where = np.minimum(np.searchsorted(wanted, held), len(wanted) - 1)
        for number in np.flatnonzero(wanted[where] == held):
            if taken[where[number]]:
                continue
            taken[where[number]] = True
            (_, texts), kept = block[number]
            keys.append(kept.key)
            rows.append(Written(texts, kept.ended, kept.cut, kept.rewards))
            if len(keys) == size:
                shards.write(keys, rows)
                keys, rows = [], []
    if keys:
        shards.write(keys, rows)


def _assemble(files: DatasetFiles, seekers: Seekers, shards: Shards) -> Iterator[tuple[str, bytes, Written]]:
    """(seeker, key, JDs) in the seekers' order."""
    raw = seekers.keys.tobytes()
    for (user, _, _, at), written in zip(walk(files, seekers), shards.read(seekers.keys), strict=False):
        yield user, raw[at * KEY_BYTES : (at + 1) * KEY_BYTES], written
    if file_hash(files.udoc) != seekers.udoc_sha256:  # before the file gets its name
        raise _changed(files)


class _Findings:
    """Counts what passes on its way to the file."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.flagged: dict[str, list[str]] = {}
        self.rewards = 0.0, 0.0, 0  # sum of those that were kept, sum of all, number of all

    def watch(
        self, rows: Iterator[tuple[str, bytes, Written]], keep: Callable[[Kept], None]
    ) -> Iterator[tuple[str, int, str]]:
        for user, key, written in rows:
            self.counts["cvs_cut"] += written.cut > 0
            keep(Kept(key, written.ended, written.cut, written.rewards))
            for candidates in written.rewards or []:
                best, total, count = self.rewards
                self.rewards = best + max(candidates), total + math.fsum(candidates), count + len(candidates)
            for number, (text, ended) in enumerate(zip(written.texts, written.ended, strict=True)):
                self.counts["jds"] += 1
                problem = parse_jd(text).problem
                for trouble in [problem] * bool(problem) + ["cut by max_jd_tokens"] * (not ended):
                    self.counts[trouble] += 1
                    if len(names := self.flagged.setdefault(trouble, [])) < _SHOWN:
                        names.append(f"{user}/{number}")
                yield user, number, text

    def report(self) -> dict[str, Any]:
        problems = {trouble: self.counts[trouble] for trouble in self.flagged}
        found = {"jds": self.counts["jds"], "cvs_cut": self.counts["cvs_cut"]}
        best, total, count = self.rewards
        if count:
            found["mean_reward_of_kept"] = best / self.counts["jds"]
            found["mean_reward_of_all_candidates"] = total / count
        return {**found, "problems": problems, "flagged_first": self.flagged}
