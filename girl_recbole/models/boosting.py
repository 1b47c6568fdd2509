"""The practitioner's baseline: gradient-boosted trees on a table of features of pairs.

Features of a pair (seeker, job), in this order, NaN where unknown:

    NAME.user, NAME.item   each column of type token or float; tokens as categories, natively: the 254 most frequent of
                           the training pairs, one for all others of train, unknown for what train has never seen
    same.COLUMN            columns of one name on both sides: 1 if equal, 0 if not; the seeker's less the job's if float
    bm25, tfidf            CV and JD (lexical.py)
    cosine                 CV and JD, vectors of the text encoder
    cosine_generated       generated JD (mean of n_generated) and JD, with ``boosting_generated: true``
    seeker_pairs, job_pairs, seeker_rate, job_rate
                           other training pairs of the seeker and of the job, and the share of matches among them,
                           shrunk to the base rate as if by 10 more pairs; left out with ``boosting_history: false``

Columns in ``boosting_exclude`` are not read. By default these are a seeker's age, gender and school: nobody should be
hired by them. Without NAME.user and NAME.item the other features remain, which is logged.

No label reaches its own row. The rates of a training pair are computed without its fifth of the training pairs (five
folds, scikit-learn's TargetEncoder), those of any other pair from all of them; a pair does not count itself. Leaving
out the pair alone would tell its label: a seeker's matched pairs would have the lower rate.

Fit      scikit-learn's HistGradientBoostingClassifier: at most ``boosting_rounds`` trees; it stops after
         ``boosting_patience`` without a smaller LogLoss on the pairs of a tenth of the training part's seekers, drawn
         by seed. That tenth is not fitted to.
Cold     a seeker who is new has no pairs, and the base rate as his rate: features that hardly a training pair shows.
         ``boosting_history: false`` is worth a trial there.

Checkpoints hold no trees: the model is fitted again when it is made, with the same seed, and must say the same
(fitted.py). Similarities are rounded to 6 decimals, so that a pair comes down on the same side of a split however it
was computed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from girl_recbole.atomic import read_header, read_table
from girl_recbole.models.fitted import FittedScorer
from girl_recbole.models.lexical import bm25_matrices, joined_texts, pair_products, tfidf_matrices, training_texts
from girl_recbole.models.two_tower import sample_count

__all__ = ["GradientBoosting"]

_log = logging.getLogger(__name__)
_CATEGORIES = 254  # scikit-learn bins 255 values; one is for all others
_SHRINK = 10.0  # pairs of the base rate that a match rate starts with
_FOLDS = 5
_STOPPING_SHARE = 0.1  # of the training part's seekers
_DECIMALS = 6
_BLOCK = 1 << 17  # pairs whose features are held at once


@dataclass(frozen=True)
class _Column:
    """``values`` (ids,), by internal id: text, None where unknown; or float64 with NaN."""

    name: str
    is_category: bool
    values: np.ndarray


class GradientBoosting(FittedScorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        users, items, labels = (
            np.asarray(dataset.inter_feat[field]) for field in (self.USER_ID, self.ITEM_ID, self.LABEL)
        )
        labels = (labels > 0.5).astype(int)
        self._read_columns(config, dataset, users, items)
        self._read_similarities(config, dataset)
        self.history = _History(users, items, labels, self.n_users, self.n_items, config["seed"])
        if not config["boosting_history"]:
            self.history = None
        names = [*self.side_names, *self.same, "bm25", "tfidf", *self.cosines]
        self.features = (*names, *(_History.names if self.history else ()))
        rows = np.column_stack([self._table(users, items), *self._similarities(users, items), *self._own_history()])
        self.trees = self._fit(config, rows, labels, users)
        self.remember(dataset)

    # --------------------------------------------------------------------------------------------------------- scores

    def logits(self, interaction):
        users, items = (interaction[field].cpu().numpy() for field in (self.USER_ID, self.ITEM_ID))
        parts = range(0, len(users), _BLOCK)
        scores = [self._score(users[at : at + _BLOCK], items[at : at + _BLOCK]) for at in parts]
        return self._tensor(np.concatenate(scores) if scores else np.empty(0))

    def score_all(self, users, items):
        users, items = users.cpu().numpy(), items.cpu().numpy()
        out, step = np.empty((len(users), len(items))), max(1, _BLOCK // len(items))
        for at in range(0, len(users), step):
            block = users[at : at + step]
            pairs = np.repeat(block, len(items)), np.tile(items, len(block))
            alike = [grid.ravel() for grid in self._similarity_grids(block, items)]
            out[at : at + step] = self._score(*pairs, alike).reshape(len(block), -1)
        return self._tensor(out)

    def _score(self, users: np.ndarray, items: np.ndarray, alike: list[np.ndarray] | None = None) -> np.ndarray:
        alike = self._similarities(users, items) if alike is None else alike
        history = self.history.of(users, items) if self.history else ()
        return self.trees.decision_function(np.column_stack([self._table(users, items), *alike, *history]))

    def _tensor(self, scores: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(scores).float().to(self.platt.device)

    # ------------------------------------------------------------------------------------------------------- features

    def _read_columns(self, config, dataset, users: np.ndarray, items: np.ndarray) -> None:
        excluded = config["boosting_exclude"]
        sides = []
        for ending, field, seen in (("user", self.USER_ID, users), ("item", self.ITEM_ID, items)):
            path, ids = dataset.files.path(ending), dataset.field2id_token[field]
            sides.append((ending, columns_of(path, f"{ending}_id", ids, excluded), seen))
        self.side_names = [f"{ending}.{column.name}" for ending, columns, _ in sides for column in columns]
        self._tables = [_codes(columns, len(t), seen) for (_, columns, seen), t in zip(sides, self._ids(), strict=True)]
        self._is_category = [column.is_category for _, columns, _ in sides for column in columns]
        self.same = {}
        job_columns = {column.name: column for column in sides[1][1]}
        for column in sides[0][1]:
            other = job_columns.get(column.name)
            if other is not None and other.is_category == column.is_category:
                self.same[f"same.{column.name}"] = (column.is_category, *_comparable(column, other))
        if not self.side_names:
            _log.warning("%s: no columns in NAME.user or NAME.item that may be used; GradientBoosting sees similarities"
                         " and histories only.", dataset.dataset_name)  # fmt: skip

    def _ids(self) -> tuple[range, range]:
        return range(self.n_users), range(self.n_items)

    def _table(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(B, columns) of both sides and of what they have in common."""
        found = [self._tables[0][users], self._tables[1][items]]
        for is_category, one, other in self.same.values():
            gap = one[users] - other[items]
            found.append((np.where(np.isnan(gap), np.nan, gap == 0) if is_category else gap)[:, None])
        return np.concatenate(found, axis=1)

    def _read_similarities(self, config, dataset) -> None:
        cvs, jobs = joined_texts(dataset.texts("cv")), joined_texts(dataset.texts("jd"))
        self._bm25 = bm25_matrices(cvs, jobs)
        self._tfidf = tfidf_matrices(training_texts(dataset, jobs), cvs, jobs)
        jd = _units(dataset.vectors("jd"))
        self.cosines = {"cosine": (_units(dataset.vectors("cv")), jd)}
        if config["boosting_generated"]:
            vectors = dataset.vectors(f"gen.{config['generator']}", sample_count(config))
            self.cosines["cosine_generated"] = (_units(vectors), jd)

    def _similarities(self, users: np.ndarray, items: np.ndarray) -> list[np.ndarray]:
        """(B,) each, pair by pair."""
        found = [pair_products(*both, users, items) for both in (self._bm25, self._tfidf)]
        for one, other in self.cosines.values():
            found.append(np.einsum("bd,bd->b", one[users].astype(np.float64), other[items].astype(np.float64)))
        return [values.round(_DECIMALS) for values in found]

    def _similarity_grids(self, users: np.ndarray, items: np.ndarray) -> list[np.ndarray]:
        """(B, N) each, all pairs."""
        found = [(one[users] @ other[items].T).toarray() for one, other in (self._bm25, self._tfidf)]
        for one, other in self.cosines.values():
            found.append(one[users].astype(np.float64) @ other[items].astype(np.float64).T)
        return [values.round(_DECIMALS) for values in found]

    def _own_history(self) -> tuple[np.ndarray, ...]:
        return self.history.of_training if self.history else ()

    # ------------------------------------------------------------------------------------------------------------ fit

    def _fit(self, config, rows: np.ndarray, labels: np.ndarray, users: np.ndarray):
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import GroupShuffleSplit

        trees = HistGradientBoostingClassifier(
            learning_rate=config["boosting_learning_rate"],
            max_iter=config["boosting_rounds"],
            max_leaf_nodes=config["boosting_leaves"],
            min_samples_leaf=config["boosting_min_leaf"],
            l2_regularization=config["boosting_l2"],
            n_iter_no_change=config["boosting_patience"],
            early_stopping=True,
            categorical_features=[*self._is_category, *[False] * (rows.shape[1] - len(self._is_category))],
            random_state=config["seed"],
        )
        split = GroupShuffleSplit(1, test_size=_STOPPING_SHARE, random_state=config["seed"])
        if len(np.unique(users)) > 1:
            kept, held = next(split.split(rows, labels, users))
            if min(len(np.unique(labels[part])) for part in (kept, held)) > 1:
                trees.fit(rows[kept], labels[kept], X_val=rows[held], y_val=labels[held])
                _log.info("GradientBoosting: %d features, %d trees.", rows.shape[1], trees.n_iter_)
                return trees
        _log.warning("GradientBoosting: too few seekers to stop by; all %d trees are grown.", config["boosting_rounds"])
        return trees.set_params(early_stopping=False).fit(rows, labels)


class _History:
    """Pairs and match rates of seekers and jobs in the training part."""

    names = ("seeker_pairs", "job_pairs", "seeker_rate", "job_rate")

    def __init__(self, users, items, labels, n_users: int, n_items: int, seed: int) -> None:
        from sklearn.model_selection import StratifiedKFold
        from sklearn.preprocessing import TargetEncoder

        self._counts = [np.bincount(users, minlength=n_users), np.bincount(items, minlength=n_items)]
        self._rates, own = [], []
        for ids, count in ((users, n_users), (items, n_items)):
            folds = StratifiedKFold(max(2, min(_FOLDS, *np.bincount(labels))), shuffle=True, random_state=seed)
            encoder = TargetEncoder(target_type="binary", smooth=_SHRINK, cv=folds)
            own.append(encoder.fit_transform(ids[:, None], labels)[:, 0])
            self._rates.append(encoder.transform(np.arange(count)[:, None])[:, 0])
        pairs = [count[ids] - 1 for count, ids in zip(self._counts, (users, items), strict=True)]
        self.of_training = (*pairs, *own)

    def of(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, ...]:
        """``names`` of pairs that are not in the training part, (B,) each."""
        return tuple(table[ids] for tables in (self._counts, self._rates)
                     for table, ids in zip(tables, (users, items), strict=True))  # fmt: skip


def columns_of(path: Path, id_column: str, ids: np.ndarray, excluded: list[str]) -> list[_Column]:
    """The columns of type token and float of ``path``, in the order of ``ids`` (padding first); [] for no file."""
    if not path.exists():
        return []
    names, types = read_header(path)
    frame = read_table(path, required=(id_column,)).drop_duplicates(id_column).set_index(id_column).reindex(ids)
    found = []
    for name, kind in zip(names, types, strict=True):
        if name == id_column or name in excluded:
            continue
        if kind == "token":
            found.append(_Column(name, True, frame[name].replace("", np.nan).to_numpy(object)))
        elif kind == "float":
            found.append(_Column(name, False, frame[name].to_numpy(np.float64)))
        else:
            _log.info("%s: column %s of type %s is not read.", path.name, name, kind)
    return found


def _codes(columns: list[_Column], count: int, seen: np.ndarray) -> np.ndarray:
    """(ids, columns) float64: numbers as they are; categories as codes by their frequency in the rows ``seen``."""
    out = np.full((count, len(columns)), np.nan)
    for at, column in enumerate(columns):
        if not column.is_category:
            out[:, at] = column.values
            continue
        frequency = pd.Series(column.values[seen]).value_counts()
        known = sorted(frequency.index, key=lambda name: (-frequency[name], name))
        code = {name: min(number, _CATEGORIES) for number, name in enumerate(known)}
        out[:, at] = pd.Series(column.values).map(code).to_numpy(np.float64)
    return out


def _comparable(one: _Column, other: _Column) -> tuple[np.ndarray, np.ndarray]:
    """Both as numbers that are equal where the values are."""
    if not one.is_category:
        return one.values, other.values
    codes, _ = pd.factorize(np.concatenate([one.values, other.values]))
    codes = np.where(codes < 0, np.nan, codes.astype(np.float64))
    return codes[: len(one.values)], codes[len(one.values) :]


def _units(rows: np.ndarray) -> np.ndarray:
    """(ids, D) float32 of length 1; a zero row stays one."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
