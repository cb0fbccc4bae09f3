# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py times, in its own process or in another one.

Imports no TensorFlow: peers run where there is none.
"""

import collections
import glob
import json
import os
import pathlib
import random
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
import typing

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY))

from common import errors  # noqa: E402


class Run(typing.NamedTuple):
    """What one call took."""

    seconds: float
    cpu_seconds: float  # of its process and those that this one waited for
    megabytes: float = 0.0  # most that the processes watched had at once


class Contender(typing.NamedTuple):
    """Something that is timed: a call that does `amount` units of work.

    A call that ran elsewhere returns a Run; one that starts processes
    returns the most megabytes they had at once.
    """

    name: str
    unit: str
    amount: float
    call: typing.Callable
    flops: float = 0.0  # floating-point operations of a call
    versions: dict = {}  # {package: version} of what it computes with


def timed(call):
    """The Run of a call."""
    cpu, start = _cpu_seconds(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    if isinstance(result, Run):
        return result
    return Run(
        seconds,
        _cpu_seconds() - cpu,
        result if isinstance(result, float) else 0.0,
    )


def _cpu_seconds():
    usages = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# --- Contenders in processes of their own -----------------------------------


class PeerProcess:
    """benchmark_peers.py at work: runs its contender when told to."""

    def __init__(self, python, stage, name, settings, work, is_watched=False):
        """
        Args:
          python: the interpreter.
          stage, name: what of benchmark_peers.PEERS to run.
          settings: {name: value} of benchmark.BenchmarkConfig.
          work: directory for files.
          is_watched: whether memory is measured, at some cost.

        Raises:
          errors.UserError: the peer failed.
        """
        self._name, self._is_watched = name, is_watched
        self._errors = tempfile.TemporaryFile(mode="w+")
        self._process = subprocess.Popen(
            [
                python,
                str(REPOSITORY / "scripts" / "benchmark_peers.py"),
                stage,
                name,
                json.dumps(settings),
                work,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            universal_newlines=True,
        )
        self.about = self._answer()

    @property
    def contender(self):
        """The Contender, None where its packages are not installed."""
        return self.about and Contender(
            self._name, call=self._run, **self.about
        )

    def _run(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        peak = 0.0
        while (
            self._is_watched
            and not select.select([self._process.stdout], [], [], 0.1)[0]
        ):
            peak = max(peak, family_megabytes(self._process.pid))
        return Run(*self._answer())._replace(megabytes=peak)

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            reason = self._errors.read().strip().splitlines() or ["no message"]
            raise errors.UserError(
                f"the peer {self._name} failed: {reason[-1]}; mend it, or name "
                "other stages with --stages"
            )
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()


def serve(contender):
    """The other side: answers what it is, then a Run to each line.

    Args:
      contender: function giving a Contender; ImportError: not installed.
    """
    # What the peers print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        made = contender()
    except ImportError:
        answer(None)
        return
    answer(
        {
            field: getattr(made, field)
            for field in ("unit", "amount", "flops", "versions")
        }
    )
    for _ in sys.stdin:
        answer(timed(made.call))


def versions(*modules):
    """{name: version} of imported modules."""
    return {module.__name__: module.__version__ for module in modules}


# --- Memory -----------------------------------------------------------------


def family_megabytes(process_id):
    """Memory of a process and of those that it started."""
    return sum(map(_megabytes, _family(process_id)))


def _family(process_id):
    """A process and those that it started, as far as Linux tells."""
    yield process_id
    for path in glob.glob(f"/proc/{process_id}/task/*/children"):
        try:
            with open(path) as stream:
                children = stream.read().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from _family(int(child))


def _megabytes(process_id):
    """Memory of a process; of what it shares with others its part alone."""
    try:
        with open(f"/proc/{process_id}/smaps_rollup") as lines:
            return (
                sum(
                    int(line.split()[1])
                    for line in lines
                    if line.startswith("Pss:")
                )
                / 1e3
            )
    except OSError:  # it has ended, or this is not Linux
        return 0.0


# --- Text -------------------------------------------------------------------


_LETTERS = ("aeiou", "bcdfghjklmnpqrstvwxyz")


def grown_text(path, work, megabytes):
    """A file of about so much text: the text of `path`, again and again.

    Repeated words are cheap for whoever keeps them, so each repetition spells
    the words that stand once in `path` anew: vowels become other vowels,
    consonants other consonants. New words then keep coming as they do in
    `path`, faster than in a real text of that size.

    Args:
      path: text.
      work: directory of the file.
      megabytes: 0 takes the text once.

    Returns:
      The path of the file; written once.
    """
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    times = max(1, round(megabytes * 1e6 / len(text.encode("utf-8"))))
    grown = os.path.join(work, f"text_{times}.txt")
    if os.path.exists(grown):
        return grown
    pieces = re.split(r"([A-Za-z]+)", text)
    counts = collections.Counter(pieces[1::2])
    rare = [
        place
        for place in range(1, len(pieces), 2)
        if counts[pieces[place]] == 1
    ]
    originals = [pieces[place] for place in rare]
    with open(grown, "w", encoding="utf-8") as stream:
        for number in range(times):
            if number:
                letters = _respelling(number)
                for place, word in zip(rare, originals):
                    pieces[place] = word.translate(letters)
            stream.write("".join(pieces) + "\n\n")
    return grown


def _respelling(number):
    """A permutation of vowels and one of consonants, for str.translate."""
    generator = random.Random(number)
    table = {}
    for letters in _LETTERS:
        others = "".join(generator.sample(letters, len(letters)))
        table.update(zip(letters + letters.upper(), others + others.upper()))
    return str.maketrans(table)


def lines_of(path):
    with open(path, encoding="utf-8") as text:
        return [line.rstrip("\n") for line in text if line.strip()]


def encoding_of(lines, encode):
    """(unit, megabytes, call) of encoding line by line."""
    return (
        "MB/s",
        sum(len(line.encode("utf-8")) for line in lines) / 1e6,
        lambda: [encode(line) for line in lines],
    )


def from_nothing(lines, new_encode):
    """The same with an encoder that is made anew in each call."""
    unit, megabytes, _ = encoding_of(lines, None)
    return unit, megabytes, lambda: encoding_of(lines, new_encode())[2]()


def cold_lines(settings, work):
    return lines_of(
        grown_text(settings.text_file, work, settings.cold_megabytes)
    )


def masked_batch(settings):
    """Random sequences without padding, every position of a mask different."""
    random = np.random.RandomState(0)
    size, length = settings.batch_size, settings.sequence_length
    count = min(settings.predictions, length)

    def ids(*shape):
        return random.randint(4, settings.vocab_size - 1, shape).astype(
            np.int32
        )

    return {
        "input_ids": ids(size, length),
        "input_mask": np.ones((size, length), np.int32),
        "masked_lm_positions": np.stack(
            [
                np.sort(random.choice(length, count, replace=False))
                for _ in range(size)
            ]
        ).astype(np.int32),
        "masked_lm_ids": ids(size, count),
        "masked_lm_weights": np.ones((size, count), np.float32),
    }


def sizes(settings):
    """A model's sizes by the names of BERT's and RoBERTa's configs."""
    width = settings.hidden_size
    return {
        "vocab_size": settings.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
