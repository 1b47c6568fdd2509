"""The report: numbers as computed by hand, text that stays text, files that cannot be read, rows of a real run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import SYSTEMS, a_case, a_comparison, a_judge, a_row, full_rows, write_predictions, write_rows

from girl_recbole.comparison import paired_difference
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.metrics import ece
from girl_recbole.report import report
from girl_recbole.report.charts import Mark, Track, bins_of, nice_ticks, tracks
from girl_recbole.report.tables import Cell, Column, Table, latex_text, markdown_text, minus, to_latex, to_markdown

NASTY = "<script>alert(1)</script> & \"q\" 'a' | b_c* $d$ \\e{f} 100 % #g ~^ [x](y) `z`"


class Page(HTMLParser):
    """What a browser would see of the page: tables by caption, sections, text, every tag with its attributes."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, dict[str, list[str]]] = {}
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._cells: list[str] = []
        self._rows: list[list[str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("th", "td"):
            self._cells.append("")
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._cells = []
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag == "tr":
            self._rows.append(self._cells)
        if tag == "table":
            head, *rows = self._rows
            named = [dict(zip(head, cells, strict=True)) for cells in rows]
            assert self._caption not in self.tables, f"two tables are called {self._caption}"
            self.tables[self._caption] = {cells[head[0]]: cells for cells in named}
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        tag = next((tag for tag in reversed(self._open) if tag not in ("b", "span")), "")
        if tag in ("th", "td"):
            self._cells[-1] += data
        elif tag == "caption":
            self._caption += data
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]

    def said(self, tag: str) -> str:
        return "\n".join(self.texts.get(tag, []))


def written(folder: Path, rows, **more) -> Page:
    report(write_rows(folder / "results.jsonl", rows), folder / "report.html", **more)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A whole benchmark with all that the report can show: the page, its folder, its rows."""
    folder = tmp_path_factory.mktemp("report")
    rows = full_rows(folder, seeds=(1, 2, 3), pairs=240)
    for name, value in (("case", a_case()), ("judge", a_judge()), ("comparisons", [a_comparison()])):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    beside = {name: folder / f"{name}.json" for name in ("case", "judge", "comparisons")}
    page = written(folder, rows, markdown=folder / "t.md", latex=folder / "t.tex", **beside)
    return page, folder, rows


# ------------------------------------------------------------------------------------------------ numbers by hand


def test_mean_and_interval_over_three_seeds(tmp_path):
    """0.6, 0.7, 0.8: mean 0.7, sd 0.1, t(2) = 4.302653, half = 4.302653 * 0.1 / sqrt(3) = 0.2484."""
    rows = [a_row("A", seed, auc=auc) for seed, auc in ((1, 0.6), (2, 0.7), (3, 0.8))]
    rows += [a_row("B", seed, auc=0.5, parameters=1_234_567, peak_memory_mb=1500.4) for seed in (1, 2, 3)]
    page = written(tmp_path, rows, markdown=tmp_path / "t.md", latex=tmp_path / "t.tex")
    table = page.tables["Test metrics on toy, warm"]
    assert table["A"]["AUC ↑"] == "0.7000 ± 0.2484"
    assert table["A"]["Seeds"] == "3"
    assert table["A"]["Training, s ↓"] == "2.0"
    assert table["B"]["AUC ↑"] == "0.5000"
    assert table["B"]["Parameters ↓"] == "1,234,567"
    assert table["B"]["Memory, MB ↓"] == "1,500"
    assert "| A | **0.7000 ± 0.2484** | 3 |" in (tmp_path / "t.md").read_text()
    assert r"A & \textbf{0.7000 $\pm$ 0.2484} & 3 &" in (tmp_path / "t.tex").read_text()


def test_prior_and_oracle_over_seeds_at_the_foot(tmp_path):
    """They are of a seed's split, whatever row has them, and count once a seed."""
    rows = [a_row(label, seed, prior={"auc": 0.5, "logloss": 0.6 + seed / 100}, oracle={"auc": 0.8, "logloss": None})
            for label in "AB" for seed in (1, 3)]  # fmt: skip
    table = written(tmp_path, [{**row, "test": {"auc": 0.7, "logloss": 0.5}} for row in rows]).tables
    foot = table["Test metrics on toy, warm"]
    assert list(foot) == ["A", "B", "prior", "oracle"]
    assert foot["prior"]["LogLoss ↓"] == "0.6200 ± 0.1271"  # .61 and .63: sd .014142, t(1) = 12.7062, / sqrt(2)
    assert (foot["prior"]["Seeds"], foot["oracle"]["AUC ↑"], foot["oracle"]["LogLoss ↓"]) == (
        "2",
        "0.8000",
        "",
    )


def test_one_seed_has_no_interval(tmp_path):
    page = written(tmp_path, [a_row("A", 7, auc=0.61234), a_row("B", 7, auc=0.6)])
    assert page.tables["Test metrics on toy, warm"]["A"]["AUC ↑"] == "0.6123"
    assert "n = 1: one seed, so no interval." in page.said("p")
    assert "toy, warm: one seed only" in page.said("li")


def test_calibrated_metrics_of_recboles_models_count(tmp_path):
    test = {"auc": 0.7, "logloss": 2.5}
    page = written(tmp_path, [a_row("A", test=test, calibrated={"auc": 0.7, "logloss": 0.61, "ece": 0.02})])
    row = page.tables["Test metrics on toy, warm"]["A"]
    assert (row["LogLoss ↓"], row["ECE ↓"]) == ("0.6100", "0.0200")
    assert "after Platt scaling on validation" in page.said("p")


def test_splits_drawn_anew_are_one_split(tmp_path):
    page = written(tmp_path, [a_row("A", seed, f"cold-s{seed}", auc=0.5 + seed / 10) for seed in (1, 2)])
    assert page.tables["Test metrics on toy, cold"]["A"]["AUC ↑"].startswith("0.6500 ±")
    assert page.tables["Every run that the tables are made of"]["A"]["Split"] == "cold-s2"


def test_cold_start_by_hand(tmp_path):
    """warm .70, .72; cold .66, .64: changes -.04, -.08, mean -.06, half = 12.7062 * .028284 / sqrt(2) = .2541."""
    values = {"warm": {1: 0.70, 2: 0.72}, "cold": {1: 0.66, 2: 0.64}}
    rows = [a_row("A", seed, split, auc=auc) for split, each in values.items() for seed, auc in each.items()]
    rows.append(a_row("warm only", 1, "warm", auc=0.9))
    table = written(tmp_path, rows).tables["AUC on toy, warm and cold"]
    assert list(table) == ["A"]
    assert table["A"]["AUC, warm ↑"].startswith("0.7100 ±")
    assert table["A"]["AUC, cold ↑"].startswith("0.6500 ±")
    assert table["A"]["Cold − warm ↑"] == "−0.0600 ± 0.2541"


def test_a_study_is_drawn_against_its_number(tmp_path):
    rows = [a_row(f"GIRL ({generator})", seed, study="generation_number", varied={"n_generated": n},
                  auc=0.6 + 0.01 * n + seed / 1000)
            for generator in ("sft", "ppo") for n in (1, 3) for seed in (1, 2)]  # fmt: skip
    rows += [a_row("Base", seed) for seed in (1, 2)]
    page = written(tmp_path, rows)
    table = page.tables["AUC against generated JDs a seeker, n: toy, warm"]
    assert {column: cell.split(" ")[0] for column, cell in table["GIRL (ppo)"].items()} == {
        "Row": "GIRL", "1 ↑": "0.6115", "3 ↑": "0.6315"}  # fmt: skip
    assert list(page.tables["Test metrics on toy, warm"]) == ["Base"]
    assert page.texts["title"].count("GIRL (sft): generated JDs a seeker, n 3, AUC 0.6315 [0.6251, 0.6379]") == 1


def test_a_study_of_other_settings_is_a_table(tmp_path):
    rows = [a_row("Base", seed, study="data_control", varied={"train_stages": stages}, auc=0.6 + len(stages) / 10)
            for stages in ([], ["sft"]) for seed in (1, 2)]  # fmt: skip
    page = written(tmp_path, rows)
    table = page.tables["Test metrics on toy, warm (controls of the data)"]
    assert list(table) == ["Base (train_stages=[])", "Base (train_stages=[sft])"]
    assert "Controls of the data" in page.said("h2")


def test_paired_differences_are_those_of_comparison(everything):
    page, _, rows = everything
    table = page.tables["Difference in AUC to BERT, MLP, toy, warm"]
    assert set(table) == set(SYSTEMS) - {"BERT, MLP"}
    kept = [row for row in rows if row["study"] == "table" and row["split"].startswith("warm")]

    def parts(label):
        files = [row["predictions"] for row in kept if row["row"] == label]
        return [
            {key: np.load(file)[f"test_{key}"] for key in ("user", "item", "label", "probability")} for file in files
        ]

    base = parts("BERT, MLP")
    gaps = {label: paired_difference(parts(label), base) for label in table}
    for label, gap in gaps.items():
        assert table[label]["Difference ↑"] == minus(f"{gap.mean:+.4f}")
        assert table[label]["95 % interval"] == f"[{minus(f'{gap.low:+.4f}')}, {minus(f'{gap.high:+.4f}')}]"
        assert table[label]["Seeds above 0 ↑"] == f"{gap.above} of 3"
    least = min(gap.p for gap in gaps.values())
    corrected = next(table[label]["p, Holm ↓"] for label, gap in gaps.items() if gap.p == least)
    assert float(corrected.strip("<")) == pytest.approx(max(0.001, len(gaps) * least), abs=5e-4)  # Holm: m x smallest


def test_the_reference_row_can_be_named(tmp_path):
    rng = np.random.default_rng(0)
    label, users = rng.random(60) < 0.5, np.array([f"u{n // 3}" for n in range(60)])
    rows = []
    for name in ("A", "B", "C"):
        path = write_predictions(tmp_path / "predictions" / f"{name}.npz", label, rng.random(60), users)
        rows.append(a_row(name, predictions=path.name))  # found beside the results file
    page = written(tmp_path, rows, reference="C")
    assert list(page.tables["Difference in AUC to C, toy, warm"]) == ["A", "B"]
    with pytest.raises(ConfigError, match="reference 'c': no such row - did you mean 'C'"):
        report(tmp_path / "results.jsonl", tmp_path / "report.html", reference="c")


def test_reliability_bins_by_hand():
    """Bins [0, .1), ..., [.9, 1]: two pairs near .05 with one match, one at .3 without, two at 1 with both."""
    p, y = np.array([0.04, 0.06, 0.3, 1.0, 1.0]), np.array([1, 0, 0, 1, 1])
    assert bins_of(p, y, 10) == [(pytest.approx(0.05), 0.5, 2), (pytest.approx(0.3), 0.0, 1), (1.0, 1.0, 2)]


def test_calibration_says_the_ece_of_all_pairs(everything):
    page, _, rows = everything
    files = [row["predictions"] for row in rows if row["row"] == "BM25" and row["split"].startswith("warm")]
    p, y = (np.concatenate([np.load(file)[f"test_{key}"] for file in files]) for key in ("probability", "label"))
    assert f"ECE {ece(p, y, 10):.4f}, 720 pairs, 3 seeds" in page.said("span")
    dots = re.findall(r"predicted [\d.]+, matched [\d.]+, ([\d,]+) pairs</title></circle>", page.source)
    sets = len(SYSTEMS) * 2
    assert sum(int(count.replace(",", "")) for count in dots) == 720 * sets


def test_groups_and_fairness_by_hand(tmp_path):
    def groups(one, two):
        return [{"by": "gender", "group": "f", "pairs": 40, "auc": one, "logloss": 0.5, "ece": 0.1},
                {"by": "gender", "group": "m", "pairs": 60, "auc": two, "logloss": 0.6, "ece": 0.2}]  # fmt: skip

    swap = {"attribute": "gender", "seekers": 10, "pairs": 100, "mean_abs_change": 0.02, "mean_change": -0.01,
            "largest_change": 0.3, "flips@5": 0.25}  # fmt: skip
    rows = []
    for seed in (1, 2):
        fairness = {"swap": [swap], "auc_gap": {"gender": seed / 10}}
        rows.append(a_row(seed=seed, groups=groups(0.6 + seed / 100, 0.7), fairness=fairness))
    page = written(tmp_path, rows)
    assert page.tables["AUC by gender, toy, warm"]["A"] == {
        "Row": "A", "AUC, f ↑": "0.6150 ± 0.0635", "AUC, m ↑": "0.7000"}  # fmt: skip
    assert "Pairs: f: 40; m: 60." in page.said("p")
    assert "gap 0.0850" in page.said("span")
    swapped = page.tables["Swapped attributes, toy, warm"]["A"]
    assert (swapped["Seekers"], swapped["Mean change"], swapped["Flips@5 ↓"]) == (
        "10", "−0.0100", "0.2500")  # fmt: skip
    assert page.tables["Gaps in AUC between groups, toy, warm"]["A"] == {
        "Row": "A", "Attribute": "gender", "Gap in AUC ↓": "0.1500 ± 0.6353"}  # fmt: skip


def test_gaps_beside_what_chance_gives(tmp_path):
    gap = {"by": "age", "gap": 0.05, "low": 0.0, "high": 0.1, "largest": "old", "smallest": "young"}
    values = {1: 0.04, 2: 0.5, 3: 0.01}
    rows = [a_row(seed=seed, fairness={"auc_gaps": [{**gap, "chance": 0.03, "p": p}]}) for seed, p in values.items()]
    row = written(tmp_path, rows).tables["Gaps in AUC between groups, toy, warm"]["A"]
    assert (row["By chance"], row["Seeds with p < 0.05"], row["Groups"]) == ("0.0300", "2 of 3", "old − young")


def test_ranking_tables(tmp_path):
    said = {"jobs_for_seekers": {"recall@10": 0.25, "mrr": 0.5, "seekers": 300, "candidates": 1000}}
    page = written(tmp_path, [a_row(ranking=said), a_row("B", ranking=None, test={"auc": 0.6, "recall@10": 0.125})])
    assert page.tables["Jobs for seekers, toy, warm"]["A"] == {
        "Row": "A", "Recall@10 ↑": "0.2500", "MRR ↑": "0.5000", "Seeds": "1"}  # fmt: skip
    assert "Seekers: 300; candidates: 1,000." in page.said("p")
    assert page.tables["Other metrics, toy, warm"]["B"]["Recall@10 ↑"] == "0.1250"


def test_training_curves_mark_the_best_epoch(tmp_path):
    curve = {"train_loss": [0.7, 0.6, 0.5], "valid": [[0, 0.6], [1, 0.66], [2, 0.65]]}
    page = written(tmp_path, [a_row(curve=curve), a_row("no epochs", curve={"train_loss": [], "valid": []})])
    assert "A, seed 1: best AUC, valid 0.6600 at epoch 1" in page.texts["title"]
    assert "no epochs" not in page.said("figcaption")


def test_judges_and_case(everything):
    page, _, _ = everything
    row = page.tables["Verdicts on pairs of generators"]["llm"]
    assert (row["Win"], row["Invalid"], row["Advantage of A"], row["95 % interval"], row["n"]) == (
        "45.0 %", "5.0 %", "+0.200", "[+0.100, +0.300]", "200")  # fmt: skip
    assert page.tables["Agreement between judges"]["llm, overall"]["Rank correlation"] == ""
    assert a_case()["cv"] in page.said("div")
    assert "1 in the generated JD and in the CV: triage" in page.said("li")
    assert "skills of the JD alone: French" in page.said("li")
    assert page.source.count("<span>answer <b>matched</b></span>") == 2
    assert page.tables["Planned differences in AUC, warm"]["GIRL, MLP"]["p, Holm ↓"] == "0.027"


def test_every_section_is_there_and_none_without_its_rows(everything, tmp_path):
    page, _, _ = everything
    assert " ".join(page.sections) == (
        "summary results study-data-control planned differences ranking cold-start study-data-size "
        "study-generation-number groups fairness calibration curves tuning judge case runs"
    )
    assert written(tmp_path, [a_row()]).sections == ["summary", "results", "runs"]
    assert written(tmp_path, [a_row(), a_row("B")]).sections == ["summary", "results", "differences", "runs"]


def test_rows_stand_in_the_order_of_kinds_or_as_asked(everything, tmp_path):
    page, _, _ = everything
    assert list(page.tables["Test metrics on toy, warm"])[:-2] == list(SYSTEMS)
    rows = [a_row(label, kind=kind) for label, kind in (("c", "control"), ("x", None), ("g", "girl"), ("b", "base"))]
    table = written(tmp_path, rows).tables["Test metrics on toy, warm"]
    assert list(table) == ["b", "g", "c", "x"]
    table = written(tmp_path, rows, order=["x", "g"]).tables["Test metrics on toy, warm"]
    assert list(table) == ["x", "g", "b", "c"]


def test_markdown_and_latex_have_the_tables_of_the_page(everything):
    page, folder, _ = everything
    markdown, latex = ((folder / name).read_text(encoding="utf-8") for name in ("t.md", "t.tex"))
    captions = [caption for caption in page.tables if not caption.startswith("Every run")]
    assert len(captions) > 20
    assert [line[2:-2].replace("\\", "") for line in markdown.splitlines() if line.startswith("**")] == captions
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == len(captions)
    for row in page.tables["Test metrics on toy, cold"].values():
        assert row["AUC ↑"] in markdown
        assert row["AUC ↑"].replace("±", r"$\pm$") in latex


# ----------------------------------------------------------------------------------------------- text that stays text


def test_text_of_rows_stays_text(tmp_path):
    rows = [a_row(NASTY, dataset=NASTY, split=NASTY, study=NASTY, commit=NASTY, machine={"cpu": NASTY, "cores": 1}),
            a_row("\ud800 \x00\x07 \x9b", dataset=NASTY, split=NASTY, study=NASTY)]  # fmt: skip
    rows[0]["groups"] = [{"by": NASTY, "group": NASTY, "pairs": 3, "auc": 0.5}]
    rows[0]["curve"] = {"train_loss": [1.0], "valid": [[0, 0.5]]}
    rows[0]["config"] = {"valid_metric": NASTY}
    folder = tmp_path
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    case = {
        "seeker": NASTY,
        "cv": NASTY,
        "generators": [{"generator": NASTY, "jds": [NASTY], "found": [{"item_id": NASTY}]}],
    }
    judge = {"judges": [{**a_judge()["judges"][0], "judge": NASTY, "a": NASTY}], "agreement": [{NASTY: NASTY}]}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "judge.json").write_text(json.dumps(judge))
    report(folder / "results.jsonl", folder / "report.html", case=folder / "case.json", judge=folder / "judge.json",
           markdown=folder / "t.md", latex=folder / "t.tex", title=NASTY)  # fmt: skip
    page = Page(folder / "report.html")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert NASTY in page.texts["th"]
    assert NASTY in page.texts["title"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    ours = """a article b body button caption circle dd details div dl dt figcaption figure footer h1 h2 h3 h4 head
        header html li line link main meta nav ol p path polyline rect script section span style summary svg table tbody
        td text tfoot th thead title tr ul"""
    assert {tag for tag, _ in page.tags} <= set(ours.split())
    assert "\x00" not in page.source
    assert "<script" not in (folder / "t.md").read_text()
    assert r"\textless{}script\textgreater{}" in (folder / "t.tex").read_text()


def test_markdown_and_latex_escape():
    table = Table("a|b", [Column("x", text=True), Column("y_1", "low")], [[Cell("p|q\nr"), Cell("−1", -1, best=True)]])
    assert to_markdown(table) == "**a\\|b**\n\n| x | y\\_1 ↓ |\n| --- | ---: |\n| p\\|q r | **−1** |\n"
    assert r"x & y\_1 $\downarrow$ \\" in to_latex(table)
    assert r"p\textbar{}q r & \textbf{$-$1} \\" in to_latex(table)
    assert markdown_text("*a* <b> & `c` [d](e)") == r"\*a\* &lt;b&gt; &amp; \`c\` \[d\](e)"
    assert latex_text(r"5 % of $a_b$ & \x{y} #1 ~^") == (
        r"5 \% of \$a\_b\$ \& \textbackslash{}x\{y\} \#1 \textasciitilde{}\textasciicircum{}"
    )


@given(st.text())
def test_latex_text_has_no_command_of_its_own(text):
    """What is left of LaTeX's special letters is ours."""
    ours = re.compile(r"\\[a-z]+\{\}|\\[{}$&#_%]|\$\\[a-z]+\$|\$-\$|\{\[\}|\{\]\}|~|--+")
    assert not re.search(r"[\\{}$&#%^]", ours.sub("", latex_text(text)))


def test_the_page_allows_nothing_but_itself(everything):
    page, _, _ = everything
    policy = next(
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag, key in (("style", "style-src"), ("script", "script-src")):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)[1]
        said = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{key} 'sha256-{said}'" in policy
    assert not re.search(r"https?://|//[a-z]", page.source.replace("<!DOCTYPE", ""))
    links = [value for _, a in page.tags for key, value in a.items() if key in ("src", "href")]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_tables_say_what_they_are(everything):
    page, _, _ = everything
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert [tag for tag, _ in page.tags].count("caption") == [tag for tag, _ in page.tags].count("table")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} <= set(ids)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = write_rows(tmp_path / "results.jsonl", full_rows(tmp_path, seeds=(1,), splits=("warm",), pairs=120))
    first, second = tmp_path / "1.html", tmp_path / "2.html"
    for path in (first, second):
        report(rows, path)
    assert first.read_bytes() == second.read_bytes()


# ----------------------------------------------------------------------------------------------------- what is odd


def test_the_last_of_rows_that_came_again_counts(tmp_path):
    page = written(tmp_path, [a_row(auc=0.6), a_row("B"), a_row(auc=0.65), a_row(auc=0.7)])
    assert page.tables["Test metrics on toy, warm"]["A"]["AUC ↑"] == "0.7000"
    assert "2 rows came again in the file" in page.said("li")


def test_a_report_does_not_overwrite_what_it_reads(tmp_path):
    results = write_rows(tmp_path / "r.jsonl", [a_row("A", 1)])
    before = results.read_bytes()
    for output, more, said in (
        (results, {}, "is read, so the report cannot be written there"),
        (tmp_path / "r.html", {"markdown": tmp_path / "." / "r.jsonl"}, "is read"),
        (tmp_path / "r.html", {"latex": tmp_path / "r.html"}, "two forms"),
    ):
        with pytest.raises(ConfigError, match=said):
            report(results, output, **more)
    assert results.read_bytes() == before
    assert not (tmp_path / "r.html").exists()


def test_warnings(tmp_path):
    rows = [a_row("A", seed) for seed in (1, 2, 3)]
    rows += [a_row("B", 1, commit="b" * 40 + "-dirty", machine={"cpu": "other", "cores": 8, "gpus": []})]
    rows += [a_row("C", 1, oracle={"auc": 0.65, "logloss": 0.5}, data={"toy.warm.test.inter": "x"})]
    rows += [a_row("C", 2, data={"toy.warm.test.inter": "x"}), a_row("C", 3, data={"toy.warm.test.inter": "y"})]
    rows += [a_row("D", seed, test={"auc": 0.6, "ece": math.nan if seed == 1 else 0.1}) for seed in (1, 2, 3)]
    rows += [a_row("tried", 1, test=None), a_row("E", 1, predictions="gone.npz")]
    rows += [{"job": {"row": "F"}, "error": "it failed"}, {"job": {"row": "G"}, "error": "it failed once"}]
    rows += [a_row("G", 1, job={"row": "G"})]
    page = written(tmp_path, rows)
    said = page.said("li")
    for expected in (
        "The rows come from 2 versions of the code: aaaaaaaaaaaa (11 rows), bbbbbbbbbbbb (1 row).",
        "1 of 12 rows come from code with changes",
        "2 kinds of machine",
        "1 row did not read the test part",
        "1 run failed",
        "3 of 6 rows lack seeds that others have: B lacks seeds 2, 3",
        "different contents of toy.warm.test.inter",
        "AUC above the oracle's in C",
        "1 file of predictions that rows name cannot be found",
        "missing metrics, shown as empty cells: ece (10 of 12 rows)",
    ):
        assert expected in said, expected
    assert page.tables["Test metrics on toy, warm"]["A"]["ECE ↓"] == ""
    assert page.tables["Test metrics on toy, warm"]["D"]["ECE ↓"].startswith("0.1000")
    assert "Not shown: no two rows of a seed have files of predictions" in page.said("p")


def test_failed_trials_of_a_sweep_are_counted_one_by_one(tmp_path):
    """Three failed; one of them was run again and is there."""
    trial = {"depends_on": "h", "final": False, "settings": {"a": 1}, "test": None}
    rows = [a_row(), *({**trial, "trial": number, "error": "it failed"} for number in (1, 2, 3))]
    rows += [a_row(**trial, trial=3), {**trial, "final": True, "trial": 2, "seed": 5, "error": "it failed"}]
    assert "3 runs failed and left no row" in written(tmp_path, rows).said("li")


def test_a_training_whose_row_a_study_copies_took_its_time_once(tmp_path):
    rows = [a_row("A", 1, checkpoint=None, predictions="one.npz", time_s={"train": 100.0})]
    rows += [{**rows[0], "study": "data_size", "varied": {"train_share": 1.0}}]
    rows += [a_row("B", 1, checkpoint=None, predictions="two.npz", time_s={"train": 20.0})]
    page = written(tmp_path, rows)
    assert "2 min" in page.said("dd")
    assert "4 min" not in page.said("dd")


def test_rows_without_odd_things_have_no_warning(tmp_path):
    rows = [a_row(label, seed) for label in "AB" for seed in (1, 2)]
    rows[0]["test"]["priorentropy"] = 0.6  # of the labels alone, so no row lacks it
    said = report(write_rows(tmp_path / "r.jsonl", rows), tmp_path / "r.html")
    assert (said["warnings"], said["runs"]) == (0, 4)
    assert "Before you compare" not in (tmp_path / "r.html").read_text()


def test_rows_of_different_metrics(tmp_path):
    rows = [a_row("A", test={"recall@10": 0.2, "rmse": 0.9}), a_row("B", test={"recall@10": 0.3, "rmse": 1.1})]
    table = written(tmp_path, rows).tables["Test metrics on toy, warm"]
    assert (table["B"]["Recall@10 ↑"], table["A"]["rmse ↓"]) == ("0.3000", "0.9000")


def test_files_of_several_datasets_are_read_together(tmp_path):
    one = write_rows(tmp_path / "one.jsonl", [a_row("A")])
    two = write_rows(tmp_path / "two.jsonl", [a_row("A", dataset="other")])
    report([one, two], tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert {"Test metrics on toy, warm", "Test metrics on other, warm"} <= set(page.tables)
    assert "one.jsonl, two.jsonl" in page.said("dd")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "results.jsonl: empty file; train with `run_recbole` first"),
        ("\n \n", "empty file"),
        ('{"a": 1}\n', "line 1: no model, dataset, split, seed"),
        (json.dumps(a_row()) + '\n{"model": \n', "line 2 is not JSON"),
        (json.dumps(a_row()) + "\n\n[1]\n", "line 3: a JSON object is required, not a list"),
        (json.dumps(a_row(test=[1])) + "\n", "line 1: test is a list; a JSON object is required"),
        (json.dumps(a_row(test=None)) + "\n", "1 row, none with metrics of a test part"),
        ("[" * 100_000 + "\n", "line 1 is nested too deeply"),
        (b"\xff\xfe\n", "line 1 is not JSON"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, match):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(match)):
        report(path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_files_beside_that_cannot_be_read(tmp_path):
    results = write_rows(tmp_path / "results.jsonl", [a_row()])
    beside, output = tmp_path / "beside.json", tmp_path / "report.html"
    with pytest.raises(DataError, match=r"beside\.json: no such file; what `girl case` writes is required"):
        report(results, output, case=beside)
    beside.write_text("[1]")
    with pytest.raises(DataError, match=r"a JSON object is required .*girl judge.*, not a list"):
        report(results, output, judge=beside)
    with pytest.raises(DataError, match="a list of JSON objects is required"):
        report(results, output, comparisons=beside)
    beside.write_text('{"generators": []}')
    with pytest.raises(DataError, match=r"beside\.json: has no 'judges'; what `girl judge` writes is required"):
        report(results, output, judge=beside)
    beside.write_text("{")
    with pytest.raises(DataError, match="not JSON in UTF-8"):
        report(results, output, case=beside)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        report(tmp_path / "none.jsonl", output)
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    rows = [a_row(predictions="broken.npz"), a_row("B", predictions="broken.npz")]
    with pytest.raises(DataError, match=r"broken\.npz: not a file of predictions with test_user"):
        written(tmp_path, rows)
    np.savez(tmp_path / "broken.npz", test_label=np.array([True]), test_probability=np.array([1.5]))
    with pytest.raises(DataError, match="1 of 1 probabilities are not in"):
        written(tmp_path, rows[:1])


def test_predictions_of_other_pairs_are_not_compared(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for name, size in (("A", 80), ("B", 80), ("C", 60)):
        users = np.array([f"u{n // 2}" for n in range(size)])
        path = write_predictions(tmp_path / f"{name}.npz", np.arange(size) % 2 == 0, rng.random(size), users)
        rows.append(a_row(name, predictions=str(path)))
    page = written(tmp_path, rows)
    assert list(page.tables["Difference in AUC to A, toy, warm"]) == ["B"]
    assert "C is not compared: predictions number 1 of the two models are not of the same pairs" in page.said("li")


# ----------------------------------------------------------------------------------------------------------- charts


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_are_inside_even_and_few(low, span):
    high = low + span
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    assert np.ptp(np.diff(ticks)) <= 1e-6 * span


def test_places_of_marks_are_to_scale():
    """From 0 to 1 with 4 % of room on both sides: x = 0.5 in the middle, 0 at 100 * .04 / 1.08 = 3.7 %."""
    html = str(tracks([Track("a", [Mark(0.0), Mark(0.5, 0.0, 1.0)]), Track("<b>", [Mark(1.0)])], "AUC"))
    assert [float(x) for x in re.findall(r'cx="([\d.]+)%"', html)] == [3.7, 50.0, 96.3]
    assert '<line class="whisker s1" x1="3.7%" x2="96.3%"' in html
    assert "&lt;b&gt;" in html


def test_a_number_shown_as_zero_has_no_sign():
    assert [minus(text) for text in ("-0.0000", "+0.0000", "-0.0001", "+0.5")] == [
        "0.0000",
        "0.0000",
        "−0.0001",
        "+0.5",
    ]


# ------------------------------------------------------------------------------------------------------- real rows


def test_rows_of_run_recbole(tmp_path, monkeypatch, capsys):
    """Two models, two seeds and two learning rates on the tiny market, by the command line."""
    from tiny_market import LABELED, make_market

    from girl_recbole import cli
    from girl_recbole.run import run_experiment

    monkeypatch.chdir(tmp_path)
    make_market(tmp_path / "dataset")
    rows = []
    for more in ({}, {"learning_rate": 0.01}):
        for seed in (1, 2):
            overrides = {**LABELED, "seed": seed, "predictions_folder": "predictions", **more}
            rows.append(run_experiment("NeuMF", "tiny", overrides=overrides))
    capsys.readouterr()
    monkeypatch.setattr(
        "sys.argv", ["girl", "report", "results.jsonl", "--output=r.html", "--markdown=t.md", "--latex=t.tex"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "r.html, t.md, t.tex" in capsys.readouterr().out
    page = Page(tmp_path / "r.html")
    table = page.tables["Test metrics on tiny, warm"]
    assert list(table) == ["NeuMF", "NeuMF (learning_rate=0.01)", "prior", "oracle"]
    mean = sum(row["calibrated"]["logloss"] for row in rows[:2]) / 2
    assert table["NeuMF"]["LogLoss ↓"].startswith(f"{mean:.4f} ± ")
    assert table["oracle"]["AUC ↑"] == "1.0000"
    assert "Difference in AUC to NeuMF, tiny, warm" in page.tables
    assert {"calibration", "curves"} <= set(page.sections)
    assert "train_batch_size=64" in page.said("dd")  # what all rows share and the shipped files do not say
    assert "epochs=2" in page.said("dd")
