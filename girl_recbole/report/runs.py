"""The rows of one or more results.jsonl as the report needs them: read, named, counted, and what is odd about them.

A row is what ``run_experiment`` returns (run.py), with or without what a benchmark adds: ``row`` (its label in the
tables), ``study`` ("table" where it is absent), ``varied`` (the setting that a study varies), ``kind``, ``tuning``.

label     ``row``, or else the model and its settings that are not the shipped defaults; settings that all such rows
          share are said once (:attr:`Runs.shared_settings`) and are in no label. In a study of settings that are no
          numbers the setting is part of the label
split     without the suffix of a redrawn split: ``cold-s3`` of seed 3 is a draw of ``cold``
axis      a study whose rows vary one number each is drawn against it: :attr:`Runs.axes`, study -> key
the same  study, dataset, split, label, seed and what is varied: the last such row wins. A line with ``error`` is a
          run that failed; it counts where no row of its job, or of its trial, is there
order     as asked for, else by ``kind`` as a benchmark has them (floor first, controls last), else that of the file
metrics   of test; where ``calibrated`` has one it stands for the metric before Platt scaling. Rows that did not read
          the test part (a search's trials) are counted and not shown
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from girl_recbole.config import load_properties, properties_file
from girl_recbole.errors import DataError, some_of

__all__ = [
    "KINDS",
    "Group",
    "Run",
    "Runs",
    "brief",
    "clean",
    "mapping",
    "number",
    "plural",
    "read_json",
    "read_runs",
    "seed_order",
]

KINDS = ("floor", "baseline", "base", "llm", "girl", "control")
"""The kinds of rows of a benchmark, in the order of its tables."""

_AXES = {"generation_number": "n_generated", "data_size": "train_share"}
"""Studies that are drawn against a number even where their rows do not say what is varied."""

_NO_MATTER = {
    *("seed", "split", "split_seed", "split_suffix", "dataset", "model", "data_path", "checkpoint_dir", "saved_folder"),
    *("results_file", "predictions_folder", "gpu_id", "use_gpu", "worker", "state", "show_progress", "reproducibility"),
    *("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path", "log_wandb", "wandb_project"),
    *("tensorboard", "nproc", "world_size", "local_rank", "device", "eval_batch_size", "metrics", "topk", "ece_bins"),
    *("metric_decimal_place", "loss_decimal_place", "valid_metric", "valid_metric_bigger", "eval_type", "single_spec"),
    *("benchmark_filename", "MODEL_TYPE", "MODEL_INPUT_TYPE", "split_ratio", "auto_embed"),
}
"""Settings that name a place, a machine or what is measured: they make no other model."""

_OTHER_STAGES = ("rank_", "group_", "fairness_", "judge_", "market_", "index_", "search_", "ray_", "api_", "benchmark_")
"""First letters of more of them."""


@dataclass(frozen=True)
class Run:
    """One row of a results file."""

    label: str
    dataset: str
    split: str
    drawn_split: str
    seed: str
    study: str
    metrics: Mapping[str, float]
    row: Mapping[str, Any]
    folder: Path

    @property
    def predictions(self) -> Path | None:
        """The file of predictions that the row names; None where it names none. It may be absent."""
        name = self.row.get("predictions")
        if not isinstance(name, str) or not name:
            return None
        places = [Path(name), self.folder / name, self.folder / "predictions" / Path(name).name]
        return next((place for place in places if place.is_file()), places[0])

    @property
    def config(self) -> Mapping[str, Any]:
        return mapping(self.row.get("config"))

    @property
    def kind(self) -> str:
        """What sort of system a benchmark's row is; "" where it does not say."""
        return str(self.row.get("kind") or "")

    def varied(self, key: str) -> float | None:
        """The number that ``key`` has in this run."""
        return number(mapping(self.row.get("varied")).get(key, self.config.get(key)))


Group = dict[str, list[Run]]
"""Label -> its runs by seed, in the order of the file."""


@dataclass
class Runs:
    """All runs of a report, in the order of their files."""

    runs: list[Run]
    duplicates: int = 0
    unread: int = 0
    failed: int = 0
    axes: dict[str, str] = field(default_factory=dict)
    shared_settings: dict[str, Any] = field(default_factory=dict)

    def studies(self) -> list[str]:
        """The studies that are tables of models, in the order of the file."""
        return list(dict.fromkeys(run.study for run in self.runs if run.study not in self.axes))

    def groups(self, study: str | None = None) -> dict[tuple[str, str], Group]:
        """(dataset, split) -> label -> runs, of one study, or of all that are tables of models together."""
        wanted = (study,) if study else tuple(self.studies())
        found: dict[tuple[str, str], Group] = {}
        for run in self.runs:
            if run.study in wanted:
                found.setdefault((run.dataset, run.split), {}).setdefault(run.label, []).append(run)
        for group in found.values():
            for runs in group.values():
                runs.sort(key=lambda run: seed_order(run.seed))
        return found

    @cached_property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(run.label for run in self.runs if run.study not in self.axes))

    def warnings(self) -> list[str]:
        """What a reader must know before comparing rows of this file."""
        return [text for text in self._warnings() if text]

    def _warnings(self) -> Iterator[str]:
        commits = Counter(str(run.row["commit"]) for run in self.runs if run.row.get("commit"))
        if len(commits) > 1:
            said = ", ".join(f"{commit[:12]} ({plural(count, 'row')})" for commit, count in commits.most_common(4))
            yield f"The rows come from {len(commits)} versions of the code: {said}."
        dirty = sum(count for commit, count in commits.items() if commit.endswith("-dirty"))
        if dirty:
            yield f"{dirty} of {plural(len(self.runs), 'row')} come from code with changes that no commit holds."
        machines = {json.dumps(run.row["machine"], sort_keys=True) for run in self.runs if run.row.get("machine")}
        if len(machines) > 1:
            yield f"The rows come from {len(machines)} kinds of machine: their times and memory do not compare."
        if self.duplicates:
            yield f"{plural(self.duplicates, 'row')} came again in the file (same row, split, seed): the last counts."
        if self.failed:
            yield f"{plural(self.failed, 'run')} failed and left no row: the file holds the error."
        if self.unread:
            yield f"{plural(self.unread, 'row')} did not read the test part (trials): they are not shown."
        for study in self.studies():
            for where, group in self.groups(study).items():
                yield from _missing_seeds(where, group)
                yield from _other_data(where, group)
                yield _missing_metrics(where, group)
                yield _above_oracle(where, group)
        absent = sum(run.predictions is not None and not run.predictions.exists() for run in self.runs)
        if absent:
            yield (
                f"{plural(absent, 'file')} of predictions that rows name cannot be found: those rows are in no paired "
                f"difference and no calibration plot."
            )


def read_runs(paths: Sequence[Path], order: Sequence[str] = ()) -> Runs:
    """The rows of ``paths``. Raises ``DataError`` for a file without rows and a line that is not one."""
    lines = [(row, Path(path).parent) for path in paths for row in _read_rows(Path(path))]
    rows = [(row, folder) for row, folder in lines if "error" not in row]
    failed = {_what(row) for row, _ in lines if "error" in row} - {_what(row) for row, _ in rows}
    axes = _axes([row for row, _ in rows])
    own = {id(row): _own_settings(row) for row, _ in rows if not isinstance(row.get("row"), str)}
    shared = _shared(list(own.values()))
    kept: dict[tuple, Run] = {}
    duplicates = unread = 0
    for row, folder in rows:
        if row.get("test") is None:
            unread += 1
            continue
        settings = {key: value for key, value in own.get(id(row), {}).items() if key not in shared}
        run = _run(row, folder, settings, axes)
        at = run.varied(axes[run.study]) if run.study in axes else None
        key = (run.study, run.dataset, run.drawn_split, run.label, run.seed, at)
        duplicates += key in kept
        kept.pop(key, None)  # the place of the last one, too
        kept[key] = run
    if not kept:
        count = plural(len(lines), "row")
        raise DataError(f"{some_of(paths)}: {count}, none with metrics of a test part; train with `run_recbole`.")
    places = {label: place for place, label in enumerate(order)}
    kinds = {kind: place for place, kind in enumerate(KINDS)}
    runs = sorted(kept.values(), key=lambda run: (places.get(run.label, len(places)), kinds.get(run.kind, len(kinds))))
    return Runs(runs, duplicates, unread, len(failed), axes, shared)


def _what(row: Mapping[str, Any]) -> str:
    """Which run a line is of, finished or failed: the job of a benchmark; the trial or final run of a sweep."""
    if "job" in row:
        return json.dumps(row["job"], sort_keys=True)
    if "depends_on" not in row:
        return json.dumps([row.get("timestamp"), row.get("error")])
    number = row.get("seed") if row.get("final") else row.get("trial")
    return json.dumps([row["depends_on"], row.get("final"), row.get("settings"), number], sort_keys=True)


def read_json(path: Path, what: str, kind: type = dict, key: str | None = None) -> Any:
    """The JSON object, which has ``key``, or the list of objects of one file; its text cleaned."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; {what} is required.")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON in UTF-8 ({error}); {what} is required.") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; {what} is required.") from None
    if not isinstance(value, kind) or (kind is list and not all(isinstance(one, dict) for one in value)):
        wanted = "JSON object" if kind is dict else "list of JSON objects"
        raise DataError(f"{path}: a {wanted} is required ({what}), not a {type(value).__name__}.")
    if key is not None and key not in value:
        raise DataError(f"{path}: has no {key!r}; {what} is required.")
    return clean(value)


def clean(value: Any) -> Any:
    """``value`` with text that can be shown: lone surrogates and control characters (but line ends, tabs) replaced."""
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode("utf-8")
        return "".join(c if (c >= " " and not "\x7f" <= c <= "\x9f") or c in "\n\t" else "\ufffd" for c in text)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else it is: null, NaN, text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def brief(value: Any) -> str:
    """A setting as a label or a table says it."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {brief(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(brief, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plural(count: int, noun: str) -> str:
    """``1 row``, ``1,200 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def split_draw(split: str, seed: Any) -> str:
    """``cold-s3`` of seed 3 -> ``cold``."""
    return split.removesuffix(f"-s{seed}") or split


def _read_rows(path: Path) -> list[dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `run_recbole` appends its rows to results.jsonl.")
    rows = []
    with open(path, "rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{path}: line {line} is not JSON ({error}); each line is one row of run_recbole. Remove the line "
                    f"if its run was killed."
                ) from None
            except RecursionError:
                raise DataError(f"{path}: line {line} is nested too deeply to be a row of run_recbole.") from None
            rows.append(clean(_checked(row, path, line)))
    if not rows:
        raise DataError(f"{path}: empty file; train with `run_recbole` first, which appends a row a model.")
    return rows


def _checked(row: Any, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {line}: a JSON object is required, not a {type(row).__name__}.")
    if "error" in row:
        return row
    absent = [key for key in ("model", "dataset", "split", "seed") if row.get(key) is None]
    if absent:
        raise DataError(f"{path}: line {line}: no {', '.join(absent)}; it is not a row of run_recbole.")
    for key in ("test", "calibrated", "config", "curve", "ranking", "fairness", "varied"):
        if row.get(key) is not None and not isinstance(row[key], dict):
            raise DataError(f"{path}: line {line}: {key} is a {type(row[key]).__name__}; a JSON object is required.")
    return row


def _axes(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Study -> the one number that all of its rows vary."""
    studies: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        studies[_study(row)].append(mapping(row.get("varied")))
    found = {}
    for study, every in studies.items():
        keys = {key for varied in every for key in varied}
        if study in _AXES:
            found[study] = _AXES[study]
        elif len(keys) == 1 and all(number(value) is not None for varied in every for value in varied.values()):
            found[study] = keys.pop()
    return found


def _study(row: Mapping[str, Any]) -> str:
    return str(row.get("study") or "table")


def _run(row: Mapping[str, Any], folder: Path, settings: Mapping[str, Any], axes: Mapping[str, str]) -> Run:
    label = row.get("row")
    if not isinstance(label, str):
        more = ", ".join(f"{key}={brief(value)}" for key, value in settings.items())
        label = f"{row['model']} ({more})" if more else str(row["model"])
    if mapping(row.get("varied")) and _study(row) not in axes:
        label += f" ({', '.join(f'{key}={brief(value)}' for key, value in row['varied'].items())})"
    split = str(row["split"])
    test = {name: number(value) for name, value in row["test"].items()}
    better = {name: number(value) for name, value in mapping(row.get("calibrated")).items()}
    metrics = {**test, **{name: value for name, value in better.items() if value is not None}}
    return Run(
        label=label, dataset=str(row["dataset"]), split=split_draw(split, row["seed"]), drawn_split=split,
        seed=str(row["seed"]), study=_study(row),
        metrics={name: value for name, value in metrics.items() if value is not None}, row=row, folder=folder,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ labels of plain rows


def _own_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a row that differ from the shipped defaults of its model."""
    config = mapping(row.get("config"))
    defaults = clean(_defaults(str(row["model"])))
    return {
        key: value
        for key, value in config.items()
        if key in defaults
        and key not in _NO_MATTER
        and not key.startswith(_OTHER_STAGES)
        and value != defaults[key]
        and not isinstance(value, dict)
    }


def _defaults(model: str) -> dict[str, Any]:
    """RecBole's defaults and ours of one model, of the property files alone: nothing of RecBole is imported."""
    recbole = importlib.util.find_spec("recbole")
    folders = [Path(place) / "properties" for place in recbole.submodule_search_locations] if recbole else []
    name = Path(f"{model}.yaml").name  # a model's name comes from a file: it names no other folder
    files = [folder / file for folder in folders for file in ("overall.yaml", f"model/{name}")]
    files += [properties_file("overall.yaml"), properties_file(f"model/{name}")]
    found: dict[str, Any] = {}
    for file in files:
        if file.is_file():
            found |= load_properties(file)
    return found


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all of several rows have alike."""
    if len(settings) < 2:
        return {}
    first, *others = settings
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def seed_order(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.lstrip("-").isdecimal() else (0, seed)


# -------------------------------------------------------------------------------------------------------- odd things


def _missing_seeds(where: tuple[str, str], group: Group) -> Iterator[str]:
    seeds = {label: {run.seed for run in runs} for label, runs in group.items()}
    everyone = set().union(*seeds.values())
    fewer = {label: everyone - some for label, some in seeds.items() if everyone - some}
    if fewer:
        said = some_of([f"{label} lacks {_listed(absent)}" for label, absent in fewer.items()])
        yield f"{_place(where)}: {len(fewer)} of {len(group)} rows lack seeds that others have: {said}."
    elif len(everyone) == 1:
        yield f"{_place(where)}: one seed only, so no interval and no word on chance."


def _other_data(where: tuple[str, str], group: Group) -> Iterator[str]:
    """Rows of one drawn split whose test files differ are not comparable."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in _all(group):
        for name, file_hash in mapping(run.row.get("data")).items():
            if name.endswith(".test.inter") or name.endswith(".train.inter"):
                found[run.drawn_split, name].add(str(file_hash))
    differing = [name for (_, name), hashes in found.items() if len(hashes) > 1]
    if differing:
        yield f"{_place(where)}: rows were trained on different contents of {some_of(differing)}: do not compare them."


def _missing_metrics(where: tuple[str, str], group: Group) -> str:
    every = Counter(name for run in _all(group) for name in run.metrics if name != "priorentropy")  # of labels alone
    total = sum(map(len, group.values()))
    fewer = [f"{name} ({total - count} of {total} rows)" for name, count in every.items() if count < total]
    return f"{_place(where)}: missing metrics, shown as empty cells: {some_of(fewer, 5)}." if fewer else ""


def _above_oracle(where: tuple[str, str], group: Group) -> str:
    above = set()
    for run in _all(group):
        best, auc = number(mapping(run.row.get("oracle")).get("auc")), run.metrics.get("auc")
        if best is not None and auc is not None and auc > best:
            above.add(run.label)
    if not above:
        return ""
    said = some_of(sorted(above))
    return f"{_place(where)}: AUC above the oracle's in {said}; no model can be better by more than chance."


def _all(group: Group) -> Iterable[Run]:
    return (run for runs in group.values() for run in runs)


def _place(where: tuple[str, str]) -> str:
    return f"{where[0]}, {where[1]}"


def _listed(seeds: Iterable[str]) -> str:
    seeds = sorted(seeds, key=seed_order)
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {some_of(seeds, 5)}"
