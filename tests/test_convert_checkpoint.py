# SPDX-License-Identifier: Apache-2.0
"""Conversions of whole models: names, shapes, bytes, and what is refused."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import tensorflow.compat.v1 as tf

import configuration
from common import errors, files
from helpers import tiny, torch_writer
from helpers.conversions import (
    assert_same,
    convert,
    golden,
    hf_arrays,
    hf_model,
    refused,
    tf_arrays,
)
from helpers.paths import FIRST_VERSION, GOLDEN
from weights import conversion, lazy_tensors, safetensors_file, tf_checkpoint
from weights import names as weight_names

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MODELS = ["masked_lm", "question_answering", "sequence_classification"]


def tf_model(directory, arrays, values, name="model.ckpt"):
    """Writes a TensorFlow checkpoint, also of names that no model has."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    prefix = directory / name
    kinds = {"f4": "F32", "i8": "I64", "f8": "F64"}
    with open(tf_checkpoint.data_file(str(prefix)), "wb") as stream:
        index = tf_checkpoint.write_data(
            stream,
            {
                key: lazy_tensors.Tensor(
                    kinds[array.dtype.str[1:]],
                    array.shape,
                    lambda array=array: array,
                    key,
                )
                for key, array in arrays.items()
            },
        )
    pathlib.Path(str(prefix) + ".index").write_bytes(index)
    return prefix


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_gives_the_same_files(tmp_path, name):
    convert("hf", "tf", GOLDEN / name, tmp_path / "tf" / "model.ckpt")
    convert("tf", "hf", tmp_path / "tf" / "model.ckpt", tmp_path / "hf")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "hf" / file).read_bytes() == (
            GOLDEN / name / file
        ).read_bytes()
    assert sorted(os.listdir(str(tmp_path / "tf"))) == [
        "config.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "task.json",
    ]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_weight_that_is_not_finite_is_warned_of(
    tmp_path, caplog, dtype, value
):
    values, arrays = golden("masked_lm")
    name = "roberta.encoder.layer.1.output.dense.bias"
    arrays[name][3] = value
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_text(json.dumps(values))
    with open(str(tmp_path / "given" / "model.safetensors"), "wb") as stream:
        tensors = {n: numbers(dtype, array) for n, array in arrays.items()}
        safetensors_file.write(stream, tensors)
    convert("hf", "tf", tmp_path / "given", tmp_path / "m")
    lines = [r.getMessage() for r in caplog.records]
    (line,) = [line for line in lines if "infinite" in line]
    assert "model.safetensors: NaN or infinite values in 1 of" in line
    assert f"tensors, {name} first" in line


def numbers(dtype, array):
    """A tensor of float32 numbers in another type."""
    if dtype == "BF16":
        array = (array.view("<u4") >> np.uint32(16)).astype("<u2")
    array = array.astype(lazy_tensors.DTYPES[dtype])
    return lazy_tensors.Tensor(dtype, array.shape, lambda: array, "")


def test_tensorflow_reads_the_public_names_shapes_and_values(tmp_path):
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "model.ckpt")
    reader = tf.train.load_checkpoint(str(tmp_path / "model.ckpt"))
    shapes = {
        "bert/embeddings/word_embeddings": [300, 32],
        "bert/embeddings/position_embeddings": [66, 32],
        "bert/embeddings/token_type_embeddings": [1, 32],
        "bert/embeddings/LayerNorm/gamma": [32],
        "bert/embeddings/LayerNorm/beta": [32],
        "cls/predictions/transform/dense/kernel": [32, 32],
        "cls/predictions/transform/dense/bias": [32],
        "cls/predictions/transform/LayerNorm/gamma": [32],
        "cls/predictions/transform/LayerNorm/beta": [32],
        "cls/predictions/output_bias": [300],
    }
    for layer in ("bert/encoder/layer_0/", "bert/encoder/layer_1/"):
        for part in (
            "attention/self/query",
            "attention/self/key",
            "attention/self/value",
            "attention/output/dense",
        ):
            shapes[layer + part + "/kernel"] = [32, 32]
            shapes[layer + part + "/bias"] = [32]
        for part in ("attention/output/LayerNorm", "output/LayerNorm"):
            shapes[layer + part + "/gamma"] = [32]
            shapes[layer + part + "/beta"] = [32]
        shapes.update(
            {
                layer + "intermediate/dense/kernel": [32, 64],
                layer + "intermediate/dense/bias": [64],
                layer + "output/dense/kernel": [64, 32],
                layer + "output/dense/bias": [32],
            }
        )
    assert reader.get_variable_to_shape_map() == shapes
    arrays = golden("masked_lm")[1]
    for variable, name, kernel in (
        (
            "bert/encoder/layer_1/intermediate/dense/kernel",
            "roberta.encoder.layer.1.intermediate.dense.weight",
            True,
        ),
        (
            "bert/encoder/layer_0/attention/self/key/kernel",
            "roberta.encoder.layer.0.attention.self.key.weight",
            True,
        ),
        (
            "bert/embeddings/word_embeddings",
            "roberta.embeddings.word_embeddings.weight",
            False,
        ),
        (
            "cls/predictions/transform/LayerNorm/gamma",
            "lm_head.layer_norm.weight",
            False,
        ),
    ):
        np.testing.assert_array_equal(
            reader.get_tensor(variable),
            arrays[name].T if kernel else arrays[name],
        )


@pytest.mark.parametrize(
    "name, shapes",
    [
        (
            "question_answering",
            {
                "cls/squad/output_weights": (2, 32),
                "cls/squad/output_bias": (2,),
            },
        ),
        (
            "sequence_classification",
            {
                "cls/classification/dense/kernel": (32, 32),
                "cls/classification/dense/bias": (32,),
                "cls/classification/out_proj/kernel": (32, 3),
                "cls/classification/out_proj/bias": (3,),
            },
        ),
    ],
)
def test_heads_have_their_public_names(tmp_path, name, shapes):
    convert("hf", "tf", GOLDEN / name, tmp_path / "model.ckpt")
    heads = {
        key: array
        for key, array in tf_arrays(tmp_path / "model.ckpt").items()
        if key.startswith("cls/")
    }
    assert {key: array.shape for key, array in heads.items()} == shapes
    if name == "question_answering":  # BERT's shape, not transposed
        np.testing.assert_array_equal(
            heads["cls/squad/output_weights"],
            golden(name)[1]["qa_outputs.weight"],
        )


HEADS = {
    "RobertaForMultipleChoice": (
        {
            "roberta.pooler.dense.weight": (32, 32),
            "roberta.pooler.dense.bias": (32,),
            "classifier.weight": (1, 32),
            "classifier.bias": (1,),
        },
        {
            "cls/multiple_choice/dense/kernel",
            "cls/multiple_choice/dense/bias",
            "cls/multiple_choice/out_proj/kernel",
            "cls/multiple_choice/out_proj/bias",
        },
    ),
    "RobertaForTokenClassification": (
        {"classifier.weight": (9, 32), "classifier.bias": (9,)},
        {"cls/tagging/kernel", "cls/tagging/bias"},
    ),
    "RobertaModel": (
        {"pooler.dense.weight": (32, 32), "pooler.dense.bias": (32,)},
        {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"},
    ),
}


@pytest.mark.parametrize("with_class", [True, False])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_other_heads_travel_both_ways(tmp_path, kind, with_class):
    values, arrays = golden("masked_lm")
    arrays = {
        name: array
        for name, array in arrays.items()
        if not name.startswith("lm_head")
    }
    if kind == "RobertaModel":
        arrays = {
            name[len("roberta.") :]: array for name, array in arrays.items()
        }
    shapes, variables = HEADS[kind]
    random = np.random.RandomState(1)
    for name, shape in shapes.items():
        arrays[name] = random.rand(*shape).astype(np.float32)
    if kind == "RobertaForTokenClassification":
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(9)}
        values["label2id"] = {f"LABEL_{i}": i for i in range(9)}
    values["architectures"] = [kind] if with_class else None
    given = hf_model(tmp_path / "given", arrays, values)
    convert("hf", "tf", given, tmp_path / "tf" / "model.ckpt")
    names = set(tf_arrays(tmp_path / "tf" / "model.ckpt"))
    assert {
        name
        for name in names
        if not name.startswith(("bert/e", "bert/encoder"))
    } == variables
    convert("tf", "hf", tmp_path / "tf" / "model.ckpt", tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), arrays)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["architectures"] == [kind]


def test_a_fine_tuned_checkpoint_names_its_class_and_labels(tmp_path):
    values, arrays = golden("sequence_classification")
    convert("hf", "tf", GOLDEN / "sequence_classification", tmp_path / "m")
    config = golden("masked_lm")[0]  # as pre-training left it
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert("tf", "hf", tmp_path / "m", tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["architectures"] == ["RobertaForSequenceClassification"]
    assert written["id2label"] == values["id2label"]
    assert written["label2id"] == values["label2id"]
    assert_same(hf_arrays(tmp_path / "hf"), arrays)


def test_span_logits_are_two_labels_whatever_the_config_said(tmp_path):
    values, arrays = golden("question_answering")
    convert("hf", "tf", GOLDEN / "question_answering", tmp_path / "m")
    values["id2label"] = {str(i): f"x{i}" for i in range(5)}
    values["label2id"] = {f"x{i}": i for i in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    convert("tf", "hf", tmp_path / "m", tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert len(written["id2label"]) == 2


def test_the_answerable_head_keeps_its_weights(tmp_path):
    values = golden("question_answering")[0]
    convert("hf", "tf", GOLDEN / "question_answering", tmp_path / "a" / "m")
    arrays = tf_arrays(tmp_path / "a" / "m")
    arrays["cls/squad/answerable/kernel"] = np.ones([32, 1], np.float32)
    arrays["cls/squad/answerable/bias"] = np.ones([1], np.float32)
    prefix = tf_model(tmp_path / "b", arrays, values)
    lines = convert("tf", "hf", prefix, tmp_path / "hf")
    assert (
        "cls/squad/answerable/kernel F32 [32, 1] -> answerable.weight F32 "
        "[1, 32]"
    ) in lines
    convert("hf", "tf", tmp_path / "hf", tmp_path / "c" / "m")
    assert_same(tf_arrays(tmp_path / "c" / "m"), arrays)


def test_training_state_is_left_out_and_named(tmp_path):
    values, arrays = golden("masked_lm")
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "a" / "m")
    model = tf_arrays(tmp_path / "a" / "m")
    state = {
        name + slot: np.zeros_like(array)
        for name, array in model.items()
        for slot in ("/adam_m", "/adam_v")
    }
    state.update(
        {
            name: np.zeros([], np.int64)
            for name in (
                "global_step",
                "loss_scale",
                "good_steps",
                "bad_steps",
                "batches_seen",
                "records_seen",
            )
        }
    )
    state["cls/seq_relationship/output_bias"] = np.zeros([2], np.float32)
    prefix = tf_model(tmp_path / "b", dict(model, **state), values)
    lines = convert("tf", "hf", prefix, tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), arrays)
    left_out = {
        line.split()[2] for line in lines if line.startswith("left out: ")
    }
    assert left_out == {name for name in state if "adam" not in name} | {
        "slots"
    }
    assert f"left out: slots of the optimizer ({2 * len(model)})" in lines
    assert lines[-1].startswith(f"tensors=42 left_out={len(state)} ")


def test_the_report_names_every_tensor(tmp_path):
    lines = convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "m")
    arrays = golden("masked_lm")[1]
    assert {line.split()[0] for line in lines[:-1]} == set(arrays)
    assert (
        "roberta.encoder.layer.0.output.dense.weight F32 [32, 64] -> "
        "bert/encoder/layer_0/output/dense/kernel F32 [64, 32]"
    ) in lines


def test_tied_copies_and_buffers_are_left_out_and_named(tmp_path):
    values, arrays = golden("masked_lm")
    table = arrays["roberta.embeddings.word_embeddings.weight"]
    more = {
        "lm_head.decoder.weight": table,
        "lm_head.decoder.bias": arrays["lm_head.bias"],
        "roberta.embeddings.position_ids": np.arange(66)[None],
    }
    given = hf_model(tmp_path / "given", dict(arrays, **more), values)
    lines = convert("hf", "hf", given, tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), arrays)
    assert {
        line.split()[2] for line in lines if line.startswith("left out: ")
    } == set(more)


def test_an_untied_output_layer_is_refused(tmp_path):
    values, arrays = golden("masked_lm")
    table = arrays["roberta.embeddings.word_embeddings.weight"].copy()
    table[7, 3] += 1
    arrays["lm_head.decoder.weight"] = table
    given = hf_model(tmp_path / "given", arrays, values)
    message = refused("hf", "tf", given, tmp_path / "tf" / "m")
    assert "lm_head.decoder.weight differs from" in message


def test_a_bias_under_the_name_of_its_copy_is_taken(tmp_path):
    values, arrays = golden("masked_lm")
    given = dict(arrays)
    given["lm_head.decoder.bias"] = given.pop("lm_head.bias")
    convert(
        "hf", "hf", hf_model(tmp_path / "given", given, values), tmp_path / "hf"
    )
    assert_same(hf_arrays(tmp_path / "hf"), arrays)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_becomes_float32_exactly(tmp_path, kind):
    values, arrays = golden("masked_lm")
    values["dtype"] = kind
    tensors, expected = {}, {}
    for name, array in arrays.items():
        if kind == "float16":
            bits = array.astype(np.float16)
            expected[name] = bits.astype(np.float32)
        else:
            bits = (array.view(np.uint32) >> 16).astype(np.uint16)
            expected[name] = (array.view(np.uint32) & 0xFFFF0000).view("f4")
        tensors[name] = lazy_tensors.Tensor(
            "F16" if kind == "float16" else "BF16",
            array.shape,
            lambda bits=bits: bits,
            name,
        )
    given = hf_model(tmp_path / "given", {}, values)
    with open(str(given / "model.safetensors"), "wb") as stream:
        safetensors_file.write(stream, tensors)
    lines = convert("hf", "tf", given, tmp_path / "tf" / "m")
    assert any(
        "F16 [300, 32] -> bert/embeddings/word_embeddings F32" in line
        for line in lines
    )
    convert("tf", "hf", tmp_path / "tf" / "m", tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), expected)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["dtype"] == "float32"
    # Without TensorFlow in between nothing is widened.
    convert("hf", "hf", given, tmp_path / "half")
    assert (tmp_path / "half" / "model.safetensors").read_bytes() == (
        given / "model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "half" / "config.json").read_text()) == values


@pytest.mark.parametrize(
    "writer", [torch_writer.save, torch_writer.save_legacy]
)
def test_a_bin_file_gives_what_safetensors_gives(tmp_path, writer):
    values, arrays = golden("masked_lm")
    (tmp_path / "config.json").write_text(json.dumps(values))
    writer(tmp_path / "pytorch_model.bin", arrays)
    convert("hf", "hf", tmp_path, tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), arrays)


@pytest.mark.parametrize(
    "stem, suffix", [("model", "safetensors"), ("pytorch_model", "bin")]
)
def test_a_model_in_parts_is_joined(tmp_path, stem, suffix):
    values, arrays = golden("masked_lm")
    (tmp_path / "config.json").write_text(json.dumps(values))
    places = {}
    for part in range(2):
        file = f"{stem}-{part + 1:05d}-of-00002.{suffix}"
        names = sorted(arrays)[part::2]
        places.update({name: file for name in names})
        content = {name: arrays[name] for name in names}
        if suffix == "bin":
            torch_writer.save(tmp_path / file, content)
        else:
            safetensors.numpy.save_file(content, str(tmp_path / file))
    index = tmp_path / (f"{stem}.{suffix}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    convert("hf", "hf", tmp_path, tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), arrays)

    index.write_text(json.dumps({"weight_map": dict(places, more=file)}))
    assert "lacks 'more'" in refused(
        "hf", "hf", tmp_path, tmp_path / "x" / "hf"
    )
    places.pop(sorted(arrays)[0])
    index.write_text(json.dumps({"weight_map": places}))
    assert "contains " in refused("hf", "hf", tmp_path, tmp_path / "x" / "hf")


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "", "..", "a\0b", "\ud800"]
)
def test_an_index_cannot_leave_its_directory(tmp_path, place):
    (tmp_path / "config.json").write_text(json.dumps(golden("masked_lm")[0]))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": place}})
    )
    assert "its own directory" in refused(
        "hf", "hf", tmp_path, tmp_path / "x" / "hf"
    )


WORD = "roberta.embeddings.word_embeddings.weight"
BIAS = "roberta.encoder.layer.1.output.dense.bias"


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


def renamed(arrays, name, new):
    return dict(without(arrays, name), **{new: arrays[name]})


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda a: without(a, BIAS), BIAS + " [32] is missing"),
        (lambda a: without(a, "lm_head.bias"), "lm_head.bias [300] is missing"),
        (
            lambda a: {k: v for k, v in a.items() if "lm_head" not in k},
            "lm_head.dense.weight [32, 32] is missing",
        ),
        (
            lambda a: renamed(a, BIAS, BIAS + "x"),
            f"{BIAS + 'x'!r} [32] is not expected",
        ),
        (
            lambda a: dict(a, **{BIAS: np.zeros(31, np.float32)}),
            BIAS + " is [31], expected [32]",
        ),
        (
            lambda a: dict(a, **{BIAS: np.zeros([1, 32], np.float32)}),
            BIAS + " is [1, 32], expected [32]",
        ),
        (
            lambda a: dict(a, **{WORD: np.zeros([301, 32], np.float32)}),
            WORD + " is [301, 32], expected [300, 32]",
        ),
        (lambda a: dict(a, **{BIAS: np.zeros(32)}), BIAS + " is of type F64"),
        (lambda a: {}, "has only 0 tensors"),
        (lambda a: {"bert." + k: v for k, v in a.items()}, "and 79 more"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_by_name(
    tmp_path, change, expected
):
    values, arrays = golden("masked_lm")
    given = hf_model(tmp_path / "given", change(arrays), values)
    message = refused("hf", "tf", given, tmp_path / "tf" / "m")
    assert expected in message and "model.safetensors" in message


KERNEL = "bert/encoder/layer_0/intermediate/dense/kernel"


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda a: without(a, KERNEL), KERNEL + " [32, 64] is missing"),
        (
            lambda a: renamed(a, KERNEL, KERNEL + "s"),
            f"{KERNEL + 's'!r} [32, 64] is not expected",
        ),
        (
            lambda a: dict(a, **{KERNEL: a[KERNEL].T}),
            KERNEL + " is [64, 32], expected [32, 64]",
        ),
        (
            lambda a: dict(a, **{KERNEL: a[KERNEL].astype("f8")}),
            KERNEL + " is of type F64",
        ),
        (
            lambda a: dict(a, unknown=np.zeros(3, np.float32)),
            "'unknown' [3] is not expected",
        ),
        (
            lambda a: dict(a, **{"unknown/adam_m": np.zeros(3, np.float32)}),
            "'unknown/adam_m' [3] is not expected",
        ),
        (
            lambda a: without(a, "cls/predictions/output_bias"),
            "cls/predictions/output_bias [300] is missing",
        ),
        (
            lambda a: dict(
                a,
                **{
                    "bert/pooler/dense/bias": np.zeros(32, np.float32),
                    "cls/multiple_choice/dense/bias": np.zeros(32, np.float32),
                },
            ),
            "stores both as roberta.pooler.dense",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    tmp_path, change, expected
):
    values = golden("masked_lm")[0]
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "a" / "m")
    prefix = tf_model(
        tmp_path / "b", change(tf_arrays(tmp_path / "a" / "m")), values
    )
    assert expected in refused("tf", "hf", prefix, tmp_path / "out" / "hf")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"model_type": "xlm-roberta"}, "model_type 'xlm-roberta'"),
        ({"vocab_size": 301}, "is [300, 32], expected [301, 32]"),
        (
            {"num_hidden_layers": 1},
            "layer.1.attention.self.key.bias' [32] is not expected",
        ),
        (
            {"num_hidden_layers": 3},
            "layer.2.attention.self.query.weight [32, 32] is missing",
        ),
        ({"num_hidden_layers": 1000}, "1000 layers"),
        ({"hidden_size": 64}, "is [300, 32], expected [300, 64]"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"max_position_embeddings": 64}, "is [66, 32], expected [64, 32]"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        (
            {"architectures": ["RobertaForQuestionAnswering"]},
            "qa_outputs.weight [2, 32] is missing",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, changes, expected):
    values, arrays = golden("masked_lm")
    given = hf_model(tmp_path / "given", arrays, dict(values, **changes))
    assert expected in refused("hf", "tf", given, tmp_path / "tf" / "m")


def test_labels_that_the_config_does_not_name_are_refused(tmp_path):
    values, arrays = golden("sequence_classification")
    values["id2label"]["3"] = "LABEL_3"
    given = hf_model(tmp_path / "given", arrays, values)
    message = refused("hf", "tf", given, tmp_path / "tf" / "m")
    assert "has 3 labels, but its config.json names 4" in message


def test_labels_of_kernel_and_bias_must_agree(tmp_path):
    values, arrays = golden("sequence_classification")
    arrays["classifier.out_proj.bias"] = np.zeros(4, np.float32)
    given = hf_model(tmp_path / "given", arrays, values)
    assert "classifier.out_proj.bias is [4], expected [3]" in refused(
        "hf", "tf", given, tmp_path / "tf" / "m"
    )


def test_missing_inputs_are_named(tmp_path):
    out = tmp_path / "out" / "m"
    assert "is not a directory" in refused("hf", "tf", tmp_path / "no", out)
    assert "config.json does not exist" in refused("hf", "tf", tmp_path, out)
    (tmp_path / "config.json").write_text("{}")
    assert "neither model.safetensors nor" in refused("hf", "tf", tmp_path, out)
    assert "no.index does not exist" in refused(
        "tf", "hf", tmp_path / "no", out
    )
    assert "model.pt does not exist" in refused("fairseq", "hf", tmp_path, out)
    for name in ("input", "output"):
        with pytest.raises(errors.UserError, match=f"--{name} is not given"):
            conversion.ConvertConfig(**{"input": "a", "output": "b", name: ""})


VOCABULARY = {f"token{i}": i for i in range(300)}


def test_tokenizer_files_go_along(tmp_path, caplog):
    values, arrays = golden("masked_lm")
    given = hf_model(tmp_path / "given", arrays, values)
    contents = {
        "vocab.json": json.dumps(VOCABULARY),
        "merges.txt": "#version\n",
        "tokenizer.json": "{}",
        "special_tokens_map.json": "{}",
    }
    for name, text in contents.items():
        (given / name).write_text(text)
    convert("hf", "tf", given, tmp_path / "tf" / "m")
    convert("tf", "hf", tmp_path / "tf" / "m", tmp_path / "hf")
    for name, text in contents.items():
        assert (tmp_path / "hf" / name).read_text() == text
    assert not caplog.records


@pytest.mark.parametrize(
    "saved", [None, '{"do_lower_case": true, "model_max_length": 9, "x": 1}']
)
def test_transformers_gets_the_whole_tokenizer_and_the_task(tmp_path, saved):
    prefix = tiny.write_trained(tmp_path / "model", ["masked_lm"])
    if saved:
        (tmp_path / "model" / "tokenizer_config.json").write_text(saved)
    (tmp_path / "model" / "task.json").write_text(
        '{"task": "masked_lm", "max_seq_length": 64}'
    )
    convert("tf", "hf", prefix, tmp_path / "hf")
    convert("hf", "tf", tmp_path / "hf", tmp_path / "tf" / "m")
    for directory in (tmp_path / "hf", tmp_path / "tf"):
        values = json.loads((directory / "tokenizer_config.json").read_text())
        assert values["mask_token"]["lstrip"] is True
        assert values["do_lower_case"] is bool(saved)
        assert values["model_max_length"] == (9 if saved else 512)
        assert values.get("x") == (1 if saved else None)
        assert (directory / "tokenizer.json").exists() == bool(saved)
        assert json.loads((directory / "task.json").read_text()) == {
            "task": "masked_lm",
            "max_seq_length": 64,
        }


def test_a_model_of_the_first_version_is_converted_as_it_was(tmp_path):
    prefix = FIRST_VERSION / "squad" / "model.ckpt-26"
    convert("tf", "hf", prefix, tmp_path / "hf")
    for path in (FIRST_VERSION / "hf").iterdir():
        assert (tmp_path / "hf" / path.name).read_bytes() == path.read_bytes()
    task = json.loads((tmp_path / "hf" / "task.json").read_text())
    assert task == {"task": "question_answering"}


def test_given_tokenizer_files_are_taken_instead(tmp_path, caplog):
    values, arrays = golden("masked_lm")
    given = hf_model(tmp_path / "given", arrays, values)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (given / name).write_text("{}")
    (tmp_path / "v").write_text(json.dumps(VOCABULARY))
    (tmp_path / "m").write_text("merges")
    places = ("hf", "hf", given, tmp_path / "hf")
    options = {
        "vocab_file": str(tmp_path / "v"),
        "merges_file": str(tmp_path / "m"),
    }
    line = f"{tmp_path / 'v'}: not the same as {given / 'vocab.json'}; "
    assert line in refused(*places, **options)
    assert not (tmp_path / "hf").exists()
    convert(*places, allow_other_tokenizer=True, **options)
    assert line + "continuing (--allow_other_tokenizer)" in caplog.text
    written = json.loads((tmp_path / "hf" / "vocab.json").read_text())
    assert written == VOCABULARY
    assert (tmp_path / "hf" / "merges.txt").read_text() == "merges"
    assert not (tmp_path / "hf" / "tokenizer.json").exists()


def test_missing_tokenizer_files_are_one_warning(tmp_path, caplog):
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "m")
    assert [record.getMessage() for record in caplog.records] == [
        f"no vocab.json and merges.txt in {GOLDEN / 'masked_lm'}: the output "
        "has no complete tokenizer; pass --vocab_file and --merges_file"
    ]


@pytest.mark.parametrize(
    "vocabulary, expected",
    [
        ({"a": 300}, "the model has 300 embeddings"),
        ({"a": -1}, "has the id -1"),
        ({"a": "1"}, "has the id '1'"),
        ({"a": True}, "has the id True"),
        ({"a": 1, "b": 1}, "the same id"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(
    tmp_path, vocabulary, expected
):
    (tmp_path / "v").write_text(json.dumps(vocabulary))
    assert expected in refused(
        "hf",
        "tf",
        GOLDEN / "masked_lm",
        tmp_path / "tf" / "m",
        vocab_file=str(tmp_path / "v"),
    )


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path):
    convert("hf", "hf", GOLDEN / "masked_lm", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").write_text("mine")
    assert "already exists; pass --overwrite" in refused(
        "hf", "hf", GOLDEN / "masked_lm", tmp_path / "hf"
    )
    assert (tmp_path / "hf" / "model.safetensors").read_text() == "mine"
    convert("hf", "hf", GOLDEN / "masked_lm", tmp_path / "hf", overwrite=True)
    assert_same(hf_arrays(tmp_path / "hf"), golden("masked_lm")[1])


def test_two_checkpoints_share_a_directory_and_its_config(tmp_path):
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "a")
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "b")
    assert "config.json: already exists" in refused(
        "hf", "tf", GOLDEN / "question_answering", tmp_path / "c"
    )


def test_a_directory_is_not_a_prefix(tmp_path):
    assert "expected the prefix" in refused(
        "hf", "tf", GOLDEN / "masked_lm", tmp_path
    )


def test_the_newest_checkpoint_of_a_directory_is_converted(tmp_path):
    values, arrays = golden("masked_lm")
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "run" / "model.ckpt-9")
    other = dict(arrays, **{"lm_head.bias": arrays["lm_head.bias"] + 1})
    source = hf_model(tmp_path / "other", other, values)
    convert("hf", "tf", source, tmp_path / "model.ckpt-10")
    for path in tmp_path.glob("model.ckpt-10.*"):
        path.rename(tmp_path / "run" / path.name)
    lines = convert("tf", "hf", tmp_path / "run", tmp_path / "hf")
    assert_same(hf_arrays(tmp_path / "hf"), other)
    assert lines[-1].startswith("tensors=")


@pytest.mark.parametrize("target", ["hf", "tf"])
def test_nothing_is_left_where_writing_failed(tmp_path, monkeypatch, target):
    read = files.read_exactly
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return read(*arguments)

    monkeypatch.setattr(files, "read_exactly", failing)
    with pytest.raises(OSError) as caught:
        convert("hf", target, GOLDEN / "masked_lm", tmp_path / "new" / "m")
    assert caught.value.filename is not None
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize(
    "target, last", [("hf", "model.safetensors"), ("tf", "m.index")]
)
def test_the_decisive_file_appears_last(tmp_path, monkeypatch, target, last):
    order = []
    replace = os.replace
    monkeypatch.setattr(
        os,
        "replace",
        lambda source, name: (
            order.append(os.path.basename(name)),
            replace(source, name),
        ),
    )
    output = tmp_path / "out" / ("m" if target == "tf" else "")
    convert("hf", target, GOLDEN / "masked_lm", output)
    assert order[-1] == last and len(order) == 4


def test_an_interrupted_overwrite_shows_no_mixture(tmp_path, monkeypatch):
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "m")
    replace = os.replace

    def interrupted(source, name):
        replace(source, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(
            "hf",
            "tf",
            GOLDEN / "question_answering",
            tmp_path / "m",
            overwrite=True,
        )
    # The new data are there; the old index, which does not fit, is not.
    assert not (tmp_path / "m.index").exists()


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    values = dict(
        golden("masked_lm")[0],
        vocab_size=500,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=10,
    )
    config = configuration.RobertaConfig.from_dict(values)
    variables = weight_names.variables({"encoder", "masked_lm"}, config)
    sizes = [4 * lazy_tensors.count(variable.shape) for variable in variables]
    given = hf_model(tmp_path / "given", {}, values)
    with open(str(given / "model.safetensors"), "wb") as stream:
        safetensors_file.write(
            stream,
            {
                variable.hf: lazy_tensors.zeros(
                    "F32", variable.shape, variable.hf
                )
                for variable in variables
            },
        )
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "warm" / "up")
    tracemalloc.start()
    try:
        convert("hf", "tf", given, tmp_path / "tf" / "m")
        convert("tf", "hf", tmp_path / "tf" / "m", tmp_path / "hf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * max(sizes) < sum(sizes) / 4


def mutations(data, number):
    """Copies of bytes with a few of them changed or the end cut off."""
    random = np.random.RandomState(11)
    for _ in range(number):
        changed = bytearray(data)
        # Half of the changes hit the first part, where the description is.
        for _ in range(random.randint(1, 4)):
            end = len(data) if random.rand() < 0.5 else min(len(data), 5000)
            changed[random.randint(end)] = random.randint(256)
        if random.rand() < 0.1:
            del changed[random.randint(len(data)) :]
        yield bytes(changed)


@pytest.mark.parametrize(
    "source, file",
    [
        ("hf", "model.safetensors"),
        ("hf", "config.json"),
        ("tf", "m.index"),
        ("tf", "m.data-00000-of-00001"),
    ],
)
def test_changed_bytes_give_the_documented_errors_alone(tmp_path, source, file):
    if source == "tf":
        convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "in" / "m")
    else:
        convert("hf", "hf", GOLDEN / "masked_lm", tmp_path / "in")
    path = tmp_path / "in" / file
    given = tmp_path / "in" / ("m" if source == "tf" else "")
    for changed in mutations(path.read_bytes(), 60):
        path.write_bytes(changed)
        try:
            convert(source, "hf", given, tmp_path / "out", overwrite=True)
        except errors.UserError as error:
            assert len(str(error)) < 2000


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, "convert_checkpoint.py"] + list(arguments),
        cwd=str(REPOSITORY),
        capture_output=True,
        text=True,
    )


def test_the_command_line_converts_and_reports(tmp_path):
    done = run_script(
        "--from=hf",
        "--to=tf",
        f"--input={GOLDEN / 'masked_lm'}",
        f"--output={tmp_path / 'm'}",
        "--vocab_file=",
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 43
    assert done.stdout.splitlines()[-1] == (
        f"tensors=42 left_out=0 output={tmp_path / 'm'}"
    )
    assert len(tf_arrays(tmp_path / "m")) == 42


def test_a_conversion_needs_neither_tensorflow_nor_much_memory(tmp_path):
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path('convert_checkpoint.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert 'modeling' not in sys.modules\n"
        "print(open('/proc/self/status').read())\n"
    )
    flags = ["--from=hf", "--to=tf", f"--input={GOLDEN / 'masked_lm'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags, f"--output={tmp_path / 'm'}"],
        cwd=str(REPOSITORY),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert int(peak) < 80 * 1024  # 39 MB on Python 3.7, 45 MB on 3.11


def test_the_command_line_ends_with_one_line_of_error(tmp_path):
    done = run_script("--from=tf", "--to=hf", "--input=no", "--output=x")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "convert_checkpoint.py: error: no.index does not exist; "
    )


def test_what_transformers_ignores_is_ignored(tmp_path, caplog):
    """Public RoBERTas have do_lower_case, which RobertaTokenizer ignores."""
    prefix = tiny.write_trained(tmp_path / "model", ["masked_lm"])
    convert("tf", "hf", prefix, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "add_prefix_space": true}'
    )
    convert("hf", "tf", tmp_path / "hf", tmp_path / "tf" / "m")
    values = json.loads((tmp_path / "tf" / "tokenizer_config.json").read_text())
    assert not values["do_lower_case"] and not values["add_prefix_space"]
    assert not (tmp_path / "tf" / "tokenizer.json").exists()
    assert "do_lower_case is ignored" in caplog.text
    assert "add_prefix_space is not supported" in caplog.text
