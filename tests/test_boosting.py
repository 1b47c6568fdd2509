"""Gradient boosting: the table of features by hand, no label in its own row, planted rules, checkpoints."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from test_bigrec import only_trades
from test_two_tower import build, fit, pairs_of

from girl_recbole.atomic import PARTS, read_docs, read_interactions, write_docs, write_interactions, write_table
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models.boosting import _codes, _Column, _History

SMALL = {"boosting_rounds": 60}


def add_columns(toy, users=None, items=None):
    """Trades as columns: of u0, i0, ... the number of the seeker or job modulo 4."""
    for ending, count, columns in (("user", 240, users or {}), ("item", 40, items or {})):
        frame = pd.DataFrame({f"{ending}_id": [f"{ending[0]}{n}" for n in range(count)]})
        types = {f"{ending}_id": "token"}
        for name, (kind, values) in columns.items():
            frame[name], types[name] = values(frame.index), kind
        write_table(toy.path(ending), frame, types)


def relabel(toy, rule):
    """New labels of all parts: ``rule(users, items, rng)`` of the numbers in the ids."""
    rng = np.random.default_rng(0)
    for part in PARTS:
        frame = read_interactions(toy.split("cold", part))
        users, items = (frame[key].str[1:].astype(int).to_numpy() for key in ("user_id", "item_id"))
        frame["label"] = rule(users, items, rng).astype(float)
        write_interactions(toy.split("cold", part), frame)


def silent(toy):
    """All texts the same: nothing is left but columns and histories."""
    write_docs(toy.udoc, [(user, "word1") for user in read_docs(toy.udoc)], "user")
    write_docs(toy.idoc, [(item, "word1") for item in read_docs(toy.idoc)], "item")


TRADE = {"trade": ("token", lambda number: "t" + (number % 4).astype(str))}


# ------------------------------------------------------------------------------------------------------------ features


def test_features_by_hand(toy, tiny_encoder):
    number = ("float", lambda number: number.astype(float))
    add_columns(
        toy,
        users={**TRADE, "age": number, "years": number, "note": ("token_seq", lambda n: np.full(len(n), "a b"))},
        items={
            **TRADE,
            "years": ("float", lambda number: 100.0 + number),
            "city": ("token", lambda n: "c" + n.astype(str)),
        },
    )
    _, loaders, model = build(toy, tiny_encoder, "GradientBoosting", boosting_generated=True, **SMALL)
    dataset, train = loaders[0]._dataset, pairs_of(loaders[0])
    assert model.features == (
        "user.trade", "user.years", "item.trade", "item.years", "item.city", "same.trade", "same.years",
        "bm25", "tfidf", "cosine", "cosine_generated", "seeker_pairs", "job_pairs", "seeker_rate", "job_rate",
    )  # fmt: skip
    user, job = dataset.token2id("user_id", "u6"), dataset.token2id("item_id", "i2")
    other = dataset.token2id("item_id", "i5")
    table = model._table(np.array([user, user]), np.array([job, other]))
    assert table[:, 1].tolist() == [6, 6]
    assert table[:, 3].tolist() == [102, 105]
    assert table[:, 5].tolist() == [1, 0]  # 6 and 2 are of one trade modulo 4; 6 and 5 are not
    assert table[:, 6].tolist() == [-96, -99]
    alike = dict(zip(model.features[7:11], model._similarities(np.array([user]), np.array([job])), strict=True))
    jd = dataset.vectors("jd")[job].astype(float)
    for name, kind in (("cosine", "cv"), ("cosine_generated", "gen.sft")):
        vector = dataset.vectors(kind)[user].astype(float)
        expected = vector @ jd / np.linalg.norm(vector) / np.linalg.norm(jd)
        assert alike[name][0] == pytest.approx(expected, abs=2e-6)
    known = dict(zip(_History.names, model.history.of(np.array([user]), np.array([job])), strict=True))
    rate = train["label"].numpy().mean()
    for name, ids in (("seeker", train["user_id"] == user), ("job", train["item_id"] == job)):
        labels = train["label"][ids].numpy()
        assert known[f"{name}_pairs"] == len(labels)
        assert known[f"{name}_rate"] == pytest.approx((labels.sum() + 10 * rate) / (len(labels) + 10), rel=1e-6)


def test_categories_go_by_frequency_in_train_and_the_unseen_are_unknown():
    names = [f"n{k:03}" for k in range(300)]
    column = _Column("name", True, np.array([None, *names, "unseen"], object))
    seen = np.concatenate([np.arange(1, 301), [7, 7, 9]])
    codes = _codes([column], 302, seen)[:, 0]
    assert codes[7] == 0
    assert codes[9] == 1
    assert codes[1] == 2
    assert np.isnan(codes[[0, 301]]).all()
    assert (codes[-6:-1] == 254).all()  # the least frequent share one
    assert np.nanmax(codes) == 254


def test_protected_columns_are_not_read_unless_asked_for(toy, tiny_encoder):
    columns = {
        "gender": ("token", lambda n: np.where(n // 10 % 2, "f", "m")),
        "age": ("float", lambda n: n.astype(float)),
    }
    add_columns(toy, users=columns)
    relabel(toy, lambda users, items, rng: users // 10 % 2)
    silent(toy)
    auc = {}
    for excluded in (["age", "gender", "school", "school_tier"], []):
        config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", boosting_exclude=excluded, **SMALL)
        assert ("user.gender" in model.features) == (not excluded)
        auc[len(excluded)] = fit(config, loaders, model, saved=True).evaluate(loaders[2])["auc"]
    assert auc[0] > 0.95  # hired by gender: the trees find it when they may read it
    assert auc[4] < 0.6


# ---------------------------------------------------------------------------------------------------- no label leaks


def test_no_label_reaches_its_own_row():
    """Random labels: the histories of the training pairs tell nothing of them, and in no seeker either."""
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(1, 401), 10), rng.integers(1, 101, 4000)
    told = {}
    for seed in range(5):
        labels = rng.integers(0, 2, 4000)
        history = _History(users, items, labels, 401, 101, seed)
        rows = np.column_stack(history.of_training)
        half = rng.random(401)[users] < 0.5
        trees = HistGradientBoostingClassifier(max_iter=60).fit(rows[half], labels[half])
        told.setdefault("trees", []).append(roc_auc_score(labels[~half], trees.decision_function(rows[~half])))
        told.setdefault("rate", []).append(roc_auc_score(labels, rows[:, 2]))
        leaky = np.column_stack(history.of(users, items))
        told.setdefault("own label counted", []).append(roc_auc_score(labels, leaky[:, 2]))
    mean = {name: np.mean(values) for name, values in told.items()}
    assert 0.45 < mean["trees"] < 0.55
    assert 0.42 < mean["rate"] < 0.58
    assert mean["own label counted"] > 0.65  # what this guards against


def test_a_pair_does_not_count_itself():
    users, items = np.array([1, 1, 1, 2] * 6), np.arange(24) % 3
    history = _History(users, items, np.arange(24) % 2, 4, 4, 0)
    counts = np.column_stack(history.of_training[:2])
    assert counts[0].tolist() == [17, 7]
    assert counts[3].tolist() == [5, 7]
    assert history.of(np.array([1, 3]), np.array([3, 1]))[0].tolist() == [18, 0]
    assert history.of(np.array([3]), np.array([3]))[2].item() == pytest.approx(0.5)  # unknown: the base rate


def test_random_labels_cannot_be_learned(toy, tiny_encoder):
    aucs = []
    for seed in range(3):
        relabel(
            toy,
            lambda users, items, rng, seed=seed: np.random.default_rng(seed + len(users)).integers(0, 2, len(users)),
        )
        config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", seed=seed, **SMALL)
        fit(config, loaders, model)
        parts = [pairs_of(loader) for loader in loaders[1:]]
        labels, scores = (np.concatenate(found) for found in zip(
            *((part["label"].numpy(), model.logits(part).numpy()) for part in parts), strict=True))  # fmt: skip
        aucs.append(roc_auc_score(labels, scores))
    assert 0.44 < np.mean(aucs) < 0.56


# ---------------------------------------------------------------------------------------------------- planted rules


def test_learns_that_equal_columns_match(toy, tiny_encoder):
    add_columns(toy, users=TRADE, items=TRADE)
    relabel(toy, lambda users, items, rng: users % 4 == items % 4)
    silent(toy)
    config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", **SMALL)
    result = fit(config, loaders, model, saved=True).evaluate(loaders[2])
    assert result["auc"] > 0.95
    assert result["logloss"] < 0.35


def test_learns_from_similarities_alone_and_says_so(toy, tiny_encoder, caplog):
    with caplog.at_level(logging.WARNING):
        config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", **SMALL)
    assert "toy: no columns in NAME.user or NAME.item that may be used" in caplog.text
    assert fit(config, loaders, model, saved=True).evaluate(loaders[2])["auc"] > 0.95


def test_learns_that_some_jobs_hire(toy, tiny_encoder):
    silent(toy)
    relabel(toy, lambda users, items, rng: rng.random(len(items)) < np.where(items < 20, 0.97, 0.03))
    auc = {}
    for history in (True, False):
        config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", boosting_history=history, **SMALL)
        auc[history] = fit(config, loaders, model, saved=True).evaluate(loaders[2])["auc"]
    assert auc[True] > 0.93  # the true probabilities have .97
    assert auc[False] < 0.6


def test_the_generated_jd_is_seen_when_asked_for(tmp_path, tiny_encoder):
    toy = make_toy(tmp_path, signal="gen")
    only_trades(toy)
    auc = {}
    for generated in (True, False):
        config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", boosting_generated=generated, **SMALL)
        auc[generated] = fit(config, loaders, model, saved=True).evaluate(loaders[2])["auc"]
    assert auc[True] > 0.95
    assert auc[False] < 0.65


# -------------------------------------------------------------------------------------------------- scores, checkpoints


def test_full_ranking_batches_and_checkpoints_give_the_same_scores(toy, tiny_encoder, monkeypatch):
    add_columns(toy, users=TRADE, items=TRADE)
    monkeypatch.setattr("girl_recbole.models.boosting._BLOCK", 100)  # 2 seekers, 100 pairs a block
    config, loaders, model = build(toy, tiny_encoder, "GradientBoosting", **SMALL)
    trainer = fit(config, loaders, model, saved=True)
    users, items = torch.arange(1, 60), torch.arange(model.n_items)
    ranked = model.full_sort_predict(Interaction({"user_id": users})).view(len(users), -1)
    slow = [model.predict(Interaction({"user_id": u.repeat(len(items)), "item_id": items})) for u in users]
    assert torch.equal(ranked[:, 1:], torch.stack(slow)[:, 1:])
    batch = pairs_of(loaders[2])
    parts = [model.predict(batch[at : at + 7]) for at in range(0, len(batch), 7)]
    assert torch.equal(model.predict(batch), torch.cat(parts))
    assert set(model.state_dict()) == {"platt", "fitted"}
    loaded = load_data_and_model(trainer.saved_model_file)[1]
    assert torch.equal(loaded.predict(batch), model.predict(batch))
    relabel(toy, lambda users, items, rng: rng.integers(0, 2, len(users)))
    with pytest.raises(DataError, match="another GradientBoosting: fitted again .*train again"):  # noqa: RUF043
        load_data_and_model(trainer.saved_model_file)


def test_errors(toy, tiny_encoder):
    with pytest.raises(ConfigError, match=r"boosting_exclude: .* is a list; list of str is required"):
        build(toy, tiny_encoder, "GradientBoosting", boosting_exclude=["age", 3])
    with pytest.raises(ConfigError, match="boosting_rounds: 'many' is a str; int is required"):
        build(toy, tiny_encoder, "GradientBoosting", boosting_rounds="many")
    toy.gdoc("sft").unlink()
    with pytest.raises(DataError, match=r"sft\.gdoc"):
        build(toy, tiny_encoder, "GradientBoosting", boosting_generated=True)
