"""BIGRec: distances, scaling and gamma by hand and by slow loops; hidden states; BIGRecMLP; checkpoints."""

import numpy as np
import pytest
import tiny_lms
import torch
from conftest import make_toy
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model
from scipy import sparse
from sklearn.metrics import log_loss, roc_auc_score
from test_two_tower import CV, GEN, JD, PAIR, _ones, _plant, build, fit, pairs_of

from girl_recbole import llm
from girl_recbole.atomic import (
    PARTS,
    read_docs,
    read_generated,
    read_interactions,
    write_docs,
    write_generated,
    write_interactions,
)
from girl_recbole.calibration import fit_platt
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models.bigrec import GAMMAS, lm_vectors, pure_svd, weighted

WEIGHTS = ["none", "popularity", "cf"]


def _pairs(model, users, items):
    """Logits of all pairs of ``users`` and ``items``, (B, N), by ``logits``."""
    batch = {"user_id": users.repeat_interleave(len(items)), "item_id": items.repeat(len(users))}
    return model.logits(Interaction(batch)).view(len(users), -1)


def only_trades(toy):
    """Jobs and generated JDs say their trade and nothing else, so that those of one trade are one text."""

    def trade(text):
        return " ".join(word for word in text.split() if word.startswith("trade"))

    write_docs(toy.idoc, [(item, trade(text)) for item, text in read_docs(toy.idoc).items()], "item")
    written = read_generated(toy.gdoc("sft")).items()
    write_generated(
        toy.gdoc("sft"), [(user, n, trade(text)) for user, texts in written for n, text in enumerate(texts)]
    )


# ------------------------------------------------------------------------------------------------------------- by hand


def test_three_jobs_by_hand(toy, tiny_encoder):
    """J' at the origin, jobs at (3, 4), (6, 8), (0, 1): D = 5, 10, 1, D^ = 4/9, 1, 0. W = 1, 1/2, 0, gamma = 2:

    D~ = 4/9 2^-2 = 1/9,  1 1.5^-2 = 4/9,  0.
    """
    _, _, model = build(toy, tiny_encoder, "BIGRec")
    model.n_users, model.n_items = 2, 4
    model.gen, model.jd = torch.zeros(2, 2), torch.tensor([[0.0, 0], [3, 4], [6, 8], [0, 1]])
    model._keep_ranges("distance", lambda ids: model._distances(ids, torch.arange(1, 4)))
    model.popularity = torch.tensor([0.0, 1, 0.5, 0], dtype=torch.float64)
    user, jobs = torch.tensor([1]), torch.arange(1, 4)
    assert model._distances(user, jobs)[0].tolist() == pytest.approx([5, 10, 1])
    for gamma, expected in ((0, [-4 / 9, -1, 0]), (2, [-1 / 9, -4 / 9, 0])):
        model.gamma.fill_(gamma)
        assert model.score_all(user, jobs)[0].tolist() == pytest.approx(expected)
        assert _pairs(model, user, jobs)[0].tolist() == pytest.approx(expected)
    model.platt.copy_(torch.tensor([3.0, 1.0]))
    expected = [1 / (1 + np.exp(-(3 * s + 1))) for s in expected]
    assert model.predict(Interaction({"user_id": user.repeat(3), "item_id": jobs})).tolist() == pytest.approx(expected)


def test_jobs_that_are_all_as_far_are_all_nearest(toy, tiny_encoder):
    _, _, model = build(toy, tiny_encoder, "BIGRec", bigrec_weight="none")
    model.jd = torch.ones_like(model.jd)
    model._keep_ranges("distance", lambda ids: model._distances(ids, torch.arange(1, model.n_items)))
    assert not model.score_all(torch.tensor([1, 2]), torch.arange(1, model.n_items)).any()


def test_popularity_is_the_scaled_count_of_matches_in_train(toy, tiny_encoder):
    _, loaders, model = build(toy, tiny_encoder, "BIGRec")
    train = pairs_of(loaders[0])
    counts = np.zeros(model.n_items)
    for item, label in zip(train["item_id"].tolist(), train["label"].tolist(), strict=True):
        counts[item] += label
    expected = (counts - counts[1:].min()) / (counts[1:].max() - counts[1:].min())
    np.testing.assert_allclose(model.popularity[1:], expected[1:])
    assert model.popularity[1:].aminmax() == (0, 1)


def test_cf_is_the_projection_on_the_first_singular_vectors(toy, tiny_encoder):
    matches = sparse.csr_matrix(np.random.default_rng(0).random((9, 7)) < 0.4)
    users, items = pure_svd(matches, 3)
    left, values, right = np.linalg.svd(matches.toarray().astype(float), full_matrices=False)
    np.testing.assert_allclose(users @ items.T, (left[:, :3] * values[:3]) @ right[:3], atol=1e-9)
    with pytest.raises(DataError, match="needs matches of at least 2 seekers and 2 jobs"):
        pure_svd(sparse.csr_matrix((9, 7)), 3)

    _, loaders, model = build(toy, tiny_encoder, "BIGRec", bigrec_weight="cf", bigrec_cf_factors=5)
    train, test = (set(pairs_of(loader)["user_id"].tolist()) for loader in (loaders[0], loaders[2]))
    jobs = torch.arange(1, model.n_items)
    old, new = (torch.tensor([min(ids)]) for ids in (train, test - train))
    near = model._normalised(old[:, None], model._distances(old, jobs))
    scores = model.cf_users[old] @ model.cf_items[jobs].T
    bonus = (scores - scores.min()) / (scores.max() - scores.min())
    model.gamma.fill_(0.7)
    torch.testing.assert_close(model.score_all(old, jobs), -weighted(near, bonus, 0.7).float())
    without = -model._normalised(new[:, None], model._distances(new, jobs)).float()
    torch.testing.assert_close(model.score_all(new, jobs), without)  # a seeker without a match has W = 0


# ---------------------------------------------------------------------------------------------------------------- gamma


def _popular_matches(toy):
    """Answers that popularity explains, and no text: nine in ten applications to 20 of the 40 jobs are matches."""
    rng = np.random.default_rng(1)
    for part in PARTS:
        frame = read_interactions(toy.split("cold", part))
        likely = frame["item_id"].str[1:].astype(int) < 20
        frame["label"] = (rng.random(len(frame)) < np.where(likely, 0.9, 0.1)).astype(float)
        write_interactions(toy.split("cold", part), frame)


@pytest.mark.parametrize("weight, metric", [("popularity", "AUC"), ("popularity", "LogLoss"), ("cf", "AUC")])
def test_gamma_is_what_a_slow_loop_finds_best_on_validation(toy, tiny_encoder, weight, metric):
    if weight == "popularity":
        _popular_matches(toy)
    settings = {"bigrec_weight": weight, "valid_metric": metric, "repeatable": True}
    config, loaders, model = build(toy, tiny_encoder, "BIGRec", **settings)
    trainer = fit(config, loaders, model)
    chosen = model.gamma.item()
    batch, scores = pairs_of(loaders[1]), []
    labels = batch["label"].numpy()
    for gamma in GAMMAS[weight]:
        model.gamma.fill_(gamma)
        logits = model.logits(batch).numpy()
        a, b = fit_platt(logits, labels)
        p = torch.sigmoid(torch.tensor(a, dtype=torch.float32) * torch.from_numpy(logits) + b).double().numpy()
        scores.append(round(roc_auc_score(labels, p) if metric == "AUC" else -log_loss(labels, p), 4))
    assert chosen == GAMMAS[weight][int(np.argmax(scores))]
    if weight == "popularity":
        assert chosen > 0
        assert max(scores) > scores[0] + 0.02
    assert trainer.best_valid_result[metric.lower()] == pytest.approx(abs(max(scores)), abs=1e-4)


def test_the_grids_are_those_of_the_paper():
    assert GAMMAS["popularity"] == tuple(range(100))
    assert len(GAMMAS["cf"]) == 199
    assert sorted(GAMMAS["cf"]) == [*(n / 100 for n in range(100)), *range(1, 100)]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_nearest_job_stays_first_for_every_gamma(toy, tiny_encoder, weight):
    _, _, model = build(toy, tiny_encoder, "BIGRec", bigrec_weight=weight)
    users, jobs = torch.arange(1, model.n_users), torch.arange(1, model.n_items)
    torch.manual_seed(0)
    model.gen, model.jd = torch.randn(model.n_users, 32), torch.randn(model.n_items, 32)
    model._keep_ranges("distance", lambda ids: model._distances(ids, jobs))
    nearest = torch.cdist(model.gen[1:].double(), model.jd[1:].double()).argmin(dim=1)
    for gamma in (0, 0.5, 7, 99):
        model.gamma.fill_(gamma)
        scores = model.score_all(users, jobs)
        assert not scores[torch.arange(len(users)), nearest].any()  # -D~ = 0
        assert scores.max() == 0
        assert not _pairs(model, users, jobs)[torch.arange(len(users)), nearest].any()


# -------------------------------------------------------------------------------------------------------------- scores


def test_finds_the_planted_trade(tmp_path, tiny_encoder):
    """A generated JD names the trade of the jobs that match, so the near jobs are those of the trade."""
    toy = make_toy(tmp_path, signal="gen")
    only_trades(toy)
    auc = {}
    for generated in ("real", "shuffled", "cv"):
        config, loaders, model = build(toy, tiny_encoder, "BIGRec", generated=generated, bigrec_weight="none")
        auc[generated] = fit(config, loaders, model, saved=True).evaluate(loaders[2])["auc"]
    assert auc["real"] > 0.95
    assert max(auc["shuffled"], auc["cv"]) < 0.65


@pytest.mark.parametrize("weight", WEIGHTS)
def test_full_ranking_batches_and_checkpoints_give_the_same_scores(toy, tiny_encoder, weight, monkeypatch):
    monkeypatch.setattr("girl_recbole.models.bigrec._BLOCK", 41 * 7)  # 7 seekers a block
    config, loaders, model = build(toy, tiny_encoder, "BIGRec", bigrec_weight=weight)
    trainer = fit(config, loaders, model, saved=True)
    users, items = torch.tensor([3, 1, 100]), torch.arange(model.n_items)
    model.eval()
    ranked = model.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
    slow = model.probability(_pairs(model, users, items))
    torch.testing.assert_close(ranked[:, 1:], slow[:, 1:], atol=1e-6, rtol=0)
    batch = pairs_of(loaders[2])
    whole = model.predict(batch)
    parts = torch.cat([model.predict(batch[at : at + 7]) for at in range(0, len(batch), 7)])
    torch.testing.assert_close(whole, parts, atol=1e-7, rtol=0)
    assert set(model.state_dict()) == {"platt", "gamma", "fitted"}
    _, loaded, _, _, _, test = load_data_and_model(trainer.saved_model_file)
    assert loaded.gamma == model.gamma
    assert torch.equal(loaded.predict(pairs_of(test)), whole)
    state = {**model.state_dict(), "fitted": model.fitted + 0.01}
    with pytest.raises(DataError, match="another BIGRec: .*train again"):  # noqa: RUF043
        loaded.load_state_dict(state)


def test_ranking_metrics_choose_gamma_too(toy, tiny_encoder):
    settings = {"eval_args": {"mode": "full", "split": {"RS": [1, 1, 1]}}, "metrics": "NDCG", "valid_metric": "NDCG@10"}
    config, loaders, model = build(toy, tiny_encoder, "BIGRec", **settings)
    model.tune_on = lambda validate: [model.gamma.fill_(3), scores.append(validate())]
    scores = []
    trainer = fit(config, loaders, model, saved=True)
    assert scores == [trainer.evaluate(loaders[1], load_best_model=False)["ndcg@10"]]


# -------------------------------------------------------------------------------------------------- language models


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = tiny_lms.plain_tokenizer()
    tiny_lms.tiny_model(tokenizer, spread=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_hidden_states_are_those_of_each_text_alone(lm_folder, monkeypatch):
    lm = llm.load(str(lm_folder))
    texts = ["a nurse", "b", "plans care and watches wounds every night", "a nurse"]
    read = []
    forward = lm.model.base_model.forward
    monkeypatch.setattr(
        lm.model.base_model, "forward", lambda **kw: (read.append(kw["input_ids"].shape), forward(**kw))[1]
    )
    monkeypatch.setattr("girl_recbole.models.bigrec._TOKENS", 30)
    found = {pooling: lm_vectors(lm, texts, pooling, 12) for pooling in ("last", "mean")}
    assert sum(rows for rows, _ in read) == 6  # two readings of three distinct texts
    for i, text in enumerate(texts):
        ids = torch.tensor([lm.tokenizer(text)["input_ids"][:12]])
        with torch.no_grad():
            states = lm.model(ids, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(found["last"][i], states[-1], atol=1e-5)
        np.testing.assert_allclose(found["mean"][i], states.mean(dim=0), atol=1e-5)
    with pytest.raises(DataError, match="1 of 2 texts have no token"):
        lm_vectors(lm, ["", "a"], "last", 12)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_jobs_near_the_jd_in_a_language_models_space(toy, tiny_encoder, lm_folder, pooling):
    settings = {"bigrec_pooling": pooling, "bigrec_lm": str(lm_folder), "n_generated": 2}
    config, loaders, model = build(toy, tiny_encoder, "BIGRec", **settings)
    assert model.gen.shape == (model.n_users, 32)
    assert not model.gen[0].any()
    one, two = loaders[0]._dataset.texts("gen.sft", 2)[5]
    rows = lm_vectors(llm.load(str(lm_folder)), [one, two], pooling, config["max_sequence_tokens"])
    np.testing.assert_allclose(model.gen[5], rows.mean(axis=0), atol=1e-5)
    trainer = fit(config, loaders, model, saved=True)
    loaded = load_data_and_model(trainer.saved_model_file)[1]
    torch.testing.assert_close(loaded.predict(pairs_of(loaders[2])), model.predict(pairs_of(loaders[2])))


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"bigrec_weight": "pop"}, ConfigError, "bigrec_weight: 'pop' is unknown; known: none, popularity, cf"),
        ({"bigrec_pooling": "max"}, ConfigError, "bigrec_pooling: 'max' is unknown; known: sentence, last, mean"),
        ({"generated": "zeros"}, ConfigError, "generated: 'zeros' is unknown; known: real, shuffled, cv"),
        ({"bigrec_weight": "cf", "bigrec_cf_factors": 0}, ConfigError, "bigrec_cf_factors: 0; an int of at least 1"),
        ({"generator": "other"}, DataError, "other.gdoc"),
        ({"bigrec_pooling": "last"}, DataError, "sft: no such generator.*girl sft toy"),
    ],
)
def test_unusable_settings_are_errors(toy, tiny_encoder, settings, error, message):
    with pytest.raises(error, match=message):
        build(toy, tiny_encoder, "BIGRec", **settings)


# ----------------------------------------------------------------------------------------------------------- BIGRecMLP


def test_bigrec_mlp_by_hand(toy, tiny_encoder):
    """[j'; j] . (1, 2, 3, 4): pair 1 (.5, 1, 1, -3) -> .5 + 2 + 3 - 12 < 0; pair 2 (1, 1, 2, 1) -> 1 + 2 + 6 + 4 = 13.

    Hidden units 1x and 2x, output their sum: 0 and 39.
    """
    _, _, model = build(toy, tiny_encoder, "BIGRecMLP")
    _plant(model, cv=CV, jd=JD, gen=GEN)
    _ones(model, [4, 2], 1)
    assert model.logits(PAIR).tolist() == pytest.approx([0, 39])


def test_bigrec_mlp_learns_from_the_generated_jd_alone(tmp_path, tiny_encoder):
    toy = make_toy(tmp_path, signal="gen")
    auc = {}
    for generated in ("real", "zeros", "cv"):
        config, loaders, model = build(toy, tiny_encoder, "BIGRecMLP", generated=generated)
        assert hasattr(model.rows, "cv") == (generated == "cv")
        auc[generated] = fit(config, loaders, model, saved=True).evaluate(loaders[2])["auc"]
    assert auc["real"] > 0.95
    assert max(auc["zeros"], auc["cv"]) < 0.65


def test_bigrec_mlp_with_the_cv_for_the_jd_is_the_base_model(toy, tiny_encoder):
    _, loaders, model = build(toy, tiny_encoder, "BIGRecMLP", generated="cv")
    _, _, base = build(toy, tiny_encoder, "GIRLBaseMLP")
    model.load_state_dict(base.state_dict())
    batch = pairs_of(loaders[2])
    torch.testing.assert_close(model.eval().predict(batch), base.eval().predict(batch))


@pytest.mark.parametrize("generated", ["real", "zeros"])
def test_bigrec_mlp_full_ranking_and_checkpoint(toy, tiny_encoder, generated):
    config, loaders, model = build(toy, tiny_encoder, "BIGRecMLP", epochs=2, generated=generated)
    trainer = fit(config, loaders, model, saved=True)
    model.eval()
    users, items = torch.tensor([3, 1, 100]), torch.arange(model.n_items)
    with torch.no_grad():
        ranked = model.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
        torch.testing.assert_close(ranked, model.probability(_pairs(model, users, items)), atol=1e-5, rtol=0)
        loaded = load_data_and_model(trainer.saved_model_file)[1].eval()
        batch = pairs_of(loaders[2])
        torch.testing.assert_close(loaded.predict(batch), model.predict(batch))
