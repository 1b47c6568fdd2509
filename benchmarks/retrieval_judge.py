"""How well generated JDs find the seeker's own job among all jobs: a judge that needs no market and no reward model.

    python benchmarks/retrieval_judge.py resume-corpus --generators sft ppo --reward-model reward

Each JD of NAME.<generator>.gdoc (sample 0; ``{seed}`` in a name is replaced by each seed) is a query; the distinct
texts of all jobs of the recommendation stage are searched with it, by BM25 and by the text encoder. The rank of a
seeker is that of the best of his matched jobs; a tie counts against the JD. Seekers: those of the recommendation stage
who have a match there and whom no training stage (sft, reward, rl) saw.

    gain        mean of 1 / log2(1 + rank), the reward `retrieval`        hit@10    share of ranks of at most 10
    reward      mean normalised score of the reward model (--reward-model), of all unseen seekers

References: the CV itself as the query, and another seeker's JD (the first generator's, one step down the list).
Interval: of a difference to the first generator, over seekers and seeds (girl_recbole/comparison.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from common import difference_interval, interval
from market_judge import _scorer

from girl_recbole.atomic import DatasetFiles, atomic_write, read_docs, read_interactions
from girl_recbole.config import make_config
from girl_recbole.judge import read_generated_for, read_matched, retrieval_gains, unseen_seekers
from girl_recbole.results import code_version
from girl_recbole.rewards import bm25_search, embedding_search
from girl_recbole.vectors import EmbedConfig

SEARCHES = ("BM25", "embedding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--generators", nargs="+", required=True, metavar="NAME", help="may hold {seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-path", type=Path, default=Path("dataset"))
    parser.add_argument("--saved-folder", default="saved")
    parser.add_argument("--reward-model", default=None, metavar="NAME", help="may hold {seed}")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--markdown", type=Path, default=None, help="write the table here as well")
    arguments = parser.parse_args()
    files = DatasetFiles(arguments.data_path / arguments.dataset, arguments.dataset)
    text = table(files, arguments)
    print(text)
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            file.write(text)


def table(files: DatasetFiles, arguments: argparse.Namespace) -> str:
    """The table as markdown."""
    cvs, jobs = read_docs(files.udoc), read_matched(files)
    seekers = read_interactions(files.inter)["user_id"].nunique()
    unseen = unseen_seekers(files)
    users = [user for user in unseen if user in jobs.of]
    own = [jobs.of[user] for user in users]
    config = dataclasses.replace(make_config(EmbedConfig), encoder=arguments.encoder)
    searches = {"BM25": bm25_search(jobs.texts), "embedding": embedding_search(jobs.texts, config)}

    def found(queries: list[str]) -> dict[str, np.ndarray]:
        """1 / log2(1 + rank) of each seeker's best job, (users,), by each search."""
        return {name: retrieval_gains(search, queries, own) for name, search in searches.items()}

    runs: dict[str, list[dict]] = {name: [] for name in arguments.generators}
    for seed in arguments.seeds:
        scorer = _scorer(files, arguments, seed)
        for name, done in runs.items():
            if done and "{seed}" not in name + (arguments.reward_model or ""):
                continue
            texts = {
                user: rows[0]
                for user, rows in zip(unseen, read_generated_for(files, name.format(seed=seed), unseen), strict=True)
            }
            done.append(found([texts[user] for user in users]))
            if scorer:
                done[-1]["reward"] = scorer([cvs[user] for user in unseen], [texts[user] for user in unseen])
            if name == arguments.generators[0]:
                others = [texts[user] for user in (*users[1:], *users[:1])]
    references = {"the CV itself": [found([cvs[user] for user in users])],
                  f"another seeker's JD of {arguments.generators[0]}": [found(others)]}  # fmt: skip
    columns = [f"{search}, {what}" for search in SEARCHES for what in ("gain", "hit@10")]
    out = [
        f"# What generated JDs find, {files.name}", "",
        f"Made by `python benchmarks/retrieval_judge.py {' '.join(sys.argv[1:])}`",
        f"at commit {code_version()[:12]}.", "",
        f"{len(users):,} of {seekers:,} seekers, {len(jobs.texts):,} distinct jobs; seeds "
        f"{', '.join(map(str, arguments.seeds))}.", "",
        "| query | " + " | ".join(columns) + (" | reward |" if arguments.reward_model else " |"),
        "|---" * (len(columns) + 1 + bool(arguments.reward_model)) + "|",
    ]  # fmt: skip
    for name, done in (references | {f"**{name}**": done for name, done in runs.items()}).items():
        cells = []
        for search in SEARCHES:
            cells.append(interval([one[search].mean() for one in done]))
            cells.append(interval([(one[search] >= 1 / np.log2(11)).mean() for one in done], ".3f"))
        if arguments.reward_model:
            cells.append(interval([one["reward"].mean() for one in done], ".3f") if "reward" in done[0] else "")
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    first, *others = runs
    if others:
        out += ["", "| difference in gain | search | mean [95 %] |", "|---|---|---|"]
    for name in others:
        for search in SEARCHES:
            gaps = [one[search] - two[search] for one, two in zip(runs[name], runs[first], strict=True)]

            def gap(seed: int, weight: np.ndarray, gaps=gaps) -> np.ndarray:
                return weight @ gaps[seed] / weight.sum(axis=1)

            low, high = difference_interval([np.array(users)] * len(gaps), gap)
            mean = float(np.mean([each.mean() for each in gaps]))
            out.append(f"| {name} − {first} | {search} | {mean:+.4f} [{low:+.4f}, {high:+.4f}] |")
    return "\n".join([*out, ""])


if __name__ == "__main__":
    main()
