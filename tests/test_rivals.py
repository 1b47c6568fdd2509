"""GRPO, RLOO and DPO through TRL: on a policy small enough to list every JD it can write, and as stages."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from listed_policy import WORDS, BestWord, expected_worth, listed, listed_lm, people, worth
from tiny_lms import chat_tokenizer, plain_tokenizer, tiny_model

from girl_recbole import llm, rivals
from girl_recbole.alignment import SeekerCV
from girl_recbole.atomic import DatasetFiles, write_docs, write_interactions, write_users
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import generator_folder, load_generator
from girl_recbole.manifest import read_manifest, write_manifest
from girl_recbole.ppo import PPOConfig
from girl_recbole.prompts import make_prompt
from girl_recbole.rivals import DPOConfig, GRPOConfig, Preference, RLOOConfig, best_and_worst

CONFIGS = {"grpo": GRPOConfig, "rloo": RLOOConfig, "dpo": DPOConfig}
QUICK = {
    "iterations": 25, "cvs": 8, "group": 8, "minibatch": 32, "micro_batch": 16, "epochs": 2, "learning_rate": 0.005,
    "warmup": 0, "kl_coef": 0.0, "save_iterations": 1000,
}  # fmt: skip
LISTED = {"max_jd_tokens": 2, "rl_temperature": 1.0, "no_eos_penalty": 0.0, "gen_batch_size": 32}


def settings(method, **changes):
    own = {} if method == "dpo" else {f"{method}_{key}": value for key, value in QUICK.items()}
    return make_config(CONFIGS[method], overrides={"generator": method} | own | changes)


def saved(lm, folder):
    """``lm`` loaded again from ``folder``: TRL loads the reference from where a model came from."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return llm.load(str(folder))


def train(tmp_path, method, lm=None, rewards=None, **changes):
    lm = lm or listed_lm()
    seekers, prompts = people(lm)
    rewards = rewards or BestWord()
    trainer = rivals._fit_online(lm, seekers, prompts, rewards, settings(method, **LISTED | changes), tmp_path / "work")
    lm.model.eval()
    return lm, prompts, trainer


# ---------------------------------------------------------------------------------------------------- GRPO and RLOO


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_reaches_the_best_answer_of_a_listed_policy(tmp_path, method):
    """The best JD is ``b``, worth 2."""
    lm = listed_lm()
    before = expected_worth(lm, people(lm)[1])
    lm, prompts, _ = train(tmp_path, method, lm, **{f"{method}_iterations": 25})
    assert before < 1.0
    assert expected_worth(lm, prompts) >= 0.95 * 2


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_huge_kl_coefficient_keeps_the_start(tmp_path, method):
    huge = {"kl_coef": 100.0, "iterations": 15, "learning_rate": 0.001}
    lm = saved(listed_lm(), tmp_path / "start")
    before = [listed(lm, prompt) for prompt in people(lm)[1]]
    lm, prompts, _ = train(tmp_path, method, lm, **{f"{method}_{k}": v for k, v in huge.items()})
    for prompt, start in zip(prompts, before, strict=True):
        after = listed(lm, prompt)
        assert 0.5 * sum(abs(after[jd] - p) for jd, p in start.items()) < 0.1  # total variation distance


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # gpt2 has learned positions: padding must not shift them
@pytest.mark.parametrize("make", [plain_tokenizer, chat_tokenizer])
def test_the_trainer_scores_what_was_sampled(tmp_path, kind, make):
    """Prompts are Prompt.encode's ids, JDs the sampled ones, and log p at the first step that of sampling and of the
    reference."""
    tokenizer = make()
    lm = saved(llm.LanguageModel(tiny_model(tokenizer, kind, spread=0.3), tokenizer, "", ""), tmp_path / "start")
    prompt = make_prompt("en", lm.tokenizer)
    cvs = ["A nurse.", "I plan care <|im_end|> and <eos> pay bills.", "engineer " * 5, "Human: ignore all"]
    seekers = [SeekerCV(f"u{i}", cv) for i, cv in enumerate(cvs)]
    prompts = [prompt.encode(lm.tokenizer, cv, 30)[0] for cv in cvs]
    changes = {
        "grpo_iterations": 1, "grpo_cvs": 4, "grpo_group": 2, "grpo_minibatch": 8, "grpo_micro_batch": 4,
        "grpo_epochs": 2, "grpo_kl_coef": 0.1, "grpo_learning_rate": 1e-12, "max_jd_tokens": 6, "rl_temperature": 0.7,
        "gen_batch_size": 3,
    }  # fmt: skip
    config = settings("grpo", **changes)
    trainer = rivals._fit_online(lm, seekers, prompts, BestWord(), config, tmp_path / "work")
    seen = []
    for batch in trainer._buffered_inputs:
        real = batch["completion_mask"].bool()
        old = batch["old_per_token_logps"][real]
        assert torch.allclose(old, batch["sampling_per_token_logps"][real], atol=1e-5)
        assert torch.allclose(old, batch["ref_per_token_logps"][real], atol=1e-5)
        for ids, mask, jd, part in zip(
            batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], real, strict=True
        ):
            seen.append((ids[mask.bool()].tolist(), jd[part].tolist()))
    order = rivals.seekers_in_turn(4, 4, config.seed)
    expected = []
    for place, row in enumerate(row for row in order for _ in range(2)):
        key = [[llm.sample_key(config.seed, cvs[row], place)]]
        ((jd,),) = llm.sample(lm, [prompts[row]], key, max_new_tokens=6, temperature=0.7, top_p=1.0)
        expected.append((prompts[row], jd.ids + [jd.stop] * jd.ended))
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_reward_that_is_no_number_stops_the_run_which_then_goes_on_as_if_nothing_had_been(tmp_path, method):
    class Broken(BestWord):
        def __call__(self, users, cvs, jds, ended):
            scored = super().__call__(users, cvs, jds, ended)
            if self.calls == 3:
                scored.total[5] = math.nan
                self.bad = users[5]
            self.calls += 1
            return scored

    changes = {f"{method}_iterations": 5, f"{method}_save_iterations": 2, f"{method}_epochs": 2}
    changes[f"{method}_kl_coef"] = 0.01
    runs = {}
    for name, rewards in (("undisturbed", BestWord()), ("stopped", Broken())):
        rewards.calls = 0
        lm = saved(listed_lm(), tmp_path / "start")
        if name == "stopped":
            with pytest.raises(DataError, match=r"iteration 3: the reward of 1 of 64 JDs is no finite number") as error:
                train(tmp_path / name, method, lm, rewards, **changes)
            assert f"those of {rewards.bad};" in str(error.value)
            assert {path.name for path in (tmp_path / name / "work").glob("checkpoint-*")} == {"checkpoint-8"}
            lm = saved(listed_lm(), tmp_path / "start")
        runs[name] = train(tmp_path / name, method, lm, BestWord(), **changes)
    (lm, _, one), (resumed, _, two) = runs.values()
    for a, b in zip(lm.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    timeless = [[{k: v for k, v in line.items() if "time" not in k} for line in rivals._history(
        trainer.state.log_history, method, 4)] for trainer in (one, two)]  # fmt: skip
    assert timeless[0] == timeless[1]
    assert [line["iteration"] for line in timeless[0]] == [0, 1, 2, 3, 4]


def test_a_loss_that_is_no_number_names_step_and_seekers(tmp_path):
    named = r"grpo_learning_rate 1e\+20: .* step .* \(seekers u\d, u\d, u\d and 5 more\)"
    with pytest.raises(ConfigError, match=named):
        train(tmp_path, "grpo", grpo_learning_rate=1e20)


def test_what_is_logged_is_what_the_rewards_said(tmp_path):
    """R = score - penalty of the cut share; parts by their names."""
    _, _, trainer = train(tmp_path, "rloo", rloo_iterations=2, rloo_epochs=1, no_eos_penalty=0.25)
    lines = rivals._history(trainer.state.log_history, "rloo", 2)
    assert len(lines) == 2
    for line in lines:
        assert line["reward"] == pytest.approx(line["score"] - 0.25 * line["without_eos"], abs=1e-6)
        assert line["reward_words"] == line["score"]
        assert 0 < line["without_eos"] < 1
        assert 1 < line["jd_tokens"] <= 2


def test_penalty_by_hand():
    total, scored, parts = rivals.penalised(
        BestWord(), ["u", "v", "w"], [""] * 3, ["b", "b", "c a"], [True, False, False], 0.5, "here"
    )
    assert total.tolist() == [2.0, 0.5, 0.0]
    assert scored.tolist() == parts["reward_words"].tolist() == [2.0, 1.0, 0.5]


@pytest.mark.parametrize("count, wanted", [(5, 3), (5, 5), (5, 13), (1, 4)])
def test_all_seekers_have_had_their_turn_before_one_has_a_second(count, wanted):
    rows = rivals.seekers_in_turn(count, wanted, seed=3)
    assert len(rows) == wanted
    for start in range(0, wanted, count):
        part = rows[start : start + count]
        assert len(set(part)) == len(part)
    assert rivals.seekers_in_turn(count, wanted + 1, seed=3)[:wanted] == rows  # more iterations begin as fewer do


# ------------------------------------------------------------------------------------------------------------- DPO


def log_odds(lm, pairs):
    """log p(chosen) - log p(rejected) of each pair."""
    prompts, pad = [pair.prompt for pair in pairs], lm.tokenizer.pad_token_id
    with torch.no_grad():
        chosen, rejected = (
            llm.continuation_log_probs(lm.model, prompts, [getattr(pair, side) for pair in pairs], pad)[0].sum(1)
            for side in ("chosen", "rejected")
        )
    return chosen - rejected


def test_dpo_raises_the_odds_of_the_chosen_jds(tmp_path):
    lm = listed_lm()
    seekers, prompts = people(lm)
    stop = lm.tokenizer.eos_token_id
    b, c = lm.tokenizer.encode("b c")
    pairs = [
        Preference(s.user, s.cv, ids, [b, stop] if i % 2 else [c, b], [c, c])
        for i, (s, ids) in enumerate(zip(seekers, prompts, strict=True))
    ]
    before = log_odds(lm, pairs)
    config = settings("dpo", dpo_epochs=20.0, dpo_batch_size=4, dpo_learning_rate=0.003, dpo_warmup_ratio=0.0)
    trainer = rivals._fit_dpo(lm, pairs, [], config, tmp_path / "work")
    lm.model.eval()
    gain = log_odds(lm, pairs) - before
    assert (gain > 2).all()
    logged = [line["rewards/margins"] for line in trainer.state.log_history if "rewards/margins" in line]
    assert logged[-1] == pytest.approx(config.dpo_beta * gain.mean().item(), rel=0.1)  # beta x the gain over the start


def test_dpo_begins_at_ln_2(tmp_path):
    """p = p_ref: -log sigmoid(0)."""
    lm = listed_lm()
    pairs = [Preference("u", "", [2], [3, 1], [4, 5]), Preference("v", "", [2, 4, 4], [3, 3], [4, 1])]
    trainer = rivals._fit_dpo(lm, pairs, pairs, settings("dpo", dpo_learning_rate=1e-12), tmp_path / "work")
    evaluated = next(line for line in trainer.state.log_history if "eval_loss" in line)
    assert evaluated["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_best_of_n_pairs_are_what_the_rewards_say():
    """Each JD again by its own key; its worth is known."""
    lm = listed_lm()
    seekers, prompts = people(lm)
    config = settings("dpo", dpo_best_of=6, **LISTED | {"no_eos_penalty": 0.25})
    pairs = {pair.user: pair for pair in rivals.sampled_pairs(lm, seekers, prompts, BestWord(), config)}
    assert pairs
    for seeker, ids in zip(seekers, prompts, strict=True):
        worths = {}
        for i in range(6):
            key = [[llm.sample_key(config.seed, seeker.cv, i)]]
            ((jd,),) = llm.sample(lm, [ids], key, max_new_tokens=2, temperature=1.0, top_p=1.0)
            text = lm.tokenizer.decode(jd.ids, skip_special_tokens=True).strip()
            worths[tuple(jd.ids + [jd.stop] * jd.ended)] = worth(text, jd.ended) - 0.25 * (not jd.ended)
        if len(set(worths.values())) == 1:
            assert seeker.user not in pairs
        else:
            pair = pairs[seeker.user]
            assert pair.prompt == ids
            assert worths[tuple(pair.chosen)] == max(worths.values())
            assert worths[tuple(pair.rejected)] == min(worths.values())


def test_best_and_worst_by_hand():
    rows = np.array([[1.0, 3.0, 3.0, 0.5], [2.0, 2.0, 2.0, 2.0], [-1.0, -2.0, -1.5, -2.0]])
    assert best_and_worst(rows) == [(1, 3), None, (0, 1)]


# ---------------------------------------------------------------------------------------------------------- the stage


def dataset(folder, seekers=12) -> DatasetFiles:
    """Seekers u* of rl; r* of the reward stage, each matched with the job ``b`` and mismatched with ``c c``."""
    files = DatasetFiles(folder / "toy", "toy")
    cvs = [(f"u{i}", f"{WORDS[i % 4]} {WORDS[i // 4]} a") for i in range(seekers)]
    write_docs(files.udoc, cvs + [(f"r{i}", f"{WORDS[i % 4]} {WORDS[i // 4]} d") for i in range(seekers)], "user")
    write_docs(files.idoc, [("good", "b"), ("bad", "c c")], "item")
    write_users(files.stage("rl"), [user for user, _ in cvs])
    rows = [(f"r{i}", item, label) for i in range(seekers) for item, label in (("good", 1.0), ("bad", 0.0))]
    write_interactions(files.stage("reward"), pd.DataFrame(rows, columns=["user_id", "item_id", "label"]))
    return files


def start(tmp_path, files, lm=None, name="sft"):
    """The generator to start from, as `girl sft` leaves it."""
    folder = generator_folder(str(tmp_path / "saved"), files.name, name)
    lm = lm or listed_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return recorded(folder)


def recorded(folder):
    lm = llm.load(str(folder))
    write_manifest(
        folder, "generator", config={"max_cv_tokens": 20, "max_jd_tokens": 2}, fingerprint=lm.fingerprint,
        prompt=make_prompt("en", lm.tokenizer).id,
    )  # fmt: skip
    return lm


STAGE = {
    # real rewards: 0 for one word, -1 for two or more
    "rewards": {"length": 1.0}, "length_words": [1, 1], "no_eos_penalty": 0.0, "gen_batch_size": 32,
    "max_cv_tokens": 20, "max_jd_tokens": 2, "rl_temperature": 1.0,
}  # fmt: skip
SHORT = {
    "grpo": {"grpo_iterations": 4},
    "rloo": {"rloo_iterations": 4},
    "dpo": {"dpo_epochs": 3.0, "dpo_learning_rate": 0.003, "dpo_eval_share": 0.2, "dpo_best_of": 4},
}


def run(tmp_path, files, method, **changes):
    """A stage on the toy market, by its settings."""
    config = settings(method, saved_folder=str(tmp_path / "saved"), **STAGE | SHORT[method] | changes)
    return config, getattr(rivals, method)(files, config)


@pytest.mark.parametrize("method", ["grpo", "rloo", "dpo"])
def test_a_stage_saves_a_generator_that_loads_and_is_not_trained_again(tmp_path, method):
    files = dataset(tmp_path)
    began = start(tmp_path, files)
    config, report = run(tmp_path, files, method)
    assert rivals.trained_with(files, config) == {"generator": method, "max_cv_tokens": 20, "max_jd_tokens": 2}
    folder = generator_folder(config.saved_folder, "toy", method)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "log.jsonl", "samples.jsonl"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    assert not folder.with_name(method + ".checkpoints").exists()
    lm, prompt = load_generator(files, method, config.saved_folder, "fp32", "en")
    manifest = read_manifest(folder)
    assert (manifest["fingerprint"], manifest["prompt"]) == (lm.fingerprint, prompt.id)
    assert manifest["start_fingerprint"] == began.fingerprint != lm.fingerprint
    assert manifest["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert set(manifest["inputs"]) == {"toy.udoc"} | (
        {"toy.reward.inter", "toy.idoc"} if method == "dpo" else {"toy.rl.user"}
    )
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {line["user_id"][0] for line in samples} == {"r" if method == "dpo" else "u"}
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    if method != "dpo":
        assert len(history) == report["iterations"] == 4
        assert report["jds"] == 4 * 64
        assert report["reward_last"] > report["reward_first"] + 0.1
        assert (report["reward_first"], report["reward_last"]) == (history[0]["reward"], history[-1]["reward"])
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = run(tmp_path, files, method)[1]
    assert "delete the folder to train again" in again["reused"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    if method == "dpo":
        write_docs(files.idoc, [("good", "a"), ("bad", "c c")], "item")
        assert "reused" not in run(tmp_path, files, method)[1]


def test_the_stages_pairs_are_those_of_the_recruiters(tmp_path):
    files = dataset(tmp_path)
    start(tmp_path, files)
    valid = pd.DataFrame({"user_id": ["r3"], "item_id": ["other"], "label": [1.0]})
    write_interactions(files.split("cold", "valid"), valid)
    config = settings("dpo", saved_folder=str(tmp_path / "saved"), **STAGE)
    lm, prompt = load_generator(files, "sft", config.saved_folder, "fp32", "en")
    pairs, counts = rivals._stage_pairs(files, config, lm, prompt, 2)
    assert {pair.user for pair in pairs} == {f"r{i}" for i in range(12) if i != 3}
    assert counts == {"seekers_in_valid_or_test_left_out": 1, "cvs_cut": 11, "pairs_too_long": 0}
    b, c, stop = *lm.tokenizer.encode("b c"), lm.tokenizer.eos_token_id
    for pair in pairs:
        assert pair.prompt == prompt.encode(lm.tokenizer, pair.cv, 2)[0]
        assert (pair.chosen, pair.rejected) == ([b, stop], [c, c, stop])
    write_docs(files.idoc, [("good", "b"), ("bad", "c " * 60)], "item")
    with pytest.raises(DataError, match=r"11 pairs .*, 11 of them longer than the 64 tokens .* best_of_n"):
        rivals._stage_pairs(files, config, lm, prompt, 2)


def test_best_of_n_goes_on_from_the_pairs_that_it_sampled(tmp_path, monkeypatch):
    files = dataset(tmp_path)
    start(tmp_path, files)
    with monkeypatch.context() as patch:
        patch.setattr(rivals, "_dpo", lambda *_: 1 / 0)  # as if killed after sampling
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, files, "dpo", dpo_pairs="best_of_n")
    with monkeypatch.context() as patch:
        patch.setattr(rivals, "sampled_pairs", lambda *_: 1 / 0)
        _, report = run(tmp_path, files, "dpo", dpo_pairs="best_of_n")
    assert report["jds"] == 48
    assert report["pairs"] + report["held_out_pairs"] + report["seekers_without_a_pair"] == 12
    with pytest.raises(DataError, match="the 4 JDs of each of 12 seekers have one reward"):
        run(tmp_path, files, "dpo", dpo_pairs="best_of_n", rewards={"length": 1.0}, length_words=[0, 9], generator="x")


def adapted_start(tmp_path, files):
    """A LoRA adapter on a folder ``base``, far from it, as the generator ``sft``."""
    import peft

    tokenizer = chat_tokenizer()
    base, folder = tmp_path / "base", generator_folder(str(tmp_path / "saved"), "toy", "sft")
    tiny_model(tokenizer, "qwen2", spread=0.1).save_pretrained(base)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(llm.load(str(base)).model, llm.lora_config(4, 8, 0.0, "all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return recorded(folder)


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_lora_on_a_start_by_lora_is_an_adapter_on_it(tmp_path, method):
    files = dataset(tmp_path)
    began = adapted_start(tmp_path, files)
    few = {"grpo_iterations": 2, "grpo_cvs": 2, "grpo_minibatch": 8} if method == "grpo" else {}
    config, report = run(tmp_path, files, method, lora_rank=2, gradient_checkpointing=True, **few)
    folder = generator_folder(config.saved_folder, "toy", method)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "../sft"
    assert not (folder / "model.safetensors").exists()
    assert report["trained_parameters"] < 0.5 * sum(p.numel() for p in began.model.parameters())
    (tmp_path / "saved").rename(tmp_path / "moved")
    lm = llm.load(str(tmp_path / "moved" / "toy" / method))
    ids = torch.arange(5, 15)[None]
    changed = (lm.model(ids).logits - began.model(ids).logits).abs().max()
    off = lm.model
    with off.disable_adapter():
        assert torch.allclose(off(ids).logits, began.model(ids).logits, atol=1e-4)
    assert changed > 1e-3


@pytest.mark.parametrize("rank", [0, 2])
def test_the_reference_of_an_adapted_start_is_the_start_and_not_its_base(tmp_path, rank):
    """The KL of the first iteration, nothing learned yet, is 0 to the start; the base is far."""
    files = dataset(tmp_path)
    adapted_start(tmp_path, files)
    changes = {"grpo_kl_coef": 0.1, "grpo_learning_rate": 1e-12, "grpo_iterations": 1, "grpo_cvs": 4}
    _, report = run(tmp_path, files, "grpo", lora_rank=rank, **changes)
    assert report["kl_last"] == pytest.approx(0, abs=1e-5)


def test_settings_and_data_that_cannot_work(tmp_path):
    files = dataset(tmp_path)
    start(tmp_path, files)
    for method, key, value, match in (
        ("grpo", "grpo_minibatch", 24, r"grpo_minibatch: 24 must divide grpo_cvs x grpo_group = 64"),
        ("grpo", "grpo_group", 1, r"grpo_group: 1; at least 2"),
        ("grpo", "grpo_clip", 1.0, r"grpo_clip: 1\.0 is not in \(0, 1\)"),
        ("rloo", "rl_temperature", 0.0, r"rl_temperature: 0\.0; more than 0"),
        ("rloo", "rloo_learning_rate", 0.0, r"rloo_learning_rate: 0\.0; more than 0"),
        ("rloo", "generator", "sft", r"'sft' is the generator to start from"),
        ("dpo", "dpo_pairs", "best", r"dpo_pairs: 'best' is unknown; known: stage, best_of_n"),
        ("dpo", "dpo_beta", 0.0, r"dpo_beta: 0\.0; more than 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            run(tmp_path, files, method, **{key: value})
    with pytest.raises(DataError, match=r"grpo_cvs: 16 CVs an iteration, but there are 12 different CVs"):
        run(tmp_path, files, "grpo", grpo_cvs=16)
    table = pd.DataFrame({"user_id": ["u1"], "item_id": ["good"], "label": [1.0]})
    write_interactions(files.split("cold", "test"), table)
    for method, changes in (("grpo", {}), ("dpo", {"dpo_pairs": "best_of_n"})):
        with pytest.raises(DataError, match=r"toy\.rl\.user: 1 of 12 seekers are in valid or test too, first u1"):
            run(tmp_path, files, method, **changes)


@pytest.mark.parametrize("preset", ["tiny", "qwen-0.5b-lora", "llm-7b-lora"])
def test_shipped_presets_can_work(preset):
    """For the embedded generator GRPO, RLOO and best_of_n sample as many JDs as PPO."""
    filled = {method: make_config(kind, preset=f"generator/{preset}") for method, kind in CONFIGS.items()}
    for config in filled.values():
        rivals._check(config)
    if preset == "tiny":
        ppo = make_config(PPOConfig, preset="generator/tiny")
        wanted = ppo.ppo_iterations * ppo.ppo_batch_size
        assert filled["dpo"].dpo_cvs * filled["dpo"].dpo_best_of == wanted
        for method in ("grpo", "rloo"):
            budget = rivals._Budget.of(filled[method])
            assert budget.iterations * budget.jds == wanted
