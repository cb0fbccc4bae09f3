#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers questions about texts on a page in the browser, and as JSON.

    python scripts/serve.py --model=output/squad_v1.1

Then http://127.0.0.1:8000/ shows the page, and POST /answer takes {"question":
"...", "text": "..."}. Only this machine can reach it, unless --host names
another address; it has no passwords, and neither stores nor logs questions.
"""

import dataclasses
import gc
import os
import pathlib
import socket
import sys
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import common.startup

from absl import flags
from absl import logging as absl_logging

from common import command_line, errors
from inference import predictor
from training import logs

FLAGS = flags.FLAGS
# Bytes of JSON that a character takes at most: two escapes of six bytes.
_BYTES_OF_CHARACTER = 12


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Flags of this script."""

    host: str = command_line.flag(
        "127.0.0.1", "Address to listen on; 0.0.0.0 lets any other machine ask."
    )
    port: int = command_line.flag(
        8000, "Port to listen on; 0 chooses a free one.", lower=0, upper=65535
    )
    max_text_characters: int = command_line.flag(
        100000, "Characters of a text; longer ones are rejected.", lower=1
    )
    max_question_characters: int = command_line.flag(
        1000, "Characters of a question; longer ones are rejected.", lower=1
    )
    max_seconds: int = command_line.flag(
        300, "Seconds until an answer, waiting included.", lower=1
    )

    @property
    def max_bytes(self) -> int:
        """The limit of a request's body."""
        return 1024 + _BYTES_OF_CHARACTER * (
            self.max_text_characters + self.max_question_characters
        )


def create_app(model: predictor.Predictor, options: ServeConfig) -> typing.Any:
    """The ASGI application of a predictor for "answer"."""
    return _server_module().create_app(model, options)


def _server_module():
    """The module that needs the packages of requirements/serve.txt."""
    try:
        from scripts import answer_server
    except ImportError as error:
        raise errors.missing_package(
            "serve.py", f"the package {error.name}", "serve"
        ) from error
    return answer_server


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      errors.UserError: it cannot, because the port is in use for example.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise errors.UserError(
            f"cannot listen on --host={host} --port={port}: {error.strerror}; "
            "pass another --port, or 0 for a free one"
        ) from error
    return listening


def main(_: typing.List[str]) -> None:
    """Serves until it is interrupted."""
    options = command_line.build(ServeConfig, FLAGS)
    settings = command_line.build(predictor.Settings, FLAGS)
    server_module = _server_module()
    logs.set_up_warnings(with_tensorflow=not settings.is_onnx)
    listening = listen(options.host, options.port)
    model = predictor.Predictor(settings.model, "answer", settings)
    _warm_up(model)
    server = server_module.create_server(create_app(model, options))
    # What is here stays; garbage collections then take milliseconds.
    gc.freeze()
    absl_logging.set_verbosity(absl_logging.INFO)
    server.install_signal_handlers()
    print(
        f"http://{options.host}:{listening.getsockname()[1]}/ answers with "
        f"{model.model.checkpoint} in {model.engine}; Ctrl-C ends it",
        flush=True,
    )
    server.run(sockets=[listening])
    # Without TensorFlow's destructors, which take seconds on a busy machine.
    sys.stdout.flush()
    os._exit(0)


def _warm_up(model):
    """Computes a full batch, so that no request pays for the first one."""
    count = model.max_length + model.doc_stride * (
        model.settings.predict_batch_size
    )
    model.answer("Ready?", "word " * count)


def define_flags() -> None:
    """Declares the flags of this script."""
    command_line.define(ServeConfig)
    command_line.define(predictor.Settings)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
