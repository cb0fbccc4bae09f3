# SPDX-License-Identifier: Apache-2.0
"""What commands write and how they end while they import."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from helpers import tiny
from helpers.paths import REPOSITORY

# They import nothing else that takes time.
SMALL = {"scripts/inspect_predictions.py", "scripts/run_seeds.py"}
COMMANDS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.py", "scripts/*.py")
    for path in REPOSITORY.glob(pattern)
    if "\nimport common.startup\n" in path.read_text("utf-8")
)
PACKAGES = ("absl", "numpy", "regex", "tqdm")
# An interrupt within a package that catches it.
INTERRUPTED = """import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("after the interrupt")
except BaseException:
    pass
"""
# Shows what TensorFlow, here this file, would write.
TALKATIVE = """import os, warnings
warnings.warn("a synonym of type is deprecated", FutureWarning)
print(os.environ["TF_CPP_MIN_LOG_LEVEL"])
os._exit(0)
"""
LOG_LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d %s "
# A script that warns, as a library module does.
WARNS = """from absl import logging
from scripts import script_parser
script_parser.ScriptParser().run(lambda _: logging.warning("a text"))
"""


def without_level(**more):
    """The environment of a user who has not set TensorFlow's log level."""
    variables = dict(os.environ, **more)
    variables.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return variables


def run(*words, **options):
    """(exit code, output, errors) of a command."""
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        cwd=str(REPOSITORY),
        timeout=120,
        **options,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_commands_with_flags_import_it():
    assert len(COMMANDS) > 15
    assert {"run_squad.py", "predict.py", "scripts/serve.py"} < set(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - SMALL))
def test_an_interrupt_during_imports_ends_a_command_with_130(command, tmp_path):
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text(INTERRUPTED)
    ended = run(command, env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    name = os.path.basename(command)
    assert ended == (130, "", f"{name}: interrupted\n")


@pytest.mark.parametrize("missing", ["absl", "regex", "tqdm"])
def test_a_missing_package_is_one_line_that_names_setup(missing, tmp_path):
    for name in set(PACKAGES) - {missing}:
        origin = pathlib.Path(importlib.util.find_spec(name).origin)
        for path in origin.parent.parent.glob(f"{name}*"):
            (tmp_path / path.name).symlink_to(path)
    code, output, text = run(
        "-S",
        "create_pretraining_data.py",
        "--help",
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
    )
    assert (code, output, text.count("\n")) == (1, "", 1), text
    assert text.startswith(
        f"create_pretraining_data.py: error: the package {missing} is missing"
    )
    assert "bash scripts/setup.sh" in text


@pytest.mark.parametrize(
    "error",
    [
        'ImportError("libtensorflow_cc.so.2: failed to map segment from '
        'shared object")',
        'OSError(12, "Cannot allocate memory")',
        "MemoryError",
    ],
)
def test_a_small_limit_of_memory_is_one_line(error, tmp_path):
    (tmp_path / "numpy.py").write_text(f"raise {error}")
    ended = run("run_squad.py", env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    assert ended == (
        1,
        "",
        "run_squad.py: error: not enough memory to load the packages; raise "
        "the limit (ulimit -v) or end other programs\n",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_python_without_packages_is_one_line(command):
    code, _, text = run("-S", command, "--help")
    if code:
        assert (code, text.count("\n")) == (1, 1), text
        assert "run bash scripts/setup.sh" in text


@pytest.mark.parametrize(
    "command",
    [
        "create_pretraining_data.py",
        "scripts/plot_run.py",
        "scripts/evaluate-v1.1.py",
        "scripts/evaluate-v2.0.py",
        "scripts/make_rank_table.py",
    ],
)
@pytest.mark.parametrize("buffers", ["1", ""])
def test_help_ends_quietly_when_its_reader_has_ended(command, buffers):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / command), "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONUNBUFFERED=buffers),
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    "script", ["predict.py", "scripts/evaluate-v1.1.py", "run_squad.py"]
)
def test_a_closed_output_is_no_traceback(script):
    command = f"{sys.executable} {REPOSITORY / script} --help >&-"
    done = subprocess.run(
        ["bash", "-c", command], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run_squad.py", "scripts/roofline.py"])
@pytest.mark.parametrize("level, expected", [(None, "3"), ("0", "0")])
def test_tensorflow_starts_silently_unless_asked(
    command, level, expected, tmp_path
):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(TALKATIVE)
    variables = without_level(PYTHONPATH=str(tmp_path))
    if level:
        variables["TF_CPP_MIN_LOG_LEVEL"] = level
    assert run(command, env=variables) == (0, expected + "\n", "")
    _, _, text = run("-Wdefault", command, env=variables)
    assert "FutureWarning: a synonym" in text


def test_a_commands_error_is_all_that_is_written():
    code, output, text = run("run_pretraining.py", env=without_level())
    assert (code, output, text.count("\n")) == (1, "", 1), text


def test_log_lines_look_the_same_in_commands_and_scripts(tmp_path):
    tiny.write_model(tmp_path)
    (tmp_path / "text.txt").write_text("a b\n")
    flags = dict(
        input_file=tmp_path / "text.txt",
        output_file=tmp_path / "records",
        vocab_file=tmp_path / "vocab.json",
        merges_file=tmp_path / "merges.txt",
    )
    text = tiny.run(tiny.command("create_pretraining_data.py", [], **flags))
    assert re.match(LOG_LINE % "I" + "documents=1 ", text.splitlines()[-1])
    _, _, text = run("-c", WARNS)
    assert re.fullmatch(LOG_LINE % "W" + "a text\n", text)
