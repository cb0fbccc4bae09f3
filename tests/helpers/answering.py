# SPDX-License-Identifier: Apache-2.0
"""Runs scripts/serve.py, or its application, and asks it."""

import contextlib
import json
import subprocess
import sys
import threading
import urllib.request

from helpers import tiny
from helpers.paths import REPOSITORY
from scripts import answer_server, serve


@contextlib.contextmanager
def running(folder, log, *flags):
    """A process that serves, and its address.

    Args:
      folder: the model.
      log: the file of its standard error.
    """
    command = ["scripts/serve.py", "--port=0", f"--model={folder}", *flags]
    with open(str(log), "wb") as errors_file, subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        cwd=str(REPOSITORY),
        stdout=subprocess.PIPE,
        stderr=errors_file,
        universal_newlines=True,
        env=dict(tiny.environment(npu=False), TF_CPP_MIN_LOG_LEVEL="3"),
    ) as process:
        try:
            line = process.stdout.readline()
            assert " answers with " in line, log.read_text()
            yield process, line.split()[0]
        finally:
            process.kill()


@contextlib.contextmanager
def threaded(model, **values):
    """The address of a server of a model, in a thread of this process."""
    listening = serve.listen("127.0.0.1", 0)
    server = answer_server.create_server(
        serve.create_app(model, serve.ServeConfig(**values))
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def ask(address, question, text):
    """A server's answer."""
    body = json.dumps({"question": question, "text": text}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(
            address + "answer", body, {"Content-Type": "application/json"}
        ),
        timeout=60,
    ) as response:
        return json.load(response)
