# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py times: each stage of the suite, and peers beside it."""
import dataclasses
import glob
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing

import numpy as np

import squad
import tokenization

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
OURS = "this suite"


class Contender(typing.NamedTuple):
    """Something that is timed: a call that does `amount` units of work.

    A call that starts processes returns the most megabytes they had at once.
    """
    name: str
    unit: str
    amount: float
    call: typing.Callable
    flops: float = 0.0  # floating-point operations of a call


def installed(name):
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
    if settings.peers and installed("tokenizers"):
        peer = _hugging_face_tokenizer(settings)
        yield Contender("tokenizers", "MB/s", megabytes,
                        every_line(lambda line: peer.encode(line).ids))
    if settings.peers and installed("tiktoken"):
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
    text = _repeated(settings, work, settings.text_megabytes)
    yield _building(OURS, settings, work, text)
    if settings.peers and installed("datasets"):
        yield Contender("datasets", "MB/s", os.path.getsize(text) / 1e6,
                        lambda: _build_with_datasets(settings, text, work))


def _growth(settings, work):
    """As _data, from all of the text and from a fiftieth."""
    for name, share in ((OURS, 1), ("a fiftieth of the text", 50)):
        yield _building(name, settings, work, _repeated(
            settings, work, settings.text_megabytes / share))


def _repeated(settings, work, megabytes):
    """A file of the text, again and again, until it is so large."""
    with open(settings.text_file, "rb") as stream:
        text = stream.read()
    times = max(1, round(megabytes * 1e6 / len(text)))
    path = os.path.join(work, "text_%d.txt" % times)
    with open(path, "wb") as stream:
        for _ in range(times):
            stream.write(text + b"\n\n")
    return path


def _building(name, settings, work, text):
    command = [sys.executable, str(REPOSITORY / "create_pretraining_data.py"),
               "--masking=dynamic", "--overwrite", "--input_file=" + text,
               "--max_seq_length=%d" % settings.record_length,
               "--vocab_file=" + settings.vocab_file,
               "--merges_file=" + settings.merges_file,
               "--output_file=" + os.path.join(work, "records")]

    def build():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, sum(map(_megabytes, _family(process.pid))))
            time.sleep(0.1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return peak

    return Contender(name, "MB/s", os.path.getsize(text) / 1e6, build)


def _family(process_id):
    """A process and those that it started, as far as Linux tells."""
    yield process_id
    for path in glob.glob("/proc/%d/task/*/children" % process_id):
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
        with open("/proc/%d/smaps_rollup" % process_id) as lines:
            return sum(int(line.split()[1]) for line in lines
                       if line.startswith("Pss:")) / 1e3
    except OSError:  # it has ended, or this is not Linux
        return 0.0


def _build_with_datasets(settings, text, work):
    """Tokenized and written by Hugging Face's datasets, on all cores."""
    import datasets
    tokenizer = _hugging_face_tokenizer(settings)
    lines = datasets.Dataset.from_dict({"text": _lines(text)})
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
    if settings.peers and installed("transformers"):
        import transformers
        peer = transformers.RobertaTokenizerFast(settings.vocab_file,
                                                 settings.merges_file)
        pairs = [[getattr(example, field) for example in examples]
                 for field in ("question", "context")]
        yield Contender("transformers", "features/s", count, lambda: peer(
            *pairs, truncation="only_second", max_length=384, stride=128,
            return_overflowing_tokens=True, return_offsets_mapping=True))


def _scaling(settings, _):
    """Steps of one, two and three times the layers, and the sequences."""
    yield Contender(OURS, "steps/s", 1, _our_step(settings)[1])
    for name in ("num_layers", "batch_size"):
        for times in (2, 3):
            larger = dataclasses.replace(
                settings, **{name: times * getattr(settings, name)})
            yield Contender("%d x %s" % (times, name), "steps/s", 1,
                            _our_step(larger)[1])


def _pipeline(settings, work):
    """Batches with masks newly drawn, and the step that consumes them."""
    text = _repeated(settings, work, settings.text_megabytes)
    records = dataclasses.replace(settings,
                                  record_length=settings.sequence_length)
    _building(OURS, records, work, text).call()
    steps = 200
    yield Contender(OURS, "sequences/s", steps * settings.batch_size,
                    _feeding(settings, work, steps))
    yield Contender("training step", "sequences/s", settings.batch_size,
                    _our_step(settings)[1])


def _feeding(settings, work, steps):
    """A call that takes so many batches from the input pipeline."""
    import tensorflow.compat.v1 as tf
    import input_pipeline
    import records
    vocab_size = tokenization.RobertaTokenizer(
        settings.vocab_file, settings.merges_file).vocab_size
    source = input_pipeline.MaskedLmSource(
        os.path.join(work, "records"), vocab_size=vocab_size, pad_token_id=1,
        max_seq_length=settings.sequence_length,
        max_predictions=settings.predictions)
    batches = input_pipeline.MaskedLmBatches(
        source, batch_size=settings.batch_size, seed=1,
        order=records.RecordOrder(source.shard_counts, 1, 100000))
    with tf.Graph().as_default():
        batch = tf.data.make_one_shot_iterator(
            input_pipeline.dataset(batches, 0)).get_next()
        session = tf.Session()
    return lambda: [session.run(batch) for _ in range(steps)]


def _step(settings, _):
    """Training steps of the masked language model."""
    yield Contender(OURS, "tokens/s", *_our_step(settings))
    yield Contender(OURS + ", fp16", "tokens/s", *_our_step(
        settings, manual_fp16=True))
    yield Contender(OURS + ", 2 micro-batches", "tokens/s", *_our_step(
        settings, micro_batches=2))
    if (settings.peers and installed("torch")
            and installed("transformers")):
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
        examples, tokenizer, 384, 128, 64, False))
    count = min(settings.predict_features, len(features))
    features = [features[place] for place in np.random.RandomState(0).choice(
        len(features), count, replace=False)]
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


STAGES = {"tokenizer": _tokenizer, "data": _data, "growth": _growth,
          "features": _features, "pipeline": _pipeline, "step": _step,
          "scaling": _scaling, "predict": _predict}
