"""A user's own tables: mapping, stages, and every kind of bad row."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest

from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions, read_users
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import read_manifest
from girl_recbole.prepare import PrepareConfig, prepare
from girl_recbole.splits import SplitConfig, split

COLUMNS = {"cv_id": "id", "cv_text": ["about", "past"], "job_id": "id", "jd_text": "text",
           "user": "who", "job": "what", "label": "answer", "time": "when"}  # fmt: skip
LABELS = {"hired": 1, "rejected": 0}


def make_tables(folder, seekers=40, jobs=12, kind="csv"):
    cvs = [{"id": f"c{n}", "about": f"person {n}", "past": f'did "x",\ttab\nand more {n}'} for n in range(seekers)]
    jds = [{"id": f"j{n}", "text": f"we need {n}"} for n in range(jobs)]
    answers = [
        {"who": f"c{u}", "what": f"j{(u + k * 5) % jobs}", "answer": "hired" if k == u % 3 else "rejected",
         "when": f"2023-05-{1 + (u + k) % 28:02d}T10:00:00"}
        for u in range(seekers) for k in range(3)
    ]  # fmt: skip
    return {name: write(folder / f"{name}.{kind}", rows)
            for name, rows in (("cvs", cvs), ("jobs", jds), ("feedback", answers))}  # fmt: skip


def write(path, rows, encoding="utf-8"):
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding=encoding, errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(folder, tables, **overrides):
    files = DatasetFiles(folder / "out", "mine")
    settings = {"columns": COLUMNS, "labels": LABELS, **tables, **overrides}
    return files, prepare(files, make_config(PrepareConfig, overrides=settings), "tables")


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_every_kind_gives_the_same_dataset(tmp_path, kind):
    files, report = run(tmp_path, make_tables(tmp_path, kind=kind))
    assert read_docs(files.udoc)["c3"] == 'about: person 3\npast: did "x",\ttab\nand more 3'
    assert read_docs(files.idoc)["j3"] == "we need 3"
    inter = read_interactions(files.inter)
    assert inter["label"].mean() == pytest.approx(1 / 3)
    assert inter["timestamp"].iloc[0] % 86400 == 10 * 3600  # ISO without a zone is UTC
    assert read_interactions(files.stage("sft"))["label"].eq(1).all()
    assert report["read"]["rows of feedback." + kind] == 120
    stages = [set(read_interactions(p)["user_id"]) for p in (files.inter, files.stage("sft"), files.stage("reward"))]
    stages.append(set(read_users(files.stage("rl"))))
    assert sorted(map(len, stages)) == [4, 8, 14, 14]
    assert sum(map(len, stages)) == len(set().union(*stages)) == 40
    assert read_manifest(files.inter)["report"] == read_manifest(files.udoc)["report"] == report
    assert "rows of feedback" in files.path("report.txt").read_text()
    assert split(files, make_config(SplitConfig, overrides={"split_ratio": [0.5, 0.2, 0.3]}))["order"] == "time"


def test_unix_times_and_numeric_labels_need_no_mapping(tmp_path):
    tables = make_tables(tmp_path)
    answers = [{**row, "answer": int(row["answer"] == "hired"), "when": 1683000000 + n}
               for n, row in enumerate(rows_of(tables["feedback"]))]  # fmt: skip
    tables["feedback"] = write(tmp_path / "feedback.csv", answers)
    files, _ = run(tmp_path, tables, labels={})
    assert read_interactions(files.inter)["timestamp"].between(1683000000, 1683000119).all()


def test_stages_by_dates(tmp_path):
    dates = {"sft": ["2023-05-01", "2023-05-10"], "reward": ["2023-05-11", "2023-05-15"],
             "rl": ["2023-05-16", "2023-05-18"], "recommendation": ["2023-05-16", "2023-05-27"]}  # fmt: skip
    files, report = run(tmp_path, make_tables(tmp_path), stage_dates=dates)
    days = pd.to_datetime(read_interactions(files.inter)["timestamp"], unit="s").dt.day
    assert days.between(19, 27).all()  # the 16th to 18th went to rl, the first stage that has them
    reward = pd.to_datetime(read_interactions(files.stage("reward"))["timestamp"], unit="s").dt.day
    assert reward.between(11, 15).all()
    others = {
        u for p in (files.inter, files.stage("sft"), files.stage("reward")) for u in read_interactions(p)["user_id"]
    }
    rl = set(read_users(files.stage("rl")))
    assert rl == {"c15"}  # rows on the 16th, 17th, 18th only
    assert not rl & others
    assert report["dropped"]["seekers of rl who are in another stage too"] > 0
    assert report["dropped"]["feedback outside the stages' dates"] == 3  # the 28th: seekers 25, 26, 27


def test_matches_only_need_a_named_rule(tmp_path):
    tables = make_tables(tmp_path)
    tables["feedback"] = write(
        tmp_path / "feedback.csv", [r for r in rows_of(tables["feedback"]) if r["answer"] == "hired"]
    )
    with pytest.raises(ConfigError, match="all 40 pairs are matched, so mismatches must be sampled by a rule"):
        run(tmp_path, tables)
    files, report = run(tmp_path, tables, negatives="random", negatives_per_positive=2)
    inter = read_interactions(files.inter)
    assert inter["label"].mean() == pytest.approx(1 / 3)
    assert inter["timestamp"].notna().all()
    assert report["notes"]["mismatches"] == "sampled, random"


def test_observed_and_sampled_mismatches_are_not_mixed(tmp_path):
    with pytest.raises(ConfigError, match="80 observed mismatches; observed and sampled ones are not mixed"):
        run(tmp_path, make_tables(tmp_path), negatives="random")


# ------------------------------------------------------------------------------------------------------------ bad rows

BAD_CVS = {
    "without text": {"id": "x", "about": " ", "past": ""},
    "longer than 1000 characters (max_doc_chars)": {"id": "x", "about": "a" * 1_000_000, "past": ""},
    "not UTF-8": {"id": "x", "about": "caf\udce9", "past": ""},
    "with a NUL in the text": {"id": "x", "about": "a\0b", "past": ""},
    "with an id seen before": {"id": "c1", "about": "again", "past": ""},
    "with an id that is empty, not UTF-8 or holds white space": {"id": "a b", "about": "text", "past": ""},
}


@pytest.mark.parametrize("reason", BAD_CVS)
def test_bad_cvs(tmp_path, reason):
    tables = make_tables(tmp_path)
    tables["cvs"] = write(tmp_path / "cvs.csv", [*rows_of(tables["cvs"]), BAD_CVS[reason]])
    said = reason.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DataError, match=rf"cvs.csv: 1 of 41 rows cannot be used: 1 {said} \(.*on_bad=drop"):
        run(tmp_path, tables, max_doc_chars=1000)
    files, report = run(tmp_path, tables, max_doc_chars=1000, on_bad="drop")
    assert report["dropped"][f"cvs.csv: {reason}"] == 1
    docs = read_docs(files.udoc)
    assert len(docs) == 40
    assert docs["c1"].startswith("about: person 1")  # the first of two


def test_a_megabyte_is_fine_where_allowed(tmp_path):
    tables = make_tables(tmp_path)
    rows = rows_of(tables["cvs"])
    rows[0]["past"] = "é" * 1_000_000
    tables["cvs"] = write(tmp_path / "cvs.csv", rows)
    files, _ = run(tmp_path, tables, max_doc_chars=2_000_000)
    assert len(read_docs(files.udoc)["c0"]) == len("about: person 0\npast: ") + 1_000_000


BAD_ANSWERS = {
    "of a seeker without a usable CV": ("who", "nobody"),
    "for a job without a usable JD": ("what", "nothing"),
    "with a label that labels does not map": ("answer", "maybe"),
    "with a time that is neither ISO 8601 nor seconds since 1970, 1e+08 to 9e+09": ("when", "yesterday"),
}


@pytest.mark.parametrize("reason", BAD_ANSWERS)
def test_bad_feedback(tmp_path, reason):
    tables = make_tables(tmp_path)
    column, value = BAD_ANSWERS[reason]
    rows = rows_of(tables["feedback"])
    rows[7][column] = rows[9][column] = value
    tables["feedback"] = write(tmp_path / "feedback.csv", rows)
    said = reason.replace("+", r"\+")
    with pytest.raises(DataError, match=rf"2 of 120 rows cannot be used: 2 {said} \({value}, {value}\)"):
        run(tmp_path, tables)
    _, report = run(tmp_path, tables, on_bad="drop")
    assert report["dropped"][f"feedback.csv: {reason}"] == 2


@pytest.mark.parametrize("value", ["20230517", "1684300000000", "17"])
def test_days_and_milliseconds_are_no_seconds(tmp_path, value):
    tables = make_tables(tmp_path)
    rows = rows_of(tables["feedback"])
    rows[3]["when"] = value
    tables["feedback"] = write(tmp_path / "feedback.csv", rows)
    with pytest.raises(DataError, match=rf"1 with a time that is neither .* \({value}\)"):
        run(tmp_path, tables)


@pytest.mark.parametrize("table", ["cvs", "jobs", "feedback"])
def test_a_comma_outside_quotes_is_a_bad_row(tmp_path, table):
    tables = make_tables(tmp_path)
    with open(tables[table], "a") as file:
        file.write({"cvs": "x,cook, baker,long\n", "jobs": "x,cook, baker\n"}.get(table, "c1,j9,hired,2023-05-01,x\n"))
    with pytest.raises(DataError, match=r"1 with more fields than the header .* \(row \d+\)"):
        run(tmp_path, tables)
    _, report = run(tmp_path, tables, on_bad="drop")
    assert report["dropped"][f"{table}.csv: with more fields than the header (a comma outside quotes?)"] == 1


def test_an_open_quote_is_an_error(tmp_path):
    tables = make_tables(tmp_path)
    with open(tables["jobs"], "a") as file:
        file.write('x,"a quote that nothing closes\ny,text\n')
    with pytest.raises(DataError, match=r"jobs\.csv: line 15: unexpected end of data; is a quote open"):
        run(tmp_path, tables, on_bad="drop")


def test_repeated_and_contradictory_rows_become_one_matched(tmp_path):
    tables = make_tables(tmp_path)
    rows = rows_of(tables["feedback"])
    tables["feedback"] = write(tmp_path / "feedback.csv", [*rows, {**rows[1], "answer": "hired"}, rows[2]])
    files, report = run(tmp_path, tables, stage_shares=[0, 0, 0, 1])
    inter = read_interactions(files.inter).set_index(["user_id", "item_id"])["label"]
    assert inter.index.is_unique
    assert len(inter) == 120
    assert inter[rows[1]["who"], rows[1]["what"]] == 1
    assert report["dropped"]["further rows of a pair (a match is kept before a mismatch)"] == 2


def test_every_pair_that_no_stage_keeps_is_counted(tmp_path):
    _, report = run(tmp_path, make_tables(tmp_path))
    kept = sum(count for what, count in report["kept"].items() if "pairs" in what)
    assert report["dropped"]["mismatched pairs of sft seekers"] == 28
    assert report["dropped"]["pairs of rl seekers (their CVs alone are used)"] == 12
    assert kept + 28 + 12 == 120


def test_a_pair_matched_in_one_stage_is_no_mismatch_in_another(tmp_path):
    """12 jobs, 20 seekers, each with a match in every stage: chance alone would draw many matches of other stages."""
    tables = make_tables(tmp_path, seekers=20)
    rows = [{"who": f"c{u}", "what": f"j{(u + 3 * k) % 12}", "answer": "hired", "when": f"2023-05-{10 * k + 1:02d}"}
            for u in range(20) for k in range(3)]  # fmt: skip
    tables["feedback"] = write(tmp_path / "feedback.csv", rows)
    dates = {stage: [f"2023-05-{10 * k + 1:02d}"] * 2 for k, stage in enumerate(("sft", "reward", "recommendation"))}
    files, _ = run(tmp_path, tables, stage_dates=dates, negatives="random", negatives_per_positive=4)
    matched = {(row["who"], row["what"]) for row in rows}
    drawn = []
    for path in (files.stage("reward"), files.inter):
        table = read_interactions(path)
        drawn += table[table["label"] == 0][["user_id", "item_id"]].itertuples(index=False, name=None)
    assert len(drawn) == len(set(drawn)) == 160
    assert not set(drawn) & matched


def test_an_empty_recommendation_stage_is_an_error(tmp_path):
    dates = {"sft": ["2023-05-01", "2023-05-31"], "recommendation": ["2024-01-01", "2024-02-01"]}
    with pytest.raises(DataError, match="the recommendation stage has no pair"):
        run(tmp_path, make_tables(tmp_path), stage_dates=dates)


def test_a_dropped_job_takes_its_feedback_along(tmp_path):
    tables = make_tables(tmp_path)
    jobs = rows_of(tables["jobs"])
    jobs[0]["text"] = ""
    tables["jobs"] = write(tmp_path / "jobs.csv", jobs)
    files, report = run(tmp_path, tables, on_bad="drop")
    assert report["dropped"]["feedback.csv: for a job without a usable JD"] == 11  # u + 5k = 0 mod 12
    assert "j0" not in set(read_interactions(files.inter)["item_id"]) | set(read_docs(files.idoc))


def test_labels_other_than_0_and_1(tmp_path):
    with pytest.raises(DataError, match=r"120 with a label other than 0 and 1 \(hired, rejected, rejected, ...\)"):
        run(tmp_path, make_tables(tmp_path), labels={})


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"columns": {**COLUMNS, "cv_txt": "x"}}, "unknown key 'cv_txt' - did you mean 'cv_text'"),
        ({"columns": {"cv_id": "id"}}, "no column named for cv_text, job_id, jd_text, user, job"),
        ({"labels": {"hired": 2}}, "must map the values of the label column to 1"),
        ({"cvs": None}, "cvs: name the file"),
        ({"on_bad": "ignore"}, "known: error, drop"),
        ({"stage_dates": {"sft": ["2023-01-01", "2023-02-01"]}}, "the last is required"),
        ({"stage_dates": {"recommendation": ["soon", "later"]}}, "must be two ISO dates"),
    ],
)
def test_bad_settings(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, make_tables(tmp_path), **overrides)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.csv", "id,abuot,past\n1,a,b\n", "no column 'about' - did you mean 'abuot'?; it has id, abuot, past"),
        ("a.csv", "", "no column 'id'"),
        ("a.jsonl", '{"id": "1", "about": "a", "past": "b"}\n{cut', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: an object is required, not a list"),
        ("a.parquet", "PAR0", "not a Parquet file"),
        ("a.xlsx", "", "unknown kind '.xlsx'; .csv, .parquet and .jsonl are read"),
    ],
)
def test_bad_files(tmp_path, name, content, said):
    tables = make_tables(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        run(tmp_path, {**tables, "cvs": str(tmp_path / name)})
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        run(tmp_path, {**tables, "cvs": str(tmp_path / "gone.csv")})


def test_an_unknown_source(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown source 'excel'; known: resume-corpus, incruit, pjf, tables"):
        prepare(DatasetFiles(tmp_path, "x"), make_config(PrepareConfig), "excel")
