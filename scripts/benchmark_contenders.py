# SPDX-License-Identifier: Apache-2.0
"""The contenders of benchmark.py, in its own process or in another one.

Imports no TensorFlow: peers run where it is not installed.
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

import squad
from common import errors, files

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


class Run(typing.NamedTuple):
    """Time and memory of one call."""

    seconds: float
    cpu_seconds: float  # of its process and of finished child processes
    megabytes: float = 0.0  # peak of the watched processes
    result: str = ""  # of the computation, in words


class Contender(typing.NamedTuple):
    """Something that is timed: a call that does `amount` units of work.

    A call that runs in another process returns a Run; one that starts
    processes returns their peak memory in megabytes; a str is a result.
    """

    name: str
    unit: str
    amount: float
    call: typing.Callable[[], typing.Any]
    flops: float = 0.0  # floating-point operations of a call
    versions: typing.Dict[str, str] = {}  # of the packages it uses


def timed(call: typing.Callable[[], typing.Any]) -> Run:
    """Calls and measures."""
    cpu, start = _cpu_seconds(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    if isinstance(result, Run):
        return result
    return Run(
        seconds,
        _cpu_seconds() - cpu,
        result if isinstance(result, float) else 0.0,
        result if isinstance(result, str) else "",
    )


def _cpu_seconds():
    usages = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# --- Contenders in their own processes --------------------------------------


class PeerProcess:
    """A process of benchmark_peers.py, which runs its contender on demand."""

    def __init__(
        self,
        python: str,
        stage: str,
        name: str,
        settings: typing.Dict[str, typing.Any],
        work: str,
        is_watched: bool = False,
    ):
        """Starts the process.

        Args:
          python: the interpreter.
          stage, name: of benchmark_peers.PEERS.
          settings: the fields of benchmark.BenchmarkConfig.
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
        self._about = self._answer()
        # What the contender needs and lacks, "" if nothing.
        self.missing: str = self._about.get("missing", "")

    @property
    def contender(self) -> typing.Optional[Contender]:
        """The Contender, None where something that it needs is missing."""
        if self.missing:
            return None
        return Contender(self._name, call=self._run, **self._about)

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
                f"the peer {self._name} failed: {reason[-1]}; fix it, or "
                "choose other stages with --stages"
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()


def serve(make_contender: typing.Callable[[], Contender]) -> None:
    """Runs in the peer's process: writes the contender, a Run for each line.

    Args:
      make_contender: raises ImportError where a package is not installed.
    """
    # What the peers print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        contender = make_contender()
    except ImportError as error:
        answer({"missing": str(error) or type(error).__name__})
        return
    fields = ("unit", "amount", "flops", "versions")
    answer({field: getattr(contender, field) for field in fields})
    for _ in sys.stdin:
        answer(timed(contender.call))


def versions(*modules: typing.Any) -> typing.Dict[str, str]:
    """The versions of imported modules by name."""
    return {module.__name__: module.__version__ for module in modules}


# --- Memory -----------------------------------------------------------------


def family_megabytes(process_id: int) -> float:
    """Memory of a process and its descendants; 0 where this is not Linux."""
    return sum(map(_megabytes, _family(process_id)))


def _family(process_id):
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
    """Memory of a process; shared pages count in proportion."""
    try:
        with open(f"/proc/{process_id}/smaps_rollup") as stream:
            sizes = re.findall(r"^Pss: +(\d+)", stream.read(), re.MULTILINE)
    except OSError:  # it has ended, or this is not Linux
        return 0.0
    return sum(map(int, sizes)) / 1e3


# --- Text -------------------------------------------------------------------


_LETTERS = ("aeiou", "bcdfghjklmnpqrstvwxyz")


def grown_text(path: str, work: str, megabytes: float) -> str:
    """Writes a file of about this size: the text of `path`, repeated.

    Tokenizers that cache words are fast on repeated ones, so each repetition
    respells the words that occur once in `path`: vowels become other vowels,
    consonants other consonants. New words then keep coming as they do in
    `path`, faster than in a real text of that size.

    Args:
      path: text.
      work: directory of the file.
      megabytes: 0 writes the text once.

    Returns:
      The path of the file; an existing one is reused.
    """
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    times = max(1, round(megabytes * 1e6 / len(text.encode("utf-8"))))
    grown = os.path.join(work, f"text_{times}.txt")
    if os.path.exists(grown):
        return grown
    pieces = re.split(r"([A-Za-z]+)", text)
    counts = collections.Counter(pieces[1::2])
    rare = {
        place: word
        for place, word in enumerate(pieces)
        if place % 2 and counts[word] == 1
    }
    with open(grown, "w", encoding="utf-8") as stream:
        stream.write(text + "\n\n")
        for number in range(1, times):
            letters = _respelling(number)
            for place, word in rare.items():
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


Encode = typing.Callable[[str], typing.Any]
Work = typing.Tuple[str, float, typing.Callable[[], typing.Any]]


def lines_of(path: str) -> typing.List[str]:
    """The lines of a text that are not empty."""
    with open(path, encoding="utf-8") as text:
        return [line.rstrip("\n") for line in text if line.strip()]


def encoding_of(
    lines: typing.List[str], new_encode: typing.Callable[[], Encode]
) -> Work:
    """(unit, megabytes, call) of encoding line by line with one encoder."""
    unit, megabytes, _ = from_nothing(lines, new_encode)
    encode = new_encode()
    return unit, megabytes, lambda: [encode(line) for line in lines]


def from_nothing(
    lines: typing.List[str], new_encode: typing.Callable[[], Encode]
) -> Work:
    """The same with a new encoder in each call."""
    megabytes = sum(len(line.encode("utf-8")) for line in lines) / 1e6

    def call():
        encode = new_encode()
        return [encode(line) for line in lines]

    return "MB/s", megabytes, call


def cold_lines(settings: typing.Any, work: str) -> typing.List[str]:
    """The lines of the stage cold."""
    return lines_of(
        grown_text(settings.text_file, work, settings.cold_megabytes)
    )


def masked_batch(settings: typing.Any) -> typing.Dict[str, np.ndarray]:
    """Random sequences without padding, with distinct masked positions."""
    generator = np.random.RandomState(0)
    size, length = settings.batch_size, settings.sequence_length
    count = min(settings.predictions, length)

    def ids(*shape):
        return generator.randint(4, settings.vocab_size - 1, shape).astype(
            np.int32
        )

    return {
        "input_ids": ids(size, length),
        "input_mask": np.ones((size, length), np.int32),
        "masked_lm_positions": np.stack(
            [
                np.sort(generator.choice(length, count, replace=False))
                for _ in range(size)
            ]
        ).astype(np.int32),
        "masked_lm_ids": ids(size, count),
        "masked_lm_weights": np.ones((size, count), np.float32),
    }


def sizes(settings: typing.Any) -> typing.Dict[str, int]:
    """A model's sizes by the names of BERT's and RoBERTa's configs."""
    width = settings.hidden_size
    return {
        "vocab_size": settings.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }


# --- Answers ----------------------------------------------------------------


# Of all contenders of the stage answers.
WINDOW = {
    "max_seq_length": 384,
    "doc_stride": 128,
    "max_query_length": 64,
    "max_answer_length": 30,
}


def questions(settings: typing.Any) -> typing.List[squad.Example]:
    """The questions of the stage answers."""
    examples = squad.read_examples(settings.squad_file, False, False)
    count = min(settings.questions, len(examples))
    places = np.random.RandomState(0).choice(
        len(examples), count, replace=False
    )
    return [examples[place] for place in places]


def agreement(answers: typing.List[str], work: str) -> str:
    """How many answers are those of the contender that answered first."""
    path = os.path.join(work, "answers.json")
    if not os.path.exists(path):
        files.write_text(path, json.dumps({"answers": answers}))
    same = sum(map(str.__eq__, answers, files.read_json(path)["answers"]))
    return f"{same} of {len(answers)} answers the same"


# --- Training for a fixed time ----------------------------------------------


# Updates of the warm-up and of the whole schedule of the learning rate.
WARM_UP, UPDATES, RATE = 10, 1000000, 1e-4


def held_out(work: str) -> str:
    """The file of the masked sequences that time_to_loss does not train on."""
    return os.path.join(work, "held_out.npz")


def trains(
    settings: typing.Any,
    update: typing.Callable[[], typing.Any],
    loss: typing.Callable[[], float],
) -> Contender:
    """A contender that trains in slices of time, a slice each call.

    Its seconds are those of an update: the loss is computed beside the clock.
    """
    seconds = 60.0 * settings.minutes / (settings.rounds + 1)
    updates = 0

    def call():
        nonlocal updates
        before, cpu, start = updates, _cpu_seconds(), time.perf_counter()
        while updates == before or time.perf_counter() - start < seconds:
            update()
            updates += 1
        count = updates - before
        wall = (time.perf_counter() - start) / count
        cpu = (_cpu_seconds() - cpu) / count
        return Run(wall, cpu, result=f"loss {loss():.3f}, {updates} updates")

    return Contender("", "updates/s", 1, call)
