# SPDX-License-Identifier: Apache-2.0
"""run.json: what may change when a run is resumed, and what stops it."""

import json
import re
import shutil

import numpy as np
import pytest

from helpers import tiny
from helpers.paths import REPOSITORY
from pretraining_data import manifest
from training import checkpoints, run_record

FIRST_VERSION = REPOSITORY / "tests" / "data" / "first_version"


class Runs:
    """Pre-training in one directory, a few steps at a time."""

    def __init__(self, folder, forked):
        self.folder, self._forked = folder, forked
        tiny.write_model(folder / "model")
        tiny.write_sequences(folder / "records")

    def __call__(self, steps, code=0, **changed):
        flags = dict(
            bert_config_file=self.folder / "model" / "config.json",
            input_files_dir=self.folder / "records",
            output_dir=self.folder / "run",
            do_train=True,
            max_seq_length=tiny.LENGTH,
            max_predictions_per_seq=tiny.PREDICTIONS,
            train_batch_size=8,
            learning_rate=1e-3,
            num_train_steps=steps,
            num_warmup_steps=1,
            display_loss_steps=1,
            accelerator="cpu",
            cpu_threads=1,
        )
        return self._forked(
            "run_pretraining.py", code=code, **{**flags, **changed}
        )


@pytest.fixture
def runs(tmp_path, forked):
    return Runs(tmp_path, forked)


def test_what_a_run_learns_from_may_not_change(runs, tmp_path):
    runs(2)
    tiny.write_sequences(tmp_path / "other_records", count=63)
    tiny.write_model(tmp_path / "other", dropout=0.3)
    saved = (tmp_path / "run" / "run.json").read_bytes()
    for changed, name in (
        ({"random_seed": 1}, "random_seed 12345 -> 1"),
        ({"optimizer_type": "lamb"}, "optimizer_type adam -> lamb"),
        ({"input_files_dir": tmp_path / "other_records"}, "records sha256:"),
        ({"masked_lm_prob": 0.2}, "masked_lm_prob 0.15 -> 0.2"),
        (
            {"bert_config_file": tmp_path / "other" / "config.json"},
            "config.json's hidden_dropout_prob 0.0 -> 0.3",
        ),
    ):
        log = runs(3, code=1, **changed).splitlines()[-1]
        assert "the run began with other settings: " + name in log
        assert "pass --allow_changed_run=True" in log
        if "input_files_dir" in changed:
            assert re.search(r"; records file a.tfrecord \d+ -> \d+; use", log)
        assert (tmp_path / "run" / "run.json").read_bytes() == saved
    log = runs(3, random_seed=1, allow_changed_run=True)
    assert log.count("continuing (--allow_changed_run)") == 1
    assert "step=3 " in log
    log = runs(4, random_seed=1)
    assert "other settings" not in log
    (tmp_path / "run" / "run.json").write_text('{"fixed": []}')
    assert "run.json: fixed is missing" in runs(5, code=1).splitlines()[-1]


def test_records_of_another_build_name_what_differs(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_text("")
    shard = {"name": "a.tfrecord", "path": "x", "sha256": "12" * 32}
    old, new = (
        manifest.description(
            [str(path)],
            dict(shards=[dict(shard, **changes)], word_starts="", **values),
        )
        for changes, values in (
            ({"path": "y"}, {"packing": "a", "do_lower_case": False}),
            ({"sha256": "34" * 32}, {"packing": "a", "do_lower_case": True}),
        )
    )
    changes = run_record.changes(old, new)
    assert re.fullmatch(r"records sha256:\w{8} -> sha256:\w{8}", changes[0])
    assert changes[1:] == [
        "records' do_lower_case False -> True",
        "records file a.tfrecord sha256:12121212 -> sha256:34343434",
    ]


def test_other_settings_may_change_with_one_line(runs, tmp_path):
    runs(2)
    shutil.copytree(str(tmp_path / "records"), str(tmp_path / "moved"))
    log = runs(3, input_files_dir=tmp_path / "moved", learning_rate=2e-3)
    (line,) = [line for line in log.splitlines() if "settings changed" in line]
    assert "learning_rate 0.001 -> 0.002" in line
    assert "num_train_steps 2 -> 3" in line
    log = runs(3, input_files_dir=tmp_path / "moved", learning_rate=2e-3)
    assert "settings changed" not in log
    # --evaluate_checkpoints=watch reads how many steps there will be.
    assert "nothing is left to train" in runs(2)
    record = run_record.read(str(tmp_path / "run"))
    assert record["changeable"]["num_train_steps"] == 2


def test_another_batch_resumes_at_the_next_record(runs, tmp_path):
    first = tmp_path / "run"
    losses = tiny.losses_of(
        runs(
            26,
            train_batch_size=16,
            save_checkpoints_steps=5,
            keep_checkpoint_max=9,
        )
    )
    checkpoints.keep(str(first), [str(first / "model.ckpt-5")])
    for name, batch, micro_batches, rate in (
        ("same", 8, 2, 1e-3),
        ("small", 4, 1, 1e-9),  # its weights stay those of step 5
    ):
        shutil.copytree(str(first), str(tmp_path / name))
        log = runs(
            26,
            output_dir=tmp_path / name,
            train_batch_size=batch,
            num_accumulation_steps=micro_batches,
            learning_rate=rate,
        )
        assert "train_batch_size 16 -> " in log
        values = tiny.values_of(tmp_path / name / "model.ckpt-26")
        assert values["batches_seen"] == 26
        assert values["records_seen"] == 5 * 16 + 21 * batch * micro_batches
        resumed = tiny.losses_of(log)
        if name == "small":
            # But for the number of predictions of each record.
            assert abs(resumed[:4].mean() - losses[5]) < 1e-2
        else:
            assert abs(resumed[0] - losses[5]) < 1.5e-6  # of six digits
            np.testing.assert_allclose(resumed, losses[5:], rtol=0, atol=1e-4)


def test_a_run_of_the_first_version_resumes_with_one_warning(tmp_path, forked):
    run = tmp_path / "run"
    shutil.copytree(str(FIRST_VERSION / "pretraining"), str(run))
    log = forked(
        "run_pretraining.py",
        bert_config_file=FIRST_VERSION / "config.json",
        input_files_dir=FIRST_VERSION / "records",
        output_dir=run,
        do_train=True,
        max_seq_length=64,
        max_predictions_per_seq=12,
        train_batch_size=8,
        learning_rate=1e-3,
        num_train_steps=12,
        num_warmup_steps=2,
        accelerator="cpu",
        cpu_threads=1,
    )
    assert log.count("run.json does not exist") == 1
    assert json.loads((run / "run.json").read_text())["order_batch"] == 8
    assert tiny.values_of(run / "model.ckpt-12")["records_seen"] == 12 * 8
    actual, expected = (
        tiny.values_of(path / "model.ckpt-12")
        for path in (run, FIRST_VERSION / "resumed")
    )
    for name, value in expected.items():
        # Written with other versions of TensorFlow and other threads.
        np.testing.assert_allclose(
            actual[name], value, rtol=1e-3, atol=1e-5, err_msg=name
        )


def test_epochs_give_the_steps_also_of_a_resumed_run(runs, tmp_path):
    """Of 64 records, 2.5 times: 20 steps of 8."""
    first = tmp_path / "run"
    flags = dict(
        num_train_epochs=2.5, save_checkpoints_steps=5, keep_checkpoint_max=9
    )
    log = runs(3, **flags)
    assert "num_train_steps=20 sequences=64 epochs=2.5" in log
    assert tiny.steps_of(log)[-1]["epoch"] == 2.5
    whole = (first / "model.ckpt-20.data-00000-of-00001").read_bytes()
    record = json.loads((first / "run.json").read_text())["changeable"]
    assert record["num_train_epochs"] == 2.5
    assert record["num_train_steps"] == 20
    checkpoints.keep(str(first), [str(first / "model.ckpt-5")])
    shutil.copytree(str(first), str(tmp_path / "other"))
    runs(3, **flags)
    assert (first / "model.ckpt-20.data-00000-of-00001").read_bytes() == whole
    # 40 of the 160 were read, 120 are left.
    log = runs(3, output_dir=tmp_path / "other", train_batch_size=4, **flags)
    assert "num_train_steps 20 -> 35" in log
    values = tiny.values_of(tmp_path / "other" / "model.ckpt-35")
    assert values["records_seen"] == 160
    last = runs(
        3, code=1, output_dir=tmp_path / "new", num_warmup_steps=20, **flags
    ).splitlines()[-1]
    assert "less than the 20 steps of --num_train_epochs=2.5" in last
    assert not (tmp_path / "new").exists()
