"""market/judge.py: true probabilities of JDs, against some worked out by hand and against the oracle of real jobs; and
the table that is made of them."""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions, write_generated, write_users
from girl_recbole.config import make_config
from girl_recbole.errors import DataError
from girl_recbole.market import MarketConfig, Truth, match_probability, read_truth, simulate
from girl_recbole.market.judge import true_probability
from girl_recbole.market.taxonomy import PLACES, load_taxonomy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import market_judge
from common import difference_interval, interval

sys.path.pop(0)

SHIPPED = DatasetFiles(Path(__file__).parent.parent / "dataset" / "jobrec-sim", "jobrec-sim")
SMALL = {
    "market_sft_pairs": 200, "market_sft_seekers": 150, "market_sft_jobs": 100, "market_reward_pairs": 200,
    "market_reward_seekers": 80, "market_reward_jobs": 80, "market_rl_seekers": 20, "market_rec_pairs": 300,
    "market_rec_seekers": 90, "market_rec_jobs": 70,
}  # fmt: skip


@pytest.fixture(scope="module")
def truth():
    return read_truth(SHIPPED)


@pytest.fixture(scope="module")
def jds():
    return read_docs(SHIPPED.idoc)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def accountant(truth: Truth) -> Truth:
    """One seeker, ``ann``: a senior accountant of Denver who stays, wants 90,000, knows month end well, AP half."""
    taxonomy = load_taxonomy()
    number = [occupation.code for occupation in taxonomy.occupations].index("13-2011.00")
    strength = np.zeros((1, len(taxonomy.skills)), np.uint8)
    for skill, value in {"month end": 100, "AP": 50, "tax filing": 80}.items():
        strength[0, [s.short for s in taxonomy.skills].index(skill)] = value
    place = [name for name, *_ in PLACES].index("Denver")
    state = {
        "occupation": number, "next_step": number, "former": number, "level": 3, "ambition": 0, "pay_wish": 90.0,
        "place": place, "mobility": 0, "likes_remote": False, "appeal": 1.0,
    }  # fmt: skip
    one = truth.seekers.take(np.array([0]))
    arrays = {key: np.array([value], getattr(one, key).dtype) for key, value in state.items()}
    return Truth(
        np.array(["ann"]), truth.item_ids, dataclasses.replace(one, strength=strength, **arrays), truth.jobs, -2.5
    )  # fmt: skip


def test_by_hand(truth):
    """M = (1 + 0.5 + 0) / 3, N = 0.8; what a JD does not say is worth nothing, and costs nothing where it is pay."""
    ann = accountant(truth)
    title = load_taxonomy().occupations[ann.seekers.occupation[0]].jd_titles[0]
    skills = "Month end, AP and Excel. Tax filing is a plus."
    full = 2.6 + 2.8 * 0.5 + 0.8 * 0.8 + 1.1 + 0.35  # C, M, N, L, A
    wanted = {
        f"Senior {title} wanted in Denver. {skills} $90,000": full,
        f"Senior {title} wanted in Denver. {skills}": full,  # Y of an unknown pay is 0
        f"Senior {title} wanted in Denver. {skills} $200,000": full + 0.5,  # Y = 1 at the most
        f"Senior {title} wanted in Denver. {skills} $45,000": full - 2 * 0.5,
        f"Senior {title} wanted. {skills}": full - 1.1,  # no place
        f"Senior {title} wanted, remote. {skills}": full - 1.1,  # ann does not like that
        f"Lead {title} wanted in Denver. {skills}": full - 2 * 0.55,  # one level too high counts twice
        f"{title} wanted in Denver. {skills}": full - 0.55,  # level 2 where none is told
        f"Senior {title} in Denver.": full - 2.8 * 0.5 - 0.8 * 0.8,
        f"Senior {title} in Denver. Month end. Tax filing is a plus.": full + 2.8 * 0.5,  # asks for the best skill only
    }
    texts = ["We need someone nice.", *wanted, ""]
    probability, readable = true_probability(ann, ["ann"] * len(texts), texts)
    assert probability[1:-1] == pytest.approx([sigmoid(0.8 * logit - 2.5) for logit in wanted.values()], rel=1e-6)
    assert readable.tolist() == [False, *[True] * len(wanted), False]
    assert probability[[0, -1]].tolist() == [0, 0]
    assert probability.dtype == np.float64


def test_rows_are_judged_alone_and_in_any_order(truth, jds):
    users = truth.user_ids[:40].tolist()
    texts = [*list(jds.values())[:19], "nothing", "nothing", *list(jds.values())[:19]]
    together, readable = true_probability(truth, users, texts)
    alone = [true_probability(truth, [user], [text]) for user, text in zip(users, texts, strict=True)]
    assert together.tolist() == [p[0] for p, _ in alone]
    assert readable.tolist() == [r[0] for _, r in alone]
    back, _ = true_probability(truth, users[::-1], texts[::-1])
    assert back[::-1].tolist() == together.tolist()
    assert [len(array) for array in true_probability(truth, [], [])] == [0, 0]
    assert true_probability(truth, users[:2], ["nothing", ""])[0].tolist() == [0, 0]


def test_real_jobs_have_nearly_the_oracles_probability(truth, jds):
    """The text alone against the true job with openness 0: correlation .986 on the pairs of the recommendation stage,
    .983 on as many random ones; what is missing is the pay that 15 % of JDs do not tell, and a few skills."""
    row = {user: i for i, user in enumerate(truth.user_ids)}
    column = {item: i for i, item in enumerate(truth.item_ids)}
    table = read_interactions(SHIPPED.inter)
    shuffled = np.random.default_rng(0).permutation(table["item_id"])
    for items in (table["item_id"].to_numpy(), shuffled):
        seekers = truth.seekers.take(np.array([row[user] for user in table["user_id"]]))
        jobs = truth.jobs.take(np.array([column[item] for item in items]))
        closed = dataclasses.replace(jobs, openness=np.zeros(len(jobs)))
        oracle = match_probability(seekers, closed, truth.intercept)
        probability, readable = true_probability(truth, table["user_id"].tolist(), [jds[item] for item in items])
        assert readable.all()
        assert np.corrcoef(probability, oracle)[0, 1] > 0.97
        assert probability.mean() == pytest.approx(oracle.mean(), abs=0.01)


def test_age_gender_and_school_change_nothing(truth, jds):
    seekers = truth.seekers
    others = dataclasses.replace(
        truth,
        seekers=dataclasses.replace(
            seekers, age=seekers.age[::-1] + 7, gender=1 - seekers.gender, school=8 - seekers.school
        ),
    )
    users, texts = truth.user_ids[:500].tolist(), list(jds.values())[:500]
    assert np.array_equal(true_probability(truth, users, texts)[0], true_probability(others, users, texts)[0])


def test_strangers_are_refused(truth):
    with pytest.raises(DataError, match=r"2 of 3 seekers are not in the market's truth \(ann, bob\)"):
        true_probability(truth, ["ann", truth.user_ids[0], "bob"], ["a", "b", "c"])


# --------------------------------------------------------------------------------------------- benchmarks/market_judge


@pytest.fixture
def market(tmp_path) -> DatasetFiles:
    """A small market with the JDs of two generators for two seeds: ``good-s*`` copies jobs, matched ones where
    there are some, and no market can read ``bad-s*``."""
    files = DatasetFiles(tmp_path / "sim", "sim")
    simulate(files, make_config(MarketConfig, overrides=SMALL))
    table, texts = read_interactions(files.inter), read_docs(files.idoc)
    best = table.sort_values("label").groupby("user_id")["item_id"].last()
    for seed in (1, 2):
        write_generated(files.gdoc(f"good-s{seed}"), ((user, 0, texts[item]) for user, item in best.items()))
        bad = [(user, sample, "so nice so nice") for user in best.index for sample in (0, 1)]
        write_generated(files.gdoc(f"bad-s{seed}"), bad)
    return files


def run(files: DatasetFiles, *generators: str, seeds=(1, 2)) -> str:
    return market_judge.tables(
        files, argparse.Namespace(generators=generators, seeds=seeds, reward_model=None, saved_folder="nowhere")
    )


def test_table_of_a_small_market(market):
    text = run(market, "good-s{seed}", "bad-s{seed}")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rows = {name: cells for name, *cells in rows if len(cells) == 8}
    users = market_judge.unseen_seekers(market)
    assert 0 < len(users) < 90
    assert f"{len(users)} of the" in text
    p = {name: float(cells[1].split()[0]) for name, cells in rows.items() if cells[0].isdigit()}
    good = p["**good-s{seed}**"]
    assert p["**bad-s{seed}**"] == 0
    assert p["JD of a random sft pair"] < good < p["best job of the recommendation stage"]
    assert p["a matched job of that stage"] > p["random job of the recommendation stage"]
    # readable, structured, copies; two different pairs of words among three a JD; words
    shares = ["0.000"] * 3 + [f"{2 / (3 * len(users)):.3f}", "4.0"]  # equal seeds: no interval
    assert rows["**bad-s{seed}**"] == [str(len(users)), *["0.0000"] * 2, *shares]
    assert rows["JD of the sft stage's nearest CV"][5] == "1.000"  # the same for all seeds, so no interval
    (line,) = (line for line in text.splitlines() if line.startswith("| bad-s{seed} − good-s{seed} |"))
    assert line.split("|")[2].startswith(f" {-good:+.4f} [")
    assert line.endswith("| 0 of 2 |")


def test_seekers_of_training_stages_are_left_out(market):
    before = market_judge.unseen_seekers(market)
    seen = {user for stage in ("sft", "reward") for user in read_interactions(market.stage(stage))["user_id"]}
    assert not seen & set(before)
    assert seen & set(read_interactions(market.inter)["user_id"])
    write_users(market.stage("rl"), before[:3])
    assert market_judge.unseen_seekers(market) == before[3:]


def test_a_generator_without_a_jd_for_a_seeker_is_refused(market):
    write_generated(market.gdoc("few"), [("u000000", 0, "text")])
    with pytest.raises(DataError, match=r"few\.gdoc: \d+ of \d+ seekers have no generated JD"):
        run(market, "few")


def test_distinct_2_by_hand():
    assert market_judge.distinct_2([["a", "b", "a", "b"], ["a", "b"]]) == 2 / 4
    assert market_judge.distinct_2([["a"], []]) == 0


def test_difference_of_known_size():
    """The same for every seeker: the interval is that of t over seeds; a constant run stands beside each seed."""
    rng = np.random.default_rng(0)
    users = np.array([f"u{i}" for i in range(50)])
    base = rng.random(50)
    one = [{"user": users, "probability": base + 0.1 * seed} for seed in (1, 2, 3)]
    mean, low, high, above, seeds = market_judge.difference(one, [{"user": users, "probability": base}])
    assert (mean, above, seeds) == (pytest.approx(0.2), 3, 3)
    assert (low, high) == pytest.approx((0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5)  # 4.3027 x 0.1 / sqrt(3)
    assert market_judge.difference(one[:1], [{"user": users, "probability": base}])[1:3] == (
        pytest.approx(0.1), pytest.approx(0.1)
    )  # fmt: skip


def test_difference_interval_has_the_spread_of_the_seekers():
    """One seed, 400 seekers: half an interval is 1.96 standard errors of a mean."""
    gaps = np.random.default_rng(1).normal(0.5, 2.0, 400)
    users = np.array([f"u{i}" for i in range(400)])
    low, high = difference_interval([users], lambda seed, weight: weight @ gaps / weight.sum(1))
    assert (high - low) / 2 == pytest.approx(1.96 * gaps.std() / 20, rel=0.1)
    assert (high + low) / 2 == pytest.approx(gaps.mean(), abs=0.02)


def test_interval_by_hand():
    assert interval([1.0, 2.0, 3.0]) == "2.0000 ± 2.4841"  # 4.3027 / sqrt(3)
    assert interval([0.25]) == "0.2500"
