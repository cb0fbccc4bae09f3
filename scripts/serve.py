#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers questions about texts on a page in the browser, and as JSON.

    python scripts/serve.py --model=output/squad_v1.1

Then http://127.0.0.1:8000/ shows the page, and POST /answer takes {"question":
"...", "text": "..."}. Only this machine can reach it, unless --host names
another address; it has no passwords, and neither stores nor logs questions.
"""

import base64
import dataclasses
import hashlib
import pathlib
import re
import socket
import sys
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from absl import flags

from common import command_line, errors
from inference import predictor
from training import logs

FLAGS = flags.FLAGS
PAGE = pathlib.Path(__file__).with_suffix(".html")
_LOOPBACK = ("127.0.0.1", "localhost")
# Bytes of JSON that a character takes at most: two escapes of six bytes.
_BYTES_OF_CHARACTER = 12
# Requests at a time; more get status 503. Each waits in a thread.
_CONCURRENCY = 64
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


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

    @property
    def max_bytes(self) -> int:
        """The limit of a request's body."""
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


def content_security_policy(page: str) -> str:
    """A policy that lets a page run its own script and call its own server.

    Args:
      page: HTML with one inline <script>.
    """
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest())
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"connect-src 'self'; script-src 'sha256-{digest.decode('ascii')}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# --- Rejected requests --------------------------------------------------------


_Rejection = typing.Optional[typing.Tuple[int, str]]  # status, message


def length_rejection(
    headers: typing.Mapping[str, str], limit: int
) -> _Rejection:
    """The rejection of a body that is too long, None for another one.

    Args:
      headers: the request's, names in lower case.
      limit: bytes.
    """
    if "transfer-encoding" in headers:
        return 411, "send the request with a Content-Length, not in chunks"
    # The server has rejected lengths that are not numbers.
    length = int(headers.get("content-length", "0"))
    if length > limit:
        return 413, (
            f"the request has {length:,} bytes, this server takes {limit:,}; "
            "send a part of the text"
        )
    return None


def text_rejection(name: str, text: str, limit: int) -> _Rejection:
    """The rejection of a text that cannot be read, None for another one."""
    if not text.strip():
        return 422, f"the {name} is empty"
    if len(text) > limit:
        return 413, (
            f"the {name} has {len(text):,} characters, this server takes "
            f"{limit:,}; send a part of it"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return 422, (
            f"the {name} is not text at character {error.start}: {error.reason}"
        )
    return None


def _first_problem(error):
    """`question: field required` of a validation error."""
    first = error.errors()[0]
    field = ".".join(
        part
        for part in first["loc"]
        if isinstance(part, str) and part != "body"
    )
    return (
        f"{field or 'the body'}: {first['msg']}; expected "
        '{"question": "...", "text": "..."}'
    )


def query_rejection(
    question: str, text: str, options: ServeConfig
) -> _Rejection:
    """The rejection of a question or its text, None where both are valid."""
    return text_rejection(
        "question", question, options.max_question_characters
    ) or text_rejection("text", text, options.max_text_characters)


# --- The application --------------------------------------------------------


def create_app(model: predictor.Predictor, options: ServeConfig) -> typing.Any:
    """The FastAPI application of a predictor for "answer".

    The functions that compute are not coroutines: FastAPI runs each call in
    a thread, and threads may share a Predictor.
    """
    fastapi, pydantic, _ = _import()
    from fastapi import responses
    from starlette.middleware import trustedhost

    app = fastapi.FastAPI(
        title="Answers in a text", docs_url=None, redoc_url=None
    )

    class Query(pydantic.BaseModel):
        """The body of a request."""

        question: pydantic.StrictStr
        text: pydantic.StrictStr

    def reject(status, message):
        return responses.JSONResponse(
            {"detail": message}, status, headers=_HEADERS
        )

    @app.middleware("http")
    async def limit_body(request, call_next):
        rejection = length_rejection(request.headers, options.max_bytes)
        return reject(*rejection) if rejection else await call_next(request)

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def invalid(_, error):
        return reject(422, _first_problem(error))

    @app.post("/answer")
    def answer(query: Query):
        """The answer, its place in characters, and the n-best list."""
        rejection = query_rejection(query.question, query.text, options)
        if rejection:
            return reject(*rejection)
        try:
            result = model.answer(query.question, query.text)
        except errors.UserError as error:
            return reject(422, str(error))
        del result["id"]
        return responses.JSONResponse(result, headers=_HEADERS)

    page = PAGE.read_text("utf-8")
    policy = {"Content-Security-Policy": content_security_policy(page)}

    @app.get("/", response_class=responses.HTMLResponse)
    def show():
        """The page."""
        return responses.HTMLResponse(page, headers={**_HEADERS, **policy})

    if options.host in _LOOPBACK:
        # Otherwise another site's page could send requests here, under a
        # host name that resolves to this machine.
        app.add_middleware(
            trustedhost.TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK)
        )
    return app


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
    _, _, uvicorn = _import()
    logs.set_up_warnings()
    listening = listen(options.host, options.port)
    model = predictor.Predictor(settings.model, "answer", settings)
    model.answer("Ready?", "The first call is slow.")
    app = create_app(model, options)
    print(
        f"http://{options.host}:{listening.getsockname()[1]}/ answers with "
        f"{model.model.checkpoint}; Ctrl-C ends it",
        flush=True,
    )
    uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONCURRENCY,
        )
    ).run(sockets=[listening])


def define_flags() -> None:
    """Declares the flags of this script."""
    command_line.define(ServeConfig)
    command_line.define(predictor.Settings)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
