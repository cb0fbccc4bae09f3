# SPDX-License-Identifier: Apache-2.0
"""SQuAD: questions in, windows for the model, answers out.

A context is tokenized whole and once, each token with its characters in the
context. It is cut into windows that overlap, one feature each:

    <s> question </s></s> window of the context </s>

Labels are found by characters, and `decode` (squad_decoding.py) cuts answers
by characters, so that an answer is the exact text between two of them.

Source: google-research/bert, run_squad.py (windows and labels); fairseq's
RoBERTa, hub_interface.py (layout of a pair).
"""

import collections
import dataclasses
import functools
import typing

import numpy as np
from absl import logging

from common import command_line, errors, worker_pool
from question_answering import squad_scores
from question_answering.squad_decoding import decode  # noqa: F401, a part of this interface

# <s> before the question, </s></s> after it, </s> at the end.
_SPECIAL_TOKENS = 4
# Examples in one piece of work for a process.
_CHUNK_SIZE = 256


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """Flags of every script that answers questions."""

    max_query_length: int = command_line.flag(
        64, "Tokens of a question; more are cut off.", lower=1
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


class Feature:
    """One window of one question's context.

    Attributes:
      unique_id: number of the feature, from 0.
      example_index: position of its question in the examples.
      document: the whole context's tokens.
      prefix: ids of `<s> question </s></s>`.
      doc_start: the window's first token in the document.
      doc_length: the window's number of tokens.
      start_position: column of the answer's first token, 0 when the window
        does not hold the whole answer, None for prediction.
      end_position: the same for its last token.
    """

    __slots__ = (
        "unique_id",
        "example_index",
        "document",
        "prefix",
        "doc_start",
        "doc_length",
        "start_position",
        "end_position",
    )

    def __init__(
        self,
        unique_id,
        example_index,
        document,
        prefix,
        doc_start,
        doc_length,
        start_position,
        end_position,
    ):
        self.unique_id = unique_id
        self.example_index = example_index
        self.document = document
        self.prefix = prefix
        self.doc_start = doc_start
        self.doc_length = doc_length
        self.start_position = start_position
        self.end_position = end_position

    @property
    def input_ids(self):
        """All ids of the sequence as a list, not padded."""
        first = self.doc_start
        window = self.document.ids[first : first + self.doc_length]
        return self.prefix + window.tolist() + self.prefix[-1:]

    @property
    def context_start(self):
        """Column of the window's first token."""
        return len(self.prefix)

    @property
    def length(self):
        """Number of ids in `input_ids`."""
        return len(self.prefix) + self.doc_length + 1


class _InvalidAnswer(errors.UserError):
    """An answer that is not where the file says."""


def read_examples(
    path,
    is_training,
    version_2_with_negative,
    skip_invalid_answers=False,
    counts=None,
):
    """The questions of a SQuAD file.

    Args:
      path: a JSON file in the format of SQuAD v1.1 or v2.0.
      is_training: whether answers are needed; without, they are not looked at.
      version_2_with_negative: whether questions may have no answer.
      skip_invalid_answers: leave out a question whose answer_start does not
        hold its answer's text, instead of raising an error.
      counts: a collections.Counter, whose "questions" and
        "skipped_invalid_answers" grow by what was read and left out.

    Returns:
      A list of `Example`; the first of several answers counts.

    Raises:
      errors.UserError: the file is not of SQuAD's shape, ids repeat, or
        answers are missing, invalid or not expected; the text names the
        question or the paragraph.
    """
    examples, seen, skipped = [], set(), []
    document = squad_scores.read_json(path, "a SQuAD file")
    for where, paragraph, question in squad_scores.iterate_questions(
        path, document
    ):
        context = _text(paragraph, "context", where)
        where = f"{path}: question {question['id']!r}"
        if question["id"] in seen:
            raise errors.UserError(
                f"{where} is there twice; each question needs an id of its own"
            )
        seen.add(question["id"])
        if not context.strip():
            raise errors.UserError(
                f"{where} has an empty context, in which no answer can be"
            )
        try:
            answer = _answer(
                where, context, question, is_training, version_2_with_negative
            )
        except _InvalidAnswer:
            if not skip_invalid_answers:
                raise
            skipped.append(question["id"])
            continue
        examples.append(
            Example(
                question["id"],
                _text(question, "question", where),
                context,
                *answer,
            )
        )
    _report_skipped(path, skipped, examples)
    if counts is not None:
        counts.update(
            questions=len(examples), skipped_invalid_answers=len(skipped)
        )
    return examples


def _text(mapping, key, where):
    """A string that can be written as UTF-8."""
    text = squad_scores.value(mapping, key, str, where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.UserError(
            f"{where}: {key!r} has half a surrogate pair at character "
            f"{error.start}; write the whole character"
        ) from error
    return text


def _answer(where, context, question, is_training, version_2_with_negative):
    """(answer_text, answer_start, is_impossible) of a question."""
    if "is_impossible" in question:
        squad_scores.value(question, "is_impossible", bool, where)
    answers = []
    if is_training or "answers" in question:
        answers = squad_scores.value(question, "answers", list, where)
    is_impossible = question.get("is_impossible", is_training and not answers)
    if not version_2_with_negative and (
        is_impossible or question.get("plausible_answers")
    ):
        raise errors.UserError(
            f"{where} has no answer, as in SQuAD v2.0; give "
            "--version_2_with_negative=True, or a file of v1.1"
        )
    if not is_training:
        return "", -1, False
    if is_impossible != (not answers):
        raise errors.UserError(
            f"{where} has is_impossible={str(is_impossible).lower()} and "
            f"{len(answers)} answers; either must be mended"
        )
    checked = [_checked_answer(where, context, answer) for answer in answers]
    return checked[0] + (False,) if checked else ("", -1, True)


def _checked_answer(where, context, answer):
    """(text, start) of an answer that stands in the context."""
    text = squad_scores.value(answer, "text", str, where)
    start = squad_scores.value(answer, "answer_start", int, where)
    found = context[max(start, 0) : max(start, 0) + len(text)]
    if start >= 0 and text.strip() and found == text:
        return text, start
    if not text.strip():
        raise _InvalidAnswer(
            f"{where} has an empty answer, {text!r:.50}; mend the file, or "
            "leave such questions out with --skip_invalid_answers=True"
        )
    place = context.find(text)
    raise _InvalidAnswer(
        f"{where}: at answer_start {start} stands {found!r:.50}, not the "
        "answer "
        f"{text!r:.50}{('' if place < 0 else ' (which stands at %d)' % place)}; "
        "mend the file, or leave such questions out with "
        "--skip_invalid_answers=True"
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
            f"{path}: every question's answer_start is wrong; nothing is left"
        )


def convert_examples_to_features(
    examples,
    tokenizer,
    max_seq_length,
    doc_stride,
    max_query_length,
    is_training,
    num_workers=1,
    counts=None,
):
    """Yields the windows of all questions, in order.

    With room for 4 tokens and a doc_stride of 2, a context of 7 tokens gives
    windows of tokens 0-3, 2-5 and 4-6: the last is the first that reaches the
    end. Every window is given, also those without the answer.

    Args:
      examples: list of `Example`.
      tokenizer: a `tokenization.RobertaTokenizer`.
      max_seq_length: tokens in a sequence at most.
      doc_stride: tokens from one window's begin to the next one's.
      max_query_length: tokens of a question at most; more are cut off.
      is_training: whether to label the windows.
      num_workers: processes that tokenize; the result is the same.
      counts: a collections.Counter, whose "truncated_questions" and "features"
        grow.

    Returns:
      An iterator of `Feature`.

    Raises:
      errors.UserError: the settings leave no room for context, or would leave
        tokens between two windows; a training question has no answer.
    """
    _check_settings(max_seq_length, doc_stride, max_query_length, num_workers)
    counts = collections.Counter() if counts is None else counts

    def generate():
        unique_id = 0
        encoded = _encode(examples, tokenizer, num_workers)
        for index, (example, document, query) in enumerate(encoded):
            counts["truncated_questions"] += len(query) > max_query_length
            query = query[:max_query_length]
            prefix = (
                [tokenizer.bos_id]
                + query
                + [tokenizer.eos_id, tokenizer.eos_id]
            )
            span = _answer_tokens(example, document) if is_training else None
            for window in _windows(
                example, document, max_seq_length, len(query), doc_stride
            ):
                label = (
                    _label(span, len(prefix), *window)
                    if is_training
                    else (None, None)
                )
                counts["features"] += 1
                yield Feature(
                    unique_id, index, document, prefix, *window, *label
                )
                unique_id += 1

    return generate()


def _check_settings(max_seq_length, doc_stride, max_query_length, num_workers):
    for name, number in (
        ("doc_stride", doc_stride),
        ("num_workers", num_workers),
        ("max_query_length", max_query_length),
    ):
        if number < 1:
            raise errors.UserError(f"--{name} is {number}; use 1 or more")
    # At least one token of the question and one of the context.
    smallest = _SPECIAL_TOKENS + 2
    if max_seq_length < smallest:
        raise errors.UserError(
            f"--max_seq_length is {max_seq_length}, but a question and its "
            f"context with {_SPECIAL_TOKENS} special tokens need more; use "
            f"{smallest} at the very least"
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
            f"{max_seq_length - _SPECIAL_TOKENS - 1} or less, or a longer "
            "sequence"
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
            f"question {example.question_id!r} has no answer to train on; read "
            "the file with is_training"
        )
    # A token belongs to the answer when it shares a character with it.
    answer_end = example.answer_start + len(example.answer_text)
    first = np.searchsorted(document.ends, example.answer_start, "right")
    last = np.searchsorted(document.starts, answer_end, "left") - 1
    return int(first), int(last)


def _label(span, context_start, doc_start, doc_length):
    """Columns of the answer's first and last token in a window."""
    if span is None:
        return 0, 0
    first, last = span
    if first < doc_start or last >= doc_start + doc_length:
        return 0, 0
    return (first - doc_start + context_start, last - doc_start + context_start)


def _chunks(examples):
    """Pieces of work: (contexts not met before, questions)."""
    seen = set()
    for first in range(0, len(examples), _CHUNK_SIZE):
        chunk = examples[first : first + _CHUNK_SIZE]
        contexts = list(
            dict.fromkeys(e.context for e in chunk if e.context not in seen)
        )
        seen.update(contexts)
        yield contexts, [e.question for e in chunk]


def _encode(examples, tokenizer, num_workers):
    """Yields (example, its Document, ids of its question), in order."""
    chunks = list(_chunks(examples))
    remaining = iter(examples)
    documents = {}
    results = worker_pool.map_ordered(
        chunks,
        _chunk_encoder,
        (tokenizer,),
        max(1, min(num_workers, len(chunks))),
    )
    for (contexts, _), (new_documents, queries) in zip(chunks, results):
        documents.update(zip(contexts, new_documents))
        # The query first: zip must not take an example and then stop.
        for query, example in zip(queries, remaining):
            yield example, documents[example.context], query


def _chunk_encoder(tokenizer):
    """`_encode_chunk` with a tokenizer, for a worker process."""
    return functools.partial(_encode_chunk, tokenizer)


def _encode_chunk(tokenizer, chunk):
    """([Document], [ids of a question]) of a chunk."""
    contexts, questions = chunk
    documents = []
    for context in contexts:
        ids, offsets = tokenizer.encode_with_offsets(context)
        starts, ends = np.array(offsets, np.int32).reshape(-1, 2).T.copy()
        documents.append(Document(np.array(ids, np.int32), starts, ends))
    return documents, [tokenizer.encode(question) for question in questions]
