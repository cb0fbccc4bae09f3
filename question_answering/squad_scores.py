# SPDX-License-Identifier: Apache-2.0
"""SQuAD's files and scores: exact match, F1, thresholds for "no answer".

The numbers are those of SQuAD's official scripts to the last digit; sums
therefore run in the same order. scripts/evaluate-v1.1.py and evaluate-v2.0.py,
which run without this package, repeat these functions; a test compares them.

Source: Rajpurkar et al. 2016, section 6 (exact match, F1); Rajpurkar et al.
2018, section 5 (unanswerable questions).
"""

import collections
import math
import re
import string
import typing

from common import errors, files

# SQuAD's training set has 42 MB; parsed JSON takes about ten times its size.
MAX_JSON_BYTES = 1 << 30
ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = {ord(c): None for c in string.punctuation}
_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    bool: "true or false",
}
# (question id, accepted answers) in the order of a file.
Gold = typing.List[typing.Tuple[str, typing.List[str]]]


def read_json(path: str, kind: str) -> typing.Dict[str, typing.Any]:
    """The JSON object of a file or pipe; see `files.read_json`."""
    return files.read_json(str(path), kind, MAX_JSON_BYTES)


def read_dataset(path: str) -> typing.Dict[str, typing.Any]:
    """The JSON object of a SQuAD file.

    A list of questions, and a .jsonl with one per line, become its "data".
    """
    path = str(path)
    if path.lower().endswith(".jsonl"):
        return {"data": [entry for _, entry in files.read_json_lines(path)]}
    document = files.read_json(
        path, "a SQuAD file", MAX_JSON_BYTES, kinds=(dict, list)
    )
    return document if isinstance(document, dict) else {"data": document}


def iterate_questions(
    path: str, document: dict
) -> typing.Iterator[typing.Tuple[str, dict, dict]]:
    """Yields the questions of a SQuAD file with their paragraphs.

    Args:
      path: the file's name, for messages.
      document: the result of `read_dataset`.

    Yields:
      (where, paragraph, question): a text that names the paragraph, its dict
      and the question's dict, whose "id" is a non-empty string; a number
      becomes its decimal text.

    Raises:
      errors.UserError: a level is not of SQuAD's shape, or the file has no
        questions.
    """
    is_empty = True
    for where, paragraph in _paragraphs(path, document):
        for question in entries(paragraph, "qas", where):
            name = _question_id(question, where)
            is_empty = False
            yield where, paragraph, dict(question, id=name)
    if is_empty:
        raise errors.UserError(
            f"{path}: no questions; expected data -> paragraphs -> qas as in "
            "SQuAD"
        )


def _paragraphs(path, document):
    for a, article in enumerate(entries(document, "data", path)):
        where = f"{path}: article {a}"
        # `datasets` writes questions side by side, each with its context.
        if isinstance(article, dict) and "question" in article:
            yield where, dict(article, qas=[article])
            continue
        for p, paragraph in enumerate(entries(article, "paragraphs", where)):
            yield f"{where}, paragraph {p}", paragraph


def _question_id(question, where):
    name = question.get("id") if isinstance(question, dict) else None
    if type(name) in (int, float):
        is_whole = type(name) is float and name.is_integer()
        return f"{name:.0f}" if is_whole else str(name)
    if not value(question, "id", str, where):
        raise errors.UserError(
            f"{where}: a question's 'id' is empty; give each question its own"
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.UserError(
            f"{where}: question {name!r}: its 'id' has half a surrogate pair; "
            "write the complete character"
        ) from error
    return name


def entries(
    mapping: typing.Any, key: str, where: str
) -> typing.List[typing.Any]:
    """The list `mapping[key]`, in which null counts as nothing."""
    if isinstance(mapping, dict) and key in mapping and mapping[key] is None:
        return []
    return [x for x in value(mapping, key, list, where) if x is not None]


def answers_of(question: dict, where: str) -> typing.List[typing.Any]:
    """The answers of a question, as SQuAD or as `datasets` writes them.

    >>> answers_of({"answers": {"text": ["a"], "answer_start": [3]}}, "")
    [{'text': 'a', 'answer_start': 3}]

    Raises:
      errors.UserError: "answers" is missing or of another shape.
    """
    columns = question.get("answers")
    if not isinstance(columns, dict):
        return entries(question, "answers", where)
    if isinstance(columns.get("text"), str):
        return [columns]
    lists = {
        key: entries(columns, key, where)
        for key in ("text", "answer_start")
        if key in columns or key == "text"
    }
    if len(set(map(len, lists.values()))) > 1:
        raise errors.UserError(
            f"{where}: 'text' and 'answer_start' have different lengths; give "
            "each answer both"
        )
    return [dict(zip(lists, answer)) for answer in zip(*lists.values())]


def value(mapping: typing.Any, key: str, kind: type, where: str) -> typing.Any:
    """`mapping[key]`, which must exist and be of that type.

    Raises:
      errors.UserError: it is not; the text begins with `where`.
    """
    if not isinstance(mapping, dict):
        raise errors.UserError(
            f"{where}: expected an object with {key!r}, got a "
            f"{type(mapping).__name__}; check that the file is in SQuAD's "
            "format"
        )
    if key not in mapping:
        raise errors.UserError(
            f"{where}: {key!r} is missing; check that the file is in SQuAD's "
            "format"
        )
    result = mapping[key]
    # True is an int for isinstance, but not a position in a text.
    if not isinstance(result, kind) or kind is int and isinstance(result, bool):
        raise errors.UserError(
            f"{where}: {key!r} must be {_NAMES[kind]}, but it is {result!r:.40}"
        )
    return result


def gold_answers(path: str, document: dict) -> Gold:
    """The accepted answers of each question, in the file's order.

    Returns:
      A list of (question id, list of answer texts); an unanswerable question
      has an empty list. A repeated id is repeated.

    Raises:
      errors.UserError: the file is not of SQuAD's shape.
    """
    gold = []
    for _, _, question in iterate_questions(path, document):
        where = f"{path}: question {question['id']!r}"
        texts = [
            value(answer, "text", str, where)
            for answer in answers_of(question, where)
        ]
        gold.append((question["id"], texts))
    return gold


def read_predictions(path: str) -> typing.Dict[str, str]:
    """Predicted texts by question id.

    Raises:
      errors.UserError: the file is not an object of strings.
    """
    predictions = read_json(path, "predictions")
    for question_id in predictions:
        value(predictions, question_id, str, path)
    return predictions


def read_nbest(
    path: str, numbers: typing.Mapping[str, typing.Tuple[float, float]]
) -> typing.Dict[str, typing.List[typing.Dict[str, typing.Any]]]:
    """Lists of answers by question id, each with "text" and numbers.

    Args:
      path: of nbest_predictions.json.
      numbers: {key of an answer that is needed: (lowest, highest)}.

    Raises:
      errors.UserError: the file has another form.
    """
    nbest = read_json(path, "n-best predictions")
    for question_id in nbest:
        where = f"{path}: question {question_id!r}"
        for answer in value(nbest, question_id, list, where):
            value(answer, "text", str, where)
            for key, (low, high) in numbers.items():
                number = answer.get(key)
                if (
                    not isinstance(number, (int, float))
                    or not low <= number <= high
                ):
                    raise errors.UserError(
                        f"{where}: {key!r} is {number!r:.40}; expected a "
                        f"number from {low} to {high}"
                    )
    return nbest


def read_null_odds(path: str) -> typing.Dict[str, float]:
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
                f"{path}: question {question_id!r}: expected a number, got "
                f"{number!r:.40}"
            )
    return odds


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


def mean_scores_v1(
    gold: Gold, predictions: typing.Dict[str, str]
) -> typing.Dict[str, float]:
    """Mean exact match and F1 by v1.1's rules, in percent.

    Args:
      gold: list of (question id, list of accepted texts).
      predictions: {id: text}; a question without one scores 0.
    """
    exact, total_f1 = 0, 0.0
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


def scores(
    gold: typing.Dict[str, typing.List[str]], predictions: typing.Dict[str, str]
) -> typing.Tuple[typing.Dict[str, float], typing.Dict[str, float]]:
    """Exact match and F1 of each predicted question by v2.0's rules.

    Args:
      gold: {id: list of accepted texts}; none, or only texts of which
        normalization leaves nothing, means that "" is the right answer.
      predictions: {id: text}; questions without one get no score here.

    Returns:
      Two dicts {id: score}, in the order of `gold`: 0 or 1, and 0 to 1.
    """
    exact_scores: typing.Dict[str, float] = {}
    f1_scores: typing.Dict[str, float] = {}
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


def by_null_odds(
    null_odds: typing.Dict[str, float], known: typing.Container[str]
) -> typing.List[str]:
    """Ids in `known` by rising null odds, ties in the order of `null_odds`."""
    return sorted(
        (k for k in null_odds if k in known), key=lambda k: null_odds[k]
    )


def best_threshold(
    gold: typing.Dict[str, typing.List[str]],
    predictions: typing.Dict[str, str],
    question_scores: typing.Dict[str, float],
    null_odds: typing.Dict[str, float],
) -> typing.Tuple[float, float]:
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
    score = float(sum(not gold[k] and k in predictions for k in gold))
    best = score
    threshold = 0.0
    for question_id in by_null_odds(null_odds, question_scores):
        if gold[question_id]:
            score += question_scores[question_id]
        elif predictions[question_id]:
            score -= 1
        if score > best:
            best, threshold = score, null_odds[question_id]
    return 100.0 * best / len(gold), threshold


def find_best_thresholds(
    gold: typing.Dict[str, typing.List[str]],
    predictions: typing.Dict[str, str],
    null_odds: typing.Dict[str, float],
) -> typing.Dict[str, float]:
    """The best null thresholds for exact match and for F1.

    Args:
      gold: {id: list of accepted texts}, empty for an unanswerable question.
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


def suggested_threshold(
    gold: typing.Dict[str, typing.List[str]],
    predictions: typing.Dict[str, str],
    null_odds: typing.Dict[str, float],
) -> float:
    """A null threshold whose gain is statistically significant.

    Tuning the threshold on the evaluation set overestimates the score: tuned
    on one half of a set, it can cost points on the other. The best threshold
    is suggested only where its gain in F1 over the neutral threshold 0 exceeds
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
