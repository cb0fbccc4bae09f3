# SPDX-License-Identifier: Apache-2.0
"""RoBERTa's byte-level byte-pair encoding: text to ids and back, exactly.

A text is cut into pieces (words with their leading space, numbers, runs of
punctuation or white space); a piece becomes its UTF-8 bytes, each written as
one printable character; the pair with the lowest rank is merged until no pair
is left that has one:

    " low" -> "Ġ l o w" -> "Ġ lo w" -> "Ġ low" -> "Ġlow" -> [614]

Source: Radford et al. 2019, section 2.2; the file format is that of GPT-2 and
of Hugging Face: vocab.json (token to id) and merges.txt (a pair a line, in the
order of their ranks). Tokens of an added_tokens.json beside vocab.json are cut
out of a text before it is encoded.
"""

import heapq
import itertools
import os
import re
import typing

import numpy as np
import regex

from common import errors, files

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = (BOS, PAD, EOS, UNK, MASK)

# Unicode's White_Space, which is `\s` in `regex` and in Rust; Python's own
# `\s` and `isspace` also take U+001C to U+001F.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005"
    "\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)

# GPT-2's pattern.
_PIECE = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# Chunks are whole pieces, several where punctuation touches a word: the same
# boundaries at white space as _PIECE has, found three times as fast.
_CHUNK = re.compile(
    f" ?[^{_WHITE_SPACE}]+|[{_WHITE_SPACE}]+(?![^{_WHITE_SPACE}])"
    f"|[{_WHITE_SPACE}]+"
)

# The heap costs more than it saves on words shorter than this many bytes.
_LONG_WORD = 32
# Longer texts are not cached, so that the cache is bounded in bytes as well.
_MAX_CACHED_CHARACTERS = 64
_CACHE_CAPACITY = 1 << 17
_MAX_FILE_BYTES = 16 << 20
# The share of a vocabulary that merges may leave out: RoBERTa's has four such
# entries besides the special tokens.
_MAX_UNMERGED = 0.1

_NEVER = float("inf")


def byte_symbols() -> typing.List[str]:
    """The printable character of each byte: 256 strings.

    Bytes that print as themselves keep their character; the others take
    U+0100, U+0101, ... in turn. Source: GPT-2, encoder.py, bytes_to_unicode.
    """
    printable = set(
        itertools.chain(
            range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)
        )
    )
    substitutes = itertools.count(0x100)
    return [
        chr(byte if byte in printable else next(substitutes))
        for byte in range(256)
    ]


_SYMBOL_OF_BYTE = byte_symbols()
_BYTE_OF_SYMBOL = {symbol: byte for byte, symbol in enumerate(_SYMBOL_OF_BYTE)}


class RobertaTokenizer:
    """Byte-level BPE; special tokens written in a text are ordinary text.

    Any string survives: `decode(encode(text)) == text` (lower-cased first
    where `do_lower_case`). A lone surrogate counts as the three bytes that
    UTF-8 would give it.
    """

    def __init__(
        self,
        vocab_file: typing.Union[str, os.PathLike],
        merges_file: typing.Union[str, os.PathLike],
        do_lower_case: bool = False,
    ) -> None:
        """Reads and checks the two files.

        Args:
          vocab_file: path of a JSON object, token -> id, ids 0 to V - 1 with
            those of the added_tokens.json beside it.
          merges_file: path of a text with a pair of tokens a line, best first;
            a first line that begins with "#version" is ignored.
          do_lower_case: whether texts are lower-cased before they are encoded
            (`str.lower`, so with the Unicode version of the Python in use).

        Raises:
          errors.UserError: a file is malformed, or the two do not match.
          OSError: a file cannot be read.
        """
        self._do_lower_case = do_lower_case
        self._ids, added = _read_vocabulary(vocab_file)
        own = {token: self._ids[token] for token in self._ids.keys() - added}
        self._ranks, self._merged = _read_merges(merges_file, own, vocab_file)
        self._byte_ids = [self._ids[symbol] for symbol in _SYMBOL_OF_BYTE]
        self.vocab_size = len(self._ids)
        self.bos_id = self._ids[BOS]
        self.pad_id = self._ids[PAD]
        self.eos_id = self._ids[EOS]
        self.unk_id = self._ids[UNK]
        self.mask_id = self._ids[MASK]
        self._tokens = {i: token for token, i in self._ids.items()}
        lower = str.lower if do_lower_case else str
        self._added = {lower(token): self._ids[token] for token in added}
        self._chunks: typing.Callable = _chunks
        if added:
            longest_first = sorted(self._added, key=len, reverse=True)
            pattern = "|".join(map(re.escape, longest_first))
            self._split_at_added = re.compile(f"({pattern})").split
            self._chunks = self._chunks_around_added
        self._tables: typing.Dict[str, typing.Any] = {}
        self._cache = _Cache(self._encode_chunk, _CACHE_CAPACITY)

    def _table(self, compute):
        """What `compute` returns, computed when it is first needed."""
        name = compute.__name__
        if name not in self._tables:
            self._tables[name] = compute()
        return self._tables[name]

    @property
    def _bytes(self):
        """{id: bytes of the token}."""
        return self._table(self._bytes_of_tokens)

    def _bytes_of_tokens(self):
        texts = {i: _token_bytes(token) for token, i in self._ids.items()}
        for token, i in self._added.items():
            texts[i] = token.encode("utf-8", "surrogatepass")
        return texts

    def _token_lengths(self):
        token_bytes = self._bytes
        return np.array(
            [len(token_bytes[i]) for i in range(self.vocab_size)]
        )  # [V]

    def _leading_spaces(self):
        """1 where an offset leaves out the token's leading space: [V]."""
        return np.array(
            [
                text[:1] == " " and not _is_white_space(text)
                for text in self._texts()
            ],
            np.int64,
        )

    def encode(self, text: str) -> typing.List[int]:
        """The ids of a text, a list of int; no special tokens are added."""
        if self._do_lower_case:
            text = text.lower()
        return list(
            itertools.chain.from_iterable(
                map(self._cache.__getitem__, self._chunks(text))
            )
        )

    def encode_with_offsets(
        self, text: str
    ) -> typing.Tuple[typing.List[int], typing.List[typing.Tuple[int, int]]]:
        """The ids of a text and their places in it.

        " a cafe" -> ([10, 16381], [(1, 2), (3, 7)])

        Returns:
          (ids, offsets): offsets are (start, end) in characters of `text`, end
          exclusive. A token's leading space is left out unless the token is
          nothing but white space. A character that is spread over several
          tokens has its whole span in each.
        """
        ids = self.encode(text)
        index = np.array(ids, np.int64)  # [number of tokens]
        lengths = self._table(self._token_lengths)[index]
        ends = np.cumsum(lengths)
        starts = ends - lengths + self._table(self._leading_spaces)[index]
        if not text.isascii():
            character = self._character_of_byte(text)
            starts, ends = character[starts], character[ends - 1] + 1
        return ids, list(zip(starts.tolist(), ends.tolist()))

    def _character_of_byte(self, text):
        """For each byte that is encoded, the index of its character in text."""
        encoded = text.lower() if self._do_lower_case else text
        data = np.frombuffer(encoded.encode("utf-8", "surrogatepass"), np.uint8)
        character = np.cumsum(data & 0xC0 != 0x80) - 1
        if len(encoded) == len(text):
            return character
        # Lower-casing makes two characters of some, such as U+0130.
        lengths = [len(letter.lower()) for letter in text]
        return np.repeat(np.arange(len(text)), lengths)[character]

    def tokenize(self, text: str) -> typing.List[str]:
        """The tokens of a text as vocab.json writes them, a list of str."""
        return self.convert_ids_to_tokens(self.encode(text))

    def decode(self, ids: typing.Iterable[int]) -> str:
        """The text of ids; a special token is written as its name.

        Bytes that form no whole character become U+FFFD.

        Raises:
          errors.UserError: an id is not in the vocabulary.
        """
        data = b"".join(self._look_up(self._bytes, ids, "id"))
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def convert_tokens_to_ids(self, tokens):
        """The ids of tokens, a list of int; of one token (a str) its id.

        Raises:
          errors.UserError: a token is not in the vocabulary.
        """
        if isinstance(tokens, str):
            return self._look_up(self._ids, [tokens], "token")[0]
        return self._look_up(self._ids, tokens, "token")

    def convert_ids_to_tokens(self, ids):
        """The tokens of ids, a list of str; of one id its token.

        Raises:
          errors.UserError: an id is not in the vocabulary.
        """
        if isinstance(ids, (int, np.integer)):
            return self._look_up(self._tokens, [ids], "id")[0]
        return self._look_up(self._tokens, ids, "id")

    def _look_up(self, table, keys, kind):
        try:
            return list(map(table.__getitem__, keys))
        except KeyError as error:
            raise errors.UserError(
                f"{kind} {error.args[0]!r} is not in the vocabulary of "
                f"{self.vocab_size} tokens (ids 0 to {self.vocab_size - 1})"
            ) from error

    def capitals(self) -> typing.List[int]:
        """The ids of the tokens with capitals, which lower-casing removes."""
        return [
            i for i, text in enumerate(self._texts()) if text != text.lower()
        ]

    def is_cased(self) -> bool:
        """Whether a merged token has capitals."""
        return any(len(self._bytes[i]) > 1 for i in self.capitals())

    def word_start_table(self) -> np.ndarray:
        """Which tokens begin a word: bool [V].

        They begin with a space or other white space; special tokens do not.
        The first token of a sequence begins a word whatever it is.
        """
        return np.array(
            [text != "" and _is_white_space(text[:1]) for text in self._texts()]
        )

    def _texts(self):
        """The text of each token, where it can be read alone, by id."""
        token_bytes = self._bytes
        return [
            token_bytes[i].decode("utf-8", "replace")
            for i in range(self.vocab_size)
        ]

    def _chunks_around_added(self, text):
        """The chunks of a text, an added token being one of them."""
        parts = self._split_at_added(text)
        for text_part, added in itertools.zip_longest(parts[::2], parts[1::2]):
            yield from _chunks(text_part)
            if added:
                yield added

    def _encode_chunk(self, chunk):
        """The ids of what _CHUNK matches, a tuple of int."""
        if chunk in self._added:
            return (self._added[chunk],)
        # A word of ASCII letters is one piece.
        if not (chunk.isascii() and chunk.lstrip(" ").isalpha()):
            pieces = _PIECE.findall(chunk)
            if len(pieces) > 1:
                return tuple(
                    itertools.chain.from_iterable(
                        map(self._cache.__getitem__, pieces)
                    )
                )
        data = chunk.encode("utf-8", "surrogatepass")
        symbols = list(map(self._byte_ids.__getitem__, data))
        merge = _merge if len(symbols) < _LONG_WORD else _merge_long
        return tuple(merge(symbols, self._ranks, self._merged))


def _chunks(text):
    """The chunks of a text, as _CHUNK finds them."""
    # Printable text has no white space but " ". Where spaces are single, each
    # begins a chunk: cutting there takes about half the time.
    if text.isprintable() and "  " not in text:
        return text.replace(" ", "\n ").split("\n")
    return _CHUNK.findall(text)


class _Cache(dict):
    """Caches `compute(text)` for recent texts.

    Two generations: when one is full it replaces the older one, and texts that
    occur again move over. At most 2 x capacity values are held, and frequent
    words stay, whatever occurs between them.
    """

    def __init__(self, compute, capacity):
        super().__init__()
        self._compute = compute
        self._capacity = capacity
        self._previous = {}

    def __missing__(self, text):
        value = self._previous.get(text)
        if value is None:
            value = self._compute(text)
        if len(text) <= _MAX_CACHED_CHARACTERS:
            if len(self) >= self._capacity:
                self._previous = dict(self)
                self.clear()
            self[text] = value
        return value

    def __reduce__(self):
        # A pickled tokenizer has an empty cache.
        return _Cache, (self._compute, self._capacity)


def _merge(symbols, ranks, merged):
    """Merges the pair of lowest rank, the leftmost first, until none is left.

    Args:
      symbols: list of ids, which is changed.
      ranks: dict, (left id, right id) -> rank.
      merged: list, rank -> id of the two together.

    Returns:
      The merged symbols. Time grows with the square of their number.
    """
    rank_of, never = ranks.get, itertools.repeat(_NEVER)
    pairs = list(map(rank_of, zip(symbols, symbols[1:]), never))
    while pairs:
        rank = min(pairs)
        if rank == _NEVER:
            break
        i = pairs.index(rank)
        symbols[i] = symbol = merged[rank]
        del symbols[i + 1], pairs[i]
        if i > 0:
            pairs[i - 1] = rank_of((symbols[i - 1], symbol), _NEVER)
        if i < len(pairs):
            pairs[i] = rank_of((symbol, symbols[i + 1]), _NEVER)
    return symbols


def _merge_long(symbols, ranks, merged):
    """The same as `_merge`, in n log n steps.

    A heap holds the pairs by rank and position, a linked list the neighbours.
    A merged symbol is None, and None ends the list on both sides (index n and
    -1), because no pair with it has a rank.
    """
    count = len(symbols)
    symbols = symbols + [None]
    following = list(range(1, count + 1)) + [count]
    preceding = list(range(-1, count))
    heap = [
        (ranks[pair], i)
        for i, pair in enumerate(zip(symbols, symbols[1:]))
        if pair in ranks
    ]
    heapq.heapify(heap)
    while heap:
        rank, left = heapq.heappop(heap)
        right = following[left]
        if ranks.get((symbols[left], symbols[right])) != rank:
            continue  # One of the two has been merged meanwhile.
        symbols[left] = merged[rank]
        symbols[right] = None
        following[left] = following[right]
        preceding[following[right]] = left
        for start in (preceding[left], left):
            pair = symbols[start], symbols[following[start]]
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], start))
    return [symbol for symbol in symbols if symbol is not None]


def _token_bytes(token):
    """The bytes of a token: "Ġlow" -> b" low"."""
    try:
        return bytes(map(_BYTE_OF_SYMBOL.__getitem__, token))
    except KeyError:  # Not made of byte symbols: an entry that no merge makes.
        return token.encode("utf-8", "surrogatepass")


def _is_white_space(text):
    return not text.strip(_WHITE_SPACE)


def added_tokens(vocab_file: str) -> typing.Dict[str, int]:
    """{token: id} of the added_tokens.json beside a vocab.json, {} if none."""
    path = added_tokens_file(vocab_file)
    return files.read_json(path) if path else {}


def added_tokens_file(vocab_file: str) -> str:
    """The added_tokens.json beside a vocab.json, "" if there is none."""
    return files.beside(vocab_file, ADDED_TOKENS)


def _read_vocabulary(path):
    """({token: id}, added tokens): ids 0 to V - 1, each once.

    Added tokens are those that are matched in texts; special ones are not.
    """
    ids = files.read_json(path, "RoBERTa's vocab.json", _MAX_FILE_BYTES)
    added = added_tokens(path)
    matched = added.keys() - ids.keys() - {*SPECIAL_TOKENS, ""}
    ids.update(added)
    _check_ids(ids, path)
    _check_tokens(ids, path)
    return ids, matched


def _check_ids(ids, path):
    tokens = {}
    for token, i in ids.items():
        if type(i) is not int:  # isinstance would accept True for 1.
            problem = "is not a whole number"
        elif not 0 <= i < len(ids):
            problem = f"is not in 0 to {len(ids) - 1}"
        elif i in tokens:
            problem = f"is also that of {tokens[i]!r}"
        else:
            tokens[i] = token
            continue
        raise errors.UserError(
            f"{path}: the id of {token!r:.40}, {i!r:.40}, {problem}; expected "
            f"each id from 0 to {len(ids) - 1} once for {len(ids)} tokens"
        )


def _check_tokens(ids, path):
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise errors.UserError(
            f"{path}: the vocabulary lacks {', '.join(missing)}; expected "
            f"RoBERTa's, which has {', '.join(SPECIAL_TOKENS)} (GPT-2's has "
            "not)"
        )
    missing = [symbol for symbol in _SYMBOL_OF_BYTE if symbol not in ids]
    if missing:
        raise errors.UserError(
            f"{path}: the vocabulary lacks {len(missing)} of the 256 byte "
            f"symbols, such as {missing[0]!r}; expected a byte-level "
            "vocabulary, which has them all"
        )


def _read_merges(path, ids, vocab_file):
    """({(left id, right id): rank}, [id of the two together by rank])."""
    try:
        text = files.read_bytes(path, _MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path}: not UTF-8 at byte {error.start}; expected RoBERTa's "
            "merges.txt"
        ) from error
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    first = 1 if lines and lines[0].startswith("#version") else 0
    ranks, merged = {}, []
    for number, line in enumerate(lines[first:], first + 1):
        try:
            left, right = line.split(" ")
            pair = ids[left], ids[right]
            merged.append(ids[left + right])
        except (KeyError, ValueError):
            raise _wrong_merge(path, number, line, ids, vocab_file) from None
        if pair in ranks or "" in (left, right):
            raise _wrong_merge(path, number, line, ids, vocab_file)
        ranks[pair] = len(ranks)
    _check_all_are_made(merged, ids, path, vocab_file)
    return ranks, merged


def _wrong_merge(path, number, line, ids, vocab_file):
    """The UserError of a line of merges.txt that cannot be used."""
    where = f"{path}, line {number}: "
    pair = line.split(" ")
    if len(pair) != 2 or "" in pair:
        return errors.UserError(
            f"{where}{line!r:.40}; expected two tokens separated by one space"
        )
    for token in (*pair, "".join(pair)):
        if token not in ids:
            return errors.UserError(
                f"{where}the token {token!r:.40} is not in {vocab_file}; use "
                "the two files of one model"
            )
    return errors.UserError(
        f"{where}repeats the pair {line!r:.40}; expected each pair once"
    )


def _check_all_are_made(merged, ids, path, vocab_file):
    """Rejects merges that are only a part of those of the vocabulary."""
    made = {*merged, *map(ids.get, (*_SYMBOL_OF_BYTE, *SPECIAL_TOKENS))}
    unmade = len(ids) - len(made)
    if unmade > _MAX_UNMERGED * len(ids):
        raise errors.UserError(
            f"{path}: its {len(merged)} merges make all but {unmade} of the "
            f"{len(ids)} tokens of {vocab_file}; the file is truncated, or the "
            "two do not match: use the two files of one model"
        )
