"""Search: brute force as the reference, planted neighbours, filters, kills, staleness, a model's own ranking."""

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from test_generate import save_generator
from test_two_tower import build as build_model
from test_two_tower import fit

from girl_recbole import cli
from girl_recbole import index as index_module
from girl_recbole.atomic import (
    DatasetFiles,
    read_docs,
    read_generated,
    read_interactions,
    read_table,
    write_docs,
    write_generated,
    write_interactions,
    write_table,
)
from girl_recbole.config import make_config
from girl_recbole.embed import StaleVectors, embed, load_vectors
from girl_recbole.encoder import Encoder, encoder_folder, encoder_hash
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import GenerateConfig, generate
from girl_recbole.index import DotModel, Index, IndexConfig, build
from girl_recbole.manifest import file_hash, read_manifest, text_hash, write_manifest
from girl_recbole.search import SearchConfig, rank, search
from girl_recbole.shipped import shipped_folder
from girl_recbole.vectors import identity, vectors_folder

KINDS = ["flat", "ivf", "hnsw"]


def index_config(encoder, **overrides) -> IndexConfig:
    return make_config(IndexConfig, overrides={"encoder": str(encoder), **overrides})


def plant(folder, encoder, vectors) -> DatasetFiles:
    """A dataset of jobs i0, i1, ... with these vectors, as `girl embed` would have left them."""
    files = DatasetFiles(folder / "toy", "toy")
    ids = [f"i{n}" for n in range(len(vectors))]
    texts = [f"word{n}" for n in range(len(vectors))]
    write_docs(files.idoc, zip(ids, texts, strict=True), "item")
    config, sha256 = index_config(encoder), encoder_hash(encoder_folder(str(encoder)))
    target, digest = vectors_folder(files, config), text_hash(vectors.astype(np.float16).tobytes().hex())[:16]
    target.mkdir(parents=True, exist_ok=True)
    np.save(target / f"jd-{digest}.npy", vectors.astype(np.float16))
    table = pd.DataFrame({"item_id": ids, "text_hash": list(map(text_hash, texts)), "truncated": 0})
    write_table(target / f"jd-{digest}.ids", table, {"item_id": "token", "text_hash": "token", "truncated": "float"})
    facts = {"digest": digest, "rows": len(ids), "samples": None, "source_sha256": file_hash(files.idoc)}
    write_manifest(target / "jd", "vectors", config={}, **facts, **identity(config, sha256))
    return files


def clustered(count, width=32, clusters=60, seed=0):
    """Unit vectors around unit centres; each is far nearer to its centre than to another."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, width))
    vectors = centres[rng.integers(0, clusters, count)] / np.sqrt(width) + 0.5 * rng.standard_normal(
        (count, width)
    ) / np.sqrt(width)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(queries, vectors):
    """The slow reference: float64, of vectors as float16 holds them."""
    a, b = np.asarray(queries, np.float64), np.asarray(vectors, np.float16).astype(np.float64)
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def rows_in(ids) -> np.ndarray:
    return np.vectorize(lambda name: int(name[1:]))(ids)


def check(scores, ids, truth, recall=1.0):
    """Every score is the true one and none is given twice; of the true best at least ``recall`` are there."""
    rows, k = rows_in(ids), ids.shape[1]
    np.testing.assert_allclose(scores, np.take_along_axis(truth, rows, axis=1), atol=2e-6)
    assert all(len(set(row)) == k for row in rows.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    last = -np.sort(-truth, axis=1)[:, k - 1 : k]
    assert (scores >= last - 2e-6).mean() >= recall


@pytest.fixture(scope="module")
def vectors():
    return clustered(4000)


@pytest.fixture(scope="module")
def queries(vectors):
    """Near 200 of the jobs, not on them."""
    rng = np.random.default_rng(1)
    return (vectors[rng.choice(4000, 200, replace=False)] + 0.05 * rng.standard_normal((200, 32))).astype(np.float32)


@pytest.fixture(scope="module", params=KINDS)
def planted(request, tmp_path_factory, tiny_encoder, vectors):
    """(files, config, index) of each kind, with the shipped settings."""
    files = plant(tmp_path_factory.mktemp(request.param), tiny_encoder, vectors)
    config = index_config(tiny_encoder, index_kind=request.param)
    build(files, config)
    return files, config, Index.load(files, config)


# ------------------------------------------------------------------------------------------------------ true results


@pytest.mark.parametrize("k", [1, 10, 100, 300])
def test_true_scores_and_recall_with_automatic_settings(planted, queries, vectors, k):
    _, config, index = planted
    scores, ids = index.search(queries, k)
    assert (scores.shape, scores.dtype, ids.shape) == ((200, k), np.float32, (200, k))
    check(scores, ids, cosines(queries, vectors), recall=1.0 if config.index_kind == "flat" else 0.95)


def test_planted_neighbours_come_first(planted, vectors):
    """Each job's own vector, at any length, finds that job with cosine 1."""
    own = (
        np.asarray(vectors[::40], np.float16).astype(np.float32)
        * np.linspace(0.01, 100, 100, dtype=np.float32)[:, None]
    )
    scores, ids = planted[2].search(own, 3)
    assert ids[:, 0].tolist() == [f"i{n}" for n in range(0, 4000, 40)]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def test_all_jobs_can_be_asked_for(planted, queries, vectors):
    """An approximate search leaves some out; what is short is searched exactly."""
    scores, ids = planted[2].search(queries[:3], 4000)
    check(scores, ids, cosines(queries[:3], vectors))


def test_more_is_looked_at_if_the_user_says_so(planted, queries, vectors):
    files, config, index = planted
    report = build(files, config)
    assert report["reused"] == "the index was there already"
    if config.index_kind == "flat":
        assert report["recall"] == 1
        assert not list(files.folder.glob("vectors/*/index/*.faiss"))
        return
    assert report["recall"] >= config.index_recall
    few = Index.load(files, dataclasses.replace(config, index_nprobe=1, index_ef_search=1))
    many = Index.load(files, dataclasses.replace(config, index_nprobe=10_000, index_ef_search=4000))
    truth = np.sort(cosines(queries, vectors))[:, -5:].min(axis=1)
    share = [(i.search(queries, 5)[0] >= truth[:, None] - 2e-6).mean() for i in (few, index, many)]
    assert share[0] <= share[1] <= share[2]
    assert share[2] > 0.999
    if config.index_kind == "ivf":
        assert share[0] < 0.95 < share[1]
    with pytest.raises(ConfigError, match="index_nprobe: 0; at least 1"):
        Index.load(files, dataclasses.replace(config, index_nprobe=0, index_ef_search=None)) if (
            config.index_kind == "ivf"
        ) else build(files, dataclasses.replace(config, index_nprobe=0))


def test_real_job_vectors_against_brute_force(tmp_path):
    """MiniLM's vectors of 150 shipped jobs; the queries are 10 generated JDs and 5 CVs of the shipped market."""
    source, files = shipped_folder("jobrec-sim"), DatasetFiles(tmp_path / "real", "real")
    jds = dict(list(read_docs(source / "jobrec-sim.idoc").items())[:150])
    generated = dict(list(read_generated(source / "jobrec-sim.sft.gdoc").items())[:10])
    cvs = {user: read_docs(source / "jobrec-sim.udoc")[user] for user in list(generated)[:5]}
    write_docs(files.idoc, jds.items(), "item")
    write_docs(files.udoc, cvs.items(), "user")
    pairs = [(user, job, 1.0) for user, job in zip([*cvs] * 30, jds, strict=True)]
    write_interactions(files.inter, pd.DataFrame(pairs, columns=["user_id", "item_id", "label"]))
    config = make_config(IndexConfig)
    embed(files, config, kinds=["jd"])
    encoder = Encoder("minilm")
    queries = encoder.encode([jd for jd, *_ in generated.values()] + list(cvs.values()))[0]
    stored = load_vectors(files, config, "jd", list(jds))
    fresh = queries.astype(np.float64) @ encoder.encode(list(jds.values())[:10])[0].T
    for kind in KINDS:
        build(files, dataclasses.replace(config, index_kind=kind))
        index = Index.load(files, config)
        assert index.report["index"] == kind
        assert index.ids.tolist() == list(jds)
        scores, ids = index.search(queries, 12)
        rows = np.vectorize(list(jds).index)(ids)
        exact = cosines(queries, stored)
        np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), atol=2e-6)
        np.testing.assert_allclose(fresh, exact[:, :10], atol=5e-4)  # float16 on disk
        assert (rows == np.argsort(-exact, axis=1)[:, :12]).mean() >= (1 if kind == "flat" else 0.95)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_put_together(tmp_path, tiny_encoder, vectors, queries, kind, monkeypatch):
    """700 jobs in blocks of 64, 200 queries by 7."""
    monkeypatch.setattr(index_module, "_BLOCK", 64)
    monkeypatch.setattr(index_module, "_QUERIES", 7)
    files = plant(tmp_path, tiny_encoder, vectors[:700])
    build(files, index_config(tiny_encoder, index_kind=kind, index_nprobe=1000, index_ef_search=700))
    index, truth = Index.load(files, index_config(tiny_encoder)), cosines(queries, vectors[:700])
    check(*index.search(queries, 15), truth, recall=1.0 if kind == "flat" else 0.99)
    some = [f"i{n}" for n in range(0, 700, 2)]
    truth[:, 1::2] = -np.inf
    check(*index.search(queries, 15, only=some), truth)


def test_equal_jobs_come_in_their_order(tmp_path, tiny_encoder):
    same = np.tile(clustered(50), (4, 1))
    files = plant(tmp_path, tiny_encoder, same)
    for kind in KINDS:
        config = index_config(tiny_encoder, index_kind=kind, index_nprobe=1000, index_ef_search=200)
        build(files, config)
        _, ids = Index.load(files, config).search(same[:50].astype(np.float32), 4)
        assert rows_in(ids).tolist() == [[n, n + 50, n + 100, n + 150] for n in range(50)]


# ----------------------------------------------------------------------------------------------------------- filters


@settings(max_examples=25, deadline=None)
@given(data=st.data(), k=st.integers(1, 30), seed=st.integers(0, 99))
def test_filters_against_brute_force(data, k, seed, small):
    """Whatever may not be found counts as infinitely far."""
    vectors, index = small
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((3, 32)).astype(np.float32)
    only = data.draw(st.none() | st.lists(st.integers(0, 119), min_size=k, unique=True))
    exclude = data.draw(st.lists(st.lists(st.integers(0, 119), max_size=60), min_size=3, max_size=3))
    scores, ids = index.search(
        queries, k, only=only and [f"i{n}" for n in only], exclude=[[f"i{n}" for n in some] for some in exclude]
    )
    truth = cosines(queries, vectors)
    for row, some in enumerate(exclude):
        truth[row, some] = -np.inf
        if only is not None:
            truth[row, np.setdiff1d(np.arange(120), only)] = -np.inf
        order = np.argsort(-truth[row], kind="stable")
        expected = [n for n in order[:k] if np.isfinite(truth[row, n])]
        assert [name for name in ids[row] if name] == [f"i{n}" for n in expected]
        np.testing.assert_allclose(scores[row, : len(expected)], truth[row, expected], atol=2e-6)
        assert np.isnan(scores[row, len(expected) :]).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_encoder):
    vectors = clustered(120, seed=3)
    files = plant(tmp_path_factory.mktemp("small"), tiny_encoder, vectors)
    build(files, index_config(tiny_encoder))
    return vectors, Index.load(files, index_config(tiny_encoder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_set_of_open_jobs_goes_through_the_index(tmp_path, tiny_encoder, vectors, queries, kind, monkeypatch):
    files = plant(tmp_path, tiny_encoder, vectors)
    config = index_config(tiny_encoder, index_kind=kind, index_flat_max=200)
    build(files, config)
    index = Index.load(files, config)
    rng = np.random.default_rng(0)
    open_jobs = np.sort(rng.choice(4000, 600, replace=False))
    barred = [rng.choice(open_jobs, 5) for _ in queries]
    truth = cosines(queries, vectors)
    truth[:, np.setdiff1d(np.arange(4000), open_jobs)] = -np.inf
    for row, some in enumerate(barred):
        truth[row, some] = -np.inf
    scans = []
    real = index_module._scan
    monkeypatch.setattr(index_module, "_scan", lambda *a: scans.append(len(a[1])) or real(*a))
    names, exclude = [f"i{n}" for n in open_jobs], [[f"i{n}" for n in some] for some in barred]
    check(*index.search(queries, 20, only=names, exclude=exclude), truth, recall=1.0 if kind == "flat" else 0.95)
    assert sum(scans) < len(queries) / 4  # the graph and the lists did the work
    scans.clear()
    few = index.search(queries, 20, only=names[:200])
    assert sum(scans) == len(queries)  # exact, and not through the index
    truth = cosines(queries, vectors)
    truth[:, np.setdiff1d(np.arange(4000), open_jobs[:200])] = -np.inf
    check(*few, truth)


# ------------------------------------------------------------------------------------------ files: same, stale, killed


def files_of(files):
    found = {path.name: path.read_bytes() for path in files.folder.glob("vectors/*/index/*.faiss")}
    (manifest,) = files.folder.glob("vectors/*/index/jd.manifest.json")
    return found, {k: v for k, v in json.loads(manifest.read_text()).items() if k != "wall_time_s"}


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, tiny_encoder, vectors, kind):
    built = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        files = plant(tmp_path / name, tiny_encoder, vectors[:1500])
        build(files, index_config(tiny_encoder, index_kind=kind, seed=seed))
        built.append(files_of(files))
    assert built[0] == built[1]
    assert set(built[0][0].values()) != set(built[2][0].values())


def test_an_index_of_other_vectors_is_refused(toy, tiny_encoder):
    config = index_config(tiny_encoder)
    with pytest.raises(StaleVectors, match=r"no jd vectors of encoder .*Run `girl embed toy --encoder="):
        build(toy, config)
    embed(toy, config)
    with pytest.raises(DataError, match=r"jd.manifest.json: no index of these vectors. Run `girl index toy --encoder="):
        Index.load(toy, config)
    build(toy, config)
    docs = read_docs(toy.idoc)
    write_docs(toy.idoc, (docs | {"i3": "word1 trade3"}).items(), "item")
    with pytest.raises(StaleVectors, match=r"1 of 40 texts in toy.idoc .*Run `girl embed toy"):
        Index.load(toy, config)
    embed(toy, config)
    with pytest.raises(
        DataError, match=r"an index of other vectors: their digest was .*Run `girl index toy --encoder="
    ):
        Index.load(toy, config)
    build(toy, config)
    assert len(Index.load(toy, config).ids) == 40


def test_an_index_of_another_encoder_is_refused(toy, tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "copy")
    config = index_config(folder)
    embed(toy, config, kinds=["jd"])
    build(toy, config)
    with pytest.raises(StaleVectors, match=r"no jd vectors of encoder '.*tiny-bert'. Run `girl embed toy --encoder="):
        Index.load(toy, index_config(tiny_encoder))
    settings = folder / "config.json"
    settings.write_text(settings.read_text().replace('"gelu"', '"relu"'))
    with pytest.raises(StaleVectors, match=r"vectors of another encoder or other settings"):
        Index.load(toy, config)
    embed(toy, config, kinds=["jd"])
    with pytest.raises(DataError, match=r"an index of other vectors.* Run `girl index toy"):
        Index.load(toy, config)


@pytest.mark.parametrize("damage", ["a bit", "cut short", "gone"])
def test_a_file_that_its_manifest_does_not_describe_never_reaches_faiss(tmp_path, tiny_encoder, damage, monkeypatch):
    files = plant(tmp_path, tiny_encoder, clustered(500))
    config = index_config(tiny_encoder, index_kind="ivf")
    build(files, config)
    before = files_of(files)
    (path,) = files.folder.glob("vectors/*/index/*.faiss")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if damage == "a bit" else path.read_bytes()[:-100])
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("read"))
    with pytest.raises(
        DataError, match=r"jd-\w+.faiss: missing, or not the file .*; it is not read. Run `girl index toy"
    ):
        Index.load(files, config)
    monkeypatch.undo()
    assert "reused" not in build(files, config)
    assert files_of(files) == before


def _build_and_die(files, config, stop):
    """``build``, killed: in the middle of writing the FAISS file, before its rename, or before the manifest's."""
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if stop == "file":
        whole = faiss.write_index

        def half(structure, name):
            whole(structure, name)
            os.truncate(name, os.path.getsize(name) // 2)
            die()

        faiss.write_index = half
    elif stop == "rename":
        os.replace = die
    elif stop == "manifest":
        index_module.write_manifest = die
    build(files, config)


@pytest.mark.parametrize("stop", ["file", "rename", "manifest"])
def test_killed_while_writing_leaves_the_old_index(tmp_path, tiny_encoder, stop):
    files, undisturbed = (plant(tmp_path / name, tiny_encoder, clustered(400)) for name in "ab")
    old, new = (index_config(tiny_encoder, index_kind="ivf", seed=seed) for seed in (1, 2))
    build(files, old)
    before = files_of(files)
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(files, new, stop))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        Index.load(files, old).search(np.ones((1, 32)), 3)
        after = files_of(files)
        assert after[1] == before[1]
        assert after[0].items() >= before[0].items()
    build(files, new)
    build(undisturbed, new)
    assert files_of(files) == files_of(undisturbed)


def _build_with_little_disk(files, config, queue):
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        build(files, config)
    except OSError as error:
        queue.put((error.filename, error.strerror))


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, tiny_encoder):
    files = plant(tmp_path, tiny_encoder, clustered(2000))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    config = index_config(tiny_encoder, index_kind="ivf")
    process = context.Process(target=_build_with_little_disk, args=(files, config, queue))
    process.start()
    name, said = queue.get(timeout=60)
    process.join()
    assert name.endswith(".faiss")
    assert "FAISS could not write the index" in said
    assert not list(files.folder.glob("vectors/*/index/*.faiss"))
    assert not list(files.folder.glob("vectors/*/index/.*.partial"))


# --------------------------------------------------------------------------------------------------------- bad input


def test_settings_and_vectors_that_cannot_be_indexed(tmp_path, tiny_encoder):
    vectors = clustered(300)
    files = plant(tmp_path / "good", tiny_encoder, vectors)
    for overrides, message in [
        ({"index_kind": "hnws"}, "index_kind: 'hnws' is unknown - did you mean 'hnsw'.*known: auto, flat, ivf, hnsw"),
        ({"index_kind": "ivf", "index_nlist": 301}, "index_nlist: 301 lists for 300 jobs"),
        ({"index_nprobe": 0}, "index_nprobe: 0; at least 1"),
        ({"index_recall": 1.5}, r"index_recall: 1.5 is not in \(0, 1\]"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build(files, index_config(tiny_encoder, **overrides))
    for n, bad in enumerate([np.nan, np.inf, 0.0]):
        broken = vectors.copy()
        broken[[7, 9]] = bad
        broken[9, 1:] = 0 if bad == 0 else 0.1
        files = plant(tmp_path / str(n), tiny_encoder, broken)
        message = r"vectors of 2 of 300 jobs are zero or not finite \(first: i7, i9\).*Run|run `girl embed toy"
        with pytest.raises(DataError, match=message):
            build(files, index_config(tiny_encoder))


def test_searches_that_have_no_answer(small):
    _, index = small
    good = np.ones((2, 32), np.float32)
    for arguments, message in [
        ((good, 121), "the top 121 jobs are asked for, and the index has 120; 1 to 120 is required"),
        ((good, 0), "the top 0 jobs"),
        ((good[:, :31], 3), r"vectors of shape \(2, 31\); \(n, 32\)"),
        ((good[0], 3), r"vectors of shape \(32,\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            index.search(*arguments)
    with pytest.raises(ConfigError, match=r"the top 3 jobs .* of the 120 jobs may be found only 2"):
        index.search(good, 3, only=["i1", "i2", "i1"])
    with pytest.raises(DataError, match=r"2 of 3 jobs are not in the index \(first: x, y\)"):
        index.search(good, 1, only=["i1", "x", "y"])
    with pytest.raises(ConfigError, match="exclude: 1 lists of jobs for 2 vectors"):
        index.search(good, 1, exclude=[["i1"]])
    for bad in (np.nan, np.inf, 0):
        with pytest.raises(DataError, match=r"1 of 2 query vectors are zero or not finite \(first: number 1\)"):
            index.search(np.stack([good[0], np.full(32, bad)]), 3)


# ----------------------------------------------------------------------------------------------------- seekers, texts


@pytest.fixture(scope="module")
def market(tmp_path_factory, tiny_encoder):
    """The toy, embedded and indexed, with two generated JDs a seeker."""
    files = make_toy(tmp_path_factory.mktemp("market"))
    config = make_config(
        SearchConfig, overrides={"encoder": str(tiny_encoder), "n_generated": 2, "split": "cold", "search_top_k": 5}
    )
    embed(files, config)
    build(files, index_config(tiny_encoder))
    return files, config


def tables_of(path):
    frame = read_table(path, required=("user_id", "item_id", "rank", "score"))
    for _, group in frame.groupby("user_id"):
        assert group["rank"].tolist() == list(range(1, len(group) + 1))
    return frame


def vectors_in(files, config):
    """(ids of the jobs, their vectors)."""
    jobs = pd.unique(read_interactions(files.inter)["item_id"])
    return jobs, load_vectors(files, config, "jd", list(jobs))


@pytest.mark.parametrize("by, samples", [("cv", "mean"), ("generated", "mean"), ("generated", "best")])
def test_all_seekers_against_brute_force(market, tmp_path, by, samples, monkeypatch):
    """Eq. 12's mean over the JDs, the best over them, or the CV; without the jobs of the train part."""
    files, config = market
    monkeypatch.setattr("girl_recbole.search._CHUNK", 100)  # 240 seekers in three parts
    config = dataclasses.replace(config, search_samples=samples)
    report = search(files, config, by=by, everyone=True, exclude_train=True, output=str(tmp_path / "found.inter"))
    found = tables_of(tmp_path / "found.inter")
    jobs, vectors = vectors_in(files, config)
    train = read_interactions(files.split("cold", "train")).groupby("user_id")["item_id"].agg(set)
    users = pd.unique(read_interactions(files.inter)["user_id"]).tolist()
    encoder, generated, cvs = Encoder(config.encoder), read_generated(files.gdoc("sft")), read_docs(files.udoc)
    assert pd.unique(found["user_id"]).tolist() == users
    assert report["seekers"] == len(users)
    for user in users[::40]:
        texts = [cvs[user]] if by == "cv" else generated[user]
        own = encoder.encode(texts)[0].astype(np.float16).astype(np.float64)
        each = cosines(own.mean(axis=0, keepdims=True) if samples == "mean" else own, vectors)
        truth = pd.Series(each.max(axis=0), index=jobs).drop(list(train.get(user, ())))
        expected = truth.sort_values(ascending=False)[:5]
        mine = found[found["user_id"] == user]
        np.testing.assert_allclose(mine["score"], expected, atol=5e-4)
        np.testing.assert_allclose(mine["score"], truth[mine["item_id"]], atol=5e-4)
    assert len(found) == 5 * len(users)


def test_a_search_of_one_seeker_is_his_part_of_the_whole(market, tmp_path):
    files, config = market
    search(files, config, by="cv", everyone=True, output=str(tmp_path / "all"))
    search(files, config, by="cv", seekers=["u9", "u3", "u9"], output=str(tmp_path / "some"))
    whole, some = tables_of(tmp_path / "all"), tables_of(tmp_path / "some")
    assert pd.unique(some["user_id"]).tolist() == ["u9", "u3"]
    for user in ("u9", "u3"):
        expected = whole[whole["user_id"] == user].reset_index(drop=True)
        pd.testing.assert_frame_equal(some[some["user_id"] == user].reset_index(drop=True), expected, rtol=1e-5)
    report = search(files, config, by="cv", seekers=["u9"])
    assert [row["job"] for row in report["jobs of u9"]] == whole[whole["user_id"] == "u9"]["item_id"].tolist()
    jd = read_docs(files.idoc)[report["jobs of u9"][0]["job"]]
    title = report["jobs of u9"][0]["title"]  # one line of few words is a title
    assert title == jd if len(jd) <= 60 else title == jd[:57] + "..."


def test_seekers_find_jobs_of_their_trade(market):
    """By construction, a generated JD names the trade of its seeker six times, as the JDs of that trade do."""
    files, config = market
    jds, generated = read_docs(files.idoc), read_generated(files.gdoc("sft"))

    def trade(text):
        return max(text.split(), key=text.split().count)

    report = search(files, config, seekers=[f"u{n}" for n in range(20)])
    right = [
        trade(jds[row["job"]]) == trade(generated[f"u{n}"][0]) for n in range(20) for row in report[f"jobs of u{n}"]
    ]
    assert np.mean(right) > 0.9


def test_only_open_jobs(market, tmp_path):
    files, config = market
    write_table(tmp_path / "open.item", pd.DataFrame({"item_id": ["i4", "i7", "i9"]}), {"item_id": "token"})
    report = search(
        files, dataclasses.replace(config, search_top_k=3), seekers=["u1"], only=str(tmp_path / "open.item")
    )
    assert {row["job"] for row in report["jobs of u1"]} == {"i4", "i7", "i9"}


def test_best_of_several_queries_by_hand(small):
    vectors, index = small
    queries = (vectors[[5, 6, 7, 8]] + 0.1 * vectors[[9, 10, 11, 12]]).astype(np.float32)
    scores, ids = rank(index, queries.reshape(2, 2, 32), 4, exclude=[["i5"], []])
    truth = cosines(queries, vectors).reshape(2, 2, -1).max(axis=1)
    truth[0, 5] = -np.inf
    assert rows_in(ids).tolist() == np.argsort(-truth, axis=1)[:, :4].tolist()
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :4], atol=2e-6)


def test_seekers_who_cannot_be_searched_for(tmp_path, tiny_encoder):
    files = make_toy(tmp_path)
    config = make_config(SearchConfig, overrides={"encoder": str(tiny_encoder), "split": "cold"})
    write_generated(files.gdoc("sft"), [(f"u{n}", 0, "trade1") for n in range(240) if n not in (17, 31)])
    embed(files, config)
    build(files, index_config(tiny_encoder))
    with pytest.raises(DataError, match=r"1 of 2 seekers are unknown \(first: u999\).*--cv FILE"):
        search(files, config, seekers=["u1", "u999"])
    with pytest.raises(
        DataError, match=r"2 of 240 users have no generated JD \(first: u\d+, u\d+\).*`girl generate toy"
    ):
        search(files, config, everyone=True, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"users have fewer than 2 generated JDs.*`girl generate toy .*--n=2"):
        search(files, dataclasses.replace(config, n_generated=2), seekers=["u1"])
    with pytest.raises(DataError, match=r"toy.lora.gdoc: no such file. Run `girl generate toy --generator=lora`"):
        search(files, dataclasses.replace(config, generator="lora"), seekers=["u1"])
    with pytest.raises(DataError, match=r"toy.warm.train.inter: no such file; .*`girl split toy --split=warm`"):
        search(files, dataclasses.replace(config, split="warm"), by="cv", seekers=["u1"], exclude_train=True)
    (matrix,) = files.folder.glob("vectors/*/cv-*.npy")
    broken = np.load(matrix)
    broken[:] = 0
    np.save(matrix, broken)
    with pytest.raises(DataError, match=r"the cv vectors of 1 of 1 seekers are zero or not finite \(first: u1\)"):
        search(files, config, by="cv", seekers=["u1"])


def test_arguments_that_do_not_go_together(market, tmp_path):
    files, config = market
    for arguments, message in [
        ({}, "0 kinds of queries; one is required of: --seeker ID"),
        ({"seekers": ["u1"], "text": "x"}, "2 kinds of queries"),
        ({"everyone": True}, "--all needs --output FILE"),
        ({"seekers": ["u1"], "by": "cvs"}, "by: 'cvs' is unknown - did you mean 'cv'"),
        ({"seekers": ["u1"], "by": "model"}, "--by=model and --checkpoint=.* go together"),
        ({"seekers": ["u1"], "checkpoint": "x.pth"}, "go together"),
        ({"seekers": ["u1"], "generate": True}, "--generate is for --text and --cv"),
        ({"text": "x", "output": "y"}, "are for --seeker and --all, not for a text"),
    ]:
        with pytest.raises(ConfigError, match=message):
            search(files, config, **arguments)
    with pytest.raises(ConfigError, match="search_samples: 'median' is unknown; known: mean, best"):
        search(files, dataclasses.replace(config, search_samples="median"), seekers=["u1"])
    with pytest.raises(DataError, match="an empty text cannot be searched for"):
        search(files, config, text=" \n")
    (tmp_path / "cv.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"cv.txt: not UTF-8"):
        search(files, config, cv=str(tmp_path / "cv.txt"))


def test_a_text_and_a_jd_written_for_it(market, tmp_path):
    """A job's own JD finds that job; the JDs written for a CV are those that `girl generate` writes for it."""
    files, config = market
    jds = read_docs(files.idoc)
    (row,) = search(files, dataclasses.replace(config, search_top_k=1), text=jds["i5"])["found"]
    assert jds[row["job"]] == jds["i5"]
    assert row["score"] == pytest.approx(1, abs=1e-3)
    save_generator(tmp_path, seed=0)
    lengths = {"saved_folder": str(tmp_path / "saved"), "max_cv_tokens": 40, "max_jd_tokens": 12, "temperature": 1.0}
    config = dataclasses.replace(config, **lengths, search_samples="best")
    mine = DatasetFiles(tmp_path / "toy", "toy")
    shutil.copytree(files.folder, mine.folder)
    generate(mine, make_config(GenerateConfig, overrides={**lengths, "gen_samples": 2}))
    cv = read_docs(mine.udoc)["u7"]
    (tmp_path / "cv.txt").write_text(cv, encoding="utf-8")
    queries = Encoder(config.encoder).encode(read_generated(mine.gdoc("sft"))["u7"])[0]
    jobs, vectors = vectors_in(mine, config)
    truth = pd.Series(cosines(queries, vectors).max(axis=0), index=jobs)
    report = search(mine, config, cv=str(tmp_path / "cv.txt"), generate=True)
    found = report["found"]
    assert [row["score"] for row in found] == pytest.approx(sorted(truth, reverse=True)[:5], abs=2e-4)
    assert [row["score"] for row in found] == pytest.approx(truth[[row["job"] for row in found]].tolist(), abs=2e-4)


# ------------------------------------------------------------------------------------------------------------ a model


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """(files, checkpoint, model in evaluation, its dataset) of GIRLEnhancedDot and GIRLBaseDot, each after an epoch."""
    files = make_toy(tmp_path_factory.mktemp("trained"))
    found = {}
    for name in ("GIRLEnhancedDot", "GIRLBaseDot"):
        config, loaders, model = build_model(files, tiny_encoder, name, epochs=1)
        trainer = fit(config, loaders, model, saved=True)
        found[name] = (trainer.saved_model_file, model.eval(), loaders[0]._dataset)
    return files, found


@pytest.mark.parametrize("name", ["GIRLEnhancedDot", "GIRLBaseDot"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_by_model_is_the_models_own_ranking(trained, tiny_encoder, tmp_path, name, kind):
    files, found = trained
    checkpoint, model, dataset = found[name]
    config = make_config(SearchConfig, overrides={"encoder": str(tiny_encoder), "split": "cold", "search_top_k": 40})
    settings = index_config(tiny_encoder, index_kind=kind)
    report = build(files, settings, checkpoint=checkpoint)
    assert report["vectors"] == f"model-{file_hash(checkpoint)[:12]}"
    search(
        files, config, by="model", checkpoint=checkpoint, everyone=True, exclude_train=True, output=str(tmp_path / "o")
    )
    table = tables_of(tmp_path / "o")
    train = read_interactions(files.split("cold", "train")).groupby("user_id")["item_id"].agg(set)
    tokens = dataset.field2id_token["item_id"]
    for user in ("u3", "u8", "u9"):  # u8 and u9 are of the test part
        batch = {"user_id": torch.tensor([dataset.field2token_id["user_id"][user]])}
        with torch.no_grad():
            chances = pd.Series(model.full_sort_predict(batch).numpy()[1:], index=tokens[1:])
        expected = chances.drop(list(train.get(user, ()))).sort_values(ascending=False)
        mine = table[table["user_id"] == user]
        np.testing.assert_allclose(mine["score"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(mine["score"], expected[mine["item_id"]], rtol=1e-4, atol=1e-6)


def test_scores_of_a_model_are_inner_products(trained, tiny_encoder):
    files, found = trained
    model = DotModel.load(files, found["GIRLEnhancedDot"][0])
    build(files, index_config(tiny_encoder), checkpoint=found["GIRLEnhancedDot"][0])
    queries = model.queries(["u3", "u4"])
    scores, ids = Index.load(files, index_config(tiny_encoder), model).search(queries, 6)
    truth = queries.astype(np.float64) @ model.vectors.astype(np.float64).T
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.probability(scores), expit(scores + model.offset), rtol=1e-6)
    assert ids.tolist() == model.ids[np.argsort(-truth, axis=1)[:, :6]].tolist()


def test_models_that_cannot_be_searched_by(trained, tiny_encoder, tmp_path):
    files, found = trained
    checkpoint = found["GIRLBaseDot"][0]
    config = make_config(SearchConfig, overrides={"encoder": str(tiny_encoder), "split": "cold"})
    copy = shutil.copy(checkpoint, tmp_path / "other.pth")
    with open(copy, "ab") as file:
        file.write(b"\0")  # another file, whose hash no index names
    with pytest.raises(DataError, match=rf"no index of these vectors. Run `girl index toy --checkpoint={copy}`"):
        search(files, config, by="model", checkpoint=str(copy), seekers=["u1"])
    build(files, index_config(tiny_encoder), checkpoint=checkpoint)
    with pytest.raises(DataError, match=r"1 of 1 seekers are not in the data of .*\(first: u999\)"):
        search(files, config, by="model", checkpoint=checkpoint, seekers=["u999"])
    with pytest.raises(DataError, match="no such checkpoint"):
        search(files, config, by="model", checkpoint=str(tmp_path / "none.pth"), seekers=["u1"])
    with pytest.raises(ConfigError, match="trained on toy, not on other"):
        DotModel.load(DatasetFiles(files.folder, "other"), checkpoint)
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"a.pth: no checkpoint of run_recbole"):
        DotModel.load(files, tmp_path / "a.pth")
    settings, loaders, model = build_model(files, tiny_encoder, "GIRLEnhancedMLP", epochs=1)
    trainer = fit(settings, loaders, model, saved=True)
    with pytest.raises(
        ConfigError, match=r"GIRLEnhancedMLP does not score by an inner product.*--model=GIRLEnhancedDot"
    ):
        build(files, index_config(tiny_encoder), checkpoint=trainer.saved_model_file)


# --------------------------------------------------------------------------------------------------- the command line


def test_index_and_search_by_the_command_line(market, tiny_encoder, tmp_path, monkeypatch, capsys):
    files, config = market

    def girl(*arguments):
        monkeypatch.setattr("sys.argv", ["girl", *arguments, f"--data-path={files.folder.parent}"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    encoder = f"--encoder={tiny_encoder}"
    code, said, _ = girl("index", "toy", encoder)
    assert code == 0
    assert "flat" in said
    code, said, _ = girl("search", "toy", "--seeker=u3", "--by=cv", "-k", "4", encoder)
    expected = search(files, dataclasses.replace(config, search_top_k=4), by="cv", seekers=["u3"])["jobs of u3"]
    lines = [line.split() for line in said.splitlines()]
    at = lines.index(["rank", "job", "score", "title"])
    assert [line[1] for line in lines[at + 1 : at + 5]] == [row["job"] for row in expected]
    code, _, said = girl("search", "toy", "--seeker=u3", "--top-k=41", encoder)
    assert code == 2
    assert "the top 41 jobs are asked for, and the index has 40" in said
    out = tmp_path / "found.inter"
    assert girl("search", "toy", "--all", "--exclude-train", "--split=cold", f"--output={out}", encoder)[0] == 0
    assert len(tables_of(out)) == 10 * len(pd.unique(read_interactions(files.inter)["user_id"]))
    assert read_manifest(next(files.folder.glob("vectors/*/index")) / "jd")["kind"] == "index"
