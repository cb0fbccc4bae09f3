# SPDX-License-Identifier: Apache-2.0
"""Training steps: reference trajectory, optimizers, clipping, loss scale."""

import contextlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import cpu_environment
import environment
import optimization
import run_pretraining
from device import Processes
from helpers.paths import GOLDEN
from training import run_config

TRAJECTORY = np.load(str(GOLDEN / "training" / "trajectory.npz"))
FEATURES = (
    "input_ids",
    "input_mask",
    "masked_lm_positions",
    "masked_lm_ids",
    "masked_lm_weights",
)
MOMENTS = ("/adam_m", "/adam_v")


class Trainer:
    """run_pretraining's training step on the reference model, fed by hand."""

    def __init__(
        self,
        checkpoint,
        *,
        sequences=5,
        steps=30,
        warmup_steps=6,
        options=None,
        **settings,
    ):
        settings = dict({"learning_rate": 0.005}, **settings)
        count = settings.get("num_accumulation_steps", 1)
        run = run_config.RunConfig(
            output_dir="/nonexistent",
            init_checkpoint=checkpoint,
            train_batch_size=sequences // count,
            **settings,
        )
        device = cpu_environment.Cpu(
            environment.DeviceConfig(**options or {}), Processes()
        )
        config = configuration.RobertaConfig.from_json_file(
            str(GOLDEN / "masked_lm" / "config.json")
        )
        model_fn = run_pretraining.build_model_fn(
            run_config.Training(config, run, device, steps, warmup_steps), run
        )
        self._feeds = {
            name: tf.placeholder(
                tf.float32 if name.endswith("weights") else tf.int32,
                (sequences,) + TRAJECTORY[name].shape[2:],
            )
            for name in FEATURES
        }
        self.spec = model_fn(self._feeds, None, tf.estimator.ModeKeys.TRAIN, {})
        self._report = self.spec.training_hooks[0].before_run(None).fetches
        self.session = tf.Session()
        self.session.run(tf.global_variables_initializer())

    def step(self, batch):
        """One update; gives what the log line is made of."""
        feeds = {self._feeds[name]: batch[name] for name in FEATURES}
        return self.session.run((self._report, self.spec.train_op), feeds)[0]

    def variables(self):
        """{name: value} of everything in the checkpoint."""
        return self.session.run({v.op.name: v for v in tf.global_variables()})


def golden_batch(step):
    """The reference's batch, and one more sequence that weighs nothing."""
    batch = {name: TRAJECTORY[name][step] for name in FEATURES}
    batch = {
        name: np.concatenate([rows, rows[:1]]) for name, rows in batch.items()
    }
    batch["masked_lm_weights"][-1] = 0
    return batch


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_accumulation_steps": 2, "recompute_layers": True},
        {"options": {"npu_bert_loss_scale": 0}},
    ],
    ids=["plain", "micro_batches", "loss_scale"],
)
def test_30_steps_equal_the_reference(golden_checkpoint, settings):
    trainer = Trainer(golden_checkpoint("masked_lm"), sequences=6, **settings)
    with trainer.session:
        for step in range(30):
            batch = golden_batch(step)
            report = trainer.step(batch)
            assert report["tokens"] == (batch["input_ids"] != 1).sum()
            for name, reference in (
                ("loss", "loss"),
                ("learning_rate", "learning_rate"),
                ("gradient_norm", "grad_norm"),
            ):
                tolerance = 1e-6 if name == "learning_rate" else 1e-4
                assert abs(report[name] - TRAJECTORY[reference][step]) < (
                    tolerance
                ), (name, step)
            assert report["global_step"] == report["batches_seen"] == step + 1
        found = trainer.variables()
    for name, reference in (
        ("bert/embeddings/word_embeddings", "final_word_embeddings"),
        (
            "bert/encoder/layer_0/attention/self/query/kernel",
            "final_query_kernel_0",
        ),
    ):
        np.testing.assert_allclose(
            found[name], TRAJECTORY[reference], rtol=0, atol=1e-4
        )


def test_names_of_the_training_state(golden_checkpoint):
    trainer = Trainer(
        golden_checkpoint("masked_lm"), options={"npu_bert_loss_scale": 0}
    )
    with trainer.session:
        names = set(trainer.variables())
    model = {v.op.name for v in tf.trainable_variables()}
    slots = {name + suffix for name in model for suffix in MOMENTS}
    assert names == model | slots | {
        "global_step",
        "batches_seen",
        "records_seen",
        "loss_scale",
        "good_steps",
        "bad_steps",
    }


def large_batch(step):
    """20 sequences with unequal numbers of masked positions."""
    batch = {
        name: np.concatenate(TRAJECTORY[name][4 * step : 4 * step + 4])
        for name in FEATURES
    }
    keep = np.arange(8) < np.arange(20)[:, np.newaxis] % 8 + 1
    batch["masked_lm_weights"] = batch["masked_lm_weights"] * keep
    return batch


def run_large_batches(checkpoint, **settings):
    with tf.Graph().as_default():
        trainer = Trainer(
            checkpoint,
            sequences=20,
            warmup_steps=0,
            learning_rate=1e-4,
            **settings,
        )
        with trainer.session:
            losses = [
                trainer.step(large_batch(step))["loss"] for step in range(4)
            ]
            return losses, trainer.variables()


def test_4_micro_batches_equal_one_large_batch(golden_checkpoint):
    checkpoint = golden_checkpoint("masked_lm")
    losses, variables = run_large_batches(checkpoint)
    same, others = run_large_batches(checkpoint, num_accumulation_steps=4)
    # Losses are about 10, where one step of float32 is 1e-6.
    np.testing.assert_allclose(losses, same, rtol=1e-6)
    assert variables["global_step"] == others["global_step"] == 4
    for name, value in variables.items():
        # A key's bias shifts all scores of a query alike: its gradient is
        # rounding alone, which Adam scales up.
        atol = 1e-5 if name.endswith("key/bias") else 2e-7
        np.testing.assert_allclose(
            value, others[name], rtol=0, atol=atol, err_msg=name
        )


def test_overflow_in_training_leaves_no_trace(golden_checkpoint):
    trainer = Trainer(
        golden_checkpoint("masked_lm"),
        warmup_steps=0,
        options={"manual_fp16": True},
    )
    batch = {name: TRAJECTORY[name][0] for name in FEATURES}
    with trainer.session:
        trainer.step(batch)
        (scale,) = [
            v for v in tf.global_variables() if v.op.name == "loss_scale"
        ]
        scale.load(2.0**40, trainer.session)
        before = trainer.variables()
        report = trainer.step(batch)
        after = trainer.variables()
    assert report["loss_scale"] == 2.0**39 and not report["finite"].all()
    assert report["global_step"] == 1 and report["batches_seen"] == 2
    changed = {
        name
        for name, value in before.items()
        if value.tobytes() != after[name].tobytes()
    }
    assert changed == {
        "loss_scale",
        "batches_seen",
        "records_seen",
        "good_steps",
    }


# Optimizers against NumPy.

NAMES = (
    "dense/kernel",
    "dense/bias",
    "output/LayerNorm/gamma",
    "output/LayerNorm/beta",
)
SETTINGS = dict(beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay_rate=0.1)


def start_values():
    random = np.random.RandomState(0)
    return {
        name: random.randn(*((3, 4) if "kernel" in name else (4,)))
        for name in NAMES
    }


def gradients_of(step):
    random = np.random.RandomState(1 + step)
    return {
        name: random.randn(*value.shape) * 10.0 ** (step % 3 - 1)
        for name, value in start_values().items()
    }


def run_optimizer(make, steps=6):
    """The variables after some steps of an optimizer, and global_step."""
    start = start_values()
    variables = {
        name: tf.get_variable(name, initializer=np.float32(value))
        for name, value in start.items()
    }
    feeds = {
        name: tf.placeholder(tf.float32, value.shape)
        for name, value in start.items()
    }
    step = tf.train.get_or_create_global_step()
    update = make(step).apply_gradients(
        [(feeds[name], variables[name]) for name in NAMES], step
    )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for number in range(steps):
            gradients = gradients_of(number)
            session.run(update, {feeds[n]: gradients[n] for n in NAMES})
        return session.run(variables), session.run(step)


def adamw_in_numpy(rates, factor=lambda name: 1.0):
    """Loshchilov & Hutter 2017, algorithm 2, in float64."""
    values = start_values()
    m = {name: 0.0 for name in NAMES}
    v = {name: 0.0 for name in NAMES}
    for t, base in enumerate(rates, 1):
        for name, g in gradients_of(t - 1).items():
            rate = base * factor(name)
            decay = 0.1 if "kernel" in name else 0.0
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.98 * v[name] + 0.02 * g * g
            first = m[name] / (1 - 0.9**t)
            second = v[name] / (1 - 0.98**t)
            values[name] = values[name] * (1 - rate * decay) - rate * first / (
                np.sqrt(second) + 1e-6
            )
    return values


def lamb_in_numpy(rates):
    """You et al. 2019, algorithm 2, in float64; one count of steps."""
    values = start_values()
    m = {name: 0.0 for name in NAMES}
    v = {name: 0.0 for name in NAMES}
    for t, rate in enumerate(rates, 1):
        for name, g in gradients_of(t - 1).items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.98 * v[name] + 0.02 * g * g
            ratio = (m[name] / (1 - 0.9**t)) / (
                np.sqrt(v[name] / (1 - 0.98**t)) + 1e-6
            )
            if "kernel" in name:
                ratio = ratio + 0.1 * values[name]
            trust = np.linalg.norm(values[name]) / np.linalg.norm(ratio)
            values[name] = values[name] - rate * trust * ratio
    return values


def assert_equal_variables(found, wanted):
    for name in NAMES:
        np.testing.assert_allclose(
            found[name], wanted[name], rtol=2e-5, atol=2e-6, err_msg=name
        )


def test_adamw_equals_its_paper():
    rates = [0.05 * (1 - step / 10) for step in range(6)]
    found, steps = run_optimizer(
        lambda step: optimization.AdamW(
            optimization.scheduled_rate(step, 0.05, 10, 0), **SETTINGS
        )
    )
    assert steps == 6
    assert_equal_variables(found, adamw_in_numpy(rates))


def test_lamb_equals_its_paper_and_counts_a_step_once():
    rates = [0.05 * (1 - step / 10) for step in range(6)]
    found, steps = run_optimizer(
        lambda step: optimization.Lamb(
            optimization.scheduled_rate(step, 0.05, 10, 0), **SETTINGS
        )
    )
    assert steps == 6
    assert_equal_variables(found, lamb_in_numpy(rates))


def test_lamb_moves_weights_that_are_all_0():
    variable = tf.get_variable("bias", initializer=np.zeros(4, np.float32))
    step = tf.train.get_or_create_global_step()
    update = optimization.Lamb(0.1).apply_gradients(
        [(tf.constant([1.0, -2.0, 0.0, 3.0]), variable)], step
    )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(update)
        np.testing.assert_allclose(
            session.run(variable), [-0.1, 0.1, 0.0, -0.1], atol=1e-6
        )


def test_rate_factor_scales_one_variable_and_its_decay():
    factor = {"dense/kernel": 0.25}
    found, _ = run_optimizer(
        lambda step: optimization.AdamW(
            0.05, rate_factor=lambda name: factor.get(name, 1.0), **SETTINGS
        )
    )
    assert_equal_variables(
        found, adamw_in_numpy([0.05] * 6, lambda name: factor.get(name, 1.0))
    )


def test_variable_without_a_gradient_is_left_alone():
    one = tf.get_variable("one", initializer=1.0)
    two = tf.get_variable("two", initializer=1.0)
    step = tf.train.get_or_create_global_step()
    optimizer = optimization.AdamW(0.1)
    optimizer.apply_gradients([(tf.constant(1.0), one), (None, two)], step)
    names = {v.op.name for v in tf.global_variables()}
    assert "one/adam_m" in names and "two/adam_m" not in names


def ancestors(operation):
    """The operations that run before this one in any case."""
    found, waiting = set(), [operation]
    while waiting:
        for before in [
            t.op for t in waiting[-1].inputs
        ] + waiting.pop().control_inputs:
            if before not in found:
                found.add(before)
                waiting.append(before)
    return found


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_no_variable_changes_before_all_gradients_are_known(name):
    """The backward pass of one layer reads the weights of another."""
    gradients = [
        tf.identity(tf.constant([[1.0]]), name=f"gradient_{i}")
        for i in range(3)
    ]
    variables = [tf.get_variable(f"part_{i}/kernel", [1, 1]) for i in range(3)]
    step = tf.train.get_or_create_global_step()
    optimization.OPTIMIZERS[name](0.1).apply_gradients(
        list(zip(gradients, variables)), step
    )
    writers = [
        op
        for op in tf.get_default_graph().get_operations()
        if op.type.startswith(("Assign", "Apply"))
        and not op.name.endswith("/Assign")
    ]
    assert len(writers) >= 7
    for writer in writers:
        assert {g.op for g in gradients} <= ancestors(writer), writer.name


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_control_edges_grow_with_the_variables_not_their_square(name):
    """The large model has 400: a square takes seconds to build."""
    pairs = [
        (tf.constant([1.0]), tf.get_variable(f"part_{i}/kernel", [1]))
        for i in range(40)
    ]
    step = tf.train.get_or_create_global_step()
    optimization.OPTIMIZERS[name](0.1).apply_gradients(pairs, step)
    operations = tf.get_default_graph().get_operations()
    edges = sum(len(operation.control_inputs) for operation in operations)
    assert edges < 2 * len(operations)


# Rates.


@pytest.mark.parametrize(
    "step, total, warmup, wanted",
    [
        (0, 10, 4, 0.0),
        (1, 10, 4, 0.25),
        (4, 10, 4, 1.0),
        (7, 10, 4, 0.5),
        (10, 10, 4, 0.0),
        (12, 10, 4, 0.0),
        (0, 10, 0, 1.0),
        (5, 10, 0, 0.5),
        (0, 1, 0, 1.0),
        (100000, 1000000, 10000, 900 / 990),
    ],
)
def test_linear_schedule(step, total, warmup, wanted):
    rate = optimization.scheduled_rate(
        tf.constant(step, tf.int64), 2.0, total, warmup
    )
    with tf.Session() as session:
        assert session.run(rate) == pytest.approx(2.0 * wanted, rel=1e-6)


@pytest.mark.parametrize(
    "step, schedule, expected",
    [
        (2, "cosine", 0.5),
        (4, "cosine", 1.0),
        (6, "cosine", (1 + np.cos(np.pi / 3)) / 2),
        (10, "cosine", 0.0),
        (2, "constant", 0.5),
        (4, "constant", 1.0),
        (10, "constant", 1.0),
    ],
)
def test_other_schedules(step, schedule, expected):
    rate = optimization.scheduled_rate(
        tf.constant(step, tf.int64), 2.0, 10, 4, schedule
    )
    with tf.Session() as session:
        assert session.run(rate) == pytest.approx(2.0 * expected, abs=1e-6)


def test_layer_wise_factors():
    def factor(name):
        return optimization.layer_wise_factor(name, 0.5, 12)

    assert factor("cls/squad/output_weights") == 1.0
    assert factor("bert/pooler/dense/kernel") == 1.0
    assert factor("bert/encoder/layer_11/output/dense/kernel") == 0.5
    assert factor("bert/encoder/layer_1/output/LayerNorm/beta") == 0.5**11
    assert factor("bert/embeddings/word_embeddings") == 0.5**13
    assert (
        optimization.layer_wise_factor(
            "bert/embeddings/word_embeddings", 1.0, 12
        )
        == 1.0
    )


def test_decay_leaves_out_biases_and_layer_norm():
    for name in (
        "bert/encoder/layer_0/attention/self/query/bias",
        "cls/predictions/output_bias",
        "cls/squad/output_bias",
        "bert/embeddings/LayerNorm/gamma",
        "bert/encoder/layer_1/output/LayerNorm/beta",
    ):
        assert not optimization.is_decayed(name)
    for name in (
        "bert/embeddings/word_embeddings",
        "bert/embeddings/position_embeddings",
        "bert/encoder/layer_0/output/dense/kernel",
        "cls/squad/output_weights",
    ):
        assert optimization.is_decayed(name)


# Clipping.


def clipped(clip_norm, by_global_norm):
    gradients = [tf.constant([3.0, 4.0]), None, tf.constant([0.0, 12.0])]
    norm = optimization.global_norm(gradients)
    pairs = optimization.clip(
        list(zip(gradients, "abc")), clip_norm, by_global_norm, norm
    )
    assert [v for _, v in pairs] == list("abc") and pairs[1][0] is None
    with tf.Session() as session:
        assert session.run(norm) == pytest.approx(13.0)
        return np.concatenate(session.run([pairs[0][0], pairs[2][0]]))


@pytest.mark.parametrize(
    "clip_norm, by_global_norm, wanted",
    [
        (6.5, True, [1.5, 2, 0, 6]),
        (6.5, False, [3, 4, 0, 6.5]),
        (1.0, False, [0.6, 0.8, 0, 1]),
        (20.0, True, [3, 4, 0, 12]),
        (0, True, [3, 4, 0, 12]),
    ],
)
def test_clip(clip_norm, by_global_norm, wanted):
    np.testing.assert_allclose(
        clipped(clip_norm, by_global_norm), wanted, rtol=1e-6
    )


def test_zero_gradients_are_clipped_to_zero():
    pairs = optimization.clip(
        [(tf.zeros([2]), "a")],
        1.0,
        True,
        optimization.global_norm([tf.zeros([2])]),
    )
    with tf.Session() as session:
        np.testing.assert_array_equal(session.run(pairs[0][0]), [0, 0])


# Micro-batches.


def square_losses(weight):
    """Loss of micro-batch i: (i + 1) * weight², and a count to be summed."""

    def losses(index):
        loss = tf.cast(index + 1, tf.float32) * tf.square(weight)
        return loss, {"loss": loss, "count": tf.constant(1.0)}

    return losses


@pytest.mark.parametrize("count", [1, 3])
def test_micro_batches_sum_gradients_and_values(count):
    reduced = []

    def reduce_each(gradients):
        reduced.append(len(gradients))
        return [2.0 * g for g in gradients]

    weight = tf.get_variable("weight", initializer=3.0)
    tf.get_variable("unused", initializer=1.0)
    micro = optimization.MicroBatches(
        optimization.AdamW(0.1), square_losses(weight), count, reduce_each
    )
    pairs = dict(
        (v.op.name, g) for g, v in micro.compute_gradients(tf.constant(10.0))
    )
    assert pairs["unused"] is None and set(reduced) == {1}
    factors = sum(range(1, count + 1))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        gradient, sums = session.run([pairs["weight"], micro.sums])
    assert gradient == 2 * 10 * factors * 2 * 3.0
    assert sums == {"loss": factors * 9.0, "count": count}


def test_averaging_comes_after_the_sum():
    weight = tf.get_variable("weight", initializer=3.0)
    tf.get_variable("unused", initializer=1.0)
    micro = optimization.MicroBatches(
        optimization.AdamW(0.1), square_losses(weight), 3
    )
    averaged = optimization.Averaged(
        micro, lambda tensors: [t / 2.0 for t in tensors]
    )
    pairs = averaged.compute_gradients(tf.constant(1.0))
    assert [g is None for g, _ in pairs] == [False, True]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(pairs[0][0]) == 6 * 2 * 3.0 / 2


# Loss scale.


class Scaled:
    """One weight under a loss scale; `factor` inf makes a step overflow."""

    def __init__(self, initial, dynamic=True, **rules):
        self._factor = tf.placeholder(tf.float32, [])
        weight = tf.get_variable("weight", initializer=[0.5, -1.5])

        def losses(index):
            del index
            return tf.reduce_sum(tf.square(weight)) * self._factor, {}

        micro = optimization.MicroBatches(optimization.AdamW(0.1), losses, 1)
        self.optimizer = optimization.LossScaled(
            micro, optimization.LossScale(initial, dynamic, **rules)
        )
        step = tf.train.get_or_create_global_step()
        self._pairs = self.optimizer.compute_gradients(tf.constant(1.0))
        self._update = self.optimizer.apply_gradients(self._pairs, step)

    @contextlib.contextmanager
    def open(self):
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            yield lambda factor: self._step(session, factor)

    def _step(self, session, factor):
        session.run(self._update, {self._factor: factor})
        return session.run({v.op.name: v for v in tf.global_variables()})


def test_loss_scale_follows_the_reference_trace():
    scaled = Scaled(1024, incr_every_n_steps=3, decr_every_n_nan_or_inf=2)
    overflows = [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1]
    with scaled.open() as step:
        states = [step(np.inf if overflow else 1.0) for overflow in overflows]
    trace = [
        [int(state[name]) for state in states]
        for name in ("loss_scale", "good_steps", "bad_steps", "global_step")
    ]
    assert trace == [
        [1024, 1024, 2048, 2048, 2048, 1024, 1024, 1024, 2048, 2048, 1024],
        [1, 2, 0, 0, 1, 0, 1, 2, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
        [1, 2, 3, 3, 4, 4, 5, 6, 7, 7, 7],
    ]


@pytest.mark.parametrize("factor", [np.inf, -np.inf, np.nan])
def test_overflow_leaves_weights_moments_and_step(factor):
    with Scaled(1024).open() as step:
        before, after = step(1.0), step(factor)
        resumed = step(1.0)
    for name in ("weight", "weight/adam_m", "weight/adam_v", "global_step"):
        assert before[name].tobytes() == after[name].tobytes()
        assert before[name].tobytes() != resumed[name].tobytes()
    assert (after["loss_scale"], resumed["global_step"]) == (512, 2)


@pytest.mark.parametrize(
    "initial, rules, factors, wanted",
    [
        # INTERFACE's defaults: halved at each overflow, grows after 1,000.
        (2.0**15, {}, [np.inf] * 3 + [1.0], 2.0**12),
        (1.6, {}, [np.inf], 1.0),
        (1.0, {}, [np.inf] * 2, 1.0),
        (2.0**32, {"decr_every_n_nan_or_inf": 2}, [np.inf] * 5, 2.0**30),
        (1e38, {"incr_every_n_steps": 1}, [0.0, 0.0], 2e38),
        (8.0, {"incr_every_n_steps": 2, "incr_ratio": 3.0}, [1.0] * 5, 72.0),
    ],
)
def test_bounds_of_the_loss_scale(initial, rules, factors, wanted):
    with Scaled(initial, **rules).open() as step:
        states = [step(factor) for factor in factors]
    assert states[-1]["loss_scale"] == pytest.approx(wanted, rel=1e-6)


def test_scale_grows_after_1000_good_steps():
    scaled = Scaled(2.0)
    with scaled.open() as step:
        states = [step(1.0) for _ in range(1000)]
    assert [s["loss_scale"] for s in states[-2:]] == [2.0, 4.0]


def test_fixed_scale_stays_and_still_skips():
    with Scaled(64.0, dynamic=False).open() as step:
        before, after = step(1.0), step(np.inf)
    assert before["weight"].tobytes() == after["weight"].tobytes()
    assert after["loss_scale"] == 64 and after["global_step"] == 1


def test_scale_does_not_change_the_update():
    values = []
    for scale in (1.0, 4096.0):
        with tf.Graph().as_default(), Scaled(scale).open() as step:
            values.append([step(1.0)["weight"] for _ in range(3)])
    np.testing.assert_array_equal(*values)
