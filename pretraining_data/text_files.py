# SPDX-License-Identifier: Apache-2.0
"""Files of text: their names, their bytes, the text of a JSON line.

A text file has one sentence or paragraph per line and a blank line between
documents; a JSON-lines file (.jsonl, .json) has one document per line, its
text in one field. Both may be gzipped (.gz).
"""

import collections
import dataclasses
import glob
import json
import os
import re
import typing
import zlib

from absl import logging

from common import errors, files

BLOCK_BYTES = 1 << 16
# What becomes of a line that is not valid text.
ERROR, REPLACE, SKIP = "error", "replace", "skip"

_JSON_ENDINGS = (".jsonl", ".json")
# What a directory may contain besides text: this project's own outputs.
_NO_TEXT = (".tfrecord", ".incomplete", "manifest.json", "progress.json")
_FIRST_BYTES = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")
# More in one file and chunk are counted, not described.
_MOST_DESCRIBED = 100


class InvalidLine(errors.UserError):
    """A line is not valid text; `replacement` is one that is, or None."""

    def __init__(
        self,
        message: str,
        path: str = "",
        replacement: typing.Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.replacement = replacement


class InvalidText:
    """Raises, replaces or skips lines that are not valid text.

    Args:
      action: None raises InvalidLine; REPLACE replaces those that can be and
        skips the others, SKIP skips all, ERROR also describes them.

    Attributes:
      replaced, skipped: number of lines.
    """

    def __init__(self, action: typing.Optional[str] = None) -> None:
        self.replaced = self.skipped = 0
        self._action = action
        self._messages: typing.List[str] = []
        self._counts: typing.Counter[str] = collections.Counter()

    def handle(self, error: InvalidLine) -> typing.Optional[str]:
        """The text in place of an invalid line, None if it is skipped."""
        if self._action is None:
            raise error
        if self._action == REPLACE and error.replacement is not None:
            self.replaced += 1
            return error.replacement
        self.skipped += 1
        if self._action == ERROR:
            self._counts[error.path] += 1
            if self._counts[error.path] <= _MOST_DESCRIBED:
                self._messages.append(str(error))
        return None

    def messages(self) -> typing.List[str]:
        """Descriptions of the skipped lines, with ERROR alone."""
        return self._messages + [
            f"{count - _MOST_DESCRIBED} more invalid lines of {path!r} follow"
            for path, count in self._counts.items()
            if count > _MOST_DESCRIBED
        ]


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of text; `size` is in bytes as stored, `open` opens a path."""

    path: str
    size: int
    open: typing.Callable = files.opened

    @property
    def is_gzip(self) -> bool:
        """Whether the file is compressed."""
        return self.path.endswith(".gz")

    @property
    def is_json(self) -> bool:
        """Whether each line is a JSON object."""
        name = self.path[:-3] if self.is_gzip else self.path
        return name.endswith(_JSON_ENDINGS)


def expand_inputs(text: str) -> typing.List[TextFile]:
    """The files that `--input_file` names.

    Args:
      text: files, globs and directories, comma separated. A directory means
        all files below it except hidden ones and records; the files of a glob
        or a directory are sorted by name.

    Raises:
      errors.UserError: a part matches no readable file, or the files are empty.
    """
    paths = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        matches = list(_matches(part))
        if not matches:
            raise errors.UserError(
                f"--input_file: no file {part!r}; expected files, globs or "
                "directories of text, comma separated"
            )
        paths += matches
    texts = [_text_file(path) for path in paths]
    if not any(text.size for text in texts):
        raise errors.UserError(
            f"--input_file={text} contains no text; expected at least one line"
        )
    return texts


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
            f"--input_file: {path!r} is not a regular file; write the text to "
            "a file first, since its size decides how it is divided"
        )
    if not os.access(path, os.R_OK):
        raise errors.UserError(
            f"--input_file: {path!r} is not readable; change its permissions"
        )
    file = TextFile(path, os.path.getsize(path))
    if not file.is_gzip:
        _check_start(file)
    return file


def _check_start(file):
    """Rejects a compressed file, warns of lines that will not be separated."""
    with file.open(file.path) as stream:
        start = stream.read(_FIRST_BYTES)
    program = files.decompressor(start)
    if program:
        other = "name it" if program == "gunzip" else "compress it as"
        raise errors.UserError(
            f"--input_file: {file.path!r} is compressed; decompress it with "
            f"{program}, or {other} .gz"
        )
    if b"\n" not in start and b"\r" in start[:-1] and not file.is_json:
        logging.warning(
            "--input_file: %r has lines that end in a carriage return alone, "
            "which are read as one line of one document; convert it first, for "
            "example with tr '\\r' '\\n'",
            file.path,
        )


def read_blocks(file: TextFile) -> typing.Iterator[typing.Tuple[int, bytes]]:
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
                block = block.lstrip(b"\0")  # padding, as on tapes
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                data = member.decompress(block, BLOCK_BYTES)
            except zlib.error as error:
                raise errors.UserError(
                    f"{path!r} is not an intact gzip file ({error}, near "
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


def json_text(path: str, number: int, line: str, text_field: str) -> str:
    """The text of one JSON line.

    Args:
      path, number: of the file and the line, for messages.
      line: str.
      text_field: the field of the object that is its text.

    Raises:
      InvalidLine: the line is not such an object.
    """
    where = f"line {number} of {path!r}"
    try:
        # float, because turning many digits into an int takes quadratic time.
        value = json.loads(line, parse_int=float)
    except RecursionError:
        raise InvalidLine(
            f"{where} is nested too deeply; expected an object with the field "
            f"{text_field!r}",
            path,
        ) from None
    except ValueError as error:
        raise InvalidLine(
            f"{where} is not JSON ({error}); expected an object, like "
            f'{{"{text_field}": "..."}}',
            path,
        ) from error
    if not isinstance(value, dict) or text_field not in value:
        content = sorted(value)[:10] if isinstance(value, dict) else "no object"
        raise InvalidLine(
            f"{where} has no field {text_field!r} but {content}; name the "
            "field of the text with --text_field",
            path,
        )
    value = value[text_field]
    if not isinstance(value, str):
        raise InvalidLine(
            f"{where}: the field {text_field!r} is a {type(value).__name__}; "
            "expected a text",
            path,
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidLine(
            f"{where}: the text has half of a surrogate pair at character "
            f"{error.start}; remove it or complete the pair",
            path,
            _SURROGATE.sub("\ufffd", value),
        ) from error
    return value
