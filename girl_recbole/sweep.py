"""``girl sweep``: search settings by validation, then run the best ones on test with several seeds.

    search      trials: runs of one seed whose test part stays unread (test is null in their lines); the ``score`` of a
                line is valid_metric on validation, and nothing else chooses
    final       the best trial's settings, once with each of ``seeds``; only these read test

A sweep file is YAML; its keys, their meaning and defaults are in properties/sweep.yaml. RecBole's ``params_file`` (the
lines of its run_hyper.py) is the space, where the file's name does not end in .yaml or it is given as ``params_file``.

Lines of results.jsonl: those of run.py, and

    trial       its number; of a final run, that of the trial whose settings it has
    settings    the searched keys and their values
    score       valid_metric on validation
    final       whether it is a final run
    depends_on  hash of all that the numbers depend on: the package's source files that a run can import, the versions
                of RecBole and torch, the hashes of the data files, all settings that are not searched, space, search
                and seed. The number of trials is not part of it: a larger budget goes on
    error       what went wrong, in place of numbers

Early stopping within a training is RecBole's ``stopping_step``. Trials keep no checkpoints; those of the final runs are
in checkpoint_dir/sweep-HASH-sSEED/.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girl_recbole.config import check_keys, load_properties, properties_file
from girl_recbole.errors import ConfigError, suggest
from girl_recbole.search_space import Parameter, canonical, parse_params_file, parse_space
from girl_recbole.trials import best_of, final_runs, search
from girl_recbole.workers import Workers

__all__ = ["SweepConfig", "best_settings", "read_sweep", "sweep"]

_PACKAGE = Path(__file__).resolve().parent
_NOT_SEARCHED = ("seed", "split", "model", "dataset", "data_path", "results_file", "checkpoint_dir", "valid_metric",
                 "metrics", "eval_args", "predictions_folder")  # fmt: skip
_WITHOUT_EFFECT = ("results_file", "checkpoint_dir", "predictions_folder", "data_path", "show_progress", "state",
                   "device", "tensorboard", "log_wandb", "seed")  # fmt: skip
_NAMES_FILES = ("generator", "train_stages", "ftllm_base", "start_generator", "bigrec_lm", "bigrec_pooling")
_QUIET = {"show_progress": False, "state": "error", "tensorboard": False}


@dataclass(frozen=True)
class SweepConfig:
    """The keys of a sweep file; see properties/sweep.yaml. ``space`` is parsed: key -> Parameter."""

    model: str | list[str]
    dataset: str
    data_path: str
    split: str | None
    search: str
    trials: int | None
    seed: int
    seeds: list[int]
    space: dict[str, Parameter]
    fixed: dict[str, Any]
    config_files: list[str]
    engine: str
    jobs: int | None
    max_failures: int
    results_file: str


def read_sweep(
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    params_file: Path | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> SweepConfig:
    """A sweep file, a shipped one's name or RecBole's params_file, with ``given`` keys and ``fixed`` settings."""
    defaults = load_properties(properties_file("sweep.yaml"))
    file = _shipped(file) if file is not None else None
    if file is not None and Path(file).suffix not in (".yaml", ".yml"):
        if params_file is not None:
            raise ConfigError(f"{file}: a sweep file ends in .yaml; the parameters come from {params_file}.")
        file, params_file = None, file
    written = load_properties(Path(file)) if file is not None else {}
    check_keys(written, defaults, str(file))
    check_keys(given or {}, defaults, "girl sweep (its keys: girl keys sweep; settings of the runs: --set key=value)")
    values = {**defaults, **written, **(given or {})}
    if params_file is not None:
        values["space"] = parse_params_file(Path(params_file))
    _check_types(values)
    where = str(file or params_file or "sweep")
    files: dict[str, Any] = {}
    for path in values["config_files"]:
        files.update(load_properties(Path(path)))
    values["space"] = parse_space(values["space"], f"{where}: space")
    values["fixed"] = {**files, **values["fixed"], **(fixed or {})}
    if not values["model"]:
        raise ConfigError(f"{where}: no model; say which with model: NAME in the file, or --model=NAME.")
    return SweepConfig(**values)


def sweep(config: SweepConfig, *, workers: Workers | None = None, retry_failed: bool = False) -> list[dict[str, Any]]:
    """Search and test each model of ``config``; what is in results_file already is not done again.

    Returns a report a model: model, dataset, split, metric, trials {done, failed}, best {trial, score, settings},
    best_trials (up to five lines' number, score, settings), test (metric -> text of the mean and its 95 % interval over
    seeds), seeds, final (the lines of the final runs), results. ``workers`` are used instead of jobs and engine.
    """
    models = [config.model] if isinstance(config.model, str) else config.model
    plans = [
        _plan(model, config.dataset, config.split, config.space, config.search, config.seed, config.fixed,
              config.data_path)
        for model in models
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        workers = workers or stack.enter_context(Workers(config.jobs, config.engine))
        return [_one_model(plan, config, workers, retry_failed) for plan in plans]


def best_settings(
    model: str,
    dataset: str,
    split: str | None,
    space: Mapping[str, Any],
    *,
    trials: int | None,
    search: str = "random",
    seed: int = 2023,
    overrides: Mapping[str, Any] | None = None,
    results_file: str | Path = "results.jsonl",
    jobs: int | None = None,
    data_path: str | Path = "dataset",
    workers: Workers | None = None,
    max_failures: int = 5,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """The searched keys with the values of the best trial by validation; the test part is not read.

    Lay them over ``overrides`` for the final runs: ``{**overrides, **best_settings(...)}``. ``workers`` are processes
    to share between several searches; without them ``jobs`` are started for this one. Trials that are in
    ``results_file`` are not run again.
    """
    plan = _plan(model, dataset, split, parse_space(space), search, seed, overrides or {}, data_path)
    with contextlib.ExitStack() as stack:
        rows = _trials(plan, trials, results_file, workers or stack.enter_context(Workers(jobs)), max_failures,
                       retry_failed)  # fmt: skip
    return dict(best_of(rows, plan.bigger)["settings"])


def _shipped(file: Path) -> Path:
    """``file``, or where there is none a shipped one of this name."""
    shipped = properties_file(f"sweep/{Path(file).name}.yaml")
    if Path(file).exists():
        return Path(file)
    if str(file) == shipped.stem and shipped.exists():
        return shipped
    names = sorted(path.stem for path in properties_file("sweep.yaml").parent.glob("sweep/*.yaml"))
    raise ConfigError(f"{file}: no such sweep file{suggest(str(file), names)}; shipped: {', '.join(names)}.")


# ---------------------------------------------------------------------------------------------------------- one model


@dataclass(frozen=True)
class _Plan:
    model: str
    dataset: str
    split: str | None
    space: dict[str, Parameter]
    search: str
    seed: int
    overrides: dict[str, Any]
    metric: str
    bigger: bool
    depends_on: str

    def objective(self):
        return functools.partial(_run, self.model, self.dataset, self.overrides, self.metric, self.depends_on)

    def about(self) -> dict[str, Any]:
        return {"model": self.model, "dataset": self.dataset, "split": self.split}


def _plan(model, dataset, split, space, how, seed, fixed, data_path) -> _Plan:
    """Check all that can be checked before the first trial, and hash what the numbers depend on."""
    from recbole.data import create_dataset

    from girl_recbole import results, run
    from girl_recbole.recbole_config import check_known, check_model

    check_model(model)
    check_known(space, "space", [model])
    check_known(fixed, "fixed", [model])
    ours = {"seed": seed, "data_path": data_path, "split": split}
    other = [key for key, value in ours.items() if value is not None and str(fixed.get(key, value)) != str(value)]
    if other:
        raise ConfigError(f"fixed: {', '.join(other)}: a key of the sweep with another value; say it in one place.")
    wrong = [key for key in space if key in _NOT_SEARCHED]
    if wrong:
        raise ConfigError(f"space: {', '.join(wrong)}: cannot be searched; it says what is compared, or where.")
    both = [key for key in space if key in fixed]
    if both:
        raise ConfigError(f"{', '.join(both)}: both in space and in fixed; one of them is required.")
    overrides = {**_QUIET, **fixed, "seed": seed, "data_path": str(Path(data_path).resolve())}
    if split is not None:
        overrides["split"] = split
    config = run._config(model, dataset, [], {**overrides, "results_file": None})
    settings = _effective(config)
    check_keys(space, settings, f"space of {model}")  # RecBole's models read more keys than theirs without a word
    run._check_dataset(config)
    if not Path(config["data_path"]).exists():
        create_dataset(config)  # downloads it, once for all trials
    for folder in (Path("log") / model, Path(config["checkpoint_dir"])):
        folder.mkdir(parents=True, exist_ok=True)  # RecBole makes it if it is not there, and two processes would race
    overrides["checkpoint_dir"] = str(Path(config["checkpoint_dir"]).resolve())
    depends_on = {
        "code": _code_hash(model),
        "versions": _versions(),
        "data": results.named_hashes(_data_files(config, space)),
        "config": {key: value for key, value in settings.items() if key not in space},
        "space": {key: [parameter.kind, parameter.values] for key, parameter in space.items()},
        "search": how,
        "seed": seed,
    }
    digest = hashlib.sha256(canonical(results.plain(depends_on)).encode()).hexdigest()[:16]
    metric = config["valid_metric"].lower()
    return _Plan(model, dataset, split, space, how, seed, overrides, metric, config["valid_metric_bigger"], digest)


def _trials(plan: _Plan, trials, results_file, workers, max_failures: int, retry_failed: bool) -> list[dict[str, Any]]:
    return search(
        plan.space, plan.objective(), how=plan.search, trials=trials, seed=plan.seed, results_file=results_file,
        depends_on=plan.depends_on, workers=workers, bigger=plan.bigger, max_failures=max_failures,
        retry_failed=retry_failed, about=plan.about(),
    )  # fmt: skip


def _one_model(plan: _Plan, config: SweepConfig, workers: Workers, retry_failed: bool) -> dict[str, Any]:
    from girl_recbole.comparison import interval

    rows = _trials(plan, config.trials, config.results_file, workers, config.max_failures, retry_failed)
    best = best_of(rows, plan.bigger)
    finals = final_runs(
        best, plan.objective(), config.seeds, results_file=config.results_file, depends_on=plan.depends_on,
        workers=workers, retry_failed=retry_failed, about=plan.about(),
    )  # fmt: skip
    done = sorted(
        (row for row in rows if "error" not in row),
        key=lambda row: (-row["score"] if plan.bigger else row["score"], row["trial"]),
    )
    return {
        "model": plan.model,
        "dataset": plan.dataset,
        "split": best["split"],
        "metric": plan.metric,
        "trials": {"done": len(done), "failed": len(rows) - len(done)},
        "best": {"trial": best["trial"], "score": best["score"], "settings": best["settings"]},
        "best_trials": [{"trial": row["trial"], "score": row["score"], **row["settings"]} for row in done[:5]],
        "test": {name: interval([row["test"][name] for row in finals]) for name in _test_metrics(finals)},
        "seeds": list(config.seeds),
        "final": finals,
        "results": str(config.results_file),
    }


def _test_metrics(finals: list[dict[str, Any]]) -> list[str]:
    return list(finals[0]["test"]) if finals else []


def _run(model, dataset, overrides, metric, depends_on, settings, seed, final) -> dict[str, Any]:
    """One trial or final run, in a process of its own: the row of run_experiment and its score."""
    from girl_recbole.run import run_experiment

    overrides = {**overrides, **settings, "seed": seed, "results_file": None}
    if final:
        overrides["checkpoint_dir"] = str(Path(overrides["checkpoint_dir"]) / f"sweep-{depends_on}-s{seed}")
        row = run_experiment(model, dataset, overrides=overrides)
    else:
        with tempfile.TemporaryDirectory(prefix="girl-trial-") as folder:  # checkpoints are named by the second
            overrides["checkpoint_dir"] = folder
            row = {**run_experiment(model, dataset, overrides=overrides, read_test=False), "checkpoint": None}
    return {**row, "score": row["valid"].get(metric)}


# --------------------------------------------------------------------------------------------- what numbers depend on


def _effective(config) -> dict[str, Any]:
    """The settings of a run, without those of other stages and those that change no number."""
    from girl_recbole.plugin import MODELS
    from girl_recbole.recbole_config import _run_keys

    read = {*_run_keys()}
    if config["model"] in MODELS:  # FTLLM reads keys of the stages of the language model
        read |= load_properties(properties_file(f"model/{config['model']}.yaml")).keys()
    others = {key for key in load_properties(properties_file("overall.yaml")) if key not in read}
    return {
        key: value
        for key, value in config.final_config_dict.items()
        if key not in others and key not in _WITHOUT_EFFECT
    }


def _data_files(config, space: Mapping[str, Parameter]) -> list[Path]:
    """The files that a run reads, with any of the searched values of the keys that name files."""
    from girl_recbole.run import _data_files

    paths = dict.fromkeys(_data_files(config))
    for key in _NAMES_FILES:
        shipped = config[key]
        for number in range(space[key].size() if key in space else 0):
            config[key] = space[key].at(number)
            paths |= dict.fromkeys(_data_files(config))
        config[key] = shipped
    return list(paths)


def _versions() -> list[str]:
    import recbole
    import torch

    return [recbole.__version__, torch.__version__]


@functools.cache
def _code_hash(model: str) -> str:
    """Of the source files of this package that a run of ``model`` can import; a change of others changes no number."""
    from girl_recbole.plugin import MODELS

    found: set[Path] = set()
    waiting = ["girl_recbole.run", "girl_recbole.trainer", "girl_recbole.dataset", MODELS.get(model, "girl_recbole")]
    while waiting:
        path = _source(waiting.pop())
        if path is not None and path not in found:
            found.add(path)
            waiting += _imports(path)
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _source(module: str) -> Path | None:
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.partition(".")[0] == "girl_recbole"]


# ------------------------------------------------------------------------------------------------------ types of keys

_TYPES = {
    "model": (str, list, type(None)), "dataset": (str,), "data_path": (str, Path), "split": (str, type(None)),
    "search": (str,), "trials": (int, type(None)), "seed": (int,), "seeds": (list, tuple), "space": (dict,),
    "fixed": (dict,), "config_files": (list, tuple), "engine": (str,), "jobs": (int, type(None)),
    "max_failures": (int,), "results_file": (str, Path),
}  # fmt: skip


def _check_types(values: Mapping[str, Any]) -> None:
    for key, kinds in _TYPES.items():
        value = values[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ConfigError(f"{key}: {value!r} is a {type(value).__name__}; {names} is required.")
    _check_whole(values["seeds"], "seeds")
    _check_whole([values["seed"]], "seed")


def _check_whole(seeds: Sequence[Any], key: str) -> None:
    wrong = [seed for seed in seeds if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0]
    if wrong:
        raise ConfigError(f"{key}: {wrong[0]!r}; whole numbers of at least 0 are required.")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{key}: {list(seeds)}: a seed is there twice.")


assert {*_TYPES} == {field.name for field in dataclasses.fields(SweepConfig)}
