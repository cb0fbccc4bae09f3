# SPDX-License-Identifier: Apache-2.0
"""scripts/get_data.py: its catalogue, and its items from a local server."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from common import errors, files
from helpers import broken_server
from helpers.archive_files import write_tar, write_zip
from helpers.broken_server import answer, file, in_turn, status
from helpers.paths import REPOSITORY
from scripts import get_data

pytest.importorskip("pooch")
pytest.importorskip("huggingface_hub")
DATA = bytes(range(256)) * 400
OLD = DATA[::-1]
SCRIPT = REPOSITORY / "scripts" / "get_data.py"


@pytest.fixture(scope="module")
def site():
    with broken_server.running() as running:
        yield running


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """No waits, and no proxy."""
    monkeypatch.setattr(get_data.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def settings(directory, url_base="", **flags):
    return get_data.DataConfig(
        output_dir=str(directory), url_base=url_base, **flags
    )


def serve(site, item, contents):
    """An item whose files have other contents, served where a mirror is."""
    site.pages.clear()
    remotes = {}
    for name, remote in item.files.items():
        data = contents[name]
        site.pages["/" + remote.url.split("/", 3)[3]] = file(data)
        remotes[name] = get_data.Remote(
            remote.url, len(data), hashlib.sha256(data).hexdigest()
        )
    return item._replace(files=remotes)


def run(*arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT)] + list(arguments),
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ, no_proxy="127.0.0.1"),
    )
    return done.returncode, done.stdout, done.stderr


# --- The catalogue ----------------------------------------------------------


def test_every_file_has_an_address_a_size_and_a_checksum():
    for item in get_data.ITEMS.values():
        assert item.licence and item.home.startswith("https://")
        for remote in item.files.values():
            is_config = remote.url.endswith("/config.json")
            assert remote.size > (400 if is_config else 1000)
            assert remote.url.startswith("https://")
            assert re.fullmatch("[0-9a-f]{64}", remote.sha256)
            assert "token" not in remote.url and "?" not in remote.url


def test_items_do_not_share_a_place():
    places = [
        (item.folder, name)
        for item in get_data.ITEMS.values()
        for name in item.files
    ]
    assert len(set(places)) == len(places)


def test_both_models_have_the_tokenizer_that_the_tests_use(shared):
    for name in ("vocab.json", "merges.txt"):
        expected = files.sha256(str(shared / "data" / "roberta" / name))
        for model in ("roberta_base", "roberta_large"):
            assert get_data.ITEMS[model].files[name].sha256 == expected


@pytest.mark.parametrize(
    "names, expected",
    [
        (["squad"], ["squad_v1.1", "squad_v2.0"]),
        (
            ["RTE", "glue"],
            ["rte"]
            + [
                "cola",
                "sst-2",
                "mrpc",
                "qqp",
                "sts-b",
                "mnli",
                "qnli",
                "wnli",
                "ax",
            ],
        ),
        (["roberta-base"], ["roberta_base"]),
    ],
)
def test_names_and_groups(names, expected):
    assert get_data.chosen(names) == expected


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "--list"),
        (["squat"], "expected one of ax, cola"),
        (["conll2003"], "Reuters"),
    ],
)
def test_unavailable_names_are_rejected(names, words):
    with pytest.raises(errors.UserError, match=words):
        get_data.chosen(names)


# --- Items ------------------------------------------------------------------


def test_files_are_downloaded_once(site, tmp_path):
    item = serve(
        site,
        get_data.ITEMS["squad_v1.1"],
        {"train-v1.1.json": b"{}" * 9, "dev-v1.1.json": b"{}"},
    )
    config = settings(tmp_path, site.base)
    assert get_data.get(item, config) == str(tmp_path / "squad")
    assert (tmp_path / "squad" / "train-v1.1.json").read_bytes() == b"{}" * 9
    assert get_data.get(item, config) is None


@pytest.mark.parametrize(
    "name, write, archive, place",
    [
        ("cola", write_zip, "CoLA.zip", "glue/CoLA"),
        ("qqp", write_zip, "QQP-clean.zip", "glue/QQP"),
        ("race", write_tar, "RACE.tar.gz", "RACE"),
    ],
)
def test_archives_become_their_folder(
    site, tmp_path, name, write, archive, place
):
    folder = place.split("/")[-1]
    write(tmp_path / "made", [(folder + "/train.tsv", b"1\tx\n")])
    item = serve(
        site, get_data.ITEMS[name], {archive: (tmp_path / "made").read_bytes()}
    )
    out = tmp_path / "out"
    config = settings(out, site.base)
    assert get_data.get(item, config) == str(out / place)
    assert [
        str(p.relative_to(out)) for p in out.glob("**/*") if p.is_file()
    ] == [place + "/train.tsv"]
    site.requests.clear()
    assert get_data.get(item, config) is None
    assert site.requests == []


def test_hostile_archive_leaves_no_folder(site, tmp_path):
    write_zip(tmp_path / "made", [("CoLA/a", b"x"), ("../evil", b"x")])
    item = serve(
        site,
        get_data.ITEMS["cola"],
        {"CoLA.zip": (tmp_path / "made").read_bytes()},
    )
    with pytest.raises(errors.UserError, match="outside of its folder"):
        get_data.get(item, settings(tmp_path / "out", site.base))
    assert os.listdir(str(tmp_path / "out" / "glue")) == ["CoLA.download"]
    assert not list(tmp_path.glob("**/evil"))


def test_mrpc_gets_glues_layout(site, tmp_path):
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    item = serve(
        site,
        get_data.ITEMS["mrpc"],
        {
            "mrpc_dev_ids.tsv": b"3\t4\n",
            "msr_paraphrase_train.txt": (
                "\ufeff"
                + head
                + ('1\t1\t2\tA \u2028 b\tB\r\n0\t3\t4\tC "d\tD\r\n')
            ).encode("utf-8"),
            "msr_paraphrase_test.txt": (head + "1\t5\t6\tE\tF\r\n").encode(),
        },
    )
    get_data.get(item, settings(tmp_path, site.base))
    folder = tmp_path / "glue" / "MRPC"
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    assert {
        p.name: p.read_bytes().decode("utf-8") for p in folder.iterdir()
    } == {
        "train.tsv": head + "1\t1\t2\tA \u2028 b\tB\n",
        "dev.tsv": head + '0\t3\t4\tC "d\tD\n',
        "test.tsv": head.replace("Quality", "index") + "0\t5\t6\tE\tF\n",
    }
    assert os.listdir(str(tmp_path / "glue")) == ["MRPC"]


# --- Downloads --------------------------------------------------------------


@pytest.fixture
def fetch(site, tmp_path):
    """Function of a page that downloads it, expecting DATA."""

    def run(page, **flags):
        site.pages.clear()
        site.requests.clear()
        site.pages["/file"] = page
        remote = get_data.Remote(
            "https://huggingface.co/file",
            len(DATA),
            hashlib.sha256(DATA).hexdigest(),
        )
        return get_data.fetch(
            remote, str(tmp_path / "file"), settings("", site.base, **flags)
        )

    return run


def error_of(fetch, page, **flags):
    """The message, one line, of a download that fails."""
    with pytest.raises(errors.UserError) as caught:
        fetch(page, attempts=3, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "pages, starts",
    [
        ([file(DATA)], [0]),
        # Three connections, each closed by the server.
        ([file(DATA, at_most=32768)], [0, 32768, 65536, 98304]),
        # The file changes between two requests.
        ([file(OLD, at_most=32768), file(DATA)], [0, 32768, 0]),
        # A server without ranges sends everything again.
        (
            [
                file(DATA, has_ranges=False, at_most=32768),
                file(DATA, has_ranges=False),
            ],
            [0, 32768],
        ),
        ([status(500), status(429), file(DATA)], [0, 0, 0]),
    ],
)
def test_a_file_arrives_complete(fetch, site, tmp_path, pages, starts):
    assert fetch(in_turn(*pages)) is True
    assert (tmp_path / "file").read_bytes() == DATA
    assert os.listdir(str(tmp_path)) == ["file"]
    assert site.requests == [("/file", f"bytes={start}-") for start in starts]
    assert fetch(status(500)) is False
    (tmp_path / "file").write_bytes(b"mine")
    assert "move it away" in error_of(fetch, file(DATA))
    assert (tmp_path / "file").read_bytes() == b"mine" and not site.requests


def test_the_next_command_resumes(fetch, site, tmp_path):
    text = error_of(fetch, in_turn(file(DATA, at_most=32768), status(503)))
    assert "503" in text and "same command" in text and "--url_base" in text
    assert os.listdir(str(tmp_path)) == ["file.part"]
    fetch(file(DATA))
    assert site.requests == [("/file", "bytes=32768-")]


@pytest.mark.parametrize(
    "page, words, count",
    [
        (status(404), "HTTP 404", 1),
        (
            file(DATA, Content_Length=102399),
            "expected 102400 bytes, got 102399",
            1,
        ),
        (file(OLD), "SHA256 hash of downloaded file", 1),
        (lambda handler: handler.rfile.read(1), "timed out", 3),
    ],
)
def test_failing_downloads_are_one_line(
    fetch, site, page, words, count, caplog
):
    assert words in error_of(fetch, page, timeout=0.2)
    assert len(site.requests) == count
    # No wait is silent, none comes after the last request.
    assert (
        re.findall("trying again in (.*) s", caplog.text)
        == ["2", "4"][: count - 1]
    )


def test_models_come_from_the_hubs_mirror(site, tmp_path, monkeypatch):
    import huggingface_hub

    item = get_data.ITEMS["roberta_base"]
    item = serve(site, item, {name: DATA for name in item.files})
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.UserError, match="HF_HUB_OFFLINE is set; copy"):
        get_data.get(item, settings(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", site.base)
    assert get_data.get(item, settings(tmp_path)) == str(
        tmp_path / "roberta_base"
    )


@pytest.mark.parametrize(
    "url_base, expected",
    [
        ("", "https://a.org/b/c.json"),
        ("https://m.org", "https://m.org/b/c.json"),
        ("a.org=http://m.org/x/", "http://m.org/x/b/c.json"),
        ("z.org=https://n.org, a.org=https://m.org", "https://m.org/b/c.json"),
        ("https://m.org/x=y", "https://m.org/x=y/b/c.json"),
    ],
)
def test_a_mirror_replaces_a_host(url_base, expected):
    assert get_data.redirected("https://a.org/b/c.json", url_base) == expected


@pytest.mark.parametrize(
    "url_base", ["m.org", "file:///etc", "a.org=m.org", "=", "https://"]
)
def test_a_mirror_must_be_an_address(url_base):
    with pytest.raises(errors.UserError, match="--url_base is"):
        get_data.redirected("https://a.org/b", url_base)


# --- Archives ---------------------------------------------------------------


def _with_kind(kind):
    return lambda path, members: write_tar(path, members, {"T/x": kind})


@pytest.mark.parametrize(
    "write, extra, words",
    [
        (write_zip, [("../evil", b"x")], "outside of its folder"),
        (write_tar, [("T/../../evil", b"x")], "outside of its folder"),
        (write_tar, [("/tmp/evil", b"x")], "outside of its folder"),
        (_with_kind(tarfile.SYMTYPE), [("T/x", b"x")], "which is a link"),
        (_with_kind(tarfile.FIFOTYPE), [("T/x", b"x")], "which is a link"),
        (write_zip, [("T/bomb", bytes(90000))], "more than 80000 bytes"),
        (write_tar, [("T/bomb", bytes(90000))], "more than 80000 bytes"),
        (write_zip, [(f"T/{n}", b"") for n in range(3)], "or 3 files"),
        (lambda path, _: path.write_bytes(b"<html>"), [], "cannot be unpacked"),
        (write_zip, [], "No such file or directory"),
    ],
)
def test_a_hostile_archive_is_not_unpacked(
    tmp_path, monkeypatch, write, extra, words
):
    monkeypatch.setattr(get_data, "_MAX_BYTES", 80000)
    monkeypatch.setattr(get_data, "_MAX_FILES", 3)
    path = tmp_path / ("a.zip" if write is write_zip else "a.tar.gz")
    write(path, [("Else/a", b"x"), *extra])
    (tmp_path / "deep").mkdir()
    with pytest.raises(errors.UserError, match=words) as caught:
        get_data.unpack(str(path), "T", str(tmp_path / "deep" / "T"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "deep").iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_zip_cannot_write_more_than_it_states(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, [("T/bomb", bytes(5000000))])
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24  # the central directory's size
    data[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(errors.UserError, match="cannot be unpacked"):
        get_data.unpack(str(path), "T", str(tmp_path / "T"))
    assert os.listdir(str(tmp_path)) == ["a.zip"]


# --- The command line -------------------------------------------------------


def test_list_shows_every_item():
    code, output, _ = run("--list")
    assert code == 0
    lines = output.splitlines()
    for name, item in get_data.ITEMS.items():
        (line,) = [line for line in lines if line.split()[0] == name]
        assert item.licence in line and item.home in line
    assert re.search(r"squad_v1\.1 +35\.1 MB", output)
    assert re.search(r"roberta_large +1423\.1 MB", output)
    assert re.search("conll2003 .*NIST", output)


@pytest.mark.parametrize(
    "number, words",
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "interrupted by SIGTERM"),
    ],
)
def test_a_signal_keeps_what_arrived(site, tmp_path, number, words):
    test_ends = threading.Event()

    def page(handler):
        size = get_data.ITEMS["squad_v1.1"].files["train-v1.1.json"].size
        answer(handler, 206, bytes(1 << 16), Content_Length=size)
        test_ends.wait(60)

    site.pages.clear()
    site.pages["/SQuAD-explorer/dataset/train-v1.1.json"] = page
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "squad_v1.1"]
        + [f"--output_dir={tmp_path}", "--url_base=" + site.base],
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env=dict(os.environ, no_proxy="127.0.0.1"),
    )
    part = tmp_path / "squad" / "train-v1.1.json.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    test_ends.set()
    assert process.returncode == 128 + number
    # The line of the progress bar has ended.
    assert error.endswith(
        f"\nget_data.py: {words}; run the same command again to resume\n"
    )
    assert list((tmp_path / "squad").iterdir()) == [part]


def test_wrong_file_is_one_line_and_exit_code_1(site, tmp_path):
    site.pages.clear()
    site.pages["/SQuAD-explorer/dataset/train-v1.1.json"] = file(
        b"<html>log in</html>"
    )
    code, output, error = run(
        "squad_v1.1",
        f"--output_dir={tmp_path / 'out'}",
        "--url_base=rajpurkar.github.io=" + site.base,
    )
    assert (code, output) == (1, "")
    last = error.splitlines()[-1]
    assert last.startswith("get_data.py: error: http://127.0.0.1")
    assert "expected 30288272 bytes, got 19" in last
    assert "Traceback" not in error
    assert os.listdir(str(tmp_path / "out" / "squad")) == [
        "train-v1.1.json.part"
    ]
