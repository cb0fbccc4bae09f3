# SPDX-License-Identifier: Apache-2.0
"""Masks for the masked language model, as a function of numbers alone.

Every random choice is a hash of (seed, epoch, record, position, draw). So a
sequence gets the same masks in any batch, under any padding, on any platform
and in any process, another set in each epoch, and no state has to be saved.

B is the number of sequences, S their padded length, P the room for masked
positions, V the vocabulary's size.

Source:
  Devlin et al. 2019, section 3.1: 15 % of the tokens are predicted; of these
    80 % become <mask>, 10 % a random token, 10 % stay.
  Liu et al. 2019, section 4.1: another mask each time a sequence is fed.
  fairseq, data/mask_tokens_dataset.py: seeded by (seed, epoch, index); a
    random token is never a special one.
  google-research/bert, create_pretraining_data.py: how many are masked;
    whole words are taken in random order, one that no longer fits is passed
    over; each token of a word draws its own replacement.
  Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators":
    the hash, splitmix64.
"""

import functools

import numpy as np

from common import errors

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ALL_BITS = 0xFFFFFFFFFFFFFFFF

# What a position draws: its rank, its treatment, its random token.
_DRAWS = 3
_RANK, _TREATMENT, _TOKEN = range(_DRAWS)

_MASKED_SHARE = 0.8
_MASKED_OR_RANDOM_SHARE = 0.9
_POSITION_BITS = 20


def splitmix64(values):
    """One step of splitmix64 from each state: uint64 array in, same out."""
    mixed = values + _GAMMA
    mixed ^= mixed >> np.uint64(30)
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _row_keys(seed, epochs, records):
    """[B] uint64 from the numbers that a row's masks depend on."""
    keys = splitmix64(np.full(len(records), int(seed) & _ALL_BITS, np.uint64))
    keys = splitmix64(keys ^ np.asarray(epochs).astype(np.uint64))
    return splitmix64(keys ^ np.asarray(records).astype(np.uint64))


def _draw(keys, positions, draw):
    """uint64 of the shape of `positions` [B, N] from `keys` [B]."""
    counters = positions.astype(np.uint64) * np.uint64(_DRAWS)
    counters += np.uint64(draw)
    return splitmix64(keys[:, None] ^ counters)


@functools.lru_cache(maxsize=8)
def _vocabulary_tables(vocab_size, special_ids):
    """(is_special [V] bool, the other ids [V - specials] int64)."""
    is_special = np.zeros(vocab_size, bool)
    is_special[list(special_ids)] = True
    return is_special, np.flatnonzero(~is_special)


def mask_batch(
    input_ids,
    lengths,
    *,
    seed,
    epochs,
    records,
    masked_lm_prob,
    max_predictions_per_seq,
    mask_id,
    vocab_size,
    special_ids,
    word_starts=None,
):
    """Draws the masks of a batch.

    Args:
      input_ids: [B, S] integers; what stands behind a row's length is kept.
      lengths: [B] integers, tokens of each row without padding.
      seed: int.
      epochs: [B] integers, or one for all: the epoch or duplicate of each row.
      records: [B] integers: the number of each row's record in the data set.
      masked_lm_prob: share of the maskable tokens to predict.
      max_predictions_per_seq: P.
      mask_id: id of <mask>.
      vocab_size: V.
      special_ids: ids that are never masked and never drawn as a random token;
        `mask_id` always counts among them.
      word_starts: [V] bool, True where a token begins a word: whole words are
        masked, and a word longer than what is left of the budget is passed
        over, so that a row of nothing but such words has no mask. None masks
        single tokens.

    Returns:
      A dict of arrays: input_ids [B, S], input_mask [B, S], segment_ids [B, S]
      (zeros), masked_lm_positions [B, P] ascending, masked_lm_ids [B, P] (the
      tokens that stood there), masked_lm_weights [B, P] float32; all others
      int64. Slots that are not used hold position 0, id 0, weight 0. Of n
      maskable tokens min(P, max(1, round(masked_lm_prob * n))) are masked.

    Raises:
      errors.UserError: P, masked_lm_prob or an id is out of range.

    Example (<s> is 0, </s> is 2, <mask> is 9, one token masked):
      input_ids [[0, 5, 6, 2]] -> input_ids [[0, 9, 6, 2]],
      masked_lm_positions [[1]], masked_lm_ids [[5]], weights [[1.0]]
    """
    original = np.asarray(input_ids, np.int64)
    lengths = np.asarray(lengths, np.int64)
    columns = np.arange(original.shape[1])
    inside = columns < lengths[:, None]  # [B, S]
    special_ids = tuple(sorted({int(i) for i in special_ids} | {mask_id}))
    _check_settings(
        masked_lm_prob,
        max_predictions_per_seq,
        special_ids,
        vocab_size,
        word_starts,
    )
    _check_ids(original, inside, vocab_size)
    is_special, others = _vocabulary_tables(vocab_size, special_ids)
    tokens = np.where(inside, original, mask_id)
    maskable = ~is_special[tokens]  # [B, S]
    budgets = _budgets(maskable, masked_lm_prob, max_predictions_per_seq)
    keys = _row_keys(seed, epochs, records)
    ranks = _draw(keys, np.broadcast_to(columns, original.shape), _RANK)
    # The low bits of a rank tell its position, so that sorting finds both.
    ranks = ranks & np.uint64(
        _ALL_BITS << _POSITION_BITS & _ALL_BITS
    ) | columns.astype(np.uint64)
    if word_starts is None:
        positions = _choose_tokens(ranks, maskable, budgets)
    else:
        starts = maskable & np.asarray(word_starts, bool)[tokens]
        positions = _choose_words(ranks, maskable, starts, budgets)
    return _replaced(
        original,
        inside,
        positions,
        keys,
        others,
        mask_id,
        max_predictions_per_seq,
    )


def _check_settings(
    masked_lm_prob, max_predictions, special_ids, vocab_size, word_starts
):
    if max_predictions < 1:
        raise errors.UserError(
            f"max_predictions_per_seq is {max_predictions}; use 1 or more"
        )
    if not 0 < masked_lm_prob < 1:
        raise errors.UserError(
            f"masked_lm_prob is {masked_lm_prob}; use a number above 0 and "
            "below 1"
        )
    if special_ids[0] < 0 or special_ids[-1] >= vocab_size:
        raise errors.UserError(
            f"the special tokens have the ids {list(special_ids)}, but the "
            f"vocabulary has {vocab_size} tokens; use the vocabulary that the "
            "records were built with"
        )
    if word_starts is not None and len(word_starts) != vocab_size:
        raise errors.UserError(
            f"{len(word_starts)} tokens are known to begin a word or not, but "
            f"the vocabulary has {vocab_size}; use the vocabulary that the "
            "records were built with"
        )


def _check_ids(original, inside, vocab_size):
    if original.shape[1] >= 1 << _POSITION_BITS:
        raise errors.UserError(
            f"sequences of {original.shape[1]} tokens were given; use fewer "
            f"than {1 << _POSITION_BITS}"
        )
    wrong = inside & ((original < 0) | (original >= vocab_size))
    if wrong.any():
        raise errors.UserError(
            f"id {original[wrong][0]} stands in a record, but the vocabulary "
            f"has {vocab_size} tokens; use the vocabulary that the records "
            "were built with"
        )


def _budgets(maskable, masked_lm_prob, max_predictions):
    """[B] int64: how many tokens of each row are to be masked."""
    counts = maskable.sum(axis=1)
    wanted = np.rint(counts * masked_lm_prob).astype(np.int64)
    return np.minimum(
        np.minimum(np.maximum(wanted, 1), counts), max_predictions
    )


def _choose_tokens(ranks, maskable, budgets):
    """[B, max budget] int64 ascending positions, S in unused slots."""
    width = int(budgets.max()) if len(budgets) else 0
    size = ranks.shape[1]
    ranks = np.where(maskable, ranks, np.uint64(_ALL_BITS))
    if 0 < width < size:
        ranks = np.partition(ranks, width - 1, axis=1)
    ranks = np.sort(ranks[:, :width], axis=1)
    positions = (ranks & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int64)
    positions[np.arange(width) >= budgets[:, None]] = size
    positions.sort(axis=1)
    return positions


def _choose_words(ranks, maskable, starts, budgets):
    """[B, max budget] int64 ascending positions, S in unused slots."""
    size = ranks.shape[1]
    width = int(budgets.max()) if len(budgets) else 0
    positions = np.full([len(ranks), width], size, np.int64)
    before = np.zeros_like(maskable)
    before[:, 1:] = maskable[:, :-1]
    starts = starts | (maskable & ~before)  # a word also begins after <s>
    for row in range(len(ranks)):
        begins = np.flatnonzero(starts[row])
        # Positions of one word follow each other, for a special token ends it.
        tokens = np.flatnonzero(maskable[row])
        first = np.searchsorted(tokens, begins)
        sizes = np.diff(np.append(first, len(tokens)))
        order = np.argsort(ranks[row, begins])
        chosen = _fill(
            begins[order].tolist(), sizes[order].tolist(), int(budgets[row])
        )
        positions[row, : len(chosen)] = chosen
    return positions


def _fill(begins, sizes, budget):
    """Ascending positions of the words that fit, taken in the order given."""
    chosen = []
    for begin, size in zip(begins, sizes):
        if size <= budget:
            chosen.extend(range(begin, begin + size))
            budget -= size
            if not budget:
                break
    return sorted(chosen)


def _replaced(original, inside, chosen, keys, others, mask_id, width):
    """The dict of `mask_batch` from the positions [B, <= P] to be masked."""
    batch, size = original.shape
    positions = np.full([batch, width], size, np.int64)
    positions[:, : chosen.shape[1]] = chosen
    used = positions < size  # [B, P]
    positions[~used] = 0
    rows = np.arange(batch)[:, None]
    labels = np.where(used, original[rows, positions], 0)
    treatment = _draw(keys, positions, _TREATMENT) >> np.uint64(11)
    share = treatment * 2.0**-53  # [B, P] in [0, 1)
    kept_or_random = labels
    if len(others):
        drawn = _draw(keys, positions, _TOKEN) % np.uint64(len(others))
        drawn = others[drawn.astype(np.int64)]
        kept_or_random = np.where(
            share < _MASKED_OR_RANDOM_SHARE, drawn, labels
        )
    new = np.where(share < _MASKED_SHARE, mask_id, kept_or_random)
    masked = original.copy()
    row_of, slot_of = np.nonzero(used)
    masked[row_of, positions[row_of, slot_of]] = new[row_of, slot_of]
    return {
        "input_ids": masked,
        "input_mask": inside.astype(np.int64),
        "segment_ids": np.zeros_like(masked),
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "masked_lm_weights": used.astype(np.float32),
    }
