# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server that breaks off, lies or sends something else."""

import hashlib
import os
import types

import pytest

from common import errors
from helpers import broken_server
from helpers.broken_server import answer, file, in_turn, status
from scripts import downloads

DATA = bytes(range(256)) * 40  # 10,240 bytes
PATIENCE = downloads.Patience(timeout=5.0, attempts=3, wait=0.0)


@pytest.fixture(scope="module")
def site():
    with broken_server.running() as running:
        yield running


@pytest.fixture
def fetch(site, tmp_path):
    """Function of a page that downloads it, expecting DATA."""

    def run(page, *, patience=PATIENCE, data=DATA):
        site.pages.clear()
        site.requests.clear()
        site.pages["/file"] = page
        remote = downloads.Remote(
            site.base + "/file", len(data), hashlib.sha256(data).hexdigest()
        )
        return downloads.fetch(remote, str(tmp_path / "file"), patience)

    return run


def refused(fetch, page, **options):
    """The one line that becomes of a page."""
    with pytest.raises(errors.UserError) as caught:
        fetch(page, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(os.listdir(str(folder)))


# --- What arrives -----------------------------------------------------------


def test_file_arrives_under_its_name_alone(fetch, site, tmp_path):
    assert fetch(file(DATA)) is True
    assert (tmp_path / "file").read_bytes() == DATA
    assert names(tmp_path) == ["file"]
    assert site.requests == [("/file", None)]


def test_file_that_is_there_is_not_asked_for(fetch, site, tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    assert fetch(status(500)) is False
    assert site.requests == []


def test_other_file_of_that_name_is_left_alone(fetch, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    assert "move it away" in refused(fetch, file(DATA))
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_redirection_is_followed(fetch, site, tmp_path):
    def page(handler):
        answer(handler, 302, b"", Location="/elsewhere")

    site.pages.clear()
    fetch(
        in_turn(
            lambda handler: (
                site.pages.update({"/elsewhere": file(DATA)}) or page(handler)
            )
        )
    )
    assert (tmp_path / "file").read_bytes() == DATA


def test_endless_redirection_is_an_error(fetch):
    assert "HTTP 302" in refused(
        fetch, lambda handler: answer(handler, 302, b"", Location="/file")
    )


# --- What breaks off --------------------------------------------------------


def test_broken_download_goes_on_where_it_was(fetch, site, tmp_path):
    fetch(file(DATA, at_most=4000))
    assert (tmp_path / "file").read_bytes() == DATA
    assert [range_ for _, range_ in site.requests] == [
        None,
        "bytes=4000-",
        "bytes=8000-",
    ]


def test_next_command_goes_on_too(fetch, site, tmp_path):
    text = refused(fetch, in_turn(file(DATA, at_most=4000), status(503)))
    assert "HTTP 503" in text and "4000 of 10240 bytes came" in text
    assert "3 attempts" in text and "--url_base" in text
    assert not (tmp_path / "file").exists()
    fetch(file(DATA))
    assert site.requests == [("/file", "bytes=4000-")]
    assert names(tmp_path) == ["file"]


def test_file_that_changed_meanwhile_is_loaded_anew(fetch, site, tmp_path):
    old = b"x" * len(DATA)
    fetch(in_turn(file(old, tag='"old"', at_most=4000), file(DATA)))
    assert (tmp_path / "file").read_bytes() == DATA
    assert len(site.requests) == 2


def test_parts_of_two_versions_are_noticed(fetch, site, tmp_path):
    # No entity tag tells them apart, the checksum does.
    old = b"x" * len(DATA)
    fetch(in_turn(file(old, tag=None, at_most=4000), file(DATA, tag=None)))
    assert (tmp_path / "file").read_bytes() == DATA
    assert [range_ for _, range_ in site.requests] == [
        None,
        "bytes=4000-",
        None,
    ]


def test_server_without_ranges_sends_all_again(fetch, site, tmp_path):
    fetch(
        in_turn(
            file(DATA, has_ranges=False, at_most=4000),
            file(DATA, has_ranges=False),
        )
    )
    assert (tmp_path / "file").read_bytes() == DATA
    assert len(site.requests) == 2


def test_server_without_ranges_that_breaks_off_for_ever(fetch):
    text = refused(fetch, file(DATA, has_ranges=False, at_most=4000))
    assert "the connection ended early" in text
    assert "4000 of 10240 bytes came" in text


def test_other_part_than_asked_for_is_not_taken(fetch, tmp_path):
    def wrong(handler):
        answer(handler, 206, DATA[100:], Content_Range="bytes 100-10239/10240")

    fetch(in_turn(file(DATA, at_most=4000), wrong, file(DATA)))
    assert (tmp_path / "file").read_bytes() == DATA


def test_part_longer_than_the_servers_file_is_dropped(fetch, tmp_path):
    fetch(in_turn(file(DATA, at_most=4000), status(416), file(DATA)))
    assert (tmp_path / "file").read_bytes() == DATA


def test_silent_server_is_given_up(fetch):
    def silent(handler):
        handler.rfile.read(1)  # until the other side leaves

    text = refused(fetch, silent, patience=downloads.Patience(0.1, 2, 0.0))
    assert "timed out" in text and "2 attempts" in text


def test_no_server_is_an_error(tmp_path):
    remote = downloads.Remote("http://127.0.0.1:9/file", 1, "0" * 64)
    with pytest.raises(errors.UserError, match="refused; 0 of 1 bytes came"):
        downloads.fetch(remote, str(tmp_path / "file"), PATIENCE)


def test_passing_errors_are_waited_out(fetch, site, monkeypatch, tmp_path):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    fetch(
        in_turn(
            status(500),
            status(429, Retry_After="7"),
            status(503, Retry_After="3600"),
            file(DATA),
        ),
        patience=downloads.Patience(5.0, 5, 1.0),
    )
    assert waits == [1.0, 7.0, 60.0]
    assert (tmp_path / "file").read_bytes() == DATA


# --- What is not the file ---------------------------------------------------


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_final_errors_are_not_repeated(fetch, site, code):
    text = refused(fetch, status(code))
    assert f"HTTP {code}" in text and "--url_base" in text
    assert len(site.requests) == 1


def test_wrong_file_of_the_same_size_is_refused(fetch, site, tmp_path):
    text = refused(fetch, file(b"x" * len(DATA)))
    assert hashlib.sha256(DATA).hexdigest() in text
    assert hashlib.sha256(b"x" * len(DATA)).hexdigest() in text
    assert names(tmp_path) == [] and len(site.requests) == 1


@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA) + 1])
def test_wrong_length_is_refused(fetch, tmp_path, length):
    text = refused(fetch, file(DATA, Content_Length=length))
    assert f"has {length} bytes, expected are 10240" in text
    assert names(tmp_path) == []


def test_endless_body_is_refused(fetch, tmp_path):
    text = refused(fetch, file(DATA * 100, Content_Length=None))
    assert "has more than 10240 bytes" in text and names(tmp_path) == []


def test_download_that_finds_no_room_is_not_begun(fetch, site, monkeypatch):
    monkeypatch.setattr(
        downloads.shutil,
        "disk_usage",
        lambda path: types.SimpleNamespace(free=5120),
    )
    text = refused(fetch, file(DATA))
    assert "needs 10240 bytes more, and 5120 are free" in text
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
def test_mirror_takes_the_place_of_a_host(url_base, expected):
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
        PATIENCE,
    )
    assert site.requests == [(url, None)]
