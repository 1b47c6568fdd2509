"""One experiment: its numbers, its row, its errors; and the trainer of our models."""

import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_market import LABELED, make_market
from tiny_models import TinyLogits

import girl_recbole
from girl_recbole import results, run
from girl_recbole.atomic import read_interactions, write_interactions, write_table
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import file_hash
from girl_recbole.run import main, run_experiment

LN = math.log


@pytest.fixture
def market(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import recbole.trainer

    from girl_recbole.trainer import GIRLTrainer

    monkeypatch.setattr(recbole.trainer, "TinyLogitsTrainer", GIRLTrainer, raising=False)
    return make_market(tmp_path / "dataset")


# --------------------------------------------------------------------------------------------------------- the numbers


def test_the_same_numbers_as_recboles_run(market):
    from recbole.quick_start import run_recbole

    for part in ("train", "valid", "test"):
        market.split("warm", part).unlink()  # RecBole then splits at random, so that the seeds matter
    settings = {**LABELED, "results_file": None}
    ours = run_experiment("NeuMF", "tiny", overrides=settings)
    theirs = run_recbole("NeuMF", "tiny", config_dict=settings)
    assert ours["test"] == dict(theirs["test_result"])
    assert ours["valid"] == dict(theirs["best_valid_result"])
    assert ours["test"] == run_experiment("NeuMF", "tiny", overrides=settings)["test"]  # and again


def test_prior_and_oracle_by_hand(market):
    """The oracle says 0.9 for matched and 0.1 for mismatched pairs: AUC 1, LogLoss -ln 0.9."""
    row = run_experiment(TinyLogits, "tiny", overrides=LABELED)
    assert row["oracle"] == pytest.approx({"auc": 1.0, "logloss": -LN(0.9)})
    q = read_interactions(market.split("warm", "train"))["label"].mean()
    y = read_interactions(market.split("warm", "test"))["label"]
    assert row["prior"] == pytest.approx({"auc": 0.5, "logloss": -(y * LN(q) + (1 - y) * LN(1 - q)).mean()})
    r = y.mean()
    assert row["test"]["priorentropy"] == pytest.approx(-r * LN(r) - (1 - r) * LN(1 - r), abs=1e-4)


def test_the_row(market):
    row = run_experiment(TinyLogits, "tiny", overrides=LABELED)
    (line,) = Path("results.jsonl").read_text().splitlines()
    assert json.loads(line) == row
    assert (row["model"], row["dataset"], row["split"], row["seed"]) == ("TinyLogits", "tiny", "warm", 2020)
    assert row["config"]["train_batch_size"] == 64
    assert row["config"]["eval_type"] == "VALUE"
    assert row["data"]["tiny.warm.test.inter"] == file_hash(market.split("warm", "test"))
    assert set(row["data"]) == {f"tiny.warm.{part}.inter" for part in ("train", "valid", "test")} | {
        "tiny.oracle.inter"
    }
    assert row["parameters"] == (17 + 17) * 2
    assert set(row["time_s"]) == {"load", "train", "evaluate"}
    assert row["machine"]["cores"] >= 1
    assert row["peak_memory_mb"] > 10
    assert Path(row["checkpoint"]).exists()


def test_nothing_is_left_behind_in_the_process(market):
    import logging
    import sys

    before = (list(logging.getLogger().handlers), sys.stdout, sys.stderr)
    for _ in range(3):
        run_experiment("Pop", "tiny", overrides={"load_col": {"inter": ["user_id", "item_id"]}, "show_progress": False})
    assert (logging.getLogger().handlers, sys.stdout, sys.stderr) == before
    assert len(Path("results.jsonl").read_text().splitlines()) == 3


# -------------------------------------------------------------------------------------------------------- calibration


def test_calibration_improves_logloss_and_keeps_auc(market):
    """Logits five times too large: Platt scaling finds a slope well below 1, and the order of the pairs stays."""
    settings = {**LABELED, "epochs": 30, "learning_rate": 0.05, "stopping_step": 30}
    plain = run_experiment(TinyLogits, "tiny", overrides={**settings, "calibrate": False})
    scaled = run_experiment(TinyLogits, "tiny", overrides=settings)
    assert scaled["test"]["auc"] == plain["test"]["auc"]
    assert scaled["test"]["logloss"] < plain["test"]["logloss"]
    a, b = _load(scaled["checkpoint"])["state_dict"]["platt"].tolist()
    assert 0 < a < 1
    assert _load(plain["checkpoint"])["state_dict"]["platt"].tolist() == [1, 0]
    logits, labels = _logits(scaled["checkpoint"])
    p = 1 / (1 + np.exp(-(a * logits + b)))
    assert p.mean() == pytest.approx(labels.mean(), abs=0.02)  # the optimum's gradient in b (Platt's targets: nearly)


def test_the_reported_result_is_that_of_the_checkpoint(market):
    from recbole.quick_start import load_data_and_model
    from recbole.utils import get_trainer

    from girl_recbole.plugin import MODELS

    MODELS["TinyLogits"] = "tiny_models"  # by name, as load_data_and_model needs it
    try:
        import recbole.data.dataset as datasets

        datasets.TinyLogitsDataset = datasets.Dataset
        row = run_experiment("TinyLogits", "tiny", overrides=LABELED)
        config, model, _, _, valid, test = load_data_and_model(row["checkpoint"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        for part, name in ((valid, "valid"), (test, "test")):
            assert trainer.evaluate(part, load_best_model=False) == pytest.approx(row[name])
    finally:
        del MODELS["TinyLogits"]
        del datasets.TinyLogitsDataset


def test_fit_without_saving_gives_the_best_epoch(market):
    """Tuning trains with saved=False: the same score as with a checkpoint, and the model has the best state."""
    from recbole.data import create_dataset, data_preparation

    from girl_recbole.recbole_config import Config
    from girl_recbole.trainer import GIRLTrainer

    said = []
    for calibrate, saved in ((False, True), (False, False), (True, True), (True, False)):
        settings = {**LABELED, "epochs": 12, "learning_rate": 1.0, "valid_metric": "LogLoss", "calibrate": calibrate}
        config = Config(TinyLogits, "tiny", None, settings, arguments=())
        train, valid, _ = data_preparation(config, create_dataset(config))
        torch.manual_seed(1)
        trainer = GIRLTrainer(config, TinyLogits(config, train._dataset))
        scores = []
        result = trainer.fit(train, valid, verbose=False, saved=saved, callback_fn=lambda _, s, to=scores: to.append(s))
        said.append((result, scores))
        assert min(scores) < scores[-1]
        assert calibrate or result[0] == min(scores)
        assert trainer.evaluate(valid, load_best_model=saved) == result[1]
    assert said[0] == said[1]
    assert said[2] == said[3]


def test_one_pair_a_seeker_has_no_gauc_and_says_so_once(market, caplog):
    for part in ("train", "valid", "test"):
        rows = read_interactions(market.split("warm", part))
        write_interactions(market.split("warm", part), rows.drop_duplicates("user_id"))
    row = run_experiment(TinyLogits, "tiny", overrides={**LABELED, "state": "warning"})
    assert row["test"]["labeledgauc"] is None
    assert 0 <= row["test"]["auc"] <= 1
    assert caplog.text.count("LabeledGAUC: no seeker has") == 1
    with pytest.raises(DataError, match="none of the 15 seekers has both"):
        run_experiment(TinyLogits, "tiny", overrides={**LABELED, "valid_metric": "LabeledGAUC"})


def _load(checkpoint):
    from girl_recbole.compat import load_checkpoint

    return load_checkpoint(checkpoint)


def _logits(checkpoint):
    """The slow way: one pair at a time."""
    from recbole.data import create_dataset, data_preparation

    config = _load(checkpoint)["config"]
    _, valid, _ = data_preparation(config, create_dataset(config))
    model = TinyLogits(config, valid._dataset)
    model.load_state_dict(_load(checkpoint)["state_dict"])
    pairs = valid._dataset.inter_feat
    with torch.no_grad():
        logits = [model.logits(pairs[i : i + 1]).item() for i in range(len(pairs))]
    return np.array(logits), pairs["label"].numpy()


# ---------------------------------------------------------------------------------------------------- bad data, early


@pytest.mark.parametrize("part, keep, said", [
    ("train", slice(0, 0), r"tiny\.warm\.train\.inter: 0 pairs are left for train"),
    ("valid", slice(0, 0), r"tiny\.warm\.valid\.inter: 0 pairs are left for valid"),
    ("test", slice(0, 0), r"tiny\.warm\.test\.inter: 0 pairs are left for test"),
    ("valid", 1.0, r"tiny\.warm\.valid\.inter: \d+ matched and 0 mismatched of \d+ pairs; at least one of each"),
    ("test", 0.0, r"tiny\.warm\.test\.inter: 0 matched and \d+ mismatched of \d+ pairs; at least one of each"),
])  # fmt: skip
def test_parts_that_cannot_be_used(market, part, keep, said):
    rows = read_interactions(market.split("warm", part))
    write_interactions(
        market.split("warm", part), rows[keep] if isinstance(keep, slice) else rows[rows["label"] == keep]
    )
    with pytest.raises(DataError, match=said):
        run_experiment("NeuMF", "tiny", overrides=LABELED)


def test_an_oracle_with_holes(market):
    write_table(
        market.oracle, pd.DataFrame({"user_id": ["u0"], "item_id": ["i0"], "probability": [0.5]}),
        {"user_id": "token", "item_id": "token", "probability": "float"},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"tiny\.oracle\.inter: no probability for \d+ of 48 test pairs: \(u"):
        run_experiment("NeuMF", "tiny", overrides=LABELED)


def test_unknown_keys_in_files_and_overrides(market, tmp_path):
    (tmp_path / "mine.yaml").write_text("embeding_size: 8\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key 'embeding_size' - did you mean 'embedding_size'"):
        run_experiment("NeuMF", "tiny", [tmp_path / "mine.yaml"])
    with pytest.raises(ConfigError, match="overrides: unknown key 'calibrat' - did you mean 'calibrate'"):
        run_experiment("NeuMF", "tiny", overrides={"calibrat": False})


@pytest.mark.parametrize("key", [
    "benchmark_filename", "mlp_hidden_size", "user_inter_num_interval", "encoding", "gpu_id", "threshold", "n_layers",
    "mf_pretrain_path", "clip_grad_norm", "ece_bins",
])  # fmt: skip
def test_keys_that_recbole_reads_are_known(key):
    from girl_recbole.recbole_config import check_known

    check_known([key], "here")


# -------------------------------------------------------------------------------------------------------- command line


def _arguments(market, *more: str) -> list[str]:
    file = market.folder.parent / "labeled.yaml"
    file.write_text(json.dumps(LABELED))  # JSON is YAML
    return ["--dataset=tiny", f"--config_files={file}", *more]


def test_the_command(market, capsys):
    assert main(["-m", "NeuMF", "--compare=DeepFM", *_arguments(market), "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    for shown in ("NeuMF", "DeepFM", "prior", "oracle", "0.1054", "auc ↑", "logloss ↓", "results.jsonl"):
        assert shown in said
    assert "NeuMF, DeepFM: after Platt scaling on valid" in said
    rows = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    (line,) = (line for line in said.splitlines() if "NeuMF" in line and "0." in line)
    assert f"{rows[0]['calibrated']['logloss']:.4f}" in line
    assert [(row["model"], row["config"]["epochs"]) for row in rows] == [("NeuMF", 1), ("DeepFM", 1)]


@pytest.mark.parametrize("more, said", [
    (["-m", "NeuMFF"], "unknown model 'NeuMFF' - did you mean 'NeuMF'?"),
    (["-m", "NeuMF", "--compare=GIRLBaseMPL"], "unknown model 'GIRLBaseMPL' - did you mean 'GIRLBaseMLP'?"),
    (["-m", "NeuMF", "--learnin_rate=1"], "unknown key 'learnin_rate' - did you mean 'learning_rate'?"),
    (["-m", "NeuMF", "--dataset=tinny"], "dataset/tinny: no such dataset - did you mean 'tiny'?"),
    (["-m", "NeuMF", "--split=cold"], "Run `girl split tiny --split=cold`."),
    (["-m", "NeuMF", "--valid_metric=LogLos"], "valid_metric: 'loglos' is not one of the metrics"),
    (["-m", "NeuMF", "--nproc=0"], "--nproc: 0; at least 1 is required."),
    (["-m", "NeuMF", "--dataset=empty"], "empty: no empty.inter. Make one with `girl prepare SOURCE empty`"),
    (["-m", "GIRLBaseMLP", "--calibrate=flase"], "calibrate: 'flase' is a str; bool is required."),
    (["-m", "NeuMF", "--calibrate=flase"], "calibrate: 'flase' is a str; bool is required."),
    (["-m", "GIRLBaseMLP", "--learning_rate=abc"], "learning_rate: 'abc' is a str; float is required."),
    (["-m", "NeuMF", "--learning_rate=abc"], "learning_rate: 'abc' is a str; a number is required."),
    (["-m", "NeuMF", "--train_batch_size=0"], "train_batch_size: 0; at least 1 is required."),
    (["-m", "NeuMF", "--eval_batch_size=null"], "eval_batch_size: None; at least 1 is required."),
    (["-m", "NeuMF", "--dropout_prob=1.5"], "NeuMF: dropout probability has to be between 0 and 1"),
    (["-m", "GIRLBaseMLP", "--metrics=[AUC,3]"], "metrics: ['AUC', 3] is a list; list of str is required."),
    (["-m", "GIRLBaseMLP", "--encoder_lora_rank=a"], "encoder_lora_rank: 'a' is a str; int is required."),
    (["-m", "GIRLBaseMLP", "--max_text_tokens=long"], "max_text_tokens: 'long' is a str; int or null is required."),
    (["-m", "GIRLBaseMLP", "--mlp_hidden_size=[8]"], "'mlp_hidden_size' - did you mean 'mlp_hidden_sizes'?"),
    (["-m", "NeuMF", "--final_config_dict=1"], "unknown key 'final_config_dict'"),
    (["-m", "GIRLBaseMLP", "--sft_epochs=3"], "unknown key 'sft_epochs'"),
    (["-m", "NeuMF", "what"], "cannot read the argument 'what'"),
    ([], "no model: name one with --model=NAME"),
])  # fmt: skip
def test_mistakes_are_one_message_and_exit_code_2(market, capsys, more, said):
    (market.folder.parent / "empty").mkdir()
    assert main([*_arguments(market), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_is_for_strangers(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for word in (
        "run_recbole --model=GIRLEnhancedMLP",
        "--compare",
        "--split=warm|cold|cold_strict",
        "never run as code",
    ):
        assert word in said


# ------------------------------------------------------------------------------------------------------------- results


def _append_many(path: str, who: int) -> None:
    for number in range(50):
        results.append(path, {"who": who, "number": number, "text": "x" * 5000})


def test_appending_from_several_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(str(tmp_path / "r.jsonl"), who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted((row["who"], row["number"]) for row in rows) == [(w, n) for w in range(4) for n in range(50)]


def test_appending_to_a_file_without_a_last_newline(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a": 1}')
    for number in (2, 3):
        results.append(tmp_path / "r.jsonl", {"a": number})
    assert (tmp_path / "r.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def test_plain_values():
    from enum import Enum

    Colour = Enum("Colour", "RED")
    given = {1: (np.float64(0.5), np.int32(2), float("nan")), "c": Colour.RED, "d": torch.device("cpu"), "b": True}
    assert results.plain(given) == {"1": [0.5, 2, None], "c": "RED", "d": "cpu", "b": True}


def test_auc_and_logloss_by_hand():
    """One of the two (matched, mismatched) orders is right, the other tied: AUC 3/4."""
    got = results.auc_logloss(np.array([0.8, 0.2, 0.8]), np.array([1, 0, 0]))
    assert got == pytest.approx({"auc": 0.75, "logloss": -(LN(0.8) + LN(0.8) + LN(0.2)) / 3})


def test_the_version_is_a_commit_or_a_version():
    said = results.code_version()
    assert said == girl_recbole.__version__ or len(said.removesuffix("-dirty")) == 40


def test_free_port():
    assert 1024 < run._free_port() < 65536


def test_compare_gives_every_model_the_same_evaluation(market, capsys):
    """NeuMF by itself would rank all items with sampled pairs; beside a model of labelled pairs it does as that one."""
    assert main(["-m", "DeepFM", "--compare=NeuMF", *_arguments(market)]) == 0
    first, second = (json.loads(line)["config"] for line in Path("results.jsonl").read_text().splitlines())
    for key in ("metrics", "eval_args", "train_neg_sample_args", "benchmark_filename", "data_path"):
        assert first[key] == second[key]
    capsys.readouterr()
    Path("results.jsonl").unlink()
    assert main(["-m", "NeuMF", "--compare=DeepFM,BPR", *_arguments(market)]) == 2
    assert "BPR learns from sampled pairs and not from labels" in capsys.readouterr().err
    assert not Path("results.jsonl").exists()  # said before the first was trained


def test_another_models_key_may_be_given_beside_it(market):
    assert main(["-m", "DeepFM", "--compare=NeuMF", "--mf_embedding_size=4", *_arguments(market)]) == 0
    assert json.loads(Path("results.jsonl").read_text().splitlines()[1])["config"]["mf_embedding_size"] == 4


def test_results_that_cannot_be_written_are_shown_first(market, capsys):
    assert main(["-m", "NeuMF", *_arguments(market), "--results_file=dataset", "--epochs=1"]) == 2
    said = capsys.readouterr()
    assert "logloss" in said.out
    assert said.err.startswith("run_recbole: [Errno 21] Is a directory")


def test_words_without_quotes_are_a_list(market):
    assert main(["-m", "NeuMF", *_arguments(market), "--metrics=[AUC,LogLoss]", "--epochs=1"]) == 0
    assert set(json.loads(Path("results.jsonl").read_text())["test"]) == {"auc", "logloss"}


def test_none_is_a_word_of_our_models(market):
    from girl_recbole.recbole_config import Config

    Config("GIRLEnhancedMLP", "tiny", arguments=["--tune_encoder=none", "--generated=cv"])


def test_which_keys_of_overall_are_a_recommenders():
    from girl_recbole.recbole_config import _run_keys

    assert {"seed", "split", "generator", "encoder", "n_generated", "calibrate", "results_file"} <= _run_keys()
    assert not {"sft_epochs", "temperature", "raw", "split_ratio", "market_rl_seekers"} & _run_keys()
