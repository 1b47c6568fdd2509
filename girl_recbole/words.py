"""Words of documents, for models that read them: a vocabulary fitted to training texts, and tables of word ids.

    document -> items (sentences or lines) -> words -> ids          0 = no word (padding), 1 = an unknown word

Items      what a job requires and what a seeker did, one by one: :func:`split_items`, a rule for texts in any script.
           A line ends an item; so do . ! ? before white space, unless a lower-case letter follows or a short Latin
           word stands before the full stop (e.g., Sr., U.S.); so do the full-width stops and semicolons of Chinese
           and Japanese anywhere, and ; before white space. Marks and numbers of lists are cut off. An item without a
           word is none.
Words      after NFKC and lower case. ``word``: runs of letters, marks and digits (with + and # behind them: c++, c#);
           each Chinese character and each kana is a word of its own. ``subword``: the same runs, whole also where
           nothing stands between words, cut into byte-level BPE pieces; for Korean, Finnish, Thai and other languages
           whose written words are too many. No word of a text has a meaning to the tokenizer, not even ``[PAD]``.
Vocabulary words by their count in the training texts, ties in the order of the alphabet; those seen fewer than
           ``min_word_count`` times are unknown words, so that "unknown" is learned, too. Byte-level BPE knows all.
Table      a document is a row of item numbers, an item a row of word ids; equal items have one number, so that a
           model can read each once. Longer documents and items are cut, and what was cut is counted.

The vocabulary's SHA-256 is that of its words (and merges) and of the version of these rules.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from girl_recbole.errors import ConfigError

__all__ = ["Documents", "Vocabulary", "number_documents", "split_items"]

_RULES = 1  # counted up when a rule below changes: ids of an older vocabulary mean something else then
_FIRST = 2  # ids of words start here
_UNKNOWN = ""  # the name of id 1: no text has an empty word
_BATCH = 1 << 14  # items that are cut into words at once

_CHARACTERS = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORDS = {
    "word": rf"[{_CHARACTERS}]|(?:(?![{_CHARACTERS}])[\p{{L}}\p{{M}}\p{{N}}])+[+#]*",
    "subword": r"[\p{L}\p{M}\p{N}]+[+#]*",
}
_ENDS = re.compile(
    r"[\r\n\v\f\u2028\u2029]+"
    r"|(?<=[。！？；｡])"
    r"|(?<=;)\s+"
    r"|(?:(?<=[A-Za-z]{3}[.!?])|(?<=[^A-Za-z][.!?])|(?<=[!?]))\s+(?![a-z\s])"
)
_MARK = re.compile(r"\s*(?:[-*–—•·▪●◦‣■□◆◇○※▶]+|[(（]?\d{1,2}[.)、）](?!\d)|[①-⑳])\s*")


def split_items(text: str) -> list[str]:
    """The items of a document, in its order, without marks of lists: ``["Nurse wanted.", "Night shifts."]``."""
    parts = (_MARK.sub("", part, count=1) if _MARK.match(part) else part for part in _ENDS.split(text))
    return [part for part in (part.strip() for part in parts) if any(map(str.isalnum, part))]


class Vocabulary:
    """``len(v)`` ids, those of no word and of the unknown word included; ``v.ids(texts)``; ``v.sha256``."""

    def __init__(self, tokenizer: Tokenizer, words: Sequence[str], described: object) -> None:
        self._tokenizer, self._words = tokenizer, ["", "", *words]
        self.sha256 = hashlib.sha256(json.dumps([_RULES, described], ensure_ascii=True).encode()).digest()

    @classmethod
    def fit(cls, texts: Iterable[str], *, unit: str, size: int, min_count: int) -> Vocabulary:
        """Of at most ``size`` ids. ``unit`` is ``word`` or ``subword``."""
        if unit not in _WORDS:
            raise ConfigError(f"word_unit: {unit!r} is unknown; known: {', '.join(_WORDS)}.")
        least = _FIRST + (256 if unit == "subword" else 1)
        if size < least:
            raise ConfigError(f"vocabulary_size: {size}; at least {least} ids are required for word_unit: {unit}.")
        normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        runs = pre_tokenizers.Split(Regex(_WORDS[unit]), "removed", invert=True)
        if unit == "word":
            counts = Counter(
                word for text in texts for word, _ in runs.pre_tokenize_str(normalizer.normalize_str(text))
            )
            kept = sorted(
                (word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word)
            )
            words = kept[: size - _FIRST]
            ids = {_UNKNOWN: 1, **{word: n for n, word in enumerate(words, start=_FIRST)}}
            tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
            tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, runs
            return cls(tokenizer, words, [unit, words])
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizer
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([runs, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - _FIRST,
            min_frequency=min_count,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        model = json.loads(tokenizer.to_str())["model"]
        words = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])]
        return cls(tokenizer, words, [unit, words, model["merges"]])

    def __len__(self) -> int:
        return len(self._words)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The word ids of each text."""
        shift = 0 if isinstance(self._tokenizer.model, models.WordLevel) else _FIRST
        return [[i + shift for i in found.ids] for found in self._tokenizer.encode_batch_fast(texts)]

    def words(self, ids: Iterable[int]) -> list[str]:
        """What the ids stand for; ``?`` for an unknown word, nothing for padding."""
        named = ["?" if i == 1 else self._words[i] for i in ids if i]
        if isinstance(self._tokenizer.model, models.WordLevel):
            return named
        return [word if word == "?" else self._tokenizer.decoder.decode([word]) for word in named]


@dataclass(frozen=True)
class Documents:
    """Documents as numbers. ``items[rows[d, k]]`` are the words of item k of document d."""

    rows: np.ndarray
    """(documents, K) int32: items from the left, 0 = no item."""
    items: np.ndarray
    """(distinct items + 1, W) int32: words from the left, 0 = no word; row 0 is empty."""
    cut: dict[str, int]
    """Counts: documents, empty (of them), items, words, items_cut and words_cut (left out by the limits)."""

    def table(self) -> np.ndarray:
        """(documents, K, W) int32."""
        return self.items[self.rows]


def number_documents(texts: Sequence[str], vocabulary: Vocabulary, *, max_items: int, max_item_words: int) -> Documents:
    """K and W are those of the longest document and item, at most ``max_items`` and ``max_item_words``."""
    split = [split_items(text) for text in texts]
    kept, items_cut = [items[:max_items] for items in split], sum(max(0, len(items) - max_items) for items in split)
    distinct = {text: n for n, text in enumerate(dict.fromkeys(item for items in kept for item in items))}
    found: dict[tuple[int, ...], int] = {(): 0}
    numbers, words_cut = np.zeros(len(distinct), np.int32), np.zeros(len(distinct), np.int64)
    strings = list(distinct)
    for at in range(0, len(strings), _BATCH):
        for n, ids in enumerate(vocabulary.ids(strings[at : at + _BATCH]), start=at):
            words_cut[n] = max(0, len(ids) - max_item_words)
            numbers[n] = found.setdefault(tuple(ids[:max_item_words]), len(found))
    table = np.zeros((len(found), max(1, *map(len, found))), np.int32)
    for ids, n in found.items():
        table[n, : len(ids)] = ids
    documents = [[numbers[distinct[item]] for item in items] for items in kept]
    documents = [[n for n in items if n] for items in documents]  # an item without a word is none
    rows = np.zeros((len(texts), max(1, *map(len, documents)) if documents else 1), np.int32)
    for row, items in zip(rows, documents, strict=True):
        row[: len(items)] = items
    cut = {
        "documents": len(texts),
        "empty": sum(not items for items in documents),
        "items": int((rows > 0).sum()),
        "words": int((table > 0).sum(axis=1)[rows].sum()),
        "items_cut": items_cut,
        "words_cut": int(sum(words_cut[distinct[item]] for items in kept for item in items)),
    }
    return Documents(rows, table, cut)
