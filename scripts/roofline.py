#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Predicts the time of a pre-training step on cards that are not here.

    python scripts/roofline.py --manual_fp16 --batch_size=64

Builds the graph that a GPU gets, adds up the floating-point operations of its
matrix products and the bytes that all other operations read and write, and
divides by a share of a card's peaks. Nothing is computed: the figures are
estimates. With XLA, operations that it merges count as one.

Source: Williams et al. 2009, "Roofline".
"""

import argparse
import collections
import os
import sys
import typing

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [REPOSITORY]

import common.startup

import tensorflow.compat.v1 as tf

import environment
import gpu_environment
from device import Processes
from scripts import benchmark_stages, script_parser
from training import logs
from training.flops import CARDS, Card

# What products and memory reach of their peaks in practice.
PRODUCT_SHARE = 0.55
MEMORY_SHARE = 0.8
# Operations with less than this cost a launch, not bandwidth.
SMALL_BYTES = 1 << 16

PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2")
# No kernel that touches the data.
FREE = {
    "Bitcast",
    "Const",
    "ControlTrigger",
    "ExpandDims",
    "Identity",
    "IdentityN",
    "Merge",
    "NoOp",
    "Placeholder",
    "PreventGradient",
    "RefMerge",
    "RefSwitch",
    "Reshape",
    "Shape",
    "ShapeN",
    "Squeeze",
    "StopGradient",
    "Switch",
    "VariableV2",
}
# Reads as much as it writes, whatever the size of its inputs.
SPARSE = {"GatherV2", "Gather", "Slice", "StridedSlice"}
# {operation: passes over the variable}: reads and writes in place.
IN_PLACE = {"ApplyAdam": 7, "ApplyGradientDescent": 3}
REDUCTIONS = {
    "BiasAddGrad",
    "L2Loss",
    "Max",
    "Mean",
    "Softmax",
    "SoftmaxCrossEntropyWithLogits",
    "SparseSoftmaxCrossEntropyWithLogits",
    "Sum",
}
# XLA merges none of these with others; it merges all that is not named.
ALONE = {
    "ApplyAdam",
    "ApplyGradientDescent",
    "FusedBatchNormGradV3",
    "FusedBatchNormV3",
    "GatherV2",
    "TensorScatterAdd",
    "UnsortedSegmentSum",
}


class Work(typing.NamedTuple):
    """What a step does.

    Attributes:
      half_flops, single_flops: of the products, by precision.
      traffic: {type of operation: bytes}, products left out.
      merged: bytes where XLA merges operations.
      large, small: numbers of operations.
    """

    half_flops: float
    single_flops: float
    traffic: typing.Dict[str, float]
    merged: float
    large: int
    small: int

    @property
    def bytes(self) -> float:
        return sum(self.traffic.values())

    def seconds(self, card: Card, with_xla: bool) -> float:
        """The predicted time of a step."""
        products = self.half_flops / card.half + self.single_flops / card.single
        moved = self.merged if with_xla else self.bytes
        return (
            products / PRODUCT_SHARE * 1e-12
            + moved / card.bandwidth / MEMORY_SHARE * 1e-9
        )


def _size(tensor):
    """Bytes of a tensor; 0 where the shape is not known."""
    count = tensor.shape.num_elements()
    return (count or 0) * tensor.dtype.base_dtype.size


def _bytes(op):
    """Bytes that an operation reads and writes."""
    if op.type in FREE:
        return 0
    if op.type in IN_PLACE:
        return IN_PLACE[op.type] * _size(op.inputs[0])
    written = sum(map(_size, op.outputs))
    if op.type in SPARSE:
        return 2 * written
    return written + sum(map(_size, set(op.inputs)))


def _flops(op):
    """Two for each multiplication of a product."""
    left = op.inputs[0]
    key = "transpose_a" if op.type == "MatMul" else "adj_x"
    inner = left.shape.as_list()[-2 if op.get_attr(key) else -1]
    return 2 * op.outputs[0].shape.num_elements() * inner


def reachable(fetches: typing.Iterable[tf.Operation]) -> typing.List:
    """The operations that must run for some others, in the graph's order."""
    waiting, seen = list(fetches), set()
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting.extend(tensor.op for tensor in op.inputs)
            waiting.extend(op.control_inputs)
    graph = next(iter(seen)).graph
    return [op for op in graph.get_operations() if op in seen]


def _stored(tensor):
    """The tensor whose memory this one is."""
    while tensor.op.type in FREE and tensor.op.inputs:
        tensor = tensor.op.inputs[0]
    return tensor


def _is_alone(op):
    return op.type in ALONE or op.type in PRODUCTS


def _groups(inputs):
    """{operation: group}, those that XLA computes in one kernel.

    An elementwise operation is merged with those that it reads, but not with
    a reduction, whose readers need all of it.

    Args:
      inputs: {operation: tensors}.
    """
    parents, depth = {}, {}

    def root(op):
        while parents[op] is not op:
            op = parents[op]
        return op

    for op, tensors in inputs.items():
        parents[op], depth[op] = op, 0
        sources = [t.op for t in tensors if t.op in depth]
        for source in sources:
            ends = source.type in REDUCTIONS or _is_alone(source)
            depth[op] = max(depth[op], depth[source] + (ends or _is_alone(op)))
        for source in sources:
            ends = source.type in REDUCTIONS or _is_alone(source)
            if depth[source] == depth[op] and not ends:
                parents[root(op)] = root(source)
    return {op: root(op) for op in inputs}


def _merged_bytes(inputs):
    """Bytes between the groups: each reads and writes a tensor once."""
    groups = _groups(inputs)
    readers = collections.defaultdict(set)
    for op, tensors in inputs.items():
        for tensor in tensors:
            readers[tensor].add(op)
    total = sum(_bytes(op) for op in inputs if op.type in ALONE)
    for tensor, ops in readers.items():
        outside = {op for op in ops if groups[op] is not groups.get(tensor.op)}
        reads = {groups[op] for op in outside if not _is_alone(op)}
        is_written = (
            outside and tensor.op in groups and not _is_alone(tensor.op)
        )
        total += _size(tensor) * (len(reads) + bool(is_written))
    return total


def count(spec: tf.estimator.EstimatorSpec) -> Work:
    """The work of a training step on a GPU."""
    ops = reachable([spec.train_op, spec.loss.op])
    flops, traffic = collections.Counter(), collections.Counter()
    large = small = 0
    for op in ops:
        if op.type in PRODUCTS:
            flops[op.inputs[0].dtype.base_dtype] += _flops(op)
            large += 1
            continue
        moved = _bytes(op)
        large += moved >= SMALL_BYTES
        small += 0 < moved < SMALL_BYTES
        traffic[op.type] += moved
    inputs = {
        op: {_stored(tensor) for tensor in op.inputs}
        for op in ops
        if op.type not in FREE
    }
    return Work(
        flops[tf.float16],
        flops[tf.float32],
        dict(traffic),
        _merged_bytes(inputs),
        large,
        small,
    )


def work(
    settings: argparse.Namespace, options: environment.DeviceConfig
) -> Work:
    """The work of a pre-training step as a GPU gets it.

    Args:
      settings: num_layers, hidden_size, vocab_size, batch_size,
        sequence_length, predictions.
      options: DeviceConfig.
    """
    device = gpu_environment.Gpu(options, Processes())
    device.fuses_norm = True  # also in a TensorFlow for CPUs
    with tf.Graph().as_default():
        return count(benchmark_stages.training_spec(settings, device))


def report(settings: argparse.Namespace, step: Work) -> typing.Iterator[str]:
    """Lines: products, bytes by type of operation, time on each card."""
    yield (
        f"products: {step.half_flops / 1e12:.2f} TFLOP in fp16, "
        f"{step.single_flops / 1e12:.2f} in float32; other operations: "
        f"{step.bytes / 1e9:.0f} GB, merged by XLA {step.merged / 1e9:.0f} GB; "
        f"{step.large} large and {step.small} small operations"
    )
    for name, moved in collections.Counter(step.traffic).most_common(12):
        yield f"  {name:36} {moved / 1e9:7.1f} GB"
    for name, card in CARDS.items():
        rates = [
            settings.batch_size / step.seconds(card, with_xla)
            for with_xla in (False, True)
        ]
        yield (
            f"{name}: {rates[0]:.0f} sequences/s, {rates[1]:.0f} with XLA "
            "(estimates)"
        )


def main(settings: argparse.Namespace) -> None:
    logs.set_up_warnings()
    options = environment.DeviceConfig(
        manual_fp16=settings.manual_fp16, use_fp16_cls=settings.use_fp16_cls
    )
    for line in report(settings, work(settings, options)):
        print(line)


def parse() -> script_parser.ScriptParser:
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    for name, value in (
        ("--num_layers", 24),
        ("--hidden_size", 1024),
        ("--vocab_size", 50265),
        ("--batch_size", 64),
        ("--sequence_length", 128),
        ("--predictions", 20),
    ):
        parser.add_argument(
            name, type=int, default=value, help=f"default {value}"
        )
    for name in ("--manual_fp16", "--use_fp16_cls"):
        parser.add_argument(
            name, action="store_true", help="as in run_pretraining.py"
        )
    return parser


if __name__ == "__main__":
    environment.create(environment.DeviceConfig(accelerator="cpu"))
    parse().run(main)
