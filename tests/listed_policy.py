"""A language model small enough to list every JD that it can write, and a reward that is known for each."""

from types import SimpleNamespace

import numpy as np
import torch
import transformers
from tiny_lms import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers

from girl_recbole import llm
from girl_recbole.alignment import SeekerCV

WORDS = ["a", "b", "c", "d"]  # what it writes, beside EOS


def listed_lm(seed=0):
    """It writes two of four words at most: a JD of one word ends by EOS, one of two is cut by the limit."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *WORDS, "<unk>"])}
    bare = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    model = tiny_model(tokenizer, seed=seed, width=16, context=64, spread=0.1)
    return llm.LanguageModel(model.eval(), tokenizer, "listed", "0")


def worth(jd, ended):
    """``b`` and EOS 2, ``b`` and another word 1, ``c`` first 0.5, else 0."""
    return {"b": 1.0, "c": 0.5}.get(jd[:1], 0.0) + (jd == "b" and ended)


class BestWord:
    """Called as Rewards are."""

    fingerprint, model = "best-word", None

    def check(self, users):
        pass

    def __call__(self, users, cvs, jds, ended):
        total = np.array([worth(jd, end) for jd, end in zip(jds, ended, strict=True)], float)
        return SimpleNamespace(total=total, parts={"words": total})


def people(lm, count=8):
    """Seekers whose CVs are one to three words long, and their prompts: padding differs."""
    cvs = [" ".join([WORDS[i % 4], *[WORDS[i // 4 % 4]] * (i % 3)]) for i in range(count)]
    seekers = [SeekerCV(f"u{i}", cv) for i, cv in enumerate(cvs)]
    return seekers, [lm.tokenizer.encode(cv, add_special_tokens=False) for cv in cvs]


@torch.no_grad()
def listed(lm, prompt):
    """Every JD of at most two words and its probability: {tokens with EOS: p}. They sum to 1."""
    lm.model.eval()
    stop = lm.tokenizer.eos_token_id
    tokens = [token for token in range(len(lm.tokenizer)) if token != stop]
    first = torch.softmax(lm.model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)
    first[stop] = 0  # no JD is blank: EOS is drawn again
    rows = torch.tensor([[*prompt, token] for token in tokens])
    second = torch.softmax(lm.model(input_ids=rows).logits[:, -1].double(), -1)
    joint = (first / first.sum())[tokens, None] * second
    return {(a, b): float(joint[i, b]) for i, a in enumerate(tokens) for b in range(len(lm.tokenizer))}


def expected_worth(lm, prompts):
    """The mean over ``prompts`` of E[worth], exactly."""
    total, stop = 0.0, lm.tokenizer.eos_token_id
    for prompt in prompts:
        for (a, b), p in listed(lm, prompt).items():
            text = lm.tokenizer.decode([a] if b == stop else [a, b], skip_special_tokens=True)
            total += p * worth(text, b == stop)
    return total / len(prompts)
