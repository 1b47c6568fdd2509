"""Is one model better than another? Means with intervals over seeds, paired differences, correction for many of them.

interval            mean ± half of the 95 % t-interval over seeds: how much a single model's figure moves by seed.
paired_difference   both models are scored on the same test pairs of the same seeds. The figure is the mean over seeds
                    of the difference of their AUCs. 2,000 bootstrap replicates draw seeds and, with Poisson(1) weights
                    that all seeds share, seekers (whose pairs stay together); the 95 % interval is that of their
                    quantiles, and p = 2 min(share of replicates <= 0, share >= 0), with one added to both counts. So
                    it holds the error of a finite test set, which seeds alone leave out: models of one test set agree
                    over seeds about its accidents, and a t-test over seeds finds a difference between equal models.
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


@dataclass(frozen=True)
class Difference:
    """AUC(a) - AUC(b): mean over seeds, 95 % bootstrap interval, two-sided p, seeds above 0 of all seeds."""

    mean: float
    low: float
    high: float
    p: float
    above: int
    seeds: int


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % t-interval; None of fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def interval(values: Sequence[float], form: str = ".4f") -> str:
    """``mean ± half of the 95 % t-interval`` of one value a seed; the mean alone of fewer than two."""
    mean, half = mean_and_half(values)
    return format(mean, form) if half is None else f"{mean:{form}} ± {half:{form}}"


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
    spread = spread[np.isfinite(spread)]  # a replicate that drew one class only has no AUC
    if len(spread) < replicates / 2:
        raise DataError(
            f"{replicates - len(spread)} of {replicates} bootstrap replicates have one class only: the test pairs are "
            f"too few to compare models on."
        )
    low, high = np.quantile(spread, (0.025, 0.975))
    tail = min((spread <= 0).sum(), (spread >= 0).sum()) + 1
    return Difference(
        mean=float(each.mean()), low=float(low), high=float(high), p=float(min(1.0, 2 * tail / (len(spread) + 1))),
        above=int((each > 0).sum()), seeds=len(each),
    )  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values, in the order given: max over smaller p of (m - rank) p, at most 1."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return np.minimum(corrected, 1.0).tolist()


def difference_interval(
    users: Sequence[np.ndarray], gap: Callable[[int, np.ndarray], np.ndarray], replicates: int = REPLICATES
) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over seeds of a difference, by seeds and seekers.

    ``users[s]`` (N_s,): the seeker of each row of seed s. ``gap(s, weights)``: the difference in seed s, (R,), under R
    sets of weights of its rows, (R, N_s).
    """
    low, high = np.quantile(_replicates(users, gap, replicates), (0.025, 0.975))
    return float(low), float(high)


def _replicates(users, gap, replicates: int) -> np.ndarray:
    """(replicates,) means over drawn seeds of the difference under drawn weights of seekers."""
    rng = np.random.default_rng(0)
    seekers, where = np.unique(np.concatenate(users), return_inverse=True)
    where = np.split(where, np.cumsum([len(some) for some in users])[:-1])
    drawn = rng.poisson(1.0, (replicates, len(seekers))).astype(float)
    gaps = np.stack([gap(seed, drawn[:, at]) for seed, at in enumerate(where)], axis=1)
    picked = rng.integers(0, len(where), (replicates, len(where)))
    return np.take_along_axis(gaps, picked, axis=1).mean(axis=1)


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
