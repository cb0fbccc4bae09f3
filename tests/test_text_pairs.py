# SPDX-License-Identifier: Apache-2.0
"""Layout of texts and pairs, and which tokens go when there are too many."""

import pytest

import tokenization
from helpers import tiny
from tasks import sequences


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


def test_texts_and_pairs_stand_between_special_tokens(tokenizer):
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
