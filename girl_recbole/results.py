"""results.jsonl: one line of JSON for each trained model, and the two rows that every table needs.

``prior``   always predicts the base rate of the training labels
``oracle``  predicts the stored true probability of each test pair (NAME.oracle.inter), where a dataset has it; no model
            may beat it by more than chance

LogLoss is in nats. A line is appended by one write under a lock, so that several processes can share a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from girl_recbole import __version__
from girl_recbole.atomic import read_table
from girl_recbole.errors import DataError, some_of
from girl_recbole.manifest import cached_file_hash

__all__ = [
    "append",
    "auc_logloss",
    "code_version",
    "file_hashes",
    "machine",
    "named_hashes",
    "oracle_probabilities",
    "peak_memory_mb",
    "plain",
    "reset_peak_memory",
]

_CLIP = 1e-15  # as RecBole's LogLoss


def append(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Append ``row`` as one line; safe with several processes on one file system."""
    line = json.dumps(plain(row), ensure_ascii=False, sort_keys=True) + "\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        data = line.encode("utf-8")
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # an editor's, or a write that was cut short
                data = b"\n" + data
        written = file.write(data)
        if written != len(data):
            raise OSError(f"{path}: {written} of {len(data)} bytes written; is the disk full?")


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: tuples are lists, keys strings, NaN null, and what JSON cannot say its ``str``."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def auc_logloss(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``{"auc", "logloss"}`` of probabilities (N,) for labels 0/1 (N,)."""
    p = np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP)
    logloss = -np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return {"auc": float(roc_auc_score(labels, p)), "logloss": float(logloss)}


def oracle_probabilities(path: Path, users: Iterable[str], items: Iterable[str]) -> np.ndarray:
    """The stored true match probabilities (N,) of the given pairs."""
    table = read_table(path, required=("user_id", "item_id", "probability"))
    known = dict(zip(zip(table["user_id"], table["item_id"], strict=True), table["probability"], strict=True))
    pairs = list(zip(users, items, strict=True))
    missing = [f"({user}, {item})" for user, item in pairs if (user, item) not in known]
    if missing:
        raise DataError(f"{path}: no probability for {len(missing)} of {len(pairs)} test pairs: {some_of(missing)}.")
    return np.array([known[pair] for pair in pairs], np.float64)


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """``{file name: sha256}`` of those of ``paths`` that exist."""
    return dict(named_hashes(paths))


def named_hashes(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """(file name, sha256) of those of ``paths`` that exist, for files of several folders, whose names may be equal."""
    return [(path.name, cached_file_hash(path)) for path in paths if path.is_file()]


@functools.cache
def code_version() -> str:
    """The git commit of this package (``-dirty`` with changes), or its version where it is installed from a wheel."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # ours, not a repository around a virtual environment
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return __version__


@functools.cache
def machine() -> dict[str, Any]:
    """CPU model and cores, and the GPUs."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": os.cpu_count(), "gpus": gpus}


def peak_memory_mb() -> float:
    """The largest resident size of this process, in MB: so far, or since :func:`reset_peak_memory` where that works."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def reset_peak_memory() -> None:
    """Let :func:`peak_memory_mb` forget what came before; on Linux, elsewhere nothing happens."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
