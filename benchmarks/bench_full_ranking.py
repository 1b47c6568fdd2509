"""Full ranking of seekers over all jobs: each side encoded once, against scoring the pairs batch by batch.

Both give the same probabilities (checked here too). The slow way is timed on a few seekers and extrapolated per seeker.
Models of untrained weights on random vectors: time does not depend on the values. Prints a table; --json writes it too.
"""

import argparse
import json
import statistics
import time

import torch
from common import standalone_model
from recbole.data.interaction import Interaction


def _seconds(run):
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


@torch.no_grad()
def measure(name, users, items, width, slow_users, batch, repeats):
    model = standalone_model(name, users=users, items=items, width=width).eval()
    every = torch.arange(1, items + 1)

    def fast():
        model._items_kept = None  # the jobs' side is part of the price
        for part in torch.arange(1, users + 1).split(8):
            scores = model.full_sort_predict(Interaction({"user_id": part}))
        return scores.view(-1, items + 1)[-1, 1:]

    def slow():
        for user in range(users - slow_users + 1, users + 1):
            pairs = [Interaction({"user_id": torch.full_like(p, user), "item_id": p}) for p in every.split(batch)]
            scores = torch.cat([model.predict(part) for part in pairs])
        return scores

    fast_s, slow_s, gap = [], [], 0.0
    for _ in range(repeats):  # side by side, so that other work on the machine meets both
        seconds, last = _seconds(fast)
        fast_s.append(seconds / users)
        seconds, reference = _seconds(slow)
        slow_s.append(seconds / slow_users)
        gap = max(gap, (last - reference).abs().max().item())
    fast_s, slow_s = statistics.median(fast_s), statistics.median(slow_s)
    return {
        "model": name,
        "seekers": users,
        "jobs": items,
        "fast_ms_per_seeker": round(1e3 * fast_s, 3),
        "slow_ms_per_seeker": round(1e3 * slow_s, 3),
        "ratio": round(slow_s / fast_s, 1),
        "largest_difference": gap,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--slow-users", type=int, default=3, help="seekers scored the slow way")
    parser.add_argument("--batch", type=int, default=4096, help="pairs a batch of the slow way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [
        measure(name, args.users, args.items, args.width, args.slow_users, args.batch, args.repeats)
        for name in ("GIRLBaseMLP", "GIRLEnhancedMLP", "GIRLBaseDot", "GIRLEnhancedDot")
    ]
    print(f"{'model':<18}{'fast ms':>10}{'slow ms':>10}{'ratio':>8}{'largest difference':>20}   (per seeker)")
    for row in rows:
        print(
            f"{row['model']:<18}{row['fast_ms_per_seeker']:>10}{row['slow_ms_per_seeker']:>10}{row['ratio']:>8}"
            f"{row['largest_difference']:>20.1e}"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
