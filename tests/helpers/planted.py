# SPDX-License-Identifier: Apache-2.0
"""Pre-training in which some batches are bad, so that the loss jumps.

    horovodrun -np 2 --gloo python tests/helpers/planted.py DIR STEPS FIRST END

trains DIR/two on DIR's model and records, which Pretraining.write has
put there, with a spike planted in the batches from FIRST to before END.
"""

import pathlib
import sys

import numpy as np

_TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

import environment
import run_pretraining
from common import tfrecord
from helpers import single_records, tiny
from pretraining_data import records
from training import logs, loop, masked_lm_batches, output_directory, run_config


def write_drawn_tokens(folder):
    """Records of tokens drawn at random: no model gets below 1.3 nats."""
    random_state = np.random.RandomState(5)
    folder.mkdir()
    with tfrecord.RecordWriter(str(folder / "a.tfrecord")) as writer:
        for _ in range(256):
            ids = 10 + np.minimum(random_state.geometric(0.5, 30), 20)
            writer.write(
                single_records.encode_example(
                    {"input_ids": np.concatenate([[0], ids, [2]])}
                )
            )
    return str(folder)


class Planted(masked_lm_batches.MaskedLmBatches):
    """Some batches have labels drawn from the whole vocabulary."""

    def __init__(self, *arguments, bad=(), **options):
        super().__init__(*arguments, **options)
        self._bad = bad

    def make(self, step):
        batch = super().make(step)
        if step in self._bad:
            batch["masked_lm_ids"] = np.random.RandomState(step).randint(
                100, tiny.VOCAB_SIZE, batch["masked_lm_ids"].shape
            )
        return batch


class Pretraining:
    """A run of run_pretraining.py on Planted batches.

    `horovod` makes this process one of those that train together.
    """

    def __init__(self, folder, steps=240, horovod=False):
        self.folder, self.steps, self.horovod = folder, steps, horovod
        self.records = str(folder / "records")

    def write(self):
        """Writes the model config and the records; returns itself."""
        tiny.write_model(self.folder / "model")
        write_drawn_tokens(self.folder / "records")
        return self

    def __call__(self, name, bad=(), *, is_evaluated=False, **flags):
        """Trains; returns the loss of an evaluation, or None without one."""
        run = run_config.RunConfig(
            bert_config_file=str(self.folder / "model" / "config.json"),
            output_dir=str(self.folder / name),
            train_batch_size=16,
            max_seq_length=32,
            learning_rate=3e-3,
            save_checkpoints_steps=25,
            display_loss_steps=10,
            **flags,
        )
        task = run_pretraining.PretrainingConfig(
            num_train_steps=self.steps,
            num_warmup_steps=10,
            max_predictions_per_seq=6,
            masked_lm_prob=0.2,
            eval_batch_size=64,
        )
        device = environment.create(
            environment.DeviceConfig(
                accelerator="cpu", npu_bert_loss_scale=0, horovod=self.horovod
            )
        )
        config = run_config.model_config(run)
        output_directory.prepare(run, config, device.rank)
        training = run_config.Training(
            config, run, device, task.num_train_steps, task.num_warmup_steps
        )
        estimator = device.estimator(
            run_pretraining.build_model_fn(training, run), run, self.steps
        )
        source = run_pretraining.read_records(self.records, config, run, task)
        batches = Planted(
            source,
            batch_size=run.batch_size,
            rank=device.rank,
            world_size=device.world_size,
            seed=run.random_seed,
            bad=bad,
            order=records.RecordOrder(
                source.shard_counts, run.random_seed, 1000
            ),
        )
        loop.train(estimator, batches, training)
        if not is_evaluated:
            return None
        run_pretraining.evaluate(estimator, source, run, task, run)
        lines = (self.folder / name / "eval_results.txt").read_text()
        return float(lines.split("masked_lm_loss = ")[1].split()[0])


def main(folder, *numbers):
    steps, first, end = map(int, numbers)
    logs.set_up_logging(
        run_config.RunConfig(bert_config_file="none", output_dir="none")
    )
    Pretraining(pathlib.Path(folder), steps, horovod=True)(
        "two", range(first, end), divergence_guard="rollback"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
