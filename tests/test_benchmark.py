"""The benchmark: its plan, what it does once and not twice, what chooses settings, and the statistics of its tables."""

import json
import logging

import numpy as np
import pytest

from girl_recbole import predictions
from girl_recbole.benchmark import BenchmarkConfig, benchmark, compare, draw_settings, read_plan
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.jobs import Job, read_lines, run_jobs

PLAN = """
splits: [cold]
seeds: [1, 2]
trials: 2
tuning_split: cold
settings: {epochs: 2, use_gpu: False, train_batch_size: 512}
rows:
  - {row: base, model: GIRLBaseMLP, space: {learning_rate: [0.00001, 0.002]}}
  - {row: girl, model: GIRLEnhancedMLP, fixed: {generator: sft}}
  - {row: zeros, like: girl, kind: control, fixed: {generated: zeros}}
compare: [[girl, base], [girl, zeros]]
studies:
  generation_number: {like: [girl], values: {n_generated: [1, 2, 5]}}
quick: {seeds: [1], trials: 1, leave_out: [zeros], studies: []}
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def _config(plan, folder, encoder, **more) -> BenchmarkConfig:
    given = {"benchmark": str(plan), "benchmark_folder": str(folder), "benchmark_jobs": 1, "encoder": str(encoder)}
    return make_config(BenchmarkConfig, overrides={**given, **more})


def test_the_shipped_plan_names_models_and_keys_that_exist():
    from girl_recbole.recbole_config import check_known, check_model

    plan = read_plan("table")
    names = [row.row for row in plan.rows]
    for row in plan.rows:
        check_model(row.model)
        check_known({**row.fixed, **row.space}, row.row, [row.model])
    assert {name for study in plan.studies.values() for name in study["like"]} <= set(names)
    quick = read_plan("table", quick=True)
    assert len(quick.seeds) < len(plan.seeds)
    assert len(quick.rows) < len(plan.rows)


def test_only_some_rows_and_what_they_are_like(plan):
    assert [row.row for row in read_plan(str(plan), only=["zeros"]).rows] == ["girl", "zeros"]
    assert read_plan(str(plan), only=["base", "girl"]).compare == [["girl", "base"]]
    with pytest.raises(ConfigError, match="no row 'gril' - did you mean 'girl'"):
        read_plan(str(plan), only=["gril"])
    plan.write_text(PLAN.replace("[girl, zeros]]", "[girl, zeroes]]"))
    with pytest.raises(ConfigError, match="compare: no row 'zeroes' - did you mean 'zeros'"):
        read_plan(str(plan))
    plan.write_text(PLAN.replace("space:", "sapce:"))
    with pytest.raises(ConfigError, match="row 'base': unknown key 'sapce' - did you mean 'space'"):
        read_plan(str(plan))
    plan.write_text(PLAN.replace("row: girl", "row: base"))
    with pytest.raises(ConfigError, match="two rows are named 'base'"):
        read_plan(str(plan))


def test_settings_are_the_shipped_ones_and_different_points_of_the_grid():
    space = {"a": [1, 2, 3], "b": [[64], [32, 16]]}
    drawn = draw_settings(space, 5, seed=0)
    assert drawn[0] == {}
    assert len({json.dumps(settings) for settings in drawn}) == 5
    assert all(settings["a"] in space["a"] and settings["b"] in space["b"] for settings in drawn[1:])
    assert draw_settings(space, 5, seed=0) == drawn != draw_settings(space, 5, seed=1)
    assert len(draw_settings(space, 100, seed=0)) == 7
    assert draw_settings({}, 4, seed=0) == [{}]
    again = draw_settings(space, 5, seed=0, shipped={**drawn[2], "epochs": 3})
    assert again == [*drawn[:2], *drawn[3:]]  # what is shipped is not tried twice


def test_a_benchmark_tunes_trains_compares_and_is_not_done_twice(toy, tiny_encoder, plan, tmp_path):
    folder = tmp_path / "out"
    said = benchmark(toy, _config(plan, folder, tiny_encoder))
    rows, trials = read_lines(folder / "results.jsonl"), read_lines(folder / "trials.jsonl")

    assert [line["test"] for line in trials] == [None, None]  # the settings were chosen without it
    by_settings = {str(line["job"]["settings"]): line["valid"]["auc"] for line in trials}
    best = max(by_settings, key=by_settings.get)
    table = [row for row in rows if row["study"] == "table"]
    assert {str(row["tuning"]["best"]) for row in table if row["row"] == "base"} == {best}
    assert sorted((row["row"], row["seed"]) for row in table) == [
        (name, seed) for name in ("base", "girl", "zeros") for seed in (1, 2)
    ]
    numbers = sorted((row["varied"]["n_generated"], row["seed"]) for row in rows if row["study"] == "generation_number")
    assert numbers == [(1, 1), (1, 2), (2, 1), (2, 2)]  # two JDs a seeker are there, so 5 is left out
    assert said["models trained"] == len(rows) == 10
    of_girl = [row for row in rows if (row["row"], row["seed"]) == ("girl", 1)]
    one, of_study = (
        next(row for row in of_girl if (row["study"], row["varied"]) == wanted)
        for wanted in (("table", {}), ("generation_number", {"n_generated": 1}))
    )
    assert of_study["test"] == one["test"]  # n = 1 is the table's, copied
    for row in table:
        test = predictions.load(row["predictions"])["test"]
        assert predictions.scores(test, 10)["auc"] == pytest.approx(row["test"]["auc"], abs=1e-4)
    found = json.loads((folder / "comparisons.json").read_text())
    assert [(entry["a"], entry["b"], entry["seeds"]) for entry in found] == [("girl", "base", 2), ("girl", "zeros", 2)]
    assert all(entry["p_holm"] >= entry["p"] for entry in found)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("base", "girl", "zeros"))
    assert "girl" in (folder / "tables.md").read_text()

    before = [(folder / name).read_bytes() for name in ("runs.jsonl", "trials.jsonl")]
    benchmark(toy, _config(plan, folder, tiny_encoder))
    assert [(folder / name).read_bytes() for name in ("runs.jsonl", "trials.jsonl")] == before

    lines = before[0].splitlines(keepends=True)
    (folder / "runs.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:200])  # killed while it wrote
    benchmark(toy, _config(plan, folder, tiny_encoder))
    again = read_lines(folder / "results.jsonl")
    assert {json.dumps(row["job"], sort_keys=True): row["test"] for row in again} == {
        json.dumps(row["job"], sort_keys=True): row["test"] for row in rows
    }


def test_a_row_that_fails_is_said_and_the_others_are_done(toy, tiny_encoder, plan, tmp_path, caplog):
    plan.write_text(PLAN.replace("{row: base, model: GIRLBaseMLP, space: {learning_rate: [0.00001, 0.002]}}",
                                 "{row: base, model: GIRLBaseMLP, fixed: {dropout_prob: 2.0}}"))  # fmt: skip
    with pytest.raises(DataError, match=r"1 of 2 models failed \(first: .*base.*dropout_prob: 2.0"):
        benchmark(toy, _config(plan, tmp_path / "out", tiny_encoder), quick=True)
    assert [row["row"] for row in read_lines(tmp_path / "out" / "results.jsonl")] == ["girl"]


def test_missing_jds_name_the_command(toy, tiny_encoder, plan, tmp_path):
    toy.gdoc("sft").unlink()
    with pytest.raises(DataError, match=r"toy.sft.gdoc: no such file; .* Run `girl align toy`"):
        benchmark(toy, _config(plan, tmp_path / "out", tiny_encoder))


def _row(tmp_path, name, seed, probability, label, study="table"):
    users = np.array([f"u{i // 4:03d}" for i in range(len(label))])
    items = np.array([f"i{i % 4}" for i in range(len(label))])
    part = {"user": users, "item": items, "label": label, "probability": probability}
    path = tmp_path / f"{name}-{seed}.npz"
    predictions.save(path, {"valid": part, "test": part})
    return {"row": name, "study": study, "seed": seed, "predictions": str(path), "job": {"split": "cold"}}


def test_comparisons_find_what_was_planted_and_correct_together(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for seed in (1, 2, 3):
        label = rng.random(400) < 0.4
        noise = 0.6 * rng.random(400)
        good, same = (0.3 * label + noise + 0.1 * rng.random(400) for _ in range(2))
        bad = noise / 0.6
        for name, p in (("good", good), ("bad", bad), ("same", same)):
            rows.append(_row(tmp_path, name, seed, p, label))
    found = compare(rows, [["good", "bad"], ["good", "same"], ["good", "absent"]])
    assert [entry["b"] for entry in found] == ["bad", "same"]
    assert found[0]["low"] > 0.2
    assert found[0]["p_holm"] == pytest.approx(2 * found[0]["p"])
    assert found[0]["p_holm"] < 0.01
    assert found[1]["p_holm"] > 0.05


def test_rows_of_studies_are_compared_by_what_is_varied(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for seed in (1, 2, 3):
        label = rng.random(400) < 0.4
        for name, study, varied, quality in (
            ("girl", "table", {}, 0.0), ("girl", "number", {"n": 8}, 0.5), ("base", "stages", {"s": ["a", "b"]}, 0.1),
        ):  # fmt: skip
            row = _row(tmp_path, f"{study}", seed, quality * label + rng.random(400), label, study)
            rows.append({**row, "row": name, "varied": varied})
    pairs = [[{"row": "girl", "n": 8}, "girl"], [{"row": "girl", "n": 8}, {"row": "base", "s": ["a", "b"]}]]
    found = compare(rows, [*pairs, [{"row": "girl", "n": 9}, "girl"]], "number")
    assert [(entry["study"], entry["a"], entry["b"]) for entry in found] == [
        ("number", "girl, n 8", "girl"), ("number", "girl, n 8", "base, s a, b"),
    ]  # fmt: skip
    assert found[0]["low"] > 0.1
    assert found[0]["mean"] > found[1]["mean"]


def test_what_numbers_depend_on(toy, tiny_encoder, plan, tmp_path):
    """Another encoder, other interactions, another split: nothing of before counts; a split of before is cut anew."""
    from girl_recbole.atomic import read_interactions, write_interactions
    from girl_recbole.benchmark import _make_splits, _state

    def state(encoder):
        read = read_plan(str(plan))
        _make_splits(toy, read)
        return _state(toy, read, _config(plan, tmp_path, encoder))

    states = [state(tiny_encoder), state("minilm")]
    assert states[0] == state(tiny_encoder)
    split = toy.split("cold-s1", "test").read_text()
    write_interactions(toy.inter, read_interactions(toy.inter).iloc[::2])
    states.append(state(tiny_encoder))
    assert toy.split("cold-s1", "test").read_text() != split
    toy.split("cold-s2", "train").write_text(toy.split("cold-s2", "train").read_text() + "u1\ti1\t1\n")
    states.append(state(tiny_encoder))
    assert len(set(states)) == 4


@pytest.mark.parametrize("change", [
    ("fixed: {generator: sft}}", "fixed: {}}"),  # the default of the package
    ("fixed: {generator: sft}}", "space: {generator: [sft]}}"),
    ("model: GIRLEnhancedMLP, fixed: {generator: sft}", "model: BM25, fixed: {lexical_query: generated}"),
    ("model: GIRLEnhancedMLP, fixed: {generator: sft}", "model: BM25, space: {lexical_query: [cv, generated]}"),
    ("model: GIRLEnhancedMLP, fixed: {generator: sft}", "model: GradientBoosting, space: {boosting_generated: [True]}"),
])  # fmt: skip
def test_the_jds_that_a_row_reads_count_wherever_their_generator_is_named(toy, tiny_encoder, plan, tmp_path, change):
    from girl_recbole.benchmark import _final_jobs, _kinds, _make_splits, _state

    plan.write_text(PLAN.replace(*change).replace("fixed: {generated: zeros}", "fixed: {}"))
    read = read_plan(str(plan))
    assert _kinds(toy, read) == ["cv", "jd", "gen.sft"]
    _make_splits(toy, read)
    config = _config(plan, tmp_path, tiny_encoder)
    best = {row.row: {key: values[-1] for key, values in row.space.items()} for row in read.rows}
    chosen = {name: {"trials": 1, "space": {}, "best": settings, "seconds": 0} for name, settings in best.items()}
    studied = [job.more["varied"] for job in _final_jobs(toy, read, config, tmp_path, chosen) if job.more["varied"]]
    assert {varied["n_generated"] for varied in studied} == {1, 2}  # two are there
    before = _state(toy, read, config)
    toy.gdoc("sft").write_text(toy.gdoc("sft").read_text() + "u1\t9\tone more\n")
    assert _state(toy, read, config) != before


def test_the_language_model_that_a_row_reads_counts(toy, tiny_encoder, plan, tmp_path):
    from girl_recbole.benchmark import _make_splits, _state

    (tmp_path / "lm").mkdir()
    named = f"{{row: llm, model: FTLLM, fixed: {{ftllm_base: {tmp_path / 'lm'}}}}}"
    pooled = f"{{row: big, model: BIGRec, fixed: {{bigrec_pooling: mean, bigrec_lm: {tmp_path / 'lm'}}}}}"
    for row in (named, pooled):
        plan.write_text(PLAN.replace("rows:", f"rows:\n  - {row}"))
        read, states = read_plan(str(plan)), set()
        _make_splits(toy, read)
        for weights in ("some", "others"):
            (tmp_path / "lm" / "model.safetensors").write_text(weights)
            states.add(_state(toy, read, _config(plan, tmp_path, tiny_encoder)))
        assert len(states) == 2


def test_rows_that_read_no_jds_need_none(toy, plan):
    from girl_recbole.benchmark import _kinds, _with_texts

    toy.gdoc("sft").unlink()
    plan.write_text(PLAN.replace("fixed: {generator: sft}", "fixed: {generated: cv}"))
    read = _with_texts(toy, read_plan(str(plan)))
    assert [row.row for row in read.rows] == ["base", "girl", "zeros"]
    assert _kinds(toy, read) == ["cv", "jd"]


def test_a_control_of_a_row_whose_generator_is_searched_or_studied(toy, plan):
    from girl_recbole.benchmark import _all_generators, _with_texts

    toy.gdoc("sft").rename(toy.gdoc("ppo"))
    plan.write_text(PLAN.replace("fixed: {generator: sft}", "space: {generator: [ppo]}"))
    assert [row.row for row in _with_texts(toy, read_plan(str(plan))).rows] == ["base", "girl", "zeros"]
    studied = PLAN.replace("values: {n_generated: [1, 2, 5]}", "values: {generator: [ppo, dpo]}")
    plan.write_text(studied)
    assert _all_generators(toy, read_plan(str(plan))) == ["sft", "ppo", "dpo"]


def test_like_a_row_that_is_like_another(toy, plan, caplog):
    from girl_recbole.benchmark import _with_texts

    plan.write_text(PLAN.replace("compare:", "  - {row: more, like: zeros, fixed: {generator: other}}\ncompare:"))
    assert [(row.row, row.like) for row in read_plan(str(plan)).rows][-2:] == [("zeros", "girl"), ("more", "girl")]
    assert [row.row for row in read_plan(str(plan), only=["more"]).rows] == ["girl", "more"]
    plan.write_text(PLAN.replace("{generator: sft}", "{generator: other}").replace("rows:", "rows:\n  - "
                    "{row: dot, model: GIRLEnhancedDot, fixed: {generator: sft}}"))  # fmt: skip
    kept = _with_texts(toy, read_plan(str(plan)))
    assert [row.row for row in kept.rows] == ["dot", "base"]  # a control goes with the row that it is like
    assert "no JDs of other, so these rows are left out: girl; zeros" in caplog.text


def test_a_plans_settings_are_every_rows_and_no_row_is_a_mislabelled_copy(toy, plan, tmp_path):
    from girl_recbole.benchmark import _final_jobs, _has

    plan.write_text(PLAN.replace("epochs: 2", "epochs: 2, n_generated: 2, stopping_step: 1")
                    .replace("rows:", "rows:\n  - {row: ids, model: NeuMF}"))  # fmt: skip
    read, chosen = read_plan(str(plan)), {"trials": 1, "space": {}, "best": {}, "seconds": 0}
    jobs = _final_jobs(toy, read, _config(plan, tmp_path, "minilm"), tmp_path, {row.row: chosen for row in read.rows})
    ids = next(job for job in jobs if job.key["row"] == "ids")
    assert (ids.overrides["epochs"], ids.overrides["stopping_step"]) == (2, 1)
    assert ids.overrides["valid_metric"] == "AUC"  # of our NeuMF.yaml
    girl = next(job for job in jobs if job.key["row"] == "girl" and job.more["study"] == "table")
    assert _has(toy, girl, {"n_generated": 2})
    assert not _has(toy, girl, {"n_generated": 1})


@pytest.mark.parametrize("change, said", [
    (("model: GIRLBaseMLP", "model: Nope"), "unknown model 'Nope'"),
    (("seeds: [1, 2]", "seeds: [1, 1]"), "seeds: .1, 1.; different whole numbers"),
    (("trials: 2", "trials: many"), "trials: 'many'; a int is required"),
    (("trials: 2", "trials: 0"), "trials: 0; at least 1 is required"),
    (("trials: 1", "trials: 0"), "trials: 0; at least 1 is required"),
    (("fixed: {generated: zeros}", "fixed: {generated: zeros}, space: {learning_rate: [1]}"), "so no space"),
    (("{generator: sft}", "{generator: sft}, space: {generator: [ppo]}"), "row 'girl': generator: both fixed and sea"),
    (("values: {n_generated: [1, 2, 5]}", "values: {n_generated: [1, 1]}"), "n_generated: .1, 1.; different ones"),
    (("like: [girl], values", "like: [girl, girl], values"), "like: .'girl', 'girl'.; different ones"),
    (("like: [girl], values: {n_generated: [1, 2, 5]}", "values: {}"), "like .rows. and values are required"),
    (("compare:", "reference: Foo\ncompare:"), "no row 'Foo'"),
    (("like: [girl]", "like: [gril]"), "no row 'gril' - did you mean 'girl'.$"),
    (("compare:", "evaluate: [{rows: [Foo], seeds: [1], settings: {}}]\ncompare:"), "no row 'Foo'"),
    (("quick: {", "quick: {foo: 1, "), "quick: unknown key 'foo'"),
    (("learning_rate: [0", "learning_rat: [0"), "unknown key 'learning_rat'"),
])  # fmt: skip
def test_a_plan_that_cannot_run_is_refused_at_once(plan, change, said):
    plan.write_text(PLAN.replace(*change))
    with pytest.raises(ConfigError, match=said):
        read_plan(str(plan))


def test_a_plan_without_rows(plan):
    for text, said in (("", "splits: None; a list is required"), (PLAN.partition("rows:")[0] + "rows: []", "no rows")):
        plan.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_plan(str(plan))


def test_warm_is_left_out_where_no_seeker_has_two_matches(toy, plan, caplog):
    from girl_recbole.atomic import read_interactions, write_interactions
    from girl_recbole.benchmark import _without_warm

    plan.write_text(
        PLAN.replace("splits: [cold]", "splits: [warm, cold]").replace("tuning_split: cold", "tuning_split: warm")
    )
    read = read_plan(str(plan))
    assert _without_warm(toy, read) == read
    rows = read_interactions(toy.inter)
    once = rows[(rows["label"] == 0) | ~rows.duplicated(["user_id", "label"])]
    write_interactions(toy.inter, once)
    found = _without_warm(toy, read)
    assert (found.splits, found.tuning_split) == (["cold"], "cold")
    assert "no seeker has two matches" in caplog.text


def test_jobs_of_one_key_and_lines_that_are_no_json(tmp_path, caplog):
    job = Job({"row": "a"}, "GIRLBaseMLP", "toy", {})
    with pytest.raises(DataError, match="two jobs are named"):
        run_jobs([job, job], tmp_path / "r.jsonl", "s", 1)
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"b": \n{"c": 2}\n')
    with caplog.at_level(logging.WARNING):
        assert read_lines(tmp_path / "r.jsonl") == [{"a": 1}, {"c": 2}]
    assert "line 2 is not JSON" in caplog.text
