# SPDX-License-Identifier: Apache-2.0
"""Exports a trained model for another program, and compares it first.

    python export_model.py --model=output/squad_v1.1 --task=squad \
      --format=saved_model --output=served/squad/1
    python export_model.py --model=output/squad_v1.1 --task=squad \
      --format=frozen --batch_size=1 --max_seq_length=384 \
      --output=squad.pb --soc_version=Ascend310P3

inference/exporting.py describes the formats.
"""

import dataclasses
import logging
import sys
import typing

import tensorflow.compat.v1 as tf
from absl import flags

from common import command_line, errors
from inference import exporting, trained_model
from training import preflight

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Flags of this script."""

    model: str = command_line.flag(
        "",
        "Output directory of a trainer, whose newest checkpoint is taken, "
        "or the prefix of a checkpoint.",
    )
    task: str = command_line.flag(
        "encoder", "Which head to export.", choices=tuple(trained_model.HEADS)
    )
    format: str = command_line.flag(
        "saved_model",
        "What to write; onnx needs requirements/onnx.txt.",
        choices=tuple(exporting.FORMATS),
    )
    output: str = command_line.flag(
        "", "File (frozen: .pb, onnx: .onnx) or directory to write."
    )
    bert_config_file: str = command_line.flag(
        "", "The model's config. Default: config.json beside the checkpoint."
    )
    vocab_file: str = command_line.flag(
        "", "vocab.json to copy. Default: the one beside the checkpoint."
    )
    merges_file: str = command_line.flag(
        "", "merges.txt to copy. Default: the one beside the checkpoint."
    )
    batch_size: int = command_line.flag(
        1,
        "frozen: sequences, or questions of multiple_choice, of a batch.",
        lower=1,
    )
    max_seq_length: int = command_line.flag(
        384, "frozen: tokens of a sequence; shorter ones are padded.", lower=4
    )
    num_choices: int = command_line.flag(
        4, "frozen: options of a question of multiple_choice.", lower=2
    )
    input_type: str = command_line.flag(
        "int32", "Type of input_ids.", choices=("int32", "int64")
    )
    top_k: int = command_line.flag(
        5,
        "saved_model of mlm: tokens that the signature mlm_top_k lists.",
        lower=1,
    )
    soc_version: str = command_line.flag(
        "",
        "frozen: the NPU's name for ATC, such as Ascend310P3; npu-smi "
        "info shows it. Default: the shell's $SOC_VERSION.",
    )
    tolerance: typing.Optional[float] = command_line.flag(
        None,
        "Largest difference from the outputs of training. Default: "
        "1e-5, logits of mlm 3e-5.",
        lower=0,
    )
    overwrite: bool = command_line.flag(False, "Replace an existing output.")

    def __post_init__(self):
        if not self.output:
            raise errors.UserError(
                "--output is not given; name a file or a directory"
            )
        for form, ending in (("frozen", ".pb"), ("onnx", ".onnx")):
            if self.format == form and not self.output.endswith(ending):
                raise errors.UserError(
                    f"--output={self.output}: expected a name that ends in "
                    f"{ending} for --format={form}"
                )
        if self.format == "slim" and self.input_type != "int32":
            raise errors.UserError(
                f"--input_type={self.input_type}: --format=slim writes a "
                "checkpoint, which has no input; remove the flag"
            )


def main(_: typing.List[str]) -> None:
    options = command_line.build(ExportConfig, FLAGS)
    for name in ("tensorflow", "tf2onnx"):  # they log each step
        logging.getLogger(name).setLevel(logging.ERROR)
    model = trained_model.find(
        options.model,
        bert_config_file=options.bert_config_file,
        vocab_file=options.vocab_file,
        merges_file=options.merges_file,
    )
    shape = exporting.Shape()
    if options.format == "frozen":
        preflight.check_length(
            options.max_seq_length, model.config, model.config_file
        )
        shape = exporting.Shape(
            options.batch_size, options.max_seq_length, options.num_choices
        )
    largest, signatures = exporting.export(
        model,
        options.task,
        options.format,
        options.output,
        shape=shape,
        input_type=tf.as_dtype(options.input_type),
        top_k=options.top_k,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    sys.stdout.write(
        f"{options.output}: largest difference from the graph of training "
        f"{largest:.3g}\n"
    )
    if options.format == "frozen":
        sys.stdout.write(
            exporting.atc_command(
                options.output,
                signatures[options.task],
                options.soc_version or '"$SOC_VERSION"',
            )
            + "\n"
        )


def define_flags() -> None:
    command_line.define(ExportConfig)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
