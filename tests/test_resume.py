# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, signalled, or have a damaged checkpoint.

RESUME_KILLS=20 in the environment kills more often than 3 times,
RESUME_BIT_FLIPS=300 damages checkpoints more often than twice.
"""

import fcntl
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest

from helpers import forked, horovod_ranks, tiny
from training import checkpoints
from weights import tf_checkpoint

STEPS = 120
KILLS = int(os.environ.get("RESUME_KILLS", 3))
BIT_FLIPS = int(os.environ.get("RESUME_BIT_FLIPS", 2))
START_SECONDS = 2.0


class Script:
    """A training run of 120 steps with dropout, started several times."""

    def __init__(self, folder, script, **flags):
        self.folder = folder
        self._script = script
        self._flags = dict(
            bert_config_file=folder / "model" / "config.json",
            do_train=True,
            save_checkpoints_steps=15,
            display_loss_steps=1,
            accelerator="cpu",
            keep_checkpoint_max=3,
            # Floating-point summation order depends on the number of
            # threads, which may change from one start to the next.
            cpu_threads=1,
        )
        self._flags.update(flags)

    def words(self, name, **changed):
        """The command line of a run, without Python."""
        return tiny.command(
            self._script,
            [],
            **{**self._flags, "output_dir": self.folder / name, **changed},
        )[1:]

    def start(self, name, largest_file=None, **changed):
        """Starts the run whose output directory is `name`.

        A write beyond `largest_file` bytes fails, as on a full disk. The first
        start of the run "whole" is a process of its own, whose sets have
        another order than those of the forks (PYTHONHASHSEED).
        """

        def limit():
            if largest_file:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,) * 2)

        command = [sys.executable] + self.words(name, **changed)
        self.log = self.folder / (name + ".log")
        variables = tiny.environment(npu=False)
        with open(str(self.log), "w") as log:
            is_fork = name != "whole" or (self.folder / name).exists()
            if is_fork and not largest_file:
                return forked.Process(command, variables, log, log)
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=variables, preexec_fn=limit
            )

    def finish(self, process, code=0):
        """Waits; returns the log of the last start."""
        assert process.wait(timeout=600) == code, self.log.read_text()[-3000:]
        return self.log.read_text()

    def step(self):
        """The newest step in the log."""
        steps = re.findall(r" step=(\d+) loss", self.log.read_text())
        return int(steps[-1]) if steps else 0

    def wait_for(self, process, step):
        """Waits until a step was logged; False if the run ended before."""
        deadline = time.time() + 600
        while self.step() < step and process.poll() is None:
            assert time.time() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.005)
        return process.poll() is None

    def values(self, name):
        """{variable: array} of the newest checkpoint."""
        return tiny.values_of(checkpoints.newest(str(self.folder / name)))

    def weights(self, name):
        """{variable: bytes} of the newest checkpoint."""
        return {
            name: value.tobytes() for name, value in self.values(name).items()
        }


def pretraining(folder, kind=Script, **more):
    """Dynamic masks, two micro-batches, a loss scale that changes."""
    tiny.write_model(folder / "model", dropout=0.1)
    settings = dict(num_train_steps=STEPS, num_warmup_steps=10)
    settings.update(more)
    records = tiny.write_sequences(folder / "records")
    return kind(
        folder,
        "run_pretraining.py",
        input_files_dir=records,
        eval_files_dir=records,
        train_batch_size=4,
        num_accumulation_steps=2,
        npu_bert_loss_scale=0,
        # The scale overflows some steps at first.
        init_loss_scale_value=2.0**125,
        max_seq_length=tiny.LENGTH,
        max_predictions_per_seq=tiny.PREDICTIONS,
        learning_rate=1e-3,
        **settings,
    )


def squad(folder):
    model = tiny.write_model(folder / "model", dropout=0.1)
    questions = tiny.write_squad(folder / "train.json")
    return Script(
        folder,
        "run_squad.py",
        vocab_file=model / "vocab.json",
        merges_file=model / "merges.txt",
        train_file=questions,
        predict_file=questions,
        num_workers=1,
        train_batch_size=4,
        num_train_epochs=STEPS // 2,
        max_seq_length=96,
        doc_stride=32,
        learning_rate=1e-3,
    )


# The batch changes twice. num_train_steps, and with it the learning rate, is
# that of a phase.
PHASES = {
    pretraining: [
        {"num_train_steps": STEPS // 3},
        {
            "num_train_steps": 2 * STEPS // 3,
            "train_batch_size": 2,
            "num_accumulation_steps": 3,
        },
        {"train_batch_size": 8, "num_accumulation_steps": 1},
    ],
    # 8 questions: 40, 80 and 20 steps.
    squad: [
        {"num_train_epochs": STEPS // 6},
        {"num_train_epochs": STEPS // 3, "train_batch_size": 2},
        {"train_batch_size": 8},
    ],
}
EVALUATION = {
    pretraining: {"do_train": False, "do_eval": True},
    squad: {"do_train": False, "do_predict": True},
}


def kill(script, process, chance, done):
    """Kills at a random moment; returns the last step logged."""
    if chance.random() < 0.25:
        time.sleep(chance.uniform(0, START_SECONDS))
    elif script.wait_for(
        process,
        done + chance.randint(1, max(2, min(STEPS // 4, 2 * STEPS // KILLS))),
    ):
        time.sleep(chance.uniform(0, 0.1))
    process.kill()
    process.wait()
    return max(done, script.step())


@pytest.mark.parametrize("task", [pretraining, squad])
def test_killed_runs_end_with_the_same_weights_bit_for_bit(task, tmp_path):
    script, phases = task(tmp_path), PHASES[task]
    chance, done, places = random.Random(KILLS), 0, []
    for phase, changed in enumerate(phases):
        script.finish(script.start("whole", **changed))
        for number in range(phase * KILLS // 3, (phase + 1) * KILLS // 3):
            if number % 4 == 1:
                process = script.start("killed", **EVALUATION[task])
                time.sleep(chance.uniform(1, 2 * START_SECONDS))
                places.append(f"evaluation, {process.poll()}")
                process.kill()
                process.wait()
                continue
            process = script.start("killed", **changed)
            done = kill(script, process, chance, done)
            places.append(done)
        script.finish(script.start("killed", **changed))
    print("killed at", places)
    assert done > 0, "no kill met a run that trained"
    log = script.finish(script.start("killed", **EVALUATION[task]))
    assert "Traceback" not in log
    expected, weights = script.weights("whole"), script.weights("killed")
    steps = np.frombuffer(expected["global_step"], np.int64)
    assert steps == (STEPS if task is pretraining else 40 + 80 + 20)
    assert set(weights) == set(expected)
    assert [name for name in weights if weights[name] != expected[name]] == []
    assert not list((tmp_path / "killed").glob("*_temp*"))


def test_signals_and_a_truncated_checkpoint_lose_nothing(tmp_path):
    script = pretraining(tmp_path, num_train_steps=80)
    script.finish(script.start("undisturbed"))
    first = script.start("run")
    assert script.wait_for(first, 20)
    first.send_signal(signal.SIGTERM)
    log = script.finish(first, 143)
    newest = checkpoints.newest(str(tmp_path / "run"))
    assert int(newest.rpartition("-")[2]) >= 20
    assert log.splitlines()[-1].endswith(
        f"interrupted by a signal; saved {newest}. Run the same command again "
        "to resume"
    )
    before = checkpoints.listed(str(tmp_path / "run"))[-2]
    with open(tf_checkpoint.data_file(newest), "r+b") as stream:
        stream.truncate(1000)
    second = script.start("run")
    assert script.wait_for(second, 45)
    second.send_signal(signal.SIGINT)
    log = script.finish(second, 130)
    warnings = [line for line in log.splitlines() if "going back to" in line]
    assert len(warnings) == 1
    assert before + ":" in warnings[0] and newest in warnings[0]
    assert f"resuming from {before} at batch" in log
    kept = checkpoints.listed(str(tmp_path / "run"))
    log = script.finish(script.start("run", largest_file=50000), 1)
    assert re.search(
        r"error: TensorFlow cannot use its files in .*: File too "
        r"large \(.*\); free some space, then run the same command "
        rf"again to resume from {re.escape(kept[-1])}$",
        log,
    )
    assert checkpoints.listed(str(tmp_path / "run")) == kept
    script.finish(script.start("run"))
    assert script.weights("run") == script.weights("undisturbed")


def test_closing_the_terminal_saves_a_checkpoint(tmp_path):
    script = pretraining(tmp_path)
    terminal, end = pty.openpty()

    def own():
        os.setsid()
        fcntl.ioctl(end, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable] + script.words("run"),
        stdin=end,
        stdout=end,
        stderr=end,
        env=tiny.environment(npu=False),
        preexec_fn=own,
    ) as process:
        os.close(end)
        log = b""
        while b" step=20 " not in log:
            log += os.read(terminal, 1 << 16)
        os.close(terminal)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    newest = checkpoints.newest(str(tmp_path / "run"))
    assert 20 <= int(newest.rpartition("-")[2]) < STEPS


def test_a_removed_output_directory_is_one_line(tmp_path):
    script = pretraining(tmp_path)
    process = script.start("run")
    assert script.wait_for(process, 20)
    os.rename(str(tmp_path / "run"), str(tmp_path / "moved"))
    log = script.finish(process, 1)
    assert "Traceback" not in log
    assert f"error: {tmp_path / 'run'}: removed during the run; " in log


def flip_a_bit(chance, directory, step="*"):
    """Damages a file of a random checkpoint; returns the file's path."""
    files = sorted(directory.glob(f"model.ckpt-{step}.[di]*"))
    # By size, so that most flips are in the data.
    sizes = [path.stat().st_size for path in files]
    (path,) = chance.choices(files, sizes)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return path


def test_a_run_resumes_in_spite_of_a_flipped_bit(tmp_path):
    script = pretraining(
        tmp_path,
        num_train_steps=30,
        save_checkpoints_steps=5,
        keep_checkpoint_max=6,
    )
    script.finish(script.start("undisturbed"))
    expected = script.weights("undisturbed")
    base = tmp_path / "undisturbed"
    kept = checkpoints.listed(str(base))[:5]
    for path in base.glob("model.ckpt-30.*"):
        path.unlink()
    checkpoints.keep(str(base), kept)
    chance, gone_back = random.Random(BIT_FLIPS), 0
    for number in range(BIT_FLIPS):
        shutil.rmtree(str(tmp_path / "run"), ignore_errors=True)
        shutil.copytree(str(base), str(tmp_path / "run"))
        path = flip_a_bit(chance, tmp_path / "run", "*" if number else 25)
        log = script.finish(script.start("run"))
        assert "Traceback" not in log and log.count("going back to") < 2, path
        is_newest = "model.ckpt-25." in path.name
        has_gone_back = "model.ckpt-20: " in log
        # A bit of an index may have no meaning.
        assert is_newest >= has_gone_back
        assert is_newest <= has_gone_back or path.suffix == ".index", path
        gone_back += has_gone_back
        assert script.weights("run") == expected, path
    print(f"{BIT_FLIPS} bits flipped, {gone_back} runs went back")


class HorovodScript(Script):
    """The run in two processes."""

    def start(self, name):
        self.log = self.folder / (name + ".log")
        self.log.write_text("")
        command = [sys.executable] + self.words(name, horovod=True)
        return horovod_ranks.Ranks(command, [self.log] * 2)


def test_two_processes_stop_at_one_step_and_resume(tmp_path):
    pytest.importorskip("horovod.tensorflow", reason="Horovod is not installed")
    script = pretraining(tmp_path, HorovodScript, num_train_steps=40)
    whole = script.start("whole")
    script.finish(whole)
    process = script.start("run")
    assert script.wait_for(process, 15)
    # One of them is told to end; the other ends with it, after a checkpoint.
    process.processes[1].send_signal(signal.SIGTERM)
    script.finish(process, 143)
    log = script.log.read_text()
    assert log.count("interrupted by a signal") == 2, log[-3000:]
    newest = checkpoints.newest(str(tmp_path / "run"))
    step = int(newest.rpartition("-")[2])
    assert step == script.step() and 15 <= step < 40
    script.finish(script.start("run"))
    # Beside much other work one run of about thirty differed in last bits.
    values, expected = script.values("run"), script.values("whole")
    assert set(values) == set(expected)
    for name, value in expected.items():
        tolerance = 1e-6 if value.dtype == np.float32 else 0
        np.testing.assert_allclose(
            values[name],
            value,
            rtol=1e3 * tolerance,
            atol=tolerance,
            err_msg=name,
        )
