# SPDX-License-Identifier: Apache-2.0
"""Trained models: loading, prediction and export."""
