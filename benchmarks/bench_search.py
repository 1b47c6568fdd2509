"""Search for the top 100 of many jobs by `girl index` and its kinds: time, recall, memory, bytes.

Jobs      clustered   made from the MiniLM vectors x of 3,000 shipped JDs: unit(unit(a x_i + (1 - a) x_j) + e), i a
                      random job, j one of its ten nearest, a in [.5, 1], e Gaussian of length .3. In a draw of 3,000
                      the nearest, 10th and 100th job have mean cosines of .87, .71, .59; the shipped JDs .82, .72, .60
          gaussian    independent Gaussians, which have no neighbourhoods: not what jobs look like, the worst case
Queries   vectors of generated JDs and of CVs of the shipped market, 1,000 each; 150 others of each tune the
          index. Gaussian jobs: Gaussian queries
Exact     blockwise products in PyTorch; recall = part of the 1,000 x 100 found whose score reaches the true 100th

Every case is a process of its own, with `build` and `Index.load` on files as `girl embed` writes them. Peak memory is
resident memory, pages of the memory-mapped matrix included. Threads: OMP_NUM_THREADS. Prints a table; --json writes it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import MemoryPeak

from girl_recbole.atomic import DatasetFiles, read_docs, read_generated, write_docs, write_table
from girl_recbole.config import make_config
from girl_recbole.encoder import Encoder, encoder_folder, encoder_hash
from girl_recbole.index import Index, IndexConfig, build
from girl_recbole.manifest import file_hash, text_hash, write_manifest
from girl_recbole.shipped import shipped_folder
from girl_recbole.vectors import identity, vectors_folder

_K, _QUERIES, _TUNING, _SINGLE, _BLOCK = 100, 1000, 150, 50, 50_000
_ALL = _QUERIES + _TUNING


def _unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def real_vectors(path):
    """Unit vectors of the shipped market: 3,000 JDs, and 1,150 generated JDs and CVs; kept in the file ``path``."""
    if not path.exists():
        source, rng = shipped_folder("jobrec-sim"), np.random.default_rng(0)
        jds = list(read_docs(source / "jobrec-sim.idoc").values())
        generated = [jds_of[0] for jds_of in read_generated(source / "jobrec-sim.sft.gdoc").values()]
        cvs, encoder, found = list(read_docs(source / "jobrec-sim.udoc").values()), Encoder("minilm"), {}
        for name, texts, count in [("jd", jds, 3000), ("generated", generated, _ALL), ("cv", cvs, _ALL)]:
            found[name] = encoder.encode([texts[i] for i in rng.permutation(len(texts))[:count]])[0]
        np.savez(path, **found)
    with np.load(path) as found:
        return [_unit(found[name]) for name in ("jd", "generated", "cv")]


def made_jobs(count, data, real, rng):
    """(n, 384) float32, block by block."""
    near = np.argpartition(-(real @ real.T), 11, axis=1)[:, :11]
    for at in range(0, count, _BLOCK):
        n = min(_BLOCK, count - at)
        noise = rng.standard_normal((n, real.shape[1]), dtype=np.float32)
        if data == "gaussian":
            yield _unit(noise)
            continue
        i = rng.integers(0, len(real), n)
        j = near[i, rng.integers(0, 11, n)]
        a = rng.uniform(0.5, 1, (n, 1)).astype(np.float32)
        yield _unit(_unit(a * real[i] + (1 - a) * real[j]) + 0.3 * noise / np.sqrt(real.shape[1]))


def plant(folder, count, data, real):
    """A dataset of ``count`` jobs, as `girl embed` leaves it, the vectors that tune, and the queries of the test."""
    files, config, rng = DatasetFiles(folder / "made", "made"), make_config(IndexConfig), np.random.default_rng(0)
    jds, generated, cvs = real
    queries = {"generated": generated, "cv": cvs}
    if data == "gaussian":
        queries = {"gaussian": _unit(rng.standard_normal((_ALL, jds.shape[1])))}
    target = vectors_folder(files, config)
    target.mkdir(parents=True)
    sha256, jobs = encoder_hash(encoder_folder(config.encoder)), made_jobs(count, data, jds, rng)
    tuning = {f"tuning{n}": some[_QUERIES:] for n, some in enumerate(queries.values())}
    for kind, rows, blocks in [("jd", count, jobs), *((k, len(v), [v]) for k, v in tuning.items())]:
        digest = f"{count}-{data}"
        matrix = np.lib.format.open_memmap(target / f"{kind}-{digest}.npy", "w+", np.float16, (rows, jds.shape[1]))
        at = 0
        for block in blocks:
            matrix[at : at + len(block)] = block
            at += len(block)
        matrix.flush()
        ids = [f"j{n}" for n in range(rows)]
        if kind == "jd":
            write_docs(files.idoc, ((name, name) for name in ids), "item")
        column = "item_id" if kind == "jd" else "user_id"
        table = pd.DataFrame({column: ids, "text_hash": [text_hash(name) for name in ids], "truncated": 0})
        types = {column: "token", "text_hash": "token", "truncated": "float"}
        write_table(target / f"{kind}-{digest}.ids", table, types)
        facts = {"digest": digest, "rows": rows, "samples": None, "source_sha256": file_hash(files.idoc)}
        write_manifest(target / kind, "vectors", config={}, **facts, **identity(config, sha256))
    for name, some in queries.items():
        some = some[:_QUERIES]
        np.save(folder / f"queries-{name}.npy", some)
        np.save(folder / f"last-{name}.npy", _exact(np.load(target / f"jd-{count}-{data}.npy", "r"), some))
    return files


def _exact(matrix, queries):
    """The true score of the last of the _K nearest of each query."""
    queries, best = torch.from_numpy(queries).float(), None
    for at in range(0, len(matrix), _BLOCK):
        block = torch.nn.functional.normalize(torch.from_numpy(matrix[at : at + _BLOCK].astype(np.float32)))
        scores = (queries @ block.T).topk(min(_K, len(block)), dim=1).values
        best = scores if best is None else torch.cat([best, scores], dim=1).topk(_K, dim=1).values
    return best[:, -1].numpy()


def _timed(run):
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def case(folder, kind, repeats):
    """One kind on the planted dataset."""
    files, config = DatasetFiles(folder / "made", "made"), make_config(IndexConfig, overrides={"index_kind": kind})
    with MemoryPeak() as building:
        report, build_s, build_cpu_s = _timed(lambda: build(files, config))
    with MemoryPeak() as searching:
        index, load_s, _ = _timed(lambda: Index.load(files, config))
        row = {
            **{key: report.get(key) for key in ("index", "jobs", "nlist", "nprobe", "ef_search", "recall", "bytes")},
            "build_s": build_s, "build_cpu_s": build_cpu_s, "load_s": load_s,
        }  # fmt: skip
        for path in sorted(folder.glob("queries-*.npy")):
            name, queries = path.stem.removeprefix("queries-"), np.load(path)
            last = np.load(folder / f"last-{name}.npy")
            times = []
            for _ in range(repeats):
                (scores, _), wall, cpu = _timed(lambda queries=queries: index.search(queries, _K))
                times.append((wall, cpu))
            single = [_timed(lambda n=n, q=queries: index.search(q[n : n + 1], 10))[1:] for n in range(_SINGLE)]
            row[name] = {
                "recall": float((scores >= last[:, None] - 1e-6).mean()),
                "wall_s": [round(wall, 3) for wall, _ in times],
                "cpu_s": [round(cpu, 3) for _, cpu in times],
                "one_query_cpu_ms": 1e3 * statistics.median(cpu for _, cpu in single),
                "one_query_ms": 1e3 * statistics.median(wall for wall, _ in single),
            }
    return row | {"build_peak_mib": building.mib, "search_peak_mib": searching.mib}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", "ivf", "hnsw"])
    parser.add_argument("--data", choices=["clustered", "gaussian"], default="clustered")
    parser.add_argument("--repeats", type=int, default=3, help="searches of each 1,000 queries")
    parser.add_argument("--vectors", type=Path, default=Path("minilm.npz"), help="made if it is not there; minutes")
    parser.add_argument("--json")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # folder and kind: the process of one case
    args = parser.parse_args()
    if args.case:
        print("RESULT " + json.dumps(case(Path(args.case[0]), args.case[1], args.repeats)))
        return
    real, rows = real_vectors(args.vectors), []
    print(f"{'jobs':>8} {'kind':<5}{'build s':>9}{'cpu s':>8}{'peak MiB':>10}{'MiB on disk':>12}  {'queries':<10}"
          f"{'recall':>7}{'1,000 s':>9}{'cpu s':>8}{'one ms':>8}  (top {_K}; one: top 10)", flush=True)  # fmt: skip
    for count in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            plant(Path(folder), count, args.data, real)
            for kind in args.kinds:
                command = [sys.executable, __file__, "--case", folder, kind, "--repeats", str(args.repeats)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row = json.loads(done.stdout.rpartition("RESULT ")[2])
                rows.append(
                    row | {"data": args.data, "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))}
                )
                peak = max(row["build_peak_mib"], row["search_peak_mib"])
                head = f"{count:>8} {kind:<5}{row['build_s']:>9.1f}{row['build_cpu_s']:>8.1f}{peak:>10.0f}"
                head += f"{row['bytes'] / 2**20:>12.0f}"
                for name in ("generated", "cv", "gaussian"):
                    if found := row.get(name):
                        wall, cpu = statistics.median(found["wall_s"]), statistics.median(found["cpu_s"])
                        print(f"{head}  {name:<10}{found['recall']:>7.4f}{wall:>9.2f}{cpu:>8.2f}"
                              f"{found['one_query_cpu_ms']:>8.2f}", flush=True)  # fmt: skip
                        head = " " * len(head)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
