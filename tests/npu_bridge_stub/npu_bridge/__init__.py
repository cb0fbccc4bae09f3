# SPDX-License-Identifier: Apache-2.0
"""The stub under the adapter's name."""

from npu_stub import loader

loader.install("npu_bridge", __name__)
