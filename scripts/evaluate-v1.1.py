#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores SQuAD v1.1 predictions: exact match and F1 in percent.

    python evaluate-v1.1.py dev-v1.1.json predictions.json

prints {"exact_match": ..., "f1": ...}. A question without a prediction scores
0 and is named on standard error. The numbers are those of SQuAD's official
script to the last digit.

The file needs nothing but Python 3.7 or newer and can be copied anywhere.

Source: Rajpurkar et al. 2016, section 6.
"""

import argparse
import collections
import json
import os
import re
import signal
import string
import sys
import typing

EXPECTED_VERSION = "1.1"

# SQuAD's training set has 42 MB; parsed JSON takes about ten times its size.
MAX_JSON_BYTES = 1 << 30
MAX_DEPTH = 32
MAX_DIGITS = 20


class InputError(Exception):
    """A mistake in an argument or an input file."""


class Parser(argparse.ArgumentParser):
    """Arguments; a mistake is one line on standard error and exit code 1."""

    def error(self, message: str) -> None:
        self.fail(f"{message}; --help shows the usage")

    def fail(self, message: typing.Any) -> None:
        """Ends the process; a long message loses its middle."""
        text = " ".join(str(message).split())
        if len(text) > 1500:
            text = f"{text[:750]} [...] {text[-750:]}"
        self.exit(1, f"{self.prog}: error: {text}\n")

    def run(self, main: typing.Callable) -> None:
        """Calls `main(arguments)`."""
        try:
            try:
                main(self.parse_args())
            finally:
                if sys.stdout:  # None where it is closed
                    sys.stdout.flush()  # of --help too
        except InputError as error:
            self.fail(error)
        except KeyboardInterrupt:
            self.exit(128 + signal.SIGINT, f"{self.prog}: interrupted\n")
        except BrokenPipeError:  # the reader, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit(128 + signal.SIGPIPE)
        except OSError as error:
            self.fail(f"cannot use {error.filename!r}: {error.strerror}")


# --- Files ------------------------------------------------------------------


def read_json(
    path: str, kind: str, limit: int = MAX_JSON_BYTES, kinds: tuple = (dict,)
) -> typing.Any:
    """The JSON object of a file or a pipe, or a value of another of `kinds`.

    Size, depth and digits are bounded: Python's parser overflows its stack on
    deep nesting and takes quadratic time for an integer's digits.
    """
    data = bytearray()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            data += block
            if len(data) > limit:
                raise InputError(
                    f"{path}: larger than {limit} bytes; check that it is "
                    f"{kind}, or split it into several files"
                )
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_int=bounded_int)
        check_depth(value)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {error.start}; expected {kind} in UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        problem = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else error
        )
        raise InputError(
            f"{path}: not JSON: {problem}; check that it is {kind} and complete"
        ) from None
    if not isinstance(value, kinds):
        raise InputError(
            f"{path}: a JSON {type(value).__name__}, expected an object; "
            f"check that it is {kind}"
        )
    return value


def bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def check_depth(value: typing.Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        lists = [list(v.values()) for v in level if isinstance(v, dict)]
        lists += [v for v in level if isinstance(v, list)]
        level = [child for children in lists for child in children]
    if level:
        raise ValueError(
            f"it is nested too deeply: more than {MAX_DEPTH} levels"
        )


def field(mapping: typing.Any, key: str, kind: type, where: str) -> typing.Any:
    """`mapping[key]`, which must be a str or a list."""
    if not isinstance(mapping, dict):
        raise InputError(
            f"{where}: expected an object with {key!r}, got a "
            f"{type(mapping).__name__}; check that the file is in SQuAD's "
            "format"
        )
    if key not in mapping:
        raise InputError(
            f"{where}: {key!r} is missing; check that the file is in SQuAD's "
            "format"
        )
    if not isinstance(mapping[key], kind):
        expected = "a string" if kind is str else "a list"
        raise InputError(
            f"{where}: {key!r} must be {expected}, but it is "
            f"{mapping[key]!r:.40}"
        )
    return mapping[key]


def read_dataset(path: str) -> dict:
    """A SQuAD file; a list of questions becomes its "data"."""
    document = read_json(path, "a SQuAD file", kinds=(dict, list))
    return document if isinstance(document, dict) else {"data": document}


def entries(mapping: typing.Any, key: str, where: str) -> list:
    """The list `mapping[key]`, in which null counts as nothing."""
    if isinstance(mapping, dict) and key in mapping and mapping[key] is None:
        return []
    return [x for x in field(mapping, key, list, where) if x is not None]


def read_gold(path: str, document: dict) -> list:
    """[(question id, [accepted text])] in the order of a SQuAD file."""
    gold = []
    for a, article in enumerate(entries(document, "data", path)):
        where = f"{path}: article {a}"
        # `datasets` writes questions side by side, each with its context.
        if isinstance(article, dict) and "question" in article:
            gold.append(read_question(path, where, article))
            continue
        for p, paragraph in enumerate(entries(article, "paragraphs", where)):
            place = f"{where}, paragraph {p}"
            for question in entries(paragraph, "qas", place):
                gold.append(read_question(path, place, question))
    if not gold:
        raise InputError(
            f"{path}: no questions; expected data -> paragraphs -> qas as in "
            "SQuAD"
        )
    return gold


def read_question(path: str, where: str, question: dict) -> tuple:
    question_id = question.get("id") if isinstance(question, dict) else None
    if type(question_id) in (int, float):
        is_whole = type(question_id) is float and question_id.is_integer()
        question_id = f"{question_id:.0f}" if is_whole else str(question_id)
    elif not field(question, "id", str, where):
        raise InputError(
            f"{where}: a question's 'id' is empty; give each question its own"
        )
    where = f"{path}: question {question_id!r}"
    answers = question.get("answers")
    if isinstance(answers, dict) and not isinstance(answers.get("text"), str):
        # As `datasets` writes them: {"text": [...], "answer_start": [...]}.
        answers = [{"text": text} for text in entries(answers, "text", where)]
    elif isinstance(answers, dict):
        answers = [answers]
    else:
        answers = entries(question, "answers", where)
    return question_id, [field(a, "text", str, where) for a in answers]


def read_predictions(path: str) -> dict:
    """{question id: text}."""
    predictions = read_json(path, "predictions")
    for question_id in predictions:
        field(predictions, question_id, str, path)
    return predictions


# --- Scores; the same as in question_answering/squad_scores.py --------------


ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = {ord(c): None for c in string.punctuation}


def normalize_answer(text: str) -> str:
    """An answer without case, punctuation, articles and extra white space.

    Only ASCII punctuation is removed, as in SQuAD's official scripts:
    "The  Cat's – hat." gives "cats – hat".
    """
    text = text.lower().translate(WITHOUT_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, gold: str) -> bool:
    """Whether two answers are the same after normalization."""
    return normalize_answer(prediction) == normalize_answer(gold)


def f1(prediction: str, gold: str, *, empty_score: float = 1) -> float:
    """Harmonic mean of precision and recall of an answer's words.

    Args:
      prediction: the predicted text.
      gold: an accepted text.
      empty_score: the score when normalization leaves nothing of both texts:
        1 in SQuAD v2.0, where "" is an answer, and 0 in v1.1.
    """
    predicted_words = normalize_answer(prediction).split()
    gold_words = normalize_answer(gold).split()
    if not predicted_words and not gold_words:
        return empty_score
    common = collections.Counter(predicted_words) & collections.Counter(
        gold_words
    )
    shared = sum(common.values())
    if shared == 0:
        return 0
    precision = shared / len(predicted_words)
    recall = shared / len(gold_words)
    return (2 * precision * recall) / (precision + recall)


def mean_scores_v1(gold: list, predictions: dict) -> dict:
    """Mean exact match and F1 by v1.1's rules, in percent.

    Args:
      gold: list of (question id, list of accepted texts).
      predictions: {id: text}; a question without one scores 0.
    """
    exact = total_f1 = 0
    for question_id, texts in gold:
        if not texts:
            raise InputError(
                f"question {question_id!r} has no answer, as in SQuAD v2.0; "
                "score such data with evaluate-v2.0.py"
            )
        if question_id in predictions:
            prediction = predictions[question_id]
            exact += max(exact_match(prediction, text) for text in texts)
            total_f1 += max(
                f1(prediction, text, empty_score=0) for text in texts
            )
    return {
        "exact_match": 100.0 * exact / len(gold),
        "f1": 100.0 * total_f1 / len(gold),
    }


def main(arguments: argparse.Namespace) -> None:
    document = read_dataset(arguments.dataset_file)
    version = document.get("version", EXPECTED_VERSION)
    if version != EXPECTED_VERSION:
        print(
            f"Evaluation expects v-{EXPECTED_VERSION}, but got dataset with "
            f"v-{version}",
            file=sys.stderr,
        )
    gold = read_gold(arguments.dataset_file, document)
    predictions = read_predictions(arguments.prediction_file)
    scores = mean_scores_v1(gold, predictions)
    for question_id, _ in gold:
        if question_id not in predictions:
            print(
                f"Unanswered question {question_id} will receive score 0.",
                file=sys.stderr,
            )
    print(json.dumps(scores))


if __name__ == "__main__":
    parser = Parser(description=f"Evaluation for SQuAD {EXPECTED_VERSION}")
    parser.add_argument("dataset_file", help="SQuAD file with the answers")
    parser.add_argument("prediction_file", help="JSON object, id to answer")
    parser.run(main)
