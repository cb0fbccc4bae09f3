# SPDX-License-Identifier: Apache-2.0
"""The model: reference numbers, padding, positions, precision, names."""

import json
import math
import typing

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import cpu_environment
import environment
import gpu_environment
import kernels as kernel_functions
import modeling
from common import errors
from device import Processes
from helpers.paths import GOLDEN
from kernels import Kernels

SMALL = dict(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=20,
)


def config_of(**changes):
    return configuration.RobertaConfig(**dict(SMALL, **changes))


def golden_config(name):
    return configuration.RobertaConfig.from_json_file(
        str(GOLDEN / name / "config.json")
    )


def expected(name):
    return np.load(str(GOLDEN / name / "expected.npz"))


class Golden(typing.NamedTuple):
    """A reference model in a session of its own."""

    session: tf.Session
    feeds: tuple
    outputs: dict

    def run(self, names, ids, mask=None):
        ids = np.asarray(ids)
        mask = np.asarray(ids != 1 if mask is None else mask)
        return self.session.run(
            [self.outputs[name] for name in names],
            dict(zip(self.feeds, (ids, mask.astype(np.int32)))),
        )


def kernels_of(device=cpu_environment.Cpu, **options):
    """What a device computes with."""
    return device(environment.DeviceConfig(**options), Processes()).kernels


def load_masked_lm(checkpoint, **options):
    """The masked LM with the kernels of a device."""
    config = golden_config("masked_lm")
    kernels = kernels_of(**options)
    with tf.Graph().as_default():
        feeds = tuple(tf.placeholder(tf.int32, [None, None]) for _ in "im")
        model = modeling.RobertaModel(config, False, *feeds, kernels=kernels)
        layers = [model.get_embedding_output()]
        layers += model.get_all_encoder_layers()
        outputs = {f"hidden_{i}": h for i, h in enumerate(layers)}
        outputs["last"] = model.get_sequence_output()
        logits = modeling.masked_lm_logits(
            config, model.get_rows(), model.get_embedding_table(), kernels
        )
        outputs["mlm_logits"] = tf.reshape(
            logits, tf.concat([tf.shape(feeds[0]), [-1]], axis=0)
        )
        session = tf.Session()
        tf.train.Saver().restore(session, checkpoint)
    return Golden(session, feeds, outputs)


@pytest.fixture(scope="module")
def masked_lm(golden_checkpoint):
    golden = load_masked_lm(golden_checkpoint("masked_lm"))
    yield golden
    golden.session.close()


# Reference numbers.


@pytest.mark.parametrize(
    "name, tolerance",
    [
        ("hidden_0", 1e-5),
        ("hidden_1", 1e-5),
        ("hidden_2", 1e-5),
        ("mlm_logits", 3e-5),
    ],
)  # logits reach 14
def test_masked_lm_equals_the_reference(masked_lm, name, tolerance):
    reference = expected("masked_lm")
    (found,) = masked_lm.run(
        [name], reference["input_ids"], reference["input_mask"]
    )
    visible = reference["input_mask"] > 0
    assert visible.sum() < visible.size  # the batch has padding
    np.testing.assert_allclose(
        found[visible], reference[name][visible], rtol=0, atol=tolerance
    )


def test_squad_logits_equal_the_reference(golden_checkpoint):
    reference = expected("question_answering")
    config = golden_config("question_answering")
    ids = tf.constant(reference["input_ids"], tf.int32)
    model = modeling.RobertaModel(config, False, ids)
    logits = modeling.squad_logits(config, model.get_sequence_output())
    with tf.Session() as session:
        tf.train.Saver().restore(
            session, golden_checkpoint("question_answering")
        )
        found = session.run(logits)
    visible = reference["input_mask"] > 0
    for name, values in zip(("start_logits", "end_logits"), found):
        np.testing.assert_allclose(
            values[visible], reference[name][visible], rtol=0, atol=1e-5
        )


def test_classification_logits_equal_the_reference(golden_checkpoint):
    reference = expected("sequence_classification")
    config = golden_config("sequence_classification")
    ids = tf.constant(reference["input_ids"], tf.int32)
    model = modeling.RobertaModel(config, False, ids)
    logits = modeling.classification_logits(
        config, model.get_sequence_output(), reference["logits"].shape[1]
    )
    with tf.Session() as session:
        tf.train.Saver().restore(
            session, golden_checkpoint("sequence_classification")
        )
        found = session.run(logits)
    np.testing.assert_allclose(found, reference["logits"], rtol=0, atol=1e-5)


HALVES = {
    "float16": dict(manual_fp16=True, use_fp16_cls=True),
    "bfloat16": dict(use_bf16=True),
}


@pytest.mark.parametrize("device", [cpu_environment.Cpu, gpu_environment.Gpu])
@pytest.mark.parametrize("dtype, bound", [("float16", 0.02), ("bfloat16", 0.1)])
def test_half_precision_logits_are_near(
    golden_checkpoint, device, dtype, bound
):
    reference = expected("masked_lm")
    golden = load_masked_lm(
        golden_checkpoint("masked_lm"), device=device, **HALVES[dtype]
    )
    with golden.session:
        found, last = golden.run(["mlm_logits", "last"], reference["input_ids"])
    visible = reference["input_mask"] > 0
    wanted = reference["mlm_logits"][visible]
    error = np.abs(found[visible] - wanted).max()
    assert last.dtype.name == dtype and found.dtype == np.float32
    assert 1e-5 < error < bound * np.abs(wanted).max()


# Padding and positions.


def test_last_layer_is_the_sequence_output(masked_lm):
    last, layer = masked_lm.run(["last", "hidden_2"], [[0, 5, 2]])
    np.testing.assert_array_equal(last, layer)


def test_padded_batch_equals_the_unpadded_one(masked_lm):
    reference = expected("masked_lm")
    names = ["hidden_2", "mlm_logits"]
    batch = masked_lm.run(names, reference["input_ids"])
    for row, ids in enumerate(reference["input_ids"]):
        length = int((ids != 1).sum())
        alone = masked_lm.run(names, ids[np.newaxis, :length])
        for whole, single in zip(batch, alone):
            np.testing.assert_allclose(
                whole[row, :length], single[0], rtol=0, atol=1e-5
            )


def layer_norm(rows, gamma, beta, epsilon):
    centred = rows - rows.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * gamma + beta


def test_positions_start_after_pad_and_skip_padding(
    masked_lm, golden_checkpoint
):
    ids = np.array([[0, 7, 1, 9, 2, 1, 1]])
    positions = np.array([[2, 3, 1, 4, 5, 1, 1]])
    reader = tf.train.load_checkpoint(golden_checkpoint("masked_lm"))
    words, places, types, gamma, beta = (
        reader.get_tensor("bert/embeddings/" + name)
        for name in (
            "word_embeddings",
            "position_embeddings",
            "token_type_embeddings",
            "LayerNorm/gamma",
            "LayerNorm/beta",
        )
    )
    wanted = layer_norm(
        words[ids] + places[positions] + types[0], gamma, beta, 1e-5
    )
    # Positions follow the ids whatever the mask says.
    for mask in (None, [[1, 1, 0, 0, 0, 1, 1]]):
        (found,) = masked_lm.run(["hidden_0"], ids, mask)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_masked_token_is_invisible_to_the_others(masked_lm):
    mask = [[1, 1, 0, 1, 1]]
    (one,) = masked_lm.run(["last"], [[0, 7, 8, 9, 2]], mask)
    (other,) = masked_lm.run(["last"], [[0, 7, 200, 9, 2]], mask)
    seen = np.array(mask[0]) > 0
    np.testing.assert_array_equal(one[0, seen], other[0, seen])
    assert np.abs(one[0, 2] - other[0, 2]).max() > 0.1


def run_model(config, ids, fetch=None, seed=7, **options):
    """What `fetch` gives of a new model; its last hidden states by default."""
    options = dict({"is_training": False}, **options)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        model = modeling.RobertaModel(
            config, input_ids=tf.constant(ids, tf.int32), **options
        )
        fetches = (fetch or modeling.RobertaModel.get_sequence_output)(model)
        session.run(tf.global_variables_initializer())
        return session.run(fetches)


IDS = [[0, 5, 9, 33, 2, 3, 1, 1], [0, 6, 7, 8, 9, 10, 11, 2]]


def test_no_mask_means_everything_but_padding():
    bare = run_model(config_of(), IDS)
    given = run_model(
        config_of(), IDS, input_mask=np.not_equal(IDS, 1).astype(np.int32)
    )
    all_seen = run_model(
        config_of(), IDS, input_mask=np.ones_like(IDS, np.int32)
    )
    np.testing.assert_array_equal(bare, given)
    assert np.abs(bare[0] - all_seen[0]).max() > 1e-6
    np.testing.assert_array_equal(bare[1], all_seen[1])


def test_pad_token_id_moves_positions_and_mask():
    config = config_of(pad_token_id=3)
    padded = run_model(config, [[0, 3, 5, 2]])
    default = run_model(config_of(), [[0, 3, 5, 2]])
    assert np.abs(padded - default).max() > 1e-3
    alone = run_model(config, [[0, 5, 2]])  # 3 is as good as absent
    np.testing.assert_allclose(padded[0, [0, 2, 3]], alone[0], atol=1e-5)
    # Positions 4, 5, 6, where the usual pad_token_id gives 2, 3, 4.
    assert np.abs(alone - run_model(config_of(), [[0, 5, 2]])).max() > 1e-3


def test_layer_norm_eps_has_an_effect_in_every_precision():
    for kernels in (Kernels(), kernels_of(manual_fp16=True)):
        norms = [
            np.linalg.norm(
                run_model(
                    config_of(layer_norm_eps=epsilon), IDS, kernels=kernels
                )
            )
            for epsilon in (1e-5, 1.0)
        ]
        assert norms[1] < 0.9 * norms[0]


def test_no_sequence_gives_no_hidden_states():
    assert run_model(config_of(), np.zeros([0, 5])).shape == (0, 5, 8)


# Dropout.

DROPPING = dict(is_training=True, dropout_seed=np.array([3, 4], np.int32))


def test_dropout_is_a_function_of_the_seed():
    config = config_of()
    first = run_model(config, IDS, **DROPPING)
    again = run_model(config, IDS, **DROPPING)
    other = run_model(
        config, IDS, is_training=True, dropout_seed=np.array([3, 5], np.int32)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - run_model(config, IDS)).max() > 0.1


def test_no_dropout_where_rates_are_0():
    config = config_of(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    np.testing.assert_array_equal(
        run_model(config, IDS, is_training=True), run_model(config, IDS)
    )


def test_every_place_drops_by_a_seed_of_its_own():
    seeds = []

    def dropout(x, rate, seed):
        seeds.append((rate, seed))
        return x

    config = config_of(attention_probs_dropout_prob=0.2)
    values = run_model(
        config,
        IDS,
        lambda model: [s for _, s in seeds],
        kernels=Kernels(dropout=dropout),
        **DROPPING,
    )
    # The embeddings, then weights, attention output and layer output.
    assert [rate for rate, _ in seeds] == [0.1] + [0.2, 0.1, 0.1] * 2
    assert len({tuple(value) for value in values}) == len(values)


def test_dropout_keeps_the_mean():
    rows = tf.ones([400, 50])
    with tf.Session() as session:
        found = session.run(kernel_functions.dropout(rows, 0.25, [1, 2]))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert abs(found.mean() - 1.0) < 0.02


def test_recomputed_layers_give_the_same_loss_and_gradients():
    def loss_and_gradients(model):
        loss = tf.reduce_sum(tf.square(model.get_sequence_output()[:, :, :3]))
        variables = tf.trainable_variables()
        gradients = tf.gradients(loss, variables)
        assert None not in gradients
        return [loss] + gradients

    kept, again = (
        run_model(
            config_of(),
            IDS,
            loss_and_gradients,
            recompute_layers=recompute,
            **DROPPING,
        )
        for recompute in (False, True)
    )
    for one, other in zip(kept, again):
        one, other = (
            value.values if hasattr(value, "values") else value
            for value in (one, other)
        )
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# The last layer at some positions alone.

# In any order, the same one twice, and one that is padding.
POSITIONS = np.array([[4, 0, 3, 6], [7, 2, 2, 5]], np.int32)


def dense_values(values):
    return [
        np.concatenate([value.indices[:, np.newaxis], value.values], 1)
        if hasattr(value, "values")
        else value
        for value in values
    ]


def loss_and_gradients_at(picks):
    """A fetch: rows at POSITIONS, a loss of them, and all its gradients."""

    def fetch(model):
        rows = model.get_rows()
        if picks:
            rows = tf.gather(rows, (POSITIONS + [[0], [len(IDS[0])]]).ravel())
        factors = np.random.RandomState(0).randn(POSITIONS.size, 8)
        loss = tf.reduce_mean(tf.square(tf.cast(rows, tf.float32)) * factors)
        return [rows, loss] + tf.gradients(loss, tf.trainable_variables())

    return fetch


@pytest.mark.parametrize(
    "tolerance, layers, options",
    [
        (1e-6, 2, {}),
        (1e-6, 1, {}),
        (1e-6, 2, {"recompute_layers": True}),
        (1e-6, 2, {"input_mask": np.array([[1] * 3 + [0] * 5, [1] * 8])}),
        (1e-6, 2, {"kernels": kernels_of()}),
        (2e-2, 2, {"kernels": kernels_of(manual_fp16=True)}),
    ],
)
def test_last_layer_at_some_positions_is_the_whole_one_there(
    tolerance, layers, options
):
    config = config_of(num_hidden_layers=layers, initializer_range=0.3)
    whole = run_model(config, IDS, loss_and_gradients_at(True), **options)
    part = run_model(
        config,
        IDS,
        loss_and_gradients_at(False),
        output_positions=POSITIONS,
        **options,
    )
    assert len(whole) == len(part) > 16 * layers
    for one, other in zip(dense_values(whole), dense_values(part)):
        np.testing.assert_allclose(other, one, tolerance, tolerance)


def test_rows_at_some_positions_have_a_static_shape_and_no_sequence():
    model = modeling.RobertaModel(
        config_of(),
        False,
        tf.constant(IDS),
        output_positions=tf.constant(POSITIONS),
    )
    assert model.get_rows().shape.as_list() == [8, 8]
    assert not [
        op.name
        for op in tf.get_default_graph().get_operations()
        for tensor in op.outputs
        if tensor.shape.num_elements() is None
    ]
    for whole in (
        model.get_sequence_output,
        model.get_all_encoder_layers,
        model.get_pooled_output,
    ):
        with pytest.raises(ValueError, match="output_positions"):
            whole()


# Variables.


def variables_of(build):
    """{name: shape} that a function of (config, model) leaves behind."""
    with tf.Graph().as_default():
        config = config_of()
        model = modeling.RobertaModel(config, False, tf.constant(IDS))
        build(config, model)
        return {
            v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()
        }


def dense_of(name, rows, columns):
    return {name + "/kernel": (rows, columns), name + "/bias": (columns,)}


def norm_of(name, size):
    return {
        name + "/LayerNorm/gamma": (size,),
        name + "/LayerNorm/beta": (size,),
    }


def encoder_variables():
    """A checkpoint's names are a public format; kernels are [in, out]."""
    names = {
        "bert/embeddings/word_embeddings": (40, 8),
        "bert/embeddings/position_embeddings": (20, 8),
        "bert/embeddings/token_type_embeddings": (1, 8),
    }
    names.update(norm_of("bert/embeddings", 8))
    for layer in ("bert/encoder/layer_0", "bert/encoder/layer_1"):
        for part in ("query", "key", "value"):
            names.update(dense_of(layer + "/attention/self/" + part, 8, 8))
        names.update(dense_of(layer + "/attention/output/dense", 8, 8))
        names.update(norm_of(layer + "/attention/output", 8))
        names.update(dense_of(layer + "/intermediate/dense", 8, 12))
        names.update(dense_of(layer + "/output/dense", 12, 8))
        names.update(norm_of(layer + "/output", 8))
    return names


def test_names_and_shapes_of_a_two_layer_masked_lm():
    wanted = encoder_variables()
    wanted.update(dense_of("cls/predictions/transform/dense", 8, 8))
    wanted.update(norm_of("cls/predictions/transform", 8))
    wanted["cls/predictions/output_bias"] = (40,)
    assert (
        variables_of(
            lambda config, model: modeling.masked_lm_logits(
                config, model.get_rows(), model.get_embedding_table()
            )
        )
        == wanted
    )


def test_names_and_shapes_of_squad_and_its_answerability_head():
    def heads(config, model):
        modeling.squad_logits(config, model.get_sequence_output())
        modeling.answerable_logits(config, model.get_sequence_output())

    wanted = encoder_variables()
    wanted.update(
        {"cls/squad/output_weights": (2, 8), "cls/squad/output_bias": (2,)}
    )
    wanted.update(dense_of("cls/squad/answerable", 8, 1))
    assert variables_of(heads) == wanted


def test_pooler_exists_only_where_it_is_asked_for():
    def pooled_twice(config, model):
        assert model.get_pooled_output().shape.as_list() == [2, 8]
        model.get_pooled_output()

    assert variables_of(lambda config, model: None) == encoder_variables()
    assert variables_of(pooled_twice) == dict(
        encoder_variables(), **dense_of("bert/pooler/dense", 8, 8)
    )


def new_weights(seed, build, kernels=Kernels()):
    def fetch(model):
        build(model)
        return {v.op.name: v for v in tf.global_variables()}

    return run_model(
        config_of(hidden_size=16), IDS, fetch, seed=seed, kernels=kernels
    )


def test_new_weights_follow_from_seed_and_name():
    half = kernels_of(manual_fp16=True, use_fp16_cls=True)
    first = new_weights(1, lambda model: None)
    # Another precision and more variables change nothing.
    again = new_weights(1, lambda model: model.get_pooled_output(), half)
    other = new_weights(2, lambda model: None)
    for name, value in first.items():
        assert value.dtype == again[name].dtype == np.float32
        np.testing.assert_array_equal(value, again[name])
        if name.endswith(("kernel", "embeddings")):
            assert (value != other[name]).all()
    query, key = (
        first[f"bert/encoder/layer_0/attention/self/{name}/kernel"]
        for name in ("query", "key")
    )
    assert (query != key).all()
    assert np.abs(query).max() <= 0.04 and 0.014 < query.std() < 0.021


# Kernels.


def test_gelu_is_the_exact_one():
    values = [-3.0, -1.0, -0.1, 0.0, 0.5, 2.0]
    wanted = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in values]
    with tf.Session() as session:
        found = session.run(kernel_functions.gelu(tf.constant(values)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def plain_gelu(x):
    return 0.5 * x * (1.0 + tf.erf(x / math.sqrt(2.0)))


def plain_normalize(x, gamma, beta):
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) / tf.sqrt(variance + 0.1) * gamma + beta


def plain_embed(table):
    return tf.gather(table, [1, 3, 1]), table


@pytest.mark.parametrize(
    "shapes, kernel, plain",
    [
        ([(5, 4)], kernel_functions.gelu, plain_gelu),
        (
            [(5, 4), (4,), (4,)],
            lambda *inputs: kernel_functions.normalize(*inputs, epsilon=0.1),
            plain_normalize,
        ),
        (
            [(6, 4)],
            lambda table: kernel_functions.gather(
                table, tf.constant([1, 3, 1])
            ),
            lambda table: tf.gather(table, [1, 3, 1]),
        ),
        (
            [(6, 4)],
            lambda table: kernel_functions.embed(table, tf.constant([1, 3, 1])),
            plain_embed,
        ),
        (
            [(3, 4), (40, 4)],
            lambda a, b: kernels_of().matmul(a, b, transpose_b=True),
            lambda a, b: tf.matmul(a, b, transpose_b=True),
        ),
    ],
    ids=["gelu", "normalize", "gather", "embed", "tall_matmul"],
)
def test_kernel_has_the_values_and_gradients_of_its_plain_form(
    shapes, kernel, plain
):
    random = np.random.RandomState(0)
    inputs = [tf.constant(random.randn(*shape), tf.float32) for shape in shapes]
    results = []
    for function in (kernel, plain):
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        upstream = [
            tf.constant(
                np.random.RandomState(1).randn(*output.shape.as_list()),
                tf.float32,
            )
            for output in outputs
        ]
        gradients = tf.gradients(outputs, inputs, upstream)
        if function is kernel:
            assert not any(
                isinstance(gradient, tf.IndexedSlices) for gradient in gradients
            )
        results.append(
            list(outputs)
            + [tf.convert_to_tensor(gradient) for gradient in gradients]
        )
    with tf.Session() as session:
        for one, other in zip(*session.run(results)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_cpu_sums_fp16_products_in_float32():
    kernels = kernels_of(manual_fp16=True)
    model = modeling.RobertaModel(
        config_of(), False, tf.constant(IDS), kernels=kernels
    )
    rows = model.get_rows()
    assert rows.dtype == tf.float16
    tf.gradients(rows, tf.trainable_variables())
    products = [
        op
        for op in tf.get_default_graph().get_operations()
        if "MatMul" in op.type
    ]
    assert len(products) >= 2 * 6 * 3  # 6 a layer, two more in the gradient
    assert {op.get_attr("T") for op in products} == {tf.float32}


def test_bfloat16_reaches_every_product_and_no_weight():
    kernels = kernels_of(use_bf16=True)
    model = modeling.RobertaModel(
        config_of(), False, tf.constant(IDS), kernels=kernels
    )
    logits = modeling.masked_lm_logits(
        config_of(), model.get_rows(), model.get_embedding_table(), kernels
    )
    assert model.get_rows().dtype == tf.bfloat16
    weights = tf.trainable_variables()
    gradients = [g for g in tf.gradients(logits, weights) if g is not None]
    assert {x.dtype.base_dtype for x in weights + gradients + [logits]} == {
        tf.float32
    }
    types = {"MatMul": set(), "BatchMatMul": set(), "Softmax": set()}
    for op in tf.get_default_graph().get_operations():
        kind = op.type.replace("V2", "")
        if kind in types:
            types[kind].add(op.outputs[0].dtype)
    assert types == {
        "MatMul": {tf.bfloat16},
        "BatchMatMul": {tf.bfloat16},
        "Softmax": {tf.float32},
    }


def test_gradient_of_a_bfloat16_bias_is_summed_in_float32():
    rows = tf.zeros([4096, 2], tf.bfloat16)
    bias = tf.zeros([2])
    outputs = kernel_functions.bias_add(rows, tf.cast(bias, tf.bfloat16))
    upstream = tf.fill([4096, 2], tf.constant(0.0078125, tf.bfloat16))
    (gradient,) = tf.gradients(outputs, bias, upstream)
    with tf.Session() as session:
        assert session.run(gradient).tolist() == [32.0, 32.0]


# Configs.


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": None}, "vocab_size is None"),
        ({"vocab_size": True}, "whole number"),
        ({"hidden_size": 9}, "not a multiple of num_attention_heads 2"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        (
            {"hidden_size": 2**32},
            "hidden_size is 4294967296; expected above 0 and below 2**31",
        ),
        (
            {"num_hidden_layers": 1001},
            "num_hidden_layers is 1001; expected 1 to 1000",
        ),
        ({"intermediate_size": "12"}, "intermediate_size is '12'"),
        ({"hidden_dropout_prob": 1.0}, "below 1"),
        ({"attention_probs_dropout_prob": -0.1}, "at least 0"),
        ({"classifier_dropout": 2}, "classifier_dropout is 2"),
        ({"layer_norm_eps": 0}, "above 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"pad_token_id": -1}, "at least 0"),
        ({"pad_token_id": 40}, "vocab_size is 40"),
        ({"max_position_embeddings": 3}, "at least pad_token_id + 4"),
        ({"hidden_act": "relu"}, "only 'gelu' is implemented"),
        ({"model_type": "bert"}, "only 'roberta' is implemented"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"is_decoder": True}, "only False"),
        ({"tie_word_embeddings": False}, "only True"),
    ],
)
def test_unsupported_config_value_is_an_error(change, message):
    with pytest.raises(errors.UserError) as caught:
        configuration.RobertaConfig.from_dict(dict(SMALL, **change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not JSON"),
        ("[1]", "expected an object"),
        ('{"vocab_size": 5, "vocab_size": 6}', "a key is repeated"),
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        (json.dumps(dict(SMALL, hidden_act="relu")), "only 'gelu'"),
        ('{"vocab_size": 5}', "lacks hidden_size, num_hidden_layers"),
    ],
)
def test_config_error_names_the_file(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(errors.UserError) as caught:
        configuration.RobertaConfig.from_json_file(str(path))
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_config_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(errors.UserError, match="config.json"):
        configuration.RobertaConfig.from_json_file(str(path))


def test_no_config_is_an_error():
    with pytest.raises(
        errors.UserError, match="--init_checkpoint, .*--bert_conf"
    ):
        configuration.RobertaConfig.from_json_file("")


@pytest.mark.parametrize(
    "keys, warnings",
    [
        ({"use_cache": True, "model_type": "roberta"}, []),
        (
            {"use_cache": True, "zeta": 1, "attn_scale": 2},
            ["ignoring the unknown keys attn_scale, zeta"],
        ),
    ],
)
def test_unknown_keys_of_a_config_file_are_logged(
    tmp_path, caplog, keys, warnings
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(SMALL, layer_norm_eps=1e-5, **keys)))
    config = configuration.RobertaConfig.from_json_file(str(path))
    assert config == config_of()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: {warning}" for warning in warnings
    ]


def test_config_comes_back_from_its_dictionary():
    config = config_of(layer_norm_eps=1e-6, classifier_dropout=0.2)
    assert configuration.RobertaConfig.from_dict(config.to_dict()) == config
    assert "classifier_dropout" not in config_of().to_dict()


def test_large_config_of_the_real_model(shared):
    config = configuration.RobertaConfig.from_json_file(
        str(shared / "data" / "roberta" / "roberta_large_config.json")
    )
    assert config.max_sequence_length == 512
    assert (config.num_hidden_layers, config.hidden_size) == (24, 1024)


def test_sequence_beyond_the_positions_is_an_error():
    with pytest.raises(errors.UserError, match="19 tokens.*positions for 18"):
        modeling.RobertaModel(config_of(), False, tf.zeros([1, 19], tf.int32))
    modeling.RobertaModel(config_of(), False, tf.zeros([1, 18], tf.int32))


# Heads of other tasks.

HEADS = {
    "classification": lambda *more, **options: modeling.classification_logits(
        *more, 3, **options
    ),
    "multiple_choice": lambda *more, **options: modeling.multiple_choice_logits(
        *more, 2, **options
    ),
    "tagging": lambda *more, **options: modeling.tagging_logits(
        *more, 3, **options
    ),
}


def head_on(name, hidden, **options):
    """(logits, {variable: value}) of a head over hidden states [B, S, H]."""
    config = config_of(classifier_dropout=options.pop("rate", None))
    seed = options.pop("seed", None)
    logits = HEADS[name](
        config,
        tf.constant(hidden, tf.float32),
        dropout_seed=None if seed is None else tf.constant(seed),
    )
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        # Zero biases would hide a missing one.
        for number, bias in enumerate(tf.trainable_variables()):
            if bias.name.endswith("bias:0"):
                bias.load(
                    np.linspace(1, 2 + number, bias.shape[0].value), session
                )
        return session.run(
            [logits, {v.op.name: v for v in tf.trainable_variables()}]
        )


HIDDEN = np.random.RandomState(0).normal(0, 3, [4, 5, 8])


def test_multiple_choice_is_a_pooler_and_one_output():
    logits, weights = head_on("multiple_choice", HIDDEN)
    weights = {
        name.replace("cls/multiple_choice/", ""): value
        for name, value in weights.items()
    }
    pooled = np.tanh(
        HIDDEN[:, 0] @ weights["dense/kernel"] + weights["dense/bias"]
    )
    scores = pooled @ weights["out_proj/kernel"] + weights["out_proj/bias"]
    assert sorted(weights) == [
        "dense/bias",
        "dense/kernel",
        "out_proj/bias",
        "out_proj/kernel",
    ]
    np.testing.assert_allclose(logits, scores.reshape(2, 2), atol=1e-5)


def test_tagging_is_a_dense_layer_on_every_token():
    logits, weights = head_on("tagging", HIDDEN)
    assert sorted(weights) == ["cls/tagging/bias", "cls/tagging/kernel"]
    np.testing.assert_allclose(
        logits,
        HIDDEN @ weights["cls/tagging/kernel"] + weights["cls/tagging/bias"],
        atol=1e-5,
    )


@pytest.mark.parametrize("name", sorted(HEADS))
def test_heads_drop_in_training_alone(name):
    def logits(**options):
        with tf.Graph().as_default():
            tf.set_random_seed(1)
            return head_on(name, HIDDEN, **options)[0]

    plain = logits(rate=0.5)
    assert not np.array_equal(logits(rate=0.5, seed=[1, 2]), plain)
    assert np.array_equal(
        logits(rate=0.5, seed=[1, 2]), logits(rate=0.5, seed=[1, 2])
    )
    assert np.array_equal(logits(rate=0.0, seed=[1, 2]), plain)
    # Without classifier_dropout the rate is hidden_dropout_prob, 0.1.
    assert not np.array_equal(logits(seed=[1, 2]), plain)
