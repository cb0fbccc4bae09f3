# SPDX-License-Identifier: Apache-2.0
"""Optimizers that average gradients over ranks."""

import tensorflow.compat.v1 as tf

from npu_bridge._standin import (
    collective,
    float_status,
    ranks,
    scaling,
    settings,
)
from npu_bridge.estimator.npu import npu_common
from npu_bridge.hccl import hccl_ops


@settings.api()
def allreduce(tensor, average=True):
    """The mean (or sum) of a gradient over all ranks."""
    return _reduce([tensor], average)[0]


def _reduce(gradients, average):
    """allreduce of a list; its dense gradients travel together.

    IndexedSlices stay what they are, by two allgathers each.
    """
    size = ranks.size()
    dense = [
        g
        for g in gradients
        if g is not None and not isinstance(g, tf.IndexedSlices)
    ]
    summed = iter(
        collective.build(
            "allreduce", "sum", dense, "HcomAllReduce", are_gradients=True
        )
        if dense
        else []
    )

    def mean(values):
        return values / tf.cast(size, values.dtype) if average else values

    def reduced(gradient):
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            return tf.IndexedSlices(
                mean(hccl_ops.allgather(gradient.values, size)),
                hccl_ops.allgather(gradient.indices, size),
                gradient.dense_shape,
            )
        return mean(next(summed))

    return [reduced(g) for g in gradients]


class NPUDistributedOptimizer(tf.train.Optimizer):
    """Averages gradients over ranks where RANK_SIZE is above 1."""

    @settings.api()
    def __init__(self, optimizer, is_weight_update_sharding=False, name=None):
        super().__init__(
            False, name or "Distributed" + type(optimizer).__name__
        )
        if is_weight_update_sharding:
            raise ValueError(
                "is_weight_update_sharding takes DEVICE_ID for "
                "the rank; leave it off"
            )
        self._optimizer = optimizer

    def compute_gradients(self, *args, **kwargs):
        """The optimizer's gradients, averaged."""
        pairs = self._optimizer.compute_gradients(*args, **kwargs)
        if npu_common.NPUBasics("").size() < 2:
            return pairs
        gradients = float_status.saturate([g for g, _ in pairs])
        return [(g, v) for g, (_, v) in zip(_reduce(gradients, True), pairs)]

    @settings.api()
    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """Passed on."""
        return self._optimizer.apply_gradients(
            grads_and_vars, global_step, name
        )

    def get_slot(self, *args, **kwargs):
        """Passed on."""
        return self._optimizer.get_slot(*args, **kwargs)

    def get_slot_names(self, *args, **kwargs):
        """Passed on."""
        return self._optimizer.get_slot_names(*args, **kwargs)

    def variables(self, *args, **kwargs):
        """Passed on."""
        return self._optimizer.variables(*args, **kwargs)


class NPUOptimizer(tf.train.Optimizer):
    """Averaging and loss scale in one."""

    @settings.api()
    def __init__(
        self,
        opt,
        loss_scale_manager=None,
        is_distributed=False,
        is_loss_scale=False,
        is_tailing_optimization=False,
        name=None,
    ):
        super().__init__(False, name or "NPUOptimizer" + type(opt).__name__)
        if is_loss_scale and loss_scale_manager is None:
            raise ValueError("is_loss_scale needs a loss_scale_manager")
        self._opt = opt
        self._manager = loss_scale_manager
        self._is_distributed = is_distributed
        self._is_loss_scale = is_loss_scale
        self.is_tailing_optimization = is_tailing_optimization

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
        """Averaged, unscaled gradients."""
        scale = self._manager.get_loss_scale() if self._is_loss_scale else None
        pairs = self._opt.compute_gradients(
            loss if scale is None else scaling.scaled(loss, scale),
            var_list=var_list,
            gate_gradients=gate_gradients,
            aggregation_method=aggregation_method,
            colocate_gradients_with_ops=colocate_gradients_with_ops,
            grad_loss=grad_loss,
        )
        gradients = float_status.saturate([g for g, _ in pairs])
        if self._is_distributed:
            gradients = _reduce(gradients, True)
        if scale is not None:
            if any(g is None for g in gradients):
                raise TypeError(
                    "a gradient is None, which NPUOptimizer does "
                    "not take with loss scale"
                )
            gradients = [scaling.unscaled(g, scale) for g in gradients]
        return [(g, v) for g, (_, v) in zip(gradients, pairs)]

    @settings.api()
    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """An update, skipped after an overflow where the loss is scaled."""
        if not self._is_loss_scale:
            return self._opt.apply_gradients(grads_and_vars, global_step, name)
        return scaling.apply_if_finite(
            self._opt,
            self._manager,
            self._is_distributed,
            grads_and_vars,
            global_step,
            name,
        )

    def get_slot(self, *args, **kwargs):
        """Passed on."""
        return self._opt.get_slot(*args, **kwargs)

    def get_slot_names(self, *args, **kwargs):
        """Passed on."""
        return self._opt.get_slot_names(*args, **kwargs)

    def variables(self, *args, **kwargs):
        """Passed on."""
        return self._opt.variables(*args, **kwargs)
