# SPDX-License-Identifier: Apache-2.0
"""Horovod processes on GPUs: a fake Horovod, two invented GPUs, no CUDA."""

import json
import os

import pytest
import tensorflow.compat.v1 as tf

import environment
import gpu_environment
from common import errors
from device import Processes
from helpers import tiny, two_gpus


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpus")
    tiny.write_model(folder / "model", dropout=0.1)
    tiny.write_sequences(folder / "records")
    return folder


def run_rank(rank, folder, script, **flags):
    """(output, lines of two_gpus.py) of a process."""
    command = tiny.command(
        script,
        [],
        bert_config_file=folder / "model" / "config.json",
        horovod=True,
        do_train=True,
        train_batch_size=4,
        **flags,
    )
    command[1:1] = [two_gpus.__file__, str(rank), folder]
    output = tiny.run(command, tiny.environment(npu=False))
    with open(folder / f"sessions.{rank}") as stream:
        return output, [json.loads(line) for line in stream]


def pretrain(folder, rank, accelerator="gpu", num_train_steps=4, **flags):
    return run_rank(
        rank,
        folder,
        "run_pretraining.py",
        input_files_dir=folder / "records",
        output_dir=folder / "out",
        max_seq_length=tiny.LENGTH,
        max_predictions_per_seq=tiny.PREDICTIONS,
        num_train_steps=num_train_steps,
        accelerator=accelerator,
        num_warmup_steps=1,
        save_checkpoints_steps=4,
        **flags,
    )


@pytest.fixture(scope="module")
def trained(data):
    """The outputs and sessions of both ranks, and of the same run again."""
    return [pretrain(data, rank, manual_fp16=True) for rank in (0, 1, 0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_sessions_and_the_eager_context_have_one_gpu(trained, rank):
    lines = [line for line in trained[rank][1] if "visible" in line]
    assert len(lines) > 3
    assert {(line["visible"], line["growth"]) for line in lines} == {
        (str(rank), True)
    }
    is_two = not tf.__version__.startswith("1.")
    assert any("eager" in line for line in lines) == is_two


def test_a_finished_run_trains_on_no_rank(trained):
    for _, lines in trained[:2]:
        assert {"monitored": True} in lines
    for _, lines in trained[2:]:
        assert {"monitored": True} not in lines
        assert [line for line in lines if line.get("visible", "") == ""] == []
    assert "nothing is left to train" in trained[2][0]


def test_missing_nccl_is_a_warning(trained):
    assert "built without NCCL" in trained[0][0]
    assert "HOROVOD_GPU_OPERATIONS=NCCL" in trained[0][0]


@pytest.mark.parametrize(
    "count, local_rank, index", [(4, 2, "2"), (1, 3, "0"), (0, 0, "0")]
)
def test_gpu_of_a_process(monkeypatch, count, local_rank, index):
    """A scheduler may show each process one GPU alone."""
    assert gpu_of(monkeypatch, count, local_rank) == index


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    with pytest.raises(errors.UserError, match="process 2 of this host has no"):
        gpu_of(monkeypatch, 2, 2)


def gpu_of(monkeypatch, count, local_rank):
    experimental = tf.config.experimental
    chosen = []
    monkeypatch.setattr(
        experimental, "list_physical_devices", lambda kind: list(range(count))
    )
    monkeypatch.setattr(experimental, "set_memory_growth", lambda *_: None)
    monkeypatch.setattr(
        experimental, "set_visible_devices", lambda gpu, _: chosen.append(gpu)
    )
    processes = Processes()
    processes.local_rank = local_rank
    gpu = gpu_environment.Gpu(environment.DeviceConfig(), processes)
    index = gpu.session_config().gpu_options.visible_device_list
    assert chosen == [int(index)] * bool(count)
    return index


@pytest.mark.parametrize("cards, asked", [("", "1"), ("GPU-a, GPU-b", "GPU-b")])
def test_nvidia_smi_is_asked_about_this_gpu(
    monkeypatch, tmp_path, cards, asked
):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho $1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    processes = Processes()
    processes.local_rank = 1
    gpu = gpu_environment.Gpu(environment.DeviceConfig(), processes)
    assert gpu.versions()["GPU"] == "--id=" + asked


def test_fp16_on_the_wire_needs_horovod_and_a_loss_scale():
    with pytest.raises(errors.UserError, match="--allreduce_fp16.*--horovod"):
        environment.DeviceConfig(allreduce_fp16=True)
    options = environment.DeviceConfig(allreduce_fp16=True, horovod=True)
    assert options.loss_scale == 0


@pytest.mark.parametrize("use_xla", [None, False, True])
def test_xla_on_a_gpu_is_the_default_of_tensorflow_2(log_lines, use_xla):
    gpu = gpu_environment.Gpu(
        environment.DeviceConfig(use_xla=use_xla), Processes()
    )
    is_two = not tf.__version__.startswith("1.")
    expected = is_two if use_xla is None else use_xla
    options = gpu.session_config().graph_options.optimizer_options
    assert options.global_jit_level == int(expected)
    assert gpu.static_shapes == expected
    logged = [line for line in log_lines if line.startswith("use_xla=")]
    assert len(logged) == (use_xla is None)


@pytest.mark.skipif(
    not tf.__version__.startswith("1."), reason="it would last for the process"
)
def test_determinism_on_a_gpu_needs_tensorflow_2(monkeypatch):
    options = environment.DeviceConfig(deterministic=True)
    with pytest.raises(errors.UserError, match="--deterministic.*2.15"):
        gpu_environment.Gpu(options, Processes())


def test_cpu_hides_the_gpus(data):
    _, lines = pretrain(data, 1, accelerator="cpu", num_train_steps=5)
    assert {line["visible"] for line in lines if "visible" in line} == {""}
