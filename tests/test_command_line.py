# SPDX-License-Identifier: Apache-2.0
"""Flags from config classes, and how a user's mistake ends."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from common import command_line, errors, version
from helpers.paths import REPOSITORY

SCRIPT = str(REPOSITORY / "tests" / "helpers" / "flags_program.py")
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(REPOSITORY))
DEFAULTS = dict(
    size=3,
    rate=0.25,
    name="a",
    path="",
    is_on=False,
    is_off=True,
    share=None,
    count=0,
    whole=None,
    rest=[],
)


def run(*arguments, cwd=None, **variables):
    """(exit code, output, lines of errors) of the program."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        timeout=60,
        env=dict(ENVIRONMENT, **variables),
        cwd=cwd,
    )
    return (
        done.returncode,
        done.stdout.decode(),
        done.stderr.decode().splitlines(),
    )


@pytest.mark.parametrize(
    "arguments, changes",
    [
        ([], {}),
        (
            ["--size=4", "--rate=2", "--name=b", "--path=x", "--share=0.1"],
            {"size": 4, "rate": 2.0, "name": "b", "path": "x", "share": 0.1},
        ),
        (["--is_on", "--nois_off"], {"is_on": True, "is_off": False}),
        (
            ["--is_on=True", "--is_off=false", "--whole=1"],
            {"is_on": True, "is_off": False, "whole": True},
        ),
        (
            ["--count=2147483647", "--share=inf"],
            {"count": 2147483647, "share": float("inf")},
        ),
        # An empty value is the default, whatever the type.
        (
            [
                "--size=",
                "--rate=",
                "--name=",
                "--path=",
                "--is_on=",
                "--is_off=",
                "--share=",
                "--whole=",
            ],
            {},
        ),
        (["--size", "5"], {"size": 5}),
    ],
)
def test_flags_become_a_config(arguments, changes):
    code, output, lines = run(*arguments)
    assert (code, lines) == (0, [])
    assert json.loads(output) == dict(DEFAULTS, **changes)


def test_words_that_are_not_flags_are_rejected_where_none_are_taken():
    words = ["one", "--size", "5", "two"]
    code, output, _ = run(*words, ARGUMENTS="yes")
    assert code == 0
    assert json.loads(output) == dict(DEFAULTS, size=5, rest=["one", "two"])
    code, output, lines = run(*words)
    assert (code, output, len(lines)) == (1, "", 1)
    assert "'one' is not a flag; expected --name=value; --help" in lines[0]
    # absl reads `--is_on` and leaves the word behind it.
    code, output, lines = run("--is_on", "False")
    assert (code, output, len(lines)) == (1, "", 1)
    assert "such as --do_train=False without a space before False" in lines[0]


def test_flag_file_with_comments(tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_text("# a recipe\n--size=7\n\n--name=b\n")
    code, output, _ = run(f"--flagfile={path}", "--name=a")
    assert code == 0
    assert json.loads(output) == dict(DEFAULTS, size=7, name="a")


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--size=x", ["--size=x", "a whole number from 1 to 9"]),
        ("--size=2.5", ["a whole number"]),
        ("--size=0", ["from 1 to 9"]),
        ("--size=10", ["from 1 to 9"]),
        ("--rate=-1", ["a number >= 0"]),
        ("--rate=nan", ["a number >= 0"]),
        ("--share=x", ["a number"]),
        ("--rate=inf", ["a number >= 0"]),
        ("--share=nan", ["a number"]),
        ("--count=2147483648", ["a whole number from 0 to 2147483647"]),
        ("--name=c", ["one of 'a', 'b'"]),
        ("--is_on=maybe", ["true or false"]),
        ("--nam=b", ["nam", "name"]),
        ("--unknown=1", ["unknown", "--help"]),
        ("--path=bad", ["--path is bad; use a good one"]),
        ("--path=missing", ["cannot use '/nonexistent/file'", "check the"]),
        ("--path=limit", ["File too large; raise the limit (ulimit -f)"]),
        ("--path=large", ["not enough memory"]),
        ("--flagfile=/nonexistent/file", ["/nonexistent/file"]),
        # absl's search for the flag that was meant is recursive.
        (f"--{'size' * 500}=1", ["cannot read the flags"]),
    ],
)
def test_mistake_is_one_line_and_exit_code_1(argument, words):
    code, output, lines = run(argument)
    assert (code, output, len(lines)) == (1, "", 1)
    assert lines[0].startswith("flags_program.py: error: ")
    assert all(word in lines[0] for word in words), lines[0]


def test_an_interrupted_script_ends_without_a_traceback():
    code, output, lines = run("--path=interrupted")
    assert (code, output) == (130, "")
    assert lines == ["flags_program.py: interrupted; run it again"]


@pytest.mark.parametrize(
    "kind",
    ["interrupt", "system error", "other error", "dropped", "within a library"],
)
@pytest.mark.parametrize(
    "name, by",
    [("SIGINT", ""), ("SIGTERM", " by SIGTERM"), ("SIGHUP", " by SIGHUP")],
)
def test_a_signal_cleans_up_and_ends_with_its_number(name, by, kind, tmp_path):
    """A C function makes another error of an interrupt, or drops it."""
    code, output, lines = run(f"--path={name}+{kind}", cwd=tmp_path)
    assert (code, output) == (128 + getattr(signal, name), "")
    assert lines == [f"flags_program.py: interrupted{by}; run it again"]
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path):
    done = subprocess.run(
        ["nohup", sys.executable, SCRIPT, "--path=SIGHUP+interrupt"],
        capture_output=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").exists()


def test_a_zero_byte_in_a_path_is_rejected(tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_bytes(b"--path=a\0b\n")
    code, output, lines = run(f"--flagfile={path}")
    assert (code, output, len(lines)) == (1, "", 1)
    assert "expected a text without a zero byte" in lines[0]


def test_a_flag_file_that_is_not_utf8_is_one_line(tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_bytes(b"--path=\xff\n")
    code, _, lines = run(f"--flagfile={path}")
    assert (code, len(lines)) == (1, 1)
    assert "--flagfile: not UTF-8" in lines[0]


def test_a_long_message_keeps_its_start_and_its_end():
    text = str(errors.UserError(f"given {'x' * 100000}; fix it so"))
    assert len(text) < 2000
    assert text.startswith("given xx") and text.endswith("xx; fix it so")


def test_a_bug_keeps_its_traceback():
    for path, last in (
        ("bug", "RuntimeError: a bug"),
        ("system error", "SystemError: a C function"),
    ):
        code, _, lines = run(f"--path={path}")
        assert code == 1 and lines[-1] == last
        assert any("Traceback" in line for line in lines)


def test_a_closed_pipe_ends_a_script_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, SCRIPT],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_keeps_the_example_and_groups_the_flags(flag):
    code, output, lines = run("--size=4", flag)
    assert (code, lines) == (0, [])
    assert "flags_program.py --size=4 \\\n      --rate=2\n" in output
    assert re.findall(r"^(\S.*):$|^  --(\S+):", output, re.MULTILINE) == [
        ("what you need first", ""),
        *[("", name) for name in ("count", "[no]is_off", "[no]is_on")],
        *[("", name) for name in ("path", "share", "[no]whole")],
        ("NPU", ""),
        *[("", name) for name in ("name", "rate", "size")],
        ("options", ""),
        ("", "[no]version"),
    ]
    assert "(default: '0.25')\n    (a number >= 0)\n" in output


@pytest.mark.parametrize(
    "command, groups, first",
    [
        ("create_pretraining_data.py", "data options", "input_file vocab_file"),
        ("predict.py", "data model prediction devices options", "model text"),
        ("convert_checkpoint.py", "options", "from input output to"),
        (
            "run_squad.py",
            "data model training prediction devices NPU options",
            "output_dir train_file do_train",
        ),
    ],
)
def test_help_of_a_command_begins_with_what_it_needs(command, groups, first):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / command), "--help"],
        stdout=subprocess.PIPE,
        text=True,
    )
    parts = re.split(r"^(\w[\w ]*):\n", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0
    assert [name.split()[0] for name in parts[1::2]] == [
        "what",
        *groups.split(),
    ]
    assert f"python {command} " in parts[0]
    assert all(f"{name}: " in parts[2] for name in first.split())
    words = [sys.executable, str(REPOSITORY / command), "--version"]
    assert subprocess.check_output(words, text=True) == f"{version.VERSION}\n"


def test_version_is_that_of_the_newest_heading_of_the_changelog():
    assert run("--version") == (0, f"{version.VERSION}\n", [])
    text = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## \[?([\w.]+)", text, re.MULTILINE).group(1)
    released = re.search(r"^## (\d[\d.]+) - ", text, re.MULTILINE).group(1)
    if version.VERSION.endswith(".dev0"):
        assert newest == "Unreleased" and version.VERSION > released
    else:
        assert newest == released == version.VERSION


def test_default_of_an_unknown_field_is_a_bug():
    @dataclasses.dataclass
    class Config:
        size: int = command_line.flag(1, "A size.")

    with pytest.raises(TypeError, match="no field {'length'}"):
        command_line.define(Config, length=2)
