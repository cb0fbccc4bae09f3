# SPDX-License-Identifier: Apache-2.0
"""Batches as a tf.data pipeline in which each is a function of its number.

Batch number n depends only on (seed, n): a run that resumes starts the range
of numbers elsewhere and reads none of the records before it. Where the size of
the global batch has changed, `Batches.shift` says how many records were read.
"""

import functools
import threading
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from pretraining_data import records


class Batches:
    """Base of batches by number; keeps the error that stopped one.

    TensorFlow turns an exception into text; `raise_error` raises it again.

    Attributes:
      specs: {name: tf.TensorSpec} of a batch; None for an axis that varies.
      shift: records read before batch n, less n global batches; not 0 where
        earlier batches had another size.
    """

    shift = 0

    specs: typing.Dict[str, tf.TensorSpec] = {}

    def __init__(self, size: int = 1, rank: int = 0, world_size: int = 1):
        """
        Args:
          size: sequences, or rows of them, of a batch on this device.
          rank, world_size: this process among those that share a batch.
        """
        self._size = size
        self._rank = rank
        self._world_size = world_size
        self._error = None
        self._lock = threading.Lock()

    def _first(self, step):
        """The position of a batch's first sequence, or row, in their order."""
        return (step * self._world_size + self._rank) * self._size + self.shift

    def make(self, step: int) -> typing.Dict[str, np.ndarray]:
        """The arrays of one batch, by the names of `specs`."""
        raise NotImplementedError(type(self).__name__)

    def arrays(self, step: int) -> typing.List[np.ndarray]:
        """`make` as TensorFlow calls it, in the order of `specs`."""
        try:
            batch = self.make(int(step))
        except Exception as error:
            with self._lock:
                self._error = self._error or error
            raise
        return [
            np.asarray(batch[name], spec.dtype.as_numpy_dtype)
            for name, spec in self.specs.items()
        ]

    def raise_error(self) -> None:
        """Raises the first error that stopped a batch, if any."""
        if self._error is not None:
            raise self._error


def dataset(
    batches: Batches, first: int, last: typing.Optional[int] = None
) -> tf.data.Dataset:
    """The batches first, first + 1, ... as feature dictionaries.

    Args:
      batches: the source.
      first: number of the first batch.
      last: number after the last one; None never ends.

    Returns:
      tf.data.Dataset of {name: tensor}.
    """
    dtypes = [spec.dtype for spec in batches.specs.values()]

    # AutoGraph would import tf.contrib on TensorFlow 1.15 and leave files in
    # /tmp; there is nothing to convert.
    @tf.autograph.experimental.do_not_convert
    def load(step):
        tensors = tf.numpy_function(batches.arrays, [step], dtypes)
        features = dict(zip(batches.specs, tensors))
        for name, spec in batches.specs.items():
            features[name].set_shape(spec.shape)
        return features

    last = np.iinfo(np.int64).max if last is None else last
    return (
        tf.data.Dataset.range(first, last)
        .map(load, num_parallel_calls=2)
        .prefetch(4)
    )


def filled(rows: np.ndarray, size: int, value: float) -> np.ndarray:
    """rows with rows of `value` appended until there are `size`."""
    missing = size - len(rows)
    if not missing:
        return rows
    return np.concatenate(
        [rows, np.full((missing,) + rows.shape[1:], value, rows.dtype)]
    )


class FrontToBack:
    """Replaces records.RecordOrder where nothing is shuffled."""

    def __init__(self, count: int):
        """
        Args:
          count: records of an epoch.
        """
        self._count = count

    def indices(
        self, first: int, number: int
    ) -> typing.Tuple[np.ndarray, np.ndarray]:
        """(epochs, records), int64 [number], as from RecordOrder."""
        return divmod(
            np.arange(first, first + number, dtype=np.int64), self._count
        )


class LengthPools:
    """Training order in which the sequences of a batch have like lengths.

    Pools of some batches are drawn at random, sorted by length, cut into
    batches, and these are shuffled: less padding, every sequence once per
    epoch, a pure function of the step.
    """

    # Every batch has the same number of sequences.
    is_endless = True

    def __init__(
        self,
        lengths: typing.Sequence[int],
        *,
        batch_size: int,
        seed: int,
        pool: int = 50,
        is_shuffled: bool = True,
    ):
        """
        Args:
          lengths: int [n], tokens of each sequence.
          batch_size: sequences of a step on all devices; where that changes,
            the one that the run began with, which determines the order.
          seed: of the order.
          pool: batches that are sorted together.
          is_shuffled: False takes the sequences from front to back.
        """
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._pool = pool if is_shuffled else 1
        count = len(self._lengths)
        self._order = (
            records.RecordOrder([count], seed, count)
            if is_shuffled
            else FrontToBack(count)
        )
        self._sorted_pool = functools.lru_cache(maxsize=1)(self._draw_pool)

    def indices(self, first: int, number: int) -> np.ndarray:
        """The sequences at positions first .. first + number - 1: int64."""
        size = self._pool * self._batch_size
        start, stop = first // size, -(-(first + number) // size)
        pools = [self._sorted_pool(pool) for pool in range(start, stop)]
        first -= start * size
        return np.concatenate(pools)[first : first + number]

    def _draw_pool(self, pool):
        """The sequences of a pool: int64 [size]."""
        size = self._pool * self._batch_size
        _, drawn = self._order.indices(pool * size, size)
        drawn = drawn[np.argsort(self._lengths[drawn], kind="stable")]
        shuffled = np.random.RandomState([self._seed, pool]).permutation(
            self._pool
        )
        batches = drawn.reshape(self._pool, self._batch_size)[shuffled]
        return batches.reshape(-1)


class LongestFirst:
    """Prediction order: each sequence once, the longest ones first.

    Attributes:
      steps: number of batches; the last one may be smaller.
    """

    is_endless = False

    def __init__(self, lengths: typing.Sequence[int], batch_size: int):
        """
        Args:
          lengths: int [n], tokens of each sequence.
          batch_size: sequences of a step.
        """
        self._order = np.argsort(-np.asarray(lengths), kind="stable")
        self.steps = -(-len(self._order) // batch_size)

    def indices(self, first: int, number: int) -> np.ndarray:
        """The sequences at these positions: int64 [number] or fewer."""
        return self._order[first : first + number]


class Sequences(typing.NamedTuple):
    """The n examples of a task, by their index.

    Attributes:
      ids: function of an index giving its token ids, with `<s>` and `</s>` and
        without padding; with `choices` a list of so many lists of ids.
      lengths: int [n], tokens of each, of the longest choice.
      values: {name: int or float array [n, ...]}, labels for example.
      token_values: {name: (function of an index giving one whole number per
        token, the number at padding)}, the labels of tokens for example.
      choices: sequences per index; None for a single one.
    """

    ids: typing.Callable
    lengths: np.ndarray
    values: typing.Mapping = {}
    token_values: typing.Mapping = {}
    choices: typing.Optional[int] = None


class FeatureBatches(Batches):
    """Batches of a task's sequences, padded no further than needed.

    Features: "input_ids" int32 [B, S] or [B, choices, S]; "index" int32 [B],
    -1 in a row of padding; `values` [B, ...]; `token_values` int32 [B, S]. S
    is the same in every batch, or the next multiple of 32 of the longest
    sequence in it.
    """

    def __init__(
        self,
        sequences: Sequences,
        order: typing.Union[LengthPools, LongestFirst],
        *,
        pad_token_id: int,
        batch_size: int,
        max_length: typing.Optional[int] = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
          sequences: all of them.
          order: of the sequences.
          pad_token_id: fills up input_ids.
          batch_size: sequences of a batch on this device.
          max_length: S of every batch, and all batches have batch_size rows;
            None lets S and the rows of the last batch vary.
          rank, world_size: this process among those that share a batch.
        """
        super().__init__(batch_size, rank, world_size)
        self._order = order
        self._values = sequences.values
        self._tokens = {"input_ids": (sequences.ids, pad_token_id)}
        self._tokens.update(sequences.token_values)
        self._choices = sequences.choices
        self._max_length = max_length
        self._rows = batch_size if order.is_endless or max_length else None
        choices = [] if self._choices is None else [self._choices]
        row = tf.TensorSpec([self._rows] + choices + [max_length], tf.int32)
        self.specs = dict.fromkeys(self._tokens, row)
        self.specs["index"] = tf.TensorSpec([self._rows], tf.int32)
        for name, values in sorted(self._values.items()):
            self.specs[name] = tf.TensorSpec(
                [self._rows] + list(values.shape[1:]), values.dtype
            )

    def make(self, step):
        indices = self._order.indices(self._first(step), self._size)
        rows = self._rows or len(indices)
        batch = {
            name: self._padded(indices, rows, *tokens)
            for name, tokens in self._tokens.items()
        }
        batch["index"] = filled(indices, rows, -1)
        for name, values in self._values.items():
            batch[name] = filled(values[indices], rows, 0)
        return batch

    def _padded(self, indices, rows, sequence_of, fill):
        """int32 [rows, S], or [rows, choices, S]."""
        sequences = [sequence_of(int(index)) for index in indices]
        shape = [rows]
        if self._choices is not None:
            sequences = [row for choices in sequences for row in choices]
            shape = [rows, self._choices]
        longest = self._max_length or -(-max(map(len, sequences)) // 32) * 32
        padded = np.full((int(np.prod(shape)), longest), fill, np.int32)
        for row, sequence in zip(padded, sequences):
            row[: len(sequence)] = sequence
        return padded.reshape(shape + [longest])
