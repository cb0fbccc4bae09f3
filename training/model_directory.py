# SPDX-License-Identifier: Apache-2.0
"""The output directory: config.json and tokenizer files beside the checkpoints."""

import os
import typing

from common import files
from training import checkpoints


class TokenizerFiles(typing.NamedTuple):
    """What turned text into the ids that a model is trained on."""

    vocab_file: str
    merges_file: str
    do_lower_case: bool = False


def prepare_output(run, config, rank=0, config_values=None, tokenizer=None):
    """Makes the output directories; rank 0 writes config.json there.

    A damaged checkpoint found there is passed over.

    No other process trains there then (`checkpoints.claim`).

    Args:
      run: RunConfig.
      config: modeling.RobertaConfig.
      rank: of this process.
      config_values: {key: value} that config.json holds besides.
      tokenizer: TokenizerFiles, which go along with the model, or None.
    """
    os.makedirs(run.output_dir, exist_ok=True)
    os.makedirs(run.log_dir, exist_ok=True)
    if run.do_train and rank == 0:
        checkpoints.claim(run.output_dir)
    checkpoints.repair(run.output_dir, removes=run.do_train and rank == 0)
    path = os.path.join(run.output_dir, "config.json")
    is_there = os.path.exists(path) and os.path.samefile(
        path, run.bert_config_file
    )
    if rank:
        return
    if not is_there:
        files.write_json(path, dict(config.to_dict(), **(config_values or {})))
    elif config_values:
        files.write_json(path, dict(read_config(path), **config_values))
    if tokenizer is not None:
        _write_tokenizer(run.output_dir, tokenizer)


def read_config(path):
    """All keys of a config.json that `model_config` accepts, {} without one."""
    if not os.path.exists(path):
        return {}
    return files.read_json(path)


def _write_tokenizer(directory, tokenizer):
    """vocab.json, merges.txt and, where text is lower-cased, that it is."""
    for name, source in (
        ("vocab.json", tokenizer.vocab_file),
        ("merges.txt", tokenizer.merges_file),
    ):
        content = files.read_bytes(source)
        path = os.path.join(directory, name)
        if not (os.path.isfile(path) and files.read_bytes(path) == content):
            files.write_bytes(path, content)
    path = os.path.join(directory, "tokenizer_config.json")
    values = files.read_json(path) if os.path.isfile(path) else {}
    if bool(values.get("do_lower_case")) != tokenizer.do_lower_case:
        files.write_json(
            path, dict(values, do_lower_case=tokenizer.do_lower_case)
        )
