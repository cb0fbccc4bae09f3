# SPDX-License-Identifier: Apache-2.0
"""The log line: its keys, its throughput; runs that are stuck or lost."""

import collections
import io
import math
import re

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tqdm

from common import errors
from helpers import tiny
from training import checkpoints, progress, run_config

# What the hook reads of tf.train.SessionRunValues and
# tf.train.SessionRunContext.
Values = collections.namedtuple("Values", ["results"])
Context = collections.namedtuple("Context", ["session"])


class Device(collections.namedtuple("Device", ["rank", "world_size"])):
    """What the hook reads of a device."""

    def peak_memory_bytes(self):
        return 2_500_000_000


class Norm(collections.namedtuple("Norm", ["values"])):
    """A session with one tensor."""

    def run(self, fetches):
        assert fetches == "norm"
        return next(self.values)


class Session:
    """A session with the counters of a run."""

    def __init__(self, batches, step):
        self._start = [batches, step]

    def run(self, fetches):
        assert fetches == ("batches_seen", "global_step")
        return self._start


class Run:
    """Calls a hook, with a clock that only moves by `call` and `save`."""

    def __init__(
        self,
        monkeypatch,
        directory,
        *,
        batches=0,
        step=0,
        every=2,
        seconds=0,
        sequences=0,
        rank=0,
        num_train_steps=1000,
        **options,
    ):
        self.clock, self.batches, self.step = 0.0, batches, step
        monkeypatch.setattr(progress.time, "time", lambda: self.clock)
        monkeypatch.setattr(checkpoints.time, "time", lambda: self.clock)
        run = run_config.RunConfig(
            output_dir=str(directory),
            display_loss_steps=every,
            display_loss_seconds=seconds,
            train_batch_size=8,
            num_accumulation_steps=2,
        )
        training = run_config.Training(
            None, run, Device(rank, 2), num_train_steps, 10, sequences
        )
        self.training, self.timer = training, training.save_timer
        self.hook = progress.ProgressHook(
            training,
            {},
            ("batches_seen", "global_step"),
            gradient_names=["a", "b", "c"],
            **options,
        )
        self.hook.after_create_session(Session(batches, step), None)

    def call(
        self,
        seconds=1.0,
        loss=2.0,
        batches=1,
        steps=None,
        context=None,
        **values,
    ):
        """One Session.run, of some steps."""
        self.clock += seconds
        self.batches += batches
        self.step += batches if steps is None else steps
        self.hook.after_run(
            context,
            Values(
                dict(
                    {
                        "loss": np.float32(loss),
                        "learning_rate": 1e-4,
                        "gradient_norm": 1.5,
                        "tokens": 400.0,
                        "batches_seen": self.batches,
                        "records_seen": 32 * self.batches,
                        "global_step": self.step,
                    },
                    **values,
                )
            ),
        )

    def save(self, seconds):
        self.timer.before_save(None, self.step)
        self.clock += seconds
        self.timer.after_save(None, self.step)


@pytest.fixture
def start(monkeypatch, tmp_path):
    return lambda **options: Run(monkeypatch, tmp_path, **options)


def lines_of(log_lines):
    """The log lines as {key: value}."""
    return [
        dict(word.split("=") for word in line.split())
        for line in log_lines
        if line.startswith("step=")
    ]


def test_line_and_its_keys(start, log_lines):
    run = start(sequences=128)
    for loss, accuracy in ((2.0, 0.25), (3.0, 0.5)):
        run.call(
            seconds=2, loss=loss, masked_lm_accuracy=accuracy, peak_seconds=0.5
        )
    assert re.fullmatch(
        r"step=2 loss=2\.500000 learning_rate=1\.000000e-04 "
        r"examples_per_second=16\.0 tokens_per_second=200\.0 "
        r"masked_lm_accuracy=0\.5000 time_left=0:33:16 epoch=0\.500 "
        r"gradient_norm=1\.5000 peak_memory_gigabytes=2\.50 mfu=0\.250",
        log_lines[-1],
    )


def test_line_under_a_loss_scale(start, log_lines):
    run = start()
    run.call(loss_scale=8.0, finite=[True, True])
    run.call(loss_scale=4.0, finite=[True, False], steps=0)
    run.call(loss_scale=4.0, finite=[True, True])
    run.call(loss_scale=4.0, finite=[True, True])
    _, first, second = lines_of(log_lines)
    assert list(second)[:7] == [
        "step",
        "loss",
        "learning_rate",
        "examples_per_second",
        "tokens_per_second",
        "loss_scale",
        "overflows",
    ]
    assert (first["step"], first["overflows"]) == ("1", "1")
    assert (second["step"], second["overflows"]) == ("3", "1")


def test_throughput_leaves_out_the_first_call_and_saves(start, log_lines):
    run = start(every=5)
    run.call(seconds=100.0)
    for step in range(9):
        run.call(seconds=0.5)
        if step in (2, 6):
            run.save(seconds=30.0)
    lines = lines_of(log_lines)[1:]
    rates = [line["examples_per_second"] for line in lines]
    assert rates == ["64.0", "64.0"]


def test_tokens_are_those_of_the_steps_between_two_lines(start, log_lines):
    run = start(every=3)
    run.call(tokens=9999.0)  # the first call counts nothing
    for tokens in (100.0, 200.0, 300.0, 400.0, 800.0):
        run.call(seconds=0.5, tokens=tokens)
    rates = [line["tokens_per_second"] for line in lines_of(log_lines)[1:]]
    assert rates == ["300.0", "1000.0"]


def test_first_line_has_no_throughput(start, log_lines):
    run = start(every=1)
    run.call()
    run.call()
    first, second = lines_of(log_lines)
    assert "examples_per_second" not in first and "time_left" not in first
    assert second["examples_per_second"] == "32.0"


def test_lines_at_the_first_step_every_so_many_steps_and_at_the_end(
    start, log_lines
):
    run = start(every=4, num_train_steps=10)
    for _ in range(10):
        run.call()
    steps = [line["step"] for line in lines_of(log_lines)]
    assert steps == ["1", "4", "8", "10"]
    assert lines_of(log_lines)[-1]["time_left"] == "0:00:00"


def test_slow_steps_have_lines_by_seconds_that_change_no_report(
    start, tmp_path, log_lines
):
    run = start(every=7, seconds=10)
    for loss in range(1, 9):
        run.call(seconds=4, loss=loss)
    run.hook.end(None)
    lines = lines_of(log_lines)
    assert [(line["step"], line["loss"]) for line in lines] == [
        ("1", "1.000000"),
        ("4", "2.500000"),
        ("7", "4.000000"),
    ]
    assert {line["examples_per_second"] for line in lines[1:]} == {"8.0"}
    assert set(tiny.scalars_of(tmp_path)["loss"].items()) == {(7, 4.0)}


def test_bar_counts_the_steps_of_a_resumed_run(start, log_lines):
    run = start(batches=103, step=100)
    run.training.bar = tqdm.tqdm(initial=100, file=io.StringIO())
    run.call()
    run.call(batches=3, steps=2)
    assert run.training.bar.n == 103


def test_several_steps_per_call(start, log_lines):
    run = start(every=20)
    for _ in range(5):
        run.call(seconds=8.0, batches=8)
    lines = lines_of(log_lines)
    assert [line["step"] for line in lines] == ["8", "24", "40"]
    assert lines[1]["examples_per_second"] == "32.0"
    assert lines[1]["tokens_per_second"] == "400.0"


def test_loss_is_the_mean_since_the_last_line(start, log_lines):
    run = start(every=3)
    for loss in (1.0, 2.0, 6.0):
        run.call(loss=loss)
    run.call(loss=np.inf, steps=0, loss_scale=2.0)  # overflows count nothing
    run.call(loss=4.0, loss_scale=2.0)
    run.call(loss=5.0, loss_scale=2.0)
    losses = [float(line["loss"]) for line in lines_of(log_lines)]
    assert losses == [1.0, 3.0, 4.5]


def test_resumed_run_counts_from_its_checkpoint(start, log_lines):
    run = start(batches=103, step=100, every=10)
    for _ in range(7):
        run.call(loss_scale=2.0)
    line = lines_of(log_lines)[-1]
    assert (line["step"], line["overflows"]) == ("107", "3")
    assert line["examples_per_second"] == "32.0"


def test_scalars_are_written(start, tmp_path, log_lines):
    run = start(every=2)
    for _ in range(4):
        run.call(masked_lm_accuracy=0.5, loss_scale=2.0, finite=[True])
    run.hook.end(None)
    (path,) = tmp_path.iterdir()
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in tf.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {step for step, _ in scalars} == {2, 4}
    assert {tag for _, tag in scalars} == {
        "loss",
        "learning_rate",
        "gradient_norm",
        "masked_lm_accuracy",
        "perplexity",
        "loss_scale",
        "overflows",
        "examples_per_second",
        "tokens_per_second",
        "peak_memory_gigabytes",
    }
    assert scalars[4, "perplexity"] == pytest.approx(math.exp(2.0))


def test_scalars_survive_the_estimators_own_event_file(tmp_path):
    writers = [tf.summary.FileWriter(str(tmp_path))] + [
        progress.scalar_writer(str(tmp_path), name)
        for name in ("train", "eval")
    ]
    for number, writer in enumerate(writers):
        progress.add_scalars(writer, {f"scalar{number}": 1.0}, 1)
        writer.close()
    assert {
        value.tag
        for path in tmp_path.iterdir()
        for event in tf.train.summary_iterator(str(path))
        for value in event.summary.value
    } == {"scalar0", "scalar1", "scalar2"}


def test_weight_norm_is_computed_once_a_line(start, tmp_path, log_lines):
    norms = iter([7.0, 8.0])
    context = Context(Norm(norms))
    run = start(every=2, weight_norm="norm")
    for _ in range(5):
        run.call(context=context)
    run.hook.end(None)
    (path,) = tmp_path.iterdir()
    scalars = {
        event.step: value.simple_value
        for event in tf.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "weight_norm"
    }
    assert scalars == {2: 7.0, 4: 8.0}


def test_ranks_other_than_0_write_nothing(start, tmp_path, log_lines):
    run = start(rank=1, num_train_steps=2)
    run.call()
    run.call()
    run.hook.end(None)
    assert not log_lines and not list(tmp_path.iterdir())


# Runs that are stopped.


def test_endless_overflow_names_the_first_gradient(start):
    run = start(step=50, batches=50)
    overflow = dict(
        steps=0, loss=np.inf, loss_scale=1.0, finite=[True, False, False]
    )
    for _ in range(progress.MAX_OVERFLOWS_IN_A_ROW - 1):
        run.call(**overflow)
    with pytest.raises(errors.UserError) as caught:
        run.call(**overflow)
    text = str(caught.value)
    assert "40 steps in a row overflowed after step 50" in text
    assert "is that of b" in text and "scale is down to 1" in text


def test_overflows_with_good_steps_between_do_not_stop_the_run(start):
    run = start()
    for _ in range(3):
        for _ in range(progress.MAX_OVERFLOWS_IN_A_ROW - 1):
            run.call(steps=0, loss=np.nan, loss_scale=1.0, finite=[False])
        run.call(loss_scale=1.0, finite=[True])


def test_lost_loss_without_a_scale_ends_the_run(start):
    run = start()
    run.call()
    with pytest.raises(errors.UserError, match="loss is nan at step 2"):
        run.call(loss=np.nan)


# Runs that are stuck at chance.


@pytest.mark.parametrize(
    "loss, chance, warns",
    [(2.9, 3.0, True), (2.0, 3.0, False), (2.9, None, False)],
)
def test_loss_of_guessing_is_one_warning(start, log_lines, loss, chance, warns):
    run = start(chance=chance, every=progress.STUCK_AFTER_STEPS // 2)
    for _ in range(2 * progress.STUCK_AFTER_STEPS):
        run.call(loss=loss)
    warnings = [line for line in log_lines if "guessing" in line]
    assert len(warnings) == warns
    if warns:
        assert (
            f"step {progress.STUCK_AFTER_STEPS} is that of guessing (3.00)"
            in warnings[0]
        )
        assert "--learning_rate" in warnings[0]
