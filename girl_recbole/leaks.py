"""What train alone tells of the labels that are held out, without a look at CV or job: a guard against leaks.

Where each job (or each seeker) has a fixed number of matches, a match in train says that its other pairs are
mismatches. Where mismatches were sampled and matches were not, being popular says that a pair is a match. A model of
ids, or of match rates, learns either instead of fit, and a test set of the same making rewards it.

The measure: AUC of the labels of valid and test, pairs ordered by the number of matches that the job (the seeker) has
in train. .5: nothing is told. In reverse, below .45: a fixed number of matches. Above .75: sampled mismatches, or jobs
that take almost anybody. Real recruiting lies between: some jobs are easier to get than others.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

__all__ = ["told_by_train", "warnings_of"]

_REVERSED, _TOO_WELL = 0.45, 0.75
_SIDES = {"jobs": "item_id", "seekers": "user_id"}


def told_by_train(train: pd.DataFrame, held_out: pd.DataFrame) -> dict[str, float | None]:
    """``{"jobs": AUC, "seekers": AUC}`` in [0, 1]; None where no id of ``held_out`` has a match in train.

    Frames have columns user_id, item_id, label; ``held_out`` has both labels.
    """
    matched = train[train["label"] > 0.5]
    labels = held_out["label"].to_numpy() > 0.5
    told = {}
    for side, column in _SIDES.items():
        matches = held_out[column].map(matched[column].value_counts()).fillna(0).to_numpy()
        told[side] = round(float(roc_auc_score(labels, matches)), 4) if matches.any() else None
    return told


def warnings_of(told: dict[str, float | None], labels: np.ndarray) -> list[str]:
    """A sentence for each side that tells the held-out ``labels`` (n,) 0 or 1, by more than two standard errors."""
    matched = int(np.count_nonzero(np.asarray(labels) > 0.5))
    sentences = []
    for side, auc in told.items():
        if auc is None:
            continue
        margin = 2 * _standard_error(auc, matched, len(labels) - matched)
        start = f"how many matches {side} have in train tells which of their pairs in valid and test are matches"
        if auc + margin < _REVERSED:
            sentences.append(
                f"{start}, in reverse (AUC {auc:.2f}): the number of their matches is fixed, so that one in train says "
                f"that the others are mismatches."
            )
        elif auc - margin > _TOO_WELL:
            sentences.append(f"{start} (AUC {auc:.2f}): mismatches are drawn otherwise than matches.")
    return sentences


def _standard_error(auc: float, matched: int, mismatched: int) -> float:
    """Hanley and McNeil 1982, for pairs that are independent."""
    both, either = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (matched - 1) * (both - auc**2) + (mismatched - 1) * (either - auc**2)
    return math.sqrt(max(spread, 0) / (matched * mismatched))
