# SPDX-License-Identifier: Apache-2.0
"""Nothing that a file says is ever run; no file leads out of its directory."""

import ast
import json
import os
import re

import pytest

import convert_checkpoint
from common import errors
from helpers.paths import REPOSITORY
from pretraining_data import manifest, records
from training import preflight

SOURCES = sorted(
    path
    for pattern in ("*.py", "[!.t]*/*.py", "t[!e]*/*.py")
    for path in REPOSITORY.glob(pattern)
)
# Dotted names that run what they are given.
RUNNERS = re.compile(
    r"(eval|exec|compile|os\.system|os\.popen|os\.exec\w+|"
    r"os\.spawn\w+|(c?pickle|dill|joblib|shelve|marshal)\.\w+|"
    r"subprocess\.getoutput|subprocess\.getstatusoutput|"
    r"yaml\.(load|load_all|unsafe_load|full_load)|torch\.load|"
    r"(np|numpy)\.(loads|fromregex))$"
)


def dotted(node):
    """`a.b.c` of a name or attribute, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def dangers(text):
    """(line, what) of each call in a module that could run data."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [
                getattr(node, "module", None) or ""
            ]
            found = {"pickle", "cPickle", "dill", "shelve", "marshal"} & set(
                names
            )
            if found:
                yield node.lineno, "import " + found.pop()
        if not isinstance(node, ast.Call):
            continue
        if RUNNERS.match(dotted(node.func)):
            yield node.lineno, dotted(node.func)
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", None)
            if keyword.arg in ("shell", "allow_pickle") and value is not False:
                yield node.lineno, keyword.arg


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "exec(x)",
        "os.system('ls')",
        "os.popen('ls')",
        "yaml.load(x)",
        "torch.load(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_what_runs_data_is_recognized(text):
    assert list(dangers(text))


@pytest.mark.parametrize(
    "text",
    [
        "import pickletools",
        "re.compile(x)",
        "subprocess.run(x)",
        "subprocess.run(x, shell=False)",
        "np.load(x, allow_pickle=False)",
        "session.run(x)",
        "yaml.safe_load(x)",
        "estimator.evaluate(x)",
    ],
)
def test_what_runs_no_data_is_left_alone(text):
    assert not list(dangers(text))


def test_no_module_runs_data():
    assert len(SOURCES) > 40
    assert not [
        "%s:%d: %s" % ((path.name,) + danger)
        for path in SOURCES
        for danger in dangers(path.read_text("utf-8"))
    ]


def test_numpy_reads_files_without_pickles():
    loads = [
        (path.name, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and dotted(node.func) in ("np.load", "numpy.load")
    ]
    assert loads
    assert not [
        name
        for name, node in loads
        if "allow_pickle" not in [keyword.arg for keyword in node.keywords]
    ]


def test_shell_scripts_evaluate_no_text():
    for path in REPOSITORY.glob("scripts/*.sh"):
        lines = [
            line
            for line in path.read_text("utf-8").splitlines()
            if not line.lstrip().startswith("#")
        ]
        assert not [
            line for line in lines if re.search(r"(^|[;&|(]\s*|\s)eval\s", line)
        ], path.name


# Names in files.

OUTSIDE = (
    "../secret",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "\u202etxt",
    "\ud800",
    None,
    3,
    ["a"],
)


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_manifest_cannot_leave_its_directory(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"x" * 100)
    folder = tmp_path / "records"
    folder.mkdir()
    path = folder / "manifest.json"
    path.write_text(
        json.dumps(
            {
                "format_version": manifest.FORMAT_VERSION,
                "masking": "dynamic",
                "max_seq_length": 8,
                "max_predictions_per_seq": 2,
                "vocab_size": 20,
                "bos_id": 0,
                "pad_id": 1,
                "eos_id": 2,
                "unk_id": 3,
                "mask_id": 19,
                "shards": [
                    {"name": name, "records": 1, "bytes": 1, "sha256": "0" * 64}
                ],
            }
        )
    )
    (folder / "a.tfrecord").write_bytes(b"")
    for read in (
        manifest.load_manifest,
        manifest.read_manifest,
        records.expand_inputs,
        preflight.check_shards,
    ):
        with pytest.raises(errors.UserError, match="without a directory"):
            read(str(folder))


@pytest.mark.parametrize(
    "name", [n for n in OUTSIDE if isinstance(n, str)], ids=repr
)
def test_an_index_of_weights_cannot_leave_its_directory(tmp_path, name):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    opened = []
    # A backslash is a letter of a name here, of a file that is not there.
    with pytest.raises((errors.UserError, FileNotFoundError)):
        convert_checkpoint._load_parts(
            str(path), opened.append if name != "a\\b" else open
        )
    assert opened == []


def test_a_zip_archive_is_never_unpacked():
    assert not [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("extract", "extractall")
        and os.path.basename(str(path)) != "get_data.py"
    ]
