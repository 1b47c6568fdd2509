"""Metrics that RecBole lacks: pure functions of arrays (N,), one row a (seeker, job) pair.

ECE            sum_k (n_k / N) |mean label in bin k - mean probability in bin k|, bins of equal width on [0, 1];
               bin k = [k / bins, (k + 1) / bins), the last one closed
prior entropy  -q log q - (1 - q) log(1 - q), q = share of matched pairs, in nats: the LogLoss of always predicting q
GAUC           sum_g n_g AUC_g / sum_g n_g over the groups (seekers) g that have both labels, n_g = pairs of g;
               ties count one half
weighted AUC   sum over (matched i, mismatched j) of w_i w_j [s_i > s_j, ties one half] / (W+ W-), for many weightings
               of the same pairs at once: bootstrap replicates and groups
"""

from __future__ import annotations

import numpy as np
from scipy.special import entr
from scipy.stats import rankdata

from girl_recbole.errors import DataError

__all__ = ["ece", "gauc", "prior_entropy", "weighted_auc"]

_BLOCK = 1 << 24  # weights held at a time


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Expected calibration error, in [0, 1]."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    _check(p, y)
    if bins < 1:
        raise DataError(f"ECE: {bins} bins; at least 1 is required.")
    if ((p < 0) | (p > 1) | np.isnan(p)).any():
        raise DataError(f"ECE: {int((~((p >= 0) & (p <= 1))).sum())} of {len(p)} probabilities are not in [0, 1].")
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    gap = np.bincount(which, weights=y - p, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def prior_entropy(labels: np.ndarray) -> float:
    """Entropy of the base rate, in nats."""
    y = np.asarray(labels, np.float64)
    _check(y, y)
    q = y.mean()
    return float(entr(q) + entr(1 - q))


def gauc(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """AUC within each group, averaged by the groups' pairs. Raises ``DataError`` where no group has both labels."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    _check(p, y)
    _, group, size = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    # A pair's rank within its group is its rank among all, groups in order, minus the pairs of the groups before.
    # Dense ranks keep ties exact; group * (distinct values) + rank sorts by group, then by score.
    dense = rankdata(p, method="dense").astype(np.int64)
    rank = rankdata(group.astype(np.int64) * (dense.max() + 1) + dense, method="average")
    rank -= (np.cumsum(size) - size)[group]
    matched = np.bincount(group, weights=y, minlength=len(size))
    mismatched = size - matched
    both = (matched > 0) & (mismatched > 0)
    if not both.any():
        raise DataError(f"GAUC: none of the {len(size)} seekers has both a matched and a mismatched pair.")
    rank_sum = np.bincount(group, weights=rank * y, minlength=len(size))[both]
    auc = (rank_sum - matched[both] * (matched[both] + 1) / 2) / (matched[both] * mismatched[both])
    return float((auc * size[both]).sum() / size[both].sum())


def weighted_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of pairs (N,) under each row of ``weights`` (W, N), not negative: (W,), ties one half.

    A weight counts a pair that many times (bootstrap) or leaves it out (0). NaN where a row leaves one class only.
    """
    scores, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    _check(scores, y)
    order = np.argsort(scores, kind="stable")
    _, block = np.unique(scores[order], return_inverse=True)
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    y = y[order]
    out = np.empty(len(weights))
    step = max(1, _BLOCK // len(y))
    for start in range(0, len(weights), step):
        w = np.asarray(weights[start : start + step], np.float64)[:, order]
        matched = np.add.reduceat(w * y, starts, axis=1)
        mismatched = np.add.reduceat(w * (1 - y), starts, axis=1)
        below = np.cumsum(mismatched, axis=1) - mismatched
        both = matched.sum(axis=1) * mismatched.sum(axis=1)
        wins = (matched * (below + 0.5 * mismatched)).sum(axis=1)
        out[start : start + step] = np.divide(wins, both, out=np.full(len(w), np.nan), where=both > 0)
    return out


def _check(values: np.ndarray, labels: np.ndarray) -> None:
    if len(values) != len(labels) or not len(labels):
        raise DataError(
            f"{len(values)} predictions and {len(labels)} labels; as many of each, at least 1, are required."
        )
    if not np.isin(labels, (0.0, 1.0)).all():
        raise DataError(f"{int((~np.isin(labels, (0.0, 1.0))).sum())} of {len(labels)} labels are neither 0 nor 1.")
