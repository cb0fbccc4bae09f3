# SPDX-License-Identifier: Apache-2.0
"""Weights in files: TensorFlow, safetensors, PyTorch and fairseq."""
