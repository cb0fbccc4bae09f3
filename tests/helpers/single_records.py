# SPDX-License-Identifier: Apache-2.0
"""Single examples and manifests, which builds write many at once."""

import os
import typing

import numpy as np

from common import files, tf_example
from pretraining_data import manifest as manifests


def encode_example(features: typing.Mapping[str, typing.Any]) -> bytes:
    """The bytes of a tf.train.Example of 1-D arrays, {name: array}."""
    columns = {
        name: (np.asarray(values), [0, len(values)])
        for name, values in features.items()
    }
    return tf_example.encode_examples(columns)[0] if columns else b"\n\x00"


def write_manifest(
    directory: str, manifest: typing.Dict[str, typing.Any]
) -> None:
    """Writes manifest.json, with its "format_version"."""
    path = os.path.join(directory, manifests.MANIFEST)
    files.write_bytes(path, manifests.encode_manifest(manifest, path))
