#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the picture of docs/design.md from the imports of the code.

    python scripts/design_picture.py --output=docs/design.png

A box is a folder, or modules at the top with one purpose; it imports from the
boxes below that its lines lead to, and from all that those import.
"""

import ast
import pathlib
import sys
import textwrap
import typing

_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from scripts import pictures, script_parser

# Modules at the top that are neither commands nor drawn alone.
_GROUPS = {
    "configuration": "text and config",
    "tokenization": "text and config",
    "kernels": "model",
    "modeling": "model",
    "optimization": "model",
    "device": "devices",
    "environment": "devices",
    "cpu_environment": "devices",
    "gpu_environment": "devices",
    "npu_environment": "devices",
}
# Where a box is between left and right; the others are at _CENTRE.
_COLUMNS = {
    "question_answering/": 0.13,
    "squad.py": 0.13,
    "model": 0.45,
    "devices": 0.45,
    "pretraining_data/": 0.85,
    "weights/": 0.85,
}
_CENTRE = 0.68


def _box(path: pathlib.Path) -> str:
    if path.parent != _ROOT:
        return f"{path.parent.name}/"
    if "__main__" in path.read_text("utf-8"):
        return "commands"
    return _GROUPS.get(path.stem, path.name)


def read_imports() -> typing.Dict[str, typing.Set[str]]:
    """{box: the boxes that its modules import}."""
    paths = [
        path
        for pattern in ("*.py", "*/*.py")
        for path in _ROOT.glob(pattern)
        if path.parent.name not in ("tests", "demo")
    ]
    boxes = {
        (path.parent.name if path.parent != _ROOT else path.stem): _box(path)
        for path in paths
    }
    needs = {box: set() for box in boxes.values()}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [getattr(node, "module", None) or ""]
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names if isinstance(node, ast.stmt) else ():
                box = boxes.get(name.split(".")[0])
                if box and box != _box(path):
                    needs[_box(path)].add(box)
    return needs


def rank(needs: typing.Dict[str, typing.Set[str]]) -> typing.Dict[str, int]:
    """{box: its row}; row 0 imports nothing, others lie above their imports."""
    rows = {}
    while len(rows) < len(needs):
        rows.update(
            {
                box: max((rows[name] for name in names), default=-1) + 1
                for box, names in needs.items()
                if box not in rows and names <= set(rows)
            }
        )
    return rows


def direct(
    needs: typing.Dict[str, typing.Set[str]],
) -> typing.Dict[str, typing.Set[str]]:
    """The imports that do not follow from others."""

    def reached(box):
        return needs[box].union(*(reached(name) for name in needs[box]))

    return {
        box: names - set().union(*(reached(name) for name in names))
        for box, names in needs.items()
    }


def _label(box: str) -> str:
    """The name of a box, and its modules or its package's docstring."""
    paths = sorted(path for path in _ROOT.glob("*.py") if _box(path) == box)
    text = ", ".join(path.stem for path in paths if path.name != box)
    if not paths:
        package = ast.parse((_ROOT / box / "__init__.py").read_text("utf-8"))
        text = ast.get_docstring(package) or ""
    return "\n".join([box, *textwrap.wrap(text, 36)])


def draw(pyplot, needs: typing.Dict[str, typing.Set[str]]) -> typing.Any:
    """The figure."""
    rows = rank(needs)
    places = {box: (_COLUMNS.get(box, _CENTRE), rows[box]) for box in rows}
    figure, axes = pyplot.subplots(figsize=(8.5, 9))
    axes.set(xlim=(0, 1), ylim=(-0.5, max(rows.values()) + 0.5))
    axes.axis("off")
    for box, names in direct(needs).items():
        for name in names:
            axes.plot(*zip(places[box], places[name]), color="0.6", zorder=1)
    for box, place in places.items():
        axes.text(
            *place,
            _label(box),
            ha="center",
            va="center",
            fontsize=8,
            bbox=dict(boxstyle="round", facecolor="#e8f1f8", edgecolor="0.4"),
        )
    figure.tight_layout()
    return figure


def main(arguments) -> None:
    pyplot = pictures.load_pyplot("design_picture.py")
    pictures.save(draw(pyplot, read_imports()), arguments.output, dpi=80)
    print(arguments.output)


if __name__ == "__main__":
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, help="PNG")
    parser.run(main)
