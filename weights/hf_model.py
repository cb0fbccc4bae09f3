# SPDX-License-Identifier: Apache-2.0
"""The weights in a directory that Hugging Face's transformers saved."""

import os
import re
import typing

from absl import logging

from common import errors, files
from weights import lazy_tensors, safetensors_file, torch_file

Tensors = typing.Dict[str, lazy_tensors.Tensor]

# What saving a wrapped model (torch's DataParallel and compile, Lightning) puts
# before each name.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|model\.)+")
_BARE = ("embeddings.", "encoder.", "pooler.")
# Names of older versions. Source: transformers 4.57, modeling_utils.py.
_NORMS = (
    (re.compile(r"(?<=norm\.)gamma$", re.I), "weight"),
    (re.compile(r"(?<=norm\.)beta$", re.I), "bias"),
)


def load(directory: str) -> typing.Tuple[str, Tensors]:
    """The file of the weights, and the weights by name, not yet read.

    Reads model.safetensors or pytorch_model.bin, each also in parts with an
    index. Names are those that transformers gives today: without the prefix of
    a wrapped model, with that of a bare one, `weight` and `bias` of LayerNorm.

    Raises:
      errors.UserError: a file is damaged, or there is none.
    """
    path, tensors = _load(directory)
    names = {name: _current(name) for name in tensors}
    if len(set(names.values())) < len(names):
        raise errors.UserError(
            f"{path}: two of its names are the same without prefixes such as "
            "module.; save the model again"
        )
    old = [n for n, new in names.items() if new not in (n, f"roberta.{n}")]
    if old:
        logging.warning(
            "%s: %d names of a wrapped model or an older transformers are "
            "read as today's, such as %s as %s",
            path,
            len(old),
            lazy_tensors.quoted(old[0]),
            lazy_tensors.quoted(names[old[0]]),
        )
    return path, {names[name]: tensor for name, tensor in tensors.items()}


def _current(name):
    """Today's name of a weight."""
    name = _WRAPPERS.sub("", name)
    for pattern, kind in _NORMS:
        name = pattern.sub(kind, name)
    return f"roberta.{name}" if name.startswith(_BARE) else name


def _load(directory):
    for name, load_file in (
        ("model.safetensors", safetensors_file.load),
        ("pytorch_model.bin", _load_bin),
    ):
        path = os.path.join(directory, name)
        if files.is_file(path):
            return path, load_file(path)
        if os.path.isfile(path + ".index.json"):
            return path, load_parts(path + ".index.json", load_file)
    raise errors.UserError(
        f"{directory}: neither model.safetensors nor pytorch_model.bin, nor an "
        "index of their parts; pass the directory of a complete model with "
        "--input"
    )


def _load_bin(path):
    tensors = torch_file.load(path)
    if not isinstance(tensors, dict):
        raise errors.UserError(
            f"{path}: not a dict of weights; expected one that transformers "
            "saved"
        )
    if isinstance(tensors.get("model"), dict):
        raise errors.UserError(
            f"{path}: a checkpoint that fairseq saved; name it model.pt, and "
            "pass --from=fairseq"
        )
    return torch_file.named(path, tensors)


def load_parts(
    index_file: str, load_file: typing.Callable[[str], Tensors]
) -> Tensors:
    """The weights of all files that an index lists.

    Args:
      index_file: model.safetensors.index.json or the like.
      load_file: reads one of the files.

    Raises:
      errors.UserError: a file in another directory, or weights that are not
        where the index says.
    """
    places = files.read_json(index_file).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(place, str) for place in places.values()
    ):
        raise errors.UserError(
            f"{index_file}: no weight_map from names to files; copy it again"
        )
    tensors: Tensors = {}
    for place in sorted(set(places.values())):
        if (
            os.path.basename(place) != place
            or place in ("", ".", "..")
            or not place.isprintable()
        ):
            raise errors.UserError(
                f"{index_file}: the file name {lazy_tensors.quoted(place)} is "
                "not allowed; expected a file in its own directory"
            )
        part = load_file(os.path.join(os.path.dirname(index_file), place))
        expected = {name for name in places if places[name] == place}
        for name in sorted(expected.symmetric_difference(part)):
            raise errors.UserError(
                f"{index_file}: {place} "
                f"{'contains' if name in part else 'lacks'} "
                f"{lazy_tensors.quoted(name)}, the index says otherwise; copy "
                "the files again"
            )
        tensors.update(part)
    return tensors
