"""Sections about one row at a time: groups of seekers, fairness, calibration, training curves, search of settings.

calibration   pairs of all seeds of a row together, in as many bins as its ECE has
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from girl_recbole.metrics import ece
from girl_recbole.report import charts
from girl_recbole.report.charts import Chart, Mark, Series, Track
from girl_recbole.report.parts import (
    COUNTS,
    METRICS,
    ROW,
    Block,
    Section,
    best_labels,
    column_of,
    distinct,
    listed,
    mark_of,
    numbers_of,
    over_seeds,
    places,
    plain_mean,
    span,
    title_of,
)
from girl_recbole.report.predicted import read_test
from girl_recbole.report.runs import Group, Run, Runs, brief, mapping, number, plural
from girl_recbole.report.tables import Cell, Column, Table, mean_cell

__all__ = ["calibration", "curves", "every_run", "fairness", "groups", "tuning"]

_SWAPS = {"swap": "Swapped attributes", "regenerated": "Swapped attributes, the JD written anew"}
_SWAP_COLUMNS = {
    "told": "CVs that tell it",
    "seekers": "Seekers",
    "pairs": "Pairs",
    "mean_abs_change": "Mean |change|",
    "mean_change": "Mean change",
    "largest_change": "Largest change",
}


# ------------------------------------------------------------------------------------------------- groups and fairness


def groups(runs: Runs) -> Section | None:
    blocks: list[Any] = []
    for where, group in places(runs):
        found = {label: [_by_group(run) for run in each] for label, each in group.items()}
        kinds = distinct(by for each in found.values() for one in each for by, _ in one)
        shown = [block for by in kinds for block in _grouped(where, by, found)]
        blocks += [Block("head", where), *shown] if shown else []
    about = "AUC of the test pairs of each group of seekers: a pair is compared with pairs of its own group alone."
    return Section("groups", "Groups of seekers", blocks, about) if blocks else None


def _by_group(run: Run) -> dict[tuple[str, str], Mapping[str, Any]]:
    entries = [one for one in listed(run.row.get("groups")) if isinstance(one, dict)]
    return {(str(one.get("by")), str(one.get("group"))): one for one in entries}


def _grouped(where: str, by: str, found: Mapping[str, Sequence[Mapping[tuple[str, str], Mapping]]]) -> list[Any]:
    names = distinct(name for each in found.values() for one in each for kind, name in one if kind == by)
    if len(names) < 2:  # all pairs are of one group
        return []

    def of(label: str, name: str, metric: str) -> list[float]:
        values = numbers_of((one.get((by, name), {}) for one in found[label]), metric)
        return [value for value in values if value is not None]

    title, shown = title_of(by).lower(), {name: name.replace("_", " ") for name in names}
    best = {name: best_labels("auc", {label: of(label, name, "auc") for label in found}) for name in names}
    rows, full, tracks = [], [], []
    for label in found:
        cells = [mean_cell(of(label, name, "auc"), best=label in best[name]) for name in names]
        rows += [[Cell(label), *cells]] if any(cell.text for cell in cells) else []
        marks = []
        for series, name in enumerate(names, start=1):
            figures = [mean_cell(of(label, name, metric)) for metric in ("auc", "logloss", "ece")]
            pairs = plain_mean(of(label, name, "pairs"), ",.0f")
            full += [[Cell(label), Cell(shown[name]), pairs, *figures]] if any(cell.text for cell in figures) else []
            mark, said = mark_of(of(label, name, "auc"), series)
            marks += [Mark(mark.x, mark.low, mark.high, series, f"{label}, {name}: {said}")] if mark else []
        if marks:
            gap = max(mark.x for mark in marks) - min(mark.x for mark in marks)
            tracks.append(Track(label, marks, f"gap {gap:.4f}"))
    sizes = {name: [n for label in found for n in of(label, name, "pairs")] for name in names}
    said = "; ".join(f"{shown[name]}: {span(pairs)}" for name, pairs in sizes.items() if pairs)
    notes = [over_seeds(rows) + (f" Pairs: {said}." if said else "")]
    columns = [ROW, Column("Group", text=True), Column("Pairs"), *map(column_of, ("auc", "logloss", "ece"))]
    folded = Table(f"AUC, LogLoss and ECE by {title}, {where}", columns, full, notes=[over_seeds(full)])
    fold = Block("fold", f"All numbers by {title}", [folded])
    if not rows or len(names) > charts.SERIES:  # no AUC, or too many for a column and a mark each
        return [fold] if full else []
    columns = [ROW, *(Column(f"AUC, {shown[name]}", "high") for name in names)]
    legend = [(k, shown[name]) for k, name in enumerate(names, start=1)]
    chart = Chart(f"AUC by {title}", charts.tracks(tracks, "AUC"), legend)
    return [Table(f"AUC by {title}, {where}", columns, rows, notes=notes), chart, fold]


def fairness(runs: Runs) -> Section | None:
    blocks: list[Any] = []
    for where, group in places(runs):
        found = {label: [mapping(run.row.get("fairness")) for run in each] for label, each in group.items()}
        shown: list[Any] = []
        for key, title in _SWAPS.items():
            shown += _swaps(f"{title}, {where}", found, key, ("attribute",))
        ways = _swaps(
            f"Swapped attributes by direction, {where}", found, "directions", ("attribute", "jd", "direction")
        )
        shown += [Block("fold", "By direction", ways)] if ways else []
        shown += _gaps(where, found)
        blocks += [Block("head", where), *shown] if shown else []
    about = (
        "Swaps: the same CVs with one attribute exchanged; how much the predicted probability of a pair changes, and "
        "the share of swaps after which a seeker's first k jobs are others. Gaps: the largest AUC of an attribute's "
        "groups minus the smallest; by chance: the mean gap when seekers are dealt to the groups at random."
    )
    return Section("fairness", "Fairness", blocks, about) if blocks else None


def _swaps(
    caption: str, found: Mapping[str, Sequence[Mapping[str, Any]]], key: str, heads: Sequence[str]
) -> list[Table]:
    """One kind of entries of ``fairness``: a row a label and what ``heads`` say, over seeds."""
    swaps: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for label, each in found.items():
        for swap in (swap for one in each for swap in listed(one.get(key)) if isinstance(swap, dict)):
            swaps.setdefault((label, *(str(swap.get(head) or "") for head in heads)), []).append(swap)
    present = distinct(name for each in swaps.values() for one in each for name in one)
    names = [name for name in _SWAP_COLUMNS if name in present] + [
        name for name in present if name.startswith("flips@")
    ]
    if not names:
        return []
    rows = []
    for head, each in swaps.items():
        values = {name: numbers_of(each, name) for name in names}
        cells = [plain_mean(values[name], ",.0f") if name in COUNTS else mean_cell(values[name]) for name in names]
        rows.append([*map(Cell, head), *cells])
    better = {"mean_abs_change": "low", "largest_change": "low", **{name: "low" for name in names if "flips" in name}}
    columns = [ROW, *(Column(title_of(head), text=True) for head in heads)]
    columns += [Column(_SWAP_COLUMNS.get(name, title_of(name)), better.get(name, "")) for name in names]
    return [Table(caption, columns, rows, notes=[over_seeds(rows)])]


def _gaps(where: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Any]:
    """From ``auc_gaps`` (with what chance gives and the groups), or from ``auc_gap`` alone."""
    each_gap: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for label, each in found.items():
        for one in each:
            entries = [gap for gap in listed(one.get("auc_gaps")) if isinstance(gap, dict)]
            entries = entries or [{"by": by, "gap": gap} for by, gap in mapping(one.get("auc_gap")).items()]
            for gap in entries:
                if number(gap.get("gap")) is not None:
                    each_gap.setdefault((label, str(gap.get("by"))), []).append(gap)
    if not each_gap:
        return
    rows, tracks = [], {}
    attributes = distinct(by for _, by in each_gap)
    for (label, by), gaps in each_gap.items():
        values, chance, p = (numbers_of(gaps, name) for name in ("gap", "chance", "p"))
        known = [value for value in p if value is not None]
        rare = (
            Cell(f"{sum(value < 0.05 for value in known)} of {len(known)}", sum(known) / len(known))
            if known
            else Cell()
        )
        groups = ", ".join(distinct(f"{gap['largest']} − {gap['smallest']}" for gap in gaps if "largest" in gap))
        rows.append([Cell(label), Cell(title_of(by).lower()), mean_cell(values), mean_cell(chance), rare, Cell(groups)])
        mark, said = mark_of(values, 1 + attributes.index(by))
        title = f"{label}, {title_of(by).lower()}: {said}"
        tracks.setdefault(label, []).append(Mark(mark.x, mark.low, mark.high, mark.series, title))
    columns = [
        ROW,
        Column("Attribute", text=True),
        Column("Gap in AUC", "low"),
        Column("By chance"),
        Column("Seeds with p < 0.05", about="the gap against those of groups dealt at random"),
        Column("Groups", text=True),
    ]
    used = [k for k, _ in enumerate(columns) if k < 3 or any(row[k].text for row in rows)]
    rows = [[row[k] for k in used] for row in rows]
    yield Table(f"Gaps in AUC between groups, {where}", [columns[k] for k in used], rows, notes=[over_seeds(rows)])
    if len(attributes) <= charts.SERIES:
        drawn = charts.tracks([Track(label, marks) for label, marks in tracks.items()], "gap in AUC", zero=True)
        legend = [(k, title_of(by).lower()) for k, by in enumerate(attributes, start=1)]
        yield Chart("Gaps in AUC between groups", drawn, legend)


# --------------------------------------------------------------------------------- calibration, curves, settings, runs


def calibration(runs: Runs) -> Section | None:
    blocks: list[Any] = []
    for where, group in places(runs):
        drawn = [chart for label, each in group.items() for chart in _reliability(label, each)]
        blocks += [Block("head", where), Block("grid", "small", drawn)] if drawn else []
    about = (
        "Share of matched test pairs against predicted probability, pairs of all seeds together. On the dashed line a "
        "probability means what it says. The bars count the pairs of each bin; a dot's area does so too."
    )
    return Section("calibration", "Calibration", blocks, about) if blocks else None


def _reliability(label: str, runs: Sequence[Run]) -> Iterator[Chart]:
    parts = [part for run in runs if (part := read_test(run, ("label", "probability"))) is not None]
    if not parts:
        return
    p = np.concatenate([part["probability"] for part in parts]).astype(np.float64)
    y = np.concatenate([part["label"] for part in parts]).astype(np.float64)
    bins = int(number(runs[0].config.get("ece_bins")) or 10)
    about = f"ECE {ece(p, y, bins):.4f}, {plural(len(p), 'pair')}, {plural(len(parts), 'seed')}"
    yield Chart(label, charts.reliability(charts.bins_of(p, y, bins), bins), wide=False, about=about)


def curves(runs: Runs) -> Section | None:
    blocks: list[Any] = []
    for where, group in places(runs):
        drawn = _training(group)
        blocks += [Block("head", where), Block("grid", items=drawn)] if drawn else []
    about = (
        "Above: the metric of validation that early stopping goes by, with the best epoch marked, on one axis for all "
        "rows. Below: training loss, on an axis of its own. A line is a seed."
    )
    return Section("curves", "Training curves", blocks, about) if blocks else None


def _training(group: Group) -> list[Chart]:
    found: dict[str, tuple[str, list[Series], list[Series]]] = {}
    for label, runs in group.items():
        lines = [(run, *_curve(run)) for run in runs]
        upper = [_validated(f"{label}, seed {run.seed}", run, valid) for run, valid, _ in lines if valid]
        lower = [Series(f"{label}, seed {run.seed}", loss, 2, dots=False) for run, _, loss in lines if loss]
        if upper or lower:
            found[label] = (str(runs[0].config.get("valid_metric") or "metric").split("@")[0], upper, lower)
    heights: dict[str, list[float]] = {}
    for name, upper, _ in found.values():
        heights.setdefault(name, []).extend(point[1] for one in upper for point in one.points)
    drawn = {
        label: charts.two_panels(upper, lower, "epoch", (f"{name}, valid", "train loss"), heights[name])
        for label, (name, upper, lower) in found.items()
    }
    return [Chart(label, html, wide=False) for label, html in drawn.items()]


def _curve(run: Run) -> tuple[list[tuple], list[tuple]]:
    """Points of validation and of training loss; what is no number is left out."""
    curve = mapping(run.row.get("curve"))
    pairs = [pair for pair in listed(curve.get("valid")) if isinstance(pair, list) and len(pair) == 2]
    valid = [(number(epoch), number(value)) for epoch, value in pairs]
    loss = [(float(epoch), number(value)) for epoch, value in enumerate(listed(curve.get("train_loss")))]
    return tuple([(x, y, None, None) for x, y in line if x is not None and y is not None] for line in (valid, loss))


def _validated(name: str, run: Run, points: Sequence[tuple]) -> Series:
    sign = -1 if run.config.get("valid_metric_bigger") is False else 1
    best = max(points, key=lambda point: sign * point[1])
    return Series(name, points, dots=False, best=best[:2])


def tuning(runs: Runs) -> Section | None:
    rows = []
    for where, group in places(runs):
        for label, each in group.items():
            for said in distinct(json.dumps(mapping(run.row.get("tuning")), sort_keys=True) for run in each):
                search = json.loads(said)
                trials, space, best = (search.get(key) for key in ("trials", "space", "best"))
                if search:
                    rows.append(
                        [
                            Cell(label),
                            Cell(where),
                            plain_mean([number(trials)], ",.0f"),
                            Cell(_said(space)),
                            Cell(_said(best)),
                        ]
                    )
    if not rows:
        return None
    text = [Column(name, text=True) for name in ("Row", "Data", "Searched", "Best on validation")]
    columns = [*text[:2], Column("Trials"), *text[2:]]
    about = "How many settings were tried for a row, among which, and what the validation part chose."
    table = Table("Settings searched, by row", columns, rows)
    return Section("tuning", "Search of settings", [Block("fold", "What was searched", [table])], about)


def _said(value: Any) -> str:
    return brief(value) if value not in (None, {}, []) else "the shipped settings"


def every_run(runs: Runs) -> Section:
    names = [name for name in METRICS if any(name in run.metrics for run in runs.runs)]
    text = [Column(name, text=True) for name in ("Row", "Study", "Dataset", "Split", "Commit", "Time (UTC)")]
    columns = [*text[:4], Column("Seed"), *map(column_of, names), Column("Training, s", "low"), *text[4:]]
    rows = []
    for run in runs.runs:
        stamp, commit = str(run.row.get("timestamp") or ""), str(run.row.get("commit") or "")
        head = [run.label, run.study + _varied(run), run.dataset, run.drawn_split]
        figures = [mean_cell([run.metrics.get(name)]) for name in names]
        seconds = plain_mean([number(mapping(run.row.get("time_s")).get("train"))], ",.1f")
        tail = [Cell(commit[:12]), Cell(stamp[:19].replace("T", " "))]
        rows.append([*map(Cell, head), Cell(run.seed, number(run.row["seed"])), *figures, seconds, *tail])
    table = Table("Every run that the tables are made of", columns, rows)
    return Section("runs", "Every run", [Block("fold", plural(len(rows), "run"), [table])])


def _varied(run: Run) -> str:
    return "".join(f", {key} {brief(value)}" for key, value in mapping(run.row.get("varied")).items())
