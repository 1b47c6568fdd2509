"""What is there of a dataset, stage by stage: done, stale, unfinished or missing, and the next command. Reads only.

    done        the manifest is there, and what it was made from is what lies there now
    stale       made from something else; the row says what has changed
    unfinished  a run was stopped; the command that began it goes on
    unknown     no manifest beside it: somebody's own file, or one that was cut short
    missing     not there; told of what the next stages need, and not of what is optional (reward model, alignment)

Stale is what the stages themselves refuse or make anew: a split of other pairs; a generator or reward model of another
stage file (changed texts alone are no reason to train again, and are told); JDs of other CVs, of other seekers than the
stages hold now, or of a generator that was trained anew; vectors of other texts. Files are compared by hash, each once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from girl_recbole.atomic import PARTS, STAGES, DatasetFiles, iter_generated
from girl_recbole.errors import DataError
from girl_recbole.manifest import cached_file_hash, read_manifest
from girl_recbole.seekers import wanted_seekers
from girl_recbole.shards import as_keys, key_of, rows_of, unfinished_folder
from girl_recbole.shipped import shipped_folder

__all__ = ["Row", "status"]

METHODS = ("sft", "reward", "ppo", "grpo", "rloo", "dpo")  # whose results go by the command's name unless told


@dataclass(frozen=True)
class Row:
    """One artefact. ``run``: the command that makes it, or makes it anew; empty where there is nothing to do."""

    stage: str
    what: str
    state: str
    detail: str = ""
    run: str = ""


def status(files: DatasetFiles, saved_folder: str) -> dict[str, Any]:
    """``{"stages": [a row each], "next": command}``. Raises ``DataError`` where there is no such dataset."""
    if not files.inter.exists():
        hint = f"Make one with `girl simulate {files.name}` or `girl prepare SOURCE {files.name}`."
        if shipped_folder(files.name):
            hint = f"It ships with the package: `girl stats {files.name}`, and every stage, puts it there."
        raise DataError(f"{files.inter}: no such dataset. {hint}")
    saved = Path(saved_folder) / files.name
    rows = [*_dataset(files), *_splits(files), *_models(files, saved), *_generated(files, saved), *_vectors(files)]
    waiting = [
        row.run for state in ("unfinished", "stale", "missing") for row in rows if row.state == state and row.run
    ]
    named = next((row.what for row in rows if row.stage == "generate" and row.state == "done"), "sft")
    generator = "" if named == "sft" else f" --generator={named}"
    train = f"run_recbole --model=GIRLEnhancedMLP --dataset={files.name}{generator}"
    return {"next": next(filter(None, waiting), train), "stages": [asdict(row) for row in rows]}


def _dataset(files: DatasetFiles) -> Iterator[Row]:
    manifest = read_manifest(files.inter)
    made = {"dataset": "simulated", "prepare": "prepared"}.get((manifest or {}).get("kind", ""), "")
    there = [stage for stage in STAGES if files.stage(stage).exists()]
    texts = [path.name for path in (files.udoc, files.idoc) if not path.exists()]
    detail = ", ".join(filter(None, [made, f"stages {', '.join(['recommendation', *there])}"]))
    if texts:
        yield Row("data", files.name, "missing", f"no {', '.join(texts)}", f"girl prepare SOURCE {files.name}")
    else:
        yield Row("data", files.name, "done" if manifest else "unknown", detail)


def _splits(files: DatasetFiles) -> Iterator[Row]:
    found = sorted(path.name[len(files.name) + 1 : -len(".train.inter")] for path in _glob(files, "train.inter"))
    for split in found:
        manifest = read_manifest(files.split(split, "train")) or {}
        config = manifest.get("config", {})
        run = f"girl split {files.name} --split={config.get('split', split)}"
        run += f" --split_suffix={config['split_suffix']}" if config.get("split_suffix") else ""
        absent = [part for part in PARTS if not files.split(split, part).exists()]
        changed = _changed(files, manifest)
        if absent:
            yield Row("split", split, "unfinished", f"no {', '.join(absent)}", run)
        elif not manifest:
            yield Row("split", split, "unknown", "no manifest")
        elif changed:
            yield Row("split", split, "stale", f"{', '.join(changed)} changed", run)
        else:
            yield Row("split", split, "done")
    if not found:
        yield Row("split", "warm", "missing", run=f"girl split {files.name} --split=warm")


def _models(files: DatasetFiles, saved: Path) -> Iterator[Row]:
    """Generators and reward models. ``sft`` is needed only where no JDs are there yet."""
    names = sorted(path.name for path in saved.glob("*") if (path / "config.json").exists()
                   or (path / "adapter_config.json").exists())  # fmt: skip
    stopped = {path.name.removesuffix(".checkpoints"): path for path in saved.glob("*.checkpoints")}
    order = {name: place for place, name in enumerate(METHODS)}
    for name in sorted({*names, *stopped}, key=lambda name: (order.get(name, len(order)), name)):
        manifest = read_manifest(saved / name) or {}
        stage = "reward" if manifest.get("kind") == "reward_model" else "generator"
        method = name if name in METHODS else "reward" if stage == "reward" else ""
        run = manifest.get("made_by") or (f"girl {method} {files.name}" if method else "")
        changed = _changed(files, manifest)
        refused = [file for file in changed if file.endswith(f"{'reward' if stage == 'reward' else 'sft'}.inter")]
        if name in stopped:
            yield Row(stage, name, "unfinished", f"{stopped[name]} holds its work", run)
        elif not manifest:
            yield Row(stage, name, "unknown", "no manifest", run)
        elif refused:
            yield Row(stage, name, "stale", f"{', '.join(refused)} changed", run)
        else:
            yield Row(stage, name, "done", f"{', '.join(changed)} changed since" if changed else "")
    if not names and not list(_glob(files, "gdoc")) and "sft" not in stopped:
        yield Row("generator", "sft", "missing", run=f"girl sft {files.name}")


def _generated(files: DatasetFiles, saved: Path) -> Iterator[Row]:
    names = {path.name[len(files.name) + 1 : -len(".gdoc")] for path in _glob(files, "gdoc")}
    stopped = {path.name[len(files.name) + 1 : -len(".gdoc.shards")] for path in _glob(files, "gdoc.shards")}
    for name in sorted(names | stopped, key=lambda name: (name != "sft", name)):
        path = files.gdoc(name)
        manifest = read_manifest(path) or {}
        run = _generate_command(files, name, manifest.get("config", {}))
        if name in stopped:
            shards = sorted(unfinished_folder(path).glob("*.jsonl"))
            yield Row("generate", name, "unfinished", f"{sum(map(rows_of, shards))} CVs in {len(shards)} shards", run)
        elif not manifest:
            yield Row("generate", name, "unknown", "no manifest: nothing says which CVs these JDs are for")
        else:
            wrong = _wrong_jds(files, path, manifest, saved)
            report = manifest["report"]
            detail = wrong or f"{report['jds']} JDs for {report['seekers']} seekers"
            yield Row("generate", name, "stale" if wrong else "done", detail, run if wrong else "")
    if not names | stopped:
        yield Row("generate", "sft", "missing", run=f"girl generate {files.name}")


def _wrong_jds(files: DatasetFiles, path: Path, manifest: dict[str, Any], saved: Path) -> str:
    """Why a finished file is not that of its generator and seekers now; "" where it is."""
    if manifest["sha256"] != cached_file_hash(path):
        return "changed after it was written"
    config, settings = manifest["config"], manifest["settings"]
    trained = read_manifest(saved / config["generator"]) or {}
    own = trained and not config.get("gen_model") and settings.get("engine") != "api"
    if own and trained.get("fingerprint") != settings["model"]:
        return f"written by other weights than {saved / config['generator']}"
    if changed := _changed(files, manifest):
        return f"{', '.join(changed)} changed; CVs that stay keep their JDs"
    held = np.sort(as_keys(key_of(user) for user, _ in iter_generated(path)))
    wanted = wanted_seekers(files, config["gen_stages"])
    lack, extra = len(np.setdiff1d(wanted, held)), len(np.setdiff1d(held, wanted))
    if lack or extra:
        return f"{lack} seekers of its stages have no JD, {extra} others have one"
    return ""


def _generate_command(files: DatasetFiles, name: str, config: dict[str, Any]) -> str:
    """The command that writes ``NAME.<name>.gdoc``, with what its manifest or its name tells."""
    of = re.fullmatch(r"(.+)-best-of-(\d+)", name)
    generator, best_of = (of[1], int(of[2])) if of else (name, 1)
    generator, best_of = config.get("generator", generator), config.get("gen_best_of", best_of)
    said = f"girl generate {files.name}" + (f" --generator={generator}" if generator != "sft" else "")
    for key, usual in (("gen_samples", 1), ("gen_as", None), ("gen_model", None), ("gen_engine", "local")):
        value = config.get(key, usual)
        said += f" --{key}={value}" if value != usual else ""
    return said + (f" --gen_best_of={best_of}" if best_of != 1 else "")


def _vectors(files: DatasetFiles) -> Iterator[Row]:
    found = False
    for folder in sorted(path for path in (files.folder / "vectors").glob("*") if path.is_dir()):
        for path in sorted(folder.glob("*.manifest.json")):
            kind = path.name.removesuffix(".manifest.json")
            manifest = read_manifest(folder / kind) or {}
            if manifest.get("kind") != "vectors":
                continue
            found = True
            source = {"cv": files.udoc, "jd": files.idoc}.get(kind, files.gdoc(kind.removeprefix("gen.")))
            encoder = manifest["config"]["encoder"]
            run = f"girl embed {files.name}" + (f" --encoder={encoder}" if encoder != "minilm" else "")
            what = f"{folder.name}/{kind}"
            if not source.exists():
                yield Row("embed", what, "stale", f"{source.name} is gone")
            elif cached_file_hash(source) != manifest["source_sha256"]:
                yield Row("embed", what, "stale", f"{source.name} changed; vectors of texts that stay are kept", run)
            else:
                yield Row("embed", what, "done", f"{manifest['rows']} vectors")
        if any((folder / "progress").glob("*")):
            yield Row(
                "embed", folder.name, "unfinished", f"{folder / 'progress'} holds its work", "the same girl embed"
            )
    if not found:
        yield Row("embed", "cv, jd, generated JDs", "missing", run=f"girl embed {files.name}")


# ------------------------------------------------------------------------------------------------------------ details


def _glob(files: DatasetFiles, suffix: str) -> Iterator[Path]:
    return (path for path in files.folder.glob(f"{files.name}.*.{suffix}") if not path.name.startswith("."))


def _changed(files: DatasetFiles, manifest: dict[str, Any]) -> list[str]:
    """The dataset's own files among the inputs of a manifest that are not what they were."""
    mine = {name: sha256 for name, sha256 in manifest.get("inputs", {}).items() if name.startswith(f"{files.name}.")}
    now = {name: cached_file_hash(files.folder / name) for name in mine if (files.folder / name).exists()}
    return [name for name, sha256 in mine.items() if now.get(name) != sha256]
