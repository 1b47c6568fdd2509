"""Fairness of a trained model by counterfactual CVs: what changes when a CV tells another age, gender or school.

Counterfactuals   NAME.swaps, a table   user_id:token  attribute:token  from:token  to:token  text:text
                  one CV a row, the seeker's own but for the attribute; several rows a seeker and attribute are fine.
                  Without this file, a simulated market's are made from its own words (market/counterfactual.py).

For a test pair (u, j), p = P(match | u, j) by the model, and p' the same with the other CV. ``swap``, by attribute:

    mean_abs_change   mean of |p' - p| over pairs and counterfactuals         largest_change   the largest |p' - p|
    mean_change       mean of +-(p' - p), signed towards the greater value of the attribute (``towards``: male, the
                      higher age, tier 3), with a 95 % bootstrap interval over seekers (low, high)
    flips@5           share of counterfactuals with which the set of the seeker's 5 best of all jobs (less those of his
                      train and valid pairs) is another one
    told              share of the seekers of test whose CV tells the attribute: only they have a counterfactual

``directions`` has the same by from -> to, signed as p' - p; of an attribute with many values by up and down.

In ``swap`` the generated JD is kept: the model reads another CV beside the same JD. In ``regenerated`` the trained
generator writes a JD for either CV, with the same random numbers for both. Its row ``another draw`` is what a JD of the
same CV and other random numbers changes: a swap that changes no more than that changes nothing that a second run would
not.

How, for a model that reads texts (any on a GIRLDataset): the model is made again on a copy of the data, in a temporary
folder, that has more seekers: for each CV that is compared one who is in no training pair. The trained state is loaded
into it. So whatever a model is fitted to (vocabulary, idf, means of vectors) is what it was. Both sides of a comparison
are such seekers, who differ in the CV alone: a model that knows the seeker by his own history (BIGRec's ``cf``, the
rates of GradientBoosting) is asked about him as about a new one; ``as_new`` is the largest change of p by that, 0 but
for rounding for a model of texts. Weights that a model has a seeker (embeddings of ids) are those of the seeker. A
model that reads no text cannot change: its rows are 0 by construction. Columns of NAME.user stay as they are, and the
change is that of the CV alone.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from recbole.data.interaction import Interaction

from girl_recbole import llm
from girl_recbole.atomic import (
    DatasetFiles,
    atomic_write,
    check_ids,
    escape_text,
    iter_docs,
    iter_generated,
    iter_rows,
    read_generated,
    read_header,
    unescape_text,
    write_docs,
    write_generated,
)
from girl_recbole.config import make_config
from girl_recbole.embed import embed
from girl_recbole.engines.base import Asked
from girl_recbole.errors import ConfigError, DataError, some_of, suggest
from girl_recbole.generate import GenerateConfig, LocalEngine, cv_room, generator_folder, load_generator
from girl_recbole.manifest import file_hash, manifest_path, read_manifest, write_manifest
from girl_recbole.market.counterfactual import ATTRIBUTES, counterfactuals
from girl_recbole.scoring import score_matrix
from girl_recbole.texts import read_texts
from girl_recbole.vectors import vectors_folder

__all__ = ["Swap", "check_generator", "check_swaps", "read_swaps", "swap_changes", "write_swaps"]

_log = logging.getLogger(__name__)
_FOLDER = "girl-fairness-"
_TOP = 5
_REPLICATES = 1000
_VALUES = 5  # an attribute with more of them is reported by up and down
_COLUMNS = ("user_id", "attribute", "from", "to", "text")


@dataclass(frozen=True)
class Swap:
    """A seeker's CV with another value of one attribute."""

    user: str
    attribute: str
    before: str
    after: str
    text: str


def read_swaps(path: Path) -> Iterator[Swap]:
    """The rows of NAME.swaps, streaming."""
    names, types = read_header(path)
    if tuple(names) != _COLUMNS or types[-1] != "text":
        raise DataError(f"{path}: the header must be user_id:token, attribute:token, from:token, to:token, text:text.")
    for line, (user, attribute, before, after, text) in iter_rows(path, fields=len(_COLUMNS), ours=True):
        if not text.strip() or not attribute:
            raise DataError(f"{path}: line {line}: an attribute and a text are required.")
        yield Swap(user, attribute, before, after, unescape_text(text, path, line))


def write_swaps(path: Path, swaps: Sequence[Swap]) -> None:
    with atomic_write(path) as file:
        file.write("\t".join([*(f"{name}:token" for name in _COLUMNS[:-1]), "text:text"]) + "\n")
        for swap in swaps:
            check_ids((swap.user, swap.attribute, swap.before, swap.after), path, "user_id, attribute, from and to")
            text = escape_text(swap.text, path, swap.user)
            file.write(f"{swap.user}\t{swap.attribute}\t{swap.before}\t{swap.after}\t{text}\n")


def check_swaps(files: DatasetFiles, attributes: Sequence[str]) -> None:
    """Raise ``ConfigError`` for attributes that nothing says how to swap."""
    path = files.path("swaps")
    known = dict.fromkeys(swap.attribute for swap in read_swaps(path)) if path.exists() else ATTRIBUTES
    if not path.exists() and not files.path("truth.npz").exists():
        raise ConfigError(
            f"fairness_swaps: {list(attributes)} needs {path}, a table of CVs with another value of the attribute: "
            f"user_id, attribute, from, to, text (docs/evaluation.md)."
        )
    unknown = [name for name in attributes if name not in known]
    if unknown:
        raise ConfigError(
            f"fairness_swaps: {some_of(unknown)} cannot be swapped in {files.name}{suggest(unknown[0], known)}; "
            f"known: {', '.join(known)}."
        )


def _find_swaps(files: DatasetFiles, attributes: Sequence[str], users: set[str]) -> list[Swap]:
    path = files.path("swaps")
    if path.exists():
        return [swap for swap in read_swaps(path) if swap.attribute in attributes and swap.user in users]
    return [Swap(*row) for row in counterfactuals(files, attributes, users)]


# ------------------------------------------------------------------------------------------------------- the measure


@dataclass(frozen=True)
class _Compared:
    """One counterfactual: the texts of both sides."""

    swap: Swap
    jd: str
    base: _Reader
    other: _Reader


@dataclass(frozen=True)
class _Reader:
    """A seeker of the copied data: whom he stands for, and what he has."""

    user: str
    cv: str
    jds: tuple[str, ...]


def swap_changes(
    model,
    config,
    dataset,
    files: DatasetFiles,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    known: tuple[np.ndarray, np.ndarray],
    probability: Callable[[np.ndarray], np.ndarray],
    *,
    attributes: Sequence[str],
    most: int | None,
    regenerate: bool,
    saved_folder: str,
) -> dict[str, Any]:
    """``{"swap", "regenerated", "directions", "towards"}`` of a trained model, as the module's docstring says.

    ``dataset``: the training part. ``pairs``: seekers (their ids in the files), internal ids of jobs, and scores of the
    test pairs, (N,) each. ``known``: internal ids of pairs whose jobs are not ranked. ``probability``: of scores.
    ``most``: at most so many seekers an attribute, drawn by seed.
    """
    users, items, scores = pairs
    everyone = np.unique(users).tolist()
    swaps = _find_swaps(files, attributes, set(everyone))
    told = {name: len({swap.user for swap in swaps if swap.attribute == name}) / len(everyone) for name in attributes}
    swaps = _drawn(swaps, attributes, most, config["seed"])
    reads = hasattr(dataset, "texts")
    if reads and str(config["generated"]) == "shuffled":
        _log.warning("fairness_swaps: not measured with generated: shuffled, where more seekers shuffle other JDs.")
        return {"swap": [], "regenerated": [], "directions": [], "towards": {}}
    compared = _compared(files, config, swaps, regenerate and reads, saved_folder) if reads else []
    if not reads:
        blank = _Reader("", "", ())
        compared = [_Compared(swap, "kept", blank, blank) for swap in swaps]
    place = {user: np.flatnonzero(users == user) for user in {swap.user for swap in swaps}}
    if reads and compared:
        readers = list(dict.fromkeys(chain.from_iterable((one.base, one.other) for one in compared)))
        number = {reader: n for n, reader in enumerate(readers)}
        with _with_readers(model, config, dataset, files, readers) as (twin, data, first):
            rows = [place[reader.user] for reader in readers]
            asked = np.repeat(np.arange(len(readers)), [len(row) for row in rows])
            found = probability(_predict(twin, config, data, asked + first, items[np.concatenate(rows)]))
            of = np.split(found, np.cumsum([len(row) for row in rows])[:-1])
            best = _best_jobs(twin, config, data, first, readers, known)
        own = probability(scores)
        as_new = max(
            (np.abs(of[n] - own[rows[n]]).max() for n in {number[one.base] for one in compared if one.jd == "kept"}),
            default=0.0,
        )
        changes = [of[number[one.other]] - of[number[one.base]] for one in compared]
        flips = [best[number[one.other]] != best[number[one.base]] for one in compared]
    else:
        as_new = 0.0
        changes = [np.zeros(len(place[one.swap.user])) for one in compared]
        flips = [False] * len(compared)
    out: dict[str, Any] = {"swap": [], "regenerated": [], "directions": [], "towards": {}}
    for attribute, jd in dict.fromkeys((one.swap.attribute, one.jd) for one in compared):
        some = [n for n, one in enumerate(compared) if (one.swap.attribute, one.jd) == (attribute, jd)]
        mine = [compared[n].swap for n in some]

        def summary(which: Sequence[int], signs: Sequence[int]) -> dict[str, Any]:
            return _summary([changes[n] for n in which], [compared[n].swap.user for n in which], signs, config["seed"])

        entry = {"attribute": attribute} | summary(some, [_sign(swap) for swap in mine])
        entry |= {f"flips@{_TOP}": float(np.mean([flips[n] for n in some])), "as_new": float(as_new)}
        out["swap" if jd == "kept" else "regenerated"].append(entry)
        if attribute not in told:
            continue
        entry["told"] = told[attribute]
        out["towards"][attribute] = _towards(mine)
        ways = np.array(_ways(mine))
        for way in np.unique(ways).tolist():
            which = [n for n, one in zip(some, ways, strict=True) if one == way]
            out["directions"].append(
                {"attribute": attribute, "jd": jd, "direction": way} | summary(which, [1] * len(which))
            )
    return out


def _summary(changes: Sequence[np.ndarray], people: Sequence[str], signs: Sequence[int], seed: int) -> dict[str, Any]:
    """Counts, mean absolute and signed change with its interval, largest change."""
    every = np.concatenate(changes)
    signed = np.concatenate([s * change for s, change in zip(signs, changes, strict=True)])
    _, who = np.unique(np.repeat(people, [len(change) for change in changes]), return_inverse=True)
    total, count = np.bincount(who, weights=signed), np.bincount(who)
    rng, n = np.random.default_rng([seed, 3]), len(total)
    means = np.empty(_REPLICATES)
    for replicate in range(_REPLICATES):
        drawn = rng.integers(0, n, n)
        means[replicate] = total[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "seekers": n,
        "pairs": len(every),
        "mean_abs_change": float(np.abs(every).mean()),
        "mean_change": float(signed.mean()),
        "low": float(low),
        "high": float(high),
        "largest_change": float(np.abs(every).max()),
    }


def _drawn(swaps: list[Swap], attributes: Sequence[str], most: int | None, seed: int) -> list[Swap]:
    """The swaps of at most ``most`` seekers an attribute."""
    kept = []
    for attribute in attributes:
        mine = [swap for swap in swaps if swap.attribute == attribute]
        people = sorted({swap.user for swap in mine})
        if most is not None and len(people) > most:
            people = np.random.default_rng([seed, 2]).choice(people, most, replace=False).tolist()
        chosen = set(people)
        kept += [swap for swap in mine if swap.user in chosen]
    return kept


def _sign(swap: Swap) -> int:
    """1 towards the greater value: of numbers the larger one, else the later one of the alphabet."""
    try:
        return 1 if float(swap.after) > float(swap.before) else -1
    except ValueError:
        return 1 if swap.after > swap.before else -1


def _ways(swaps: Sequence[Swap]) -> list[str]:
    """What each does, ``female -> male``; ``up`` or ``down`` where there are many values."""
    if len({swap.after for swap in swaps}) > _VALUES:
        return ["up" if _sign(swap) > 0 else "down" for swap in swaps]
    return [f"{swap.before} -> {swap.after}" for swap in swaps]


def _towards(swaps: Sequence[Swap]) -> str:
    """What ``mean_change`` goes towards: the greatest value, or ``up`` where there are many."""
    greatest = swaps[0].after
    for swap in swaps:
        greatest = swap.after if _sign(Swap("", "", greatest, swap.after, "")) > 0 else greatest
    return greatest if len({swap.after for swap in swaps}) <= _VALUES else "up"


# ------------------------------------------------------------------------------------------------ texts of both sides


def _compared(files, config, swaps: Sequence[Swap], regenerate: bool, saved_folder: str) -> list[_Compared]:
    generator = config["generator"]
    users = list(dict.fromkeys(swap.user for swap in swaps))
    cvs = {user: texts[0] for user, texts in read_texts(files, "cv", users).items()}
    lost = [user for user in users if user not in cvs]
    if lost:
        raise DataError(f"{files.udoc}: no CV of {len(lost)} of {len(users)} seekers (first: {some_of(lost)}).")
    same = [swap.user for swap in swaps if swap.text == cvs[swap.user]]
    if same:
        raise DataError(f"{files.path('swaps')}: {len(same)} of {len(swaps)} texts are the seeker's own CV "
                        f"(first: {some_of(same)}); leave out what tells nothing of the attribute.")  # fmt: skip
    jds = {}
    if files.gdoc(generator).exists():
        jds = {user: tuple(texts) for user, texts in read_texts(files, f"gen.{generator}", users).items()}
    kept = {user: _Reader(user, cvs[user], jds.get(user, ())) for user in users}
    compared = [
        _Compared(swap, "kept", kept[swap.user], _Reader(swap.user, swap.text, jds.get(swap.user, ())))
        for swap in swaps
    ]
    if not regenerate:
        return compared
    if not jds:
        lacking = "has none of these seekers" if files.gdoc(generator).exists() else "is not there"
        raise ConfigError(f"fairness_regenerate: {files.gdoc(generator)} {lacking}, so there is no JD to write anew.")
    without = [user for user in users if user not in jds]
    if without:
        _log.warning("%s: no JD of %d of %d seekers (first: %s), for whom none is written anew.", files.gdoc(generator),
                     len(without), len(users), some_of(without))  # fmt: skip
        users = [user for user in users if user in jds]
        swaps = [swap for swap in swaps if swap.user in jds]
    write = _writer(files, generator, saved_folder)
    count = {user: len(jds[user]) for user in users}
    base = write([(cvs[user], cvs[user], count[user]) for user in users])
    draw = write([(cvs[user], cvs[user], count[user]) for user in users], seed=1)
    other = write([(cvs[swap.user], swap.text, count[swap.user]) for swap in swaps])
    start = {user: _Reader(user, cvs[user], texts) for user, texts in zip(users, base, strict=True)}
    compared += [
        _Compared(swap, "regenerated", start[swap.user], _Reader(swap.user, swap.text, texts))
        for swap, texts in zip(swaps, other, strict=True)
    ]
    return compared + [
        _Compared(
            Swap(user, "another draw", "one", "other", cvs[user]), "regenerated", start[user],
            _Reader(user, cvs[user], texts),
        )
        for user, texts in zip(users, draw, strict=True)
    ]  # fmt: skip


def _writer(files: DatasetFiles, generator: str, saved_folder: str) -> Callable[..., list[tuple[str, ...]]]:
    """What writes JDs as the generator wrote NAME.<generator>.gdoc: of (CV of the random numbers, CV to read, JDs)."""
    manifest = read_manifest(files.gdoc(generator)) or {}
    names = {field.name for field in fields(GenerateConfig)}
    recorded = {key: value for key, value in manifest.get("config", {}).items() if key in names}
    config = make_config(
        GenerateConfig, dataset=files.name, preset="generator/tiny", recorded=recorded,
        overrides={"saved_folder": saved_folder, "generator": generator},
    )  # fmt: skip
    if (
        config.gen_model
        or config.gen_engine != "local"
        or config.gen_best_of > 1
        or config.gen_as not in (None, generator)
    ):
        raise ConfigError(
            f"fairness_regenerate: {files.gdoc(generator).name} was not written by one draw of a trained generator in "
            f"this process; only such JDs can be written anew here."
        )
    folder = generator_folder(saved_folder, files.name, generator)
    lm, prompt = load_generator(files, generator, saved_folder, config.lm_dtype, config.prompt_language)
    if manifest.get("settings", {}).get("model", lm.fingerprint) != lm.fingerprint:
        raise DataError(
            f"{files.gdoc(generator)}: written by another generator than {folder} "
            f"now is, so the JDs of the two are no pair. Run `girl generate {files.name} "
            f"--generator={generator}`, and train the recommender again."
        )
    room = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
    engine = LocalEngine(lm, config.max_jd_tokens, config.temperature, config.top_p, config.gen_batch_size)

    def write(asked: Sequence[tuple[str, str, int]], seed: int = 0) -> list[tuple[str, ...]]:
        prompts = [
            Asked(
                prompt.encode(lm.tokenizer, cv, room)[0], "",
                [llm.sample_key(config.seed + seed, origin, i) for i in range(count)],
            )
            for origin, cv, count in asked
        ]  # fmt: skip
        return [tuple(one.text.strip() for one in row) for row in engine.complete(prompts)]

    return write


def check_generator(files: DatasetFiles, generator: str, saved_folder: str) -> None:
    """Raise ``DataError`` where there is no trained generator to write JDs anew."""
    folder = generator_folder(saved_folder, files.name, generator)
    if not folder.exists():
        raise DataError(
            f"{folder}: no such generator; fairness_regenerate writes JDs anew with it. Train it (`girl sft "
            f"{files.name} --generator={generator}`), or set fairness_regenerate: False."
        )


# -------------------------------------------------------------------------------------------------- the copied data


@contextlib.contextmanager
def _with_readers(model, config, dataset, files: DatasetFiles, readers: Sequence[_Reader]):
    """(the trained model, its training part, internal id of the first reader) on data that have ``readers`` too."""
    taken = set(dataset.field2id_token[dataset.uid_field].tolist())
    mark = "~"
    while any(mark in user for user in taken):
        mark += "~"
    names = [f"{reader.user}{mark}{n}" for n, reader in enumerate(readers)]
    with _private_folder() as folder:
        copied = DatasetFiles(folder / files.name, files.name)
        _write_copy(files, copied, config["generator"], readers, names)
        again = copy.deepcopy(config)
        again["data_path"], again["auto_embed"] = str(copied.folder), True
        data = _with_ids(dataset, again, copied, readers, names)
        with _quietly():
            if kinds := _embedded(files, copied, data.embed_config, config["generator"]):
                embed(copied, data.embed_config, kinds=kinds)
            twin = type(model)(again, data).to(config["device"])
        source = torch.as_tensor([dataset.field2token_id[dataset.uid_field][reader.user] for reader in readers])
        first = dataset.user_num
        twin.load_state_dict(_extended(model.state_dict(), twin.state_dict(), first, source))
        twin.load_other_parameter(model.other_parameter())
        yield twin.eval(), data, first


@contextlib.contextmanager
def _private_folder():
    """A temporary folder that nobody else can read. Those that killed processes left, with CVs in them, are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/.lock"):
        try:
            with FileLock(left, timeout=0):
                shutil.rmtree(left.parent, ignore_errors=True)
        except (Timeout, OSError):  # at work, or another user's
            continue
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder, FileLock(Path(folder) / ".lock"):
        yield Path(folder)


def _write_copy(files, copied, generator: str, readers: Sequence[_Reader], names: Sequence[str]) -> None:
    """``copied``: links to all files of a dataset, and in their place those that have ``readers``, named ``names``."""
    copied.folder.mkdir()
    for path in files.folder.rglob("*"):
        if path.is_file() and "progress" not in path.parts and not path.name.endswith(".lock"):
            target = copied.folder / path.relative_to(files.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path.resolve(), target)
    new = list(zip(names, readers, strict=True))
    write_docs(copied.udoc, chain(iter_docs(files.udoc), ((name, reader.cv) for name, reader in new)), "user")
    for path, target in ((files.inter, copied.inter), (files.path("user"), copied.path("user"))):
        if path.exists():
            _write_rows(path, target, new)
    path, target = files.gdoc(generator), copied.gdoc(generator)
    if not path.exists():
        return
    manifest = read_manifest(path)
    written = iter_generated(path) if manifest else read_generated(path).items()
    everyone = chain(written, ((name, reader.jds) for name, reader in new))
    write_generated(target, ((user, n, text) for user, texts in everyone for n, text in enumerate(texts)))
    if manifest:  # these JDs stand beside these CVs on purpose
        said = {"sha256": file_hash(target), "settings": manifest.get("settings", {})}
        manifest_path(target).unlink()
        write_manifest(target, "gdoc", config=manifest.get("config", {}), inputs=[copied.udoc], **said)


def _write_rows(path: Path, target: Path, new: Sequence[tuple[str, _Reader]]) -> None:
    """``path`` with a row for each new seeker: the first one of him whom he stands for."""
    column = read_header(path)[0].index("user_id")
    wanted, found = {reader.user for _, reader in new}, {}
    with open(path, encoding="utf-8", newline="") as file, atomic_write(target) as out:
        for number, line in enumerate(file):
            line = line.rstrip("\r\n")
            out.write(line + "\n")
            user = line.split("\t")[column] if number else None
            if user in wanted:
                found.setdefault(user, line)
        for name, reader in new:
            if reader.user in found:
                row = found[reader.user].split("\t")
                row[column] = name
                out.write("\t".join(row) + "\n")


def _with_ids(dataset, config, copied: DatasetFiles, readers: Sequence[_Reader], names: Sequence[str]):
    """The training part with more seekers, who are in no pair of it."""
    data, field = copy.copy(dataset), dataset.uid_field
    data.config, data.dataset_path = config, str(copied.folder)
    tokens = np.concatenate([dataset.field2id_token[field], np.asarray(names, object)])
    data.field2id_token = {**dataset.field2id_token, field: tokens}
    data.field2token_id = {**dataset.field2token_id, field: {token: n for n, token in enumerate(tokens.tolist())}}
    if dataset.user_feat is not None:
        rows = [dataset.field2token_id[field][reader.user] for reader in readers]
        feat = dataset.user_feat.interaction
        data.user_feat = Interaction({name: torch.cat([values, values[rows]]) for name, values in feat.items()})
        data.user_feat[field][dataset.user_num :] = torch.arange(dataset.user_num, len(tokens))
    return data


def _embedded(files, copied, config, generator: str) -> list[str]:
    """The kinds of text that changed and that have vectors."""
    folder = vectors_folder(files, config)
    return [kind for kind in ("cv", f"gen.{generator}") if manifest_path(folder / kind).exists()]


def _extended(state: dict, made: dict, users: int, source: torch.Tensor) -> dict:
    """``state``, where it has a row a seeker, with the rows of those whom the new ones stand for."""
    out = {}
    for name, values in state.items():
        wanted = made[name].shape if name in made else values.shape
        if values.shape != wanted and values.shape[:1] == (users,) and values.shape[1:] == wanted[1:]:
            values = torch.cat([values, values[source.to(values.device)]])
        out[name] = values
    return out


@torch.no_grad()
def _predict(model, config, dataset, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """(N,) what ``predict`` says of pairs of internal ids."""
    pairs = Interaction({dataset.uid_field: torch.as_tensor(users), dataset.iid_field: torch.as_tensor(items)})
    step = config["eval_batch_size"]
    parts = [
        model.predict(dataset.join(pairs[start : start + step]).to(config["device"])).reshape(-1).double().cpu()
        for start in range(0, len(pairs), step)
    ]
    return torch.cat(parts).numpy()


def _best_jobs(model, config, dataset, first: int, readers: Sequence[_Reader], known) -> list[frozenset[int]]:
    """The best jobs of each reader, less those that are known of him whom he stands for."""
    ids = dataset.field2token_id[dataset.uid_field]
    user, item = known
    order = np.argsort(user, kind="stable")
    user, item = user[order], item[order]
    best, step = [], 256
    for start in range(0, len(readers), step):
        some = np.arange(start, min(start + step, len(readers)))
        scores = score_matrix(model, config, dataset, some + first)
        for row, n in zip(scores, some, strict=True):
            own = ids[readers[n].user]
            low, high = np.searchsorted(user, [own, own + 1])
            row[item[low:high] - 1] = -np.inf
            best.append(frozenset(np.argsort(-row, kind="stable")[:_TOP].tolist()))
    return best


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No log of making the copy: it is that of the dataset once more."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
