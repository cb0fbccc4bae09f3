# SPDX-License-Identifier: Apache-2.0
"""NPURunConfig and what it holds."""

import enum

import tensorflow.compat.v1 as tf

from npu_bridge._standin import settings
from npu_bridge.estimator.npu import util

# Arguments that some versions have and others answer with TypeError.
_ONLY_IN = {
    "D": ("auto_tune_mode", "mstune_mode"),
    "17": (
        "auto_tune_mode",
        "aoe_mode",
        "distribute_config",
        "modify_mixlist",
        "op_precision_mode",
        "device_type",
        "hccl_timeout",
        "op_wait_timeout",
        "op_execute_timeout",
    ),
    "M": (
        "aoe_mode",
        "distribute_config",
        "modify_mixlist",
        "op_precision_mode",
        "device_type",
        "soc_config",
        "hccl_timeout",
        "op_wait_timeout",
        "op_execute_timeout",
        "HCCL_algorithm",
        "customize_dtypes",
        "op_debug_config",
        "memory_config",
        "experimental_config",
        "topo_sorting_mode",
        "aoe_config_file",
        "insert_op_file",
        "stream_sync_timeout",
        "event_sync_timeout",
        "external_weight",
        "es_cluster_config",
        "deterministic",
        "frozen_variable",
        "variable_placement",
        "jit_compile",
        "precision_mode_v2",
        "ac_parallel_enable",
    ),
}
# What all three versions know.
PRECISION_MODES = (
    "allow_fp32_to_fp16",
    "force_fp16",
    "allow_mix_precision",
    "must_keep_origin_dtype",
)


class NpuExecutePlacement(enum.Enum):
    """Where a variable lives."""

    ALL = "all"
    CUBE = "cube"
    VECTOR = "vector"


class ProfilingConfig:
    """Whether and what to profile."""

    @settings.api()
    def __init__(self, enable_profiling=False, profiling_options=None):
        if enable_profiling and profiling_options is None:
            if settings.VERSION != "M":
                raise ValueError(
                    "profiling_options is None with enable_profiling"
                )
        self._enable_profiling = enable_profiling
        self._profiling_options = profiling_options


class DumpConfig:
    """Whether and what to dump."""

    @settings.api(only_in={"M": ("dump_data", "dump_layer")})
    def __init__(
        self,
        enable_dump=False,
        dump_path=None,
        dump_step=None,
        dump_mode="output",
        enable_dump_debug=False,
        dump_debug_mode="all",
    ):
        self._enable_dump = enable_dump
        self._dump_path = dump_path
        self._dump_step = dump_step
        self._dump_mode = dump_mode
        self._enable_dump_debug = enable_dump_debug
        self._dump_debug_mode = dump_debug_mode


class DynamicInputConfig:
    """Gears of dynamic shapes."""

    @settings.api()
    def __init__(self, input_shape, dynamic_dims, dynamic_node_type):
        self._input_shape = input_shape
        self._dynamic_dims = dynamic_dims
        self._dynamic_node_type = dynamic_node_type


class NPURunConfig(tf.estimator.RunConfig):
    """RunConfig of NPUEstimator; saves every 100 steps unless told."""

    @settings.api(only_in=_ONLY_IN)
    def __init__(
        self,
        iterations_per_loop=1,
        profiling_config=None,
        model_dir=None,
        tf_random_seed=None,
        save_summary_steps=0,
        save_checkpoints_steps=None,
        save_checkpoints_secs=None,
        session_config=None,
        keep_checkpoint_max=5,
        keep_checkpoint_every_n_hours=10000,
        log_step_count_steps=100,
        distribute=None,
        enable_data_pre_proc=True,
        precision_mode=None,
        enable_reduce_precision=False,
        variable_format_optimize=True,
        mix_compile_mode=False,
        hcom_parallel=False,
        graph_memory_max_size=None,
        variable_memory_max_size=None,
        dump_config=None,
        stream_max_parallel_num=None,
        is_tailing_optimization=False,
        horovod_mode=False,
        graph_run_mode=1,
        op_debug_level=0,
        enable_scope_fusion_passes=None,
        enable_exception_dump=0,
        op_select_implmode=None,
        optypelist_for_implmode=None,
        dynamic_input_config=None,
        work_path=None,
        buffer_optimize="l2_optimize",
        enable_small_channel=0,
        fusion_switch_file=None,
        enable_compress_weight=False,
        compress_weight_conf=None,
        op_compiler_cache_mode=None,
        op_compiler_cache_dir=None,
        debug_dir=None,
        hcom_multi_mode=False,
        dynamic_input=False,
        dynamic_graph_execute_mode="dynamic_execute",
        dynamic_inputs_shape_range=None,
        train_distribute=None,
        eval_distribute=None,
        local_rank_id=None,
        local_device_list=None,
        session_device_id=None,
    ):
        options = dict(locals())
        del options["self"], options["__class__"]
        _check(options)
        # What the session's options tell the device.
        self.npu_options = {name: options[name] for name in _OPTIONS}
        self.iterations_per_loop = iterations_per_loop
        if save_checkpoints_steps is None and save_checkpoints_secs is None:
            save_checkpoints_steps = 100
        super().__init__(
            model_dir=model_dir,
            tf_random_seed=tf_random_seed,
            save_summary_steps=save_summary_steps,
            save_checkpoints_steps=save_checkpoints_steps,
            save_checkpoints_secs=save_checkpoints_secs,
            session_config=session_config,
            keep_checkpoint_max=keep_checkpoint_max,
            keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours,
            log_step_count_steps=log_step_count_steps,
            train_distribute=train_distribute,
            eval_distribute=eval_distribute,
        )


# Arguments that go into the session's options under their own names.
_OPTIONS = (
    "iterations_per_loop",
    "enable_data_pre_proc",
    "precision_mode",
    "mix_compile_mode",
    "hcom_parallel",
    "graph_run_mode",
    "is_tailing_optimization",
    "horovod_mode",
    "op_select_implmode",
    "optypelist_for_implmode",
    "session_device_id",
    "dynamic_input",
)


def _check(options):
    """Raises TypeError or ValueError as the real constructor does."""
    iterations = options["iterations_per_loop"]
    util.check_positive_integer(iterations, "iterations_per_loop")
    for name in ("mix_compile_mode", "horovod_mode"):
        _check_bool(options[name], name)
    if options["mix_compile_mode"] and iterations != 1:
        raise ValueError(
            f"mix_compile_mode needs iterations_per_loop 1, got {iterations}"
        )
    if options["graph_run_mode"] not in (0, 1):
        raise ValueError(
            f"graph_run_mode is {options['graph_run_mode']!r}; expected 0 or 1"
        )
    for name, kind in (
        ("profiling_config", ProfilingConfig),
        ("dump_config", DumpConfig),
        ("dynamic_input_config", DynamicInputConfig),
    ):
        if not isinstance(options[name], (kind, type(None))):
            raise ValueError(f"{name} must be a {kind.__name__}")
    if options["distribute"] is not None:
        raise ValueError(
            "distribute is for ParameterServerStrategy with a "
            "TF_CONFIG cluster only"
        )
    if options["log_step_count_steps"] == 0:
        raise ValueError("log_step_count_steps is 0; use None for never")
    if options["session_device_id"] is not None:
        util.check_nonnegative_integer(
            options["session_device_id"], "session_device_id"
        )
    if settings.STRICT:
        _check_strictly(options)


def _check_bool(value, name):
    error = TypeError if settings.VERSION == "M" else ValueError
    if not isinstance(value, bool):
        raise error(f"{name} is {value!r}; expected a bool")


def _check_strictly(options):
    """What Python lets pass and the device refuses later."""
    mode = options["precision_mode"]
    if mode not in PRECISION_MODES + (None,) and settings.VERSION != "M":
        raise ValueError(
            f"precision_mode is {mode!r}; expected one of "
            f"{', '.join(PRECISION_MODES)}"
        )
    iterations = options["iterations_per_loop"]
    steps = options["save_checkpoints_steps"]
    if steps and steps % iterations:
        raise ValueError(
            f"save_checkpoints_steps is {steps}, no multiple of "
            f"iterations_per_loop {iterations}"
        )
    if steps is None and options["save_checkpoints_secs"] is None:
        if 100 % iterations:
            raise ValueError(
                "checkpoints are saved every 100 steps, no multiple of "
                f"iterations_per_loop {iterations}"
            )
    if iterations > 1 and not options["enable_data_pre_proc"]:
        raise ValueError(
            f"iterations_per_loop {iterations} needs enable_data_pre_proc"
        )
