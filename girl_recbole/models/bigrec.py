"""BIGRec (Bao et al. 2023, arXiv 2308.08434): jobs near the generated JD; and grounding by a network (FCS 2026).

BIGRec      e' = emb(J'), e_i = emb(j_i), J' the JD that was generated for the seeker, j_i job i; both (D,)

    D_i  = ||e' - e_i||_2
    D^_i = (D_i - min D) / (max D - min D)           min and max over all jobs of the dataset, for each seeker
    D~_i = D^_i (1 + W_i)^(-gamma)                   s_i = -D~_i, the logit; Platt scaling makes it a probability

    W_i   ``bigrec_weight: popularity``  share of i in the training part's matches, scaled to [0, 1] over all jobs
          ``cf``                         the score that collaborative filtering gives i for the seeker, scaled likewise
          ``none``                       0
    gamma is chosen on validation, by valid_metric, calibrated: of equally good ones the least. {0, 1, ..., 99} for
          popularity, {.00, .01, ..., .99, 1, 2, ..., 99} for cf, as in the paper's code.

BIGRecMLP   MLP([j'; j]): grounding by a network that sees no CV (the reading of the Frontiers paper's row BIGRec-MLP).
            Everything else is two_tower.py's: sizes, standardisation, loss, controls. With the CV too, MLP([c; j; j']),
            it is GIRLEnhancedMLP: model-based grounding, ``mlp_cj``.

What is open, and where we differ:
- emb. ``bigrec_pooling: sentence``: the project's text encoder (embed.py), the mean over several JDs. ``last`` and
  ``mean``: the last layer's hidden state of a language model, at the last token (BIGRec's) or averaged over tokens. The
  paper's code takes the base model, its later re-implementation the tuned one: ``bigrec_lm: null`` is the generator
  that was tuned, a name or folder any other. The LM reads each distinct text once, alone, without a prompt, sorted by
  length, each time the model is made: a forward pass over all JDs, generated and real (nothing is kept on disk).
- CF. The paper takes SASRec or DROS, which need sequences. PureSVD (Cremonesi et al. 2010) here: R (seekers, jobs) the
  matches of the training part as 0/1, V its first ``bigrec_cf_factors`` right singular vectors, scores R V V^T. Where
  a seeker has no match there, they are all equal: W = 0, so s = -D^.
- The paper ranks items. Here the same s scores labelled pairs too; a seeker's D^ is scaled by his own nearest and
  farthest job, so s of two seekers are comparable in rank, not in distance.
- (1 + W)^(-gamma) can move everything but the nearest job: D^ = 0 there for every gamma, so that it stays first. A job
  within a millionth of the span counts as nearest (the distances are rounded). Large gamma makes the D~ of all popular
  jobs so small that their probabilities are equal in float32: ties, which the metric that chooses gamma sees.
- Where all jobs are equally far, D^ = 0 for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from tqdm import tqdm

from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models.fitted import FittedScorer
from girl_recbole.models.scorer import one_of
from girl_recbole.models.two_tower import MLPPredictor, derangement, sample_count

__all__ = ["GAMMAS", "BIGRec", "BIGRecMLP", "lm_vectors", "pure_svd", "weighted"]

GAMMAS = {
    "none": (0.0,),
    "popularity": tuple(float(n) for n in range(100)),
    "cf": tuple(n / 100 for n in range(100)) + tuple(float(n) for n in range(1, 100)),
}
_log = logging.getLogger(__name__)
_BLOCK = 1 << 22  # distances that are held at once: 32 MB of float64
_NEAREST = 1e-6  # of the span: what counts as the nearest job
_TOKENS = 4096  # padded tokens that a language model reads at once


class BIGRec(FittedScorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.weight = one_of(config, "bigrec_weight", ("none", "popularity", "cf"))
        table = {"jd": _vectors(config, dataset, "jd", 1)}
        generated = one_of(config, "generated", ("real", "shuffled", "cv"))
        kind, samples = ("cv", 1) if generated == "cv" else (f"gen.{config['generator']}", sample_count(config))
        table["gen"] = _vectors(config, dataset, kind, samples)
        if generated == "shuffled":
            table["gen"] = table["gen"][np.concatenate([[0], derangement(self.n_users - 1, config["seed"]) + 1])]
        for name, rows in table.items():
            self.register_buffer(name, torch.from_numpy(rows), persistent=False)
        self.register_buffer("gamma", torch.zeros((), dtype=torch.float64))
        users, items, labels = (
            np.asarray(dataset.inter_feat[field]) for field in (self.USER_ID, self.ITEM_ID, self.LABEL)
        )
        matched = labels > 0.5
        if self.weight == "popularity":
            counts = np.bincount(items[matched], minlength=self.n_items).astype(np.float64)
            low, span = _range(torch.from_numpy(counts)[None, 1:])
            self._keep("popularity", (torch.from_numpy(counts) - low) / span)
        elif self.weight == "cf":
            pairs = (np.ones(matched.sum()), (users[matched], items[matched]))
            matches = sparse.csr_matrix(pairs, shape=(self.n_users, self.n_items))
            factors = config["bigrec_cf_factors"]
            if type(factors) is not int or factors < 1:
                raise ConfigError(f"bigrec_cf_factors: {factors!r}; an int of at least 1 is required.")
            for name, rows in zip(("cf_users", "cf_items"), pure_svd(matches, factors), strict=True):
                self._keep(name, torch.from_numpy(rows))
            self._keep_ranges("cf", lambda ids: self.cf_users[ids] @ self.cf_items[1:].T)
        self._keep_ranges("distance", lambda ids: self._distances(ids, torch.arange(1, self.n_items)))
        self.gamma.fill_(1)
        self.remember(dataset)
        self.gamma.fill_(0)

    def tune_on(self, validate: Callable[[], float]) -> None:
        """Set gamma to the first of the grid for which ``validate()`` is largest."""
        chosen, best = 0.0, -np.inf
        for gamma in GAMMAS[self.weight] if self.weight != "none" else ():
            self.gamma.fill_(gamma)
            score = validate()
            if score > best:
                chosen, best = gamma, score
        self.gamma.fill_(chosen)
        _log.info("BIGRec: gamma %g of %d, chosen on validation.", chosen, len(GAMMAS[self.weight]))

    # --------------------------------------------------------------------------------------------------------- scores

    def logits(self, interaction):
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        apart = (self.gen[users].double() - self.jd[items].double()).norm(dim=1)
        if self.weight == "cf":
            bonus = self._scaled("cf", users, (self.cf_users[users] * self.cf_items[items]).sum(dim=1))
        else:
            bonus = self.popularity[items] if self.weight == "popularity" else torch.zeros_like(apart)
        return -weighted(self._normalised(users, apart), bonus, self.gamma).float()

    def score_all(self, users, items):
        near = self._normalised(users[:, None], self._distances(users, items))
        if self.weight == "cf":
            bonus = self._scaled("cf", users[:, None], self.cf_users[users] @ self.cf_items[items].T)
        else:
            bonus = self.popularity[items] if self.weight == "popularity" else torch.zeros_like(near)
        return -weighted(near, bonus, self.gamma).float()

    def _distances(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B, N) float64, D of the equations."""
        one, other = self.gen[users].double(), self.jd[items.to(self.jd.device)].double()
        squares = one.square().sum(dim=1)[:, None] + other.square().sum(dim=1) - 2 * one @ other.T
        return squares.clamp_min_(0).sqrt_()

    def _normalised(self, users: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """D^; exactly 0 for the nearest job."""
        scaled = self._scaled("distance", users, distances)
        return torch.where(scaled < _NEAREST, torch.zeros_like(scaled), scaled)

    def _scaled(self, name: str, users: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        low, span = getattr(self, f"{name}_low")[users], getattr(self, f"{name}_span")[users]
        return ((values - low) / span).clamp(0, 1)

    # --------------------------------------------------------------------------------------------------------- set-up

    def _keep_ranges(self, name: str, values: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Least value and span of ``values(ids)``, (B, jobs), of each seeker, block by block."""
        parts = torch.arange(self.n_users).split(max(1, _BLOCK // self.n_items))
        low, span = (torch.cat(found) for found in zip(*(_range(values(part)) for part in parts), strict=True))
        self._keep(f"{name}_low", low)
        self._keep(f"{name}_span", span)

    def _keep(self, name: str, values: torch.Tensor) -> None:
        self.register_buffer(name, values, persistent=False)


class BIGRecMLP(MLPPredictor):
    """MLP([j'; j])."""

    uses_generated = True
    uses_cv = False


def weighted(near: torch.Tensor, bonus: torch.Tensor, gamma: torch.Tensor | float) -> torch.Tensor:
    """D~ = D^ (1 + W)^(-gamma)."""
    return near * (1 + bonus) ** (-gamma)


def pure_svd(matches: sparse.csr_matrix, factors: int) -> tuple[np.ndarray, np.ndarray]:
    """``(R V, V)`` of ``matches`` R (seekers, jobs): scores R V V^T of all seekers and jobs, by the largest factors."""
    factors = min(factors, min(matches.shape) - 1)
    if factors < 1 or not matches.nnz:
        raise DataError(
            f"bigrec_weight: cf needs matches of at least 2 seekers and 2 jobs in train; R is {matches.shape}."
        )
    _, _, right = svds(matches.astype(np.float64), k=factors, v0=np.ones(min(matches.shape)))
    return np.ascontiguousarray(matches @ right.T), np.ascontiguousarray(right.T)


def _range(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least value and span of each row, (B,) each; a span of 0 becomes 1."""
    low, high = values.aminmax(dim=1)
    span = high - low
    return low, torch.where(span > 1e-12, span, torch.ones_like(span))


# ------------------------------------------------------------------------------------------------------------- vectors


def _vectors(config, dataset, kind: str, samples: int) -> np.ndarray:
    """(ids, D) of the texts ``kind``, several samples averaged; row 0 zeros."""
    pooling = one_of(config, "bigrec_pooling", ("sentence", "last", "mean"))
    if pooling == "sentence":
        return dataset.vectors(kind, samples)
    texts = dataset.texts(kind, samples)
    rows = lm_vectors(
        _language_model(config, dataset), [text for several in texts for text in several], pooling,
        config["max_sequence_tokens"], progress=bool(config["show_progress"]),
    )  # fmt: skip
    rows = rows.reshape(len(texts) - 1, samples, -1).mean(axis=1)
    return np.concatenate([np.zeros_like(rows[:1]), rows])


def _language_model(config, dataset):
    from girl_recbole import llm
    from girl_recbole.generate import load_generator

    if config["bigrec_lm"] is not None:
        return llm.load(config["bigrec_lm"], config["lm_dtype"], merge=True)
    names = ("generator", "saved_folder", "lm_dtype", "prompt_language")
    return load_generator(dataset.files, *(config[name] for name in names), merge=True)[0]


@torch.inference_mode()
def lm_vectors(lm, texts: Sequence[str], pooling: str, max_tokens: int, *, progress: bool = False) -> np.ndarray:
    """(len(texts), D) float32: last layer's hidden state of ``texts`` cut to ``max_tokens``, each distinct one once.

    ``pooling``: ``last``, at the last token; ``mean``, averaged over the tokens.
    """
    distinct = list(dict.fromkeys(texts))
    limit = min(max_tokens, lm.context)
    tokens = [lm.tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in distinct]
    empty = sum(not ids for ids in tokens)
    if empty:
        raise DataError(f"{empty} of {len(distinct)} texts have no token for {lm.name}; each needs one.")
    found: dict[str, np.ndarray] = {}
    order = sorted(range(len(distinct)), key=lambda i: len(tokens[i]))
    bar = tqdm(total=len(order), unit=" texts", desc=f"hidden states ({pooling})", disable=not progress)
    while order:
        count = max(1, _TOKENS // len(tokens[order[-1]]))
        batch, order = order[-count:], order[:-count]  # the longest first: what does not fit in memory fails at once
        longest = max(len(tokens[i]) for i in batch)
        ids = torch.full((len(batch), longest), lm.tokenizer.pad_token_id, device=lm.device)
        real = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(tokens[i])] = torch.tensor(tokens[i])
            real[row, : len(tokens[i])] = 1
        states = lm.model.base_model(input_ids=ids, attention_mask=real).last_hidden_state.float()
        if pooling == "last":
            rows = states[torch.arange(len(batch)), real.sum(dim=1) - 1]
        else:
            rows = (states * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        found.update(zip((distinct[i] for i in batch), rows.cpu().numpy(), strict=True))
        bar.update(len(batch))
    bar.close()
    return np.stack([found[text] for text in texts])
