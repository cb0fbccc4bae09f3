# SPDX-License-Identifier: Apache-2.0
"""Checks before the first step: files that match, disk space and memory.

Each check raises errors.UserError or returns a line that describes the result.
Training commands make the cheap checks, scripts/doctor.py all of them.
"""

import errno
import os
import shutil
import typing

import numpy as np
import tensorflow.compat.v1 as tf

import configuration
import device as devices
from common import errors, files
from pretraining_data import manifest as manifests
from pretraining_data import records
from training import checkpoints, masked_lm_batches, run_config
from weights import lazy_tensors
from weights import names as weight_names

# Bytes of memory, fitted to the peaks of training steps on a CPU (float32,
# hidden sizes 256, 2 and 6 layers, 4 to 16 sequences of 128 and 256 tokens;
# the estimates are within 10 % of what was measured).
_RUNTIME = 450 << 20
_STATE_COPIES = 4  # weights, two moments, gradients
_COPIES_OF_HIDDEN = 16  # [S, H] of a layer, kept for the backward pass
_COPIES_OF_FEED_FORWARD = 3  # [S, F]
_COPIES_OF_SCORES = 2  # [A, S, S]
_COPIES_OF_LOGITS = 2  # [P, V]
_RECOMPUTED = 0.6  # share of it with --recompute_layers
# Share of a device's memory that a proposal fills.
_FILLED = 0.9


def check_vocabulary_of_records(
    inputs: str, vocab_file: str, merges_file: str
) -> str:
    """Checks that records were built with these tokenizer files."""
    manifest = manifests.read_manifest(records.expand_inputs(inputs))
    if manifest is None:
        return f"no {manifests.MANIFEST} beside {inputs}: nothing to compare"
    for path, key in (
        (vocab_file, "vocab_sha256"),
        (merges_file, "merges_sha256"),
    ):
        if path and key in manifest and manifest[key] != files.sha256(path):
            raise errors.UserError(
                f"{path} is not the file that the records in {inputs} were "
                f"built with ({key} {manifest[key][:12]}... in their "
                f"{manifests.MANIFEST}); give that file, or build the records "
                "again"
            )
    return f"the records in {inputs} were built with these files"


def check_shards(inputs: str) -> str:
    """Checks files against manifest.json: records, bytes, sha256."""
    paths = records.expand_inputs(inputs)
    manifest = manifests.read_manifest(paths)
    if manifest is None:
        return f"no {manifests.MANIFEST} beside {inputs}: nothing to compare"
    listed = {
        os.path.realpath(shard["path"]): shard for shard in manifest["shards"]
    }
    unknown = [path for path in paths if os.path.realpath(path) not in listed]
    if unknown:
        raise errors.UserError(
            f"{unknown[0]} is not listed in the {manifests.MANIFEST} beside "
            "it; move it away, or build the records again"
        )
    for path in paths:
        _check_shard(path, listed[os.path.realpath(path)])
    return (
        f"{len(paths)} files, "
        f"{sum(shard['records'] for shard in listed.values())} records, "
        "checksums match"
    )


def _check_shard(path, shard):
    actual = manifests.summarize_file(path)
    for key in ("bytes", "records", "sha256"):
        if actual[key] != shard[key]:
            raise errors.UserError(
                f"{path} has {key} {actual[key]}, but its {manifests.MANIFEST} "
                f"says {shard[key]}; copy the file again or build the records "
                "again"
            )


def check_records(
    source: masked_lm_batches.MaskedLmSource, most: int = 0
) -> str:
    """Checks that records are valid and their ids below the vocabulary's size.

    Args:
      source: the records.
      most: records to read, evenly over all of them; 0 reads them all.
    """
    total = len(source)
    count = min(most, total) if most else total
    indices = np.linspace(0, total - 1, count).astype(np.int64)
    for index in indices:
        source.read([index])
    return (
        f"{count} of {total} {'dynamic' if source.dynamic else 'static'} "
        "records read"
    )


def parameters(config: configuration.RobertaConfig, head: str) -> int:
    """Number of weights of a model with one head (weight_names.PARTS).

    A head whose number of labels is free counts with one label.
    """
    return sum(
        lazy_tensors.count([size or 1 for size in variable.tf_shape])
        for variable in weight_names.variables(
            {weight_names.BASE, head}, config
        )
    )


def checkpoint_bytes(config: configuration.RobertaConfig, head: str) -> int:
    """Size of one checkpoint: the weights and two moments, in float32."""
    return 3 * 4 * parameters(config, head)


def check_disk(directory: str, size: int, keep: int, best: int = 0) -> str:
    """Checks that the checkpoints of a run fit on the disk.

    While the newest is written, there is one more than are kept.

    Args:
      directory: of the run.
      size: bytes of a checkpoint.
      keep: how many are kept.
      best: bytes of the best checkpoint, which is kept besides.

    Raises:
      errors.UserError: not even the next checkpoint fits.
      OSError: the directory cannot be made.
    """
    path = _writable(directory)
    free = shutil.disk_usage(path).free
    written = len(checkpoints.listed(directory))
    needed = size * max(1, keep + 1 - written) + best
    text = (
        f"{gigabytes(free)} free at {path}; a checkpoint takes "
        f"{gigabytes(size)}, {keep} are kept"
    )
    if free < size * (2 if written < 2 else 1) + best:
        raise errors.UserError(
            f"{text}; free {gigabytes(needed - free)}, or use another "
            "--output_dir"
        )
    if free < needed:
        tf.logging.warning(
            "%s: the disk will be full; free %s, or use a "
            "smaller --keep_checkpoint_max",
            text,
            gigabytes(needed - free),
        )
    return text


def _writable(directory):
    """The longest part of a path that exists.

    Raises:
      OSError: no file or directory can be made in it.
    """
    path = os.path.abspath(directory)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
        return path
    number = errno.EACCES if os.path.isdir(path) else errno.ENOTDIR
    raise OSError(number, os.strerror(number), path)


def gigabytes(size: float) -> str:
    """`1.5 GB`."""
    return f"{size / 1e9:.3g} GB"


def memory_bytes(
    config: configuration.RobertaConfig,
    head: str,
    *,
    batch_size: float,
    max_seq_length: int,
    predictions: int,
    accumulates: bool,
    recompute_layers: bool = False,
    half: bool = False,
) -> int:
    """An estimate of the memory that training takes on a device.

    Args:
      config: of the model.
      head: see `parameters`.
      batch_size: sequences of a micro-batch.
      max_seq_length: tokens of a sequence.
      predictions: rows of logits per sequence, 0 without an LM head.
      accumulates: whether there are several micro-batches.
      recompute_layers: see modeling.RobertaModel.
      half: whether the encoder computes in fp16.
    """
    state = 4 * (_STATE_COPIES + bool(accumulates)) * parameters(config, head)
    hidden = (
        _COPIES_OF_HIDDEN * config.hidden_size
        + _COPIES_OF_FEED_FORWARD * config.intermediate_size
    )
    scores = _COPIES_OF_SCORES * config.num_attention_heads * max_seq_length
    encoder = 4 * config.num_hidden_layers * max_seq_length * (hidden + scores)
    encoder *= _RECOMPUTED if recompute_layers else 1.0
    encoder *= 0.5 if half else 1.0
    logits = 4 * _COPIES_OF_LOGITS * predictions * config.vocab_size
    return int(_RUNTIME + state + batch_size * (encoder + logits))


def check_memory(
    estimate: typing.Callable[[int, bool], int],
    available: typing.Optional[int],
    run: run_config.RunConfig,
) -> str:
    """Warns with a smaller batch where --train_batch_size will not fit.

    Args:
      estimate: function of a batch size and whether there are several
        micro-batches, giving bytes.
      available: bytes of the device, None where they are unknown.
      run: flags.
    """
    needed = estimate(run.train_batch_size, run.num_accumulation_steps > 1)
    text = (
        f"about {gigabytes(needed)} for {run.train_batch_size} sequences of "
        f"{run.max_seq_length} tokens"
    )
    if available is None:
        return text + "; the device's memory is unknown"
    text += f", the device has {gigabytes(available)}"
    size = fitting_batch(estimate, run.batch_size, _FILLED * available)
    proposal = (
        f"--train_batch_size={size} "
        f"--num_accumulation_steps={run.batch_size // max(size, 1)}"
    )
    if needed > available:
        tf.logging.warning(
            "%s; %s",
            text,
            f"{proposal} has the same result in less memory"
            if size
            else "use a smaller model, shorter sequences or --recompute_layers",
        )
    elif size > run.train_batch_size:
        return f"{text}; {proposal} fits too"
    return text


def fitting_batch(
    estimate: typing.Callable[[int, bool], int],
    batch_size: int,
    available: float,
) -> int:
    """The largest divisor of batch_size that fits, 0 when 1 does not."""
    small = [
        size
        for size in range(1, int(batch_size**0.5) + 1)
        if batch_size % size == 0
    ]
    return next(
        (
            size
            for size in [batch_size // size for size in small] + small[::-1]
            if estimate(size, size < batch_size) <= available
        ),
        0,
    )


def check_run(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    device: devices.Device,
    head: str,
    *,
    predictions: int,
    choices: float = 1,
) -> None:
    """The checks of training commands: cheap, before anything is written.

    Logs what disk and memory have room for.

    Args:
      run: flags.
      config: of the model.
      device: from environment.create.
      head: see `parameters`.
      predictions: see `memory_bytes`.
      choices: sequences of --max_seq_length per example, less than 1 where
        they are packed.
    """
    if not run.do_train or device.rank:
        return
    disk = check_room(run, config, head)
    memory = check_need(
        run, config, device, head, predictions=predictions, choices=choices
    )
    tf.logging.info("disk: %s", disk)
    tf.logging.info("memory: %s", memory)


def check_room(
    run: run_config.RunConfig, config: configuration.RobertaConfig, head: str
) -> str:
    """`check_disk` of a run; arguments as for `check_run`."""
    _writable(run.log_dir)
    size = checkpoint_bytes(config, head)
    # The best one has no optimizer: a third.
    return check_disk(
        run.output_dir,
        size,
        run.keep_checkpoint_max,
        size // 3 if run.keep_best else 0,
    )


def check_need(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    device: devices.Device,
    head: str,
    *,
    predictions: int,
    choices: float = 1,
) -> str:
    """`check_memory` of a run; arguments as for `check_run`."""
    return check_memory(
        lambda size, accumulates: memory_bytes(
            config,
            head,
            batch_size=size * choices,
            max_seq_length=run.max_seq_length,
            predictions=predictions,
            accumulates=accumulates,
            half=device.stores_half,
            recompute_layers=run.recompute_layers,
        ),
        device.memory_bytes(),
        run,
    )


def schedule(
    run: run_config.RunConfig,
    world_size: int,
    sequences: int,
    num_train_steps: int,
) -> str:
    """Describes a run's steps in passes over the records.

    Args:
      run: flags.
      world_size: devices.
      sequences: records to train on.
      num_train_steps: updates.
    """
    batch = run.batch_size * world_size
    return (
        f"{sequences} records, {batch} in an update ({run.train_batch_size} x "
        f"{run.num_accumulation_steps} x {world_size}: sequences, "
        f"micro-batches, devices); {num_train_steps} updates read them "
        f"{num_train_steps * batch / sequences:,.1f} times"
    )
