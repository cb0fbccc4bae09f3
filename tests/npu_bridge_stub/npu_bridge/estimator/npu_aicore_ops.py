# SPDX-License-Identifier: Apache-2.0
"""The handle that has fast_gelu; since r1.7.0 also functions."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import settings
from npu_bridge.estimator import npu_ops
from npu_bridge.helper import helper

npu_aicore_ops = helper.get_gen_ops()

if settings.since_17():

    @settings.api()
    def dropout_v3(x, keep_prob, noise_shape=None, seed=None, name=None):
        """npu_ops.dropout with another layout of the mask."""
        return npu_ops.dropout(x, keep_prob, noise_shape, seed, name)

    @settings.api()
    def fast_gelu_v2(x, name=None):
        """The native fast_gelu_v2."""
        return npu_aicore_ops.fast_gelu_v2(x, name)

    @settings.api()
    def layer_norm(
        x,
        gamma,
        beta,
        begin_norm_axis=0,
        begin_params_axis=0,
        epsilon=0.0000001,
        name=None,
    ):
        """(normalised x, mean, variance) over axes from begin_norm_axis on."""
        rank = x.shape.rank
        first = begin_norm_axis % rank
        if begin_params_axis % rank + gamma.shape.rank != rank:
            raise ValueError(
                f"gamma has rank {gamma.shape.rank}, begin_params_axis is "
                f"{begin_params_axis}"
            )
        mean, variance = tf.nn.moments(
            x, list(range(first, rank)), keep_dims=True
        )
        y = tf.nn.batch_normalization(
            x, mean, variance, beta, gamma, epsilon, name=name
        )
        return y, mean, variance
