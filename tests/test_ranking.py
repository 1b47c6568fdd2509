"""Ranking metrics: by hand, over all orders of ties, against scikit-learn and trec_eval, and properties."""

import itertools
import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, R, Success, nDCG
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from girl_recbole import ranking
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.metrics import weighted_auc
from girl_recbole.ranking import Standing, labelled_standing, mean_metrics, ranking_metrics, standing

TOPK = (1, 2, 3, 5)


def metrics_of(scores, relevant, topk=TOPK, excluded=None):
    """Of one list."""
    columns = np.flatnonzero(relevant)
    found = standing(np.array([scores], float), (np.zeros(len(columns), int), columns), excluded)
    return {name: values[0] for name, values in ranking_metrics(found, topk).items()}


def plain(ordered, topk=TOPK):
    """The textbook metrics of one list without ties, best first: a loop."""
    total = sum(ordered)
    places = [place for place, hit in enumerate(ordered, start=1) if hit]
    out = {"mrr": 1 / places[0], "map": sum((n + 1) / place for n, place in enumerate(places)) / total}
    for k in topk:
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, total) + 1))
        out[f"recall@{k}"] = sum(place <= k for place in places) / total
        out[f"hit@{k}"] = float(places[0] <= k)
        out[f"ndcg@{k}"] = sum(1 / math.log2(place + 1) for place in places if place <= k) / ideal
    return out


def test_by_hand():
    """Places 2 and 4 of five: recall 0, 1/2, 1/2, 1; 1/2; (1/2 + 2/4) / 2."""
    found = metrics_of([0.9, 0.8, 0.7, 0.6, 0.5], [0, 1, 0, 1, 0])
    assert [found[f"recall@{k}"] for k in TOPK] == [0, 0.5, 0.5, 1]
    assert [found[f"hit@{k}"] for k in TOPK] == [0, 1, 1, 1]
    assert (found["mrr"], found["map"]) == (0.5, 0.5)
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg@3"] == pytest.approx(1 / math.log2(3) / ideal)
    assert found["ndcg@5"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)


def test_a_tie_by_hand():
    """The relevant one ties with one other behind one better: places 2 and 3 are alike likely."""
    found = metrics_of([3, 2, 2, 1], [0, 1, 0, 0])
    assert [found[f"recall@{k}"] for k in TOPK] == [0, 0.5, 1, 1]
    assert found["mrr"] == found["map"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["ndcg@2"] == pytest.approx(0.5 / math.log2(3))


def test_a_constant_scorer_gets_what_chance_gives():
    """40 candidates, one relevant: recall@k = k / 40, and the mean of 1, 1/2, ..., 1/40; wherever it stands."""
    for place in (0, 20, 39):
        found = metrics_of(np.full(40, 0.3), np.arange(40) == place)
        assert [found[f"recall@{k}"] for k in TOPK] == pytest.approx([k / 40 for k in TOPK])
        assert [found[f"hit@{k}"] for k in TOPK] == pytest.approx([k / 40 for k in TOPK])
        assert found["mrr"] == pytest.approx(sum(1 / i for i in range(1, 41)) / 40)


lists = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7).filter(
    lambda rows: any(relevant for _, relevant in rows)
)


@settings(max_examples=60, deadline=None)
@given(lists)
def test_ties_are_the_mean_over_all_orders(rows):
    """Each order of the list that sorts its scores, one after the other."""
    scores, relevant = zip(*rows, strict=True)
    orders = [
        [relevant[i] for i in order]
        for order in itertools.permutations(range(len(rows)))
        if all(scores[one] >= scores[other] for one, other in itertools.pairwise(order))
    ]
    every = [plain(order) for order in orders]
    expected = {name: np.mean([one[name] for one in every]) for name in every[0]}
    assert metrics_of(scores, relevant) == pytest.approx(expected)


def many(seed=0, queries=30, candidates=50, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (queries, candidates)) / 8 if ties else rng.permuted(
        np.tile(np.arange(candidates) / 7, (queries, 1)), axis=1
    )  # fmt: skip
    relevant = rng.random((queries, candidates)) < 0.1
    relevant[:, 0] = True
    return scores, relevant


def test_against_scikit_learn():
    scores, relevant = many()
    found = ranking_metrics(standing(scores, np.nonzero(relevant)), (5, 50))
    for row in range(len(scores)):
        assert found["map"][row] == pytest.approx(average_precision_score(relevant[row], scores[row]))
        for k in (5, 50):
            assert found[f"ndcg@{k}"][row] == pytest.approx(
                ndcg_score(relevant[row : row + 1], scores[row : row + 1], k=k)
            )


def test_ndcg_with_ties_against_scikit_learn_which_averages_them_too():
    scores, relevant = many(ties=True)
    found = ranking_metrics(standing(scores, np.nonzero(relevant)), (5,))["ndcg@5"]
    assert found.mean() == pytest.approx(ndcg_score(relevant, scores, k=5))


def test_against_trec_eval():
    scores, relevant = many(seed=1)
    found = mean_metrics(ranking_metrics(standing(scores, np.nonzero(relevant)), (5, 20)))
    qrels = {f"q{q}": {f"d{d}": int(relevant[q, d]) for d in range(50)} for q in range(30)}
    run = {f"q{q}": {f"d{d}": float(scores[q, d]) for d in range(50)} for q in range(30)}
    theirs = ir_measures.calc_aggregate([R @ 5, R @ 20, nDCG @ 5, nDCG @ 20, RR, AP, Success @ 5], qrels, run)
    assert found["recall@5"] == pytest.approx(theirs[R @ 5])
    assert found["recall@20"] == pytest.approx(theirs[R @ 20])
    assert found["ndcg@5"] == pytest.approx(theirs[nDCG @ 5])
    assert found["ndcg@20"] == pytest.approx(theirs[nDCG @ 20])
    assert found["hit@5"] == pytest.approx(theirs[Success @ 5])
    assert (found["mrr"], found["map"]) == pytest.approx((theirs[RR], theirs[AP]))


def test_excluded_candidates_are_as_if_not_there():
    scores, relevant = many(ties=True)
    gone = ~relevant & (np.random.default_rng(3).random(scores.shape) < 0.3)
    found = ranking_metrics(standing(scores, np.nonzero(relevant), np.nonzero(gone)), (5,))
    for row in range(len(scores)):
        stays = ~gone[row]
        alone = metrics_of(scores[row, stays], relevant[row, stays], (5,))
        assert {name: values[row] for name, values in found.items()} == pytest.approx(alone)
    with pytest.raises(DataError, match=r"1 of \d+ relevant candidates are excluded"):
        standing(scores, np.nonzero(relevant), (np.array([0]), np.array([0])))


def test_the_other_direction_is_the_transposed_matrix():
    """Each column as a list of its own gives the metrics that the transposed matrix gives."""
    scores, relevant = many(ties=True)
    relevant[0] = True
    row, column = np.nonzero(relevant)
    other = ranking_metrics(standing(scores.T, (column, row)), (5,))
    for j in range(scores.shape[1]):
        assert {name: values[j] for name, values in other.items()} == pytest.approx(
            metrics_of(scores[:, j], relevant[:, j], (5,))
        )


def test_blocks_change_nothing(monkeypatch):
    scores, relevant = many(ties=True)
    whole = ranking_metrics(standing(scores, np.nonzero(relevant)), TOPK)
    monkeypatch.setattr(ranking, "_BLOCK", 60)
    parts = [standing(scores[rows], np.nonzero(relevant[rows])) for rows in (slice(0, 7), slice(7, 8), slice(8, None))]
    again = ranking_metrics(Standing.joined(parts), TOPK)
    for name, values in whole.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(-2, 2)), min_size=1, max_size=40))
def test_labelled_lists_are_ranked_query_by_query(rows):
    scores, labels, queries = (np.array(column) for column in zip(*rows, strict=True))
    both = [q for q in np.unique(queries) if 0 < labels[queries == q].sum() < (queries == q).sum()]
    found = labelled_standing(scores, labels, queries)
    assert found.queries == len(both)
    if not both:
        return
    metrics = ranking_metrics(found, (2,))
    for number, q in enumerate(both):
        alone = metrics_of(scores[queries == q], labels[queries == q], (2,))
        assert {name: values[number] for name, values in metrics.items()} == pytest.approx(alone)


def test_a_query_without_a_relevant_candidate_does_not_count():
    scores = np.array([[2.0, 1.0], [2.0, 1.0]])
    metrics = ranking_metrics(standing(scores, (np.array([1]), np.array([0]))), (1,))
    assert np.isnan(metrics["mrr"][0])
    assert np.isnan(metrics["hit@1"][0])
    assert mean_metrics(metrics) == dict.fromkeys(("recall@1", "ndcg@1", "hit@1", "mrr", "map"), 1.0)
    nobody = standing(scores, (np.array([], int), np.array([], int)))
    assert mean_metrics(ranking_metrics(nobody, (1,)))["mrr"] is None


def test_many_ties_of_several_relevant_are_exact():
    """1,000 candidates alike, three relevant: P(first at place j) from binomial coefficients of whole numbers."""
    relevant = np.isin(np.arange(1000), (0, 400, 999))
    found = metrics_of(np.zeros(1000), relevant, (10,))
    first = [math.comb(1000 - j, 2) / math.comb(1000, 3) for j in range(1, 999)]
    assert found["mrr"] == pytest.approx(sum(p / j for j, p in enumerate(first, start=1)), rel=1e-9)
    assert found["hit@10"] == pytest.approx(1 - math.comb(990, 3) / math.comb(1000, 3), rel=1e-9)


def test_what_cannot_be_ranked():
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        standing(np.array([[1.0, np.nan]]), (np.array([0]), np.array([0])))
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        labelled_standing(np.array([1.0, np.inf]), np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(ConfigError, match="each k must be at least 1"):
        metrics_of([1.0], [1], (0,))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.integers(0, 1), st.integers(0, 3), st.integers(0, 1)),
        min_size=1, max_size=40,
    )
)  # fmt: skip
def test_weighted_auc_counts_each_pair_as_often_as_its_weight(rows):
    scores, labels, *weights = (np.array(column) for column in zip(*rows, strict=True))
    for w, found in zip(weights, weighted_auc(scores, labels, np.stack(weights)), strict=True):
        y, s = np.repeat(labels, w), np.repeat(scores, w)
        if 0 < y.sum() < len(y):
            assert found == pytest.approx(roc_auc_score(y, s))
        else:
            assert np.isnan(found)
