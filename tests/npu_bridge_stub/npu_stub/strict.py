# SPDX-License-Identifier: Apache-2.0
"""Refusals of what a device would refuse, or do badly, later than Python."""

import inspect

import tensorflow.compat.v1 as tf

from npu_stub import float_status, graph

_NO_DTYPES = {
    d.as_datatype_enum: d.name
    for d in (tf.float64, tf.complex64, tf.complex128, tf.variant, tf.string)
}
_NO_OPERATIONS = {
    "IsFinite": "tf.is_finite is not supported",
    "IsInf": "tf.is_inf is not supported",
    "IsNan": "tf.is_nan is not supported",
    "PyFunc": "python functions belong into the input pipeline",
    "PyFuncStateless": "python functions belong into the input pipeline",
    "EagerPyFunc": "python functions belong into the input pipeline",
}
# Operations that may have strings: summaries, printing, assertions.
_STRINGS_MAY = ("Assert", "PrintV2", "StringFormat", "MergeSummary")


class Refused(ValueError):
    """What an NPU would not take."""


def argument_names(function):
    """Names of the arguments of a model function or what wraps one."""
    return tuple(inspect.signature(function).parameters)


def check_steps(steps, max_steps, iterations):
    """Refuses a training that does not end with a whole loop."""
    for name, count in (("steps", steps), ("max_steps", max_steps)):
        if count and count % iterations:
            raise Refused(
                f"{name} is {count}, no multiple of iterations_per_loop "
                f"{iterations}"
            )


def check_model(features, labels, spec, config):
    """Refuses inputs and operations of a model, by name.

    Args:
      features, labels: of the model function.
      spec: the EstimatorSpec that it returned.
      config: NPURunConfig.
    """
    inputs = [
        t
        for t in tf.nest.flatten([features, labels])
        if isinstance(t, tf.Tensor)
    ]
    if any(t.op.type.startswith("Placeholder") for t in inputs):
        return  # an export, which no device runs
    for tensor in inputs:
        _check_tensor(tensor)
    if config.iterations_per_loop > 1 and spec.mode == "train":
        _check_iterator(config.iterations_per_loop)
    operations = _behind(
        tf.nest.flatten(
            [spec.predictions, spec.loss, spec.train_op, spec.eval_metric_ops]
        )
    )
    for operation in operations:
        _check_operation(operation)


def _check_tensor(tensor):
    if not tensor.shape.is_fully_defined():
        raise Refused(
            f"{tensor.name} of the input has shape {tensor.shape}; every "
            "dimension must be known (drop_remainder=True)"
        )
    if tensor.dtype.base_dtype.as_datatype_enum in _NO_DTYPES:
        raise Refused(f"{tensor.name} of the input is {tensor.dtype.name}")


def _check_iterator(iterations):
    types = {o.type for o in tf.get_default_graph().get_operations()}
    if "OneShotIterator" in types:
        raise Refused(
            f"a one-shot iterator with iterations_per_loop {iterations}; "
            "return the dataset from input_fn"
        )
    if "MakeIterator" not in types:
        raise Refused(
            f"no dataset from input_fn with iterations_per_loop {iterations}"
        )


def _is_string_sink(operation):
    return operation.type in _STRINGS_MAY or "Summary" in operation.type


def _behind(fetches):
    """All operations that must run for the fetches, the inputs' excepted."""
    todo = [getattr(f, "op", f) for f in fetches if f is not None]
    found = set()
    while todo:
        operation = todo.pop()
        if operation in found or not isinstance(operation, tf.Operation):
            continue
        found.add(operation)
        if operation.type == "IteratorGetNext":
            continue
        sink = _is_string_sink(operation)
        todo += [
            t.op
            for t in operation.inputs
            if not (sink and t.dtype == tf.string)
        ]
        todo += list(operation.control_inputs)
    return sorted(found, key=lambda o: o.name)


def _check_operation(operation):
    if graph.is_own(operation):
        return
    if operation.type == "IteratorGetNext":
        for tensor in operation.outputs:
            _check_tensor(tensor)
        return
    reason = _NO_OPERATIONS.get(operation.type)
    if operation.type.startswith("Is") and float_status.is_inf_nan_enabled():
        reason = None
    if reason is None and "QueueDequeue" in operation.type:
        reason = "input by queues is not supported"
    if reason:
        raise Refused(
            f"operation {operation.name} ({operation.type}): {reason}"
        )
    attributes = operation.node_def.attr
    dtypes = {t.dtype.base_dtype.as_datatype_enum for t in operation.outputs}
    for value in attributes.values():
        dtypes.update([value.type] + list(value.list.type))
    for name in sorted(_NO_DTYPES[d] for d in dtypes if d in _NO_DTYPES):
        if name != "string" or not _is_string_sink(operation):
            raise Refused(
                f"operation {operation.name} ({operation.type}): {name} is not "
                "supported in a model"
            )
