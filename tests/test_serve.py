# SPDX-License-Identifier: Apache-2.0
"""The page and the endpoint that answer questions: results, rejections, marks.

The server itself runs once, for many callers at a time and for a browser.
"""

import concurrent.futures
import contextvars
import gc
import json
import signal
import sys
import threading
import urllib.parse
import weakref

import numpy as np
import pytest

pytest.importorskip("fastapi")

from common import errors
from helpers import answering, browser, tiny
from inference import predictor
from scripts import answer_server, serve

TEXT = "\U0001f600 Town 1 lies on <b>river</b> bbb & town 2 on river ccc."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.write_trained(path, ["question_answering"])
    return str(path)


@pytest.fixture(scope="module")
def reader(folder):
    return predictor.Predictor(folder, "answer")


def client_of(model, **values):
    """A client that calls the application without a network."""
    pytest.importorskip("httpx")
    from starlette import testclient

    return testclient.TestClient(
        serve.create_app(model, serve.ServeConfig(**values)),
        base_url="http://127.0.0.1",
    )


@pytest.fixture(scope="module")
def client(reader):
    return client_of(
        reader, max_text_characters=100, max_question_characters=10
    )


# --- Answers ----------------------------------------------------------------


def test_the_answer_is_the_predictors(client, reader):
    response = client.post("/answer", json={"question": "Where?", "text": TEXT})
    result, expected = response.json(), reader.answer("Where?", TEXT)
    del expected["id"]
    assert response.status_code == 200
    assert result == expected
    assert TEXT[result["start"] : result["end"]] == result["answer"]
    assert response.headers["cache-control"] == "no-store"


def test_there_may_be_no_answer(folder):
    model = predictor.Predictor(
        folder,
        "answer",
        predictor.Settings(
            version_2_with_negative=True, null_score_diff_threshold=-1000.0
        ),
    )
    question = {"question": "Where?", "text": TEXT}
    result = client_of(model).post("/answer", json=question).json()
    assert result["answer"] == "" and result["start"] is None
    assert result["null_odds"] > -1000


# --- Rejections ---------------------------------------------------------------


def check_rejected(response, status, words):
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]


def post(client, body, **headers):
    headers = {"Content-Type": "application/json", **headers}
    return client.post("/answer", content=body, headers=headers)


@pytest.mark.parametrize(
    "body, status, words",
    [
        ('{"question": "a", "text": " "}', 422, "the text is empty"),
        ('{"question": "", "text": "b"}', 422, "the question is empty"),
        ('{"text": "b"}', 422, 'the question is missing; expected {"question"'),
        ('{"question": 3, "text": "b"}', 422, "the question is not a text"),
        ('["a", "b"]', 422, 'expected {"question"'),
        ("{", 400, 'expected {"question"'),
        ("", 400, 'expected {"question"'),
        (b"\xff", 400, "can't decode byte"),
        ("[" * 1500, 400, "nested too deeply"),
        ("1" * 2000, 400, "an integer of 2000 digits"),
        (
            '{"question": "a", "text": "\\ud800"}',
            422,
            "not text at character 0",
        ),
        (
            json.dumps({"question": "a", "text": "b" * 101}),
            413,
            "the text has 101 characters, this server takes 100",
        ),
        (
            json.dumps({"question": "a" * 11, "text": "b"}),
            413,
            "the question has 11 characters, this server takes 10",
        ),
        (" " * 2345, 413, "2,345 bytes, this server takes 2,344"),
    ],
)
def test_rejections_name_the_problem(client, body, status, words):
    check_rejected(post(client, body), status, words)


def test_every_character_may_take_as_many_bytes_as_json_allows(reader):
    """A smiley escaped is `\\ud83d\\ude00`, twelve bytes."""
    client = client_of(reader, max_text_characters=2000)
    body = {"question": "\U0001f600" * 9, "text": "\U0001f600" * 2000}
    assert post(client, json.dumps(body)).status_code == 200


def test_a_body_without_its_length_is_rejected(client):
    chunks = client.build_request("POST", "/answer", content=iter([b"{}"]))
    neither = client.build_request("POST", "/answer")
    del neither.headers["Content-Length"]
    for request in (chunks, neither):
        check_rejected(client.send(request), 411, "Content-Length")


def test_other_sites_names_do_not_lead_here(client, reader):
    host = {"Host": "example.org"}
    assert client.get("/", headers=host).status_code == 400
    for status, name in [
        (200, "localhost:81"),
        (200, "LocalHost"),
        (400, "127.0.0.1:abc"),
        (400, "localhost.example.org"),
    ]:
        response = client.get("/", headers={"Host": name})
        assert response.status_code == status
    opened = client_of(reader, host="0.0.0.0")
    assert opened.get("/", headers=host).status_code == 200


@pytest.mark.parametrize(
    "status, headers",
    [
        (200, {"Content-Type": "Application/JSON; charset=utf-8"}),
        (200, {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}),
        (200, {"Origin": "http://localhost", "Host": "LocalHost"}),
        (403, {"Origin": "http://127.0.0.1:81"}),
        (403, {"Origin": "null"}),
        (403, {"Sec-Fetch-Site": "same-site"}),
        (403, {"Sec-Fetch-Site": "cross-site"}),
        (415, {"Content-Type": "text/plain"}),
        (415, {"Content-Type": "application/x-www-form-urlencoded"}),
        (415, {"Content-Type": ""}),
    ],
)
def test_pages_of_other_sites_get_no_answer(client, status, headers):
    """A browser sends JSON to another origin only if that one allows it."""
    body = json.dumps({"question": "Where?", "text": "Here."})
    response = post(client, body, **headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    assert client.options("/answer").status_code == 405


def test_a_rejected_request_holds_no_memory():
    """Not even until the next garbage collection."""
    arrays = []

    class Failing:
        def answer(self, question, text):
            array = np.zeros(1000)
            arrays.append(weakref.ref(array))
            raise errors.UserError(f"failed with {array.nbytes} bytes")

    client = client_of(Failing())
    gc.disable()
    try:
        response = post(client, json.dumps({"question": "a", "text": "b"}))
        check_rejected(response, 422, "failed with 8000 bytes")
        assert arrays[0]() is None
    finally:
        gc.enable()


def test_missing_packages_are_one_line_with_the_fix(monkeypatch):
    monkeypatch.delitem(sys.modules, "scripts.answer_server", raising=False)
    monkeypatch.delattr("scripts.answer_server", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(
        errors.UserError, match="run bash scripts/setup.sh --extras=serve$"
    ):
        serve.create_app(None, serve.ServeConfig())


def test_a_port_in_use_is_one_line():
    with serve.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(errors.UserError, match=f"--port={port}"):
            serve.listen("127.0.0.1", port)


# --- The page ---------------------------------------------------------------


def test_the_page_needs_no_other_file_and_writes_no_html():
    page = answer_server.PAGE.read_text("utf-8")
    for word in (
        "http:",
        "https:",
        "//cdn",
        "src=",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
    ):
        assert word not in page
    assert page.count("<script>") == page.count("<script") == 1


def test_the_policy_admits_the_pages_script_alone(client):
    """The digest of `1` is that of `printf 1 | openssl dgst -sha256`."""
    policy = answer_server.content_security_policy("<p><script>1</script>")
    assert (
        "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"
        in policy
    )
    assert (
        client.get("/")
        .headers["content-security-policy"]
        .startswith("default-src 'none'; ")
    )


# --- The server -------------------------------------------------------------


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """The address of a server, ended as Ctrl-C ends it."""
    log = tmp_path_factory.mktemp("log") / "log"
    with answering.running(folder, log) as (process, address):
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    text = log.read_text()
    assert " POST /answer 200 " in text
    assert "Traceback" not in text and "Where" not in text


def test_a_full_batch_is_computed_before_the_first_request(reader):
    batches = []

    def warm_up():
        predictor.before_batch.set(lambda: batches.append(1))
        serve._warm_up(reader)

    contextvars.copy_context().run(warm_up)
    assert len(batches) > 1  # all but the last one are full


def test_many_ask_at_a_time(server, reader):
    asked = [
        (f"Where is {n}?", f"{TEXT * (1 + n % 3)} And {n}.") for n in range(36)
    ]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        results = pool.map(lambda pair: answering.ask(server, *pair), asked)
        answers = [(result["answer"], result["start"]) for result in results]
    expected = [reader.answer(*pair) for pair in asked]
    assert answers == [(item["answer"], item["start"]) for item in expected]


class Meeting:
    """A Predictor whose calls wait for each other in pairs."""

    def __init__(self, model):
        self._model = model
        self._barrier = threading.Barrier(2, timeout=20)

    def answer(self, question, text):
        self._barrier.wait()
        return self._model.answer(question, text)


def test_a_question_does_not_wait_for_another(reader):
    with answering.threaded(Meeting(reader)) as address:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            both = list(
                pool.map(
                    lambda question: answering.ask(address, question, TEXT),
                    ["Where?", "Who?"],
                )
            )
    assert all(result["nbest"] for result in both)


@pytest.fixture(scope="module")
def window(server, tmp_path_factory):
    """A browser.Browser that shows the page."""
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(server)
        yield opened


def ask_by_hand(window, question, text):
    """Types both and presses Enter; waits for an answer or a message."""
    window.run("document.getElementById('result').hidden = true")
    window.type("#text", text)
    window.type("#question", question)
    window.press_enter("#question")
    window.wait_for(
        "!document.getElementById('ask').disabled && ("
        "!document.getElementById('result').hidden || "
        "document.getElementById('problem').textContent)"
    )


def parts(window):
    """[text before, marked, after] as the page shows them."""
    return window.run(
        "return Array.from(document.getElementById('marked').childNodes,"
        " node => node.textContent)"
    )


def split(text, entry):
    return [
        text[: entry["start"]],
        text[entry["start"] : entry["end"]],
        text[entry["end"] :],
    ]


# What a keyboard has; a smiley is more than WebDriver can type.
TYPED = TEXT[2:]


def test_a_typed_question_marks_the_answer_in_the_text(window, reader):
    ask_by_hand(window, "Where?", TYPED)
    result = reader.answer("Where?", TYPED)
    assert parts(window) == split(TYPED, result)
    assert (
        window.run("return document.getElementById('answer').innerText")
        == result["answer"]
    )
    assert window.run("return document.getElementById('score').innerText") == (
        f"{100 * result['answers'][0]['probability']:.1f} % among answers "
        f"that do not overlap, characters {result['start']} to {result['end']}"
    )
    assert window.run(
        "return Array.from(document.querySelectorAll("
        "'#answers td:last-child'), cell => cell.textContent)"
    ) == [entry["text"] for entry in result["answers"]]
    assert len(result["answers"]) < len(result["nbest"])
    # "<b>" was text and stayed text.
    assert window.run("return document.querySelector('#marked b')") is None


def test_pointing_at_a_candidate_marks_it(window, reader):
    ask_by_hand(window, "Where?", TYPED)
    entries = reader.answer("Where?", TYPED)["answers"]
    window.point_at("#answers tr:last-child")
    assert len(entries) > 1
    assert parts(window) == split(TYPED, entries[-1])
    assert (
        window.run("return document.querySelector('#marked mark').className")
        == "other"
    )
    window.point_at("h1")
    assert parts(window) == split(TYPED, entries[0])


def test_a_link_with_text_and_question_asks_at_once(window, server, reader):
    window.open(
        server
        + "?"
        + urllib.parse.urlencode({"text": TEXT, "question": "Where?"})
    )
    window.wait_for("!document.getElementById('result').hidden")
    assert parts(window) == split(TEXT, reader.answer("Where?", TEXT))


def test_the_page_shows_the_reason_for_a_missing_answer(window, server):
    window.open(server)
    ask_by_hand(window, "a" * 1001, TYPED)
    assert window.run(
        "return document.getElementById('problem').innerText"
    ) == (
        "the question has 1,001 characters, this server "
        "takes 1,000; send a part of it"
    )
    assert window.run("return document.getElementById('result').hidden")
    ask_by_hand(window, "Where?", TYPED)
    assert (
        window.run("return document.getElementById('problem').innerText") == ""
    )


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_fits_its_window(window, server, width):
    window.resize(width, 800)
    window.open(server)
    ask_by_hand(window, "Where?", "x" * 300 + " " + TYPED)
    assert window.run("return document.documentElement.scrollWidth") <= width
    outside = window.run(
        """
        return Array.from(document.querySelectorAll("body *")).filter(node =>
            node.getBoundingClientRect().right > arguments[0] ||
            node.tagName !== "INPUT" && node.scrollWidth > node.clientWidth &&
            node.clientWidth > 0).map(node => node.tagName + node.id)""",
        width,
    )
    assert outside == []


@pytest.mark.parametrize("is_dark", [False, True])
def test_words_contrast_with_their_background(window, server, is_dark):
    """4.5 to 1, for small letters. Source: W3C, WCAG 2.1, 1.4.3."""
    if is_dark:
        window.darken()
    window.open(server)
    ask_by_hand(window, "Where?", TYPED)
    contrasts = browser.contrasts(window)
    assert len(contrasts) > 14
    assert [pair for pair in contrasts if pair[1] < 4.5] == []
    assert (
        window.run("return getComputedStyle(document.body).color")
        == "rgb(28, 35, 48)"
    ) is not is_dark
