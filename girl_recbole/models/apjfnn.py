"""APJFNN, Ability-aware Person-Job Fit Neural Network (Qin et al. 2018, arXiv 1812.08947): attention on four levels.

Words      h_kt = BiLSTM over the words of requirement k         h_lt = another BiLSTM over those of experience l
(1) words of a requirement      s_k  = sum_t alpha_kt h_kt       alpha_k. = softmax_t v . tanh(W h_kt + b)
(2) requirements of the job     g^J  = sum_k beta_k c_k          c = BiLSTM(s), beta = softmax_k v . tanh(W c_k + b)
(3) words of an experience, for each requirement
                                s_lk = sum_t gamma_lkt h_lt      gamma_lk. = softmax_t v . tanh(W s_k + b + M h_lt)
                                u_l  = mean_k s_lk
(4) experiences of the resume   g^R  = sum_l delta_l c_l         c = BiLSTM(u), delta = softmax_l v . tanh(W g^J + b
                                                                                                        + M c_l)
Fit        D = tanh(W [g^J; g^R; g^J - g^R] + b)                 s = w . D + b'

h, c, s, u, g : (..., H), H = hidden_size, both directions    s of a pair : (B,) logits. Each level has its own weights.

Verified from public pages: the abstract (word-level RNN, four hierarchical attentions, of which the latter two read the
resume by the requirements). Not verified, for the paper's body could not be read: the forms of the scores, the mean
over k in u_l, D and the loss; they are as METHODS of this project reads them. What we decided, and where we differ:
- Word vectors are random at first (the paper's: skip-gram), with dropout. Sizes and optimiser are ours.
- v has no bias: it cancels in a softmax. Padding takes no part in any softmax, mean or BiLSTM.
- A document without words has g = 0; then gamma and delta are 0.

Computation: u_l = sum_t (mean_k gamma_lkt) h_lt, so that no vector a (l, k) is made. W s_k + b, g^J and M h_lt do not
depend on the other side and are made once a job and once a resume, also in full ranking; what each pair costs is
(3): words x requirements x attention_size units of tanh, and the two BiLSTM passes over its experiences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from girl_recbole.models.bpjfnn import direction_size
from girl_recbole.models.lstm import bilstm
from girl_recbole.models.text_scorer import Attention, Head, Items, TextScorer, masked_softmax, positive_int

__all__ = ["APJFNN", "Weights"]

_BLOCK = 1 << 21  # units of tanh in (3) that are held at once where no gradient is needed: 8 MB of float32


class Weights(NamedTuple):
    """Attention of B pairs: K requirements of at most T words, L experiences of at most N words in all; 0 = padding."""

    alpha: torch.Tensor
    """(B, K, T): words of each requirement; sums to 1 over T."""
    beta: torch.Tensor
    """(B, K): requirements of the job; sums to 1."""
    gamma: torch.Tensor
    """(B, K, N): for each requirement the resume's words in their order; sums to 1 over those of one experience."""
    delta: torch.Tensor
    """(B, L): experiences of the resume; sums to 1."""
    experience: torch.Tensor
    """(B, N) int64: which experience a word belongs to, 1..L, 0 = no word."""


class APJFNN(TextScorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width, each, size = self.words.embedding_dim, direction_size(config), positive_int(config, "attention_size")
        states = 2 * each

        def lstm(inputs: int) -> nn.LSTM:
            return nn.LSTM(inputs, each, batch_first=True, bidirectional=True)

        self.job_words, self.resume_words = lstm(width), lstm(width)
        self.job_items, self.resume_items = lstm(states), lstm(states)
        self.alpha, self.beta = Attention(states, size), Attention(states, size)
        self.gamma, self.delta = Attention(states, size, context=states), Attention(states, size, context=states)
        self.head = Head(states, positive_int(config, "head_size"), self.prior_logit)
        self.states, self.attention_size = states, size
        words = self.cv_lengths[self.cv_rows].sum(dim=1)
        self.most_words, self.most_requirements = max(1, int(words.max())), self.jd_rows.shape[1]

    # ---------------------------------------------------------------------------------------------------- both sides

    def encode_items(self, ids):
        """(N, K A + H + 1): of each job W s_k + b of (3) for its K requirements, g^J, and how many these are."""
        inner, g, counts, _, _ = self._job(ids)
        inner = functional.pad(inner, (0, 0, 0, self.most_requirements - inner.shape[1]))
        return torch.cat([inner.flatten(1), g, counts.unsqueeze(1).to(g.dtype)], dim=1)

    def encode_users(self, ids):
        """(D, N, A + H + 1): of each resume M h_lt, h_lt and l of its words in their order; l = 0: no word."""
        items = self.items_of("cv", ids)
        states = bilstm(self.resume_words, items.words, items.lengths, self.vectors_of)
        lengths = items.lengths[items.rows]  # (D, L)
        document, item = (lengths > 0).nonzero(as_tuple=True)
        per_item = lengths[document, item]
        word = _within(per_item)
        document, item = (torch.repeat_interleave(index, per_item) for index in (document, item))
        place = document * self.most_words + _within(lengths.sum(dim=1))
        flat = states[items.rows[document, item], word]  # (words of all D, H)
        made = torch.cat([self.gamma.of_state(flat), flat, (item + 1).unsqueeze(1).to(flat.dtype)], dim=1)
        out = made.new_zeros(len(ids) * self.most_words, made.shape[1]).index_copy(0, place, made)
        return out.view(len(ids), self.most_words, -1)

    def score_pairs(self, users, items):
        g, resume, _, _ = self._meet(users, *self._parts(items))
        return self.head(self.head.of_job(g), self.head.of_resume(resume))

    def score_all(self, users, items):
        scores = users.new_empty(len(users), len(items))
        for user, row in zip(users, scores, strict=True):
            user = user[: max(1, int((user[:, -1] > 0).sum()))]
            step = max(1, _BLOCK // (len(user) * self.most_requirements * self.attention_size))
            for at in range(0, len(items), step):
                part = items[at : at + step]
                row[at : at + step] = self.score_pairs(user.expand(len(part), -1, -1), part)
        return scores

    @torch.no_grad()
    def attention(self, users: torch.Tensor, items: torch.Tensor) -> Weights:
        """What the model looks at in the pairs (users, items), (B,) ids each."""
        inner, g, counts, alpha, beta = self._job(items)
        encoded = self.encode_users(users)
        encoded = encoded[:, : max(1, int((encoded[..., -1] > 0).sum(dim=1).max()))]
        _, _, gamma, delta = self._meet(encoded, inner, g, counts)
        return Weights(alpha, beta, gamma.transpose(1, 2), delta, encoded[..., -1].long())

    # ------------------------------------------------------------------------------------------------- the equations

    def _job(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, K, A) W s_k + b, (N, H) g^J, (N,) requirements, (N, K, T) alpha, (N, K) beta."""
        items: Items = self.items_of("jd", ids)
        states = bilstm(self.job_words, items.words, items.lengths, self.vectors_of)
        alpha = masked_softmax(self.alpha(states), items.words > 0, dim=1)
        s = (alpha.unsqueeze(1) @ states).squeeze(1)[items.rows]  # (1)
        real = items.rows > 0
        c = bilstm(self.job_items, s, real.sum(dim=1))
        beta = masked_softmax(self.beta(c), real, dim=1)
        g = (beta.unsqueeze(1) @ c).squeeze(1)  # (2)
        return self.gamma.of_context(s), g, real.sum(dim=1), alpha[items.rows], beta

    def _parts(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``encode_items`` put together, cut to the most requirements of a job."""
        inner, g, counts = items.split([self.most_requirements * self.attention_size, self.states, 1], dim=1)
        inner, counts = inner.unflatten(1, (self.most_requirements, self.attention_size)), counts.squeeze(1).long()
        return inner[:, : max(1, int(counts.max()))], g, counts

    def _meet(self, users, inner, g, counts) -> tuple[torch.Tensor, ...]:
        """g^J and g^R (B, H), gamma (B, N, K), delta (B, L)."""
        item = users[..., -1].long()  # (B, N)
        longest = max(1, int((item > 0).sum(dim=1).max()))
        users, item = users[:, :longest], item[:, :longest]
        of_state, states = users[..., : self.attention_size], users[..., self.attention_size : -1]
        experiences = item.amax(dim=1)
        scores = self.gamma.score(of_state.unsqueeze(2) + inner.unsqueeze(1))  # (B, N, K)
        gamma = _softmax_by(scores, item, max(1, int(experiences.max())))
        real = torch.arange(inner.shape[1], device=item.device) < counts.unsqueeze(1)
        gamma = gamma * real.unsqueeze(1)
        mean = gamma.sum(dim=2) / counts.clamp_min(1).unsqueeze(1)  # over the requirements, (B, N)
        u = states.new_zeros(len(item), int(experiences.max()) + 1, self.states)
        u = u.scatter_add(1, item.unsqueeze(2).expand_as(states), mean.unsqueeze(2) * states)[:, 1:]  # (3)
        c = bilstm(self.resume_items, u, experiences)
        inner = self.delta.of_context(g).unsqueeze(1) + self.delta.of_state(c)
        met = torch.arange(c.shape[1], device=item.device) < experiences.unsqueeze(1)
        delta = masked_softmax(self.delta.score(inner), met, dim=1)
        return g, (delta.unsqueeze(1) @ c).squeeze(1), gamma, delta  # (4)


def _within(lengths: torch.Tensor) -> torch.Tensor:
    """0, 1, ..., lengths[0] - 1, 0, 1, ..., lengths[1] - 1, ..."""
    start = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum()), device=lengths.device) - torch.repeat_interleave(start, lengths)


def _softmax_by(scores: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, N, K) softmax over those n of a row with the same group 1..groups; 0 where the group is 0."""
    index = group.unsqueeze(2).expand_as(scores)
    shape = (len(scores), groups + 1, scores.shape[2])
    most = scores.new_full(shape, -torch.inf).scatter_reduce(1, index, scores.detach(), "amax")
    powers = torch.exp(scores - most.gather(1, index)) * (index > 0)
    total = scores.new_zeros(shape).scatter_add(1, index, powers)
    return powers / total.gather(1, index).clamp_min(torch.finfo(scores.dtype).tiny)
