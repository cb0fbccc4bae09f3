# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that a run resumes from when files are damaged or missing."""

import fcntl
import os
import shutil

import pytest
import tensorflow.compat.v1 as tf

from common import errors, files
from helpers import tiny
from training import (
    checkpoints,
    input_pipeline,
    output_directory,
    run_config,
    tensorflow_errors,
)
from weights import tf_checkpoint


class Directory:
    """A run's directory with checkpoints of steps 1, 2 and 3."""

    def __init__(self, path):
        self.path = str(path)
        tf.get_variable("a", [100], initializer=tf.ones_initializer())
        tf.get_variable(
            "global_step", [], tf.int64, initializer=tf.constant_initializer(7)
        )
        seen = tf.get_variable(
            "batches_seen", [], tf.int64, initializer=tf.zeros_initializer()
        )
        self.saver = checkpoints.Saver(3)
        self.saver.build()
        self.session = tf.Session()
        self.session.run(tf.global_variables_initializer())
        for step in (1, 2, 3):
            seen.load(10 * step, self.session)
            self.saver.save(self.session, self.prefix(), step)

    def prefix(self, step=None):
        name = "model.ckpt" if step is None else f"model.ckpt-{step}"
        return os.path.join(self.path, name)

    def damage(self, step, keep=100, index=False):
        """Cuts a file off."""
        file = tf_checkpoint.index_file if index else tf_checkpoint.data_file
        os.truncate(file(self.prefix(step)), keep)

    def flip(self, step, offset, bit=5):
        """Changes a bit of the data."""
        with open(tf_checkpoint.data_file(self.prefix(step)), "r+b") as stream:
            stream.seek(offset)
            byte = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([byte ^ 1 << bit]))

    def steps(self):
        """The steps that TensorFlow believes to be there."""
        return [
            int(path.rpartition("-")[2])
            for path in checkpoints.listed(self.path)
        ]

    def state(self):
        """The text of the file that lists them."""
        with open(os.path.join(self.path, "checkpoint")) as stream:
            return stream.read()

    def write_state(self, text):
        with open(os.path.join(self.path, "checkpoint"), "w") as stream:
            stream.write(text)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    directory = Directory(tmp_path / "run")
    with directory.session:
        yield directory


def test_damage_in_the_middle_of_a_run_is_one_line(run):
    run.flip(3, 100)
    with pytest.raises(errors.UserError) as caught:
        with tensorflow_errors.reported(input_pipeline.Batches(), run.path):
            run.saver.restore(run.session, run.prefix(3))
    assert str(caught.value) == (
        f"damaged data: {run.prefix(3)}: 'a' is damaged, its checksum does not "
        "match; use another checkpoint or copy it again; run the same command "
        "again to resume from an undamaged checkpoint"
    )


@pytest.fixture
def warnings(log_lines):
    return lambda: [line for line in log_lines if "going back to" in line]


def test_whole_checkpoints_are_left_alone(run, warnings):
    before = run.state(), sorted(os.listdir(run.path))
    assert checkpoints.repair(run.path) == run.prefix(3)
    assert before == (run.state(), sorted(os.listdir(run.path)))
    assert warnings() == []
    assert checkpoints.batches_seen(checkpoints.newest(run.path)) == 30


def test_a_list_that_is_not_utf8_is_rewritten(run, warnings):
    with open(os.path.join(run.path, "checkpoint"), "wb") as stream:
        stream.write(b'model_checkpoint_path: "\xff"')
    assert checkpoints.repair(run.path) == run.prefix(3)
    assert run.steps() == [1, 2, 3] and len(warnings()) == 1
    assert checkpoints.newest(run.path) == run.prefix(3)


@pytest.mark.parametrize(
    "how", [{}, {"keep": 0}, {"index": True}, {"index": True, "keep": 0}]
)
def test_the_one_before_a_damaged_checkpoint_is_taken(run, warnings, how):
    run.damage(3, **how)
    assert checkpoints.repair(run.path) == run.prefix(2)
    assert run.steps() == [1, 2]
    assert checkpoints.newest(run.path) == run.prefix(2)
    assert checkpoints.batches_seen(checkpoints.newest(run.path)) == 20
    assert len(warnings()) == 1
    assert "model.ckpt-2:" in warnings()[0] and "-3" in warnings()[0]
    checkpoints.repair(run.path)
    assert len(warnings()) == 1  # no second warning


def test_a_missing_data_file_is_damage(run):
    os.remove(tf_checkpoint.data_file(run.prefix(3)))
    assert "No such file" in checkpoints.damage(run.prefix(3))
    assert checkpoints.repair(run.path) == run.prefix(2)


@pytest.mark.parametrize("offset", [0, 201, 399, 404, 412])
def test_a_flipped_bit_is_damage(run, warnings, offset):
    assert checkpoints.damage(run.prefix(3)) == ""
    run.flip(3, offset)
    assert "is damaged, its checksum" in checkpoints.damage(run.prefix(3))
    assert checkpoints.newest_whole(run.path) == run.prefix(2)
    assert checkpoints.repair(run.path) == run.prefix(2)
    assert len(warnings()) == 1
    run.flip(3, offset)
    assert checkpoints.damage(run.prefix(3)) == ""


def test_two_damaged_checkpoints_are_skipped(run, warnings):
    run.damage(2)
    run.damage(3)
    assert checkpoints.repair(run.path) == run.prefix(1)
    assert len(warnings()) == 1


def test_only_damaged_checkpoints_are_an_error_and_stay_listed(run):
    for step in (1, 2, 3):
        run.damage(step)
    with pytest.raises(
        errors.UserError,
        match="all checkpoints are damaged; "
        ".*-3.*move them away to start again",
    ):
        checkpoints.repair(run.path)
    assert run.steps() == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "model_checkpoint_pa"])
def test_a_lost_list_of_checkpoints_is_made_again(run, warnings, text):
    run.write_state(text)
    if not text:
        os.remove(os.path.join(run.path, "checkpoint"))
    assert checkpoints.repair(run.path) == run.prefix(3)
    assert run.steps() == [1, 2, 3]
    assert len(warnings()) == 1 and "missing or unreadable" in warnings()[0]


@pytest.mark.parametrize("place", ["original", "gone"])
def test_a_list_of_another_place_is_not_followed(
    run, tmp_path, warnings, place
):
    # As the NPU's own saver writes it, with absolute names.
    text = run.state().replace('"model', f'"{run.path}/model')
    run.write_state(text)
    assert checkpoints.repair(run.path) == run.prefix(3)
    assert run.state() == text and warnings() == []
    copy = str(tmp_path / "copy")
    shutil.copytree(run.path, copy)
    for suffix in ("index", "data-00000-of-00001"):
        os.remove(os.path.join(copy, f"model.ckpt-3.{suffix}"))
    if place == "gone":
        shutil.rmtree(run.path)
    expected = os.path.join(copy, "model.ckpt-2")
    assert checkpoints.newest(copy) == expected
    assert checkpoints.repair(copy) == expected
    assert tf.train.latest_checkpoint(copy) == expected
    assert len(warnings()) == 1


def test_a_whole_checkpoint_that_is_not_listed_is_found(run, warnings):
    run.write_state('model_checkpoint_path: "model.ckpt-3"')
    run.damage(3)
    assert checkpoints.repair(run.path) == run.prefix(2)
    run.write_state('model_checkpoint_path: "model.ckpt-9"')
    assert checkpoints.repair(run.path) == run.prefix(2)
    assert tf.train.latest_checkpoint(run.path) == run.prefix(2)
    assert len(warnings()) == 2


def test_a_checkpoint_deleted_while_it_is_read_is_skipped(run):
    def restore():
        path = tf.train.latest_checkpoint(run.path)
        if path == run.prefix(3):  # a training run rotates it away
            for suffix in ("index", "data-00000-of-00001"):
                os.remove(f"{path}.{suffix}")
        run.saver.restore(run.session, path)
        return path

    assert checkpoints.restored(run.path, restore) == run.prefix(2)
    with pytest.raises(ValueError, match="another reason"):
        checkpoints.restored(run.path, lambda: int("another reason"))


def test_going_back_by_hand_is_respected(run):
    run.write_state(
        run.state().replace(
            'model_checkpoint_path: "model.ckpt-3"',
            'model_checkpoint_path: "model.ckpt-2"',
            1,
        )
    )
    assert checkpoints.repair(run.path) == run.prefix(2)
    assert run.steps() == [1, 2]


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert checkpoints.repair(str(tmp_path)) is None
    assert checkpoints.batches_seen(None) == 0
    assert os.listdir(str(tmp_path)) == []


def test_unfinished_files_of_a_killed_save_are_removed(run):
    complete = sorted(os.listdir(run.path))
    os.mkdir(os.path.join(run.path, "model.ckpt-4_temp_0123"))
    for name in ("graph.pbtxt.tmp0123", "checkpoint.tmp0123"):
        files.write_text(os.path.join(run.path, name), "unfinished")
    checkpoints.repair(run.path, removes=False)
    assert len(os.listdir(run.path)) == len(complete) + 3
    checkpoints.repair(run.path)
    assert sorted(os.listdir(run.path)) == complete


def test_a_moved_directory_still_works(run, tmp_path):
    run.damage(3)
    checkpoints.repair(run.path)
    moved = str(tmp_path / "moved")
    os.rename(run.path, moved)
    assert checkpoints.newest(moved) == os.path.join(moved, "model.ckpt-2")


def test_a_restored_checkpoint_is_not_written_again(run):
    name = tf_checkpoint.index_file(run.prefix(3))
    os.utime(name, (1, 1))
    run.saver.restore(run.session, run.prefix(3))
    run.saver.save(run.session, run.prefix(), 3)
    assert os.path.getmtime(name) == 1
    run.saver.save(run.session, run.prefix(), 4)
    assert run.steps() == [2, 3, 4]


# Two runs in one directory.


def test_a_second_run_in_a_directory_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_CLAIM_SECONDS", 0.2)
    holder = os.open(str(tmp_path), os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)  # as another process holds it
    with pytest.raises(errors.UserError, match="another run trains in"):
        checkpoints.claim(str(tmp_path))
    os.close(holder)  # as the kernel does when it is killed
    checkpoints.claim(str(tmp_path))
    checkpoints.claim(str(tmp_path))  # this process already holds it
    intruder = os.open(str(tmp_path), os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(intruder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(intruder)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_keeps_the_unfinished_files_of_a_run(run, tmp_path):
    unfinished = tmp_path / "run" / "model.ckpt-4_temp_1"
    unfinished.mkdir()
    path = tiny.write_model(tmp_path / "model") / "config.json"
    for trains in (False, True):
        settings = run_config.RunConfig(
            bert_config_file=str(path), output_dir=run.path, do_train=trains
        )
        output_directory.prepare(settings, run_config.model_config(settings))
        assert unfinished.exists() is not trains
