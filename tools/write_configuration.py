"""Write docs/configuration.md from the comments of the property files: ``python tools/write_configuration.py``."""

import json
from pathlib import Path

from girl_recbole.config import documented_keys, load_properties, properties_file

_LONG = 160

_HEAD = """# Configuration reference

Made by `python tools/write_configuration.py` from the files in `properties/`, where the defaults live.

Order, later wins: RecBole's own defaults < `properties/overall.yaml` < the model's or generator's file < the dataset's
< your files (`--config FILE` of `girl`, `--config_files "a.yaml b.yaml"` of `run_recbole`) < `--key=value`. The file of
a generator that you name (`--preset=qwen-0.5b-lora`) comes after the dataset's, which is made for the default. An
unknown key is refused with a suggestion. Values are read as literals (`3`, `1e-3`, `[1, 2]`, `true`, `null`); all else
is a plain string, and nothing is ever evaluated as code. RecBole's own keys are described in RecBole's documentation.
"""


def render() -> str:
    """The whole page."""
    root = properties_file("overall.yaml").parent
    pages = [("Every stage and all our models", "overall.yaml"), ("`girl sweep`: `sweep.yaml`", "sweep.yaml")]
    pages += [(f"`{path.relative_to(root)}`", str(path.relative_to(root))) for path in sorted(root.glob("*/*.yaml"))]
    parts = [_HEAD]
    for title, relative in pages:
        sections = _sections(relative)
        if not any(rows for _, rows in sections):
            continue
        parts.append(f"## {title}\n")
        for heading, rows in sections:
            if rows:
                parts += [f"### {heading}\n"] if heading else []
                parts.append("\n".join(["| key | default | (type, unit) meaning |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def _sections(relative: str) -> list[tuple[str, list[str]]]:
    """(heading, rows of its table) of a property file: a comment after an empty line is a heading."""
    path = properties_file(relative)
    said = {key: (default, meaning) for key, default, meaning in documented_keys(relative)}
    values, before = load_properties(path), "first"
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in path.read_text(encoding="utf-8").splitlines():
        key = line.partition(":")[0]
        if line.startswith("# ") and not before:
            sections.append((line[2:].partition(". ")[0], []))
        elif key in said:
            default, meaning = said[key]
            sections[-1][1].append(f"| `{key}` | {_shown(default, values[key])} | {meaning} |")
        before = line
    return sections


def _shown(default: str, value: object) -> str:
    """The default as it is written; of one that takes several lines, all of it in one where that is short."""
    default = default or json.dumps(value, ensure_ascii=False).replace('"', "")
    return f"`{default}`" if len(default) <= _LONG else "see the file"


if __name__ == "__main__":
    Path(__file__).resolve().parents[1].joinpath("docs", "configuration.md").write_text(render(), encoding="utf-8")
