#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times every stage of the suite, and peers beside it, in one run.

    python scripts/benchmark.py --output_dir=benchmark
    python scripts/benchmark.py --peers --stages=tokenizer,features
    python scripts/benchmark.py --stages=pipeline,scaling,growth
    python scripts/benchmark.py --draw=one/benchmark.csv,two/benchmark.csv

Contenders of a stage take turns, round by round, so that a machine that
slows down slows them all; the median of the rounds counts. Prints a table,
writes benchmark.csv and, where matplotlib is installed, benchmark.png.
Ratios of processor seconds are valid on a shared machine too.

Peers are timed where they import, each in its own process: tokenizers,
tiktoken, transformers (with PyTorch) and datasets in --peers_python or in this
Python, google-research/bert from --bert_dir.
"""

import csv
import dataclasses
import io
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import textwrap
import time
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import common.startup

import numpy as np
import tqdm
from absl import flags, logging

from common import command_line, errors, files
from scripts import (
    benchmark_contenders,
    benchmark_peers,
    benchmark_stages,
    pictures,
)
from scripts.benchmark_contenders import Contender, PeerProcess
from scripts.benchmark_stages import OURS

FLAGS = flags.FLAGS
DEMO = REPOSITORY / "demo"


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Flags of this script."""

    stages: str = command_line.flag(
        "tokenizer,data,features,step,predict",
        "Stages to time, comma separated.",
    )
    peers: bool = command_line.flag(
        False, "Also time the peers that are installed."
    )
    peers_python: str = command_line.flag(
        "", "The Python that has the peers; those it lacks run in this one."
    )
    bert_dir: str = command_line.flag(
        "", "A checkout of google-research/bert, timed on TensorFlow 1.15."
    )
    draw: str = command_line.flag(
        "",
        "benchmark.csv of earlier runs, comma separated: join and draw them "
        "into output_dir, time nothing.",
    )
    rounds: int = command_line.flag(5, "Rounds of each stage.", lower=1)
    output_dir: str = command_line.flag(
        "benchmark", "Directory of benchmark.csv and benchmark.png."
    )
    vocab_file: str = command_line.flag(
        str(DEMO / "vocab.json"), "The tokenizer's vocab.json."
    )
    merges_file: str = command_line.flag(
        str(DEMO / "merges.txt"), "The tokenizer's merges.txt."
    )
    text_file: str = command_line.flag(
        str(DEMO / "text.txt"), "Text to tokenize and to build records from."
    )
    text_megabytes: float = command_line.flag(
        0.0,
        "Size of the text that records are built from: text_file repeated "
        "with rare words respelled; 0 takes it once.",
        lower=0.0,
    )
    cold_megabytes: float = command_line.flag(
        10.0, "Text of the stage cold, repeated likewise.", lower=0.0
    )
    record_length: int = command_line.flag(
        512,
        "Tokens of the records that the stage data builds.",
        lower=8,
        upper=512,
    )
    squad_file: str = command_line.flag(
        str(DEMO / "train-v1.1.json"), "SQuAD JSON of features and predictions."
    )
    num_layers: int = command_line.flag(4, "Layers of the model.", lower=1)
    hidden_size: int = command_line.flag(
        512, "Hidden size of the model, a multiple of 64.", lower=64
    )
    vocab_size: int = command_line.flag(
        50265, "Entries of the model's vocabulary.", lower=300
    )
    batch_size: int = command_line.flag(8, "Sequences of a step.", lower=2)
    sequence_length: int = command_line.flag(
        128, "Tokens of a training sequence.", lower=8, upper=512
    )
    predict_features: int = command_line.flag(
        128, "SQuAD features, drawn at random, of the stage predict.", lower=1
    )
    predictions: int = command_line.flag(
        20, "Masked positions of a sequence.", lower=1
    )
    model: str = command_line.flag(
        "",
        "Output directory of run_squad.py for the stage answers; without it a "
        "model of num_layers and hidden_size with random weights.",
    )
    questions: int = command_line.flag(
        64, "Questions, drawn at random, of the stage answers.", lower=1
    )
    minutes: float = command_line.flag(
        10.0, "Training time of each contender of time_to_loss.", lower=0.0
    )

    def __post_init__(self):
        unknown = set(self.stage_names) - set(benchmark_stages.STAGES)
        if unknown or not self.stage_names:
            raise errors.UserError(
                f"--stages is {self.stages!r}; expected some of "
                f"{','.join(benchmark_stages.STAGES)}, comma separated"
            )
        if self.hidden_size % 64:
            raise errors.UserError(
                f"--hidden_size is {self.hidden_size}; expected a multiple of "
                "64, the size of a head"
            )

    @property
    def stage_names(self) -> typing.List[str]:
        """The names in --stages."""
        return [name for name in self.stages.split(",") if name]


# --- Timing and output ------------------------------------------------------


class Row(typing.NamedTuple):
    """One line of the table."""

    stage: str
    title: str
    contender: str
    rate: float  # units a second, the median
    unit: str
    ratio: float  # ours against it: the median over rounds
    lowest: float  # of these ratios
    highest: float
    cpu_ratio: float  # the same for processor seconds
    peak_share: float  # of the machine's matrix-product rate, 0 if unknown
    megabytes: float  # peak of the processes that it started, 0 if none
    result: str = ""  # what the last call computed


def time_stage(
    stage: str,
    title: str,
    contenders: typing.List[Contender],
    rounds: int,
    peak: float,
) -> typing.List[Row]:
    """Times contenders in turns after one warm-up.

    Args:
      stage, title: its name, and what it measures.
      contenders: ours first.
      rounds: turns of each contender.
      peak: floating-point operations per second of a large matrix product.
    """
    runs = {contender.name: [] for contender in contenders}
    bar = tqdm.tqdm(
        total=(rounds + 1) * len(contenders),
        desc=stage,
        unit="run",
        leave=False,
        disable=None,
    )
    for number in range(rounds + 1):
        turn = contenders[::-1] if number % 2 else contenders
        for contender in turn:
            run = benchmark_contenders.timed(contender.call)
            if number:
                runs[contender.name].append(run)
            bar.update()
    bar.close()
    return [
        _row(stage, title, contender, contenders[0], runs, peak)
        for contender in contenders
    ]


def start_peers(
    stage: str, settings: BenchmarkConfig, work: str
) -> typing.Iterator[PeerProcess]:
    """Starts every peer of a stage that is installed, names the others."""
    values = dataclasses.asdict(settings)
    for name in benchmark_peers.PEERS.get(stage, ()):
        missing = []
        for python in filter(None, (settings.peers_python, sys.executable)):
            peer = PeerProcess(
                python, stage, name, values, work, stage == "data"
            )
            if peer.contender:
                yield peer
                break
            missing.append(peer.missing)
            peer.close()
        else:
            print(f"{stage}: not timed: {name} ({missing[0]})")


def _row(stage, title, contender, ours, runs, peak):
    """A contender's Row from the Runs of all of them."""
    own = runs[contender.name]

    def ratios(field):
        return [
            getattr(theirs, field)
            * ours.amount
            / max(getattr(mine, field) * contender.amount, 1e-9)
            for mine, theirs in zip(runs[ours.name], own)
        ]

    seconds = statistics.median(run.seconds for run in own)
    wall = ratios("seconds")
    return Row(
        stage,
        title,
        contender.name,
        contender.amount / seconds,
        contender.unit,
        statistics.median(wall),
        min(wall),
        max(wall),
        statistics.median(ratios("cpu_seconds")),
        contender.flops / seconds / peak if peak else 0.0,
        max(run.megabytes for run in own),
        own[-1].result,
    )


def fits(rows: typing.List[Row]) -> typing.Iterator[str]:
    """Lines through the costs of the stage scaling, as texts."""
    own = [row for row in rows if row.stage == "scaling"]
    factors = benchmark_stages.FACTORS + (1,)
    for name in benchmark_stages.SCALED if own else ():
        scaled = [row for row in own if row.contender.startswith(name)]
        for field, kind in (("ratio", "time"), ("cpu_ratio", "CPU time")):
            costs = [getattr(row, field) for row in scaled + own[:1]]
            slope, start = np.polyfit(factors, costs, 1)
            error = max(
                abs(start + slope * factor - cost) / cost
                for factor, cost in zip(factors, costs)
            )
            yield (
                f"{kind} of a step = {start:.2f} + {slope:.2f} x {name}, both "
                f"relative to the first; off by at most {100 * error:.1f} %"
            )


def matmul_rate(size: int = 1536, rounds: int = 8) -> float:
    """Floating-point operations a second of TensorFlow's float32 product."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        a = tf.get_variable("a", [size, size])
        session.run(tf.global_variables_initializer())
        product = tf.matmul(a, a).op
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            session.run(product)
            times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)


def machine(versions: typing.Dict[str, str]) -> str:
    """One line about the machine and the versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            models = [
                line.split(":")[1].strip()
                for line in lines
                if line.startswith("model name")
            ]
        model = (models or [model])[0]
    if "tensorflow" in sys.modules:
        tensorflow = sys.modules["tensorflow"].__version__
        versions = {**versions, "tensorflow": tensorflow}
    return ", ".join(
        [
            model,
            f"{os.cpu_count()} cores",
            f"Python {platform.python_version()}",
        ]
        + [f"{name} {version}" for name, version in sorted(versions.items())]
    )


def table(rows: typing.List[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| stage | contender | rate | this suite against it, wall "
        "(spread) | CPU seconds | share of matrix-product rate | peak "
        "memory, or result |",
        "|---|---|---|---|---|---|---|",
    ]
    title = None
    for row in rows:
        cells = (
            "" if row.title == title else row.title,
            row.contender,
            f"{_number(row.rate)} {row.unit}",
            f"{row.ratio:.2f} ({row.lowest:.2f} to {row.highest:.2f})",
            f"{row.cpu_ratio:.2f}",
            f"{100 * row.peak_share:.0f} %" if row.peak_share else "",
            f"{row.megabytes:.0f} MB" if row.megabytes else row.result,
        )
        lines.append(f"| {' | '.join(cells)} |")
        title = row.title
    return "\n".join(lines)


def _number(rate):
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def write_csv(path: str, rows: typing.List[Row]) -> None:
    """Writes rows to a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([Row._fields, *rows])
    files.write_text(path, text.getvalue())


def read_csv(path: str) -> typing.List[Row]:
    """The rows of a file that `write_csv` wrote."""
    kinds = typing.get_type_hints(Row)
    with open(path, newline="", encoding="utf-8") as stream:
        try:
            return [
                Row(**{name: kinds[name](text) for name, text in line.items()})
                for line in csv.DictReader(stream)
            ]
        except (TypeError, ValueError, KeyError):
            raise errors.UserError(
                f"{path}: is not a benchmark.csv of this version; expected the "
                f"columns {','.join(Row._fields)}"
            ) from None


def draw(pyplot: typing.Any, path: str, rows: typing.List[Row]) -> None:
    """Draws a panel for each stage with a bar for each rate.

    Args:
      pyplot: the module matplotlib.pyplot.
      path: of the PNG file.
      rows: at least one.
    """
    keys = list(dict.fromkeys((row.stage, row.title) for row in rows))
    panels = [
        [row for row in rows if (row.stage, row.title) == key][::-1]
        for key in keys
    ]
    heights = [0.55 + len(panel) for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(9, 0.3 * sum(heights) + 0.4 * len(panels)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for (_, title), panel, axis in zip(keys, panels, axes[:, 0]):
        _draw_panel(axis, title, panel)
    axes[-1, 0].set_xlabel(
        "times: how much faster this suite's first line is, the median of "
        "paired rounds (and their spread)",
        fontsize=8,
        loc="left",
    )
    figure.tight_layout()
    pictures.save(figure, path, dpi=110)
    pyplot.close(figure)


def _draw_panel(axis, title, rows):
    """One stage: rates as bars, beside them our ratio against each."""
    highest = max(row.rate for row in rows)
    for place, row in enumerate(rows):
        width = row.rate / highest
        is_ours = row.contender.startswith(OURS)
        axis.barh(
            place, width, color=pictures.COLOURS[0] if is_ours else "#b3b3b3"
        )
        label = f"{_number(row.rate)} {row.unit}"
        if place < len(rows) - 1:
            label += (
                f"   {row.ratio:.2f} times ({row.lowest:.2f} to "
                f"{row.highest:.2f})"
            )
        label += f"   {row.result}" if row.result else ""
        axis.text(width + 0.01, place, label, va="center", fontsize=8)
    axis.set_yticks(range(len(rows)))
    axis.set_yticklabels([row.contender for row in rows], fontsize=8)
    axis.set_xlim(0, 1.65)
    axis.set_xticks([])
    axis.set_title("\n".join(textwrap.wrap(title, 90)), loc="left", fontsize=9)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


class Results(typing.NamedTuple):
    """The measurements of all stages."""

    rows: typing.List[Row]
    versions: typing.Dict[str, str]  # of the packages
    peak: float  # rate of matrix products, 0 if not measured


def time_all(settings: BenchmarkConfig) -> Results:
    """Times all stages."""
    needs_peak = {"step", "precision", "predict"} & set(settings.stage_names)
    results = Results([], {}, matmul_rate() if needs_peak else 0.0)
    for name in settings.stage_names:
        peers = []
        with tempfile.TemporaryDirectory() as work:
            try:
                contenders = list(benchmark_stages.STAGES[name](settings, work))
                if settings.peers:
                    peers += start_peers(name, settings, work)
                contenders += [peer.contender for peer in peers]
                title = benchmark_stages.TITLES[name].format(
                    **dataclasses.asdict(settings)
                )
                results.rows.extend(
                    time_stage(
                        name, title, contenders, settings.rounds, results.peak
                    )
                )
            finally:
                for peer in peers:
                    peer.close()
        for contender in contenders:
            results.versions.update(contender.versions)
    return results


def _measure(settings):
    """Times all stages and prints the results; the rows."""
    results = time_all(settings)
    print(f"{time.strftime('%Y-%m-%d')}, {machine(results.versions)}")
    print(f"\n{table(results.rows)}")
    for line in fits(results.rows):
        print(f"\n{line}")
    if results.peak:
        print(f"\nmatrix-product rate: {results.peak / 1e9:.0f} GFLOP/s")
    return results.rows


def main(_: typing.List[str]) -> None:
    """Times the stages, or joins earlier results; writes both files."""
    settings = command_line.build(BenchmarkConfig, FLAGS)
    logging.set_verbosity(logging.ERROR)
    os.makedirs(settings.output_dir, exist_ok=True)
    if settings.draw:
        rows = sum(map(read_csv, settings.draw.split(",")), [])
        print(table(rows))
    else:
        rows = _measure(settings)
    write_csv(os.path.join(settings.output_dir, "benchmark.csv"), rows)
    try:
        pyplot = pictures.load_pyplot("benchmark.py")
    except errors.UserError as error:
        print(f"no picture: {error}")
        return
    draw(pyplot, os.path.join(settings.output_dir, "benchmark.png"), rows)


def define_flags() -> None:
    """Declares the flags of this script."""
    command_line.define(BenchmarkConfig)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
