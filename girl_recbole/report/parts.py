"""What the sections of a report are made of, and the small steps that all of them take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from girl_recbole.comparison import mean_and_half
from girl_recbole.report.charts import Mark
from girl_recbole.report.runs import Group, Run, Runs, number
from girl_recbole.report.tables import Cell, Column, Table, mean_cell

__all__ = ["Block", "Section"]

METRICS = {
    "auc": Column("AUC", "high", about="area under the ROC curve of the labelled test pairs"),
    "labeledgauc": Column("GAUC", "high", about="AUC within each seeker, averaged by pairs"),
    "logloss": Column("LogLoss", "low", about="in nats"),
    "ece": Column("ECE", "low", about="expected calibration error"),
}
"""The metrics of the main table, in its order."""

COUNTS = ("seekers", "jobs", "candidates", "pairs", "matched")
"""Keys that say how much was measured, and measure nothing."""

EXPLAINED = "Mean ± half of the 95 % t-interval over seeds; the mean alone where they all agree."
ONE_SEED = "n = 1: one seed, so no interval."
STUDIES = {
    "table": "Results",
    "data_control": "Controls of the data",
    "generation_number": "Number of generated JDs",
    "data_size": "Size of the training data",
}
ROW = Column("Row", text=True)
SEEDS = Column("Seeds")

_NAMES = {"recall": "Recall", "precision": "Precision", "hit": "Hit", "ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}
_SMALLER = {"logloss", "ece", "rmse", "mae", "averagepopularity", "giniindex"}
_NEITHER = {"priorentropy"}


@dataclass(frozen=True)
class Block:
    """What is neither a table nor a chart. ``kind``: head, text, list, grid (of charts), fold (folded away) or case."""

    kind: str
    text: str = ""
    items: Sequence[Any] = ()


@dataclass(frozen=True)
class Section:
    """One section of the page: ``name`` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Any]
    about: str = ""

    def tables(self) -> Iterator[tuple[str, Table]]:
        """All tables with the heading that they stand under."""
        head = ""
        for block in self.blocks:
            if block.kind == "head":
                head = block.text
            for inner in block.items if block.kind == "fold" else [block]:
                if inner.kind == "table":
                    yield head, inner


def places(runs: Runs) -> Iterator[tuple[str, Group]]:
    """(heading, label -> runs) of each dataset and split of each study that is a table of models."""
    for study in runs.studies():
        for (dataset, split), group in runs.groups(study).items():
            yield f"{dataset}, {split}" + of_study(study), group


def of_study(study: str) -> str:
    """What a heading says of a study; nothing of the main table."""
    return "" if study == "table" else f" ({study_title(study).lower()})"


def study_title(study: str) -> str:
    return STUDIES.get(study) or title_of(study)


def title_of(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:] if len(text) > 1 else text


def slug(name: str) -> str:
    """An anchor; the names of the other sections never start so."""
    return "study-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def span(values: Sequence[float]) -> str:
    """``300`` or ``290 to 310``; a mean of counts with one decimal."""
    return " to ".join(distinct(f"{value:,.{int(value != int(value))}f}" for value in (min(values), max(values))))


def listed(value: Any) -> list:
    return value if isinstance(value, list) else []


def metric_names(group: Group) -> list[str]:
    """All metrics of the test part, in the order of the file."""
    return distinct(name for runs in group.values() for run in runs for name in run.metrics)


def is_ranked(name: str) -> bool:
    """Whether one value of this metric is better than another."""
    return name not in _NEITHER


def smaller_is_better(name: str) -> bool:
    return name.split("@")[0] in _SMALLER


def column_of(name: str) -> Column:
    if name in METRICS:
        return METRICS[name]
    head, at, k = name.partition("@")
    return Column(_NAMES.get(head, head) + at + k, "low" if smaller_is_better(name) else "high" * is_ranked(name))


def values_of(runs: Iterable[Run], name: str) -> list[float | None]:
    return [run.metrics.get(name) for run in runs]


def numbers_of(entries: Iterable[Mapping[str, Any]], name: str) -> list[float | None]:
    return [number(entry.get(name)) for entry in entries]


def best_labels(name: str, values: Mapping[str, Sequence[float | None]]) -> set[str]:
    """The labels with the best mean, of those that have one; nobody where only one has."""
    means = {}
    for label, every in values.items():
        known = [value for value in every if value is not None]
        if known:
            means[label] = sum(known) / len(known)
    if len(means) < 2 or not is_ranked(name):
        return set()
    top = (min if smaller_is_better(name) else max)(means.values())
    return {label for label, mean in means.items() if mean == top}


def plain_mean(values: Sequence[float | None], form: str) -> Cell:
    """The mean alone."""
    known = [value for value in values if value is not None]
    return Cell(f"{sum(known) / len(known):{form}}", sum(known) / len(known)) if known else Cell()


def mark_of(values: Sequence[float | None], series: int = 1) -> tuple[Mark | None, str]:
    """The dot and the interval of values over seeds, and what they say; None of none."""
    known = [value for value in values if value is not None]
    if not known:
        return None, ""
    _, mean, low, high = point_of(0.0, known)
    return Mark(mean, low, high, series), mean_cell(known).text


def point_of(x: float, values: Sequence[float]) -> tuple[float, float, float | None, float | None]:
    """(x, mean, low, high) of values over seeds."""
    mean, half = mean_and_half(values)
    return (x, mean, None, None) if half is None else (x, mean, mean - half, mean + half)


def over_seeds(rows: Iterable[Sequence[Cell]]) -> str:
    """What a table of means says below it."""
    several = any(" ± " in cell.text or cell.about.startswith("the same in") for row in rows for cell in row)
    return EXPLAINED if several else ONE_SEED


def metric_table(found: Mapping[str, Sequence[Mapping[str, Any]]], caption: str) -> Table | None:
    """A row a label, a column a metric, from one mapping a run; counts are said below. None where there is nothing."""
    found = {label: [one for one in each if one] for label, each in found.items()}
    found = {label: each for label, each in found.items() if each}
    every = [one for each in found.values() for one in each]
    names = [name for name in distinct(name for one in every for name in one) if name not in COUNTS]
    names = [name for name in names if any(value is not None for value in numbers_of(every, name))]
    if not names:
        return None
    best = {name: best_labels(name, {key: numbers_of(each, name) for key, each in found.items()}) for name in names}
    rows = []
    for label, each in found.items():
        cells = [mean_cell(numbers_of(each, name), best=label in best[name]) for name in names]
        rows.append([Cell(label), *cells, Cell(str(len(each)), len(each))])
    counts = []
    for name in COUNTS:
        known = [value for value in numbers_of(every, name) if value is not None]
        counts += [f"{name}: {span(known)}"] if known else []
    note = over_seeds(rows)
    note += f" {'; '.join(counts).capitalize()}." if counts else ""
    return Table(caption, [ROW, *map(column_of, names), SEEDS], rows, notes=[note])
