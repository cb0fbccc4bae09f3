# SPDX-License-Identifier: Apache-2.0
"""Decoding and scoring of SQuAD answers, without TensorFlow."""
