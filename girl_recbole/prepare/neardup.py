"""Near duplicates among many texts: MinHash over word shingles, banded, and checked by the exact Jaccard index.

A text is the set S of its w-word shingles (lower case, punctuation ignored; a text of fewer words is one shingle).
J(a, b) = |S_a & S_b| / |S_a | S_b|. For each of P random hash functions the signature keeps the smallest hash of S, so
that two texts agree in one place with probability J. Texts that agree in all R places of one of P / R bands are
candidates: P = 128, R = 4 finds a pair of J = 0.8 with probability 1 - (1 - 0.8^4)^32 > 0.9999, of J = 0.5 with 0.87.
Candidates are checked exactly. Groups are the connected components of the pairs found.

Memory is 8 bytes a shingle of one text, and 8 P bytes a signature, times the number of texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["near_duplicate_groups", "shingles"]

_WORD = re.compile(r"\w+")
_PERMUTATIONS, _ROWS = 128, 4
_MIX = np.uint64(0x9E3779B97F4A7C15)


def near_duplicate_groups(texts: Sequence[str], threshold: float, words: int = 5) -> np.ndarray:
    """The group of each text, (n,) int64: equal numbers for texts linked by pairs of a Jaccard index >= threshold."""
    if not len(texts):
        return np.empty(0, dtype=np.int64)
    sets = shingles(texts, words)
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, _PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = rng.integers(0, 2**63, _PERMUTATIONS, dtype=np.uint64)
    signatures = np.empty((len(sets), _PERMUTATIONS), dtype=np.uint64)
    for row, found in enumerate(sets):
        hashed = found[:, None] * factors + offsets
        signatures[row] = (hashed ^ (hashed >> np.uint64(32))).min(axis=0)
    left, right = _candidates(signatures)
    close = np.fromiter(
        (_jaccard(sets[a], sets[b]) >= threshold for a, b in zip(left, right, strict=True)), bool, len(left)
    )
    graph = coo_matrix((np.ones(close.sum()), (left[close], right[close])), shape=(len(sets), len(sets)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def shingles(texts: Sequence[str], words: int) -> list[np.ndarray]:
    """The sorted, unique 64-bit hashes of each text's runs of ``words`` words."""
    vocabulary: dict[str, int] = {}
    rng = np.random.default_rng(1)
    codes = []
    for text in texts:
        found = _WORD.findall(text.lower())
        codes.append(np.fromiter((vocabulary.setdefault(w, len(vocabulary)) for w in found), np.int64, len(found)))
    value = rng.integers(0, 2**63, max(len(vocabulary), 1), dtype=np.uint64)
    sets = []
    for code in codes:
        run = min(words, max(len(code), 1))
        hashed = np.zeros(max(len(code) - run + 1, 1), dtype=np.uint64)
        if len(code):
            for place in range(run):
                hashed = (hashed * _MIX) ^ value[code[place : place + len(hashed)]]
        sets.append(np.unique(hashed ^ (hashed >> np.uint64(29))))
    return sets


def _candidates(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (a < b) that share a band; in a bucket each text is paired with the first, so n texts give n - 1 pairs."""
    pairs = []
    for start in range(0, signatures.shape[1], _ROWS):
        bands = np.ascontiguousarray(signatures[:, start : start + _ROWS])
        keys = bands.view([("", bands.dtype)] * _ROWS).ravel()
        order = np.argsort(keys, kind="stable")
        same = np.concatenate(([False], keys[order][1:] == keys[order][:-1]))
        first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
        pairs.append(np.column_stack((first[same], order[same])))
    found = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), dtype=np.int64)
    return found[:, 0], found[:, 1]


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
