# SPDX-License-Identifier: Apache-2.0
"""Tests of exporting.py and export_model.py: other programs' forms of a model.

Outputs are compared with reference numbers, not with this project's own graph,
which `export` does itself.
"""

import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors
from helpers import tiny
from helpers.paths import FIRST_VERSION, GOLDEN, REPOSITORY
from inference import exporting, trained_model
from weights import tf_checkpoint

REFERENCES = {
    "mlm": ("masked_lm", {"logits": "mlm_logits"}, 3e-5),
    "squad": (
        "question_answering",
        {"start_logits": "start_logits", "end_logits": "end_logits"},
        1e-5,
    ),
    "classification": ("sequence_classification", {"logits": "logits"}, 1e-5),
}
ENDINGS = {"frozen": ".pb", "onnx": ".onnx", "saved_model": "", "slim": ""}


@pytest.mark.parametrize("head", sorted(REFERENCES))
@pytest.mark.parametrize("form", ["saved_model", "frozen", "onnx", "slim"])
def test_every_form_gives_the_reference_numbers(
    golden_checkpoint, tmp_path, form, head
):
    if form == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    name, outputs, atol = REFERENCES[head]
    expected = np.load(str(GOLDEN / name / "expected.npz"))
    ids = expected["input_ids"].astype(np.int32)
    shape = (
        exporting.Shape(*ids.shape) if form == "frozen" else (exporting.Shape())
    )
    path = str(tmp_path / "out") + ENDINGS[form]
    largest, _ = exporting.export(
        trained_model.find(golden_checkpoint(name)),
        head,
        form,
        path,
        shape=shape,
    )
    assert largest <= atol
    results = exporting.FORMATS[form].run(path, head, ids)
    tokens = expected["input_mask"] != 0
    for ours, theirs in outputs.items():
        output, reference = results[ours], expected[theirs]
        if reference.shape[:2] == tokens.shape:
            output, reference = output[tokens], reference[tokens]
        np.testing.assert_allclose(output, reference, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write_trained(
        folder,
        ["masked_lm", "question_answering", "multiple_choice", "answerable"],
    )
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (folder / "task.json").write_text('{"task": "multiple_choice"}')
    return trained_model.find(str(folder))


def test_a_saved_model_names_its_signatures(model, tmp_path):
    path = str(tmp_path / "1")
    exporting.export(model, "mlm", "saved_model", path, top_k=3)
    ids = exporting.random_ids(model, [3, 9])
    columns = np.array([[1, 2], [1, 1], [0, 0]], np.int32)
    with tf.Session(graph=tf.Graph()) as session:
        signatures = tf.saved_model.load(session, ["serve"], path).signature_def
        assert set(signatures) == {
            "serving_default",
            "mlm",
            "mlm_top_k",
            "encoder",
        }

        def run(name, **inputs):
            signature = signatures[name]
            return session.run(
                {key: info.name for key, info in signature.outputs.items()},
                {
                    signature.inputs[key].name: value
                    for key, value in inputs.items()
                },
            )

        logits = run("mlm", input_ids=ids)["logits"]
        best = run("mlm_top_k", input_ids=ids, positions=columns)
        hidden = run("encoder", input_ids=ids)["sequence_output"]
    assert hidden.shape == (3, 9, 32)
    rows = logits[np.arange(3)[:, None], columns]  # [3, 2, V]
    assert (
        best["ids"].tolist()
        == np.argsort(-rows, axis=-1, kind="stable")[:, :, :3].tolist()
    )
    assert sorted(os.listdir(os.path.join(path, "assets.extra"))) == [
        "config.json",
        "merges.txt",
        "task.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


def placeholder(path):
    """(shape, type) of a frozen graph's input."""
    graph_def = tf.GraphDef()
    with open(path, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    (node,) = [node for node in graph_def.node if node.op == "Placeholder"]
    sizes = [size.size for size in node.attr["shape"].shape.dim]
    return sizes, node.attr["dtype"].type


def test_a_frozen_graph_has_fixed_shapes_and_no_trace_of_training(
    model, tmp_path
):
    path = str(tmp_path / "m.pb")
    _, signatures = exporting.export(
        model,
        "multiple_choice",
        "frozen",
        path,
        shape=exporting.Shape(2, 16, 3),
        input_type=tf.int64,
    )
    graph_def = tf.GraphDef()
    with open(path, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    kinds = {node.op for node in graph_def.node}
    assert not kinds & {"IdentityN", "VariableV2", "VarHandleOp", "Assign"}
    assert placeholder(path) == ([2, 3, 16], tf.int64.as_datatype_enum)
    command = exporting.atc_command(
        path, signatures["multiple_choice"], "Ascend310P3"
    )
    assert command == (
        f"atc --model={path} --framework=3 --output={path[:-3]} "
        '--input_format=ND --input_shape="input_ids:2,3,16" '
        '--out_nodes="logits:0" --soc_version=Ascend310P3 --log=error'
    )


def test_a_slim_checkpoint_has_the_weights_and_nothing_else(model, tmp_path):
    path = tmp_path / "slim"
    exporting.export(model, "squad", "slim", str(path))
    slim = trained_model.find(str(path))
    assert slim.parts == model.parts and slim.task == model.task
    assert slim.tokenizer == (
        str(path / "vocab.json"),
        str(path / "merges.txt"),
        True,
    )
    values = json.loads((path / "tokenizer_config.json").read_text())
    assert values["model_max_length"] == 512
    assert values["mask_token"]["lstrip"]
    weights = {
        name
        for name in model.tensors
        if not name.endswith("/adam_m") and name != "global_step"
    }
    assert set(slim.tensors) == weights != set(model.tensors)
    for name in weights:
        np.testing.assert_array_equal(
            slim.tensors[name].read(), model.tensors[name].read()
        )
    names = dict(tf.train.list_variables(str(path)))  # TensorFlow reads it too
    assert set(names) == weights


def test_an_export_that_differs_leaves_nothing_behind(model, tmp_path):
    path = tmp_path / "s.pb"
    arguments = dict(shape=exporting.Shape(1, 16))
    with pytest.raises(errors.UserError, match="differ from those of training"):
        exporting.export(
            model, "squad", "frozen", str(path), tolerance=-1.0, **arguments
        )
    assert not list(tmp_path.iterdir())
    exporting.export(model, "squad", "frozen", str(path), **arguments)
    before = path.read_bytes()
    with pytest.raises(errors.UserError, match="--overwrite"):
        exporting.export(model, "squad", "frozen", str(path), **arguments)
    with pytest.raises(errors.UserError, match="differ"):
        exporting.export(
            model,
            "squad",
            "frozen",
            str(path),
            tolerance=-1.0,
            overwrite=True,
            **arguments,
        )
    assert path.read_bytes() == before
    exporting.export(
        model, "encoder", "frozen", str(path), overwrite=True, **arguments
    )
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["s.pb"]


def test_nan_outputs_are_reported_as_a_diverged_model(model, tmp_path):
    tensors = dict(model.tensors)
    name = "cls/squad/output_bias"
    tensors[name] = tensors[name]._replace(
        read=lambda: np.full([2], np.nan, np.float32)
    )
    prefix = str(tmp_path / "broken")
    with open(prefix + ".data-00000-of-00001", "wb") as stream:
        index = tf_checkpoint.write_data(stream, dict(sorted(tensors.items())))
    with open(prefix + ".index", "wb") as stream:
        stream.write(index)
    with pytest.raises(errors.UserError, match="broken are NaN or infinite"):
        exporting.export(
            model._replace(checkpoint=prefix),
            "squad",
            "saved_model",
            str(tmp_path / "out"),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["saved_model", "frozen", "slim"])
def test_a_full_disk_is_one_line_that_names_the_place(
    model, tmp_path, forked, form
):
    path = str(tmp_path / "out") + ENDINGS[form]
    with open(str(tmp_path / "run.py"), "w") as stream:
        stream.write(
            "import resource, runpy, signal, "
            "sys\nsignal.signal(signal.SIGXFSZ, "
            "signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, "
            "(20000, 20000))\nsys.path.insert(0, "
            f"{str(REPOSITORY)!r})\nrunpy.run_path("
            f"{str(REPOSITORY / 'export_model.py')!r}, "
            "run_name='__main__')\n"
        )
    log = forked(
        str(tmp_path / "run.py"),
        "--task=squad",
        code=1,
        model=model.directory,
        format=form,
        output=path,
    )
    last = log.splitlines()[-1]
    assert "Traceback" not in log and path in last
    assert "File too large" in last
    assert [file.name for file in tmp_path.iterdir()] == ["run.py"]


def test_the_models_own_task_is_exported(tmp_path, forked):
    """task.json of a model, the only head of one of the first version."""
    path, other = tmp_path / "a.pb", tmp_path / "model"

    def export(model):
        log = forked(
            "export_model.py",
            "--overwrite",
            model=model,
            format="frozen",
            output=path,
        )
        return log, placeholder(str(path))[0]

    log, sizes = export(FIRST_VERSION / "squad")
    assert "exporting squad: the model's own task" in log
    assert sizes == [1, 128]  # all positions that the model has
    tiny.write_trained(other, ["classification", "tagging"])
    log, sizes = export(other)
    assert "exporting encoder: " in log and "classification, encoder, t" in log
    assert sizes == [1, 384]
    (other / "task.json").write_text('{"task": "tagging", "max_seq_length": 9}')
    log, sizes = export(other)
    assert "exporting tagging: " in log and sizes == [1, 9]


def test_a_missing_head_is_rejected(model, tmp_path):
    with pytest.raises(errors.UserError, match="no tagging head"):
        exporting.export(model, "tagging", "slim", str(tmp_path / "a"))


def test_differences_count_at_tokens_alone():
    ids = np.array([[0, 5, 2, 1]])
    logits = np.array([[1.0, 2.0, 3.0, -1e9]], np.float32)
    hidden = np.zeros([1, 4, 2])

    def of(**outputs):
        return exporting.difference(
            dict({"a": logits, "h": hidden}, **outputs),
            {"a": logits, "h": hidden},
            ids,
            1,
        )

    assert of() == 0.0
    assert of(h=hidden + [[[0], [0], [0], [9]]]) == 0.0
    assert of(h=hidden + [[[0], [-0.5], [0], [9]]]) == 0.5
    assert of(a=logits + np.array([[0, 0, 0.25, 64]])) == 0.25
    assert of(a=logits + np.array([[0, 0, 0, 1e9]])) == np.inf
    assert of(a=logits * np.nan) == np.inf
    assert of(a=logits[:, :3]) == of(more=logits) == np.inf


def test_random_sequences_are_padded_on_the_right(model):
    ids = exporting.random_ids(model, [6, 3, 11])
    tokens = ids != 1
    assert ids.min() >= 0 and ids.max() < tiny.VOCAB_SIZE
    assert tokens[0, 0].all() and tokens[:, :, 0].all() and not tokens.all()
    assert (np.diff(tokens.astype(int), axis=-1) <= 0).all()


def test_onnx_names_its_axes_and_orders_its_outputs(model, tmp_path):
    pytest.importorskip("tf2onnx")
    session = pytest.importorskip("onnxruntime")
    axes = {}
    for head in ("squad", "multiple_choice", "encoder"):
        path = str(tmp_path / f"{head}.onnx")
        exporting.export(model, head, "onnx", path)
        run = session.InferenceSession(path, providers=["CPUExecutionProvider"])
        axes[head] = [
            (value.name, value.shape)
            for value in run.get_inputs() + run.get_outputs()
        ]
    assert axes == {
        "squad": [
            ("input_ids", ["batch", "sequence"]),
            ("start_logits", ["batch", "sequence"]),
            ("end_logits", ["batch", "sequence"]),
            ("answerable_logits", ["batch"]),
        ],
        "multiple_choice": [
            ("input_ids", ["batch", "choices", "sequence"]),
            ("logits", ["batch", "choices"]),
        ],
        "encoder": [
            ("input_ids", ["batch", "sequence"]),
            ("sequence_output", ["batch", "sequence", 32]),
        ],
    }


def test_each_weight_of_onnx_is_ready_for_its_product(model, tmp_path):
    """int8 quantizes products whose second factor is stored in the file."""
    pytest.importorskip("tf2onnx")
    onnx = pytest.importorskip("onnx")
    path = str(tmp_path / "encoder.onnx")
    exporting.export(model, "encoder", "onnx", path)
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    products = [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    ]
    assert len(products) == 4 * model.config.num_hidden_layers


def test_onnx_without_its_packages_is_one_clear_line(model, tmp_path):
    try:
        import tf2onnx  # noqa: F401
    except ImportError:
        with pytest.raises(errors.UserError, match="setup.sh --extras=onnx"):
            exporting.export(model, "squad", "onnx", str(tmp_path / "a.onnx"))
        assert not list(tmp_path.iterdir())
    else:
        pytest.skip("tf2onnx is installed")
