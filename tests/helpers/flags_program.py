# SPDX-License-Identifier: Apache-2.0
r"""A program of test_command_line.py: prints its flags as JSON.

    python flags_program.py --size=4 \
      --rate=2
"""

import dataclasses
import json
import os
import resource
import signal
import tempfile
import time
import typing

from absl import flags

from common import command_line, errors, files


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = command_line.flag(
        3, "A size.", lower=1, upper=9, group=command_line.NPU
    )
    rate: float = command_line.flag(0.5, "A rate.", lower=0)
    name: str = command_line.flag("a", "A name.", choices=("a", "b"))
    path: str = command_line.flag("", "A path.", group=command_line.FIRST)
    is_on: bool = command_line.flag(False, "A switch.")
    is_off: bool = command_line.flag(True, "Another switch.")
    share: typing.Optional[float] = command_line.flag(None, "A share.")
    count: int = command_line.flag(0, "A count.", lower=0)
    whole: typing.Optional[bool] = command_line.flag(None, "Or not.")

    def __post_init__(self):
        if self.path == "bad":
            raise errors.UserError("--path is bad;\n  use a good one")


# A function that takes an interrupt for another error.
OF_A_LIBRARY = """
try:
    os.kill(os.getpid(), number)
    events = [1]
except BaseException:
    events = [2]
"""


def end_by(name, kind):
    """Gets a signal while it writes a file, and others as it cleans up."""
    number = getattr(signal, name)
    with files.new_file("file"):
        if kind == "within a library":
            known = {"os": os, "number": number}
            path = "/site-packages/library.py"
            exec(compile(OF_A_LIBRARY, path, "exec"), known)
            print("not interrupted", known["events"])
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            for again in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), again)
            if kind == "system error":
                raise SystemError("an error set") from error
            if kind == "interrupt":
                raise
        if kind == "other error":
            raise AttributeError("an object without an attribute")
        if kind == "dropped":
            time.sleep(60)


def main(arguments):
    config = command_line.build(Config, flags.FLAGS)
    if config.path == "missing":
        open("/nonexistent/file")
    if config.path == "limit":
        with tempfile.TemporaryFile(buffering=0) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
            file.write(bytes(1))
            file.write(bytes(1))
    if config.path == "large":
        bytearray(1 << 60)
    if config.path == "interrupted":
        raise KeyboardInterrupt
    if config.path == "system error":
        raise SystemError("a C function")
    if config.path.startswith("SIG"):
        end_by(*config.path.split("+"))
    if config.path == "bug":
        raise RuntimeError("a bug")
    print(json.dumps(dict(dataclasses.asdict(config), rest=arguments[1:])))


if __name__ == "__main__":
    command_line.define(Config, rate=0.25)
    command_line.run(
        main,
        takes_arguments="ARGUMENTS" in os.environ,
        after_interrupt="run it again",
    )
