"""PJFNN, APJFNN and BPJFNN side by side with slower ways to compute the same.

Documents of random words in the lengths of jobrec-sim's (items a document, words an item; no two items are equal),
shipped settings unless said, dropout 0. Ratios are of CPU time, median of the rounds; the sides take turns.

loop     forward and backward of one batch against the equations one pair, one item, one word at a time
         (pjf_loops.py); outputs are compared. The loop's time is taken on a few pairs and is proportional to them
lstm     forward and backward of one batch with torch.nn.LSTM on packed sequences in place of models/lstm.py
pairs    PJFNN: training steps against what RecBole-PJF's PJFNN computes, written anew here: every pair encodes both
         documents, padded to 20 items x 30 words; items are the channels of convolutions (5, 1) and (3, 1) or (5, 1)
         over the words of each coordinate; cosine is an MLP of the product. RecBole-PJF itself does not run on this
         RecBole. Its own training encodes a sampled job beside each pair; here it learns from labels, as ours does.
         Both sides read the same documents and have the same width of word vectors
ranking  scores of all jobs for a seeker by full_sort_predict, the jobs encoded before, against predict on pairs in
         batches. jobs_s is what encoding them costs, once; ratio_1000_seekers counts it for 1,000 seekers

Prints a table; --json writes it.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from common import MemoryPeak
from pjf_loops import apjfnn_logits, bpjfnn_logits, pjfnn_logits
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from girl_recbole.config import load_properties, properties_file
from girl_recbole.models import apjfnn, bpjfnn, pjfnn
from girl_recbole.models import lstm as lstm_module

_MODELS = {"PJFNN": pjfnn.PJFNN, "APJFNN": apjfnn.APJFNN, "BPJFNN": bpjfnn.BPJFNN}
_LOOPS = {"PJFNN": pjfnn_logits, "APJFNN": apjfnn_logits, "BPJFNN": bpjfnn_logits}
_ITEMS = {"cv": (8, 15), "jd": (7, 9)}  # items a document
_WORDS = 2500


class _Data:
    """As much of a dataset as a model's constructor asks for."""

    def __init__(self, users, items, pairs):
        rng = np.random.default_rng(0)
        names = [f"w{n}" for n in range(_WORDS)]

        def text(kind):
            counts = 1 + rng.geometric(1 / 8, rng.integers(*_ITEMS[kind], endpoint=True)).clip(1, 28)
            return "\n".join(" ".join(rng.choice(names, n)) for n in counts)

        self._texts = {
            "cv": [[]] + [[text("cv")] for _ in range(users)],
            "jd": [[]] + [[text("jd")] for _ in range(items)],
        }
        self.inter_feat = {
            "user_id": torch.from_numpy(rng.integers(1, users + 1, pairs)),
            "item_id": torch.from_numpy(rng.integers(1, items + 1, pairs)),
            "label": torch.from_numpy((rng.random(pairs) < 0.3).astype(np.float32)),
        }

    def num(self, field):
        return len(self._texts["cv" if field == "user_id" else "jd"])

    def texts(self, kind, n_samples=1):
        return self._texts[kind]

    def batch(self, size, seed=0):
        rows = torch.randperm(len(self.inter_feat["label"]), generator=torch.Generator().manual_seed(seed))[:size]
        return Interaction({name: values[rows] for name, values in self.inter_feat.items()})


def _model(name, data):
    config = {
        **load_properties(properties_file(f"model/{name}.yaml")),
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LABEL_FIELD": "label", "NEG_PREFIX": "neg_",
        "device": torch.device("cpu"), "dropout_prob": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return _MODELS[name](config, data)


def _seconds(run):
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def _compare(fast, slow, rounds, per_slow=1.0):
    """Median seconds of both, and the median of the rounds' ratios, least and largest; ``per_slow`` scales the slow."""
    times = [(_seconds(fast)[0], per_slow * _seconds(slow)[0]) for _ in range(rounds)]
    ratios = sorted(slow_s / fast_s for fast_s, slow_s in times)
    fast_s, slow_s = (statistics.median(column) for column in zip(*times, strict=True))
    spread = {"ratio": statistics.median(ratios), "least": ratios[0], "largest": ratios[-1]}
    return {"fast_s": fast_s, "slow_s": slow_s, **spread}


def _trained(model, logits):
    model.zero_grad()
    logits.square().sum().backward()
    return logits.detach()


def loop(name, data, batch, slow_pairs, rounds):
    model = _model(name, data).eval()  # without BN's statistics of a batch, so that a part of it gives the same
    whole = data.batch(batch)
    part = Interaction({key: values[:slow_pairs] for key, values in whole.interaction.items()})
    ids = part["user_id"], part["item_id"]
    expected = _trained(model, _LOOPS[name](model, *ids))
    gradients = [value.grad.clone() for value in model.parameters()]
    gap = (_trained(model, model.logits(part)) - expected).abs().max().item()
    wrong = [((value.grad - g).abs().max() / g.abs().max().clamp_min(1e-6)).item()
             for value, g in zip(model.parameters(), gradients, strict=True)]  # fmt: skip
    found = _compare(lambda: _trained(model, model.logits(whole)),
                     lambda: _trained(model, _LOOPS[name](model, *ids)), rounds, batch / slow_pairs)  # fmt: skip
    return {"case": "loop", "model": name, "pairs": batch, **found, "difference": gap, "gradient": max(wrong)}


def lstm(name, data, batch, rounds):
    model, pairs, ours = _model(name, data), data.batch(batch), lstm_module._ours

    def fast():
        return _trained(model, model.logits(pairs))

    def slow():
        lstm_module._ours = lstm_module._torchs
        try:
            return fast()
        finally:
            lstm_module._ours = ours

    gap = (fast() - slow()).abs().max().item()
    return {"case": "lstm", "model": name, "pairs": batch, **_compare(fast, slow, rounds), "difference": gap}


class _PairByPair(nn.Module):
    """PJFNN as RecBole-PJF computes it; see the module's docstring."""

    def __init__(self, words, width, items=20):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.kernels = nn.ModuleDict({
            kind: nn.ModuleList([nn.Conv2d(items, items, (k, 1)) for k in kernels])
            for kind, kernels in (("cv", (5, 3)), ("jd", (5, 5)))
        })  # fmt: skip
        self.norms = nn.ModuleDict({k: nn.ModuleList([nn.BatchNorm2d(items) for _ in "12"]) for k in ("cv", "jd")})
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def document(self, kind, words):
        """(B, width) of (B, items, words)."""
        (first, second), (norm, other) = self.kernels[kind], self.norms[kind]
        hidden = functional.max_pool2d(functional.relu(norm(first(self.words(words)))), (2, 1))
        hidden = functional.relu(other(second(hidden))).amax(dim=2)
        return hidden.amax(dim=1) if kind == "cv" else hidden.mean(dim=1)

    def forward(self, cv, jd):
        return self.mlp(self.document("cv", cv) * self.document("jd", jd)).squeeze(1)


def _padded(model, kind):
    """(ids, 20, 30) of word ids."""
    rows = getattr(model, f"{kind}_items")[getattr(model, f"{kind}_rows")][:, :20, :30]
    return functional.pad(rows, (0, 30 - rows.shape[2], 0, 20 - rows.shape[1]))


def pairs(data, batch, rounds):
    model, batch = _model("PJFNN", data), data.batch(batch)
    other = _PairByPair(model.words.num_embeddings, model.words.embedding_dim)
    cvs, jds = _padded(model, "cv"), _padded(model, "jd")
    optimisers = {m: torch.optim.AdamW(m.parameters(), 1e-3) for m in (model, other)}

    def step(which, logits):
        optimisers[which].zero_grad()
        functional.binary_cross_entropy_with_logits(logits, batch["label"]).backward()
        optimisers[which].step()

    def fast():
        step(model, model.logits(batch))

    def slow():
        step(other, other(cvs[batch["user_id"]], jds[batch["item_id"]]))

    fast(), slow()
    distinct = {side: len(torch.unique(batch[f"{side}_id"])) for side in ("user", "item")}
    return {
        "case": "pairs",
        "model": "PJFNN",
        "pairs": len(batch),
        "distinct": distinct,
        **_compare(fast, slow, rounds),
    }


@torch.no_grad()
def ranking(name, data, seekers, slow_seekers, batch, rounds):
    model = _model(name, data).eval()
    count = model.n_items - 1

    def jobs():
        model._items_kept = None
        model.encoded_items()

    def fast():
        for user in range(1, seekers + 1):
            scores = model.full_sort_predict(Interaction({"user_id": torch.tensor([user])}))
        return scores[1:]

    def slow():
        for user in range(seekers - slow_seekers + 1, seekers + 1):
            parts = torch.arange(1, count + 1).split(batch)
            scores = torch.cat([model.predict(Interaction({"user_id": torch.full_like(part, user), "item_id": part}))
                                for part in parts])  # fmt: skip
        return scores

    with MemoryPeak() as peak:
        jobs_s = statistics.median(_seconds(jobs)[0] for _ in range(rounds))
        last = fast()
    gap = (last - slow()).abs().max().item()
    found = _compare(fast, slow, rounds, seekers / slow_seekers)
    found["fast_s"], found["slow_s"] = found["fast_s"] / seekers, found["slow_s"] / seekers
    many = found["slow_s"] / (found["fast_s"] + jobs_s / 1000)
    facts = {"seekers": seekers, "jobs": count, "difference": gap, "peak_mib": round(peak.mib)}
    return {"case": "ranking", "model": name, **facts, **found, "jobs_s": jobs_s, "ratio_1000_seekers": many}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["loop", "lstm", "pairs", "ranking"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--slow-pairs", type=int, default=16, help="pairs that the loop computes")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seekers", type=int, default=20, help="seekers that are ranked for")
    parser.add_argument("--slow-seekers", type=int, default=1, help="of them scored pair by pair")
    parser.add_argument("--slow-batch", type=int, default=1024, help="pairs a batch of predict")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    data, rows = _Data(2000, 900, 9000), []
    if "loop" in args.cases:
        rows += [loop(name, data, args.batch, args.slow_pairs, args.rounds) for name in _MODELS]
    if "lstm" in args.cases:
        rows += [lstm(name, data, args.batch, args.rounds) for name in ("APJFNN", "BPJFNN")]
    if "pairs" in args.cases:
        rows += [pairs(data, batch, args.rounds) for batch in (args.batch, 2048)]
    if "ranking" in args.cases:
        many = _Data(max(args.seekers, 100), args.jobs, 1000)
        rows += [ranking(name, many, args.seekers, args.slow_seekers, args.slow_batch, args.rounds) for name in _MODELS]
    print(f"{'case':<9}{'model':<8}{'fast s':>9}{'slow s':>9}{'ratio':>8}   least to largest; difference")
    for row in rows:
        once = f"; jobs {row['jobs_s']:.1f} s, {row['ratio_1000_seekers']:.1f}x" if "jobs_s" in row else ""
        print(f"{row['case']:<9}{row['model']:<8}{row['fast_s']:>9.3f}{row['slow_s']:>9.3f}{row['ratio']:>8.1f}"
              f"   {row['least']:.1f} to {row['largest']:.1f}; {row.get('difference', 0):.0e}{once}")  # fmt: skip
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
