"""sft.py: what the labels are, what the loss is, and a real run of TRL's trainer: killed, resumed, judged."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from tiny_lms import chat_tokenizer, plain_tokenizer, tiny_model

from girl_recbole import llm, sft
from girl_recbole.atomic import DatasetFiles, write_docs, write_interactions
from girl_recbole.config import make_config
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import generator_folder
from girl_recbole.llm import IGNORED
from girl_recbole.manifest import read_manifest, require
from girl_recbole.prompts import make_prompt
from girl_recbole.sft import Pair, SFTConfig, encode_pairs, hold_out, sft_loss

TRADES = ["nurse", "baker", "welder", "teacher"]


def dataset(folder, seekers=48) -> DatasetFiles:
    """A seeker's CV names a trade; the matched JD is the one of that trade, so the right JD is known."""
    files = DatasetFiles(folder / "toy", "toy")
    write_docs(
        files.udoc, [(f"u{i}", f"{TRADES[i % 4]} number {i}, {TRADES[i % 4]} by trade") for i in range(seekers)], "user"
    )
    jobs = [(trade, f"{trade} wanted. You do what a {trade} does and we pay well for it.") for trade in TRADES]
    write_docs(files.idoc, jobs, "item")
    rows = [(f"u{i}", TRADES[i % 4], 1.0) for i in range(seekers)] + [("u0", "baker", 0.0)]
    write_interactions(files.stage("sft"), pd.DataFrame(rows, columns=["user_id", "item_id", "label"]))
    return files


TINY = {
    "tiny_vocab_size": 400, "tiny_width": 64, "tiny_layers": 2, "tiny_heads": 4, "tiny_kv_heads": 2,
    "sft_epochs": 25, "sft_batch_size": 8, "sft_learning_rate": 5e-3, "sft_save_steps": 40,
    "sft_eval_share": 0.15, "sft_sample_jds": 5, "max_sequence_tokens": 128, "max_jd_tokens": 48, "temperature": 0.1,
}  # fmt: skip


def config(tmp_path, **overrides) -> SFTConfig:
    return make_config(SFTConfig, overrides={"saved_folder": str(tmp_path / "saved"), **TINY, **overrides})


# ------------------------------------------------------------------------------------------------- labels and loss


@pytest.mark.parametrize("make", [plain_tokenizer, chat_tokenizer])
def test_labels_are_the_jd_and_eos_and_nothing_else(make):
    tokenizer = make()
    prompt = make_prompt("en", tokenizer)
    pairs = [Pair("u", "i", "A nurse.", "Nurse wanted."), Pair("u", "j", "A nurse.", "Second <eos>JD<|im_end|>.")]
    examples, counts = encode_pairs(pairs, prompt, tokenizer, 100, 400)
    assert counts == {"cvs_cut": 0, "pairs_too_long": 0}
    for pair, example in zip(pairs, examples, strict=True):
        ids, labels = example["input_ids"], example["labels"]
        start = sum(label == IGNORED for label in labels)
        assert labels[:start] == [IGNORED] * start  # the masked part is one piece at the front ...
        assert ids[:start] == prompt.encode(tokenizer, pair.cv, 100)[0]  # ... exactly the prompt of inference
        assert tokenizer.decode(ids[:start]) == prompt.render(pair.cv)
        assert labels[start:] == ids[start:]
        assert labels[-1] == tokenizer.eos_token_id  # EOS is trained
        assert labels.count(tokenizer.eos_token_id) == 1  # and a JD that quotes it does not end early
        assert tokenizer.decode(labels[start:-1]) == pair.jd


def test_long_cvs_are_cut_and_long_jds_left_out_and_both_counted():
    tokenizer = plain_tokenizer()
    prompt = make_prompt("en")
    overhead = prompt.overhead(tokenizer)
    pairs = [Pair("a", "i", "x" * 50, "y" * 10), Pair("b", "i", "x" * 5, "y" * 10), Pair("c", "i", "x", "y" * 90)]
    examples, counts = encode_pairs(pairs, prompt, tokenizer, 30, overhead + 31)
    assert counts == {"cvs_cut": 1, "pairs_too_long": 1}
    jd = len(tokenizer.encode("y" * 10)) + 1
    assert [len(e["input_ids"]) for e in examples] == [overhead + 31, overhead + len(tokenizer.encode("x" * 5)) + jd]
    assert all(sum(label != IGNORED for label in e["labels"]) == jd for e in examples)  # the output is never cut


def test_loss_is_eq_1_by_hand():
    """Two JD tokens with probabilities 1/2 and 1/8: -(ln 1/2 + ln 1/8) / 2 = 2 ln 2."""
    logits = torch.log(
        torch.tensor([[[0.25] * 4, [0.5, 0.25, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125], [0.7, 0.1, 0.1, 0.1]]])
    )
    labels = torch.tensor([[IGNORED, IGNORED, 0, 3]])
    assert sft_loss(logits, labels).item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert sft_loss(logits, torch.tensor([[IGNORED] * 3 + [3]])).item() == pytest.approx(math.log(8), rel=1e-6)


def test_what_trl_trains_is_eq_1(tmp_path):
    """The first loss that the trainer logs = Eq. (1) summed by a loop over the batch's JD tokens / their number."""
    tokenizer = plain_tokenizer()
    lm = llm.LanguageModel(tiny_model(tokenizer, spread=0.2), tokenizer, "", "")
    pairs = [Pair("u", "i", "A nurse " * n, "You watch wounds. " * (n + 1)) for n in range(4)]
    examples, _ = encode_pairs(pairs, make_prompt("en"), tokenizer, 100, 400)
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            logp = torch.log_softmax(lm.model(torch.tensor([example["input_ids"]])).logits[0], -1)
            for t, label in enumerate(example["labels"]):
                if label != IGNORED:
                    total, count = total - logp[t - 1, label].item(), count + 1
    assert sft.mean_loss(lm, examples, batch_size=3) == pytest.approx(total / count, rel=1e-5)
    # four sequences in two accumulated batches of unlike length: a mean of means would differ
    settings = config(tmp_path, sft_batch_size=2, sft_accumulation=2, sft_epochs=1)
    trainer = sft._fit(lm, examples, [], settings, tmp_path / "sft")
    assert trainer.state.global_step == 1
    logged = next(line["train_loss"] for line in trainer.state.log_history if "train_loss" in line)
    assert logged == pytest.approx(total / count, rel=1e-4)


# --------------------------------------------------------------------------------------------------------- the data


def test_length_sampler_gives_each_example_once_in_batches_of_like_length():
    lengths = torch.randint(10, 300, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = sft.LengthSampler(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(1003))
    assert list(sampler) == first  # the same again in the same epoch, as after a resume
    sampler.set_epoch(1)
    assert list(sampler) != first
    batches = [[lengths[i] for i in first[b : b + 8]] for b in range(0, 1000, 8)]
    padding = sum(max(batch) * 8 - sum(batch) for batch in batches) / sum(map(sum, batches))
    assert padding < 0.05  # about 0.8 when batches are drawn at random
    means = [sum(batch) for batch in batches]
    assert abs(sum(means[:60]) / 60 - sum(means[-60:]) / 60) < 0.2 * sum(means) / len(means)  # not short first


def test_held_out_texts_are_on_one_side_only():
    pairs = [Pair(f"u{i}", "i", f"cv {i % 150}", "jd") for i in range(300)]
    training, held = hold_out(pairs, 0.2, seed=1)
    assert sorted(map(str, training + held)) == sorted(map(str, pairs))
    assert not {p.cv for p in training} & {p.cv for p in held}
    assert 15 <= len({p.cv for p in held}) <= 45  # 30 expected, sd 4.9
    assert hold_out(pairs, 0, seed=1) == (pairs, [])
    assert {len({p.cv for p in hold_out(pairs[:9], 0.001, seed)[1]}) for seed in range(9)} == {1}  # one at least
    with pytest.raises(DataError, match=r"sft_eval_share 0\.5 of 1 pairs leaves no"):
        hold_out(pairs[:1], 0.5, seed=1)


def test_errors_name_what_is_missing(tmp_path):
    files = dataset(tmp_path)
    write_docs(files.udoc, [(f"u{i}", "text" if i else " ") for i in range(40)], "user")
    with pytest.raises(
        DataError, match=r"9 of 48 ids of toy\.sft\.inter have no text there \(u0, u40, u41 and 6 more\)"
    ):
        sft.read_pairs(files)
    write_interactions(files.stage("sft"), pd.DataFrame({"user_id": ["u1"], "item_id": ["nurse"], "label": [0.0]}))
    with pytest.raises(DataError, match=r"no matched pair \(label 1\) among 1 rows"):
        sft.read_pairs(files)


def test_settings_that_cannot_work(tmp_path):
    files = dataset(tmp_path)
    with pytest.raises(ConfigError, match="lora_rank: the base `tiny` is trained from scratch"):
        sft.train(files, config(tmp_path, lora_rank=4))
    with pytest.raises(ConfigError, match=r"sft_eval_share: 1\.5"):
        sft.train(files, config(tmp_path, sft_eval_share=1.5))
    for key, value in {
        "sft_batch_size": 0,
        "top_p": 0.0,
        "lm_dtype": "fp61",
        "sft_epochs": 0.0,
        "lora_rank": -1,
    }.items():
        with pytest.raises(ConfigError, match=f"{key}: "):
            sft.train(files, config(tmp_path, **{key: value}))
    with pytest.raises(ConfigError, match="the width must be a multiple of twice the heads"):
        sft.train(files, config(tmp_path, tiny_width=100, tiny_heads=6))
    with pytest.raises(ConfigError, match="leave no room for a CV in the 128 tokens"):
        sft.train(files, config(tmp_path, max_jd_tokens=127))
    with pytest.raises(ConfigError, match="'nobody/nothing' is no folder here"):
        sft.train(files, config(tmp_path, lm_base="nobody/nothing"))
    with pytest.raises(DataError, match=r"of all .* training pairs exceed 9 tokens"):
        sft.train(files, config(tmp_path / "short", max_sequence_tokens=9))


# ---------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    files = dataset(folder)
    return files, config(folder), sft.train(files, config(folder))


def test_the_embedded_generator_learns_to_write_the_right_jd_and_to_stop(trained):
    _, settings, report = trained
    folder = generator_folder(settings.saved_folder, "toy", "sft")
    assert report["mismatched_rows_ignored"] == 1
    assert report["pairs"] + report["held_out_pairs"] == 48
    assert report["eval_loss"] < 0.1  # ln 400 = 6.0 before training
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == report["samples"] == 5
    for line in lines:
        trade = TRADES[int(line["user_id"][1:]) % 4]
        assert line["jd"] == f"{trade} wanted. You do what a {trade} does and we pay well for it."
        assert line["ended"]  # generation stops by EOS, far from max_jd_tokens
    assert "by trade" not in (folder / "samples.jsonl").read_text()  # no CV in the file


def test_a_finished_generator_is_not_trained_again(trained):
    files, settings, report = trained
    folder = generator_folder(settings.saved_folder, "toy", "sft")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = sft.train(files, settings)
    assert "delete the folder to train again" in again["reused"]
    assert again["eval_loss"] == report["eval_loss"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_loss_on_unseen_jds_needs_some(trained):
    """The four JDs are all in training."""
    _, _, report = trained
    assert report["held_out_pairs_unseen_jds"] == 0
    assert report["eval_loss_unseen_jds"] is None


def test_what_is_saved(trained):
    _, settings, report = trained
    folder = generator_folder(settings.saved_folder, "toy", "sft")
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "samples.jsonl", "log.jsonl"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    assert not folder.with_name("sft.checkpoints").exists()
    lm = llm.load(str(folder))
    manifest = require(
        folder, "girl sft toy", kind="generator", prompt=make_prompt("en").id, fingerprint=lm.fingerprint
    )
    assert set(manifest["inputs"]) == {"toy.sft.inter", "toy.udoc", "toy.idoc"}
    assert manifest["config"] == json.loads(json.dumps(dataclasses.asdict(settings)))
    assert manifest["eval_loss"] == report["eval_loss"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert len(losses) == settings.sft_epochs  # one an epoch
    assert losses[-1] == pytest.approx(report["eval_loss"], rel=0.05)  # TRL's is a mean over batches


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(trained, tmp_path):
    _, _, undisturbed = trained
    files = dataset(tmp_path)
    settings = config(tmp_path)
    program = (
        "import sys; sys.path[:0] = ['tests']; from pathlib import Path; import test_sft as t; "
        "p = Path(sys.argv[1]); t.sft.train(t.DatasetFiles(p / 'toy', 'toy'), t.config(p))"
    )
    work = generator_folder(settings.saved_folder, "toy", "sft").with_name("sft.checkpoints")
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=env, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (work / "checkpoint-40" / "trainer_state.json").exists():
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert work.exists()
    (work / "checkpoint-9999").mkdir()  # as a kill in the middle of a save leaves it
    with pytest.raises(
        DataError,
        match=r"checkpoints .* other settings \(sft_learning_rate was 0\.005, now 0\.001\) and are not mixed in",
    ):
        sft.train(files, config(tmp_path, sft_learning_rate=1e-3))
    report = sft.train(files, settings)
    assert report["eval_loss"] == pytest.approx(undisturbed["eval_loss"], rel=1e-3)


def test_lora_on_a_chat_model_saves_an_adapter_that_generates(tmp_path):
    """A Qwen2 with ChatML: the adapter is trained, the base is not, and the pair loads again as one model."""
    files = dataset(tmp_path, seekers=16)
    write_docs(files.idoc, [(f"j{i}", f"{TRADES[i % 4]} wanted at place {i}") for i in range(16)], "item")
    rows = pd.DataFrame(
        {"user_id": [f"u{i}" for i in range(16)], "item_id": [f"j{i}" for i in range(16)], "label": 1.0}
    )
    write_interactions(files.stage("sft"), rows)
    base = tmp_path / "base"
    tokenizer = chat_tokenizer()
    tiny_model(tokenizer, "qwen2").save_pretrained(base)
    tokenizer.save_pretrained(base)
    before = llm.load(str(base)).fingerprint
    settings = config(
        tmp_path, lm_base=str(base), lora_rank=4, lora_dropout=0.0, sft_epochs=2,
        max_sequence_tokens=400, max_jd_tokens=8,
    )  # fmt: skip
    report = sft.train(files, settings)
    folder = generator_folder(settings.saved_folder, "toy", "sft")
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    assert 0 < report["trained_parameters"] < 0.5 * report["parameters"]
    assert llm.load(str(base)).fingerprint == before
    assert report["held_out_pairs_unseen_jds"] == report["held_out_pairs"] > 0  # each seeker has a job of his own
    assert report["eval_loss_unseen_jds"] == report["eval_loss"]
    lm = llm.load(str(folder))
    assert lm.tokenizer.pad_token_id != lm.tokenizer.eos_token_id
    assert lm.stop_ids[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    manifest = read_manifest(folder)
    assert manifest["prompt"] == make_prompt("en", lm.tokenizer).id != make_prompt("en").id
    _, held = hold_out(sft.read_pairs(files)[0], settings.sft_eval_share, settings.seed)
    examples, _ = encode_pairs(held, make_prompt("en", lm.tokenizer), lm.tokenizer, 256, 400)
    assert sft.mean_loss(lm, examples, 2) == pytest.approx(report["eval_loss"], rel=1e-5)
    untrained = llm.load(str(base))
    assert sft.mean_loss(untrained, examples, 2) > report["eval_loss"] + 0.01


@pytest.mark.parametrize("preset", ["tiny", "qwen-0.5b-lora", "llm-7b-lora"])
def test_shipped_presets_fill_both_configs(preset):
    from girl_recbole.generate import GenerateConfig

    settings = make_config(SFTConfig, preset=f"generator/{preset}")
    make_config(GenerateConfig, preset=f"generator/{preset}")
    assert (settings.lm_base == "tiny") == (preset == "tiny")
    assert (settings.lora_rank > 0) == (preset != "tiny")
