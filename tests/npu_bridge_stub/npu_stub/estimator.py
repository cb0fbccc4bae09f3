# SPDX-License-Identifier: Apache-2.0
"""NPUEstimator."""

import os

import tensorflow.compat.v1 as tf

from npu_stub import config as configs
from npu_stub import hooks, loop, ranks, strict

_MODEL_FN_ARGUMENTS = ("labels", "mode", "params", "config")
# More than any graph has collectives that may wait at a time: one that waits
# holds a thread.
_THREADS = 128


class NPUEstimator(tf.estimator.Estimator):
    """An Estimator that trains as on an NPU."""

    def __init__(
        self,
        model_fn,
        model_dir,
        config,
        params,
        job_start_file,
        warm_start_from,
    ):
        """
        Raises:
          ValueError: config is not an NPURunConfig, or model_dir given twice.
          AttributeError: JOB_ID or RANK_SIZE is not set.
        """
        if not isinstance(config, configs.NPURunConfig):
            raise ValueError(f"config is {config!r}; expected an NPURunConfig")
        for name in () if job_start_file else ("JOB_ID", "RANK_SIZE"):
            if name not in os.environ:
                raise AttributeError(f"{name} is not set")
        if warm_start_from is None:
            warm_start_from = os.environ.get("RESTORE_FROM")
        _set_session_options(config)
        super().__init__(
            model_fn=model_fn,
            model_dir=model_dir,
            config=config,
            params=params,
            warm_start_from=warm_start_from,
        )
        self._given_model_fn = model_fn
        self._model_fn = self._npu_model_fn

    def _assert_members_are_not_overridden(self):
        """Estimator forbids what this class does: replacing `train`."""

    def train(
        self,
        input_fn,
        hooks=None,
        steps=None,
        max_steps=None,
        saving_listeners=None,
    ):
        """As Estimator's; strictly whole loops only."""
        strict.check_steps(steps, max_steps, self._config.iterations_per_loop)
        return super().train(
            input_fn, hooks, steps, max_steps, saving_listeners
        )

    def _npu_model_fn(self, features, labels, mode, params, config):
        given = {
            "labels": labels,
            "mode": mode,
            "params": params,
            "config": config,
        }
        names = strict.argument_names(self._given_model_fn)
        spec = self._given_model_fn(
            features=features,
            **{
                name: given[name]
                for name in _MODEL_FN_ARGUMENTS
                if name in names
            },
        )
        if not isinstance(spec, tf.estimator.EstimatorSpec):
            raise ValueError(
                f"model_fn returned {spec!r}; expected an EstimatorSpec"
            )
        strict.check_model(features, labels, spec, config)
        if mode != tf.estimator.ModeKeys.TRAIN:
            return spec
        return spec._replace(
            train_op=tf.group(spec.train_op, name=loop.ITERATION_OP),
            training_hooks=self._training_hooks()
            + list(spec.training_hooks or []),
        )

    def _training_hooks(self):
        """The hooks before the spec's own, in the adapter's order."""
        config = self._config
        added = []
        if ranks.size() > 1 and not config.npu_options["horovod_mode"]:
            rank = int(os.environ.get("RANK_ID", "0"))
            added.append(hooks.NPUBroadcastGlobalVariablesHook(0, rank))
        if config.save_checkpoints_steps or config.save_checkpoints_secs:
            added.append(
                hooks.NPUCheckpointSaverHook(
                    self.model_dir,
                    save_steps=config.save_checkpoints_steps,
                    save_secs=config.save_checkpoints_secs,
                    # Keeps five, whatever keep_checkpoint_max.
                    saver=tf.train.Saver(),
                )
            )
        if config.iterations_per_loop > 1:
            added.append(hooks.SetIterationsVarHook(config.iterations_per_loop))
        return added


def _set_session_options(config):
    """Writes the config's options into its session_config, in place."""
    if config.session_config is None:
        config._session_config = tf.ConfigProto(allow_soft_placement=True)
    session = config.session_config
    if ranks.size() > 1 and not session.session_inter_op_thread_pool:
        session.session_inter_op_thread_pool.add(num_threads=_THREADS)
    rewriter = session.graph_options.rewrite_options
    if any(o.name == "NpuOptimizer" for o in rewriter.custom_optimizers):
        return
    rewriter.optimizers.extend(
        [
            "pruning",
            "function",
            "constfold",
            "shape",
            "arithmetic",
            "loop",
            "dependency",
            "layout",
            "GradFusionOptimizer",
        ]
    )
    # A CPU passes over the names it does not know. Without the others a test
    # takes a third less CPU time to start.
    rewriter.disable_meta_optimizer = True
    parameters = rewriter.custom_optimizers.add(
        name="NpuOptimizer"
    ).parameter_map
    values = dict(
        config.npu_options, use_off_line=True, job="localhost", task_index=0
    )
    for name, value in values.items():
        if isinstance(value, bool):
            parameters[name].b = value
        elif isinstance(value, int):
            parameters[name].i = value
        elif value is not None:
            parameters[name].s = str(value).encode()
