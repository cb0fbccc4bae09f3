# SPDX-License-Identifier: Apache-2.0
"""The tokenizer's files beside a model: which casing, and whether they fit."""

import json

import pytest

from common import errors
from helpers import tiny, tiny_tokenizer
from weights import model_directory


@pytest.fixture
def model(tmp_path):
    """A directory of a lower-cased model."""
    folder = tmp_path / "model"
    folder.mkdir()
    files = model_directory.TokenizerFiles(*tiny_tokenizer.write(tmp_path))
    model_directory.write_tokenizer(
        str(folder), files._replace(do_lower_case=True), 512
    )
    return folder


def given(tmp_path, lowers=True):
    return model_directory.find_tokenizer(str(tmp_path))._replace(
        do_lower_case=lowers
    )


def swap(tmp_path):
    """Two ids of a vocabulary of the same size are exchanged."""
    vocabulary = tiny_tokenizer.tiny_vocabulary()
    vocabulary["low"], vocabulary["er"] = vocabulary["er"], vocabulary["low"]
    tiny_tokenizer.write(tmp_path, vocabulary)


def reverse(tmp_path):
    lines = ["#version: 0.2", *reversed(tiny_tokenizer.MERGES)]
    tiny_tokenizer.write(tmp_path, merges="\n".join(lines))


@pytest.mark.parametrize(
    "change, lowers, message",
    [
        (swap, True, "vocab.json: not the same as"),
        (reverse, True, "merges.txt: not the same as"),
        (lambda _: None, False, "do_lower_case is False, but"),
    ],
)
def test_another_tokenizer_stops_or_is_warned_of(
    tmp_path, model, caplog, change, lowers, message
):
    change(tmp_path)
    with pytest.raises(errors.UserError, match=message):
        model_directory.check_tokenizer(given(tmp_path, lowers), str(model))
    model_directory.check_tokenizer(
        given(tmp_path, lowers), str(model), allow_other=True
    )
    (line,) = [r.getMessage() for r in caplog.records]
    assert message in line and "--allow_other_tokenizer" in line


def test_the_same_tokenizer_may_be_written_in_another_way(tmp_path, model):
    tiny_tokenizer.write(
        tmp_path,
        json.dumps(tiny_tokenizer.tiny_vocabulary(), indent=1),
        "\r\n".join(tiny_tokenizer.MERGES),
    )
    model_directory.check_tokenizer(given(tmp_path), str(model))


def test_a_directory_without_a_tokenizer_fits_any(tmp_path, model):
    empty = tmp_path / "empty"
    empty.mkdir()
    model_directory.check_tokenizer(given(tmp_path), str(empty))


@pytest.mark.parametrize(
    "flag, saved, expected, source",
    [
        (None, True, True, "tokenizer_config.json"),
        (None, False, False, "tokenizer_config.json"),
        (None, None, False, "the default"),
        (True, None, True, "from --do_lower_case"),
        (True, False, True, "from --do_lower_case"),
    ],
)
def test_casing_is_the_flag_else_that_of_the_model(
    tmp_path, caplog, flag, saved, expected, source
):
    caplog.set_level("INFO", "absl")
    tiny.write_model(tmp_path)
    if saved is not None:
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"do_lower_case": saved})
        )
    directories = ["", str(tmp_path)]
    chosen = model_directory.choose_lower_case(flag, directories)
    assert chosen is expected
    (line,) = [r.getMessage() for r in caplog.records]
    assert f"do_lower_case={expected}" in line and source in line
