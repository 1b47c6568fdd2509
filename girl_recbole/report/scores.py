"""Sections about test metrics: main tables, paired differences, ranking, cold start, studies against a number.

paired differences   AUC of each row minus that of the reference row on the same test pairs, from the files of
                     predictions: mean, 95 % interval, p, and p by Holm's correction for all rows of that
                     table (comparison.py). Seeds that only one of the two has are left out
planned comparisons  the same figures for the pairs that a benchmark names beforehand, as its file has them
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from girl_recbole.comparison import Difference, holm, mean_and_half, paired_difference
from girl_recbole.errors import DataError
from girl_recbole.report import charts
from girl_recbole.report.charts import Chart, Mark, Series, Track
from girl_recbole.report.parts import (
    EXPLAINED,
    METRICS,
    ONE_SEED,
    ROW,
    SEEDS,
    STUDIES,
    Block,
    Section,
    best_labels,
    column_of,
    distinct,
    is_ranked,
    mark_of,
    metric_names,
    metric_table,
    of_study,
    over_seeds,
    places,
    plain_mean,
    point_of,
    slug,
    smaller_is_better,
    study_title,
    title_of,
    values_of,
)
from girl_recbole.report.predicted import read_test
from girl_recbole.report.runs import KINDS, Group, Run, Runs, mapping, number, plural
from girl_recbole.report.tables import Cell, Column, Table, mean_cell, minus

__all__ = ["cold_start", "differences", "planned", "ranking", "results", "studies"]

_KINDS = {"llm": "language model", "girl": "GIRL"}
_COSTS = (
    Column("Parameters", "low", about="numbers that are trained"),
    Column("Training, s", "low"),
    Column("Memory, MB", "low", about="largest resident memory of the process, data included"),
)
_DIFFERENCE = (
    Column("Difference", "high"),
    Column("95 % interval"),
    Column("p", "low"),
    Column("p, Holm", "low", about="corrected for all comparisons of the table"),
    Column("Seeds above 0", "high"),
)
_DIFFERENCE_ABOUT = (
    "Both rows on the same test pairs of the same seeds: mean over seeds, 95 % interval over seeds and seekers, p, and "
    "p by Holm's correction for all comparisons of a table. One seed has no p, as it cannot tell a model from luck."
)
_AXES = {"n_generated": "generated JDs a seeker, n", "train_share": "share of the training pairs"}


# ------------------------------------------------------------------------------------------------------- main results


def results(runs: Runs) -> Iterator[Section]:
    for study in runs.studies():
        blocks: list[Any] = []
        for (dataset, split), group in runs.groups(study).items():
            where = f"{dataset}, {split}{of_study(study)}"
            blocks += [Block("head", f"{dataset}, {split}"), _main_table(where, group), *_intervals(where, group)]
        yield Section("results" if study == "table" else slug(study), study_title(study), blocks)


def _main_table(where: str, group: Group) -> Table:
    present = metric_names(group)
    names = [name for name in METRICS if name in present] or [name for name in present if is_ranked(name)]
    best = {name: best_labels(name, {key: values_of(each, name) for key, each in group.items()}) for name in names}
    rows = []
    for label, each in group.items():
        cells = [mean_cell(values_of(each, name), best=label in best[name]) for name in names]
        rows.append([Cell(label), *cells, Cell(str(len(each)), len(each)), *_costs(each)])
    foot = []
    for reference in ("prior", "oracle"):
        values = _reference(group, reference)
        if values:
            cells = [mean_cell([value[name] for value in values if name in value]) for name in names]
            foot.append([Cell(reference), *cells, Cell(str(len(values)), len(values)), *[Cell()] * len(_COSTS)])
    columns = [ROW, *map(column_of, names), SEEDS, *_COSTS]
    return Table(f"Test metrics on {where}", columns, rows, foot, [_note(group, names)])


def _costs(runs: Sequence[Run]) -> list[Cell]:
    seconds = [number(mapping(run.row.get("time_s")).get("train")) for run in runs]
    return [
        plain_mean([number(run.row.get("parameters")) for run in runs], ",.0f"),
        plain_mean(seconds, ",.1f"),
        plain_mean([number(run.row.get("peak_memory_mb")) for run in runs], ",.0f"),
    ]


def _note(group: Group, names: Sequence[str]) -> str:
    counts = {len(runs) for runs in group.values()}
    note = EXPLAINED if max(counts) > 1 else ONE_SEED
    note += " Rows with n = 1 seed have no interval." if 1 in counts and max(counts) > 1 else ""
    if "logloss" in names and any(mapping(run.row.get("calibrated")) for runs in group.values() for run in runs):
        note += " RecBole's own models: after Platt scaling on validation, as ours."
    return note + (" Bold: the best mean of a column, which is no test of a difference." if len(group) > 1 else "")


def _intervals(where: str, group: Group) -> Iterator[Chart]:
    """Rows by the first metric of the main table, best first, coloured by kind where a benchmark names kinds."""
    present = metric_names(group)
    name = next((name for name in (*METRICS, *filter(is_ranked, present)) if name in present), None)
    kinds = [kind for kind in KINDS if any(runs[0].kind == kind for runs in group.values())]
    tracks = []
    for label, runs in group.items():
        series = 1 + kinds.index(runs[0].kind) if runs[0].kind in kinds else 1
        mark, said = mark_of(values_of(runs, name), series)
        tracks += [Track(label, [mark], said)] if mark else []
    if not tracks:
        return
    tracks.sort(key=lambda track: track.marks[0].x, reverse=not smaller_is_better(name))
    lines = []
    for reference in ("prior", "oracle"):
        values = [value[name] for value in _reference(group, reference) if name in value]
        if values:
            mean, _ = mean_and_half(values)
            lines.append((mean, f"{reference} {mean:.3f}"))
    column = column_of(name)
    legend = [(k, _KINDS.get(kind, kind)) for k, kind in enumerate(kinds, start=1)] if len(kinds) > 1 else []
    caption = f"{column.name} on {where}, best first"
    if any(mark.low is not None for track in tracks for mark in track.marks):
        caption += ": mean and 95 % interval over seeds"
    yield Chart(caption, charts.tracks(tracks, column.name, lines=lines), legend)


def _reference(group: Group, reference: str) -> list[dict[str, float]]:
    """The prior or the oracle of each seed that has one."""
    found: dict[str, dict[str, float]] = {}
    for runs in group.values():
        for run in runs:
            values = {name: number(value) for name, value in mapping(run.row.get(reference)).items()}
            known = {name: value for name, value in values.items() if value is not None}
            if known:
                found.setdefault(run.seed, known)
    return list(found.values())


# ------------------------------------------------------------------------------------------------- paired differences


def planned(comparisons: Sequence[Mapping[str, Any]]) -> Section:
    """The comparisons that a benchmark names beforehand; their corrected p-values are in the file."""
    blocks: list[Any] = []
    families: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in comparisons:
        families.setdefault((str(one.get("study") or "table"), str(one.get("split") or "")), []).append(one)
    for (study, split), family in families.items():
        rows, tracks = [], []
        where = split if study == "table" else f"{split}, {STUDIES.get(study, study).lower()}"
        for one in family:
            values = {key: number(one.get(key)) for key in ("mean", "low", "high", "above", "seeds")}
            if None in values.values():
                continue
            values["p"], corrected = (math.nan if number(one.get(key)) is None else one[key] for key in ("p", "p_holm"))
            a, b = str(one.get("a")), str(one.get("b"))
            cells, mark, said = _difference(f"{a} − {b}", Difference(**values), corrected)
            rows.append([Cell(a), Cell(b), *cells])
            tracks.append(Track(f"{a} − {b}", [mark], said))
        if rows:
            columns = [ROW, Column("compared with", text=True), *_DIFFERENCE]
            blocks += [
                Block("head", where),
                *_differences(f"Planned differences in AUC, {where}", columns, rows, tracks),
            ]
    about = f"Comparisons that the benchmark names before any result is there. {_DIFFERENCE_ABOUT}"
    return Section("planned", "Planned comparisons", blocks or [Block("text", "The file names no comparison.")], about)


def differences(runs: Runs, reference: str | None) -> Section | None:
    """Every row against ``reference``, by default the first row of kind base, or else the first."""
    blocks: list[Any] = []
    several = [(where, group) for where, group in places(runs) if len(group) > 1]
    for where, group in several:
        base = reference if reference in group else _first_base(group)
        found, problems = _paired(group, base)
        if not found and not problems:
            continue
        rows, tracks = [], []
        for (label, gap), corrected in zip(found.items(), holm([one.p for one in found.values()]), strict=True):
            cells, mark, said = _difference(f"{label} − {base}", gap, corrected)
            rows.append([Cell(label), *cells])
            tracks.append(Track(label, [mark], said))
        tracks.sort(key=lambda track: track.marks[0].x, reverse=True)
        blocks.append(Block("head", where))
        if rows:
            blocks += _differences(f"Difference in AUC to {base}, {where}", [ROW, *_DIFFERENCE], rows, tracks)
        blocks += [Block("list", items=problems)] if problems else []
    if not several:
        return None
    title = "Paired differences"
    if not blocks:
        why = "Not shown: no two rows of a seed have files of predictions. Train with predictions_folder set."
        return Section("differences", title, [Block("text", why)])
    return Section("differences", title, blocks, f"AUC of a row minus AUC of the reference row. {_DIFFERENCE_ABOUT}")


def _first_base(group: Group) -> str:
    return next((label for label, runs in group.items() if runs[0].kind == "base"), next(iter(group)))


def _paired(group: Group, base: str) -> tuple[dict[str, Difference], list[str]]:
    """Label -> its difference to ``base``; and what could not be compared."""
    fields = ("user", "item", "label", "probability")
    references = {run.seed: part for run in group[base] if (part := read_test(run, fields)) is not None}
    found, problems = {}, []
    for label, runs in group.items():
        mine = {run.seed: read_test(run, fields) for run in runs if run.seed in references} if label != base else {}
        seeds = [seed for seed, part in mine.items() if part is not None]
        if not seeds:
            continue
        try:
            found[label] = paired_difference([mine[s] for s in seeds], [references[s] for s in seeds])
        except DataError as error:
            problems.append(f"{label} is not compared: {error}")
    return found, problems


def _difference(title: str, gap: Difference, corrected: float) -> tuple[list[Cell], Mark, str]:
    mean, low, high = (minus(f"{value:+.4f}") for value in (gap.mean, gap.low, gap.high))
    cells = [
        Cell(mean, gap.mean),
        Cell(f"[{low}, {high}]", gap.low),
        Cell(_p(gap.p), _known(gap.p)),
        Cell(_p(corrected), _known(corrected), best=corrected < 0.05),
        Cell(f"{gap.above:.0f} of {gap.seeds:.0f}", gap.above),
    ]
    said = f"{mean} [{low}, {high}]"
    test = "one seed" if math.isnan(gap.p) else f"p {_p(gap.p)}, Holm {_p(corrected)}"
    return cells, Mark(gap.mean, gap.low, gap.high, title=f"{title}: {said}, {test}"), said


def _differences(caption: str, columns, rows, tracks) -> list[Any]:
    note = f"{plural(len(rows), 'comparison')}. Bold: corrected p below 0.05."
    drawn = charts.tracks(tracks, "difference in AUC", zero=True)
    return [Table(caption, columns, rows, notes=[note]), Chart("The same with 95 % intervals", drawn)]


def _known(p: float) -> float | None:
    return None if math.isnan(p) else p


def _p(p: float) -> str:
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


# ---------------------------------------------------------------------------------------------- ranking and cold start


def ranking(runs: Runs) -> Section | None:
    blocks: list[Any] = []
    for where, group in places(runs):
        tables = [*_protocols(where, group), *_other_metrics(where, group)]
        blocks += [Block("head", where), *tables] if tables else []
    return Section("ranking", "Ranking", blocks) if blocks else None


def _protocols(where: str, group: Group) -> Iterator[Table]:
    said = {label: [mapping(run.row.get("ranking")) for run in runs] for label, runs in group.items()}
    for protocol in distinct(name for each in said.values() for one in each for name in one):
        found = {label: [mapping(one.get(protocol)) for one in each] for label, each in said.items()}
        table = metric_table(found, f"{title_of(protocol)}, {where}")
        if table:
            yield table


def _other_metrics(where: str, group: Group) -> Iterator[Table]:
    """Metrics of RecBole's that are not in the main table."""
    if not any(name in METRICS for name in metric_names(group)):
        return
    names = [name for name in metric_names(group) if name not in METRICS and is_ranked(name)]
    found = {label: [{name: run.metrics.get(name) for name in names} for run in runs] for label, runs in group.items()}
    table = metric_table(found, f"Other metrics, {where}")
    if table:
        yield table


def cold_start(runs: Runs) -> Section | None:
    blocks: list[Any] = []
    for study in runs.studies():
        groups = runs.groups(study)
        for (dataset, split), group in groups.items():
            warm = groups.get((dataset, "warm"), {})
            if split.startswith("cold"):
                blocks += _warm_and_cold(f"{dataset}, warm and {split}{of_study(study)}", warm, split, group)
    about = (
        "The same rows where seekers of the test part are known from training (warm), and where they are new (cold)."
    )
    return Section("cold-start", "Cold start", blocks, about) if blocks else None


def _warm_and_cold(where: str, warm: Group, split: str, cold: Group) -> list[Any]:
    rows, tracks = [], []
    for label in [label for label in warm if label in cold]:
        both = [{run.seed: run.metrics["auc"] for run in of[label] if "auc" in run.metrics} for of in (warm, cold)]
        if not all(both):
            continue
        change = [both[1][seed] - both[0][seed] for seed in both[0] if seed in both[1]]
        rows.append([Cell(label), *(mean_cell([*each.values()]) for each in both), mean_cell(change, "+.4f")])
        marks = []
        for series, (name, each) in enumerate(zip(("warm", split), both, strict=True), start=1):
            mark, said = mark_of([*each.values()], series)
            marks.append(Mark(mark.x, mark.low, mark.high, series, f"{label}, {name}: {said}"))
        tracks.append(Track(label, marks, f"{marks[0].x:.4f} → {marks[1].x:.4f}"))
    if not rows:
        return []
    tracks.sort(key=lambda track: track.marks[1].x, reverse=True)
    columns = [
        ROW,
        Column("AUC, warm", "high"),
        Column(f"AUC, {split}", "high"),
        Column(f"{title_of(split)} − warm", "high"),
    ]
    note = f"{over_seeds(rows)} The change: over seeds that both have."
    drawn = charts.tracks(tracks, "AUC")
    return [
        Block("head", where),
        Table(f"AUC on {where}", columns, rows, notes=[note]),
        Chart(f"Best first by {split}", drawn, [(1, "warm"), (2, split)]),
    ]


# ------------------------------------------------------------------------------------------- studies against a number


def studies(runs: Runs) -> Iterator[Section]:
    """AUC against the number that a study varies: generated JDs a seeker, the share of the training pairs."""
    for study, key in runs.axes.items():
        axis = _AXES.get(key, title_of(key).lower())
        found = {
            f"{dataset}, {split}": _by_number(group, key) for (dataset, split), group in runs.groups(study).items()
        }
        found = {where: lines for where, lines in found.items() if lines}
        if not found:
            continue
        drawn = [chart for where, lines in found.items() for chart in _against(where, lines, axis)]
        tables = [_table_against(where, lines, axis) for where, lines in found.items()]
        yield Section(slug(study), study_title(study), [Block("grid", "large", drawn), *tables])


def _by_number(group: Group, key: str) -> dict[str, dict[float, list[float]]]:
    """Label -> number -> AUC over seeds."""
    found: dict[str, dict[float, list[float]]] = {}
    for label, runs in group.items():
        for run in runs:
            at, auc = run.varied(key), run.metrics.get("auc")
            if at is not None and auc is not None:
                found.setdefault(label, {}).setdefault(at, []).append(auc)
    return found


def _against(where: str, found: Mapping[str, Mapping[float, Sequence[float]]], axis: str) -> Iterator[Chart]:
    points = {label: [point_of(x, at[x]) for x in sorted(at)] for label, at in found.items()}
    heights = [y for line in points.values() for point in line for y in point[1:] if y is not None]
    ticks = sorted({x for at in found.values() for x in at})
    names = list(points)
    for start in range(0, len(names), charts.SERIES):
        some = names[start : start + charts.SERIES]
        lines = [Series(name, points[name], k) for k, name in enumerate(some, start=1)]
        drawn = charts.panel(lines, axis, "AUC", ticks, (min(heights), max(heights)))
        yield Chart(where, drawn, list(enumerate(some, start=1)), wide=False)


def _table_against(where: str, found: Mapping[str, Mapping[float, Sequence[float]]], axis: str) -> Table:
    sizes = sorted({x for at in found.values() for x in at})
    rows = [[Cell(label), *(mean_cell(at.get(x, [])) for x in sizes)] for label, at in found.items()]
    columns = [ROW, *(Column(f"{x:,g}", "high") for x in sizes)]
    return Table(f"AUC against {axis}: {where}", columns, rows, notes=[over_seeds(rows)])
