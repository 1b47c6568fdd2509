"""One seeker looked at closely: the JDs that were written, what they find, and why (as GIRL's case study, Figure 6).

For each generator, its first ``n_generated`` JDs of the seeker (NAME.<generator>.gdoc), and of each JD

    reward              normalised score by ``reward_model``; null where there is no such model
    true_probability    of a match of the seeker with the JD, by the market's truth; null where there is none
    skills              shared (named by the JD and by the CV), invented (by the JD alone), missing (by the CV alone)
    occupation, level   as the market's reader finds them in the text (market/text.py); null where it finds none

and the ``search_top_k`` jobs nearest to them, exactly as `girl search --seeker` finds them (search.py; it needs
`girl embed` and `girl index`). Of each job found

    score               cosine (search.py)
    model               the score of a trained recommender, where --checkpoint names one: for our models the calibrated
                        probability; null for a job that is not in its data
    true_probability    of the job's text, as above
    answer              what NAME.inter says of the pair: 1 matched, 0 mismatched, null: not there
    why                 sentences for a reader; skills, occupation and level hold the same as data

Skills are named by surface forms (rewards.py, ``faithfulness_terms``): a text names a skill if one of its forms occurs.
"Why" is what the texts share, which a reader can check; it is not how the encoder came to its cosine.

The JSON file and the screen have the CV's text only if --show-text asks for it. The JDs are shown always: they are
written for this person, and a generator can repeat what it read in a CV.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girl_recbole.atomic import DatasetFiles, atomic_write, iter_docs, read_interactions
from girl_recbole.errors import ConfigError, DataError, suggest
from girl_recbole.judge import read_generated_for
from girl_recbole.manifest import read_manifest
from girl_recbole.market.taxonomy import load_taxonomy
from girl_recbole.market.text import parse_job
from girl_recbole.prompts import parse_jd, words_of
from girl_recbole.results import code_version, file_hashes, plain
from girl_recbole.rewards import Vocabulary, read_vocabulary
from girl_recbole.search import SearchConfig, search
from girl_recbole.texts import read_texts

__all__ = ["CaseConfig", "case", "jd_skills", "job_skills", "predicted"]

LEVELS = ("trainee", "junior", "experienced", "senior", "lead")
_ANSWERS = {1.0: "matched", 0.0: "mismatched", None: ""}
_LISTED = 6  # skills that a sentence names


@dataclass(frozen=True)
class CaseConfig(SearchConfig):
    """Keys and meanings: properties/overall.yaml, as `girl search`, and reward_model and faithfulness_terms."""

    reward_model: str
    faithfulness_terms: str | None


def trained_with(files: DatasetFiles, config: CaseConfig) -> dict[str, Any]:
    """The dtype of the reward model, where there is one."""
    manifest = read_manifest(Path(config.saved_folder) / files.name / config.reward_model) or {}
    return {key: value for key, value in manifest.get("config", {}).items() if key == "lm_dtype"}


def case(
    files: DatasetFiles,
    config: CaseConfig,
    *,
    seeker: str,
    generators: str | Sequence[str] | None = None,
    show_text: bool = False,
    checkpoint: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Look at ``seeker``; write ``output`` (case-NAME-ID.json in the current folder) and return what is shown.

    ``generators``: names, or one string with commas; None: all that have a NAME.*.gdoc.
    """
    if config.n_generated < 1:
        raise ConfigError(f"n_generated: {config.n_generated} generated JDs a seeker; at least 1 is required.")
    cv = _cv(files, seeker)
    names = _generators(files, generators)
    jds = {name: read_generated_for(files, name, [seeker])[0][: config.n_generated] for name in names}
    found = {name: _search(files, config, name, seeker) for name in names}
    jobs = list(dict.fromkeys(row["job"] for rows in found.values() for row in rows))
    texts = {job: several[0] for job, several in read_texts(files, "jd", jobs).items()}
    models = predicted(files, checkpoint, seeker, jobs) if checkpoint else {}
    rewards = _rewards(files, config, cv, [jd for some in jds.values() for jd in some])
    chances = _chances(files, seeker, [*(jd for some in jds.values() for jd in some), *texts.values()])
    pairs = read_interactions(files.inter)
    own = pairs[pairs["user_id"] == seeker]
    answers = own.groupby("item_id")["label"].max().to_dict()
    vocabulary = read_vocabulary(config.faithfulness_terms)
    blocks = []
    for name in names:
        written = [
            {
                "sample": number, "title": parse_jd(jd).title, "words": len(words_of(jd)),
                "problem": parse_jd(jd).problem, "text": jd, "reward": rewards.get(jd),
                "true_probability": chances.get(jd), "skills": jd_skills(vocabulary, cv, jd), **_read(jd),
            }
            for number, jd in enumerate(jds[name])
        ]  # fmt: skip
        rows = []
        for row in found[name]:
            job, text = row["job"], texts[row["job"]]
            rows.append({
                "item_id": job, "rank": row["rank"], "score": row["score"], "title": row["title"],
                **({"model": models[job]} if checkpoint else {}),
                "true_probability": chances.get(text), "answer": answers.get(job),
                **_why(vocabulary, cv, jds[name], text),
            })  # fmt: skip
        blocks.append({
            "generator": name, "jds": written,
            "reward": _mean([one["reward"] for one in written]),
            "true_probability": _mean([one["true_probability"] for one in written]),
            "found": rows,
        })  # fmt: skip
    record = {
        "dataset": files.name,
        "seeker": seeker,
        **({"cv": cv} if show_text else {}),
        "cv_words": len(words_of(cv)),
        "cv_occupation": _read(cv)["occupation"],
        "generators": blocks,
        "checkpoint": checkpoint,
        "config": dataclasses.asdict(config),
        "inputs": file_hashes([files.inter, files.udoc, files.idoc, *map(files.gdoc, names)]),
        "commit": code_version(),
    }
    plain_id = re.sub(r"[^\w.-]", "_", seeker)
    path = Path(output or f"case-{files.name}-{plain_id}.json")
    with atomic_write(path) as file:
        json.dump(plain(record), file, indent=1, ensure_ascii=False)
        file.write("\n")
    return _shown(record, path)


# ------------------------------------------------------------------------------------------------- pure functions


def jd_skills(vocabulary: Vocabulary, cv: str, jd: str) -> dict[str, list[str]]:
    """shared: skills that JD and CV name; invented: the JD alone; missing: the CV alone."""
    of_cv, of_jd = _named(vocabulary, cv), _named(vocabulary, jd)
    return {
        "shared": _names(vocabulary, of_jd, within=of_cv),
        "invented": _names(vocabulary, of_jd, without=of_cv),
        "missing": _names(vocabulary, of_cv, without=of_jd),
    }


def job_skills(vocabulary: Vocabulary, cv: str, jd: str, job: str) -> dict[str, list[str]]:
    """The skills that a job names: in_both the JD and the CV, in_jd alone, in_cv alone, in_neither."""
    of_cv, of_jd, of_job = (_named(vocabulary, text) for text in (cv, jd, job))
    both = [skills for skills in of_job if not skills.isdisjoint(_all(of_cv)) and not skills.isdisjoint(_all(of_jd))]
    return {
        "in_both": _names(vocabulary, set(both)),
        "in_jd": _names(vocabulary, of_job, within=of_jd, without=of_cv),
        "in_cv": _names(vocabulary, of_job, within=of_cv, without=of_jd),
        "in_neither": _names(vocabulary, of_job, without=of_cv | of_jd),
    }


_Skills = set[frozenset[int]]


def _named(vocabulary: Vocabulary, text: str) -> _Skills:
    return vocabulary.mentions(text)


def _all(named: _Skills) -> frozenset[int]:
    return frozenset().union(*named)


def _names(
    vocabulary: Vocabulary, named: _Skills, within: _Skills | None = None, without: _Skills | None = None
) -> list[str]:
    """Those of ``named`` that ``within`` names and ``without`` does not, each by its first surface form, sorted."""
    kept = [
        skills
        for skills in named
        if (within is None or not skills.isdisjoint(_all(within)))
        and (without is None or skills.isdisjoint(_all(without)))
    ]
    return sorted({vocabulary.skills[min(skills)][0] for skills in kept})


def _read(text: str) -> dict[str, str | None]:
    """Occupation and level that the market's reader finds."""
    job = parse_job(text)
    if job is None:
        return {"occupation": None, "level": None}
    return {
        "occupation": load_taxonomy().occupations[int(job.occupation[0])].title, "level": LEVELS[int(job.level[0])]
    }  # fmt: skip


def _family(title: str | None) -> int | None:
    return next((one.family for one in load_taxonomy().occupations if one.title == title), None)


def _why(vocabulary: Vocabulary, cv: str, jds: Sequence[str], job: str) -> dict[str, Any]:
    """skills, occupation and level of a job beside those of the JDs that found it, and sentences of them."""
    skills = job_skills(vocabulary, cv, "\n".join(jds), job)
    asked, wanted = _read(job), [_read(jd) for jd in jds]
    total = sum(map(len, skills.values()))
    why = [f"the job names {total} known skills"]
    for key, said in (
        ("in_both", "in the generated JD and in the CV"), ("in_jd", "in the generated JD, not in the CV"),
        ("in_cv", "in the CV, not in the generated JD"), ("in_neither", "in neither"),
    ):  # fmt: skip
        if skills[key]:
            why.append(f"{len(skills[key])} {said}: {_list(skills[key])}")
    occupations = [one["occupation"] for one in wanted if one["occupation"]]
    same = family = None
    if asked["occupation"] and occupations:
        same = asked["occupation"] in occupations
        family = _family(asked["occupation"]) in map(_family, occupations)
        if same:
            why.append(f"occupation: {asked['occupation']}, as in the generated JD")
        else:
            kin = "same family" if family else "another family"
            others = _list(list(dict.fromkeys(occupations)))
            why.append(f"occupation: {asked['occupation']}; generated: {others} ({kin})")
    levels = list(dict.fromkeys(one["level"] for one in wanted if one["level"]))
    if asked["level"] and levels:
        alike = asked["level"] in levels
        why.append(f"level: {asked['level']}, as in the generated JD" if alike else
                   f"level: {asked['level']}; generated: {_list(levels)}")  # fmt: skip
    return {"skills": skills, **asked, "same_occupation": same, "same_family": family, "why": why}


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# ------------------------------------------------------------------------------------------------- what is read


def _cv(files: DatasetFiles, seeker: str) -> str:
    known: list[str] = []
    for user, text in iter_docs(files.udoc):
        if user == seeker:
            return text
        known += [user] if len(known) < 3 else []
    raise DataError(f"{files.udoc}: no seeker {seeker!r}; ids look like {', '.join(known)}.")


def _generators(files: DatasetFiles, asked: str | Sequence[str] | None) -> list[str]:
    known = sorted(path.name[len(files.name) + 1 : -5] for path in files.folder.glob(f"{files.name}.*.gdoc"))
    if not known:
        raise DataError(f"{files.folder}: no {files.name}.*.gdoc; run `girl generate {files.name}`.")
    if asked is None:
        return known
    names = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--generators: {name!r} is unknown{suggest(name, known)}; there are JDs of {', '.join(known)}."
            )
    return list(dict.fromkeys(names))


def _search(files: DatasetFiles, config: CaseConfig, generator: str, seeker: str) -> list[dict[str, Any]]:
    report = search(files, dataclasses.replace(config, generator=generator), seekers=[seeker])
    return report[f"jobs of {seeker}"]


def _rewards(files: DatasetFiles, config: CaseConfig, cv: str, jds: Sequence[str]) -> dict[str, float]:
    """JD -> its normalised score; {} where there is no reward model of that name."""
    from girl_recbole.generate import generator_folder

    if not generator_folder(config.saved_folder, files.name, config.reward_model).exists():
        return {}
    from girl_recbole.reward import load_reward_model

    scores = load_reward_model(files, config).score([cv] * len(jds), jds)
    return dict(zip(jds, map(float, scores), strict=True))


def _chances(files: DatasetFiles, seeker: str, texts: Sequence[str]) -> dict[str, float]:
    """Text -> true probability of a match; {} where there is no simulated market behind the dataset."""
    if not files.path("truth.npz").exists():
        return {}
    from girl_recbole.market import read_truth
    from girl_recbole.market.judge import true_probability

    texts = list(dict.fromkeys(texts))
    probability, _ = true_probability(read_truth(files), [seeker] * len(texts), texts)
    return dict(zip(texts, map(float, probability), strict=True))


def predicted(files: DatasetFiles, checkpoint: str, seeker: str, jobs: Sequence[str]) -> dict[str, float | None]:
    """What the recommender in ``checkpoint`` predicts for the seeker and each job; None for a job it does not know.

    Raises ``DataError`` for a file that is no checkpoint, and for a seeker who is not in the model's data.
    """
    import torch
    from recbole.data.interaction import Interaction

    from girl_recbole.checkpoints import load_trained

    trained = load_trained(checkpoint, files)
    dataset = trained.dataset
    users, items = (dataset.field2token_id[field] for field in (dataset.uid_field, dataset.iid_field))
    if seeker not in users:
        raise DataError(f"{checkpoint}: its data has no pair of {seeker!r}; a model knows the seekers of its data.")
    known = [job for job in jobs if job in items]
    out: dict[str, float | None] = dict.fromkeys(jobs)
    if known:
        pairs = Interaction({
            dataset.uid_field: torch.full((len(known),), int(users[seeker])),
            dataset.iid_field: torch.tensor([int(items[job]) for job in known]),
        })  # fmt: skip
        with torch.no_grad():
            scores = trained.model.predict(dataset.join(pairs).to(trained.config["device"])).flatten().tolist()
        out |= zip(known, scores, strict=True)
    return out


# ------------------------------------------------------------------------------------------------- what is shown


def _shown(record: dict[str, Any], path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {key: record[key] for key in ("dataset", "seeker", "cv", "cv_words") if key in record}
    for block in record["generators"]:
        name = block["generator"]
        for one in block["jds"]:
            label = name if len(block["jds"]) == 1 else f"{name} {one['sample']}"
            report[f"{label}: JD"] = one["text"]
            for key in ("reward", "true_probability"):
                if one[key] is not None:
                    report[f"{label}: {key.replace('_', ' ')}"] = one[key]
            for key in ("shared", "invented", "missing"):
                report[f"{label}: skills {key}"] = _list(one["skills"][key]) or "none"
        report[f"jobs found by {name}"] = [
            {
                "rank": row["rank"], "job": row["item_id"], "score": row["score"],
                **{short: row[key] for short, key in (("model", "model"), ("true p", "true_probability"))
                   if row.get(key) is not None},
                "answer": _ANSWERS[row["answer"]], "title": row["title"],
            }
            for row in block["found"]
        ]  # fmt: skip
        report |= {f"{name} {row['rank']}, {row['item_id']}": "; ".join(row["why"]) for row in block["found"]}
    return {**report, "file": str(path)}
