#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the curves of one or several runs into one PNG.

    python scripts/plot_run.py output other_output --output=runs.png

A run is the --output_dir of a run script, or a directory with its TensorBoard
event files, which are read from the run's --out_log_dir too. Loss and learning
rate come first, then the other scalars: gradient norm, accuracy, loss scale,
sequences per second; those with a single value are printed, not drawn, unless
--tags names them. Evaluations are rings in the panel of their training scalar.
Where a run was resumed or rolled back, the later values replace the earlier
ones.
"""

import collections
import math
import os
import pathlib
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

import numpy as np

from common import errors, files
from scripts import pictures, script_parser
from weights import model_directory

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
# Prefix of evaluation scalars, and the loss of run_pretraining.py's.
EVALUATION, EVALUATED_LOSS = "eval/", "eval/masked_lm_loss"
# Not smoothed: smoothing would hide where they change.
EXACT = ("learning_rate", "loss_scale", "overflows", "global_step")
# Labels of vertical axes; other scalars have none.
UNITS = {
    "loss": "nats (regression: squared error)",
    "perplexity": "exp(loss)",
    "gradient_norm": "Euclidean norm",
    "weight_norm": "Euclidean norm",
    "loss_scale": "factor",
    "overflows": "skipped updates",
    "examples_per_second": "sequences / s",
    "tokens_per_second": "tokens / s",
    "peak_memory_gigabytes": "GB",
    "mfu": "share of the device's peak",
}
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
_MARKED = 30  # curves with at most this many points are not smoothed


class Curve(typing.NamedTuple):
    """One scalar of one run."""

    steps: np.ndarray  # int64 [n], rising
    values: np.ndarray  # float64 [n]


Curves = typing.Dict[str, Curve]  # by tag


def read_runs(paths: typing.Sequence[str]) -> typing.Dict[str, Curves]:
    """The curves of run directories by their short name, in order."""
    return {
        name: read_run(path) for name, path in zip(short_names(paths), paths)
    }


def short_names(paths: typing.Sequence[str]) -> typing.List[str]:
    """The shortest ends of paths that are all different."""
    parts = [pathlib.Path(path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise errors.UserError(
        f"{', '.join(map(str, paths))}: a run is given twice; remove one"
    )


def read_run(directory: str) -> Curves:
    """The curves of the event files of a directory and its log directory.

    Raises:
      errors.UserError: no event files, or no scalars in them.
    """
    events = [
        event for path in _event_files(directory) for event in _scalars(path)
    ]
    curves = collections.defaultdict(list)
    for _, step, tag, value in sorted(events, key=lambda event: event[0]):
        points = curves[tag]
        # A resumed run starts before the last step of the interrupted one.
        while points and points[-1][0] >= step:
            points.pop()
        points.append((step, value))
    if not curves:
        fix = "wait for the first report, after --display_loss_steps steps"
        log_dir = _log_dir(directory)
        if not os.path.isdir(log_dir or directory):
            fix = f"they are in --out_log_dir={log_dir}; name its new place"
        raise errors.UserError(
            f"{directory}: its event files contain no scalars yet; {fix}"
        )
    return {
        tag: Curve(*map(np.array, zip(*points)))
        for tag, points in curves.items()
    }


def _log_dir(directory):
    """The --out_log_dir in a run's run.json, "" without one."""
    path = os.path.join(directory, model_directory.RUN)
    record = files.read_json(path) if os.path.isfile(path) else {}
    return record.get("changeable", {}).get("out_log_dir", "")


def _event_files(directory):
    directory = pathlib.Path(directory)
    fix = "name the --output_dir or --out_log_dir of a run"
    if not directory.is_dir():
        raise errors.UserError(f"{directory}: is not a directory; {fix}")
    paths = sorted(
        {
            path
            for place in (directory, _log_dir(directory) or directory)
            for path in pathlib.Path(place).glob("*.tfevents.*")
        }
    )
    if not paths:
        parents = {path.parent for path in directory.rglob("*.tfevents.*")}
        if parents:
            fix = f"they are in {', '.join(map(str, sorted(parents)[:5]))}"
        raise errors.UserError(
            f"{directory}: contains no TensorBoard event files; {fix}"
        )
    return paths


def _scalars(path):
    """[(wall time, step, tag, value)] of an event file.

    A truncated file, such as one that is still written, gives what it has.
    """
    import tensorflow.compat.v1 as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(tf.logging.ERROR)  # the reader logs its own deprecation
    scalars = []
    try:
        for event in tf.train.summary_iterator(str(path)):
            scalars += [
                (event.wall_time, event.step, value.tag, value.simple_value)
                for value in event.summary.value
                if value.WhichOneof("value") == "simple_value"
            ]
    except tf.errors.DataLossError:
        print(
            f"{path}: truncated; drawing its first {len(scalars)} scalars",
            file=sys.stderr,
        )
    finally:
        logger.setLevel(level)
    return scalars


def smooth(values: typing.Iterable[float], weight: float) -> np.ndarray:
    """An exponential mean without initial bias; keeps nan and infinity.

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


def tags_of(runs: typing.Dict[str, Curves], requested: str) -> typing.List[str]:
    """The scalars to draw, in order.

    Args:
      runs: curves by run.
      requested: comma-separated names, or "" for all.
    """
    known = {tag for curves in runs.values() for tag in curves}
    if requested:
        tags = [tag.strip() for tag in requested.split(",")]
        missing = [tag for tag in tags if tag not in known]
        if missing:
            raise errors.UserError(
                f"--tags: no run has {', '.join(missing)}; expected some of "
                f"{', '.join(sorted(known))}"
            )
        return tags
    known -= {evaluation_of(tag, known) for tag in known}
    return [tag for tag in FIRST if tag in known] + sorted(
        known.difference(FIRST)
    )


def with_curves(
    runs: typing.Dict[str, Curves], tags: typing.List[str]
) -> typing.List[str]:
    """The tags of which a run has two values or more; if none has, all."""
    several = [
        tag
        for tag in tags
        if any(
            len(curves[name].steps) > 1
            for curves in runs.values()
            for name in shown([tag], curves)
        )
    ]
    return several or tags


def evaluation_of(
    tag: str, known: typing.Container[str]
) -> typing.Optional[str]:
    """The evaluation scalar of a training scalar, or None."""
    names = [EVALUATION + tag]
    if tag == "loss":
        names.append(EVALUATED_LOSS)
    return next((name for name in names if name in known), None)


def shown(tags: typing.List[str], curves: Curves) -> typing.List[str]:
    """All scalars that are drawn of a run, each with its evaluation."""
    pairs = [
        (tag, evaluation_of(tag, set(curves).difference(tags))) for tag in tags
    ]
    return [tag for pair in pairs for tag in pair if tag in curves]


def style_of(number: int) -> typing.Dict[str, str]:
    """Colour and line of a run; the line changes after the last colour."""
    lines, place = divmod(number, len(pictures.COLOURS))
    return {
        "color": pictures.COLOURS[place],
        "linestyle": _LINES[lines % len(_LINES)],
    }


def draw(
    pyplot: typing.Any,
    runs: typing.Dict[str, Curves],
    tags: typing.List[str],
    weight: float,
) -> typing.Any:
    """A figure with a panel for each scalar and a line for each run.

    Args:
      pyplot: the module matplotlib.pyplot.
      runs: curves by run.
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
        panel.set_xlabel("training step")
        panel.xaxis.get_major_locator().set_params(integer=True)
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


def _unit(tag):
    """The label of a scalar's axis, or ""."""
    name = tag.rpartition("/")[2]
    if name.endswith("accuracy"):
        return "share"
    return "%" if "exact" in name else UNITS.get(name, "")


def _dress(panel, tag):
    panel.set_title(tag.replace("_", " "), loc="left", fontsize=11)
    panel.set_ylabel(_unit(tag), color="0.35", fontsize=9)
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
            if values.max() > 3 * values.min():  # else label all nine
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


def main(arguments: typing.Any) -> None:
    """Draws the picture and prints the last value of each curve."""
    pyplot = pictures.load_pyplot("plot_run.py")
    if not 0 <= arguments.smoothing < 1:
        raise errors.UserError(
            f"--smoothing={arguments.smoothing:g}: expected a number from 0 to "
            "below 1"
        )
    runs = read_runs(arguments.runs)
    tags = tags_of(runs, arguments.tags)
    drawn = tags if arguments.tags else with_curves(runs, tags)
    figure = draw(pyplot, runs, drawn, arguments.smoothing)
    pictures.save(figure, arguments.output)
    for name, curves in runs.items():
        last = max(curve.steps[-1] for curve in curves.values())
        values = [
            f"{tag}={curves[tag].values[-1]:.6g}" for tag in shown(tags, curves)
        ]
        print(f"{name}:", f"step={last}", *values)
    if len(drawn) < len(tags):
        others = ",".join(tag for tag in tags if tag not in drawn)
        print(f"not drawn, since they have one value: --tags={others}")
    print(arguments.output)


def define_arguments(parser: typing.Any) -> None:
    """Declares the command line."""
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
        "below 1 (default: 0.6); the pale line is exact, "
        "as are curves with few points",
    )
    parser.add_argument(
        "--tags", default="", help="comma-separated scalars (default: all)"
    )


if __name__ == "__main__":
    parser = script_parser.ScriptParser(
        description="Draws the curves of one or several runs into one PNG."
    )
    define_arguments(parser)
    parser.run(main)
