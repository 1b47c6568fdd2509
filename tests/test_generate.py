"""generate.py: who gets JDs, that they depend on the CV alone, and that a killed run ends as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from tiny_lms import plain_tokenizer, tiny_model

from girl_recbole import llm
from girl_recbole.atomic import DatasetFiles, read_generated, write_docs, write_interactions, write_users
from girl_recbole.config import make_config
from girl_recbole.embed import read_texts
from girl_recbole.engines.base import Asked
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import (
    Completion,
    GenerateConfig,
    JDGenerator,
    LocalEngine,
    Written,
    generate,
    generator_folder,
    keep_best,
    trained_with,
)
from girl_recbole.manifest import read_manifest, text_hash, write_manifest
from girl_recbole.prompts import INSTRUCTIONS, make_prompt, words_of
from girl_recbole.rewards import length_reward

SETTINGS = {
    "max_cv_tokens": 40, "max_jd_tokens": 12, "temperature": 1.0, "gen_samples": 2, "gen_batch_size": 6,
    "gen_shard_size": 4,
}  # fmt: skip


def cv(i: int) -> str:
    return f"Seeker {i % 9} " + "plans care and watches wounds. " * (i % 9 % 4)  # u0 and u9, u1 and u10 ... share a CV


@pytest.fixture
def files(tmp_path) -> DatasetFiles:
    """14 seekers with 9 distinct CVs, ten of them in the recommendation stage, and a random generator."""
    files = DatasetFiles(tmp_path / "toy", "toy")
    write_docs(files.udoc, [(f"u{i}", cv(i)) for i in range(14)], "user")
    users = [f"u{i}" for i in (3, 1, 2, 0, 4, 5, 9, 10, 12, 8, 3, 3)]
    table = pd.DataFrame({"user_id": users, "item_id": "j", "label": 1.0})
    write_interactions(files.inter, table)
    write_interactions(files.stage("sft"), table.assign(user_id="u11")[:2])
    write_users(files.stage("rl"), ["u13"])
    save_generator(tmp_path, seed=0)
    return files


def save_generator(tmp_path, seed: int, prompt: str | None = None) -> None:
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    tokenizer = plain_tokenizer()
    tiny_model(tokenizer, seed=seed, spread=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {"prompt": prompt or make_prompt("en").id, "fingerprint": llm.load(str(folder)).fingerprint}
    write_manifest(folder, "generator", config={}, **facts)


def config(tmp_path, **overrides) -> GenerateConfig:
    return make_config(GenerateConfig, overrides={"saved_folder": str(tmp_path / "saved"), **SETTINGS, **overrides})


# ------------------------------------------------------------------------------------------------------- what is made


def test_every_seeker_of_the_stage_in_order_equal_cvs_alike(files, tmp_path):
    report = generate(files, config(tmp_path))
    written = read_generated(files.gdoc("sft"))
    assert list(written) == ["u0", "u1", "u2", "u3", "u4", "u5", "u8", "u9", "u10", "u12"]  # as in toy.udoc
    assert all(len(jds) == 2 for jds in written.values())
    assert written["u9"] == written["u0"]
    assert written["u10"] == written["u1"]
    assert written["u12"] == written["u3"]
    assert len({tuple(jds) for jds in written.values()}) == report["distinct_cvs"] == 7
    assert (report["seekers"], report["jds"], report["shards"]) == (10, 20, 2)
    assert not files.gdoc("sft").with_name("toy.sft.gdoc.shards").exists()


def test_a_jd_depends_on_its_cv_and_number_only(files, tmp_path):
    """Not on the batch, the shard, the other seekers, their order, or the number of samples."""
    generate(files, config(tmp_path))
    expected = read_generated(files.gdoc("sft"))
    generate(files, config(tmp_path, gen_samples=1, gen_batch_size=1, gen_shard_size=100))
    assert read_generated(files.gdoc("sft")) == {user: jds[:1] for user, jds in expected.items()}
    everyone = ["rl", "recommendation", "sft"]
    generate(files, config(tmp_path, gen_stages=everyone, gen_batch_size=64, gen_shard_size=3))
    written = read_generated(files.gdoc("sft"))
    assert list(written) == [f"u{i}" for i in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)]
    assert {user: written[user] for user in expected} == expected
    assert written["u11"] == expected["u2"]  # the same CV
    generate(files, config(tmp_path, seed=1))
    assert not set(map(tuple, read_generated(files.gdoc("sft")).values())) & set(map(tuple, expected.values()))


def test_the_engine_gets_the_training_prompt_and_keys_of_the_cv():
    """The generator owns prompt and keys; an engine of two lines is enough."""
    calls = []

    class Echo:
        settings: ClassVar = {}

        def complete(self, asked):
            calls.extend(asked)
            return [[Completion(f" {key} \n", True) for key in one.keys] for one in asked]

    tokenizer, prompt = plain_tokenizer(), make_prompt("en")
    (written,) = JDGenerator(Echo(), tokenizer, prompt, 5, samples=2, max_cv_tokens=3).write([" A nurse plans.\n"])
    (asked,) = calls
    assert asked.ids == prompt.encode(tokenizer, "A nurse plans.", 3)[0]
    assert asked.keys == [llm.sample_key(5, " A nurse plans.\n", i) for i in range(2)]
    assert asked.message == f"{INSTRUCTIONS['en']}\n\n{tokenizer.decode(tokenizer.encode('A nurse plans.')[:3])}"
    assert written.texts == [str(key) for key in asked.keys]
    assert written.cut == len(tokenizer.encode("A nurse plans.")) - 3
    JDGenerator(Echo(), tokenizer, prompt, 5, samples=1, max_cv_tokens=99).write(["A nurse plans. "])
    assert calls[1].message == f"{INSTRUCTIONS['en']}\n\nA nurse plans."


def test_without_a_tokenizer_four_letters_or_a_chinese_character_are_a_piece():
    class Message:
        settings: ClassVar = {}

        def complete(self, asked):
            assert not any(one.ids for one in asked)
            return [[Completion(one.message.partition("\n\n")[2], True)] for one in asked]

    def cut(cv, pieces):
        (written,) = JDGenerator(Message(), None, make_prompt("en"), 0, 1, pieces).write([cv])
        return written.texts[0], written.cut

    assert cut("nursing care, 5 years", 99) == ("nursing care, 5 years", 0)
    assert cut("nursing care, 5 years", 3) == ("nursing care", 4)  # nurs|ing|care|,|5|year|s
    assert cut("护士照顾病人", 2) == ("护士", 4)
    assert cut("IT护士", 2) == ("IT护", 1)


def test_local_engine_returns_rows_in_the_order_given(files, tmp_path):
    lm = llm.load(str(generator_folder(str(tmp_path / "saved"), "toy", "sft")))
    asked = [Asked([40 + i] * (1 + 7 * i % 11), "", [i, 100 + i]) for i in range(11)]
    rows = LocalEngine(lm, 9, 1.0, 1.0, batch_size=4).complete(asked)
    for one, row in zip(asked, rows, strict=True):
        assert LocalEngine(lm, 9, 1.0, 1.0, batch_size=1).complete([one]) == [row]


def test_empty_and_unstructured_jds_are_kept_counted_and_flagged(files, tmp_path):
    report = generate(files, config(tmp_path))
    written = read_generated(files.gdoc("sft"))
    texts = [(f"{user}/{i}", jd) for user, jds in written.items() for i, jd in enumerate(jds)]
    assert len(texts) == 20
    assert sum(report["problems"].get(kind, 0) for kind in ("empty", "no title", "no body", "repeats itself")) == 20
    assert report["problems"]["cut by max_jd_tokens"] > 10  # a random model hardly ever stops
    for kind, names in report["flagged_first"].items():
        assert len(names) == report["problems"][kind] <= 20
        assert set(names) <= dict(texts).keys()
    manifest = read_manifest(files.gdoc("sft"))
    assert manifest["report"]["problems"] == report["problems"]
    assert manifest["settings"]["prompt"] == make_prompt("en").id
    assert "Seeker" not in json.dumps(manifest)  # ids, no CVs


def test_long_cvs_are_cut_counted_and_an_instruction_without_room_is_an_error(files, tmp_path):
    assert generate(files, config(tmp_path, max_cv_tokens=200))["cvs_cut"] == 0
    assert generate(files, config(tmp_path, max_cv_tokens=20))["cvs_cut"] > 0
    # max_cv_tokens asks for more than context 512 - instruction - JD leaves: the CV gives way
    write_docs(files.udoc, [(f"u{i}", "nurse " * 400) for i in range(14)], "user")
    report = generate(files, config(tmp_path, max_cv_tokens=5000, gen_samples=1))
    assert (report["cvs_cut"], report["distinct_cvs"]) == (10, 1)
    with pytest.raises(ConfigError, match="leave no room for a CV in the 512 tokens"):
        generate(files, config(tmp_path, max_jd_tokens=500))


# ---------------------------------------------------------------------------------------------------------- best of n

BEST = {"gen_best_of": 3, "rewards": {"length": 1.0}, "length_words": [8, 9]}


def test_the_first_of_the_best_is_kept():
    written = Written(list("abcdef"), [True, False] * 3, 7)
    rewards = np.array([[0.5, 2.0, 2.0], [-1.0, -3.0, -2.0]])
    kept = keep_best(written, rewards)
    assert kept == Written(["b", "d"], [False, False], 7, rewards.tolist())


def test_best_of_n_keeps_the_best_of_the_jds_that_plain_generation_writes(files, tmp_path):
    """Sample i is the best of the samples 3 i ... 3 i + 2, by a slow loop."""
    generate(files, config(tmp_path, gen_samples=6))
    candidates = read_generated(files.gdoc("sft"))
    report = generate(files, config(tmp_path, **BEST))
    kept, everything = [], []

    def reward(jd):
        return length_reward(len(words_of(jd)), 8, 9)

    for user, jds in read_generated(files.gdoc("sft-best-of-3")).items():
        for i, jd in enumerate(jds):
            row = candidates[user][3 * i : 3 * i + 3]
            assert jd == max(row, key=reward)  # max gives the first of equals
            kept.append(reward(jd))
            everything += map(reward, row)
    assert (report["jds"], len(everything)) == (20, 60)
    assert report["mean_reward_of_kept"] == pytest.approx(np.mean(kept))
    assert report["mean_reward_of_all_candidates"] == pytest.approx(np.mean(everything))
    assert np.mean(kept) > np.mean(everything) + 0.05
    recorded = read_manifest(files.gdoc("sft-best-of-3"))["settings"]
    assert (recorded["best_of"], len(recorded["rewards"])) == (3, 32)
    assert read_texts(files, "gen.sft-best-of-3") == read_generated(files.gdoc("sft-best-of-3"))  # as embed reads it
    assert "reused" in generate(files, config(tmp_path, **BEST))
    assert "reused" not in generate(files, config(tmp_path, **BEST | {"length_words": [7, 9]}))


def test_without_a_choice_nothing_changes(files, tmp_path):
    """One candidate: the same bytes, settings and name, whatever the rewards."""
    generate(files, config(tmp_path))
    whole, recorded = files.gdoc("sft").read_bytes(), read_manifest(files.gdoc("sft"))["settings"]
    assert not {"best_of", "rewards"} & recorded.keys()
    assert "reused" in generate(files, config(tmp_path, rewards={}, gen_best_of=1))
    report = generate(files, config(tmp_path, gen_as="plain.1"))
    assert report["file"].endswith("toy.plain.1.gdoc")
    assert files.gdoc("plain.1").read_bytes() == whole
    assert "mean_reward_of_kept" not in report


def test_retrieval_picks_by_the_first_seeker_of_a_cv_and_needs_a_match(files, tmp_path):
    write_docs(files.idoc, [("j", "a b c d e f g h i"), ("k", "zz yy")], "item")
    table = pd.DataFrame({"user_id": [f"u{i}" for i in range(9)], "item_id": "j", "label": 1.0})
    write_interactions(files.stage("sft"), pd.concat([table, table[:1].assign(item_id="k", user_id="u13")]))
    settings = {"gen_best_of": 4, "rewards": {"retrieval": 1.0}, "gen_as": "found"}
    report = generate(files, config(tmp_path, **settings))  # u9, u10 and u12 have no match, and CVs of seekers before
    assert report["mean_reward_of_kept"] > report["mean_reward_of_all_candidates"]
    write_docs(files.udoc, [(f"u{i}", cv(i) if i != 11 else "Alone.") for i in range(14)], "user")
    write_interactions(files.stage("reward"), table[:1].assign(user_id="u11"))
    with pytest.raises(DataError, match=r"1 of 8 seekers have no matched job in toy\.sft\.inter \(u11\)"):
        generate(files, config(tmp_path, gen_stages=["recommendation", "reward"], **settings))


def test_best_of_n_resumes_and_does_not_mix_with_other_rewards(files, tmp_path, monkeypatch):
    generate(files, config(tmp_path, **BEST))
    path = files.gdoc("sft-best-of-3")
    whole, manifest = path.read_bytes(), read_manifest(path)
    path.unlink()
    with _break_after(monkeypatch, 1), pytest.raises(Stop):
        generate(files, config(tmp_path, **BEST))
    with pytest.raises(DataError, match=r"1 finished shards .* \(rewards was \w+, now \w+\) and are not mixed in"):
        generate(files, config(tmp_path, **BEST | {"rewards": {"format": 1.0}}))
    report = generate(files, config(tmp_path, **BEST))
    assert (report["shards"], report["shards_reused"]) == (2, 1)
    assert path.read_bytes() == whole
    for key in ("mean_reward_of_kept", "mean_reward_of_all_candidates"):
        assert report[key] == manifest["report"][key]


def test_best_of_n_needs_a_choice_a_reward_and_a_name_of_its_own(files, tmp_path):
    for changed, said in [
        ({"gen_best_of": 0}, "gen_best_of: 0; at least 1"),
        ({**BEST, "temperature": 0.0}, "at temperature 0 all 3 candidates are the same"),
        ({**BEST, "rewards": {"lenght": 1}}, "unknown reward 'lenght' - did you mean 'length'"),
        ({**BEST, "gen_as": "sft"}, r"gen_as: 'sft' names the trained generator .* give these another"),
        ({"gen_as": "a/b"}, "gen_as: 'a/b' cannot be a name"),
        ({"gen_as": ""}, "gen_as: '' cannot be a name"),
    ]:
        with pytest.raises(ConfigError, match=said):
            generate(files, config(tmp_path, **changed))
    with pytest.raises(DataError, match=r"no such reward model\. Run `girl reward toy"):
        generate(files, config(tmp_path, gen_best_of=2))
    assert not list(files.folder.glob("toy.*.gdoc*"))


def test_whoever_takes_the_name_of_such_jds_for_a_generator_is_told_how_they_are_made(files, tmp_path):
    with pytest.raises(DataError, match=r"run `girl generate toy --generator=sft --gen_best_of=16`"):
        generate(files, config(tmp_path, generator="sft-best-of-16"))
    generate(files, config(tmp_path, gen_as="chosen", **BEST))
    with pytest.raises(DataError, match=r"run `girl generate toy --generator=sft --gen_as=chosen --gen_best_of=3`"):
        generate(files, config(tmp_path, generator="chosen"))


# ------------------------------------------------------------------------------------------------------------- errors


def test_errors_name_what_to_do(files, tmp_path):
    with pytest.raises(ConfigError, match="gen_stages: all; known: recommendation, sft, reward, rl"):
        generate(files, config(tmp_path, gen_stages="all"))
    with pytest.raises(ConfigError, match="gen_samples: 0; at least 1 is required"):
        generate(files, config(tmp_path, gen_samples=0))
    with pytest.raises(DataError, match=r"no such generator\. Run `girl sft toy --generator=ppo`"):
        generate(files, config(tmp_path, generator="ppo"))
    with pytest.raises(ConfigError, match="give the JDs of gen_model 'x' another name"):
        generate(files, config(tmp_path, gen_model="x"))
    write_docs(files.udoc, [("u3", "text")], "user")
    with pytest.raises(DataError, match=r"9 of 10 seekers have no CV \(u1, u2, u0 and 6 more\)"):
        generate(files, config(tmp_path))


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("top_p", 0.0, r"top_p: 0\.0 is not in \(0, 1\]"),
        ("top_p", 1.1, r"top_p: 1\.1"),
        ("temperature", -1.0, r"temperature: -1\.0; at least 0"),
        ("temperature", float("nan"), "temperature: nan"),
        ("gen_shard_size", 0, "gen_shard_size: 0; at least 1"),
        ("gen_batch_size", 0, "gen_batch_size: 0"),
        ("max_jd_tokens", 0, "max_jd_tokens: 0"),
        ("lm_dtype", "fp61", "lm_dtype: 'fp61' is unknown; known: fp32, bf16, fp16"),
        ("prompt_language", "xx", "prompt_language: 'xx' is unknown"),
    ],
)
def test_settings_that_cannot_work(tmp_path, key, value, said):
    with pytest.raises(ConfigError, match=said):  # before any file is read
        generate(DatasetFiles(tmp_path, "none"), config(tmp_path, **{key: value}))


def test_a_generator_of_another_sft_stage_is_refused(files, tmp_path):
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    facts = {key: read_manifest(folder)[key] for key in ("prompt", "fingerprint")}
    write_manifest(folder, "generator", config={}, inputs=[files.stage("sft")], **facts)
    generate(files, config(tmp_path, gen_samples=1))
    write_interactions(files.stage("sft"), pd.DataFrame({"user_id": ["u1"], "item_id": "j", "label": 1.0}))
    with pytest.raises(DataError, match=r"trained on another toy\.sft\.inter than .* Run `girl sft toy"):
        generate(files, config(tmp_path, gen_samples=1))
    generate(files, config(tmp_path, generator="base", gen_model=str(folder), gen_samples=1))  # it claims no training


def test_limits_of_the_training_serve_generation(files, tmp_path):
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    trained = {"max_cv_tokens": 1024, "max_jd_tokens": 512, "prompt_language": "zh", "lm_dtype": "bf16", "seed": 5}
    write_manifest(folder, "generator", config=trained)
    assert trained_with(files, config(tmp_path)) == {key: trained[key] for key in trained if key != "seed"}
    assert (
        trained_with(files, config(tmp_path, gen_model="x"))
        == trained_with(files, config(tmp_path, generator="y"))
        == {}
    )


def test_a_generator_of_another_prompt_or_with_other_weights_is_refused(files, tmp_path):
    with pytest.raises(DataError, match=r"made from something else: prompt was .* Run `girl sft toy"):
        generate(files, config(tmp_path, prompt_language="zh"))
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    tiny_model(plain_tokenizer(), seed=9).save_pretrained(folder)
    with pytest.raises(DataError, match="made from something else: fingerprint was"):
        generate(files, config(tmp_path))


def test_zero_shot_model_by_folder(files, tmp_path):
    folder = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    generate(files, config(tmp_path, generator="base", gen_model=str(folder)))
    generate(files, config(tmp_path))
    assert files.gdoc("base").read_bytes() == files.gdoc("sft").read_bytes()


# ----------------------------------------------------------------------------------------------------------- resuming


def test_nothing_is_done_twice_but_a_changed_file_is_made_again(files, tmp_path):
    first = generate(files, config(tmp_path))
    stamp = files.gdoc("sft").stat().st_mtime_ns
    again = generate(files, config(tmp_path))
    assert "reused" in again
    assert again["jds"] == first["jds"]
    assert files.gdoc("sft").stat().st_mtime_ns == stamp
    whole = files.gdoc("sft").read_bytes()
    files.gdoc("sft").write_bytes(whole[:-30])
    assert "reused" not in generate(files, config(tmp_path))
    assert files.gdoc("sft").read_bytes() == whole


class Stop(Exception):
    pass


@contextmanager
def _break_after(monkeypatch, shards: int):
    """Let ``shards`` shards be written, and stop in the middle of the next."""
    done = []
    real = JDGenerator.write

    def write(self, cvs):
        if len(done) == shards:
            raise Stop
        done.append(cvs)
        return real(self, cvs)

    with monkeypatch.context() as patch:
        patch.setattr(JDGenerator, "write", write)
        yield


def test_a_stopped_run_keeps_its_shards_and_others_do_not_mix_with_them(files, tmp_path, monkeypatch):
    generate(files, config(tmp_path, generator="sft"))
    whole = files.gdoc("sft").read_bytes()
    files.gdoc("sft").unlink()
    with _break_after(monkeypatch, 1), pytest.raises(Stop):
        generate(files, config(tmp_path))
    assert not files.gdoc("sft").exists()
    with pytest.raises(
        DataError, match=r"1 finished shards .* \(temperature was 1\.0, now 0\.5\) and are not mixed in"
    ):
        generate(files, config(tmp_path, temperature=0.5))
    save_generator(tmp_path, seed=1)  # the generator is trained anew
    with pytest.raises(DataError, match=r"other settings \(model was \w+, now \w+\)"):
        generate(files, config(tmp_path))
    save_generator(tmp_path, seed=0)
    report = generate(files, config(tmp_path))
    assert (report["shards"], report["shards_reused"]) == (2, 1)
    assert files.gdoc("sft").read_bytes() == whole


def test_of_a_stopped_run_each_cv_that_stays_is_used(files, tmp_path, monkeypatch):
    with _break_after(monkeypatch, 1), pytest.raises(Stop):
        generate(files, config(tmp_path))
    docs = {f"u{i}": cv(i) for i in range(14)} | {"u1": "Another CV.", "u8": "A third."}
    write_docs(files.udoc, docs.items(), "user")
    report = generate(files, config(tmp_path))
    assert (report["cvs_reused"], report["cvs_written"], report["distinct_cvs"]) == (4, 4, 8)  # u0 to u3; u10 had u1's
    resumed = files.gdoc("sft").read_bytes()
    files.gdoc("sft").unlink()
    assert generate(files, config(tmp_path))["cvs_reused"] == 0
    assert files.gdoc("sft").read_bytes() == resumed


PROGRAM = """
import sys; sys.path[:0] = ["tests"]
from pathlib import Path
import test_generate as t
folder = Path(sys.argv[1])
t.generate(t.DatasetFiles(folder / "toy", "toy"), t.config(folder, **t.SLOW))
"""
SLOW = {"gen_shard_size": 1, "max_jd_tokens": 120, "temperature": 2.0, "top_p": 1.0}


def test_kill_9_at_any_time_then_the_same_file(files, tmp_path):
    """Killed three times at different shards; the last run does only what is missing."""
    undisturbed = generate(files, config(tmp_path, **SLOW))
    whole = text_hash(files.gdoc("sft").read_text())
    files.gdoc("sft").unlink()
    shards = files.gdoc("sft").with_name("toy.sft.gdoc.shards")
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=env, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and len(list(shards.glob("*.jsonl"))) < wanted:
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(list(shards.glob("*.jsonl"))) < undisturbed["shards"]
    finished = {path: path.stat().st_mtime_ns for path in shards.glob("*.jsonl")}
    assert len(finished) >= 3
    report = generate(files, config(tmp_path, **SLOW))
    assert report["shards_reused"] == len(finished)
    assert text_hash(files.gdoc("sft").read_text()) == whole
