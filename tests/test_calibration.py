"""Platt scaling: answers by hand, and scikit-learn as the reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from girl_recbole.calibration import fit_platt
from girl_recbole.errors import DataError


def test_two_scores_by_hand():
    """At s = 1 three of four match, at s = -1 one of four: p = target mean there, so a = logit(p), b = 0.

    Targets: y+ = 5/6, y- = 1/6 (4 of each). At s = 1: (3 * 5/6 + 1/6) / 4 = 2/3; at s = -1: 1/3. a = log 2.
    """
    a, b = fit_platt(np.array([1, 1, 1, 1, -1, -1, -1, -1]), np.array([1, 1, 1, 0, 1, 0, 0, 0]))
    assert a == pytest.approx(np.log(2), abs=1e-8)
    assert b == pytest.approx(0, abs=1e-8)


def test_finds_the_true_scale_and_equals_logistic_regression():
    rng = np.random.default_rng(0)
    scores = rng.normal(3.0, 5.0, 50_000)
    labels = (rng.random(50_000) < expit(0.7 * scores - 1.5)).astype(int)
    a, b = fit_platt(scores, labels)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(scores[:, None], labels)
    assert (a, b) == pytest.approx((0.7, -1.5), abs=0.05)
    assert (a, b) == pytest.approx((reference.coef_[0, 0], reference.intercept_[0]), abs=1e-3)


@pytest.mark.parametrize("shift, factor", [(1e4, 1.0), (0.0, 1e6), (-5.0, 1e-6)])
def test_probabilities_do_not_depend_on_the_units_of_the_scores(shift, factor):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=300)
    labels = (rng.random(300) < expit(scores)).astype(int)
    a, b = fit_platt(scores, labels)
    a2, b2 = fit_platt(scores * factor + shift, labels)
    np.testing.assert_allclose(expit(a2 * (scores * factor + shift) + b2), expit(a * scores + b), atol=1e-6)


def test_separable_scores_stay_finite():
    a, b = fit_platt(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([a, b]).all()
    assert 0 < expit(a * -2 + b) < expit(a * 2 + b) < 1


@pytest.mark.parametrize("scores", [[3.0, 2.0, 1.0, 0.0], [5.0, 5.0, 5.0, 5.0]], ids=["wrong way round", "constant"])
def test_slope_is_positive_and_the_rate_is_kept_where_scores_do_not_help(scores):
    labels = np.array([0, 0, 1, 0])
    a, b = fit_platt(np.array(scores), labels)
    assert 0 < a < 1e-3
    # Platt's targets: (1 * 2/3 + 3 * 1/5) / 4
    np.testing.assert_allclose(expit(a * np.array(scores) + b), (2 / 3 + 3 / 5) / 4, atol=1e-4)
    assert b == pytest.approx(logit((2 / 3 + 3 / 5) / 4), abs=1e-2)


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 1)), min_size=2, max_size=30))
def test_ranks_never_flip(pairs):
    scores, labels = np.array(pairs, dtype=float).T
    if labels.min() == labels.max():
        return
    a, b = fit_platt(scores, labels)
    assert a > 0
    assert np.isfinite([a, b]).all()


def test_one_class_is_an_error():
    with pytest.raises(DataError, match=r"validation has 3 matched and 0 mismatched. Split again .* calibrate: False"):
        fit_platt(np.arange(3.0), np.ones(3))
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        fit_platt(np.array([np.nan, 1.0]), np.array([0, 1]))
    with pytest.raises(DataError, match="1 labels are neither 0 nor 1"):
        fit_platt(np.array([2.0, 1.0]), np.array([0, 0.5]))
    with pytest.raises(DataError, match="2 scores and 3 labels"):
        fit_platt(np.arange(2.0), np.array([0, 1, 1]))
