"""Texts to vectors (Eqs 9 and 12), once: a matrix a kind, on disk, that says which texts and which encoder made it.

Kinds      ``cv``                 the CVs of the seekers of NAME.inter (of all of NAME.udoc with ``embed_all``)
           ``jd``                 the JDs of the jobs of NAME.inter (of all of NAME.idoc with ``embed_all``)
           ``gen.<generator>``    the JDs in NAME.<generator>.gdoc, one row a sample: of each seeker the samples 0 to
                                  n_generated - 1, and those that the files hold already

Files      vectors/<encoder>/KIND-<digest>.npy    (rows, D) float16, to be memory-mapped; compute is float32
           vectors/<encoder>/KIND-<digest>.ids    user_id or item_id, [sample], text_hash, truncated: row by row
           vectors/<encoder>/KIND.manifest.json   names the digest, the encoder's hash, its settings, the text file's
                                                  hash and the counts

Replacing the manifest is the commit: a reader sees the old files or the new ones, whole. A text is known by its SHA-256
and is encoded once, whichever kinds and rows hold it; rows of unchanged texts are copied from the files before.
Work in progress is kept in chunks under vectors/<encoder>/progress/, so that a killed run goes on where it stopped; the
chunks, and the batches in them, depend on the texts alone, so it ends with the bytes of a run that was not disturbed.
Builders of one folder wait for each other (a lock file). A text file is hashed before it is read; one that is written
to meanwhile is read again.

Reading (:func:`load_vectors`) checks the encoder and the texts: where the text file is byte for byte the one that was
embedded that is one hash of a file, else the texts asked for are hashed. Nothing missing becomes a zero row. Generated
JDs are read only if ``girl generate`` wrote them from the CVs that their seekers have now (their manifest says so).
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from girl_recbole.atomic import (
    DatasetFiles,
    atomic_write,
    iter_docs,
    read_generated,
    read_interactions,
    read_table,
    write_table,
)
from girl_recbole.encoder import Encoder, encoder_folder, encoder_hash, encoder_slug
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.manifest import file_hash, manifest_path, read_manifest, text_hash, write_manifest

__all__ = ["EmbedConfig", "StaleVectors", "embed", "load_vectors", "read_texts"]

_log = logging.getLogger(__name__)
_CHUNK_TEXTS = 512  # texts between two commits of work in progress, at most
_CHUNK_CHARACTERS = 4_000_000  # and characters, so that the tokens of long documents fit in memory
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


@dataclass(frozen=True)
class _Rows:
    """The texts of one kind, row by row."""

    ids: list[str]
    samples: list[int] | None
    texts: list[str]
    hashes: list[str]
    source_sha256: str  # of the file that they were read from


@dataclass(frozen=True)
class _Matrix:
    """A committed matrix and its table of rows."""

    vectors: np.ndarray
    table: pd.DataFrame
    manifest: dict


def embed(files: DatasetFiles, config: EmbedConfig, kinds: Iterable[str] | None = None) -> dict:
    """Make the vectors of ``kinds`` (default: cv, jd, and gen.* for each NAME.*.gdoc), or only what has changed.

    Returns ``{"rows": {kind: n}, "encoded": n, "reused": n, "truncated": n, ...}``: encoded and reused count distinct
    texts, truncated counts distinct texts that were longer than their windows.
    """
    started = time.monotonic()
    if config.n_generated < 1:
        raise ConfigError(f"n_generated: {config.n_generated} generated JDs a seeker; at least 1 is required.")
    kinds = list(kinds) if kinds is not None else ["cv", "jd", *_generated_kinds(files)]
    encoder_sha256 = encoder_hash(encoder_folder(config.encoder))
    folder = _folder(files, config)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        old = _committed(folder, config, encoder_sha256)
        committed = _index((matrix.vectors, matrix.table) for matrix in old.values())
        for _ in range(_ATTEMPTS):
            rows = {kind: _rows(files, kind, config, old.get(kind)) for kind in kinds}
            present = {key: text for row in rows.values() for key, text in zip(row.hashes, row.texts, strict=True)}
            known, fresh = _encode_missing(folder, config, encoder_sha256, present, committed, kinds)
            changed = [kind for kind, row in rows.items() if row.source_sha256 != file_hash(_source(files, kind))]
            if not changed:
                break
            _log.warning("%s changed while it was embedded; it is read again.", _source(files, changed[0]).name)
        else:
            raise DataError(
                f"{_source(files, changed[0])}: changed {_ATTEMPTS} times while it was embedded. Wait until it is "
                f"written, then run `{_embed_command(files, config)}`."
            )
        for kind, row in rows.items():
            _commit(folder, config, encoder_sha256, kind, row, known, old.get(kind), started)
        _drop_progress(files, folder, config, encoder_sha256, kinds)
    truncated = sum(bool(known[key][2]) for key in present)
    if truncated:
        _log.warning(
            "%s: %d of %d texts are longer than %d window(s) of the encoder and were cut; text_windows: N keeps more.",
            files.name, truncated, len(present), config.text_windows,
        )  # fmt: skip
    return {
        "dataset": files.name,
        "encoder": config.encoder,
        "folder": str(folder),
        "rows": {kind: len(row.ids) for kind, row in rows.items()},
        "texts": len(present),
        "encoded": fresh,
        "reused": len(present) - fresh,
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
    key = "user_id" if kind != "jd" else "item_id"
    table = matrix.table
    if "sample" not in table:
        row = pd.Series(np.arange(len(table)), index=table[key]).reindex(ids)
        rows = row.to_numpy()[:, None]
    else:
        wanted = pd.MultiIndex.from_product([list(ids), range(n_samples)])
        index = pd.MultiIndex.from_arrays([table[key], table["sample"].astype(int)])
        rows = pd.Series(np.arange(len(table)), index=index).reindex(wanted).to_numpy().reshape(len(ids), n_samples)
    missing = [ids[i] for i in np.flatnonzero(np.isnan(rows.astype(np.float64)).any(axis=1))]
    if missing:
        _explain_missing(files, config, kind, missing, len(ids), n_samples)
    rows = rows.astype(np.int64)
    _check_texts(files, config, kind, ids, matrix, rows)
    return _gather_mean(matrix.vectors, rows)


def read_texts(
    files: DatasetFiles, kind: str, ids: Iterable[str] | None = None, n_samples: int | None = None
) -> dict[str, list[str]]:
    """``{id: texts}`` of a kind, one text an id but for generated JDs (the first n_samples); of ``ids`` only, if given.

    An id without a text is left out. Raises ``DataError`` naming the ids whose text is empty or white space.
    """
    path = _source(files, kind)
    wanted = None if ids is None else set(ids)
    if kind.startswith("gen."):
        _check_generated(files, kind)
        generated = read_generated(path)
        texts = {user: t[:n_samples] for user, t in generated.items() if wanted is None or user in wanted}
    else:
        texts = {key: [text] for key, text in iter_docs(path) if wanted is None or key in wanted}
    empty = [key for key, several in texts.items() if not all(text.strip() for text in several)]
    if empty:
        what = {"cv": "CV", "jd": "JD"}.get(kind, "generated JD")
        raise DataError(
            f"{path}: {len(empty)} of {len(texts)} ids have an empty {what} (first: {some_of(empty)}); a text is "
            f"required for each. Write the texts, or leave these ids out of {files.inter.name}."
        )
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
    users = list(read_generated(path))  # the CVs of seekers without generated JDs may change
    wanted = set(users)
    cvs = {user: cv for user, cv in iter_docs(files.udoc) if user in wanted}
    gone = [user for user in users if user not in cvs]
    if gone or manifest.get("source") != text_hash(*(part for user in users for part in (user, cvs[user]))):
        what = f"{len(gone)} seekers have no CV any more (first: {some_of(gone)})" if gone else "other CVs"
        raise DataError(
            f"{path}: stale: {files.udoc.name} has changed since these JDs were generated: {what}. Run `{rebuild}`."
        )


@functools.cache
def _warn_of_unknown_origin(path: Path) -> None:
    _log.warning("%s: no manifest beside it, so nothing says which CVs these JDs were generated from.", path.name)


def _generated_kinds(files: DatasetFiles) -> list[str]:
    found = sorted(files.folder.glob(f"{files.name}.*.gdoc"))
    return ["gen." + path.name.removeprefix(f"{files.name}.").removesuffix(".gdoc") for path in found]


def _rows(files: DatasetFiles, kind: str, config: EmbedConfig, old: _Matrix | None) -> _Rows:
    """The texts of a kind in file order. An id of NAME.inter without a CV or a JD is an error."""
    source = _source(files, kind)
    source_sha256 = file_hash(source) if source.exists() else ""
    column = "item_id" if kind == "jd" else "user_id"
    needed = None if config.embed_all else pd.unique(read_interactions(files.inter)[column])
    held = (old.manifest["samples"] or 0) if old else 0
    texts = read_texts(files, kind, needed, max(config.n_generated, held))
    if needed is not None and len(texts) < len(needed):
        missing = [key for key in needed if key not in texts]
        if not kind.startswith("gen."):
            raise DataError(_no_text(files, kind, missing, len(needed)))
        _log.warning("%s: %d of %d seekers have no generated JD.", source, len(missing), len(needed))
    ids = [key for key, several in texts.items() for _ in several]
    samples = [n for several in texts.values() for n in range(len(several))] if kind.startswith("gen.") else None
    flat = [text for several in texts.values() for text in several]
    return _Rows(ids, samples, flat, [text_hash(text) for text in flat], source_sha256)


def _no_text(files: DatasetFiles, kind: str, missing: Sequence[str], of: int) -> str:
    people, text = ("jobs", "JD") if kind == "jd" else ("seekers", "CV")
    return (
        f"{_source(files, kind)}: {len(missing)} of {of} {people} have no {text} (first: {some_of(missing)}); "
        f"one each is required. Add them to {_source(files, kind).name}, or take these ids out of {files.inter.name}."
    )


# -------------------------------------------------------------------------------------------------------- encoding


def _index(sources: Iterable[tuple[np.ndarray, pd.DataFrame]]) -> dict[str, tuple[np.ndarray, int, bool]]:
    """text hash -> (matrix, row, was the text cut)."""
    known: dict[str, tuple[np.ndarray, int, bool]] = {}
    for vectors, table in sources:
        cut = table["truncated"].to_numpy() > 0
        for row, (key, truncated) in enumerate(zip(table["text_hash"], cut, strict=True)):
            known.setdefault(key, (vectors, row, truncated))
    return known


def _encode_missing(folder: Path, config: EmbedConfig, sha256: str, present: dict[str, str], known: dict, kinds):
    """Encode the texts in ``present`` that ``known`` lacks. Returns known plus them, and how many they were."""
    progress = _progress(folder, config, sha256)
    plan = _plan({key: text for key, text in present.items() if key not in known})
    fresh = sum(map(len, plan))
    done = {path.stem: path for path in sorted(progress.glob("*.npz"))}
    names = [text_hash(*chunk)[:32] for chunk in plan]
    if not done.keys() <= set(names):  # chunks of another plan: texts changed meanwhile, or the commit was cut short
        known = known | _index(_read_chunk(path) for path in done.values())
        plan = _plan({key: text for key, text in present.items() if key not in known})
        names, done = [text_hash(*chunk)[:32] for chunk in plan], {}
    if set(names) - set(done):
        encoder = Encoder(
            config.encoder,
            max_tokens=config.max_text_tokens,
            windows=config.text_windows,
            precision=config.encoder_precision,
        )
        total = sum(map(len, plan))
        with tqdm(total=total, desc=f"embed ({config.encoder})", unit="text", leave=False) as bar:
            for name, chunk in zip(names, plan, strict=True):
                if name in done:
                    bar.update(len(chunk))
                    continue
                vectors, truncated = encoder.encode(
                    [present[key] for key in chunk], batch_tokens=config.encoder_batch_tokens, done=bar.update
                )
                with atomic_write(progress / f"{name}.npz", "wb") as file:
                    np.savez(
                        file,
                        keys=np.array(chunk),
                        vectors=vectors.astype(np.float16),
                        truncated=truncated,
                        kinds=np.array(kinds),
                    )
    return known | _index(_read_chunk(progress / f"{name}.npz") for name in names), fresh


def _plan(texts: dict[str, str]) -> list[list[str]]:
    """Chunks of text hashes, longest texts first: texts of one length share batches. A function of the texts alone."""
    chunks, characters = [], 0
    for key in sorted(texts, key=lambda key: (-len(texts[key]), key)):
        characters += len(texts[key])
        if not chunks or len(chunks[-1]) == _CHUNK_TEXTS or characters > _CHUNK_CHARACTERS:
            chunks.append([])
            characters = len(texts[key])
        chunks[-1].append(key)
    return chunks


def _read_chunk(path: Path) -> tuple[np.ndarray, pd.DataFrame]:
    with np.load(path) as chunk:
        return chunk["vectors"], pd.DataFrame({"text_hash": chunk["keys"], "truncated": chunk["truncated"]})


def _progress(folder: Path, config: EmbedConfig, sha256: str) -> Path:
    return folder / "progress" / text_hash(sha256, config.encoder_precision)[:16]


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


def _commit(folder, config, sha256, kind, row: _Rows, known, old: _Matrix | None, started) -> None:
    digest = text_hash(sha256, *row.ids, *row.hashes)[:16]
    if old and old.manifest["digest"] == digest and old.manifest["source_sha256"] == row.source_sha256:
        return
    matrix_path, table_path = folder / f"{kind}-{digest}.npy", folder / f"{kind}-{digest}.ids"
    columns = {"item_id" if kind == "jd" else "user_id": (row.ids, "token")}
    if row.samples is not None:
        columns["sample"] = (row.samples, "float")
    columns["text_hash"] = (row.hashes, "token")
    columns["truncated"] = ([int(known[key][2]) for key in row.hashes], "float")
    if not (old and old.manifest["digest"] == digest):
        dimension = next(iter(known.values()))[0].shape[1] if known else 0
        with atomic_write(matrix_path, "wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(row.hashes), dimension)}
            np.lib.format.write_array_header_1_0(file, header)
            for at in range(0, len(row.hashes), 4096):
                block = [known[key] for key in row.hashes[at : at + 4096]]
                file.write(np.stack([vectors[place] for vectors, place, _ in block]).astype("<f2").tobytes())
        frame = pd.DataFrame({name: values for name, (values, _) in columns.items()})
        write_table(table_path, frame, {name: kind_ for name, (_, kind_) in columns.items()})
    write_manifest(
        folder / kind,
        "vectors",
        config=asdict(config),
        source_sha256=row.source_sha256,
        wall_time_s=time.monotonic() - started,
        digest=digest,
        rows=len(row.ids),
        samples=None if row.samples is None else max(row.samples, default=-1) + 1,
        truncated=sum(columns["truncated"][0]),
        **_identity(config, sha256),
    )
    for path in [*folder.glob(f"{kind}-*.npy"), *folder.glob(f"{kind}-*.ids"), *folder.glob(".*.partial")]:
        if path not in (matrix_path, table_path):
            path.unlink(missing_ok=True)


def _read_matrix(folder: Path, kind: str, manifest: dict) -> _Matrix | None:
    matrix_path = folder / f"{kind}-{manifest['digest']}.npy"
    table_path = matrix_path.with_suffix(".ids")
    if not matrix_path.exists() or not table_path.exists():
        return None
    try:
        vectors = np.load(matrix_path, mmap_mode="r")
        table = read_table(table_path, required=("text_hash", "truncated"))
    except (ValueError, OSError):  # cut short by a copy; a DataError is a ValueError
        return None
    if len(vectors) != len(table) or len(table) != manifest["rows"]:
        return None
    return _Matrix(vectors, table, manifest)


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
    texts = read_texts(files, kind, ids, rows.shape[1])
    hashes = matrix.table["text_hash"].to_numpy()
    changed = []
    for key, places in zip(ids, rows, strict=True):
        now = [text_hash(text) for text in texts.get(key, ())[: len(places)]]
        if now != list(hashes[places]):
            changed.append(key)
    if changed:
        raise StaleVectors(
            f"{_folder(files, config) / kind}: {len(changed)} of {len(ids)} texts in {source.name} are not the ones "
            f"that were embedded (first: {some_of(changed)}). Run `{_embed_command(files, config)}`."
        )


def _explain_missing(files, config, kind, missing: Sequence[str], of: int, n_samples: int) -> None:
    """Raise what the ids without a vector lack: a text, or only the vector."""
    texts = read_texts(files, kind, missing, n_samples)
    short = [key for key in missing if len(texts.get(key, ())) < n_samples]
    if short and kind.startswith("gen."):
        lacking = "no generated JD" if n_samples == 1 else f"fewer than {n_samples} generated JDs"
        raise DataError(
            f"{_source(files, kind).name}: {len(short)} of {of} users have {lacking} (first: {some_of(short)}); "
            f"{n_samples} each {'is' if n_samples == 1 else 'are'} required. "
            f"Run `{_generate_command(files, kind, n_samples)}`."
        )
    if short:
        raise DataError(_no_text(files, kind, short, of))
    command = _embed_command(files, replace(config, n_generated=n_samples))
    raise StaleVectors(
        f"{_folder(files, config) / kind}: {len(missing)} of {of} ids have a text and no vector "
        f"(first: {some_of(missing)}). Run `{command}` (with --embed_all=true if they are not in {files.inter.name})."
    )


def _gather_mean(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over n of ``vectors[rows[:, n]]``: (len(rows), D) float32, without an (ids, n, D) array."""
    total = np.zeros((len(rows), vectors.shape[1]), np.float32)
    for column in rows.T:
        total += vectors[column]
    return total / np.float32(rows.shape[1])


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
    samples = "" if n_samples == 1 else f" --n={n_samples}"
    return f"girl generate {files.name} --generator={kind.removeprefix('gen.')}{samples}"
