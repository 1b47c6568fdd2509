"""rewards.py: each reward against answers worked out by hand or by a slow reference, and what is refused."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_lms import plain_tokenizer, tiny_model

from girl_recbole.atomic import DatasetFiles, write_docs, write_interactions, write_users
from girl_recbole.config import load_properties, properties_file
from girl_recbole.encoder import Encoder
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import write_manifest
from girl_recbole.prompts import make_prompt, words_of
from girl_recbole.reward import RewardModel, _load, tokenizer_hash
from girl_recbole.rewards import (
    Vocabulary,
    bm25_search,
    check_rewards,
    format_reward,
    length_reward,
    make_rewards,
    read_matched_jobs,
    read_vocabulary,
    retrieval_reward,
)

JOBS = {
    "i0": "Nurse\nWound care on our ward, trade0 trade0 word1",
    "i1": "Cook\nSoups and sauces for two hundred guests, trade1 trade1 word2",
    "i2": "Clerk\nLetters, files and the post, trade2 trade2 word3",
    "i3": "Nurse\nWound care on our ward, trade0 trade0 word1",  # i0 again
    "i4": "Driver\nParcels all over town, trade3 trade3 word4",
}
MATCHED = [("u0", "i0"), ("u1", "i1"), ("u2", "i2"), ("u2", "i4"), ("u3", "i3"), ("u7", "i4")]


def pairs(rows, label=1.0) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(label=label)


@pytest.fixture
def files(tmp_path) -> DatasetFiles:
    """Six matched seekers in sft; u0 and u5 are in the recommendation stage, u1 and u6 in reward, u8 and u9 in rl."""
    files = DatasetFiles(tmp_path / "toy", "toy")
    write_docs(files.idoc, JOBS.items(), "item")
    write_interactions(files.stage("sft"), pd.concat([pairs(MATCHED), pairs([("u4", "i1")], 0.0)]))
    write_interactions(files.stage("reward"), pairs([("u1", "i0"), ("u6", "i0")], 0.0))
    write_interactions(files.inter, pairs([("u0", "i1"), ("u5", "i2"), ("u0", "i4")]))
    write_users(files.stage("rl"), ["u8", "u9"])
    return files


def settings(**changed):
    shipped = load_properties(properties_file("overall.yaml"))
    return SimpleNamespace(**{**shipped, "saved_folder": "nowhere", **changed})


@pytest.fixture
def reward_model() -> RewardModel:
    tokenizer = plain_tokenizer()
    config = tiny_model(tokenizer).config
    config.num_labels = 1
    torch.manual_seed(3)
    model = transformers.LlamaForSequenceClassification(config).eval()
    return RewardModel(model, tokenizer, make_prompt("en"), 0.1, 2.0, 40, 40, "abc", "memory")


# ---------------------------------------------------------------------------------------------------------- retrieval


def test_retrieval_reward_by_hand():
    scores = np.array([3.0, 1.0, 2.0, 2.0])
    assert retrieval_reward(scores, np.array([0])) == 1  # rank 1
    assert retrieval_reward(scores, np.array([1])) == pytest.approx(1 / math.log2(5))  # rank 4
    assert retrieval_reward(scores, np.array([2])) == 0.5  # rank 3: a tie counts against it
    assert retrieval_reward(scores, np.array([2, 3])) == pytest.approx(1 / math.log2(3))  # but not one with its own
    assert retrieval_reward(scores, np.arange(4)) == 1
    assert retrieval_reward(np.zeros(1), np.array([0])) == 1


def test_bm25_is_lucenes_formula():
    texts = ["Nurse nurse ward", "the ward cook", "a post", "护士 看护病人"]
    words = [["nurse", "nurse", "ward"], ["the", "ward", "cook"], ["a", "post"], list("护士看护病人")]
    query = "The NURSE, the 护 (unheard)"
    mean = sum(map(len, words)) / 4

    def score(document):
        total = 0.0
        for word in ["the", "nurse", "the", "护"]:
            having = sum(word in other for other in words)
            tf = document.count(word)
            idf = math.log(1 + (4 - having + 0.5) / (having + 0.5))
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        return total

    (scores,) = bm25_search(texts)([query])
    assert scores == pytest.approx([score(document) for document in words], rel=1e-5)
    assert bm25_search(texts)(["", "unheard"]).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("search", ["bm25", "embedding"])
def test_a_jd_like_the_matched_job_ranks_it_first(files, search, tiny_encoder):
    config = settings(rewards={"retrieval": 1.0}, retrieval_search=search, encoder=str(tiny_encoder), reward_batch=2)
    rewards = make_rewards(files, config)
    users = ["u0", "u1", "u2", "u3", "u7"]
    own = [JOBS[item] for item in ("i0", "i1", "i4", "i3", "i4")]
    assert rewards(users, [""] * 5, own).total.tolist() == [1] * 5
    wrong = rewards(users, [""] * 5, [JOBS["i2"], JOBS["i0"], JOBS["i1"], JOBS["i1"], JOBS["i0"]]).total
    assert (wrong <= 1 / math.log2(3)).all()


def test_a_jd_without_a_known_word_ranks_last(files):
    rewards = make_rewards(files, settings(rewards={"retrieval": 1.0}))
    scored = rewards(["u0", "u2"], ["", ""], ["", "Zzz"])
    assert scored.total == pytest.approx([1 / math.log2(5), 1 / math.log2(4)])  # 4 texts; u2 has two of them


def test_embedding_search_is_cosine_and_jobs_are_encoded_once(files, tiny_encoder, monkeypatch):
    config = settings(rewards={"retrieval": 1.0}, retrieval_search="embedding", encoder=str(tiny_encoder))
    part = make_rewards(files, config).parts["retrieval"]
    queries = ["word1 trade0", "trade3"]
    encoder = Encoder(str(tiny_encoder))
    jobs, found = encoder.encode(part.jobs.texts)[0], encoder.encode(queries)[0]
    cosine = found @ jobs.T / np.linalg.norm(found, axis=1)[:, None] / np.linalg.norm(jobs, axis=1)
    asked = []
    real = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **more: asked.extend(texts) or real(self, texts, **more))
    assert part.search(queries) == pytest.approx(cosine, abs=1e-5)
    part.search(queries)
    assert sorted(asked) == sorted([*part.jobs.texts, *queries, *queries])


def test_only_matches_of_sft_are_read_each_text_once_and_none_that_is_judged(files, caplog):
    jobs = read_matched_jobs(files)
    assert jobs.texts == [JOBS["i0"], JOBS["i1"], JOBS["i2"], JOBS["i4"]]
    assert {user: rows.tolist() for user, rows in jobs.of.items()} == {
        "u0": [0], "u1": [1], "u2": [2, 3], "u3": [0], "u7": [3]
    }  # fmt: skip
    assert jobs.judged == 0
    write_interactions(files.split("cold", "valid"), pairs([("u7", "i4"), ("u0", "i1")]))
    write_interactions(files.split("warm-s1", "test"), pairs([("u1", "i1")], 0.0))
    jobs = read_matched_jobs(files)
    assert jobs.texts == [JOBS["i0"], JOBS["i2"], JOBS["i4"]]
    assert jobs.judged == 2
    assert "2 matched pairs are in valid or test too" in caplog.text
    assert sorted(jobs.of) == ["u0", "u2", "u3"]


def test_seekers_without_a_match_are_named_and_where_there_are_some(files):
    rewards = make_rewards(files, settings(rewards={"retrieval": 1.0, "format": 1.0}))
    said = (
        r"3 of 4 seekers have no matched job in toy\.sft\.inter \(u8, u9, u4\); each needs one\. Seekers with one, by "
        r"stage: sft 5 of 6, reward 1 of 2, rl 0 of 2, recommendation 1 of 2\. Read the CVs of a stage .*rl_stages"
    )
    with pytest.raises(DataError, match=said):
        rewards.check(["u0", "u8", "u9", "u4", "u8"])
    with pytest.raises(DataError, match=said):
        rewards(["u0", "u8", "u9", "u4"], [""] * 4, [""] * 4)
    make_rewards(files, settings(rewards={"format": 1.0})).check(["u8"])  # nobody asks


def test_retrieval_needs_jobs_with_texts(files):
    write_docs(files.idoc, [(item, jd if item != "i2" else " ") for item, jd in JOBS.items()], "item")
    with pytest.raises(DataError, match=r"1 of 5 matched jobs of toy\.sft\.inter have no text there \(i2\)"):
        read_matched_jobs(files)
    write_interactions(files.stage("sft"), pairs(MATCHED, 0.0))
    with pytest.raises(DataError, match=r"no matched pair \(label 1\) among 6 rows"):
        read_matched_jobs(files)


# --------------------------------------------------------------------------------------------------- format and length


def test_format_reward():
    body = "You plan care, dress wounds, keep records and talk with families every day of the week."
    assert format_reward(f"Senior Nurse\n{body}") == 1
    assert format_reward("Senior Nurse") == format_reward("") == format_reward("Nurse\n" + "care " * 60) == 0


def test_length_reward_by_hand():
    words = [0, 10, 20, 40, 100, 160, 240, 320, 5000]
    assert [length_reward(n, 40, 160) for n in words] == [-1, -0.75, -0.5, 0, 0, 0, -0.5, -1, -1]
    assert [length_reward(n, 0, 1) for n in (0, 1, 2, 3)] == [0, 0, -1, -1]


def test_words_are_those_of_parse_jd():
    assert len(words_of("Sr. Node.js developer, 5 years")) == 6
    assert len(words_of("高级 Java 工程师")) == 6  # a character is a word


@given(st.integers(0, 10**6), st.integers(0, 500), st.integers(1, 500))
def test_length_reward_range_and_slope(words, low, more):
    high = low + more
    value, longer = length_reward(words, low, high), length_reward(words + 1, low, high)
    assert -1 <= value <= 0
    assert (value == 0) == (low <= words <= high)
    assert longer >= value if words < low else longer <= value


# -------------------------------------------------------------------------------------------------------- faithfulness


def test_faithfulness_by_hand_with_the_shipped_skills():
    """Formal names in the JD, short forms in the CV."""
    skills = read_vocabulary(None)
    cv = "Bookkeeper. Good at recs and CI/CD. Daily tools: SQL."
    assert skills.unsupported(cv, "We require bank reconciliation and continuous integration and delivery.") == 0
    assert skills.unsupported(cv, "Bank reconciliation, Microsoft Excel.") == 0.5  # recs; no Excel
    assert skills.unsupported("", "Structured query language SQL and Microsoft Excel.") == 1
    assert skills.unsupported(cv, "A friendly team.") == skills.unsupported("", "") == 0
    assert skills.unsupported(cv, cv) == 0


def test_vocabulary_of_the_user(files, tmp_path):
    path = tmp_path / "skills.tsv"
    path.write_text("\ufeffpython\tPython 3\n\nC++\tcpp\nmachine learning\tML\nlearning\n会计\nsales\tML\n", "utf-8")
    skills = read_vocabulary(str(path))
    assert len(skills.skills) == 6
    assert skills.unsupported("I write cpp.", "Python, C++") == 0.5
    assert skills.unsupported("", "Machine learning") == 1  # the longest form: one skill, not learning as well
    assert skills.unsupported("learning", "machine learning") == 1
    assert skills.unsupported("sales", "ML") == 0  # ML may mean either
    assert skills.unsupported("PYTHON pythons", "Python") == 1  # other words
    assert skills.unsupported("注册会计师", "熟悉会计，Python语言") == 0.5  # no white space in Chinese
    config = settings(rewards={"faithfulness": 2.0}, faithfulness_terms=str(path))
    scored = make_rewards(files, config)(["u8", "u9"], ["cpp", ""], ["Python, C++", "Sales"])
    assert scored.parts["faithfulness"].tolist() == [-0.5, -1]
    assert scored.total.tolist() == [-1, -2]


def test_vocabulary_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"faithfulness_terms: .*none\.tsv: no such file"):
        read_vocabulary(str(tmp_path / "none.tsv"))
    (tmp_path / "blank.tsv").write_text("\n \t \n")
    with pytest.raises(DataError, match="no skill in 2 lines"):
        read_vocabulary(str(tmp_path / "blank.tsv"))
    (tmp_path / "latin.tsv").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 3\)"):
        read_vocabulary(str(tmp_path / "latin.tsv"))


TERMS = Vocabulary([("SQL", "structured query language"), ("recs",), ("month end", "closing"), ("C++",)])
WORDS = st.lists(st.sampled_from(["SQL", "Recs", "closing", "month", "end", "C++", "the", "."]), max_size=12)


@given(WORDS, WORDS)
def test_faithfulness_range_and_what_support_does(cv, jd):
    cv, jd = " ".join(cv), " ".join(jd)
    share = TERMS.unsupported(cv, jd)
    assert 0 <= share <= 1
    assert TERMS.unsupported(f"{cv} . {jd}", jd) == 0
    assert TERMS.unsupported(f"{cv} . SQL", jd) <= share
    (reward,) = TERMS.faithfulness(["u"], [cv], [jd], None)
    assert reward == -share


# ----------------------------------------------------------------------------------------------------- the weighted sum


def test_weighted_sum_of_unweighted_parts(files, reward_model):
    weights = {"model": 0.5, "retrieval": 2, "format": 0, "length": -1.0, "faithfulness": 3}
    rewards = make_rewards(files, settings(rewards=weights), reward_model)
    users, cvs = ["u0", "u1", "u2"], ["A nurse, good at recs.", "A cook.", "A clerk."]
    jds = [JOBS["i0"], "Bank reconciliation", "Clerk\n" + JOBS["i2"] * 9]
    scored = rewards(users, cvs, jds, [True, False, True])
    assert list(scored.parts) == list(weights)
    assert scored.parts["format"].tolist() == [format_reward(jd) for jd in jds]
    assert scored.parts["length"].tolist() == [length_reward(len(words_of(jd)), 40, 160) for jd in jds]
    assert scored.parts["model"] == pytest.approx(reward_model.score(cvs, jds, [True, False, True]))
    assert scored.parts["model"][1] != pytest.approx(reward_model.score(cvs, jds)[1])  # it has no EOS
    assert scored.parts["faithfulness"].tolist() == [-1, -1, 0]  # wound care is a skill
    assert scored.total == pytest.approx(sum(weight * scored.parts[name] for name, weight in weights.items()))
    assert scored.total.dtype == np.float64


def test_the_reward_model_can_be_handed_in_and_exchanged(files, reward_model):
    rewards = make_rewards(files, settings(), reward_model)
    assert rewards.model is reward_model
    before = rewards(["u0"], ["cv"], ["jd"]).total
    rewards.model = RewardModel(**{**vars(reward_model), "scale": 1.0})
    assert rewards(["u0"], ["cv"], ["jd"]).total == pytest.approx(2 * before)
    assert make_rewards(files, settings(rewards={"format": 1.0}), reward_model).model is None


def test_the_reward_model_of_the_dataset_is_loaded(files, reward_model, tmp_path):
    config = settings(saved_folder=str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"no such reward model\. Run `girl reward toy"):
        make_rewards(files, config)
    folder = tmp_path / "saved" / "toy" / "reward"
    reward_model.model.save_pretrained(folder)
    reward_model.tokenizer.save_pretrained(folder)
    facts = {
        "mean": 0.1, "scale": 2.0, "slope": 1.0, "intercept": 0.0, "layers": None, "seed": 0, "prompt_language": "en",
        "max_cv_tokens": 40, "max_jd_tokens": 40,
    }  # fmt: skip
    (folder / "reward.json").write_text(json.dumps(facts))
    stored = _load(folder, "fp32")
    write_manifest(
        folder, "reward_model", config={}, inputs=[files.stage("reward")], prompt=stored.prompt.id,
        tokenizer=tokenizer_hash(stored.tokenizer), fingerprint=stored.fingerprint,
    )  # fmt: skip
    rewards = make_rewards(files, config)
    scored = rewards(["u8", "u9"], ["A nurse.", "A cook."], ["Nurse", "Cook"], [True, False])
    expected = reward_model.score(["A nurse.", "A cook."], ["Nurse", "Cook"], [True, False])
    assert scored.total == pytest.approx(expected, abs=1e-5)


def test_a_score_that_is_no_number_names_seekers_and_part(files, reward_model):
    rewards = make_rewards(files, settings(rewards={"format": 1.0, "model": 1.0}), reward_model)
    with torch.no_grad():
        reward_model.model.score.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"reward model: 3 of 3 JDs have a score .* those of u5, u9; each needs one"):
        rewards(["u5", "u9", "u5"], ["a", "b", "c"], ["d", "e", "f"])


def test_fingerprint_changes_with_all_that_decides_scores(files, reward_model, tmp_path, tiny_encoder):
    every = {"model": 1, "retrieval": 1, "format": 1, "length": 1, "faithfulness": 1}

    def fingerprint(model=reward_model, **changed):
        return make_rewards(files, settings(**{"rewards": every, **changed}), model).fingerprint

    terms = tmp_path / "terms.tsv"
    terms.write_text("SQL\n")
    first = fingerprint()
    assert first == fingerprint(reward_batch=3, rewards=dict(reversed(every.items())), length_words=(40, 160))
    embedding = {"retrieval_search": "embedding", "encoder": str(tiny_encoder)}
    found = [
        first, fingerprint(rewards=every | {"format": 2}), fingerprint(rewards={"format": 1}),
        fingerprint(length_words=[41, 160]), fingerprint(faithfulness_terms=str(terms)), fingerprint(**embedding),
        fingerprint(**embedding, max_text_tokens=8),
        fingerprint(RewardModel(**{**vars(reward_model), "fingerprint": "abd"})),
    ]  # fmt: skip
    terms.write_text("SQL\nETL\n")
    found.append(fingerprint(faithfulness_terms=str(terms)))
    write_interactions(files.split("cold", "test"), pairs([("u7", "i4")]))
    found.append(fingerprint())
    write_docs(files.idoc, (JOBS | {"i4": "Pilot"}).items(), "item")
    found.append(fingerprint())
    write_interactions(files.stage("sft"), pairs(MATCHED))
    found.append(fingerprint())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"rewards": {}}, "at least one reward and its weight are required"),
        ({"rewards": ["model"]}, r"rewards: \['model'\]"),
        ({"rewards": {"modle": 1.0}}, "unknown reward 'modle' - did you mean 'model'"),
        ({"rewards": {"model": "much"}}, "the weight of model is 'much'; a finite number is required"),
        ({"rewards": {"model": True}}, "the weight of model is True"),
        ({"rewards": {"model": float("nan")}}, "the weight of model is nan"),
        ({"rewards": {"model": 0, "length": 0.0}}, r"all weights are 0 \(model, length\)"),
        ({"retrieval_search": "bm52"}, "'bm52' is unknown - did you mean 'bm25'"),
        ({"length_words": [160, 40]}, r"length_words: \[160, 40\]; two whole numbers"),
        ({"length_words": [1.5, 40]}, "two whole numbers"),
        ({"length_words": [40]}, "two whole numbers"),
        ({"length_words": [0, 0]}, "two whole numbers"),
        ({"reward_batch": 0}, "reward_batch: 0; at least 1"),
    ],
)
def test_settings_that_cannot_work(changed, said):
    with pytest.raises(ConfigError, match=said):
        check_rewards(settings(**changed))


def test_shipped_settings_are_sound_and_the_import_is_light():
    assert check_rewards(settings()) == {"model": 1.0}
    program = "import json, sys, girl_recbole.rewards; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "trl", "sentence_transformers", "bm25s", "sklearn", "recbole"}
    assert not heavy & set(json.loads(done.stdout))
