# SPDX-License-Identifier: Apache-2.0
"""Rows of tables: tab-separated, comma-separated, one JSON object a line.

The ending tells which: .csv has commas and quotes, .jsonl and .json hold an
object a line, everything else has tabs. A table with tabs is read as GLUE's
files are written: a quote is a character like any other.
"""

import csv
import typing

from common import errors, files

QUOTING = ("auto", "none", "standard")
# The csv module refuses fields longer than it is told; texts may be long.
_LONGEST_FIELD = 1 << 30


class Row(typing.NamedTuple):
    """One row, and where it stands."""

    line: int  # of the file, from 1
    values: dict  # {column: text, or what JSON holds}


class Table(typing.NamedTuple):
    """The rows of a file.

    Attributes:
      path: the file.
      columns: the names that the header, or the first object, has.
      rows: list of Row.
      irregular: line numbers of rows that were left out because their number
        of fields is not the header's.
    """

    path: str
    columns: typing.Tuple[str, ...]
    rows: list
    irregular: list


def read(path, *, header=None, quoting="auto", skips_irregular=False):
    """Reads a table.

    Args:
      path: a file; UTF-8, with a byte order mark or without.
      header: names of the columns of a table that has no header line.
      quoting: "none", "standard" (a field in double quotes may hold anything,
        a quote is doubled), or "auto": standard for .csv, none for others.
      skips_irregular: whether rows with too few or too many fields are left
        out and listed; else they are an error.

    Raises:
      errors.UserError: the file is not such a table.
      OSError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            if path.endswith((".jsonl", ".json")):
                table = _read_json(path, stream)
            else:
                table = _read_delimited(
                    path, stream, header, quoting, skips_irregular
                )
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8 text ({error}); convert it"
        ) from error
    if not table.rows:
        raise errors.UserError(
            "%s holds no row%s; expected at least one"
            % (
                path,
                f", only {len(table.irregular)} of another number of fields "
                f"than its header (line {table.irregular[0]} first)"
                if table.irregular
                else "",
            )
        )
    return table


def _read_delimited(path, stream, header, quoting, skips_irregular):
    csv.field_size_limit(_LONGEST_FIELD)
    is_csv = path.endswith(".csv")
    plain = quoting == "none" or quoting == "auto" and not is_csv
    reader = csv.reader(
        stream,
        delimiter="," if is_csv else "\t",
        strict=True,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )
    rows, irregular = [], []
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = _header(path, fields)
            elif len(fields) == len(header):
                rows.append(Row(reader.line_num, dict(zip(header, fields))))
            elif skips_irregular:
                irregular.append(reader.line_num)
            else:
                raise errors.UserError(
                    "%s, line %d has %d fields, but %d columns are expected "
                    "(%s); mend the line%s"
                    % (
                        path,
                        reader.line_num,
                        len(fields),
                        len(header),
                        ", ".join(header),
                        ", or read quoted fields with --quoting=standard"
                        if plain
                        else "",
                    )
                )
    except csv.Error as error:
        raise errors.UserError(
            f"{path}, line {reader.line_num} cannot be read: {error}; see "
            "--quoting"
        ) from error
    return Table(path, tuple(header or ()), rows, irregular)


def _header(path, fields):
    twice = {name for name in fields if fields.count(name) > 1}
    if twice:
        raise errors.UserError(
            f"{path} has the column {sorted(twice)[0]!r} twice in its first "
            "line; expected a header with one name a column"
        )
    return tuple(fields)


def _read_json(path, stream):
    rows = []
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            values = files.loads(line)
        except ValueError as error:
            raise errors.UserError(
                f"{path}, line {number} is not JSON ({error}); expected one "
                "object a line"
            ) from error
        if not isinstance(values, dict):
            raise errors.UserError(
                f"{path}, line {number} is no JSON object; expected "
                '{{"column": value, ...}}'
            )
        rows.append(Row(number, values))
    return Table(path, tuple(rows[0].values) if rows else (), rows, [])


def text_of(table, row, column):
    """The text in a column of a row; a number of JSON as its digits.

    Raises:
      errors.UserError: there is no such column, or no text in it.
    """
    if column not in row.values:
        raise errors.UserError(
            f"{table.path}, line {row.line} has no column {column!r}; it has "
            f"{', '.join(repr(name) for name in row.values) or 'none'}"
        )
    value = row.values[column]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise errors.UserError(
            f"{table.path}, line {row.line} has {value!r:.40} as {column!r}; "
            "expected a text or a number"
        )
    return value
