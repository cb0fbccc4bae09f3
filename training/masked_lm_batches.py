# SPDX-License-Identifier: Apache-2.0
"""Batches of masked sequences, from static or dynamic records."""

import typing

import numpy as np
import tensorflow.compat.v1 as tf

import configuration
import tokenization
from common import errors
from pretraining_data import manifest as manifests
from pretraining_data import masking, records
from training import input_pipeline, packed_batches
from weights import model_directory

# Masks of an evaluation are those of an epoch that training never reaches.
EVALUATION_EPOCH = 2**31 - 1
# Features of a position, and of a masked position.
_PER_TOKEN = ("input_ids", "input_mask")
_PER_MASK = {
    "masked_lm_positions": tf.int32,
    "masked_lm_ids": tf.int32,
    "masked_lm_weights": tf.float32,
}


class Settings(typing.NamedTuple):
    """Settings of a model and a run that its records must fit.

    Attributes:
      max_seq_length: tokens that a sequence is padded to.
      max_predictions: most masked positions of a sequence.
      vocab_size, pad_token_id: of the model.
      directories: where to search the vocabulary of records that have no
        manifest.json, after their own.
      masked_lm_prob: share of tokens that dynamic masking draws; None takes
        manifest.json's, else 0.15.
      whole_words: whether dynamic masking draws whole words; None takes
        manifest.json's, else False.
      skip_corrupt: whether to skip corrupted records and count them.
    """

    max_seq_length: int
    max_predictions: int
    vocab_size: int
    pad_token_id: int
    masked_lm_prob: typing.Optional[float] = None
    whole_words: typing.Optional[bool] = None
    skip_corrupt: bool = False
    directories: typing.Sequence[str] = ()


class MaskedLmSource:
    """Record files, read at random; dynamic records are masked."""

    def __init__(self, inputs: str, settings: Settings):
        """
        Args:
          inputs: directories, files and globs, comma separated.
          settings: of the model and the run.

        Raises:
          errors.UserError: records and settings do not match.
        """
        self.settings = settings
        paths = records.expand_inputs(inputs)
        manifest = manifests.read_manifest(paths)
        if manifest is None:
            tf.logging.warning(
                "no manifest.json beside the records in %s: their settings "
                "are taken from the first record and cannot be checked",
                inputs,
            )
        self._description = manifests.description(paths, manifest)
        counts = manifests.counts_of(paths, manifest)
        manifest = manifest or _vocabulary(paths, settings.directories)
        _check_manifest(manifest, inputs, settings)
        self._vocab_size = manifest.get("vocab_size", settings.vocab_size)
        self._records = records.ShardedRecords(
            paths, counts=counts, skip_corrupt=settings.skip_corrupt
        )
        if not len(self._records):
            raise errors.UserError(
                f"{inputs}: no records; build them with "
                "create_pretraining_data.py"
            )
        self.dynamic = not records.is_static(
            self._records.read_examples([0])[0]
        )
        self._special_ids, self._mask_id = _special_ids(manifest, settings)
        self._probability = _first(
            settings.masked_lm_prob, manifest.get("masked_lm_prob"), 0.15
        )
        whole_words = _first(
            settings.whole_words, manifest.get("do_whole_word_mask"), False
        )
        self._word_starts = (
            _word_starts(manifest, inputs)
            if whole_words and self.dynamic
            else None
        )
        self.read([0])  # reports a record of another length now

    def __len__(self) -> int:
        return len(self._records)

    @property
    def shard_counts(self) -> typing.List[int]:
        """Records of each file, in order."""
        return self._records.counts

    @property
    def description(self) -> typing.Dict[str, typing.Any]:
        """The records and their masks, for run.json."""
        return {
            **self._description,
            "masked_lm_prob": self._probability if self.dynamic else None,
            "do_whole_word_mask": self._word_starts is not None,
        }

    @property
    def skipped(self) -> int:
        """Corrupted records skipped so far."""
        return self._records.skipped

    def masked(
        self, indices: typing.Sequence[int], epochs: np.ndarray, seed: int
    ) -> typing.Dict[str, np.ndarray]:
        """The features of some records, whatever their kind.

        Args:
          indices: int [n], record numbers.
          epochs: int [n], for dynamic masks.
          seed: for dynamic masks.

        Returns:
          {name: array [n, ...]}.
        """
        examples = self.read(indices)
        if self.dynamic:
            return self._mask(examples, indices, epochs, seed)
        return {
            name: np.stack([example[name] for example in examples])
            for name in (*_PER_TOKEN, *_PER_MASK)
        }

    def token_counts(self) -> np.ndarray:
        """Tokens of each record, int64 [n]; reads all dynamic records."""
        return np.array(
            [
                len(self.read([index])[0]["input_ids"])
                for index in range(len(self))
            ]
        )

    def most_masked(self, lengths: np.ndarray) -> np.ndarray:
        """The most masks that sequences of these lengths can get: int [n]."""
        masks = np.rint(lengths * self._probability).astype(np.int64)
        return np.clip(masks, 1, self.settings.max_predictions)

    def read(
        self, indices: typing.Sequence[int]
    ) -> typing.List[typing.Dict[str, np.ndarray]]:
        """Some records; raises errors.UserError for an invalid one."""
        return self._records.read_examples(
            indices, self._lengths(), self._vocab_size
        )

    def _lengths(self):
        """{feature: (fewest, most) values} of the records."""
        length = self.settings.max_seq_length
        if self.dynamic:
            return {"input_ids": (1, length)}
        predictions = self.settings.max_predictions
        return dict(
            dict.fromkeys(_PER_TOKEN, (length, length)),
            **dict.fromkeys(_PER_MASK, (predictions, predictions)),
        )

    def _mask(self, examples, indices, epochs, seed):
        sequences = [example["input_ids"] for example in examples]
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        padded = np.full(
            (len(sequences), self.settings.max_seq_length),
            self.settings.pad_token_id,
            np.int32,
        )
        for row, ids in zip(padded, sequences):
            row[: len(ids)] = ids
        rules = masking.MaskingRules(
            masked_lm_prob=self._probability,
            max_predictions_per_seq=self.settings.max_predictions,
            mask_id=self._mask_id,
            vocab_size=self._vocab_size,
            special_ids=self._special_ids,
            word_starts=self._word_starts,
        )
        return masking.mask_batch(
            rules, padded, lengths, seed=seed, epochs=epochs, records=indices
        )


class MaskedLmBatches(input_pipeline.Batches):
    """Batches of masked sequences.

    Features: input_ids, input_mask int32 [B, S]; masked_lm_positions,
    masked_lm_ids int32 [B, P]; masked_lm_weights float32 [B, P].
    """

    def __init__(
        self,
        source: MaskedLmSource,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        order: typing.Union[
            records.RecordOrder, input_pipeline.FrontToBack, None
        ] = None,
    ):
        """
        Args:
          source: the records.
          batch_size: sequences per batch and process.
          rank, world_size: this process among those that share a batch; a
            step's sequences do not depend on their number.
          seed: of the masks.
          order: for training; None reads once, from front to back, and fills
            the last batch with padding.
        """
        super().__init__(batch_size, rank, world_size)
        self._source = source
        self._seed = seed
        self._order = order
        settings = source.settings
        token = tf.TensorSpec([batch_size, settings.max_seq_length], tf.int32)
        self.specs = {
            **dict.fromkeys(_PER_TOKEN, token),
            **_mask_specs(batch_size, settings.max_predictions),
        }

    @property
    def steps(self) -> int:
        """Batches in one pass over the records, the last one filled up."""
        return -(-len(self._source) // self._size)

    def make(self, step):
        size = self._size
        if self._order is not None:
            epochs, indices = self._order.indices(self._first(step), size)
        else:
            indices = np.arange(
                step * size, min((step + 1) * size, len(self._source))
            )
            epochs = np.full(len(indices), EVALUATION_EPOCH, np.int64)
        batch = self._source.masked(indices, epochs, self._seed)
        padding = {"input_ids": self._source.settings.pad_token_id}
        return {
            name: input_pipeline.filled(batch[name], size, padding.get(name, 0))
            for name in self.specs
        }


class PackedMaskedLmBatches(input_pipeline.Batches):
    """Rows of several masked sequences each.

    Features: input_ids, sequence_starts int32 [R, S], lengths int32 [R * P],
    see packed_batches.PackedBatches; masked_lm_positions, masked_lm_ids int32
    [R, M] and masked_lm_weights float32 [R, M], M the most masks of a row.
    """

    def __init__(
        self,
        source: MaskedLmSource,
        plan: packed_batches.Plan,
        lengths: np.ndarray,
        *,
        rows: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ):
        """
        Args:
          source: dynamic records.
          plan: of their lengths.
          lengths: int [n], tokens of each record.
          rows: of a batch on this device.
          rank, world_size: this process among those that share a batch.
          seed: of the masks.
        """
        super().__init__(rows, rank, world_size)
        self._source = source
        self._plan = plan
        self._seed = seed
        masks = plan.most_in_a_row(source.most_masked(lengths))
        row = tf.TensorSpec([rows, plan.room], tf.int32)
        self.specs = {
            **dict.fromkeys(("input_ids", "sequence_starts"), row),
            "lengths": tf.TensorSpec([rows * plan.places], tf.int32),
            **_mask_specs(rows, masks),
        }

    def make(self, step):
        plan = self._plan
        batch = {
            name: np.zeros(spec.shape.as_list(), spec.dtype.as_numpy_dtype)
            for name, spec in self.specs.items()
        }
        batch["input_ids"][:] = self._source.settings.pad_token_id
        batch["sequence_starts"][:] = -1
        first = self._first(step)
        packed = [plan.row(first + row) for row in range(self._size)]
        epochs = (first + np.arange(self._size)) // plan.rows
        sequences = self._source.masked(
            np.concatenate(packed),
            np.repeat(epochs, [len(row) for row in packed]),
            self._seed,
        )
        number = 0
        for row, members in enumerate(packed):
            end = masks = 0
            for place in range(len(members)):
                length = int(sequences["input_mask"][number].sum())
                start, end = end, end + length
                ids = sequences["input_ids"][number, :length]
                batch["input_ids"][row, start:end] = ids
                batch["sequence_starts"][row, start:end] = start
                batch["lengths"][row * plan.places + place] = length
                used = sequences["masked_lm_weights"][number] > 0
                slots = slice(masks, masks + used.sum())
                for name in _PER_MASK:
                    batch[name][row, slots] = sequences[name][number, used]
                batch["masked_lm_positions"][row, slots] += start
                masks, number = slots.stop, number + 1
        return batch


def _mask_specs(rows, masks):
    """{name: tf.TensorSpec} of what is masked."""
    return {
        name: tf.TensorSpec([rows, masks], dtype)
        for name, dtype in _PER_MASK.items()
    }


def _first(*values):
    return next(value for value in values if value is not None)


def _check_manifest(manifest, inputs, settings):
    """Rejects records made for another model or other flags."""
    model = {"pad_id": ("pad_token_id", settings.pad_token_id)}
    entries = manifest.get("vocab_size", settings.vocab_size)
    if not configuration.has_rows_for(settings.vocab_size, entries):
        model = {"vocab_size": ("vocab_size", settings.vocab_size), **model}
    for key, (name, value) in model.items():
        actual = manifest.get(key, value)
        if actual != value:
            raise errors.UserError(
                f"{inputs}: the records have {key} {actual}, expected the "
                f"model's {name} {value}; build them with the model's "
                "vocabulary"
            )
    length = manifest.get("max_seq_length", settings.max_seq_length)
    is_static = manifest.get("masking") == "static"
    flags = {}
    if is_static or length > settings.max_seq_length:
        flags["max_seq_length"] = settings.max_seq_length
    elif length < settings.max_seq_length:
        tf.logging.warning(
            "%s: the records have max_seq_length %d, so no sequence fills "
            "--max_seq_length=%d; for longer ones, build them again with it",
            inputs,
            length,
            settings.max_seq_length,
        )
    if is_static:
        flags["max_predictions_per_seq"] = settings.max_predictions
    differing = [
        key for key in flags if manifest.get(key, flags[key]) != flags[key]
    ]
    if differing:
        actual = [f"{key} {manifest[key]}" for key in differing]
        expected = [f"--{key}={flags[key]}" for key in differing]
        fix = [f"--{key}={manifest[key]}" for key in differing]
        raise errors.UserError(
            f"{inputs}: the records have {' and '.join(actual)}, expected "
            f"{' and '.join(expected)}; use {' '.join(fix)}"
        )


def _vocabulary(paths, directories):
    """What a manifest says of the vocabulary, read from it; {} if unknown."""
    tokenizer = manifests.find_tokenizer(paths, directories)
    if tokenizer is None:
        return {}
    ids = model_directory.read_vocabulary(tokenizer.vocab_file)
    names = zip(manifests.ID_KEYS, tokenization.SPECIAL_TOKENS)
    special = {key: ids[token] for key, token in names if token in ids}
    return dict(special, vocab_size=len(ids))


def _special_ids(manifest, settings):
    """(ids never masked nor drawn, id of `<mask>`)."""
    mask_id = manifest.get("mask_id", settings.vocab_size - 1)
    named = {
        manifest[key]
        for key in ("bos_id", "pad_id", "eos_id", "unk_id")
        if key in manifest
    }
    # Without a manifest: fairseq's order, `<s> <pad> </s> <unk>` first.
    special_ids = (named or {0, 1, 2, 3}) | {settings.pad_token_id, mask_id}
    return sorted(special_ids), mask_id


def _word_starts(manifest, inputs):
    if "word_starts" not in manifest:
        raise errors.UserError(
            f"{inputs}: whole-word masking needs the manifest.json of "
            "create_pretraining_data.py beside the records, which lists the "
            "tokens that begin a word; copy it there"
        )
    return manifests.decode_word_starts(
        manifest["word_starts"], manifest["vocab_size"]
    )
