# SPDX-License-Identifier: Apache-2.0
"""Which version is imitated, and a record of the calls that came in."""

import functools
import inspect
import json
import os

VERSIONS = ("D", "17", "M")
VERSION = os.environ.get("NPU_STUB_VERSION", "")
STRICT = os.environ.get("NPU_STUB_STRICT", "1") != "0"

if VERSION and VERSION not in VERSIONS:
    raise ValueError(
        f"NPU_STUB_VERSION is {VERSION!r}; expected one of "
        f"{', '.join(VERSIONS)}"
    )

CALLS = []  # (name, {argument: value}) of every call so far


def since_17():
    """Whether names that arrived with r1.7.0 exist."""
    return VERSION in ("17", "M")


def record(name, arguments):
    """Keeps a call in CALLS and in the file that NPU_STUB_RECORD names."""
    CALLS.append((name, dict(arguments)))
    path = os.environ.get("NPU_STUB_RECORD")
    if path:
        line = json.dumps([name, dict(arguments)], default=str)
        with open(path, "a") as file:
            file.write(line + "\n")


def api(only_in=None):
    """Decorator: holds a function to its signature and records its calls.

    Args:
      only_in: {version: names of arguments that this version has besides
        those of the signature}; any other version answers them with
        TypeError.
    """

    def decorate(function):
        signature = inspect.signature(function)
        extra_names = (only_in or {}).get(VERSION, ())

        @functools.wraps(function)
        def call(*args, **kwargs):
            extra = {
                name: kwargs.pop(name) for name in extra_names if name in kwargs
            }
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__qualname__}: {error}")
            arguments = dict(bound.arguments, **extra)
            arguments.pop("self", None)
            arguments.pop("cls", None)
            record(function.__qualname__, arguments)
            return function(*args, **kwargs)

        call.extra_names = tuple(extra_names)
        return call

    return decorate
