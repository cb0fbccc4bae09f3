# SPDX-License-Identifier: Apache-2.0
"""The stub of the collective library."""

from npu_stub import loader

loader.install("hccl", __name__)
