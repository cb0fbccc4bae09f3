# SPDX-License-Identifier: Apache-2.0
"""Masks: the rules, the proportions, and that they are stateless."""

import numpy as np
import pytest

from common import errors
from helpers.masks import MASK, SPECIAL, V, positions_of, unmasked, word_table
from pretraining_data import masking

SETTINGS = dict(
    masked_lm_prob=0.15, mask_id=MASK, vocab_size=V, special_ids=SPECIAL
)


def batch(rows, length, seed=0):
    """[rows, length] ids with <s>, a </s> in the middle and one at the end."""
    ids = np.random.RandomState(seed).randint(4, MASK, [rows, length])
    ids[:, 0], ids[:, length // 2], ids[:, -1] = 0, 2, 2
    return ids


def draw(
    ids,
    lengths=None,
    seed=5,
    epochs=0,
    first=0,
    predictions=77,
    word_starts=None,
    **changes,
):
    if lengths is None:
        lengths = np.full(len(ids), ids.shape[1])
    rules = masking.MaskingRules(
        word_starts=word_starts,
        max_predictions_per_seq=predictions,
        **dict(SETTINGS, **changes),
    )
    records = np.arange(first, first + len(ids))
    return masking.mask_batch(
        rules, ids, lengths, seed=seed, epochs=epochs, records=records
    )


def splitmix64(state):
    """One output of splitmix64, in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def masked_one_by_one(ids, seed, epoch, record, probability, mask_id, others):
    """The documented rule in plain Python: (new ids, positions)."""
    key = splitmix64(splitmix64(splitmix64(seed) ^ epoch) ^ record)
    maskable = [p for p, token in enumerate(ids) if token in others]
    order = sorted(maskable, key=lambda p: (splitmix64(key ^ (3 * p)) >> 20, p))
    chosen = sorted(order[: max(1, round(probability * len(maskable)))])
    result = list(ids)
    for p in chosen:
        share = (splitmix64(key ^ (3 * p + 1)) >> 11) / 2.0**53
        if share < 0.8:
            result[p] = mask_id
        elif share < 0.9:
            result[p] = others[splitmix64(key ^ (3 * p + 2)) % len(others)]
    return result, chosen


def test_hash_is_splitmix64():
    # First outputs of Vigna's reference program, seed 1234567.
    assert splitmix64(1234567) == 6457827717110365317
    assert int(masking.splitmix64(np.array([1234567], np.uint64))[0]) == (
        6457827717110365317
    )


def test_masks_equal_the_rule_written_in_plain_python():
    ids = batch(6, 60)
    masks = draw(ids, seed=-7, epochs=np.arange(6) * 3, first=90)
    others = [i for i in range(V) if i not in SPECIAL]
    kinds = set()
    for row in range(6):
        expected, chosen = masked_one_by_one(
            ids[row].tolist(), -7 % 2**64, row * 3, 90 + row, 0.15, MASK, others
        )
        assert masks["input_ids"][row].tolist() == expected
        assert positions_of(masks, row).tolist() == chosen
        for p in chosen:
            kinds.add(
                "mask"
                if expected[p] == MASK
                else "kept"
                if expected[p] == ids[row, p]
                else "random"
            )
    assert kinds == {"mask", "kept", "random"}


def test_masks_are_the_same_numbers_everywhere():
    # Computed once with Python's integers; must never change, since a resumed
    # run draws the masks of the run that it continues. Position 1 turns into a
    # random token, 2 and 6 into <mask>, 9 and 10 stay.
    ids = np.arange(10, 26)[None, :]
    masks = draw(ids, seed=12345, epochs=4, first=8, masked_lm_prob=0.3)
    assert positions_of(masks, 0).tolist() == [1, 2, 6, 9, 10]
    assert masks["input_ids"][0].tolist() == [
        10,
        18154,
        MASK,
        13,
        14,
        15,
        MASK,
    ] + list(range(17, 26))


@pytest.mark.parametrize("words", [False, True])
def test_special_tokens_are_never_masked_and_never_inserted(words):
    ids = batch(200, 128)
    ids[:, 40:44] = [3, 1, MASK, 0]
    masks = draw(ids, word_starts=word_table() if words else None)
    changed = masks["input_ids"] != ids
    assert changed.any()
    assert not np.isin(ids[changed], SPECIAL).any()
    new = masks["input_ids"][changed]
    assert not np.isin(new[new != MASK], SPECIAL).any()
    used = masks["masked_lm_weights"] > 0
    assert not np.isin(masks["masked_lm_ids"][used], SPECIAL).any()


def test_eighty_ten_ten():
    ids = batch(400, 512)
    masks = draw(ids)
    rows, slots = np.nonzero(masks["masked_lm_weights"])
    new = masks["input_ids"][rows, masks["masked_lm_positions"][rows, slots]]
    old = masks["masked_lm_ids"][rows, slots]
    count = len(rows)
    assert count == 400 * 76  # 15 % of 509
    for share, hits in (
        (0.8, new == MASK),
        (0.1, new == old),
        (0.1, (new != MASK) & (new != old)),
    ):
        deviation = (share * (1 - share) * count) ** 0.5
        assert abs(hits.sum() - share * count) < 4.5 * deviation


def test_random_tokens_are_uniform_over_the_vocabulary():
    ids = np.full([2000, 100], 4)
    masks = draw(
        ids,
        vocab_size=45,
        mask_id=44,
        special_ids=[0, 1, 2, 3],
        masked_lm_prob=0.9,
        predictions=100,
    )
    new = masks["input_ids"]
    counts = np.bincount(new[(new != 44) & (new != 4)], minlength=45)[5:44]
    expected = counts.mean()
    assert 400 < expected < 500
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 38 + 5 * (2 * 38) ** 0.5


def test_every_position_is_masked_equally_often():
    masks = draw(np.full([4000, 40], 9))
    counts = np.bincount(
        masks["masked_lm_positions"][masks["masked_lm_weights"] > 0],
        minlength=40,
    )
    assert counts.sum() == 4000 * 6
    assert abs(counts - 600).max() < 5 * (600 * 0.85) ** 0.5


@pytest.mark.parametrize("words", [False, True])
def test_positions_ascend_inside_the_length_and_slots_are_filled(words):
    ids = batch(50, 128)
    lengths = np.random.RandomState(1).randint(1, 129, 50)
    masks = draw(
        ids,
        lengths,
        predictions=25,
        word_starts=word_table() if words else None,
    )
    for row in range(50):
        positions = positions_of(masks, row)
        assert (np.diff(positions) > 0).all()
        assert (positions < lengths[row]).all()
        assert (masks["masked_lm_weights"][row, : len(positions)] == 1).all()
        for name in ("masked_lm_positions", "masked_lm_ids"):
            assert not masks[name][row, len(positions) :].any()
        assert masks["input_mask"][row].tolist() == (
            [1] * lengths[row] + [0] * (128 - lengths[row])
        )
        outside = slice(lengths[row], None)
        assert (masks["input_ids"][row, outside] == ids[row, outside]).all()
    assert not masks["segment_ids"].any()


@pytest.mark.parametrize("words", [False, True])
def test_unmasking_restores_the_sequence(words):
    ids = batch(50, 128)
    masks = draw(ids, word_starts=word_table() if words else None)
    assert (masks["input_ids"] != ids).any()
    assert (unmasked(masks) == ids).all()


def test_number_of_masks():
    ids = batch(7, 100)
    #         97 maskable tokens of 100, 1 of 2, none of 1
    masks = draw(ids, [100, 50, 11, 4, 2, 1, 0], predictions=10)
    assert masks["masked_lm_weights"].sum(1).tolist() == [10, 7, 2, 1, 1, 0, 0]
    masks = draw(ids, predictions=400, masked_lm_prob=0.99)
    assert (masks["masked_lm_weights"].sum(1) == 96).all()
    assert masks["masked_lm_ids"].shape == (7, 400)


def test_each_epoch_record_and_seed_draws_anew():
    ids = np.tile(batch(1, 512), [8, 1])
    masks = draw(ids)
    again = draw(ids, epochs=1)
    other = draw(ids, seed=6)
    chosen = {
        tuple(m["masked_lm_positions"][row])
        for m in (masks, again, other)
        for row in range(8)
    }
    assert len(chosen) == 24
    # Two draws of 76 of 509 share 76 * 76 / 509 = 11.3 positions.
    shared = [
        len(set(positions_of(masks, r)) & set(positions_of(again, r)))
        for r in range(8)
    ]
    assert 6 < np.mean(shared) < 17


@pytest.mark.parametrize("words", [False, True])
def test_masks_do_not_depend_on_the_batch_or_the_padding(words):
    table = word_table() if words else None
    ids = batch(8, 128)
    lengths = np.array([128, 90, 128, 7, 60, 128, 30, 128])
    masks = draw(ids, lengths, epochs=2, word_starts=table)
    for row in range(8):
        alone = np.full([1, 200], 1)
        alone[0, : lengths[row]] = ids[row, : lengths[row]]
        single = draw(
            alone,
            lengths[row : row + 1],
            epochs=[2],
            first=row,
            word_starts=table,
        )
        assert (positions_of(single, 0) == positions_of(masks, row)).all()
        assert (
            single["input_ids"][0, : lengths[row]]
            == masks["input_ids"][row, : lengths[row]]
        ).all()


def words_of(ids, table):
    """Lists of positions, from the definition of a word."""
    words, open_word = [], False
    for position, token in enumerate(ids):
        if token in SPECIAL:
            open_word = False
        elif open_word and not table[token]:
            words[-1].append(position)
        else:
            words.append([position])
            open_word = True
    return words


def test_words_are_masked_whole():
    table = word_table()
    ids = batch(60, 128)
    masks = draw(ids, predictions=19, word_starts=table)
    totals = []
    for row in range(60):
        chosen = set(positions_of(masks, row).tolist())
        words = words_of(ids[row], table)
        taken = [w for w in words if chosen & set(w)]
        assert chosen == {p for w in taken for p in w}
        # Whatever was passed over was longer than what is left.
        left = 19 - len(chosen)
        assert all(len(w) > left for w in words if w not in taken)
        totals.append(len(chosen))
    assert max(totals) == 19 and np.mean(totals) > 18.5


def test_each_word_is_chosen_about_equally_often():
    table = np.ones(V, bool)
    table[10] = False  # continues a word
    ids = np.tile([0, 20, 10, 21, 22, 10, 23, 24, 2], [3000, 1])
    masks = draw(ids, word_starts=table, masked_lm_prob=0.29)
    counts = np.bincount(
        masks["masked_lm_positions"][masks["masked_lm_weights"] > 0],
        minlength=9,
    )
    assert counts[1] == counts[2] and counts[4] == counts[5]
    assert counts[0] == counts[8] == 0
    # Two tokens: one long word first (2 of 5), or two of the three short ones.
    assert abs(counts[1] - 600) < 5 * (600 * 0.8) ** 0.5
    assert counts[[3, 6, 7]].sum() == 2 * (3000 - counts[1] - counts[4])


def test_a_word_longer_than_the_budget_is_left_alone():
    table = np.zeros(V, bool)
    masks = draw(np.full([2, 30], 9), word_starts=table, predictions=5)
    assert not masks["masked_lm_weights"].any()
    assert (masks["input_ids"] == 9).all()


def test_batch_without_maskable_tokens():
    for ids in (np.zeros([0, 8], int), np.full([2, 8], 1)):
        masks = draw(ids)
        assert masks["input_ids"].shape == ids.shape
        assert masks["masked_lm_weights"].shape == (len(ids), 77)
        assert not masks["masked_lm_weights"].any()


def test_types():
    masks = draw(batch(2, 16).astype(np.int32))
    assert {name: str(a.dtype) for name, a in masks.items()} == {
        "input_ids": "int64",
        "input_mask": "int64",
        "segment_ids": "int64",
        "masked_lm_positions": "int64",
        "masked_lm_ids": "int64",
        "masked_lm_weights": "float32",
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(masked_lm_prob=0.0), "masked_lm_prob is 0.0"),
        (dict(masked_lm_prob=1.0), "masked_lm_prob is 1.0"),
        (dict(masked_lm_prob=float("nan")), "masked_lm_prob is nan"),
        (dict(mask_id=V), "special tokens have the ids"),
        (dict(special_ids=[-1]), "special tokens have the ids"),
        (dict(vocab_size=20, mask_id=3, special_ids=[0]), "contains the id"),
    ],
)
def test_bad_settings_are_user_errors(changes, message):
    with pytest.raises(errors.UserError, match=message):
        draw(batch(2, 16), **changes)
