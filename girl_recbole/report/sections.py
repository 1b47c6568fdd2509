"""All sections of a report in the order of the page, and the facts of its summary.

A section is a pure function of the rows (runs.py) that gives tables (tables.py) and charts (charts.py). One that the
rows have nothing for is None and is left out; one that needs files that are not there is a sentence. Every figure over
seeds is a mean ± half of its 95 % t-interval, of n seeds; of one seed it is the value alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from girl_recbole.errors import ConfigError, some_of, suggest
from girl_recbole.report import details, scores, texts
from girl_recbole.report.parts import Section, distinct, listed
from girl_recbole.report.runs import Runs, brief, mapping, number, plural, seed_order

__all__ = ["all_sections", "facts"]


def all_sections(
    runs: Runs,
    reference: str | None = None,
    *,
    case: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    comparisons: Sequence[Mapping[str, Any]] | None = None,
) -> list[Section]:
    """The sections that the rows and the files beside them have something for."""
    if reference is not None and reference not in runs.labels:
        known = suggest(reference, runs.labels) or "."
        raise ConfigError(f"reference {reference!r}: no such row{known} Rows: {some_of(runs.labels, 8)}.")
    found = [
        *scores.results(runs),
        scores.planned(comparisons) if comparisons is not None else None,
        scores.differences(runs, reference),
        scores.ranking(runs),
        scores.cold_start(runs),
        *scores.studies(runs),
        details.groups(runs),
        details.fairness(runs),
        details.calibration(runs),
        details.curves(runs),
        details.tuning(runs),
        texts.judge(judge) if judge is not None else None,
        texts.case(case) if case is not None else None,
        details.every_run(runs),
    ]
    return [section for section in found if section is not None]


def facts(runs: Runs, paths: Sequence[Path]) -> list[tuple[str, str]]:
    """What the summary says: (name, value)."""
    rows = [run.row for run in runs.runs]
    trained = {  # once where rows of a benchmark are of one training
        row.get("checkpoint") or row.get("predictions") or number: mapping(row.get("time_s"))
        for number, row in enumerate(rows)
    }
    seconds = sum(number(value) or 0.0 for times in trained.values() for value in times.values())
    seeds = sorted({run.seed for run in runs.runs}, key=seed_order)
    machines = distinct(_machine(row["machine"]) for row in rows if isinstance(row.get("machine"), dict))
    said = [
        ("Dataset", ", ".join(distinct(run.dataset for run in runs.runs))),
        ("Splits", ", ".join(distinct(run.split for run in runs.runs))),
        ("Rows", f"{plural(len(runs.labels), 'row')}, {plural(len(runs.runs), 'run')}"),
        ("Seeds", f"{len(seeds)}: {some_of(seeds, 10)}"),
        ("Trained", _days(sorted(str(row["timestamp"]) for row in rows if row.get("timestamp")))),
        ("Computing time", _duration(seconds) if seconds else ""),
        ("Code", some_of(distinct(_commit(str(row["commit"])) for row in rows if row.get("commit")), 4)),
        ("Machine", "; ".join(machines)),
        ("Settings of all rows", ", ".join(f"{key}={brief(value)}" for key, value in runs.shared_settings.items())),
        ("Read from", some_of([path.name for path in paths], 4)),
    ]
    return [(name, value) for name, value in said if value]


def _days(stamps: Sequence[str]) -> str:
    """The first and the last time, the day said once where it is one."""
    if not stamps:
        return ""
    first, last = (stamp[:16].replace("T", " ") for stamp in (stamps[0], stamps[-1]))
    if first == last:
        return f"{first} UTC"
    return f"{first} to {last[11:] if first[:10] == last[:10] else last} UTC"


def _commit(commit: str) -> str:
    return commit.removesuffix("-dirty")[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _machine(machine: Mapping[str, Any]) -> str:
    gpus = ", ".join(map(str, listed(machine.get("gpus")))) or "no GPU"
    return f"{machine.get('cores', '?')} cores of {machine.get('cpu', 'an unnamed CPU')}, {gpus}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
