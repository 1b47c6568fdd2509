"""``girl prepare tables``: a user's own CVs, jobs and feedback, as CSV, Parquet or JSON-lines files.

    cvs:       one row a seeker: an id and one or several text columns
    jobs:      one row a job: an id and one or several text columns
    feedback:  one row an answer: seeker id, job id, and, where known, label and time

``columns`` maps our names to the user's: cv_id, cv_text, job_id, jd_text, user, job, label, time. A text may be a list
of columns; they are joined line by line under their names, empty ones left out. ``labels`` maps the values of the label
column to 1 (matched) and 0 (mismatched), for example {hired: 1, rejected: 0}; without it they must be 0 and 1. Times
are ISO 8601 (without a zone: UTC) or seconds since 1970, 1e8 to 9e9 (the years 1973 to 2255: neither milliseconds nor
days written as 20230517 pass for seconds). Several rows of a pair become one: a match before a mismatch, the earliest.

Stages: by ``stage_dates`` ({sft: [2023-04-01, 2023-04-30], reward: [...], rl: [...], recommendation: [...]}, days
included, a row goes to the first stage that has its day), or else by ``stage_shares`` of randomly drawn seekers. By
dates, the seekers of rl are those with a row there and none in another stage: rl must meet neither sft and reward nor
valid and test. Feedback without a label column, or with matches only, needs ``negatives``: a named sampling rule.
Observed and sampled mismatches are never mixed.

A row that cannot be used (more fields than the header, empty, longer than ``max_doc_chars``, not UTF-8, a NUL in it, a
bad or repeated id, an unknown id, label or time) is an error that counts the reasons; with ``on_bad: drop`` it is left
out and counted. Texts may hold tabs, newlines and quotes; a quote that is never closed is an error. Texts are
streamed, twice, so memory is that of the ids and of the feedback.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.prepare.report import Report
from girl_recbole.prepare.stages import (
    STAGE_NAMES,
    add_mismatches,
    assign_stages,
    check_shares,
    one_row_a_pair,
    stage_frames,
    write_dataset,
)

__all__ = ["BadRows", "TablesConfig", "choose_rule", "prepare"]

_KEYS = ("cv_id", "cv_text", "job_id", "jd_text", "user", "job", "label", "time")
_REQUIRED = ("cv_id", "cv_text", "job_id", "jd_text", "user", "job")
_BAD_ID = re.compile(r"[\s\0]|^$")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_TOO_MANY = "with more fields than the header (a comma outside quotes?)"
_SECONDS = (1e8, 9e9)


@dataclass(frozen=True)
class TablesConfig:
    cvs: str | None
    jobs: str | None
    feedback: str | None
    columns: dict
    labels: dict
    stage_dates: dict
    stage_shares: list
    negatives: str | None
    negatives_per_positive: int
    on_bad: str
    max_doc_chars: int
    max_seekers: int | None
    seed: int


class BadRows:
    """Rows that cannot be used, by reason: counted in the report, and an error unless ``on_bad`` is drop."""

    def __init__(self, on_bad: str, report: Report) -> None:
        if on_bad not in ("error", "drop"):
            raise ConfigError(f"on_bad: {on_bad!r} is unknown; known: error, drop.")
        self._drop, self._report = on_bad == "drop", report
        self._found: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, which: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if len(self._found.setdefault(reason, [])) < 3:
            self._found[reason].append(which)

    def add_many(self, reason: str, which: Iterable) -> None:
        which = list(which)
        if which:
            self._counts[reason] = self._counts.get(reason, 0) + len(which)
            self._found.setdefault(reason, []).extend(map(str, which[:3]))

    def settle(self, path: Path, total: int) -> None:
        """Count what was found in ``path`` and forget it; raise where bad rows are not to be dropped."""
        if self._counts and not self._drop:
            said = "; ".join(
                f"{count} {reason} ({', '.join(self._found[reason])}{', ...' if count > 3 else ''})"
                for reason, count in self._counts.items()
            )
            raise DataError(
                f"{path}: {sum(self._counts.values())} of {total} rows cannot be used: {said}. "
                "Mend them, or leave them out with --on_bad=drop."
            )
        for reason, count in self._counts.items():
            self._report.add("dropped", f"{path.name}: {reason}", count)
        self._found, self._counts = {}, {}


def prepare(files: DatasetFiles, config: TablesConfig) -> dict:
    """Read the three tables; write the dataset; return the report."""
    started = time.monotonic()
    paths = _check_config(config)
    report = Report("tables")
    columns = config.columns
    seekers = _checked_ids(paths["cvs"], columns["cv_id"], columns["cv_text"], config, report)
    jobs = _checked_ids(paths["jobs"], columns["job_id"], columns["jd_text"], config, report)
    pairs = _feedback(paths["feedback"], seekers, jobs, config, report)
    pairs = one_row_a_pair(pairs, report)
    active = np.array(sorted(set(pairs["user_id"])), dtype=object)
    report.add("read", "CVs without feedback (kept as documents)", len(seekers) - len(active))
    if config.max_seekers is not None and len(active) > config.max_seekers:
        report.add("dropped", "seekers beyond max_seekers", len(active) - config.max_seekers)
        kept = np.random.default_rng(config.seed).permutation(active)[: config.max_seekers]
        seekers = dict.fromkeys(kept)
        pairs = pairs[pairs["user_id"].isin(seekers)]
    rule = choose_rule(pairs, config.negatives, paths["feedback"], report)
    if config.stage_dates:
        frames = _by_dates(pairs, config, rule, report)
    else:
        frames = stage_frames(
            pairs,
            assign_stages(set(pairs["user_id"]), config.stage_shares, config.seed),
            report,
            rule=rule,
            per_positive=config.negatives_per_positive,
            seed=config.seed,
        )
    return write_dataset(
        files,
        frames,
        _documents(paths["cvs"], columns["cv_id"], columns["cv_text"], config, seekers),
        _documents(paths["jobs"], columns["job_id"], columns["jd_text"], config, jobs),
        report,
        config=asdict(config),
        seed=config.seed,
        inputs=paths.values(),
        wall_time_s=time.monotonic() - started,
    )


def choose_rule(pairs: pd.DataFrame, negatives: str | None, path: Path, report: Report) -> str | None:
    """The sampling rule where ``pairs`` are matches only, None where mismatches were observed; errors otherwise."""
    if not len(pairs):
        raise DataError(f"{path}: no usable row is left. {report.text()}")
    observed = pairs["label"].eq(0).any()
    if not pairs["label"].eq(1).any():
        raise DataError(f"{path}: no matched pair (label 1) among {len(pairs)} rows; check the label values.")
    if observed and negatives is not None:
        raise ConfigError(
            f"negatives: {negatives!r}, but {path} has {int(pairs['label'].eq(0).sum())} observed mismatches; observed "
            "and sampled ones are not mixed. Set negatives to null."
        )
    if not observed and negatives not in ("random", "popularity"):
        raise ConfigError(
            f"{path}: all {len(pairs)} pairs are matched, so mismatches must be sampled by a rule that you name: "
            f"--negatives=popularity or --negatives=random, not {negatives!r}."
        )
    report.note(mismatches=f"sampled, {negatives}" if negatives else "observed")
    return negatives


# ------------------------------------------------------------------------------------------------------------ reading


def _check_config(config: TablesConfig) -> dict[str, Path]:
    for key in config.columns:
        if key not in _KEYS:
            raise ConfigError(f"columns: unknown key {key!r}{suggest(key, _KEYS)}")
    missing = [key for key in _REQUIRED if key not in config.columns]
    if missing:
        raise ConfigError(
            f"columns: no column named for {', '.join(missing)}; for example columns: {{cv_id: id, ...}}."
        )
    unset = [key for key in ("cvs", "jobs", "feedback") if not getattr(config, key)]
    if unset:
        raise ConfigError(f"{', '.join(unset)}: name the file (.csv, .parquet, .jsonl).")
    if any(value not in (0, 1) for value in config.labels.values()):
        raise ConfigError(f"labels: {config.labels} must map the values of the label column to 1 (matched) or 0.")
    if config.stage_dates:
        if "time" not in config.columns:
            raise ConfigError("stage_dates: needs a time column (columns: {time: ...}).")
        unknown = [stage for stage in config.stage_dates if stage not in STAGE_NAMES]
        if unknown or "recommendation" not in config.stage_dates:
            raise ConfigError(f"stage_dates: stages are {', '.join(STAGE_NAMES)}, the last is required, not {unknown}.")
    else:
        check_shares(config.stage_shares)
    return {key: Path(getattr(config, key)) for key in ("cvs", "jobs", "feedback")}


def _iter_rows(path: Path, wanted: list[str]) -> Iterator[tuple[str | None, ...] | None]:
    """The ``wanted`` columns of each row as text; None where a row has no such field, and for a row with more fields
    than the header. Bytes that are not UTF-8 show as lone surrogates."""
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    kind = path.suffix.lower()
    if kind == ".csv":
        csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long CV
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                names = next(reader, [])
                _require_columns(path, wanted, names)
                places = [names.index(name) for name in wanted]
                for row in reader:
                    if len(row) > len(names):
                        yield None
                    elif row:
                        yield tuple(row[place] if place < len(row) else None for place in places)
            except csv.Error as error:
                raise DataError(f"{path}: line {reader.line_num}: {error}; is a quote open or misplaced?") from None
    elif kind == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a Parquet file: {error}.") from None
        _require_columns(path, wanted, table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=4096, columns=list(dict.fromkeys(wanted))):
            for row in zip(*(batch.column(name).to_pylist() for name in wanted), strict=True):
                yield tuple(_as_text(value) for value in row)
    elif kind in (".jsonl", ".ndjson"):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}: line {number} is not JSON ({error.msg}).") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number}: an object is required, not a {type(row).__name__}.")
                if number == 1:
                    _require_columns(path, wanted, list(row))
                yield tuple(_as_text(row.get(name)) for name in wanted)
    else:
        raise DataError(f"{path}: unknown kind {kind!r}; .csv, .parquet and .jsonl are read.")


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _require_columns(path: Path, wanted: list[str], names: list[str]) -> None:
    for name in wanted:
        if name not in names:
            raise DataError(f"{path}: no column {name!r}{suggest(name, names)}; it has {some_of(names, 8)}.")


def _text_columns(text: str | list) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _checked(path: Path, key: str, text: str | list, config: TablesConfig) -> Iterator[tuple[str, str, str]]:
    """``(id, text, reason)`` of each row; the reason is empty where the row can be used."""
    names = _text_columns(text)
    seen: set[str] = set()
    for number, row in enumerate(_iter_rows(path, [key, *names]), start=1):
        if row is None:
            yield f"row {number}", "", _TOO_MANY
            continue
        found, *values = row
        name = found if found and not _BAD_ID.search(found) and not _SURROGATE.search(found) else None
        if name is None:
            yield f"row {number}", "", "with an id that is empty, not UTF-8 or holds white space"
            continue
        if len(names) == 1:
            body = values[0] or ""
        else:
            body = "\n".join(f"{n}: {v}" for n, v in zip(names, values, strict=True) if v and v.strip())
        if name in seen:
            reason = "with an id seen before"
        elif not body.strip():
            reason = "without text"
        elif len(body) > config.max_doc_chars:
            reason = f"longer than {config.max_doc_chars} characters (max_doc_chars)"
        elif _SURROGATE.search(body):
            reason = "not UTF-8"
        elif "\0" in body:
            reason = "with a NUL in the text"
        else:
            reason = ""
        seen.add(name)
        yield name, body, reason


def _checked_ids(path: Path, key: str, text: str | list, config: TablesConfig, report: Report) -> dict[str, None]:
    bad, kept, total = BadRows(config.on_bad, report), {}, 0
    for name, _, reason in _checked(path, key, text, config):
        total += 1
        if reason:
            bad.add(reason, name)
        else:
            kept[name] = None
    report.add("read", f"rows of {path.name}", total)
    bad.settle(path, total)
    return kept


def _documents(
    path: Path, key: str, text: str | list, config: TablesConfig, wanted: Mapping[str, None]
) -> Iterator[tuple[str, str]]:
    return ((name, body) for name, body, reason in _checked(path, key, text, config) if not reason and name in wanted)


def _feedback(
    path: Path, seekers: Mapping[str, None], jobs: Mapping[str, None], config: TablesConfig, report: Report
) -> pd.DataFrame:
    names = [config.columns[key] for key in ("user", "job", "label", "time") if key in config.columns]
    rows = list(_iter_rows(path, names))
    total = len(rows)
    report.add("read", f"rows of {path.name}", total)
    bad = BadRows(config.on_bad, report)
    bad.add_many(_TOO_MANY, (f"row {number}" for number, row in enumerate(rows, start=1) if row is None))
    table = pd.DataFrame([row for row in rows if row is not None], columns=names, dtype=object)
    user, job = table[config.columns["user"]], table[config.columns["job"]]
    out = pd.DataFrame({"user_id": user, "item_id": job, "label": 1.0})
    usable = user.isin(seekers)
    bad.add_many("of a seeker without a usable CV", user[~usable])
    known = job.isin(jobs)
    bad.add_many("for a job without a usable JD", job[usable & ~known])
    usable &= known
    if "label" in config.columns:
        value = table[config.columns["label"]]
        mapping = {str(k): float(v) for k, v in config.labels.items()} or None
        out["label"] = value.map(mapping) if mapping else pd.to_numeric(value, errors="coerce")
        valid = out["label"].isin((0.0, 1.0))
        said = "with a label that labels does not map" if mapping else "with a label other than 0 and 1"
        bad.add_many(said, value[usable & ~valid])
        usable &= valid
    if "time" in config.columns:
        value = table[config.columns["time"]]
        seconds = pd.to_numeric(value, errors="coerce")
        dates = pd.to_datetime(value.where(seconds.isna()), errors="coerce", utc=True, format="ISO8601")
        out["timestamp"] = seconds.fillna((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).astype(float)
        valid = out["timestamp"].notna() & (seconds.isna() | seconds.between(*_SECONDS))
        bad.add_many(
            f"with a time that is neither ISO 8601 nor seconds since 1970, {_SECONDS[0]:.0e} to {_SECONDS[1]:.0e}",
            value[usable & ~valid],
        )
        usable &= valid
    bad.settle(path, total)
    return out[usable].reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------------- stages


def _by_dates(pairs: pd.DataFrame, config: TablesConfig, rule: str | None, report: Report) -> dict[str, pd.DataFrame]:
    day = pd.to_datetime(pairs["timestamp"], unit="s", utc=True).dt.floor("D")
    stage = pd.Series("", index=pairs.index)
    for name in (name for name in STAGE_NAMES if name in config.stage_dates):
        begin, end = _days(name, config.stage_dates[name])
        stage[stage.eq("") & day.between(begin, end)] = name
    report.add("dropped", "feedback outside the stages' dates", int(stage.eq("").sum()))
    frames = {name: pairs[stage == name] for name in STAGE_NAMES}
    elsewhere = set().union(*(frames[name]["user_id"] for name in STAGE_NAMES if name != "rl"))
    rl = set(frames["rl"]["user_id"])
    report.add("dropped", "seekers of rl who are in another stage too", len(rl & elsewhere))
    unmatched = frames["sft"]["label"].eq(0)
    report.add("dropped", "mismatched pairs in the dates of sft", int(unmatched.sum()))
    report.add("dropped", "pairs in the dates of rl (CVs alone are used)", len(frames["rl"]))
    scored = {name: frames[name] for name in ("reward", "recommendation")}
    if rule:  # a seeker may be in several stages: no pair that is matched in one is a mismatch in another
        known = pairs
        for number, name in enumerate(scored):
            scored[name] = add_mismatches(
                scored[name], name, report, rule, config.negatives_per_positive, config.seed + number, exclude=known
            )
            known = pd.concat([known, scored[name]])
    return {
        "sft": frames["sft"][~unmatched],
        "rl": pd.DataFrame({"user_id": sorted(rl - elsewhere)}, dtype=str),
        **scored,
    }


def _days(stage: str, dates: object) -> tuple[pd.Timestamp, pd.Timestamp]:
    try:
        begin, end = (pd.Timestamp(str(date), tz="UTC") for date in dates)
    except (TypeError, ValueError):
        raise ConfigError(f"stage_dates: {stage}: {dates!r} must be two ISO dates, [first day, last day].") from None
    return begin, end
