# SPDX-License-Identifier: Apache-2.0
"""The stub under the name of the adapter for TensorFlow 2.6.

As in Ascend's own, compat.v1 is npu_bridge without its loss scale, and needs
enable_v1().

Source: Ascend/tensorflow, tf_adapter_2.x/compat_v1/upgrade_tf1_compat_tf2.py.
"""

import sys
import types

from npu_stub import float_status, loader

is_inf_nan_enabled = float_status.is_inf_nan_enabled


def _enable_v1():
    prefix = __name__ + ".compat.v1"
    loader.install("npu_bridge", prefix)
    folder = sys.modules[prefix + ".estimator.npu"]
    for name in ("npu_loss_scale_manager", "npu_loss_scale_optimizer"):
        sys.modules.pop(f"{folder.__name__}.{name}", None)
        vars(folder).pop(name, None)


compat = types.SimpleNamespace(enable_v1=_enable_v1)
