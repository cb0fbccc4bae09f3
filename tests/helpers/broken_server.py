# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine that fails in the ways of real servers."""

import contextlib
import http.server
import json
import re
import threading
import typing


class Site(typing.NamedTuple):
    """A running server.

    Attributes:
      base: its address, without a slash at the end.
      pages: {path: function (handler)}, to be filled.
      requests: (path, Range or None) of each request so far.
    """

    base: str
    pages: dict
    requests: list


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append((path, self.headers.get("Range")))
        self.close_connection = True
        self.server.pages.get(path, status(404))(self)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        del arguments


@contextlib.contextmanager
def running():
    """A Site, until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.pages, server.requests = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield Site(
            f"http://127.0.0.1:{server.server_port}",
            server.pages,
            server.requests,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler, code, body, **headers):
    """Sends a response; `Content_Length=...` stands for Content-Length."""
    handler.send_response(code)
    headers.setdefault("Content_Length", len(body))
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def status(code, **headers):
    """A page that is an error."""
    return lambda handler: answer(handler, code, b"<html>no</html>", **headers)


def file(data, *, tag='"1"', at_most=None, has_ranges=True, **headers):
    """A page that is a file.

    Args:
      data: bytes.
      tag: its ETag, or None.
      at_most: bytes after which each connection ends, or None.
      has_ranges: whether the server supports Range.
      **headers: further headers.
    """

    def page(handler):
        start, code, more = 0, 200, dict(headers, ETag=tag)
        bounds = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        is_same = handler.headers.get("If-Range") in (None, tag)
        if has_ranges and bounds and is_same:
            start, code = int(bounds.group(1)), 206
            if start >= len(data):
                return answer(handler, 416, b"")
            more["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        more.setdefault("Content_Length", len(data) - start)
        return answer(handler, code, data[start:][:at_most], **more)

    return page


def add_model(site, name, directory, commit="a" * 40, **options):
    """Adds a model's directory to a site, as Hugging Face's Hub has it.

    Args:
      site: a Site.
      name: of the repository.
      directory: its files, a pathlib.Path.
      commit: what its branch main is.
      **options: of `file`.
    """
    names = sorted(path.name for path in directory.iterdir())
    about = {"id": name, "sha": commit}
    about["siblings"] = [{"rfilename": name} for name in names]
    site.pages[f"/api/models/{name}/revision/main"] = file(
        json.dumps(about).encode(), Content_Type="application/json"
    )
    for number, path in enumerate(map(directory.joinpath, names)):
        site.pages[f"/{name}/resolve/{commit}/{path.name}"] = file(
            path.read_bytes(),
            tag=f'"{number}"',
            X_Repo_Commit=commit,
            **options,
        )


def in_turn(*pages):
    """A page that is each of `pages` once, then always the last one."""
    left = list(pages)

    def page(handler):
        return (left.pop(0) if len(left) > 1 else left[0])(handler)

    return page
