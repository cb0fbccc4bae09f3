# SPDX-License-Identifier: Apache-2.0
r"""Turns text into the records that run_pretraining.py reads.

    python create_pretraining_data.py --input_file='corpus/*.txt' \
        --output_file=records --vocab_file=vocab.json --merges_file=merges.txt \
        --masking=dynamic --max_seq_length=512

Text is cut into chunks, worker processes turn them into records, and this
process writes these in the order of the chunks: the result does not depend on
the number of workers. Running the same command again resumes an interrupted
build from its finished shards.
"""

import common.startup

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import shutil
import time
import typing

import tqdm
from absl import flags, logging

import tokenization
from common import command_line, errors, files, worker_pool
from pretraining_data import (
    corpus,
    forecast,
    manifest,
    record_builder,
    shard_output,
    text_files,
)
from weights import model_directory

SHARD_BYTES = 128 << 20  # of input, where --num_shards is not given
# Beam has no short name for this one.
DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
RUNNERS = (
    "DirectRunner",
    "FlinkRunner",
    "SparkRunner",
    "DataflowRunner",
    "PortableRunner",
    DASK_RUNNER,
)
_LOG_SECONDS = 10
# Settings that the manifest takes from the flags as they are.
_RECORD_SETTINGS = (
    "masking",
    "packing",
    "line_break",
    "max_seq_length",
    "max_predictions_per_seq",
    "masked_lm_prob",
    "do_whole_word_mask",
    "random_seed",
    "short_seq_prob",
)


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """What is built from what, and how; each field is a flag."""

    input_file: str = command_line.flag(
        "",
        "Text (.txt or any name, .jsonl, both also .gz): files, globs "
        "and directories, comma separated. A line is a sentence or paragraph, "
        "a blank line ends a document; of .jsonl each line is a document.",
        group=command_line.FIRST,
    )
    output_file: str = command_line.flag(
        "", "A file, when it ends in .tfrecord, else a directory of shards."
    )
    vocab_file: str = command_line.flag("", "The vocabulary, vocab.json.")
    merges_file: str = command_line.flag(
        "", "The merges of the byte-pair encoding, merges.txt."
    )
    do_lower_case: bool = command_line.flag(
        False,
        "Lower-case the text; RoBERTa's vocabulary is cased.",
        group=command_line.DATA,
    )
    num_shards: typing.Optional[int] = command_line.flag(
        None,
        f"Files to write; default: one per {SHARD_BYTES >> 20} MB of input.",
        lower=1,
        upper=99999,
        group=command_line.OTHER,
    )
    num_workers: typing.Optional[int] = command_line.flag(
        None,
        "Processes; default: one per core.",
        lower=1,
        upper=worker_pool.MAX_WORKERS,
    )
    overwrite: bool = command_line.flag(
        False, "Replace existing records in the output."
    )
    task_index: typing.Optional[int] = command_line.flag(
        None,
        "Number of this task, from 0 to --task_count - 1; it builds its share "
        "of the shards.",
        lower=0,
        upper=99998,
    )
    task_count: typing.Optional[int] = command_line.flag(
        None,
        "Tasks that build one output together, on machines that share a file "
        "system; the last one to finish writes manifest.json.",
        lower=1,
        upper=99999,
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
            if not getattr(self, name):
                raise errors.UserError(f"--{name} is missing; see --help")
        self._check_task()
        if self.is_single and (self.num_shards or 1) > 1:
            raise errors.UserError(
                f"--num_shards is {self.num_shards}, but "
                f"--output_file={self.output_file} is one file; pass a "
                "directory"
            )
        if self.runner is None and self.beam_options:
            raise errors.UserError(
                "--beam_options is set without --runner; pass one of "
                f"{', '.join(RUNNERS)}"
            )
        if self.runner not in (None, "DirectRunner") and self.num_workers:
            raise errors.UserError(
                "--num_workers only applies to one machine; pass the number of "
                f"workers of {self.runner} in --beam_options"
            )

    def _check_task(self):
        if (self.task_index is None) != (self.task_count is None):
            raise errors.UserError(
                "--task_index and --task_count: only one is set; pass both, "
                "or neither to build with one process"
            )
        task = self.task
        if task.index >= task.count:
            raise errors.UserError(
                f"--task_index is {task.index}, but --task_count is "
                f"{task.count}; count tasks from 0"
            )
        reasons = {
            f"--output_file={self.output_file} is one file; pass a directory": (
                self.is_single
            ),
            "--overwrite would remove the shards of other tasks; remove "
            f"{self.output_file} before you start the tasks": self.overwrite,
            f"--runner={self.runner} has workers of its own; pass one of "
            "--runner and --task_count": self.runner is not None,
        }
        for reason in reasons:
            if task.count > 1 and reasons[reason]:
                raise errors.UserError(f"--task_count={task.count}: {reason}")

    @property
    def task(self) -> shard_output.Task:
        """Which shards this process builds."""
        return shard_output.Task(self.task_index or 0, self.task_count or 1)

    @property
    def is_single(self) -> bool:
        """Whether the output is one file."""
        return self.output_file.endswith(".tfrecord")

    @property
    def tokenizer_arguments(self) -> typing.Tuple[str, str, bool]:
        """Arguments of load_tokenizer."""
        return self.vocab_file, self.merges_file, self.do_lower_case

    @property
    def runner_options(self) -> str:
        """beam_options, with worker processes for the DirectRunner."""
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

    def shards(self, total_bytes: int) -> int:
        """Number of files to write."""
        if self.is_single:
            return 1
        return self.num_shards or max(1, total_bytes // SHARD_BYTES)


class InvalidTextError(errors.UserError):
    """Lines of the input are invalid; the build can be completed."""


class Progress:
    """A bar on a terminal, a log line every ten seconds elsewhere; totals.

    Args:
      total: bytes of the input as stored, of the shards to build.
      start: those of them that an earlier run has finished.
      first: where they begin in the entire input.
    """

    def __init__(self, total: int, start: int, first: int) -> None:
        self._total, self._start, self._position = total, start, start
        self._first = first
        self._begin = self._logged = time.monotonic()
        self._tokens = self._dropped = self._text_bytes = 0
        tqdm.tqdm.monitor_interval = 0  # no thread may exist at a fork
        self._bar = tqdm.tqdm(
            total=total, initial=start, unit="B", unit_scale=True, disable=None
        )

    def update(self, built: record_builder.ChunkRecords) -> None:
        """Counts the records of one chunk and shows the progress."""
        self._tokens += built.tokens
        self._dropped += built.tokens - built.packed_tokens
        self._text_bytes += built.text_bytes
        self._move(built.position - self._first)

    def finish(self) -> str:
        """Shows the end; returns the counts of this run as a text."""
        self._move(self._total)
        return _rates(
            self._tokens,
            self._dropped,
            self._text_bytes,
            time.monotonic() - self._begin,
        )

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _move(self, position):
        now = time.monotonic()
        rate = self._tokens / max(now - self._begin, 1e-9)
        advance = max(0, position - self._position)
        self._position += advance
        self._bar.set_postfix_str(f"{rate / 1e6:.2f}M tokens/s", False)
        self._bar.update(advance)
        if self._bar.disable and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            speed = (self._position - self._start) / (now - self._begin)
            left = (self._total - self._position) / max(speed, 1e-9)
            logging.info(
                "percent=%.1f tokens_per_second=%.0f minutes_left=%.1f",
                100 * self._position / self._total,
                rate,
                left / 60,
            )


def _rates(tokens, dropped, text_bytes, seconds):
    """The counts of a run as a text."""
    return (
        f"dropped_tokens={dropped} seconds={seconds:.1f} "
        f"megabytes_per_second={text_bytes / 1e6 / max(seconds, 1e-9):.2f} "
        f"tokens_per_second={tokens / max(seconds, 1e-9):.0f}"
    )


@functools.lru_cache(maxsize=1)
def load_tokenizer(
    vocab_file: str, merges_file: str, do_lower_case: bool
) -> tokenization.RobertaTokenizer:
    """The tokenizer; cached, so that forked workers need not load it."""
    return tokenization.RobertaTokenizer(vocab_file, merges_file, do_lower_case)


def create_builder(
    tokenizer_arguments: typing.Tuple[str, str, bool],
    config: record_builder.RecordConfig,
) -> typing.Callable[[corpus.Chunk], record_builder.ChunkRecords]:
    """The function of a worker: a chunk to its records."""
    return record_builder.RecordBuilder(
        load_tokenizer(*tokenizer_arguments), config
    ).build


def manifest_settings(
    build: BuildConfig, config: record_builder.RecordConfig
) -> typing.Dict[str, typing.Any]:
    """What manifest.json says about how the records were made."""
    tokenizer = load_tokenizer(*build.tokenizer_arguments)
    return dict(
        {name: getattr(config, name) for name in _RECORD_SETTINGS},
        **{name: getattr(tokenizer, name) for name in manifest.ID_KEYS},
        do_lower_case=build.do_lower_case,
        dupe_factor=config.copies,
        vocab_size=tokenizer.vocab_size,
        vocab_sha256=files.sha256(build.vocab_file),
        merges_sha256=files.sha256(build.merges_file),
        word_starts=manifest.encode_word_starts(tokenizer.word_start_table()),
    )


def _tokenizer_contents(build, config):
    """{name: content} of the tokenizer's files, which go beside the records."""
    if (
        build.do_lower_case
        and load_tokenizer(*build.tokenizer_arguments).is_cased()
    ):
        logging.warning(
            "--do_lower_case=True: %s is cased, and its entries with capitals "
            "are never used; RoBERTa's models need --do_lower_case=False",
            build.vocab_file,
        )
    return model_directory.tokenizer_contents(
        model_directory.TokenizerFiles(*build.tokenizer_arguments),
        config.max_seq_length,
    )


def _identity(texts, config):
    """What tells whether an interrupted build had the same input."""
    digest = hashlib.sha256()
    for file in texts:
        changed = None  # a remote file is identified by its size alone
        if os.path.exists(file.path):
            changed = os.stat(file.path).st_mtime_ns
        identity = repr((file.path, file.size, changed))
        digest.update(identity.encode("utf-8", "surrogateescape"))
    return {
        "files": len(texts),
        "bytes": sum(file.size for file in texts),
        "sha256": digest.hexdigest(),
        "text_field": config.text_field,
    }


def _beam_builder(runner):
    """The module pretraining_data.beam_builder."""
    try:
        from pretraining_data import beam_builder  # needs Beam
    except ImportError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise errors.missing_package(
            f"--runner={runner}",
            "Apache Beam",
            "dask" if runner == DASK_RUNNER else "beam",
        ) from error
    return beam_builder


def _new_output(build, num_shards, settings, source, tokenizer):
    """The output of a build, not begun yet."""
    if build.runner is not None and "://" in build.output_file:
        return _beam_builder(build.runner).RemoteOutput(
            build.output_file, num_shards, settings, tokenizer
        )
    if build.is_single:
        return shard_output.SingleOutput(
            build.output_file, settings, source, tokenizer
        )
    return shard_output.ShardedOutput(
        build.output_file, num_shards, settings, source, tokenizer, build.task
    )


def _check_shards(build, num_shards, total_bytes):
    """Raises if there are more shards than bytes, or tasks than shards."""
    if num_shards > total_bytes:
        raise errors.UserError(
            f"--num_shards is {num_shards}, but "
            f"--input_file={build.input_file} has {total_bytes} bytes; use "
            "fewer shards than bytes, for example one per "
            f"{SHARD_BYTES >> 20} MB"
        )
    if build.task.count > num_shards:
        raise errors.UserError(
            f"--task_count is {build.task.count}, but the records have "
            f"{num_shards} shards; use at most one task per shard, or set "
            "--num_shards for all tasks"
        )


def run(
    build: BuildConfig, config: record_builder.RecordConfig
) -> typing.Tuple[typing.Dict[str, typing.Any], str]:
    """Builds the records.

    Returns:
      (the content of manifest.json for this build, a text about this run). Of
      a task that is not the last to finish: the content for its own shards.

    Raises:
      errors.UserError: a mistake in the flags or in the text; then all files
        of this build are removed.
      InvalidTextError: lines are invalid; shards without any are kept, and the
        same build resumes from them.
      OSError: a file cannot be read or written; as InvalidTextError.
    """
    if config.masking == record_builder.DYNAMIC and config.dupe_factor:
        logging.warning(
            "--dupe_factor=%d is ignored: with dynamic masking "
            "each sequence is written once",
            config.dupe_factor,
        )
    reader = text_files if build.runner is None else _beam_builder(build.runner)
    texts = reader.expand_inputs(build.input_file)
    total = sum(file.size for file in texts)
    num_shards = build.shards(total)
    _check_shards(build, num_shards, total)
    settings = manifest_settings(build, config)
    output = _new_output(
        build,
        num_shards,
        settings,
        {
            "input": _identity(texts, config),
            "invalid_text": config.invalid_text,
        },
        _tokenizer_contents(build, config),
    )
    if output.begin(build.overwrite):
        return (
            shard_output.with_totals(settings, output.finished),
            "complete already, nothing was built",
        )
    try:
        write = _write_shards if build.runner is None else _write_with_beam
        places = shard_output.Places(
            num_shards, total, shard_output.unfinished_shards(output)
        )
        summary, invalid_lines = write(build, config, texts, output, places)
        return _complete(build, output, settings, invalid_lines), summary
    except BaseException as error:
        output.abandon(
            remove_finished=isinstance(error, errors.UserError)
            and not isinstance(
                error, (InvalidTextError, worker_pool.WorkerError)
            )
        )
        raise


def _complete(build, output, settings, invalid_lines):
    """Completes the output, if this task is the last; what run() returns."""
    if invalid_lines:
        raise InvalidTextError(
            f"--input_file={build.input_file}: lines that are not UTF-8, "
            f"or JSON without text: {invalid_lines}, named above; run the "
            "same command with --invalid_text=replace or skip to complete "
            "the build, or correct them and build with --overwrite"
        )
    missing = output.missing()
    if missing:
        logging.info(
            "task %d of %d is complete; shards of other tasks that are "
            "not: %d; the last task writes %s",
            build.task.index,
            build.task.count,
            missing,
            manifest.MANIFEST,
        )
        return shard_output.with_totals(settings, output.own_finished())
    if not any(entry["tokens"] for entry in output.finished):
        raise errors.UserError(
            f"--input_file={build.input_file} contains only white space "
            "or invalid lines; expected text"
        )
    return output.complete()


def _chunks(texts, limits, config, places):
    """Yields the chunks of the input that unfinished shards need."""
    last = max(places.unfinished, default=-1)
    for group in corpus.group_files(texts, limits):
        if places.needs(group.start, group.size):
            for chunk in corpus.read_chunks(group, limits, config.text_field):
                if places.shard_of(chunk.position) > last:
                    return
                if places.needs(chunk.position):
                    yield chunk


def _log_forecast(build, config, texts, places, limits, num_workers):
    """Logs time, disk and records of a large build, from a sample of it."""
    left = places.total_bytes * len(places.unfinished) // places.num_shards
    count = forecast.num_windows(left, num_workers)
    if not count:
        return
    windows = forecast.sample(texts, places, limits, config.text_field, count)
    # Invalid lines are counted and named by the build itself.
    config = dataclasses.replace(config, invalid_text=text_files.SKIP)
    results = worker_pool.map_ordered(
        itertools.chain.from_iterable(chunks for _, chunks in windows),
        create_builder,
        (build.tokenizer_arguments, config),
        num_workers,
    )
    with contextlib.closing(results):
        rates = forecast.measure(windows, results, num_workers)
    directory = build.output_file
    if build.is_single:
        directory = os.path.dirname(directory) or "."
    free = shutil.disk_usage(directory).free
    logging.log(
        logging.WARNING if rates.disk_bytes * left > free else logging.INFO,
        "forecast from %d samples: records=%d megabytes=%.1f "
        "megabytes_free=%.1f minutes=%.1f",
        count,
        rates.records * left,
        rates.disk_bytes * left / 1e6,
        free / 1e6,
        rates.seconds * left / 60,
    )


def _finish(config, output, entry):
    """Ends a shard; returns its invalid lines, for which it is removed."""
    if config.invalid_text == text_files.ERROR and entry["skipped_lines"]:
        output.reject(entry)
        return entry["skipped_lines"]
    output.finish(entry)
    return 0


def _write_shards(build, config, texts, output, places):
    """Writes the unfinished shards.

    Returns:
      (the counts of this run as a text, number of invalid lines if they are
      errors).
    """
    total = places.total_bytes
    limits = config.chunk_limits(total, output.num_shards)
    num_workers = min(
        build.num_workers or worker_pool.available_cores(),
        -(-total // limits.size),
    )
    _log_forecast(build, config, texts, places, limits, num_workers)
    results = worker_pool.map_ordered(
        _chunks(texts, limits, config, places),
        create_builder,
        (build.tokenizer_arguments, config),
        num_workers,
    )
    numbers = output.numbers
    first, start, end = (
        total * number // output.num_shards
        for number in (
            numbers.start,
            min(places.unfinished, default=numbers.stop),
            numbers.stop,
        )
    )
    progress = Progress(end - first, start - first, first)
    invalid_lines = 0
    with contextlib.closing(results), contextlib.closing(progress):
        built = next(results, None)
        for number in places.unfinished:
            with shard_output.shuffled_writer(
                output.path(number),
                shard_output.shuffle_seed(config.random_seed, number),
            ) as writer:
                while (
                    built is not None
                    and places.shard_of(built.position) == number
                ):
                    for message in built.messages:
                        logging.error("%s", message)
                    writer.add(built)
                    progress.update(built)
                    built = next(results, None)
            invalid_lines += _finish(config, output, writer.entry())
        return progress.finish(), invalid_lines


def _write_with_beam(build, config, texts, output, places):
    """As _write_shards, by the workers of a Beam runner."""
    beam_builder = _beam_builder(build.runner)
    begin = time.monotonic()
    job = beam_builder.Job(
        tuple(texts),
        tuple(
            model_directory.tokenizer_contents(
                model_directory.TokenizerFiles(*build.tokenizer_arguments),
                config.max_seq_length,
            ).items()
        ),
        config,
        tuple(map(output.path, range(output.num_shards))),
        places,
    )
    shards = []
    if places.unfinished:
        shards = beam_builder.run(job, build.runner, build.runner_options)
    for message in (text for shard in shards for text in shard["messages"]):
        logging.error("%s", message)
    invalid_lines = sum(
        _finish(config, output, shard["entry"]) for shard in shards
    )
    summary = _rates(
        sum(shard["entry"]["tokens"] for shard in shards),
        sum(shard["dropped_tokens"] for shard in shards),
        sum(shard["text_bytes"] for shard in shards),
        time.monotonic() - begin,
    )
    return summary, invalid_lines


def define_flags() -> None:
    """Declares the flags of this script."""
    command_line.define(BuildConfig)
    command_line.define(record_builder.RecordConfig)
    flags.FLAGS.set_default("verbosity", logging.INFO)


def main(_):
    build = command_line.build(BuildConfig, flags.FLAGS)
    config = command_line.build(record_builder.RecordConfig, flags.FLAGS)
    content, summary = run(build, config)
    shards = content["shards"]
    empty = sum(not shard["records"] for shard in shards)
    if empty:
        logging.warning(
            "%d of %d shards are empty: there is little text; use a smaller "
            "--num_shards",
            empty,
            len(shards),
        )
    if content["replaced_lines"] or content["skipped_lines"]:
        logging.warning(
            "--invalid_text=%s: invalid lines replaced: %d, skipped: %d",
            config.invalid_text,
            content["replaced_lines"],
            content["skipped_lines"],
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
    define_flags()
    command_line.run(
        main,
        after_interrupt="run the same command again to resume from the "
        "finished shards",
    )
