"""`girl align`: three stages and the JDs by one command, with the keys of each stage going where they belong."""

import sys

import pytest
import test_reward
from test_reward import cv_of
from test_sft import TINY

from girl_recbole import cli
from girl_recbole.atomic import read_docs, read_generated, write_docs, write_interactions, write_users
from girl_recbole.manifest import read_manifest

QUICK = {
    **TINY, "sft_epochs": 2, "sft_sample_jds": 0, "reward_epochs": 2, "reward_sampled": 0, "reward_learning_rate": 3e-3,
    "ppo_iterations": 2, "ppo_critic_warmup": 1, "ppo_batch_size": 4, "ppo_sample_jds": 1, "max_jd_tokens": 32,
}  # fmt: skip


@pytest.fixture
def girl(tmp_path, monkeypatch, capsys):
    """Call the command line in a folder with the dataset ``toy``; returns (exit code, what it printed, its errors)."""
    files = test_reward.dataset(tmp_path / "dataset", seekers=48)
    docs = read_docs(files.udoc) | {f"r{i}": cv_of(500 + i) for i in range(8)}
    write_docs(files.udoc, docs.items(), "user")
    write_users(files.stage("rl"), [f"r{i}" for i in range(8)])
    import pandas as pd

    write_interactions(files.inter, pd.DataFrame({"user_id": ["u1", "u2"], "item_id": "nurse", "label": [1.0, 0.0]}))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["girl", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return code, said.out, said.err

    call.files = files
    return call


def test_one_command_trains_all_stages_and_writes_the_jds(girl, tmp_path):
    keys = [f"--{key}={value}" for key, value in QUICK.items()]
    code, out, err = girl("align", "toy", "--start_generator=first", "--generator=aligned", *keys)
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("---")] == [
        f"--- girl {stage} toy" for stage in ("sft", "reward", "ppo", "generate")
    ]
    saved = tmp_path / "saved" / "toy"
    assert {path.name for path in saved.iterdir() if path.is_dir()} == {"first", "reward", "aligned"}
    assert read_manifest(saved / "aligned")["config"]["start_generator"] == "first"
    assert list(read_generated(girl.files.gdoc("aligned"))) == ["u1", "u2"]
    code, out, _ = girl("align", "toy", "--start_generator=first", "--generator=aligned", *keys)
    assert code == 0
    assert out.count("reused") == 4  # nothing is done twice


def test_a_key_that_no_stage_knows_is_refused_before_anything_is_done(girl, tmp_path):
    code, _, err = girl("align", "toy", "--ppo_iteration=3")
    assert code == 2
    assert "unknown key 'ppo_iteration' - did you mean 'ppo_iterations'" in err
    assert not (tmp_path / "saved").exists()
