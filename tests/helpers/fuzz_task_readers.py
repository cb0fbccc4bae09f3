# SPDX-License-Identifier: Apache-2.0
"""More readers for tests/fuzz.py: the files of tasks, tools and downloads.

Each is a function of a directory giving a fuzz_base.Reader.
"""

import contextlib
import functools
import gzip
import importlib.util
import io
import json
import shutil
import sys
import tarfile

import tensorflow.compat.v1 as tf

import tokenization
from common import errors
from helpers import mutations, tiny
from helpers.fuzz_base import Reader, of_bytes, of_json, zipped
from helpers.paths import REPOSITORY
from inference import trained_model
from scripts import get_data
from tasks import classification, conll, race, sequences, table_files
from training import progress

sys.path.insert(0, str(REPOSITORY / "scripts"))
import inspect_predictions
import make_rank_table
import plot_run


def _tokenizer(directory):
    model = tiny.write_model(directory / "model")
    return tokenization.RobertaTokenizer(
        str(model / "vocab.json"), str(model / "merges.txt")
    )


# --- Tables, words, articles ------------------------------------------------


def _read_table(path, tokenizer, data):
    path.write_bytes(data)
    for quoting in table_files.QUOTING:
        with contextlib.suppress(errors.UserError):
            table = table_files.read(str(path), quoting=quoting)
            examples = classification.examples_of(
                table, classification.Columns("text", "pair", "label")
            )
            sequences.encode(
                [(e.text, e.pair) for e in examples[:9]],
                tokenizer,
                16,
                num_workers=1,
            )
            classification.labels_in(examples).ids(examples)
    table_files.read(
        str(path), header=("a", "b", "c"), quoting="none", skips_irregular=True
    )


_FIELDS = [
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b'"',
    b'""',
    b",",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xe2\x80\xa8",
    b"text\tlabel\n",
    b"\\ud800",
]
_ROWS = [
    ("text", "pair", "label"),
    ("One \u00e9.", "a", "yes"),
    ("Two \U0001f600", "b", "no"),
    ("Three", "", "no"),
]


def _delimited(directory, ending, delimiter):
    sound = "".join(delimiter.join(row) + "\n" for row in _ROWS).encode()
    read = functools.partial(
        _read_table, directory / ("a" + ending), _tokenizer(directory)
    )
    return of_bytes([sound], read, _FIELDS)


def tab_tables(directory):
    return _delimited(directory, ".tsv", "\t")


def comma_tables(directory):
    return _delimited(directory, ".csv", ",")


def json_tables(directory):
    lines = [json.dumps(dict(zip(_ROWS[0], row))).encode() for row in _ROWS[1:]]

    def make(random):
        if random.randrange(3) == 0:
            return mutations.of_bytes(b"\n".join(lines), random, _FIELDS)
        return b"\n".join([lines[0], mutations.of_json(lines[1], random)])

    return Reader(
        [b"\n".join(lines)],
        make,
        functools.partial(
            _read_table, directory / "a.jsonl", _tokenizer(directory)
        ),
    )


def word_lists(directory):
    """Words and labels as CoNLL has them."""
    path, tokenizer = directory / "a.txt", _tokenizer(directory)
    sound = (
        "-DOCSTART- -X- -X- O\n\nDol NNP I-NP I-PER\nkufs VBZ I-VP O\n\n"
        "\u00e9t\u00e9 NN I-NP B-LOC\n\U0001f600 NN I-NP I-LOC\n"
    ).encode()

    def read(data):
        path.write_bytes(data)
        for column in (-1, 1, None):
            with contextlib.suppress(errors.UserError):
                sentences = conll.read(str(path), label_column=column)
                sequences.encode_words(
                    sentences[:5], tokenizer, 12, num_workers=1
                )
                if column is not None:
                    sentences, _ = conll.to_bio(sentences)
                    conll.label_ids(sentences, conll.labels_in(sentences))
        conll.read(str(path))

    return of_bytes(
        [sound],
        read,
        [
            b" ",
            b"\t",
            b"\n",
            b"\r\n",
            b"\r",
            b"\xc2\xa0",
            b"\xe3\x80\x80",
            b"\xef\xbb\xbf",
            b"\xff",
            b"\0",
            b"-DOCSTART-",
            b" B-",
            b" O\n",
            b"\xe2\x80\xa8",
            b"B- ",
            b"S-X\n",
        ],
    )


def articles(directory):
    """RACE's files."""
    folder, tokenizer = directory / "train", _tokenizer(directory)
    folder.mkdir()
    sound = {
        "id": "high1.txt",
        "article": "A river.\nIt runs \u00e9.",
        "questions": ["What runs _ ?", "Who?"],
        "options": [["a", "b", "c", "d"], ["e", "f", "g", "\u00e9"]],
        "answers": ["A", "D"],
    }

    def read(data):
        (folder / "1.txt").write_bytes(data)
        for needs_answers in (True, False):
            found = race.read(str(folder), needs_answers)
            encoded = race.Sequences(found, tokenizer, 16, num_workers=1)
            for index in range(min(len(encoded), 4)):
                encoded[index]

    return of_json([sound], read)


# --- SQuAD's n-best lists ---------------------------------------------------


def answers_to_show(directory):
    """What scripts/inspect_predictions.py makes a page of."""
    data = tiny.write_squad(directory / "squad.json", version_2=True)
    (directory / "predictions.json").write_text(
        json.dumps({"q0": "Town 0", "q1": "river", "q2": ""})
    )
    path = directory / "nbest.json"
    sound = {
        "q0": [
            {
                "text": "Town 0",
                "probability": 0.75,
                "start_logit": 1.5,
                "end_logit": 2,
            }
        ],
        "q1": [{"text": "river", "probability": 1}],
        "q2": [],
    }
    options = _Options(
        dataset=str(data),
        predictions=str(directory / "predictions.json"),
        nbest=str(path),
        null_odds=None,
    )

    def read(raw):
        path.write_bytes(raw)
        questions = inspect_predictions.read_questions(options)
        inspect_predictions.render(
            questions, inspect_predictions.worst(questions, 9), options
        ).encode("utf-8", "replace")

    return of_json([sound], read)


class _Options:
    """Parsed arguments."""

    def __init__(self, **values):
        self.__dict__.update(values)


# --- Models, runs, downloads, clusters --------------------------------------


def trained_configs(directory):
    """config.json of a trainer's directory, which predict.py reads."""
    tiny.write_trained(directory / "run", ["classification"])
    path = directory / "run" / "config.json"
    sound = dict(
        json.loads(path.read_text()),
        id2label={"0": "no", "1": "yes", "2": "\u00e9"},
    )

    def read(data):
        path.write_bytes(data)
        model = trained_model.find(str(directory / "run"))
        model.labels(model.num_labels("classification"))
        classification.labels_of_config(model.values)

    return of_json([sound], read)


def _beside_a_model(name, values):
    """The reader of a JSON file in a trainer's directory."""

    def reader(directory):
        tiny.write_trained(directory / "run", ["question_answering"])

        def read(data):
            (directory / "run" / name).write_bytes(data)
            model = trained_model.find(str(directory / "run"))
            model.sequence_length(None, "squad", 384)
            model.labels(2)

        return of_json([values], read)

    reader.__name__ = name.replace(".json", "s")
    return reader


tokenizer_configs = _beside_a_model(
    "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512}
)
tasks = _beside_a_model(
    "task.json",
    {
        "task": "question_answering",
        "max_seq_length": 64,
        "null_score_diff_threshold": -1.5,
        "labels": ["no", "yes"],
    },
)


def event_files(directory):
    """TensorBoard's files, of which scripts/plot_run.py draws curves."""
    with tf.Graph().as_default():
        writer = progress.scalar_writer(str(directory), "train")
        for step in (10, 20):
            progress.add_scalars(
                writer, {"loss": 2.5, "learning_rate": 1e-4}, step
            )
        writer.close()
    (path,) = directory.glob("events*")

    def read(data):
        path.write_bytes(data)
        with contextlib.redirect_stderr(io.StringIO()):
            plot_run.tags_of({"run": plot_run.read_run(str(directory))}, "")

    return of_bytes([path.read_bytes()], read, [b"\xff" * 9, b"\x0a\x04loss"])


def archive_files(directory):
    """Downloaded archives; nothing may come to lie outside."""
    files = {
        "data/a.txt": b"text\n" * 9,
        "data/b/c.txt": b"more",
        "other/d.txt": b"x",
    }
    sounds = [zipped(files), _tar_gz(files)]
    target = directory / "in" / "target"
    target.parent.mkdir()

    def make(random):
        if random.randrange(2):
            return mutations.of_bytes(
                random.choice(sounds),
                random,
                [b"PK\x01\x02", b"../", b"PK\x05\x06"],
            )
        changed = {_hostile(name, random): data for name, data in files.items()}
        if random.randrange(2):
            return zipped(changed)
        tar = gzip.decompress(_tar_gz(changed))
        if random.randrange(2):
            tar = mutations.of_bytes(tar, random, [b"../x", b"ustar", b"1"])
        return gzip.compress(tar)

    def read(data):
        path = directory / ("a.zip" if data[:2] == b"PK" else "a.tar.gz")
        path.write_bytes(data)
        shutil.rmtree(str(target), ignore_errors=True)
        try:
            get_data.unpack(str(path), "data", str(target))
        finally:
            found = {p.name for p in directory.iterdir()} | {
                p.name for p in target.parent.iterdir()
            }
            if not found <= {"a.zip", "a.tar.gz", "in", "target"}:
                raise AssertionError(f"left behind: {found}")

    return Reader(sounds, make, read)


def _hostile(name, random):
    if random.randrange(3):
        return name
    return random.choice(
        (
            "../../evil",
            "/tmp/evil",
            "data//x",
            "data/./x",
            "data/a.txt/x",
            "C:evil",
            "data\\..\\evil",
            "data",
            "data/" + "n" * 300,
            "data/\u00e9",
            "data/\ud7ff",
            "__MACOSX/x",
        )
    )


def _tar_gz(files):
    result = io.BytesIO()
    with tarfile.open(
        fileobj=result,
        mode="w",
        format=tarfile.GNU_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(result.getvalue())


def device_lists(directory):
    """hccn.conf, of which scripts/make_rank_table.py reads addresses."""
    path = directory / "hccn.conf"

    def read(data):
        path.write_bytes(data)
        try:
            found = make_rank_table.read_hccn_conf(str(path), 2)
            make_rank_table.check_addresses("file", found)
        except make_rank_table.Mistake as mistake:
            raise errors.UserError(str(mistake)) from mistake

    return of_bytes(
        [b"address_0=10.0.0.1\nnetmask_0=255.255.255.0\naddress_1=10.0.0.2\n"],
        read,
        [b"address_1=", b"\xff", b" ", b"\n", b"::1"],
    )


READERS = (
    tab_tables,
    comma_tables,
    json_tables,
    word_lists,
    articles,
    answers_to_show,
    trained_configs,
    tokenizer_configs,
    tasks,
    event_files,
    device_lists,
)
if importlib.util.find_spec("pooch"):
    READERS += (archive_files,)
