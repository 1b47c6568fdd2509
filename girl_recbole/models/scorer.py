"""What every model of ours is to RecBole: a scorer of labelled (seeker, job) pairs that predicts probabilities.

    s = logits(interaction), (B,)      predict() = sigmoid(platt_a s + platt_b), in [0, 1]
    loss = mean over the batch of the cross-entropy of sigmoid(s) and the explicit label 0 or 1

``platt`` = (a, b) is (1, 0) until training has ended; the trainer fits it on validation (trainer.py, calibration.py).
Full ranking encodes each side once: a model says how in ``encode_users``, ``encode_items`` and ``score_all``; what
``encode_items`` makes of all jobs is kept until a weight changes.

A model that has nothing to learn by gradient descent (BM25, a gradient-boosted one) is fitted when it is made, from the
training part, and says so by ``learns = False``: the trainer leaves out the epochs and calibrates it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch.nn import functional

from girl_recbole.errors import ConfigError
from girl_recbole.rows import weights_key

__all__ = ["Scorer", "one_of"]

_JOBS = 1 << 13  # jobs that full ranking encodes at once


class Scorer(GeneralRecommender):
    input_type = InputType.POINTWISE
    learns = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.LABEL = config["LABEL_FIELD"]
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))
        labels = np.asarray(dataset.inter_feat[self.LABEL], np.float64)
        rate = (labels.sum() + 1) / (len(labels) + 2)
        self.prior_logit = math.log(rate / (1 - rate))
        """Logit of the share of matched training pairs: where a bias starts."""
        self._items_kept: tuple[tuple, torch.Tensor] | None = None

    # ------------------------------------------------------------------------------------------ what a model defines

    def logits(self, interaction) -> torch.Tensor:
        """(B,) float32 for the pairs of ``interaction``."""
        raise NotImplementedError

    def encode_users(self, ids: torch.Tensor) -> torch.Tensor:
        """All that a score needs of the seekers ``ids`` (B,): (B, ...)."""
        raise NotImplementedError

    def encode_items(self, ids: torch.Tensor) -> torch.Tensor:
        """All that a score needs of the jobs ``ids`` (N,): (N, ...)."""
        raise NotImplementedError

    def score_all(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B, N) logits of encoded seekers and encoded jobs."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------- RecBole's interface

    def forward(self, interaction) -> torch.Tensor:
        return self.logits(interaction)

    def calculate_loss(self, interaction) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(self.logits(interaction), interaction[self.LABEL].float())

    def predict(self, interaction) -> torch.Tensor:
        """(B,) probabilities."""
        return self.probability(self.logits(interaction))

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """(B * n_items,) probabilities of all jobs for each seeker; the padding job's mean nothing."""
        users = self.encode_users(interaction[self.USER_ID])
        return self.probability(self.score_all(users, self.encoded_items()).float()).reshape(-1)

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.platt[0] * logits + self.platt[1])

    def encoded_items(self) -> torch.Tensor:
        """``encode_items`` of all jobs, kept until a weight changes; not while training."""
        if self.training or torch.is_grad_enabled():
            return self.encode_items(torch.arange(self.n_items, device=self.platt.device))
        key = weights_key(self)
        if self._items_kept is None or self._items_kept[0] != key:
            self._items_kept, items = None, None
            for part in torch.arange(self.n_items, device=self.platt.device).split(_JOBS):
                encoded = self.encode_items(part)
                items = encoded.new_empty(self.n_items, *encoded.shape[1:]) if items is None else items
                items[part[0] : part[-1] + 1] = encoded
            self._items_kept = (key, items)
        return self._items_kept[1]


def one_of(config, key: str, known: tuple[str, ...]) -> str:
    """The value of ``key``, which is one of ``known``; ``ConfigError`` for any other."""
    value = "none" if config[key] is None else str(config[key])  # --key=none is read as None
    if value not in known:
        raise ConfigError(f"{key}: {value!r} is unknown; known: {', '.join(known)}.")
    return value
