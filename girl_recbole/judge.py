"""Which of two generators writes the better JDs for the same CVs: a language model, and judges that need none.

Zheng et al. 2023 (arXiv:2307.02157, sections VI-B and VI-C, Table II): 200 CVs that no training saw, two JDs each, a
judge that says which is better; of n seekers

    Win, Tie, Lose, Invalid = shares of the verdicts on (a, b), seen from a; they sum to 1      Adv = Win - Lose

The paper's judge is ChatGPT, by level of detail, relevance and conciseness together, its position bias handled by
"bootstrapping" that is not described. Its rows do not all sum to 1 (.45 + .25 + .26): we count what cannot be read as a
class of its own, Invalid. What we decided:

* ``llm``: a question holds one criterion (``judge_criteria``; ``overall`` is the paper's three together) and is asked
  in both orders, always. a is A in the first and B in the second:

      both orders say the same of a     that
      they differ                       Tie (``judge_disagreement: tie``); or with ``lean`` a Tie in one order leaves
                                        the other's verdict, and opposed verdicts make a Tie
      one answer cannot be read         Invalid

  position_bias = share of readable pairs whose orders differ; says_a = share of A among the answers A and B, .5 for a
  judge without a side. A local model (``judge_model``) is read by the probability of the letters A, B and C as its next
  token, or by what it writes; a served model (``api_url``, ``api_model``) by what it writes. Only the answer is read.
* Judges that give a score s to each JD; a wins where s_a > s_b, equal scores (to 1e-9) are a Tie:

      reward        U(C, J), normalised, of the reward model (reward.py): what alignment maximised, so no proof of it
      market        true probability of a match of the seeker with the JD (market/judge.py); simulated markets only
      retrieval     1 / log2(1 + rank) of the seeker's best matched job of NAME.inter, among the distinct texts of all
                    its jobs, with the JD as the query, by ``retrieval_search``. A tie there counts against the JD.
                    Seekers without a match there have no verdict, and n is smaller
      format        share of four checks that hold: structure (title and body, prompts.parse_jd), length (words within
                    ``length_words``), repetition (a quarter of the words differ, no sentence of four words or more is
                    there twice), ending (the last character ends a sentence: a cut JD fails; so does a list)
      readability   Flesch's reading ease, 206.835 - 1.015 words / sentences - 84.6 syllables / words, higher is easier.
                    ENGLISH ONLY, syllables counted by vowels; a text that is not mostly ASCII letters has no verdict

Contestants are generators (NAME.<generator>.gdoc, sample 0), and two references that show what a judge is worth:
``matched``, a job of NAME.inter that the seeker was matched with, and ``random``, any job there; drawn by seed.

Seekers: ``judge_seekers`` drawn by seed of the test part of ``split`` (``judge_part: all``: of the recommendation
stage), without those of the stages sft, reward and rl, and with a match where ``matched`` takes part.

Intervals: 2,000 bootstrap replicates over seekers, the same for all judges with as many seekers; they know nothing of
how another training run would have come out. Agreement of two judges on one pair of contestants, over seekers with a
Win, Tie or Lose by both: share of equal verdicts, Cohen's kappa, and Spearman's correlation of the score differences
s_a - s_b where both have scores (for labels: the mean over the orders of log p(a) - log p(b)).

Output: a JSON file with the rows of all this, and one letter (W, T, L, I, or - for none) a seeker and row. It holds ids
and no text. Answers of the language model are kept beside it, in ``<output>.answers``, until it is written: a command
that was stopped asks for the rest only. No line of it holds text either.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from girl_recbole.atomic import DatasetFiles, atomic_write, iter_docs, read_interactions, read_users
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.manifest import text_hash
from girl_recbole.prompts import (
    LETTERS,
    Prompt,
    cut_words,
    encode_text,
    judge_input,
    judge_prompt,
    judge_question,
    parse_jd,
    parse_verdict,
    words_of,
)
from girl_recbole.results import code_version, file_hashes, machine, plain
from girl_recbole.rewards import Search, bm25_search, embedding_search, length_reward, retrieval_reward
from girl_recbole.texts import check_generated, sorted_keys, stream_texts

__all__ = [
    "JUDGES",
    "JudgeConfig",
    "MatchedJobs",
    "agreement",
    "bootstrap",
    "compare",
    "flesch",
    "format_checks",
    "judge",
    "label_log_probs",
    "read_generated_for",
    "read_matched",
    "retrieval_gains",
    "settle",
    "tally",
    "unseen_seekers",
]

log = logging.getLogger(__name__)

JUDGES = ("llm", "reward", "market", "retrieval", "format", "readability")
REFERENCES = ("matched", "random")
WIN, TIE, LOSE, INVALID, NONE = "W", "T", "L", "I", "-"
REPLICATES = 2000
_MEASURES = {"reward": "reward", "market": "true probability", "format": "checks passed", "readability": "Flesch"}
_BLOCK = 256  # queries of a search at a time, and questions between two writings of answers
_DRAWS = 1 << 20  # of a bootstrap at a time
_SAME = 1e-9


@dataclass(frozen=True)
class JudgeConfig:
    """Keys and meanings: properties/overall.yaml, sections "Judges", "Served model", "Language model", "Reward model",
    "Reinforcement learning" and "Text encoder"."""

    seed: int
    split: str
    judge_seekers: int | None
    judge_part: str
    judge_criteria: tuple | str
    judge_model: str | None
    judge_by: str
    judge_disagreement: str
    judge_max_words: int
    judge_answer_tokens: int
    judge_batch: int
    prompt_language: str
    saved_folder: str
    reward_model: str
    reward_batch: int
    lm_dtype: str
    retrieval_search: str
    length_words: tuple
    encoder: str
    max_text_tokens: int | None
    text_windows: int
    encoder_batch_tokens: int | None
    encoder_precision: str
    api_url: str | None
    api_model: str | None
    api_endpoint: str
    api_concurrency: int
    api_retries: int
    api_timeout: float
    api_max_failures: int
    api_body: dict


@dataclass(frozen=True)
class _Round:
    """What one judge says by one criterion. ``verdicts``: pair of contestants -> (S,) letters, seen from the first.
    ``gaps``: pair -> (S,) differences of scores, NaN where there is none; {} for a judge without scores. ``facts``:
    pair -> more columns of its row. ``scores``: a row for each contestant."""

    judge: str
    criterion: str
    verdicts: dict[tuple[str, str], np.ndarray]
    gaps: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    facts: dict[tuple[str, str], dict[str, float | None]] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """Who is judged, and what: ``jds[contestant][i]`` is for seeker i with the CV ``cvs[i]``."""

    files: DatasetFiles
    config: JudgeConfig
    users: list[str]
    cvs: list[str]
    jds: dict[str, list[str]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(itertools.combinations(self.jds, 2))


def judge(
    files: DatasetFiles,
    config: JudgeConfig,
    *,
    contestants: Sequence[str],
    judges: str | Sequence[str],
    output: str | None = None,
) -> dict[str, Any]:
    """Compare all pairs of ``contestants`` by ``judges``; write ``output`` (judge-NAME.json in the current folder).

    Returns what is shown. Raises ``ConfigError`` for settings that
    cannot work and ``DataError`` for files that are missing or stale, before anything is judged.
    """
    started = time.monotonic()
    judges = [name.strip() for name in (judges.split(",") if isinstance(judges, str) else judges)]
    _check(files, config, contestants, judges)
    path = Path(output or f"judge-{files.name}.json")
    task = _gather(files, config, contestants)
    makers = [(name, _asked(task, path) if name == "llm" else _scored(task, name)) for name in judges]
    rounds = [one for _, make in makers for one in make()]
    rows = [row for one in rounds for row in _rows(one, config.seed)]
    scores = [row for one in rounds for row in one.scores]
    alike = _agreements(rounds, task.pairs)
    report = {"dataset": files.name, "contestants": list(contestants), "seekers": len(task.users)}
    record = {
        **report,
        "judges": rows,
        "scores": scores,
        "agreement": alike,
        "seeker_ids": task.users,
        "config": dataclasses.asdict(config),
        "inputs": file_hashes([files.inter, files.udoc, files.idoc, *map(files.gdoc, contestants)]),
        "commit": code_version(),
        "machine": machine(),
        "wall_time_s": round(time.monotonic() - started, 1),
    }
    with atomic_write(path) as file:
        json.dump(plain(record), file, indent=1, ensure_ascii=False)
        file.write("\n")
    _answers_path(path).unlink(missing_ok=True)
    return {**report, "contestants": ", ".join(contestants), "file": str(path), **_shown(rows, scores, alike)}


def trained_with(files: DatasetFiles, config: JudgeConfig) -> dict[str, Any]:
    """The dtype of the reward model, where there is one and no language model judges in this process."""
    from girl_recbole.manifest import read_manifest

    if config.judge_model is not None:
        return {}
    manifest = read_manifest(Path(config.saved_folder) / files.name / config.reward_model) or {}
    return {key: value for key, value in manifest.get("config", {}).items() if key == "lm_dtype"}


# ------------------------------------------------------------------------------------------------- pure functions


def settle(first: str | None, second: str | None, disagreement: str = "tie") -> str:
    """The verdict on a of two answers, A, B, C or None: ``first`` with a as A, ``second`` with a as B."""
    if first is None or second is None:
        return INVALID
    one = {"A": WIN, "B": LOSE, "C": TIE}[first]
    two = {"A": LOSE, "B": WIN, "C": TIE}[second]
    if one == two:
        return one
    return max(one, two, key=lambda verdict: verdict != TIE) if disagreement == "lean" and TIE in (one, two) else TIE


def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(S,) verdicts on scores a, b (S,): the higher wins; NONE where one is NaN."""
    with np.errstate(invalid="ignore"):
        verdict = np.where(a > b + _SAME, WIN, np.where(b > a + _SAME, LOSE, TIE))
    return np.where(np.isnan(a) | np.isnan(b), NONE, verdict)


def tally(verdicts: Sequence[str]) -> dict[str, float | int | None]:
    """win, tie, lose, invalid (they sum to 1), adv, and n, over the verdicts that are not NONE."""
    counts = Counter(str(verdict) for verdict in verdicts)
    n = sum(counts.values()) - counts[NONE]
    shares = {name: counts[letter] / n if n else None for name, letter in _NAMES.items()}
    return {**shares, "adv": (counts[WIN] - counts[LOSE]) / n if n else None, "n": n}


_NAMES = {"win": WIN, "tie": TIE, "lose": LOSE, "invalid": INVALID}


def bootstrap(values: np.ndarray, seed: int, replicates: int = REPLICATES) -> tuple[float, float]:
    """The 95 % interval of the mean of ``values`` (S,): quantiles over samples of S seekers drawn with replacement.

    As many values and the same seed give the same samples, so the interval of -values is the mirror image.
    """
    rng, values, n = np.random.default_rng(seed), np.asarray(values, np.float64), len(values)
    at_once = max(1, _DRAWS // n)
    sizes = [min(at_once, replicates - done) for done in range(0, replicates, at_once)]
    means = np.concatenate([values[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def agreement(
    one: np.ndarray, two: np.ndarray, gaps_one: np.ndarray | None = None, gaps_two: np.ndarray | None = None
) -> dict[str, float | int | None]:
    """n, same, kappa and rank_correlation of two judges' verdicts (S,) and differences of scores (S,).

    None where it is not defined: no seeker in common, one verdict alone, no scores, or equal ones.
    """
    both = np.isin(one, (WIN, TIE, LOSE)) & np.isin(two, (WIN, TIE, LOSE))
    one, two, n = one[both], two[both], int(both.sum())
    out: dict[str, float | int | None] = {"n": n, "same": float((one == two).mean()) if n else None}
    out["kappa"] = None
    if len({*one.tolist(), *two.tolist()}) > 1:
        from sklearn.metrics import cohen_kappa_score

        out["kappa"] = float(cohen_kappa_score(one, two))
    out["rank_correlation"] = None
    if gaps_one is not None and gaps_two is not None and n > 1:
        x, y = gaps_one[both], gaps_two[both]
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            from scipy.stats import spearmanr

            out["rank_correlation"] = float(spearmanr(x, y).statistic)
    return out


_SENTENCE_END = re.compile(r"[.!?。！？]+(?:\s+|$)|(?<=[。！？])|\n+")
_VOWELS = re.compile(r"[aeiouy]+")
_ENGLISH_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*")
_ENDING = re.compile(r"[.!?。！？…][\s\"'”’)\]）」』*]*$")


def format_checks(jd: str, low: int, high: int) -> dict[str, bool]:
    """structure, length, repetition and ending: whether each is as it should be."""
    problem = parse_jd(jd).problem
    sentences = [" ".join(words_of(part.lower())) for part in _SENTENCE_END.split(jd)]
    long = [sentence for sentence in sentences if len(sentence.split()) >= 4]
    return {
        "structure": problem not in ("empty", "no title", "no body"),
        "length": length_reward(len(words_of(jd)), low, high) == 0,
        "repetition": bool(jd.strip()) and problem != "repeats itself" and len(set(long)) == len(long),
        "ending": bool(_ENDING.search(jd)),
    }


def flesch(text: str) -> float:
    """Flesch's reading ease of an English text; NaN for one without words or that is mostly not ASCII letters."""
    words = _ENGLISH_WORD.findall(text)
    letters = [character for character in text if character.isalpha()]
    if not words or sum(character.isascii() for character in letters) < 0.9 * len(letters):
        return float("nan")
    sentences = sum(bool(_ENGLISH_WORD.search(part)) for part in _SENTENCE_END.split(text))
    syllables = sum(map(_syllables, words))
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)


def _syllables(word: str) -> int:
    """Groups of vowels, a silent e at the end not counted, at least 1."""
    word = word.lower()
    silent = word.endswith("e") and not word.endswith("le") and len(_VOWELS.findall(word)) > 1
    return max(1, len(_VOWELS.findall(word)) - silent)


# ------------------------------------------------------------------------------------------------- seekers and texts


def unseen_seekers(files: DatasetFiles, part: Path | None = None) -> list[str]:
    """The seekers of ``part`` (NAME.inter, the recommendation stage) who are in no training stage, in file order."""
    seen: set[str] = set()
    for stage in ("sft", "reward"):
        if files.stage(stage).exists():
            seen.update(read_interactions(files.stage(stage))["user_id"])
    if files.stage("rl").exists():
        seen.update(read_users(files.stage("rl")))
    users = read_interactions(part or files.inter)["user_id"]
    return [user for user in dict.fromkeys(users) if user not in seen]


def read_generated_for(files: DatasetFiles, generator: str, users: Sequence[str]) -> list[list[str]]:
    """The JDs that ``generator`` wrote for each of ``users``. Raises ``DataError`` where one has none, and for JDs that
    were written for other CVs than there are now."""
    path, kind = files.gdoc(generator), f"gen.{generator}"
    if not path.exists():
        known = sorted(other.name[len(files.name) + 1 : -5] for other in files.folder.glob(f"{files.name}.*.gdoc"))
        raise DataError(
            f"{path}: no such file{suggest(generator, [*known, *REFERENCES])}; there are JDs of "
            f"{', '.join(known) or 'no generator'}. Run `girl generate {files.name} --generator={generator}`."
        )
    check_generated(files, kind)
    generated = {user: texts for user, _, texts in stream_texts(files, kind, sorted_keys(users), None)}
    missing = [user for user in users if user not in generated]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(users)} seekers have no generated JD ({some_of(missing)}); each needs "
            f"one. Run `girl generate {files.name}`."
        )
    return [generated[user] for user in users]


@dataclass(frozen=True)
class MatchedJobs:
    """The distinct texts of the jobs of NAME.inter, and which of them (rows) each seeker is matched with."""

    texts: list[str]
    of: dict[str, np.ndarray]


def read_matched(files: DatasetFiles) -> MatchedJobs:
    """Read NAME.inter and its jobs' texts. Raises ``DataError`` for jobs without one."""
    pairs = read_interactions(files.inter)
    items = pairs["item_id"].unique().tolist()
    wanted = set(items)
    docs = {item: text for item, text in iter_docs(files.idoc) if item in wanted}
    missing = [item for item in items if not docs.get(item, "").strip()]
    if missing:
        raise DataError(
            f"{files.idoc}: {len(missing)} of {len(items)} jobs of {files.inter.name} have no text there "
            f"({some_of(missing)}); each needs one. Add the texts or take the rows out."
        )
    row = {text: i for i, text in enumerate(dict.fromkeys(docs[item] for item in items))}
    matched = pairs[pairs["label"] == 1].groupby("user_id")["item_id"].agg(list)
    return MatchedJobs(
        list(row), {user: np.array(sorted({row[docs[item]] for item in own})) for user, own in matched.items()}
    )


def retrieval_gains(search: Search, queries: Sequence[str], own: Sequence[np.ndarray | None]) -> np.ndarray:
    """(n,) 1 / log2(1 + rank) of the best of the texts ``own[i]`` (rows) for query i; NaN where that is None."""
    blocks = (search(queries[at : at + _BLOCK]) for at in range(0, len(queries), _BLOCK))
    scores = (one for block in blocks for one in block)
    gains = [np.nan if rows is None else retrieval_reward(one, rows) for one, rows in zip(scores, own, strict=True)]
    return np.array(gains, np.float64)


def _check(files: DatasetFiles, config: JudgeConfig, contestants: Sequence[str], judges: Sequence[str]) -> None:
    for name in judges:
        if name not in JUDGES:
            raise ConfigError(f"--judge: {name!r} is unknown{suggest(name, JUDGES)}; known: {', '.join(JUDGES)}.")
    if len(set(judges)) < len(judges) or len(set(contestants)) < len(contestants):
        raise ConfigError("a judge or a contestant is named twice; name each once.")
    if len(contestants) < 2:
        raise ConfigError(
            f"{len(contestants)} contestants; two or more are required: generators, matched, random. For example "
            f"`girl judge {files.name} sft ppo --judge=reward`."
        )
    for name in REFERENCES:
        if name in contestants and files.gdoc(name).exists():
            raise ConfigError(f"{name!r} means real jobs here, and there is a {files.gdoc(name)}; rename that file.")
    for key, known in (("judge_part", ("test", "all")), ("judge_by", ("labels", "text")),
                       ("judge_disagreement", ("tie", "lean"))):  # fmt: skip
        if getattr(config, key) not in known:
            raise ConfigError(f"{key}: {getattr(config, key)!r} is unknown; known: {', '.join(known)}.")
    for key in ("judge_seekers", "judge_max_words", "judge_answer_tokens", "judge_batch", "reward_batch"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ConfigError(f"{key}: {value}; at least 1 is required.")
    if config.retrieval_search not in ("bm25", "embedding"):
        raise ConfigError(f"retrieval_search: {config.retrieval_search!r} is unknown; known: bm25, embedding.")


def _gather(files: DatasetFiles, config: JudgeConfig, contestants: Sequence[str]) -> _Task:
    """Draw the seekers, and read their CVs and JDs."""
    part = files.inter
    if config.judge_part == "test":
        part = files.split(config.split, "test")
        if not part.exists():
            raise DataError(
                f"{part}: no such file; the seekers to judge are those of the test part. Run `girl split {files.name} "
                f"--split={config.split.partition('-')[0]}`, or set judge_part: all."
            )
    users = unseen_seekers(files, part)
    rows = read_interactions(files.inter) if {*REFERENCES} & {*contestants} else None
    matched: Mapping[str, list[str]] = {}
    if "matched" in contestants:
        matched = rows[rows["label"] == 1].groupby("user_id")["item_id"].agg(list)
        users = [user for user in users if user in matched.index]
    if not users:
        raise DataError(
            f"{part}: no seeker to judge: all are in a training stage (sft, reward, rl)"
            f"{' or have no match' if 'matched' in contestants else ''}. Set judge_part: all, or another split."
        )
    if config.judge_seekers is not None:
        if config.judge_seekers > len(users):
            log.warning("judge_seekers: %d are asked for, %d can be judged", config.judge_seekers, len(users))
        chosen = np.random.default_rng(config.seed).permutation(len(users))[: config.judge_seekers]
        users = [users[i] for i in np.sort(chosen)]
    wanted = set(users)
    cvs = {user: text for user, text in iter_docs(files.udoc) if user in wanted}
    missing = [user for user in users if user not in cvs]
    if missing:
        raise DataError(
            f"{files.udoc}: {len(missing)} of {len(users)} seekers have no CV ({some_of(missing)}); each needs one."
        )
    drawn: dict[str, list[str]] = {}
    for name in REFERENCES:
        if name in contestants:
            items = rows["item_id"].unique().tolist()
            drawn[name] = [
                random.Random(f"{config.seed} {name} {user}").choice(matched[user] if name == "matched" else items)
                for user in users
            ]
    needed = {item for some in drawn.values() for item in some}
    texts = {item: text for item, text in iter_docs(files.idoc) if item in needed} if needed else {}
    lost = sorted(needed - set(texts))
    if lost:
        raise DataError(f"{files.idoc}: {len(lost)} of {len(needed)} jobs have no text ({some_of(lost)}).")
    jds = {
        name: [texts[item] for item in drawn[name]] if name in drawn else [
            several[0] for several in read_generated_for(files, name, users)
        ]
        for name in contestants
    }  # fmt: skip
    return _Task(files, config, users, [cvs[user] for user in users], jds)


# ------------------------------------------------------------------------------------------------- judges by a score

_Measured = dict[str, list[float]]


def _scored(task: _Task, name: str) -> Callable[[], list[_Round]]:
    """The judge ``name``, ready: what it needs is loaded and checked; the call judges."""
    measure = {"reward": _reward, "market": _market, "retrieval": _retrieval, "format": _format,
               "readability": _readability}[name](task)  # fmt: skip
    criterion = _MEASURES.get(name) or f"own job found by {task.config.retrieval_search}"

    def run() -> list[_Round]:
        found = {contestant: measure(jds) for contestant, jds in task.jds.items()}
        scores = {contestant: values for contestant, (values, _) in found.items()}
        verdicts = {(a, b): compare(scores[a], scores[b]) for a, b in task.pairs}
        gaps = {(a, b): scores[a] - scores[b] for a, b in task.pairs}
        rows = []
        for contestant, (values, measured) in found.items():
            known = values[~np.isnan(values)]
            low, high = bootstrap(known, task.config.seed) if len(known) else (None, None)
            means = {key: float(np.mean(column)) if len(column) else None for key, column in measured.items()}
            mean = float(known.mean()) if len(known) else None
            rows.append({"judge": name, "contestant": contestant, "mean": mean, "low": low, "high": high,
                         "n": len(known), **means})  # fmt: skip
        return [_Round(name, criterion, verdicts, gaps, scores=rows)]

    return run


_Measure = Callable[[list[str]], tuple[np.ndarray, _Measured]]
"""The JDs of a contestant (S,) -> scores (S,) float64, NaN for none, and more that is averaged for the table."""


def _reward(task: _Task) -> _Measure:
    from girl_recbole.reward import load_reward_model

    model = load_reward_model(task.files, task.config)

    def measure(jds: list[str]) -> tuple[np.ndarray, _Measured]:
        scores = model.score(task.cvs, jds, batch_size=task.config.reward_batch)
        bad = [user for user, score in zip(task.users, scores, strict=True) if not np.isfinite(score)]
        if bad:
            raise DataError(
                f"{model.name}: the scores of {len(bad)} of {len(jds)} JDs are no finite numbers (those of "
                f"{some_of(bad)}); train the reward model again (`girl reward`), or set lm_dtype to fp32."
            )
        return scores, {}

    return measure


def _market(task: _Task) -> _Measure:
    from girl_recbole.market import read_truth
    from girl_recbole.market.judge import true_probability

    truth = read_truth(task.files)

    def measure(jds: list[str]) -> tuple[np.ndarray, _Measured]:
        probability, readable = true_probability(truth, task.users, jds)
        return probability, {"readable": readable.tolist()}

    return measure


def _retrieval(task: _Task) -> _Measure:
    jobs = read_matched(task.files)
    own = [jobs.of.get(user) for user in task.users]
    having = sum(rows is not None for rows in own)
    if not having:
        raise DataError(
            f"{task.files.inter}: none of {len(own)} seekers has a matched job; the judge retrieval needs some."
        )
    embedding = task.config.retrieval_search == "embedding"
    search = embedding_search(jobs.texts, task.config) if embedding else bm25_search(jobs.texts)

    def measure(jds: list[str]) -> tuple[np.ndarray, _Measured]:
        gains = retrieval_gains(search, jds, own)
        return gains, {"hit@10": (gains[~np.isnan(gains)] >= 1 / np.log2(11) - 1e-12).tolist()}

    return measure


def _format(task: _Task) -> _Measure:
    low, high = task.config.length_words

    def measure(jds: list[str]) -> tuple[np.ndarray, _Measured]:
        checks = [format_checks(jd, low, high) for jd in jds]
        shares = np.array([np.mean(list(each.values())) for each in checks])
        measured = {name: [each[name] for each in checks] for name in checks[0]}
        return shares, {**measured, "words": [len(words_of(jd)) for jd in jds]}

    return measure


def _readability(task: _Task) -> _Measure:
    def measure(jds: list[str]) -> tuple[np.ndarray, _Measured]:
        scores = np.array([flesch(jd) for jd in jds])
        english = [jd for jd, score in zip(jds, scores, strict=True) if not np.isnan(score)]
        words = [_ENGLISH_WORD.findall(jd) for jd in english]
        sentences = [sum(bool(_ENGLISH_WORD.search(s)) for s in _SENTENCE_END.split(jd)) for jd in english]
        return scores, {
            "sentence words": [len(some) / count for some, count in zip(words, sentences, strict=True)],
            "word letters": [float(np.mean([len(word) for word in some])) for some in words],
        }

    return measure


# ------------------------------------------------------------------------------------------------- a language model


@dataclass(frozen=True)
class _Question:
    criterion: str
    input: str
    key: str  # of the question and all that decides its answer


@dataclass(frozen=True)
class _Answer:
    """A letter or None, and log p(A) - log p(B) where the judge's probabilities are known."""

    letter: str | None
    odds: float | None = None


class _Model(Protocol):
    settings: dict[str, Any]

    def ask(self, questions: Sequence[_Question]) -> list[_Answer]: ...


def _asked(task: _Task, path: Path) -> Callable[[], list[_Round]]:
    """The language model, loaded or its server's settings checked; the call asks."""
    config = task.config
    criteria = [config.judge_criteria] if isinstance(config.judge_criteria, str) else list(config.judge_criteria)
    if not criteria or len(set(criteria)) < len(criteria):
        raise ConfigError(f"judge_criteria: {criteria}; one or more different criteria are required.")
    for criterion in criteria:
        judge_question(config.prompt_language, criterion)
    if (config.judge_model is None) == (config.api_url is None):
        raise ConfigError(
            f"judge_model and api_url: {'neither is' if config.api_url is None else 'both are'} given; the judge llm "
            f"needs one of them: judge_model, a model by name or folder, or api_url and api_model, a served one."
        )
    model: _Model = _Served(config) if config.judge_model is None else _Local(config, criteria)

    def run() -> list[_Round]:
        texts = {name: [cut_words(jd, config.judge_max_words) for jd in jds] for name, jds in task.jds.items()}
        cvs = [cut_words(cv, config.judge_max_words) for cv in task.cvs]
        cut = sum(was for some in (cvs, *texts.values()) for _, was in some)
        if cut:
            log.warning("judge_max_words: %d texts are longer than %d words and were cut", cut, config.judge_max_words)
        identity = json.dumps(model.settings, sort_keys=True)

        def question(criterion: str, i: int, a: str, b: str) -> _Question:
            said = judge_input(config.prompt_language, cvs[i][0], texts[a][i][0], texts[b][i][0])
            key = text_hash(identity, judge_question(config.prompt_language, criterion), said)[:32]
            return _Question(criterion, said, key)

        asked = {
            (criterion, pair): [
                (question(criterion, i, *pair), question(criterion, i, *pair[::-1])) for i in range(len(cvs))
            ]
            for criterion in criteria
            for pair in task.pairs
        }
        distinct = {one.key: one for some in asked.values() for both in some for one in both}
        answers = _answer(model, list(distinct.values()), _answers_path(path))
        rounds = {criterion: _Round("llm", criterion, {}) for criterion in criteria}
        for (criterion, pair), some in asked.items():
            answered = [tuple(answers[one.key] for one in both) for both in some]
            _enter(rounds[criterion], pair, answered, config.judge_disagreement)
        return list(rounds.values())

    return run


def _enter(to: _Round, pair: tuple[str, str], answered: Sequence[tuple[_Answer, _Answer]], disagreement: str) -> None:
    """Put the verdicts of answers in both orders, one pair a seeker, into ``to``."""
    letters = [(one.letter, two.letter) for one, two in answered]
    to.verdicts[pair] = np.array([settle(*both, disagreement) for both in letters])
    readable = [both for both in letters if None not in both]
    differ = sum(settle(*both, "tie") == TIE and both != ("C", "C") for both in readable)
    sided = [letter for both in letters for letter in both if letter in ("A", "B")]
    to.facts[pair] = {
        "position_bias": differ / len(readable) if readable else None,
        "says_a": sided.count("A") / len(sided) if sided else None,
        "unreadable_answers": sum(letter is None for both in letters for letter in both),
    }
    if answered and answered[0][0].odds is not None:
        to.gaps[pair] = np.array([(one.odds - two.odds) / 2 for one, two in answered])


def _answers_path(path: Path) -> Path:
    return path.with_name(path.name + ".answers")


def _answer(model: _Model, questions: Sequence[_Question], kept: Path) -> dict[str, _Answer]:
    """The answer to each question by its key; those of an earlier try in ``kept`` are not asked again."""
    answers = _read_answers(kept)
    waiting = [one for one in questions if one.key not in answers]
    if len(waiting) < len(questions):
        log.info("%s: %d of %d answers are there already", kept, len(questions) - len(waiting), len(questions))
    with tqdm(total=len(questions), initial=len(questions) - len(waiting), desc="judge", unit="question") as bar:
        for at in range(0, len(waiting), _BLOCK):
            block = waiting[at : at + _BLOCK]
            new = dict(zip((one.key for one in block), model.ask(block), strict=True))
            kept.parent.mkdir(parents=True, exist_ok=True)
            with open(kept, "a", encoding="utf-8") as file:
                for key, one in new.items():
                    file.write(json.dumps({"key": key, "letter": one.letter, "odds": one.odds}) + "\n")
            answers |= new
            bar.update(len(block))
    return answers


def _read_answers(kept: Path) -> dict[str, _Answer]:
    """Answers of an earlier try; a last line that was cut short is left out, and cut off."""
    if not kept.exists():
        return {}
    whole, end, rest = kept.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        with atomic_write(kept) as file:
            file.write(whole + end)
    rows = [json.loads(line) for line in whole.splitlines()]
    return {row["key"]: _Answer(row["letter"], row["odds"]) for row in rows}


class _Served:
    """A model behind the OpenAI API (engines/api.py), which asks again, counts failures and holds the key."""

    def __init__(self, config: JudgeConfig) -> None:
        from girl_recbole.engines.api import ApiConfig, make_api_engine

        if config.api_endpoint != "chat":
            raise ConfigError(
                f"api_endpoint: {config.api_endpoint}; the judge asks in a user's message: set api_endpoint: chat."
            )
        own = {"max_jd_tokens": config.judge_answer_tokens, "temperature": 0.0, "top_p": 1.0}
        given = {f.name: getattr(config, f.name) for f in dataclasses.fields(ApiConfig) if f.name not in own}
        self._engine = make_api_engine(ApiConfig(**given, **own))
        self._language, self._seed = config.prompt_language, config.seed
        self.settings = {**self._engine.settings, "seed": config.seed}

    def ask(self, questions: Sequence[_Question]) -> list[_Answer]:
        from girl_recbole.engines.base import Asked

        messages = [f"{judge_question(self._language, one.criterion)}\n\n{one.input}" for one in questions]
        completed = self._engine.complete([Asked([], message, [self._seed]) for message in messages])
        return [_Answer(parse_verdict(said.text) if said.ended else None) for (said,) in completed]


class _Local:
    """A model in this process, by the probabilities of its next token or by what it writes."""

    def __init__(self, config: JudgeConfig, criteria: Sequence[str]) -> None:
        from girl_recbole import llm

        self._config = config
        self._lm = llm.load(config.judge_model, config.lm_dtype)
        tokenizer = self._lm.tokenizer
        self._prompts: dict[str, Prompt] = {
            criterion: judge_prompt(config.prompt_language, criterion, tokenizer) for criterion in criteria
        }
        ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
        if config.judge_by == "labels" and not all(len(one) == 1 for one in ids):
            raise ConfigError(
                f"judge_by: labels needs A, B and C to be one token each, and they are "
                f"{', '.join(str(len(one)) for one in ids)} for {config.judge_model}; set judge_by: text."
            )
        self._labels = [one[0] for one in ids]
        prompts = [prompt.id for prompt in self._prompts.values()]
        self.settings = {
            "model": self._lm.fingerprint, "dtype": config.lm_dtype, "by": config.judge_by, "prompts": prompts,
            **({"answer_tokens": config.judge_answer_tokens} if config.judge_by == "text" else {}),
        }  # fmt: skip

    def ask(self, questions: Sequence[_Question]) -> list[_Answer]:
        prompts = [self._encode(one) for one in questions]
        if self._config.judge_by == "labels":
            logp = label_log_probs(self._lm, prompts, self._labels, self._config.judge_batch)
            best = logp.argmax(axis=1)
            return [_Answer(LETTERS[i], float(row[0] - row[1])) for i, row in zip(best, logp, strict=True)]
        from girl_recbole.engines.base import Asked
        from girl_recbole.engines.local import LocalEngine

        engine = LocalEngine(self._lm, self._config.judge_answer_tokens, 0.0, 1.0, self._config.judge_batch)
        completed = engine.complete([Asked(ids, "", [0]) for ids in prompts])
        return [_Answer(parse_verdict(said.text) if said.ended else None) for (said,) in completed]

    def _encode(self, one: _Question) -> list[int]:
        prompt, tokenizer = self._prompts[one.criterion], self._lm.tokenizer
        ids = [*prompt.head_ids(tokenizer), *encode_text(tokenizer, one.input), *prompt.tail_ids(tokenizer)]
        room = self._lm.context - (1 if self._config.judge_by == "labels" else self._config.judge_answer_tokens)
        if len(ids) > room:
            raise ConfigError(
                f"judge_max_words: a question has {len(ids)} tokens, and {self._lm.name} has room for {room}; lower "
                f"judge_max_words ({self._config.judge_max_words})."
            )
        return ids


def label_log_probs(lm: Any, prompts: Sequence[Sequence[int]], labels: Sequence[int], batch_size: int) -> np.ndarray:
    """log p of each of the tokens ``labels`` (L,) as the one that follows each of ``prompts`` (n,): (n, L) float64."""
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = np.empty((len(prompts), len(labels)))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width, pad = max(len(prompts[i]) for i in batch), lm.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in batch], device=lm.device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch], device=lm.device)
        with torch.inference_mode():
            logits = lm.model(
                input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            out[batch] = torch.log_softmax(logits.double(), -1)[:, list(labels)].cpu().numpy()
    return out


# ------------------------------------------------------------------------------------------------- rows


def _rows(one: _Round, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each pair of contestants."""
    for (a, b), verdicts in one.verdicts.items():
        judged = verdicts[verdicts != NONE]
        low = high = None
        if len(judged):
            low, high = bootstrap((judged == WIN).astype(float) - (judged == LOSE), seed)
        row = {"judge": one.judge, "criterion": one.criterion, "a": a, "b": b, **tally(verdicts)}
        n = row.pop("n")
        yield {**row, "low": low, "high": high, "n": n, **one.facts.get((a, b), {}), "verdicts": "".join(verdicts)}


def _shown(rows: list[dict], scores: list[dict], alike: list[dict]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the file for a screen: what belongs together in one column."""

    def number(value: float | None, form: str = ".2f") -> str:
        return "" if value is None else format(value, form)

    def bounds(row: dict, key: str, form: str) -> str:
        if row[key] is None:
            return ""
        return f"{row[key]:{form}} [{row['low']:{form}}, {row['high']:{form}}]"

    shown: dict[str, list[dict[str, Any]]] = {"verdicts": [], "scores": [], "language model": [], "agreement": []}
    for row in rows:
        by = f"llm, {row['criterion']}" if row["judge"] == "llm" else row["judge"]
        pair = f"{row['a']} v. {row['b']}"
        shares = {name if name != "invalid" else "inv.": number(row[name]) for name in _NAMES}
        shown["verdicts"].append(
            {"judge": by, "pair": pair, **shares, "adv": bounds(row, "adv", "+.2f"), "n": row["n"]}
        )
        if row["judge"] == "llm":
            bias = {"position bias": number(row["position_bias"]), "says A": number(row["says_a"])}
            shown["language model"].append(
                {"criterion": row["criterion"], "pair": pair, **bias, "unreadable answers": row["unreadable_answers"]}
            )
    for row in scores:
        more = [f"{key} {value:.4g}" for key, value in row.items() if key not in _SCORE_KEYS and value is not None]
        mean = bounds(row, "mean", ".4g")
        one = {"judge": row["judge"], "contestant": row["contestant"], "mean": mean, "n": row["n"]}
        shown["scores"].append({**one, "more": ", ".join(more)})
    for row in alike:
        one = {"judges": f"{row['one']} / {row['two']}", "pair": f"{row['a']} v. {row['b']}", "n": row["n"]}
        shown["agreement"].append(
            {**one, **{name: number(row[name]) for name in ("same", "kappa", "rank_correlation")}}
        )
    return {name: some for name, some in shown.items() if some}


_SCORE_KEYS = ("judge", "contestant", "mean", "low", "high", "n")


def _agreements(rounds: Sequence[_Round], pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    named = [(one.judge if one.judge != "llm" else f"llm, {one.criterion}", one) for one in rounds]
    return [
        {
            "one": name_one, "two": name_two, "a": a, "b": b,
            **agreement(one.verdicts[a, b], two.verdicts[a, b], one.gaps.get((a, b)), two.gaps.get((a, b))),
        }
        for (name_one, one), (name_two, two) in itertools.combinations(named, 2)
        for a, b in pairs
    ]  # fmt: skip
