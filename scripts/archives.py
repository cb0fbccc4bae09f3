# SPDX-License-Identifier: Apache-2.0
"""Unpacks downloaded archives without trusting what they say of themselves.

A member may not leave the directory, be anything but a file or a directory,
or come twice; and what is written is counted, whatever sizes the archive
claims.
"""

import contextlib
import gzip
import os
import shutil
import stat
import tarfile
import typing
import zipfile
import zlib

from common import errors

MAX_BYTES = 4 << 30
MAX_FILES = 100000
# What macOS adds to archives, to be passed over.
_CLUTTER = ("__MACOSX", ".DS_Store")
_CHUNK_BYTES = 1 << 20
_ZIP_IS_ENCRYPTED = 1


class _Member(typing.NamedTuple):
    """A file of an archive: its name, and what opens it for reading."""

    name: str
    open: typing.Callable


def extract(
    archive, folder, target, *, max_bytes=MAX_BYTES, max_files=MAX_FILES
):
    """Unpacks one folder of an archive; it appears when it is complete.

    Args:
      archive: path of a .zip or .tar.gz file.
      folder: the archive's top folder that is wanted.
      target: the directory that this folder becomes.
      max_bytes, max_files: what all files together may have.

    Raises:
      errors.UserError: the archive is damaged, hostile, or lacks the folder.
    """
    temporary = target + ".incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _opened(archive) as members:
            _write_all(members, archive, temporary, max_bytes, max_files)
        wanted = os.path.join(temporary, folder)
        if not os.path.isdir(wanted):
            raise errors.UserError(
                f"{archive} has no folder {folder}; it is another archive than "
                "expected"
            )
        os.rename(wanted, target)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
        OSError,
    ) as error:
        if getattr(error, "errno", None) is not None:
            raise  # of this machine's disk; gzip's own have no number
        raise errors.UserError(
            f"{archive} cannot be unpacked: {error}; remove it and download it "
            "again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_all(members, archive, directory, max_bytes, max_files):
    os.makedirs(directory)
    room, seen = max_bytes, set()
    for member in members:
        parts = _parts(member.name, archive)
        if set(parts) & set(_CLUTTER):
            continue
        path = os.path.join(directory, *parts)
        if path in seen:
            raise errors.UserError(
                f"{archive} holds {member.name!r} twice; it is not unpacked"
            )
        seen.add(path)
        if len(seen) > max_files:
            raise errors.UserError(
                f"{archive} holds more than {max_files} files; it is not "
                "unpacked"
            )
        room -= _write(member, path, room)
        if room < 0:
            raise errors.UserError(
                f"{archive} holds more than {max_bytes} bytes; it is not "
                "unpacked"
            )


def _parts(name, archive):
    """The folders and the file of a member's name, none of them `..`."""
    parts = name.split("/")
    if (
        "\\" in name
        or "\0" in name
        or ":" in parts[0]
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise errors.UserError(
            f"{archive} holds a file named {name!r}, which would lie outside "
            "of its folder; the archive is not to be trusted, and not "
            "unpacked"
        )
    return parts


def _write(member, path, room):
    """Writes one file, stopping past `room` bytes; the bytes written."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    written = 0
    with member.open() as source, open(path, "wb") as stream:
        for chunk in iter(lambda: source.read(_CHUNK_BYTES), b""):
            written += len(chunk)
            if written > room:
                break
            stream.write(chunk)
    return written


@contextlib.contextmanager
def _opened(path):
    """The files of an archive, as an iterable of _Member."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(archive, path)
    elif tarfile.is_tarfile(path):
        with gzip.open(path) as stream, tarfile.open(
            fileobj=stream, mode="r|"
        ) as archive:
            yield _tar_members(archive, path)
            # The checksum stands at the end, where tarfile does not look.
            while stream.read(_CHUNK_BYTES):
                pass
    else:
        raise errors.UserError(f"{path} is neither a .zip nor a .tar.gz file")


def _zip_members(archive, path):
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _not_a_file(path, info.filename)
        if info.flag_bits & _ZIP_IS_ENCRYPTED:
            raise errors.UserError(
                f"{path} holds an encrypted file, {info.filename!r}"
            )
        if not info.filename.endswith("/"):
            yield _Member(info.filename, lambda info=info: archive.open(info))


def _tar_members(archive, path):
    for info in archive:
        if not (info.isfile() or info.isdir()):
            raise _not_a_file(path, info.name)
        if info.isfile():
            yield _Member(
                info.name, lambda info=info: archive.extractfile(info)
            )


def _not_a_file(path, name):
    return errors.UserError(
        f"{path} holds {name!r}, a link or a device; the archive is not to be "
        "trusted, and not unpacked"
    )
