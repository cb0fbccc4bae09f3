#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Checks the inputs of a run before it is started.

    python scripts/doctor.py --flagfile=configs/pretrain_base.flags \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --input_files_dir=records --output_dir=output

Without flags it reports on the environment: device, versions, memory and
optional packages.

Takes the flags of run_pretraining.py and run_squad.py and checks the files that
they name: vocabulary, model config, checkpoint, records and questions against
each other; files against the counts and checksums of their manifest.json;
also versions, disk and memory. Prints one line per check: ok, warn or ERROR;
the exit code is 1 after an ERROR. With --train_file or --predict_file the
defaults are run_squad.py's.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import logging
import os
import pathlib
import sys
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import common.startup

from absl import flags

import environment
import run_pretraining
import run_squad
import tokenization
from common import command_line, errors, files, version
from tasks import finetuning
from training import (
    checkpoints,
    logs,
    masked_lm_batches,
    output_directory,
    preflight,
    run_config,
    run_record,
    warm_start,
)
from weights import model_directory

FLAGS = flags.FLAGS
# Values of scripts/setup.sh --extras, and a package that each installs.
_EXTRAS = {
    "serve": "fastapi",
    "plots": "matplotlib",
    "onnx": "tf2onnx",
    "tokenizer": "tokenizers",
    "tasks": "sklearn",
    "hub": "pooch",
    "beam": "apache_beam",
}


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Flags of this script alone."""

    sample_records: int = command_line.flag(
        1000, "Records whose ids are read; 0 reads all of them.", lower=0
    )


@contextlib.contextmanager
def collected_warnings() -> typing.Iterator[typing.List[str]]:
    """A list to which warnings go, instead of the log, within the block."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    warnings = []

    def collect(record):
        handlers = logging.getLogger(record.name).handlers
        is_shown = all(handler.filter(record) for handler in handlers)
        if record.levelno < logging.WARNING or not is_shown:
            return True
        warnings.append(record.getMessage())
        return False

    for logger in loggers:
        logger.addFilter(collect)
    try:
        yield warnings
    finally:
        for logger in loggers:
            logger.removeFilter(collect)


class Doctor:
    """Makes the checks that a run's flags allow, and prints the results."""

    def __init__(
        self,
        run: run_config.RunConfig,
        pretraining: run_pretraining.PretrainingConfig,
        squad: run_squad.SquadConfig,
        options: environment.DeviceConfig,
        doctor: DoctorConfig,
    ):
        self._run = run
        self._pretraining = pretraining
        self._squad = squad
        self._options = options
        self._sample = doctor.sample_records
        self._config = self._device = self._tokenizer = None
        self._used = run  # whose checkpoint is used
        self._data: typing.Dict[str, typing.Any] = {}  # for run.json
        self._names = {
            "ok": [],
            "warn": [],
            "ERROR": [],
        }  # of checks, by result

    def check(self, name: str, function: typing.Callable[[], str]) -> None:
        """Makes one check; a failed one does not end the others."""
        result, text = "ok", ""
        with collected_warnings() as warnings:
            try:
                text = function()
            except errors.UserError as error:
                result, text = "ERROR", str(error)
            except OSError as error:
                result = "ERROR"
                text = errors.describe_os_error(error)
        if warnings and result == "ok":
            result = "warn"
        # A warning may contain the entire result.
        if not any(text in warning for warning in warnings):
            warnings.append(text)
        self._names[result].append(name)
        print(f"{result:<6} {name}: {'; '.join(warnings)}", flush=True)

    def check_environment(self) -> None:
        """Checks what does not depend on a run.

        Raises:
          errors.UserError: a check failed.
        """
        self.check("device", self._versions)
        if self._device is not None:
            self.check("memory", self._available_memory)
        self.check("optional packages", _optional_packages)
        self._conclude()
        print(
            "no run was checked; pass its flags, such as --bert_config_file, "
            "--vocab_file, --input_files_dir and --output_dir"
        )

    def make_all(self) -> None:
        """Makes all checks.

        Raises:
          errors.UserError: some of them failed.
        """
        run = self._run
        self.check("device", self._versions)
        self.check("model", self._model)
        if self._config is not None:
            self.check("checkpoint", self._checkpoint)
        if self._squad.vocab_file:
            self.check("vocabulary", self._vocabulary)
        for name, inputs in (
            ("training records", self._pretraining.input_files_dir),
            ("evaluation records", self._pretraining.eval_files_dir),
        ):
            if inputs:
                self._records(name, inputs)
        if self._squad.train_file:
            self.check("train_file", lambda: self._questions(True))
        if self._squad.predict_file:
            self.check("predict_file", lambda: self._questions(False))
        if self._config is not None:
            self.check(
                "length",
                lambda: model_directory.check_length(
                    run.max_seq_length, self._config, run.bert_config_file
                ),
            )
            self.check(
                "run to resume",
                lambda: run_record.check(run, self._config, self._data),
            )
            self.check(
                "disk",
                lambda: preflight.check_room(run, self._config, self._head),
            )
        if self._config is not None and self._device is not None:
            self.check("memory", self._memory)
        self._conclude()

    def _conclude(self):
        failed, warned = self._names["ERROR"], self._names["warn"]
        total = sum(map(len, self._names.values()))
        if failed:
            raise errors.UserError(
                f"{len(failed)} of {total} checks failed: {'; '.join(failed)}; "
                "the lines above say how to fix them"
            )
        remark = f", with warnings: {'; '.join(warned)}" if warned else ""
        print(f"all {total} checks passed{remark}")

    def _versions(self):
        self._device = environment.create(self._options)
        place = f"{self._device.rank + 1} of {self._device.world_size}"
        versions = [
            f"{name} {release}"
            for name, release in self._device.versions().items()
        ]
        suite = f"suite {version.VERSION}"
        return ", ".join([self._device.name, place, *versions, suite])

    def _available_memory(self):
        memory = self._device.memory_bytes()
        return f"{memory / 2**30:.1f} GB" if memory else "unknown"

    def _model(self):
        if not self._run.bert_config_file:
            self._run = warm_start.resolved(self._run)
        self._config = run_config.model_config(self._run)
        return (
            f"{self._run.bert_config_file}, "
            f"{preflight.parameters(self._config, self._head) / 1e6:.1f} "
            "million parameters"
        )

    @property
    def _head(self):
        if self._squad.train_file or self._squad.predict_file:
            return "question_answering"
        return "masked_lm"

    def _vocabulary(self):
        squad = self._squad
        files = model_directory.TokenizerFiles(
            squad.vocab_file,
            squad.merges_file,
            model_directory.choose_lower_case(
                squad.do_lower_case, output_directory.models(self._used)
            ),
        )
        self._tokenizer = tokenization.RobertaTokenizer(*files)
        output_directory.check_tokenizer(self._used, files)
        output_directory.check_lower_case(
            self._used, self._tokenizer, squad.do_lower_case
        )
        if self._config is None:
            return f"{self._tokenizer.vocab_size} entries"
        ids = model_directory.check_vocabulary(
            squad.vocab_file, self._config, self._run.bert_config_file
        )
        return f"{len(ids)} entries, <pad> is {ids[tokenization.PAD]}"

    def _records(self, name, inputs):
        self.check(name + ", files", lambda: preflight.check_shards(inputs))
        if self._squad.vocab_file:
            self.check(
                name + ", vocabulary",
                lambda: preflight.check_vocabulary_of_records(
                    inputs, self._squad.vocab_file, self._squad.merges_file
                ),
            )
        if self._config is not None:
            self.check(name + ", ids", lambda: self._ids(name, inputs))

    def _ids(self, name, inputs):
        source = self._source(inputs)
        text = preflight.check_records(source, self._sample)
        if name == "training records":
            self._data = dict(
                source.description,
                shuffle_window=self._pretraining.shuffle_window,
            )
        if name != "training records" or self._device is None:
            return text
        task = run_pretraining.with_steps(
            self._pretraining, self._run, self._device, len(source)
        )
        schedule = preflight.schedule(
            self._run,
            self._device.world_size,
            len(source),
            task.num_train_steps,
        )
        return f"{text}; {schedule}"

    def _questions(self, is_training):
        """Counts a SQuAD file, its windows and what is left out."""
        squad, counts = self._squad, collections.Counter()
        path = squad.train_file if is_training else squad.predict_file
        if is_training and (self._run.do_train or not squad.do_predict):
            self._data = dict(
                finetuning.fixed_settings(self._run, squad),
                train_file=files.sha256(path),
            )
        if self._tokenizer is None:
            run_squad.read_examples(path, squad, is_training, counts)
            text = run_squad.summary(path, counts)
            return text + "; pass --vocab_file to cut them into windows"
        run_squad.read_data(
            path, self._tokenizer, self._run, squad, is_training, counts
        )
        return run_squad.summary(path, counts)

    def _source(self, inputs):
        return masked_lm_batches.MaskedLmSource(
            inputs,
            masked_lm_batches.Settings(
                max_seq_length=self._run.max_seq_length,
                max_predictions=self._pretraining.max_predictions_per_seq,
                vocab_size=self._config.vocab_size,
                pad_token_id=self._config.pad_token_id,
                directories=[os.path.dirname(self._run.bert_config_file)],
            ),
        )

    def _checkpoint(self):
        head = {"question_answering": "cls/squad/"}.get(
            self._head, "cls/predictions/"
        )
        evaluates = (
            self._pretraining.do_eval
            or self._squad.do_predict
            or self._run.scores_checkpoints
        )
        run = dataclasses.replace(
            warm_start.resolved(self._run),
            do_train=self._run.do_train or not evaluates,
        )
        self._used = run = warm_start.source(run, head)
        heads = [self._head] + ["answerable"] * self._squad.answerability_head
        warm_start.check(run, self._config, heads, head)
        latest = checkpoints.newest(run.output_dir)
        problems = map(checkpoints.damage, checkpoints.listed(run.output_dir))
        damage = "; ".join(filter(None, problems))
        if damage:
            raise errors.UserError(f"{damage}; a run ignores what is damaged")
        return (
            latest
            or run.init_checkpoint
            or "none, the run starts with random weights"
        )

    def _memory(self):
        predictions = (
            self._pretraining.max_predictions_per_seq
            if self._head == "masked_lm"
            else 0
        )
        return preflight.check_need(
            self._run,
            self._config,
            self._device,
            self._head,
            predictions=predictions,
        )


def _optional_packages():
    installed = {
        extra: importlib.util.find_spec(package) is not None
        for extra, package in _EXTRAS.items()
    }
    missing = ",".join(name for name in installed if not installed[name])
    text = ", ".join(filter(installed.get, installed)) or "none"
    if missing:
        text += f"; bash scripts/setup.sh --extras={missing} adds the others"
    return text


def _with_squad_defaults(run):
    """A run with run_squad.py's defaults for flags that were not given."""
    defaults = {
        name: value
        for name, value in run_squad.DEFAULTS.items()
        if not FLAGS[name].present
    }
    return dataclasses.replace(run, **defaults)


def main(_: typing.List[str]) -> None:
    """Makes all checks, or those of the environment if no run is named."""
    run = command_line.build(run_config.RunConfig, FLAGS)
    logs.set_up_logging(run)
    squad = command_line.build(run_squad.SquadConfig, FLAGS)
    if squad.train_file or squad.predict_file:
        run = _with_squad_defaults(run)
    pretraining = command_line.build(run_pretraining.PretrainingConfig, FLAGS)
    doctor = Doctor(
        run,
        pretraining,
        squad,
        command_line.build(environment.DeviceConfig, FLAGS),
        command_line.build(DoctorConfig, FLAGS),
    )
    if any(
        FLAGS[n].present
        for n in {**vars(run), **vars(pretraining), **vars(squad)}
    ):
        doctor.make_all()
    else:
        doctor.check_environment()


def define_flags() -> None:
    """Declares the flags of both run scripts and those of this one."""
    command_line.define(run_config.RunConfig, output_dir=".")
    command_line.define(run_pretraining.PretrainingConfig)
    command_line.define(run_squad.SquadConfig, "num_train_epochs")
    command_line.define(environment.DeviceConfig)
    command_line.define(DoctorConfig)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
