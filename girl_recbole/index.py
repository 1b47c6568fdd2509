"""An index over job vectors: which of all jobs are nearest to a vector, exactly or nearly, and with true scores.

Jobs       the vectors of kind ``jd`` that `girl embed` made, x / |x|, float16 on disk and read block by block; their
           score with a query q is the cosine q . x / (|q| |x|)
           or, with a checkpoint of a Dot model (Eqs 11 and 15 of GIRL, arXiv 2307.02157), its job vectors j: see
           :class:`DotModel`; their score is the inner product u . j

Kinds      flat   every job is looked at: exact. No file; the vectors are read into memory when the index is loaded
           ivf    FAISS inverted lists (k-means, ``index_nlist`` of them) of vectors in 8 bits a coordinate; the
                  ``index_nprobe`` lists nearest to a query are looked at
           hnsw   FAISS graph (``index_links`` a job) over vectors in 8 bits a coordinate; ``index_ef_search`` jobs are
                  kept while it is walked
           auto   flat up to ``index_flat_max`` jobs, ivf beyond (docs/search.md has the figures)

Scores     ivf and hnsw propose 2 k candidates; their scores are computed anew in float32 from the vectors themselves,
           and the k best are returned: a score never depends on the kind, only whether a job was found does. Equal
           scores are in the order of the jobs.
Recall     the part of the true 100 nearest jobs that is found. Where nprobe or ef_search is not given, the build takes
           the least power of two whose mean recall is ``index_recall`` or more, on 512 queries against an exact
           search, for each kind of vectors that there is: jobs, CVs, generated JDs. For k above 100 both grow in
           proportion.
Filters    ``only``: a set of at most ``index_flat_max`` jobs is searched exactly; a larger one through FAISS's
           IDSelector, nprobe and ef_search multiplied by jobs / allowed jobs, so that as many allowed jobs are met.
           ``exclude``: k plus the largest number of excluded jobs are searched, and the excluded ones left out. What an
           approximate search leaves short of k is searched exactly.

Files      vectors/<encoder>/index/<jobs>-<digest>.faiss    <jobs>: jd, or model-<hash of the checkpoint>
           vectors/<encoder>/index/<jobs>.manifest.json     names the file, its SHA-256, the digest of the vectors, the
                                                            settings, and the recall that was measured
Replacing the manifest is the commit. A FAISS file is handed to FAISS only if its SHA-256 is the manifest's. Builders of
one folder wait for each other. Memory: the index itself, one block of vectors, and a training sample of at most
_SAMPLE_BYTES. The bytes depend on vectors, settings, seed, machine and, for ivf, the number of threads; the graph of
hnsw is built by one thread, because its links depend on the order in which jobs come.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from filelock import FileLock
from scipy.special import expit

from girl_recbole.atomic import DatasetFiles, atomic_write
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.manifest import cached_file_hash, file_hash, manifest_path, read_manifest, text_hash, write_manifest
from girl_recbole.vectors import EmbedConfig, check_texts, committed, embed_command, open_vectors, vectors_folder

__all__ = ["DotModel", "Index", "IndexConfig", "build", "unusable"]

_log = logging.getLogger(__name__)

KINDS = ("auto", "flat", "ivf", "hnsw")
_BLOCK = 1 << 16  # vectors that are float32 at once
_SAMPLE_BYTES = 1 << 30  # of vectors that an index is trained on
_PER_LIST = 64  # vectors of the training sample for each list of ivf
_QUERIES = 1024  # queries searched at once
_TUNED_ON = 512  # queries that recall is measured on
_DEPTH = 100  # recall is measured on the so many nearest
_POOL = 2  # candidates of an approximate search for each job that is asked for


@dataclass(frozen=True)
class IndexConfig(EmbedConfig):
    """Keys and meanings: properties/overall.yaml, sections "Search" and "Text encoder"."""

    seed: int
    index_kind: str
    index_flat_max: int
    index_recall: float
    index_nlist: int | None
    index_nprobe: int | None
    index_links: int
    index_ef_construction: int
    index_ef_search: int | None


@dataclass(frozen=True)
class _Jobs:
    """What is indexed: ``vectors`` (N, D) float16 or float32, their ids, and a digest that names both."""

    vectors: np.ndarray
    ids: np.ndarray
    digest: str
    unit: bool  # scores are cosines
    folder: Path
    name: str
    queries: Callable[[], list[np.ndarray]]  # vectors (n, D) of each kind that will be searched with

    def block(self, rows: slice | np.ndarray) -> np.ndarray:
        """Vectors as they are compared, float32."""
        return _units(self.vectors[rows]) if self.unit else np.asarray(self.vectors[rows], np.float32)

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first, vectors) of all jobs, or of ``rows``, block by block."""
        count = len(self.vectors) if rows is None else len(rows)
        for at in range(0, count, _BLOCK):
            part = slice(at, min(at + _BLOCK, count))
            yield at, self.block(part if rows is None else rows[part])


class Index:
    """The jobs of a dataset, to be searched. ``ids`` (N,): the job of each row; ``report``: what it is."""

    def __init__(self, jobs: _Jobs, structure: faiss.Index | None, facts: dict[str, Any]):
        self._jobs, self._facts = jobs, facts
        self.ids = jobs.ids
        if structure is None:
            structure = faiss.IndexFlatIP(jobs.vectors.shape[1])
            for _, block in jobs.blocks():
                structure.add(block)
        self._structure = structure

    @classmethod
    def load(cls, files: DatasetFiles, config: Any, model: DotModel | None = None) -> Index:
        """The index that `girl index` made; ``index_nprobe`` and ``index_ef_search`` of ``config`` win over its own.

        Raises ``DataError`` for one that is missing, of other vectors than there are now, or not the file that its
        manifest describes.
        """
        jobs = _jobs_of(files, config, model)
        path, rebuild = jobs.folder / jobs.name, _command(files, config, model)
        facts = read_manifest(path)
        if facts is None:
            raise DataError(f"{manifest_path(path)}: no index of these vectors. Run `{rebuild}`.")
        if facts["vectors"] != jobs.digest:
            raise DataError(
                f"{path}: an index of other vectors: their digest was {facts['vectors']}, now it is {jobs.digest} "
                f"(the JDs, the jobs or the encoder have changed). Run `{rebuild}`."
            )
        if not _intact(jobs, facts):
            raise DataError(
                f"{jobs.folder / facts['file']}: missing, or not the file that its manifest describes; it is not read. "
                f"Run `{rebuild}`."
            )
        for key in ("nprobe", "ef_search"):
            if (given := getattr(config, f"index_{key}")) is not None and key in facts:
                if given < 1:
                    raise ConfigError(f"index_{key}: {given}; at least 1 is required.")
                facts |= {key: given, "recall": None}
        return cls(jobs, faiss.read_index(str(jobs.folder / facts["file"])) if facts["file"] else None, facts)

    @property
    def report(self) -> dict[str, Any]:
        """Kind, jobs, width, and how much a search looks at."""
        return _said(self._facts)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        only: Sequence[str] | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` jobs with the highest scores for each of ``vectors`` (n, D): scores (n, k) float32, ids (n, k).

        ``only``: ids of the jobs that may be found. ``exclude``: for each vector ids that may not. Where fewer than k
        are left, the rest of the row is NaN and "".
        """
        queries = self._checked(vectors)
        allowed = None if only is None else np.unique(self.rows_of(only))
        room = len(self.ids) if allowed is None else len(allowed)
        if not 1 <= k <= room:
            what = "the index has" if allowed is None else f"of the {len(self.ids)} jobs may be found only"
            raise ConfigError(f"the top {k} jobs are asked for, and {what} {room}; 1 to {room} is required.")
        known = self.row
        barred = [np.array([known[job] for job in some if job in known], np.int64) for some in exclude or ()]
        if exclude is not None and len(barred) != len(queries):
            raise ConfigError(f"exclude: {len(barred)} lists of jobs for {len(queries)} vectors; one each is required.")
        scores = np.full((len(queries), k), np.nan, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for at in range(0, len(queries), _QUERIES):
            part = slice(at, at + _QUERIES)
            scores[part], rows[part] = self._search(queries[part], k, allowed, barred[part] if barred else None)
        ids = np.full(rows.shape, "", object)
        ids[rows >= 0] = self.ids[rows[rows >= 0]]
        return scores, ids

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of jobs; ``DataError`` for those that are not indexed."""
        unknown = [job for job in ids if job not in self.row]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(ids)} jobs are not in the index (first: {some_of(unknown)}); it has the "
                f"{len(self.ids)} jobs that were embedded. Take them out, or embed them and index again."
            )
        return np.array([self.row[job] for job in ids], np.int64)

    @functools.cached_property
    def row(self) -> dict[str, int]:
        """job -> its row."""
        return {job: row for row, job in enumerate(self.ids)}

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        queries = np.ascontiguousarray(vectors, np.float32)
        width = self._jobs.vectors.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ConfigError(f"vectors of shape {queries.shape}; (n, {width}), the width of the jobs, is required.")
        if len(bad := unusable(queries, self._jobs.unit)):
            raise DataError(
                f"{len(bad)} of {len(queries)} query vectors are zero or not finite (first: number {bad[0]}); no job "
                f"is nearer to them than another."
            )
        return _units(queries) if self._jobs.unit else queries

    def _search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, barred: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows, (B, k), NaN and -1 where there are too few."""
        room = len(self.ids) if allowed is None else len(allowed)
        wanted = min(k + max(map(len, barred or ()), default=0), room)
        if allowed is not None and room <= self._facts["flat_max"]:
            rows = _scan(self._jobs, queries, wanted, allowed)
        else:
            rows = self._candidates(queries, wanted, allowed)
            short = np.flatnonzero((rows >= 0).sum(axis=1) < wanted)
            if len(short):
                rows[short] = -1
                rows[short, :wanted] = _scan(self._jobs, queries[short], wanted, allowed)
        scores = _scores(self._jobs, queries, rows)
        for at, some in enumerate(barred or ()):
            out = np.isin(rows[at], some)
            scores[at, out], rows[at, out] = -np.inf, -1
        order = np.lexsort((rows, -scores))[:, :k]
        scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        missing = k - rows.shape[1]
        if missing > 0:
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
            rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
        return np.where(rows < 0, np.float32(np.nan), scores), rows

    def _candidates(self, queries: np.ndarray, wanted: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows that may be the ``wanted`` nearest, (B, pool), -1 where the structure found too few."""
        facts, count = self._facts, len(self.ids)
        room = count if allowed is None else len(allowed)
        selector = None
        if allowed is not None:
            mask = np.zeros(count, bool)
            mask[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        if facts["index"] == "flat":
            return self._structure.search(queries, wanted, params=faiss.SearchParameters(sel=selector))[1]
        pool = min(_POOL * wanted, room)
        wider = max(1.0, wanted / _DEPTH) * count / room
        if facts["index"] == "ivf":
            nprobe = min(facts["nlist"], math.ceil(facts["nprobe"] * wider))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
        else:
            ef_search = min(count, max(pool, math.ceil(facts["ef_search"] * wider)))
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef_search)
        return self._structure.search(queries, pool, params=parameters)[1]


class DotModel:
    """A trained Dot model on its data: what its score is an inner product of.

        Eqs 11, 15   s = scale (c' . j - dot_mean) / dot_spread + bias        two_tower.py
                     p = sigmoid(platt_a s + platt_b) = sigmoid(u . j + offset)
                     u = slope c',   slope = platt_a scale / dot_spread

    c' and j as the model has them (standardised where it has an MLP). ``ids``, ``vectors`` (N, D): the jobs of its
    data and their j. The checkpoint is loaded safely (compat.py).
    """

    def __init__(self, checkpoint: Path, model: Any, dataset: Any):
        self.checkpoint, self._model, self._dataset = checkpoint, model.eval(), dataset
        self.embed_config: EmbedConfig = dataset.embed_config
        self.ids = np.asarray(dataset.field2id_token[dataset.iid_field][1:], object)
        with torch.no_grad():
            self.vectors = model.encoded_items()[1:].float().cpu().numpy()
            at_0, at_1 = (
                model.platt[0] * model._logit(torch.tensor([0.0, 1.0]).to(model.platt)) + model.platt[1]
            ).tolist()
        self.slope, self.offset = at_1 - at_0, at_0

    @classmethod
    def load(cls, files: DatasetFiles, checkpoint: str | os.PathLike) -> DotModel:
        """The model in ``checkpoint``, on the dataset as it is now."""
        from recbole.utils import get_model

        from girl_recbole.checkpoints import load_trained
        from girl_recbole.models.two_tower import GIRLBaseDot, GIRLEnhancedDot

        def check(config) -> None:
            if not issubclass(get_model(config["model"]), (GIRLBaseDot, GIRLEnhancedDot)):
                raise ConfigError(
                    f"{checkpoint}: {config['model']} does not score by an inner product, so its jobs cannot be "
                    f"indexed; train GIRLEnhancedDot or GIRLBaseDot: `run_recbole --model=GIRLEnhancedDot "
                    f"--dataset={files.name}`."
                )

        trained = load_trained(checkpoint, files, check)
        return cls(Path(checkpoint), trained.model, trained.dataset)

    @property
    def users(self) -> np.ndarray:
        """The seekers of its data."""
        return np.asarray(self._dataset.field2id_token[self._dataset.uid_field][1:], object)

    def queries(self, users: Sequence[str]) -> np.ndarray:
        """u of each of ``users``, (n, D) float32."""
        self.check(users)
        known = self._dataset.field2token_id[self._dataset.uid_field]
        ids = torch.tensor([known[user] for user in users], device=self._model.platt.device)
        with torch.no_grad():
            parts = [self._model.encode_users(part) for part in ids.split(8192)]
        return (self.slope * torch.cat(parts).float()).cpu().numpy()

    def check(self, users: Sequence[str]) -> None:
        """Raise ``DataError`` for seekers whom the model does not know."""
        known = self._dataset.field2token_id[self._dataset.uid_field]
        unknown = [user for user in users if user not in known]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(users)} seekers are not in the data of {self.checkpoint} "
                f"(first: {some_of(unknown)}); a model knows the seekers of {self._dataset.dataset_name}.inter."
            )

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """What the model's ``predict`` gives, of the index's scores u . j."""
        return expit(scores + np.float32(self.offset))


def build(files: DatasetFiles, config: IndexConfig, checkpoint: str | None = None) -> dict[str, Any]:
    """Index a dataset's jobs, or the job vectors of a Dot model's checkpoint; nothing is done if the index is there.

    Returns the report. Raises ``DataError`` for vectors that are missing, stale, zero or not finite.
    """
    started = time.monotonic()
    _check(config)
    model = None if checkpoint is None else DotModel.load(files, checkpoint)
    jobs = _jobs_of(files, config, model)
    settings = {key: value for key, value in asdict(config).items() if key.startswith("index_")} | {"seed": config.seed}
    jobs.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(jobs.folder / ".lock"):
        there = read_manifest(jobs.folder / jobs.name)
        if there and (there["vectors"], there["settings"]) == (jobs.digest, settings) and _intact(jobs, there):
            return _report(files, jobs, there, started) | {"reused": "the index was there already"}
        _check_vectors(jobs, files, config)
        structure, facts = _make(jobs, config)
        path = None
        if structure is not None:
            path = jobs.folder / f"{jobs.name}-{text_hash(jobs.digest, repr(sorted(settings.items())))[:16]}.faiss"
            _write(path, structure)
        write_manifest(
            jobs.folder / jobs.name,
            "index",
            config=asdict(config),
            seed=config.seed,
            wall_time_s=time.monotonic() - started,
            vectors=jobs.digest,
            settings=settings,
            file=path and path.name,
            sha256=path and file_hash(path),
            faiss=faiss.__version__,
            **facts,
        )
        for left in jobs.folder.glob(f"{jobs.name}-*.faiss"):
            if left != path:
                left.unlink(missing_ok=True)
    return _report(files, jobs, facts | {"file": path and path.name}, started)


# ------------------------------------------------------------------------------------------------- what is indexed


def _jobs_of(files: DatasetFiles, config: Any, model: DotModel | None) -> _Jobs:
    """The vectors to index, checked to be those of the JDs that there are now."""
    if model is not None:
        sha256 = file_hash(model.checkpoint)
        return _Jobs(
            vectors=model.vectors,
            ids=model.ids,
            digest=text_hash(sha256, file_hash(files.idoc), *model.ids)[:16],
            unit=False,
            folder=vectors_folder(files, model.embed_config) / "index",
            name=f"model-{sha256[:12]}",
            queries=lambda: [model.queries(np.random.default_rng(0).permutation(model.users)[:_QUERIES])],
        )
    matrix = open_vectors(files, config, "jd")
    ids = matrix.table["item_id"].to_numpy(object)
    check_texts(files, config, "jd", ids, matrix, np.arange(len(ids))[:, None])
    folder = vectors_folder(files, config)
    return _Jobs(
        vectors=matrix.vectors,
        ids=ids,
        digest=matrix.manifest["digest"],
        unit=True,
        folder=folder / "index",
        name="jd",
        queries=lambda: [
            other.vectors for other in committed(folder, config, matrix.manifest["encoder_sha256"]).values()
        ],
    )


def _command(files: DatasetFiles, config: Any, model: DotModel | None) -> str:
    if model is not None:
        return f"girl index {files.name} --checkpoint={model.checkpoint}"
    return embed_command(files, replace(config, n_generated=1)).replace("girl embed", "girl index", 1)


def _check_vectors(jobs: _Jobs, files: DatasetFiles, config: Any) -> None:
    bad: list[str] = []
    for at in range(0, len(jobs.ids), _BLOCK):
        block = np.asarray(jobs.vectors[at : at + _BLOCK], np.float32)
        bad += jobs.ids[at + unusable(block, jobs.unit)].tolist()
    if bad:
        raise DataError(
            f"{files.idoc.name}: the vectors of {len(bad)} of {len(jobs.ids)} jobs are zero or not finite (first: "
            f"{some_of(bad)}); no cosine is defined for them. Correct these JDs, or set another encoder, then run "
            f"`{embed_command(files, config)}`."
        )


def unusable(vectors: np.ndarray, unit: bool = True) -> np.ndarray:
    """Which of ``vectors`` hold something that is not finite or, where they are made units, are zero."""
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return np.flatnonzero(~np.isfinite(squares) | (unit & (squares == 0)))


def _units(vectors: np.ndarray) -> np.ndarray:
    """float32 vectors of length 1."""
    vectors = np.array(vectors, np.float32)
    vectors /= np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return vectors


# -------------------------------------------------------------------------------------------------------- building


def _check(config: IndexConfig) -> None:
    if config.index_kind not in KINDS:
        hint = suggest(config.index_kind, KINDS)
        raise ConfigError(f"index_kind: {config.index_kind!r} is unknown{hint}; known: {', '.join(KINDS)}.")
    least = {"index_nlist": 1, "index_nprobe": 1, "index_links": 2, "index_ef_construction": 1, "index_ef_search": 1,
             "index_flat_max": 0}  # fmt: skip
    for key, low in least.items():
        value = getattr(config, key)
        if value is not None and value < low:
            raise ConfigError(f"{key}: {value}; at least {low} is required.")
    if not 0 < config.index_recall <= 1:
        raise ConfigError(f"index_recall: {config.index_recall} is not in (0, 1].")


def _make(jobs: _Jobs, config: IndexConfig) -> tuple[faiss.Index | None, dict[str, Any]]:
    """The structure, trained, filled and tuned, and what the manifest says of it."""
    count, width = jobs.vectors.shape
    kind = config.index_kind
    if kind == "auto":
        kind = "flat" if count <= config.index_flat_max else "ivf"
    facts: dict[str, Any] = {"index": kind, "jobs": count, "dimension": width, "flat_max": config.index_flat_max}
    if kind == "flat":
        return None, facts | {"recall": 1.0}
    seed = config.seed % (1 << 31)
    if kind == "ivf":
        facts["nlist"] = _lists(count, config.index_nlist)
        structure = faiss.index_factory(width, f"IVF{facts['nlist']},SQ8", faiss.METRIC_INNER_PRODUCT)
        structure.cp.seed = seed
        structure.cp.min_points_per_centroid, structure.cp.max_points_per_centroid = 1, count
        sample, threads, key, given, most = (
            facts["nlist"] * _PER_LIST,
            None,
            "nprobe",
            config.index_nprobe,
            facts["nlist"],
        )
    else:
        facts["links"] = config.index_links
        structure = faiss.index_factory(width, f"HNSW{facts['links']},SQ8", faiss.METRIC_INNER_PRODUCT)
        structure.hnsw.rng = faiss.RandomGenerator(seed)
        structure.hnsw.efConstruction = config.index_ef_construction
        sample, threads, key, given, most = _BLOCK, 1, "ef_search", config.index_ef_search, count
    with _threads(threads):
        structure.train(_sample(jobs, sample, config.seed))
        for _, block in jobs.blocks():
            structure.add(block)
    index = Index(jobs, structure, facts)
    truth = _truth(jobs, config.seed)
    facts[key] = min(given or (1 if kind == "ivf" else 256), most)  # hnsw keeps no fewer than the candidates
    while (recall := _recall(index, truth)) < config.index_recall and facts[key] < most and given is None:
        facts[key] = min(2 * facts[key], most)
    facts["recall"] = round(recall, 4)
    if facts["recall"] < config.index_recall:
        _log.warning(
            "the %s index finds %.3f of the true %d nearest jobs, less than index_recall: %g.",
            kind, facts["recall"], min(_DEPTH, count), config.index_recall,
        )  # fmt: skip
    return structure, facts


def _lists(count: int, given: int | None) -> int:
    """2 sqrt(N) lists, with 39 jobs each at the least, as FAISS advises."""
    if given is not None and given > count:
        raise ConfigError(f"index_nlist: {given} lists for {count} jobs; at most one each is possible.")
    return given or max(1, min(round(2 * math.sqrt(count)), count // 39))


def _sample(jobs: _Jobs, wanted: int, seed: int) -> np.ndarray:
    count, width = jobs.vectors.shape
    wanted = min(wanted, count, max(1, _SAMPLE_BYTES // (4 * width)))
    rows = np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))
    out = np.empty((wanted, width), np.float32)
    for at, block in jobs.blocks(rows):
        out[at : at + len(block)] = block
    return out


def _truth(jobs: _Jobs, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each kind of queries some vectors, and the score of the last of the true nearest jobs of each vector."""
    sources = [source for source in jobs.queries() if len(source)]
    rng = np.random.default_rng(seed)
    kinds = []
    for source in sources:
        some = rng.choice(len(source), min(_TUNED_ON // len(sources), len(source)), replace=False)
        vectors = np.asarray(source[np.sort(some)], np.float32)
        vectors = np.delete(vectors, unusable(vectors, jobs.unit), axis=0)
        kinds.append(_units(vectors) if jobs.unit else vectors)
    queries = np.concatenate(kinds)
    last = _scores(jobs, queries, _scan(jobs, queries, min(_DEPTH, len(jobs.ids)))).min(axis=1)
    return list(zip(kinds, np.split(last, np.cumsum([len(some) for some in kinds])[:-1]), strict=True))


def _recall(index: Index, truth: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The least, over the kinds of queries, of the mean part of the true nearest that is found. Equals are equal."""
    found = []
    for queries, last in truth:
        rows = index._candidates(queries, min(_DEPTH, len(index.ids)), None)
        scores = -np.sort(-_scores(index._jobs, queries, rows))[:, :_DEPTH]
        found.append(float((scores >= last[:, None] - 1e-6).mean()))
    return min(found)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """FAISS works with ``count`` threads meanwhile; None: with as many as before."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _write(path: Path, structure: faiss.Index) -> None:
    with atomic_write(path, "wb") as file:
        try:
            faiss.write_index(structure, str(file.name))
        except RuntimeError as error:  # FAISS's word for every failed write
            raise OSError(errno.EIO, f"FAISS could not write the index ({error})", str(path)) from None


def _intact(jobs: _Jobs, manifest: dict[str, Any]) -> bool:
    if not manifest["file"]:
        return True
    path = jobs.folder / manifest["file"]
    return path.exists() and cached_file_hash(path) == manifest["sha256"]


def _report(files: DatasetFiles, jobs: _Jobs, facts: dict[str, Any], started: float) -> dict[str, Any]:
    path = jobs.folder / facts["file"] if facts["file"] else None
    return {
        "dataset": files.name,
        "vectors": jobs.name,
        **_said(facts),
        "file": str(path) if path else "none: the vectors are read when it is loaded",
        "bytes": path.stat().st_size if path else 0,
        "wall_time_s": round(time.monotonic() - started, 3),
    }


def _said(facts: dict[str, Any]) -> dict[str, Any]:
    keys = ("index", "jobs", "dimension", "nlist", "nprobe", "links", "ef_search", "recall")
    return {key: facts[key] for key in keys if facts.get(key) is not None}


# ------------------------------------------------------------------------------------------------ exact arithmetic


def _scan(jobs: _Jobs, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
    """The rows of the k nearest of all jobs, or of ``rows``, (B, k): all of them are looked at, block by block."""
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for at, block in jobs.blocks(rows):
        scores, found = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, found + at)
    heap.finalize()
    return heap.I if rows is None else rows[heap.I]


def _scores(jobs: _Jobs, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores of ``rows`` (B, P) with their queries, float32 (B, P), from the vectors themselves; row -1: -inf."""
    scores = np.empty(rows.shape, np.float32)
    step = max(1, (1 << 25) // max(1, rows.shape[1] * queries.shape[1]))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        vectors = jobs.block(np.maximum(part, 0).ravel()).reshape(*part.shape, -1)
        scores[at : at + step] = np.matmul(vectors, queries[at : at + step, :, None])[:, :, 0]
    scores[rows < 0] = -np.inf
    return scores
