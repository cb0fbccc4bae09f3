# SPDX-License-Identifier: Apache-2.0
r"""Exports a trained model for another program, and compares it first.

    python export_model.py --model=output/squad_v1.1 \
      --format=saved_model --output=served/squad/1
    python export_model.py --model=output/squad_v1.1 \
      --format=frozen --batch_size=1 --output=squad.pb \
      --soc_version=Ascend310P3

Without --task it exports the model's own: that of task.json, else that of the
only head in the checkpoint, else the encoder. docs/export.md describes the
formats.
"""

import common.startup

import dataclasses
import functools
import logging
import os
import sys
import typing

import tensorflow.compat.v1 as tf
from absl import flags
from absl import logging as absl_logging

from common import command_line, errors
from inference import exporting, quantization, trained_model
from training import logs

# Flag: another one, and the value of it that it needs.
_NEEDS = {
    "batch_size": ("format", "frozen"),
    "max_seq_length": ("format", "frozen"),
    "num_choices": ("format", "frozen"),
    "soc_version": ("format", "frozen"),
    "top_k": ("format", "saved_model"),
    "quantize": ("format", "onnx"),
    "max_score_drop": ("quantize", "int8"),
}


@dataclasses.dataclass(frozen=True)
class ExportConfig(trained_model.ModelConfig):
    """Flags of this script."""

    task: str = command_line.flag(
        "",
        "Which head to export. Default: that of the model's own task.",
        choices=tuple(trained_model.HEADS),
        group=command_line.FIRST,
    )
    format: str = command_line.flag(
        "saved_model",
        "What to write; onnx needs scripts/setup.sh --extras=onnx.",
        choices=tuple(exporting.FORMATS),
    )
    output: str = command_line.flag(
        "", "File (frozen: .pb, onnx: .onnx) or directory to write."
    )
    quantize: str = command_line.flag(
        "",
        "onnx: int8 makes a file of a quarter of the size that a CPU computes "
        "two to four times as fast. Default: float32.",
        choices=("int8",),
        group=command_line.OTHER,
    )
    score_file: str = command_line.flag(
        "",
        "int8: the file to score on, SQuAD's JSON, a table with columns text, "
        "text_b and label, or words and labels in CoNLL's form.",
    )
    max_score_drop: float = command_line.flag(
        0.5,
        "int8: points of F1 (squad) or accuracy that the score on "
        "--score_file may fall by.",
        lower=0,
    )
    batch_size: int = command_line.flag(
        1,
        "frozen: sequences, or questions of multiple_choice, of a batch.",
        lower=1,
    )
    max_seq_length: typing.Optional[int] = command_line.flag(
        None,
        "frozen: tokens of a sequence; shorter ones are padded. Default: as "
        "in training, without task.json 384.",
        lower=4,
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
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == field.default:
                continue
            other, needed = _NEEDS.get(field.name, ("format", self.format))
            value = getattr(self, other)
            if value != needed:
                raise errors.UserError(
                    f"--{field.name}: is for --{other}={needed}, "
                    f"{f'not {value}' if value else 'which is not given'}; "
                    "remove the flag"
                )
        if bool(self.quantize) != bool(self.score_file):
            raise errors.UserError(
                "--quantize=int8 and --score_file: only one of them is given; "
                "pass both, with labelled data that training did not use to "
                "compare the scores, or neither for float32"
            )
        if self.format == "slim" and self.input_type != "int32":
            raise errors.UserError(
                f"--input_type={self.input_type}: --format=slim writes a "
                "checkpoint, which has no input; remove the flag"
            )


def own_head(model: trained_model.TrainedModel) -> str:
    """The head of the model's own task; logs which it is, and why."""
    reason = "the model's own task"
    if model.own_head == "encoder":
        parts = ", ".join(sorted(model.parts))
        reason = f"there is no task.json, and the checkpoint has {parts}"
    absl_logging.info("exporting %s: %s", model.own_head, reason)
    return model.own_head


def main(_: typing.List[str]) -> None:
    options = command_line.build(ExportConfig, flags.FLAGS)
    # They log each step, ONNX Runtime's quantization to the root logger.
    for name in ("", "tensorflow", "tf2onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.INFO)
    model = trained_model.find(options.model, options)
    head = options.task or own_head(model)
    finish = None
    if options.quantize:
        if head not in quantization.SCORES:
            raise errors.UserError(
                f"--quantize=int8: has no score for {head}, only for "
                f"{', '.join(quantization.SCORES)}; export it in float32"
            )
        if not os.path.isfile(options.score_file):
            raise errors.UserError(
                f"--score_file={options.score_file}: not a file; pass labelled "
                "data that training did not use"
            )
        finish = functools.partial(
            quantization.quantize,
            head=head,
            score_file=options.score_file,
            max_score_drop=options.max_score_drop,
        )
    shape = exporting.Shape()
    if options.format == "frozen":
        length = model.sequence_length(options.max_seq_length, head, 384)
        shape = exporting.Shape(options.batch_size, length, options.num_choices)
    with logs.waiting("exporting"):
        largest, signatures = exporting.export(
            model,
            head,
            options.format,
            options.output,
            shape=shape,
            input_type=tf.as_dtype(options.input_type),
            top_k=options.top_k,
            tolerance=options.tolerance,
            overwrite=options.overwrite,
            finish=finish,
        )
    stage = ", in float32 before --quantize" if options.quantize else ""
    sys.stdout.write(
        f"{options.output}: largest difference from the graph of training "
        f"{largest:.3g}{stage}\n"
    )
    if options.format == "frozen":
        sys.stdout.write(
            exporting.atc_command(
                options.output,
                signatures[head],
                options.soc_version or '"$SOC_VERSION"',
            )
            + "\n"
        )


def define_flags() -> None:
    command_line.define(ExportConfig)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
