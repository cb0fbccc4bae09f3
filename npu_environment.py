# SPDX-License-Identifier: Apache-2.0
"""Ascend NPUs, through Huawei's TensorFlow adapter.

The only module that names npu_bridge, the adapter for TensorFlow 1.15, and
npu_device, for TensorFlow 2.6, whose compat.v1 has the same modules.
One is imported when an NPU is used. It looks for names and arguments that not
all releases of the adapter since 2021 have, and does without them.

Source: Ascend/tensorflow (Apache 2.0), tf_adapter/python/npu_bridge; the
vendor's TensorFlow 1.15 porting guide.
"""

import importlib
import importlib.util
import inspect
import json
import os
import re
import types
import typing
import zlib

import tensorflow.compat.v1 as tf

import device
import kernels
import optimization
from common import errors

_ADAPTER, _MODULES = (
    ("npu_device", "npu_device.compat.v1")
    if tf.__version__.startswith("2.6.")
    else ("npu_bridge", "npu_bridge")
)
_DEVICES_PER_SERVER = 8
# A prime: float32, in which some operators of the NPU compute integers, holds
# products of two smaller numbers exactly, and cubes are a permutation.
_PRIME = 4091
# Precision modes that never lower float32 to fp16.
_KEEPS_RANGE = (
    "must_keep_origin_dtype",
    "force_fp32",
    "allow_fp32_to_bf16",
    "allow_mix_precision_bf16",
)


def missing() -> str:
    """A message about what an NPU lacks here; "" if nothing."""
    if importlib.util.find_spec(_ADAPTER) is not None:
        return ""
    return (
        f"--accelerator=npu: the {_ADAPTER} package does not import; install "
        "CANN and its TensorFlow adapter, and source its set_env.sh "
        "(docs/ascend.md)"
    )


def _adapter(module: str) -> types.ModuleType:
    """A module of the adapter, by its name below the package."""
    return importlib.import_module(f"{_MODULES}.{module}")


def create(
    options: device.DeviceConfig, environ: typing.MutableMapping[str, str]
) -> "Npu":
    """The NPU that the environment variables select.

    Args:
      options: DeviceConfig.
      environ: the process's environment variables; those that the adapter
        requires are added if unset.

    Raises:
      errors.UserError: flags and variables contradict each other.
    """
    if options.horovod:
        raise errors.UserError(
            "--horovod is for CPUs and GPUs; on NPUs pass --distributed=True "
            "and start one process per device with scripts/run_8p.sh"
        )
    if options.use_xla:
        raise errors.UserError(
            "--use_xla is for GPUs and CPUs; an NPU has its own compiler, so "
            "omit the flag"
        )
    rank, world_size = _ranks(options, environ)
    if _ADAPTER == "npu_device":
        importlib.import_module(_ADAPTER).compat.enable_v1()
    for name in ("deterministic", "use_bf16"):
        if getattr(options, name) and not _is_of_cann_7():
            raise errors.UserError(
                f"--{name}: this TensorFlow adapter has no such option; "
                "install CANN 7 or later and its adapter, or omit the "
                "flag"
            )
    # The adapter fails without JOB_ID, and releases of 2021 without RANK_SIZE.
    environ.setdefault("JOB_ID", "10086")
    environ.setdefault("RANK_SIZE", "1")
    environ.setdefault(
        "ASCEND_DEVICE_ID",
        environ.get("DEVICE_ID", str(rank % _DEVICES_PER_SERVER)),
    )
    return Npu(options, _NpuProcesses(rank, world_size))


def _is_of_cann_7():
    """Whether the adapter has the options that came with CANN 7."""
    config = _adapter("estimator.npu.npu_config").NPURunConfig
    return "deterministic" in inspect.signature(config.__init__).parameters


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
            f"RANK_TABLE_FILE is {environ['RANK_TABLE_FILE']!r}, which does "
            "not exist; write it with scripts/make_rank_table.py"
        )
    if not options.distributed:
        raise errors.UserError(
            f"RANK_SIZE is {size}, but --distributed is False; pass "
            "--distributed=True, or unset RANK_SIZE for one device"
        )
    rank = _number(environ, "RANK_ID", None, 0)
    if rank >= size:
        raise errors.UserError(
            f"RANK_ID is {rank}, but RANK_SIZE is {size}; expected 0 to "
            f"{size - 1}"
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

    def average(self, tensors, in_fp16=False):
        if self.world_size == 1:
            return list(tensors)
        allreduce = _adapter("hccl.hccl_ops").allreduce
        # The split strategy of the gradients counts only fused tensors.
        return [
            allreduce(tensor, "sum", fusion=0) / self.world_size
            for tensor in tensors
        ]


class Npu(device.Device):
    """One NPU per process; ranks share the output directory."""

    name = "npu"
    static_shapes = True
    runs_between_steps = False  # compiling a second graph takes minutes
    averages_micro_batches = False

    def __init__(
        self, options: device.DeviceConfig, processes: device.Processes
    ):
        super().__init__(options, processes)
        self._manager = None
        self._run = None  # that trains
        # A signal reaches the ranks in different loops of the device, and one
        # that stops early leaves the others waiting for its gradients.
        self.stops_together = self.world_size == 1

    def versions(self):
        return dict(super().versions(), CANN=_cann_version())

    @property
    def saturates(self) -> bool:
        """Whether an overflow gives the largest number and raises a flag.

        An Ascend 910 does and lacks the operator is_finite; an Atlas A2 or
        later gives inf or nan. Adapters before 2023 know only the former.
        """
        if _ADAPTER == "npu_device":
            plugin = importlib.import_module(_ADAPTER)
        else:
            plugin = _adapter("estimator.npu.npu_plugin")
        enabled = getattr(plugin, "is_inf_nan_enabled", lambda: False)
        return not enabled()

    @property
    def kernels(self):
        options = self._options
        replaced = super().kernels._replace(
            normalize=self._normalize,
            dropout=self._dropout,
            # A dense gradient by a supported operator.
            embed=lambda table, ids: (kernels.gather(table, ids), table),
        )
        if options.use_bf16:  # lowered by the compiler, see _precision_mode
            replaced = replaced._replace(
                compute_dtype=tf.float32, head_dtype=tf.float32
            )
        if options.npu_bert_fused_gelu:
            native = _adapter("estimator.npu_unary_ops").npu_unary_ops
            replaced = replaced._replace(gelu=native.gelu)
        if not options.npu_gather:
            replaced = replaced._replace(
                gather=tf.gather,
                embed=lambda table, ids: (tf.gather(table, ids), table),
            )
        return replaced

    def _normalize(self, x, gamma, beta, epsilon):
        """LayerNorm whose two passes the compiler fuses, or neither.

        A forward pass that is fused without its backward pass gives wrong
        gradients. The adapter's own operation (since release 1.7.0) is one in
        both; else the compiler looks for the names of TensorFlow's operations,
        which it finds in a backward pass inside a loop, but not in a forward
        pass there.
        """
        aicore = _adapter("estimator.npu_aicore_ops")
        if hasattr(aicore, "layer_norm"):
            return aicore.layer_norm(
                x,
                gamma,
                beta,
                begin_norm_axis=-1,
                begin_params_axis=-1,
                epsilon=epsilon,
            )[0]
        run = self._run
        if (
            run is None
            or run.num_accumulation_steps > 1
            or run.recompute_layers
        ):
            return kernels.normalize(x, gamma, beta, epsilon)
        # The variables' scope, LayerNorm, is the one that the compiler knows.
        with tf.name_scope(gamma.op.name.rpartition("/")[0] + "/"):
            mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
            return tf.nn.batch_normalization(
                x, mean, variance, beta, gamma, epsilon
            )

    def _dropout(self, x, rate, seed):
        """The NPU's dropout, or one that is a function of its seed alone.

        The NPU's keeps a state of its own. Its seed differs by rank and place,
        and by the checkpoint from which a run starts. A layer that is computed
        twice needs the same mask twice, which only the other one gives.
        """
        run = self._run
        if not self._options.npu_bert_npu_dropout or (
            run and run.recompute_layers
        ):
            return stateless_dropout(x, rate, seed)
        graph = tf.get_default_graph()
        start = run and tf.train.latest_checkpoint(run.output_dir)
        key = (
            graph.seed,
            self.rank,
            graph.unique_name("dropout"),
            os.path.basename(start or ""),
        )
        return _adapter("estimator.npu_ops").dropout(
            x,
            keep_prob=1.0 - rate,
            seed=zlib.crc32(repr(key).encode()) & 0x7FFFFFFF,
        )

    def micro_batches(self, optimizer, losses, run):
        self._run = run
        return super().micro_batches(optimizer, losses, run)

    def wrap_optimizer(self, optimizer, run):
        # Without a loss scale too, a step that overflows is skipped: in fp16,
        # which is the adapter's default, one of them would end the run.
        self._warn_of_underflow()
        return self._loss_scaled(self._averaged(optimizer, run))

    def _averaged(self, optimizer, run):
        if self.world_size == 1:
            return optimizer
        if self._options.npu_gradient_split:
            from hccl.split.api import set_split_strategy_by_size

            sizes = self._options.npu_gradient_split.split(",")
            set_split_strategy_by_size([float(size) for size in sizes])
        return _adapter("estimator.npu.npu_optimizer").NPUDistributedOptimizer(
            optimizer
        )

    def _loss_scaled(self, optimizer):
        # npu_device has no loss scale; the other adapter's would test every
        # gradient with is_finite, which runs on the NPU's slow scalar cores.
        if _ADAPTER == "npu_device" or not self.saturates:
            scaled = (
                optimization.LossScaled(optimizer)
                if self._options.loss_scale < 0
                else super()._loss_scaled(optimizer)
            )
            return _Flagged(scaled, self.average) if self.saturates else scaled
        scaling = _adapter("estimator.npu.npu_loss_scale_optimizer")
        self._manager = self._loss_scale_manager()
        return scaling.NPULossScaleOptimizer(
            optimizer, self._manager, is_distributed=self.world_size > 1
        )

    def _warn_of_underflow(self):
        mode = self._precision_mode()
        if self._options.loss_scale < 0 and mode not in _KEEPS_RANGE:
            tf.logging.warning(
                "the NPU computes in fp16 (precision_mode=%s) without a loss "
                "scale: small gradients may become 0; pass "
                "--npu_bert_loss_scale=0, or "
                "--precision_mode=must_keep_origin_dtype for float32",
                mode or "the adapter's default",
            )

    def _loss_scale_manager(self):
        managers = _adapter("estimator.npu.npu_loss_scale_manager")
        fixed = self._options.loss_scale
        if fixed:
            return managers.FixedLossScaleManager(loss_scale=max(fixed, 1.0))
        return managers.ExponentialUpdateLossScaleManager(
            init_loss_scale=self._options.init_loss_scale_value,
            incr_every_n_steps=1000,
            decr_every_n_nan_or_inf=1,
            incr_ratio=2,
            decr_ratio=0.5,
        )

    def overflow(self, optimizer):
        if self._manager is None:
            return {
                "loss_scale": optimizer.loss_scale,
                "finite": optimizer.finite,
            }
        return {"loss_scale": self._manager.get_loss_scale()}

    def estimator(self, model_fn, run, num_train_steps):
        """An NPUEstimator; all ranks restore from the same directory.

        From rank 0 the adapter broadcasts only the trainable variables.
        """
        loop = loop_length(
            run.iterations_per_loop, num_train_steps, run.save_checkpoints_steps
        )
        if loop != run.iterations_per_loop:
            tf.logging.info(
                "iterations_per_loop=%d: the largest number up to %d that "
                "divides %d steps and is at most %d, the steps between "
                "checkpoints",
                loop,
                run.iterations_per_loop,
                num_train_steps,
                run.save_checkpoints_steps,
            )
        save_steps = run.save_checkpoints_steps // loop * loop
        config = _adapter("estimator.npu.npu_config").NPURunConfig(
            model_dir=run.output_dir,
            tf_random_seed=run.random_seed,
            session_config=self.session_config(),
            # None would save every 100 steps.
            save_checkpoints_steps=save_steps if self.rank == 0 else 0,
            save_summary_steps=0,
            log_step_count_steps=None,
            keep_checkpoint_max=run.keep_checkpoint_max,
            iterations_per_loop=loop,
            enable_data_pre_proc=self._options.npu_bert_use_tdt,
            hcom_parallel=self._options.hcom_parallel,
            **self._optional_arguments(run),
        )
        return _adapter("estimator.npu.npu_estimator").NPUEstimator(
            model_fn=model_fn,
            config=config,
            params={},
            job_start_file=self._options.npu_bert_job_start_file,
        )

    def _precision_mode(self):
        """The graph compiler's precision mode, "" for the default."""
        options = self._options
        if options.precision_mode:
            return options.precision_mode
        if options.manual_fp16:
            return "must_keep_origin_dtype"
        if options.use_bf16:
            return "allow_mix_precision_bf16"
        return "allow_mix_precision" if options.use_fp16 else ""

    def _optional_arguments(self, run):
        """Arguments that not every run passes."""
        options, arguments = self._options, {}
        precision = self._precision_mode()
        if precision:
            arguments["precision_mode"] = precision
        if options.deterministic:
            arguments["deterministic"] = 1
        if options.profiling:
            arguments["profiling_config"] = _profiling(
                os.path.join(run.output_dir, "profiling")
            )
        if options.data_dump or options.over_dump:
            arguments["dump_config"] = _dump(
                os.path.join(run.output_dir, "dump"), options
            )
        return arguments


class _Flagged(optimization.Wrapper):
    """Also skips a step after which the device's overflow flag is up."""

    def __init__(self, scaled, average):
        """
        Args:
          scaled: optimization.LossScaled.
          average: function on a list of tensors.
        """
        super().__init__(scaled)
        self._average = average
        self.loss_scale = scaled.loss_scale
        self.finite = None  # bool [G + 1], after compute_gradients

    def compute_gradients(self, loss, var_list=None, **_):
        scaled = self._optimizer
        pairs = scaled.compute_gradients(loss, var_list)
        native = _adapter("helper.helper").get_gen_ops()
        with tf.control_dependencies([scaled.finite]):
            status = native.npu_get_float_status_v2()
        with tf.control_dependencies([status]):
            cleared = native.npu_clear_float_status_v2()
        with tf.control_dependencies([cleared]):
            raised = tf.reduce_max(tf.cast(status, tf.float32))
            (raised,) = self._average([raised])
        scaled.finite = tf.concat(
            [scaled.finite, [tf.equal(raised, 0.0)]], axis=0
        )
        self.finite = scaled.finite
        return pairs


def _cann_version():
    """The version of the CANN toolkit that this process imports."""
    spec = importlib.util.find_spec(_ADAPTER)
    folder = os.path.dirname(spec.origin) if spec and spec.origin else os.sep
    while os.path.dirname(folder) != folder:
        for name in ("version.info", "version.cfg"):
            path = os.path.join(folder, name)
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as stream:
                    version = re.search(r"\d+(\.\w+)+", stream.read(1 << 16))
                return version.group() if version else "unknown"
        folder = os.path.dirname(folder)
    return "unknown"


def stateless_dropout(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Inverted dropout in integer operations that the NPU has.

    Element (i, j) of x as a matrix is kept where (a[i] * b[j] + c[i]) mod p is
    below p * (1 - rate): in a row, any two elements are independent.

    Args:
      x: float tensor.
      rate: probability of a zero, in [0, 1).
      seed: int32 [2].

    Source: Carter & Wegman 1979; a, b and c by MiMC (Albrecht et al. 2016,
    eprint 2016/492) over a small prime field.
    """
    key = tf.constant(0)
    for number in (seed[0], seed[1]):
        key = _mix(_mix(key, number % _PRIME), number // _PRIME % _PRIME)

    def draw(stream, count):
        index = tf.range(count)
        return _mix(_mix(_mix(key, stream), index // _PRIME), index % _PRIME)

    columns = tf.shape(x)[-1]
    rows = tf.reduce_prod(tf.shape(x)[:-1])
    factors = draw(1, rows) % (_PRIME - 1) + 1
    number = factors[:, tf.newaxis] * draw(2, columns)
    number = (number + draw(3, rows)[:, tf.newaxis]) % _PRIME
    kept = tf.reshape(number < round(_PRIME * (1.0 - rate)), tf.shape(x))
    return x * (tf.cast(kept, x.dtype) * (1.0 / (1.0 - rate)))


def _mix(state, number):
    """One round of MiMC: int32 tensors in [0, _PRIME)."""
    total = (state + number + 1) % _PRIME
    return total * total % _PRIME * total % _PRIME


def loop_length(
    iterations_per_loop: int, num_train_steps: int, save_checkpoints_steps: int
) -> int:
    """Steps per call of the device.

    The run ends and checkpoints are written between two calls only.

    Args:
      iterations_per_loop: the flag.
      num_train_steps: steps of the run.
      save_checkpoints_steps: steps between two checkpoints.

    Returns:
      The largest divisor of num_train_steps that is at most the other two.
    """
    longest = min(iterations_per_loop, save_checkpoints_steps, num_train_steps)
    return next(
        length
        for length in range(longest, 0, -1)
        if num_train_steps % length == 0
    )


def _profiling(directory):
    os.makedirs(directory, exist_ok=True)
    return _adapter("estimator.npu.npu_config").ProfilingConfig(
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
    os.makedirs(directory, exist_ok=True)
    return _adapter("estimator.npu.npu_config").DumpConfig(
        enable_dump=options.data_dump,
        dump_path=directory,
        dump_mode="all",
        enable_dump_debug=options.over_dump,
        dump_debug_mode="all",
    )
