# SPDX-License-Identifier: Apache-2.0
"""Downloads that resume after an interruption and verify their checksum.

Received bytes are kept in FILE.part and the server's version of the file (its
entity tag or date) in FILE.part.tag; FILE itself appears once its SHA-256 is
the expected one. Proxies are those of the usual variables (`https_proxy`,
`no_proxy`), which urllib reads.
"""

import http.client
import os
import shutil
import ssl
import time
import typing
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from common import errors, files

_CHUNK_BYTES = 1 << 18
_LONGEST_WAIT_SECONDS = 60.0
# Answers after which the same request may succeed (RFC 9110; 429: RFC 6585).
_TEMPORARY_CODES = (408, 429, 500, 502, 503, 504)
_HEADERS = {"User-Agent": "roberta-get-data", "Accept-Encoding": "identity"}


class Remote(typing.NamedTuple):
    """A file on a server."""

    url: str
    size: int  # bytes
    sha256: str  # 64 hexadecimal digits


class Retries(typing.NamedTuple):
    """How often and how long a download is tried.

    Attributes:
      timeout: seconds without a byte after which a connection is closed.
      attempts: requests in a row that may bring no new bytes.
      wait: seconds before the second request; doubled each time.
    """

    timeout: float = 60.0
    attempts: int = 5
    wait: float = 1.0


RETRIES = Retries()


class _TemporaryError(Exception):
    """A failure after which another request may succeed."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


def fetch(remote: Remote, path: str, retries: Retries = RETRIES) -> bool:
    """Downloads a file unless it exists.

    Returns:
      Whether it was downloaded; False where it existed.

    Raises:
      errors.UserError: the download failed, or the file differs from the
        expected one.
    """
    if os.path.exists(path):
        actual = files.sha256(path)
        if actual != remote.sha256:
            raise errors.UserError(
                f"{path}: exists with SHA-256 {actual}, expected "
                f"{remote.sha256}; move it away to download it"
            )
        return False
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    _Download(remote, path, retries).run()
    return True


class _Download:
    """The download of one file."""

    def __init__(self, remote, path, retries):
        self._remote = remote
        self._path = path
        self._retries = retries
        self._part = path + ".part"
        self._tag_file = path + ".part.tag"
        self._opener = urllib.request.build_opener()
        self._is_joined = False  # from the parts of several requests

    def run(self):
        """Downloads, verifies and renames."""
        actual = self._complete()
        if actual != self._remote.sha256 and self._is_joined:
            # The parts may be of two versions: restart.
            self._discard()
            actual = self._complete()
        if actual != self._remote.sha256:
            self._discard()
            raise errors.UserError(
                f"{self._remote.url}: SHA-256 {actual}, expected "
                f"{self._remote.sha256}; the file was changed on the server "
                "or on the way: try another --url_base, or report it"
            )
        os.replace(self._part, self._path)
        self._discard()

    def _received(self):
        """Bytes in the part file."""
        return os.path.getsize(self._part) if os.path.exists(self._part) else 0

    def _discard(self):
        for path in (self._part, self._tag_file):
            if os.path.exists(path):
                os.remove(path)

    def _complete(self):
        """Sends requests until every byte is received; the SHA-256."""
        failures, furthest = 0, self._received()
        self._check_disk()
        with tqdm.tqdm(
            total=self._remote.size,
            initial=furthest,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            mininterval=0.5,
            desc=os.path.basename(self._path),
        ) as bar:
            while self._received() != self._remote.size:
                try:
                    self._request(bar)
                except _TemporaryError as failure:
                    is_further = self._received() > furthest
                    failures = 0 if is_further else failures + 1
                    furthest = max(furthest, self._received())
                    self._wait(failure, failures)
        return files.sha256(self._part)

    def _wait(self, failure, failures):
        """Waits before the next request, or fails after the last one."""
        if failures >= self._retries.attempts:
            raise errors.UserError(
                f"{self._remote.url}: {failure}; received {self._received()} "
                f"of {self._remote.size} bytes, and nothing new in {failures} "
                "attempts. Check the connection and run the same command "
                "again to resume, or pass a mirror with --url_base"
            ) from failure
        wait = self._retries.wait * 2.0 ** max(failures - 1, 0)
        time.sleep(min(max(failure.wait, wait), _LONGEST_WAIT_SECONDS))

    def _check_disk(self):
        needed = self._remote.size - self._received()
        free = shutil.disk_usage(os.path.dirname(self._path) or ".").free
        if needed > free:
            raise errors.UserError(
                f"{self._path}: needs {needed} bytes more, but {free} are "
                "free; free some space, or pass another --output_dir"
            )

    def _request(self, bar):
        """Sends one request and appends what it brings.

        Raises:
          _TemporaryError: the request should be repeated.
          errors.UserError: repeating it would not help.
        """
        start, headers = self._received(), dict(_HEADERS)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._tag():
                headers["If-Range"] = self._tag()
        request = urllib.request.Request(self._remote.url, headers=headers)
        try:
            response = self._opener.open(request, timeout=self._retries.timeout)
        except urllib.error.HTTPError as error:
            raise self._http_error(error, start) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._connection_error(error) from error
        with response:
            self._receive(response, start, bar)

    def _http_error(self, error, start):
        """The exception for an answer other than success."""
        if error.code == 416 and start:
            self._discard()
            return _TemporaryError("the server's file is shorter than the part")
        if error.code in _TEMPORARY_CODES:
            wait = error.headers.get("Retry-After") or ""
            return _TemporaryError(
                f"HTTP {error.code} {error.reason}",
                float(wait) if wait.isdigit() else 0.0,  # it may be a date
            )
        return errors.UserError(
            f"{self._remote.url}: HTTP {error.code} "
            f"{' '.join(str(error.reason).split())}; pass a mirror with "
            "--url_base"
        )

    def _connection_error(self, error):
        """The exception for a connection that failed."""
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return errors.UserError(
                f"{self._remote.url}: the server's certificate is not valid "
                f"here ({reason.verify_message}); make a proxy's certificate "
                "known to Python (SSL_CERT_FILE)"
            )
        return _TemporaryError(str(reason) or type(reason).__name__)

    def _tag(self):
        """The entity tag or date of the part, or ""."""
        if not os.path.exists(self._tag_file):
            return ""
        with open(self._tag_file, encoding="latin-1") as stream:
            return stream.read(1 << 10).strip()

    def _receive(self, response, start, bar):
        """Appends the body of a response."""
        if response.status != 206:
            start = 0  # the server sends the entire file
        elif not _begins_at(response, start):
            self._discard()
            raise _TemporaryError("the server sent another range")
        self._is_joined = self._is_joined or start > 0
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and start + int(length) != self._remote.size:
            self._reject(f"{start + int(length)}")
        self._write_tag(response)
        bar.n = start
        bar.refresh()
        with open(self._part, "r+b" if start else "wb") as stream:
            stream.seek(start)
            for chunk in self._chunks(response):
                start += len(chunk)
                if start > self._remote.size:
                    self._reject("more")
                stream.write(chunk)
                bar.update(len(chunk))
        if start < self._remote.size:
            raise _TemporaryError("the connection ended early")

    def _chunks(self, response):
        while True:
            try:
                chunk = response.read(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise self._connection_error(error) from error
            if not chunk:
                return
            yield chunk

    def _reject(self, size):
        self._discard()
        raise errors.UserError(
            f"{self._remote.url}: expected {self._remote.size} bytes, got "
            f"{size}; it is another file, such as a proxy's login page: open "
            "it in a browser, or try another --url_base"
        )

    def _write_tag(self, response):
        tag = response.headers.get("ETag", "")
        if tag.startswith("W/"):  # weak; RFC 9110, 13.1.5
            tag = ""
        with open(self._tag_file, "w", encoding="latin-1") as stream:
            stream.write(tag or response.headers.get("Last-Modified", ""))


def _begins_at(response, start):
    content_range = response.headers.get("Content-Range", "")
    return content_range.startswith(f"bytes {start}-")


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
