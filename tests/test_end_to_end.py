# SPDX-License-Identifier: Apache-2.0
"""From text to scored answers on a two-layer model, and bad input.

The command lines are the predecessor's, with fewer steps.
"""

import json
import math
import re
import shutil
import typing

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import tfrecord
from helpers import forked, single_records, tiny, user_errors
from helpers.paths import GOLDEN, REPOSITORY
from pretraining_data import manifest

DATA = REPOSITORY / "tests" / "data"
CREATE = """create_pretraining_data.py
--input_file=$BookCorpus_DIR/test_bookscorpus.txt
--output_file=$BookCorpus_DIR/pretrain_data
--vocab_file=$BERT_BASE_DIR/vocab.json
--merges_file=$BERT_BASE_DIR/merges.txt --do_lower_case=True
--max_seq_length=128 --max_predictions_per_seq=20 --masked_lm_prob=0.15
--random_seed=12345 --dupe_factor=5"""
PRETRAIN = """run_pretraining.py --bert_config_file=$BERT_BASE_DIR/config.json
--max_seq_length=128 --max_predictions_per_seq=20 --train_batch_size=32
--learning_rate=2e-5 --num_warmup_steps=100 --num_train_steps=100000
--optimizer_type=adam --manual_fp16=True --use_fp16_cls=True
--input_files_dir=$BookCorpus_DIR/pretrain_data
--eval_files_dir=$BookCorpus_DIR/eval_data --npu_bert_debug=False
--npu_bert_use_tdt=True --do_train=True --num_accumulation_steps=1
--npu_bert_job_start_file= --iterations_per_loop=100
--save_checkpoints_steps=10000 --npu_bert_clip_by_global_norm=False
--distributed=False --npu_bert_loss_scale=0 --output_dir=$OUT_DIR
--out_log_dir=$OUT_DIR/loss"""
SQUAD = """run_squad.py --vocab_file=$BERT_BASE_DIR/vocab.json
--merges_file=$BERT_BASE_DIR/merges.txt
--bert_config_file=$BERT_BASE_DIR/config.json
--init_checkpoint=$BERT_BASE_DIR/tf_model/roberta_large.ckpt --do_train=True
--train_file=$SQUAD_DIR/train-%(version)s.json --do_predict=True
--predict_file=$SQUAD_DIR/dev-%(version)s.json --train_batch_size=4
--predict_batch_size=32 --learning_rate=3e-5 --num_train_epochs=2.0
--max_seq_length=512 --doc_stride=128 --output_dir=$OUT_DIR
--version_2_with_negative=%(negative)s"""


class Result(typing.NamedTuple):
    """How a script ended."""

    code: int
    output: str
    log: str


class Chain:
    """Runs command lines whose $NAME are the directories of one folder."""

    def __init__(self, folder):
        self.folder = folder
        self._places = {
            "BookCorpus_DIR": "corpus",
            "BERT_BASE_DIR": "base",
            "SQUAD_DIR": "squad",
        }

    def place(self, name):
        return self.folder / self._places[name]

    def run(self, text, *more, out="out", code=0):
        """Runs a script; gives a Result."""
        places = dict(self._places, OUT_DIR=out)
        words = [
            re.sub(
                r"\$(\w+)",
                lambda match: str(self.folder / places[match.group(1)]),
                word,
            )
            for word in text.split()
        ]
        command = tiny.command(words[0], [*words[1:], *more])
        result = Result(*forked.run(command, tiny.environment(npu=False)))
        assert result.code == code, result.log[-4000:]
        return result


TEXT = "".join(
    f"The river {n} runs past the town of number {n * 7 % 50}.\n"
    + "\n" * (n % 5 == 0)
    for n in range(150)
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The directories that the command lines name, and what runs them."""
    folder = tmp_path_factory.mktemp("chain")
    tiny.write_model(folder / "base", dropout=0.1, layers=2)
    for name in ("corpus", "squad"):
        (folder / name).mkdir()
    (folder / "corpus" / "test_bookscorpus.txt").write_text(TEXT)
    for version in ("v1.1", "v2.0"):
        for part in ("train", "dev"):
            tiny.write_squad(
                folder / "squad" / (f"{part}-{version}.json"),
                version_2=version == "v2.0",
                paragraphs=7,
            )
    return Chain(folder)


def read_results(directory):
    """The `key = value` lines of eval_results.txt."""
    lines = (directory / "eval_results.txt").read_text().splitlines()
    return {
        key: float(value)
        for key, value in (line.split(" = ") for line in lines)
    }


# --- The chain --------------------------------------------------------------


@pytest.fixture(scope="module")
def built(chain):
    """Records to train on (static) and to evaluate on (dynamic)."""
    result = chain.run(CREATE)
    chain.run(
        CREATE,
        "--masking=dynamic",
        "--dupe_factor=",
        f"--output_file={chain.place('BookCorpus_DIR') / 'eval_data'}",
    )
    return result


PRETRAIN_SHORT = (
    "--num_train_steps=8",
    "--num_warmup_steps=2",
    "--train_batch_size=4",
    "--display_loss_steps=2",
    "--do_eval=True",
)


@pytest.fixture(scope="module")
def pretrained(chain, built):
    result = chain.run(PRETRAIN, *PRETRAIN_SHORT, out="pretraining")
    target = chain.place("BERT_BASE_DIR") / "tf_model"
    target.mkdir()
    for path in (chain.folder / "pretraining").glob("model.ckpt-8.*"):
        shutil.copy(
            str(path),
            str(
                target / path.name.replace("model.ckpt-8", "roberta_large.ckpt")
            ),
        )
    return result


def test_tokenizer_files_go_along_with_the_model(chain, pretrained, answered):
    base = chain.place("BERT_BASE_DIR")
    for directory in (chain.folder / "pretraining", answered("v1.1")[0]):
        for name in ("vocab.json", "merges.txt"):
            assert (directory / name).read_bytes() == (base / name).read_bytes()
    # The records of the pre-training are lower-cased; fine-tuning starts from
    # a copy of its checkpoint without these files.
    for name, lowers in (("pretraining", True), ("v1.1", False)):
        values = json.loads(
            (chain.folder / name / "tokenizer_config.json").read_text()
        )
        assert values["do_lower_case"] is lowers


def test_fine_tuning_takes_the_casing_of_the_checkpoint(
    chain, built, pretrained
):
    assert built.log.count("vocab.json is cased") == 0  # it has no merges
    checkpoint = chain.folder / "pretraining" / "model.ckpt-8"
    text = SQUAD % {"version": "v1.1", "negative": False}
    flags = (f"--init_checkpoint={checkpoint}", "--num_workers=1")
    refused = chain.run(
        text, *flags, "--do_lower_case=False", out="lower", code=1
    )
    assert "do_lower_case is False, but" in refused.log
    assert not (chain.folder / "lower").exists()
    result = chain.run(text, *flags, out="lower")
    (line,) = [
        line for line in result.log.splitlines() if "do_lower_case=" in line
    ]
    source = checkpoint.parent / "tokenizer_config.json"
    assert line.endswith(f"I do_lower_case=True, from {source}")
    values = json.loads(
        (chain.folder / "lower" / "tokenizer_config.json").read_text()
    )
    assert values["do_lower_case"] is True


def test_a_model_says_how_it_was_fine_tuned(chain, answered):
    directory, _ = answered("v2.0")
    suggested = read_results(directory)["suggested_thresh"]
    assert json.loads((directory / "task.json").read_text()) == {
        "task": "question_answering",
        "max_seq_length": 512,
        "doc_stride": 128,
        "max_query_length": 64,
        "max_answer_length": 30,
        "version_2_with_negative": True,
        "null_score_diff_threshold": suggested,
    }


def test_an_evaluation_with_another_vocabulary_stops(chain, pretrained):
    """Of the same size, in records and in files."""
    base, other = chain.place("BERT_BASE_DIR"), chain.folder / "other"
    vocabulary = json.loads((base / "vocab.json").read_text())
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    other.mkdir()
    (other / "vocab.json").write_text(json.dumps(vocabulary))
    chain.run(
        CREATE,
        f"--output_file={other / 'records'}",
        f"--vocab_file={other / 'vocab.json'}",
    )
    checkpoint = chain.folder / "pretraining" / "model.ckpt-8"
    flags = (
        *PRETRAIN_SHORT,
        f"--eval_files_dir={other / 'records'}",
        f"--init_checkpoint={checkpoint}",
        "--do_train=False",
    )
    stopped = chain.run(PRETRAIN, *flags, out="elsewhere", code=1)
    assert "vocab.json: not the same as" in stopped.log
    allowed = chain.run(
        PRETRAIN, *flags, "--allow_other_tokenizer=True", out="elsewhere"
    )
    assert "continuing (--allow_other_tokenizer)" in allowed.log
    assert not (chain.folder / "elsewhere" / "vocab.json").exists()


def test_text_becomes_records(chain, built):
    corpus = chain.place("BookCorpus_DIR")
    static = manifest.load_manifest(str(corpus / "pretrain_data"))
    dynamic = manifest.load_manifest(str(corpus / "eval_data"))
    assert (static["masking"], dynamic["masking"]) == ("static", "dynamic")
    assert (
        sum(s["records"] for s in static["shards"]) == 5 * (static["sequences"])
    )
    assert "documents=31" in built.log and "dropped_tokens=0" in built.log


def test_pretraining_writes_what_users_read(chain, pretrained):
    directory = chain.folder / "pretraining"
    names = {path.name for path in directory.iterdir()}
    assert {
        "model.ckpt-8.index",
        "config.json",
        "eval_results.txt",
        "checkpoint",
        "loss",
    } <= names
    assert not [name for name in names if "incomplete" in name]
    assert list((directory / "loss").glob("events*"))
    lines = tiny.steps_of(pretrained.log)
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8]
    assert {
        "step",
        "loss",
        "learning_rate",
        "examples_per_second",
        "loss_scale",
        "overflows",
    } <= set(lines[-1])
    assert lines[-1]["loss_scale"] == 2**15
    assert abs(lines[0]["loss"] - math.log(tiny.VOCAB_SIZE)) < 0.7
    assert "fp16 on a CPU" in pretrained.log
    assert "device=cpu" in pretrained.log
    # TensorFlow's warnings about itself are silenced.
    assert "deprecat" not in pretrained.log.lower()


# Half of the last digit of the log line, where it has few.
DECIMALS = {"peak_memory_gigabytes": 0.0051}


def test_scalars_have_the_names_and_numbers_of_the_log(chain, pretrained):
    directory = chain.folder / "pretraining"
    scalars = tiny.scalars_of(directory / "loss")
    assert set(scalars) == {
        "loss",
        "masked_lm_accuracy",
        "perplexity",
        "learning_rate",
        "loss_scale",
        "overflows",
        "gradient_norm",
        "weight_norm",
        "examples_per_second",
        "tokens_per_second",
        "peak_memory_gigabytes",
        "eval/masked_lm_loss",
        "eval/masked_lm_accuracy",
        "eval/perplexity",
    }
    lines = tiny.steps_of(pretrained.log)
    for line in lines[1:]:
        for name in set(scalars) & set(line):
            assert scalars[name][line["step"]] == pytest.approx(
                line[name], rel=0.01, abs=DECIMALS.get(name, 1e-4)
            ), name
    # Of up to 128 tokens a sequence, those that are not padding.
    last = lines[-1]
    assert 64 < last["tokens_per_second"] / last["examples_per_second"] < 128
    weights = [
        tf.train.load_variable(str(directory), name)
        for name, _ in tf.train.list_variables(str(directory))
        if name.startswith(("bert/", "cls/")) and "/adam_" not in name
    ]
    assert scalars["weight_norm"][8] == pytest.approx(
        math.sqrt(sum((w.astype(np.float64) ** 2).sum() for w in weights)),
        rel=1e-5,
    )
    results = read_results(directory)
    for name in set(results) - {"global_step"}:
        assert scalars["eval/" + name] == {8: pytest.approx(results[name])}


def test_evaluation_is_the_same_every_time(chain, pretrained):
    directory = chain.folder / "pretraining"
    results = read_results(directory)
    assert set(results) == {
        "masked_lm_loss",
        "masked_lm_accuracy",
        "perplexity",
        "global_step",
    }
    assert results["global_step"] == 8
    assert results["perplexity"] == pytest.approx(
        math.exp(results["masked_lm_loss"])
    )
    (directory / "eval_results.txt").unlink()
    # The same command again: nothing is left to train, other batches.
    again = chain.run(
        PRETRAIN, *PRETRAIN_SHORT, "--eval_batch_size=5", out="pretraining"
    )
    assert not tiny.steps_of(again.log)
    assert "step=8 of num_train_steps=8: nothing is left" in again.log
    assert read_results(directory) == pytest.approx(results, rel=1e-5)


def test_evaluation_ends_after_max_eval_steps(chain, pretrained):
    directory = chain.folder / "pretraining"
    before = (directory / "eval_results.txt").read_text()
    logs = {}
    for steps in (0, 2, 1000):
        logs[steps] = chain.run(
            PRETRAIN,
            *PRETRAIN_SHORT,
            "--do_train=False",
            f"--max_eval_steps={steps}",
            "--eval_batch_size=3",
            out="pretraining",
        ).log
    total = re.search(r"evaluating (\d+) of \1 sequences", logs[0]).group(1)
    assert f"evaluating 6 of {total} sequences" in logs[2]
    assert f"evaluating {total} of {total} sequences" in logs[1000]
    (directory / "eval_results.txt").write_text(before)


@pytest.fixture(scope="module")
def answered(chain, pretrained):
    """Function of a version giving its output directory."""
    done = {}

    def run(version):
        if version not in done:
            text = SQUAD % {"version": version, "negative": version == "v2.0"}
            done[version] = chain.run(text, "--num_workers=1", out=version)
        return chain.folder / version, done[version]

    return run


@pytest.mark.parametrize(
    "version, script, keys",
    [
        ("v1.1", "evaluate-v1.1.py", {"exact_match", "f1"}),
        ("v2.0", "evaluate-v2.0.py", {"exact", "f1", "best_exact", "best_f1"}),
    ],
)
def test_questions_are_answered_and_scored(
    chain, answered, version, script, keys
):
    directory, result = answered(version)
    assert "variables loaded" in result.log
    document = json.loads(
        (chain.place("SQUAD_DIR") / (f"dev-{version}.json")).read_text()
    )
    contexts = {
        q["id"]: paragraph["context"]
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for q in paragraph["qas"]
    }
    predictions = json.loads((directory / "predictions.json").read_text())
    nbest = json.loads((directory / "nbest_predictions.json").read_text())
    assert set(predictions) == set(nbest) == set(contexts)
    for name, text in predictions.items():
        assert text in contexts[name] and (text or version == "v2.0")
        assert {"text", "probability", "start_logit", "end_logit"} <= set(
            nbest[name][0]
        )
    arguments = [f"$SQUAD_DIR/dev-{version}.json $OUT_DIR/predictions.json"]
    if version == "v2.0":
        odds = json.loads((directory / "null_odds.json").read_text())
        assert set(odds) == set(contexts)
        arguments.append("--na-prob-file $OUT_DIR/null_odds.json")
    scores = json.loads(
        chain.run(f"scripts/{script} {' '.join(arguments)}", out=version).output
    )
    assert keys <= set(scores)
    results = read_results(directory)
    for key in keys & set(results):
        assert results[key] == pytest.approx(scores[key], abs=1e-6)
    scalars = tiny.scalars_of(directory)
    assert {"loss", "span_accuracy", "gradient_norm"} <= set(scalars)
    step = max(scalars["loss"])
    assert results.pop("global_step") == step
    assert {name: scalars["eval/" + name] for name in results} == {
        name: {step: pytest.approx(value)} for name, value in results.items()
    }


def test_prediction_alone_gives_the_same_answers(chain, answered):
    directory, _ = answered("v1.1")
    before = (directory / "predictions.json").read_text()
    (directory / "predictions.json").unlink()
    chain.run(
        SQUAD % {"version": "v1.1", "negative": False},
        "--do_train=False",
        "--init_checkpoint=",
        "--num_workers=1",
        "--predict_batch_size=3",
        out="v1.1",
    )
    assert (directory / "predictions.json").read_text() == before


PREDICT = """predict.py answer --model=$OUT_DIR --predict_batch_size=3
--input_file=$SQUAD_DIR/dev-%(version)s.json --output_file=$OUT_DIR/same.json"""


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_a_loaded_model_gives_the_same_answers(chain, answered, version):
    """Without the flags of training, but with its threshold."""
    directory, _ = answered(version)
    chain.run(
        PREDICT % {"version": version},
        "--null_score_diff_threshold=0",
        out=version,
    )
    answers = json.loads((directory / "same.json").read_text())
    assert answers == json.loads((directory / "predictions.json").read_text())
    task = json.loads((directory / "task.json").read_text())
    assert task["version_2_with_negative"] == (version == "v2.0")


def test_every_option_of_fine_tuning_at_once(chain, pretrained):
    out = chain.folder / "options"
    result = chain.run(
        SQUAD % {"version": "v2.0", "negative": True},
        "--num_workers=1",
        "--answerability_head=True",
        "--optimizer_type=lamb",
        "--num_accumulation_steps=2",
        "--layerwise_lr_decay=0.8",
        "--recompute_layers=True",
        "--null_score_diff_threshold=-1000",
        "--clip_norm=0",
        "--max_seq_length=40",
        "--doc_stride=8",
        "--max_query_length=16",
        "--display_loss_steps=1",
        "--n_best_size=3",
        out="options",
    )
    assert "4 initialized at random (cls/squad/" in result.log
    names = dict(tf.train.list_variables(str(out)))
    assert names["cls/squad/answerable/kernel"] == [32, 1]
    assert "cls/squad/answerable/kernel/adam_v" in names
    # So low a threshold leaves every question without an answer.
    predictions = json.loads((out / "predictions.json").read_text())
    assert set(predictions.values()) == {""}
    nbest = json.loads((out / "nbest_predictions.json").read_text())
    assert {len(answers) for answers in nbest.values()} == {3}
    scores = read_results(out)
    assert scores["best_f1"] >= scores["f1"]
    assert (
        "predictions.json: null_score_diff_threshold=-1000; predict.py and "
        f"scripts/serve.py use {scores['suggested_thresh']:g}, which"
    ) in result.log
    # The loaded model sees the classifier and the windows too.
    chain.run(
        PREDICT % {"version": "v2.0", "negative": True},
        "--max_seq_length=40",
        "--doc_stride=8",
        "--max_query_length=16",
        "--n_best_size=3",
        f"--output_file={out / 'same.jsonl'}",
        out="options",
    )
    odds = json.loads((out / "null_odds.json").read_text())
    lines = (out / "same.jsonl").read_text().splitlines()
    assert len(lines) == len(odds)
    for result in map(json.loads, lines):
        assert result["null_odds"] == pytest.approx(
            odds[result["id"]], abs=1e-5
        )
        assert [entry["text"] for entry in result["nbest"]] == [
            entry["text"] for entry in nbest[result["id"]]
        ]


# --- Both platforms ---------------------------------------------------------


def write_sequences(directory, vocab_size=300):
    """Sequences that differ in length, for the reference models."""
    directory.mkdir()
    random = np.random.RandomState(11)
    with tfrecord.RecordWriter(str(directory / "a.tfrecord")) as writer:
        for _ in range(40):
            ids = random.randint(4, vocab_size - 1, random.randint(5, 40))
            writer.write(
                single_records.encode_example(
                    {"input_ids": np.concatenate([[0], ids, [2]])}
                )
            )
    return directory


def test_losses_of_20_steps_are_those_of_the_other_platform(
    chain, golden_checkpoint, tmp_path
):
    """From one checkpoint and without dropout; recorded on the first one."""
    result = chain.run(
        "run_pretraining.py --do_train=True",
        f"--output_dir={tmp_path / 'out'}",
        f"--bert_config_file={GOLDEN / 'masked_lm' / 'config.json'}",
        f"--init_checkpoint={golden_checkpoint('masked_lm')}",
        f"--input_files_dir={write_sequences(tmp_path / 'records')}",
        "--max_seq_length=48",
        "--max_predictions_per_seq=8",
        "--train_batch_size=4",
        "--num_accumulation_steps=2",
        "--num_train_steps=20",
        "--num_warmup_steps=2",
        "--learning_rate=1e-3",
        "--display_loss_steps=1",
    )
    recorded = json.loads((DATA / "losses_of_20_steps.json").read_text())
    np.testing.assert_allclose(
        tiny.losses_of(result.log), recorded, rtol=0, atol=1e-4
    )
    assert "42 variables loaded, 0 initialized" in result.log


# --- Bad input --------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(chain, built):
    """Files that are wrong in one way each."""
    folder = chain.folder / "bad"
    folder.mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    (folder / "text.json").write_text("no JSON")
    (folder / "shape.json").write_text('{"data": [{"paragraphs": 3}]}')
    config = json.loads(
        (chain.place("BERT_BASE_DIR") / "config.json").read_text()
    )
    for name, change in (
        ("larger", {"vocab_size": 300}),
        ("wide", {"hidden_size": 64}),
        ("short", {"max_position_embeddings": 66}),
    ):
        (folder / (name + ".json")).write_text(
            json.dumps(dict(config, **change))
        )
    (folder / "none").mkdir()
    shutil.copytree(
        str(chain.place("BookCorpus_DIR") / "pretrain_data"),
        str(folder / "bare"),
    )
    (folder / "bare" / "manifest.json").unlink()
    shutil.copytree(str(folder / "bare"), str(folder / "cut"))
    shard = next((folder / "cut").glob("*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-10])
    squad = json.loads(
        (chain.place("SQUAD_DIR") / "train-v1.1.json").read_text()
    )
    question = squad["data"][0]["paragraphs"][0]["qas"][0]
    question["answers"][0]["answer_start"] = 3
    (folder / "moved.json").write_text(json.dumps(squad))
    (folder / "file").write_text("")
    return folder


# For each script: flags that are right, then (what is wrong, the flags that
# make it so, words of the message). $BAD is the fixture's folder.
WRONG_FOR_CREATE = [
    ("missing file", ["--input_file=$BAD/missing.txt"], ["missing.txt"]),
    ("no input", ["--input_file="], ["--input_file"]),
    ("empty input", ["--input_file=$BAD/empty.txt"], ["empty.txt"]),
    ("no UTF-8", ["--input_file=$BAD/latin.txt"], ["latin.txt", "UTF-8"]),
    ("no vocabulary", ["--vocab_file=$BAD/missing.json"], ["missing.json"]),
    (
        "no room for masks",
        ["--max_predictions_per_seq=0"],
        ["max_predictions_per_seq", "from 1"],
    ),
    ("share of 0", ["--masked_lm_prob=0"], ["--masked_lm_prob"]),
    ("share of 1", ["--masked_lm_prob=1"], ["--masked_lm_prob"]),
    ("length of 2", ["--max_seq_length=2"], ["max_seq_length"]),
    (
        "more shards than text",
        ["--num_shards=99999", "--input_file=$BAD/shape.json"],
        ["fewer shards"],
    ),
]
WRONG_FOR_PRETRAINING = [
    ("nothing to do", ["--do_train=False"], ["--do_train", "--do_eval"]),
    ("no config", ["--bert_config_file="], ["--bert_config_file"]),
    (
        "missing config",
        ["--bert_config_file=$BAD/missing.json"],
        ["missing.json"],
    ),
    ("config is text", ["--bert_config_file=$BAD/text.json"], ["not JSON"]),
    (
        "no records",
        ["--input_files_dir=$BAD/none"],
        ["none", "no file of records"],
    ),
    ("missing records", ["--input_files_dir=$BAD/missing"], ["missing"]),
    ("no place given", ["--input_files_dir="], ["no file of records"]),
    (
        "missing evaluation records",
        ["--do_eval=True", "--eval_files_dir=$BAD/missing"],
        ["missing"],
    ),
    (
        "another length",
        ["--max_seq_length=64"],
        ["max_seq_length 128", "--max_seq_length=128"],
    ),
    (
        "another length, no manifest",
        ["--max_seq_length=64", "--input_files_dir=$BAD/bare"],
        ["length 128", "64"],
    ),
    (
        "another number of masks",
        ["--max_predictions_per_seq=10"],
        ["--max_predictions_per_seq=20"],
    ),
    (
        "no room for masks",
        ["--max_predictions_per_seq=0"],
        ["max_predictions_per_seq", "from 1"],
    ),
    ("share of 1", ["--masked_lm_prob=1"], ["--masked_lm_prob", "0.15"]),
    ("beyond the positions", ["--max_seq_length=600"], ["600", "512"]),
    (
        "positions of the config",
        ["--bert_config_file=$BAD/short.json"],
        ["128", "64"],
    ),
    (
        "another vocabulary",
        ["--bert_config_file=$BAD/larger.json"],
        ["vocab_size 261", "300"],
    ),
    ("cut records", ["--input_files_dir=$BAD/cut"], ["truncated|ends"]),
    ("long warm-up", ["--num_warmup_steps=8"], ["--num_warmup_steps"]),
    ("no output", ["--output_dir="], ["--output_dir"]),
    ("output is a file", ["--output_dir=$BAD/file"], ["file"]),
    (
        "output is a pattern",
        ["--output_dir=$BAD/../refused[1]"],
        ["as a pattern", "--output_dir"],
    ),
    ("log directory is a file", ["--out_log_dir=$BAD/file"], ["file"]),
    ("not a number", ["--train_batch_size=many"], ["a whole number from 1 to"]),
    ("no batch", ["--train_batch_size=0"], ["a whole number from 1 to"]),
    (
        "a batch beyond numbers",
        ["--train_batch_size=" + "9" * 20],
        ["a whole number from 1 to 2147483647"],
    ),
    (
        "a batch beyond devices",
        ["--train_batch_size=1000000000"],
        ["tokens per update"],
    ),
    (
        "a space for =",
        ["--do_eval", "False"],
        ["'False' is not a flag", "--do_train=False"],
    ),
    ("a moment without decay", ["--adam_beta1=1"], ["below 1"]),
    ("no epsilon", ["--adam_epsilon=0"], ["above 0"]),
    ("a rate that is not a number", ["--learning_rate=nan"], ["a number >= 0"]),
    ("unknown flag", ["--train_batch_sise=4"], ["train_batch_size"]),
    ("unknown optimizer", ["--optimizer_type=sgd"], ["adam", "lamb"]),
    ("no GPU", ["--accelerator=gpu"], ["sees no GPU"]),
    (
        "no NPU",
        ["--accelerator=npu"],
        ["package does not import; install CANN"],
    ),
    ("two ways to fp16", ["--use_fp16=True"], ["use one"]),
    (
        "loss scale of a half",
        ["--npu_bert_loss_scale=0.5"],
        ["--npu_bert_loss_scale"],
    ),
    (
        "missing checkpoint",
        ["--init_checkpoint=$BAD/missing.ckpt"],
        ["missing.ckpt"],
    ),
    ("checkpoint is text", ["--init_checkpoint=$BAD/text.json"], ["text.json"]),
    (
        "nothing to evaluate",
        [
            "--do_train=False",
            "--do_eval=True",
            "--eval_files_dir=$BAD/../corpus/eval_data",
        ],
        ["no checkpoint"],
    ),
]
WRONG_FOR_SQUAD = [
    (
        "nothing to do",
        ["--do_train=False", "--do_predict=False"],
        ["--do_train", "--do_predict"],
    ),
    ("no training file", ["--train_file="], ["--train_file"]),
    ("missing file", ["--train_file=$BAD/missing.json"], ["missing.json"]),
    ("no JSON", ["--predict_file=$BAD/text.json"], ["text.json", "JSON"]),
    ("another shape", ["--train_file=$BAD/shape.json"], ["shape.json"]),
    (
        "v2.0 without the flag",
        ["--train_file=$BAD/../squad/train-v2.0.json"],
        ["--version_2_with_negative"],
    ),
    (
        "answer elsewhere",
        ["--train_file=$BAD/moved.json"],
        ["q0", "answer_start"],
    ),
    (
        "another vocabulary",
        ["--bert_config_file=$BAD/larger.json"],
        ["261", "300"],
    ),
    ("no vocabulary", ["--vocab_file=$BAD/missing.json"], ["missing.json"]),
    ("no merges", ["--merges_file="], ["merges"]),
    ("beyond the positions", ["--max_seq_length=600"], ["600", "512"]),
    (
        "no room for context",
        ["--max_seq_length=64", "--max_query_length=64"],
        ["doc_stride", "max_seq_length"],
    ),
    ("no stride", ["--doc_stride=0"], ["doc_stride"]),
    ("too many processes", ["--num_workers=100000"], ["from 0 to 1024"]),
    ("too many epochs", ["--num_train_epochs=1e30"], ["to 100000"]),
    (
        "no checkpoint",
        ["--do_train=False", "--init_checkpoint="],
        ["no checkpoint"],
    ),
    (
        "missing checkpoint",
        ["--init_checkpoint=$BAD/missing.ckpt"],
        ["missing.ckpt"],
    ),
    (
        "untrained head",
        ["--do_train=False"],
        ["without a question_answering head; fine-tune"],
    ),
    ("a TPU", ["--use_tpu=True"], ["--use_tpu", "--accelerator"]),
    (
        "head for v2.0",
        ["--answerability_head=True"],
        ["--version_2_with_negative"],
    ),
]


def check_refused(chain, text, flags, words, out="refused"):
    """Runs a command line that must end in one line and leave nothing."""
    before = sorted(chain.folder.iterdir())
    result = chain.run(
        text,
        *[flag.replace("$BAD", str(chain.folder / "bad")) for flag in flags],
        out=out,
        code=1,
    )
    last = user_errors.check(text.split()[0], result.log, words)
    left = set(chain.folder.iterdir()) - set(before)
    for path in left:
        shutil.rmtree(str(path))  # the next test expects it to be absent
    assert not left
    return last


@pytest.mark.parametrize(
    "flags, words",
    [case[1:] for case in WRONG_FOR_CREATE],
    ids=[case[0] for case in WRONG_FOR_CREATE],
)
def test_bad_input_of_create(chain, bad, flags, words):
    output = f"--output_file={chain.folder / 'refused'}"
    check_refused(chain, CREATE, [output] + flags, words)


@pytest.mark.parametrize(
    "flags, words",
    [case[1:] for case in WRONG_FOR_PRETRAINING],
    ids=[case[0] for case in WRONG_FOR_PRETRAINING],
)
def test_bad_input_of_pretraining(chain, bad, flags, words):
    check_refused(chain, PRETRAIN, list(PRETRAIN_SHORT[:-1]) + flags, words)
    assert (bad / "file").read_text() == ""


@pytest.mark.parametrize(
    "flags, words",
    [case[1:] for case in WRONG_FOR_SQUAD],
    ids=[case[0] for case in WRONG_FOR_SQUAD],
)
def test_bad_input_of_squad(chain, bad, pretrained, flags, words):
    check_refused(
        chain,
        SQUAD % {"version": "v1.1", "negative": False},
        ["--num_workers=1"] + flags,
        words,
    )


# --- Checkpoints that do not fit ---------------------------------------------


def write_changed(chain, name, change):
    """A copy of the pre-trained checkpoint, changed; its prefix."""
    reader = tf.train.load_checkpoint(
        str(chain.place("BERT_BASE_DIR") / "tf_model" / "roberta_large.ckpt")
    )
    tensors = {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
    }
    change(tensors)
    for variable, value in tensors.items():
        tf.get_variable(variable, initializer=value)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(
            session,
            str(chain.folder / "changed" / name),
            write_meta_graph=False,
        )


KERNEL = "bert/encoder/layer_1/output/dense/kernel"


def drop(tensors):
    del tensors[KERNEL]


def rename(tensors):
    tensors[KERNEL.replace("dense", "denser")] = tensors.pop(KERNEL)


def reshape(tensors):
    tensors[KERNEL] = tensors[KERNEL][:, :-1]


@pytest.mark.parametrize("change", [drop, rename, reshape])
def test_checkpoint_that_does_not_fit_is_refused_by_name(
    chain, pretrained, bad, change
):
    prefix = write_changed(chain, change.__name__, change)
    for text in (PRETRAIN, SQUAD % {"version": "v1.1", "negative": False}):
        last = check_refused(
            chain,
            text,
            list(
                PRETRAIN_SHORT[:3] if text is PRETRAIN else ["--num_workers=1"]
            )
            + [f"--init_checkpoint={prefix}"],
            [KERNEL],
        )
        assert str(prefix) in last


def test_run_of_another_model_is_not_resumed(chain, pretrained, bad):
    before = sorted((chain.folder / "pretraining").iterdir())
    check_refused(
        chain,
        PRETRAIN,
        list(PRETRAIN_SHORT)
        + ["--num_train_steps=10", "--bert_config_file=$BAD/wide.json"],
        ["model.ckpt-8", "--output_dir"],
        out="pretraining",
    )
    check_refused(
        chain,
        SQUAD % {"version": "v1.1", "negative": False},
        ["--num_workers=1"],
        ["model.ckpt-8", "cls/squad"],
        out="pretraining",
    )
    config = json.loads(
        (chain.folder / "pretraining" / "config.json").read_text()
    )
    assert config["hidden_size"] == 32
    assert before == sorted((chain.folder / "pretraining").iterdir())


def test_loss_scale_may_be_turned_off_but_not_on(chain, pretrained):
    """A checkpoint has its state only if it was on."""
    changes = [
        "--manual_fp16=False",
        "--use_fp16_cls=False",
        "--npu_bert_loss_scale=-1",
        "--num_train_steps=9",
    ]
    result = chain.run(
        PRETRAIN, *PRETRAIN_SHORT[1:-1] + tuple(changes), out="pretraining"
    )
    assert [line["step"] for line in tiny.steps_of(result.log)] == [9]
    last = check_refused(
        chain,
        PRETRAIN,
        list(PRETRAIN_SHORT[1:-1]) + ["--num_train_steps=10"],
        ["lacks (loss_scale|good|bad)", "--npu_bert_loss_scale"],
        out="pretraining",
    )
    assert str(chain.folder / "pretraining") in last
