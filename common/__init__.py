# SPDX-License-Identifier: Apache-2.0
"""Errors, flags, files, processes and TFRecords: what every layer uses."""
