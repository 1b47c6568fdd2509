"""Encoding texts of a real mix of lengths: `girl embed`'s way against one text a call.

Texts are random words; their lengths are log-normal, 30 to 400 tokens, with a median of about 130. The two ways take
turns on slices of the same texts: batches see all of them, the loop a subset, and both are given per text. Also checks
that the vectors agree, and how far float16 on disk moves them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

import girl_recbole  # noqa: F401
from girl_recbole.encoder import Encoder

_WORDS = ["team", "sales", "nurse", "data", "design", "store", "care", "system", "code", "report", "safety", "plan"]


def _texts(count, rng):
    lengths = np.clip(rng.lognormal(np.log(130), 0.6, count), 30, 400).astype(int)
    return [" ".join(rng.choice(_WORDS, length)) for length in lengths]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--loop-texts", type=int, default=100, help="texts that the loop encodes, of all repeats")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--json")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    texts = _texts(args.texts, rng)
    encoder = Encoder(args.encoder)
    encoder.encode(texts[:8])
    ratios, batched, looped, gap, gap16 = [], [], [], 0.0, 0.0
    share = args.loop_texts // args.repeats
    for repeat in range(args.repeats):
        mine = texts[repeat :: args.repeats]
        started = time.perf_counter()
        vectors, _ = encoder.encode(mine)
        batched.append((time.perf_counter() - started) / len(mine))
        some = rng.choice(len(mine), share, replace=False)
        started = time.perf_counter()
        alone = np.stack([encoder.model.encode(mine[n], show_progress_bar=False) for n in some])
        looped.append((time.perf_counter() - started) / share)
        ratios.append(looped[-1] / batched[-1])
        gap = max(gap, float(np.abs(vectors[some] - alone).max()))
        gap16 = max(gap16, float(np.abs(vectors[some].astype(np.float16) - alone).max()))
    result = {
        "texts": args.texts,
        "batched_texts_per_s": round(1 / statistics.median(batched), 1),
        "one_a_call_texts_per_s": round(1 / statistics.median(looped), 1),
        "ratio": round(statistics.median(ratios), 2),
        "largest_difference": gap,
        "largest_difference_float16": gap16,
    }
    for key, value in result.items():
        print(f"{key:<28}{value:>12.4g}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
