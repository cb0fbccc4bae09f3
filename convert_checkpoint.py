#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Converts RoBERTa's weights between Hugging Face, fairseq and TensorFlow.

    python convert_checkpoint.py --from=hf --to=tf \
        --input=roberta-large --output=checkpoints/roberta_large.ckpt

Each tensor of the input is written or listed with the reason why not, of the
optimizer's slots their number. The output appears under its name when it is
complete.

  hf       a directory with config.json and model.safetensors or
           pytorch_model.bin, both also in parts with an index
  fairseq  model.pt (or its directory), with dict.txt beside it
  tf       the prefix of a checkpoint, with config.json beside it
"""

import common.startup

import sys

from absl import flags

from common import command_line, errors
from weights import conversion


def define_flags() -> None:
    """Declares the flags of this program."""
    command_line.define(conversion.ConvertConfig)
    for name, formats, text in (
        ("from", sorted(conversion.READERS), "Format of the input."),
        ("to", ["hf", "tf"], "Format of the output."),
    ):
        flags.DEFINE_enum(
            name, None, formats, text, module_name=command_line.FIRST
        )


def main(_):
    formats = [flags.FLAGS[name].value for name in ("from", "to")]
    if None in formats:
        raise errors.UserError(
            "--from or --to is not given; name the formats of the input and of "
            "the output"
        )
    conversion.convert(
        *formats,
        command_line.build(conversion.ConvertConfig, flags.FLAGS),
        lambda line: sys.stdout.write(line + "\n"),
    )


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
