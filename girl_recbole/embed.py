"""Texts to vectors (Eqs 9 and 12), once: a matrix a kind, on disk, that says which texts and which encoder made it.

Kinds      ``cv``                 the CVs of the seekers of NAME.inter (of all of NAME.udoc with ``embed_all``)
           ``jd``                 the JDs of the jobs of NAME.inter (of all of NAME.idoc with ``embed_all``)
           ``gen.<generator>``    the JDs in NAME.<generator>.gdoc, one row a sample: of each seeker the samples 0 to
                                  n_generated - 1, and those that the files hold already

Files      those of vectors.py, where they are read. Replacing the manifest is the commit: a reader sees the old files
           or the new ones, whole. A text is known by its key, 128 bits of its SHA-256, and is encoded once, whichever
           kinds and rows hold it; rows of unchanged texts are copied from the files before. Builders of one folder wait
           for each other (a lock file).

Memory     does not hold the texts: they are read three times, as a stream. The first reading keeps a key and a length
           of each row; the second encodes what has no vector yet, a block of ``_BLOCK_TEXTS`` texts at a time; the
           third writes the rows. So a text costs a few dozen bytes, whatever its length and the width of its vector
           (docs/embedding.md). Matrices are written and read piece by piece.
Batches    The texts of a block are sorted by length, so that batches hold texts of like length, and cut into chunks.
           Chunks of finished work are kept under vectors/<encoder>/progress/, so that a killed run goes on where it
           stopped; blocks, chunks and batches depend on the texts and their order alone, so it ends with the bytes of
           a run that was not disturbed. A chunk that cannot be read is reported, removed and encoded again.
Changes    A text file is hashed before it is read. One that is written to meanwhile is read again: each later reading
           is compared with the first, text by text.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from girl_recbole.atomic import DatasetFiles, atomic_write, iter_ids
from girl_recbole.encoder import Encoder, encoder_folder, encoder_hash
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.manifest import TextDigest, file_hash, text_hash, write_manifest
from girl_recbole.shards import as_keys, key_of
from girl_recbole.texts import (
    check_generated,
    distinct,
    find_keys,
    first_of,
    generated_kinds,
    id_column,
    is_blank,
    no_text,
    read_texts,
    refuse_empty,
    sorted_keys,
    stream_texts,
    text_file,
)
from girl_recbole.vectors import (
    EmbedConfig,
    Matrix,
    StaleVectors,
    committed,
    embed_command,
    identity,
    load_vectors,
    piece_rows,
    take,
    vectors_folder,
)

__all__ = ["EmbedConfig", "StaleVectors", "embed", "load_vectors", "read_texts"]

_log = logging.getLogger(__name__)
_BLOCK_TEXTS = 16_384  # texts that are held, and sorted by length, at a time, at most
_BLOCK_CHARACTERS = 16_000_000  # and characters
_CHUNK_TEXTS = 2048  # texts between two commits of work in progress, at most
_CHUNK_CHARACTERS = 4_000_000  # and characters, so that the tokens of long documents fit in memory
_IDS = 1 << 20  # ids between two reductions to distinct ones
_ATTEMPTS = 3  # readings of text files that change while they are read or encoded


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
    kinds = list(dict.fromkeys(kinds)) if kinds is not None else ["cv", "jd", *generated_kinds(files)]
    encoder_sha256 = encoder_hash(encoder_folder(config.encoder))
    folder = vectors_folder(files, config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        old = committed(folder, config, encoder_sha256)
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
                changed = text_file(files, str(change))
                _log.warning("%s changed while it was embedded; it is read again.", changed.name)
        else:
            raise DataError(
                f"{changed}: changed {_ATTEMPTS} times while it was embedded. Wait until it is written, then run "
                f"`{embed_command(files, config)}`."
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


# -------------------------------------------------------------------------------------------------------- what to embed


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
        self.keys = distinct(np.array(each))
        self.which = np.empty(len(each), np.int32)
        for at in range(0, len(each), _IDS):
            self.which[at : at + _IDS] = np.searchsorted(self.keys, each[at : at + _IDS])
        self.first = np.empty(len(self.keys), np.int32)
        self.first[self.which[::-1]] = np.arange(len(each) - 1, -1, -1, dtype=np.int32)  # the last that is set stays
        self.length = np.frombuffer(lengths, np.int32)[self.first]

    def _read(self, kind: str, keys: bytearray, lengths: array) -> None:
        """Append the keys and lengths of a kind's texts."""
        files, source = self._files, text_file(self._files, kind)
        self.sources[kind] = file_hash(source) if source.exists() else ""
        if kind.startswith("gen."):
            check_generated(files, kind)
        needed = None if self._config.embed_all else sorted_keys(iter_ids(files.inter, id_column(kind)))
        self._wanted[kind] = needed
        seen = np.zeros(0 if needed is None else len(needed), bool)
        digest, count, held, empty, bad = self._digest(), 0, 0, [], []
        for key, place, texts in stream_texts(files, kind, needed, self.samples[kind]):
            count, held = count + 1, max(held, len(texts))
            if len(key.split()) != 1 or "\0" in key:
                bad.append(repr(key))
            for sample, text in enumerate(texts):
                _add_row(digest, key, sample, of := key_of(text))
                keys += of
                lengths.append(len(text))
            if any(map(is_blank, texts)):
                empty.append(key)
            if needed is not None:
                seen[place] = True
        refuse_empty(files, kind, empty, count)
        if bad:
            raise DataError(
                f"{source}: {len(bad)} of {count} ids are empty or hold white space or NUL (first: {some_of(bad)})."
            )
        if not seen.all():
            lost = needed[~seen]
            missing = first_of(iter_ids(files.inter, id_column(kind)), lost)
            if not kind.startswith("gen."):
                raise DataError(no_text(files, kind, missing, len(lost), len(needed)))
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
        stream = stream_texts(self._files, kind, self._wanted[kind], self.samples[kind], again=True)
        return chain.from_iterable(texts for _, _, texts in stream)

    def table(self, kind: str) -> Iterator[tuple[str, int, int, bytes]]:
        """(id, sample, number of the text, its key) row by row; ``_Changed`` if the file is not what it was."""
        digest, row = self._digest(), self.rows[kind].start
        for key, _, texts in stream_texts(self._files, kind, self._wanted[kind], self.samples[kind], again=True):
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
            path = text_file(self._files, kind)
            if not path.exists() or file_hash(path) != sha256:
                raise _Changed(kind)

    def _digest(self) -> TextDigest:
        digest = TextDigest()
        digest.add(self._encoder_sha256)
        return digest


def _add_row(digest: TextDigest, key: str, sample: int, of: bytes) -> None:
    digest.add(key)
    digest.add(f"{sample} {of.hex()}")


# -------------------------------------------------------------------------------------------------------- encoding


class _Places:
    """Where the vector of each distinct text is: ``source`` (U,) a number, -1 where there is none yet; ``row`` (U,) in
    that source; ``cut`` (U,) whether the text was longer than its windows."""

    def __init__(self, keys: np.ndarray, matrices: Iterable[Matrix]):
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
        at = find_keys(self._keys, keys)
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
    """Rows of a mapped matrix or of a chunk, copied."""
    if not isinstance(source, Path):
        return take(source, rows)
    with np.load(source) as chunk:
        return chunk["vectors"][rows]


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
    for kind, matrix in committed(folder, config, sha256).items():
        source = text_file(files, kind)
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


# -------------------------------------------------------------------------------------------------------- files on disk


def _commit(
    folder: Path, config: EmbedConfig, sha256: str, kind: str, texts: _Texts, places: _Places, old: Matrix | None,
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
            file.write(f"{id_column(kind)}:token\t{middle}text_hash:token\ttruncated:float\n")
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
        **identity(config, sha256),
    )
    for path in [*folder.glob(f"{kind}-*.npy"), *folder.glob(f"{kind}-*.ids"), *folder.glob(".*.partial")]:
        if path not in (matrix_path, table_path):
            path.unlink(missing_ok=True)


def _write_matrix(path: Path, which: np.ndarray, places: _Places) -> None:
    """The vectors of the distinct texts ``which`` (rows,), piece by piece: a file that is written through a memory map
    would stay in memory."""
    dimension = places.dimension()
    step = piece_rows(dimension)
    with atomic_write(path, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(which), dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for at in range(0, len(which), step):
            file.write(places.gather(which[at : at + step]).astype("<f2", copy=False).data)
