"""The Korean applications: invented tables in their layout."""

from __future__ import annotations

import pytest

from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.prepare import PrepareConfig, prepare


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    seekers, jobs = range(20), range(10)
    tables = {
        "apply_train": ["resume_seq,recruitment_seq"]
        + [f"U{u},R{(u + k) % 10}" for u in seekers for k in range(2)] + ["U0,R0", "U99,R1", "U1,R99"],
        "resume": ["resume_seq,reg_date,updated_date,degree,graduate_date,hope_salary,last_salary,text_keyword,"
                   "job_code_seq1,job_code_seq2,job_code_seq3,career_month,career_job_code"]
        + [f"U{u},-,-,4,{2008 * (u == 0)},3500.0,0.0,정원사;농부,농업,영업,,{u},원예" for u in seekers],
        "resume_education": ["resume_seq,hischool_type_seq,hischool_special_type,hischool_nation,hischool_gender,"
                             "hischool_location_seq,univ_type_seq1,univ_type_seq2,univ_transfer,univ_location,"
                             "univ_major,univ_sub_major,univ_major_type,univ_score"]
        + [f"U{u},21,일반고,사립,여자학교,3,5,5,{int(u == 0)},3,,,9,60.0" for u in seekers],
        "resume_certificate": ["resume_seq,certificate_contents", "U0,운전면허", "U0,꽃꽂이 2급", "U1,"],
        "resume_language": ["resume_seq,language,exam_name,score", "U0,2,4,742.42", "U0,2,4,742.42"],
        "recruitment": ["recruitment_seq,address_seq1,address_seq2,address_seq3,career_end,career_start,"
                        "check_box_keyword,education,major_task,qualifications,text_keyword"]
        + [f"R{j},3.0,,,0,0,2507;27{j // 2:02d},4,8,1,{'조경' if j == 0 else ''}" for j in jobs],
        "company": ["recruitment_seq,company_type_seq,supply_kind,employee", "R0,2,514,20"],
    }  # fmt: skip
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


def run(tmp_path, raw, **overrides):
    files = DatasetFiles(tmp_path / "out", "incruit")
    settings = {"raw": str(raw), "stage_shares": [0.25, 0.25, 0.25, 0.25], **overrides}
    return files, prepare(files, make_config(PrepareConfig, dataset="incruit", overrides=settings), "incruit")


def test_texts_are_rendered_whole(tmp_path, raw):
    files, _ = run(tmp_path, raw, stage_shares=[0, 0, 0, 1])
    assert read_docs(files.udoc)["U0"].split("\n") == [
        "이력서",
        "희망 직무: 정원사, 농부",
        "직무 분야: 농업, 영업",
        "경력: 분야 원예",
        "학력: 학력코드 4, 졸업연도 2008",
        "급여: 희망연봉 3500만원",
        "고등학교: 일반고, 사립, 고교유형코드 21, 지역코드 3",
        "대학교: 전공계열코드 9, 대학유형코드 5, 대학구분코드 5, 지역코드 3, 성적 60, 편입",
        "자격증: 운전면허; 꽃꽂이 2급",
        "어학: 언어코드 2 시험코드 4 점수 742.42",
    ]
    assert "경력: 7개월, 분야 원예" in read_docs(files.udoc)["U7"]
    assert read_docs(files.idoc)["R0"].split("\n") == [
        "채용공고",
        "모집 직무: 조경",
        "직무: 직무코드 2507, 직무코드 2700",
        "주요 업무: 업무코드 8",
        "근무지: 지역코드 3",
        "지원 자격: 학력코드 4, 자격코드 1",
        "기업: 기업유형코드 2, 업종코드 514, 직원 수 20",
    ]


def test_counts_and_mismatches(tmp_path, raw):
    files, report = run(tmp_path, raw)
    assert report["dropped"]["repeated applications"] == 1
    assert report["dropped"]["applications of an unknown resume"] == 1
    assert report["dropped"]["applications to an unknown posting"] == 1
    assert report["read"]["different rendered postings"] == 6  # R0 apart, then pairs of equal codes
    inter, jds = read_interactions(files.inter), read_docs(files.idoc)
    assert inter["label"].sum() == 10  # five seekers, two applications each
    applied = {(f"U{u}", f"R{(u + k) % 10}") for u in range(20) for k in range(2)}
    for row in inter.itertuples():
        assert (row.label == 1) == ((row.user_id, row.item_id) in applied)
    assert set(jds) >= set(inter["item_id"])
    assert report["notes"]["matched"] == "an application: this source has positives only"


def test_errors(tmp_path, raw):
    with pytest.raises(ConfigError, match="choose popularity or random"):
        run(tmp_path, raw, negatives="same_occupation")
    (raw / "company.csv").write_text("recruitment_seq,employee\nR0,20\n")
    with pytest.raises(DataError, match=r"company.csv: no column company_type_seq, supply_kind; it has"):
        run(tmp_path, raw)
    (raw / "resume.csv").write_bytes("resume_seq\nU0,정원사\n".encode("cp949"))
    with pytest.raises(DataError, match=r"resume.csv: not UTF-8"):
        run(tmp_path, raw)
    (raw / "resume.csv").unlink()
    with pytest.raises(DataError, match=r"resume.csv: no such file; required are apply_train.csv"):
        run(tmp_path, raw)
