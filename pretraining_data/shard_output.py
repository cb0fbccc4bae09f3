# SPDX-License-Identifier: Apache-2.0
"""Where built records go: shards, the progress of a build, the manifest.

A build writes its shards one after the other. Each gets its name only when it
is complete and is then listed in progress.json, from which an interrupted build
resumes. manifest.json replaces progress.json at the end.

Several tasks, on machines that share a file system, can build a directory
together. Each builds some of the shards and lists them in a progress file of
its own; the task that sees all shards listed writes manifest.json. There is no
lock, which not all such file systems have: a task changes only its own files,
and those that all tasks write have the same content and appear complete.
"""

import contextlib
import dataclasses
import fcntl
import os
import random
import typing

from absl import logging

from common import errors, files, tfrecord
from pretraining_data import manifest, packing, record_builder, text_files
from weights import model_directory

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
      numbers: of the shards that this process builds.
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
        self.numbers = range(num_shards)
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
        self._digest, self._digest_of_error = map(
            files.json_sha256, self._same_builds
        )
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
        # Before progress files, which a starting task writes before records.
        records = self._records()
        progress = self._read_progress()
        other = [p for p in progress if p["build"] not in self._same_builds]
        if not other and (progress or not overwrite) and self._is_complete():
            self._remove_progress()
            return True
        if progress and not other:
            self._resume(_shards_of(progress))
            return False
        if not overwrite:
            self._reject_other(other, records)
        try:
            if overwrite:  # the records, then what describes them
                for path in self._records():
                    os.remove(path)
                self._remove_progress()
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

    def missing(self) -> int:
        """Reads the progress of other tasks; returns the unfinished shards."""
        if len(self.numbers) < self.num_shards:
            progress = self._read_progress()
            # After reading: the last task writes the manifest, then removes
            # the progress files.
            if not self._is_complete():
                self.finished = self._complete_shards(_shards_of(progress))
        return self.num_shards - len(self.finished)

    def complete(self) -> _Settings:
        """Writes the tokenizer's files, then manifest.json.

        Returns:
          The content of manifest.json for this build.
        """
        directory = self._tokenizer_directory()
        os.makedirs(directory, exist_ok=True)
        for name, data in self._tokenizer.items():
            self._publish(os.path.join(directory, name), data)
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            # Builds of several files in one directory may end together.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            path = os.path.join(self._directory, manifest.MANIFEST)
            content = with_totals(
                self._settings, self._other_entries() + self.finished
            )
            self._publish(path, manifest.encode_manifest(content, path))
        finally:
            os.close(descriptor)
        self._remove_progress()
        return with_totals(self._settings, self.finished)

    def abandon(self, remove_finished: bool) -> None:
        """Removes what no later build can use.

        Args:
          remove_finished: whether that includes the finished shards.
        """
        if remove_finished or not self.own_finished():
            for path in self._records():
                if self._is_own(path):
                    os.remove(path)
            _remove_existing(self._progress_path)
            _remove_directories(self._made)

    def own_finished(self) -> typing.List[_Entry]:
        """The entries of finished shards that this process builds."""
        own = {os.path.basename(self.path(n)) for n in self.numbers}
        return [entry for entry in self.finished if entry["name"] in own]

    def path(self, number: int) -> str:
        """The file of one shard."""
        raise NotImplementedError

    def _tokenizer_directory(self):
        return self._directory

    def _records(self):
        """The paths of existing records and of what describes them."""
        raise NotImplementedError

    def _other_entries(self):
        """Entries of manifest.json that are not of this build, checked."""
        return []

    def _progress_paths(self):
        """The existing progress files of this build, of all tasks."""
        return list(filter(os.path.exists, [self._progress_path]))

    def _read_progress(self):
        """The contents of the progress files, with their "path"."""
        return [
            dict(progress, path=path)
            for path in self._progress_paths()
            for progress in _load_progress(path)
        ]

    def _write_progress(self):
        files.write_json(
            self._progress_path,
            {"build": self._build, "shards": self.own_finished()},
        )

    def _publish(self, path, data):
        """Writes a file that another task may write at the same time."""
        if len(self.numbers) == self.num_shards:
            files.write_bytes(path, data)
            return
        own = f"{path}.{os.path.basename(self._progress_path)}"
        files.write_bytes(own, data)
        os.replace(own, path)

    def _complete_shards(self, entries):
        """Those of some entries whose files exist and have their size."""
        shards = {self.path(number) for number in range(self.num_shards)}
        finished = {
            path: entry
            for entry in entries
            for path in [os.path.join(self._directory, entry["name"])]
            if path in shards
            and os.path.isfile(path)
            and os.path.getsize(path) == entry["bytes"]
        }
        return list(finished.values())

    def _is_own(self, path):
        """Whether no other task writes this one of the records."""
        own = map(self.path, self.numbers)
        return len(self.numbers) == self.num_shards or path in {
            name for path in own for name in (path, path + files.INCOMPLETE)
        }

    def _resume(self, entries):
        """Keeps the shards that are complete."""
        self.finished = self._complete_shards(entries)
        names = {entry["name"] for entry in self.finished}
        unfinished = [
            path
            for path in self._records()
            if os.path.basename(path) not in names
        ]
        self._reject_foreign(unfinished)
        for path in filter(self._is_own, unfinished):
            os.remove(path)
        self._write_progress()
        logging.info(
            "resuming an interrupted build: %d of %d shards are complete",
            len(self.finished),
            self.num_shards,
        )

    def _reject_foreign(self, paths):
        """Raises errors.UserError when a file is not of this build."""
        own = [
            os.path.join(self._directory, manifest.MANIFEST),
            *map(self.path, range(self.num_shards)),
        ]
        own += [path + files.INCOMPLETE for path in own]
        for path in set(paths) - set(own):
            raise errors.UserError(
                f"{path!r} is not part of the build to resume; move it to "
                "another directory"
            )

    def _reject_other(self, progress, records):
        """Raises errors.UserError when there are records of another build."""
        for other in progress:
            raise errors.UserError(
                f"{other['path']!r}: an interrupted build used other "
                f"settings ({_difference(other['build'], self._build)}); "
                f"pass those to resume it, {_OTHER_OUTPUT}it"
            )
        names = [repr(os.path.basename(path)) for path in records[:2]]
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

    def _remove_progress(self):
        for path in {self._progress_path, *self._progress_paths()}:
            _remove_existing(path)


@dataclasses.dataclass(frozen=True)
class Task:
    """One of `count` tasks that build a directory together."""

    index: int = 0
    count: int = 1

    def numbers(self, num_shards: int) -> range:
        """The shards that the task builds: adjacent, so it reads less."""
        return range(
            self.index * num_shards // self.count,
            (self.index + 1) * num_shards // self.count,
        )


class ShardedOutput(_Output):
    """A directory of shards of one build; arguments as _Output.

    `task` says which of the shards are built by this process.
    """

    def __init__(
        self,
        directory: str,
        num_shards: int,
        settings: _Settings,
        source: _Settings,
        tokenizer: _Contents,
        task: Task = Task(),
    ) -> None:
        name = manifest.PROGRESS
        if task.count > 1:
            name = manifest.task_progress(task.index)
        super().__init__(
            directory,
            os.path.join(directory, name),
            num_shards,
            settings,
            source,
            tokenizer,
        )
        self.numbers = task.numbers(num_shards)

    def path(self, number: int) -> str:
        """The file of one shard."""
        return os.path.join(
            self._directory, shard_name(number, self.num_shards)
        )

    def _records(self):
        paths = [
            path
            for end in ("", files.INCOMPLETE)
            for path in files.matching(self._directory, f"*{_ENDING}{end}")
        ]
        return sorted(paths) + _existing(
            os.path.join(self._directory, manifest.MANIFEST)
        )

    def _progress_paths(self):
        return manifest.progress_files(self._directory)


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
            f"{path}.{manifest.PROGRESS}",
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
        if not manifest.is_file_name(os.path.basename(self._path)):
            raise errors.UserError(
                f"--output_file={self._path!r}: the name is not UTF-8, or has "
                "a line break or a backslash; choose another name"
            )
        if manifest.progress_files(self._directory):
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


def _remove_existing(path):
    """Removes a file and its unfinished form, if they exist."""
    for name in (path, path + files.INCOMPLETE):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def _load_progress(path):
    """[the content of a progress file]; [] if another task has removed it."""
    try:
        progress = files.read_json(path, "a list of shards")
        if isinstance(progress["build"], dict) and all(
            map(_is_entry, progress["shards"])
        ):
            return [progress]
    except FileNotFoundError:
        return []
    except (errors.UserError, TypeError, KeyError):
        logging.warning("%r is damaged", path)
    return [{"build": {}, "shards": []}]


def _shards_of(progress):
    """The entries of the shards that progress files list."""
    return [entry for content in progress for entry in content["shards"]]


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
    """The numbers of the shards that a process must build, in order."""
    finished = {entry["name"] for entry in output.finished}
    return tuple(
        number
        for number in output.numbers
        if os.path.basename(output.path(number)) not in finished
    )


def shard_name(number: int, num_shards: int) -> str:
    """The file name of one of `num_shards` shards."""
    return f"pretrain-{number:05d}-of-{num_shards:05d}{_ENDING}"


def shuffle_seed(random_seed: int, number: int) -> int:
    """The seed of a shard's ShuffledWriter; not negative."""
    return (random_seed & 0xFFFFFFFFFFFFFFFF) << 32 | number


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
    with contextlib.suppress(OSError):
        for path in paths:
            os.rmdir(path)
