# SPDX-License-Identifier: Apache-2.0
"""Sentences of labelled words: one word a line, blanks between its columns.

    -DOCSTART- -X- -X- O

    Dol NNP I-NP I-PER
    kufs VBZ I-VP O

A blank line ends a sentence; lines with -DOCSTART- and comments are skipped. In
CoNLL-U, ten columns with tabs between them, so are lines of a multiword token
(1-2) and of an empty node (8.1), whose words are not in the text. Labels of
entities become BIO: B-X begins an entity of the type X, I-X continues it, O is
outside of all. If no label begins with B- or I-, they are plain labels, such as
parts of speech.

Source: Tjong Kim Sang and De Meulder 2003, section 2.2 (format, IOB1);
universaldependencies.org/format.html (CoNLL-U).
"""

import itertools
import re
import typing

import numpy as np

from common import errors
from tasks import classification, table_files

DOCUMENT_START = "-DOCSTART-"
OUTSIDE = "O"
_FIELD = re.compile("[^ \t\n]+")
_CONLL_U_COLUMNS = 10
_ID = re.compile("[0-9]+([-.][0-9]+)?")  # CoNLL-U's first column
_NOT_A_WORD = re.compile("#|[0-9]+[-.][0-9]")  # such a line of CoNLL-U
# In other files a word may be #: these are comments where they have another
# number of columns, or begin as those of CoNLL-2012 and MultiCoNER do.
_MAY_BE_COMMENT = re.compile(r"#(\s|$|begin |end )")
_COMMENT = re.compile("# (id|sent_id|text|newdoc|newpar) |#(begin|end) doc")
_OF_ENTITY = re.compile("[BI]-.")
# What a prefix of IOBES or BILOU is in BIO.
_BIO = {"B": "B", "I": "I", "S": "B", "U": "B", "E": "I", "L": "I"}


class Sentence(typing.NamedTuple):
    """Words of consecutive lines."""

    path: str
    lines: typing.Sequence[int]  # of each word, from 1
    words: typing.Tuple[str, ...]
    labels: typing.Tuple[str, ...]  # one per word; () if none were read

    def place(self, word: int) -> str:
        """ "file, line 3" of a word, for messages."""
        return f"{self.path}, line {self.lines[word]}"


def read(
    path: str,
    *,
    token_column: typing.Optional[int] = None,
    label_column: typing.Optional[int] = None,
) -> typing.List[Sentence]:
    """Reads a file.

    Args:
      path: a file; UTF-8, with or without a byte order mark.
      token_column: number of the words' column, from 0; -1 is the last one.
        None is 1 in CoNLL-U, else 0.
      label_column: that of the labels; None reads no labels.

    Raises:
      errors.UserError: the file has no such columns, or no sentence.
      OSError: it cannot be read.
    """
    with table_files.open_text(path) as stream:
        rows, is_conll_u = _rows(stream)
    if token_column is None:
        token_column = int(is_conll_u)
    groups = [
        list(group)
        for has_words, group in itertools.groupby(rows, _has_words)
        if has_words
    ]
    if not groups:
        raise errors.UserError(
            f"{path}: no sentence; expected one word per line, with its "
            "columns separated by blanks"
        )
    width = len(groups[0][0][1])
    _check_columns(
        f"{path}, line {groups[0][0][0]}", width, token_column, label_column
    )
    for number, fields in itertools.chain(*groups):
        if len(fields) != width:
            raise errors.UserError(
                f"{path}, line {number}: {len(fields)} columns, but {width} in "
                "the lines before it; expected the same number in each line, "
                "separated by blanks or tabs"
            )

    def column(group, place):
        return tuple(fields[place] for _, fields in group)

    return [
        Sentence(
            path,
            [number for number, _ in group],
            column(group, token_column),
            () if label_column is None else column(group, label_column),
        )
        for group in groups
    ]


def _rows(stream):
    """([(line, columns)] without comments, whether it is CoNLL-U)."""
    lines = [
        (number, line.strip("\n")) for number, line in enumerate(stream, 1)
    ]
    first = next(
        (
            line
            for _, line in lines
            if line.strip() and not _MAY_BE_COMMENT.match(line)
        ),
        "",
    )
    columns = first.split("\t")
    if len(columns) == _CONLL_U_COLUMNS and _ID.fullmatch(columns[0]):
        return [
            (number, line.split("\t") if line.strip() else [])
            for number, line in lines
            if not _NOT_A_WORD.match(line)
        ], True
    width = len(_FIELD.findall(first))
    return [
        (number, fields)
        for number, fields, line in (
            (number, _FIELD.findall(line), line) for number, line in lines
        )
        if not _COMMENT.match(line)
        and (len(fields) == width or not _MAY_BE_COMMENT.match(line))
    ], False


def _has_words(line):
    _, fields = line
    return bool(fields) and DOCUMENT_START not in fields


def _check_columns(place, width, token_column, label_column):
    for flag, column in (("token", token_column), ("label", label_column)):
        if column is not None and not -width <= column < width:
            raise errors.UserError(
                f"{place}: no column {column} (--{flag}_column); the columns "
                f"are 0 to {width - 1}"
            )
    if label_column is not None and (label_column - token_column) % width == 0:
        raise errors.UserError(
            f"{place}: words and labels are in the same column of {width} "
            f"(--token_column={token_column}, --label_column={label_column}); "
            "pass two different ones"
        )


def bio(labels: typing.Iterable[str]) -> typing.List[str]:
    """The labels of one sentence in BIO.

    An entity begins at a label that begins one, and after O or another type;
    so IOB1, IOBES and BILOU keep their entities, and BIO does not change.

    >>> bio(["I-PER", "I-PER", "B-PER", "O", "I-LOC"])
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC']
    """
    converted, last_kind = [], None
    for label in labels:
        prefix, _, kind = label.partition("-")
        if label == OUTSIDE:
            converted.append(label)
        elif kind == last_kind:
            converted.append(f"{_BIO[prefix]}-{kind}")
        else:
            converted.append(f"B-{kind}")
        last_kind = None if label == OUTSIDE else kind
    return converted


def entities(
    labels: typing.Sequence[str],
) -> typing.List[typing.Tuple[str, int, int]]:
    """(type, first word, word after the last) of the entities in BIO.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4)]
    """
    result = []
    for first, label in enumerate(labels):
        if label.startswith("B-"):
            end = first + 1
            while labels[end : end + 1] == ["I" + label[1:]]:
                end += 1
            result.append((label[2:], first, end))
    return result


def to_bio(
    sentences: typing.List[Sentence],
) -> typing.Tuple[typing.List[Sentence], int]:
    """Sentences with their labels in BIO.

    Returns:
      (sentences, how many labels changed).

    Raises:
      errors.UserError: there are labels of entities and others.
    """
    if not has_entities(label for s in sentences for label in s.labels):
        return sentences, 0
    for sentence in sentences:
        for word, label in enumerate(sentence.labels):
            if not is_of_entity(label):
                raise errors.UserError(
                    f"{sentence.place(word)}: label {label!r} among labels of "
                    "entities; expected O, or a type after B- or I- (or one "
                    "of S-, E-, U-, L-)"
                )
    converted = [s._replace(labels=tuple(bio(s.labels))) for s in sentences]
    return converted, sum(
        before != after
        for old, new in zip(sentences, converted)
        for before, after in zip(old.labels, new.labels)
    )


def has_entities(labels: typing.Iterable[str]) -> bool:
    """Whether any label begins with B- or I-."""
    return any(_OF_ENTITY.match(label) for label in labels)


def is_of_entity(label: str) -> bool:
    """Whether a label is O, or a type after B-, I-, S-, E-, U- or L-."""
    return label == OUTSIDE or (
        label[:1] in _BIO and label[1:2] == "-" and len(label) > 2
    )


def labels_in(sentences: typing.Sequence[Sentence]) -> classification.Labels:
    """The labels, sorted; of entities both B-X and I-X, after O.

    Raises:
      errors.UserError: there are fewer than two or more than 1,000.
    """
    names = {label for sentence in sentences for label in sentence.labels}
    if not 2 <= len(names) <= classification.MAX_LABELS:
        raise errors.UserError(
            f"{sentences[0].path}: {len(names)} different labels, such as "
            f"{min(names)!r}; check --label_column"
        )
    if not has_entities(names):
        return classification.Labels(tuple(sorted(names)))
    kinds = sorted({name[2:] for name in names - {OUTSIDE}})
    return classification.Labels(
        (OUTSIDE,)
        + tuple(prefix + kind for kind in kinds for prefix in ("B-", "I-"))
    )


def label_ids(
    sentences: typing.Iterable[Sentence], names: typing.Sequence[str]
) -> np.ndarray:
    """Labels of all words, sentence after sentence: int32 [words].

    Args:
      sentences: with labels.
      names: of all labels, in the order of their ids.

    Raises:
      errors.UserError: a label is not one of the names.
    """
    return classification.label_ids(
        names,
        (
            (label, sentence.place(word))
            for sentence in sentences
            for word, label in enumerate(sentence.labels)
        ),
    )


def text_of(sentences: typing.Iterable[Sentence]) -> str:
    """The text of a file of words and labels."""
    sentences = list(sentences)
    # Words of CoNLL-U may contain blanks.
    has_blanks = any(" " in word for s in sentences for word in s.words)
    blank = "\t" if has_blanks else " "
    return "".join(
        "".join(word + blank + label + "\n" for word, label in zip(*s[2:]))
        + "\n"
        for s in sentences
    )
