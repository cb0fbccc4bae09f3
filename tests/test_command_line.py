# SPDX-License-Identifier: Apache-2.0
"""Flags from config classes, and how a user's mistake ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from common import command_line, errors
from helpers.paths import REPOSITORY

# A script of its own: absl's flags are one global set a process.
SCRIPT = """
import dataclasses, json, os, typing
from absl import flags
from common import command_line, errors

@dataclasses.dataclass(frozen=True)
class Config:
    size: int = command_line.flag(3, "A size.", lower=1, upper=9)
    rate: float = command_line.flag(0.5, "A rate.", lower=0)
    name: str = command_line.flag("a", "A name.", choices=("a", "b"))
    path: str = command_line.flag("", "A path.")
    is_on: bool = command_line.flag(False, "A switch.")
    is_off: bool = command_line.flag(True, "Another switch.")
    share: typing.Optional[float] = command_line.flag(None, "A share.")
    count: int = command_line.flag(0, "A count.", lower=0)
    whole: typing.Optional[bool] = command_line.flag(None, "Or not.")

    def __post_init__(self):
        if self.path == "bad":
            raise errors.UserError("--path is bad;\\n  use a good one")

def main(arguments):
    config = command_line.build(Config, flags.FLAGS)
    if config.path == "missing":
        open("/nonexistent/file")
    if config.path == "interrupted":
        raise KeyboardInterrupt
    if config.path == "bug":
        raise RuntimeError("a bug")
    print(json.dumps(dict(dataclasses.asdict(config), rest=arguments[1:])))

command_line.define(Config, rate=0.25)
command_line.run(main, takes_arguments="ARGUMENTS" in os.environ)
"""
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


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Function of arguments giving (exit code, output, lines of errors)."""
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)

    def run(*arguments, **variables):
        done = subprocess.run(
            [sys.executable, str(path)] + list(arguments),
            capture_output=True,
            timeout=60,
            env=dict(os.environ, PYTHONPATH=str(REPOSITORY), **variables),
        )
        return (
            done.returncode,
            done.stdout.decode(),
            done.stderr.decode().splitlines(),
        )

    return run


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
def test_flags_become_a_config(script, arguments, changes):
    code, output, lines = script(*arguments)
    assert (code, lines) == (0, [])
    assert json.loads(output) == dict(DEFAULTS, **changes)


def test_words_that_are_no_flags_are_refused_where_none_are_taken(script):
    words = ["one", "--size", "5", "two"]
    code, output, _ = script(*words, ARGUMENTS="yes")
    assert code == 0
    assert json.loads(output) == dict(DEFAULTS, size=5, rest=["one", "two"])
    code, output, lines = script(*words)
    assert (code, output, len(lines)) == (1, "", 1)
    assert "'one' is no flag; expected --name=value; --help" in lines[0]
    # absl reads `--is_on` and leaves the word behind it.
    code, output, lines = script("--is_on", "False")
    assert (code, output, len(lines)) == (1, "", 1)
    assert "such as --do_train=False with no blank before it" in lines[0]


def test_flag_file_with_comments(script, tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_text("# a recipe\n--size=7\n\n--name=b\n")
    code, output, _ = script(f"--flagfile={path}", "--name=a")
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
        ("--count=2147483648", ["a whole number >= 0, at most 2147483647"]),
        ("--name=c", ["one of 'a', 'b'"]),
        ("--is_on=maybe", ["true or false"]),
        ("--nam=b", ["nam", "name"]),
        ("--unknown=1", ["unknown", "--help"]),
        ("--path=bad", ["--path is bad; use a good one"]),
        ("--path=missing", ["cannot use '/nonexistent/file'"]),
        ("--flagfile=/nonexistent/file", ["/nonexistent/file"]),
        # absl's search for the flag that was meant is recursive.
        (f"--{'size' * 500}=1", ["the flags cannot be read"]),
    ],
)
def test_mistake_is_one_line_and_exit_code_1(script, argument, words):
    code, output, lines = script(argument)
    assert (code, output, len(lines)) == (1, "", 1)
    assert lines[0].startswith("script.py: error: ")
    assert all(word in lines[0] for word in words), lines[0]


def test_an_interrupted_script_ends_without_a_traceback(script):
    code, output, lines = script("--path=interrupted")
    assert (code, output, lines) == (130, "", ["script.py: interrupted"])


def test_a_zero_byte_is_no_part_of_a_path(script, tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_bytes(b"--path=a\0b\n")
    code, output, lines = script(f"--flagfile={path}")
    assert (code, output, len(lines)) == (1, "", 1)
    assert "expected a text without a zero byte" in lines[0]


def test_a_flag_file_that_is_not_utf8_is_one_line(script, tmp_path):
    path = tmp_path / "recipe.flags"
    path.write_bytes(b"--path=\xff\n")
    code, _, lines = script(f"--flagfile={path}")
    assert (code, len(lines)) == (1, 1)
    assert "--flagfile is not UTF-8" in lines[0]


def test_a_long_message_keeps_its_begin_and_its_end():
    text = str(errors.UserError(f"given {'x' * 100000}; mend it so"))
    assert len(text) < 2000
    assert text.startswith("given xx") and text.endswith("xx; mend it so")


def test_a_bug_keeps_its_traceback(script):
    code, _, lines = script("--path=bug")
    assert code == 1 and lines[-1] == "RuntimeError: a bug"
    assert any("Traceback" in line for line in lines)


def test_a_closed_pipe_ends_a_script_quietly(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(path)],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_help_lists_flags_and_defaults(script):
    _, output, _ = script("--help")
    assert "--size" in output and "A size." in output
    assert "(default: '0.25')" in output


def test_default_of_an_unknown_field_is_a_bug():
    @dataclasses.dataclass
    class Config:
        size: int = command_line.flag(1, "A size.")

    with pytest.raises(TypeError, match="no field 'length'"):
        command_line.define(Config, length=2)
