"""The search itself: which settings come next, who runs them, and the file of results that remembers them.

Every finished run is one line of ``results_file``. Lines of one search share ``depends_on``, a hash of all that its
numbers depend on; the other lines of the file are left alone. A search reads what is there and does only what is
missing; a failed trial is a line too (``error`` instead of numbers), done again only with ``retry_failed``. The last
line of a trial counts.

Only the process that called :func:`search` appends. Before it starts a trial it locks one byte of ``results_file.lock``
that stands for this trial; the system gives the lock back when the process ends, however it ends. So several sweeps can
share one file (on one machine, or on a file system with POSIX locks): a trial that another one runs is waited for.

grid    every setting once, in order          random    search_space.draws: the n-th depends on space and seed alone
optuna  TPE. Trial n is asked of a sampler with a seed of its own (seed, n) that is told all finished trials, and which
        settings are running: with one job a search is reproducible, and one that was interrupted goes on as if it had
        not been. The first five trials are random draws. A suggestion that was made before is asked for again, up to
        ten times; then the next random draw that is new takes its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from girl_recbole.errors import ConfigError, GirlError, suggest_or_list
from girl_recbole.search_space import Parameter, canonical, draws, grid, size

__all__ = ["best_of", "final_runs", "search"]

_LOG = logging.getLogger(__name__)
SEARCHES = ("grid", "random", "optuna")
_STARTUP = 5
_POLL_S = 0.5

Objective = Callable[..., dict[str, Any]]
"""``objective(settings, seed, final)`` -> a row of JSON values with ``score``, the number that is compared."""


def search(
    space: Mapping[str, Parameter],
    objective: Objective,
    *,
    how: str,
    trials: int | None,
    seed: int,
    results_file: str | os.PathLike,
    depends_on: str,
    workers: Any,
    bigger: bool = True,
    max_failures: int = 5,
    retry_failed: bool = False,
    about: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of the trials 0, 1, ...; return the lines of all of them, by number.

    ``about`` is written to the line of a trial that failed. More failures than ``max_failures`` are a ``GirlError``.
    """
    budget = _budget(space, how, trials)
    log = _Log(Path(results_file), depends_on)
    propose = _Proposals(space, how, seed, bigger, budget)

    def settings_of(number: int, running: Iterable[Mapping]) -> dict[str, Any]:
        return propose(number, {key[1]: row for key, row in log.rows.items() if key[0] == "trial"}, list(running))

    def run(number: int, settings: Mapping[str, Any]) -> Future:
        return workers.submit(objective, dict(settings), seed, False)

    keys = [("trial", number) for number in range(budget)]
    _run_missing(keys, log, workers, settings_of, run, {**(about or {}), "seed": seed}, max_failures, retry_failed)
    return [log.rows[key] for key in keys]


def final_runs(
    best: Mapping[str, Any],
    objective: Objective,
    seeds: Iterable[int],
    *,
    results_file: str | os.PathLike,
    depends_on: str,
    workers: Any,
    retry_failed: bool = False,
    about: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The lines of the runs of the best trial's settings, one a seed; the first that fails ends them."""
    log, settings = _Log(Path(results_file), depends_on), best["settings"]

    def run(number: int, settings: Mapping[str, Any]) -> Future:
        return workers.submit(objective, dict(settings), number, True)

    keys = [("final", canonical(settings), seed) for seed in seeds]
    about = {**(about or {}), "trial": best["trial"]}
    _run_missing(keys, log, workers, lambda number, running: dict(settings), run, about, 0, retry_failed)
    return [log.rows[key] for key in keys]


def best_of(rows: Iterable[Mapping[str, Any]], bigger: bool = True) -> Mapping[str, Any]:
    """The trial with the best ``score``; of equal ones the first. Nothing else of a line is looked at."""
    finished = [row for row in rows if "error" not in row]
    if not finished:
        raise GirlError("every trial failed, so there are no best settings.")
    return max(finished, key=lambda row: (row["score"] if bigger else -row["score"], -row["trial"]))


# ------------------------------------------------------------------------------------------------------------ the loop


def _run_missing(keys, log, workers, settings_of, run, about, max_failures, retry_failed) -> None:
    """Run ``keys`` that have no line, ``workers.jobs`` at once; wait for those that another process runs."""
    log.read()
    old_failures = {key for key in keys if "error" in log.rows.get(key, {})} if retry_failed else set()
    before = {key: log.rows[key] for key in old_failures}

    def missing(key) -> bool:
        return key not in log.rows or (key in before and log.rows[key] is before[key])

    waiting, elsewhere = deque(key for key in keys if missing(key)), []
    running: dict[Future, tuple] = {}
    settings: dict[tuple, dict] = {}
    try:
        while waiting or running or elsewhere:
            _check_failures([key for key in keys if not missing(key)], log, max_failures, len(keys), bool(running))
            stopped = _failures(keys, log, missing) > max_failures
            while waiting and len(running) < workers.jobs and not stopped:
                key = waiting.popleft()
                if not log.claim(key):
                    elsewhere.append(key)
                    continue
                log.read()
                if not missing(key):
                    log.release(key)
                    continue
                settings[key] = settings_of(key[-1], [settings[other] for other in running.values()])
                running[run(key[-1], settings[key])] = key
            if running:
                done, _ = wait(running, timeout=_POLL_S if elsewhere else None, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    log.append(key, settings[key], _row(future, key, about))
                    log.release(key)
            elif elsewhere and not waiting:
                threading.Event().wait(_POLL_S)
            if elsewhere and not waiting:
                log.read()
                waiting, elsewhere = deque(key for key in elsewhere if missing(key)), []
    finally:
        for key in running.values():
            log.release(key)
    _check_failures(keys, log, max_failures, len(keys), False)


def _failures(keys, log, missing) -> int:
    return sum("error" in log.rows[key] for key in keys if not missing(key))


def _check_failures(keys, log, most: int, of: int, busy: bool) -> None:
    failed = [log.rows[key] for key in keys if "error" in log.rows[key]]
    if len(failed) > most and not busy:
        what = "trials" if keys[0][0] == "trial" else "final runs"
        raise GirlError(
            f"{len(failed)} of {of} {what} failed, more than {most}. The first: trial {failed[0]['trial']}, "
            f"{canonical(failed[0]['settings'])}: {failed[0]['error']} Their lines are in {log.path}; when the cause "
            f"is gone, run the same again with --retry-failed."
        )


def _row(future: Future, key: tuple, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the run returned; or the line of its failure."""
    from girl_recbole import results

    error = future.exception()
    error = getattr(error, "cause", None) or error  # Ray wraps what a task raises, and adds its traceback
    if error is None:
        row = dict(future.result())
        if results.plain(row.get("score")) is not None:
            return {"trial": about.get("trial"), **row}
        error = GirlError("the validation metric is not a number; the training diverged.")
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, BrokenExecutor):
        said = "the process was ended from outside, as the system does when memory runs out."
    else:
        said = f"{type(error).__name__}: {error}"
    _LOG.warning("%s %s failed: %s", key[0], key[-1], said, exc_info=None if isinstance(error, GirlError) else error)
    seed = {"seed": key[-1]} if key[0] == "final" else {}
    return {"timestamp": datetime.now(UTC).isoformat(timespec="seconds"), **about, **seed, "valid": None, "test": None,
            "score": None, "error": said}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- file of results


class _Log:
    """The lines of one search in a file of results; they are read on from where the last reading ended."""

    _files: ClassVar[dict[str, Any]] = {}  # stay open: closing one gives back all locks of this process on that file
    _held: ClassVar[set[tuple[str, int]]] = set()
    _guard = threading.Lock()

    def __init__(self, path: Path, depends_on: str) -> None:
        self.path, self.depends_on, self._at = path, depends_on, 0
        self.rows: dict[tuple, dict[str, Any]] = {}

    def read(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            if self.depends_on.encode() in line:
                try:
                    row = json.loads(line)
                except ValueError:
                    _LOG.warning("%s: a line that is not JSON is skipped; its trial is run again", self.path)
                    continue
                if row.get("depends_on") == self.depends_on:
                    self.rows[self._key(row)] = row

    def append(self, key: tuple, settings: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        from girl_recbole import results

        number = {"trial": key[1]} if key[0] == "trial" else {}
        row = {**row, **number, "settings": dict(settings), "final": key[0] == "final", "depends_on": self.depends_on}
        results.append(self.path, row)
        self.read()

    def claim(self, key: tuple) -> bool:
        """Lock ``key`` for this search; False where another one has it."""
        name, byte = self._place(key)
        with self._guard:
            if name not in self._files:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._files[name] = open(name, "ab")  # noqa: SIM115
            if (name, byte) in self._held:
                return False
            try:
                fcntl.lockf(self._files[name], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):  # what systems say of a lock that another process holds
                return False
            self._held.add((name, byte))
            return True

    def release(self, key: tuple) -> None:
        name, byte = self._place(key)
        with self._guard:
            if (name, byte) in self._held:
                fcntl.lockf(self._files[name], fcntl.LOCK_UN, 1, byte)
                self._held.discard((name, byte))

    def _place(self, key: tuple) -> tuple[str, int]:
        digest = hashlib.sha256(f"{self.depends_on} {key}".encode()).digest()
        return str(self.path.resolve()) + ".lock", int.from_bytes(digest[:8], "big") >> 2

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple:
        return ("final", canonical(row["settings"]), row["seed"]) if row["final"] else ("trial", row["trial"])


# -------------------------------------------------------------------------------------------------- which settings next


def _budget(space: Mapping[str, Parameter], how: str, trials: int | None) -> int:
    """How many trials there will be."""
    if how not in SEARCHES:
        raise ConfigError(f"search: {how!r} is unknown{suggest_or_list(how, SEARCHES)}")
    if trials is not None and trials < 1:
        raise ConfigError(f"trials: {trials}; at least 1 is required.")
    end = len(grid(space)) if how == "grid" else size(space)
    if how == "grid" and trials is not None and trials < end:
        raise ConfigError(
            f"trials: {trials}, but the grid has {end} settings, and its first {trials} would not be a fair sample. "
            f"Raise trials, shorten the lists, or take search: random."
        )
    if trials is None and end is None:
        raise ConfigError("trials: null, but the space has no end; say how many trials to run.")
    return min(count for count in (trials, end) if count is not None)


class _Proposals:
    """``(number, {number: line of a trial}, running settings)`` -> the settings of trial ``number``."""

    def __init__(self, space, how: str, seed: int, bigger: bool, budget: int) -> None:
        self._space, self._how, self._seed, self._bigger = space, how, seed, bigger
        self._listed: list[dict[str, Any]] = grid(space) if how == "grid" else []
        self._more = iter(()) if how == "grid" else draws(space, seed)

    def __call__(self, number: int, rows: Mapping[int, Mapping], running: list[Mapping]) -> dict[str, Any]:
        if self._how != "optuna":
            return self._draw(number)
        if number in rows:  # it failed, and is tried once more
            return rows[number]["settings"]
        taken = {canonical(settings) for settings in [*(row["settings"] for row in rows.values()), *running]}
        if number >= _STARTUP:
            for attempt in range(10):
                settings = self._tpe(rows, running, (self._seed, number, attempt))
                if canonical(settings) not in taken:
                    return settings
        order = itertools.chain([number] if number < _STARTUP else [], itertools.count())
        return self._draw(next(n for n in order if canonical(self._draw(n)) not in taken))

    def _draw(self, number: int) -> dict[str, Any]:
        while len(self._listed) <= number:
            self._listed.append(next(self._more))
        return self._listed[number]

    def _tpe(self, rows, running, seed: tuple) -> dict[str, Any]:
        import numpy as np
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        number = int(np.random.SeedSequence(seed).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=1, constant_liar=True)
        study = optuna.create_study(direction="maximize" if self._bigger else "minimize", sampler=sampler)
        ranges = {key: _distribution(parameter) for key, parameter in self._space.items()}

        def told(settings, state, value=None):
            study.add_trial(optuna.trial.create_trial(
                params={key: _inner(self._space[key], settings[key]) for key in self._space},
                distributions=ranges, value=value, state=state,
            ))  # fmt: skip

        for _, row in sorted(rows.items()):
            failed = "error" in row
            told(row["settings"], optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
                 None if failed else row["score"])  # fmt: skip
        for settings in running:
            told(settings, optuna.trial.TrialState.RUNNING)
        asked = study.ask(ranges).params
        return {key: _outer(parameter, asked[key]) for key, parameter in self._space.items()}


def _distribution(parameter: Parameter):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":  # by number, as optuna takes no lists
        return CategoricalDistribution(range(parameter.size()))
    if parameter.kind == "steps":
        return IntDistribution(0, parameter.size() - 1)
    return FloatDistribution(*parameter.values, log=parameter.kind == "loguniform")


def _inner(parameter: Parameter, value: Any) -> Any:
    if parameter.kind == "choice":
        return [canonical(choice) for choice in parameter.values].index(canonical(value))
    return round(value / parameter.values[2]) - parameter.values[0] if parameter.kind == "steps" else value


def _outer(parameter: Parameter, value: Any) -> Any:
    return value if parameter.size() is None else parameter.at(value)
