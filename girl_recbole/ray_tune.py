"""Ray Tune as what runs the trials of a sweep: ``engine: ray``.

Which settings come next, what is done already and the file of results are trials.py's, as with local processes, so both
engines run the same trials and share their lines. Tune places each trial on a CPU of the cluster of ``RAY_ADDRESS``, or
of a local Ray of ``jobs`` CPUs, and tells of trials whose process died. It draws no settings itself: its searcher hands
on what was submitted. Its own files go to a folder that is removed at the end.
"""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from girl_recbole.engines.ray import connect
from girl_recbole.workers import cores

__all__ = ["TuneTrials"]

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no params.json and result.json of each trial
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints a box even when told to be silent
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a sweep that goes on reads results_file, not Tune's state
}


class TuneTrials:
    """Runs functions as trials of one Tune experiment, each on one CPU and one thread.

    ``jobs``: how many at once; None = as many as there are CPUs.

    Raises ``ConfigError`` where ``RAY_ADDRESS`` names no cluster.
    """

    def __init__(self, jobs: int | None) -> None:
        self._own = connect(num_cpus=jobs or cores())
        self.jobs = jobs or int(ray.cluster_resources().get("CPU", 1))
        self._given = _Given()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable, *arguments: Any) -> Future:
        future: Future = Future()
        self._given.waiting.put((future, {"folder": os.getcwd(), "function": function, "arguments": arguments}))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fit, daemon=True)
            self._thread.start()
        return future

    def close(self, at_once: bool = False) -> None:
        """End the experiment; ``at_once``: with the trials that are running."""
        self._given.closed = True
        if self._thread is not None:
            if at_once:
                self._given.stopped = True
            self._thread.join()
        if self._own:
            ray.shutdown()

    def _fit(self) -> None:
        try:
            os.environ.update(_QUIET | os.environ)
            logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # misses those files
            with tempfile.TemporaryDirectory(prefix="girl-tune-") as folder:
                tune.Tuner(
                    tune.with_resources(_trial, {"cpu": 1}),
                    tune_config=tune.TuneConfig(
                        search_alg=self._given, num_samples=-1, trial_dirname_creator=lambda trial: trial.trial_id
                    ),
                    run_config=tune.RunConfig(
                        storage_path=folder, name="sweep", verbose=0, stop=_Stop(self._given),
                        failure_config=tune.FailureConfig(max_failures=0),
                    ),
                ).fit()  # fmt: skip
        except BaseException as error:  # whoever waits for a trial must hear of it
            self._given.fail(error)


class _Given(Searcher):
    """A searcher that suggests what was submitted, and hands results to the futures."""

    def __init__(self) -> None:
        super().__init__(metric="number", mode="max")
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.closed = self.stopped = False
        self._running: dict[str, Future] = {}

    def suggest(self, trial_id: str) -> Any:
        try:
            self._running[trial_id], work = self.waiting.get_nowait()
        except queue.Empty:
            return Searcher.FINISHED if self.closed else None
        return {"work": work}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        future = self._running.pop(trial_id)
        if result is None or "ended" not in result:
            future.set_exception(BrokenExecutor("the process of the trial died"))
            return
        row, raised = ray.cloudpickle.loads(result["ended"])
        if raised is not None:
            future.set_exception(raised)
        else:
            future.set_result(row)

    def fail(self, error: BaseException) -> None:
        while self._running:
            self._running.popitem()[1].set_exception(error)
        while not self.waiting.empty():
            self.waiting.get()[0].set_exception(error)

    def __deepcopy__(self, memo: dict) -> _Given:
        return self

    def __reduce__(self):
        """Tune writes its searcher to a file, to go on from; what a sweep goes on from is its file of results."""
        return _Given, ()

    def save(self, checkpoint_path: str) -> None:
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class _Stop(tune.Stopper):
    def __init__(self, given: _Given) -> None:
        self._given = given

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._given.stopped


def _trial(config: dict[str, Any]) -> None:
    """In a process of Ray: RecBole writes its logs to the folder that the sweep was started in, where there is one."""
    import torch

    work = config["work"]
    torch.set_num_threads(1)
    if os.path.isdir(work["folder"]):
        os.chdir(work["folder"])
    try:
        ended = (work["function"](*work["arguments"]), None)
    except Exception as error:
        ended = (None, error)
    tune.report({"number": 0, "ended": ray.cloudpickle.dumps(ended)})
