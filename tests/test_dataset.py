"""GIRLDataset: labels as they are, vectors by id against a slow loop, and the errors."""

import pickle

import numpy as np
import pandas as pd
import pytest
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from girl_recbole.atomic import PARTS, read_docs, read_interactions, write_docs, write_interactions
from girl_recbole.dataset import _read_pairs
from girl_recbole.errors import ConfigError, DataError


def make_config(toy, tiny_encoder, **settings):
    """Our property files; the split ``cold`` where its files are there."""
    values = {
        "data_path": str(toy.folder.parent), "checkpoint_dir": str(toy.folder / "saved"),
        "encoder": str(tiny_encoder), "show_progress": False, "use_gpu": False, "state": "WARNING",
    }  # fmt: skip
    if toy.split("cold", "train").exists():
        values["split"] = "cold"
    return Config(settings.pop("model", "GIRLEnhancedMLP"), "toy", config_dict=values | settings, arguments=[])


def _pairs(dataset):
    """(user, item, label) in the words of the files."""
    feat = dataset.inter_feat
    users = dataset.id2token("user_id", np.asarray(feat["user_id"]))
    items = dataset.id2token("item_id", np.asarray(feat["item_id"]))
    return sorted(zip(users, items, np.asarray(feat["label"]).tolist(), strict=True))


def test_every_pair_keeps_its_label_and_its_part(toy, tiny_encoder):
    config = make_config(toy, tiny_encoder)
    loaders = data_preparation(config, create_dataset(config))
    for part, loader in zip(PARTS, loaders, strict=True):
        frame = read_interactions(toy.split("cold", part))
        expected = sorted(zip(frame["user_id"], frame["item_id"], frame["label"], strict=True))
        assert _pairs(loader._dataset) == expected
    batches = list(loaders[0])
    assert sum(len(batch) for batch in batches) == len(read_interactions(toy.split("cold", "train")))
    assert set(batches[0].columns) == {"user_id", "item_id", "label"}  # no vectors, no negatives


def test_one_file_is_split_without_losing_a_pair(toy, tiny_encoder):
    for part in PARTS:
        toy.split("cold", part).unlink()
    how = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none", "order": "RO", "mode": "labeled"}
    config = make_config(toy, tiny_encoder, eval_args=how)
    parts = create_dataset(config).build()
    frame = read_interactions(toy.inter)
    assert sorted(pair for part in parts for pair in _pairs(part)) == sorted(
        zip(frame["user_id"], frame["item_id"], frame["label"], strict=True)
    )


def test_ids_of_all_parts_are_numbered_as_they_appear(toy, tiny_encoder):
    """As RecBole's own reader numbers them, also where no part knows all ids and one part is empty."""
    parts = [read_interactions(toy.split("cold", part)) for part in PARTS]
    write_interactions(toy.split("cold", "valid"), parts[1][:0])
    frame = pd.concat([parts[0], parts[2]])
    dataset = create_dataset(make_config(toy, tiny_encoder))
    for field in ("user_id", "item_id"):
        assert dataset.field2id_token[field].tolist() == ["[PAD]", *pd.unique(frame[field])]
        assert dataset.inter_feat[field].dtype == np.int64
    train, valid, test = dataset.build()
    assert [len(part) for part in (train, valid, test)] == [len(parts[0]), 0, len(parts[2])]
    some = np.array([5, 3, 3])
    for field in ("user_id", "item_id"):
        assert dataset.id2token(field, test[some][field].numpy()).tolist() == parts[2][field].iloc[some].tolist()
    assert test[some]["label"].tolist() == parts[2]["label"].iloc[some].tolist()


_HEAD = "user_id:token\titem_id:token\tlabel:float\ttimestamp:float\n"


@pytest.mark.parametrize("rows, fast", [
    (_HEAD + "u1\tj1\t1\t12\nNA\tnull\t0\t\nu1\tj2\t0.0\t1e3\n", True),
    ("item_id:token\tother:token\tlabel:float\tuser_id:token\nj1\tx\t1\tu\"1\n007\t\t0\tu2\n", True),
    (_HEAD + "u1\tj1\t1\t12\r\nu2\tj1\t0\t13\r\n", False),
    (_HEAD + "ü1\tj1\t1\tNaN\nu2\tj1\t0\t13", False),
    (_HEAD, False),
])  # fmt: skip
def test_pairs_are_read_as_atomic_py_reads_them(tmp_path, rows, fast, monkeypatch):
    path = tmp_path / "x.inter"
    path.write_bytes(rows.encode())
    expected = read_interactions(path)
    if fast:
        monkeypatch.delattr("girl_recbole.dataset.read_interactions")
    found = _read_pairs(path)
    expected = expected[list(found)]
    assert found["user_id"].dtype == "category"
    for name in found:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy())  # NaN is NaN
        if found[name].dtype == float and len(found):
            found.loc[0, name] = 7.0  # the memory can be written to, as RecBole does


@pytest.mark.parametrize("row, message", [
    ("\tj1\t1\t0", "1 of 1 ids in user_id are empty or hold white space"),
    ("u1\tj1\t\t0", "1 of 1 labels are neither 0 .* nor 1"),
    ("u1\tj1\tNA\t0", "column label: 'NA' on line 2 is not a number"),
    ("u1\tj1\t1\tNA", "column timestamp: 'NA' on line 2 is not a number"),
    ("u1\tj1\t1\tlater", "column timestamp: 'later' on line 2 is not a number"),
    ("u1\tj1\t1", "1 rows with too few or too many fields"),
])  # fmt: skip
def test_what_is_wrong_with_pairs_is_said_by_atomic_py(tmp_path, row, message):
    path = tmp_path / "x.inter"
    path.write_text(f"{_HEAD}{row}\n")
    with pytest.raises(DataError, match=message):
        _read_pairs(path)


@pytest.mark.parametrize("kind, file, field", [("cv", "udoc", "user_id"), ("jd", "idoc", "item_id")])
def test_vectors_are_those_of_each_ids_text(toy, tiny_encoder, kind, file, field):
    """Against a loop that encodes one text at a time."""
    from girl_recbole.encoder import Encoder

    dataset = create_dataset(make_config(toy, tiny_encoder))
    table = dataset.vectors(kind)
    assert table.shape == (dataset.num(field), 32)
    assert table.dtype == np.float16  # as on disk
    assert not table[0].any()
    docs, encoder = read_docs(getattr(toy, file)), Encoder(str(tiny_encoder))
    for token in [f"{field[0]}{n}" for n in (0, 7, 31)]:
        row = table[dataset.token2id(field, token)]
        np.testing.assert_allclose(row, encoder.encode([docs[token]])[0][0], atol=2e-3)
    assert dataset.texts(kind)[dataset.token2id(field, f"{field[0]}7")] == [docs[f"{field[0]}7"]]
    assert dataset.texts(kind)[0] == []


def test_ids_that_pandas_takes_for_missing_are_ids(toy, tiny_encoder):
    frame = read_interactions(toy.split("cold", "train"))
    frame = pd.concat([frame, pd.DataFrame({"user_id": ["NA", "null"], "item_id": ["i1", "i2"], "label": [1.0, 0.0]})])
    write_interactions(toy.split("cold", "train"), frame)
    dataset = create_dataset(make_config(toy, tiny_encoder))
    assert dataset.token2id("user_id", "NA") > 0
    assert dataset.token2id("user_id", "null") > 0
    with pytest.raises(DataError, match=r"toy.udoc: 2 of 24\d seekers have no CV \(first: NA, null\)"):
        dataset.vectors("cv")


def test_an_id_without_text_is_an_error_never_a_zero_row(toy, tiny_encoder):
    docs = read_docs(toy.idoc)
    write_docs(toy.idoc, ((key, text) for key, text in docs.items() if key != "i5"), "item")
    dataset = create_dataset(make_config(toy, tiny_encoder))
    with pytest.raises(DataError, match=r"toy.idoc: 1 of 40 jobs have no JD \(first: i5\); one each is required"):
        dataset.vectors("jd")
    with pytest.raises(DataError, match=r"toy: 1 of 40 ids have fewer than 1 jd texts \(first: i5\)"):
        dataset.texts("jd")


def test_auto_embed_makes_what_is_missing_and_otherwise_says_how(toy, tiny_encoder, caplog):
    off = create_dataset(make_config(toy, tiny_encoder, auto_embed=False))
    with pytest.raises(DataError, match="no cv vectors of encoder .* Run `girl embed toy --encoder="):  # noqa: RUF043
        off.vectors("cv")
    on = create_dataset(make_config(toy, tiny_encoder))
    with caplog.at_level("WARNING", logger="girl_recbole.dataset"):
        on.vectors("cv")
    assert "Doing it now (auto_embed)" in caplog.text
    off.vectors("cv")
    docs = read_docs(toy.udoc)
    write_docs(toy.udoc, (docs | {"u1": "trade0 word1"}).items(), "user")
    with pytest.raises(DataError, match=r"1 of 2\d\d texts in toy.udoc are not the ones .*first: u1"):
        off.vectors("cv")
    on.vectors("cv")
    off.vectors("cv")


def test_a_saved_dataset_holds_no_vectors(toy, tiny_encoder):
    dataset = create_dataset(make_config(toy, tiny_encoder))
    before = len(pickle.dumps(dataset))
    table = dataset.vectors("cv")
    assert len(pickle.dumps(dataset)) == before
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).vectors("cv"), table)


def test_mismatched_pairs_are_not_to_be_found_in_a_ranking(toy, tiny_encoder):
    settings = {
        "eval_args": {"mode": "full", "split": {"RS": [1, 1, 1]}},
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
    }
    parts = create_dataset(make_config(toy, tiny_encoder, **settings)).build()
    for name, part in zip(PARTS, parts, strict=True):
        frame = read_interactions(toy.split("cold", name))
        if name == "train":
            assert len(part) == len(frame)
        else:
            assert len(part) == (frame["label"] == 1).sum()
            assert (part.inter_feat["label"] == 1).all()


def test_sampling_beside_explicit_labels_is_refused(toy, tiny_encoder):
    config = make_config(toy, tiny_encoder, train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
    with pytest.raises(ConfigError, match="train_neg_sample_args: distribution 'uniform'.*train_neg_sample_args: null"):  # noqa: RUF043
        create_dataset(config)


def test_labels_other_than_0_and_1_and_missing_files_are_errors(toy, tiny_encoder):
    config = make_config(toy, tiny_encoder)
    path = toy.split("cold", "valid")
    path.write_text(path.read_text().replace("\t1\n", "\t3\n", 1))
    with pytest.raises(DataError, match=r"toy.cold.valid.inter: 1 of \d+ labels are neither 0 .* nor 1"):
        create_dataset(config)
    path.unlink()
    with pytest.raises(DataError, match=r"toy.cold.valid.inter: no such file. Run `girl split toy --split=cold`"):
        create_dataset(config)
    config["benchmark_filename"] = ["cold-s1.train", "cold-s1.valid", "cold-s1.test"]
    with pytest.raises(DataError, match=r"no such file. Run `girl split toy --split=cold --split_suffix=s1`"):
        create_dataset(config)
    config["benchmark_filename"] = ["mine", "valid", "test"]
    with pytest.raises(DataError, match=r"toy.mine.inter: no such file.$"):  # not a file that girl split writes
        create_dataset(config)


def test_a_first_run_embeds_only_the_samples_that_it_reads(toy, tiny_encoder):
    dataset = create_dataset(make_config(toy, tiny_encoder))
    one = dataset.vectors("gen.sft")
    table = next(toy.folder.glob("vectors/*/gen.sft-*.ids"))
    assert len(table.read_text().splitlines()) == 1 + 240
    two = dataset.vectors("gen.sft", 2)
    assert two.dtype == np.float32  # a mean
    assert not np.array_equal(two, one)


def test_a_share_of_train_is_drawn_and_a_smaller_one_lies_within(toy, tiny_encoder):
    sizes = {}
    for share in (1.0, 0.5, 0.25):
        train, valid, test = create_dataset(make_config(toy, tiny_encoder, train_share=share)).build()
        sizes[share] = set(_pairs(train))
        assert len(valid) == len(read_interactions(toy.split("cold", "valid")))
        assert len(test) == len(read_interactions(toy.split("cold", "test")))
    assert sizes[0.25] < sizes[0.5] < sizes[1.0]
    assert len(sizes[0.5]) == round(0.5 * len(sizes[1.0]))
    with pytest.raises(ConfigError, match="train_share: 0; a share above 0"):
        create_dataset(make_config(toy, tiny_encoder, train_share=0))


def _write_stage(toy, stage, rows):
    write_interactions(toy.stage(stage), pd.DataFrame(rows, columns=["user_id", "item_id", "label", "timestamp"]))


def test_pairs_of_other_stages_join_train_and_no_other_part(toy, tiny_encoder):
    parts = [read_interactions(toy.split("cold", part)) for part in PARTS]
    users, items = (pd.unique(pd.concat(parts)[name]) for name in ("user_id", "item_id"))
    in_test = parts[2].iloc[0]
    known = set(zip(*(pd.concat(parts)[name] for name in ("user_id", "item_id")), strict=True))
    new = [next((u, i) for i in items[at % 5 :] if (u, i) not in known) for at, u in enumerate(users[:20])]
    _write_stage(toy, "reward", [(*new[0], 1, 1), (*new[1], 0, 2), (in_test.user_id, in_test.item_id, 1, 3)])
    train, _, test = create_dataset(make_config(toy, tiny_encoder, train_stages=["reward"])).build()
    before = sorted(zip(parts[0]["user_id"], parts[0]["item_id"], parts[0]["label"], strict=True))
    assert _pairs(train) == sorted([*before, (*new[0], 1.0), (*new[1], 0.0)])
    assert len(test) == len(parts[2])

    matches = new[2:12]
    _write_stage(toy, "sft", [(*pair, 1, 1) for pair in matches])
    train = create_dataset(make_config(toy, tiny_encoder, train_stages=["sft"], train_stages_sampled=2)).build()[0]
    added = [pair for pair in _pairs(train) if pair not in set(before)]
    assert sorted(pair[:2] for pair in added if pair[2] == 1) == sorted(matches)
    drawn = [pair[:2] for pair in added if pair[2] == 0]
    assert drawn
    assert not set(drawn) & {*matches, *known}
    assert {user for user, _ in drawn} <= {user for user, _ in matches}
    assert {item for _, item in drawn} <= {item for _, item in matches}

    answers = {*drawn[:5], *matches[:3]}  # of recruiters, in the other stage: matches of what else would be drawn
    _write_stage(toy, "reward", [(*pair, 1, 1) for pair in answers] + [(*new[12], 0, 2)])
    for stages in (["sft", "reward"], ["reward", "sft"]):
        train = create_dataset(make_config(toy, tiny_encoder, train_stages=stages, train_stages_sampled=2)).build()[0]
        pairs = _pairs(train)
        assert len({pair[:2] for pair in pairs}) == len(pairs)
        assert {(*pair, 1.0) for pair in answers} <= {*pairs}
    with pytest.raises(ConfigError, match="train_stages: 'rl' is no stage that has pairs"):
        create_dataset(make_config(toy, tiny_encoder, train_stages=["rl"]))
