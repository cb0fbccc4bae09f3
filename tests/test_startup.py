# SPDX-License-Identifier: Apache-2.0
"""How commands end that are interrupted or lack a package while they import."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import pytest

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
