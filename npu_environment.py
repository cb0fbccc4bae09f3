# SPDX-License-Identifier: Apache-2.0
"""Ascend NPUs through npu_bridge."""
import importlib.util

def missing():
    if importlib.util.find_spec("npu_bridge") is None:
        return "--accelerator=npu, but npu_bridge does not import; install Ascend's TF adapter (docs/ascend.md)"
    return ""
