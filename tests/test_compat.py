"""RecBole's own models run, save and load again safely; hostile and stock checkpoints do not get through."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_plugin import ATTACK, run_python
from tiny_market import LABELED, make_market

import girl_recbole  # noqa: F401 - the hook
from girl_recbole import compat
from girl_recbole.errors import DataError
from girl_recbole.run import run_experiment

QUICK = {"epochs": 1, "show_progress": False, "state": "error", "results_file": None}
RANKING = {"load_col": {"inter": ["user_id", "item_id"]}, "topk": [3], "valid_metric": "MRR@3"}
SPLIT = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user"}
AGAIN = """
    import json, sys, girl_recbole
    from recbole.quick_start import load_data_and_model
    from recbole.utils import get_trainer
    for file in sys.argv[1:]:
        config, model, dataset, train, valid, test = load_data_and_model(file)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.eval_collector.data_collect(train)
        print(json.dumps({k: float(v) for k, v in trainer.evaluate(test, load_best_model=False).items()}))
"""


@pytest.fixture
def market(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_market(tmp_path / "dataset")


def evaluated_again(checkpoints: list[str], cwd: Path) -> list[dict[str, float]]:
    """Load checkpoints in a fresh process by RecBole's load_data_and_model, and evaluate them on their test parts."""
    done = run_python(AGAIN, cwd, *checkpoints)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same_again(rows: list[dict], cwd: Path) -> None:
    for row, again in zip(rows, evaluated_again([row["checkpoint"] for row in rows], cwd), strict=True):
        assert again == pytest.approx(row["test"], abs=1e-4), row["model"]


def test_recboles_models_on_ml_100k(tmp_path, monkeypatch):
    """One epoch on ml-100k reaches what it reaches with the NumPy and SciPy of RecBole's time."""
    monkeypatch.chdir(tmp_path)
    labeled = {**LABELED, "eval_args": {**SPLIT, "mode": "labeled"}, "threshold": {"rating": 4}, "load_col": None,
               "unload_col": {"item": ["movie_title", "class"]}, "train_batch_size": 2048}  # fmt: skip
    rows = [
        run_experiment("LightGCN", "ml-100k", overrides=QUICK),
        run_experiment("NeuMF", "ml-100k", overrides=QUICK),
        run_experiment("DeepFM", "ml-100k", overrides={**labeled, **QUICK}),
    ]
    assert rows[0]["test"]["recall@10"] == pytest.approx(0.1361, abs=2e-3)
    assert rows[1]["test"]["recall@10"] == pytest.approx(0.1051, abs=5e-3)
    assert rows[2]["test"]["auc"] > 0.64
    assert rows[2]["test"]["logloss"] < rows[2]["prior"]["logloss"]
    assert_same_again(rows, tmp_path)
    assert not Path("log_tensorboard").exists()


def test_checkpoints_of_many_kinds(market, tmp_path):
    """Arrays, sparse matrices, and SASRec with its cross-entropy on careers that always go on: i0, i1, i2, ..."""
    rows = [f"u{u}\ti{(u + t) % 10}\t{t}" for u in range(60) for t in range(12)]
    folder = tmp_path / "dataset" / "chain"
    folder.mkdir()
    (folder / "chain.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    sequences = {"train_neg_sample_args": None, "hidden_size": 16, "inner_size": 16, "n_layers": 1, "epochs": 15,
                 "MAX_ITEM_LIST_LENGTH": 5, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                 "learning_rate": 0.01, "train_batch_size": 128, "topk": [1], "valid_metric": "Hit@1"}  # fmt: skip
    done = [run_experiment("SASRec", "chain", overrides={**QUICK, **sequences})]
    assert done[0]["test"]["hit@1"] > 0.9
    for model in ("EASE", "ItemKNN", "Pop", "SLIMElastic"):
        done.append(run_experiment(model, "tiny", overrides={**QUICK, **RANKING}))
    assert_same_again(done, tmp_path)
    assert len({row["checkpoint"] for row in done}) == 5


def test_checkpoints_with_layers_that_hold_a_dataset(market, tmp_path):
    """DIN keeps a layer in other_parameter, and the layer keeps the whole data set."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    settings = {**LABELED, "load_col": {"inter": ["user_id", "item_id", "label"]}}
    config = Config("NeuMF", "tiny", None, settings, arguments=())
    dataset = create_dataset(config)
    data_preparation(config, dataset)  # as it is when a model is built
    layer = torch.nn.Embedding(2, 2)
    layer.dataset = dataset
    compat.save_checkpoint({"other_parameter": {"layer": layer}, "config": config}, "x.pth")
    loaded = compat.load_checkpoint("x.pth")["other_parameter"]["layer"]
    assert loaded.dataset.user_num == dataset.user_num
    assert dict(loaded.dataset.field2seqlen) == dict(dataset.field2seqlen)
    assert torch.equal(loaded.weight, layer.weight)


def test_hyper_tuning_in_its_three_ways(market):
    from recbole.quick_start import objective_function
    from recbole.trainer import HyperTuning

    fixed = {**LABELED, "model": "NeuMF", "dataset": "tiny", "epochs": 1}

    def objective(params, files):
        return objective_function({**fixed, **params}, files)

    for algo in ("exhaustive", "random", "bayes"):
        tuning = HyperTuning(objective, params_dict={"choice": {"learning_rate": [0.1, 0.01]}}, algo=algo, max_evals=2)
        tuning.run()
        assert 1 <= len(tuning.params2result) <= 2
        assert tuning.best_score > 0


# ------------------------------------------------------------------------------------------------------ safe loading


def test_a_stock_checkpoint_says_what_to_do_and_converts(market, tmp_path):
    """Stock RecBole writes protocol 4 and its own Config."""
    from recbole.config.configurator import Config as StockConfig

    row = run_experiment("BPR", "tiny", overrides={**QUICK, **RANKING})
    state = compat.load_checkpoint(row["checkpoint"])
    stock = StockConfig.__new__(StockConfig)
    vars(stock).update(vars(state["config"]))
    torch.save({**state, "config": stock}, "stock.pth", pickle_protocol=4)
    from recbole.quick_start import load_data_and_model

    for load in (compat.load_checkpoint, load_data_and_model):
        with pytest.raises(DataError, match=r"without girl_recbole.*`python -m girl_recbole.compat stock.pth`"):
            load("stock.pth")
    main = "import runpy; runpy.run_module('girl_recbole.compat', run_name='__main__')"
    done = run_python(main, tmp_path, "stock.pth")
    assert done.returncode == 0, done.stderr
    config, model, *_ = load_data_and_model("stock.pth")
    assert config["epochs"] == 1
    assert torch.equal(model.user_embedding.weight, state["state_dict"]["user_embedding.weight"])


class _Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class _StockConfigAttack:
    """Would reach RecBole's eval through the constructor of its Config."""

    def __reduce__(self):
        from recbole.config.configurator import Config as StockConfig

        return StockConfig, ("BPR", "tiny", None, {"x": ATTACK})


@pytest.mark.parametrize("attack", [_Attack, _StockConfigAttack])
def test_a_hostile_checkpoint_runs_nothing(market, attack):
    compat.save_checkpoint({"config": attack(), "state_dict": {}}, "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        compat.load_checkpoint("evil.pth")
    from recbole.quick_start import load_data_and_model

    with pytest.raises(pickle.UnpicklingError):
        load_data_and_model("evil.pth")
    assert not Path("pwned").exists()


class _OurConfigAttack:
    """The constructor of our Config makes folders and opens connections."""

    def __reduce__(self):
        from recbole.config import Config

        return Config, ("BPR", "tiny", None, {"checkpoint_dir": "pwned", "local_rank": 0}, ())


class _LayerAttack:
    def __reduce__(self):
        return torch.nn.Embedding, (2, 2)


@pytest.mark.parametrize("attack", [_OurConfigAttack, _LayerAttack])
def test_a_checkpoint_calls_no_constructor(market, attack):
    compat.save_checkpoint({"config": attack(), "state_dict": {}}, "evil.pth")
    from recbole.quick_start import load_data_and_model

    for load in (compat.load_checkpoint, load_data_and_model):
        with pytest.raises(pickle.UnpicklingError, match="a checkpoint may not call"):
            load("evil.pth")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen", "numpy.load", "torch.load",
                                  "numpy.save", "numpy.memmap",
                                  "recbole.utils.utils.get_model", "torch.jit.ScriptModule",
                                  "numpy.lib.npyio.load",
                                  "recbole.config.configurator.Config", "girl_recbole.compat.convert_checkpoint",
                                  "scipy.io.loadmat", "recbole.trainer.trainer.Trainer", "logging.config"])  # fmt: skip
def test_what_no_checkpoint_may_name(name):
    assert compat._harmless(name) is None


def test_torch_load_itself_is_untouched(tmp_path):
    assert torch.load.__module__ == "torch.serialization"
    assert torch.save.__module__ == "torch.serialization"
    before = set(torch.serialization.get_safe_globals())
    compat.save_checkpoint({"a": np.float64(1.5), "b": np.arange(3)}, tmp_path / "x.pth")
    loaded = compat.load_checkpoint(tmp_path / "x.pth")
    assert loaded["a"] == 1.5
    assert loaded["b"].tolist() == [0, 1, 2]
    assert set(torch.serialization.get_safe_globals()) == before


def test_missing_checkpoint():
    with pytest.raises(DataError, match=r"none\.pth: no such checkpoint"):
        compat.load_checkpoint("none.pth")


# ------------------------------------------------------------------------------------------------------------ config


def test_config_survives_a_pickle_without_its_device_and_classes(market):
    from copy import deepcopy

    from recbole.config import Config

    config = Config("BPR", "tiny", None, {"epochs": 3}, arguments=())
    for twin in (pickle.loads(pickle.dumps(config)), deepcopy(config)):
        assert type(twin) is Config
        assert twin.final_config_dict == config.final_config_dict
        assert twin.model_class is config.model_class
    assert b"torch" not in pickle.dumps(config)


def test_tensorboard_when_asked_for(market):
    run_experiment(
        "Pop", "tiny", overrides={**QUICK, "load_col": {"inter": ["user_id", "item_id"]}, "tensorboard": True}
    )
    assert list(Path("log_tensorboard").rglob("events*"))
