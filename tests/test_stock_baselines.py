"""RecBole's NeuMF and LightGCN beside our models: labelled pairs on datasets of ours, RecBole's own task elsewhere."""

import pytest
from tiny_market import make_market

from girl_recbole.recbole_config import Config
from girl_recbole.run import run_experiment

QUICK = {"epochs": 2, "show_progress": False, "state": "error", "results_file": None}


@pytest.fixture
def market(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_market(tmp_path / "dataset", "jobrec-sim")


@pytest.mark.parametrize("model", ["NeuMF", "LightGCN"])
def test_on_a_dataset_of_ours_they_are_tested_on_labelled_pairs_and_calibrated(market, model):
    row = run_experiment(model, "jobrec-sim", overrides=QUICK)
    assert row["config"]["eval_args"]["mode"] == {"valid": "labeled", "test": "labeled"}
    assert row["split"] == "warm"
    assert 0 <= row["test"]["auc"] <= 1
    assert set(row["calibrated"]) == {"auc", "logloss", "labeledgauc", "ece"}
    assert row["calibrated"]["auc"] == pytest.approx(row["test"]["auc"], abs=2e-3)
    assert row["calibrated"]["logloss"] < 1


def test_elsewhere_they_are_what_recbole_makes_them(market, tmp_path):
    make_market(tmp_path / "dataset", "other")
    for model in ("NeuMF", "LightGCN"):
        config = Config(model, "other", arguments=())
        assert config["eval_args"]["mode"] == {"valid": "full", "test": "full"}
        assert config["train_neg_sample_args"]["distribution"] == "uniform"
