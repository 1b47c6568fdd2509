"""Write n JDs for every CV with a generator: CVs -> ``NAME.<generator>.gdoc``.

For a CV C and a sample number i, J_i ~ p(. | C, T): the prompt T(C) of prompts.py with blank output, continued until
EOS or ``max_jd_tokens``. The random numbers of J_i depend on (seed, C, i) alone (llm.py), so the JDs of a CV do not
depend on which other CVs are written, in which order or batch, or on how often the work was stopped; the first of n
samples is the one that n = 1 gives. Equal CV texts are written once.

:class:`JDGenerator` owns the prompt, the keys, the limits and the reading; an :class:`Engine` maps prompts and keys to
completions. :class:`LocalEngine` runs a model in this process; a server or a cluster is another small class.

Work is cut into shards of ``gen_shard_size`` distinct CVs, each in a file named by the hash of its CVs, in
``NAME.<generator>.gdoc.shards/``. A shard appears when it is whole. After a kill at any moment the same command goes
on with the shards that are missing, and the final file equals that of an undisturbed run. Shards of another model,
prompt or sampling are refused, not mixed in. The folder goes when the final file and its manifest are written.

The limits and the prompt are those of the training: ``max_cv_tokens``, ``max_jd_tokens``, ``prompt_language`` and
``lm_dtype`` come from the generator's manifest (:func:`trained_with`) where the user does not set them himself.
A generator that was trained on another ``NAME.sft.inter`` than the present one is refused.

Best of n (``gen_best_of`` = n > 1): for each wanted JD, n candidates are written and the one with the highest reward
R(u, C, J) (rewards.py) is kept:

    J_i = argmax over k = i n ... i n + n - 1 of R(u, C, J'_k)        J'_k: the JD that sample number k has with n = 1

The first candidate wins a tie. Seekers with one CV text share its JDs; u is then the first of them in file order. The
file is ``NAME.<gen_as>.gdoc``, by default ``NAME.<generator>-best-of-<n>.gdoc``, beside the generator's own.

A JD that is cut by the limit, or without the structure of a JD (:func:`girl_recbole.prompts.parse_jd`) is kept
as it is, counted, and flagged by seeker in the report and in the manifest: whether to use it is the reader's choice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from girl_recbole import llm
from girl_recbole.atomic import DatasetFiles, atomic_write, read_docs, read_table, read_users, write_generated
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.manifest import file_hash, read_manifest, require, text_hash, write_manifest
from girl_recbole.prompts import Prompt, make_prompt, parse_jd
from girl_recbole.rewards import Rewards, check_rewards, make_rewards

__all__ = [
    "Engine",
    "GenerateConfig",
    "JDGenerator",
    "LocalEngine",
    "check_language_model",
    "check_least",
    "claim",
    "cv_room",
    "generate",
    "generator_folder",
    "load_generator",
    "trained_with",
]

log = logging.getLogger(__name__)

GROUPS = ("recommendation", "sft", "reward", "rl")
TRAINED = ("max_cv_tokens", "max_jd_tokens", "prompt_language", "lm_dtype")
_SHOWN = 20  # seekers named in a report for each kind of problem


@dataclass(frozen=True)
class GenerateConfig:
    """Keys and meanings: properties/overall.yaml, sections "Language model" and, for the best of n, "Reinforcement
    learning" and "Text encoder"."""

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


def claim(folder: Path, settings: dict[str, Any], finished: int, of: str, command: str) -> None:
    """Take the folder of unfinished work for ``settings``; refuse it if what is ``finished`` was made with others."""
    marker = folder / "settings.json"
    if not finished or not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_write(marker) as file:
            json.dump(settings, file)
        return
    old, now = json.loads(marker.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
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
class Completion:
    """What an engine wrote after a prompt, and whether it stopped by itself."""

    text: str
    ended: bool


class Engine(Protocol):
    """Continues prompts. ``keys[i]`` holds a 128-bit key for each sample wanted of ``prompts[i]`` (token ids)."""

    def complete(self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> list[list[Completion]]: ...


@dataclass(frozen=True)
class LocalEngine:
    """A model in this process. Batches hold prompts of like length; ``batch_size`` counts sequences."""

    lm: llm.LanguageModel
    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int

    def complete(self, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]) -> list[list[Completion]]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size = max(1, self.batch_size // max(map(len, keys), default=1))
        done: dict[int, list[Completion]] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            sampled = llm.sample(
                self.lm, [prompts[i] for i in batch], [keys[i] for i in batch],
                max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p,
            )  # fmt: skip
            for i, samples in zip(batch, sampled, strict=True):
                done[i] = [Completion(self._text(s.ids), s.ended) for s in samples]
        return [done[i] for i in range(len(prompts))]

    def _text(self, ids: list[int]) -> str:
        return self.lm.tokenizer.decode(ids, skip_special_tokens=True)


@dataclass(frozen=True)
class Written:
    """The JDs of one CV: texts, which of them ended by EOS, and how many tokens of the CV were cut off.

    ``rewards``: of each text's candidates, where it is the best of some."""

    texts: list[str]
    ended: list[bool]
    cut: int
    rewards: list[list[float]] | None = None


@dataclass(frozen=True)
class JDGenerator:
    """CVs -> JDs, whatever the engine."""

    engine: Engine
    tokenizer: Any
    prompt: Prompt
    seed: int
    samples: int
    max_cv_tokens: int

    def write(self, cvs: Sequence[str]) -> list[Written]:
        """``samples`` JDs for each CV."""
        encoded = [self.prompt.encode(self.tokenizer, cv, self.max_cv_tokens) for cv in cvs]
        keys = [[llm.sample_key(self.seed, cv, i) for i in range(self.samples)] for cv in cvs]
        completions = self.engine.complete([ids for ids, _ in encoded], keys)
        return [
            Written([c.text.strip() for c in row], [c.ended for c in row], cut)
            for row, (_, cut) in zip(completions, encoded, strict=True)
        ]


def keep_best(written: Written, rewards: np.ndarray) -> Written:
    """Of each row of candidates the first with the highest reward. ``rewards`` (samples, n), as the candidates lie."""
    kept = [row * rewards.shape[1] + int(best) for row, best in enumerate(rewards.argmax(axis=1))]
    return Written(
        [written.texts[i] for i in kept], [written.ended[i] for i in kept], written.cut, rewards.tolist()
    )  # fmt: skip


def write_best(
    generator: JDGenerator, users: Sequence[str], cvs: Sequence[str], rewards: Rewards, best_of: int
) -> list[Written]:
    """The best by ``rewards`` of each ``best_of`` JDs that ``generator`` writes for CV i, of seeker i."""
    candidates = generator.write(cvs)
    count = generator.samples
    scored = rewards(
        [user for user in users for _ in range(count)], [cv for cv in cvs for _ in range(count)],
        [text for written in candidates for text in written.texts],
        [ended for written in candidates for ended in written.ended],
    )  # fmt: skip
    totals = scored.total.reshape(len(cvs), -1, best_of)
    return [keep_best(written, total) for written, total in zip(candidates, totals, strict=True)]


# ---------------------------------------------------------------------------------------------------------- the stage


def generate(files: DatasetFiles, config: GenerateConfig) -> dict[str, Any]:
    """Write the ``.gdoc`` and its manifest; returns the report. Nothing is done if it is there already.

    Raises ``DataError`` for seekers without a CV, for a generator that was trained with another prompt, and for shards
    in the way that another model, prompt or sampling made.
    """
    start = time.monotonic()
    check_language_model(config)
    check_least(config, gen_samples=1, gen_best_of=1, gen_batch_size=1, gen_shard_size=1)
    name, best_of = _output(files, config), config.gen_best_of
    users = _seekers(files, config.gen_stages)
    docs = read_docs(files.udoc)
    missing = [user for user in users if user not in docs]
    if missing:
        raise DataError(
            f"{files.udoc}: {len(missing)} of {len(users)} seekers have no CV ({some_of(missing)}); each needs one."
        )
    cvs = {user: docs[user] for user in users}
    first: dict[str, str] = {}  # CV -> the first seeker who has it
    for user, cv in cvs.items():
        first.setdefault(cv, user)
    rewards = make_rewards(files, config) if best_of > 1 else None
    if rewards:
        rewards.check(first.values())
    lm, prompt = _load(files, config)
    settings = {
        "model": lm.fingerprint, "prompt": prompt.id, "seed": config.seed, "samples": config.gen_samples,
        "temperature": config.temperature, "top_p": config.top_p, "max_cv_tokens": config.max_cv_tokens,
        "max_jd_tokens": config.max_jd_tokens, "dtype": config.lm_dtype,
    }  # fmt: skip
    if rewards:
        settings |= {"best_of": best_of, "rewards": rewards.fingerprint}
    path = files.gdoc(name)
    source = text_hash(*(text for pair in cvs.items() for text in pair))
    manifest = read_manifest(path) if path.exists() else None
    if manifest and manifest["settings"] == settings and manifest["source"] == source:
        if manifest["sha256"] == file_hash(path):
            return {**manifest["report"], "file": str(path), "reused": "all: the file was there already"}
        log.warning("%s was changed after it was written; it is written again", path)
    room = cv_room(lm, prompt, config.max_jd_tokens)
    engine = LocalEngine(lm, config.max_jd_tokens, config.temperature, config.top_p, config.gen_batch_size)
    generator = JDGenerator(
        engine, lm.tokenizer, prompt, config.seed, config.gen_samples * best_of, min(config.max_cv_tokens, room)
    )  # fmt: skip
    folder = path.with_name(path.name + ".shards")
    claim(folder, settings, len(list(folder.glob("*.jsonl"))), "shards", "girl generate")
    distinct = list(first)
    parts = [distinct[i : i + config.gen_shard_size] for i in range(0, len(distinct), config.gen_shard_size)]
    shards = [(folder / _shard_name(part, [first[cv] for cv in part] if rewards else []), part) for part in parts]
    reused = 0
    with tqdm(total=len(distinct) * generator.samples, desc=path.name, unit="JD") as bar:
        for shard, part in shards:
            if shard.exists():
                reused += 1
            elif rewards:
                _write_shard(shard, write_best(generator, [first[cv] for cv in part], part, rewards, best_of))
            else:
                _write_shard(shard, generator.write(part))
            bar.update(len(part) * generator.samples)
    found = _Findings()
    write_generated(path, found.watch(_assemble(cvs, shards)))
    report = {
        "file": str(path),
        "seekers": len(users),
        "distinct_cvs": len(distinct),
        "empty_cvs": sum(not cv.strip() for cv in cvs.values()),
        **found.report(),
        "shards": len(shards),
        "shards_reused": reused,
        "wall_time_s": round(time.monotonic() - start, 1),
    }
    write_manifest(
        path, "gdoc", config=dataclasses.asdict(config), inputs=[files.udoc], seed=config.seed,
        wall_time_s=report["wall_time_s"], settings=settings, source=source, sha256=file_hash(path),
        report={key: value for key, value in report.items() if key not in ("file", "shards_reused")},
    )  # fmt: skip
    shutil.rmtree(folder)
    return report


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


def _seekers(files: DatasetFiles, stages: Iterable[str] | str) -> list[str]:
    """The seekers of the wanted stages, each once, in file order."""
    stages = [stages] if isinstance(stages, str) else list(stages)
    unknown = [stage for stage in stages if stage not in GROUPS]
    if unknown or not stages:
        raise ConfigError(f"gen_stages: {', '.join(map(str, unknown)) or 'none'}; known: {', '.join(GROUPS)}.")
    users: dict[str, None] = {}
    for stage in stages:
        if stage == "rl":
            users.update(dict.fromkeys(read_users(files.stage("rl"))))
        else:
            path = files.inter if stage == "recommendation" else files.stage(stage)
            users.update(dict.fromkeys(read_table(path, required=("user_id",))["user_id"]))
    if not users:
        raise DataError(f"{files.folder}: the stages {', '.join(stages)} have no seeker.")
    return list(users)


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
    folder = generator_folder(config.saved_folder, files.name, config.generator)
    if folder.exists():
        raise ConfigError(
            f"generator: {config.generator!r} names the trained generator {folder}; give the JDs of gen_model "
            f"{config.gen_model!r} another name (--generator=base)."
        )
    lm = llm.load(config.gen_model, config.lm_dtype)
    return lm, make_prompt(config.prompt_language, lm.tokenizer)


# ------------------------------------------------------------------------------------------------------------- shards


def _shard_name(cvs: Sequence[str], users: Sequence[str]) -> str:
    """By what its JDs depend on: the CVs, and for the best of n the seekers too, whose rewards they are."""
    return text_hash(*cvs, *users)[:24] + ".jsonl"


def _write_shard(path: Path, rows: Sequence[Written]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")


def _read_shard(path: Path) -> Iterator[Written]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield Written(**json.loads(line))


def _assemble(cvs: dict[str, str], shards: Sequence[tuple[Path, Sequence[str]]]) -> Iterator[tuple[str, str, Written]]:
    """(seeker, CV, JDs) in the seekers' order; only the JDs of CVs that several seekers share stay in memory."""
    left = Counter(cvs.values())
    shared: dict[str, Written] = {}
    fresh = (pair for path, part in shards for pair in zip(part, _read_shard(path), strict=True))
    for user, cv in cvs.items():
        if cv not in shared:
            same, shared[cv] = next(fresh)
            assert same == cv  # CVs appear in the order in which they were cut into shards
        yield user, cv, shared[cv]
        left[cv] -= 1
        if not left[cv]:
            del shared[cv]


class _Findings:
    """Counts what passes on its way to the file."""

    def __init__(self) -> None:
        self.rewards: list[list[float]] = []
        self.counts: Counter[str] = Counter()
        self.flagged: dict[str, list[str]] = {}

    def watch(self, rows: Iterator[tuple[str, str, Written]]) -> Iterator[tuple[str, int, str]]:
        for user, _, written in rows:
            self.counts["cvs_cut"] += written.cut > 0
            self.rewards += written.rewards or []
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
        if self.rewards:
            rewards = np.array(self.rewards)  # (JDs, candidates of each)
            found["mean_reward_of_kept"] = float(rewards.max(axis=1).mean())
            found["mean_reward_of_all_candidates"] = float(rewards.mean())
        return {**found, "problems": problems, "flagged_first": self.flagged}
