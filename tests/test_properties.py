# SPDX-License-Identifier: Apache-2.0
"""What holds for every input, on inputs that Hypothesis invents and shrinks."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import squad
from helpers import masks, streams, tiny_tokenizer
from pretraining_data import masking, packing
from question_answering import squad_decoding
from tokenization import RobertaTokenizer

# The same inputs every time, however slow the machine.
settings = hypothesis.settings(
    max_examples=150, derandomize=True, deadline=None, database=None
)
# Letters that merges know, white space of all kinds, and anything else.
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" lowerstn's12\n\t\u3000\x85\xa0\x1c"),
        st.characters(blacklist_categories=()),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    files = tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer"))
    return [
        RobertaTokenizer(*files, do_lower_case=lowers)
        for lowers in (False, True)
    ]


@pytest.mark.parametrize("lowers", [False, True])
def test_any_text_comes_back_from_its_tokens(tokenizers, lowers):
    @settings
    @hypothesis.given(TEXTS)
    def check(text):
        tokenizer = tokenizers[lowers]
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert tokenizer.decode(ids) == (text.lower() if lowers else text)
        assert len(offsets) == len(ids)
        assert all(0 <= start < end <= len(text) for start, end in offsets)
        assert [start for start, _ in offsets] == sorted(
            start for start, _ in offsets
        )
        # What no token covers is the space before one.
        covered = {
            place for start, end in offsets for place in range(start, end)
        }
        assert {
            text[place] for place in range(len(text)) if place not in covered
        } <= {" "}

    check()


@pytest.mark.parametrize(
    "kind", [packing.FULL_SENTENCES, packing.DOC_SENTENCES]
)
def test_packing_loses_no_token_and_keeps_their_order(kind):
    documents = st.lists(
        st.lists(st.integers(1, 40), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    )

    @settings
    @hypothesis.given(documents, st.integers(1, 30))
    def check(lengths, longest):
        stream = streams.stream_of(*lengths)
        cuts = streams.pack(stream, kind, longest + 2)
        ids = stream.ids
        kept = [token for start, end in cuts for token in ids[start:end]]
        assert [token for token in kept if token != streams.EOS] == [
            token for token in ids if token != streams.EOS
        ]
        assert all(0 < end - start <= longest for start, end in cuts)

    check()


def test_masks_stay_off_special_tokens_and_can_be_undone():
    special = masks.SPECIAL
    token = st.one_of(st.sampled_from(special), st.integers(4, 400))

    @settings
    @hypothesis.given(
        st.lists(token, min_size=1, max_size=40),
        st.floats(0.01, 0.99),
        st.integers(1, 12),
        st.integers(0, 2**31 - 1),
        st.booleans(),
    )
    def check(row, probability, predictions, seed, words):
        ids = np.array([row])
        rules = masking.MaskingRules(
            masked_lm_prob=probability,
            max_predictions_per_seq=predictions,
            mask_id=masks.MASK,
            vocab_size=masks.V,
            special_ids=special,
            word_starts=masks.word_table() if words else None,
        )
        masked = masking.mask_batch(
            rules,
            ids,
            np.array([len(row)]),
            seed=seed,
            epochs=3,
            records=np.array([7]),
        )
        places = masks.positions_of(masked, 0)
        assert len(places) <= predictions
        assert len(set(places)) == len(places)
        assert not set(ids[0, places]) & set(special)
        changed = np.flatnonzero(masked["input_ids"][0] != ids[0])
        assert set(changed) <= set(places)
        assert masks.unmasked(masked).tolist() == ids.tolist()
        maskable = sum(token_id not in special for token_id in row)
        if maskable and not words:
            assert len(places) == min(
                predictions, max(1, int(round(probability * maskable)))
            )

    check()


def test_an_answer_is_a_piece_of_its_context(tokenizers):
    words = (
        st.lists(
            st.text("abé .,\u4e2d", min_size=1, max_size=6),
            min_size=1,
            max_size=30,
        )
        .map(" ".join)
        .filter(lambda text: text.strip())
    )

    @hypothesis.settings(settings, max_examples=60)
    @hypothesis.given(
        words, st.integers(0, 2**31 - 1), st.integers(1, 20), st.booleans()
    )
    def check(context, seed, longest, version_2):
        example = squad.Example("q", "Where?", context)
        features = list(
            squad.convert_examples_to_features(
                [example], tokenizers[0], 24, 4, 10, False
            )
        )
        random = np.random.RandomState(seed)
        results = {
            feature.unique_id: tuple(random.randn(2, 64).astype(np.float32))
            for feature in features
        }
        predictions, nbest, _ = squad_decoding.decode(
            [example], features, results, 5, longest, version_2, 0.0
        )
        for text in [predictions["q"]] + [
            answer["text"] for answer in nbest["q"]
        ]:
            assert text in context
            assert text == text.strip()
            assert text or version_2
            tokens = tokenizers[0].encode(text)
            assert len(tokens) <= 2 * longest + 1

    check()
