# SPDX-License-Identifier: Apache-2.0
"""A stub of Ascend's TF adapter that computes on the CPU.

`loader` builds modules, classes and signatures from npu_bridge_api.json; the
other modules hold the behaviour that the suite uses. The signatures are those
that the adapter's three public versions share. Fp16 lowering, operator support
beyond `strict`, partition and timing need a device.

NPU_STUB_OVERFLOW_STEPS lists the updates of this process, from 1, that raise
the overflow flag: "3,7", "2-4", "5-".
"""
