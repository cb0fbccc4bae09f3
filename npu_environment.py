# SPDX-License-Identifier: Apache-2.0
"""Ascend NPUs, through Huawei's TensorFlow adapter.

The only file that names npu_bridge, and it imports it only when an NPU is
asked for. It keeps to the names and arguments that the adapter has in all of
its releases from 2021 on.

Source: Ascend/tensorflow (Apache 2.0), tf_adapter/python/npu_bridge; the
vendor's TensorFlow 1.15 porting guide.
"""

import dataclasses
import importlib.util
import json
import os
import re

import tensorflow.compat.v1 as tf

import device
from common import errors
from kernels import gather

_DEVICES_PER_SERVER = 8
# Precision modes that lower no float32 to fp16.
_KEEPS_RANGE = (
    "must_keep_origin_dtype",
    "force_fp32",
    "allow_fp32_to_bf16",
    "allow_mix_precision_bf16",
)


def missing():
    """What an NPU lacks here, as a message for the user; "" if nothing."""
    if importlib.util.find_spec("npu_bridge") is not None:
        return ""
    return (
        "--accelerator=npu, but the Python package npu_bridge does not "
        "import; install CANN and its TensorFlow adapter, and source its "
        "set_env.sh (docs/ascend.md)"
    )


def create(options, environ):
    """The NPU that the process's variables name.

    Args:
      options: device.DeviceConfig.
      environ: the process's variables; what the adapter insists on and is
        not set is added to them.

    Raises:
      errors.UserError: flags and variables do not go together.
    """
    if options.horovod:
        raise errors.UserError(
            "--horovod is for CPUs and GPUs; on NPUs give --distributed=True "
            "and start one process a device with scripts/run_8p.sh"
        )
    if options.use_xla:
        raise errors.UserError(
            "--use_xla is for GPUs and CPUs; an NPU has "
            "its own compiler, leave the flag out"
        )
    rank, world_size = _ranks(options, environ)
    # The adapter fails without a job's name, and releases of 2021 without a
    # number of ranks.
    environ.setdefault("JOB_ID", "10086")
    environ.setdefault("RANK_SIZE", "1")
    environ.setdefault(
        "ASCEND_DEVICE_ID",
        environ.get("DEVICE_ID", str(rank % _DEVICES_PER_SERVER)),
    )
    return Npu(options, _NpuProcesses(rank, world_size))


def _ranks(options, environ):
    """(rank, world size) of RANK_ID and RANK_SIZE; unset means one device."""
    size = _number(environ, "RANK_SIZE", 1, 1)
    if size == 1:
        return 0, 1
    if not environ.get("RANK_TABLE_FILE"):
        raise errors.UserError(
            f"RANK_SIZE is {size}, but RANK_TABLE_FILE is not set; write one "
            "with scripts/make_rank_table.py and export its path, or unset "
            "RANK_SIZE for one device"
        )
    if not os.path.exists(environ["RANK_TABLE_FILE"]):
        raise errors.UserError(
            f"RANK_TABLE_FILE is {environ['RANK_TABLE_FILE']!r}, which is not "
            "there; write it with scripts/make_rank_table.py"
        )
    if not options.distributed:
        raise errors.UserError(
            f"RANK_SIZE is {size}, but --distributed is False; give "
            "--distributed=True, or unset RANK_SIZE for one device"
        )
    rank = _number(environ, "RANK_ID", None, 0)
    if rank >= size:
        raise errors.UserError(
            f"RANK_ID is {rank}, but RANK_SIZE is {size}; ranks count from 0"
        )
    return rank, size


def _number(environ, name, default, least):
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdigit() or int(text) < least:
        raise errors.UserError(
            f"{name} is {text!r}; expected a whole number >= {least}"
        )
    return int(text)


class _NpuProcesses(device.Processes):
    """Ranks that average through HCCL."""

    def __init__(self, rank, world_size):
        self.rank = rank
        self.world_size = world_size

    def average(self, tensors):
        if self.world_size == 1:
            return list(tensors)
        from npu_bridge.hccl import hccl_ops

        # Without fusion they are no part of the gradients' split strategy.
        return [
            hccl_ops.allreduce(tensor, "sum", fusion=0) / self.world_size
            for tensor in tensors
        ]


class Npu(device.Device):
    """One NPU a process; ranks share the output directory."""

    name = "npu"
    static_shapes = True
    runs_between_steps = False  # it would compile that graph, for minutes

    def __init__(self, options, processes):
        super().__init__(options, processes)
        self._manager = None

    @property
    def stores_half(self):
        # Left to itself, the adapter computes products in fp16 and keeps
        # what goes between them in float32.
        return self._options.half_precision

    def versions(self):
        return dict(super().versions(), CANN=_cann_version())

    @property
    def stops_together(self):
        # A signal reaches the ranks in different loops of the device, and
        # one that ends early leaves the others waiting for its gradients.
        return self.world_size == 1

    @property
    def kernels(self):
        options = self._options
        kernels = super().kernels._replace(normalize=_normalize, embed=_embed)
        if options.npu_bert_fused_gelu:
            from npu_bridge.estimator.npu_unary_ops import npu_unary_ops

            kernels = kernels._replace(gelu=npu_unary_ops.gelu)
        if options.npu_bert_npu_dropout:
            kernels = kernels._replace(dropout=_dropout)
        if not options.npu_gather:
            kernels = kernels._replace(
                gather=tf.gather,
                embed=lambda table, ids: (tf.gather(table, ids), table),
            )
        return kernels

    def without_nan(self, loss):
        # The NPU saturates instead of giving inf or nan, and has no operator
        # that looks for them.
        return loss

    def micro_batches(self, optimizer, losses, run):
        if not run.allreduce_post_accumulation:
            tf.logging.info(
                "NPUs average gradients once an update, after accumulation"
            )
        return super().micro_batches(
            optimizer,
            losses,
            dataclasses.replace(run, allreduce_post_accumulation=True),
        )

    def wrap_optimizer(self, optimizer, run):
        """Averaging while the loss is scaled, then the loss scale."""
        del run
        self._warn_of_underflow()
        distributed = self.world_size > 1
        if distributed:
            from npu_bridge.estimator.npu.npu_optimizer import (
                NPUDistributedOptimizer,
            )

            self._split_gradients()
            optimizer = NPUDistributedOptimizer(optimizer)
        if self._options.loss_scale < 0:
            return optimizer
        from npu_bridge.estimator.npu.npu_loss_scale_optimizer import (
            NPULossScaleOptimizer,
        )

        self._manager = self._loss_scale_manager()
        return NPULossScaleOptimizer(
            optimizer, self._manager, is_distributed=distributed
        )

    def _warn_of_underflow(self):
        mode = self._precision_mode()
        if self._options.loss_scale < 0 and mode not in _KEEPS_RANGE:
            tf.logging.warning(
                "the NPU computes in fp16 (precision_mode=%s) and there is no "
                "loss scale, so that small gradients may become 0; give "
                "--npu_bert_loss_scale=0, or "
                "--precision_mode=must_keep_origin_dtype for float32",
                mode or "the adapter's own",
            )

    def _loss_scale_manager(self):
        from npu_bridge.estimator.npu.npu_loss_scale_manager import (
            ExponentialUpdateLossScaleManager,
            FixedLossScaleManager,
        )

        fixed = self._options.loss_scale
        if fixed:
            return FixedLossScaleManager(loss_scale=fixed)
        return ExponentialUpdateLossScaleManager(
            init_loss_scale=self._options.init_loss_scale_value,
            incr_every_n_steps=1000,
            decr_every_n_nan_or_inf=1,
            incr_ratio=2,
            decr_ratio=0.5,
        )

    def _split_gradients(self):
        """Tells HCCL into which parts to cut the gradients it averages."""
        text = self._options.npu_gradient_split
        if not text:
            return
        from hccl.split.api import set_split_strategy_by_size

        set_split_strategy_by_size([float(part) for part in text.split(",")])

    def overflow(self, optimizer):
        del optimizer
        if self._manager is None:
            return {}
        return {"loss_scale": self._manager.get_loss_scale()}

    def estimator(self, model_fn, run, num_train_steps):
        """An NPUEstimator; every rank restores from the same directory.

        The adapter sends the trainable variables alone from rank 0, so a
        resumed run needs one directory that all ranks read.
        """
        from npu_bridge.estimator.npu.npu_config import NPURunConfig
        from npu_bridge.estimator.npu.npu_estimator import NPUEstimator

        loop = loop_length(
            run.iterations_per_loop, num_train_steps, run.save_checkpoints_steps
        )
        if loop != run.iterations_per_loop:
            tf.logging.info(
                "iterations_per_loop=%d, the largest number up to %d that "
                "divides %d steps and fits into %d between checkpoints",
                loop,
                run.iterations_per_loop,
                num_train_steps,
                run.save_checkpoints_steps,
            )
        save_steps = run.save_checkpoints_steps // loop * loop
        config = NPURunConfig(
            model_dir=run.output_dir,
            tf_random_seed=run.random_seed,
            session_config=tf.ConfigProto(allow_soft_placement=True),
            # 0 and not None, which would save every 100 steps.
            save_checkpoints_steps=save_steps if self.rank == 0 else 0,
            save_summary_steps=0,
            log_step_count_steps=None,
            keep_checkpoint_max=run.keep_checkpoint_max,
            iterations_per_loop=loop,
            enable_data_pre_proc=self._options.npu_bert_use_tdt,
            hcom_parallel=self._options.hcom_parallel,
            **self._optional_arguments(run),
        )
        return NPUEstimator(
            model_fn=model_fn,
            config=config,
            params={},
            job_start_file=self._options.npu_bert_job_start_file,
        )

    def _precision_mode(self):
        """The graph compiler's, "" for the adapter's own."""
        options = self._options
        if options.precision_mode:
            return options.precision_mode
        if options.manual_fp16:
            return "must_keep_origin_dtype"
        return "allow_mix_precision" if options.use_fp16 else ""

    def _optional_arguments(self, run):
        """Arguments that a plain run leaves to the adapter."""
        options, arguments = self._options, {}
        precision = self._precision_mode()
        if precision:
            arguments["precision_mode"] = precision
        if options.profiling:
            arguments["profiling_config"] = _profiling(
                os.path.join(run.output_dir, "profiling")
            )
        if options.data_dump or options.over_dump:
            arguments["dump_config"] = _dump(
                os.path.join(run.output_dir, "dump"), options
            )
        return arguments


def _cann_version():
    """What the toolkit that this process imports says of itself."""
    spec = importlib.util.find_spec("npu_bridge")
    folder = os.path.dirname(spec.origin) if spec and spec.origin else os.sep
    while os.path.dirname(folder) != folder:
        for name in ("version.info", "version.cfg"):
            path = os.path.join(folder, name)
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as stream:
                    found = re.search(r"\d+(\.\w+)+", stream.read(1 << 16))
                return found.group() if found else "unknown"
        folder = os.path.dirname(folder)
    return "unknown"


def _dropout(x, rate, seed):
    """The NPU's dropout; its seed is the graph's."""
    del seed
    from npu_bridge.estimator import npu_ops

    return npu_ops.dropout(x, keep_prob=1.0 - rate)


def _normalize(x, gamma, beta, epsilon):
    """LayerNorm in the operations that the NPU's compiler fuses."""
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)


def _embed(table, ids):
    """Rows and table with a dense gradient by a sum the NPU has."""
    return gather(table, ids), table


def loop_length(wanted, num_train_steps, save_checkpoints_steps):
    """Steps of one call of the device.

    The device stops only between two calls, so their length divides the steps
    of the run; checkpoints are written between two calls too.

    Args:
      wanted: --iterations_per_loop.
      num_train_steps: steps of the run.
      save_checkpoints_steps: steps between two checkpoints.

    Returns:
      The largest divisor of num_train_steps that is at most the other two.
    """
    most = min(wanted, save_checkpoints_steps, num_train_steps)
    return next(
        length for length in range(most, 0, -1) if num_train_steps % length == 0
    )


def _profiling(directory):
    from npu_bridge.estimator.npu.npu_config import ProfilingConfig

    os.makedirs(directory, exist_ok=True)
    return ProfilingConfig(
        enable_profiling=True,
        profiling_options=json.dumps(
            {
                "output": directory,
                "training_trace": "on",
                "task_trace": "on",
                "fp_point": "",
                "bp_point": "",
            }
        ),
    )


def _dump(directory, options):
    from npu_bridge.estimator.npu.npu_config import DumpConfig

    os.makedirs(directory, exist_ok=True)
    return DumpConfig(
        enable_dump=options.data_dump,
        dump_path=directory,
        dump_mode="all",
        enable_dump_debug=options.over_dump,
        dump_debug_mode="all",
    )
