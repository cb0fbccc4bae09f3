# SPDX-License-Identifier: Apache-2.0
"""Conversions of small models, and the files that they read and write."""

import json

import pytest
import safetensors.numpy

from common import errors
from helpers.paths import GOLDEN
from weights import conversion, tf_checkpoint


def convert(source, target, given, output, **options):
    """The lines of the report."""
    lines = []
    conversion.convert(
        source,
        target,
        conversion.ConvertConfig(
            input=str(given), output=str(output), **options
        ),
        lines.append,
    )
    return lines


def refused(source, target, given, output, **options):
    """The message of the UserError; no output may be left."""
    before = set(output.parent.rglob("*")) if output.parent.exists() else set()
    with pytest.raises(errors.UserError) as caught:
        convert(source, target, given, output, **options)
    if output.parent.exists():
        assert set(output.parent.rglob("*")) == before
    return str(caught.value)


def golden(name):
    """(config values, arrays) of a reference model."""
    values = json.loads((GOLDEN / name / "config.json").read_text())
    return values, safetensors.numpy.load_file(
        str(GOLDEN / name / "model.safetensors")
    )


def hf_model(directory, arrays, values):
    """Writes a model in Hugging Face's format."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    safetensors.numpy.save_file(arrays, str(directory / "model.safetensors"))
    return directory


def tf_arrays(prefix):
    return {
        name: tensor.read()
        for name, tensor in tf_checkpoint.load(str(prefix)).items()
    }


def hf_arrays(directory):
    return safetensors.numpy.load_file(str(directory / "model.safetensors"))


def assert_same(first, second):
    assert set(first) == set(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert array.shape == second[name].shape, name
        assert array.tobytes() == second[name].tobytes(), name
