"""What PJFNN, APJFNN and BPJFNN share: documents as word ids, losses on explicit labels, encoding once, attention.

Words      vocabulary and tables are words.py's, fitted to the CVs and JDs of the training part's seekers and jobs. The
           tables are buffers that no checkpoint holds: they are made from the texts again. A checkpoint holds the
           vocabulary's SHA-256, and refuses to be loaded beside another vocabulary.
Word vectors  ``words``, (ids, E), random at first; row 0 (padding) is zero and stays zero.
Loss       ``bce``: cross-entropy of sigmoid(s) and the label. ``bpr``: -log sigmoid(s+ - s-) over pairs of the same
           seeker with opposite labels. RecBole's loader draws pairs, not seekers, so that a batch holds next to none
           of them by chance; therefore each pair of the batch is compared with one drawn at random from the training
           pairs of the same seeker that have the opposite label. Pairs of seekers with one label only teach nothing
           then. No pair is made up. A bpr score has no zero of its own: probabilities come by calibration.
Once       in a batch each distinct seeker and job is encoded once, and in it each distinct item. Without gradients
           documents are encoded _DOCUMENTS at a time and pairs scored _PAIRS at a time, so that memory has a bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models.lstm import rows_at
from girl_recbole.models.scorer import Scorer, one_of
from girl_recbole.words import Vocabulary, number_documents

__all__ = ["Attention", "Head", "Items", "TextScorer", "masked_softmax", "positive_int"]

_LOG = logging.getLogger(__name__)
_DOCUMENTS = 512  # documents that are encoded at once where no gradient is needed
_PAIRS = 1024  # pairs that are scored at once where no gradient is needed
_BLOCK = 1 << 20  # hidden units that full ranking holds at once: 4 MB of float32


class Items(NamedTuple):
    """The items of D documents."""

    rows: torch.Tensor
    """(D, K) int64: which of the distinct items, 0 = none."""
    words: torch.Tensor
    """(n + 1, W) int64 word ids of the distinct items, 0 = no word; row 0 is empty."""
    lengths: torch.Tensor
    """(n + 1,) int64 words of each."""


class TextScorer(Scorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss_kind = one_of(config, "loss", ("bce", "bpr"))
        texts = {kind: [one[0] if one else "" for one in dataset.texts(kind)] for kind in ("cv", "jd")}
        pairs = [np.asarray(dataset.inter_feat[field]) for field in (self.USER_ID, self.ITEM_ID, self.LABEL)]
        trained = [texts[kind][n] for kind, ids in zip(("cv", "jd"), pairs, strict=False) for n in np.unique(ids)]
        vocabulary = Vocabulary.fit(
            trained,
            unit=one_of(config, "word_unit", ("word", "subword")),
            size=positive_int(config, "vocabulary_size"),
            min_count=positive_int(config, "min_word_count"),
        )
        limits = {key: positive_int(config, key) for key in ("max_items", "max_item_words")}
        self._ddp_params_and_buffers_to_ignore = []
        for kind, several in texts.items():
            documents = number_documents(several, vocabulary, **limits)
            documents.cut["documents"] -= 1  # the padding id's
            documents.cut["empty"] -= 1
            _LOG.info("%s texts: %s.", kind, ", ".join(f"{name} {count}" for name, count in documents.cut.items()))
            lengths = np.count_nonzero(documents.items, axis=1)
            for name, table in (("rows", documents.rows), ("items", documents.items), ("lengths", lengths)):
                self.register_buffer(f"{kind}_{name}", torch.from_numpy(table), persistent=False)
                self._ddp_params_and_buffers_to_ignore.append(f"{kind}_{name}")
        sha256 = torch.frombuffer(bytearray(vocabulary.sha256), dtype=torch.uint8).clone()
        self.register_buffer("vocabulary_sha256", sha256)
        self.register_load_state_dict_pre_hook(_check_vocabulary)
        self.words = nn.Embedding(len(vocabulary), positive_int(config, "embedding_size"), padding_idx=0)
        self.dropout = nn.Dropout(_dropout(config))
        if self.loss_kind == "bpr":
            self._index_opposites(*pairs)

    # -------------------------------------------------------------------------------------------- RecBole's interface

    def logits(self, interaction) -> torch.Tensor:
        return self._pair_logits(interaction[self.USER_ID], interaction[self.ITEM_ID])

    def calculate_loss(self, interaction) -> torch.Tensor:
        if self.loss_kind == "bce":
            return super().calculate_loss(interaction)
        users, items, matched = interaction[self.USER_ID], interaction[self.ITEM_ID], interaction[self.LABEL] > 0.5
        others, found = self._opposites(users, matched)
        users, items, matched, others = (values[found] for values in (users, items, matched, others))
        if not len(users):
            return self.words.weight.sum() * 0.0
        here, there = self._pair_logits(torch.cat([users, users]), torch.cat([items, others])).chunk(2)
        return -functional.logsigmoid(torch.where(matched, here - there, there - here)).mean()

    # ------------------------------------------------------------------------------------------ what a model defines

    def score_pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B,) logits of encoded seekers and encoded jobs, row by row."""
        raise NotImplementedError

    def train_pairs(self, users, user_at, items, item_at) -> torch.Tensor:
        """(B,) logits of the pairs (users[user_at], items[item_at]) of distinct ids, where gradients are needed."""
        return self.score_pairs(rows_at(self.encode_users(users), user_at), rows_at(self.encode_items(items), item_at))

    # --------------------------------------------------------------------------------------------------- for a model

    def items_of(self, kind: str, ids: torch.Tensor) -> Items:
        """The items of the CVs or JDs (``cv``, ``jd``) of ``ids`` (D,), cut to the longest document and item."""
        rows = getattr(self, f"{kind}_rows")[ids]
        numbers, rows = torch.unique(functional.pad(rows, (0, 1)), return_inverse=True)  # the pad makes 0 one of them
        rows = rows[:, :-1]
        rows = rows[:, : max(1, int((rows > 0).sum(dim=1).max()))] if len(rows) else rows
        lengths = getattr(self, f"{kind}_lengths")[numbers]
        words = getattr(self, f"{kind}_items")[numbers, : max(1, int(lengths.max()))]
        return Items(rows, words.long(), lengths)

    def vectors_of(self, words: torch.Tensor) -> torch.Tensor:
        """(..., E) of word ids (...), with dropout."""
        return self.dropout(self.words(words))

    def _pair_logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or len(users) <= _PAIRS:
            return self._logits_at_once(users, items)
        parts = zip(users.split(_PAIRS), items.split(_PAIRS), strict=True)
        return torch.cat([self._logits_at_once(*part) for part in parts])

    def _logits_at_once(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        (users, user_at), (items, item_at) = (torch.unique(ids, return_inverse=True) for ids in (users, items))
        if torch.is_grad_enabled():
            return self.train_pairs(users, user_at, items, item_at).float()
        users, items = _encoded(self.encode_users, users), _encoded(self.encode_items, items)
        step = max(1, _BLOCK // max(1, users[0].numel() + items[0].numel()))
        parts = zip(user_at.split(step), item_at.split(step), strict=True)
        return torch.cat([self.score_pairs(users[u], items[i]).float() for u, i in parts])

    # --------------------------------------------------------------------------------------------------- loss: bpr

    def _index_opposites(self, users: np.ndarray, items: np.ndarray, labels: np.ndarray) -> None:
        """The training jobs sorted by (seeker, label), and where those of each begin."""
        group = users.astype(np.int64) * 2 + (labels > 0.5)
        order = np.argsort(group, kind="stable")
        counts = np.bincount(group, minlength=2 * self.n_users)
        if not (counts.reshape(-1, 2) > 0).all(axis=1).any():
            raise DataError(
                "loss: bpr compares a seeker's matched pairs with the same seeker's mismatched ones; no seeker of the "
                "training part has both. Use loss: bce."
            )
        tables = {"jobs": items[order].astype(np.int64), "first": counts.cumsum() - counts, "count": counts}
        for name, table in tables.items():
            self.register_buffer(f"sorted_{name}", torch.from_numpy(table), persistent=False)
            self._ddp_params_and_buffers_to_ignore.append(f"sorted_{name}")

    def _opposites(self, users: torch.Tensor, matched: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) a random training job of each seeker with the other label, and whether there is one."""
        group = users * 2 + (~matched).long()
        count = self.sorted_count[group]
        drawn = (torch.rand(len(users), device=users.device, dtype=torch.float64) * count).long()
        at = (self.sorted_first[group] + drawn).clamp_max(len(self.sorted_jobs) - 1)
        return self.sorted_jobs[at], count > 0


def _encoded(encode: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() or len(ids) <= _DOCUMENTS:
        return encode(ids)
    parts = [encode(part) for part in ids.split(_DOCUMENTS)]
    return torch.cat(parts)


def _check_vocabulary(module: TextScorer, state: dict, prefix: str, *_) -> None:
    saved = state.get(f"{prefix}vocabulary_sha256")
    if saved is not None and not torch.equal(saved.cpu(), module.vocabulary_sha256.cpu()):
        raise DataError(
            f"this checkpoint was trained with another vocabulary (SHA-256 {bytes(saved.cpu())[:6].hex()}..., that of "
            f"the training part's texts now is {bytes(module.vocabulary_sha256.cpu())[:6].hex()}...): the texts, the "
            f"split or the rules of words.py have changed. Use the data it was trained on, or train again."
        )


# ------------------------------------------------------------------------------------------------------ parts of models


class Attention(nn.Module):
    """e = v . tanh(W h + b), of states (..., H) to scores (...); with a context x also tanh(W x + M h)."""

    def __init__(self, states: int, size: int, context: int = 0) -> None:
        super().__init__()
        self.of_state = nn.Linear(states, size, bias=not context)
        self.of_context = nn.Linear(context, size) if context else None
        self.v = nn.Linear(size, 1, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.score(self.of_state(states))

    def score(self, inner: torch.Tensor) -> torch.Tensor:
        """v . tanh(inner), (..., A) to (...)."""
        return torch.tanh(inner) @ self.v.weight[0]


class Head(nn.Module):
    """D = tanh(W [g^J; g^R; g^J - g^R] + b), s = w . D + b', of vectors of H and D hidden units.

    W [g^J; g^R; g^J - g^R] = (W1 + W3) g^J + (W2 - W3) g^R: a side passes the layer once (``of_job``, ``of_resume``).
    """

    def __init__(self, states: int, size: int, prior_logit: float) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * states, size)
        self.outer = nn.Linear(size, 1)
        nn.init.constant_(self.outer.bias, prior_logit)

    def of_job(self, g: torch.Tensor) -> torch.Tensor:
        first, _, third = self.inner.weight.chunk(3, dim=1)
        return functional.linear(g, first + third, self.inner.bias)

    def of_resume(self, g: torch.Tensor) -> torch.Tensor:
        _, second, third = self.inner.weight.chunk(3, dim=1)
        return functional.linear(g, second - third)

    def forward(self, job: torch.Tensor, resume: torch.Tensor) -> torch.Tensor:
        """Scores of what ``of_job`` and ``of_resume`` gave; the two broadcast."""
        return self.outer(torch.tanh(job + resume)).squeeze(-1)


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax over the entries where ``mask`` is True; 0 elsewhere, also where there is none at all."""
    lowest = torch.finfo(scores.dtype).min
    return torch.softmax(scores.masked_fill(~mask, lowest), dim) * mask


# ------------------------------------------------------------------------------------------------------------ settings


def positive_int(config, key: str) -> int:
    value = config[key]
    if type(value) is not int or value < 1:
        raise ConfigError(f"{key}: {value!r}; an int of at least 1 is required.")
    return value


def _dropout(config) -> float:
    share = config["dropout_prob"]
    if type(share) not in (int, float) or not 0 <= share < 1:
        raise ConfigError(f"dropout_prob: {share!r}; a number of at least 0 and below 1 is required.")
    return share
