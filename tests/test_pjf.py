"""PJFNN, APJFNN and BPJFNN: the equations one word at a time, invariances, planted rules, full ranking, checkpoints."""

import copy
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model, get_trainer, init_seed
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from girl_recbole.atomic import PARTS, DatasetFiles, write_docs, write_interactions
from girl_recbole.config import load_properties, properties_file
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models import apjfnn, bpjfnn, lstm, pjfnn, scorer, text_scorer
from girl_recbole.words import split_items

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import pjf_loops

MODELS = {"PJFNN": pjfnn.PJFNN, "APJFNN": apjfnn.APJFNN, "BPJFNN": bpjfnn.BPJFNN}
LOOPS = {
    "PJFNN": pjf_loops.pjfnn_logits,
    "APJFNN": pjf_loops.apjfnn_logits,
    "BPJFNN": pjf_loops.bpjfnn_logits,
}
SMALL = {"embedding_size": 6, "hidden_size": 8, "attention_size": 5, "head_size": 7, "dropout_prob": 0.0}
CVS = [
    "Nurse for ten years. Night shifts! I know wards and children; and old people. Calm.",
    "岗位：护士。熟悉病房；夜班。", "간호사입니다. 야간 근무를 합니다.", "---",
    "Cook. Cook. Soup and bread and soup and bread and soup.", "one", "Nurse.\nCook.\nWaiter.",
]  # fmt: skip
JDS = [
    "Nurse wanted. Night shifts in wards; good pay. Must be calm and kind to old people.",
    "招聘护士。要求熟悉病房。", "...", "Cook. Bread and soup.", "간호사 구함. 야간 근무. 병동.", "one two",
]  # fmt: skip


class _Data:
    """As much of a dataset as a model's constructor asks for."""

    def __init__(self, cvs, jds, pairs):
        self._texts = {"cv": [[], *([t] for t in cvs)], "jd": [[], *([t] for t in jds)]}
        users, items, labels = zip(*pairs, strict=True)
        self.inter_feat = {
            "user_id": torch.tensor(users), "item_id": torch.tensor(items), "label": torch.tensor(labels).float(),
        }  # fmt: skip

    def num(self, field):
        return len(self._texts["cv" if field == "user_id" else "jd"])

    def texts(self, kind, n_samples=1):
        return self._texts[kind]


def _config(name, **settings):
    config = {
        **load_properties(properties_file(f"model/{name}.yaml")),
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LABEL_FIELD": "label", "NEG_PREFIX": "neg_",
        "device": torch.device("cpu"), "min_word_count": 1,
    }  # fmt: skip
    return config | SMALL | settings


def _model(name, cvs=CVS, jds=JDS, pairs=None, seed=0, **settings):
    """With weights far enough from their start that every part of the equations matters."""
    if pairs is None:
        pairs = [(u, i, (u + i) % 2) for u in range(1, len(cvs) + 1) for i in range(1, len(jds) + 1)]
    torch.manual_seed(seed)
    model = MODELS[name](_config(name, **settings), _Data(cvs, jds, pairs))
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5).add_(0.1 * torch.randn_like(value))
        model.words.weight[0] = 0
        for value in model.buffers():
            if value.dtype == torch.float32 and value.ndim:  # running means and variances
                value.copy_(value + 0.2 * torch.rand_like(value))
        model.platt.copy_(torch.tensor([1.0, 0.0]))
    return model


def _every_pair(model):
    pairs = torch.cartesian_prod(torch.arange(1, model.n_users), torch.arange(1, model.n_items))
    return Interaction({"user_id": pairs[:, 0], "item_id": pairs[:, 1]})


# --------------------------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("unit", ["word", "subword"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_a_loop_over_pairs_items_and_words(name, unit, training):
    model = _model(name, word_unit=unit).train(training)
    twin = copy.deepcopy(model)
    pairs = _every_pair(model)
    weights = torch.randn(len(pairs), generator=torch.Generator().manual_seed(1))
    found = model.logits(pairs)
    expected = LOOPS[name](twin, pairs["user_id"], pairs["item_id"])
    assert found.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    twins = dict(twin.named_parameters())
    for key, value in model.named_parameters():
        scale = twins[key].grad.abs().max().clamp_min(1)
        torch.testing.assert_close(value.grad / scale, twins[key].grad / scale, atol=1e-5, rtol=1e-4, msg=key)
        assert value.grad.abs().max() > 0 or key.endswith("_norm.bias") or "conv" in key, key
    assert not model.words.weight.grad[0].any()


def test_the_lstm_is_that_of_torch():
    """On sequences one by one; outputs and gradients of inputs and weights."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    lengths = torch.tensor([3, 0, 7, 1, 7])
    inputs = torch.randn(5, 8, 3, requires_grad=True)
    found = lstm.read_padded(module, inputs, lengths)
    expected = torch.zeros(5, 8, 8)
    for row, length in enumerate(lengths.tolist()):
        if length:
            expected[row, :length] = module(inputs[row : row + 1, :length])[0][0]
    torch.testing.assert_close(found, expected)
    weights, several = torch.randn(5, 8, 8), [inputs, *module.parameters()]
    expected = torch.autograd.grad((expected * weights).sum(), several)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), several), expected)
    assert not lstm.read_padded(module, inputs, lengths * 0).any()


def test_pjfnn_by_hand():
    """Words of one coordinate x = 1 or -1; the first convolution makes (x, -x), ReLU (1, 0) or (0, 1)."""
    model = _model("PJFNN", cvs=["good", "bad", "good\nbad"], jds=["good", "bad", "good\nbad"], embedding_size=1,
                   hidden_size=2).eval()  # fmt: skip
    good, bad = (model.cv_items[model.cv_rows[n, 0], 0] for n in (1, 2))
    with torch.no_grad():
        model.words.weight[good], model.words.weight[bad] = 1.0, -1.0
        for cnn in (model.job_cnn, model.resume_cnn):
            for value in (*cnn.parameters(), *cnn.buffers()):
                value.zero_()
            cnn.first.weight[:, 0, 2] = torch.tensor([1.0, -1.0])  # (x, -x), then ReLU
            cnn.second.weight[:, :, cnn.second.kernel_size[0] // 2] = torch.eye(2)
            for norm in (cnn.first_norm, cnn.second_norm):
                norm.weight.fill_(1.0)
                norm.running_var.fill_(1.0 - norm.eps)
        model.scale.fill_(3.0)
        model.bias.fill_(0.5)
    one, half = 3.5, 3 / np.sqrt(2) + 0.5  # good: (1, 0), bad: (0, 1), both: mean (1/2, 1/2) and max (1, 1)
    expected = [one, 0.5, half, 0.5, one, half, half, half, one]
    assert model.logits(_every_pair(model)).tolist() == pytest.approx(expected, abs=1e-5)
    found = model.requirement_scores(torch.tensor([1, 1, 3]), torch.tensor([3, 1, 3]))
    expected = torch.tensor([[1, 0], [1, torch.nan], [0.5**0.5, 0.5**0.5]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_attention_weights_give_the_score():
    """The vectors of (1), (2) and (4) rebuilt from the weights alone; each sums to 1, padding has none."""
    model = _model("APJFNN").eval()
    pairs = _every_pair(model)
    users, items = pairs["user_id"], pairs["item_id"]
    found = model.attention(users, items)
    with torch.no_grad():
        logits = model.logits(pairs)
        for n in range(len(pairs)):
            jd = pjf_loops.words_of(model, "jd", items[n])
            cv = pjf_loops.words_of(model, "cv", users[n])
            s, u = [], []
            for k, words in enumerate(jd):
                assert found.alpha[n, k, len(words) :].eq(0).all()
                h = model.job_words(model.words(torch.tensor(words)))[0]
                s.append(found.alpha[n, k, : len(words)] @ h)
            job = found.beta[n, : len(s)] @ model.job_items(torch.stack(s))[0] if s else torch.zeros(8)
            for place, words in enumerate(cv, start=1):
                here = found.experience[n] == place
                assert here.sum() == len(words)
                h = model.resume_words(model.words(torch.tensor(words)))[0]
                gamma = found.gamma[n, : len(s)][:, here]
                assert gamma.sum(dim=1).tolist() == pytest.approx([1] * len(s), abs=1e-5)
                u.append((gamma @ h).mean(dim=0) if s else torch.zeros(8))
            resume = found.delta[n, : len(u)] @ model.resume_items(torch.stack(u))[0] if u else torch.zeros(8)
            assert pjf_loops._fit(model, job, resume).item() == pytest.approx(logits[n].item(), abs=1e-5)
            for weights, count in ((found.beta[n], len(s)), (found.delta[n], len(u))):
                assert weights[count:].eq(0).all()
                assert weights.sum().item() == pytest.approx(min(1, count), abs=1e-5)
            assert found.gamma[n, len(s) :].eq(0).all()
            assert found.gamma[n][:, found.experience[n] == 0].eq(0).all()


def test_bpr_compares_a_pair_with_one_of_the_same_seeker_and_the_other_label():
    """Seeker 1: jobs 1 (matched), 2, 3 (not); seeker 2: matched ones only; seeker 3: 4 (matched), 5 (not)."""
    pairs = [(1, 2, 0), (2, 1, 1), (1, 1, 1), (3, 4, 1), (1, 3, 0), (3, 5, 0), (2, 3, 1)]
    model = _model("BPJFNN", pairs=pairs, loss="bpr").eval()
    users, labels = torch.tensor([1, 1, 2, 3, 3, 4]), torch.tensor([1, 0, 1, 1, 0, 1])
    drawn = torch.stack([model._opposites(users, labels > 0)[0] for _ in range(60)])
    assert model._opposites(users, labels > 0)[1].tolist() == [True, True, False, True, True, False]
    assert [set(drawn[:, n].tolist()) for n in (0, 1, 3, 4)] == [{2, 3}, {1}, {5}, {4}]
    batch = Interaction({"user_id": torch.tensor([3, 2, 1]), "item_id": torch.tensor([4, 1, 2]),
                         "label": torch.tensor([1.0, 1, 0])})  # fmt: skip
    logit = {(u, i): model.logits(Interaction({"user_id": torch.tensor([u]), "item_id": torch.tensor([i])})).item()
             for u, i, _ in pairs}  # fmt: skip
    expected = [np.log1p(np.exp(-(logit[3, 4] - logit[3, 5]))), np.log1p(np.exp(-(logit[1, 1] - logit[1, 2])))]
    assert model.calculate_loss(batch).item() == pytest.approx(np.mean(expected), abs=1e-5)
    alone = Interaction({"user_id": torch.tensor([2]), "item_id": torch.tensor([1]), "label": torch.ones(1)})
    assert model.calculate_loss(alone).item() == 0
    model.calculate_loss(alone).backward()  # a batch without a pair trains nothing, and does not end the run


def test_bce_is_the_cross_entropy_with_the_labels():
    model = _model("PJFNN").eval()
    batch = Interaction({"user_id": torch.tensor([1, 2]), "item_id": torch.tensor([3, 1]),
                         "label": torch.tensor([1.0, 0.0])})  # fmt: skip
    p = torch.sigmoid(model.logits(batch))
    assert model.calculate_loss(batch).item() == pytest.approx(-(p[0].log() + (1 - p[1]).log()).item() / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------------ what must not matter


@pytest.mark.parametrize("training", [False, True])
def test_the_order_of_items_is_nothing_to_pjfnn(training):
    cvs, jds = [CVS[0], CVS[4]], [JDS[0], JDS[3]]
    plain = _model("PJFNN", cvs, jds, seed=3).train(training)
    turned = ["\n".join(reversed(split_items(text))) for text in (*cvs, *jds)]
    other = _model("PJFNN", turned[:2], turned[2:], seed=3).train(training)
    assert not plain.jd_items[plain.jd_rows].equal(other.jd_items[other.jd_rows])
    pairs = _every_pair(plain)
    torch.testing.assert_close(plain.logits(pairs), other.logits(pairs), atol=1e-6, rtol=1e-6)
    one = torch.tensor([1])
    plain.eval(), other.eval()
    scores, counts = plain.requirement_scores(one, one)[0], len(split_items(jds[0]))
    assert scores.tolist() == pytest.approx(other.requirement_scores(one, one)[0].tolist()[::-1], abs=1e-5)
    assert len(scores) == counts == len(set(scores.tolist()))


def test_the_order_of_items_matters_to_the_recurrent_models():
    for name in ("APJFNN", "BPJFNN"):
        model = _model(name, cvs=["nurse at night. cook by day", "cook by day. nurse at night"], jds=["nurse", "cook"])
        logits = model.eval().logits(_every_pair(model))
        assert (logits[0] - logits[2]).abs() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_padding_batch_size_and_blocks_change_nothing(name, monkeypatch):
    model = _model(name).eval()
    pairs = _every_pair(model)
    with torch.no_grad():
        whole = model.logits(pairs)
        alone = torch.cat([model.logits(Interaction({k: v[n : n + 1] for k, v in pairs.interaction.items()}))
                           for n in range(len(pairs))])  # fmt: skip
        for constant, value in (("_DOCUMENTS", 2), ("_PAIRS", 5), ("_BLOCK", 3)):
            monkeypatch.setattr(text_scorer, constant, value)
        blocks = model.logits(pairs)
    torch.testing.assert_close(alone, whole, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(blocks, whole, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(model.logits(pairs).detach(), whole, atol=2e-6, rtol=1e-5)
    wider = copy.deepcopy(model)
    for kind in ("cv", "jd"):
        for table in ("rows", "items"):
            setattr(wider, f"{kind}_{table}", functional.pad(getattr(model, f"{kind}_{table}"), (0, 7)))
    if name == "APJFNN":
        wider.most_words, wider.most_requirements = model.most_words + 9, wider.jd_rows.shape[1]
    with torch.no_grad():
        for training in (False, True):
            found = [one.train(training).logits(pairs) for one in (model, wider)]
            torch.testing.assert_close(found[0], found[1], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_full_ranking_is_predict(name, monkeypatch):
    model = _model(name).eval()
    monkeypatch.setattr(scorer, "_JOBS", 3)
    model.platt.copy_(torch.tensor([0.7, -0.2]))
    users = torch.arange(1, model.n_users)
    with torch.no_grad():
        expected = model.predict(_every_pair(model)).view(len(users), -1)
        for block in (1 << 21, 1):
            for module in (apjfnn, text_scorer, bpjfnn):
                monkeypatch.setattr(module, "_BLOCK", block)
            monkeypatch.setattr(apjfnn, "_JOBS_BLOCK", block)
            ranked = model.full_sort_predict(Interaction({"user_id": users})).view(len(users), -1)
            torch.testing.assert_close(ranked[:, 1:], expected, atol=2e-6, rtol=0)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_each_side_is_encoded_once(name, monkeypatch):
    model = _model(name).eval()
    seen = {"encode_users": [], "encode_items": []}
    for method, calls in seen.items():
        encode = getattr(model, method)
        monkeypatch.setattr(model, method, lambda ids, e=encode, c=calls: (c.extend(ids.tolist()), e(ids))[1])
    with torch.no_grad():
        model.logits(_every_pair(model))
        assert {side: sorted(ids) for side, ids in seen.items()} == {
            "encode_users": list(range(1, model.n_users)), "encode_items": list(range(1, model.n_items)),
        }  # fmt: skip
        seen["encode_users"].clear()
        seen["encode_items"].clear()
        for user in range(1, model.n_users):
            model.full_sort_predict(Interaction({"user_id": torch.tensor([user])}))
    assert sorted(seen["encode_users"]) == list(range(1, model.n_users))
    assert sorted(seen["encode_items"]) == list(range(model.n_items))


@pytest.mark.parametrize("name", MODELS)
def test_documents_without_words_score_and_train(name):
    """CV 4 and JD 3 hold no word; one batch has nothing else. One word has no variance."""
    for users, items in (([4, 4], [3, 3]), ([6, 6], [3, 3]), ([1, 4], [3, 1])):
        model = _model(name).train()
        batch = Interaction({"user_id": torch.tensor(users), "item_id": torch.tensor(items),
                             "label": torch.tensor([1.0, 0.0])})  # fmt: skip
        model.calculate_loss(batch).backward()
        assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
        model.eval()
        with torch.no_grad():
            assert model.predict(batch).isfinite().all()
            assert torch.isfinite(model.full_sort_predict(batch)).all()
    if name == "PJFNN":
        assert model.requirement_scores(torch.tensor([1]), torch.tensor([3])).isnan().all()
        assert model.logits(batch)[0].item() == pytest.approx(model.bias.item())  # a cosine of 0


# ------------------------------------------------------------------------------------------------------ in RecBole

_TRADES = [["nurse for wards", "护士。夜班护理", "간호사 병동"], ["cook for soup", "厨师。会做面包", "요리사 주방"]]
_FILLER = ["I like cats", "full of energy", "good pay", "我喜欢猫", "좋은 급여", "near the sea", "start soon"]


@pytest.fixture(scope="module")
def trades(tmp_path_factory):
    """Nurses want the jobs of nurses and cooks those of cooks, whatever the language of either text; one sentence
    among others tells the trade. Seekers of the parts differ."""
    rng = np.random.default_rng(0)
    files = DatasetFiles(tmp_path_factory.mktemp("trades") / "toy", "toy")

    def text(trade):
        return ". ".join(rng.permutation([*rng.choice(_FILLER, 1), rng.choice(_TRADES[trade])])) + "."

    user, item = rng.integers(0, 2, 200), rng.integers(0, 2, 40)
    write_docs(files.udoc, [(f"u{n}", text(trade)) for n, trade in enumerate(user)], "user")
    write_docs(files.idoc, [(f"i{n}", text(trade)) for n, trade in enumerate(item)], "item")
    pairs = []
    for n, trade in enumerate(user):
        for fits in (True, False):
            jobs = rng.choice(np.flatnonzero((item == trade) == fits), 4, replace=False)
            pairs += [(f"u{n}", f"i{job}", float(fits)) for job in jobs]
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id", "label"])
    write_interactions(files.inter, frame)
    part = np.array([0] * 7 + [1] + [2] * 2)[frame["user_id"].str[1:].astype(int) % 10]
    for number, name in enumerate(PARTS):
        write_interactions(files.split("cold", name), frame[part == number])
    return files


def _built(files, name, **settings):
    from recbole.config import Config

    values = {
        "data_path": str(files.folder.parent), "checkpoint_dir": str(files.folder / "saved"), "split": "cold",
        "show_progress": False, "use_gpu": False, "state": "WARNING", "train_batch_size": 64, "epochs": 12,
        "learning_rate": 0.01, "embedding_size": 16, "hidden_size": 16, **settings,
    }  # fmt: skip
    config = Config(name, "toy", config_dict=values, arguments=[])
    init_seed(config["seed"], True)
    loaders = data_preparation(config, create_dataset(config))
    return config, loaders, get_model(name)(config, loaders[0]._dataset)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("name", MODELS)
def test_a_planted_rule_is_learned_and_reloaded(name, loss, trades):
    config, loaders, model = _built(trades, name, loss=loss)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(loaders[0], loaders[1], verbose=False, saved=True)
    model.eval()
    batch = loaders[2]._dataset.inter_feat
    with torch.no_grad():
        probabilities = model.predict(batch)
    assert roc_auc_score(batch["label"].numpy(), probabilities.numpy()) > 0.95
    assert probabilities[batch["label"] == 1].mean() > (0.8 if loss == "bce" else 0.6)  # bpr learns the order alone
    if loss == "bpr":
        return
    state = torch.load(trainer.saved_model_file, weights_only=False)["state_dict"]
    assert not {key for key in state if key.startswith(("cv_", "jd_", "sorted_"))}
    _, loaded, _, _, _, test_data = load_data_and_model(trainer.saved_model_file)
    loaded.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(test_data._dataset.inter_feat), probabilities, atol=1e-6, rtol=0)
    state["vocabulary_sha256"] = state["vocabulary_sha256"].flip(0)
    with pytest.raises(DataError, match="trained with another vocabulary .*Use the data it was trained on"):  # noqa: RUF043
        loaded.load_state_dict(state)
    if name == "PJFNN":
        scores = model.requirement_scores(batch["user_id"], batch["item_id"])
        best = scores.nan_to_num(-1).amax(dim=1)
        assert roc_auc_score(batch["label"].numpy(), best.numpy()) > 0.9  # the requirement that tells the trade


def test_the_vocabulary_is_that_of_the_training_part(trades, tmp_path):
    """A test seeker's words are unknown, a training seeker's are not."""
    trades = DatasetFiles(Path(shutil.copytree(trades.folder, tmp_path / "toy")), "toy")
    docs = trades.udoc.read_text(encoding="utf-8").replace("u9\t", "u9\tzebra zebra zebra zebra ", 1)
    trades.udoc.write_text(docs.replace("u1\t", "u1\tgiraffe giraffe giraffe. ", 1), encoding="utf-8")
    _, loaders, model = _built(trades, "PJFNN", max_items=3, max_item_words=2)
    dataset = loaders[0]._dataset
    zebra, giraffe = (model.cv_items[model.cv_rows[dataset.token2id("user_id", u), 0]].tolist() for u in ("u9", "u1"))
    assert zebra == [1, 1]
    assert giraffe[0] == giraffe[1] > 1
    assert model.cv_rows.shape == (201, 3)


def test_what_was_cut_is_logged_as_counts_and_nothing_of_the_texts(caplog):
    with caplog.at_level(logging.INFO):
        _model("BPJFNN", max_items=2, max_item_words=3)
    said = [record.getMessage() for record in caplog.records if "texts:" in record.getMessage()]
    assert said[0].startswith("cv texts: documents 7, empty 1, items 11, words ")
    assert said[1].startswith("jd texts: documents 6, empty 1, items ")
    assert "items_cut" in said[0]
    assert "nurse" not in "".join(said).lower()


@pytest.mark.parametrize("name, settings, message", [
    ("PJFNN", {"loss": "hinge"}, "loss: 'hinge' is unknown; known: bce, bpr"),
    ("PJFNN", {"word_unit": "letter"}, "word_unit: 'letter' is unknown; known: word, subword"),
    ("PJFNN", {"word_unit": "subword", "vocabulary_size": 99}, "vocabulary_size: 99; at least 258 ids"),
    ("PJFNN", {"hidden_size": 0}, "hidden_size: 0; an int of at least 1"),
    ("BPJFNN", {"hidden_size": 7}, "hidden_size: 7; an even number"),
    ("APJFNN", {"attention_size": "x"}, "attention_size: 'x'; an int"),
    ("APJFNN", {"head_size": None}, "head_size: None; an int"),
    ("APJFNN", {"max_items": -1}, "max_items: -1; an int"),
    ("BPJFNN", {"max_item_words": 1.5}, "max_item_words: 1.5; an int"),
    ("BPJFNN", {"embedding_size": True}, "embedding_size: True; an int"),
    ("BPJFNN", {"min_word_count": 0}, "min_word_count: 0; an int"),
    ("BPJFNN", {"dropout_prob": 1.0}, "dropout_prob: 1.0; a number of at least 0 and below 1"),
])  # fmt: skip
def test_settings_that_cannot_be(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        _model(name, **settings)


def test_bpr_needs_a_seeker_with_both_labels():
    with pytest.raises(DataError, match=r"no seeker of the training part has both\. Use loss: bce"):
        _model("PJFNN", pairs=[(1, 1, 1), (2, 1, 0)], loss="bpr")
