"""Write docs/configuration.md from the comments of the property files: ``python tools/write_configuration.py``."""

from pathlib import Path

from girl_recbole.config import documented_keys, properties_file

_HEAD = """# Configuration reference

Made by `python tools/write_configuration.py` from the files in `properties/`, where the defaults live.

Order, later wins: RecBole's own defaults < `properties/overall.yaml` < the model's or generator's file < the dataset's
< your files (`--config FILE` of `girl`, `--config_files "a.yaml b.yaml"` of `run_recbole`) < `--key=value`. An unknown
key is refused with a suggestion. Values are read as literals (`3`, `1e-3`, `[1, 2]`, `true`, `null`); all else is a
plain string, and nothing is ever evaluated as code. RecBole's own keys are described in RecBole's documentation.
"""


def render() -> str:
    """The whole page."""
    root = properties_file("overall.yaml").parent
    pages = [("Every stage and all our models", "overall.yaml")]
    pages += [(f"`{path.relative_to(root)}`", str(path.relative_to(root))) for path in sorted(root.glob("*/*.yaml"))]
    parts = [_HEAD]
    for title, relative in pages:
        rows = [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in documented_keys(relative)]
        if rows:
            parts.append(
                "\n".join([f"## {title}\n", "| key | default | (type, unit) meaning |", "|---|---|---|", *rows, ""])
            )
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).resolve().parents[1].joinpath("docs", "configuration.md").write_text(render(), encoding="utf-8")
