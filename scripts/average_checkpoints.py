#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Averages the weights of several TensorFlow checkpoints of one model.

    python scripts/average_checkpoints.py output --last=5 --output=averaged
    python scripts/average_checkpoints.py seed-1/model.ckpt-900 \
        seed-2/model.ckpt-900 --output=averaged

Average checkpoints of one run, or of runs that started from the same weights,
head included; networks that were initialized differently do not average well.
The output is a model directory: predict.py --model and --init_checkpoint take
it.

Source: Vaswani et al. 2017, section 6.1 (the last checkpoints of a run);
Wortsman et al. 2022, arXiv:2203.05482 (several fine-tuned models).
"""

import functools
import os
import pathlib
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

import numpy as np

from common import errors, files
from scripts import script_parser
from weights import lazy_tensors, model_directory, tf_checkpoint
from weights import names as weight_names

_STEP = "global_step"


def checkpoints_of(path: str, last: int) -> typing.List[str]:
    """The prefix itself, or the newest of a directory."""
    if os.path.isfile(tf_checkpoint.index_file(path)):
        return [path]
    if not os.path.isdir(path):
        raise errors.UserError(
            f"{path}: neither a directory nor the prefix of a checkpoint; "
            "expected a prefix such as DIR/model.ckpt-1000, or the "
            "--output_dir of a run"
        )
    return tf_checkpoint.in_directory(path)[-last:]


def averaged(
    prefixes: typing.Sequence[str],
) -> typing.Dict[str, lazy_tensors.Tensor]:
    """The mean of each weight, in float64, and the highest global step.

    Raises:
      errors.UserError: the checkpoints do not have the same weights.
    """
    models = [tf_checkpoint.load(prefix) for prefix in prefixes]
    weights = [
        {
            name: lazy_tensors.float32(tensor)
            for name, tensor in model.items()
            if not weight_names.training_state(name, model)
        }
        for model in models
    ]
    shapes = [{n: t.shape for n, t in model.items()} for model in weights]
    for prefix, other in zip(prefixes, shapes):
        for name, _ in other.items() ^ shapes[0].items():
            raise errors.UserError(
                f"{prefix}: {name} has shape {other.get(name)}, in "
                f"{prefixes[0]} {shapes[0].get(name)}; average checkpoints "
                "of one model"
            )
    result = {
        name: tensor._replace(
            read=functools.partial(_mean, [model[name] for model in weights])
        )
        for name, tensor in weights[0].items()
    }
    steps = [model[_STEP] for model in models if _STEP in model]
    for step in sorted(steps, key=lambda step: int(step.read()))[-1:]:
        result[_STEP] = step
    return result


def _mean(tensors):
    total = np.zeros(tensors[0].shape)
    for tensor in tensors:
        total += tensor.read()
    return (total / len(tensors)).astype(np.float32)


def main(arguments) -> None:
    prefixes = [
        prefix
        for path in arguments.checkpoints
        for prefix in checkpoints_of(path, arguments.last)
    ]
    if len(prefixes) < 2:
        raise errors.UserError(
            f"{' '.join(arguments.checkpoints)}: fewer than two checkpoints; "
            "pass prefixes, or the --output_dir of a run"
        )
    directories = [os.path.dirname(prefix) or "." for prefix in prefixes]
    model_directory.check_same_models(directories)
    tensors = averaged(prefixes)
    step = int(tensors[_STEP].read()) if _STEP in tensors else 0
    prefix = os.path.join(arguments.output, f"model.ckpt-{step}")
    copies = {
        os.path.join(arguments.output, name): os.path.join(
            directories[-1], name
        )
        for name in model_directory.FILES
        if os.path.isfile(os.path.join(directories[-1], name))
    }
    data = tf_checkpoint.data_file(prefix)
    index = tf_checkpoint.index_file(prefix)
    with files.NewFiles([data, *copies, index], overwrite=False) as output:
        for path, source in copies.items():
            output.write(path, files.read_bytes(source))
        with output.open(data) as stream:
            output.write(index, tf_checkpoint.write_data(stream, tensors))
    print(f"{prefix}: the mean of {', '.join(prefixes)}")


if __name__ == "__main__":
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "checkpoints", nargs="+", help="prefixes, or directories of runs"
    )
    parser.add_argument(
        "--last", type=int, default=5, help="newest of a directory (default 5)"
    )
    parser.add_argument("--output", required=True, help="a new directory")
    parser.run(main)
