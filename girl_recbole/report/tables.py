"""Tables of a report, and how they are written in Markdown and in LaTeX (booktabs).

A table is data: columns, rows of cells, rows at the foot (prior, oracle) that no sorting moves. A cell has the text
that is shown and the number that it is sorted by. ``page.html`` writes the same tables in HTML; every writer escapes
text for its own language, so that no label of a row can break out of its cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from girl_recbole.comparison import mean_and_half

__all__ = ["Cell", "Column", "Table", "latex_text", "markdown_text", "mean_cell", "minus", "to_latex", "to_markdown"]

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~#])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "≤": r"$\le$",
    "≥": r"$\ge$", "→": r"$\to$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "—": "---", "…": r"\ldots{}",
    "’": "'", "\u00a0": "~", "\n": " ", "\t": " ", "[": "{[}", "]": "{]}",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """``text`` as shown; ``value`` to sort by (the text itself where it is None); ``best`` of its column."""

    text: str = ""
    value: float | None = None
    best: bool = False
    about: str = ""


@dataclass(frozen=True)
class Column:
    """``better``: "high", "low" or "" where neither is; ``text`` columns are set left."""

    name: str
    better: str = ""
    text: bool = False
    about: str = ""

    @property
    def head(self) -> str:
        return self.name + {"high": " ↑", "low": " ↓"}.get(self.better, "")


@dataclass(frozen=True)
class Table:
    """``rows`` and ``foot``: cells in the order of ``columns``; the first cell of a row is its head."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    notes: Sequence[str] = field(default=())
    kind: str = "table"


def mean_cell(values: Sequence[float | None], form: str = ".4f", best: bool = False) -> Cell:
    """``mean ± half`` of the 95 % t-interval over seeds, the mean alone of one or equal ones; an empty cell of none."""
    known = [value for value in values if value is not None]
    if not known:
        return Cell()
    mean, half = mean_and_half(known)
    about = f"{len(known)} of {len(values)} runs have it" if len(known) < len(values) else ""
    if not half:
        alone = "one seed: no interval" if half is None else f"the same in {len(known)} runs"
        return Cell(minus(f"{mean:{form}}"), mean, best, "; ".join(filter(None, (alone, about))))
    return Cell(f"{minus(f'{mean:{form}}')} ± {half:{form.replace('+', '')}}", mean, best, about)


def minus(text: str) -> str:
    """A minus sign in place of a hyphen before a number; no sign before a number that is shown as zero."""
    text = text.replace("-", "−")
    return text[1:] if text[:1] in "+−" and not text[1:].strip("0.") else text


def to_markdown(table: Table) -> str:
    """A GitHub table with its caption above and its notes below."""
    lines = [f"**{markdown_text(table.caption)}**", ""]
    lines.append(_line(markdown_text(column.head) for column in table.columns))
    lines.append(_line("---" if column.text else "---:" for column in table.columns))
    for row in table.rows:
        lines.append(_line(_starred(cell, "**") if cell.best else markdown_text(cell.text) for cell in row))
    for row in table.foot:
        lines.append(_line(_starred(cell, "*") if not n else markdown_text(cell.text) for n, cell in enumerate(row)))
    for note in table.notes:
        lines += ["", markdown_text(note)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""A ``table`` environment for ``\usepackage{booktabs}``."""
    places = "".join("l" if column.text else "r" for column in table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    lines += [_row(latex_text(column.head) for column in table.columns), r"\midrule"]
    for row in table.rows:
        lines.append(
            _row(rf"\textbf{{{latex_text(cell.text)}}}" if cell.best else latex_text(cell.text) for cell in row)
        )
    lines += [r"\midrule"] if table.foot and table.rows else []
    for row in table.foot:
        lines.append(
            _row(rf"\emph{{{latex_text(c.text)}}}" if not n else latex_text(c.text) for n, c in enumerate(row))
        )
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def markdown_text(text: str) -> str:
    """``text`` on one line, with nothing in it that Markdown or HTML would read."""
    line = _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def latex_text(text: str) -> str:
    """``text`` with nothing in it that LaTeX would read. Letters beyond Latin-1 need XeLaTeX or LuaLaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _starred(cell: Cell, stars: str) -> str:
    return f"{stars}{markdown_text(cell.text)}{stars}" if cell.text.strip() else ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
