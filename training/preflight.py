# SPDX-License-Identifier: Apache-2.0
"""Checks before the first step: files that match, disk space and memory.

Each check raises errors.UserError or returns a line that describes the result.
Training commands make the cheap checks, scripts/doctor.py all of them.
"""

import errno
import os
import shutil

import numpy as np
import tensorflow.compat.v1 as tf

from common import errors, files
from pretraining_data import manifest as manifests
from pretraining_data import records
from training import checkpoints
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


def check_length(max_seq_length, config, config_file):
    """Whether the model has positions for --max_seq_length."""
    most = config.max_sequence_length
    if max_seq_length > most:
        raise errors.UserError(
            f"--max_seq_length is {max_seq_length}, but {config_file} has "
            f"positions for {most} (max_position_embeddings "
            f"{config.max_position_embeddings} less pad_token_id "
            f"{config.pad_token_id} and 1; 512 tokens need 514); use {most} or "
            "less"
        )
    return (
        f"{max_seq_length} tokens of {most} that {config_file} has positions "
        "for"
    )


def check_vocabulary(tokenizer, vocab_file, config, config_file):
    """Whether a vocabulary is the model's: its size, the id of `<pad>`."""
    if tokenizer.vocab_size != config.vocab_size:
        raise errors.UserError(
            f"{vocab_file} has {tokenizer.vocab_size} entries, but "
            f"{config_file} has vocab_size {config.vocab_size}; use the "
            "vocabulary of that model"
        )
    if tokenizer.pad_id != config.pad_token_id:
        raise errors.UserError(
            f"{vocab_file} has <pad> at {tokenizer.pad_id}, but {config_file} "
            f"has pad_token_id {config.pad_token_id}; use the vocabulary of "
            "that model"
        )
    return f"{tokenizer.vocab_size} entries, <pad> is {tokenizer.pad_id}"


def check_vocabulary_of_records(inputs, vocab_file, merges_file):
    """Whether records were built with these tokenizer files."""
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


def check_shards(inputs):
    """Whether files hold what manifest.json says: records, bytes, sha256."""
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
    found = manifests.summarize_file(path)
    for key in ("bytes", "records", "sha256"):
        if found[key] != shard[key]:
            raise errors.UserError(
                f"{path} has {key} {found[key]}, but its {manifests.MANIFEST} "
                f"says {shard[key]}; copy the file again or build the records "
                "again"
            )


def check_records(source, most=0):
    """Whether records are whole and their ids below the vocabulary's size.

    Args:
      source: input_pipeline.MaskedLmSource.
      most: records to read, evenly over all of them; 0 reads them all.
    """
    total = len(source)
    count = min(most, total) if most else total
    indices = np.linspace(0, total - 1, count).astype(np.int64)
    for start in range(0, count, 256):
        source.check(indices[start : start + 256])
    return (
        f"{count} of {total} {('dynamic' if source.dynamic else 'static')} "
        "records read"
    )


def parameters(config, head):
    """Trainable numbers of a model with one head (weight_names.PARTS).

    A head whose number of labels is free counts with one label.
    """
    return sum(
        lazy_tensors.count([size or 1 for size in variable.tf_shape])
        for variable in weight_names.variables(
            {weight_names.BASE, head}, config
        )
    )


def checkpoint_bytes(config, head):
    """Size of one checkpoint: the weights and two moments, in float32."""
    return 3 * 4 * parameters(config, head)


def check_disk(directory, size, keep):
    """Whether the checkpoints of a run fit onto the disk.

    One more than are kept is there while the newest is written.

    Args:
      directory: of the run.
      size: bytes of a checkpoint.
      keep: how many are kept.
    """
    place = _usable(directory)
    free = shutil.disk_usage(place).free
    there = len(checkpoints.listed(directory))
    wanted = size * max(1, keep + 1 - there)
    text = (
        f"{gigabytes(free)} free at {place}; a checkpoint takes "
        f"{gigabytes(size)}, {keep} are kept"
    )
    if free < size * (2 if there < 2 else 1):
        raise errors.UserError(
            f"{text}; free {gigabytes(wanted - free)}, or name another "
            "--output_dir"
        )
    if free < wanted:
        tf.logging.warning(
            "%s: the disk will be full; free %s, or use a "
            "smaller --keep_checkpoint_max",
            text,
            gigabytes(wanted - free),
        )
    return text


def _usable(directory):
    """The part of a directory's path that is there.

    Raises:
      OSError: no file or directory can be made in it.
    """
    place = os.path.abspath(directory)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        number = errno.ENOTDIR
    elif not os.access(place, os.W_OK | os.X_OK):
        number = errno.EACCES
    else:
        return place
    raise OSError(number, os.strerror(number), place)


def gigabytes(size):
    """`1.5 GB`."""
    return f"{size / 1e9:.3g} GB"


def memory_bytes(
    config,
    head,
    *,
    batch_size,
    max_seq_length,
    predictions,
    accumulates,
    recompute_layers=False,
    half=False,
):
    """An estimate of the memory that training takes on a device.

    Args:
      config: modeling.RobertaConfig.
      head: see `parameters`.
      batch_size: sequences of a micro-batch.
      max_seq_length: tokens of a sequence.
      predictions: rows of logits of a sequence, 0 without an LM head.
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


def check_memory(estimate, available, run):
    """Proposes a smaller batch where the one asked for will not fit.

    Args:
      estimate: function of a batch size and whether there are several
        micro-batches, giving bytes.
      available: bytes of the device, None where they are not known.
      run: training.RunConfig.
    """
    wanted = estimate(run.train_batch_size, run.num_accumulation_steps > 1)
    text = (
        f"about {gigabytes(wanted)} for {run.train_batch_size} sequences of "
        f"{run.max_seq_length} tokens"
    )
    if available is None:
        return text + "; the device's memory is not known"
    text += f", the device has {gigabytes(available)}"
    size = fitting_batch(estimate, run.batch_size, _FILLED * available)
    proposal = (
        f"--train_batch_size={size} "
        f"--num_accumulation_steps={run.batch_size // max(size, 1)}"
    )
    if wanted <= available:
        return (
            f"{text}; {proposal} would do"
            if (size > run.train_batch_size)
            else text
        )
    tf.logging.warning(
        "%s; %s",
        text,
        f"{proposal} has the same result in less memory"
        if size
        else "this model does not fit, use a smaller "
        "one, shorter sequences or --recompute_layers",
    )
    return text


def fitting_batch(estimate, batch_size, available):
    """The largest divisor of batch_size that fits, 0 when 1 does not."""
    small = [
        size
        for size in range(1, int(batch_size**0.5) + 1)
        if batch_size % size == 0
    ]
    for size in [batch_size // size for size in small] + small[::-1]:
        if estimate(size, size < batch_size) <= available:
            return size
    return 0


def check_run(run, config, device, head, *, predictions, choices=1):
    """What the run scripts check: cheap, and before anything is written.

    Args:
      run: training.RunConfig.
      config: modeling.RobertaConfig.
      device: an environment's device.
      head: see `parameters`.
      predictions: see `memory_bytes`.
      choices: sequences of --max_seq_length that count as one of a batch.

    Returns:
      Lines about disk and memory.
    """
    if not run.do_train or device.rank:
        return []
    return [
        "disk: " + check_room(run, config, head),
        "memory: "
        + check_need(
            run, config, device, head, predictions=predictions, choices=choices
        ),
    ]


def check_room(run, config, head):
    """`check_disk` of a run; arguments as of `check_run`."""
    _usable(run.log_dir)
    return check_disk(
        run.output_dir, checkpoint_bytes(config, head), run.keep_checkpoint_max
    )


def check_need(run, config, device, head, *, predictions, choices=1):
    """`check_memory` of a run; arguments as of `check_run`."""
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


def schedule(run, world_size, sequences, num_train_steps):
    """What a run's steps are in passes over the records, as a text.

    Args:
      run: training.RunConfig.
      world_size: devices.
      sequences: records to train on.
      num_train_steps: updates.
    """
    batch = run.batch_size * world_size
    return (
        f"{sequences} records, {batch} in an update ({run.train_batch_size} x "
        f"{run.num_accumulation_steps} x {world_size}: sequences, "
        f"micro-batches, devices); {num_train_steps} updates pass over them "
        f"{f'{num_train_steps * batch / sequences:,.1f}'} times"
    )
