# SPDX-License-Identifier: Apache-2.0
"""The training records: their schema, their files, their order.

A static record contains its masks, a dynamic one only its tokens. S is the
length of a sequence, P the number of masked positions, N of records.
"""

import bisect
import collections
import functools
import glob
import hashlib
import io
import os
import threading
import typing

import numpy as np
from absl import logging

from common import errors, files, tfrecord
from common.tf_example import RecordError, decode_example
from pretraining_data import manifest

# Name to dtype. A static record's first three have length S, the others P.
STATIC_FEATURES = {
    "input_ids": np.int64,
    "input_mask": np.int64,
    "segment_ids": np.int64,
    "masked_lm_positions": np.int64,
    "masked_lm_ids": np.int64,
    "masked_lm_weights": np.float32,
}
# A dynamic record has input_ids alone, unpadded.

_MAX_OPEN_FILES = 64
_MAX_INDEXED_RECORDS = 16 << 20
_MAX_REPLACEMENTS = 1000
_LOGGED_CORRUPT = 20


def _generator(*key):
    """A RandomState that depends on nothing but the key.

    RandomState's streams are frozen (NEP 19): every numpy gives the same.
    """
    digest = hashlib.sha256(repr(key).encode("ascii")).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


class _OpenFile(io.FileIO):
    """A file that is closed when its last user is done."""

    def __del__(self):
        self.close()


class _Recent:
    """A cache of at most `limit` units; drops the least recently used ones."""

    def __init__(self, limit, size=lambda value: 1):
        self._limit = limit
        self._size = size
        self._used = 0
        self._values = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key, make):
        """The value of a key, from `make()` when it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._used += self._size(value)
            while self._used > self._limit and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self._used -= self._size(oldest)
        return value


class ShardedRecords:
    """Random access to the records of many TFRecord files.

    A record's index counts through the files in the order given. A file is
    indexed when a record of it is first read; the least recently used files and
    indexes are closed and dropped. Safe to use from many threads.

    Args:
      paths: the files.
      counts: records of each file (None for a file: counted at once), from
        the manifest, so that starting reads no file; None counts all files.
      skip_corrupt: read another record in place of a corrupt one, and count.

    Raises:
      RecordError: names the file, the record's number in it, its byte offset
        and what is wrong. Without `skip_corrupt` also when a file does not
        contain as many records as `counts` says.
      OSError: a file cannot be read.
    """

    def __init__(
        self,
        paths: typing.Iterable[str],
        counts: typing.Optional[typing.Sequence[typing.Optional[int]]] = None,
        skip_corrupt: bool = False,
    ) -> None:
        self.paths = list(paths)
        self._skip_corrupt = skip_corrupt
        self._corrupt = set()
        self._lock = threading.Lock()
        self._files = _Recent(_MAX_OPEN_FILES)
        self._indexes = _Recent(
            _MAX_INDEXED_RECORDS, lambda index: len(index[0])
        )
        self.counts = list(counts or [None] * len(self.paths))
        for shard, count in enumerate(self.counts):
            if count is None:
                self.counts[shard] = self._count(shard)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)]).tolist()

    def __len__(self):
        return self._starts[-1]

    @property
    def skipped(self) -> int:
        """Number of corrupt records so far (with `skip_corrupt`)."""
        return len(self._corrupt)

    def read(self, indices: typing.Iterable[int]) -> typing.List[bytes]:
        """The bytes of the records with these indices."""
        return [self._read_one(int(index), bytes) for index in indices]

    def read_examples(
        self,
        indices: typing.Iterable[int],
        lengths: typing.Optional[
            typing.Dict[str, typing.Tuple[int, int]]
        ] = None,
        vocab_size: typing.Optional[int] = None,
    ) -> typing.List[typing.Dict[str, np.ndarray]]:
        """The decoded records with these indices, {name: array} for each.

        Args:
          indices: record indices.
          lengths, vocab_size: what `check_example` expects; None for no check.

        Raises:
          errors.UserError: also for a record that is not as expected.
        """

        def decode(data):
            features = decode_example(data)
            if lengths is not None:
                check_example(features, lengths, vocab_size)
            return features

        return [self._read_one(int(index), decode) for index in indices]

    def _read_one(self, index, convert):
        if not self._skip_corrupt:
            return self._convert(index, convert)
        random = None
        for _ in range(_MAX_REPLACEMENTS):
            if index not in self._corrupt:
                try:
                    return self._convert(index, convert)
                except RecordError as error:
                    self._note_corrupt(index, error)
            if random is None:
                random = _generator("replacement", index)
            index = int(random.randint(len(self)))
        raise RecordError(
            f"none of {_MAX_REPLACEMENTS} records of {len(self.paths)} files "
            "can be read; build them again"
        )

    def _note_corrupt(self, index, error):
        with self._lock:
            self._corrupt.add(index)
        if len(self._corrupt) <= _LOGGED_CORRUPT:
            logging.warning("skipped: %s", error)

    def _convert(self, index, convert):
        shard, number = self._split(index)
        offset, data = self._fetch(shard, number)
        try:
            return convert(data)
        except RecordError as error:
            raise tfrecord.damage(
                self.paths[shard], number, offset, error
            ) from error
        except errors.UserError as error:
            raise errors.UserError(
                f"{self.paths[shard]!r}, record {number} (counted from 0): "
                f"{error}"
            ) from error

    def _split(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _fetch(self, shard, number):
        """(byte offset, data) of a record."""
        offsets, error = self._index(shard)
        if number >= len(offsets) - 1:
            raise error
        offset = int(offsets[number])
        opened = self._open(shard)  # held, or it could be closed meanwhile
        with files.named_errors(self.paths[shard]):
            framed = os.pread(
                opened.fileno(), int(offsets[number + 1]) - offset, offset
            )
        fault = tfrecord.data_fault(framed)
        if fault is not None:
            raise tfrecord.damage(self.paths[shard], number, offset, fault)
        return offset, framed[tfrecord.HEADER.size : -tfrecord.FOOTER.size]

    def _open(self, shard):
        return self._files.get(shard, lambda: _OpenFile(self.paths[shard]))

    def _index(self, shard):
        """([records + 1] offsets, None or the error that ended the file)."""
        return self._indexes.get(shard, lambda: self._build_index(shard))

    def _build_index(self, shard):
        path, expected = self.paths[shard], self.counts[shard]
        opened = self._open(shard)
        with files.named_errors(path):
            offsets, error = tfrecord.index_frames(opened.fileno(), path)
        count = len(offsets) - 1
        if error is None and expected not in (None, count):
            error = tfrecord.damage(
                path,
                count,
                int(offsets[-1]),
                f"the file ends here, expected {expected} records",
            )
        if error is not None and not self._skip_corrupt:
            raise error
        return offsets, error

    def _count(self, shard):
        offsets, error = self._index(shard)
        if error is not None:
            # The number of lost records is unknown; count it as one.
            self._note_corrupt(-1 - shard, error)
        if len(offsets) == 1:
            logging.warning("%r contains no records", self.paths[shard])
        return len(offsets) - 1


class RecordOrder:
    """The order in which records are fed, at any position at once.

    In each epoch the files are shuffled, their concatenation is cut into
    windows, and each window is shuffled: as random as a shuffle buffer of that
    size, close to sequential for the disk, and a pure function of (seed,
    epoch), so that a resumed run continues without reading earlier records.

    Args:
      counts_per_shard: records of each file, not all of them 0.
      seed: any int.
      window: records that are shuffled together, at least 1.
    """

    def __init__(
        self,
        counts_per_shard: typing.Sequence[int],
        seed: int,
        window: int = 100000,
    ) -> None:
        self._counts = np.array(counts_per_shard, np.int64).reshape(-1)
        self._starts = np.cumsum(self._counts) - self._counts
        self._total = int(self._counts.sum())
        self._seed = int(seed)
        self._window = int(window)
        self._windows = _Recent(4)

    def __len__(self):
        return self._total

    def indices(
        self, first: int, number: int
    ) -> typing.Tuple[np.ndarray, np.ndarray]:
        """The records at stream positions first .. first + number - 1.

        Args:
          first: int >= 0; position p belongs to epoch p // N.
          number: how many.

        Returns:
          (epochs [number] int64, record indices [number] int64)
        """
        epochs = np.empty(number, np.int64)
        indices = np.empty(number, np.int64)
        done = 0
        while done < number:
            epoch, place = divmod(int(first) + done, self._total)
            window, inside = divmod(place, self._window)
            records = self._windows.get(
                (epoch, window), functools.partial(self._permute, epoch, window)
            )
            taken = records[inside : inside + number - done]
            epochs[done : done + len(taken)] = epoch
            indices[done : done + len(taken)] = taken
            done += len(taken)
        return epochs, indices

    def _permute(self, epoch, window):
        """[<= window] int64: the records of one window in their order."""
        shards = _generator(self._seed, epoch).permutation(len(self._counts))
        ends = np.cumsum(self._counts[shards])
        low = window * self._window
        places = np.arange(low, min(low + self._window, self._total))
        rank = np.searchsorted(ends, places, "right")
        begins = ends[rank] - self._counts[shards[rank]]
        records = places - begins + self._starts[shards[rank]]
        return _generator(self._seed, epoch, window).permutation(records)


def check_example(
    features: typing.Dict[str, np.ndarray],
    lengths: typing.Dict[str, typing.Tuple[int, int]],
    vocab_size: typing.Optional[int] = None,
) -> None:
    """Checks a decoded record against what the run expects.

    Args:
      features: {name: array}, from `decode_example`.
      lengths: {name: (fewest, most)}, the required features; without
        "masked_lm_positions" the record must be a dynamic one.
      vocab_size: ids must be below it; None skips this check.

    Raises:
      errors.UserError: the record does not match.
    """
    if is_static(features) and "masked_lm_positions" not in lengths:
        raise errors.UserError(
            "found a static record, expected a dynamic one; "
            "build the records with --masking=dynamic"
        )
    if not set(lengths) <= set(features):
        masking = "static" if "masked_lm_positions" in lengths else "dynamic"
        raise errors.UserError(
            f"found the features {', '.join(sorted(features)) or '(none)'}, "
            f"expected {', '.join(sorted(lengths))}; build the records with "
            f"create_pretraining_data.py --masking={masking}"
        )
    for name, (fewest, most) in lengths.items():
        _check_feature(name, features[name], fewest, most)
    if vocab_size is not None:
        _check_range("input_ids", features, vocab_size)
        _check_range("masked_lm_ids", features, vocab_size)
    _check_range("masked_lm_positions", features, len(features["input_ids"]))
    _check_range("input_mask", features, 2)
    _check_range("segment_ids", features, 1)
    weights = features.get("masked_lm_weights", np.zeros(0, np.float32))
    if not ((weights >= 0) & (weights <= 1)).all():  # NaN is neither
        raise errors.UserError(
            f"masked_lm_weights ranges from {weights.min()} to "
            f"{weights.max()}, expected 0 to 1; build the records again"
        )


def is_static(features: typing.Dict[str, np.ndarray]) -> bool:
    """Whether a decoded record contains its masks."""
    return "masked_lm_positions" in features


def _check_feature(name, values, fewest, most):
    dtype = np.dtype(STATIC_FEATURES[name])
    if values.dtype != dtype:
        raise errors.UserError(
            f"{name} has the type {values.dtype}, expected {dtype}; build the "
            "records again"
        )
    if not fewest <= len(values) <= most:
        expected = most if fewest == most else f"{fewest} to {most}"
        flag = (
            "max_predictions_per_seq"
            if name.startswith("masked_lm")
            else "max_seq_length"
        )
        raise errors.UserError(
            f"{name} has length {len(values)}, expected {expected}; change "
            f"--{flag} or build the records again with that length"
        )


def _check_range(name, features, limit):
    values = features.get(name, ())
    if len(values) and not 0 <= values.min() <= values.max() < limit:
        raise errors.UserError(
            f"{name} ranges from {values.min()} to {values.max()}, expected 0 "
            f"to {limit - 1}; build the records again, or use the vocabulary "
            "and the length that they were built with"
        )


def expand_inputs(text: typing.Optional[str]) -> typing.List[str]:
    """The files that a flag names.

    Args:
      text: directories, files and globs, comma separated. Of a directory only
        the *.tfrecord in it are taken.

    Returns:
      Paths, sorted within each item, each file once.

    Raises:
      errors.UserError: an item names no file, a directory lacks a file that
        its manifest.json lists, or its build was interrupted.
    """
    items = [item.strip() for item in (text or "").split(",") if item.strip()]
    if not items:
        raise errors.UserError(
            "no file of records was given; name directories, files or globs, "
            "comma separated"
        )
    if text and os.path.exists(text):  # a name with a comma in it
        items = [text]
    paths: typing.Dict[str, str] = {}
    for item in items:
        for path in _expand_item(item):
            paths.setdefault(os.path.realpath(path), path)
    for path in paths.values():
        manifest.check_finished(path)
    return list(paths.values())


def _expand_item(item):
    if os.path.isfile(item):
        return [item]
    pattern = item
    if os.path.isdir(item):
        manifest.check_complete(item)
        pattern = os.path.join(glob.escape(item), "*.tfrecord")
    matches = glob.glob(pattern, recursive=True)
    for path in matches:
        if os.path.islink(path) and not os.path.exists(path):
            raise errors.UserError(
                f"{path!r} is a link to {os.readlink(path)!r}, which does not "
                "exist; restore that file or remove the link"
            )
    paths = sorted(filter(os.path.isfile, matches))
    if not paths:
        raise errors.UserError(
            f"{item!r} matches no file of records; expected a directory that "
            "create_pretraining_data.py wrote, a file or a glob"
        )
    return paths
