# SPDX-License-Identifier: Apache-2.0
"""NPURunConfig and its checks, those that the device makes later included."""

import tensorflow.compat.v1 as tf

# Known to all versions of the adapter.
_PRECISION_MODES = (
    None,
    "allow_fp32_to_fp16",
    "force_fp16",
    "allow_mix_precision",
    "must_keep_origin_dtype",
)
# Arguments of RunConfig.
_RUN_CONFIG = (
    "model_dir",
    "tf_random_seed",
    "save_summary_steps",
    "save_checkpoints_steps",
    "save_checkpoints_secs",
    "session_config",
    "keep_checkpoint_max",
    "keep_checkpoint_every_n_hours",
    "log_step_count_steps",
    "train_distribute",
    "eval_distribute",
)
# Arguments that reach the device through the session's options.
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


class ProfilingConfig:
    """Stores its arguments."""

    def __init__(self, enable_profiling, profiling_options):
        if enable_profiling and profiling_options is None:
            raise ValueError("enable_profiling needs profiling_options")


class NPURunConfig(tf.estimator.RunConfig):
    """RunConfig of NPUEstimator; saves every 100 steps by default."""

    def __init__(self, **options):
        if (
            options["save_checkpoints_steps"] is None
            and options["save_checkpoints_secs"] is None
        ):
            options["save_checkpoints_steps"] = 100
        _check(options)
        self.npu_options = {name: options[name] for name in _OPTIONS}
        self.iterations_per_loop = options["iterations_per_loop"]
        super().__init__(**{name: options[name] for name in _RUN_CONFIG})


def _check(options):
    iterations = options["iterations_per_loop"]
    steps = options["save_checkpoints_steps"]
    if not isinstance(iterations, int):
        raise TypeError(f"iterations_per_loop is {iterations!r}")
    for name in ("profiling_config", "dump_config"):
        kind = type(options[name]).__name__.lower()
        if kind not in (name.replace("_", ""), "nonetype"):
            raise ValueError(f"{name} is {options[name]!r}")
    for name in ("mix_compile_mode", "horovod_mode"):
        if not isinstance(options[name], bool):
            raise ValueError(f"{name} is {options[name]!r}; expected a bool")
    device = options["session_device_id"]
    for problem, message in (
        (iterations < 1, "iterations_per_loop is below 1"),
        (
            options["mix_compile_mode"] and iterations != 1,
            "mix_compile_mode needs iterations_per_loop 1",
        ),
        (options["graph_run_mode"] not in (0, 1), "graph_run_mode"),
        (options["distribute"] is not None, "distribute needs a TF_CONFIG"),
        (options["log_step_count_steps"] == 0, "log_step_count_steps is 0"),
        (device is not None and device < 0, "session_device_id is negative"),
        (
            options["precision_mode"] not in _PRECISION_MODES,
            f"precision_mode is {options['precision_mode']!r}",
        ),
        (
            steps and iterations > 0 and steps % iterations,
            f"save_checkpoints_steps {steps} is not a multiple of "
            f"iterations_per_loop {iterations}",
        ),
        (
            iterations > 1 and not options["enable_data_pre_proc"],
            "iterations_per_loop above 1 needs enable_data_pre_proc",
        ),
    ):
        if problem:
            raise ValueError(message)
