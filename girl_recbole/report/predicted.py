"""The test part of a run's file of predictions (predictions.py says what it holds), without loading PyTorch."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import numpy as np

from girl_recbole.errors import DataError
from girl_recbole.report.runs import Run

__all__ = ["read_test"]


def read_test(run: Run, fields: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Arrays (N,) of ``fields`` (user, item, label, probability); None where the run names no file that is there.

    Raises ``DataError`` for a file that is none of predictions, and for probabilities outside [0, 1].
    """
    path = run.predictions
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            part = {name: arrays[f"test_{name}"] for name in fields}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a file of predictions with test_{', test_'.join(fields)} ({error}). Delete it and train "
            f"again with predictions_folder set."
        ) from None
    sizes = {name: len(values) for name, values in part.items()}
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        raise DataError(f"{path}: its test part has {sizes} values; as many of each, at least 1, are required.")
    p = part.get("probability")
    if p is not None and not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"{path}: {int((~((p >= 0) & (p <= 1))).sum())} of {len(p)} probabilities are not in [0, 1].")
    return part
