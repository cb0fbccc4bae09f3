# SPDX-License-Identifier: Apache-2.0
"""Files of GLUE's tasks, each with one row."""

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
