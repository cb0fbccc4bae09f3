# SPDX-License-Identifier: Apache-2.0
"""Answers of ONNX files: equal to TensorFlow's, in int8 nearly so."""

import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import export_model
from common import errors
from helpers import forked, tiny
from helpers.paths import REPOSITORY
from helpers.user_errors import check
from inference import exporting, predictor, quantization, trained_model
from question_answering import squad_scores

pytest.importorskip("onnxruntime")
TEXTS = ["Paris lies on the Seine, north of Lyon.", "Lyon lies on two rivers."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.write_trained(
        path,
        ["masked_lm", "question_answering", "classification", "tagging"],
        labels=3,
    )
    return str(path)


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """Function of a head and the type of input_ids: its ONNX file."""
    pytest.importorskip("tf2onnx")

    @functools.lru_cache(maxsize=None)
    def export(head, input_type="int32"):
        path = str(tmp_path_factory.mktemp(head) / "model.onnx")
        exporting.export(
            trained_model.find(folder),
            head,
            "onnx",
            path,
            input_type=tf.as_dtype(input_type),
        )
        return path

    return export


def numbers(value):
    """All numbers of a result, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, np.ndarray)):
        return [number for item in value for number in numbers(item)]
    is_number = isinstance(value, (float, np.floating))
    return [float(value)] if is_number else []


def texts(value):
    """A result without its numbers of type float."""
    return json.loads(
        json.dumps(value, default=str), parse_float=lambda text: None
    )


@pytest.mark.parametrize(
    "task, input_type, pooling",
    [
        ("answer", "int32", "mean"),
        ("fill-mask", "int64", "mean"),
        ("classify", "int64", "mean"),
        ("tag", "int32", "mean"),
        ("embed", "int32", "mean"),
        ("embed", "int32", "first"),
        ("embed", "int32", "tokens"),
    ],
)
def test_both_engines_give_the_same(
    folder, exported, task, input_type, pooling
):
    path = exported(predictor.TASKS[task], input_type)
    settings = predictor.Settings(
        max_seq_length=48, doc_stride=16, pooling=pooling
    )

    def results(model):
        model = predictor.Predictor(model, task, settings)
        if task == "answer":
            return model.engine, [model.answer("Where?", t) for t in TEXTS]
        if task == "fill-mask":
            return model.engine, model.fill_mask_all(
                ["A <mask> and <mask>.", "one <mask>"]
            )
        if task == "classify":
            return model.engine, model.classify_all([(t, "b") for t in TEXTS])
        if task == "tag":
            return model.engine, model.tag_all(TEXTS)
        return model.engine, model.embed_all(TEXTS)

    ours, of_onnx = results(path)
    theirs, of_tensorflow = results(folder)
    assert ours.startswith("ONNX Runtime 1.") and "TensorFlow" in theirs
    assert len(numbers(of_onnx)) > 2
    np.testing.assert_allclose(
        numbers(of_onnx), numbers(of_tensorflow), rtol=0, atol=1e-5
    )
    if task != "embed":
        assert texts(of_onnx) == texts(of_tensorflow)


def predict(path, *flags):
    """predict.py's process, in which importing TensorFlow is an error."""
    program = (
        "import runpy, sys; sys.modules['tensorflow'] = None; "
        "sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "predict.py", *flags]
        + [f"--model={path}"],
        cwd=str(REPOSITORY),
        capture_output=True,
        text=True,
        env=tiny.environment(npu=False),
    )


def test_predict_answers_without_tensorflow(exported):
    process = predict(
        exported("squad"), "answer", "--question=Where?", f"--text={TEXTS[0]}"
    )
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert answer["answer"] == TEXTS[0][answer["start"] : answer["end"]]
    assert "answering with ONNX Runtime 1." in process.stderr
    assert "(float32)" in process.stderr


def test_serve_needs_no_tensorflow():
    program = (
        "import sys; sys.modules['tensorflow'] = None; "
        "sys.path.insert(0, '.'); import scripts.serve, scripts.answer_server"
    )
    pytest.importorskip("fastapi")
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=str(REPOSITORY)
    )


@pytest.mark.parametrize(
    "name, flags, words",
    [
        ("no.onnx", (), "no.onnx: does not exist"),
        ("bad.onnx", (), "bad.onnx: ONNX Runtime cannot read it"),
        ("bad.onnx", ("--manual_fp16",), "remove .* --manual_fp16 and"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, flags, words):
    (tmp_path / "bad.onnx").write_bytes(b"nothing of ONNX")
    process = predict(tmp_path / name, "tag", "--text=a", *flags)
    assert process.returncode == 1
    check("predict.py", process.stderr, [words])


def test_a_file_of_another_head_is_rejected(exported):
    with pytest.raises(errors.UserError, match="no masked_lm head, only tag"):
        predictor.Predictor(exported("tagging"), "fill-mask")


def _swap_ids(folder):
    ids = json.loads((folder / "vocab.json").read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (folder / "vocab.json").write_text(json.dumps(ids))


def _other_merges(folder):
    (folder / "merges.txt").write_text("#version: 0.1\n")


def _lower_case(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def _other_task(folder):
    (folder / "task.json").write_text(
        '{"task": "question_answering", "version_2_with_negative": true}'
    )


@pytest.mark.parametrize(
    "change, quantized, words",
    [
        (_swap_ids, False, "vocab.json is .*, not that of .*model.onnx"),
        (_swap_ids, True, "vocab.json is .*, not that of .*model.onnx"),
        (_other_merges, False, "merges.txt is .*, not that of .*model.onnx"),
        (_lower_case, False, "do_lower_case is True, not that of .*model.onnx"),
        (
            _other_task,
            False,
            "task.json: not that of .*model.onnx: task 'question_answering', "
            "not None, version_2_with_negative True, not None; copy",
        ),
    ],
)
def test_files_of_another_model_beside_a_file_are_rejected(
    exported, tmp_path, caplog, quantized, change, words
):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "m"
    shutil.copytree(os.path.dirname(exported("squad")), str(folder))
    # Chosen after training.
    (folder / "task.json").write_text('{"null_score_diff_threshold": 2.5}')
    path = folder / "model.onnx"
    if quantized:
        quantization.write_int8(exported("squad"), str(path))
    change(folder)
    with pytest.raises(errors.UserError, match=words):
        predictor.Predictor(str(path), "answer")
    settings = predictor.Settings(allow_other_tokenizer=True)
    if change is not _other_task:
        predictor.Predictor(str(path), "answer", settings)
        assert "continuing (--allow_other_tokenizer)" in caplog.text
    # A file of an older version says nothing of them.
    proto = onnx.load(str(path))
    del proto.metadata_props[:]
    proto.metadata_props.add(key="head", value="squad")
    onnx.save(proto, str(path))
    predictor.Predictor(str(path), "answer")


# --- int8 -------------------------------------------------------------------


@pytest.fixture(scope="module")
def score_file(folder, tmp_path_factory):
    """A SQuAD file whose answers are those of the random model itself."""
    texts = [
        f"Town {n} lies on river {'abcdefg'[n % 7] * 3}." for n in range(9)
    ]
    model = predictor.Predictor(folder, "answer")
    paragraphs = []
    for number, text in enumerate(texts):
        result = model.answer("Where?", text)
        if not squad_scores.normalize_answer(result["answer"]):
            continue  # it would score 0
        answer = {"text": result["answer"], "answer_start": result["start"]}
        question = {
            "id": str(number),
            "question": "Where?",
            "answers": [answer],
        }
        paragraphs.append({"context": text, "qas": [question]})
    path = tmp_path_factory.mktemp("scores") / "dev.json"
    data = [{"title": "t", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return str(path)


def test_int8_agrees_in_a_quarter_of_the_bytes(
    exported, score_file, tmp_path, caplog
):
    """The file's own answers are float32's: F1 is the agreement with them."""
    source = os.path.dirname(exported("squad"))
    path = str(shutil.copytree(source, str(tmp_path / "m"))) + "/model.onnx"
    wide = predictor.Predictor(path, "answer").answer("Where?", TEXTS[0])
    before = os.path.getsize(path)
    caplog.set_level("INFO", logger="absl")
    quantization.quantize(path, "squad", score_file, 30.0)
    assert os.path.getsize(path) < 0.6 * before  # much is not weights here
    assert "100.00 in float32" in caplog.text
    model = predictor.Predictor(path, "answer")
    assert model.engine.endswith("(int8)")
    narrow = model.answer("Where?", TEXTS[0])
    difference = np.abs(
        wide["nbest"][0]["start_logit"] - narrow["nbest"][0]["start_logit"]
    )
    assert 0 < difference < 1


def test_an_export_in_int8_names_the_stage_it_compared(
    folder, score_file, tmp_path
):
    pytest.importorskip("tf2onnx")
    command = tiny.command(
        "export_model.py",
        [],
        model=folder,
        task="squad",
        format="onnx",
        quantize="int8",
        score_file=score_file,
        max_score_drop=30,
        output=tmp_path / "squad.onnx",
    )
    code, output, log = forked.run(command, tiny.environment(npu=False))
    assert code == 0, log
    (line,) = output.splitlines()
    assert line.endswith(", in float32 before --quantize")
    assert log.count("do_lower_case=") == 1 and "Ignore MatMul" not in log
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["squad.onnx"]


def test_a_lower_score_leaves_nothing_behind(folder, score_file, tmp_path):
    pytest.importorskip("tf2onnx")
    path = tmp_path / "squad.onnx"

    def finish(temporary):
        quantization.quantize(temporary, "squad", score_file, -100.0)

    with pytest.raises(errors.UserError, match="F1 .* falls from 100.00 to"):
        exporting.export(
            trained_model.find(folder),
            "squad",
            "onnx",
            str(path),
            finish=finish,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "head, name, content, words",
    [
        ("classification", "a.csv", "text,label\na,LABEL_9\n", "LABEL_9"),
        ("tagging", "a.conll", "Paris LOC\n", "'LOC' is not one of"),
        (
            "classification",
            "a.csv",
            "text,x\na,b\n",
            "a.csv: no column 'label'; .* 'x'; use labelled data of",
        ),
    ],
)
def test_a_score_file_of_other_labels_is_rejected(
    exported, tmp_path, head, name, content, words
):
    pytest.importorskip("onnx")
    (tmp_path / name).write_text(content)
    with pytest.raises(errors.UserError, match=words):
        quantization.quantize(exported(head), head, str(tmp_path / name), 0.5)


def test_int8_needs_one_label_a_text(exported, tmp_path):
    pytest.importorskip("onnx")
    folder = tmp_path / "model"
    shutil.copytree(os.path.dirname(exported("classification")), str(folder))
    values = json.loads((folder / "config.json").read_text())
    values["problem_type"] = "multi_label_classification"
    (folder / "config.json").write_text(json.dumps(values))
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": ["b"]}\n')
    with pytest.raises(errors.UserError, match="one label for each text"):
        quantization.quantize(
            str(folder / "model.onnx"),
            "classification",
            str(tmp_path / "a.jsonl"),
            0.5,
        )


@pytest.mark.parametrize(
    "values, words",
    [
        (
            dict(format="frozen", output="a.pb"),
            "--quantize: is for --format=onnx, not frozen; remove the flag",
        ),
        (dict(format="onnx", output="a.onnx"), "both, with labelled data"),
    ],
)
def test_int8_needs_its_flags(values, words):
    with pytest.raises(errors.UserError, match=words):
        export_model.ExportConfig(model="m", quantize="int8", **values)


@pytest.mark.parametrize(
    "form, values, needed",
    [
        ("saved_model", {"max_seq_length": 32}, "format=frozen, not saved_mod"),
        ("slim", {"top_k": 3}, "format=saved_model, not slim"),
        ("onnx", {"max_score_drop": 1}, "quantize=int8, which is not given"),
    ],
)
def test_flags_of_another_format_are_rejected(form, values, needed):
    (name,) = values
    output = "m.onnx" if form == "onnx" else "m"
    with pytest.raises(errors.UserError, match=f"--{name}: is for --{needed}"):
        export_model.ExportConfig(
            model="m", format=form, output=output, **values
        )


def test_files_beside_an_onnx_file_are_not_another_models(folder, tmp_path):
    pytest.importorskip("tf2onnx")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(errors.UserError, match="belongs to another model"):
        exporting.export(
            trained_model.find(folder),
            "squad",
            "onnx",
            str(tmp_path / "a.onnx"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
