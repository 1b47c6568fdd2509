"""Encoding texts of a real mix of lengths: `girl embed`'s way against one text a call and the encoder's ceiling.

Texts are random words; their lengths are log-normal, 30 to 400 words, with a median of about 130. Three ways take turns
on slices of the same texts:

    batches   Encoder.encode: cut into tokens, sorted by length, padded, a batch to each thread
    loop      one text a call of sentence-transformers, on a subset; given per text
    ceiling   the encoder alone: for each of those batches a full one of its length, without padding, ready made, back
              to back in as many threads; in tokens a second

Also checks that the vectors agree, and how far float16 on disk moves them. On a busy machine CPU seconds say more than
the clock.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import girl_recbole  # noqa: F401
from girl_recbole.encoder import Encoder

_WORDS = ["team", "sales", "nurse", "data", "design", "store", "care", "system", "code", "report", "safety", "plan"]


def make_texts(count, rng):
    lengths = np.clip(rng.lognormal(np.log(130), 0.6, count), 30, 400).astype(int)
    return [" ".join(rng.choice(_WORDS, length)) for length in lengths]


def _timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _full_batches(encoder, windows, batch_tokens):
    """Features of a full batch for each batch of ``windows``, of its longest length, and their tokens."""
    rng, features, tokens = np.random.default_rng(0), [], 0
    length = np.diff(windows.start)
    for batch in encoder.batches(windows, np.arange(len(length)), batch_tokens):
        longest = int(length[batch].max())
        ids = torch.from_numpy(rng.choice(windows.tokens, (max(1, batch_tokens // longest), longest)).astype(np.int64))
        features.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        tokens += ids.numel()
    return features, tokens


def _forward(encoder, features):
    def forward(batch):
        with torch.inference_mode():
            return encoder.model(dict(batch))["sentence_embedding"]

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(forward, features):
            pass
    torch.set_num_threads(threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--loop-texts", type=int, default=100, help="texts that the loop encodes, of all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    texts = make_texts(args.texts, rng)
    encoder = Encoder(args.encoder, device="cpu")
    encoder.encode(texts[:8])
    rounds, gap, gap16 = [], 0.0, 0.0
    share = args.loop_texts // args.rounds
    for number in range(args.rounds):
        mine = texts[number :: args.rounds]
        windows = encoder.tokenize(mine)
        full, full_tokens = _full_batches(encoder, windows, 2048)
        some = rng.choice(len(mine), share, replace=False)
        ways = {
            "ceiling": lambda full=full: _forward(encoder, full),
            "batches": lambda mine=mine: encoder.encode(mine)[0],
            "loop": lambda mine=mine, some=some: np.stack([
                encoder.model.encode(mine[n], show_progress_bar=False) for n in some
            ]),
        }  # fmt: skip
        row, found = {}, {}
        for way in list(ways) if number % 2 else list(ways)[::-1]:
            found[way], row[f"{way}_s"], row[f"{way}_cpu_s"] = _timed(ways[way])
        tokens = len(windows.tokens)
        for clock in ("s", "cpu_s"):
            row[f"of_ceiling_{clock}"] = (tokens / row[f"batches_{clock}"]) / (full_tokens / row[f"ceiling_{clock}"])
            row[f"over_loop_{clock}"] = (row[f"loop_{clock}"] / share) / (row[f"batches_{clock}"] / len(mine))
        row |= {"tokens_per_s": tokens / row["batches_s"], "texts_per_s": len(mine) / row["batches_s"]}
        padded = sum(int(np.diff(windows.start)[b].max()) * len(b) for b in
                     encoder.batches(windows, np.arange(len(windows.owner)), 2048))  # fmt: skip
        row["padding"] = 1 - tokens / padded
        rounds.append(row)
        gap = max(gap, float(np.abs(found["batches"][some] - found["loop"]).max()))
        gap16 = max(gap16, float(np.abs(found["batches"][some].astype(np.float16) - found["loop"]).max()))
    result = {"texts": args.texts, "threads": torch.get_num_threads(), "rounds": rounds}
    print(f"{'':<20}{'median':>10}{'least':>10}{'largest':>10}")
    for key in rounds[0]:
        values = [row[key] for row in rounds]
        print(f"{key:<20}{statistics.median(values):>10.4g}{min(values):>10.4g}{max(values):>10.4g}")
    result |= {"largest_difference": gap, "largest_difference_float16": gap16}
    print(f"largest difference of the vectors {gap:.2g}, in float16 {gap16:.2g}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
