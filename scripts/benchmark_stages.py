# SPDX-License-Identifier: Apache-2.0
"""The contenders of the suite in each stage of benchmark.py."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

import squad
import tokenization
from common import files
from scripts import benchmark_contenders
from scripts.benchmark_contenders import REPOSITORY, Contender

OURS = "this suite"


# Each stage yields its contenders, ours first; `work` is a directory.


def _encode(settings):
    return tokenization.RobertaTokenizer(
        settings.vocab_file, settings.merges_file
    ).encode


def _tokenizer(settings, _):
    lines = benchmark_contenders.lines_of(settings.text_file)
    yield Contender(
        OURS,
        *benchmark_contenders.encoding_of(lines, lambda: _encode(settings)),
    )


def _cold(settings, work):
    lines = benchmark_contenders.cold_lines(settings, work)
    yield Contender(
        OURS,
        *benchmark_contenders.from_nothing(lines, lambda: _encode(settings)),
    )


def _data(settings, work):
    yield _building(OURS, settings, work, settings.text_megabytes)


def _growth(settings, work):
    for name, share in ((OURS, 1), ("a fiftieth of the text", 50)):
        yield _building(name, settings, work, settings.text_megabytes / share)


def _building(name, settings, work, megabytes):
    text = benchmark_contenders.grown_text(settings.text_file, work, megabytes)
    command = [
        sys.executable,
        str(REPOSITORY / "create_pretraining_data.py"),
        "--masking=dynamic",
        "--overwrite",
        "--input_file=" + text,
        f"--max_seq_length={settings.record_length}",
        "--vocab_file=" + settings.vocab_file,
        "--merges_file=" + settings.merges_file,
        "--output_file=" + os.path.join(work, "records"),
    ]

    def build():
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, benchmark_contenders.family_megabytes(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return peak

    return Contender(name, "MB/s", os.path.getsize(text) / 1e6, build)


def _features(settings, _):
    examples = squad.read_examples(settings.squad_file, True, False)
    tokenizer = tokenization.RobertaTokenizer(
        settings.vocab_file, settings.merges_file
    )

    def convert():
        return list(
            squad.convert_examples_to_features(
                examples, tokenizer, 384, 128, 64, True
            )
        )

    yield Contender(OURS, "features/s", len(convert()), convert)


# Factors of the stage scaling.
FACTORS = (0.5, 2)
SCALED = ("num_layers", "batch_size")


def _scaling(settings, _):
    yield Contender(OURS, "steps/s", 1, training_step(settings)[1])
    for name in SCALED:
        for factor in FACTORS:
            size = max(1, int(factor * getattr(settings, name)))
            scaled = dataclasses.replace(settings, **{name: size})
            yield Contender(
                f"{name}={size}", "steps/s", 1, training_step(scaled)[1]
            )


def _pipeline(settings, work):
    """Dynamically masked batches, and the step that consumes them."""
    records = dataclasses.replace(
        settings, record_length=settings.sequence_length
    )
    _building(OURS, records, work, settings.text_megabytes).call()
    steps = 200
    yield Contender(
        OURS,
        "sequences/s",
        steps * settings.batch_size,
        _feeding(settings, work, steps),
    )
    yield Contender(
        "training step",
        "sequences/s",
        settings.batch_size,
        training_step(settings)[1],
    )


def _feeding(settings, work, steps):
    """A call that takes `steps` batches from the input pipeline."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default():
        batch = _batches(settings, work)
        session = tf.Session()
    return lambda: [session.run(batch) for _ in range(steps)]


def _source(settings, work):
    from training import masked_lm_batches

    vocab_size = tokenization.RobertaTokenizer(
        settings.vocab_file, settings.merges_file
    ).vocab_size
    return masked_lm_batches.MaskedLmSource(
        os.path.join(work, "records"),
        masked_lm_batches.Settings(
            vocab_size=vocab_size,
            pad_token_id=1,
            max_seq_length=settings.sequence_length,
            max_predictions=settings.predictions,
        ),
    )


def _batches(settings, work):
    """{name: tensor} of the next masked batch of WORK/records."""
    import tensorflow.compat.v1 as tf

    from pretraining_data import records
    from training import input_pipeline, masked_lm_batches

    source = _source(settings, work)
    batches = masked_lm_batches.MaskedLmBatches(
        source,
        batch_size=settings.batch_size,
        seed=1,
        order=records.RecordOrder(source.shard_counts, 1, 100000),
    )
    return tf.data.make_one_shot_iterator(
        input_pipeline.dataset(batches, 0)
    ).get_next()


def _step(settings, _):
    yield Contender(OURS, "tokens/s", *training_step(settings))


def _bf16(settings, _):
    yield Contender(
        OURS + ", bf16", "tokens/s", *training_step(settings, use_bf16=True)
    )
    yield Contender(OURS, "tokens/s", *training_step(settings))


def _precision(settings, _):
    yield Contender(OURS, "tokens/s", *training_step(settings))
    yield Contender(
        OURS + ", fp16", "tokens/s", *training_step(settings, manual_fp16=True)
    )
    yield Contender(
        OURS + ", 2 micro-batches",
        "tokens/s",
        *training_step(settings, micro_batches=2),
    )


def _model_config(settings):
    import configuration

    return configuration.RobertaConfig(**benchmark_contenders.sizes(settings))


def training_spec(settings, device, micro_batches=1, features=None):
    """The EstimatorSpec of an update of masked-LM pre-training.

    Args:
      features: {name: tensor}; None takes one batch of random ids.
    """
    import tensorflow.compat.v1 as tf

    import run_pretraining
    from training import run_config, train_step

    run = run_config.RunConfig(
        output_dir=tempfile.gettempdir(),
        num_accumulation_steps=micro_batches,
        train_batch_size=settings.batch_size // micro_batches,
        learning_rate=benchmark_contenders.RATE,
    )
    config = _model_config(settings)
    losses = train_step.Losses(
        lambda features, is_training, seed: run_pretraining.masked_lm_sums(
            config,
            features,
            device.kernels,
            is_training=is_training,
            dropout_seed=seed,
        )[0],
        lambda features: tf.reduce_sum(features["masked_lm_weights"]),
    )
    features = features or {
        name: tf.constant(value)
        for name, value in benchmark_contenders.masked_batch(settings).items()
    }
    training = run_config.Training(
        config,
        run,
        device,
        benchmark_contenders.UPDATES,
        benchmark_contenders.WARM_UP,
    )
    return train_step.train_spec(losses, features, training)


def training_step(settings, micro_batches=1, **options):
    """(tokens, call, flops) of one update."""
    import tensorflow.compat.v1 as tf

    import environment

    device = environment.create(environment.DeviceConfig(**options))
    with tf.Graph().as_default():
        spec = training_spec(settings, device, micro_batches)
        session = tf.Session(config=device.session_config())
        session.run(tf.global_variables_initializer())
    tokens = settings.batch_size * settings.sequence_length
    return (
        tokens,
        lambda: session.run([spec.train_op, spec.loss]),
        3
        * _forward_flops(
            settings,
            tokens,
            settings.sequence_length,
            settings.batch_size * settings.predictions,
        ),
    )


def _forward_flops(settings, tokens, length, predictions):
    """Floating-point operations of the matrix products of a forward pass.

    The last layer computes keys and values of all tokens, and the rest for
    the predictions alone.
    """
    width = settings.hidden_size

    def layer(queries):
        return (
            2 * tokens * 2 * width * width
            + 2 * queries * 10 * width * width
            + 4 * queries * length * width
        )

    head = 2 * predictions * width * (settings.vocab_size + width)
    return (settings.num_layers - 1) * layer(tokens) + layer(predictions) + head


def _windows(settings, is_training):
    """--predict_features windows of 384 tokens, drawn at random."""
    examples = squad.read_examples(settings.squad_file, is_training, False)
    tokenizer = tokenization.RobertaTokenizer(
        settings.vocab_file, settings.merges_file
    )
    features = list(
        squad.convert_examples_to_features(
            examples, tokenizer, 384, 128, 64, is_training
        )
    )
    count = min(settings.predict_features, len(features))
    return [
        features[place]
        for place in np.random.RandomState(0).choice(
            len(features), count, replace=False
        )
    ]


def _packing(settings, _):
    """Training on the same windows packed, by length, and padded to 384."""
    import run_squad

    windows = _windows(settings, True)
    sequences = run_squad.sequences(run_squad.Data([], windows), True)
    tokens = int(sequences.lengths.sum())
    for name, options in (
        (OURS + ", packed", {"pack_sequences": True}),
        ("windows of similar lengths", {}),
        ("padded to 384", {"static": True}),
    ):
        call = _fine_tuning(settings, sequences, **options)
        yield Contender(name, "tokens/s", tokens, call)


def _fine_tuning(settings, sequences, pack_sequences=False, static=False):
    """A call that trains on all windows once."""
    import tensorflow.compat.v1 as tf

    import environment
    import run_squad
    from tasks import finetuning
    from training import input_pipeline, packed_batches, run_config, train_step

    plan = packed_batches.Plan(sequences.lengths, 384, 1)
    size = settings.batch_size
    run = run_config.RunConfig(
        output_dir=tempfile.gettempdir(),
        train_batch_size=plan.rows_of(size) if pack_sequences else size,
        max_seq_length=384,
        random_seed=1,
    )
    config = _model_config(settings)
    setup = finetuning.Setup(run, run, run_squad.SquadConfig(), config, None)
    device = environment.create(environment.DeviceConfig())
    batches = finetuning.train_batches(
        sequences, setup, device, plan if pack_sequences else None
    )
    if static:
        batches = input_pipeline.FeatureBatches(
            sequences,
            input_pipeline.LengthPools(
                sequences.lengths, batch_size=size, seed=1
            ),
            pad_token_id=config.pad_token_id,
            batch_size=size,
            max_length=384,
        )
    with tf.Graph().as_default():
        features = {
            name: tf.placeholder(spec.dtype, spec.shape)
            for name, spec in batches.specs.items()
        }
        model = run_squad.build_model(setup, device)
        spec = train_step.train_spec(
            train_step.Losses(model.losses, model.head.weight),
            features,
            run_config.Training(config, run, device, 1000, 1),
        )
        session = tf.Session(config=device.session_config())
        session.run(tf.global_variables_initializer())
    count = plan.rows if pack_sequences else len(sequences.lengths)

    def train():
        for step in range(-(-count // run.train_batch_size)):
            batch = batches.make(step)
            session.run(
                spec.train_op,
                {tensor: batch[name] for name, tensor in features.items()},
            )

    return train


def _predict(settings, _):
    """Batches of similar length, also in bfloat16, and padded to 384."""
    features = _windows(settings, False)
    tokens = sum(feature.length for feature in features)
    for name, options in _options().items():
        yield Contender(
            name,
            "tokens/s",
            tokens,
            _prediction(settings, features, None, **options),
        )
    yield Contender(
        "padded to 384",
        "tokens/s",
        tokens,
        _prediction(settings, features, 384),
    )


def _prediction(settings, features, max_length, **options):
    """A call that runs all features through the model."""
    import tensorflow.compat.v1 as tf

    import environment
    import modeling
    from training import input_pipeline

    device = environment.create(environment.DeviceConfig(**options))
    config = _model_config(settings)
    order = input_pipeline.LongestFirst(
        [feature.length for feature in features], settings.batch_size
    )
    batches = input_pipeline.FeatureBatches(
        input_pipeline.Sequences(
            lambda index: features[index].input_ids, lengths=None
        ),
        order,
        max_length=max_length,
        pad_token_id=config.pad_token_id,
        batch_size=settings.batch_size,
    )
    with tf.Graph().as_default():
        input_ids = tf.placeholder(tf.int32, [None, None])
        model = modeling.RobertaModel(
            config, False, input_ids, kernels=device.kernels
        )
        logits = modeling.squad_logits(config, model.get_sequence_output())
        session = tf.Session(config=device.session_config())
        session.run(tf.global_variables_initializer())
    return lambda: [
        session.run(logits, {input_ids: batches.make(step)["input_ids"]})
        for step in range(order.steps)
    ]


# --- Answers and time to a loss ---------------------------------------------


def _options():
    """{contender: options of a device} of those that TensorFlow has."""
    import environment
    from common import errors

    options = {OURS: {}, OURS + ", bf16": {"use_bf16": True}}
    try:
        environment.create(environment.DeviceConfig(use_bf16=True))
    except errors.UserError:
        del options[OURS + ", bf16"]
    return options


def _answers(settings, work):
    """Questions to answers: features, logits, decoding."""
    from inference import predictor, trained_model
    from weights import conversion

    model = settings.model or _untrained(settings, work)
    conversion.convert(
        "tf",
        "hf",
        conversion.ConvertConfig(
            trained_model.find(model).checkpoint, os.path.join(work, "hf")
        ),
        lambda line: None,
    )
    examples = benchmark_contenders.questions(settings)
    for name, path, options in _engines(model, work):
        engine = predictor.Predictor(
            path,
            "answer",
            predictor.Settings(
                version_2_with_negative=False,
                **benchmark_contenders.WINDOW,
                **options,
            ),
        )

        def answer(engine=engine):
            return benchmark_contenders.agreement(
                [result["answer"] for result in engine.answer_all(examples)],
                work,
            )

        yield Contender(name, "questions/s", len(examples), answer)


def _untrained(settings, work):
    """A directory with a SQuAD model of random weights."""
    import tensorflow.compat.v1 as tf

    import modeling

    folder = os.path.join(work, "model")
    os.mkdir(folder)
    config = _model_config(settings)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        ids = tf.placeholder(tf.int32, [None, None])
        model = modeling.RobertaModel(config, False, ids)
        modeling.squad_logits(config, model.get_sequence_output())
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, os.path.join(folder, "model.ckpt-1"))
    files.write_text(
        os.path.join(folder, "config.json"),
        json.dumps(
            dict(
                benchmark_contenders.sizes(settings),
                model_type="roberta",
                max_position_embeddings=514,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
            )
        ),
    )
    shutil.copy(settings.vocab_file, os.path.join(folder, "vocab.json"))
    shutil.copy(settings.merges_file, os.path.join(folder, "merges.txt"))
    return folder


def _engines(model, work):
    """(name, path, options of predictor.Settings) of each."""
    for name, options in _options().items():
        yield name, model, options
    if all(map(importlib.util.find_spec, ("onnxruntime", "tf2onnx"))):
        from inference import exporting, quantization, trained_model

        path = os.path.join(work, "onnx", "{}.onnx").format
        os.mkdir(os.path.join(work, "onnx"))
        trained = trained_model.find(model)
        exporting.export(trained, "squad", "onnx", path("float32"))
        quantization.write_int8(path("float32"), path("int8"))
        for kind in ("float32", "int8"):
            yield f"{OURS}, ONNX Runtime {kind}", path(kind), {}


def _time_to_loss(settings, work):
    """Pre-training on nine tenths of the text; the loss of the last tenth."""
    lines = benchmark_contenders.lines_of(settings.text_file)
    end = len(lines) * 9 // 10
    for name, part in (("held_out", lines[end:]), ("", lines[:end])):
        folder = os.path.join(work, name)
        os.makedirs(folder, exist_ok=True)
        text = os.path.join(folder, "text.txt")
        files.write_text(text, "\n".join(part) + "\n")
        changes = dict(text_file=text, record_length=settings.sequence_length)
        built = dataclasses.replace(settings, **changes)
        _building(OURS, built, folder, 0).call()
    source = _source(settings, os.path.join(work, "held_out"))
    count = min(len(source), 256)
    values = source.masked(range(count), np.zeros(count, np.int64), seed=1)
    for name, value in values.items():
        kind = np.float32 if name == "masked_lm_weights" else np.int32
        values[name] = value.astype(kind)
    np.savez(benchmark_contenders.held_out(work), **values)
    for name, options in _options().items():
        yield _training(settings, work, options)._replace(name=name)


def _training(settings, work, options):
    """The contender that trains on WORK/records."""
    import tensorflow.compat.v1 as tf

    import environment
    import run_pretraining

    device = environment.create(environment.DeviceConfig(**options))
    values = dict(np.load(benchmark_contenders.held_out(work)))
    with tf.Graph().as_default():
        spec = training_spec(
            settings, device, features=_batches(settings, work)
        )
        inputs = {
            name: tf.placeholder(value.dtype, (None,) + value.shape[1:])
            for name, value in values.items()
        }
        with tf.variable_scope("", reuse=True):
            sums, _, _ = run_pretraining.masked_lm_sums(
                _model_config(settings),
                inputs,
                device.kernels,
                is_training=False,
            )
        session = tf.Session(config=device.session_config())
        session.run(tf.global_variables_initializer())

    def loss():
        size = settings.batch_size
        total = sum(
            session.run(
                sums["loss"],
                {
                    inputs[name]: value[start : start + size]
                    for name, value in values.items()
                },
            )
            for start in range(0, len(values["input_ids"]), size)
        )
        return total / values["masked_lm_weights"].sum()

    return benchmark_contenders.trains(
        settings, lambda: session.run(spec.train_op), loss
    )


STAGES = {
    "tokenizer": _tokenizer,
    "cold": _cold,
    "data": _data,
    "growth": _growth,
    "features": _features,
    "pipeline": _pipeline,
    "step": _step,
    "bf16": _bf16,
    "precision": _precision,
    "scaling": _scaling,
    "predict": _predict,
    "packing": _packing,
    "answers": _answers,
    "time_to_loss": _time_to_loss,
}
_MODEL = "{num_layers} layers, H {hidden_size}, V {vocab_size:,}"
_BATCH = _MODEL + ", {batch_size} x {sequence_length}, {predictions} masked"
_BUILT = (
    "{text_megabytes:g} MB of text to dynamic records of "
    "{record_length}, all cores, with start-up"
)
# What a stage measures, as a format of the settings.
TITLES = {
    "tokenizer": "Tokenizer, warm, one thread",
    "cold": "Tokenizer from nothing, {cold_megabytes:g} MB of text",
    "data": "Building: " + _BUILT,
    "growth": "Building from {text_megabytes:g} MB of text and from a fiftieth",
    "features": "SQuAD features, 384 / 128, one core",
    "pipeline": "Input pipeline and training step, " + _BATCH,
    "step": "Training step, " + _BATCH,
    "bf16": "Training step in bfloat16, " + _BATCH,
    "precision": "Training step in other ways, " + _BATCH,
    "scaling": "Training step of other sizes, " + _BATCH,
    "predict": "SQuAD prediction, 384 tokens, " + _MODEL,
    "packing": "SQuAD training, {batch_size} windows up to 384, " + _MODEL,
    "answers": "{questions} questions to answers, 384 tokens, " + _MODEL,
    "time_to_loss": "Held-out loss after {minutes:g} minutes, " + _BATCH,
}
