"""Shards in the actors of a Ray cluster (Ray Data), each with a model or a server's client of its own.

    driver    cuts shards, puts their texts into Ray's object store (which spills to disk), and writes each to disk when
              it comes back
    actor     loads its model once, then writes the JDs of one shard after the other

Only the driver touches files of the dataset, so the machines need no common file system for them. They need this
package, and the model under the name that the driver has for it (a folder or a Hugging Face name; its weights are
compared). The bytes are those of the engine without Ray: a JD depends on its CV and its number, and a shard comes
whole from one actor.

An actor that dies is started again, and the shard that it was at is given out again, ``ray_retries`` times. What came
back is on disk, so a driver that dies loses what its actors were at.

``RAY_ADDRESS`` names the cluster; without it one is started on this machine, for this run. No usage statistics are
sent, and no dashboard is started.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from girl_recbole.errors import ConfigError, GirlError
from girl_recbole.shards import Written

if TYPE_CHECKING:
    from girl_recbole.generate import JDGenerator, Task

__all__ = ["WorkerError", "Workers", "connect", "write_shards"]


class WorkerError(GirlError, RuntimeError):
    """Actors that died too often, or failed in a way that is no message of ours."""


@dataclass(frozen=True)
class Workers:
    """``count`` None: as many as fit. ``gpus`` None: one for an actor that needs it, where there are any."""

    count: int | None
    cpus: float
    gpus: float | None
    retries: int


class _Writer:
    """What an actor holds: a generator, made when the first shard comes. Errors of ours go back as what came of a
    shard: Ray would hand on their text alone, and take one in a constructor for the actor's death."""

    def __init__(self, make: Callable[[], JDGenerator], with_cvs: bool) -> None:
        self.make, self.with_cvs = make, with_cvs

    @functools.cached_property
    def generator(self) -> JDGenerator:
        return self.make()

    def __call__(self, shard: pa.Table) -> pa.Table:
        error, written = None, [None] * len(shard)
        try:
            rows = self.generator.write(shard["cv"].to_pylist())
            written = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
        except GirlError as raised:
            error = pickle.dumps(raised)
        shard = shard.append_column("written", pa.array(written, pa.large_string()))
        shard = shard.append_column("error", pa.array([error] * len(shard), pa.binary()))
        return shard if self.with_cvs else shard.drop_columns("cv")


def write_shards(
    make: Callable[[], JDGenerator], tasks: Iterable[Task], workers: Workers, *, needs_gpu: bool, with_cvs: bool
) -> Iterator[tuple[Task, list[Written]]]:
    """The JDs of each task, as they come. ``make`` is called once in every actor; it is sent there by pickle.

    ``with_cvs``: the tasks that come back have their CVs, else none."""
    import ray.exceptions

    from girl_recbole.generate import Task

    with _cluster() as cluster:
        blocks = [cluster.put(_table(task)) for task in tasks]
        if not blocks:
            return
        resources = cluster.cluster_resources()
        gpus = workers.gpus if workers.gpus is not None else float(needs_gpu and resources.get("GPU", 0) >= 1)
        size = workers.count or _fitting(resources, workers.cpus, gpus)
        restarts = {"max_restarts": workers.retries, "max_task_retries": workers.retries}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            shards = cluster.data.from_arrow_refs(blocks).map_batches(
                _Writer, fn_constructor_args=(make, with_cvs), batch_size=None, batch_format="pyarrow",
                compute=cluster.data.ActorPoolStrategy(size=min(size, len(blocks))), num_cpus=workers.cpus,
                num_gpus=gpus, **restarts,
            )  # fmt: skip
        del blocks
        try:
            for shard in shards.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                columns = {name: shard[name].to_pylist() for name in shard.column_names}
                if columns["error"][0] is not None:
                    raise pickle.loads(columns["error"][0])
                task = Task(columns["key"], columns["user"], columns.get("cv", []))
                yield task, [Written(**json.loads(row)) for row in columns["written"]]
        except ray.exceptions.RayError as error:
            raise _ours(error, workers) from None


def _table(task: Task) -> pa.Table:
    texts = pa.large_string()
    return pa.table({"key": task.keys, "user": pa.array(task.users, texts), "cv": pa.array(task.cvs, texts)})


def _fitting(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many actors the cluster holds."""
    room = [int(resources.get(name, 0) // each) for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    if room and min(room) < 1:
        raise ConfigError(
            f"ray_num_cpus: no actor of {cpus:g} cores and {gpus:g} GPUs fits into a cluster of "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; lower ray_num_cpus or ray_num_gpus."
        )
    return min(room, default=1)


def _ours(error: Exception, workers: Workers) -> WorkerError:
    import ray.exceptions

    if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError):
        return WorkerError(
            f"ray: an actor died more than ray_retries ({workers.retries}) times; where it was killed for memory, "
            f"lower gen_batch_size or ray_workers. Finished shards are kept; run the same command again."
        )
    first = str(error).split("\n\nThe above exception")[0].strip().splitlines() or [type(error).__name__]
    return WorkerError(f"ray: an actor failed: {first[-1][:300]}. Finished shards are kept.")


def connect(**local: Any) -> bool:
    """Connect this process to the cluster of RAY_ADDRESS, or to a new one, started with ``local``.

    Returns False where it is part of a cluster already. Raises ``ConfigError`` where RAY_ADDRESS names none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS") or "local"
    new = {"include_dashboard": False, **local} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **new)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"RAY_ADDRESS: no cluster at {address} ({error}); start one with `ray start`.") from None
    return True


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected: to the cluster that this process is part of already, to that of RAY_ADDRESS, or to a new one."""
    own = connect()
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()
