"""Is one model better than another? Means with intervals over seeds, paired differences, correction for many of them.

interval            mean ± half of the 95 % t-interval over seeds: how much a single model's figure moves by seed.
paired_difference   both models are scored on the same test pairs of the same seeds. The figure is the mean over the S
                    seeds of the difference d_s of their AUCs. Its variance has two parts:

                        V = c + max(s2, v - c) / S      s2: variance of d_s over seeds, ddof 1

                    v, c: variance of d_s, and covariance of d_s and d_t of two seeds, when the seekers are drawn anew
                    (means over seeds, c at least 0), from 2,000 bootstrap replicates that give each seeker, whose
                    pairs stay together, a Poisson(1) weight in all seeds. c is the error of a finite test set that
                    all seeds share: models of one test set agree over seeds about its accidents, and a t-test over
                    seeds finds a difference between equal models. s2 holds all that differs between seeds: training,
                    split, other test pairs; resampling S seeds would show it (S - 1) / S times only. Interval and
                    two-sided p are those of Student's t with (S - 1) (V S / s2)^2 degrees of freedom (Satterthwaite;
                    c is taken as known). One seed cannot tell a model from its training: the interval is then that
                    of two trained models on other seekers, and there is no p (NaN).
holm                p-values of m comparisons, each corrected so that the chance of any false finding among all m is at
                    most the level (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from girl_recbole.errors import DataError
from girl_recbole.metrics import weighted_auc

__all__ = [
    "Difference",
    "difference_interval",
    "holm",
    "interval",
    "mean_and_half",
    "paired_difference",
]

REPLICATES = 2000
_WEIGHTS = 4_000_000  # weights held at once: 32 MB, and a few times that in weighted_auc


@dataclass(frozen=True)
class Difference:
    """AUC(a) - AUC(b): mean over seeds, 95 % interval, two-sided p (NaN of one seed), seeds above 0 of all seeds."""

    mean: float
    low: float
    high: float
    p: float
    above: int
    seeds: int


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % t-interval; None of fewer than two values, 0 of equal ones."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), None
    if np.ptp(values) <= 1e-12:  # equal but for rounding
        return float(values[0]), 0.0
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def interval(values: Sequence[float], form: str = ".4f") -> str:
    """``mean ± half of the 95 % t-interval`` of one value a seed; the mean alone of fewer than two or equal ones."""
    mean, half = mean_and_half(values)
    return f"{mean:{form}} ± {half:{form}}" if half else format(mean, form)


def paired_difference(
    a: Sequence[Mapping[str, np.ndarray]], b: Sequence[Mapping[str, np.ndarray]], replicates: int = REPLICATES
) -> Difference:
    """AUC(a) - AUC(b); a, b: one part of a file of predictions (``user, item, label, probability``) a seed.

    Raises ``DataError`` where the two do not hold the same pairs.
    """
    _check(a, b)
    scores = [(one["probability"], two["probability"]) for one, two in zip(a, b, strict=True)]

    def gap(seed: int, weight: np.ndarray) -> np.ndarray:
        return np.subtract(*(weighted_auc(score, a[seed]["label"], weight) for score in scores[seed]))

    each = np.array([gap(seed, np.ones((1, len(run["user"]))))[0] for seed, run in enumerate(a)])
    spread = _replicates([run["user"] for run in a], gap, replicates)
    spread = spread[np.isfinite(spread).all(axis=1)]  # a replicate that drew one class only has no AUC
    if len(spread) < replicates / 2:
        raise DataError(
            f"{replicates - len(spread)} of {replicates} bootstrap replicates have one class only: the test pairs are "
            f"too few to compare models on."
        )
    low, high, p = _student(each, spread)
    return Difference(float(each.mean()), low, high, p, int((each > 0).sum()), len(each))


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values, in the order given: max over smaller p of (m - rank) p, at most 1. NaNs count for nothing."""
    p = np.asarray(p, dtype=float)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.maximum.accumulate((len(order) - np.arange(len(order))) * p[order])
    return np.minimum(corrected, 1.0).tolist()


def difference_interval(
    users: Sequence[np.ndarray], gap: Callable[[int, np.ndarray], np.ndarray], replicates: int = REPLICATES
) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds of a difference, as in :func:`paired_difference`.

    ``users[s]`` (N_s,): the seeker of each row of seed s. ``gap(s, weights)``: the difference in seed s, (R,), under R
    sets of weights of its rows, (R, N_s).
    """
    each = np.array([gap(seed, np.ones((1, len(rows))))[0] for seed, rows in enumerate(users)])
    return _student(each, _replicates(users, gap, replicates))[:2]


def _student(each: np.ndarray, spread: np.ndarray) -> tuple[float, float, float]:
    """Low, high and p of the mean of ``each`` (S,), with ``spread`` (R, S) under drawn seekers."""
    seeds = len(each)
    covariance = np.atleast_2d(np.cov(spread, rowvar=False))
    of_one = covariance.trace() / seeds
    if seeds == 1:
        variance, degrees = of_one, np.inf
    else:
        shared = max(0.0, (covariance.sum() - covariance.trace()) / (seeds * (seeds - 1)))
        between = each.var(ddof=1)
        variance = shared + max(between, of_one - shared) / seeds
        degrees = (seeds - 1) * (variance * seeds / between) ** 2 if between > 0 else np.inf
    mean, error = each.mean(), np.sqrt(variance)
    half = stats.t.ppf(0.975, degrees) * error
    if seeds == 1:
        p = np.nan
    elif error == 0:
        p = float(mean == 0)
    else:
        p = 2 * stats.t.sf(abs(mean) / error, degrees)
    return float(mean - half), float(mean + half), float(p)


def _replicates(users, gap, replicates: int) -> np.ndarray:
    """(replicates, seeds): the difference in each seed under drawn weights of seekers, which the seeds share."""
    rng = np.random.default_rng(0)
    seekers, where = np.unique(np.concatenate(users), return_inverse=True)
    where = np.split(where, np.cumsum([len(some) for some in users])[:-1])
    step = max(1, _WEIGHTS // max(len(seekers), *map(len, where)))
    blocks = []
    for start in range(0, replicates, step):
        drawn = rng.poisson(1.0, (min(step, replicates - start), len(seekers))).astype(float)
        blocks.append(np.stack([gap(seed, drawn[:, at]) for seed, at in enumerate(where)], axis=1))
    return np.concatenate(blocks)


def _check(a: Sequence[Mapping[str, np.ndarray]], b: Sequence[Mapping[str, np.ndarray]]) -> None:
    if len(a) != len(b) or not a:
        raise DataError(f"{len(a)} and {len(b)} seeds of predictions; as many of each, at least 1, are required.")
    for seed, (one, two) in enumerate(zip(a, b, strict=True)):
        for name in ("user", "item", "label"):
            if name in one and name in two and not np.array_equal(one[name], two[name]):
                raise DataError(
                    f"predictions number {seed + 1} of the two models are not of the same pairs ({name} differs: "
                    f"{len(one[name])} and {len(two[name])} rows); compare models of one split and seed."
                )
