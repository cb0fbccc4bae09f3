# SPDX-License-Identifier: Apache-2.0
"""N steps of training in one session run, as the device loops over them."""

import tensorflow.compat.v1 as tf

ITERATION_OP = "IterationOp"
_VARIABLES = ("iterations_per_loop", "loop_cond", "zero", "one")


def create_variables():
    """The loop's int64 local variables, in the scope npu_runconfig."""
    with tf.variable_scope("npu_runconfig", reuse=tf.AUTO_REUSE):
        return [
            tf.get_variable(
                name,
                shape=[],
                dtype=tf.int64,
                trainable=False,
                initializer=tf.zeros_initializer(),
                use_resource=True,
                collections=[tf.GraphKeys.LOCAL_VARIABLES],
            )
            for name in _VARIABLES
        ]


def arm(session, iterations):
    """Makes each run of the iteration op in this session that many steps.

    Other fetches have the values of the last step.

    Args:
      session: a tf.Session.
      iterations: at least 1.
    """
    values = (iterations - 1, 0, 0, 1)
    for variable, value in zip(create_variables(), values):
        session.run(variable.initializer)
        variable.load(value, session)
    step = session.graph.get_operation_by_name(ITERATION_OP)
    # The class's own, so that arming twice does not multiply.
    run_once = type(session).run

    def run(fetches, feed_dict=None, options=None, run_metadata=None):
        if _contains(fetches, step):
            for _ in range(iterations - 1):
                run_once(session, step, feed_dict)
        return run_once(session, fetches, feed_dict, options, run_metadata)

    session.run = run


def _contains(fetches, operation):
    """Whether a structure of fetches has the operation in it."""
    if isinstance(fetches, dict):
        fetches = list(fetches.values())
    if isinstance(fetches, (list, tuple)):
        return any(_contains(fetch, operation) for fetch in fetches)
    return fetches is operation or fetches == operation.name
