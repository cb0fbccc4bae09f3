# SPDX-License-Identifier: Apache-2.0
"""Builds records as an Apache Beam pipeline: many machines, the same bytes.

    groups of files → chunks → records of a chunk → shards

What is done to a chunk, and the order of the chunks in a shard, are those of
the local builder, so the shards are too. Workers get the vocabulary, and where
they are other machines these modules, with the pipeline.

Files may be of any file system that Beam knows (gs://, s3://, hdfs://); a path
without a scheme has to be the same on every worker.
"""

import dataclasses
import functools
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

DIRECT = "DirectRunner"

_FileSystems = filesystems.FileSystems
_COPY_BYTES = 1 << 22
# (group, index) of a chunk and its encoded ChunkRecords, by shard.
_PLACED = typing.Tuple[int, typing.Tuple[typing.Tuple[int, int], bytes]]
_COUNTS = tuple(
    field.name
    for field in dataclasses.fields(record_builder.ChunkRecords)
    if field.name != "records"
)
_MISTAKE = re.compile(
    r"errors\.UserError: (.*?)(?: \[while running .*)?$", re.MULTILINE
)
_WORKER_PACKAGES = ("absl-py==", "regex==")
_SETUP = """import setuptools
setuptools.setup(name="pretraining-records", version="1", py_modules=%r,
                 packages=%r, install_requires=%r)
"""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The files of a RobertaTokenizer, as they travel to the workers."""

    vocab: bytes
    merges: bytes
    do_lower_case: bool

    def load(self):
        with tempfile.TemporaryDirectory() as folder:
            paths = [
                os.path.join(folder, name)
                for name in ("vocab.json", "merges.txt")
            ]
            for path, data in zip(paths, (self.vocab, self.merges)):
                pathlib.Path(path).write_bytes(data)
            return tokenization.RobertaTokenizer(*paths, self.do_lower_case)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is built: shards `first` to `len(paths) - 1`."""

    files: typing.Tuple[text_files.TextFile, ...]
    tokenizer: Tokenizer
    config: record_builder.RecordConfig
    paths: typing.Tuple[str, ...]  # of all shards
    first: int = 0

    @property
    def total_bytes(self):
        return sum(f.size for f in self.files)

    @property
    def limits(self):
        return self.config.chunk_limits(self.total_bytes, len(self.paths))

    def shard_of(self, position):
        return shard_output.shard_of(
            position, len(self.paths), self.total_bytes
        )


def is_remote(path):
    """Whether a path has a scheme, as gs://bucket/text has."""
    return "://" in path


def expand_inputs(text):
    """As text_files.expand_inputs, with addresses too.

    Raises:
      errors.UserError: as there.
    """
    inputs = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        found = (
            _match_remote(part)
            if is_remote(part)
            else text_files.expand_inputs(part)
        )
        inputs += [dataclasses.replace(file, open=_open) for file in found]
    if not inputs:
        raise errors.UserError(
            f"--input_file={text} holds no text; expected at least one line"
        )
    return inputs


def _match_remote(pattern):
    """The files of an address or a pattern; one that ends in / is a folder."""
    name = pattern + "**" if pattern.endswith("/") else pattern
    found = _FileSystems.match([name])[0].metadata_list
    inputs = [
        text_files.TextFile(file.path, file.size_in_bytes)
        for file in sorted(found, key=lambda file: file.path)
    ]
    if not any(file.size for file in inputs):
        raise errors.UserError(
            f"--input_file: there is no text in {pattern!r}; expected files, "
            "patterns or folders, whose names end in /"
        )
    return inputs


def _open(path):
    """The bytes of a file as they are stored."""
    return _FileSystems.open(
        path, compression_type=filesystem.CompressionTypes.UNCOMPRESSED
    )


class RemoteOutput:
    """A folder of shards with a scheme; has what ShardedOutput has.

    Such a build does not go on from an interrupted one.

    Raises:
      errors.UserError: there are records, and `overwrite` is False.
    """

    def __init__(self, directory, num_shards, settings, overwrite):
        self.num_shards = num_shards
        self.finished = []
        self._directory = directory
        self._settings = settings
        found = self._records()
        if found and not overwrite:
            raise errors.UserError(
                f"{directory!r} holds {found[0]!r}; choose another "
                "--output_file, or pass --overwrite to replace what is there"
            )
        self._clear()

    def path(self, number):
        """The file of one shard."""
        return _FileSystems.join(
            self._directory, shard_output.shard_name(number, self.num_shards)
        )

    def finish(self, entry):
        """Notes that a shard is complete."""
        self.finished.append(entry)

    def complete(self):
        """Writes manifest.json; returns what it says."""
        content = shard_output.with_totals(self._settings, self.finished)
        path = _FileSystems.join(self._directory, manifest.MANIFEST)
        with _FileSystems.create(path, mime_type="application/json") as stream:
            stream.write(manifest.encode_manifest(content, path))
        return content

    def abandon(self, remove_finished):
        """Leaves nothing behind."""
        del remove_finished
        self._clear()

    def _records(self):
        names = ("*.tfrecord", "*.incomplete", manifest.MANIFEST)
        found = _FileSystems.match(
            [_FileSystems.join(self._directory, name) for name in names]
        )
        return [file.path for one in found for file in one.metadata_list]

    def _clear(self):
        found = self._records()
        if found:
            _FileSystems.delete(found)


# --- The pipeline -----------------------------------------------------------


def run(job, runner, options):
    """Runs a job to its end.

    Args:
      job: a Job.
      runner: the name of a Beam runner.
      options: its options, a text of words as in a shell.

    Returns:
      A list with a dict for each shard from `job.first` on: "entry" (of
      manifest.json), "text_bytes", "dropped_tokens".

    Raises:
      errors.UserError: a mistake in the text or in the options, or the runner
        gave up.
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


def write_pipeline(pipeline, job, results):
    """Adds the steps of a job; the last one writes `results`, a JSON file."""
    groups = corpus.group_files(job.files, job.limits)
    wanted = [
        group
        for group in groups
        if job.shard_of(group.start + max(group.size - 1, 0)) >= job.first
    ]
    records = (
        pipeline
        | "Groups" >> beam.Create(wanted)
        | "SpreadGroups" >> beam.Reshuffle()
        | "Chunks" >> beam.ParDo(_Read(job))
        | "SpreadChunks" >> beam.Reshuffle()
        | "Build" >> beam.ParDo(_Build(job)).with_output_types(_PLACED)
    )
    numbers = range(job.first, len(job.paths))
    shards = pipeline | "Shards" >> beam.Create(  # empty ones are written too
        [(number, ((-1, -1), b"")) for number in numbers]
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
            if job.shard_of(chunk.position) >= job.first:
                yield chunk


class _Build(beam.DoFn):
    """A chunk → (its shard, (its place, its encoded records))."""

    def __init__(self, job):
        self._job = job
        # What a runner's page shows of the progress.
        self._text_bytes = beam.metrics.Metrics.counter("records", "text_bytes")

    def setup(self):
        self._builder = record_builder.RecordBuilder(
            _load_tokenizer(self._job.tokenizer), self._job.config
        )

    def process(self, element):
        built = self._builder.build(element)
        self._text_bytes.inc(built.text_bytes)
        yield (
            self._job.shard_of(element.position),
            ((element.group, element.index), encode_records(built)),
        )


@functools.lru_cache(maxsize=1)
def _load_tokenizer(tokenizer):
    """Kept, since a process may run many copies of a step."""
    return tokenizer.load()


class _Write(beam.DoFn):
    """(Shard, its records in any order) → what `run` returns of it."""

    def __init__(self, job):
        self._paths, self._seed = job.paths, job.config.random_seed

    def process(self, element):
        number, placed = element
        path = self._paths[number]
        text_bytes = dropped = 0
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, os.path.basename(path))
            with shard_output.ShuffledWriter(
                local, shard_output.shuffle_seed(self._seed, number)
            ) as writer:
                for built in _in_order(placed):
                    writer.add(built)
                    text_bytes += built.text_bytes
                    dropped += built.tokens - built.packed_tokens
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
        }


def _in_order(placed):
    """Yields a shard's ChunkRecords by place, with one of them in memory."""
    index = []
    with tempfile.TemporaryFile() as spilled:
        for place, data in placed:
            if data:
                index.append((place, spilled.tell(), len(data)))
                spilled.write(data)
        for _, offset, size in sorted(index):
            spilled.seek(offset)
            yield decode_records(spilled.read(size))


def encode_records(built):
    """A ChunkRecords as bytes: how many records, counts, lengths, records."""
    lengths = [len(record) for record in built.records]
    numbers = (
        [len(lengths)] + [getattr(built, name) for name in _COUNTS] + lengths
    )
    return struct.pack(f"<{len(numbers)}q", *numbers) + b"".join(built.records)


def decode_records(data):
    """The ChunkRecords that `encode_records` was given."""
    head = 1 + len(_COUNTS)
    count, *numbers = struct.unpack_from(f"<{head}q", data)
    lengths = struct.unpack_from(f"<{count}q", data, 8 * head)
    start, records = 8 * (head + count), []
    for length in lengths:
        records.append(data[start : start + length])
        start += length
    return record_builder.ChunkRecords(
        records=records, **dict(zip(_COUNTS, numbers))
    )


def _publish(local, path):
    """Copies a file to where its name appears when it is complete.

    A runner may try a shard again, or twice at a time: each copy has a name of
    its own until then.
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


def _write_results(found, path):
    with _FileSystems.create(path, mime_type="application/json") as stream:
        stream.write(
            json.dumps(
                sorted(found, key=lambda one: one["entry"]["name"])
            ).encode("utf-8")
        )


# --- The runner -------------------------------------------------------------


def _wait(pipeline):
    """Runs to the end; ends the job if this process is told to end."""
    job = None
    try:
        job = pipeline.run()
        state = job.wait_until_finish()
    except Exception as error:
        # Beam adds the step to it, or tells of it in another error's text.
        found = _MISTAKE.findall(
            f"{type(error).__module__}.{type(error).__name__}: {error}"
        )
        if not found:
            raise
        raise errors.UserError(found[-1]) from error
    except BaseException:
        if job is not None:
            job.cancel()
        raise
    if state != beam.runners.runner.PipelineState.DONE:
        raise errors.UserError(
            f"the Beam job ended as {state}; its page or log says why"
        )


def _options(runner, text, folder):
    """Beam's options; other machines get a package, made in `folder`."""
    words = shlex.split(text)
    try:
        options = pipeline_options.PipelineOptions(words)
        setup = options.view_as(pipeline_options.SetupOptions)
        options.get_all_options()
    except SystemExit:
        raise errors.UserError(
            f"--beam_options={text} holds a wrong value (see above); expected "
            f"the options of Beam's {runner}"
        ) from None
    if runner == DIRECT:
        # Where its workers are processes, they import these modules.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    elif not setup.setup_file:
        setup.setup_file = _write_package(folder)
    return options


def _write_package(folder):
    """Copies this project's imported modules; returns the path of setup.py."""
    home = pathlib.Path(__file__).resolve().parent.parent
    modules, packages = [], set()
    # A copy: the main program may be loaded under a second name.
    for module in list(sys.modules.values()):
        file = pathlib.Path(getattr(module, "__file__", None) or "/")
        if file.parent == home and module.__name__ == file.stem:
            modules.append(file.stem)
            shutil.copy(str(file), folder)
        elif (
            file.parent.parent == home
            and (file.parent / "__init__.py").exists()
        ):
            packages.add(file.parent.name)
    for name in packages:
        shutil.copytree(str(home / name), os.path.join(folder, name))
    needed = (home / "requirements.txt").read_text("utf-8")
    path = os.path.join(folder, "setup.py")
    pathlib.Path(path).write_text(
        _SETUP
        % (
            sorted(set(modules)),
            sorted(packages),
            [
                line
                for line in needed.splitlines()
                if line.startswith(_WORKER_PACKAGES)
            ],
        ),
        "utf-8",
    )
    return path
