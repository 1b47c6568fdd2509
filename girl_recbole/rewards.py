"""Rewards of a generated JD: what the reward model says, and four that need no rejection by a recruiter; weighted.

    R(u, C, J) = sum_k w_k r_k(u, C, J)            w_k from ``rewards: {name: weight}``

    r_k             formula                                                            range
    model           U(C, J), the reward model's normalised score (reward.py, Eq. 2)     any number
    retrieval       1 / log2(1 + rank)                                                  (0, 1]
    format          1 if J has the structure of a JD (prompts.parse_jd), else 0         0 or 1
    length          0 for low <= n <= high; n / low - 1 below; 1 - n / high above,      [-1, 0]
                    at least -1                         n = words of J
    faithfulness    - unsupported / named                                               [-1, 0]

u a seeker, C the CV, J a generated JD. ``ended`` (did J end by EOS?) is for the reward model alone.

retrieval     The distinct texts of the matched jobs of NAME.sft.inter are searched with J as the query, by BM25 (bm25s:
              Lucene's form, k1 = 1.5, b = 0.75, words in lower case, no stop words) or by the cosine of the text
              encoder's vectors. rank = 1 + the number of other texts that come at least as high as the best of u's
              own: a tie counts against J, so that a JD without a known word gains nothing. The gain of a rank is that
              of NDCG, the reward of Rec-R1 (Lin et al. 2025, arXiv:2503.24289). It needs matches only, no rejection;
              a seeker without a match in that stage has no such reward, which is an error, as those of the stage rl
              are. Pairs that are in valid or test too are left out, so no reward tells an answer of the evaluation.
format        is not gradual: what is wrong is in ``parse_jd(J).problem``.
length        [low, high] = ``length_words``. A character of Chinese, Japanese or Korean is a word, as in parse_jd.
faithfulness  named = skills of which a surface form occurs in J; unsupported = those of them of which none occurs in
              C; 0 where J names none. A form counts as it is written or with a capital first letter, between
              characters that are no ASCII letter, digit, ``_`` or ``-``; the longest form at a place wins. The shipped
              vocabulary has two forms a skill (market/taxonomy.py); ``faithfulness_terms`` names a file of others.
              A duty that implies a skill without naming it is no support: the rule reads words, not meaning.

Nothing heavy is loaded before a reward needs it: reward model, bm25s and encoder are imported on their first use.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions, read_table, read_users
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.manifest import file_hash, text_hash
from girl_recbole.market.taxonomy import load_taxonomy
from girl_recbole.market.text import any_of
from girl_recbole.prompts import parse_jd, words_of

if TYPE_CHECKING:
    from girl_recbole.reward import RewardModel

__all__ = ["Rewards", "Scored", "Vocabulary", "check_rewards", "make_rewards"]

log = logging.getLogger(__name__)

KNOWN = ("model", "retrieval", "format", "length", "faithfulness")
SEARCHES = ("bm25", "embedding")


class Settings(Protocol):
    """What :func:`make_rewards` reads of a stage's config; meanings: properties/overall.yaml."""

    rewards: dict
    reward_model: str
    saved_folder: str
    lm_dtype: str
    retrieval_search: str
    length_words: Sequence[int]
    faithfulness_terms: str | None
    reward_batch: int
    encoder: str
    max_text_tokens: int | None
    text_windows: int
    encoder_batch_tokens: int | None
    encoder_precision: str


Part = Callable[[Sequence[str], Sequence[str], Sequence[str], Sequence[bool] | None], np.ndarray]
"""(seekers, CVs, JDs, ended), each of length n -> (n,) float64."""


@dataclass(frozen=True)
class Scored:
    """``total`` (n,) float64, the weighted sum, and the unweighted ``parts`` (n,) that it is made of."""

    total: np.ndarray
    parts: dict[str, np.ndarray]


@dataclass
class Rewards:
    """The weighted rewards of a dataset. ``fingerprint`` changes with all that decides scores; ``model`` is the reward
    model, or None where it has no part in them. A weight of 0 measures a part and gives it no say."""

    weights: dict[str, float]
    fingerprint: str
    model: RewardModel | None
    parts: dict[str, Part]  # all but the model's
    batch_size: int  # JDs that the model reads at a time

    def __call__(
        self, users: Sequence[str], cvs: Sequence[str], jds: Sequence[str], ended: Sequence[bool] | None = None
    ) -> Scored:
        """Score JD i, written for CV i of seeker i. Raises ``DataError`` for a score that is no finite number."""
        self.check(users)
        parts = {}
        if self.model is not None:
            parts["model"] = self.model.score(cvs, jds, ended, batch_size=self.batch_size)
        parts |= {name: part(users, cvs, jds, ended) for name, part in self.parts.items()}
        for name, values in parts.items():
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                seekers = list(dict.fromkeys(users[i] for i in bad))
                raise DataError(
                    f"reward {name}: {len(bad)} of {len(jds)} JDs have a score that is no finite number, those of "
                    f"{some_of(seekers)}; each needs one. Train the reward model again (`girl reward`), set lm_dtype "
                    f"to fp32, or leave {name} out of rewards."
                )
        total = np.zeros(len(jds))
        for name, weight in self.weights.items():
            total += weight * parts[name]
        return Scored(total, parts)

    def check(self, users: Iterable[str]) -> None:
        """Raise ``DataError`` for seekers who have no reward at all: call it before work that will need them."""
        retrieval = self.parts.get("retrieval")
        if isinstance(retrieval, Retrieval):
            retrieval.check(users)


def make_rewards(files: DatasetFiles, config: Settings, model: RewardModel | None = None) -> Rewards:
    """The rewards that ``config`` asks for. ``model``: the reward model, where it is loaded already.

    Raises ``ConfigError`` for settings that cannot work, and ``DataError`` for what is missing on disk.
    """
    weights = check_rewards(config)
    facts: dict[str, Any] = {"weights": weights}
    if "model" not in weights:
        model = None
    elif model is None:
        from girl_recbole.reward import load_reward_model

        model = load_reward_model(files, config)
    if model is not None:
        facts["model"] = [model.fingerprint, model.mean, model.scale, model.max_cv_tokens, model.max_jd_tokens]
    parts: dict[str, Part] = {}
    if "retrieval" in weights:
        parts["retrieval"], facts["retrieval"] = _retrieval_part(files, config)
    if "format" in weights:
        parts["format"] = _of_jd(format_reward)
    if "length" in weights:
        low, high = facts["length"] = list(config.length_words)
        parts["length"] = _of_jd(lambda jd: length_reward(len(words_of(jd)), low, high))
    if "faithfulness" in weights:
        vocabulary = read_vocabulary(config.faithfulness_terms)
        parts["faithfulness"] = vocabulary.faithfulness
        facts["faithfulness"] = text_hash(*("\t".join(forms) for forms in vocabulary.skills))
    fingerprint = text_hash(json.dumps(facts, sort_keys=True))[:32]
    return Rewards(weights, fingerprint, model, parts, config.reward_batch)


def check_rewards(config: Settings) -> dict[str, float]:
    """The weights of ``config``, after a check of all settings that needs no file."""
    rewards = config.rewards
    if not isinstance(rewards, dict) or not rewards:
        raise ConfigError(f"rewards: {rewards!r}; at least one reward and its weight are required: {{model: 1.0}}.")
    for name, weight in rewards.items():
        if name not in KNOWN:
            raise ConfigError(f"rewards: unknown reward {name!r}{suggest(name, KNOWN)}; known: {', '.join(KNOWN)}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"rewards: the weight of {name} is {weight!r}; a finite number is required.")
    if not any(rewards.values()):
        raise ConfigError(f"rewards: all weights are 0 ({', '.join(rewards)}); at least one other number is required.")
    if config.retrieval_search not in SEARCHES:
        raise ConfigError(
            f"retrieval_search: {config.retrieval_search!r} is unknown{suggest(config.retrieval_search, SEARCHES)}; "
            f"known: {', '.join(SEARCHES)}."
        )
    bounds = config.length_words
    whole = isinstance(bounds, list | tuple) and all(type(bound) is int for bound in bounds)
    if not whole or len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] or bounds[1] < 1:
        raise ConfigError(f"length_words: {bounds!r}; two whole numbers, 0 <= low <= high, are required: [40, 160].")
    if config.reward_batch < 1:
        raise ConfigError(f"reward_batch: {config.reward_batch}; at least 1 is required.")
    return {name: float(weight) for name, weight in rewards.items()}


# ------------------------------------------------------------------------------------------------- pure functions


def retrieval_reward(scores: np.ndarray, matched: np.ndarray) -> float:
    """1 / log2(1 + rank) for ``scores`` (texts,) of one query; ``matched``: the rows of the seeker's own texts."""
    others = np.delete(scores, matched)
    rank = 1 + int((others >= scores[matched].max()).sum())
    return 1 / math.log2(1 + rank)


def format_reward(jd: str) -> float:
    """1.0 for the structure of a JD, else 0.0."""
    return float(parse_jd(jd).is_structured)


def length_reward(words: int, low: int, high: int) -> float:
    """0 within [low, high]; down to -1 at 0 words (where ``low`` is more) and from twice ``high`` on."""
    if words < low:
        return words / low - 1
    return max(-1.0, min(0.0, 1 - words / high))


class Vocabulary:
    """Skills, each a tuple of the surface forms by which a text names it. Several skills may share a form."""

    def __init__(self, skills: Iterable[tuple[str, ...]]):
        self.skills = tuple(skills)
        named: dict[str, set[int]] = defaultdict(set)
        for number, forms in enumerate(self.skills):
            for form in forms:
                for spelled in (form, form[0].upper() + form[1:]):
                    named[spelled].add(number)
        self._named = {form: frozenset(numbers) for form, numbers in named.items()}
        self._pattern = any_of(named, re.ASCII)

    def mentions(self, text: str) -> set[frozenset[int]]:
        """What ``text`` names: the skill, or the skills, that each form in it can mean."""
        return {self._named[form] for form in self._pattern.findall(text)}

    def unsupported(self, cv: str, jd: str) -> float:
        """The share, in [0, 1], of what ``jd`` names that nothing in ``cv`` names; 0 where it names nothing."""
        return _unsupported(self.mentions(cv), self.mentions(jd))

    def faithfulness(
        self, users: Sequence[str], cvs: Sequence[str], jds: Sequence[str], ended: Sequence[bool] | None
    ) -> np.ndarray:
        """The reward as a part of :class:`Rewards`; each distinct text is read once."""
        found = {text: self.mentions(text) for text in {*cvs, *jds}}
        shares = [_unsupported(found[cv], found[jd]) for cv, jd in zip(cvs, jds, strict=True)]
        return 0.0 - np.array(shares, float)  # no -0.0


def _unsupported(told: set[frozenset[int]], named: set[frozenset[int]]) -> float:
    known = frozenset().union(*told)
    return sum(skills.isdisjoint(known) for skills in named) / len(named) if named else 0.0


def read_vocabulary(path: str | None) -> Vocabulary:
    """The skills of a file, a line each, surface forms separated by tabs; None: those that are shipped."""
    if path is None:
        return Vocabulary((skill.short, skill.formal) for skill in load_taxonomy().skills)
    if not Path(path).is_file():
        raise DataError(f"faithfulness_terms: {path}: no such file. Name a file of skills, or set it to null.")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"faithfulness_terms: {path}: not UTF-8 (byte {error.start}); convert it.") from None
    rows = [tuple(form.strip() for form in line.split("\t") if form.strip()) for line in lines]
    if not any(rows):
        raise DataError(f"faithfulness_terms: {path}: no skill in {len(lines)} lines; a line each is required.")
    return Vocabulary(row for row in rows if row)


# ------------------------------------------------------------------------------------------------------------ parts


def _of_jd(reward: Callable[[str], float]) -> Part:
    return lambda users, cvs, jds, ended: np.array([reward(jd) for jd in jds], float)


@dataclass(frozen=True)
class MatchedJobs:
    """The distinct texts of the sft stage's matched jobs, and which of them (rows) each seeker is matched with."""

    texts: list[str]
    of: dict[str, np.ndarray]
    judged: int  # pairs left out because valid or test has them


def read_matched_jobs(files: DatasetFiles) -> MatchedJobs:
    """Read ``NAME.sft.inter`` and its jobs' texts. Raises ``DataError`` where nothing is left to search, or a job has
    no text."""
    path = files.stage("sft")
    table = read_interactions(path)
    pairs = list(zip(*(table.loc[table["label"] == 1, key] for key in ("user_id", "item_id")), strict=True))
    judged = _judged_pairs(files)
    kept = [pair for pair in pairs if pair not in judged]
    if not kept:
        raise DataError(
            f"{path}: no matched pair (label 1) among {len(table)} rows that is not in valid or test too; the reward "
            f"retrieval needs some. Leave retrieval out of rewards."
        )
    if len(kept) < len(pairs):
        log.warning("%s: %d matched pairs are in valid or test too; no reward reads them", path, len(pairs) - len(kept))
    docs = read_docs(files.idoc)
    items = list(dict.fromkeys(item for _, item in kept))
    missing = [item for item in items if not docs.get(item, "").strip()]
    if missing:
        raise DataError(
            f"{files.idoc}: {len(missing)} of {len(items)} matched jobs of {path.name} have no text there "
            f"({some_of(missing)}); each needs one. Add the texts or take the rows out."
        )
    row = {text: i for i, text in enumerate(dict.fromkeys(docs[item] for item in items))}
    of: dict[str, set[int]] = defaultdict(set)
    for user, item in kept:
        of[user].add(row[docs[item]])
    return MatchedJobs(
        list(row), {user: np.array(sorted(rows)) for user, rows in of.items()}, len(pairs) - len(kept)
    )  # fmt: skip


def _judged_pairs(files: DatasetFiles) -> set[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    for part in ("valid", "test"):
        for path in sorted(files.folder.glob(f"{files.name}.*.{part}.inter")):
            table = read_table(path, required=("user_id", "item_id"))
            pairs.update(zip(table["user_id"], table["item_id"], strict=True))
    return pairs


Search = Callable[[Sequence[str]], np.ndarray]
"""Queries (n,) -> scores (n, texts), higher is nearer."""


@dataclass(frozen=True)
class Retrieval:
    """The part ``retrieval``: the jobs, and what indexes their texts, once, when the first JD comes."""

    files: DatasetFiles
    jobs: MatchedJobs
    index: Callable[[Sequence[str]], Search]
    batch_size: int  # JDs searched at a time

    @functools.cached_property
    def search(self) -> Search:
        return self.index(self.jobs.texts)

    def __call__(
        self, users: Sequence[str], cvs: Sequence[str], jds: Sequence[str], ended: Sequence[bool] | None
    ) -> np.ndarray:
        out = np.empty(len(jds))
        for start in range(0, len(jds), self.batch_size):
            for row, scores in enumerate(self.search(jds[start : start + self.batch_size]), start):
                out[row] = retrieval_reward(scores, self.jobs.of[users[row]])
        return out

    def check(self, users: Iterable[str]) -> None:
        users = list(dict.fromkeys(users))
        missing = [user for user in users if user not in self.jobs.of]
        if missing:
            name = self.files.stage("sft").name
            raise DataError(
                f"reward retrieval: {len(missing)} of {len(users)} seekers have no matched job in {name} "
                f"({some_of(missing)}); each needs one. Seekers with one, by stage: {self._having()}. Read the CVs of "
                f"a stage whose seekers all have one (rl_stages, for girl generate gen_stages), or leave retrieval "
                f"out of rewards."
            )

    def _having(self) -> str:
        said = []
        for stage in ("sft", "reward", "rl", "recommendation"):
            path = self.files.inter if stage == "recommendation" else self.files.stage(stage)
            if path.exists():
                seekers = read_users(path) if stage == "rl" else read_table(path, required=("user_id",))["user_id"]
                seekers = set(seekers)
                said.append(f"{stage} {sum(user in self.jobs.of for user in seekers)} of {len(seekers)}")
        return ", ".join(said)


def _retrieval_part(files: DatasetFiles, config: Settings) -> tuple[Retrieval, list]:
    """The part, and what decides its scores."""
    jobs = read_matched_jobs(files)
    rows = (f"{user} {rows.tolist()}" for user, rows in jobs.of.items())
    facts = [config.retrieval_search, file_hash(files.stage("sft")), file_hash(files.idoc), text_hash(*rows)]
    index: Callable[[Sequence[str]], Search] = bm25_search
    if config.retrieval_search == "embedding":
        from girl_recbole.encoder import encoder_folder, encoder_hash

        index = functools.partial(embedding_search, config=config)
        facts += [
            encoder_hash(encoder_folder(config.encoder)), config.max_text_tokens, config.text_windows,
            config.encoder_precision,
        ]  # fmt: skip
    return Retrieval(files, jobs, index, config.reward_batch), facts


def bm25_search(texts: Sequence[str]) -> Search:
    """BM25 over ``texts``, indexed once."""
    import bm25s

    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index([_words(text) for text in texts], show_progress=False)

    def search(queries: Sequence[str]) -> np.ndarray:
        known = (index.get_tokens_ids(_words(query)) for query in queries)
        return np.stack([index.get_scores_from_ids(ids) if ids else np.zeros(len(texts)) for ids in known])

    return search


def _words(text: str) -> list[str]:
    return words_of(text.lower())


def embedding_search(texts: Sequence[str], config: Settings) -> Search:
    """Cosine of the text encoder's vectors; those of ``texts`` are made once and kept in memory."""
    from girl_recbole.encoder import Encoder

    encoder = Encoder(
        config.encoder, max_tokens=config.max_text_tokens, windows=config.text_windows,
        precision=config.encoder_precision,
    )  # fmt: skip

    def vectors(some: Sequence[str]) -> np.ndarray:
        made, _ = encoder.encode(some, batch_tokens=config.encoder_batch_tokens)
        return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)

    known = vectors(texts)
    return lambda queries: vectors(queries) @ known.T
