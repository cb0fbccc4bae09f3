# SPDX-License-Identifier: Apache-2.0
"""What training commands share: TensorFlow errors, result files, the log."""

import logging
import os
import pty
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors, files, log_format, tfrecord
from helpers.paths import REPOSITORY
from training import (
    eval_results,
    input_pipeline,
    logs,
    progress,
    run_config,
    tensorflow_errors,
    train_step,
)


def reason(error, directory):
    """The message for an error, None where it stays as it is."""
    try:
        with tensorflow_errors.reported(
            input_pipeline.Batches(), str(directory)
        ):
            raise error
    except errors.UserError as user_error:
        return str(user_error)
    except tf.errors.OpError:
        return None


@pytest.mark.parametrize(
    "kind, text, message",
    [
        (
            tf.errors.ResourceExhaustedError,
            "OOM when allocating",
            "out of memory: OOM when allocating; use a smaller "
            "--train_batch_size and a larger --num_accumulation_steps",
        ),
        (
            tf.errors.ResourceExhaustedError,
            "Graph error:\n x.data; No space left on device",
            "TensorFlow cannot use its files in {}: No space left "
            "(x.data; No space left on device); free some space, then run the "
            "same command again to resume from the start",
        ),
        (
            tf.errors.PermissionDeniedError,
            "x.index; Permission denied",
            "Permission denied (x.index; Permission denied); make it usable",
        ),
        (
            tf.errors.PermissionDeniedError,
            "x; Read-only file system",
            "make it usable",
        ),
        (
            tf.errors.DataLossError,
            "TensorBundle at run/x shard 0: Checksum does not match",
            "damaged data: TensorBundle at run/x shard 0: Checksum does not "
            "match; run the same command again",
        ),
        (
            tf.errors.NotFoundError,
            "x; No such file or directory",
            "make it usable",
        ),
        (
            tf.errors.NotFoundError,
            "Key loss_scale not found in checkpoint",
            "lacks loss_scale, which these flags need; use the optimizer and "
            "the loss scale that it was trained with (--optimizer_type, "
            "--npu_bert_loss_scale), or pass it as --init_checkpoint",
        ),
    ],
)
def test_tensorflow_errors_that_a_user_can_fix(tmp_path, kind, text, message):
    error = kind(None, None, text + "\nand a page of operations")
    line = reason(error, tmp_path)
    assert message.format(tmp_path) in line and "a page" not in line


def test_other_errors_keep_their_traceback(tmp_path):
    error = tf.errors.InternalError(None, None, "a bug")
    assert reason(error, tmp_path) is None


def test_error_of_a_batch_comes_before_tensorflows():
    batches = input_pipeline.Batches()
    with pytest.raises(NotImplementedError):
        batches.arrays(0)
    with pytest.raises(NotImplementedError):
        with tensorflow_errors.reported(batches):
            raise tf.errors.UnknownError(None, None, "Error: ...")


# Files.


def test_results_are_lines_of_key_and_value(tmp_path):
    path = tmp_path / "eval_results.txt"
    eval_results.write_results(str(path), {"b": 1.5, "a": 2})
    assert path.read_text() == "a = 2\nb = 1.5\n"


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "predictions.json"
    files.write_json(str(path), {"q": "größer"})

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfrecord.os, "fsync", full)
    with pytest.raises(OSError) as caught:
        files.write_json(str(path), {"q": "x" * 10})
    assert caught.value.filename == str(path)
    assert os.listdir(str(tmp_path)) == ["predictions.json"]
    assert "größer" in path.read_text(encoding="utf-8")


def new_run(tmp_path, **changes):
    return run_config.RunConfig(output_dir=str(tmp_path / "out"), **changes)


# Steps.


def test_micro_batches_are_parts_of_the_batch():
    batch = tf.constant(np.arange(24).reshape(6, 4))
    parts = [
        train_step._micro_batch(batch, tf.constant(i), 3) for i in range(3)
    ]
    assert parts[0].shape.as_list() == [2, 4]
    with tf.Session() as session:
        values = session.run(parts)
    np.testing.assert_array_equal(
        np.concatenate(values), np.arange(24).reshape(6, 4)
    )


def test_dropout_seeds_differ_by_all_that_counts(tmp_path):
    with tf.Session() as session:
        seeds = [
            tuple(
                session.run(
                    train_step._dropout_seed(
                        new_run(
                            tmp_path, random_seed=seed, num_accumulation_steps=2
                        ),
                        rank,
                        tf.constant(seen, tf.int64),
                        tf.constant(index),
                    )
                )
            )
            for seed in (0, 1)
            for rank in (0, 1)
            for seen in (0, 1)
            for index in (0, 1)
        ]
    assert len(set(seeds)) == len(seeds) == 16


# The log.


TENSORFLOW = "/venv/lib/tensorflow_estimator/python/estimator/estimator.py"


@pytest.mark.parametrize(
    "text, is_shown",
    [
        ("Saving checkpoints for 10 into out/model.ckpt.", True),
        ("Calling model_fn.", False),
        ("Graph was finalized.", False),
        ("From x.py: foo is deprecated", False),
    ],
)
def test_routine_messages_of_tensorflow_alone_are_hidden(text, is_shown):
    for path, expected in ((TENSORFLOW, is_shown), ("/project/x.py", True)):
        record = logging.LogRecord(
            "tensorflow", logging.WARNING, path, 1, text, (), None
        )
        assert logs._is_shown(record) == expected
        assert log_format.Formatter().format(record).endswith(" W " + text)


def test_a_long_wait_has_lines_until_it_ends(caplog):
    caplog.set_level("INFO", logger="absl")
    with logs.waiting("a wait", 0.01) as ended:
        while len(caplog.messages) < 2:
            time.sleep(0.001)
        ended.set()
        time.sleep(0.05)
        lines = len(caplog.messages)
        time.sleep(0.05)
    assert caplog.messages == ["a wait: 0 s so far"] * lines


@pytest.mark.parametrize("is_shown", [True, False])
def test_counted_items_have_lines_with_the_time_left(is_shown, caplog):
    """A test writes to a file, where a bar would not be readable."""
    caplog.set_level("INFO", logger="absl")
    items = logs.counted(
        iter("abcd"), 4, "read", "text", is_shown=is_shown, seconds=0.0
    )
    assert list(items) == list("abcd")
    lines = [f"read: {n} of 4, time_left=0:00:00" for n in (1, 2, 3, 4)]
    assert caplog.messages == (lines if is_shown else [])


def test_the_first_step_ends_the_start():
    calls = []
    hook = progress.StartHook(0, 0, lambda: calls.append(1))
    step = tf.train.get_or_create_global_step()
    with tf.train.MonitoredSession(hooks=[hook]) as session:
        assert not calls
        session.run(step)
    assert calls == [1]


BAR = """import tensorflow.compat.v1 as tf
from absl import logging as absl_logging
from common import command_line
from training import logs, run_config
def main(_):
    logs.set_up_logging(run_config.RunConfig(output_dir="unused"))
    with logs.progress_bar(total=2, desc="steps", mininterval=0) as bar:
        for _ in range(2):
            tf.logging.info("a line")
            absl_logging.info("a line")
            bar.update()
command_line.run(main)
"""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bar_of_a_terminal_does_not_mix_with_log_lines(is_terminal):
    reader, writer = pty.openpty() if is_terminal else os.pipe()
    with open(reader, "rb") as stream:
        subprocess.run(
            [sys.executable, "-c", BAR], stderr=writer, cwd=str(REPOSITORY)
        )
        os.write(writer, b"end\n")
        text = b""
        while not text.rstrip().endswith(b"end"):
            text += os.read(stream.fileno(), 4096)
        os.close(writer)
    assert (b" 2/2 [" in text) == is_terminal
    # What a terminal shows: a carriage return goes back to the first column.
    lines = [line.rstrip(b"\r").split(b"\r")[-1] for line in text.split(b"\n")]
    logged = [line for line in lines if b"a line" in line]
    assert len(logged) == 4
    assert all(re.fullmatch(rb"[-0-9]+ [:0-9]+ I a line", x) for x in logged)


def test_deprecation_warnings_come_from_tensorflows_own_files(monkeypatch):
    logged = []
    monkeypatch.setattr(tf.get_logger(), "handle", logged.append)
    tf.train.start_queue_runners(tf.Session(), start=False)
    tf.logging.warning("deprecated, but ours")
    assert "is deprecated" in logged[0].getMessage()
    shown = [r.getMessage() for r in logged if logs._is_shown(r)]
    assert shown == ["deprecated, but ours"]


@pytest.mark.parametrize(
    "name", ["a*", "a?", "a[1]", "a\\b", "a\nb", "a\udcff"]
)
def test_directories_that_could_not_be_resumed_are_rejected(name):
    with pytest.raises(errors.UserError, match="as a pattern"):
        run_config.RunConfig(output_dir=name)
    run_config.RunConfig(output_dir="a b/\u4e2d'\"%s{}")
