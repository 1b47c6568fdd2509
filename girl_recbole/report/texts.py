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
_FIGURES = {"reward": "reward", "true_probability": "true probability of a match"}
_JOB = {"score": "cosine", "model": "model", "true_probability": "true probability", "answer": "answer"}
_SKILLS = {
    "shared": "skills of the CV and the JD",
    "invented": "skills of the JD alone",
    "missing": "skills of the CV alone",
}


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
        jds = [jd if isinstance(jd, dict) else {"text": jd} for jd in listed(one.get("jds"))]
        jobs = [job for job in listed(one.get("found")) if isinstance(job, dict)]
        generators.append(
            {
                "name": str(one.get("generator") or ""),
                "figures": _figures(one, _FIGURES),
                "jds": [
                    (str(jd.get("text") or ""), _figures(jd, _FIGURES if len(jds) > 1 else {}), _skills(jd))
                    for jd in jds
                ],
                "found": [
                    (
                        str(job.get("item_id")),
                        str(job.get("title") or ""),
                        _figures(job, _JOB),
                        _reasons(job.get("why")),
                    )
                    for job in jobs
                ],
            }
        )
    cv = said.get("cv")
    block = Block("case", str(said.get("seeker") or ""), [cv if isinstance(cv, str) else "", generators])
    return Section("case", "One seeker", [block])


def _figures(of: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, figure) of those that are there; an answer in words."""
    figures = [(name, key, of.get(key)) for key, name in names.items()]
    answers = {0: "mismatched", 1: "matched"}
    return [
        (name, answers.get(value, brief(value)) if key == "answer" else _figure(value))
        for name, key, value in figures
        if value is not None
    ]


def _skills(jd: Mapping[str, Any]) -> list[str]:
    """What the JD names of the CV, invents and leaves out; occupation and level as a reader finds them."""
    skills = jd.get("skills") if isinstance(jd.get("skills"), dict) else {}
    said = [f"{name}: {', '.join(map(brief, listed(skills[key])))}" for key, name in _SKILLS.items() if skills.get(key)]
    return said + [f"{key}: {jd[key]}" for key in ("occupation", "level", "problem") if jd.get(key)]


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
