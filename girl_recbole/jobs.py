"""Many experiments in parallel processes, each a line of a results file, none done twice.

A :class:`Job` is one call of ``run_experiment`` with a ``key`` that names it (JSON values: row, split, seed, ...). When
a job is done its row, with ``job`` = key and ``state``, is appended to the file by one locked write. ``state`` is what
the numbers depend on beside the key: a hash of this package's code and shipped settings, and of the data. A job whose
line is there with the same state is not done again, so that a killed run goes on where it stopped and loses only what
was under way. A job that fails is a line with ``error`` and stops no other; it is tried again by the next run.

Of a model of RecBole's, ``test`` has the metrics of its calibrated probabilities. Checkpoints are removed.

Each process computes on one thread and is used for several jobs; ``peak_memory_mb`` of a row is that of its own job.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girl_recbole import results
from girl_recbole.config import properties_file
from girl_recbole.errors import DataError, GirlError
from girl_recbole.workers import Workers

__all__ = ["Job", "code_hash", "name_of", "read_lines", "run_jobs"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """``run_experiment(model, dataset, overrides=overrides, read_test=read_test)``, named by ``key``."""

    key: Mapping[str, Any]
    model: str
    dataset: str
    overrides: Mapping[str, Any]
    read_test: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the row."""


def run_jobs(
    jobs: Sequence[Job],
    path: Path,
    state: str,
    processes: int,
    said: Callable[[int, int, dict], None] = lambda done, of, row: None,
) -> dict[str, dict]:
    """Do what is missing of ``jobs``; return the row of each that succeeded, by :func:`name_of` its key.

    ``said(done, of, row)`` is called for each row as it comes. Raises ``DataError`` where two jobs have one key.
    """
    names = [name_of(job.key) for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two jobs are named {twice}.")
    done = _finished(path, state)
    missing = [job for job, name in zip(jobs, names, strict=True) if name not in done]
    for count, row in enumerate(_rows(missing, state, processes), start=1):
        results.append(path, row)
        if "error" in row:
            _log.warning("%s failed: %s", name_of(row["job"]), row["error"])
        said(count, len(missing), row)
    done = _finished(path, state)
    return {name: done[name] for name in names if name in done}


def read_lines(path: Path) -> list[dict]:
    """The lines of a results file, none where there is no file; a line that a crash cut short is passed over."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n") if path.exists() else (), start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError:
            _log.warning("%s: line %d is not JSON and is passed over.", path, number)
    return found


@functools.cache
def code_hash() -> str:
    """SHA-256 (16 digits) of the Python files of this package and of its shipped settings."""
    package, settings = Path(__file__).resolve().parent, properties_file("overall.yaml").parent
    digest = hashlib.sha256()
    for folder, endings in ((package, ("*.py",)), (settings, ("overall.yaml", "model/*.yaml", "dataset/*.yaml"))):
        for path in sorted(found for ending in endings for found in folder.rglob(ending)):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def name_of(key: Mapping[str, Any]) -> str:
    """The key of a job as text."""
    return json.dumps(results.plain(key), sort_keys=True, ensure_ascii=False)


def _finished(path: Path, state: str) -> dict[str, dict]:
    return {
        name_of(row["job"]): row
        for row in read_lines(path)
        if "job" in row and row.get("state") == state and "error" not in row
    }


def _rows(jobs: Sequence[Job], state: str, processes: int) -> Iterable[dict]:
    """The row of each job, as it is done. A process that is killed costs its own job."""
    waiting = deque(jobs)
    running: dict[Future, Job] = {}
    with Workers(min(processes, max(1, len(jobs)))) as workers:
        while waiting or running:
            while waiting and len(running) < workers.jobs:
                job = waiting.popleft()
                running[workers.submit(_row, job, state)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, error = running.pop(future), future.exception()
                if error is None:
                    yield future.result()
                    continue
                if not isinstance(error, Exception):
                    raise error
                killed = "the process was ended from outside, as the system does when memory runs out."
                said = killed if isinstance(error, BrokenExecutor) else f"{type(error).__name__}: {error}"
                yield results.plain({"job": job.key, "state": state, **job.more, "error": said})


def _row(job: Job, state: str) -> dict:
    import girl_recbole  # noqa: F401 - registers our models in this process
    from girl_recbole.run import run_experiment

    logging.disable(logging.INFO)
    named = {"job": dict(job.key), "state": state, **job.more}
    overrides = {"show_progress": False, "state": "error", **job.overrides, "results_file": None}
    try:
        row = run_experiment(job.model, job.dataset, overrides=overrides, read_test=job.read_test)
    except GirlError as error:
        return results.plain({**named, "error": str(error)})
    Path(row["checkpoint"]).unlink(missing_ok=True)
    if row["calibrated"]:
        row["test"] = {**row["test"], **row["calibrated"]}
    return results.plain({**row, "checkpoint": None, **named})
