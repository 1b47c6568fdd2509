"""FT-LLM: one forward pass against writing the answer and reading it, and shared beginnings against whole prompts.

    shared     FTLLM as it is: head, CV and middle once a seeker, then each of his jobs
    whole      the same scores from whole prompts, one forward pass a batch
    written    TALLRec's way: whole prompts, transformers' generate (greedy) of N tokens, the text parsed

Two workloads on jobrec-sim: pairs of the test part (about three a seeker), and a ranking (all jobs of a few seekers).
The embedded model with random weights, on whose values time does not depend; N tokens are written whatever they are. A
tuned model stops by itself after the answer and EOS (N = 2), one that explains itself goes on to the limit, which is
128 in TALLRec's code. Times are CPU seconds of one thread; the ways take turns, and ratios are of rounds. Checks that
shared and whole give the same scores. --json writes the rows too.
"""

import argparse
import json
import statistics
import time

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

import girl_recbole  # noqa: F401 - makes RecBole ready
from girl_recbole.models.ft_llm import FTLLM, yes_no_logit
from girl_recbole.prompts import parse_answer
from girl_recbole.recbole_config import Config


def build(args):
    values = {"ftllm_base": args.base, "data_path": args.data_path, "use_gpu": False, "state": "ERROR", "worker": 0}
    config = Config("FTLLM", args.dataset, config_dict=values, arguments=[])
    init_seed(config["seed"], True)
    _, _, test = data_preparation(config, create_dataset(config))
    return FTLLM(config, test._dataset).eval(), test._dataset


def batches(model, pairs, size):
    """Whole prompts of like length, padded on the left, and where their scores go."""
    order = sorted(range(len(pairs)), key=lambda k: model.length(*pairs[k]))
    for start in range(0, len(order), size):
        where = order[start : start + size]
        rows = [model._cvs[pairs[k][0]] + model._jds[pairs[k][1]] for k in where]
        width = max(map(len, rows))
        ids = torch.tensor([[model._pad] * (width - len(row)) + row for row in rows])
        yield where, ids, (torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])).long()


def shared(model, pairs, args):
    users, items = torch.tensor(pairs).T
    return model._score(users, items)


def whole(model, pairs, args):
    scores = torch.empty(len(pairs))
    for where, ids, mask in batches(model, pairs, args.batch):
        places = (mask.cumsum(1) - 1).clamp(min=0)
        out = model.lm(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1)
        scores[where] = yes_no_logit(out.logits[:, -1], model.yes, model.no)
    return scores


def written(tokens):
    def run(model, pairs, args):
        answers = [None] * len(pairs)
        for where, ids, mask in batches(model, pairs, args.batch):
            out = model.lm.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
            texts = model.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for k, text in zip(where, texts, strict=True):
                answers[k] = parse_answer(text, model.prompt.language)
        return answers

    return run


@torch.no_grad()
def measure(model, name, pairs, args):
    ways = {"shared": shared, "whole": whole} | {f"written {n}": written(n) for n in args.tokens}
    spent = {way: [] for way in ways}
    for number in range(args.rounds + 1):
        found = {}
        for way, run in ways.items():
            started = time.process_time()
            found[way] = run(model, pairs, args)
            if number:  # the first round warms up
                spent[way].append(time.process_time() - started)
    gap = (found["shared"] - found["whole"]).abs().max().item()
    assert gap < 1e-4, gap
    row = {"workload": name, "pairs": len(pairs), "seekers": len({user for user, _ in pairs}), "largest_gap": gap}
    for way, seconds in spent.items():
        ratios = [other / ours for other, ours in zip(seconds, spent["shared"], strict=True)]
        row[way] = {
            "ms_a_pair": round(1e3 * statistics.median(seconds) / len(pairs), 3),
            "times_shared": [round(f(ratios), 2) for f in (statistics.median, min, max)],
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="jobrec-sim")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--base", default="tiny", help="ftllm_base")
    parser.add_argument("--pairs", type=int, default=320, help="test pairs")
    parser.add_argument("--seekers", type=int, default=2, help="seekers of the ranking")
    parser.add_argument("--jobs", type=int, default=200, help="jobs of the ranking")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 8, 128], help="that are written")
    parser.add_argument("--batch", type=int, default=32, help="prompts a batch of whole and written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = build(args)
    feat = data.inter_feat
    test = sorted(zip(feat[data.uid_field].tolist(), feat[data.iid_field].tolist(), strict=True))[: args.pairs]
    ranking = [(user, item) for user in range(1, args.seekers + 1) for item in range(1, args.jobs + 1)]
    rows = [measure(model, name, pairs, args) for name, pairs in (("test pairs", test), ("ranking", ranking))]
    for row in rows:
        print(f"{row['workload']}: {row['pairs']} pairs of {row['seekers']} seekers; gap {row['largest_gap']:.1e}")
        for way in (key for key, value in row.items() if isinstance(value, dict)):
            median, low, high = row[way]["times_shared"]
            print(f"  {way:<12}{row[way]['ms_a_pair']:>9.3f} ms a pair{median:>8.2f}x shared ({low:.2f} to {high:.2f})")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
