#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Downloads data sets and published weights, each checked by its SHA-256.

    python scripts/get_data.py --list
    python scripts/get_data.py squad_v1.1 squad_v2.0 --output_dir=data
    python scripts/get_data.py roberta_base glue --url_base=https://mirror/x

The same command resumes an interrupted download. --url_base=ADDRESS replaces
every host by a mirror, --url_base=HOST=ADDRESS,... some hosts; HF_ENDPOINT
replaces that of the models. Proxies are those of the usual variables
(https_proxy). --timeout and --attempts limit how long the script waits for a
server.
"""

import dataclasses
import importlib
import os
import pathlib
import shutil
import sys
import tarfile
import time
import typing
import urllib.parse
import zipfile
import zlib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import common.startup

import tqdm
from absl import flags, logging

from common import command_line, errors, files

FLAGS = flags.FLAGS
# Of all files of an archive together.
_MAX_BYTES = 4 << 30
_MAX_FILES = 100000
_CHUNK_BYTES = 1 << 14
# Answers of 400 to 499 after which the same request may succeed (RFC 9110;
# 429: RFC 6585).
_TEMPORARY_CODES = (408, 429)
_LONGEST_WAIT_SECONDS = 60.0
# What Python's modules raise for damaged archives.
_DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    IndexError,  # an empty name
    RuntimeError,  # NotImplementedError too
    ValueError,  # UnicodeError too
    OSError,
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Flags of this script."""

    list: bool = command_line.flag(
        False, "Print the items with size, licence and home page."
    )
    output_dir: str = command_line.flag("data", "Directory of the downloads.")
    url_base: str = command_line.flag(
        "",
        "A mirror: an address that replaces https://HOST, or "
        "HOST=ADDRESS, comma separated, for some hosts.",
    )
    timeout: float = command_line.flag(
        60.0,
        "Seconds without a byte after which a connection is closed.",
        lower=0.1,
    )
    attempts: int = command_line.flag(
        5, "Requests in a row that may bring no new bytes.", lower=1
    )


class Remote(typing.NamedTuple):
    """A file on a server."""

    url: str
    size: int  # bytes
    sha256: str  # 64 hexadecimal digits


class Item(typing.NamedTuple):
    """Something to download."""

    folder: str  # below --output_dir
    files: typing.Dict[str, Remote]  # by name
    licence: str  # as the home page states it
    home: str  # the page that describes it
    # Makes the second argument, a directory, of the files in the first one;
    # None where the files are used as they are.
    finish: typing.Optional[typing.Callable[[str, str], None]] = None

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(remote.size for remote in self.files.values())


# Licences: as the homes state them, and Hugging Face's cards of multi_nli and
# winograd_wsc. Sizes and checksums: huggingface/datasets at 040102f
# (dataset_infos.json of squad, squad_v2, glue, race), which recorded them from
# these addresses.
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
_TASKS_PAGE = "https://gluebenchmark.com/tasks"
_SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
_HUB = "https://huggingface.co/FacebookAI/"


def _remotes(base, contents):
    """{name: Remote} of {name: (size, SHA-256)} below an address."""
    return {
        name: Remote(base + name, *content)
        for name, content in contents.items()
    }


def _squad(version, train, dev):
    return Item(
        "squad",
        _remotes(
            _SQUAD,
            {f"train-v{version}.json": train, f"dev-v{version}.json": dev},
        ),
        "CC BY-SA 4.0",
        "https://rajpurkar.github.io/SQuAD-explorer/",
    )


def _unpack(folder):
    """The `finish` of an archive with one top folder."""

    def finish(source, target):
        (archive,) = os.listdir(source)
        unpack(os.path.join(source, archive), folder, target)

    return finish


def _glue(folder, archive, size, sha256, licence, home=_TASKS_PAGE):
    return Item(
        "glue/" + folder,
        _remotes(_GLUE, {archive: (size, sha256)}),
        licence,
        home,
        _unpack(folder),
    )


def _model(name, revision, config, weights):
    """A model of the Hub at a fixed commit."""
    contents = {
        "config.json": config,
        "vocab.json": (
            898823,
            "9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
        ),
        "merges.txt": (
            456318,
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        ),
        "model.safetensors": weights,
    }
    return Item(
        name.replace("-", "_"),
        _remotes(f"{_HUB}{name}/resolve/{revision}/", contents),
        "MIT",
        _HUB + name,
    )


def _make_mrpc(source, target):
    """Writes train.tsv, dev.tsv and test.tsv in GLUE's layout.

    The corpus comes in two files; GLUE's dev set is a part of its train file,
    given by pairs of ids.
    """

    def lines(name):
        path = os.path.join(source, name)
        with open(path, encoding="utf-8-sig", newline="") as stream:
            for line in stream.read().rstrip("\n").split("\n"):
                yield line.rstrip("\r").split("\t")

    dev_ids = {tuple(row[:2]) for row in lines("mrpc_dev_ids.tsv")}
    header, *rows = lines("msr_paraphrase_train.txt")
    test_header, *test_rows = lines("msr_paraphrase_test.txt")
    tables = {
        "train.tsv": [header]
        + [row for row in rows if tuple(row[1:3]) not in dev_ids],
        "dev.tsv": [header]
        + [row for row in rows if tuple(row[1:3]) in dev_ids],
        "test.tsv": [["index"] + test_header[1:]]
        + [[str(index)] + row[1:] for index, row in enumerate(test_rows)],
    }
    with files.scratch_directory(target) as directory:
        for name, table in tables.items():
            files.write_text(
                os.path.join(directory, name),
                "".join("\t".join(row) + "\n" for row in table),
            )
        os.rename(directory, target)


_TASKS = {
    "cola": _glue(
        "CoLA",
        "CoLA.zip",
        376971,
        "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
        "none; its authors expect research to be fair use in the US",
        "https://nyu-mll.github.io/CoLA/",
    ),
    "sst-2": _glue(
        "SST-2",
        "SST-2.zip",
        7439277,
        "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
        "none stated",
        "https://nlp.stanford.edu/sentiment/",
    ),
    "mrpc": Item(
        "glue/MRPC",
        {
            "mrpc_dev_ids.tsv": Remote(
                _GLUE + "mrpc_dev_ids.tsv",
                6222,
                "971d7767d81b997fd9060ade0ec23c4f"
                "c31cbb226a55d1bd4a1bac474eb81dc7",
            ),
            "msr_paraphrase_train.txt": Remote(
                _SENTEVAL + "msr_paraphrase_train.txt",
                1047044,
                "60a9b09084528f0673eedee2b69cb941"
                "920f0b8cd0eeccefc464a98768457f89",
            ),
            "msr_paraphrase_test.txt": Remote(
                _SENTEVAL + "msr_paraphrase_test.txt",
                441275,
                "a04e271090879aaba6423d65b94950c0"
                "89298587d9c084bf9cd7439bd785f784",
            ),
        },
        "Microsoft Research's, see its home",
        "https://www.microsoft.com/en-us/download/details.aspx?id=52398",
        _make_mrpc,
    ),
    "qqp": _glue(
        "QQP",
        "QQP-clean.zip",
        41696084,
        "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
        "Quora's terms of service: non-commercial use",
        "https://quoradata.quora.com/First-Quora-Dataset-Release-"
        "Question-Pairs",
    ),
    "sts-b": _glue(
        "STS-B",
        "STS-B.zip",
        802872,
        "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
        "differs by the source of its texts, see its home",
    ),
    "mnli": _glue(
        "MNLI",
        "MNLI.zip",
        312783507,
        "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
        "OANC's; of its fiction CC BY 3.0, CC BY-SA 3.0 and others",
        "https://cims.nyu.edu/~sbowman/multinli/",
    ),
    "qnli": _glue(
        "QNLI",
        "QNLIv2.zip",
        10627589,
        "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
        "CC BY-SA 4.0, as SQuAD, of which it is made",
    ),
    "rte": _glue(
        "RTE",
        "RTE.zip",
        697150,
        "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
        "none stated",
    ),
    "wnli": _glue(
        "WNLI",
        "WNLI.zip",
        28999,
        "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
        "CC BY 4.0, as the Winograd schemas of which it is made",
        "https://cs.nyu.edu/~davise/papers/WinogradSchemas/WS.html",
    ),
    "ax": Item(
        "glue/AX",
        {
            "AX.tsv": Remote(
                _GLUE + "AX.tsv",
                222257,
                "0e13510b1bb14436ff7e2ee82338f0ef"
                "b0133ecf2e73507a697dc210db3f05fd",
            )
        },
        "none stated",
        "https://gluebenchmark.com/diagnostics",
    ),
}
ITEMS = {
    "squad_v1.1": _squad(
        "1.1",
        (
            30288272,
            "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
        ),
        (
            4854279,
            "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        ),
    ),
    "squad_v2.0": _squad(
        "2.0",
        (
            42123633,
            "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
        ),
        (
            4370528,
            "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
        ),
    ),
    **_TASKS,
    "race": Item(
        "RACE",
        {
            "RACE.tar.gz": Remote(
                "https://www.cs.cmu.edu/~glai1/data/race/RACE.tar.gz",
                25443609,
                "b2769cc9fdc5c546a693300eb9a966ce"
                "c6870bd349fbc44ed5225f8ad33006e5",
            )
        },
        "non-commercial research only",
        "https://www.cs.cmu.edu/~glai1/data/race/",
        _unpack("RACE"),
    ),
    # The Hub shows the weights' checksums; public projects record the
    # others for these commits.
    "roberta_base": _model(
        "roberta-base",
        "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        (
            481,
            "ef0185e2aae6e06c5f105a285006952c340e20c7dbf43c86ec82601b13fc45e9",
        ),
        (
            498818054,
            "5bde1d28afb363d0103324efeb5afc8b2b397fe5e04beabb9b1ef355255ade81",
        ),
    ),
    "roberta_large": _model(
        "roberta-large",
        "722cf37b1afa9454edce342e7895e588b6ff1d59",
        (
            482,
            "82ba49810e6441735e696033ac2512ee09da555507b2917ac3865b202d592cc3",
        ),
        (
            1421700479,
            "047c85f0b96269cd62e6f732644f067004eebd95af5b5d35965ae2528f13bf38",
        ),
    ),
}
GROUPS = {"squad": ["squad_v1.1", "squad_v2.0"], "glue": list(_TASKS)}
# Data sets that may not be redistributed.
ELSEWHERE = {
    "conll2003": "its text is of the Reuters Corpus, which NIST gives to "
    "those who sign its agreement "
    "(https://trec.nist.gov/data/reuters/reuters.html); "
    "the annotations, and how to join both, are at "
    "https://www.clips.uantwerpen.be/conll2003/ner/",
    "bookcorpus": "it has no public home any more; use any text with a "
    "sentence or paragraph per line",
}


def readable(size: int) -> str:
    """`30.3 MB`, `29.0 kB`."""
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB"


def print_list() -> None:
    """Prints every item and group: name, size, directory, licence, home."""
    rows = [("ITEM", "DOWNLOAD", "DIRECTORY", "LICENCE; HOME")]
    for name, item in ITEMS.items():
        about = f"{item.licence}; {item.home}"
        rows.append((name, readable(item.size), item.folder, about))
    for name, members in GROUPS.items():
        size = sum(ITEMS[member].size for member in members)
        about = "all of: " + ", ".join(members)
        rows.append((name, readable(size), name, about))
    for name, size, folder, about in rows:
        print(f"{name:<14} {size:>11}  {folder:<14} {about}")
    for name, reason in ELSEWHERE.items():
        print(f"{name:<14} cannot be downloaded: {reason}")


def chosen(names: typing.List[str]) -> typing.List[str]:
    """The items of some names, groups resolved.

    Raises:
      errors.UserError: a name is not known.
    """
    if not names:
        raise errors.UserError(
            "no items given; name some, such as squad_v1.1 roberta_base "
            "(--list shows all)"
        )
    items = []
    for name in names:
        name = name.lower().replace("roberta-", "roberta_")
        if name in ELSEWHERE:
            raise errors.UserError(
                f"{name}: cannot be downloaded; {ELSEWHERE[name]}"
            )
        if name not in ITEMS and name not in GROUPS:
            raise errors.UserError(
                f"{name} is not known; expected one of "
                f"{', '.join(sorted([*ITEMS, *GROUPS]))}"
            )
        items += GROUPS.get(name, [name])
    return list(dict.fromkeys(items))


def redirected(url: str, url_base: str) -> str:
    """The address of a file on a mirror.

    Args:
      url: `https://HOST/PATH`.
      url_base: "" for no mirror; a base that replaces `https://HOST` of every
        address; or `HOST=BASE`, comma separated, for some hosts only.

    Raises:
      errors.UserError: url_base is neither.

    Example: redirected("https://a.org/b/c", "a.org=http://m.org/x") ==
      "http://m.org/x/b/c"
    """
    parsed = urllib.parse.urlsplit(url)
    for mirror in filter(None, map(str.strip, url_base.split(","))):
        host, _, base = mirror.partition("=")
        if "://" in host:
            host, base = "", mirror
        target = urllib.parse.urlsplit(base)
        if target.scheme not in ("http", "https") or not target.netloc:
            raise errors.UserError(
                f"--url_base is {mirror!r}; expected an address such as "
                "https://mirror.example/files, or HOST=ADDRESS for one host"
            )
        if host in ("", parsed.netloc):
            return base.rstrip("/") + parsed.path
    return url


def _package(name):
    """A module of the packages of requirements/hub.txt."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise errors.missing_package("get_data.py", package, "hub") from None


def fetch(remote: Remote, path: str, config: DataConfig) -> bool:
    """Downloads a file unless it exists; each request resumes the last one.

    Args:
      remote: address, size and checksum.
      path: of the file; received bytes are kept in `path`.part until then.
      config: flags.

    Returns:
      Whether it was downloaded; False where it existed.

    Raises:
      errors.UserError: the download failed, or the file differs from the
        expected one.
    """
    hub = _package("huggingface_hub.constants")
    mirrors = f"{config.url_base},huggingface.co={hub.ENDPOINT}"
    remote = remote._replace(url=redirected(remote.url, mirrors))
    if os.path.exists(path):
        if files.sha256(path) != remote.sha256:
            raise errors.UserError(
                f"{path}: exists with another SHA-256 than {remote.sha256}; "
                "move it away to download it"
            )
        return False
    if hub.HF_HUB_OFFLINE:
        raise errors.UserError(
            f"{path}: does not exist, and HF_HUB_OFFLINE is set; copy it, or "
            f"unset the variable to download {remote.url}"
        )
    failures = 0
    while failures < config.attempts:
        start = _size(path + ".part")
        try:
            _retrieve(remote, path, config.timeout)
            return True
        except errors.UserError:
            raise
        except (_package("requests").RequestException, ValueError) as error:
            failures = 0 if _size(path + ".part") > start else failures + 1
            problem = f"{remote.url}: {error}"
            # The parts of a file with another checksum, a ValueError of
            # pooch's, may be of two versions: repeat.
            if isinstance(error, ValueError) and not start:
                break
            if failures < config.attempts:
                seconds = min(2.0**failures, _LONGEST_WAIT_SECONDS)
                logging.warning("%s; trying again in %g s", problem, seconds)
                time.sleep(seconds)
    raise errors.UserError(
        f"{problem}; check the connection and run the same command again to "
        "resume, or pass a mirror with --url_base"
    )


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def _retrieve(remote, path, timeout):
    """Requests the rest of a file, verifies and renames it."""
    pooch = _package("pooch")

    def download(url, output, _):
        with open(path + ".part", "ab") as stream:
            start = stream.tell()
            if start != remote.size:
                # It ends its line whatever ends the download.
                with tqdm.tqdm(
                    total=remote.size, unit="B", unit_scale=True, ncols=79
                ) as progress:
                    pooch.HTTPDownloader(
                        progressbar=progress,
                        chunk_size=_CHUNK_BYTES,
                        timeout=timeout,
                        headers={
                            "Range": f"bytes={start}-",
                            "Accept-Encoding": "identity",
                        },
                        hooks={"response": _checking(remote, stream)},
                    )(url, stream, None)
        if _size(path + ".part") < remote.size:  # older releases of urllib3
            raise _package("requests").ConnectionError("it ended early")
        os.replace(path + ".part", output)

    pooch.retrieve(
        remote.url,
        "sha256:" + remote.sha256,
        fname=os.path.basename(path),
        path=os.path.dirname(path),
        downloader=download,
    )


def _checking(remote, stream):
    """A function of a response, to be called before its body is read."""
    start = stream.tell()

    def check(response, **_):
        code = response.status_code
        if code in (200, 416):  # the entire file; the server's is shorter
            stream.truncate(0)
        if 400 <= code < 500 and code not in _TEMPORARY_CODES:
            raise errors.UserError(
                f"{remote.url}: HTTP {code} {response.reason}; pass a mirror "
                "with --url_base"
            )
        length = response.headers.get("Content-Length", "")
        expected = remote.size - (start if code == 206 else 0)
        if code in (200, 206) and length not in ("", str(expected)):
            raise errors.UserError(
                f"{remote.url}: expected {expected} bytes, got {length}; it is "
                "another file, such as a proxy's login page: open it in a "
                "browser, or try another --url_base"
            )

    return check


def unpack(archive: str, folder: str, target: str) -> None:
    """Unpacks one top folder of an archive; it appears when complete.

    Names, kinds and sizes are checked before anything is written; neither
    zipfile nor tarfile writes more than the size that a member states.

    Args:
      archive: path of a .zip or .tar.gz file.
      folder: the top folder to keep.
      target: the directory that this folder becomes.

    Raises:
      errors.UserError: the archive is damaged, hostile, or lacks the folder.
    """
    pooch = _package("pooch")
    processor = pooch.Unzip if archive.endswith(".zip") else pooch.Untar
    with files.scratch_directory(os.path.abspath(target)) as directory:
        try:
            _check_members(archive)
            processor(extract_dir=directory)(archive, "download", None)
            os.rename(os.path.join(directory, folder), target)
        except errors.UserError:
            raise
        except _DAMAGES as error:
            raise errors.UserError(
                f"{archive}: cannot be unpacked: {error}; free some space, or "
                "remove it and download it again"
            ) from error


def _check_members(archive):
    """Rejects an archive that would write elsewhere, or too much."""
    size = 0
    for count, (name, bytes_of_member, is_plain) in enumerate(
        _members(archive)
    ):
        size += bytes_of_member
        if size > _MAX_BYTES or count >= _MAX_FILES:
            problem = f"more than {_MAX_BYTES} bytes or {_MAX_FILES} files"
        elif not is_plain or name.startswith("/") or ".." in name.split("/"):
            problem = f"{name!r}, which is a link or outside of its folder"
        else:
            continue
        raise errors.UserError(
            f"{archive}: contains {problem}; not unpacked, do not trust this "
            "archive"
        )


def _members(archive):
    """Yields (name, bytes, whether it is a file or a directory)."""
    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                yield info.filename, info.file_size, True  # zip makes no links
    else:
        with tarfile.open(archive, "r:gz") as opened:
            for info in opened:
                yield info.name, info.size, info.isfile() or info.isdir()


def get(item: Item, config: DataConfig) -> typing.Optional[str]:
    """Downloads one item.

    Returns:
      The directory, or None where it was complete before.
    """
    target = os.path.join(config.output_dir, *item.folder.split("/"))
    if item.finish is not None and os.path.isdir(target):
        return None
    folder = target + ".download" if item.finish else target
    os.makedirs(folder, exist_ok=True)
    is_new = False
    for name, remote in item.files.items():
        is_new |= fetch(remote, os.path.join(folder, name), config)
    if item.finish is None:
        return target if is_new else None
    item.finish(folder, target)
    shutil.rmtree(folder)
    return target


def main(arguments: typing.List[str]) -> None:
    """Downloads the items that the arguments name."""
    config = command_line.build(DataConfig, FLAGS)
    if config.list:
        print_list()
        return
    for name in chosen(arguments[1:]):
        directory = get(ITEMS[name], config)
        print(f"{name}: {directory or 'already downloaded'}", flush=True)


def define_flags() -> None:
    """Declares the flags of this script."""
    command_line.define(DataConfig)


if __name__ == "__main__":
    define_flags()
    command_line.run(
        main,
        takes_arguments=True,
        after_interrupt="run the same command again to resume",
    )
