"""``girl report``: one page of tables and charts from results.jsonl, and the same tables in Markdown and LaTeX.

    report(results, output, case=None, judge=None, comparisons=None, markdown=None, latex=None, reference=None,
           order=(), title=None)

results    one or more results.jsonl: rows of ``run_recbole`` and of ``girl benchmark`` (runs.py says which keys)
output     one HTML file that holds its style, its script and its drawings and loads nothing: its Content-Security-
           Policy allows no request, and of scripts and styles only those with the hashes that it names
case       JSON of ``girl case``; judge: JSON of ``girl judge``; comparisons: comparisons.json of ``girl benchmark``
reference  the label of the row that others are compared with; where none is named, the first row of a table that is
           of kind base, or else the first
order      labels in the order of the tables; runs.py says what it is without

Sections stand only where the rows have what they need (sections.py). Text of rows is text: the template escapes all of
it. Markdown and LaTeX have the tables of the page but that of every run. Predictions (.npz) are read from where the
rows say, else beside the results file; a file that is not there is counted in the summary. Every file is written beside
and renamed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from girl_recbole.atomic import atomic_write
from girl_recbole.errors import ConfigError
from girl_recbole.report.runs import read_json, read_runs
from girl_recbole.report.sections import Section, all_sections, facts
from girl_recbole.report.tables import latex_text, markdown_text, to_latex, to_markdown

__all__ = ["report"]

_HERE = Path(__file__).resolve().parent


def report(
    results: Path | Sequence[Path],
    output: Path,
    *,
    case: Path | None = None,
    judge: Path | None = None,
    comparisons: Path | None = None,
    markdown: Path | None = None,
    latex: Path | None = None,
    reference: str | None = None,
    order: Sequence[str] = (),
    title: str | None = None,
) -> dict[str, Any]:
    """Write the report of ``results``; return what was written and how many runs, sections and warnings it has.

    Raises ``DataError`` for a file that has no rows, a line that is not one (and which), and a file of predictions that
    is none; ``ConfigError`` for a reference that is not among the rows.
    """
    paths = [Path(results)] if isinstance(results, str | Path) else [Path(path) for path in results]
    _check_outputs(paths, [path for path in (output, markdown, latex) if path is not None], (case, judge, comparisons))
    runs = read_runs(paths, order)
    sections = all_sections(
        runs,
        reference,
        case=None if case is None else read_json(case, "what `girl case` writes", key="generators"),
        judge=None if judge is None else read_json(judge, "what `girl judge` writes", key="judges"),
        comparisons=None if comparisons is None else read_json(comparisons, "comparisons of `girl benchmark`", list),
    )
    known, warnings = facts(runs, paths), runs.warnings()
    title = title or f"Results on {known[0][1]}"
    files = [Path(output)]
    with atomic_write(files[0]) as file:
        file.write(_page(title, known, warnings, sections))
    if markdown is not None:
        files.append(Path(markdown))
        with atomic_write(files[-1]) as file:
            file.write(_markdown(title, known, warnings, sections))
    if latex is not None:
        files.append(Path(latex))
        with atomic_write(files[-1]) as file:
            file.write(_latex(title, sections))
    return {
        "written": ", ".join(str(path) for path in files),
        "runs": len(runs.runs),
        "sections": ", ".join(section.title for section in sections),
        "warnings": len(warnings),
    }


def _check_outputs(results: Sequence[Path], outputs: Sequence[Path], more: Sequence[Path | None]) -> None:
    """Raise ``ConfigError`` where a file to write is one to read, or two are the same."""
    read = {Path(path).resolve() for path in (*results, *more) if path is not None}
    written = [Path(path).resolve() for path in outputs]
    for path in written:
        if path in read:
            raise ConfigError(f"{path}: is read, so the report cannot be written there; name another file.")
        if written.count(path) > 1:
            raise ConfigError(f"{path}: named for two forms of the report; name a file for each.")


def _page(title: str, known: Sequence[tuple[str, str]], warnings: Sequence[str], sections: Sequence[Section]) -> str:
    import jinja2
    from markupsafe import Markup

    from girl_recbole import __version__
    from girl_recbole.report.charts import swatch

    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title, facts=known, warnings=warnings, sections=sections, version=__version__, swatch=swatch,
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script),
    )  # fmt: skip


def _tabled(sections: Sequence[Section]) -> list[Section]:
    return [section for section in sections if section.name != "runs"]


def _hash(text: str) -> str:
    """As a Content-Security-Policy names the text of an inline element."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _markdown(title, known, warnings, sections: Sequence[Section]) -> str:
    lines = [f"# {markdown_text(title)}", ""]
    lines += [f"- {name}: {markdown_text(value)}" for name, value in known]
    lines += ["", "Before you compare:", "", *(f"- {markdown_text(text)}" for text in warnings)] if warnings else []
    for section in _tabled(sections):
        head = None
        for number, (place, table) in enumerate(section.tables()):
            lines += ["", f"## {markdown_text(section.title)}"] if not number else []
            lines += ["", f"### {markdown_text(place)}"] if place and place != head else []
            lines += ["", to_markdown(table).rstrip()]
            head = place
    return "\n".join(lines) + "\n"


def _latex(title: str, sections: Sequence[Section]) -> str:
    parts = [_comment(title) + "% needs \\usepackage{booktabs}\n"]
    for section in _tabled(sections):
        for number, (_, table) in enumerate(section.tables()):
            parts += [_comment(section.title)] if not number else []
            parts.append(to_latex(table))
    return "\n".join(parts)


def _comment(text: str) -> str:
    return f"% {' '.join(latex_text(text).split())}\n"
