# SPDX-License-Identifier: Apache-2.0
"""Time, disk and records of a build, forecast from a sample of its input."""

import bisect
import dataclasses
import io
import itertools
import os
import random
import tempfile
import time
import typing

from pretraining_data import corpus, record_builder, shard_output, text_files

# Large enough that the short last sequence of a chunk matters little.
WINDOW_BYTES = 1 << 18
# The sample is at most this share of the input.
_SHARE = 1 / 25
_MOST_WINDOWS = 128
_WINDOWS_PER_WORKER = 8
# Bytes of a window as stored, and the chunks of its text.
_Window = typing.Tuple[float, typing.List[corpus.Chunk]]


class Rates(typing.NamedTuple):
    """What a byte of the input, as stored, becomes and takes."""

    records: float
    disk_bytes: float
    seconds: float


def num_windows(num_bytes: int, num_workers: int) -> int:
    """Windows to read of so many bytes; 0 where a forecast is not worth it."""
    most = max(_MOST_WINDOWS, _WINDOWS_PER_WORKER * num_workers)
    count = min(most, int(num_bytes * _SHARE) // WINDOW_BYTES)
    # All workers must be busy while the time is measured.
    return count if count >= max(8, 4 * num_workers) else 0


def sample(
    texts: typing.Sequence[text_files.TextFile],
    places: shard_output.Places,
    limits: corpus.ChunkLimits,
    text_field: str,
    count: int,
) -> typing.List[_Window]:
    """Reads windows at equal distances in the unfinished shards.

    Args:
      texts: the files of the input.
      places: the shards.
      limits: sizes of the chunks.
      text_field: as corpus.read_chunks.
      count: number of windows, at least 1.

    Returns:
      The windows in random order, so that each part of them is a sample.

    Raises:
      As corpus.read_chunks.
    """
    # Mostly one chunk.
    size = min(limits.size, 2 * WINDOW_BYTES)
    limits = dataclasses.replace(limits, size=size)
    starts = list(itertools.accumulate([0] + [f.size for f in texts]))[:-1]
    shard_bytes = places.total_bytes / places.num_shards
    windows = []
    for number in range(count):
        place = (number + 0.5) / count * len(places.unfinished)
        shard = places.unfinished[int(place)]
        position = int((shard + place % 1) * shard_bytes)
        stored, files = _window(texts, starts, position)
        group = corpus.FileGroup(number, 0, tuple(files))
        chunks = list(corpus.read_chunks(group, limits, text_field))
        windows.append((stored, chunks))
    random.Random(0).shuffle(windows)
    return windows


def measure(
    windows: typing.Sequence[_Window],
    results: typing.Iterable[record_builder.ChunkRecords],
    num_workers: int,
) -> Rates:
    """Writes the records of a sample to a temporary file, and removes it.

    Args:
      windows: from `sample`.
      results: the records of all their chunks, in order, as workers build them.
      num_workers: the number of these workers.
    """
    total = max(1, sum(stored for stored, _ in windows))
    sizes = [stored / len(chunks) for stored, chunks in windows for _ in chunks]
    times = [time.monotonic()]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sample.tfrecord")
        with shard_output.shuffled_writer(path, 0) as writer:
            for built in results:
                writer.add(built)
                times.append(time.monotonic())
    entry = writer.entry()
    # In the first half tokenizers fill their caches; at the end workers wait.
    first = len(times) // 2
    last = max(first, len(times) - num_workers)
    seconds = times[last] - times[first]
    return Rates(
        entry["records"] / total,
        entry["bytes"] / total,
        seconds / max(1, sum(sizes[first:last])),
    )


def _window(texts, starts, position):
    """(bytes as stored, files in memory) from a position of the input."""
    index = bisect.bisect_right(starts, position) - 1
    offset = position - starts[index]
    stored, files = 0.0, []
    while stored < WINDOW_BYTES and index < len(texts):
        file = texts[index]
        read = _read_gzip if file.is_gzip else _read_plain
        file_bytes, data = read(file, offset, WINDOW_BYTES - int(stored))
        stored += file_bytes
        files.append(_in_memory(file, data))
        index, offset = index + 1, 0
    return stored, files


def _in_memory(file, data):
    """A TextFile whose uncompressed content is `data`."""
    path = file.path[:-3] if file.is_gzip else file.path
    return text_files.TextFile(path, len(data), lambda _: io.BytesIO(data))


def _read_plain(file, offset, size):
    """(bytes as stored, lines) near an offset of a file."""
    with file.open(file.path) as stream:
        stream.seek(max(0, min(offset, file.size - size)))
        if stream.tell():  # in the middle of a line
            stream.readline(
                corpus.MAX_JSON_LINE_BYTES if file.is_json else size
            )
        data = stream.read(size)
        if file.is_json:
            data += stream.readline(corpus.MAX_JSON_LINE_BYTES)
    return len(data), data


def _read_gzip(file, offset, size):
    """As _read_plain, from the start, the only place to decompress from."""
    data, before = bytearray(), 0
    for position, block in text_files.read_blocks(file):
        # Where it changes, `data` is the text of `position` bytes.
        if position > before and position >= size:
            break
        before = position
        data += block
    else:
        position = file.size
    text = bytes(data[: len(data) * min(size, position) // max(1, position)])
    if file.is_json:
        text = text[: text.rfind(b"\n") + 1] or bytes(data)
    return position * len(text) / max(1, len(data)), text
