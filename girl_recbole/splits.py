"""Train, valid and test of the recommendation stage: ``warm``, ``cold``, ``cold_strict``, as RecBole benchmark files.

The paper (GIRL, arXiv 2307.02157, Table I) gives the shares 77 / 9.5 / 13.5 % of the interactions, and no rule. Ours:

``warm``         Every seeker of valid and test is in train. Rows are put in order (by time where they have times, else
                 by a random draw) and cut once: what comes before the cut is train, then valid, then test. A seeker
                 whose rows all come after the cut is unknown at the cut. ``warm_unseen: move`` sends the earliest row
                 of each such seeker to train, and the cut moves back so that the shares hold; nothing is lost, a
                 seeker's own train rows still precede his valid and test rows, and valid precedes test.
                 ``warm_unseen: drop`` removes those seekers' rows instead, so that all of train precedes all of valid
                 and test; the cut is then the latest one that leaves train its share of what is kept.
``cold``         No seeker is in two parts. Seekers are drawn in a random order; the first whose rows fill the test
                 share are test, then valid, then train. They may be in the sft and reward stages.
``cold_strict``  As ``cold``, and the seekers of valid and test are drawn from those who are in no stage at all.

Several rows of one (seeker, job) pair become one before anything else: the matched one if there is one, and of these
the earliest; the rest are dropped and counted. So no pair can be in two parts. A pair of valid or test that is also a
pair of the sft or reward stage is dropped from it and counted: a generator trained on it would be judged by it.

With ``split_suffix: s1`` the files are NAME.cold-s1.train.inter and so on, and a recommender names ``split: cold-s1``:
several draws (``split_seed``) lie side by side. Rules are pure functions of (rows, shares, seed); the order of the rows
in the file does not matter. Refused, because a figure measured on it would be wrong: a seeker of the rl stage in valid,
test, sft or reward; an empty part; valid or test with one class only. NAME.SPLIT.overlap is a table of the seekers,
jobs and pairs that each two of the parts and stages share.

The files of an earlier draw are removed before the new ones are written, so that a run that is killed leaves a part
missing, never parts of two draws; the manifests come last.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from girl_recbole.atomic import (
    PARTS,
    SPLITS,
    DatasetFiles,
    read_interactions,
    read_users,
    write_interactions,
    write_table,
)
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.leaks import told_by_train, warnings_of
from girl_recbole.manifest import cached_file_hash, manifest_path, read_manifest, write_manifest

__all__ = ["SplitConfig", "changed_inputs", "cold_parts", "overlaps", "split", "warm_parts"]

_log = logging.getLogger(__name__)
_TRAIN, _VALID, _TEST, _DROPPED, _DROPPED_KNOWN = 0, 1, 2, -1, -2


@dataclass(frozen=True)
class SplitConfig:
    split: str
    split_ratio: list
    split_seed: int | None
    split_suffix: str
    warm_order: str
    warm_unseen: str
    seed: int


def split(files: DatasetFiles, config: SplitConfig) -> dict:
    """Cut ``NAME.inter`` by the rule ``config.split``; write the three parts, their manifests and the overlap table.

    Returns the report that the manifests keep: rows, seekers and matched share of each part, what was dropped or moved,
    what the matches in train tell of the other parts' labels (leaks.py), and how many seekers, jobs and pairs each two
    of the parts and stages share.
    """
    started = time.monotonic()
    _check_config(config)
    name = config.split + (f"-{config.split_suffix}" if config.split_suffix else "")
    seed = config.seed if config.split_seed is None else config.split_seed
    stages = _read_stages(files)
    _check_stages(files, stages)
    read = read_interactions(files.inter)
    rows, merged = _one_row_a_pair(read)
    if config.split == "warm":
        by_time = _orders_by_time(rows, config.warm_order, files)
        codes, moved = warm_parts(rows, config.split_ratio, seed, by_time=by_time, unseen=config.warm_unseen)
        facts = {"order": "time" if by_time else "random", "moved_to_train": moved}
    else:
        strict = config.split == "cold_strict"
        excluded = set().union(*(set(stage["user_id"]) for stage in stages.values())) if strict else set()
        codes = cold_parts(rows, config.split_ratio, seed, excluded=excluded)
        facts = {"seekers_kept_out_of_evaluation": int(rows["user_id"].drop_duplicates().isin(excluded).sum())}
    known = _in_stages(rows, stages) & (codes > _TRAIN)
    codes = np.where(known, _DROPPED_KNOWN, codes)
    if known.any():
        _log.warning("%s: %d pairs of the sft or reward stage were dropped from valid and test", name, known.sum())
    parts = {part: rows[codes == code] for code, part in enumerate(PARTS)}
    _check_parts(files, name, parts, stages)
    held_out = pd.concat([parts["valid"], parts["test"]])
    told = told_by_train(parts["train"], held_out)
    for warning in warnings_of(told, held_out["label"]):
        _log.warning("%s, split %s: %s Models of ids and of match rates learn this instead of fit (docs/data.md).",
                     files.name, name, warning)  # fmt: skip
    shared = overlaps({**parts, **stages})
    report = {
        "split": name,
        "rows_read": len(read),
        "dropped_repeated_pairs": merged,
        "dropped_unseen_seekers": int((codes == _DROPPED).sum()),
        "dropped_pairs_of_sft_or_reward": int(known.sum()),
        **facts,
        "parts": {part: _describe(frame, len(rows)) for part, frame in parts.items()},
        "told_by_matches_in_train": told,
        "overlap": shared.to_dict("records"),
    }
    targets = {part: files.split(name, part) for part in PARTS}
    for path in (*map(manifest_path, targets.values()), *targets.values()):
        path.unlink(missing_ok=True)
    for part, frame in parts.items():
        write_interactions(targets[part], frame)
    write_table(
        files.path(f"{name}.overlap"),
        shared,
        {"first": "token", "second": "token", "seekers": "float", "jobs": "float", "pairs": "float"},
    )
    inputs = [files.inter, *(files.stage(stage) for stage in stages)]
    for path in targets.values():
        write_manifest(
            path,
            "split",
            config=asdict(config),
            seed=seed,
            inputs=inputs,
            wall_time_s=time.monotonic() - started,
            report=report,
        )
    return report


def changed_inputs(files: DatasetFiles, name: str) -> list[str]:
    """The files that the split ``name`` was cut from and that are not as they were; [] where it has no manifest."""
    recorded = (read_manifest(files.split(name, "train")) or {}).get("inputs", {})
    paths = {input_name: files.folder / Path(input_name).name for input_name in recorded}
    return [key for key, path in paths.items() if not path.is_file() or cached_file_hash(path) != recorded[key]]


# ------------------------------------------------------------------------------------------------------------ rules


def warm_parts(
    rows: pd.DataFrame, ratio: list[float], seed: int, *, by_time: bool, unseen: str
) -> tuple[np.ndarray, int]:
    """The part of each row, (n,) int8: 0 train, 1 valid, 2 test, -1 dropped; and the number of rows moved to train.

    ``rows`` has one row a pair. k = position of the cut in the order, F(k) = seekers whose first row is before k.
    move: train has k + (U - F(k)) rows, U = all seekers; the largest k at which that is at most its share of n.
    drop: kept are the A(k) rows of the F(k) seekers; the largest k with k at most its share of A(k).
    """
    n = len(rows)
    order = _order(rows, seed, by_time)
    users = pd.factorize(rows["user_id"].to_numpy()[order])[0]
    is_first = np.zeros(n, dtype=bool)
    is_first[np.unique(users, return_index=True)[1]] = True
    cuts = np.arange(n + 1)
    if unseen == "move":
        firsts = np.concatenate(([0], np.cumsum(is_first)))
        in_train = cuts + firsts[-1] - firsts
        cut = max(int(np.searchsorted(in_train, ratio[0] * n + 1e-9, side="right")) - 1, 0)
        is_train = (np.arange(n) < cut) | is_first
        kept = np.ones(n, dtype=bool)
    else:
        rows_of = np.bincount(users, minlength=users.max(initial=-1) + 1)
        kept_rows = np.concatenate(([0], np.cumsum(np.where(is_first, rows_of[users], 0))))
        cut = int(np.flatnonzero(cuts <= ratio[0] * kept_rows + 1e-9)[-1])
        is_train = np.arange(n) < cut
        known = np.zeros(len(rows_of), dtype=bool)
        known[users[is_train]] = True
        kept = known[users]
    codes = np.full(n, _DROPPED, dtype=np.int8)
    codes[is_train] = _TRAIN
    held_out = np.flatnonzero(kept & ~is_train)
    n_valid = round(len(held_out) * ratio[1] / (ratio[1] + ratio[2]))
    codes[held_out[:n_valid]] = _VALID
    codes[held_out[n_valid:]] = _TEST
    result = np.empty(n, dtype=np.int8)
    result[order] = codes
    return result, int((is_train & (np.arange(n) >= cut)).sum())


def cold_parts(rows: pd.DataFrame, ratio: list[float], seed: int, *, excluded: set[str]) -> np.ndarray:
    """The part of each row, (n,) int8: 0 train, 1 valid, 2 test. No seeker is in two parts.

    Seekers outside ``excluded`` are drawn in a random order; a seeker is test while the middle of his rows lies within
    the test share of all n rows, then valid, then train. Where the free seekers have fewer rows than both shares ask
    for, all of them are used, in the proportion of the shares, and train is larger.
    """
    n = len(rows)
    seekers, users = np.unique(rows["user_id"].to_numpy().astype(str), return_inverse=True)
    rows_of = np.bincount(users, minlength=len(seekers))
    free = np.flatnonzero(~np.isin(seekers, list(excluded))) if excluded else np.arange(len(seekers))
    drawn = np.random.default_rng(seed).permutation(free)
    ends = np.cumsum(rows_of[drawn])
    middles = ends - rows_of[drawn] / 2
    wanted = min((ratio[1] + ratio[2]) * n, float(ends[-1]) if len(ends) else 0.0)
    n_test = wanted * ratio[2] / (ratio[1] + ratio[2])
    code_of = np.full(len(seekers), _TRAIN, dtype=np.int8)
    code_of[drawn[middles < wanted]] = _VALID
    code_of[drawn[middles < n_test]] = _TEST
    return code_of[users]


def overlaps(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """``first, second, seekers, jobs, pairs``: what each two of ``frames`` share. No item_id, no jobs."""
    seekers = {name: set(frame["user_id"]) for name, frame in frames.items()}
    jobs = {name: set(frame["item_id"]) if "item_id" in frame else set() for name, frame in frames.items()}
    pairs = {
        name: set(zip(frame["user_id"], frame["item_id"], strict=True)) if "item_id" in frame else set()
        for name, frame in frames.items()
    }
    return pd.DataFrame(
        [
            {
                "first": a,
                "second": b,
                "seekers": len(seekers[a] & seekers[b]),
                "jobs": len(jobs[a] & jobs[b]),
                "pairs": len(pairs[a] & pairs[b]),
            }
            for a, b in combinations(frames, 2)
        ]
    )


# ---------------------------------------------------------------------------------------------------------- details


def _one_row_a_pair(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """One row a pair (matched before mismatched, then the earliest), sorted by pair; and the number of rows dropped."""
    by = ["user_id", "item_id", "label"] + (["timestamp"] if "timestamp" in rows else [])
    ordered = rows.sort_values(by, ascending=[True, True, False, True][: len(by)], kind="stable")
    kept = ordered[~ordered.duplicated(["user_id", "item_id"])].reset_index(drop=True)
    return kept, len(rows) - len(kept)


def _in_stages(rows: pd.DataFrame, stages: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """(n,) bool: which pairs are in the sft or reward stage."""
    pairs = [stages[stage][["user_id", "item_id"]] for stage in ("sft", "reward") if stage in stages]
    if not pairs:
        return np.zeros(len(rows), dtype=bool)
    return pd.MultiIndex.from_frame(rows[["user_id", "item_id"]]).isin(pd.MultiIndex.from_frame(pd.concat(pairs)))


def _order(rows: pd.DataFrame, seed: int, by_time: bool) -> np.ndarray:
    if by_time:
        return np.lexsort((np.arange(len(rows)), rows["timestamp"].to_numpy()))
    return np.random.default_rng(seed).permutation(len(rows))


def _orders_by_time(rows: pd.DataFrame, order: str, files: DatasetFiles) -> bool:
    if order == "random" or (order == "auto" and "timestamp" not in rows):
        return False
    if "timestamp" not in rows:
        raise DataError(f"{files.inter}: no timestamp column; warm_order 'time' needs one. Use --warm_order=random.")
    missing = int(rows["timestamp"].isna().sum())
    if missing:
        raise DataError(
            f"{files.inter}: {missing} of {len(rows)} rows have no timestamp; a split by time needs all of them. "
            "Use --warm_order=random."
        )
    return True


def _read_stages(files: DatasetFiles) -> dict[str, pd.DataFrame]:
    stages = {}
    for stage in ("sft", "reward"):
        if files.stage(stage).exists():
            stages[stage] = read_interactions(files.stage(stage))
    if files.stage("rl").exists():
        stages["rl"] = pd.DataFrame({"user_id": read_users(files.stage("rl"))}, dtype=str)
    return stages


def _describe(frame: pd.DataFrame, total: int) -> dict:
    return {
        "rows": len(frame),
        "share": round(len(frame) / max(total, 1), 4),
        "seekers": int(frame["user_id"].nunique()),
        "jobs": int(frame["item_id"].nunique()),
        "matched": int(frame["label"].sum()),
    }


def _check_config(config: SplitConfig) -> None:
    if config.split not in SPLITS:
        raise ConfigError(
            f"split: {config.split!r} is no rule; known: {', '.join(SPLITS)}. A second draw is named by split_suffix."
        )
    if config.split_suffix and not re.fullmatch(r"\w+", config.split_suffix, re.ASCII):
        raise ConfigError(f"split_suffix: {config.split_suffix!r} may hold letters, digits and _ only.")
    ratio = config.split_ratio
    numbers = len(ratio) == 3 and all(isinstance(r, (int, float)) and 0 < r < 1 for r in ratio)
    if not numbers or abs(sum(ratio) - 1) > 1e-6:
        raise ConfigError(f"split_ratio: {ratio} must be three shares above 0 that sum to 1: train, valid, test.")
    for key, value, known in (
        ("warm_order", config.warm_order, ("auto", "time", "random")),
        ("warm_unseen", config.warm_unseen, ("move", "drop")),
    ):
        if value not in known:
            raise ConfigError(f"{key}: {value!r} is unknown; known: {', '.join(known)}.")


def _check_stages(files: DatasetFiles, stages: Mapping[str, pd.DataFrame]) -> None:
    rl = set(stages["rl"]["user_id"]) if "rl" in stages else set()
    for stage in ("sft", "reward"):
        met = sorted(rl & set(stages[stage]["user_id"])) if stage in stages else []
        if met:
            raise DataError(
                f"{files.stage('rl')}: {len(met)} of {len(rl)} seekers of the rl stage are in the {stage} stage too "
                f"({some_of(met)}); they must be in neither sft nor reward. Take them out of one and split again."
            )


def _check_parts(
    files: DatasetFiles, name: str, parts: Mapping[str, pd.DataFrame], stages: Mapping[str, pd.DataFrame]
) -> None:
    where = f"{files.inter}, split {name}"
    empty = [part for part, frame in parts.items() if not len(frame)]
    if empty:
        advice = (
            "cold_strict needs seekers of NAME.inter who are in no stage; use --split=cold or smaller stages"
            if name.startswith("cold_strict")
            else "each part needs a row: more interactions, or other shares (split_ratio)"
        )
        raise DataError(f"{where}: {' and '.join(empty)} would be empty; {advice}.")
    for part in ("valid", "test"):
        labels = parts[part]["label"]
        if labels.nunique() < 2:
            raise DataError(
                f"{where}: all {len(labels)} rows of {part} have the label {labels.iloc[0]:g}; AUC needs both classes. "
                "Use another --split_seed, larger shares, or a source with both matched and mismatched pairs."
            )
        if "rl" in stages:
            rl = set(stages["rl"]["user_id"])
            met = sorted(rl & set(parts[part]["user_id"]))
            if met:
                raise DataError(
                    f"{where}: {len(met)} seekers of the rl stage are in {part} ({some_of(met)}); they must never meet "
                    f"valid or test. Take them out of {files.stage('rl').name} or of {files.inter.name}."
                )
    for a, b in combinations(PARTS, 2):
        both = parts[a].merge(parts[b], on=["user_id", "item_id"])
        if len(both):
            raise DataError(f"{where}: {len(both)} pairs are both in {a} and in {b}.")
