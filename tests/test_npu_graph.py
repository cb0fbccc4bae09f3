# SPDX-License-Identifier: Apache-2.0
"""The graph that an NPU's compiler gets: LayerNorm, operations, dropout."""

import importlib
import pathlib
import re

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import npu_environment
import optimization
from common import errors
from device import DeviceConfig
from helpers import npu_graph, npu_ranks

OPERATIONS = pathlib.Path(__file__).parent / "data" / "npu_operations.txt"
# TensorFlow removes them before the compiler sees the graph.
FOLDED = {"BroadcastGradientArgs", "IdentityN"}
LAYER_NORMS = sorted(
    ["bert/embeddings/LayerNorm", "cls/predictions/transform/LayerNorm"]
    + [
        f"bert/encoder/layer_{layer}/{part}/LayerNorm"
        for layer in (0, 1)
        for part in ("attention/output", "output")
    ]
)


@pytest.fixture(autouse=True)
def without_stub_afterwards():
    yield
    npu_ranks.forget_stub()


@pytest.mark.parametrize(
    "micro_batches, recompute", [(1, False), (2, False), (1, True)]
)
def test_compiler_fuses_both_passes_of_layer_norm_or_neither(
    monkeypatch, tmp_path, micro_batches, recompute
):
    """In releases of the adapter without its own LayerNorm."""
    npu_graph.use_stub(monkeypatch, "D")
    nodes = npu_graph.optimized(
        npu_graph.training_step(
            tmp_path, micro_batches=micro_batches, recompute_layers=recompute
        )
    )
    fused = [] if micro_batches > 1 or recompute else LAYER_NORMS
    assert npu_graph.fused_forward(nodes) == fused
    assert npu_graph.fused_backward(nodes) == fused
    assert not FOLDED & {node.op for node in nodes}


@pytest.mark.parametrize("release, micro_batches", [("17", 1), ("M", 2)])
def test_adapters_layer_norm_is_one_operation_in_both_passes(
    monkeypatch, tmp_path, micro_batches, release
):
    graph = npu_graph.use_stub(monkeypatch, release)
    spec = npu_graph.training_step(tmp_path, micro_batches=micro_batches)
    nodes = npu_graph.optimized(spec)
    assert npu_graph.fused_forward(nodes) == []
    assert npu_graph.fused_backward(nodes) == []
    layers = {"FusedLayerNorm": set(), "FusedLayerNormGrad": set()}
    for node in nodes:
        name = graph.adapter_operation(node)
        if name in layers:
            layers[name].add(
                re.search(
                    r"(bert|cls)/(?!.*(bert|cls)/).*?(?=/FusedLayerNorm)",
                    node.name,
                ).group()
            )
    places = {str(pathlib.PurePosixPath(name).parent) for name in LAYER_NORMS}
    assert layers["FusedLayerNorm"] == places
    assert layers["FusedLayerNormGrad"] == places


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_step_has_only_operations_of_the_npu(
    monkeypatch, tmp_path, micro_batches, native
):
    graph = npu_graph.use_stub(monkeypatch, "M")
    spec = npu_graph.training_step(
        tmp_path,
        micro_batches=micro_batches,
        options=dict(npu_bert_npu_dropout=native, manual_fp16=True),
    )
    step = tf.graph_util.extract_sub_graph(
        tf.get_default_graph().as_graph_def(),
        [spec.train_op.name, spec.loss.op.name],
    )
    lines = OPERATIONS.read_text().splitlines()
    known = {line for line in lines if not line.startswith("#")}
    types = {node.op for node in step.node if not graph.is_own(node)}
    if npu_environment._ADAPTER == "npu_device":
        known.add("IsFinite")  # of the norms of the gradients
    assert sorted(types - known - FOLDED) == []


# Dropout.


def test_stateless_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = tf.ones([64, 2, 1024])
    seeds = ([5, 7], [5, 7], [5, 8], [6, 7])
    drops = [npu_environment.stateless_dropout(x, 0.1, s) for s in seeds]
    with tf.Session() as session:
        first, again, step, place = session.run(drops)
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(first)) == {0, np.float32(1 / 0.9)}
    for values in (first, step, place):
        # Six standard deviations, of all, of a row and of a column.
        assert np.mean(values == 0) == pytest.approx(0.1, abs=0.005)
        for axis, near in ((2, 0.06), (0, 0.23)):
            assert np.abs(np.mean(values == 0, axis) - 0.1).max() < near
    # Dropped in both: 0.01 if they are independent.
    for values in (step, place, np.roll(first, 1, 2), np.roll(first, 1, 0)):
        both = np.mean((first == 0) & (values == 0))
        assert both == pytest.approx(0.01, abs=0.002)


class Masks:
    """Trains and keeps the masks of all dropouts, {step: [mask]}."""

    def __init__(self, monkeypatch, folder):
        self._monkeypatch, self._folder = monkeypatch, folder

    def __call__(self, steps, save_after=None, resume=None, **step):
        drops = []
        original = npu_environment.Npu._dropout

        def dropout(device, x, rate, seed):
            drops.append(original(device, x, rate, seed))
            return drops[-1]

        masks = {}
        with self._monkeypatch.context() as patch, tf.Graph().as_default():
            patch.setattr(npu_environment.Npu, "_dropout", dropout)
            spec = npu_graph.training_step(self._folder, **step)
            saver = tf.train.Saver()
            config = tf.ConfigProto()
            # Optimizing the graph takes longer than all steps.
            rewriter = config.graph_options.rewrite_options
            rewriter.disable_meta_optimizer = True
            with tf.Session(config=config) as session:
                session.run(tf.global_variables_initializer())
                if resume:
                    saver.restore(session, resume)
                for step in steps:
                    values, _ = session.run([drops, spec.train_op])
                    masks[step] = [value != 0 for value in values]
                    if step == save_after:
                        saver.save(
                            session,
                            str(self._folder / "out" / "model.ckpt"),
                            global_step=step,
                        )
        return masks


def differ(first, second):
    return all((a != b).any() for a, b in zip(first, second))


@pytest.mark.parametrize("native", [True, False])
def test_masks_differ_by_rank_place_and_step_and_do_not_start_over(
    monkeypatch, tmp_path, native
):
    npu_graph.use_stub(monkeypatch, "M")
    options = dict(npu_bert_npu_dropout=native)
    (tmp_path / "out").mkdir()
    masks = Masks(monkeypatch, tmp_path)
    first = masks((1, 2, 3, 4), save_after=2, options=options)
    assert len(first[1]) == 7  # embeddings, and three in each layer
    assert differ(masks((1,), rank=3, options=options)[1], first[1])
    assert differ(first[1], first[2])
    hidden = [m for m in first[1] if m.shape == first[1][0].shape]
    assert len(hidden) == 3
    assert differ(hidden, hidden[1:])
    resumed = masks(
        (3, 4), resume=str(tmp_path / "out" / "model.ckpt-2"), options=options
    )
    for step in (3, 4):
        assert differ(resumed[step], first[step - 2])
        if not native:  # the NPU's own keeps a state of its own
            for after, unbroken in zip(resumed[step], first[step]):
                np.testing.assert_array_equal(after, unbroken)


def test_recomputed_layer_drops_the_same(monkeypatch, tmp_path):
    """The NPU's own dropout would draw another mask."""
    npu_graph.use_stub(monkeypatch, "M")
    (masks,) = Masks(monkeypatch, tmp_path)(
        (1,), recompute_layers=True
    ).values()
    assert len(masks) == 13  # each layer's twice
    for first in masks[1:7]:
        assert any(
            first.shape == again.shape and (first == again).all()
            for again in masks[7:]
        )


# Overflows on TensorFlow 2.6, whose adapter has no loss scale.


def test_flag_of_the_device_skips_a_step(monkeypatch):
    npu_graph.use_stub(monkeypatch, "M")
    status = importlib.import_module("npu_stub.float_status").STATUS
    status.plant("2")
    weight = tf.get_variable("weight", initializer=1.0)
    micro = optimization.MicroBatches(
        optimization.AdamW(0.1), lambda index: (weight, {}), 1
    )
    chain = npu_environment._Flagged(optimization.LossScaled(micro), list)
    step = tf.train.get_or_create_global_step()
    update = chain.apply_gradients(
        chain.compute_gradients(tf.constant(1.0)), step
    )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        seen = [session.run([update, chain.finite])[1] for _ in range(3)]
        assert session.run(step) == 2
    assert [list(finite) for finite in seen] == [
        [True, True],
        [True, False],
        [True, True],
    ]


# Flags.


@pytest.mark.parametrize("release", ["D", "M"])
@pytest.mark.parametrize(
    "flag, arguments",
    [
        ("deterministic", {"deterministic": 1}),
        ("use_bf16", {"precision_mode": "allow_mix_precision_bf16"}),
    ],
)
def test_option_of_cann_7_reaches_an_adapter_that_has_it(
    monkeypatch, release, flag, arguments
):
    npu_graph.use_stub(monkeypatch, release)
    options = DeviceConfig(**{flag: True})
    if release == "D":
        with pytest.raises(errors.UserError, match=f"--{flag}.*CANN 7"):
            npu_environment.create(options, {})
        return
    device = npu_environment.create(options, {})
    assert device._optional_arguments(None) == arguments
    # The compiler chooses the operators: the graph is float32.
    kernels = device.kernels
    assert kernels.compute_dtype == kernels.head_dtype == tf.float32
