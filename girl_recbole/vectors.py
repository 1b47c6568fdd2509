"""Vectors on disk: a matrix a kind, and a table that says whose text each row is of; finding and reading them.

Files      vectors/<encoder>/KIND-<digest>.npy    (rows, D) float16, to be memory-mapped; compute is float32
           vectors/<encoder>/KIND-<digest>.ids    user_id or item_id, [sample], text_hash, truncated: row by row
           vectors/<encoder>/KIND.manifest.json   names the digest, the encoder's hash, its settings, the text file's
                                                  hash and the counts

embed.py writes them; replacing the manifest is its commit, so a reader sees the old files or the new ones, whole.

Reading (:func:`load_vectors`) checks the encoder and the texts: where the text file is byte for byte the one that was
embedded that is one hash of a file, else the texts asked for are hashed. Nothing missing becomes a zero row. Memory is
that of the vectors asked for and a few dozen bytes for each.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from girl_recbole.atomic import DatasetFiles
from girl_recbole.encoder import encoder_folder, encoder_hash, encoder_slug
from girl_recbole.errors import DataError, some_of
from girl_recbole.manifest import file_hash, manifest_path, read_manifest
from girl_recbole.shards import KEY_BYTES, as_keys, key_of
from girl_recbole.texts import (
    check_generated,
    find_keys,
    generate_command,
    is_blank,
    no_text,
    refuse_empty,
    stream_texts,
    text_file,
)

__all__ = [
    "EmbedConfig",
    "Matrix",
    "StaleVectors",
    "check_texts",
    "committed",
    "embed_command",
    "explain_missing",
    "identity",
    "load_vectors",
    "open_vectors",
    "piece_rows",
    "take",
    "vectors_folder",
]

_PIECE_BYTES = 1 << 23  # of vectors that are copied at a time
# what decides a vector beside text and encoder: key, usual value, what another one adds to the folder's name
_SETTINGS = (("max_text_tokens", None, "-t{}"), ("text_windows", 1, "-w{}"), ("encoder_precision", "float32", "-{}"))


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


def load_vectors(
    files: DatasetFiles, config: EmbedConfig, kind: str, ids: Sequence[str], n_samples: int = 1
) -> np.ndarray:
    """The vectors of ``ids``, in their order: (len(ids), D) float32. Generated JDs: the mean of the first n_samples.

    Raises :class:`StaleVectors` for vectors that are missing, of another encoder or of other texts, and ``DataError``
    for an id that has no text or too few generated JDs.
    """
    matrix = open_vectors(files, config, kind)
    rows = matrix.find(ids, n_samples)
    missing = [ids[i] for i in np.flatnonzero((rows < 0).any(axis=1))]
    if missing:
        explain_missing(files, config, kind, missing, len(ids), n_samples)
    check_texts(files, config, kind, ids, matrix, rows)
    return _gather_mean(matrix.vectors, rows)


# ------------------------------------------------------------------------------------------------------------- settings


def vectors_folder(files: DatasetFiles, config: EmbedConfig) -> Path:
    """Where the vectors of these settings lie."""
    marks = (mark.format(getattr(config, key)) for key, usual, mark in _SETTINGS if getattr(config, key) != usual)
    return files.vectors(encoder_slug(config.encoder) + "".join(marks))


def identity(config: EmbedConfig, sha256: str) -> dict:
    """What a manifest says of how vectors were made, and what they are refused by; ``sha256``: of the encoder."""
    return {"encoder_sha256": sha256, **{key: getattr(config, key) for key, _, _ in _SETTINGS}}


def embed_command(files: DatasetFiles, config: EmbedConfig) -> str:
    """`girl embed` with these settings."""
    usual = {"encoder": "minilm", **{key: value for key, value, _ in _SETTINGS}, "n_generated": 1}
    given = ((key, getattr(config, key)) for key, value in usual.items() if getattr(config, key) != value)
    return " ".join([f"girl embed {files.name}", *(f"--{key}={value}" for key, value in given)])


# -------------------------------------------------------------------------------------------------------- files on disk


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a matrix's table."""

    ids: list[str]
    samples: np.ndarray  # (rows,) int64, zeros where there is one text an id
    keys: np.ndarray  # (rows,) of the texts
    cut: np.ndarray  # (rows,) bool


@dataclass(frozen=True)
class Matrix:
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

    def blocks(self) -> Iterator[Block]:
        """The table, streaming."""
        for batch in self.batches():
            ids, columns = batch.column(0).to_pylist(), dict(zip(batch.schema.names, batch.columns, strict=True))
            samples = columns["sample"].to_numpy().astype(np.int64) if "sample" in columns else np.zeros(len(ids), int)
            keys = pc.utf8_slice_codeunits(columns["text_hash"], 0, 2 * KEY_BYTES).to_pylist()
            yield Block(ids, samples, as_keys(bytes.fromhex("".join(keys))), columns["truncated"].to_numpy() > 0)

    def keys(self) -> np.ndarray:
        """(rows,) keys of the texts."""
        return as_keys(block.keys.tobytes() for block in self.blocks())

    def find(self, ids: Sequence[str], n_samples: int) -> np.ndarray:
        """(len(ids), n_samples) int64: the rows of the first samples of each of ``ids``, -1 where there is none."""
        asked, which = np.unique(as_keys(map(key_of, ids)), return_inverse=True)
        rows, start = np.full((len(asked), n_samples), -1), 0
        for block in self.blocks():
            place = find_keys(asked, as_keys(map(key_of, block.ids)))
            hits = np.flatnonzero((place >= 0) & (block.samples < n_samples))
            rows[place[hits], block.samples[hits]] = start + hits
            start += len(block.ids)
        return rows[which]


def _read_matrix(folder: Path, kind: str, manifest: dict) -> Matrix | None:
    """The matrix that a manifest names; None where it or its table is missing or cut short."""
    path = folder / f"{kind}-{manifest['digest']}.npy"
    try:
        vectors = np.load(path, mmap_mode="r")
        with open(path.with_suffix(".ids"), "rb") as file:
            matrix = Matrix(vectors, manifest, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        rows = sum(map(len, matrix.batches()))
    except (ValueError, OSError):  # cut short by a copy
        return None
    return matrix if rows == len(vectors) == manifest["rows"] else None


def committed(folder: Path, config: EmbedConfig, sha256: str) -> dict[str, Matrix]:
    """The matrices in ``folder`` that this encoder made with these settings."""
    found = {}
    for path in sorted(folder.glob("*.manifest.json")):
        kind = path.name.removesuffix(".manifest.json")
        manifest = read_manifest(folder / kind)
        if any(manifest.get(key) != value for key, value in identity(config, sha256).items()):
            continue
        if (matrix := _read_matrix(folder, kind, manifest)) is not None:
            found[kind] = matrix
    return found


# -------------------------------------------------------------------------------------------------------------- reading


def open_vectors(files: DatasetFiles, config: EmbedConfig, kind: str) -> Matrix:
    """The committed matrix of ``kind``, if this encoder made it."""
    text_file(files, kind)  # an unknown kind is an error
    if kind.startswith("gen."):
        check_generated(files, kind)
    folder = vectors_folder(files, config)
    manifest = read_manifest(folder / kind)
    if manifest is None:
        raise StaleVectors(
            f"{manifest_path(folder / kind)}: no {kind} vectors of encoder {config.encoder!r}. "
            f"Run `{embed_command(files, config)}`."
        )
    sha256 = encoder_hash(encoder_folder(config.encoder))
    if any(manifest.get(key) != value for key, value in identity(config, sha256).items()):
        raise StaleVectors(
            f"{folder / kind}: vectors of another encoder or other settings: SHA-256 was "
            f"{str(manifest.get('encoder_sha256'))[:12]}, {config.encoder!r} now has {sha256[:12]}. "
            f"Run `{embed_command(files, config)}`."
        )
    matrix = _read_matrix(folder, kind, manifest)
    if matrix is None:
        raise StaleVectors(
            f"{folder / kind}: the matrix or its ids are missing or cut short. Run `{embed_command(files, config)}`."
        )
    return matrix


def check_texts(files, config, kind, ids, matrix: Matrix, rows: np.ndarray) -> None:
    """Raise unless the vectors at ``rows`` (len(ids), n) are those of the texts that the ids have now."""
    source = text_file(files, kind)
    if matrix.manifest["source_sha256"] == file_hash(source):
        return
    wanted, first, which = np.unique(as_keys(map(key_of, ids)), return_index=True, return_inverse=True)
    expected = matrix.keys()[rows[first]]
    same = np.zeros(len(wanted), bool)
    for _, place, texts in stream_texts(files, kind, wanted, rows.shape[1]):
        same[place] = b"".join(map(key_of, texts)) == expected[place].tobytes()
    changed = [ids[i] for i in np.flatnonzero(~same[which])]
    if changed:
        raise StaleVectors(
            f"{vectors_folder(files, config) / kind}: {len(changed)} of {len(ids)} texts in {source.name} are not the "
            f"ones that were embedded (first: {some_of(changed)}). Run `{embed_command(files, config)}`."
        )


def explain_missing(files, config, kind, missing: Sequence[str], of: int, n_samples: int) -> None:
    """Raise what the ids without a vector lack: a text, or only the vector."""
    if kind.startswith("gen."):
        check_generated(files, kind)
    wanted, which = np.unique(as_keys(map(key_of, missing)), return_inverse=True)
    held = np.zeros(len(wanted), np.int64)
    empty = []
    for key, place, texts in stream_texts(files, kind, wanted, n_samples):
        held[place] = len(texts)
        if any(map(is_blank, texts)):
            empty.append(key)
    refuse_empty(files, kind, empty, int((held > 0).sum()))
    short = [missing[i] for i in np.flatnonzero(held[which] < n_samples)]
    if short and kind.startswith("gen."):
        lacking = "no generated JD" if n_samples == 1 else f"fewer than {n_samples} generated JDs"
        raise DataError(
            f"{text_file(files, kind).name}: {len(short)} of {of} users have {lacking} (first: {some_of(short)}); "
            f"{n_samples} each {'is' if n_samples == 1 else 'are'} required. "
            f"Run `{generate_command(files, kind, n_samples)}`."
        )
    if short:
        raise DataError(no_text(files, kind, short, len(short), of))
    command = embed_command(files, replace(config, n_generated=n_samples))
    raise StaleVectors(
        f"{vectors_folder(files, config) / kind}: {len(missing)} of {of} ids have a text and no vector "
        f"(first: {some_of(missing)}). Run `{command}` (with --embed_all=true if they are not in {files.inter.name})."
    )


def piece_rows(dimension: int) -> int:
    """How many vectors are copied at a time."""
    return max(1, _PIECE_BYTES // max(1, 2 * dimension))


def take(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a mapped matrix, copied; of what was read of it nothing stays in memory."""
    taken = np.asarray(vectors[rows])
    vectors.base.madvise(mmap.MADV_DONTNEED)
    return taken


def _gather_mean(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over n of ``vectors[rows[:, n]]``: (len(rows), D) float32, without an (ids, n, D) array."""
    mean = np.zeros((len(rows), vectors.shape[1]), np.float32)
    step = piece_rows(vectors.shape[1])
    for at in range(0, len(rows), step):
        for column in rows[at : at + step].T:
            mean[at : at + step] += take(vectors, column)
    mean /= np.float32(rows.shape[1])
    return mean
