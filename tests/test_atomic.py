"""On-disk formats: any text round-trips, any broken file is a readable error."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from girl_recbole import atomic
from girl_recbole.atomic import (
    DatasetFiles,
    iter_docs,
    iter_generated,
    iter_ids,
    read_docs,
    read_generated,
    read_interactions,
    read_table,
    read_users,
    write_docs,
    write_generated,
    write_interactions,
    write_table,
    write_users,
)
from girl_recbole.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
awkward = st.lists(
    st.sampled_from(
        ["\\", "\t", "\n", "\r", "\0", '"', "'", "\\n", "\x0b", "\x1c", "\x85", "\u2028", "é", "🧑‍🔧", "한국어", " "]
    )
).map("".join)
ids = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("atomic")


# -------------------------------------------------------------------------------------------------------- round trips


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(ids, texts | awkward, max_size=6), st.sampled_from(["user", "item"]))
def test_documents_round_trip(folder, docs, kind):
    assert write_docs(folder / "d.doc", docs.items(), kind) == len(docs)
    assert read_docs(folder / "d.doc") == docs
    assert len((folder / "d.doc").read_bytes().split(b"\n")) == len(docs) + 2  # one record a line


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(ids, st.lists(texts | awkward, min_size=1, max_size=3), max_size=4))
def test_generated_round_trip(folder, generated):
    rows = [(user, n, text) for user, found in generated.items() for n, text in enumerate(found)]
    assert write_generated(folder / "g.gdoc", rows) == len(rows)
    assert read_generated(folder / "g.gdoc") == generated


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ids, ids, st.sampled_from([0.0, 1.0]), st.floats(0, 2e9)), max_size=8), st.booleans())
def test_interactions_round_trip(folder, rows, timed):
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "label", "timestamp"])
    frame = frame.astype({"user_id": object, "item_id": object, "label": float, "timestamp": float})
    frame = frame if timed else frame.drop(columns="timestamp")
    write_interactions(folder / "x.inter", frame)
    pd.testing.assert_frame_equal(read_interactions(folder / "x.inter"), frame, check_dtype=len(frame) > 0)


def test_whole_labels_and_times_are_written_without_a_point(tmp_path):
    frame = pd.DataFrame([("u", "i", 1.0, 1.7e9)], columns=["user_id", "item_id", "label", "timestamp"])
    write_interactions(tmp_path / "x.inter", frame)
    assert (tmp_path / "x.inter").read_text() == (
        "user_id:token\titem_id:token\tlabel:float\ttimestamp:float\nu\ti\t1\t1700000000\n"
    )


def test_one_megabyte_and_empty_documents(tmp_path):
    docs = {"long": "é\t\\" * 350_000, "empty": ""}
    write_docs(tmp_path / "d.udoc", docs.items(), "user")
    assert read_docs(tmp_path / "d.udoc") == docs


def test_users_round_trip_in_order(tmp_path):
    write_users(tmp_path / "r.user", ["u2", "u10", "NA", "007"])
    assert read_users(tmp_path / "r.user") == ["u2", "u10", "NA", "007"]


def test_recbole_pjf_documents(tmp_path, monkeypatch):
    (tmp_path / "z.udoc").write_text(
        "user_id:token\tuser_doc:token_seq\nu1\tjava \\n sql\nu1\t team lead\r\n\nu2\tcook\n"
    )
    assert read_docs(tmp_path / "z.udoc") == {"u1": "java \\n sql\n team lead", "u2": "cook"}
    (tmp_path / "z.idoc").write_text("job_id:token\tjob_doc:token_seq\ni1\ta\ni2\tb\ni1\tc\n")
    with pytest.raises(DataError, match="line 4: second document of i1"):
        read_docs(tmp_path / "z.idoc")
    monkeypatch.setattr(atomic, "_RECENT", 4)
    rows = "".join(f"i{n % 5}\ta\n" for n in range(1, 7))
    (tmp_path / "z.idoc").write_text(f"job_id:token\tjob_doc:token_seq\n{rows}")
    with pytest.raises(DataError, match="line 7: second document of i1"):
        read_docs(tmp_path / "z.idoc")


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "a.user").write_bytes(b"\xef\xbb\xbfuser_id:token\nu1\n")
    assert read_users(tmp_path / "a.user") == ["u1"]


def test_names_of_files(tmp_path):
    files = DatasetFiles(tmp_path, "toy")
    assert files.stage("rl").name == "toy.rl.user"
    assert files.stage("sft").name == "toy.sft.inter"
    assert files.split("cold-s1", "test").name == "toy.cold-s1.test.inter"
    assert files.gdoc("tiny").name == "toy.tiny.gdoc"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.udoc"
    write_docs(path, [("u1", "old")], "user")

    def rows():
        yield "u1", "half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_docs(path, rows(), "user")
    assert read_docs(path) == {"u1": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.udoc"]


def test_what_a_killed_process_left_goes(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    names = {"dead": f".a.user.{process.pid}.partial", "new": f".a.user.{process.pid}0.partial",
             "alive": f".a.user.{os.getppid()}.partial", "other": f".b.a.user.{process.pid}.partial"}  # fmt: skip
    for name in names.values():
        (tmp_path / name).write_text("half")
        if name != names["new"]:
            os.utime(tmp_path / name, (0, 0))
    write_users(tmp_path / "a.user", ["u1"])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.user", names["new"], names["alive"], names["other"]}


# ---------------------------------------------------------------------------------------------------------- bad input


def _file(tmp_path, content: str | bytes, name="x.inter"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


INTER = "user_id:token\titem_id:token\tlabel:float\n"
UDOC = "user_id:token\tuser_doc:text\n"


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "empty file; a header with types"),
        ("user_id\titem_id\tlabel\nu\ti\t1\n", "no type for user_id, item_id, label"),
        ("user_id:token\titem_id:token\nu\ti\n", "no column label; it has user_id, item_id"),
        (INTER + "u\ti\t1\nu\tj\n", r"1 rows with too few or .* \(line 3\); 3 tab-separated fields are required"),
        (INTER + "u\ti\t1\nu\tj\t1\t5\n", r"1 rows with too few or too many fields.* \(line 3\)"),
        (INTER + "u\ti\t1\t5\n" + "u\ti\t1\n" * 9, r"1 rows .* \(line 2\)"),
        (INTER + "u\ti\t1\t5\nu\tj\n", r"2 rows .* \(line 2, 3\)"),
        (INTER + "u\ti\t1\n\nu\tj\t1\n" + "\n" * 4, r"5 rows .* \(line 3, 5, 6 and 2 more\)"),
        (INTER + "u\ti\t1\nu\0x\tj\t1\n", r"1 rows .* a NUL in them \(line 3\)"),
        (INTER + "u\ti\t1\nu\tj\t1\nu\tk", r"1 rows .* \(line 4\)"),
        (INTER + "u\ti\t1\n\tj\t1\n", "1 of 2 ids in user_id are empty or hold white space, first '' on line 3"),
        (INTER + "u\ti\t1\nu\tj k\t1\n", "1 of 2 ids in item_id are empty or hold white space, first 'j k' on line 3"),
        ("user_id:token\tuser_id:token\n", "line 1: column user_id is there twice"),
        (INTER + "u\ti\tyes\n", "'yes' on line 2 is not a number"),
        (INTER + "u\ti\t1\nu\tj\t2\nu\tk\t\n", "2 of 3 labels are neither 0 .* first 2.0 on line 3"),
        (INTER.encode() + b"u\ti\xff\t1\n", "not UTF-8"),
        (b"user_\xe9:token\n", "line 1 is not UTF-8"),
    ],
)
def test_bad_interactions(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read_interactions(_file(tmp_path, content))


def test_line_ends_of_windows_and_a_last_line_without_one(tmp_path):
    path = _file(tmp_path, "user_id:token\titem_id:token\r\nu1\ti1\r\nu2\ti2\r\nu3\ti3")
    assert read_table(path)["item_id"].tolist() == ["i1", "i2", "i3"]
    path.with_name("x.inter.manifest.json").write_text("{}")  # a file of ours ends with a line end
    with pytest.raises(DataError, match=r"x\.inter: cut short in line 4 \(no line end\)"):
        read_table(path)


def test_a_wrong_line_is_found_across_blocks(tmp_path):
    """Two blocks of 16 MiB: the line over their edge is whole, the wrong one after it is named."""
    line = b"u" * 500 + b"\t" + b"i" * 522 + b"\n"
    content = b"user_id:token\titem_id:token\n" + line * 20_000
    assert len(read_table(_file(tmp_path, content))) == 20_000
    with pytest.raises(DataError, match=r"1 rows .* \(line 20002\)"):
        read_table(_file(tmp_path, content + b"u\ti\tx\n"))


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "empty file"),
        (INTER, "the header must be ID:token"),
        (UDOC + "u1\tone\nu2\ttw", r"cut short in line 3 \(no line end\)"),
        (UDOC + "u1\tone\nu1\ttwo\n", "line 3: second document of u1; ids must be unique"),
        (UDOC + "u1\tone\nu2\n", "line 3 has 1 tab-separated fields; 2 are required"),
        (UDOC + "u1\ta\tb\n", "line 2 has 3 tab-separated fields; 2 are required"),
        (UDOC + "u1\tc:\\users\n", r"line 2: unknown escape '\\u'"),
        (UDOC + "u1\tends in \\\n", r"unknown escape '\\'"),
        (UDOC.encode() + b"u1\tcaf\xe9\n", r"line 2 is not UTF-8 \(byte 6\)"),
    ],
)
def test_bad_documents(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        list(iter_docs(_file(tmp_path, content, "x.udoc")))


def test_missing_file(tmp_path):
    for read in (read_table, read_docs, read_generated):
        with pytest.raises(DataError, match="x: no such file"):
            read(tmp_path / "x")


def test_samples_out_of_order(tmp_path):
    path = _file(tmp_path, "user_id:token\tsample:float\ttext:text\nu1\t0\ta\nu1\t2\tb\n", "x.gdoc")
    with pytest.raises(DataError, match="line 3: sample 2 of u1 where 1 was due"):
        read_generated(path)


def test_generated_streamed_is_what_is_read_at_once(tmp_path):
    path = tmp_path / "x.gdoc"
    write_generated(path, [("u1", 0, "a\nb"), ("u1", 1, ""), ("u2", 0, "\\t")])
    assert dict(iter_generated(path)) == read_generated(path) == {"u1": ["a\nb", ""], "u2": ["\\t"]}
    write_generated(path, [])
    assert list(iter_generated(path)) == []
    path = _file(tmp_path, "user_id:token\tsample:float\ttext:text\nu1\t0\ta\nu2\t1\tb\n", "y.gdoc")
    with pytest.raises(DataError, match="line 3: sample 1 of u2 where 0 was due"):
        list(iter_generated(path))


def test_ids_streamed_are_those_of_the_table(tmp_path):
    """Over blocks of a megabyte; quotes and numbers are text; lines may end with CR LF."""
    ids = [f'"{n // 3}' for n in range(300_000)]
    path = _file(tmp_path, "\n".join(["a:float\tuser_id:token", *(f"1\t{i}" for i in ids)]) + "\n", "x.inter")
    assert path.stat().st_size > 2 * 2**20
    streamed = list(iter_ids(path, "user_id"))
    assert list(dict.fromkeys(streamed)) == list(dict.fromkeys(ids))
    assert len(streamed) < 100_010  # an id comes again where a block begins, if at all
    crlf = _file(tmp_path, "user_id:token\tb:token\r\nu1\tx\r\nu2\ty\r\n", "y.inter")
    assert (list(iter_ids(crlf, "user_id")), list(iter_ids(crlf, "b"))) == (["u1", "u2"], ["x", "y"])
    assert list(iter_ids(_file(tmp_path, "user_id:token\n", "z.user"), "user_id")) == []
    with pytest.raises(DataError, match="no column item_id; it has user_id, b"):
        list(iter_ids(crlf, "item_id"))
    with pytest.raises(DataError, match="1 ids in user_id are empty"):
        list(iter_ids(_file(tmp_path, "user_id:token\tb:token\nu 1\tx\n", "w.inter"), "user_id"))
    with pytest.raises(DataError, match="1 rows with too few or too many fields"):
        list(iter_ids(_file(tmp_path, "user_id:token\tb:token\nu1\n", "v.inter"), "user_id"))


@pytest.mark.parametrize("bad", ["", "a b", "a\tb", "a\nb", "a\0b", 7, None, float("nan")])
def test_bad_ids_are_not_written(tmp_path, bad):
    with pytest.raises(DataError, match="1 ids in user_id are empty or hold white space or NUL"):
        write_docs(tmp_path / "x.udoc", [("u1", "a"), (bad, "b")], "user")
    with pytest.raises(DataError, match="1 ids in user_id"):
        write_users(tmp_path / "x.user", ["u1", bad]) if isinstance(bad, str) else write_table(
            tmp_path / "x.user", pd.DataFrame({"user_id": ["u1", bad]}, dtype=object), {"user_id": "token"}
        )
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 5))
@example([0, 1, 2, 3, 4, 5, 6, 7, 0], 2)
def test_an_id_that_comes_twice_is_found_however_few_are_held(numbers, recent):
    """Where a set finds the first one, and after every id before it."""
    seen, twice = set(), None
    for line, number in enumerate(numbers, start=2):
        if number in seen:
            twice = twice or (line, number)
        seen.add(number)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "_RECENT", recent)
        path = Path(folder) / "x.udoc"
        path.write_text("user_id:token\tuser_doc:text\n" + "".join(f"u{number}\ttext\n" for number in numbers))
        for use in (read_docs, lambda path: write_docs(path, [(f"u{number}", "text") for number in numbers], "user")):
            if twice is None:
                assert use(path) in (dict.fromkeys([f"u{number}" for number in numbers], "text"), len(numbers))
                continue
            with pytest.raises(DataError, match=r"line \d+: second document of u\d+; ids must be unique") as error:
                use(path)
            if recent == 1:
                assert f"line {twice[0]}: second document of u{twice[1]};" in str(error.value)


def test_duplicates_and_surrogates_are_not_written(tmp_path):
    with pytest.raises(DataError, match="line 3: second document of u1"):
        write_docs(tmp_path / "x.udoc", [("u1", "a"), ("u1", "b")], "user")
    with pytest.raises(DataError, match="the text of u1 has a lone surrogate at position 1"):
        write_docs(tmp_path / "x.udoc", [("u1", "a\ud800")], "user")
    with pytest.raises(DataError, match="unknown type 'int'"):
        write_table(tmp_path / "x", pd.DataFrame({"a": [1]}), {"a": "int"})
    with pytest.raises(ValueError, match="kind must be"):
        write_docs(tmp_path / "x.udoc", [], "job")


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    frame = pd.DataFrame({"user_id": ["NA", "007", "1e5"], "item_id": ["null", "nan", '"q"'], "label": [1.0, 0.0, 1.0]})
    write_interactions(tmp_path / "x.inter", frame)
    read = read_interactions(tmp_path / "x.inter")
    assert read["user_id"].tolist() == ["NA", "007", "1e5"]
    assert read["item_id"].tolist() == ["null", "nan", '"q"']
    assert read["label"].dtype == np.float64
