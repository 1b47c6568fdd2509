"""The market as the judge of generated JDs: would this seeker match such a job?

    seeker's id --truth--> latent state s        JD --parse_job--> job j in the market's terms
    p(s, j) = P(match | s, j) of decisions.py with O = 0; 0 where no title of any occupation is read in the JD

The judge reads what the JD says and nothing else, so what it does not say has the value that parse_job gives it:

    pay        unknown: the term Y is 0, as for a pay that equals the seeker's wish (Y runs from -2 to 1)
    place      unknown: the term L is 0, the worst, but 1 where the JD offers remote work to who likes it
    level      from its words, else from the years asked for, else 2, the middle of 0..4
    musts, nices   a JD that asks for no skill has M = 0 or N = 0, the worst; at most 6 and 4 of those named are read
    openness   never told by a text: 0, which is about the mean of the market's jobs

A text can be made to please this judge: asking for the one skill in which the seeker is best gives M near 1, and an
absurd pay gives Y = 1. Read the probability beside the other columns of benchmarks/market_judge.py (words, copies,
structure), and beside that of real jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from girl_recbole.errors import DataError, some_of
from girl_recbole.market.agents import Jobs
from girl_recbole.market.decisions import match_probability
from girl_recbole.market.simulation import Truth
from girl_recbole.market.text import parse_job

__all__ = ["true_probability"]

_CHUNK = 20_000  # pairs at a time: a seeker's strengths take 652 bytes


def true_probability(truth: Truth, user_ids: Sequence[str], jds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """P(match) of seeker ``user_ids[i]`` with the job that ``jds[i]`` describes, (n,) float64, and which JDs could be
    read, (n,) bool; 0.0 where one could not. Raises ``DataError`` for a seeker whom the market does not know."""
    row = {user: i for i, user in enumerate(truth.user_ids.tolist())}
    unknown = [user for user in user_ids if user not in row]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(user_ids)} seekers are not in the market's truth ({some_of(unknown)}); it knows "
            f"{len(row)}. Judge the JDs of the dataset that the truth was simulated with."
        )
    distinct = {jd: parse_job(jd) for jd in dict.fromkeys(jds)}
    readable = np.array([distinct[jd] is not None for jd in jds], dtype=bool)
    probability = np.zeros(len(jds))
    rows = np.flatnonzero(readable)
    if not len(rows):
        return probability, readable
    number = {jd: i for i, jd in enumerate(jd for jd, job in distinct.items() if job is not None)}
    jobs = _united([job for job in distinct.values() if job is not None])
    seeker = np.array([row[user_ids[i]] for i in rows])
    job = np.array([number[jds[i]] for i in rows])
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = truth.seekers.take(seeker[part]), jobs.take(job[part])
        probability[rows[part]] = match_probability(*pairs, truth.intercept)
    return probability, readable


def _united(jobs: Sequence[Jobs]) -> Jobs:
    return Jobs(**{field.name: np.concatenate([getattr(job, field.name) for job in jobs]) for field in fields(Jobs)})
