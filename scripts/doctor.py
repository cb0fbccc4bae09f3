#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks a run before it is started: do its parts belong together?

    python scripts/doctor.py --flagfile=configs/pretrain_base.flags \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --input_files_dir=records --output_dir=output

Takes the flags of run_pretraining.py and run_squad.py and checks what they
name: vocabulary, model config, checkpoint and records against each other;
files against the counts and checksums of their manifest.json; versions; disk
and memory. One line a check; exit code 1 when one of them fails.
"""
import dataclasses
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from absl import flags  # noqa: E402

import checkpoints  # noqa: E402
import command_line  # noqa: E402
import environment  # noqa: E402
import errors  # noqa: E402
import input_pipeline  # noqa: E402
import preflight  # noqa: E402
import run_pretraining  # noqa: E402
import run_squad  # noqa: E402
import tokenization  # noqa: E402
import training  # noqa: E402
import warm_start  # noqa: E402

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Flags of this script alone."""
    sample_records: int = command_line.flag(
        1000, "Records whose ids are read; 0 reads all of them.", lower=0)


class Doctor:
    """Makes the checks that a run's flags allow, and prints what they find."""

    def __init__(self, run, pretraining, squad, options, doctor):
        self._run = run
        self._pretraining = pretraining
        self._squad = squad
        self._options = options
        self._sample = doctor.sample_records
        self._config = self._device = None
        self._failed = []
        self._made = 0

    def check(self, name, function):
        """Makes one check; a failed one does not end the others."""
        self._made += 1
        try:
            print("ok     %s: %s" % (name, function()), flush=True)
        except (errors.UserError, OSError) as error:
            text = (command_line.describe_os_error(error)
                    if isinstance(error, OSError) else str(error))
            self._failed.append(name)
            print("ERROR  %s: %s" % (name, text), flush=True)

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
                ("evaluation records", self._pretraining.eval_files_dir)):
            if inputs:
                self._records(name, inputs)
        if self._config is not None:
            self.check("length", lambda: preflight.check_length(
                run.max_seq_length, self._config, run.bert_config_file))
            self.check("checkpoint", self._checkpoint)
        if self._config is not None and self._device is not None:
            self.check("disk and memory", self._room)
        if self._failed:
            raise errors.UserError(
                "%d of %d checks failed: %s; the lines above say how to mend "
                "them" % (len(self._failed), self._made,
                          "; ".join(self._failed)))
        print("all %d checks passed" % self._made)

    def _versions(self):
        self._device = environment.create(self._options)
        return ", ".join(
            ["%s, %d of %d" % (self._device.name, self._device.rank + 1,
                               self._device.world_size)]
            + ["%s %s" % item for item in self._device.versions().items()])

    def _model(self):
        self._config = training.model_config(self._run)
        return "%s, %.1f million parameters" % (
            self._run.bert_config_file,
            preflight.parameters(self._config, self._head) / 1e6)

    @property
    def _head(self):
        if self._squad.train_file or self._squad.predict_file:
            return "question_answering"
        return "masked_lm"

    def _vocabulary(self):
        squad = self._squad
        tokenizer = tokenization.RobertaTokenizer(
            squad.vocab_file, squad.merges_file,
            do_lower_case=squad.do_lower_case)
        if self._config is None:
            return "%d entries" % tokenizer.vocab_size
        return preflight.check_vocabulary(
            tokenizer, squad.vocab_file, self._config,
            self._run.bert_config_file)

    def _records(self, name, inputs):
        self.check(name + ", files", lambda: preflight.check_shards(inputs))
        if self._squad.vocab_file:
            self.check(name + ", vocabulary",
                       lambda: preflight.check_vocabulary_of_records(
                           inputs, self._squad.vocab_file,
                           self._squad.merges_file))
        if self._config is not None:
            self.check(name + ", ids", lambda: preflight.check_records(
                self._source(inputs), self._sample))

    def _source(self, inputs):
        return input_pipeline.MaskedLmSource(
            inputs, max_seq_length=self._run.max_seq_length,
            max_predictions=self._pretraining.max_predictions_per_seq,
            vocab_size=self._config.vocab_size,
            pad_token_id=self._config.pad_token_id)

    def _checkpoint(self):
        run = self._run
        warm_start.check(run, self._config, [self._head])
        latest = checkpoints.newest(run.output_dir)
        wrong = checkpoints.damage(latest) if latest else ""
        if wrong:
            raise errors.UserError("%s; a run passes over it" % wrong)
        return latest or run.init_checkpoint or "none, the run begins anew"

    def _room(self):
        run = dataclasses.replace(self._run, do_train=True)
        predictions = (self._pretraining.max_predictions_per_seq
                       if self._head == "masked_lm" else 0)
        return "; ".join(preflight.check_run(
            run, self._config, self._device, self._head,
            predictions=predictions))


def main(_):
    run = command_line.build(training.RunConfig, FLAGS)
    training.set_up_logging(run)
    Doctor(run, command_line.build(run_pretraining.PretrainingConfig, FLAGS),
           command_line.build(run_squad.SquadConfig, FLAGS),
           command_line.build(environment.DeviceConfig, FLAGS),
           command_line.build(DoctorConfig, FLAGS)).make_all()


if __name__ == "__main__":
    command_line.define(training.RunConfig, output_dir=".")
    command_line.define(run_pretraining.PretrainingConfig)
    command_line.define(run_squad.SquadConfig)
    command_line.define(environment.DeviceConfig)
    command_line.define(DoctorConfig)
    command_line.run(main)
