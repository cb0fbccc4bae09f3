# SPDX-License-Identifier: Apache-2.0
"""The masked-LM loss, by hand."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import kernels
import modeling
import run_pretraining

CONFIG = configuration.RobertaConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    initializer_range=0.5,
)
IDS = np.array([[0, 5, 39, 2, 2, 39, 8, 2], [0, 9, 39, 2, 10, 2, 1, 1]])
FEATURES = {
    "input_ids": IDS,
    "input_mask": (IDS != 1).astype(int),
    "masked_lm_positions": [[2, 5], [2, 0]],
    "masked_lm_ids": [[11, 12], [13, 0]],
    "masked_lm_weights": [[1.0, 1.0], [1.0, 0.0]],
}


def tensors():
    return {
        name: tf.constant(
            value, tf.float32 if name.endswith("weights") else tf.int32
        )
        for name, value in FEATURES.items()
    }


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_sums_are_over_weighted_positions_alone():
    tf.set_random_seed(3)
    features = tensors()
    sums, values, weights = run_pretraining.masked_lm_sums(
        CONFIG, features, kernels.Kernels(), is_training=False
    )
    with tf.variable_scope("", reuse=True):
        model = modeling.RobertaModel(CONFIG, False, features["input_ids"])
        logits = modeling.masked_lm_logits(
            CONFIG, model.get_rows(), model.get_embedding_table()
        )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        sums, values, weights, logits = session.run(
            [sums, values, weights, tf.reshape(logits, [2, 8, 40])]
        )
    scores = log_softmax(logits)
    losses = [
        -scores[0, 2, 11],
        -scores[0, 5, 12],
        -scores[1, 2, 13],
        -scores[1, 0, 0],
    ]
    np.testing.assert_allclose(values["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(weights, [1, 1, 1, 0])
    assert sums["loss"] == pytest.approx(sum(losses[:3]), rel=1e-5)


def test_accuracy_counts_labels_that_score_highest():
    tf.set_random_seed(3)
    features = tensors()
    model = modeling.RobertaModel(CONFIG, False, features["input_ids"])
    logits = modeling.masked_lm_logits(
        CONFIG, model.get_rows(), model.get_embedding_table()
    )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        best = session.run(tf.reshape(logits, [2, 8, 40])).argmax(-1)
    # Two labels of three are what the model says.
    features["masked_lm_ids"] = tf.constant(
        [[best[0, 2], (best[0, 5] + 1) % 40], [best[1, 2], best[1, 0]]],
        tf.int32,
    )
    with tf.variable_scope("", reuse=True):
        sums, _, _ = run_pretraining.masked_lm_sums(
            CONFIG, features, kernels.Kernels(), is_training=False
        )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(sums["masked_lm_accuracy"]) == 2
