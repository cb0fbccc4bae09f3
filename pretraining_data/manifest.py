# SPDX-License-Identifier: Apache-2.0
"""manifest.json: how the records beside it were built, and what they hold."""

import base64
import binascii
import collections
import hashlib
import json
import os
import reprlib

import numpy as np

from common import errors, files, tfrecord

MANIFEST = "manifest.json"
# What a build leaves where it was interrupted.
PROGRESS = "progress.json"
FORMAT_VERSION = 1

_MAX_BYTES = 8 << 20


# Sums of some thousand counts still fit 64 bits.
_COUNT_BITS = 48


def _is_count(value):
    return type(value) is int and 0 <= value < 1 << _COUNT_BITS


def _is_hash(value):
    return (
        isinstance(value, str)
        and len(value) == 64
        and set(value) <= set("0123456789abcdef")
    )


def _is_file_name(value):
    """Whether a text names a file of the manifest's own directory."""
    return (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and value.isprintable()
        and not set(value) & set("/\\")
    )


def _is_probability(value):
    return type(value) in (int, float) and 0 <= value <= 1


def _is_version(value):
    return type(value) is int and value == FORMAT_VERSION


def _short(value):
    """The value for a message, cut when it is long."""
    return reprlib.repr(value)


_COUNT = (_is_count, f"a whole number >= 0, below 2**{_COUNT_BITS}")
_HASH = (_is_hash, "64 hexadecimal digits")
_PROBABILITY = (_is_probability, "a number from 0 to 1")
_TEXT = (lambda value: isinstance(value, str), "a text")
_BOOLEAN = (lambda value: isinstance(value, bool), "true or false")

# Key to (test, what is expected). Other keys may stand beside them.
_MANIFEST_KEYS = {
    "masking": (
        lambda value: value in ("static", "dynamic"),
        "static or dynamic",
    ),
    "packing": _TEXT,
    "word_starts": _TEXT,
    "do_whole_word_mask": _BOOLEAN,
    "do_lower_case": _BOOLEAN,
    "masked_lm_prob": _PROBABILITY,
    "short_seq_prob": _PROBABILITY,
    "random_seed": (lambda value: type(value) is int, "a whole number"),
    "vocab_sha256": _HASH,
    "merges_sha256": _HASH,
    "max_seq_length": _COUNT,
    "max_predictions_per_seq": _COUNT,
    "dupe_factor": _COUNT,
    "vocab_size": _COUNT,
    "bos_id": _COUNT,
    "pad_id": _COUNT,
    "eos_id": _COUNT,
    "unk_id": _COUNT,
    "mask_id": _COUNT,
    "documents": _COUNT,
    "tokens": _COUNT,
    "sequences": _COUNT,
    "shards": (lambda value: isinstance(value, list), "a list"),
}
_SHARD_KEYS = {"records": _COUNT, "bytes": _COUNT, "sha256": _HASH}
_ID_KEYS = ("bos_id", "pad_id", "eos_id", "unk_id", "mask_id")
_REQUIRED_KEYS = (
    "masking",
    "max_seq_length",
    "max_predictions_per_seq",
    "vocab_size",
    "shards",
) + _ID_KEYS
# What two directories of records must agree on to be fed together.
_COMMON_KEYS = (
    "masking",
    "max_seq_length",
    "max_predictions_per_seq",
    "vocab_sha256",
    "merges_sha256",
    "mask_id",
    "word_starts",
)


def _check_manifest(manifest, where):
    """Raises errors.UserError unless a parsed manifest has the right shape."""

    def refuse(found, expected):
        raise errors.UserError(
            f"{where}: found {found}, expected {expected}; build the records "
            "again"
        )

    if not isinstance(manifest, dict):
        refuse(f"a {type(manifest).__name__}", "a JSON object")
    if not _is_version(manifest.get("format_version")):
        refuse(
            "format_version " + _short(manifest.get("format_version")),
            FORMAT_VERSION,
        )
    for key in _REQUIRED_KEYS:
        if key not in manifest:
            refuse("no " + key, "one")
    for key, (is_right, expected) in _MANIFEST_KEYS.items():
        if key in manifest and not is_right(manifest[key]):
            refuse(f"{key} {_short(manifest[key])}", expected)
    names = set()
    for shard in manifest["shards"]:
        _check_shard(shard, refuse)
        if shard["name"] in names:
            refuse(f"shard {_short(shard['name'])} twice", "it once")
        names.add(shard["name"])
    for key in _ID_KEYS:
        if manifest[key] >= manifest["vocab_size"]:
            refuse(
                f"{key} {manifest[key]}",
                f"an id below vocab_size {manifest['vocab_size']}",
            )
    if "word_starts" in manifest:
        decode_word_starts(manifest["word_starts"], manifest["vocab_size"])


def _check_shard(shard, refuse):
    if not isinstance(shard, dict):
        refuse("shard " + _short(shard), "a JSON object")
    name = shard.get("name")
    if not _is_file_name(name):
        refuse("shard name " + _short(name), "a file name without a directory")
    for key, (is_right, expected) in _SHARD_KEYS.items():
        if not is_right(shard.get(key)):
            refuse(
                f"{key} {_short(shard.get(key))} of shard {_short(name)}",
                expected,
            )


def is_shard(value):
    """Whether a value describes a file as `summarize_file` does."""

    def refuse(found, expected):
        raise errors.UserError(f"{found}, not {expected}")

    try:
        _check_shard(value, refuse)
    except errors.UserError:
        return False
    return True


def load_manifest(directory):
    """The manifest of one directory, None when there is none.

    Raises:
      errors.UserError: it is malformed or names a file outside the directory.
    """
    path = os.path.join(directory, MANIFEST)
    if not os.path.exists(path):
        return None
    with open(path, "rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise errors.UserError(
            f"{path!r} is larger than {_MAX_BYTES} bytes; build the records "
            "again"
        )
    try:
        manifest = files.loads(data.decode("utf-8"))
    except ValueError as error:
        raise errors.UserError(
            f"{path!r} is not JSON, or too large a number or too deep "
            f"({_short(str(error))}); build the records again"
        ) from error
    _check_manifest(manifest, repr(path))
    return manifest


def check_finished(path):
    """Raises errors.UserError if a file of records is of an unfinished build.

    That has written a progress.json and not yet the manifest.json.
    """
    directory = os.path.dirname(path)
    if os.path.exists(os.path.join(directory, MANIFEST)):
        return
    for progress in (os.path.join(directory, PROGRESS), path + "." + PROGRESS):
        if os.path.exists(progress):
            raise errors.UserError(
                f"{path!r} is of a build that was interrupted: {progress!r} is "
                f"there, and no {MANIFEST}; finish it by the same "
                "create_pretraining_data.py command as before, or build anew "
                "with --overwrite"
            )


def check_complete(directory):
    """Raises errors.UserError if a file that the manifest lists is missing."""
    manifest = load_manifest(directory)
    for shard in manifest["shards"] if manifest is not None else []:
        if not os.path.isfile(os.path.join(directory, shard["name"])):
            raise errors.UserError(
                f"{os.path.join(directory, MANIFEST)!r} lists "
                f"{shard['name']!r}, which is not there; copy the file again "
                "or build the records again"
            )


def read_manifest(inputs):
    """The settings and counts of records, from the manifest.json beside them.

    Args:
      inputs: a directory, or files as `expand_inputs` gives them.

    Returns:
      The manifest as a dict, None when there is none that lists one of the
      files. With files from several directories: the first one's settings, all
      their shards. Every shard gets a "path".

    Raises:
      errors.UserError: a manifest is malformed, names a file outside its
        directory, or two of them differ in what must be equal.
    """
    # A directory is taken whole; of files, a manifest must list at least one.
    if isinstance(inputs, str):
        directories, wanted = [inputs], None
    else:
        directories = list(
            collections.OrderedDict.fromkeys(
                os.path.dirname(path) for path in inputs
            )
        )
        wanted = {os.path.realpath(path) for path in inputs}
    merged, merged_path = None, None
    for directory in directories:
        path = os.path.join(directory, MANIFEST)
        manifest = load_manifest(directory)
        if manifest is None:
            continue
        for shard in manifest["shards"]:
            shard["path"] = os.path.join(directory, shard["name"])
        listed = {os.path.realpath(s["path"]) for s in manifest["shards"]}
        if wanted is not None and not wanted & listed:
            continue
        if merged is None:
            merged, merged_path = manifest, path
            continue
        _check_agreement(merged, merged_path, manifest, path)
        merged["shards"] += manifest["shards"]
    return merged


def _check_agreement(first, first_path, second, second_path):
    for key in _COMMON_KEYS:
        if first.get(key) != second.get(key):
            raise errors.UserError(
                f"{key} is {_short(first.get(key))} in {first_path!r} and "
                f"{_short(second.get(key))} in {second_path!r}; records that "
                "are fed together must be built alike"
            )


def counts_of(paths, manifest):
    """Records of each file for `ShardedRecords`, None where it is not known.

    Args:
      paths: files.
      manifest: from `read_manifest`, or None.
    """
    shards = manifest["shards"] if manifest is not None else []
    known = {os.path.realpath(s["path"]): s["records"] for s in shards}
    return [known.get(os.path.realpath(path)) for path in paths]


def write_manifest(directory, manifest):
    """Writes manifest.json; it has its name only when it is complete.

    Args:
      directory: where the shards are.
      manifest: a dict; "format_version" is added.

    Raises:
      errors.UserError: `read_manifest` would refuse it.
    """
    path = os.path.join(directory, MANIFEST)
    files.write_bytes(path, encode_manifest(manifest, path))


def encode_manifest(manifest, path):
    """The bytes of manifest.json; arguments and errors as write_manifest."""
    manifest = dict(manifest, format_version=FORMAT_VERSION)
    _check_manifest(manifest, repr(path))
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("utf-8")


def encode_word_starts(table):
    """A bool [V] table as the text that stands in manifest.json."""
    return base64.b64encode(np.packbits(table).tobytes()).decode("ascii")


def decode_word_starts(text, vocab_size):
    """The bool [V] table from the text that stands in manifest.json.

    Raises:
      errors.UserError: the text is not the base64 of so many bits.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != (vocab_size + 7) // 8:
        raise errors.UserError(
            f"word_starts in {MANIFEST} is not the base64 of {vocab_size} "
            "bits, one an entry of the vocabulary; build the records again"
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    return bits[:vocab_size].astype(bool)


def summarize_file(path):
    """What manifest.json says of a file: name, records, bytes, sha256.

    Raises:
      RecordError: a frame is truncated or its length is corrupted; the data
        is covered by the sha256 alone.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        offsets, error = tfrecord.index_frames(stream.fileno(), path)
        if error is not None:
            raise error
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return {
        "name": os.path.basename(path),
        "records": len(offsets) - 1,
        "bytes": size,
        "sha256": digest.hexdigest(),
    }
