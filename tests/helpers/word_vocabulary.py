# SPDX-License-Identifier: Apache-2.0
"""A vocabulary in which each of some words is one token."""

import collections
import json

import tokenization

WORDS = "the river runs past seven towns and Ölsk is older than all".split()


def write(folder):
    """Writes vocab.json and merges.txt that make WORDS tokens."""
    symbols = tokenization.byte_symbols()
    pairs = collections.OrderedDict()
    for word in WORDS:
        parts = [symbols[byte] for byte in (" " + word).encode("utf-8")]
        for end in range(1, len(parts)):
            pairs["".join(parts[:end]), parts[end]] = None
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + symbols
    tokens += [left + right for left, right in pairs] + ["<mask>"]
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)})
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), "utf-8"
    )
