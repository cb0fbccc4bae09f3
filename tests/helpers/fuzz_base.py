# SPDX-License-Identifier: Apache-2.0
"""What the readers of tests/fuzz.py are made of."""

import io
import json
import typing
import warnings
import zipfile

from helpers import mutations


class Reader(typing.NamedTuple):
    """One reader and its files.

    Attributes:
      sound: files that are not damaged.
      make: function of a random.Random giving a damaged one.
      read: takes a file as a script would, to its last byte.
    """

    sound: list
    make: typing.Callable
    read: typing.Callable


def of_json(values, read):
    """The Reader of JSON texts like these."""
    texts = [json.dumps(value).encode() for value in values]
    return Reader(
        texts,
        lambda random: mutations.of_json(random.choice(texts), random),
        read,
    )


def of_bytes(texts, read, tokens=()):
    """The Reader of files like these, without regard to their format."""
    return Reader(
        texts,
        lambda random: mutations.of_bytes(random.choice(texts), random, tokens),
        read,
    )


def zipped(members, compression=zipfile.ZIP_STORED, repeated=None):
    """A .zip file; members of `repeated` are in it a second time."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", compression) as archive:
        for name, data in [*members.items(), *(repeated or {}).items()]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a repeated name
                archive.writestr(name, data)
    return result.getvalue()
