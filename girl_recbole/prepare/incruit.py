"""``girl prepare incruit``: Korean job applications (seven CSV files, UTF-8 with BOM) become a dataset.

Source: a folder with apply_train (resume_seq, recruitment_seq), resume, resume_education, resume_certificate,
resume_language, recruitment and company. The first two name the pairs; the rest is text only after rendering, for most
columns are codes without a public codebook. Words are kept as they are; a code becomes a stable token under a Korean
field name (``직무코드 2507``), so that equal codes read alike and nothing is invented. Zero and empty fields are left
out. Salaries are taken to be in 10,000 won (만원). ``hischool_gender`` is left out, since it tells the seeker's gender,
and so are the dates on which a resume was written.

The source has positives only (who applied where), without times: an application counts as matched, and mismatches are
sampled by the rule ``negatives`` (popularity or random), with the seed. A posting whose rendered text equals that of
the own posting is never a mismatch. Stages are drawn by seeker.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.prepare.report import Report
from girl_recbole.prepare.stages import assign_stages, check_shares, stage_frames, write_dataset

__all__ = ["IncruitConfig", "prepare"]

_COLUMNS = {
    "apply_train": ("resume_seq", "recruitment_seq"),
    "resume": (
        "resume_seq", "degree", "graduate_date", "hope_salary", "last_salary", "text_keyword", "job_code_seq1",
        "job_code_seq2", "job_code_seq3", "career_month", "career_job_code",
    ),
    "resume_education": (
        "resume_seq", "hischool_type_seq", "hischool_special_type", "hischool_nation", "hischool_location_seq",
        "univ_type_seq1", "univ_type_seq2", "univ_transfer", "univ_location", "univ_major", "univ_sub_major",
        "univ_major_type", "univ_score",
    ),
    "resume_certificate": ("resume_seq", "certificate_contents"),
    "resume_language": ("resume_seq", "language", "exam_name", "score"),
    "recruitment": (
        "recruitment_seq", "address_seq1", "address_seq2", "address_seq3", "career_end", "career_start",
        "check_box_keyword", "education", "major_task", "qualifications", "text_keyword",
    ),
    "company": ("recruitment_seq", "company_type_seq", "supply_kind", "employee"),
}  # fmt: skip


@dataclass(frozen=True)
class IncruitConfig:
    raw: str | None
    max_seekers: int | None
    negatives: str | None
    negatives_per_positive: int
    stage_shares: list
    seed: int


def prepare(files: DatasetFiles, config: IncruitConfig) -> dict:
    """Read the CSV files of the folder ``config.raw``; write the dataset; return the report."""
    started = time.monotonic()
    check_shares(config.stage_shares)
    if config.negatives not in ("popularity", "random"):
        raise ConfigError(
            f"negatives: {config.negatives!r}; this source has matched pairs only, so choose popularity or random."
        )
    if not config.raw:
        raise ConfigError("raw: name the folder with apply_train.csv, resume.csv and the others (--raw=FOLDER).")
    folder = Path(config.raw)
    report = Report("incruit")
    table = {name: _read(folder / f"{name}.csv", columns, report) for name, columns in _COLUMNS.items()}
    for name, key in (("resume", "resume_seq"), ("resume_education", "resume_seq"), ("recruitment", "recruitment_seq")):
        again = table[name][key][table[name][key].duplicated()]
        if len(again):
            raise DataError(f"{folder / name}.csv: {len(again)} second rows of a {key} ({some_of(again.tolist())}).")
    applied = table["apply_train"].drop_duplicates()
    report.add("dropped", "repeated applications", len(table["apply_train"]) - len(applied))
    known = applied["resume_seq"].isin(table["resume"]["resume_seq"])
    posted = applied["recruitment_seq"].isin(table["recruitment"]["recruitment_seq"])
    report.add("dropped", "applications of an unknown resume", int((~known).sum()))
    report.add("dropped", "applications to an unknown posting", int((known & ~posted).sum()))
    applied = applied[known & posted]
    seekers = np.array(sorted(applied["resume_seq"].unique()), dtype=object)
    if config.max_seekers is not None and len(seekers) > config.max_seekers:
        report.add("dropped", "seekers beyond max_seekers", len(seekers) - config.max_seekers)
        seekers = np.random.default_rng(config.seed).permutation(seekers)[: config.max_seekers]
        applied = applied[applied["resume_seq"].isin(set(seekers))]
    cvs = _cvs(table, report)
    jds = _jds(table, report)
    pairs = pd.DataFrame(
        {"user_id": applied["resume_seq"].to_numpy(), "item_id": applied["recruitment_seq"].to_numpy(), "label": 1.0}
    )
    twins = dict(zip(jds.index, pd.factorize(jds)[0].tolist(), strict=True))
    frames = stage_frames(
        pairs,
        assign_stages(seekers, config.stage_shares, config.seed),
        report,
        rule=config.negatives,
        per_positive=config.negatives_per_positive,
        seed=config.seed,
        twins=twins,
    )
    report.note(
        matched="an application: this source has positives only",
        mismatches=f"sampled, {config.negatives}, {config.negatives_per_positive} a match, seed {config.seed}",
    )
    used = {job for stage in ("sft", "reward", "recommendation") for job in frames[stage]["item_id"]}
    return write_dataset(
        files,
        frames,
        ((user, cvs[user]) for user in sorted(seekers)),
        ((job, jds[job]) for job in sorted(used)),
        report,
        config=asdict(config),
        seed=config.seed,
        inputs=[folder / f"{name}.csv" for name in _COLUMNS],
        wall_time_s=time.monotonic() - started,
    )


def _read(path: Path, columns: tuple[str, ...], report: Report) -> pd.DataFrame:
    if not path.exists():
        raise DataError(f"{path}: no such file; required are {', '.join(f'{name}.csv' for name in _COLUMNS)}.")
    try:
        frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); convert it to UTF-8.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: not a CSV file: {error}.") from None
    missing = [column for column in columns if column not in frame]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(frame.columns)}.")
    report.add("read", f"rows of {path.name}", len(frame))
    return frame[list(columns)].fillna("")


def _cvs(table: dict[str, pd.DataFrame], report: Report) -> dict[str, str]:
    resume = table["resume"].set_index("resume_seq")
    education = table["resume_education"].set_index("resume_seq").reindex(resume.index, fill_value="")
    certificates = table["resume_certificate"].query("certificate_contents != ''").drop_duplicates()
    language = table["resume_language"].drop_duplicates()
    exams = pd.DataFrame(
        {
            "resume_seq": language["resume_seq"],
            "text": _said(language, [("언어코드", "language"), ("시험코드", "exam_name"), ("점수", "score")], " "),
        }
    )
    listed = {
        "자격증": certificates.groupby("resume_seq")["certificate_contents"].agg("; ".join),
        "어학": exams.groupby("resume_seq")["text"].agg("; ".join),
    }
    lines = pd.DataFrame(index=resume.index)
    lines["희망 직무"] = resume["text_keyword"].str.replace(";", ", ")
    areas = resume[["job_code_seq1", "job_code_seq2", "job_code_seq3"]]
    lines["직무 분야"] = _joined([areas[column] for column in areas], ", ")
    lines["경력"] = _said(resume, [("", "career_month", "개월"), ("분야", "career_job_code")], ", ")
    lines["학력"] = _said(resume, [("학력코드", "degree"), ("졸업연도", "graduate_date")], ", ")
    lines["급여"] = _said(resume, [("희망연봉", "hope_salary", "만원"), ("최근연봉", "last_salary", "만원")], ", ")
    lines["고등학교"] = _said(
        education,
        [("", "hischool_special_type"), ("", "hischool_nation"), ("고교유형코드", "hischool_type_seq"),
         ("지역코드", "hischool_location_seq")],
        ", ",
    )  # fmt: skip
    transferred = education["univ_transfer"].map({"1": "편입"}).fillna("")
    lines["대학교"] = _joined(
        [
            _said(
                education,
                [("전공", "univ_major"), ("부전공", "univ_sub_major"), ("전공계열코드", "univ_major_type"),
                 ("대학유형코드", "univ_type_seq1"), ("대학구분코드", "univ_type_seq2"), ("지역코드", "univ_location"),
                 ("성적", "univ_score")],
                ", ",
            ),
            transferred,
        ],
        ", ",
    )  # fmt: skip
    for name, values in listed.items():
        lines[name] = values.reindex(resume.index, fill_value="")
        report.add("read", f"CVs with {name}", int((lines[name] != "").sum()))
    return _texts(lines, "이력서").to_dict()


def _jds(table: dict[str, pd.DataFrame], report: Report) -> pd.Series:
    posting = table["recruitment"].set_index("recruitment_seq")
    company = table["company"].drop_duplicates("recruitment_seq").set_index("recruitment_seq")
    company = company.reindex(posting.index, fill_value="")
    lines = pd.DataFrame(index=posting.index)
    lines["모집 직무"] = posting["text_keyword"].str.replace(";", ", ")
    codes = posting["check_box_keyword"]
    lines["직무"] = ("직무코드 " + codes.str.replace(";", ", 직무코드 ")).where(codes.ne(""), "")
    lines["주요 업무"] = _said(posting, [("업무코드", "major_task")], ", ")
    places = posting[["address_seq1", "address_seq2", "address_seq3"]]
    lines["근무지"] = _joined([_said(places, [("지역코드", column)], "") for column in places], ", ")
    lines["지원 자격"] = _said(
        posting,
        [
            ("학력코드", "education"),
            ("자격코드", "qualifications"),
            ("최소 경력", "career_start"),
            ("최대 경력", "career_end"),
        ],
        ", ",
    )
    lines["기업"] = _said(
        company, [("기업유형코드", "company_type_seq"), ("업종코드", "supply_kind"), ("직원 수", "employee")], ", "
    )
    texts = _texts(lines, "채용공고")
    report.add("read", "postings with words (the others have codes only)", int((lines["모집 직무"] != "").sum()))
    report.add("read", "different rendered postings", int(texts.nunique()))
    return texts


def _said(frame: pd.DataFrame, fields: list[tuple], between: str) -> pd.Series:
    """Each row's fields as ``name value`` (with a unit where one is given), without zero and empty ones."""
    parts = []
    for name, column, *unit in fields:
        value = frame[column].str.strip().str.replace(r"\.0$", "", regex=True)
        said = (name + " " if name else "") + value + (unit[0] if unit else "")
        parts.append(said.where(~value.isin(("", "0")), ""))
    return _joined(parts, between)


def _joined(parts: list[pd.Series], between: str) -> pd.Series:
    together = parts[0]
    for part in parts[1:]:
        together = together + pd.Series(np.where(together.ne("") & part.ne(""), between, ""), index=part.index) + part
    return together


def _texts(lines: pd.DataFrame, title: str) -> pd.Series:
    parts = [(name + ": " + lines[name]).where(lines[name].ne(""), "") for name in lines]
    return title + "\n" + _joined(parts, "\n")
