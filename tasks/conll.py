# SPDX-License-Identifier: Apache-2.0
"""Sentences of labelled words: one word a line, blanks between its columns.

    -DOCSTART- -X- -X- O

    Dol NNP I-NP I-PER
    kufs VBZ I-VP O

A blank line ends a sentence; lines with -DOCSTART- are passed over. Labels of
entities become BIO: B-X begins an entity of the type X, I-X goes on with it,
O is outside of all. Where no label begins with B- or I- they are plain labels,
such as parts of speech.

Source: Tjong Kim Sang and De Meulder 2003, section 2.2 (format, IOB1).
"""

import re
import typing

import numpy as np

from common import errors

DOCUMENT_START = "-DOCSTART-"
OUTSIDE = "O"
_BLANKS = re.compile("[ \t]+")
_OF_ENTITY = re.compile("[BI]-.")
# What a prefix of IOBES or BILOU is in BIO.
_BIO = {"B": "B", "I": "I", "S": "B", "U": "B", "E": "I", "L": "I"}
_MAX_LABELS = 1000


class Sentence(typing.NamedTuple):
    """Words of consecutive lines."""

    path: str
    line: int  # of the first word, from 1
    words: typing.Tuple[str, ...]
    labels: typing.Tuple[str, ...]  # one a word; () where none were read

    def place(self, word):
        """ "file, line 3" of a word, for messages."""
        return f"{self.path}, line {self.line + word}"


def read(path, *, token_column=0, label_column=None):
    """Reads a file.

    Args:
      path: a file; UTF-8, with a byte order mark or without.
      token_column: number of the words' column, from 0; -1 is the last one.
      label_column: that of the labels; None reads no labels.

    Returns:
      list of Sentence, with the labels that the file has.

    Raises:
      errors.UserError: the file has no such columns, or no sentence.
      OSError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            sentences = list(
                _sentences(path, stream, token_column, label_column)
            )
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8 text ({error}); convert it"
        ) from error
    if not sentences:
        raise errors.UserError(
            f"{path} holds no sentence; expected one word a line, with its "
            "columns set apart by blanks"
        )
    return sentences


def _sentences(path, stream, token_column, label_column):
    rows, first, width = [], 1, None
    for number, line in enumerate(stream, 1):
        fields = [field for field in _BLANKS.split(line.rstrip("\n")) if field]
        if not fields or DOCUMENT_START in fields:
            if rows:
                yield _sentence(path, first, rows, token_column, label_column)
            rows = []
            continue
        if width is None:
            width = len(fields)
            _check_columns(path, number, width, token_column, label_column)
        if len(fields) != width:
            raise errors.UserError(
                f"{path}, line {number} has {len(fields)} columns, those "
                f"before it have {width}; expected as many in each line, set "
                "apart by blanks or tabs"
            )
        if not rows:
            first = number
        rows.append(fields)
    if rows:
        yield _sentence(path, first, rows, token_column, label_column)


def _sentence(path, first, rows, token_column, label_column):
    labels = (
        ()
        if label_column is None
        else tuple(fields[label_column] for fields in rows)
    )
    return Sentence(
        path, first, tuple(fields[token_column] for fields in rows), labels
    )


def _check_columns(path, number, width, token_column, label_column):
    for flag, column in (("token", token_column), ("label", label_column)):
        if column is not None and not -width <= column < width:
            raise errors.UserError(
                f"{path}, line {number} has no column {column} "
                f"(--{flag}_column); its columns are 0 to {width - 1}"
            )
    if label_column is not None and (label_column - token_column) % width == 0:
        raise errors.UserError(
            f"{path}, line {number} has words and labels in one and the same "
            f"column of {width} (--token_column={token_column}, "
            f"--label_column={label_column})"
        )


def bio(labels):
    """The labels of one sentence in BIO.

    An entity begins where a label says so, and where the label before is O
    or of another type; so IOB1, IOBES and BILOU all give the entities that
    they mean, and what is BIO stays the same.

    >>> bio(["I-PER", "I-PER", "B-PER", "O", "I-LOC"])
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC']
    """
    found, kind = [], None
    for label in labels:
        prefix, _, new_kind = label.partition("-")
        if label == OUTSIDE:
            found.append(label)
        elif _BIO[prefix] == "B" or new_kind != kind:
            found.append("B-" + new_kind)
        else:
            found.append("I-" + new_kind)
        kind = None if label == OUTSIDE else new_kind
    return found


def to_bio(sentences):
    """Sentences with their labels in BIO.

    Args:
      sentences: list of Sentence, of one file.

    Returns:
      (list of Sentence, what was converted in words or None).

    Raises:
      errors.UserError: there are labels of entities and others.
    """
    if not has_entities(name for one in sentences for name in one.labels):
        return sentences, None
    for one in sentences:
        for word, label in enumerate(one.labels):
            if not _is_of_entity(label):
                raise errors.UserError(
                    f"{one.place(word)} has the label {label!r} among labels "
                    "of entities; expected O, or a type after B- or I- (or "
                    "one of S-, E-, U-, L-)"
                )
    found = [one._replace(labels=tuple(bio(one.labels))) for one in sentences]
    changed = sum(
        old != new
        for one, other in zip(sentences, found)
        for old, new in zip(one.labels, other.labels)
    )
    if not changed:
        return found, None
    return found, (
        f"{sentences[0].path}: labels converted from {_scheme(sentences)} to "
        f"BIO: {changed} of {sum(len(one.labels) for one in sentences)}"
    )


def has_entities(labels):
    """Whether some of them begin with B- or I-."""
    return any(_OF_ENTITY.match(label) for label in labels)


def _is_of_entity(label):
    return label == OUTSIDE or (
        label[:1] in _BIO and label[1:2] == "-" and len(label) > 2
    )


def _scheme(sentences):
    """The name of a scheme that is not BIO.

    IOB1 has B-X only where an entity follows another one of its type.
    """
    prefixes = {label[0] for one in sentences for label in one.labels}
    if prefixes & set("SE"):
        return "IOBES"
    if prefixes & set("UL"):
        return "BILOU"
    for one in sentences:
        for before, label in zip((OUTSIDE,) + one.labels, one.labels):
            if label[0] == "B" and before[1:] != label[1:]:
                return "BIO with entities that begin with I-"
    return "IOB1"


def labels_in(sentences):
    """Names of the labels, sorted; of entities both B-X and I-X, after O.

    Raises:
      errors.UserError: there are fewer than two, or more than labels are.
    """
    names = {label for one in sentences for label in one.labels}
    if not 2 <= len(names) <= _MAX_LABELS:
        raise errors.UserError(
            f"{sentences[0].path} has {len(names)} different labels, such as "
            f"{min(names)!r}; is it the right --label_column?"
        )
    if not has_entities(names):
        return tuple(sorted(names))
    kinds = sorted({name[2:] for name in names - {OUTSIDE}})
    return (OUTSIDE,) + tuple(
        prefix + kind for kind in kinds for prefix in ("B-", "I-")
    )


def label_ids(sentences, names):
    """Labels of all words, one sentence after the other: int32 [words].

    Args:
      sentences: list of Sentence.
      names: of the labels, in the order of their ids.

    Raises:
      errors.UserError: a label is not among them.
    """
    places = {name: place for place, name in enumerate(names)}
    for one in sentences:
        for word, label in enumerate(one.labels):
            if label not in places:
                raise errors.UserError(
                    f"{one.place(word)} has the label {label!r}; expected one "
                    f"of {', '.join(map(repr, names))}"
                )
    return np.array(
        [places[label] for one in sentences for label in one.labels], np.int32
    )


def text_of(sentences):
    """A file of words and labels."""
    return "".join(
        "".join("%s %s\n" % row for row in zip(one.words, one.labels)) + "\n"
        for one in sentences
    )
