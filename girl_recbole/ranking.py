"""Ranking metrics of score arrays: pure functions, ties in expectation, no loop over queries.

A query (a seeker, or a job) has a list of candidates with scores, R of which are relevant. A relevant candidate stands
in a block of ``tied`` = m candidates of equal score (itself included) with ``ahead`` = a candidates of greater score.
Each metric is its expectation over all orders of the tied candidates (McSherry and Najork, ECIR 2008), so a scorer that
gives everything the same score gets what a random order gets: k / N of recall@k, and nothing by luck of the file's
order. d_i = 1 / log2(i + 1); r = the relevant ones of a block, b = the relevant ones before it; S = H(a + m) - H(a),
H(n) = 1 + 1/2 + ... + 1/n.

    recall@k   1/R sum over relevant  clip((k - a) / m, 0, 1)
    ndcg@k     1/IDCG@k sum over relevant  1/m sum d_i over the places i of the block up to k;
               IDCG@k = d_1 + ... + d_min(k, R)
    hit@k      P(at least one relevant among the first k) = 1 - C(m - r, t) / C(m, t) of the first block with a
               relevant one, t = clip(k - a, 0, m)
    mrr        E[1 / place of the first relevant] = sum_j C(m - j, r - 1) / C(m, r) / (a + j) of that block
    map        average precision: 1/R sum over relevant  1/m [(b + 1) S + (r - 1) / (m - 1) (m - (a + 1) S)]

mrr and map have no cut-off. A list without ties gives the textbook values, which scikit-learn and trec_eval give too
(recall divides by R, and not by min(k, R)).

    standing           all candidates of each query: a matrix of scores (Q, N), some of it excluded
    labelled_standing  a ragged list: the labelled pairs of each query that has both labels
    ranking_metrics    the metrics of each query, (Q,) float64, from where the relevant ones stand

Memory: the scores, and blocks of ``_BLOCK`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, gammaln

from girl_recbole.errors import ConfigError, DataError

__all__ = ["Standing", "labelled_standing", "mean_metrics", "ranking_metrics", "standing"]

_BLOCK = 1 << 24  # numbers compared, or terms summed, at a time


@dataclass(frozen=True)
class Standing:
    """Where P relevant candidates stand in the lists of ``queries`` queries."""

    query: np.ndarray  # (P,) int64, 0 .. queries - 1
    ahead: np.ndarray  # (P,) int64: candidates of the query with a greater score
    tied: np.ndarray  # (P,) int64: candidates with the same score, itself included
    queries: int

    @staticmethod
    def joined(parts: Sequence[Standing]) -> Standing:
        """The queries of several, one after the other."""
        first = np.cumsum([0, *(part.queries for part in parts)])
        return Standing(
            np.concatenate([part.query + start for part, start in zip(parts, first[:-1], strict=True)]),
            np.concatenate([part.ahead for part in parts]),
            np.concatenate([part.tied for part in parts]),
            int(first[-1]),
        )


def standing(
    scores: np.ndarray,
    relevant: tuple[np.ndarray, np.ndarray],
    excluded: tuple[np.ndarray, np.ndarray] | None = None,
) -> Standing:
    """``scores`` (Q, N); ``relevant`` and ``excluded``: row and column numbers of pairs, (P,) and (X,) each.

    An excluded pair is no candidate. ``DataError`` for scores that are not finite, and for a pair that is both.
    """
    scores = np.array(scores)
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise DataError(f"{bad} of {scores.size} scores are not finite; such scores cannot be ranked.")
    row, column = (np.asarray(numbers, np.int64) for numbers in relevant)
    own = scores[row, column]
    if excluded is not None:
        scores[excluded] = -np.inf
        both = int((scores[row, column] == -np.inf).sum())
        if both:
            raise DataError(f"{both} of {len(row)} relevant candidates are excluded; a relevant one must be ranked.")
    ahead, tied = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    step = max(1, _BLOCK // max(1, scores.shape[1]))
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        lists, mine = scores[row[part]], own[part, None]
        ahead[part], tied[part] = (lists > mine).sum(axis=1), (lists == mine).sum(axis=1)
    return Standing(row, ahead, tied, len(scores))


def labelled_standing(scores: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Standing:
    """``scores``, ``labels`` (0 or 1), ``queries`` (any ids), (M,) each: a row a labelled pair.

    Only queries with both labels count; they are numbered in the order of their ids.
    """
    scores, relevant = np.asarray(scores), np.asarray(labels) > 0.5
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise DataError(f"{bad} of {len(scores)} scores are not finite; such scores cannot be ranked.")
    _, query = np.unique(np.asarray(queries), return_inverse=True)
    size, matched = np.bincount(query), np.bincount(query, weights=relevant)
    both = (matched > 0) & (matched < size)
    keep = both[query]
    number = np.cumsum(both) - 1
    query, scores, relevant = number[query[keep]], scores[keep], relevant[keep]
    order = np.lexsort((-scores, query))
    query, scores, relevant = query[order], scores[order], relevant[order]
    new = np.ones(len(query), bool)
    new[1:] = (query[1:] != query[:-1]) | (scores[1:] != scores[:-1])
    start = np.flatnonzero(new)  # of each block of equal scores
    block = np.cumsum(new) - 1
    first = np.searchsorted(query, np.arange(int(both.sum())))  # place where each query's list begins
    ahead = (start[block] - first[query])[relevant]
    tied = np.diff(start, append=len(query))[block][relevant]
    return Standing(query[relevant], ahead, tied, int(both.sum()))


def ranking_metrics(found: Standing, topk: Sequence[int]) -> dict[str, np.ndarray]:
    """``recall@k``, ``ndcg@k``, ``hit@k`` for each k, ``mrr`` and ``map``: (queries,) float64 each, in [0, 1].

    NaN for a query without a relevant candidate.
    """
    if any(k < 1 for k in topk):
        raise ConfigError(f"top k: {list(topk)}; each k must be at least 1.")
    order = np.lexsort((found.ahead, found.query))
    query, a, m = found.query[order], found.ahead[order], found.tied[order]
    total = np.bincount(query, minlength=found.queries)  # R
    share = 1 / np.where(total > 0, total, np.nan)
    new = np.ones(len(query), bool)
    new[1:] = (query[1:] != query[:-1]) | (a[1:] != a[:-1])
    start = np.flatnonzero(new)
    block = np.cumsum(new) - 1
    r = np.diff(start, append=len(query))[block]
    begin = np.cumsum(total) - total  # the first relevant one of each query
    before = start[block] - begin[query]
    filled = np.flatnonzero(total)
    first = begin[filled]

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(query, weights=values, minlength=found.queries)

    def of_first(values: np.ndarray) -> np.ndarray:
        out = np.full(found.queries, np.nan)
        out[filled] = values
        return out

    metrics: dict[str, np.ndarray] = {}
    for k in topk:
        discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        gain = (discounts[np.minimum(a + m, k)] - discounts[np.minimum(a, k)]) / m
        ideal = discounts[np.minimum(total, k)]
        metrics[f"recall@{k}"] = summed(np.clip((k - a) / m, 0, 1)) * share
        metrics[f"ndcg@{k}"] = summed(gain) / np.where(total > 0, ideal, np.nan)
        metrics[f"hit@{k}"] = of_first(_hit(a[first], m[first], r[first], k))
    metrics["mrr"] = of_first(_reciprocal(a[first], m[first], r[first]))
    harmonic = _harmonic(a, m)
    tail = np.where(m > 1, (r - 1) / np.maximum(m - 1, 1) * (m - (a + 1) * harmonic), 0.0)
    metrics["map"] = summed(((before + 1) * harmonic + tail) / m) * share
    return metrics


def mean_metrics(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over the queries that have a relevant candidate; None where there is none."""
    return {name: float(np.nanmean(values)) if np.isfinite(values).any() else None for name, values in metrics.items()}


def _harmonic(a: np.ndarray, m: np.ndarray) -> np.ndarray:
    """1/(a + 1) + ... + 1/(a + m)."""
    return np.where(m == 1, 1 / (a + 1), digamma(a + m + 1) - digamma(a + 1))


def _hit(a: np.ndarray, m: np.ndarray, r: np.ndarray, k: int) -> np.ndarray:
    """P(a relevant one is among the first k), of the first block with r relevant of m, a candidates before it."""
    t = np.clip(k - a, 0, m)
    rest = np.maximum(m - r - t, 0)
    none = np.exp(gammaln(m - r + 1) - gammaln(rest + 1) - gammaln(m + 1) + gammaln(m - t + 1))
    none = np.where(r == 1, (m - t) / m, np.where(t > m - r, 0.0, none))
    return 1 - none


def _reciprocal(a: np.ndarray, m: np.ndarray, r: np.ndarray) -> np.ndarray:
    """E[1 / place of the first relevant one]; lists with equal (a, m, r) are summed once."""
    out = _harmonic(a, m) / m  # r = 1: each place of the block alike
    several = (r > 1) & (m > 1)
    if not several.any():
        return out
    triples, back = np.unique(np.stack([a, m, r], axis=1)[several], axis=0, return_inverse=True)
    terms = triples[:, 1] - triples[:, 2] + 1  # places that the first relevant one can have
    values = np.empty(len(triples))
    edges = np.unique(np.searchsorted(np.cumsum(terms), np.arange(0, terms.sum() + _BLOCK, _BLOCK)))
    for low, high in zip(edges, [*edges[1:], len(triples)], strict=True):
        if low == high:
            continue
        which = np.repeat(np.arange(high - low), terms[low:high])
        j = np.arange(len(which)) - (np.cumsum(terms[low:high]) - terms[low:high])[which] + 1
        a_, m_, r_ = triples[low:high][which].T
        log_p = (
            gammaln(m_ - j + 1) - gammaln(r_) - gammaln(m_ - j - r_ + 2)
            - gammaln(m_ + 1) + gammaln(r_ + 1) + gammaln(m_ - r_ + 1)
        )  # fmt: skip
        values[low:high] = np.bincount(which, weights=np.exp(log_p) / (a_ + j), minlength=high - low)
    out[several] = values[back.ravel()]
    return out
