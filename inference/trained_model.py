# SPDX-License-Identifier: Apache-2.0
"""A trained model: its files.

The trainers write config.json, task.json, checkpoints and the tokenizer's files
to one directory; `find` takes it, the prefix of a checkpoint, or the file of an
ONNX model with those files beside it, which needs no TensorFlow.
"""

import dataclasses
import os
import typing

from absl import logging

import configuration
from common import command_line, errors, files
from tasks import classification
from weights import conversion, lazy_tensors, model_directory, tf_checkpoint
from weights import names as weight_names

# A head's name for users: its key in weight_names.PARTS.
HEADS = {
    "mlm": "masked_lm",
    "squad": "question_answering",
    "classification": "classification",
    "multiple_choice": "multiple_choice",
    "tagging": "tagging",
    "encoder": weight_names.BASE,
}
_HEAD_OF = {part: head for head, part in HEADS.items()}
# How the name of an ONNX file ends.
ONNX = ".onnx"
# The variable whose size is the number of a head's labels.
_LABEL_BIAS = {
    "classification": "cls/classification/out_proj/bias",
    "tagging": "cls/tagging/bias",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Flags of every script that loads a trained model."""

    model: str = command_line.flag(
        "",
        "Output directory of a trainer, whose newest checkpoint is taken, "
        "or the prefix of a checkpoint; predict.py and serve.py also take the "
        ".onnx file of export_model.py.",
        group=command_line.FIRST,
    )
    bert_config_file: str = command_line.flag(
        "",
        "The model's config. Default: config.json beside the checkpoint.",
        group=command_line.MODEL,
    )
    vocab_file: str = command_line.flag(
        "",
        "The tokenizer's vocab.json. Default: the one beside the checkpoint.",
    )
    merges_file: str = command_line.flag(
        "",
        "The tokenizer's merges.txt. Default: the one beside the checkpoint.",
    )
    do_lower_case: typing.Optional[bool] = command_line.flag(
        None,
        "Lower-case all text. Default: as in training, if "
        "tokenizer_config.json beside the checkpoint says so, else False.",
    )
    allow_other_tokenizer: bool = command_line.flag(
        False,
        "Continue, with a warning, where vocabulary, merges or lower-casing "
        "are not those of training.",
    )

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime computes the model, without TensorFlow."""
        return self.model.endswith(ONNX)


class TrainedModel(typing.NamedTuple):
    """The files of a model, as `find` returns them."""

    checkpoint: str  # prefix, or ONNX file
    config: configuration.RobertaConfig
    config_file: str
    values: dict  # all of config.json
    tensors: typing.Dict[str, lazy_tensors.Tensor]  # of the checkpoint
    parts: typing.FrozenSet[str]  # keys of weight_names.PARTS
    tokenizer: model_directory.TokenizerFiles  # "" for a missing file
    vocab_size: int  # entries of the vocabulary, at most config.vocab_size
    task: model_directory.Task  # task.json; without it, of the only head

    @property
    def directory(self) -> str:
        return os.path.dirname(self.checkpoint) or "."

    @property
    def own_head(self) -> str:
        """The key of HEADS of the task in `task`, else "encoder"."""
        return _HEAD_OF.get(self.task.task, "encoder")

    def trained_for(self, head: str) -> model_directory.Task:
        """`task` if it is about this head, else an empty one."""
        return self.task if head == self.own_head else model_directory.Task()

    def sequence_length(
        self, flag: typing.Optional[int], head: str, default: int
    ) -> int:
        """Tokens of a sequence: the flag, else as in training, else default.

        Raises:
          errors.UserError: the model has fewer positions than the flag or
            task.json requests.
        """
        length = flag or self.trained_for(head).max_seq_length
        if length is None:
            return min(default, self.config.max_sequence_length)
        model_directory.check_length(length, self.config, self.config_file)
        return length

    def num_labels(self, head: str) -> int:
        """Labels of a classification or tagging head."""
        return self.tensors[_LABEL_BIAS[head]].shape[0]

    def labels(self, count: int) -> typing.List[str]:
        """Names of labels, of task.json or config.json: list [count]."""
        if self.task.labels and len(self.task.labels) == count:
            return self.task.labels
        names = self.values.get("id2label")
        names = names if isinstance(names, dict) else {}
        return [str(names.get(str(i), f"LABEL_{i}")) for i in range(count)]

    def check_head(self, head: str) -> None:
        """Rejects a checkpoint without a head.

        Raises:
          errors.UserError: lists the heads of the checkpoint.
        """
        if HEADS[head] not in self.parts:
            weight_names.check_fine_tuned(
                self.checkpoint, HEADS[head], self.parts
            )
            raise errors.UserError(
                f"{self.checkpoint} has no {HEADS[head]} head, only "
                f"{', '.join(sorted(self.parts))}; use a checkpoint that was "
                "trained for it"
            )


def find(
    path: str,
    flags: ModelConfig = ModelConfig(),
    onnx_parts: typing.Optional[typing.Iterable[str]] = None,
) -> TrainedModel:
    """The model in a directory, or that of a checkpoint's prefix.

    Args:
      path: output_dir of a trainer, whose newest checkpoint is taken, or a
        prefix such as DIR/model.ckpt-1000.
      flags: files that are not beside the checkpoint.
      onnx_parts: path is an ONNX file with these weight_names.PARTS.

    Raises:
      errors.UserError: there is no such checkpoint, it is damaged, it does not
        fit its config or its vocabulary, or the tokenizer is not that of
        training.
    """
    prefix = path if onnx_parts else _checkpoint(path)
    directory = os.path.dirname(prefix)
    beside = os.path.join(directory, model_directory.CONFIG)
    config_file = flags.bert_config_file or beside
    if not files.is_file(config_file):
        raise errors.UserError(
            f"--model={path}: {config_file} does not exist; pass the model's "
            "config as --bert_config_file"
        )
    config = configuration.RobertaConfig.from_json_file(config_file)
    tensors, parts = (
        ({}, frozenset(onnx_parts))
        if onnx_parts
        else _weights(prefix, config, config_file)
    )
    tokenizer = _tokenizer(prefix, flags)
    vocab_size = config.vocab_size
    if tokenizer.vocab_file:
        vocab_size = len(
            model_directory.check_vocabulary(
                tokenizer.vocab_file, config, config_file
            )
        )
    if files.is_file(beside):  # it has the labels, another may lack them
        config_file = beside
    values = files.read_json(config_file)
    task = model_directory.task_of(directory, parts)
    _warn_of_labels(config_file, values, directory, task.labels or [])
    return TrainedModel(
        prefix,
        config,
        config_file,
        values,
        tensors,
        parts,
        tokenizer,
        vocab_size,
        task,
    )


def _weights(prefix, config, config_file):
    """({name: Tensor}, parts) of a checkpoint, checked against its config."""
    tensors = tf_checkpoint.load(prefix)
    weight_names.check_is_roberta(prefix, tensors, config.type_vocab_size)
    weight_names.check_layers(prefix, tensors, config, config_file)
    parts = frozenset(weight_names.parts_in_tf(tensors, config))
    _check_shapes(prefix, tensors, config, parts, config_file)
    model_directory.check_config(prefix, config, config_file)
    return tensors, parts


def _tokenizer(prefix, flags):
    """The tokenizer of the flags, else that beside the model, compared."""
    directory = os.path.dirname(prefix)
    tokenizer = model_directory.TokenizerFiles(
        flags.vocab_file or files.beside(prefix, model_directory.VOCAB),
        flags.merges_file or files.beside(prefix, model_directory.MERGES),
        model_directory.choose_lower_case(
            flags.do_lower_case, [directory or "."]
        ),
    )
    model_directory.check_tokenizer(
        tokenizer, directory, flags.allow_other_tokenizer
    )
    return tokenizer


def _warn_of_labels(config_file, values, directory, labels):
    """Warns of a config.json that contradicts the labels of task.json."""
    names, problem = values.get("id2label"), ""
    if labels and values.get("problem_type") == classification.REGRESSION:
        problem = "problem_type is regression, but the model has the labels"
    elif isinstance(names, dict) and any(
        names.get(str(i), label) not in (label, f"LABEL_{i}")
        for i, label in enumerate(labels)
    ):
        problem = "id2label differs from the labels in use,"
    if problem:
        logging.warning(
            "%s: %s %.200s of %s; edit the file that is wrong",
            config_file,
            problem,
            ", ".join(labels),
            os.path.join(directory, model_directory.TASK),
        )


def _checkpoint(path):
    """The prefix that a directory or a prefix names; it is not damaged."""
    from training import checkpoints  # needs TensorFlow

    prefix = _prefix(path, checkpoints)
    damage = checkpoints.damage(prefix)
    if damage:
        raise errors.UserError(f"--model={path}: {damage}")
    return prefix


def _prefix(path, checkpoints):
    if not path:
        raise errors.UserError(
            "--model is not given; name a trainer's output directory or a "
            "checkpoint's prefix"
        )
    if not os.path.isdir(path):
        if files.is_file(tf_checkpoint.index_file(path)):
            return path
        raise errors.UserError(
            f"--model={path} is neither a directory nor the prefix of a "
            "checkpoint; expected a prefix such as DIR/model.ckpt-1000, where "
            "DIR/model.ckpt-1000.index exists"
        )
    prefix = checkpoints.only_or_newest(path)
    if prefix:
        return prefix
    problem = "there is no checkpoint in it"
    prefixes = tf_checkpoint.in_directory(path)
    kinds = conversion.formats(path)
    if kinds and not prefixes:
        raise errors.UserError(
            f"--model={path}: {problem}, only weights to convert; run python "
            f"convert_checkpoint.py --from={kinds[0]} --to=tf --input={path} "
            "--output=DIR/model.ckpt, and name the output"
        )
    if prefixes:
        problem = f"it lists no newest checkpoint and contains {len(prefixes)}"
    raise errors.UserError(
        f"--model={path}: {problem}; name the prefix of a checkpoint, such as "
        "DIR/model.ckpt-1000"
    )


def _check_shapes(prefix, tensors, config, parts, config_file):
    for variable in weight_names.variables(parts, config):
        tensor = tensors.get(variable.tf)
        if tensor is None:
            raise errors.UserError(
                f"{prefix} lacks {variable.tf}, which the model of "
                f"{config_file} has; use the config.json of this checkpoint"
            )
        expected = variable.tf_shape
        if len(expected) != len(tensor.shape) or any(
            size not in (None, actual)
            for size, actual in zip(expected, tensor.shape)
        ):
            raise errors.UserError(
                f"{prefix} has {variable.tf} with shape "
                f"{lazy_tensors.shape_text(tensor.shape)}, but {config_file} "
                f"has {lazy_tensors.shape_text(expected)}; use the config.json "
                "of this checkpoint"
            )
