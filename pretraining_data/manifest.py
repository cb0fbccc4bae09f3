# SPDX-License-Identifier: Apache-2.0
"""manifest.json: how the records beside it were built, and their counts."""

import base64
import binascii
import collections
import json
import os
import re
import reprlib
import typing

import numpy as np

from common import errors, files, tfrecord
from weights import model_directory

MANIFEST = "manifest.json"
# Of one file: the directory of its tokenizer has this suffix.
TOKENIZER_SUFFIX = ".tokenizer"
# Left by an interrupted build; of several tasks one each.
PROGRESS = "progress.json"
_TASK_PROGRESS = "task-{}." + PROGRESS
FORMAT_VERSION = 1

_MAX_BYTES = 8 << 20
_Manifest = typing.Dict[str, typing.Any]


# Sums of some thousand counts still fit 64 bits.
_COUNT_BITS = 48


def is_file_name(value: typing.Any) -> bool:
    """Whether a text names a file of the manifest's own directory."""
    return (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and value.isprintable()
        and not set(value) & set("/\\")
    )


_COUNT = (
    lambda value: type(value) is int and 0 <= value < 1 << _COUNT_BITS,
    f"a whole number >= 0, below 2**{_COUNT_BITS}",
)
_HASH = (
    lambda value: (
        isinstance(value, str) and bool(re.match(r"[0-9a-f]{64}\Z", value))
    ),
    "64 hexadecimal digits",
)
_PROBABILITY = (
    lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "a number from 0 to 1",
)
_TEXT = (lambda value: isinstance(value, str), "a text")
_BOOLEAN = (lambda value: isinstance(value, bool), "true or false")

# Key to (test, expectation). Other keys are allowed.
_MANIFEST_KEYS = {
    "format_version": (
        lambda value: type(value) is int and value == FORMAT_VERSION,
        FORMAT_VERSION,
    ),
    "masking": (
        lambda value: value in ("static", "dynamic"),
        "static or dynamic",
    ),
    "packing": _TEXT,
    "line_break": _TEXT,
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
    "replaced_lines": _COUNT,
    "skipped_lines": _COUNT,
    "shards": (lambda value: isinstance(value, list), "a list"),
}
_SHARD_KEYS = {
    "name": (is_file_name, "a file name without a directory"),
    "records": _COUNT,
    "bytes": _COUNT,
    "sha256": _HASH,
}
ID_KEYS = ("bos_id", "pad_id", "eos_id", "unk_id", "mask_id")
_REQUIRED_KEYS = (
    "format_version",
    "masking",
    "max_seq_length",
    "max_predictions_per_seq",
    "vocab_size",
    "shards",
) + ID_KEYS
# What directories of records that are read together must agree on.
_COMMON_KEYS = (
    "masking",
    "max_seq_length",
    "max_predictions_per_seq",
    "vocab_sha256",
    "merges_sha256",
    "do_lower_case",
    "mask_id",
    "word_starts",
)


def _check_manifest(manifest, path):
    """Raises errors.UserError unless a dict has the shape of a manifest."""
    try:
        _check_values(
            manifest,
            {
                key: rule
                for key, rule in _MANIFEST_KEYS.items()
                if key in manifest or key in _REQUIRED_KEYS
            },
        )
        for shard in manifest["shards"]:
            _check_shard(shard)
        _check_relations(manifest)
    except errors.UserError as error:
        raise errors.UserError(
            f"{path!r}: {error}; build the records again"
        ) from error


def _check_values(values, rules, suffix=""):
    for key, (is_right, expected) in rules.items():
        if not is_right(values.get(key)):
            raise errors.UserError(
                f"{key} {reprlib.repr(values.get(key))}{suffix}, expected "
                f"{expected}"
            )


def _check_shard(shard):
    if not isinstance(shard, dict):
        raise errors.UserError(
            f"shard {reprlib.repr(shard)}, expected a JSON object"
        )
    _check_values(
        shard, _SHARD_KEYS, f" of shard {reprlib.repr(shard.get('name'))}"
    )


def _check_relations(manifest):
    names = collections.Counter(shard["name"] for shard in manifest["shards"])
    for name, count in names.most_common(1):
        if count > 1:
            raise errors.UserError(
                f"shard {reprlib.repr(name)} twice, expected once"
            )
    for key in ID_KEYS:
        if manifest[key] >= manifest["vocab_size"]:
            raise errors.UserError(
                f"{key} {manifest[key]}, expected an id below vocab_size "
                f"{manifest['vocab_size']}"
            )
    if "word_starts" in manifest:
        decode_word_starts(manifest["word_starts"], manifest["vocab_size"])


def is_shard(value: typing.Any) -> bool:
    """Whether a value describes a file as `summarize_file` does."""
    try:
        _check_shard(value)
    except errors.UserError:
        return False
    return True


def load_manifest(directory: str) -> typing.Optional[_Manifest]:
    """The manifest of one directory, None when there is none.

    Raises:
      errors.UserError: it is malformed or names a file outside the directory.
    """
    path = os.path.join(directory, MANIFEST)
    if not os.path.exists(path):
        return None
    manifest = files.read_json(path, "the manifest of records", _MAX_BYTES)
    _check_manifest(manifest, path)
    return manifest


def task_progress(index: int) -> str:
    """The name of the progress file of one of several tasks."""
    return _TASK_PROGRESS.format(f"{index:05d}")


def progress_files(directory: str) -> typing.List[str]:
    """The progress files of an unfinished build of a directory of shards."""
    return [
        path
        for pattern in (PROGRESS, _TASK_PROGRESS.format("*"))
        for path in files.matching(directory, pattern)
    ]


def check_finished(path: str) -> None:
    """Raises errors.UserError if a file of records is of an unfinished build.

    Such a build has written a progress.json and not yet the manifest.json.
    """
    directory = os.path.dirname(path)
    if os.path.exists(os.path.join(directory, MANIFEST)):
        return
    progress = progress_files(directory)
    progress += filter(os.path.exists, [f"{path}.{PROGRESS}"])
    if progress:
        raise errors.UserError(
            f"the build of {path!r} was interrupted: {progress[0]!r} exists, "
            f"but no {MANIFEST}; finish it by the same "
            "create_pretraining_data.py command as before, or build again "
            "with --overwrite"
        )


def check_complete(directory: str) -> None:
    """Raises errors.UserError if a file that the manifest lists is missing."""
    manifest = load_manifest(directory)
    for shard in manifest["shards"] if manifest is not None else []:
        if not os.path.isfile(os.path.join(directory, shard["name"])):
            raise errors.UserError(
                f"{os.path.join(directory, MANIFEST)!r} lists "
                f"{shard['name']!r}, which is missing; copy the file again "
                "or build the records again"
            )


def read_manifest(paths: typing.Sequence[str]) -> typing.Optional[_Manifest]:
    """The settings and counts of records, from the manifest.json beside them.

    Args:
      paths: files as `expand_inputs` gives them.

    Returns:
      The manifest as a dict, None when there is none that lists one of the
      files. With files from several directories: the first one's settings, all
      their shards. Every shard gets a "path".

    Raises:
      errors.UserError: a manifest is malformed, names a file outside its
        directory, or two of them differ in what must be equal.
    """
    given = set(map(os.path.realpath, paths))
    merged, merged_path = None, None
    for directory in dict.fromkeys(map(os.path.dirname, paths)):
        path = os.path.join(directory, MANIFEST)
        manifest = load_manifest(directory)
        if manifest is None:
            continue
        for shard in manifest["shards"]:
            shard["path"] = os.path.join(directory, shard["name"])
        listed = {os.path.realpath(s["path"]) for s in manifest["shards"]}
        if not given & listed:
            continue
        if merged is None:
            merged, merged_path = manifest, path
            continue
        _check_agreement(merged, merged_path, manifest, path)
        merged["shards"] += manifest["shards"]
    return merged


def find_tokenizer(
    paths: typing.Sequence[str], others: typing.Iterable[str] = ()
) -> typing.Optional[model_directory.TokenizerFiles]:
    """The tokenizer that built records.

    Args:
      paths: of the records.
      others: directories to search after that of the records.

    Returns:
      The first files that have the hashes in manifest.json, if there is one;
      None if no directory has them.
    """
    built = read_manifest(paths) or {}
    beside = [paths[0] + TOKENIZER_SUFFIX, os.path.dirname(paths[0])]
    for directory in (*beside, *others):
        tokenizer = model_directory.find_tokenizer(directory)
        if tokenizer and all(
            built.get(key, actual) == actual
            for key, actual in tokenizer_hashes(tokenizer).items()
        ):
            return tokenizer._replace(
                do_lower_case=built.get(
                    "do_lower_case", tokenizer.do_lower_case
                )
            )
    return None


def tokenizer_hashes(
    tokenizer: model_directory.TokenizerFiles,
) -> typing.Dict[str, str]:
    """What manifest.json says of a tokenizer's files."""
    return {
        "vocab_sha256": files.sha256(tokenizer.vocab_file),
        "merges_sha256": files.sha256(tokenizer.merges_file),
    }


def _check_agreement(first, first_path, second, second_path):
    for key in _COMMON_KEYS:
        if first.get(key) != second.get(key):
            raise errors.UserError(
                f"{key} is {reprlib.repr(first.get(key))} in {first_path!r} "
                f"and {reprlib.repr(second.get(key))} in {second_path!r}; use "
                "records that were built with the same settings"
            )


def counts_of(
    paths: typing.Iterable[str], manifest: typing.Optional[_Manifest]
) -> typing.List[typing.Optional[int]]:
    """Records of each file for `ShardedRecords`, None where it is not known.

    Args:
      paths: files.
      manifest: from `read_manifest`, or None.
    """
    shards = manifest["shards"] if manifest is not None else []
    known = {os.path.realpath(s["path"]): s["records"] for s in shards}
    return [known.get(os.path.realpath(path)) for path in paths]


def description(
    paths: typing.Sequence[str], manifest: typing.Optional[_Manifest]
) -> typing.Dict[str, typing.Any]:
    """What identifies records, the same wherever they are.

    Args:
      paths: files.
      manifest: from `read_manifest`, or None.

    Returns:
      {"records": SHA-256 in hexadecimal of the manifest, else of the sizes of
      the files, and of the names of the files}, and for messages the settings
      of the manifest and the SHA-256, else the size, of each file.
    """
    names = [os.path.basename(path) for path in paths]
    sizes = [os.path.getsize(path) for path in paths]
    values: typing.Any = sizes
    parts: typing.Dict[str, typing.Any] = {
        f"records file {n}": size for n, size in zip(names, sizes)
    }
    if manifest is not None:
        shards = [dict(shard, path=None) for shard in manifest["shards"]]
        values = dict(manifest, shards=shards)
        parts = {
            f"records' {name}": value
            for name, value in manifest.items()
            if name not in ("shards", "word_starts")
        }
        for shard in shards:
            parts[f"records file {shard['name']}"] = shard.get("sha256")
    return {"records": files.json_sha256([names, values]), **parts}


def encode_manifest(manifest: _Manifest, path: str) -> bytes:
    """The bytes of manifest.json, with "format_version".

    Raises:
      errors.UserError: `load_manifest` would reject it.
    """
    manifest = dict(manifest, format_version=FORMAT_VERSION)
    _check_manifest(manifest, path)
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("utf-8")


def encode_word_starts(table: np.ndarray) -> str:
    """A bool [V] table as the text in manifest.json."""
    return base64.b64encode(np.packbits(table).tobytes()).decode("ascii")


def decode_word_starts(text: str, vocab_size: int) -> np.ndarray:
    """The bool [V] table from the text in manifest.json.

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
            "bits, one per entry of the vocabulary; build the records again"
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    return bits[:vocab_size].astype(bool)


def summarize_file(path: str) -> typing.Dict[str, typing.Any]:
    """The name, records, bytes and sha256 of a file for manifest.json.

    Raises:
      RecordError: a frame is truncated or its length is corrupted; the data
        is covered by the sha256 alone.
    """
    with files.opened(path) as stream:
        offsets, error = tfrecord.index_frames(stream.fileno(), path)
    if error is not None:
        raise error
    return {
        "name": os.path.basename(path),
        "records": len(offsets) - 1,
        "bytes": os.path.getsize(path),
        "sha256": files.sha256(path),
    }
