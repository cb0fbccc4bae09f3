# SPDX-License-Identifier: Apache-2.0
"""GLUE's files, each format by hand, and the server's."""

import pytest

from common import errors
from tasks import classification, glue

MNLI = (
    "index promptID pairID genre sentence1_binary_parse "
    "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
    "sentence2"
).split()
STS = (
    "index genre filename year old_index source1 source2 sentence1 sentence2"
).split()
MRPC_IDS = ["#1 ID", "#2 ID", "#1 String", "#2 String"]


def row(names, **values):
    """Fields in the order of names, dots where there is no value."""
    return [
        values.get(
            name.replace("#1 String", "a").replace("#2 String", "b"), "."
        )
        for name in names
    ]


# task: {file: (header or None, row)} as GLUE has them, with the same texts.
FORMATS = {
    "CoLA": {
        "train.tsv": (None, ["gj04", "1", "", 'Dol "kuf.']),
        "test.tsv": (["index", "sentence"], ["0", 'Dol "kuf.']),
    },
    "SST-2": {
        "train.tsv": (["sentence", "label"], ['Dol "kuf.', "1"]),
        "test.tsv": (["index", "sentence"], ["0", 'Dol "kuf.']),
    },
    "MRPC": {
        "train.tsv": (
            ["Quality"] + MRPC_IDS,
            ["1", "7", "8", 'Dol "kuf.', '"Mer'],
        ),
        "test.tsv": (
            ["index"] + MRPC_IDS,
            ["0", "7", "8", 'Dol "kuf.', '"Mer'],
        ),
    },
    "STS-B": {
        "train.tsv": (
            STS + ["score"],
            row(
                STS + ["score"],
                sentence1='Dol "kuf.',
                sentence2='"Mer',
                score="3.750",
            ),
        ),
        "test.tsv": (
            STS,
            row(STS, index="0", sentence1='Dol "kuf.', sentence2='"Mer'),
        ),
    },
    "QQP": {
        "train.tsv": (
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            ["5", "8", "9", 'Dol "kuf.', '"Mer', "1"],
        ),
        "test.tsv": (
            ["id", "question1", "question2"],
            ["0", 'Dol "kuf.', '"Mer'],
        ),
    },
    "MNLI": {
        "train.tsv": (
            MNLI + ["label1", "gold_label"],
            row(
                MNLI + ["label1", "gold_label"],
                sentence1='Dol "kuf.',
                sentence2='"Mer',
                label1="neutral",
                gold_label="entailment",
            ),
        ),
        "dev_matched.tsv": (
            MNLI + [f"label{n}" for n in range(1, 6)] + ["gold_label"],
            row(
                MNLI + ["label1", "2", "3", "4", "5", "gold_label"],
                sentence1='Dol "kuf.',
                sentence2='"Mer',
                label1="neutral",
                gold_label="entailment",
            ),
        ),
        "test_matched.tsv": (
            MNLI,
            row(MNLI, index="0", sentence1='Dol "kuf.', sentence2='"Mer'),
        ),
    },
    "QNLI": {
        "train.tsv": (
            ["index", "question", "sentence", "label"],
            ["3", 'Dol "kuf.', '"Mer', "not_entailment"],
        ),
        "test.tsv": (
            ["index", "question", "sentence"],
            ["0", 'Dol "kuf.', '"Mer'],
        ),
    },
    "RTE": {
        "train.tsv": (
            ["index", "sentence1", "sentence2", "label"],
            ["3", 'Dol "kuf.', '"Mer', "not_entailment"],
        ),
        "test.tsv": (
            ["index", "sentence1", "sentence2"],
            ["0", 'Dol "kuf.', '"Mer'],
        ),
    },
    "WNLI": {
        "train.tsv": (
            ["index", "sentence1", "sentence2", "label"],
            ["3", 'Dol "kuf.', '"Mer', "1"],
        ),
        "test.tsv": (
            ["index", "sentence1", "sentence2"],
            ["0", 'Dol "kuf.', '"Mer'],
        ),
    },
}
SINGLE = ("CoLA", "SST-2")


def write(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([header] if header else []) + list(rows)
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def write_task(folder, name):
    for file, (header, fields) in FORMATS[name].items():
        write(folder / file, header, fields)
    for file, like in (
        ("dev.tsv", "train.tsv"),
        ("dev_mismatched.tsv", "dev_matched.tsv"),
        ("test_mismatched.tsv", "test_matched.tsv"),
    ):
        if like in FORMATS[name]:
            write(folder / file, *FORMATS[name][like])
    return str(folder)


def labelled(name):
    """[(file, header, row)] of a task's training and development sets."""
    return [
        (file, *FORMATS[name]["train.tsv"]) for file in ("train.tsv", "dev.tsv")
    ]


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
    with pytest.raises(errors.UserError, match="line 2 has 1 fields"):
        glue.read_test("QQP", str(tmp_path))


def test_mrpc_as_its_authors_publish_it(tmp_path):
    header = ["Quality"] + MRPC_IDS
    rows = [
        [quality, f"1{n}", f"2{n}", f"dol {n}", '"kuf']
        for n, quality in enumerate("101")
    ]
    write(tmp_path / "msr_paraphrase_train.txt", header, *rows)
    write(tmp_path / "msr_paraphrase_test.txt", header, *rows[:2])
    with pytest.raises(errors.UserError, match="dev_ids.tsv, which says"):
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
    found = glue.read_test("MNLI", directory)
    assert [name for name, _ in found] == [
        "MNLI-m.tsv",
        "MNLI-mm.tsv",
        "AX.tsv",
    ]
    assert found[2][1][0].pair == "kuf"
    given = glue.read_test("MNLI", directory, str(tmp_path / place))
    assert given == found


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


def test_files_of_another_task_are_refused(tmp_path):
    directory = write_task(tmp_path, "RTE")
    with pytest.raises(
        errors.UserError,
        match=("no column 'question'; its columns are 'index', 'sentence1'"),
    ):
        glue.read_train("QNLI", directory)
