"""Sections about generated texts: judges of pairs of generators, and one seeker with his JDs and jobs.

They are read from the files of ``girl judge`` (judge.py says what the figures are) and ``girl case`` (case.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from girl_recbole.report import charts
from girl_recbole.report.charts import Chart
from girl_recbole.report.parts import Block, Section, distinct, listed, numbers_of, title_of
from girl_recbole.report.runs import brief, number
from girl_recbole.report.tables import Cell, Column, Table, minus

__all__ = ["case", "judge"]

_VERDICTS = ("win", "tie", "lose", "invalid")
_NOTE = (
    "Shares of the verdicts on seekers, seen from A. Advantage: wins minus losses, with the 95 % bootstrap interval "
    "over seekers."
)


def judge(said: Mapping[str, Any]) -> Section:
    entries = [one for one in listed(said.get("judges")) if isinstance(one, dict)]
    if not entries:
        return Section("judge", "Judges", [Block("text", "The judges' file has no verdicts.")])
    more = [name for name in ("position_bias", "says_a") if any(v is not None for v in numbers_of(entries, name))]
    text = [Column(name, text=True) for name in ("Judge", "Criterion", "A", "B")]
    figures = [Column(name) for name in ("Win", "Tie", "Lose", "Invalid", "Advantage of A", "95 % interval", "n")]
    rows, bars = [], []
    for one in entries:
        name, criterion, a, b = (str(one.get(key) or "") for key in ("judge", "criterion", "a", "b"))
        shares = [number(one.get(key)) for key in _VERDICTS]
        adv, low, high = (number(one.get(key)) for key in ("adv", "low", "high"))
        interval = "" if low is None or high is None else f"[{minus(f'{low:+.3f}')}, {minus(f'{high:+.3f}')}]"
        advantage = "" if adv is None else minus(f"{adv:+.3f}")
        extra = [_share(value) for value in (number(one.get(key)) for key in more)]
        head = [Cell(text) for text in (name, criterion, a, b)]
        rows.append(
            [*head, *map(_share, shares), Cell(advantage, adv), Cell(interval, low), _cell(one.get("n")), *extra]
        )
        if any(shares):
            names = (f"{a} wins", "tie", f"{b} wins", "invalid")
            parts = [
                (share or 0.0, f"{what}: {100 * (share or 0.0):.1f} %")
                for what, share in zip(names, shares, strict=True)
            ]
            which = name if criterion in ("", name) else f"{name}, {criterion}"
            bars.append((f"{which}: {a} against {b}", parts, f"{advantage} {interval}".strip()))
    columns = [*text, *figures, *(Column(title_of(name)) for name in more)]
    blocks: list[Any] = [Table("Verdicts on pairs of generators", columns, rows, notes=[_NOTE])]
    if bars:
        legend = [(-1, "A wins"), (-2, "tie"), (-3, "B wins"), (-4, "invalid")]
        blocks.append(Chart("Wins, ties and losses; at the end the advantage of A", charts.shares(bars), legend))
    for key, caption in (("scores", "Scores of judges that give one"), ("agreement", "Agreement between judges")):
        tables = _listing(said.get(key), caption)
        long = bool(tables) and len(tables[0].rows) > 12
        blocks += [Block("fold", caption, tables)] if long else tables
    return Section("judge", "Judges", blocks)


def case(said: Mapping[str, Any]) -> Section:
    generators = []
    for one in (one for one in listed(said.get("generators")) if isinstance(one, dict)):
        figures = {"reward": "reward", "true_probability": "true probability of a match"}
        jobs = [job for job in listed(one.get("found")) if isinstance(job, dict)]
        generators.append(
            {
                "name": str(one.get("generator") or ""),
                "jds": [text for text in listed(one.get("jds")) if isinstance(text, str)],
                "figures": [(name, _figure(one[key])) for key, name in figures.items() if one.get(key) is not None],
                "found": [
                    (str(job.get("item_id")), _figure(job.get("score")), _reasons(job.get("why"))) for job in jobs
                ],
            }
        )
    cv = said.get("cv")
    block = Block("case", str(said.get("seeker") or ""), [cv if isinstance(cv, str) else "", generators])
    return Section("case", "One seeker", [block])


def _listing(entries: Any, caption: str) -> list[Table]:
    """A list of flat objects as a table, whatever their keys are."""
    entries = [one for one in listed(entries) if isinstance(one, dict)]
    names = distinct(name for one in entries for name in one)
    numeric = {name for name in names if any(value is not None for value in numbers_of(entries, name))}
    columns = [Column(title_of(name), text=name not in numeric) for name in names]
    return [Table(caption, columns, [[_cell(one.get(name)) for name in names] for one in entries])] if names else []


def _share(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f} %", value)


def _cell(value: Any) -> Cell:
    known = number(value)
    if known is None:
        return Cell("" if value is None else brief(value))
    return Cell(f"{known:,.0f}" if isinstance(value, int) else minus(f"{known:.4f}"), known)


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    return "" if value is None else brief(value) if number(value) is None else minus(f"{value:.4g}")


def _reasons(why: Any) -> list[str]:
    return [brief(reason) for reason in (why if isinstance(why, list) else [] if why is None else [why])]
