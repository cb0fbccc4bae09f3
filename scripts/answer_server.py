# SPDX-License-Identifier: Apache-2.0
"""The application and the HTTP server of serve.py.

Requests are limited, not connections: an idle connection, or one that sends
half a request, takes nobody's place and is closed after a while.
"""

import asyncio
import base64
import contextlib
import ctypes
import gc
import hashlib
import os
import pathlib
import re
import signal
import threading
import time
import traceback
import typing
import urllib.parse

import anyio
import fastapi
import h11
import uvicorn
from absl import logging
from fastapi import responses
from starlette import requests
from uvicorn.protocols.http import h11_impl

from common import errors, files
from inference import predictor
from question_answering import squad_decoding

PAGE = pathlib.Path(__file__).with_name("serve.html")
_LOOPBACK = ("127.0.0.1", "localhost")
# A Host header of these: the case of a name has no meaning (RFC 9110, 4.2.3).
_LOOPBACK_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{0,5})?", re.I)
# Requests that wait or are computed; more get status 503. A request counts when
# its body has arrived, so that clients that send half a body lock nobody out.
MAX_REQUESTS = 512
# Answers computed at a time: each takes memory, and the processor's cores.
_COMPUTED = 4
# Of glibc; None with another C library.
_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
# Seconds in which a client sends a request's header, sends its body, or reads
# from a response that does not fit into the system's buffers.
HEADER_SECONDS = 10
BODY_SECONDS = 30
READ_SECONDS = 30
# Seconds after a signal until requests are cut off, until the process ends
# itself, and until the system ends it, where a thread keeps Python's lock.
_GRACE_SECONDS = 4
_EXIT_SECONDS = 6
_KILL_SECONDS = 8
_RETRY = {"Retry-After": "5"}
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_QUERY = '{"question": "...", "text": "..."}'
_SCHEMA = {
    "type": "object",
    "required": ["question", "text"],
    "properties": dict.fromkeys(("question", "text"), {"type": "string"}),
}


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


def check_headers(headers: typing.Mapping[str, str], limit: int) -> None:
    """Rejects a request before its body is read.

    A page of another site can send a form or plain text here without asking
    first, but neither JSON nor without naming its origin.

    Args:
      headers: the request's, names in lower case.
      limit: bytes of the body.

    Raises:
      fastapi.HTTPException: the rejection.
    """
    origin = headers.get("origin", "")
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") or (
        origin and origin.partition("://")[2] != headers.get("host", "").lower()
    ):
        raise fastapi.HTTPException(
            403, "a page of another site sent the request; use the page here"
        )
    if "transfer-encoding" in headers or "content-length" not in headers:
        raise fastapi.HTTPException(
            411, "send the request with a Content-Length, not in chunks"
        )
    # The server has rejected lengths that are not numbers.
    length = int(headers["content-length"])
    if length > limit:
        raise fastapi.HTTPException(
            413,
            f"the request has {length:,} bytes, this server takes {limit:,}; "
            "send a part of the text",
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise fastapi.HTTPException(
            415, f"the Content-Type is {kind[:80]!r}; expected application/json"
        )


def read_query(body: bytes, options) -> typing.Tuple[str, str]:
    """The question and the text of a request's body.

    Args:
      body: what should be JSON in UTF-8.
      options: a serve.ServeConfig.

    Raises:
      fastapi.HTTPException: the rejection.
    """
    try:
        query = files.loads(body.decode("utf-8-sig"))
    except ValueError as error:
        raise fastapi.HTTPException(
            400, f"the body is not JSON in UTF-8: {error}; expected {_QUERY}"
        ) from None
    if not isinstance(query, dict):
        query = {}
    return (
        _text("question", query, options.max_question_characters),
        _text("text", query, options.max_text_characters),
    )


def _text(name, query, limit):
    text = query.get(name)
    if not isinstance(text, str):
        problem = "not a text" if name in query else "missing"
        raise fastapi.HTTPException(
            422, f"the {name} is {problem}; expected {_QUERY}"
        )
    if not text.strip():
        raise fastapi.HTTPException(422, f"the {name} is empty")
    if len(text) > limit:
        raise fastapi.HTTPException(
            413,
            f"the {name} has {len(text):,} characters, this server takes "
            f"{limit:,}; send a part of it",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fastapi.HTTPException(
            422,
            f"the {name} is not text at character {error.start}: "
            f"{error.reason}",
        ) from None
    return text


# --- The application --------------------------------------------------------


class _Answers:
    """Reads requests and computes their answers, a few at a time."""

    def __init__(self, model, options):
        self._model = model
        self._options = options
        self._requests = 0
        self._limiter = None

    async def answer(self, request: requests.Request) -> dict:
        """The answer to the question in a request.

        Raises:
          fastapi.HTTPException: the rejection.
        """
        check_headers(request.headers, self._options.max_bytes)
        body = await _body(request)
        if self._requests >= MAX_REQUESTS:
            raise fastapi.HTTPException(
                503, "the server is busy; ask again", _RETRY
            )
        self._requests += 1
        try:
            query = read_query(body, self._options)
            result = await self._computed(request, *query)
        finally:
            self._requests -= 1
        del result["id"]
        return result

    async def _computed(self, request, question, text):
        seconds = self._options.max_seconds
        end = time.monotonic() + seconds
        gone = asyncio.ensure_future(request.receive())

        def check():
            if gone.done() or time.monotonic() > end:
                raise TimeoutError

        def compute():
            predictor.before_batch.set(check)
            return self._model.answer(question, text)

        # Here, because it needs a running event loop.
        self._limiter = self._limiter or anyio.CapacityLimiter(_COMPUTED)
        try:
            with anyio.fail_after(seconds), _cleared_frames():
                return await anyio.to_thread.run_sync(
                    compute, limiter=self._limiter
                )
        except errors.UserError as error:
            is_models = isinstance(error, squad_decoding.InvalidLogits)
            raise fastapi.HTTPException(
                500 if is_models else 422, str(error)
            ) from None
        except TimeoutError:
            raise fastapi.HTTPException(
                503,
                f"no answer within {seconds} s; send a part of the text, or "
                "ask again later",
                _RETRY,
            ) from None
        except MemoryError:
            raise fastapi.HTTPException(
                503, "not enough memory; send a part of the text", _RETRY
            ) from None
        finally:
            gone.cancel()


@contextlib.contextmanager
def _cleared_frames():
    """Drops what a failed call computed.

    The future of its thread and its error refer to each other, and would hold
    all arrays until a full garbage collection; the web framework's frames hold
    the bodies of earlier requests likewise. glibc would keep the freed memory;
    malloc_trim returns it to the system.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if _MALLOC_TRIM:
            _MALLOC_TRIM(0)
        raise


async def _body(request):
    try:
        with anyio.fail_after(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise fastapi.HTTPException(
            408,
            f"the body did not arrive within {BODY_SECONDS} s; send it again",
            {"Connection": "close"},
        ) from None


class _Log:
    """ASGI middleware that logs a line for each request, and adds headers.

    The line has no query, which can contain a question and a text.
    """

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        start, status = time.monotonic(), "-"

        async def noted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except requests.ClientDisconnect:
            pass
        except asyncio.CancelledError:  # by a signal
            if status == "-":
                await responses.JSONResponse(
                    {"detail": "the server ends"}, 503, _RETRY
                )(scope, receive, noted)
        finally:
            logging.info(
                "%s %s %s %.3f s from %s",
                scope["method"],
                urllib.parse.quote(scope["path"][:80]),
                status,
                time.monotonic() - start,
                (scope["client"] or ["-"])[0],
            )


class _LoopbackOnly:
    """ASGI middleware that rejects other host names than this machine's.

    Otherwise another site's page could send requests here, under a host name
    that resolves to this machine.
    """

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        app, host = self._app, requests.Request(scope).headers.get("host", "")
        if not _LOOPBACK_HOST.fullmatch(host):
            app = responses.PlainTextResponse("Invalid host header", 400)
        await app(scope, receive, send)


def create_app(model: typing.Any, options: typing.Any) -> fastapi.FastAPI:
    """The application.

    Args:
      model: a predictor.Predictor for "answer"; threads call it.
      options: a serve.ServeConfig.
    """
    app = fastapi.FastAPI(
        title="Answers in a text", docs_url=None, redoc_url=None
    )
    answers = _Answers(model, options)
    page = PAGE.read_text("utf-8")
    policy = {"Content-Security-Policy": content_security_policy(page)}
    schema = {"content": {"application/json": {"schema": _SCHEMA}}}

    @app.post("/answer", openapi_extra={"requestBody": schema})
    async def answer(request: fastapi.Request):
        """The answer, its place in characters, and the n-best list."""
        return responses.JSONResponse(await answers.answer(request))

    @app.get("/", response_class=responses.HTMLResponse)
    async def show():
        """The page."""
        return responses.HTMLResponse(page, headers=policy)

    @app.get("/healthz")
    async def healthz():
        """Whether the server runs, without asking the model."""
        return {"status": "ok"}

    if options.host in _LOOPBACK:
        app.add_middleware(_LoopbackOnly)
    app.add_middleware(_Log)
    return app


# --- The server -------------------------------------------------------------


class _Protocol(h11_impl.H11Protocol):
    """HTTP/1.1 that closes connections of malformed and of stuck requests."""

    _waiting = None  # the timer of a header
    _unread = None  # the timer of a response that the client does not read

    def connection_made(self, transport):
        super().connection_made(transport)
        self._wait_for_header()

    def handle_events(self):
        try:
            super().handle_events()
        except ValueError:  # Python's limit of a number's digits
            self.send_400_response("The Content-Length has too many digits.")

    def send_400_response(self, msg):
        """Also after the header: the application then gets a disconnect."""
        is_unanswered = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif is_unanswered:
            logging.info("- - 400 %s from %s", msg, (self.client or ["-"])[0])
        if is_unanswered:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def on_response_complete(self):
        super().on_response_complete()
        self._wait_for_header()

    def _wait_for_header(self):
        if self._waiting is not None:
            self._waiting.cancel()
        if not self.transport.is_closing():
            self._waiting = self.loop.call_later(
                HEADER_SECONDS, self._end_without_header
            )

    def _end_without_header(self):
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def pause_writing(self):
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self):
        super().resume_writing()
        self._unread.cancel()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        for timer in (self._waiting, self._unread):
            if timer is not None:
                timer.cancel()


class _Server(uvicorn.Server):
    """Ends in time after a signal, whatever clients and threads do."""

    def install_signal_handlers(self):
        """Without the event loop, which may wait: for a full pipe of logs."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)

    def handle_exit(self, sig, frame):
        super().handle_exit(sig, frame)
        timer = threading.Timer(_EXIT_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()
        signal.alarm(_KILL_SECONDS)


def create_server(app: typing.Any) -> uvicorn.Server:
    """A server of an ASGI application; its `run` takes listening sockets."""
    return _Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_level="error",  # it warns of malformed requests twice
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
