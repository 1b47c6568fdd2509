"""engines/ray.py on a real cluster of this machine: the bytes of the engine without Ray, and actors that die."""

import dataclasses
import functools
import os
import sys
from pathlib import Path

import pytest
import test_generate as g
from test_generate import files  # noqa: F401 - a fixture: 10 seekers with 7 distinct CVs

from girl_recbole import generate as module
from girl_recbole.engines import ray as engine
from girl_recbole.engines.ray import WorkerError, Workers, write_shards
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import Task, Written, generate
from girl_recbole.manifest import read_manifest
from girl_recbole.shards import key_of

RAY = {"gen_engine": "ray", "gen_shard_size": 2, "ray_num_cpus": 0.5}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster of two cores that runs throughout this module; RAY_ADDRESS names it."""
    import ray.cloudpickle
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        running = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", running.address)
        yield running
        running.shutdown()


def _config(tmp_path, **overrides):
    return g.config(tmp_path, **{"gen_shard_size": 2, **overrides})


def _written_locally(files, tmp_path, **overrides) -> bytes:  # noqa: F811
    path = Path(generate(files, _config(tmp_path, **overrides))["file"])
    whole = path.read_bytes()
    path.unlink()
    return whole


def test_the_bytes_and_settings_of_the_engine_without_ray(files, tmp_path):  # noqa: F811
    """Best of three: candidates come back with their CVs and are judged here."""
    whole = _written_locally(files, tmp_path, **g.BEST)
    report = generate(files, _config(tmp_path, **RAY, **g.BEST, ray_workers=2))
    path = files.gdoc("sft-best-of-3")
    assert path.read_bytes() == whole
    assert (report["shards"], report["cvs_written"]) == (4, 7)
    assert "reused" in generate(files, _config(tmp_path, **g.BEST))  # the settings do not name Ray
    assert read_manifest(path)["config"]["gen_engine"] == "ray"


def _in_actors(patch, change):
    """Have actors, but not this process, change the generator that they make."""
    made = module.make_generator
    patch.setattr(module, "make_generator", lambda recipe, *lm: made(recipe, *lm) if lm else change(made(recipe)))


def _dies_once(marker, generator):
    """Its process ends in the middle of the second shard that any of them gets."""
    write = generator.write

    def fail(cvs):
        tries = len(list(marker.iterdir()))
        (marker / f"{os.getpid()}-{tries}").touch()
        if tries == 1:
            os._exit(1)
        return write(cvs)

    object.__setattr__(generator, "write", fail)
    return generator


def test_an_actor_that_dies_in_mid_shard(files, tmp_path, monkeypatch):  # noqa: F811
    whole = _written_locally(files, tmp_path)
    marker = tmp_path / "tries"
    marker.mkdir()
    _in_actors(monkeypatch, functools.partial(_dies_once, marker))
    report = generate(files, _config(tmp_path, **RAY, ray_workers=1))
    assert files.gdoc("sft").read_bytes() == whole
    assert report["shards"] == 4
    processes = [name.name.split("-")[0] for name in sorted(marker.iterdir())]
    assert len(processes) == 5  # four shards, one of them twice
    assert len(set(processes)) == 2


class Stub:
    """Writes the CV itself; one that begins with ``!`` is the end of the process."""

    def __init__(self, error=None):
        self.error = error

    def write(self, cvs):
        if self.error:
            raise self.error
        return [os._exit(1) if cv.startswith("!") else Written([cv, cv[::-1]], [True, False], 3) for cv in cvs]


def _tasks(*texts):
    return [Task([key_of(cv) for cv in cvs], [f"u{cv}" for cv in cvs], list(cvs)) for cvs in texts]


def _run(make, tasks):
    return write_shards(make, tasks, Workers(1, 0.5, None, 1), needs_gpu=True, with_cvs=False)


def test_a_shard_that_kills_every_actor_ends_the_run_and_what_came_back_before_is_whole():
    tasks, come = _tasks(["a\n", "b\u2028"], ["c", "!"]), []
    with pytest.raises(WorkerError, match=r"died more than ray_retries \(1\) times.*run the same command again"):
        come.extend(_run(Stub, tasks))
    assert len(come) <= 1  # whether Ray hands on the first shard before it tells of the death is a race
    for task, rows in come:
        assert (task.keys, task.users, task.cvs) == (tasks[0].keys, tasks[0].users, [])
        assert rows == [Written([cv, cv[::-1]], [True, False], 3) for cv in ("a\n", "b\u2028")]


def test_an_error_of_ours_in_an_actor_is_that_error_here_and_others_are_named():
    with pytest.raises(DataError, match=r"^x: holds other weights$"):
        list(_run(functools.partial(Stub, DataError("x: holds other weights")), _tasks(["a"])))
    with pytest.raises(WorkerError, match=r"ray: an actor failed: RuntimeError: out of memory\. Finished"):
        list(_run(functools.partial(Stub, RuntimeError("out of memory")), _tasks(["a"])))


def test_a_model_with_other_weights_is_refused(files, tmp_path):  # noqa: F811
    recipe, _, _ = module._prepare(files, _config(tmp_path))
    assert module.make_generator(recipe).samples == 2
    with pytest.raises(DataError, match=r"sft: holds other weights on this machine \(\w+\) than .* \(other\)"):
        module.make_generator(dataclasses.replace(recipe, fingerprint="other"))


def test_settings_that_cannot_work(files, tmp_path):  # noqa: F811
    for changed, said in [
        ({"gen_engine": "spark"}, "gen_engine: 'spark' is unknown; known: local, api, ray"),
        ({**RAY, "ray_engine": "ray"}, "ray_engine: 'ray' is unknown; known: local, api"),
        ({**RAY, "ray_workers": 0}, "ray_workers: 0; at least 1"),
        ({**RAY, "ray_num_cpus": 64.0}, "no actor of 64 cores and 0 GPUs fits into a cluster of 2 and 0"),
    ]:
        with pytest.raises(ConfigError, match=said):
            generate(files, _config(tmp_path, **changed))
    assert engine._fitting({"CPU": 16, "GPU": 3}, 2, 1) == 3
    assert engine._fitting({"CPU": 16}, 2, 0) == 8
    assert engine._fitting({"CPU": 16}, 0, 0) == 1
