# SPDX-License-Identifier: Apache-2.0
"""run.json: the settings that a run began with, compared when it resumes.

`fixed` may not change, `changeable` may; `order_batch` is the global batch at
the beginning, from which the order of fine-tuning's sequences follows.
"""

import dataclasses
import os
import re
import typing

import tensorflow.compat.v1 as tf

import configuration
import device as devices
from common import errors, files
from training import checkpoints, run_config
from weights import model_directory

FILE = model_directory.RUN
_FIXED_FLAGS = (
    "random_seed",
    "optimizer_type",
    "npu_bert_debug",
    "pack_sequences",
)
# Of the settings that changed, in a message.
_MOST_SHOWN = 8
_NOT_RECORDED = ("allow_changed_run", "allow_other_tokenizer")


def fixed(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    data: typing.Mapping[str, typing.Any],
) -> typing.Dict[str, typing.Any]:
    """The settings of a run that may not change, as JSON values.

    Args:
      run: flags.
      config: of the model.
      data: {name: value}, what identifies the training data.
    """
    values = {
        model_directory.KEY_IN_RUN + name: value
        for name, value in dataclasses.asdict(config).items()
    }
    values.update({name: getattr(run, name) for name in _FIXED_FLAGS})
    return dict(values, **data)


def changes(
    old: typing.Mapping[str, typing.Any], new: typing.Mapping[str, typing.Any]
) -> typing.List[str]:
    """`name old -> new` of the settings of `old` that differ in `new`."""
    return [
        f"{name} {_shown(value)} -> {_shown(new.get(name))}"
        for name, value in old.items()
        if value != new.get(name)
    ]


def _shown(value):
    """A value of run.json; of a file's hash its beginning."""
    is_hash = re.fullmatch("[0-9a-f]{64}", str(value))
    return f"sha256:{value[:8]}" if is_hash else value


def read(directory: str) -> typing.Optional[typing.Dict[str, typing.Any]]:
    """run.json of a run with checkpoints; None if there is none.

    Raises:
      errors.UserError: the file is damaged.
    """
    path = os.path.join(directory, FILE)
    if not (checkpoints.newest(directory) and files.is_file(path)):
        return None
    record = files.read_json(path, "the settings of a run")
    for name, kind in (
        ("fixed", dict),
        ("changeable", dict),
        ("order_batch", int),
    ):
        if not isinstance(record.get(name), kind):
            raise errors.UserError(
                f"{path}: {name} is missing or not of its type; copy the file "
                "again, or remove it to resume without the comparison"
            )
    record["fixed"].setdefault("pack_sequences", False)  # of older ones
    return record


def check(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    data: typing.Mapping[str, typing.Any],
) -> str:
    """Compares flags, model and known data with run.json, before a run.

    Raises:
      errors.UserError: a setting differs that may not change.
    """
    path = os.path.join(run.output_dir, FILE)
    record = read(run.output_dir)
    if record is None:
        return f"no {path}: nothing to compare"
    new = fixed(run, config, data)
    old = {n: v for n, v in _fixed(record, run, new).items() if n in new}
    _check_fixed(changes(old, new), path, run)
    return f"{path}: nothing differs that must stay the same"


def begin(training: run_config.Training) -> typing.Dict[str, typing.Any]:
    """Compares a run with its run.json; gives what that will be.

    Raises:
      errors.UserError: a setting differs that may not change.
    """
    run = training.run
    old = read(run.output_dir)
    new = {
        "fixed": fixed(run, training.config, training.data),
        "changeable": _changeable(training),
        "order_batch": order_batch(run, training.device),
    }
    path = os.path.join(run.output_dir, FILE)
    if old:
        fixed_before = _fixed(old, run, new["fixed"])
        _check_fixed(changes(fixed_before, new["fixed"]), path, run)
        changed = changes(old["changeable"], new["changeable"])
        if changed:
            tf.logging.info("settings changed: %s", ", ".join(changed))
    elif training.device.rank == 0 and checkpoints.newest(run.output_dir):
        tf.logging.warning(
            "%s does not exist: resuming as if all settings, also the batch "
            "size and the number of devices, were those of before",
            path,
        )
    return new


def write(
    training: run_config.Training,
    new: typing.Mapping[str, typing.Any],
    trains: bool,
) -> None:
    """Writes run.json, and task.json of a resumed run, in rank 0.

    Args:
      training: the run.
      new: what `begin` gave.
      trains: whether a step is left; else what the model learned from stays.
    """
    directory = training.run.output_dir
    old = read(directory)
    if old and not trains:
        new = dict(old, changeable=new["changeable"])
    if training.device.rank == 0 and new != old:
        files.write_json(os.path.join(directory, FILE), new)
    if training.device.rank == 0 and old and trains:
        _update_task(directory, training.task)


def _fixed(record, run, new):
    """Fixed settings of a run; older records have the task's in task.json."""
    task = model_directory.read_task(run.output_dir).values()
    return {**{n: v for n, v in task.items() if n in new}, **record["fixed"]}


def _update_task(directory, new):
    """Writes task.json where a resumed run trains with other settings."""
    old = model_directory.read_task(directory)
    if old.version_2_with_negative == new.version_2_with_negative:
        threshold = old.null_score_diff_threshold
        new = dataclasses.replace(new, null_score_diff_threshold=threshold)
    if old.task == new.task and new != old:
        model_directory.write_task(directory, new)


def _changeable(training):
    values = dataclasses.asdict(training.run)
    values.update(dataclasses.asdict(training.device.options))
    values.update(
        devices=training.device.world_size,
        num_train_steps=training.num_train_steps,
        num_warmup_steps=training.num_warmup_steps,
        num_train_epochs=training.num_train_epochs,
    )
    return {
        name: value
        for name, value in values.items()
        if name not in _FIXED_FLAGS + _NOT_RECORDED
    }


def _check_fixed(changed, path, run):
    if not changed:
        return
    if len(changed) > _MOST_SHOWN:
        more = f"{len(changed) - _MOST_SHOWN} more"
        changed = [*changed[:_MOST_SHOWN], more]
    problem = f"{path}: the run began with other settings: {'; '.join(changed)}"
    if not run.allow_changed_run:
        raise errors.UserError(
            f"{problem}; use those that it began with, another --output_dir, "
            "or pass --allow_changed_run=True"
        )
    tf.logging.warning("%s; continuing (--allow_changed_run)", problem)


def updates(
    run: run_config.RunConfig, device: devices.Device, sequences: float
) -> int:
    """The updates, those made included, in which a run sees some sequences.

    Where the global batch has changed, the sequences that are left count.
    """
    global_batch = run.batch_size * device.world_size
    batches = 0  # of another size, which the run made before
    latest = checkpoints.newest(run.output_dir)
    seen = device.agree(checkpoints.batches_seen(latest))
    consumed = device.agree(checkpoints.records_seen(latest, global_batch))
    if consumed != seen * global_batch:
        batches, sequences = seen, max(0, sequences - consumed)
    return max(1, batches + int(sequences / global_batch))


def order_batch(run: run_config.RunConfig, device: devices.Device) -> int:
    """The global batch that a run began with, in every process."""
    record = read(run.output_dir) or {}
    return device.agree(
        record.get("order_batch", run.batch_size * device.world_size)
    )
