#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks a run before it is started: do its parts belong together?

    python scripts/doctor.py --flagfile=configs/pretrain_base.flags \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --input_files_dir=records --output_dir=output

Takes the flags of run_pretraining.py and run_squad.py and checks what they
name: vocabulary, model config, checkpoint, records and questions against each
other; files against the counts and checksums of their manifest.json;
versions; disk and memory. One line a check: ok, warn or ERROR; exit code 1
when there is an ERROR. With --train_file or --predict_file the defaults are
run_squad.py's.
"""

import collections
import contextlib
import dataclasses
import logging
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from absl import flags  # noqa: E402

import environment  # noqa: E402
import run_pretraining  # noqa: E402
import run_squad  # noqa: E402
import squad as squad_data  # noqa: E402
import tokenization  # noqa: E402
from common import (
    command_line,  # noqa: E402
    errors,  # noqa: E402
)
from training import (
    checkpoints,  # noqa: E402
    logs,
    masked_lm_batches,  # noqa: E402
    preflight,  # noqa: E402
    run_config,  # noqa: E402
    warm_start,  # noqa: E402
)

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Flags of this script alone."""

    sample_records: int = command_line.flag(
        1000, "Records whose ids are read; 0 reads all of them.", lower=0
    )


class _Collector(logging.Handler):
    """Keeps warnings; what is less goes to the handlers it stands in for."""

    def __init__(self, handlers):
        super().__init__()
        self._handlers = handlers
        self.warnings = []

    def emit(self, record):
        handlers = [h for h in self._handlers if h.filter(record)]
        if record.levelno >= logging.WARNING and handlers:
            self.warnings.append(record.getMessage())
            return
        for handler in handlers:
            handler.handle(record)


@contextlib.contextmanager
def collected_warnings():
    """The warnings that are logged within it, as a list."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    before = [logger.handlers for logger in loggers]
    collectors = [_Collector(handlers) for handlers in before]
    found = []
    for logger, collector in zip(loggers, collectors):
        collector.warnings = found
        logger.handlers = [collector]
    try:
        yield found
    finally:
        for logger, handlers in zip(loggers, before):
            logger.handlers = handlers


class Doctor:
    """Makes the checks that a run's flags allow, and prints what they find."""

    def __init__(self, run, pretraining, squad, options, doctor):
        self._run = run
        self._pretraining = pretraining
        self._squad = squad
        self._options = options
        self._sample = doctor.sample_records
        self._config = self._device = self._tokenizer = None
        self._failed, self._warned = [], []
        self._made = 0

    def check(self, name, function):
        """Makes one check; a failed one does not end the others."""
        self._made += 1
        kind = "ok"
        with collected_warnings() as warnings:
            try:
                text = function()
            except (errors.UserError, OSError) as error:
                kind = "ERROR"
                text = (
                    command_line.describe_os_error(error)
                    if isinstance(error, OSError)
                    else str(error)
                )
                self._failed.append(name)
        if warnings and kind == "ok":
            kind = "warn"
            self._warned.append(name)
        # A warning may say all that there is.
        texts = warnings + [text] * (not any(text in w for w in warnings))
        print(f"{kind!s:<6} {name}: {'; '.join(texts)}", flush=True)

    def make_all(self):
        """Makes all checks.

        Raises:
          errors.UserError: some of them failed.
        """
        run = self._run
        self.check("device", self._versions)
        self.check("model", self._model)
        if self._squad.vocab_file:
            self.check("vocabulary", self._vocabulary)
        for name, inputs in (
            ("training records", self._pretraining.input_files_dir),
            ("evaluation records", self._pretraining.eval_files_dir),
        ):
            if inputs:
                self._records(name, inputs)
        for flag in ("train_file", "predict_file"):
            if getattr(self._squad, flag):
                self.check(
                    flag,
                    lambda flag=flag: self._questions(flag == "train_file"),
                )
        if self._config is not None:
            self.check(
                "length",
                lambda: preflight.check_length(
                    run.max_seq_length, self._config, run.bert_config_file
                ),
            )
            self.check("checkpoint", self._checkpoint)
            self.check(
                "disk",
                lambda: preflight.check_room(run, self._config, self._head),
            )
        if self._config is not None and self._device is not None:
            self.check("memory", self._memory)
        self._conclude()

    def _conclude(self):
        if self._failed:
            raise errors.UserError(
                f"{len(self._failed)} of {self._made} checks failed: "
                f"{'; '.join(self._failed)}; the lines above say how to mend "
                "them"
            )
        print(
            "all %d checks passed%s"
            % (
                self._made,
                ", look at the warnings: " + "; ".join(self._warned)
                if self._warned
                else "",
            )
        )

    def _versions(self):
        self._device = environment.create(self._options)
        return ", ".join(
            [
                f"{self._device.name}, {self._device.rank + 1} of "
                f"{self._device.world_size}"
            ]
            + ["%s %s" % item for item in self._device.versions().items()]
        )

    def _model(self):
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
        self._tokenizer = tokenization.RobertaTokenizer(
            squad.vocab_file,
            squad.merges_file,
            do_lower_case=squad.do_lower_case,
        )
        if self._config is None:
            return f"{self._tokenizer.vocab_size} entries"
        return preflight.check_vocabulary(
            self._tokenizer,
            squad.vocab_file,
            self._config,
            self._run.bert_config_file,
        )

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
        if name != "training records" or self._device is None:
            return text
        return "%s; %s" % (
            text,
            preflight.schedule(
                self._run,
                self._device.world_size,
                len(source),
                self._pretraining.num_train_steps,
            ),
        )

    def _questions(self, is_training):
        """What a SQuAD file holds; the first questions become windows."""
        squad, counts = self._squad, collections.Counter()
        path = squad.train_file if is_training else squad.predict_file
        examples = run_squad.read_examples(path, squad, is_training)
        text = (
            f"{path}: {len(examples)} questions on "
            f"{len({e.context for e in examples})} contexts"
        )
        if self._tokenizer is None:
            return text + "; give --vocab_file to cut them into windows"
        list(
            squad_data.convert_examples_to_features(
                examples[:100],
                self._tokenizer,
                self._run.max_seq_length,
                squad.doc_stride,
                squad.max_query_length,
                is_training,
                counts=counts,
            )
        )
        return (
            f"{text}; the first {min(len(examples), 100)} give "
            f"{counts['features']} windows of up to {self._run.max_seq_length} "
            "tokens"
        )

    def _source(self, inputs):
        return masked_lm_batches.MaskedLmSource(
            inputs,
            masked_lm_batches.Settings(
                max_seq_length=self._run.max_seq_length,
                max_predictions=self._pretraining.max_predictions_per_seq,
                vocab_size=self._config.vocab_size,
                pad_token_id=self._config.pad_token_id,
            ),
        )

    def _checkpoint(self):
        run = self._run
        warm_start.check(run, self._config, [self._head])
        latest = checkpoints.newest(run.output_dir)
        wrong = checkpoints.damage(latest) if latest else ""
        if wrong:
            raise errors.UserError(f"{wrong}; a run passes over it")
        return latest or run.init_checkpoint or "none, the run begins anew"

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


def _with_squad_defaults(run):
    """A run whose flags that were not given are run_squad.py's."""
    return dataclasses.replace(
        run,
        **{
            name: value
            for name, value in run_squad.DEFAULTS.items()
            if not FLAGS[name].present
        },
    )


def main(_):
    run = command_line.build(run_config.RunConfig, FLAGS)
    logs.set_up_logging(run)
    squad = command_line.build(run_squad.SquadConfig, FLAGS)
    if squad.train_file or squad.predict_file:
        run = _with_squad_defaults(run)
    Doctor(
        run,
        command_line.build(run_pretraining.PretrainingConfig, FLAGS),
        squad,
        command_line.build(environment.DeviceConfig, FLAGS),
        command_line.build(DoctorConfig, FLAGS),
    ).make_all()


if __name__ == "__main__":
    command_line.define(run_config.RunConfig, output_dir=".")
    command_line.define(run_pretraining.PretrainingConfig)
    command_line.define(run_squad.SquadConfig)
    command_line.define(environment.DeviceConfig)
    command_line.define(DoctorConfig)
    command_line.run(main)
