# SPDX-License-Identifier: Apache-2.0
"""NPUEstimator and the spec that its model function may return."""

import os
import random
import string
import sys

import tensorflow.compat.v1 as tf

from npu_bridge._standin import loop, ranks, settings, strict
from npu_bridge.estimator.npu import npu_common, npu_config, npu_hook, npu_saver

_MODEL_FN_ARGUMENTS = ("labels", "mode", "params", "config")
# More than any graph has collectives that may wait at a time: one that waits
# holds a thread.
_THREADS = 128


class NPUEstimatorSpec(tf.estimator.EstimatorSpec):
    """EstimatorSpec with a call on the host."""

    @settings.api()
    def __new__(
        cls,
        mode,
        predictions=None,
        loss=None,
        train_op=None,
        eval_metric_ops=None,
        export_outputs=None,
        training_chief_hooks=None,
        training_hooks=None,
        scaffold=None,
        evaluation_hooks=None,
        prediction_hooks=None,
        host_call=None,
    ):
        """
        Args:
          host_call: (function, tensors): what the function builds runs on the
            host in each step; the tensors are a list, tuple or dict.

        Raises:
          TypeError: scaffold is a function, or host_call's is none.
          ValueError: host_call is no pair.
          RuntimeError: the function takes another number of tensors.
        """
        spec = super().__new__(
            cls,
            mode,
            predictions=predictions,
            loss=loss,
            train_op=train_op,
            eval_metric_ops=eval_metric_ops,
            export_outputs=export_outputs,
            training_chief_hooks=training_chief_hooks,
            training_hooks=training_hooks,
            scaffold=scaffold,
            evaluation_hooks=evaluation_hooks,
            prediction_hooks=prediction_hooks,
        )
        if host_call is not None:
            strict.check_host_call(host_call)
        spec.host_call = host_call
        return spec


class NPUEstimator(tf.estimator.Estimator):
    """An Estimator that trains as on an NPU."""

    @settings.api()
    def __init__(
        self,
        model_fn=None,
        model_dir=None,
        config=None,
        params=None,
        job_start_file="",
        warm_start_from=None,
    ):
        """
        Raises:
          ValueError: config is no NPURunConfig, or model_dir given twice.
          AttributeError or ValueError: JOB_ID is not set.
        """
        if not isinstance(config, npu_config.NPURunConfig):
            raise ValueError(f"config is {config!r}; expected an NPURunConfig")
        job = npu_common.NPUBasics(job_start_file).jobinfo
        warm_start_from = (
            warm_start_from
            or job._local_checkpoint_dir
            or os.environ.get("RESTORE_FROM")
        )
        if model_dir is None and config.model_dir is None:
            model_dir = _new_model_dir()
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
        if settings.STRICT:
            strict.check_steps(
                steps, max_steps, self._config.iterations_per_loop
            )
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
        if settings.STRICT:
            strict.check_model(features, labels, spec, config)
        hooks = _host_hooks(spec)
        if mode == tf.estimator.ModeKeys.EVAL:
            return spec._replace(
                evaluation_hooks=hooks + list(spec.evaluation_hooks or [])
            )
        if mode != tf.estimator.ModeKeys.TRAIN:
            return spec
        hooks = self._training_hooks(hooks)
        settings.record(
            "training_hooks", {"hooks": [type(h).__name__ for h in hooks]}
        )
        return spec._replace(
            train_op=tf.group(spec.train_op, name=loop.ITERATION_OP),
            training_hooks=hooks + list(spec.training_hooks or []),
        )

    def _training_hooks(self, host_hooks):
        """The hooks that go before the spec's own, in their order."""
        config = self._config
        hooks = []
        if ranks.size() > 1 and not config.npu_options["horovod_mode"]:
            hooks.append(
                npu_hook.NPUBroadcastGlobalVariablesHook(
                    0, int(os.environ.get("RANK_ID", "0"))
                )
            )
        if config.save_checkpoints_steps or config.save_checkpoints_secs:
            saver = npu_saver.NPUSaver()
            if settings.VERSION == "M":
                saver = npu_saver.NPUSaver(
                    max_to_keep=config.keep_checkpoint_max
                )
            hooks.append(
                npu_hook.NPUCheckpointSaverHook(
                    self.model_dir,
                    save_steps=config.save_checkpoints_steps,
                    save_secs=config.save_checkpoints_secs,
                    saver=saver,
                )
            )
        hooks += host_hooks
        if config.iterations_per_loop > 1:
            hooks.append(
                npu_hook.SetIterationsVarHook(config.iterations_per_loop)
            )
        return hooks


def _host_hooks(spec):
    """Hooks of host_call and log, which an EstimatorSpec has none of."""
    if not isinstance(spec, NPUEstimatorSpec):
        return []
    hooks = []
    if spec.host_call is not None:
        function, tensors = spec.host_call
        built = (
            function(**tensors)
            if isinstance(tensors, dict)
            else function(*tensors)
        )
        hooks.append(
            npu_hook.NPUInfeedOutfeedSessionHook(
                tf.nest.flatten(built), "_npu_outfeed"
            )
        )
    hooks.append(npu_hook.NPULogOutfeedSessionHook(sys.stderr))
    return hooks


def _new_model_dir():
    """A directory model_dir_XXXXXXXXXX below the working directory."""
    letters = random.SystemRandom()
    path = os.path.join(
        os.getcwd(),
        "model_dir_"
        + "".join(
            letters.choice(string.ascii_letters + string.digits)
            for _ in range(10)
        ),
    )
    os.makedirs(path)
    return path


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
