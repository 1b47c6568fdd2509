"""Small things that tests share: a text encoder made in a second, and datasets whose answers are known."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

import numpy as np
import pandas as pd
import pytest
import torch

from girl_recbole.atomic import (
    PARTS,
    DatasetFiles,
    write_docs,
    write_generated,
    write_interactions,
)

_KINDS = [f"trade{k}" for k in range(4)]
_FILLER = [f"word{k}" for k in range(40)]


@pytest.fixture(autouse=True)
def process_as_it_was():
    """RecBole's own entry points set the root logger's level and handlers, and its trainer autograd's search for NaN,
    for good; no test hears of another's."""
    root = logging.getLogger()
    level, handlers, anomalies = root.level, list(root.handlers), torch.is_anomaly_enabled()
    yield
    torch.autograd.set_detect_anomaly(anomalies)
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """Folder of a random BERT, 2 layers of 32, 16 input tokens, over the words trade0..3 and word0..39."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_KINDS, *_FILLER]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_toy(folder, *, signal="cv", users=240, items=40, pairs=2400, seed=0) -> DatasetFiles:
    """A dataset ``toy`` where a pair is matched exactly when the seeker's trade is the job's.

    ``signal`` says which text of a seeker names the trade: ``cv`` (and the generated JD too) or ``gen`` (that alone).
    The parts of the split ``cold`` share no seeker, so that nothing can be learned by heart.
    """
    rng = np.random.default_rng(seed)
    files = DatasetFiles(folder / "toy", "toy")
    user_trade, item_trade = rng.integers(0, 4, users), rng.integers(0, 4, items)

    def text(trade):
        words = list(rng.choice(_FILLER, rng.integers(2, 6)))
        return " ".join(words if trade is None else [*words, *[_KINDS[trade]] * 6])

    write_docs(files.udoc, [(f"u{i}", text(t if signal == "cv" else None)) for i, t in enumerate(user_trade)], "user")
    write_docs(files.idoc, [(f"i{i}", text(t)) for i, t in enumerate(item_trade)], "item")
    write_generated(files.gdoc("sft"), [(f"u{i}", n, text(t)) for i, t in enumerate(user_trade) for n in range(2)])
    user = rng.integers(0, users, pairs)
    same = rng.random(pairs) < 0.5  # half of the pairs match
    item = np.empty(pairs, np.int64)
    for trade in range(4):
        rows = user_trade[user] == trade
        item[rows & same] = rng.choice(np.flatnonzero(item_trade == trade), (rows & same).sum())
        item[rows & ~same] = rng.choice(np.flatnonzero(item_trade != trade), (rows & ~same).sum())
    frame = pd.DataFrame({"user_id": user, "item_id": item, "label": same.astype(float)}).drop_duplicates()
    part = np.array([0] * 7 + [1] + [2] * 2)[frame["user_id"] % 10]
    frame["user_id"] = "u" + frame["user_id"].astype(str)
    frame["item_id"] = "i" + frame["item_id"].astype(str)
    write_interactions(files.inter, frame)
    for number, name in enumerate(PARTS):
        write_interactions(files.split("cold", name), frame[part == number])
    return files


@pytest.fixture
def toy(tmp_path):
    """:func:`make_toy` with its signal in the CVs."""
    return make_toy(tmp_path)
