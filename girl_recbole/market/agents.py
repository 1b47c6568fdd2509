"""Seekers and jobs as arrays of latent states, drawn all at once.

A seeker has an occupation, a next step (the occupation wanted next: the same for ``1 - _MOVER`` of them, else drawn
from ``Taxonomy.step``), years of practice and the level 0..4 they led to, an ambition (0 or 1 level up), wishes for pay
(thousand USD a year), place, moving and remote work, and a strength in 0..100 for every skill: most of the core skills
and some tools of the occupation, some of the former and of the next occupation's, a few soft skills. Age, gender and
school belong to the seeker and enter no decision: age is years of practice plus schooling and idle years; gender
leans by family as labour markets do; the school's tier is drawn apart from everything.

A job has an occupation, a level, must-haves and nice-to-haves (skill numbers, padded with -1), a pay, a place, remote
work or not, a popularity (how often it is seen) and an openness (how easily its recruiter says yes).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from girl_recbole.market.taxonomy import PLACES, Taxonomy

__all__ = ["MUSTS", "NICES", "Jobs", "Seekers", "draw_jobs", "draw_seekers", "follow", "region_of"]

MUSTS, NICES = 6, 4  # widths of the padded requirement arrays
_MOVER, _HAD_ANOTHER_JOB = 0.5, 0.6
_LEVEL_YEARS = (1.5, 4.0, 8.5, 14.0)  # level 0 below the first, 4 above the last
_PAY_PER_LEVEL, _PAY_SD = 0.17, 0.12
_REMOTE = np.array([0.55, 0.4, 0.3, 0.3, 0.35, 0.45, 0.15, 0.05, 0.02, 0.08, 0.03, 0.03, 0.05, 0.08])  # by family
_WOMEN = np.array([0.3, 0.28, 0.5, 0.65, 0.5, 0.5, 0.2, 0.12, 0.25, 0.3, 0.8, 0.5, 0.72, 0.5])  # by family


class _Rows:
    def take(self, rows: np.ndarray):
        """The same record with the given rows (a mask or numbers) of every array."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.occupation)


@dataclass(frozen=True)
class Seekers(_Rows):
    occupation: np.ndarray  # (n,) int16
    next_step: np.ndarray  # (n,) int16
    former: np.ndarray  # (n,) int16; the occupation itself where there was no other
    years: np.ndarray  # (n,) int16
    level: np.ndarray  # (n,) int8, 0 trainee .. 4 lead
    ambition: np.ndarray  # (n,) int8, levels up
    pay_wish: np.ndarray  # (n,) float32, thousand USD a year
    place: np.ndarray  # (n,) int8
    mobility: np.ndarray  # (n,) int8: 0 stays, 1 moves within the region, 2 anywhere
    likes_remote: np.ndarray  # (n,) bool
    strength: np.ndarray  # (n, skills) uint8, 0..100
    appeal: np.ndarray  # (n,) float32: how well the seeker does in talks; no text tells it
    age: np.ndarray  # (n,) int16; protected, enters no decision
    gender: np.ndarray  # (n,) int8, 0 male, 1 female; protected, enters no decision
    school: np.ndarray  # (n,) int8, tier * 3 + school of that tier; protected, enters no decision


@dataclass(frozen=True)
class Jobs(_Rows):
    occupation: np.ndarray  # (n,) int16
    level: np.ndarray  # (n,) int8
    musts: np.ndarray  # (n, MUSTS) int16, -1 where none
    nices: np.ndarray  # (n, NICES) int16, -1 where none
    pay: np.ndarray  # (n,) float32, thousand USD a year; NaN where unknown
    place: np.ndarray  # (n,) int8; -1 where unknown
    remote: np.ndarray  # (n,) bool
    popularity: np.ndarray  # (n,) float32, mean about 1
    openness: np.ndarray  # (n,) float32, log-odds


def draw_seekers(rng: np.random.Generator, taxonomy: Taxonomy, supply: np.ndarray, n: int) -> Seekers:
    """``n`` seekers; ``supply`` (O,) is the share of each occupation."""
    pay, family = _pay(taxonomy), taxonomy.family
    occupation = rng.choice(len(supply), size=n, p=supply)
    next_step = np.where(rng.random(n) < _MOVER, follow(rng, taxonomy.step, occupation), occupation)
    former = np.where(rng.random(n) < _HAD_ANOTHER_JOB, follow(rng, taxonomy.step.T, occupation), occupation)
    years = np.minimum(rng.gamma(1.6, 4.6, n), 35).astype(np.int16)
    level = np.digitize(years + rng.normal(0, 0.8, n), _LEVEL_YEARS)
    ambition = ((rng.random(n) < 0.4) & (level < 4)).astype(np.int8)
    place = rng.integers(len(PLACES), size=n)
    wanted = 0.5 * np.log(pay[occupation]) + 0.5 * np.log(pay[next_step]) + _PAY_PER_LEVEL * (level + ambition - 2)
    pay_wish = np.exp(wanted + rng.normal(0, 0.15, n)) * _place_pay(place)
    return Seekers(
        occupation=occupation.astype(np.int16),
        next_step=next_step.astype(np.int16),
        former=former.astype(np.int16),
        years=years,
        level=level.astype(np.int8),
        ambition=ambition,
        pay_wish=np.round(pay_wish).astype(np.float32),
        place=place.astype(np.int8),
        mobility=rng.choice(3, size=n, p=[0.5, 0.3, 0.2]).astype(np.int8),
        likes_remote=rng.random(n) < 0.45,
        strength=_strengths(rng, taxonomy, occupation, next_step, former, level),
        appeal=rng.normal(0, 1, n).astype(np.float32),
        age=(years + 20 + rng.poisson(3, n)).astype(np.int16),
        gender=(rng.random(n) < _WOMEN[family[occupation]]).astype(np.int8),
        school=(3 * rng.choice(3, size=n, p=[0.2, 0.5, 0.3]) + rng.integers(3, size=n)).astype(np.int8),
    )


def draw_jobs(rng: np.random.Generator, taxonomy: Taxonomy, demand: np.ndarray, day: np.ndarray) -> Jobs:
    """One job for each entry of ``day`` (the day it opens); ``demand`` (days, O) is each day's share of occupations."""
    n, pay = len(day), _pay(taxonomy)
    occupation = (rng.random(n)[:, None] > np.cumsum(demand, axis=1)[day]).sum(axis=1).clip(max=demand.shape[1] - 1)
    level = rng.choice(5, size=n, p=[0.12, 0.24, 0.32, 0.22, 0.10])
    place = rng.integers(len(PLACES), size=n)
    offered = np.log(pay[occupation]) + _PAY_PER_LEVEL * (level - 2) + rng.normal(0, _PAY_SD, n)
    scarce = np.log(demand[day, occupation] / demand[:, occupation].mean(axis=0))
    musts, nices = _requirements(rng, taxonomy, occupation)
    return Jobs(
        occupation=occupation.astype(np.int16),
        level=level.astype(np.int8),
        musts=musts,
        nices=nices,
        pay=np.round(np.exp(offered) * _place_pay(place)).astype(np.float32),
        place=place.astype(np.int8),
        remote=rng.random(n) < _REMOTE[taxonomy.family[occupation]],
        popularity=np.exp(rng.normal(-0.25, 0.7, n)).astype(np.float32),
        openness=(0.5 * scarce + rng.normal(0, 0.4, n)).astype(np.float32),  # in demand: recruiters say yes sooner
    )


def region_of(place: np.ndarray) -> np.ndarray:
    return np.array([region for _, region, _ in PLACES])[place]


def _place_pay(place: np.ndarray) -> np.ndarray:
    return np.array([level for *_, level in PLACES])[place]


def _pay(taxonomy: Taxonomy) -> np.ndarray:
    return np.array([occupation.pay for occupation in taxonomy.occupations])


def follow(rng: np.random.Generator, weight: np.ndarray, start: np.ndarray) -> np.ndarray:
    """One step from each ``start`` along the rows of ``weight``."""
    cumulative = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
    draws = rng.random(len(start))
    reached = np.empty(len(start), dtype=np.int64)
    for occupation in range(len(weight)):
        rows = np.flatnonzero(start == occupation)
        reached[rows] = np.searchsorted(cumulative[occupation], draws[rows]).clip(max=len(weight) - 1)
    return reached


def _strengths(rng, taxonomy: Taxonomy, occupation, next_step, former, level) -> np.ndarray:
    """(n, skills) uint8: skills known by work, by former work, by reaching for the next step, and soft ones."""
    n = len(occupation)
    strength = np.zeros((n, len(taxonomy.skills)), dtype=np.uint8)

    def learn(rows: np.ndarray, skills: np.ndarray, known: float, low: float, high: float, per_level: float) -> None:
        shape = (len(rows), len(skills))
        value = rng.uniform(low, high, shape) + per_level * level[rows, None]
        value = np.where(rng.random(shape) < known, value.clip(0, 1) * 100, 0).astype(np.uint8)
        block = np.ix_(rows, skills)
        strength[block] = np.maximum(strength[block], value)

    for number, this in enumerate(taxonomy.occupations):
        learn(np.flatnonzero(former == number), this.core, 0.35, 0.2, 0.7, 0.03)
        reaching = np.flatnonzero((next_step == number) & (next_step != occupation))
        learn(reaching, this.core, 0.5, 0.35, 0.9, 0.02)
        learn(reaching, this.tools, 0.2, 0.3, 0.8, 0.02)
        rows = np.flatnonzero(occupation == number)
        learn(rows, this.core, 0.72, 0.25, 0.9, 0.06)
        learn(rows, this.tools, 0.45, 0.3, 0.95, 0.03)
    learn(np.arange(n), taxonomy.soft, 0.2, 0.4, 1.0, 0.0)
    return strength


def _requirements(rng, taxonomy: Taxonomy, occupation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Must: 3-4 core skills (the usual ones more often), 0-2 tools. Nice: a tool, a core, a related and a soft one."""
    n = len(occupation)
    musts = np.full((n, MUSTS), -1, dtype=np.int16)
    nices = np.full((n, NICES), -1, dtype=np.int16)
    neighbour = follow(rng, np.where(taxonomy.near < 1, taxonomy.near, 0).astype(np.float64), occupation)
    n_core, n_tools = rng.integers(3, 5, n), rng.integers(0, 3, n)
    for number, this in enumerate(taxonomy.occupations):
        rows = np.flatnonzero(occupation == number)
        keys = rng.gumbel(size=(len(rows), len(this.core))) - 0.25 * np.arange(len(this.core))
        core = this.core[np.argsort(-keys, axis=1)]
        tools = this.tools[np.argsort(-rng.random((len(rows), len(this.tools))), axis=1)]
        musts[rows, :4] = np.where(np.arange(4) < n_core[rows, None], core[:, :4], -1)
        musts[rows, 4:] = np.where(np.arange(2) < n_tools[rows, None], tools[:, :2], -1)
        if tools.shape[1] > 2:
            nices[rows, 0] = tools[:, 2]
        nices[rows, 1] = np.where(rng.random(len(rows)) < 0.5, core[:, 4], -1)
    related = np.stack([occupation_.core for occupation_ in taxonomy.occupations])[neighbour, rng.integers(7, size=n)]
    nices[:, 2] = np.where(
        (musts == related[:, None]).any(axis=1) | (nices == related[:, None]).any(axis=1), -1, related
    )
    nices[:, 3] = rng.choice(taxonomy.soft, size=n)
    return musts, nices
