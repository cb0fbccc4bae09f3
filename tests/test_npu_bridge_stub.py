# SPDX-License-Identifier: Apache-2.0
"""The stub of npu_bridge: rules, rejections, loss scale, collectives."""

import importlib
import json
import math
import sys
import threading
import types
import uuid

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from helpers import npu_ranks

tf.disable_v2_behavior()

NPU = "npu_bridge.estimator.npu."


@pytest.fixture
def stand_in(monkeypatch):
    """Function that imports a module of a fresh stub on a single device."""
    monkeypatch.syspath_prepend(str(npu_ranks.STAND_IN))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in (
        "RANK_TABLE_FILE",
        "RANK_ID",
        "NPU_STUB_OVERFLOW_STEPS",
        "RESTORE_FROM",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JOB_ID", "10086")
    monkeypatch.setenv("RANK_SIZE", "1")
    npu_ranks.forget_stub()
    with tf.Graph().as_default():
        yield importlib.import_module
    npu_ranks.forget_stub()


# Arguments.


def _resolved(stand_in, prefix, name):
    """(object of a symbol, the class it is a method of, if any)."""
    loader = stand_in("npu_stub.loader")
    module, *rest = loader.split(name)
    value = importlib.import_module(prefix + module[len("npu_bridge") :])
    owner = None
    for part in rest:
        owner, value = value, getattr(value, part)
    return value, owner if isinstance(owner, type) else None


@pytest.mark.parametrize("prefix", ["npu_bridge", "second.prefix"])
def test_unknown_keywords_are_rejected_everywhere(
    stand_in, monkeypatch, prefix
):
    loader = stand_in("npu_stub.loader")
    stand_in("npu_bridge")
    if prefix != "npu_bridge":
        for name in ("second", prefix):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        loader.install("npu_bridge", prefix)
    names = [n for n in loader.symbols() if n.startswith("npu_bridge.")]
    assert len(names) > 40
    for name in names:
        arguments = {a[0]: None for a in loader.symbols()[name] if len(a) == 1}
        value, owner = _resolved(stand_in, prefix, name)
        if owner is not None:
            arguments["self"] = None
        with pytest.raises(TypeError, match="no_such_argument"):
            value(no_such_argument=1, **arguments)


@pytest.mark.parametrize(
    "name",
    [
        "device_fn",
        "protocol",
        "tpu_config",
        "cluster",
        # Of some versions of the adapter only.
        "mstune_mode",
        "aoe_mode",
        "jit_compile",
        "deterministic",
    ],
)
def test_run_config_rejects_arguments_that_not_all_versions_have(
    stand_in, name
):
    config = stand_in(NPU + "npu_config").NPURunConfig
    with pytest.raises(TypeError, match=name):
        config(**{name: None})


# Run config and estimator.


@pytest.mark.parametrize(
    "arguments, error",
    [
        (dict(save_checkpoints_steps=1, save_checkpoints_secs=1), ValueError),
        (dict(iterations_per_loop=0), ValueError),
        (dict(iterations_per_loop=1.0), TypeError),
        (dict(log_step_count_steps=0), ValueError),
        (dict(mix_compile_mode=1), ValueError),
        (
            dict(
                mix_compile_mode=True,
                iterations_per_loop=2,
                save_checkpoints_steps=2,
            ),
            ValueError,
        ),
        (dict(graph_run_mode=2), ValueError),
        (dict(horovod_mode=1), ValueError),
        (dict(profiling_config=3), ValueError),
        (dict(dump_config=3), ValueError),
        (dict(distribute=3), ValueError),
        (dict(session_device_id=-1), ValueError),
        (dict(precision_mode="allow_mixed_precision"), ValueError),
        (dict(iterations_per_loop=3), ValueError),
        (dict(iterations_per_loop=4, save_checkpoints_steps=6), ValueError),
        (
            dict(
                iterations_per_loop=4,
                save_checkpoints_steps=4,
                enable_data_pre_proc=False,
            ),
            ValueError,
        ),
    ],
)
def test_run_config_errors(stand_in, arguments, error):
    with pytest.raises(error):
        stand_in(NPU + "npu_config").NPURunConfig(**arguments)


def test_run_config_saves_every_100_steps_unless_told(stand_in):
    config = stand_in(NPU + "npu_config").NPURunConfig
    assert config().save_checkpoints_steps == 100
    assert config().save_summary_steps == 0
    assert config(save_checkpoints_steps=0).save_checkpoints_steps == 0
    assert config(save_checkpoints_secs=5).save_checkpoints_steps is None
    assert config(log_step_count_steps=None).log_step_count_steps is None


def _linear(features, labels, mode, **more):
    """A spec of one weight [2] that learns x . w = labels."""
    weight = tf.get_variable("weight", [2], initializer=tf.zeros_initializer())
    predicted = tf.reduce_sum(features["x"] * weight, axis=1)
    if mode == "infer":
        return tf.estimator.EstimatorSpec(mode, predictions={"y": predicted})
    loss = tf.reduce_mean(tf.square(predicted - labels))
    optimizer = tf.train.GradientDescentOptimizer(0.1)
    step = tf.train.get_or_create_global_step()
    train_op = optimizer.apply_gradients(
        optimizer.compute_gradients(loss), step
    )
    return tf.estimator.EstimatorSpec(
        mode, predictions={"y": predicted}, loss=loss, train_op=train_op, **more
    )


def _input(count=64):
    x = np.arange(2 * count, dtype=np.float32).reshape(-1, 2) % 7 / 7
    data = tf.data.Dataset.from_tensor_slices(({"x": x}, x.sum(axis=1)))
    return data.batch(4, drop_remainder=True)


def _estimator(stand_in, path, model_fn=None, **arguments):
    npu_estimator = stand_in(NPU + "npu_estimator")

    def linear(features, labels, mode):
        return _linear(features, labels, mode)

    arguments.setdefault("save_checkpoints_steps", 0)
    arguments.setdefault("log_step_count_steps", None)
    config = stand_in(NPU + "npu_config").NPURunConfig(
        model_dir=str(path), **arguments
    )
    return npu_estimator.NPUEstimator(model_fn or linear, config=config)


@pytest.mark.parametrize("name", ["JOB_ID", "RANK_SIZE"])
def test_estimator_needs_the_variables_of_a_job(
    stand_in, monkeypatch, tmp_path, name
):
    monkeypatch.delenv(name)
    with pytest.raises(AttributeError, match=name):
        _estimator(stand_in, tmp_path)


def test_estimator_refuses_a_plain_run_config(stand_in, tmp_path):
    estimator = stand_in(NPU + "npu_estimator").NPUEstimator
    with pytest.raises(ValueError, match="NPURunConfig"):
        estimator(lambda features: None, config=tf.estimator.RunConfig())
    with pytest.raises(TypeError, match="train_batch_size"):
        estimator(lambda features: None, train_batch_size=3)
    config = stand_in(NPU + "npu_config").NPURunConfig(model_dir="one")
    with pytest.raises(ValueError, match="model_dir"):
        estimator(lambda features: None, model_dir="two", config=config)


def test_estimator_fills_the_session_options_in_place(stand_in, tmp_path):
    session = tf.ConfigProto()
    _estimator(
        stand_in,
        tmp_path,
        session_config=session,
        iterations_per_loop=4,
        precision_mode="allow_mix_precision",
        hcom_parallel=True,
    )
    rewriter = session.graph_options.rewrite_options
    assert rewriter.optimizers[-1] == "GradFusionOptimizer"
    (optimizer,) = rewriter.custom_optimizers
    assert optimizer.name == "NpuOptimizer"
    parameters = optimizer.parameter_map
    assert parameters["iterations_per_loop"].i == 4
    assert parameters["precision_mode"].s == b"allow_mix_precision"
    assert parameters["hcom_parallel"].b and parameters["use_off_line"].b


def test_model_fn_gets_what_it_names_and_no_batch_size(stand_in, tmp_path):
    npu_estimator = stand_in(NPU + "npu_estimator")
    seen = []

    def model_fn(features, params):
        seen.append(params)
        return _linear(features, tf.zeros([4]), "train")

    npu_estimator.NPUEstimator(
        model_fn,
        str(tmp_path),
        params={"rate": 1},
        config=stand_in(NPU + "npu_config").NPURunConfig(
            save_checkpoints_steps=0
        ),
    ).train(_input, steps=1)
    assert seen == [{"rate": 1}]


# Hooks and loops.


class Watch(tf.train.SessionRunHook):
    """Keeps the global step after each session run."""

    def __init__(self, log, name):
        self.log, self.name, self.steps = log, name, []

    def begin(self):
        self.log.append(self.name)

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(tf.train.get_global_step())

    def after_run(self, run_context, run_values):
        self.steps.append(
            int(run_context.session.run(tf.train.get_global_step()))
        )


def _note_begin(monkeypatch, hook_class, log):
    begin = hook_class.begin

    def noted(self):
        log.append(hook_class.__name__)
        begin(self)

    monkeypatch.setattr(hook_class, "begin", noted)


def test_hooks_come_in_the_adapters_order(stand_in, monkeypatch, tmp_path):
    log = []
    stand_in("npu_bridge")
    hooks = stand_in("npu_stub.hooks")
    for name in ("NPUCheckpointSaverHook", "SetIterationsVarHook"):
        _note_begin(monkeypatch, getattr(hooks, name), log)

    def model_fn(features, labels, mode):
        return _linear(
            features, labels, mode, training_hooks=[Watch(log, "of the spec")]
        )

    _estimator(
        stand_in,
        tmp_path,
        model_fn,
        iterations_per_loop=2,
        save_checkpoints_steps=4,
    ).train(_input, [Watch(log, "of train()")], max_steps=2)
    assert log == [
        "of train()",
        "NPUCheckpointSaverHook",
        "SetIterationsVarHook",
        "of the spec",
    ]


def test_one_session_run_is_n_steps(stand_in, tmp_path):
    plain = _estimator(stand_in, tmp_path / "plain", save_checkpoints_steps=8)
    plain.train(_input, max_steps=8)
    watch = Watch([], "")
    looped = _estimator(
        stand_in,
        tmp_path / "looped",
        iterations_per_loop=4,
        save_checkpoints_steps=4,
    )
    looped.train(_input, [watch], max_steps=8)
    assert watch.steps == [4, 8]
    np.testing.assert_array_equal(
        plain.get_variable_value("weight"), looped.get_variable_value("weight")
    )
    assert sorted(p.name for p in (tmp_path / "looped").glob("*.index")) == [
        f"model.ckpt-{step}.index" for step in (0, 4, 8)
    ]


def test_saving_ends_where_steps_are_zero(stand_in, tmp_path):
    _estimator(stand_in, tmp_path).train(_input, max_steps=3)
    assert not list(tmp_path.glob("model.ckpt*"))


def test_five_checkpoints_are_kept_whatever_the_config_says(stand_in, tmp_path):
    _estimator(
        stand_in, tmp_path, save_checkpoints_steps=1, keep_checkpoint_max=2
    ).train(_input, max_steps=6)
    assert len(list(tmp_path.glob("model.ckpt*.index"))) == 5


# What strict checks reject.


def _refused(
    stand_in,
    tmp_path,
    match,
    *,
    input_fn=_input,
    change=None,
    mode="train",
    **arguments,
):
    def model_fn(features, labels, mode):
        if change:
            features = {
                "x": features["x"] + tf.cast(change(features["x"]), tf.float32)
            }
        return _linear(features, labels, mode)

    estimator = _estimator(stand_in, tmp_path, model_fn, **arguments)
    with pytest.raises(ValueError, match=match):
        if mode == "train":
            estimator.train(input_fn, steps=arguments.get("steps", 4))
        else:
            list(estimator.predict(input_fn))


@pytest.mark.parametrize(
    "change, match",
    [
        (tf.is_finite, "is_finite"),
        (tf.is_nan, "is_nan"),
        (tf.is_inf, "is_inf"),
        (lambda x: tf.cast(x, tf.float64), "float64"),
        (lambda x: tf.real(tf.complex(x, x)), "complex64"),
        (lambda x: tf.strings.to_number(tf.as_string(x)), "string"),
        (lambda x: tf.py_func(lambda v: v, [x], tf.float32), "input pipeline"),
        (lambda x: tf.train.batch([x], 1)[0], "queues"),
        (
            lambda x: tf.clip_by_global_norm([x], 1.0)[0][0],
            "is_finite" if tf.__version__.startswith("1.") else None,
        ),
    ],
)
def test_unsupported_operations_are_refused(stand_in, tmp_path, change, match):
    if match is None:
        pytest.skip("TF 2's clip_by_global_norm has no is_finite")
    _refused(stand_in, tmp_path, match, change=change)


def test_assertions_and_summaries_may_have_strings(stand_in, tmp_path):
    def model_fn(features, labels, mode):
        check = tf.Assert(tf.reduce_all(features["x"] >= 0.0), ["negative"])
        with tf.control_dependencies([check]):
            features = {"x": tf.identity(features["x"])}
        return _linear(features, labels, mode)

    _estimator(stand_in, tmp_path, model_fn).train(_input, steps=1)


def test_unknown_dimensions_are_refused(stand_in, tmp_path):
    def ragged():
        x = np.ones([6, 2], np.float32)
        return tf.data.Dataset.from_tensor_slices(({"x": x}, x[:, 0])).batch(4)

    _refused(stand_in, tmp_path, "drop_remainder", input_fn=ragged)
    _refused(
        stand_in, tmp_path, "drop_remainder", input_fn=ragged, mode="infer"
    )


def test_loops_need_the_dataset_itself(stand_in, tmp_path):
    def one_shot():
        return tf.data.make_one_shot_iterator(_input()).get_next()

    loops = dict(iterations_per_loop=2, save_checkpoints_steps=2)
    _refused(stand_in, tmp_path, "one-shot", input_fn=one_shot, **loops)
    _estimator(stand_in, tmp_path).train(one_shot, steps=1)


def test_steps_must_be_whole_loops(stand_in, tmp_path):
    estimator = _estimator(stand_in, tmp_path, iterations_per_loop=4)
    for arguments in (dict(steps=6), dict(max_steps=10)):
        with pytest.raises(ValueError, match="iterations_per_loop 4"):
            estimator.train(_input, **arguments)


def test_queries_of_training_work_end_to_end(stand_in, tmp_path):
    estimator = _estimator(stand_in, tmp_path, save_checkpoints_steps=8)
    estimator.train(_input, max_steps=16)
    first = estimator.evaluate(_input, steps=4)["loss"]
    assert first < 0.5
    assert len(list(estimator.predict(_input))) == 64


# Loss scale.


class Update:
    """One weight, a loss scale, and what a run of the update leaves."""

    def __init__(self, stand_in, manager, gradient_of=tf.identity):
        optimizer = stand_in(NPU + "npu_loss_scale_optimizer")
        self.status = stand_in("npu_stub.float_status").STATUS
        self.step = tf.train.get_or_create_global_step()
        self.weight = tf.get_variable(
            "weight", [], initializer=(tf.zeros_initializer())
        )
        self.manager = manager
        wrapped = optimizer.NPULossScaleOptimizer(
            tf.train.MomentumOptimizer(1.0, 0.9), manager
        )
        loss = gradient_of(self.weight)
        self.operation = wrapped.apply_gradients(
            wrapped.compute_gradients(loss), self.step
        )
        self.session = tf.Session()
        self.session.run(tf.global_variables_initializer())

    def values(self):
        return self.session.run(tf.global_variables())

    def run(self):
        """(scale, good, bad, global step) after one more update."""
        self.session.run(self.operation)
        named = {v.op.name: v for v in tf.global_variables()}
        return tuple(
            self.session.run(
                [
                    named[n]
                    for n in (
                        "loss_scale",
                        "good_steps",
                        "bad_steps",
                        "global_step",
                    )
                ]
            )
        )


GOLDEN = [  # scale, good, bad, global step; overflows at 4, 6, 10 and 11
    (1024, 1, 0, 1),
    (1024, 2, 0, 2),
    (2048, 0, 0, 3),
    (2048, 0, 1, 3),
    (2048, 1, 1, 4),
    (1024, 0, 0, 4),
    (1024, 1, 0, 5),
    (1024, 2, 0, 6),
    (2048, 0, 0, 7),
    (2048, 0, 1, 7),
    (1024, 0, 0, 7),
]


def _exponential(stand_in, *arguments, **named):
    return stand_in(
        NPU + "npu_loss_scale_manager"
    ).ExponentialUpdateLossScaleManager(*arguments, **named)


def test_loss_scale_follows_the_golden_trace(stand_in):
    update = Update(
        stand_in,
        _exponential(
            stand_in,
            1024,
            3,
            decr_every_n_nan_or_inf=2,
            incr_ratio=2,
            decr_ratio=0.5,
        ),
    )
    update.status.plant("4,6,10-11")
    for number, expected in enumerate(GOLDEN, 1):
        before = update.values()
        assert update.run() == expected, number
        if number in (4, 6, 10, 11):  # nothing else than the scale changes
            scale = {"loss_scale", "good_steps", "bad_steps"}
            for variable, old, new in zip(
                tf.global_variables(), before, update.values()
            ):
                assert variable.op.name in scale or old == new


def test_overflows_are_planted_by_the_environment(stand_in, monkeypatch):
    monkeypatch.setenv("NPU_STUB_OVERFLOW_STEPS", "2,4-")
    update = Update(stand_in, _exponential(stand_in, 8, 99, decr_ratio=0.5))
    assert [update.run()[3] for _ in range(6)] == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "first, arguments, planted, scales",
    [
        (1.6, dict(decr_every_n_nan_or_inf=1, decr_ratio=0.5), "1-", [1, 1, 1]),
        (1e38, dict(incr_ratio=2), "", [2e38, 2e38, 2e38]),
        (2.0**32, dict(decr_ratio=0.5), "1-", [2.0**32, 2.0**31, 2.0**31]),
    ],
)
def test_loss_scale_stays_in_its_bounds(
    stand_in, first, arguments, planted, scales
):
    update = Update(stand_in, _exponential(stand_in, first, 1, **arguments))
    update.status.plant(planted)
    np.testing.assert_allclose([update.run()[0] for _ in range(3)], scales)


def test_a_real_fp16_overflow_raises_the_flag(stand_in):
    manager = _exponential(stand_in, 4096, 99, 1, decr_ratio=0.5)
    update = Update(
        stand_in,
        manager,
        lambda weight: tf.cast(100.0 * tf.cast(weight, tf.float16), tf.float32),
    )
    # d loss / d weight = 100 in fp16: times 4096, 2048, 1024 it is infinite.
    steps = [update.run() for _ in range(5)]
    assert [s[3] for s in steps] == [0, 0, 0, 1, 2]
    assert [s[0] for s in steps] == [2048, 1024, 512, 512, 512]
    assert update.session.run(update.weight) == -100 - 190


def test_a_fixed_scale_skips_and_never_changes(stand_in):
    managers = stand_in(NPU + "npu_loss_scale_manager")
    with pytest.raises(ValueError):
        managers.FixedLossScaleManager(0.5)
    update = Update(stand_in, managers.FixedLossScaleManager(16.0))
    update.status.plant("2")
    steps = []
    for _ in range(3):
        update.session.run(update.operation)
        steps.append(update.session.run(update.step))
    assert steps == [1, 1, 2]
    assert not [v for v in tf.global_variables() if "scale" in v.op.name]


def test_loss_scale_variables_are_uniquified(stand_in):
    with tf.variable_scope("outer"):
        _exponential(stand_in, 8, 1)
    _exponential(stand_in, 8, 1)
    _exponential(stand_in, 8, 1)
    names = [v.name for v in tf.global_variables()]
    assert names == [
        s % n
        for s in ("outer/%s:0", "%s:0", "%s_1:0")
        for n in ("loss_scale", "good_steps", "bad_steps")
    ]
    assert not tf.trainable_variables()


# Operations.


def _value(tensor):
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return session.run(tensor)


def test_gelu_is_the_tanh_form(stand_in):
    handle = stand_in("npu_bridge.estimator.npu_unary_ops").npu_unary_ops
    x = tf.constant([-2.0, 0.5, 3.0])
    y = handle.gelu(x)
    expected = [
        0.5
        * v
        * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        for v in (-2.0, 0.5, 3.0)
    ]
    np.testing.assert_allclose(_value(y), expected, rtol=1e-5)
    exact = [
        v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in (-2.0, 0.5, 3.0)
    ]
    np.testing.assert_allclose(_value(y), exact, atol=5e-4)
    assert _value(tf.gradients(y, x))[0][1] == pytest.approx(0.8675, abs=1e-3)
    large = tf.constant([100.0], tf.float16)
    assert _value(tf.gradients(handle.gelu(large), large))[0][0] == 1


def test_dropout_keeps_scales_and_reuses_its_mask(stand_in):
    dropout = stand_in("npu_bridge.estimator.npu_ops").dropout
    x = tf.ones([100, 100])
    y = dropout(x, 0.75, seed=3)
    y, gradient = _value([y, tf.gradients(y, x)[0]])
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y > 0).mean() - 0.75) < 0.02
    np.testing.assert_array_equal(y, gradient)
    assert dropout(x, 1.0) is x


def test_dropout_errors(stand_in):
    dropout = stand_in("npu_bridge.estimator.npu_ops").dropout
    x = tf.ones([4])
    with pytest.raises(TypeError):
        dropout(x, rate=0.1)  # pylint: disable=no-value-for-parameter
    for keep_prob in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError):
            dropout(x, keep_prob)
    with pytest.raises(ValueError, match="float"):
        dropout(tf.constant([1]), 0.5)


def test_dropout_seeds_are_those_of_tensorflow(stand_in):
    dropout = stand_in("npu_bridge.estimator.npu_ops").dropout
    for graph_seed, op_seed, expected in (
        (None, None, (0, 0)),
        (None, 5, (87654321, 5)),
        (7, 5, (7, 5)),
    ):
        with tf.Graph().as_default() as graph:
            tf.set_random_seed(graph_seed)
            dropout(tf.ones([4]), 0.5, seed=op_seed)
            (op,) = [
                o for o in graph.get_operations() if o.type == "RandomUniform"
            ]
            assert (op.get_attr("seed"), op.get_attr("seed2")) == expected


def test_operations_without_a_behaviour_are_errors(stand_in):
    npu_ops = stand_in("npu_bridge.estimator.npu_ops")
    with pytest.raises(NotImplementedError, match="initialize_system"):
        npu_ops.initialize_system()


# Ranks and collectives.


def test_one_rank_has_no_collective(stand_in):
    hccl_ops = stand_in("npu_bridge.hccl.hccl_ops")
    with pytest.raises(RuntimeError, match="RANK_SIZE=1"):
        hccl_ops.allreduce(tf.constant(1.0), "sum")
    weight = tf.get_variable("weight", [])
    optimizer = stand_in(NPU + "npu_loss_scale_optimizer")
    wrapped = optimizer.NPULossScaleOptimizer(
        tf.train.GradientDescentOptimizer(1.0),
        _exponential(stand_in, 8, 1),
        is_distributed=True,
    )
    with pytest.raises(RuntimeError, match="RANK_SIZE=1"):
        wrapped.apply_gradients(wrapped.compute_gradients(weight))
    distributed = stand_in(NPU + "npu_optimizer").NPUDistributedOptimizer(
        tf.train.GradientDescentOptimizer(1.0)
    )
    types = {o.type for o in tf.get_default_graph().get_operations()}
    distributed.compute_gradients(weight)
    assert {o.type for o in tf.get_default_graph().get_operations()} == types


def test_collectives_need_the_variables_of_a_job(
    stand_in, monkeypatch, tmp_path
):
    hccl_ops = stand_in("npu_bridge.hccl.hccl_ops")
    monkeypatch.setenv("RANK_SIZE", "2")
    with pytest.raises(RuntimeError, match="RANK_TABLE_FILE"):
        hccl_ops.allreduce(tf.constant(1.0), "sum")
    path = tmp_path / "table.json"
    monkeypatch.setenv("RANK_TABLE_FILE", str(path))
    path.write_text(json.dumps(npu_ranks.table(2)))
    with pytest.raises(RuntimeError, match="RANK_ID"):
        hccl_ops.allreduce(tf.constant(1.0), "sum")
    monkeypatch.setenv("RANK_ID", "1")
    hccl_ops.allreduce(tf.constant(1.0), "sum")
    with pytest.raises(TypeError, match="int64"):
        hccl_ops.allreduce(tf.constant(1, tf.int64), "sum")
    with pytest.raises(ValueError, match="mean"):
        hccl_ops.allreduce(tf.constant(1.0), "mean")
    with pytest.raises(TypeError, match="list"):
        hccl_ops.broadcast(tf.constant(1.0), 0)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.update(status="initializing"), "status"),
        (lambda t: t.update(server_count=1), "1 is not a string"),
        (lambda t: t.update(server_count="2"), "server_count"),
        (lambda t: t["server_list"][0]["device"].pop(), "rank_id"),
        (
            lambda t: t["server_list"][0]["device"][1].update(device_id="5"),
            "0-3",
        ),
        (
            lambda t: t["server_list"][0]["device"][1].pop("device_ip"),
            "device_ip",
        ),
    ],
)
def test_bad_rank_tables_are_refused(stand_in, change, match):
    ranks = stand_in("npu_stub.ranks")
    table = npu_ranks.table(2)
    ranks.check_table(table, 2)
    change(table)
    with pytest.raises(RuntimeError, match=match):
        ranks.check_table(table, 2)


def test_split_strategy_is_checked(stand_in):
    api = stand_in("hccl.split.api")
    with pytest.raises(ValueError, match="100"):
        api.set_split_strategy_by_size([60, 60])
    api.set_split_strategy_by_size([60, 40])
    tf.add_to_collection(stand_in("npu_stub.collective").GRADIENTS, "one")
    with pytest.raises(RuntimeError, match="first allreduce"):
        api.set_split_strategy_by_size([60, 40])


def _all_ranks(stand_in, monkeypatch, size, call):
    """call(exchange, rank) in one thread for each rank; the results."""
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "1")
    exchange = stand_in("npu_stub.exchange")
    rank = stand_in("npu_stub.ranks").Rank
    job = uuid.uuid4().hex
    results = [None] * size

    def run(number):
        try:
            ends[number] = exchange.Exchange(rank(number, size, job))
            results[number] = call(ends[number], number)
        except RuntimeError as error:
            results[number] = str(error)

    ends = {}
    threads = [threading.Thread(target=run, args=(n,)) for n in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_exchange_sums_in_the_order_of_ranks(stand_in, monkeypatch):
    values = np.float32([1e8, 1.0, -1e8, 3.0])

    def call(end, rank):
        (first,) = end.run(
            "first", "allreduce", "sum", [values[rank : rank + 1]]
        )
        sent = end.run("sent", "broadcast", 2, [np.int32(rank)] * 2)
        return first[0], [int(s) for s in sent]

    expected = np.float32(0)
    for value in values:
        expected += value
    for result in _all_ranks(stand_in, monkeypatch, 4, call):
        assert result == (expected, [2, 2])


def test_exchange_names_the_rank_that_is_missing(stand_in, monkeypatch):
    def call(end, rank):
        if rank != 1:
            end.run("step", "allreduce", "sum", [np.float32(1)])

    first, _, third = _all_ranks(stand_in, monkeypatch, 3, call)
    assert "'step#1' waited for rank 1" in first
    assert "'step#1' waited for rank 1" in third


def test_exchange_does_not_wait_for_a_process_that_has_ended(
    stand_in, monkeypatch
):
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "5")
    exchange = stand_in("npu_stub.exchange")
    rank = stand_in("npu_stub.ranks").Rank
    first = exchange.Exchange(rank(0, 2, uuid.uuid4().hex))
    second = first._connect()  # pylint: disable=protected-access
    second.send((1, 2))
    assert second.recv() == "welcome"
    second.close()  # as the end of its process does
    for name in ("one", "another"):
        with pytest.raises(RuntimeError, match="rank 1, whose process has"):
            first.run(name, "allreduce", "sum", [np.float32(1)])


def test_exchange_refuses_what_does_not_fit(stand_in, monkeypatch):
    def call(end, rank):
        end.run("step", "allreduce", "sum", [np.zeros([1 + rank])])

    for result in _all_ranks(stand_in, monkeypatch, 2, call):
        assert "rank 1 sent" in result


TRAINING = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf
tf.disable_v2_behavior()
from npu_bridge.estimator.npu import npu_config, npu_estimator, npu_optimizer
from npu_bridge.estimator.npu import npu_loss_scale_manager as managers
from npu_bridge.estimator.npu import npu_loss_scale_optimizer
from npu_bridge.hccl import hccl_ops
rank, out = int(sys.argv[1]), sys.argv[2]

def input_fn():
    x = np.float32([[1, 2], [3, 5], [5, 6], [7, 7]]) * (1 + rank)
    return tf.data.Dataset.from_tensors({"x": x}).repeat()

def model_fn(features, mode):
    # Every rank starts elsewhere; rank 0's start is what counts.
    weight = tf.get_variable("weight", [2], initializer=(
        tf.constant_initializer(1.0 + rank)))
    loss = tf.reduce_mean(tf.reduce_sum(features["x"] * weight, axis=1))
    optimizer = npu_loss_scale_optimizer.NPULossScaleOptimizer(
        npu_optimizer.NPUDistributedOptimizer(
            tf.train.GradientDescentOptimizer(0.5)),
        managers.ExponentialUpdateLossScaleManager(64, 99, 1, 2, 0.5),
        is_distributed=True)
    step = tf.train.get_or_create_global_step()
    pairs = optimizer.compute_gradients(loss)
    train_op = optimizer.apply_gradients(pairs, step)
    many = [hccl_ops.allreduce(loss * i, "sum", fusion=0) for i in range(30)]
    with tf.control_dependencies([train_op] + many):
        train_op = tf.no_op()
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)

config = npu_config.NPURunConfig(
    model_dir=out, save_checkpoints_steps=0 if rank else 4,
    iterations_per_loop=2, log_step_count_steps=None)
estimator = npu_estimator.NPUEstimator(model_fn, config=config)

class Report(tf.train.SessionRunHook):
    def end(self, session):
        named = {v.op.name: v for v in tf.global_variables()}
        weight, scale, step = session.run(
            [named[n] for n in ("weight", "loss_scale", "global_step")])
        print("RESULT", weight[0], weight[1], scale, step)

estimator.train(input_fn, [Report()], steps=4)
"""


def test_two_ranks_train_as_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    # Rank 1 alone overflows in its third update: both skip it.
    results = npu_ranks.launch(
        [
            [sys.executable, script, rank, tmp_path / (f"rank{rank}")]
            for rank in (0, 1)
        ],
        tmp_path,
        variables=[{}, {"NPU_STUB_OVERFLOW_STEPS": "3"}],
    )
    lines = []
    for code, output in results:
        assert code == 0, output[-2000:]
        lines.append(
            [line for line in output.splitlines() if line.startswith("RESULT")]
        )
    # From [1, 1], updates at the mean of the gradients [4, 5] and [8, 10];
    # of six updates (three loops of two) five count, one more than asked.
    expected = f"RESULT {1 - 0.5 * 6 * 5} {1 - 0.5 * 7.5 * 5} 32.0 5"
    assert lines == [[expected], [expected]]
    assert list((tmp_path / "rank0").glob("model.ckpt-*"))
    assert not list((tmp_path / "rank1").glob("model.ckpt-*"))
