#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times every stage of the suite, and peers beside it, in one run.

    python scripts/benchmark.py --output_dir=benchmark
    python scripts/benchmark.py --peers --stages=tokenizer,features
    python scripts/benchmark.py --stages=pipeline,scaling,growth

Contenders of a stage take turns, round by round, so that a machine that
slows down slows them all; the median of the rounds counts. Prints a table,
writes benchmark.csv and, where matplotlib is installed, benchmark.png.
Ratios of processor seconds hold where others use the machine too.

Peers are timed where they import: tokenizers, tiktoken, transformers (with
PyTorch), datasets.
"""
import csv
import dataclasses
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from absl import flags  # noqa: E402
from absl import logging  # noqa: E402
import numpy as np  # noqa: E402
import tqdm  # noqa: E402

import benchmark_stages  # noqa: E402
import command_line  # noqa: E402
import errors  # noqa: E402
import pictures  # noqa: E402
from benchmark_stages import OURS  # noqa: E402
from benchmark_stages import installed  # noqa: E402

FLAGS = flags.FLAGS
DEMO = REPOSITORY / "demo"


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Flags of this script."""
    stages: str = command_line.flag(
        "tokenizer,data,features,step,predict",
        "Stages to time, comma separated.")
    peers: bool = command_line.flag(
        False, "Also time the peers that are installed.")
    rounds: int = command_line.flag(5, "Rounds of each stage.", lower=1)
    output_dir: str = command_line.flag(
        "benchmark", "Directory of benchmark.csv and benchmark.png.")
    vocab_file: str = command_line.flag(
        str(DEMO / "vocab.json"), "The tokenizer's vocab.json.")
    merges_file: str = command_line.flag(
        str(DEMO / "merges.txt"), "The tokenizer's merges.txt.")
    text_file: str = command_line.flag(
        str(DEMO / "text.txt"), "Text to tokenize and to build records from.")
    text_megabytes: float = command_line.flag(
        0.0, "How large a text records are built from: text_file is repeated; "
        "0 takes it once.", lower=0.0)
    record_length: int = command_line.flag(
        512, "Tokens of the records that the stage data builds.", lower=8,
        upper=512)
    squad_file: str = command_line.flag(
        str(DEMO / "train-v1.1.json"), "SQuAD JSON of features and "
        "predictions.")
    num_layers: int = command_line.flag(4, "Layers of the model.", lower=1)
    hidden_size: int = command_line.flag(
        512, "Hidden size of the model, a multiple of 64.", lower=64)
    vocab_size: int = command_line.flag(
        50265, "Entries of the model's vocabulary.", lower=300)
    batch_size: int = command_line.flag(8, "Sequences of a step.", lower=2)
    sequence_length: int = command_line.flag(
        128, "Tokens of a training sequence.", lower=8, upper=512)
    predict_features: int = command_line.flag(
        128, "SQuAD features, drawn at random, of the stage predict.",
        lower=1)
    predictions: int = command_line.flag(
        20, "Masked positions of a sequence.", lower=1)

    def __post_init__(self):
        unknown = set(self.stage_names) - set(benchmark_stages.STAGES)
        if unknown or not self.stage_names:
            raise errors.UserError(
                "--stages is %r; expected some of %s, comma separated" %
                (self.stages, ",".join(benchmark_stages.STAGES)))
        if self.hidden_size % 64:
            raise errors.UserError(
                "--hidden_size is %d; expected a multiple of 64, the size of "
                "a head" % self.hidden_size)

    @property
    def stage_names(self):
        return [name for name in self.stages.split(",") if name]


# --- Timing and output ------------------------------------------------------


class Row(typing.NamedTuple):
    """One line of the table."""
    stage: str
    contender: str
    rate: float  # units a second, the median
    unit: str
    ratio: float  # ours against it: the median over rounds
    lowest: float  # of these ratios
    highest: float
    cpu_ratio: float  # the same for processor seconds
    peak_share: float  # of the machine's matrix-product rate, 0 if unknown
    megabytes: float  # most of the processes that it started, 0 if none


def time_stage(stage, contenders, rounds, peak):
    """Times contenders in turns after one warm-up.

    Args:
      stage: its name.
      contenders: list of Contender, ours first.
      rounds: turns of each.
      peak: floating-point operations a second of a large matrix product.

    Returns:
      A list of Row.
    """
    runs = {contender.name: [] for contender in contenders}
    bar = tqdm.tqdm(total=(rounds + 1) * len(contenders), desc=stage,
                    unit="run", leave=False)
    for number in range(rounds + 1):
        turn = contenders[::-1] if number % 2 else contenders
        for contender in turn:
            run = _timed(contender)
            if number:
                runs[contender.name].append(run)
            bar.update()
    bar.close()
    return [_row(stage, contender, contenders[0], runs, peak)
            for contender in contenders]


class Run(typing.NamedTuple):
    """What one call took."""
    seconds: float
    cpu_seconds: float  # of this process and those it waited for
    megabytes: float


def _timed(contender):
    cpu, start = _cpu_seconds(), time.perf_counter()
    result = contender.call()
    return Run(time.perf_counter() - start, _cpu_seconds() - cpu,
               result if isinstance(result, float) else 0.0)


def _cpu_seconds():
    usages = [resource.getrusage(who) for who in (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _row(stage, contender, ours, runs, peak):
    """A contender's Row from the Runs of all of them."""
    own = runs[contender.name]

    def ratios(field):
        return [getattr(theirs, field) * ours.amount
                / max(getattr(mine, field) * contender.amount, 1e-9)
                for mine, theirs in zip(runs[ours.name], own)]

    seconds = statistics.median(run.seconds for run in own)
    wall = ratios("seconds")
    return Row(stage, contender.name, contender.amount / seconds,
               contender.unit, statistics.median(wall), min(wall), max(wall),
               statistics.median(ratios("cpu_seconds")),
               contender.flops / seconds / peak if peak else 0.0,
               max(run.megabytes for run in own))


def fits(rows):
    """Lines through the costs of the stage scaling, as texts."""
    of = {row.contender: row for row in rows if row.stage == "scaling"}
    for name in ("num_layers", "batch_size") if of else ():
        own = [of[OURS]] + [of["%d x %s" % (times, name)] for times in (2, 3)]
        for field, kind in (("ratio", "time"), ("cpu_ratio", "CPU time")):
            costs = [getattr(row, field) for row in own]
            slope, start = np.polyfit([1, 2, 3], costs, 1)
            off = max(abs(start + slope * times - cost) / cost
                      for times, cost in enumerate(costs, 1))
            yield ("%s of a step = %.2f + %.2f x %s, both relative to the "
                   "first; off by at most %.1f %%" % (
                       kind, start, slope, name, 100 * off))


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
    return 2.0 * size ** 3 / min(times)


def machine():
    """One line about the machine and the versions."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines
                          if line.startswith("model name")), model)
    about = "%s, %d cores, Python %s" % (model, os.cpu_count(),
                                        platform.python_version())
    packages = ("tensorflow", "torch", "transformers", "datasets",
                "tokenizers")
    return ", ".join([about] + [
        "%s %s" % (name, sys.modules[name].__version__) for name in packages
        if name in sys.modules])


def table(rows):
    """The rows as a Markdown table."""
    lines = ["| stage | contender | rate | this suite against it, wall "
             "(spread) | CPU seconds | share of matrix-product rate | peak "
             "memory |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        share = "%.0f %%" % (100 * row.peak_share) if row.peak_share else ""
        memory = "%.0f MB" % row.megabytes if row.megabytes else ""
        lines.append("| %s | %s | %s %s | %.2f (%.2f to %.2f) | %.2f | %s | "
                     "%s |" % (
                         row.stage, row.contender, "{:,.4g}".format(row.rate)
                         if row.rate < 1000 else "{:,.0f}".format(row.rate),
                         row.unit, row.ratio, row.lowest, row.highest,
                         row.cpu_ratio, share, memory))
    return "\n".join(lines)


def write_csv(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Row._fields)
        writer.writerows(rows)


def draw(path, rows, title):
    """Bars of each stage's rates, one panel a stage; False: no matplotlib."""
    if not installed("matplotlib"):
        return False
    pyplot = pictures.load_pyplot("benchmark.py")
    stages = list(dict.fromkeys(row.stage for row in rows))
    figure, panels = pyplot.subplots(
        len(stages), 1, figsize=(8, 1.6 * len(stages) + 0.8), squeeze=False)
    for stage, panel in zip(stages, panels[:, 0]):
        own = [row for row in rows if row.stage == stage][::-1]
        bars = panel.barh([row.contender for row in own],
                          [row.rate for row in own],
                          color=["tab:blue" if row.contender.startswith(OURS)
                                 else "tab:gray" for row in own])
        for bar, row in zip(bars, own):
            panel.text(bar.get_width(), bar.get_y() + bar.get_height() / 2,
                       " {:,.3g}".format(row.rate), va="center")
        panel.set_title("%s (%s)" % (stage, own[0].unit), loc="left")
        panel.margins(x=0.15)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def main(_):
    settings = command_line.build(BenchmarkConfig, FLAGS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.ERROR)
    os.makedirs(settings.output_dir, exist_ok=True)
    needs_peak = {"step", "predict", "pipeline"} & set(settings.stage_names)
    peak = matmul_rate() if needs_peak else 0.0
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in settings.stage_names:
            rows += time_stage(name, list(
                benchmark_stages.STAGES[name](settings, work)),
                               settings.rounds, peak)
    about = machine()
    sys.stdout.write("%s\n\n%s\n" % (about, table(rows)))
    sys.stdout.write("".join("\n%s\n" % line for line in fits(rows)))
    if peak:
        sys.stdout.write("\nmatrix-product rate: %.0f GFLOP/s\n" %
                         (peak / 1e9))
    write_csv(os.path.join(settings.output_dir, "benchmark.csv"), rows)
    if not draw(os.path.join(settings.output_dir, "benchmark.png"), rows,
                about):
        sys.stdout.write("no picture: pip install -r "
                         "requirements-plots.txt\n")


if __name__ == "__main__":
    command_line.define(BenchmarkConfig)
    command_line.run(main)
