# SPDX-License-Identifier: Apache-2.0
"""Scores while training: the same weights, and the same scores as afterwards.

EVALUATION_KILLS=10 in the environment kills a run more often than twice.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import time
import types

import numpy as np
import pytest

from helpers import forked, horovod_ranks, tiny
from training import evaluation, metrics_file, run_config

KILLS = int(os.environ.get("EVALUATION_KILLS", 2))
CPU = {"accelerator": "cpu", "cpu_threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    tiny.write_model(folder / "model", dropout=0.1)
    tiny.write_sequences(folder / "records")
    tiny.write_squad(folder / "train.json")
    tiny.write_squad(folder / "v2.json", version_2=True)
    return folder


def pretraining(data, output, **more):
    flags = dict(
        bert_config_file=data / "model" / "config.json",
        input_files_dir=data / "records",
        eval_files_dir=data / "records",
        output_dir=output,
        max_seq_length=tiny.LENGTH,
        max_predictions_per_seq=tiny.PREDICTIONS,
        train_batch_size=8,
        num_train_steps=20,
        num_warmup_steps=2,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        display_loss_steps=2,
        save_checkpoints_steps=5,
        keep_checkpoint_max=10,
        do_train=True,
    )
    return tiny.command("run_pretraining.py", [], **dict(flags, **more))


def squad(data, output, **more):
    flags = dict(
        bert_config_file=data / "model" / "config.json",
        vocab_file=data / "model" / "vocab.json",
        merges_file=data / "model" / "merges.txt",
        train_file=data / "v2.json",
        predict_file=data / "v2.json",
        version_2_with_negative=True,
        output_dir=output,
        num_workers=1,
        train_batch_size=4,
        num_train_epochs=10,
        max_seq_length=96,
        doc_stride=32,
        learning_rate=1e-3,
        save_checkpoints_steps=5,
        keep_checkpoint_max=10,
        do_train=True,
    )
    return tiny.command("run_squad.py", [], **dict(flags, **more))


def evaluations(output, kind="eval"):
    """{step: line} of metrics.jsonl; no step is repeated."""
    lines = [x for x in metrics_file.read(str(output)) if x["kind"] == kind]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    return dict(zip(steps, lines))


def eval_results(output):
    lines = (output / "eval_results.txt").read_text().splitlines()
    return {k: float(v) for k, v in (line.split(" = ") for line in lines)}


def assert_same_weights(first, second):
    values, others = tiny.values_of(first), tiny.values_of(second)
    assert set(values) == set(others)
    for name, value in values.items():
        assert value.tobytes() == others[name].tobytes(), name


def run(command, **options):
    return tiny.run(command, tiny.environment(npu=False), **options)


def start(command, path=os.devnull):
    """The process of a run that writes its log to a file."""
    with open(str(path), "w") as log:
        return forked.Process(command, tiny.environment(npu=False), log, log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_directory_of_an_evaluation(data, tmp_path, number):
    model = tmp_path / "model"
    command = squad(
        data,
        tmp_path / "run",
        bert_config_file=model / "config.json",
        init_checkpoint=tiny.write_trained(model, ["question_answering"]),
        do_train=False,
        do_predict=True,
        **CPU,
    )
    path = tmp_path / "log"
    process = start(command, path)
    while not re.search(r"model_dir: \S+,", path.read_text()):
        assert process.poll() is None, path.read_text()
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait() == 128 + number
    log = path.read_text()
    (directory,) = re.findall(r"model_dir: (\S+roberta_evaluation_\S+),", log)
    assert not os.path.exists(directory)
    name = signal.Signals(number).name
    assert log.splitlines()[-1] == f"run_squad.py: interrupted by {name}"


EVALUATED = dict(CPU, evaluate_every_steps=5, keep_best=True)


@pytest.fixture(scope="module")
def trained(data):
    """Function giving the folder of two runs, plain and with scores, and the
    log of the second one, which ends with the flag `action`."""

    @functools.lru_cache(maxsize=None)
    def train(build, action):
        folder = data / build.__name__
        run(build(data, folder / "plain", **CPU))
        flags = dict(EVALUATED, **{action: True})
        return folder, run(build(data, folder / "run", **flags))

    return train


@pytest.mark.parametrize(
    "build, action", [(pretraining, "do_eval"), (squad, "do_predict")]
)
def test_scores_are_those_of_the_final_evaluation(build, action, trained):
    folder, log = trained(build, action)
    scored = re.findall(r"\bglobal_step=(\d+)", log)
    assert scored == ["5", "10", "15", "20"]  # the last one is not repeated
    last = "model.ckpt-20"
    assert_same_weights(folder / "plain" / last, folder / "run" / last)
    assert not (folder / "plain" / "metrics.jsonl").exists()
    lines = evaluations(folder / "run")
    assert list(lines) == [5, 10, 15, 20]
    results = eval_results(folder / "run")
    for name, value in results.items():
        if name != "global_step":
            assert lines[20][name] == pytest.approx(value, rel=1e-6)
    best = json.loads((folder / "run" / "best" / "best.json").read_text())
    values = {step: line[best["metric"]] for step, line in lines.items()}
    choose = min if best["metric"] == "masked_lm_loss" else max
    assert best["value"] == choose(values.values())
    assert best["value"] == values[best["step"]]
    name = f"model.ckpt-{best['step']}"
    kept = tiny.values_of(folder / "run" / "best" / name)
    saved = tiny.values_of(folder / "run" / name)
    assert {name for name in kept if "adam" in name} == set()
    for name, value in kept.items():
        assert value.tobytes() == saved[name].tobytes()
    tags = tiny.scalars_of(folder / "run")
    assert list(tags["eval/" + best["metric"]])[:4] == [5, 10, 15, 20]


def test_a_killed_run_has_the_same_metrics(data, tmp_path):
    flags = dict(
        EVALUATED,
        num_train_steps=40,
        display_loss_steps=3,
        evaluate_every_steps=7,
        early_stopping_patience=8,
        save_checkpoints_steps=4,
        keep_checkpoint_max=2,
    )
    run(pretraining(data, tmp_path / "whole", **flags))
    chance = random.Random(5)
    for _ in range(KILLS):
        process = start(pretraining(data, tmp_path / "killed", **flags))
        path = tmp_path / "killed" / "metrics.jsonl"
        before = path.stat().st_size if path.exists() else 0
        while process.poll() is None and not (
            path.exists() and path.stat().st_size > before
        ):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.wait()
    run(pretraining(data, tmp_path / "killed", **flags))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert evaluations(killed) == evaluations(whole)
    assert list(evaluations(killed)) == [7, 14, 21, 28, 35, 40]
    assert list(evaluations(killed, "train")) == [*range(3, 40, 3), 40]
    assert (killed / "best" / "best.json").read_bytes() == (
        whole / "best" / "best.json"
    ).read_bytes()
    assert len(list((killed / "best").glob("*.index"))) == 1
    assert_same_weights(killed / "model.ckpt-40", whole / "model.ckpt-40")
    metrics_file.cut(str(whole), 39)  # killed before the last evaluation
    run(pretraining(data, whole, **flags))
    assert evaluations(whole) == evaluations(killed)


def test_damaged_lines_of_the_metrics_are_ignored(tmp_path):
    """A killed process left half of its first line; a disk was damaged."""
    good = '{"kind": "eval", "step": %d, "loss": 1.5}'
    lines = [good % 5, '{"kind": "tr', "[7]", "\udcff", good % 9, '{"kind": "e']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert [line["step"] for line in metrics_file.cut(str(tmp_path), 7)] == [5]
    assert path.read_text("utf-8") == good % 5 + "\n"
    path.write_text(lines[-1])
    assert metrics_file.cut(str(tmp_path), 7) == []
    assert path.read_text("utf-8") == ""


def test_training_stops_when_scores_do_not_rise(data, tmp_path):
    flags = dict(
        CPU,
        evaluate_every_steps=2,
        early_stopping_patience=2,
        learning_rate=0,
        num_train_steps=100,
    )
    run(pretraining(data, tmp_path, **flags))
    # The first is the best; with a rate of 0 all are equal.
    assert list(evaluations(tmp_path)) == [2, 4, 6]
    assert (tmp_path / "model.ckpt-6.index").exists()
    again = run(pretraining(data, tmp_path, **flags))
    assert "2 evaluations without a better masked_lm_loss" in again
    assert list(evaluations(tmp_path)) == [2, 4, 6]


def test_checkpoints_are_scored_after_training_or_beside_it(
    data, trained, tmp_path
):
    folder, _ = trained(squad, "do_predict")
    expected = evaluations(folder / "run")
    flags = dict(CPU, do_train=False, keep_best=True)
    shutil.copytree(str(folder / "plain"), str(tmp_path / "run"))
    run(squad(data, tmp_path / "run", evaluate_checkpoints="all", **flags))
    assert evaluations(tmp_path / "run") == expected
    again = run(
        squad(data, tmp_path / "run", evaluate_checkpoints="watch", **flags)
    )
    assert " f1=" not in again  # all are scored
    watch = start(
        squad(data, tmp_path / "new", evaluate_checkpoints="watch", **flags)
    )
    run(squad(data, tmp_path / "new", **CPU))
    assert watch.wait(120) == 0
    assert evaluations(tmp_path / "new") == expected
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    output = run(
        squad(
            data,
            tmp_path / "run",
            do_train=False,
            do_predict=True,
            evaluate_checkpoints="best",
            **CPU,
        )
    )
    results = eval_results(tmp_path / "run")
    assert results["global_step"] == best["step"]
    assert results["f1"] == pytest.approx(best["value"])
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"keep_best": True}, "--keep_best: no evaluations to compare"),
        ({"early_stopping_patience": 1}, "--early_stopping_patience: no eval"),
        ({"evaluate_checkpoints": "all"}, "pass it without --do_train"),
        (
            {
                "evaluate_checkpoints": "best",
                "do_train": False,
                "do_eval": True,
            },
            "no checkpoint found",
        ),
        ({"evaluate_every_steps": 5, "eval_files_dir": ""}, "--eval_files_dir"),
    ],
)
def test_flags_without_sense_are_rejected(flags, message, data, tmp_path):
    output = run(pretraining(data, tmp_path / "run", **flags), code=1)
    assert message in output and "Traceback" not in output


def test_two_processes_have_the_scores_of_one(data, tmp_path):
    pytest.importorskip("horovod.tensorflow", reason="Horovod is not installed")
    # Dropout differs between processes; this turns it off.
    flags = dict(EVALUATED, max_eval_steps=3, npu_bert_debug=True)
    run(pretraining(data, tmp_path / "one", **flags))
    flags.update(horovod=True, train_batch_size=4)
    log = tmp_path / "log"
    command = pretraining(data, tmp_path / "two", **flags)
    code = horovod_ranks.Ranks(command, [log] * 2).wait(300)
    assert code == 0, log.read_text()[-3000:]
    one, two = (evaluations(tmp_path / name) for name in ("one", "two"))
    assert list(one) == list(two)
    for step in one:
        for name in ("masked_lm_loss", "perplexity"):
            np.testing.assert_allclose(
                two[step][name], one[step][name], rtol=1e-4
            )


def test_an_npu_evaluates_between_its_loops(data, tmp_path):
    flags = dict(
        EVALUATED,
        iterations_per_loop=5,
        num_train_steps=10,
        npu_bert_debug=True,
    )
    run(pretraining(data, tmp_path / "cpu", **flags))
    flags.update(accelerator="npu")
    tiny.run(pretraining(data, tmp_path / "npu", **flags), tiny.environment())
    lines, others = (evaluations(tmp_path / name) for name in ("npu", "cpu"))
    assert list(lines) == list(others) == [5, 10]
    for step, line in lines.items():
        assert line["masked_lm_loss"] == pytest.approx(
            others[step]["masked_lm_loss"], rel=1e-5
        )
    output = tiny.run(
        pretraining(
            data,
            tmp_path / "npu",
            accelerator="npu",
            do_train=False,
            do_eval=True,
        ),
        tiny.environment(),
    )
    loss = eval_results(tmp_path / "npu")["masked_lm_loss"]
    assert lines[10]["masked_lm_loss"] == pytest.approx(loss, rel=1e-6)
    assert "Traceback" not in output


class SlowScorer:
    """A scorer that takes a tenth of a second."""

    def __init__(self, *_):
        pass

    def evaluate(self, session, step):
        time.sleep(0.1)


def test_evaluations_are_left_out_of_the_throughput(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "Scorer", SlowScorer)
    run = run_config.RunConfig(output_dir=str(tmp_path), evaluate_every_steps=2)
    training = run_config.Training(None, run, None, 10, 1)
    training.evaluation = evaluation.Evaluation(None)
    hook = evaluation.EvaluationHook(training, None)
    context = types.SimpleNamespace(session=None)
    hook.after_run(context, types.SimpleNamespace(results=4))
    assert training.save_timer.seconds >= 0.1
