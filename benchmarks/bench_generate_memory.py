"""Peak memory of `girl generate` by the number of seekers: everything but the model.

Each size runs in a process of its own: a dataset of short CVs of random words, all different, and an engine that
writes one constant JD for each through the same path (keys, shards, final file, manifest). Then one CV in a hundred is
changed and the same command runs again. What a process holds before it begins (the imports) is given apart; the bytes a
seeker are the slope between the smallest and the largest size.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tqdm

from girl_recbole import generate as module
from girl_recbole.atomic import DatasetFiles, write_docs
from girl_recbole.config import make_config
from girl_recbole.engines.base import Completion
from girl_recbole.generate import GenerateConfig, JDGenerator, generate
from girl_recbole.prompts import make_prompt

_WORDS = ["team", "sales", "nurse", "data", "design", "store", "care", "system", "code", "report", "safety", "plan"]
_JD = "A clinic seeks a nurse. " + "You watch wounds and pay bills. " * 6


class _Constant:
    settings = {"model": "constant"}  # noqa: RUF012

    def complete(self, asked):
        return [[Completion(_JD, True)] for _ in asked]


def _dataset(files, seekers, changed=()):
    changed = set(changed)

    def cvs():
        rng = np.random.default_rng(0)
        for n in range(seekers):
            words = " ".join(rng.choice(_WORDS, 20)) if n % 64 == 0 else words  # noqa: F821 - the one before
            yield f"u{n}", f"{words} {n}{' and more' * (n in changed)}"

    write_docs(files.udoc, cvs(), "user")
    with open(files.inter, "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\tlabel:float\n")
        file.writelines(f"u{n}\tj{n % 999}\t1\n" for n in range(seekers))


def _prepare(files, config):
    prompt = make_prompt("en")
    return None, {**_Constant.settings, "prompt": prompt.id}, JDGenerator(_Constant(), None, prompt, 0, 1, 256)


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _one(seekers, folder):
    """The figures of one size, in this process."""
    module._prepare = _prepare
    files = DatasetFiles(Path(folder) / "toy", "toy")
    config, facts = make_config(GenerateConfig), {"seekers": seekers, "imports_mib": _peak_mib()}
    started = time.perf_counter()
    report = generate(files, config)
    facts |= {"peak_mib": _peak_mib(), "seconds": time.perf_counter() - started, "shards": report["shards"]}
    _dataset(files, seekers, changed=range(0, seekers, 100))
    started = time.perf_counter()
    report = generate(files, config)
    facts |= {"again_peak_mib": _peak_mib(), "again_seconds": time.perf_counter() - started}
    assert report["cvs_written"] == -(-seekers // 100)
    return {name: round(value, 1) for name, value in facts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seekers", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.one:
        logging.disable()
        tqdm.tqdm.monitor_interval = 0
        print(json.dumps(_one(args.one, args.folder)))
        return
    rows = []
    for seekers in args.seekers:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            files = DatasetFiles(Path(folder) / "toy", "toy")
            files.folder.mkdir()
            _dataset(files, seekers)
            command = [sys.executable, __file__, "--one", str(seekers), "--folder", folder]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            rows.append(json.loads(said.stdout))
        print("   ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
    first, last = rows[0], rows[-1]
    for name in ("peak_mib", "again_peak_mib"):
        slope = (last[name] - first[name]) * 2**20 / max(last["seekers"] - first["seekers"], 1)
        print(f"{name}: {slope:.0f} bytes a seeker")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
