"""Encoding on two cores: threads of one process, a batch to each (`girl embed`'s way), against as many processes.

Each process has the encoder loaded and half of the texts, cut, sorted and batched by itself with one thread. The two
ways take turns on slices of the same texts; the clock runs from the word to go until the last process is done, start-up
excluded. CPU seconds are those of all processes together.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from bench_embed import make_texts

from girl_recbole.encoder import Encoder


def _work(encoder_name, tasks, results):
    torch.set_num_threads(1)
    encoder = Encoder(encoder_name, device="cpu")
    encoder.encode(["team sales"])
    results.put(None)
    while (texts := tasks.get()) is not None:
        cpu = time.process_time()
        vectors, _ = encoder.encode(texts)
        results.put((len(vectors), time.process_time() - cpu))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--json")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    tasks, results = [context.Queue() for _ in range(args.workers)], context.Queue()
    workers = [context.Process(target=_work, args=(args.encoder, task, results), daemon=True) for task in tasks]
    for worker in workers:
        worker.start()
    torch.set_num_threads(args.workers)
    encoder = Encoder(args.encoder, device="cpu")
    encoder.encode(["team sales"])
    for _ in workers:
        results.get()
    texts = make_texts(args.texts, np.random.default_rng(0))

    def threads(mine):
        cpu = time.process_time()
        encoder.encode(mine)
        return time.process_time() - cpu

    def processes(mine):
        for number, task in enumerate(tasks):
            task.put(mine[number :: args.workers])
        return sum(results.get()[1] for _ in workers)

    rows = []
    for number in range(args.rounds):
        mine, row = texts[number :: args.rounds], {}
        for way in (threads, processes) if number % 2 else (processes, threads):
            started = time.perf_counter()
            row[f"{way.__name__}_cpu_s"] = way(mine)
            row[f"{way.__name__}_s"] = time.perf_counter() - started
        row["threads_over_processes_s"] = row["threads_s"] / row["processes_s"]
        row["threads_over_processes_cpu_s"] = row["threads_cpu_s"] / row["processes_cpu_s"]
        rows.append(row)
    for task in tasks:
        task.put(None)
    print(f"{'':<30}{'median':>10}{'least':>10}{'largest':>10}")
    for key in rows[0]:
        values = [row[key] for row in rows]
        print(f"{key:<30}{statistics.median(values):>10.3g}{min(values):>10.3g}{max(values):>10.3g}")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
