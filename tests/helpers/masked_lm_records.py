# SPDX-License-Identifier: Apache-2.0
"""Small record files of masked-LM pre-training, and batches over them."""

import os

import numpy as np

from common import tfrecord
from helpers import single_records
from pretraining_data import manifest as manifests
from training import masked_lm_batches

VOCAB = 60
MASK = VOCAB - 1
LENGTH = 16
PREDICTIONS = 4
MANIFEST = dict(
    masking="dynamic",
    max_seq_length=LENGTH,
    max_predictions_per_seq=PREDICTIONS,
    vocab_size=VOCAB,
    bos_id=0,
    pad_id=1,
    eos_id=2,
    unk_id=3,
    mask_id=MASK,
)


def sequences_of(count, seed=0):
    """Sequences of 5 to 16 tokens; the second one is their number."""
    random = np.random.RandomState(seed)
    return [
        np.concatenate(
            [
                [0, 4 + number],
                random.randint(4, MASK, random.randint(2, LENGTH - 2)),
                [2],
            ]
        )
        for number in range(count)
    ]


def static_example(ids):
    """The static record of a sequence with its second token masked."""
    row = np.full(LENGTH, 1)
    row[: len(ids)] = ids
    row[1] = MASK
    return {
        "input_ids": row,
        "input_mask": (row != 1).astype(np.int64),
        "segment_ids": np.zeros(LENGTH, np.int64),
        "masked_lm_positions": np.array([1, 0, 0, 0]),
        "masked_lm_ids": np.array([ids[1], 0, 0, 0]),
        "masked_lm_weights": np.array([1, 0, 0, 0], np.float32),
    }


def write_records(
    directory, count=13, *, static=False, manifest=True, **changes
):
    """Two files of records and their manifest; returns the directory."""
    os.makedirs(str(directory), exist_ok=True)
    entries, parts = [], np.array_split(np.arange(count), 2)
    sequences = sequences_of(count)
    for name, part in zip(("a.tfrecord", "b.tfrecord"), parts):
        path = os.path.join(str(directory), name)
        with tfrecord.RecordWriter(path) as writer:
            for number in part:
                example = (
                    static_example(sequences[number])
                    if static
                    else {"input_ids": sequences[number]}
                )
                writer.write(single_records.encode_example(example))
        entries.append(manifests.summarize_file(path))
    if manifest:
        settings = dict(
            MANIFEST, masking="static" if static else "dynamic", shards=entries
        )
        settings.update(changes)
        single_records.write_manifest(str(directory), settings)
    return str(directory)


def source_of(inputs, **changes):
    """The source of such records, with other settings where given."""
    settings = masked_lm_batches.Settings(LENGTH, PREDICTIONS, VOCAB, 1)
    return masked_lm_batches.MaskedLmSource(
        inputs, settings._replace(**changes)
    )
