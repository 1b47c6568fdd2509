"""Writing JDs: `girl generate`'s local engine against transformers' own ways, same model, CVs, limits and sampling.

    loop       model.generate over single CVs
    batches    model.generate over batches in file order, of the engine's batch size, padded on the left
    ours       engines.local.LocalEngine: sorted by length, caches written in place, finished rows leave

In turn, some rounds; JDs and tokens a second of each, and the ratios of each round. The loop gets a few CVs of its own
in every round. Also, of one CV: eight samples against one, and what it would save to keep the prompt's head in the
cache (the prefill with the head and without it, as a share of the whole time: an upper bound). With --continuous, and
nothing else, transformers' continuous batching (generate_batch, paged attention), greedily, against ours greedily.
--cpu-time counts the seconds of this process, for a machine with other work on it; with one thread and a quiet machine
they are those of the clock.

Run it where `girl sft NAME` has been run.
"""

import argparse
import json
import logging
import statistics
import time
from pathlib import Path

import torch
import transformers

from girl_recbole import llm
from girl_recbole.atomic import DatasetFiles, read_docs, read_table
from girl_recbole.engines.base import Asked
from girl_recbole.engines.local import LocalEngine
from girl_recbole.prompts import make_prompt

_SETTINGS = {"temperature": 0.5, "top_p": 0.9}
_LIMIT = 160  # tokens of a JD
_clock = time.perf_counter


def _timed(work):
    started = _clock()
    tokens, jds = work()
    seconds = _clock() - started
    return jds / seconds, tokens / seconds


def _count(lm, sequences):
    """Tokens of generated rows up to their first stop token, which counts."""
    stop = torch.tensor(lm.stop_ids)
    ends = torch.isin(sequences, stop).int()
    first = torch.where(ends.any(1), ends.argmax(1) + 1, sequences.shape[1])
    return int(first.sum())


def _generate(lm, prompts, **settings):
    """(tokens, JDs) of model.generate over one batch."""
    width, pad = max(map(len, prompts)), lm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
    out = lm.model.generate(
        ids, attention_mask=mask, max_new_tokens=_LIMIT, eos_token_id=lm.stop_ids, pad_token_id=pad, top_k=0, **settings
    )  # fmt: skip
    return _count(lm, out[:, width:].cpu()), len(prompts)


def _loop(lm, prompts, size=1):
    def work():
        done = [
            _generate(lm, prompts[at : at + size], do_sample=True, **_SETTINGS) for at in range(0, len(prompts), size)
        ]
        return sum(t for t, _ in done), sum(n for _, n in done)

    return work


def _ours(lm, prompts, batch, samples=1, temperature=_SETTINGS["temperature"]):
    engine = LocalEngine(lm, _LIMIT, temperature, _SETTINGS["top_p"], batch)
    asked = [Asked(p, "", [llm.sample_key(0, str(n), i) for i in range(samples)]) for n, p in enumerate(prompts)]

    def work():
        rows = engine.complete(asked)
        texts = [c for row in rows for c in row]
        tokens = sum(len(lm.tokenizer(c.text, add_special_tokens=False)["input_ids"]) + c.ended for c in texts)
        return tokens, len(texts)

    return work


def _continuous(lm, prompts):
    config = transformers.GenerationConfig(
        max_new_tokens=_LIMIT, do_sample=False, eos_token_id=lm.stop_ids, pad_token_id=lm.tokenizer.pad_token_id
    )
    paged = transformers.ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=2048)

    def work():
        done = lm.model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=paged, progress_bar=False
        )
        return sum(len(one.generated_tokens) for one in done.values()), len(done)

    return work


@torch.inference_mode()
def _prefill_seconds(lm, prompts, batch):
    started = _clock()
    for at in range(0, len(prompts), batch):
        some = prompts[at : at + batch]
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in some], device=lm.device)
        lm.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return _clock() - started


def _prefix(lm, cvs, batch, rounds):
    """The share of the time that a cached head would save, by the tokenizer's words (not the embedded generator's, for
    which head and tail are a token each): the instruction is spelled out."""
    spelled = make_prompt("en", lm.tokenizer)
    head = [i for word in spelled.head.split() for i in lm.tokenizer(" " + word, add_special_tokens=False)["input_ids"]]
    bare = sorted((spelled.encode(lm.tokenizer, cv, 256)[0] for cv in cvs), key=len)
    full = [head + prompt for prompt in bare]
    saved, whole, heads = [], [], len(head)
    for _ in range(rounds):
        with_head, without = _prefill_seconds(lm, full, batch), _prefill_seconds(lm, bare, batch)
        started = _clock()
        _ours(lm, full, batch)()
        whole.append(_clock() - started)
        saved.append((with_head - without) / whole[-1])
    return {
        "head_tokens": heads,
        "prompt_tokens": round(statistics.mean(map(len, full))),
        "saved_share": _spread(saved),
    }


def _spread(values):
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def _compare(lm, prompts, cvs, args):
    speeds = {name: [] for name in ("loop", "batches", "ours")}
    eight, bulk = [], []
    for number in range(args.rounds):
        some = prompts[number :: args.rounds][: args.loop_cvs]
        speeds["ours"].append(_timed(_ours(lm, prompts, args.batch)))
        speeds["loop"].append(_timed(_loop(lm, some)))
        speeds["batches"].append(_timed(_loop(lm, prompts, args.batch)))
        one, many = (sum(1 / _timed(_ours(lm, [p], 64, n))[0] * n for p in some) for n in (1, 8))
        eight.append(many / one)
        short = prompts[number :: args.rounds][:32]
        one, many = (n / _timed(_ours(lm, short, args.batch, n))[0] for n in (1, 8))
        bulk.append(many / one)
    jds = {name: [jds for jds, _ in rounds] for name, rounds in speeds.items()}
    return {
        "jds_per_s": {name: _spread(values) for name, values in jds.items()},
        "tokens_per_s": {name: _spread([tokens for _, tokens in rounds]) for name, rounds in speeds.items()},
        "ours_over_loop": _spread([a / b for a, b in zip(jds["ours"], jds["loop"], strict=True)]),
        "ours_over_batches": _spread([a / b for a, b in zip(jds["ours"], jds["batches"], strict=True)]),
        "eight_samples_of_one_cv_over_one": _spread(eight),
        "eight_samples_of_32_cvs_over_one": _spread(bulk),
        "prefix": _prefix(lm, cvs, args.batch, args.rounds),
    }  # fmt: skip


def _against_continuous(lm, prompts, args):
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(_timed(_ours(lm, prompts, args.batch, temperature=0))[0])
        theirs.append(_timed(_continuous(lm, prompts))[0])
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"ours_jds_per_s": _spread(ours), "continuous_jds_per_s": _spread(theirs), "ratio": _spread(ratios)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="jobrec-sim")
    parser.add_argument("--data-path", default="dataset")
    parser.add_argument("--saved-folder", default="saved")
    parser.add_argument("--generator", default="sft")
    parser.add_argument("--cvs", type=int, default=256)
    parser.add_argument("--loop-cvs", type=int, default=6, help="CVs of the loop, each round")
    parser.add_argument("--batch", type=int, default=64, help="sequences (gen_batch_size)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's threads; default: its own")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--continuous", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.cpu_time:
        global _clock
        _clock = time.process_time
    logging.disable()
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    files = DatasetFiles(Path(args.data_path) / args.name, args.name)
    docs = read_docs(files.udoc)
    users = list(dict.fromkeys(read_table(files.inter)["user_id"]))[: args.cvs]
    lm = llm.load(str(Path(args.saved_folder) / args.name / args.generator))
    prompt = make_prompt("en", lm.tokenizer)
    cvs = [docs[user] for user in users]
    prompts = [prompt.encode(lm.tokenizer, cv, 256)[0] for cv in cvs]
    _ours(lm, prompts[:8], args.batch)()
    result = _against_continuous(lm, prompts, args) if args.continuous else _compare(lm, prompts, cvs, args)
    result = {"cvs": len(prompts), "threads": torch.get_num_threads(), "device": str(lm.device), **result}
    for key, value in result.items():
        print(f"{key:<40}{value if not isinstance(value, dict) else json.dumps(value)}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
