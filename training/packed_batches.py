# SPDX-License-Identifier: Apache-2.0
"""Batches in which several short sequences share a row of fixed length.

    <s> A </s> <s> B B B </s> <s> C C </s> <pad>

A `Plan` is a pure function of the sequences' lengths; which sequence of a
length gets which of its places, and the order of the rows, are drawn again for
each epoch from the seed. All epochs have the same number of rows, so that a
run resumes at any row.

R rows of a batch, P places of a row for sequences.

Source: Krell et al. 2021 (arXiv:2107.02027): packing the histogram of
lengths, best fit first.
"""

import dataclasses
import functools
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from training import input_pipeline, run_config


def best_fit(lengths: np.ndarray, room: int) -> np.ndarray:
    """The row of each sequence: int64 [n], counted from 0.

    Each goes into the row with the least room that is enough.

    Args:
      lengths: int [n], falling, 1 to room.
      room: tokens of a row.

    >>> best_fit(np.array([5, 4, 3, 2, 1]), 6)
    array([0, 1, 2, 1, 0])
    """
    result = np.empty(len(lengths), np.int64)
    # Rows by the tokens that they have room for.
    rows_with: typing.List[typing.List[int]] = [[] for _ in range(room + 1)]
    rows = 0
    sizes, counts = np.unique(-np.asarray(lengths), return_counts=True)
    place = 0
    for size, count in zip((-sizes).tolist(), counts.tolist()):
        while count:
            free = next((f for f in range(size, room) if rows_with[f]), room)
            each = 1
            if free < room:
                number = min(count, len(rows_with[free]))
                taken = rows_with[free][-number:]
                del rows_with[free][-number:]
            else:  # in new rows, as many as fit
                each = min(room // size, count)
                taken = list(range(rows, rows + count // each))
                rows += len(taken)
            done = len(taken) * each
            result[place : place + done] = np.repeat(taken, each)
            rows_with[free - each * size].extend(taken)
            place, count = place + done, count - done
    return result


class Plan:
    """Which sequences are in a row, for any row of any epoch.

    Attributes:
      rows: rows of an epoch.
      places: P, the most sequences of a row.
      room: S, tokens of a row.
      sequences: of an epoch.
      padding: share of the tokens of all rows that is padding.
    """

    def __init__(
        self,
        lengths: typing.Sequence[int],
        room: int,
        seed: typing.Optional[int] = None,
    ):
        """
        Args:
          lengths: int [n], tokens of each sequence.
          room: tokens of a row, at least those of a sequence.
          seed: of the order; None shuffles nothing.
        """
        self._lengths = np.asarray(lengths)
        self._seed = seed
        self._longest_first = np.argsort(-self._lengths, kind="stable")
        row_of = best_fit(self._lengths[self._longest_first], room)
        sizes = np.bincount(row_of)
        self._by_row = np.argsort(row_of, kind="stable")
        self._sizes, self._ends = sizes, np.cumsum(sizes)
        self.room = room
        self.rows = len(sizes)
        self.places = int(sizes.max())
        self.sequences = len(self._lengths)
        self.padding = 1 - self._lengths.sum() / (self.rows * room)
        self._epoch = functools.lru_cache(maxsize=1)(self._draw_epoch)

    def rows_of(self, sequences: int) -> int:
        """Rows that have so many sequences in the mean, at least one."""
        return max(1, round(sequences * self.rows / self.sequences))

    def counted_in_rows(
        self, run: run_config.RunConfig
    ) -> run_config.RunConfig:
        """The run with rows, in place of sequences, as train_batch_size."""
        return dataclasses.replace(
            run, train_batch_size=self.rows_of(run.train_batch_size)
        )

    def most_in_a_row(self, amounts: np.ndarray) -> int:
        """The largest sum of a row's amounts.

        Args:
          amounts: int [n], by sequence; equal for equal lengths.
        """
        ordered = amounts[self._longest_first][self._by_row]
        return int(np.add.reduceat(ordered, self._ends - self._sizes).max())

    def row(self, position: int) -> np.ndarray:
        """The sequences of a row: int64 [<= P].

        Args:
          position: int >= 0; `position // rows` is the epoch.
        """
        epoch, number = divmod(position, self.rows)
        order, rows = self._epoch(epoch)
        end = self._ends[rows[number]]
        start = end - self._sizes[rows[number]]
        return order[self._by_row[start:end]]

    def _draw_epoch(self, epoch):
        """(sequences by falling length, rows in their order)."""
        if self._seed is None:
            return self._longest_first, range(self.rows)
        random = np.random.RandomState([self._seed, epoch])
        order = random.permutation(self.sequences)
        falling = np.argsort(-self._lengths[order], kind="stable")
        return order[falling], random.permutation(self.rows)


def plan_of(lengths: np.ndarray, run: run_config.RunConfig) -> Plan:
    """The plan of a training run; logs it."""
    plan = Plan(
        lengths,
        run.max_seq_length,
        None if run.npu_bert_debug else run.random_seed,
    )
    rows = plan.rows_of(run.train_batch_size)
    tf.logging.info(
        "packed sequences=%d in rows=%d of %d tokens, padding=%.2f%%; "
        "train_batch_size=%d is %d rows, %.1f sequences on average",
        plan.sequences,
        plan.rows,
        plan.room,
        100 * plan.padding,
        run.train_batch_size,
        rows,
        rows * plan.sequences / plan.rows,
    )
    return plan


class PackedBatches(input_pipeline.Batches):
    """Batches of R rows with up to P sequences each.

    Features: "input_ids" int32 [R, S]; "sequence_starts" int32 [R, S], see
    modeling.RobertaModel; of each place "index" int32 [R * P], -1 where it is
    empty, "offsets" and "lengths" int32 [R * P], the column of its first token
    and its tokens (0, 0 where it is empty); `values` [R * P, ...], -1 in empty
    places, and `token_values` int32 [R * P, S].
    """

    def __init__(
        self,
        sequences: input_pipeline.Sequences,
        plan: Plan,
        *,
        pad_token_id: int,
        rows: int,
        steps: typing.Optional[int] = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
          sequences: all of them.
          plan: of their lengths.
          pad_token_id: fills up input_ids.
          rows: of a batch on this device.
          steps: batches of one epoch, the last one filled up; None repeats
            the epochs.
          rank, world_size: this process among those that share a batch.
        """
        super().__init__(rows, rank, world_size)
        self._sequences = sequences
        self._plan = plan
        self._pad_token_id = pad_token_id
        self._is_endless = steps is None
        row = tf.TensorSpec([rows, plan.room], tf.int32)
        place = tf.TensorSpec([rows * plan.places], tf.int32)
        self.specs = dict.fromkeys(("input_ids", "sequence_starts"), row)
        self.specs.update(dict.fromkeys(("index", "offsets", "lengths"), place))
        for name in sequences.token_values:
            self.specs[name] = tf.TensorSpec(
                [rows * plan.places, plan.room], tf.int32
            )
        for name, values in sorted(sequences.values.items()):
            self.specs[name] = tf.TensorSpec(
                [rows * plan.places] + list(values.shape[1:]), values.dtype
            )

    def make(self, step):
        sequences, plan = self._sequences, self._plan
        batch = {
            name: np.full(spec.shape.as_list(), -1, spec.dtype.as_numpy_dtype)
            for name, spec in self.specs.items()
        }
        batch["input_ids"][:] = self._pad_token_id
        batch["offsets"][:] = batch["lengths"][:] = 0
        for name, (_, fill) in sequences.token_values.items():
            batch[name][:] = fill
        first = self._first(step)
        for row in range(self._size):
            if not self._is_endless and first + row >= plan.rows:
                break
            end = 0
            for place, index in enumerate(plan.row(first + row).tolist()):
                place += row * plan.places
                ids = sequences.ids(index)
                start, end = end, end + len(ids)
                batch["input_ids"][row, start:end] = ids
                batch["sequence_starts"][row, start:end] = start
                batch["index"][place] = index
                batch["offsets"][place] = start
                batch["lengths"][place] = len(ids)
                for name, (values_of, _) in sequences.token_values.items():
                    batch[name][place, : len(ids)] = values_of(index)
                for name, values in sequences.values.items():
                    batch[name][place] = values[index]
        return batch
