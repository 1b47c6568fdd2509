"""The command line ``girl``: values by their types, messages that name commands, reports that fit a screen."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from girl_recbole import cli, generate
from girl_recbole.atomic import DatasetFiles, write_interactions
from girl_recbole.manifest import read_manifest, write_manifest


@pytest.fixture
def files(tmp_path) -> DatasetFiles:
    files = DatasetFiles(tmp_path / "toy", "toy")
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", float(n % 3 == 0)) for u in range(60) for n, i in enumerate(rng.permutation(25)[:6])]
    write_interactions(files.inter, pd.DataFrame(rows, columns=["user_id", "item_id", "label"]))
    return files


def girl(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["girl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_split_by_the_command_line(files, tmp_path, monkeypatch, capsys):
    assert girl(monkeypatch, "split", "toy", f"--data_path={tmp_path}", "--split=cold", "--split_suffix=1",
                "--split_ratio=0.8,0.1,0.1") == 0  # fmt: skip
    assert read_manifest(files.split("cold-1", "train"))["config"]["split_ratio"] == [0.8, 0.1, 0.1]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    (head,) = [n for n, line in enumerate(lines) if line.split() == ["first", "second", "seekers", "jobs", "pairs"]]
    assert lines[head - 1].strip() == "overlap"
    assert lines[head + 1].split()[:3] == ["train", "valid", "0"]


def test_an_unknown_key_names_the_command(files, tmp_path, monkeypatch, capsys):
    assert girl(monkeypatch, "split", "toy", "--data-path", tmp_path, "--split_sed=1") == 2
    said = capsys.readouterr().err
    assert "girl split (its keys: girl keys split): unknown key 'split_sed' - did you mean 'split_seed'" in said
    assert "SplitConfig" not in said


def test_generate_takes_the_limits_of_the_training_unless_told(files, tmp_path, monkeypatch):
    folder = generate.generator_folder(str(tmp_path / "saved"), "toy", "sft")
    folder.mkdir(parents=True)
    trained = {"max_cv_tokens": 1024, "max_jd_tokens": 512, "prompt_language": "zh", "lm_dtype": "bf16"}
    write_manifest(folder, "generator", config={**trained, "seed": 5})
    seen = []
    monkeypatch.setattr(generate, "generate", lambda files, config: seen.append(config) or {})
    arguments = ("generate", "toy", "--data-path", tmp_path, f"--saved_folder={tmp_path / 'saved'}")
    assert girl(monkeypatch, *arguments) == 0
    assert {key: getattr(seen[0], key) for key in trained} == trained
    assert seen[0].seed == 2020
    (tmp_path / "mine.yaml").write_text("lm_dtype: fp16\n")
    assert girl(monkeypatch, *arguments, "--max_jd_tokens=99", "--config", tmp_path / "mine.yaml") == 0
    assert (seen[1].max_jd_tokens, seen[1].lm_dtype, seen[1].max_cv_tokens) == (99, "fp16", 1024)
    assert json.dumps(seen[1].gen_stages) == '["recommendation"]'


@pytest.mark.parametrize("stage", [*cli._STAGES, "sweep"])
def test_the_help_of_a_stage_says_where_its_settings_are_listed(stage, monkeypatch, capsys):
    assert girl(monkeypatch, stage, "--help") == 0
    assert f"girl keys {stage}" in " ".join(capsys.readouterr().out.split())
    assert girl(monkeypatch, "keys", stage) == 0
    assert capsys.readouterr().out.startswith("--")
