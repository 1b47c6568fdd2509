"""BM25 and TF-IDF: terms of any script, scores against a slow loop and scikit-learn, planted words, checkpoints."""

import math

import numpy as np
import pytest
import torch
from conftest import make_toy
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
from sklearn.feature_extraction.text import TfidfVectorizer
from test_two_tower import build, fit, pairs_of

from girl_recbole.atomic import read_docs, write_docs
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models.lexical import bm25_matrices, pair_products, terms_of, tfidf_matrices

MODELS = ["BM25", "TFIDF"]


@pytest.mark.parametrize(
    "text, terms",
    [
        ("A Nurse, C++ & R-2!", ["a", "nurse", "c", "r", "2"]),
        ("护士 长", ["护士", "长"]),
        ("软件工程师", ["软件", "件工", "工程", "程师"]),
        ("Python开发", ["python", "开发"]),
        ("간호사 모집", ["간호", "호사", "모집"]),
        ("snake_case", ["snake", "case"]),
        ("…", []),
    ],
)
def test_terms(text, terms):
    assert terms_of(text) == terms


JOBS = ["", "nurse nurse night", "cook kitchen night shift", "护士 夜班"]
QUERIES = ["", "nurse of the night, nurse", "cook", "夜班护士", "nothing known"]


def _slow_bm25(query: str, job: str) -> float:
    """Lucene's form, term by term, for the documents JOBS[1:]."""
    documents = [terms_of(text) for text in JOBS[1:]]
    average, document, total = sum(map(len, documents)) / 3, terms_of(job), 0.0
    for term in terms_of(query):
        having, tf = sum(term in other for other in documents), document.count(term)
        idf = math.log(1 + (3 - having + 0.5) / (having + 0.5))
        total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / average))
    return total


def test_bm25_is_the_slow_loop():
    queries, jobs = bm25_matrices(QUERIES, JOBS)
    expected = [[_slow_bm25(query, job) if job else 0.0 for job in JOBS] for query in QUERIES]
    np.testing.assert_allclose((queries @ jobs.T).toarray(), expected, atol=1e-6)
    assert expected[1][1] > expected[1][2] > 0  # nurse, twice
    assert expected[3][3] > 0  # 夜班 and 护士, with or without a space
    assert not any(expected[4])
    users, items = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)
    np.testing.assert_allclose(pair_products(queries, jobs, users, items), np.ravel(expected), atol=1e-6)


def test_tfidf_is_the_cosine_of_scikit_learns_vectors():
    queries, jobs = tfidf_matrices(JOBS[1:3], QUERIES, JOBS)
    model = TfidfVectorizer().fit(JOBS[1:3])
    one, other = (model.transform(texts).toarray() for texts in (QUERIES, JOBS))
    np.testing.assert_allclose((queries @ jobs.T).toarray(), one @ other.T, atol=1e-12)
    assert not (queries @ jobs.T)[3].nnz  # fitted on no Chinese text


def test_texts_without_a_term_score_nothing():
    for queries, jobs in (bm25_matrices(["", "…"], ["", "!"]), tfidf_matrices(["…"], ["", "…"], ["", "!"])):
        assert not (queries @ jobs.T).nnz


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("signal, query", [("cv", "cv"), ("gen", "generated"), ("gen", "both")])
def test_the_planted_words_are_found(tmp_path, tiny_encoder, model, signal, query):
    toy = make_toy(tmp_path, signal=signal)
    config, loaders, built = build(toy, tiny_encoder, model, lexical_query=query)
    trainer = fit(config, loaders, built, saved=True)
    result = trainer.evaluate(loaders[2])
    assert result["auc"] > 0.95
    assert result["logloss"] < 0.35  # calibrated


def test_the_query_is_what_is_asked_for(tmp_path, tiny_encoder):
    """The CVs of this dataset do not name the trade, so that they alone find nothing."""
    toy = make_toy(tmp_path, signal="gen")
    config, loaders, built = build(toy, tiny_encoder, "BM25")
    assert fit(config, loaders, built, saved=True).evaluate(loaders[2])["auc"] < 0.65
    one, two = (build(toy, tiny_encoder, "BM25", lexical_query="generated", n_generated=n)[2] for n in (1, 2))
    assert two.queries.sum() > 1.5 * one.queries.sum()


def test_bm25_knows_the_words_of_all_jobs_and_tfidf_those_of_train(toy, tiny_encoder):
    _, loaders, _ = build(toy, tiny_encoder, "TFIDF")
    train, test = (set(pairs_of(loader)["user_id"].tolist()) for loader in (loaders[0], loaders[2]))
    cvs, jobs = read_docs(toy.udoc), read_docs(toy.idoc)

    def terms(model, seeker=None, job=None):
        write_docs(toy.udoc, [(u, "unheard " * (u == seeker) + t) for u, t in cvs.items()], "user")
        write_docs(toy.idoc, [(i, "unheard " * (i == job) + t) for i, t in jobs.items()], "item")
        return build(toy, tiny_encoder, model)[2].documents.shape[1]

    known, new = (loaders[0]._dataset.id2token("user_id", min(ids)) for ids in (train, test - train))
    assert terms("TFIDF", known) == terms("TFIDF", job="i7") == terms("TFIDF", new) + 1 == terms("TFIDF") + 1
    assert terms("BM25", job="i7") == terms("BM25", known) + 1 == terms("BM25") + 1


@pytest.mark.parametrize("model", MODELS)
def test_full_ranking_is_scoring_the_pairs_and_batches_change_nothing(toy, tiny_encoder, model):
    config, loaders, built = build(toy, tiny_encoder, model)
    fit(config, loaders, built)
    built.eval()
    users = torch.tensor([3, 1, 100])
    items = torch.arange(built.n_items)
    ranked = built.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
    slow = [built.predict(Interaction({"user_id": user.repeat(len(items)), "item_id": items})) for user in users]
    torch.testing.assert_close(ranked, torch.stack(slow), atol=1e-6, rtol=0)
    some = torch.tensor([5, 2])
    torch.testing.assert_close(built.score_all(users, some), built.score_all(users, items)[:, some])
    batch = pairs_of(loaders[2])
    parts = [built.predict(batch[at : at + 7]) for at in range(0, len(batch), 7)]
    torch.testing.assert_close(built.predict(batch), torch.cat(parts), atol=1e-7, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_gives_the_same_scores_and_refuses_other_texts(toy, tiny_encoder, model):
    config, loaders, built = build(toy, tiny_encoder, model)
    trainer = fit(config, loaders, built, saved=True)
    assert set(built.state_dict()) == {"platt", "fitted"}
    _, loaded, _, _, _, test = load_data_and_model(trainer.saved_model_file)
    assert torch.equal(loaded.predict(pairs_of(test)), built.predict(pairs_of(loaders[2])))
    write_docs(toy.udoc, [(user, "trade1 word3") for user in read_docs(toy.udoc)], "user")
    with pytest.raises(DataError, match=rf"another {model}: .*texts, vectors, pairs.*train again"):
        load_data_and_model(trainer.saved_model_file)


def test_errors(toy, tiny_encoder):
    with pytest.raises(ConfigError, match="lexical_query: 'jd' is unknown; known: cv, generated, both"):
        build(toy, tiny_encoder, "BM25", lexical_query="jd")
    config, _, built = build(toy, tiny_encoder, "BM25")
    config["single_spec"] = False
    with pytest.raises(ConfigError, match=r"BM25 is fitted at once and not trained.*run it with nproc: 1"):
        get_trainer(config["MODEL_TYPE"], "BM25")(config, built)
    toy.gdoc("sft").unlink()
    build(toy, tiny_encoder, "BM25")
    with pytest.raises(DataError, match=r"sft\.gdoc"):
        build(toy, tiny_encoder, "BM25", lexical_query="generated")
