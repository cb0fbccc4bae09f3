# SPDX-License-Identifier: Apache-2.0
"""Builds records as an Apache Beam pipeline: many machines, the same bytes.

    groups of files → chunks → records of a chunk → shards

Chunks and their order in a shard are those of the local builder, and so are the
shards. The pipeline carries the vocabulary, and this project's modules where
the workers are other machines.

Files may be on any file system that Beam supports (gs://, s3://, hdfs://); a
path without a scheme must be the same on every worker.
"""

import dataclasses
import functools
import importlib
import json
import logging as standard_logging
import os
import pathlib
import re
import shlex
import shutil
import struct
import sys
import tempfile
import typing
import uuid

import apache_beam as beam
from absl import logging
from apache_beam.io import filesystem, filesystems
from apache_beam.options import pipeline_options

import tokenization
from common import errors, files
from pretraining_data import (
    corpus,
    manifest,
    record_builder,
    shard_output,
    text_files,
)
from weights import model_directory

_FileSystems = filesystems.FileSystems
_COPY_BYTES = 1 << 22
# (group, index) of a chunk and its encoded ChunkRecords, by shard.
_PLACED = typing.Tuple[int, typing.Tuple[typing.Tuple[int, int], bytes]]
_COUNTS = tuple(
    field.name
    for field in dataclasses.fields(record_builder.ChunkRecords)
    if field.name not in ("records", "messages")
)
_MISTAKE = re.compile(
    r"errors\.UserError: (.*?)(?: \[while running .*)?$", re.MULTILINE
)
# What workers on other machines import of this project, and from outside.
_MODULES = ("configuration", "tokenization")
_PACKAGES = ("common", "pretraining_data", "weights")
_REQUIRED = ("absl-py==", "regex==")


# (name, content) of a tokenizer's files, for the workers.
Tokenizer = typing.Tuple[typing.Tuple[str, bytes], ...]


@functools.lru_cache(maxsize=1)  # a process may run many copies of a step
def load_tokenizer(contents: Tokenizer) -> tokenization.RobertaTokenizer:
    """The tokenizer of some files."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in contents:
            pathlib.Path(folder, name).write_bytes(data)
        return tokenization.RobertaTokenizer(
            os.path.join(folder, model_directory.VOCAB),
            os.path.join(folder, model_directory.MERGES),
            bool(model_directory.lower_case(folder)),
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """A build of the shards that are unfinished."""

    files: typing.Tuple[text_files.TextFile, ...]
    tokenizer: Tokenizer
    config: record_builder.RecordConfig
    paths: typing.Tuple[str, ...]  # of all shards
    places: shard_output.Places

    @property
    def limits(self) -> corpus.ChunkLimits:
        """Sizes of the chunks."""
        return self.config.chunk_limits(
            self.places.total_bytes, len(self.paths)
        )


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, as gs://bucket/text has."""
    return "://" in path


def expand_inputs(text: str) -> typing.List[text_files.TextFile]:
    """As text_files.expand_inputs, but parts may also be addresses.

    Raises:
      errors.UserError: a part matches no readable file, or the files are empty.
    """
    inputs: typing.List[typing.Any] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        expand = _match_remote if is_remote(part) else text_files.expand_inputs
        inputs += expand(part)
    if not inputs:
        raise errors.UserError(
            f"--input_file={text} contains no text; expected at least one line"
        )
    return [dataclasses.replace(file, open=_open) for file in inputs]


def _match_remote(pattern):
    """The files of an address or a pattern; one that ends in / is a folder."""
    name = pattern + "**" if pattern.endswith("/") else pattern
    inputs = [
        text_files.TextFile(file.path, file.size_in_bytes)
        for file in _FileSystems.match([name])[0].metadata_list
    ]
    if not any(file.size for file in inputs):
        raise errors.UserError(
            f"--input_file: no text in {pattern!r}; expected files, patterns "
            "or folders, whose names end in /"
        )
    return sorted(inputs, key=lambda file: file.path)


def _open(path):
    """A stream of a file's bytes as stored."""
    return _FileSystems.open(
        path, compression_type=filesystem.CompressionTypes.UNCOMPRESSED
    )


class RemoteOutput:
    """A folder of shards with a scheme; has the methods of ShardedOutput.

    An interrupted build is started again, not resumed.
    """

    def __init__(
        self,
        directory: str,
        num_shards: int,
        settings: typing.Dict[str, typing.Any],
        tokenizer: typing.Mapping[str, bytes],
    ) -> None:
        self.num_shards = num_shards
        self.numbers = range(num_shards)
        self.finished: typing.List[typing.Dict[str, typing.Any]] = []
        self._directory = directory
        self._settings = settings
        self._tokenizer = tokenizer

    def begin(self, overwrite: bool) -> None:
        """Removes earlier records.

        Raises:
          errors.UserError: there are some, and `overwrite` is False.
        """
        records = self._records()
        if records and not overwrite:
            raise errors.UserError(
                f"{self._directory!r} contains {records[0]!r}; choose another "
                "--output_file, or pass --overwrite to replace the records"
            )
        self._clear()

    def path(self, number: int) -> str:
        """The file of one shard."""
        return _FileSystems.join(
            self._directory, shard_output.shard_name(number, self.num_shards)
        )

    def finish(self, entry: typing.Dict[str, typing.Any]) -> None:
        """Records that a shard is complete."""
        self.finished.append(entry)

    def reject(self, entry: typing.Dict[str, typing.Any]) -> None:
        """Leaves a shard whose text has invalid lines to `abandon`."""

    def missing(self) -> int:
        """0: no other task builds shards of this output."""
        return 0

    def complete(self) -> typing.Dict[str, typing.Any]:
        """Writes the tokenizer and manifest.json; returns its content."""
        content = shard_output.with_totals(self._settings, self.finished)
        written = {
            **self._tokenizer,
            manifest.MANIFEST: manifest.encode_manifest(
                content, self._directory
            ),
        }
        for name, data in written.items():
            path = _FileSystems.join(self._directory, name)
            with _FileSystems.create(
                path, mime_type="application/octet-stream"
            ) as stream:
                stream.write(data)
        return content

    def abandon(self, remove_finished: bool) -> None:
        """Removes all records; none can be resumed."""
        self._clear()

    def _records(self):
        names = ("*.tfrecord", "*.incomplete", manifest.MANIFEST)
        results = _FileSystems.match(
            [_FileSystems.join(self._directory, name) for name in names]
        )
        return [
            file.path for result in results for file in result.metadata_list
        ]

    def _clear(self):
        records = self._records()
        if records:
            _FileSystems.delete(records)


# --- The pipeline -----------------------------------------------------------


def run(
    job: Job, runner: str, options: str
) -> typing.List[typing.Dict[str, typing.Any]]:
    """Runs a job to its end.

    Args:
      job: what to build.
      runner: the name of a Beam runner.
      options: its options, words as in a shell.

    Returns:
      A dict for each unfinished shard: "entry" (of manifest.json),
      "text_bytes", "dropped_tokens", "messages".

    Raises:
      errors.UserError: a mistake in the text or in the options, or the job
        failed.
    """
    standard_logging.getLogger("apache_beam").setLevel(standard_logging.WARNING)
    results = f"{job.paths[0]}.{uuid.uuid4().hex}.incomplete"
    with tempfile.TemporaryDirectory() as folder:
        pipeline = beam.Pipeline(runner, _options(runner, options, folder))
        write_pipeline(pipeline, job, results)
        try:
            _wait(pipeline)
            with _open(results) as stream:
                return files.loads(stream.read().decode("utf-8"))
        finally:
            if _FileSystems.exists(results):
                _FileSystems.delete([results])


def write_pipeline(pipeline: beam.Pipeline, job: Job, results: str) -> None:
    """Adds the steps of a job; the last one writes `results`, a JSON file."""
    groups = corpus.group_files(job.files, job.limits)
    unfinished = [
        group for group in groups if job.places.needs(group.start, group.size)
    ]
    records = (
        pipeline
        | "Groups" >> beam.Create(unfinished)
        | "SpreadGroups" >> beam.Reshuffle()
        | "Chunks" >> beam.ParDo(_Read(job))
        | "SpreadChunks" >> beam.Reshuffle()
        | "Build" >> beam.ParDo(_Build(job)).with_output_types(_PLACED)
    )
    shards = pipeline | "Shards" >> beam.Create(  # empty ones are written too
        [(number, ((-1, -1), b"")) for number in job.places.unfinished]
    ).with_output_types(_PLACED)
    placed = (records, shards) | "Together" >> beam.Flatten()
    _ = (
        placed
        | "ByShard" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(job))
        | "AllShards" >> beam.combiners.ToList()
        | "Results" >> beam.Map(_write_results, path=results)
    )


class _Read(beam.DoFn):
    """A group of files → its chunks."""

    def __init__(self, job):
        self._job = dataclasses.replace(job, tokenizer=None)

    def process(self, element):
        job = self._job
        for chunk in corpus.read_chunks(
            element, job.limits, job.config.text_field
        ):
            if job.places.needs(chunk.position):
                yield chunk


class _Build(beam.DoFn):
    """A chunk → (its shard, (its place, its encoded records))."""

    def __init__(self, job):
        self._job = job
        # What a runner's page shows of the progress.
        self._text_bytes = beam.metrics.Metrics.counter("records", "text_bytes")

    def setup(self):
        self._builder = record_builder.RecordBuilder(
            load_tokenizer(self._job.tokenizer), self._job.config
        )

    def process(self, element):
        built = self._builder.build(element)
        self._text_bytes.inc(built.text_bytes)
        yield (
            self._job.places.shard_of(element.position),
            ((element.group, element.index), encode_records(built)),
        )


class _Write(beam.DoFn):
    """(Shard, its records in any order) → what `run` returns for it."""

    def __init__(self, job):
        self._paths, self._seed = job.paths, job.config.random_seed

    def process(self, element):
        number, placed = element
        path = self._paths[number]
        text_bytes = dropped = 0
        messages = []
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, os.path.basename(path))
            with shard_output.shuffled_writer(
                local, shard_output.shuffle_seed(self._seed, number)
            ) as writer:
                for built in _in_order(placed):
                    writer.add(built)
                    text_bytes += built.text_bytes
                    dropped += built.tokens - built.packed_tokens
                    messages += built.messages
            _publish(local, path)
        logging.info(
            "shard=%d of=%d records=%d",
            number,
            len(self._paths),
            writer.entry()["records"],
        )
        yield {
            "entry": writer.entry(),
            "text_bytes": text_bytes,
            "dropped_tokens": dropped,
            "messages": messages,
        }


def _in_order(placed):
    """Yields a shard's ChunkRecords by place, with one in memory at a time."""
    index = []
    with tempfile.TemporaryFile() as spilled:
        for place, data in placed:
            if data:
                index.append((place, spilled.tell(), len(data)))
                spilled.write(data)
        for _, offset, size in sorted(index):
            spilled.seek(offset)
            yield decode_records(spilled.read(size))


def encode_records(built: record_builder.ChunkRecords) -> bytes:
    """A ChunkRecords as bytes.

    Returns:
      Number of messages and records, counts, lengths; messages, records.
    """
    messages = [message.encode("utf-8") for message in built.messages]
    parts = messages + built.records
    numbers = [len(messages), len(parts)]
    numbers += [getattr(built, name) for name in _COUNTS]
    numbers += map(len, parts)
    return struct.pack(f"<{len(numbers)}q", *numbers) + b"".join(parts)


def decode_records(data: bytes) -> record_builder.ChunkRecords:
    """The inverse of `encode_records`."""
    head = 2 + len(_COUNTS)
    messages, count, *numbers = struct.unpack_from(f"<{head}q", data)
    lengths = struct.unpack_from(f"<{count}q", data, 8 * head)
    start, parts = 8 * (head + count), []
    for length in lengths:
        parts.append(data[start : start + length])
        start += length
    return record_builder.ChunkRecords(
        records=parts[messages:],
        messages=[part.decode("utf-8") for part in parts[:messages]],
        **dict(zip(_COUNTS, numbers)),
    )


def _publish(local, path):
    """Copies a file to a path, which appears when the copy is complete.

    A runner may repeat a shard, also concurrently, so each copy has a unique
    temporary name.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.incomplete"
    with open(local, "rb") as source, _FileSystems.create(
        temporary,
        "application/octet-stream",
        filesystem.CompressionTypes.UNCOMPRESSED,
    ) as target:
        shutil.copyfileobj(source, target, _COPY_BYTES)
    if is_remote(path) and _FileSystems.exists(path):
        _FileSystems.delete([path])
    _FileSystems.rename([temporary], [path])


def _write_results(shards, path):
    shards = sorted(shards, key=lambda shard: shard["entry"]["name"])
    with _FileSystems.create(path, mime_type="application/json") as stream:
        stream.write(json.dumps(shards).encode("utf-8"))


# --- The runner -------------------------------------------------------------


def _wait(pipeline):
    """Runs to the end; cancels the job if this process is interrupted."""
    job = None
    try:
        job = pipeline.run()
        state = job.wait_until_finish()
    except Exception as error:
        # Beam adds the step to a UserError, or quotes it in another error.
        mistakes = _MISTAKE.findall(
            f"{type(error).__module__}.{type(error).__name__}: {error}"
        )
        if not mistakes:
            raise
        raise errors.UserError(mistakes[-1]) from error
    except BaseException:
        if job is not None:
            job.cancel()
        raise
    if state != beam.runners.runner.PipelineState.DONE:
        raise errors.UserError(
            f"the Beam job ended as {state}; see its page or log"
        )


def _options(runner, text, folder):
    """Beam's options, with a package in `folder` for other machines."""
    words = shlex.split(text)
    module = runner.rpartition(".")[0]
    try:
        if module:  # its options are known only when it is imported
            importlib.import_module(module)
        options = pipeline_options.PipelineOptions(words)
        setup = options.view_as(pipeline_options.SetupOptions)
        options.get_all_options()
    except ImportError as error:
        raise errors.missing_package(
            f"--runner={runner}", f"the package {error.name}", "dask"
        ) from error
    except SystemExit:
        raise errors.UserError(
            f"--beam_options={text} has a wrong value (see above); expected "
            f"the options of Beam's {runner}"
        ) from None
    if runner == "DirectRunner":
        # Its worker processes import these modules.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    elif not (module or setup.setup_file):
        setup.setup_file = _write_package(folder)
    return options


def _write_package(folder):
    """Copies what the workers import; returns the path of its setup.py.

    The names are listed, since sys.modules also contains the main program,
    under the names __main__ and __mp_main__.
    """
    home = pathlib.Path(__file__).resolve().parent.parent
    for name in _PACKAGES:
        shutil.copytree(
            str(home / name),
            os.path.join(folder, name),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in _MODULES:
        shutil.copy(str(home / f"{name}.py"), folder)
    required = (home / "requirements.txt").read_text("utf-8").splitlines()
    required = [line for line in required if line.startswith(_REQUIRED)]
    path = pathlib.Path(folder, "setup.py")
    path.write_text(
        "import setuptools\n"
        'setuptools.setup(name="pretraining-records", version="1", '
        f"py_modules={_MODULES!r}, packages={_PACKAGES!r}, "
        f"install_requires={required!r})\n",
        "utf-8",
    )
    return str(path)
