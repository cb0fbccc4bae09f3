# SPDX-License-Identifier: Apache-2.0
"""A chunk of text → serialized records, the same in any process.

The masks of a static record are drawn from the seed, the duplicate's number
and the position of the sequence in the input, so chunks share no state: any
process can build any chunk.

K is the number of sequences, S their padded length, P the masked positions.
"""

import dataclasses
import typing

import numpy as np

from common import command_line, errors, tf_example
from pretraining_data import corpus, text_files
from pretraining_data.masking import MaskingRules, mask_batch
from pretraining_data.packing import (
    DOC_SENTENCES,
    EOS,
    FULL_SENTENCES,
    NONE,
    SPACE,
    pack,
    padded,
    rooms,
    tokenize,
)
from tokenization import RobertaTokenizer

DYNAMIC, STATIC = "dynamic", "static"

# Duplicates of each sequence, static masks only. Source: google-research/bert
# and Liu et al. 2019, section 4.1, which also has ten.
DUPE_FACTOR = 10

# A sequence's number: its group of files, its chunk, its place in the chunk.
_GROUP_SHIFT, _CHUNK_SHIFT = 44, 24
_BATCH_TOKENS = 1 << 17


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """The content of the records; each field is a flag."""

    masking: str = command_line.flag(
        STATIC,
        "static: records carry their masks; dynamic: the input "
        "pipeline of run_pretraining.py draws new ones each time.",
        choices=(STATIC, DYNAMIC),
        group=command_line.DATA,
    )
    packing: str = command_line.flag(
        FULL_SENTENCES,
        "full_sentences fills a sequence across "
        "documents, doc_sentences does not.",
        choices=(FULL_SENTENCES, DOC_SENTENCES),
    )
    max_seq_length: int = command_line.flag(
        128,
        "Longest sequence in tokens, with <s> and </s>.",
        lower=3,
        upper=1 << 16,
    )
    max_predictions_per_seq: int = command_line.flag(
        20, "Most masked tokens of a sequence.", lower=1, upper=1 << 16
    )
    masked_lm_prob: float = command_line.flag(
        0.15, "Share of the tokens that are masked, above 0 and below 1."
    )
    do_whole_word_mask: bool = command_line.flag(
        False, "Mask entire words instead of single tokens."
    )
    dupe_factor: typing.Optional[int] = command_line.flag(
        None,
        "How often each sequence is written, each time with new masks (static "
        f"masking only); default {DUPE_FACTOR}.",
        lower=1,
    )
    short_seq_prob: float = command_line.flag(
        0.0,
        "Share of sequences that get a shorter, random length.",
        lower=0,
        upper=1,
    )
    random_seed: int = command_line.flag(
        12345, "Masks, short lengths and the order of records follow from it."
    )
    text_field: str = command_line.flag(
        "text", "The field of a JSON line (.jsonl, .json) that is its text."
    )
    line_break: str = command_line.flag(
        SPACE,
        "space: a line after the first of a document is encoded with a space "
        "before it; eos: </s> after each line, as fairseq-preprocess; none: "
        "neither, for text without spaces such as Chinese.",
        choices=(SPACE, EOS, NONE),
    )
    invalid_text: str = command_line.flag(
        text_files.ERROR,
        "Lines of invalid UTF-8 and JSON lines without text. error: each is "
        "named, and shards that contain one are not written; replace: invalid "
        "bytes become U+FFFD, JSON lines without text are skipped; skip: all "
        "are skipped.",
        choices=(text_files.ERROR, text_files.REPLACE, text_files.SKIP),
    )

    def __post_init__(self):
        if not 0 < self.masked_lm_prob < 1:
            raise errors.UserError(
                f"--masked_lm_prob is {self.masked_lm_prob}; use a number "
                "above 0 and below 1, RoBERTa's is 0.15"
            )

    @property
    def copies(self) -> int:
        """How often each sequence is written."""
        if self.masking == DYNAMIC:
            return 1
        return DUPE_FACTOR if self.dupe_factor is None else self.dupe_factor

    def chunk_limits(
        self, total_bytes: int, num_shards: int
    ) -> corpus.ChunkLimits:
        """The corpus.ChunkLimits for an input of `total_bytes` as stored."""
        line_bytes = corpus.BYTES_A_LINE
        if self.masking == STATIC and self.packing == DOC_SENTENCES:
            # Each document is padded to a whole record.
            record = self.max_seq_length + 2 * self.max_predictions_per_seq
            line_bytes = max(line_bytes, record // 4)
        return corpus.chunk_limits(
            total_bytes, num_shards, self.copies, line_bytes
        )


@dataclasses.dataclass(frozen=True)
class ChunkRecords:
    """The serialized records of a chunk, in order, and what went into them."""

    position: int  # of the chunk
    records: typing.List[bytes]
    text_bytes: int
    documents: int
    tokens: int  # of the text
    packed_tokens: int  # those of them that are in the sequences
    sequences: int
    replaced_lines: int = 0
    skipped_lines: int = 0
    messages: typing.Sequence[str] = ()  # about skipped lines


class RecordBuilder:
    """Builds the records of one chunk after the other."""

    def __init__(
        self, tokenizer: RobertaTokenizer, config: RecordConfig
    ) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._ids = {
            "bos_id": tokenizer.bos_id,
            "pad_id": tokenizer.pad_id,
            "eos_id": tokenizer.eos_id,
        }
        self._rules = MaskingRules(
            masked_lm_prob=config.masked_lm_prob,
            max_predictions_per_seq=config.max_predictions_per_seq,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=[*self._ids.values(), tokenizer.unk_id],
            word_starts=(
                tokenizer.word_start_table()
                if config.do_whole_word_mask
                else None
            ),
        )

    def build(self, chunk: corpus.Chunk) -> ChunkRecords:
        """The ChunkRecords of a chunk."""
        config = self._config
        invalid = text_files.InvalidText(config.invalid_text)
        stream = tokenize(
            corpus.sentences(chunk, config.text_field, invalid),
            self._tokenizer.encode,
            self._tokenizer.eos_id,
            config.line_break,
        )
        starts, ends = self._pack(chunk, stream)
        if config.masking == DYNAMIC:
            records = self._dynamic_records(stream, starts, ends)
        else:
            records = self._static_records(chunk, stream, starts, ends)
        is_text = np.append(0, np.cumsum(stream.ids != self._ids["eos_id"]))
        return ChunkRecords(
            position=chunk.position,
            records=records,
            text_bytes=sum(len(s.data) for s in chunk.segments),
            documents=stream.documents,
            tokens=stream.tokens,
            packed_tokens=int((is_text[ends] - is_text[starts]).sum()),
            sequences=len(starts),
            replaced_lines=invalid.replaced,
            skipped_lines=invalid.skipped,
            messages=invalid.messages(),
        )

    def _pack(self, chunk, stream):
        """(starts, ends) of the chunk's sequences in its token stream."""
        config = self._config
        state = np.random.RandomState(
            [config.random_seed & 0xFFFFFFFF, chunk.group, chunk.index]
        )
        return pack(
            stream,
            config.packing,
            config.max_seq_length,
            rooms(config.max_seq_length, config.short_seq_prob, state),
        )

    def _dynamic_records(self, stream, starts, ends):
        if not len(starts):
            return []
        bos_id, eos_id = self._ids["bos_id"], self._ids["eos_id"]
        pieces = []
        for start, end in zip(starts, ends):
            pieces += [[bos_id], stream.ids[start:end], [eos_id]]
        bounds = np.append(0, np.cumsum(ends - starts + 2))
        values = np.concatenate(pieces).astype(np.int64)
        return tf_example.encode_examples({"input_ids": (values, bounds)})

    def _static_records(self, chunk, stream, starts, ends):
        """All sequences with one draw of masks, then with the next, ..."""
        length = self._config.max_seq_length
        first = (chunk.group << _GROUP_SHIFT) + (chunk.index << _CHUNK_SHIFT)
        size = max(1, _BATCH_TOKENS // length)
        records = []
        for copy in range(self._config.copies):
            for low in range(0, len(starts), size):
                rows = slice(low, low + size)
                input_ids, lengths = padded(
                    stream, starts[rows], ends[rows], length, **self._ids
                )
                masked = mask_batch(
                    self._rules,
                    input_ids,
                    lengths,
                    seed=self._config.random_seed,
                    epochs=copy,
                    records=np.arange(len(lengths)) + (first + low),
                )
                records += tf_example.encode_examples(
                    {name: _ragged(values) for name, values in masked.items()}
                )
        return records


def _ragged(values):
    """[K, N] as (values [K * N], bounds [K + 1])."""
    rows, columns = values.shape
    return values.reshape(-1), np.arange(rows + 1) * columns
