# SPDX-License-Identifier: Apache-2.0
"""An optimizer that scales the loss and skips steps that overflowed."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import float_status, scaling, settings


class NPULossScaleOptimizer(tf.train.Optimizer):
    """Goes around NPUDistributedOptimizer around the optimizer itself."""

    @settings.api()
    def __init__(self, opt, loss_scale_manager, is_distributed=False):
        """
        Args:
          opt: tf.train.Optimizer.
          loss_scale_manager: of npu_loss_scale_manager.
          is_distributed: True if and only if RANK_SIZE > 1.
        """
        if not isinstance(opt, tf.train.Optimizer):
            raise ValueError(f"opt is {opt!r}; expected a tf.train.Optimizer")
        super().__init__(False, "NPULossScaleOptimizermodule")
        self._opt = opt
        self._manager = loss_scale_manager
        self._is_distributed = is_distributed

    @settings.api()
    def compute_gradients(
        self,
        loss,
        var_list=None,
        gate_gradients=tf.train.Optimizer.GATE_OP,
        aggregation_method=None,
        colocate_gradients_with_ops=False,
        grad_loss=None,
    ):
        """Unscaled gradients of the scaled loss; none is IndexedSlices."""
        scale = self._manager.get_loss_scale()
        pairs = self._opt.compute_gradients(
            scaling.scaled(loss, scale),
            var_list=var_list,
            gate_gradients=gate_gradients,
            aggregation_method=aggregation_method,
            colocate_gradients_with_ops=colocate_gradients_with_ops,
            grad_loss=grad_loss,
        )
        gradients = float_status.saturate([g for g, _ in pairs])
        return [
            (scaling.unscaled(g, scale), v)
            for g, (_, v) in zip(gradients, pairs)
        ]

    @settings.api()
    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """An update, unless the overflow flag is up; clears the flag."""
        return scaling.apply_if_finite(
            self._opt,
            self._manager,
            self._is_distributed,
            grads_and_vars,
            global_step,
            name,
        )
