"""Jobs that exist for a seeker: the nearest of all indexed jobs to what was generated, to the CV, or to a text.

Queries    by generated   j' = Enc(J') of the seeker's generated JDs (Eq. 12 of GIRL, arXiv 2307.02157), the first
                          ``n_generated``. ``search_samples`` mean: their mean, as the models read them; best: each JD
                          by itself, a job's score is the largest over them
           by cv          c = Enc(C)
           by model       u of a trained Dot model, index.DotModel: c' = MLP([c; j']) of Eq. 14 for GIRLEnhancedDot
           a text         its vector by the same encoder; with ``generate`` a JD is written for it first, by the trained
                          generator and exactly as `girl generate` writes it for this CV: generate, then ground in jobs
                          that exist

Scores     cosine of query and job, whatever the kind of index; by model the model's calibrated probability
           best over n JDs: a job among the k best of the maximum is among the k best of some JD, so the union of the n
           lists, each job with its largest score, has the true k best of whatever the index finds

Output     a report for the screen, and with ``output`` the table ``user_id:token item_id:token rank:float
           score:float``, ranks from 1, written as it comes and renamed when it is whole. Memory: _CHUNK seekers.

Nothing stale is searched: index, vectors, texts and generated JDs are checked as embed.py and index.py say.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from girl_recbole.atomic import DatasetFiles, atomic_write, iter_docs, read_interactions, read_table
from girl_recbole.encoder import Encoder
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.generate import TRAINED, JDGenerator, LocalEngine, cv_room, generator_folder, load_generator
from girl_recbole.index import DotModel, Index, unusable
from girl_recbole.manifest import read_manifest
from girl_recbole.prompts import parse_jd
from girl_recbole.texts import read_texts
from girl_recbole.vectors import EmbedConfig, explain_missing, load_vectors, open_vectors

__all__ = ["SearchConfig", "rank", "search", "trained_with"]

log = logging.getLogger(__name__)

WAYS = ("generated", "cv", "model")
_CHUNK = 1 << 16  # seekers whose vectors are in memory
_TITLE = 60  # characters of a title on the screen


@dataclass(frozen=True)
class SearchConfig(EmbedConfig):
    """Keys and meanings: properties/overall.yaml, sections "Search", "Language model" and "Text encoder"."""

    seed: int
    split: str
    generator: str
    saved_folder: str
    lm_dtype: str
    prompt_language: str
    max_cv_tokens: int
    max_jd_tokens: int
    temperature: float
    top_p: float
    gen_batch_size: int
    index_nprobe: int | None
    index_ef_search: int | None
    search_top_k: int
    search_samples: str


def trained_with(files: DatasetFiles, config: SearchConfig) -> dict[str, Any]:
    """The settings of the generator's training that its JDs are written with; {} where there is none."""
    manifest = read_manifest(generator_folder(config.saved_folder, files.name, config.generator)) or {}
    return {key: value for key, value in manifest.get("config", {}).items() if key in TRAINED}


def search(
    files: DatasetFiles,
    config: SearchConfig,
    *,
    by: str = "generated",
    seekers: Sequence[str] = (),
    everyone: bool = False,
    checkpoint: str | None = None,
    text: str | None = None,
    cv: str | None = None,
    generate: bool = False,
    exclude_train: bool = False,
    only: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """The ``search_top_k`` jobs for ``seekers``, for ``everyone`` in NAME.inter (into ``output``), or for a text.

    ``cv``: a text file, or ``-`` for standard input. ``only``: an atomic file with a column item_id, the jobs that may
    be found. ``exclude_train``: not the jobs of the seeker's pairs in the train part of ``split``.
    """
    _check(config, by, seekers, everyone, checkpoint, text, cv, generate, exclude_train, output)
    model = DotModel.load(files, checkpoint) if checkpoint else None
    index = Index.load(files, config, model)
    open_jobs = None if only is None else read_table(Path(only), required=("item_id",))["item_id"].tolist()
    report: dict[str, Any] = {"dataset": files.name, **index.report, "score": "probability" if model else "cosine"}
    if text is not None or cv is not None:
        vectors, found = _text_vectors(files, config, _read(cv) if cv else text, generate)
        scores, jobs = rank(index, vectors, config.search_top_k, only=open_jobs)
        return report | found | {"found": _shown(files, scores[0], jobs[0])}
    users = pd.unique(read_interactions(files.inter)["user_id"]).tolist() if everyone else list(dict.fromkeys(seekers))
    vectors_of = _source(files, config, by, model, users)
    taken = _train_jobs(files, config.split) if exclude_train else None
    report |= {"by": by, "seekers": len(users)} | ({"generator": config.generator} if by == "generated" else {})
    short, lists = 0, {}
    with _table(output) as file, tqdm(total=len(users), desc="search", unit="seeker", disable=not everyone) as bar:
        for at in range(0, len(users), _CHUNK):
            some = users[at : at + _CHUNK]
            exclude = None if taken is None else taken(some)
            scores, jobs = rank(index, vectors_of(some), config.search_top_k, only=open_jobs, exclude=exclude)
            scores = model.probability(scores) if model else scores
            short += int((jobs[:, -1] == "").sum())
            if file:
                _write(file, some, scores, jobs)
            else:
                lists |= {
                    f"jobs of {user}": row for user, row in zip(some, zip(scores, jobs, strict=True), strict=True)
                }
            bar.update(len(some))
    if short:
        report["seekers_with_fewer_jobs"] = short
    if output:
        return report | {"top_k": config.search_top_k, "file": output}
    titles = _titles(files, {job for _, jobs in lists.values() for job in jobs})
    return report | {name: _shown(files, *row, titles) for name, row in lists.items()}


def rank(
    index: Index,
    vectors: np.ndarray,
    k: int,
    *,
    only: Sequence[str] | None = None,
    exclude: Sequence[Sequence[str]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best jobs of each seeker by the largest score over his s queries: (n, s, D) -> scores, ids (n, k).

    ``only`` and ``exclude``, and what is not there: as in :meth:`girl_recbole.index.Index.search`.
    """
    count, several, width = vectors.shape
    each = None if exclude is None else [some for some in exclude for _ in range(several)]
    scores, jobs = index.search(vectors.reshape(-1, width), k, only=only, exclude=each)
    if several == 1:
        return scores, jobs
    best, names = np.full((count, k), np.nan, np.float32), np.full((count, k), "", object)
    for row in range(count):
        part = slice(row * several, (row + 1) * several)
        largest: dict[str, np.float32] = {}
        for job, value in zip(jobs[part].ravel(), scores[part].ravel(), strict=True):
            if job and value > largest.get(job, -np.inf):
                largest[job] = value
        order = sorted(largest, key=lambda job: (-largest[job], index.row[job]))[:k]
        best[row, : len(order)], names[row, : len(order)] = [largest[job] for job in order], order
    return best, names


# --------------------------------------------------------------------------------------------------------- queries


def _source(
    files: DatasetFiles, config: SearchConfig, by: str, model: DotModel | None, users: Sequence[str]
) -> Callable[[Sequence[str]], np.ndarray]:
    """What gives the queries (n, s, D) of seekers; ``users`` are checked to have them."""
    if model:
        model.check(users)
        return lambda some: model.queries(some)[:, None]
    kind, n = ("cv", 1) if by == "cv" else (f"gen.{config.generator}", config.n_generated)
    _check_seekers(files, config, kind, users, n)

    def vectors(some: Sequence[str]) -> np.ndarray:
        mean = load_vectors(files, config, kind, some, n)  # which checks the texts of all n too
        if n == 1 or config.search_samples == "mean":
            found = mean[:, None]
        else:
            matrix = open_vectors(files, config, kind)
            rows = matrix.find(some, n)
            found = np.asarray(matrix.vectors[rows.ravel()], np.float32).reshape(len(some), n, -1)
        bad = np.unique(unusable(found.reshape(-1, found.shape[2])) // found.shape[1])
        if len(bad):
            raise DataError(
                f"the {kind} vectors of {len(bad)} of {len(some)} seekers are zero or not finite (first: "
                f"{some_of([some[i] for i in bad])}); no job is nearer to them than another. Correct these texts, and "
                f"run `girl embed {files.name}`."
            )
        return found

    return vectors


def _check_seekers(files: DatasetFiles, config: SearchConfig, kind: str, users: Sequence[str], n: int) -> None:
    """Raise for seekers who are unknown or have no vector, before the first search."""
    rows = open_vectors(files, config, kind).find(users, n)
    missing = [users[i] for i in np.flatnonzero((rows < 0).any(axis=1))]
    if not missing:
        return
    known = {user for user, _ in iter_docs(files.udoc)}
    unknown = [user for user in missing if user not in known]
    if unknown:
        raise DataError(
            f"{files.udoc}: {len(unknown)} of {len(users)} seekers are unknown (first: {some_of(unknown)}); a CV each "
            f"is required. Search for a new seeker with --cv FILE."
        )
    explain_missing(files, config, kind, missing, len(users), n)


def _text_vectors(
    files: DatasetFiles, config: SearchConfig, text: str, generate: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Queries (1, s, D) of a text, or of the JDs that are written for it; and what to say of them."""
    if not text.strip():
        raise DataError("an empty text cannot be searched for.")
    found: dict[str, Any] = {"by": "text"}
    texts = [text]
    if generate:
        texts = _written(files, config, text)
        titles = [_cut(parse_jd(jd).title) for jd in texts]
        found = {"by": "JD written for the text", "generator": config.generator, "written": " | ".join(titles)}
    encoder = Encoder(
        config.encoder,
        max_tokens=config.max_text_tokens,
        windows=config.text_windows,
        precision=config.encoder_precision,
    )
    vectors, cut = encoder.encode(texts, batch_tokens=config.encoder_batch_tokens)
    if cut.any():
        log.warning("%d of %d texts are longer than the encoder reads and were cut.", cut.sum(), len(texts))
    if config.search_samples == "mean":
        vectors = vectors.mean(axis=0, keepdims=True)
    return vectors[None], found


def _written(files: DatasetFiles, config: SearchConfig, cv: str) -> list[str]:
    """``n_generated`` JDs for a CV."""
    lm, prompt = load_generator(files, config.generator, config.saved_folder, config.lm_dtype, config.prompt_language)
    room = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
    engine = LocalEngine(lm, config.max_jd_tokens, config.temperature, config.top_p, config.gen_batch_size)
    generator = JDGenerator(engine, lm.tokenizer, prompt, config.seed, config.n_generated, room)
    (written,) = generator.write([cv])
    if written.cut:
        log.warning("the CV is %d tokens longer than the %d that the generator reads, and was cut.", written.cut, room)
    empty = sum(not jd.strip() for jd in written.texts)
    if empty:
        raise DataError(
            f"generator {config.generator!r} wrote {empty} empty JDs of {len(written.texts)} for this CV; with another "
            f"--seed it writes others."
        )
    return written.texts


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8.") from None


# ---------------------------------------------------------------------------------------------- settings and filters


def _check(config, by, seekers, everyone, checkpoint, text, cv, generate, exclude_train, output) -> None:
    if by not in WAYS:
        raise ConfigError(f"by: {by!r} is unknown{suggest(by, WAYS)}; known: {', '.join(WAYS)}.")
    if config.search_samples not in ("mean", "best"):
        raise ConfigError(f"search_samples: {config.search_samples!r} is unknown; known: mean, best.")
    if config.n_generated < 1:
        raise ConfigError(f"n_generated: {config.n_generated} generated JDs a seeker; at least 1 is required.")
    asked = [bool(seekers), everyone, text is not None, cv is not None]
    if sum(asked) != 1:
        raise ConfigError(
            f"{sum(asked)} kinds of queries; one is required of: --seeker ID (may be repeated), --all, --text TEXT, "
            f"--cv FILE."
        )
    of_text = text is not None or cv is not None
    if of_text and (exclude_train or output or checkpoint or by != "generated"):
        raise ConfigError(
            "--by, --checkpoint, --exclude-train and --output are for --seeker and --all, not for a text."
        )
    if generate and not of_text:
        raise ConfigError("--generate is for --text and --cv; the JDs of seekers are written by `girl generate`.")
    if (by == "model") != (checkpoint is not None):
        raise ConfigError("--by=model and --checkpoint=saved/....pth, a trained Dot model, go together.")
    if everyone and not output:
        raise ConfigError("--all needs --output FILE, the table of all seekers' jobs.")


def _train_jobs(files: DatasetFiles, split: str) -> Callable[[Sequence[str]], list[list[str]]]:
    """What gives the jobs of each of some seekers in the train part."""
    path = files.split(split, "train")
    if not path.exists():
        raise DataError(
            f"{path}: no such file; its jobs were to be excluded. Run `girl split {files.name} --split={split}`, or "
            f"name another split."
        )
    pairs = read_interactions(path)[["user_id", "item_id"]]

    def jobs(users: Sequence[str]) -> list[list[str]]:
        groups = pairs[pairs["user_id"].isin(users)].groupby("user_id")["item_id"].agg(list)
        return [groups.get(user, []) for user in users]

    return jobs


# ---------------------------------------------------------------------------------------------------------- output


@contextlib.contextmanager
def _table(output: str | None) -> Iterator[IO | None]:
    if output is None:
        yield None
        return
    with atomic_write(Path(output)) as file:
        file.write("user_id:token\titem_id:token\trank:float\tscore:float\n")
        yield file


def _write(file: IO, users: Sequence[str], scores: np.ndarray, jobs: np.ndarray) -> None:
    there = jobs != ""
    frame = pd.DataFrame({
        "user": np.repeat(np.asarray(users, object), there.sum(axis=1)),
        "job": jobs[there],
        "rank": np.nonzero(there)[1] + 1,
        "score": scores[there],
    })  # fmt: skip
    frame.to_csv(file, sep="\t", header=False, index=False, quoting=3, lineterminator="\n", float_format="%.7g")


def _titles(files: DatasetFiles, jobs: set[str]) -> dict[str, str]:
    """The title of each JD: its first line, or first sentence."""
    return {job: parse_jd(texts[0]).title for job, texts in read_texts(files, "jd", jobs - {""}).items()}


def _shown(
    files: DatasetFiles, scores: np.ndarray, jobs: np.ndarray, titles: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    titles = _titles(files, set(jobs)) if titles is None else titles
    rows = [(job, float(score)) for job, score in zip(jobs, scores, strict=True) if job]
    return [
        {"rank": n, "job": job, "score": round(score, 4), "title": _cut(titles[job])}
        for n, (job, score) in enumerate(rows, start=1)
    ]


def _cut(title: str) -> str:
    return title if len(title) <= _TITLE else title[: _TITLE - 3] + "..."
