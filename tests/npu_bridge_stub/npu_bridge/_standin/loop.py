# SPDX-License-Identifier: Apache-2.0
"""N steps of training in one session run, as the device loops over them."""

ITERATION_OP = "IterationOp"
# Operations that run in each step, such as the outfeed's.
EVERY_STEP = "npu_stand_in_every_step"
_VARIABLES = ("iterations_per_loop", "loop_cond", "zero", "one")


def create_variables(create):
    """The loop's variables.

    Args:
      create: function from a name to a local int64 variable.
    """
    return [create(name) for name in _VARIABLES]


def arm(session, iterations, create):
    """Makes each run of the iteration op in this session that many steps.

    Other fetches have the values of the last step.

    Args:
      session: a tf.Session.
      iterations: at least 1.
      create: as in create_variables.
    """
    values = (iterations - 1, 0, 0, 1)
    for variable, value in zip(create_variables(create), values):
        session.run(variable.initializer)
        variable.load(value, session)
    step = session.graph.get_operation_by_name(ITERATION_OP)
    every_step = session.graph.get_collection(EVERY_STEP)
    # The class's own, so that arming twice does not multiply.
    run_once = type(session).run

    def run(fetches, feed_dict=None, options=None, run_metadata=None):
        if _contains(fetches, step):
            for _ in range(iterations - 1):
                run_once(session, [step] + every_step, feed_dict)
        return run_once(session, fetches, feed_dict, options, run_metadata)

    session.run = run


def _contains(fetches, operation):
    """Whether a structure of fetches has the operation in it."""
    if isinstance(fetches, dict):
        fetches = list(fetches.values())
    if isinstance(fetches, (list, tuple)):
        return any(_contains(fetch, operation) for fetch in fetches)
    return fetches is operation or fetches == operation.name
