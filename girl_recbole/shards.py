"""Work that survives: JDs on disk, a shard of CVs at a time, known by their CVs, in bounded memory.

A key is what the JDs of a CV depend on beside the settings of the run: 128 bits of the SHA-256 of the CV (of CV and
seeker where a reward of the seeker chose among candidates). Keys are the only thing that is held of a CV.

    FOLDER/settings.json       what every JD in FOLDER was made with; other settings are refused (generate.claim)
    FOLDER/<hash>.jsonl        a shard: {"key", "texts", "ended", "cut"[, "rewards"]} a line, and a last line
                               {"rows", "sha256"}: how many lines there are before it, and the hash of their bytes
    NAME.GENERATOR.gdoc.cvs    Parquet, beside a finished file, a row for each of its seekers in their order: key,
                               ended, cut, rewards. So the JDs of CVs that stay are taken over when others change
    .NAME.GENERATOR.gdoc.lock  held while the file is written, and names the process that does (:func:`only_writer`);
                               empty of meaning when nobody holds it

A shard is named by the hash of its keys, written beside its name, synced and renamed, so that it is whole or absent.
Its last line tells one that was cut or changed afterwards: it is reported, removed and written again.

What a run has to write is what it wants less what its shards hold. With the same input, the shards that are missing
after a kill are therefore cut as they were before, and the same batches give the same bytes; with other input, what is
there is used all the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from girl_recbole.atomic import atomic_write
from girl_recbole.errors import DataError
from girl_recbole.manifest import text_hash

__all__ = [
    "KEY_BYTES",
    "Kept",
    "Shards",
    "Written",
    "as_keys",
    "kept_path",
    "key_of",
    "only_writer",
    "read_kept",
    "rows_of",
    "unfinished_folder",
    "write_kept",
]

log = logging.getLogger(__name__)

KEY_BYTES = 16
_ROWS = 4096  # rows looked up or written at a time
_OPEN = 32  # shards that are open at the same time while rows are read


@dataclass(frozen=True)
class Written:
    """The JDs of one CV: texts, which of them ended by EOS, and how many tokens of the CV were cut off.

    ``rewards``: of each text's candidates, where it is the best of some."""

    texts: list[str]
    ended: list[bool]
    cut: int
    rewards: list[list[float]] | None = None


def key_of(*texts: str) -> bytes:
    """The key of what a CV's JDs depend on."""
    return bytes.fromhex(text_hash(*texts)[: 2 * KEY_BYTES])


def as_keys(keys: Iterable[bytes] | bytes | bytearray) -> np.ndarray:
    """(n,) of keys, to be sorted and searched; compare and concatenate them as arrays, for a single one loses its last
    bytes where they are 0."""
    joined = keys if isinstance(keys, bytes | bytearray) else b"".join(keys)
    return np.frombuffer(joined, dtype=f"S{KEY_BYTES}")


class Shards:
    """The shards in a folder, and where in them the JDs of each key lie: 28 bytes a CV."""

    def __init__(self, folder: Path) -> None:
        """Read all shards; what is no whole shard is reported, removed and counted in ``corrupt``."""
        self.folder = folder
        self.corrupt = 0
        self._paths: list[Path] = []
        self._keys, self._shard, self._offset = bytearray(), array("i"), array("q")
        self._sorted, self._order = as_keys(b""), np.empty(0, np.int32)
        for path in sorted(folder.glob("*.jsonl")):
            try:
                keys, offsets = _check(path.read_bytes(), path.name)
            except ValueError as error:
                log.warning("%s: a corrupt shard (%s); its JDs are written again", path, error)
                path.unlink()
                self.corrupt += 1
            else:
                self._add(path, keys, offsets)

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self._paths)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """(n,) bool: which of ``keys`` (n,) have no JDs yet."""
        return self._find(keys) < 0

    def write(self, keys: Sequence[bytes], rows: Sequence[Written]) -> None:
        """Add a shard."""
        lines, offsets, at = [], [], 0
        for key, row in zip(keys, rows, strict=True):
            facts = {name: value for name, value in asdict(row).items() if value is not None}
            lines.append((json.dumps({"key": key.hex(), **facts}, ensure_ascii=False) + "\n").encode())
            offsets.append(at)
            at += len(lines[-1])
        body = b"".join(lines)
        end = json.dumps({"rows": len(lines), "sha256": hashlib.sha256(body).hexdigest()}) + "\n"
        path = self.folder / _name(keys)
        with atomic_write(path, "wb") as file:
            file.write(body + end.encode())
        self._add(path, keys, offsets)

    def read(self, keys: np.ndarray) -> Iterator[Written]:
        """The JDs of each of ``keys`` (n,), in their order. ``DataError`` for one that is not there."""

        @lru_cache(maxsize=_OPEN)
        def opened(number: int) -> IO[bytes]:
            return open(self._paths[number], "rb")  # closed with the last reference to it

        for start in range(0, len(keys), _ROWS):
            places = self._find(keys[start : start + _ROWS])
            if (places < 0).any():
                raise DataError(
                    f"{self.folder}: {int((places < 0).sum())} CVs have no JDs; run the same command again."
                )
            for place in places.tolist():
                file = opened(self._shard[place])
                file.seek(self._offset[place])
                facts = json.loads(file.readline())
                del facts["key"]
                yield Written(**facts)

    def _add(self, path: Path, keys: Sequence[bytes], offsets: Sequence[int]) -> None:
        self._keys += b"".join(keys)
        self._shard.extend([len(self._paths)] * len(offsets))
        self._offset.extend(offsets)
        self._paths.append(path)

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) the row of each of ``keys``, -1 where there is none."""
        if len(self._sorted) < len(self._shard):  # shards were added
            self._sorted, self._order = as_keys(b""), np.empty(0, np.int32)  # the old ones before the new ones
            held = as_keys(self._keys)  # a view, gone when this returns: what is viewed cannot grow
            self._order = np.argsort(held, kind="stable").astype(np.int32)
            self._sorted = held[self._order]
        if not len(self._sorted):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1)


@contextmanager
def only_writer(gdoc: Path) -> Iterator[None]:
    """Hold a ``.gdoc`` and its shards. ``DataError`` names the process that holds them; the hold of one that is killed
    ends with it."""
    path = gdoc.with_name(f".{gdoc.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        other = path.read_text(encoding="utf-8") or "another process"
        raise DataError(
            f"{gdoc}: is being written by {other}; two would be in each other's way. Wait until it is done, or end it, "
            f"and run the same command again; or write to another name with --gen_as."
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(f"process {os.getpid()} on {platform.node()}, begun {since}", encoding="utf-8")
        yield
    finally:
        lock.release()


def unfinished_folder(gdoc: Path) -> Path:
    """Where the shards of a ``.gdoc`` lie until it is finished."""
    return gdoc.with_name(gdoc.name + ".shards")


def rows_of(shard: Path) -> int:
    """How many CVs a shard says it holds, by its last line alone; 0 where that is missing."""
    with open(shard, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 200))
        try:
            return int(json.loads(file.read().rstrip().rpartition(b"\n")[2])["rows"])
        except (ValueError, TypeError, KeyError):
            return 0


def _name(keys: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(keys)).hexdigest()[:24] + ".jsonl"


def _check(content: bytes, name: str) -> tuple[list[bytes], list[int]]:
    """Keys and places of the rows of a shard; ``ValueError`` says what is wrong with it."""
    body, end = content[: content.rfind(b"\n", 0, -1) + 1], content[content.rfind(b"\n", 0, -1) + 1 :]
    try:
        said = json.loads(end)
        rows, sha256 = said["rows"], said["sha256"]
    except (ValueError, TypeError, KeyError):
        raise ValueError("its last line is missing") from None
    if hashlib.sha256(body).hexdigest() != sha256:
        raise ValueError("its bytes are not those that were written")
    lines = body.splitlines(keepends=True)
    keys = [bytes.fromhex(json.loads(line)["key"]) for line in lines]
    if len(lines) != rows or _name(keys) != name:
        raise ValueError("it is not the file of its name")
    return keys, np.cumsum([0, *map(len, lines[:-1])]).tolist()


# --------------------------------------------------------------------------------------------- beside a finished file

_KEPT = pa.schema([
    ("key", pa.binary(KEY_BYTES)), ("ended", pa.list_(pa.bool_())), ("cut", pa.int32()),
    ("rewards", pa.list_(pa.list_(pa.float64()))),
])  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """What a finished file does not say of a seeker's JDs: the key, and all of :class:`Written` but the texts."""

    key: bytes
    ended: list[bool]
    cut: int
    rewards: list[list[float]] | None


def kept_path(gdoc: Path) -> Path:
    return gdoc.with_name(gdoc.name + ".cvs")


@contextmanager
def write_kept(gdoc: Path) -> Iterator[Any]:
    """``with write_kept(path) as add: add(Kept(...))``, a row for each seeker of ``gdoc`` in their order."""
    with atomic_write(kept_path(gdoc), "wb") as file, parquet.ParquetWriter(file, _KEPT) as writer:
        rows: list[dict[str, Any]] = []

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, _KEPT))
            rows.clear()

        def add(row: Kept) -> None:
            rows.append(vars(row))
            if len(rows) == _ROWS:
                flush()

        yield add
        flush()


def read_kept(gdoc: Path) -> Iterator[Kept]:
    """The rows that :func:`write_kept` wrote, streaming."""
    with parquet.ParquetFile(kept_path(gdoc)) as file:
        for batch in file.iter_batches(_ROWS):
            for row in batch.to_pylist():
                yield Kept(**row)
