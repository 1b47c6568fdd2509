"""The statistics of a dataset, on one small enough to count by hand."""

import math

import pandas as pd
import pytest

from girl_recbole.atomic import DatasetFiles, write_docs, write_interactions, write_table, write_users
from girl_recbole.errors import DataError
from girl_recbole.stats import describe


@pytest.fixture
def files(tmp_path):
    files = DatasetFiles(tmp_path, "hand")
    rows = [("u1", "j1", 1, 86400 * 19478), ("u1", "j2", 0, 86400 * 19478), ("u2", "j1", 0, 86400 * 19479 + 5),
            ("u2", "j2", 0, 86400 * 19480)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "label", "timestamp"])
    write_interactions(files.inter, frame)
    write_interactions(files.stage("sft"), pd.DataFrame([("u1", "j3", 1)], columns=["user_id", "item_id", "label"]))
    write_users(files.stage("rl"), ["u9"])
    write_docs(files.udoc, [("u1", "Bakes bread, bakes rolls"), ("u2", "bread"), ("u9", "Nothing")], "user")
    write_docs(files.idoc, [("j1", "bread baker"), ("j2", "baker"), ("j3", "Bread and rolls baker")], "item")
    oracle = frame.assign(probability=[0.8, 0.5, 0.4, 0.2])
    write_table(files.oracle, oracle, {"user_id": "token", "item_id": "token", "probability": "float"})
    return files


def test_counts_by_hand(files):
    stages = describe(files)["stages"]
    rec = stages["recommendation"]
    assert (rec["pairs"], rec["users"], rec["items"], rec["match_rate"]) == (4, 2, 2, 0.25)
    assert rec["prior_entropy"] == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert rec["users_with_both_labels"] == 0.5  # u1 has both, u2 only rejections
    assert (rec["first_day"], rec["last_day"]) == ("2023-05-01", "2023-05-03")
    assert stages["sft"]["prior_entropy"] == 0
    assert "first_day" not in stages["sft"]


def test_overlaps_by_hand(files):
    report = describe(files)
    assert report["shared_users"] == {"recommendation & sft": 1, "recommendation & rl": 0, "sft & rl": 0}
    assert report["shared_items"] == {"recommendation & sft": 0}


def test_words_by_hand(files):
    texts = describe(files)["texts"]
    assert (texts["cv"]["documents"], texts["cv"]["words_mean"], texts["cv"]["types"]) == (3, 2.0, 4)
    assert texts["shared_types"] == pytest.approx(1 / 3)  # {bakes, bread} and {bread, baker}
    assert texts["shared_words"] == pytest.approx(2 / 4)  # u1 with j3: bread, rolls of four


def test_oracle_by_hand(files):
    oracle = describe(files)["oracle"]["recommendation"]
    assert oracle["auc"] == 1.0
    assert oracle["logloss"] == pytest.approx(-(math.log(0.8) + math.log(0.5) + math.log(0.6) + math.log(0.8)) / 4)


def test_oracle_of_other_data_is_refused(files):
    other = pd.DataFrame({"user_id": ["u1"], "item_id": ["j1"], "probability": [0.5]})
    write_table(files.oracle, other, {"user_id": "token", "item_id": "token", "probability": "float"})
    with pytest.raises(DataError, match=r"no probability for 3 of 4 pairs of recommendation .*u1-j2"):
        describe(files)


def test_no_dataset(tmp_path):
    with pytest.raises(DataError, match="no such dataset"):
        describe(DatasetFiles(tmp_path, "none"))
