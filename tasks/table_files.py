# SPDX-License-Identifier: Apache-2.0
"""Rows of tables: tab-separated, comma-separated, one JSON object per line.

The file name's ending, in either case, decides: .csv has commas and quotes,
.jsonl and .json an object per line, all others tabs. A table with tabs is read
as GLUE writes its files: a quote is a character like any other.
"""

import contextlib
import csv
import dataclasses
import os
import re
import typing

from absl import logging

from common import command_line, errors, files

QUOTING = ("auto", "none", "standard")
ENDINGS = (".tsv", ".csv", ".jsonl", ".json")
# The csv module's limit is 131,072 characters; texts may be longer.
_LONGEST_FIELD = 1 << 30
_QUOTED = re.compile('"(?=.*"")([^"]|"")*"', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ColumnConfig:
    """Flags of every script that reads texts from tables."""

    text_column: str = command_line.flag(
        "text", "The column of the text.", group=command_line.DATA
    )
    text_pair_column: str = command_line.flag(
        "",
        "The column of the second text of a pair. Default: text_b, where the "
        "table has it.",
    )
    index_column: str = command_line.flag(
        "",
        "The column whose value names a row in the predictions. Default: "
        "run_classifier.py counts rows from 0, predict.py takes id, else the "
        "line.",
    )
    quoting: str = command_line.flag(
        "auto",
        "Quotes around fields: standard, none, or auto, which is "
        "standard for .csv and none for .tsv.",
        choices=QUOTING,
    )


class Row(typing.NamedTuple):
    """One row and its line."""

    line: int  # of the file, from 1
    values: typing.Dict[str, typing.Any]  # {column: text, or a value of JSON}


class Table(typing.NamedTuple):
    """The rows of a file.

    Attributes:
      path: the file.
      columns: the names in the header, or in the first object.
      rows: the rows.
      irregular: line numbers of rows that were skipped because their number
        of fields is not the header's.
    """

    path: str
    columns: typing.Tuple[str, ...]
    rows: typing.List[Row]
    irregular: typing.List[int]


def ending(path: str) -> str:
    """The ending of a file's name in lower case: ".csv"."""
    return os.path.splitext(path)[1].lower()


@contextlib.contextmanager
def open_text(
    path: str, newline: typing.Optional[str] = None
) -> typing.Iterator[typing.TextIO]:
    """A stream of a file in UTF-8, with or without a byte order mark.

    Raises:
      errors.UserError: the file is not UTF-8.
    """
    try:
        with files.opened(
            path, encoding="utf-8-sig", newline=newline
        ) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise files.not_utf8(
            path, error, f"not UTF-8 text ({error}); convert it"
        ) from error


def read(
    path: str,
    *,
    header: typing.Optional[typing.Tuple[str, ...]] = None,
    quoting: str = "auto",
    skips_irregular: bool = False,
) -> Table:
    """Reads a table.

    Args:
      path: a file; UTF-8, with or without a byte order mark.
      header: names of the columns of a table without a header line.
      quoting: "none", "standard" (a field in double quotes may contain
        anything, a quote is doubled), or "auto": standard for .csv, none for
        others.
      skips_irregular: whether rows with too few or too many fields are skipped
        and listed; otherwise they are an error.

    Raises:
      errors.UserError: the file is not such a table.
      OSError: it cannot be read.
    """
    if ending(path) in (".jsonl", ".json"):
        table = _read_json(path)
    else:
        with open_text(path, newline="") as stream:
            table = _read_delimited(
                path, stream, header, quoting, skips_irregular
            )
    if not table.rows:
        irregular = (
            f", only {len(table.irregular)} with another number of fields than "
            f"the header (the first one in line {table.irregular[0]})"
            if table.irregular
            else ""
        )
        raise errors.UserError(
            f"{path}: no rows{irregular}; expected at least one"
        )
    return table


def _read_delimited(path, stream, header, quoting, skips_irregular):
    csv.field_size_limit(_LONGEST_FIELD)
    is_csv = ending(path) == ".csv"
    is_quoted = quoting == "standard" or quoting == "auto" and is_csv
    reader = csv.reader(
        stream,
        delimiter="," if is_csv else "\t",
        strict=True,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
    )
    rows, irregular = [], []
    looks_quoted = 0
    try:
        for fields in filter(None, reader):
            if quoting == "auto" and not is_csv:
                looks_quoted += any(map(_QUOTED.fullmatch, fields))
            if header is None:
                header = _header(path, fields)
            elif len(fields) == len(header):
                rows.append(Row(reader.line_num, dict(zip(header, fields))))
            elif skips_irregular:
                irregular.append(reader.line_num)
            else:
                raise errors.UserError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, "
                    f"expected {len(header)} ({', '.join(header)}); fix the "
                    "line, or see --quoting"
                )
    except csv.Error as error:
        raise errors.UserError(
            f"{path}, line {reader.line_num}: {error}; see --quoting"
        ) from error
    if looks_quoted:
        logging.warning(
            "%s: %d rows have text in double quotes with doubled quotes "
            "inside, which are read as they are; pass --quoting=standard if "
            "they are not part of the text",
            path,
            looks_quoted,
        )
    return Table(path, tuple(header or ()), rows, irregular)


def _header(path, fields):
    # Spreadsheets write columns without a name.
    repeated = sorted(
        name for name in fields if name and fields.count(name) > 1
    )
    if repeated:
        raise errors.UserError(
            f"{path}: the column {repeated[0]!r} is twice in the first line; "
            "expected a header with one name per column"
        )
    return tuple(fields)


def _read_json(path):
    rows = [Row(*pair) for pair in files.read_json_lines(path)]
    return Table(path, tuple(rows[0].values) if rows else (), rows, [])


def text_of(table: Table, row: Row, column: str) -> str:
    """The text in a column of a row; a number of JSON as its digits.

    Raises:
      errors.UserError: the column does not exist or has no text.
    """
    if column not in row.values:
        raise errors.UserError(
            f"{table.path}, line {row.line}: no column {column!r}; its columns "
            f"are {', '.join(map(repr, row.values)) or 'none'}"
        )
    value = row.values[column]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (int, float, str)):
        raise errors.UserError(
            f"{table.path}, line {row.line}: {value!r:.40} as {column!r}; "
            "expected a text or a number"
        )
    return str(value)
