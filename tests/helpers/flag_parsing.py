# SPDX-License-Identifier: Apache-2.0
"""Parses lists of flags as the commands do, without running them."""

import importlib
import json
import os
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver

from common import command_line, errors
from helpers.paths import REPOSITORY


def parse(lists):
    """Parses and checks {script: [[flag, ...], ...]} in another process.

    absl's flags are global to a process, and scripts differ in their defaults.

    Returns:
      {"errors": [[script, message], ...],
      "defaults": {script: {flag: default}}}.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        cwd=str(REPOSITORY),
        input=json.dumps(lists),
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            TF_CPP_MIN_LOG_LEVEL="3",
            PYTHONPATH=os.pathsep.join(
                str(REPOSITORY / name) for name in ("", "scripts", "tests")
            ),
        ),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _declare(script):
    """Declares the flags of a script; returns its config classes."""
    classes, define = [], command_line.define

    def record(config_class, *declared, **defaults):
        define(config_class, *declared, **defaults)
        classes.append(config_class)

    module = importlib.import_module(script[: -len(".py")].split("/")[-1])
    command_line.define = record
    module.define_flags()
    command_line.define = define
    return classes


def _errors(script, arguments, classes):
    with flagsaver.flagsaver():
        try:
            words = flags.FLAGS([script, *arguments])
            for config_class in classes:
                command_line.build(config_class, flags.FLAGS)
        except (flags.Error, errors.UserError) as error:
            return [str(error)]
    return words[1:]  # not flags


def main():
    values, before = flags.FLAGS, set(flags.FLAGS)
    messages, defaults = [], {}
    for script, lists in json.load(sys.stdin).items():
        classes = _declare(script)
        names = set(values) - before
        defaults[script] = {name: values[name].default for name in names}
        for arguments in lists:
            for message in _errors(script, arguments, classes):
                messages.append([script, message])
        for name in names:
            delattr(values, name)
    print(json.dumps({"errors": messages, "defaults": defaults}))


if __name__ == "__main__":
    main()
