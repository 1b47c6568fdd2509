"""``girl prepare resume-corpus``: real resumes become pairs of a CV (all but the latest job) and a JD (the latest job).

Source: the layout of the resume corpus of Jiechieu and Tsopze (doi 10.1007/s00521-020-05302-x): a folder with
``resumes_corpus.zip`` (NNNNN.txt, one resume; NNNNN.lab, its occupations, one a line) and ``normlized_classes.txt``
(``raw title:occupation``, from which titles are known). resume_text.py says how a resume is taken apart.

A seeker is matched with the job that he holds; that is one job a seeker. Mismatches are sampled (stages.py): by
``negatives: same_occupation`` from jobs with an occupation of the seeker's, or ``random``. A near duplicate of the own
JD is never drawn. Exact and near duplicates among resumes are dropped, all but the first of each group. Afterwards a
capitalised word that occurs in the texts of at most ``rare_name_max_resumes`` people becomes [NAME] everywhere: firms,
products and towns that no header gave away.

What to know when using it: a seeker has one matched pair, so all the rest of his pairs are mismatches. In ``warm`` a
model could learn that a seeker whose match is in train has none in test; ``cold`` has no such clue and is the split to
report. There are no times. The match is one-sided history, not a recruiter's answer: the figures on it rank methods,
and are no forecast for a job board.
"""

from __future__ import annotations

import re
import time
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.prepare.leaks import rare_overlap_auc, tfidf_auc
from girl_recbole.prepare.neardup import near_duplicate_groups
from girl_recbole.prepare.report import Report
from girl_recbole.prepare.resume_text import ParsedResume, Titles, clean, headline, parse_resume
from girl_recbole.prepare.stages import assign_stages, check_shares, stage_frames, write_dataset

__all__ = ["ResumeCorpusConfig", "mask_rare_names", "prepare"]

_NAME = re.compile(r"\b[A-Z][A-Za-z&'’-]{2,}\b")
_OWN_TWIN = 0.5  # Jaccard index of two JDs above which one is never the other seeker's mismatch
_LEAK_SAMPLE = 2000  # seekers of the recommendation stage for the leak figures


@dataclass(frozen=True)
class ResumeCorpusConfig:
    raw: str | None
    max_seekers: int | None
    negatives: str | None
    negatives_per_positive: int
    stage_shares: list
    near_duplicate: float
    min_cv_words: int
    min_jd_words: int
    copied_words: int
    rare_name_max_resumes: int
    seed: int


def prepare(files: DatasetFiles, config: ResumeCorpusConfig) -> dict:
    """Read the folder ``config.raw``; write the dataset; return the report."""
    started = time.monotonic()
    check_shares(config.stage_shares)
    if config.negatives not in ("same_occupation", "random"):
        raise ConfigError(
            f"negatives: {config.negatives!r}; this source has matched pairs only, so choose same_occupation or random."
        )
    archive, classes = _sources(config)
    report = Report("resume-corpus")
    texts, occupations = _read(archive, report)
    titles = Titles()
    for line in classes.read_text(encoding="utf-8", errors="replace").splitlines():
        titles.add(line.rpartition(":")[0])
    for title, count in Counter(headline(text) for text in texts.values()).items():
        if count > 1:
            titles.add(title)
    parsed = _parse(texts, titles, config, report)
    del texts
    parsed = _without_duplicates(parsed, config.near_duplicate, report)
    if config.max_seekers is not None and len(parsed) > config.max_seekers:
        drawn = np.random.default_rng(config.seed).permutation(sorted(parsed))
        report.add("dropped", "beyond max_seekers", len(parsed) - config.max_seekers)
        parsed = {key: parsed[key] for key in sorted(drawn[: config.max_seekers])}
    if not parsed:
        raise DataError(f"{archive}: no resume gave a usable pair. {report.text()}")
    seekers = {f"u{key}": p for key, p in parsed.items()}
    job_of = {user: f"j{user[1:]}" for user in seekers}
    cvs, jds = mask_rare_names(
        {user: p.cv for user, p in seekers.items()},
        {user: p.jd for user, p in seekers.items()},
        config.rare_name_max_resumes,
        report,
    )
    jds = {job_of[user]: jd for user, jd in jds.items()}
    report.add("changed", "company and place names masked", sum(p.masked_names for p in seekers.values()))
    report.add("changed", "CV sentences dropped (current title, or copied from the JD)",
               sum(p.dropped_sentences for p in seekers.values()))  # fmt: skip
    pairs = pd.DataFrame({"user_id": list(seekers), "item_id": [job_of[u] for u in seekers], "label": 1.0})
    stage_of = assign_stages(seekers, config.stage_shares, config.seed)
    groups = near_duplicate_groups([jds[job] for job in pairs["item_id"]], _OWN_TWIN)
    frames = stage_frames(
        pairs,
        stage_of,
        report,
        rule=config.negatives,
        per_positive=config.negatives_per_positive,
        seed=config.seed,
        occupations={job_of[u]: occupations[u[1:]] for u in seekers},
        twins=dict(zip(pairs["item_id"], groups.tolist(), strict=True)),
    )
    report.note(
        matched="a seeker and the job that he holds",
        mismatches=f"sampled, {config.negatives}, {config.negatives_per_positive} a match, seed {config.seed}",
        **_leak_figures(seekers, job_of, cvs, jds, frames["recommendation"], config.seed),
    )
    used = {job for stage in ("sft", "reward", "recommendation") for job in frames[stage]["item_id"]}
    return write_dataset(
        files,
        frames,
        cvs.items(),
        ((job, jd) for job, jd in jds.items() if job in used),
        report,
        config={**asdict(config), "raw": str(config.raw)},
        seed=config.seed,
        inputs=[archive, classes],
        wall_time_s=time.monotonic() - started,
    )


def mask_rare_names(
    cvs: dict[str, str], jds: dict[str, str], max_resumes: int, report: Report
) -> tuple[dict[str, str], dict[str, str]]:
    """[NAME] for each capitalised word in the texts of at most ``max_resumes`` people; 0 masks nothing."""
    if max_resumes <= 0:
        return cvs, jds
    people: Counter[str] = Counter()
    for user in cvs:
        people.update({word.lower() for text in (cvs[user], jds[user]) for word in re.findall(r"[A-Za-z&'’-]+", text)})
    masked = 0

    def name(match: re.Match) -> str:
        nonlocal masked
        if people[match[0].lower().strip("&'’-")] > max_resumes or people[match[0].lower()] > max_resumes:
            return match[0]
        masked += 1
        return "[NAME]"

    cvs = {user: _NAME.sub(name, text) for user, text in cvs.items()}
    jds = {user: _NAME.sub(name, text) for user, text in jds.items()}
    report.add("changed", f"capitalised words of at most {max_resumes} people masked", masked)
    return cvs, jds


# ---------------------------------------------------------------------------------------------------------- details


def _sources(config: ResumeCorpusConfig) -> tuple[Path, Path]:
    if not config.raw:
        raise ConfigError("raw: name the folder with resumes_corpus.zip and normlized_classes.txt (--raw=FOLDER).")
    folder = Path(config.raw)
    paths = folder / "resumes_corpus.zip", folder / "normlized_classes.txt"
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{folder}: no {' and no '.join(missing)}; the folder of the resume corpus is required.")
    return paths


def _read(archive: Path, report: Report) -> tuple[dict[str, str], dict[str, list[str]]]:
    try:
        bundle = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive}: not a zip file ({error}); fetch it again.") from None
    texts, occupations = {}, {}
    with bundle:
        members = set(bundle.namelist())
        names = sorted(name for name in members if name.endswith(".txt"))
        if not names:
            raise DataError(f"{archive}: no NNNNN.txt in it; the zip of the resume corpus is required.")
        report.add("read", "resumes", len(names))
        for name in tqdm(names, desc="read", leave=False):
            key, label = Path(name).stem, name[:-4] + ".lab"
            labels = bundle.read(label).decode("utf-8", "replace").split() if label in members else []
            if not labels:
                report.add("dropped", "no occupation label")
                continue
            try:
                texts[key] = clean(bundle.read(name).decode("utf-8"))
            except UnicodeDecodeError:
                report.add("dropped", "not UTF-8")
                continue
            occupations[key] = labels
    return texts, occupations


def _parse(
    texts: dict[str, str], titles: Titles, config: ResumeCorpusConfig, report: Report
) -> dict[str, ParsedResume]:
    parsed = {}
    for key, text in tqdm(texts.items(), desc="parse", leave=False):
        found = parse_resume(text, titles, config.copied_words)
        if isinstance(found, str):
            report.add("dropped", found)
        elif len(found.cv.split()) < config.min_cv_words:
            report.add("dropped", f"CV shorter than {config.min_cv_words} words")
        elif len(found.jd.split()) < config.min_jd_words:
            report.add("dropped", f"JD shorter than {config.min_jd_words} words")
        else:
            parsed[key] = found
    return parsed


def _without_duplicates(parsed: dict[str, ParsedResume], threshold: float, report: Report) -> dict[str, ParsedResume]:
    groups = near_duplicate_groups([f"{p.raw_cv}\n{p.raw_jd}" for p in parsed.values()], threshold)
    first = set(np.unique(groups, return_index=True)[1].tolist())
    report.add("dropped", f"near duplicate of a kept resume (Jaccard index of 5-word runs >= {threshold})",
               len(parsed) - len(first))  # fmt: skip
    return {key: p for place, (key, p) in enumerate(parsed.items()) if place in first}


def _leak_figures(seekers, job_of, cvs, jds, pairs, seed) -> dict[str, float]:
    """AUC of rare shared words before and after masking, and of TF-IDF, on seekers of the recommendation stage."""
    own = pairs.loc[pairs["label"].eq(1), "user_id"]
    drawn = set(np.random.default_rng(seed).permutation(np.array(sorted(own), dtype=object))[:_LEAK_SAMPLE])
    pairs = pairs[pairs["user_id"].isin(drawn)]
    if pairs["label"].nunique() < 2:
        return {}
    of = {u: job_of[u] for u in own}
    raw = {u: seekers[u].raw_cv for u in of}, {of[u]: seekers[u].raw_jd for u in of}
    now = {u: cvs[u] for u in of}, {of[u]: jds[of[u]] for u in of}
    return {
        "AUC of rare shared words before masking": round(rare_overlap_auc(*raw, of, pairs), 4),
        "AUC of rare shared words after masking": round(rare_overlap_auc(*now, of, pairs), 4),
        "AUC of TF-IDF cosine before masking": round(tfidf_auc(*raw, of, pairs), 4),
        "AUC of TF-IDF cosine after masking": round(tfidf_auc(*now, of, pairs), 4),
    }
