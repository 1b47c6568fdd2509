"""Intervals, paired differences and their correction: against known answers and by simulation."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from girl_recbole import comparison
from girl_recbole.comparison import holm, paired_difference
from girl_recbole.errors import DataError


def _run(rng, quality: float, n: int = 400) -> dict:
    label = rng.random(n) < 0.4
    user = np.array([f"u{i // 4}" for i in range(n)])
    return {"user": user, "label": label, "probability": quality * label + rng.random(n)}


def test_difference_finds_a_planted_one_and_no_other():
    rng = np.random.default_rng(1)
    good = [_run(rng, 0.5) for _ in range(5)]
    bad = [{**run, "probability": rng.random(400)} for run in good]
    found = paired_difference(good, bad, replicates=300)
    expected = np.mean([
        roc_auc_score(a["label"], a["probability"]) - roc_auc_score(b["label"], b["probability"])
        for a, b in zip(good, bad, strict=True)
    ])  # fmt: skip
    assert found.mean == pytest.approx(expected)
    assert 0 < found.low < found.mean < found.high
    assert (found.above, found.seeds) == (5, 5)
    assert found.p < 0.01
    none = paired_difference(good, good, replicates=50)
    assert (none.mean, none.low, none.high, none.p) == (0, 0, 0, 1)
    other = paired_difference(bad, good, replicates=300)
    assert (other.mean, other.low, other.p) == pytest.approx((-found.mean, -found.high, found.p))


def test_equal_models_are_found_different_no_more_often_than_the_level():
    """Two noises on one fixed test set, five seeds that share it: a t-test over seeds would reject nearly always."""
    draws, rejected, outside = 200, 0, 0
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        test = _run(rng, 0.3, 200)
        one, two = rng.random(200), rng.random(200)
        noise = [0.05 * rng.random(200) for _ in range(5)]
        a = [{**test, "probability": test["probability"] + one + n} for n in noise]
        b = [{**test, "probability": test["probability"] + two + n} for n in noise]
        found = paired_difference(a, b, replicates=200)
        rejected += found.p < 0.05
        outside += not found.low <= 0 <= found.high
    assert rejected <= 18  # of 200 at the level .05: 10 expected, 18 once in a hundred tries
    assert outside <= 20


def test_seeds_that_differ_in_their_training_alone_are_no_effect_either():
    """Both models are the truth with noise drawn anew for each seed: nothing but the seeds differs."""
    rejected = 0
    for draw in range(150):
        rng = np.random.default_rng(1000 + draw)
        tests = [_run(rng, 0.3, 200) for _ in range(5)]
        a, b = ([{**t, "probability": t["probability"] + rng.random(200)} for t in tests] for _ in range(2))
        rejected += paired_difference(a, b, replicates=200).p < 0.05
    assert rejected <= 15


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_trainings_of_uneven_luck_are_no_effect(seeds):
    """Each training of either model has a quality of its own, far apart: what counts is the number of seeds."""
    rejected, draws = 0, 200
    for draw in range(draws):
        rng = np.random.default_rng(5000 + draw)
        test = _run(rng, 0.3, 240)
        a, b = (
            [{**test, "probability": rng.normal(0.5, 0.25) * test["label"] + rng.random(240)} for _ in range(seeds)]
            for _ in range(2)
        )
        rejected += paired_difference(a, b, replicates=100).p < 0.05
    assert rejected <= 18  # 10 expected


def test_one_training_has_an_interval_and_no_p():
    rng = np.random.default_rng(1)
    good = _run(rng, 0.5)
    found = paired_difference([good], [{**good, "probability": rng.random(400)}], replicates=200)
    assert 0 < found.low < found.mean < found.high
    assert np.isnan(found.p)
    assert found.seeds == 1


def test_replicates_are_those_of_any_block(monkeypatch):
    rng = np.random.default_rng(1)
    good = [_run(rng, 0.5) for _ in range(3)]
    bad = [{**run, "probability": rng.random(400)} for run in good]
    whole = paired_difference(good, bad, replicates=50)
    monkeypatch.setattr(comparison, "_WEIGHTS", 4 * 400)
    assert paired_difference(good, bad, replicates=50) == whole


def test_holm_by_hand_and_against_the_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    rng = np.random.default_rng(0)
    some = sum(min(holm(rng.random(10))) < 0.05 for _ in range(2000))
    assert some / 2000 == pytest.approx(0.05, abs=0.015)  # at most one false finding in 20 families


def test_a_test_part_of_a_handful_of_seekers_is_refused():
    run = {"user": np.array(["a", "b"]), "label": np.array([True, False]), "probability": np.array([0.6, 0.4])}
    with pytest.raises(DataError, match="replicates have one class only: the test pairs are too few"):
        paired_difference([run], [run], replicates=200)


def test_predictions_of_other_pairs_are_refused():
    rng = np.random.default_rng(0)
    a, b = _run(rng, 0.5), _run(rng, 0.5)
    with pytest.raises(DataError, match=r"not of the same pairs \(label differs: 400 and 400 rows\)"):
        paired_difference([a], [b])
    with pytest.raises(DataError, match="1 and 2 seeds"):
        paired_difference([a], [a, a])
