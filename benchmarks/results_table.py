"""The tables of docs/results: Base and Enhanced scorers, their controls, the prior and the oracle, over seeds.

    python benchmarks/results_table.py jobrec-sim --splits warm cold --markdown docs/results/jobrec-sim.md

    python benchmarks/results_table.py jobrec-sim --generators sft=sft-s{seed} ppo=ppo-s{seed} --markdown FILE

The second form has a row for each generator and model instead: the JDs of NAME.<generator>.gdoc, where ``{seed}`` in a
generator's name is the seed of the row, so that the intervals speak of other generators too. Each row is compared with
the base and with the first generator.

Seed s redraws the split (``girl split`` with split_seed s and suffix s<s>; warm, which is cut by time, stays the same
cut, cold draws other seekers), the initialisation, the order of the batches and the dropout. In the first form the
generator and its JDs are the same for every seed, so no interval speaks of another generator. Every run is one line of
the results file and one file of test scores; a run that is there, of the same code and data, is not done again: kill
the script and start it anew at any time.

Interval of a row: the 95 % t-interval of its mean over seeds. Interval of a difference: both rows are scored on the
same test pairs of the same seeds; girl_recbole/comparison.py has the formula, which holds the spread between seeds and
the error of a finite test set.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np

from girl_recbole.comparison import interval, paired_difference

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
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="only these rows"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--results", type=Path, default=None, help="default: saved/results-DATASET.jsonl")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables here as well")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides for every run")
    parser.add_argument("--generators", nargs="+", default=[], metavar="label=name", help="rows by generator")
    parser.add_argument("--models", nargs="+", default=["MLP", "Dot"], choices=["MLP", "Dot"], help="with --generators")
    arguments = parser.parse_args()
    rows, pairs = (
        (ROWS, PAIRS)
        if not arguments.generators
        else generator_rows(dict(item.split("=", 1) for item in arguments.generators), arguments.models)
    )
    if arguments.generators:
        arguments.rows = list(rows)

    from girl_recbole.config import parse_overrides

    extra = parse_overrides([f"--{item}" for item in arguments.set])
    extra = json.loads(json.dumps(extra))  # as it will be read back
    results = arguments.results or Path("saved") / f"results-{arguments.dataset}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    state = _make_splits(arguments)
    wanted = [(row, split, seed) for seed in arguments.seeds for split in arguments.splits for row in arguments.rows]
    done = _read(results, extra, state)
    missing = [key for key in wanted if key not in done]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {results}; {len(missing)} to go")
    if missing:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(arguments.jobs, context, initializer=_one_thread) as pool:
            pending = [
                pool.submit(
                    _run,
                    arguments.dataset,
                    arguments.data_path,
                    rows[key[0]],
                    *key,
                    extra,
                    state,
                    _scores(results, key),
                )
                for key in missing
            ]
            for count, future in enumerate(concurrent.futures.as_completed(pending), start=1):
                line = future.result()
                with open(results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"[{count}/{len(missing)}] {line['split']} seed {line['seed']} {line['row']}: "
                      f"AUC {line['test']['auc']:.4f} in {line['seconds']:.0f} s", flush=True)  # fmt: skip
        done = _read(results, extra, state)
    text = _tables(arguments, pairs, done, results)
    print(text)
    if arguments.markdown:
        from girl_recbole.atomic import atomic_write

        with atomic_write(arguments.markdown) as file:
            file.write(text)


def generator_rows(generators: dict[str, str], models: list[str]) -> tuple[dict, list[tuple[str, str]]]:
    """Rows and comparisons of the second form; ``generators``: label -> name of the generator."""
    rows: dict[str, tuple[str, dict]] = {}
    pairs: list[tuple[str, str]] = []
    first = next(iter(generators))
    for model in models:
        base = f"Base {model}"
        rows[base] = (f"GIRLBase{model}", {})
        for label, name in generators.items():
            row = f"Enhanced {model}, {label}"
            rows[row] = (f"GIRLEnhanced{model}", {"generator": name})
            pairs.append((row, base))
            if label != first:
                pairs.append((row, f"Enhanced {model}, {first}"))
    return rows, pairs


def _make_splits(arguments) -> dict[str, str]:
    """Write the splits that are missing; return what the numbers depend on: version of the code, hash of the data."""
    from girl_recbole.atomic import DatasetFiles
    from girl_recbole.config import make_config
    from girl_recbole.manifest import text_hash
    from girl_recbole.results import code_version, file_hashes
    from girl_recbole.splits import SplitConfig, split

    files = DatasetFiles(Path(arguments.data_path) / arguments.dataset, arguments.dataset)
    for name in arguments.splits:
        for seed in arguments.seeds:
            if not files.split(f"{name}-s{seed}", "test").exists():
                overrides = {"split": name, "split_seed": seed, "split_suffix": f"s{seed}"}
                split(files, make_config(SplitConfig, dataset=arguments.dataset, overrides=overrides))
    read = [files.inter, files.udoc, files.idoc, *sorted(files.folder.glob(f"{files.name}.*.gdoc"))]
    return {"code": code_version(), "data": text_hash(json.dumps(file_hashes(read), sort_keys=True))[:16]}


def _scores(results: Path, key: tuple[str, str, int]) -> Path:
    name = "-".join(map(str, key)).replace(" ", "_").replace("/", "_")
    return results.with_suffix("") / f"{name}.npz"


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)


def _run(
    dataset: str, data_path: str, setting: tuple[str, dict], row: str, split: str, seed: int, extra: dict, state: dict,
    scores: Path,
) -> dict:  # fmt: skip
    import logging
    import time

    import girl_recbole  # noqa: F401 - registers our models in this process
    from girl_recbole.run import run_experiment

    logging.disable(logging.INFO)
    model, options = setting
    options = {key: value.format(seed=seed) if key == "generator" else value for key, value in options.items()}
    overrides = {"split": f"{split}-s{seed}", "seed": seed, "data_path": data_path, "show_progress": False,
                 "results_file": None, **options, **extra}  # fmt: skip
    begin = time.perf_counter()
    result = run_experiment(model, dataset, overrides=overrides)
    _keep_scores(result["checkpoint"], scores)
    os.unlink(result["checkpoint"])
    return {"row": row, "split": split, "seed": seed, "extra": extra, "state": state, "scores": str(scores),
            "seconds": time.perf_counter() - begin, "machine": result["machine"],
            **{key: result[key] for key in ("test", "valid", "prior", "oracle")}}  # fmt: skip


def _keep_scores(checkpoint: str, path: Path) -> None:
    """Seeker, label and probability of every test pair, by the checkpoint as a user would load it."""
    import torch
    from recbole.quick_start import load_data_and_model

    _, model, dataset, _, _, test = load_data_and_model(checkpoint)
    model.eval()
    pairs = test._dataset.inter_feat
    with torch.no_grad():
        probability = model.predict(pairs.to(model.device)).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    users = dataset.id2token(dataset.uid_field, pairs[dataset.uid_field].numpy()).astype(str)
    items = dataset.id2token(dataset.iid_field, pairs[dataset.iid_field].numpy()).astype(str)
    order = np.lexsort((items, users))  # the same order for every model
    label = pairs[dataset.label_field].numpy() > 0.5
    np.savez_compressed(path, user=users[order], label=label[order], probability=probability[order])


def _read(results: Path, extra: dict, state: dict) -> dict[tuple[str, str, int], dict]:
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    same = [line for line in lines if line["extra"] == extra and line["state"] == state]
    return {(line["row"], line["split"], line["seed"]): line for line in same if Path(line["scores"]).exists()}


def _tables(arguments, pairs, done: dict[tuple[str, str, int], dict], results: Path) -> str:
    line = next(iter(done.values()))
    out = [
        f"# Results on {arguments.dataset}",
        "",
        f"Made by `python benchmarks/results_table.py {' '.join(sys.argv[1:])}`",
        f"at commit {line['state']['code'][:12]} on {line['machine']['cores']} cores of {line['machine']['cpu']}.",
        "",
        f"{len(arguments.seeds)} seeds. A row: mean ± half of its 95 % t-interval over seeds. A difference: mean",
        "[95 % interval over seeds and seekers (girl_recbole/comparison.py)], same test pairs for both.",
        "The generator of a row is that of its seed: the intervals speak of other generators too."
        if arguments.generators
        else "One generator throughout: no interval speaks of another one.",
        "No correction for the number of comparisons.",
        "",
    ]
    for split in arguments.splits:
        out += [f"## {split}", "", "| row | AUC | LogLoss | ECE |", "|---|---|---|---|"]
        for row in arguments.rows:
            lines = [done[row, split, seed] for seed in arguments.seeds]
            cells = [interval([line["test"][metric] for line in lines]) for metric in METRICS]
            out.append(f"| {row} | " + " | ".join(cells) + " |")
        for reference in ("prior", "oracle"):
            values = [done[arguments.rows[0], split, seed][reference] for seed in arguments.seeds]
            if all(values):
                cells = [interval([value[m] for value in values]) if m in values[0] else "" for m in METRICS]
                out.append(f"| *{reference}* | " + " | ".join(cells) + " |")
        out += ["", "| difference in AUC | mean [95 %] | seeds above 0 |", "|---|---|---|"]
        for a, b in pairs:
            if a not in arguments.rows or b not in arguments.rows:
                continue
            runs = [[dict(np.load(_scores(results, (row, split, s)))) for s in arguments.seeds] for row in (a, b)]
            gap = paired_difference(*runs)
            bounds = f"[{gap.low:+.4f}, {gap.high:+.4f}]"
            out.append(f"| {a} − {b} | {gap.mean:+.4f} {bounds} | {gap.above} of {gap.seeds} |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    main()
