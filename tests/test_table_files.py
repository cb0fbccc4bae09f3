# SPDX-License-Identifier: Apache-2.0
"""Tables with tabs, commas and JSON lines, and what is wrong with one."""

import pytest

from common import errors
from tasks import table_files


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def values(table):
    return [tuple(row.values.values()) for row in table.rows]


def test_quotes_of_a_table_with_tabs_are_characters(tmp_path):
    path = write(
        tmp_path,
        "a.tsv",
        b'\xef\xbb\xbftext\tlabel\r\n"dol\t1\r\nkuf "mer" zog\t0\r\n\r\n',
    )
    table = table_files.read(path)
    assert table.columns == ("text", "label")  # no byte order mark
    assert values(table) == [('"dol', "1"), ('kuf "mer" zog', "0")]
    assert [row.line for row in table.rows] == [2, 3]


def test_fields_with_commas_may_be_quoted(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"dol, ""kuf""\nmer",1\n')
    assert values(table_files.read(path)) == [('dol, "kuf"\nmer', "1")]
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"dol\tkuf"\t1\n')
    assert values(table_files.read(path, quoting="standard")) == [
        ("dol\tkuf", "1")
    ]


def test_lines_of_json_hold_texts_and_numbers(tmp_path):
    path = write(
        tmp_path,
        "a.jsonl",
        '{"text": "dol", "label": 1}\n\n'
        '{"label": 0.5, "text": "kuf", "more": []}\n'
        '{"text": true, "label": null}\n',
    )
    table = table_files.read(path)
    assert [row.line for row in table.rows] == [1, 3, 4]
    assert [
        table_files.text_of(table, row, "label") for row in table.rows[:2]
    ] == ["1", "0.5"]
    assert table_files.text_of(table, table.rows[2], "text") == "true"
    with pytest.raises(errors.UserError, match=r"line 4: None as 'label'"):
        table_files.text_of(table, table.rows[2], "label")
    with pytest.raises(
        errors.UserError, match=r"no column 'x'; its columns are 'te"
    ):
        table_files.text_of(table, table.rows[0], "x")


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.CSV", '\ufefftext,label\r\n"dol\r\nkuf",1\r\n'),
        ("a.TSV", "\ufefftext\tlabel\r\ndol\r\nkuf\t1\r\n"),
        ("a.JSONL", '\ufeff{"text": "dol\\r\\nkuf", "label": 1}\r\n'),
    ],
)
def test_endings_in_capitals_and_marks_of_windows(tmp_path, name, text):
    text = text.replace("dol\r\nkuf\t", '"dol\r\nkuf"\t')
    table = table_files.read(
        write(tmp_path, name, text),
        quoting="standard" if name == "a.TSV" else "auto",
    )
    (row,) = table.rows
    assert (
        row.values["text"] == "dol\r\nkuf" and str(row.values["label"]) == "1"
    )


@pytest.mark.parametrize(
    "field, warned",
    [('"a ""b"" c"', True), ('"a" "b"', False), ('"ab"', False)],
)
def test_a_table_that_looks_quoted_is_warned_of(
    tmp_path, caplog, field, warned
):
    path = write(tmp_path, "a.tsv", f"text\tlabel\n{field}\t1\n")
    assert values(table_files.read(path)) == [(field, "1")]
    assert ("a.tsv: 1 rows have text in double" in caplog.text) == warned
    caplog.clear()
    table_files.read(path, quoting="none")
    assert not caplog.text


def test_a_header_can_be_given(tmp_path):
    path = write(tmp_path, "a.tsv", "dol\t1\n")
    table = table_files.read(path, header=("text", "label"))
    assert values(table) == [("dol", "1")]


def test_rows_of_another_width_are_skipped_or_rejected(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tlabel\ndol\nkuf\t1\nmer\t1\t2\n")
    table = table_files.read(path, skips_irregular=True)
    assert values(table) == [("kuf", "1")] and table.irregular == [2, 4]
    with pytest.raises(
        errors.UserError,
        match=(r"a.tsv, line 2: 1 fields, expected 2 .*text, label"),
    ):
        table_files.read(path)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.tsv", "", "no rows; expected"),
        ("a.tsv", "text\tlabel\n", "no rows; expected"),
        ("a.tsv", "a\tb\n1\n", "only 1 with another number of fields"),
        ("a.tsv", "a\ta\n1\t2\n", "column 'a' is twice"),
        ("a.tsv", b"a\tb\n\xff\t1\n", "not UTF-8 text"),
        ("a.csv", 'a,b\n"x"y,1\n', "line 2: .*; see --quoting"),
        ("a.jsonl", "{}\n{\n", "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: a JSON list, expected an object"),
    ],
)
def test_other_files_are_rejected(tmp_path, name, text, message):
    with pytest.raises(errors.UserError, match=message):
        table_files.read(write(tmp_path, name, text), skips_irregular=True)


def test_columns_without_a_name_are_ignored(tmp_path):
    path = tmp_path / "spam.csv"
    path.write_text('v1,v2,,,\nham,"Go, now",,,\n')
    (row,) = table_files.read(str(path)).rows
    assert row.values["v2"] == "Go, now"
