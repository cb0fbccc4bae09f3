# SPDX-License-Identifier: Apache-2.0
"""Checks before the first step: do the parts of a run belong together, is
there room for what it writes and computes?

Each check raises errors.UserError, which says what was given, what was
expected and how to mend it, or gives a line about what it found. The run
scripts make the cheap ones, scripts/doctor.py all of them.
"""

import errno
import hashlib
import os
import shutil

import numpy as np
import tensorflow.compat.v1 as tf

from common import errors
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
            "--max_seq_length is %d, but %s has positions for %d "
            "(max_position_embeddings %d less pad_token_id %d and 1; 512 "
            "tokens need 514); use %d or less"
            % (
                max_seq_length,
                config_file,
                most,
                config.max_position_embeddings,
                config.pad_token_id,
                most,
            )
        )
    return "%d tokens of %d that %s has positions for" % (
        max_seq_length,
        most,
        config_file,
    )


def check_vocabulary(tokenizer, vocab_file, config, config_file):
    """Whether a vocabulary is the model's: its size, the id of `<pad>`."""
    if tokenizer.vocab_size != config.vocab_size:
        raise errors.UserError(
            "%s has %d entries, but %s has vocab_size %d; use the vocabulary "
            "of that model"
            % (vocab_file, tokenizer.vocab_size, config_file, config.vocab_size)
        )
    if tokenizer.pad_id != config.pad_token_id:
        raise errors.UserError(
            "%s has <pad> at %d, but %s has pad_token_id %d; use the "
            "vocabulary of that model"
            % (vocab_file, tokenizer.pad_id, config_file, config.pad_token_id)
        )
    return "%d entries, <pad> is %d" % (tokenizer.vocab_size, tokenizer.pad_id)


def check_vocabulary_of_records(inputs, vocab_file, merges_file):
    """Whether records were built with these tokenizer files."""
    manifest = manifests.read_manifest(records.expand_inputs(inputs))
    if manifest is None:
        return "no %s beside %s: nothing to compare" % (
            manifests.MANIFEST,
            inputs,
        )
    for path, key in (
        (vocab_file, "vocab_sha256"),
        (merges_file, "merges_sha256"),
    ):
        if path and key in manifest and manifest[key] != _sha256(path):
            raise errors.UserError(
                "%s is not the file that the records in %s were built with "
                "(%s %s... in their %s); give that file, or build the "
                "records again"
                % (path, inputs, key, manifest[key][:12], manifests.MANIFEST)
            )
    return "the records in %s were built with these files" % inputs


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_shards(inputs):
    """Whether files hold what manifest.json says: records, bytes, sha256."""
    paths = records.expand_inputs(inputs)
    manifest = manifests.read_manifest(paths)
    if manifest is None:
        return "no %s beside %s: nothing to compare" % (
            manifests.MANIFEST,
            inputs,
        )
    listed = {
        os.path.realpath(shard["path"]): shard for shard in manifest["shards"]
    }
    unknown = [path for path in paths if os.path.realpath(path) not in listed]
    if unknown:
        raise errors.UserError(
            "%s is not listed in the %s beside it; move it away, or build "
            "the records again" % (unknown[0], manifests.MANIFEST)
        )
    for path in paths:
        _check_shard(path, listed[os.path.realpath(path)])
    return "%d files, %d records, checksums match" % (
        len(paths),
        sum(shard["records"] for shard in listed.values()),
    )


def _check_shard(path, shard):
    found = manifests.summarize_file(path)
    for key in ("bytes", "records", "sha256"):
        if found[key] != shard[key]:
            raise errors.UserError(
                "%s has %s %s, but its %s says %s; copy the file again or "
                "build the records again"
                % (path, key, found[key], manifests.MANIFEST, shard[key])
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
    return "%d of %d %s records read" % (
        count,
        total,
        "dynamic" if source.dynamic else "static",
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
    text = "%s free at %s; a checkpoint takes %s, %d are kept" % (
        gigabytes(free),
        place,
        gigabytes(size),
        keep,
    )
    if free < size * (2 if there < 2 else 1):
        raise errors.UserError(
            "%s; free %s, or name another --output_dir"
            % (text, gigabytes(wanted - free))
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
    return "%.3g GB" % (size / 1e9)


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
    text = "about %s for %d sequences of %d tokens" % (
        gigabytes(wanted),
        run.train_batch_size,
        run.max_seq_length,
    )
    if available is None:
        return text + "; the device's memory is not known"
    text += ", the device has %s" % gigabytes(available)
    size = fitting_batch(estimate, run.batch_size, _FILLED * available)
    proposal = "--train_batch_size=%d --num_accumulation_steps=%d" % (
        size,
        run.batch_size // max(size, 1),
    )
    if wanted <= available:
        return (
            "%s; %s would do" % (text, proposal)
            if (size > run.train_batch_size)
            else text
        )
    tf.logging.warning(
        "%s; %s",
        text,
        "%s has the same result in less memory" % proposal
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
        "%d records, %d in an update (%d x %d x %d: sequences, "
        "micro-batches, devices); %d updates pass over them %s times"
        % (
            sequences,
            batch,
            run.train_batch_size,
            run.num_accumulation_steps,
            world_size,
            num_train_steps,
            "{:,.1f}".format(num_train_steps * batch / sequences),
        )
    )
