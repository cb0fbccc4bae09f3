# SPDX-License-Identifier: Apache-2.0
"""scripts/serve.py under load: held connections, limits, signals, pages."""

import concurrent.futures
import contextlib
import contextvars
import functools
import http.server
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

pytest.importorskip("fastapi")

from common import errors
from helpers import answering, browser, tiny
from inference import predictor
from question_answering import squad_decoding
from scripts import answer_server

TEXT = "Town 1 lies on river bbb, town 2 on river ccc."
HEADER = (
    b"POST /answer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 99\r\n"
)
HALF = HEADER + b'\r\n{"question": '


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.write_trained(path, ["question_answering"])
    return str(path)


@contextlib.contextmanager
def held(address, *starts):
    """Connections that have sent these bytes."""
    place = urllib.parse.urlsplit(address)
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(
                socket.create_connection((place.hostname, place.port), 20)
            )
            for _ in starts
        ]
        for connection, start in zip(sockets, starts):
            connection.sendall(start)
        yield sockets


def rest(connection):
    """What a server sends until it closes the connection."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


class Model:
    """Answers after some batches, as a Predictor does."""

    def __init__(self, batches=0, error=None):
        self.batches = batches
        self.error = error
        self.ended = threading.Event()

    def answer(self, question, text):
        try:
            for _ in range(self.batches):
                predictor.before_batch.get()()
                time.sleep(0.01)
            if self.error:
                raise self.error
            return {"id": "", "answer": text}
        finally:
            self.ended.set()


def rejection(address):
    """The error of a question."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        answering.ask(address, "Where?", TEXT)
    return caught.value


def test_held_connections_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(answer_server, "MAX_REQUESTS", 64)
    monkeypatch.setattr(answer_server, "HEADER_SECONDS", 2)
    monkeypatch.setattr(answer_server, "BODY_SECONDS", 2)
    starts = [b""] * 64 + [HEADER] * 8 + [HALF] * 64
    with answering.threaded(Model()) as address:
        with held(address, *starts) as sockets:
            with concurrent.futures.ThreadPoolExecutor(50) as pool:
                texts = [f"Town {number}." for number in range(300)]
                answers = pool.map(
                    functools.partial(answering.ask, address, "Where?"), texts
                )
                assert [answer["answer"] for answer in answers] == texts
            ends = list(map(rest, sockets))
    assert ends[:72] == [b""] * 72
    assert all(end.startswith(b"HTTP/1.1 408 ") for end in ends[72:])
    assert all(b"within 2 s" in end for end in ends[72:])


CHUNKED = HEADER.replace(b"Content-Length: 99", b"Transfer-Encoding: chunked")


@pytest.fixture(scope="module")
def process_log(folder, tmp_path_factory):
    """The address of a process, and the file of its log."""
    log = tmp_path_factory.mktemp("log") / "log"
    with answering.running(folder, log) as (_, address):
        yield address, log


@pytest.mark.parametrize(
    "status, start, later",
    [
        (400, CHUNKED + b"\r\nzz\r\n", b""),
        (411, CHUNKED + b"\r\n", b"zz\r\n"),
        (400, CHUNKED + b"Expect: 100-continue\r\n\r\nzz\r\n", b""),
        (4, HEADER.replace(b"99", b"9" * 5000) + b"\r\n", b""),
        (400, b"POST /answer\r\n\r\n", b""),
    ],
)
def test_a_malformed_request_is_a_line_in_the_log(
    process_log, status, start, later
):
    address, log = process_log
    before = log.read_text()
    with held(address, start) as (connection,):
        time.sleep(0.3)
        connection.sendall(later)
        assert rest(connection).startswith(b"HTTP/1.1 %d" % status)
    time.sleep(0.2)
    assert log.read_text()[len(before) :].count("\n") == 1


def test_a_connection_may_stay_between_requests_for_a_while(monkeypatch):
    monkeypatch.setattr(answer_server, "HEADER_SECONDS", 1)
    get = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with answering.threaded(Model()) as address:
        with held(address, get) as (connection,):
            for _ in range(3):
                time.sleep(0.6)
                connection.sendall(get)
            connection.sendall(get[:9])
            assert rest(connection).count(b'{"status":"ok"}') == 4


def test_an_answer_has_a_time_limit_and_computing_ends():
    model = Model(batches=3000)
    with answering.threaded(model, max_seconds=1) as address:
        error = rejection(address)
        assert (error.code, error.headers["Retry-After"]) == (503, "5")
        assert "no answer within 1 s" in error.read().decode()
        assert model.ended.wait(5)


def test_what_nobody_waits_for_is_not_computed():
    """Four answers are computed at a time; these four would take minutes."""
    model = Model(batches=10000)
    request = HALF + b'"a", "text": "'.ljust(97 - 13, b"x") + b'"}'
    with answering.threaded(model) as address:
        with held(address, *[request] * 4):
            time.sleep(0.5)
        assert model.ended.wait(5)
        model.batches = 0
        assert answering.ask(address, "Where?", TEXT)["answer"] == TEXT


@pytest.mark.parametrize("limit, error", [(0, None), (512, MemoryError())])
def test_a_server_without_room_says_when_to_ask_again(
    monkeypatch, limit, error
):
    monkeypatch.setattr(answer_server, "MAX_REQUESTS", limit)
    with answering.threaded(Model(error=error)) as address:
        for _ in range(3):
            rejected = rejection(address)
            assert rejected.code == 503
            assert rejected.headers["Retry-After"] == "5"
        with urllib.request.urlopen(address + "healthz") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "error, code",
    [
        (squad_decoding.InvalidLogits("logits are NaN; it has diverged"), 500),
        (errors.UserError("logits are NaN; it has diverged"), 422),
    ],
)
def test_what_the_model_cannot_answer_is_an_error_of_the_server(error, code):
    with answering.threaded(Model(error=error)) as address:
        rejected = rejection(address)
    assert rejected.code == code
    assert json.loads(rejected.read()) == {"detail": str(error)}


def test_a_predictor_stops_before_a_batch(folder):
    model = predictor.Predictor(folder, "answer")

    def stop():
        raise TimeoutError

    def answer():
        predictor.before_batch.set(stop)
        model.answer("Where?", TEXT)

    with pytest.raises(TimeoutError):
        contextvars.copy_context().run(answer)
    assert model.answer("Where?", TEXT)["nbest"]


def test_sigterm_ends_whatever_clients_hold(folder, tmp_path):
    log = tmp_path / "log"
    with answering.running(folder, log, "--doc_stride=16") as served:
        process, address = served
        long = b'{"question": "a", "text": "%s"}' % (b"town " * 15000)
        request = HEADER.replace(b"99", b"%d" % len(long)) + b"\r\n" + long
        starts = [b"", HEADER, HALF, request]
        with held(address, *starts) as (idle, header, half, computed):
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) in (0, -signal.SIGALRM)
            assert rest(idle) == rest(header) == b""
            assert rest(half).startswith(b"HTTP/1.1 503 ")
            assert b"HTTP/1.1 200 " not in rest(computed)
    assert "Traceback" not in log.read_text()


def test_sigterm_right_after_the_ready_line_ends_with_code_0(folder, tmp_path):
    with answering.running(folder, tmp_path / "log") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


# --- Pages of others --------------------------------------------------------


def answer_of(page, server, kind):
    """What a page's script learns of an answer: its status, or an error."""
    return page.run(
        """return fetch(arguments[0] + "answer", {method: "POST",
            mode: arguments[1] === "text/plain" ? "no-cors" : "cors",
            headers: {"Content-Type": arguments[1]}, body: arguments[2]
        }).then(response => response.status, error => String(error))""",
        server,
        kind,
        '{"question": "Where?", "text": "Town 1."}',
    )


def test_a_page_on_another_port_gets_no_answer(folder, tmp_path):
    (tmp_path / "index.html").write_text("<p>Another site</p>", "utf-8")
    log = tmp_path / "log"
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path)
    )
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=other.serve_forever)
    with browser.opened(tmp_path / "profile") as page, answering.running(
        folder, log
    ) as (_, server):
        thread.start()
        try:
            page.open(f"http://127.0.0.1:{other.server_port}/")
            json_result = answer_of(page, server, "application/json")
            text_result = answer_of(page, server, "text/plain")
        finally:
            other.shutdown()
            other.server_close()
        assert json_result == "TypeError: Failed to fetch"
        assert text_result == 0  # a response that scripts cannot read
        text = log.read_text()
        assert " POST /answer 403 " in text and "/answer 200 " not in text
        page.open(server)
        assert answer_of(page, server, "application/json") == 200
