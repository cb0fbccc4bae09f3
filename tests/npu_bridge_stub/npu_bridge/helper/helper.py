# SPDX-License-Identifier: Apache-2.0
"""The handle of the native operations."""

from npu_bridge._standin import native, settings

npu_bridge_handle = native.HANDLE
version = "stand-in" + (" " + settings.VERSION if settings.VERSION else "")


@settings.api()
def get_gen_ops():
    """The one handle that all modules share."""
    return npu_bridge_handle
