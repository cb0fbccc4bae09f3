# SPDX-License-Identifier: Apache-2.0
"""Scores of a model while it trains, and of the checkpoints of a run.

The graph of the evaluation shares the variables of the training graph and is
built once. Batches are divided among the processes, and every process gets all
outputs, so that all decide alike whether to stop.

A run that resumes continues after the evaluations in metrics.jsonl that its
checkpoint had seen. `best/` has the best checkpoint, `best.json` in it
{"step", "metric", "value"}.
"""

import math
import os
import struct
import time
import typing

import numpy as np
import tensorflow.compat.v1 as tf

import device as devices
from common import files
from training import (
    checkpoints,
    eval_results,
    input_pipeline,
    logs,
    metrics_file,
    progress,
    run_config,
    run_record,
)
from weights import model_directory, tf_checkpoint

_WATCH_SECONDS = 10


class Task(typing.NamedTuple):
    """What is evaluated, and how.

    Attributes:
      batches: each sequence once; "index" int [B], negative in padding, says
        which row of the outputs a sequence gets; without "index" a batch is
        one row.
      steps: number of batches.
      rows: number of rows.
      outputs: function (features) -> {name: float32 [B, ...]}.
      score: function ({name: float32 [rows, ...]}) -> {name: number}.
      metric: the score by which checkpoints are compared; a loss should be
        low, others high.
    """

    batches: input_pipeline.Batches
    steps: int
    rows: int
    outputs: typing.Callable
    score: typing.Callable
    metric: str

    @property
    def sign(self) -> int:
        """1 where a higher metric is better, else -1."""
        return -1 if self.metric.endswith("loss") else 1


class Evaluation:
    """The evaluations of one training run; it outlives the graph."""

    def __init__(self, task: Task):
        self.task = task
        self.best = -math.inf  # sign * metric
        self.misses = 0  # evaluations since the best one
        self.last = 0  # step of the last evaluation

    def read(self, run: run_config.RunConfig, step: float = math.inf) -> None:
        """Counts the evaluations in metrics.jsonl; later lines are removed.

        Args:
          run: flags.
          step: the last one that counts.
        """
        self.best, self.misses, self.last = -math.inf, 0, 0
        for line in metrics_file.cut(run.output_dir, step):
            if line["kind"] == "eval":
                self.count(line.get(self.task.metric), line["step"])

    def resume(self, training: run_config.Training, step: int) -> bool:
        """Continues after the evaluations up to a step, in every process.

        Returns:
          Whether the run stopped early and is over.
        """
        run, agree = training.run, training.device.agree
        if training.device.rank == 0:
            self.read(run, step)
            if step >= training.num_train_steps:
                # Of the last step alone, as a run that was not killed.
                self.last = max(self.last, step - 1)
                score_checkpoints(run, training.device, self)
        (bits,) = struct.unpack("<q", struct.pack("<d", self.best))
        (self.best,) = struct.unpack("<d", struct.pack("<q", agree(bits)))
        self.misses, self.last = agree(self.misses), agree(self.last)
        if self.is_over(run):
            tf.logging.info(
                "step=%d: %d evaluations without a better %s, nothing is left "
                "to train; to train longer, raise --early_stopping_patience",
                step,
                self.misses,
                self.task.metric,
            )
        return self.is_over(run)

    def count(self, value: typing.Optional[float], step: int) -> bool:
        """Counts an evaluation; True if it is the best so far."""
        self.last = step
        if value is None or not self.task.sign * value > self.best:
            self.misses += 1
            return False
        self.best, self.misses = self.task.sign * value, 0
        return True

    def is_over(self, run: run_config.RunConfig) -> bool:
        """Whether the scores stopped rising (--early_stopping_patience)."""
        return 0 < run.early_stopping_patience <= self.misses


class Tower:
    """The graph of an evaluation, with the variables of the current graph."""

    def __init__(
        self, task: Task, max_length: int, processes: devices.Processes
    ):
        """
        Args:
          task: what is evaluated.
          max_length: size of an axis of the outputs that varies.
          processes: that share the work.
        """
        self._task, self._processes = task, processes
        self._features = {
            name: tf.placeholder(spec.dtype, spec.shape)
            for name, spec in task.batches.specs.items()
        }
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            self._outputs = task.outputs(self._features)
        self._shapes = {
            name: [task.rows]
            + [size or max_length for size in tensor.shape.as_list()[1:]]
            for name, tensor in sorted(self._outputs.items())
        }
        self._parts = [
            tf.placeholder(tf.float32, shape) for shape in self._shapes.values()
        ]
        self._means = processes.average(self._parts)

    def scores(self, session: tf.Session) -> typing.Dict[str, float]:
        """The scores of the session's weights, equal in every process."""
        processes, task = self._processes, self._task
        values = {n: np.zeros(s, np.float32) for n, s in self._shapes.items()}
        numbers = range(processes.rank, task.steps, processes.world_size)
        for number in logs.counted(
            numbers,
            len(numbers),
            "evaluate",
            "batch",
            is_shown=processes.rank == 0,
        ):
            batch = task.batches.make(number)
            rows = np.asarray(batch.get("index", [number]))
            outputs = session.run(
                self._outputs,
                {self._features[name]: batch[name] for name in self._features},
            )
            for name, output in outputs.items():
                room = values[name]
                part = tuple(slice(size) for size in output.shape[1:])
                room[(rows[rows >= 0],) + part] = output[rows >= 0]
        if processes.world_size > 1:  # rows of other processes are zeros
            parts = dict(zip(self._parts, values.values()))
            values = {
                name: mean * processes.world_size
                for name, mean in zip(values, session.run(self._means, parts))
            }
        return task.score(values)


class EvaluationHook(tf.train.SessionRunHook):
    """Evaluates every --evaluate_every_steps steps, and after the last one."""

    def __init__(self, training: run_config.Training, step: tf.Tensor):
        """
        Args:
          training: the run.
          step: the global step after the update.
        """
        self._training = training
        self._step_after = step
        self._step = tf.train.get_global_step()
        self._scorer = Scorer(
            training.run, training.device, training.evaluation
        )

    def after_create_session(self, session, coord):
        # The run may have been killed after the checkpoint of such a step.
        self._evaluate_if_due(session, int(session.run(self._step)))

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._step_after)

    def after_run(self, run_context, run_values):
        self._evaluate_if_due(run_context.session, int(run_values.results))
        if self._training.evaluation.is_over(self._training.run):
            run_context.request_stop()

    def _evaluate_if_due(self, session, step):
        every = self._training.run.evaluate_every_steps
        if step // every > self._training.evaluation.last // every:
            started = time.time()
            self._scorer.evaluate(session, step)
            self._training.save_timer.seconds += time.time() - started

    def end(self, session):
        step = int(session.run(self._step))
        if step >= self._training.num_train_steps:
            self._scorer.evaluate(session, step)
        self._scorer.close()


class Scorer:
    """Scores the weights of a session, logs them and keeps the best."""

    def __init__(
        self,
        run: run_config.RunConfig,
        processes: devices.Processes,
        evaluation: Evaluation,
    ):
        self._run, self._rank = run, processes.rank
        self._evaluation = evaluation
        self._tower = Tower(evaluation.task, run.max_seq_length, processes)
        self.saver = tf.train.Saver(
            tf.trainable_variables() + [tf.train.get_global_step()],
            max_to_keep=1,
            save_relative_paths=True,
        )
        self._writer = None

    def evaluate(self, session: tf.Session, step: int) -> None:
        """Evaluates a step, unless that was done."""
        evaluation, run = self._evaluation, self._run
        if step <= evaluation.last:
            return
        scores = self._tower.scores(session)
        is_best = evaluation.count(scores[evaluation.task.metric], step)
        if self._rank:
            return
        if is_best and run.keep_best:
            self._keep(session, step, scores)
        self._writer = self._writer or progress.scalar_writer(
            run.log_dir, "eval"
        )
        eval_results.log_results(self._writer, scores, step)
        metrics_file.append(run, "eval", step, scores)

    def _keep(self, session, step, scores):
        """Writes the weights, and how good they are, to best/."""
        directory = os.path.join(self._run.output_dir, checkpoints.BEST)
        os.makedirs(directory, exist_ok=True)
        for name in model_directory.FILES:
            source = os.path.join(self._run.output_dir, name)
            if os.path.isfile(source):
                data = files.read_bytes(source)
                files.write_bytes(os.path.join(directory, name), data)
        prefix = os.path.join(directory, "model.ckpt")
        path = self.saver.save(session, prefix, step, write_meta_graph=False)
        metric = self._evaluation.task.metric
        values = {"step": step, "metric": metric, "value": scores[metric]}
        files.write_json(os.path.join(directory, "best.json"), values)
        checkpoints.remove_others(directory, path)

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


def begin(training: run_config.Training, task: Task) -> None:
    """Prepares the evaluations of a run, or scores its checkpoints now."""
    run, evaluation = training.run, Evaluation(task)
    if run.do_train and run.evaluate_every_steps:
        training.evaluation = evaluation
    if run.scores_checkpoints and training.device.rank == 0:
        evaluation.read(run)
        score_checkpoints(run, training.device, evaluation)


def score_checkpoints(
    run: run_config.RunConfig, device: devices.Device, evaluation: Evaluation
) -> None:
    """Scores the checkpoints after the last evaluation, oldest first.

    With --evaluate_checkpoints=watch it waits for those of a run in another
    process, until one of the last step is scored. Only one process does this.

    Args:
      run: flags.
      device: of this process.
      evaluation: what is evaluated, and what was.
    """
    with tf.Graph().as_default():
        tf.train.get_or_create_global_step()
        scorer = Scorer(run, devices.Processes(), evaluation)
        with tf.Session(config=device.session_config()) as session:
            while True:
                for path in checkpoints.listed(run.output_dir):
                    if tf_checkpoint.step_of(path) > evaluation.last:
                        _score(scorer, session, path)
                if run.evaluate_checkpoints != "watch":
                    break
                record = run_record.read(run.output_dir)
                last = record and record["changeable"]["num_train_steps"]
                if record and evaluation.last >= last:
                    break
                tf.logging.info(
                    "step=%d of %s is scored; waiting for the next checkpoint",
                    evaluation.last,
                    last or "a run that has not started",
                )
                time.sleep(_WATCH_SECONDS)
    scorer.close()


def _score(scorer, session, path):
    """Scores a checkpoint, which the run may remove at any moment."""
    try:
        scorer.saver.restore(session, path)
    except (tf.errors.OpError, ValueError) as error:
        tf.logging.warning(
            "%s: not scored, it cannot be read: %s",
            path,
            str(error).splitlines()[0],
        )
        return
    scorer.evaluate(session, tf_checkpoint.step_of(path))
