"""``girl benchmark NAME``: every system side by side on one dataset, tuned alike, with intervals, tests and a report.

What is run is said in a property file (properties/benchmark/table.yaml, or your own), in this order:

tuning       Each row is tried with its shipped settings and with settings drawn from its ``space``, ``trials`` in all
             (fewer where the space holds fewer; one where it is empty), on ``tuning_split`` with the first seed. The
             best validation metric decides; test is not read. A row that is ``like`` another (a control) takes the
             other's settings, so that nothing but what it is about differs.
table        The chosen settings on every split with every seed. Seed s draws the split anew (``girl split`` with
             split_seed s, files NAME.<split>-s<s>), the initialisation and the order of the batches.
evaluate     What is measured beside the metrics (ranking, groups, fairness: evaluation.py) for some rows and seeds.
studies      Rows of the table again with one setting varied: the number of generated JDs, the share of the training
             pairs, the pairs of other stages in train.
comparisons  Differences in AUC on the same test pairs (comparison.py), their p-values corrected together (Holm), a
             family being the comparisons of the table, or of one study, in one split.

Everything is in one folder, ``benchmark/NAME`` where none is named:

    trials.jsonl, runs.jsonl      a line for each model that was trained, as it was done: what is not done again
    predictions/                  probabilities of valid and test
    results.jsonl                 the rows of this plan, code and data, with ``row``, ``study``, ``varied``, ``tuning``
    comparisons.json, tables.md, report.html

A killed benchmark goes on where it stopped (jobs.py). Metrics of RecBole's own models are those of their calibrated
probabilities. Times are those of a process on one thread, beside others.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from girl_recbole import predictions, results, sft
from girl_recbole.atomic import PARTS, DatasetFiles, atomic_write, read_header, read_interactions
from girl_recbole.comparison import holm, paired_difference
from girl_recbole.config import load_properties, make_config, properties_file
from girl_recbole.embed import EmbedConfig, embed
from girl_recbole.encoder import encoder_folder, encoder_hash
from girl_recbole.errors import ConfigError, DataError, suggest_or_list
from girl_recbole.generate import generator_folder
from girl_recbole.jobs import Job, code_hash, name_of, read_lines, run_jobs
from girl_recbole.manifest import text_hash
from girl_recbole.plugin import MODELS
from girl_recbole.recbole_config import check_known, check_model
from girl_recbole.run import language_model_files
from girl_recbole.splits import SplitConfig, changed_inputs, split
from girl_recbole.workers import cores

__all__ = ["BenchmarkConfig", "Plan", "benchmark", "compare", "draw_settings", "read_plan"]

_log = logging.getLogger(__name__)
_PLAN = ("splits", "seeds", "trials", "tuning_split", "settings", "reference", "evaluate", "rows",
         "compare", "studies", "quick")  # fmt: skip
_STUDY = ("like", "values", "compare")
_EVALUATE = ("rows", "seeds", "settings")
_DECIDES = ("generator", "generated", "lexical_query", "boosting_generated", "bigrec_lm", "bigrec_pooling",
            "ftllm_base", "start_generator", "saved_folder")  # fmt: skip
_ROW = ("row", "model", "like", "kind", "fixed", "space")


@dataclass(frozen=True)
class BenchmarkConfig:
    benchmark: str
    benchmark_folder: str | None
    benchmark_jobs: int | None
    benchmark_only: list
    encoder: str
    seed: int


@dataclass(frozen=True)
class Row:
    """One system: its name in the table, its model, what is fixed, and what it is tuned over."""

    row: str
    model: str
    kind: str
    fixed: dict
    space: dict
    like: str | None


@dataclass(frozen=True)
class Plan:
    splits: list
    seeds: list
    trials: int
    tuning_split: str
    settings: dict
    reference: str | None
    evaluate: list
    rows: list[Row]
    compare: list
    studies: dict


def benchmark(files: DatasetFiles, config: BenchmarkConfig, *, quick: bool = False) -> dict[str, Any]:
    """Run what is missing of the plan, compare, and write tables and report; return what was done and where it lies.

    Raises ``ConfigError`` for a plan that cannot be read, ``DataError`` where models failed (the rest is written).
    """
    from girl_recbole.report import report

    started = time.monotonic()
    plan = read_plan(config.benchmark, quick=quick, only=config.benchmark_only)
    plan = _without_warm(files, _measurable(files, _with_texts(files, plan)))
    folder = Path(config.benchmark_folder or Path("benchmark") / files.name)
    folder.mkdir(parents=True, exist_ok=True)
    processes = config.benchmark_jobs or cores()
    _make_splits(files, plan)
    _make_generator(files, plan)
    said = [plan.settings, *(study["values"] for study in plan.studies.values() if study["like"])]
    said += [settings for row in plan.rows for settings in (row.fixed, row.space)]
    beyond = any("train_stages" in settings for settings in said)
    vectors = {"encoder": config.encoder, "n_generated": _most_samples(files, plan), "embed_all": beyond}
    embed(files, make_config(EmbedConfig, dataset=files.name, overrides=vectors), kinds=_kinds(files, plan))
    state = _state(files, plan, config)
    chosen = _tune(files, plan, config, folder, state, processes)
    jobs = _final_jobs(files, plan, config, folder, chosen)
    rows = _train(files, jobs, folder / "runs.jsonl", state, processes)
    with atomic_write(folder / "results.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    found = compare(rows, plan.compare)
    for name, study in plan.studies.items():
        found += compare(rows, study.get("compare", ()), name)
    with atomic_write(folder / "comparisons.json") as file:
        json.dump(results.plain(found), file, indent=1)
    if rows:
        order = [row.row for row in plan.rows]
        report(
            folder / "results.jsonl", folder / "report.html", markdown=folder / "tables.md", order=order,
            comparisons=folder / "comparisons.json" if found else None,
            reference=plan.reference if any(row["row"] == plan.reference for row in rows) else None,
        )  # fmt: skip
    if len(rows) < len(jobs):
        wanted = {name_of(job.key) for job in jobs} - {name_of(row["job"]) for row in rows}
        failed = {
            name_of(line["job"]): line for line in read_lines(folder / "runs.jsonl")
            if "error" in line and line.get("state") == state and name_of(line["job"]) in wanted
        }  # fmt: skip
        first = next(iter(failed.values()))
        raise DataError(
            f"{len(jobs) - len(rows)} of {len(jobs)} models failed (first: {first['job']}: {first['error']}); "
            f"the others are in {folder}. Run the same command again for those that are missing."
        )
    return {
        "models trained": len(rows),
        "report": str(folder / "report.html"),
        "tables": str(folder / "tables.md"),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


# ------------------------------------------------------------------------------------------------------------- the plan


def read_plan(name: str, *, quick: bool = False, only: Sequence[str] = ()) -> Plan:
    """The plan of the shipped file ``benchmark/<name>.yaml`` or of the file ``name``; ``only``: these rows alone."""
    path = properties_file(f"benchmark/{name}.yaml")
    path = path if path.exists() else Path(name)
    given = load_properties(path)
    _check_plan(given, path)
    short = given.pop("quick", None) or {} if quick else {}
    left_out, studies = short.pop("leave_out", []), short.pop("studies", None)
    given |= short
    rows: dict[str, Row] = {}
    for entry in given["rows"]:
        _check_keys(entry, _ROW, f"{path}: row {entry.get('row')!r}")
        like = rows[_known(entry["like"], rows, f"{path}: like")] if "like" in entry else None
        row = Row(
            row=entry["row"],
            model=entry["model"] if like is None else like.model,
            kind=entry.get("kind", "model"),
            fixed={**(like.fixed if like else {}), **entry.get("fixed", {})},
            space=like.space if like else entry.get("space") or {},
            like=like and (like.like or like.row),
        )
        settled = [key for key in entry.get("fixed", {}) if key in row.space]
        if settled:
            raise ConfigError(f"{path}: row {row.row!r}: {', '.join(settled)}: both fixed and searched.")
        if row.row in rows:
            raise ConfigError(f"{path}: two rows are named {row.row!r}.")
        rows[row.row] = row
    for name in (*only, *left_out):
        _known(name, rows, f"{path}: row")
    if not rows:
        raise ConfigError(f"{path}: no rows; at least one is required.")
    known_studies = (given.get("studies") or {}).values()
    named = [name for study in known_studies for name in study["like"]]
    named += [name for entry in given.get("evaluate") or () for name in entry["rows"]]
    for name in [*named, *([given["reference"]] if given.get("reference") else [])]:
        _known(name, rows, f"{path}: a row that is named")
    for row in rows.values():
        check_model(row.model)
        check_known({**row.fixed, **row.space}, f"{path}: row {row.row!r}", [row.model])
    for pair in itertools.chain(given.get("compare") or [], *(study.get("compare") or [] for study in known_studies)):
        for one in pair:
            _known(_row_of(one), rows, f"{path}: compare")
    kept = {name: row for name, row in rows.items() if name not in left_out and (not only or name in only)}
    kept = {row.like: rows[row.like] for row in kept.values() if row.like} | kept  # a control needs what it is like
    plan = Plan(
        splits=given["splits"],
        seeds=given["seeds"],
        trials=given["trials"],
        tuning_split=given["tuning_split"],
        settings=given.get("settings") or {},
        reference=given.get("reference"),
        evaluate=given.get("evaluate") or [],
        rows=list(rows.values()),
        compare=given.get("compare") or [],
        studies={
            name: study for name, study in (given.get("studies") or {}).items() if studies is None or name in studies
        },
    )
    return _without(plan, [name for name in rows if name not in kept])


def _check_plan(given: Mapping[str, Any], path: Path) -> None:
    """Raise ``ConfigError`` for keys that are unknown or missing, and for values of another kind."""
    _check_keys(given, _PLAN, str(path))
    short = given.get("quick") or {}
    _check_keys(short, (*_PLAN, "leave_out"), f"{path}: quick")
    required = {"splits": list, "seeds": list, "trials": int, "tuning_split": str, "rows": list}
    for key, kind in required.items():
        for value in (given.get(key), short.get(key, given.get(key))):
            if not isinstance(value, kind):
                raise ConfigError(f"{path}: {key}: {value!r}; a {kind.__name__} is required.")
    for trials in (given["trials"], short.get("trials", 1)):
        if trials < 1:
            raise ConfigError(f"{path}: trials: {trials}; at least 1 is required, the shipped settings.")
    for seeds in (given["seeds"], short.get("seeds", [])):
        if len(set(map(str, seeds))) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
            raise ConfigError(f"{path}: seeds: {seeds}; different whole numbers are required.")
    for name, study in (given.get("studies") or {}).items():
        _check_keys(study, _STUDY, f"{path}: study {name}")
        if not {"like", "values"} <= {*study}:
            raise ConfigError(f"{path}: study {name}: like (rows) and values are required.")
        for key, values in {"like": study["like"], **study["values"]}.items():
            if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                raise ConfigError(f"{path}: study {name}: {key}: {values}; different ones are required.")
    for entry in given.get("evaluate") or ():
        _check_keys(entry, _EVALUATE, f"{path}: evaluate")
    for entry in given["rows"]:
        if not isinstance(entry, dict) or "row" not in entry or not {"model", "like"} & {*entry}:
            raise ConfigError(f"{path}: rows: {entry!r}; a name (row) and a model, or like, are required.")
        if "like" in entry and entry.get("space"):
            raise ConfigError(f"{path}: row {entry['row']!r}: a row like another has its settings, so no space.")


def draw_settings(
    space: Mapping[str, Sequence[Any]], trials: int, seed: int, shipped: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The shipped settings ``{}`` and up to ``trials - 1`` different points of the grid ``space``, without ``shipped``.

    A drawn point whose values are those of ``shipped`` is left out and not replaced, as the first trial has them.
    """
    sizes = [len(values) for values in space.values()]
    count = int(np.prod(sizes, dtype=np.int64)) if space else 0
    drawn = np.random.default_rng(seed).permutation(count)[: trials - 1]
    points = [np.unravel_index(number, sizes) for number in drawn]
    drawn = [{key: values[at] for (key, values), at in zip(space.items(), point, strict=True)} for point in points]
    return [{}, *(point for point in drawn if point != {key: (shipped or {}).get(key) for key in point})]


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest_or_list(key, known)}")


def _known(name: str, rows: Mapping[str, Row], where: str) -> str:
    if name not in rows:
        raise ConfigError(f"{where}: no row {name!r}{suggest_or_list(name, rows, 'rows')}")
    return name


# ------------------------------------------------------------------------------------------------------------- the data


def _make_splits(files: DatasetFiles, plan: Plan) -> None:
    """The split files that are missing, or were cut from other interactions: NAME.<split>-s<seed>.*.inter."""
    for rule, seed, name in _drawn(plan):
        if not files.split(name, "test").exists() or changed_inputs(files, name):
            overrides = {"split": rule, "split_seed": seed, "split_suffix": f"s{seed}"}
            split(files, make_config(SplitConfig, dataset=files.name, overrides=overrides))


def _drawn(plan: Plan) -> list[tuple[str, int, str]]:
    """Rule, seed and name of each split that the plan reads."""
    rules = dict.fromkeys([*plan.splits, plan.tuning_split])
    return [(rule, seed, f"{rule}-s{seed}") for rule, seed in itertools.product(rules, plan.seeds)]


def _make_generator(files: DatasetFiles, plan: Plan) -> None:
    """Fine-tune the generator that FT-LLM starts from, where a row needs it and it is not there."""
    for folder in _starts(files, plan):
        if folder.name == "sft" and not folder.exists():
            print(f"FT-LLM starts from the fine-tuned generator: girl sft {files.name} (minutes)", flush=True)
            saved = {"saved_folder": str(folder.parent.parent)}
            sft.train(files, make_config(sft.SFTConfig, dataset=files.name, preset="generator/tiny", overrides=saved))


def _starts(files: DatasetFiles, plan: Plan) -> list[Path]:
    """The folders of the generators that FT-LLM starts from."""
    folders = []
    for row in plan.rows:
        settings = _shipped(files, row, plan) if row.model == "FTLLM" else {}
        if settings.get("ftllm_base") == "generator":
            folders.append(generator_folder(settings["saved_folder"], files.name, settings["start_generator"]))
    return list(dict.fromkeys(folders))


def _with_texts(files: DatasetFiles, plan: Plan) -> Plan:
    """The plan without rows that read the JDs of a generator that has none here, said in a warning."""
    needed = {}
    for row in plan.rows:  # of searched generators those that are named, though the shipped one is tried, too
        named = row.space.get("generator")
        needed[row.row] = [name for name in _generators(files, row, plan) if named is None or name in named]
    wanted = list(dict.fromkeys(itertools.chain.from_iterable(needed.values())))
    missing = [name for name in wanted if not files.gdoc(name).exists()]
    if wanted and missing == wanted:
        raise DataError(
            f"{files.gdoc(missing[0])}: no such file; rows of the benchmark read the JDs of {', '.join(missing)}. Run "
            f"`girl align {files.name}`, or name the other rows (--benchmark_only)."
        )
    left_out = [name for name, read in needed.items() if {*read} & {*missing}]
    left_out += [row.row for row in plan.rows if row.like in left_out and row.row not in left_out]
    if left_out:
        _log.warning("%s: no JDs of %s, so these rows are left out: %s. `girl align %s` writes them.", files.name,
                     ", ".join(missing), "; ".join(left_out), files.name)  # fmt: skip
    return _without(plan, left_out)


def _without(plan: Plan, left_out: Sequence[str]) -> Plan:
    kept = [row for row in plan.rows if row.row not in left_out]
    names = [row.row for row in kept]
    studies = {
        name: {**study, "like": [row for row in study["like"] if row in names]} for name, study in plan.studies.items()
    }
    pairs = [pair for pair in plan.compare if all(_row_of(one) in names for one in pair)]
    return replace(plan, rows=kept, compare=pairs, studies=studies)


def _row_of(named: str | Mapping[str, Any]) -> str:
    """The row that one side of a comparison names."""
    return named if isinstance(named, str) else named["row"]


def _label(named: str | Mapping[str, Any]) -> str:
    """How one side of a comparison is called: the row, and what is varied."""
    if isinstance(named, str):
        return named
    said = {key: ", ".join(value) or "none" if isinstance(value, list) else value for key, value in named.items()}
    return ", ".join([said.pop("row"), *(f"{key} {value}" for key, value in said.items())])


def _most_samples(files: DatasetFiles, plan: Plan) -> int:
    """How many JDs a seeker the plan reads at most, of those that are there."""
    names = [name for name in _all_generators(files, plan) if files.gdoc(name).exists()]
    studies = plan.studies.get("generation_number", {}).get("values", {})
    return min(max([1, *studies.get("n_generated", [1])]), max((_samples(files, name) for name in names), default=1))


def _measurable(files: DatasetFiles, plan: Plan) -> Plan:
    """The plan whose ``evaluate`` names only groups and swaps that this dataset can give; the others are logged."""
    path = files.path("user")
    columns = ["history", *(read_header(path)[0] if path.exists() else ())]
    swappable = files.path("swaps").exists() or files.path("truth.npz").exists()
    entries, lacking = [], []
    for entry in plan.evaluate:
        settings = dict(entry["settings"])
        groups, swaps = settings.get("group_by", []), settings.get("fairness_swaps", [])
        lacking += [name for name in groups if name not in columns] + [f"swaps of {x}" for x in swaps if not swappable]
        if groups:
            settings["group_by"] = [name for name in groups if name in columns]
        if swaps and not swappable:
            settings["fairness_swaps"] = []
        entries.append({**entry, "settings": settings})
    if lacking:
        _log.info("%s: no data for %s, which are left out of the evaluation.", files.name, ", ".join(lacking))
    return replace(plan, evaluate=entries)


def _without_warm(files: DatasetFiles, plan: Plan) -> Plan:
    """The plan without warm where no seeker has two matches: one in train would tell that his test pairs are none."""
    rules = [*plan.splits, plan.tuning_split]
    if "warm" not in rules or not files.inter.exists():
        return plan
    rows = read_interactions(files.inter)
    matched = rows[rows["label"] > 0.5].drop_duplicates(["user_id", "item_id"])["user_id"]
    if matched.duplicated().any():
        return plan
    splits = [rule for rule in plan.splits if rule != "warm"] or ["cold"]
    _log.warning("%s: no seeker has two matches, so that in the split warm a match in train would tell that his test "
                 "pairs are none; %s is used.", files.name, ", ".join(splits))  # fmt: skip
    return replace(plan, splits=splits, tuning_split=splits[0] if plan.tuning_split == "warm" else plan.tuning_split)


def _kinds(files: DatasetFiles, plan: Plan) -> list[str]:
    return ["cv", "jd", *(f"gen.{name}" for name in _all_generators(files, plan) if files.gdoc(name).exists())]


def _variants(files: DatasetFiles, row: Row, plan: Plan) -> list[dict[str, Any]]:
    """The settings of a row with every value, searched or studied, of the keys that decide which texts and language
    models it reads."""
    axes = {key: row.space[key] for key in _DECIDES if key in row.space}
    searched = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    searched += [{}] if axes else []  # the shipped values are tried, too
    studied = [
        {key: value} for study in plan.studies.values() if row.row in study["like"]
        for key, values in study["values"].items() if key in _DECIDES for value in values
    ]  # fmt: skip
    shipped = _shipped(files, row, plan)
    return [{**shipped, **one, **other} for one in searched for other in ({}, *studied)]


def _generators(files: DatasetFiles, row: Row, plan: Plan) -> list[str]:
    """The generators whose JDs a row reads; several where they are searched or studied."""
    read = [said["generator"] for said in _variants(files, row, plan) if _reads_jds(row.model, said)]
    return list(dict.fromkeys(read))


def _reads_jds(model: str, settings: Mapping[str, Any]) -> bool:
    if model in ("GIRLEnhancedMLP", "GIRLEnhancedDot", "BIGRec", "BIGRecMLP"):
        return settings.get("generated", "real") in ("real", "shuffled")
    return bool(settings.get("boosting_generated")) or settings.get("lexical_query", "cv") != "cv"


def _all_generators(files: DatasetFiles, plan: Plan) -> list[str]:
    return list(dict.fromkeys(name for row in plan.rows for name in _generators(files, row, plan)))


def _samples(files: DatasetFiles, generator: str) -> int:
    """How many JDs each seeker has in NAME.<generator>.gdoc."""
    with open(files.gdoc(generator), encoding="utf-8") as file:
        next(file)
        return 1 + max((int(line.split("\t", 2)[1]) for line in itertools.islice(file, 64)), default=0)


def _state(files: DatasetFiles, plan: Plan, config: BenchmarkConfig) -> str:
    """A hash of the code, of the versions of its libraries, of the encoder and of the data that the plan reads."""
    import recbole
    import torch

    read = [files.inter, files.udoc, files.idoc, *map(files.gdoc, _all_generators(files, plan)), files.oracle]
    read += [files.path(name) for name in ("user", "item", "swaps", "truth.npz")]
    read += [files.stage("sft"), files.stage("reward")]
    read += [files.split(name, part) for _, _, name in _drawn(plan) for part in PARTS]
    models = [
        [row.row, results.named_hashes(language_model_files(row.model, settings, files.name))]
        for row in plan.rows for settings in _variants(files, row, plan)
    ]  # fmt: skip
    encoder = encoder_hash(encoder_folder(config.encoder))
    depends_on = [recbole.__version__, torch.__version__, encoder, results.file_hashes(read), models]
    return code_hash() + "-" + text_hash(json.dumps(depends_on, sort_keys=True))[:16]


# ------------------------------------------------------------------------------------------------------------- the runs


def _tune(files, plan: Plan, config: BenchmarkConfig, folder: Path, state: str, processes: int) -> dict[str, dict]:
    """Row -> {trials, space, best, seconds}: the settings with the best validation metric; a control has its row's."""
    tried = [row for row in plan.rows if row.like is None]
    drawn = {row.row: draw_settings(row.space, plan.trials, config.seed, _shipped(files, row, plan)) for row in tried}
    rule, seed = plan.tuning_split, plan.seeds[0]
    common = _common(files, plan, config, folder, rule, seed)
    jobs = [
        Job(
            {"row": row.row, "split": rule, "seed": seed, "settings": settings, **_told(row, plan)},
            row.model, files.name, {**_labelled(row), **common, **row.fixed, **settings}, read_test=False,
        )
        for row in tried if len(drawn[row.row]) > 1 for settings in drawn[row.row]
    ]  # fmt: skip
    done = list(run_jobs(jobs, folder / "trials.jsonl", state, processes, _say("tried")).values())
    chosen = {}
    for row in tried:
        trials = [line for line in done if line["job"]["row"] == row.row]
        best = max(trials, key=_validated, default=None)
        if len(trials) < len(drawn[row.row]) > 1:
            _log.warning(
                "%s: %d of %d settings failed; %s.",
                row.row,
                len(drawn[row.row]) - len(trials),
                len(drawn[row.row]),
                "the best of the others is used" if best else "the shipped ones are used",
            )
        chosen[row.row] = {
            "trials": len(trials),
            "space": row.space,
            "best": best["job"]["settings"] if best else {},
            "seconds": sum(sum(line["time_s"].values()) for line in trials),
        }
    return chosen | {row.row: chosen[row.like] for row in plan.rows if row.like}


def _validated(line: Mapping[str, Any]) -> float:
    """The validation metric that chose the checkpoint; greater is better."""
    config = line["config"]
    metric = config["valid_metric"].lower()
    value = line["valid"].get(metric)
    if value is None:
        return -np.inf
    return value if config["valid_metric_bigger"] else -value


def _final_jobs(files, plan: Plan, config: BenchmarkConfig, folder: Path, chosen: Mapping[str, dict]) -> list[Job]:
    """The jobs of the table and of the studies."""
    by_name = {row.row: row for row in plan.rows}
    jobs = [
        _final(files, plan, config, folder, chosen, row, "table", {}, rule, seed)
        for row in plan.rows for rule in plan.splits for seed in plan.seeds
    ]  # fmt: skip
    for study, said in plan.studies.items():
        for name, rule, seed in itertools.product(said["like"], plan.splits, plan.seeds):
            for key, values in said["values"].items():
                for value in values:
                    row = by_name[name]
                    settings = {**_shipped(files, row, plan), **chosen[name]["best"]}
                    reads = key == "n_generated" and _reads_jds(row.model, settings)
                    if reads and value > _samples(files, settings["generator"]):
                        continue
                    jobs.append(_final(files, plan, config, folder, chosen, row, study, {key: value}, rule, seed))
    return sorted(jobs, key=lambda job: -job.more["tuning"]["seconds"])  # long ones first, so that no core waits


def _train(files, jobs: Sequence[Job], path: Path, state: str, processes: int) -> list[dict]:
    """The rows of ``jobs``. A study's job whose value is that of the table is a job of the table: its row is copied."""
    of_table = {_run_of(job): job for job in jobs if job.more["study"] == "table"}
    copies = [
        (job, of_table[_run_of(job)]) for job in jobs
        if job.more["study"] != "table" and _run_of(job) in of_table
        and _has(files, of_table[_run_of(job)], job.more["varied"])
    ]  # fmt: skip
    names = {id(job) for job, _ in copies}
    done = run_jobs([job for job in jobs if id(job) not in names], path, state, processes, _say("trained"))
    for job, same in copies:
        if name_of(same.key) in done:
            done[name_of(job.key)] = {**done[name_of(same.key)], "job": dict(job.key), **job.more}
    return list(done.values())


def _has(files: DatasetFiles, job: Job, settings: Mapping[str, Any]) -> bool:
    """Whether ``job`` runs with ``settings``, its own or the shipped ones."""
    known = {**_shipped_with(files, job.model), **job.overrides}
    return all(key in known and known[key] == value for key, value in settings.items())


def _run_of(job: Job) -> tuple[str, str, int]:
    return job.key["row"], job.key["split"], job.key["seed"]


def _final(files, plan, config, folder, chosen, row: Row, study: str, varied: dict, rule: str, seed: int) -> Job:
    key = {"study": study, "row": row.row, **varied, "split": rule, "seed": seed, **_told(row, plan)}
    key["settings"] = chosen[row.row]["best"]
    closer = _closer(plan, row, seed) if study == "table" else {}
    key |= {"evaluate": closer} if closer else {}
    overrides = {
        **_labelled(row), **_common(files, plan, config, folder, rule, seed), **row.fixed, **key["settings"],
        **varied, **closer, "predictions_folder": str(folder / "predictions"),
    }  # fmt: skip
    more = {"row": row.row, "study": study, "varied": varied, "kind": row.kind, "tuning": chosen[row.row]}
    return Job(key, row.model, files.name, overrides, more=more)


def _closer(plan: Plan, row: Row, seed: int) -> dict[str, Any]:
    """The settings of all entries of ``evaluate`` that speak of this row and seed."""
    closer: dict[str, Any] = {}
    for entry in plan.evaluate:
        if seed in entry["seeds"] and (not entry["rows"] or row.row in entry["rows"]):
            closer |= entry["settings"]
    return closer


def _common(files, plan: Plan, config: BenchmarkConfig, folder: Path, rule: str, seed: int) -> dict[str, Any]:
    return {
        "data_path": str(files.folder.parent), "split": f"{rule}-s{seed}", "seed": seed, "encoder": config.encoder,
        "checkpoint_dir": str(folder / "checkpoints"), **plan.settings,
    }  # fmt: skip


def _shipped(files: DatasetFiles, row: Row, plan: Plan) -> dict[str, Any]:
    """The settings of a row to which nothing drawn is added, of those that have shipped values."""
    return {**_shipped_with(files, row.model), **plan.settings, **row.fixed}


@functools.cache
def _shipped_with(files: DatasetFiles, model: str) -> Mapping[str, Any]:
    """The settings that ship with the package, the model and the dataset; later ones win. The files are read once."""
    paths = [properties_file(f"{name}.yaml") for name in ("overall", f"model/{model}", f"dataset/{files.name}")]
    return {key: value for path in paths if path.exists() for key, value in load_properties(path).items()}


def _labelled(row: Row) -> dict[str, Any]:
    """For a model of RecBole our settings for labelled pairs, which count by themselves on shipped datasets only."""
    path = properties_file(f"model/{row.model}.yaml")
    return load_properties(path) if row.model not in MODELS and path.exists() else {}


def _told(row: Row, plan: Plan) -> dict[str, Any]:
    return {"model": row.model, "fixed": {**plan.settings, **row.fixed}}


def _say(verb: str):
    def said(done: int, of: int, row: Mapping[str, Any]) -> None:
        key = row["job"]
        number = row.get("valid") if row.get("test") is None else row["test"]
        what = f"AUC {number['auc']:.4f}" if number else row.get("error", "")
        seconds = sum(row["time_s"].values()) if "time_s" in row else 0
        varied = "".join(f", {name} {value}" for name, value in (row.get("varied") or {}).items())
        which = f"{key['row']}{varied}, {key['split']} seed {key['seed']}"
        print(f"[{done}/{of}] {verb} {which}: {what} in {seconds:.0f} s", flush=True)

    return said


# ------------------------------------------------------------------------------------------------------ the comparisons


def compare(
    rows: Sequence[Mapping[str, Any]], pairs: Sequence[Sequence[str | Mapping[str, Any]]], study: str = "table"
) -> list[dict[str, Any]]:
    """For each split and pair (a, b): the difference in test AUC, its interval, p, and Holm's p.

    a, b: a row of the table by its name, or one of a study as ``{"row": name, key: value}``. Seeds that only one of the
    two has are left out. The family of Holm's correction is ``pairs`` in one split.
    """
    kept: dict[tuple[str, str], dict[int, dict]] = {}
    for row in rows:
        if row.get("predictions"):
            label = row["row"] if row["study"] == "table" else _label({"row": row["row"], **row["varied"]})
            kept.setdefault((row["job"]["split"], label), {})[row["seed"]] = row
    loaded: dict[str, dict] = {}

    def test(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        path = row["predictions"]
        if path not in loaded:
            loaded[path] = predictions.load(path)["test"]
        return loaded[path]

    found = []
    for rule in dict.fromkeys(key[0] for key in kept):
        family = []
        for a, b in ((_label(one), _label(two)) for one, two in pairs):
            one, two = kept.get((rule, a), {}), kept.get((rule, b), {})
            seeds = [seed for seed in one if seed in two]
            if seeds:
                try:
                    gap = paired_difference([test(one[seed]) for seed in seeds], [test(two[seed]) for seed in seeds])
                except DataError as error:
                    _log.warning("%s: %s is not compared with %s: %s", rule, a, b, error)
                    continue
                family.append({"study": study, "split": rule, "a": a, "b": b, **asdict(gap)})
        for entry, corrected in zip(family, holm([entry["p"] for entry in family]), strict=True):
            found.append({**entry, "p_holm": corrected})
    return found
