"""The tables of docs/results: Base and Enhanced scorers, their controls, the prior and the oracle, over seeds.

    python benchmarks/results_table.py jobrec-sim --seeds 1 2 3 4 5 --splits warm cold --markdown docs/results/jobrec-sim.md

Seed s redraws the split (``girl split`` with split_seed s and suffix s<s>, so that warm, which is cut by time, stays the
same cut and cold draws other seekers), the initialisation, the order of the batches and the dropout. The generator and
its JDs are the same for every seed. Every run is one line of the results file, and a run that is there is not done
again: kill the script and start it anew at any time.

Rows are compared in pairs (same split, same seed). An interval is the 95 % t-interval of the mean over seeds. It does
not contain the error of a finite test set, which hits all rows of one split alike; that is what the pairs are for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
from scipy import stats

ROWS: dict[str, tuple[str, dict]] = {
    "Base MLP": ("GIRLBaseMLP", {}),
    "Enhanced MLP, generated JD": ("GIRLEnhancedMLP", {}),
    "control: the CV again": ("GIRLEnhancedMLP", {"generated": "cv"}),
    "control: another seeker's JD": ("GIRLEnhancedMLP", {"generated": "shuffled"}),
    "control: zeros": ("GIRLEnhancedMLP", {"generated": "zeros"}),
    "Base Dot": ("GIRLBaseDot", {}),
    "Base Dot with an MLP on the CV": ("GIRLBaseDot", {"cv_mlp": True}),
    "Enhanced Dot, generated JD": ("GIRLEnhancedDot", {}),
    "control (Dot): the CV again": ("GIRLEnhancedDot", {"generated": "cv"}),
    "control (Dot): another seeker's JD": ("GIRLEnhancedDot", {"generated": "shuffled"}),
    "control (Dot): zeros": ("GIRLEnhancedDot", {"generated": "zeros"}),
}
PAIRS = (
    ("Enhanced MLP, generated JD", "Base MLP"),
    ("Enhanced MLP, generated JD", "control: the CV again"),
    ("Enhanced MLP, generated JD", "control: another seeker's JD"),
    ("Enhanced Dot, generated JD", "Base Dot"),
    ("Enhanced Dot, generated JD", "Base Dot with an MLP on the CV"),
    ("Enhanced Dot, generated JD", "control (Dot): the CV again"),
    ("Enhanced Dot, generated JD", "control (Dot): another seeker's JD"),
)
METRICS = ("auc", "logloss", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--data-path", default="dataset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--splits", nargs="+", default=["warm", "cold"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--results", type=Path, default=None, help="default: saved/results-DATASET.jsonl")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables here as well")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides for every run")
    arguments = parser.parse_args()

    from girl_recbole.config import parse_overrides

    extra = parse_overrides([f"--{item}" for item in arguments.set])
    results = arguments.results or Path("saved") / f"results-{arguments.dataset}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    _make_splits(arguments)
    wanted = [(row, split, seed) for seed in arguments.seeds for split in arguments.splits for row in ROWS]
    done = _read(results, extra)
    missing = [key for key in wanted if key not in done]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {results}; {len(missing)} to go")
    if missing:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(arguments.jobs, context, initializer=_one_thread) as pool:
            pending = {pool.submit(_run, arguments.dataset, arguments.data_path, *key, extra): key for key in missing}
            for count, future in enumerate(concurrent.futures.as_completed(pending), start=1):
                line = future.result()
                with open(results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"[{count}/{len(missing)}] {line['split']} seed {line['seed']} {line['row']}: "
                      f"AUC {line['test']['auc']:.4f} in {line['seconds']:.0f} s", flush=True)  # fmt: skip
        done = _read(results, extra)
    text = _tables(arguments, done)
    print(text)
    if arguments.markdown:
        from girl_recbole.atomic import atomic_write

        with atomic_write(arguments.markdown) as file:
            file.write(text)


def _make_splits(arguments) -> None:
    from girl_recbole.atomic import DatasetFiles
    from girl_recbole.config import make_config
    from girl_recbole.splits import SplitConfig, split

    files = DatasetFiles(Path(arguments.data_path) / arguments.dataset, arguments.dataset)
    for name in arguments.splits:
        for seed in arguments.seeds:
            if not files.split(f"{name}-s{seed}", "test").exists():
                overrides = {"split": name, "split_seed": seed, "split_suffix": f"s{seed}"}
                split(files, make_config(SplitConfig, dataset=arguments.dataset, overrides=overrides))


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)


def _run(dataset: str, data_path: str, row: str, split: str, seed: int, extra: dict) -> dict:
    import logging
    import time

    import girl_recbole  # noqa: F401 - registers our models in this process
    from girl_recbole.run import run_experiment

    logging.disable(logging.INFO)
    model, options = ROWS[row]
    overrides = {"split": f"{split}-s{seed}", "seed": seed, "data_path": data_path, "show_progress": False,
                 **options, **extra}  # fmt: skip
    begin = time.perf_counter()
    result = run_experiment(model, dataset, overrides=overrides)
    keep = ("test", "valid", "prior", "oracle", "commit", "data")
    return {"row": row, "split": split, "seed": seed, "extra": extra, "seconds": time.perf_counter() - begin,
            **{key: result.get(key) for key in keep}}  # fmt: skip


def _read(results: Path, extra: dict) -> dict[tuple[str, str, int], dict]:
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {(line["row"], line["split"], line["seed"]): line for line in lines if line["extra"] == extra}


def _tables(arguments, done: dict[tuple[str, str, int], dict]) -> str:
    out = [f"# Results on {arguments.dataset}", "", f"{len(arguments.seeds)} seeds. Mean ± half of the 95 % t-interval over seeds.", ""]  # fmt: skip
    for split in arguments.splits:
        out += [f"## {split}", "", "| row | AUC | LogLoss | ECE |", "|---|---|---|---|"]
        for row in ROWS:
            lines = [done[row, split, seed] for seed in arguments.seeds]
            out.append(
                f"| {row} | " + " | ".join(_interval([line["test"][m] for line in lines]) for m in METRICS) + " |"
            )
        for reference in ("prior", "oracle"):
            values = [done[next(iter(ROWS)), split, seed][reference] for seed in arguments.seeds]
            if all(values):
                cells = [_interval([value[m] for value in values]) if m in values[0] else "" for m in METRICS]
                out.append(f"| *{reference}* | " + " | ".join(cells) + " |")
        out += ["", "| paired difference in AUC | mean ± 95 % | p (paired t) | seeds above 0 |", "|---|---|---|---|"]
        for a, b in PAIRS:
            gaps = np.array(
                [done[a, split, s]["test"]["auc"] - done[b, split, s]["test"]["auc"] for s in arguments.seeds]
            )
            p = stats.ttest_1samp(gaps, 0).pvalue if len(gaps) > 1 and gaps.std() > 0 else float("nan")
            out.append(f"| {a} − {b} | {_interval(gaps, '+.4f')} | {p:.3g} | {(gaps > 0).sum()} of {len(gaps)} |")
        out.append("")
    return "\n".join(out)


def _interval(values, form: str = ".4f") -> str:
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return format(values.mean(), form)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{form}} ± {half:.4f}"


if __name__ == "__main__":
    main()
