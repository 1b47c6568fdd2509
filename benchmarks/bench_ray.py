"""`girl generate` by Ray actors against the local engine, same CVs, shards, model and cores.

    local      one process, torch with as many threads as there are workers
    one        one process, one thread
    processes  as many processes of one thread as there are workers, each with its part of the shards, without Ray: the
               most that these cores can do
    ray        as many actors, of one core each

Each in a process of its own, in turn, some rounds. What is timed is what `girl generate` does with a shard: CVs to
prompts, JDs, the shard on disk. JDs a second are from the moment when the first shard is begun until the last one is on
disk, so that start-up is apart: the seconds from the call until the first shard is begun (cluster, processes, imports,
the model; of ``local`` and ``one`` the model alone). The overhead of a shard is the time in which a worker writes
nothing, between the end of a shard and the beginning of its next; what workers wait at the end, when no shard is left,
is given apart. On a busy machine CPU seconds a JD say more than the clock.

Run it where `girl sft NAME` has been run.
"""

import argparse
import functools
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import islice, pairwise
from pathlib import Path

CASES = ("local", "one", "processes", "ray")


class _Timed:
    """A generator that notes when it begins and ends a shard."""

    def __init__(self, generator, notes):
        self.generator, self.notes = generator, notes

    def write(self, cvs):
        begun, cpu = time.time(), time.process_time()
        rows = self.generator.write(cvs)
        with open(self.notes / f"{os.getpid()}", "a") as file:
            file.write(f"{begun} {time.time()} {time.process_time() - cpu}\n")
        return rows


def _make(recipe, notes, threads):
    import torch

    from girl_recbole.generate import make_generator

    if threads:
        torch.set_num_threads(threads)
    return _Timed(make_generator(recipe), notes)


def _write(make, tasks, folder):
    from girl_recbole.shards import Shards

    shards, generator = Shards(folder), make()
    for task in tasks:
        shards.write(task.keys, generator.write(task.cvs))


def _plan(args):
    """The recipe and the shards."""
    from girl_recbole.atomic import DatasetFiles, iter_docs
    from girl_recbole.config import make_config
    from girl_recbole.generate import GenerateConfig, Recipe, Task, cv_room, generator_folder
    from girl_recbole.llm import load
    from girl_recbole.prompts import make_prompt
    from girl_recbole.shards import key_of

    files = DatasetFiles(Path(args.data_path) / args.name, args.name)
    config = make_config(GenerateConfig)
    lm = load(str(generator_folder(args.saved_folder, args.name, args.generator).resolve()), config.lm_dtype)
    prompt = make_prompt(config.prompt_language, lm.tokenizer)
    room = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
    docs = list(islice({cv: user for user, cv in iter_docs(files.udoc)}.items(), args.cvs))
    tasks = []
    for at in range(0, len(docs), args.shard):
        cvs, users = zip(*docs[at : at + args.shard], strict=True)
        tasks.append(Task([key_of(cv) for cv in cvs], list(users), list(cvs)))
    return Recipe(config, "local", prompt, room, lm.name, lm.fingerprint), tasks


def case(name, args):
    """The figures of one case, in this process."""
    import torch

    recipe, tasks = _plan(args)
    with tempfile.TemporaryDirectory() as temporary:
        notes, folder = Path(temporary) / "notes", Path(temporary) / "shards"
        notes.mkdir()
        folder.mkdir()
        called = time.time()
        if name == "ray":
            from girl_recbole.engines.ray import Workers, write_shards
            from girl_recbole.shards import Shards

            shards = Shards(folder)
            workers = Workers(args.workers, 1, None, 0)
            make = functools.partial(_make, recipe, notes, None)
            for task, rows in write_shards(make, tasks, workers, needs_gpu=False, with_cvs=False):
                shards.write(task.keys, rows)
                done = time.time()
        elif name == "processes":
            context = multiprocessing.get_context("spawn")
            make = functools.partial(_make, recipe, notes, 1)
            others = [
                context.Process(target=_write, args=(make, tasks[n :: args.workers], folder))
                for n in range(args.workers)
            ]
            for other in others:
                other.start()
            for other in others:
                other.join()
            done = max(path.stat().st_mtime for path in folder.iterdir())
        else:
            threads = args.workers if name == "local" else 1
            torch.set_num_threads(threads)
            _write(functools.partial(_make, recipe, notes, threads), tasks, folder)
            done = time.time()
        by_worker = {
            path.name: [tuple(map(float, line.split())) for line in path.read_text().splitlines()]
            for path in notes.iterdir()
        }
    spans = [span for spans in by_worker.values() for span in spans]
    assert len(spans) == len(tasks)
    first = min(begun for begun, _, _ in spans)
    gaps = [later - before for spans in by_worker.values() for (_, before, _), (later, _, _) in pairwise(spans)]
    return {
        "start_s": first - called,
        "jds_per_s": sum(len(task.cvs) for task in tasks) / (done - first),
        "cpu_ms_a_jd": 1e3 * sum(cpu for _, _, cpu in spans) / sum(len(task.cvs) for task in tasks),
        "shard_s": statistics.mean(end - begun for begun, end, _ in spans),
        "overhead_ms": 1e3 * statistics.mean(gaps),
        "late_s": max(spans[0][0] for spans in by_worker.values()) - first,
        "idle_at_the_end_s": sum(done - spans[-1][1] for spans in by_worker.values()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="jobrec-sim")
    parser.add_argument("--data-path", default="dataset")
    parser.add_argument("--saved-folder", default="saved")
    parser.add_argument("--generator", default="sft")
    parser.add_argument("--cvs", type=int, default=1024)
    parser.add_argument("--shard", type=int, default=64, help="CVs (gen_shard_size)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--json")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable()
    if args.case:
        print("RESULT " + json.dumps(case(args.case, args)))
        return
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}  # Ray sets it itself
    rows = defaultdict(list)
    for number in range(args.rounds):
        for name in args.cases if number % 2 == 0 else args.cases[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            rows[name].append(json.loads(done.stdout.rpartition("RESULT ")[2]))
            print(number, name, {key: round(value, 3) for key, value in rows[name][-1].items()}, flush=True)
    for name, some in rows.items():
        for key in some[0]:
            values = [row[key] for row in some]
            print(f"{name:<10}{key:<20}{statistics.median(values):>9.4g}{min(values):>9.4g}{max(values):>9.4g}")
    if "ray" in rows:
        for name in rows.keys() - {"ray"}:
            ratios = [a["jds_per_s"] / b["jds_per_s"] for a, b in zip(rows["ray"], rows[name], strict=True)]
            print(f"ray / {name:<10} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
