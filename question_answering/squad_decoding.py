# SPDX-License-Identifier: Apache-2.0
"""From logits to answers: n-best lists, predictions and null odds.

An answer's score is the sum of its first token's start logit and its last
token's end logit. It must begin at a token that has no more context in another
window; the best such answers of each window compete, found exactly. "" scores
the smallest sum of logits at `<s>` of a question's windows.

Windows are decoded in batches, whatever questions they are of: matrices of B
windows and C columns, one column for each token of the longest window's
context. Time and memory grow linearly with the number of windows.

Source: google-research/bert, run_squad.py (maximum context, n-best, null
score); Liu et al. 2019, section 5.2 (answerability classifier).
"""

import itertools
import typing

import numpy as np

from common import errors
from question_answering import squad_scores

# Stands for minus infinity in sums, so that their differences are numbers.
_LOWEST = -1e30
# Windows decoded at a time.
_BATCH_SIZE = 64


class InvalidLogits(errors.UserError):
    """The model's numbers are NaN or infinite, whatever it was asked."""


class _Answer(typing.NamedTuple):
    score: float
    text: str
    start_logit: float
    end_logit: float
    start: typing.Optional[int] = None  # in characters of the context
    end: typing.Optional[int] = None


class _Spans(typing.NamedTuple):
    """The best spans of B windows, K each, by falling score.

    Where a window has fewer than K, scores are minus infinity.
    """

    scores: np.ndarray  # float64 [B, K]
    first: np.ndarray  # int64 [B, K], first token
    last: np.ndarray  # int64 [B, K], last token
    start_logits: np.ndarray  # float64 [B, K]
    end_logits: np.ndarray  # float64 [B, K]


class _Window(typing.NamedTuple):
    """A feature and the T tokens of its context that answers may touch."""

    example: typing.Any
    feature: typing.Any
    may_start: np.ndarray  # bool [T]
    may_end: np.ndarray  # bool [T]


def decode(
    examples: typing.Sequence,
    features: typing.Iterable,
    results: typing.Mapping[int, typing.Tuple],
    n_best_size: int,
    max_answer_length: int,
    version_2_with_negative: bool,
    null_score_diff_threshold: float,
    *,
    answerable_logits: typing.Optional[typing.Mapping[int, float]] = None,
    with_offsets: bool = False,
) -> typing.Tuple[dict, dict, dict]:
    """Answers from the logits of all windows.

    Args:
      examples: list of `Example`.
      features: all their windows.
      results: {unique_id: (start_logits, end_logits)}, each a sequence of
        numbers for at least the feature's `length` columns; more are ignored.
      n_best_size: answers listed for a question at most.
      max_answer_length: tokens in an answer at most.
      version_2_with_negative: whether "" is a possible answer.
      null_score_diff_threshold: "" is predicted when the null odds exceed it;
        infinity gives the best answer that is not empty.
      answerable_logits: {unique_id: log odds of a classifier that the window
        holds an answer}; the highest of a question is taken off the score
        of "".
      with_offsets: whether the n-best dicts also have "start" and "end", the
        answer's first character in the context and the one after its last;
        None in "".

    Returns:
      (predictions, nbest, null_odds): {id: text}; {id: list of dicts with
      text, probability, start_logit, end_logit} with falling probabilities
      that sum to 1; {id: score of "" minus that of the best other answer},
      empty without `version_2_with_negative`.

    Raises:
      errors.UserError: a question lacks windows or logits, a logit is NaN or
        infinite, or a size is below 1.
    """
    _check_settings(n_best_size, max_answer_length, null_score_diff_threshold)
    predictions, nbest, null_odds = {}, {}, {}
    for example, windows, answers in _best_answers(
        examples, features, results, n_best_size, max_answer_length
    ):
        name = example.question_id
        best = answers[0] if answers else _Answer(_LOWEST, "", 0.0, 0.0)
        predictions[name] = best.text
        if version_2_with_negative:
            null = _null_answer(example, windows, results, answerable_logits)
            null_odds[name] = null.score - best.score
            if null_odds[name] > null_score_diff_threshold:
                predictions[name] = ""
            answers = _with_null(answers, null, n_best_size)
        nbest[name] = _with_probabilities(answers or [best], with_offsets)
    return predictions, nbest, null_odds


def distinct_answers(
    nbest: typing.Iterable[typing.Dict[str, typing.Any]], limit: int
) -> typing.List[typing.Dict[str, typing.Any]]:
    """The best entries of an n-best list that do not overlap.

    Of entries that share characters of the context, or whose texts differ in
    articles, case and punctuation alone, the most probable one stays. Their
    order stays too, so that the first one is the list's first.

    >>> distinct_answers([
    ...     {"text": "in 1721", "probability": 0.5, "start": 4, "end": 11},
    ...     {"text": "1721", "probability": 0.3, "start": 7, "end": 11},
    ...     {"text": "1954", "probability": 0.2, "start": 30, "end": 34},
    ... ], limit=1)[0]["probability"]  # 0.5 / (0.5 + 0.2)
    0.7142857142857143

    Args:
      nbest: a question's dicts of `decode` with offsets.
      limit: entries at most.

    Returns:
      Copies of the entries; the probabilities of all distinct ones, also of
      those beyond the limit, sum to 1.
    """
    distinct: typing.List[typing.Dict[str, typing.Any]] = []
    texts = set()
    for entry in nbest:
        text = squad_scores.normalize_answer(entry["text"]) or entry["text"]
        if text not in texts and not any(_overlap(entry, d) for d in distinct):
            texts.add(text)
            distinct.append(entry)
    total = sum(entry["probability"] for entry in distinct)
    return [
        dict(entry, probability=entry["probability"] / total)
        for entry in distinct[:limit]
    ]


def _overlap(first, second):
    """Whether two entries share characters; "" has none."""
    return None not in (first["start"], second["start"]) and (
        first["start"] < second["end"] and second["start"] < first["end"]
    )


def check_positive(**sizes: int) -> None:
    """Rejects a flag's value below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise errors.UserError(f"--{name} is {size}; use 1 or more")


def _check_settings(n_best_size, max_answer_length, threshold):
    check_positive(n_best_size=n_best_size, max_answer_length=max_answer_length)
    if threshold != threshold:
        raise errors.UserError(
            "--null_score_diff_threshold is nan; expected a number"
        )


def _best_answers(examples, features, results, count, max_answer_length):
    """Yields (example, its features, its best `_Answer`s by falling score)."""
    grouped = _group_windows(examples, features)
    spans = _spans(
        _windows(examples, grouped), results, count, max_answer_length
    )
    for example, windows in zip(examples, grouped):
        own = itertools.islice(spans, len(windows))
        yield example, windows, _merge(example, windows[0].document, own, count)


def _group_windows(examples, features):
    """The features of each example in the order of the text."""
    grouped = [[] for _ in examples]
    for feature in features:
        grouped[feature.example_index].append(feature)
    for example, windows in zip(examples, grouped):
        if not windows:
            raise errors.UserError(
                f"question {example.question_id!r} has no features; pass those "
                "of all examples"
            )
        windows.sort(key=lambda window: window.doc_start)
    return grouped


def _windows(examples, grouped):
    """Yields the `_Window`s of all examples in their order."""
    document = None
    for example, features in zip(examples, grouped):
        if features[0].document is not document:
            document = features[0].document
            # A token's offsets exclude its leading space, so this token is
            # all space.
            is_space = [
                example.context[i].isspace() for i in document.starts.tolist()
            ]
            may_end = ~np.array(is_space, bool)
        owners = _owners(features)
        for number, feature in enumerate(features):
            tokens = _tokens(feature)
            may_start = may_end[tokens] & (owners[tokens] == number)
            yield _Window(example, feature, may_start, may_end[tokens])


def _tokens(feature):
    """The slice of the document's tokens that a window holds."""
    return slice(feature.doc_start, feature.doc_start + feature.doc_length)


def _owners(features):
    """For each token, the number of the window with most context: int64 [T].

    A token's context in a window is the smaller number of tokens to either
    side, plus a hundredth of the window's length; the first window wins a tie.
    """
    owners = np.zeros(len(features[0].document.ids), np.int64)
    if len(features) == 1:
        return owners
    most = np.zeros_like(owners)
    for number, feature in enumerate(features):
        left = np.arange(feature.doc_length)
        context = 100 * np.minimum(left, left[::-1]) + feature.doc_length
        tokens = _tokens(feature)
        owners[tokens][context > most[tokens]] = number
        most[tokens] = np.maximum(most[tokens], context)
    return owners


def _spans(windows, results, count, max_answer_length):
    """Yields the fields of `_Spans`, [K] each, of each `_Window`.

    Tokens are counted in the document.
    """
    while True:
        batch = list(itertools.islice(windows, _BATCH_SIZE))
        if not batch:
            return
        spans = _best_spans(
            *_context_logits(batch, results), count, max_answer_length
        )
        offset = np.array([window.feature.doc_start for window in batch])
        yield from zip(
            *spans._replace(
                first=spans.first + offset[:, None],
                last=spans.last + offset[:, None],
            )
        )


def _context_logits(windows, results):
    """Start and end logits of each window's context, float64 [B, C] each.

    Where no answer may start or end, they are minus infinity.
    """
    longest = max(window.feature.doc_length for window in windows)
    logits = np.zeros([2, len(windows), longest])
    usable = np.zeros(logits.shape, bool)
    for row, window in enumerate(windows):
        first, length = window.feature.context_start, window.feature.doc_length
        usable[0, row, :length] = window.may_start
        usable[1, row, :length] = window.may_end
        for matrix, values in zip(logits, _window_logits(window, results)):
            matrix[row, :length] = values[first : first + length]
    return np.where(usable, np.maximum(logits, _LOWEST), -np.inf)


def _window_logits(window, results):
    """Checked logits of a window's feature, each [`length` or more]."""
    feature = window.feature
    where = f"question {window.example.question_id!r}"
    if feature.unique_id not in results:
        raise errors.UserError(
            f"{where}: no logits for its feature {feature.unique_id}; predict "
            "all features, including the last partial batch"
        )
    pair = [np.asarray(logits) for logits in results[feature.unique_id]]
    for logits in pair:
        if logits.ndim != 1 or len(logits) < feature.length:
            raise errors.UserError(
                f"{where}: logits of feature {feature.unique_id} have shape "
                f"{logits.shape}, but the feature has {feature.length} tokens"
            )
        # The greatest of numbers and a NaN is NaN.
        if not logits[: feature.length].max() < np.inf:
            raise InvalidLogits(
                f"{where}: logits of feature {feature.unique_id} are NaN or "
                "infinite; the model has diverged, or half precision overflows"
            )
    return pair


def _best_spans(starts, ends, count, max_answer_length):
    """The spans with the highest sums, ties in the order of the tokens.

    Only the `count` starts with the best sums are considered: each has a span
    at least as good as any span of the other starts.

    Args:
      starts: float64 [B, C].
      ends: float64 [B, C].
      count: spans per window.
      max_answer_length: tokens in a span at most.

    Returns:
      `_Spans` with K = min(count, number of candidates).
    """
    length = min(max_answer_length, starts.shape[1])
    padded = np.pad(
        ends, [(0, 0), (0, length)], "constant", constant_values=-np.inf
    )
    best = starts + _sliding_max(padded, length)[:, : starts.shape[1]]
    first = np.sort(_argsort_falling(best)[:, :count], axis=1)  # [B, K]
    row = np.arange(len(starts))[:, None]
    last = first[:, :, None] + np.arange(length)  # [B, K, length]
    scores = (
        starts[row, first][:, :, None] + padded[row[:, :, None], last]
    ).reshape(len(starts), -1)
    order = _argsort_falling(scores)[:, :count]
    first, last = (
        first[row, order // length],
        last.reshape(scores.shape)[row, order],
    )
    return _Spans(
        scores[row, order], first, last, starts[row, first], padded[row, last]
    )


def _sliding_max(matrix, length):
    """Maximum of each column and the `length` - 1 after it, or as many as
    there are."""
    result, reach = matrix.copy(), 1
    while reach < length:
        step = min(reach, length - reach)
        result[:, :-step] = np.maximum(result[:, :-step], result[:, step:])
        reach += step
    return result


def _argsort_falling(matrix):
    """Columns of each row by falling value, ties by rising column."""
    return np.argsort(-matrix, axis=1, kind="stable")


def _merge(example, document, spans, n_best_size):
    """The best answers of all windows of a question, each text once.

    Args:
      example: the question.
      document: its context.
      spans: fields of `_Spans`, [K] each, of each window.
      n_best_size: answers at most.
    """
    scores, first, last, start_logits, end_logits = map(
        np.concatenate, zip(*spans)
    )
    order = np.argsort(-scores, kind="stable")
    order = order[: np.count_nonzero(scores > -np.inf)]
    answers, seen = [], set()
    for score, start, end, start_logit, end_logit in zip(
        scores[order].tolist(),
        document.starts[first[order]].tolist(),
        document.ends[last[order]].tolist(),
        start_logits[order].tolist(),
        end_logits[order].tolist(),
    ):
        text = example.context[start:end]
        if text not in seen:
            seen.add(text)
            answers.append(
                _Answer(score, text, start_logit, end_logit, start, end)
            )
            if len(answers) == n_best_size:
                break
    return answers


def _null_answer(example, windows, results, answerable_logits):
    """ "" with the smallest sum of checked logits at `<s>` of all windows."""
    start, end = min(
        (
            [
                max(float(logits[0]), _LOWEST)
                for logits in results[window.unique_id]
            ]
            for window in windows
        ),
        key=sum,
    )
    score = start + end
    if answerable_logits is not None:
        score -= max(
            _answerable(example, w, answerable_logits) for w in windows
        )
    return _Answer(score, "", start, end)


def _answerable(example, feature, answerable_logits):
    """A feature's checked answerability logit."""
    logit = float(answerable_logits.get(feature.unique_id, np.nan))
    if not abs(logit) < np.inf:
        raise errors.UserError(
            f"question {example.question_id!r}: the answerability logit of "
            f"feature {feature.unique_id} is missing or not finite"
        )
    return logit


def _with_null(answers, null, n_best_size):
    """Answers with "" by its score, at the latest in the last place."""
    ranked = sorted(answers + [null], key=lambda a: -a.score)
    kept = ranked[:n_best_size]
    if null not in kept and n_best_size > 1:
        kept[-1] = null
    return kept


def _with_probabilities(answers, with_offsets):
    """The n-best list as dicts; probabilities are a softmax of the scores."""
    scores = np.array([answer.score for answer in answers])
    exponentials = np.exp(scores - scores.max())
    probabilities = (exponentials / exponentials.sum()).tolist()
    entries = [
        {
            "text": answer.text,
            "probability": probability,
            "start_logit": answer.start_logit,
            "end_logit": answer.end_logit,
        }
        for answer, probability in zip(answers, probabilities)
    ]
    for entry, answer in zip(entries, answers) if with_offsets else ():
        entry.update(start=answer.start, end=answer.end)
    return entries
