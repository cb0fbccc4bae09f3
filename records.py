# SPDX-License-Identifier: Apache-2.0
"""The training records: their schema, their files, their order, their manifest.

A static record carries its masks, a dynamic one only its tokens. S is the
length of a sequence, P the number of masked positions, N of records.
"""
import base64
import binascii
import collections
import glob
import hashlib
import json
import os
import threading

from absl import logging
import numpy as np

import errors
import tfrecord
from tfrecord import decode_example
from tfrecord import encode_example
from tfrecord import RecordError
from tfrecord import RecordWriter
from tfrecord import write_atomically

__all__ = ["decode_example", "encode_example", "RecordError", "RecordWriter",
           "write_atomically"]

# Name to dtype. A static record's first three have length S, the others P.
STATIC_FEATURES = {
    "input_ids": np.int64, "input_mask": np.int64, "segment_ids": np.int64,
    "masked_lm_positions": np.int64, "masked_lm_ids": np.int64,
    "masked_lm_weights": np.float32}
# A dynamic record's only feature, unpadded.
DYNAMIC_FEATURES = {"input_ids": np.int64}

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

_MAX_MANIFEST_BYTES = 64 << 20
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


class _OpenFile:
    """A file number that closes itself when the last user lets go of it."""

    def __init__(self, path):
        self.number = None
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self):
        if self.number is not None:
            os.close(self.number)


class _Recent:
    """At most `limit` units of values, the least recently used ones go."""

    def __init__(self, limit, size=lambda value: 1):
        self._limit = limit
        self._size = size
        self._used = 0
        self._values = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key, make):
        """The value of a key, from `make()` when it is not held."""
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
    indexed when a record of it is first read; files and indexes that were
    least recently used are let go. Safe to use from many threads.

    Args:
      paths: the files.
      counts: records of each file (None for a file: counted at once), from
        the manifest, so that starting reads nothing; None counts all files.
      skip_corrupt: read another record in place of a corrupt one, and count.

    Raises:
      RecordError: names the file, the record's number in it, its byte offset
        and what is wrong. Without `skip_corrupt` also when a file does not
        hold as many records as `counts` says.
      OSError: a file cannot be read.
    """

    def __init__(self, paths, counts=None, skip_corrupt=False):
        self.paths = list(paths)
        self._skip_corrupt = skip_corrupt
        self._corrupt = set()
        self._lock = threading.Lock()
        self._files = _Recent(_MAX_OPEN_FILES)
        self._indexes = _Recent(_MAX_INDEXED_RECORDS,
                                lambda index: len(index[0]))
        given = [None] * len(self.paths) if counts is None else list(counts)
        if len(given) != len(self.paths):
            raise ValueError("%d counts were given for %d files"
                             % (len(given), len(self.paths)))
        self._given = given
        self.counts = [self._count(shard) for shard in range(len(given))]
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self):
        return int(self._starts[-1])

    @property
    def skipped(self):
        """How many corrupt records were met so far (with `skip_corrupt`)."""
        return len(self._corrupt)

    def locate(self, index):
        """(path, number of the record in that file), for messages."""
        shard, number = self._split(index)
        return self.paths[shard], number

    def read(self, indices):
        """The bytes of the records with these indices, a list."""
        return [self._read_one(int(index), lambda data: data)
                for index in indices]

    def read_examples(self, indices, check=None):
        """The decoded records with these indices, a list of {name: array}.

        Args:
          indices: record indices.
          check: called with the features of each; may raise errors.UserError,
            to which the file and the record are added.
        """
        def decode(data):
            features = tfrecord.decode_example(data)
            if check is not None:
                check(features)
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
            "%d records of %d files were tried and none can be read; build "
            "them again" % (_MAX_REPLACEMENTS, len(self.paths)))

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
            raise tfrecord.damage(self.paths[shard], number, offset, error)
        except errors.UserError as error:
            raise errors.UserError("%r, record %d (counted from 0): %s"
                                   % (self.paths[shard], number, error))

    def _split(self, index):
        if not 0 <= index < len(self):
            raise IndexError("record %d of %d" % (index, len(self)))
        shard = int(np.searchsorted(self._starts, index, "right")) - 1
        return shard, int(index - self._starts[shard])

    def _fetch(self, shard, number):
        """(byte offset, data) of a record."""
        offsets, error = self._index(shard)
        if number >= len(offsets) - 1:
            raise error
        offset = int(offsets[number])
        framed = os.pread(self._open(shard).number,
                          int(offsets[number + 1]) - offset, offset)
        fault = tfrecord.data_fault(framed)
        if fault is not None:
            raise tfrecord.damage(self.paths[shard], number, offset, fault)
        return offset, framed[tfrecord.HEADER.size:-tfrecord.FOOTER.size]

    def _open(self, shard):
        return self._files.get(shard, lambda: _OpenFile(self.paths[shard]))

    def _index(self, shard):
        """([records + 1] offsets, None or the error that ended the file)."""
        return self._indexes.get(shard, lambda: self._build_index(shard))

    def _build_index(self, shard):
        path, expected = self.paths[shard], self._given[shard]
        offsets, error = tfrecord.index_frames(self._open(shard).number, path)
        found = len(offsets) - 1
        if error is None and expected is not None and found != expected:
            error = tfrecord.damage(
                path, found, int(offsets[-1]), "the file ends here, but %s "
                "counts %d records in it" % (MANIFEST, expected))
        if error is not None and not self._skip_corrupt:
            raise error
        return offsets, error

    def _count(self, shard):
        if self._given[shard] is not None:
            return self._given[shard]
        return len(self._index(shard)[0]) - 1


class RecordOrder:
    """The order in which records are fed, at any position at once.

    In each epoch the files are shuffled, their concatenation is cut into
    windows, and each window is shuffled: as random as a shuffle buffer of that
    size, close to sequential for the disk, and a pure function of (seed,
    epoch), so that a resumed run begins where it was without reading on.

    Args:
      counts_per_shard: records of each file.
      seed: any int.
      window: records that are shuffled together.

    Raises:
      errors.UserError: there are no records.
    """

    def __init__(self, counts_per_shard, seed, window=100000):
        self._counts = np.array(counts_per_shard, np.int64).reshape(-1)
        self._starts = np.cumsum(self._counts) - self._counts
        self._total = int(self._counts.sum())
        self._seed = int(seed)
        self._window = int(window)
        if self._total < 1:
            raise errors.UserError(
                "the %d files of records hold no record; build them from a "
                "text that is not empty" % len(self._counts))
        if self._window < 1:
            raise errors.UserError("a shuffle window of %d records was given; "
                                   "use 1 or more" % window)
        self._windows = _Recent(4)

    def __len__(self):
        return self._total

    def indices(self, first, number):
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
                (epoch, window), lambda: self._permute(epoch, window))
            taken = records[inside:inside + number - done]
            epochs[done:done + len(taken)] = epoch
            indices[done:done + len(taken)] = taken
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


def check_example(features, *, is_static, max_seq_length,
                  max_predictions_per_seq=None, vocab_size=None):
    """Checks a decoded record against what the run expects.

    Args:
      features: {name: array}, from `decode_example`.
      is_static: whether it must carry its masks.
      max_seq_length: S; a static record has it exactly, a dynamic at most.
      max_predictions_per_seq: P of a static record.
      vocab_size: ids must be below it; None does not look at them.

    Raises:
      errors.UserError: what was found, what was expected.
    """
    schema = STATIC_FEATURES if is_static else DYNAMIC_FEATURES
    for name, dtype in schema.items():
        if name not in features:
            raise errors.UserError(_missing_feature(name, features, is_static))
        values = features[name]
        if values.dtype != dtype:
            raise errors.UserError("%s holds %s, expected %s" % (
                name, values.dtype, np.dtype(dtype)))
        if is_static:
            _check_static_length(name, len(values), max_seq_length,
                                 max_predictions_per_seq)
    if not is_static:
        _check_dynamic(features, max_seq_length)
    if vocab_size is not None:
        _check_range("input_ids", features, vocab_size)
    if is_static:
        _check_range("masked_lm_positions", features, max_seq_length)
        if vocab_size is not None:
            _check_range("masked_lm_ids", features, vocab_size)


def is_static(features):
    """Whether a decoded record carries its masks."""
    return "masked_lm_positions" in features


def _missing_feature(name, features, wants_static):
    if wants_static and "input_ids" in features:
        return ("found no %s, expected a static record; build the records with "
                "--masking=static" % name)
    return "found the features %s, expected %s; these are no records of " \
        "create_pretraining_data.py" % (sorted(features), name)


def _check_static_length(name, found, max_seq_length, predictions):
    is_masks = name.startswith("masked_lm")
    expected = predictions if is_masks else max_seq_length
    flag = "max_predictions_per_seq" if is_masks else "max_seq_length"
    if expected is not None and found != expected:
        raise errors.UserError(
            "%s has length %d, expected %d; use --%s=%d or build the records "
            "again" % (name, found, expected, flag, found))


def _check_dynamic(features, max_seq_length):
    found = len(features["input_ids"])
    if is_static(features):
        raise errors.UserError("found a static record, expected a dynamic one; "
                               "build the records with --masking=dynamic")
    if not 1 <= found <= max_seq_length:
        raise errors.UserError(
            "input_ids has length %d, expected 1 to %d; use another "
            "--max_seq_length or build the records again"
            % (found, max_seq_length))


def _check_range(name, features, limit):
    values = features[name]
    if len(values) and not 0 <= values.min() <= values.max() < limit:
        raise errors.UserError(
            "%s goes from %d to %d, expected 0 to %d; the records were built "
            "for another vocabulary or length"
            % (name, values.min(), values.max(), limit - 1))


def expand_inputs(text):
    """The files that a flag names.

    Args:
      text: directories, files and globs, comma separated. Of a directory only
        the *.tfrecord in it are taken.

    Returns:
      Paths, sorted within each item, no file twice.

    Raises:
      errors.UserError: an item names nothing, or a directory lacks a file
        that its manifest.json lists.
    """
    items = [item.strip() for item in (text or "").split(",") if item.strip()]
    if not items:
        raise errors.UserError("no file of records was given; name directories,"
                               " files or globs, comma separated")
    found = collections.OrderedDict()
    for item in items:
        for path in _expand_item(item):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand_item(item):
    if os.path.isdir(item):
        paths = glob.glob(os.path.join(glob.escape(item), "*.tfrecord"))
        if not paths:
            raise errors.UserError(
                "directory %r holds no *.tfrecord file; give the directory "
                "that create_pretraining_data.py wrote" % item)
        _check_complete(item)
        return sorted(paths)
    if os.path.exists(item):
        return [item]
    paths = sorted(p for p in glob.glob(item, recursive=True)
                   if os.path.isfile(p))
    if not paths:
        raise errors.UserError("%r matches no file; expected a directory, a "
                               "file or a glob" % item)
    return paths


def _check_complete(directory):
    path = os.path.join(directory, MANIFEST)
    if not os.path.exists(path):
        return
    for shard in _load_manifest(path)["shards"]:
        if not os.path.isfile(os.path.join(directory, shard["name"])):
            raise errors.UserError(
                "%r lists %r, which is not there; copy the file again or build "
                "the records again" % (path, shard["name"]))


def _is_count(value):
    return type(value) is int and value >= 0


def _is_hash(value):
    return (isinstance(value, str) and len(value) == 64
            and set(value) <= set("0123456789abcdef"))


def _is_probability(value):
    return type(value) in (int, float) and 0 <= value <= 1


# Key to (test, what is expected). Other keys may stand beside them.
_MANIFEST_KEYS = {
    "masking": (lambda v: v in ("static", "dynamic"), "static or dynamic"),
    "packing": (lambda v: isinstance(v, str), "a text"),
    "word_starts": (lambda v: isinstance(v, str), "a text"),
    "masked_lm_prob": (_is_probability, "a number from 0 to 1"),
    "short_seq_prob": (_is_probability, "a number from 0 to 1"),
    "random_seed": (lambda v: type(v) is int, "a whole number"),
    "vocab_sha256": (_is_hash, "64 hexadecimal digits"),
    "merges_sha256": (_is_hash, "64 hexadecimal digits"),
}
_MANIFEST_KEYS.update({
    key: (_is_count, "a whole number >= 0") for key in (
        "max_seq_length", "max_predictions_per_seq", "dupe_factor",
        "vocab_size", "bos_id", "pad_id", "eos_id", "unk_id", "mask_id",
        "documents", "tokens", "sequences")})
_MANIFEST_KEYS.update({
    key: (lambda v: isinstance(v, bool), "true or false")
    for key in ("do_whole_word_mask", "do_lower_case")})
_REQUIRED_KEYS = ("masking", "max_seq_length", "shards")
# What two directories of records must agree on to be fed together.
_COMMON_KEYS = ("masking", "max_seq_length", "max_predictions_per_seq",
                "vocab_sha256", "merges_sha256", "mask_id", "word_starts")


def _check_manifest(manifest, where):
    """Raises errors.UserError unless a parsed manifest has the right shape."""
    def refuse(found, expected):
        raise errors.UserError(
            "%s: found %s, expected %s; build the records again"
            % (where, found, expected))

    if not isinstance(manifest, dict):
        refuse("a %s" % type(manifest).__name__, "a JSON object")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        refuse("format_version %.40r" % (version,), FORMAT_VERSION)
    for key in _REQUIRED_KEYS:
        if key not in manifest:
            refuse("no %s" % key, "it")
    for key, (is_right, expected) in _MANIFEST_KEYS.items():
        if key in manifest and not is_right(manifest[key]):
            refuse("%s %.40r" % (key, manifest[key]), expected)
    if not isinstance(manifest["shards"], list):
        refuse("shards %.40r" % (manifest["shards"],), "a list")
    names = set()
    for shard in manifest["shards"]:
        _check_shard(shard, refuse)
        if shard["name"] in names:
            refuse("shard %.80r twice" % shard["name"], "it once")
        names.add(shard["name"])
    if "word_starts" in manifest:
        word_starts(manifest, where)


def _check_shard(shard, refuse):
    if not isinstance(shard, dict):
        refuse("shard %.40r" % (shard,), "a JSON object")
    name = shard.get("name")
    if (not isinstance(name, str) or name in ("", ".", "..") or "/" in name
            or "\\" in name or "\0" in name):
        refuse("shard name %.80r" % (name,), "a file name without a directory")
    for key in ("records", "bytes"):
        if not _is_count(shard.get(key)):
            refuse("%s %.40r of shard %.80r" % (key, shard.get(key), name),
                   "a whole number >= 0")
    if not _is_hash(shard.get("sha256")):
        refuse("sha256 %.80r of shard %.80r" % (shard.get("sha256"), name),
               "64 hexadecimal digits")


def _load_manifest(path):
    with open(path, "rb") as stream:
        data = stream.read(_MAX_MANIFEST_BYTES + 1)
    if len(data) > _MAX_MANIFEST_BYTES:
        raise errors.UserError("%r is larger than %d bytes; build the records "
                               "again" % (path, _MAX_MANIFEST_BYTES))
    try:
        manifest = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise errors.UserError("%r is no JSON that can be read (%.200s); build "
                               "the records again" % (path, error))
    _check_manifest(manifest, repr(path))
    return manifest


def read_manifest(inputs):
    """The settings and counts of records, from the manifest.json beside them.

    Args:
      inputs: a directory, or files as `expand_inputs` gives them.

    Returns:
      The manifest as a dict, None when there is none that lists one of the
      files. With files from several directories: the first one's settings, all
      their shards. Every shard gets a "path".

    Raises:
      errors.UserError: a manifest is malformed, names a file outside its
        directory, or two of them differ in what must be equal.
    """
    if isinstance(inputs, str):
        directories, wanted = [inputs], None
    else:
        directories = list(collections.OrderedDict.fromkeys(
            os.path.dirname(path) for path in inputs))
        wanted = {os.path.realpath(path) for path in inputs}
    merged, merged_path = None, None
    for directory in directories:
        path = os.path.join(directory, MANIFEST)
        if not os.path.exists(path):
            continue
        manifest = _load_manifest(path)
        for shard in manifest["shards"]:
            shard["path"] = os.path.join(directory, shard["name"])
        listed = {os.path.realpath(s["path"]) for s in manifest["shards"]}
        if wanted is not None and not wanted & listed:
            continue
        if merged is None:
            merged, merged_path = manifest, path
            continue
        _check_agreement(merged, merged_path, manifest, path)
        merged["shards"] += manifest["shards"]
    return merged


def _check_agreement(first, first_path, second, second_path):
    for key in _COMMON_KEYS:
        if first.get(key) != second.get(key):
            raise errors.UserError(
                "%s is %.40r in %r and %.40r in %r; records that are fed "
                "together must be built alike" % (
                    key, first.get(key), first_path, second.get(key),
                    second_path))


def counts_of(paths, manifest):
    """Records of each file for `ShardedRecords`, None where it is not known.

    Args:
      paths: files.
      manifest: from `read_manifest`, or None.
    """
    shards = manifest["shards"] if manifest is not None else []
    known = {os.path.realpath(s["path"]): s["records"] for s in shards}
    return [known.get(os.path.realpath(path)) for path in paths]


def write_manifest(directory, manifest):
    """Writes manifest.json; it has its name only when it is complete.

    Args:
      directory: where the shards are.
      manifest: a dict; "format_version" is added.

    Raises:
      errors.UserError: `read_manifest` would refuse it.
    """
    manifest = dict(manifest, format_version=FORMAT_VERSION)
    path = os.path.join(directory, MANIFEST)
    _check_manifest(manifest, repr(path))
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8"))


def pack_word_starts(table):
    """A bool [V] table as the text in manifest.json."""
    return base64.b64encode(np.packbits(table).tobytes()).decode("ascii")


def word_starts(manifest, where=MANIFEST):
    """The bool [V] table of a manifest, None when it has none.

    Raises:
      errors.UserError: it does not have vocab_size bits.
    """
    if "word_starts" not in manifest:
        return None
    size = manifest.get("vocab_size", 0)
    try:
        data = base64.b64decode(manifest["word_starts"], validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != (size + 7) // 8:
        raise errors.UserError(
            "%s: word_starts is not the base64 of %d bits; build the records "
            "again" % (where, size))
    return np.unpackbits(np.frombuffer(data, np.uint8))[:size].astype(bool)


def summarize_file(path):
    """What manifest.json says of a file: name, records, bytes, sha256.

    Raises:
      RecordError: a frame is truncated or its length is corrupted; the data
        is covered by the sha256 alone.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        offsets, error = tfrecord.index_frames(stream.fileno(), path)
        if error is not None:
            raise error
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return {"name": os.path.basename(path), "records": len(offsets) - 1,
            "bytes": size, "sha256": digest.hexdigest()}
