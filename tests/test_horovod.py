# SPDX-License-Identifier: Apache-2.0
"""Two Horovod processes train as one; real runs, one under horovodrun."""

import os
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

from helpers import horovod_ranks, planted, tiny
from helpers.paths import REPOSITORY
from training import checkpoints

pytest.importorskip("horovod.tensorflow", reason="Horovod is not installed")

HOROVODRUN = pathlib.Path(sys.executable).parent / "horovodrun"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("horovod")
    tiny.write_model(folder / "model")
    tiny.write_sequences(folder / "records")
    return folder


def flags(data, name, **more):
    settings = dict(
        bert_config_file=data / "model" / "config.json",
        input_files_dir=data / "records",
        output_dir=data / name,
        do_train=True,
        max_seq_length=tiny.LENGTH,
        max_predictions_per_seq=tiny.PREDICTIONS,
        num_train_steps=20,
        num_warmup_steps=2,
        learning_rate=1e-2,
        display_loss_steps=1,
        save_checkpoints_steps=10,
        accelerator="cpu",
        # With a small one Adam would hide gradients of a wrong scale.
        adam_epsilon=1e-3,
    )
    settings.update(more)
    return tiny.command("run_pretraining.py", [], **settings)


def two_processes(data, name, **more):
    """The outputs of both processes."""
    return launch(
        data / (name + "_logs"), flags(data, name, horovod=True, **more)
    )


def launch(folder, command):
    """The outputs of a command in two processes; their logs go to folder."""
    folder.mkdir(exist_ok=True)
    logs = [folder / "0.log", folder / "1.log"]
    code = horovod_ranks.Ranks(command, logs).wait(300)
    outputs = [log.read_text() for log in logs]
    assert code == 0, outputs[0][-3000:] + outputs[1][-3000:]
    return outputs


@pytest.fixture(scope="module")
def single(data):
    """The losses of one process with the whole batch."""
    return tiny.losses_of(
        tiny.run(
            flags(data, "one", train_batch_size=16), tiny.environment(npu=False)
        )
    )


@pytest.fixture(scope="module")
def two(data):
    """The outputs of both processes under horovodrun."""
    folder = data / "two_logs"
    tiny.run(
        [HOROVODRUN, "-np", "2", "--gloo", "--output-filename", folder]
        + flags(data, "two", horovod=True, train_batch_size=8),
        tiny.environment(
            npu=False,
            PATH=os.pathsep.join([str(HOROVODRUN.parent), os.environ["PATH"]]),
        ),
        timeout=300,
    )
    return [
        "".join(
            (folder / (f"rank.{rank}") / stream).read_text()
            for stream in ("stdout", "stderr")
        )
        for rank in (0, 1)
    ]


def assert_same(output, losses):
    actual = tiny.losses_of(output)
    assert len(actual) == 20 and losses[-5:].mean() < losses[:5].mean() - 0.1
    np.testing.assert_allclose(actual, losses, rtol=0, atol=1e-5)


def test_two_processes_give_the_losses_of_one(two, single):
    assert_same(two[0], single)


def test_two_micro_batches_give_the_losses_of_one(data, single):
    output = tiny.run(
        flags(data, "micro", train_batch_size=8, num_accumulation_steps=2),
        tiny.environment(npu=False),
    )
    assert_same(output, single)


def test_averaging_every_micro_batch_changes_nothing(data, single):
    outputs = two_processes(
        data,
        "each",
        train_batch_size=4,
        num_accumulation_steps=2,
        allreduce_post_accumulation=False,
    )
    assert_same(outputs[0], single)


def test_gradients_sent_in_fp16_give_nearly_the_losses_of_one(data, single):
    outputs = two_processes(
        data, "half", train_batch_size=8, allreduce_fp16=True
    )
    losses = tiny.losses_of(outputs[0])
    np.testing.assert_allclose(losses, single, rtol=0, atol=2e-3)
    assert np.abs(losses - single).max() > 1e-6
    assert "loss_scale=32768" in outputs[0]


ONCE = """
import sys
sys.path.insert(0, sys.argv[1])
import environment
from common import errors
device = environment.create(
    environment.DeviceConfig(accelerator="cpu", horovod=True)
)
def make():
    print("made by", device.rank)
    return {"rank": device.rank}
def fail():
    raise errors.UserError("bad input")
print("value", device.once_per_host(make))
try:
    device.once_per_host(fail)
except errors.UserError as error:
    print(error)
"""


def test_one_process_per_host_makes_a_value(tmp_path):
    script = tmp_path / "once.py"
    script.write_text(ONCE)
    outputs = launch(tmp_path / "logs", [sys.executable, script, REPOSITORY])
    assert "made by 0" in outputs[0] and "bad input" in outputs[0]
    assert "made by" not in outputs[1]
    assert all("value {'rank': 0}" in output for output in outputs)
    assert "another process could not read its input" in outputs[1]


def test_a_finished_run_ends_on_all_ranks(data, two):
    outputs = two_processes(data, "two", train_batch_size=8)
    assert "nothing is left to train" in outputs[0]


def test_the_number_of_processes_may_change(data, single):
    run = data / "elastic"
    shutil.copytree(str(data / "one"), str(run))
    checkpoints.keep(str(run), [str(run / "model.ckpt-10")])
    outputs = two_processes(
        data, "elastic", train_batch_size=8, save_checkpoints_steps=5
    )
    resumed = tiny.losses_of(outputs[0])
    # Logged with six digits.
    assert abs(resumed[0] - single[10]) < 1.5e-6
    np.testing.assert_allclose(resumed, single[10:], rtol=0, atol=1e-4)
    checkpoints.keep(str(run), [str(run / "model.ckpt-15")])
    output = tiny.run(
        flags(data, "elastic", train_batch_size=16), tiny.environment(npu=False)
    )
    assert "devices 2 -> 1" in output
    resumed = tiny.losses_of(output)
    np.testing.assert_allclose(resumed, single[15:], rtol=0, atol=1e-4)


def test_rank_0_alone_saves_and_logs(data, two, single):
    assert "learning_rate=0.01" in two[0]
    assert (
        "global_batch=16 train_batch_size=8 num_accumulation_steps=1 devices=2"
    ) in two[0]
    saved = [
        line for line in two[0].splitlines() if "Saving checkpoints" in line
    ]
    assert len(saved) == 3
    assert [line for line in two[1].splitlines() if " I " in line] == []
    assert {path.name for path in (data / "two").glob("model*.index")} == {
        "model.ckpt-0.index",
        "model.ckpt-10.index",
        "model.ckpt-20.index",
    }
    assert len(list((data / "two").glob("events*"))) == len(
        list((data / "one").glob("events*"))
    )


def test_two_processes_are_rolled_back_together(tmp_path):
    planted.Pretraining(tmp_path).write()
    outputs = launch(
        tmp_path / "logs",
        [sys.executable, planted.__file__, tmp_path, "90", "62", "65"],
    )
    logged = [line for line in outputs[0].splitlines() if "rollback 1" in line]
    assert len(logged) == 1, outputs[0][-3000:]
    assert "model.ckpt-50: loss" in logged[0]
    assert re.search(
        r"at step 63 \(batch 62\); resuming at batch 82$", logged[0]
    )
    assert "rollback 1" not in outputs[1]
    # 90 updates; the batches from 50 to 81 are skipped.
    assert (
        checkpoints.batches_seen(checkpoints.newest(str(tmp_path / "two")))
        == 90 + 82 - 50
    )
