"""Sweeps: every setting once, bounds, seeds, resumption after a kill, validation alone, failures, two at once."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st
from scipy import stats
from tiny_market import LABELED, make_market

from girl_recbole import sweep as sweeps
from girl_recbole.config import documented_keys, load_properties, properties_file
from girl_recbole.errors import ConfigError, GirlError
from girl_recbole.search_space import canonical, draws, grid, parse_params_file, parse_space, size
from girl_recbole.sweep import best_settings, read_sweep, sweep
from girl_recbole.trials import best_of, final_runs, search
from girl_recbole.workers import Here, Workers

# ------------------------------------------------------------------------------------------------------------ the space


def test_grid_is_the_product_once():
    space = parse_space(
        {"a": [1, 2, 3], "b": {"int": [5, 6]}, "c": {"quniform": [0.1, 0.3, 0.1]}, "d": [[64], [64, 32]]}
    )
    settings = grid(space)
    expected = set(itertools.product([1, 2, 3], [5, 6], [0.1, 0.2, 0.3], [(64,), (64, 32)]))
    assert len(settings) == len(expected) == size(space) == 36
    assert {(s["a"], s["b"], s["c"], tuple(s["d"])) for s in settings} == expected


@runs(deadline=None, max_examples=50)
@given(
    low=st.floats(1e-6, 1e3), ratio=st.floats(1.01, 1e6), first=st.integers(-50, 50), more=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_draws_keep_their_bounds(low, ratio, first, more, seed):
    space = parse_space({
        "uniform": {"uniform": [-low, low * ratio]},
        "log": {"loguniform": [low, low * ratio]},
        "int": {"int": [first, first + more]},
        "steps": {"quniform": [first, first + more, 0.25]},
        "choice": ["x", None, [1]],
    })  # fmt: skip
    drawn = list(itertools.islice(draws(space, seed), 20))
    for settings in drawn:
        assert -low <= settings["uniform"] <= low * ratio
        assert low <= settings["log"] <= low * ratio
        assert first <= settings["int"] <= first + more
        assert isinstance(settings["int"], int)
        assert first <= settings["steps"] <= first + more
        assert (settings["steps"] * 4).is_integer()
        assert settings["choice"] in ["x", None, [1]]
    assert drawn == list(itertools.islice(draws(space, seed), 20))
    assert drawn != list(itertools.islice(draws(space, seed + 1), 20))


def test_loguniform_is_uniform_in_the_logarithm():
    space = parse_space({"x": {"loguniform": [1e-5, 1e-1]}, "y": {"uniform": [2, 4]}})
    drawn = list(itertools.islice(draws(space, 0), 4000))
    logs = [math.log10(settings["x"]) for settings in drawn]
    assert stats.kstest(logs, stats.uniform(-5, 4).cdf).pvalue > 0.01
    assert stats.kstest([settings["y"] for settings in drawn], stats.uniform(2, 2).cdf).pvalue > 0.01


def test_random_draws_all_of_a_finite_space_once():
    space = parse_space({"a": [1, 2, 3], "b": {"int": [0, 4]}})
    drawn = list(draws(space, 3))
    assert sorted(map(canonical, drawn)) == sorted(map(canonical, grid(space)))
    assert drawn != grid(space)


@pytest.mark.parametrize(
    "space, said",
    [
        ({}, "empty, so there is nothing to search"),
        ([1], "a mapping of keys"),
        ({"a": 0.1}, "a: 0.1; a list of choices or one of .* belongs to fixed"),
        ({"a": []}, "at least one value"),
        ({"a": [1, 2, 1]}, "1 is listed twice"),
        ({"a": {"loguniorm": [1, 2]}}, "unknown kind 'loguniorm' - did you mean 'loguniform'"),
        ({"a": {"uniform": [1, 1]}}, "1 is not below 1"),
        ({"a": {"uniform": ["0", 1]}}, "2 numbers are required"),
        ({"a": {"uniform": [0, math.inf]}}, "2 numbers are required"),
        ({"a": {"loguniform": [0, 1]}}, "not above 0; the bounds are values"),
        ({"a": {"int": [0.5, 2]}}, "whole numbers"),
        ({"a": {"quniform": [0, 1]}}, "3 numbers"),
        ({"a": {"quniform": [0, 1, 0]}}, "step 0 is not above 0"),
        ({"a": {"quniform": [1, 2, 5]}}, "no multiple of 5"),
    ],
)
def test_a_space_that_cannot_be_used(space, said):
    with pytest.raises(ConfigError, match=said):
        parse_space(space)


def test_params_file_of_recbole(tmp_path):
    """The lines of RecBole's manual and of its own hyper.test."""
    (tmp_path / "model.hyper").write_text(
        "learning_rate loguniform -8,0\n"
        "embedding_size choice [64,96 , 128]\n"
        "\n# a comment\n"
        "train_batch_size choice [512, 1024, 2048]\n"
        "mlp_hidden_size choice ['[64, 64, 64]','[128, 128]']\n"
        "dropout uniform 0,0.5\n"
        "n_layers quniform 1,3,1\n"
    )
    space = parse_params_file(tmp_path / "model.hyper")
    assert space["learning_rate"].values == pytest.approx((math.exp(-8), 1.0))
    assert space["embedding_size"].values == (64, 96, 128)
    assert space["mlp_hidden_size"].values == ("[64, 64, 64]", "[128, 128]")
    assert space["dropout"].values == (0.0, 0.5)
    assert [space["n_layers"].at(i) for i in range(3)] == [1, 2, 3]
    assert parse_space(space) == space


def test_params_file_agrees_with_recboles_own_reading(tmp_path):
    from hyperopt.pyll.stochastic import sample
    from recbole.trainer import HyperTuning

    path = tmp_path / "model.hyper"
    path.write_text("a loguniform -8,-2\nb choice [64,96]\nc uniform 1,2\nd choice ['[1,2]','x']\ne quniform 0,4,2\n")
    theirs, ours = HyperTuning._build_space_from_file(str(path)), parse_params_file(path)
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = sample(theirs, rng)
        for key in "ac":
            assert ours[key].values[0] <= drawn[key] <= ours[key].values[1]
        for key in "bde":
            assert drawn[key] in [ours[key].at(i) for i in range(ours[key].size())]


@pytest.mark.parametrize(
    "line, said",
    [
        ("a choice __import__('os').system('touch PWNED')", "cannot be read"),
        ("a choice [__import__('os')]", "cannot be read"),
        ("a uniform __import__('os'),1", "cannot be read"),
        ("a choice [adam, sgd]", "cannot be read"),
        ("a choice 5", "a list with at least one value"),
        ("a loguniform", "line 1: 'a loguniform'; `key kind values` is required"),
        ("a normal 0,1", "unknown kind 'normal'"),
        ("a uniform 1", "2 numbers"),
        ("a choice [1]\na choice [2]", "line 2: 'a' is given twice"),
        ("", "empty"),
    ],
)
def test_params_file_is_never_evaluated(tmp_path, line, said):
    (tmp_path / "bad.hyper").write_text(line.replace("PWNED", str(tmp_path / "pwned")))
    with pytest.raises(ConfigError, match=said):
        parse_params_file(tmp_path / "bad.hyper")
    assert not (tmp_path / "pwned").exists()


# ------------------------------------------------------------------------------------- the search, with plain functions

_SPACE = parse_space({"x": {"uniform": [-1, 1]}, "y": {"loguniform": [0.001, 1]}})


def valley(settings, seed, final):
    """The score is best, 0, at x = 0.3, y = 0.1; ``test`` is best at the other end."""
    loss = (settings["x"] - 0.3) ** 2 + (math.log10(settings["y"]) + 1) ** 2
    return {"score": -loss, "valid": {"auc": -loss}, "test": {"auc": loss} if final else None, "seed": seed}


def run(tmp_path, objective=valley, how="random", trials=8, space=_SPACE, seed=0, workers=None, **more):
    more = {"results_file": tmp_path / "r.jsonl", "depends_on": "h" * 16, **more}
    return search(space, objective, how=how, trials=trials, seed=seed, workers=workers or Here(), **more)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_larger_budget_goes_on(tmp_path):
    called = []

    def count(settings, seed, final):
        called.append(settings)
        return valley(settings, seed, final)

    first = run(tmp_path, count, trials=5)
    assert run(tmp_path, count, trials=8)[:5] == first
    assert len(called) == len(lines(tmp_path / "r.jsonl")) == 8
    assert called == list(itertools.islice(draws(_SPACE, 0), 8))
    run(tmp_path, count, trials=8, depends_on="other code")  # nothing of the old lines counts
    assert len(called) == 16


def test_the_budget_against_the_grid(tmp_path):
    space = parse_space({"a": [1, 2, 3]})

    def score(settings, seed, final):
        return {"score": settings["a"], "seed": seed}

    for how in ("grid", "random", "optuna"):
        rows = run(tmp_path, score, how, 50, space, depends_on=how)
        assert sorted(row["settings"]["a"] for row in rows) == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"trials: 2, but the grid has 3 settings"):
        run(tmp_path, score, "grid", 2, space)
    with pytest.raises(ConfigError, match=r"grid needs lists, int or quniform; x, y: a range"):
        run(tmp_path, how="grid")
    with pytest.raises(ConfigError, match=r"the space has no end"):
        run(tmp_path, trials=None)
    with pytest.raises(ConfigError, match=r"search: 'optune' is unknown - did you mean 'optuna'"):
        run(tmp_path, how="optune")


def test_optuna_beats_random_and_is_reproducible(tmp_path):
    def best(how, seed, name):
        rows = run(tmp_path, how=how, trials=30, seed=seed, results_file=tmp_path / name)
        return rows, best_of(rows)["score"]

    gains = [best("optuna", s, f"o{s}")[1] - best("random", s, f"r{s}")[1] for s in range(4)]
    assert np.mean(gains) > 0
    assert sum(gain > 0 for gain in gains) >= 3, gains
    again, _ = best("optuna", 0, "again")
    assert [row["settings"] for row in again] == [row["settings"] for row in lines(tmp_path / "o0")]
    (tmp_path / "half").write_text("".join(f"{json.dumps(row)}\n" for row in again[:11]))
    assert [row["settings"] for row in best("optuna", 0, "half")[0]] == [row["settings"] for row in again]
    other, _ = best("optuna", 1, "o1")
    assert other[20]["settings"] != again[20]["settings"]


def test_optuna_minimises_where_smaller_is_better(tmp_path):
    def loss(settings, seed, final):
        return {"score": -valley(settings, seed, final)["score"], "seed": seed}

    rows = run(tmp_path, loss, "optuna", 30, bigger=False)
    assert best_of(rows, bigger=False)["score"] == min(row["score"] for row in rows) < 0.1


def test_validation_alone_chooses(tmp_path):
    """The best trial by test is the worst by validation, and it is not taken; nor does search ask for test."""
    asked = []

    def objective(settings, seed, final):
        asked.append(final)
        row = valley(settings, seed, final)
        return {**row, "test": {"auc": -row["score"]}}

    rows = run(tmp_path, objective)
    assert not any(asked)
    best = best_of(rows)
    assert best["score"] == max(row["score"] for row in rows)
    assert best["test"]["auc"] == min(row["test"]["auc"] for row in rows)
    more = {"results_file": tmp_path / "r.jsonl", "depends_on": "h" * 16, "workers": Here()}
    finals = final_runs(best, objective, [7, 8], **more)
    assert asked[8:] == [True, True]
    assert [row["seed"] for row in finals] == [7, 8]
    assert all(row["final"] and row["settings"] == best["settings"] and row["trial"] == best["trial"] for row in finals)
    assert final_runs(best, objective, [7, 8, 9], **more)[:2] == finals
    assert len(asked) == 8 + 3
    assert best_of([{"trial": 1, "score": 0.5}, {"trial": 0, "score": 0.5}])["trial"] == 0


def test_a_failure_is_a_line_and_stops_nothing(tmp_path):
    broken = True

    def fails(settings, seed, final):
        if broken and settings["a"] == 2:
            raise MemoryError("no more")
        return {"score": math.nan if broken and settings["a"] == 3 else settings["a"], "seed": seed}

    space = parse_space({"a": [1, 2, 3, 4]})
    rows = run(tmp_path, fails, "grid", None, space, about={"model": "M"})
    assert [row.get("error") for row in rows] == [
        None, "MemoryError: no more",
        "GirlError: the validation metric is not a number; the training diverged.", None,
    ]  # fmt: skip
    assert rows[1]["test"] is None
    assert rows[1]["model"] == "M"
    assert rows[1]["settings"] == {"a": 2}
    assert best_of(rows)["settings"] == {"a": 4}
    with pytest.raises(
        GirlError, match=r"2 of 4 trials failed, more than 1\. The first: trial 1, .*MemoryError: no more"
    ):
        run(tmp_path, fails, "grid", None, space, max_failures=1)
    broken = False
    assert run(tmp_path, fails, "grid", None, space) == rows
    again = run(tmp_path, fails, "grid", None, space, retry_failed=True)
    assert [row["score"] for row in again] == [1, 2, 3, 4]
    assert len(lines(tmp_path / "r.jsonl")) == 6
    broken = True
    with pytest.raises(GirlError, match="every trial failed"):
        best_of(run(tmp_path, fails, "grid", None, parse_space({"a": [2]}), depends_on="x"))


def test_too_many_failures_end_a_search(tmp_path):
    def fails(settings, seed, final):
        raise ValueError("always")

    with pytest.raises(GirlError, match=r"3 of 20 trials failed, more than 2.*r\.jsonl.*--retry-failed"):
        run(tmp_path, fails, trials=20, max_failures=2)
    assert len(lines(tmp_path / "r.jsonl")) == 3  # the other 17 were not tried


def test_two_sweeps_on_one_file_share_the_work(tmp_path):
    called, guard = [], threading.Lock()

    def slow(settings, seed, final):
        with guard:
            called.append(canonical(settings))
        time.sleep(0.02)
        return valley(settings, seed, final)

    answers = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: run(tmp_path, slow, trials=20)})) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(called) == len(set(called)) == len(lines(tmp_path / "r.jsonl")) == 20
    assert answers[0] == answers[1] == answers[2]


def test_lines_that_are_not_ours(tmp_path):
    """Other rows, a line cut short and one that is no JSON are left alone."""
    path = tmp_path / "r.jsonl"
    whole = run(tmp_path, trials=3)
    text = path.read_text().splitlines()
    path.write_text('{"model": "BPR"}\n' + text[0] + "\n" + text[1][:60] + "\n" + text[2])  # no newline at the end
    assert run(tmp_path, trials=3) == whole
    assert len(path.read_text().splitlines()) == 4 + 1  # trial 1 was run again
    assert text[1][:60] in path.read_text()


# ------------------------------------------------------------------------------------------------------ real processes

_KILLED = """
import sys, time
from pathlib import Path
from girl_recbole.search_space import parse_space
from girl_recbole.trials import search
from girl_recbole.workers import Workers

def slow(settings, seed, final):
    with open("started", "a") as file:
        file.write(f"{settings['a']}\\n")
    if settings["a"] >= 2 and not Path("go").exists():
        time.sleep(600)
    return {"score": settings["a"], "seed": seed}

if __name__ == "__main__":
    with Workers(2) as workers:
        search(parse_space({"a": list(range(6))}), slow, how="grid", trials=None, seed=0, results_file="r.jsonl",
               depends_on="h", workers=workers)
"""


def test_a_killed_sweep_goes_on(tmp_path):
    """Killed with -9 while trials 2 and 3 run: 0 and 1 are not run again, the others once; no process is left over."""
    (tmp_path / "script.py").write_text(_KILLED)
    start = functools.partial(subprocess.Popen, [sys.executable, "script.py"], cwd=tmp_path)
    first = start()
    started = tmp_path / "started"
    _until(lambda: started.exists() and len(started.read_text().split()) == 4)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    first.send_signal(signal.SIGKILL)
    first.wait()
    _until(lambda: not any(Path(f"/proc/{pid}").exists() and _alive(pid) for pid in children))
    assert sorted(row["trial"] for row in lines(tmp_path / "r.jsonl")) == [0, 1]
    started.write_text("")
    (tmp_path / "go").touch()
    assert start().wait(timeout=240) == 0
    assert sorted(started.read_text().split()) == ["2", "3", "4", "5"]
    assert sorted(row["trial"] for row in lines(tmp_path / "r.jsonl")) == [0, 1, 2, 3, 4, 5]


def _until(happened, seconds=200):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def _alive(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _some_die(settings, seed, final):
    if settings["a"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    row = {"score": settings["a"], "seed": seed, "process": os.getpid()}
    if settings["a"] > 1:
        import torch

        row["threads"] = torch.get_num_threads()
    return row


@pytest.fixture
def market(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_market(tmp_path / "dataset")


def test_real_trials_and_processes(market, tmp_path):
    """BPR in processes of one thread: a grid, then two seeds on test; again: nothing runs; one more seed: one run."""
    with Workers(1) as workers:
        rows = run(tmp_path, _some_die, "grid", None, parse_space({"a": [0, 1, 2, 3]}), workers=workers)
        assert [row.get("threads") for row in rows] == [None, None, 1, 1]
        assert "ended from outside" in rows[1]["error"]
        assert rows[2]["process"] == rows[3]["process"] != rows[0]["process"]
        os.kill(workers.submit(os.getpid).result(), signal.SIGKILL)  # while it has nothing to do
        time.sleep(0.5)
        assert workers.submit(os.getpid).result() != rows[3]["process"]

        space = {"learning_rate": [1e-9, 0.1], "embedding_size": [8, "eight"]}
        fixed = {
            **LABELED,
            "epochs": 1,
            "metrics": ["AUC"],
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
        }
        more = {"trials": None, "search": "grid", "overrides": fixed, "results_file": "s.jsonl", "workers": workers}
        best = best_settings("BPR", "tiny", "warm", space, **more)
        made = lines(tmp_path / "s.jsonl")
        assert len(made) == 4
        assert all(row["test"] is None and row["final"] is False for row in made)
        finished = [row for row in made if "error" not in row]
        assert sorted({row["settings"]["embedding_size"] for row in made if "error" in row}) == ["eight"]
        assert best == max(finished, key=lambda row: row["valid"]["auc"])["settings"]
        assert all(row["config"]["embedding_size"] == 8 and row["checkpoint"] is None for row in finished)
        assert best_settings("BPR", "tiny", "warm", space, **more) == best
        assert len(lines(tmp_path / "s.jsonl")) == 4

        given = {"model": "BPR", "dataset": "tiny", "split": "warm", "search": "grid", "trials": None,
                 "seeds": [1, 2], "space": space, "results_file": "s.jsonl", "jobs": 1}  # fmt: skip
        (report,) = sweep(read_sweep(None, given, fixed=fixed), workers=workers)
    made = lines(tmp_path / "s.jsonl")
    assert len(made) == 6  # the sweep took the trials of best_settings over
    assert report["best"]["settings"] == best
    assert report["trials"] == {"done": 2, "failed": 2}
    assert [row["seed"] for row in made[4:]] == [1, 2]
    assert all(row["final"] for row in made[4:])
    assert all(Path(row["checkpoint"]).exists() for row in made[4:])
    auc = [row["test"]["auc"] for row in made[4:]]
    assert report["test"]["auc"].startswith(f"{np.mean(auc):.4f} ± ")
    assert sweep(read_sweep(None, given, fixed=fixed)) == [report]
    assert len(lines(tmp_path / "s.jsonl")) == 6


def test_ray_gives_the_same(tmp_path, monkeypatch):
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its processes cannot import this file
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with Workers(2, "ray") as workers:
        assert workers.jobs == 2
        rows = run(tmp_path, _plus_process, "grid", None, parse_space({"a": [0, "kill", 1, 2, "x"]}), workers=workers)
    assert not ray.is_initialized()
    assert [row["score"] for row in rows] == [0, None, 10, 20, None]
    assert rows[1]["error"].startswith("the process was ended from outside")
    assert rows[4]["error"] == "ValueError: invalid literal for int() with base 10: 'x'"
    assert os.getpid() not in {rows[number]["process"] for number in (0, 2, 3)}


def _plus_process(settings, seed, final):
    if settings["a"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"score": 10 * int(settings["a"]), "seed": seed, "process": os.getpid()}


# --------------------------------------------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"space": {"embedding_siz": [1]}}, "unknown key 'embedding_siz' - did you mean 'embedding_size'"),
        ({"space": {"mf_embedding_size": [1]}}, "space of BPR: unknown key 'mf_embedding_size'"),
        ({"space": {"seed": [1, 2]}}, "seed: cannot be searched"),
        ({"space": {"learning_rate": [1]}, "fixed": {"learning_rate": 2}}, "learning_rate: both in space and in fixed"),
        ({"fixed": {"seed": 4}}, "fixed: seed: a key of the sweep with another value"),
        ({"fixed": {"epoch": 4}}, "fixed: unknown key 'epoch' - did you mean 'epochs'"),
        ({"model": "BPRR"}, "unknown model 'BPRR' - did you mean 'BPR'"),
        ({"dataset": "tinny"}, r"no tinny\.warm\.train\.inter.* Run `girl split tinny"),
        ({"engine": "rya"}, "engine: 'rya' is unknown - did you mean 'ray'"),
        ({"jobs": 0}, "jobs: 0; at least 1"),
        ({"model": None}, "no model"),
        ({"seeds": [1, 1]}, "a seed is there twice"),
        ({"trials": "5"}, "trials: '5' is a str; int or null is required"),
        ({"sead": 1}, "unknown key 'sead' - did you mean 'seed'"),
        ({"space": {}}, "nothing to search"),
    ],
)
def test_a_sweep_that_cannot_run(market, changes, said):
    fixed = {**{key: value for key, value in LABELED.items() if key != "train_neg_sample_args"}}
    given = {"model": "BPR", "dataset": "tiny", "split": "warm", "space": {"learning_rate": [0.1]}, **changes}
    given["fixed"] = {**fixed, **changes.get("fixed", {})}
    with pytest.raises(GirlError, match=said):
        sweep(read_sweep(None, given))
    assert not Path("results.jsonl").exists()


def test_what_numbers_depend_on(market, monkeypatch):
    def hashed(space=None, how="grid", seed=1, fixed=None):
        overrides = {**LABELED, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}, **(fixed or {})}
        space = parse_space(space or {"learning_rate": [0.1, 0.2]})
        return sweeps._plan("BPR", "tiny", "warm", space, how, seed, overrides, "dataset").depends_on

    same = hashed()
    assert same == hashed() == hashed(fixed={"show_progress": True, "checkpoint_dir": "elsewhere"})
    changed = [hashed({"learning_rate": [0.1]}), hashed(how="random"), hashed(seed=2), hashed(fixed={"epochs": 9})]
    test = market.split("warm", "test")
    test.write_text(test.read_text() + "u1\ti1\t1\n")
    changed.append(hashed())
    monkeypatch.setattr(sweeps, "_code_hash", lambda model: "other")
    changed.append(hashed())
    assert len({same, *changed}) == 7


def test_all_searched_files_count(market):
    """Of a searched generator every value's JDs, of searched stages every stage's pairs."""

    def hashed(space):
        return sweeps._plan("BIGRec", "tiny", "warm", parse_space(space), "grid", 1, LABELED, "dataset").depends_on

    for space, path in (
        ({"generator": ["sft", "ppo"]}, market.gdoc("ppo")),
        ({"train_stages": [[], ["reward"]]}, market.stage("reward")),
    ):
        path.write_text("a")
        before = hashed(space)
        path.write_text("b")
        assert hashed(space) != before


def test_language_models_that_are_searched_count_each(market, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "model.safetensors").write_text("some")
    space = parse_space({"ftllm_base": [str(folder) for folder in folders]})

    def hashed():
        return sweeps._plan("FTLLM", "tiny", "warm", space, "grid", 1, LABELED, "dataset").depends_on

    made = {hashed()}
    for folder in folders:
        (folder / "model.safetensors").write_text(f"others of {folder.name}")
        made.add(hashed())
    assert len(made) == 3


def test_what_ft_llm_reads_of_other_stages_counts_and_can_be_searched(market):
    def hashed(space, **fixed):
        overrides = {**LABELED, "ftllm_base": "tiny", **fixed}
        return sweeps._plan("FTLLM", "tiny", "warm", parse_space(space), "grid", 1, overrides, "dataset").depends_on

    made = {hashed({"learning_rate": [1e-4]}, **fixed) for fixed in ({}, {"max_cv_tokens": 64}, {"lora_rank": 8})}
    made.add(hashed({"lora_rank": [0, 8]}))
    assert len(made) == 4


def test_code_that_a_run_can_import(tmp_path, monkeypatch):
    found = set()
    monkeypatch.setattr(sweeps, "_source", lambda module, real=sweeps._source: found.add(real(module)) or real(module))
    sweeps._code_hash("GIRLEnhancedMLP")
    names = {path.name for path in found if path}
    assert {"run.py", "trainer.py", "dataset.py", "two_tower.py", "metrics.py"} <= names
    assert not {"cli.py", "sweep.py", "ppo.py"} & names


# ------------------------------------------------------------------------------------------- files and the command line


def test_shipped_sweep_files():
    said = documented_keys("sweep.yaml")
    assert [key for key, _, _ in said] == list(load_properties(properties_file("sweep.yaml")))
    files = sorted(properties_file("sweep.yaml").parent.glob("sweep/*.yaml"))
    assert [path.stem for path in files] == ["GIRLBaseMLP", "GIRLEnhancedMLP", "quick"]
    for path in files:
        assert read_sweep(path) == read_sweep(Path(path.stem))
    base, enhanced, quick = map(read_sweep, files)
    assert (base.space, base.trials, base.search) == (enhanced.space, enhanced.trials, enhanced.search)
    assert size(quick.space) == 4


def test_layers_of_a_sweep(tmp_path):
    (tmp_path / "more.yaml").write_text("epochs: 3\nlearning_rate: 0.5\n")
    (tmp_path / "s.yaml").write_text(
        "model: BPR\nspace: {embedding_size: [1e1, 2]}\nfixed: {epochs: 4}\n"
        f"config_files: ['{tmp_path}/more.yaml']\n"
    )
    config = read_sweep(tmp_path / "s.yaml", {"trials": 7}, fixed={"stopping_step": 2})
    assert config.fixed == {"epochs": 4, "learning_rate": 0.5, "stopping_step": 2}
    assert (config.trials, config.model, config.space["embedding_size"].values) == (7, "BPR", (10.0, 2))
    (tmp_path / "p.hyper").write_text("learning_rate loguniform -8,0\n")
    assert read_sweep(tmp_path / "p.hyper", {"model": "BPR"}) == read_sweep(
        None, {"model": "BPR"}, params_file=tmp_path / "p.hyper"
    )
    with pytest.raises(ConfigError, match=r"no such sweep file - did you mean 'quick'\?; shipped: GIRLBaseMLP"):
        read_sweep(Path("quik"))


def test_the_command(tmp_path, monkeypatch, capsys):
    from girl_recbole import cli

    seen = []
    report = {
        "model": "BPR",
        "best": {"trial": 3, "settings": {"learning_rate": 0.123}},
        "best_trials": [{"trial": 3, "score": 0.9, "learning_rate": 0.123}],
        "test": {"auc": "0.7 ± 0.1"},
        "final": [{"config": "long"}],
    }
    monkeypatch.setattr(sweeps, "sweep", lambda config, **more: seen.append((config, more)) or [report])

    def girl(*arguments):
        monkeypatch.setattr("sys.argv", ["girl", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0

    assert girl("sweep", "quick", "GIRLBaseMLP", "--jobs=3", "--seeds", "[5]", "--set", "epochs=9", "--set", "seed=1",
                "--retry-failed") == 0  # fmt: skip
    (quick, more), (base, _) = seen
    assert (quick.jobs, quick.seeds, quick.fixed, more) == (3, [5], {"epochs": 9, "seed": 1}, {"retry_failed": True})
    assert base.model == "GIRLBaseMLP"
    said = capsys.readouterr().out
    assert "0.7 ± 0.1" in said
    assert "0.123" in said
    assert "long" not in said
    (tmp_path / "p.hyper").write_text("learning_rate loguniform -8,0\n")
    assert girl("sweep", f"--params-file={tmp_path / 'p.hyper'}", "--model=BPR", "--trials=2") == 0
    assert seen[-1][0].trials == 2
    assert girl("sweep", "quick", "--trails=2") == 2
    assert "unknown key 'trails' - did you mean 'trials'" in capsys.readouterr().err
    assert girl("sweep") == 2
    assert girl("keys", "sweep") == 0
    assert "--max_failures=5" in capsys.readouterr().out
