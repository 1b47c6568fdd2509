"""Stages, sampled mismatches, near duplicates and the report."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girl_recbole.errors import ConfigError
from girl_recbole.prepare.leaks import rare_overlap_auc, tfidf_auc
from girl_recbole.prepare.neardup import near_duplicate_groups, shingles
from girl_recbole.prepare.report import Report
from girl_recbole.prepare.stages import assign_stages, check_shares, sample_mismatches, stage_frames


def matched(pairs):
    return pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(label=1.0)


# ------------------------------------------------------------------------------------------------------------- stages


def test_shares_and_determinism():
    seekers = [f"u{n}" for n in range(200)]
    stage_of = assign_stages(seekers, [0.35, 0.2, 0.1, 0.35], seed=1)
    assert Counter(stage_of.values()) == {"sft": 70, "reward": 40, "rl": 20, "recommendation": 70}
    assert assign_stages(reversed(seekers), [0.35, 0.2, 0.1, 0.35], seed=1) == stage_of
    assert assign_stages(seekers, [0.35, 0.2, 0.1, 0.35], seed=2) != stage_of
    assert set(assign_stages(seekers, [0, 0, 0, 1], seed=1).values()) == {"recommendation"}


@pytest.mark.parametrize("shares", [[1, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, 0.5], [-1, 1, 0, 1], ["a", 0, 0, 1]])
def test_bad_shares(shares):
    with pytest.raises(ConfigError, match="four shares that sum to 1"):
        check_shares(shares)


pairs = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(pairs, st.sampled_from(["random", "popularity", "same_occupation"]), st.integers(1, 4), st.integers(0, 3))
def test_mismatches_are_new_pairs_once_each(found, rule, per_positive, seed):
    frame = matched([(f"u{u}", f"i{i}") for u, i in found])
    occupations = {f"i{i}": [f"o{i % 3}", "all"] if i % 2 else [f"o{i % 3}"] for i in range(13)}
    twins = {f"i{i}": i // 2 for i in range(13)}
    mismatched, lacking = sample_mismatches(frame, rule, per_positive, seed, occupations=occupations, twins=twins)
    keys = set(zip(mismatched["user_id"], mismatched["item_id"], strict=True))
    assert len(keys) == len(mismatched)
    assert len(mismatched) + lacking == per_positive * len(frame)
    assert not keys & set(zip(frame["user_id"], frame["item_id"], strict=True))
    assert set(mismatched["item_id"]) <= set(frame["item_id"])
    assert mismatched["label"].eq(0).all()
    again, _ = sample_mismatches(frame.sample(frac=1, random_state=1), rule, per_positive, seed, occupations=occupations, twins=twins)  # fmt: skip # noqa: E501
    pd.testing.assert_frame_equal(mismatched, again)


def test_same_occupation_keeps_to_it_and_never_draws_a_twin():
    frame = matched([(f"u{n}", f"i{n}") for n in range(40)])
    occupations = {f"i{n}": ["nurse" if n < 20 else "cook"] for n in range(40)}
    twins = {f"i{n}": n // 2 for n in range(40)}  # i0 and i1 are near duplicates, and so on
    mismatched, lacking = sample_mismatches(frame, "same_occupation", 5, 0, occupations=occupations, twins=twins)
    assert lacking == 0
    own = mismatched["user_id"].str[1:].astype(int)
    job = mismatched["item_id"].str[1:].astype(int)
    assert ((own < 20) == (job < 20)).all()
    assert (own // 2 != job // 2).all()


def test_popularity_draws_in_proportion():
    """i0 has 300 matches, i1 has 100; the others are asked for by seekers matched with neither."""
    frame = matched([(f"a{n}", "i0") for n in range(300)] + [(f"b{n}", "i1") for n in range(100)] + [("c", "i2")])
    drawn = Counter()
    for seed in range(150):
        mismatched, _ = sample_mismatches(frame, "popularity", 1, seed)
        drawn.update(mismatched.loc[mismatched["user_id"].eq("c"), "item_id"])
    assert drawn["i0"] / 150 == pytest.approx(0.75, abs=0.11)
    uniform = Counter()
    for seed in range(150):
        mismatched, _ = sample_mismatches(frame, "random", 1, seed)
        uniform.update(mismatched.loc[mismatched["user_id"].eq("c"), "item_id"])
    assert uniform["i0"] / 150 == pytest.approx(0.5, abs=0.12)


def test_lacking_is_counted_and_rules_are_named():
    only = matched([("u1", "i1"), ("u2", "i1")])
    mismatched, lacking = sample_mismatches(only, "random", 3, 0)
    assert len(mismatched) == 0
    assert lacking == 6
    with pytest.raises(ConfigError, match="'hard' is no sampling rule; known: random, popularity, same_occupation"):
        sample_mismatches(only, "hard", 1, 0)
    with pytest.raises(ConfigError, match="needs a source that names the occupation"):
        sample_mismatches(only, "same_occupation", 1, 0)


def test_mismatches_take_the_time_of_their_match():
    frame = matched([("u1", "i1"), ("u2", "i2"), ("u3", "i3")]).assign(timestamp=[10.0, 20.0, 30.0])
    mismatched, _ = sample_mismatches(frame, "random", 1, 0)
    assert dict(zip(mismatched["user_id"], mismatched["timestamp"], strict=True)) == {
        "u1": 10.0,
        "u2": 20.0,
        "u3": 30.0,
    }


def test_stage_frames():
    frame = pd.concat([matched([(f"u{n}", f"i{n}") for n in range(8)]),
                       matched([(f"u{n}", f"i{n + 1}") for n in range(8)]).assign(label=0.0)])  # fmt: skip
    stage_of = {f"u{n}": ("sft", "reward", "rl", "recommendation")[n % 4] for n in range(8)}
    frames = stage_frames(frame, stage_of, Report("x"))
    assert frames["sft"]["label"].eq(1).all()
    assert len(frames["sft"]) == 2
    assert len(frames["reward"]) == len(frames["recommendation"]) == 4
    assert frames["rl"]["user_id"].tolist() == ["u2", "u6"]
    report = Report("x")
    sampled = stage_frames(
        matched([(f"u{n}", f"i{n}") for n in range(8)]), stage_of, report, rule="random", per_positive=1
    )
    assert report.count("sampled", "mismatches of reward (random)") == 2
    assert set(sampled["reward"]["item_id"]) == {"i1", "i5"}  # from the jobs of the stage


# ------------------------------------------------------------------------------------------------------ near duplicates


def test_shingles_by_hand():
    """Five words have three runs of three; case and punctuation do not count; a short text is one run."""
    a, b, c, d = shingles(["a b c d e", "A, b; c. D e!", "a b", ""], 3)
    assert len(a) == 3
    assert (a == b).all()
    assert len(c) == len(d) == 1
    assert c != d


def test_near_duplicates_match_a_slow_reference():
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(25):
        base = rng.integers(0, 5000, 120).astype(str)
        texts.append(" ".join(base))
        for changes in (2, 30, 110):
            copy = base.copy()
            copy[rng.choice(120, changes, replace=False)] = "x"
            texts.append(" ".join(copy))
    groups = near_duplicate_groups(texts, 0.7)
    sets = [{tuple(t.split()[i : i + 5]) for i in range(116)} for t in texts]
    close = {(a, b) for a in range(100) for b in range(a)
             if len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= 0.7}  # fmt: skip
    assert close
    assert {(a, b) for a in range(100) for b in range(a) if groups[a] == groups[b]} == close


def test_equal_texts_are_one_group():
    groups = near_duplicate_groups(["one two", "", "one two", "", "three"], 0.8)
    assert groups[0] == groups[2]
    assert groups[1] == groups[3]
    assert len(set(groups)) == 3
    assert len(near_duplicate_groups([], 0.8)) == 0


# --------------------------------------------------------------------------------------------------------------- leaks


def test_leak_figures_see_a_leak_and_its_absence():
    people = [f"u{n}" for n in range(30)]
    job_of = {u: f"j{u[1:]}" for u in people}
    leaky = {u: f"java sql secretfirm{u}" for u in people}, {job_of[u]: f"java linux secretfirm{u}" for u in people}
    plain = dict.fromkeys(people, "java sql"), dict.fromkeys(job_of.values(), "java linux")
    frame = pd.DataFrame(
        [(u, job_of[v], float(u == v)) for u in people for v in people[:5]], columns=["user_id", "item_id", "label"]
    )
    assert rare_overlap_auc(*leaky, job_of, frame) == 1.0
    assert rare_overlap_auc(*plain, job_of, frame) == 0.5
    assert tfidf_auc(*leaky, job_of, frame) == 0.5  # a word of one person alone is not counted
    skilled = {u: f"java skill{int(u[1:]) // 2}" for u in people}
    known = skilled, {job_of[u]: text for u, text in skilled.items()}
    even = frame[frame["user_id"].isin(people[::2]) & frame["item_id"].isin(["j0", "j2", "j4"])]
    assert tfidf_auc(*known, job_of, even) == 1.0
    assert tfidf_auc(*plain, job_of, frame) == 0.5


def test_report():
    report = Report("tables")
    report.add("read", "rows", 1200)
    report.add("dropped", "empty", 3)
    report.add("dropped", "empty")
    report.note(rule="random")
    assert report.as_dict() == {
        "source": "tables",
        "read": {"rows": 1200},
        "dropped": {"empty": 4},
        "notes": {"rule": "random"},
    }
    assert "    1,200  rows" in report.text()
