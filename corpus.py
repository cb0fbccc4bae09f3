# SPDX-License-Identifier: Apache-2.0
"""Text files → chunks → token streams → sequences, without TensorFlow.

A text file holds one sentence or paragraph a line and a blank line between
documents; a JSON-lines file (.jsonl, .json) holds one document a line, its
text in one field. Both may be gzipped (.gz).

Like fairseq's encoder, each line is stripped of the white space around it and
encoded by itself, so a line begins without a leading space, and nothing stands
for the line break. WikiText-2's validation text then has 251,354 tokens. (Lower
case: 262,785; stripped at the right only, it would be 262,649.)

A chunk is about a megabyte of text and ends between documents where it can. It
is packed by itself, so chunks can be packed anywhere, in any order, and always
give the same sequences. Chunks are numbered within a group of files: a large
file is a group of its own, small ones share one.

Source: Liu et al. 2019, section 4.1 (FULL-SENTENCES, DOC-SENTENCES);
fairseq/examples/roberta/multiprocessing_bpe_encoder.py (a line at a time).
"""
import bisect
import dataclasses
import glob
import itertools
import json
import os
import re
import typing
import zlib

import numpy as np

import errors

CHUNK_BYTES = 1 << 20  # of text, not of the compressed file
MIN_CHUNK_BYTES = 1 << 14
BYTES_A_LINE = 32  # what a shorter line counts as
# A JSON line must be read whole.
MAX_JSON_LINE_BYTES = 1 << 24

FULL_SENTENCES = "full_sentences"
DOC_SENTENCES = "doc_sentences"

_BLOCK_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"
_JSON_ENDINGS = (".jsonl", ".json")
# What a directory may hold beside text: this project's own outputs.
_NO_TEXT = (".tfrecord", ".incomplete", "manifest.json", "progress.json")
# Left of a space a cut changes no token: white space always begins a new piece
# of the byte-pair encoding.
_BEFORE_SPACE = r"\S(?=[ \t])"
_BEFORE_SPACE_IN_TEXT = re.compile(_BEFORE_SPACE)
_BEFORE_SPACE_IN_BYTES = re.compile(_BEFORE_SPACE.encode("ascii"))
# A longer line is encoded in parts, which bounds the memory that this takes.
_PART_CHARACTERS = 1 << 16


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of text; `size` is in bytes as stored."""
    path: str
    size: int

    @property
    def is_gzip(self):
        return self.path.endswith(".gz")

    @property
    def is_json(self):
        name = self.path[:-3] if self.is_gzip else self.path
        return name.endswith(_JSON_ENDINGS)


@dataclasses.dataclass(frozen=True)
class FileGroup:
    """Files that are cut into chunks together; `start` bytes come before."""
    number: int
    start: int
    files: typing.Tuple[TextFile, ...]

    @property
    def size(self):
        return sum(f.size for f in self.files)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Bytes of one file, cut after a whole character.

    `offset` (bytes) and `line` (from 1) say where in the uncompressed file it
    begins. `ends_in_line`, `document_goes_on`: in the next segment.
    """
    path: str
    offset: int
    line: int
    data: bytes
    is_json: bool
    continues_document: bool
    continues_line: bool
    ends_in_line: bool
    document_goes_on: bool = False

    @property
    def lines(self):
        """How many lines end here."""
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
class TokenStream:
    """The token ids of a chunk, `</s>` between documents.

    Args:
      ids: [N] int32.
      starts, ends: of each sentence in `ids`, lists of M ints.
      document_ends: end of each sentence's document in `ids`, list of M ints.
      documents: how many documents begin here (one that goes on from the chunk
        before is not counted).
      tokens: how many ids are text, not `</s>`.
    """
    ids: np.ndarray
    starts: typing.List[int]
    ends: typing.List[int]
    document_ends: typing.List[int]
    documents: int
    tokens: int


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
                "--input_file: there is no file %r; expected files, globs or "
                "directories of text, comma separated" % part)
        paths.extend(found)
    files = [_text_file(path) for path in paths]
    if not any(f.size for f in files):
        raise errors.UserError(
            "--input_file=%s holds no text; expected at least one line" % text)
    return files


def _matches(part):
    """The paths of one file, glob or directory."""
    names = [part] if os.path.exists(part) else sorted(
        glob.glob(part, recursive=True))
    for name in names:
        if not os.path.isdir(name):
            yield name
            continue
        for folder, folders, entries in os.walk(name):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            yield from (os.path.join(folder, entry) for entry in sorted(entries)
                        if not entry.startswith(".")
                        and not entry.endswith(_NO_TEXT))


def _text_file(path):
    if not os.path.isfile(path):
        raise errors.UserError(
            "--input_file: %r is no regular file; write the text to a file "
            "first, since its size decides how it is divided" % path)
    if not os.access(path, os.R_OK):
        raise errors.UserError(
            "--input_file: %r cannot be read; change its permissions" % path)
    return TextFile(path, os.path.getsize(path))


@dataclasses.dataclass(frozen=True)
class ChunkLimits:
    """How large chunks become: `size` bytes of text, at most about 1.5 times.

    A line counts as at least `line_bytes`, since where no sequence crosses
    documents each line may become a padded sequence of its own.
    """
    size: int
    line_bytes: int = BYTES_A_LINE

    def weight(self, length, lines):
        """What so many bytes and lines count as."""
        return max(length, lines * self.line_bytes)


def chunk_limits(total_bytes, num_shards=1, copies=1, line_bytes=BYTES_A_LINE):
    """The limits for an input of `total_bytes` as stored.

    Small inputs are cut finer, so that all workers and shards get some; many
    copies of each sequence (dupe_factor) mean smaller chunks, so that what a
    chunk becomes stays bounded.
    """
    size = min(CHUNK_BYTES * 4 // max(4, copies), total_bytes // (4 * num_shards))
    return ChunkLimits(max(MIN_CHUNK_BYTES, size), line_bytes)


def group_files(files, limits):
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


def read_chunks(group, limits, text_field="text"):
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


def _blocks(file):
    """Yields (bytes of the stored file before, decompressed bytes)."""
    with open(file.path, "rb") as stream:
        if file.is_gzip:
            yield from _decompress(stream, file.path)
            return
        position = 0
        for block in iter(lambda: stream.read(_BLOCK_BYTES), b""):
            yield position, block
            position += len(block)


def _decompress(stream, path):
    """Yields (compressed bytes before, at most _BLOCK_BYTES of text)."""
    member, position = None, 0  # None: between the members of the file
    for block in iter(lambda: stream.read(_BLOCK_BYTES), b""):
        data = b""
        while block or len(data) == _BLOCK_BYTES:
            if member is None:
                block = block.lstrip(b"\0")  # padding, as of tapes
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                data = member.decompress(block, _BLOCK_BYTES)
            except zlib.error as error:
                raise errors.UserError(
                    "%r is no intact gzip file (%s, near compressed byte %d); "
                    "compress the text again" % (path, error, position))
            yield position, data
            block = member.unconsumed_tail
            if member.eof:
                block, member, data = member.unused_data, None, b""
        position += _BLOCK_BYTES
    if member is not None:
        raise errors.UserError(
            "%r is a truncated gzip file: it ends in the middle of its data; "
            "copy or compress it again" % path)


def _segments(file, limits, text_field):
    """Yields (bytes of the stored file before, Segment)."""
    cut = _cut_json if file.is_json else _cut_text
    buffer, lines = bytearray(), 0
    before = Segment(file.path, 0, 1, b"", file.is_json, False, False, False)
    stored = 0
    for position, block in _blocks(file):
        buffer += block
        lines += block.count(b"\n")
        while limits.weight(len(buffer), lines) >= limits.size:
            length, goes_on, line_goes_on = cut(buffer, limits, before)
            if file.is_json:
                _check_json_line(file.path, before.line + before.lines,
                                 length or len(buffer))
            if not length:
                break
            segment = _following(before, buffer[:length], goes_on, line_goes_on)
            for part in _without_giants(segment, limits, text_field):
                yield stored if file.is_gzip else segment.offset, part
            before, stored = segment, position
            lines -= segment.lines
            del buffer[:length]
    if file.is_json:
        _check_json_line(file.path, before.line + before.lines + lines,
                         len(buffer) - 1 - buffer.rfind(b"\n"))
    if buffer:
        segment = _following(before, buffer, False, False)
        for part in _without_giants(segment, limits, text_field):
            yield stored if file.is_gzip else segment.offset, part


def _following(before, data, document_goes_on, line_goes_on):
    """The Segment after another one of the same file."""
    return Segment(
        before.path, before.offset + len(before.data),
        before.line + before.lines, bytes(data), before.is_json,
        before.document_goes_on, before.ends_in_line, line_goes_on,
        document_goes_on)


def _without_giants(segment, limits, text_field):
    """The segment itself, or the parts of its text if it is a giant document.

    A JSON line that is larger than a chunk is read here, so that its text can
    be divided like that of a text file.
    """
    if not segment.is_json or len(segment.data) <= limits.size:
        return [segment]
    lines = (line.strip() for line in _json_text(
        segment.path, segment.line, _decode(segment), text_field).split("\n"))
    text = "\n".join(filter(None, lines)).encode("utf-8")
    part = dataclasses.replace(segment, data=b"", is_json=False)
    parts, start = [], 0
    while start < len(text):
        window = bytearray(text[start:start + limits.size])
        length, line_goes_on = len(text) - start, False
        if limits.weight(length, window.count(b"\n")) > limits.size:
            length, _, line_goes_on = _cut_text(window, limits, part)
        part = dataclasses.replace(
            part, data=text[start:start + length],
            continues_document=start > 0, continues_line=part.ends_in_line,
            ends_in_line=line_goes_on)
        parts.append(part)
        start += length
    return parts


def _check_json_line(path, line, length):
    if length > MAX_JSON_LINE_BYTES:
        raise errors.UserError(
            "line %d of %r is longer than the limit of %d bytes; divide the "
            "document, or give the file as plain text"
            % (line, path, MAX_JSON_LINE_BYTES))


def _window(buffer, limits):
    """`limits.size`, or the end of the line that is one too many."""
    most = max(1, limits.size // limits.line_bytes)
    if buffer.count(b"\n", 0, limits.size) < most:
        return min(limits.size, len(buffer))
    newlines = np.flatnonzero(
        np.frombuffer(bytes(buffer[:limits.size]), np.uint8) == ord("\n"))
    return int(newlines[most - 1]) + 1


def _cut_json(buffer, limits, before):
    """As _cut_text, but only between lines; 0 where no line ends yet."""
    del before  # it has ended
    length = buffer.rfind(b"\n", 0, _window(buffer, limits)) + 1
    return length or buffer.find(b"\n") + 1, False, False


def _cut_text(buffer, limits, before):
    """Where to cut a buffer that holds enough for a chunk.

    Args:
      buffer: a bytearray.
      limits: ChunkLimits.
      before: the Segment before; it tells whether its last line goes on.

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
        if not (is_rest or buffer[previous + 1:newline].strip()):
            return newline + 1, False, False
        newline = previous
    if last >= 0:
        return last + 1, True, False
    ends = [match.end() for match in _BEFORE_SPACE_IN_BYTES.finditer(
        buffer, max(0, window - _BLOCK_BYTES), window)]
    if ends:
        return ends[-1], True, True
    while window > 1 and buffer[window - 1] & 0xC0 == 0x80:
        window -= 1
    return max(1, window - 1), True, True


def sentences(chunk, text_field="text"):
    """Yields (text, begins a document) for each line that is not blank.

    Text has no white space around it, except where a giant line was cut.

    Raises:
      errors.UserError: invalid UTF-8 or JSON, with file and line.
    """
    for segment in chunk.segments:
        text = _decode(segment)
        if segment.is_json:
            yield from _json_sentences(segment, text, text_field)
        else:
            yield from _text_sentences(segment, text)


def _decode(segment):
    skipped = len(_BOM) if segment.data.startswith(_BOM) and not segment.offset \
        else 0
    try:
        return segment.data[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        where = error.start + skipped
        raise errors.UserError(
            "%r is not UTF-8: byte 0x%02x at offset %d, in line %d; convert "
            "it, for example with iconv -t UTF-8"
            % (segment.path, segment.data[where], segment.offset + where,
               segment.line + segment.data.count(b"\n", 0, where)))


def _text_sentences(segment, text):
    lines = text.split("\n")
    begins = not segment.continues_document
    for number, line in enumerate(lines):
        continues = segment.continues_line and number == 0
        goes_on = segment.ends_in_line and number == len(lines) - 1
        if line.strip():
            line = line if continues else line.lstrip()
            yield line if goes_on else line.rstrip(), begins
            begins = False
        elif not (continues or goes_on):
            begins = True


def _json_sentences(segment, text, text_field):
    for number, line in enumerate(text.split("\n"), segment.line):
        if not line.strip():
            continue
        begins = True
        for part in _json_text(segment.path, number, line,
                               text_field).split("\n"):
            stripped = part.strip()
            if stripped:
                yield stripped, begins
                begins = False


def _json_text(path, number, line, text_field):
    """The text of one JSON line."""
    where = "line %d of %r" % (number, path)
    try:
        # float, because turning many digits into an int takes quadratic time.
        value = json.loads(line, parse_int=float)
    except RecursionError:
        raise errors.UserError("%s is nested too deeply; expected an object "
                               "with the field %r" % (where, text_field))
    except ValueError as error:
        raise errors.UserError(
            "%s is no JSON (%s); expected one object a line, like "
            "{\"%s\": \"...\"}" % (where, error, text_field))
    if not isinstance(value, dict) or text_field not in value:
        fields = ("the fields %s" % sorted(value)[:10]
                  if isinstance(value, dict) else "no object")
        raise errors.UserError(
            "%s has no field %r but %s; name the field of the text with "
            "--text_field" % (where, text_field, fields))
    value = value[text_field]
    if not isinstance(value, str):
        raise errors.UserError(
            "%s: the field %r is a %s; expected a text"
            % (where, text_field, type(value).__name__))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise errors.UserError(
            "%s: the text has half of a surrogate pair at character %d; remove "
            "it or write the whole pair" % (where, error.start))
    return value


def tokenize(chunk, encode, eos_id, text_field="text"):
    """The token stream of a chunk.

    Args:
      chunk: a Chunk.
      encode: text -> list of ids, as RobertaTokenizer.encode.
      eos_id: the id of `</s>`.
      text_field: where a JSON line has its text.

    Example: the documents "a b⏎c" and "d" become the ids
      a b c </s> d, with starts 0 2 4, ends 2 3 5, document_ends 3 3 5.

    Raises:
      errors.UserError: as `sentences`.
    """
    ids, starts, ends, first_sentences = [], [], [], []
    documents = tokens = 0
    for text, begins_document in sentences(chunk, text_field):
        if begins_document:
            documents += 1
            first_sentences.append(len(starts))
            if ids:
                ids.append(eos_id)
        starts.append(len(ids))
        for part in _parts(text):
            ids += encode(part)
        ends.append(len(ids))
        tokens += ends[-1] - starts[-1]
    bounds = sorted({0, len(starts)}.union(first_sentences))
    document_ends = []
    for first, after in zip(bounds, bounds[1:]):
        document_ends += [ends[after - 1]] * (after - first)
    return TokenStream(np.array(ids, np.int32), starts, ends, document_ends,
                       documents, tokens)


def _parts(text):
    """The text itself, or parts of a giant one with the same tokens.

    Where it has no space for long, its tokens may differ.
    """
    start = 0
    while len(text) - start > _PART_CHARACTERS:
        match = _BEFORE_SPACE_IN_TEXT.search(
            text, start + _PART_CHARACTERS // 2, start + _PART_CHARACTERS)
        end = match.end() if match else start + _PART_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def rooms(max_seq_length, short_seq_prob=0.0, random_state=None):
    """Yields for each sequence how many tokens it has room for.

    That is max_seq_length - 2, for `<s>` and `</s>`; with the probability
    `short_seq_prob` it is drawn from 2 up to that instead (all lengths alike).
    """
    room = max_seq_length - 2
    if not short_seq_prob:
        return itertools.repeat(room)
    return _drawn_rooms(room, short_seq_prob, random_state)


def _drawn_rooms(room, short_seq_prob, random_state):
    while True:
        draw, length = random_state.random_sample(2)
        shortest = min(2, room)
        yield (shortest + int(length * (room + 1 - shortest))
               if draw < short_seq_prob else room)


def pack(stream, packing, max_seq_length, sequence_rooms=None):
    """Cuts a token stream into sequences of whole sentences.

    A sentence that fits into a sequence is never divided: where the rest of a
    sequence is too short for it, it begins the next one. A longer sentence
    fills the rest and goes on in the next. Every token of a sentence is in
    exactly one sequence; a `</s>` between documents is left out where a
    sequence ends between them.

    Example: sentences of 2, 2 and 7 tokens in one document with room for 5
      become sequences of 5 (2 + 2 + 1), 5 and 1 tokens.

    Args:
      stream: a TokenStream.
      packing: FULL_SENTENCES, or DOC_SENTENCES (no sequence crosses documents).
      max_seq_length: at least 3.
      sequence_rooms: an iterator as of `rooms`.

    Returns:
      (starts, ends) of the sequences in stream.ids, each [K] int64.

    Source: Liu et al. 2019, section 4.1.
    """
    longest = max_seq_length - 2
    sequence_rooms = sequence_rooms or rooms(max_seq_length)
    starts, ends = stream.starts, stream.ends
    cuts, sentence, position = [], 0, 0
    while sentence < len(starts):
        limit = position + next(sequence_rooms)
        if packing == DOC_SENTENCES:
            limit = min(limit, stream.document_ends[sentence])
        # The first sentence that does not end within the limit.
        after = bisect.bisect_right(ends, limit, sentence)
        divided = after < len(starts) and starts[after] < limit and (
            after == sentence or ends[after] - starts[after] > longest)
        end = limit if divided else ends[after - 1]
        cuts.append((position, end))
        sentence = after
        if divided:
            position = end
        elif after < len(starts):
            position = starts[after]
    cuts = np.array(cuts, np.int64).reshape(-1, 2)
    return cuts[:, 0], cuts[:, 1]


def padded(stream, starts, ends, max_seq_length, *, bos_id, pad_id, eos_id):
    """The ids of K sequences, `<s> ... </s>` and `<pad>` up to the length S.

    Returns:
      (input_ids [K, S] int32, lengths [K] int64 with `<s>` and `</s>`).
    """
    lengths = ends - starts
    input_ids = np.full([len(starts), max_seq_length], pad_id, np.int32)
    input_ids[:, 0] = bos_id
    columns = np.arange(max_seq_length - 2)
    is_text = columns < lengths[:, None]  # [K, S - 2]
    sources = (starts[:, None] + columns)[is_text]
    input_ids[:, 1:-1][is_text] = stream.ids[sources]
    input_ids[np.arange(len(starts)), lengths + 1] = eos_id
    return input_ids, lengths + 2
