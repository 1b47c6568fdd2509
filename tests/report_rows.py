"""Rows of results.jsonl as the benchmark writes them, made up: every key that the report reads, with known numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from girl_recbole.metrics import ece, gauc
from girl_recbole.results import auc_logloss

SYSTEMS = {  # label: kind, model, skill, number of trained parameters
    "BM25": ("floor", "BM25", 0.3, 0),
    "NCF (NeuMF)": ("baseline", "NeuMF", 0.4, 190_000),
    "BERT, MLP": ("base", "GIRLBaseMLP", 0.7, 197_121),
    "FT-LLM": ("llm", "FTLLM", 0.75, 1_204_224),
    "GIRL-SFT, MLP": ("girl", "GIRLEnhancedMLP", 0.85, 295_425),
    "GIRL, MLP": ("girl", "GIRLEnhancedMLP", 0.95, 295_425),
    "control: another seeker's JD, MLP": ("control", "GIRLEnhancedMLP", 0.45, 295_425),
}


def a_row(label="A", seed=1, split="warm", dataset="toy", auc=0.7, **more) -> dict:
    """The least that ``run_experiment`` returns, with one figure of one's own."""
    return {
        "timestamp": f"2026-11-21T10:0{seed % 10}:00+00:00", "model": "GIRLBaseMLP", "row": label, "dataset": dataset,
        "split": split, "generator": "sft", "seed": seed, "config": {"valid_metric": "AUC", "ece_bins": 10},
        "commit": "a" * 40, "data": {}, "valid": {"auc": auc}, "test": {"auc": auc}, "calibrated": None,
        "prior": None, "oracle": None, "curve": None, "predictions": None, "parameters": 10,
        "time_s": {"load": 1.0, "train": 2.0, "evaluate": 0.5}, "peak_memory_mb": 500.0,
        "machine": {"cpu": "AMD EPYC", "cores": 2, "gpus": []}, "nproc": 1,
        "checkpoint": f"saved/{label}-{split}-{seed}.pth", **more,
    }  # fmt: skip


def write_rows(path: Path, rows: Iterable[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_predictions(path: Path, label: np.ndarray, probability: np.ndarray, users: np.ndarray) -> Path:
    """As predictions.py writes them; validation is the first ten pairs again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = np.array([f"i{n}" for n in range(len(label))])
    test = {"user": users, "item": items, "label": label.astype(bool), "probability": probability}
    np.savez_compressed(
        path,
        **{f"{part}_{key}": values[cut] for part, cut in (("valid", slice(10)), ("test", slice(None)))
           for key, values in test.items()},
    )  # fmt: skip
    return path


def full_rows(
    folder: Path, seeds: Sequence[int] = (1, 2, 3, 4, 5), splits: Sequence[str] = ("warm", "cold"), pairs: int = 600
) -> list[dict]:
    """A whole benchmark: tables of two splits, two studies against a number, one of data, groups, fairness, files."""
    rows = []
    for split in splits:
        for seed in seeds:
            rng = np.random.default_rng(100 * seed + len(split))
            truth = 1 / (1 + np.exp(-(rng.normal(size=pairs) * 1.4 - 0.8)))
            label = rng.random(pairs) < truth
            users = np.array([f"u{n // 6:04d}" for n in range(pairs)])
            for name, (kind, model, skill, parameters) in SYSTEMS.items():
                skill = skill * (0.75 if split == "cold" and kind == "baseline" else 0.95 if split == "cold" else 1.0)
                probability = _predicted(truth, skill, rng)
                rows.append(
                    _full_row(folder, name, kind, model, split, seed, label, probability, users, parameters, truth)
                )
                if kind in ("base", "girl"):
                    for share in (0.1, 0.25, 0.5, 1.0):
                        rows.append(_study(rows[-1], "data_size", {"train_share": share}, label,
                                           _predicted(truth, skill * (0.5 + 0.5 * share), rng)))  # fmt: skip
                if kind == "girl":
                    for n in (1, 2, 3, 5):
                        rows.append(_study(rows[-1], "generation_number", {"n_generated": n}, label,
                                           _predicted(truth, skill + 0.05 * np.log(n), rng)))  # fmt: skip
                if kind == "base":
                    for stages in ([], ["sft"]):
                        rows.append(_study(rows[-1], "data_control", {"train_stages": stages}, label,
                                           _predicted(truth, skill, rng)))  # fmt: skip
    return rows


def a_judge(a="ppo", b="sft") -> dict:
    """As ``girl judge`` writes it."""

    def one(judge, criterion, win, tie, lose, invalid, **more):
        adv = win - lose
        verdicts = {"win": win, "tie": tie, "lose": lose, "invalid": invalid, "adv": adv, "verdicts": "WTL"}
        interval = {"low": adv - 0.1, "high": adv + 0.1, "n": 200}
        return {"judge": judge, "criterion": criterion, "a": a, "b": b, **verdicts, **interval, **more}

    return {
        "dataset": "toy",
        "judges": [one("llm", "overall", 0.45, 0.25, 0.25, 0.05, position_bias=0.2, says_a=0.55),
                   one("reward", "reward", 0.8, 0.0, 0.2, 0.0), one("market", "market", 0.5, 0.05, 0.45, 0.0)],
        "scores": [{"judge": "reward", "generator": a, "mean": 1.25}, {"judge": "reward", "generator": b, "mean": 0.5}],
        "agreement": [{"one": "llm, overall", "two": "market", "a": a, "b": b, "n": 190, "same": 0.61, "kappa": 0.3,
                       "rank_correlation": None}],
    }  # fmt: skip


def a_case() -> dict:
    """As ``girl case`` writes it with --show-text."""
    why = ["the job names 3 known skills", "1 in the generated JD and in the CV: triage"]
    job = {"score": 0.8123, "model": 0.33, "true_probability": 0.25, "skills": {"in_both": ["triage"]}, "why": why}
    found = [
        {"item_id": f"i{rank}", "rank": rank, "title": f"Ward nurse {rank}", "answer": answer, **job}
        for rank, answer in ((1, 1), (2, None))
    ]
    jd = {
        "sample": 0, "title": "Nurse", "words": 9, "problem": None, "reward": 0.2, "true_probability": 0.41,
        "text": "Nurse for the intensive care unit.\nNight shifts.", "occupation": "Nurse", "level": "senior",
        "skills": {"shared": ["triage"], "invented": ["French"], "missing": []},
    }  # fmt: skip
    generators = [
        {"generator": name, "jds": [jd], "reward": reward, "true_probability": 0.41, "found": found}
        for name, reward in (("sft", 0.2), ("ppo", 1.1))
    ]
    cv = "Registered nurse, ten years in intensive care.\nSpeaks <Spanish> & French."
    return {"dataset": "toy", "seeker": "u003388", "cv": cv, "cv_words": 10, "generators": generators}


def a_comparison(split="warm") -> dict:
    """As ``girl benchmark`` writes it."""
    return {
        "split": split, "a": "GIRL, MLP", "b": "BERT, MLP", "mean": 0.0213, "low": 0.0052, "high": 0.0388, "p": 0.009,
        "above": 5, "seeds": 5, "p_holm": 0.027,
    }  # fmt: skip


def _predicted(truth: np.ndarray, skill: float, rng) -> np.ndarray:
    """The true log odds with noise: the more skill, the less noise; calibrated but for a little."""
    odds = np.log(truth / (1 - truth))
    return 1 / (
        1 + np.exp(-(skill * odds - 0.8 * (1 - skill) + rng.normal(size=len(truth)) * (1 - min(skill, 1)) * 1.2))
    )


def _scores(label, probability, users) -> dict:
    y = label.astype(float)
    return {**auc_logloss(probability, y), "labeledgauc": gauc(probability, y, users), "ece": ece(probability, y, 10),
            "priorentropy": 0.6}  # fmt: skip


def _full_row(folder, name, kind, model, split, seed, label, probability, users, parameters, truth) -> dict:
    rng = np.random.default_rng(seed)
    scores = _scores(label, probability, users)
    path = write_predictions(
        folder / "predictions" / f"{len(name)}{name[:3].strip()}-{split}-{seed}.npz", label, probability, users
    )
    auc, epochs = scores["auc"], 8 + seed
    curve = {"train_loss": [0.62 - 0.02 * e + 0.001 * e * e for e in range(epochs)],
             "valid": [[e, auc - 0.08 * np.exp(-e / 2) - 0.001 * max(0, e - 6)] for e in range(epochs)]}  # fmt: skip
    half = len(label) // 2
    groups = [
        {"by": by, "group": group, "pairs": half, "auc": float(roc_auc_score(label[cut], probability[cut])),
         "logloss": scores["logloss"], "ece": scores["ece"]}
        for by, names in (("gender", ("female", "male")), ("history", ("cold", "warm")))
        for group, cut in zip(names, (slice(None, half), slice(half, None)), strict=True)
    ]  # fmt: skip
    ranking = {direction: {"recall@10": auc - 0.3 + 0.01 * rng.random(), "ndcg@10": auc - 0.4, "mrr": auc - 0.45,
                           "map": auc - 0.5, "seekers": 300, "candidates": 1000}
               for direction in ("jobs_for_seekers", "seekers_for_jobs")}  # fmt: skip
    change = {"seekers": 100, "pairs": 1000, "mean_abs_change": 0.01 + 0.001 * seed, "largest_change": 0.08,
              "mean_change": -0.002 + 0.001 * rng.random(), "low": -0.003, "high": 0.001}  # fmt: skip
    gaps = {"gender": 0.01 + 0.004 * rng.random(), "age": 0.02 + 0.002 * rng.random()}
    chance = {"low": 0.0, "high": 0.05, "chance": 0.015, "p": 0.3 / seed, "largest": "a", "smallest": "b"}
    fairness = {
        "swap": [{"attribute": "gender", **change, "flips@5": 0.2, "as_new": 0.0, "told": 0.6}],
        "regenerated": [{"attribute": name, **change, "flips@5": 0.4} for name in ("gender", "another draw")],
        "directions": [{"attribute": "gender", "jd": "kept", "direction": "male to female", **change}],
        "towards": {"gender": "male"}, "auc_gap": gaps, "probability_sd": 0.2,
        "auc_gaps": [{"by": by, "gap": gap, **chance} for by, gap in gaps.items()],
    }  # fmt: skip
    return a_row(
        name, seed, f"{split}-s{seed}", auc=auc, study="table", varied={}, kind=kind, model=model, test=scores,
        data={f"toy.{split}-s{seed}.test.inter": f"{split}{seed}"}, predictions=str(path), parameters=parameters,
        prior={"auc": 0.5, "logloss": 0.62 + 0.001 * seed}, oracle=auc_logloss(truth, label.astype(float)), curve=curve,
        groups=groups, ranking=ranking, peak_memory_mb=700 + parameters / 1e4,
        time_s={"load": 1.0, "train": 3 + parameters / 3e4 + seed, "evaluate": 0.5},
        fairness=fairness,
        tuning={"trials": 4, "space": {"learning_rate": [0.0003, 0.001]}, "best": {"learning_rate": 0.001}},
    )  # fmt: skip


def _study(row: dict, study: str, varied: dict, label, probability) -> dict:
    auc = float(roc_auc_score(label, probability))
    plain = dict.fromkeys(("predictions", "curve", "groups", "ranking", "fairness", "tuning"))
    return {**row, **plain, "study": study, "varied": varied, "test": {**row["test"], "auc": auc}}
