# SPDX-License-Identifier: Apache-2.0
"""Runs command lines, each in a fork of one process that knows TensorFlow.

    python tests/helpers/forked.py < lines > results

A line is a JSON list, a script and its arguments; a result is a JSON list,
exit code and both outputs. The import that takes the longest is paid once; a
script still runs as a program of its own, from its first line to its exit.
"""

import json
import os
import pathlib
import runpy
import sys
import tempfile
import traceback

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent


def run_script(script, arguments):
    """Runs a script in this process; gives its exit code."""
    sys.argv = [script] + arguments
    sys.path.insert(0, os.path.dirname(script))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(script, arguments):
    """(exit code, output, errors) of a script."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(log.fileno(), 2)
            code = run_script(script, arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        status = os.waitpid(child, 0)[1]
        texts = []
        for stream in (output, log):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
        return [os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1] + texts


def main():
    sys.path.insert(0, str(REPOSITORY))
    import tensorflow.compat.v1 as tf

    # TensorFlow loads it where it is first named.
    tf.estimator.Estimator  # noqa: B018
    for line in iter(sys.stdin.readline, ""):
        script, *arguments = json.loads(line)
        print(json.dumps(fork(str(REPOSITORY / script), arguments)), flush=True)


if __name__ == "__main__":
    main()
