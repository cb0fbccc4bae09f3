# SPDX-License-Identifier: Apache-2.0
"""Exports a trained model for other programs, and compares it first.

    saved_model  directory for TensorFlow Serving, free shapes
    frozen       one GraphDef file with weights and fixed shapes, for Ascend's
                 ATC
    onnx         one file for ONNX Runtime, free shapes; small files beside it
    slim         checkpoint without the optimizer's slots

All forms take `input_ids`; padding follows from the pad id. `export` writes to
a scratch directory, computes random sequences with the exported model and with
the graph of training, and renames the output only if both agree.
"""

import contextlib
import math
import os
import re
import shutil
import typing

import numpy as np
import tensorflow.compat.v1 as tf

import environment
from common import errors, files
from inference import graphs, onnx_engine, trained_model
from training import checkpoints
from weights import model_card, model_directory, tf_checkpoint
from weights import names as weight_names

# Largest difference of float32 graphs with another order of summation; the LM
# head sums over the hidden size once more.
TOLERANCES = {"mlm": 3e-5}
TOLERANCE = 1e-5
# ATC takes 11 to 15, ONNX Runtime this one since release 1.6.
OPSET = 13
# Bytes; smaller ones are shapes, axes and numbers.
_LARGE_CONSTANT = 1024
_CPU = tf.ConfigProto(device_count={"GPU": 0})
# Parts of TensorFlow's messages.
_FULL_DISK = re.compile(
    "No space left on device|Disk quota exceeded|File too large"
)


class Shape(typing.NamedTuple):
    """Sizes of input_ids; None is free."""

    batch_size: typing.Optional[int] = None
    max_seq_length: typing.Optional[int] = None
    num_choices: typing.Optional[int] = None  # of multiple_choice

    def dimensions(self, head: str) -> typing.List[typing.Optional[int]]:
        if head == "multiple_choice":
            return [self.batch_size, self.num_choices, self.max_seq_length]
        return [self.batch_size, self.max_seq_length]


FREE = Shape()


class Graph(typing.NamedTuple):
    """A graph and its signatures."""

    graph: tf.Graph
    # {signature: ({name: placeholder}, {name: output})}; a head's first.
    signatures: typing.Dict[str, typing.Tuple[dict, dict]]


def inference_graph(
    model: trained_model.TrainedModel,
    head: str,
    shape: Shape,
    input_type: tf.DType = tf.int32,
    top_k: int = 0,
) -> Graph:
    """The Graph of a head for other programs.

    Args:
      model: trained_model.TrainedModel.
      head: a key of trained_model.HEADS.
      shape: Shape.
      input_type: tf.int32 or tf.int64.
      top_k: tokens listed by the signature mlm_top_k; 0 includes only the
        head's own signature.
    """
    graph = tf.Graph()
    with graph.as_default():
        inputs = {
            "input_ids": tf.placeholder(
                input_type, shape.dimensions(head), "input_ids"
            )
        }
        input_ids = tf.cast(inputs["input_ids"], tf.int32)
        outputs = graphs.build(model, head, input_ids)
        signatures = {head: (inputs, _named(outputs))}
        if top_k:
            with tf.variable_scope("", reuse=True):
                if head == "mlm":
                    signatures["mlm_top_k"] = _top_k(
                        model, inputs, input_ids, top_k
                    )
                if head not in ("encoder", "multiple_choice"):
                    hidden = graphs.build(model, "encoder", input_ids)
                    signatures["encoder"] = inputs, _named(hidden)
    return Graph(graph, signatures)


def _named(outputs):
    return {name: tf.identity(tensor, name) for name, tensor in outputs.items()}


def _top_k(model, inputs, input_ids, top_k):
    """(inputs, outputs) of the best tokens at some positions, [B, P, K]."""
    positions = tf.placeholder(input_ids.dtype, [None, None], "positions")
    shape = tf.shape(positions)
    rows = (
        positions + tf.range(shape[0])[:, tf.newaxis] * tf.shape(input_ids)[1]
    )
    best = graphs.best_tokens(model, input_ids, tf.reshape(rows, [-1]), top_k)
    outputs = {
        name: tf.reshape(value, [shape[0], shape[1], top_k])
        for name, value in best.items()
    }
    return dict(inputs, positions=positions), outputs


# --- The four formats -------------------------------------------------------


def _write_saved_model(built, model, path):
    signatures = {
        name: tf.saved_model.predict_signature_def(*both)
        for name, both in built.signatures.items()
    }
    signatures["serving_default"] = signatures[next(iter(built.signatures))]
    builder = tf.saved_model.Builder(path)
    with graphs.restored(model, built.graph, _CPU) as session:
        with built.graph.as_default():
            builder.add_meta_graph_and_variables(
                session,
                [tf.saved_model.tag_constants.SERVING],
                signatures,
                strip_default_attrs=True,
            )
            builder.save()
    _copy_small_files(model, os.path.join(path, "assets.extra"))


def _run_saved_model(path, _head, ids):
    with tf.Session(graph=tf.Graph(), config=_CPU) as session:
        loaded = tf.saved_model.load(
            session, [tf.saved_model.tag_constants.SERVING], path
        )
        signature = loaded.signature_def["serving_default"]
        return session.run(
            {name: info.name for name, info in signature.outputs.items()},
            {signature.inputs["input_ids"].name: ids},
        )


def _without_gradients(graph_def):
    """The graph without the IdentityN that custom gradients leave."""
    sources = {}
    for node in graph_def.node:
        if node.op == "IdentityN":
            sources[node.name] = node.input[0]
            for number, name in enumerate(node.input):
                sources[f"{node.name}:{number}"] = name
    result = tf.GraphDef()
    result.CopyFrom(graph_def)
    for node in result.node:
        for place, name in enumerate(node.input):
            while name in sources:
                name = sources[name]
            node.input[place] = name
    return result


def _write_frozen(built, model, path):
    """Writes the first signature's GraphDef, with weights as constants."""
    _, outputs = next(iter(built.signatures.values()))
    names = [tensor.op.name for tensor in outputs.values()]
    with graphs.restored(model, built.graph, _CPU) as session:
        frozen = tf.graph_util.convert_variables_to_constants(
            session, built.graph.as_graph_def(), names
        )
    graph_def = tf.graph_util.extract_sub_graph(
        _without_gradients(frozen), names
    )
    files.write_bytes(path, graph_def.SerializeToString())


def _run_frozen(path, _head, ids):
    with open(path, "rb") as stream:
        graph_def = tf.GraphDef.FromString(stream.read())
    used = {
        name.split(":")[0] for node in graph_def.node for name in node.input
    }
    outputs = [node.name for node in graph_def.node if node.name not in used]
    with tf.Session(graph=tf.Graph(), config=_CPU) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(
            {name: name + ":0" for name in outputs}, {"input_ids:0": ids}
        )


def _onnx_package(name):
    return errors.import_package(name, "--format=onnx", "onnx")


def _without_weights(built, model, outputs):
    """(GraphDef with placeholders for the weights, {name: array}).

    tf2onnx copies each constant many times over. Whatever does not depend on an
    input counts as a weight, as the product of two or a concatenated kernel.
    """
    graph_def = _without_gradients(built.graph.as_graph_def())
    constant, used = set(), set()
    for node in graph_def.node:
        sources = {name.split(":")[0] for name in node.input}
        if node.op != "Placeholder" and sources <= constant:
            constant.add(node.name)
        else:
            used |= sources & constant
    with graphs.restored(model, built.graph, _CPU) as session:
        values = session.run({name: name + ":0" for name in used})
    weights = {k: v for k, v in values.items() if v.nbytes > _LARGE_CONSTANT}
    for node in graph_def.node:
        if node.name in values:
            node.CopyFrom(_constant(node.name, values[node.name]))
    return tf.graph_util.extract_sub_graph(graph_def, outputs), weights


def _constant(name, value):
    """The NodeDef of a constant, or of a placeholder for a large one."""
    node = tf.NodeDef(name=name)
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    if value.nbytes > _LARGE_CONSTANT:
        node.op = "Placeholder"
        node.attr["shape"].shape.CopyFrom(
            tf.TensorShape(value.shape).as_proto()
        )
    else:
        node.op = "Const"
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node


def _write_onnx(built, model, path):
    onnx = _onnx_package("onnx")
    tf2onnx = _onnx_package("tf2onnx")
    inputs, outputs = next(iter(built.signatures.values()))
    names = {
        tensor.name: name
        for part in (inputs, outputs)
        for name, tensor in part.items()
    }
    graph_def, weights = _without_weights(
        built, model, [tensor.op.name for tensor in outputs.values()]
    )
    with tf.Graph().as_default():
        proto, _ = tf2onnx.convert.from_graph_def(
            graph_def,
            opset=OPSET,
            input_names=[tensor.name for tensor in inputs.values()]
            + [name + ":0" for name in weights],
            output_names=[tensor.name for tensor in outputs.values()],
        )
    real_inputs = [x for x in proto.graph.input if x.name[:-2] not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(real_inputs)
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    axes = ["batch", "sequence"]
    if inputs["input_ids"].shape.rank == 3:
        axes.insert(1, "choices")
    for value in list(proto.graph.input) + list(proto.graph.output):
        value.name = names.get(value.name, value.name)
        for dimension, axis in zip(value.type.tensor_type.shape.dim, axes):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = axis
    metadata = onnx_engine.description(
        model.tokenizer, model_directory.read_task(os.path.dirname(path))
    )
    metadata[onnx_engine.HEAD] = next(iter(built.signatures))
    for name, value in weights.items():
        tensor = onnx.numpy_helper.from_array(value, name + ":0")
        proto.graph.initializer.append(tensor)
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    files.write_bytes(path, proto.SerializeToString())


def _run_onnx(path, _head, ids):
    session = _onnx_package("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input_ids": ids})))


def _write_slim(_built, model, path):
    names = {
        variable.tf
        for variable in weight_names.variables(model.parts, model.config)
    }
    _copy_small_files(model, path)
    results = os.path.join(model.directory, model_card.RESULTS)
    if os.path.isfile(results):  # for the model card of a conversion
        shutil.copy(results, path)
    prefix = os.path.join(path, os.path.basename(model.checkpoint))
    with open(tf_checkpoint.data_file(prefix), "wb") as stream:
        index = tf_checkpoint.write_data(
            stream, {k: v for k, v in model.tensors.items() if k in names}
        )
    files.write_bytes(tf_checkpoint.index_file(prefix), index)
    checkpoints.keep(path, [prefix])


def _run_slim(path, head, ids):
    return trainer_outputs(trained_model.find(path), head, ids)


def _copy_small_files(model, directory):
    """config.json, task.json and, if there are any, the tokenizer's files."""
    os.makedirs(directory, exist_ok=True)
    shutil.copyfile(
        model.config_file, os.path.join(directory, model_directory.CONFIG)
    )
    if model.tokenizer.vocab_file and model.tokenizer.merges_file:
        model_directory.write_tokenizer(
            directory, model.tokenizer, model.config.max_sequence_length
        )
    if model.task.task:
        model_directory.write_task(directory, model.task)


class Format(typing.NamedTuple):
    """A form of a model.

    Attributes:
      write: function (Graph, trained_model.TrainedModel, path).
      run: function (path, head, ids) -> {name: array}: the outputs of the
        exported model at a path, computed by the program that reads it.
    """

    write: typing.Callable
    run: typing.Callable


FORMATS = {
    "saved_model": Format(_write_saved_model, _run_saved_model),
    "frozen": Format(_write_frozen, _run_frozen),
    "onnx": Format(_write_onnx, _run_onnx),
    "slim": Format(_write_slim, _run_slim),
}


# --- Comparison -------------------------------------------------------------


def trainer_outputs(
    model: trained_model.TrainedModel, head: str, ids: np.ndarray
) -> typing.Dict[str, np.ndarray]:
    """{name: array}: the outputs of the graph of training, without dropout."""
    device = environment.create(environment.DeviceConfig(accelerator="cpu"))
    graph = tf.Graph()
    with graph.as_default():
        input_ids = tf.placeholder(tf.int32, [None] * ids.ndim)
        outputs = graphs.build(model, head, input_ids, device.kernels)
    with graphs.restored(model, graph, _CPU) as session:
        return session.run(outputs, {input_ids: ids})


def random_ids(
    model: trained_model.TrainedModel,
    dimensions: typing.Sequence[int],
    seed: int = 0,
) -> np.ndarray:
    """Random sequences, padded on the right, the first one full: int32."""
    random = np.random.RandomState(seed)
    pad = model.config.pad_token_id
    ids = random.randint(0, model.config.vocab_size - 1, dimensions)
    ids += ids >= pad  # all ids except the pad's
    rows = ids.reshape(-1, dimensions[-1])
    for row in rows[1:]:
        row[random.randint(1, dimensions[-1]) :] = pad
    return rows.reshape(dimensions).astype(np.int32)


def difference(
    outputs: typing.Dict[str, np.ndarray],
    expected: typing.Dict[str, np.ndarray],
    ids: np.ndarray,
    pad_token_id: int,
) -> float:
    """The largest absolute difference of outputs, at tokens only.

    Args:
      outputs, expected: {name: array}.
      ids: int [B, S] or [B, C, S].
      pad_token_id: int.

    Returns:
      Infinity where outputs are missing, of another shape, not finite, or
      answers may begin at padding.
    """
    if set(outputs) != set(expected):
        return np.inf
    differences, tokens = [0.0], ids != pad_token_id
    for name, reference in expected.items():
        output = outputs[name]
        if output.shape != reference.shape:
            return np.inf
        if reference.shape == ids.shape and not (
            (output[~tokens] < 0.5 * graphs.NO_ANSWER).all()
        ):
            return np.inf
        if reference.shape[: ids.ndim] == ids.shape:
            output, reference = output[tokens], reference[tokens]
        error = np.abs(output.astype(np.float64) - reference)
        differences.append(error.max() if np.isfinite(error).all() else np.inf)
    return float(max(differences))


def _sizes(model, head, shape):
    """Two sizes of input_ids to compare with; a fixed shape twice."""
    most = model.config.max_sequence_length
    return [
        [
            fixed or free
            for fixed, free in zip(
                shape.dimensions(head),
                Shape(batch_size, min(length, most), choices).dimensions(head),
            )
        ]
        for batch_size, length, choices in ((4, 48, 3), (2, 17, 2))
    ]


def compare(
    model: trained_model.TrainedModel,
    head: str,
    form: str,
    path: str,
    shape: Shape,
    input_type: tf.DType,
) -> float:
    """The largest difference of an exported model from training's graph.

    Args: see `export`; path is that of the exported model.
    """
    differences = []
    for seed, dimensions in enumerate(_sizes(model, head, shape)):
        ids = random_ids(model, dimensions, seed)
        outputs = FORMATS[form].run(
            path, head, ids.astype(input_type.as_numpy_dtype)
        )
        expected = trainer_outputs(model, head, ids)
        differences.append(
            difference(outputs, expected, ids, model.config.pad_token_id)
        )
    return max(differences)


# --- Export -----------------------------------------------------------------


@contextlib.contextmanager
def _new_path(path, overwrite):
    """A path to write to, which becomes `path` if all went well.

    With it a list for the names of files that go beside it, in its directory.
    """
    if os.path.lexists(path) and not overwrite:
        raise errors.UserError(
            f"--output={path}: already exists; pass --overwrite to replace it "
            "or choose another --output"
        )
    try:
        with files.scratch_directory(path) as directory:
            temporary = os.path.join(directory, os.path.basename(path))
            names: typing.List[str] = []
            yield temporary, names
            target = os.path.dirname(path)
            files.publish(
                {
                    os.path.join(directory, name): os.path.join(target, name)
                    for name in (*names, os.path.basename(path))
                }
            )
    except OSError as error:
        error.filename = error.filename or path
        raise
    except tf.errors.OpError as error:
        full_disk = _FULL_DISK.search(str(error))
        if not full_disk:
            raise
        raise errors.UserError(
            f"{path}: cannot be written: {full_disk.group()}; free some space "
            "or choose another --output"
        ) from error


def _check_place(path, model):
    """Rejects a path whose replacement would remove the model."""
    target = os.path.realpath(path)
    source = os.path.realpath(model.directory)
    if os.path.commonpath([target, source]) == target:
        raise errors.UserError(
            f"--output={path}: contains the model to export; choose another "
            "--output"
        )


def _small_files(model, source, target, overwrite):
    """Writes the files that go beside an ONNX file to `source`.

    Returns:
      Their names.

    Raises:
      errors.UserError: one is another model's in `target`.
    """
    _copy_small_files(model, source)
    names = sorted(os.listdir(source))
    for name in names:
        path = os.path.join(target, name)
        if (
            not overwrite
            and os.path.exists(path)
            and files.sha256(path) != files.sha256(os.path.join(source, name))
        ):
            raise errors.UserError(
                f"{path}: belongs to another model than {model.checkpoint}; "
                "choose an --output in another directory, or pass --overwrite "
                "to replace it"
            )
    return names


def export(
    model: trained_model.TrainedModel,
    head: str,
    form: str,
    path: str,
    *,
    shape: Shape = FREE,
    input_type: tf.DType = tf.int32,
    top_k: int = 5,
    tolerance: typing.Optional[float] = None,
    overwrite: bool = False,
    finish: typing.Optional[typing.Callable[[str], None]] = None,
) -> typing.Tuple[float, typing.Dict[str, typing.Tuple[dict, dict]]]:
    """Writes a model and compares it with the graph of training.

    Args:
      model: trained_model.TrainedModel.
      head: a key of trained_model.HEADS.
      form: a key of FORMATS.
      path: file (frozen, onnx) or directory to write.
      shape: Shape; without None for frozen.
      input_type: tf.int32 or tf.int64; ignored by slim.
      top_k: tokens that the SavedModel's signature mlm_top_k lists.
      tolerance: largest difference allowed; None takes TOLERANCES'.
      overwrite: whether to replace an existing file or directory.
      finish: function of a path, called with what was written and compared,
        before it gets its name.

    Returns:
      (largest difference, the signatures' {name: (inputs, outputs)}).

    Raises:
      errors.UserError: the head or a package is missing, or outputs differ by
        more than the tolerance; nothing is written then.
    """
    path = os.path.normpath(path)
    model.check_head(head)
    _check_place(path, model)
    if tolerance is None:
        tolerance = TOLERANCES.get(head, TOLERANCE)
    environment.create(environment.DeviceConfig(accelerator="cpu"))
    built = inference_graph(
        model, head, shape, input_type, top_k if form == "saved_model" else 0
    )
    with _new_path(path, overwrite) as (temporary, names):
        if form == "onnx":
            source, target = os.path.dirname(temporary), os.path.dirname(path)
            names += _small_files(model, source, target, overwrite)
        FORMATS[form].write(built, model, temporary)
        largest = compare(model, head, form, temporary, shape, input_type)
        if not math.isfinite(largest):
            raise errors.UserError(
                f"{path}: not written: outputs of {model.checkpoint} are NaN "
                "or infinite; the model has diverged, use an earlier checkpoint"
            )
        if not largest <= tolerance:
            raise errors.UserError(
                f"{path}: not written: its outputs differ from those of "
                f"training by {largest:.3g}, more than {tolerance:.3g}; to "
                "accept this, pass a larger --tolerance"
            )
        if finish:
            finish(temporary)
    return largest, built.signatures


def atc_command(
    path: str, built_signature: typing.Tuple[dict, dict], soc_version: str
) -> str:
    """The command that converts a frozen graph to an offline model.

    Args:
      path: of the frozen graph, in .pb.
      built_signature: (inputs, outputs) of `export`.
      soc_version: the NPU's name, such as Ascend310P3.

    Source: Huawei, CANN 8.0, ATC parameters (framework 3 is TensorFlow).
    """
    inputs, outputs = built_signature
    shapes = ";".join(
        f"{tensor.op.name}:{','.join(map(str, tensor.shape.as_list()))}"
        for tensor in inputs.values()
    )
    nodes = ";".join(f"{tensor.op.name}:0" for tensor in outputs.values())
    return (
        f"atc --model={path} --framework=3 "
        f"--output={os.path.splitext(path)[0]} --input_format=ND "
        f'--input_shape="{shapes}" --out_nodes="{nodes}" '
        f"--soc_version={soc_version} --log=error"
    )
