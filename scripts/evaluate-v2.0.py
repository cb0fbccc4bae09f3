#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scores SQuAD v2.0 predictions, in which "" means: no answer.

    python evaluate-v2.0.py dev-v2.0.json predictions.json

prints a JSON object with exact match and F1 in percent, over all questions and
over those with (HasAns) and without (NoAns) an answer. --na-prob-file adds the
best thresholds, --out-image-dir draws precision-recall curves. A question
without a prediction scores 0 and is named on standard error. The numbers are
those of SQuAD's official script to the last digit.

The file needs nothing but Python 3.7 or newer and can be copied anywhere;
--out-image-dir also needs matplotlib.

Source: Rajpurkar et al. 2018, section 5.
"""

import argparse
import collections
import json
import math
import os
import re
import signal
import string
import sys
import typing

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


def read_null_odds(path: str) -> dict:
    """{question id: probability, or log odds, of "no answer"}."""
    odds = read_json(path, "no-answer probabilities")
    for question_id, number in odds.items():
        if (
            not isinstance(number, (int, float))
            or isinstance(number, bool)
            or math.isnan(number)
        ):
            raise InputError(
                f"{path}: question {question_id!r}: expected a number, got "
                f"{number!r:.40}"
            )
    return odds


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


def apply_threshold(
    values: dict, gold: dict, null_odds: dict, threshold: float
) -> dict:
    """Scores when questions above the threshold are answered with ""."""
    return {
        k: float(not gold[k]) if null_odds[k] > threshold else score
        for k, score in values.items()
    }


def mean_scores(exact_scores: dict, f1_scores: dict, ids: list) -> dict:
    """Exact match and F1 in percent; an id without scores counts as 0."""
    total = len(ids)
    return {
        "exact": 100.0 * sum(exact_scores.get(k, 0) for k in ids) / total,
        "f1": 100.0 * sum(f1_scores.get(k, 0) for k in ids) / total,
        "total": total,
    }


def precision_recall(values: dict, gold: dict, null_odds: dict) -> tuple:
    """The curve as the null threshold rises, and the area under it.

    Args:
      values: {id: score from 0 to 1}.
      gold: {id: list of accepted texts}; some question has an answer.
      null_odds: {id: number}.

    Returns:
      (precisions, recalls, average precision in percent).
    """
    answerable = sum(1 for texts in gold.values() if texts)
    ids = by_null_odds(null_odds, values)
    precisions, recalls = [1.0], [0.0]
    correct = average = 0.0
    for i, question_id in enumerate(ids):
        if gold[question_id]:
            correct += values[question_id]
        # No threshold separates two questions with equal odds.
        if i + 1 < len(ids) and (
            null_odds[question_id] == null_odds[ids[i + 1]]
        ):
            continue
        precision, recall = correct / (i + 1), correct / answerable
        average += precision * (recall - recalls[-1])
        precisions.append(precision)
        recalls.append(recall)
    return precisions, recalls, 100.0 * average


# --- Pictures ---------------------------------------------------------------


def load_pyplot() -> typing.Any:
    """matplotlib.pyplot, drawing into files."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "--out-image-dir needs matplotlib, which is not installed; run "
            "bash scripts/setup.sh --extras=plots"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw_curve(pyplot: typing.Any, curve: tuple, path: str, title: str) -> None:
    precisions, recalls, _ = curve
    pyplot.step(recalls, precisions, color="b", alpha=0.2, where="post")
    pyplot.fill_between(recalls, precisions, step="post", alpha=0.2, color="b")
    pyplot.xlabel("Recall")
    pyplot.ylabel("Precision")
    pyplot.xlim([0.0, 1.05])
    pyplot.ylim([0.0, 1.05])
    pyplot.title(title)
    pyplot.savefig(path)
    pyplot.clf()


def probabilities(null_odds: dict) -> dict:
    """{id: probability of no answer}.

    If a number is outside 0 to 1, all are taken as log odds, as run_squad.py
    writes them; the official script leaves those out of its histograms.
    """
    if all(0 <= number <= 1 for number in null_odds.values()):
        return null_odds
    return {
        k: 0.5 + 0.5 * math.tanh(0.5 * number)  # the logistic function
        for k, number in null_odds.items()
    }


def draw_histogram(
    pyplot: typing.Any, numbers: list, path: str, name: str
) -> None:
    pyplot.hist(
        numbers,
        weights=[1.0 / len(numbers)] * len(numbers),
        bins=20,
        range=(0.0, 1.0),
    )
    pyplot.xlabel("Model probability of no-answer")
    pyplot.ylabel("Proportion of dataset")
    pyplot.title("Histogram of no-answer probability: " + name)
    pyplot.savefig(path)
    pyplot.clf()


def draw(
    pyplot: typing.Any,
    out_dir: str,
    question_scores: tuple,
    gold: dict,
    null_odds: dict,
) -> dict:
    """Draws curves and histograms.

    Returns:
      A dict with pr_exact_ap, pr_f1_ap and pr_oracle_ap in percent, empty when
      no question has an answer.
    """
    os.makedirs(out_dir, exist_ok=True)
    average_precisions = {}
    oracle = {k: float(bool(gold[k])) for k in question_scores[0]}
    curves = (
        (
            "pr_exact",
            question_scores[0],
            "Precision-Recall curve for Exact Match score",
        ),
        ("pr_f1", question_scores[1], "Precision-Recall curve for F1 score"),
        (
            "pr_oracle",
            oracle,
            "Oracle Precision-Recall curve (binary task of HasAns vs. NoAns)",
        ),
    )
    for name, values, title in curves if any(gold.values()) else ():
        curve = precision_recall(values, gold, null_odds)
        average_precisions[name + "_ap"] = curve[2]
        draw_curve(pyplot, curve, os.path.join(out_dir, name + ".png"), title)
    shares = probabilities(null_odds)
    for name, has_answer in (("hasAns", True), ("noAns", False)):
        numbers = [shares[k] for k in oracle if bool(gold[k]) == has_answer]
        if numbers:
            draw_histogram(
                pyplot,
                numbers,
                os.path.join(out_dir, f"na_prob_hist_{name}.png"),
                name,
            )
    return average_precisions


# --- The command ------------------------------------------------------------


def null_odds_of(path: str, predicted: typing.Iterable[str]) -> dict:
    """{id: number} for every predicted id, all 0.0 without a file."""
    if not path:
        return dict.fromkeys(predicted, 0.0)
    null_odds = read_null_odds(path)
    for question_id in predicted:
        if question_id not in null_odds:
            raise InputError(
                f"{path}: no number for question {question_id!r}; add one for "
                "every predicted question"
            )
    return null_odds


def report_questions(
    gold: dict, exact_scores: dict, f1_scores: dict, verbose: bool
) -> None:
    """Names unpredicted questions, and with `verbose` every score."""
    for question_id in gold:
        if question_id not in exact_scores:
            print(f"Missing prediction for {question_id}", file=sys.stderr)
        elif verbose:
            print(
                f"id={question_id} exact={exact_scores[question_id]} "
                f"f1={f1_scores[question_id]:.4f}",
                file=sys.stderr,
            )


def evaluate(arguments: argparse.Namespace, pyplot: typing.Any) -> dict:
    """All scores as a dict, in the order of the official script."""
    document = read_dataset(arguments.data_file)
    gold = dict(read_gold(arguments.data_file, document))
    predictions = read_predictions(arguments.pred_file)
    raw = scores(gold, predictions)
    report_questions(gold, raw[0], raw[1], arguments.verbose)
    null_odds = null_odds_of(arguments.na_prob_file, raw[0])
    final = [
        apply_threshold(values, gold, null_odds, arguments.na_prob_thresh)
        for values in raw
    ]
    result = mean_scores(*final, ids=list(gold))
    for prefix, has_answer in (("HasAns", True), ("NoAns", False)):
        ids = [k for k in gold if bool(gold[k]) == has_answer]
        if ids:
            part = mean_scores(*final, ids=ids)
            result.update((f"{prefix}_{k}", v) for k, v in part.items())
    if arguments.na_prob_file:
        result.update(find_best_thresholds(gold, predictions, null_odds))
    if pyplot:
        result.update(
            draw(pyplot, arguments.out_image_dir, raw, gold, null_odds)
        )
    return result


def check_output(path: str, inputs: typing.Iterable[str]) -> None:
    """Rejects an output that would replace one of the inputs."""
    for source in inputs:
        if (
            source
            and os.path.exists(source)
            and os.path.exists(path)
            and os.path.samefile(path, source)
        ):
            raise InputError(
                f"--out-file={path}: is an input and would be replaced; choose "
                "another name"
            )


def main(arguments: argparse.Namespace) -> None:
    pyplot = None
    if arguments.out_image_dir and arguments.na_prob_file:
        pyplot = load_pyplot()
    elif arguments.out_image_dir:
        print(
            "--out-image-dir draws nothing without --na-prob-file",
            file=sys.stderr,
        )
    result = evaluate(arguments, pyplot)
    if not arguments.out_file:
        print(json.dumps(result, indent=2))
        return
    check_output(
        arguments.out_file,
        (arguments.data_file, arguments.pred_file, arguments.na_prob_file),
    )
    with open(arguments.out_file, "w") as stream:
        json.dump(result, stream)


def define_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_file", metavar="data.json", help="SQuAD file with the answers"
    )
    parser.add_argument(
        "pred_file",
        metavar="pred.json",
        help="JSON object, question id to answer",
    )
    parser.add_argument(
        "--out-file",
        "-o",
        metavar="eval.json",
        help="write the scores here (default: print them)",
    )
    parser.add_argument(
        "--na-prob-file",
        "-n",
        metavar="na_prob.json",
        help="JSON object, question id to the probability, or "
        "log odds, that the question is unanswerable",
    )
    parser.add_argument(
        "--na-prob-thresh",
        "-t",
        type=float,
        default=1.0,
        help='take a prediction as "" when its no-answer '
        "probability exceeds this (default 1.0)",
    )
    parser.add_argument(
        "--out-image-dir",
        "-p",
        metavar="out_images",
        help="draw precision-recall curves into this "
        "directory; needs --na-prob-file and matplotlib",
    )
    parser.add_argument(
        "--verbose",
        "-v",
        action="store_true",
        help="write each question's scores to standard error",
    )


if __name__ == "__main__":
    parser = Parser(description="Evaluation for SQuAD version 2.0")
    define_arguments(parser)
    parser.run(main)
