"""The command line ``girl``: parse, call one stage, print its report. Nothing else.

Every stage takes ``--key=value`` for the keys of its config, ``--config FILE`` for property files (may be repeated) and
``--data-path``. An error that we raise on purpose is one message and exit code 2; nothing given here runs as code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from girl_recbole import __version__
from girl_recbole.atomic import DatasetFiles
from girl_recbole.config import (
    check_keys,
    load_properties,
    make_config,
    overrides_by_key,
    parse_overrides,
    properties_file,
)
from girl_recbole.errors import ConfigError, GirlError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="GIRL, generative job recommendation, stage by stage. Train recommenders with run_recbole.",
)

_STAGES = {  # command: module, verb, config
    "simulate": ("girl_recbole.market", "simulate", "MarketConfig"),
    "prepare": ("girl_recbole.prepare", "prepare", "PrepareConfig"),
    "split": ("girl_recbole.splits", "split", "SplitConfig"),
    "sft": ("girl_recbole.sft", "train", "SFTConfig"),
    "reward": ("girl_recbole.reward", "train", "RewardConfig"),
    "score": ("girl_recbole.reward", "score", "ScoreConfig"),
    "ppo": ("girl_recbole.ppo", "train", "PPOConfig"),
    "grpo": ("girl_recbole.rivals", "grpo", "GRPOConfig"),
    "rloo": ("girl_recbole.rivals", "rloo", "RLOOConfig"),
    "dpo": ("girl_recbole.rivals", "dpo", "DPOConfig"),
    "generate": ("girl_recbole.generate", "generate", "GenerateConfig"),
    "embed": ("girl_recbole.embed", "embed", "EmbedConfig"),
    "index": ("girl_recbole.index", "build", "IndexConfig"),
    "search": ("girl_recbole.search", "search", "SearchConfig"),
    "evaluate": ("girl_recbole.evaluation", "evaluate_checkpoint", "EvaluateConfig"),
    "judge": ("girl_recbole.judge", "judge", "JudgeConfig"),
    "case": ("girl_recbole.case", "case", "CaseConfig"),
    "benchmark": ("girl_recbole.benchmark", "benchmark", "BenchmarkConfig"),
}
_STAGE = {"allow_extra_args": True, "ignore_unknown_options": True}
_Name = Annotated[str, typer.Argument(help="the dataset, a folder below the data path")]
_DataPath = Annotated[Path, typer.Option("--data-path", "--data_path", help="folder of the datasets")]
_Config = Annotated[list[Path], typer.Option(help="property file(s), YAML; later ones win")]
_Checkpoint = Annotated[str | None, typer.Option(help="of a trained GIRLBaseDot or GIRLEnhancedDot: saved/....pth")]
_Preset = Annotated[str, typer.Option(help="a shipped file of properties/generator/: tiny, qwen-0.5b-lora, ...")]


def _stage(command: Callable) -> Callable:
    """A command that takes properties, too: its help says where they are listed."""
    more = f"Settings are --key=value: `girl keys {command.__name__}` lists them."
    return app.command(context_settings=_STAGE, epilog=more)(command)


@_stage
def simulate(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="name of the new dataset")],
    seekers: Annotated[int | None, typer.Option(min=1, help="in the recommendation stage; the rest scales")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="in the recommendation stage; the rest scales")] = None,
    preset: Annotated[str | None, typer.Option(help="paper: the sizes of the paper's Table I")] = None,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006 - typer reads the default, nobody changes it
):
    """Simulate a recruiting market whose true match probabilities are known."""
    from girl_recbole.market import sizes_for

    sizes = sizes_for(seekers, jobs) if seekers or jobs else {}
    _run("simulate", context.args, name, data_path, config, preset=preset and f"market/{preset}", overrides=sizes)


@_stage
def prepare(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="resume-corpus, incruit, pjf or tables")],
    name: Annotated[str, typer.Argument(help="name of the new dataset")],
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Turn raw CVs, jobs and feedback into a dataset; say what was read, kept and dropped, and why."""
    _run("prepare", context.args, name, data_path, config, source=source)


@_stage
def split(context: typer.Context, name: _Name, data_path: _DataPath = Path("dataset"), config: _Config = []):  # noqa: B006
    """Cut the recommendation stage into train, valid and test: warm, cold or cold_strict."""
    _run("split", context.args, name, data_path, config)


@_stage
def sft(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Fine-tune a language model on matched CV-JD pairs: GIRL's first stage."""
    _run("sft", context.args, name, data_path, config, preset=f"generator/{preset}")


@_stage
def reward(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Train the reward model on recruiters' answers, matched against mismatched jobs: GIRL's second stage."""
    _run("reward", context.args, name, data_path, config, preset=f"generator/{preset}")


@_stage
def score(
    context: typer.Context,
    name: _Name,
    cv: Annotated[str, typer.Option(help="a text file, or - for standard input")],
    jd: Annotated[list[str], typer.Option(help="a text file, or -; may be repeated")],
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Ask the reward model how well JDs fit a CV: score (1 = one sd between a seeker's offers), probability."""
    _run("score", context.args, name, data_path, config, cv=cv, jds=jd)


@_stage
def ppo(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Align a generator with the reward by PPO on CVs alone: GIRL's third stage."""
    _run("ppo", context.args, name, data_path, config, preset=f"generator/{preset}")


@_stage
def grpo(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Align a generator with the same reward by TRL's GRPO: advantages within a group of JDs, no critic."""
    _run("grpo", context.args, name, data_path, config, preset=f"generator/{preset}")


@_stage
def rloo(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Align a generator with the same reward by TRL's RLOO: a leave-one-out baseline, no critic."""
    _run("rloo", context.args, name, data_path, config, preset=f"generator/{preset}")


@_stage
def dpo(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Align a generator by TRL's DPO, on recruiters' answers or on its own best and worst JDs by reward."""
    _run("dpo", context.args, name, data_path, config, preset=f"generator/{preset}")


@app.command(
    context_settings=_STAGE, epilog="Settings are --key=value: those of `girl keys` sft, reward, ppo and generate."
)
def align(
    context: typer.Context,
    name: _Name,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """All of GIRL in one command: sft, reward, ppo, then a JD for every CV; what is done already is not done again."""
    stages = ("sft", "reward", "ppo", "generate")
    given, known = overrides_by_key(context.args), {stage: set(_keys_of(stage)) for stage in stages}
    check_keys(given, set().union(*known.values()), "girl align (its keys are those of sft, reward, ppo and generate)")
    named = {"generator": "ppo"}  # the shipped files name the fine-tuned one; the user's win
    for path in config:
        named |= {key: value for key, value in load_properties(path).items() if key in ("generator", "start_generator")}
    aligned = given.pop("generator", f"--generator={named['generator']}")
    start = given.get("start_generator", f"={named.get('start_generator', 'sft')}").partition("=")[2]
    for stage in stages:
        arguments = [argument for key, argument in given.items() if key in known[stage]]
        arguments += {"sft": [f"--generator={start}"], "ppo": [aligned], "generate": [aligned]}.get(stage, [])
        print(f"--- girl {stage} {name}", flush=True)
        _run(stage, arguments, name, data_path, config, preset=f"generator/{preset}")


@_stage
def generate(
    context: typer.Context,
    name: _Name,
    n: Annotated[int | None, typer.Option(min=1, help="JDs a CV, short for --gen_samples")] = None,
    preset: _Preset = "tiny",
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Write n JDs for every CV with a trained generator, by the limits of its training; resumes where it stopped."""
    samples = {} if n is None else {"gen_samples": n}
    _run("generate", context.args, name, data_path, config, preset=f"generator/{preset}", overrides=samples)


@_stage
def embed(context: typer.Context, name: _Name, data_path: _DataPath = Path("dataset"), config: _Config = []):  # noqa: B006
    """Encode CVs, JDs and generated JDs, each distinct text once."""
    _run("embed", context.args, name, data_path, config)


@_stage
def index(
    context: typer.Context,
    name: _Name,
    checkpoint: _Checkpoint = None,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Index the vectors of all jobs for search: exactly where they are few, by FAISS where they are many."""
    _run("index", context.args, name, data_path, config, checkpoint=checkpoint)


@_stage
def search(
    context: typer.Context,
    name: _Name,
    seeker: Annotated[list[str], typer.Option(help="id of a seeker; may be repeated")] = [],  # noqa: B006
    everyone: Annotated[bool, typer.Option("--all", help="all seekers of NAME.inter, into --output")] = False,
    text: Annotated[str | None, typer.Option(help="jobs for this text instead")] = None,
    cv: Annotated[str | None, typer.Option(help="jobs for this text file, or - for standard input")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="write a JD for the text, search by it")] = False,
    by: Annotated[str, typer.Option(help="generated (JDs), cv, or model (with --checkpoint)")] = "generated",
    checkpoint: _Checkpoint = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="short for --search_top_k")] = None,
    exclude_train: Annotated[
        bool, typer.Option("--exclude-train", help="without the jobs of the seeker's pairs in the split's train part")
    ] = False,
    only: Annotated[str | None, typer.Option(help="an atomic file with a column item_id: the open jobs")] = None,
    output: Annotated[str | None, typer.Option(help="write user_id, item_id, rank, score to this file")] = None,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Find the jobs nearest to a seeker's generated JD, CV or model vector, or to a text."""
    _run(
        "search", context.args, name, data_path, config, overrides={} if top_k is None else {"search_top_k": top_k},
        seekers=seeker, everyone=everyone, text=text, cv=cv, generate=generate, by=by, checkpoint=checkpoint,
        exclude_train=exclude_train, only=only, output=output,
    )  # fmt: skip


@_stage
def benchmark(
    context: typer.Context,
    name: _Name,
    quick: Annotated[
        bool, typer.Option("--quick", help="a short form: fewer seeds, rows and studies, no tuning")
    ] = False,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Every system side by side: tuned alike, several seeds, intervals, tests, studies, and a report."""
    _run("benchmark", context.args, name, data_path, config, quick=quick)


@_stage
def judge(
    context: typer.Context,
    name: _Name,
    contestants: Annotated[
        list[str], typer.Argument(help="generators of NAME.*.gdoc; matched and random are real jobs")
    ],
    judges: Annotated[
        str, typer.Option("--judge", help="one or more of llm,reward,market,retrieval,format,readability")
    ],
    output: Annotated[str | None, typer.Option(help="the JSON file; judge-NAME.json where none is named")] = None,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Say whose JDs are better for the same CVs, judge by judge: Win, Tie, Lose, and how far the judges agree."""
    named = list(itertools.takewhile(lambda word: not word.startswith("--"), contestants))
    _run("judge", contestants[len(named) :] + context.args, name, data_path, config, contestants=named, judges=judges,
         output=output)  # fmt: skip


@_stage
def case(
    context: typer.Context,
    name: _Name,
    seeker: Annotated[str, typer.Option(help="id of the seeker")],
    generators: Annotated[str | None, typer.Option(help="of NAME.*.gdoc, with commas between; all if none")] = None,
    show_text: Annotated[bool, typer.Option("--show-text", help="show the CV as well: personal data")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="of a trained recommender that scores the jobs")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="short for --search_top_k")] = None,
    output: Annotated[str | None, typer.Option(help="the JSON file; case-NAME-ID.json where none is named")] = None,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """One seeker: the JDs that were written, what judges give them, the jobs that they find, and why."""
    _run(
        "case", context.args, name, data_path, config, overrides={} if top_k is None else {"search_top_k": top_k},
        seeker=seeker, generators=generators, show_text=show_text, checkpoint=checkpoint, output=output,
    )  # fmt: skip


@_stage
def evaluate(
    context: typer.Context,
    name: _Name,
    checkpoint: Annotated[str, typer.Option(help="of a trained recommender: saved/....pth")],
    output: Annotated[str | None, typer.Option(help="write all numbers to this JSON file")] = None,
    data_path: _DataPath = Path("dataset"),
    config: _Config = [],  # noqa: B006
):
    """Rank all jobs, compare groups of seekers, and swap attributes in CVs, with a recommender that is trained."""
    _run("evaluate", context.args, name, data_path, config, checkpoint=checkpoint, output=output)


@_stage
def sweep(
    context: typer.Context,
    file: Annotated[
        list[str] | None,
        typer.Argument(help="sweep file(s), YAML, or the name of a shipped one; or RecBole's params_file"),
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option("--params-file", "--params_file", help="the space, in RecBole's format")
    ] = None,
    settings: Annotated[list[str], typer.Option("--set", help="key=value of every run; may be repeated")] = [],  # noqa: B006
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials once more")] = False,
):
    """Search settings by validation in parallel processes, then run the best on test; resumes where it stopped."""
    from girl_recbole import sweep as sweeps

    named = list(itertools.takewhile(lambda word: not word.startswith("--"), file or []))
    given = parse_overrides((file or [])[len(named) :] + context.args)
    fixed = parse_overrides([f"--{setting}" for setting in settings])
    if not named and params_file is None:
        raise ConfigError("girl sweep: no sweep file; name one, or --params-file=FILE with --model=NAME.")
    configs = [
        sweeps.read_sweep(one and Path(one), given, params_file=params_file, fixed=fixed) for one in named or [None]
    ]
    for config in configs:
        for report in sweeps.sweep(config, retry_failed=retry_failed):
            _show({key: value for key, value in report.items() if key != "final"})


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="results.jsonl, one or more")],
    output: Annotated[Path, typer.Option(help="the page, one HTML file that loads nothing")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(help="write the tables here as well")] = None,
    latex: Annotated[Path | None, typer.Option(help="write the tables here as well, for booktabs")] = None,
    case: Annotated[Path | None, typer.Option(help="JSON of `girl case`: shows its texts")] = None,
    judge: Annotated[Path | None, typer.Option(help="JSON of `girl judge`")] = None,
    comparisons: Annotated[Path | None, typer.Option(help="comparisons.json of `girl benchmark`")] = None,
    reference: Annotated[str | None, typer.Option(help="label of the row that others are compared with")] = None,
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
):
    """Draw tables and charts of results.jsonl as one page, and as Markdown and LaTeX."""
    from girl_recbole.report import report as write

    _show(write(results, output, markdown=markdown, latex=latex, case=case, judge=judge, comparisons=comparisons,
                reference=reference, title=title))  # fmt: skip


@app.command()
def stats(name: _Name, data_path: _DataPath = Path("dataset")):
    """Describe a dataset: sizes, match rates, text lengths, vocabulary overlap, oracle, shared seekers."""
    from girl_recbole.stats import describe

    _show(describe(_files(name, data_path)))


@app.command()
def status(
    name: _Name,
    data_path: _DataPath = Path("dataset"),
    saved_folder: Annotated[
        str | None, typer.Option("--saved-folder", "--saved_folder", help="folder of trained generators")
    ] = None,
):
    """Say what is done, stale, unfinished or missing of a dataset, stage by stage, and the next command."""
    from girl_recbole.status import status as state_of

    saved = saved_folder or load_properties(properties_file("overall.yaml"))["saved_folder"]
    _show(state_of(_files(name, data_path, new=True), saved))


@app.command(context_settings=_STAGE)
def run(context: typer.Context):
    """Train and test a recommender: the same as the command run_recbole."""
    from girl_recbole.run import main as run_main

    raise typer.Exit(run_main(context.args))


@app.command()
def keys(stage: Annotated[str, typer.Argument(help=f"one of {', '.join(_STAGES)}, sweep")]):
    """List the --key=value properties of a stage: type, unit, meaning and default."""
    from girl_recbole.config import documented_keys

    if stage not in _STAGES and stage != "sweep":
        raise ConfigError(f"{stage!r} is no stage; the stages are {', '.join(_STAGES)}, sweep.")
    said = documented_keys("sweep.yaml" if stage == "sweep" else "overall.yaml")
    fields = [key for key, _, _ in said] if stage == "sweep" else _keys_of(stage)
    for key, default, meaning in said:
        if key in fields:
            print(f"--{key}={default}\n    {meaning}")


@app.command()
def version():
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point of the console script ``girl``."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "openai", "urllib3", "filelock", "faiss"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except GirlError as error:
        _fail(str(error))
    except OSError as error:
        where = error.filename or "system"
        _fail(f"{where}: {error.strerror or error}. What was finished is kept; run the same command again.")
    except KeyboardInterrupt:
        print("girl: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def _keys_of(stage: str) -> list[str]:
    """The keys of a stage's config."""
    module, _, kind = _STAGES[stage]
    return [field.name for field in dataclasses.fields(getattr(importlib.import_module(module), kind))]


def _run(stage: str, arguments: list[str], name: str, data_path: Path, config: list[Path],
         preset: str | None = None, overrides: dict[str, Any] | None = None, **more: Any) -> None:  # fmt: skip
    module_name, verb, kind = _STAGES[stage]
    module = importlib.import_module(module_name)
    files = _files(name, data_path, new=stage in ("simulate", "prepare"))
    if preset is not None and not properties_file(f"{preset}.yaml").exists():
        folder = properties_file("overall.yaml").parent / Path(preset).parent
        shipped = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ConfigError(f"--preset {Path(preset).name}: no such file; shipped: {', '.join(shipped)}.")
    fill = functools.partial(
        make_config, getattr(module, kind), dataset=name, preset=preset, files=config, overrides=overrides,
        arguments=arguments, where=f"girl {stage} (its keys: girl keys {stage})",
    )  # fmt: skip
    filled = fill()
    if hasattr(module, "trained_with"):
        filled = fill(recorded=module.trained_with(files, filled))
    _show(getattr(module, verb)(files, filled, **more))


def _files(name: str, data_path: Path, new: bool = False) -> DatasetFiles:
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise ConfigError(f"{name!r} cannot be the name of a dataset; use letters, digits, '-', '_' and '.'.")
    if new:
        return DatasetFiles(data_path / name, name)
    from girl_recbole.shipped import locate

    return locate(name, data_path)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 240  # a file has no edge that would cut numbers
    table = Table(show_header=False, box=None, pad_edge=False)
    lists = []
    for key, value in _flat(report):
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lists.append((key, value))
        else:
            table.add_row(key, _said(value))
    console.print(table)
    for key, entries in lists:
        columns = list(dict.fromkeys(name for entry in entries for name in entry))
        table = Table(
            *(Column(name, overflow="fold") for name in columns),
            title=key,
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for entry in entries:
            table.add_row(*(_said(entry.get(name, "")) for name in columns))
        console.print(table)


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(report: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in report.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows


def _fail(message: str) -> None:
    print(f"girl: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
