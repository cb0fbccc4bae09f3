# SPDX-License-Identifier: Apache-2.0
"""Wrong files and flags of every script: one line, exit code 1, nothing left.

The scripts that train on records and questions are in test_end_to_end.py. Each
message is one line (user_errors.py).
"""

import json
import os
import shutil

import pytest

from helpers import tiny, user_errors

SCRIPT_FLAGS = {
    "convert_checkpoint.py": [
        "--from=hf",
        "--to=tf",
        "--input=$BAD/none",
        "--output=$OUT/model.ckpt",
    ],
    "predict.py": [],
    "export_model.py": ["--model=$MODEL", "--output=$OUT", "--task=squad"],
    "run_classifier.py": [
        "--bert_config_file=$MODEL/config.json",
        "--output_dir=$OUT",
        "--vocab_file=$MODEL/vocab.json",
        "--merges_file=$MODEL/merges.txt",
        "--do_train=True",
        "--train_file=$BAD/table.tsv",
        "--max_seq_length=32",
        "--num_workers=1",
        "--accelerator=cpu",
    ],
    "run_multiple_choice.py": [
        "--bert_config_file=$MODEL/config.json",
        "--output_dir=$OUT",
        "--vocab_file=$MODEL/vocab.json",
        "--merges_file=$MODEL/merges.txt",
        "--do_train=True",
        "--max_seq_length=32",
        "--num_workers=1",
        "--accelerator=cpu",
    ],
    "train_tokenizer.py": ["--output_dir=$OUT"],
    "scripts/doctor.py": [
        "--bert_config_file=$MODEL/config.json",
        "--vocab_file=$MODEL/vocab.json",
        "--merges_file=$MODEL/merges.txt",
        "--input_files_dir=$BAD/records",
        "--max_seq_length=32",
        "--accelerator=cpu",
    ],
    "scripts/make_rank_table.py": [
        "--hosts=10.0.0.1",
        "--devices=2",
        "--output=$OUT",
    ],
    "scripts/evaluate-v1.1.py": [],
    "scripts/evaluate-v2.0.py": [],
}
ANSWER = ["answer", "--model=$MODEL"]
QUESTION = ["--question=Where?", "--text=Here."]

# Script, then (what is wrong, its flags, words of the message).
CASES = {
    "convert_checkpoint.py": [
        ("no input", ["--input="], ["--input is not given"]),
        ("no output", ["--output="], ["--output is not given"]),
        ("no directory", ["--input=$BAD/missing"], ["not a directory"]),
        ("no config", [], ["config.json does not exist"]),
        ("config is text", ["--input=$BAD/text"], ["JSON"]),
        ("no weights", ["--input=$BAD/weightless"], ["model.safetensors"]),
        ("cut weights", ["--input=$BAD/cut"], ["model.safetensors"]),
        (
            "no checkpoint",
            ["--from=tf", "--input=$BAD/missing"],
            ["missing.index does not exist"],
        ),
        (
            "no fairseq model",
            ["--from=fairseq", "--input=$BAD/text/a.txt"],
            ["dict.txt"],
        ),
        ("unknown format", ["--from=keras"], ["keras"]),
        (
            "output is there",
            [
                "--from=tf",
                "--to=hf",
                "--input=$MODEL/model.ckpt-7",
                "--output=$MODEL",
            ],
            ["--overwrite"],
        ),
    ],
    "predict.py": [
        ("no task", [], ["answer"]),
        ("unknown task", ["translate", "--model=$MODEL"], ["answer"]),
        ("no model", ["answer"] + QUESTION, ["--model"]),
        (
            "missing model",
            ["answer", "--model=$BAD/missing"] + QUESTION,
            ["missing"],
        ),
        (
            "no head",
            ["classify", "--model=$MODEL", "--text=A"],
            ["classification|classify"],
        ),
        ("output alone", ANSWER + ["--output_file=$OUT"], ["--input_file"]),
        (
            "two inputs",
            ANSWER + ["--input_file=$BAD/text/a.txt"] + QUESTION,
            ["--text"],
        ),
        ("no question", ANSWER + ["--text=A"], ["question"]),
        (
            "missing input",
            ANSWER + ["--input_file=$BAD/missing.jsonl", "--output_file=$OUT"],
            ["missing.jsonl"],
        ),
        (
            "empty input",
            ANSWER + ["--input_file=$BAD/empty.jsonl", "--output_file=$OUT"],
            ["empty.jsonl: no rows"],
        ),
        (
            "a line of text",
            ANSWER + ["--input_file=$BAD/text.jsonl", "--output_file=$OUT"],
            ["line 1: not JSON"],
        ),
        (
            "no place for results",
            ANSWER + QUESTION + ["--output_file=$BAD/p.json/a.jsonl"],
            ["p.json"],
        ),
        (
            "answers as vectors",
            ANSWER + QUESTION + ["--output_file=$OUT.npy"],
            ["embed"],
        ),
        (
            "results onto the input",
            ANSWER
            + ["--input_file=$BAD/squad.json", "--output_file=$BAD/squad.json"],
            ["would be replaced"],
        ),
        (
            "beyond the positions",
            ANSWER + QUESTION + ["--max_seq_length=600"],
            ["600"],
        ),
    ],
    "export_model.py": [
        ("no output", ["--output="], ["--output"]),
        ("no model", ["--model="], ["--model"]),
        ("missing model", ["--model=$BAD/missing"], ["missing"]),
        ("no .pb", ["--format=frozen"], [".pb"]),
        ("no head", ["--task=classification"], ["classification"]),
        (
            "beyond the positions",
            ["--format=frozen", "--output=$OUT.pb", "--max_seq_length=600"],
            ["600"],
        ),
        (
            "slim has no input",
            ["--format=slim", "--input_type=int64"],
            ["--input_type"],
        ),
        ("output is there", ["--output=$BAD/text"], ["--overwrite"]),
        (
            "output onto the model",
            ["--output=$MODEL", "--overwrite"],
            ["contains the model"],
        ),
        (
            "output above the model",
            ["--output=$MODEL/..", "--overwrite"],
            ["contains the model"],
        ),
    ],
    "run_classifier.py": [
        (
            "a pipe",
            ["--train_file=$BAD/pipe"],
            ["bad/pipe: is not a regular file; write its data"],
        ),
        ("nothing to do", ["--do_train=False"], ["--do_train"]),
        ("no table", ["--train_file="], ["--train_file is not given"]),
        ("missing table", ["--train_file=$BAD/missing.tsv"], ["missing.tsv"]),
        (
            "another kind of file",
            ["--train_file=$BAD/text/a.txt"],
            ["a.txt: no rows"],
        ),
        ("empty table", ["--train_file=$BAD/empty.tsv"], ["empty.tsv"]),
        ("a row too short", ["--train_file=$BAD/short.tsv"], ["short.tsv"]),
        ("no such column", ["--text_column=words"], ["words"]),
        ("unknown label", ["--labels=a,b"], ["yes"]),
        ("no numbers", ["--regression=True"], ["yes"]),
        ("a label twice", ["--labels=yes,no,yes"], ["different names"]),
        ("a label without name", ["--labels=yes,,no"], ["different names"]),
        ("labels as texts", ["--text_column=label"], ["--label_column"]),
        (
            "two kinds of labels",
            ["--labels=a,b", "--regression=True"],
            ["--regression"],
        ),
        ("no task", ["--data_dir=$BAD"], ["--task"]),
        ("no directory", ["--task=RTE", "--train_file="], ["--data_dir"]),
        ("table of a task", ["--task=RTE"], ["--train_file"]),
        (
            "missing data",
            ["--task=RTE", "--train_file=", "--data_dir=$BAD/none"],
            ["train.tsv"],
        ),
        (
            "unknown metric",
            ["--metrics=bleu", "--do_eval=True", "--eval_file=$BAD/table.tsv"],
            ["bleu"],
        ),
    ],
    "run_multiple_choice.py": [("no data", [], ["--data_dir|--race_dir"])],
    "train_tokenizer.py": [
        ("no text", [], ["--input_file"]),
        ("missing text", ["--input_file=$BAD/missing.txt"], ["missing.txt"]),
    ],
    "scripts/doctor.py": [
        (
            "another vocabulary",
            ["--bert_config_file=$BAD/larger.json"],
            ["checks failed"],
        ),
        ("no records", ["--input_files_dir=$BAD/none"], ["checks failed"]),
    ],
    "scripts/make_rank_table.py": [
        ("no host", ["--hosts="], ["--hosts is empty"]),
        ("no address", ["--device_ips=10.0.0.2,here"], ["here"]),
        ("too few addresses", ["--device_ips=10.0.0.2"], ["1 addresses"]),
        (
            "an address twice",
            ["--device_ips=10.0.0.2,10.0.0.2"],
            ["more than once"],
        ),
        ("nothing known", ["--hosts=10.0.0.1,10.0.0.2"], ["--hccn_conf"]),
        (
            "no addresses in the file",
            ["--hccn_conf=$BAD/text/a.txt"],
            ["address_0"],
        ),
        (
            "no place for it",
            ["--device_ips=10.0.0.2,10.0.0.3", "--output=$BAD/p.json/a.json"],
            ["p.json"],
        ),
        (
            "output is a directory",
            ["--device_ips=10.0.0.2,10.0.0.3", "--output=$BAD/none"],
            ["none"],
        ),
        ("unknown flag", ["--host=1"], ["--help"]),
    ],
    "scripts/evaluate-v1.1.py": [
        ("no files", [], ["dataset_file"]),
        (
            "missing file",
            ["$BAD/missing.json", "$BAD/p.json"],
            ["missing.json"],
        ),
        ("no JSON", ["$BAD/text.jsonl", "$BAD/p.json"], ["text.jsonl"]),
        ("another shape", ["$BAD/p.json", "$BAD/p.json"], ["p.json"]),
        (
            "answers are a list",
            ["$BAD/squad.json", "$BAD/list.json"],
            ["list.json"],
        ),
    ],
    "scripts/evaluate-v2.0.py": [
        (
            "result onto the data",
            ["$BAD/squad.json", "$BAD/p.json", "--out-file=$BAD/squad.json"],
            ["would be replaced"],
        ),
        (
            "missing odds",
            [
                "$BAD/squad.json",
                "$BAD/p.json",
                "--na-prob-file=$BAD/missing.json",
            ],
            ["missing.json"],
        ),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model` is sound, the files in `bad` are wrong in one way each."""
    folder = tmp_path_factory.mktemp("refused")
    tiny.write_trained(folder / "model", ["question_answering"])
    bad = folder / "bad"
    for name in ("none", "text", "weightless", "cut"):
        (bad / name).mkdir(parents=True)
    (bad / "text" / "config.json").write_text("no JSON")
    config = (folder / "model" / "config.json").read_text()
    for name in ("weightless", "cut"):
        (bad / name / "config.json").write_text(config)
    (bad / "cut" / "model.safetensors").write_bytes(b"\x40" + b"\0" * 7 + b"{")
    (bad / "larger.json").write_text(
        json.dumps(dict(json.loads(config), vocab_size=300))
    )
    for name, text in (
        ("text/a.txt", "no JSON\n"),
        ("text.jsonl", "no JSON\n"),
        ("empty.jsonl", "\n"),
        ("empty.tsv", ""),
        ("table.tsv", "text\tlabel\nOne.\tyes\nTwo.\tno\n"),
        ("short.tsv", "text\tlabel\nOne.\n"),
        ("p.json", "{}"),
        ("list.json", "[]"),
    ):
        (bad / name).write_text(text)
    os.mkfifo(str(bad / "pipe"))
    tiny.write_squad(bad / "squad.json")
    tiny.write_sequences(bad / "records")
    return folder


def _all(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "script, flags, words",
    [
        pytest.param(script, flags, words, id=f"{script}-{name}")
        for script, cases in CASES.items()
        for name, flags, words in cases
    ],
)
def test_bad_input_is_refused_in_one_line(folder, forked, script, flags, words):
    before = _all(folder)
    places = (
        ("$BAD", folder / "bad"),
        ("$MODEL", folder / "model"),
        ("$OUT", folder / "out"),
    )
    arguments = SCRIPT_FLAGS[script] + flags
    for name, path in places:
        arguments = [word.replace(name, str(path)) for word in arguments]
    log = forked(script, *arguments, code=1)
    user_errors.check(script, log, words)
    left = set(_all(folder)) - set(before)
    if (folder / "out").is_dir():
        shutil.rmtree(str(folder / "out"))
    assert not left
