# SPDX-License-Identifier: Apache-2.0
"""Converts RoBERTa's weights between Hugging Face, fairseq and TensorFlow.

    python convert_checkpoint.py --from=hf --to=tf \
        --input=roberta-large --output=checkpoints/roberta_large.ckpt

Every tensor of the input is either written or named with the reason why not,
and every weight that the model needs is filled: a checkpoint in which one is
missing, renamed or has another shape is refused. One tensor at a time is in
memory. The output appears under its name only when it is complete.

  hf       a directory with config.json and model.safetensors or
           pytorch_model.bin, each also in parts with an index
  fairseq  model.pt (or the directory with it), dict.txt beside it
  tf       the prefix of a checkpoint, config.json beside it
"""

import dataclasses
import json
import os
import sys
import typing

from absl import flags, logging

import configuration
from common import command_line, errors, files
from weights import (
    fairseq_model,
    lazy_tensors,
    safetensors_file,
    tf_checkpoint,
    torch_file,
)
from weights import names as weight_names

VOCAB, MERGES = "vocab.json", "merges.txt"
# What Hugging Face keeps beside a vocabulary; taken along where it is.
_TOKENIZER_EXTRAS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """What is converted into what; --from and --to stand beside it."""

    input: str = command_line.flag(
        "",
        "Directory (hf), model.pt or its directory (fairseq), or prefix of "
        "a checkpoint (tf).",
    )
    output: str = command_line.flag(
        "", "Directory (hf) or prefix of a checkpoint (tf) to write."
    )
    vocab_file: str = command_line.flag(
        "",
        "vocab.json to go along; the one beside the input if empty. A "
        "fairseq model's rows are brought into its order.",
    )
    merges_file: str = command_line.flag(
        "", "merges.txt to go along; the one beside the input if empty."
    )
    classification_head: str = command_line.flag(
        "",
        "Which classification head of a fairseq model to take; the only "
        "one if empty.",
    )
    overwrite: bool = command_line.flag(False, "Replace an existing output.")

    def __post_init__(self):
        for name in ("input", "output"):
            if not getattr(self, name):
                raise errors.UserError(
                    f"--{name} is not given; name what is to be "
                    f"{ {'input': 'converted', 'output': 'written'}[name] }"
                )


class Model(typing.NamedTuple):
    """An input, its tensors under Hugging Face's names and not yet read."""

    path: str  # for messages
    kind: str  # "hf", "fairseq" or "tf"
    tensors: typing.Dict[str, lazy_tensors.Tensor]
    values: dict  # of config.json
    config_bytes: typing.Optional[bytes]  # the file, if there is one
    config: configuration.RobertaConfig
    parts: typing.Set[str]  # of weight_names.PARTS
    left_out: list  # (name, reason)
    tokenizer: typing.Dict[str, bytes]  # file name -> content

    def name_of(self, variable):
        """What the input calls a weight."""
        if self.kind == "fairseq":
            return fairseq_model.source_name(variable.hf)
        return variable.tf if self.kind == "tf" else variable.hf

    def shape_of(self, variable, shape):
        """How the input stores a weight of that shape in Hugging Face's."""
        if self.kind == "tf" and variable.is_kernel:
            return shape[::-1]
        return shape


def convert(source, target, options, report=logging.info):
    """Reads, checks and writes a model.

    Args:
      source: "hf", "fairseq" or "tf".
      target: "hf" or "tf".
      options: ConvertConfig.
      report: called with each line of the report.

    Raises:
      errors.UserError: the input is incomplete, damaged or no RoBERTa; the
        output exists.
      OSError: a file cannot be read or written.
    """
    model = _without_copies(_READERS[source](options))
    _check(model)
    write = _write_hf if target == "hf" else _write_tf
    write(model, options, report)
    for name, reason in model.left_out:
        report(f"left out: {name} ({reason})")
    report(
        f"tensors={len(model.tensors)} left_out={len(model.left_out)} "
        f"output={options.output}"
    )


# Reading.


def _read_config(path):
    """(values, bytes) of a config.json."""
    if not os.path.isfile(path):
        raise errors.UserError(
            f"{path} does not exist; expected the model's config beside its "
            "weights"
        )
    data = files.read_bytes(path)
    return files.parse_json(data, path), data


def _read_hf(options):
    directory = options.input
    if not os.path.isdir(directory):
        raise errors.UserError(
            f"--input is {directory}, which is no directory; expected one with "
            "config.json and model.safetensors"
        )
    values, config_bytes = _read_config(os.path.join(directory, "config.json"))
    path, tensors = _hf_tensors(directory)
    if "embeddings.word_embeddings.weight" in tensors:
        # A bare RobertaModel is saved without the prefix.
        tensors = {
            (
                "roberta." + name
                if name.startswith(("embeddings.", "encoder.", "pooler."))
                else name
            ): tensor
            for name, tensor in tensors.items()
        }
    left_out = [
        (tensors.pop(name).source, "a buffer, no weight")
        for name in weight_names.BUFFERS
        if name in tensors
    ]
    config = _roberta_config(path, values, len(tensors))
    parts = weight_names.parts_in_hf(tensors, config, _architectures(values))
    return Model(
        path,
        "hf",
        tensors,
        values,
        config_bytes,
        config,
        parts,
        left_out,
        _tokenizer_files(directory, options, config),
    )


def _hf_tensors(directory):
    """(path, {name: Tensor}) of the weights in a directory."""
    for name, load in (
        ("model.safetensors", safetensors_file.load),
        ("pytorch_model.bin", _load_bin),
    ):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            return path, load(path)
        if os.path.isfile(path + ".index.json"):
            return path, _load_parts(path + ".index.json", load)
    raise errors.UserError(
        f"{directory} has neither model.safetensors nor pytorch_model.bin, nor "
        "an index of their parts; name the directory of a whole model with "
        "--input"
    )


def _load_bin(path):
    values = torch_file.load(path)
    if not isinstance(values, dict):
        raise errors.UserError(
            f"{path} holds no dict of weights; expected one that transformers "
            "saved"
        )
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(
            value, lazy_tensors.Tensor
        ):
            raise errors.UserError(
                f"{path}: {lazy_tensors.quoted(str(name))} is no tensor; "
                "expected weights alone"
            )
    return {name: value._replace(source=name) for name, value in values.items()}


def _load_parts(index_file, load):
    """The tensors of all files that an index names."""
    places = files.read_json(index_file).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(place, str) for place in places.values()
    ):
        raise errors.UserError(
            f"{index_file} has no weight_map from names to files"
        )
    tensors = {}
    for place in sorted(set(places.values())):
        if (
            os.path.basename(place) != place
            or place in ("", ".", "..")
            or not place.isprintable()
        ):
            raise errors.UserError(
                f"{index_file} names the file {lazy_tensors.quoted(place)}; "
                "expected one in its own directory"
            )
        part = load(os.path.join(os.path.dirname(index_file), place))
        for name, _tensor in part.items():
            if places.get(name) != place:
                raise errors.UserError(
                    f"{place} holds {lazy_tensors.quoted(name)}, which "
                    f"{index_file} does not expect there"
                )
        tensors.update(part)
    for name in places:
        if name not in tensors:
            raise errors.UserError(
                f"{index_file} expects {lazy_tensors.quoted(name)} in "
                f"{places[name]}, which lacks it"
            )
    return tensors


def _read_fairseq(options):
    path = options.input
    if os.path.isdir(path):
        path = os.path.join(path, "model.pt")
    directory = os.path.dirname(path)

    def beside(name):
        file = os.path.join(directory, name)
        return file if os.path.isfile(file) else None

    for name in (os.path.basename(path), "dict.txt"):
        if not beside(name):
            raise errors.UserError(
                f"{os.path.join(directory, name)} does not exist; expected "
                "fairseq's model.pt with dict.txt beside it"
            )
    vocab_file = options.vocab_file or beside(VOCAB)
    merges_file = options.merges_file or beside(MERGES) or beside("vocab.bpe")
    loaded = fairseq_model.load(
        path,
        beside("dict.txt"),
        vocab_file=vocab_file,
        merges_file=merges_file,
        encoder_file=beside("encoder.json"),
        config_file=beside("config.json"),
        head=options.classification_head or None,
    )
    config = _roberta_config(path, loaded.config, len(loaded.tensors))
    tokenizer = {}
    if vocab_file:
        tokenizer[VOCAB] = files.read_bytes(vocab_file)
    elif loaded.vocabulary:
        tokenizer[VOCAB] = json.dumps(
            loaded.vocabulary, ensure_ascii=False
        ).encode("utf-8")
    if merges_file:
        tokenizer[MERGES] = files.read_bytes(merges_file)
    parts = weight_names.parts_in_hf(loaded.tensors, config, [])
    return Model(
        path,
        "fairseq",
        loaded.tensors,
        loaded.config,
        None,
        config,
        parts,
        loaded.left_out,
        _warned(tokenizer, directory),
    )


def _read_tf(options):
    prefix = options.input
    if not os.path.isfile(tf_checkpoint.index_file(prefix)):
        raise errors.UserError(
            f"{tf_checkpoint.index_file(prefix)} does not exist; --input is "
            "the prefix of a TensorFlow checkpoint, such as model.ckpt-1000 "
            "for the files model.ckpt-1000.index and "
            "model.ckpt-1000.data-00000-of-00001"
        )
    directory = os.path.dirname(prefix)
    values, config_bytes = _read_config(os.path.join(directory, "config.json"))
    stored = tf_checkpoint.load(prefix)
    config = _roberta_config(prefix, values, len(stored))
    parts = weight_names.parts_in_tf(stored, config)
    if {"pooler", "multiple_choice"} <= parts:
        raise errors.UserError(
            f"{prefix} has both bert/pooler and cls/multiple_choice/dense; "
            "Hugging Face has one place for them, roberta.pooler.dense"
        )
    names = {
        variable.tf: variable
        for variable in weight_names.variables(parts, config)
    }
    tensors, left_out = {}, []
    for name, tensor in stored.items():
        reason = weight_names.training_state(name, names)
        variable = names.get(name)
        if reason:
            left_out.append((name, reason))
        elif variable is None:
            tensors[name] = tensor
        else:
            tensors[variable.hf] = (
                lazy_tensors.transposed(tensor)
                if variable.is_kernel
                else tensor
            )
    return Model(
        prefix,
        "tf",
        tensors,
        values,
        config_bytes,
        config,
        parts,
        left_out,
        _tokenizer_files(directory, options, config),
    )


_READERS = {"hf": _read_hf, "fairseq": _read_fairseq, "tf": _read_tf}


def _tokenizer_files(directory, options, config):
    """{file name: content} of a vocabulary, given or beside the input."""
    companions = {}
    given = {VOCAB: options.vocab_file, MERGES: options.merges_file}
    names = list(given)
    if not any(given.values()):
        names.extend(_TOKENIZER_EXTRAS)
    for name in names:
        path = given.get(name) or os.path.join(directory, name)
        if given.get(name) or os.path.isfile(path):
            companions[name] = files.read_bytes(path)
            if name == VOCAB:
                lazy_tensors.read_vocabulary(path, config.vocab_size)
    return _warned(companions, directory)


def _warned(companions, directory):
    """The same files; says so when a tokenizer would not be complete."""
    missing = [name for name in (VOCAB, MERGES) if name not in companions]
    if missing:
        logging.warning(
            "no %s in %s: the output has no complete tokenizer; give "
            "--vocab_file and --merges_file",
            " and ".join(missing),
            directory or ".",
        )
    return companions


# Checking.


def _architectures(values):
    names = values.get("architectures")
    return (
        [name for name in names if isinstance(name, str)]
        if isinstance(names, list)
        else []
    )


def _roberta_config(path, values, tensors):
    """The RobertaConfig of config.json; refuses what the file cannot hold."""
    try:
        config = configuration.RobertaConfig.from_dict(values)
    except errors.UserError as error:
        raise errors.UserError(f"config of {path}: {error}") from error
    if config.num_hidden_layers > tensors:
        raise errors.UserError(
            f"the config has {config.num_hidden_layers} layers, but {path} "
            f"holds {tensors} tensors in all; take the config.json that "
            "belongs to it"
        )
    return config


def _without_copies(model):
    """The model without the tensors that are stored a second time."""
    tensors, left_out = dict(model.tensors), list(model.left_out)
    for name, original in weight_names.TIED.items():
        if name not in tensors:
            continue
        copy = tensors.pop(name)
        if original not in tensors and original.startswith("lm_head"):
            tensors[original] = copy
        elif original in tensors:
            if not lazy_tensors.same_bytes(copy, tensors[original]):
                raise errors.UserError(
                    f"{model.path}: {copy.source} differs from "
                    f"{tensors[original].source}; RoBERTa's output layer is "
                    "tied to its embeddings, and a model where it is not "
                    "cannot be converted"
                )
            left_out.append(
                (copy.source, f"the same bytes as {tensors[original].source}")
            )
    return model._replace(tensors=tensors, left_out=left_out)


def _check(model):
    """Refuses a model whose tensors are not exactly those it needs."""
    faults = _missing(model) + _unexpected(model) + _misshapen(model)
    if faults:
        raise errors.UserError(
            f"{model.path} does not fit its config: "
            f"{'; '.join(faults[:5])}{('' if len(faults) < 6 else f'; and {len(faults) - 5} more')}; "
            "take a whole checkpoint and the config.json that belongs to it"
        )
    labels = _labels_found(model)
    if model.kind == "hf" and labels not in (None, _labels_named(model.values)):
        raise errors.UserError(
            f"{model.path} has {labels} labels, but its config.json names "
            f"{_labels_named(model.values)!r:.40} (id2label); take the "
            "config.json that belongs to it"
        )


def _variables(model):
    return weight_names.variables(model.parts, model.config)


def _missing(model):
    return [
        "%s %s is missing"
        % (
            model.name_of(variable),
            lazy_tensors.shape_text(model.shape_of(variable, variable.shape)),
        )
        for variable in _variables(model)
        if variable.hf not in model.tensors
    ]


def _unexpected(model):
    known = {variable.hf for variable in _variables(model)}
    return [
        f"{lazy_tensors.quoted(tensor.source)} "
        f"{lazy_tensors.shape_text(tensor.shape)} is not expected"
        for name, tensor in model.tensors.items()
        if name not in known
    ]


def _misshapen(model):
    """Tensors of another shape, or of a type that weights do not have."""
    faults = []
    for part in model.parts:
        free = None
        for variable in weight_names.variables([part], model.config):
            tensor = model.tensors.get(variable.hf)
            if tensor is None:
                continue
            if free is None and None in variable.shape and tensor.shape:
                free = tensor.shape[0]
            shape = tuple(
                free if size is None else size for size in variable.shape
            )
            if tensor.shape != shape or not lazy_tensors.count(tensor.shape):
                faults.append(
                    "%s is %s, expected %s"
                    % (
                        tensor.source,
                        lazy_tensors.shape_text(
                            model.shape_of(variable, tensor.shape)
                        ),
                        lazy_tensors.shape_text(
                            model.shape_of(variable, shape)
                        ),
                    )
                )
            elif tensor.dtype not in ("F32", "F16", "BF16"):
                faults.append(
                    f"{tensor.source} is of type {tensor.dtype}, expected F32, "
                    "F16 or BF16"
                )
    return faults


def _labels_found(model):
    """Labels of the head that has any, else None."""
    for part in model.parts:
        if weight_names.PARTS[part].has_labels:
            last = weight_names.variables([part], model.config)[-1]
            return model.tensors[last.hf].shape[0]
    return None


def _labels_named(values):
    """Labels of a config.json; two is Hugging Face's default."""
    names = values.get("id2label")
    return (
        len(names) if isinstance(names, dict) else values.get("num_labels", 2)
    )


# Writing.


def _config_bytes(model, dtype):
    """config.json for what is written; the file itself where it fits.

    Args:
      dtype: of the tensors written, torch's name for it.
    """
    values = dict(model.values, model_type="roberta")
    kind = weight_names.architecture(model.parts, _architectures(values))
    if kind not in _architectures(values):
        values["architectures"] = [kind]
    labels = _labels_found(model)
    if kind == weight_names.PARTS["question_answering"].architecture:
        labels = 2  # start and end: Hugging Face counts them as labels
    if labels is not None and labels != _labels_named(values):
        values.pop("num_labels", None)
        names = [f"LABEL_{number}" for number in range(labels)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    for key in ("dtype", "torch_dtype"):
        if key in values:
            values[key] = dtype
    if values == model.values and model.config_bytes is not None:
        return model.config_bytes
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode("utf-8")


def _small_files(model, directory, dtype, overwrite):
    """{path: bytes} of config and tokenizer; without what is there already."""
    contents = {
        os.path.join(directory, "config.json"): _config_bytes(model, dtype)
    }
    for name, data in model.tokenizer.items():
        contents[os.path.join(directory, name)] = data
    return {
        path: data
        for path, data in contents.items()
        if overwrite or not _holds(path, data)
    }


def _holds(path, data):
    """Whether a file has exactly these bytes."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read(len(data) + 1) == data


def _lines(model, tensors, name_of):
    """{name in the output: line of the report}."""
    lines = {}
    for variable in _variables(model):
        tensor, name = model.tensors[variable.hf], name_of(variable)
        new = tensors[name]
        lines[name] = "%s %s %s -> %s %s %s" % (
            tensor.source,
            tensor.dtype,
            lazy_tensors.shape_text(model.shape_of(variable, tensor.shape)),
            name,
            new.dtype,
            lazy_tensors.shape_text(new.shape),
        )
    return lines


def _write_tf(model, options, report):
    prefix = options.output
    if not os.path.basename(prefix) or os.path.isdir(prefix):
        raise errors.UserError(
            f"--output is the directory {prefix}; expected the prefix of a "
            f"checkpoint, such as {os.path.join(prefix, 'model.ckpt')}"
        )
    tensors = {}
    for variable in _variables(model):
        tensor = lazy_tensors.float32(model.tensors[variable.hf])
        tensors[variable.tf] = (
            lazy_tensors.transposed(tensor) if variable.is_kernel else tensor
        )
    lines = _lines(model, tensors, lambda variable: variable.tf)
    small = _small_files(
        model, os.path.dirname(prefix), "float32", options.overwrite
    )
    data, index = (
        tf_checkpoint.data_file(prefix),
        tf_checkpoint.index_file(prefix),
    )
    with files.NewFiles(
        [data] + list(small) + [index], overwrite=options.overwrite
    ) as output:
        for path, content in small.items():
            output.write(path, content)
        with output.open(data) as stream:
            content = tf_checkpoint.write_data(
                stream, tensors, lambda name: report(lines[name])
            )
        output.write(index, content)


def _write_hf(model, options, report):
    prefix = "" if weight_names.is_bare(model.parts) else "roberta."

    def name_of(variable):
        name = variable.hf
        return (
            prefix + name[len("roberta.") :]
            if name.startswith("roberta.")
            else name
        )

    tensors = {
        name_of(variable): model.tensors[variable.hf]
        for variable in _variables(model)
    }
    kinds = sorted({tensor.dtype for tensor in tensors.values()})
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[
        "F32" if len(kinds) > 1 else kinds[0]
    ]
    lines = _lines(model, tensors, name_of)
    small = _small_files(model, options.output, dtype, options.overwrite)
    path = os.path.join(options.output, "model.safetensors")
    with files.NewFiles(
        list(small) + [path], overwrite=options.overwrite
    ) as output:
        for name, content in small.items():
            output.write(name, content)
        with output.open(path) as stream:
            safetensors_file.write(
                stream, tensors, lambda name: report(lines[name])
            )


def main(_):
    options = command_line.build(ConvertConfig, flags.FLAGS)
    convert(
        flags.FLAGS["from"].value,
        flags.FLAGS["to"].value,
        options,
        lambda line: sys.stdout.write(line + "\n"),
    )


if __name__ == "__main__":
    command_line.define(ConvertConfig)
    flags.DEFINE_enum("from", None, sorted(_READERS), "What the input is.")
    flags.DEFINE_enum("to", None, ["hf", "tf"], "What to write.")
    flags.mark_flags_as_required(["from", "to"])
    command_line.run(main)
