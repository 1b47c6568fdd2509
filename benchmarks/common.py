"""What the benchmarks share: a model on random vectors without a dataset on disk, and the peak memory of a process."""

import resource
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import girl_recbole  # noqa: F401 - makes RecBole ready
from girl_recbole.comparison import difference_interval, interval

__all__ = [
    "MemoryPeak",
    "difference_interval",
    "interval",
    "nearest_items",
    "random_vectors",
    "standalone_model",
]


def random_vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """(rows + 1, width) float32 unit vectors, row 0 zeros."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows + 1, width), dtype=np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[0] = 0
    return table


class _Pairs:
    """As much of a dataset as a model's constructor asks for."""

    def __init__(self, users, items, width, pairs):
        rng = np.random.default_rng(0)
        self._num = {"user_id": users + 1, "item_id": items + 1}
        self._tables = {"cv": (users, 1), "jd": (items, 2), "gen.sft": (users, 3)}
        self._width = width
        self.inter_feat = {
            "user_id": torch.from_numpy(rng.integers(1, users + 1, pairs)),
            "item_id": torch.from_numpy(rng.integers(1, items + 1, pairs)),
            "label": torch.from_numpy((rng.random(pairs) < 0.3).astype(np.float32)),
        }

    def num(self, field):
        return self._num[field]

    def vectors(self, kind, n_samples=1):
        rows, seed = self._tables[kind]
        return random_vectors(rows, self._width, seed)


def standalone_model(name: str, *, users: int, items: int, width: int, pairs: int = 1000, with_data: bool = False):
    """A model of ours with its shipped settings, on random vectors. With ``with_data`` also its pairs."""
    from girl_recbole.config import load_properties, properties_file
    from girl_recbole.models import two_tower

    config = defaultdict(lambda: None)  # as RecBole answers for a key that is not there
    config |= {
        **load_properties(properties_file("overall.yaml")),
        **load_properties(properties_file(f"model/{name}.yaml")),
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LABEL_FIELD": "label", "NEG_PREFIX": "neg_",
        "device": torch.device("cpu"),
    }  # fmt: skip
    data = _Pairs(users, items, width, pairs)
    torch.manual_seed(0)
    model = getattr(two_tower, name)(config, data)
    return (model, data) if with_data else model


class MemoryPeak:
    """``with MemoryPeak() as peak: ...`` then ``peak.mib``: the most resident memory of this process meanwhile."""

    def __enter__(self):
        self.mib, self._stop = _resident_mib(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.is_set():
            self.mib = max(self.mib, _resident_mib())
            time.sleep(0.01)

    def __exit__(self, *_):
        self.mib = max(self.mib, _resident_mib())
        self._stop.set()
        self._thread.join()


def _resident_mib() -> float:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def nearest_items(pairs: Sequence[tuple[str, str]], users: Sequence[str], cvs: dict[str, str]) -> list[str]:
    """For each of ``users`` the first item of the seeker of ``pairs`` whose CV is nearest (TF-IDF)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    first = dict(reversed(pairs))
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    known = vectorizer.fit_transform([cvs[user] for user in first])
    best = (vectorizer.transform([cvs[user] for user in users]) @ known.T).toarray().argmax(axis=1)
    items = list(first.values())
    return [items[i] for i in best]
