# SPDX-License-Identifier: Apache-2.0
"""Masks for the masked language model, as a function of numbers alone.

Every random choice is a hash of (seed, epoch, record, position, draw). So a
sequence gets the same masks in any batch, under any padding, on any platform
and in any process, another set in each epoch, and no state has to be saved.

B is the number of sequences, S their padded length, P the room for masked
positions, V the vocabulary's size.

Source:
  Devlin et al. 2019, section 3.1: 15 % of the tokens are predicted; of these
    80 % become <mask>, 10 % a random token, 10 % are kept.
  Liu et al. 2019, section 4.1: another mask each time a sequence is fed.
  fairseq, data/mask_tokens_dataset.py: seeded by (seed, epoch, index); a
    random token is never a special one.
  google-research/bert, create_pretraining_data.py: how many are masked;
    whole words are taken in random order, one that no longer fits is skipped;
    each token of a word draws its own replacement.
  Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators":
    the hash, splitmix64.
"""

import dataclasses
import functools
import typing

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


def splitmix64(values: np.ndarray) -> np.ndarray:
    """One step of splitmix64 from each state; uint64, the shape is kept."""
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


@dataclasses.dataclass(frozen=True)
class MaskingRules:
    """How masks are drawn.

    Args:
      masked_lm_prob: share of the maskable tokens to predict.
      max_predictions_per_seq: P >= 1.
      mask_id: id of <mask>.
      vocab_size: V.
      special_ids: ids that are never masked and never drawn as a random token;
        `mask_id` is always one of them.
      word_starts: [V] bool, True where a token begins a word: whole words are
        masked, and a word longer than the rest of the budget is skipped, so
        that a row of only such words has no mask. None masks single tokens.

    Raises:
      errors.UserError: a value is out of range.
    """

    masked_lm_prob: float
    max_predictions_per_seq: int
    mask_id: int
    vocab_size: int
    special_ids: typing.Sequence[int]
    word_starts: typing.Optional[np.ndarray] = None

    def __post_init__(self):
        if not 0 < self.masked_lm_prob < 1:
            raise errors.UserError(
                f"masked_lm_prob is {self.masked_lm_prob}; use a number above "
                "0 and below 1"
            )
        unmasked = self.unmasked_ids
        if unmasked[0] < 0 or unmasked[-1] >= self.vocab_size:
            raise errors.UserError(
                f"the special tokens have the ids {list(unmasked)}, but the "
                f"vocabulary has {self.vocab_size} tokens; use the vocabulary "
                "that the records were built with"
            )

    @property
    def unmasked_ids(self) -> typing.Tuple[int, ...]:
        """The special ids and `mask_id`, ascending."""
        return tuple(sorted({*map(int, self.special_ids), self.mask_id}))


def mask_batch(
    rules: MaskingRules,
    input_ids: np.ndarray,
    lengths: np.ndarray,
    *,
    seed: int,
    epochs: typing.Union[int, np.ndarray],
    records: np.ndarray,
) -> typing.Dict[str, np.ndarray]:
    """Draws the masks of a batch.

    Args:
      rules: the settings, P among them.
      input_ids: [B, S] integers; ids after a row's length are kept.
      lengths: [B] integers, tokens of each row without padding.
      seed: any int.
      epochs: [B] integers, or one for all: the epoch or duplicate of each row.
      records: [B] integers: the number of each row's record in the data set.

    Returns:
      A dict of arrays: input_ids [B, S], input_mask [B, S], segment_ids [B, S]
      (zeros), masked_lm_positions [B, P] ascending, masked_lm_ids [B, P] (the
      original tokens), masked_lm_weights [B, P] float32; all others int64.
      Unused slots have position 0, id 0, weight 0. Of n maskable tokens
      min(P, max(1, round(masked_lm_prob * n))) are masked.

    Raises:
      errors.UserError: an id is out of range.

    Example (<s> is 0, </s> is 2, <mask> is 9, one token masked):
      input_ids [[0, 5, 6, 2]] -> input_ids [[0, 9, 6, 2]],
      masked_lm_positions [[1]], masked_lm_ids [[5]], weights [[1.0]]
    """
    original = np.asarray(input_ids, np.int64)
    lengths = np.asarray(lengths, np.int64)
    columns = np.arange(original.shape[1])
    inside = columns < lengths[:, None]  # [B, S]
    _check_ids(original, inside, rules.vocab_size)
    is_special, others = _vocabulary_tables(
        rules.vocab_size, rules.unmasked_ids
    )
    tokens = np.where(inside, original, rules.mask_id)
    maskable = ~is_special[tokens]  # [B, S]
    budgets = _budgets(maskable, rules)
    keys = _row_keys(seed, epochs, records)
    ranks = _draw(keys, np.broadcast_to(columns, original.shape), _RANK)
    # The low bits of a rank are its position, so that sorting finds both.
    ranks = ranks & np.uint64(
        _ALL_BITS << _POSITION_BITS & _ALL_BITS
    ) | columns.astype(np.uint64)
    if rules.word_starts is None:
        positions = _choose_tokens(ranks, maskable, budgets)
    else:
        starts = maskable & np.asarray(rules.word_starts, bool)[tokens]
        positions = _choose_words(ranks, maskable, starts, budgets)
    return _replaced(original, inside, positions, keys, others, rules)


def _check_ids(original, inside, vocab_size):
    if original.shape[1] >= 1 << _POSITION_BITS:
        raise errors.UserError(
            f"sequences have {original.shape[1]} tokens; use fewer than "
            f"{1 << _POSITION_BITS}"
        )
    wrong = inside & ((original < 0) | (original >= vocab_size))
    if wrong.any():
        raise errors.UserError(
            f"a record contains the id {original[wrong][0]}, but the "
            f"vocabulary has {vocab_size} tokens; use the vocabulary that the "
            "records were built with"
        )


def _budgets(maskable, rules):
    """[B] int64: how many tokens of each row to mask."""
    counts = maskable.sum(axis=1)
    masked = np.rint(counts * rules.masked_lm_prob).astype(np.int64)
    return np.minimum(
        np.minimum(np.maximum(masked, 1), counts), rules.max_predictions_per_seq
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
        # A special token ends a word, so its positions are consecutive.
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


def _replaced(original, inside, chosen, keys, others, rules):
    """The dict of `mask_batch` from the positions [B, <= P] to be masked."""
    batch, size = original.shape
    positions = np.full([batch, rules.max_predictions_per_seq], size, np.int64)
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
    new = np.where(share < _MASKED_SHARE, rules.mask_id, kept_or_random)
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
