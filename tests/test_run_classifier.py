# SPDX-License-Identifier: Apache-2.0
"""Texts with labels and numbers, from files to scores; saved labels."""

import json
import re
import shutil

import numpy as np
import pytest

import run_classifier
from common import errors
from helpers import glue_files, invented, tiny
from inference import predictor
from tasks import classification, finetuning, glue
from training import checkpoints, run_config
from weights import tf_checkpoint

SCRIPT = "run_classifier.py"


class Folder:
    """A model and what its runs need."""

    def __init__(self, path, run):
        self.path = path
        self._run = run
        tiny.write_model(path / "model", dropout=0.1)

    def run(self, out, code=0, **named):
        model = self.path / "model"
        flags = dict(
            bert_config_file=model / "config.json",
            vocab_file=model / "vocab.json",
            merges_file=model / "merges.txt",
            output_dir=self.path / out,
            max_seq_length=64,
            learning_rate=3e-3,
            num_workers=1,
            display_loss_steps=20,
        )
        flags.update(named)
        return self._run(SCRIPT, code=code, **flags)

    def results(self, out):
        lines = (self.path / out / "eval_results.txt").read_text().splitlines()
        return {
            key: float(value)
            for key, value in (line.split(" = ") for line in lines)
        }

    def lines(self, out, name):
        return (self.path / out / name).read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, forked):
    return Folder(tmp_path_factory.mktemp("classifier"), forked)


TRAINED = dict(
    task="SST-2",
    do_train=True,
    do_eval=True,
    do_predict=True,
    num_train_epochs=5,
    save_checkpoints_steps=30,
)


@pytest.fixture(scope="module")
def trained(folder):
    """The log of a run on SST-2 from texts to the server's file."""
    return folder.run(
        "out", data_dir=invented.write_sst2(folder.path / "SST-2"), **TRAINED
    )


def test_a_model_learns_and_writes_what_the_server_reads(folder, trained):
    assert "features=240 epochs=5 num_warmup_steps=4" in trained
    assert " num_train_steps=75 " in trained
    assert "training: examples=240 truncated=0 cut_tokens=0" in trained
    results = folder.results("out")
    assert results["examples"] == 60
    assert results["accuracy"] > 0.9  # chance is 0.5
    assert results["loss"] < 0.4
    scalars = tiny.scalars_of(folder.path / "out")
    assert scalars["eval/accuracy"] == {75: pytest.approx(results["accuracy"])}
    assert {
        "loss",
        "accuracy",
        "learning_rate",
        "gradient_norm",
        "eval/loss",
    } <= set(scalars)
    assert "eval/examples" not in scalars
    lines = folder.lines("out", "SST-2.tsv")
    assert lines[0] == "index\tprediction"
    rows = [line.split("\t") for line in lines[1:]]
    assert [index for index, _ in rows] == [str(n) for n in range(20)]
    right = [label == str(n % 2) for n, (_, label) in enumerate(rows)]
    assert np.mean(right) > 0.8


def test_a_run_resumes_bit_for_bit(folder, trained):
    out, again = folder.path / "out", folder.path / "again"
    again.mkdir()
    for path in list(out.glob("model.ckpt-30.*")) + [out / "config.json"]:
        shutil.copy(str(path), str(again))
    (again / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-30"\n'
    )
    log = folder.run(
        "again",
        data_dir=folder.path / "SST-2",
        **dict(TRAINED, do_eval=False, do_predict=False),
    )
    assert "model.ckpt-30 at batch 30" in log
    first, second = (
        tf_checkpoint.load(checkpoints.newest(str(path)))
        for path in (out, again)
    )
    assert "cls/classification/dense/kernel" in first
    assert [
        name
        for name in first
        if first[name].dtype != "STRING"
        and first[name].read().tobytes() != second[name].read().tobytes()
    ] == []


def test_prediction_takes_the_labels_of_the_checkpoint(folder, trained):
    out = folder.path / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["label2id"] == {"0": 0, "1": 1}
    assert config["problem_type"] == "single_label_classification"
    table = folder.path / "own.csv"
    table.write_text(
        "name,sentence\n"
        + "".join(
            f'row{number},"{text}"\n'
            for number, (text, _) in enumerate(invented.texts(20, 9))
        )
    )
    folder.run(
        "own",
        do_predict=True,
        predict_file=table,
        text_column="sentence",
        index_column="name",
        init_checkpoint=out / "model.ckpt-75",
    )
    lines = [
        json.loads(line) for line in folder.lines("own", "predictions.jsonl")
    ]
    assert [line["index"] for line in lines] == [
        f"row{number}" for number in range(20)
    ]
    assert (
        np.mean(
            [
                line["label"] == str(number % 2)
                for number, line in enumerate(lines)
            ]
        )
        > 0.8
    )
    for line in lines:
        best = max(line["probabilities"], key=line["probabilities"].get)
        assert best == line["label"]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    # Prediction writes nothing that describes a model.
    assert [path.name for path in (folder.path / "own").iterdir()] == [
        "predictions.jsonl"
    ]


def test_a_predictor_predicts_the_same(folder, trained):
    """Of texts and of pairs, cut ones among them; see sequences.kept."""
    out = folder.path / "out"
    rows = [
        {"text": text * times, "other": other}
        for (text, _), other in zip(
            invented.texts(12, 11), ["ab", "kuf " * 20, "dol", ""]
        )
        for times in (1, 2, 5)
    ]
    # As many tokens in both and an odd room: a rule decides which is cut.
    rows.append({"text": "ab" * 20, "other": "cd" * 20})
    table = folder.path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = predictor.Predictor(
        str(out), "classify", predictor.Settings(max_seq_length=31)
    )
    for column, pairs in (
        ("", [(row["text"], None) for row in rows]),
        ("other", [(row["text"], row["other"]) for row in rows]),
    ):
        folder.run(
            "same" + column,
            do_predict=True,
            predict_file=table,
            text_pair_column=column,
            max_seq_length=31,
            init_checkpoint=out / "model.ckpt-75",
            bert_config_file=out / "config.json",
        )
        lines = [
            json.loads(line)
            for line in folder.lines("same" + column, "predictions.jsonl")
        ]
        results = model.classify_all(pairs)
        assert any(result["truncated"] for result in results)
        assert [result["label"] for result in results] == [
            line["label"] for line in lines
        ]
        for result, line in zip(results, lines):
            assert result["scores"] == pytest.approx(
                line["probabilities"], abs=1e-5
            )


@pytest.mark.parametrize("names", ["01", "ny"])
def test_a_head_of_other_labels_is_warned_of(folder, trained, names):
    path = folder.path / "other.tsv"
    rows = [f"a text\t{name}\n" for name in names]
    path.write_text("text\tlabel\n" + "".join(rows))
    log = folder.run(
        "other_" + names,
        do_train=True,
        train_file=path,
        num_train_epochs=0,
        init_checkpoint=folder.path / "out" / "model.ckpt-75",
    )
    warning = "its head was trained with the labels 0, 1, now used for n, y, in"
    assert log.count(warning) == (names == "ny")


def test_mnli_starts_from_a_model_with_two_labels(folder, trained):
    """Pairs, half precision, micro-batches, two sets and the diagnostic one."""
    log = folder.run(
        "mnli",
        task="MNLI",
        do_train=True,
        do_eval=True,
        do_predict=True,
        data_dir=invented.write_mnli(folder.path / "MNLI"),
        init_checkpoint=folder.path / "out" / "model.ckpt-75",
        train_batch_size=4,
        num_accumulation_steps=2,
        num_train_epochs=1,
        manual_fp16=True,
        max_seq_length=32,
    )
    assert "global_batch=8" in log and "num_train_steps=3" in log
    assert re.search(
        r"cls/classification/out_proj/\w+ with shape \[.*\b2\], "
        r"the model \[.*\b3\]: the head is initialized at random",
        log,
    ), log
    results = folder.results("mnli")
    assert (results["examples_matched"], results["examples_mismatched"]) == (
        6,
        9,
    )
    assert 0 <= results["accuracy_mismatched"] <= 1
    for name, count in (("MNLI-m", 4), ("MNLI-mm", 5), ("AX", 3)):
        lines = folder.lines("mnli", name + ".tsv")[1:]
        assert len(lines) == count
        assert {line.split("\t")[1] for line in lines} <= set(
            invented.MNLI_LABELS
        )


@pytest.mark.parametrize("name", sorted(set(glue.TASKS) - {"SST-2", "MNLI"}))
def test_the_other_tasks_of_glue_run_from_files_to_the_servers(folder, name):
    """One step on GLUE's own columns; SST-2 and MNLI are above."""
    data = folder.path / "glue" / name
    glue_files.write_task(data, name)
    labels = glue.TASKS[name].labels or ("0.5", "4.75")
    for file, header, fields in glue_files.labelled(name):
        glue_files.write(
            data / file,
            header,
            *(
                [
                    labels[number % 2]
                    if field in labels + ("3.750",)
                    else field
                    for field in fields
                ]
                for number in range(8)
            ),
        )
    folder.run(
        "glue-" + name,
        task=name,
        data_dir=data,
        do_train=True,
        do_eval=True,
        do_predict=True,
        num_train_epochs=1,
        train_batch_size=8,
    )
    assert set(glue.TASKS[name].metrics) | {
        "loss",
        "examples",
        "global_step",
    } == set(folder.results("glue-" + name))
    assert folder.results("glue-" + name)["examples"] == 8
    header, line = folder.lines("glue-" + name, name + ".tsv")
    assert header == "index\tprediction"
    index, value = line.split("\t")
    assert index == "0"
    if glue.TASKS[name].labels:
        assert value in glue.TASKS[name].labels
    else:
        assert re.fullmatch(r"[0-5]\.\d{3}", value)


def test_a_regression_comes_close(folder):
    pytest.importorskip("scipy")
    for name, count, seed in (("a", 240, 1), ("b", 60, 2)):
        invented.write_scores(folder.path / (name + ".jsonl"), count, seed)
    folder.run(
        "scores",
        regression=True,
        do_train=True,
        do_eval=True,
        do_predict=True,
        train_file=folder.path / "a.jsonl",
        eval_file=folder.path / "b.jsonl",
        predict_file=folder.path / "b.jsonl",
        num_train_epochs=6,
    )
    results = folder.results("scores")
    assert results["pearson"] > 0.8 and results["spearman"] > 0.7
    values = [
        json.loads(line)["value"]
        for line in folder.lines("scores", "predictions.jsonl")
    ]
    expected = [
        json.loads(line)["label"]
        for line in (folder.path / "b.jsonl").read_text().splitlines()
    ]
    assert np.mean(np.square(np.subtract(values, expected))) == pytest.approx(
        results["loss"], rel=1e-3
    )
    assert results["loss"] < 0.5 * np.var(expected)


@pytest.fixture(scope="module")
def several(folder):
    """The log of a run on texts with any number of labels."""
    pytest.importorskip("sklearn")
    rows = invented.label_sets(240, 1)
    (folder.path / "sets.csv").write_text(
        "text,label\n"
        + "".join(f'{text},"{", ".join(names)}"\n' for text, names in rows)
    )
    for name, count, seed in (("sets", 60, 2), ("new", 20, 3)):
        (folder.path / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"text": text, "label": names}) + "\n"
                for text, names in invented.label_sets(count, seed)
            )
        )
    return folder.run(
        "several",
        multi_label=True,
        do_train=True,
        do_eval=True,
        train_file=folder.path / "sets.csv",
        eval_file=folder.path / "sets.jsonl",
        num_train_epochs=8,
        evaluate_every_steps=60,
        keep_best=True,
    )


def test_several_labels_are_learned(folder, several):
    out = folder.path / "several"
    assert "exact_match=" in several
    results = folder.results("several")
    # All labels for each text have 2/3, 2/3 and 1/8.
    assert results["micro_f1"] > 0.8 and results["macro_f1"] > 0.75
    assert results["exact_match"] > 0.4
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["label2id"] == {"ae": 0, "iy": 1, "ou": 2}
    best = json.loads((out / "best" / "best.json").read_text())
    assert best["metric"] == "micro_f1" and best["value"] > 0.8
    lines = [
        json.loads(line) for line in folder.lines("several", "metrics.jsonl")
    ]
    steps = [line["step"] for line in lines if line["kind"] == "eval"]
    assert steps == [60, 120]


def test_several_labels_are_predicted_without_a_flag(folder, several):
    """By the script and by a Predictor, which give the same probabilities."""
    out = folder.path / "several"
    folder.run(
        "several",
        do_predict=True,
        predict_file=folder.path / "new.jsonl",
        label_threshold=0.7,
    )
    lines = [
        json.loads(line)
        for line in folder.lines("several", "predictions.jsonl")
    ]
    texts = [text for text, _ in invented.label_sets(20, 3)]
    settings = predictor.Settings(label_threshold=0.7, max_seq_length=64)
    model = predictor.Predictor(str(out), "classify", settings)
    results = model.classify_all([(text, None) for text in texts])
    assert len(lines) == 20
    for line, result in zip(lines, results):
        assert line["labels"] == [
            n for n, p in line["probabilities"].items() if p > 0.7
        ]
        assert result["labels"] == line["labels"]
        assert result["scores"] == pytest.approx(
            line["probabilities"], abs=1e-5
        )


def test_a_model_of_another_kind_is_rejected(folder, several, trained):
    data = {"eval_file": folder.path / "sets.jsonl", "do_eval": True}
    for out, flags, kind in (
        ("out", {"multi_label": True}, "single_label"),
        ("several", {"regression": True}, "multi_label"),
    ):
        log = folder.run(out, code=1, **data, **flags)
        assert (
            f"the checkpoint was trained for {kind}_classification, but "
            f"--{next(iter(flags))} is given; remove it" in log.splitlines()[-1]
        )


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {},
            "nothing to do: pass --do_train=True or --do_eval=True or --do_pre",
        ),
        (
            {"task": "RTE", "do_train": True},
            "--data_dir is not given; pass the directory of RTE's files",
        ),
        ({"task": "RTE", "labels": "a,b"}, "--labels is given with --task=RTE"),
        ({"data_dir": "RTE"}, "--data_dir is given with --task=generic"),
        ({"regression": True, "labels": "a,b"}, "are both given; a regression"),
        ({"regression": True, "multi_label": True}, "--multi_label and --regr"),
        ({"do_train": True}, "--train_file is not given; pass a .tsv, .csv"),
        (
            {"task": "RTE", "data_dir": "nowhere", "do_train": True},
            "cannot use 'nowhere/train.tsv'",
        ),
        ({"do_predict": True}, "no checkpoint found in "),
    ],
)
def test_a_users_error_is_one_line(folder, flags, message):
    log = folder.run("none", code=1, **flags)
    assert message in log.splitlines()[-1] and "Traceback" not in log
    assert not (folder.path / "none").exists()


def test_another_task_in_the_same_directory_is_rejected(folder, trained):
    log = folder.run(
        "out",
        code=1,
        task="MNLI",
        do_predict=True,
        data_dir=invented.write_mnli(folder.path / "MNLI"),
    )
    assert (
        "the checkpoint was trained with labels 0, 1, but contradiction, "
        in (log.splitlines()[-1])
    )


# --- Labels -----------------------------------------------------------------


def decided(tmp_path, saved, train=(), **flags):
    """Names of the labels of a prediction with a config's labels."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    run = run_config.RunConfig(
        output_dir=str(tmp_path / "out"),
        bert_config_file=str(path),
        do_train=bool(train),
    )
    return run_classifier.labels_of_run(
        run,
        run_classifier.ClassifierConfig(**flags),
        [
            classification.Example("0", "dol", None, label, "a.tsv, line 2")
            for label in train
        ],
    ).names


def labels_of(*names):
    return {"id2label": {str(n): name for n, name in enumerate(names)}}


def test_published_labels_keep_their_order(tmp_path):
    published = labels_of("CONTRADICTION", "ENTAILMENT", "NEUTRAL")
    assert decided(tmp_path, published, task="MNLI") == (
        "contradiction",
        "entailment",
        "neutral",
    )
    assert decided(tmp_path, published) == (
        "CONTRADICTION",
        "ENTAILMENT",
        "NEUTRAL",
    )
    # Names such as LABEL_0 are replaced by those of the task.
    assert decided(tmp_path, labels_of("LABEL_0", "LABEL_1"), task="RTE") == (
        "entailment",
        "not_entailment",
    )


def test_new_runs_find_their_labels(tmp_path):
    saved = labels_of("yes", "no")
    assert decided(tmp_path, saved, train=["b", "a"]) == ("a", "b")
    assert decided(tmp_path, saved, train=["b", "a"], labels="b,a,c") == (
        "b",
        "a",
        "c",
    )
    assert decided(tmp_path, saved, train=["1", "2"], regression=True) == ()


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_threshold_without_effect_is_named(tmp_path, log_lines, multi_label):
    saved = labels_of("a", "b")
    decided(tmp_path, saved, label_threshold=0.7, multi_label=multi_label)
    decided(tmp_path, saved)
    assert log_lines == [
        "--label_threshold=0.7 has no effect without --multi_label"
    ] * (not multi_label)


def test_labels_that_do_not_match_are_rejected(tmp_path):
    with pytest.raises(
        errors.UserError,
        match="labels yes, no, but numbers .a regression. were requested",
    ):
        decided(tmp_path, labels_of("yes", "no"), regression=True)
    with pytest.raises(errors.UserError, match=r"no labels \(id2label\)"):
        decided(tmp_path, {})


def test_the_config_beside_the_checkpoint_names_the_labels(tmp_path):
    """The config of pre-training knows neither them nor the kind of model."""
    (tmp_path / "trained").mkdir()
    (tmp_path / "pretrained.json").write_text("{}")
    beside = tmp_path / "trained" / "config.json"
    beside.write_text(
        json.dumps(
            dict(
                labels_of("bad", "good"),
                problem_type="single_label_classification",
            )
        )
    )
    run = run_config.RunConfig(
        output_dir=str(tmp_path / "out"),
        init_checkpoint=str(tmp_path / "trained" / "model.ckpt-3"),
        bert_config_file=str(tmp_path / "pretrained.json"),
    )

    def decide(**flags):
        task = run_classifier.ClassifierConfig(**flags)
        saved = finetuning.trained_config(run)
        task = run_classifier.as_trained(task, saved)
        return run_classifier.labels_of_run(run, task, [])

    assert decide(labels="good,bad").names == ("bad", "good")
    with pytest.raises(errors.UserError, match="bad, good, but up, down were"):
        decide(labels="up,down")
    with pytest.raises(errors.UserError, match="trained for single_label_cl"):
        decide(multi_label=True)
    beside.write_text(
        json.dumps(
            dict(
                labels_of("bad", "good"),
                problem_type="multi_label_classification",
            )
        )
    )
    assert decide().are_several
    beside.write_text("{}")
    with pytest.raises(errors.UserError, match="trained/config.json: no lab"):
        decide()


def test_metrics_are_the_tasks_or_those_asked_for():
    def metrics(labels, **flags):
        task = run_classifier.ClassifierConfig(**flags)
        return task.metrics_for(classification.Labels(labels))

    assert metrics(("0", "1"), task="MRPC") == ("accuracy", "f1")
    assert metrics(("a", "b")) == ("accuracy",)
    assert metrics(()) == ("pearson", "spearman")
    assert metrics(("a", "b"), metrics="f1,accuracy") == ("f1", "accuracy")


def test_results_of_two_sets_have_their_names():
    def example(label):
        return classification.Example("0", "dol", None, label, "a.tsv")

    results = run_classifier.evaluation_results(
        classification.Labels(("a", "b")),
        ["accuracy"],
        [("_x", [example("a"), example("b")]), ("_y", [example("b")])],
        [np.array([[1.0, 0], [1.0, 0]]), np.array([[0, 1.0]])],
    )
    assert results["accuracy_x"] == 0.5 and results["accuracy_y"] == 1.0
    assert (results["examples_x"], results["examples_y"]) == (2, 1)
    assert results["loss_y"] == pytest.approx(np.log(1 + np.exp(-1)))


def test_no_epochs_train_no_step(folder):
    data = invented.write_sst2(folder.path / "untrained-SST-2")
    log = folder.run(
        "untrained", data_dir=data, **dict(TRAINED, num_train_epochs=0)
    )
    assert "training starts from random weights" in log
    assert "--num_train_epochs=0: no step is trained" in log
    assert not list((folder.path / "untrained").glob("model.ckpt*"))
    assert folder.results("untrained")["accuracy"] < 0.8


def test_a_trained_init_checkpoint_is_the_one_evaluated(folder, trained):
    """Also where --output_dir has a newer one; a bare encoder is not."""
    del trained
    out = folder.path / "out"
    evaluation = {
        "task": "SST-2",
        "data_dir": folder.path / "SST-2",
        "do_eval": True,
    }
    folder.run("out", **evaluation)
    newest = folder.results("out")
    assert newest["global_step"] == 75
    mine = out / "init_checkpoint"
    mine.mkdir()
    before = {path.name for path in out.iterdir()}
    log = folder.run("out", init_checkpoint=out / "model.ckpt-30", **evaluation)
    earlier = folder.results("out")
    assert "model.ckpt-30: " in log  # the log of what was loaded
    assert earlier["global_step"] == 30 and earlier["loss"] != newest["loss"]
    assert not list(mine.iterdir())
    new = {path.name for path in out.iterdir()} - before
    assert all(name.endswith(".eval") for name in new)
    folder.run("fresh", init_checkpoint=out / "model.ckpt-30", **evaluation)
    results, events = sorted((folder.path / "fresh").iterdir())
    assert (events.suffix, results.name) == (".eval", "eval_results.txt")
    assert folder.results("fresh") == earlier
    tiny.write_trained(folder.path / "encoder", ["masked_lm"])
    bare = next((folder.path / "encoder").glob("*.index")).with_suffix("")
    log = folder.run("out", init_checkpoint=bare, **evaluation)
    assert "has no cls/classification/: evaluating" in log
    assert folder.results("out") == newest
