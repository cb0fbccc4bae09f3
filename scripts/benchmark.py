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
Ratios of processor seconds hold where others use the machine too.

Peers are timed where they import, each in a process of its own: tokenizers,
tiktoken, transformers (with PyTorch) and datasets in --peers_python or in this
Python, google-research/bert from --bert_dir.
"""

import csv
import dataclasses
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

import numpy as np  # noqa: E402
import tqdm  # noqa: E402
from absl import (
    flags,  # noqa: E402
    logging,  # noqa: E402
)

import benchmark_contenders  # noqa: E402
import benchmark_peers  # noqa: E402
import benchmark_stages  # noqa: E402
import pictures  # noqa: E402
from benchmark_stages import OURS  # noqa: E402
from common import (
    command_line,  # noqa: E402
    errors,  # noqa: E402
)

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
        "benchmark.csv of earlier runs, comma separated: joined and drawn "
        "into output_dir, nothing is timed.",
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
        "How large a text records are built from: text_file again and "
        "again, its rare words spelled anew; 0 takes it once.",
        lower=0.0,
    )
    cold_megabytes: float = command_line.flag(
        10.0, "Text of the stage cold, made likewise.", lower=0.0
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
    def stage_names(self):
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
    megabytes: float  # most of the processes that it started, 0 if none


def time_stage(stage, title, contenders, rounds, peak):
    """Times contenders in turns after one warm-up.

    Args:
      stage, title: its name, and what it times.
      contenders: list of Contender, ours first.
      rounds: turns of each.
      peak: floating-point operations a second of a large matrix product.

    Returns:
      A list of Row.
    """
    runs = {contender.name: [] for contender in contenders}
    bar = tqdm.tqdm(
        total=(rounds + 1) * len(contenders),
        desc=stage,
        unit="run",
        leave=False,
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


def start_peers(stage, settings, work):
    """PeerProcess of every peer of a stage that is installed."""
    values = dataclasses.asdict(settings)
    for name in benchmark_peers.PEERS.get(stage, ()):
        for python in filter(None, (settings.peers_python, sys.executable)):
            peer = benchmark_contenders.PeerProcess(
                python, stage, name, values, work, stage == "data"
            )
            if peer.contender:
                yield peer
                break
            peer.close()


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
    )


def fits(rows):
    """Lines through the costs of the stage scaling, as texts."""
    own = [row for row in rows if row.stage == "scaling"]
    factors = benchmark_stages.FACTORS + (1,)
    for name in benchmark_stages.SCALED if own else ():
        scaled = [row for row in own if row.contender.startswith(name)]
        for field, kind in (("ratio", "time"), ("cpu_ratio", "CPU time")):
            costs = [getattr(row, field) for row in scaled + own[:1]]
            slope, start = np.polyfit(factors, costs, 1)
            off = max(
                abs(start + slope * factor - cost) / cost
                for factor, cost in zip(factors, costs)
            )
            yield (
                f"{kind} of a step = {start:.2f} + {slope:.2f} x {name}, both "
                f"relative to the first; off by at most {100 * off:.1f} %"
            )


def matmul_rate(size=1536, rounds=8):
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


def machine(versions):
    """One line about the machine and the versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next(
                (
                    line.split(":")[1].strip()
                    for line in lines
                    if line.startswith("model name")
                ),
                model,
            )
    about = (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    if "tensorflow" in sys.modules:
        versions = dict(
            versions, tensorflow=sys.modules["tensorflow"].__version__
        )
    return ", ".join(
        [about] + ["%s %s" % item for item in sorted(versions.items())]
    )


def table(rows):
    """The rows as a Markdown table."""
    lines = [
        "| stage | contender | rate | this suite against it, wall "
        "(spread) | CPU seconds | share of matrix-product rate | peak "
        "memory |",
        "|---|---|---|---|---|---|---|",
    ]
    title = None
    for row in rows:
        share = f"{100 * row.peak_share:.0f} %" if row.peak_share else ""
        memory = f"{row.megabytes:.0f} MB" if row.megabytes else ""
        lines.append(
            "| %s | %s | %s %s | %.2f (%.2f to %.2f) | %.2f | %s | "
            "%s |"
            % (
                "" if row.title == title else row.title,
                row.contender,
                f"{row.rate:,.4g}" if row.rate < 1000 else f"{row.rate:,.0f}",
                row.unit,
                row.ratio,
                row.lowest,
                row.highest,
                row.cpu_ratio,
                share,
                memory,
            )
        )
        title = row.title
    return "\n".join(lines)


def write_csv(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Row._fields)
        writer.writerows(rows)


def read_csv(path):
    """The rows of a CSV that `write_csv` wrote."""
    kinds = typing.get_type_hints(Row)
    with open(path, newline="") as stream:
        try:
            return [
                Row(**{name: kinds[name](text) for name, text in line.items()})
                for line in csv.DictReader(stream)
            ]
        except (TypeError, ValueError, KeyError):
            raise errors.UserError(
                f"{path} is no benchmark.csv of this version; expected the "
                f"columns {','.join(Row._fields)}"
            ) from None


def draw(path, rows):
    """Bars of each stage's rates, one panel each; False: no matplotlib."""
    try:
        pyplot = pictures.load_pyplot("benchmark.py")
    except errors.UserError:
        return False
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
    return True


def _draw_panel(axis, title, rows):
    """One stage: rates as bars, our ratio against each beside it."""
    most = max(row.rate for row in rows)
    for place, row in enumerate(rows):
        is_ours = row.contender.startswith(OURS)
        axis.barh(
            place,
            row.rate / most,
            color=pictures.COLOURS[0] if is_ours else "#b3b3b3",
        )
        against = (
            ""
            if place == len(rows) - 1
            else f"   {row.ratio:.2f} times ({row.lowest:.2f} to "
            f"{row.highest:.2f})"
        )
        axis.text(
            row.rate / most + 0.01,
            place,
            _number(row.rate) + " " + row.unit + against,
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rows)))
    axis.set_yticklabels([row.contender for row in rows], fontsize=8)
    axis.set_xlim(0, 1.65)
    axis.set_xticks([])
    axis.set_title("\n".join(textwrap.wrap(title, 90)), loc="left", fontsize=9)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _number(rate):
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:,.3g}"


def time_all(settings):
    """(rows, {package: version} of the peers, rate of matrix products)."""
    needs_peak = {"step", "precision", "predict"} & set(settings.stage_names)
    peak = matmul_rate() if needs_peak else 0.0
    rows, versions = [], {}
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
                rows += time_stage(
                    name, title, contenders, settings.rounds, peak
                )
            finally:
                for peer in peers:
                    peer.close()
        for contender in contenders:
            versions.update(contender.versions)
    return rows, versions, peak


def main(_):
    settings = command_line.build(BenchmarkConfig, FLAGS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.ERROR)
    os.makedirs(settings.output_dir, exist_ok=True)
    if settings.draw:
        rows = [
            row for path in settings.draw.split(",") for row in read_csv(path)
        ]
        sys.stdout.write(table(rows) + "\n")
    else:
        rows, versions, peak = time_all(settings)
        sys.stdout.write(
            f"{time.strftime('%Y-%m-%d')}, "
            f"{machine(versions)}\n\n{table(rows)}\n"
        )
        sys.stdout.write("".join(f"\n{line}\n" for line in fits(rows)))
        if peak:
            sys.stdout.write(
                f"\nmatrix-product rate: {peak / 1e9:.0f} GFLOP/s\n"
            )
    write_csv(os.path.join(settings.output_dir, "benchmark.csv"), rows)
    if not draw(os.path.join(settings.output_dir, "benchmark.png"), rows):
        sys.stdout.write("no picture: pip install -r requirements/plots.txt\n")


if __name__ == "__main__":
    command_line.define(BenchmarkConfig)
    command_line.run(main)
