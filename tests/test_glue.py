# SPDX-License-Identifier: Apache-2.0
"""GLUE's files, each format by hand, and the server's."""

import pytest

from common import errors
from helpers.glue_files import FORMATS, MRPC_IDS, write, write_task
from tasks import classification, glue

SINGLE = ("CoLA", "SST-2")


@pytest.mark.parametrize("name", glue.TASKS)
def test_each_task_is_read_in_its_own_format(tmp_path, name):
    directory = write_task(tmp_path, name)
    texts = ('Dol "kuf.', None if name in SINGLE else '"Mer')
    label = {
        "STS-B": "3.750",
        "MNLI": "entailment",
        "QNLI": "not_entailment",
        "RTE": "not_entailment",
    }.get(name, "1")
    train = glue.read_train(name, directory)
    evaluation = glue.read_evaluation(name, directory)
    assert [suffix for suffix, _ in evaluation] == (
        ["_matched", "_mismatched"] if name == "MNLI" else [""]
    )
    for (example,) in [train] + [examples for _, examples in evaluation]:
        assert (example.text, example.pair, example.label) == texts + (label,)
    classification.Labels(glue.TASKS[name].labels).ids(train)
    tests = glue.read_test(name, directory)
    assert [submission for submission, _ in tests] == (
        ["MNLI-m.tsv", "MNLI-mm.tsv"] if name == "MNLI" else [name + ".tsv"]
    )
    for _, (example,) in tests:
        assert (
            example.text,
            example.pair,
            example.label,
            example.index,
        ) == texts + (None, "0")


def test_lines_of_qqp_with_too_few_fields_are_counted(tmp_path, caplog):
    header, fields = FORMATS["QQP"]["train.tsv"]
    write(tmp_path / "train.tsv", header, fields[:3], fields)
    assert len(glue.read_train("QQP", str(tmp_path))) == 1
    # A test set has an answer for each row, so none may be left out.
    header, fields = FORMATS["QQP"]["test.tsv"]
    write(tmp_path / "test.tsv", header, fields[:1], fields)
    with pytest.raises(errors.UserError, match="line 2: 1 fields"):
        glue.read_test("QQP", str(tmp_path))


def test_mrpc_as_its_authors_publish_it(tmp_path):
    header = ["Quality"] + MRPC_IDS
    rows = [
        [quality, f"1{n}", f"2{n}", f"dol {n}", '"kuf']
        for n, quality in enumerate("101")
    ]
    write(tmp_path / "msr_paraphrase_train.txt", header, *rows)
    write(tmp_path / "msr_paraphrase_test.txt", header, *rows[:2])
    with pytest.raises(errors.UserError, match="dev_ids.tsv, which lists"):
        glue.read_train("MRPC", str(tmp_path))
    write(tmp_path / "mrpc_dev_ids.tsv", None, ["11", "21"])
    train = glue.read_train("MRPC", str(tmp_path))
    ((_, dev),) = glue.read_evaluation("MRPC", str(tmp_path))
    ((_, test),) = glue.read_test("MRPC", str(tmp_path))
    assert [(e.text, e.label) for e in train] == [
        ("dol 0", "1"),
        ("dol 2", "1"),
    ]
    assert [(e.text, e.label) for e in dev] == [("dol 1", "0")]
    assert [(e.index, e.label) for e in test] == [("0", None), ("1", None)]


@pytest.mark.parametrize(
    "place", ["MNLI/diagnostic.tsv", "diagnostic/diagnostic.tsv", "AX/AX.tsv"]
)
def test_mnli_answers_the_diagnostic_set_where_it_is_found(tmp_path, place):
    directory = write_task(tmp_path / "MNLI", "MNLI")
    write(
        tmp_path / place,
        ["index", "sentence1", "sentence2"],
        ["0", "dol", "kuf"],
    )
    sets = glue.read_test("MNLI", directory)
    assert [name for name, _ in sets] == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    assert sets[2][1][0].pair == "kuf"
    assert glue.read_test("MNLI", directory, str(tmp_path / place)) == sets


def test_submissions_have_the_servers_lines(tmp_path):
    examples = [
        classification.Example(str(n), "dol", None, None, "") for n in range(3)
    ]
    assert glue.submission(
        glue.TASKS["RTE"],
        examples,
        ["entailment", "not_entailment", "entailment"],
    ) == (
        "index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tentailment\n"
    )
    # Scores of STS-B lie between 0 and 5.
    assert glue.submission(
        glue.TASKS["STS-B"], examples, [-0.2, 2.34567, 5.1]
    ) == ("index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n")


def test_files_of_another_task_are_rejected(tmp_path):
    directory = write_task(tmp_path, "RTE")
    with pytest.raises(
        errors.UserError,
        match=("no column 'question'; its columns are 'index', 'sentence1'"),
    ):
        glue.read_train("QNLI", directory)
