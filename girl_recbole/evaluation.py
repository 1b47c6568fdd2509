"""What AUC and LogLoss do not say of a trained model: ranking among all jobs, groups of seekers, fairness.

    ranking    {"jobs_for_seekers": {...}, "seekers_for_jobs": {...}, "labelled": {...}, "labelled_by_job": {...}}
    groups     [{"by", "group", "seekers", "pairs", "matched", "auc", "logloss", "ece"}, ...]
    fairness   {"swap": [...], "regenerated": [...], "directions": [...], "towards": {...}  (fairness.py),
                "auc_gap": {by: gap}, "auc_gaps": [{"by", "gap", ...}, ...], "probability_sd": x}

Ranking    ``rank_seekers`` seekers of test, drawn by seed among those with a matched test pair: the ranks of their
           matched jobs among all jobs of the dataset, less those of the seeker's pairs in train and valid, matched or
           not, as RecBole's full ranking leaves them out. A mismatched test pair is a candidate as any other.
           ``rank_jobs``: the same for jobs of test, among all seekers. ``labelled``: a seeker's labelled test jobs
           alone, of the seekers who have both labels; ``labelled_by_job``: of jobs. Metrics and ties: ranking.py.
Groups     ``group_by``: ``history`` (a seeker's pairs in train: cold 0, few, many), or a column of NAME.user; with cut
           points in ``group_bands`` a column of numbers becomes bands. AUC, LogLoss (nats) and ECE of the test pairs of
           each; null where a group has one class only (AUC) or the model gives no probabilities.
AUC gap    between the groups of ``by`` that have at least 10 pairs of each label: gap = largest - smallest AUC; low and
           high: 2.5 % and 97.5 % of the difference between these two groups in 1,000 bootstrap replicates over seekers.
           A largest less a smallest is above 0 for noise alone, so beside it stand ``chance``, its mean when the same
           seekers are dealt to groups of these sizes at random (200 times), and p, the share of such deals with a gap
           at least as large (the real one counted among them).

Probabilities of a model of RecBole are calibrated on validation, as predictions.py says, if ``calibrate`` is set.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from recbole.utils import EvaluatorType, ModelType

from girl_recbole import predictions
from girl_recbole.atomic import DatasetFiles, atomic_write, read_header, read_table
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.metrics import ece, weighted_auc
from girl_recbole.plugin import MODELS
from girl_recbole.ranking import Standing, labelled_standing, mean_metrics, ranking_metrics, standing
from girl_recbole.scoring import check_scores, score_matrix

__all__ = ["EvaluateConfig", "auc_gap", "check", "evaluate", "evaluate_checkpoint", "group_rows"]

_SCORES = 1 << 24  # scores that are held at a time
_REPLICATES, _DEALS = 1000, 200
_LEAST = 10  # pairs of each label of a group that is compared
_CLIP = 1e-15  # as RecBole's LogLoss
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class EvaluateConfig:
    """Keys and meanings: properties/overall.yaml, section "Evaluation"."""

    saved_folder: str
    rank_seekers: int
    rank_jobs: int
    rank_topk: tuple
    group_by: tuple
    group_bands: dict
    fairness_swaps: tuple
    fairness_seekers: int | None
    fairness_regenerate: bool


def check(config) -> EvaluateConfig:
    """The settings of a run; ``ConfigError`` or ``DataError`` for what could not be evaluated after training."""
    values = {field.name: config[field.name] for field in fields(EvaluateConfig)}
    settings = EvaluateConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    return _check(settings, _files(config), config["generator"], config)


def evaluate(model, config, train, test, valid=None) -> dict[str, Any]:
    """``{"ranking", "groups", "fairness"}`` of a trained model of ours or of RecBole; null for what was not asked for.

    ``train``, ``test``, ``valid``: RecBole's loaders, as the model was trained with them.
    """
    settings = check(config)
    out: dict[str, Any] = {"ranking": None, "groups": None, "fairness": None}
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        return out
    model.eval()
    part, probability = None, None
    if _labelled(config, test):
        part = predictions.collect(model, test, config)
        probability = _calibration(model, config, valid)
        part["probability"] = probability(part["score"])
    if settings.rank_seekers or settings.rank_jobs:
        out["ranking"] = _ranking(model, config, settings, train, test, valid, part)
    if part is None:
        return out
    files, gaps = _files(config), {}
    if settings.group_by:
        out["groups"], gaps = _groups(settings, files, config, train, part)
    if settings.fairness_swaps or settings.group_by:
        out["fairness"] = {
            "swap": [], "regenerated": [], "directions": [], "towards": {},
            "auc_gap": {by: found and found["gap"] for by, found in gaps.items()},
            "auc_gaps": [{"by": by} | found for by, found in gaps.items() if found],
            "probability_sd": float(part["probability"].std()),
        }  # fmt: skip
    if settings.fairness_swaps:
        from girl_recbole.fairness import swap_changes

        data = train._dataset
        items = np.array([data.field2token_id[data.iid_field][item] for item in part["item"].tolist()])
        out["fairness"] |= swap_changes(
            model, config, data, files, (part["user"], items, part["score"]), _known(train, valid), probability,
            attributes=settings.fairness_swaps, most=settings.fairness_seekers,
            regenerate=settings.fairness_regenerate, saved_folder=settings.saved_folder,
        )  # fmt: skip
    return out


def evaluate_checkpoint(
    files: DatasetFiles, settings: EvaluateConfig, *, checkpoint: str, output: str | None = None
) -> dict[str, Any]:
    """What :func:`evaluate` says of the model in ``checkpoint``, on the dataset as it is now; ``output``: JSON."""
    from girl_recbole.checkpoints import load_trained
    from girl_recbole.results import plain

    def prepare(config) -> None:
        for field in fields(EvaluateConfig):
            value = getattr(settings, field.name)
            config[field.name] = list(value) if isinstance(value, tuple) else value
        check(config)

    trained = load_trained(checkpoint, files, prepare)
    config = trained.config
    report = {"model": config["model"], "dataset": files.name, "split": config["split"], "seed": config["seed"],
              "checkpoint": str(checkpoint)}  # fmt: skip
    report = plain(report | evaluate(trained.model, config, trained.train, trained.test, trained.valid))
    if output:
        with atomic_write(Path(output)) as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    return {key: value for key, value in report.items() if value is not None}


# ------------------------------------------------------------------------------------------------------------ settings


def _check(settings: EvaluateConfig, files: DatasetFiles, generator: str, config) -> EvaluateConfig:
    for key in ("rank_seekers", "rank_jobs"):
        if getattr(settings, key) < 0:
            raise ConfigError(f"{key}: {getattr(settings, key)}; 0 or more is required.")
    if not all(type(k) is int and k >= 1 for k in settings.rank_topk) or not settings.rank_topk:
        raise ConfigError(f"rank_topk: {list(settings.rank_topk)}; at least one int, each at least 1, is required.")
    for column, cuts in settings.group_bands.items():
        numbers = isinstance(cuts, list | tuple) and cuts and all(type(cut) in (int, float) for cut in cuts)
        if not numbers or list(cuts) != sorted(set(cuts)):
            raise ConfigError(f"group_bands: {column}: {cuts!r}; ascending cut points, [30, 40, 50], are required.")
    columns = [name for name in settings.group_by if name != "history"]
    if columns:
        path = files.path("user")
        known = [name for name in read_header(path)[0] if name != "user_id"] if path.exists() else []
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise ConfigError(
                f"group_by: {some_of(unknown)} is no column of {path}{suggest(unknown[0], ['history', *known])}; "
                f"known: {', '.join(['history', *known])}."
            )
    if "history" in settings.group_by and "history" not in settings.group_bands:
        raise ConfigError(
            "group_bands: no cut points of history; [1, 3] makes groups of 0, 1 to 2, and at least 3 pairs."
        )
    if settings.fairness_seekers is not None and settings.fairness_seekers < 1:
        raise ConfigError(f"fairness_seekers: {settings.fairness_seekers}; at least 1, or null for all, is required.")
    if settings.rank_seekers or settings.rank_jobs or settings.fairness_swaps:
        check_scores(config)
    if settings.fairness_swaps:
        from girl_recbole.fairness import check_generator, check_swaps  # which imports language models

        check_swaps(files, settings.fairness_swaps)
        if settings.fairness_regenerate:
            check_generator(files, generator, settings.saved_folder)
    return settings


def _files(config) -> DatasetFiles:
    return DatasetFiles(Path(config["data_path"]), config["dataset"])


def _labelled(config, test) -> bool:
    return (
        config["eval_type"] == EvaluatorType.VALUE
        and config["eval_args"]["mode"]["test"] == "labeled"
        and config["LABEL_FIELD"] in test._dataset.inter_feat
    )


def _calibration(model, config, valid):
    """Scores to probabilities: as they are for our models, by Platt scaling on validation for RecBole's."""
    if config["model"] in MODELS or not config["calibrate"] or valid is None:
        return lambda scores: scores
    held = predictions.collect(model, valid, config)
    return lambda scores: predictions.calibrated(held["score"], held["label"], scores)[1]


def _known(train, valid) -> tuple[np.ndarray, np.ndarray]:
    """Internal ids of the pairs of train and valid."""
    parts = [loader._dataset for loader in (train, valid) if loader is not None]
    return tuple(
        np.concatenate([_all_pairs(part)[getattr(part, field)].numpy() for part in parts])
        for field in ("uid_field", "iid_field")
    )


def _all_pairs(part):
    """The pairs of a part, with those that the model does not learn from (trainer.drop_mismatched)."""
    return getattr(part, "labelled_feat", part.inter_feat)


# ------------------------------------------------------------------------------------------------------------- ranking


def _ranking(model, config, settings: EvaluateConfig, train, test, valid, part) -> dict[str, Any]:
    data, pairs = train._dataset, test._dataset.inter_feat
    user, item = pairs[data.uid_field].numpy(), pairs[data.iid_field].numpy()
    label = config["LABEL_FIELD"]
    matched = (pairs[label] > 0.5).numpy() if label in pairs else np.ones(len(user), bool)
    relevant, known = np.unique(np.stack([user[matched], item[matched]]), axis=1), np.stack(_known(train, valid))
    topk, seed = settings.rank_topk, config["seed"]
    out: dict[str, Any] = {
        "jobs_for_seekers": None,
        "seekers_for_jobs": None,
        "labelled": None,
        "labelled_by_job": None,
    }
    if settings.rank_seekers:
        found, drawn = _ranks(
            lambda some: score_matrix(model, config, data, some), relevant, known, data.item_num,
            data.user_num, settings.rank_seekers, seed,
        )  # fmt: skip
        out["jobs_for_seekers"] = _means(found, topk) | {"seekers": drawn, "candidates": data.item_num - 1}
    if settings.rank_jobs:
        everyone = np.arange(1, data.user_num)
        found, drawn = _ranks(
            lambda some: score_matrix(model, config, data, everyone, some).T, relevant[::-1], known[::-1],
            data.user_num, data.item_num, settings.rank_jobs, seed,
        )  # fmt: skip
        out["seekers_for_jobs"] = _means(found, topk) | {"jobs": drawn, "candidates": data.user_num - 1}
    if part is not None:
        for name, side, count in (("labelled", "user", "seekers"), ("labelled_by_job", "item", "jobs")):
            found = labelled_standing(part["score"], part["label"], part[side])
            pairs_of = np.isin(part[side], _with_both(part["label"], part[side])).sum()
            out[name] = _means(found, topk) | {
                count: found.queries,
                "candidates": float(pairs_of / max(1, found.queries)),
            }
    return out


def _ranks(score, relevant, known, candidates: int, queries: int, most: int, seed: int) -> tuple[Standing, int]:
    """Where the relevant candidates stand in the lists of at most ``most`` queries, drawn by seed.

    ``relevant``, ``known``: (2, P) internal ids of (query, candidate), from 1; ``score``: ids of queries -> (Q, N).
    """
    chosen = np.unique(relevant[0])
    if not len(chosen):
        raise DataError("no matched pair in test; there is nothing to rank.")
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng([seed, 1]).choice(chosen, most, replace=False))
    step, parts = max(1, _SCORES // candidates), []
    place = np.full(queries, -1)
    both = known[:, ~np.isin(_keys(known, candidates), _keys(relevant, candidates))]
    for start in range(0, len(chosen), step):
        block = chosen[start : start + step]
        place[block] = np.arange(len(block))
        hits, gone = ((place[pairs[0]], pairs[1] - 1) for pairs in (relevant, both))
        hits, gone = ((row[row >= 0], column[row >= 0]) for row, column in (hits, gone))
        parts.append(standing(score(block), hits, gone))
        place[block] = -1
    return Standing.joined(parts), len(chosen)


def _keys(pairs: np.ndarray, candidates: int) -> np.ndarray:
    return pairs[0].astype(np.int64) * candidates + pairs[1]


def _means(found: Standing, topk: Sequence[int]) -> dict[str, Any]:
    return mean_metrics(ranking_metrics(found, topk))


def _with_both(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    names, number = np.unique(ids, return_inverse=True)
    rate = np.bincount(number, weights=labels) / np.bincount(number)
    return names[(rate > 0) & (rate < 1)]


# -------------------------------------------------------------------------------------------------------------- groups


def _groups(settings: EvaluateConfig, files, config, train, part) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, gaps = [], {}
    users, seeker = np.unique(part["user"], return_inverse=True)
    for by in settings.group_by:
        names, group = _members(by, settings.group_bands.get(by), files, train, users.tolist())
        of_pair = group[seeker]
        rows += [
            {"by": by} | row
            for row in group_rows(part["probability"], part["label"], seeker, of_pair, names, config["ece_bins"])
        ]
        gaps[by] = auc_gap(part["score"], part["label"], seeker, group, names, config["seed"])
    return rows, gaps


def group_rows(
    probabilities: np.ndarray,
    labels: np.ndarray,
    seekers: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    bins: int,
) -> list[dict[str, Any]]:
    """Counts and metrics of each group of pairs; ``groups`` (N,): number of the name in ``names``."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    in_range = ((p >= 0) & (p <= 1)).all()
    auc = weighted_auc(p, y, groups == np.arange(len(names))[:, None])
    rows = []
    for number, name in enumerate(names):
        mine = groups == number
        if not mine.any():
            continue
        clipped = np.clip(p[mine], _CLIP, 1 - _CLIP)
        logloss = -np.mean(y[mine] * np.log(clipped) + (1 - y[mine]) * np.log1p(-clipped))
        rows.append({
            "group": name,
            "seekers": len(np.unique(seekers[mine])),
            "pairs": int(mine.sum()),
            "matched": int(y[mine].sum()),
            "auc": None if np.isnan(auc[number]) else float(auc[number]),
            "logloss": float(logloss) if in_range else None,
            "ece": ece(p[mine], y[mine], bins) if in_range else None,
        })  # fmt: skip
    return rows


def auc_gap(
    scores: np.ndarray, labels: np.ndarray, seekers: np.ndarray, groups: np.ndarray, names: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """The gap between the largest and the smallest AUC of a group; None where fewer than two have enough pairs.

    ``seekers`` (N,): number of the pair's seeker; ``groups``: number of the group of each seeker.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    own, count = groups[seekers], len(groups)
    matched = np.bincount(own, weights=labels, minlength=len(names))
    there = np.flatnonzero(np.minimum(matched, np.bincount(own, minlength=len(names)) - matched) >= _LEAST)
    if len(there) < 2:
        return None
    real = weighted_auc(scores, labels, own == there[:, None])
    two = there[real.argmax()], there[real.argmin()]
    rng = np.random.default_rng([seed, 4])
    step = max(1, _SCORES // len(scores))
    drawn = []
    for start in range(0, _REPLICATES, step):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=min(step, _REPLICATES - start))[:, seekers]
        most, least = (weighted_auc(scores[own == g], labels[own == g], weights[:, own == g]) for g in two)
        drawn.append(most - least)
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    deals = (rng.permutation(groups)[seekers] == there[:, None] for _ in range(_DEALS))
    dealt = np.array([_gap(weighted_auc(scores, labels, deal)) for deal in deals])
    gap = _gap(real)
    return {
        "gap": gap,
        "low": float(low),
        "high": float(high),
        "chance": float(np.nanmean(dealt)),
        "p": float((1 + np.sum(dealt >= gap)) / (1 + _DEALS)),
        "largest": names[two[0]],
        "smallest": names[two[1]],
    }


def _gap(aucs: np.ndarray) -> float:
    return float(np.nanmax(aucs) - np.nanmin(aucs)) if np.isfinite(aucs).any() else np.nan


def _members(by: str, cuts, files: DatasetFiles, train, users: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The names of the groups, and the number of each user's."""
    if by == "history":
        data = train._dataset
        ids = [data.field2token_id[data.uid_field][user] for user in users]
        pairs = np.bincount(_all_pairs(data)[data.uid_field].numpy(), minlength=data.user_num)[ids]
        names = ["cold", "few", "many"] if len(cuts) == 2 and cuts[0] == 1 else _band_names(cuts)
        return names, np.digitize(pairs, cuts)
    table = read_table(files.path("user"), required=("user_id", by)).drop_duplicates("user_id").set_index("user_id")[by]
    lost = [user for user in users if user not in table.index]
    if lost:
        raise DataError(
            f"{files.path('user')}: no row for {len(lost)} of {len(users)} seekers of test (first: {some_of(lost)}); "
            f"group_by: {by} needs one each."
        )
    values = table.loc[list(users)]
    if cuts is not None:
        try:
            numbers = values.replace("", np.nan).astype(float).to_numpy()
        except ValueError:
            raise ConfigError(f"group_bands: {by}: its values are not numbers, so it has no cut points.") from None
        group = np.where(np.isnan(numbers), len(cuts) + 1, np.digitize(numbers, cuts))
        return [*_band_names(cuts), _UNKNOWN], group
    words = [_UNKNOWN if word in ("", "nan") else word for word in values.astype(str)]
    names, group = np.unique(words, return_inverse=True)
    if values.dtype == float and len(names) > 20:
        raise ConfigError(f"group_by: {by} has {len(names)} values; give cut points: group_bands: {{{by}: [30, 40]}}.")
    return names.tolist(), group


def _band_names(cuts: Sequence[float]) -> list[str]:
    """``<30``, ``30-39``, ``40+`` of whole numbers; ``<0.5``, ``0.5 to 0.7``, ``0.7+`` of others."""
    whole = all(type(cut) is int for cut in cuts)
    between = []
    for low, high in itertools.pairwise(cuts):
        between.append((str(low) if high - low == 1 else f"{low}-{high - 1}") if whole else f"{low} to {high}")
    return [f"<{cuts[0]}", *between, f"{cuts[-1]}+"]
