# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server that disconnects, or sends wrong sizes or files."""

import hashlib
import os
import types

import pytest

from common import errors
from helpers import broken_server
from helpers.broken_server import answer, file, in_turn, status
from scripts import downloads

DATA = bytes(range(256)) * 40  # 10,240 bytes
OLD = b"x" * len(DATA)
RETRIES = downloads.Retries(timeout=5.0, attempts=3, wait=0.0)


@pytest.fixture(scope="module")
def site():
    with broken_server.running() as running:
        yield running


@pytest.fixture
def fetch(site, tmp_path):
    """Function of a page that downloads it, expecting DATA."""

    def run(page, retries=RETRIES):
        site.pages.clear()
        site.requests.clear()
        site.pages["/file"] = page
        site.pages["/elsewhere"] = file(DATA)
        remote = downloads.Remote(
            site.base + "/file", len(DATA), hashlib.sha256(DATA).hexdigest()
        )
        return downloads.fetch(remote, str(tmp_path / "file"), retries)

    return run


def error_of(fetch, page, **options):
    """The message, one line, of a download that fails."""
    with pytest.raises(errors.UserError) as caught:
        fetch(page, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def redirect(address):
    return lambda handler: answer(handler, 302, b"", Location=address)


def wrong_range(handler):
    answer(handler, 206, DATA[100:], Content_Range="bytes 100-10239/10240")


# --- Complete files ---------------------------------------------------------


@pytest.mark.parametrize(
    "pages, ranges",
    [
        ([file(DATA)], [None]),
        # Three connections, each closed by the server.
        ([file(DATA, at_most=4000)], [None, 4000, 8000]),
        # The file changes between two requests; its entity tag says so.
        ([file(OLD, tag='"old"', at_most=4000), file(DATA)], [None, 4000]),
        # Without an entity tag the checksum finds the mixture.
        (
            [file(OLD, tag=None, at_most=4000), file(DATA, tag=None)],
            [None, 4000, None],
        ),
        # A server without ranges sends everything again.
        (
            [
                file(DATA, has_ranges=False, at_most=4000),
                file(DATA, has_ranges=False),
            ],
            [None, 4000],
        ),
        (
            [file(DATA, at_most=4000), wrong_range, file(DATA)],
            [None, 4000, None],
        ),
        # The part is longer than the server's file.
        (
            [file(DATA, at_most=4000), status(416), file(DATA)],
            [None, 4000, None],
        ),
    ],
)
def test_file_arrives_complete(fetch, site, tmp_path, pages, ranges):
    assert fetch(in_turn(*pages)) is True
    assert (tmp_path / "file").read_bytes() == DATA
    assert os.listdir(str(tmp_path)) == ["file"]
    assert site.requests == [
        ("/file", None if start is None else f"bytes={start}-")
        for start in ranges
    ]


def test_existing_file_is_not_downloaded(fetch, site, tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    assert fetch(status(500)) is False
    (tmp_path / "file").write_bytes(b"mine")
    assert "move it away" in error_of(fetch, file(DATA))
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert site.requests == []


def test_redirection_is_followed(fetch, tmp_path):
    fetch(redirect("/elsewhere"))
    assert (tmp_path / "file").read_bytes() == DATA


def test_next_command_resumes(fetch, site, tmp_path):
    text = error_of(fetch, in_turn(file(DATA, at_most=4000), status(503)))
    assert "HTTP 503" in text and "received 4000 of 10240 bytes" in text
    assert "3 attempts" in text and "--url_base" in text
    assert not (tmp_path / "file").exists()
    fetch(file(DATA))
    assert site.requests == [("/file", "bytes=4000-")]


def test_temporary_errors_are_retried(fetch, monkeypatch, tmp_path):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    fetch(
        in_turn(
            status(500),
            status(429, Retry_After="7"),
            status(503, Retry_After="3600"),
            file(DATA),
        ),
        retries=downloads.Retries(5.0, 5, 1.0),
    )
    assert waits == [1.0, 7.0, 60.0]
    assert (tmp_path / "file").read_bytes() == DATA


# --- Failures ---------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_final_errors_are_not_repeated(fetch, site, code):
    text = error_of(fetch, status(code))
    assert f"HTTP {code}" in text and "--url_base" in text
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "page, words",
    [
        (redirect("/file"), "HTTP 302"),
        (file(DATA, Content_Length=10239), "expected 10240 bytes, got 10239"),
        (file(DATA, Content_Length=10241), "expected 10240 bytes, got 10241"),
        (file(DATA * 9, Content_Length=None), "expected 10240 bytes, got more"),
        (file(OLD), f"SHA-256 {hashlib.sha256(OLD).hexdigest()}, expected"),
    ],
)
def test_another_file_is_rejected(fetch, tmp_path, page, words):
    assert words in error_of(fetch, page)
    assert os.listdir(str(tmp_path)) == []


def test_endless_interruptions_are_an_error(fetch):
    text = error_of(fetch, file(DATA, has_ranges=False, at_most=4000))
    assert "the connection ended early; received 4000 of 10240 bytes" in text


def test_silent_server_is_an_error(fetch):
    def silent(handler):
        handler.rfile.read(1)  # until the client closes the connection

    text = error_of(fetch, silent, retries=downloads.Retries(0.1, 2, 0.0))
    assert "timed out" in text and "2 attempts" in text


def test_missing_server_is_an_error(tmp_path):
    remote = downloads.Remote("http://127.0.0.1:9/file", 1, "0" * 64)
    with pytest.raises(errors.UserError, match="refused; received 0 of 1 byte"):
        downloads.fetch(remote, str(tmp_path / "file"), RETRIES)


def test_download_without_disk_space_does_not_start(fetch, site, monkeypatch):
    monkeypatch.setattr(
        downloads.shutil,
        "disk_usage",
        lambda path: types.SimpleNamespace(free=5120),
    )
    text = error_of(fetch, file(DATA))
    assert "needs 10240 bytes more, but 5120 are free" in text
    assert site.requests == []


# --- Mirrors and proxies ----------------------------------------------------


@pytest.mark.parametrize(
    "url_base, expected",
    [
        ("", "https://a.org/b/c.json"),
        ("https://m.org", "https://m.org/b/c.json"),
        ("http://m.org/x/", "http://m.org/x/b/c.json"),
        ("a.org=https://m.org", "https://m.org/b/c.json"),
        ("z.org=https://m.org", "https://a.org/b/c.json"),
        ("z.org=https://n.org, a.org=https://m.org", "https://m.org/b/c.json"),
        ("https://m.org/x=y", "https://m.org/x=y/b/c.json"),
    ],
)
def test_mirror_replaces_a_host(url_base, expected):
    assert downloads.redirected("https://a.org/b/c.json", url_base) == expected


@pytest.mark.parametrize(
    "url_base", ["m.org", "file:///etc", "a.org=m.org", "=", "https://"]
)
def test_mirror_must_be_an_address(url_base):
    with pytest.raises(errors.UserError, match="--url_base is"):
        downloads.redirected("https://a.org/b", url_base)


def test_proxy_of_the_usual_variable_is_used(site, tmp_path, monkeypatch):
    site.pages.clear()
    site.requests.clear()
    monkeypatch.setenv("http_proxy", site.base)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    url = "http://files.example/file"
    site.pages[url] = file(DATA)  # a proxy is asked for the whole address
    downloads.fetch(
        downloads.Remote(url, len(DATA), hashlib.sha256(DATA).hexdigest()),
        str(tmp_path / "file"),
        RETRIES,
    )
    assert site.requests == [(url, None)]
