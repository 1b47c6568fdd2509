"""What makes RecBole know our models: a registry, and an import hook that waits until RecBole is imported.

``import girl_recbole`` calls :func:`install`, which puts one finder in front of ``sys.meta_path``. The finder

1. prepares NumPy and SciPy before ``recbole`` is executed (compat.py),
2. patches a few of RecBole's modules right after each is executed (compat.py and below), or at once where RecBole was
   imported before us,
3. answers ``recbole.model.general_recommender.<name>`` for the names in ``MODELS``; ``get_model`` looks there.

``create_dataset`` and ``get_trainer`` ask ``recbole.data.dataset`` and ``recbole.trainer`` for ``<Model>Dataset`` and
``<Model>Trainer``; a module-level ``__getattr__`` answers for our models, so that nothing of ours is loaded before it
is used. ``recbole.config.Config`` becomes our subclass (recbole_config.py): it finds our property files and never
evaluates a value. This file imports the standard library only.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

from girl_recbole import compat

__all__ = ["MODELS", "install"]

MODELS = {
    "GIRLBaseMLP": "girl_recbole.models.two_tower",
    "GIRLBaseDot": "girl_recbole.models.two_tower",
    "GIRLEnhancedMLP": "girl_recbole.models.two_tower",
    "GIRLEnhancedDot": "girl_recbole.models.two_tower",
    "APJFNN": "girl_recbole.models.apjfnn",
    "BIGRec": "girl_recbole.models.bigrec",
    "BIGRecMLP": "girl_recbole.models.bigrec",
    "BM25": "girl_recbole.models.lexical",
    "BPJFNN": "girl_recbole.models.bpjfnn",
    "FTLLM": "girl_recbole.models.ft_llm",
    "GradientBoosting": "girl_recbole.models.boosting",
    "PJFNN": "girl_recbole.models.pjfnn",
    "TFIDF": "girl_recbole.models.lexical",
}
"""Model name -> the module that defines the class of this name."""

_OWN_TRAINERS = {"FTLLM": "girl_recbole.models.ft_llm"}  # model name -> where its <Model>Trainer is

_MODEL_PACKAGE = "recbole.model.general_recommender"


def install() -> None:
    """Put the import hook in place, once; patch what is already imported of RecBole."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if "recbole" in sys.modules:
        compat.prepare()
        for name in _PATCHED:
            if name in sys.modules:
                _patch(sys.modules[name])


# ------------------------------------------------------------------------------------- what is patched in which module


def _use_our_config(module: ModuleType) -> None:
    importlib.import_module("girl_recbole.recbole_config")  # puts its class into recbole.config
    if module.__name__ != "recbole.config":
        module.Config = sys.modules["recbole.config"].Config


def _add_trainers(module: ModuleType) -> None:
    _answer(module, "Trainer", "girl_recbole.trainer", "GIRLTrainer")


def _add_datasets(module: ModuleType) -> None:
    _answer(module, "Dataset", "girl_recbole.dataset", "GIRLDataset")


def _answer(module: ModuleType, ending: str, source: str, name: str) -> None:
    """``getattr(module, "<one of MODELS>" + ending)`` gives ``source.name``, imported when asked for."""

    def __getattr__(wanted: str):
        model = wanted.removesuffix(ending)
        if ending == "Trainer" and model in _OWN_TRAINERS:
            return getattr(importlib.import_module(_OWN_TRAINERS[model]), wanted)
        if wanted.endswith(ending) and model in MODELS:
            return getattr(importlib.import_module(source), name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {wanted!r}")

    module.__getattr__ = __getattr__


def _add_metrics(module: ModuleType) -> None:
    importlib.import_module("girl_recbole.recbole_metrics")  # adds its metrics to this module's tables


def _collect_users(module: ModuleType) -> None:
    from girl_recbole.recbole_metrics import Collector

    module.Collector = Collector


def _check_splits(module: ModuleType) -> None:
    create_samplers = module.create_samplers

    def checked(config, dataset, built_datasets):
        from girl_recbole.trainer import check_splits, drop_mismatched

        drop_mismatched(config, built_datasets)
        check_splits(config, built_datasets)
        return create_samplers(config, dataset, built_datasets)

    module.create_samplers = checked  # data_preparation calls it between splitting and building the loaders


_OURS = {
    "recbole.config": [_use_our_config],
    "recbole.data.dataset": [_add_datasets],
    "recbole.data.utils": [_check_splits],
    "recbole.evaluator.register": [_add_metrics],
    "recbole.quick_start.quick_start": [_use_our_config],
    "recbole.trainer": [_add_trainers],
    "recbole.trainer.trainer": [_collect_users],
}
_PATCHED = tuple(dict.fromkeys([*compat.PATCHES, *_OURS]))


def _patch(module: ModuleType) -> None:
    for patch in [*compat.PATCHES.get(module.__name__, ()), *_OURS.get(module.__name__, ())]:
        patch(module)


# --------------------------------------------------------------------------------------------------- the import hook


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith("recbole"):
            return None
        package, _, last = fullname.rpartition(".")
        if package == _MODEL_PACKAGE:
            ours = [name for name in MODELS if name.lower() == last]
            if ours:
                return importlib.machinery.ModuleSpec(fullname, _ModelLoader(ours[0]))
        if fullname != "recbole" and fullname not in _PATCHED:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _PatchingLoader(spec.loader)
                    return spec
        return None


class _ModelLoader(importlib.abc.Loader):
    """Makes the module in which ``get_model`` looks for one of our classes."""

    def __init__(self, model: str) -> None:
        self._model = model

    def create_module(self, spec):
        return None

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, self._model, getattr(importlib.import_module(MODELS[self._model]), self._model))


class _PatchingLoader(importlib.abc.Loader):
    """The real loader, with our preparation before and our patches after."""

    def __init__(self, loader) -> None:
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        if module.__name__ == "recbole":
            compat.prepare()
        self._loader.exec_module(module)
        _patch(module)
