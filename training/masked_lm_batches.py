# SPDX-License-Identifier: Apache-2.0
"""Batches of masked sequences, from static or dynamic records."""

import numpy as np
import tensorflow.compat.v1 as tf

from common import errors
from pretraining_data import manifest as manifests
from pretraining_data import masking, records
from training import input_pipeline

# Masks drawn for evaluation belong to an epoch that training never reaches.
EVALUATION_EPOCH = 2**31 - 1


class MaskedLmBatches(input_pipeline.Batches):
    """Batches of masked sequences, from static or dynamic records."""

    names = (
        "input_ids",
        "input_mask",
        "masked_lm_positions",
        "masked_lm_ids",
        "masked_lm_weights",
    )
    dtypes = (tf.int32, tf.int32, tf.int32, tf.int32, tf.float32)

    def __init__(
        self, source, *, batch_size, rank=0, world_size=1, seed=0, order=None
    ):
        """
        Args:
          source: MaskedLmSource.
          batch_size: sequences a batch and process.
          rank, world_size: this process among those that share a batch; a
            step's sequences are the same however many share them.
          seed: of the masks.
          order: records.RecordOrder for training; None reads once, from
            front to back, and fills the last batch with padding.
        """
        super().__init__()
        self._source = source
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._order = order
        length, predictions = source.max_seq_length, source.max_predictions
        self.shapes = ([batch_size, length],) * 2 + (
            [batch_size, predictions],
        ) * 3

    @property
    def steps(self):
        """Batches in one pass over the records, the last one filled up."""
        return -(-len(self._source) // self._batch_size)

    def make(self, step):
        size = self._batch_size
        if self._order is not None:
            first = (step * self._world_size + self._rank) * size
            epochs, indices = self._order.indices(first, size)
        else:
            indices = np.arange(
                step * size, min((step + 1) * size, len(self._source))
            )
            epochs = np.full(len(indices), EVALUATION_EPOCH, np.int64)
        batch = self._source.masked(indices, epochs, self._seed)
        return [
            input_pipeline.filled(batch[name], size, self._source.padding(name))
            for name in self.names
        ]


class MaskedLmSource:
    """Record files read at random and masked, or masked long ago."""

    def __init__(
        self,
        inputs,
        *,
        max_seq_length,
        max_predictions,
        masked_lm_prob=None,
        whole_words=None,
        vocab_size,
        pad_token_id,
        skip_corrupt=False,
    ):
        """
        Args:
          inputs: directories, files and globs, comma separated.
          max_seq_length: tokens a sequence is padded to.
          max_predictions: masked positions a sequence has room for.
          masked_lm_prob: share of tokens that dynamic masking draws; None
            takes manifest.json's, else 0.15.
          whole_words: whether dynamic masking draws whole words; None takes
            manifest.json's, else False.
          vocab_size: of the model.
          pad_token_id: of the model.
          skip_corrupt: whether to pass over corrupted records and count them.

        Raises:
          errors.UserError: records and settings do not belong together.
        """
        self.max_seq_length = max_seq_length
        self.max_predictions = max_predictions
        self._vocab_size = vocab_size
        self._pad_token_id = pad_token_id
        paths = records.expand_inputs(inputs)
        manifest = manifests.read_manifest(paths)
        if manifest is None:
            tf.logging.warning(
                "no manifest.json beside the records in %s: their settings "
                "are taken from the first record and cannot be checked",
                inputs,
            )
        else:
            _check_manifest(
                manifest,
                inputs,
                vocab_size=vocab_size,
                pad_token_id=pad_token_id,
                max_seq_length=max_seq_length,
                max_predictions=max_predictions,
            )
        counts = manifests.counts_of(paths, manifest)
        manifest = manifest or {}
        self._records = records.ShardedRecords(
            paths, counts=counts, skip_corrupt=skip_corrupt
        )
        if not len(self._records):
            raise errors.UserError(
                f"{inputs} holds no record; build it with "
                "create_pretraining_data.py"
            )
        first = self._records.read_examples([0])[0]
        self.dynamic = not records.is_static(first)
        self._special_ids, self._mask_id = _special_ids(
            manifest, vocab_size, pad_token_id
        )
        self._probability = _first(
            masked_lm_prob, manifest.get("masked_lm_prob"), 0.15
        )
        whole_words = _first(
            whole_words, manifest.get("do_whole_word_mask"), False
        )
        self._word_starts = (
            _word_starts(manifest, inputs)
            if whole_words and self.dynamic
            else None
        )
        self._read([0])  # a record of another length is an error now

    def __len__(self):
        return len(self._records)

    @property
    def shard_counts(self):
        """Records of each file, in order."""
        return self._records.counts

    @property
    def skipped(self):
        """Corrupted records passed over so far."""
        return self._records.skipped

    def padding(self, name):
        """The value that fills up a feature's batch."""
        return self._pad_token_id if name == "input_ids" else 0

    def masked(self, indices, epochs, seed):
        """The static features of some records, whatever their kind.

        Args:
          indices: int [n], record numbers.
          epochs: int [n], for dynamic masks.
          seed: for dynamic masks.

        Returns:
          {name: array [n, ...]}.
        """
        examples = self._read(indices)
        if self.dynamic:
            return self._mask(examples, indices, epochs, seed)
        return {
            name: np.stack([example[name] for example in examples])
            for name in MaskedLmBatches.names
        }

    def check(self, indices):
        """Reads some records and raises what is wrong with one."""
        self._read(indices)

    def _read(self, indices):
        return self._records.read_examples(
            indices, self._lengths(), self._vocab_size
        )

    def _lengths(self):
        """{feature: (fewest, most) values} of the records."""
        if self.dynamic:
            return {"input_ids": (1, self.max_seq_length)}
        sizes = [
            ("input_ids", self.max_seq_length),
            ("input_mask", self.max_seq_length),
        ]
        sizes += [
            (name, self.max_predictions)
            for name in (
                "masked_lm_positions",
                "masked_lm_ids",
                "masked_lm_weights",
            )
        ]
        return {name: (size, size) for name, size in sizes}

    def _mask(self, examples, indices, epochs, seed):
        sequences = [example["input_ids"] for example in examples]
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        padded = np.full(
            (len(sequences), self.max_seq_length), self._pad_token_id, np.int32
        )
        for row, ids in zip(padded, sequences):
            row[: len(ids)] = ids
        return masking.mask_batch(
            padded,
            lengths,
            seed=seed,
            epochs=epochs,
            records=indices,
            masked_lm_prob=self._probability,
            max_predictions_per_seq=self.max_predictions,
            mask_id=self._mask_id,
            vocab_size=self._vocab_size,
            special_ids=self._special_ids,
            word_starts=self._word_starts,
        )


def _first(*values):
    return next(value for value in values if value is not None)


def _check_manifest(
    manifest,
    inputs,
    *,
    vocab_size,
    pad_token_id,
    max_seq_length,
    max_predictions,
):
    """Refuses records made for another model or other flags."""

    def refuse(key, found, wanted, mend):
        raise errors.UserError(
            f"the records in {inputs} have {key} {found}, but {wanted} is "
            f"wanted; {mend}"
        )

    for key, name, size in (
        ("vocab_size", "vocab_size", vocab_size),
        ("pad_id", "pad_token_id", pad_token_id),
    ):
        if manifest.get(key, size) != size:
            refuse(
                key,
                manifest[key],
                f"the model config's {name} {size}",
                "build them with the model's vocabulary",
            )
    length = manifest["max_seq_length"]
    static = manifest["masking"] == "static"
    if length > max_seq_length or static and length != max_seq_length:
        refuse(
            "max_seq_length",
            length,
            f"--max_seq_length={max_seq_length}",
            f"use --max_seq_length={length}",
        )
    predictions = manifest.get("max_predictions_per_seq", max_predictions)
    if static and predictions != max_predictions:
        refuse(
            "max_predictions_per_seq",
            predictions,
            f"--max_predictions_per_seq={max_predictions}",
            f"use --max_predictions_per_seq={predictions}",
        )


def _special_ids(manifest, vocab_size, pad_token_id):
    """(ids never masked nor drawn, id of `<mask>`)."""
    mask_id = manifest.get("mask_id", vocab_size - 1)
    named = {
        manifest[key]
        for key in ("bos_id", "pad_id", "eos_id", "unk_id")
        if key in manifest
    }
    # Without a manifest: fairseq's order, `<s> <pad> </s> <unk>` first.
    return sorted((named or {0, 1, 2, 3}) | {pad_token_id, mask_id}), mask_id


def _word_starts(manifest, inputs):
    if "word_starts" not in manifest:
        raise errors.UserError(
            "whole-word masking needs the manifest.json of "
            f"create_pretraining_data.py beside the records in {inputs}; it "
            "says which entries begin a word"
        )
    return manifests.decode_word_starts(
        manifest["word_starts"], manifest["vocab_size"]
    )
