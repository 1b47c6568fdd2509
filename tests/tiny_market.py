"""A market small enough to know the answers: nurses fit nurse jobs, cooks kitchen jobs, and nothing else matters."""

from pathlib import Path

import numpy as np
import pandas as pd

from girl_recbole.atomic import DatasetFiles, write_interactions, write_table

LABELED = {
    "metrics": ["AUC", "LogLoss", "ECE", "PriorEntropy", "LabeledGAUC"],
    "valid_metric": "AUC",
    "eval_args": {"mode": "labeled", "split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "group_by": "none"},
    "load_col": {"inter": ["user_id", "item_id", "label"]},
    "train_neg_sample_args": None,
    "epochs": 2,
    "train_batch_size": 64,
    "show_progress": False,
    "state": "error",
    "worker": 0,
}
"""Settings of a short run on labelled pairs."""


def make_market(data_path: Path, name: str = "tiny", users: int = 16, items: int = 16) -> DatasetFiles:
    """Three quarters of all pairs, split warm; matched = same profession; the oracle says 0.9 and 0.1."""
    files = DatasetFiles(data_path / name, name)
    pairs = pd.DataFrame([(f"u{u}", f"i{i}", float(u % 2 == i % 2)) for u in range(users) for i in range(items)],
                         columns=["user_id", "item_id", "label"])  # fmt: skip
    pairs = pairs.sample(frac=0.75, random_state=0)
    write_interactions(files.inter, pairs)
    oracle = pairs.assign(probability=np.where(pairs["label"] == 1, 0.9, 0.1))
    write_table(files.oracle, oracle, {"user_id": "token", "item_id": "token", "probability": "float"})
    for part, rows in zip(("train", "valid", "test"), np.split(np.arange(len(pairs)), [96, 144]), strict=True):
        write_interactions(files.split("warm", part), pairs.iloc[rows])
    return files
