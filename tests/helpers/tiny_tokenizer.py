# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of 25 merges, small enough to merge by hand."""

import json
import pathlib
import typing

import tokenization

MERGES = [
    "Ġ l",
    "o w",
    "e r",
    "l ow",
    "Ġl ow",
    "n e",
    "ne w",
    "Ġ new",
    "s t",
    "e st",
    "er est",
    "low er",
    "' s",
    "1 2",
    "Ġ Ġ",
    "ĠĠ ĠĠ",
    "Ċ Ċ",
    "Ã ©",
    "ä ½",
    "Ġ ä",
    "a b",
    "ab ab",
    "a a",
    "m a",
    "! !",
]


def tiny_vocabulary() -> typing.Dict[str, int]:
    """{token: id}, with all bytes and special tokens."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + tokenization.byte_symbols()
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<mask>"]
    return {token: i for i, token in enumerate(tokens)}


def write(
    directory: pathlib.Path,
    vocabulary: typing.Union[None, str, dict] = None,
    merges: typing.Optional[str] = None,
) -> typing.Tuple[str, str]:
    """The paths of vocab.json and merges.txt; text is written as it is."""
    if vocabulary is None:
        vocabulary = tiny_vocabulary()
    if merges is None:
        merges = "#version: 0.2\n" + "\n".join(MERGES) + "\n"
    if not isinstance(vocabulary, str):
        vocabulary = json.dumps(vocabulary)
    vocab_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    vocab_file.write_bytes(vocabulary.encode("utf-8"))
    merges_file.write_bytes(merges.encode("utf-8"))
    return str(vocab_file), str(merges_file)
