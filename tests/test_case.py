"""case.py: the jobs that girl search finds, the scores of the models, skills told apart by hand, and no CV in sight
unless it is asked for."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_two_tower import build as build_model
from test_two_tower import fit

from girl_recbole import cli
from girl_recbole.atomic import DatasetFiles, read_docs, read_generated, read_interactions, write_docs, write_generated
from girl_recbole.case import CaseConfig, case, jd_skills, job_skills, predicted
from girl_recbole.config import make_config
from girl_recbole.embed import embed
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.index import IndexConfig, build
from girl_recbole.market import MarketConfig, match_probability, read_truth, simulate
from girl_recbole.market.judge import true_probability
from girl_recbole.rewards import Vocabulary
from girl_recbole.search import search

VOCABULARY = Vocabulary([("wound care", "tending wounds"), ("records", "EHR"), ("lifting",), ("French",), ("nights",)])


def test_skills_of_a_jd_by_hand():
    """tending wounds and wound care are one skill."""
    found = jd_skills(VOCABULARY, "I know tending wounds and lifting.", "We want wound care, French and EHR.")
    assert found == {"shared": ["wound care"], "invented": ["French", "records"], "missing": ["lifting"]}
    assert jd_skills(VOCABULARY, "", "nothing") == {"shared": [], "invented": [], "missing": []}


def test_skills_of_a_job_by_hand():
    cv, jd = "Tending wounds, lifting.", "Wound care and French."
    job = "Wound care, lifting, French, EHR; nights."
    assert job_skills(VOCABULARY, cv, jd, job) == {
        "in_both": ["wound care"], "in_jd": ["French"], "in_cv": ["lifting"], "in_neither": ["nights", "records"]
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- a whole dataset


@pytest.fixture
def files(toy, tiny_encoder):
    """The toy with vectors and index, a second generator ``far`` that writes for another trade, and a secret in u5's
    CV."""
    docs = read_docs(toy.udoc)
    write_docs(toy.udoc, ((u, f"{text} Zoltan" if u == "u5" else text) for u, text in docs.items()), "user")
    write_generated(toy.gdoc("far"), ((u, 0, "trade0 trade0" if "trade1" in t else "trade1") for u, t in docs.items()))
    config = make_config(IndexConfig, overrides={"encoder": str(tiny_encoder)})
    embed(toy, config)
    build(toy, config)
    return toy


def settings(tmp_path, tiny_encoder, **overrides) -> CaseConfig:
    terms = tmp_path / "terms.txt"
    terms.write_text("".join(f"trade{n}\n" for n in range(4)))
    given = {"encoder": str(tiny_encoder), "faithfulness_terms": str(terms), "search_top_k": 4,
             "saved_folder": str(tmp_path / "saved")}  # fmt: skip
    return make_config(CaseConfig, overrides=given | overrides)


def test_a_case_is_what_the_parts_say(files, tmp_path, tiny_encoder):
    config, out = settings(tmp_path, tiny_encoder), tmp_path / "case.json"
    shown = case(files, config, seeker="u5", generators="sft,far", output=str(out))
    record = json.loads(out.read_text())
    assert [block["generator"] for block in record["generators"]] == ["sft", "far"]
    (trade,) = {word for word in read_docs(files.udoc)["u5"].split() if word.startswith("trade")}
    jobs, pairs = read_docs(files.idoc), read_interactions(files.inter)
    answers = pairs[pairs["user_id"] == "u5"].groupby("item_id")["label"].max()
    for block in record["generators"]:
        wanted = search(files, dataclasses.replace(config, generator=block["generator"]), seekers=["u5"])["jobs of u5"]
        assert [(row["item_id"], row["score"]) for row in block["found"]] == [(r["job"], r["score"]) for r in wanted]
        (jd,) = block["jds"]
        assert jd["text"] == read_generated(files.gdoc(block["generator"]))["u5"][0]
        named = {word for word in jd["text"].split() if word.startswith("trade")}
        assert set(jd["skills"]["shared"]) == named & {trade}
        assert set(jd["skills"]["invented"]) == named - {trade}
        assert (block["reward"], block["true_probability"], jd["reward"]) == (None, None, None)
        for row in block["found"]:
            asked = {word for word in jobs[row["item_id"]].split() if word.startswith("trade")}
            assert set(row["skills"]["in_both"]) == asked & named & {trade}
            assert set(row["skills"]["in_jd"]) == (asked & named) - {trade}
            assert set(row["skills"]["in_neither"]) == asked - named - {trade}
            assert row["answer"] == answers.get(row["item_id"])
            assert (f"1 in the generated JD and in the CV: {trade}" in row["why"]) == (trade in asked & named)
            assert "model" not in row
    assert len(shown["jobs found by sft"]) == 4


def test_the_cv_is_shown_on_demand_only(files, tmp_path, tiny_encoder, monkeypatch, capsys):
    config, out = settings(tmp_path, tiny_encoder), tmp_path / "case.json"
    shown = case(files, config, seeker="u5", output=str(out))
    assert "Zoltan" not in out.read_text() + json.dumps(shown, default=str)
    assert [block["generator"] for block in json.loads(out.read_text())["generators"]] == ["far", "sft"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [
        "girl", "case", "toy", "--seeker=u5", "--generators=sft", "--show-text", "-k", "2", f"--data-path={tmp_path}",
        f"--encoder={tiny_encoder}", f"--faithfulness_terms={config.faithfulness_terms}",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    record = json.loads((tmp_path / "case-toy-u5.json").read_text())
    assert record["cv"].endswith("Zoltan")
    assert len(record["generators"][0]["found"]) == 2
    assert "Zoltan" in capsys.readouterr().out


def test_the_scores_of_a_trained_model(files, tmp_path, tiny_encoder):
    """Those of its own predict, for our Dot model and for an MLP; a job that is not in its data has none."""
    for name in ("GIRLEnhancedDot", "GIRLEnhancedMLP"):
        built = build_model(files, tiny_encoder, name, epochs=1, checkpoint_dir=str(tmp_path / "saved"))
        trainer = fit(*built, saved=True)
        trainer.evaluate(built[1][2], load_best_model=True, show_progress=False)
        data = built[1][0]._dataset
        users, items = data.field2token_id["user_id"], data.field2token_id["item_id"]
        pairs = {"user_id": torch.tensor([users["u5"]] * 2), "item_id": torch.tensor([items["i3"], items["i7"]])}
        with torch.no_grad():
            wanted = trainer.model.eval().predict(pairs).tolist()
        found = predicted(files, trainer.saved_model_file, "u5", ["i3", "nowhere", "i7"])
        assert [found["i3"], found["i7"]] == pytest.approx(wanted, abs=1e-5)
        assert found["nowhere"] is None
    with pytest.raises(DataError, match="its data has no pair of 'u999'"):
        predicted(files, trainer.saved_model_file, "u999", ["i3"])
    out = tmp_path / "case.json"
    case(files, settings(tmp_path, tiny_encoder), seeker="u5", generators="sft",
         checkpoint=trainer.saved_model_file, output=str(out))  # fmt: skip
    rows = json.loads(out.read_text())["generators"][0]["found"]
    assert all(0 < row["model"] < 1 for row in rows)


@pytest.mark.parametrize(
    "seeker, generators, message",
    [
        ("u9999", None, r"toy\.udoc: no seeker 'u9999'; ids look like u0, u1, u2"),
        ("u5", "sfd", r"--generators: 'sfd' is unknown - did you mean 'sft'\?; there are JDs of far, sft"),
        ("u5", "late", r"gen\.late"),
    ],
)
def test_what_is_refused(files, tmp_path, tiny_encoder, seeker, generators, message):
    write_generated(files.gdoc("late"), [("u5", 0, "trade0")]) if generators == "late" else None
    with pytest.raises((ConfigError, DataError), match=message):
        case(files, settings(tmp_path, tiny_encoder), seeker=seeker, generators=generators)
    with pytest.raises(DataError, match="no such checkpoint"):
        predicted(files, "nowhere.pth", "u5", ["i1"])


def test_a_market_tells_the_truth_of_jds_and_jobs(tmp_path, tiny_encoder):
    """Occupation and level as the market wrote them into a job; the JD that copies it has its probability."""
    files = DatasetFiles(tmp_path / "sim", "sim")
    sizes = {
        "market_sft_pairs": 60, "market_sft_seekers": 50, "market_sft_jobs": 40, "market_reward_pairs": 40,
        "market_reward_seekers": 30, "market_reward_jobs": 30, "market_rl_seekers": 10, "market_rec_pairs": 160,
        "market_rec_seekers": 60, "market_rec_jobs": 60,
    }  # fmt: skip
    simulate(files, make_config(MarketConfig, overrides=sizes))
    pairs, texts = read_interactions(files.inter), read_docs(files.idoc)
    first = pairs.groupby("user_id")["item_id"].first()
    write_generated(files.gdoc("copy"), ((user, 0, texts[item]) for user, item in first.items()))
    config = make_config(IndexConfig, overrides={"encoder": str(tiny_encoder)})
    embed(files, config)
    build(files, config)
    user, item = first.index[0], first.iloc[0]
    out = tmp_path / "case.json"
    case(files, settings(tmp_path, tiny_encoder, faithfulness_terms=None), seeker=user, output=str(out))
    (block,) = json.loads(out.read_text())["generators"]
    truth = read_truth(files)
    ((wanted,), _) = true_probability(truth, [user], [texts[item]])
    assert block["true_probability"] == pytest.approx(wanted)
    column = truth.item_ids.tolist().index(item)
    levels = ("trainee", "junior", "experienced", "senior", "lead")
    assert block["jds"][0]["level"] == levels[truth.jobs.level[column]]
    assert 0 < match_probability(
        truth.seekers.take(np.array([truth.user_ids.tolist().index(user)])), truth.jobs.take(np.array([column])),
        truth.intercept,
    ) < 1  # fmt: skip
    for row in block["found"]:
        ((chance,), _) = true_probability(truth, [user], [texts[row["item_id"]]])
        assert row["true_probability"] == pytest.approx(chance)
        assert row["same_occupation"] == (row["occupation"] == block["jds"][0]["occupation"])
