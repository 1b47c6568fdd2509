"""reward.py: Eq. 2 and what is made of it by hand, and real runs of TRL's trainer on a rule that is known."""

import dataclasses
import io
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_sft import TINY, TRADES
from tiny_lms import chat_tokenizer, plain_tokenizer, tiny_model

from girl_recbole import cli, reward, sft
from girl_recbole.atomic import DatasetFiles, write_docs, write_interactions
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import generator_folder
from girl_recbole.llm import LanguageModel
from girl_recbole.manifest import read_manifest
from girl_recbole.prompts import make_prompt
from girl_recbole.reward import (
    Answer,
    RewardConfig,
    RewardModel,
    draw_pairs,
    judge,
    load_reward_model,
    normalisation,
    pairwise_loss,
    tokenizer_hash,
)


def cv_of(i: int) -> str:
    return f"{TRADES[i % 4]} number {i}, {TRADES[i % 4]} by trade"


def jd_of(trade: str) -> str:
    return f"{trade} wanted. You do what a {trade} does and we pay well for it."


def dataset(folder, seekers=96) -> DatasetFiles:
    """A seeker matches the job of the trade that the CV names, and no other: the right order is known."""
    files = DatasetFiles(folder / "toy", "toy")
    write_docs(files.udoc, [(f"u{i}", cv_of(i)) for i in range(seekers)], "user")
    write_docs(files.idoc, [(trade, jd_of(trade)) for trade in TRADES], "item")
    matched = [(f"u{i}", TRADES[i % 4], 1.0) for i in range(seekers)]
    write_interactions(files.stage("sft"), pd.DataFrame(matched, columns=["user_id", "item_id", "label"]))
    answers(files, matched + [(f"u{i}", TRADES[(i + k) % 4], 0.0) for i in range(seekers) for k in (1, 2, 3)])
    return files


def answers(files, rows) -> None:
    write_interactions(files.stage("reward"), pd.DataFrame(rows, columns=["user_id", "item_id", "label"]))


REWARD = {
    "reward_epochs": 6, "reward_learning_rate": 3e-3, "reward_save_steps": 40, "reward_eval_share": 0.15,
    "reward_batch_size": 8, "max_jd_tokens": 48, "reward_sampled": 0,
}  # fmt: skip


def config(folder, **overrides) -> RewardConfig:
    return make_config(RewardConfig, overrides={"saved_folder": str(folder / "saved"), **REWARD, **overrides})


def untrained(context=512, limits=(100, 60), kind="llama", layers=None) -> RewardModel:
    tokenizer = plain_tokenizer()
    lm = LanguageModel(tiny_model(tokenizer, kind, context=context, spread=0.2), tokenizer, "tiny", "")
    return RewardModel(reward._scorer(lm, layers, seed=3), tokenizer, make_prompt("en"), 0.0, 1.0, *limits, "", "tiny")


def answer(user, jd, matched, cv=None) -> Answer:
    return Answer(user, jd, cv or f"cv of {user}", jd, matched)


# ----------------------------------------------------------------------------------------------------------- Eq. 2


def test_loss_is_eq_2_by_hand():
    """-log sigmoid(U+ - U-); margin ln 3 -> sigmoid = 3/4. The wrong order costs more; only the difference matters."""
    log3 = torch.tensor([math.log(3)])
    assert pairwise_loss(log3, torch.zeros(1)).item() == pytest.approx(-math.log(0.75), rel=1e-6)
    assert pairwise_loss(torch.zeros(1), log3).item() == pytest.approx(-math.log(0.25), rel=1e-6)
    assert pairwise_loss(log3 + 5, torch.full((1,), 5.0)).item() == pytest.approx(-math.log(0.75), rel=1e-5)
    both = pairwise_loss(torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)]))
    assert both.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2, rel=1e-6)  # the mean over pairs
    chosen = torch.zeros(1, requires_grad=True)
    pairwise_loss(chosen, torch.zeros(1)).backward()
    assert chosen.grad.item() == pytest.approx(-0.5)  # descent raises U+


def test_what_trl_trains_is_eq_2(tmp_path):
    """The first loss that the trainer logs = Eq. (2) over the pairs of two accumulated batches, one sequence a time."""
    model = untrained()
    model.model.score.weight.data *= 100  # margins far from 0
    rows = [answer("u", "You watch wounds. " * (n + 1), n % 2 == 0, "A nurse") for n in range(8)]
    sequences, _ = reward._encode(model, rows)
    raw = [model.raw([ids])[0] for ids in sequences]
    expected = np.mean([math.log1p(math.exp(raw[n + 1] - raw[n])) for n in range(0, 8, 2)])
    examples = reward._examples(sequences, [(n, n + 1) for n in range(0, 8, 2)])
    settings = config(tmp_path, reward_batch_size=2, reward_accumulation=2, reward_epochs=1)
    trainer = reward._fit(model, dict.fromkeys(map(tuple, sequences), "u"), examples, [], settings, tmp_path / "work")
    assert trainer.state.global_step == 1
    (logged,) = [line["train_loss"] for line in trainer.state.log_history if "train_loss" in line]
    assert logged == pytest.approx(expected, rel=1e-4)
    assert abs(expected - math.log(2)) > 0.1  # an untrained head of size 0 would hide a sign


def test_normalisation_by_hand():
    """Seeker a: 1, 3; seeker b: 10, 14. Mean 7; deviations within a seeker -1, 1, -2, 2: sqrt(10 / (4 - 2))."""
    raw, users = np.array([1.0, 10, 3, 14]), ["a", "b", "a", "b"]
    assert normalisation(raw, users) == pytest.approx((7, math.sqrt(5)))
    shifted = raw + np.array([100, -50, 100, -50])  # Eq. (2) cannot see this
    assert normalisation(shifted, users)[1] == pytest.approx(math.sqrt(5))
    with pytest.raises(DataError, match="gives all jobs of a seeker the same score"):
        normalisation(np.array([1.0, 2.0, 1.0, 2.0]), users)


def test_measures_by_hand():
    """a: J+ 2 against J- 1, 3; b: J+ -5 against J- -6. One of a's pairs is lost."""
    rows = [answer("a", "x", True), answer("a", "y", False), answer("b", "x", True), answer("a", "z", False),
            answer("b", "y", False), answer("c", "x", True)]  # fmt: skip
    found = judge(np.array([2.0, 1, -5, 3, -6, 0]), rows, seed=0)
    assert found["rows"], found["seekers"] == (6, 3)
    assert found["seekers_of_both_kinds"] == 2
    assert found["pairs"] == 3
    assert found["pairwise_accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_per_cv"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["auc"] == pytest.approx(3 / 6)  # {2, -5} over {1, 3, -6}
    assert found["auc_centred"] == pytest.approx(4 / 6)  # {0, .5} over {-1, 1, -.5}
    assert found["loss"] == pytest.approx(np.log1p(np.exp([-1, 1, -1])).mean())
    assert found["prior"] == pytest.approx(math.log(2))
    right = judge(np.array([2.0, 1, -5, 1, -6, 0]), rows, seed=0)
    assert right["ece"] == pytest.approx(1 - 1 / (1 + math.exp(-1)))  # all margins 1 and right, however oriented
    tied = judge(np.array([2.0, 2, 1, 2, 1, 0]), rows, seed=0)
    assert tied["pairwise_accuracy"] == 0.5
    one_kind = judge(np.array([1.0, 2.0]), [answer("a", "x", True), answer("b", "x", True)], seed=0)
    assert "pairwise_accuracy" not in one_kind


def test_logloss_is_of_others_fits():
    """300 seekers whose scores say the probability: cross-fitted LogLoss is near the best and below the prior. Scores
    that say nothing: not below the prior, as an in-sample fit would be."""
    rng = np.random.default_rng(0)
    rows = [answer(f"u{i // 4}", f"j{i}", bool(matched)) for i, matched in enumerate(rng.random(1200) < 0.3)]
    labels = np.array([row.matched for row in rows])
    told = np.where(labels, 1.0, -1.0) + rng.normal(size=1200)
    assert judge(told, rows, seed=0)["logloss"] < 0.75 * judge(told, rows, seed=0)["prior"]
    small = [judge(rng.normal(size=40), rows[n : n + 40], seed=0) for n in range(0, 1200, 40)]
    assert np.mean([found["logloss"] - found["prior"] for found in small]) > 0


# ----------------------------------------------------------------------------------------------------------- pairs


def test_pairs_are_of_one_seeker_and_spread_over_the_jobs():
    rows = [answer(user, f"j{n}", n < matched) for user, matched in (("a", 4), ("b", 1), ("c", 6), ("d", 0))
            for n in range(6)]  # fmt: skip
    pairs = draw_pairs(rows, most=6, seed=1)
    assert draw_pairs(rows, most=6, seed=1) == pairs != draw_pairs(rows, most=6, seed=2)
    assert len(set(pairs)) == len(pairs)
    for a, b in pairs:
        assert rows[a].user == rows[b].user
        assert rows[a].matched
        assert not rows[b].matched
    assert Counter(rows[a].user for a, _ in pairs) == {"a": 6, "b": 5}  # 4 x 2 cut to 6; 1 x 5; c, d: one kind
    of_a = [(x, y) for x, y in pairs if rows[x].user == "a"]
    assert sorted(Counter(x for x, _ in of_a).values()) == [1, 1, 2, 2]
    assert sorted(Counter(y for _, y in of_a).values()) == [3, 3]
    assert len(draw_pairs(rows, most=99, seed=1)) == 8 + 5  # all combinations, each once
    assert draw_pairs(rows[:6], 6, 1) == of_a  # whoever else is there


def test_equal_texts_make_no_pair():
    rows = [answer("a", "same", True), answer("a", "same ", False), answer("a", "other", False)]
    assert draw_pairs(rows, most=9, seed=0) == [(0, 2)]


# ------------------------------------------------------------------------------------------------------- the model


def test_sequences_end_by_eos_unless_the_jd_was_cut():
    model = untrained()
    tokenizer, eos = model.tokenizer, model.tokenizer.eos_token_id
    full = model.encode(" A nurse. ", "Nurse wanted.")
    assert tokenizer.decode(full[:-1]) == model.prompt.render("A nurse.", "Nurse wanted.")
    assert full[-1] == eos
    assert model.encode("A nurse.", "Nurse wanted.", ended=False) == full[:-1]
    assert model.encode("A nurse.", "", ended=False) == model.prompt.encode(tokenizer, "A nurse.", 100)[0]
    assert eos not in model.encode("A <eos> nurse", "Nurse <eos> wanted", ended=False)  # data stays data
    jd = tokenizer.encode("x" * 59)
    assert len(jd) == 59
    assert model.encode("A nurse.", "x" * 59)[-60:] == [*jd, eos]  # JD and EOS: 60 tokens are allowed
    assert model.encode("A nurse.", "x" * 60)[-61:] == [*model.prompt.tail_ids(tokenizer)[-1:], *jd, jd[0]]  # no EOS
    assert model._encode("c" * 100, "x", True)[1:] == (False, False)
    assert model._encode("c" * 101, "x", True)[1:] == (True, False)
    assert model._encode("c" * 100, "x" * 60, True)[1:] == (False, True)


def test_the_cv_gives_way_where_the_context_is_short():
    overhead = make_prompt("en").overhead(plain_tokenizer())
    model = untrained(context=overhead + 40, limits=(100, 30))
    ids, cv_cut, jd_cut = model._encode("c" * 90, "x" * 20, True)
    assert (len(ids), cv_cut, jd_cut) == (overhead + 40, True, False)
    assert len([i for i in ids if i == model.tokenizer.encode("c")[0]]) >= 19
    assert model.score(["c" * 90], ["x" * 20]).shape == (1,)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_lower_layers_and_a_small_head(kind):
    """One layer of two, by hand: the head times the normalised output of layer 1 at the last token."""
    tokenizer = plain_tokenizer()
    full = tiny_model(tokenizer, kind, spread=0.2)
    stack = full.model.layers if kind != "gpt2" else full.transformer.h
    kept = {}
    stack[0].register_forward_hook(lambda _, __, out: kept.update(hidden=out[0] if isinstance(out, tuple) else out))
    model = untrained(kind=kind, layers=1)
    ids = model.encode("A nurse.", "Nurse wanted.")
    with torch.no_grad():
        full.eval()(torch.tensor([ids]))
        norm = full.model.norm if kind != "gpt2" else full.transformer.ln_f
        by_hand = norm(kept["hidden"])[0, -1] @ model.model.score.weight[0]
    assert model.raw([ids])[0] == pytest.approx(by_hand.item(), rel=1e-4)
    assert torch.equal(model.model.score.weight, untrained(kind=kind).model.score.weight)  # the head is the seed's
    with pytest.raises(ConfigError, match=r"reward_layers: 3; tiny has 2 layers, 1 to 2 is required"):
        untrained(kind=kind, layers=3)


def test_scores_depend_neither_on_batch_nor_order():
    model = untrained()
    model.mean, model.scale = 0.5, 0.25
    cvs = [f"{'nurse ' * (n % 7)}number {n}" for n in range(23)]
    jds = [f"wanted {'x' * (n * 5 % 37)}" for n in range(23)]
    ended = [n % 3 > 0 for n in range(23)]
    together = model.score(cvs, jds, ended)
    alone = [(model.raw([model.encode(c, j, e)])[0] - 0.5) / 0.25 for c, j, e in zip(cvs, jds, ended, strict=True)]
    assert together.dtype == np.float64
    assert together == pytest.approx(alone, abs=1e-5)
    order = np.random.default_rng(0).permutation(23)
    again = model.score([cvs[i] for i in order], [jds[i] for i in order], [ended[i] for i in order], batch_size=4)
    assert again == pytest.approx(together[order], abs=1e-5)
    assert not model.score([], []).size
    assert np.ptp(together) > 0.01


def test_the_hash_of_a_tokenizer_is_of_what_it_does(tmp_path):
    tokenizer = plain_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    import transformers

    assert tokenizer_hash(transformers.AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_hash(tokenizer)
    tokenizer(["a", "a b"], padding=True)
    assert tokenizer_hash(tokenizer) == tokenizer_hash(plain_tokenizer())
    assert len({tokenizer_hash(t) for t in (tokenizer, plain_tokenizer(bos=True), chat_tokenizer())}) == 3
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_hash(tokenizer) != tokenizer_hash(plain_tokenizer())


# ---------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A dataset and a generator, to be copied."""
    folder = tmp_path_factory.mktemp("start")
    files = dataset(folder)
    overrides = {**TINY, "sft_epochs": 5, "sft_sample_jds": 0, "saved_folder": str(folder / "saved")}
    sft.train(files, make_config(sft.SFTConfig, overrides=overrides))
    return folder


def copy_of(start: Path, folder: Path) -> DatasetFiles:
    shutil.copytree(start, folder, dirs_exist_ok=True)
    return DatasetFiles(folder / "toy", "toy")


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    files = copy_of(start, folder)
    return files, config(folder), reward.train(files, config(folder))


def test_the_planted_rule_is_learned(trained):
    files, settings, report = trained
    assert report["held_out"]["pairwise_accuracy"] > 0.95
    assert report["held_out"]["accuracy_per_cv"] > 0.95
    assert report["held_out"]["auc_centred"] > 0.95
    assert report["held_out"]["logloss"] < 0.5 * report["held_out"]["prior"]
    assert report["training"]["loss"] < 0.1
    assert report["training_seekers"] + report["held_out"]["seekers"] == report["seekers"] == 96
    assert report["training"]["pairs"] == 3 * report["training_seekers"]
    assert report["calibrated_on"] == "held-out seekers"
    model = load_reward_model(files, settings)
    cvs = [cv_of(i) for i in range(200, 212) for _ in TRADES]  # seekers of whom nobody has heard
    scores = model.score(cvs, [jd_of(trade) for trade in TRADES] * 12).reshape(12, 4)
    assert (scores.argmax(1) == np.arange(200, 212) % 4).mean() > 0.95
    chances = model.probability(scores)
    assert np.median(chances.max(1)) > 0.8
    assert np.median(chances.min(1)) < 0.2


def test_scores_are_normalised_by_what_is_stored(trained):
    """Over the texts of the training pairs: mean 0, and standard deviation 1 within a seeker."""
    files, settings, report = trained
    model = load_reward_model(files, settings)
    training, _ = sft.hold_out(reward.read_answers(files), settings.reward_eval_share, settings.seed)
    scores = model.score([row.cv for row in training], [row.jd for row in training])
    assert normalisation(scores, [row.user for row in training]) == pytest.approx((0, 1), abs=1e-4)
    raw = model.raw([model.encode(training[0].cv, training[0].jd)])
    assert scores[0] == pytest.approx((raw[0] - report["mean"]) / report["scale"], abs=1e-4)


def test_what_is_saved_and_that_it_is_not_trained_again(trained):
    files, settings, report = trained
    folder = generator_folder(settings.saved_folder, "toy", "reward")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "reward.json", "log.jsonl"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".md"))]
    assert not folder.with_name("reward.checkpoints").exists()
    manifest = read_manifest(folder)
    assert manifest["kind"] == "reward_model"
    assert set(manifest["inputs"]) == {"toy.reward.inter", "toy.udoc", "toy.idoc"}
    assert manifest["config"] == json.loads(json.dumps(dataclasses.asdict(settings)))
    generator = read_manifest(generator_folder(settings.saved_folder, "toy", "sft"))
    assert (manifest["base_fingerprint"], manifest["prompt"]) == (generator["fingerprint"], generator["prompt"])
    model = load_reward_model(files, settings)
    assert (manifest["fingerprint"], manifest["tokenizer"]) == (model.fingerprint, tokenizer_hash(model.tokenizer))
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = reward.train(files, settings)
    assert "delete the folder to train again" in again["reused"]
    assert again["held_out"] == report["held_out"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


PROGRAM = (
    "import sys; sys.path[:0] = ['tests']; from pathlib import Path; import test_reward as t; "
    "p = Path(sys.argv[1]); t.reward.train(t.DatasetFiles(p / 'toy', 'toy'), t.config(p))"
)


def test_a_killed_run_ends_with_the_same_weights(start, trained, tmp_path):
    """Bit for bit, although it is killed in the middle of an epoch."""
    _, undisturbed, _ = trained
    files, settings = copy_of(start, tmp_path), config(tmp_path)
    work = generator_folder(settings.saved_folder, "toy", "reward").with_name("reward.checkpoints")
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=env, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (work / "checkpoint-40" / "trainer_state.json").exists():
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert work.exists()
    with pytest.raises(DataError, match=r"checkpoints .* other settings \(reward_epochs was 6\.0, now 7\.0\)"):
        reward.train(files, config(tmp_path, reward_epochs=7))
    reward.train(files, settings)
    ours, other = (load_reward_model(files, c).model.state_dict() for c in (settings, undisturbed))
    assert all(torch.equal(ours[name], other[name]) for name in other)


def test_two_processes_give_the_losses_of_one_with_two_batches_a_step(start, tmp_path):
    """`accelerate launch` on two CPU processes (gloo), against reward_accumulation: 2 in this process."""
    files = copy_of(start, tmp_path)
    shared = {"reward_epochs": 3, "reward_eval_share": 0.0}  # 288 pairs: 18 steps an epoch, none of them short
    reward.train(files, config(tmp_path, **shared, reward_accumulation=2, reward_model="one"))
    arguments = [f"--{key}={value}" for key, value in {**REWARD, **shared, "reward_model": "two"}.items()]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",  # multi_gpu: several processes
        "-m", "girl_recbole.cli", "reward", "toy", f"--data_path={tmp_path}", f"--saved_folder={tmp_path / 'saved'}",
    ]  # fmt: skip
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = [generator_folder(str(tmp_path / "saved"), "toy", name) for name in ("one", "two")]
    one, two = map(losses, folders)
    assert len(one) == 5
    assert one[-1] < one[0] - 0.2  # something was learned
    assert two == pytest.approx(one, abs=1e-4)
    of_all = [read_manifest(folder)["report"]["training"]["loss"] for folder in folders]
    assert of_all[1] == pytest.approx(of_all[0], abs=1e-4)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_lora_on_a_generator_that_was_lora_too(tmp_path):
    """The adapter and the head are trained, the merged generator below is not; merged and unmerged score alike."""
    files = dataset(tmp_path, seekers=24)
    base, tokenizer = tmp_path / "base", chat_tokenizer()
    tiny_model(tokenizer, "qwen2", spread=0.2).save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = {"lora_rank": 4, "lora_dropout": 0.1, "max_jd_tokens": 60, "max_cv_tokens": 60}
    settings = {**TINY, **lora, "lm_base": str(base), "sft_epochs": 2, "sft_sample_jds": 0, "max_sequence_tokens": 400}
    sft.train(files, make_config(sft.SFTConfig, overrides={**settings, "saved_folder": str(tmp_path / "saved")}))
    generator = generator_folder(str(tmp_path / "saved"), "toy", "sft")
    assert (generator / "adapter_model.safetensors").exists()
    settings = config(tmp_path, **lora, reward_layers=1, reward_epochs=2)
    report = reward.train(files, settings)
    folder = generator_folder(settings.saved_folder, "toy", "reward")
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    assert 0 < report["trained_parameters"] < 0.5 * report["parameters"]
    adapted, merged = load_reward_model(files, settings), load_reward_model(files, settings, merge=True)
    assert merged.prompt.chat
    assert merged.fingerprint == adapted.fingerprint
    assert not [name for name, _ in merged.model.named_parameters() if "lora" in name]
    assert not [p for p in merged.model.parameters() if p.requires_grad]
    texts = [cv_of(i) for i in range(8)], [jd_of(TRADES[i % 4]) for i in range(8)]
    assert merged.score(*texts) == pytest.approx(adapted.score(*texts), abs=1e-3)
    start_lm = sft.llm.load(str(generator), merge=True)
    fresh = reward._scorer(start_lm, 1, settings.seed)
    assert not torch.equal(merged.model.score.weight, fresh.score.weight)  # the head was trained and is the saved one
    assert torch.equal(merged.model.model.embed_tokens.weight, fresh.model.embed_tokens.weight)
    moved = tmp_path / "moved"
    (tmp_path / "saved").rename(moved)
    elsewhere = dataclasses.replace(settings, saved_folder=str(moved))
    assert load_reward_model(files, elsewhere, merge=True).score(*texts) == pytest.approx(merged.score(*texts))


# ---------------------------------------------------------------------------------------------------------- bad input


def test_no_seeker_with_answers_of_both_kinds(start, tmp_path):
    files = copy_of(start, tmp_path)
    answers(files, [("u1", "nurse", 1.0), ("u2", "baker", 0.0), ("u3", "baker", 0.0)])
    with pytest.raises(DataError, match=r"none of 3 seekers has both .*\(1 have matched ones only, 2 mismatched ones"):
        reward.train(files, config(tmp_path, reward_eval_share=0.0))
    write_docs(files.idoc, [(trade, "the same") for trade in TRADES], "item")
    answers(files, [(f"u{i}", trade, float(trade == "nurse")) for i in (1, 2, 3) for trade in ("nurse", "baker")])
    with pytest.raises(
        DataError, match=r"of 3 seekers with jobs of both kinds, 3 are not held out, and their .* equal"
    ):
        reward.train(files, config(tmp_path, reward_eval_share=0.0))


def test_missing_texts(start, tmp_path):
    files = copy_of(start, tmp_path)
    write_docs(files.idoc, [(trade, jd_of(trade)) for trade in TRADES[1:]], "item")
    with pytest.raises(DataError, match=r"toy\.idoc: 1 of 4 ids of toy\.reward\.inter have no text there \(nurse\)"):
        reward.train(files, config(tmp_path))


def test_pairs_that_recommenders_are_tested_on(start, tmp_path, caplog):
    files = copy_of(start, tmp_path)
    pair = pd.DataFrame({"user_id": ["u5", "u6"], "item_id": ["baker", "elsewhere"], "label": [1.0, 0.0]})
    write_interactions(files.split("warm", "test"), pair)
    with pytest.raises(
        DataError,
        match=r"1 of 384 pairs are in valid or test too, first u5 baker in toy\.warm\.test\.inter.*girl split",
    ):
        reward.train(files, config(tmp_path))
    write_interactions(files.split("warm", "test"), pair[1:])
    with caplog.at_level(logging.WARNING):
        reward.read_answers(files)
    assert "1 of 96 seekers are in valid or test too (first u6 in toy.warm.test.inter)" in caplog.text
    answers(files, [(f"u{i}", "welder", float(i % 2)) for i in range(96)])
    write_interactions(files.split("warm", "test"), pair.assign(item_id=["baker", "x"]))  # u5 baker: sft has it
    with pytest.raises(DataError, match=r"toy\.sft\.inter: 1 of 96 pairs are in valid or test too, first u5 baker"):
        reward._matches(files, [])


def test_settings_that_cannot_work(start, tmp_path):
    files = copy_of(start, tmp_path)
    for key, value, said in [
        ("reward_epochs", 0, "more than 0"), ("reward_learning_rate", math.nan, "more than 0"),
        ("max_pairs_per_cv", 0, "at least 1"), ("reward_eval_share", 1, "is not in"), ("lm_dtype", "fp61", "unknown"),
        ("reward_layers", 3, "sft has 2 layers, 1 to 2"), ("reward_model", "sft", "another name"),
        ("reward_base", "nobody/nothing", "no folder here"), ("max_jd_tokens", 127, "leave no room for a CV"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            reward.train(files, config(tmp_path, **{key: value}))
    with pytest.raises(DataError, match=r"saved/toy/other: no such generator"):
        reward.train(files, config(tmp_path, start_generator="other"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(start, tmp_path, monkeypatch):
    files = copy_of(start, tmp_path)
    settings = config(tmp_path, reward_save_steps=3)
    scorer = reward._scorer

    def breaks_at_step_5(*arguments):
        model, calls = scorer(*arguments), []

        def hook(module, inputs, output):
            calls.append(1)
            return output * (math.nan if len(calls) == 5 else 1.0)

        model.score.register_forward_hook(hook)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(reward, "_scorer", breaks_at_step_5)
        with pytest.raises(
            ConfigError,
            match=r"the loss is nan at step 5 \(a batch of the seekers u\d+, u\d+, u\d+\) of 180; training "
            r"stopped, .*checkpoint-3 is the last good checkpoint\. Lower reward_learning_rate",
        ):
            reward.train(files, settings)
    work = generator_folder(settings.saved_folder, "toy", "reward").with_name("reward.checkpoints")
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-3"]


def test_weights_that_are_not_finite_are_not_saved(start, tmp_path, monkeypatch):
    """A gradient can be infinite where the loss is not: the step spoils the weights, and no checkpoint holds them."""
    files = copy_of(start, tmp_path)
    scorer = reward._scorer

    def infinite_gradient(*arguments):
        model = scorer(*arguments)
        model.score.weight.register_hook(lambda gradient: gradient * math.nan)
        return model

    monkeypatch.setattr(reward, "_scorer", infinite_gradient)
    with pytest.raises(ConfigError, match=r"weight tensors are not finite after step 1 of .* no checkpoint was saved"):
        reward.train(files, config(tmp_path, reward_save_steps=1))


def test_a_reward_model_that_cannot_be_used(start, trained, tmp_path):
    files, settings, _ = trained
    with pytest.raises(
        DataError, match=r"saved/toy/other: no such reward model\. Run `girl reward toy --reward_model=o"
    ):
        load_reward_model(files, dataclasses.replace(settings, reward_model="other"))
    with pytest.raises(DataError, match=r"kind was \"generator\", now \"reward_model\""):
        load_reward_model(files, dataclasses.replace(settings, reward_model="sft"))
    other = copy_of(start, tmp_path)
    answers(other, [("u1", "nurse", 1.0)])
    with pytest.raises(DataError, match=r"trained on another toy\.reward\.inter than .* Run `girl reward toy"):
        load_reward_model(other, settings)


# ----------------------------------------------------------------------------------------------------------- girl score


def test_girl_score(trained, tmp_path, monkeypatch, capsys):
    files, settings, _ = trained
    monkeypatch.chdir(tmp_path)
    Path("cv.txt").write_text(cv_of(401))
    for trade in TRADES:
        Path(f"{trade}.txt").write_text(jd_of(trade))
    arguments = ["score", "toy", f"--data_path={files.folder.parent}", f"--saved_folder={settings.saved_folder}"]
    jds = [f"--jd={trade}.txt" for trade in TRADES]
    assert girl(monkeypatch, *arguments, "--cv=cv.txt", *jds) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.split()[0].endswith(".txt")]
    scores = {Path(row[0]).stem: (float(row[1]), float(row[2])) for row in rows}
    assert max(scores, key=scores.get) == TRADES[401 % 4]
    model = load_reward_model(files, settings)
    expected = model.score([cv_of(401)], [jd_of("baker")])[0]
    assert scores["baker"] == pytest.approx((expected, model.probability(expected)), abs=1e-3)
    assert "wanted" not in said
    assert "by trade" not in said
    monkeypatch.setattr("sys.stdin", io.StringIO(cv_of(401)))
    assert girl(monkeypatch, *arguments, "--cv=-", *jds) == 0
    assert girl(monkeypatch, *arguments, "--cv=-", "--jd=-") == 2
    assert "standard input, which can be read once" in capsys.readouterr().err
    Path("empty.txt").write_text(" \n")
    assert girl(monkeypatch, *arguments, "--cv=empty.txt", *jds) == 2
    assert "empty.txt: an empty text cannot be scored" in capsys.readouterr().err


def girl(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["girl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("preset", ["tiny", "qwen-0.5b-lora", "llm-7b-lora"])
def test_shipped_presets(preset):
    settings = make_config(RewardConfig, preset=f"generator/{preset}")
    reward._check(settings)
    assert settings.reward_base == "generator"


# --------------------------------------------------------------------------------------------- sampled comparisons


def test_sampled_mismatches_are_jobs_of_other_seekers_matches():
    """u_i matched job i and job i + 1 of 12, and was rejected for job i + 2; nobody matched job 99."""
    stage = [
        Answer(f"u{i}", f"j{(i + k) % 12}", f"cv {i}", f"jd {(i + k) % 12}", k < 2) for i in range(12) for k in range(3)
    ]
    stage.append(Answer("u0", "j99", "cv 0", "jd 99", False))
    found = reward.sample_mismatches(stage, jobs=3, seekers=5, seed=0)
    assert reward.sample_mismatches(stage, 3, 5, 0) == found != reward.sample_mismatches(stage, 3, 5, 1)
    users = {row.user for row in found}
    assert len(users) == 5
    answered = {(row.user, row.item) for row in stage}
    for user in users:
        assert [row for row in found if row.user == user and row.matched] == [
            row for row in stage if row.user == user and row.matched
        ]
        drawn = [row for row in found if row.user == user and not row.matched]
        assert 0 <= len(drawn) <= 3
        assert not {(row.user, row.item) for row in drawn} & answered
        assert {row.cv for row in drawn} <= {f"cv {user[1:]}"}
    many = Counter(row.item for row in reward.sample_mismatches(stage * 1, 200, 12, 0) if not row.matched)
    assert set(many) == {f"j{i}" for i in range(12)}  # and never j99
    assert set(many.values()) == {9}  # each of the 9 jobs that a seeker has no answer for
    everybody = reward.sample_mismatches(stage, 3, 99, 0)
    assert [row for row in everybody if row.user in users] == found  # whoever else is chosen


def test_nobody_is_sampled_who_is_held_out(start):
    files = DatasetFiles(start / "toy", "toy")
    held = [answer("someone", "x", True, cv=cv_of(i)) for i in range(40)]
    assert {row.user for row in reward._matches(files, held)} == {f"u{i}" for i in range(40, 96)}


def test_sampled_comparisons_are_counted_apart(start, tmp_path):
    """Seekers who only ever met two trades: with drawn jobs the other two are learned to be wrong as well."""
    files = copy_of(start, tmp_path)
    rows = [(f"u{i}", TRADES[(i + k) % 4], float(k == 0)) for i in range(96) for k in (0, 1)]
    answers(files, rows)
    sampled = {"reward_sampled": 3, "reward_sampled_stages": ["reward"]}
    report = reward.train(files, config(tmp_path, **sampled))
    assert report["sampled_pairs"] > report["training"]["pairs"]
    assert report["training"]["pairs"] == report["training_seekers"]
    assert report["training_seekers"] + report["held_out"]["seekers"] == 96
    assert set(read_manifest(Path(report["folder"]))["inputs"]) == {"toy.reward.inter", "toy.udoc", "toy.idoc"}
    model = load_reward_model(files, config(tmp_path))
    cvs = [cv_of(i) for i in range(0, 96, 4)]  # the nurses, who never answered for a welder
    assert (model.score(cvs, [jd_of("nurse")] * 24) > model.score(cvs, [jd_of("welder")] * 24)).mean() > 0.9
    with pytest.raises(ConfigError, match=r"reward_sampled_stages: rl; known: reward, sft"):
        reward.train(files, config(tmp_path, reward_sampled=1, reward_sampled_stages=["rl"]))
