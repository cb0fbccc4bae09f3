# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: the log lines and evaluations of a run with evaluations.

A line is {"kind": "train" or "eval", "step": 100, "loss": 1.25, ...}, null
where a number is not finite.
"""

import contextlib
import json
import math
import os
import typing

from common import files
from training import run_config

FILE = "metrics.jsonl"
_Line = typing.Dict[str, typing.Any]


def read(directory: str) -> typing.List[_Line]:
    """The lines; what a kill or a full disk left of others is left out."""
    path = os.path.join(directory, FILE)
    if not os.path.isfile(path):
        return []
    lines = []
    with files.opened(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                lines.append(files.loads(line))
    return list(filter(_is_line, lines))


def _is_line(value):
    return (
        isinstance(value, dict)
        and isinstance(value.get("step"), int)
        and "kind" in value
    )


def append(
    run: run_config.RunConfig,
    kind: str,
    step: int,
    values: typing.Mapping[str, float],
) -> None:
    """Adds a line, if the run has evaluations."""
    if not run.evaluates:
        return
    numbers = {
        name: value if math.isfinite(value) else None
        for name, value in sorted(values.items())
    }
    line = json.dumps(dict(kind=kind, step=step, **numbers))
    with open(os.path.join(run.output_dir, FILE), "a") as stream:
        stream.write(line + "\n")


def cut(directory: str, step: float) -> typing.List[_Line]:
    """Removes the lines after a step, and returns the others."""
    kept = [line for line in read(directory) if line["step"] <= step]
    path = os.path.join(directory, FILE)
    if os.path.isfile(path):
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write_text(path, text)
    return kept
