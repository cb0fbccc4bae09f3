# SPDX-License-Identifier: Apache-2.0
"""Builds the adapter's modules from its recorded signatures.

Arguments are checked against the signature and reach the behaviour by name,
with defaults filled in. Without a behaviour a class stores its arguments and a
function raises NotImplementedError.
"""

import ast
import functools
import importlib
import inspect
import json
import os
import pathlib
import sys
import types

import tensorflow.compat.v1 as tf

_API = (
    pathlib.Path(__file__).resolve().parents[2] / "data" / "npu_bridge_api.json"
)
# The adapter's modules with behaviour, and the module here that holds it.
_BEHAVIOUR = {
    "npu_config": "config",
    "npu_estimator": "estimator",
    "npu_hook": "hooks",
    "npu_loss_scale_manager": "loss_scale",
    "npu_loss_scale_optimizer": "optimizers",
    "npu_optimizer": "optimizers",
    "helper": "float_status",
    "npu_plugin": "float_status",
    "npu_aicore_ops": "ops",
    "npu_ops": "ops",
    "npu_unary_ops": "ops",
    "hccl_ops": "hccl_ops",
    "api": "hccl_ops",
}


def symbols():
    """{dotted name: [[argument] or [argument, default]]} of the adapter.

    NPU_STUB_RELEASE is D (default), 17 or M; see "versions" in the file.
    """
    release = os.environ.get("NPU_STUB_RELEASE", "D")
    return {
        symbol["id"]: symbol["args"]
        # Those that not every release has are known by name alone.
        + [
            [name, "None"]
            for name in symbol.get("args_only_in", {}).get(release, ())
            if release != "D"
        ]
        for symbol in json.loads(_API.read_text(encoding="utf-8"))["symbols"]
        if release in symbol["present_in"]
    }


def split(name):
    """(module, [owner,] object) of a symbol's dotted name."""
    parts = name.split(".")
    depth = 4 if parts[1:3] == ["estimator", "npu"] else 3
    return [".".join(parts[:depth])] + parts[depth:]


def install(package, prefix):
    """Adds the modules of a package of the adapter to sys.modules.

    Args:
      package: "npu_bridge" or "hccl", as in the recorded names.
      prefix: the name to import it by.
    """
    for name, arguments in symbols().items():
        if name.split(".")[0] == package:
            module, *owner, item = split(name)
            place = _module(prefix + module[len(package) :])
            if owner:
                place = _owner(place, owner[0])
            _add(place, item, arguments, _behaviour(module, item))


def _module(name):
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
        parent, _, last = name.rpartition(".")
        setattr(_module(parent), last, sys.modules[name])
    return sys.modules[name]


def _owner(module, name):
    if not hasattr(module, name):
        is_class = name[0].isupper()
        setattr(
            module,
            name,
            type(name, (), {}) if is_class else types.SimpleNamespace(),
        )
    return getattr(module, name)


def _behaviour(module, name):
    own = _BEHAVIOUR.get(module.rpartition(".")[2])
    if own is None:
        return None
    return getattr(importlib.import_module(f"npu_stub.{own}"), name, None)


def _add(place, name, arguments, behaviour):
    """Adds one class, method or function to a module, class or namespace."""
    if inspect.isclass(place):
        method = getattr(place, name, None) or _missing(name)
        value = checked(method, [["self"], *arguments], name)
    elif name[0].isupper():
        base = behaviour or type(name, (), {"__init__": _store})
        # A subclass: the behaviour may also serve a second prefix.
        value = type(name, (base,), {"__module__": place.__name__})
        value.__init__ = checked(base.__init__, [["self"], *arguments], name)
    else:
        value = checked(behaviour or _missing(name), arguments, name)
    setattr(place, name, value)


def _store(self, **arguments):
    vars(self).update(arguments)


def _missing(name):
    def missing(**arguments):
        raise NotImplementedError(f"the stub has no {name}")

    return missing


def checked(function, arguments, name):
    """The function, called by name after a check against its signature."""
    signature = inspect.Signature(
        [
            inspect.Parameter(
                argument[0],
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=_default(*argument[1:]),
            )
            for argument in arguments
        ]
    )

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        bound.apply_defaults()
        return function(**bound.arguments)

    call.__signature__ = signature
    return call


def _default(text=None):
    if text is None:
        return inspect.Parameter.empty
    if text == "optimizer.Optimizer.GATE_OP":
        return tf.train.Optimizer.GATE_OP
    return ast.literal_eval(text)
