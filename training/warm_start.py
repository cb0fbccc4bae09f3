# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run starts from, and whether it fits the model.

`check` refuses before anything is written; `load` makes the variables of a new
run start from --init_checkpoint and reports which do.
"""

import os
import re

import tensorflow.compat.v1 as tf

import optimization
from common import errors, files
from training import checkpoints
from weights import names as weight_names
from weights import tf_checkpoint

ENCODER = re.compile(r"bert/(embeddings|encoder)/")
# Checkpoint variables that are no part of the model.
_TRAINING_STATE = re.compile(
    r"(/adam_[mv]|^global_step|^loss_scale|^good_steps|^bad_steps|"
    r"^batches_seen)$"
)
_EVERYTHING = re.compile("")
# What a model computes with and no shape of a variable tells.
_UNSEEN = ("num_attention_heads", "pad_token_id", "layer_norm_eps")
_MISSING_KEY = re.compile(r"Key (\S+) not found in checkpoint")


def check(run, config, parts, required=ENCODER, labels=None):
    """Refuses a checkpoint that does not fit, by the name of a variable.

    A run that goes on needs all of the model; --init_checkpoint is looked at
    only where there is nothing to go on from.

    Args:
      run: training.RunConfig.
      config: modeling.RobertaConfig.
      parts: the model's heads, keys of weight_names.PARTS.
      required: pattern of the variables that --init_checkpoint must hold.
      labels: of a head whose size is free; None takes any. A new run may
        start from a head of another size (`load`).

    Raises:
      errors.UserError: a variable is missing or has another shape.
    """
    wanted = {
        variable.tf: variable.tf_shape
        for variable in weight_names.variables(
            {weight_names.BASE, *parts}, config
        )
    }
    latest = checkpoints.newest(run.output_dir)
    if labels is not None and (latest or not run.do_train):
        wanted = {
            name: tuple(labels if size is None else size for size in shape)
            for name, shape in wanted.items()
        }
    if latest:
        if checkpoints.damage(latest):
            return  # the run goes back to the one before
        found = tf.train.load_checkpoint(latest)
        _check_fit(
            latest,
            found.get_variable_to_shape_map(),
            wanted,
            _EVERYTHING,
            "give another --output_dir for another model or task",
        )
        _check_unseen(latest, config, run.bert_config_file)
    elif run.init_checkpoint:
        shapes = _open(run.init_checkpoint).get_variable_to_shape_map()
        _check_fit(
            run.init_checkpoint,
            shapes,
            wanted,
            required,
            "give the checkpoint and the config.json of one model, "
            "with this project's names (convert_checkpoint.py)",
        )
        _check_unseen(run.init_checkpoint, config, run.bert_config_file)


def _open(path):
    """A reader of --init_checkpoint, whose files are whole."""
    if re.search(r"\.(index|meta|data-\d+-of-\d+)$", path):
        raise errors.UserError(
            f"--init_checkpoint={path} is one file of a checkpoint; give what "
            f"is common to its names, {os.path.splitext(path)[0]}"
        )
    wrong = (
        checkpoints.damage(path)
        if os.path.exists(tf_checkpoint.index_file(path))
        else ""
    )
    if wrong:
        raise errors.UserError(f"--init_checkpoint={path}: {wrong}")
    try:
        return tf.train.load_checkpoint(path)
    except (tf.errors.OpError, ValueError) as error:
        raise errors.UserError(
            f"--init_checkpoint={path} is no TensorFlow checkpoint "
            f"({str(error).splitlines()[0]}); expected a prefix such as "
            "DIR/model.ckpt-1000, whose .index file stands beside it"
        ) from error


def _check_fit(path, found, wanted, required, mend):
    """Compares {name: shape} of a checkpoint with what a model wants.

    None in a wanted shape fits any size.
    """
    for name, shape in wanted.items():
        if name not in found:
            continue
        if len(found[name]) != len(shape) or any(
            size is not None and size != there
            for size, there in zip(shape, found[name])
        ):
            raise errors.UserError(
                f"{path} has {name} with shape {list(found[name])}, but the "
                f"model config asks for {list(shape)}; {mend}"
            )
    missing = [
        name for name in wanted if name not in found and required.match(name)
    ]
    if missing:
        raise errors.UserError(
            f"{path} lacks {len(missing)} variables of the model, {missing[0]} "
            f"first; {mend}"
        )


def _check_unseen(checkpoint, config, config_file):
    """Compares a config with the config.json beside a checkpoint."""
    beside = os.path.join(os.path.dirname(checkpoint), "config.json")
    try:
        values = files.read_json(beside)
    except (OSError, errors.UserError):
        return  # none, or none of a model
    for name in _UNSEEN:
        there, here = values.get(name), getattr(config, name)
        if there is not None and there != here:
            raise errors.UserError(
                f"{config_file} has {name} {here!r}, but {beside} beside "
                f"{checkpoint} has {there!r}: with another one its weights "
                "compute something else; give that config, or another "
                "--output_dir for another model"
            )


def load(path, head=()):
    """Makes the graph's variables start from a checkpoint that `check` knows.

    Args:
      path: checkpoint prefix.
      head: names of a head's variables; where one has another shape in the
        checkpoint, as with other labels, all of them begin anew.

    Source: fairseq's RoBERTa, model.py (heads of another size).
    """
    shapes = _open(path).get_variable_to_shape_map()
    variables = {
        optimization.variable_name(variable): variable
        for variable in tf.trainable_variables()
    }
    anew = [
        name
        for name in head
        if name in variables
        and name in shapes
        and shapes[name] != variables[name].shape.as_list()
    ]
    if anew:
        tf.logging.warning(
            "%s has %s with shape %s, here it is %s: the head begins anew",
            path,
            anew[0],
            shapes[anew[0]],
            variables[anew[0]].shape.as_list(),
        )
    loaded = {
        name: variable
        for name, variable in variables.items()
        if name in shapes and not (anew and name in head)
    }
    fresh = [name for name in variables if name not in loaded]
    unused = [
        name
        for name in shapes
        if name not in loaded and not _TRAINING_STATE.search(name)
    ]
    tf.logging.info(
        "%s: %d variables loaded, %d begin anew (%s), %d left unused (%s)",
        path,
        len(loaded),
        len(fresh),
        _some(fresh),
        len(unused),
        _some(sorted(unused)),
    )
    for name in sorted(loaded):
        tf.logging.debug("loaded %s %s", name, shapes[name])
    if loaded:
        tf.train.init_from_checkpoint(path, loaded)


def _some(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"


def reason(text, output_dir):
    """Why a run cannot go on from output_dir, of TensorFlow's words, or ""."""
    key = _MISSING_KEY.search(text)
    if not key:
        return ""
    return (
        f"the checkpoint in {output_dir} lacks {key.group(1)}, which these "
        "flags need; give the optimizer and the loss scale that it was "
        "trained with (--optimizer_type, --npu_bert_loss_scale), or name it "
        "with --init_checkpoint and give another --output_dir"
    )
