# SPDX-License-Identifier: Apache-2.0
"""The base class of all devices, in plain TensorFlow, and their flags.

environment.create chooses a device. Every device has

    name                "cpu", "gpu" or "npu"
    rank, world_size    this process among those that train together
    options             DeviceConfig
    kernels             Kernels
    static_shapes       whether all batches must have the same shape
    stops_together      whether all processes can stop after the same step
    runs_between_steps  whether a second graph may run between two steps
    saturates           whether an overflow gives the largest number, not inf
    stores_half         whether activations are stored in 16 bits
    average(tensors)    their means over all processes
    agree(number)       rank 0's number, in every process
    once_per_host(make) make()'s value, computed by one process of each host
    micro_batches(optimizer, losses, run)       the innermost optimizer
    wrap_optimizer(optimizer, run)              averaging and loss scale
    overflow(optimizer)                         tensors that report overflows
    without_nan(loss)                           the loss for TensorFlow's hooks
    estimator(model_fn, run, num_train_steps)   trains, evaluates, predicts
    session_config()    tf.ConfigProto of its sessions
    hooks()             session hooks for training
    memory_bytes()      its memory, None if unknown
    peak_memory_bytes() the most that this process used, None if unknown
    card()              name of the product, "" if unknown
    versions()          {name: version} of its software
"""

import atexit
import dataclasses
import platform
import shutil
import tempfile
import typing

import numpy as np
import tensorflow.compat.v1 as tf

import optimization
from common import command_line, errors
from kernels import Kernels


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """Flags about devices, precision and loss scale."""

    accelerator: str = command_line.flag(
        "auto",
        "Device to compute on; auto selects an NPU, else a GPU, else the CPU.",
        choices=("auto", "cpu", "gpu", "npu"),
        group=command_line.DEVICES,
    )
    cpu_threads: int = command_line.flag(
        0,
        "CPU threads per operation; 0 uses all cores. Floating-point "
        "summation order depends on the number of threads.",
        lower=0,
        upper=1024,
    )
    manual_fp16: bool = command_line.flag(
        False,
        "Compute the encoder in fp16, with float32 weights, LayerNorm, "
        "softmax and loss.",
    )
    use_fp16_cls: bool = command_line.flag(
        False, "Compute the LM head and the pooler in fp16 too."
    )
    use_fp16: bool = command_line.flag(
        False, "TensorFlow's automatic mixed precision (GPU)."
    )
    use_bf16: bool = command_line.flag(
        False,
        "Compute the encoder, the LM head and the pooler in bfloat16, with "
        "float32 weights, LayerNorm, softmax and loss and no loss scale: CPU "
        "and GPU under TensorFlow 2.15; NPU: precision mode "
        "allow_mix_precision_bf16.",
    )
    use_xla: typing.Optional[bool] = command_line.flag(
        None,
        "Compile with XLA; all batches then have the same length. Default: "
        "on a GPU under TensorFlow 2, not elsewhere.",
    )
    npu_bert_loss_scale: typing.Optional[float] = command_line.flag(
        None,
        "Loss scale on any device: -1 off, 0 dynamic, >= 1 fixed. "
        "Default: 0 with half precision or --allreduce_fp16, else -1.",
    )
    init_loss_scale_value: float = command_line.flag(
        2.0**15, "Initial value of a dynamic loss scale.", lower=1
    )
    peak_teraflops: float = command_line.flag(
        0.0,
        "Peak of the device's matrix products in TFLOP/s, for the share of it "
        "that is logged (mfu). Default: that of a V100, A100 or H100 (SXM); "
        "on other devices nothing is logged.",
        lower=0,
    )
    horovod: bool = command_line.flag(
        False, "Train in several processes with Horovod (CPU, GPU)."
    )
    allreduce_fp16: bool = command_line.flag(
        False,
        "Horovod: send gradients in fp16, half the bytes; turns on a dynamic "
        "loss scale.",
    )
    deterministic: bool = command_line.flag(
        False,
        "NPU, and GPU under TensorFlow 2.15: operations that give the same "
        "bits in each run; slower. A CPU does so for each --cpu_threads.",
    )
    distributed: bool = command_line.flag(
        False,
        "Train on RANK_SIZE NPUs; this process is RANK_ID.",
        group=command_line.NPU,
    )
    npu_bert_fused_gelu: bool = command_line.flag(
        False, "NPU: its own GELU, the tanh form; differs by up to 5e-4."
    )
    npu_bert_npu_dropout: bool = command_line.flag(
        True, "NPU: its own dropout instead of TensorFlow's stateless one."
    )
    npu_gather: bool = command_line.flag(
        True, "NPU: embedding look-ups with a dense gradient."
    )
    npu_bert_use_tdt: bool = command_line.flag(
        True, "NPU: send batches to the device ahead of time."
    )
    npu_bert_job_start_file: str = command_line.flag(
        "", "NPU: job file of an older launcher; empty: environment variables."
    )
    hcom_parallel: bool = command_line.flag(
        True, "NPU: average gradients during the backward pass."
    )
    npu_gradient_split: str = command_line.flag(
        "",
        "NPU: sizes of the groups of gradients that are averaged together, "
        "in percent, comma separated, sum 100. Default: the adapter's.",
    )
    precision_mode: str = command_line.flag(
        "",
        "NPU: precision mode of the graph compiler. Default: "
        "must_keep_origin_dtype with manual_fp16, allow_mix_precision with "
        "use_fp16, allow_mix_precision_bf16 with use_bf16, else the adapter's "
        "(products in fp16 on an Ascend 910).",
    )
    profiling: bool = command_line.flag(
        False, "NPU: write a profile to output_dir/profiling."
    )
    data_dump: bool = command_line.flag(
        False, "NPU: dump operators' outputs to output_dir/dump."
    )
    over_dump: bool = command_line.flag(
        False, "NPU: dump operators that overflow to output_dir/dump."
    )

    def __post_init__(self):
        if self.manual_fp16 and self.use_fp16:
            raise errors.UserError(
                "--manual_fp16 and --use_fp16 are both given; they are two "
                "ways to compute in fp16, use one of them"
            )
        if self.use_bf16 and self.half_precision:
            raise errors.UserError(
                "--use_bf16 and a flag of fp16 (--manual_fp16, --use_fp16, "
                "--use_fp16_cls) are both given; use one of the two precisions"
            )
        if self.allreduce_fp16 and not self.horovod:
            raise errors.UserError(
                "--allreduce_fp16: only Horovod sends gradients in fp16; pass "
                "--horovod=True too, or omit the flag"
            )
        if self.data_dump and self.over_dump:
            raise errors.UserError(
                "--data_dump and --over_dump are both given; CANN writes one "
                "of the two dumps at a time, so run again for the other"
            )
        scale = self.npu_bert_loss_scale
        if scale is not None and not (scale in (-1, 0) or scale >= 1):
            raise errors.UserError(
                f"--npu_bert_loss_scale is {scale}; expected -1 (off), 0 "
                "(dynamic) or a number >= 1"
            )
        if self.npu_gradient_split:
            _check_split(self.npu_gradient_split)

    @property
    def half_precision(self) -> bool:
        """Whether any part is computed in fp16."""
        return self.manual_fp16 or self.use_fp16 or self.use_fp16_cls

    @property
    def loss_scale(self) -> float:
        """-1 off, 0 dynamic, >= 1 fixed."""
        if self.npu_bert_loss_scale is None:
            return 0 if self.half_precision or self.allreduce_fp16 else -1
        return self.npu_bert_loss_scale


def _check_split(text):
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or min(shares) <= 0 or abs(sum(shares) - 100) > 1e-6:
        raise errors.UserError(
            f"--npu_gradient_split is {text!r}; expected positive numbers, "
            "comma separated, that sum to 100"
        )


class Processes:
    """A single process; base class of several that train together.

    Attributes:
      session_config: function giving the tf.ConfigProto of all sessions; the
        device sets it.
    """

    rank = 0
    world_size = 1
    local_rank = 0
    session_config: typing.Callable[[], tf.ConfigProto] = tf.ConfigProto

    def average(
        self, tensors: typing.Iterable[tf.Tensor], in_fp16: bool = False
    ) -> typing.List[tf.Tensor]:
        """The tensors' means over all processes, sent in fp16 if asked for."""
        return list(tensors)

    def agree(self, number: int) -> int:
        """Rank 0's number, in every process."""
        return number

    def once_per_host(self, make: typing.Callable[[], typing.Any]):
        """make()'s value; one process of each host calls it."""
        return make()

    def hooks(self) -> typing.List[tf.train.SessionRunHook]:
        """Hooks that give every process the same initial state."""
        return []


class Device:
    """Plain TensorFlow; devices add what they do differently."""

    name = ""
    stops_together = True
    runs_between_steps = True
    saturates = False
    averages_micro_batches = True  # where --allreduce_post_accumulation=False

    def __init__(self, options: DeviceConfig, processes: Processes):
        self.options = self._options = options
        self._scratch: typing.Optional[str] = None
        processes.session_config = self.session_config
        self.rank = processes.rank
        self.world_size = processes.world_size
        self.average = processes.average
        self.agree = processes.agree
        self.once_per_host = processes.once_per_host
        self.hooks = processes.hooks

    @property
    def stores_half(self) -> bool:
        # By default an NPU's adapter computes products in fp16 and stores
        # activations in float32.
        return self._options.half_precision

    @property
    def uses_xla(self) -> bool:
        return bool(self._options.use_xla)

    @property
    def static_shapes(self) -> bool:
        return self.uses_xla  # which compiles once per shape

    def memory_bytes(self) -> typing.Optional[int]:
        return None

    def peak_memory_bytes(self) -> typing.Optional[int]:
        return None

    def card(self) -> str:
        return ""

    def versions(self) -> typing.Dict[str, str]:
        return {
            "Python": platform.python_version(),
            "TensorFlow": tf.__version__,
            "NumPy": np.__version__,
        }

    @property
    def kernels(self) -> Kernels:
        options = self._options
        default = tf.bfloat16 if options.use_bf16 else tf.float32
        return Kernels(
            compute_dtype=tf.float16 if options.manual_fp16 else default,
            head_dtype=tf.float16 if options.use_fp16_cls else default,
            variable_getter=float32_variable,
        )

    def micro_batches(self, optimizer, losses, run):
        """The innermost optimizer: gradients of one update's micro-batches.

        Args:
          optimizer: tf.train.Optimizer.
          losses: see optimization.MicroBatches.
          run: run_config.RunConfig.

        Returns:
          optimization.MicroBatches.
        """
        reduce_each = None
        if not run.allreduce_post_accumulation:
            if self.averages_micro_batches:
                reduce_each = self._average_gradients
            else:
                tf.logging.info(
                    "device=%s averages gradients once per update, after "
                    "accumulation",
                    self.name,
                )
        return optimization.MicroBatches(
            optimizer, losses, run.num_accumulation_steps, reduce_each
        )

    def wrap_optimizer(self, optimizer, run):
        """The optimizer, with averaging over processes and the loss scale."""
        optimizer = self._averaged(optimizer, run)
        if self._options.loss_scale < 0:
            return optimizer
        return self._loss_scaled(optimizer)

    def _averaged(self, optimizer, run):
        if not run.allreduce_post_accumulation:
            return optimizer
        return optimization.Averaged(optimizer, self._average_gradients)

    def _average_gradients(self, gradients):
        return self.average(gradients, in_fp16=self._options.allreduce_fp16)

    def _loss_scaled(self, optimizer):
        fixed = self._options.loss_scale
        return optimization.LossScaled(
            optimizer,
            optimization.LossScale(
                fixed or self._options.init_loss_scale_value, dynamic=not fixed
            ),
        )

    def overflow(self, optimizer) -> typing.Dict[str, tf.Tensor]:
        """{"loss_scale": scalar, "finite": bool [G]}, or {} without a scale.

        Devices whose adapter hides it omit "finite". G counts the gradients in
        the order of compute_gradients.
        """
        if self._options.loss_scale < 0:
            return {}
        return {"loss_scale": optimizer.loss_scale, "finite": optimizer.finite}

    def without_nan(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss, 0 where it is not finite.

        TensorFlow stops at the first nan, but a step that overflows is only
        skipped; the progress hook stops a run that does not recover.
        """
        if self.saturates:
            return loss
        return tf.where(tf.is_finite(loss), loss, tf.zeros_like(loss))

    def session_config(self) -> tf.ConfigProto:
        """The configuration of every session."""
        config = tf.ConfigProto(
            allow_soft_placement=True,
            intra_op_parallelism_threads=self._options.cpu_threads,
        )
        if self.uses_xla:
            config.graph_options.optimizer_options.global_jit_level = (
                tf.OptimizerOptions.ON_1
            )
        return config

    def estimator(
        self, model_fn: typing.Callable, run, num_train_steps: int
    ) -> tf.estimator.Estimator:
        """A TPUEstimator that computes on this device.

        Only rank 0 saves; the other ranks work in a temporary directory.
        """
        saves = self.rank == 0
        config = tf.estimator.tpu.RunConfig(
            model_dir=run.output_dir if saves else self._scratch_dir(),
            tf_random_seed=run.random_seed,
            session_config=self.session_config(),
            save_checkpoints_steps=(
                run.save_checkpoints_steps if saves else None
            ),
            save_checkpoints_secs=None,
            keep_checkpoint_max=run.keep_checkpoint_max,
            save_summary_steps=0,
            log_step_count_steps=None,
        )
        return tf.estimator.tpu.TPUEstimator(
            model_fn=model_fn,
            config=config,
            use_tpu=False,
            train_batch_size=run.train_batch_size,
            eval_batch_size=run.train_batch_size,
            predict_batch_size=run.train_batch_size,
        )

    def _scratch_dir(self):
        if self._scratch is None:
            self._scratch = tempfile.mkdtemp(prefix="roberta_rank_")
            atexit.register(shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch


def float32_variable(getter, name, shape=None, dtype=None, *args, **kwargs):
    """Variable getter: stores weights in float32, whatever the dtype.

    Source: Micikevicius et al. 2017 (arXiv:1710.03740), section 3.1.
    """
    stored = getter(name, shape, tf.float32, *args, **kwargs)
    if dtype is None or dtype == tf.float32:
        return stored
    with tf.control_dependencies(None):  # once, not in each micro-batch
        return tf.cast(stored, dtype)
