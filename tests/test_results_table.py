"""The statistics of benchmarks/results_table.py."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from results_table import difference, weighted_auc

sys.path.pop(0)


def test_weighted_auc_is_the_auc_of_repeated_pairs():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 80) / 5, rng.random(80) < 0.4  # many ties
    weight = rng.poisson(1.0, (4, 80)).astype(float)
    for row, auc in zip(weight, weighted_auc(score, label, weight), strict=True):
        repeated = np.repeat(np.arange(80), row.astype(int))
        assert auc == pytest.approx(roc_auc_score(label[repeated], score[repeated]))


def _run(rng, quality: float, n: int = 400) -> dict:
    label = rng.random(n) < 0.4
    user = np.array([f"u{i // 4}" for i in range(n)])
    return {"user": user, "label": label, "probability": quality * label + rng.random(n)}


def test_difference_finds_a_planted_one_and_no_other():
    rng = np.random.default_rng(1)
    good = [_run(rng, 0.5) for _ in range(5)]
    bad = [{**run, "probability": rng.random(400)} for run in good]
    mean, low, high = difference(good, bad, replicates=300)
    expected = np.mean([
        roc_auc_score(a["label"], a["probability"]) - roc_auc_score(b["label"], b["probability"])
        for a, b in zip(good, bad, strict=True)
    ])  # fmt: skip
    assert mean == pytest.approx(expected)
    assert 0 < low < mean < high
    assert difference(good, good, replicates=50) == (0, 0, 0)


def test_interval_covers_zero_for_models_of_equal_worth_about_as_often_as_it_says():
    """Two noises on one fixed test set, five seeds that share it: t-tests over seeds would reject nearly always."""
    covered = 0
    for draw in range(60):
        rng = np.random.default_rng(draw)
        test = _run(rng, 0.3, 200)
        one, two = rng.random(200), rng.random(200)
        noise = [0.05 * rng.random(200) for _ in range(5)]
        a = [{**test, "probability": test["probability"] + one + n} for n in noise]
        b = [{**test, "probability": test["probability"] + two + n} for n in noise]
        _, low, high = difference(a, b, replicates=200)
        covered += low <= 0 <= high
    assert covered >= 50  # 57 of 60 expected
