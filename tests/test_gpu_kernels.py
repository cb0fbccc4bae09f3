# SPDX-License-Identifier: Apache-2.0
"""What a GPU computes in fp16, computed on the CPU."""

import argparse
import math
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import environment
import gpu_environment
import kernels
import modeling
from device import Processes
from scripts import roofline
from training import flops

LARGE = dict(
    hidden_size=1024,
    vocab_size=50265,
    batch_size=64,
    sequence_length=128,
    predictions=20,
)


def run(*tensors):
    with tf.Session() as session:
        return session.run(tensors)


def test_gelu_in_fp16_is_the_exact_one_with_its_gradient():
    values = np.linspace(-8, 8, 401)
    area = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in values])
    density = np.exp(-0.5 * values**2) / math.sqrt(2 * math.pi)
    x = tf.constant(values, tf.float16)
    y = gpu_environment.gelu(x)
    assert y.dtype == tf.float16
    actual, gradient = run(y, tf.gradients(y, x)[0])
    np.testing.assert_allclose(actual, values * area, rtol=1e-3, atol=6e-4)
    np.testing.assert_allclose(gradient, area + values * density, atol=3e-3)
    # 1 + erf in fp16 would be 0 from -3 on; the true value is -0.0041.
    assert actual[np.argmin(np.abs(values + 3))] == pytest.approx(-4.05e-3, 0.1)


@pytest.mark.skipif(
    not gpu_environment.Gpu.fuses_norm, reason="no kernel for CPUs"
)
def test_fused_normalization_has_the_values_and_gradients_of_the_plain_one():
    random = np.random.RandomState(0)
    inputs = [
        tf.constant(random.randn(6, 32) * 3 + 1, tf.float16),
        tf.constant(random.randn(32), tf.float32),
        tf.constant(random.randn(32), tf.float32),
    ]
    upstream = tf.constant(random.randn(6, 32), tf.float16)
    fused = gpu_environment.normalize(*inputs, epsilon=1e-5)
    assert fused.dtype == tf.float16
    wide = [tf.cast(tensor, tf.float32) for tensor in inputs]
    plain = kernels.normalize(*wide, epsilon=1e-5)
    actual, expected = run(
        [fused] + tf.gradients(fused, inputs, upstream),
        [plain] + tf.gradients(plain, wide, tf.cast(upstream, tf.float32)),
    )
    for one, other in zip(actual, expected):
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=2e-2)


def test_dropout_in_fp16_keeps_rate_and_mean():
    rows = tf.ones([2000, 500], tf.float16)
    (values,) = run(gpu_environment.dropout(rows, 0.1, [1, 2]))
    assert set(np.unique(values)) == {0.0, np.float16(1024 / 922)}
    # Five standard deviations of a million draws.
    assert abs((values == 0).mean() - 0.1) < 0.0015 + 0.0005
    assert abs(values.astype(np.float64).mean() - 1.0) < 0.002


def test_a_product_in_fp16_has_sizes_for_tensor_cores():
    random = np.random.RandomState(0)
    a, b = [
        tf.constant(random.randn(*shape), tf.float16)
        for shape in ((4, 16), (21, 16))
    ]
    product = gpu_environment.matmul(a, b, transpose_b=True)
    assert product.shape.as_list() == [4, 21]
    plain = tf.matmul(a, b, transpose_b=True)
    for one, other in zip(
        *run(
            [product] + tf.gradients(product, [a, b]),
            [plain] + tf.gradients(plain, [a, b]),
        )
    ):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2)
    assert product.op.inputs[0].shape.as_list() == [4, 24]


def test_all_dropout_seeds_come_from_one_operation_on_the_host():
    gpu = gpu_environment.Gpu(
        environment.DeviceConfig(manual_fp16=True), Processes()
    )
    config = modeling.RobertaConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
    )
    modeling.RobertaModel(
        config,
        True,
        tf.constant([[0, 5, 2]]),
        kernels=gpu.kernels,
        dropout_seed=tf.constant([1, 2]),
    )
    operations = tf.get_default_graph().get_operations()
    (xor,) = [op for op in operations if op.type == "BitwiseXor"]
    assert xor.outputs[0].shape.as_list() == [1 + 3 * 3, 2]
    assert xor.device.lower().endswith("cpu:0")
    draws = [op for op in operations if op.type == "StatelessRandomUniform"]
    assert len(draws) >= 3 * 3
    assert all(op.inputs[1].op.type == "Unpack" for op in draws)


# Counting.


def test_bytes_and_operations_of_a_small_graph():
    a = tf.placeholder(tf.float16, [256, 512])
    b = tf.placeholder(tf.float16, [512, 128])
    product = tf.matmul(a, b)
    scaled = tf.square(product * product) + 1.0
    loss = tf.reduce_sum(scaled)
    work = roofline.count(
        tf.estimator.EstimatorSpec("train", None, loss, loss.op)
    )
    size = 256 * 128 * 2
    assert work.half_flops == 2 * 256 * 512 * 128 and work.single_flops == 0
    assert work.traffic["Mul"] == 2 * size
    assert work.traffic["Square"] == 2 * size
    assert work.bytes == pytest.approx(7 * size, abs=20)
    # One kernel reads the product and writes the sum.
    assert work.merged == pytest.approx(size, abs=20)
    card = flops.Card(1.0, 1.0, 1.0)
    assert work.seconds(card, False) == pytest.approx(
        work.half_flops / 0.55e12 + work.bytes / 0.8e9
    )


@pytest.mark.parametrize("half", [True, False])
def test_formula_of_flops_is_what_the_graph_of_a_step_has(half):
    options = environment.DeviceConfig(manual_fp16=half)
    settings = argparse.Namespace(num_layers=2, **LARGE)
    work = roofline.work(settings, options)
    config = modeling.RobertaConfig(
        vocab_size=50265,
        num_hidden_layers=2,
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    counted = flops.of_step(config, tf.fill([64, 128], 5), tf.constant(1280.0))
    assert run(counted)[0] == pytest.approx(
        work.half_flops + work.single_flops, rel=0.001
    )


def test_padding_and_the_lm_head_are_told_apart_in_flops():
    config = modeling.RobertaConfig(
        vocab_size=10,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
    )
    padded = tf.constant([[0, 5, 2, 1, 1], [1, 1, 1, 1, 1]])
    # Three tokens: keys and values 3 * 8, the rest 3 * (8 + 16), each six
    # times; attention 12 * 2 * 9.
    all_rows = 6 * 24 + 6 * 72 + 216
    one_row = 6 * 24 + (6 * 72 + 216) / 3 + 6 * 2 * (2 + 10)
    assert run(
        flops.of_step(config, padded),
        flops.of_step(config, padded, tf.constant(1.0)),
    ) == (all_rows, pytest.approx(one_row))


@pytest.mark.parametrize(
    "card, options, teraflops",
    [
        ("Tesla V100-SXM2-32GB", {}, 15.7),
        ("NVIDIA A100-SXM4-80GB", {"manual_fp16": True}, 312),
        ("NVIDIA H100 80GB HBM3", {"use_bf16": True}, 989),
        ("NVIDIA H100 PCIe", {}, None),
        ("Tesla T4", {}, None),
        ("Tesla T4", {"peak_teraflops": 65.0}, 65),
        ("", {}, None),
    ],
)
def test_peak_of_a_card_in_its_precision(card, options, teraflops):
    device = types.SimpleNamespace(
        options=environment.DeviceConfig(**options), card=lambda: card
    )
    expected = teraflops and pytest.approx(teraflops * 1e12)
    assert flops.peak(device) == expected


@pytest.fixture(scope="module")
def large():
    """The work of the large model's step, from models of two depths."""
    options = environment.DeviceConfig(manual_fp16=True)
    two, three = [
        roofline.work(argparse.Namespace(num_layers=layers, **LARGE), options)
        for layers in (2, 3)
    ]
    return {
        name: getattr(two, name)
        + 22 * (getattr(three, name) - getattr(two, name))
        for name in ("bytes", "merged", "half_flops", "large")
    }


def test_bytes_of_the_large_model_stay_within_the_budget(large):
    """The plain kernels move 298 GB; the budget is 60 % of them."""
    assert large["bytes"] < 0.6 * 298e9
    assert large["merged"] < 80e9
    # Six per weight and token, the embeddings left out, plus attention.
    assert large["half_flops"] == pytest.approx(6 * 302e6 * 8192, rel=0.05)
