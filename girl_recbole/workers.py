"""Processes that run the trials of a sweep, on this machine or by Ray.

``Workers(jobs)`` starts up to ``jobs`` processes, each of one thread, when they are first needed, and keeps them: the
imports take seconds. Each has its own pool of one process, so that one that the system kills (out of memory) takes only
its own trial with it; it is replaced. They end with this process, also where that is killed. A script that uses them
needs the usual ``if __name__ == "__main__":``, as each process imports it.

``Workers(jobs, engine="ray")`` gives them to Ray Tune (ray_tune.py), one CPU each, on the cluster of ``RAY_ADDRESS`` or
on a local Ray of ``jobs`` CPUs; a local Ray ends with the block. Machines of a cluster need the same data path.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

from girl_recbole.errors import ConfigError, suggest_or_list

__all__ = ["Here", "Workers", "cores"]

ENGINES = ("local", "ray")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Here:
    """Runs each call at once, in this process; for functions that need no process of their own."""

    jobs = 1

    def submit(self, function: Callable, *arguments: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # as an executor does; whoever asks for the result gets it
            future.set_exception(error)
        return future


class Workers:
    def __init__(self, jobs: int | None = None, engine: str = "local") -> None:
        if jobs is not None and jobs < 1:
            raise ConfigError(f"jobs: {jobs}; at least 1 is required.")
        if engine not in ENGINES:
            raise ConfigError(f"engine: {engine!r} is unknown{suggest_or_list(engine, ENGINES)}")
        self._tune = _tune(jobs) if engine == "ray" else None
        self.jobs = self._tune.jobs if self._tune else jobs or cores()
        self._lanes = [] if self._tune else [_Lane() for _ in range(self.jobs)]

    def submit(self, function: Callable, *arguments: Any) -> Future:
        """Start ``function``; at most ``jobs`` may be unfinished."""
        if self._tune:
            return self._tune.submit(function, *arguments)
        return next(lane for lane in self._lanes if lane.idle()).submit(function, *arguments)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind, error, trace) -> None:
        for lane in self._lanes:
            lane.close(at_once=kind is not None)
        if self._tune:
            self._tune.close(at_once=kind is not None)


class _Lane:
    """One process, started when needed, and its present work."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future | None = None
        self._future: Future | None = None

    def idle(self) -> bool:
        return self._future is None or self._future.done()

    def submit(self, function: Callable, *arguments: Any) -> Future:
        try:
            self._future = self._started().submit(function, *arguments)
        except BrokenExecutor:  # killed at work, or since
            self.close()
            self._future = self._started().submit(function, *arguments)
        return self._future

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)
            self._pid = self._pool.submit(os.getpid)
        return self._pool

    def close(self, at_once: bool = False) -> None:
        if self._pool is None:
            return
        if at_once and self._pid.done() and self._pid.exception() is None and not self.idle():
            os.kill(self._pid.result(), signal.SIGKILL)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._pid = self._future = None


def _prepare() -> None:
    """What a new process does first: end with its parent, and use one thread."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if "torch" in sys.modules:  # a script that imports it; else it is imported later and reads the environment
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _tune(jobs: int | None):
    from girl_recbole.ray_tune import TuneTrials

    return TuneTrials(jobs)
