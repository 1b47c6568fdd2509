"""Figures that show whether pairs can be told by something other than fit. Nothing is changed here.

rare_overlap_auc   AUC of the number of words that a CV and a JD share, counting only words that are in the texts of at
                   most ``max_resumes`` people: names of firms, towns and in-house systems. 0.5: they tell nothing.
tfidf_auc          AUC of the TF-IDF cosine of CV and JD: what plain word overlap, legitimate or not, is worth.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

__all__ = ["rare_overlap_auc", "tfidf_auc"]


def rare_overlap_auc(
    cvs: Mapping[str, str], jds: Mapping[str, str], job_of: Mapping[str, str], pairs: pd.DataFrame, max_resumes: int = 5
) -> float:
    """``job_of`` is each seeker's own job: a word's count is the number of people who have it in their CV or JD."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.metrics import roc_auc_score

    seekers = sorted(cvs)
    counter = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w[\w+#.-]*\w\b", dtype=np.int32)
    both = counter.fit_transform(f"{cvs[u]}\n{jds[job_of[u]]}" for u in seekers)
    rare = np.flatnonzero(np.asarray(both.sum(axis=0)).ravel() <= max_resumes)
    cv = counter.transform(cvs[u] for u in seekers)[:, rare]
    jd = counter.transform(jds[job_of[u]] for u in seekers)[:, rare]
    u, i = _rows(seekers, job_of, pairs)
    return float(roc_auc_score(pairs["label"], np.asarray(cv[u].multiply(jd[i]).sum(axis=1)).ravel()))


def tfidf_auc(cvs: Mapping[str, str], jds: Mapping[str, str], job_of: Mapping[str, str], pairs: pd.DataFrame) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import roc_auc_score

    seekers = sorted(cvs)
    model = TfidfVectorizer(sublinear_tf=True, min_df=2, dtype=np.float32, stop_words="english")
    model.fit(f"{cvs[u]}\n{jds[job_of[u]]}" for u in seekers)
    cv = model.transform(cvs[u] for u in seekers)
    jd = model.transform(jds[job_of[u]] for u in seekers)
    u, i = _rows(seekers, job_of, pairs)
    return float(roc_auc_score(pairs["label"], np.asarray(cv[u].multiply(jd[i]).sum(axis=1)).ravel()))


def _rows(seekers, job_of, pairs):
    place = {user: row for row, user in enumerate(seekers)}
    place_of_job = {job_of[user]: row for user, row in place.items()}
    return pairs["user_id"].map(place).to_numpy(), pairs["item_id"].map(place_of_job).to_numpy()
