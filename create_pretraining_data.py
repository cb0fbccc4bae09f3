# SPDX-License-Identifier: Apache-2.0
"""Turns text into the records that run_pretraining.py reads.

    python create_pretraining_data.py --input_file='corpus/*.txt' \
        --output_file=records --vocab_file=vocab.json --merges_file=merges.txt \
        --masking=dynamic --max_seq_length=512

Text is cut into chunks, worker processes turn them into records, and this
process writes these in the order of the chunks: the result does not depend on
the number of workers. A build that was interrupted goes on from its finished
shards when the same command is given again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import signal
import sys
import time
import typing

from absl import flags, logging

import tokenization
from common import command_line, errors, worker_pool
from pretraining_data import (
    corpus,
    manifest,
    record_builder,
    shard_output,
    text_files,
)

SHARD_BYTES = 128 << 20  # of input, where --num_shards is not given
RUNNERS = (
    "DirectRunner",
    "FlinkRunner",
    "SparkRunner",
    "DataflowRunner",
    "PortableRunner",
)
_LOG_SECONDS = 10
# Settings that the manifest takes from the flags as they are.
_RECORD_SETTINGS = (
    "masking",
    "packing",
    "max_seq_length",
    "max_predictions_per_seq",
    "masked_lm_prob",
    "do_whole_word_mask",
    "random_seed",
    "short_seq_prob",
)
_IDS = ("bos_id", "pad_id", "eos_id", "unk_id", "mask_id")


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """What is built from what, and how; each field is a flag."""

    input_file: typing.Optional[str] = command_line.flag(
        None,
        "Text (.txt or any name, .jsonl, both also .gz): files, globs "
        "and directories, comma separated. A line is a sentence or paragraph, "
        "a blank line ends a document; of .jsonl each line is a document.",
    )
    output_file: typing.Optional[str] = command_line.flag(
        None, "A file, when it ends in .tfrecord, else a directory of shards."
    )
    vocab_file: typing.Optional[str] = command_line.flag(
        None, "The vocabulary, vocab.json."
    )
    merges_file: typing.Optional[str] = command_line.flag(
        None, "The merges of the byte-pair encoding, merges.txt."
    )
    do_lower_case: bool = command_line.flag(
        False, "Lower-case the text; RoBERTa's vocabulary is cased."
    )
    num_shards: typing.Optional[int] = command_line.flag(
        None,
        f"Files to write; default: one for {SHARD_BYTES >> 20} MB of input.",
        lower=1,
        upper=99999,
    )
    num_workers: typing.Optional[int] = command_line.flag(
        None,
        "Processes; default: one a core.",
        lower=1,
        upper=worker_pool.MAX_WORKERS,
    )
    overwrite: bool = command_line.flag(
        False, "Replace the records that are in the output."
    )
    runner: typing.Optional[str] = command_line.flag(
        None,
        "Build with this Apache Beam runner, on many machines; default: "
        "on this one, without Beam.",
        choices=RUNNERS,
    )
    beam_options: str = command_line.flag(
        "",
        "Options of the runner in one text, such as "
        '"--flink_master=HOST:8081 --parallelism=64".',
    )

    def __post_init__(self):
        for name in ("input_file", "output_file", "vocab_file", "merges_file"):
            if getattr(self, name) is None:
                raise errors.UserError(
                    f"--{name} is missing; --help says what it is"
                )
        if self.is_single and (self.num_shards or 1) > 1:
            raise errors.UserError(
                f"--num_shards is {self.num_shards}, but "
                f"--output_file={self.output_file} is one file; give a "
                "directory"
            )

        if self.runner is None and self.beam_options:
            raise errors.UserError(
                "--beam_options is given without --runner; expected one of "
                f"{', '.join(RUNNERS)}"
            )
        if self.runner not in (None, "DirectRunner") and self.num_workers:
            raise errors.UserError(
                f"--num_workers is of builds on one machine; {self.runner} "
                "takes the number of its workers in --beam_options"
            )

    @property
    def is_single(self):
        """Whether the output is one file."""
        return self.output_file.endswith(".tfrecord")

    @property
    def tokenizer_arguments(self):
        return self.vocab_file, self.merges_file, self.do_lower_case

    @property
    def runner_options(self):
        """beam_options; the DirectRunner works in processes, if not told."""
        workers = self.num_workers or worker_pool.available_cores()
        if (
            self.runner != "DirectRunner"
            or workers == 1
            or "--direct_" in self.beam_options
        ):
            return self.beam_options
        return (
            f"{self.beam_options} --direct_num_workers={workers} "
            "--direct_running_mode=multi_processing"
        )

    def shards(self, total_bytes):
        """How many files to write."""
        if self.is_single:
            return 1
        return self.num_shards or max(1, total_bytes // SHARD_BYTES)


class Progress:
    """A bar on a terminal, a log line every ten seconds elsewhere; totals.

    Args:
      total: bytes of the input as stored.
      start: bytes that an earlier run has finished.
    """

    def __init__(self, total, start):
        self._total, self._start, self._position = total, start, start
        self._begin = self._logged = time.monotonic()
        self._tokens = self._dropped = self._text_bytes = 0
        self._bar = _terminal_bar(total, start)

    def update(self, built):
        """Counts and shows the ChunkRecords of one chunk."""
        self._tokens += built.tokens
        self._dropped += built.tokens - built.packed_tokens
        self._text_bytes += built.text_bytes
        self._move(built.position)

    def finish(self):
        """Shows the end; returns the counts of this run as a text."""
        self._move(self._total)
        return _rates(
            self._tokens,
            self._dropped,
            self._text_bytes,
            time.monotonic() - self._begin,
        )

    def close(self):
        if self._bar is not None:
            self._bar.close()

    def _move(self, position):
        advance = max(0, position - self._position)
        self._position += advance
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self._tokens_per_second() / 1e6:.2f}M tokens/s", False
            )
            self._bar.update(advance)
        elif time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            self._log()

    def _tokens_per_second(self):
        return self._tokens / max(time.monotonic() - self._begin, 1e-9)

    def _log(self):
        speed = (self._position - self._start) / (self._logged - self._begin)
        left = (self._total - self._position) / max(speed, 1e-9)
        logging.info(
            "percent=%.1f tokens_per_second=%.0f minutes_left=%.1f",
            100 * self._position / self._total,
            self._tokens_per_second(),
            left / 60,
        )


def _rates(tokens, dropped, text_bytes, seconds):
    """The counts of a run as a text."""
    return (
        f"dropped_tokens={dropped} seconds={seconds:.1f} "
        f"megabytes_per_second={text_bytes / 1e6 / max(seconds, 1e-9):.2f} "
        f"tokens_per_second={tokens / max(seconds, 1e-9):.0f}"
    )


def _terminal_bar(total, start):
    """A tqdm bar, None without a terminal or tqdm."""
    if not sys.stderr.isatty():
        return None
    try:
        import tqdm  # pylint: disable=g-import-not-at-top
    except ImportError:
        logging.info("no progress bar: tqdm is not installed")
        return None
    tqdm.tqdm.monitor_interval = 0  # its thread must not be there at a fork
    return tqdm.tqdm(total=total, initial=start, unit="B", unit_scale=True)


@functools.lru_cache(maxsize=1)
def load_tokenizer(vocab_file, merges_file, do_lower_case):
    """Kept, so that workers that are forked have it already."""
    return tokenization.RobertaTokenizer(vocab_file, merges_file, do_lower_case)


def create_builder(tokenizer_arguments, config):
    """The function of a worker: a corpus.Chunk → its ChunkRecords."""
    return record_builder.RecordBuilder(
        load_tokenizer(*tokenizer_arguments), config
    ).build


def manifest_settings(build, config):
    """What manifest.json says about how the records were made."""
    tokenizer = load_tokenizer(*build.tokenizer_arguments)
    settings = {name: getattr(config, name) for name in _RECORD_SETTINGS}
    settings.update({name: getattr(tokenizer, name) for name in _IDS})
    settings.update(
        do_lower_case=build.do_lower_case,
        dupe_factor=config.copies,
        vocab_size=tokenizer.vocab_size,
        vocab_sha256=_sha256(build.vocab_file),
        merges_sha256=_sha256(build.merges_file),
        word_starts=manifest.encode_word_starts(tokenizer.word_start_table()),
    )
    return settings


def _sha256(path):
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def _identity(files, config):
    """What tells whether an interrupted build had the same input."""
    digest = hashlib.sha256()
    for file in files:
        # An address has no such time; then only its size tells.
        changed = (
            os.stat(file.path).st_mtime_ns
            if os.path.exists(file.path)
            else None
        )
        digest.update(
            repr((file.path, file.size, changed)).encode(
                "utf-8", "surrogateescape"
            )
        )
    return {
        "files": len(files),
        "bytes": sum(f.size for f in files),
        "sha256": digest.hexdigest(),
        "text_field": config.text_field,
    }


def _expand_inputs(build):
    """The text_files.TextFiles of --input_file."""
    if build.runner is None:
        return text_files.expand_inputs(build.input_file)
    try:
        from pretraining_data import beam_builder  # pylint: disable=g-import-not-at-top
    except ImportError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise errors.UserError(
            f"--runner={build.runner} needs Apache Beam, which is not "
            "installed; pip install -r requirements/beam.txt, or leave "
            "--runner out to build on this machine"
        ) from error
    return beam_builder.expand_inputs(build.input_file)


def _open_output(build, num_shards, settings, source):
    if build.runner is not None and "://" in build.output_file:
        from pretraining_data import beam_builder

        return beam_builder.RemoteOutput(
            build.output_file, num_shards, settings, build.overwrite
        )
    if build.is_single:
        return shard_output.SingleOutput(
            build.output_file, settings, source, build.overwrite
        )
    return shard_output.ShardedOutput(
        build.output_file, num_shards, settings, source, build.overwrite
    )


def run(build, config):
    """Builds the records.

    Args:
      build: a BuildConfig.
      config: a record_builder.RecordConfig.

    Returns:
      (the content of manifest.json for this build, a text about this run).

    Raises:
      errors.UserError: a mistake in the flags or in the text; then nothing of
        this build is left.
      OSError: a file cannot be read or written; finished shards stay, and the
        same command goes on from them.
    """
    if config.masking == record_builder.DYNAMIC and config.dupe_factor:
        logging.warning(
            "--dupe_factor=%d is ignored: with dynamic masking "
            "each sequence is written once",
            config.dupe_factor,
        )
    files = _expand_inputs(build)
    total = sum(f.size for f in files)
    num_shards = build.shards(total)
    if num_shards > total:
        raise errors.UserError(
            f"--num_shards is {num_shards}, but "
            f"--input_file={build.input_file} has {total} bytes; expected "
            f"fewer shards than bytes, one for {SHARD_BYTES >> 20} MB is usual"
        )
    settings = manifest_settings(build, config)
    output = _open_output(build, num_shards, settings, _identity(files, config))
    try:
        write = _write_shards if build.runner is None else _write_with_beam
        summary = write(build, config, files, output)
        if not sum(entry["tokens"] for entry in output.finished):
            raise errors.UserError(
                f"--input_file={build.input_file} holds only white space; "
                "expected text"
            )
        return output.complete(), summary
    except BaseException as error:
        output.abandon(
            remove_finished=isinstance(error, errors.UserError)
            and not isinstance(error, worker_pool.WorkerError)
        )
        raise


def _write_shards(build, config, files, output):
    """Writes the shards that are not finished yet; says what this run did."""
    total = sum(f.size for f in files)
    limits = config.chunk_limits(total, output.num_shards)
    groups = corpus.group_files(files, limits)

    def shard_of(position):
        return shard_output.shard_of(position, output.num_shards, total)

    first = len(output.finished)
    chunks = (
        chunk
        for group in groups
        if shard_of(group.start + max(group.size - 1, 0)) >= first
        for chunk in corpus.read_chunks(group, limits, config.text_field)
        if shard_of(chunk.position) >= first
    )
    workers = min(
        build.num_workers or worker_pool.available_cores(),
        -(-total // limits.size),
    )
    results = worker_pool.map_ordered(
        chunks, create_builder, (build.tokenizer_arguments, config), workers
    )
    progress = Progress(total, total * first // output.num_shards)
    with contextlib.closing(results), contextlib.closing(progress):
        built = next(results, None)
        for number in range(first, output.num_shards):
            with shard_output.ShuffledWriter(
                output.path(number),
                shard_output.shuffle_seed(config.random_seed, number),
            ) as writer:
                while built is not None and shard_of(built.position) == number:
                    writer.add(built)
                    progress.update(built)
                    built = next(results, None)
            output.finish(writer.entry())
        return progress.finish()


def _write_with_beam(build, config, files, output):
    """As _write_shards, by the workers of a Beam runner."""
    from pretraining_data import beam_builder

    begin = time.monotonic()
    with open(build.vocab_file, "rb") as vocab:
        with open(build.merges_file, "rb") as merges:
            tokenizer = beam_builder.Tokenizer(
                vocab.read(), merges.read(), build.do_lower_case
            )
    first = len(output.finished)
    paths = tuple(map(output.path, range(output.num_shards)))
    found = (
        beam_builder.run(
            beam_builder.Job(tuple(files), tokenizer, config, paths, first),
            build.runner,
            build.runner_options,
        )
        if first < len(paths)
        else []
    )
    for one in found:
        output.finish(one["entry"])
    return _rates(
        sum(one["entry"]["tokens"] for one in found),
        sum(one["dropped_tokens"] for one in found),
        sum(one["text_bytes"] for one in found),
        time.monotonic() - begin,
    )


def main(_):
    build = command_line.build(BuildConfig, flags.FLAGS)
    config = command_line.build(record_builder.RecordConfig, flags.FLAGS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        content, summary = run(build, config)
    except KeyboardInterrupt:
        logging.warning(
            "interrupted; the same command goes on from the "
            "shards that are finished"
        )
        sys.exit(128 + signal.SIGINT)
    shards = content["shards"]
    empty = sum(not shard["records"] for shard in shards)
    if empty:
        logging.warning(
            "%d of %d shards are empty: there is little text for so many",
            empty,
            len(shards),
        )
    logging.info(
        "documents=%d tokens=%d sequences=%d records=%d shards=%d %s",
        content["documents"],
        content["tokens"],
        content["sequences"],
        sum(shard["records"] for shard in shards),
        len(shards),
        summary,
    )


if __name__ == "__main__":
    command_line.define(BuildConfig)
    command_line.define(record_builder.RecordConfig)
    flags.FLAGS.set_default("verbosity", logging.INFO)
    command_line.run(main)
