"""The texts that are embedded: whose they are, streamed, and whether they may be used.

Kinds      ``cv``                 the CVs of NAME.udoc
           ``jd``                 the JDs of NAME.idoc
           ``gen.<generator>``    the JDs of NAME.<generator>.gdoc, in the order of their samples

Memory is that of a few texts, and of a few dozen bytes for each id that is asked for. Generated JDs are read only if
``girl generate`` wrote them from the CVs that their seekers have now (their manifest says so). Those of one's own,
without a manifest, may be in any order, for which all of them are held in memory.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from girl_recbole.atomic import DatasetFiles, iter_docs, iter_generated, read_generated
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.manifest import TextDigest, file_hash, manifest_path, read_manifest
from girl_recbole.shards import KEY_BYTES, as_keys, key_of

__all__ = [
    "check_generated",
    "distinct",
    "find_keys",
    "first_of",
    "generate_command",
    "generated_kinds",
    "id_column",
    "is_blank",
    "no_text",
    "read_texts",
    "refuse_empty",
    "sorted_keys",
    "stream_texts",
    "text_file",
]

_log = logging.getLogger(__name__)
_IDS = 1 << 20  # ids between two reductions to distinct ones
_ROWS = 256  # documents looked up at a time


def read_texts(
    files: DatasetFiles, kind: str, ids: Iterable[str] | None = None, n_samples: int | None = None
) -> dict[str, list[str]]:
    """``{id: texts}`` of a kind, one text an id but for generated JDs (the first n_samples); of ``ids`` only, if given.

    An id without a text is left out. Raises ``DataError`` naming the ids whose text is empty or white space.
    """
    if kind.startswith("gen."):
        check_generated(files, kind)
    wanted = None if ids is None else sorted_keys(ids)
    texts = {key: several for key, _, several in stream_texts(files, kind, wanted, n_samples)}
    refuse_empty(files, kind, [key for key, several in texts.items() if any(map(is_blank, several))], len(texts))
    return texts


def text_file(files: DatasetFiles, kind: str) -> Path:
    if kind == "cv":
        return files.udoc
    if kind == "jd":
        return files.idoc
    if kind.startswith("gen.") and len(kind) > len("gen."):
        return files.gdoc(kind.removeprefix("gen."))
    raise ConfigError(f"unknown kind of text {kind!r}; known: cv, jd and gen.<generator>.")


def id_column(kind: str) -> str:
    return "item_id" if kind == "jd" else "user_id"


def stream_texts(
    files: DatasetFiles, kind: str, wanted: np.ndarray | None, n_samples: int | None, again: bool = False
) -> Iterator[tuple[str, int, list[str]]]:
    """(id, place of its key in ``wanted``, its first n_samples texts) in file order. ``wanted``: sorted keys of ids;
    None: all, with place -1. ``again``: the file was read before, so that ids are not compared with one another."""
    path = text_file(files, kind)
    if not kind.startswith("gen."):
        docs = ((key, [text]) for key, text in iter_docs(path, distinct=not again))
    elif manifest_path(path).exists():
        docs = iter_generated(path)
    else:
        docs = iter(read_generated(path).items())
    if wanted is None:
        yield from ((key, -1, texts[:n_samples]) for key, texts in docs)
        return
    while block := list(islice(docs, _ROWS)):
        where = find_keys(wanted, as_keys(key_of(key) for key, _ in block))
        for (key, texts), place in zip(block, where.tolist(), strict=True):
            if place >= 0:
                yield key, place, texts[:n_samples]


def find_keys(held: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The place of each of ``keys`` in ``held``, which is sorted; -1 where it is not there."""
    if not len(held):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
    return np.where(held[at] == keys, at, -1)


def sorted_keys(ids: Iterable[str]) -> np.ndarray:
    """The distinct keys of ids, sorted."""
    found, more = as_keys(b""), bytearray()
    for key in ids:
        more += key_of(key)
        if len(more) == _IDS * KEY_BYTES:
            found, more = distinct(np.concatenate([found, as_keys(more)])), bytearray()
    return distinct(np.concatenate([found, as_keys(more)]))


def distinct(keys: np.ndarray) -> np.ndarray:
    """The different ones of ``keys``, sorted; ``keys`` are sorted in their place, so that nothing is held twice."""
    keys.sort()
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    return keys if new.all() else keys[new]


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def first_of(ids: Iterable[str], lost: np.ndarray) -> list[str]:
    """The first ids whose keys are in ``lost``, which is sorted: as many as an error names."""
    ids, found = iter(ids), {}
    while len(found) < 3 and (block := list(islice(ids, _ROWS))):
        where = find_keys(lost, as_keys(map(key_of, block)))
        found |= dict.fromkeys(key for key, place in zip(block, where, strict=True) if place >= 0)
    return list(found)[:3]


def refuse_empty(files: DatasetFiles, kind: str, empty: Sequence[str], of: int) -> None:
    if empty:
        what = {"cv": "CV", "jd": "JD"}.get(kind, "generated JD")
        raise DataError(
            f"{text_file(files, kind)}: {len(empty)} of {of} ids have an empty {what} (first: {some_of(empty)}); a "
            f"text is required for each. Write the texts, or leave these ids out of {files.inter.name}."
        )


def no_text(files: DatasetFiles, kind: str, first: Sequence[str], missing: int, of: int) -> str:
    people, text = ("jobs", "JD") if kind == "jd" else ("seekers", "CV")
    return (
        f"{text_file(files, kind)}: {missing} of {of} {people} have no {text} (first: {_named(first, missing)}); "
        f"one each is required. Add them to {text_file(files, kind).name}, or take these ids out of {files.inter.name}."
    )


def _named(first: Sequence[str], count: int) -> str:
    """As :func:`some_of` says it, of ``count`` ids of which the first are known."""
    return ", ".join(first[:3]) + (f" and {count - 3} more" if count > 3 else "")


# --------------------------------------------------------------------------------------------------- generated JDs


def check_generated(files: DatasetFiles, kind: str) -> None:
    """Raise unless NAME.<generator>.gdoc is the file that was generated, from the CVs that its seekers have now.

    A file without a manifest is a user's own: nothing says what it was made from, so it is taken with a warning.
    """
    path = text_file(files, kind)
    if not path.exists():
        raise DataError(f"{path}: no such file. Run `{generate_command(files, kind)}`.")
    manifest = read_manifest(path)
    if manifest is None:
        return _warn_of_unknown_origin(path)
    rebuild = generate_command(files, kind, manifest.get("settings", {}).get("samples", 1))
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
    for _, place, _ in stream_texts(files, "cv", wanted, 1):
        seen[place] = True
    gone = int((~seen).sum())
    if gone or manifest.get("source") != _hash_of_cvs(files, wanted, order):
        first = first_of((user for user, _ in iter_generated(path)), wanted[~seen]) if gone else []
        what = f"{gone} seekers have no CV any more (first: {_named(first, gone)})" if gone else "other CVs"
        raise DataError(
            f"{path}: stale: {files.udoc.name} has changed since these JDs were generated: {what}. Run `{rebuild}`."
        )


def _hash_of_cvs(files: DatasetFiles, wanted: np.ndarray, order: np.ndarray) -> str:
    """The hash of ids and CVs in the order of the generated JDs, where ``wanted[k]`` is that of number ``order[k]``. A
    CV is held only until those before it have come: none, where NAME.udoc has that order."""
    digest, due, early = TextDigest(), 0, {}
    for user, place, (cv,) in stream_texts(files, "cv", wanted, 1):
        early[int(order[place])] = user, cv
        while due in early:
            for part in early.pop(due):
                digest.add(part)
            due += 1
    return digest.hexdigest()


@functools.cache
def _warn_of_unknown_origin(path: Path) -> None:
    _log.warning("%s: no manifest beside it, so nothing says which CVs these JDs were generated from.", path.name)


def generated_kinds(files: DatasetFiles) -> list[str]:
    found = sorted(files.folder.glob(f"{files.name}.*.gdoc"))
    return ["gen." + path.name.removeprefix(f"{files.name}.").removesuffix(".gdoc") for path in found]


def generate_command(files: DatasetFiles, kind: str, n_samples: int = 1) -> str:
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
