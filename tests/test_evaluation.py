"""Evaluation beside AUC: full ranking against RecBole's and a loop, groups, gaps, and what swapped CVs change."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_toy
from hypothesis import given
from hypothesis import strategies as st
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from sklearn.metrics import log_loss, roc_auc_score
from test_cli import girl
from test_dataset import make_config
from tiny_lms import plain_tokenizer, tiny_model

from girl_recbole import llm
from girl_recbole.atomic import (
    PARTS,
    DatasetFiles,
    read_docs,
    read_generated,
    read_interactions,
    read_table,
    write_generated,
    write_table,
)
from girl_recbole.config import make_config as stage_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.evaluation import auc_gap, evaluate, group_rows
from girl_recbole.fairness import Swap, _compared, _private_folder, _writer, read_swaps, write_swaps
from girl_recbole.generate import GenerateConfig, generate, generator_folder
from girl_recbole.manifest import file_hash, manifest_path, write_manifest
from girl_recbole.market.counterfactual import ATTRIBUTES, counterfactuals, swap, targets
from girl_recbole.models.scorer import Scorer
from girl_recbole.prompts import make_prompt
from girl_recbole.run import run_experiment
from girl_recbole.scoring import score_matrix

SHIPPED = DatasetFiles(Path(__file__).parent.parent / "dataset" / "jobrec-sim", "jobrec-sim")
LABELLED = {"mode": "labeled", "split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "group_by": "none"}
OFF = {"group_by": []}


def prepare(files, encoder, model, **more):
    """(config, loaders) of a model; RecBole's random split where the files of ``cold`` are gone."""
    config = make_config(files, encoder, model=model, **more)
    init_seed(config["seed"], True)
    return config, data_preparation(config, create_dataset(config))


def made(files, encoder, model, **more):
    config, loaders = prepare(files, encoder, model, **more)
    net = get_model(model)(config, loaders[0]._dataset)
    if not isinstance(net, Scorer):  # RecBole starts from weights so small that scores of float32 are equal
        for weights in net.parameters():
            torch.nn.init.normal_(weights, std=0.2)
    return config, loaders, net


@pytest.fixture
def mixed(toy):
    """The toy without its split files, so that RecBole's random split puts a seeker's pairs into all parts."""
    for part in PARTS:
        toy.split("cold", part).unlink()
    return toy


# ------------------------------------------------------------------------------------------------------------ ranking


@pytest.mark.parametrize("model", ["GIRLBaseDot", "NeuMF"])
def test_the_same_ranks_as_recboles_full_ranking(mixed, tiny_encoder, model):
    """Untrained models have no ties. RecBole's MAP@40 divides by min(40, R), and there are 40 jobs."""
    how = {"eval_args": {**LABELLED, "mode": "full"}, "topk": [5, 40], "valid_metric": "MRR@5"}
    how |= {
        "metrics": ["Recall", "NDCG", "Hit", "MRR", "MAP"],
        "train_neg_sample_args": None,
        "metric_decimal_place": 9,
    }
    how |= {"load_col": {"inter": ["user_id", "item_id", "label"]}}
    config, (train, valid, test), net = made(mixed, tiny_encoder, model, **how, rank_seekers=10**6, rank_topk=[5, 40])
    theirs = get_trainer(config["MODEL_TYPE"], config["model"])(config, net).evaluate(test, load_best_model=False)
    for part in (train, valid):  # RecBole leaves out the matched ones alone, which are all that it keeps of its models
        vars(part._dataset).pop("labelled_feat", None)
    found = evaluate(net, config, train, test, valid)["ranking"]["jobs_for_seekers"]
    for ours, name in (("recall@5", "recall@5"), ("recall@40", "recall@40"), ("ndcg@5", "ndcg@5"), ("hit@5", "hit@5"),
                       ("ndcg@40", "ndcg@40"), ("mrr", "mrr@40"), ("map", "map@40")):  # fmt: skip
        assert found[ours] == pytest.approx(theirs[name], abs=1e-6)
    assert found["candidates"] == 40


@torch.no_grad()
@pytest.mark.parametrize("model", ["GIRLEnhancedMLP", "NeuMF", "FM"])
def test_both_directions_against_a_loop(mixed, tiny_encoder, model):
    how = {"eval_args": LABELLED, "rank_seekers": 20, "rank_jobs": 15, "rank_topk": [3], "train_neg_sample_args": None}
    how |= {"load_col": {"inter": ["user_id", "item_id", "label"]}, "metrics": ["AUC"], "valid_metric": "AUC"}
    config, (train, valid, test), net = made(mixed, tiny_encoder, model, **how)
    found = evaluate(net, config, train, test, valid)["ranking"]
    assert (found["jobs_for_seekers"]["seekers"], found["seekers_for_jobs"]["jobs"]) == (20, 15)
    data = train._dataset
    known = {
        (u, i)
        for part in (train, valid)
        for u, i in zip(*(part._dataset.inter_feat[f].tolist() for f in ("user_id", "item_id")), strict=True)
    }
    pairs = test._dataset.inter_feat
    hits = {
        (u, i)
        for u, i, y in zip(*(pairs[f].tolist() for f in ("user_id", "item_id", "label")), strict=True)
        if y > 0.5
    }  # fmt: skip
    from recbole.data.interaction import Interaction

    everything = Interaction({
        "user_id": torch.arange(data.user_num).repeat_interleave(data.item_num),
        "item_id": torch.arange(data.item_num).repeat(data.user_num),
    })  # fmt: skip
    score = net.eval().predict(data.join(everything)).view(data.user_num, data.item_num)
    for name, count, own, sizes in (
        ("jobs_for_seekers", 20, 0, (data.user_num, data.item_num)),
        ("seekers_for_jobs", 15, 1, (data.item_num, data.user_num)),
    ):
        queries = sorted({pair[own] for pair in hits})
        queries = np.sort(np.random.default_rng([config["seed"], 1]).choice(queries, count, replace=False))
        table = score if own == 0 else score.T
        recalls, reciprocals = [], []
        for q in queries.tolist():
            pair = (lambda c, q=q: (q, c)) if own == 0 else (lambda c, q=q: (c, q))
            wanted = [c for c in range(1, sizes[1]) if pair(c) in hits]
            listed = [c for c in range(1, sizes[1]) if c in wanted or pair(c) not in known]
            places = sorted(1 + sum(bool(table[q, c] > table[q, one]) for c in listed) for one in wanted)
            recalls.append(sum(place <= 3 for place in places) / len(wanted))
            reciprocals.append(1 / places[0])
        assert found[name]["recall@3"] == pytest.approx(np.mean(recalls), abs=1e-6)
        assert found[name]["mrr"] == pytest.approx(np.mean(reciprocals), abs=1e-6)


def test_scores_of_both_directions_are_one_matrix(toy, tiny_encoder):
    config, (train, _, _), net = made(toy, tiny_encoder, "GIRLEnhancedMLP")
    users, items = np.arange(1, 31), np.array([7, 3, 12])
    whole = score_matrix(net, config, train._dataset, users)
    np.testing.assert_allclose(whole[:, items - 1], score_matrix(net, config, train._dataset, users, items), atol=1e-5)


def test_labelled_lists_by_hand(toy, tiny_encoder):
    """Of each seeker with both labels, by a loop over what predict says."""
    config, (train, valid, test), net = made(toy, tiny_encoder, "GIRLBaseDot", rank_seekers=1, rank_topk=[1], **OFF)
    found = evaluate(net, config, train, test, valid)["ranking"]
    with torch.no_grad():
        pairs = test._dataset.inter_feat
        p = net.predict(pairs).numpy()
    for name, field, count in (("labelled", "user_id", "seekers"), ("labelled_by_job", "item_id", "jobs")):
        firsts, size = [], 0
        for one in np.unique(pairs[field].numpy()):
            mine = pairs[field].numpy() == one
            y = pairs["label"].numpy()[mine]
            if 0 < y.sum() < len(y):
                size += len(y)
                firsts.append(1 / (1 + np.argmax(y[np.argsort(-p[mine], kind="stable")])))
        assert found[name][count] == len(firsts)
        assert found[name]["mrr"] == pytest.approx(np.mean(firsts), abs=0.02)  # ties of probabilities
        assert found[name]["candidates"] == pytest.approx(size / len(firsts))


# ------------------------------------------------------------------------------------------------------------- groups


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=60),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_groups_partition_the_pairs(rows, group):
    p, y, seeker = (np.array(column) for column in zip(*rows, strict=True))
    p, of_pair = p / 10, np.array(group)[seeker]
    found = group_rows(p, y, seeker, of_pair, ["a", "b", "c"], 10)
    assert sum(row["pairs"] for row in found) == len(p)
    assert sum(row["matched"] for row in found) == y.sum()
    assert sum(row["seekers"] for row in found) == len(np.unique(seeker))
    for row in found:
        mine = of_pair == "abc".index(row["group"])
        assert row["logloss"] == pytest.approx(log_loss(y[mine], np.clip(p[mine], 1e-15, 1), labels=[0, 1]), abs=1e-9)
        if 0 < row["matched"] < row["pairs"]:
            assert row["auc"] == pytest.approx(roc_auc_score(y[mine], p[mine]))
        else:
            assert row["auc"] is None


def test_scores_that_are_no_probabilities_have_no_logloss():
    (row,) = group_rows(np.array([2.0, -1.0]), np.array([1, 0]), np.arange(2), np.zeros(2, int), ["a"], 10)
    assert (row["auc"], row["logloss"], row["ece"]) == (1.0, None, None)


def gap_of(rng, noise, seekers=80, pairs=8):
    """Of two groups of seekers, one of whose scores are ``noise`` times noisier."""
    group = np.arange(seekers) % 2
    seeker = np.repeat(np.arange(seekers), pairs)
    y = rng.integers(0, 2, len(seeker))
    score = y + rng.normal(0, np.where(group[seeker] == 1, noise, 1.0))
    return auc_gap(score, y, seeker, group, ["plain", "noisy"], seed=int(rng.integers(1000)))


def test_a_planted_gap_is_found():
    found = gap_of(np.random.default_rng(0), noise=30.0)
    assert (found["largest"], found["smallest"]) == ("plain", "noisy")
    assert found["low"] < found["gap"] < found["high"]
    assert found["low"] > found["chance"]
    assert found["p"] == pytest.approx(1 / 201)


def test_where_there_is_no_gap_one_is_rarely_found():
    """At level .1, of 40 draws: more than 10 have a chance of 1 in 200 (binomial)."""
    rng = np.random.default_rng(1)
    found = [gap_of(rng, noise=1.0, seekers=40, pairs=4) for _ in range(40)]
    assert sum(one["p"] <= 0.1 for one in found) <= 10
    assert np.mean([one["gap"] for one in found]) == pytest.approx(np.mean([one["chance"] for one in found]), rel=0.35)


def test_a_gap_needs_two_groups():
    y, each, score = np.arange(60) % 2, np.arange(60), np.arange(60.0)
    assert auc_gap(score, y, each, np.zeros(60, int), ["a"], 0) is None
    assert auc_gap(score, y, each, (each > 40).astype(int), ["a", "b"], 0) is None  # b has 10 and 9 pairs
    assert auc_gap(score, y, each, (each > 39).astype(int), ["a", "b"], 0) is not None


def test_history_and_columns_of_the_user_file(mixed, tiny_encoder):
    users = list(read_docs(mixed.udoc))
    frame = {"user_id": users, "age": [20.0 + n % 40 for n in range(len(users))], "sex": ["f", "m"] * 120}
    import pandas as pd

    frame = pd.DataFrame(frame)
    frame.loc[0, "age"] = np.nan
    write_table(mixed.path("user"), frame, {"user_id": "token", "age": "float", "sex": "token"})
    how = {
        "eval_args": LABELLED,
        "group_by": ["history", "sex", "age"],
        "group_bands": {"history": [1, 5], "age": [30, 40]},
    }
    config, (train, valid, test), net = made(mixed, tiny_encoder, "GIRLBaseDot", **how)
    rows = evaluate(net, config, train, test, valid)["groups"]
    tokens = train._dataset.id2token("user_id", train._dataset.inter_feat["user_id"].numpy())
    count = dict(zip(*np.unique(tokens, return_counts=True), strict=True))
    tested = test._dataset.id2token("user_id", test._dataset.inter_feat["user_id"].numpy())
    of_history = {row["group"]: row["pairs"] for row in rows if row["by"] == "history"}
    assert of_history.get("few", 0) == sum(1 <= count.get(user, 0) < 5 for user in tested)
    assert of_history["many"] == sum(count.get(user, 0) >= 5 for user in tested)
    for by, names in (("sex", {"f", "m"}), ("age", {"<30", "30-39", "40+", "unknown"})):
        mine = [row for row in rows if row["by"] == by]
        assert {row["group"] for row in mine} <= names
        assert sum(row["pairs"] for row in mine) == len(tested)
    assert all(row["by"] in ("history", "sex", "age") for row in rows)


@pytest.mark.parametrize("key, value, message", [
    ("group_by", ["gender"], "group_by: gender is no column of"),
    ("group_bands", {"age": [40, 30]}, "group_bands: age: .40, 30.; ascending cut points"),
    ("rank_topk", [0], "rank_topk: .0.; at least one int"),
    ("rank_jobs", -1, "rank_jobs: -1; 0 or more"),
    ("fairness_seekers", 0, "fairness_seekers: 0; at least 1"),
    ("fairness_swaps", ["gender"], "needs .*toy.swaps, a table of CVs"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_said_before_training(toy, tiny_encoder, key, value, message, monkeypatch):
    monkeypatch.chdir(toy.folder)
    overrides = {"data_path": str(toy.folder.parent), "encoder": str(tiny_encoder), "split": "cold", key: value}
    with pytest.raises(ConfigError, match=message):
        run_experiment("GIRLBaseDot", "toy", overrides={**overrides, "results_file": None, "epochs": 10**9})


def test_sequential_models_do_not_score_by_ids(mixed, tiny_encoder):
    config = make_config(mixed, tiny_encoder, model="GIRLBaseDot", rank_seekers=1, eval_args=LABELLED)
    from recbole.utils import ModelType

    from girl_recbole.evaluation import check

    config["MODEL_TYPE"] = ModelType.SEQUENTIAL
    with pytest.raises(ConfigError, match="does not score a seeker and a job by their ids alone"):
        check(config)


# -------------------------------------------------------------------------------------------------- the market's words


@pytest.fixture(scope="module")
def market():
    rows = read_table(SHIPPED.path("user")).set_index("user_id").to_dict("index")
    return read_docs(SHIPPED.udoc), rows


def test_a_swap_applied_twice_restores_the_cv(market):
    cvs, rows = market
    count = dict.fromkeys(ATTRIBUTES, 0)
    for user, cv in list(cvs.items())[::3]:
        for attribute in ATTRIBUTES:
            for to in targets(attribute, rows[user]):
                other = swap(cv, attribute, rows[user], to)
                if other is not None:
                    count[attribute] += 1
                    assert other != cv
                    assert swap(other, attribute, {**rows[user], attribute: to}, rows[user][attribute]) == cv
    assert min(count.values()) > 300


def test_only_the_words_of_the_attribute_change(market):
    """Word by word; and no CV that tells an attribute is passed over."""
    cvs, rows = market
    told = {attribute: set() for attribute in ATTRIBUTES}
    for user, attribute, before, after, text in counterfactuals(SHIPPED, ATTRIBUTES, list(cvs)):
        told[attribute].add(user)
        if attribute == "school":
            assert before != after
            assert before == str(rows[user]["school_tier"])
            old, new = (
                re.sub(r"[A-Z]\w+ (\w+ )?(University|Institute|College|School)", "SCHOOL", one)
                for one in (cvs[user], text)
            )
            assert old == new
            continue
        changed = [(a, b) for a, b in zip(cvs[user].split(), text.split(), strict=True) if a != b]
        ((old, new),) = changed
        if attribute == "gender":
            assert {old.strip(".,").lower(), new.strip(".,").lower()} == {"male", "female"} == {before, after}
        else:
            assert abs(int(re.sub(r"\D", "", old)) - int(re.sub(r"\D", "", new))) == 15 == abs(int(before) - int(after))
    for attribute, words in (
        ("gender", r"\b(fe)?male\b"),
        ("age", r"\d years old|\bborn \d|\bmale, \d"),
        ("school", r"Studied at|Graduate of|, finished \d"),
    ):
        assert all(user in told[attribute] for user, cv in cvs.items() if re.search(words, cv, re.I))


def test_the_market_knows_what_it_can_swap():
    with pytest.raises(ConfigError, match="no 'gendre' to swap - did you mean 'gender'"):
        list(counterfactuals(SHIPPED, ["gendre"], ["u000001"]))
    with pytest.raises(DataError, match="1 of 1 seekers have no row"):
        list(counterfactuals(SHIPPED, ["gender"], ["nobody"]))


def test_swaps_are_read_as_they_were_written(tmp_path):
    swaps = [Swap("u1", "gender", "f", "m", "a\tb\nc\\n é"), Swap("u1", "age", "30", "45", "x")]
    write_swaps(tmp_path / "x.swaps", swaps)
    assert list(read_swaps(tmp_path / "x.swaps")) == swaps
    (tmp_path / "y.swaps").write_text("user_id:token\ttext:text\nu\tx\n")
    with pytest.raises(DataError, match="the header must be user_id:token, attribute:token"):
        list(read_swaps(tmp_path / "y.swaps"))


# ------------------------------------------------------------------------------------------------------ swaps, models


class Reader(Scorer):
    """Reads one word: 2 if the CV has ``word``, else -1; and an embedding a seeker, which must stay the seeker's."""

    learns = False
    word = "trade0"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        told = [2.0 if text and self.word in text[0].split() else -1.0 for text in dataset.texts("cv")]
        self.register_buffer("told", torch.tensor(told), persistent=False)
        self.own = torch.nn.Embedding(self.n_users, 1)
        self.job = torch.nn.Embedding(self.n_items, 1)

    def logits(self, interaction):
        user, item = interaction[self.USER_ID], interaction[self.ITEM_ID]
        return self.told[user] + (self.own(user) + self.job(item))[:, 0]

    def encode_users(self, ids):
        return self.told[ids] + self.own(ids)[:, 0]

    def encode_items(self, ids):
        return self.job(ids)[:, 0]

    def score_all(self, users, items):
        return users[:, None] + items


class Blind(Reader):
    word = "no-such-word"


def with_swaps(files, every=2):
    """Swaps of the trade, trade0 <-> trade1, in the CVs of every second seeker who tells one of the two."""
    cvs, swaps = read_docs(files.udoc), []
    for user, cv in list(cvs.items())[::every]:
        for before, after in (("trade0", "trade1"), ("trade1", "trade0")):
            if before in cv:
                swaps.append(Swap(user, "trade", before, after, cv.replace(before, after)))
    write_swaps(files.path("swaps"), swaps)
    return swaps


def fair(files, encoder, kind, **more):
    config, (train, valid, test) = prepare(
        files, encoder, "GIRLBaseDot", **{"fairness_swaps": ["trade"], **OFF, **more}
    )
    init_seed(0, True)
    net = kind(config, train._dataset)
    before = {path.name: file_hash(path) for path in files.folder.iterdir() if path.is_file()}
    found = evaluate(net, config, train, test, valid)["fairness"]
    assert {path.name: file_hash(path) for path in files.folder.iterdir() if path.is_file()} == before
    return found, net, test


def test_a_model_that_reads_the_attribute_and_one_that_does_not(toy, tiny_encoder):
    swaps = with_swaps(toy)
    found, net, test = fair(toy, tiny_encoder, Reader)
    (row,) = found["swap"]
    tested = set(read_interactions(toy.split("cold", "test"))["user_id"])
    swapped = {one.user: one for one in swaps if one.user in tested}
    assert row["told"] == pytest.approx(len(swapped) / len(tested))
    assert (row["seekers"], found["towards"]) == (len(swapped), {"trade": "trade1"})
    pairs = test._dataset.inter_feat
    users = test._dataset.id2token("user_id", pairs["user_id"].numpy())
    with torch.no_grad():  # told is 2 for trade0 and -1 for all others, so a swap moves the logit by 3
        logits = net.logits(pairs)
    change = []
    for user, s in zip(users, logits.tolist(), strict=True):
        if user in swapped:
            other = s + (3 if swapped[user].after == "trade0" else -3)
            change.append(abs(1 / (1 + np.exp(-other)) - 1 / (1 + np.exp(-s))))
    assert row["pairs"] == len(change)
    assert row["mean_abs_change"] == pytest.approx(np.mean(change), abs=1e-5)
    assert row["largest_change"] == pytest.approx(np.max(change), abs=1e-5)
    assert row["mean_change"] == pytest.approx(-np.mean(change), abs=1e-5)  # towards trade1 is down for all
    assert row["low"] <= row["mean_change"] <= row["high"] < 0
    assert row["as_new"] == pytest.approx(0, abs=1e-6)  # the seeker's own embedding went with him
    assert row["flips@5"] == 0  # all jobs move alike
    ways = {one["direction"]: one for one in found["directions"]}
    assert ways["trade0 -> trade1"]["mean_change"] < 0 < ways["trade1 -> trade0"]["mean_change"]
    blind, _, _ = fair(toy, tiny_encoder, Blind)
    (row,) = blind["swap"]
    assert (row["mean_abs_change"], row["largest_change"], row["flips@5"]) == (0, 0, 0)


def test_at_most_so_many_seekers(toy, tiny_encoder):
    with_swaps(toy)
    found, _, _ = fair(toy, tiny_encoder, Reader, fairness_seekers=3)
    assert found["swap"][0]["seekers"] == 3


def test_texts_that_are_the_cv_itself_are_refused(toy, tiny_encoder):
    user, cv = next((user, cv) for user, cv in read_docs(toy.udoc).items() if int(user[1:]) % 10 in (8, 9))
    write_swaps(toy.path("swaps"), [Swap(user, "trade", "a", "b", cv)])
    with pytest.raises(DataError, match="1 of 1 texts are the seeker's own CV"):
        fair(toy, tiny_encoder, Reader)
    with pytest.raises(ConfigError, match=r"colour cannot be swapped in toy; known: trade"):
        fair(toy, tiny_encoder, Reader, fairness_swaps=["colour"])


def test_the_candidates_do_not_depend_on_what_a_model_learns_from(mixed, tiny_encoder):
    """LightGCN with sampled negatives learns from matches alone; its lists leave the same pairs out as any other's."""
    from girl_recbole.evaluation import _known, _members

    pairs, groups = [], []
    for model, sampled in (("NeuMF", None), ("LightGCN", {"distribution": "uniform", "sample_num": 1})):
        how = {"load_col": {"inter": ["user_id", "item_id", "label"]}, "eval_args": LABELLED, **OFF}
        how |= {"metrics": ["AUC"], "valid_metric": "AUC", "train_neg_sample_args": sampled}
        _, (train, valid, _) = prepare(mixed, tiny_encoder, model, **how)
        data = train._dataset
        users, items = _known(train, valid)
        pairs.append(sorted(zip(data.id2token("user_id", users), data.id2token("item_id", items), strict=True)))
        everyone = sorted(set(read_docs(mixed.udoc)) & set(data.field2token_id["user_id"]))
        groups.append(_members("history", (1, 5), mixed, train, everyone)[1].tolist())
    assert pairs[0] == pairs[1]
    assert groups[0] == groups[1]


def test_a_model_of_ids_cannot_change(toy, tiny_encoder):
    with_swaps(toy)
    how = {"load_col": {"inter": ["user_id", "item_id", "label"]}, "eval_args": LABELLED, "train_neg_sample_args": None}
    how |= {"metrics": ["AUC"], "valid_metric": "AUC"}
    config, (train, valid, test), net = made(toy, tiny_encoder, "NeuMF", fairness_swaps=["trade"], **how)
    found = evaluate(net, config, train, test, valid)["fairness"]["swap"][0]
    assert found["seekers"] > 5
    assert (found["mean_abs_change"], found["largest_change"], found["flips@5"]) == (0, 0, 0)


@pytest.mark.parametrize("model, changes", [
    ("TFIDF", True), ("GradientBoosting", True), ("PJFNN", True), ("BIGRec", False),
])  # fmt: skip
def test_models_that_are_fitted_to_training_texts_stay_what_they_were(mixed, tiny_encoder, model, changes):
    """Who is swapped is in train, too: idf, vocabulary and trees are those of the real CVs. BIGRec reads
    no CV, and the JD is kept."""
    with_swaps(mixed)
    how = {"eval_args": LABELLED, "fairness_swaps": ["trade"], "fairness_seekers": 20, **OFF}
    config, (train, valid, test), net = made(mixed, tiny_encoder, model, **how)
    (row,) = evaluate(net, config, train, test, valid)["fairness"]["swap"]
    assert row["as_new"] == pytest.approx(0, abs=1e-5)
    assert (row["mean_abs_change"] > 0.005) == changes
    assert (row["flips@5"] > 0) == changes


def test_the_command_says_what_the_row_of_training_says(toy, tiny_encoder, tmp_path, monkeypatch, capsys):
    """A trained network whose signal is the trade: swapping it moves probabilities far; and all numbers agree."""
    monkeypatch.chdir(tmp_path)
    with_swaps(toy)
    keys = {"rank_seekers": 20, "rank_jobs": 10, "fairness_swaps": ["trade"]}
    row = run_experiment(
        "GIRLEnhancedMLP", "toy",
        overrides={"data_path": str(toy.folder.parent), "encoder": str(tiny_encoder), "split": "cold", "epochs": 4,
                   "show_progress": False, "state": "WARNING", **keys},
    )  # fmt: skip
    assert json.loads((tmp_path / "results.jsonl").read_text()) == row
    (swapped,) = row["fairness"]["swap"]
    assert swapped["mean_abs_change"] > 0.1
    assert swapped["flips@5"] > 0.5
    assert swapped["as_new"] < 1e-5
    (cold,) = row["groups"]
    assert (cold["group"], cold["auc"]) == ("cold", pytest.approx(row["test"]["auc"], abs=1e-4))
    assert row["fairness"]["auc_gap"] == {"history": None}
    where = ("--data-path", toy.folder.parent, "--checkpoint", row["checkpoint"])
    asked = ("--rank_seekers=20", "--rank_jobs=10", "--fairness_swaps=[trade]", "--output", "found.json")
    assert girl(monkeypatch, "evaluate", "toy", *where, *asked) == 0
    said = json.loads((tmp_path / "found.json").read_text())
    for key in ("ranking", "groups", "fairness"):
        assert flat(said[key]) == pytest.approx(flat(row[key]), abs=1e-6)
    assert "jobs_for_seekers.recall@10" in capsys.readouterr().out
    (toy.folder.parent / "other").mkdir()
    assert girl(monkeypatch, "evaluate", "other", *where) == 2
    assert "trained on toy, not on other" in capsys.readouterr().err


def flat(value, name=""):
    """{path: number or text} of nested JSON."""
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in flat(one, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for n, one in enumerate(value) for k, v in flat(one, f"{name}.{n}").items()}
    return {name: value}


# ----------------------------------------------------------------------------------------------- JDs written anew


@pytest.fixture
def written(tmp_path):
    """The toy with JDs that a random generator wrote."""
    files = make_toy(tmp_path, users=60, items=20, pairs=500)
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    tokenizer = plain_tokenizer()
    tiny_model(tokenizer, seed=0, spread=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(
        folder, "generator", config={}, prompt=make_prompt("en").id, fingerprint=llm.load(str(folder)).fingerprint
    )
    files.gdoc("sft").unlink()
    limits = {
        "max_cv_tokens": 60,
        "max_jd_tokens": 8,
        "temperature": 1.0,
        "gen_samples": 2,
        "saved_folder": str(tmp_path / "saved"),
    }
    generate(files, stage_config(GenerateConfig, overrides=limits))
    return files


def test_jds_are_written_anew_as_they_were_written(written, tmp_path):
    """With a CV's own random numbers and text, the JDs that the file has; with another seed others."""
    jds, cvs = read_generated(written.gdoc("sft")), read_docs(written.udoc)
    some = list(jds)[:4]
    write = _writer(written, "sft", str(tmp_path / "saved"))
    assert [list(row) for row in write([(cvs[u], cvs[u], 2) for u in some])] == [jds[u] for u in some]
    assert [list(row) for row in write([(cvs[u], cvs[u], 2) for u in some], seed=1)] != [jds[u] for u in some]


def test_regenerated_jds_have_rows_of_their_own(written, tiny_encoder, tmp_path):
    with_swaps(written, every=1)
    how = {
        "fairness_swaps": ["trade"],
        "fairness_regenerate": True,
        "saved_folder": str(tmp_path / "saved"),
        "n_generated": 2,
    }
    config, (train, valid, test), net = made(written, tiny_encoder, "GIRLEnhancedMLP", fairness_seekers=4, **how)
    found = evaluate(net, config, train, test, valid)["fairness"]
    assert [row["attribute"] for row in found["swap"]] == ["trade"]
    assert [row["attribute"] for row in found["regenerated"]] == ["trade", "another draw"]
    assert {row["jd"] for row in found["directions"]} == {"kept", "regenerated"}
    assert all(row["mean_abs_change"] > 0 for row in [*found["swap"], *found["regenerated"]])
    assert found["swap"][0]["as_new"] < 1e-5
    config["saved_folder"] = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such generator; fairness_regenerate writes JDs anew"):
        evaluate(net, config, train, test, valid)


def test_seekers_without_a_jd_have_none_written_anew(written, tmp_path, caplog):
    cvs, jds = read_docs(written.udoc), read_generated(written.gdoc("sft"))
    some = list(jds)[:3]
    rows = [(user, n, text) for user, texts in jds.items() if user != some[1] for n, text in enumerate(texts)]
    write_generated(written.gdoc("sft"), rows)
    manifest_path(written.gdoc("sft")).unlink()
    swaps = [Swap(user, "trade", "one", "other", f"{cvs[user]} word1") for user in some]
    compared = _compared(written, {"generator": "sft"}, swaps, True, str(tmp_path / "saved"))
    anew = [one.swap for one in compared if one.jd == "regenerated"]
    assert {one.user for one in anew} == {some[0], some[2]}
    assert f"no JD of 1 of 3 seekers (first: {some[1]}), for whom none is written anew" in caplog.text


def test_what_a_killed_process_left_of_its_copies_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "girl-fairness-left"
    (left / "toy").mkdir(parents=True)
    (left / "toy" / "toy.udoc").write_text("a CV")
    (left / ".lock").touch()
    with _private_folder() as mine:
        assert mine.parent == tmp_path
        assert not left.exists()
        with _private_folder() as other:
            assert mine.exists()  # in use
            assert other != mine
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_checkpoint(toy, tmp_path):
    from girl_recbole.checkpoints import load_trained

    for content in (b"# Read me", b"", b"PK\x03\x04"):
        (tmp_path / "no.pth").write_bytes(content)
        with pytest.raises(DataError, match=r"no\.pth: cannot be read as a checkpoint of run_recbole"):
            load_trained(tmp_path / "no.pth", toy)
