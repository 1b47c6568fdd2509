"""Probabilities of the labelled validation and test pairs of one trained model, and the file that keeps them.

A file (.npz, compressed) holds for each ``part`` of valid and test four arrays (N,):

    <part>_user, <part>_item   ids, text        <part>_label  bool        <part>_probability  float64, in [0, 1]

sorted by (user, item), so that two models of the same split have the same pairs in the same order: paired comparisons,
groups and calibration plots read these files and no model.

Our own models are calibrated by their trainer. What a model of RecBole predicts is a probability where it learnt from
labels, and a score of any size where it did not; here both are calibrated as ours are (Platt scaling on validation,
calibration.py): of the logit where every validation score lies in [0, 1], else of the score itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit, logit

from girl_recbole.atomic import atomic_write
from girl_recbole.calibration import fit_platt
from girl_recbole.errors import DataError
from girl_recbole.metrics import ece, gauc
from girl_recbole.results import auc_logloss

__all__ = ["calibrated", "collect", "load", "save", "scores"]

_CLIP = 1e-7  # a probability of a float32 sigmoid is nearer to 0 or 1 than it says
_FIELDS = ("user", "item", "label", "probability")


@torch.no_grad()
def collect(model, loader, config) -> dict[str, np.ndarray]:
    """What ``predict`` says of all labelled pairs of the part that ``loader`` reads: user, item, label, score."""
    model.eval()
    dataset, pairs = loader._dataset, loader._dataset.inter_feat
    step = config["eval_batch_size"]
    batches = (
        loader.transform(dataset, dataset.join(pairs[start : start + step])) for start in range(0, len(pairs), step)
    )
    scores = [model.predict(batch.to(config["device"])).reshape(-1).double().cpu() for batch in batches]
    users = dataset.id2token(dataset.uid_field, pairs[dataset.uid_field].numpy()).astype(str)
    items = dataset.id2token(dataset.iid_field, pairs[dataset.iid_field].numpy()).astype(str)
    order = np.lexsort((items, users))
    return {
        "user": users[order],
        "item": items[order],
        "label": (pairs[config["LABEL_FIELD"]].numpy() > 0.5)[order],
        "score": torch.cat(scores).numpy()[order],
    }


def calibrated(valid: np.ndarray, labels: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of validation and test scores (N,), (M,) by Platt scaling on validation."""
    if ((valid >= 0) & (valid <= 1)).all():
        valid, test = _log_odds(valid), _log_odds(test)
    if labels.min() == labels.max():
        rate = (labels.sum() + 1) / (len(labels) + 2)
        return np.full(len(valid), rate), np.full(len(test), rate)
    a, b = fit_platt(valid, labels)
    return expit(a * valid + b), expit(a * test + b)


def _log_odds(scores: np.ndarray) -> np.ndarray:
    """The logit of probabilities, and of what is beyond them in test alone, so that it keeps its order."""
    scores = np.asarray(scores, np.float64)
    above, below = np.maximum(scores - (1 - _CLIP), 0), np.maximum(_CLIP - scores, 0)
    return logit(scores.clip(_CLIP, 1 - _CLIP)) + np.log1p(above) - np.log1p(below)


def scores(part: Mapping[str, np.ndarray], bins: int) -> dict[str, float]:
    """AUC, LogLoss (nats), ECE, and GAUC (NaN where no seeker has both labels) of one part of a file."""
    p, labels, users = part["probability"], np.asarray(part["label"], np.float64), part["user"]
    _, who = np.unique(users, return_inverse=True)
    rate = np.bincount(who, weights=labels) / np.bincount(who)
    both = ((rate > 0) & (rate < 1)).any()
    return {
        **auc_logloss(p, labels),
        "labeledgauc": gauc(p, labels, users) if both else float("nan"),
        "ece": ece(p, labels, bins),
    }


def save(path: Path, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    arrays = {f"{part}_{name}": values[name] for part, values in parts.items() for name in _FIELDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """``{"valid": {"user", "item", "label", "probability"}, "test": ...}``, those parts that the file has."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file of predictions; set predictions_folder and train again.")
    with np.load(path, allow_pickle=False) as arrays:
        parts = dict.fromkeys(name.partition("_")[0] for name in arrays.files)
        return {part: {name: arrays[f"{part}_{name}"] for name in _FIELDS} for part in parts}
