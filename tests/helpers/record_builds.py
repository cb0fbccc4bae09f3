# SPDX-License-Identifier: Apache-2.0
"""What tests of built records share: text, the command, hashes."""

import pathlib
import sys
import typing

import numpy as np

from common import files
from helpers.paths import REPOSITORY
from helpers.word_vocabulary import WORDS


def make_text(documents: int, seed: int = 0) -> str:
    """Documents of random words."""
    state = np.random.RandomState(seed)
    return (
        "\n\n".join(
            "\n".join(
                " ".join(state.choice(WORDS, state.randint(1, 90)))
                for _ in range(state.randint(1, 6))
            )
            for _ in range(documents)
        )
        + "\n"
    )


def command(vocabulary: pathlib.Path, *arguments: str) -> typing.List[str]:
    """The command that builds records with a vocabulary."""
    return [
        sys.executable,
        str(REPOSITORY / "create_pretraining_data.py"),
        f"--vocab_file={vocabulary / 'vocab.json'}",
        f"--merges_file={vocabulary / 'merges.txt'}",
    ] + list(arguments)


def digests(folder: pathlib.Path) -> typing.Dict[str, str]:
    """{name: SHA-256} of the files in a folder."""
    return {
        path.name: files.sha256(str(path)) for path in sorted(folder.iterdir())
    }
