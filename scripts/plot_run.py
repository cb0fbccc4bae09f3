#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the curves of one or several runs into one PNG.

    python scripts/plot_run.py output other_output --output=runs.png

A run is a directory with TensorBoard event files: the --output_dir of a run
script, or its --out_log_dir. Loss and learning rate come first, then whatever
else was logged: gradient norm, accuracy, loss scale, sequences a second. What
was evaluated is a ring beside what was trained. Where a run was resumed or
rolled back, what came later counts.
"""

import collections
import math
import os
import pathlib
import sys
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before it is imported
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from common import errors  # noqa: E402
from scripts import (
    pictures,  # noqa: E402
    script_parser,  # noqa: E402
)

# Drawn first, in this order; other scalars follow by name.
FIRST = (
    "loss",
    "learning_rate",
    "accuracy",
    "span_accuracy",
    "masked_lm_accuracy",
    "perplexity",
    "gradient_norm",
    "weight_norm",
    "loss_scale",
    "overflows",
    "examples_per_second",
    "tokens_per_second",
)
# Scalars of evaluations, and what run_pretraining.py calls its loss in one.
EVALUATION, EVALUATED_LOSS = "eval/", "eval/masked_lm_loss"
# Drawn as they are: smoothing would hide where they change.
EXACT = ("learning_rate", "loss_scale", "overflows", "global_step")
LOGARITHMIC = {"perplexity": 10, "gradient_norm": 10, "loss_scale": 2}
_RING = {
    "linestyle": "",
    "marker": "o",
    "markersize": 8,
    "fillstyle": "none",
    "markeredgewidth": 1.6,
}
_LINES = ("-", "--", ":")
_COLUMNS = 2
_MARKED = 30  # curves of up to so many points show them, and are exact


class Curve(typing.NamedTuple):
    """One scalar of one run."""

    steps: np.ndarray  # int64 [n], rising
    values: np.ndarray  # float64 [n]


def read_runs(paths):
    """{name: {tag: Curve}} of run directories, in their order."""
    return {
        name: read_run(path) for name, path in zip(short_names(paths), paths)
    }


def short_names(paths):
    """The ends of paths, as long as it takes to tell them apart."""
    parts = [pathlib.Path(path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise errors.UserError(
        f"a run is named twice: {', '.join(map(str, paths))}"
    )


def read_run(directory):
    """{tag: Curve} of the event files in a directory.

    Raises:
      errors.UserError: there are none, or no scalar in them.
    """
    events = [
        event for path in _event_files(directory) for event in _scalars(path)
    ]
    curves = collections.defaultdict(list)
    for _, step, tag, value in sorted(events, key=lambda event: event[0]):
        points = curves[tag]
        # A resumed run begins before where the one before it ended.
        while points and points[-1][0] >= step:
            points.pop()
        points.append((step, value))
    if not curves:
        raise errors.UserError(
            f"{directory}: its event files hold no scalars yet; they come "
            "every --display_loss_steps steps"
        )
    return {
        tag: Curve(*map(np.array, zip(*points)))
        for tag, points in curves.items()
    }


def _event_files(directory):
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise errors.UserError(
            f"{directory} is no directory; name the --output_dir or "
            "--out_log_dir of a run"
        )
    found = sorted(directory.glob("*.tfevents.*"))
    if not found:
        below = sorted(
            {path.parent for path in directory.rglob("*.tfevents.*")}
        )[:5]
        raise errors.UserError(
            "%s holds no TensorBoard event files; %s"
            % (
                directory,
                f"they are in {', '.join(map(str, below))}"
                if below
                else "name the --output_dir or --out_log_dir of a run",
            )
        )
    return found


def _scalars(path):
    """[(wall time, step, tag, value)] of an event file.

    A file that is still written to, or was cut short, gives what it has.
    """
    import tensorflow.compat.v1 as tf

    tf.logging.set_verbosity(tf.logging.ERROR)  # the reader is "deprecated"
    found = []
    try:
        for event in tf.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.append(
                        (
                            event.wall_time,
                            event.step,
                            value.tag,
                            value.simple_value,
                        )
                    )
    except tf.errors.DataLossError:
        print(
            f"{path} is cut short; {len(found)} scalars of it are drawn",
            file=sys.stderr,
        )
    return found


def smooth(values, weight):
    """An exponential mean that starts without bias; not finite ones stay.

    Source: TensorBoard's smoothing of scalars; the correction is that of Adam
    (Kingma & Ba 2015, section 3).

    Args:
      values: float [n].
      weight: of the mean so far, from 0 (no smoothing) to below 1.

    Returns:
      float64 [n].
    """
    mean, total, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            total = weight * total + 1 - weight
            value = mean / total
        smoothed.append(value)
    return np.array(smoothed)


def tags_of(runs, wanted):
    """The scalars to draw, in order.

    Args:
      runs: {name: {tag: Curve}}.
      wanted: comma-separated names, or "" for all.
    """
    known = {tag for curves in runs.values() for tag in curves}
    if wanted:
        tags = [tag.strip() for tag in wanted.split(",")]
        missing = [tag for tag in tags if tag not in known]
        if missing:
            raise errors.UserError(
                f"--tags: no run has {', '.join(missing)}; there are "
                f"{', '.join(sorted(known))}"
            )
        return tags
    known -= {evaluation_of(tag, known) for tag in known}
    return [tag for tag in FIRST if tag in known] + sorted(
        known.difference(FIRST)
    )


def evaluation_of(tag, known):
    """The scalar of evaluations that belongs to one of training, or None."""
    names = [EVALUATION + tag] + [EVALUATED_LOSS] * (tag == "loss")
    return next((name for name in names if name in known), None)


def shown(tags, curves):
    """All scalars that are drawn of a run, evaluations beside their own."""
    pairs = [
        (tag, evaluation_of(tag, set(curves).difference(tags))) for tag in tags
    ]
    return [tag for pair in pairs for tag in pair if tag in curves]


def style_of(number):
    """Colour and line of a run; lines change where colours are used up."""
    lines, place = divmod(number, len(pictures.COLOURS))
    return {
        "color": pictures.COLOURS[place],
        "linestyle": _LINES[lines % len(_LINES)],
    }


def draw(pyplot, runs, tags, weight):
    """A figure with a panel for each scalar and a line for each run.

    Args:
      pyplot: matplotlib's.
      runs: {name: {tag: Curve}}.
      tags: the scalars, in order.
      weight: of smoothing, from 0 to below 1.
    """
    columns = min(_COLUMNS, len(tags))
    rows = -(-len(tags) // columns)
    figure, panels = pyplot.subplots(
        rows,
        columns,
        figsize=(6.4 * columns, 2.9 * rows + 0.6),
        squeeze=False,
        sharex=True,
    )
    panels, has_rings = list(panels.flat), False
    for panel, tag in zip(panels, tags):
        for number, curves in enumerate(runs.values()):
            style = style_of(number)
            if tag in curves:
                _draw_curve(
                    panel, curves[tag], style, 0.0 if tag in EXACT else weight
                )
            rings = evaluation_of(tag, set(curves).difference(tags))
            if rings:
                panel.plot(*curves[rings], **dict(style, **_RING))
                has_rings = True
        _dress(panel, tag)
    for panel in panels[len(tags) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(tags) - columns) : len(tags)]:
        panel.set_xlabel("step")
        panel.tick_params(labelbottom=True)
    _add_legend(figure, pyplot, list(runs), has_rings)
    return figure


def _draw_curve(panel, curve, style, weight):
    is_short = len(curve.steps) <= _MARKED
    weight, marker = (0.0, ".") if is_short else (weight, None)
    if weight:
        panel.plot(
            curve.steps,
            curve.values,
            color=style["color"],
            alpha=0.25,
            linewidth=0.9,
        )
    panel.plot(
        curve.steps,
        smooth(curve.values, weight),
        linewidth=1.6,
        marker=marker,
        **style,
    )


def _dress(panel, tag):
    panel.set_title(tag.replace("_", " "), loc="left", fontsize=11)
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    values = np.concatenate([line.get_ydata() for line in panel.lines])
    values = values[np.isfinite(values)]
    if tag in LOGARITHMIC and len(values) and values.min() > 0:
        panel.set_yscale("log", base=LOGARITHMIC[tag])
        if LOGARITHMIC[tag] == 10:
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            if values.max() > 3 * values.min():  # else all nine are needed
                panel.yaxis.get_minor_locator().set_params(subs=(2, 5))
    elif tag == "learning_rate":
        panel.yaxis.set_major_formatter("{x:.1e}")
    elif tag == "overflows":  # counted
        top = max(1, values.max())
        panel.set_ylim(-0.05 * top, 1.1 * top)
        panel.yaxis.get_major_locator().set_params(integer=True)


def _add_legend(figure, pyplot, names, has_rings):
    lines = [
        pyplot.Line2D([], [], linewidth=2.4, **style_of(number))
        for number in range(len(names))
    ]
    if has_rings:
        names = names + ["evaluated"]
        lines.append(pyplot.Line2D([], [], color="0.3", **_RING))
    columns = min(len(names), 4)
    height = figure.get_size_inches()[1]
    room = 0.22 + 0.23 * -(-len(names) // columns)  # inches
    figure.tight_layout(rect=(0, 0, 1, 1 - room / height), h_pad=1.2)
    figure.legend(
        lines,
        names,
        loc="upper left",
        frameon=False,
        bbox_to_anchor=(0.01, 1 - 0.05 / height),
        ncol=columns,
    )


def main(arguments):
    pyplot = pictures.load_pyplot("plot_run.py")
    if not 0 <= arguments.smoothing < 1:
        raise errors.UserError(
            f"--smoothing={arguments.smoothing:g}: expected a number from 0 to "
            "below 1"
        )
    runs = read_runs(arguments.runs)
    tags = tags_of(runs, arguments.tags)
    pictures.save(
        draw(pyplot, runs, tags, arguments.smoothing), arguments.output
    )
    for name, curves in runs.items():
        print(
            "%s: %s"
            % (
                name,
                " ".join(
                    [f"step={max(c.steps[-1] for c in curves.values())}"]
                    + [
                        f"{tag}={curves[tag].values[-1]:.6g}"
                        for tag in shown(tags, curves)
                    ]
                ),
            )
        )
    print(arguments.output)


if __name__ == "__main__":
    parser = script_parser.ScriptParser(
        description="Draws the curves of one or several runs into one PNG."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="DIRECTORY",
        help="the --output_dir or --out_log_dir of a run",
    )
    parser.add_argument(
        "--output",
        "-o",
        default="runs.png",
        help="the picture (default: runs.png)",
    )
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.6,
        help="weight of the past in the bold line, from 0 to "
        "below 1 (default: 0.6); the pale one is exact, "
        "and so are curves of a few points",
    )
    parser.add_argument(
        "--tags", default="", help="comma-separated scalars (default: all)"
    )
    parser.run(main)
