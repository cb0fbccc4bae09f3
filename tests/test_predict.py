# SPDX-License-Identifier: Apache-2.0
"""Tests of predict.py: what goes in, what comes out, and the prompt.

Its command line runs in test_end_to_end.py.
"""

import csv
import io
import json
import os
import pty

import numpy as np
import pytest

import predict
from common import errors
from helpers import forked, tiny
from inference import predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.write_trained(path, ["question_answering", "masked_lm"])
    return str(path)


@pytest.fixture(scope="module")
def reader(folder):
    return predictor.Predictor(folder, "answer")


def items_of(tmp_path, name, text, task, **flags):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return predict.read_items(
        task, str(path), False, predict.PredictConfig(**flags)
    )


def test_a_line_is_a_text(tmp_path):
    assert items_of(tmp_path, "a.txt", "One.\n\nZwei – \n", "embed") == [
        predict.Item("1", "One."),
        predict.Item("3", "Zwei – "),
    ]


def test_json_lines_name_their_parts(tmp_path):
    lines = [
        '{"id": "a", "question": "Q", "context": "C"}',
        '{"question": "R", "text": "D"}',
    ]
    assert items_of(tmp_path, "a.jsonl", "\n".join(lines), "answer") == [
        predict.Item("a", "C", question="Q"),
        predict.Item("2", "D", question="R"),
    ]
    assert items_of(
        tmp_path, "b.jsonl", '{"text": "A", "text_b": "B"}', "classify"
    ) == [predict.Item("1", "A", "B")]


CSV = '\ufeffq,text,text_b,id\r\nA?,"Dol, ""kuf""\r\nmer",B,a1\r\nC?,zog,,7\r\n'


def test_tables_are_read_by_their_columns(tmp_path):
    first, second = 'Dol, "kuf"\r\nmer', "zog"
    assert items_of(tmp_path, "a.CSV", CSV, "classify") == [
        predict.Item("a1", first, "B"),
        predict.Item("7", second, ""),
    ]
    assert items_of(
        tmp_path,
        "a.csv",
        CSV,
        "classify",
        text_column="q",
        text_pair_column="text",
        index_column="text_b",
    ) == [predict.Item("B", "A?", first), predict.Item("4", "C?", second)]
    assert items_of(tmp_path, "a.csv", CSV, "embed")[0] == predict.Item(
        "a1", first
    )
    table = "question\tcontext\ttext\nWho?\tDol.\tno\n"
    assert items_of(tmp_path, "a.tsv", table, "answer") == [
        predict.Item("2", "Dol.", question="Who?")
    ]


@pytest.mark.parametrize(
    "name, columns, rows, first",
    [
        (
            "covid_sim_cut.csv",
            {"text_column": "question_1", "text_pair_column": "question_2"},
            None,
            ("What is a novel coronavirus?", "What is a new coronavirus?"),
        ),
        ("farm_regr_quoted.tsv", {"quoting": "standard"}, None, None),
    ],
)
def test_tables_of_users_have_no_header_among_their_texts(
    shared, name, columns, rows, first
):
    path = str(shared / "cases" / "tables" / name)
    options = predict.PredictConfig(**columns)
    items = predict.read_items("classify", path, False, options)
    lines = (shared / "cases" / "tables" / name).read_text("utf-8").splitlines()
    assert len(items) == len(lines) - 1
    if first:
        assert items[0][1:3] == first
    assert not any(item.text.startswith('"') for item in items)


def test_words_of_conll_are_one_text(tmp_path):
    assert items_of(tmp_path, "a.conll", "Dol O\nkufs O\n\nmer O\n", "tag") == [
        predict.Item("1", "Dol kufs", words=("Dol", "kufs")),
        predict.Item("2", "mer", words=("mer",)),
    ]
    (item,) = items_of(tmp_path, "a.txt", "O Dol\n", "tag", token_column=1)
    assert item.words == ("Dol",)
    assert items_of(tmp_path, "a.txt", "O Dol\n", "tag") == [
        predict.Item("1", "O Dol")
    ]


def table_of(tmp_path, results, name="a.csv"):
    path = tmp_path / name
    predict.write_results(results, str(path))
    with path.open(encoding="utf-8", newline="") as stream:
        delimiter = "," if name.lower().endswith(".csv") else "\t"
        return list(csv.reader(stream, delimiter=delimiter))


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv"])
def test_results_can_be_a_table(tmp_path, name):
    results = [
        {
            "id": str(number),
            "label": 'A, "b"\té\n',
            "scores": {"A": 0.5, "B": 0.25},
            "start": None,
            "nbest": [{"text": "x"}],
            "labels": ["A"],
        }
        for number in range(2)
    ]
    row = ['A, "b"\té\n', "0.5", "0.25", "", '["A"]']
    assert table_of(tmp_path, results, name) == [
        ["id", "label", "scores.A", "scores.B", "start", "labels"],
        ["0"] + row,
        ["1"] + row,
    ]


def test_a_table_of_labels_has_a_row_per_word(tmp_path):
    part = {"word": "Dol", "start": 0, "end": 3, "label": "O", "score": 0.5}
    results = [{"id": "7", "words": [part, part], "entities": []}]
    row = ["7", "Dol", "0", "3", "O", "0.5"]
    assert table_of(tmp_path, results)[1:] == [row, row]


def test_a_question_on_an_empty_text_has_no_answer(reader):
    items = [predict.Item("1", "Dol.", question="Who?")] * 2
    items[1] = items[1]._replace(name="2", text="")
    first, second = predict.predict(reader, items)
    assert first["answer"] and second["answer"] == ""


def test_no_bar_is_written_to_a_pipe(reader, capsys):
    items = [predict.Item("1", "Dol.", question="Who?")] * 2
    assert len(list(predict.predict_all(reader, items))) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name, text, task, words",
    [
        ("a.txt", "\n", "embed", "no input"),
        ("a.jsonl", "{", "embed", "line 1: not JSON"),
        ("a.jsonl", '"a"', "embed", "a JSON str, expected an object"),
        ("a.jsonl", '{"text": null}', "embed", "line 1: no text in 'text'"),
        ("a.jsonl", '{"text": [3]}', "embed", "expected a text or a number"),
        ("a.jsonl", '{"text": "a"}', "answer", "no text in 'question'"),
        (
            "a.csv",
            "a,b\n1,2\n",
            "classify",
            "the columns are 'a', 'b'; see --t",
        ),
        ("a.conllu", "\n", "tag", "no sentence"),
        ("a.tsv", "text\n", "embed", "no rows"),
        (
            "a.jsonl",
            '{"text": "a", "id": 1}\n' * 2,
            "embed",
            "the id '1' is repeated",
        ),
        ("a.json", "[]", "answer", "SQuAD"),
    ],
)
def test_bad_input_is_named(tmp_path, name, text, task, words):
    with pytest.raises(errors.UserError) as caught:
        items_of(tmp_path, name, text, task)
    assert words in str(caught.value) and name in str(caught.value)


def test_bad_input_is_named_before_the_model_loads(tmp_path, forked):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    command = ("predict.py", "classify", "--model=missing")
    log = forked(*command, code=1, input_file=path)
    assert "no text in 'text'" in log


@pytest.mark.parametrize(
    "task, values, words",
    [
        ("answer", {"text": "a"}, "only one"),
        ("embed", {"text": "a", "question": "b"}, "is for the task answer"),
        ("answer", {"text": "a", "question": "b", "text_b": "c"}, "classify"),
        ("embed", {"text": "a", "output_file": "a.txt"}, ".npy"),
    ],
)
def test_flags_of_another_task_are_rejected(task, values, words):
    with pytest.raises(errors.UserError, match=words):
        predict.check_flags(
            task, predict.PredictConfig(**values), predictor.Settings()
        )


@pytest.mark.parametrize(
    "task, values, words",
    [
        ("classify", {"pooling": "first"}, "--pooling: is for the task embed"),
        ("embed", {"num_answers": 2}, "--num_answers: is for the task answer"),
    ],
)
def test_settings_of_another_task_are_rejected(task, values, words):
    options = predict.PredictConfig(text="a")
    with pytest.raises(errors.UserError, match=words):
        predict.check_flags(task, options, predictor.Settings(**values))


@pytest.mark.parametrize(
    "values", [{"input_file": "a", "text": "b"}, {"output_file": "a"}]
)
def test_one_kind_of_input_is_needed(values):
    with pytest.raises(errors.UserError, match="given"):
        predict.PredictConfig(**values)


def test_results_are_lines_or_one_object(tmp_path, reader, capsys):
    items = [
        predict.Item(str(n), f"Town {n}", question="Where?") for n in range(3)
    ]
    results = list(predict.predict_all(reader, items))
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    for path in (lines, whole, ""):
        predict.write_results(results, str(path))
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert written == results
    assert capsys.readouterr().out == lines.read_text()
    assert json.loads(whole.read_text()) == {
        result["id"]: result["answer"] for result in results
    }


def test_no_deprecation_warnings_are_shown(folder, forked):
    log = forked("predict.py", "embed", model=folder, text="ab")
    assert "deprecated" not in log and "Instructions" not in log


def test_a_file_appears_when_it_is_complete(tmp_path):
    def broken():
        yield {"id": "1"}
        raise errors.UserError("the second text is too long")

    with pytest.raises(errors.UserError, match="second"):
        predict.write_results(broken(), str(tmp_path / "a.jsonl"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pooling, rows", [("mean", [1, 1]), ("tokens", [5, 4])]
)
def test_vectors_have_an_index(tmp_path, folder, pooling, rows):
    model = predictor.Predictor(
        folder, "embed", predictor.Settings(pooling=pooling)
    )
    items = [predict.Item("a", "abc"), predict.Item("b", "de")]
    predict.write_results(
        predict.predict_all(model, items), str(tmp_path / "v.npy")
    )
    vectors = np.load(str(tmp_path / "v.npy"))
    index = [
        json.loads(line)
        for line in (tmp_path / "v.jsonl").read_text().splitlines()
    ]
    assert vectors.dtype == np.float32 and vectors.shape == (sum(rows), 32)
    assert [(line["id"], line["row"], line["rows"]) for line in index] == [
        ("a", 0, rows[0]),
        ("b", rows[0], rows[1]),
    ]
    assert ("tokens" in index[0]) == (pooling == "tokens")
    second = vectors[rows[0] :]
    np.testing.assert_allclose(
        second if pooling == "tokens" else second[0],
        model.embed("de"),
        atol=1e-5,
    )


def test_the_prompt_answers_every_question_on_the_text_entered(
    reader, monkeypatch, capsys
):
    first, second = "Town 1 lies here.", "Town 2."
    lines = ["", first, "Where?", "What?", "", second, "Who?", "Which?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    predict.converse(reader)
    asked = [
        (first, "Where?"),
        (first, "What?"),
        (second, "Who?"),
        (second, "Which?"),
    ]
    assert capsys.readouterr().out.splitlines() == [
        line
        for text, question in asked
        for line in predict.readable(reader.answer(question, text))
    ]


def test_an_answer_without_rivals_has_no_share():
    result = {
        "answer": "1740",
        "answers": [{"text": "1740", "probability": 1.0, "start": 3, "end": 7}],
    }
    assert predict.readable(result) == ["answer: 1740", "1740  [3:7]"]
    rival = {"text": "1691", "probability": 0.25, "start": 20, "end": 24}
    result["answers"][0]["probability"] = 0.75
    result["answers"].append(rival)
    assert predict.readable(result)[1:] == [
        " 75.0 %  1740  [3:7]",
        " 25.0 %  1691  [20:24]",
    ]


def test_a_terminal_shows_an_answer_as_the_prompt_does(folder, reader):
    reading_end, writing_end = pty.openpty()
    with open(os.ttyname(writing_end), "w") as terminal:
        process = forked.Process(
            tiny.command(
                "predict.py",
                ["answer"],
                model=folder,
                question="Where?",
                text="Town 1 lies here.",
            ),
            tiny.environment(npu=False),
            terminal,
            terminal,
        )
        assert process.wait() == 0
    shown = os.read(reading_end, 1 << 16).decode().splitlines()
    os.close(reading_end)
    os.close(writing_end)
    expected = predict.readable(reader.answer("Where?", "Town 1 lies here."))
    assert shown[-len(expected) :] == expected


def test_the_prompt_continues_after_a_mistake(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("no place\nab <mask>\n"))
    predict.converse(predictor.Predictor(folder, "fill-mask"))
    first, second, words = capsys.readouterr().out.splitlines()
    assert first.startswith("error: ") and second.startswith("ab")
    assert words.count("%") == 5


def test_the_prompt_takes_a_pair_with_a_tab_in_it(
    tmp_path, monkeypatch, capsys
):
    tiny.write_trained(tmp_path, ["classification"])
    model = predictor.Predictor(str(tmp_path), "classify")
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\tcd\nab cd\n"))
    predict.converse(model)
    lines = capsys.readouterr().out.splitlines()
    expected = [
        predict.readable(model.classify(*texts))
        for texts in (("ab", "cd"), ("ab cd",))
    ]
    assert lines == expected[0] + expected[1]
    assert expected[0] != expected[1]


@pytest.mark.parametrize(
    "arguments",
    [["predict.py"], ["predict.py", "guess"], ["predict.py", "answer", "more"]],
)
def test_the_task_is_the_first_argument(arguments):
    with pytest.raises(errors.UserError, match="python predict.py answer"):
        predict.main(arguments)


@pytest.mark.parametrize(
    "encoding, shown",
    [("utf-8", '{"id": "\u00e9"}'), ("ascii", '{"id": "\\u00e9"}')],
)
def test_characters_that_an_output_lacks_are_escaped(
    monkeypatch, encoding, shown
):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    predict.write_results([{"id": "\u00e9"}], "")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == shown + "\n"


def test_an_input_of_another_encoding_is_named(monkeypatch):
    monkeypatch.setattr(
        "sys.stdin",
        io.TextIOWrapper(
            io.BytesIO("\u00e9\n".encode("utf-8")), encoding="ascii"
        ),
    )
    with pytest.raises(errors.UserError, match="PYTHONIOENCODING=utf-8"):
        predict._ask("")


def test_half_a_surrogate_pair_is_escaped(tmp_path):
    for name in ("a.jsonl", "a.json"):
        path = tmp_path / name
        predict.write_results([{"id": "\ud800", "answer": "\u00e9"}], str(path))
        assert "\\ud800" in path.read_text("utf-8")
