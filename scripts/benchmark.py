#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times every stage of the suite, and peers beside it, in one run.

    python scripts/benchmark.py --output_dir=benchmark
    python scripts/benchmark.py --peers --stages=tokenizer,features

Contenders of a stage take turns, round by round, so that a machine that
slows down slows them all; the median of the rounds counts. Prints a table,
writes benchmark.csv and, where matplotlib is installed, benchmark.png.

Peers are timed where they import: tokenizers, tiktoken, transformers (with
PyTorch), datasets.
"""
import csv
import dataclasses
import os
import pathlib
import platform
import statistics
import subprocess
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

import command_line  # noqa: E402
import errors  # noqa: E402
import pictures  # noqa: E402
import squad  # noqa: E402
import tokenization  # noqa: E402

FLAGS = flags.FLAGS
DEMO = REPOSITORY / "demo"
OURS = "this suite"


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
    predictions: int = command_line.flag(
        20, "Masked positions of a sequence.", lower=1)

    def __post_init__(self):
        unknown = set(self.stage_names) - set(_STAGES)
        if unknown or not self.stage_names:
            raise errors.UserError(
                "--stages is %r; expected some of %s, comma separated" %
                (self.stages, ",".join(_STAGES)))
        if self.hidden_size % 64:
            raise errors.UserError(
                "--hidden_size is %d; expected a multiple of 64, the size of "
                "a head" % self.hidden_size)

    @property
    def stage_names(self):
        return [name for name in self.stages.split(",") if name]


class Contender(typing.NamedTuple):
    """Something that is timed: a call that does `amount` units of work."""
    name: str
    unit: str
    amount: float
    call: typing.Callable
    flops: float = 0.0  # floating-point operations of a call


def _installed(name):
    """The module, or None where it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        return None


# --- Stages: each yields its contenders, ours first; `work` is a directory --


def _tokenizer(settings, _):
    """Warm, one thread, line by line."""
    lines = _lines(settings.text_file)
    megabytes = sum(len(line.encode()) for line in lines) / 1e6
    ours = tokenization.RobertaTokenizer(settings.vocab_file,
                                         settings.merges_file)

    def every_line(encode):
        return lambda: [encode(line) for line in lines]

    yield Contender(OURS, "MB/s", megabytes, every_line(ours.encode))
    if settings.peers and _installed("tokenizers"):
        peer = _hugging_face_tokenizer(settings)
        yield Contender("tokenizers", "MB/s", megabytes,
                        every_line(lambda line: peer.encode(line).ids))
    if settings.peers and _installed("tiktoken"):
        yield Contender("tiktoken", "MB/s", megabytes, every_line(
            _tiktoken_encoding(settings, ours).encode_ordinary))


def _lines(path):
    with open(path, encoding="utf-8") as text:
        return [line.rstrip("\n") for line in text if line.strip()]


def _hugging_face_tokenizer(settings):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers
    return tokenizers.ByteLevelBPETokenizer(settings.vocab_file,
                                            settings.merges_file)


def _tiktoken_encoding(settings, ours):
    """The same vocabulary for tiktoken, ranked by the order of merges."""
    import tiktoken
    ranks = {bytes([byte]): byte for byte in range(256)}
    with open(settings.merges_file, encoding="utf-8") as merges:
        pairs = [line.split() for line in merges if " " in line
                 and not line.startswith("#version")]
    for left, right in pairs:
        token = ours.decode(ours.convert_tokens_to_ids([left + right]))
        ranks.setdefault(token.encode("utf-8", "surrogateescape"), len(ranks))
    pattern = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
               r"|\s+(?!\S)|\s+")
    return tiktoken.Encoding("roberta", pat_str=pattern, special_tokens={},
                             mergeable_ranks=ranks)


def _data(settings, work):
    """Text to dynamic records on all cores, start-up included."""
    megabytes = os.path.getsize(settings.text_file) / 1e6
    command = [sys.executable, str(REPOSITORY / "create_pretraining_data.py"),
               "--masking=dynamic", "--overwrite", "--max_seq_length=512",
               "--input_file=" + settings.text_file,
               "--vocab_file=" + settings.vocab_file,
               "--merges_file=" + settings.merges_file,
               "--output_file=" + os.path.join(work, "records")]

    def build():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    yield Contender(OURS, "MB/s", megabytes, build)
    if settings.peers and _installed("datasets"):
        yield Contender("datasets", "MB/s", megabytes,
                        lambda: _build_with_datasets(settings, work))


def _build_with_datasets(settings, work):
    """Tokenized and written by Hugging Face's datasets, on all cores."""
    import datasets
    tokenizer = _hugging_face_tokenizer(settings)
    lines = datasets.Dataset.from_dict({"text": _lines(settings.text_file)})
    datasets.disable_caching()
    lines.map(lambda batch: {"input_ids": [
        encoding.ids for encoding in tokenizer.encode_batch(batch["text"])]},
              batched=True, num_proc=os.cpu_count(),
              remove_columns=["text"]).save_to_disk(
                  os.path.join(work, "datasets"))


def _features(settings, _):
    """SQuAD windows at 384 tokens, stride 128, one core, warm."""
    examples = squad.read_examples(settings.squad_file, True, False)
    tokenizer = tokenization.RobertaTokenizer(settings.vocab_file,
                                              settings.merges_file)

    def convert():
        return list(squad.convert_examples_to_features(
            examples, tokenizer, 384, 128, 64, True))

    count = len(convert())
    yield Contender(OURS, "features/s", count, convert)
    if settings.peers and _installed("transformers"):
        import transformers
        peer = transformers.RobertaTokenizerFast(settings.vocab_file,
                                                 settings.merges_file)
        pairs = [[getattr(example, field) for example in examples]
                 for field in ("question", "context")]
        yield Contender("transformers", "features/s", count, lambda: peer(
            *pairs, truncation="only_second", max_length=384, stride=128,
            return_overflowing_tokens=True, return_offsets_mapping=True))


def _step(settings, _):
    """Training steps of the masked language model."""
    yield Contender(OURS, "tokens/s", *_our_step(settings))
    yield Contender(OURS + ", fp16", "tokens/s", *_our_step(
        settings, manual_fp16=True))
    yield Contender(OURS + ", 2 micro-batches", "tokens/s", *_our_step(
        settings, micro_batches=2))
    if (settings.peers and _installed("torch")
            and _installed("transformers")):
        yield Contender("transformers", "tokens/s", *_torch_step(settings))


def _model_config(settings):
    import modeling
    width = settings.hidden_size
    return modeling.RobertaConfig(
        vocab_size=settings.vocab_size, hidden_size=width,
        num_hidden_layers=settings.num_layers, intermediate_size=4 * width,
        num_attention_heads=width // 64)


def _masked_batch(settings):
    """Random sequences without padding, every position of a mask different."""
    random = np.random.RandomState(0)
    size, length = settings.batch_size, settings.sequence_length
    count = min(settings.predictions, length)

    def ids(*shape):
        return random.randint(4, settings.vocab_size - 1, shape).astype(
            np.int32)

    return {"input_ids": ids(size, length),
            "input_mask": np.ones((size, length), np.int32),
            "masked_lm_positions": np.stack([np.sort(random.choice(
                length, count, replace=False)) for _ in range(size)]).astype(
                    np.int32),
            "masked_lm_ids": ids(size, count),
            "masked_lm_weights": np.ones((size, count), np.float32)}


def _our_step(settings, micro_batches=1, **options):
    """(tokens, call, flops) of one update."""
    import tensorflow.compat.v1 as tf
    import environment
    import progress
    import run_pretraining
    import training
    device = environment.create(environment.DeviceConfig(**options))
    run = training.RunConfig(
        output_dir=tempfile.gettempdir(), num_accumulation_steps=micro_batches,
        train_batch_size=settings.batch_size // micro_batches)
    config = _model_config(settings)
    losses = training.Losses(
        lambda features, is_training, seed: run_pretraining.masked_lm_sums(
            config, features, device.kernels, is_training=is_training,
            dropout_seed=seed)[0],
        lambda features: tf.reduce_sum(features["masked_lm_weights"]))
    with tf.Graph().as_default():
        features = {name: tf.constant(value) for name, value
                    in _masked_batch(settings).items()}
        spec = training.train_spec(
            losses, features, config=config, run=run, device=device,
            num_train_steps=1000000, num_warmup_steps=10, init_checkpoint="",
            save_timer=progress.SaveTimer())
        session = tf.Session(config=device.session_config())
        session.run(tf.global_variables_initializer())
    tokens = settings.batch_size * settings.sequence_length
    return (tokens, lambda: session.run([spec.train_op, spec.loss]),
            3 * _forward_flops(settings, tokens, settings.sequence_length,
                               settings.batch_size * settings.predictions))


def _forward_flops(settings, tokens, length, predictions=0):
    """Floating-point operations of the matrix products of a forward pass."""
    width = settings.hidden_size
    layer = 2 * tokens * 12 * width * width + 4 * tokens * length * width
    head = 2 * predictions * width * (settings.vocab_size + width)
    return settings.num_layers * layer + head


def _torch_step(settings):
    """(tokens, call) of one update of Hugging Face's RobertaForMaskedLM."""
    import torch
    import transformers
    batch = _masked_batch(settings)
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(
        **dict(_model_config(settings).to_dict(), vocab_size=settings.
               vocab_size)))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4,
                                  betas=(0.9, 0.98), eps=1e-6)
    labels = np.full_like(batch["input_ids"], -100)
    np.put_along_axis(labels, batch["masked_lm_positions"],
                      batch["masked_lm_ids"], axis=1)
    inputs = {"input_ids": torch.tensor(batch["input_ids"]).long(),
              "labels": torch.tensor(labels).long()}

    def update():
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return batch["input_ids"].size, update


def _predict(settings, _):
    """SQuAD logits at 384 tokens: batches of like length, and all padded."""
    examples = squad.read_examples(settings.squad_file, False, False)
    tokenizer = tokenization.RobertaTokenizer(settings.vocab_file,
                                              settings.merges_file)
    features = list(squad.convert_examples_to_features(
        examples, tokenizer, 384, 128, 64, False))[:128]
    tokens = sum(feature.length for feature in features)
    yield Contender(OURS, "tokens/s", tokens, _prediction(
        settings, features, None))
    yield Contender("padded to 384", "tokens/s", tokens, _prediction(
        settings, features, 384))


def _prediction(settings, features, max_length):
    """A call that runs all features through the model."""
    import tensorflow.compat.v1 as tf
    import environment
    import input_pipeline
    import modeling
    device = environment.create(environment.DeviceConfig())
    config = _model_config(settings)
    batches = input_pipeline.FeatureBatches(
        lambda index: features[index].input_ids, {}, max_length=max_length,
        pad_token_id=config.pad_token_id, batch_size=settings.batch_size)
    steps = batches.predict_all([feature.length for feature in features])
    with tf.Graph().as_default():
        input_ids = tf.placeholder(tf.int32, [None, None])
        model = modeling.RobertaModel(config, False, input_ids,
                                      kernels=device.kernels)
        logits = modeling.squad_logits(config, model.get_sequence_output())
        session = tf.Session(config=device.session_config())
        session.run(tf.global_variables_initializer())
    return lambda: [session.run(logits, {input_ids: batches(step)[0]})
                    for step in range(steps)]


_STAGES = {"tokenizer": _tokenizer, "data": _data, "features": _features,
           "step": _step, "predict": _predict}


# --- Timing and output ------------------------------------------------------


class Row(typing.NamedTuple):
    """One line of the table."""
    stage: str
    contender: str
    rate: float  # units a second, the median
    unit: str
    ratio: float  # ours against it: the median over rounds
    peak_share: float  # of the machine's matrix-product rate, 0 if unknown


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
    seconds = {contender.name: [] for contender in contenders}
    bar = tqdm.tqdm(total=(rounds + 1) * len(contenders), desc=stage,
                    unit="run", leave=False)
    for number in range(rounds + 1):
        turn = contenders[::-1] if number % 2 else contenders
        for contender in turn:
            start = time.perf_counter()
            contender.call()
            if number:
                seconds[contender.name].append(time.perf_counter() - start)
            bar.update()
    bar.close()
    ours = seconds[contenders[0].name]
    rows = []
    for contender in contenders:
        times = seconds[contender.name]
        middle = statistics.median(times)
        ratio = statistics.median(
            other * contenders[0].amount / (own * contender.amount)
            for own, other in zip(ours, times))
        rows.append(Row(stage, contender.name, contender.amount / middle,
                        contender.unit, ratio,
                        contender.flops / middle / peak if peak else 0.0))
    return rows


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
    import tensorflow.compat.v1 as tf
    return "%s, %d cores, Python %s, TensorFlow %s" % (
        model, os.cpu_count(), platform.python_version(), tf.__version__)


def table(rows):
    """The rows as a Markdown table."""
    lines = ["| stage | contender | rate | this suite against it | share of "
             "matrix-product rate |", "|---|---|---|---|---|"]
    for row in rows:
        share = "%.0f %%" % (100 * row.peak_share) if row.peak_share else ""
        lines.append("| %s | %s | %s %s | %.2f | %s |" % (
            row.stage, row.contender, "{:,.4g}".format(row.rate)
            if row.rate < 1000 else "{:,.0f}".format(row.rate), row.unit,
            row.ratio, share))
    return "\n".join(lines)


def write_csv(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Row._fields)
        writer.writerows(rows)


def draw(path, rows, title):
    """Bars of each stage's rates, one panel a stage; False: no matplotlib."""
    if not _installed("matplotlib"):
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
    needs_peak = {"step", "predict"} & set(settings.stage_names)
    peak = matmul_rate() if needs_peak else 0.0
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in settings.stage_names:
            rows += time_stage(name, list(_STAGES[name](settings, work)),
                               settings.rounds, peak)
    about = machine()
    sys.stdout.write("%s\n\n%s\n" % (about, table(rows)))
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
