# SPDX-License-Identifier: Apache-2.0
"""Downloads that go on where they broke off, and end in the right file.

What has come so far lies in FILE.part, the server's name for this version of
it in FILE.part.tag; the file itself appears when its SHA-256 is the expected
one. Proxies are those of the usual variables (`https_proxy`, `no_proxy`), which
urllib reads.
"""

import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import typing
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from common import errors

_CHUNK_BYTES = 1 << 18
_LONGEST_WAIT_SECONDS = 60.0
# Answers after which the same request may succeed (RFC 9110; 429: RFC 6585).
_PASSING = (408, 429, 500, 502, 503, 504)
_HEADERS = {"User-Agent": "roberta-get-data", "Accept-Encoding": "identity"}


class Remote(typing.NamedTuple):
    """A file on a server.

    Attributes:
      url: where it is.
      size: its bytes.
      sha256: its checksum, 64 hexadecimal digits.
    """

    url: str
    size: int
    sha256: str


class Patience(typing.NamedTuple):
    """How long a download is tried.

    Attributes:
      timeout: seconds without a byte after which a connection is given up.
      attempts: requests in a row that may bring nothing new.
      wait: seconds before the second request; doubled each time.
    """

    timeout: float = 60.0
    attempts: int = 5
    wait: float = 1.0


class _Passing(Exception):
    """A failure after which another request may succeed."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


def sha256(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(remote, path, patience=Patience()):
    """Downloads a file, unless it is there.

    Args:
      remote: Remote.
      path: where it goes.
      patience: Patience.

    Returns:
      Whether it was downloaded; False where it was there already.

    Raises:
      errors.UserError: it cannot be had, or is not the expected file.
    """
    if os.path.exists(path):
        _check_existing(remote, path)
        return False
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    download = _Download(remote, path, patience)
    download.run()
    return True


def _check_existing(remote, path):
    found = sha256(path)
    if found != remote.sha256:
        raise errors.UserError(
            f"{path} is there, but its SHA-256 is {found} and not "
            f"{remote.sha256}; move it away to download it"
        )


class _Download:
    """One file on its way."""

    def __init__(self, remote, path, patience):
        self._remote = remote
        self._path = path
        self._patience = patience
        self._part = path + ".part"
        self._state = path + ".part.tag"
        self._opener = urllib.request.build_opener()
        self._was_joined = False  # from the parts of several requests

    def run(self):
        """Downloads, checks and renames."""
        self._complete()
        found = sha256(self._part)
        if found != self._remote.sha256 and self._was_joined:
            # The parts may be of two versions of it: once more, whole.
            self._discard()
            self._complete()
            found = sha256(self._part)
        if found != self._remote.sha256:
            self._discard()
            raise errors.UserError(
                f"{self._remote.url}: the SHA-256 of what came is {found}; "
                f"expected {self._remote.sha256}. The file was changed there, "
                "or on its way: try another --url_base, or report it"
            )
        os.replace(self._part, self._path)
        self._discard()

    def _here(self):
        """Bytes that came already."""
        return os.path.getsize(self._part) if os.path.exists(self._part) else 0

    def _discard(self):
        for path in (self._part, self._state):
            if os.path.exists(path):
                os.remove(path)

    def _complete(self):
        """Requests until every byte is here."""
        failures, furthest = 0, self._here()
        self._check_room()
        with tqdm.tqdm(
            total=self._remote.size,
            initial=furthest,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            mininterval=0.5,
            desc=os.path.basename(self._path),
        ) as bar:
            while self._here() != self._remote.size:
                try:
                    self._request(bar)
                    continue
                except _Passing as failure:
                    reason = failure
                failures = 0 if self._here() > furthest else failures + 1
                furthest = max(furthest, self._here())
                if failures >= self._patience.attempts:
                    raise errors.UserError(
                        f"{self._remote.url}: {reason}; {self._here()} of "
                        f"{self._remote.size} bytes came, {failures} attempts "
                        "brought no more. Check the connection and give the "
                        "same command again, which goes on from there; "
                        "--url_base names a mirror"
                    )
                time.sleep(
                    min(
                        max(
                            reason.wait,
                            self._patience.wait * 2.0 ** max(failures - 1, 0),
                        ),
                        _LONGEST_WAIT_SECONDS,
                    )
                )

    def _check_room(self):
        needed = self._remote.size - self._here()
        free = shutil.disk_usage(os.path.dirname(self._path) or ".").free
        if needed > free:
            raise errors.UserError(
                f"{self._path} needs {needed} bytes more, and {free} are free; "
                "make room, or name another --output_dir"
            )

    def _request(self, bar):
        """One request, and what comes of it.

        Raises:
          _Passing: it broke off, or is to be repeated.
          errors.UserError: it is not worth repeating.
        """
        start, headers = self._here(), dict(_HEADERS)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._validator():
                headers["If-Range"] = self._validator()
        request = urllib.request.Request(self._remote.url, headers=headers)
        try:
            response = self._opener.open(
                request, timeout=self._patience.timeout
            )
        except urllib.error.HTTPError as error:
            self._judge(error, start)
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise errors.UserError(
                    f"{self._remote.url}: the server's certificate is not "
                    f"valid here ({error.reason.verify_message}); a proxy's "
                    "own must be known to Python (SSL_CERT_FILE)"
                ) from error
            raise _Passing(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(str(error) or type(error).__name__) from error
        with response:
            self._receive(response, start, bar)

    def _judge(self, error, start):
        """Decides what an answer other than success means."""
        if error.code == 416 and start:  # nothing beyond what is here
            self._discard()
            raise _Passing("the server has less than what came before")
        if error.code in _PASSING:
            raise _Passing(
                f"HTTP {error.code} {error.reason}",
                _seconds(error.headers.get("Retry-After")),
            )
        raise errors.UserError(
            f"{self._remote.url}: HTTP {error.code} "
            f"{' '.join(str(error.reason).split())}; the file is not to be had "
            "there, --url_base names a mirror"
        )

    def _validator(self):
        """The entity tag or date under which the part came, or ""."""
        if not os.path.exists(self._state):
            return ""
        with open(self._state, encoding="latin-1") as stream:
            return stream.read(1 << 10).strip()

    def _receive(self, response, start, bar):
        """Appends what a response brings."""
        if response.status != 206:
            start = 0  # the whole file comes
        elif not _begins_at(response, start):
            self._discard()
            raise _Passing("the server sent another part than asked for")
        self._was_joined = self._was_joined or start > 0
        self._check_length(response, start)
        self._note(response)
        bar.n = start
        bar.refresh()
        with open(self._part, "r+b" if start else "wb") as stream:
            stream.seek(start)
            for chunk in _chunks(response):
                start += len(chunk)
                if start > self._remote.size:
                    break
                stream.write(chunk)
                bar.update(len(chunk))
        if start > self._remote.size:
            self._refuse(f"more than {self._remote.size} bytes")
        if start < self._remote.size:
            raise _Passing("the connection ended early")

    def _check_length(self, response, start):
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and start + int(length) != self._remote.size:
            self._refuse(f"{start + int(length)} bytes")

    def _refuse(self, what):
        self._discard()
        raise errors.UserError(
            f"{self._remote.url} has {what}, expected are {self._remote.size}; "
            "it is another file, such as a proxy's login page: look at it in "
            "a browser, or try another --url_base"
        )

    def _note(self, response):
        """Keeps what tells this version of the file from another."""
        tag = response.headers.get("ETag", "")
        if tag.startswith("W/"):  # a weak one is no use here (RFC 9110, 13.1.5)
            tag = ""
        with open(self._state, "w", encoding="latin-1") as stream:
            stream.write(tag or response.headers.get("Last-Modified", ""))


def _chunks(response):
    """The body in parts; what breaks it off is _Passing."""
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _begins_at(response, start):
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return found is not None and int(found.group(1)) == start


def _seconds(text):
    """Retry-After in seconds; 0 where it is a date or missing."""
    return float(text) if text and text.isdigit() else 0.0


def redirected(url, url_base):
    """An address at a mirror.

    Args:
      url: `https://HOST/PATH`.
      url_base: "" for no mirror; a base that replaces `https://HOST` of every
        address; or `HOST=BASE`, comma separated, for some hosts only.

    Raises:
      errors.UserError: url_base is no such thing.

    Example: redirected("https://a.org/b/c", "a.org=http://m.org/x") ==
      "http://m.org/x/b/c"
    """
    parsed = urllib.parse.urlsplit(url)
    for part in filter(None, (p.strip() for p in url_base.split(","))):
        host, base = (
            ("", part)
            if "://" in part.split("=")[0]
            else (part.partition("=")[::2])
        )
        target = urllib.parse.urlsplit(base)
        if target.scheme not in ("http", "https") or not target.netloc:
            raise errors.UserError(
                f"--url_base is {part!r}; expected an address such as "
                "https://mirror.example/files, or HOST=ADDRESS for one host"
            )
        if host in ("", parsed.netloc):
            return base.rstrip("/") + parsed.path
    return url
