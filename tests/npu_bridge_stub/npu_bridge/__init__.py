# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Ascend's TF adapter that computes on the CPU.

It has the module paths, signatures, defaults and errors that the adapter's
three public versions share (development, r1.7.0, master), so that what runs
here is wired as it must be there. Everything of `_standin` is this package's
own. What it cannot show: lowering to fp16, operator support beyond the
refusals of `_standin.strict`, fusion, partition, timing.

Environment variables of its own:
  NPU_STUB_VERSION         D, 17 or M: that version's arguments, names and
                           errors too; unset: what all three have in common
  NPU_STUB_STRICT          0 turns the refusals of `_standin.strict` off
  NPU_STUB_OVERFLOW_STEPS  "3,7", "2-4", "5-": updates of this process, from
                           1, in which the overflow flag goes up by itself
  NPU_STUB_RECORD          file that gets a JSON line for each call of the API
"""

from npu_bridge.estimator.npu import npu_estimator
from npu_bridge.hccl import hccl_ops
from npu_bridge.helper import helper
from npu_bridge.helper.helper import npu_bridge_handle
from npu_bridge.helper.helper import version as __version__
