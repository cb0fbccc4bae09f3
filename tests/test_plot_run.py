# SPDX-License-Identifier: Apache-2.0
"""Curves from event files: resumed runs, smoothing, names, the picture."""

import json
import runpy

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors
from helpers.paths import REPOSITORY
from scripts import plot_run


def write_events(directory, *points, suffix="", start=100.0):
    """An event file of (step, {tag: value}), one a second."""
    directory.mkdir(exist_ok=True)
    path = directory / (f"events.out.tfevents.{start}.host{suffix}")
    with tf.python_io.TFRecordWriter(str(path)) as writer:
        for number, (step, values) in enumerate(points):
            event = tf.Event(wall_time=start + number, step=step)
            for tag, value in values.items():
                event.summary.value.add(tag=tag, simple_value=value)
            writer.write(event.SerializeToString())
    return path


def test_later_values_replace_overlapping_steps(tmp_path):
    # Resumed from step 10 with lines at other steps. By name the later file
    # comes first.
    write_events(
        tmp_path,
        (5, {"loss": 4}),
        (10, {"loss": 3}),
        (15, {"loss": 9}),
        (20, {"loss": 9}),
        suffix="z",
    )
    write_events(
        tmp_path, (12, {"loss": 2}), (17, {"loss": 1}), suffix="a", start=200.0
    )
    curve = plot_run.read_run(tmp_path)["loss"]
    assert curve.steps.tolist() == [5, 10, 12, 17]
    assert curve.values.tolist() == [4, 3, 2, 1]


def test_a_truncated_file_gives_what_it_has(tmp_path, capsys):
    path = write_events(tmp_path, (5, {"loss": 4}), (10, {"loss": 3}))
    path.write_bytes(path.read_bytes()[:-3])
    assert plot_run.read_run(tmp_path)["loss"].values.tolist() == [4]
    assert "truncated; drawing its first 1 scalars" in capsys.readouterr().err


def test_smoothing_starts_at_the_first_value():
    # Means by hand: (4 + 2 * 8) / 3 with weight 1/2; nan is skipped.
    smoothed = plot_run.smooth([4.0, 8.0, float("nan"), 8.0], 0.5)
    np.testing.assert_allclose(smoothed, [4, 20 / 3, np.nan, 52 / 7])
    assert plot_run.smooth([4.0, 8.0], 0.0).tolist() == [4, 8]


def test_names_of_runs_are_short_and_different():
    assert plot_run.short_names(["a/x", "b/y"]) == ["x", "y"]
    assert plot_run.short_names(["r/a/x", "r/b/x"]) == ["a/x", "b/x"]
    with pytest.raises(errors.UserError, match="twice"):
        plot_run.short_names(["a", "./a"])


def test_known_scalars_come_first(tmp_path):
    write_events(
        tmp_path, (1, {"zebra": 1, "loss": 1, "apple": 2, "learning_rate": 3})
    )
    runs = plot_run.read_runs([tmp_path])
    assert plot_run.tags_of(runs, "") == [
        "loss",
        "learning_rate",
        "apple",
        "zebra",
    ]
    assert plot_run.tags_of(runs, "zebra, loss") == ["zebra", "loss"]
    with pytest.raises(errors.UserError, match="--tags: no run has lose"):
        plot_run.tags_of(runs, "lose")


def test_a_directory_without_events_says_where_they_are(tmp_path):
    write_events(tmp_path / "log", (1, {"loss": 1}))
    with pytest.raises(errors.UserError, match="they are in .*log"):
        plot_run.read_run(tmp_path)
    with pytest.raises(errors.UserError, match="is not a directory"):
        plot_run.read_run(tmp_path / "nothing")


def test_the_scalars_of_a_run_with_a_log_directory_are_found(tmp_path):
    output, logs = tmp_path / "output", tmp_path / "logs"
    write_events(output, (0, {}))  # of the Estimator
    write_events(logs, (5, {"loss": 4}))
    record = {"changeable": {"out_log_dir": str(logs)}}
    (output / "run.json").write_text(json.dumps(record))
    assert plot_run.read_run(output)["loss"].values.tolist() == [4]
    logs.rename(tmp_path / "moved")
    with pytest.raises(errors.UserError, match="are in --out_log_dir=.*logs;"):
        plot_run.read_run(output)


def test_a_panel_for_each_scalar_and_a_line_for_each_run(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for name in ("first", "second"):
        write_events(
            tmp_path / name,
            *[
                (
                    step,
                    {
                        "loss": 5.0 / step,
                        "learning_rate": 1e-4,
                        "gradient_norm": step,
                        "overflows": 0,
                    },
                )
                for step in range(1, 5)
            ],
        )
    write_events(tmp_path / "second", (5, {"loss_scale": 2.0**15}), start=300.0)
    runs = plot_run.read_runs([tmp_path / "first", tmp_path / "second"])
    tags = plot_run.tags_of(runs, "")
    figure = plot_run.draw(pyplot, runs, tags, 0.6)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == [
        "loss",
        "learning rate",
        "gradient norm",
        "loss scale",
        "overflows",
    ]
    # Curves of a few points are drawn as they are.
    assert [len(panel.lines) for panel in panels] == [2, 2, 2, 1, 2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "first",
        "second",
    ]
    plot_run.pictures.save(figure, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.incomplete"))


def test_many_points_are_smoothed_and_evaluations_are_rings(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    write_events(
        tmp_path / "run",
        *[
            (step, {"loss": 5.0 / step, "learning_rate": 1e-4})
            for step in range(1, 50)
        ],
    )
    write_events(
        tmp_path / "run",
        (49, {"eval/masked_lm_loss": 0.25, "eval/perplexity": 1.3}),
        start=900.0,
    )
    # A directory that was only evaluated.
    write_events(tmp_path / "other", (7, {"eval/masked_lm_loss": 0.5}))
    runs = plot_run.read_runs([tmp_path / "run", tmp_path / "other"])
    tags = plot_run.tags_of(runs, "")
    assert tags == ["loss", "learning_rate", "eval/perplexity"]
    figure = plot_run.draw(pyplot, runs, tags, 0.6)
    lines = [panel.lines for panel in figure.axes if panel.get_visible()]
    # The exact one is pale, the smoothed one bold; a ring a run.
    assert [len(curves) for curves in lines] == [4, 1, 1]
    assert [line.get_alpha() for line in lines[0]] == [0.25] + [None] * 3
    assert [list(line.get_xydata()[0]) for line in lines[0][2:]] == [
        [49, 0.25],
        [7, 0.5],
    ]
    assert [line.get_marker() for line in lines[0]] == ["None"] * 2 + ["o"] * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "run",
        "other",
        "evaluated",
    ]
    assert plot_run.shown(tags, runs["run"]) == [
        "loss",
        "eval/masked_lm_loss",
        "learning_rate",
        "eval/perplexity",
    ]
    # Asked for by name, it has a panel of its own.
    assert plot_run.shown(["loss", "eval/masked_lm_loss"], runs["run"]) == [
        "loss",
        "eval/masked_lm_loss",
    ]


def test_a_single_value_is_printed_not_drawn(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    points = [(step, {"loss": 5.0 / step}) for step in (1, 2)]
    write_events(tmp_path, *points, (2, {"eval/f1": 81.5, "mfu": 0.25}))
    runs = plot_run.read_runs([tmp_path])
    tags = plot_run.tags_of(runs, "")
    assert tags == ["loss", "eval/f1", "mfu"]
    assert plot_run.with_curves(runs, tags) == ["loss"]
    assert plot_run.with_curves(runs, tags[1:]) == tags[1:]
    figure = plot_run.draw(pyplot, runs, tags, 0.6)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_ylabel() for panel in panels] == [
        "nats (regression: squared error)",
        "",
        "share of the device's peak",
    ]
    assert panels[-1].get_xlabel() == "training step"


def test_no_two_runs_look_alike():
    styles = [tuple(plot_run.style_of(number).values()) for number in range(21)]
    assert len(set(styles)) == 21


def test_histograms_turn_log_odds_into_probabilities():
    script = runpy.run_path(str(REPOSITORY / "scripts" / "evaluate-v2.0.py"))
    probabilities = script["probabilities"]
    assert probabilities({"a": 0.0, "b": 1.0}) == {"a": 0, "b": 1}
    assert probabilities({"a": 0.0, "b": -800.0, "c": 2.0}) == pytest.approx(
        {"a": 0.5, "b": 0.0, "c": 0.880797}, abs=1e-6
    )
