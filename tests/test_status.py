"""status.py: each stage's state as files come, change and are stopped, and the command that is next."""

import pandas as pd
import pytest
import test_generate as g
from test_generate import files  # noqa: F401 - a fixture: toy with a generator, no split, no JDs

from girl_recbole.atomic import PARTS, DatasetFiles, iter_docs, write_docs, write_interactions
from girl_recbole.errors import DataError
from girl_recbole.generate import generate, generator_folder
from girl_recbole.manifest import file_hash, read_manifest, write_manifest
from girl_recbole.shards import Shards, Written, key_of, unfinished_folder
from girl_recbole.status import status


def _say(files, tmp_path):  # noqa: F811
    """{(stage, what): (state, detail, run)}, and the next command."""
    report = status(files, str(tmp_path / "saved"))
    return {(r["stage"], r["what"]): (r["state"], r["detail"], r["run"]) for r in report["stages"]}, report["next"]


def _split(files) -> None:  # noqa: F811
    for part in PARTS:
        write_interactions(files.split("warm", part), pd.DataFrame({"user_id": ["u1"], "item_id": "j", "label": 1.0}))
        write_manifest(files.split("warm", part), "split", config={"split": "warm"}, inputs=[files.inter])


def _embed(files, kind, source) -> None:  # noqa: F811
    folder = files.vectors("minilm")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"encoder": "minilm"}
    write_manifest(folder / kind, "vectors", config=config, source_sha256=file_hash(source), rows=10)


def test_from_a_new_dataset_to_its_recommender(files, tmp_path):  # noqa: F811
    write_docs(files.idoc, [("j", "A job.")], "item")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    rows, command = _say(files, tmp_path)
    assert rows == {
        ("data", "toy"): ("unknown", "stages recommendation, sft, rl", ""),
        ("split", "warm"): ("missing", "", "girl split toy --split=warm"),
        ("generator", "sft"): ("done", "", ""),
        ("generate", "sft"): ("missing", "", "girl generate toy"),
        ("embed", "cv, jd, generated JDs"): ("missing", "", "girl embed toy"),
    }
    assert command == "girl split toy --split=warm"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing was touched
    _split(files)
    assert _say(files, tmp_path)[1] == "girl generate toy"
    generate(files, g.config(tmp_path))
    rows, command = _say(files, tmp_path)
    assert rows["generate", "sft"] == ("done", "20 JDs for 10 seekers", "")
    assert command == "girl embed toy"
    for kind, source in (("cv", files.udoc), ("jd", files.idoc), ("gen.sft", files.gdoc("sft"))):
        _embed(files, kind, source)
    rows, command = _say(files, tmp_path)
    assert {row[0] for key, row in rows.items() if key[0] != "data"} == {"done"}
    assert rows["embed", "minilm/gen.sft"][1] == "10 vectors"
    assert command == "run_recbole --model=GIRLEnhancedMLP --dataset=toy"


def test_what_has_changed_makes_stale_what_was_made_of_it(files, tmp_path):  # noqa: F811
    write_docs(files.idoc, [("j", "A job.")], "item")
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    facts = {key: read_manifest(folder)[key] for key in ("prompt", "fingerprint")}
    write_manifest(folder, "generator", config={}, inputs=[files.udoc, files.stage("sft")], **facts)
    _split(files)
    generate(files, g.config(tmp_path))
    _embed(files, "cv", files.udoc)
    write_docs(files.udoc, [*iter_docs(files.udoc), ("u99", "Another CV.")], "user")
    rows, command = _say(files, tmp_path)
    again = "girl generate toy --gen_samples=2"
    assert rows["generator", "sft"] == ("done", "toy.udoc changed since", "")
    assert rows["generate", "sft"] == ("stale", "toy.udoc changed; CVs that stay keep their JDs", again)
    assert rows["embed", "minilm/cv"][0] == "stale"
    assert rows["split", "warm"][0] == "done"
    assert command == again
    generate(files, g.config(tmp_path, seed=1))
    assert _say(files, tmp_path)[0]["generate", "sft"][0] == "done"
    more = pd.DataFrame({"user_id": [f"u{n}" for n in range(9)], "item_id": "j", "label": 1.0})
    write_interactions(files.inter, more)
    rows, _ = _say(files, tmp_path)
    assert rows["split", "warm"] == ("stale", "toy.inter changed", "girl split toy --split=warm")
    assert rows["generate", "sft"][1] == "2 seekers of its stages have no JD, 3 others have one"  # u6, u7; u9, u10, u12
    write_interactions(files.stage("sft"), more[:1])
    assert _say(files, tmp_path)[0]["generator", "sft"][:2] == ("stale", "toy.sft.inter changed")
    g.save_generator(tmp_path, seed=5)
    assert _say(files, tmp_path)[0]["generate", "sft"][1].startswith("written by other weights than")
    files.gdoc("sft").write_bytes(files.gdoc("sft").read_bytes()[:-9])
    assert _say(files, tmp_path)[0]["generate", "sft"][1] == "changed after it was written"


def test_work_that_was_stopped(files, tmp_path):  # noqa: F811
    write_docs(files.idoc, [("j", "A job.")], "item")
    store = Shards(unfinished_folder(files.gdoc("ppo-best-of-4")))
    store.write([key_of("a"), key_of("b")], [Written(["x"], [True], 0)] * 2)
    store.write([key_of("c")], [Written(["x" * 500], [True], 0)])
    (tmp_path / "saved" / "toy" / "ppo.checkpoints").mkdir()
    rows, command = _say(files, tmp_path)
    run = "girl generate toy --generator=ppo --gen_best_of=4"
    assert rows["generate", "ppo-best-of-4"] == ("unfinished", "3 CVs in 2 shards", run)
    assert rows["generator", "ppo"][0::2] == ("unfinished", "girl ppo toy")
    assert command == "girl ppo toy"


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no such dataset\. Make one with `girl simulate x`"):
        status(DatasetFiles(tmp_path / "x", "x"), "saved")
    with pytest.raises(DataError, match=r"It ships with the package: `girl stats jobrec-sim`"):
        status(DatasetFiles(tmp_path / "jobrec-sim", "jobrec-sim"), "saved")
    assert not list(tmp_path.iterdir())
