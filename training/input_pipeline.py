# SPDX-License-Identifier: Apache-2.0
"""Batches of records as a tf.data pipeline that is a function of its step.

Batch number n depends on nothing but (seed, n): a run that goes on starts the
range of numbers elsewhere and reads nothing of what came before.
"""

import threading

import numpy as np
import tensorflow.compat.v1 as tf

from pretraining_data import records


def dataset(batches, first, last=None, *, prefetch=4):
    """The batches first, first + 1, ... as feature dictionaries.

    Args:
      batches: callable on a step giving a tuple of arrays, with `names`,
        `dtypes` and `shapes` (None for an axis that varies) of that tuple.
      first: number of the first batch.
      last: number after the last one; None goes on for ever.
      prefetch: batches made ahead of time.

    Returns:
      tf.data.Dataset of {name: tensor}.
    """

    def load(step):
        arrays = tf.numpy_function(batches, [step], list(batches.dtypes))
        for array, shape in zip(arrays, batches.shapes):
            array.set_shape(shape)
        return dict(zip(batches.names, arrays))

    last = np.iinfo(np.int64).max if last is None else last
    steps = tf.data.Dataset.range(first, last)
    return steps.map(load, num_parallel_calls=2).prefetch(prefetch)


class Batches:
    """Base of callables for `dataset`: keeps the error that stopped one.

    TensorFlow turns an exception into text; `raise_error` gives it back.
    """

    names = dtypes = shapes = ()

    def __init__(self):
        self._error = None
        self._lock = threading.Lock()

    def __call__(self, step):
        try:
            arrays = self.make(int(step))
        except Exception as error:
            with self._lock:
                self._error = self._error or error
            raise
        return [
            np.asarray(array, dtype.as_numpy_dtype)
            for array, dtype in zip(arrays, self.dtypes)
        ]

    def make(self, step):
        """The arrays of one batch, in the order of `names`."""
        raise TypeError(f"{type(self).__name__} makes no batches")

    def raise_error(self):
        """Raises what stopped a batch, if anything did."""
        if self._error is not None:
            raise self._error


def filled(rows, size, value):
    """rows with rows of `value` appended until there are `size`."""
    missing = size - len(rows)
    if not missing:
        return rows
    return np.concatenate(
        [rows, np.full((missing,) + rows.shape[1:], value, rows.dtype)]
    )


class FrontToBack:
    """In place of records.RecordOrder: nothing is shuffled."""

    def __init__(self, count):
        """
        Args:
          count: records of an epoch.
        """
        self._count = count

    def indices(self, first, number):
        """(epochs, records), int64 [number], as RecordOrder gives them."""
        return divmod(
            np.arange(first, first + number, dtype=np.int64), self._count
        )


class LengthPools:
    """Training order in which the sequences of a batch are of like length.

    Pools of some batches are drawn at random, sorted by length, cut into
    batches, and those are shuffled: less padding, every sequence once an
    epoch, a pure function of the step.
    """

    def __init__(self, lengths, *, batch_size, seed, pool=50, is_shuffled=True):
        """
        Args:
          lengths: int [n], tokens of each sequence.
          batch_size: sequences of a step on all devices.
          seed: of the order.
          pool: batches that are sorted together.
          is_shuffled: whether it is; else the sequences come front to back.
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
        self._cached = (None, None)

    def indices(self, step):
        """The sequences of a step: int64 [batch_size]."""
        pool, place = divmod(step, self._pool)
        cached, batches = self._cached
        if cached != pool:
            batches = self._sorted_pool(pool)
            self._cached = (pool, batches)
        return batches[place]

    def _sorted_pool(self, pool):
        size = self._pool * self._batch_size
        _, drawn = self._order.indices(pool * size, size)
        drawn = drawn[np.argsort(self._lengths[drawn], kind="stable")]
        shuffled = np.random.RandomState([self._seed, pool]).permutation(
            self._pool
        )
        return drawn.reshape(self._pool, self._batch_size)[shuffled]


class FeatureBatches(Batches):
    """Batches of a task's sequences, padded no further than needed."""

    def __init__(
        self,
        sequences,
        values,
        *,
        pad_token_id,
        batch_size,
        max_length=None,
        order=None,
        rank=0,
        token_values=None,
        choices=None,
    ):
        """
        Args:
          sequences: function of an index giving its token ids; with `choices`
            a list of so many lists of ids.
          values: {name: int or float array [n, ...]}, the other features.
          pad_token_id: fills up input_ids.
          batch_size: sequences of a batch on this device.
          max_length: every batch's length; None pads to the next multiple of
            32 of the longest sequence in the batch.
          order: LengthPools, for training; None goes through `predicted`.
          rank: this process's part of a step's sequences.
          token_values: {name: (function of an index giving one whole number a
            token, the number at padding)}.
          choices: sequences that stand for one index; None for one alone.
        """
        super().__init__()
        self._values = values
        self._tokens = {"input_ids": (sequences, pad_token_id)}
        self._tokens.update(token_values or {})
        self._choices = choices
        self._batch_size = batch_size
        self._max_length = max_length
        self._order = order
        self._rank = rank
        self._predicted = None
        self.names = tuple(self._tokens) + ("index",) + tuple(sorted(values))
        self.dtypes = (tf.int32,) * (len(self._tokens) + 1) + tuple(
            tf.as_dtype(values[name].dtype) for name in sorted(values)
        )
        rows = batch_size if order or max_length else None
        row = [max_length] if choices is None else [choices, max_length]
        self.shapes = (
            ([rows] + row,) * len(self._tokens)
            + ([rows],)
            + tuple(
                [rows] + list(values[name].shape[1:]) for name in sorted(values)
            )
        )

    def predict_all(self, lengths):
        """Goes once through all sequences, the longest ones first.

        Args:
          lengths: int [n], tokens of each sequence.

        Returns:
          The number of batches.
        """
        self._predicted = np.argsort(-np.asarray(lengths), kind="stable")
        return -(-len(self._predicted) // self._batch_size)

    def make(self, step):
        """input_ids and other values of tokens, index (-1 in a row that is
        padding), the other values."""
        size = self._batch_size
        if self._order is not None:
            indices = self._order.indices(step)
            indices = indices[self._rank * size : (self._rank + 1) * size]
        else:
            indices = self._predicted[step * size : (step + 1) * size]
        rows = size if self.shapes[0][0] else len(indices)
        return (
            [
                self._padded(indices, rows, *tokens)
                for tokens in self._tokens.values()
            ]
            + [filled(indices, rows, -1)]
            + [
                filled(self._values[name][indices], rows, 0)
                for name in sorted(self._values)
            ]
        )

    def _padded(self, indices, rows, sequence_of, fill):
        """int32 [rows, S], or [rows, choices, S]."""
        sequences = [sequence_of(int(index)) for index in indices]
        shape = [rows]
        if self._choices is not None:
            sequences = [one for several in sequences for one in several]
            shape = [rows, self._choices]
        longest = self._max_length or -(-max(map(len, sequences)) // 32) * 32
        padded = np.full((int(np.prod(shape)), longest), fill, np.int32)
        for row, sequence in zip(padded, sequences):
            row[: len(sequence)] = sequence
        return padded.reshape(shape + [longest])
