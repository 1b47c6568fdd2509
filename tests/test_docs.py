"""Every command in the README and in docs/ runs, in the order in which a reader meets it.

The commands of the ```bash blocks of a page run in one folder, where a small market stands under the name of the
shipped one. To fit in a test, each command gets the extra arguments of ``_SMALLER``. A block that cannot run here says
why, in a comment above it: ``<!-- not run: ... -->``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from girl_recbole.config import documented_keys, properties_file

_ROOT = Path(__file__).resolve().parents[1]
_PAGES = sorted([_ROOT / "README.md", *_ROOT.glob("docs/*.md"), *_ROOT.glob("docs/results/*.md")])
_BLOCK = re.compile(r"(<!-- not run: [^>]+-->\n)?```bash\n(.*?)```", re.DOTALL)
_TINY = ["--tiny_width=32", "--tiny_layers=1", "--tiny_heads=2", "--tiny_kv_heads=1", "--tiny_vocab_size=700"]
_SHORT = ["--max_jd_tokens=24"]
_SMALLER = {
    "girl simulate": ["--seekers=80", "--jobs=60"],
    "girl sft": [*_TINY, "--sft_epochs=1", "--sft_sample_jds=2"],
    "girl reward": ["--reward_epochs=1", "--max_pairs_per_cv=1"],
    "girl ppo": ["--ppo_iterations=2", "--ppo_critic_warmup=1", "--ppo_batch_size=8", "--ppo_sample_jds=1", *_SHORT],
    "girl grpo": ["--grpo_iterations=1", "--grpo_cvs=2", "--grpo_group=2", "--grpo_minibatch=4", *_SHORT],
    "girl dpo": ["--dpo_epochs=1", "--max_pairs_per_cv=1"],
    "girl generate": _SHORT,
    "run_recbole": ["--epochs=1", "--show_progress=false", "--state=warning"],
}
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def _commands(page: Path) -> list[str]:
    blocks = [match for match in _BLOCK.finditer(page.read_text(encoding="utf-8")) if not match[1]]
    lines = [line for match in blocks for line in match[2].replace("\\\n", " ").splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_to_files(page):
    dead = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not dead


def test_readme_names_the_command_that_ci_runs():
    ci = (_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    set_up = 'python3 -m venv .venv && . .venv/bin/activate && pip install -q -c constraints.txt -e ".[test]"'
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    assert set_up in ci
    assert readme.count(set_up) == 2  # the main job, and the tests


def test_every_property_has_type_and_meaning():
    folder = properties_file("overall.yaml").parent
    for path in [folder / "overall.yaml", *folder.glob("model/*.yaml"), *folder.glob("generator/*.yaml")]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\w+:", line)]
        assert lines
        assert len(lines) == len(documented_keys(str(path.relative_to(folder)))), path


def test_configuration_page_is_current():
    sys.path.insert(0, str(_ROOT / "tools"))
    try:
        from write_configuration import render
    finally:
        sys.path.pop(0)
    page = (_ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run `python tools/write_configuration.py`"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a small market called jobrec-sim: split, with a generator and its JDs."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "girl simulate jobrec-sim",
            "girl split jobrec-sim --split=warm",
            "girl split jobrec-sim --split=cold",
            "girl sft jobrec-sim",
            "girl generate jobrec-sim",
            "girl embed jobrec-sim",
        ):
            _do(command, folder, patch)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in _PAGES if _commands(page)], ids=lambda page: page.name)
def test_commands_run(page, workshop, monkeypatch, capfd):
    monkeypatch.chdir(workshop)
    for command in _commands(page):
        _do(command, workshop, monkeypatch)


def _do(command: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run one line as a shell would; our own commands in this process, which saves their imports."""
    words = shlex.split(command)
    kind = " ".join(words[:2]) if words[0] == "girl" else words[0]
    words += _SMALLER.get(kind, [])
    if words[0] == "run_recbole":
        from girl_recbole.run import main

        assert main(words[1:]) == 0, command
    elif words[0] == "girl":
        from girl_recbole import cli

        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, command
    else:
        assert words[0] in ("python", "cat", "head"), f"{command}: not one of the commands that this test knows"
        words[0] = sys.executable if words[0] == "python" else words[0]
        subprocess.run(words, cwd=folder, check=True, timeout=300)


def test_own_data_in_ten_lines(tmp_path, monkeypatch):
    """The README's recipe for one's own tables, on tables made here."""
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    recipe = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe, encoding="utf-8")
    settings = yaml.safe_load(recipe)
    assert settings["cvs"].endswith(".csv")
    topics = ("welding steel", "nursing care", "python code")
    people = [f"p{i},I know {topics[i % 3]} and did it for {i} years" for i in range(60)]
    (tmp_path / settings["cvs"]).write_text("\n".join(["id,text", *people]) + "\n", encoding="utf-8")
    jobs = [f"j{i},We seek someone for {topics[i % 3]} in team {i}" for i in range(30)]
    (tmp_path / settings["jobs"]).write_text("\n".join(["id,text", *jobs]) + "\n", encoding="utf-8")
    answers = [
        f"p{p},j{(p * 7 + k) % 30},{'hired' if (p - p * 7 - k) % 3 == 0 else 'rejected'},2024-0{1 + k}-{1 + p % 28:02d}"
        for p in range(60)
        for k in range(6)
    ]
    table = "\n".join(["seeker,job,answer,date", *answers]) + "\n"
    (tmp_path / settings["feedback"]).write_text(table, encoding="utf-8")
    commands = re.search(r"own data.*?```bash\n(.*?)```", readme, re.DOTALL | re.IGNORECASE)[1]
    for line in commands.splitlines():
        _do(line.split(" #")[0].strip(), tmp_path, monkeypatch)
    assert (tmp_path / "results.jsonl").exists()
