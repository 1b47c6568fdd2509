"""Texts to vectors (Eqs 9 and 12), once: a matrix a kind, on disk, that says which texts and which encoder made it.

Kinds      ``cv``                 the CVs of the seekers of NAME.inter (of all of NAME.udoc with ``embed_all``)
           ``jd``                 the JDs of the jobs of NAME.inter (of all of NAME.idoc with ``embed_all``)
           ``gen.<generator>``    the JDs in NAME.<generator>.gdoc, one row a sample: of each seeker the samples 0 to
                                  n_generated - 1, and those that the files hold already

Files      vectors/<encoder>/KIND-<digest>.npy    (rows, D) float16, to be memory-mapped; compute is float32
           vectors/<encoder>/KIND-<digest>.ids    user_id or item_id, [sample], text_hash, truncated: row by row
           vectors/<encoder>/KIND.manifest.json   names the digest, the encoder's hash, its settings, the text file's
                                                  hash and the counts

Replacing the manifest is the commit: a reader sees the old files or the new ones, whole. A text is known by its key,
128 bits of its SHA-256, and is encoded once, whichever kinds and rows hold it; rows of unchanged texts are copied from
the files before. Builders of one folder wait for each other (a lock file).

Memory     does not hold the texts: they are read three times, as a stream. The first reading keeps a key and a length
           of each row; the second encodes what has no vector yet, a block of ``_BLOCK_TEXTS`` texts at a time; the
           third writes the rows. So a text costs a few dozen bytes, whatever its length and the width of its vector
           (docs/embedding.md). Matrices are written and read in pieces of ``_PIECE_BYTES``.
Batches    The texts of a block are sorted by length, so that batches hold texts of like length, and cut into chunks.
           Chunks of finished work are kept under vectors/<encoder>/progress/, so that a killed run goes on where it
           stopped; blocks, chunks and batches depend on the texts and their order alone, so it ends with the bytes of
           a run that was not disturbed. A chunk that cannot be read is reported, removed and encoded again.
Changes    A text file is hashed before it is read. One that is written to meanwhile is read again: each later reading
           is compared with the first, text by text.

Reading (:func:`load_vectors`) checks the encoder and the texts: where the text file is byte for byte the one that was
embedded that is one hash of a file, else the texts asked for are hashed. Nothing missing becomes a zero row. Memory is
that of the vectors asked for and a few dozen bytes for each. Generated JDs are read only if ``girl generate`` wrote
them from the CVs that their seekers have now (their manifest says so). Those of one's own, without a manifest, may be
in any order, for which all of them are held in memory.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import mmap
import re
import shutil
import time
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from pyarrow import csv
from tqdm import tqdm

from girl_recbole.atomic import (
    DatasetFiles,
    atomic_write,
    iter_docs,
    iter_generated,
    iter_ids,
    read_generated,
)
from girl_recbole.encoder import Encoder, encoder_folder, encoder_hash, encoder_slug
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.manifest import TextDigest, file_hash, manifest_path, read_manifest, text_hash, write_manifest
from girl_recbole.shards import KEY_BYTES, as_keys, key_of

__all__ = ["EmbedConfig", "StaleVectors", "embed", "load_vectors", "read_texts"]

_log = logging.getLogger(__name__)
_BLOCK_TEXTS = 16_384  # texts that are held, and sorted by length, at a time, at most
_BLOCK_CHARACTERS = 16_000_000  # and characters
_CHUNK_TEXTS = 2048  # texts between two commits of work in progress, at most
_CHUNK_CHARACTERS = 4_000_000  # and characters, so that the tokens of long documents fit in memory
_PIECE_BYTES = 1 << 25  # of vectors that are copied at a time
_IDS = 1 << 20  # ids between two reductions to distinct ones
_ROWS = 256  # documents looked up at a time
_ATTEMPTS = 3  # readings of text files that change while they are read or encoded


@dataclass(frozen=True)
class EmbedConfig:
    encoder: str
    max_text_tokens: int | None
    text_windows: int
    encoder_batch_tokens: int | None
    encoder_precision: str
    embed_all: bool
    n_generated: int


class StaleVectors(DataError):
    """Vectors that are missing or made from something else, and that `girl embed` can make."""


class _Changed(Exception):
    """The texts of a kind are not those of the reading before."""


def embed(files: DatasetFiles, config: EmbedConfig, kinds: Iterable[str] | None = None) -> dict:
    """Make the vectors of ``kinds`` (default: cv, jd, and gen.* for each NAME.*.gdoc), or only what has changed.

    Returns ``{"rows": {kind: n}, "encoded": n, "reused": n, "truncated": n, ...}``: encoded and reused count distinct
    texts, truncated counts distinct texts that were longer than their windows.
    """
    started = time.monotonic()
    if config.n_generated < 1:
        raise ConfigError(f"n_generated: {config.n_generated} generated JDs a seeker; at least 1 is required.")
    kinds = list(dict.fromkeys(kinds)) if kinds is not None else ["cv", "jd", *_generated_kinds(files)]
    encoder_sha256 = encoder_hash(encoder_folder(config.encoder))
    folder = _folder(files, config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        old = _committed(folder, config, encoder_sha256)
        for _ in range(_ATTEMPTS):
            texts = _Texts(files, config, encoder_sha256, kinds, old)
            try:
                places = _Places(texts.keys, old.values())
                fresh = _encode_missing(folder, config, encoder_sha256, texts, places)
                texts.check_sources()
                for kind in kinds:
                    _commit(folder, config, encoder_sha256, kind, texts, places, old.get(kind), started)
                break
            except _Changed as change:
                changed = _source(files, str(change))
                _log.warning("%s changed while it was embedded; it is read again.", changed.name)
        else:
            raise DataError(
                f"{changed}: changed {_ATTEMPTS} times while it was embedded. Wait until it is written, then run "
                f"`{_embed_command(files, config)}`."
            )
        _drop_progress(files, folder, config, encoder_sha256, kinds)
    count, truncated = len(texts.keys), int(places.cut.sum())
    if truncated:
        _log.warning(
            "%s: %d of %d texts are longer than %d window(s) of the encoder and were cut; text_windows: N keeps more.",
            files.name, truncated, count, config.text_windows,
        )  # fmt: skip
    return {
        "dataset": files.name,
        "encoder": config.encoder,
        "folder": str(folder),
        "rows": {kind: rows.stop - rows.start for kind, rows in texts.rows.items()},
        "texts": count,
        "encoded": fresh,
        "reused": count - fresh,
        "truncated": truncated,
        "wall_time_s": round(time.monotonic() - started, 3),
    }


def load_vectors(
    files: DatasetFiles, config: EmbedConfig, kind: str, ids: Sequence[str], n_samples: int = 1
) -> np.ndarray:
    """The vectors of ``ids``, in their order: (len(ids), D) float32. Generated JDs: the mean of the first n_samples.

    Raises :class:`StaleVectors` for vectors that are missing, of another encoder or of other texts, and ``DataError``
    for an id that has no text or too few generated JDs.
    """
    matrix = _fresh(files, config, kind)
    rows = matrix.find(ids, n_samples)
    missing = [ids[i] for i in np.flatnonzero((rows < 0).any(axis=1))]
    if missing:
        _explain_missing(files, config, kind, missing, len(ids), n_samples)
    _check_texts(files, config, kind, ids, matrix, rows)
    return _gather_mean(matrix.vectors, rows)


def read_texts(
    files: DatasetFiles, kind: str, ids: Iterable[str] | None = None, n_samples: int | None = None
) -> dict[str, list[str]]:
    """``{id: texts}`` of a kind, one text an id but for generated JDs (the first n_samples); of ``ids`` only, if given.

    An id without a text is left out. Raises ``DataError`` naming the ids whose text is empty or white space.
    """
    if kind.startswith("gen."):
        _check_generated(files, kind)
    wanted = None if ids is None else _sorted_keys(ids)
    texts = {key: several for key, _, several in _stream(files, kind, wanted, n_samples)}
    _refuse_empty(files, kind, [key for key, several in texts.items() if any(map(_blank, several))], len(texts))
    return texts


# --------------------------------------------------------------------------------------------------- what to embed


def _source(files: DatasetFiles, kind: str) -> Path:
    if kind == "cv":
        return files.udoc
    if kind == "jd":
        return files.idoc
    if kind.startswith("gen.") and len(kind) > len("gen."):
        return files.gdoc(kind.removeprefix("gen."))
    raise ConfigError(f"unknown kind of text {kind!r}; known: cv, jd and gen.<generator>.")


def _column(kind: str) -> str:
    return "item_id" if kind == "jd" else "user_id"


def _stream(
    files: DatasetFiles, kind: str, wanted: np.ndarray | None, n_samples: int | None
) -> Iterator[tuple[str, int, list[str]]]:
    """(id, place of its key in ``wanted``, its first n_samples texts) in file order. ``wanted``: sorted keys of ids;
    None: all, with place -1."""
    path = _source(files, kind)
    if not kind.startswith("gen."):
        docs = ((key, [text]) for key, text in iter_docs(path))
    elif manifest_path(path).exists():
        docs = iter_generated(path)
    else:
        docs = iter(read_generated(path).items())
    if wanted is None:
        yield from ((key, -1, texts[:n_samples]) for key, texts in docs)
        return
    while block := list(islice(docs, _ROWS)):
        where = _find(wanted, as_keys(key_of(key) for key, _ in block))
        for (key, texts), place in zip(block, where.tolist(), strict=True):
            if place >= 0:
                yield key, place, texts[:n_samples]


def _find(held: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The place of each of ``keys`` in ``held``, which is sorted; -1 where it is not there."""
    if not len(held):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
    return np.where(held[at] == keys, at, -1)


def _sorted_keys(ids: Iterable[str]) -> np.ndarray:
    """The distinct keys of ids, sorted."""
    found, more = as_keys(b""), bytearray()
    for key in ids:
        more += key_of(key)
        if len(more) == _IDS * KEY_BYTES:
            found, more = np.unique(np.concatenate([found, as_keys(more)])), bytearray()
    return np.unique(np.concatenate([found, as_keys(more)]))


class _Texts:
    """What is held of the texts of some kinds: U distinct ones in N rows, the rows of a kind after those of another.

    ``keys`` (U,) sorted; ``length`` (U,) characters; ``first`` (U,) the first row that holds it; ``which`` (N,) the
    text of each row, as a number below U; ``rows`` and ``digests`` of each kind, the latter of its ids and texts.
    """

    def __init__(self, files: DatasetFiles, config: EmbedConfig, encoder_sha256: str, kinds: Sequence[str], old: dict):
        """Read all texts. ``DataError`` for an id of NAME.inter without a text, and for a text that is blank."""
        self._files, self._config, self._encoder_sha256 = files, config, encoder_sha256
        self._wanted: dict[str, np.ndarray | None] = {}
        self.rows: dict[str, range] = {}
        self.samples: dict[str, int] = {}  # of an id, at most
        self.held: dict[str, int] = {}  # of an id, the most that are there
        self.digests: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        keys, lengths = bytearray(), array("i")
        for kind in kinds:
            held = (old[kind].manifest["samples"] or 0) if kind in old else 0
            self.samples[kind] = max(config.n_generated, held)
            start = len(lengths)
            self._read(kind, keys, lengths)
            self.rows[kind] = range(start, len(lengths))
        each = as_keys(keys)
        self.keys = np.unique(each)
        self.which = np.empty(len(each), np.int32)
        for at in range(0, len(each), _IDS):
            self.which[at : at + _IDS] = np.searchsorted(self.keys, each[at : at + _IDS])
        self.first = np.empty(len(self.keys), np.int32)
        self.first[self.which[::-1]] = np.arange(len(each) - 1, -1, -1, dtype=np.int32)  # the last that is set stays
        self.length = np.frombuffer(lengths, np.int32)[self.first]

    def _read(self, kind: str, keys: bytearray, lengths: array) -> None:
        """Append the keys and lengths of a kind's texts."""
        files, source = self._files, _source(self._files, kind)
        self.sources[kind] = file_hash(source) if source.exists() else ""
        if kind.startswith("gen."):
            _check_generated(files, kind)
        needed = None if self._config.embed_all else _sorted_keys(iter_ids(files.inter, _column(kind)))
        self._wanted[kind] = needed
        seen = np.zeros(0 if needed is None else len(needed), bool)
        digest, count, held, empty, bad = self._digest(), 0, 0, [], []
        for key, place, texts in _stream(files, kind, needed, self.samples[kind]):
            count, held = count + 1, max(held, len(texts))
            if len(key.split()) != 1 or "\0" in key:
                bad.append(repr(key))
            for sample, text in enumerate(texts):
                _add_row(digest, key, sample, of := key_of(text))
                keys += of
                lengths.append(len(text))
            if any(map(_blank, texts)):
                empty.append(key)
            if needed is not None:
                seen[place] = True
        _refuse_empty(files, kind, empty, count)
        if bad:
            raise DataError(
                f"{source}: {len(bad)} of {count} ids are empty or hold white space or NUL (first: {some_of(bad)})."
            )
        if not seen.all():
            lost = needed[~seen]
            missing = _first_of(iter_ids(files.inter, _column(kind)), lost)
            if not kind.startswith("gen."):
                raise DataError(_no_text(files, kind, missing, len(lost), len(needed)))
            _log.warning("%s: %d of %d seekers have no generated JD.", source, len(lost), len(needed))
        self.digests[kind], self.held[kind] = digest.hexdigest()[:16], held

    def missing(self, without: np.ndarray) -> Iterator[tuple[int, str]]:
        """(number, text) of the distinct texts ``without`` (U,) bool, each where it comes first; ``_Changed`` if a file
        is not what it was."""
        wanted = np.zeros(len(self.which), bool)
        wanted[self.first[without]] = True
        for kind, rows in self.rows.items():
            if not wanted[rows.start : rows.stop].any():
                continue
            for row, text in zip(rows, self._texts_of(kind), strict=False):
                if wanted[row]:
                    number = int(self.which[row])
                    if as_keys(key_of(text)) != self.keys[number : number + 1]:
                        raise _Changed(kind)
                    wanted[row] = False
                    yield number, text
            if wanted[rows.start : rows.stop].any():
                raise _Changed(kind)

    def _texts_of(self, kind: str) -> Iterator[str]:
        stream = _stream(self._files, kind, self._wanted[kind], self.samples[kind])
        return chain.from_iterable(texts for _, _, texts in stream)

    def table(self, kind: str) -> Iterator[tuple[str, int, int, bytes]]:
        """(id, sample, number of the text, its key) row by row; ``_Changed`` if the file is not what it was."""
        digest, row = self._digest(), self.rows[kind].start
        for key, _, texts in _stream(self._files, kind, self._wanted[kind], self.samples[kind]):
            for sample, text in enumerate(texts):
                _add_row(digest, key, sample, of := key_of(text))
                if row == self.rows[kind].stop:
                    raise _Changed(kind)
                yield key, sample, int(self.which[row]), of
                row += 1
        if digest.hexdigest()[:16] != self.digests[kind]:
            raise _Changed(kind)

    def check_sources(self) -> None:
        """``_Changed`` if a file is not the one that was read."""
        for kind, sha256 in self.sources.items():
            path = _source(self._files, kind)
            if not path.exists() or file_hash(path) != sha256:
                raise _Changed(kind)

    def _digest(self) -> TextDigest:
        digest = TextDigest()
        digest.add(self._encoder_sha256)
        return digest


def _add_row(digest: TextDigest, key: str, sample: int, of: bytes) -> None:
    digest.add(key)
    digest.add(f"{sample} {of.hex()}")


def _blank(text: str) -> bool:
    return not text or text.isspace()


def _first_of(ids: Iterable[str], lost: np.ndarray) -> list[str]:
    """The first ids whose keys are in ``lost``, which is sorted: as many as an error names."""
    ids, found = iter(ids), {}
    while len(found) < 3 and (block := list(islice(ids, _ROWS))):
        where = _find(lost, as_keys(map(key_of, block)))
        found |= dict.fromkeys(key for key, place in zip(block, where, strict=True) if place >= 0)
    return list(found)[:3]


def _refuse_empty(files: DatasetFiles, kind: str, empty: Sequence[str], of: int) -> None:
    if empty:
        what = {"cv": "CV", "jd": "JD"}.get(kind, "generated JD")
        raise DataError(
            f"{_source(files, kind)}: {len(empty)} of {of} ids have an empty {what} (first: {some_of(empty)}); a text "
            f"is required for each. Write the texts, or leave these ids out of {files.inter.name}."
        )


def _no_text(files: DatasetFiles, kind: str, first: Sequence[str], missing: int, of: int) -> str:
    people, text = ("jobs", "JD") if kind == "jd" else ("seekers", "CV")
    return (
        f"{_source(files, kind)}: {missing} of {of} {people} have no {text} (first: {_named(first, missing)}); "
        f"one each is required. Add them to {_source(files, kind).name}, or take these ids out of {files.inter.name}."
    )


def _named(first: Sequence[str], count: int) -> str:
    """As :func:`some_of` says it, of ``count`` ids of which the first are known."""
    return ", ".join(first[:3]) + (f" and {count - 3} more" if count > 3 else "")


# --------------------------------------------------------------------------------------------------- generated JDs


def _check_generated(files: DatasetFiles, kind: str) -> None:
    """Raise unless NAME.<generator>.gdoc is the file that was generated, from the CVs that its seekers have now.

    A file without a manifest is a user's own: nothing says what it was made from, so it is taken with a warning.
    """
    path = _source(files, kind)
    if not path.exists():
        raise DataError(f"{path}: no such file. Run `{_generate_command(files, kind)}`.")
    manifest = read_manifest(path)
    if manifest is None:
        return _warn_of_unknown_origin(path)
    rebuild = _generate_command(files, kind, manifest.get("settings", {}).get("samples", 1))
    if manifest.get("sha256") != file_hash(path):
        raise DataError(
            f"{path}: not the file that its manifest describes: it was changed after it was generated, or generating "
            f"was cut short. Run `{rebuild}`; or, if these JDs are your own, delete {manifest_path(path).name}."
        )
    if manifest.get("inputs", {}).get(files.udoc.name) == file_hash(files.udoc):
        return
    users = as_keys(key_of(user) for user, _ in iter_generated(path))  # the CVs of seekers without JDs may change
    order = np.argsort(users).astype(np.int32)
    wanted = users[order]
    seen = np.zeros(len(wanted), bool)
    for _, place, _ in _stream(files, "cv", wanted, 1):
        seen[place] = True
    gone = int((~seen).sum())
    if gone or manifest.get("source") != _source_of(files, wanted, order):
        first = _first_of((user for user, _ in iter_generated(path)), wanted[~seen]) if gone else []
        what = f"{gone} seekers have no CV any more (first: {_named(first, gone)})" if gone else "other CVs"
        raise DataError(
            f"{path}: stale: {files.udoc.name} has changed since these JDs were generated: {what}. Run `{rebuild}`."
        )


def _source_of(files: DatasetFiles, wanted: np.ndarray, order: np.ndarray) -> str:
    """The hash of ids and CVs in the order of the generated JDs, where ``wanted[k]`` is that of number ``order[k]``. A
    CV is held only until those before it have come: none, where NAME.udoc has that order."""
    digest, due, early = TextDigest(), 0, {}
    for user, place, (cv,) in _stream(files, "cv", wanted, 1):
        early[int(order[place])] = user, cv
        while due in early:
            for part in early.pop(due):
                digest.add(part)
            due += 1
    return digest.hexdigest()


@functools.cache
def _warn_of_unknown_origin(path: Path) -> None:
    _log.warning("%s: no manifest beside it, so nothing says which CVs these JDs were generated from.", path.name)


def _generated_kinds(files: DatasetFiles) -> list[str]:
    found = sorted(files.folder.glob(f"{files.name}.*.gdoc"))
    return ["gen." + path.name.removeprefix(f"{files.name}.").removesuffix(".gdoc") for path in found]


# -------------------------------------------------------------------------------------------------------- encoding


class _Places:
    """Where the vector of each distinct text is: ``source`` (U,) a number, -1 where there is none yet; ``row`` (U,) in
    that source; ``cut`` (U,) whether the text was longer than its windows."""

    def __init__(self, keys: np.ndarray, matrices: Iterable[_Matrix]):
        self._keys = keys
        self._sources: list[np.ndarray | Path] = []
        self.source, self.row = np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.int32)
        self.cut = np.zeros(len(keys), bool)
        for matrix in matrices:
            self._sources.append(matrix.vectors)
            start = 0
            for block in matrix.blocks():
                self._add(block.keys, block.cut, start)
                start += len(block.keys)

    def add_chunk(self, path: Path) -> None:
        self._sources.append(path)
        with np.load(path) as chunk:
            self._add(chunk["keys"], chunk["truncated"], 0)

    def _add(self, keys: np.ndarray, cut: np.ndarray, start: int) -> None:
        """The rows ``start`` and following of the last source are the vectors of ``keys``; what is known stays."""
        at = _find(self._keys, keys)
        new = np.flatnonzero(at >= 0)
        new = new[self.source[at[new]] < 0]
        at = at[new]
        self.source[at], self.row[at], self.cut[at] = len(self._sources) - 1, start + new, cut[new]

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """(len(numbers), D) float16 vectors of distinct texts."""
        source, row, out = self.source[numbers], self.row[numbers], None
        for number in np.unique(source):
            here = np.flatnonzero(source == number)
            vectors = _take(self._sources[number], row[here])
            out = np.empty((len(numbers), vectors.shape[1]), np.float16) if out is None else out
            out[here] = vectors
        return out

    def dimension(self) -> int:
        return self.gather(np.zeros(1, np.int64)).shape[1] if len(self._keys) else 0


def _take(source: np.ndarray | Path, rows: np.ndarray) -> np.ndarray:
    """Rows of a mapped matrix or of a chunk, copied; of what was read of the matrix nothing stays in memory."""
    if isinstance(source, Path):
        with np.load(source) as chunk:
            return chunk["vectors"][rows]
    taken = np.asarray(source[rows])
    source.base.madvise(mmap.MADV_DONTNEED)
    return taken


def _encode_missing(folder: Path, config: EmbedConfig, sha256: str, texts: _Texts, places: _Places) -> int:
    """Encode the texts that ``places`` lacks, into chunks, and add these to it. Returns how many texts it lacked."""
    progress = _progress(folder, config, sha256)
    done = {path.stem: path for path in sorted(progress.glob("*.npz")) if _is_whole(path)}
    plan = _plan(texts, places)
    fresh = sum(len(chunk) for block in plan for chunk in block)
    names = [[_name(texts, chunk) for chunk in block] for block in plan]
    planned = set(chain.from_iterable(names))
    if not done.keys() <= planned:  # chunks of another plan: texts changed meanwhile, or the commit was cut short
        for path in done.values():
            places.add_chunk(path)
        plan = _plan(texts, places)
        names, done = [[_name(texts, chunk) for chunk in block] for block in plan], {}
    total = sum(len(chunk) for block in plan for chunk in block)
    if not set(chain.from_iterable(names)) <= done.keys():
        encoder = _make_encoder(config)
        stream = texts.missing(places.source < 0)
        with tqdm(total=total, desc=f"embed ({config.encoder})", unit="text", leave=False) as bar:
            for block, block_names in zip(plan, names, strict=True):
                held = dict(islice(stream, sum(map(len, block))))
                for name, chunk in zip(block_names, block, strict=True):
                    if name in done:
                        bar.update(len(chunk))
                        continue
                    vectors, truncated = encoder.encode(
                        [held[number] for number in chunk.tolist()],
                        batch_tokens=config.encoder_batch_tokens,
                        done=bar.update,
                    )
                    with atomic_write(progress / f"{name}.npz", "wb") as file:
                        np.savez(
                            file,
                            keys=texts.keys[chunk],
                            vectors=vectors.astype(np.float16),
                            truncated=truncated,
                            kinds=np.array(list(texts.rows)),
                        )
    for name in chain.from_iterable(names):
        places.add_chunk(progress / f"{name}.npz")
    return fresh


def _make_encoder(config: EmbedConfig) -> Encoder:
    return Encoder(
        config.encoder,
        max_tokens=config.max_text_tokens,
        windows=config.text_windows,
        precision=config.encoder_precision,
    )


def _plan(texts: _Texts, places: _Places) -> list[list[np.ndarray]]:
    """Blocks of the texts without a vector, in the order in which they come, each in chunks, longest texts first: texts
    of one length share batches. A function of the texts and their order alone."""
    missing = np.flatnonzero(places.source < 0).astype(np.int32)
    missing = missing[np.argsort(texts.first[missing])]
    blocks = []
    for block in _cut(missing, texts.length, _BLOCK_TEXTS, _BLOCK_CHARACTERS):
        longest_first = block[np.lexsort((block, -texts.length[block]))]  # of equal lengths by key: keys are sorted
        blocks.append(_cut(longest_first, texts.length, _CHUNK_TEXTS, _CHUNK_CHARACTERS))
    return blocks


def _cut(numbers: np.ndarray, length: np.ndarray, most: int, most_characters: int) -> list[np.ndarray]:
    """``numbers`` in parts of at most ``most`` texts and, but for a single text, ``most_characters``."""
    total, parts, at = np.cumsum(length[numbers], dtype=np.int64), [], 0
    while at < len(numbers):
        before = total[at - 1] if at else 0
        end = int(np.searchsorted(total, before + most_characters, side="right"))
        parts.append(numbers[at : max(at + 1, min(end, at + most))])
        at += len(parts[-1])
    return parts


def _name(texts: _Texts, chunk: np.ndarray) -> str:
    return hashlib.sha256(texts.keys[chunk].tobytes()).hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """Whether a chunk can be read; one that cannot is removed."""
    try:
        with zipfile.ZipFile(path) as chunk:
            bad = chunk.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        bad = str(error)
    if bad:
        _log.warning("%s: a corrupt chunk of work in progress (%s); its texts are encoded again.", path, bad)
        path.unlink()
    return not bad


def _progress(folder: Path, config: EmbedConfig, sha256: str) -> Path:
    return folder / "progress" / text_hash("keys of 16 bytes", sha256, config.encoder_precision)[:16]


def _drop_progress(files: DatasetFiles, folder: Path, config: EmbedConfig, sha256: str, kinds: Sequence[str]) -> None:
    """Delete the chunks that no kind waits for: ``kinds`` are done, and so are those that equal their text files."""
    done = set(kinds)
    for kind, matrix in _committed(folder, config, sha256).items():
        source = _source(files, kind)
        if source.exists() and matrix.manifest["source_sha256"] == file_hash(source):
            done.add(kind)
    progress = _progress(folder, config, sha256)
    for path in progress.glob("*.npz"):
        with np.load(path) as chunk:
            waiting = set(chunk["kinds"].tolist()) - done
        if not waiting:
            path.unlink()
    if not any(progress.glob("*.npz")):
        shutil.rmtree(folder / "progress", ignore_errors=True)


# --------------------------------------------------------------------------------------------------- files on disk


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of a matrix's table."""

    ids: list[str]
    samples: np.ndarray  # (rows,) int64, zeros where there is one text an id
    keys: np.ndarray  # (rows,) of the texts
    cut: np.ndarray  # (rows,) bool


@dataclass(frozen=True)
class _Matrix:
    """A committed matrix and its table of rows, both mapped: they stay readable when others take their place."""

    vectors: np.ndarray  # (rows, D) float16
    manifest: dict
    _table: mmap.mmap

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """All of the table, in memory."""
        return pa.Table.from_batches(self.batches()).to_pandas()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The table, streaming; ``ValueError`` where it is none."""
        self._table.seek(0)
        fields = [field.partition(":") for field in self._table.readline().decode().rstrip("\n").split("\t")]
        types = {name: pa.float64() if kind == "float" else pa.string() for name, _, kind in fields}
        if not {"text_hash", "truncated"} <= types.keys() or self._table[-1:] != b"\n":
            raise ValueError("no whole table of rows")
        if self._table.tell() == len(self._table):
            return
        blocks = csv.open_csv(
            pa.BufferReader(self._table),
            read_options=csv.ReadOptions(use_threads=False, column_names=list(types), skip_rows=1),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
        for batch in blocks:
            yield batch
            self._table.madvise(mmap.MADV_DONTNEED)

    def blocks(self) -> Iterator[_Block]:
        """The table, streaming."""
        for batch in self.batches():
            ids, columns = batch.column(0).to_pylist(), dict(zip(batch.schema.names, batch.columns, strict=True))
            samples = columns["sample"].to_numpy().astype(np.int64) if "sample" in columns else np.zeros(len(ids), int)
            keys = pc.utf8_slice_codeunits(columns["text_hash"], 0, 2 * KEY_BYTES).to_pylist()
            yield _Block(ids, samples, as_keys(bytes.fromhex("".join(keys))), columns["truncated"].to_numpy() > 0)

    def keys(self) -> np.ndarray:
        """(rows,) keys of the texts."""
        return as_keys(block.keys.tobytes() for block in self.blocks())

    def find(self, ids: Sequence[str], n_samples: int) -> np.ndarray:
        """(len(ids), n_samples) int64: the rows of the first samples of each of ``ids``, -1 where there is none."""
        asked, which = np.unique(as_keys(map(key_of, ids)), return_inverse=True)
        rows, start = np.full((len(asked), n_samples), -1), 0
        for block in self.blocks():
            place = _find(asked, as_keys(map(key_of, block.ids)))
            hits = np.flatnonzero((place >= 0) & (block.samples < n_samples))
            rows[place[hits], block.samples[hits]] = start + hits
            start += len(block.ids)
        return rows[which]


def _folder(files: DatasetFiles, config: EmbedConfig) -> Path:
    slug = encoder_slug(config.encoder)
    if config.max_text_tokens is not None:
        slug += f"-t{config.max_text_tokens}"
    if config.text_windows != 1:
        slug += f"-w{config.text_windows}"
    if config.encoder_precision != "float32":
        slug += f"-{config.encoder_precision}"
    return files.vectors(slug)


def _identity(config: EmbedConfig, sha256: str) -> dict:
    return {
        "encoder_sha256": sha256,
        "max_text_tokens": config.max_text_tokens,
        "text_windows": config.text_windows,
        "encoder_precision": config.encoder_precision,
    }


def _commit(
    folder: Path, config: EmbedConfig, sha256: str, kind: str, texts: _Texts, places: _Places, old: _Matrix | None,
    started: float,
) -> None:  # fmt: skip
    rows, digest = texts.rows[kind], texts.digests[kind]
    if old and old.manifest["digest"] == digest and old.manifest["source_sha256"] == texts.sources[kind]:
        return
    matrix_path, table_path = folder / f"{kind}-{digest}.npy", folder / f"{kind}-{digest}.ids"
    which = texts.which[rows.start : rows.stop]
    if not (old and old.manifest["digest"] == digest):
        _write_matrix(matrix_path, which, places)
        with atomic_write(table_path) as file:
            sampled = kind.startswith("gen.")
            middle = "sample:float\t" if sampled else ""
            file.write(f"{_column(kind)}:token\t{middle}text_hash:token\ttruncated:float\n")
            for key, sample, number, of in texts.table(kind):
                middle = f"{sample}\t" if sampled else ""
                file.write(f"{key}\t{middle}{of.hex()}\t{int(places.cut[number])}\n")
    write_manifest(
        folder / kind,
        "vectors",
        config=asdict(config),
        source_sha256=texts.sources[kind],
        wall_time_s=time.monotonic() - started,
        digest=digest,
        rows=len(rows),
        samples=texts.held[kind] if kind.startswith("gen.") else None,
        truncated=int(places.cut[which].sum()),
        **_identity(config, sha256),
    )
    for path in [*folder.glob(f"{kind}-*.npy"), *folder.glob(f"{kind}-*.ids"), *folder.glob(".*.partial")]:
        if path not in (matrix_path, table_path):
            path.unlink(missing_ok=True)


def _write_matrix(path: Path, which: np.ndarray, places: _Places) -> None:
    """The vectors of the distinct texts ``which`` (rows,), piece by piece: a file that is written through a memory map
    would stay in memory."""
    dimension = places.dimension()
    step = max(1, _PIECE_BYTES // max(1, 2 * dimension))
    with atomic_write(path, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(which), dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for at in range(0, len(which), step):
            file.write(places.gather(which[at : at + step]).astype("<f2", copy=False).data)


def _read_matrix(folder: Path, kind: str, manifest: dict) -> _Matrix | None:
    """The matrix that a manifest names; None where it or its table is missing or cut short."""
    path = folder / f"{kind}-{manifest['digest']}.npy"
    try:
        vectors = np.load(path, mmap_mode="r")
        with open(path.with_suffix(".ids"), "rb") as file:
            matrix = _Matrix(vectors, manifest, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        rows = sum(map(len, matrix.batches()))
    except (ValueError, OSError):  # cut short by a copy
        return None
    return matrix if rows == len(vectors) == manifest["rows"] else None


def _committed(folder: Path, config: EmbedConfig, sha256: str) -> dict[str, _Matrix]:
    """The matrices in ``folder`` that this encoder made with these settings."""
    found = {}
    for path in sorted(folder.glob("*.manifest.json")):
        kind = path.name.removesuffix(".manifest.json")
        manifest = read_manifest(folder / kind)
        if any(manifest.get(key) != value for key, value in _identity(config, sha256).items()):
            continue
        if (matrix := _read_matrix(folder, kind, manifest)) is not None:
            found[kind] = matrix
    return found


# --------------------------------------------------------------------------------------------------------- reading


def _fresh(files: DatasetFiles, config: EmbedConfig, kind: str) -> _Matrix:
    """The committed matrix of ``kind``, if this encoder made it."""
    _source(files, kind)  # an unknown kind is an error
    if kind.startswith("gen."):
        _check_generated(files, kind)
    folder = _folder(files, config)
    manifest = read_manifest(folder / kind)
    if manifest is None:
        raise StaleVectors(
            f"{manifest_path(folder / kind)}: no {kind} vectors of encoder {config.encoder!r}. "
            f"Run `{_embed_command(files, config)}`."
        )
    sha256 = encoder_hash(encoder_folder(config.encoder))
    if any(manifest.get(key) != value for key, value in _identity(config, sha256).items()):
        raise StaleVectors(
            f"{folder / kind}: vectors of another encoder or other settings: SHA-256 was "
            f"{str(manifest.get('encoder_sha256'))[:12]}, {config.encoder!r} now has {sha256[:12]}. "
            f"Run `{_embed_command(files, config)}`."
        )
    matrix = _read_matrix(folder, kind, manifest)
    if matrix is None:
        raise StaleVectors(
            f"{folder / kind}: the matrix or its ids are missing or cut short. Run `{_embed_command(files, config)}`."
        )
    return matrix


def _check_texts(files, config, kind, ids, matrix: _Matrix, rows: np.ndarray) -> None:
    """Raise unless the vectors at ``rows`` (len(ids), n) are those of the texts that the ids have now."""
    source = _source(files, kind)
    if matrix.manifest["source_sha256"] == file_hash(source):
        return
    wanted, first, which = np.unique(as_keys(map(key_of, ids)), return_index=True, return_inverse=True)
    expected = matrix.keys()[rows[first]]
    same = np.zeros(len(wanted), bool)
    for _, place, texts in _stream(files, kind, wanted, rows.shape[1]):
        same[place] = b"".join(map(key_of, texts)) == expected[place].tobytes()
    changed = [ids[i] for i in np.flatnonzero(~same[which])]
    if changed:
        raise StaleVectors(
            f"{_folder(files, config) / kind}: {len(changed)} of {len(ids)} texts in {source.name} are not the ones "
            f"that were embedded (first: {some_of(changed)}). Run `{_embed_command(files, config)}`."
        )


def _explain_missing(files, config, kind, missing: Sequence[str], of: int, n_samples: int) -> None:
    """Raise what the ids without a vector lack: a text, or only the vector."""
    if kind.startswith("gen."):
        _check_generated(files, kind)
    wanted, which = np.unique(as_keys(map(key_of, missing)), return_inverse=True)
    held = np.zeros(len(wanted), np.int64)
    empty = []
    for key, place, texts in _stream(files, kind, wanted, n_samples):
        held[place] = len(texts)
        if any(map(_blank, texts)):
            empty.append(key)
    _refuse_empty(files, kind, empty, int((held > 0).sum()))
    short = [missing[i] for i in np.flatnonzero(held[which] < n_samples)]
    if short and kind.startswith("gen."):
        lacking = "no generated JD" if n_samples == 1 else f"fewer than {n_samples} generated JDs"
        raise DataError(
            f"{_source(files, kind).name}: {len(short)} of {of} users have {lacking} (first: {some_of(short)}); "
            f"{n_samples} each {'is' if n_samples == 1 else 'are'} required. "
            f"Run `{_generate_command(files, kind, n_samples)}`."
        )
    if short:
        raise DataError(_no_text(files, kind, short, len(short), of))
    command = _embed_command(files, replace(config, n_generated=n_samples))
    raise StaleVectors(
        f"{_folder(files, config) / kind}: {len(missing)} of {of} ids have a text and no vector "
        f"(first: {some_of(missing)}). Run `{command}` (with --embed_all=true if they are not in {files.inter.name})."
    )


def _gather_mean(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over n of ``vectors[rows[:, n]]``: (len(rows), D) float32, without an (ids, n, D) array."""
    mean = np.zeros((len(rows), vectors.shape[1]), np.float32)
    step = max(1, _PIECE_BYTES // max(1, 2 * vectors.shape[1]))
    for at in range(0, len(rows), step):
        for column in rows[at : at + step].T:
            mean[at : at + step] += _take(vectors, column)
    mean /= np.float32(rows.shape[1])
    return mean


def _embed_command(files: DatasetFiles, config: EmbedConfig) -> str:
    settings = "" if config.encoder == "minilm" else f" --encoder={config.encoder}"
    if config.max_text_tokens is not None:
        settings += f" --max_text_tokens={config.max_text_tokens}"
    if config.text_windows != 1:
        settings += f" --text_windows={config.text_windows}"
    if config.encoder_precision != "float32":
        settings += f" --encoder_precision={config.encoder_precision}"
    if config.n_generated != 1:
        settings += f" --n_generated={config.n_generated}"
    return f"girl embed {files.name}{settings}"


def _generate_command(files: DatasetFiles, kind: str, n_samples: int = 1) -> str:
    """The command that writes the ``.gdoc`` of ``kind``, as its manifest tells it, or, without one, its name."""
    name = kind.removeprefix("gen.")
    made = (read_manifest(files.gdoc(name)) or {}).get("config", {})
    of = re.fullmatch(r"(.+)-best-of-(\d+)", name)
    generator = made.get("generator") or (of[1] if of else name)
    best_of = made.get("gen_best_of") or (int(of[2]) if of and not made else 1)
    said = f"girl generate {files.name} --generator={generator}"
    for key, usual in (("gen_as", None), ("gen_model", None), ("gen_engine", "local")):
        value = made.get(key) or usual
        said += f" --{key}={value}" if value != usual else ""
    said += f" --gen_best_of={best_of}" if best_of != 1 else ""
    return said + (f" --n={n_samples}" if n_samples != 1 else "")
