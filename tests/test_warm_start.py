# SPDX-License-Identifier: Apache-2.0
"""Config values that no shape depends on are compared with config.json."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import configuration
from common import errors
from helpers import broken_server, conversions, fairseq_files, tiny
from helpers.paths import FIRST_VERSION, REPOSITORY
from tasks import finetuning
from training import checkpoints, run_config, warm_start
from weights import tf_checkpoint


@pytest.fixture
def trained(tmp_path):
    return tiny.write_trained(tmp_path / "trained", ["masked_lm"])


def check(folder, place, **changes):
    """Checks a config, changed, against a checkpoint; `place` is its flag."""
    values = json.loads((folder / "trained" / "config.json").read_text())
    path = folder / "config.json"
    path.write_text(json.dumps(dict(values, **changes)))
    run = run_config.RunConfig(
        bert_config_file=str(path),
        do_train=True,
        **dict({"output_dir": str(folder / "new")}, **place),
    )
    warm_start.check(
        warm_start.resolved(run),
        configuration.RobertaConfig.from_json_file(str(path)),
        ["masked_lm"],
        "cls/predictions/",
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("config.json", "neither model.safetensors nor pytorch_model.bin"),
        ("vocab.json", "neither a TensorFlow checkpoint nor Hugging Face's"),
    ],
)
def test_a_directory_without_weights_is_rejected(
    trained, tmp_path, name, message
):
    (tmp_path / "empty").mkdir()
    shutil.copy(str(tmp_path / "trained" / name), str(tmp_path / "empty"))
    with pytest.raises(errors.UserError, match=message) as caught:
        check(
            tmp_path,
            {
                "init_checkpoint": str(tmp_path / "empty"),
                "cache_dir": str(tmp_path / "cache"),
            },
        )
    assert f"--init_checkpoint={tmp_path / 'empty'}: " in str(caught.value)


def test_files_of_hugging_face_are_converted_once(tmp_path, log_lines):
    """tests/data/first_version/hf is its squad, as version 1.0 converted it."""
    folder = tmp_path / "hf"
    shutil.copytree(str(FIRST_VERSION / "hf"), str(folder))
    settings = {
        "init_checkpoint": str(folder),
        "cache_dir": str(tmp_path / "cache"),
    }
    run = run_config.RunConfig(output_dir=str(tmp_path / "out"), **settings)
    prefixes = [warm_start.resolved(run).init_checkpoint for _ in range(2)]
    original = tiny.values_of(FIRST_VERSION / "squad" / "model.ckpt-26")
    values = tiny.values_of(prefixes[0])
    assert len(values) == 39 and prefixes[0] == prefixes[1]
    for name, value in values.items():
        np.testing.assert_array_equal(value, original[name], err_msg=name)
    assert log_lines == [
        f"--init_checkpoint={folder}: {what} {prefixes[0]}"
        for what in ("converting to", "using")
    ]
    with open(tf_checkpoint.data_file(prefixes[0]), "r+b") as stream:
        stream.truncate(1000)
    assert warm_start.resolved(run).init_checkpoint == prefixes[0]
    assert not checkpoints.damage(prefixes[0])
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert warm_start.resolved(run).init_checkpoint != prefixes[0]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.json").write_text(json.dumps(config))
    for name, value, message in (
        ("layer_norm_eps", 1e-12, "has layer_norm_eps 1e-12"),
        ("num_attention_heads", 1, "has num_attention_heads 1"),
        ("hidden_size", 8, "the model config requires"),
    ):
        with pytest.raises(errors.UserError, match=message):
            check(tmp_path, settings, **{name: value})


def resolve(tmp_path, checkpoint, **environment):
    """(exit code, output) of a program that resolves --init_checkpoint."""
    code = (
        "from training import run_config, warm_start\n"
        "run = warm_start.resolved(run_config.RunConfig(init_checkpoint="
        f"{checkpoint!r}, cache_dir='cache', output_dir='out'))\n"
        "print(run.init_checkpoint, run.bert_config_file)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=str(tmp_path),
        env=dict(
            os.environ,
            PYTHONPATH=os.pathsep.join([str(REPOSITORY), *sys.path]),
            HF_HOME=str(tmp_path / "hub"),
            no_proxy="127.0.0.1",
            **environment,
        ),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout or done.stderr


def test_a_name_of_the_hub_is_downloaded_and_converted(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    model = tmp_path / "model"
    shutil.copytree(str(FIRST_VERSION / "hf"), str(model))
    (model / "notes.txt").write_bytes(bytes(12 << 20))  # read by 10 MiB
    with broken_server.running() as site:
        mirror = {"HF_ENDPOINT": site.base}
        broken_server.add_model(site, "acme/tiny", model, at_most=11 << 20)
        code, line = resolve(tmp_path, "hf:acme/tiny", **mirror)
        assert code == 1 and "same command again to resume" in line
        assert "--init_checkpoint=hf:acme/tiny: " in line
        broken_server.add_model(site, "acme/tiny", model)
        site.requests.clear()
        for _ in range(3):  # the closed connection may fail once more
            code, line = resolve(tmp_path, "hf:acme/tiny", **mirror)
            if code == 0:
                break
        ranges = {start for _, start in site.requests if start}
    # A connection that is reset may lose what was received last.
    assert code == 0 and ranges <= {f"bytes={10 << 20}-"}, line
    prefix, config_file = line.split()
    assert config_file == os.path.dirname(prefix) + "/config.json"
    values = tiny.values_of(tmp_path / prefix)
    original = tiny.values_of(FIRST_VERSION / "squad" / "model.ckpt-26")
    for name, value in values.items():
        np.testing.assert_array_equal(value, original[name], err_msg=name)
    offline = {"HF_HUB_OFFLINE": "1", **mirror}
    assert resolve(tmp_path, "hf:acme/tiny", **offline) == (0, line)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run = run_config.RunConfig(
        output_dir=str(tmp_path), init_checkpoint="hf:acme/other"
    )
    with pytest.raises(errors.UserError, match="HF_HUB_OFFLINE is set: copy"):
        warm_start.resolved(run)


def test_config_and_tokenizer_are_those_of_the_checkpoint(tmp_path):
    run = run_config.RunConfig(
        init_checkpoint=str(FIRST_VERSION / "hf"),
        cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "out"),
        max_seq_length=64,
        do_train=True,
    )
    setup = finetuning.begin(run, finetuning.TaskConfig(), "cls/squad/")
    config = json.loads((FIRST_VERSION / "hf" / "config.json").read_text())
    assert setup.config.hidden_size == config["hidden_size"]
    for name in ("vocab.json", "merges.txt"):
        copy = pathlib.Path(setup.run.init_checkpoint).with_name(name)
        assert str(copy) in (setup.task.vocab_file, setup.task.merges_file)
        original = (FIRST_VERSION / "hf" / name).read_bytes()
        assert copy.read_bytes() == original


@pytest.mark.parametrize("name", ["fairseq", "fairseq/model.pt"])
def test_a_model_of_fairseq_is_converted(tmp_path, name):
    fairseq_files.write(tmp_path / "fairseq")
    run = warm_start.resolved(
        run_config.RunConfig(
            init_checkpoint=str(tmp_path / name),
            cache_dir=str(tmp_path / "cache"),
            output_dir=str(tmp_path / "out"),
        )
    )
    conversions.convert(
        "fairseq", "tf", tmp_path / "fairseq", tmp_path / "other" / "model.ckpt"
    )
    expected = tiny.values_of(tmp_path / "other" / "model.ckpt")
    assert expected
    for name, value in tiny.values_of(run.init_checkpoint).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize(
    "flag, value",
    [
        ("output_dir", "trained"),
        ("init_checkpoint", "trained/model.ckpt-7"),
        ("init_checkpoint", "trained"),
    ],
)
def test_a_config_of_another_model_is_rejected(trained, tmp_path, flag, value):
    place = {flag: str(tmp_path / value)}
    check(tmp_path, place)
    check(tmp_path, place, hidden_dropout_prob=0.5)
    for name, value_in_config in (
        ("num_attention_heads", 2),
        ("pad_token_id", 0),
        ("layer_norm_eps", 1e-12),
    ):
        with pytest.raises(errors.UserError) as caught:
            check(tmp_path, place, **{name: value_in_config})
        message = str(caught.value)
        assert f"config.json has {name} {value_in_config!r}" in message
        assert trained in message


def test_a_config_that_was_edited_after_training_is_rejected(trained, tmp_path):
    record = {"fixed": {"config.json's num_attention_heads": 2}}
    (tmp_path / "trained" / "run.json").write_text(json.dumps(record))
    with pytest.raises(errors.UserError, match="run.json .* has 2, with which"):
        check(tmp_path, {"init_checkpoint": trained})
    # Resuming, where --allow_changed_run applies.
    check(tmp_path, {"output_dir": str(tmp_path / "trained")})


@pytest.mark.parametrize("flag", ["output_dir", "init_checkpoint"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_config_with_other_layers_is_rejected(
    trained, tmp_path, flag, layers
):
    with pytest.raises(
        errors.UserError,
        match=f"ckpt-7 has 2 encoder layers, but .*config.json has "
        f"num_hidden_layers {layers}; use",
    ):
        check(
            tmp_path,
            {flag: str(tmp_path / "trained")},
            num_hidden_layers=layers,
        )


@pytest.mark.parametrize("ending", [".index", ".data-00000-of-00001"])
def test_a_file_of_a_checkpoint_is_not_its_name(trained, tmp_path, ending):
    with pytest.raises(
        errors.UserError, match="one file of a checkpoint; .*model.ckpt-7$"
    ):
        check(tmp_path, {"init_checkpoint": trained + ending})


@pytest.mark.parametrize(
    "heads, labels, message",
    [
        (["masked_lm"], 3, "pre-trained .*; fine-tune it .* run_classifier.py"),
        (
            ["classification", "pooler"],
            2,
            "with 3 labels, but 2 were requested; use the labels of the check",
        ),
    ],
)
def test_a_checkpoint_of_another_task_is_not_predicted_with(
    tmp_path, heads, labels, message
):
    prefix = tiny.write_trained(tmp_path / "model", heads)
    run = run_config.RunConfig(
        bert_config_file=str(tmp_path / "model" / "config.json"),
        init_checkpoint=prefix,
        output_dir=str(tmp_path / "new"),
    )
    with pytest.raises(errors.UserError, match=message):
        warm_start.check(
            run,
            run_config.model_config(run),
            ["classification"],
            "cls/classification/",
            labels=labels,
        )


def test_a_checkpoint_that_does_not_exist_is_one_line(tmp_path):
    tiny.write_model(tmp_path / "trained")
    with pytest.raises(errors.UserError, match="ckpt-9: does not exist; exp"):
        check(tmp_path, {"init_checkpoint": str(tmp_path / "model.ckpt-9")})


def test_a_mistyped_checkpoint_is_named_rather_than_its_config(tmp_path):
    run = run_config.RunConfig(
        init_checkpoint=str(tmp_path / "modle"), output_dir=str(tmp_path)
    )
    with pytest.raises(errors.UserError, match="modle: does not exist; expect"):
        warm_start.resolved(run)
    own = dataclasses.replace(run, bert_config_file="config.json")
    assert warm_start.resolved(own) == own  # a run that resumes needs no more


@pytest.mark.parametrize("text", [None, "no JSON", "{}"])
def test_without_a_config_beside_it_nothing_is_compared(
    trained, tmp_path, text
):
    values = (tmp_path / "trained" / "config.json").read_text()
    place = {"init_checkpoint": trained}
    check(tmp_path, place)
    (tmp_path / "trained" / "config.json").unlink()
    if text is not None:
        (tmp_path / "trained" / "config.json").write_text(text)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(json.loads(values), num_attention_heads=2)))
    warm_start.check(
        run_config.RunConfig(
            bert_config_file=str(path),
            do_train=True,
            output_dir=str(tmp_path / "new"),
            **place,
        ),
        configuration.RobertaConfig.from_json_file(str(path)),
        ["masked_lm"],
        "cls/predictions/",
    )
