# SPDX-License-Identifier: Apache-2.0
"""Runs a script and keeps all variables before and after each of its steps.

    python tests/helpers/watched.py FILE.npz STEP:SCALE SCRIPT FLAG ...

FILE.npz gets NAME -> array [1 + steps, ...]. Before step number STEP (from 1)
the loss scale becomes SCALE, where the two are given ("" for none).
"""

import os
import runpy
import sys

import numpy as np
import tensorflow.compat.v1 as tf


def _name(variable):
    return variable.name[: -len(":0")]


class Watch:
    """Replaces three methods of the progress hook."""

    def __init__(self, path, plant, hook_class):
        self._path = path
        self._plant = tuple(float(part) for part in plant.split(":") if part)
        self._seen = []
        self._original = {
            name: getattr(hook_class, name)
            for name in ("after_create_session", "after_run", "end")
        }
        for name in self._original:
            method = getattr(self, name)
            setattr(
                hook_class,
                name,
                lambda *arguments, call=method: call(*arguments),
            )

    def after_create_session(self, hook, session, coord):
        self._original["after_create_session"](hook, session, coord)
        self._look(session)

    def after_run(self, hook, run_context, run_values):
        self._original["after_run"](hook, run_context, run_values)
        self._look(run_context.session)

    def end(self, hook, session):
        self._original["end"](hook, session)
        np.savez(
            self._path,
            **{
                name: np.stack([seen[name] for seen in self._seen])
                for name in self._seen[0]
            },
        )

    def _look(self, session):
        variables = {_name(v): v for v in tf.global_variables()}
        self._seen.append(session.run(variables))
        if self._plant and len(self._seen) == self._plant[0]:
            variables["loss_scale"].load(self._plant[1], session)
            self._seen[-1]["loss_scale"] = np.float32(self._plant[1])


if __name__ == "__main__":
    script = os.path.abspath(sys.argv[3])
    sys.path.insert(0, os.path.dirname(script))
    from training import progress

    Watch(sys.argv[1], sys.argv[2], progress.ProgressHook)
    sys.argv = sys.argv[3:]
    runpy.run_path(script, run_name="__main__")
