# SPDX-License-Identifier: Apache-2.0
"""scripts/get_data.py: its catalogue, and its items from a local server."""

import hashlib
import os
import re
import subprocess
import sys

import pytest

from common import errors, files
from helpers import broken_server
from helpers.archive_files import write_tar, write_zip
from helpers.paths import REPOSITORY
from scripts import downloads, get_data

SCRIPT = REPOSITORY / "scripts" / "get_data.py"


@pytest.fixture(scope="module")
def site():
    with broken_server.running() as running:
        yield running


def serve(site, item, contents):
    """An item whose files have other contents, served where a mirror is."""
    site.pages.clear()
    remotes = {}
    for name, remote in item.files.items():
        data = contents[name]
        site.pages["/" + remote.url.split("/", 3)[3]] = broken_server.file(data)
        remotes[name] = downloads.Remote(
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
    assert get_data.get(item, str(tmp_path), site.base) == str(
        tmp_path / "squad"
    )
    assert (tmp_path / "squad" / "train-v1.1.json").read_bytes() == b"{}" * 9
    assert get_data.get(item, str(tmp_path), site.base) is None


@pytest.mark.parametrize(
    "name, write, file, place",
    [
        ("cola", write_zip, "CoLA.zip", "glue/CoLA"),
        ("qqp", write_zip, "QQP-clean.zip", "glue/QQP"),
        ("race", write_tar, "RACE.tar.gz", "RACE"),
    ],
)
def test_archives_become_their_folder(site, tmp_path, name, write, file, place):
    folder = place.split("/")[-1]
    write(tmp_path / "made", [(folder + "/train.tsv", b"1\tx\n")])
    item = serve(
        site, get_data.ITEMS[name], {file: (tmp_path / "made").read_bytes()}
    )
    out = tmp_path / "out"
    assert get_data.get(item, str(out), site.base) == str(out / place)
    assert [
        str(p.relative_to(out)) for p in out.glob("**/*") if p.is_file()
    ] == [place + "/train.tsv"]
    site.requests.clear()
    assert get_data.get(item, str(out), site.base) is None
    assert site.requests == []


def test_hostile_archive_leaves_no_folder(site, tmp_path):
    write_zip(tmp_path / "made", [("CoLA/a", b"x"), ("../evil", b"x")])
    item = serve(
        site,
        get_data.ITEMS["cola"],
        {"CoLA.zip": (tmp_path / "made").read_bytes()},
    )
    with pytest.raises(errors.UserError, match="outside of its folder"):
        get_data.get(item, str(tmp_path / "out"), site.base)
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
    get_data.get(item, str(tmp_path), site.base)
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


def test_wrong_file_is_one_line_and_exit_code_1(site, tmp_path):
    site.pages.clear()
    site.pages["/SQuAD-explorer/dataset/train-v1.1.json"] = broken_server.file(
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
    assert os.listdir(str(tmp_path / "out" / "squad")) == []
