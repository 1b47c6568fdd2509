"""RecBole-PJF's atomic files: two-sided labels, documents of several rows."""

from __future__ import annotations

import pytest

from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.prepare import PrepareConfig, prepare


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = [f"u{u}\tj{(u + k) % 8}\t{(u + k) % 2}\t{float(k == 0)}" for u in range(16) for k in range(3)]
    rows += ["u0\tj1\t1\t1.0"]  # the same pair from the other side, now agreed
    head = "user_id:token\tjob_id:token\tdirect:token\tlabel:float"
    (folder / "zhi.inter").write_text("\n".join([head, *rows]) + "\n")
    cvs = "".join(f"u{u}\tcan cook\nu{u}\tand {u}\n" for u in range(16))
    (folder / "zhi.udoc").write_text("user_id:token\tuser_doc:token_seq\n" + cvs)
    jds = "".join(f"j{j}\tmust cook {j}\n" for j in range(8))
    (folder / "zhi.idoc").write_text("job_id:token\tjob_doc:token_seq\n" + jds)
    return folder


def run(tmp_path, raw, **overrides):
    files = DatasetFiles(tmp_path / "out", "zhi")
    settings = {"raw": str(raw), "stage_shares": [0.25, 0.25, 0.25, 0.25], **overrides}
    return files, prepare(files, make_config(PrepareConfig, overrides=settings), "pjf")


def test_rejections_are_kept_as_mismatches(tmp_path, raw):
    files, report = run(tmp_path, raw, stage_shares=[0, 0, 0, 1])
    inter = read_interactions(files.inter).set_index(["user_id", "item_id"])["label"]
    assert len(inter) == 48
    assert inter["u0", "j0"] == inter["u0", "j1"] == 1  # matched, and matched in the end
    assert inter["u0", "j2"] == 0
    assert inter.sum() == 17
    assert report["dropped"]["further rows of a pair (a match is kept before a mismatch)"] == 1
    assert report["read"]["rows with direct 0 (not used)"] + report["read"]["rows with direct 1 (not used)"] == 49
    assert read_docs(files.udoc)["u3"] == "can cook\nand 3"
    assert read_docs(files.idoc)["j3"] == "must cook 3"


def test_stages(tmp_path, raw):
    files, _ = run(tmp_path, raw)
    assert read_interactions(files.stage("sft"))["label"].eq(1).all()
    assert read_interactions(files.stage("reward"))["user_id"].nunique() == 4


def test_without_a_label_every_row_is_a_match(tmp_path, raw):
    (raw / "zhi.inter").write_text("user_id:token\titem_id:token\n" + "".join(f"u{u}\tj{u % 8}\n" for u in range(16)))
    with pytest.raises(ConfigError, match="all 16 pairs are matched, so mismatches must be sampled"):
        run(tmp_path, raw)
    files, report = run(tmp_path, raw, negatives="popularity", negatives_per_positive=1)
    assert read_interactions(files.inter)["label"].mean() == 0.5
    assert report["notes"]["matched"] == "every row: the file has no label"


def test_bad_rows(tmp_path, raw):
    with open(raw / "zhi.inter", "a") as file:
        file.write("nobody\tj1\t0\t1\nu1\tnothing\t0\t1\nu1\tj7\t0\t3\n")
    said = (
        r"zhi.inter: 3 of 52 rows cannot be used: 1 of a seeker without a document \(nobody\); "
        r"1 for a job without a document \(nothing\); 1 with a label outside 0 to 1"
    )
    with pytest.raises(DataError, match=said):
        run(tmp_path, raw)
    _, report = run(tmp_path, raw, on_bad="drop")
    assert report["dropped"]["zhi.inter: of a seeker without a document"] == 1


def test_bad_folders(tmp_path, raw):
    (raw / "zhi.idoc").unlink()
    with pytest.raises(DataError, match=r"no zhi.idoc; the texts of both sides are required"):
        run(tmp_path, raw)
    (raw / "zhi.inter").write_text("user_id:token\tpost:token\nu1\tp\n")
    (raw / "zhi.idoc").write_text("job_id:token\tjob_doc:token_seq\nj1\ta\n")
    with pytest.raises(DataError, match="no column item_id or job_id; it has user_id, post"):
        run(tmp_path, raw)
    (raw / "other.inter").write_text("")
    with pytest.raises(DataError, match=r"2 .inter files; exactly one is required"):
        run(tmp_path, raw)
