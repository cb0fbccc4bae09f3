# SPDX-License-Identifier: Apache-2.0
"""The choice of a device, and what the CPU makes of its options."""

import atexit
import functools
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import cpu_environment
import environment
import gpu_environment
import npu_environment
import optimization
from common import errors
from device import Processes
from helpers.paths import REPOSITORY
from training import run_config


def create(environ=None, **options):
    return environment.create(
        environment.DeviceConfig(**options), {} if environ is None else environ
    )


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(npu_environment, "missing", lambda: "no npu_bridge")
    monkeypatch.setattr(
        tf.config.experimental, "list_physical_devices", lambda kind: []
    )


# The choice.


def test_auto_takes_the_cpu_where_nothing_else_is(no_accelerator, log_lines):
    device = create()
    assert (device.name, device.rank, device.world_size) == ("cpu", 0, 1)
    chosen = [line for line in log_lines if line.startswith("device=")]
    assert len(chosen) == 1 and "device=cpu reason=no NPU" in chosen[0]


def test_auto_takes_a_gpu_before_the_cpu(
    no_accelerator, monkeypatch, log_lines
):
    monkeypatch.setattr(
        tf.config.experimental,
        "list_physical_devices",
        lambda kind: ["gpu 0"] * (kind == "GPU"),
    )
    visible = []
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, grows: None
    )
    monkeypatch.setattr(
        tf.config.experimental,
        "set_visible_devices",
        lambda gpus, kind: visible.append(gpus),
    )
    device = create()
    assert device.name == "gpu"
    assert device.session_config().gpu_options.allow_growth
    assert "device=gpu reason=TensorFlow sees 1" in log_lines
    cpu = create(accelerator="cpu")
    assert cpu.name == "cpu" and cpu.session_config().device_count["GPU"] == 0
    assert visible == ["gpu 0", []]


@pytest.mark.parametrize(
    "accelerator, message",
    [
        ("gpu", "sees no GPU; run bash scripts/setup.sh --gpu"),
        ("npu", "no npu_bridge"),
    ],
)
def test_accelerator_that_is_not_usable_is_an_error(
    no_accelerator, accelerator, message
):
    with pytest.raises(errors.UserError, match=message):
        create(accelerator=accelerator)


def test_npu_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.UserError, match="npu_bridge.*install"):
        create(accelerator="npu")


def test_horovod_that_does_not_import_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(errors.UserError, match="setup.sh --horovod"):
        create(accelerator="cpu", horovod=True)


@pytest.mark.parametrize(
    "environ", [{}, {"RANK_SIZE": ""}, {"RANK_SIZE": "1", "RANK_ID": "0"}]
)
def test_distributed_on_one_cpu_is_no_error(environ):
    device = create(environ, accelerator="cpu", distributed=True)
    assert (device.rank, device.world_size) == (0, 1)


def test_distributed_on_many_cpus_needs_horovod():
    with pytest.raises(errors.UserError, match="RANK_SIZE=8.*--horovod"):
        create({"RANK_SIZE": "8"}, accelerator="cpu", distributed=True)
    # The variable of another job is none of ours.
    assert create({"RANK_SIZE": "8"}, accelerator="cpu").world_size == 1


# Precision and loss scale.


def test_both_fp16_flags_are_an_error():
    with pytest.raises(errors.UserError, match="use one of them"):
        environment.DeviceConfig(manual_fp16=True, use_fp16=True)


@pytest.mark.parametrize("flag", ["manual_fp16", "use_fp16", "use_fp16_cls"])
def test_bf16_and_a_flag_of_fp16_are_an_error(flag):
    with pytest.raises(
        errors.UserError, match=f"--use_bf16 .*--{flag}.*use one"
    ):
        environment.DeviceConfig(use_bf16=True, **{flag: True})


def test_bf16_needs_tensorflow_2_15():
    def kernels():
        return create(accelerator="cpu", use_bf16=True).kernels

    if tf.__version__.startswith(("1.", "2.6.")):
        with pytest.raises(
            errors.UserError, match="--use_bf16.*no fast bfloat16.*2.15 or omit"
        ):
            kernels()
        return
    assert kernels().compute_dtype == kernels().head_dtype == tf.bfloat16


@pytest.mark.parametrize(
    "flags, warns",
    [("avx512f avx512_bf16 amx", 0), ("sse2 amx_bf16", 0), ("avx512f", 1)],
)
def test_slow_bf16_is_warned_of(monkeypatch, tmp_path, log_lines, flags, warns):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    monkeypatch.setattr(cpu_environment, "_CPU_INFO", str(path))
    cpu_environment.Cpu(environment.DeviceConfig(use_bf16=True), Processes())
    slow = [line for line in log_lines if "slower than float32" in line]
    assert len(slow) == warns


@pytest.mark.parametrize("scale", [-2, -0.5, 0.5, float("nan")])
def test_impossible_loss_scale_is_an_error(scale):
    with pytest.raises(errors.UserError, match="--npu_bert_loss_scale"):
        environment.DeviceConfig(npu_bert_loss_scale=scale)


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({}, -1),
        ({"manual_fp16": True}, 0),
        ({"use_fp16": True}, 0),
        ({"use_fp16_cls": True}, 0),
        ({"use_bf16": True}, -1),
        ({"manual_fp16": True, "npu_bert_loss_scale": -1.0}, -1),
        ({"npu_bert_loss_scale": 0.0}, 0),
        ({"npu_bert_loss_scale": 128.0}, 128),
    ],
)
def test_loss_scale_by_default_goes_with_half_precision(options, wanted):
    assert environment.DeviceConfig(**options).loss_scale == wanted


@pytest.mark.parametrize(
    "options, name, warns",
    [
        ({"use_fp16": True}, "has no effect on a CPU", True),
        ({"manual_fp16": True}, "fp16 on a CPU", True),
        ({"use_fp16_cls": True}, "fp16 on a CPU", True),
        ({}, "fp16", False),
    ],
)
def test_fp16_on_a_cpu_says_what_it_does(log_lines, options, name, warns):
    create(accelerator="cpu", **options)
    assert len([line for line in log_lines if name in line]) == warns


@pytest.mark.parametrize(
    "options, encoder, head",
    [
        ({}, tf.float32, tf.float32),
        ({"manual_fp16": True}, tf.float16, tf.float32),
        ({"use_fp16_cls": True}, tf.float32, tf.float16),
        ({"use_fp16": True}, tf.float32, tf.float32),
    ],
)
def test_kernels_have_the_precision_of_the_flags(options, encoder, head):
    kernels = create(accelerator="cpu", **options).kernels
    assert (kernels.compute_dtype, kernels.head_dtype) == (encoder, head)


def new_run(**changes):
    return run_config.RunConfig(output_dir="/nonexistent", **changes)


def loss_scale_at_first(**options):
    device = create(accelerator="cpu", **options)
    with tf.Graph().as_default(), tf.Session() as session:
        weight = tf.get_variable("weight", initializer=1.0)
        chain = device.wrap_optimizer(
            device.micro_batches(
                optimization.AdamW(0.1), lambda index: (weight, {}), new_run()
            ),
            new_run(),
        )
        chain.compute_gradients(tf.constant(1.0))
        report = device.overflow(chain)
        session.run(tf.global_variables_initializer())
        return session.run(report.get("loss_scale", tf.constant(-1.0)))


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({}, -1),
        ({"npu_bert_loss_scale": 0.0}, 2**15),
        ({"npu_bert_loss_scale": 0.0, "init_loss_scale_value": 64.0}, 64),
        ({"npu_bert_loss_scale": 8.0, "init_loss_scale_value": 64.0}, 8),
    ],
)
def test_first_loss_scale(options, wanted):
    assert loss_scale_at_first(**options) == wanted


# Processes.


class TwoProcesses(Processes):
    """The first of two, the other one's tensors being 0."""

    world_size = 2

    def average(self, tensors, in_fp16=False):
        return [tensor / 2.0 for tensor in tensors]


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_are_averaged_once(after, count):
    """Whether before or after the micro-batches are summed."""
    run = new_run(
        num_accumulation_steps=count, allreduce_post_accumulation=after
    )
    device = cpu_environment.Cpu(environment.DeviceConfig(), TwoProcesses())
    weight = tf.get_variable("weight", initializer=1.0)
    chain = device.wrap_optimizer(
        device.micro_batches(
            optimization.AdamW(0.1), lambda index: (6.0 * weight, {}), run
        ),
        run,
    )
    ((gradient, _),) = chain.compute_gradients(tf.constant(1.0))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(gradient) == 6.0 * count / 2


def test_other_ranks_save_nothing_and_leave_nothing_behind(monkeypatch):
    def model_fn(features, params):
        del features, params

    processes = Processes()
    processes.rank, processes.world_size = 1, 2
    run = new_run(save_checkpoints_steps=7)
    device = cpu_environment.Cpu(environment.DeviceConfig(), processes)
    at_exit = []
    monkeypatch.setattr(
        atexit,
        "register",
        lambda function, *args, **options: at_exit.append(
            functools.partial(function, *args, **options)
        ),
    )
    config = device.estimator(model_fn, run, 10).config
    assert config.save_checkpoints_steps is None
    assert config.save_checkpoints_secs is None
    assert config.model_dir != run.output_dir
    assert os.path.isdir(config.model_dir)
    at_exit.pop()()
    assert not os.path.exists(config.model_dir)
    first = create(accelerator="cpu").estimator(model_fn, run, 10).config
    assert first.save_checkpoints_steps == 7
    assert first.model_dir == run.output_dir


def test_two_dumps_at_once_are_refused():
    with pytest.raises(
        errors.UserError,
        match="--data_dump and --over_dump are both given; CANN writes one",
    ):
        environment.DeviceConfig(data_dump=True, over_dump=True)
    environment.DeviceConfig(data_dump=True)
    environment.DeviceConfig(over_dump=True)


@pytest.mark.parametrize(
    "flags, is_warned",
    [
        ({}, True),
        ({"precision_mode": "allow_mix_precision"}, True),
        ({"use_fp16": True, "npu_bert_loss_scale": -1}, True),
        ({"precision_mode": "must_keep_origin_dtype"}, False),
        ({"npu_bert_loss_scale": 0}, False),
        ({"manual_fp16": True}, False),
        ({"use_bf16": True}, False),
    ],
)
def test_fp16_on_an_npu_without_a_loss_scale_is_a_warning(
    log_lines, flags, is_warned
):
    device = npu_environment.Npu(environment.DeviceConfig(**flags), Processes())
    device._warn_of_underflow()
    warned = [line for line in log_lines if "small gradients" in line]
    assert bool(warned) == is_warned
    assert all("--npu_bert_loss_scale=0" in line for line in warned)


def test_cpu_threads_reach_the_session():
    for options, wanted in (({}, 0), ({"cpu_threads": 3}, 3)):
        config = create(accelerator="cpu", **options).session_config()
        assert config.intra_op_parallelism_threads == wanted


# XLA.

COMPILED = """
import cpu_environment
import environment
from device import Processes
import tensorflow.compat.v1 as tf
device = environment.create(environment.DeviceConfig(use_xla=True))
x = tf.placeholder(tf.float32, [4, 4])
y = tf.tanh(tf.matmul(x, x) + 1.0) * 2.0 - x
options = tf.RunOptions(output_partition_graphs=True)
metadata = tf.RunMetadata()
with tf.Session(config=device.session_config()) as session:
    session.run(y, {x: [[0.1] * 4] * 4}, options, metadata)
print(sorted({node.op for graph in metadata.partition_graphs
              for node in graph.node if node.op.startswith(("_Xla", "Xla"))}))
"""


def test_xla_compiles_on_a_cpu():
    """It reads its flags before the first session: a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True,
        timeout=120,
        cwd=str(REPOSITORY),
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "_Xla" in done.stdout.decode()


def test_without_nan_gives_tensorflow_a_finite_loss():
    device = create(accelerator="cpu")
    losses = tf.constant([1.5, np.nan, np.inf])
    with tf.Session() as session:
        found = session.run([device.without_nan(losses[i]) for i in range(3)])
    assert found == [1.5, 0.0, 0.0]


def test_peak_memory_of_a_cpu_is_that_of_its_process():
    device = create(accelerator="cpu")
    block = np.ones(device.peak_memory_bytes(), np.uint8)
    peak = device.peak_memory_bytes()
    assert peak > block.nbytes
    del block
    # Linux counts pages in batches.
    assert device.peak_memory_bytes() == pytest.approx(peak, rel=0.01)


def test_peak_memory_of_a_gpu_is_unknown_where_tensorflow_sees_none():
    gpu = gpu_environment.Gpu(environment.DeviceConfig(), Processes())
    assert gpu.peak_memory_bytes() is None
