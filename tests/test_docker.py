# SPDX-License-Identifier: Apache-2.0
"""docker/: what the images are made of is there, and a linter agrees."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers.paths import REPOSITORY

FILES = sorted(REPOSITORY.glob("docker/Dockerfile.*"))
pytestmark = pytest.mark.parametrize(
    "path", FILES, ids=[path.name for path in FILES]
)


def instructions(path):
    """[(name, arguments)], continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line]


def named(path, name):
    """The arguments of all instructions of one name."""
    return [arguments for word, arguments in instructions(path) if word == name]


def sources(path):
    """What the COPY lines take from the repository."""
    for arguments in named(path, "COPY"):
        words = [w for w in arguments.split() if not w.startswith("--")]
        yield from words[:-1]


def ignored():
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_source_of_a_copy_is_there(path):
    found = list(sources(path))
    assert "requirements.txt" in found and "." in found
    for name in found:
        assert (REPOSITORY / name).exists(), name
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in ignored())


def test_base_image_has_a_fixed_tag(path):
    (base,) = named(path, "FROM")
    defaults = dict(line.split("=") for line in named(path, "ARG"))
    base = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match.group(1)], base)
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]+", base), base


def test_image_runs_as_an_ordinary_user(path):
    user = named(path, "USER")[-1]
    assert user == "1000" and "--uid 1000" in named(path, "RUN")[0]


def test_command_is_there(path):
    command = json.loads(named(path, "CMD")[-1])
    assert command[0] == "bash"
    assert all((REPOSITORY / name).is_file() for name in command[1:])


def test_no_secret_and_no_data_goes_along(path):
    del path
    assert {".git", ".venv*", "output", "data"} <= set(ignored())


def test_requirements_leave_the_images_tensorflow_alone(path):
    if path.name != "Dockerfile.gpu":
        pytest.skip("installs TensorFlow itself")
    from pip._vendor.packaging.requirements import Requirement

    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    wanted = [
        Requirement(line)
        for line in lines
        if line and not line.startswith(("#", "-"))
    ]
    names = {
        one.name
        for one in wanted
        if one.marker is None or one.marker.evaluate({"python_version": "3.8"})
    }
    assert names == {"regex", "safetensors", "absl-py", "tqdm", "six"}


def test_hadolint_finds_nothing(path):
    program = shutil.which(
        "hadolint",
        path=os.pathsep.join(
            [os.path.dirname(sys.executable), os.environ["PATH"]]
        ),
    )
    if program is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run(
        [program, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.stdout == ""
