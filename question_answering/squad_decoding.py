# SPDX-License-Identifier: Apache-2.0
"""From logits to answers: n-best lists, predictions and null odds.

The windows of a question are decoded together, in matrices of B windows and C
columns, one column for each token of the longest window's context.

Source: google-research/bert, run_squad.py (maximum context, n-best, null
score); Liu et al. 2019, section 5.2 (answerability classifier).
"""

import typing

import numpy as np

from common import errors

# Stands for minus infinity in sums, so that their differences are numbers.
_LOWEST = -1e30


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
    first: np.ndarray  # int64 [B, K], first token, counted in the window
    last: np.ndarray  # int64 [B, K], last token
    start_logits: np.ndarray  # float64 [B, K]
    end_logits: np.ndarray  # float64 [B, K]


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

    An answer's score is the sum of its first token's start logit and its last
    token's end logit. It must begin at a token that has no more context in
    another window; the best `n_best_size` such answers of each window compete,
    found exactly. "" scores the smallest sum of logits at `<s>` of a
    question's windows.

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
    check_positive(n_best_size=n_best_size, max_answer_length=max_answer_length)
    if null_score_diff_threshold != null_score_diff_threshold:
        raise errors.UserError(
            "--null_score_diff_threshold is nan; expected a number"
        )
    predictions, nbest, null_odds = {}, {}, {}
    for example, windows in zip(examples, _group_windows(examples, features)):
        name = example.question_id
        logits = [_window_logits(example, w, results) for w in windows]
        starts, ends = _context_logits(example, windows, logits)
        spans = _best_spans(starts, ends, n_best_size, max_answer_length)
        answers = _merge(example, windows, spans, n_best_size)
        best = answers[0] if answers else _Answer(_LOWEST, "", 0.0, 0.0)
        predictions[name] = best.text
        if version_2_with_negative:
            null = _null_answer(example, windows, logits, answerable_logits)
            null_odds[name] = null.score - best.score
            if null_odds[name] > null_score_diff_threshold:
                predictions[name] = ""
            answers = _with_null(answers, null, n_best_size)
        nbest[name] = _with_probabilities(answers or [best], with_offsets)
    return predictions, nbest, null_odds


def check_positive(**sizes: int) -> None:
    """Rejects a flag's value below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise errors.UserError(f"--{name} is {size}; use 1 or more")


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


def _context_logits(example, windows, logits):
    """Start and end logits of each window's context, [B, C] each.

    Where no answer may begin or end, they are minus infinity.
    """
    context, starts = example.context, windows[0].document.starts
    # A token's offsets exclude its leading space, so this token is all space.
    is_space = [context[i].isspace() for i in starts.tolist()]
    allowed = ~np.array(is_space, bool)
    matrices = np.full(
        [2, len(windows), max(w.doc_length for w in windows)], -np.inf
    )
    for row, (window, pair, owned) in enumerate(
        zip(windows, logits, _owned_tokens(windows))
    ):
        first, length = window.context_start, window.doc_length
        tokens = slice(window.doc_start, window.doc_start + length)
        for matrix, values, usable in zip(
            matrices, pair, (allowed & owned, allowed)
        ):
            columns = values[first : first + length]
            matrix[row, :length] = np.where(usable[tokens], columns, -np.inf)
    return matrices


def _window_logits(example, feature, results):
    """Checked float64 logits [length] of a feature."""
    if feature.unique_id not in results:
        raise errors.UserError(
            f"question {example.question_id!r}: no logits for its feature "
            f"{feature.unique_id}; predict all features, including the last "
            "partial batch"
        )
    pair = []
    for logits in results[feature.unique_id]:
        logits = np.asarray(logits, np.float64)
        if logits.ndim != 1 or len(logits) < feature.length:
            raise errors.UserError(
                f"question {example.question_id!r}: logits of feature "
                f"{feature.unique_id} have shape {logits.shape}, but the "
                f"feature has {feature.length} tokens"
            )
        logits = logits[: feature.length]
        # The greatest of numbers and a NaN is NaN.
        if not logits.max() < np.inf:
            raise errors.UserError(
                f"question {example.question_id!r}: logits of feature "
                f"{feature.unique_id} are NaN or infinite; the model has "
                "diverged, or half precision overflows"
            )
        pair.append(np.maximum(logits, _LOWEST))
    return pair


def _owned_tokens(windows):
    """For each window, the tokens that have most context there: bool [T].

    A token's context in a window is the smaller number of tokens to either
    side, plus a hundredth of the window's length; the first window wins a tie.
    """
    total = len(windows[0].document.ids)
    if len(windows) == 1:
        return np.ones([1, total], bool)
    token = np.arange(total)
    context = []
    for window in windows:
        left = token - window.doc_start
        right = window.doc_length - 1 - left
        smaller = np.minimum(left, right)
        context.append(
            np.where(smaller < 0, -1, 100 * smaller + window.doc_length)
        )
    owner = np.argmax(context, axis=0)
    return owner == np.arange(len(windows))[:, None]


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


def _merge(example, windows, spans, n_best_size):
    """The best answers of all windows of a question, each text once."""
    order = np.argsort(-spans.scores, axis=None, kind="stable")
    scores = spans.scores.ravel()[order]
    order = order[: np.count_nonzero(scores > -np.inf)]
    document = windows[0].document
    offset = np.array([w.doc_start for w in windows])[:, None]
    starts = document.starts[(spans.first + offset).ravel()[order]]
    ends = document.ends[(spans.last + offset).ravel()[order]]
    answers, seen = [], set()
    for score, first, last, start_logit, end_logit in zip(
        scores.tolist(),
        starts.tolist(),
        ends.tolist(),
        spans.start_logits.ravel()[order].tolist(),
        spans.end_logits.ravel()[order].tolist(),
    ):
        text = example.context[first:last]
        if text not in seen:
            seen.add(text)
            answers.append(
                _Answer(score, text, start_logit, end_logit, first, last)
            )
            if len(answers) == n_best_size:
                break
    return answers


def _null_answer(example, windows, logits, answerable_logits):
    """ "" with the smallest sum of logits at `<s>` of all windows."""
    start, end = min(((float(s[0]), float(e[0])) for s, e in logits), key=sum)
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
