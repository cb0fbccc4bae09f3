# SPDX-License-Identifier: Apache-2.0
"""Where built records go: shards, the progress of a build, the manifest.

A build writes its shards one after the other. Each gets its name only when it
is complete and is then listed in progress.json, from which an interrupted build
resumes. manifest.json replaces progress.json at the end.
"""

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import random
import typing

from absl import logging

from common import errors, files, tfrecord
from pretraining_data import manifest, packing, record_builder, text_files
from weights import model_directory

PROGRESS = manifest.PROGRESS
# Shuffled records that wait in memory, in bytes.
SHUFFLE_BYTES = 32 << 20

_ENDING = ".tfrecord"
_TOTALS = (
    "documents",
    "tokens",
    "sequences",
    "replaced_lines",
    "skipped_lines",
)
_OTHER_OUTPUT = "choose another --output_file, or pass --overwrite to replace "
_Entry = typing.Dict[str, typing.Any]  # of a shard in manifest.json
_Settings = typing.Dict[str, typing.Any]  # what manifest.json says of records
_Contents = typing.Mapping[str, bytes]


class ShuffledWriter:
    """Writes records in random order, with a bounded number in memory.

    Args:
      writer: of the shard.
      seed: int; the order is a function of it and of the records' sizes.
      capacity: bytes of records that may wait. Up to this size, any order of
        the records is equally likely.
    """

    def __init__(
        self, writer: tfrecord.RecordWriter, seed: int, capacity: int
    ) -> None:
        self._writer = writer
        self._random = random.Random(seed)
        self._capacity = capacity
        self._waiting: typing.List[bytes] = []
        self._totals = dict.fromkeys(_TOTALS, 0)

    def add(self, built: record_builder.ChunkRecords) -> None:
        """Adds the records of one chunk."""
        for name in _TOTALS:
            self._totals[name] += getattr(built, name)
        for record in built.records:
            self._waiting.append(record)
            self._capacity -= len(record)
            if self._capacity < 0:
                self._write_one()

    def _write_one(self):
        waiting = self._waiting
        # random() alone gives the same numbers on every Python.
        place = int(self._random.random() * len(waiting))
        waiting[place], waiting[-1] = waiting[-1], waiting[place]
        record = waiting.pop()
        self._capacity += len(record)
        self._writer.write(record)

    def flush(self) -> None:
        """Writes the waiting records."""
        while self._waiting:
            self._write_one()

    def entry(self) -> _Entry:
        """The entry of the complete file in manifest.json."""
        return dict(self._writer.summary(), **self._totals)


@contextlib.contextmanager
def shuffled_writer(
    path: str, seed: int, capacity: int = SHUFFLE_BYTES
) -> typing.Iterator[ShuffledWriter]:
    """A ShuffledWriter for a file that appears when it is complete."""
    with tfrecord.RecordWriter(path) as file:
        writer = ShuffledWriter(file, seed, capacity)
        yield writer
        writer.flush()


class _Output:
    """The files of one build; what both kinds of output share.

    Nothing is read or changed before `begin`.

    Args:
      directory: where the files are.
      progress_path: the file that lists the finished shards of this build.
      num_shards: number of files.
      settings: what manifest.json says of the records (JSON values).
      source: {"input": what identifies it (JSON values), "invalid_text"}.
      tokenizer: {name: content} of the tokenizer's files.

    Attributes:
      finished: entries of the complete shards.
    """

    def __init__(
        self,
        directory: str,
        progress_path: str,
        num_shards: int,
        settings: _Settings,
        source: _Settings,
        tokenizer: _Contents,
    ) -> None:
        self.num_shards = num_shards
        self.finished: typing.List[_Entry] = []
        self._directory = directory
        self._progress_path = progress_path
        self._settings = settings
        self._tokenizer = tokenizer
        self._build = dict(
            settings,
            num_shards=num_shards,
            format_version=manifest.FORMAT_VERSION,
            **source,
        )
        # A shard without invalid lines is the same with each --invalid_text.
        self._same_builds = [
            self._build,
            dict(self._build, invalid_text=text_files.ERROR),
        ]
        self._digest, self._digest_of_error = map(_digest, self._same_builds)
        self._made: typing.List[str] = []

    def begin(self, overwrite: bool) -> bool:
        """Resumes an interrupted build of the same settings, or starts one.

        Makes the directory. Removes incomplete files of the build that is
        resumed, or with `overwrite` all earlier records.

        Returns:
          Whether this very build is complete already; it is then left alone.

        Raises:
          errors.UserError: there are other records, and `overwrite` is False.
        """
        self._made = _make_directory(self._directory)
        self._other_entries()
        progress = self._read_progress()
        if progress is not None and progress["build"] in self._same_builds:
            self._resume(progress["shards"])
            return False
        if not overwrite:
            if progress is None and self._is_complete():
                return True
            self._reject_other(progress)
        try:
            self._clear()
            self._write_progress()
        except OSError:
            _remove_directories(self._made)
            raise
        return False

    def _is_complete(self):
        """Whether all shards of the same build are there, with their size."""
        content = manifest.load_manifest(self._directory) or {"shards": []}
        paths = list(map(self.path, range(self.num_shards)))
        entries = [
            entry
            for entry in content["shards"]
            if entry.get("build") in (self._digest, self._digest_of_error)
        ]
        sizes = {
            os.path.basename(path): os.path.getsize(path)
            for path in filter(os.path.isfile, paths)
        }
        if sizes != {entry["name"]: entry["bytes"] for entry in entries}:
            return False
        self.finished = entries
        return len(entries) == len(paths)

    def finish(self, entry: _Entry) -> None:
        """Records that a shard is complete."""
        self.finished.append(dict(entry, build=self._digest))
        self._write_progress()

    def reject(self, entry: _Entry) -> None:
        """Removes a shard whose text has invalid lines."""
        os.remove(os.path.join(self._directory, entry["name"]))

    def complete(self) -> _Settings:
        """Writes the tokenizer's files, then manifest.json.

        Returns:
          The content of manifest.json for this build.
        """
        directory = self._tokenizer_directory()
        os.makedirs(directory, exist_ok=True)
        for name, data in self._tokenizer.items():
            files.write_bytes(os.path.join(directory, name), data)
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

    def abandon(self, remove_finished: bool) -> None:
        """Removes what no later build can use.

        Args:
          remove_finished: whether that includes the finished shards.
        """
        if remove_finished or not self.finished:
            self._clear()
            _remove_directories(self._made)

    def path(self, number: int) -> str:
        """The file of one shard."""
        raise NotImplementedError

    def _tokenizer_directory(self):
        raise NotImplementedError

    def _records(self):
        """The paths of existing records and of what describes them."""
        raise NotImplementedError

    def _other_entries(self):
        """Entries of manifest.json that are not of this build, checked."""
        raise NotImplementedError

    def _read_progress(self):
        """The content of the progress file, None when there is none."""
        if not os.path.exists(self._progress_path):
            return None
        try:
            progress = files.read_json(self._progress_path, "a list of shards")
            if isinstance(progress["build"], dict) and all(
                map(_is_entry, progress["shards"])
            ):
                return progress
        except (errors.UserError, TypeError, KeyError):
            logging.warning("%r is damaged", self._progress_path)
        return {"build": {}, "shards": []}

    def _write_progress(self):
        files.write_json(
            self._progress_path, {"build": self._build, "shards": self.finished}
        )

    def _resume(self, entries):
        """Keeps the shards that are complete."""
        shards = {self.path(number) for number in range(self.num_shards)}
        finished = {
            path: entry
            for entry in entries
            for path in [os.path.join(self._directory, entry["name"])]
            if path in shards
            and os.path.isfile(path)
            and os.path.getsize(path) == entry["bytes"]
        }
        self.finished = list(finished.values())
        unfinished = [path for path in self._records() if path not in finished]
        self._reject_foreign(unfinished)
        for path in unfinished:
            os.remove(path)
        logging.info(
            "resuming an interrupted build: %d of %d shards are complete",
            len(self.finished),
            self.num_shards,
        )

    def _reject_foreign(self, paths):
        """Raises errors.UserError when a file is not of this build."""
        own = [os.path.join(self._directory, manifest.MANIFEST)]
        own += map(self.path, range(self.num_shards))
        own += [path + files.INCOMPLETE for path in own]
        for path in set(paths) - set(own):
            raise errors.UserError(
                f"{path!r} is not part of the build to resume; move it to "
                "another directory"
            )

    def _reject_other(self, progress):
        """Raises errors.UserError when there are records of another build."""
        if progress is not None:
            raise errors.UserError(
                f"{self._progress_path!r}: an interrupted build used other "
                f"settings ({_difference(progress['build'], self._build)}); "
                f"pass those to resume it, {_OTHER_OUTPUT}it"
            )
        names = [repr(os.path.basename(path)) for path in self._records()[:2]]
        if names:
            raise errors.UserError(
                f"{self._directory!r} contains {' and '.join(names)}; "
                f"{_OTHER_OUTPUT}them"
            )
        for name in (model_directory.VOCAB, model_directory.MERGES):
            path = os.path.join(self._tokenizer_directory(), name)
            if (
                os.path.exists(path)
                and files.read_bytes(path) != self._tokenizer[name]
            ):
                raise errors.UserError(
                    f"{path!r}: of another tokenizer; {_OTHER_OUTPUT}it"
                )

    def _clear(self):
        """Removes the records, then what describes them."""
        for path in self._records():
            os.remove(path)
        self._remove_progress()

    def _remove_progress(self):
        for path in _existing(self._progress_path):
            os.remove(path)


class ShardedOutput(_Output):
    """A directory of shards of one build; arguments as _Output."""

    def __init__(
        self,
        directory: str,
        num_shards: int,
        settings: _Settings,
        source: _Settings,
        tokenizer: _Contents,
    ) -> None:
        super().__init__(
            directory,
            os.path.join(directory, PROGRESS),
            num_shards,
            settings,
            source,
            tokenizer,
        )

    def path(self, number: int) -> str:
        """The file of one shard."""
        return os.path.join(
            self._directory, shard_name(number, self.num_shards)
        )

    def _records(self):
        pattern = os.path.join(glob.escape(self._directory), "*" + _ENDING)
        paths = glob.glob(pattern) + glob.glob(pattern + files.INCOMPLETE)
        return sorted(paths) + _existing(
            os.path.join(self._directory, manifest.MANIFEST)
        )

    def _tokenizer_directory(self):
        return self._directory

    def _other_entries(self):
        return []


class SingleOutput(_Output):
    """One file of records, listed in the manifest.json beside it.

    Builds of equal settings may share a directory and its manifest.json.
    Arguments as _Output; `path` ends in .tfrecord.
    """

    def __init__(
        self,
        path: str,
        settings: _Settings,
        source: _Settings,
        tokenizer: _Contents,
    ) -> None:
        self._path = path
        super().__init__(
            os.path.dirname(path) or ".",
            f"{path}.{PROGRESS}",
            1,
            settings,
            source,
            tokenizer,
        )

    def path(self, number: int) -> str:
        """The file, whose number is 0."""
        return self._path

    def _records(self):
        return _existing(self._path)

    def _tokenizer_directory(self):
        return self._path + manifest.TOKENIZER_SUFFIX

    def _other_entries(self):
        if os.path.isdir(self._path):
            raise errors.UserError(
                f"--output_file={self._path} is a directory, but a name that "
                f"ends in {_ENDING} is one file; choose another name"
            )
        if os.path.exists(os.path.join(self._directory, PROGRESS)):
            raise errors.UserError(
                f"{self._directory!r} contains an unfinished build; choose "
                "another directory for --output_file"
            )
        content = manifest.load_manifest(self._directory)
        if content is None:
            return []
        # Manifests of the first version do not record the line break.
        content.setdefault("line_break", packing.NONE)
        settings = {key: content.get(key) for key in self._settings}
        if settings != self._settings:
            raise errors.UserError(
                f"{os.path.join(self._directory, manifest.MANIFEST)!r}: its "
                "records have other settings "
                f"({_difference(settings, self._settings)}); choose another "
                "directory for --output_file"
            )
        name = os.path.basename(self._path)
        return [s for s in content["shards"] if s["name"] != name]


def _existing(path):
    """Of a file and its unfinished form the paths that exist."""
    return list(filter(os.path.exists, (path, path + files.INCOMPLETE)))


def _is_entry(value):
    """Whether a value of progress.json describes a shard."""
    return manifest.is_shard(value) and all(
        type(value.get(name)) is int and value[name] >= 0 for name in _TOTALS
    )


@dataclasses.dataclass(frozen=True)
class Places:
    """The shards of the chunks of an input.

    `num_shards` divide `total_bytes` as stored; `unfinished` are the numbers of
    those to be built, in order.
    """

    num_shards: int
    total_bytes: int
    unfinished: typing.Tuple[int, ...]

    def shard_of(self, position: int) -> int:
        """The shard of a chunk by its position in the input."""
        return position * self.num_shards // self.total_bytes

    def needs(self, start: int, size: int = 1) -> bool:
        """Whether chunks of an unfinished shard may begin in these bytes."""
        last = self.shard_of(start + max(size - 1, 0))
        numbers = range(self.shard_of(start), last + 1)
        return not set(numbers).isdisjoint(self.unfinished)


def unfinished_shards(output: typing.Any) -> typing.Tuple[int, ...]:
    """The numbers of the shards that an output lacks, in order."""
    finished = {entry["name"] for entry in output.finished}
    return tuple(
        number
        for number in range(output.num_shards)
        if os.path.basename(output.path(number)) not in finished
    )


def shard_name(number: int, num_shards: int) -> str:
    """The file name of one of `num_shards` shards."""
    return f"pretrain-{number:05d}-of-{num_shards:05d}{_ENDING}"


def shuffle_seed(random_seed: int, number: int) -> int:
    """The seed of a shard's ShuffledWriter; not negative."""
    return (random_seed & 0xFFFFFFFFFFFFFFFF) << 32 | number


def _digest(build):
    text = json.dumps(build, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def with_totals(settings: _Settings, shards: typing.List[_Entry]) -> _Settings:
    """The content of manifest.json."""
    totals = {name: sum(s.get(name, 0) for s in shards) for name in _TOTALS}
    return dict(
        settings, shards=sorted(shards, key=lambda s: s["name"]), **totals
    )


def _difference(earlier, given):
    """The first difference: "max_seq_length 128, not 512"."""
    for key, value in given.items():
        if earlier.get(key) != value:
            if key == "input":
                return "other files, or files that have changed"
            if len(repr(value)) > 80:
                return f"another {key}"
            return f"{key} {earlier.get(key)!r}, not {value!r}"
    return "made by another version"


def _make_directory(path):
    """Makes a directory; returns those that were missing, deepest first."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise errors.UserError(
            f"--output_file={path} is a file that does not end in {_ENDING}; "
            "choose a directory or a name with that ending"
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
