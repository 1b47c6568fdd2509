"""What the simulated market itself says of generated JDs, generator by generator, over seeds.

    python benchmarks/market_judge.py jobrec-sim --generators sft
    python benchmarks/market_judge.py NAME --generators sft-s{seed} ppo-s{seed} --seeds 1 2 3 --reward-model rm-s{seed}

Reads NAME.<generator>.gdoc, ``{seed}`` replaced by each seed, and judges every JD by the true probability that its
seeker matches the job that it describes (girl_recbole/market/judge.py). Seekers: those of the recommendation stage whom
no training stage (sft, reward, rl) saw.

    p           mean true probability of sample 0 (0 for a JD that cannot be read); "all samples" of every sample
    readable    share of JDs in which the market finds the title of an occupation
    structured  share of JDs with the structure of a JD (prompts.parse_jd)
    copies      share of JDs that are word for word a JD of the sft stage
    distinct-2  different pairs of neighbouring words / all pairs, over the JDs of all seekers
    words       mean length
    reward      mean normalised score of the reward model (--reward-model)

All but "all samples" are of sample 0. References, judged by the same reader of texts: the JD of a random matched pair
of the sft stage; that of the sft stage's seeker with the nearest CV (TF-IDF); a random job of the recommendation stage;
a job of that stage that the seeker is matched with, for those who have one; and for each seeker the best of all jobs of
that stage by the judge's own word, the most that offering a real job could reach.

Interval of a row: the 95 % t-interval of its mean over seeds. Interval of a difference: over seeds and
seekers (girl_recbole/comparison.py), the same seekers for both generators; with one seed it holds the seekers' error
alone.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from common import difference_interval, interval, nearest_items

from girl_recbole.atomic import DatasetFiles, atomic_write, read_docs, read_interactions
from girl_recbole.judge import read_generated_for, unseen_seekers
from girl_recbole.market import Truth, read_truth
from girl_recbole.market.judge import true_probability
from girl_recbole.prompts import parse_jd
from girl_recbole.results import code_version

COLUMNS = {"p": ".4f", "all samples": ".4f", "readable": ".3f", "structured": ".3f", "copies": ".3f",
           "distinct-2": ".3f", "words": ".1f", "reward": ".3f"}  # fmt: skip
_BLOCK = 500  # seekers beside all jobs at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--generators", nargs="+", required=True, metavar="NAME", help="may hold {seed}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-path", type=Path, default=Path("dataset"))
    parser.add_argument("--saved-folder", default="saved")
    parser.add_argument("--reward-model", default=None, metavar="NAME", help="may hold {seed}")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables here as well")
    arguments = parser.parse_args()
    files = DatasetFiles(arguments.data_path / arguments.dataset, arguments.dataset)
    text = tables(files, arguments)
    print(text)
    if arguments.markdown:
        with atomic_write(arguments.markdown) as file:
            file.write(text)


def tables(files: DatasetFiles, arguments: argparse.Namespace) -> str:
    """The tables as markdown."""
    truth, cvs, jds = read_truth(files), read_docs(files.udoc), read_docs(files.idoc)
    sft, rec = read_interactions(files.stage("sft")), read_interactions(files.inter)
    sft = sft[sft["label"] == 1]
    pairs = list(zip(sft["user_id"], sft["item_id"], strict=True))
    users = unseen_seekers(files)
    known = {jds[item] for _, item in pairs}
    runs: dict[str, list[dict]] = {name: [] for name in arguments.generators}
    references: dict[str, list[dict]] = {}
    certain = {"JD of the sft stage's nearest CV": (users, [jds[i] for i in nearest_items(pairs, users, cvs)]),
               "best job of the recommendation stage": (users, best_jobs(truth, users, rec, jds))}  # fmt: skip
    for seed in arguments.seeds:
        scorer = _scorer(files, arguments, seed)

        def judge(some: list[str], texts: list[list[str]], scorer=scorer) -> dict:
            score = None if scorer is None else scorer([cvs[user] for user in some], [row[0] for row in texts])
            return judged(truth, some, texts, known) | ({} if score is None else {"reward": float(score.mean())})

        for name, done in runs.items():
            if not done or "{seed}" in name + (arguments.reward_model or ""):
                done.append(judge(users, read_generated_for(files, name.format(seed=seed), users)))
        for name, (some, texts) in (_drawn(seed, users, pairs, rec, jds) | certain).items():
            if name not in certain or name not in references or "{seed}" in (arguments.reward_model or ""):
                references.setdefault(name, []).append(judge(some, [[text] for text in texts]))
    rows = references | {f"**{name}**": done for name, done in runs.items()}
    shown = [column for column in COLUMNS if column in next(iter(rows.values()))[0]]
    out = [
        f"# The market's own judgement of generated JDs, {files.name}",
        "",
        f"Made by `python benchmarks/market_judge.py {' '.join(sys.argv[1:])}`",
        f"at commit {code_version()[:12]}.",
        "",
        f"{len(users):,} of the {rec['user_id'].nunique():,} seekers of the recommendation stage: those whom no "
        "training stage saw.",
        f"Seeds: {', '.join(map(str, arguments.seeds))}. p: mean true probability of a match, sample 0. Mean ± half of "
        "the 95 % t-interval over seeds,",
        "where a row differs from seed to seed.",
        "",
        "| JD | seekers | " + " | ".join(shown) + " |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for name, done in rows.items():
        cells = [interval([one[column] for one in done], COLUMNS[column]) for column in shown]
        out.append(f"| {name} | {len(done[0]['user'])} | " + " | ".join(cells) + " |")
    if len(runs) > 1:
        out += ["", "| difference in p | mean [95 %] | seeds above 0 |", "|---|---|---|"]
    for one, two in itertools.combinations(runs, 2):
        mean, low, high, above, seeds = difference(runs[two], runs[one])
        out.append(f"| {two} − {one} | {mean:+.4f} [{low:+.4f}, {high:+.4f}] | {above} of {seeds} |")
    return "\n".join([*out, ""])


def judged(truth: Truth, users: list[str], texts: list[list[str]], known: set[str]) -> dict:
    """The columns of a row, and ``user`` and ``probability`` of sample 0, for the JDs ``texts[i]`` of seeker i."""
    probability, readable = true_probability(truth, users, [row[0] for row in texts])
    several = [(user, text) for user, row in zip(users, texts, strict=True) for text in row]
    first = [row[0] for row in texts]
    words = [re.findall(r"\w+", text.lower()) for text in first]
    return {
        "user": np.array(users),
        "probability": probability,
        "p": probability.mean(),
        "all samples": true_probability(truth, *map(list, zip(*several, strict=True)))[0].mean(),
        "readable": readable.mean(),
        "structured": np.mean([parse_jd(text).is_structured for text in first]),
        "copies": np.mean([text in known for text in first]),
        "distinct-2": distinct_2(words),
        "words": np.mean([len(row) for row in words]),
    }


def distinct_2(texts: list[list[str]]) -> float:
    """Different pairs of neighbouring words / all pairs; 0 where there is none."""
    pairs = [pair for words in texts for pair in itertools.pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def difference(a: list[dict], b: list[dict]) -> tuple[float, float, float, int, int]:
    """Mean over seeds of p(a) - p(b), its 95 % interval, and in how many of how many seeds it is above 0. A run that is
    the same for all seeds stands beside each of the other's."""
    seeds = max(len(a), len(b))
    a, b = (runs * seeds if len(runs) == 1 else runs for runs in (a, b))
    gaps = [one["probability"] - two["probability"] for one, two in zip(a, b, strict=True)]

    def gap(seed: int, weight: np.ndarray) -> np.ndarray:
        return weight @ gaps[seed] / weight.sum(axis=1)

    means = [each.mean() for each in gaps]
    low, high = difference_interval([one["user"] for one in a], gap)
    return float(np.mean(means)), low, high, sum(mean > 0 for mean in means), seeds


def best_jobs(truth: Truth, users: list[str], rec, jds: dict[str, str]) -> list[str]:
    """For each seeker the JD of the recommendation stage's jobs that has the highest true probability."""
    offers = [jds[item] for item in rec["item_id"].unique()]
    best = []
    for start in range(0, len(users), _BLOCK):
        some = users[start : start + _BLOCK]
        pairs = [(user, offer) for user in some for offer in offers]
        probability, _ = true_probability(truth, *map(list, zip(*pairs, strict=True)))
        best += [offers[i] for i in probability.reshape(len(some), -1).argmax(axis=1)]
    return best


def _drawn(seed: int, users: list[str], pairs: list[tuple[str, str]], rec, jds: dict[str, str]) -> dict:
    """The references that are drawn: name -> (seekers, JDs)."""
    draw = random.Random(seed)
    items = rec["item_id"].unique().tolist()
    matched = rec[rec["label"] == 1].groupby("user_id")["item_id"].agg(list)
    having = [user for user in users if user in matched.index]
    return {
        "JD of a random sft pair": (users, [jds[draw.choice(pairs)[1]] for _ in users]),
        "random job of the recommendation stage": (users, [jds[draw.choice(items)] for _ in users]),
        "a matched job of that stage": (having, [jds[draw.choice(matched[user])] for user in having]),
    }


def _scorer(files: DatasetFiles, arguments: argparse.Namespace, seed: int):
    """(CVs, JDs) -> normalised scores of the reward model, or None where none is asked for."""
    if arguments.reward_model is None:
        return None
    from girl_recbole.reward import load_reward_model

    name = arguments.reward_model.format(seed=seed)
    return load_reward_model(
        files, SimpleNamespace(saved_folder=arguments.saved_folder, reward_model=name, lm_dtype="fp32")
    ).score


if __name__ == "__main__":
    main()
