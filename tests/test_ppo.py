"""PPO on policies small enough to list every JD they can write, and the stage on a toy market."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_reward
import torch
import transformers
from listed_policy import BestWord, expected_worth, listed, listed_lm, people
from test_reward import cv_of
from test_sft import TINY
from tiny_lms import plain_tokenizer, tiny_model

from girl_recbole import llm, reward, sft
from girl_recbole import policy_gradient as pg
from girl_recbole.atomic import read_docs, write_docs, write_interactions, write_users
from girl_recbole.config import make_config
from girl_recbole.critic import Critic, make_critic
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import GenerateConfig, generate, generator_folder, load_generator
from girl_recbole.manifest import read_manifest
from girl_recbole.ppo import PPO, PPOConfig, train
from girl_recbole.prompts import make_prompt
from girl_recbole.reward import RewardModel

LISTED = {
    "ppo_batch_size": 64, "ppo_minibatch": 32, "ppo_micro_batch": 32, "ppo_epochs": 2, "max_jd_tokens": 2,
    "ppo_learning_rate": 0.005, "ppo_critic_learning_rate": 0.005, "ppo_critic_warmup": 0, "ppo_warmup": 0,
    "no_eos_penalty": 0.0, "ppo_kl_coef": 0.0, "ppo_max_kl": 1e9, "gen_batch_size": 64, "generator": "ppo",
}  # fmt: skip


def critic_for(lm, seed=0):
    torch.manual_seed(seed)
    shape = {key: value for key, value in lm.model.config.to_dict().items() if key not in ("id2label", "label2id")}
    network = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**shape, num_labels=1))
    return Critic(network, 0.0, 1.0, is_adapter=False)


def listed_ppo(lm=None, rewards=None, **changes):
    lm = lm or listed_lm()
    config = make_config(PPOConfig, overrides=LISTED | changes)
    return PPO(lm, critic_for(lm), rewards or BestWord(), *people(lm), config)


# ------------------------------------------------------------------------------------------------ a policy in full view


@pytest.mark.parametrize("mode", ["girl", "token"])
def test_reaches_the_best_answer_of_a_listed_policy(mode):
    ppo = listed_ppo(ppo_mode=mode)
    assert expected_worth(ppo.lm, ppo.prompts) < 0.4
    for _ in range(30):
        ppo.iterate()
    assert expected_worth(ppo.lm, ppo.prompts) >= 0.95 * 2


def test_the_printed_ratio_is_tied_to_the_start():
    """Eq. 6 as printed divides by SFT for ever, so tokens beyond 1 + eps of it are not learned any more."""
    reached = {}
    for mode in ("girl", "strict_paper"):
        ppo = listed_ppo(ppo_mode=mode)
        for _ in range(12):
            ppo.iterate()
        reached[mode] = expected_worth(ppo.lm, ppo.prompts)
    assert reached["strict_paper"] < 0.7 * reached["girl"]


def test_a_huge_kl_coefficient_keeps_the_start():
    """k1 in the reward does; k3, the estimate that suggests itself, drives the actor away (policy_gradient.py)."""
    moved = {}
    for estimator in ("k1", "k3"):
        ppo = listed_ppo(ppo_kl_coef=1000.0, ppo_kl_estimator=estimator, ppo_reward_clip=None, ppo_learning_rate=0.002)
        before = [listed(ppo.lm, prompt) for prompt in ppo.prompts]
        for _ in range(20):
            ppo.iterate()
        after = [listed(ppo.lm, prompt) for prompt in ppo.prompts]
        distances = [0.5 * sum(abs(b[k] - a[k]) for k in a) for a, b in zip(before, after, strict=True)]
        moved[estimator] = np.mean(distances)  # total variation
    assert moved["k1"] < 0.1
    assert moved["k3"] > 2 * moved["k1"]


def test_first_inner_step_has_ratio_one_and_the_clip_counts_later_ones():
    ppo = listed_ppo(ppo_learning_rate=0.05, ppo_epochs=3)
    line = ppo.iterate()
    assert line["ratio_first_step"] == pytest.approx(1, abs=1e-5)
    assert line["clip_fraction"] > 0
    assert line["optimiser_steps"] == 6


def test_log_probabilities_of_sampling_are_those_of_a_forward_pass():
    """Kept as they are drawn, whatever the padding: no second pass of the actor is needed."""
    ppo = listed_ppo(rl_temperature=0.7)
    batch = ppo._rollouts(ppo._chosen(), _clock())
    for r in batch[:8]:
        ids = torch.tensor([[*r.prompt, *r.tokens]])
        logp = torch.log_softmax(ppo.lm.model(input_ids=ids).logits[0].float() / 0.7, -1)
        expected = [logp[len(r.prompt) - 1 + i, token].item() for i, token in enumerate(r.tokens)]
        assert r.old == pytest.approx(expected, abs=1e-5)
        assert r.ref == pytest.approx(expected, abs=1e-5)  # the reference is where the actor starts
        assert r.values == pytest.approx([ppo.critic(torch.tensor([[*r.prompt, 1]]), torch.ones(1, len(r.prompt) + 1,
                                          dtype=torch.long)).item()], abs=1e-5)  # fmt: skip


def test_targets_are_eqs_4_and_5():
    ppo = listed_ppo(ppo_kl_coef=0.5, no_eos_penalty=0.25, ppo_reward_clip=1.5, ppo_whiten=False)
    batch = ppo._rollouts(ppo._chosen(), _clock())
    for r in batch:
        r.ref = [value - 0.1 for value in r.old]  # k1 = 0.1 at every token
    reward_, advantages, returns = ppo._targets(batch)
    for i, r in enumerate(batch):
        expected = min(r.score, 1.5) - 0.25 * (not r.ended) - 0.5 * 0.1
        assert reward_[i].item() == returns[i].item() == pytest.approx(expected, abs=1e-5)
        assert advantages[i].item() == pytest.approx(expected - r.values[0], abs=1e-5)


def test_critic_learns_alone_at_first():
    class Generous(BestWord):
        def __call__(self, *arguments):
            scored = super().__call__(*arguments)
            return SimpleNamespace(total=scored.total + 4, parts=scored.parts)

    ppo = listed_ppo(rewards=Generous(), ppo_critic_warmup=4)
    before = {name: p.clone() for name, p in ppo.lm.model.named_parameters()}
    lines = [ppo.iterate() for _ in range(4)]
    assert all(torch.equal(p, before[name]) for name, p in ppo.lm.model.named_parameters())
    assert lines[3]["critic_loss"] < 0.7 * lines[0]["critic_loss"]
    ppo.iterate()
    assert not all(torch.equal(p, before[name]) for name, p in ppo.lm.model.named_parameters())


def test_micro_batches_add_up_to_the_minibatch():
    """The same gradients whether a step is cut into pieces or not."""
    weights = []
    for size in (32, 5):
        ppo = listed_ppo(ppo_micro_batch=size)
        ppo.iterate()
        weights.append(torch.cat([p.detach().flatten() for p in ppo.lm.model.parameters()]))
    assert torch.allclose(*weights, atol=2e-5)


def test_adaptive_coefficient_and_step_limit():
    ppo = listed_ppo(ppo_kl_coef=0.1, ppo_kl_target=1e-6, ppo_learning_rate=0.05, ppo_epochs=4, ppo_step_kl=1e-4)
    lines = [ppo.iterate() for _ in range(2)]
    assert lines[0]["optimiser_steps"] < 8  # the rest of the epochs was left out
    assert ppo.kl_coef == pytest.approx(0.1 * 0.98 * 1.02)  # no KL in the first iteration, too much in the second


# ------------------------------------------------------------------------------------------------------------ errors


def test_stops_at_a_kl_explosion():
    ppo = listed_ppo(ppo_max_kl=0.05)
    message = r"iteration \d+: the mean KL to sft is .* more than ppo_max_kl 0\.05.*ppo_iterations at most \d+"
    with pytest.raises(DataError, match=message):  # noqa: PT012 - some iteration does
        for _ in range(20):
            ppo.iterate()


def test_stops_where_nothing_ends():
    """With a limit of one token no JD can end: the first token is never EOS."""
    with pytest.raises(DataError, match=r"iteration 0: none of 64 JDs ended by EOS within max_jd_tokens 1 \(u\d"):
        listed_ppo(max_jd_tokens=1).iterate()


def test_stops_at_a_loss_that_is_no_number():
    ppo = listed_ppo()
    ppo.iterate()
    with torch.no_grad():
        next(ppo.critic.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match=r"iteration 1, epoch 0: critic_loss.* no number; seekers of the step: u\d"):
        ppo.iterate()


def _clock():
    from girl_recbole.ppo import _Clock

    return _Clock()


# --------------------------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A dataset, a generator that was fine-tuned a little, and a reward model that knows which trade is right."""
    folder = tmp_path_factory.mktemp("ppo")
    files = test_reward.dataset(folder)
    docs = read_docs(files.udoc) | {f"r{i}": cv_of(1000 + i) for i in range(24)}
    write_docs(files.udoc, docs.items(), "user")
    write_users(files.stage("rl"), [f"r{i}" for i in range(24)])
    saved = {"saved_folder": str(folder / "saved")}
    sft.train(files, make_config(sft.SFTConfig, overrides=TINY | saved | {"sft_epochs": 4, "sft_sample_jds": 0}))
    reward.train(files, test_reward.config(folder))
    return files


QUICK = {
    "generator": "ppo", "ppo_iterations": 4, "ppo_batch_size": 8, "ppo_minibatch": 4, "ppo_micro_batch": 4,
    "ppo_critic_warmup": 1, "ppo_save_iterations": 1, "ppo_sample_jds": 2, "max_jd_tokens": 48,
    "ppo_learning_rate": 1e-3,
}  # fmt: skip


def config(files, **changes) -> PPOConfig:
    saved = str(files.folder.parent / "saved")
    return make_config(PPOConfig, overrides=QUICK | {"saved_folder": saved} | changes)


def weights_of(files, name):
    return llm.load(str(generator_folder(config(files).saved_folder, "toy", name))).fingerprint


def test_stage_writes_a_generator_with_its_log_and_generate_uses_it(toy):
    settings = config(toy)
    report = train(toy, settings)
    folder = generator_folder(settings.saved_folder, "toy", "ppo")
    assert report["iterations"] == 4
    assert report["seekers"] == 24
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    for key in ("reward", "score", "kl_k1", "kl_k3", "kl_printed", "entropy", "clip_fraction", "critic_loss",
                "explained_variance", "jd_tokens", "without_eos", "distinct_1", "time_rollout_s"):  # fmt: skip
        assert all(math.isfinite(line[key]) for line in lines), key
    assert lines[0]["samples"][0]["user_id"].startswith("r")
    assert "plotly" in (folder / "curves.html").read_text(encoding="utf-8")
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 2
    manifest = read_manifest(folder)
    assert manifest["fingerprint"] == weights_of(toy, "ppo") != weights_of(toy, "sft")
    assert not folder.with_name("ppo.checkpoints").exists()
    assert "reused" in train(toy, settings)  # nothing is trained twice
    overrides = {"saved_folder": settings.saved_folder, "generator": "ppo", "gen_stages": ["rl"], "max_jd_tokens": 48}
    written = generate(toy, make_config(GenerateConfig, overrides=overrides))
    assert written["seekers"] == 24


def test_a_killed_run_ends_with_the_same_bits(toy, tmp_path):
    """SIGKILL after the first checkpoint of a run of its own; the rest is done by a second process."""
    settings = config(toy, generator="killed", lora_rank=2, lora_dropout=0.1)
    undisturbed = config(toy, generator="whole", lora_rank=2, lora_dropout=0.1)
    code = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1])\n"
        "import torch; torch.set_num_threads(1)\n"
        "from girl_recbole.atomic import DatasetFiles; from girl_recbole.ppo import *\n"
        "from pathlib import Path\n"
        "train(DatasetFiles(Path(sys.argv[2]), 'toy'), PPOConfig(**json.loads(sys.argv[3])))"
    )
    arguments = [sys.executable, "-c", code, json.dumps(sys.path), str(toy.folder), json.dumps(vars(settings))]
    work = generator_folder(settings.saved_folder, "toy", "killed.checkpoints")
    process = subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not list(work.glob("iteration-000001")):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(work.glob("iteration-000001")) or list(work.glob("iteration-000002"))
    (work / "iteration-000009.partial").mkdir()  # as a kill in the middle of a save leaves it
    with pytest.raises(DataError, match=r"ppo_clip was 0\.2, now 0\.3.*not mixed in.*girl ppo"):
        train(toy, dataclasses.replace(settings, ppo_clip=0.3))
    train(toy, settings)
    train(toy, undisturbed)
    assert weights_of(toy, "killed") == weights_of(toy, "whole")


def test_lora_shares_the_base_and_saves_an_adapter_on_it(toy):
    settings = config(toy, generator="lora", lora_rank=4, lora_dropout=0.0, ppo_iterations=2)
    start, _ = load_generator(toy, "sft", settings.saved_folder, "fp32", "en")
    before = {name: p.clone() for name, p in start.model.named_parameters()}
    train(toy, settings)
    folder = generator_folder(settings.saved_folder, "toy", "lora")
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "../sft"
    again, _ = load_generator(toy, "sft", settings.saved_folder, "fp32", "en")
    assert all(torch.equal(p, before[name]) for name, p in again.model.named_parameters())
    aligned = llm.load(str(folder))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        moved = aligned.model(input_ids=ids).logits
        with aligned.model.disable_adapter():
            assert torch.allclose(aligned.model(input_ids=ids).logits, again.model(input_ids=ids).logits)
    assert not torch.allclose(moved, again.model(input_ids=ids).logits, atol=1e-4)


def test_lora_critic_starts_as_the_reward_model_and_leaves_it_alone(toy):
    judge = reward.load_reward_model(toy, config(toy), merge=True)
    cvs, jds = [cv_of(i) for i in range(4)], [test_reward.jd_of("nurse")] * 4
    scores = judge.score(cvs, jds)
    critic = make_critic(judge, (4, 8, 0.0, "all-linear"))
    ids = [judge.encode(cv, jd) for cv, jd in zip(cvs, jds, strict=True)]
    rows = [torch.tensor([row]) for row in ids]
    values = [critic(row, torch.ones_like(row)) for row in rows]
    assert [v.item() for v in values] == pytest.approx(scores.tolist(), abs=1e-4)
    optimiser = torch.optim.SGD([p for p in critic.parameters() if p.requires_grad], lr=0.1)
    for row in rows:
        (critic(row, torch.ones_like(row)) - 3).square().sum().backward()
    optimiser.step()
    assert critic(rows[0], torch.ones_like(rows[0])).item() != pytest.approx(scores[0], abs=1e-3)
    with critic.frozen():
        assert judge.score(cvs, jds) == pytest.approx(scores, abs=1e-5)


def test_value_of_every_token_ends_in_the_value_of_the_whole(toy):
    judge = reward.load_reward_model(toy, config(toy), merge=True)
    for critic in (make_critic(judge, None), make_critic(judge, (2, 4, 0.0, "all-linear"))):
        ids = torch.tensor([judge.encode(cv_of(1), "Nurse wanted.")])
        mask = torch.ones_like(ids)
        assert critic(ids, mask, every_token=True)[0, -1].item() == pytest.approx(critic(ids, mask).item(), abs=1e-5)


def test_two_processes_learn_what_one_learns(toy):
    """`accelerate launch` on two CPU processes: the same samples, losses to 1e-4, weights to 1e-4."""
    one = config(toy, generator="one", ppo_iterations=3)
    train(toy, one)
    settings = toy.folder.parent / "two.yaml"
    lines = [f"{key}: {json.dumps(value)}" for key, value in QUICK.items() if key != "generator"]
    settings.write_text("\n".join(lines))
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "girl_recbole.cli", "ppo", "toy",
        f"--data-path={toy.folder.parent}", f"--config={settings}", f"--saved_folder={one.saved_folder}",
        "--generator=two", "--ppo_iterations=3",
    ]  # fmt: skip
    done = subprocess.run(
        launch, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logs = {
        name: [json.loads(line) for line in (generator_folder(one.saved_folder, "toy", name) / "log.jsonl").open()]
        for name in ("one", "two")
    }
    for a, b in zip(logs["one"], logs["two"], strict=True):
        assert [sample["jd"] for sample in a["samples"]] == [sample["jd"] for sample in b["samples"]]
        for key in ("reward", "kl_k3", "actor_loss", "critic_loss", "clip_fraction", "entropy"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key


def test_bad_input_is_said(toy, tmp_path):
    with pytest.raises(ConfigError, match=r"generator: 'reward' is the reward model's name"):
        train(toy, config(toy, generator="reward"))
    with pytest.raises(ConfigError, match=r"ppo_gamma: 1.5; at most 1"):
        train(toy, config(toy, ppo_gamma=1.5))
    with pytest.raises(ConfigError, match=r"generator: 'sft' is the generator to start from"):
        train(toy, config(toy, generator="sft"))
    with pytest.raises(ConfigError, match=r"ppo_mode: 'gril' is unknown; known: girl, token, strict_paper"):
        train(toy, config(toy, ppo_mode="gril"))
    with pytest.raises(ConfigError, match=r"ppo_critic_warmup: 4 of 4 iterations leave none"):
        train(toy, config(toy, ppo_critic_warmup=4))
    with pytest.raises(ConfigError, match="fp16"):
        train(toy, config(toy, lm_dtype="fp16"))
    with pytest.raises(DataError, match=r"no such reward model. Run `girl reward toy --reward_model=none`"):
        train(toy, config(toy, reward_model="none"))
    with pytest.raises(DataError, match=r"no such generator. Run `girl sft toy --generator=none`"):
        train(toy, config(toy, start_generator="none"))


def test_refuses_what_cannot_fit_and_what_cannot_be_sharded(toy, monkeypatch):
    monkeypatch.setattr("girl_recbole.memory.available", lambda device: 1 << 20)
    with pytest.raises(ConfigError, match=r"training takes about .* GiB .*ppo_micro_batch \(4\).*lora_rank"):
        train(toy, config(toy, generator="large"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"data-parallel .*not with FSDP or DeepSpeed"):
        train(toy, config(toy, generator="sharded"))


def test_without_a_judge_the_critic_starts_from_the_generator(toy, tmp_path):
    """A reward that needs no recruiter needs no reward model either; a new split changes who is learned from."""
    import pandas as pd

    files = dataclasses.replace(toy, folder=Path(shutil.copytree(toy.folder, tmp_path / "toy")))
    settings = config(files, generator="by-rank", rl_stages=["sft"], rewards={"retrieval": 1.0}, reward_model="none")
    settings = dataclasses.replace(settings, saved_folder=str(tmp_path / "saved"))
    shutil.copytree(Path(config(toy).saved_folder), settings.saved_folder)
    assert train(files, settings)["seekers"] == 96
    assert "reused" in train(files, settings)
    judged = pd.DataFrame({"user_id": ["u1", "u2"], "item_id": "nurse", "label": 1.0})
    write_interactions(files.split("cold", "test"), judged)
    assert train(files, settings)["seekers"] == 94  # not the generator that had learned from them


def test_fewer_iterations_than_a_checkpoint_begin_anew_and_keep_their_own(toy):
    from girl_recbole.ppo import _checkpoints, _resume, _save_checkpoint

    work = toy.folder.parent / "lowered.checkpoints"
    ppo = listed_ppo(ppo_save_iterations=1)
    for _ in range(4):
        ppo.iterate()
        _save_checkpoint(ppo, work)
    assert [path.name for path in _checkpoints(work)] == ["iteration-000003", "iteration-000004"]
    again = listed_ppo(ppo_save_iterations=1)
    _resume(again, work, iterations=2)
    assert again.iteration == 0
    again.iterate()
    _save_checkpoint(again, work)
    assert [path.name for path in _checkpoints(work)] == ["iteration-000001"]
    third = listed_ppo(ppo_save_iterations=1)
    _resume(third, work, iterations=2)
    assert third.iteration == 1


def test_seekers_of_rl_in_a_test_part_are_refused_and_those_of_sft_left_out(toy, tmp_path):
    files = dataclasses.replace(toy, folder=Path(shutil.copytree(toy.folder, tmp_path / "toy")))
    import pandas as pd

    def judged_by(*users):
        rows = pd.DataFrame({"user_id": list(users), "item_id": "nurse", "label": 1.0})
        write_interactions(files.split("cold", "test"), rows)

    judged_by("r3", "u1")
    with pytest.raises(
        DataError, match=r"1 of 24 seekers are in valid or test too, first r3 in toy\.cold\.test\.inter"
    ):
        train(files, config(toy))
    judged_by("u1", "u2")
    report = train(files, config(toy, generator="by-sft", rl_stages=["sft"], ppo_iterations=1, ppo_critic_warmup=0))
    assert report["seekers_in_valid_or_test_left_out"] == 2
    assert report["seekers"] == 94


def test_a_reward_model_of_another_tokenizer_or_prompt_is_refused(toy, monkeypatch):
    from girl_recbole.ppo import _check_same_language

    lm, prompt = load_generator(toy, "sft", config(toy).saved_folder, "fp32", "en")
    other = plain_tokenizer()
    judge = RewardModel(tiny_model(other), other, make_prompt("en", other), 0.0, 1.0, 99, 99, "", "saved/toy/judge")
    with pytest.raises(DataError, match=r"saved/toy/judge: its tokenizer is not that of .*girl reward"):
        _check_same_language(judge, lm, prompt, config(toy))
    with pytest.raises(DataError, match=r"trained with prompt .* and|trained with prompt .* with"):
        _check_same_language(dataclasses.replace(judge, prompt=make_prompt("zh", other)), lm, prompt, config(toy))


def test_clip_and_kl_helpers_agree_with_the_log():
    """The log's KL is k3 over tokens of each JD, then over JDs."""
    ppo = listed_ppo()
    ppo.iterate()
    batch = ppo._rollouts(ppo._chosen(), _clock())
    from girl_recbole.ppo import _describe

    line = _describe(batch, torch.zeros(64), torch.zeros(64))
    by_hand = np.mean(
        [np.mean([math.exp(b - a) - 1 + a - b for a, b in zip(r.old, r.ref, strict=True)]) for r in batch]
    )
    assert line["kl_k3"] == pytest.approx(by_hand, abs=1e-5)
    assert pg.KL_ESTIMATORS == ("k1", "k3", "printed")
