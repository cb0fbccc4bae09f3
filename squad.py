# SPDX-License-Identifier: Apache-2.0
"""SQuAD: questions in, windows for the model, answers out.

A context is tokenized once, each token with its characters in the context. It
is cut into windows that overlap, one feature each:

    <s> question </s></s> window of the context </s>

Labels are found by characters, and `decode` (squad_decoding.py) cuts answers
by characters, so that an answer is the exact text between two of them.

Source: google-research/bert, run_squad.py (windows and labels); fairseq's
RoBERTa, hub_interface.py (layout of a pair).
"""

import collections
import dataclasses
import functools
import itertools
import re
import typing

import numpy as np
from absl import logging

from common import command_line, errors, worker_pool
from question_answering import squad_decoding, squad_scores
from question_answering.squad_decoding import decode  # noqa: F401, a part of this interface

# <s> before the question, </s></s> after it, </s> at the end.
_SPECIAL_TOKENS = 4
# Contexts in one piece of work for a process.
_CHUNK_SIZE = 64
_WHITE_SPACE = re.compile(r"\s")


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """Flags of every script that answers questions."""

    max_query_length: int = command_line.flag(
        64,
        "Tokens of a question; more are cut off.",
        lower=1,
        group=command_line.PREDICTION,
    )
    n_best_size: int = command_line.flag(
        20, "Answers listed for each question.", lower=1
    )
    max_answer_length: int = command_line.flag(
        30, "Tokens of an answer.", lower=1
    )
    version_2_with_negative: bool = command_line.flag(
        False, "Whether questions may have no answer (SQuAD v2.0)."
    )
    null_score_diff_threshold: float = command_line.flag(
        0.0,
        "No answer is given where its score exceeds the best answer's "
        "by more than this.",
    )


class Example(typing.NamedTuple):
    """One question; without a known answer, answer_start is -1."""

    question_id: str
    question: str
    context: str
    answer_text: str = ""
    answer_start: int = -1  # in characters of context
    is_impossible: bool = False


class Document(typing.NamedTuple):
    """A tokenized context, shared by the features of all its questions."""

    ids: np.ndarray  # int32 [T]
    starts: np.ndarray  # int32 [T], first character of a token
    ends: np.ndarray  # int32 [T], character after its last


class Feature(typing.NamedTuple):
    """One window of one question's context."""

    unique_id: int  # number of the feature, from 0
    example_index: int  # position of its question in the examples
    document: Document  # all tokens of the context
    prefix: typing.List[int]  # ids of `<s> question </s></s>`
    doc_start: int  # the window's first token in the document
    doc_length: int  # the window's number of tokens
    # Columns of the answer's first and last token: 0 when the window does not
    # hold the entire answer, None for prediction.
    start_position: typing.Optional[int]
    end_position: typing.Optional[int]

    @property
    def input_ids(self) -> typing.List[int]:
        """All ids of the sequence as a list, not padded."""
        first = self.doc_start
        window = self.document.ids[first : first + self.doc_length]
        return self.prefix + window.tolist() + self.prefix[-1:]

    @property
    def context_start(self) -> int:
        """Column of the window's first token."""
        return len(self.prefix)

    @property
    def length(self) -> int:
        """Number of ids in `input_ids`."""
        return len(self.prefix) + self.doc_length + 1


def warn_if_other_version(
    trained: typing.Optional[bool], requested: typing.Optional[bool]
) -> None:
    """Warns where a model of one version of SQuAD is used for the other.

    Args:
      trained, requested: version_2_with_negative; None where unknown.
    """
    if requested and trained is False:
        logging.warning(
            "--version_2_with_negative: the model was trained on SQuAD v1.1 "
            '(task.json); its scores of "" were not trained, so answers will '
            "be missing or wrong"
        )
    elif trained and requested is False:
        logging.warning(
            "--version_2_with_negative=False: the model was trained on SQuAD "
            "v2.0 (task.json); it will answer questions that have no answer "
            "too, so pass --version_2_with_negative for data of v2.0"
        )


class _InvalidAnswer(errors.UserError):
    """An answer whose text is not at its answer_start."""


def read_examples(
    path: str,
    is_training: bool,
    version_2_with_negative: bool,
    skip_invalid_answers: bool = False,
    counts: typing.Optional[collections.Counter] = None,
) -> typing.List[Example]:
    """The questions of a SQuAD file.

    Args:
      path: a JSON file in the format of SQuAD v1.1 or v2.0, a list of
        questions each with its context, or .jsonl with one per line.
      is_training: whether answers are needed; otherwise they are ignored.
      version_2_with_negative: whether questions may have no answer.
      skip_invalid_answers: skip a question whose answer_start does not hold
        its answer's text, instead of raising an error.
      counts: grows by the numbers of "questions" that were read, of those left
        out of training ("skipped_invalid_answers", "skipped_empty_contexts"),
        of "moved_answers", whose text is a little beside answer_start, and of
        "ignored_answers": wrong ones after the first, and those of a question
        with is_impossible.

    Returns:
      A list of `Example`; the first of several answers counts.

    Raises:
      errors.UserError: the file is not of SQuAD's shape, ids repeat, or
        answers are missing, invalid or not expected; the text names the
        question or the paragraph.
    """
    counts = collections.Counter() if counts is None else counts
    examples, skipped = [], []
    for where, question, context in _questions(path):
        name, text = question["id"], _text(question, "question", where)
        if is_training and not context.strip():
            counts["skipped_empty_contexts"] += 1
            continue
        try:
            answer = _answer(
                where,
                context,
                question,
                is_training,
                version_2_with_negative,
                counts,
            )
        except _InvalidAnswer:
            if not skip_invalid_answers:
                raise
            skipped.append(name)
            continue
        examples.append(Example(name, text, context, *answer))
    _report_skipped(path, skipped, examples)
    counts.update(questions=len(examples), skipped_invalid_answers=len(skipped))
    return examples


def _questions(path):
    """Yields (place, question, context) of a file, each id once."""
    names = set()
    for where, paragraph, question in squad_scores.iterate_questions(
        path, squad_scores.read_dataset(path)
    ):
        context = _text(paragraph, "context", where)
        where = f"{path}: question {question['id']!r}"
        if question["id"] in names:
            raise errors.UserError(
                f"{where}: this id is repeated; give each question its own"
            )
        names.add(question["id"])
        yield where, question, context


def _text(mapping, key, where):
    """A string that can be written as UTF-8."""
    text = squad_scores.value(mapping, key, str, where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.UserError(
            f"{where}: {key!r} has half a surrogate pair at character "
            f"{error.start}; write the complete character"
        ) from error
    return text


def _answer(
    where, context, question, is_training, version_2_with_negative, counts
):
    """(answer_text, answer_start, is_impossible) of a question."""
    if question.get("is_impossible") is not None:
        squad_scores.value(question, "is_impossible", bool, where)
    answers = []
    if is_training or "answers" in question:
        answers = squad_scores.answers_of(question, where)
    is_impossible = question.get("is_impossible")
    if is_impossible is None:
        is_impossible = is_training and not answers
    if not version_2_with_negative and (
        is_impossible or question.get("plausible_answers")
    ):
        raise errors.UserError(
            f"{where} has no answer, as in SQuAD v2.0; pass "
            "--version_2_with_negative=True or a file of v1.1"
        )
    if not is_training:
        return "", -1, False
    if is_impossible:
        counts["ignored_answers"] += len(answers)
        return "", -1, True
    if not answers:
        raise errors.UserError(
            f"{where} has is_impossible=false and no answers; fix one of them"
        )
    text, start, is_moved = _checked_answer(where, context, answers[0])
    counts["moved_answers"] += is_moved
    for answer in answers[1:]:
        try:
            is_wrong = _checked_answer(where, context, answer)[2]
        except errors.UserError:
            is_wrong = True
        counts["ignored_answers"] += is_wrong
    return text, start, False


def _checked_answer(where, context, answer):
    """(text, start, whether it was moved) of an answer near answer_start."""
    text = squad_scores.value(answer, "text", str, where)
    start = _answer_start(answer, where)
    if text.strip() and start >= 0 and context.startswith(text, start):
        return text, start, False
    near = _nearest(context, text, start)
    if near is not None:
        return context[near : near + len(text.strip())], near, True
    if not text.strip():
        problem = f"the answer {text!r:.50} is empty"
    else:
        first = max(start, 0)
        problem = (
            f"answer_start {start} has "
            f"{context[first : first + len(text)]!r:.50}, expected the answer "
            f"{text!r:.50}"
        )
        if text in context:
            problem += f", which is at {context.find(text)}"
    raise _InvalidAnswer(
        f"{where}: {problem}; fix the file, or skip such questions with "
        "--skip_invalid_answers=True"
    )


def _answer_start(answer, where):
    """answer_start as an int; 15.0 and "15" are 15."""
    start = answer.get("answer_start")
    if (isinstance(start, float) and start.is_integer()) or (
        isinstance(start, str) and re.fullmatch("-?[0-9]{1,9}", start.strip())
    ):
        return int(start)
    return squad_scores.value(answer, "answer_start", int, where)


def _nearest(context, text, start):
    """Where an answer's text is within 2 characters of its start, or None.

    White space around the text does not count, and answer_start may not have
    counted the white space that the text or the context begins with: so are
    all 234 misplaced answers of COVID-QA's 1,380. Kinds of white space, such
    as U+00A0 of a web page and a space, are alike.
    """
    text, context = _WHITE_SPACE.sub(" ", text), _WHITE_SPACE.sub(" ", context)
    core = text.strip()
    offsets = [0] + [len(t) - len(t.lstrip()) for t in (text, context)]
    places = [
        start + offset + distance
        for offset in offsets
        for distance in (0, -1, 1, -2, 2)
    ]
    return next(
        (p for p in places if core and p >= 0 and context.startswith(core, p)),
        None,
    )


def _report_skipped(path, skipped, examples):
    if skipped:
        logging.warning(
            "skipped_invalid_answers=%d of %d questions in %s, the first is %r",
            len(skipped),
            len(skipped) + len(examples),
            path,
            skipped[0],
        )
    if not examples:
        raise errors.UserError(
            f"{path}: every question's answer_start is wrong, or its context "
            "is empty; fix the file"
        )


def convert_examples_to_features(
    examples: typing.Sequence[Example],
    tokenizer: typing.Any,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    is_training: bool,
    num_workers: int = 1,
    counts: typing.Optional[collections.Counter] = None,
    max_answer_length: int = AnswerConfig.max_answer_length,
) -> typing.Iterator[Feature]:
    """Yields a `Feature` for each window of each question, in order.

    With room for 4 tokens and a doc_stride of 2, a context of 7 tokens gives
    windows of tokens 0-3, 2-5 and 4-6: the last is the first that reaches the
    end. Windows without the answer are included.

    Args:
      examples: list of `Example`.
      tokenizer: a `tokenization.RobertaTokenizer`.
      max_seq_length: tokens in a sequence at most.
      doc_stride: tokens from the start of a window to that of the next.
      max_query_length: tokens of a question at most; more are cut off.
      is_training: whether to label the windows.
      num_workers: processes that tokenize; the result is the same.
      counts: its "truncated_questions" and "features" grow, in training also
        "answers_in_no_window" and "long_answers".
      max_answer_length: tokens of an answer beyond which it is a long one.

    Raises:
      errors.UserError: the settings leave no room for context, or would leave
        tokens between two windows; a training question has no answer.
    """
    _check_sizes(max_seq_length, doc_stride, max_query_length, num_workers)
    counts = collections.Counter() if counts is None else counts

    def generate():
        unique_ids = itertools.count()
        encoded = zip(examples, _encode(examples, tokenizer, num_workers))
        for index, (example, (document, query)) in enumerate(encoded):
            counts["truncated_questions"] += len(query) > max_query_length
            query = query[:max_query_length]
            prefix = [tokenizer.bos_id, *query] + [tokenizer.eos_id] * 2
            windows = _windows(
                example, document, max_seq_length, len(query), doc_stride
            )
            counts["features"] += len(windows)
            labels = itertools.repeat((None, None))
            if is_training:
                span = _answer_tokens(example, document)
                labels = _labels(span, windows, len(prefix))
                _count_answer(span, labels, max_answer_length, counts)
            for window, label in zip(windows, labels):
                yield Feature(
                    next(unique_ids), index, document, prefix, *window, *label
                )

    return generate()


def _check_sizes(max_seq_length, doc_stride, max_query_length, num_workers):
    squad_decoding.check_positive(
        doc_stride=doc_stride,
        num_workers=num_workers,
        max_query_length=max_query_length,
    )
    # At least one token of the question and one of the context.
    smallest = _SPECIAL_TOKENS + 2
    if max_seq_length < smallest:
        raise errors.UserError(
            f"--max_seq_length is {max_seq_length}, too short for a question, "
            f"its context and {_SPECIAL_TOKENS} special tokens; use {smallest} "
            "or more"
        )
    room = max_seq_length - _SPECIAL_TOKENS - 1
    if doc_stride > room:
        raise errors.UserError(
            f"--doc_stride is {doc_stride}, but "
            f"--max_seq_length={max_seq_length} has room for {room} tokens of "
            "context at most; use a smaller --doc_stride, such as "
            f"{max(1, room // 2)}"
        )


def _windows(example, document, max_seq_length, query_length, doc_stride):
    """(first token, number of tokens) of each window of a context."""
    room = max_seq_length - query_length - _SPECIAL_TOKENS
    total = len(document.ids)
    if room < 1:
        raise errors.UserError(
            f"question {example.question_id!r} has {query_length} tokens; with "
            f"{_SPECIAL_TOKENS} special tokens no room is left for context in "
            f"--max_seq_length={max_seq_length}; use a --max_query_length of "
            f"{max_seq_length - _SPECIAL_TOKENS - 1} or less, or a larger "
            "--max_seq_length"
        )
    if total <= room:
        return [(0, total)]
    if doc_stride > room:
        raise errors.UserError(
            f"question {example.question_id!r} leaves room for {room} tokens "
            f"of context, but --doc_stride is {doc_stride}, so that tokens "
            f"between two windows would be lost; use --doc_stride={room} or "
            "less, or a smaller --max_query_length"
        )
    last = -(-(total - room) // doc_stride)
    return [
        (k * doc_stride, min(room, total - k * doc_stride))
        for k in range(last + 1)
    ]


def _answer_tokens(example, document):
    """First and last token of the answer, or None when there is none."""
    if example.is_impossible:
        return None
    if example.answer_start < 0:
        raise errors.UserError(
            f"question {example.question_id!r} has no answer to train on; pass "
            "is_training=True to read_examples"
        )
    # A token is part of the answer when it shares a character with it.
    answer_end = example.answer_start + len(example.answer_text)
    first = np.searchsorted(document.ends, example.answer_start, "right")
    last = np.searchsorted(document.starts, answer_end, "left") - 1
    return int(first), int(last)


def _count_answer(span, labels, max_answer_length, counts):
    if span:
        counts["answers_in_no_window"] += not any(map(any, labels))
        counts["long_answers"] += span[1] - span[0] >= max_answer_length


def _labels(span, windows, context_start):
    """Columns of the answer's first and last token in each window."""
    first, last = span or (-1, -1)
    return [
        (first - start + context_start, last - start + context_start)
        if start <= first and last < start + length
        else (0, 0)
        for start, length in windows
    ]


def _encode(examples, tokenizer, num_workers):
    """Yields (Document, ids of the question) of each example."""
    questions = collections.defaultdict(list)  # of each context
    for example in examples:
        questions[example.context].append(example.question)
    groups = list(questions.items())
    chunks = [
        groups[first : first + _CHUNK_SIZE]
        for first in range(0, len(groups), _CHUNK_SIZE)
    ]
    encoded = worker_pool.map_ordered(
        chunks,
        functools.partial,
        (_encode_chunk, tokenizer),
        max(1, min(num_workers, len(chunks))),
    )
    by_context = {
        context: (document, iter(queries))
        for context, (document, queries) in zip(
            questions, itertools.chain.from_iterable(encoded)
        )
    }
    for example in examples:
        document, queries = by_context[example.context]
        yield document, next(queries)


def _encode_chunk(tokenizer, chunk):
    """[(Document, [ids of a question])] of [(context, [question])]."""
    encoded = []
    for context, questions in chunk:
        ids, offsets = tokenizer.encode_with_offsets(context)
        starts, ends = np.array(offsets, np.int32).reshape(-1, 2).T.copy()
        document = Document(np.array(ids, np.int32), starts, ends)
        encoded.append((document, list(map(tokenizer.encode, questions))))
    return encoded
