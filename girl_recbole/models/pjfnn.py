"""PJFNN, Person-Job Fit Neural Network (Zhu et al. 2018, arXiv 1810.04040): two CNNs over items, cosine of two vectors.

    job       each requirement item:  conv(5) BN ReLU, max-pool(2), conv(5) BN ReLU, max over words    r_k, (C,)
              v^J = mean over its items: every requirement counts
    resume    each experience item:   conv(5) BN ReLU, max-pool(2), conv(3) BN ReLU, max over words
              v^R = max over its items, unit by unit: the best evidence counts
    pair      s = scale cos(v^J, v^R) + bias
    requirement k of a job and a seeker:  cos(r_k, v^R), ``requirement_scores``

C = hidden_size; v : (D, C); s : (B,) logits. Items are words.py's. Their order changes nothing.

Verified from public pages: the abstract (a bipartite CNN, a hierarchy of items, requirements that are met by the
distance of latent vectors), and in a later paper's account of it, that the score is the cosine of the two vectors. Not
verified, for the paper's body could not be read: kernels 5, 5 and 5, 3, the pool, mean against max (RecBole-PJF has the
same numbers), the objective. What we decided, and where we differ:
- Convolutions run along the words and mix all coordinates of the word vectors; an item is padded with zeros, so that it
  may be shorter than the kernel. Items of a side share their weights.
- Loss: cross-entropy of sigmoid(s) and the label (or ``loss: bpr``). The paper's own objective is remembered as pulling
  matched pairs together, pushing failed ones apart, and asking a failed application for a poorly met requirement; that
  last term is not here.
- BN is over the words of the distinct items of a batch. Padding is never part of it.
- Word vectors are random at first. Dropout is on them, with one mask for each word of a side of a batch. Sizes and
  optimiser are ours.
- scale and bias start where the mean cosine of some training pairs gives the base rate.
A document without words has a zero vector, whose cosine is 0.

Computation: the items of a batch stand in one long row with gaps of zeros between them, as wide as a kernel reaches, so
that one convolution serves all and no item meets another. The first convolution multiplies its matrices with each
distinct word of the batch, and adds up what it finds there along the row. Full ranking encodes each side once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from girl_recbole.models.text_scorer import Items, TextScorer, positive_int

__all__ = ["PJFNN", "ItemCNN"]

_GAP = 4  # zeros between items: two on each side of a pooled item, as a kernel of 5 reaches
_SCALE = 8.0  # at first
_SAMPLE = 256  # training pairs by which the bias starts


class ItemCNN(nn.Module):
    """Vectors (n, C) of items; C >= 0 in each coordinate, zeros of an empty item."""

    def __init__(self, width: int, size: int, kernels: tuple[int, int]) -> None:
        super().__init__()
        if any(
            kernel % 2 == 0 or kernel // 2 > limit for kernel, limit in zip(kernels, (_GAP, _GAP // 2), strict=True)
        ):
            raise ValueError(f"kernels {kernels}; odd ones of at most {2 * _GAP + 1} and {_GAP + 1} are required.")
        self.first = nn.Conv1d(width, size, kernels[0], padding=kernels[0] // 2)
        self.second = nn.Conv1d(size, size, kernels[1], padding=kernels[1] // 2)
        self.first_norm, self.second_norm = nn.BatchNorm1d(size), nn.BatchNorm1d(size)

    def forward(self, items: Items, vectors_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        lengths = items.lengths[1:]  # of the items that have words
        slots = (lengths + 1) // 2 * 2 + _GAP
        start = slots.cumsum(0) - slots
        real = items.words[1:] > 0
        at = (start.unsqueeze(1) + torch.arange(real.shape[1], device=start.device))[real]
        if not len(at):
            return self.first.weight.new_zeros(len(items.lengths), self.first.out_channels)
        words = at.new_zeros(int(slots.sum())).index_copy(0, at, items.words[1:][real])
        hidden = self._activate(self.first_norm, self._first(words, at, vectors_of), len(words), at)
        hidden = hidden.unflatten(0, (-1, 2)).amax(dim=1)  # ReLU leaves nothing below the zeros behind an odd item
        at = (words.view(-1, 2) > 0).any(dim=1).nonzero().squeeze(1)
        hidden = self.second(hidden.T.unsqueeze(0)).squeeze(0).T[at]
        hidden = self._activate(self.second_norm, hidden, len(words) // 2, at)
        item = torch.repeat_interleave(torch.arange(1, len(items.lengths), device=at.device), slots // 2)
        found = hidden.new_zeros(len(items.lengths), hidden.shape[1])
        return found.scatter_reduce(0, item.unsqueeze(1).expand_as(hidden), hidden, "amax")

    def _first(self, words: torch.Tensor, at: torch.Tensor, vectors_of) -> torch.Tensor:
        """(N, C) of the first convolution at the places ``at`` of a row of word ids (T,).

        sum_o W_o x_{t+o}, where W_o x is made once for each distinct word of the row.
        """
        size, _, kernel = self.first.weight.shape
        distinct, which = torch.unique(words, return_inverse=True)  # 0, which the gaps hold, is the first
        table = vectors_of(distinct) @ self.first.weight.permute(1, 2, 0).flatten(1)  # (words, kernel C)
        windows = functional.pad(which, (kernel // 2, kernel // 2)).unfold(0, kernel, 1)[at]
        rows = windows * kernel + torch.arange(kernel, device=at.device)
        return functional.embedding_bag(rows, table.view(-1, size), mode="sum") + self.first.bias

    @staticmethod
    def _activate(norm: nn.BatchNorm1d, hidden: torch.Tensor, length: int, at: torch.Tensor) -> torch.Tensor:
        """ReLU(BN(hidden)) (N, C) at the places ``at`` of a row (length, C) of zeros."""
        if len(hidden) > 1 or not norm.training:
            hidden = norm(hidden)
        else:  # one word has no variance
            of = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            hidden = functional.batch_norm(hidden, *of, eps=norm.eps)
        hidden = functional.relu(hidden)
        return hidden.new_zeros(length, hidden.shape[1]).index_copy(0, at, hidden)


class PJFNN(TextScorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width, size = self.words.embedding_dim, positive_int(config, "hidden_size")
        self.job_cnn, self.resume_cnn = ItemCNN(width, size, (5, 5)), ItemCNN(width, size, (5, 3))
        self.scale = nn.Parameter(torch.tensor(_SCALE))
        self.bias = nn.Parameter(torch.zeros(()))
        self._start_bias(dataset)

    def encode_users(self, ids):
        items = self.items_of("cv", ids)
        return _unit(self.resume_cnn(items, self.vectors_of)[items.rows].amax(dim=1))

    def encode_items(self, ids):
        items = self.items_of("jd", ids)
        counts = (items.rows > 0).sum(dim=1, keepdim=True).clamp_min(1)
        return _unit(self.job_cnn(items, self.vectors_of)[items.rows].sum(dim=1) / counts)

    def score_pairs(self, users, items):
        return self.scale * (users * items).sum(dim=1) + self.bias

    def score_all(self, users, items):
        return self.scale * (users @ items.T) + self.bias

    @torch.no_grad()
    def requirement_scores(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B, K) cosines in [0, 1] of each requirement item of the jobs ``items`` (B,) with the resumes of ``users``.

        Column k is the k-th of ``split_items`` of the JD among those that have a word; NaN where a job has fewer.
        """
        resumes, found = self.encode_users(users), self.items_of("jd", items)
        vectors = _unit(self.job_cnn(found, self.vectors_of))[found.rows]
        scores = (vectors * resumes.unsqueeze(1)).sum(dim=2)
        return scores.masked_fill(found.rows == 0, torch.nan)

    @torch.no_grad()
    def _start_bias(self, dataset) -> None:
        """The mean logit of some training pairs becomes the base rate's."""
        users, items = (torch.as_tensor(dataset.inter_feat[f][:_SAMPLE]).long() for f in (self.USER_ID, self.ITEM_ID))
        self.bias.copy_(self.prior_logit - self._pair_logits(users, items).mean())


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return functional.normalize(vectors, dim=-1, eps=1e-8)
