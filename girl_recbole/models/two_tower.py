"""Predictors of GIRL (Zheng et al. 2023, arXiv 2307.02157, section V): a CV, a job, and the JD generated for that CV.

    Eq 9   c = Enc(C), j = Enc(J)             Eq 12  j' = Enc(J')       (encoder.py, embed.py)
                       Base                   Enhanced
    MLP    Eq 10   MLP([c; j])                Eq 13       MLP([c; j; j'])
    Dot    Eq 11   c . j                      Eq 14, 15   c' = MLP([c; j']),  c' . j

c, j, j' : CV, job and generated-JD vectors, (B, D) float32, D = encoder width; J' may be several JDs: mean of vectors.
s        : (B,) logits;  predict() = sigmoid(platt_a s + platt_b), in [0, 1], platt = (1, 0) until it is fitted.
Loss     : binary cross-entropy of sigmoid(s) and the explicit label, mean over the batch.

What the paper leaves open, and where we differ:
- The encoder is frozen and its vectors come from files; ``tune_encoder: full | lora`` trains it end to end (rows.py).
- An MLP sees standardised vectors: (x - mean) / spread, mean (D,) and spread () of a kind's vectors over the training
  part's seekers or jobs, kept in the checkpoint. Sentence vectors share a large common direction and have coordinates
  of about 1/sqrt(D); as they are, an MLP starts close to a constant and moves slowly. This is a fixed affine map, which
  the first layer could absorb: Eqs 10, 13 and 14 describe the same functions with and without it. j of Eq 15 is
  standardised too, and c' . j is divided by sqrt(D).
- Dot has a learned scale and bias, s = scale (c . j) + bias: a dot product of unit vectors is not a logit. In Eq 11,
  which has nothing else to learn, c . j is first centred and scaled by its mean and deviation over the training pairs,
  and scale and bias start where logistic regression on these pairs puts them (the order never changes with training, so
  that early stopping by AUC would keep any values).
- ReLU, dropout after each hidden layer, sizes in ``mlp_hidden_sizes``; the last bias starts at the base rate's logit.

Controls (same network, same capacity): ``generated: zeros`` (j' = 0), ``shuffled`` (another seeker's j', one fixed
permutation without fixed points), ``cv`` (j' = c); ``cv_mlp: true`` gives Base-Dot c' = MLP(c), which is what
Enhanced-Dot has beyond the generation.

Full ranking encodes each side once. The first layer of an MLP splits, W1 [c; j; j'] = W1_c c + W1_j j + W1_j' j', so
that a pair costs one addition there; jobs are scored in blocks that fit in the processor's cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from girl_recbole.calibration import fit_platt
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models.scorer import Scorer, one_of
from girl_recbole.rows import FrozenRows, TunedRows

__all__ = [
    "GIRLBaseDot",
    "GIRLBaseMLP",
    "GIRLEnhancedDot",
    "GIRLEnhancedMLP",
    "MLPPredictor",
    "derangement",
    "sample_count",
]

_BLOCK = 1 << 20  # hidden units that full ranking holds at once: 4 MB of float32
_ROWS = 1 << 16  # rows of vectors that are standardised by at once
_SAMPLE = 256  # texts that standardise the vectors of an encoder in training


def derangement(n: int, seed: int) -> np.ndarray:
    """A permutation of 0..n-1 that moves every element (one random cycle): (n,) int64."""
    if n < 2:
        raise DataError(f"generated: shuffled needs at least 2 seekers; there is {n}.")
    order = np.random.default_rng(seed).permutation(n)
    out = np.empty(n, np.int64)
    out[order] = np.roll(order, -1)
    return out


class _TwoTower(Scorer):
    uses_cv = True
    uses_generated = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        if self.uses_generated:
            self.generated = one_of(config, "generated", ("real", "zeros", "shuffled", "cv"))
        self.rows = self._build_rows(config, dataset)
        self._ddp_params_and_buffers_to_ignore = [f"rows.{name}" for name in self.rows.buffers_of_rows]
        if self.uses_generated and self.generated == "shuffled":
            other = derangement(self.n_users - 1, config["seed"]) + 1
            self.register_buffer("other", torch.from_numpy(np.concatenate([[0], other])), persistent=False)
            self._ddp_params_and_buffers_to_ignore.append("other")
        users, items = (
            np.flatnonzero(np.bincount(np.asarray(dataset.inter_feat[field]))) for field in (self.USER_ID, self.ITEM_ID)
        )
        for kind, ids in (("cv", users), ("jd", items), ("gen", users)):
            if kind in self._kinds():
                self._standardise_by(kind, ids)

    # -------------------------------------------------------------------------------------------- RecBole's interface

    def logits(self, interaction) -> torch.Tensor:
        """(B,) float32 for the pairs of ``interaction``."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        return self._score_pairs(self._user_side(users), self._item_side(items)).float()

    # ---------------------------------------------------------------------------------------------------- both sides

    def _score_pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B,) logits of pairs row by row."""
        raise NotImplementedError

    def _user_side(self, ids: torch.Tensor) -> torch.Tensor:
        """c, [c; j'] or j', (B, D) or (B, 2 D), standardised."""
        c = self._standardised("cv", ids) if "cv" in self._kinds() else None
        if not self.uses_generated:
            return c
        if self.generated == "zeros":
            j_gen = torch.zeros(len(ids), self.rows.dimension, device=ids.device)
        elif self.generated == "cv":
            j_gen = c
        else:
            j_gen = self._standardised("gen", self.other[ids] if self.generated == "shuffled" else ids)
        return torch.cat([c, j_gen], dim=1) if self.uses_cv else j_gen

    def _item_side(self, ids: torch.Tensor) -> torch.Tensor:
        """j, (B, D), standardised."""
        return self._standardised("jd", ids)

    def _standardised(self, kind: str, ids: torch.Tensor) -> torch.Tensor:
        return (self.rows(kind, ids) - getattr(self, f"{kind}_mean")) / getattr(self, f"{kind}_spread")

    # --------------------------------------------------------------------------------------------------------- set-up

    def _kinds(self) -> tuple[str, ...]:
        reads_cv = self.uses_cv or self.generated == "cv"
        reads_generated = self.uses_generated and self.generated in ("real", "shuffled")
        return ("cv",) * reads_cv + ("jd",) + ("gen",) * reads_generated

    def _build_rows(self, config, dataset) -> FrozenRows | TunedRows:
        mode = one_of(config, "tune_encoder", ("none", "full", "lora"))
        source = {"cv": "cv", "jd": "jd", "gen": f"gen.{config['generator']}"}
        samples = {"cv": 1, "jd": 1, "gen": sample_count(config) if self.uses_generated else 1}
        if mode == "none":
            tables = {kind: dataset.vectors(source[kind], samples[kind]) for kind in self._kinds()}
            return FrozenRows(config["encoder"], tables)
        return TunedRows(
            dataset.embed_config,
            {kind: dataset.texts(source[kind], samples[kind]) for kind in self._kinds()},
            mode=mode,
            lora_rank=config["encoder_lora_rank"],
            lora_alpha=config["encoder_lora_alpha"],
            lora_dropout=config["encoder_lora_dropout"],
            device=config["device"],
        )

    @torch.no_grad()
    def _standardise_by(self, kind: str, ids: np.ndarray) -> None:
        if isinstance(self.rows, TunedRows):
            ids = np.random.default_rng(0).permutation(ids)[:_SAMPLE]
            self.rows.eval()
        parts = torch.from_numpy(ids).to(self.rows.encoder_sha256.device).split(_ROWS)
        mean, variance = _moments(self.rows(kind, part) for part in parts)
        self.rows.train()
        spread = variance.mean().sqrt()
        self.register_buffer(f"{kind}_mean", mean)
        self.register_buffer(f"{kind}_spread", torch.where(spread > 1e-6, spread, torch.ones_like(spread)))


def _moments(parts: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance, (D,) each, of the rows of all ``parts`` (n, D), of which there is at least one."""
    count, mean, variance = 0, None, None
    for rows in parts:
        new_mean, new_variance = rows.mean(dim=0), rows.var(dim=0, correction=0)
        if not count:
            count, mean, variance = len(rows), new_mean, new_variance
            continue
        share = len(rows) / (count + len(rows))
        gap = new_mean - mean
        variance = (1 - share) * variance + share * new_variance + share * (1 - share) * gap.square()
        mean = mean + share * gap
        count += len(rows)
    return mean, variance


class MLPPredictor(_TwoTower):
    """MLP([c; j]) and MLP([c; j; j']); without the CV (bigrec.py) MLP([j'; j])."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width = self.rows.dimension
        parts = self.uses_cv + 1 + self.uses_generated
        self.mlp = _mlp([parts * width, *_sizes(config)], 1, _dropout(config))
        nn.init.constant_(self.mlp[-1].bias, self.prior_logit)

    def _score_pairs(self, users, items):
        first, j_gen = (
            users[:, : self.rows.dimension],
            users[:, self.rows.dimension :],
        )  # first: c, or j' without the CV
        return self.mlp(torch.cat([first, items, j_gen], dim=1)).squeeze(1)  # Eq 10; with j' Eq 13

    def encode_users(self, ids):
        width = self.rows.dimension
        weight = torch.cat([self.mlp[0].weight[:, :width], self.mlp[0].weight[:, 2 * width :]], dim=1)
        return functional.linear(self._user_side(ids), weight, self.mlp[0].bias)  # W1_c c + W1_j' j' + b1

    def encode_items(self, ids):
        width = self.rows.dimension
        return functional.linear(self._item_side(ids), self.mlp[0].weight[:, width : 2 * width])  # W1_j j

    def score_all(self, users, items):
        scores = users.new_empty(len(users), len(items))
        rest = self.mlp[3:]  # after the first linear layer, its ReLU, and its dropout
        step = max(1, _BLOCK // users.shape[1])
        for user, row in zip(users, scores, strict=True):
            for at in range(0, len(items), step):
                row[at : at + step] = rest((items[at : at + step] + user).relu_()).squeeze(1)
        return scores


class _DotPredictor(_TwoTower):
    """c . j, MLP(c) . j and MLP([c; j']) . j, each with a scale and a bias."""

    has_mlp = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width = self.rows.dimension
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.full((), self.prior_logit))
        if self.has_mlp:
            parts = 2 if self.uses_generated else 1
            self.mlp = _mlp([parts * width, *_sizes(config)], width, _dropout(config))
            self.register_buffer("dot_mean", torch.zeros(()))
            self.register_buffer("dot_spread", torch.full((), math.sqrt(width)))
        else:
            self.register_buffer("dot_mean", torch.zeros(()))
            self.register_buffer("dot_spread", torch.ones(()))
            self._fit_dots(dataset)

    @torch.no_grad()
    def _fit_dots(self, dataset) -> None:
        """Standardise c . j over the training pairs, and start from the best scale and bias there."""
        users, items, labels = (
            torch.as_tensor(np.asarray(dataset.inter_feat[field])) for field in (self.USER_ID, self.ITEM_ID, self.LABEL)
        )
        if isinstance(self.rows, TunedRows):
            users, items, labels = users[:_SAMPLE], items[:_SAMPLE], labels[:_SAMPLE]
            self.rows.eval()
        device = self.rows.encoder_sha256.device
        parts = zip(users.to(device).split(8192), items.to(device).split(8192), strict=True)
        dots = torch.cat([(self._user_side(u) * self._item_side(i)).sum(dim=1) for u, i in parts])
        self.rows.train()
        self.dot_mean.copy_(dots.mean())
        self.dot_spread.copy_(dots.std(correction=0).clamp_min(1e-6))
        if 0 < labels.sum() < len(labels):
            scale, bias = fit_platt(((dots - self.dot_mean) / self.dot_spread).cpu().numpy(), labels.numpy())
            self.scale.fill_(scale)
            self.bias.fill_(bias)

    def _standardised(self, kind, ids):
        return super()._standardised(kind, ids) if self.has_mlp else self.rows(kind, ids)

    def _logit(self, dots: torch.Tensor) -> torch.Tensor:
        return self.scale * ((dots - self.dot_mean) / self.dot_spread) + self.bias

    def _enhanced(self, users: torch.Tensor) -> torch.Tensor:
        return self.mlp(users) if self.has_mlp else users  # Eq 14: c' = MLP([c; j'])

    def _score_pairs(self, users, items):
        return self._logit((self._enhanced(users) * items).sum(dim=1))  # Eq 11; with c' Eq 15

    def encode_users(self, ids):
        return self._enhanced(self._user_side(ids))

    def encode_items(self, ids):
        return self._item_side(ids)

    def score_all(self, users, items):
        return self._logit(users @ items.T)


class GIRLBaseMLP(MLPPredictor):
    """Eq 10."""


class GIRLEnhancedMLP(MLPPredictor):
    """Eq 13."""

    uses_generated = True


class GIRLBaseDot(_DotPredictor):
    """Eq 11; with ``cv_mlp`` MLP(c) . j."""

    def __init__(self, config, dataset):
        self.has_mlp = bool(config["cv_mlp"])
        super().__init__(config, dataset)


class GIRLEnhancedDot(_DotPredictor):
    """Eqs 14 and 15."""

    uses_generated = True
    has_mlp = True


def _sizes(config) -> list[int]:
    sizes = config["mlp_hidden_sizes"]
    if not isinstance(sizes, list) or not sizes or not all(type(n) is int and n > 0 for n in sizes):
        raise ConfigError(f"mlp_hidden_sizes: {sizes!r}; a list of at least one positive int is required.")
    return sizes


def _dropout(config) -> float:
    share = config["dropout_prob"]
    if type(share) not in (int, float) or not 0 <= share < 1:
        raise ConfigError(f"dropout_prob: {share!r}; a number of at least 0 and below 1 is required.")
    return share


def sample_count(config) -> int:
    count = config["n_generated"]
    if type(count) is not int or count < 1:
        raise ConfigError(f"n_generated: {count!r} generated JDs a seeker; an int of at least 1 is required.")
    return count


def _mlp(sizes: list[int], out: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout for each hidden size, then Linear to ``out``."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))
