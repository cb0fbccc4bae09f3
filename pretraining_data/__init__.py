# SPDX-License-Identifier: Apache-2.0
"""From text to records of token ids, without TensorFlow."""
