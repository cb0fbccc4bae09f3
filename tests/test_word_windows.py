# SPDX-License-Identifier: Apache-2.0
"""Which token stands for a word, and which words share a window."""

import json
import random

import numpy as np
import pytest

import tokenization
from common import errors
from helpers import invented, tiny
from helpers.paths import REPOSITORY
from tasks import conll, word_windows


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("model"))
    return tokenization.RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )


@pytest.fixture(scope="module")
def merging():
    """A tokenizer whose words have one token or several."""
    folder = REPOSITORY / "demo"
    return tokenization.RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )


def sentences_of(*texts):
    return [
        conll.Sentence("file", 7, tuple(text.split(" ")), ()) for text in texts
    ]


def encode(texts, tokenizer, length):
    return word_windows.encode(
        sentences_of(*texts), tokenizer, length, num_workers=1
    )


def test_the_label_sits_on_a_words_first_token():
    # "Dol kufs ." as D|ol| k|ufs| .; offsets leave out leading spaces.
    offsets = [(0, 1), (1, 3), (4, 5), (5, 8), (9, 10)]
    assert word_windows.first_tokens(
        ["Dol", "kufs", "."], offsets
    ).tolist() == [0, 2, 4]


def test_a_blank_of_its_own_belongs_to_no_word():
    offsets = [(0, 1), (1, 2), (2, 3), (3, 4)]  # "a bc" byte by byte
    assert word_windows.first_tokens(["a", "bc"], offsets).tolist() == [0, 2]


def test_a_letter_of_several_tokens_begins_with_the_first():
    offsets = [(0, 1), (0, 1), (1, 2), (2, 3), (2, 3)]  # "é é"
    assert word_windows.first_tokens(["é", "é"], offsets).tolist() == [0, 3]


def test_windows_end_between_words():
    first, total = np.array([0, 2, 3, 7]), 9  # 2, 1, 4 and 2 tokens
    assert list(word_windows.spans(first, total, 3)) == [(0, 2), (2, 3), (3, 4)]
    assert list(word_windows.spans(first, total, 7)) == [(0, 3), (3, 4)]
    assert list(word_windows.spans(first, total, 9)) == [(0, 4)]


def test_a_long_sentence_becomes_windows(bytewise):
    encoded = encode(["ab cd ef", "gh"], bytewise, 8)
    # A blank's token goes with the word before it.
    assert [
        bytewise.decode(window.ids.tolist()) for window in encoded.windows
    ] == ["<s>ab cd </s>", "<s>ef</s>", "<s>gh</s>"]
    assert [window.places.tolist() for window in encoded.windows] == [
        [1, 4],
        [1],
        [1],
    ]
    assert [window.first_word for window in encoded.windows] == [0, 2, 3]
    assert (encoded.split_sentences, encoded.cut_words) == (1, 0)


def test_the_end_of_a_word_longer_than_a_window_is_left_out(bytewise):
    encoded = encode(["a bcdefghi j"], bytewise, 6)
    assert [len(window.ids) for window in encoded.windows] == [4, 6, 3]
    assert [window.first_word for window in encoded.windows] == [0, 1, 2]
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
        window.first_word + number
        for window in encoded.windows
        for number in range(len(window.places))
    ]
    assert numbers == list(range(len(words)))
    if length == 512:
        assert len(encoded.windows) == 40
    for window in encoded.windows:
        assert len(window.ids) <= length
        ends = np.append(window.places[1:], len(window.ids) - 1)
        for number, (begin, end) in enumerate(zip(window.places, ends)):
            word = words[window.first_word + number]
            text = merging.decode(window.ids[begin:end].tolist()).strip()
            assert word.startswith(text.rstrip("\ufffd"))
            assert text == word or encoded.cut_words
    assert any(len(merging.encode(" " + word)) > 2 for word in words)


def test_words_of_white_space_are_refused(tmp_path):
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
    sentence = conll.Sentence("file", 7, ("a", "\u00a0", "\u00a0", "b"), ())
    with pytest.raises(
        errors.UserError,
        match=r"file, line 7: a sentence "
        r"begins whose words '\\xa0' and '\\xa0' share",
    ):
        word_windows.encode([sentence], tokenizer, 32, num_workers=1)


def test_two_words_cannot_share_a_token():
    with pytest.raises(ValueError, match="'x' and 'y' share a token"):
        word_windows.first_tokens(["x", "y"], [(0, 3)])


def test_processes_give_the_same_windows(bytewise, monkeypatch):
    monkeypatch.setattr(word_windows, "_CHUNK_SIZE", 2)
    texts = ["ab cd", "ef", "gh ij kl", "mn", "op"]
    alone = encode(texts, bytewise, 6)
    both = word_windows.encode(sentences_of(*texts), bytewise, 6, num_workers=2)
    assert [
        [part.tolist() for part in window[:2]] + [window.first_word]
        for window in alone.windows
    ] == [
        [part.tolist() for part in window[:2]] + [window.first_word]
        for window in both.windows
    ]
