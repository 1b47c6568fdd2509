"""RecBole's Config with our property files, literal values, early errors and our splits; it replaces the stock one.

Order, later wins: RecBole's own defaults < properties/overall.yaml < properties/model/MODEL.yaml <
properties/dataset/DATASET.yaml < the user's files < the dict < the command line.

Where it differs from the stock class:

* a string in the dict or on the command line is a Python literal, or else that string; stock RecBole evaluates it;
* of the command line it takes ``--key=value`` with a key that is a Python name, the value may hold ``=``, the last of a
  repeated key wins, and it leaves alone whatever else the host program (pytest, a Ray worker) was started with;
  ``arguments=[...]`` replaces the command line of the process;
* files are read by the safe YAML loader, and a key given twice in one file is an error;
* ``[AUC,LogLoss]``, without quotes, is a list for the keys that are lists; a value of ours of a wrong type is an error;
* our property file of a model of RecBole's (NeuMF, LightGCN: labelled pairs) counts for datasets that have one, too;
* models of ours use the dataset ``dataset`` of overall.yaml when none is named; an unknown model or metric is an error
  with a suggestion;
* ``split: warm | cold | cold_strict`` (or a further draw, such as ``cold-s1``) selects the files
  NAME.SPLIT.{train,valid,test}.inter, unless ``benchmark_filename`` is given, and their labels and times are loaded,
  unless ``load_col`` is given; parts that ``girl split`` made from an older NAME.inter are an error;
* where a dataset has no such files, RecBole splits it by ``eval_args``; for our models, and for datasets whose property
  file names a split, only if the user gives eval_args: else that is an error;
* a dataset that ships with this package and is not in ``data_path`` is copied there;
* on a machine without GPU, several processes talk through gloo;
* data sets and data loaders are not saved and never unpickled (save_dataset and its like are errors);
* it pickles without classes of models, devices and loaders, so that checkpoints load safely and on another device.
"""

from __future__ import annotations

import copy
import functools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import recbole
import torch
import yaml
from recbole.config.configurator import Config as StockConfig
from recbole.evaluator.register import metric_types
from recbole.utils import argument_list, get_model

from girl_recbole.atomic import PARTS, SPLITS, DatasetFiles
from girl_recbole.config import check_keys, documented_keys, known_keys, load_properties, parse_value, properties_file
from girl_recbole.errors import ConfigError, DataError, suggest, suggest_or_list
from girl_recbole.manifest import cached_file_hash, read_manifest
from girl_recbole.plugin import MODELS
from girl_recbole.shipped import locate, shipped_folder

__all__ = ["Config", "check_known", "check_model", "model_names"]

_RECBOLE = Path(recbole.__file__).parent
_ARGUMENT = re.compile(r"--([A-Za-z_]\w*)=(.*)", re.DOTALL)
_KEY_IN_CODE = re.compile(r"""config\[\s*f?["'](\w+)["']\s*\]|config\.(?:get\(\s*["'])?(\w+)""")
_LAUNCH = ("nproc", "world_size", "ip", "port", "offset", "local_rank", "config_files", "model", "dataset")


class Config(StockConfig):
    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | os.PathLike] | None = None,
        config_dict: dict[str, Any] | None = None,
        arguments: Sequence[str] | None = None,
    ) -> None:
        self._arguments = _command_line() if arguments is None else list(arguments)
        super().__init__(model, dataset, config_file_list, config_dict)
        del self._arguments

    # ------------------------------------------------------------------------------------------ reading, no eval

    def _convert_config_dict(self, config_dict):
        return {key: parse_value(value) if isinstance(value, str) else value for key, value in config_dict.items()}

    def _load_config_files(self, file_list):
        values: dict[str, Any] = {}
        for file in file_list or ():
            values.update(load_properties(Path(file)))
        return values

    def _load_cmd_line(self):
        found = (_ARGUMENT.fullmatch(argument) for argument in self._arguments)
        return {match[1]: parse_value(match[2]) for match in found if match}

    def _get_final_config_dict(self):
        for key, value in self.external_config_dict.items():
            if isinstance(self.internal_config_dict.get(key), list):
                self.external_config_dict[key] = _as_list(value)
        return super()._get_final_config_dict()

    # ------------------------------------------------------------------------------------------------- defaults

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model") if model is None else model
        if model is None:
            raise ConfigError("no model: name one with --model=NAME, in a property file, or as an argument.")
        if isinstance(model, str):
            check_model(model)
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        if dataset is None and model in MODELS:
            dataset = load_properties(properties_file("overall.yaml"))["dataset"]
        if dataset is None:
            raise ConfigError(f"{model}: no dataset: name one with --dataset=NAME or in a property file.")
        return super()._get_model_and_dataset(model, dataset)

    def _init_parameters_category(self):
        super()._init_parameters_category()
        self.parameters = {name: list(keys) for name, keys in self.parameters.items()}  # RecBole extends its own lists

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        names = ["overall.yaml", f"model/{model}.yaml", f"dataset/{dataset}.yaml"]
        if model not in MODELS and not properties_file(names[2]).exists():
            del names[1]  # labelled pairs for RecBole's models; on other datasets they are what RecBole makes them
        for name in names:
            path = properties_file(name)
            if path.exists():
                self.internal_config_dict.update(load_properties(path))

    def _set_default_parameters(self):
        self._check_types()
        self._check_metrics()
        self._check_saving()
        super()._set_default_parameters()
        final = self.final_config_dict
        files = DatasetFiles(Path(final["data_path"]), self.dataset)
        if not files.folder.exists() and shipped_folder(self.dataset):
            locate(self.dataset, files.folder.parent)
        if final.get("benchmark_filename") is None:
            final["benchmark_filename"] = self._split_files(files)
            if final["benchmark_filename"] and not self._given("load_col"):
                columns = _columns(files.split(final["split"], "train"))
                final["load_col"] = {**(final["load_col"] or {}), "inter": columns}

    def _check_types(self):
        """What the user gives of our own keys has one of the types that our property files say; a number of RecBole's
        is a number."""
        said = {key: text for key, text in _said("overall.yaml").items() if key in _run_keys()}
        said |= _said(f"model/{self.model}.yaml") if self.model in MODELS else {}
        for key, value in self.external_config_dict.items():
            kinds = said.get(key, "any").split(" or ")
            if key in _CHECKED_BY_MODELS or (key == "metrics" and isinstance(value, str)):  # a list of one, in short
                continue
            if not any(_fits(value, kind) for kind in kinds):
                raise ConfigError(f"{key}: {value!r} is a {type(value).__name__}; {' or '.join(kinds)} is required.")
            if _fits(self.internal_config_dict.get(key), "float") and not isinstance(
                value, (Real, list, tuple, type(None))
            ):
                raise ConfigError(f"{key}: {value!r} is a {type(value).__name__}; a number is required.")
            if key in _COUNTS and not (isinstance(value, Real) and value >= 1):
                raise ConfigError(f"{key}: {value}; at least 1 is required.")

    def _check_saving(self):
        asked = [key for key in _SAVING if self.final_config_dict.get(key)]
        if asked:
            raise ConfigError(
                f"{', '.join(asked)}: not supported. Reading the data takes a second; a saved copy would go on being "
                f"used after the files have changed, and it is a pickle, which can run code when it is read."
            )

    def _check_metrics(self):
        metrics = self.final_config_dict["metrics"]
        metrics = [metrics] if isinstance(metrics, str) else metrics
        for metric in metrics:
            if metric.lower() not in metric_types:
                raise ConfigError(f"metrics: unknown metric {metric!r}{suggest_or_list(metric, sorted(metric_types))}")
        valid = str(self.final_config_dict["valid_metric"]).split("@")[0].lower()
        if valid not in [metric.lower() for metric in metrics]:
            raise ConfigError(f"valid_metric: {valid!r} is not one of the metrics {', '.join(metrics)}.")
        if valid == "priorentropy":
            raise ConfigError("valid_metric: PriorEntropy depends on the labels alone, so it cannot choose a model.")

    def _split_files(self, files: DatasetFiles) -> list[str] | None:
        split = str(self.final_config_dict["split"])
        if split.partition("-")[0] not in SPLITS:
            raise ConfigError(f"split: {split!r} is unknown{suggest_or_list(split, SPLITS)}")
        rule, _, suffix = split.partition("-")
        command = f"girl split {files.name} --split={rule}" + (f" --split_suffix={suffix}" if suffix else "")
        missing = [path.name for part in PARTS if not (path := files.split(split, part)).exists()]
        if not missing:
            _check_made_from(files, split, command)
            return [f"{split}.{part}" for part in PARTS]
        asked = "split" in self.external_config_dict or len(missing) < len(PARTS)
        random = "eval_args" in self.external_config_dict or not files.inter.exists()
        if asked or (not random and (self.model in MODELS or self._given("split"))):
            raise DataError(f"{files.folder}: no {', '.join(missing)}, which split: {split} needs. Run `{command}`.")
        return None

    def _given(self, key: str) -> bool:
        """Whether the user or the property file of the dataset says something about ``key``."""
        path = properties_file(f"dataset/{self.dataset}.yaml")
        return key in self.external_config_dict or (path.exists() and key in load_properties(path))

    # -------------------------------------------------------------------------------------------------- devices

    def _init_device(self):
        final = self.final_config_dict
        gpus = ",".join(map(str, final["gpu_id"])) if isinstance(final["gpu_id"], tuple) else str(final["gpu_id"])
        if "local_rank" in final:
            for folder in (Path("log") / self.model, Path(final["checkpoint_dir"])):  # no rank races for them
                folder.mkdir(parents=True, exist_ok=True)
        if "local_rank" not in final or (gpus and torch.cuda.is_available()):
            super()._init_device()
            return
        rank = final["local_rank"]
        torch.distributed.init_process_group(
            backend="gloo",
            rank=rank + final["offset"],
            world_size=final["world_size"],
            init_method=f"tcp://{final['ip']}:{final['port']}",
        )
        final.update(gpu_id=gpus, device=torch.device("cpu"), single_spec=False)
        if rank != 0:
            final.update(state="error", show_progress=False, verbose=False)

    # ------------------------------------------------------------------------------------------ pickles and logs

    @classmethod
    def from_stock(cls, stock: StockConfig) -> Config:
        """The same settings as an object of this class; for checkpoints that RecBole wrote without us."""
        config = cls.__new__(cls)
        config.__setstate__({key: value for key, value in vars(stock).items() if key not in _UNPICKLED})
        return config

    def __getstate__(self):
        state = {key: value for key, value in vars(self).items() if key not in _UNPICKLED}
        state["final_config_dict"] = {k: v for k, v in self.final_config_dict.items() if k != "device"}
        return state

    def __setstate__(self, state):
        vars(self).update(state)
        self.yaml_loader = yaml.FullLoader
        final = self.final_config_dict = dict(self.final_config_dict)
        final.update({key: None for key in _SAVING if final.get(key)})
        try:
            self.model_class = get_model(self.model)
        except (ValueError, AttributeError, ImportError):  # a class that the user passed
            self.model_class = None
        on_gpu = final["gpu_id"] != "" and torch.cuda.is_available()
        if not torch.distributed.is_initialized():
            final.update(single_spec=True, local_rank=0)
        final["device"] = torch.device(*(("cuda", final["local_rank"]) if on_gpu else ("cpu",)))

    def __deepcopy__(self, memo):
        twin = memo[id(self)] = type(self).__new__(type(self))
        vars(twin).update({key: copy.deepcopy(value, memo) for key, value in vars(self).items()})
        return twin

    def __str__(self):
        """RecBole's page of settings, without those keys of the other stages that nobody changed."""
        overall = load_properties(properties_file("overall.yaml"))
        page = copy.copy(self.final_config_dict)
        hidden = [k for k, v in overall.items() if page.get(k, v) == v and k not in _SHOWN]
        full, self.final_config_dict = self.final_config_dict, {k: v for k, v in page.items() if k not in hidden}
        try:
            return super().__str__()
        finally:
            self.final_config_dict = full


def _check_made_from(files: DatasetFiles, split: str, command: str) -> None:
    """Raise ``DataError`` when ``girl split`` made the parts from another NAME.inter; a user's own pass."""
    manifest = read_manifest(files.split(split, "train")) or {}
    source = manifest.get("inputs", {}).get(files.inter.name)
    seed = manifest.get("config", {}).get("split_seed")
    command += f" --split_seed={seed}" if seed is not None else ""
    if source and files.inter.exists() and cached_file_hash(files.inter) != source:
        raise DataError(
            f"{files.inter}: changed since the parts of split: {split} were made from it, so they are stale. "
            f"Run `{command}`."
        )


def _columns(path: Path) -> list[str]:
    """Which of the columns of pairs the file has."""
    with open(path, encoding="utf-8") as file:
        names = [column.partition(":")[0] for column in file.readline().rstrip("\n").split("\t")]
    return [name for name in ("user_id", "item_id", "label", "timestamp") if name in names]


sys.modules["recbole.config"].Config = Config

_SAVING = ("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path")
_CHECKED_BY_MODELS = ("mlp_hidden_sizes", "dropout_prob", "generated", "n_generated", "tune_encoder")
_COUNTS = ("train_batch_size", "eval_batch_size")
_UNPICKLED = ("model_class", "yaml_loader", "_arguments")
_SHOWN = ("seed", "split", "generator", "encoder", "calibrate")


def model_names() -> list[str]:
    """The names of our models and of RecBole's, sorted."""
    return sorted({*MODELS, *(path.stem for path in (_RECBOLE / "properties" / "model").glob("*.yaml"))})


def check_known(given: Iterable[str], where: str, models: Iterable[str | type] = ()) -> None:
    """Raise ``ConfigError``, with suggestions, for keys that neither RecBole nor we ever read.

    Where ``models`` are named, for keys that none of them reads, too: another model's or another stage's.
    """
    given = list(given)
    models = [model if isinstance(model, str) else "" for model in models]
    if models:
        known = {*_LAUNCH, *_run_keys(), *_recboles_common_keys()}
        for path in (properties_file(f"model/{model}.yaml") for model in {*models} & {*MODELS}):
            known.update(load_properties(path) if path.exists() else ())
    else:
        known = {*known_keys(), *_LAUNCH}
    if not all(key in known for key in given) and not (models and {*models} <= {*MODELS}):
        known.update(_recboles_keys())
    check_keys(given, known, where)


@functools.cache
def _run_keys() -> frozenset[str]:
    """The keys of overall.yaml that a recommender reads; the others are those of other stages."""
    keys = [key for key, _, _ in documented_keys("overall.yaml")]
    return frozenset({"seed", "split", "generator", *keys[keys.index("encoder") :]})  # the last two sections


@functools.cache
def _recboles_common_keys() -> frozenset[str]:
    """What RecBole reads for every model: environment, training, evaluation, data."""
    known: set[str] = set()
    for name in ("overall.yaml", "dataset/sample.yaml"):
        known.update(load_properties(_RECBOLE / "properties" / name))
    for arguments in vars(argument_list).values():
        if isinstance(arguments, list):
            known.update(arguments)
    return frozenset(known)


@functools.cache
def _recboles_keys() -> frozenset[str]:
    """Whatever is in a property file of RecBole's, and what its code reads of a config."""
    known = set(_recboles_common_keys())
    for path in (_RECBOLE / "properties").rglob("*.yaml"):
        if path.stem not in ("url", "kg_url"):
            known.update(load_properties(path))
    for path in _RECBOLE.rglob("*.py"):
        known.update(a or b for a, b in _KEY_IN_CODE.findall(path.read_text(encoding="utf-8")))
    code = (_RECBOLE / "config" / "configurator.py").read_text(encoding="utf-8")
    return frozenset(known - set(re.findall(r"self\.(\w+)", code)))  # a config's own attributes


# ----------------------------------------------------------------------------------------------------- types of values

_KINDS = {"int": Integral, "float": Real, "str": (str, os.PathLike), "dict": dict, "list": (list, tuple)}


def _said(relative: str) -> dict[str, str]:
    """Key -> its types as our property file says them: ``int or null``, ``list of float``."""
    if not properties_file(relative).exists():
        return {}
    return {key: re.split("[,)]", text[1:])[0] for key, _, text in documented_keys(relative)}


def _fits(value: Any, kind: str) -> bool:
    kind, _, of = kind.partition(" of ")
    if kind == "null" or isinstance(value, bool):
        return value is None if kind == "null" else kind in ("bool", "any")
    if kind not in _KINDS:
        return kind == "any"
    return isinstance(value, _KINDS[kind]) and (not of or all(_fits(item, of) for item in value))


def _as_list(value: Any) -> Any:
    """``[AUC,LogLoss]``, a string because its words have no quotes, as a list; anything else as it is."""
    if not isinstance(value, str) or not re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL):
        return value
    return [parse_value(word.strip().strip("'\"")) for word in value.strip()[1:-1].split(",") if word.strip()]


def _command_line() -> list[str]:
    return [] if "ipykernel_launcher" in sys.argv[0] else sys.argv[1:]


def check_model(name: str) -> None:
    """Raise ``ConfigError``, with a suggestion, for a name that is neither our model nor one of RecBole's."""
    modules = {path.stem for path in (_RECBOLE / "model").glob("*_recommender/*.py")}
    known = model_names()
    if name in known or (name.lower() in modules and name.lower() not in {other.lower() for other in known}):
        return
    raise ConfigError(f"unknown model {name!r}{suggest(name, known) or '; ours are ' + ', '.join(MODELS)}")
