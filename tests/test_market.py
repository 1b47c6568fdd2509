"""The simulated market keeps its promises about truth, stages, texts and determinism, on a small run and as shipped."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from girl_recbole.atomic import DatasetFiles, read_docs, read_interactions, read_table, read_users
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.manifest import manifest_path, read_manifest
from girl_recbole.market import MarketConfig, match_probability, parse_job, read_truth, simulate, sizes_for
from girl_recbole.market.agents import draw_jobs, draw_seekers
from girl_recbole.market.decisions import match_logit
from girl_recbole.market.simulation import _demand
from girl_recbole.market.taxonomy import PLACES, load_taxonomy
from girl_recbole.market.text import write_cvs, write_jds

SHIPPED = DatasetFiles(Path(__file__).parent.parent / "dataset" / "jobrec-sim", "jobrec-sim")
SMALL = {
    "market_sft_pairs": 1500, "market_sft_seekers": 900, "market_sft_jobs": 600, "market_reward_pairs": 3000,
    "market_reward_seekers": 500, "market_reward_jobs": 400, "market_rl_seekers": 150, "market_rec_pairs": 6000,
    "market_rec_seekers": 1000, "market_rec_jobs": 600,
}  # fmt: skip


def run(folder, **overrides):
    files = DatasetFiles(folder, "sim")
    return files, simulate(files, make_config(MarketConfig, overrides={**SMALL, **overrides}))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def files(small):
    return small[0]


@pytest.fixture(scope="module")
def truth(files):
    return read_truth(files)


def rows_of(truth, frame):
    users = pd.Series(np.arange(len(truth.user_ids)), index=truth.user_ids)
    items = pd.Series(np.arange(len(truth.item_ids)), index=truth.item_ids)
    return users[frame["user_id"]].to_numpy(), items[frame["item_id"]].to_numpy()


# --- the world


def test_size_of_the_world():
    taxonomy = load_taxonomy()
    assert len(taxonomy.occupations) >= 60
    assert len(taxonomy.families) >= 10
    assert len(taxonomy.skills) >= 600
    assert np.allclose(taxonomy.step.sum(axis=1), 1)
    assert np.diag(taxonomy.step).max() == 0  # a step leads elsewhere
    assert (np.diag(taxonomy.near) == 1).all()
    assert np.array_equal(taxonomy.near, taxonomy.near.T)


def test_every_form_names_one_skill_and_every_title_one_occupation():
    taxonomy = load_taxonomy()
    owner = {}
    for number, skill in enumerate(taxonomy.skills):
        for form in {skill.short, skill.formal}:
            assert owner.setdefault(form, number) == number, form
    titles = [title.lower() for o in taxonomy.occupations for title in (*o.jd_titles, *o.cv_titles)]
    assert len(titles) == len(set(titles))


# --- probabilities


def test_hand_computed_logit(truth):
    """The same occupation, all musts at 50 of 100, no nices, one level too high, pay as wished, the same place."""
    seekers, jobs = truth.seekers.take(np.array([0])), truth.jobs.take(np.array([0]))
    seekers = dataclasses.replace(
        seekers, next_step=seekers.occupation, level=np.array([1]), ambition=np.array([0]), pay_wish=np.array([70.0]),
        place=np.array([3]), strength=np.full_like(seekers.strength, 50), appeal=np.array([2.0]),
    )  # fmt: skip
    jobs = dataclasses.replace(
        jobs, occupation=seekers.occupation, level=np.array([2]), nices=np.full((1, 4), -1), pay=np.array([70.0]),
        place=np.array([3]), openness=np.array([-0.5]),
    )  # fmt: skip
    expected = 0.8 * (2.6 * 1 + 2.8 * 0.5 - 0.55 * 2 + 0 + 1.1 + 0.35 * 2 - 0.5)
    assert match_logit(seekers, jobs)[0] == pytest.approx(expected)
    unknown = dataclasses.replace(jobs, pay=np.array([np.nan]), place=np.array([-1]), remote=np.array([False]))
    assert match_logit(seekers, unknown)[0] == pytest.approx(expected - 0.8 * 1.1)


def test_oracle_file_is_the_probability_of_the_latent_states(files, truth):
    oracle = read_table(files.oracle)
    user, item = rows_of(truth, oracle)
    p = match_probability(truth.seekers.take(user), truth.jobs.take(item), truth.intercept)
    assert np.abs(p - oracle["probability"]).max() < 1e-6
    pairs = pd.concat([read_interactions(files.stage("reward")), read_interactions(files.inter)])
    columns = ["user_id", "item_id"]
    assert set(map(tuple, pairs[columns].to_numpy())) == set(map(tuple, oracle[columns].to_numpy()))


def test_labels_are_bernoulli_of_the_oracle(files):
    """Calibration in ten bins: |sum(label - p)| stays below 4 standard deviations of the binomial sum."""
    for path in (files.inter, files.stage("reward"), SHIPPED.inter):
        oracle = SHIPPED.oracle if path == SHIPPED.inter else files.oracle
        joined = read_interactions(path).merge(read_table(oracle), on=["user_id", "item_id"], validate="1:1")
        p, label = joined["probability"].to_numpy(), joined["label"].to_numpy()
        bins = np.digitize(p, np.quantile(p, np.linspace(0, 1, 11)[1:-1]))
        for number in range(10):
            chosen = bins == number
            sd = np.sqrt((p[chosen] * (1 - p[chosen])).sum())
            assert abs((label[chosen] - p[chosen]).sum()) < 4 * sd, (path.name, number)


def test_shipped_oracle_is_neither_trivial_nor_blind():
    from sklearn.metrics import roc_auc_score

    joined = read_interactions(SHIPPED.inter).merge(read_table(SHIPPED.oracle), on=["user_id", "item_id"])
    assert 0.80 < roc_auc_score(joined["label"], joined["probability"]) < 0.85
    assert 0.25 < joined["label"].mean() < 0.40


def test_age_gender_and_school_change_no_probability(files, truth):
    user, item = rows_of(truth, read_table(files.oracle))
    seekers, jobs = truth.seekers.take(user), truth.jobs.take(item)
    swapped = dataclasses.replace(
        seekers, age=seekers.age[::-1] + 30, gender=1 - seekers.gender, school=8 - seekers.school
    )
    before = match_probability(seekers, jobs, truth.intercept)
    assert np.array_equal(before, match_probability(swapped, jobs, truth.intercept))


def test_skills_and_next_step_change_the_probability(files, truth):
    """The swap test above would pass on a constant: what must matter does."""
    user, item = rows_of(truth, read_table(files.oracle))
    seekers, jobs = truth.seekers.take(user), truth.jobs.take(item)
    before = match_logit(seekers, jobs)
    lost = dataclasses.replace(seekers, strength=seekers.strength * 0)
    assert (match_logit(lost, jobs) <= before).all()
    assert match_logit(lost, jobs).mean() < before.mean() - 0.5
    reached = dataclasses.replace(seekers, next_step=jobs.occupation)
    gain = match_logit(reached, jobs) - before
    assert gain.min() > -1e-9
    assert gain.mean() > 0.3


# --- stages


def test_sizes_are_the_asked_ones(small):
    files, report = small
    assert len(read_interactions(files.inter)) == report["rec_pairs"] == SMALL["market_rec_pairs"]
    assert len(read_interactions(files.stage("sft"))) == SMALL["market_sft_pairs"]
    assert len(read_interactions(files.stage("reward"))) == SMALL["market_reward_pairs"]
    assert len(read_users(files.stage("rl"))) == SMALL["market_rl_seekers"]
    assert report["match_rate"] == pytest.approx(0.33, abs=0.03)


@pytest.mark.parametrize("which", ["small", "shipped"])
def test_stages(files, which):
    files = SHIPPED if which == "shipped" else files
    stages = {"sft": files.stage("sft"), "reward": files.stage("reward"), "rec": files.inter}
    frames = {name: read_interactions(path) for name, path in stages.items()}
    days = {
        "sft": ("2023-04-01", "2023-04-30"),
        "reward": ("2023-05-01", "2023-05-07"),
        "rec": ("2023-05-08", "2023-05-31"),
    }
    for name, frame in frames.items():
        when = pd.to_datetime(frame["timestamp"], unit="s").dt.strftime("%Y-%m-%d")
        assert (when.min(), when.max()) == days[name]
        assert not frame.duplicated(["user_id", "item_id"]).any()
    assert (frames["sft"]["label"] == 1).all()
    everyone = pd.concat(frames.values())
    assert not everyone.duplicated(["user_id", "item_id"]).any()
    rl = set(read_users(files.stage("rl")))
    assert rl.isdisjoint(everyone["user_id"])
    both = set(frames["sft"]["user_id"]) | set(frames["reward"]["user_id"])
    shared = frames["rec"]["user_id"].drop_duplicates().isin(both).mean()
    assert 0.02 < shared < 0.25
    assert (frames["reward"].groupby("user_id")["label"].nunique() == 2).mean() > 0.6
    cvs, jds = read_docs(files.udoc), read_docs(files.idoc)
    assert set(cvs) == rl | set(everyone["user_id"]) == set(read_table(files.path("user"))["user_id"])
    assert set(jds) == set(everyone["item_id"]) == set(read_table(files.path("item"))["item_id"])


def test_demand_drifts():
    taxonomy = load_taxonomy()
    moves = [np.log(d[-1] / d[0]).std() for d in (_demand(np.random.default_rng(i), taxonomy, 0.5) for i in range(5))]
    assert np.mean(moves) == pytest.approx(0.5 * 2**0.5, rel=0.2)  # two months of a walk with 0.5 a month
    still = _demand(np.random.default_rng(0), taxonomy, 0.0)
    assert np.allclose(still[0], still[-1])


# --- texts


def test_lengths(files):
    cvs, jds = read_docs(files.udoc), read_docs(files.idoc)
    cv = np.array([len(text.split()) for text in cvs.values()])
    jd = np.array([len(text.split()) for text in jds.values()])
    assert 70 < np.median(cv) < 130
    assert 50 < np.median(jd) < 90
    assert cv.max() < 170
    assert jd.max() < 110
    text = " ".join([*cvs.values(), *jds.values()])
    assert "{" not in text
    assert "  " not in text
    assert not re.search(r"\ba [AEIO][a-z]|\ban [BCDFGKLMNPQRSTVW][a-z]", text)


def test_cvs_and_jds_use_different_words(truth):
    """JDs name tools and skills formally, CVs in short: the formal form is rare in CVs and the short one in JDs."""
    taxonomy = load_taxonomy()
    cvs = " ".join(write_cvs(truth.seekers, (0,)))
    jds = " ".join(write_jds(truth.jobs, (0,)))
    skills = [s for s in taxonomy.skills[: taxonomy.n_professional] if s.short not in s.formal]
    assert sum(s.formal in jds for s in skills) > 0.9 * len(skills)
    assert sum(s.formal in cvs for s in skills) == 0
    titles = [title for o in taxonomy.occupations for title in o.jd_titles]
    assert sum(f" {title} " in jds for title in titles) > 4 * sum(f" {title} " in cvs for title in titles)


def test_next_step_is_never_named():
    """A seeker who wants to move: no title of the next occupation in the CV."""
    taxonomy = load_taxonomy()
    count = len(taxonomy.occupations)
    seekers = draw_seekers(np.random.default_rng(3), taxonomy, np.full(count, 1 / count), 2000)
    moving = seekers.take((seekers.next_step != seekers.occupation) & (seekers.former != seekers.next_step))
    own = [{*taxonomy.occupations[o].cv_titles, *taxonomy.occupations[f].cv_titles}
           for o, f in zip(moving.occupation, moving.former, strict=True)]  # fmt: skip
    for text, goal, known in zip(write_cvs(moving, (0,)), moving.next_step, own, strict=True):
        for title in (*taxonomy.occupations[goal].jd_titles, *taxonomy.occupations[goal].cv_titles):
            if not any(title in mine for mine in known):
                assert not re.search(rf"\b{re.escape(title)}\b", text)


def test_jobs_are_read_back_from_their_texts(truth):
    texts = list(write_jds(truth.jobs, (5,)))
    right = {name: [] for name in ("occupation", "level", "place", "remote")}
    found = asked = true = 0
    for i, text in enumerate(texts):
        job = parse_job(text)
        assert job is not None
        for name, hits in right.items():
            hits.append(getattr(job, name)[0] == getattr(truth.jobs, name)[i])
        if not np.isnan(job.pay[0]):
            assert job.pay[0] == truth.jobs.pay[i]
        wanted = ({*truth.jobs.musts[i]} | {*truth.jobs.nices[i]}) - {-1}
        read = ({*job.musts[0]} | {*job.nices[0]}) - {-1}
        found, asked, true = found + len(wanted & read), asked + len(wanted), true + len(read)
    assert np.mean(right["occupation"]) >= 0.98
    assert np.mean(right["level"]) >= 0.95
    assert np.mean(right["place"]) == 1
    assert np.mean(right["remote"]) >= 0.95
    assert found / asked >= 0.97
    assert found / true >= 0.95


def test_parse_by_hand():
    taxonomy = load_taxonomy()
    number = [occupation.code for occupation in taxonomy.occupations].index("13-2011.00")
    title = taxonomy.occupations[number].jd_titles[0]
    job = parse_job(f"Senior {title} wanted in Denver. Month end, AP and Excel. Tax filing is a plus. $90,000, remote.")
    assert job.occupation[0] == number
    assert PLACES[job.place[0]][0] == "Denver"
    musts, nices = ({taxonomy.skills[k].short for k in row[0] if k >= 0} for row in (job.musts, job.nices))
    assert musts == {"month end", "AP", "Excel"}
    assert nices == {"tax filing"}
    assert (job.level[0], job.pay[0], bool(job.remote[0])) == (3, 90.0, True)
    assert parse_job("We need someone nice.") is None
    assert parse_job("") is None


def test_a_cv_foretells_the_matched_job(files, truth):
    """The job of the nearest other CV (TF-IDF) has the same occupation as one's own matched job far above chance."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    pairs = read_interactions(files.stage("sft")).drop_duplicates("user_id")
    cvs = read_docs(files.udoc)
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform([cvs[user] for user in pairs["user_id"]])
    near = (vectors @ vectors.T).toarray()
    np.fill_diagonal(near, -1)
    occupation = truth.jobs.occupation[rows_of(truth, pairs)[1]]
    agree = (occupation[near.argmax(axis=1)] == occupation).mean()
    chance = ((np.bincount(occupation) / len(occupation)) ** 2).sum()
    assert agree > 10 * chance


# --- files


def test_same_seed_same_bytes_other_seed_other_bytes(files, tmp_path):
    again, _ = run(tmp_path / "again")
    other, _ = run(tmp_path / "other", seed=7)
    names = sorted(path.name for path in files.folder.iterdir() if not path.name.endswith("manifest.json"))
    assert len(names) == 10
    for name in names:
        assert (files.folder / name).read_bytes() == (again.folder / name).read_bytes(), name
        assert (files.folder / name).read_bytes() != (other.folder / name).read_bytes(), name


def test_shipped_dataset_is_what_the_code_makes(tmp_path):
    simulated = DatasetFiles(tmp_path, "jobrec-sim")
    simulate(simulated, make_config(MarketConfig, dataset="jobrec-sim"))
    for path in tmp_path.iterdir():
        if path.suffix not in (".json", ".npz"):
            assert path.read_bytes() == (SHIPPED.folder / path.name).read_bytes(), path.name


def test_a_failed_run_leaves_no_manifest(tmp_path):
    files, _ = run(tmp_path)
    assert read_manifest(files.inter)["kind"] == "dataset"
    files.idoc.unlink()
    (files.idoc / "in the way").mkdir(parents=True)  # the job texts cannot be put in place
    with pytest.raises(OSError, match="idoc"):
        run(tmp_path, seed=8)
    assert not manifest_path(files.inter).exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_truth_survives_the_file(files, truth):
    count = len(truth.user_ids)
    assert len(truth.seekers) == count == len(read_docs(files.udoc))
    assert truth.seekers.strength.max() <= 100
    assert (truth.seekers.strength > 0).sum(axis=1).min() >= 3
    with pytest.raises(DataError, match="no latent states"):
        read_truth(DatasetFiles(files.folder, "other"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"market_rec_jobs": 0}, "market_rec_jobs must be at least 1"),
        ({"market_match_rate": 1.5}, "market_match_rate is 1.5; 0.01 to 0.99"),
        ({"market_sft_pairs": 50_000}, "market_sft_pairs is 50000, more than 5 % of 900 seekers x 600 jobs"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **overrides)


def test_jobs_follow_demand():
    """All demand on one occupation: all jobs are of it."""
    taxonomy = load_taxonomy()
    demand = np.full((3, len(taxonomy.occupations)), 1e-12)
    demand[:, 5] = 1
    demand /= demand.sum(axis=1, keepdims=True)
    jobs = draw_jobs(np.random.default_rng(0), taxonomy, demand, np.array([0, 1, 2] * 20))
    assert (jobs.occupation == 5).all()
    core = set(taxonomy.occupations[5].core.tolist())
    assert all(set(row[row >= 0]) <= core for row in jobs.musts[:, :4])


def test_sizes_scale_with_the_recommendation_stage():
    assert sizes_for(2000, 1000) == sizes_for(2000, None)
    half = sizes_for(1000, None)
    assert (half["market_rec_seekers"], half["market_rec_jobs"], half["market_sft_pairs"]) == (1000, 500, 4000)
    assert sizes_for(None, 500)["market_rec_seekers"] == 2000
    with pytest.raises(ConfigError, match="5 seekers and 5 jobs leave a stage without a pair; at least about 8"):
        sizes_for(5, 5)
    sizes_for(8, 8)
    tiny = sizes_for(60, 40)
    assert tiny["market_rec_pairs"] == 120  # 5 % of 60 x 40, not 360
