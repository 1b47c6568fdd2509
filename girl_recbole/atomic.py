"""The on-disk formats of a dataset. No other file knows them.

A dataset NAME is a folder of RecBole atomic files, tab-separated with a typed header, UTF-8, one record a line:

    NAME.inter              user_id:token  item_id:token  label:float [timestamp:float]     the recommendation stage
    NAME.sft.inter          the same columns, label 1: matched pairs for supervised fine-tuning
    NAME.reward.inter       the same columns: matched (1) and mismatched (0) pairs for the reward model
    NAME.rl.user            user_id:token: seekers whose CVs (and nothing else) the reinforcement stage reads
    NAME.SPLIT.PART.inter   SPLIT in warm, cold, cold_strict; PART in train, valid, test (RecBole benchmark files)
    NAME.udoc               user_id:token  user_doc:text          one CV a line
    NAME.idoc               item_id:token  item_doc:text          one JD a line
    NAME.GENERATOR.gdoc     user_id:token  sample:float  text:text    the JDs that GENERATOR wrote for each CV
    NAME.oracle.inter       user_id:token  item_id:token  probability:float   the true match probability, where known

A ``text`` column holds any Unicode string on one line: backslash, tab, newline, carriage return and NUL are written
``\\\\ \\t \\n \\r \\0``. RecBole-PJF's documents (column type ``token_seq``, several rows a document, words split by
spaces) are read too: their rows are joined by newlines and nothing is unescaped.

Every write goes to a file beside the target, is synced, and is renamed, so that a reader never meets half a file.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from girl_recbole.errors import DataError, some_of

__all__ = [
    "PARTS",
    "SPLITS",
    "STAGES",
    "DatasetFiles",
    "atomic_write",
    "check_ids",
    "check_lines",
    "escape_text",
    "iter_docs",
    "iter_generated",
    "iter_ids",
    "iter_rows",
    "read_docs",
    "read_generated",
    "read_header",
    "read_interactions",
    "read_table",
    "read_users",
    "unescape_text",
    "write_docs",
    "write_generated",
    "write_interactions",
    "write_table",
    "write_users",
]

STAGES = ("sft", "reward", "rl")
SPLITS = ("warm", "cold", "cold_strict")
PARTS = ("train", "valid", "test")

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0"}
_UNESCAPES = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r", "0": "\0"}
_TO_ESCAPE = re.compile(r"[\\\t\n\r\0]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_UNUSUAL = re.compile(rb"[^\t\n\x21-\x7e]")
_BAD_ID = re.compile(r"[\s\0]")
_RECENT = 1 << 16  # ids of documents that are held as they are
_LINES_BYTES = 1 << 22  # of a file whose lines are checked at once; masks of it take five times as much
_TYPES = ("token", "token_seq", "float", "float_seq", "text")


@dataclass(frozen=True)
class DatasetFiles:
    """The paths of one dataset: ``DatasetFiles(Path("dataset/toy"), "toy").udoc`` is ``dataset/toy/toy.udoc``."""

    folder: Path
    name: str

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    @property
    def inter(self) -> Path:
        return self.path("inter")

    @property
    def udoc(self) -> Path:
        return self.path("udoc")

    @property
    def idoc(self) -> Path:
        return self.path("idoc")

    @property
    def oracle(self) -> Path:
        return self.path("oracle.inter")

    def stage(self, stage: str) -> Path:
        """The pairs of ``sft`` or ``reward``, or the seekers of ``rl``."""
        return self.path("rl.user" if stage == "rl" else f"{stage}.inter")

    def split(self, split: str, part: str) -> Path:
        return self.path(f"{split}.{part}.inter")

    def gdoc(self, generator: str) -> Path:
        return self.path(f"{generator}.gdoc")

    def vectors(self, encoder: str) -> Path:
        """The folder of the vectors that ``encoder`` (a slug, see embed.py) made of this dataset's texts."""
        return self.folder / "vectors" / encoder


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path``; on success sync it and rename it to ``path``, on any error remove it.

    What a killed process left of an earlier try (untouched for ten minutes, its process gone) is removed.

    Text mode is strict UTF-8 and writes newlines as they are. A full disk raises an ``OSError`` that names ``path``,
    and leaves the old file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(beside, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


# ---------------------------------------------------------------------------------------------------- plain tables


def read_table(path: Path, required: Iterable[str] = ()) -> pd.DataFrame:
    """Read an atomic file without text columns. Tokens are ``str``, floats ``float64``; an empty float is NaN.

    Raises ``DataError`` for a missing or empty file, a header without types, a missing column, a row with too few or
    too many fields, a NUL, an id that is empty or holds white space, bytes that are not UTF-8, and a number that is
    none; and for a last line without an end where a manifest tells that the file is ours, so that it was cut short.
    Lines may end with CR LF.
    """
    names, types = read_header(path)
    missing = [name for name in required if name not in names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(names)}.")
    rows, plain = check_lines(path, len(names))
    try:
        frame = pd.read_csv(
            path, sep="\t", header=None, skiprows=1, names=names, dtype=str, quoting=3, keep_default_na=False,
            encoding="utf-8", lineterminator="\n", index_col=False, on_bad_lines="error", skip_blank_lines=False,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8.") from None
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame(columns=names, dtype=str)
    if len(frame) != rows:
        raise DataError(f"{path}: {rows} rows, but {len(frame)} could be read; write it again.")
    if not plain:
        frame[names[-1]] = frame[names[-1]].str.removesuffix("\r")
    for name, kind in zip(names, types, strict=True):
        if kind == "token" and name.endswith("_id"):
            wrong = frame[name].eq("")
            bad = np.flatnonzero(wrong if plain else wrong | frame[name].str.contains(_BAD_ID))
            if len(bad):
                raise DataError(
                    f"{path}: {len(bad)} of {rows} ids in {name} are empty or hold white space, first "
                    f"{frame[name].iloc[bad[0]]!r} on line {bad[0] + 2}."
                )
    for name, kind in zip(names, types, strict=True):
        if kind == "float":
            frame[name] = _floats(frame[name], path, name)
    return frame


def iter_ids(path: Path, column: str) -> Iterator[str]:
    """Stream the ids of one column in file order, checked as :func:`read_table` checks them; of equal ones within some
    thousands of rows the first only. Memory is that of a block of the file."""
    names, _ = read_header(path)
    if column not in names:
        raise DataError(f"{path}: no column {column}; it has {', '.join(names)}.")
    rows, _ = check_lines(path, len(names))
    if not rows:
        return
    blocks = csv.open_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            include_columns=[column], column_types={column: pa.string()}, strings_can_be_null=False
        ),
    )
    for block in blocks:
        ids = block.column(0).unique().to_pylist()
        check_ids(ids, path, column)
        yield from ids


def write_table(path: Path, frame: pd.DataFrame, types: dict[str, str]) -> None:
    """Write ``frame`` with the typed header that ``types`` gives (column -> token, token_seq, float or float_seq)."""
    for name, kind in types.items():
        if kind not in _TYPES:
            raise DataError(f"{path}: column {name} has the unknown type {kind!r}; known: {', '.join(_TYPES)}.")
        if kind == "token":
            check_ids(frame[name], path, name)
    with atomic_write(path) as file:
        file.write("\t".join(f"{name}:{kind}" for name, kind in types.items()) + "\n")
        frame[list(types)].to_csv(file, sep="\t", header=False, index=False, quoting=3, lineterminator="\n")


# ---------------------------------------------------------------------------------------------------- interactions


def read_interactions(path: Path) -> pd.DataFrame:
    """Read ``user_id, item_id, label[, timestamp]``; labels are checked to be 0 or 1.

    Returns the columns user_id (str), item_id (str), label (float64), and timestamp (float64, seconds) where present.
    """
    frame = read_table(path, required=("user_id", "item_id", "label"))
    bad = np.flatnonzero(~frame["label"].isin((0.0, 1.0)))
    if len(bad):
        raise DataError(
            f"{path}: {len(bad)} of {len(frame)} labels are neither 0 (mismatched) nor 1 (matched), first "
            f"{frame['label'].iloc[bad[0]]} on line {bad[0] + 2}."
        )
    return frame


def write_interactions(path: Path, frame: pd.DataFrame) -> None:
    """Write ``user_id, item_id, label[, timestamp]``; other columns are left out."""
    types = {"user_id": "token", "item_id": "token", "label": "float"}
    if "timestamp" in frame:
        types["timestamp"] = "float"
    out = frame[list(types)].copy()
    for name in ("label", "timestamp"):
        if name in out and (out[name] % 1 == 0).all():
            out[name] = out[name].astype(np.int64)  # 1, not 1.0
    write_table(path, out, types)


def read_users(path: Path) -> list[str]:
    """Read a list of seekers (``NAME.rl.user``), in file order."""
    return read_table(path, required=("user_id",))["user_id"].tolist()


def write_users(path: Path, users: Iterable[str]) -> None:
    write_table(path, pd.DataFrame({"user_id": list(users)}, dtype=str), {"user_id": "token"})


# ------------------------------------------------------------------------------------------------------- documents


def iter_docs(path: Path, distinct: bool = True) -> Iterator[tuple[str, str]]:
    """Stream ``(id, text)`` of a ``.udoc`` or ``.idoc``, in file order; memory is that of one document, of the last
    _RECENT ids, and 16 bytes for each id before them. ``distinct=False``: of one document; the file was read before,
    so no id is compared with others.

    Raises ``DataError`` for a duplicate id (at its line, or up to _RECENT documents later), a malformed row, bytes that
    are not UTF-8, or a file cut short.
    """
    names, types = read_header(path)
    if len(names) != 2 or types[1] not in ("text", "token_seq"):
        raise DataError(f"{path}: the header must be ID:token<tab>DOC:text (or token_seq), not {names}.")
    rows = iter_rows(path, fields=2, ours=types[1] == "text")
    seen = _Distinct(path) if distinct else _Unchecked()
    if types[1] == "text":
        for line, (key, text) in rows:
            seen.add(key, line)
            yield key, unescape_text(text, path, line)
        seen.check()
        return
    current, lines = None, []  # RecBole-PJF: the rows of a document follow one another
    for line, (key, text) in rows:
        if key != current:
            if current is not None:
                yield current, "\n".join(lines)
            seen.add(key, line)
            current, lines = key, []
        lines.append(text)
    if current is not None:
        yield current, "\n".join(lines)
    seen.check()


def read_docs(path: Path) -> dict[str, str]:
    """``{id: text}`` of a ``.udoc`` or ``.idoc``, in file order."""
    return dict(iter_docs(path))


def write_docs(path: Path, docs: Iterable[tuple[str, str]], kind: str) -> int:
    """Write ``(id, text)`` pairs as ``kind`` "user" or "item", streaming. Returns the number written."""
    if kind not in ("user", "item"):
        raise ValueError(f"kind must be 'user' or 'item', not {kind!r}")
    seen, count = _Distinct(path), 0
    with atomic_write(path) as file:
        file.write(f"{kind}_id:token\t{kind}_doc:text\n")
        for count, (key, text) in enumerate(docs, start=1):
            check_ids((key,), path, f"{kind}_id")
            seen.add(key, count + 1)
            file.write(f"{key}\t{escape_text(text, path, key)}\n")
        seen.check()
    return count


def read_generated(path: Path) -> dict[str, list[str]]:
    """``{user_id: [JD of sample 0, JD of sample 1, ...]}``. Samples must be numbered 0..n-1 for each seeker."""
    generated: dict[str, list[str]] = {}
    for line, (user, sample, text) in iter_rows(_gdoc(path), fields=3, ours=True):
        texts = generated.setdefault(user, [])
        if sample != str(len(texts)):
            raise DataError(f"{path}: line {line}: sample {sample} of {user} where {len(texts)} was due.")
        texts.append(unescape_text(text, path, line))
    return generated


def iter_generated(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Stream ``(user_id, [JD of sample 0, JD of sample 1, ...])`` of a ``.gdoc`` whose rows of a seeker follow one
    another, as we write them; memory is that of one seeker's JDs."""
    current, texts = None, []
    for line, (user, sample, text) in iter_rows(_gdoc(path), fields=3, ours=True):
        if user != current:
            if current is not None:
                yield current, texts
            current, texts = user, []
        if sample != str(len(texts)):
            raise DataError(f"{path}: line {line}: sample {sample} of {user} where {len(texts)} was due.")
        texts.append(unescape_text(text, path, line))
    if current is not None:
        yield current, texts


def write_generated(path: Path, generated: Iterable[tuple[str, int, str]]) -> int:
    """Write ``(user_id, sample, text)`` rows, streaming; samples of a seeker in order from 0. Returns the rows."""
    count = 0
    with atomic_write(path) as file:
        file.write("user_id:token\tsample:float\ttext:text\n")
        for user, sample, text in generated:
            check_ids((user,), path, "user_id")
            file.write(f"{user}\t{sample}\t{escape_text(text, path, user)}\n")
            count += 1
    return count


# --------------------------------------------------------------------------------------------------------- details


def _sweep(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.split(".")[-2]
        try:
            if process.isdigit() and time.time() - left.stat().st_mtime > 600:  # a live one of another machine writes
                os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            left.unlink(missing_ok=True)
        except OSError:  # it lives, or another process has removed the file
            continue


def read_header(path: Path) -> tuple[list[str], list[str]]:
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    with open(path, "rb") as file:
        line = file.readline()
    if not line.strip():
        raise DataError(f"{path}: empty file; a header with types (user_id:token ...) is required.")
    try:
        fields = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise DataError(f"{path}: line 1 is not UTF-8; convert the file to UTF-8.") from None
    pairs = [field.partition(":") for field in fields]
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        again = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{path}: line 1: column {some_of(again)} is there twice; each needs a name of its own.")
    untyped = [name for name, _, kind in pairs if kind not in _TYPES]
    if untyped:
        raise DataError(f"{path}: line 1: no type for {some_of(untyped)}; the header must read like user_id:token.")
    return names, [kind for _, _, kind in pairs]


def _gdoc(path: Path) -> Path:
    names, types = read_header(path)
    if names != ["user_id", "sample", "text"] or types[2] != "text":
        raise DataError(f"{path}: the header must be user_id:token<tab>sample:float<tab>text:text, not {names}.")
    return path


def check_lines(path: Path, fields: int) -> tuple[int, bool]:
    """The number of rows, after a check that each has ``fields`` fields and no NUL, and whether no field can hold white
    space (printable ASCII only). Memory is that of a block."""
    number, tail, broken, count, plain = 1, b"", [], 0, True  # number: the line before those of the block
    with open(path, "rb") as file:
        file.readline()
        while block := file.read(_LINES_BYTES):
            plain = plain and not _UNUSUAL.search(block)
            whole, end, rest = block.rpartition(b"\n")
            if not end:
                tail += block
                continue
            data = tail + whole + end
            tail = rest
            wrong, lines = _wrong_lines(data, fields)
            broken += [number + 1 + int(line) for line in wrong[: 3 - len(broken)]]
            count += len(wrong)
            number += lines
    if tail:
        if path.with_name(f"{path.name}.manifest.json").exists():
            raise DataError(f"{path}: cut short in line {number + 1} (no line end); write it again.")
        wrong, lines = _wrong_lines(tail + b"\n", fields)
        broken += [number + 1] if len(wrong) and len(broken) < 3 else []
        count += len(wrong)
        number += lines
    if count:
        more = f" and {count - len(broken)} more" if count > len(broken) else ""
        raise DataError(
            f"{path}: {count} rows with too few or too many fields, or a NUL in them (line "
            f"{', '.join(map(str, broken))}{more}); {fields} tab-separated fields are required."
        )
    return number - 1, plain


def _wrong_lines(data: bytes, fields: int) -> tuple[np.ndarray, int]:
    """Positions of the lines of ``data`` with another number of tabs than ``fields`` - 1 or a NUL; and all lines."""
    array = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(array == 10)
    tabs = np.flatnonzero(array == 9)
    tabs_of = np.diff(np.searchsorted(tabs, ends), prepend=0)
    wrong = tabs_of != fields - 1
    if fields == 1:  # pandas would take a blank line of one column for an empty field
        wrong |= np.diff(ends, prepend=-1) == 1
    if b"\0" in data:
        wrong[np.searchsorted(ends, np.flatnonzero(array == 0))] = True
    return np.flatnonzero(wrong), len(ends)


def iter_rows(path: Path, fields: int, ours: bool) -> Iterator[tuple[int, list[str]]]:
    with open(path, "rb") as file:
        file.readline()
        for number, raw in enumerate(file, start=2):
            if not raw.endswith(b"\n") and ours:
                raise DataError(f"{path}: cut short in line {number} (no line end); write it again.")
            try:
                row = raw.decode("utf-8").rstrip("\n").split("\t")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: line {number} is not UTF-8 (byte {error.start}); convert it.") from None
            if not ours:
                if row == [""]:
                    continue
                row[-1] = row[-1].rstrip("\r")
            if len(row) != fields:
                raise DataError(f"{path}: line {number} has {len(row)} tab-separated fields; {fields} are required.")
            yield number, row


class _Distinct:
    """The ids of documents, each of which may come once: the last ones as they are, with their lines; those before by
    16 bytes of their hash, in sorted arrays of which each is longer than the next."""

    def __init__(self, path: Path):
        self._path = path
        self._recent: dict[str, int] = {}
        self._held: list[np.ndarray] = []

    def add(self, key: str, line: int) -> None:
        """``DataError`` for an id that has come; for one that came long ago, later or in :meth:`check`."""
        if key in self._recent:
            raise self._again(key, line)
        self._recent[key] = line
        if len(self._recent) == _RECENT:
            self.check()

    def check(self) -> None:
        """Compare the last ids with those before."""
        if len(self._recent) < _RECENT and not self._held:
            return
        digests = (hashlib.blake2b(key.encode(), digest_size=16).digest() for key in self._recent)
        new = np.frombuffer(b"".join(digests), "S16")
        for held in self._held:
            at = np.minimum(np.searchsorted(held, new), len(held) - 1)
            if len(again := np.flatnonzero(held[at] == new)):
                raise self._again(*list(self._recent.items())[again[0]])
        self._recent = {}
        self._held.append(np.sort(new))
        while len(self._held) > 1 and len(self._held[-2]) <= len(self._held[-1]):
            both = np.concatenate(self._held[-2:])
            del self._held[-2:]
            both.sort()
            self._held.append(both)

    def _again(self, key: str, line: int) -> DataError:
        return DataError(f"{self._path}: line {line}: second document of {key}; ids must be unique.")


class _Unchecked:
    """In the place of :class:`_Distinct` where the ids were checked before."""

    def add(self, key: str, line: int) -> None:
        pass

    def check(self) -> None:
        pass


def escape_text(text: str, path: Path, key: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: the text of {key} has a lone surrogate at position {error.start}.") from None
    return _TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], text)


def unescape_text(text: str, path: Path, line: int) -> str:
    if "\\" not in text:
        return text
    try:
        return _ESCAPED.sub(lambda match: _UNESCAPES[match[1]], text)
    except KeyError as error:
        raise DataError(
            f"{path}: line {line}: unknown escape '\\{error.args[0]}'; in a text column a backslash is written \\\\."
        ) from None


def check_ids(ids: Iterable, path: Path, name: str) -> None:
    bad = [repr(i) for i in ids if not isinstance(i, str) or not i or _BAD_ID.search(i)]
    if bad:
        raise DataError(f"{path}: {len(bad)} ids in {name} are empty or hold white space or NUL: {some_of(bad)}.")


def _floats(column: pd.Series, path: Path, name: str) -> pd.Series:
    numbers = pd.to_numeric(column.where(column != "", "nan"), errors="coerce")
    bad = np.flatnonzero(numbers.isna() & ~column.str.lower().isin(("", "nan")))
    if len(bad):
        raise DataError(f"{path}: column {name}: {column.iloc[bad[0]]!r} on line {bad[0] + 2} is not a number.")
    return numbers.astype(np.float64)
