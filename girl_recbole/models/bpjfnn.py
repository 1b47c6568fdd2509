"""BPJFNN, the basic baseline of APJFNN's authors (Qin et al. 2018, arXiv 1812.08947): two mean-pooled BiLSTMs.

    h_1..h_n = BiLSTM(w_1..w_n)     g = mean_t h_t        of the job's words, g^J, and of the resume's, g^R
    D = tanh(W [g^J; g^R; g^J - g^R] + b)                 s = w . D + b'

w : (B, n, E) word vectors   h : (B, n, H)   g : (B, H)   D : (B, head_size)   s : (B,) logits

Not verified: the paper's abstract was read, its body was not; the equations are those that METHODS of this project and
public re-implementations agree on. What we decided, and where we differ:
- H = hidden_size counts both directions (H/2 each). Sizes, dropout (on word vectors) and the optimiser are ours.
- Word vectors are random at first; the paper's are pre-trained by skip-gram.
- The mean is over the words of the document itself, without padding; a document without words is a zero vector.
- A document is the words of its items in their order (words.py), without boundaries.
Full ranking encodes each side once: W splits into a part for g^J and one for g^R, so that a pair costs one tanh of
head_size units.
"""

from __future__ import annotations

import torch
from torch import nn

from girl_recbole.errors import ConfigError
from girl_recbole.models.lstm import read_padded
from girl_recbole.models.text_scorer import _BLOCK, Head, TextScorer, positive_int

__all__ = ["BPJFNN", "direction_size"]


class BPJFNN(TextScorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width, each = self.words.embedding_dim, direction_size(config)
        self.lstms = nn.ModuleDict(
            {kind: nn.LSTM(width, each, batch_first=True, bidirectional=True) for kind in ("cv", "jd")}
        )
        self.head = Head(2 * each, positive_int(config, "head_size"), self.prior_logit)

    def encode_users(self, ids):
        return self.head.of_resume(self.document_vectors("cv", ids))

    def encode_items(self, ids):
        return self.head.of_job(self.document_vectors("jd", ids))

    def score_pairs(self, users, items):
        return self.head(items, users)

    def score_all(self, users, items):
        scores = users.new_empty(len(users), len(items))
        step = max(1, _BLOCK // users.shape[1])
        for user, row in zip(users, scores, strict=True):
            for at in range(0, len(items), step):
                row[at : at + step] = self.head(items[at : at + step], user)
        return scores

    def document_vectors(self, kind: str, ids: torch.Tensor) -> torch.Tensor:
        """g, (D, H)."""
        items = self.items_of(kind, ids)
        counts = items.lengths[items.rows].sum(dim=1)
        words = items.words[items.rows].flatten(1)  # (D, K W): each item's words, then its padding
        words = words.gather(1, torch.sort((words == 0).byte(), dim=1, stable=True).indices)
        words = words[:, : max(1, int(counts.max()))]
        states = read_padded(self.lstms[kind], words, counts, self.vectors_of)
        return states.sum(dim=1) / counts.clamp_min(1).unsqueeze(1)


def direction_size(config) -> int:
    """Units of one direction of a BiLSTM with ``hidden_size`` in both."""
    size = positive_int(config, "hidden_size")
    if size % 2:
        raise ConfigError(f"hidden_size: {size}; an even number is required, half of it for each direction.")
    return size // 2
