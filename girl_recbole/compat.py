"""What RecBole 1.2.0 needs to run on NumPy 2, current SciPy, PyTorch and Ray, on CPUs and under DDP; nothing else.

    where in RecBole              what fails                              what is done here
    Config.compatibility_settings np.float_, complex_, unicode_ are gone  the three aliases are added
    np.float and the like         only set when a Config is constructed   set when RecBole is imported
    LightGCN, NGCF, NCL, GCMC,    dok_matrix._update is gone              added: an update of its dict
      SpectralCF, KGIN, MCCLK
    torch.load of a checkpoint    weights-only loading reads protocol 2   saved with protocol 2, by a rename; the names
                                  and knows none of RecBole's classes     in each file are checked (below)
    tune.report(**result)         Ray wants one dict                      a dict
    hyper_tuning.py, RandomState  hyperopt wants a Generator              default_rng
    hyper_tuning.py, kd_dagfm.py  eval of a file's line, of a key         literals; classes of that module
    trainer.py, DDP on CPUs       device_ids and SyncBatchNorm want GPUs  left out (batch statistics are a rank's own)
    trainer.py, checkpoint names  runs of one second share a file         six random digits at the end
    trainer.py, DDP               each rank names the checkpoint by its   rank 0's name, and a barrier after saving
                                  own clock and may read half a file
    quick_start.py, spawning      workers do not import this package      they start in a function of this module
    trainer.py, SummaryWriter     a folder for every trainer              none where `tensorboard: False`
    data/utils.py, saved data     unpickles what lies there, which may    never read; asking for it is a ConfigError
                                  be stale, and may run code              (recbole_config.py)

Functions are replaced in the namespace of RecBole's modules only: ``torch.load`` itself stays as it is, safe.

**Safe loading.** A checkpoint is a pickle. Before one is loaded, the names it refers to are listed without running it;
each is resolved and allowed only if it is data: RecBole's and our classes of data sets, samplers, interactions, enums,
configurations and layers, NumPy arrays and SciPy matrices. Of RecBole's, our, SciPy's and PyTorch's classes a pickle
may fill an empty object but never call the constructor, which could make folders or open connections: the loader is
given a stand-in for the class that cannot be called. Everything else stays refused by PyTorch. A checkpoint that
RecBole wrote by itself (protocol 4) is refused with an error that names the way out: :func:`convert_checkpoint`.

This file imports the standard library only; it is loaded by ``import girl_recbole``.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import logging
import os
import pickle
import secrets
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["PATCHES", "convert_checkpoint", "load_checkpoint", "prepare", "save_checkpoint"]

_PROTOCOL = 2  # the only pickle protocol that PyTorch's weights-only loader reads
_STOCK: dict[str, Callable] = {}  # RecBole's own functions that are replaced in recbole.quick_start
_QUIET = r"recbole\."


def prepare() -> None:
    """Give NumPy and SciPy what RecBole uses of their past; called right before ``recbole`` is executed."""
    import numpy as np
    from scipy.sparse import dok_matrix

    for name, now in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if name not in vars(np):
            setattr(np, name, now)
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, data: self._dict.update(data)
    warnings.filterwarnings("ignore", category=FutureWarning, module=_QUIET)  # pandas: chained assignment


# ----------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike, **_: Any) -> None:
    """``torch.save`` in the protocol that safe loading reads, by way of a temporary file and a rename."""
    import torch

    from girl_recbole.atomic import atomic_write

    with atomic_write(Path(path), "wb") as file:
        torch.save(state, file, pickle_module=_view(pickle, Pickler=_Pickler), pickle_protocol=_PROTOCOL)


class _Pickler(pickle.Pickler):
    """Writes a defaultdict, which the safe loader cannot fill, as an ordinary dictionary."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is defaultdict:
            return OrderedDict, (), None, None, iter(value.items())
        return NotImplemented


def load_checkpoint(path: str | os.PathLike, map_location: Any = None, **_: Any) -> Any:
    """``torch.load(..., weights_only=True)`` of a checkpoint of RecBole's or ours; the module's docstring says how."""
    import torch

    with _allowed(path):
        return torch.load(path, map_location=map_location, weights_only=True)


def convert_checkpoint(path: str | os.PathLike) -> None:
    """Rewrite a checkpoint of stock RecBole so that it loads safely. It RUNS what is in the file: only if you trust it.

    ``python -m girl_recbole.compat FILE`` does the same.
    """
    import torch
    from recbole.config.configurator import Config as StockConfig

    from girl_recbole.recbole_config import Config

    state = torch.load(path, map_location="cpu", weights_only=False)
    if type(state.get("config")) is StockConfig:
        state["config"] = Config.from_stock(state["config"])
    save_checkpoint(state, path)


@contextlib.contextmanager
def _allowed(path: str | os.PathLike):
    """While it lasts, PyTorch's safe loader knows the harmless globals that the checkpoint at ``path`` refers to."""
    import torch

    from girl_recbole.errors import DataError

    if not os.path.exists(path):
        raise DataError(f"{path}: no such checkpoint.")
    if _pickle_protocol(path) not in (None, _PROTOCOL):
        raise DataError(
            f"{path}: written by RecBole without girl_recbole, in a form that cannot be loaded without running what is "
            f"in it. If you trust where it comes from, rewrite it once: `python -m girl_recbole.compat {path}`."
        )
    found = {}
    if zipfile.is_zipfile(path):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        found = {name: thing for name in names if (thing := _harmless(name)) is not None}
        if "numpy.dtype" in found:  # built from their names, "f8"
            import numpy.dtypes as dtypes

            found.update({f"numpy.dtypes.{name}": getattr(dtypes, name) for name in dtypes.__all__})
    known = []
    for name, thing in found.items():
        if _may_be_called(thing):
            known.append((thing, name))
        else:  # objects of the class may be filled, but no pickle can write the name under which it is known itself
            known += [(_uncallable(thing), name), (thing, f"{name}\n")]
    with torch.serialization.safe_globals(known):
        yield


def _may_be_called(thing: Any) -> bool:
    """Functions, NumPy's data types and scalars, bytes, and enums, where a call looks a member up."""
    import enum

    return not isinstance(thing, type) or thing.__module__.startswith("numpy") or issubclass(thing, bytes | enum.Enum)


class _NoCall(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError(f"a checkpoint may not call {cls.__name__}.")


def _uncallable(kind: type) -> type:
    """Stands for ``kind``: gives empty objects of it by ``__new__``, and runs no constructor."""
    return _NoCall(kind.__name__, (), {"__new__": lambda _: kind.__new__(kind)})


def _pickle_protocol(path: str | os.PathLike) -> int | None:
    """The protocol in the first two bytes of the archive's pickle, or None where there is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl") or name == "data.pkl":
                with archive.open(name) as file:
                    start = file.read(2)
                return start[1] if start[:1] == b"\x80" else 0
    return None


def _harmless(name: str) -> Any | None:
    """The object called ``name`` if unpickling it only builds data, else None."""
    module, _, attribute = name.rpartition(".")
    top = module.partition(".")[0]
    if name in ("logging.getLogger", "builtins.bytes", "__builtin__.bytes"):
        return logging.getLogger if top == "logging" else bytes
    if top not in ("recbole", "girl_recbole", "numpy", "scipy", "torch"):
        return None
    try:
        thing = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None
    if top == "numpy":
        import numpy as np

        if isinstance(thing, type):
            return thing if thing in (np.ndarray, np.matrix) or issubclass(thing, (np.dtype, np.generic)) else None
        return thing if module.endswith(".multiarray") and attribute in ("_reconstruct", "scalar") else None
    if not isinstance(thing, type):
        return None
    if top == "scipy":
        from scipy.sparse import sparray, spmatrix

        return thing if issubclass(thing, (spmatrix, sparray)) else None
    if top == "torch" and not module.startswith("torch.nn.modules."):
        return None
    return thing if issubclass(thing, _data_classes()) else None


@functools.cache
def _data_classes() -> tuple[type, ...]:
    from enum import Enum

    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction
    from recbole.sampler.sampler import AbstractSampler
    from torch.nn import Module

    from girl_recbole.recbole_config import Config

    return (Module, Dataset, AbstractSampler, Interaction, Enum, Config)


# ------------------------------------------------------------------------- functions that stand in for RecBole's own


def run_recboles(rank: int, *arguments: Any) -> None:
    """RecBole's worker of a spawned run; unpickling a reference to it imports this package in the worker."""
    _stock("run_recboles")(rank, *arguments)


def objective_function(config_dict=None, config_file_list=None, saved=True):
    """RecBole's objective of hyper-parameter tuning; unpickling a reference to it imports this package in a worker."""
    return _stock("objective_function")(config_dict, config_file_list, saved)


def load_data_and_model(model_file):
    """RecBole's ``load_data_and_model``, with the safe loading of this module."""
    with _allowed(model_file):
        return _stock("load_data_and_model")(model_file)


def _stock(name: str) -> Callable:
    importlib.import_module("recbole.quick_start.quick_start")
    return _STOCK[name]


def _literal(text: str) -> Any:
    """Stands in for ``eval``: a Python literal, or a SyntaxError, which RecBole's callers treat as "a plain string"."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, MemoryError, RecursionError, TypeError) as error:
        raise SyntaxError(f"not a literal: {text!r}") from error


# ------------------------------------------------------------------------------------------- patches, module by module


def _view(module: ModuleType, **instead: Any) -> ModuleType:
    """A module object that answers as ``module`` does, except for the names in ``instead``."""
    view = ModuleType(module.__name__, module.__doc__)
    view.__getattr__ = lambda name: getattr(module, name)
    vars(view).update(instead)
    return view


def _patch_configurator(module: ModuleType) -> None:
    module.Config.compatibility_settings(None)
    module.eval = _literal  # shadows the builtin, for code that uses RecBole's own class


def _patch_torch_user(module: ModuleType) -> None:
    module.torch = _view(module.torch, save=save_checkpoint, load=load_checkpoint)


def _patch_quick_start(module: ModuleType) -> None:
    package = sys.modules["recbole.quick_start"]
    for ours in (run_recboles, objective_function, load_data_and_model):
        name = ours.__name__
        _STOCK[name] = getattr(module, name)
        setattr(module, name, ours)
        if hasattr(package, name):
            setattr(package, name, ours)
    tune = module.tune
    module.tune = _view(tune, report=lambda **metrics: tune.report(metrics))


def _patch_hyper_tuning(module: ModuleType) -> None:
    module.np = _view(module.np, random=_view(module.np.random, RandomState=module.np.random.default_rng))
    module.eval = _literal


def _patch_data_utils(module: ModuleType) -> None:
    """No saved data set and no saved data loaders are looked for; in this module nothing else asks ``exists``."""
    module.os = _view(module.os, path=_view(module.os.path, exists=lambda _: False))
    module.load_split_dataloaders = lambda config: None


def _patch_kd_dagfm(module: ModuleType) -> None:
    def teacher(name: str) -> type:
        from girl_recbole.errors import ConfigError

        found = vars(module).get(name)
        if not isinstance(found, type) or found.__module__ != module.__name__:
            raise ConfigError(f"teacher: {name!r} is no network of {module.__name__}.")
        return found

    module.eval = teacher


def _patch_trainer(module: ModuleType) -> None:
    import torch
    import torch.distributed as dist

    _patch_torch_user(module)
    module.amp = _view(module.amp, GradScaler=functools.partial(torch.amp.GradScaler, "cuda"))
    get_tensorboard = module.get_tensorboard
    module.get_tensorboard = lambda logger: _LazyTensorboard(functools.partial(get_tensorboard, logger))

    stock_abstract_init = module.AbstractTrainer.__init__
    stock_init = module.Trainer.__init__
    stock_save = module.Trainer._save_checkpoint

    def _init_abstract(self, config, model):
        if config["single_spec"] or config["device"].type == "cuda":
            stock_abstract_init(self, config, model)
            return
        self.config, self.model = config, model
        self.distributed_model = module.DistributedDataParallel(model)

    def _init_trainer(self, config, model):
        stock_init(self, config, model)
        if config["tensorboard"] is False:
            self.tensorboard = _NoTensorboard()
        stem, ending = os.path.splitext(self.saved_model_file)
        self.saved_model_file = f"{stem}-{secrets.token_hex(3)}{ending}"
        if not config["single_spec"]:
            name = [self.saved_model_file]
            dist.broadcast_object_list(name, src=0, device=self.device)
            self.saved_model_file = name[0]

    def _save_checkpoint(self, *arguments, **keywords):
        stock_save(self, *arguments, **keywords)
        if not self.config["single_spec"]:
            dist.barrier()

    module.AbstractTrainer.__init__ = _init_abstract
    module.Trainer.__init__ = _init_trainer
    module.Trainer._save_checkpoint = _save_checkpoint


class _LazyTensorboard:
    """A SummaryWriter that makes its folder when something is written."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @functools.cached_property
    def _writer(self) -> Any:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


class _NoTensorboard:
    """Takes what RecBole's trainers write to TensorBoard, and drops it."""

    def add_scalar(self, *_: Any, **__: Any) -> None: ...

    def add_hparams(self, *_: Any, **__: Any) -> None: ...


PATCHES: dict[str, list[Callable[[ModuleType], None]]] = {
    "recbole.config.configurator": [_patch_configurator],
    "recbole.data.utils": [_patch_data_utils],
    "recbole.quick_start.quick_start": [_patch_quick_start],
    "recbole.trainer.hyper_tuning": [_patch_hyper_tuning],
    "recbole.trainer.trainer": [_patch_trainer],
    "recbole.model.context_aware_recommender.kd_dagfm": [_patch_torch_user, _patch_kd_dagfm],
    **{
        f"recbole.model.{module}": [_patch_torch_user]  # these read another model's checkpoint
        for module in (
            "general_recommender.convncf",
            "general_recommender.nais",
            "general_recommender.neumf",
            "general_recommender.ract",
            "sequential_recommender.s3rec",
        )
    },
}
"""Module of RecBole -> what is done to it right after it was executed."""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m girl_recbole.compat CHECKPOINT   (runs what is in the file: only if you trust it)")
    convert_checkpoint(sys.argv[1])
