# SPDX-License-Identifier: Apache-2.0
"""The graph of a training step on an NPU, as the device would get it.

`fused_forward` and `fused_backward` are the rules of ScopeLayerNormPass and
ScopeLayerNormGradPass in CANN's operator package (Apache 2.0), by which its
compiler finds LayerNorms in TensorFlow's graph.
"""

import collections
import importlib
import re

import tensorflow.compat.v1 as tf

import npu_environment
import run_pretraining
from device import DeviceConfig, Processes
from helpers import npu_ranks, tiny
from training import run_config

BATCH, LENGTH, MASKED = 2, 16, 4


def use_stub(monkeypatch, release):
    """Imports a fresh stub of the adapter; returns its module `graph`.

    A test that calls it ends with npu_ranks.forget_stub.
    """
    monkeypatch.syspath_prepend(str(npu_ranks.STAND_IN))
    monkeypatch.setenv("NPU_STUB_RELEASE", release)
    npu_ranks.forget_stub()
    if npu_environment._ADAPTER == "npu_device":
        importlib.import_module("npu_device").compat.enable_v1()
    return importlib.import_module("npu_stub.graph")


def training_step(
    folder, *, rank=0, world_size=1, micro_batches=1, options=None, **flags
):
    """Builds a step's graph in the default graph; returns the EstimatorSpec."""
    processes = Processes()
    processes.rank, processes.world_size = rank, world_size
    device = npu_environment.Npu(DeviceConfig(**(options or {})), processes)
    run = run_config.RunConfig(
        output_dir=str(folder / "out"),
        bert_config_file=str(
            tiny.write_model(folder / "model", dropout=0.1, layers=2)
            / "config.json"
        ),
        num_accumulation_steps=micro_batches,
        max_seq_length=LENGTH,
        train_batch_size=BATCH,
        **flags,
    )
    training = run_config.Training(
        run_config.model_config(run), run, device, 10, 1
    )
    tf.set_random_seed(run.random_seed)
    rows = BATCH * micro_batches

    def feature(shape, dtype=tf.int32):
        return tf.placeholder_with_default(tf.ones(shape, dtype), shape)

    features = {
        "input_ids": feature([rows, LENGTH]) * 7,
        "input_mask": feature([rows, LENGTH]),
        "masked_lm_positions": feature([rows, MASKED]),
        "masked_lm_ids": feature([rows, MASKED]),
        "masked_lm_weights": feature([rows, MASKED], tf.float32),
    }
    model_fn = run_pretraining.build_model_fn(training, run)
    return model_fn(features, None, tf.estimator.ModeKeys.TRAIN, {})


def optimized(spec):
    """The step's nodes after TensorFlow's own optimizations.

    With those that the adapter turns on, and without those that it turns off.
    """
    config = tf.ConfigProto()
    rewriter = config.graph_options.rewrite_options
    rewriter.optimizers.extend(
        ["pruning", "function", "constfold", "shape", "arithmetic"]
        + ["loop", "dependency", "layout"]
    )
    rewriter.remapping = rewriter.OFF
    rewriter.memory_optimization = rewriter.NO_MEM_OPT
    metadata = tf.RunMetadata()
    with tf.Session(config=config) as session:
        session.run(tf.global_variables_initializer())
        session.run(
            [spec.train_op, spec.loss],
            options=tf.RunOptions(output_partition_graphs=True),
            run_metadata=metadata,
        )
    return [node for graph in metadata.partition_graphs for node in graph.node]


def _scopes(nodes):
    """{scope: (its nodes' types, counted, and its scopes' last names)}."""
    scopes = collections.defaultdict(lambda: (collections.Counter(), set()))
    for node in nodes:
        parts = node.name.split("/")
        for depth in range(1, len(parts)):
            types, inner = scopes["/".join(parts[:depth])]
            types[node.op] += 1
            inner.update(parts[depth:-1])
    return scopes


def fused_forward(nodes):
    """Scopes X, sorted, whose X/moments and X/batchnorm are fused."""
    consumers = collections.defaultdict(list)
    for node in nodes:
        for name in node.input:
            consumers[name.split(":")[0]].append(node.name)
    for node in nodes:
        # One Rsqrt without a gradient turns the pass off.
        if "LayerNorm/batchnorm/Rsqrt" in node.name and node.op == "Rsqrt":
            if not any("mul_grad/Mul_1" in n for n in consumers[node.name]):
                return []
    found = {"batchnorm": set(), "moments": set()}
    for scope, (types, _) in _scopes(nodes).items():
        outer, _, last = scope.rpartition("/")
        if last == "batchnorm" and not types["Identity"]:
            if (types["Sub"], types["Rsqrt"], types["Mul"]) == (1, 1, 3):
                found[last].add(outer)
        if last == "moments" and not types["Squeeze"] + types["StopGradient"]:
            if (types["Mean"], types["SquaredDifference"]) == (2, 1):
                found[last].add(outer)
    if len(found["batchnorm"]) != len(found["moments"]):
        return []
    both = found["batchnorm"] & found["moments"]
    return sorted(scope for scope in both if "while" not in scope)


def fused_backward(nodes):
    """Scopes X, sorted, whose gradients in gradients/X are fused."""
    scopes = _scopes(nodes)

    def matches(scope, last, gradient, is_counted=lambda types: True):
        types, inner = scopes.get(f"{scope}/{last}", ({}, ()))
        return gradient in inner and is_counted(types)

    return sorted(
        re.sub(r"(^|.*/)gradients/", "", scope)
        for scope in scopes
        if scope.split("/")[-1] == "LayerNorm"
        and matches(scope, "moments", "SquaredDifference_grad")
        and matches(
            scope,
            "batchnorm",
            "Rsqrt_grad",
            lambda types: types["Mul"] == 6 and not types["StackPopV2"],
        )
    )
