# SPDX-License-Identifier: Apache-2.0
"""The training loop and what feeds it, whatever the device."""
