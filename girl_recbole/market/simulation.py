"""Simulate the market and write it as a dataset.

Days are counted from 1 April 2023 (UTC). The stages follow one another as in the GIRL paper's Table I: sft days 0-29,
reward 30-36, rl 37-39, recommendation 37-60. Seekers and jobs are there for a window of days (exponential lengths, from
a start in the stage). Of a stage's seekers and jobs at most ``market_carry_over`` are left from the stages before
(those whose window is still open); the others are new. The seekers of rl form their own group and apply for nothing.

Demand for occupations is a random walk of daily steps in log share: what is sought in May is not what was in April.

An application: a seeker, on a day of the window, looks at a slate of 16 open jobs (next step's occupation 30 %, present
one's 25 %, next step of the next step 10 %, anything 35 %; popular ones more often), and applies for the one with the
highest utility plus Gumbel noise (decisions.py). The label is Bernoulli(P(match)). Who has applied for a job does not
apply for it again, and no matched pair of sft and no pair of reward comes back in a later stage. sft keeps the matched
pairs, the other stages all: nothing in reward and recommendation is selected by label, so the stored probabilities are
those of the labels.

Written: the files of atomic.py; NAME.user and NAME.item (columns below); NAME.oracle.inter, the probability of every
pair of reward and recommendation; NAME.truth.npz, the latent states (:func:`read_truth`); last, the manifest of
NAME.inter.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from girl_recbole.atomic import DatasetFiles, atomic_write, write_docs, write_interactions, write_table, write_users
from girl_recbole.config import documented_keys
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import manifest_path, write_manifest
from girl_recbole.market.agents import Jobs, Seekers, draw_jobs, draw_seekers, follow
from girl_recbole.market.decisions import apply_utility, match_logit, sigmoid
from girl_recbole.market.taxonomy import SCHOOLS, Taxonomy, load_taxonomy
from girl_recbole.market.text import write_cvs, write_jds

__all__ = ["MarketConfig", "Truth", "read_truth", "simulate", "sizes_for"]

_log = logging.getLogger(__name__)

_EPOCH = int(pd.Timestamp("2023-04-01", tz="UTC").timestamp())
_DAYS = {"sft": (0, 30), "reward": (30, 37), "rl": (37, 40), "rec": (37, 61)}
_PAIRED = ("sft", "reward", "rec")
_DENSEST = 0.05  # share of all pairs of a stage that can be applications
_SEEKER_DAYS, _JOB_DAYS = 7.0, 12.0  # mean windows
_SLATE, _FROM = 16, (0.30, 0.25, 0.10)  # slate size; shares of next step, present occupation, step after next
_ROUNDS = 60
_USER_TYPES = {
    "user_id": "token", "age": "float", "gender": "token", "school": "token", "school_tier": "token",
    "occupation": "token", "family": "token",
}  # fmt: skip
_ITEM_TYPES = {"item_id": "token", "occupation": "token", "family": "token"}


@dataclass(frozen=True)
class MarketConfig:
    seed: int
    market_sft_pairs: int
    market_sft_seekers: int
    market_sft_jobs: int
    market_reward_pairs: int
    market_reward_seekers: int
    market_reward_jobs: int
    market_rl_seekers: int
    market_rec_pairs: int
    market_rec_seekers: int
    market_rec_jobs: int
    market_carry_over: float
    market_match_rate: float
    market_demand_drift: float


def sizes_for(seekers: int | None, jobs: int | None) -> dict[str, int]:
    """The ``market_*`` sizes of a market with ``seekers`` and ``jobs`` in its recommendation stage.

    The other stages and the pairs grow in proportion to the shipped sizes; jobs follow the seekers when not given. A
    very small market has fewer pairs, as not more than a share of all possible ones can be applications; one that has
    no room for a pair in each stage is a ``ConfigError``.
    """
    shipped = {key: int(value) for key, value, _ in documented_keys() if key.startswith("market_") and value.isdigit()}
    by_seekers = 1.0 if seekers is None else seekers / shipped["market_rec_seekers"]
    by_jobs = by_seekers if jobs is None else jobs / shipped["market_rec_jobs"]
    scale = {"seekers": by_seekers, "pairs": by_seekers, "jobs": by_jobs}
    sizes = {key: max(1, round(value * scale[key.rpartition("_")[2]])) for key, value in shipped.items()}
    for stage in _PAIRED:
        most = int(_DENSEST * sizes[f"market_{stage}_seekers"] * sizes[f"market_{stage}_jobs"])
        sizes[f"market_{stage}_pairs"] = min(sizes[f"market_{stage}_pairs"], most)
    if min(sizes[f"market_{stage}_pairs"] for stage in _PAIRED) < 1:
        rooms = (shipped[f"market_{stage}_seekers"] * shipped[f"market_{stage}_jobs"] for stage in _PAIRED)
        room = _DENSEST * min(rooms) / (shipped["market_rec_seekers"] * shipped["market_rec_jobs"])
        raise ConfigError(
            f"--seekers, --jobs: {sizes['market_rec_seekers']} seekers and {sizes['market_rec_jobs']} jobs leave a "
            f"stage without a pair; at least about {int(room**-0.5) + 1} seekers and as many jobs are needed."
        )
    return sizes


@dataclass(frozen=True)
class Truth:
    """The latent states behind a simulated dataset: row i of ``seekers`` is ``user_ids[i]``."""

    user_ids: np.ndarray
    item_ids: np.ndarray
    seekers: Seekers
    jobs: Jobs
    intercept: float


def simulate(files: DatasetFiles, config: MarketConfig) -> dict[str, Any]:
    """Simulate a market and write it into ``files``. Returns counts, the share of matches and the seconds it took."""
    started = time.perf_counter()
    _check(config)
    taxonomy = load_taxonomy()
    world, *streams = np.random.SeedSequence(config.seed).spawn(5)
    rng = np.random.default_rng(world)
    demand = _demand(rng, taxonomy, config.market_demand_drift)
    market = _populate(rng, taxonomy, demand, config)
    intercept = _intercept(np.random.default_rng(streams[3]), market, config)
    pairs: dict[str, pd.DataFrame] = {}
    seen = np.empty(0, dtype=np.int64)
    for stage, stream in zip(_PAIRED, streams, strict=False):
        pairs[stage] = _stage(np.random.default_rng(stream), market, stage, config, intercept, seen)
        seen = np.union1d(seen, _key(pairs[stage]["seeker"].to_numpy(), pairs[stage]["job"].to_numpy(), market))
    return _write(files, config, market, pairs, intercept, started)


def read_truth(files: DatasetFiles) -> Truth:
    """The latent states that :func:`simulate` wrote."""
    path = _truth_path(files)
    if not path.exists():
        raise DataError(
            f"{path}: no latent states; only a simulated dataset has them. Run `girl simulate {files.name}`."
        )
    with np.load(path, allow_pickle=False) as stored:
        seekers = {name[7:]: stored[name] for name in stored.files if name.startswith("seeker_")}
        strength = np.zeros((len(stored["seeker_occupation"]), len(load_taxonomy().skills)), dtype=np.uint8)
        rows = np.repeat(np.arange(len(strength)), stored["strength_count"])
        strength[rows, stored["strength_skill"]] = stored["strength_value"]
        jobs = {name[4:]: stored[name] for name in stored.files if name.startswith("job_")}
        return Truth(
            stored["user_ids"], stored["item_ids"], Seekers(strength=strength, **seekers), Jobs(**jobs),
            float(stored["intercept"]),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- population


@dataclass(frozen=True)
class _Market:
    seekers: Seekers
    plain: Seekers  # the same without strengths: what the choice to apply reads
    jobs: Jobs
    seeker_days: np.ndarray  # (n, 2) int: first day, day after the last
    job_days: np.ndarray
    seekers_of: dict[str, np.ndarray]  # stage -> seekers (rows) that take part
    jobs_of: dict[str, np.ndarray]


def _check(config: MarketConfig) -> None:
    small = [f.name for f in fields(config) if f.type == "int" and f.name != "seed" and getattr(config, f.name) < 1]
    if small:
        raise ConfigError(f"{', '.join(small)} must be at least 1.")
    for name, low, high in (("market_carry_over", 0, 0.9), ("market_match_rate", 0.01, 0.99)):
        if not low <= getattr(config, name) <= high:
            raise ConfigError(f"{name} is {getattr(config, name)}; {low} to {high} is required.")
    for stage in _PAIRED:
        pairs, seekers, jobs = (getattr(config, f"market_{stage}_{kind}") for kind in ("pairs", "seekers", "jobs"))
        if pairs > _DENSEST * seekers * jobs:
            raise ConfigError(
                f"market_{stage}_pairs is {pairs}, more than 5 % of {seekers} seekers x {jobs} jobs; "
                f"raise market_{stage}_seekers or market_{stage}_jobs."
            )


def _demand(rng: np.random.Generator, taxonomy: Taxonomy, drift: float) -> np.ndarray:
    """(days, O) shares: a random walk in log share, ``drift`` the standard deviation of its end after a month."""
    days, occupations = _DAYS["rec"][1], len(taxonomy.occupations)
    walk = rng.normal(0, 0.5, occupations) + np.cumsum(rng.normal(0, drift / 30**0.5, (days, occupations)), axis=0)
    share = np.exp(walk)
    return share / share.sum(axis=1, keepdims=True)


def _populate(rng: np.random.Generator, taxonomy: Taxonomy, demand: np.ndarray, config: MarketConfig) -> _Market:
    seeker_days, seekers_of = _windows(rng, config, "seekers", _SEEKER_DAYS)
    job_days, jobs_of = _windows(rng, config, "jobs", _JOB_DAYS)
    seekers = draw_seekers(rng, taxonomy, demand.mean(axis=0), len(seeker_days))
    jobs = draw_jobs(rng, taxonomy, demand, job_days[:, 0])
    plain = replace(seekers, strength=np.empty((len(seekers), 0), dtype=np.uint8))
    return _Market(seekers, plain, jobs, seeker_days, job_days, seekers_of, jobs_of)


def _windows(rng, config: MarketConfig, kind: str, mean_days: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Windows of days of everyone, and who takes part in which stage; rows are in the order of the stages."""
    days = np.empty((0, 2), dtype=np.int64)
    members: dict[str, np.ndarray] = {}
    free = np.empty(0, dtype=np.int64)  # may be carried over: all but rl
    for stage in ("sft", "reward", "rl", "rec") if kind == "seekers" else _PAIRED:
        first, end = _DAYS[stage]
        wanted = getattr(config, f"market_{stage}_{kind}")
        carried = free[days[free, 1] > first] if stage != "rl" else free[:0]
        carried = rng.permutation(carried)[: int(wanted * config.market_carry_over)]
        fresh = wanted - len(carried)
        start = rng.integers(first, end, fresh)
        if kind == "jobs":  # jobs that opened before the stage's first day are what its first seekers see
            start = np.where(rng.random(fresh) < 0.3, first, start)
        new = np.stack([start, start + 2 + rng.exponential(mean_days, fresh).astype(np.int64)], axis=1)
        rows = np.arange(len(days), len(days) + fresh)
        days = np.concatenate([days, new])
        members[stage] = np.concatenate([carried, rows])
        if stage != "rl":
            free = np.concatenate([free, rows])
    return days, members


# -------------------------------------------------------------------------------------------------------- applications


def _intercept(rng: np.random.Generator, market: _Market, config: MarketConfig) -> float:
    """``b`` such that a recommendation stage, simulated once for this, matches at ``market_match_rate`` on average."""
    logit = _stage(rng, market, "rec", config, 0.0, np.empty(0, dtype=np.int64))["logit"].to_numpy()
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logit + middle).mean() < config.market_match_rate else (low, middle)
    return round((low + high) / 2, 6)


def _stage(rng, market: _Market, stage: str, config: MarketConfig, intercept: float, seen: np.ndarray) -> pd.DataFrame:
    """The pairs of a stage by time: seeker, job (rows), label, probability, logit (without ``b``), timestamp."""
    wanted = getattr(config, f"market_{stage}_pairs")
    members = market.seekers_of[stage]
    activity = rng.gamma(3.0, size=len(members))
    kept, count = [], 0
    for round_ in range(_ROUNDS):
        need = wanted - count
        size = int(need / (config.market_match_rate if stage == "sft" else 1) * 1.05) + 16
        who = rng.choice(members, size=size, p=activity / activity.sum())
        if round_ == 0:  # everyone applies at least once, as far as the pairs go
            who[: len(members)] = rng.permutation(members)[:size]
        seeker, job, day = _apply(rng, market, stage, who)
        key = _key(seeker, job, market)
        first = np.sort(np.unique(key, return_index=True)[1])
        first = first[~np.isin(key[first], seen)]
        seen = np.union1d(seen, key[first])  # asked once: a rejected pair is not tried again
        seeker, job, day = seeker[first], job[first], day[first]
        logit = np.empty(len(seeker))
        for chunk in np.array_split(np.arange(len(seeker)), len(seeker) // 20_000 + 1):
            logit[chunk] = match_logit(market.seekers.take(seeker[chunk]), market.jobs.take(job[chunk]))
        probability = np.round(sigmoid(logit + intercept), 6)
        frame = pd.DataFrame(
            {
                "seeker": seeker,
                "job": job,
                "label": (rng.random(len(seeker)) < probability).astype(np.int8),
                "probability": probability,
                "logit": logit,
                "timestamp": _EPOCH + day * 86400 + rng.integers(7 * 3600, 22 * 3600, len(day)),
            }
        )
        kept.append(frame[frame["label"] == 1] if stage == "sft" else frame)
        count += len(kept[-1])
        if count >= wanted:
            break
    else:
        raise ConfigError(
            f"only {count} of {wanted} pairs of stage {stage} after {_ROUNDS} rounds of applications; "
            f"raise market_{stage}_seekers or market_{stage}_jobs."
        )
    everything = pd.concat(kept, ignore_index=True).iloc[:wanted]
    return everything.sort_values(["timestamp", "seeker", "job"], ignore_index=True)


def _apply(rng, market: _Market, stage: str, who: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One application of each of ``who``: (seekers, jobs, days), by day; who sees no open job drops out."""
    first, end = _DAYS[stage]
    window = market.seeker_days[who].clip(first, end)
    day = window[:, 0] + (rng.random(len(who)) * (window[:, 1] - window[:, 0])).astype(np.int64)
    order = np.argsort(day, kind="stable")
    who, day = who[order], day[order]
    jobs_here = market.jobs_of[stage]
    seekers, jobs, days = [], [], []
    for today in range(first, end):
        at = who[day == today]
        live = jobs_here[(market.job_days[jobs_here, 0] <= today) & (market.job_days[jobs_here, 1] > today)]
        if not len(at) or not len(live):
            continue
        for part in np.array_split(at, len(at) // 4000 + 1):
            chosen = _choose(rng, market, part, live)
            seekers.append(part)
            jobs.append(chosen)
            days.append(np.full(len(part), today))
    if not seekers:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty, empty
    return np.concatenate(seekers), np.concatenate(jobs), np.concatenate(days)


def _choose(rng, market: _Market, who: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The job that each of ``who`` applies for among the open ones, ``live``: the best of a slate by noisy utility."""
    taxonomy = load_taxonomy()
    live = live[np.argsort(market.jobs.occupation[live], kind="stable")]
    weight = np.concatenate([[0.0], np.cumsum(market.jobs.popularity[live].astype(np.float64))])
    occupation = market.jobs.occupation[live]
    edge = np.searchsorted(occupation, np.arange(len(taxonomy.occupations) + 1))
    goal, now = market.seekers.next_step[who].astype(np.int64), market.seekers.occupation[who].astype(np.int64)
    after = follow(rng, taxonomy.step, goal)
    source = np.digitize(rng.random((len(who), _SLATE)), np.cumsum(_FROM))  # 0 next, 1 present, 2 after next, 3 any
    target = np.select([source == 0, source == 1, source == 2], [goal[:, None], now[:, None], after[:, None]], -1)
    low, high = weight[edge[target]], weight[edge[target + 1]]
    anywhere = (target < 0) | (high <= low)
    low, high = np.where(anywhere, 0.0, low), np.where(anywhere, weight[-1], high)
    spot = np.searchsorted(weight, low + rng.random(low.shape) * (high - low), side="right") - 1
    slate = live[spot.clip(0, len(live) - 1)]
    rows = np.repeat(np.arange(len(who)), _SLATE)
    utility = apply_utility(market.plain.take(who[rows]), market.jobs.take(slate.ravel())).reshape(slate.shape)
    return slate[np.arange(len(who)), np.argmax(utility + rng.gumbel(size=slate.shape), axis=1)]


def _key(seeker: np.ndarray, job: np.ndarray, market: _Market) -> np.ndarray:
    return seeker.astype(np.int64) * len(market.jobs) + job


# ------------------------------------------------------------------------------------------------------------- writing


def _write(files, config, market: _Market, pairs: dict[str, pd.DataFrame], intercept: float, started: float):
    taxonomy = load_taxonomy()
    manifest_path(files.inter).unlink(missing_ok=True)  # until all is written, nothing vouches for it
    users = np.union1d(np.concatenate([frame["seeker"] for frame in pairs.values()]), market.seekers_of["rl"])
    items = np.unique(np.concatenate([frame["job"] for frame in pairs.values()]))
    users = users[np.lexsort((users, market.seeker_days[users, 0]))]  # numbered by arrival
    items = items[np.lexsort((items, market.job_days[items, 0]))]
    user_ids, item_ids = _ids("u", len(users)), _ids("j", len(items))
    name_user = pd.Series(user_ids, index=users)
    name_item = pd.Series(item_ids, index=items)
    seekers, jobs = market.seekers.take(users), market.jobs.take(items)
    for stage, frame in pairs.items():
        frame["user_id"], frame["item_id"] = name_user[frame["seeker"]].array, name_item[frame["job"]].array
        write_interactions(files.inter if stage == "rec" else files.stage(stage), frame)
    write_users(files.stage("rl"), sorted(name_user[market.seekers_of["rl"]]))
    oracle = pd.concat([pairs["reward"], pairs["rec"]], ignore_index=True)
    write_table(files.oracle, oracle, {"user_id": "token", "item_id": "token", "probability": "float"})
    write_table(files.path("user"), _user_table(seekers, user_ids, taxonomy), _USER_TYPES)
    write_table(files.path("item"), _occupations(jobs, item_ids, "item_id", taxonomy), _ITEM_TYPES)
    write_docs(files.udoc, zip(user_ids, write_cvs(seekers, (config.seed, 1)), strict=True), "user")
    write_docs(files.idoc, zip(item_ids, write_jds(jobs, (config.seed, 2)), strict=True), "item")
    _write_truth(files, seekers, jobs, user_ids, item_ids, intercept)
    report = {
        "users": len(users),
        "items": len(items),
        **{f"{stage}_pairs": len(frame) for stage, frame in pairs.items()},
        "rl_users": len(market.seekers_of["rl"]),
        "match_rate": float(pairs["rec"]["label"].mean()),
        "intercept": intercept,
    }
    facts = {key: value for key, value in report.items() if key != "intercept"}
    write_manifest(files.inter, "dataset", config=asdict(config), seed=config.seed, source="market", **facts,
                   wall_time_s=time.perf_counter() - started)  # fmt: skip
    _log.info("%s: %d seekers, %d jobs, match rate %.3f", files.name, len(users), len(items), report["match_rate"])
    return {**report, "seconds": time.perf_counter() - started}


def _ids(letter: str, count: int) -> list[str]:
    return [f"{letter}{number:06d}" for number in range(1, count + 1)]


def _user_table(seekers: Seekers, ids: list[str], taxonomy: Taxonomy) -> pd.DataFrame:
    frame = _occupations(seekers, ids, "user_id", taxonomy)
    frame["age"] = seekers.age
    frame["gender"] = np.array(["male", "female"])[seekers.gender]
    frame["school"] = np.array([name.replace(" ", "_") for tier in SCHOOLS for name in tier])[seekers.school]
    frame["school_tier"] = np.array(["1", "2", "3"])[seekers.school // 3]
    return frame


def _occupations(rows: Seekers | Jobs, ids: list[str], key: str, taxonomy: Taxonomy) -> pd.DataFrame:
    codes = np.array([occupation.code for occupation in taxonomy.occupations])
    families = np.array([name.replace(" ", "_") for name in taxonomy.families])
    return pd.DataFrame(
        {key: ids, "occupation": codes[rows.occupation], "family": families[taxonomy.family[rows.occupation]]}
    )


def _truth_path(files: DatasetFiles) -> Path:
    return files.path("truth.npz")


def _write_truth(
    files, seekers: Seekers, jobs: Jobs, user_ids: list[str], item_ids: list[str], intercept: float
) -> None:
    rows, skill = np.nonzero(seekers.strength)
    arrays = {f"seeker_{name}": array for name, array in seekers.arrays().items() if name != "strength"}
    arrays |= {f"job_{name}": array for name, array in jobs.arrays().items()}
    arrays |= {
        "user_ids": np.array(user_ids, dtype=str),
        "item_ids": np.array(item_ids, dtype=str),
        "strength_count": np.bincount(rows, minlength=len(seekers)).astype(np.int16),
        "strength_skill": skill.astype(np.int16),
        "strength_value": seekers.strength[rows, skill],
        "intercept": np.array(intercept),
    }
    with atomic_write(_truth_path(files), "wb") as file:
        np.savez_compressed(file, **arrays)
