# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: reference data, TensorFlow 1's behaviour, forks."""

import functools
import logging
import subprocess
import sys

import pytest

from helpers import word_vocabulary
from helpers.paths import GOLDEN, REPOSITORY, SHARED


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile, files with few tests come first: they take long.

    The last ones then keep all processes busy, with many short tests.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist import scheduler

    class FewTestsFirst(scheduler.LoadFileScheduling):
        def _assign_work_unit(self, node):
            tests = self.workqueue
            few = min(tests, key=lambda path: len(tests[path]))
            tests.move_to_end(few, last=False)
            super()._assign_work_unit(node)

    return FewTestsFirst(config, log)


@pytest.fixture(scope="session")
def shared():
    """The folder with real data and reference numbers, if there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def tensorflow_1_behaviour():
    """Graphs and reference variables on TensorFlow 2 too, as scripts do."""
    if "tensorflow" in sys.modules:  # a test module imported it
        sys.modules["tensorflow"].compat.v1.disable_v2_behavior()


@pytest.fixture(autouse=True)
def fresh_graph(tensorflow_1_behaviour):
    """A default graph for each test."""
    if "tensorflow" not in sys.modules:
        yield
        return
    with sys.modules["tensorflow"].Graph().as_default():
        yield


@pytest.fixture(autouse=True)
def loggers_of_warnings():
    """Their own level: a command that a test called may have set another."""
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture
def log_lines():
    """The messages that TensorFlow's logger gets during a test."""
    lines = []

    class Collect(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("tensorflow"), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory):
    """Function of a reference model's name giving its TensorFlow checkpoint.

    The command line converts it, once.
    """
    directory = tmp_path_factory.mktemp("golden")

    @functools.lru_cache(maxsize=None)
    def convert(name):
        prefix = directory / name / "model.ckpt"
        done = subprocess.run(
            [
                sys.executable,
                str(REPOSITORY / "convert_checkpoint.py"),
                "--from=hf",
                "--to=tf",
                f"--input={GOLDEN / name}",
                f"--output={prefix}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout.decode()
        return str(prefix)

    return convert


@pytest.fixture(scope="session")
def forked():
    """Function of a script and its arguments giving what it logged.

    Each runs in a fork of a process that knows TensorFlow (forked.py).
    """
    from helpers import forked, tiny

    def run(script, *arguments, code=0, **named):
        exit_code, _, log = forked.run(
            tiny.command(script, arguments, **named),
            tiny.environment(npu=False),
        )
        assert exit_code == code, log[-4000:]
        return log

    return run


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A folder with a vocab.json and a merges.txt (word_vocabulary.py)."""
    folder = tmp_path_factory.mktemp("vocabulary")
    word_vocabulary.write(folder)
    return folder
