"""Two processes on CPUs, for real: RecBole's models and ours, by RecBole's entry point and by ours."""

import json
import re
from pathlib import Path

import pytest
from test_plugin import run_python
from tiny_market import LABELED, make_market

RANKING = {"load_col": {"inter": ["user_id", "item_id"]}, "topk": [3], "valid_metric": "MRR@3"}
SHORT = {"epochs": 3, "show_progress": False, "state": "info", "train_batch_size": 32}


@pytest.fixture
def market(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_market(tmp_path / "dataset")


def test_recboles_run_by_name_from_a_string_of_code(market, tmp_path):
    """A spawned worker imports nothing of the caller's code; it still knows our Config and gloo."""
    settings = {**RANKING, **SHORT}
    code = f"""
        if __name__ == "__main__":
            import json, girl_recbole
            from recbole.quick_start import run
            result = run("LightGCN", "tiny", config_dict={settings!r}, nproc=2, port="{_port()}")
            print(json.dumps(dict(result["test_result"])))
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads(done.stdout.splitlines()[-1])["mrr@3"] <= 1
    assert len(list(Path("saved").glob("LightGCN-*.pth"))) == 1  # both ranks mean the same file
    (name,) = set(re.findall(r"saved/LightGCN-\S+\.pth", done.stderr + done.stdout))
    assert Path(name).exists()


def test_our_command_with_batch_statistics_and_calibration(market, tmp_path):
    """DeepFM has dropout and batch norm in its MLP; TinyLogits is trained by our trainer and calibrated."""
    settings = {**LABELED, **SHORT, "learning_rate": 0.05}
    code = f"""
        import girl_recbole, tiny_models
        from girl_recbole.compat import load_checkpoint
        from girl_recbole.run import run_experiment
        if __name__ == "__main__":
            import json
            settings = {settings!r}
            deep = run_experiment("DeepFM", "tiny", overrides={{**settings, "epochs": 1}}, nproc=2)
            tiny = run_experiment(tiny_models.TinyDDP, "tiny", overrides=settings, nproc=2)
            state = load_checkpoint(tiny["checkpoint"])

            from recbole.data import create_dataset, data_preparation
            from recbole.utils import get_trainer
            config = state["config"]
            loaders = data_preparation(config, create_dataset(config))
            net = tiny_models.TinyDDP(config, loaders[0]._dataset)
            trainer = get_trainer(None, "TinyDDP")(config, net)
            alone = [trainer.evaluate(part, model_file=tiny["checkpoint"]) for part in loaders[1:]]
            print(json.dumps([deep["nproc"], deep["test"], [tiny["valid"], tiny["test"]], alone, tiny["prior"],
                              state["state_dict"]["platt"].tolist()]))
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    nproc, deep, tiny, alone, prior, platt = json.loads(done.stdout.splitlines()[-1])
    assert nproc == 2
    assert tiny == alone  # one process evaluating the same checkpoint, to the last digit
    assert set(deep) == set(tiny[1]) == {"auc", "logloss", "ece", "priorentropy", "labeledgauc"}
    assert platt != [1, 0]
    assert prior["auc"] == 0.5
    assert len(Path("results.jsonl").read_text().splitlines()) == 2
    assert len(list(Path("saved").glob("TinyDDP-*.pth"))) == 1


@pytest.mark.slow
def test_an_error_in_the_workers_is_one_message(market, tmp_path):
    file = tmp_path / "labeled.yaml"
    file.write_text(json.dumps(LABELED))
    market.split("warm", "test").write_text("user_id:token\titem_id:token\tlabel:float\n")
    code = "import sys; from girl_recbole.run import main; sys.exit(main())"
    done = run_python(code, tmp_path, "--model=NeuMF", "--dataset=tiny", f"--config_files={file}", "--nproc=2")
    assert done.returncode == 2
    assert "run_recbole: tiny.warm.test.inter: 0 pairs are left for test" in done.stderr


def _port() -> int:
    from girl_recbole.run import _free_port

    return _free_port()
