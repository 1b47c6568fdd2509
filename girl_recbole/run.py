"""One experiment: a model of ours or of RecBole's, trained and tested on a dataset; and the command ``run_recbole``.

:func:`run_experiment` does in one process what RecBole's ``run_recbole`` does, with the same seeds in the same places,
so that both give the same numbers. It reads no command line, can be called many times in a process, and returns (and
appends to ``results_file``) one row of plain JSON values:

    timestamp, model, dataset, split, generator, seed, config (all settings, resolved), commit (or version),
    data (file name -> hash), valid, test (metric -> value; test is null where it is not read), calibrated (of a model
    of RecBole's: auc, logloss, labeledgauc, ece of test after Platt scaling on validation; else null), prior, oracle
    (auc and logloss, or null), curve {train_loss: [mean of a batch, by epoch], valid: [[epoch, valid_metric], ...]},
    predictions (a file, predictions.py, where predictions_folder names a folder; else null),
    ranking, groups, fairness (evaluation.py, what rank_seekers, rank_jobs, group_by, fairness_swaps ask for; or null),
    parameters (trained numbers), time_s {load, train, evaluate}, peak_memory_mb (of this run on Linux, else of the
    process so far), machine, nproc, checkpoint

With ``nproc`` > 1 the work is spawned as RecBole does it, one rank a process; what that means for metrics is said in
trainer.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from girl_recbole.config import load_properties, parse_overrides
from girl_recbole.errors import ConfigError, DataError, GirlError, suggest_or_list

__all__ = ["main", "run_experiment"]

_LOG = logging.getLogger(__name__)
_HELP = """\
Train a recommender and test it: a model of this package (GIRLBaseMLP, GIRLBaseDot, GIRLEnhancedMLP, GIRLEnhancedDot,
...) or any model of RecBole (BPR, LightGCN, NeuMF, DeepFM, SASRec, ...).

  run_recbole --model=GIRLEnhancedMLP
  run_recbole --model=GIRLEnhancedMLP --compare=GIRLBaseMLP,NeuMF --split=cold
  run_recbole --model=LightGCN --dataset=ml-100k --epochs=5 --learning_rate=0.002
  run_recbole --model=NeuMF --dataset=mine --config_files="mine.yaml quick.yaml" --nproc=2

The folder dataset/NAME holds a dataset in RecBole's atomic files; the datasets that ship with this package are copied
there when they are first used."""
_EPILOG = """\
Any other --key=value overrides a property; values are numbers, lists, words, and never run as code. Keys and what they
mean: properties/overall.yaml of this package, and RecBole's manual. The ones used most:

  --split=warm|cold|cold_strict  --epochs=N  --learning_rate=X  --train_batch_size=N  --seed=N  --generator=NAME
  --gpu_id=0 (or '' for none)    --calibrate=false              --results_file=FILE  --checkpoint_dir=FOLDER
  --show_progress=false          --state=warning (less log)

Writes: the table of test metrics, one line per model to results.jsonl, checkpoints to saved/, logs to log/."""


def run_experiment(
    model: str | type,
    dataset: str | None = None,
    config_files: Iterable[str | os.PathLike] = (),
    overrides: Mapping[str, Any] | None = None,
    *,
    nproc: int = 1,
    world_size: int = -1,
    ip: str = "localhost",
    port: int | str | None = None,
    group_offset: int = 0,
    read_test: bool = True,
) -> dict[str, Any]:
    """Train and test ``model``; append the row that is returned to ``results_file``, unless that is None.

    With ``read_test=False`` nothing is computed on the test part: for the search of settings, which validation decides.

    Raises ``ConfigError`` for a model, key, split or metric that does not exist, ``DataError`` for data that cannot be
    trained or tested on.
    """
    files = [os.fspath(file) for file in config_files]
    overrides = dict(overrides or {})
    _check_keys(files, overrides, [model])
    launch = {"nproc": nproc, "world_size": world_size, "ip": ip, "port": port, "offset": group_offset}
    row = _start(model, dataset, files, overrides, launch, read_test)
    _record(row)
    return row


def _start(model, dataset, files, overrides, launch, read_test=True) -> dict[str, Any]:
    """The row of one experiment, in this process or in ``launch["nproc"]`` others."""
    nproc, world_size = launch["nproc"], launch["world_size"]
    if nproc < 1:
        raise ConfigError(f"nproc: {nproc}; at least 1 is required.")
    if nproc == 1 and world_size <= 0:
        return _experiment(model, dataset, files, overrides, read_test)
    launch = {
        **launch,
        "world_size": nproc if world_size <= 0 else world_size,
        "port": _free_port() if launch["port"] is None else launch["port"],
    }
    return _spawn(model, dataset, files, overrides, launch, read_test)


def _record(row: Mapping[str, Any]) -> None:
    if row.get("config", {}).get("results_file") is not None:
        from girl_recbole import results

        results.append(row["config"]["results_file"], row)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``run_recbole``; returns the exit code: 2 and one message for what the user can put right."""
    rows: list[dict[str, Any]] = []
    code, said = 0, ""
    try:
        _run_all(arguments, rows)
    except (GirlError, OSError) as error:
        code, said = 2, str(error)
    except KeyboardInterrupt:
        code, said = 130, "interrupted"
    _print_table(rows)  # what was finished, before what went wrong
    if code:
        print(f"run_recbole: {said}", file=sys.stderr)
    return code


def _run_all(arguments: Sequence[str] | None, rows: list[dict[str, Any]]) -> None:
    """Check everything that the command line says, then train its models one by one into ``rows``."""
    options, rest = _parser().parse_known_args(arguments)
    overrides = parse_overrides(rest)
    models = [options.model, *(name.strip() for name in options.compare.split(",") if name.strip())]
    launch = {"nproc": options.nproc, "world_size": options.world_size, "ip": options.ip, "port": options.port,
              "offset": options.group_offset}  # fmt: skip
    files = options.config_files.split()
    _check_models(models, files)
    _check_keys(files, overrides, models, "command line")
    if options.nproc < 1:
        raise ConfigError(f"--nproc: {options.nproc}; at least 1 is required.")
    if options.world_size > options.nproc and len(models) > 1:
        raise ConfigError("--compare works on one machine; start one run_recbole a model on several.")
    dataset, settings = options.dataset, [overrides]
    if len(models) > 1:
        first = _config(models[0], dataset, files, overrides)
        _check_dataset(first)
        dataset = first["dataset"]
        settings += [{**_same_evaluation(first, model), **overrides} for model in models[1:]]
        for model, alike in zip(models[1:], settings[1:], strict=True):
            _config(model, dataset, files, alike)
    for model, alike in zip(models, settings, strict=True):
        row = _start(model, dataset, files, alike, launch)
        if row:  # not on the machines that do not hold rank 0
            rows.append(row)
            _record(row)


# ---------------------------------------------------------------------------------------------------- one experiment


def _experiment(model, dataset, files, overrides, read_test=True) -> dict[str, Any]:
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_trainer, init_seed

    from girl_recbole import evaluation, results

    results.reset_peak_memory()
    started = time.perf_counter()
    config = _config(model, dataset, files, overrides)
    _check_dataset(config)
    evaluation.check(config)
    if read_test:
        _check_predictions(config)
    with _recbole_log(config):
        logger = logging.getLogger()
        logger.info(config)
        init_seed(config["seed"], config["reproducibility"])
        try:
            data = create_dataset(config)
            logger.info(data)
            parts = data_preparation(config, data)
        except GirlError:
            raise
        except ValueError as error:
            raise DataError(f"{config['dataset']}: {error}") from error
        train, valid, test = parts

        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        try:
            net = config.model_class(config, train._dataset).to(config["device"])
            logger.info(net)
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, net)
        except GirlError:
            raise
        except (TypeError, ValueError) as error:  # dropout_prob: 1.5, learning_rate: abc
            raise ConfigError(f"{config['model']}: {error}") from error
        prior, oracle = _references(config, train, test) if read_test else (None, None)
        loaded = time.perf_counter()
        validated: list[tuple[int, float]] = []
        watch = {}
        if "callback_fn" in inspect.signature(trainer.fit).parameters:  # RecBole's trainers of decision trees have none
            watch["callback_fn"] = lambda epoch, score: validated.append((epoch, float(score)))
        _, valid_result = trainer.fit(train, valid, saved=True, show_progress=config["show_progress"], **watch)
        trained = time.perf_counter()
        logger.info(f"best valid: {_numbers(valid_result)}")
        test_result = predictions = stock = None
        if read_test:
            test_result = trainer.evaluate(test, load_best_model=True, show_progress=config["show_progress"])
            logger.info(f"test result: {_numbers(test_result)}")
            predictions, stock = _predictions(config, net, valid, test, trainer.saved_model_file)
        tested = time.perf_counter()
        more = dict.fromkeys(("ranking", "groups", "fairness"))
        if read_test and not config["local_rank"]:
            more = evaluation.evaluate(net, config, train, test, valid)
    return results.plain({
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": config["model"],
        "dataset": config["dataset"],
        "split": _split_name(config),
        "generator": config["generator"],
        "seed": config["seed"],
        "config": config.final_config_dict,
        "commit": results.code_version(),
        "data": results.file_hashes(_data_files(config)),
        "valid": _numbers(valid_result),
        "test": _numbers(test_result) if read_test else None,
        "calibrated": stock,
        "prior": prior,
        "oracle": oracle,
        "curve": {"train_loss": [float(loss) / max(1, len(train)) for loss in trainer.train_loss_dict.values()],
                  "valid": validated},
        "predictions": predictions,
        **more,
        "parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "time_s": {"load": round(loaded - started, 3), "train": round(trained - loaded, 3),
                   "evaluate": round(tested - trained, 3)},
        "peak_memory_mb": results.peak_memory_mb(),
        "machine": results.machine(),
        "nproc": config["nproc"] or 1,
        "checkpoint": trainer.saved_model_file,
    })  # fmt: skip


def _config(model, dataset, files, overrides):
    from girl_recbole.recbole_config import Config

    try:
        return Config(model, dataset, files, overrides, arguments=())
    except GirlError:
        raise
    except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{model}: {error}") from error


def _check_keys(files: Iterable[str], overrides: Mapping[str, Any], models: list, where: str = "overrides") -> None:
    from girl_recbole.recbole_config import check_known

    for file in files:
        check_known(load_properties(Path(file)), file)
    check_known(overrides, where, models)


def _check_models(models: list, files: Iterable[str]) -> None:
    """Fill in a first model that only a file names, and check all names before the first is trained."""
    from girl_recbole.recbole_config import check_model

    if models[0] is None:
        named = [found["model"] for file in files if "model" in (found := load_properties(Path(file)))]
        if not named:
            raise ConfigError("no model: name one with --model=NAME; run_recbole --help shows examples.")
        models[0] = named[-1]
    for model in models:
        check_model(model)


def _same_evaluation(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What makes another model learn from and be tested on the same pairs as the first: for ``--compare``."""
    from recbole.utils import InputType, get_model

    same = {key: copy.deepcopy(config[key]) for key in ("metrics", "valid_metric", "topk", "eval_args")}
    if config["train_neg_sample_args"]["distribution"] != "none":
        return {**same, "train_neg_sample_args": config["train_neg_sample_args"]}
    if getattr(get_model(model), "input_type", None) != InputType.POINTWISE:
        raise ConfigError(
            f"--compare: {model} learns from sampled pairs and not from labels, so it cannot stand in one table with "
            f"{config['model']}; run it by itself."
        )
    return {**same, "train_neg_sample_args": None}


def _check_dataset(config) -> None:
    """Raise ``DataError`` for a dataset that is neither there nor one that RecBole can download."""
    import recbole

    folder, name = Path(config["data_path"]), config["dataset"]
    if folder.exists():
        if not config["benchmark_filename"] and not (folder / f"{name}.inter").exists():
            raise DataError(
                f"{folder}: no {name}.inter. Make one with `girl prepare SOURCE {name}` or `girl simulate {name}`."
            )
        return
    urls = Path(recbole.__file__).parent / "properties" / "dataset" / "url.yaml"
    if name in load_properties(urls):
        return
    beside = [path.name for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.exists() else []
    known = sorted({*beside, "jobrec-sim", "ml-100k"})
    raise DataError(f"{folder}: no such dataset{suggest_or_list(name, known)}")


def _check_predictions(config) -> None:
    """Raise ``ConfigError`` before the training where predictions_folder cannot be made."""
    if config["predictions_folder"]:
        try:
            Path(config["predictions_folder"]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"predictions_folder: {config['predictions_folder']} cannot be made ({error}).") from None


def _references(config, train, test) -> tuple[dict | None, dict | None]:
    """The prior's and the oracle's AUC and LogLoss on the test pairs, where labelled pairs are evaluated."""
    import numpy as np
    from recbole.utils import EvaluatorType

    from girl_recbole import results
    from girl_recbole.atomic import DatasetFiles

    label = config["LABEL_FIELD"]
    if config["eval_type"] != EvaluatorType.VALUE or config["eval_args"]["mode"]["test"] != "labeled":
        return None, None
    data, pairs = test._dataset, test._dataset.inter_feat
    if label not in pairs or label not in train._dataset.inter_feat:
        return None, None
    labels = pairs[label].double().numpy()
    base_rate = float(train._dataset.inter_feat[label].double().mean())
    prior = oracle = None
    if 0 < base_rate < 1:
        prior = results.auc_logloss(np.full(len(labels), base_rate), labels)
    path = DatasetFiles(Path(config["data_path"]), config["dataset"]).oracle
    if path.exists():
        users = data.id2token(data.uid_field, pairs[data.uid_field].numpy())
        items = data.id2token(data.iid_field, pairs[data.iid_field].numpy())
        oracle = results.auc_logloss(results.oracle_probabilities(path, users, items), labels)
    return prior, oracle


def _predictions(config, net, valid, test, checkpoint: str) -> tuple[str | None, dict[str, float] | None]:
    """The file of the probabilities of valid and test, if one is asked for; the metrics of a stock model, calibrated.

    Nothing of either where pairs are ranked, or have no labels, or where this is not the process that writes.
    """
    from recbole.utils import EvaluatorType

    from girl_recbole import predictions
    from girl_recbole.plugin import MODELS

    folder, ours = config["predictions_folder"], config["model"] in MODELS
    labelled = config["eval_type"] == EvaluatorType.VALUE and all(
        config["eval_args"]["mode"][part] == "labeled" and config["LABEL_FIELD"] in loader._dataset.inter_feat
        for part, loader in (("valid", valid), ("test", test))
    )
    stock = labelled and not ours and bool(config["calibrate"])
    if not labelled or config["local_rank"] or not (folder or stock):
        return None, None
    parts = {name: predictions.collect(net, loader, config) for name, loader in (("valid", valid), ("test", test))}
    given = [part.pop("score") for part in parts.values()]
    if not ours:
        given = predictions.calibrated(given[0], parts["valid"]["label"], given[1])
    for part, probability in zip(parts.values(), given, strict=True):
        part["probability"] = probability
    path = None
    if folder:
        path = Path(folder) / f"{Path(checkpoint).stem}.npz"
        predictions.save(path, parts)
    return path and str(path), predictions.scores(parts["test"], config["ece_bins"]) if stock else None


def _data_files(config) -> list[Path]:
    from girl_recbole.atomic import DatasetFiles
    from girl_recbole.plugin import MODELS

    files = DatasetFiles(Path(config["data_path"]), config["dataset"])
    parts = config["benchmark_filename"]
    paths = [files.path(f"{part}.inter") for part in parts] if parts else [files.inter]
    paths += [files.path("user"), files.path("item"), files.oracle]
    if config["model"] in MODELS:
        paths += [files.udoc, files.idoc, files.gdoc(config["generator"])]
        paths += [files.stage(stage) for stage in config["train_stages"] or ()]
        paths += language_model_files(config["model"], config, files.name)
    if config["fairness_swaps"]:
        paths.append(files.path("swaps"))
    return paths


def language_model_files(model: str, settings: Mapping[str, Any], dataset: str) -> list[Path]:
    """The files that change when the language model does which FTLLM or BIGRec reads: the manifest of a generator of
    ours, the weights in a folder of the user's; none of one that is named by its Hugging Face name."""
    from girl_recbole.generate import generator_folder
    from girl_recbole.manifest import manifest_path

    if model == "FTLLM":
        named, generator = settings["ftllm_base"], settings["start_generator"]
        ours = named == "generator"
    elif model == "BIGRec" and settings["bigrec_pooling"] != "sentence":
        named, generator = settings["bigrec_lm"], settings["generator"]
        ours = named is None
    else:
        return []
    if ours:
        return [manifest_path(generator_folder(settings["saved_folder"], dataset, generator))]
    folder = Path(named)
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _split_name(config) -> str:
    """``cold`` for the files of our split cold, else how RecBole was told to split."""
    parts = config["benchmark_filename"]
    if parts == [f"{config['split']}.{part}" for part in ("train", "valid", "test")]:
        return config["split"]
    if parts:
        return ",".join(parts)
    args = config["eval_args"]
    how = ", ".join(f"{kind} {value}" for kind, value in args["split"].items())
    return f"RecBole's {how}, {args['order']}, by {args['group_by']}"


def _numbers(result: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (result or {}).items()}


@contextlib.contextmanager
def _recbole_log(config) -> Iterator[None]:
    """RecBole's log to the screen and to log/MODEL/, for the length of one run; what RecBole set up is undone after."""
    from recbole.utils import init_logger

    root = logging.getLogger()
    before, level, streams = list(root.handlers), root.level, (sys.stdout, sys.stderr)
    init_logger(config)
    sys.stdout, sys.stderr = streams  # RecBole lets colorama wrap them once more in every run
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


# ------------------------------------------------------------------------------------------------- several processes


def _spawn(model, dataset, files, overrides, launch, read_test) -> dict[str, Any]:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            work = (model, dataset, files, {**overrides, **launch}, read_test, str(answer))
            mp.spawn(_rank, work, nprocs=launch["nproc"])
        except mp.ProcessExitedException:
            if not answer.exists():
                raise
        said = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    if "error" in said:
        raise GirlError(said["error"])
    return said  # empty on the machines that do not hold rank 0


def _rank(rank: int, model, dataset, files, overrides, read_test: bool, answer: str) -> None:
    from girl_recbole.atomic import atomic_write

    try:
        said = _experiment(model, dataset, files, {**overrides, "local_rank": rank}, read_test)
    except (GirlError, OSError) as error:
        said = {"error": str(error)}
    if rank + overrides["offset"] == 0 or "error" in said:
        with atomic_write(Path(answer)) as file:
            json.dump(said, file)
    if "error" in said:
        sys.exit(2)  # ends the other ranks, which may be waiting for this one


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_recbole", description=_HELP, epilog=_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, usage="run_recbole --model=NAME [--key=value ...]",
    )  # fmt: skip
    add = parser.add_argument
    add("-m", "--model", metavar="NAME", help="the model to train")
    add("-d", "--dataset", metavar="NAME", help="the dataset; our models take jobrec-sim when none is named")
    add("--compare", metavar="NAME[,NAME]", default="", help="train these too and show them in the same table")
    add("--config_files", metavar='"A.yaml B.yaml"', default="", help="property files; later ones win")
    add("--nproc", metavar="N", type=int, default=1, help="processes on this machine (GPUs, or CPUs by gloo)")
    add("--world_size", metavar="N", type=int, default=-1, help="processes on all machines together")
    add("--ip", default="localhost", help="address of the machine with rank 0")
    add("--port", metavar="N", default=None, help="its port; needed with several machines")
    add("--group_offset", metavar="N", type=int, default=0, help="rank of this machine's first process")
    return parser


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    from recbole.evaluator.register import smaller_metrics

    metrics = list(dict.fromkeys(metric for row in rows for metric in row["test"]))
    first = rows[0]
    table = Table(title=f"{first['dataset']}, split {first['split']}, seed {first['seed']}: test", title_justify="left")
    table.add_column("model", no_wrap=True)
    for metric in metrics:
        better = {"priorentropy": ""}.get(metric, " ↓" if metric in smaller_metrics else " ↑")
        table.add_column(metric + better, justify="right")
    table.add_column("train s", justify="right")
    scaled = [row["model"] for row in rows if row["calibrated"]]
    shown = [
        (row["model"], {**row["test"], **(row["calibrated"] or {})}, f"{row['time_s']['train']:.1f}") for row in rows
    ]
    shown += [(name, first[name], "") for name in ("prior", "oracle") if first[name]]
    for number, (name, values, seconds) in enumerate(shown):
        cells = [f"{values[metric]:.4f}" if values.get(metric) is not None else "" for metric in metrics]
        table.add_row(name, *cells, seconds, end_section=number == len(rows) - 1)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    if scaled:
        names = ", ".join(dict.fromkeys(scaled))
        console.print(f"{names}: after Platt scaling on valid, as the models of this package are; `calibrate: False` "
                      "shows what the model says itself", soft_wrap=True, highlight=False)  # fmt: skip
    for row in rows:
        console.print(f"{row['model']}: {row['checkpoint']}", soft_wrap=True, highlight=False)
    if first["config"]["results_file"] is not None:
        console.print(f"appended to {first['config']['results_file']}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
