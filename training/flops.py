# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a training step, and the peaks of devices.

The model's own products alone, as in MFU (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B): padding, and what --recompute_layers computes
twice, do not count. A weight takes six operations a token: two for its product
in the forward pass, four for those of the two gradients.
"""

import re
import typing

import tensorflow.compat.v1 as tf

import configuration
import device as devices


class Card(typing.NamedTuple):
    """Peaks from the vendor's data sheet.

    Attributes:
      half: fp16 matrix products, in TFLOP/s.
      single: float32 ones (TF32 where the card has it), in TFLOP/s.
      bandwidth: of its memory, in GB/s.
    """

    half: float
    single: float
    bandwidth: float


CARDS = {
    "V100": Card(125.0, 15.7, 900.0),  # SXM2, 16 or 32 GB
    "A100": Card(312.0, 156.0, 1555.0),  # SXM4, 40 GB
    "H100": Card(989.0, 495.0, 3350.0),  # SXM5, 80 GB, dense
    "910": Card(256.0, 256.0, 1200.0),  # Ascend 910A; products in fp16
}


def peak(device: devices.Device) -> typing.Optional[float]:
    """The FLOP/s that a device reaches at most; None where it is unknown.

    Variants of a card for PCIe have other peaks than those in the table.
    """
    options, name = device.options, device.card()
    if options.peak_teraflops:
        return 1e12 * options.peak_teraflops
    if re.search("PCIe|NVL", name, re.IGNORECASE):
        return None
    half = options.half_precision or options.use_bf16
    for key, card in CARDS.items():
        if key in name:
            return 1e12 * (card.half if half else card.single)
    return None


def of_step(
    config: configuration.RobertaConfig,
    input_ids: tf.Tensor,
    predicted: typing.Optional[tf.Tensor] = None,
    lengths: typing.Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """The operations of a step, a float32 scalar.

    Args:
      config: of the model.
      input_ids: int [..., S], the sequences of a step.
      predicted: float32 scalar, the masked tokens of a step: the LM head and
        the last layer, but for its keys and values, compute these alone (see
        modeling.RobertaModel, output_positions). None without an LM head; the
        other heads are too small to count.
      lengths: int [N], tokens of each sequence; None: one sequence in a row.
    """
    width = config.hidden_size
    position = 2 * width**2 + 2 * width * config.intermediate_size
    if lengths is None:
        lengths = tf.reduce_sum(
            tf.cast(tf.not_equal(input_ids, config.pad_token_id), tf.float32),
            -1,
        )
    lengths = tf.cast(lengths, tf.float32)
    tokens = tf.reduce_sum(lengths)
    pairs = tf.reduce_sum(tf.square(lengths))  # of tokens of a sequence
    keys = 6.0 * 2 * width**2 * tokens
    rest = 6.0 * position * tokens + 12.0 * width * pairs
    total = config.num_hidden_layers * (keys + rest)
    if predicted is None:
        return total
    head = 6.0 * width * (width + config.vocab_size) * predicted
    return total - (1.0 - predicted / tokens) * rest + head
