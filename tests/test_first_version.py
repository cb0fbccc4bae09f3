# SPDX-License-Identifier: Apache-2.0
"""Runs and records of the first version: tests/data/first_version/README.md."""

import shutil

import pytest
import tensorflow.compat.v1 as tf

from common import files
from helpers import tiny
from helpers.paths import REPOSITORY

DATA = REPOSITORY / "tests" / "data" / "first_version"
# Recorded on TensorFlow 1.15, which sums in another order than 2.15.
TOLERANCE = 1e-6 if tf.__version__.startswith("1.") else 1e-4
SQUAD_FILES = ("predictions.json", "null_odds.json", "eval_results.txt")


def results_of(directory):
    lines = (directory / "eval_results.txt").read_text().splitlines()
    return {
        key: float(value)
        for key, value in (line.split(" = ") for line in lines)
    }


def pretrain(out, trains, **changes):
    settings = dict(
        bert_config_file=DATA / "config.json",
        input_files_dir=DATA / "records",
        eval_files_dir=DATA / "records",
        output_dir=out,
        max_seq_length=64,
        max_predictions_per_seq=12,
        train_batch_size=8,
        num_train_steps=12,
        num_warmup_steps=2,
        learning_rate="1e-3",
        save_checkpoints_steps=4,
        do_train=trains,
        do_eval=True,
        accelerator="cpu",
    )
    return tiny.run(
        tiny.command("run_pretraining.py", [], **dict(settings, **changes)),
        tiny.environment(npu=False),
    )


@pytest.mark.parametrize("trains, expected", [(False, 8), (True, 12)])
def test_a_pretraining_run_is_evaluated_and_resumed(tmp_path, trains, expected):
    out = tmp_path / "run"
    shutil.copytree(str(DATA / "pretraining"), str(out))
    output = pretrain(out, trains)
    before = DATA / ("resumed" if trains else "pretraining")
    recorded = results_of(before)
    assert recorded["global_step"] == expected
    assert results_of(out) == pytest.approx(recorded, rel=TOLERANCE)
    # The tokenizer is neither beside the records nor beside the config.
    assert output.count("the tokenizer of these records is not beside") == 1
    assert not (out / "tokenizer_config.json").exists()
    config = files.sha256(str(out / "config.json"))
    assert config == files.sha256(str(before / "config.json"))


def test_the_tokenizer_of_records_is_found_beside_the_config(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(str(DATA / "squad"), str(base))
    (base / "checkpoint").unlink()
    output = pretrain(
        tmp_path / "run",
        trains=True,
        num_train_steps=3,
        bert_config_file=base / "config.json",
    )
    assert f"do_lower_case=False, tokenizer in {base}" in output
    assert "the tokenizer of these records is not" not in output
    for name in ("vocab.json", "merges.txt"):
        assert files.sha256(str(tmp_path / "run" / name)) == files.sha256(
            str(DATA / "squad" / name)
        )


def test_another_casing_than_that_of_a_run_is_rejected(tmp_path):
    """Nothing but the optimizer's moments says that it was cased."""
    out = tmp_path / "run"
    shutil.copytree(str(DATA / "squad"), str(out))
    output = tiny.run(
        tiny.command(
            "run_squad.py",
            ["--do_train=True", "--do_lower_case=True"],
            bert_config_file=DATA / "config.json",
            vocab_file=out / "vocab.json",
            merges_file=out / "merges.txt",
            train_file=DATA / "questions.json",
            output_dir=out,
            max_seq_length=64,
        ),
        tiny.environment(npu=False),
        code=1,
    )
    assert (
        "model.ckpt-26 was trained on 30 tokens with capitals, 'H' first; use "
        "the model's own tokenizer, or pass --allow_other_tokenizer=True"
    ) in output.splitlines()[-1]


@pytest.mark.parametrize("model", ["run", "hf"])
def test_a_question_answering_model_is_predicted_with(tmp_path, model):
    out = tmp_path / "run"
    place = {}
    if model == "run":
        shutil.copytree(str(DATA / "squad"), str(out))
        for name in SQUAD_FILES:
            (out / name).unlink()
    else:
        out.mkdir()
        place = {
            "init_checkpoint": DATA / "hf",
            "cache_dir": tmp_path / "cache",
        }
    before = {path.name: files.sha256(str(path)) for path in out.iterdir()}
    tiny.run(
        tiny.command(
            "run_squad.py",
            ["--do_predict=True", "--version_2_with_negative=True"],
            bert_config_file=DATA / "config.json",
            vocab_file=DATA / "squad" / "vocab.json",
            merges_file=DATA / "squad" / "merges.txt",
            predict_file=DATA / "questions.json",
            output_dir=out,
            max_seq_length=64,
            doc_stride=32,
            max_query_length=24,
            accelerator="cpu",
            **place,
        ),
        tiny.environment(npu=False),
    )
    recorded = files.read_json(str(DATA / "squad" / "null_odds.json"))
    odds = files.read_json(str(out / "null_odds.json"))
    assert odds == pytest.approx(recorded, abs=1e-4)
    assert set(results_of(out)) == {"global_step", *results_of(DATA / "squad")}
    after = {path.name: files.sha256(str(path)) for path in out.iterdir()}
    assert {name: after[name] for name in before} == before
    results = {*SQUAD_FILES, "nbest_predictions.json"}
    new = {name for name in after if not name.startswith("events.")}
    assert new == {*before, *results}
