# SPDX-License-Identifier: Apache-2.0
"""RACE: articles, questions with options, and their sequences.

A directory of RACE contains train, dev and test, each of them middle and high,
each of those one JSON object per file (.txt), with article, id, and lists of
questions, options and answers ("A" to "D").

A question becomes one sequence per option:

    <s> question option </s></s> article </s>

An option replaces the blank (`_`) in its question, if there is one.

Source: Lai et al. 2017 (arXiv:1704.04683); fairseq, preprocess_RACE.py and
sentence_ranking.py (sequences).
"""

import os
import typing

import numpy as np

import tokenization
from common import errors, files
from tasks import sequences

LEVELS = ("middle", "high")
CHOICES = 4
_LETTERS = "ABCD"
_CHUNK_SIZE = 16  # articles that a process encodes at a time
_KEYS = (("article", str), ("questions", list), ("options", list))


class Question(typing.NamedTuple):
    """A question."""

    question_id: str  # `high19.txt-2`: the article's id and a number from 0
    level: str  # middle, high
    text: str
    options: typing.Tuple[str, ...]  # four
    answer: typing.Optional[int]  # 0 to 3, None if unknown


class Article(typing.NamedTuple):
    """An article and its questions."""

    text: str
    questions: typing.Tuple[Question, ...]


def read(directory: str, needs_answers: bool) -> typing.List[Article]:
    """The articles below a directory such as RACE/train.

    The level of a question is its directory's name, `middle` or `high`; a
    directory without these is a level itself.

    Args:
      directory: contains middle and high, or files.
      needs_answers: whether a file without answers is an error.

    Raises:
      errors.UserError: no file is found, or one is not in RACE's format.
      OSError: one cannot be read.
    """
    if not os.path.isdir(directory):
        raise errors.UserError(
            f"{directory!r}: not a directory; expected one with "
            f"{' and '.join(LEVELS)}, such as RACE/train"
        )
    folders = {level: os.path.join(directory, level) for level in LEVELS}
    folders = {
        level: folder
        for level, folder in folders.items()
        if os.path.isdir(folder)
    } or {os.path.basename(os.path.abspath(directory)): directory}
    articles = [
        _read_file(os.path.join(folder, name), level, needs_answers)
        for level, folder in folders.items()
        for name in _files(folder)
    ]
    if not any(article.questions for article in articles):
        raise errors.UserError(
            f"{directory}: no .txt file with a question; expected "
            f"{' and '.join(LEVELS)} with one JSON object per file, as in RACE"
        )
    return articles


def _files(folder):
    """Names of the articles, `2.txt` before `10.txt`."""
    return sorted(
        (
            name
            for name in os.listdir(folder)
            if name.endswith(".txt") and not name.startswith(".")
        ),
        key=lambda name: (len(name), name),
    )


def _read_file(path, level, needs_answers):
    values = files.read_json(path, "a file of RACE")
    for key, kind in _KEYS:
        if not isinstance(values.get(key), kind):
            raise errors.UserError(
                f"{path}: no {key}; expected a file of RACE, an object with "
                "article, questions, options and answers"
            )
    questions, options = values["questions"], values["options"]
    answers = values.get("answers")
    if answers is None and not needs_answers:
        answers = [None] * len(questions)
    if not isinstance(answers, list):
        answers = []
    if not len(questions) == len(options) == len(answers):
        raise errors.UserError(
            f"{path}: {len(questions)} questions, {len(options)} lists of "
            f"options and {len(answers) or 'no'} answers; expected the same "
            "number of each"
        )
    name = str(values.get("id", os.path.basename(path)))
    return Article(
        values["article"].replace("\n", " "),
        tuple(
            _question(path, f"{name}-{number}", level, *parts)
            for number, parts in enumerate(zip(questions, options, answers))
        ),
    )


def _question(path, question_id, level, text, options, answer):
    if (
        not isinstance(text, str)
        or not isinstance(options, list)
        or [type(option) for option in options] != [str] * CHOICES
    ):
        raise errors.UserError(
            f"{path}, question {question_id}: expected a text and {CHOICES} "
            "options, all of them texts"
        )
    if answer is not None and answer not in list(_LETTERS):
        raise errors.UserError(
            f"{path}, question {question_id}: answer {answer!r}; expected A, "
            "B, C or D"
        )
    number = None if answer is None else _LETTERS.index(answer)
    return Question(question_id, level, text, tuple(options), number)


def letter(answer: int) -> str:
    """0 -> "A"."""
    return _LETTERS[answer]


def filled(question: str, option: str) -> str:
    """The question with an option in its blank, or after it.

    >>> filled("The dog _ .", "barks")
    'The dog barks .'
    """
    if "_" in question:
        return question.replace("_", option)
    return question + " " + option


class Sequences:
    """The sequences of all questions, joined on demand.

    The end of an article is truncated. If a question and its option are too
    long by themselves, their beginning is, because the option is at their end.

    Attributes:
      lengths: int [n], tokens of each question's longest sequence.
      truncated_articles: sequences with a part of their article.
      truncated_questions: sequences with a part of their question.
    """

    def __init__(
        self,
        articles: typing.Sequence[Article],
        tokenizer: tokenization.RobertaTokenizer,
        max_seq_length: int,
        *,
        num_workers: int = 0,
    ):
        """
        Args:
          articles: texts and questions.
          tokenizer: gives the tokens.
          max_seq_length: tokens of a sequence.
          num_workers: processes that tokenize; 0 takes all cores.
        """
        self._tokenizer = tokenizer
        self._room = max_seq_length - sequences.SPECIAL_TOKENS[True]
        encoded = sequences.encode_each(
            articles,
            _encoder,
            (tokenizer,),
            chunk_size=_CHUNK_SIZE,
            num_workers=num_workers,
        )
        self._questions = [
            (article, options)
            for article, questions in encoded
            for options in questions
        ]
        options = np.array(
            [[len(o) for o in options] for _, options in self._questions]
        )
        totals = options + np.array(
            [[len(article)] for article, _ in self._questions]
        )
        self.lengths = (
            np.minimum(totals, self._room).max(axis=1)
            + sequences.SPECIAL_TOKENS[True]
        )
        self.truncated_articles = int((totals > self._room).sum())
        self.truncated_questions = int((options > self._room).sum())

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> typing.List[np.ndarray]:
        """A question's sequences: CHOICES times int32 [T]."""
        article, options = self._questions[index]
        options = [option[-self._room :] for option in options]
        return [
            sequences.joined(
                option, article[: self._room - len(option)], self._tokenizer
            )
            for option in options
        ]


def _encoder(tokenizer):
    def encode(text):
        return np.array(tokenizer.encode(text), np.int32)

    def encode_article(article):
        return encode(article.text), [
            [
                encode(filled(question.text, option))
                for option in question.options
            ]
            for question in article.questions
        ]

    return encode_article
