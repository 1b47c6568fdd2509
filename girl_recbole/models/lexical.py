"""Words in common: BM25 and TF-IDF cosine, the floor that any model which learns must beat.

BM25     s = sum over the terms t of the query of  idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|)),  tf of t in job d
         idf(t) = ln(1 + (N - n_t + .5) / (n_t + .5));  k1 = 1.5, b = .75: Lucene's form, by the library bm25s
         Documents and idf: the texts of all jobs of the dataset, open to any portal; no label is read. A term counts as
         often as the query has it.
TFIDF    s = cosine of the TF-IDF vectors of query and JD (scikit-learn's TfidfVectorizer with its defaults but for the
         terms: raw counts, smoothed idf), fitted on the CVs and JDs of the training part.

``lexical_query``: the query is the CV (``cv``), the seeker's first ``n_generated`` generated JDs as one text
(``generated``), or CV and JDs as one text (``both``).

Terms    lower-case runs of letters and digits; of a run of Chinese, Japanese or Korean characters each two neighbours
         (a lone character by itself), as in Lucene's analyser for these languages: no dictionary, any language.

s is a sum over words and not a logit: the model's logit is a s + b with a > 0, fitted to the training pairs
(fitted.py); the trainer calibrates it again on validation. Neither changes the order. BM25 grows with the length of the
query, so AUC over the pairs of many seekers mixes scales; LabeledGAUC does not.

Both are a product of two sparse matrices, terms of queries (ids, V) and weights of documents (ids, V), float64; row 0,
the padding id, has no term.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from girl_recbole.models.fitted import FittedScorer, training_line
from girl_recbole.models.scorer import one_of
from girl_recbole.models.two_tower import sample_count

__all__ = ["BM25", "TFIDF", "bm25_matrices", "joined_texts", "pair_products", "terms_of", "tfidf_matrices"]

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # as in prompts.words_of
_RUN = re.compile(rf"([{_CJK}]+)|(?:(?![{_CJK}])[^\W_])+")
_PAIRS = 1 << 16  # pairs of sparse rows that are multiplied at once


class _Lexical(FittedScorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        query = one_of(config, "lexical_query", ("cv", "generated", "both"))
        seekers, jobs = [""] * self.n_users, joined_texts(dataset.texts("jd"))
        if query in ("cv", "both"):
            seekers = joined_texts(dataset.texts("cv"))
        if query in ("generated", "both"):
            written = joined_texts(dataset.texts(f"gen.{config['generator']}", sample_count(config)))
            seekers = [f"{one}\n{other}" for one, other in zip(seekers, written, strict=True)]
        self.queries, self.documents = self._matrices(dataset, seekers, jobs)
        self._by_term = self.documents.T.tocsr()
        users, items, labels = (
            np.asarray(dataset.inter_feat[field]) for field in (self.USER_ID, self.ITEM_ID, self.LABEL)
        )
        scores = pair_products(self.queries, self.documents, users, items)
        self.slope, self.bias = training_line(scores, labels, self.prior_logit)
        self.remember(dataset)

    def _matrices(self, dataset, queries: list[str], jobs: list[str]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        raise NotImplementedError

    def logits(self, interaction):
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        return self._logits(pair_products(self.queries, self.documents, users.cpu().numpy(), items.cpu().numpy()))

    def score_all(self, users, items):
        by_term = self._by_term if len(items) == self.n_items else self._by_term[:, items.cpu().numpy()]
        return self._logits((self.queries[users.cpu().numpy()] @ by_term).toarray())

    def _logits(self, scores: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.slope * scores + self.bias).float().to(self.platt.device)


class BM25(_Lexical):
    def _matrices(self, dataset, queries, jobs):
        return bm25_matrices(queries, jobs)


class TFIDF(_Lexical):
    def _matrices(self, dataset, queries, jobs):
        return tfidf_matrices(training_texts(dataset, jobs), queries, jobs)


def terms_of(text: str) -> list[str]:
    """The terms of a text, in its order; the module's docstring says what one is."""
    terms: list[str] = []
    for run in _RUN.finditer(text.lower()):
        word = run[0]
        if run[1] and len(word) > 1:
            terms += (word[at : at + 2] for at in range(len(word) - 1))
        else:
            terms.append(word)
    return terms


def bm25_matrices(queries: Sequence[str], jobs: Sequence[str]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Counts of terms of ``queries`` and BM25 weights of terms in ``jobs``; row 0 of both is the padding id's.

    A query's score of a job is the product of their rows.
    """
    import bm25s
    from sklearn.feature_extraction.text import CountVectorizer

    documents = [terms_of(text) for text in jobs[1:]]
    if not any(documents):
        return sparse.csr_matrix((len(queries), 1)), sparse.csr_matrix((len(jobs), 1))
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(documents, show_progress=False, create_empty_token=False)
    names = sorted(index.vocab_dict, key=index.vocab_dict.get)
    parts = tuple(index.scores[name] for name in ("data", "indices", "indptr"))
    weights = sparse.csc_matrix(parts, shape=(len(documents), len(names)), dtype=np.float64).tocsr()
    counter = CountVectorizer(analyzer=terms_of, vocabulary=names, dtype=np.float64)
    return counter.transform(queries).tocsr(), _with_padding(weights)


def tfidf_matrices(
    fit_on: Sequence[str], queries: Sequence[str], jobs: Sequence[str]
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """TF-IDF vectors of ``queries`` and ``jobs``, of length 1 (0 where no term is known), fitted on ``fit_on``."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(terms_of(text) for text in fit_on):
        return sparse.csr_matrix((len(queries), 1)), sparse.csr_matrix((len(jobs), 1))
    model = TfidfVectorizer(analyzer=terms_of, dtype=np.float64).fit(fit_on)
    return model.transform(queries).tocsr(), model.transform(jobs).tocsr()


def training_texts(dataset, jobs: Sequence[str]) -> list[str]:
    """The CVs and, of ``jobs`` by id, the JDs of the training part, each once."""
    cvs = joined_texts(dataset.texts("cv"))
    users, items = (
        np.unique(np.asarray(dataset.inter_feat[field])) for field in (dataset.uid_field, dataset.iid_field)
    )
    return [*(cvs[i] for i in users), *(jobs[i] for i in items)]


def pair_products(
    queries: sparse.csr_matrix, documents: sparse.csr_matrix, users: np.ndarray, items: np.ndarray
) -> np.ndarray:
    """(B,) float64: products of the rows ``users`` and ``items``, pair by pair."""
    out = np.empty(len(users))
    for at in range(0, len(users), _PAIRS):
        part = slice(at, at + _PAIRS)
        out[part] = np.asarray(queries[users[part]].multiply(documents[items[part]]).sum(axis=1)).ravel()
    return out


def joined_texts(texts: Sequence[Sequence[str]]) -> list[str]:
    return ["\n".join(several) for several in texts]


def _with_padding(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.vstack([sparse.csr_matrix((1, rows.shape[1])), rows], format="csr")
