"""Training: vectors gathered by id from one row a seeker and a job, against vectors carried in every interaction.

Both run RecBole's loader and trainer on the same pairs, with the shipped settings of GIRLBaseMLP and random vectors;
the carried one has the columns cv and jd, (pairs, width), in its interactions. Each runs in a process of its own, in
turn, several times; the table has medians. Peak memory is of the process, from reading the pairs to the last batch
(importing PyTorch and RecBole is given apart). --pairs 1000000 --only gathered measures one large run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def _child(folder, variant, width, epochs):
    import torch
    from common import MemoryPeak, random_vectors
    from recbole.config import Config
    from recbole.data import data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    from girl_recbole.dataset import GIRLDataset
    from girl_recbole.models.two_tower import GIRLBaseMLP

    class Vectors(GIRLDataset):
        def vectors(self, kind, n_samples=1):
            return random_vectors((self.item_num if kind == "jd" else self.user_num) - 1, width, seed=len(kind))

    class Carried(GIRLBaseMLP):
        def _user_side(self, ids):
            return (self._batch["cv"] - self.cv_mean) / self.cv_spread

        def _item_side(self, ids):
            return (self._batch["jd"] - self.jd_mean) / self.jd_spread

        def logits(self, interaction):
            self._batch = interaction
            return super().logits(interaction)

    with MemoryPeak() as base:
        settings = {
            "data_path": str(Path(folder).parent), "checkpoint_dir": str(folder), "show_progress": False,
            "use_gpu": False, "state": "ERROR",
        }  # fmt: skip
        config = Config("GIRLBaseMLP", "bench", config_dict=settings, arguments=[])
    with MemoryPeak() as peak:
        dataset = Vectors(config)
        loaders = data_preparation(config, dataset)
        train = loaders[0]
        if variant == "carried":
            inter = train._dataset.inter_feat
            for kind, field in (("cv", "user_id"), ("jd", "item_id")):
                table = train._dataset.vectors(kind)
                inter[kind] = inter[field].new_empty((len(inter), width), dtype=torch.float32)
                for at in range(0, len(inter), 8192):
                    inter[kind][at : at + 8192].copy_(torch.from_numpy(table[inter[field][at : at + 8192]]))
        init_seed(0, True)
        model = (Carried if variant == "carried" else GIRLBaseMLP)(config, train._dataset)
        if variant == "carried":
            for kind in model.rows.buffers_of_rows:
                setattr(model.rows, kind, None)
        trainer = Trainer(config, model)
        seconds = []
        for epoch in range(epochs):
            started = time.perf_counter()
            trainer._train_epoch(train, epoch)
            seconds.append(time.perf_counter() - started)
    rate = len(train._dataset) / statistics.median(seconds)
    print(json.dumps({"samples_per_s": rate, "peak_mib": peak.mib, "import_mib": base.mib}))


def _write(folder, users, items, pairs):
    from girl_recbole.atomic import DatasetFiles, write_interactions

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": rng.integers(0, users, pairs), "item_id": rng.integers(0, items, pairs)}).astype(
        str
    )
    frame["label"] = (rng.random(pairs) < 0.3).astype(float)
    write_interactions(DatasetFiles(folder, "bench").inter, frame)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("gathered", "carried"))
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(Path(args.child[0]), args.child[1], args.width, args.epochs)
        return
    variants = [args.only] if args.only else ["gathered", "carried"]
    measured = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bench"
        _write(folder, args.users, args.items, args.pairs)
        for _ in range(args.repeats):
            for variant in variants:
                command = [sys.executable, __file__, "--child", str(folder), variant]
                command += ["--width", str(args.width), "--epochs", str(args.epochs)]
                done = subprocess.run(command, capture_output=True, text=True, cwd=temporary, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                measured[variant].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {
        variant: {key: statistics.median(one[key] for one in several) for key in several[0]}
        for variant, several in measured.items()
    }
    print(f"{args.pairs} pairs, {args.users} seekers, {args.items} jobs, vectors of {args.width}")
    print(f"{'variant':<10}{'samples/s':>12}{'peak MiB':>10}{'of it imports':>15}")
    for variant, row in rows.items():
        print(f"{variant:<10}{row['samples_per_s']:>12.0f}{row['peak_mib']:>10.0f}{row['import_mib']:>15.0f}")
    if len(rows) == 2:
        speed = rows["gathered"]["samples_per_s"] / rows["carried"]["samples_per_s"]
        memory = rows["carried"]["peak_mib"] / rows["gathered"]["peak_mib"]
        print(f"gathered is {speed:.2f} x as fast and carried takes {memory:.2f} x the memory")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
