#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers questions about texts on a page in the browser, and as JSON.

    python scripts/serve.py --model=output/squad_v1.1

Then http://127.0.0.1:8000/ is the page, and POST /answer takes {"question":
"...", "text": "..."}. Only this machine can reach it, unless --host says
otherwise; it knows no passwords, and keeps and logs nothing of what is asked.
"""

import base64
import dataclasses
import hashlib
import pathlib
import re
import socket
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from absl import flags  # noqa: E402

from common import (
    command_line,  # noqa: E402
    errors,  # noqa: E402
)
from inference import predictor  # noqa: E402
from training import logs  # noqa: E402

FLAGS = flags.FLAGS
PAGE = pathlib.Path(__file__).with_suffix(".html")
_LOOPBACK = ("127.0.0.1", "localhost")
# Bytes of JSON that a character takes at most: two escapes of six bytes.
_BYTES_OF_CHARACTER = 12
# Requests at a time; more are turned away with 503. Each waits in a thread.
_CONCURRENCY = 64
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Flags of this script."""

    model: str = command_line.flag(
        "",
        "Output directory of run_squad.py, whose newest checkpoint is "
        "taken, or the prefix of a checkpoint.",
    )
    host: str = command_line.flag(
        "127.0.0.1",
        "Address to listen on; 0.0.0.0 lets other machines ask, "
        "whoever they are.",
    )
    port: int = command_line.flag(
        8000, "Port to listen on; 0 takes a free one.", lower=0, upper=65535
    )
    max_text_characters: int = command_line.flag(
        100000, "Characters of a text; longer ones are refused.", lower=1
    )
    max_question_characters: int = command_line.flag(
        1000, "Characters of a question; longer ones are refused.", lower=1
    )

    @property
    def max_bytes(self):
        """Of a request's body."""
        return 1024 + _BYTES_OF_CHARACTER * (
            self.max_text_characters + self.max_question_characters
        )


def _import():
    """The modules fastapi, pydantic and uvicorn."""
    try:
        import fastapi
        import pydantic
        import uvicorn
    except ImportError as error:
        raise errors.UserError(
            f"serve.py needs the package {error.name}; pip install "
            "--constraint requirements.txt -r requirements/serve.txt"
        ) from error
    return fastapi, pydantic, uvicorn


def content_security_policy(page):
    """A policy that lets a page run its own script and call its own server.

    Args:
      page: HTML with one <script> that stands in it.
    """
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest())
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"connect-src 'self'; script-src 'sha256-{digest.decode('ascii')}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# --- What is refused --------------------------------------------------------


def length_refusal(headers, most):
    """(status, message) for a body that is too long, None for another one.

    Args:
      headers: a mapping of the request's headers, names in lower case.
      most: bytes.
    """
    if "transfer-encoding" in headers:
        return 411, "send the request with a Content-Length, not in chunks"
    # The server itself has refused what is no number.
    length = int(headers.get("content-length", "0"))
    if length > most:
        return 413, (
            f"the request has {length:,} bytes, this server takes {most:,}; "
            "send a part of the text"
        )
    return None


def text_refusal(name, value, most):
    """(status, message) for a text that cannot be read, None for another."""
    if not value.strip():
        return 422, f"the {name} is empty"
    if len(value) > most:
        return 413, (
            f"the {name} has {len(value):,} characters, this server takes {most:,}; "
            "send a part of it"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            422,
            f"the {name} is no text at character {error.start}: {error.reason}",
        )
    return None


def _first_problem(error):
    """`question: field required` of a validation error."""
    first = error.errors()[0]
    where = ".".join(
        part
        for part in first["loc"]
        if isinstance(part, str) and part != "body"
    )
    return (
        f'{where or "the body"}: {first["msg"]}; expected {{"question": '
        '"...", "text": "..."}}'
    )


# --- The application --------------------------------------------------------


def create_app(model, options):
    """The FastAPI application.

    Its functions that compute are plain ones: FastAPI runs each call in a
    thread, and threads may share a Predictor.

    Args:
      model: predictor.Predictor of "answer".
      options: ServeConfig.
    """
    fastapi, pydantic, _ = _import()
    from fastapi import responses
    from starlette.middleware import trustedhost

    app = fastapi.FastAPI(
        title="Answers in a text", docs_url=None, redoc_url=None
    )

    class Query(pydantic.BaseModel):
        """What is asked."""

        question: pydantic.StrictStr
        text: pydantic.StrictStr

    def refusal(status, message):
        return responses.JSONResponse(
            {"detail": message}, status, headers=_HEADERS
        )

    @app.middleware("http")
    async def limit_body(request, call_next):
        refused = length_refusal(request.headers, options.max_bytes)
        return refusal(*refused) if refused else await call_next(request)

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def invalid(_, error):
        return refusal(422, _first_problem(error))

    @app.post("/answer")
    def answer(query: Query):
        """The answer, its place in characters, and the n-best list."""
        refused = text_refusal(
            "question", query.question, options.max_question_characters
        ) or text_refusal("text", query.text, options.max_text_characters)
        if refused:
            return refusal(*refused)
        try:
            result = model.answer(query.question, query.text)
        except errors.UserError as error:
            return refusal(422, str(error))
        del result["id"]
        return responses.JSONResponse(result, headers=_HEADERS)

    page = PAGE.read_text("utf-8")
    headers = dict(
        _HEADERS, **{"Content-Security-Policy": content_security_policy(page)}
    )

    @app.get("/", response_class=responses.HTMLResponse)
    def show():
        """The page."""
        return responses.HTMLResponse(page, headers=headers)

    if options.host in _LOOPBACK:
        # Else another site's page could ask here under a name of its own.
        app.add_middleware(
            trustedhost.TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK)
        )
    return app


def listen(host, port):
    """A socket that listens.

    Raises:
      errors.UserError: it cannot, because the port is in use for example.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        raise errors.UserError(
            f"cannot listen on --host={host} --port={port}: {error.strerror}; "
            "give another --port, or 0 for a free one"
        ) from error
    return found


def main(_):
    options = command_line.build(ServeConfig, FLAGS)
    settings = command_line.build(predictor.Settings, FLAGS)
    _, _, uvicorn = _import()
    logs.set_up_warnings()
    listening = listen(options.host, options.port)
    model = predictor.Predictor(options.model, "answer", settings)
    model.answer("Ready?", "The first call is slow.")
    app = create_app(model, options)
    sys.stdout.write(
        f"http://{options.host}:{listening.getsockname()[1]}/ answers with "
        f"{model.model.checkpoint}; Ctrl-C ends it\n"
    )
    sys.stdout.flush()
    uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONCURRENCY,
        )
    ).run(sockets=[listening])


if __name__ == "__main__":
    command_line.define(ServeConfig)
    command_line.define(predictor.Settings)
    command_line.run(main)
