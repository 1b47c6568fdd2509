"""What is in a dataset: counts, shares of matches, lengths, vocabularies, overlaps, and the oracle where there is one.

Words are lower-cased runs of letters and digits, with ``+#&/.'-`` inside. Of the vocabularies of CVs and JDs (types
seen at least twice on that side) ``shared_types`` is |V_cv & V_jd| / |V_cv | V_jd|; ``shared_words`` is the mean over
matched pairs (those of sft, else of NAME.inter; at most 5 000, evenly spaced) of the share of the JD's word types that
the CV has too.
``prior_entropy`` is -(p ln p + (1 - p) ln(1 - p)) nats of the share of matches p: the LogLoss of who always says p.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from girl_recbole.atomic import DatasetFiles, iter_docs, read_interactions, read_table, read_users
from girl_recbole.errors import DataError, some_of

__all__ = ["describe"]

_WORD = re.compile(r"[^\W_](?:[\w+#&/.'-]*[\w+#])?")
_PAIRS_READ, _COMMON = 5000, 2


def describe(files: DatasetFiles) -> dict[str, Any]:
    """The statistics of a dataset as nested plain dicts; parts whose files do not exist are left out."""
    if not files.inter.exists():
        raise DataError(f"{files.inter}: no such dataset. Run `girl simulate {files.name}` or `girl prepare`.")
    stages = {"recommendation": read_interactions(files.inter)}
    for stage in ("sft", "reward"):
        if files.stage(stage).exists():
            stages[stage] = read_interactions(files.stage(stage))
    report: dict[str, Any] = {"stages": {stage: _stage(frame) for stage, frame in stages.items()}}
    users = {stage: set(frame["user_id"]) for stage, frame in stages.items()}
    if files.stage("rl").exists():
        users["rl"] = set(read_users(files.stage("rl")))
        report["stages"]["rl"] = {"users": len(users["rl"])}
    report["shared_users"] = _shared(users)
    report["shared_items"] = _shared({stage: set(frame["item_id"]) for stage, frame in stages.items()})
    report["texts"] = _texts(files, stages.get("sft", stages["recommendation"]))
    if files.oracle.exists():
        report["oracle"] = _oracle(files.oracle, {k: v for k, v in stages.items() if k in ("recommendation", "reward")})
    return report


def _stage(frame: pd.DataFrame) -> dict[str, Any]:
    per_user = frame.groupby("user_id")["label"]
    rate = float(frame["label"].mean()) if len(frame) else math.nan
    facts = {
        "pairs": len(frame),
        "users": int(frame["user_id"].nunique()),
        "items": int(frame["item_id"].nunique()),
        "match_rate": rate,
        "prior_entropy": _entropy(rate),
        "pairs_per_user": float(per_user.size().mean()),
        "users_with_both_labels": float((per_user.nunique() == 2).mean()),
    }
    if "timestamp" in frame and len(frame):
        when = pd.to_datetime(frame["timestamp"], unit="s", utc=True)
        facts |= {"first_day": str(when.min().date()), "last_day": str(when.max().date())}
    return facts


def _entropy(rate: float) -> float:
    return sum(p * math.log(1 / p) for p in (rate, 1 - rate) if p > 0)


def _shared(members: dict[str, set[str]]) -> dict[str, int]:
    """How many ids every two stages have in common: {"sft & reward": 12, ...}."""
    names = list(members)
    return {f"{a} & {b}": len(members[a] & members[b]) for i, a in enumerate(names) for b in names[i + 1 :]}


def _texts(files: DatasetFiles, pairs: pd.DataFrame) -> dict[str, Any]:
    matched = pairs[pairs["label"] == 1]
    matched = matched.iloc[np.linspace(0, len(matched) - 1, min(len(matched), _PAIRS_READ)).astype(int)]
    facts: dict[str, Any] = {}
    vocabulary: dict[str, set[str]] = {}
    words: dict[str, dict[str, set[str]]] = {}
    for side, path, key in (("cv", files.udoc, "user_id"), ("jd", files.idoc, "item_id")):
        if not path.exists():
            return facts
        wanted, counts, lengths, characters = set(matched[key]), Counter(), [], 0
        words[side] = {}
        for name, text in iter_docs(path):
            found = _WORD.findall(text.lower())
            counts.update(found)
            lengths.append(len(found))
            characters += len(text)
            if name in wanted:
                words[side][name] = set(found)
        vocabulary[side] = {word for word, count in counts.items() if count >= _COMMON}
        low, middle, high = np.percentile(lengths, [5, 50, 95]) if lengths else (0, 0, 0)
        facts[side] = {
            "documents": len(lengths), "words_mean": float(np.mean(lengths)) if lengths else 0.0,
            "words_5%": float(low), "words_median": float(middle), "words_95%": float(high),
            "characters": characters, "types": len(counts), "types_twice": len(vocabulary[side]),
        }  # fmt: skip
    both = vocabulary["cv"] | vocabulary["jd"]
    facts["shared_types"] = len(vocabulary["cv"] & vocabulary["jd"]) / len(both) if both else 0.0
    shares = [
        len(words["cv"][user] & words["jd"][item]) / len(words["jd"][item])
        for user, item in zip(matched["user_id"], matched["item_id"], strict=True)
        if words["jd"].get(item) and user in words["cv"]
    ]
    facts["shared_words"] = float(np.mean(shares)) if shares else 0.0
    return facts


def _oracle(path: Path, stages: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """AUC and LogLoss of the true probability on every stage that it covers."""
    truth = read_table(path, required=("user_id", "item_id", "probability"))
    facts = {}
    for stage, frame in stages.items():
        joined = frame.merge(truth, on=["user_id", "item_id"], how="left")
        p, label = joined["probability"].to_numpy(), joined["label"].to_numpy()
        if np.isnan(p).any():
            lost = (joined["user_id"] + "-" + joined["item_id"])[np.isnan(p)]
            raise DataError(
                f"{path}: no probability for {len(lost)} of {len(frame)} pairs of {stage} "
                f"(first {some_of(list(lost))}); it belongs to other data. Run `girl simulate` again."
            )
        p = p.clip(1e-7, 1 - 1e-7)
        facts[stage] = {
            "auc": float(roc_auc_score(label, p)) if 0 < label.mean() < 1 else math.nan,
            "logloss": float(-np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))),
            "mean_probability": float(p.mean()),
        }
    return facts
