"""``girl prepare pjf``: the atomic files of RecBole-PJF become a dataset with labels and stages.

Source: a folder with one NAME.inter, NAME.udoc and NAME.idoc as RecBole-PJF reads them. The seeker's column is user_id;
the job's is item_id or job_id; a document has one row a sentence, words split by spaces (atomic.py joins its rows).

    label      RecBole-PJF trains and tests on label 1 alone. Here 1 (or more than 0.5) is matched, and the observed
               rejections, 0, are kept as mismatches. Without the column (as in its jobrec.yaml) every row is a match.
    direct     Which side acted first. It is counted in the report and not used: the label is about both sides. In the
               zhilian files it is drawn by chance, and rows with label 0 were thrown away when the files were made.

A file of matches only needs ``negatives`` (popularity or random). A row whose seeker or job has no document is an
error, or is dropped and counted with ``on_bad: drop``. Rows of one document must follow one another.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from girl_recbole.atomic import DatasetFiles, iter_docs, read_table
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.prepare.report import Report
from girl_recbole.prepare.stages import assign_stages, check_shares, one_row_a_pair, stage_frames, write_dataset
from girl_recbole.prepare.tables import BadRows, choose_rule

__all__ = ["PjfConfig", "prepare"]


@dataclass(frozen=True)
class PjfConfig:
    raw: str | None
    negatives: str | None
    negatives_per_positive: int
    stage_shares: list
    on_bad: str
    max_seekers: int | None
    seed: int


def prepare(files: DatasetFiles, config: PjfConfig) -> dict:
    """Read the three files in the folder ``config.raw``; write the dataset; return the report."""
    started = time.monotonic()
    check_shares(config.stage_shares)
    report = Report("pjf")
    inter, udoc, idoc = _sources(config)
    with_cv = _ids(udoc, report)
    with_jd = _ids(idoc, report)
    pairs = _pairs(inter, with_cv, with_jd, config, report)
    seekers = np.array(sorted(set(pairs["user_id"])), dtype=object)
    if config.max_seekers is not None and len(seekers) > config.max_seekers:
        report.add("dropped", "seekers beyond max_seekers", len(seekers) - config.max_seekers)
        seekers = np.random.default_rng(config.seed).permutation(seekers)[: config.max_seekers]
        pairs = pairs[pairs["user_id"].isin(set(seekers))]
    frames = stage_frames(
        pairs,
        assign_stages(seekers, config.stage_shares, config.seed),
        report,
        rule=choose_rule(pairs, config.negatives, inter, report),
        per_positive=config.negatives_per_positive,
        seed=config.seed,
    )
    used = set(seekers)
    return write_dataset(
        files,
        frames,
        ((user, text) for user, text in iter_docs(udoc) if user in used and text.strip()),
        ((job, text) for job, text in iter_docs(idoc) if text.strip()),
        report,
        config=asdict(config),
        seed=config.seed,
        inputs=[inter, udoc, idoc],
        wall_time_s=time.monotonic() - started,
    )


def _sources(config: PjfConfig) -> tuple[Path, Path, Path]:
    if not config.raw:
        raise ConfigError("raw: name the folder with NAME.inter, NAME.udoc and NAME.idoc (--raw=FOLDER).")
    folder = Path(config.raw)
    found = sorted(folder.glob("*.inter"))
    if len(found) != 1:
        raise DataError(f"{folder}: {len(found)} .inter files; exactly one is required.")
    paths = found[0], found[0].with_suffix(".udoc"), found[0].with_suffix(".idoc")
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{folder}: no {' and no '.join(missing)}; the texts of both sides are required.")
    return paths


def _ids(path: Path, report: Report) -> set[str]:
    ids, empty = set(), 0
    for key, text in iter_docs(path):
        if text.strip():
            ids.add(key)
        else:
            empty += 1
    report.add("read", f"documents of {path.name}", len(ids) + empty)
    report.add("dropped", f"{path.name}: without text", empty)
    return ids


def _pairs(inter: Path, with_cv: set[str], with_jd: set[str], config: PjfConfig, report: Report) -> pd.DataFrame:
    table = read_table(inter, required=("user_id",))
    job = next((name for name in ("item_id", "job_id") if name in table), None)
    if job is None:
        raise DataError(f"{inter}: no column item_id or job_id; it has {', '.join(table.columns)}.")
    report.add("read", f"rows of {inter.name}", len(table))
    for column in ("direct", "direction"):
        if column in table:
            for value, count in table[column].astype(str).value_counts().sort_index().items():
                report.add("read", f"rows with {column} {value} (not used)", count)
    bad = BadRows(config.on_bad, report)
    usable = table["user_id"].isin(with_cv)
    bad.add_many("of a seeker without a document", table["user_id"][~usable])
    known = table[job].isin(with_jd)
    bad.add_many("for a job without a document", table[job][usable & ~known])
    usable &= known
    out = pd.DataFrame({"user_id": table["user_id"], "item_id": table[job], "label": 1.0})
    if "label" in table:
        label = pd.to_numeric(table["label"], errors="coerce")
        valid = label.between(0, 1)
        bad.add_many("with a label outside 0 to 1", table["label"][usable & ~valid])
        out["label"] = label.gt(0.5).astype(float)
        usable &= valid
    else:
        report.note(matched="every row: the file has no label")
    if "timestamp" in table:
        out["timestamp"] = pd.to_numeric(table["timestamp"], errors="coerce")
        bad.add_many("without a time", table["timestamp"][usable & out["timestamp"].isna()])
        usable &= out["timestamp"].notna()
    bad.settle(inter, len(table))
    return one_row_a_pair(out[usable], report)
