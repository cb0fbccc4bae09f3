# SPDX-License-Identifier: Apache-2.0
"""Config values that no shape depends on are compared with config.json."""

import json

import pytest

import configuration
from common import errors
from helpers import tiny
from training import run_config, warm_start


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
    )


def test_a_directory_without_a_checkpoint_is_rejected(tmp_path):
    with pytest.raises(errors.UserError, match="no TensorFlow checkpoint"):
        check(
            tmp_path,
            {"init_checkpoint": str(tiny.write_model(tmp_path / "trained"))},
        )


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


@pytest.mark.parametrize("ending", [".index", ".data-00000-of-00001"])
def test_a_file_of_a_checkpoint_is_not_its_name(trained, tmp_path, ending):
    with pytest.raises(
        errors.UserError, match="one file of a checkpoint; .*model.ckpt-7$"
    ):
        check(tmp_path, {"init_checkpoint": trained + ending})


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
    )
