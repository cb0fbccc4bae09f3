# SPDX-License-Identifier: Apache-2.0
"""What a training run writes beside its checkpoints, and what it compares."""

import json
import shutil

import pytest

import configuration
import tokenization
from common import errors, files
from helpers import tiny
from helpers.paths import FIRST_VERSION
from training import output_directory, run_config
from weights import model_directory

TASK = model_directory.Task("masked_lm", 16)


def new_run(folder, **changes):
    settings = dict(
        output_dir=str(folder / "out"),
        bert_config_file=str(folder / "base" / "config.json"),
        do_train=True,
    )
    return run_config.RunConfig(**dict(settings, **changes))


def tokenizer_of(directory, lowers=False):
    return model_directory.find_tokenizer(str(directory))._replace(
        do_lower_case=lowers
    )


def prepare(run, tokenizer=None, rank=0, **values):
    config = run_config.model_config(run)
    output_directory.prepare(
        run, config, rank, task=TASK, tokenizer=tokenizer, config_values=values
    )


@pytest.fixture
def base(tmp_path):
    return tiny.write_model(tmp_path / "base")


def test_a_new_run_writes_the_files_of_a_model(tmp_path, base):
    run = new_run(tmp_path, out_log_dir=str(tmp_path / "logs"))
    out = tmp_path / "out"
    prepare(run, tokenizer_of(base, True), rank=1)
    assert not list(out.iterdir())  # rank 0 writes
    prepare(run, tokenizer_of(base, True), extra="mine")
    assert (tmp_path / "logs").is_dir()
    values = json.loads((out / "config.json").read_text())
    assert values["model_type"] == "roberta" and values["extra"] == "mine"
    assert configuration.RobertaConfig.from_dict(values) == (
        run_config.model_config(run)
    )
    for name in ("vocab.json", "merges.txt"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (settings["do_lower_case"], settings["model_max_length"]) == (
        True,
        512,
    )
    assert json.loads((out / "task.json").read_text()) == {
        "task": "masked_lm",
        "max_seq_length": 16,
    }


def test_a_run_from_its_own_output_keeps_all_keys_of_the_config(tmp_path, base):
    path = base / "config.json"
    values = dict(json.loads(path.read_text()), name="mine")
    path.write_text(json.dumps(values))
    run = new_run(tmp_path, output_dir=str(base), bert_config_file=str(path))
    prepare(run)
    assert json.loads(path.read_text()) == values


@pytest.mark.parametrize("trains", [False, True])
def test_evaluation_and_resuming_write_nothing(tmp_path, base, trains):
    out = tmp_path / "out"
    tiny.write_trained(out, ["masked_lm"])
    before = {
        path.name: files.sha256(str(path)) for path in sorted(out.iterdir())
    }
    run = new_run(tmp_path, do_train=trains)
    (base / "merges.txt").write_text("#version: 0.2\na b\n")
    prepare(run, tokenizer_of(base, True), more=1)
    assert before == {
        path.name: files.sha256(str(path)) for path in sorted(out.iterdir())
    }


def test_an_evaluation_in_a_fresh_directory_writes_nothing(tmp_path, base):
    prepare(new_run(tmp_path, do_train=False), tokenizer_of(base))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name, warnings",
    [
        # All embeddings of a masked LM have moments.
        ("pretraining/model.ckpt-8", ["nothing beside"]),
        ("squad/model.ckpt-26", ["30 tokens with capitals"]),
    ],
)
def test_lower_case_is_compared_with_what_was_trained_on(
    tmp_path, caplog, name, warnings
):
    prefix = FIRST_VERSION / name
    names = ("vocab.json", "merges.txt")
    paths = [FIRST_VERSION / "squad" / name for name in names]
    tokenizer = tokenization.RobertaTokenizer(*map(str, paths), True)
    run = new_run(
        tmp_path, init_checkpoint=str(prefix), allow_other_tokenizer=True
    )
    output_directory.check_lower_case(run, tokenizer, True)
    assert len(caplog.records) == len(warnings)
    assert all(text in caplog.text for text in warnings)
    copy = tmp_path / "copy"
    shutil.copytree(str(prefix.parent), str(copy))
    (copy / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    run = new_run(tmp_path, init_checkpoint=str(copy / prefix.name))
    output_directory.check_lower_case(run, tokenizer, True)
    assert len(caplog.records) == len(warnings)


def test_casing_that_nothing_tells_is_warned_of(tmp_path, caplog, base):
    run = new_run(tmp_path, init_checkpoint=str(base / "model.ckpt-1"))
    cased, other = (
        tokenization.RobertaTokenizer(*tokenizer_of(folder))
        for folder in (FIRST_VERSION / "squad", base)
    )
    output_directory.check_lower_case(run, cased, None)
    output_directory.check_lower_case(run, other, False)
    assert not caplog.records
    output_directory.check_lower_case(run, other, None)
    (record,) = caplog.records
    assert "pass --do_lower_case=True if" in record.getMessage()
    (base / "tokenizer_config.json").write_text("{}")
    output_directory.check_lower_case(run, other, None)
    assert len(caplog.records) == 1


def test_an_old_tokenizer_json_is_replaced(tmp_path, base):
    """transformers would read it instead of vocab.json and lower-case."""
    out = tmp_path / "out"
    prepare(new_run(tmp_path), tokenizer_of(base, True))
    path = out / "tokenizer.json"
    assert json.loads(path.read_text())["normalizer"] == {"type": "Lowercase"}
    vocabulary = json.loads((base / "vocab.json").read_text())
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (base / "vocab.json").write_text(json.dumps(vocabulary))
    prepare(new_run(tmp_path), tokenizer_of(base))
    values = json.loads(path.read_text())
    assert values["normalizer"] is None
    assert values["model"]["vocab"] == vocabulary
    path.unlink()
    prepare(new_run(tmp_path), tokenizer_of(base))
    assert not path.exists()


@pytest.mark.parametrize("place", ["out", "init", "directory"])
def test_another_tokenizer_than_the_models_stops(tmp_path, base, place):
    folder = tmp_path / place
    changes = {
        "out": {},
        "init": {"init_checkpoint": str(folder / "model.ckpt-7")},
        "directory": {"init_checkpoint": str(folder)},
    }[place]
    tiny.write_trained(folder, ["masked_lm"])
    run = new_run(tmp_path, **changes)
    output_directory.check_tokenizer(run, tokenizer_of(base))
    (base / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(errors.UserError, match=f"{folder}/merges.txt"):
        output_directory.check_tokenizer(run, tokenizer_of(base))
    allowed = new_run(tmp_path, allow_other_tokenizer=True, **changes)
    output_directory.check_tokenizer(allowed, tokenizer_of(base))
