# SPDX-License-Identifier: Apache-2.0
"""Tests of trained_model.py: finding files, heads against the reference."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors
from helpers import tiny
from helpers.paths import GOLDEN
from inference import graphs, trained_model
from weights import conversion


@pytest.mark.parametrize(
    "name, head, outputs, atol",
    [
        ("masked_lm", "mlm", {"logits": "mlm_logits"}, 3e-5),
        ("masked_lm", "encoder", {"sequence_output": "hidden_2"}, 1e-5),
        (
            "question_answering",
            "squad",
            {"start_logits": "start_logits", "end_logits": "end_logits"},
            1e-5,
        ),
        (
            "sequence_classification",
            "classification",
            {"logits": "logits"},
            1e-5,
        ),
    ],
)
def test_heads_give_the_reference_numbers(
    golden_checkpoint, name, head, outputs, atol
):
    model = trained_model.find(golden_checkpoint(name))
    expected = np.load(str(GOLDEN / name / "expected.npz"))
    graph = tf.Graph()
    with graph.as_default():
        ids = tf.constant(expected["input_ids"].astype(np.int32))
        built = graphs.build(model, head, ids)
    with graphs.restored(model, graph) as session:
        results = session.run(built)
    assert set(results) == set(outputs)
    tokens = expected["input_mask"] != 0
    for ours, theirs in outputs.items():
        output, reference = results[ours], expected[theirs]
        if reference.ndim > 1 and reference.shape[:2] == tokens.shape:
            output, reference = output[tokens], reference[tokens]
        np.testing.assert_allclose(output, reference, rtol=0, atol=atol)


def test_no_answer_is_at_padding(golden_checkpoint):
    model = trained_model.find(golden_checkpoint("question_answering"))
    graph = tf.Graph()
    with graph.as_default():
        built = graphs.build(model, "squad", tf.constant([[0, 5, 2, 1, 1]]))
    with graphs.restored(model, graph) as session:
        results = session.run(built)
    for logits in results.values():
        assert (logits[0, 3:] < -1e8).all() and (logits[0, :3] > -1e8).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    tiny.write_trained(
        folder,
        ["tagging", "multiple_choice"],
        labels=4,
        id2label={"0": "O", "2": "TOWN"},
    )
    return folder


def test_the_newest_checkpoint_of_a_directory_is_taken(trained):
    for path in (trained, trained / "model.ckpt-7"):
        model = trained_model.find(str(path))
        assert model.checkpoint == str(trained / "model.ckpt-7")
        assert model.tokenizer == (
            str(trained / "vocab.json"),
            str(trained / "merges.txt"),
            False,
        )
        assert model.parts == {"encoder", "tagging", "multiple_choice"}
    assert model.num_labels("tagging") == 4
    assert model.labels(4) == ["O", "LABEL_1", "TOWN", "LABEL_3"]
    for wrong in ("text", ["O"], None):
        other = model._replace(values={"id2label": wrong})
        assert other.labels(1) == ["LABEL_0"]


def test_labels_are_those_beside_the_checkpoint(trained, tmp_path):
    config = json.loads((trained / "config.json").read_text())
    del config["id2label"]
    path = tmp_path / "pretraining.json"
    path.write_text(json.dumps(config))
    flags = trained_model.ModelConfig(bert_config_file=str(path))
    model = trained_model.find(str(trained), flags)
    assert model.labels(4) == ["O", "LABEL_1", "TOWN", "LABEL_3"]


def test_the_only_checkpoint_needs_no_list(trained, tmp_path):
    for path in trained.glob("*.*"):
        shutil.copy(str(path), str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    model = trained_model.find(str(tmp_path))
    assert model.checkpoint == str(tmp_path / "model.ckpt-7")
    assert model.tokenizer.do_lower_case


@pytest.mark.parametrize(
    "parts, text, head",
    [
        (["masked_lm", "pooler"], None, "mlm"),
        (["question_answering", "answerable"], None, "squad"),
        (["masked_lm", "tagging"], None, "encoder"),
        ([], None, "encoder"),
        (["masked_lm", "tagging"], '{"task": "tagging"}', "tagging"),
    ],
)
def test_the_models_own_head_is_that_of_its_task_or_the_only_one(
    tmp_path, parts, text, head
):
    tiny.write_trained(tmp_path, parts)
    if text:
        (tmp_path / "task.json").write_text(text)
    assert trained_model.find(str(tmp_path)).own_head == head


def test_heads_of_tokens_and_options_have_their_shapes(trained):
    model = trained_model.find(str(trained))
    graph = tf.Graph()
    with graph.as_default():
        tags = graphs.build(model, "tagging", tf.constant([[0, 9, 2]]))
    with graphs.restored(model, graph) as session:
        assert session.run(tags)["logits"].shape == (1, 3, 4)
    ids = np.array([[[0, 5, 2], [0, 6, 2]], [[0, 5, 2], [0, 9, 2]]], np.int32)
    graph = tf.Graph()
    with graph.as_default():
        input_ids = tf.placeholder(tf.int32, [None, None, None])
        choices = graphs.build(model, "multiple_choice", input_ids)
    with graphs.restored(model, graph) as session:
        logits = session.run(choices, {input_ids: ids})["logits"]
    assert logits.shape == (2, 2)
    assert logits[0, 0] == pytest.approx(logits[1, 0], abs=1e-6)
    assert abs(logits[0, 1] - logits[1, 1]) > 1e-3


def refusal(path):
    with pytest.raises(errors.UserError) as caught:
        trained_model.find(str(path))
    return str(caught.value)


def test_other_paths_than_a_model_are_rejected(trained, tmp_path):
    assert "--model" in refusal("")
    assert "neither a directory nor" in refusal(tmp_path / "nothing")
    assert "there is no checkpoint" in refusal(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert "convert_checkpoint.py --from=hf --to=tf --i" in refusal(tmp_path)
    with pytest.raises(
        errors.UserError,
        match="no question_answering head, "
        "only encoder, multiple_choice, tagging",
    ):
        trained_model.find(str(trained)).check_head("squad")


def test_a_model_that_was_only_pre_trained_names_the_command(tmp_path):
    prefix = tiny.write_trained(tmp_path, ["masked_lm"])
    with pytest.raises(errors.UserError) as caught:
        trained_model.find(prefix).check_head("squad")
    assert str(caught.value) == (
        f"{prefix}: a pre-trained model without a question_answering head; "
        "fine-tune it first with run_squad.py --do_train=True "
        f"--init_checkpoint={prefix}"
    )


def copied(trained, target):
    for path in trained.iterdir():
        shutil.copy(str(path), str(target))
    return target


def test_a_config_of_another_model_is_rejected(trained, tmp_path):
    copied(trained, tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    for layers in (1, 3):
        values = dict(json.loads(text), num_hidden_layers=layers)
        path.write_text(json.dumps(values))
        assert refusal(tmp_path) == (
            f"{tmp_path}/model.ckpt-7 has 2 encoder layers, but {path} has "
            f"num_hidden_layers {layers}; use the config.json of this "
            "checkpoint"
        )
    path.write_text(text.replace('"vocab_size": 261', '"vocab_size": 262'))
    assert "shape [261, 32]" in refusal(tmp_path)
    path.unlink()
    assert "--bert_config_file" in refusal(tmp_path)
    flags = trained_model.ModelConfig(
        bert_config_file=str(trained / "config.json")
    )
    model = trained_model.find(str(tmp_path), flags)
    assert model.config.vocab_size == 261


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_files_that_are_not_those_of_training_are_rejected(
    trained, tmp_path, caplog, name
):
    copied(trained, tmp_path)
    files = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    hashes = {
        key: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        for key, file in files.items()
    }
    record = {"fixed": dict(hashes, do_lower_case=False)}
    (tmp_path / "run.json").write_text(json.dumps(record))
    trained_model.find(str(tmp_path))
    with pytest.raises(errors.UserError, match="run.json has False"):
        trained_model.find(
            str(tmp_path), trained_model.ModelConfig(do_lower_case=True)
        )
    swap_ids(tmp_path / "vocab.json")
    if name == "merges.txt":
        shutil.copy(str(trained / "vocab.json"), str(tmp_path))
        (tmp_path / name).write_text("#version: 0.2\na b\n")
    assert (
        f"{tmp_path}/{name}: not the file of training, whose SHA-256 is in "
        f"{tmp_path}/run.json; use the model's own" in refusal(tmp_path)
    )
    flags = trained_model.ModelConfig(allow_other_tokenizer=True)
    trained_model.find(str(tmp_path), flags)
    assert "not the file of training" in caplog.text


@pytest.mark.parametrize(
    "name, value", [("layer_norm_eps", 1e-12), ("num_attention_heads", 2)]
)
def test_a_config_that_was_edited_after_training_is_rejected(
    trained, tmp_path, name, value
):
    path = copied(trained, tmp_path) / "config.json"
    values = json.loads(path.read_text())
    record = {f"config.json's {key}": old for key, old in values.items()}
    (tmp_path / "run.json").write_text(json.dumps({"fixed": record}))
    harmless = dict(values, hidden_dropout_prob=0.5, id2label={"0": "X"})
    path.write_text(json.dumps(harmless))
    trained_model.find(str(tmp_path))
    path.write_text(json.dumps(dict(values, **{name: value})))
    expected = (
        f"{path} has {name} {value!r}, but {tmp_path}/run.json next to "
        f"{tmp_path}/model.ckpt-7 has {values[name]!r}, with which its weights "
        "were trained; use that config, or the checkpoint of another model"
    )
    assert refusal(tmp_path) == expected
    options = conversion.ConvertConfig(
        input=str(tmp_path / "model.ckpt-7"), output=str(tmp_path / "hf")
    )
    with pytest.raises(errors.UserError) as caught:
        conversion.convert("tf", "hf", options, print)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "values, text",
    [
        (
            {"id2label": {"0": "x", "1": "b"}},
            "id2label differs from the labels",
        ),
        ({"problem_type": "regression"}, "problem_type is regression, but the"),
        ({"id2label": {"0": "a", "1": "LABEL_1"}}, ""),
        ({"id2label": None}, ""),
    ],
)
def test_labels_that_contradict_those_of_training_are_warned_of(
    tmp_path, caplog, values, text
):
    tiny.write_trained(tmp_path, ["classification"], labels=2, **values)
    (tmp_path / "task.json").write_text(
        '{"task": "classification", "labels": ["a", "b"]}'
    )
    model = trained_model.find(str(tmp_path))
    assert model.labels(2) == ["a", "b"]
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(lines) == bool(text)
    for line in lines:
        assert line.startswith(f"{tmp_path}/config.json: {text}")
        assert f"a, b of {tmp_path}/task.json" in line


@pytest.mark.parametrize(
    "name", ["config.json", "vocab.json", "checkpoint", "model.ckpt-7.index"]
)
@pytest.mark.parametrize(
    "make, problem",
    [
        (os.mkdir, "is a directory"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: os.symlink(path, path), "Too many levels of symbolic"),
    ],
    ids=["directory", "pipe", "loop"],
)
def test_what_is_not_a_file_says_what_it_is(
    trained, tmp_path, name, make, problem
):
    path = copied(trained, tmp_path) / name
    path.unlink()
    make(str(path))
    with pytest.raises((errors.UserError, OSError)) as caught:
        trained_model.find(str(tmp_path))
    assert problem in str(caught.value) and str(path) in str(caught.value)


def swap_ids(path):
    """A vocabulary of the same size."""
    ids = json.loads(path.read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(ids))


def test_a_truncated_checkpoint_is_rejected(trained, tmp_path):
    path = copied(trained, tmp_path) / "model.ckpt-7.data-00000-of-00001"
    os.truncate(str(path), path.stat().st_size - 9)
    assert "model.ckpt-7" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name, value", [("layer_norm_eps", 1e-12), ("num_attention_heads", 2)]
)
def test_a_config_that_changes_the_output_is_rejected(name, value, tmp_path):
    tiny.write_trained(tmp_path / "model", [])
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(dict(values, **{name: value})))
    flags = trained_model.ModelConfig(bert_config_file=str(other))
    with pytest.raises(errors.UserError, match=f"{name} {value!r}, but"):
        trained_model.find(str(tmp_path / "model"), flags)


def test_a_damaged_newest_checkpoint_is_warned_of(tmp_path, caplog):
    prefix = tiny.write_trained(tmp_path, [])
    for suffix in (".index", ".data-00000-of-00001"):
        data = (tmp_path / f"model.ckpt-7{suffix}").read_bytes()
        (tmp_path / f"model.ckpt-9{suffix}").write_bytes(data[:-100])
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-9"\n'
        'all_model_checkpoint_paths: "model.ckpt-7"\n'
        'all_model_checkpoint_paths: "model.ckpt-9"\n'
    )
    with caplog.at_level("WARNING"):
        assert trained_model.find(str(tmp_path)).checkpoint == prefix
    assert f"using {prefix}" in caplog.text
