# SPDX-License-Identifier: Apache-2.0
"""RACE: articles, questions with options, and their sequences.

A directory of RACE holds train, dev and test, each of them middle and high,
each of those one JSON object a file (.txt), with article, id, and lists of
questions, options and answers ("A" to "D").

A question and its options become one sequence an option:

    <s> question option </s></s> article </s>

An option fills a blank (`_`) in its question, where there is one.

Source: Lai et al. 2017 (arXiv:1704.04683); fairseq, preprocess_RACE.py and
sentence_ranking.py (sequences).
"""

import os
import typing

import numpy as np
import tqdm

from common import errors, files, worker_pool
from tasks import sequences

LEVELS = ("middle", "high")
CHOICES = 4
_LETTERS = "ABCD"
# Articles in one piece of work for a process.
_CHUNK_SIZE = 16
_KEYS = (("article", str), ("questions", list), ("options", list))


class Question(typing.NamedTuple):
    """A question."""

    question_id: str  # `high19.txt-2`: the article's id and a number from 0
    level: str  # middle, high
    text: str
    options: typing.Tuple[str, ...]  # four
    answer: typing.Optional[int]  # 0 to 3, None where it is not known


class Article(typing.NamedTuple):
    """An article and its questions."""

    text: str
    questions: typing.Tuple[Question, ...]


def read(directory, needs_answers):
    """The articles below a directory such as RACE/train, as a list.

    The level of a question is its directory's name, `middle` or `high`; a
    directory that holds files itself is taken for its own level.

    Args:
      directory: holds middle and high, or files.
      needs_answers: whether a file without answers is an error.

    Raises:
      errors.UserError: there is no file, or one is not of RACE's shape.
      OSError: one cannot be read.
    """
    if not os.path.isdir(directory):
        raise errors.UserError(
            f"there is no directory {directory!r}; expected one with "
            f"{' and '.join(LEVELS)} in it, such as RACE/train"
        )
    levels = [
        level
        for level in LEVELS
        if os.path.isdir(os.path.join(directory, level))
    ]
    folders = [(level, os.path.join(directory, level)) for level in levels]
    if not folders:
        name = os.path.basename(os.path.abspath(directory))
        folders = [(name, directory)]
    articles = [
        _read_file(os.path.join(folder, name), level, needs_answers)
        for level, folder in folders
        for name in _files(folder)
    ]
    if not any(article.questions for article in articles):
        raise errors.UserError(
            f"{directory} holds no .txt file with a question; expected "
            f"{' and '.join(LEVELS)} with one JSON object a file, as RACE has "
            "them"
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
    try:
        with open(path, encoding="utf-8-sig") as stream:
            values = files.loads(stream.read())
    except ValueError as error:
        raise errors.UserError(f"{path} is not JSON: {error}") from error
    for key, kind in _KEYS:
        if not isinstance(values, dict) or not isinstance(
            values.get(key), kind
        ):
            raise errors.UserError(
                f"{path} has no {key}; expected a file of RACE, an object with "
                "article, questions, options and answers"
            )
    questions, options = values["questions"], values["options"]
    answers = values.get("answers")
    if answers is None and not needs_answers:
        answers = [None] * len(questions)
    if not isinstance(answers, list) or not (
        len(questions) == len(options) == len(answers)
    ):
        raise errors.UserError(
            f"{path} has {len(questions)} questions, {len(options)} lists of "
            "options and "
            f"{(len(answers) if isinstance(answers, list) else 'no')} answers; "
            "expected as many of each"
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
        or ([type(option) for option in options] != [str] * CHOICES)
    ):
        raise errors.UserError(
            f"{path}, question {question_id}: expected a text and {CHOICES} "
            "options, all of them texts"
        )
    if answer is not None and (
        not isinstance(answer, str)
        or len(answer) != 1
        or answer not in _LETTERS
    ):
        raise errors.UserError(
            f"{path}, question {question_id} has the answer {answer!r}; "
            "expected one of A, B, C, D"
        )
    return Question(
        question_id,
        level,
        text,
        tuple(options),
        None if answer is None else _LETTERS.index(answer),
    )


def letter(answer):
    """0 -> "A"."""
    return _LETTERS[answer]


def filled(question, option):
    """The question with an option in its blank, or after it.

    >>> filled("The dog _ .", "barks")
    'The dog barks .'
    """
    if "_" in question:
        return question.replace("_", option)
    return question + " " + option


class Sequences:
    """The sequences of all questions, joined as they are asked for.

    The end of an article is cut; only where a question and its option alone
    are too long, so is their beginning, for the option stands at their end.

    Attributes:
      lengths: int [n], tokens of each question's longest sequence.
      truncated_articles: sequences that hold a part of their article.
      truncated_questions: sequences that hold a part of their question.
    """

    def __init__(self, articles, tokenizer, max_seq_length, *, num_workers=0):
        """
        Args:
          articles: list of Article.
          tokenizer: tokenization.RobertaTokenizer.
          max_seq_length: tokens of a sequence.
          num_workers: processes that tokenize; 0 takes all cores.
        """
        self._tokenizer = tokenizer
        self._room = max_seq_length - sequences.SPECIAL_TOKENS[True]
        self._articles, self._questions = [], []
        for article, questions in _encode(articles, tokenizer, num_workers):
            self._questions += [
                (len(self._articles), options) for options in questions
            ]
            self._articles.append(article)
        options = np.array(
            [
                [len(option) for option in options]
                for _, options in self._questions
            ]
        )
        totals = options + np.array(
            [[len(self._articles[article])] for article, _ in self._questions]
        )
        self.lengths = (
            np.minimum(totals, self._room).max(axis=1)
            + sequences.SPECIAL_TOKENS[True]
        )
        self.truncated_articles = int((totals > self._room).sum())
        self.truncated_questions = int((options > self._room).sum())

    def __len__(self):
        return len(self._questions)

    def __getitem__(self, index):
        """A question's sequences: CHOICES times int32 [T]."""
        article, options = self._questions[index]
        options = [option[-self._room :] for option in options]
        return [
            sequences.joined(
                option,
                self._articles[article][: self._room - len(option)],
                self._tokenizer,
            )
            for option in options
        ]


def _encode(articles, tokenizer, num_workers):
    """Yields each article's ids and those of its questions' options."""
    chunks = [
        articles[start : start + _CHUNK_SIZE]
        for start in range(0, len(articles), _CHUNK_SIZE)
    ]
    workers = min(num_workers or worker_pool.available_cores(), len(chunks))
    results = worker_pool.map_ordered(
        iter(chunks), _encoder, (tokenizer,), max(workers, 1)
    )
    for chunk in tqdm.tqdm(
        results,
        total=len(chunks),
        desc="tokenize",
        unit=f"x{_CHUNK_SIZE}",
        mininterval=2.0,
        disable=len(chunks) < 10,
    ):
        yield from chunk


def _encoder(tokenizer):
    def encode(text):
        return np.array(tokenizer.encode(text), np.int32)

    return lambda articles: [
        (
            encode(article.text),
            [
                [
                    encode(filled(question.text, option))
                    for option in question.options
                ]
                for question in article.questions
            ],
        )
        for article in articles
    ]
