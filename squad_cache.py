# SPDX-License-Identifier: Apache-2.0
"""SQuAD features on disk, so that a second run need not tokenize again.

One file holds each context and question once: a SHA-256, then an .npz (numbers
only, nothing pickled) that is parsed only if it has that hash. Its name comes
from everything that the features depend on, so a file is never out of date:
after a change another one is written beside it.
"""

import hashlib
import io
import json
import os

import numpy as np
from absl import logging

import squad

# To be raised when the tokenizer, the windows or this file's layout change.
FORMAT_VERSION = 2

# Its ids differ between tokenizers of one vocabulary that treat case in
# different ways.
_CASES = "Ab ÇÉ"

_HASH_BYTES = hashlib.sha256().digest_size


def load_or_convert(
    cache_dir,
    examples,
    tokenizer,
    max_seq_length,
    doc_stride,
    max_query_length,
    is_training,
    *,
    tokenizer_files,
    num_workers=1,
    counts=None,
):
    """The features of all examples, from the cache when they are there.

    Args:
      cache_dir: a directory, made when missing, or None for no cache.
      examples, tokenizer, max_seq_length, doc_stride, max_query_length,
        is_training, num_workers, counts: see
        `squad.convert_examples_to_features`.
      tokenizer_files: the files that the tokenizer was made from.

    Returns:
      A list of `squad.Feature`. A cache file that cannot be read or written
      is a warning.

    Raises:
      errors.UserError: see `squad.convert_examples_to_features`.
      OSError: a tokenizer file cannot be read.
    """
    counts = {} if counts is None else counts
    settings = (max_seq_length, doc_stride, max_query_length, is_training)
    key, path = None, None
    if cache_dir:
        key = _key(examples, tokenizer, tokenizer_files, settings)
        path = os.path.join(str(cache_dir), f"features-{key[:20]}.cache")
        features = _load(path, key, counts)
        if features is not None:
            return features
    new_counts = {"truncated_questions": 0, "features": 0}
    features = list(
        squad.convert_examples_to_features(
            examples,
            tokenizer,
            *settings,
            num_workers=num_workers,
            counts=new_counts,
        )
    )
    _add(counts, new_counts)
    if cache_dir and features:
        _save(path, key, features, new_counts["truncated_questions"])
    return features


def _add(counts, new_counts):
    for name, number in new_counts.items():
        counts[name] = counts.get(name, 0) + number


def _key(examples, tokenizer, tokenizer_files, settings):
    """A hash of all that the features depend on, as hexadecimal digits."""
    digest = hashlib.sha256()
    digest.update(
        json.dumps(
            [FORMAT_VERSION, settings, tokenizer.encode(_CASES)]
        ).encode()
    )
    for path in tokenizer_files:
        with open(str(path), "rb") as stream:
            digest.update(hashlib.sha256(stream.read()).digest())
    context = None
    for example in examples:
        if example.context != context:
            context = example.context
            digest.update(json.dumps(context).encode())
        digest.update(
            json.dumps(
                [
                    example.question_id,
                    example.question,
                    example.answer_text,
                    example.answer_start,
                    example.is_impossible,
                ]
            ).encode()
        )
    return digest.hexdigest()


def _save(path, key, features, truncated_questions):
    """Writes the file whole or not at all; a failure is a warning."""
    arrays = dict(
        _to_arrays(features),
        key=np.array(key),
        truncated_questions=np.array(truncated_questions),
    )
    content = io.BytesIO()
    np.savez(content, **arrays)
    data = content.getvalue()
    temporary = f"{path}.{os.getpid()}.incomplete"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except OSError as error:
        logging.warning("features are not cached in %s: %s", path, error)
        if os.path.exists(temporary):
            os.remove(temporary)


def _to_arrays(features):
    """Features as arrays; documents and questions once each."""
    documents, prefixes, rows = {}, {}, []
    for feature in features:
        # All windows of a context share one object.
        number = documents.setdefault(
            id(feature.document), (len(documents), feature.document)
        )[0]
        prefixes[feature.example_index] = feature.prefix
        label = (-1, -1)
        if feature.start_position is not None:
            label = feature.start_position, feature.end_position
        rows.append(
            (
                feature.example_index,
                number,
                feature.doc_start,
                feature.doc_length,
            )
            + label
        )
    documents = [document for _, document in documents.values()]
    prefixes = [prefixes[index] for index in range(len(prefixes))]
    return {
        "features": np.array(rows, np.int32).reshape(-1, 6),
        "document_lengths": np.array([len(d.ids) for d in documents], np.int32),
        "documents": np.concatenate([np.stack(d) for d in documents], axis=1),
        "prefix_lengths": np.array([len(p) for p in prefixes], np.int32),
        "prefixes": np.concatenate(prefixes).astype(np.int32),
    }


def _load(path, key, counts):
    """The features in a file, or None when there is none that can be used."""
    try:
        with open(path, "rb") as stream:
            digest, data = stream.read(_HASH_BYTES), stream.read()
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("it is damaged")
        arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
        if str(arrays["key"]) != key:
            raise ValueError("it belongs to other data")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning(
            "features are made anew; %s cannot be used: %s", path, error
        )
        return None
    features = _from_arrays(arrays)
    truncated = int(arrays["truncated_questions"])
    _add(counts, {"truncated_questions": truncated, "features": len(features)})
    logging.info("features=%d from=%s", len(features), path)
    return features


def _from_arrays(arrays):
    ends = np.cumsum(arrays["document_lengths"])[:-1]
    documents = [
        squad.Document(*part)
        for part in np.split(arrays["documents"], ends, axis=1)
    ]
    flat, prefixes, first = arrays["prefixes"].tolist(), [], 0
    for length in arrays["prefix_lengths"].tolist():
        prefixes.append(flat[first : first + length])
        first += length
    features = []
    for unique_id, (
        index,
        number,
        doc_start,
        doc_length,
        start,
        end,
    ) in enumerate(arrays["features"].tolist()):
        label = (None, None) if start < 0 else (start, end)
        features.append(
            squad.Feature(
                unique_id,
                index,
                documents[number],
                prefixes[index],
                doc_start,
                doc_length,
                *label,
            )
        )
    return features
