# SPDX-License-Identifier: Apache-2.0
"""RACE's files, and the sequences of its questions."""

import json

import numpy as np
import pytest

import tokenization
from common import errors
from helpers import tiny
from tasks import race

ARTICLE = {
    "article": "Dol kuf.\nMer zog.",
    "id": "middle7.txt",
    "questions": ["Wab ?", "Wab _ fen ."],
    "options": [["ab", "cd", "ef", "gh"], ["ij", "kl", "mn", "op"]],
    "answers": ["C", "A"],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tiny.write_model(tmp_path_factory.mktemp("model"))
    return tokenization.RobertaTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    )


def write(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = dict(ARTICLE, **changes)
    path.write_text(
        json.dumps(
            {key: value for key, value in values.items() if value is not None}
        )
    )


def test_articles_are_read_by_level(tmp_path):
    for place, name in (("high", "2"), ("middle", "10"), ("middle", "9")):
        write(tmp_path / place / (name + ".txt"), id=f"{place}{name}.txt")
    by_level = race.read(str(tmp_path), needs_answers=True)
    assert [article.questions[0].question_id for article in by_level] == [
        "middle9.txt-0",
        "middle10.txt-0",
        "high2.txt-0",
    ]
    first, second = by_level[0].questions
    assert by_level[0].text == "Dol kuf. Mer zog."
    assert first == (
        "middle9.txt-0",
        "middle",
        "Wab ?",
        ("ab", "cd", "ef", "gh"),
        2,
    )
    assert second.answer == 0 and by_level[2].questions[0].level == "high"
    (alone,) = race.read(str(tmp_path / "high"), needs_answers=True)
    assert alone.questions[0].level == "high"


def test_answers_are_needed_to_train_alone(tmp_path):
    write(tmp_path / "high" / "1.txt", answers=None)
    with pytest.raises(errors.UserError, match="and no answers; expected the"):
        race.read(str(tmp_path), needs_answers=True)
    (article,) = race.read(str(tmp_path), needs_answers=False)
    assert [q.answer for q in article.questions] == [None, None]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"article": None}, "1.txt: no article; expected a file of RACE"),
        ({"questions": "Wab ?"}, "1.txt: no questions"),
        ({"answers": ["A"]}, "2 questions, 2 lists of options and 1 answers"),
        ({"answers": ["A", "E"]}, "middle7.txt-1: answer 'E'; expected"),
        ({"answers": ["A", "AB"]}, "middle7.txt-1: answer 'AB'"),
        (
            {"options": [["a"] * 4, ["a"] * 3]},
            "question middle7.txt-1: expected",
        ),
        ({"options": [["a"] * 4, ["a", "b", "c", 4]]}, "all of them texts"),
    ],
)
def test_files_of_another_shape_are_rejected(tmp_path, changes, message):
    write(tmp_path / "high" / "1.txt", **changes)
    with pytest.raises(errors.UserError, match=message):
        race.read(str(tmp_path), needs_answers=True)


def test_other_directories_are_rejected(tmp_path):
    with pytest.raises(errors.UserError, match="no .txt file with a"):
        race.read(str(tmp_path), needs_answers=True)
    with pytest.raises(errors.UserError, match="not a directory"):
        race.read(str(tmp_path / "dev"), needs_answers=True)
    (tmp_path / "1.txt").write_text("{")
    with pytest.raises(errors.UserError, match="1.txt: not JSON"):
        race.read(str(tmp_path), needs_answers=True)


def texts(sequences, tokenizer):
    return [
        [
            tokenizer.decode([i for i in ids.tolist() if i != 0]).replace(
                "</s>", "|"
            )
            for ids in options
        ]
        for options in sequences
    ]


def articles(tmp_path):
    write(tmp_path / "high" / "1.txt")
    return race.read(str(tmp_path), needs_answers=True)


def test_an_option_follows_its_question_or_replaces_its_blank(
    tmp_path, tokenizer
):
    sequences = race.Sequences(articles(tmp_path), tokenizer, 64)
    assert len(sequences) == 2
    first, second = texts([sequences[0], sequences[1]], tokenizer)
    assert first[0] == "Wab ? ab||Dol kuf. Mer zog.|"
    assert first[3] == "Wab ? gh||Dol kuf. Mer zog.|"
    assert second[1] == "Wab kl fen .||Dol kuf. Mer zog.|"
    assert sequences[0][0][0] == 0  # <s>
    assert sequences.lengths.tolist() == [8 + 17 + 4, 12 + 17 + 4]
    assert [max(map(len, sequences[n])) for n in range(2)] == (
        sequences.lengths.tolist()
    )
    assert (sequences.truncated_articles, sequences.truncated_questions) == (
        0,
        0,
    )


def test_the_article_is_cut_first(tmp_path, tokenizer):
    sequences = race.Sequences(articles(tmp_path), tokenizer, 20)
    first, second = texts([sequences[0], sequences[1]], tokenizer)
    assert first[0] == "Wab ? ab||Dol kuf.|"
    assert second[1] == "Wab kl fen .||Dol |"
    assert sequences.lengths.tolist() == [20, 20]
    assert (sequences.truncated_articles, sequences.truncated_questions) == (
        8,
        0,
    )
    # The option, at the end, is what a question cannot do without.
    short = race.Sequences(articles(tmp_path), tokenizer, 12)
    assert texts([short[0], short[1]], tokenizer)[1][1] == "kl fen .|||"
    assert short.truncated_questions == 4


def test_several_processes_keep_the_order(tmp_path, tokenizer):
    for number in range(40):
        write(tmp_path / "high" / (f"{number}.txt"), article=f"Dol {number}.")
    several_articles = race.read(str(tmp_path), needs_answers=True)
    alone, several = (
        race.Sequences(several_articles, tokenizer, 64, num_workers=workers)
        for workers in (1, 2)
    )
    assert all(
        np.array_equal(a, b)
        for index in range(80)
        for a, b in zip(alone[index], several[index])
    )
