# SPDX-License-Identifier: Apache-2.0
"""Text files → chunks → sentences.

A chunk is about a megabyte of text and ends between documents where it can. It
is packed by itself, so chunks can be packed anywhere, in any order, and always
give the same sequences. Chunks are numbered within a group of files: a large
file is a group of its own, small ones share one.

Like fairseq's encoder, each line is stripped of the white space around it and
encoded by itself; packing.tokenize decides what becomes of the line breaks.

Source: fairseq/examples/roberta/multiprocessing_bpe_encoder.py.
"""

import dataclasses
import re
import typing

import numpy as np

from common import errors
from pretraining_data import text_files

CHUNK_BYTES = 1 << 20  # of text, not of the compressed file
MIN_CHUNK_BYTES = 1 << 14
BYTES_A_LINE = 32  # what a shorter line counts as
# A JSON line must be read whole.
MAX_JSON_LINE_BYTES = 1 << 24
# What a sentence begins: a document, a line, or nothing, being the rest of a
# giant line.
DOCUMENT, LINE, REST = "document", "line", "rest"

_BOM = b"\xef\xbb\xbf"
# Left of a space a cut changes no token (see packing.tokenize).
_BEFORE_SPACE = re.compile(rb"\S(?=[ \t])")


@dataclasses.dataclass(frozen=True)
class FileGroup:
    """Files that are cut into chunks together; `start` bytes come before."""

    number: int
    start: int
    files: typing.Tuple[text_files.TextFile, ...]

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(f.size for f in self.files)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Bytes of one file, cut after a whole character.

    `offset` (bytes) and `line` (from 1) say where in the uncompressed file it
    begins. With `ends_in_line` or `ends_in_document` the next segment continues
    the last line or document.
    """

    path: str
    offset: int
    line: int
    data: bytes
    is_json: bool
    continues_document: bool
    continues_line: bool
    ends_in_line: bool
    ends_in_document: bool = False

    @property
    def lines(self) -> int:
        """Number of lines that end here."""
        return self.data.count(b"\n")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Text that is packed together.

    `position` is where it begins in the whole input, in bytes as stored;
    (`group`, `index`) is unique and does not depend on who reads it.
    """

    group: int
    index: int
    position: int
    segments: typing.Tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class ChunkLimits:
    """How large chunks become: `size` bytes of text, at most about 1.5 times.

    A line counts as at least `line_bytes`, since where no sequence crosses
    documents each line may become a padded sequence of its own.
    """

    size: int
    line_bytes: int = BYTES_A_LINE

    def weight(self, length: int, lines: int) -> int:
        """The size that these bytes and lines count as."""
        return max(length, lines * self.line_bytes)


def chunk_limits(
    total_bytes: int,
    num_shards: int = 1,
    copies: int = 1,
    line_bytes: int = BYTES_A_LINE,
) -> ChunkLimits:
    """The limits for an input of `total_bytes` as stored.

    Small inputs are cut finer, so that all workers and shards get some; many
    copies of each sequence (dupe_factor) mean smaller chunks, which bounds the
    size of their records.
    """
    size = min(
        CHUNK_BYTES * 4 // max(4, copies), total_bytes // (4 * num_shards)
    )
    return ChunkLimits(max(MIN_CHUNK_BYTES, size), line_bytes)


def group_files(
    files: typing.Iterable[text_files.TextFile], limits: ChunkLimits
) -> typing.List[FileGroup]:
    """Divides files into groups whose chunks do not depend on each other.

    A file of at least `limits.size` bytes is a group of its own; smaller ones
    share a group until it has that many.
    """
    lists, held = [], limits.size  # `held`: bytes in the last list
    for file in files:
        if held >= limits.size or file.size >= limits.size:
            lists.append([])
            held = 0
        lists[-1].append(file)
        held += file.size
    groups, start = [], 0
    for members in lists:
        groups.append(FileGroup(len(groups), start, tuple(members)))
        start += groups[-1].size
    return groups


def read_chunks(
    group: FileGroup, limits: ChunkLimits, text_field: str = "text"
) -> typing.Iterator[Chunk]:
    """Cuts the files of a group into chunks.

    Raises:
      errors.UserError: a damaged gzip file, or a JSON line beyond the limit.
      OSError: a file cannot be read.
    """
    index, held, waiting, start = 0, 0, [], group.start
    before = group.start
    for file in group.files:
        for position, segment in _segments(file, limits, text_field):
            if not waiting:
                start = before + min(position, max(file.size - 1, 0))
            waiting.append(segment)
            held += limits.weight(len(segment.data), segment.lines)
            # At half the size another segment could make it too large.
            if held >= limits.size // 2:
                yield Chunk(group.number, index, start, tuple(waiting))
                index, held, waiting = index + 1, 0, []
        before += file.size
    if waiting:
        yield Chunk(group.number, index, start, tuple(waiting))


def _segments(file, limits, text_field):
    """Yields (bytes of the stored file before, Segment)."""
    cut = _cut_json if file.is_json else _cut_text
    buffer, lines = bytearray(), 0
    before = Segment(file.path, 0, 1, b"", file.is_json, False, False, False)
    stored = 0
    for position, block in text_files.read_blocks(file):
        buffer += block
        lines += block.count(b"\n")
        while limits.weight(len(buffer), lines) >= limits.size:
            length, ends_in_document, ends_in_line = cut(buffer, limits, before)
            if file.is_json:
                _check_json_line(
                    file.path, before.line + before.lines, length or len(buffer)
                )
            if not length:
                break
            segment = _following(
                before, buffer[:length], ends_in_document, ends_in_line
            )
            for part in _without_giants(segment, limits, text_field):
                yield stored if file.is_gzip else segment.offset, part
            before, stored = segment, position
            lines -= segment.lines
            del buffer[:length]
    if file.is_json:
        _check_json_line(
            file.path,
            before.line + before.lines + lines,
            len(buffer) - 1 - buffer.rfind(b"\n"),
        )
    if buffer:
        segment = _following(before, buffer, False, False)
        for part in _without_giants(segment, limits, text_field):
            yield stored if file.is_gzip else segment.offset, part


def _following(before, data, ends_in_document, ends_in_line):
    """The Segment after another one of the same file."""
    return Segment(
        before.path,
        before.offset + len(before.data),
        before.line + before.lines,
        bytes(data),
        before.is_json,
        before.ends_in_document,
        before.ends_in_line,
        ends_in_line,
        ends_in_document,
    )


def _without_giants(segment, limits, text_field):
    """The segment itself, or the parts of its text if it is a giant document.

    A JSON line that is larger than a chunk is read here, so that its text can
    be divided like that of a text file.
    """
    if not segment.is_json or len(segment.data) <= limits.size:
        return [segment]
    try:
        (line, *_) = _decode_lines(segment, text_files.InvalidText())
        text = text_files.json_text(
            segment.path, segment.line, line, text_field
        )
    except text_files.InvalidLine:
        return [segment]  # `sentences` says what becomes of it
    lines = (line.strip() for line in text.split("\n"))
    text = "\n".join(filter(None, lines)).encode("utf-8")
    part = dataclasses.replace(segment, data=b"", is_json=False)
    parts, start = [], 0
    while start < len(text):
        window = bytearray(text[start : start + limits.size])
        length, ends_in_line = len(text) - start, False
        if limits.weight(length, window.count(b"\n")) > limits.size:
            length, _, ends_in_line = _cut_text(window, limits, part)
        part = dataclasses.replace(
            part,
            data=text[start : start + length],
            continues_document=start > 0,
            continues_line=part.ends_in_line,
            ends_in_line=ends_in_line,
        )
        parts.append(part)
        start += length
    return parts


def _check_json_line(path, line, length):
    if length > MAX_JSON_LINE_BYTES:
        raise errors.UserError(
            f"line {line} of {path!r} is longer than the limit of "
            f"{MAX_JSON_LINE_BYTES} bytes; divide the document, or write "
            "the file as plain text"
        )


def _window(buffer, limits):
    """`limits.size`, or the end of the last line that fits."""
    most = max(1, limits.size // limits.line_bytes)
    if buffer.count(b"\n", 0, limits.size) < most:
        return min(limits.size, len(buffer))
    newlines = np.flatnonzero(
        np.frombuffer(bytes(buffer[: limits.size]), np.uint8) == ord("\n")
    )
    return int(newlines[most - 1]) + 1


def _cut_json(buffer, limits, before):
    """As _cut_text, but only between lines; 0 where no line ends yet.

    What is before ends with a line, and does not matter.
    """
    length = buffer.rfind(b"\n", 0, _window(buffer, limits)) + 1
    return length or buffer.find(b"\n") + 1, False, False


def _cut_text(buffer, limits, before):
    """Where to cut a buffer that holds enough for a chunk.

    Args:
      buffer: a bytearray.
      limits: ChunkLimits.
      before: the Segment before; it tells whether its last line continues.

    Returns:
      (length, in the middle of a document, in the middle of a line): after the
      last blank line, else after the last line, else before a space, else
      after a whole character.
    """
    window = _window(buffer, limits)
    newline = last = buffer.rfind(b"\n", 0, window)
    while newline >= 0:
        previous = buffer.rfind(b"\n", 0, newline)
        is_rest = before.ends_in_line and previous < 0
        if not (is_rest or buffer[previous + 1 : newline].strip()):
            return newline + 1, False, False
        newline = previous
    if last >= 0:
        return last + 1, True, False
    ends = [
        match.end()
        for match in _BEFORE_SPACE.finditer(
            buffer, max(0, window - text_files.BLOCK_BYTES), window
        )
    ]
    if ends:
        return ends[-1], True, True
    for _ in range(3):  # no character has more bytes after its first
        if window > 1 and buffer[window - 1] & 0xC0 == 0x80:
            window -= 1
    return max(1, window - 1), True, True


def sentences(
    chunk: Chunk,
    text_field: str = "text",
    invalid: typing.Optional[text_files.InvalidText] = None,
) -> typing.Iterator[typing.Tuple[str, str]]:
    """Yields (text, DOCUMENT, LINE or REST) for each line that is not blank.

    Text has no white space around it, except where a giant line was cut.

    Args:
      chunk: from `read_chunks`.
      text_field: the field of a JSON line that is its text.
      invalid: what becomes of invalid UTF-8 and JSON; None raises.

    Raises:
      text_files.InvalidLine: an invalid line, if `invalid` raises it.
    """
    invalid = invalid or text_files.InvalidText()
    for segment in chunk.segments:
        lines = _decode_lines(segment, invalid)
        if segment.is_json:
            yield from _json_sentences(segment, lines, text_field, invalid)
        else:
            yield from _text_sentences(segment, lines)


def _decode_lines(segment, invalid):
    """The lines of a segment, None for each one that is skipped."""
    has_mark = not segment.offset and segment.data.startswith(_BOM)
    offset = len(_BOM) if has_mark else 0
    data = segment.data[offset:]
    try:
        return data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        offset += segment.offset
    lines = []
    for number, line in enumerate(data.split(b"\n"), segment.line):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            message = (
                f"{segment.path!r} is not UTF-8: byte "
                f"0x{line[error.start]:02x} at offset {offset + error.start}, "
                f"in line {number}; convert it, for example with iconv -t UTF-8"
            )
            replacement = line.decode("utf-8", "replace")
            lines.append(
                invalid.handle(
                    text_files.InvalidLine(message, segment.path, replacement)
                )
            )
        offset += len(line) + 1
    return lines


def _text_sentences(segment, lines):
    begins = LINE if segment.continues_document else DOCUMENT
    for number, line in enumerate(lines):
        if line is None:
            continue
        continues = segment.continues_line and number == 0
        is_cut = segment.ends_in_line and number == len(lines) - 1
        if line.strip():
            line = line if continues else line.lstrip()
            yield (
                line if is_cut else line.rstrip(),
                REST if continues else begins,
            )
            begins = LINE
        elif not (continues or is_cut):
            begins = DOCUMENT


def _json_sentences(segment, lines, text_field, invalid):
    for number, line in enumerate(lines, segment.line):
        if not (line and line.strip()):
            continue
        try:
            text = text_files.json_text(segment.path, number, line, text_field)
        except text_files.InvalidLine as error:
            text = invalid.handle(error) or ""
        begins = DOCUMENT
        for part in text.split("\n"):
            stripped = part.strip()
            if stripped:
                yield stripped, begins
                begins = LINE
