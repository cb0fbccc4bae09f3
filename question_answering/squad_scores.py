# SPDX-License-Identifier: Apache-2.0
"""SQuAD's files and scores: exact match, F1, thresholds for "no answer".

Shared by squad.py and the evaluation scripts; standard library only, so that
those run under any Python 3. The numbers are those of SQuAD's official scripts
to the last digit; sums therefore run in the same order.

Source: Rajpurkar et al. 2016, section 6 (exact match, F1); Rajpurkar et al.
2018, section 5 (unanswerable questions).
"""

import argparse
import collections
import math
import os
import re
import signal
import string
import sys

from common import errors, files

# SQuAD's training set has 42 MB; parsed JSON takes about ten times its size.
MAX_JSON_BYTES = 1 << 30

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = {ord(c): None for c in string.punctuation}


class ScriptParser(argparse.ArgumentParser):
    """Arguments of an evaluation script; a mistake is one line and code 1."""

    def error(self, message):
        self.fail(message + "; --help shows the usage")

    def fail(self, message):
        self.exit(1, f"{self.prog}: error: {' '.join(str(message).split())}\n")

    def run(self, main):
        """Calls `main(arguments)`; a user's mistake ends the process."""
        arguments = self.parse_args()
        try:
            main(arguments)
            sys.stdout.flush()
        except errors.UserError as error:
            self.fail(error)
        except KeyboardInterrupt:
            self.exit(128 + signal.SIGINT, f"{self.prog}: interrupted\n")
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit(128 + signal.SIGPIPE)
        except OSError as error:
            self.fail(f"cannot use {error.filename!r}: {error.strerror}")


def read_json(path, kind, max_bytes=MAX_JSON_BYTES):
    """The object in a JSON file.

    Args:
      path: a file, or anything that can be read once, such as a pipe.
      kind: what the file should be, for messages: "predictions".
      max_bytes: a larger file is refused before it is parsed.

    Raises:
      errors.UserError: the file is too large, not UTF-8, not JSON, too deeply
        nested, or its outermost value is not an object.
      OSError: the file cannot be read.
    """
    with open(str(path), "rb") as stream:
        data = _read_up_to(stream, max_bytes + 1)
    if len(data) > max_bytes:
        raise errors.UserError(
            f"{path} is larger than {max_bytes} bytes; split it into several "
            "files"
        )
    try:
        value = files.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8 at byte {error.start}; {kind} must be JSON "
            "in UTF-8"
        ) from error
    except ValueError as error:
        raise errors.UserError(
            f"{path} is not JSON: {error}; is it the right file, and complete?"
        ) from error
    if not isinstance(value, dict):
        raise errors.UserError(
            f"{path}: the outermost JSON value is a {type(value).__name__}, "
            f"but {kind} must be an object; is it the right file?"
        )
    return value


def check_output(flag, path, inputs):
    """Refuses an output that would replace one of the inputs.

    Args:
      flag: the output's, for the message.
      path: of the output.
      inputs: paths, None for one that is not given.
    """
    for other in inputs:
        if (
            other
            and os.path.exists(other)
            and os.path.exists(path)
            and os.path.samefile(path, other)
        ):
            raise errors.UserError(
                f"{flag}={path} is an input; it would be replaced, give "
                "another name"
            )


def _read_up_to(stream, size):
    """At most so many bytes; read(size) would take the memory of them all."""
    data = bytearray()
    while len(data) < size:
        block = stream.read(min(size - len(data), 1 << 20))
        if not block:
            break
        data += block
    return bytes(data)


def iterate_questions(path, document):
    """Yields the questions of a SQuAD file with their paragraphs.

    Args:
      path: the file's name, for messages.
      document: what `read_json` gave.

    Yields:
      (where, paragraph, question): a text that names the paragraph, its dict
      and the question's dict, whose "id" is a non-empty string.

    Raises:
      errors.UserError: a level is not of SQuAD's shape, or no question is
        there at all.
    """
    number = 0
    where = f"{path}"
    for a, article in enumerate(_list(document, "data", where)):
        where = f"{path}: article {a}"
        for p, paragraph in enumerate(_list(article, "paragraphs", where)):
            where = f"{path}: article {a}, paragraph {p}"
            for question in _list(paragraph, "qas", where):
                value(question, "id", str, where)
                if not question["id"]:
                    raise errors.UserError(
                        f"{where}: a question's 'id' is empty; each must have "
                        "its own"
                    )
                number += 1
                yield where, paragraph, question
    if not number:
        raise errors.UserError(
            f"{path} has no questions; expected data -> paragraphs -> qas as "
            "in SQuAD"
        )


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    bool: "true or false",
}


def value(mapping, key, kind, where):
    """`mapping[key]`, which must be there and of that type.

    Raises:
      errors.UserError: it is not; the text begins with `where`.
    """
    if not isinstance(mapping, dict):
        raise errors.UserError(
            f"{where}: expected an object with {key!r}, found a "
            f"{type(mapping).__name__}; the file is not in SQuAD's format"
        )
    if key not in mapping:
        raise errors.UserError(
            f"{where}: {key!r} is missing; the file is not in SQuAD's format"
        )
    found = mapping[key]
    # True is an int for isinstance, but not a position in a text.
    if not isinstance(found, kind) or kind is int and isinstance(found, bool):
        raise errors.UserError(
            f"{where}: {key!r} must be {_NAMES[kind]}, but it is {found!r:.40}"
        )
    return found


def _list(mapping, key, where):
    return value(mapping, key, list, where)


def gold_answers(path, document):
    """The accepted answers of each question, in the file's order.

    Returns:
      A list of (question id, list of answer texts); an unanswerable question
      has an empty list. A repeated id is repeated.

    Raises:
      errors.UserError: the file is not of SQuAD's shape.
    """
    gold = []
    for where, _, question in iterate_questions(path, document):
        where = f"{path}: question {question['id']!r}"
        gold.append(
            (
                question["id"],
                [
                    value(answer, "text", str, where)
                    for answer in _list(question, "answers", where)
                ],
            )
        )
    return gold


def read_predictions(path):
    """Predicted texts by question id.

    Raises:
      errors.UserError: the file is not an object of strings.
    """
    predictions = read_json(path, "predictions")
    for question_id in predictions:
        value(predictions, question_id, str, f"{path}")
    return predictions


def read_null_odds(path):
    """Probability, or log odds, of "no answer" by question id.

    Raises:
      errors.UserError: the file is not an object of numbers.
    """
    odds = read_json(path, "no-answer probabilities")
    for question_id, number in odds.items():
        if (
            not isinstance(number, (int, float))
            or isinstance(number, bool)
            or math.isnan(number)
        ):
            raise errors.UserError(
                f"{path}: question {question_id!r} has {number!r:.40} where a "
                "number was expected"
            )
    return odds


def normalize_answer(text):
    """An answer without case, punctuation, articles and extra white space.

    Only ASCII punctuation goes, as in the official scripts:
    "The  Cat's – hat." gives "cats – hat".
    """
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction, gold):
    """Whether two answers are the same after normalization."""
    return normalize_answer(prediction) == normalize_answer(gold)


def f1(prediction, gold, *, empty_score=1):
    """Harmonic mean of precision and recall of an answer's words.

    Args:
      prediction: the predicted text.
      gold: an accepted text.
      empty_score: the score when nothing is left of either text: 1 in SQuAD
        v2.0, where "" is an answer, and 0 in v1.1.
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


def mean_scores_v1(gold, predictions):
    """Mean exact match and F1 by v1.1's rules, in percent.

    Args:
      gold: list of (question id, list of accepted texts).
      predictions: {question id: text}; a question without one scores 0.

    Returns:
      {"exact_match": number, "f1": number}.

    Raises:
      errors.UserError: a question has no accepted text.
    """
    exact = total_f1 = 0
    for question_id, texts in gold:
        if not texts:
            raise errors.UserError(
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


def scores(gold, predictions):
    """Exact match and F1 of each predicted question by v2.0's rules.

    Args:
      gold: {id: list of accepted texts}; none, or only texts of which
        normalization leaves nothing, means that "" is the right answer.
      predictions: {id: text}; questions without one get no score here.

    Returns:
      Two dicts {id: score}, in the order of `gold`: 0 or 1, and 0 to 1.
    """
    exact_scores, f1_scores = {}, {}
    for question_id, texts in gold.items():
        if question_id not in predictions:
            continue
        texts = [text for text in texts if normalize_answer(text)] or [""]
        prediction = predictions[question_id]
        exact_scores[question_id] = max(
            int(exact_match(prediction, text)) for text in texts
        )
        f1_scores[question_id] = max(f1(prediction, text) for text in texts)
    return exact_scores, f1_scores


def by_null_odds(null_odds, known):
    """Ids in `known` by rising null odds, ties in the order of `null_odds`."""
    return sorted((k for k in null_odds if k in known), key=null_odds.get)


def best_threshold(gold, predictions, question_scores, null_odds):
    """The null threshold with the highest mean score.

    A question is answered with "" when its null odds exceed the threshold.

    Args:
      gold: {id: list of accepted texts}.
      predictions: {id: text}. Choose among non-empty answers: where a text is
        already "" no threshold brings an answer back.
      question_scores: {id: score of that text}, one of `scores`' results.
      null_odds: {id: number}.

    Returns:
      (best score in percent, threshold). The threshold is 0.0 when answering
      nothing at all is best, as in the official script.
    """
    score = best = sum(1 for k in gold if not gold[k] and k in predictions)
    threshold = 0.0
    for question_id in by_null_odds(null_odds, question_scores):
        if gold[question_id]:
            score += question_scores[question_id]
        elif predictions[question_id]:
            score -= 1
        if score > best:
            best, threshold = score, null_odds[question_id]
    return 100.0 * best / len(gold), threshold


def find_best_thresholds(gold, predictions, null_odds):
    """The best null thresholds for exact match and for F1.

    Args:
      gold: {id: list of accepted texts}, empty when there is no answer.
      predictions: {id: text}; see `best_threshold`.
      null_odds: {id: number}.

    Returns:
      A dict with best_exact, best_exact_thresh, best_f1, best_f1_thresh;
      scores in percent.
    """
    result = {}
    for name, values in zip(("exact", "f1"), scores(gold, predictions)):
        best, threshold = best_threshold(gold, predictions, values, null_odds)
        result["best_" + name] = best
        result[f"best_{name}_thresh"] = threshold
    return result


def suggested_threshold(gold, predictions, null_odds):
    """A null threshold that does not follow noise.

    The best threshold of some questions fits what is particular about them,
    too: picked on one half of a set it can cost points on the other. It is
    suggested only where its gain in F1 over the neutral threshold 0 exceeds
    two standard errors of that gain.

    Args: as `find_best_thresholds`.

    Returns:
      `best_f1_thresh`, or 0.0.
    """
    _, f1_scores = scores(gold, predictions)
    _, threshold = best_threshold(gold, predictions, f1_scores, null_odds)
    gains = []
    for question_id in by_null_odds(null_odds, f1_scores):
        unanswered = float(not gold[question_id])
        odds = null_odds[question_id]
        gains.append(
            (float(odds <= threshold) - float(odds <= 0.0))
            * (f1_scores[question_id] - unanswered)
        )
    total = sum(gains)
    variance = sum(gain * gain for gain in gains) - total * total / len(gains)
    return threshold if total > 2.0 * math.sqrt(variance) else 0.0
