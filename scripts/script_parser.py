# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts that need nothing but Python."""

import argparse
import logging
import os
import signal
import sys
import typing

from common import errors, log_format, startup


class ScriptParser(argparse.ArgumentParser):
    """Arguments of a script; a mistake is one line and exit code 1."""

    def error(self, message):
        self.fail(f"{message}; --help shows the usage")

    def fail(self, message: typing.Any) -> None:
        """Ends the process with one line on standard error and code 1."""
        text = errors.shortened(" ".join(str(message).split()))
        self.exit(1, f"{self.prog}: error: {text}\n")

    def run(self, main: typing.Callable) -> None:
        """Calls `main(arguments)`; a user's mistake ends the process."""
        startup.finish()
        handler = logging.StreamHandler()
        handler.setFormatter(log_format.Formatter())
        logging.basicConfig(handlers=[handler])
        try:
            try:
                main(self.parse_args())
            finally:
                sys.stdout.flush()  # of --help too
        except errors.UserError as error:
            self.fail(error)
        except BrokenPipeError:  # the reader, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit(128 + signal.SIGPIPE)
        except OSError as error:
            self.fail(errors.describe_os_error(error))
        except (KeyboardInterrupt, Exception) as error:
            startup.end_interrupted(error)
        finally:
            startup.ignore_signals()


def check_output(
    flag: str, path: str, inputs: typing.Iterable[typing.Optional[str]]
) -> None:
    """Rejects an output that would replace one of the inputs.

    Args:
      flag: the output's, for the message.
      path: of the output.
      inputs: paths, None for one that is not given.
    """
    for source in inputs:
        if (
            source
            and os.path.exists(source)
            and os.path.exists(path)
            and os.path.samefile(path, source)
        ):
            raise errors.UserError(
                f"{flag}={path}: is an input and would be replaced; choose "
                "another name"
            )
