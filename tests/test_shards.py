"""shards.py, and a run that is killed at any write: it ends as an undisturbed one, nothing is written twice, and
nothing corrupt is used."""

import errno
import json
import multiprocessing
import os
import platform
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from girl_recbole import atomic
from girl_recbole import generate as module
from girl_recbole.atomic import DatasetFiles, iter_generated, read_generated, write_docs, write_interactions
from girl_recbole.config import make_config
from girl_recbole.engines.base import Completion
from girl_recbole.errors import DataError
from girl_recbole.generate import GenerateConfig, JDGenerator, generate
from girl_recbole.manifest import file_hash, read_manifest, text_hash, write_manifest
from girl_recbole.prompts import make_prompt
from girl_recbole.shards import (
    Kept,
    Shards,
    Written,
    as_keys,
    kept_path,
    key_of,
    read_kept,
    rows_of,
    unfinished_folder,
    write_kept,
)

# ------------------------------------------------------------------------------------------------------- one folder

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(
    st.builds(
        Written, st.lists(TEXTS, min_size=1, max_size=2), st.just([True, False]), st.integers(0, 9),
        st.none() | st.just([[0.1, -1e-9]]),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_rows_come_back_in_any_order_and_from_disk(shards):
    keys = [[key_of(f"{s}-{r}") for r in range(len(rows))] for s, rows in enumerate(shards)]
    everything = [(key, row) for s, rows in enumerate(shards) for key, row in zip(keys[s], rows, strict=True)]
    backwards = as_keys([key for key, _ in everything[::-1]])
    with tempfile.TemporaryDirectory() as folder:
        store = Shards(Path(folder))
        assert store.missing(backwards).all()
        for some, rows in zip(keys, shards, strict=True):
            store.write(some, rows)
        for held in (store, Shards(Path(folder))):
            assert list(held.read(backwards)) == [row for _, row in everything[::-1]]
            assert not held.missing(backwards).any()
            assert held.missing(as_keys([key_of("other")])).all()
            assert (len(held), held.corrupt) == (len(shards), 0)
        assert sum(map(rows_of, Path(folder).glob("*.jsonl"))) == len(everything)
        with pytest.raises(DataError, match="1 CVs have no JDs"):
            list(held.read(as_keys([key_of("other")])))


@settings(deadline=None, max_examples=150)
@given(ROWS, st.data())
def test_whatever_happens_to_a_shard_is_found_or_changes_nothing(rows, data):
    """Cut anywhere, one byte changed anywhere, or another shard under its name."""
    keys = [key_of(str(r)) for r in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        Shards(Path(folder)).write(keys, rows)
        (path,) = Path(folder).glob("*.jsonl")
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans()):
            path.write_bytes(whole[:place])
        else:
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
            )
        store = Shards(Path(folder))
        if store.corrupt:
            assert store.missing(as_keys(keys)).all()
            assert not path.exists()
        else:
            assert place >= whole.rstrip().rfind(b"\n")  # white space of the last line
            assert list(store.read(as_keys(keys))) == rows


def test_what_is_wrong_with_a_shard_is_said(tmp_path, caplog):
    store = Shards(tmp_path)
    for name in "abc":
        store.write([key_of(name)], [Written([name], [True], 0)])
    first, second, third = sorted(tmp_path.glob("*.jsonl"))
    first.write_bytes(first.read_bytes()[:40])
    second.write_bytes(second.read_bytes().replace(b'"cut": 0', b'"cut": 1'))
    third.replace(tmp_path / "0.jsonl")
    assert Shards(tmp_path).corrupt == 3
    assert f"{first}: a corrupt shard (its last line is missing); its JDs are written again" in caplog.text
    assert f"{second}: a corrupt shard (its bytes are not those that were written)" in caplog.text
    assert "0.jsonl: a corrupt shard (it is not the file of its name)" in caplog.text
    assert not list(tmp_path.iterdir())


def test_keys_that_end_in_zeros_are_told_apart():
    """NumPy takes trailing zero bytes off a single key, but compares whole ones."""
    keys = [b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"\0" * 16]
    held = np.sort(as_keys(keys))
    assert len(np.unique(held)) == 3
    with tempfile.TemporaryDirectory() as folder:
        store = Shards(Path(folder))
        store.write(keys, [Written([str(n)], [True], n) for n in range(3)])
        assert [row.cut for row in Shards(Path(folder)).read(as_keys(keys))] == [0, 1, 2]


def test_what_is_kept_beside_a_finished_file_comes_back(tmp_path):
    rows = [Kept(key_of(str(n)), [True] * (n % 3), n, [[0.5, -n]] if n % 2 else None) for n in range(5000)]
    with write_kept(tmp_path / "x.gdoc") as add:
        for row in rows:
            add(row)
    assert list(read_kept(tmp_path / "x.gdoc")) == rows


# --------------------------------------------------------------------------------------------------------- whole runs


class Echo:
    """Writes its key and the CV; remembers what it was asked. ``settings``: as of a model."""

    def __init__(self, model="m"):
        self.settings, self.asked, self.watch = {"model": model}, [], lambda: None

    def complete(self, asked):
        self.asked += [one.message.partition("\n\n")[2] for one in asked]
        self.watch()
        return [[Completion(f"{key}\n{one.message}", key % 3 > 0) for key in one.keys] for one in asked]


def _files(folder, cvs) -> DatasetFiles:
    """A seeker for each CV; those who took part, in another order than NAME.udoc's, are those with an even number."""
    files = DatasetFiles(Path(folder) / "toy", "toy")
    write_docs(files.udoc, [(f"u{n}", cv) for n, cv in enumerate(cvs)], "user")
    users = [f"u{n}" for n in range(len(cvs)) if n % 2 == 0][::-1]
    write_interactions(files.inter, pd.DataFrame({"user_id": users, "item_id": "j", "label": 1.0}))
    return files


@contextmanager
def _engine(engine):
    """Have ``generate`` use this engine, and no model."""
    with pytest.MonkeyPatch.context() as patch:

        def prepare(files, config):
            prompt = make_prompt("en")
            generator = JDGenerator(engine, None, prompt, config.seed, config.gen_samples, 9)
            return None, {**engine.settings, "prompt": prompt.id, "samples": config.gen_samples}, generator

        patch.setattr(module, "_prepare", prepare)
        yield engine


def _config(**overrides) -> GenerateConfig:
    return make_config(GenerateConfig, overrides={"gen_samples": 2, "gen_shard_size": 2, **overrides})


def _run(files, engine=None, **overrides):
    with _engine(engine or Echo()) as engine:
        return generate(files, _config(**overrides)), engine


class Killed(BaseException):
    pass


@contextmanager
def _kill(at: int, after: bool):
    """End the process at the ``at``-th renaming of a file: before it, or ``after`` it. Yields the count so far."""
    real, count = os.replace, [0]

    def replace(source, target):
        count[0] += 1
        if count[0] == at and not after:
            raise Killed
        real(source, target)
        if count[0] == at:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic.os, "replace", replace)
        yield count


def _what_a_killed_process_leaves(files) -> None:
    folder = unfinished_folder(files.gdoc("sft"))
    for path in [files.gdoc("sft"), folder / "x.jsonl", kept_path(files.gdoc("sft"))]:
        if path.parent.exists():
            path.with_name(f".{path.name}.999999.partial").write_text("half of a li")


CVS = st.lists(st.sampled_from(["", "nurse", "cook", "pilot", "smith", "baker", "clerk", "judge"]), max_size=14)
KILLS = st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=4)


@settings(deadline=None, max_examples=20)
@given(CVS, CVS, st.integers(1, 3), KILLS, KILLS)
@example(["nurse"], [], 1, [(5, True)], [])  # when all is done but that the shards go
@example(["", "cook", "cook"], ["pilot"], 1, [(3, False), (1, True)], [(2, True), (3, False)])
def test_killed_at_any_write_and_run_again_while_data_grow(first, more, size, kills, later):
    """Equal to a run that nothing disturbed; what was finished is not written again, nor what an earlier file held."""
    first = ["anyone", *first]
    grown = [*first, *more]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        files = _files(folder, first)
        for cvs, some in ((first, kills), (grown, later)):
            files = _files(folder, cvs)
            for at, after in some:
                have = _held(files)
                with _kill(at, after) as count, _engine(Echo()) as engine:
                    try:
                        generate(files, _config(gen_shard_size=size))
                    except Killed:
                        _what_a_killed_process_leaves(files)
                    else:
                        assert count[0] < at
                assert not have & set(engine.asked)
                assert have <= _held(files)
            have = _held(files)
            report, engine = _run(files, gen_shard_size=size)
            assert sorted(engine.asked) == sorted(set(cvs[::2]) - have)  # each once
            if "reused" not in report:
                assert (report["cvs_written"], report["cvs_reused"]) == (
                    len(engine.asked),
                    report["distinct_cvs"] - len(engine.asked),
                )
        alone, _ = _run(_files(other, grown), gen_shard_size=size)
        undisturbed = DatasetFiles(Path(other) / "toy", "toy").gdoc("sft")
        assert files.gdoc("sft").read_bytes() == undisturbed.read_bytes()
        assert list(read_kept(files.gdoc("sft"))) == list(read_kept(undisturbed))
        ours, theirs = read_manifest(files.gdoc("sft")), read_manifest(undisturbed)
        stayed = {"inputs"} if "reused" in report else set()  # nothing that grew was of a seeker who took part
        assert {key for key in ours if ours[key] != theirs[key]} <= {"wall_time_s", *stayed}
        assert {key: alone[key] for key in ours["report"]} == ours["report"]
        assert not unfinished_folder(files.gdoc("sft")).exists()


def _held(files) -> set[str]:
    """The CVs whose JDs lie in whole shards, or in a finished file that the manifest describes."""
    path, held = files.gdoc("sft"), set()
    for shard in unfinished_folder(path).glob("*.jsonl"):
        held |= {json.loads(line)["texts"][0].partition("\n\n")[2] for line in shard.read_text().split("\n")[:-2]}
    manifest = read_manifest(path)
    if manifest and manifest["sha256"] == file_hash(path) and manifest["cvs_sha256"] == file_hash(kept_path(path)):
        held |= {texts[0].partition("\n\n")[2] for _, texts in iter_generated(path)}
    return held


def test_new_and_changed_cvs_alone_are_written_and_other_settings_write_all(tmp_path):
    cvs = [f"cv {n}" for n in range(20)]
    _run(_files(tmp_path, cvs))
    cvs[4] = "another"
    files = _files(tmp_path, [*cvs, "new", "", "cv 0"])
    report, engine = _run(files)
    assert sorted(engine.asked) == ["another", "new"]  # of seekers with even numbers; cv 0 is known
    assert (report["cvs_reused"], report["cvs_written"], report["distinct_cvs"]) == (9, 2, 11)
    assert (report["seekers"], report["jds"]) == (12, 24)
    again, engine = _run(files)
    assert again["reused"].startswith("all")
    assert not engine.asked
    _, engine = _run(files, Echo("another model"))
    assert len(engine.asked) == 11
    _, engine = _run(files, Echo("another model"), gen_samples=1)
    assert len(engine.asked) == 11


def test_a_finished_file_without_what_was_kept_of_its_cvs(tmp_path):
    """As the JDs that ship with the package: nothing to do where NAME.udoc is that of its making, else all anew."""
    cvs = [f"cv {n}" for n in range(8)]
    files = _files(tmp_path, cvs)
    _run(files)
    path = files.gdoc("sft")
    whole, manifest = path.read_bytes(), read_manifest(path)
    kept_path(path).unlink()
    lines = whole.splitlines(keepends=True)
    other_order = [lines[0], *lines[5:], *lines[1:5]]  # two JDs a seeker
    path.write_bytes(b"".join(other_order))
    facts = {key: manifest[key] for key in ("settings", "report")}
    cvs_of = dict(zip(read_generated(path), ["cv 4", "cv 6", "cv 0", "cv 2"], strict=True))
    source = text_hash(*(part for pair in cvs_of.items() for part in pair))
    write_manifest(path, "gdoc", config={}, inputs=[files.udoc], source=source, sha256=file_hash(path), **facts)
    report, engine = _run(files)
    assert report["reused"].startswith("all")
    assert not engine.asked
    _run(_files(tmp_path, [*cvs, "odd"]))  # u8 takes part now
    report, engine = _run(_files(tmp_path, [*cvs[:2], "x", *cvs[3:], "odd"]))
    assert sorted(engine.asked) == ["x"]
    kept_path(path).unlink()
    _, engine = _run(_files(tmp_path, [*cvs, "odd"]))
    assert len(engine.asked) == 5


def test_a_changed_file_is_not_taken_over(tmp_path):
    files = _files(tmp_path, [f"cv {n}" for n in range(8)])
    _run(files)
    kept_path(files.gdoc("sft")).write_bytes(b"")
    _, engine = _run(_files(tmp_path, [f"cv {n}" for n in range(10)]))
    assert len(engine.asked) == 5
    path = files.gdoc("sft")
    path.write_bytes(path.read_bytes().replace(b"cv 4", b"cv 5"))
    _, engine = _run(files)
    assert len(engine.asked) == 5


def test_corrupt_shards_are_reported_and_written_again(tmp_path, caplog):
    files = _files(tmp_path, [f"cv {n}" for n in range(12)])
    _run(files)
    whole = files.gdoc("sft").read_bytes()
    files.gdoc("sft").unlink()
    with _kill(4, after=True), _engine(Echo()), pytest.raises(Killed):
        generate(files, _config())
    shards = sorted(unfinished_folder(files.gdoc("sft")).glob("*.jsonl"))
    assert len(shards) == 3
    shards[1].write_bytes(shards[1].read_bytes()[:-20])
    report, engine = _run(files)
    assert (report["shards_corrupt"], report["shards_reused"], len(engine.asked)) == (1, 2, 2)
    assert "a corrupt shard" in caplog.text
    assert files.gdoc("sft").read_bytes() == whole


def test_a_full_disk_is_named_and_finished_shards_stay(tmp_path, capsys):
    """/dev/full takes nothing: the device of a second shard, and then of the final file."""
    files = _files(tmp_path, [f"cv {n}" for n in range(12)])
    path = files.gdoc("sft")
    engine = Echo()

    def fill():
        if len(engine.asked) == 4:
            keys = [key_of(cv) for cv in engine.asked[2:]]
            Shards(tmp_path / "named").write(keys, [Written([], [], 0)] * 2)
            (name,) = (shard.name for shard in (tmp_path / "named").iterdir())
            (unfinished_folder(path) / f".{name}.{os.getpid()}.partial").symlink_to("/dev/full")

    engine.watch = fill
    with pytest.raises(OSError, match=r"No space left on device: '.*/toy\.sft\.gdoc\.shards/\w+\.jsonl'") as full:
        _run(files, engine)
    assert full.value.errno == errno.ENOSPC
    assert len(list(unfinished_folder(path).iterdir())) == 2  # the settings and the first shard
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    beside.symlink_to("/dev/full")
    engine = Echo()
    with pytest.raises(OSError, match=r"No space left on device: '.*/toy\.sft\.gdoc'"):
        _run(files, engine)
    assert engine.asked == [f"cv {n}" for n in (4, 6, 8, 10)]
    assert not path.exists()
    report, engine = _run(files)
    assert (report["cvs_reused"], engine.asked) == (6, [])


def _write_until_told(files, begun):
    """A run that stays at its second shard."""
    engine = Echo()

    def wait():
        if len(engine.asked) == 4:
            begun.set()
            time.sleep(60)

    engine.watch = wait
    _run(files, engine)


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path):
    files = _files(tmp_path, [f"cv {n}" for n in range(12)])
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    other = context.Process(target=_write_until_told, args=(files, begun))
    other.start()
    assert begun.wait(60)
    engine, before = Echo(), sorted(unfinished_folder(files.gdoc("sft")).iterdir())
    with pytest.raises(
        DataError,
        match=rf"toy\.sft\.gdoc: is being written by process {other.pid} on {platform.node()}, begun 20.* --gen_as",
    ):
        _run(files, engine)
    assert engine.asked == []
    assert sorted(unfinished_folder(files.gdoc("sft")).iterdir()) == before
    _run(files, gen_as="mine")  # another file is free
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    report, engine = _run(files)  # and this one, now that nobody writes it
    assert engine.asked == [f"cv {n}" for n in (4, 6, 8, 10)]
    assert report["cvs_reused"] == 2


@pytest.mark.parametrize("changed", [8, 0])
def test_a_udoc_that_changes_meanwhile_is_an_error_and_the_old_file_stays(tmp_path, changed):
    """Changed behind what is written, where the end tells, or before it is read again: no JD under another CV's key."""
    _run(_files(tmp_path, ["old", "cv"]))
    files = _files(tmp_path, [f"cv {n}" for n in range(9)])
    whole, engine = files.gdoc("sft").read_bytes(), Echo()
    after = [f"cv {n}" if n != changed else "other" for n in range(9)]
    real = module._tasks

    def tasks(*args):
        if changed == 0:
            write_docs(files.udoc, [(f"u{n}", cv) for n, cv in enumerate(after)], "user")
        yield from real(*args)
        write_docs(files.udoc, [(f"u{n}", cv) for n, cv in enumerate(after)], "user")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_tasks", tasks)
        with pytest.raises(DataError, match=r"toy\.udoc: changed while JDs were written .* run the same command again"):
            _run(files, engine)
    assert files.gdoc("sft").read_bytes() == whole
    assert len(engine.asked) == (0 if changed == 0 else 5)
    report, engine = _run(files)
    assert report["cvs_reused"] == (0 if changed == 0 else 4)
    assert "other" in engine.asked


def test_what_an_empty_stage_says(tmp_path):
    files = _files(tmp_path, ["cv"])
    write_interactions(files.inter, pd.DataFrame({"user_id": [], "item_id": [], "label": []}))
    with pytest.raises(DataError, match="the stages recommendation have no seeker"):
        _run(files)
