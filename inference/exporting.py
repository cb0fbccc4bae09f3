# SPDX-License-Identifier: Apache-2.0
"""A trained model in the form that another program serves, compared first.

    saved_model  directory for TensorFlow Serving, free shapes
    frozen       one GraphDef file with weights and fixed shapes, for Ascend's
                 ATC
    onnx         one file for ONNX Runtime, free shapes
    slim         checkpoint without the optimizer's slots

Every form takes `input_ids`; what is padding follows from the pad id. `export`
writes under another name, computes random sequences with what it wrote and
with the graph of training, and gives the name only where both agree.
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
from common import errors
from inference import trained_model
from weights import names as weight_names
from weights import tf_checkpoint

# Largest difference of float32 graphs that add in another order; the LM head
# sums over the hidden size once more.
TOLERANCES = {"mlm": 3e-5}
TOLERANCE = 1e-5
# ATC takes 11 to 15, ONNX Runtime this one since release 1.6.
OPSET = 13
_CPU = tf.ConfigProto(device_count={"GPU": 0})


class Shape(typing.NamedTuple):
    """Sizes of input_ids; None is free."""

    batch_size: typing.Optional[int] = None
    max_seq_length: typing.Optional[int] = None
    num_choices: typing.Optional[int] = None  # multiple_choice has them

    def dimensions(self, head):
        if head == "multiple_choice":
            return [self.batch_size, self.num_choices, self.max_seq_length]
        return [self.batch_size, self.max_seq_length]


class Graph(typing.NamedTuple):
    """A graph and what can be asked of it."""

    graph: tf.Graph
    # {signature: ({name: placeholder}, {name: output})}; a head's first.
    signatures: typing.Dict[str, typing.Tuple[dict, dict]]


def inference_graph(model, head, shape, input_type=tf.int32, top_k=0):
    """The Graph of a head for other programs.

    Args:
      model: trained_model.TrainedModel.
      head: a key of trained_model.HEADS.
      shape: Shape.
      input_type: tf.int32 or tf.int64.
      top_k: tokens listed by the signature mlm_top_k; 0 leaves the signatures
        out that are not the head's own.
    """
    graph = tf.Graph()
    with graph.as_default():
        given = tf.placeholder(input_type, shape.dimensions(head), "input_ids")
        input_ids = tf.cast(given, tf.int32)
        inputs = {"input_ids": given}
        outputs = trained_model.build(model, head, input_ids)
        signatures = {head: (inputs, _named(outputs))}
        if top_k:
            with tf.variable_scope("", reuse=True):
                signatures.update(_more(model, head, inputs, input_ids, top_k))
    return Graph(graph, signatures)


def _named(outputs):
    return {
        name: tf.identity(tensor, name)
        for name, tensor in sorted(outputs.items())
    }


def _more(model, head, inputs, input_ids, top_k):
    """The signatures that cost nothing beside a head's own."""
    found = {}
    if head == "mlm":
        positions = tf.placeholder(input_ids.dtype, [None, None], "positions")
        shape = tf.shape(positions)
        rows = (
            positions
            + tf.range(shape[0])[:, tf.newaxis] * tf.shape(input_ids)[1]
        )
        best = trained_model.best_tokens(
            model, input_ids, tf.reshape(rows, [-1]), top_k
        )
        found["mlm_top_k"] = (
            dict(inputs, positions=positions),
            {
                name: tf.reshape(value, [shape[0], shape[1], top_k])
                for name, value in best.items()
            },
        )
    if head not in ("encoder", "multiple_choice"):
        found["encoder"] = (
            inputs,
            _named(trained_model.build(model, "encoder", input_ids)),
        )
    return found


# --- The four formats -------------------------------------------------------


def _write_saved_model(built, model, path):
    signatures = {
        name: tf.saved_model.predict_signature_def(*both)
        for name, both in built.signatures.items()
    }
    signatures["serving_default"] = signatures[next(iter(built.signatures))]
    builder = tf.saved_model.Builder(path)
    with trained_model.restored(model, built.graph, _CPU) as session:
        with built.graph.as_default():
            builder.add_meta_graph_and_variables(
                session,
                [tf.saved_model.tag_constants.SERVING],
                signatures,
                strip_default_attrs=True,
            )
            builder.save()
    _copy_small_files(model, os.path.join(path, "assets.extra"))


def _run_saved_model(path, head, ids):
    del head
    with tf.Session(graph=tf.Graph(), config=_CPU) as session:
        loaded = tf.saved_model.load(
            session, [tf.saved_model.tag_constants.SERVING], path
        )
        signature = loaded.signature_def["serving_default"]
        return session.run(
            {name: info.name for name, info in signature.outputs.items()},
            {signature.inputs["input_ids"].name: ids},
        )


def _frozen(built, model):
    """The GraphDef of the first signature, weights as constants."""
    ((_, outputs),) = list(built.signatures.values())[:1]
    names = [tensor.op.name for tensor in outputs.values()]
    with trained_model.restored(model, built.graph, _CPU) as session:
        frozen = tf.graph_util.convert_variables_to_constants(
            session, built.graph.as_graph_def(), names
        )
    return tf.graph_util.extract_sub_graph(_without_gradients(frozen), names)


def _without_gradients(graph_def):
    """The graph without the IdentityN that custom gradients leave."""
    sources = {}
    for node in graph_def.node:
        if node.op == "IdentityN":
            for number, name in enumerate(node.input):
                sources[f"{node.name}:{number}"] = name
            sources[node.name] = node.input[0]
    result = tf.GraphDef()
    result.CopyFrom(graph_def)
    for node in result.node:
        for place, name in enumerate(node.input):
            while name in sources:
                name = sources[name]
            node.input[place] = name
    return result


def _write_frozen(built, model, path):
    with open(path, "wb") as stream:
        stream.write(_frozen(built, model).SerializeToString())


def _run_frozen(path, head, ids):
    del head
    graph_def = tf.GraphDef()
    with open(path, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    used = {
        name.split(":")[0] for node in graph_def.node for name in node.input
    }
    outputs = [node.name for node in graph_def.node if node.name not in used]
    with tf.Session(graph=tf.Graph(), config=_CPU) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(
            {name: name + ":0" for name in outputs}, {"input_ids:0": ids}
        )


def _missing(name):
    return errors.UserError(
        f"--format=onnx needs {name}, which is not installed; pip install -r "
        "requirements/onnx.txt"
    )


def _write_onnx(built, model, path):
    try:
        import tf2onnx
    except ImportError:
        raise _missing("tf2onnx") from None
    ((inputs, outputs),) = list(built.signatures.values())[:1]
    names = {
        tensor.name: name
        for part in (inputs, outputs)
        for name, tensor in part.items()
    }
    with tf.Graph().as_default():
        proto, _ = tf2onnx.convert.from_graph_def(
            _frozen(built, model),
            opset=OPSET,
            input_names=[tensor.name for tensor in inputs.values()],
            output_names=[tensor.name for tensor in outputs.values()],
        )
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in list(proto.graph.input) + list(proto.graph.output):
        value.name = names.get(value.name, value.name)
    with open(path, "wb") as stream:
        stream.write(proto.SerializeToString())


def _run_onnx(path, head, ids):
    del head
    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime") from None
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input_ids": ids})))


def _write_slim(built, model, path):
    del built
    known = {
        variable.tf
        for variable in weight_names.variables(model.parts, model.config)
    }
    tensors = {
        name: tensor for name, tensor in model.tensors.items() if name in known
    }
    _copy_small_files(model, path)
    name = os.path.basename(model.checkpoint)
    prefix = os.path.join(path, name)
    with open(tf_checkpoint.data_file(prefix), "wb") as stream:
        index = tf_checkpoint.write_data(stream, tensors)
    with open(tf_checkpoint.index_file(prefix), "wb") as stream:
        stream.write(index)
    with open(os.path.join(path, "checkpoint"), "w") as stream:
        stream.write(
            f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: '
            f'"{name}"\n'
        )


def _run_slim(path, head, ids):
    return trainer_outputs(trained_model.find(path), head, ids)


def _copy_small_files(model, directory):
    """config.json and, where there are, the tokenizer's files."""
    os.makedirs(directory, exist_ok=True)
    beside = os.path.join(model.directory, trained_model.TOKENIZER_CONFIG)
    for source, name in (
        (model.config_file, "config.json"),
        (model.vocab_file, trained_model.VOCAB),
        (model.merges_file, trained_model.MERGES),
        (beside, trained_model.TOKENIZER_CONFIG),
    ):
        if source and os.path.isfile(source):
            shutil.copyfile(source, os.path.join(directory, name))


class Format(typing.NamedTuple):
    """A form of a model.

    Attributes:
      write: function (Graph, trained_model.TrainedModel, path).
      run: function (path, head, ids) -> {name: array}: the outputs of what
        stands at a path, computed by whoever reads such files.
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


def trainer_outputs(model, head, ids):
    """{name: array}: what the graph of training gives without dropout."""
    device = environment.create(environment.DeviceConfig(accelerator="cpu"))
    graph = tf.Graph()
    with graph.as_default():
        given = tf.placeholder(tf.int32, [None] * ids.ndim)
        outputs = trained_model.build(model, head, given, device.kernels)
    with trained_model.restored(model, graph, _CPU) as session:
        return session.run(outputs, {given: ids})


def random_ids(model, dimensions, seed=0):
    """Random sequences, padded on the right, the first one full: int32."""
    random = np.random.RandomState(seed)
    pad = model.config.pad_token_id
    ids = random.randint(0, model.config.vocab_size - 1, dimensions)
    ids += ids >= pad  # any id but the pad's
    rows = ids.reshape(-1, dimensions[-1])
    for row in rows[1:]:
        row[random.randint(1, dimensions[-1]) :] = pad
    return rows.reshape(dimensions).astype(np.int32)


def difference(found, wanted, ids, pad_token_id):
    """The largest absolute difference of outputs, at tokens only.

    Args:
      found, wanted: {name: array}.
      ids: int [B, S] or [B, C, S].

    Returns:
      float; infinity where outputs are missing, of another shape, not finite,
      or answers may begin at padding.
    """
    if set(found) != set(wanted):
        return np.inf
    largest, tokens = 0.0, ids != pad_token_id
    for name, value in wanted.items():
        other = found[name]
        if other.shape != value.shape:
            return np.inf
        if value.shape[: ids.ndim] == ids.shape:
            if (
                value.shape == ids.shape
                and not (other[~tokens] < 0.5 * trained_model.NO_ANSWER).all()
            ):
                return np.inf
            other, value = other[tokens], value[tokens]
        each = np.abs(other.astype(np.float64) - value)
        largest = max(
            largest, each.max() if np.isfinite(each).all() else np.inf
        )
    return float(largest)


def _sizes(model, head, shape):
    """Two sizes of input_ids to compare with; of a fixed shape two inputs."""
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


def compare(model, head, form, path, shape, input_type):
    """The largest difference of an exported model from training's graph.

    Args: see `export`; path is where the exported model stands.
    """
    differences = []
    for seed, dimensions in enumerate(_sizes(model, head, shape)):
        ids = random_ids(model, dimensions, seed)
        found = FORMATS[form].run(
            path, head, ids.astype(input_type.as_numpy_dtype)
        )
        differences.append(
            difference(
                found,
                trainer_outputs(model, head, ids),
                ids,
                model.config.pad_token_id,
            )
        )
    return max(differences)


# --- Export -----------------------------------------------------------------


# Words of TensorFlow's messages.
_NO_ROOM = re.compile(
    "No space left on device|Disk quota exceeded|File too large"
)


@contextlib.contextmanager
def _new_path(path, overwrite):
    """A path to write to, which becomes `path` when all went well."""
    if os.path.lexists(path) and not overwrite:
        raise errors.UserError(
            f"{path} exists already; pass --overwrite to replace it or choose "
            "another --output"
        )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary, old = path + ".incomplete", path + ".replaced"
    _remove(temporary)
    try:
        yield temporary
        if os.path.lexists(path):
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or path
        raise
    except tf.errors.OpError as error:
        found = _NO_ROOM.search(str(error))
        if not found:
            raise
        raise errors.UserError(
            f"{path} cannot be written: {found.group()}; free some space, or "
            "choose another --output"
        ) from error
    finally:
        _remove(temporary)
        _remove(old)


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def _check_place(path, model):
    """Refuses a place whose replacement would take the model away."""
    place = os.path.realpath(path)
    home = os.path.realpath(model.directory)
    if os.path.commonpath([place, home]) == place:
        raise errors.UserError(
            f"--output={path} holds the model that is exported; give another "
            "--output"
        )


def export(
    model,
    head,
    form,
    path,
    *,
    shape=Shape(),
    input_type=tf.int32,
    top_k=5,
    tolerance=None,
    overwrite=False,
):
    """Writes a model and compares it with the graph of training.

    Args:
      model: trained_model.TrainedModel.
      head: a key of trained_model.HEADS.
      form: a key of FORMATS.
      path: file (frozen, onnx) or directory to write.
      shape: Shape; whole for frozen.
      input_type: tf.int32 or tf.int64; not of slim.
      top_k: tokens that the SavedModel's signature mlm_top_k lists.
      tolerance: largest difference allowed; None takes TOLERANCES'.
      overwrite: whether what stands at path may be replaced.

    Returns:
      (largest difference, the signatures' {name: (inputs, outputs)}).

    Raises:
      errors.UserError: the head or a package is missing, or outputs differ by
        more than the tolerance; nothing is left behind then.
    """
    model.check_head(head)
    _check_place(path, model)
    if tolerance is None:
        tolerance = TOLERANCES.get(head, TOLERANCE)
    environment.create(environment.DeviceConfig(accelerator="cpu"))
    built = inference_graph(
        model, head, shape, input_type, top_k if form == "saved_model" else 0
    )
    with _new_path(path, overwrite) as temporary:
        FORMATS[form].write(built, model, temporary)
        largest = compare(model, head, form, temporary, shape, input_type)
        if not math.isfinite(largest):
            raise errors.UserError(
                f"{path} was not written: outputs of {model.checkpoint} are "
                "NaN or infinite; the model has diverged, give an earlier "
                "checkpoint"
            )
        if not largest <= tolerance:
            raise errors.UserError(
                f"{path} was not written: its outputs differ from those of "
                f"training by {largest:.3g}, allowed is {tolerance:.3g}; if "
                "that is good enough, give a larger --tolerance"
            )
    return largest, built.signatures


def atc_command(path, built_signature, soc_version):
    """The command that makes an offline model of a frozen graph.

    Args:
      path: of the frozen graph, in .pb.
      built_signature: (inputs, outputs) of `export`.
      soc_version: the NPU's, such as Ascend310P3.

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
