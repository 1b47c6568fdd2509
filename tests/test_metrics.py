"""ECE, prior entropy and GAUC: by hand, and GAUC against scikit-learn seeker by seeker."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from girl_recbole.errors import DataError
from girl_recbole.metrics import ece, gauc, prior_entropy


def test_ece_by_hand():
    """Two bins. [0, .5): .2 (0), .4 (1), gap .5 - .3, 2/5 of all. [.5, 1]: .6 (0), two of 1 (1), gap 2.6/3 - 2/3."""
    value = ece(np.array([0.2, 0.4, 0.6, 1.0, 1.0]), np.array([0, 1, 0, 1, 1]), bins=2)
    assert value == pytest.approx(0.2 * 2 / 5 + 0.2 * 3 / 5)


def test_ece_of_perfect_and_of_opposite_probabilities():
    labels = np.array([0, 1, 1, 0])
    assert ece(labels.astype(float), labels, bins=10) == 0
    assert ece(1.0 - labels, labels, bins=10) == 1


def test_ece_bins_are_closed_on_the_left():
    """.5 opens the second of two bins: alone there with label 1, its gap is .5."""
    assert ece(np.array([0.5, 0.0]), np.array([1, 0]), bins=2) == pytest.approx(0.25)


def test_prior_entropy_by_hand():
    assert prior_entropy(np.array([0, 1])) == pytest.approx(math.log(2))
    assert prior_entropy(np.array([1, 0, 0, 0])) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert prior_entropy(np.ones(3)) == 0


def test_gauc_by_hand():
    """Seeker a: .9 (1) > .1 (0): AUC 1, 2 pairs. b: .3 (1) < .8 (0), tie with .3 (0): (0 + .5) / 2, 3 pairs.

    c has one class and does not count: (2 * 1 + 3 * .25) / 5.
    """
    p = np.array([0.9, 0.3, 0.1, 0.8, 0.3, 0.7])
    y = np.array([1, 1, 0, 0, 0, 1])
    g = np.array(["a", "b", "a", "b", "b", "c"])
    assert gauc(p, y, g) == pytest.approx((2 * 1 + 3 * 0.25) / 5)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), st.integers(0, 1), st.integers(-3, 3)),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_gauc_is_the_weighted_mean_of_the_groups_aucs(rows):
    p, y, g = (np.array(column) for column in zip(*rows, strict=True))
    total = weight = 0
    for group in np.unique(g):
        mine = g == group
        if 0 < y[mine].sum() < mine.sum():
            total += mine.sum() * roc_auc_score(y[mine], p[mine])
            weight += mine.sum()
    if weight:
        assert gauc(p, y, g) == pytest.approx(total / weight, abs=1e-12)
    else:
        with pytest.raises(DataError, match="has both a matched and a mismatched pair"):
            gauc(p, y, g)


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match=r"2 of 3 probabilities are not in \[0, 1\]"):
        ece(np.array([0.5, 1.5, np.nan]), np.array([0, 1, 1]), bins=2)
    with pytest.raises(DataError, match="0 bins"):
        ece(np.array([0.5]), np.array([0]), bins=0)
    with pytest.raises(DataError, match="2 predictions and 1 labels"):
        gauc(np.array([0.5, 0.6]), np.array([0]), np.array([1, 1]))
    with pytest.raises(DataError, match="1 of 2 labels are neither 0 nor 1"):
        prior_entropy(np.array([0, 2]))
    with pytest.raises(DataError, match="0 predictions and 0 labels"):
        prior_entropy(np.array([]))
