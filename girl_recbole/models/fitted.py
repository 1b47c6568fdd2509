"""Scorers that are fitted when they are made, from the training part: nothing is left to learn by gradient descent.

Such a model has no weights that a checkpoint could bring back: it is fitted again when it is made, with the same seed.
So the checkpoint keeps what the fit says of ``_SAMPLE`` training pairs (buffer ``fitted``, float64), and a model that
says something else refuses that checkpoint: its texts, vectors, pairs, settings or libraries are not those it was made
with. What is chosen on validation (Platt's two numbers, gamma of BIGRec) is in the checkpoint and comes back.

Ids stand for both sides in full ranking: what a score needs of them is held in tables, by id.
"""

from __future__ import annotations

import numpy as np
import torch

from girl_recbole.calibration import fit_platt
from girl_recbole.errors import DataError
from girl_recbole.models.scorer import Scorer

__all__ = ["FittedScorer", "training_line"]

_SAMPLE = 256  # training pairs whose logits a checkpoint keeps
_TOLERANCE = 1e-4  # logits; less than a decimal that any metric shows, more than another processor's rounding


class FittedScorer(Scorer):
    learns = False

    def remember(self, dataset) -> None:
        """Keep the logits of the first training pairs; called at the end of a constructor."""
        pairs = dataset.inter_feat[: min(_SAMPLE, len(dataset.inter_feat))]
        with torch.no_grad():
            self.register_buffer("fitted", self.logits(pairs).double())
        self.register_load_state_dict_pre_hook(_check_fit)

    def encode_users(self, ids):
        return ids

    def encode_items(self, ids):
        return ids


def _check_fit(module: FittedScorer, state: dict, prefix: str, *_) -> None:
    saved = state.get(f"{prefix}fitted")
    if saved is None:
        return
    now = module.fitted.cpu()
    if saved.shape != now.shape or not torch.allclose(saved.cpu(), now, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise DataError(
            f"this checkpoint is of another {type(module).__name__}: fitted again on the training part as it is now, "
            f"it gives other scores. Its texts, vectors, pairs, settings or libraries have changed; train again."
        )


def training_line(scores: np.ndarray, labels: np.ndarray, prior_logit: float) -> tuple[float, float]:
    """(slope, bias) that make logits of raw ``scores`` (N,) of training pairs: Platt scaling on them, slope > 0.

    Where they are of one class, scores of deviation 1 around the base rate's logit. Scores of any size would saturate
    a float32 sigmoid before the model is calibrated, and all its ranking would be ties.
    """
    if 0 < labels.sum() < len(labels):
        return fit_platt(scores, labels)
    slope = 1 / max(scores.std(), 1e-6)
    return slope, prior_logit - slope * scores.mean()
