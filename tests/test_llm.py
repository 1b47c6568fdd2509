"""llm.py: loading, pad and EOS, log-probabilities, and sampling that depends on the key alone."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_lms import chat_tokenizer, plain_tokenizer, tiny_model

from girl_recbole import llm
from girl_recbole.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny model whose distribution is far from uniform."""
    path = tmp_path_factory.mktemp("lm") / "base"
    tokenizer = plain_tokenizer()
    model = tiny_model(tokenizer, spread=0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return llm.load(str(folder))


# ---------------------------------------------------------------------------------------------------------- loading


def test_unknown_name_offline_says_so_and_offers_a_folder():
    with pytest.raises(ConfigError, match=r"'nobody/no-such-model' is no folder.*Give the path of a folder"):
        llm.load("nobody/no-such-model")


def test_a_folder_without_a_model_and_an_unknown_dtype(tmp_path, folder):
    with pytest.raises(DataError, match="holds no model"):
        llm.load(str(tmp_path))
    with pytest.raises(ConfigError, match="lm_dtype: 'int3' is unknown; known: fp32, bf16, fp16"):
        llm.load(str(folder), "int3")


def test_pickled_weights_are_refused(tmp_path, folder):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(tiny_model(plain_tokenizer()).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        llm.load(str(tmp_path))


def test_pickled_adapter_is_refused(tmp_path, folder):
    config = llm.lora_config(2, 4, 0.0, "q_proj, v_proj").to_dict() | {"base_model_name_or_path": str(folder)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, default=list))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    plain_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"no adapter_model\.safetensors"):
        llm.load(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nclass C: pass\n")
    remote = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": remote}))
    plain_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="cannot be loaded"):
        llm.load(str(tmp_path))
    assert not (tmp_path / "pwned").exists()


def test_dtypes_and_fingerprint(folder, lm):
    assert llm.load(str(folder), "bf16").model.dtype == torch.bfloat16
    assert llm.load(str(folder)).fingerprint == lm.fingerprint
    assert lm.context == 512


def test_adapter_loads_over_its_base_and_changes_the_fingerprint(tmp_path, folder, lm):
    import peft

    torch.manual_seed(0)
    tuned = peft.get_peft_model(llm.load(str(folder)).model, llm.lora_config(2, 4, 0.0, "all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tuned.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    loaded = llm.load(str(tmp_path))
    assert loaded.fingerprint != lm.fingerprint
    ids = torch.arange(5, 15)[None]
    expected = tuned.eval()(ids).logits
    assert torch.allclose(loaded.model(ids).logits, expected, atol=1e-5)
    assert not torch.allclose(lm.model(ids).logits, expected, atol=1e-2)


@pytest.mark.parametrize(
    "make, pad", [(plain_tokenizer, "<pad>"), (chat_tokenizer, "<|fim_pad|>"), (None, "<|girl_pad|>")]
)
def test_pad_is_never_eos(make, pad):
    tokenizer = make() if make else plain_tokenizer(pad=None)
    if pad != "<pad>":
        tokenizer.pad_token = tokenizer.eos_token  # what most guides tell people to do
    model = tiny_model(tokenizer)
    llm.ensure_pad_token(tokenizer, model)
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings > tokenizer.pad_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = plain_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no EOS token, so generation could never stop"):
        llm.ensure_pad_token(tokenizer)


# ---------------------------------------------------------------------------------------------------------- scoring


def test_collate_pads_right_and_masks_padding_by_position():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = llm.collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_token_log_probs_against_a_loop(lm):
    ids = torch.tensor([[5, 9, 30, 200], [7, 8, lm.tokenizer.pad_token_id, lm.tokenizer.pad_token_id]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    got = llm.token_log_probs(lm.model, ids, mask)
    for row, size in ((0, 4), (1, 2)):
        for t in range(1, size):
            logits = lm.model(ids[row : row + 1, :t]).logits[0, -1]  # without batch, padding or future
            assert got[row, t - 1].item() == pytest.approx(torch.log_softmax(logits, -1)[ids[row, t]].item(), abs=1e-4)


# --------------------------------------------------------------------------------------------------------- sampling


def test_choose_by_hand():
    """p = 1/2, 1/4, 1/8, 1/8: F steps at .5, .75, .875."""
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    draws = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.9999999], dtype=torch.float64)
    rows = logits.expand(len(draws), -1)
    assert llm.choose(rows, draws, 1.0, 1.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert llm.choose(rows, draws, 0, 1.0).tolist() == [0] * 8  # greedy
    # nucleus 0.6 = the first two tokens, renormalised: 2/3, 1/3
    assert llm.choose(rows, draws, 1.0, 0.6).tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    # temperature 1/2 squares the probabilities: 16, 4, 1, 1 of 22
    assert llm.choose(rows, draws, 0.5, 1.0).tolist() == [0, 0, 0, 1, 1, 1, 1, 3]


def test_choose_has_the_models_frequencies():
    draws = torch.from_numpy(llm.uniforms([7], 20_000)[0])
    probs = torch.tensor([0.6, 0.3, 0.1])
    counts = torch.bincount(llm.choose(probs.log().expand(20_000, -1), draws, 1.0, 1.0), minlength=3)
    assert (counts / 20_000).tolist() == pytest.approx(probs.tolist(), abs=0.012)  # three standard errors


def test_uniforms_are_one_stream_a_key():
    a = llm.uniforms([1, 2, 1 << 100], 50)
    assert np.array_equal(a[1], llm.uniforms([2], 50)[0])
    assert np.array_equal(a[:, :10], llm.uniforms([1, 2, 1 << 100], 10))  # a longer stream begins with the shorter
    assert len(np.unique(a)) == 150
    keys = {llm.sample_key(s, cv, i) for s in (0, 1) for cv in ("a", "b") for i in (0, 1)}
    assert len(keys) == 8
    assert max(keys) < 1 << 128


def _one(lm, prompt, keys, **settings):
    return llm.sample(lm, [prompt], [keys], **({"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.9} | settings))[0]


PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46, 47], [100], list(range(60, 95))]
KEYS = [[llm.sample_key(3, str(p), i) for i in range(3)] for p in range(len(PROMPTS))]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("stops", [[], list(range(2, 60))])
def test_same_text_alone_or_in_a_batch_in_any_order_with_any_number_of_samples(kind, stops):
    """Also when rows end at different times and leave the batch; gpt2 would notice positions counted in the padding."""
    tokenizer = plain_tokenizer()
    lm = llm.LanguageModel(tiny_model(tokenizer, kind, spread=0.3).eval(), tokenizer, "", "")
    lm.model.generation_config.eos_token_id = stops
    together = llm.sample(lm, PROMPTS, KEYS, max_new_tokens=24, temperature=1.0, top_p=0.9)
    back = llm.sample(lm, PROMPTS[::-1], KEYS[::-1], max_new_tokens=24, temperature=1.0, top_p=0.9)[::-1]
    assert together == back
    for prompt, keys, expected in zip(PROMPTS, KEYS, together, strict=True):
        assert _one(lm, prompt, keys) == expected
        assert [_one(lm, prompt, [key])[0] for key in keys] == expected
    if stops:
        assert len({len(s.ids) for row in together for s in row if s.ended}) > 3
    else:
        assert len({tuple(s.ids) for row in together for s in row}) == 12  # and the samples differ


def test_sampling_against_a_plain_loop_without_cache(lm):
    for prompt, keys in zip(PROMPTS, KEYS, strict=True):
        draws, ids = llm.uniforms(keys[:1], 24), []
        for t in range(24):
            logits = lm.model(torch.tensor([prompt + ids])).logits[:, -1]
            token = llm.choose(logits, torch.from_numpy(draws[:, t]), 1.0, 0.9).item()
            if token == lm.tokenizer.eos_token_id:
                break
            ids.append(token)
        assert _one(lm, prompt, keys[:1])[0].ids == ids


def test_greedy_equals_transformers_generate(lm):
    ids = torch.tensor([PROMPTS[1]])
    expected = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[0, 8:]
    assert _one(lm, PROMPTS[1], [1], temperature=0)[0].ids == expected.tolist()


def test_stops_at_eos_of_tokenizer_or_generation_config_and_leaves_it_out(folder):
    lm = llm.load(str(folder))
    free = _one(lm, PROMPTS[0], [2], max_new_tokens=40)[0]
    assert not free.ended
    assert len(free.ids) == 40
    stop = free.ids[5]
    lm.model.generation_config.eos_token_id = [stop]
    assert lm.stop_ids == [lm.tokenizer.eos_token_id, stop]
    stopped = _one(lm, PROMPTS[0], [2], max_new_tokens=40)[0]
    assert stopped.ended
    assert stopped.ids == free.ids[: free.ids.index(stop)]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_no_text_is_blank_and_texts_that_were_not_stay(folder, temperature):
    """A third of all tokens stop; without the rule the first token of many keys would."""
    lm = llm.load(str(folder))
    keys = list(range(60))
    free = _one(lm, PROMPTS[0], keys, max_new_tokens=6, temperature=temperature, top_p=1.0)
    first = free[0].ids[0]
    lm.model.generation_config.eos_token_id = sorted({first, *range(3, 200, 3)})
    stop = set(lm.stop_ids)
    stopped = _one(lm, PROMPTS[0], keys, max_new_tokens=6, temperature=temperature, top_p=1.0)
    assert all(text.ids and not stop & set(text.ids) for text in stopped)
    logits = lm.model(torch.tensor([PROMPTS[0]])).logits[:, -1].expand(len(keys), -1)
    drawn = llm.choose(logits, torch.from_numpy(llm.uniforms(keys, 1)[:, 0]), temperature, 1.0).tolist()
    assert sum(token in stop for token in drawn) > 10
    for was, now, token in zip(free, stopped, drawn, strict=True):
        if token not in stop and lm.tokenizer.decode([token], skip_special_tokens=True).strip():
            assert now.ids == was.ids[: len(now.ids)]
    alone = [_one(lm, PROMPTS[0], [key], max_new_tokens=6, temperature=temperature, top_p=1.0)[0] for key in keys[:20]]
    assert alone == stopped[:20]


def test_lora_config_reads_targets():
    assert llm.lora_config(4, 8, 0.1, "all-linear").target_modules == "all-linear"
    assert llm.lora_config(4, 8, 0.1, "q_proj, v_proj").target_modules == {"q_proj", "v_proj"}
    assert math.isclose(llm.lora_config(4, 8, 0.1, "q_proj").lora_dropout, 0.1)
