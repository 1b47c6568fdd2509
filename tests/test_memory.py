"""memory.py: the estimates against numbers by hand and against what autograd keeps; what is free; the refusal."""

import json
import logging

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sft import config, dataset
from tiny_lms import plain_tokenizer, tiny_model

from girl_recbole import llm, memory, sft
from girl_recbole.errors import ConfigError
from girl_recbole.memory import Estimate

H, INNER, L, V = 64, 96, 3, 500  # 4 heads of 16, 2 of them for keys and values: Q = 64, K = 32


def llama(layers=L, **more):
    return transformers.LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=256, pad_token_id=0, bos_token_id=None,
        eos_token_id=1, **more,
    )  # fmt: skip


LAYER = 2 * H * H + 2 * H * 32 + 3 * H * INNER + 2 * H  # q and o, k and v, the MLP's three, two norms
PARAMETERS = V * H + L * LAYER + H


# ---------------------------------------------------------------------------------------------------- by hand


def test_parameters_are_counted_from_the_config():
    """By hand, and as many as a model that is there has."""
    assert memory.count(llama()).parameters == PARAMETERS
    assert sum(p.numel() for p in transformers.LlamaForCausalLM(llama()).parameters()) == PARAMETERS
    rewarding = memory.count(llama(), scalar=True, layers=2)
    assert rewarding.parameters == V * H + 2 * LAYER + H + H  # the head has one weight for each of H
    assert rewarding.vocabulary == 1


def test_adapters_are_counted_by_peft():
    """Rank r: r (in + out) for each layer. All linear ones of a layer: q, o 64 -> 64; k, v 64 -> 32; 64 -> 96; back."""
    every = 2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 96) + (96 + 64)
    assert memory.count(llama(), 5).adapter == 5 * L * every
    assert memory.count(llama(), 5, "q_proj, v_proj").adapter == 5 * L * ((64 + 64) + (64 + 32))


def test_sft_in_full_by_hand():
    """2 sequences of 10 tokens, of which 4 are projected, float32."""
    parts = memory.sft_estimate(llama(), dtype="fp32", batch_size=2, tokens=10, projected=4).parts
    kept = 2 * 10 * (L * (16 * 64 + 4 * (2 * 64 + 4 * 64 + 4 * 96)) + 12 * 64)
    logits = 4 * 4 * V * 2 * 4
    assert parts == {
        "weights": 4 * PARAMETERS, "gradients": 4 * PARAMETERS, "optimiser states": 8 * PARAMETERS,
        "activations": kept, "logits": logits, "fragmentation": (kept + logits) // 2,
    }  # fmt: skip
    on_gpu = memory.sft_estimate(llama(), dtype="fp32", batch_size=2, tokens=10, on_gpu=True, shards=4).parts
    assert on_gpu["logits"] == 0
    assert "fragmentation" not in on_gpu
    assert on_gpu["optimiser states"] == 2 * PARAMETERS  # four devices share them
    assert on_gpu["weights"] == 4 * PARAMETERS  # which each loads whole


def test_half_precision():
    """In full: float32 weights and autocast's copies. With LoRA: half-precision weights, float32 adapters."""
    numbers = {"dtype": "bf16", "batch_size": 2, "tokens": 10}
    assert memory.sft_estimate(llama(), **numbers).parts["weights"] == 6 * PARAMETERS
    adapter = memory.count(llama(), 8).adapter
    lora = memory.sft_estimate(llama(), lora_rank=8, **numbers).parts
    assert lora["weights"] == 2 * PARAMETERS + 4 * adapter
    assert lora["gradients"] + lora["optimiser states"] == 12 * adapter


def test_a_7b_actor_and_its_reference_are_one_set_of_weights_with_lora():
    actor = transformers.LlamaConfig(num_key_value_heads=8)  # Llama's 7B, but for its keys
    numbers = {
        "dtype": "bf16", "micro_batch": 4, "gen_batch": 16, "reward_batch": 16, "prompt_tokens": 512, "jd_tokens": 256,
        "on_gpu": True, "reward_layers": 4,
    }  # fmt: skip
    lora = memory.ppo_estimate(actor, actor, lora_rank=16, **numbers).parts
    weights = memory.count(actor).parameters
    assert weights > 5.8e9
    assert sum(size for name, size in lora.items() if "weights of" in name) < 2 * weights * 1.25  # one and a little one
    full = memory.ppo_estimate(actor, actor, **numbers).parts
    assert full["weights of the reference"] == 4 * weights
    assert full["optimiser states"] > 8 * weights


def test_of_ppos_phases_the_dearest_counts():
    numbers = {"dtype": "fp32", "micro_batch": 2, "prompt_tokens": 20, "jd_tokens": 10, "on_gpu": True}
    learning = memory.ppo_estimate(llama(), llama(), gen_batch=2, reward_batch=2, **numbers)
    writing = memory.ppo_estimate(llama(), llama(), gen_batch=500, reward_batch=2, **numbers)
    judging = memory.ppo_estimate(llama(), llama(), gen_batch=2, reward_batch=5000, **numbers)
    assert "logits of the actor" in learning.parts
    assert "gradients" in learning.parts
    assert "gradients" not in writing.parts  # they are gone while the next JDs are written
    assert writing.parts["keys and values of the rollout"] == 500 * 30 * 2 * 4 * L * 32
    assert judging.parts["reading of the reward model"] > judging.total / 2


# ------------------------------------------------------------------------------------------ against what autograd keeps


@pytest.mark.parametrize(("rank", "dtype"), [(0, "fp32"), (0, "bf16"), (8, "fp32"), (8, "bf16")])
def test_activations_are_those_that_autograd_keeps(rank, dtype):
    """The storages that a forward pass saves for its backward pass, of a padded batch, without weights."""
    torch.manual_seed(0)
    held = llm.DTYPES[dtype] if rank else torch.float32
    model = transformers.AutoModelForCausalLM.from_config(llama(), dtype=held)
    if rank:
        import peft

        model = peft.get_peft_model(model, llm.lora_config(rank, 16, 0.05, "all-linear"))
    model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    ids = torch.randint(2, V, (64, 32))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes(), tensor  # kept alive, so that no place is used twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"),
    ):
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    kept = sum(size for size, _ in saved.values())
    estimated = memory.activations(memory.count(llama(), rank), dtype, *ids.shape)
    assert estimated / kept == pytest.approx(1, abs=0.08)


# -------------------------------------------------------------------------------------------------------- properties


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 64), tokens=st.integers(2, 2048), rank=st.integers(0, 64), more=st.integers(1, 50),
    dtype=st.sampled_from(["fp32", "bf16"]), checkpointing=st.booleans(),
)  # fmt: skip
def test_more_of_anything_takes_more(batch, tokens, rank, more, dtype, checkpointing):
    def sft(batch, tokens, rank):
        return memory.sft_estimate(
            llama(1), dtype=dtype, batch_size=batch, tokens=tokens, lora_rank=rank, gradient_checkpointing=checkpointing
        ).total

    base = sft(batch, tokens, rank)
    assert sft(batch + more, tokens, rank) > base
    assert sft(batch, tokens + more, rank) > base
    if rank:
        assert sft(batch, tokens, rank + more) > base


def test_checkpointing_and_lora_take_less():
    numbers = {"dtype": "fp32", "batch_size": 4, "tokens": 64}
    full = memory.sft_estimate(llama(12), **numbers)
    assert memory.sft_estimate(llama(12), gradient_checkpointing=True, **numbers).total < full.total
    assert (
        memory.reward_estimate(llama(12), layers=6, **numbers).total
        < memory.reward_estimate(llama(12), **numbers).total
    )
    lora = memory.sft_estimate(llama(12), lora_rank=4, **numbers).parts
    assert lora["optimiser states"] < full.parts["optimiser states"] / 9


# ------------------------------------------------------------------------------------------------------- the refusal


def free(monkeypatch, size):
    monkeypatch.setattr(memory, "available", lambda device: size)


def test_the_refusal_says_what_is_needed_what_is_free_and_what_to_lower(monkeypatch):
    estimate = Estimate({"weights": 3 * 2**30, "gradients": 2**30, "activations": 2**29, "logits": 2**20})
    free(monkeypatch, 3 * 2**30)
    wanted = (
        r"^memory: training takes about 4\.50 GiB \(weights 3\.00, gradients 1\.00, activations 0\.50\), but 3\.00 "
        r"GiB are free on cpu\. Lower sft_batch_size \(8\)\.$"
    )
    with pytest.raises(ConfigError, match=wanted):
        memory.check(estimate, "cpu", "sft_batch_size (8)")
    with pytest.raises(ConfigError, match=r"but 1\.50 GiB are free on cpu for each of 2 processes\."):
        memory.check(estimate, "cpu", "sft_batch_size (8)", processes=2)


def test_near_the_limit_it_warns_and_well_below_it_says_nothing(monkeypatch, caplog):
    estimate = Estimate({"weights": 10 * 2**30})
    with caplog.at_level(logging.WARNING):
        free(monkeypatch, int(12.1 * 2**30))
        memory.check(estimate, "cpu", "x")
        assert not caplog.records
        free(monkeypatch, 9 * 2**30)
        memory.check(estimate, "cpu", "x")
        assert "9.00 GiB are free on cpu, so it may not fit" in caplog.text


def test_what_is_loaded_already_is_not_asked_for_again(monkeypatch):
    model = torch.nn.Linear(1024, 1024, bias=False)  # 4 MiB
    free(monkeypatch, 2 * 2**20)
    estimate = Estimate({"weights": 4 * 2**20, "activations": 2**20})
    with pytest.raises(ConfigError):
        memory.check(estimate, "cpu", "x")
    memory.check(estimate, "cpu", "x", loaded=[model, model])  # the same weights twice are one set
    free(monkeypatch, 2**19)
    with pytest.raises(ConfigError, match=r"0\.00 GiB more than is loaded already, but 0\.00 GiB are free"):
        memory.check(estimate, "cpu", "x", loaded=[model])


def test_limits_of_control_groups_count_at_every_level(tmp_path):
    """A container of 1000 bytes inside a machine group without limit; 300 are used, of which 100 are files' cache."""
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n9:cpu:/elsewhere\n")
    for group, limit in (("job", "1000"), ("job/step", "max")):
        (tmp_path / "fs" / group).mkdir(parents=True)
        (tmp_path / "fs" / group / "memory.max").write_text(limit + "\n")
        (tmp_path / "fs" / group / "memory.current").write_text("300\n")
        (tmp_path / "fs" / group / "memory.stat").write_text("anon 200\ninactive_file 100\n")
    assert memory._control_groups(own, tmp_path / "fs") == [800]
    old = tmp_path / "fs" / "memory" / "docker"
    old.mkdir(parents=True)
    for name, text in {
        "limit_in_bytes": "500", "usage_in_bytes": "450", "stat": "total_inactive_file 50\ninactive_file 1",
    }.items():  # fmt: skip
        (old / f"memory.{name}").write_text(text)
    own.write_text("4:memory:/docker\n")
    assert memory._control_groups(own, tmp_path / "fs") == [100]
    assert memory._control_groups(tmp_path / "none") == []
    assert memory.available(torch.device("cpu")) > 0


def test_sft_refuses_before_it_loads_the_weights(tmp_path, monkeypatch):
    """A base of which there is a config alone: the refusal comes before the missing weights are noticed."""
    files = dataset(tmp_path)
    base = tmp_path / "base"
    llama().save_pretrained(base)
    free(monkeypatch, 2**20)
    wanted = (
        r"memory: training takes .* are free on cpu\. Lower sft_batch_size \(8\) or max_sequence_tokens \(128\), "
        r"or set gradient_checkpointing, or train an adapter"
    )
    with pytest.raises(ConfigError, match=wanted):
        sft.train(files, config(tmp_path, lm_base=str(base)))


def test_sft_refuses_batches_that_cannot_fit(tmp_path, monkeypatch):
    """The weights fit, the activations of 40 sequences do not."""
    files = dataset(tmp_path)
    free(monkeypatch, 20 * 2**20)
    with pytest.raises(ConfigError, match=r"Lower sft_batch_size \(40\) or max_sequence_tokens \(128\)"):
        sft.train(files, config(tmp_path, sft_batch_size=40))
    report = sft.train(files, config(tmp_path, sft_batch_size=2, sft_epochs=1, sft_sample_jds=0))
    assert report["pairs"]


def test_the_config_of_an_adapter_is_that_of_its_base(tmp_path):
    tokenizer = plain_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    for name, base in (("sft", "../base"), ("ppo", str(tmp_path / "sft"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert memory.model_config(str(tmp_path / "ppo")).hidden_size == 32
    with pytest.raises(ConfigError, match="'nobody/nothing' is no folder here"):
        memory.model_config("nobody/nothing")
