# SPDX-License-Identifier: Apache-2.0
"""Runs scripts/serve.py, or its application, and asks it."""

import contextlib
import json
import sys
import threading
import time
import urllib.request

from helpers import forked, tiny
from helpers.paths import REPOSITORY
from scripts import answer_server, serve


@contextlib.contextmanager
def running(folder, log, *flags):
    """A process that serves, and its address.

    Args:
      folder: the model.
      log: the file of its standard error.
    """
    words = ["--port=0", f"--model={folder}", *flags]
    command = [sys.executable, REPOSITORY / "scripts" / "serve.py", *words]
    environment = dict(tiny.environment(npu=False), TF_CPP_MIN_LOG_LEVEL="3")
    with open(str(log), "wb") as errors, open(f"{log}.out", "w+") as output:
        process = forked.Process(command, environment, output, errors)
        try:
            line, deadline = "", time.time() + 120
            while not line.endswith("\n"):
                assert process.poll() is None, log.read_text()
                assert time.time() < deadline, log.read_text()
                time.sleep(0.02)
                line += output.readline()
            assert " answers with " in line
            yield process, line.split()[0]
        finally:
            process.kill()
            process.wait()


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
