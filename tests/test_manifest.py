"""Manifests: hashes see every change, and nothing stale passes."""

from __future__ import annotations

import hashlib
import json

import pytest

from girl_recbole.errors import DataError
from girl_recbole.manifest import file_hash, manifest_path, read_manifest, require, text_hash, write_manifest


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert text_hash("ab", "c") != text_hash("a", "bc") != text_hash("abc")
    assert text_hash("한", "\ud800") == text_hash("한", "\ud800")
    length = (3).to_bytes(8, "little")
    assert text_hash("abc") == hashlib.sha256(length + b"abc").hexdigest()


def test_round_trip(tmp_path):
    source, artefact = tmp_path / "in.inter", tmp_path / "out.gdoc"
    source.write_text("x")
    written = write_manifest(
        artefact, "generate", config={"n": 2}, seed=7, inputs=[source], wall_time_s=1.23456, prompt=text_hash("p")
    )
    assert manifest_path(artefact).name == "out.gdoc.manifest.json"
    found = read_manifest(artefact)
    assert found == json.loads(json.dumps(written))
    assert found["inputs"] == {"in.inter": file_hash(source)}
    assert found["wall_time_s"] == 1.235
    assert "numpy" in found["versions"]
    assert require(artefact, "girl generate toy", kind="generate", config={"n": 2}, seed=7) == found


def test_inputs_of_one_name_in_two_folders_are_both_there(tmp_path):
    files = [tmp_path / name for name in ("a/data.csv", "b/data.csv", "b/other.csv")]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(number))
    inputs = write_manifest(tmp_path / "x", "prepare", config={}, inputs=files)["inputs"]
    assert inputs == {
        str(files[0]): file_hash(files[0]), str(files[1]): file_hash(files[1]), "other.csv": file_hash(files[2]),
    }  # fmt: skip


def test_require_says_what_differs(tmp_path):
    artefact = tmp_path / "x.gdoc"
    with pytest.raises(DataError, match=r"no manifest beside it, so it may be unfinished. Run `girl generate toy`"):
        require(artefact, "girl generate toy")
    write_manifest(artefact, "generate", config={}, prompt="old", model="m")
    with pytest.raises(DataError, match=r'prompt was "old", now "new"\. Run `girl generate toy`'):
        require(artefact, "girl generate toy", prompt="new", model="m")
    with pytest.raises(DataError, match=r"encoder was null, now"):
        require(artefact, "girl embed toy", encoder="e")
    assert require(artefact, "girl generate toy", prompt="old")["seed"] is None


def test_tuples_match_what_json_makes_of_them(tmp_path):
    write_manifest(tmp_path / "x", "k", config={"shape": (1, 2)}, shape=(1, 2))
    assert require(tmp_path / "x", "c", shape=(1, 2), config={"shape": (1, 2)})


def test_a_broken_manifest_is_named(tmp_path):
    manifest_path(tmp_path / "x").write_text("{cut")
    with pytest.raises(DataError, match=r"x.manifest.json: not a manifest .* delete it and rebuild"):
        read_manifest(tmp_path / "x")
    assert read_manifest(tmp_path / "y") is None
