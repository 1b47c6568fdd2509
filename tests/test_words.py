"""Items, words and vocabularies of texts in several scripts; tables against a loop; nothing of a text is special."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from girl_recbole.errors import ConfigError
from girl_recbole.words import Vocabulary, number_documents, split_items


@pytest.mark.parametrize(
    "text, items",
    [
        ("Nurse wanted. Night shifts! Really?", ["Nurse wanted.", "Night shifts!", "Really?"]),
        ("Sr. Engineer for e.g. Java, U.S. only. We pay $3.5 million.",
         ["Sr. Engineer for e.g. Java, U.S. only.", "We pay $3.5 million."]),
        ("You know Java; C++; and Go", ["You know Java;", "C++;", "and Go"]),
        ("1. Python 3.5 needed\n2) Go\n- C#\n\n---\n• five years", ["Python 3.5 needed", "Go", "C#", "five years"]),
        ("岗位要求：熟悉Java；有经验。要求本科！", ["岗位要求：熟悉Java；", "有经验。", "要求本科！"]),
        ("1、熟悉Java\n（2）有经验", ["熟悉Java", "有经验"]),
        ("간호사를 구합니다. 야간 근무. 경력 3년. 우대", ["간호사를 구합니다.", "야간 근무.", "경력 3년.", "우대"]),
        ("看護師募集。夜勤あり。", ["看護師募集。", "夜勤あり。"]),
        ("", []), ("  \n--- ... \t 。", []),
    ],
)  # fmt: skip
def test_items_of_texts_in_several_scripts(text, items):
    assert split_items(text) == items


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_letter_of_a_text_is_lost_or_moved(text):
    """Items hold the text's letters in their order (a mark of a list may hold digits)."""

    def letters(some):
        return [character for character in some if character.isalpha()]

    items = split_items(text)
    assert letters("".join(items)) == letters(text)
    assert all(any(map(str.isalnum, item)) for item in items)


def _words(text, unit="word"):
    vocabulary = Vocabulary.fit([text], unit=unit, size=2000, min_count=1)
    return vocabulary.words(vocabulary.ids([text])[0])


def test_words_of_several_scripts():
    assert _words("C++ and C#, .NET/Java: R&D 24/7") == ["c++", "and", "c#", "net", "java", "r", "d", "24", "7"]
    assert _words("熟悉Java护士") == ["熟", "悉", "java", "护", "士"]
    assert _words("간호사를 구합니다.") == ["간호사를", "구합니다"]
    assert _words("Ｆｕｌｌ　ｗｉｄｔｈ Ａ") == ["full", "width", "a"]
    assert _words("अनुभवी नर्स") == ["अनुभवी", "नर्स"]  # vowel signs are part of the word
    assert _words("看護師 サーバー") == ["看", "護", "師", *"サーバー"]


def test_vocabulary_by_count_then_alphabet():
    texts = ["b b b a a c c d", "a e"]
    vocabulary = Vocabulary.fit(texts, unit="word", size=5, min_count=2)
    assert vocabulary.ids(["a b c d e z", "[PAD] [UNK] <s>"]) == [[2, 3, 4, 1, 1, 1], [1, 1, 1]]
    assert len(vocabulary) == 5
    assert vocabulary.words([0, 2, 1, 4]) == ["a", "?", "c"]
    assert Vocabulary.fit(texts, unit="word", size=4, min_count=1).ids(["a b c"]) == [[2, 3, 1]]
    assert Vocabulary.fit(["a e", *texts[:1]], unit="word", size=5, min_count=2).sha256 == vocabulary.sha256
    others = {"size": 4, "min_count": 2}, {"size": 9, "min_count": 1}
    assert len({vocabulary.sha256, *(Vocabulary.fit(texts, unit="word", **one).sha256 for one in others)}) == 3


def test_subwords_know_every_word_and_are_the_same_each_time():
    texts = ["nursing nurses nurse"] * 9 + ["간호사를 구합니다 간호사"] * 9 + ["熟悉护理护理护理"] * 9
    vocabulary = Vocabulary.fit(texts, unit="subword", size=300, min_count=2)
    assert len(vocabulary) == 300
    ids = vocabulary.ids(["nurse", "護 ñandú", "护理护理", ""])
    assert min(map(min, ids[:3])) > 1
    assert max(map(max, ids[:3])) < 300
    assert len(ids[0]) < 5
    assert ids[3] == []
    assert "".join(vocabulary.words(ids[0])) == "nurse"
    again = Vocabulary.fit(iter(texts), unit="subword", size=300, min_count=2)
    assert (again.sha256, again.ids(texts)) == (vocabulary.sha256, vocabulary.ids(texts))
    assert Vocabulary.fit(texts, unit="subword", size=299, min_count=2).sha256 != vocabulary.sha256


def test_what_a_vocabulary_cannot_be():
    with pytest.raises(ConfigError, match="word_unit: 'letter' is unknown; known: word, subword"):
        Vocabulary.fit([], unit="letter", size=9, min_count=1)
    with pytest.raises(ConfigError, match="vocabulary_size: 200; at least 258 ids are required for word_unit: subword"):
        Vocabulary.fit([], unit="subword", size=200, min_count=1)
    assert len(Vocabulary.fit([], unit="word", size=9, min_count=1)) == 2


_DOCUMENTS = st.lists(st.lists(st.sampled_from(["a b c", "d", "a", "b c d e f", "。", "x y"]), max_size=5), max_size=6)


@settings(max_examples=60, deadline=None)
@given(_DOCUMENTS, st.integers(1, 4), st.integers(1, 4))
def test_tables_and_counts_are_those_of_a_loop(documents, max_items, max_item_words):
    vocabulary = Vocabulary.fit(["a b c d e f"], unit="word", size=99, min_count=1)
    texts = ["\n".join(items) for items in documents]
    made = number_documents(texts, vocabulary, max_items=max_items, max_item_words=max_item_words)
    expected, cut = [], dict.fromkeys(("documents", "empty", "items", "words", "items_cut", "words_cut"), 0)
    for text in texts:
        items = [vocabulary.ids([item])[0] for item in split_items(text)]
        cut["items_cut"] += len(items[max_items:])
        cut["words_cut"] += sum(len(item[max_item_words:]) for item in items[:max_items])
        expected.append([item[:max_item_words] for item in items[:max_items]])
        cut["documents"] += 1
        cut["empty"] += not items
        cut["items"] += len(expected[-1])
        cut["words"] += sum(map(len, expected[-1]))
    table = made.table()
    assert table.dtype == np.int32
    assert table.shape[0] == len(texts)
    assert [[[w for w in item if w] for item in one if item[0]] for one in table.tolist()] == expected
    assert made.cut == cut
    assert len({tuple(row) for row in made.items.tolist()}) == len(made.items)  # each item once
    assert not made.items[0].any()
