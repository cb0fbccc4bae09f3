# SPDX-License-Identifier: Apache-2.0
"""Exact ids and offsets, the round trip of any string, and every error."""

import gzip
import json
import pickle
import random
import time

import numpy as np
import pytest

import tokenization
from common import errors
from helpers.paths import GOLDEN, SHARED
from helpers.tiny_tokenizer import MERGES, tiny_vocabulary, write
from tokenization import RobertaTokenizer

HARD = [
    "",
    " ",
    "   low",
    "low  \n\n  new ",
    "\r\n\t\x0b\x0c low",
    "low\u3000new",
    "\u3000 \u3000",
    " \x1c\x1d\x1e\x1f low",
    "\x85\xa0\u2028\u200b\ufeff",
    "low's LOW'S ''s don't 'lower",
    "1212 12low low12 ½²①٣",
    "</s><mask> <pad>",
    "é e\u0301 你好 你",
    "مرحبا 😀👩\u200d👧 🇩🇪",
    "\x00\x7f\x80\xff",
    "\ud800 low \udfff",
    "\ud83d\ude00",
    "\U0010ffff\ue000\uffff",
    "!! !!! !x!",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(files):
    return RobertaTokenizer(*files)


@pytest.fixture(scope="module")
def roberta(shared):
    folder = shared / "data" / "roberta"
    return RobertaTokenizer(folder / "vocab.json", folder / "merges.txt")


def merge_by_definition(symbols, ranks):
    """Byte-pair encoding as one would explain it."""
    symbols = list(symbols)
    while True:
        pairs = [
            (ranks[pair], i)
            for i, pair in enumerate(zip(symbols, symbols[1:]))
            if pair in ranks
        ]
        if not pairs:
            return symbols
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def tokenize_by_definition(text):
    ranks = {tuple(merge.split()): i for i, merge in enumerate(MERGES)}
    symbols = tokenization.byte_symbols()
    tokens = []
    for piece in tokenization._PIECE.findall(text):
        data = piece.encode("utf-8", "surrogatepass")
        tokens += merge_by_definition([symbols[byte] for byte in data], ranks)
    return tokens


def random_texts(alphabet, count, length, seed):
    generator = random.Random(seed)
    return [
        "".join(
            generator.choice(alphabet)
            for _ in range(generator.randrange(length))
        )
        for _ in range(count)
    ]


def any_texts(count, seed):
    """Random code points of every size, surrogates among them."""
    generator = random.Random(seed)
    return [
        "".join(
            chr(
                generator.randrange(
                    generator.choice([0x80, 0x800, 0x10000, 0x110000])
                )
            )
            for _ in range(20)
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "path, count",
    [
        (GOLDEN / "tokenizer" / "cases.json.gz", 366),
        (SHARED / "golden" / "tokenizer" / "cases.json", 478),
    ],
    ids=["invented texts", "also real texts"],
)
def test_reference_ids_tokens_and_offsets(roberta, path, count):
    if not path.exists():
        pytest.skip(f"no reference cases in {path}")
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    cases = json.loads(data.decode("utf-8"))
    assert len(cases) == count
    for case in cases:
        text = case["text"]
        ids, offsets = roberta.encode_with_offsets(text)
        assert ids == case["ids"]
        assert ids == roberta.encode(text)
        assert roberta.tokenize(text) == case["tokens"]
        assert [list(span) for span in offsets] == case["offsets"]
        assert roberta.decode(ids) == text


def test_real_vocabulary_and_special_ids(roberta):
    assert roberta.vocab_size == 50265
    assert (
        roberta.bos_id,
        roberta.pad_id,
        roberta.eos_id,
        roberta.unk_id,
        roberta.mask_id,
    ) == (0, 1, 2, 3, 50264)
    assert roberta.encode_with_offsets(" a cafe") == (
        [10, 16381],
        [(1, 2), (3, 7)],
    )


def test_merges_by_hand(tiny):
    # l o w e r -> l ow er -> low er -> lower, by the ranks 1, 2, 3 and 11.
    assert tiny.tokenize("lower lowest") == ["lower", "Ġlow", "est"]
    assert tiny.tokenize(" low newest") == ["Ġlow", "Ġnew", "est"]
    # White space leaves its last space to the word after it.
    assert tiny.tokenize("     low") == ["ĠĠĠĠ", "Ġlow"]
    assert tiny.tokenize("low's") == ["low", "'s"]
    # Of equal ranks the leftmost is merged.
    assert tiny.tokenize("aaa") == ["aa", "a"]
    assert tiny.tokenize("ababab") == ["abab", "ab"]


def test_offsets_by_hand(tiny):
    ids, offsets = tiny.encode_with_offsets("é 你 low    new")
    assert tiny.convert_ids_to_tokens(ids) == [
        "Ã©",
        "Ġ",
        "ä½",
        "ł",
        "Ġlow",
        "ĠĠ",
        "Ġ",
        "Ġnew",
    ]
    assert offsets == [
        (0, 1),
        (1, 2),
        (2, 3),
        (2, 3),
        (4, 7),
        (7, 9),
        (9, 10),
        (11, 14),
    ]


@pytest.mark.parametrize(
    "merge", [tokenization._merge, tokenization._merge_long]
)
def test_both_merge_functions_follow_the_definition(merge):
    generator = random.Random(1)
    for word in random_texts("abc", 300, 40, seed=2):
        # Ranks in any order, so also products before their parts.
        parts = ["a", "b", "c", "ab", "bc", "aa", "aab", "abab"]
        pairs = [(left, right) for left in parts for right in parts]
        ranks = {pair: i for i, pair in enumerate(generator.sample(pairs, 20))}
        merged = ["".join(pair) for pair in ranks]
        assert merge(list(word), ranks, merged) == merge_by_definition(
            word, ranks
        )


@pytest.mark.parametrize(
    "alphabet",
    [" \n\u3000\x1ca", " lownerst", "a's 1!\t", "aé你 \ud800", " low\x85\xa0'"],
)
def test_tokens_follow_the_definition(tiny, alphabet):
    for text in random_texts(alphabet, 200, 60, seed=3):
        assert tiny.tokenize(text) == tokenize_by_definition(text), repr(text)


def test_any_string_survives(tiny):
    for text in HARD + any_texts(300, seed=4):
        ids, offsets = tiny.encode_with_offsets(text)
        assert ids == tiny.encode(text)
        assert tiny.decode(ids) == text
        assert len(offsets) == len(ids)


def test_offsets_leave_out_leading_spaces_only(tiny):
    for text in HARD + any_texts(100, seed=5):
        end_before = 0
        for token, (start, end) in zip(
            tiny.tokenize(text), tiny.encode_with_offsets(text)[1]
        ):
            assert 0 <= start < end <= len(text)
            assert set(text[end_before:start]) <= {" "}
            if token.strip("Ġ"):
                assert text[start] != " "
            end_before = end
        assert text[end_before:] == ""


def test_special_tokens_in_a_text_are_ordinary_text(tiny):
    special = {tiny.bos_id, tiny.pad_id, tiny.eos_id, tiny.unk_id, tiny.mask_id}
    ids = tiny.encode("<s></s> <mask><pad> <unk>")
    assert not special & set(ids)
    assert tiny.decode(ids) == "<s></s> <mask><pad> <unk>"


def test_decode_writes_special_tokens_and_broken_characters(tiny):
    low = tiny.encode("low")
    assert tiny.decode([tiny.bos_id] + low + [tiny.eos_id]) == "<s>low</s>"
    assert tiny.decode(np.array(low)) == "low"
    assert tiny.decode(tiny.encode("你")[:1] + low) == "\ufffdlow"


def test_conversions(tiny):
    tokens = ["<mask>", "Ġlow", "er"]
    ids = tiny.convert_tokens_to_ids(tokens)
    assert ids == [tiny.vocab_size - 1, 264, 262]
    assert tiny.convert_ids_to_tokens(np.array(ids)) == tokens
    assert tiny.convert_tokens_to_ids("<pad>") == tiny.pad_id == 1
    assert tiny.convert_ids_to_tokens(1) == "<pad>"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t: t.convert_tokens_to_ids(["low", "lowest"]), "'lowest'"),
        (lambda t: t.convert_ids_to_tokens([5, 999]), "id 999"),
        (lambda t: t.decode([-1]), "id -1"),
    ],
)
def test_what_is_not_in_the_vocabulary_is_an_error(tiny, call, words):
    with pytest.raises(errors.UserError, match=words):
        call(tiny)


@pytest.mark.parametrize(
    "merge, is_cased",
    [(None, False), ("A b", True), ("a B", True), ("Ã ī", True)],
)
def test_capitals_of_merged_tokens_make_a_vocabulary_cased(
    tmp_path, merge, is_cased
):
    merges = ["a b"] + [merge] * bool(merge)
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + tokenization.byte_symbols()
    tokens += [text.replace(" ", "") for text in merges] + ["<mask>"]
    paths = write(
        tmp_path,
        {token: number for number, token in enumerate(tokens)},
        "\n".join(merges),
    )
    assert RobertaTokenizer(*paths).is_cased() is is_cased


def test_lower_casing_keeps_offsets_of_the_text_given(files):
    lower = RobertaTokenizer(*files, do_lower_case=True)
    # U+0130 becomes two characters, the Kelvin sign one byte instead of three,
    # a final sigma another letter than one within a word.
    text = "İ LOW \u212aİ NEW ΑΣΣ low"
    ids, offsets = lower.encode_with_offsets(text)
    assert lower.decode(ids) == text.lower()
    assert len(text.lower()) == len(text) + 2
    spans = dict(zip(lower.convert_ids_to_tokens(ids), offsets))
    assert text[slice(*spans["Ġnew"])] == "NEW"
    assert offsets[:3] == [(0, 1)] * 3  # i and the two bytes of U+0307
    assert offsets[3:5] == [(2, 5), (5, 6)]
    assert offsets[-1] == (len(text) - 3, len(text))
    assert lower.encode_with_offsets("LOW New") == (
        lower.encode("low new"),
        [(0, 3), (4, 7)],
    )


def test_word_starts(tiny):
    table = tiny.word_start_table()
    assert table.dtype == np.bool_ and table.shape == (tiny.vocab_size,)
    starts = {tiny.convert_ids_to_tokens(int(i)) for i in np.flatnonzero(table)}
    assert starts == set("ĠĊĉčċČ") | {
        "Ġl",
        "Ġlow",
        "Ġnew",
        "ĠĠ",
        "ĠĠĠĠ",
        "ĊĊ",
        "Ġä",
    }


def test_a_long_word_takes_no_time(tiny):
    word = "".join(random.Random(6).choices("lowernst", k=16000))
    start = time.perf_counter()
    ids = tiny.encode(word)
    assert time.perf_counter() - start < 0.5
    assert tiny.decode(ids) == word


def test_the_cache_is_bounded_and_keeps_what_is_frequent():
    computed = []
    cache = tokenization._Cache(lambda text: computed.append(text) or (1,), 10)
    for i in range(1000):
        assert cache["frequent"] == cache[f"rare {i}"] == (1,)
        assert len(cache) + len(cache._previous) <= 20
    assert computed.count("frequent") == 1
    assert cache["x" * 1000] == (1,) and "x" * 1000 not in cache


def test_a_full_cache_changes_no_ids(files, tiny):
    small = RobertaTokenizer(*files)
    small._cache._capacity = 3
    for text in HARD + any_texts(50, seed=7):
        assert small.encode(text) == tiny.encode(text)


def test_a_tokenizer_travels_to_another_process_without_its_cache(tiny):
    tiny.encode("low newest")
    copy = pickle.loads(pickle.dumps(tiny))
    assert len(copy._cache) == 0
    assert copy.encode("low newest") == tiny.encode("low newest")


def test_the_version_line_and_line_ends_do_not_matter(tmp_path, tiny):
    for merges in [
        "\n".join(MERGES),
        "\r\n".join(["#version"] + MERGES),
        "\ufeff" + "\n".join(["#version: 0.2"] + MERGES) + "\n",
    ]:
        tokenizer = RobertaTokenizer(*write(tmp_path, merges=merges))
        assert tokenizer.tokenize(" lower") == tiny.tokenize(" lower")


def changed(**changes):
    """The tiny vocabulary with other ids, or without tokens (None)."""
    vocabulary = tiny_vocabulary()
    for token, i in changes.items():
        vocabulary[token] = i
    return {t: i for t, i in vocabulary.items() if i is not None}


def without(token):
    """The tiny vocabulary without a token, numbered anew."""
    tokens = [t for t in tiny_vocabulary() if t != token]
    return {t: i for i, t in enumerate(tokens)}


@pytest.mark.parametrize(
    "vocabulary, words",
    [
        ("", "not JSON"),
        ('{"a": 1', "not JSON"),
        ("[1, 2]", "a JSON list, expected an object"),
        ("[" * 100000, "nested too deeply"),
        ('{"a":' * 100000, "nested too deeply"),
        (f'{{"a": {"9" * 500000}}}', "an integer of 500000 digits"),
        ("{}", "lacks <s>, <pad>, </s>, <unk>, <mask>"),
        (changed(low="1"), "'low', '1', is not a whole number"),
        (changed(low=True), "is not a whole number"),
        (changed(low=1.0), "is not a whole number"),
        (changed(low=5000), "'low', 5000, is not in 0 to 285"),
        (changed(low=-1), "'low', -1, is not in"),
        (changed(low=0), "'low', 0, is also that of '<s>'"),
        (without("<mask>"), "lacks <mask>"),
        (without("Ġ"), "lacks 1 of the 256 byte symbols, such as 'Ġ'"),
        (without("low"), "line 5: the token 'low' is not in .*of one model"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_vocabulary_is_an_error(tmp_path, vocabulary, words):
    with pytest.raises(errors.UserError, match=words) as caught:
        RobertaTokenizer(*write(tmp_path, vocabulary=vocabulary))
    assert "vocab.json" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "merges, words",
    [
        ("low\n", "line 1: 'low'; expected two tokens"),
        ("#version: 0.2\nl o\nl  o\n", "line 2: the token 'lo' is not in"),
        ("o w\no  w\n", "line 2: 'o  w'; expected two tokens"),
        ("o w\n\ne r\n", "line 2: ''; expected two tokens"),
        ("o w \n", "line 1: .*expected two tokens"),
        ("o \n", "line 1: 'o '; expected two tokens"),
        ("o w\ne r\no w\n", "line 3: repeats the pair 'o w'"),
        ("x y\n", "the token 'xy' is not in .*vocab.json; use"),
        ("lo w\n", "the token 'lo' is not in"),
    ],
)
def test_wrong_merges_are_an_error(tmp_path, merges, words):
    with pytest.raises(errors.UserError, match=words) as caught:
        RobertaTokenizer(*write(tmp_path, merges=merges))
    assert "merges.txt" in str(caught.value)


def test_merges_cut_short_are_an_error(tmp_path):
    vocabulary = tiny_vocabulary()
    for i in range(20):
        vocabulary[f"word{i}"] = len(vocabulary)
    RobertaTokenizer(*write(tmp_path, vocabulary=vocabulary))
    with pytest.raises(errors.UserError, match="make all but 45 of the 306"):
        RobertaTokenizer(*write(tmp_path, vocabulary=vocabulary, merges=""))


def test_unreadable_files_are_an_error(tmp_path, monkeypatch):
    vocab_file, merges_file = write(tmp_path)
    with pytest.raises(FileNotFoundError, match="no.json"):
        RobertaTokenizer(str(tmp_path / "no.json"), merges_file)
    with pytest.raises(FileNotFoundError, match="no.txt"):
        RobertaTokenizer(vocab_file, str(tmp_path / "no.txt"))
    (tmp_path / "latin1.txt").write_bytes(b"#version\n\xe9 t\n")
    with pytest.raises(errors.UserError, match="not UTF-8 at byte 9"):
        RobertaTokenizer(vocab_file, str(tmp_path / "latin1.txt"))
    monkeypatch.setattr(tokenization, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(errors.UserError, match="larger than 1000 bytes"):
        RobertaTokenizer(vocab_file, merges_file)
