"""From matched pairs (and mismatches, observed or sampled) to the stages of a dataset, and its files.

Stages by random seekers: all pairs of a seeker go to one stage, drawn with a seed by ``stage_shares`` (sft, reward, rl,
recommendation). sft keeps the matched pairs, rl the seekers alone. Mismatches are sampled within a stage, for every
matched pair ``negatives_per_positive`` of them, by a named rule:

    random            every job of the stage is equally likely
    popularity        a job is drawn in proportion to its matched pairs in the stage
    same_occupation   every job of the stage with the occupation of the matched job is equally likely

A job that the seeker is matched with, or a near duplicate of it, is never drawn, and no pair is drawn twice (a pair
that is matched in another stage is not drawn either: ``exclude``). The jobs come from the seeker's own stage, so that
each job of that stage is matched somewhere in it and no model can tell a mismatch by a job that never matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from girl_recbole.atomic import DatasetFiles, atomic_write, write_docs, write_interactions, write_users
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import manifest_path, write_manifest
from girl_recbole.prepare.report import Report

__all__ = [
    "RULES",
    "STAGE_NAMES",
    "add_mismatches",
    "assign_stages",
    "check_shares",
    "one_row_a_pair",
    "sample_mismatches",
    "stage_frames",
    "write_dataset",
]

STAGE_NAMES = ("sft", "reward", "rl", "recommendation")
RULES = ("random", "popularity", "same_occupation")
_ROUNDS = 50


def check_shares(shares: list) -> None:
    numbers = len(shares) == 4 and all(isinstance(s, (int, float)) and s >= 0 for s in shares)
    if not numbers or abs(sum(shares) - 1) > 1e-6 or not shares[3]:
        raise ConfigError(
            f"stage_shares: {shares} must be four shares that sum to 1 (sft, reward, rl, recommendation), the last > 0."
        )


def assign_stages(seekers: Iterable[str], shares: list, seed: int) -> dict[str, str]:
    """``{seeker: stage}``, drawn at random; the order of ``seekers`` does not matter."""
    drawn = np.random.default_rng(seed).permutation(np.array(sorted(seekers), dtype=object))
    ends = np.round(np.cumsum(shares) * len(drawn)).astype(int)
    stage_of = np.searchsorted(ends, np.arange(len(drawn)), side="right")
    return {seeker: STAGE_NAMES[min(stage, 3)] for seeker, stage in zip(drawn, stage_of, strict=True)}


def one_row_a_pair(pairs: pd.DataFrame, report: Report) -> pd.DataFrame:
    """One row a pair, sorted by pair: a match before a mismatch, then the earliest. The others are counted."""
    by = ["user_id", "item_id", "label"] + (["timestamp"] if "timestamp" in pairs else [])
    ordered = pairs.sort_values(by, ascending=[True, True, False, True][: len(by)], kind="stable")
    again = ordered.duplicated(["user_id", "item_id"])
    report.add("dropped", "further rows of a pair (a match is kept before a mismatch)", int(again.sum()))
    return ordered[~again]


def sample_mismatches(
    matched: pd.DataFrame,
    rule: str,
    per_positive: int,
    seed: int,
    *,
    occupations: Mapping[str, Iterable[str]] | None = None,
    twins: Mapping[str, int] | None = None,
    exclude: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, int]:
    """Sampled mismatches for the matched pairs of one stage, with their columns, and how many are lacking.

    A mismatch has label 0 and the time, where there are times, of the matched pair that it is drawn for.
    ``occupations`` names each job's occupations (a job of several is drawn from one of them at random); ``twins`` its
    group of near duplicates; pairs of ``exclude`` are not drawn. Lacking are draws for which 50 attempts found no other
    job.
    """
    if rule not in RULES:
        raise ConfigError(f"negatives: {rule!r} is no sampling rule; known: {', '.join(RULES)}.")
    rng = np.random.default_rng(seed)
    ordered = matched.sort_values(["user_id", "item_id"])
    jobs, own = np.unique(ordered["item_id"].to_numpy().astype(str), return_inverse=True)
    users, names = pd.factorize(ordered["user_id"])
    draw = _drawer(rule, rng, jobs, own, occupations)
    twin = np.array([twins[job] for job in jobs]) if twins else np.arange(len(jobs))
    taken = np.sort(users.astype(np.int64) * len(jobs) + own)
    if exclude is not None:
        user = pd.Index(names).get_indexer(exclude["user_id"]).astype(np.int64)
        job = pd.Index(jobs.astype(object)).get_indexer(exclude["item_id"])
        taken = np.union1d(taken, (user * len(jobs) + job)[(user >= 0) & (job >= 0)])
    slots = np.repeat(np.arange(len(ordered)), per_positive)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_ROUNDS):
        if not len(slots):
            break
        job = draw(own[slots])
        key = users[slots].astype(np.int64) * len(jobs) + job
        at = np.minimum(np.searchsorted(taken, key), len(taken) - 1)
        good = (job >= 0) & (taken[at] != key) & (twin[job] != twin[own[slots]])
        first = np.zeros(len(key), dtype=bool)
        first[np.unique(key, return_index=True)[1]] = True
        good &= first
        found.append((slots[good], job[good]))
        taken = np.sort(np.concatenate((taken, key[good])))
        slots = slots[~good]
    of = np.concatenate([s for s, _ in found] or [slots])
    picked = ordered.iloc[of].reset_index(drop=True)
    picked["item_id"] = jobs[np.concatenate([j for _, j in found] or [slots])].astype(object)
    picked["label"] = 0.0
    return picked, len(slots)


def add_mismatches(pairs: pd.DataFrame, stage: str, report: Report, rule: str, per_positive: int, seed: int,
                   **known) -> pd.DataFrame:  # fmt: skip
    """``pairs`` of a stage and the mismatches sampled for them, counted in the report."""
    mismatched, lacking = sample_mismatches(pairs, rule, per_positive, seed, **known)
    report.add("sampled", f"mismatches of {stage} ({rule})", len(mismatched))
    report.add("sampled", f"mismatches of {stage} for which no other job was found", lacking)
    return pd.concat([pairs, mismatched], ignore_index=True)


def stage_frames(
    pairs: pd.DataFrame,
    stage_of: Mapping[str, str],
    report: Report,
    *,
    rule: str | None = None,
    per_positive: int = 0,
    seed: int = 0,
    occupations: Mapping[str, Iterable[str]] | None = None,
    twins: Mapping[str, int] | None = None,
) -> dict[str, pd.DataFrame]:
    """``pairs`` by the stage of their seekers; with ``rule``, mismatches are sampled for reward and recommendation."""
    stage = pairs["user_id"].map(stage_of)
    frames = {name: pairs[stage == name] for name in STAGE_NAMES}
    report.add("dropped", "mismatched pairs of sft seekers", int(frames["sft"]["label"].eq(0).sum()))
    report.add("dropped", "pairs of rl seekers (their CVs alone are used)", len(frames["rl"]))
    frames["sft"] = frames["sft"][frames["sft"]["label"].eq(1)]
    frames["rl"] = pd.DataFrame({"user_id": sorted(u for u, s in stage_of.items() if s == "rl")}, dtype=str)
    if rule is not None:
        for number, name in enumerate(("reward", "recommendation")):
            frames[name] = add_mismatches(
                frames[name], name, report, rule, per_positive, seed + number, occupations=occupations, twins=twins
            )
    return {name: frame.sort_values(list(frame.columns[:2])) for name, frame in frames.items()}


def write_dataset(
    files: DatasetFiles,
    frames: Mapping[str, pd.DataFrame],
    cvs: Iterable[tuple[str, str]],
    jds: Iterable[tuple[str, str]],
    report: Report,
    *,
    config: Mapping,
    seed: int,
    inputs: Iterable[Path],
    wall_time_s: float,
) -> dict:
    """Write the interactions of the stages, the documents, NAME.report.txt and a manifest each. Returns the report."""
    if "recommendation" in frames and not len(frames["recommendation"]):
        raise DataError(
            f"{files.inter}: the recommendation stage has no pair; give it more seekers (stage_shares) or "
            f"days (stage_dates). {report.text()}"
        )
    written = []
    if "recommendation" in frames:
        write_interactions(files.inter, frames["recommendation"])
        written.append(files.inter)
    for stage in ("sft", "reward", "rl"):
        path = files.stage(stage)
        if len(frames.get(stage, ())):
            if stage == "rl":
                write_users(path, frames["rl"]["user_id"])
            else:
                write_interactions(path, frames[stage])
            written.append(path)
        else:  # an older preparation of this dataset may have had the stage
            path.unlink(missing_ok=True)
            manifest_path(path).unlink(missing_ok=True)
    report.add("kept", "CVs", write_docs(files.udoc, cvs, "user"))
    report.add("kept", "JDs", write_docs(files.idoc, jds, "item"))
    written += [files.udoc, files.idoc]
    for name, frame in frames.items():
        if name == "rl":
            report.add("kept", "seekers of rl", len(frame))
        else:
            for label, word in ((1, "matched"), (0, "mismatched"))[: 1 if name == "sft" else 2]:
                report.add("kept", f"{word} pairs of {name}", int(frame["label"].eq(label).sum()))
    with atomic_write(files.path("report.txt")) as file:
        file.write(report.text())
    inputs = list(inputs)
    for path in written:
        write_manifest(
            path,
            "prepare",
            config=config,
            seed=seed,
            inputs=inputs,
            wall_time_s=wall_time_s,
            report=report.as_dict(),
        )
    return report.as_dict()


def _drawer(rule, rng, jobs, own, occupations):
    """A function from matched jobs (m,) to drawn jobs (m,), all as positions in ``jobs``; -1 where there is none."""
    if rule == "random":
        return lambda of: rng.integers(0, len(jobs), len(of))
    if rule == "popularity":
        ends = np.cumsum(np.bincount(own, minlength=len(jobs)))
        return lambda of: np.searchsorted(ends, rng.integers(0, ends[-1], len(of)), side="right")
    if occupations is None:
        raise ConfigError("negatives: same_occupation needs a source that names the occupation of each job.")
    exploded = pd.Series([list(occupations[job]) for job in jobs]).explode()
    names = pd.factorize(exploded)[0]  # (e,) occupation of each (job, occupation) entry; -1 where a job has none
    job_of = exploded.index.to_numpy()
    by_name = np.argsort(names, kind="stable")
    starts = np.searchsorted(names[by_name], np.arange(names.max(initial=-1) + 2))
    first = np.searchsorted(job_of, np.arange(len(jobs)))
    counts = np.bincount(job_of, minlength=len(jobs))

    def draw(of):
        name = names[first[of] + (rng.random(len(of)) * counts[of]).astype(np.int64)]
        begin, end = starts[name], starts[np.minimum(name + 1, len(starts) - 1)]
        at = begin + (rng.random(len(of)) * (end - begin)).astype(np.int64)
        return np.where((name >= 0) & (end > begin), job_of[by_name[np.minimum(at, len(by_name) - 1)]], -1)

    return draw
