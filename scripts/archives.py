# SPDX-License-Identifier: Apache-2.0
"""Unpacks downloaded archives without trusting their names and sizes.

A member may not leave the directory, be anything but a file or a directory,
or occur twice; the bytes written are counted, whatever sizes the archive
claims.
"""

import contextlib
import gzip
import os
import stat
import tarfile
import typing
import zipfile
import zlib

from common import errors, files

MAX_BYTES = 4 << 30
MAX_FILES = 100000
# What macOS adds to archives.
_IGNORED = {"__MACOSX", ".DS_Store"}
_CHUNK_BYTES = 1 << 20
# Of one member's headers in a tar archive; tarfile reads them as a whole.
_MAX_HEADER_BYTES = 1 << 20
_ZIP_IS_ENCRYPTED = 1
# What Python's modules raise for damaged archives.
_DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    OSError,
)


class _Member(typing.NamedTuple):
    """A file of an archive: its name, and a function that opens it."""

    name: str
    open: typing.Callable[[], typing.BinaryIO]


def extract(
    archive: str,
    folder: str,
    target: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> None:
    """Unpacks one top folder of an archive; it appears when complete.

    Args:
      archive: path of a .zip or .tar.gz file.
      folder: the top folder to keep.
      target: the directory that this folder becomes.
      max_bytes, max_files: limits of all files together.

    Raises:
      errors.UserError: the archive is damaged, hostile, or lacks the folder.
    """
    with files.scratch_directory(target) as directory:
        try:
            with _opened(archive) as members:
                _write_all(members, archive, directory, max_bytes, max_files)
        except _DAMAGES as error:
            if getattr(error, "errno", None) is not None:
                raise  # of this machine's disk; gzip's own have no number
            raise errors.UserError(
                f"{archive}: cannot be unpacked: {error}; remove it and "
                "download it again"
            ) from error
        source = os.path.join(directory, folder)
        if not os.path.isdir(source):
            raise errors.UserError(
                f"{archive}: has no folder {folder}; it is not the expected "
                "archive, remove it and download it again"
            )
        os.rename(source, target)


def _write_all(members, archive, directory, max_bytes, max_files):
    remaining, paths = max_bytes, set()
    for member in members:
        parts = _parts(member.name, archive)
        if _IGNORED.intersection(parts):
            continue
        path = os.path.join(directory, *parts)
        if path in paths:
            raise _rejection(archive, f"contains {member.name!r} twice")
        paths.add(path)
        if len(paths) > max_files:
            raise _rejection(archive, f"contains more than {max_files} files")
        remaining -= _write(member, path, remaining)
        if remaining < 0:
            raise _rejection(archive, f"contains more than {max_bytes} bytes")


def _parts(name, archive):
    """The folders and the file of a member's name, none of them `..`."""
    parts = name.split("/")
    if (
        "\\" in name
        or "\0" in name
        or ":" in parts[0]
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise _rejection(archive, f"contains {name!r}, outside of its folder")
    return parts


def _write(member, path, limit):
    """Writes one file up to `limit` bytes; returns the bytes read."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    size = 0
    with member.open() as source, open(path, "wb") as stream:
        for chunk in iter(lambda: source.read(_CHUNK_BYTES), b""):
            size += len(chunk)
            if size > limit:
                break
            stream.write(chunk)
    return size


@contextlib.contextmanager
def _opened(path):
    """The files of an archive, as an iterable of _Member."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(archive, path)
    elif _is_gzip(path):
        with gzip.open(path) as stream:
            limited = _LimitedHeaders(stream)
            with tarfile.open(fileobj=limited, mode="r|") as archive:
                yield _tar_members(archive, path, limited)
            # The checksum is at the end, where tarfile does not look.
            while stream.read(_CHUNK_BYTES):
                pass
    else:
        raise errors.UserError(
            f"{path}: neither a .zip nor a .tar.gz file; remove it and "
            "download it again"
        )


def _is_gzip(path):
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


class _LimitedHeaders:
    """A stream of a tar archive that rejects a member with long headers.

    Attributes:
      remaining: bytes until the next member's headers are too long.
    """

    def __init__(self, stream):
        self._stream = stream
        self.remaining = _MAX_HEADER_BYTES

    def read(self, size):
        data = self._stream.read(size)
        self.remaining -= len(data)
        if self.remaining < 0:
            raise tarfile.ReadError(
                f"a member has headers of more than {_MAX_HEADER_BYTES} bytes"
            )
        return data


def _zip_members(archive, path):
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _rejection(
                path, f"contains {info.filename!r}, a link or a device"
            )
        if info.flag_bits & _ZIP_IS_ENCRYPTED:
            raise _rejection(path, f"{info.filename!r} is encrypted")
        if not info.filename.endswith("/"):
            yield _Member(info.filename, lambda info=info: archive.open(info))


def _tar_members(archive, path, limited):
    for info in archive:
        limited.remaining = _MAX_HEADER_BYTES + info.size
        if not (info.isfile() or info.isdir()):
            raise _rejection(
                path, f"contains {info.name!r}, a link or a device"
            )
        if info.isfile():
            yield _Member(
                info.name, lambda info=info: archive.extractfile(info)
            )


def _rejection(path, problem):
    return errors.UserError(
        f"{path}: {problem}; not unpacked, do not trust this archive"
    )
