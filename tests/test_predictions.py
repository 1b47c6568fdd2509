"""Predictions of valid and test in a file, calibrated metrics of RecBole's models, curves, and an unread test part."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score
from tiny_market import LABELED, make_market

from girl_recbole import predictions
from girl_recbole.errors import DataError
from girl_recbole.run import run_experiment


def _run(tmp_path, model, **more):
    make_market(tmp_path)
    folders = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "results_file": None}
    read_test = more.pop("read_test", True)
    return run_experiment(model, "tiny", overrides={**LABELED, **folders, **more}, read_test=read_test)


def test_predictions_are_those_of_the_checkpoint_and_give_the_metrics(tmp_path):
    row = _run(tmp_path, "NeuMF", predictions_folder=str(tmp_path / "kept"), epochs=30, learning_rate=0.02)
    parts = predictions.load(row["predictions"])
    assert {name: len(part["user"]) for name, part in parts.items()} == {"valid": 48, "test": 48}
    test = parts["test"]
    keys = list(zip(test["user"], test["item"], strict=True))
    assert keys == sorted(keys)
    same_profession = np.array([int(user[1:]) % 2 == int(item[1:]) % 2 for user, item in keys])
    assert (test["label"] == same_profession).all()
    assert roc_auc_score(test["label"], test["probability"]) == pytest.approx(row["test"]["auc"], abs=1e-4)
    assert row["calibrated"]["auc"] == pytest.approx(row["test"]["auc"], abs=1e-4)  # the order is the same
    assert row["calibrated"]["logloss"] == pytest.approx(log_loss(test["label"], test["probability"]), rel=1e-6)


def test_a_ranking_model_of_recboles_gets_probabilities(tmp_path):
    sampled = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    kept = str(tmp_path / "kept")
    row = _run(
        tmp_path, "BPR", train_neg_sample_args=sampled, metrics=["AUC"], predictions_folder=kept, epochs=20
    )  # fmt: skip
    p = predictions.load(row["predictions"])["valid"]
    assert ((p["probability"] > 0) & (p["probability"] < 1)).all()
    assert p["probability"].mean() == pytest.approx(p["label"].mean(), abs=0.02)


def test_scores_of_any_size_and_probabilities_are_both_calibrated():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    labels = rng.random(20_000) < expit(truth)
    for given in (3 * truth + 5, expit(3 * truth)):
        valid, test = predictions.calibrated(given[:10_000], labels[:10_000], given[10_000:])
        assert np.abs(valid - expit(truth[:10_000])).max() < 0.05
        assert np.abs(test - expit(truth[10_000:])).max() < 0.05
    changed = predictions.calibrated(expit(truth[:900]), labels[:900], np.array([0.2, 0.9, 1.01]))[1]
    alone = predictions.calibrated(expit(truth[:900]), labels[:900], np.array([0.2, 0.9]))[1]
    assert changed[:2] == pytest.approx(alone)  # validation alone decides how scores are read
    beyond = np.array([-40.0, -0.1, 0.0, 0.5, 1.0, 1.1, 2.0, 500.0])  # small scores in validation, others in test
    ordered = predictions.calibrated(expit(truth[:900]), labels[:900], beyond)[1]
    assert (np.diff(ordered) > 0).all()
    one_class = predictions.calibrated(truth[:100], np.ones(100), truth[100:102])
    assert one_class[1] == pytest.approx([101 / 102] * 2)


def test_nothing_is_computed_on_an_unread_test_part(tmp_path):
    row = _run(tmp_path, "NeuMF", read_test=False, predictions_folder=str(tmp_path / "kept"))
    assert row["test"] is row["predictions"] is row["calibrated"] is row["oracle"] is None
    assert not (tmp_path / "kept").exists()
    assert row["valid"]["auc"] > 0


def test_curves_have_a_point_an_epoch(tmp_path):
    row = _run(tmp_path, "NeuMF", epochs=4, learning_rate=0.02)
    assert len(row["curve"]["train_loss"]) == 4
    assert row["curve"]["train_loss"][0] > row["curve"]["train_loss"][-1] > 0
    assert [epoch for epoch, _ in row["curve"]["valid"]] == [0, 1, 2, 3]
    assert max(score for _, score in row["curve"]["valid"]) == pytest.approx(row["valid"]["auc"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"gone.npz: no such file of predictions; set predictions_folder"):
        predictions.load(tmp_path / "gone.npz")
