# SPDX-License-Identifier: Apache-2.0
"""docker/: what the images are made of exists, and nothing else is copied."""

import json
import re

import pytest

from helpers.paths import REPOSITORY

FILES = sorted(REPOSITORY.glob("docker/Dockerfile.*"))


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def path(request):
    return request.param


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


def patterns(name):
    """The patterns of .dockerignore or .gitignore."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_ignored(name):
    """Whether Docker leaves a file, or a directory above it, out.

    A `*` does not match a slash, and a pattern starts at the top.
    """
    words = {"**/": "(.*/)?", "*": "[^/]*"}
    return any(
        re.fullmatch(
            re.sub(
                r"\*\*/|[^\w/]",
                lambda match: words.get(
                    match.group(), re.escape(match.group())
                ),
                pattern,
            )
            + "(/.*)?",
            name,
        )
        for pattern in patterns(".dockerignore")
    )


def test_every_source_of_a_copy_exists(path):
    names = list(sources(path))
    assert "requirements.txt" in names and "." in names
    for name in names:
        assert (REPOSITORY / name).exists(), name
        assert not is_ignored(name)


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


def test_both_images_are_tested():
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".venv-3.11/bin/python",
        "common/__pycache__/errors.pyc",
        "data/squad_v1.1/train-v1.1.json",
        "output/demo/squad_v1.1/predictions.json",
    ],
)
def test_no_secret_and_no_data_is_copied(name):
    assert is_ignored(name)


def test_images_contain_the_suite():
    names = [
        file.relative_to(REPOSITORY).as_posix()
        for pattern in ("*.py", "[a-z]*/*.*", "requirements*")
        for file in REPOSITORY.glob(pattern)
        if not is_ignored(file.parent.name)
    ]
    assert len(names) > 150
    assert {"run_squad.py", "demo/vocab.json", "common/errors.py"} <= set(names)
    assert not [
        name for name in names if is_ignored(name) and not name.endswith(".pyc")
    ]


def test_what_git_ignores_docker_ignores():
    assert {
        pattern.strip("/")
        for pattern in patterns(".gitignore")
        if pattern.startswith(("/", "."))
    } <= set(patterns(".dockerignore"))


def test_gpu_requirements_leave_the_images_tensorflow_alone():
    from pip._vendor.packaging.requirements import Requirement

    requirements = [
        Requirement(line)
        for line in patterns("requirements.txt")
        if not line.startswith("-")
    ]
    names = {
        requirement.name
        for requirement in requirements
        if requirement.marker is None
        or requirement.marker.evaluate({"python_version": "3.8"})
    }
    assert names == {"regex", "safetensors", "absl-py", "tqdm", "six"}
