"""RecBole at scale: reading the pairs, an epoch of GIRLEnhancedDot, full ranking of some seekers; time and memory.

The data are made here: seekers and jobs have one of --trades trades, their short texts name it, and pairs are --seekers
times --pairs-a-seeker, half of them of one trade; 9 in 10 of those are matched, and 1 in 10 of the others. Vectors come
from `girl embed` with a BERT of one layer and random weights, made here too: its vectors are as wide as MiniLM's, and
it is cheap. Texts repeat (at most --texts different ones a kind), so each is encoded once. --dataset FOLDER takes a
dataset that is there (texts, generated JDs, split warm) and its --encoder.

Each step runs in a process of its own, as run_recbole does it:

    load     RecBole's dataset from the three parts of the split, its loaders, the model with its vectors
    train    the same, then one epoch of the training part, then AUC of the validation part
    rank     the same with eval_args: {mode: full}: the seekers of the test part (--rank) over all jobs, the
             validation part being one pair
    stock    RecBole's own Dataset (its own reader of .inter) and loaders on the same files; no model

A row of the table is one phase: wall and CPU seconds, the most memory resident until its end (of the process, imports
included), what it did.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_WORDS = 400  # the vocabulary of the texts beside the trades
_GIB = 2**20  # KiB


# ------------------------------------------------------------------------------------------------------------ the data


def _encoder(folder, trades, width):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"t{n}" for n in range(trades)), *(f"w{n}" for n in range(_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def _texts(rng, trade, different):
    """One text an entity: its trade twice and four words, of at most ``different`` texts."""
    words = rng.integers(0, _WORDS, (max(different // 100, 1), 4))
    which = rng.integers(0, len(words), len(trade))
    tails = [" ".join(f"w{n}" for n in row) for row in words]
    return (f"t{t} t{t} {tails[w]}" for t, w in zip(trade.tolist(), which.tolist(), strict=True))


def _write_pairs(path, users, items, labels):
    """An .inter file, by columns: a data frame of words would be the largest thing in this benchmark."""
    import pyarrow as pa
    from pyarrow import csv

    with open(path, "wb") as file:
        file.write(b"user_id:token\titem_id:token\tlabel:float\n")
        for at in range(0, len(users), 1 << 20):
            part = slice(at, at + (1 << 20))
            columns = [
                pa.array(np.char.add("u", users[part].astype("U8"))),
                pa.array(np.char.add("j", items[part].astype("U8"))),
                pa.array(labels[part].astype(np.int8)),
            ]
            options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            csv.write_csv(pa.table(columns, names=["user_id", "item_id", "label"]), file, options)


def make(folder, args):
    """The dataset ``scale``, whose training part lacks the seekers of the test part."""
    from girl_recbole.atomic import DatasetFiles, write_docs, write_generated

    files, rng = DatasetFiles(folder / "scale", "scale"), np.random.default_rng(0)
    files.folder.mkdir(parents=True)
    user_trade, item_trade = rng.integers(0, args.trades, args.seekers), rng.integers(0, args.trades, args.jobs)
    write_docs(files.udoc, ((f"u{n}", t) for n, t in enumerate(_texts(rng, user_trade, args.texts))), "user")
    write_docs(files.idoc, ((f"j{n}", t) for n, t in enumerate(_texts(rng, item_trade, args.texts))), "item")
    write_generated(files.gdoc("sft"), ((f"u{n}", 0, t) for n, t in enumerate(_texts(rng, user_trade, args.texts))))
    pairs = args.seekers * args.pairs_a_seeker
    users = np.repeat(np.arange(args.seekers, dtype=np.int32), args.pairs_a_seeker)
    by_trade = np.argsort(item_trade, kind="stable")
    start = np.searchsorted(item_trade[by_trade], np.arange(args.trades + 1))
    low, high = start[user_trade[users]], start[user_trade[users] + 1]
    same = (rng.random(pairs) < 0.5) & (high > low)
    items = np.where(same, by_trade[low + (rng.random(pairs) * (high - low)).astype(np.int64)], 0).astype(np.int32)
    items[~same] = rng.integers(0, args.jobs, (~same).sum())
    related = user_trade[users] == item_trade[items]
    labels = rng.random(pairs) < np.where(related, 0.9, 0.1)
    part = np.zeros(args.seekers, np.int8)  # seekers: 0 train, 1 valid, 2 test
    others = rng.permutation(args.seekers)
    part[others[: args.rank]] = 2
    part[others[args.rank : args.rank + max(args.seekers // 100, 1)]] = 1
    order = rng.permutation(pairs).astype(np.int32)
    users, items, labels = users[order], items[order], labels[order]
    for number, name in enumerate(("train", "valid", "test")):
        rows = part[users] == number
        _write_pairs(files.split("warm", name), users[rows], items[rows], labels[rows])
    one = np.flatnonzero(labels & (part[users] == 1))[:1]
    _write_pairs(files.split("warm-one", "valid"), users[one], items[one], labels[one])
    for name in ("train", "test"):
        shutil.copy(files.split("warm", name), files.split("warm-one", name))
    return pairs


# ----------------------------------------------------------------------------------------------- one step in a process


class _Phases:
    """``with phases("read"): ...`` prints and keeps a row."""

    def __init__(self, step):
        self.step, self.rows = step, []
        self.peak = _peak()

    def __call__(self, name):
        self.name, self.note = name, ""
        return self

    def __enter__(self):
        self.started = time.perf_counter(), time.process_time()

    def __exit__(self, kind, *_):
        if kind is None:
            wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
            self.add(self.name, wall, cpu, self.note)

    def add(self, name, wall, cpu, note=""):
        row = {"step": self.step, "phase": name, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}
        row |= {"peak_gib": round(_peak() / _GIB, 2), "now_gib": round(_resident() / _GIB, 2), "note": note}
        self.rows.append(row)
        print(json.dumps(row), flush=True)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**10


def step(name, folder, args):
    import torch
    from recbole.data import create_dataset, data_preparation
    from recbole.data.dataset import Dataset
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    from girl_recbole.models.two_tower import GIRLEnhancedDot
    from girl_recbole.recbole_config import Config

    torch.set_num_threads(args.threads)
    dataset = folder.name
    phases = _Phases(name)
    phases.add("imports", time.perf_counter() - _STARTED, time.process_time())
    settings = {
        "data_path": str(folder.parent), "checkpoint_dir": str(folder / "saved"), "show_progress": False,
        "use_gpu": False, "state": "ERROR", "encoder": args.encoder, "auto_embed": False, "calibrate": False,
        "train_batch_size": args.batch, "reproducibility": False,
    }  # fmt: skip
    if name == "rank":
        settings |= {
            "eval_args": {"mode": "full"}, "metrics": ["Recall", "NDCG"], "topk": [100], "valid_metric": "NDCG@100",
            "eval_batch_size": args.scores, "split": args.rank_split,
        }  # fmt: skip
    config = Config("GIRLEnhancedDot", dataset, config_dict=settings, arguments=[])
    init_seed(config["seed"], config["reproducibility"])
    with phases("read and number"):
        data = (Dataset if name == "stock" else create_dataset)(config)
        phases.note = f"{len(data.inter_feat)} pairs, {data.user_num - 1} seekers, {data.item_num - 1} jobs"
    with phases("parts, loaders"):
        train, valid, test = data_preparation(config, data)
    if name == "stock":
        return
    with phases("model, vectors"):
        model = GIRLEnhancedDot(config, train._dataset)
        phases.note = f"vectors of {model.rows.dimension}"
    trainer = Trainer(config, model)
    if name == "train":
        with phases("epoch"):
            loss = trainer._train_epoch(train, 0)
            phases.note = f"{len(train._dataset)} pairs, batch {args.batch}, mean loss {loss / len(train):.4f}"
        rows = phases.rows[-1]
        print(json.dumps({"pairs_per_s": round(len(train._dataset) / rows["wall_s"])}))
        with phases("valid, labelled"):
            result = trainer.evaluate(valid, load_best_model=False)
            phases.note = f"{len(valid._dataset)} pairs, {dict(result)}"
    if name == "rank":
        with phases("first batch"):
            model.eval()
            with torch.no_grad():
                model.full_sort_predict(next(iter(test))[0])
        with phases("full ranking"):
            result = trainer.evaluate(test, load_best_model=False)
            phases.note = f"{test.sample_size} seekers, {test.step} at a time, {dict(result)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seekers", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--pairs-a-seeker", type=int, default=20)
    parser.add_argument("--texts", type=int, default=50_000, help="different texts of a kind, at most")
    parser.add_argument("--trades", type=int, default=100)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rank", type=int, default=1000, help="seekers of the test part")
    parser.add_argument("--scores", type=int, default=16_000_000, help="eval_batch_size of the ranking")
    parser.add_argument("--batch", type=int, default=256, help="train_batch_size")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--steps", nargs="+", default=["load", "train", "rank"])
    parser.add_argument("--dataset", type=Path, help="the folder of a dataset instead of one made here")
    parser.add_argument("--encoder", default="minilm", help="with --dataset: the encoder of its vectors")
    parser.add_argument("--folder", type=Path, help="where the data are made and kept; default: a temporary folder")
    parser.add_argument("--json")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rank_split = "warm" if args.dataset else "warm-one"
    if args.step:
        args.rank_split = os.environ["BENCH_RANK_SPLIT"]
        step(args.step, args.dataset, args)
        return
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        folder = Path(args.folder or temporary).resolve()
        dataset = args.dataset.resolve() if args.dataset else folder / "scale"
        encoder = args.encoder if args.dataset else str(folder / "encoder")
        if not dataset.exists():
            started = time.perf_counter()
            pairs = make(folder, args)
            _encoder(encoder, args.trades, args.width)
            print(
                f"made {args.seekers} seekers, {args.jobs} jobs, {pairs} pairs: {time.perf_counter() - started:.0f} s"
            )
        command = [Path(sys.executable).parent / "girl", "embed", dataset.name, "--data-path=.", "--embed_all=true"]
        started = time.perf_counter()
        subprocess.run([*command, f"--encoder={encoder}"], check=True, cwd=dataset.parent, stdout=subprocess.DEVNULL)
        print(f"vectors: {time.perf_counter() - started:.0f} s")
        rows = []
        for name in args.steps:
            command = [sys.executable, __file__, *sys.argv[1:], "--step", name]
            command += ["--dataset", str(dataset), "--encoder", encoder]
            environment = os.environ | {"BENCH_RANK_SPLIT": args.rank_split}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=dataset.parent, env=environment)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                print(f"{name}: ended with {done.returncode}")
            rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


_STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
