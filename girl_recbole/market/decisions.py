"""The two decisions of the market: what a seeker applies for, and whether an application ends in a match.

For a seeker s and a job j (all terms are differences of latent states; age, gender and school are not among them):

    C  career   max(near[next step, o_j], keep * near[occupation, o_j]); keep = 1 for who stays, 0.25 for who moves on
    M  musts    mean strength in the must-haves, 0..1;  N  nice-to-haves likewise; 0 where a job states none
    G  level    |level_j - (level_s + ambition_s)|, and one more for each level above that that the job asks
    Y  pay      clip(ln(pay_j / wish_s) / 0.15, -2, 1); 0 where the job tells no pay
    L  place    1 the same place, or remote for who likes it; 0.7 reachable by moving as far as s would; else 0
    A, O        the seeker's appeal and the job's openness, which no text tells

    P(match | s, j) = sigmoid(b + 0.8 * (2.6 C + 2.8 M + 0.8 N - 0.55 G + 0.5 Y + 1.1 L + 0.35 A + O))

``b`` sets the share of matches and is found by bisection when a market is simulated. Both sides are in it: the
recruiter looks at M, N, G and A with the leniency O; the seeker, who has seen the offer by then, at C, Y and L.

The choice to apply is a multinomial logit over a slate with other weights (no strengths: seekers do not know them):
V = 1.6 C + 0.35 Y + 0.7 L - 0.3 G + 0.3 ln popularity + Gumbel noise.
"""

from __future__ import annotations

import numpy as np

from girl_recbole.market.agents import Jobs, Seekers, region_of
from girl_recbole.market.taxonomy import Taxonomy, load_taxonomy

__all__ = ["apply_utility", "match_logit", "match_probability", "sigmoid"]

_KEEP = 0.25


def match_probability(seekers: Seekers, jobs: Jobs, intercept: float) -> np.ndarray:
    """(n,) P(match) of row i of ``seekers`` with row i of ``jobs``; ``intercept`` is ``b``, stored with the truth."""
    return sigmoid(match_logit(seekers, jobs) + intercept)


def match_logit(seekers: Seekers, jobs: Jobs) -> np.ndarray:
    """(n,) float64: the log-odds without the intercept."""
    career, level, pay, place = _terms(seekers, jobs, load_taxonomy())
    musts, nices = _coverage(seekers.strength, jobs.musts), _coverage(seekers.strength, jobs.nices)
    fit = 2.6 * career + 2.8 * musts + 0.8 * nices - 0.55 * level + 0.5 * pay + 1.1 * place
    return 0.8 * (fit + 0.35 * seekers.appeal.astype(np.float64) + jobs.openness)


def apply_utility(seekers: Seekers, jobs: Jobs) -> np.ndarray:
    """(n,) float64: what a seeker expects of a job before applying."""
    career, level, pay, place = _terms(seekers, jobs, load_taxonomy())
    return 1.6 * career + 0.35 * pay + 0.7 * place - 0.3 * level + 0.3 * np.log(jobs.popularity)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def _terms(seekers: Seekers, jobs: Jobs, taxonomy: Taxonomy) -> tuple[np.ndarray, ...]:
    near = taxonomy.near.astype(np.float64)
    stays = seekers.next_step == seekers.occupation
    now = np.where(stays, 1.0, _KEEP) * near[seekers.occupation, jobs.occupation]
    career = np.maximum(near[seekers.next_step, jobs.occupation], now)
    gap = jobs.level.astype(np.int64) - (seekers.level + seekers.ambition)
    level = np.abs(gap) + np.maximum(gap, 0)
    with np.errstate(invalid="ignore"):
        pay = np.clip(np.log(jobs.pay.astype(np.float64) / seekers.pay_wish) / 0.15, -2, 1)
    pay = np.where(np.isnan(pay), 0.0, pay)
    here = jobs.place == seekers.place
    same_region = region_of(jobs.place) == region_of(seekers.place)
    moves = (jobs.place >= 0) & ((seekers.mobility == 2) | ((seekers.mobility == 1) & same_region))
    place = np.where(here | (jobs.remote & seekers.likes_remote), 1.0, np.where(moves, 0.7, 0.0))
    return career, level.astype(np.float64), pay, place


def _coverage(strength: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean strength (0..1) in the skills that are wanted; 0 where none is."""
    has = np.take_along_axis(strength, np.maximum(wanted, 0).astype(np.int64), axis=1) / 100.0
    asked = wanted >= 0
    return (has * asked).sum(axis=1) / np.maximum(asked.sum(axis=1), 1)
