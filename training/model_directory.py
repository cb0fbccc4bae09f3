# SPDX-License-Identifier: Apache-2.0
"""The output directory: config.json and tokenizer files of its checkpoints."""

import os
import typing

import configuration
from common import files
from training import checkpoints, run_config


class TokenizerFiles(typing.NamedTuple):
    """The tokenizer of the text that a model is trained on."""

    vocab_file: str
    merges_file: str
    do_lower_case: bool = False


def prepare_output(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    rank: int = 0,
    config_values: typing.Optional[typing.Mapping] = None,
    tokenizer: typing.Optional[TokenizerFiles] = None,
) -> None:
    """Makes the output directories; rank 0 writes config.json and tokenizer.

    Damaged checkpoints are removed from the list of those to resume from, and
    a run that trains locks the directory (`checkpoints.claim`).

    Args:
      run: flags.
      config: of the model.
      rank: of this process.
      config_values: {key: value} added to config.json.
      tokenizer: copied to the directory, unless None.
    """
    os.makedirs(run.output_dir, exist_ok=True)
    os.makedirs(run.log_dir, exist_ok=True)
    if run.do_train and rank == 0:
        checkpoints.claim(run.output_dir)
    checkpoints.repair(run.output_dir, removes=run.do_train and rank == 0)
    if rank:
        return
    path = os.path.join(run.output_dir, "config.json")
    is_source = os.path.exists(path) and os.path.samefile(
        path, run.bert_config_file
    )
    values = read_config(path) if is_source else config.to_dict()
    if config_values or not is_source:
        files.write_json(path, dict(values, **(config_values or {})))
    if tokenizer is not None:
        _write_tokenizer(run.output_dir, tokenizer)


def read_config(path: str) -> typing.Dict[str, typing.Any]:
    """All keys of a config.json, {} where there is none."""
    return files.read_json(path) if os.path.exists(path) else {}


def _write_tokenizer(directory, tokenizer):
    """Writes vocab.json, merges.txt, and do_lower_case where it changes."""
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
