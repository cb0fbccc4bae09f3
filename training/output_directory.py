# SPDX-License-Identifier: Apache-2.0
"""The output directory: what a training run writes beside its checkpoints.

Only a new training run writes; all others compare (`check_tokenizer`).
"""

import os
import typing

from absl import logging

import configuration
import tokenization
from common import files
from training import checkpoints, run_config
from weights import model_directory, tf_checkpoint


def models(run: run_config.RunConfig) -> typing.List[str]:
    """The directories of the models that a run uses, its own first."""
    path = run.init_checkpoint
    directories = [run.output_dir] if checkpoints.newest(run.output_dir) else []
    if path:
        directories.append(
            path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
        )
    return directories


def check_tokenizer(
    run: run_config.RunConfig, tokenizer: model_directory.TokenizerFiles
) -> None:
    """Compares a tokenizer with those of the models that a run uses.

    Raises:
      errors.UserError: one differs, without --allow_other_tokenizer.
    """
    for directory in models(run):
        model_directory.check_tokenizer(
            tokenizer, directory, run.allow_other_tokenizer
        )


_SLOT = "bert/embeddings/word_embeddings/adam_v"
_MLM_HEAD = "cls/predictions/output_bias"


def check_lower_case(
    run: run_config.RunConfig,
    tokenizer: tokenization.RobertaTokenizer,
    flag: typing.Optional[bool],
) -> None:
    """Checks lower-casing where a checkpoint's tokenizer does not say it.

    Args:
      run: flags; --init_checkpoint is a prefix.
      tokenizer: of the run.
      flag: --do_lower_case, None when it is not given.

    Raises:
      errors.UserError: the checkpoint was trained on capitals, without
        --allow_other_tokenizer.
    """
    prefix = checkpoints.newest(run.output_dir) or run.init_checkpoint
    directory = os.path.dirname(prefix or "")
    if not prefix or model_directory.lower_case(directory) is not None:
        return
    path = os.path.join(directory, model_directory.TOKENIZER_CONFIG)
    if flag:
        _check_capitals(run, tokenizer, prefix)
    elif flag is None and not (os.path.exists(path) or tokenizer.is_cased()):
        logging.warning(
            "%s: does not exist, and the vocabulary has no capitals: texts are "
            "not lower-cased; pass --do_lower_case=True if those of training "
            "were",
            path,
        )


def _check_capitals(run, tokenizer, prefix):
    """Compares lower-casing with what a checkpoint was fine-tuned on.

    Fine-tuning gives the embeddings of tokens that occur, and no others, second
    moments above 0. With a masked-LM head all tokens have them.
    """
    capitals = tokenizer.capitals()
    if not capitals:
        return
    tensors = tf_checkpoint.load(prefix)
    if _SLOT not in tensors or _MLM_HEAD in tensors:
        logging.warning(
            "do_lower_case is True, but nothing beside %s says whether its "
            "texts were lower-cased, and its vocabulary is cased; omit "
            "--do_lower_case unless they were",
            prefix,
        )
        return
    moments = tensors[_SLOT].read()
    trained = [i for i in capitals if i < len(moments) and moments[i].any()]
    if trained:
        model_directory.reject_tokenizer(
            f"do_lower_case is True, but {prefix} was trained on "
            f"{len(trained)} tokens with capitals, "
            f"{tokenizer.decode(trained[:1])!r} first",
            run.allow_other_tokenizer,
        )


def prepare(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    rank: int = 0,
    *,
    task: typing.Optional[model_directory.Task] = None,
    config_values: typing.Optional[typing.Mapping] = None,
    tokenizer: typing.Optional[model_directory.TokenizerFiles] = None,
) -> None:
    """Makes the output directories; in a new training run, rank 0 fills them.

    It writes config.json, task.json and the tokenizer's files. Damaged
    checkpoints are removed from the list of those to resume from, and a run
    that trains locks the directory (`checkpoints.claim`).

    Args:
      run: flags.
      config: of the model.
      rank: of this process.
      task: what the model is trained for, unless None.
      config_values: {key: value} added to config.json.
      tokenizer: copied to the directory, unless None.
    """
    os.makedirs(run.output_dir, exist_ok=True)
    os.makedirs(run.log_dir, exist_ok=True)
    if run.do_train and rank == 0:
        checkpoints.claim(run.output_dir)
    checkpoints.repair(run.output_dir, removes=run.do_train and rank == 0)
    if rank or not run.do_train or checkpoints.newest(run.output_dir):
        return
    path = os.path.join(run.output_dir, model_directory.CONFIG)
    is_source = os.path.exists(path) and os.path.samefile(
        path, run.bert_config_file
    )
    values = read_config(run.output_dir) if is_source else config.to_dict()
    if config_values or not is_source:
        files.write_json(path, dict(values, **(config_values or {})))
    if task is not None:
        model_directory.write_task(run.output_dir, task)
    if tokenizer is not None:
        model_directory.write_tokenizer(
            run.output_dir, tokenizer, config.max_sequence_length
        )


def read_config(directory: str) -> typing.Dict[str, typing.Any]:
    """All keys of a directory's config.json, {} where there is none."""
    path = os.path.join(directory, model_directory.CONFIG)
    return files.read_json(path) if os.path.exists(path) else {}
