"""What the matches in train tell of the held-out labels: leaks that were met in real data, and their absence."""

import logging

import numpy as np
import pandas as pd
import pytest

from girl_recbole.atomic import DatasetFiles, write_interactions
from girl_recbole.config import make_config
from girl_recbole.leaks import told_by_train, warnings_of
from girl_recbole.manifest import read_manifest
from girl_recbole.splits import SplitConfig, split


def _one_match_a_job(rng, jobs=400):
    """Each job is matched with one seeker and mismatched with three others."""
    rows = [(f"u{user}", f"j{job}", float(k == 0)) for job in range(jobs)
            for k, user in enumerate(rng.choice(jobs, 4, replace=False))]  # fmt: skip
    return pd.DataFrame(rows, columns=["user_id", "item_id", "label"])


def _sampled_mismatches(rng, pairs=4000):
    """Matches fall on 50 popular jobs of 500, mismatches are drawn from all."""
    labels = (rng.random(pairs) < 0.3).astype(float)
    jobs = np.where(labels > 0.5, rng.integers(0, 50, pairs), rng.integers(0, 500, pairs))
    return pd.DataFrame(
        {"user_id": [f"u{i}" for i in range(pairs)], "item_id": [f"j{j}" for j in jobs], "label": labels}
    )


def _recruiting(rng, pairs=4000):
    """Some jobs are popular, some are easier to get than others; both sides have many pairs."""
    jobs = np.minimum(rng.geometric(0.02, pairs), 200)
    labels = (rng.random(pairs) < 0.15 + 0.2 * (jobs % 3) / 2).astype(float)
    users = [f"u{i}" for i in rng.integers(0, 600, pairs)]
    return pd.DataFrame({"user_id": users, "item_id": [f"j{j}" for j in jobs], "label": labels})


def _halves(frame):
    return frame.iloc[::2], frame.iloc[1::2]


@pytest.mark.parametrize("make, said", [
    (_one_match_a_job, ["jobs", "in reverse"]), (_sampled_mismatches, ["jobs", "drawn otherwise"]), (_recruiting, None),
])  # fmt: skip
def test_leaks_are_found_and_recruiting_is_none(make, said):
    train, held_out = _halves(make(np.random.default_rng(0)).sample(frac=1, random_state=0))
    found = warnings_of(told_by_train(train, held_out), held_out["label"])
    assert len(found) == (said is not None)
    assert all(word in found[0] for word in said or ())


def test_the_auc_by_hand_and_none_where_nobody_is_known():
    train = pd.DataFrame({"user_id": list("abc"), "item_id": list("xxy"), "label": [1.0, 1.0, 0.0]})
    held_out = pd.DataFrame({"user_id": list("dddd"), "item_id": list("xyxz"), "label": [1.0, 1.0, 0.0, 0.0]})
    # matches in train: 2, 0, 2, 0. Of the pairs (matched, mismatched): tie, above; below, tie.
    assert told_by_train(train, held_out) == {"jobs": 0.5, "seekers": None}


def test_few_pairs_do_not_raise_an_alarm():
    assert warnings_of({"jobs": 0.3, "seekers": None}, np.array([1, 1, 0, 0, 0])) == []
    assert len(warnings_of({"jobs": 0.3, "seekers": 0.3}, np.arange(200) % 2)) == 2


def test_girl_split_says_so(tmp_path, caplog):
    files = DatasetFiles(tmp_path / "toy", "toy")
    files.folder.mkdir()
    write_interactions(files.inter, _one_match_a_job(np.random.default_rng(1)))
    with caplog.at_level(logging.WARNING):
        report = split(files, make_config(SplitConfig, overrides={"split": "cold"}))
    assert "toy, split cold: how many matches jobs have in train" in caplog.text
    assert "in reverse" in caplog.text
    assert report["told_by_matches_in_train"]["jobs"] < 0.35
    assert report["told_by_matches_in_train"]["seekers"] is None
    assert (
        read_manifest(files.split("cold", "test"))["report"]["told_by_matches_in_train"]
        == report["told_by_matches_in_train"]
    )
