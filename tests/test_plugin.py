"""RecBole finds what we register, by its own entry points; and nothing given by a user is run as code."""

import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny_market import LABELED, make_market

import girl_recbole
from girl_recbole import plugin
from girl_recbole.errors import ConfigError, DataError

ATTACK = "__import__('os').system('touch pwned')"


def run_python(code: str, cwd: Path, *arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=cwd, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **(env or {})},
    )  # fmt: skip


def config(*arguments, **keywords):
    from recbole.config import Config

    return Config(*arguments, **keywords)


@pytest.fixture
def market(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_market(tmp_path / "dataset")


# ------------------------------------------------------------------------------------------------------------ import


def test_import_loads_no_torch_and_no_recbole_and_prints_nothing(tmp_path):
    code = "import sys, girl_recbole; assert not {'torch', 'recbole', 'numpy', 'pandas', 'ray'} & set(sys.modules)"
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_takes_less_than_0_3_s(tmp_path):
    code = "import time; t = time.perf_counter(); import girl_recbole; print(time.perf_counter() - t)"
    assert min(float(run_python(code, tmp_path).stdout) for _ in range(3)) < 0.3


def test_import_without_recbole(tmp_path):
    code = """
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "recbole":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Blocked())
        import girl_recbole, girl_recbole.atomic, girl_recbole.config, girl_recbole.manifest
        girl_recbole.config.known_keys()
        try:
            import recbole
        except ModuleNotFoundError as error:
            print(error)
    """
    done = run_python(code, tmp_path)
    assert (done.stdout, done.stderr) == ("No module named 'recbole'\n", "")


def test_install_is_idempotent():
    before = list(sys.meta_path)
    plugin.install()
    assert sys.meta_path == before
    assert girl_recbole.__version__


def test_recbole_imported_first(tmp_path):
    code = """
        import numpy as np
        np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
        import recbole.quick_start
        from recbole.config.configurator import Config as Stock
        assert recbole.config.Config is Stock
        import girl_recbole
        import recbole.trainer, recbole.trainer.trainer, recbole.evaluator, recbole.data.utils
        assert issubclass(recbole.config.Config, Stock) and recbole.config.Config is not Stock
        assert recbole.quick_start.quick_start.Config is recbole.config.Config
        assert recbole.quick_start.run_recbole.__globals__["Config"] is recbole.config.Config
        assert recbole.quick_start.load_data_and_model.__module__ == "girl_recbole.compat"
        assert "ece" in recbole.evaluator.metric_types
        assert recbole.trainer.trainer.torch.save.__module__ == "girl_recbole.compat"
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first", ["girl_recbole.recbole_config", "girl_recbole.recbole_metrics", "girl_recbole.trainer"]
)
def test_any_module_can_be_imported_first(tmp_path, first):
    code = f"""
        import girl_recbole, {first}
        from recbole.config import Config
        from recbole.evaluator import metric_types
        assert Config.__module__ == "girl_recbole.recbole_config" and "ece" in metric_types
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------- registry


def test_model_trainer_and_dataset_by_name(monkeypatch):
    from recbole.utils import ModelType, get_model, get_trainer

    from girl_recbole.trainer import GIRLTrainer

    monkeypatch.setitem(plugin.MODELS, "TinyLogits", "tiny_models")
    import tiny_models

    assert get_model("TinyLogits") is tiny_models.TinyLogits
    assert get_trainer(ModelType.GENERAL, "TinyLogits") is GIRLTrainer
    assert get_trainer(ModelType.GENERAL, "BPR").__name__ == "Trainer"
    assert get_trainer(ModelType.KNOWLEDGE, "KGCN").__name__ == "KGTrainer"


@pytest.mark.parametrize("name", list(plugin.MODELS))
def test_our_models_by_name(name):
    import recbole.data.dataset
    from recbole.utils import get_model

    assert get_model(name).__name__ == name
    assert getattr(recbole.data.dataset, name + "Dataset").__name__ == "GIRLDataset"


def test_our_models_use_the_default_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_market(tmp_path / "dataset", "jobrec-sim")
    assert config("GIRLBaseMLP")["dataset"] == "jobrec-sim"
    with pytest.raises(ConfigError, match="BPR: no dataset"):
        config("BPR")


@pytest.mark.parametrize("name, said", [
    ("GIRLEnhancedMPL", "did you mean 'GIRLEnhancedMLP'"), ("LightGNC", "did you mean 'LightGCN'"),
    ("bpr", "did you mean 'BPR'"), ("qqqq", "ours are GIRLBaseMLP"),
])  # fmt: skip
def test_unknown_model(name, said):
    with pytest.raises(ConfigError, match=said):
        config(name, "ml-100k")


# -------------------------------------------------------------------------------------------------------- properties


def test_order_of_properties(market, tmp_path, monkeypatch):
    """RecBole's defaults < overall < model < dataset < file < dict < command line."""
    shipped = tmp_path / "properties"
    for path, text in {
        "overall.yaml": "k1: overall\nk2: overall\nk3: overall\nk4: overall\nk5: overall\nk6: overall\nepochs: 7\n"
        "split: warm\ntensorboard: false\n",
        "model/BPR.yaml": "k2: model\nk3: model\nk4: model\nk5: model\nk6: model\n",
        "dataset/tiny.yaml": "k3: dataset\nk4: dataset\nk5: dataset\nk6: dataset\n",
    }.items():
        (shipped / path).parent.mkdir(parents=True, exist_ok=True)
        (shipped / path).write_text(text)
    monkeypatch.setattr("girl_recbole.recbole_config.properties_file", lambda name: shipped / name)
    mine = tmp_path / "mine.yaml"
    mine.write_text("k4: file\nk5: file\nk6: file\n")
    got = config("BPR", "tiny", [str(mine)], {"k5": "dict", "k6": "dict"}, arguments=["--k6=line"])
    assert [got[f"k{i}"] for i in range(1, 7)] == ["overall", "model", "dataset", "file", "dict", "line"]
    assert (got["epochs"], got["learner"]) == (7, "adam")  # ours over RecBole's, RecBole's where we say nothing


def test_overall_changes_none_of_recboles_own_defaults():
    """RecBole's models must give RecBole's numbers after ``import girl_recbole``."""
    import recbole

    from girl_recbole.config import load_properties, properties_file

    theirs = load_properties(Path(recbole.__file__).parent / "properties" / "overall.yaml")
    ours = load_properties(properties_file("overall.yaml"))
    assert {key: ours[key] for key in ours if key in theirs} == {key: theirs[key] for key in ours if key in theirs}


def test_the_host_programs_command_line_is_left_alone(market, monkeypatch):
    host = ["worker.py", "-x", "--node-ip-address=127.0.0.1", "plain", "--flag", "--learning_rate=0.25", "--tag=a=b"]
    monkeypatch.setattr(sys, "argv", host)
    got = config("BPR", "tiny")
    assert (got["learning_rate"], got["tag"], got["node-ip-address"]) == (0.25, "a=b", None)
    assert config("BPR", "tiny", arguments=())["learning_rate"] == 0.001
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "--f=kernel.json", "--learning_rate=9"])
    assert config("BPR", "tiny")["learning_rate"] == 0.001


def test_the_dict_is_not_changed(market):
    given = {"epochs": "3", "tag": "x"}
    assert config("BPR", "tiny", None, given, arguments=())["epochs"] == 3
    assert given == {"epochs": "3", "tag": "x"}


# ----------------------------------------------------------------------------------------------------- nothing is run


@pytest.mark.parametrize("text, value", [
    (ATTACK, ATTACK), ("open('pwned','w')", "open('pwned','w')"), ("exit()", "exit()"), ("key", "key"), ("1/0", "1/0"),
    ("[][0]", "[][0]"), ("a=b", "a=b"), ("[64, 32]", [64, 32]), ("{'a': 1}", {"a": 1}), ("1e-3", 0.001), ("True", True),
])  # fmt: skip
def test_values_are_literals_or_strings(market, text, value):
    assert config("BPR", "tiny", None, {"tag": text}, arguments=())["tag"] == value
    assert config("BPR", "tiny", arguments=[f"--tag={text}"])["tag"] == value
    assert not Path("pwned").exists()


def test_recboles_own_entry_points_run_nothing(market, tmp_path):
    code = """
        import girl_recbole
        from recbole.quick_start import run_recbole
        run_recbole("BPR", "tiny", config_dict={"x": "open('pwned','w')", "epochs": 1, "show_progress": False})
    """
    done = run_python(code, tmp_path, f"--y={ATTACK}")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()


def test_the_stock_class_and_parameter_files_run_nothing(market, tmp_path, monkeypatch):
    from recbole.config.configurator import Config as StockConfig
    from recbole.trainer import HyperTuning

    monkeypatch.setattr(sys, "argv", ["x"])
    assert StockConfig("BPR", "tiny", None, {"x": ATTACK})["x"] == ATTACK
    (tmp_path / "hyper.test").write_text("epochs choice [1,2]\n")
    assert set(HyperTuning(None, params_file=str(tmp_path / "hyper.test")).space) == {"epochs"}
    (tmp_path / "hyper.test").write_text(f"epochs choice [{ATTACK}]\n")
    with pytest.raises(SyntaxError):
        HyperTuning(None, params_file=str(tmp_path / "hyper.test"))
    assert not Path("pwned").exists()


def test_the_teacher_of_kd_dagfm_is_a_class_not_code():
    from recbole.model.context_aware_recommender import kd_dagfm

    assert kd_dagfm.eval("CrossNet") is kd_dagfm.CrossNet
    with pytest.raises(ConfigError, match="is no network"):
        kd_dagfm.eval(ATTACK)
    assert not Path("pwned").exists()


# ------------------------------------------------------------------------------------------------------------- splits


def test_split_selects_the_benchmark_files(market):
    assert config("BPR", "tiny", arguments=())["benchmark_filename"] == ["warm.train", "warm.valid", "warm.test"]
    given = config("BPR", "tiny", None, {"benchmark_filename": ["a", "b", "c"]}, arguments=())
    assert given["benchmark_filename"] == ["a", "b", "c"]


def test_split_without_files(market):
    with pytest.raises(DataError, match=r"no tiny\.cold\.train\.inter.*Run `girl split tiny --split=cold`"):
        config("BPR", "tiny", None, {"split": "cold"}, arguments=())
    with pytest.raises(DataError, match=r"Run `girl split tiny --split=cold --split_suffix=s1`"):
        config("BPR", "tiny", None, {"split": "cold-s1"}, arguments=())
    for part in ("train", "valid", "test"):
        market.split("warm", part).unlink()
    assert config("BPR", "tiny", arguments=())["benchmark_filename"] is None
    with pytest.raises(DataError, match=r"Run `girl split tiny --split=warm`"):
        config("GIRLBaseMLP", "tiny", arguments=())
    by_hand = {"eval_args": {"mode": "labeled", "split": {"RS": [8, 1, 1]}, "order": "RO"}}
    assert config("GIRLBaseMLP", "tiny", None, by_hand, arguments=())["benchmark_filename"] is None
    with pytest.raises(ConfigError, match="did you mean 'cold_strict'"):
        config("BPR", "tiny", None, {"split": "cold_strct"}, arguments=())


def test_the_split_of_a_datasets_property_file_is_a_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = make_market(tmp_path / "dataset", "resume-corpus")
    for part in ("train", "valid", "test"):
        files.split("warm", part).unlink()
    for model in ("BPR", "GIRLBaseMLP"):
        with pytest.raises(DataError, match="Run `girl split resume-corpus --split=cold`"):
            config(model, "resume-corpus", arguments=())


def test_parts_made_from_an_older_file_are_refused(market):
    from girl_recbole.manifest import write_manifest

    write_manifest(market.split("warm", "train"), "split", config={}, inputs=[market.inter])
    config("BPR", "tiny", arguments=())
    with open(market.inter, "a") as file:
        file.write("new\ti1\t1\n")
    with pytest.raises(DataError, match=r"tiny.inter: changed since .*Run `girl split tiny --split=warm`"):
        config("BPR", "tiny", arguments=())


def test_labels_are_loaded_with_our_parts_unless_the_user_says_otherwise(market):
    assert config("NeuMF", "tiny", arguments=())["load_col"] == {"inter": ["user_id", "item_id", "label"]}
    own = {"load_col": {"inter": ["user_id", "item_id"]}}
    assert config("NeuMF", "tiny", None, own, arguments=())["load_col"] == own["load_col"]


@pytest.mark.parametrize("settings, kept", [
    ({}, (False, False, False)),  # LightGCN: negatives sampled, all jobs ranked
    ({"model": "NeuMF", "train_neg_sample_args": None}, (True, False, False)),
    ({"model": "NeuMF", **LABELED}, (True, True, True)),
    ({"model": "EASE", "train_neg_sample_args": None}, (False, False, False)),
])  # fmt: skip
def test_recboles_models_take_no_mismatched_pair_for_a_match(market, settings, kept):
    from recbole.data import create_dataset, data_preparation

    from girl_recbole.atomic import read_interactions

    settings = {"model": "LightGCN", "state": "error", "topk": [3], **settings}
    got = config(None, "tiny", None, settings, arguments=())
    for part, loader, whole in zip(("train", "valid", "test"), data_preparation(got, create_dataset(got)), kept,
                                   strict=True):  # fmt: skip
        labels = read_interactions(market.split("warm", part))["label"]
        assert len(loader._dataset) == (len(labels) if whole else (labels == 1).sum()), part


def test_a_further_draw_of_a_split(market):
    for part in ("train", "valid", "test"):
        market.split("warm", part).rename(market.split("cold-s1", part))
    got = config("BPR", "tiny", None, {"split": "cold-s1"}, arguments=())
    assert got["benchmark_filename"] == ["cold-s1.train", "cold-s1.valid", "cold-s1.test"]


def test_a_shipped_dataset_is_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = make_market(tmp_path / "shipped", "boxed").folder
    for module in ("girl_recbole.shipped", "girl_recbole.recbole_config"):
        monkeypatch.setattr(f"{module}.shipped_folder", lambda name: shipped if name == "boxed" else None)
    got = config("BPR", "boxed", arguments=())
    assert got["benchmark_filename"] == ["warm.train", "warm.valid", "warm.test"]
    assert sorted(p.name for p in Path("dataset").iterdir()) == ["boxed"]  # nothing half-copied beside it


# ------------------------------------------------------------------------------------------------------------ metrics


def test_direction_of_our_metrics(market):
    bigger = {}
    for metric in ("AUC", "LogLoss", "ECE", "LabeledGAUC"):
        bigger[metric] = config("NeuMF", "tiny", None, {**LABELED, "valid_metric": metric}, arguments=())[
            "valid_metric_bigger"
        ]
    assert bigger == {"AUC": True, "LogLoss": False, "ECE": False, "LabeledGAUC": True}
    with pytest.raises(ConfigError, match="PriorEntropy depends on the labels alone"):
        config("NeuMF", "tiny", None, {**LABELED, "valid_metric": "PriorEntropy"}, arguments=())


@pytest.mark.parametrize("change, said", [
    ({"metrics": ["AUC", "LogLos"]}, "unknown metric 'LogLos' - did you mean 'logloss'"),
    ({"valid_metric": "MRR@10"}, "valid_metric: 'mrr' is not one of the metrics"),
])  # fmt: skip
def test_metrics_that_do_not_exist(market, change, said):
    with pytest.raises(ConfigError, match=said):
        config("NeuMF", "tiny", None, {**LABELED, **change}, arguments=())


def test_the_import_hook_is_fast_after_the_first_time():
    start = time.perf_counter()
    for _ in range(1000):
        plugin._Finder().find_spec("json.decoder")
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize("key", ["save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"])
def test_saved_data_sets_are_refused(market, key):
    with pytest.raises(ConfigError, match=f"{key}: not supported.*can run code"):
        config("BPR", "tiny", None, {key: "x.pth"}, arguments=())
    config("BPR", "tiny", None, {key: False}, arguments=())


def test_saved_data_sets_are_never_read(market):
    """Not from their default places, and not from where the settings of a checkpoint point."""
    from recbole.data import create_dataset, data_preparation, load_split_dataloaders

    Path("saved").mkdir()
    for name in ("tiny-Dataset.pth", "tiny-for-BPR-dataloader.pth", "x.pth"):
        Path("saved", name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    got = config("BPR", "tiny", None, {"state": "error"}, arguments=())
    for key in ("dataset_save_path", "dataloaders_save_path"):
        got[key] = "saved/x.pth"
    data_preparation(got, create_dataset(got))
    assert load_split_dataloaders(got) is None
    assert not Path("pwned").exists()
    assert pickle.loads(pickle.dumps(got))["dataset_save_path"] is None


def test_recboles_own_lists_of_keys_stay_as_they_are(market):
    from recbole.utils.argument_list import dataset_arguments

    before = list(dataset_arguments)
    config("GIRLBaseMLP", "tiny", arguments=())
    config("BPR", "ml-100k", arguments=())
    assert dataset_arguments == before
