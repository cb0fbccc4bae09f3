# SPDX-License-Identifier: Apache-2.0
"""Where built records go: shards, the progress of a build, the manifest.

A build writes its shards one after the other. Each has its name only when it
is complete, and is then entered in progress.json, from which an interrupted
build goes on. manifest.json takes the place of progress.json at the end.
"""

import fcntl
import glob
import json
import os
import random

from absl import logging

from common import errors, files, tfrecord
from pretraining_data import manifest

PROGRESS = manifest.PROGRESS
# Shuffled records that wait in memory, in bytes.
SHUFFLE_BYTES = 32 << 20

_MAX_PROGRESS_BYTES = 8 << 20
_ENDING = ".tfrecord"
_SHARD = "pretrain-%05d-of-%05d" + _ENDING
_UNFINISHED = ".incomplete"  # what tfrecord appends to a name
_TOTALS = ("documents", "tokens", "sequences")
_OTHER_OUTPUT = "choose another --output_file, or pass --overwrite to replace "


class ShuffledWriter:
    """Writes records in random order, with a bounded number in memory.

    Args:
      path: of the shard.
      seed: int; the order is a function of it and of the records' sizes.
      capacity: bytes of records that may wait. While fewer come, any order of
        them is equally likely.
    """

    def __init__(self, path, seed, capacity=SHUFFLE_BYTES):
        self._writer = tfrecord.RecordWriter(path)
        self._random = random.Random(seed)
        self._capacity = capacity
        self._waiting = []
        self._held = 0
        self._totals = dict.fromkeys(_TOTALS, 0)

    def add(self, built):
        """Takes the ChunkRecords of one chunk."""
        for name in _TOTALS:
            self._totals[name] += getattr(built, name)
        for record in built.records:
            self._waiting.append(record)
            self._held += len(record)
            if self._held > self._capacity:
                self._write_one()

    def _write_one(self):
        waiting = self._waiting
        # random() alone gives the same numbers on every Python.
        place = int(self._random.random() * len(waiting))
        waiting[place], waiting[-1] = waiting[-1], waiting[place]
        record = waiting.pop()
        self._held -= len(record)
        self._writer.write(record)

    def entry(self):
        """What manifest.json says of the complete file."""
        return dict(self._writer.summary(), **self._totals)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """Writes what waits and completes the file; on an error removes it."""
        with self._writer:
            if kind is not None:
                self._writer.discard()
            while kind is None and self._waiting:
                self._write_one()


class _Output:
    """The files of one build; what both kinds of output share.

    Args:
      directory: where the files are; it is made when missing.
      progress_path: the file that lists the finished shards of this build.
      num_shards: how many files there will be.
      settings: what manifest.json says of the records (JSON values).
      source: what identifies the input (JSON values).
      overwrite: whether records that are there may be replaced.

    Attributes:
      finished: entries of the shards that are complete, the first ones.

    Raises:
      errors.UserError: there are records that this build cannot go on from.
    """

    def __init__(
        self, directory, progress_path, num_shards, settings, source, overwrite
    ):
        self.num_shards = num_shards
        self.finished = []
        self._directory = directory
        self._progress_path = progress_path
        self._settings = settings
        self._build = dict(
            settings,
            num_shards=num_shards,
            input=source,
            format_version=manifest.FORMAT_VERSION,
        )
        self._made = _make_directory(directory)
        self._other_entries()
        progress = self._read_progress()
        if progress is not None and progress["build"] == self._build:
            self._resume(progress["shards"])
            return
        if not overwrite:
            self._refuse_other(progress)
        try:
            self._clear()
            self._write_progress()
        except OSError:
            _remove_directories(self._made)
            raise

    def finish(self, entry):
        """Notes that the next shard is complete."""
        self.finished.append(entry)
        self._write_progress()

    def complete(self):
        """Writes manifest.json; returns what it says of this build."""
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            # Builds of several files in one directory may end together.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            manifest.write_manifest(
                self._directory,
                with_totals(
                    self._settings, self._other_entries() + self.finished
                ),
            )
        finally:
            os.close(descriptor)
        self._remove_progress()
        return with_totals(self._settings, self.finished)

    def abandon(self, remove_finished):
        """Leaves nothing that is half-written.

        Args:
          remove_finished: whether no later build can use the finished shards.
        """
        if remove_finished or not self.finished:
            self._clear()
            _remove_directories(self._made)

    def _read_progress(self):
        """The content of the progress file, None when there is none."""
        if not os.path.exists(self._progress_path):
            return None
        try:
            with open(self._progress_path, "rb") as stream:
                progress = files.loads(
                    stream.read(_MAX_PROGRESS_BYTES).decode("utf-8")
                )
            if isinstance(progress["build"], dict) and all(
                map(_is_entry, progress["shards"])
            ):
                return progress
        except (ValueError, TypeError, KeyError):
            logging.warning("%r is damaged", self._progress_path)
        return {"build": {}, "shards": []}

    def _write_progress(self):
        text = json.dumps(
            {"build": self._build, "shards": self.finished},
            indent=1,
            sort_keys=True,
        )
        files.write_bytes(self._progress_path, (text + "\n").encode("utf-8"))

    def _resume(self, entries):
        """Keeps the shards that are whole, up to the first that is not."""
        for number, entry in enumerate(entries):
            path = self.path(number)
            if not (
                entry["name"] == os.path.basename(path)
                and os.path.isfile(path)
                and os.path.getsize(path) == entry["bytes"]
            ):
                break
            self.finished.append(entry)
        kept = {self.path(number) for number in range(len(self.finished))}
        others = [path for path in self._records() if path not in kept]
        self._refuse_foreign(others)
        for path in others:
            os.remove(path)
        logging.info(
            "going on with an interrupted build: %d of %d shards are complete",
            len(self.finished),
            self.num_shards,
        )

    def _refuse_foreign(self, paths):
        """Raises errors.UserError when a file is not of this build."""
        path = os.path.join(self._directory, manifest.MANIFEST)
        known = {path, path + _UNFINISHED}
        for number in range(self.num_shards):
            known |= {self.path(number), self.path(number) + _UNFINISHED}
        foreign = [p for p in paths if p not in known]
        if foreign:
            raise errors.UserError(
                f"{foreign[0]!r} was not written by the build that is to go "
                "on; move it away"
            )

    def _refuse_other(self, progress):
        """Raises errors.UserError when there are records of another build."""
        if progress is not None:
            raise errors.UserError(
                f"{self._progress_path!r} is of an interrupted build with "
                "other settings "
                f"({_difference(progress['build'], self._build)}); give those "
                f"to go on with it, {_OTHER_OUTPUT}it"
            )
        found = self._records()
        if found:
            raise errors.UserError(
                f"{self._directory!r} holds "
                f"{' and '.join(repr(os.path.basename(p)) for p in found[:2])}; "
                f"{_OTHER_OUTPUT}them"
            )

    def _clear(self):
        """Removes the records, then what describes them."""
        for path in self._records():
            os.remove(path)
        self._remove_progress()

    def _remove_progress(self):
        for path in (self._progress_path + _UNFINISHED, self._progress_path):
            if os.path.exists(path):
                os.remove(path)


class ShardedOutput(_Output):
    """A directory of shards that one build owns; arguments as of _Output."""

    def __init__(self, directory, num_shards, settings, source, overwrite):
        super().__init__(
            directory,
            os.path.join(directory, PROGRESS),
            num_shards,
            settings,
            source,
            overwrite,
        )

    def path(self, number):
        """The file of one shard."""
        return os.path.join(
            self._directory, shard_name(number, self.num_shards)
        )

    def _records(self):
        """The paths of all records, unfinished ones too, and manifest.json."""
        pattern = os.path.join(glob.escape(self._directory), "*" + _ENDING)
        path = os.path.join(self._directory, manifest.MANIFEST)
        paths = glob.glob(pattern) + glob.glob(pattern + _UNFINISHED)
        return sorted(paths) + [
            p for p in (path, path + _UNFINISHED) if os.path.exists(p)
        ]

    def _other_entries(self):
        return []


class SingleOutput(_Output):
    """One file of records, entered in the manifest.json beside it.

    Builds of equal settings may share a directory and its manifest.json.
    Arguments as of _Output; `path` ends in .tfrecord.
    """

    def __init__(self, path, settings, source, overwrite):
        self._path = path
        if os.path.isdir(path):
            raise errors.UserError(
                f"--output_file={path} is a directory; a name that ends in "
                f"{_ENDING} is that of one file"
            )
        super().__init__(
            os.path.dirname(path) or ".",
            path + "." + PROGRESS,
            1,
            settings,
            source,
            overwrite,
        )

    def path(self, number):
        """The file, whose number is 0."""
        del number
        return self._path

    def _records(self):
        return [
            path
            for path in (self._path, self._path + _UNFINISHED)
            if os.path.exists(path)
        ]

    def _other_entries(self):
        """What manifest.json says of other files; checks that they fit."""
        if os.path.exists(os.path.join(self._directory, PROGRESS)):
            raise errors.UserError(
                f"{self._directory!r} holds an unfinished build; choose "
                "another directory for --output_file"
            )
        content = manifest.load_manifest(self._directory)
        if content is None:
            return []
        found = {key: content.get(key) for key in self._settings}
        if found != self._settings:
            raise errors.UserError(
                f"{os.path.join(self._directory, manifest.MANIFEST)!r} is of "
                "records with other settings "
                f"({_difference(found, self._settings)}); choose another "
                "directory for --output_file"
            )
        name = os.path.basename(self._path)
        return [s for s in content["shards"] if s["name"] != name]


def _is_entry(value):
    """Whether a value of progress.json describes a shard."""
    return manifest.is_shard(value) and all(
        type(value.get(name)) is int and value[name] >= 0 for name in _TOTALS
    )


def shard_of(position, num_shards, total_bytes):
    """The shard of a chunk by its position in an input of `total_bytes`."""
    return position * num_shards // total_bytes


def shard_name(number, num_shards):
    """The file name of one of `num_shards` shards."""
    return _SHARD % (number, num_shards)


def shuffle_seed(random_seed, number):
    """The ShuffledWriter's seed for a shard, whatever the sign of the first."""
    return (random_seed & 0xFFFFFFFFFFFFFFFF) << 32 | number


def with_totals(settings, shards):
    """The content of manifest.json."""
    totals = {name: sum(s.get(name, 0) for s in shards) for name in _TOTALS}
    return dict(
        settings, shards=sorted(shards, key=lambda s: s["name"]), **totals
    )


def _difference(found, given):
    """What differs first: "max_seq_length 128, not 512"."""
    for key in given:
        if found.get(key) != given[key]:
            if key == "input":
                return "other files, or files that have changed"
            if len(repr(given[key])) > 80:
                return f"another {key}"
            return f"{key} {found.get(key)!r}, not {given[key]!r}"
    return "made by another version"


def _make_directory(path):
    """Makes a directory; returns those that were missing, the lowest first."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise errors.UserError(
            f"--output_file={path} is a file that does not end in {_ENDING}; "
            "give a directory or a name with that ending"
        )
    missing = []
    part = os.path.abspath(path)
    while not os.path.exists(part):
        missing.append(part)
        part = os.path.dirname(part)
    os.makedirs(path, exist_ok=True)
    return missing


def _remove_directories(paths):
    """Removes directories as far as they are empty."""
    for path in paths:
        try:
            os.rmdir(path)
        except OSError:
            return
