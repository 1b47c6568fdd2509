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
from girl_recbole.models.lstm import read, read_padded, rows_at
from girl_recbole.models.text_scorer import Attention, Head, TextScorer, masked_softmax, positive_int

__all__ = ["APJFNN", "Weights"]

_BLOCK = 1 << 17  # units of tanh in (3) that are held at once: 512 kB of float32
_JOBS_BLOCK = 1 << 20  # numbers of the resume, once a job, that full ranking holds at once: 4 MB


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
        rows, place, item = self._resume(ids)
        made = torch.cat([rows_at(self.gamma.of_state(rows), place), rows_at(rows, place)], dim=2)
        made = torch.cat([made, item.unsqueeze(2).to(made.dtype)], dim=2)
        return functional.pad(made, (0, 0, 0, self.most_words - made.shape[1]))

    def train_pairs(self, users, user_at, items, item_at):
        inner, g, counts, _, _ = self._job(items)
        rows, place, item = self._resume(users)
        place, counts, g = place[user_at], counts[item_at], rows_at(g, item_at)
        of_state, states = rows_at(self.gamma.of_state(rows), place), rows_at(rows, place)
        resume, _, _ = self._meet(of_state, states, item[user_at], rows_at(inner, item_at), g, counts)
        return self.head(self.head.of_job(g), self.head.of_resume(resume))

    def score_pairs(self, users, items):
        inner, g, counts = items.split([self.most_requirements * self.attention_size, self.states, 1], dim=1)
        inner, counts = inner.unflatten(1, (self.most_requirements, self.attention_size)), counts.squeeze(1).long()
        inner = inner[:, : max(1, int(counts.max()))]
        resume, _, _ = self._meet(*self._parts(users), inner, g, counts)
        return self.head(self.head.of_job(g), self.head.of_resume(resume))

    def score_all(self, users, items):
        scores = users.new_empty(len(users), len(items))
        for user, row in zip(users, scores, strict=True):
            user = user[: max(1, int((user[:, -1] > 0).sum()))]
            step = max(1, _JOBS_BLOCK // user.numel())
            for at in range(0, len(items), step):
                part = items[at : at + step]
                row[at : at + step] = self.score_pairs(user.expand(len(part), -1, -1), part)
        return scores

    @torch.no_grad()
    def attention(self, users: torch.Tensor, items: torch.Tensor) -> Weights:
        """What the model looks at in the pairs (users, items), (B,) ids each."""
        inner, g, counts, alpha, beta = self._job(items)
        of_state, states, item = self._parts(self.encode_users(users))
        _, gamma, delta = self._meet(of_state, states, item, inner, g, counts)
        return Weights(alpha, beta, gamma.transpose(1, 2), delta, item)

    # ------------------------------------------------------------------------------------------------- the equations

    def _job(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, K, A) W s_k + b, (N, H) g^J, (N,) requirements, (N, K, T) alpha, (N, K) beta."""
        items = self.items_of("jd", ids)
        rows, place = read(self.job_words, items.words, items.lengths, self.vectors_of)
        alpha = masked_softmax(self.alpha(rows)[place], items.words > 0, dim=1)
        s = rows_at((alpha.unsqueeze(1) @ rows_at(rows, place)).squeeze(1), items.rows)  # (1)
        real = items.rows > 0
        c = read_padded(self.job_items, s, real.sum(dim=1))
        beta = masked_softmax(self.beta(c), real, dim=1)
        g = (beta.unsqueeze(1) @ c).squeeze(1)  # (2)
        return self.gamma.of_context(s), g, real.sum(dim=1), alpha[items.rows], beta

    def _resume(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows of h_lt, the last zeros; which of them each word has, (D, N); l of the word, (D, N), 0 = no word."""
        items = self.items_of("cv", ids)
        rows, place = read(self.resume_words, items.words, items.lengths, self.vectors_of)
        place = place[items.rows].flatten(1)  # (D, L T): each experience's words, then its padding
        item = torch.arange(1, items.rows.shape[1] + 1, device=ids.device).repeat_interleave(items.words.shape[1])
        none = place == len(rows) - 1
        front = torch.sort(none.byte(), dim=1, stable=True).indices
        front = front[:, : max(1, int((~none).sum(dim=1).max()))]
        place = place.gather(1, front)
        return rows, place, item[front].masked_fill(place == len(rows) - 1, 0)

    def _parts(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``encode_users`` put together, cut to the most words of a resume."""
        users = users[:, : max(1, int((users[..., -1] > 0).sum(dim=1).max()))]
        return users[..., : self.attention_size], users[..., self.attention_size : -1], users[..., -1].long()

    def _meet(self, of_state, states, item, inner, g, counts) -> tuple[torch.Tensor, ...]:
        """g^R (B, H), gamma (B, N, K) and delta (B, L) of pairs.

        Of their resumes M h_lt (B, N, A), h_lt (B, N, H) and l (B, N); of their jobs W s_k + b (B, K, A), g^J (B, H)
        and the number of requirements (B,).
        """
        experiences = item.amax(dim=1)
        longest = max(1, int(experiences.max()))
        gamma = _softmax_by(_Scores.apply(of_state, inner, self.gamma.v.weight[0]), item, longest)
        gamma = gamma * (torch.arange(inner.shape[1], device=item.device) < counts.unsqueeze(1)).unsqueeze(1)
        mean = gamma.sum(dim=2) / counts.clamp_min(1).unsqueeze(1)  # over the requirements, (B, N)
        of_item = mean.new_zeros(len(item), longest + 1, item.shape[1])
        u = of_item.scatter(1, item.unsqueeze(1), mean.unsqueeze(1))[:, 1:] @ states  # (3)
        c = read_padded(self.resume_items, u, experiences)
        scores = self.delta.score(self.delta.of_context(g).unsqueeze(1) + self.delta.of_state(c))
        delta = masked_softmax(scores, torch.arange(longest, device=item.device) < experiences.unsqueeze(1), dim=1)
        return (delta.unsqueeze(1) @ c).squeeze(1), gamma, delta  # (4)


class _Scores(torch.autograd.Function):
    """v . tanh(M h_n + W s_k + b), (B, N, K), of (B, N, A), (B, K, A) and v (A,), a few pairs at a time.

    No unit of tanh is kept: the backward pass makes them again, while they fit in the processor's cache.
    """

    @staticmethod
    def _blocks(states, contexts, *more):
        step = max(1, _BLOCK // (states.shape[1] * contexts.shape[1] * states.shape[2]))
        return zip(*(some.split(step) for some in (states, contexts, *more)), strict=True)

    @staticmethod
    def forward(ctx, states, contexts, v):
        ctx.save_for_backward(states, contexts, v)
        scores = states.new_empty(len(states), states.shape[1], contexts.shape[1])
        for h, s, out in _Scores._blocks(states, contexts, scores):
            torch.matmul((h.unsqueeze(2) + s.unsqueeze(1)).tanh_(), v, out=out)
        return scores

    @staticmethod
    def backward(ctx, grad):
        states, contexts, v = ctx.saved_tensors
        d_states, d_contexts, d_v = torch.empty_like(states), torch.empty_like(contexts), torch.zeros_like(v)
        for h, s, g, d_h, d_s in _Scores._blocks(states, contexts, grad, d_states, d_contexts):
            tanh = (h.unsqueeze(2) + s.unsqueeze(1)).tanh_()
            d_v += g.reshape(-1) @ tanh.flatten(0, 2)
            inner = tanh.square_().neg_().add_(1).mul_(g.unsqueeze(3))  # without v, which the sums can take later
            torch.sum(inner, dim=2, out=d_h)
            torch.sum(inner, dim=1, out=d_s)
        return d_states * v, d_contexts * v, d_v


def _softmax_by(scores: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, N, K) softmax over those n of a row with the same group 1..groups; 0 where the group is 0."""
    index = group.unsqueeze(2).expand_as(scores)
    shape = (len(scores), groups + 1, scores.shape[2])
    most = scores.new_full(shape, -torch.inf).scatter_reduce(1, index, scores.detach(), "amax")
    powers = torch.exp(scores - most.gather(1, index)) * (index > 0)
    total = scores.new_zeros(shape).scatter_add(1, index, powers)
    return powers / total.gather(1, index).clamp_min(torch.finfo(scores.dtype).tiny)
