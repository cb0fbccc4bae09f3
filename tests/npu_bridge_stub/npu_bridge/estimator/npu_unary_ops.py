# SPDX-License-Identifier: Apache-2.0
"""The handle that has gelu."""

from npu_bridge.helper import helper

npu_unary_ops = helper.get_gen_ops()
