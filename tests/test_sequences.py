# SPDX-License-Identifier: Apache-2.0
"""Layout of texts, pairs and words, and how long ones are truncated."""

import json
import random

import numpy as np
import pytest

import tokenization
from common import errors
from helpers import invented, tiny
from helpers.paths import REPOSITORY
from tasks import conll, sequences


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("model"))
    return tokenization.RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )


def one_at_a_time(first, second, room):
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def test_the_longer_text_is_cut_first():
    assert sequences.kept(10, 3, 8) == (5, 3)
    for room in range(0, 9):
        for first in range(10):
            for second in range(10):
                assert sequences.kept(first, second, room) == (
                    one_at_a_time(first, second, room)
                )


def test_texts_and_pairs_are_between_special_tokens(tokenizer):
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    encoded = sequences.encode(
        [("a", None), ("a", "b"), ("", "")], tokenizer, 16
    )
    assert [ids.tolist() for ids in encoded.sequences] == [
        [0] + a + [2],
        [0] + a + [2, 2] + b + [2],
        [0, 2, 2, 2],
    ]
    assert (encoded.truncated, encoded.cut_tokens) == (0, 0)


def test_cut_tokens_are_counted(tokenizer):
    encoded = sequences.encode(
        [("abcdefgh", None), ("abcdef", "xy"), ("abc", "d")], tokenizer, 8
    )
    texts = [
        tokenizer.decode([i for i in ids.tolist() if i > 3])
        for ids in encoded.sequences
    ]
    assert texts == ["abcdef", "abxy", "abcd"]
    assert (encoded.truncated, encoded.cut_tokens) == (2, 2 + 4)


def test_several_processes_keep_the_order(tokenizer):
    pairs = [(f"dol {number}", None) for number in range(1200)]
    alone = sequences.encode(pairs, tokenizer, 16, num_workers=1)
    several = sequences.encode(pairs, tokenizer, 16, num_workers=2)
    assert [ids.tolist() for ids in alone.sequences] == [
        ids.tolist() for ids in several.sequences
    ]


# --- Words ------------------------------------------------------------------


@pytest.fixture(scope="module")
def merging():
    """A tokenizer whose words have one token or several."""
    folder = REPOSITORY / "demo"
    return tokenization.RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )


def sentences_of(*texts):
    return [
        conll.Sentence("file", (7,), tuple(text.split(" ")), ())
        for text in texts
    ]


def encode(texts, tokenizer, length):
    return sequences.encode_words(
        sentences_of(*texts), tokenizer, length, num_workers=1
    )


def test_the_label_sits_on_a_words_first_token():
    # "Dol kufs ." as D|ol| k|ufs| .; offsets leave out leading spaces.
    offsets = [(0, 1), (1, 3), (4, 5), (5, 8), (9, 10)]
    assert sequences.first_tokens(["Dol", "kufs", "."], offsets).tolist() == [
        0,
        2,
        4,
    ]


def test_a_separate_blank_is_part_of_no_word():
    offsets = [(0, 1), (1, 2), (2, 3), (3, 4)]  # "a bc" byte by byte
    assert sequences.first_tokens(["a", "bc"], offsets).tolist() == [0, 2]


def test_a_letter_of_several_tokens_begins_with_the_first():
    offsets = [(0, 1), (0, 1), (1, 2), (2, 3), (2, 3)]  # "é é"
    assert sequences.first_tokens(["é", "é"], offsets).tolist() == [0, 3]


def test_windows_end_between_words():
    first, total = np.array([0, 2, 3, 7]), 9  # 2, 1, 4 and 2 tokens
    assert list(sequences.spans(first, total, 3)) == [(0, 2), (2, 3), (3, 4)]
    assert list(sequences.spans(first, total, 7)) == [(0, 3), (3, 4)]
    assert list(sequences.spans(first, total, 9)) == [(0, 4)]


def test_a_long_sentence_becomes_windows(tokenizer):
    encoded = encode(["ab cd ef", "gh"], tokenizer, 8)
    # A blank's token goes with the word before it.
    assert [
        tokenizer.decode(window.ids.tolist()) for window in encoded.windows
    ] == ["<s>ab cd </s>", "<s>ef</s>", "<s>gh</s>"]
    assert [window.places.tolist() for window in encoded.windows] == [
        [1, 4],
        [1],
        [1],
    ]
    assert [window.words.start for window in encoded.windows] == [0, 2, 3]
    assert (encoded.split_sentences, encoded.cut_words) == (1, 0)


def test_the_end_of_a_word_longer_than_a_window_is_cut(tokenizer):
    encoded = encode(["a bcdefghi j"], tokenizer, 6)
    assert [len(window.ids) for window in encoded.windows] == [4, 6, 3]
    assert [window.words.start for window in encoded.windows] == [0, 1, 2]
    assert encoded.cut_words == 1


@pytest.mark.parametrize("length", [8, 16, 512])
def test_every_word_has_one_window_and_its_own_tokens(merging, length):
    chance = random.Random(3)
    texts = [
        " ".join(
            invented.word(chance, "aeiouéß😀", 3)
            for _ in range(chance.randint(1, 30))
        )
        for _ in range(40)
    ]
    encoded = encode(texts, merging, length)
    words = [word for text in texts for word in text.split(" ")]
    numbers = [
        number
        for window in encoded.windows
        for number in range(window.words.start, window.words.stop)
    ]
    assert numbers == list(range(len(words)))
    if length == 512:
        assert len(encoded.windows) == 40
    for window in encoded.windows:
        assert len(window.ids) <= length
        ends = np.append(window.places[1:], len(window.ids) - 1)
        for word, begin, end in zip(words[window.words], window.places, ends):
            text = merging.decode(window.ids[begin:end].tolist()).strip()
            assert word.startswith(text.rstrip("\ufffd"))
            assert text == word or encoded.cut_words
    assert any(len(merging.encode(" " + word)) > 2 for word in words)


def test_words_of_white_space_are_rejected(tmp_path):
    folder = tiny.write_model(tmp_path)
    merges = ["Â ł", "Âł Ġ", "ÂłĠ Âł"]  # U+00A0, a blank, U+00A0
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2"] + merges), encoding="utf-8"
    )
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for merge in merges:
        vocabulary[merge.replace(" ", "")] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = tokenization.RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )
    sentence = conll.Sentence("file", (7,), ("a", "\u00a0", "\u00a0", "b"), ())
    with pytest.raises(
        errors.UserError,
        match=r"line 7: words of the sentence .* '\\xa0' and '\\xa0' share",
    ):
        sequences.encode_words([sentence], tokenizer, 32, num_workers=1)


def test_two_words_cannot_share_a_token():
    with pytest.raises(ValueError, match="'x' and 'y' share a token"):
        sequences.first_tokens(["x", "y"], [(0, 3)])


def test_several_processes_give_the_same_windows(tokenizer, monkeypatch):
    monkeypatch.setattr(sequences, "_CHUNK_SIZE", 2)
    texts = ["ab cd", "ef", "gh ij kl", "mn", "op"]
    alone = encode(texts, tokenizer, 6)
    both = sequences.encode_words(
        sentences_of(*texts), tokenizer, 6, num_workers=2
    )
    assert [
        [part.tolist() for part in window[:2]] + [window.words]
        for window in alone.windows
    ] == [
        [part.tolist() for part in window[:2]] + [window.words]
        for window in both.windows
    ]
