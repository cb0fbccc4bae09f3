# SPDX-License-Identifier: Apache-2.0
"""Scopes that mark operations for the graph compiler."""

import contextlib

from npu_bridge._standin import graph, settings

KEEP_DTYPE = "_keep_dtype"
WITHOUT_COMPILE = "_without_npu_compile"


@settings.api()
@contextlib.contextmanager
def keep_dtype_scope():
    """Operations built in it keep their dtype."""
    with graph.attribute_scope(KEEP_DTYPE):
        yield


@settings.api()
@contextlib.contextmanager
def without_npu_compile_scope():
    """Operations built in it stay on the host; needs mix_compile_mode."""
    with graph.attribute_scope(WITHOUT_COMPILE):
        yield
