# SPDX-License-Identifier: Apache-2.0
"""What tests of masks share: RoBERTa's special ids, undoing a mask."""

import typing

import numpy as np

V = 50265
MASK = V - 1
SPECIAL = (0, 1, 2, 3, MASK)


def positions_of(masks: typing.Dict[str, np.ndarray], row: int) -> np.ndarray:
    """The masked positions of a row."""
    used = masks["masked_lm_weights"][row] > 0
    return masks["masked_lm_positions"][row][used]


def unmasked(masks: typing.Dict[str, np.ndarray]) -> np.ndarray:
    """[B, S] ids as they were before masking."""
    ids = masks["input_ids"].copy()
    rows, slots = np.nonzero(masks["masked_lm_weights"])
    ids[rows, masks["masked_lm_positions"][rows, slots]] = masks[
        "masked_lm_ids"
    ][rows, slots]
    return ids


def word_table() -> np.ndarray:
    """About two thirds of the tokens begin a word."""
    table = np.random.RandomState(3).rand(V) < 0.67
    table[list(SPECIAL)] = False
    return table
