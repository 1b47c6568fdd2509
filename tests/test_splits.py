"""Splits: rules by hand and as properties, refusals by construction."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from girl_recbole import splits
from girl_recbole.atomic import PARTS, DatasetFiles, read_interactions, read_table, write_interactions, write_users
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import manifest_path
from girl_recbole.splits import SplitConfig, cold_parts, overlaps, split, warm_parts

RATIO = [0.77, 0.095, 0.135]


def frame(rows, time=True):
    columns = ["user_id", "item_id", "label", "timestamp"]
    return pd.DataFrame(rows, columns=columns if time else columns[:3])


def market(seekers=60, jobs=25, each=6, time=True, seed=0):
    """``seekers`` with ``each`` different jobs; a third matched; times spread at random over 1000 s."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(seekers):
        for n, i in enumerate(rng.choice(jobs, each, replace=False)):
            rows.append((f"u{u}", f"i{i}", float(n % 3 == 0), float(rng.integers(0, 1000)))[: 4 if time else 3])
    return frame(rows, time)


@pytest.fixture
def files(tmp_path):
    files = DatasetFiles(tmp_path, "toy")
    write_interactions(files.inter, market())
    return files


def config(**overrides):
    return make_config(SplitConfig, overrides=overrides)


def parts_of(files, name):
    return {part: read_interactions(files.split(name, part)) for part in PARTS}


# ------------------------------------------------------------------------------------------------------------- rules


EIGHT = frame(
    [(f"u{u}", f"i{t}", 0.0, float(t)) for u, t in [(1, 1), (1, 2), (2, 3), (2, 4), (3, 6), (3, 7), (3, 8), (1, 9)]]
)


def test_warm_move_by_hand():
    """u1 has rows at 1, 2, 9; u2 at 3, 4; u3 (unknown at the cut) at 6, 7, 8. Shares .5/.25/.25 of 8 rows: 4/2/2.

    With the cut after time 3, train is 1, 2, 3 and u3's earliest (6); a cut one row later would make 5.
    """
    rows = EIGHT
    codes, moved = warm_parts(rows, [0.5, 0.25, 0.25], 0, by_time=True, unseen="move")
    assert codes.tolist() == [0, 0, 0, 1, 0, 1, 2, 2]
    assert moved == 1


def test_warm_drop_by_hand():
    """The same rows: k = 3 keeps A = 5 rows of u1, u2 (3 > 2.5); k = 2 keeps A(2) = 3 of u1 (2 > 1.5); k = 1: 1 <= 1.5.

    k = 5 keeps all 8 (5 > 4), so the latest cut that leaves train at most half of what is kept is k = 1.
    """
    rows = EIGHT
    codes, moved = warm_parts(rows, [0.5, 0.25, 0.25], 0, by_time=True, unseen="drop")
    assert codes.tolist() == [0, 1, -1, -1, -1, -1, -1, 2]
    assert moved == 0


def test_cold_strict_takes_every_free_seeker_when_they_are_few():
    """10 seekers of 10 rows, 8 excluded: 20 free rows against 23 wanted, so none of the free ones is left to train."""
    rows = frame([(f"u{u}", f"i{i}", 0.0) for u in range(10) for i in range(10)], time=False)
    codes = cold_parts(rows, RATIO, 0, excluded={f"u{u}" for u in range(8)})
    assert (codes[rows["user_id"].isin(["u8", "u9"])] > 0).all()
    assert (codes[~rows["user_id"].isin(["u8", "u9"])] == 0).all()
    assert (codes == 1).sum() == (codes == 2).sum() == 10


def test_overlaps_by_hand():
    a = frame([("u1", "i1", 1.0), ("u2", "i2", 0.0)], time=False)
    b = frame([("u2", "i2", 0.0), ("u2", "i1", 0.0)], time=False)
    found = overlaps({"a": a, "b": b, "rl": pd.DataFrame({"user_id": ["u1"]})}).set_index(["first", "second"])
    assert found.loc[("a", "b")].tolist() == [1, 2, 1]
    assert found.loc[("a", "rl")].tolist() == [1, 0, 0]
    assert found.loc[("b", "rl")].tolist() == [0, 0, 0]


interactions = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 15), st.integers(0, 1), st.integers(0, 30)),
    min_size=1,
    max_size=80,
    unique_by=lambda row: row[:2],
).map(lambda rows: frame([(f"u{u}", f"i{i}", float(y), float(t)) for u, i, y, t in rows]))


@settings(max_examples=80, deadline=None)
@given(interactions, st.integers(0, 5), st.booleans(), st.sampled_from(["move", "drop"]))
def test_warm_properties(rows, seed, by_time, unseen):
    codes, moved = warm_parts(rows, RATIO, seed, by_time=by_time, unseen=unseen)
    train, rest = rows[codes == 0], rows[codes > 0]
    assert set(rest["user_id"]) <= set(train["user_id"])
    assert len(codes) == len(rows)
    if unseen == "move":
        assert (codes >= 0).all()
    else:
        assert moved == 0
        assert not set(rows[codes == -1]["user_id"]) & set(train["user_id"])
    if by_time:
        last_train = train.groupby("user_id")["timestamp"].max()
        assert (rest["timestamp"].to_numpy() >= last_train[rest["user_id"]].to_numpy()).all()
        if (codes == 1).any() and (codes == 2).any():
            assert rows["timestamp"][codes == 1].max() <= rows["timestamp"][codes == 2].min()
        if unseen == "drop" and len(rest):
            assert train["timestamp"].max() <= rest["timestamp"].min()
    again, _ = warm_parts(rows, RATIO, seed, by_time=by_time, unseen=unseen)
    assert (again == codes).all()


@settings(max_examples=80, deadline=None)
@given(interactions, st.integers(0, 5), st.sets(st.integers(0, 12).map(lambda u: f"u{u}")))
def test_cold_properties(rows, seed, excluded):
    codes = cold_parts(rows, RATIO, seed, excluded=excluded)
    seekers = [set(rows[codes == code]["user_id"]) for code in range(3)]
    assert sum(map(len, seekers)) == len(set().union(*seekers))
    assert not (seekers[1] | seekers[2]) & excluded
    assert set(np.unique(codes)) <= {0, 1, 2}
    assert (cold_parts(rows, RATIO, seed, excluded=excluded) == codes).all()


# -------------------------------------------------------------------------------------------------------------- verb


@pytest.mark.parametrize("rule", ["warm", "cold", "cold_strict"])
@pytest.mark.parametrize("time", [True, False])
def test_files_hold_every_row_once_near_the_shares(tmp_path, rule, time):
    files = DatasetFiles(tmp_path, "toy")
    write_interactions(files.inter, market(time=time))
    report = split(files, config(split=rule))
    parts = parts_of(files, rule)
    together = pd.concat(parts.values())
    assert len(together) == 360
    assert not together.duplicated(["user_id", "item_id"]).any()
    for part, share in zip(PARTS, RATIO, strict=True):
        assert len(parts[part]) == report["parts"][part]["rows"]
        assert len(parts[part]) / 360 == pytest.approx(share, abs=0.02)
    known = set(parts["train"]["user_id"])
    for part in ("valid", "test"):
        assert set(parts[part]["user_id"]) <= known if rule == "warm" else not set(parts[part]["user_id"]) & known
        manifest = json.loads(manifest_path(files.split(rule, part)).read_text())
        assert manifest["report"]["parts"]["train"]["rows"] == len(parts["train"])
        assert "toy.inter" in manifest["inputs"]
    table = read_table(files.path(f"{rule}.overlap"))
    assert table["pairs"].sum() == 0


def test_repeated_pairs_become_the_matched_one(files):
    rows = market()
    extra = rows.iloc[:5].assign(timestamp=2000.0, label=1.0)
    again = rows.iloc[5:8].assign(timestamp=3000.0)
    write_interactions(files.inter, pd.concat([rows, extra, again]))
    report = split(files, config(split="warm"))
    assert report["dropped_repeated_pairs"] == 8
    kept = pd.concat(parts_of(files, "warm").values()).set_index(["user_id", "item_id"])
    assert len(kept) == 360
    for row in extra.itertuples():
        assert kept.loc[(row.user_id, row.item_id), "label"] == 1.0
    for row in rows.iloc[5:8].itertuples():
        assert kept.loc[(row.user_id, row.item_id), "timestamp"] == row.timestamp


@pytest.mark.parametrize("rule", ["warm", "cold"])
def test_order_of_the_file_does_not_matter(tmp_path, rule):
    here, there = DatasetFiles(tmp_path / "a", "toy"), DatasetFiles(tmp_path / "b", "toy")
    write_interactions(here.inter, market())
    write_interactions(there.inter, market().sample(frac=1, random_state=1))
    split(here, config(split=rule))
    split(there, config(split=rule))
    for part in PARTS:
        assert here.split(rule, part).read_bytes() == there.split(rule, part).read_bytes()


def test_draws_lie_side_by_side_and_differ(files):
    split(files, config(split="cold", split_seed=1, split_suffix="s1"))
    split(files, config(split="cold", split_seed=2, split_suffix="s2"))
    first, second = parts_of(files, "cold-s1"), parts_of(files, "cold-s2")
    assert files.split("cold-s1", "test").name == "toy.cold-s1.test.inter"
    assert set(first["test"]["user_id"]) != set(second["test"]["user_id"])
    split(files, config(split="cold", seed=1))  # split_seed null: the global seed
    assert parts_of(files, "cold")["test"].equals(first["test"])


def test_cold_allows_and_cold_strict_avoids_the_stages(files):
    rows = market()
    in_stage = [f"u{u}" for u in range(40)]
    write_interactions(files.stage("sft"), rows[rows["user_id"].isin(in_stage) & rows["label"].eq(1)].head(80))
    write_interactions(files.stage("reward"), rows[rows["user_id"].isin(in_stage)].tail(80))
    write_users(files.stage("rl"), ["v1", "v2"])
    split(files, config(split="cold"))
    report = split(files, config(split="cold_strict"))
    staged = {u for s in ("sft", "reward") for u in read_interactions(files.stage(s))["user_id"]}
    cold, strict = parts_of(files, "cold"), parts_of(files, "cold_strict")
    assert set(cold["test"]["user_id"]) & staged
    assert not (set(strict["test"]["user_id"]) | set(strict["valid"]["user_id"])) & staged
    assert report["seekers_kept_out_of_evaluation"] == len(staged & set(rows["user_id"]))
    shared = {(row["first"], row["second"]): row for row in report["overlap"]}
    assert shared[("test", "sft")]["seekers"] == 0
    assert shared[("train", "sft")]["pairs"] == len(read_interactions(files.stage("sft")))


def test_pairs_of_sft_and_reward_leave_valid_and_test_only(files):
    split(files, config(split="warm"))
    before = parts_of(files, "warm")
    write_interactions(files.stage("sft"), pd.concat([before["valid"][:2].assign(label=1.0), before["train"][:3]]))
    write_interactions(files.stage("reward"), before["test"][:4])
    report = split(files, config(split="warm"))
    after = parts_of(files, "warm")
    assert report["dropped_pairs_of_sft_or_reward"] == 6
    assert after["train"].equals(before["train"])
    assert after["valid"].equals(before["valid"][2:].reset_index(drop=True))
    assert after["test"].equals(before["test"][4:].reset_index(drop=True))


def test_a_run_that_dies_leaves_no_parts_of_two_draws(files, monkeypatch):
    split(files, config(split="cold", split_seed=1))
    real = splits.write_interactions

    def write(path, frame):
        if "valid" in path.name:
            raise KeyboardInterrupt
        real(path, frame)

    monkeypatch.setattr(splits, "write_interactions", write)
    with pytest.raises(KeyboardInterrupt):
        split(files, config(split="cold", split_seed=2))
    left = [part for part in PARTS if files.split("cold", part).exists()]
    assert left == ["train"]
    assert not any(manifest_path(files.split("cold", part)).exists() for part in PARTS)


def test_refuses_an_rl_seeker_in_evaluation(files):
    write_users(files.stage("rl"), [f"u{u}" for u in range(60)])
    with pytest.raises(DataError, match=r"\d+ seekers of the rl stage are in valid \(u\d+, "):
        split(files, config(split="warm"))
    assert not files.split("warm", "train").exists()


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_refuses_an_rl_seeker_in_another_stage(files, stage):
    write_interactions(files.stage(stage), frame([("u1", "i1", 1.0, 0.0)]))
    write_users(files.stage("rl"), ["u1", "w2"])
    with pytest.raises(DataError, match=rf"1 of 2 seekers of the rl stage are in the {stage} stage too \(u1\)"):
        split(files, config(split="cold"))


def test_refuses_one_class(tmp_path):
    files = DatasetFiles(tmp_path, "toy")
    write_interactions(files.inter, market().assign(label=1.0))
    with pytest.raises(DataError, match="of valid have the label 1; AUC needs both classes"):
        split(files, config(split="warm"))


def test_refuses_an_empty_part(tmp_path):
    files = DatasetFiles(tmp_path, "toy")
    write_interactions(files.inter, market().iloc[:0])
    with pytest.raises(DataError, match="train and valid and test would be empty"):
        split(files, config(split="cold"))
    write_interactions(files.inter, frame([("u1", "i1", 1.0, 0.0), ("u2", "i1", 0.0, 1.0)]))
    with pytest.raises(DataError, match="valid and test would be empty"):
        split(files, config(split="warm"))
    rows = market()
    write_interactions(files.inter, rows)
    write_interactions(files.stage("reward"), rows)
    with pytest.raises(DataError, match=r"valid and test would be empty; cold_strict needs seekers"):
        split(files, config(split="cold_strict"))


def test_refuses_holes_in_time(tmp_path):
    files = DatasetFiles(tmp_path, "toy")
    rows = market()
    rows.loc[:2, "timestamp"] = np.nan
    write_interactions(files.inter, rows)
    with pytest.raises(DataError, match="3 of 360 rows have no timestamp"):
        split(files, config(split="warm"))
    assert split(files, config(split="warm", warm_order="random"))["order"] == "random"
    write_interactions(files.inter, market(time=False))
    with pytest.raises(DataError, match="no timestamp column"):
        split(files, config(split="warm", warm_order="time"))


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"split": "cold-s1"}, "'cold-s1' is no rule; known: warm, cold, cold_strict"),
        ({"split_suffix": "a/b"}, "letters, digits and _ only"),
        ({"split_ratio": [0.8, 0.1, 0.2]}, "sum to 1"),
        ({"split_ratio": [0.8, 0.2]}, "three shares"),
        ({"warm_unseen": "keep"}, "known: move, drop"),
    ],
)
def test_refuses_bad_config(files, overrides, said):
    with pytest.raises(ConfigError, match=said):
        split(files, config(**overrides))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000))
def test_different_seeds_draw_different_cold_seekers(seed):
    rows = market(time=False)
    a, b = (cold_parts(rows, RATIO, s, excluded=set()) for s in (seed, seed + 1))
    assert set(rows[a == 2]["user_id"]) != set(rows[b == 2]["user_id"])
