# SPDX-License-Identifier: Apache-2.0
"""Files of text: which there are, their bytes, the text of a JSON line.

A text file holds one sentence or paragraph a line and a blank line between
documents; a JSON-lines file (.jsonl, .json) holds one document a line, its
text in one field. Both may be gzipped (.gz).
"""

import dataclasses
import glob
import json
import os
import typing
import zlib

from common import errors

BLOCK_BYTES = 1 << 16

_JSON_ENDINGS = (".jsonl", ".json")
# What a directory may hold beside text: this project's own outputs.
_NO_TEXT = (".tfrecord", ".incomplete", "manifest.json", "progress.json")


def open_local(path):
    """The bytes of a file of this machine."""
    return open(path, "rb")


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of text; `size` is in bytes as stored, `open` opens a path."""

    path: str
    size: int
    open: typing.Callable = open_local

    @property
    def is_gzip(self):
        return self.path.endswith(".gz")

    @property
    def is_json(self):
        name = self.path[:-3] if self.is_gzip else self.path
        return name.endswith(_JSON_ENDINGS)


def expand_inputs(text):
    """The files that `--input_file` names, as a list of TextFile.

    Args:
      text: files, globs and directories, comma separated. A directory stands
        for all files below it, hidden ones and records left out; a glob and a
        directory give their files in the order of their names.

    Raises:
      errors.UserError: a part matches no readable file, or there is no text.
    """
    paths = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        found = list(_matches(part))
        if not found:
            raise errors.UserError(
                f"--input_file: there is no file {part!r}; expected files, "
                "globs or directories of text, comma separated"
            )
        paths.extend(found)
    files = [_text_file(path) for path in paths]
    if not any(f.size for f in files):
        raise errors.UserError(
            f"--input_file={text} holds no text; expected at least one line"
        )
    return files


def _matches(part):
    """The paths of one file, glob or directory."""
    names = (
        [part]
        if os.path.exists(part)
        else sorted(glob.glob(part, recursive=True))
    )
    for name in names:
        if not os.path.isdir(name):
            yield name
            continue
        for folder, folders, entries in os.walk(name):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            yield from (
                os.path.join(folder, entry)
                for entry in sorted(entries)
                if not entry.startswith(".") and not entry.endswith(_NO_TEXT)
            )


def _text_file(path):
    if not os.path.isfile(path):
        raise errors.UserError(
            f"--input_file: {path!r} is no regular file; write the text to a "
            "file first, since its size decides how it is divided"
        )
    if not os.access(path, os.R_OK):
        raise errors.UserError(
            f"--input_file: {path!r} cannot be read; change its permissions"
        )
    return TextFile(path, os.path.getsize(path))


def read_blocks(file):
    """Yields (bytes of the stored file before, decompressed bytes)."""
    with file.open(file.path) as stream:
        if file.is_gzip:
            yield from _decompress(stream, file.path)
            return
        position = 0
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            yield position, block
            position += len(block)


def _decompress(stream, path):
    """Yields (compressed bytes before, at most BLOCK_BYTES of text)."""
    member, position = None, 0  # None: between the members of the file
    for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
        data = b""
        while block or len(data) == BLOCK_BYTES:
            if member is None:
                block = block.lstrip(b"\0")  # padding, as of tapes
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                data = member.decompress(block, BLOCK_BYTES)
            except zlib.error as error:
                raise errors.UserError(
                    f"{path!r} is no intact gzip file ({error}, near "
                    f"compressed byte {position}); compress the text again"
                ) from error
            yield position, data
            block = member.unconsumed_tail
            if member.eof:
                block, member, data = member.unused_data, None, b""
        position += BLOCK_BYTES
    if member is not None:
        raise errors.UserError(
            f"{path!r} is a truncated gzip file: it ends in the middle of its "
            "data; copy or compress it again"
        )


def json_text(path, number, line, text_field):
    """The text of one JSON line.

    Args:
      path, number: of the file and the line, for messages.
      line: str.
      text_field: the field of the object that is its text.

    Raises:
      errors.UserError: the line is no such object.
    """
    where = f"line {number} of {path!r}"
    try:
        # float, because turning many digits into an int takes quadratic time.
        value = json.loads(line, parse_int=float)
    except RecursionError:
        raise errors.UserError(
            f"{where} is nested too deeply; expected an object with the field "
            f"{text_field!r}"
        ) from None
    except ValueError as error:
        raise errors.UserError(
            f"{where} is no JSON ({error}); expected one object a line, like "
            f'{{"{text_field}": "..."}}'
        ) from error
    if not isinstance(value, dict) or text_field not in value:
        fields = (
            f"the fields {sorted(value)[:10]}"
            if isinstance(value, dict)
            else "no object"
        )
        raise errors.UserError(
            f"{where} has no field {text_field!r} but {fields}; name the field "
            "of the text with --text_field"
        )
    value = value[text_field]
    if not isinstance(value, str):
        raise errors.UserError(
            f"{where}: the field {text_field!r} is a {type(value).__name__}; "
            "expected a text"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.UserError(
            f"{where}: the text has half of a surrogate pair at character "
            f"{error.start}; remove it or write the whole pair"
        ) from error
    return value
