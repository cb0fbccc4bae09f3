# SPDX-License-Identifier: Apache-2.0
"""Converts RoBERTa's weights between Hugging Face, fairseq and TensorFlow.

Each tensor of the input is written or listed with the reason why not, of the
optimizer's slots their number. A checkpoint in which a weight of the model is
missing, renamed or has another shape is an error. One tensor at a time is in
memory. The output appears under its name when it is complete.
"""

import dataclasses
import functools
import json
import os
import typing

from absl import logging

import configuration
import tokenization
from common import command_line, errors, files
from weights import (
    fairseq_model,
    hf_model,
    lazy_tensors,
    model_card,
    model_directory,
    resizing,
    safetensors_file,
    tf_checkpoint,
)
from weights import names as weight_names

VOCAB, MERGES = model_directory.VOCAB, model_directory.MERGES
ADDED_TOKENS = model_directory.ADDED_TOKENS
# What Hugging Face keeps beside a vocabulary; copied where it exists.
_TOKENIZER_EXTRAS = (
    model_directory.TOKENIZER,
    model_directory.TOKENIZER_CONFIG,
    "special_tokens_map.json",
)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Input and output; their formats are the flags --from and --to."""

    input: str = command_line.flag(
        "",
        "Directory (hf), model.pt or its directory (fairseq), prefix of a "
        "checkpoint or directory with checkpoints (tf).",
        group=command_line.FIRST,
    )
    output: str = command_line.flag(
        "", "Directory (hf) or prefix of a checkpoint (tf) to write."
    )
    vocab_file: str = command_line.flag(
        "",
        "vocab.json to copy to the output; the one beside the input if empty. "
        "The rows of a fairseq model are put into its order.",
        group=command_line.OTHER,
    )
    merges_file: str = command_line.flag(
        "",
        "merges.txt to copy to the output; the one beside the input if empty.",
    )
    classification_head: str = command_line.flag(
        "",
        "Classification head of a fairseq model to convert; may be empty if "
        "there is only one.",
    )
    add_tokens: str = command_line.flag(
        "",
        "File with a new token a line; its row of the embeddings is drawn as "
        "in a new model, and in texts it becomes one id.",
    )
    max_position_embeddings: typing.Optional[int] = command_line.flag(
        None,
        "Rows of the position table to write, such as 1026 for 1,024 tokens; "
        "those of the input are interpolated. Default: as in the input.",
        lower=1,
    )
    license: str = command_line.flag(
        "unknown",
        "The model's licence in the README.md of --to=hf, by the Hub's name, "
        "such as mit.",
    )
    language: str = command_line.flag(
        "en", "The model's language in that README.md."
    )
    datasets: str = command_line.flag(
        "",
        "Data sets in that README.md by the Hub's names, comma separated; the "
        "scores of eval_results.txt beside the input are those of the first.",
    )
    overwrite: bool = command_line.flag(False, "Replace an existing output.")
    allow_other_tokenizer: bool = command_line.flag(
        False,
        "Accept --vocab_file and --merges_file that differ from the files "
        "beside the input, with a warning.",
    )

    def __post_init__(self):
        for name, action in (("input", "convert"), ("output", "write")):
            if not getattr(self, name):
                raise errors.UserError(
                    f"--{name} is not given; pass the model to {action}"
                )


class Model(typing.NamedTuple):
    """An input, its tensors under Hugging Face's names and not yet read."""

    path: str  # for messages
    kind: str  # "hf", "fairseq" or "tf"
    tensors: typing.Dict[str, lazy_tensors.Tensor]
    values: typing.Dict[str, typing.Any]  # of config.json
    config_bytes: typing.Optional[bytes]  # the file, if there is one
    config: configuration.RobertaConfig
    parts: typing.Set[str]  # of weight_names.PARTS
    left_out: typing.List[typing.Tuple[str, str]]  # (name, reason)
    tokenizer: typing.Dict[str, bytes]  # file name -> content

    @property
    def vocabulary(self) -> typing.Dict[str, int]:
        """{token: id}, {} if it is not known."""
        return _vocabulary(self.tokenizer, os.path.dirname(self.path))

    @property
    def variables(self) -> typing.List[weight_names.Variable]:
        """The weights that a model of these parts has."""
        return weight_names.variables(self.parts, self.config)

    def name_of(self, variable: weight_names.Variable) -> str:
        """The name of a weight in the input."""
        if self.kind == "fairseq":
            return fairseq_model.source_name(variable.hf)
        return variable.tf if self.kind == "tf" else variable.hf

    def shape_text(
        self, variable: weight_names.Variable, shape: typing.Sequence
    ) -> str:
        """A shape in Hugging Face's order, as the input stores it."""
        is_transposed = self.kind == "tf" and variable.is_kernel
        return lazy_tensors.shape_text(shape[::-1] if is_transposed else shape)


def convert(
    source: str,
    target: str,
    options: ConvertConfig,
    report: typing.Callable[[str], typing.Any] = logging.info,
) -> None:
    """Reads, checks and writes a model.

    Args:
      source: "hf", "fairseq" or "tf".
      target: "hf" or "tf".
      options: input and output.
      report: called with each line of the report.

    Raises:
      errors.UserError: the input is incomplete, damaged or not a RoBERTa; the
        output exists.
      OSError: a file cannot be read or written.
    """
    if source == "tf" and os.path.isdir(options.input):
        for prefix in tf_checkpoint.in_directory(options.input)[-1:]:
            options = dataclasses.replace(options, input=prefix)
    _check_format(source, options.input)
    model = without_copies(READERS[source](options))
    check(model)
    model = _with_pad_id(model, report)
    if options.add_tokens:
        model = _with_tokens(model, options.add_tokens)
    if options.max_position_embeddings:
        model = _with_positions(model, options.max_position_embeddings)
    write = _write_hf if target == "hf" else _write_tf
    faulty: typing.List[str] = []
    write(_checked(model, faulty), options, report)
    if faulty:
        logging.warning(
            "%s: NaN or infinite values in %d of %d tensors, %s first; use a "
            "checkpoint from before the model diverged, or copy it again",
            model.path,
            len(faulty),
            len(model.tensors),
            faulty[0],
        )
    for name, reason in model.left_out:
        if reason != weight_names.SLOT:
            report(f"left out: {name} ({reason})")
    slots = [r for _, r in model.left_out].count(weight_names.SLOT)
    if slots:
        report(f"left out: slots of the optimizer ({slots})")
    report(
        f"tensors={len(model.tensors)} left_out={len(model.left_out)} "
        f"output={options.output}"
    )


# --- Reading ----------------------------------------------------------------


def formats(path: str) -> typing.List[str]:
    """The formats, keys of READERS, that the files at a path have."""
    directory = path if os.path.isdir(path) else os.path.dirname(path)
    weights = ("model.safetensors", "pytorch_model.bin")
    is_format = {
        "hf": any(
            os.path.isfile(os.path.join(path, name + end))
            for name in weights
            for end in ("", ".index.json")
        ),
        "fairseq": os.path.isfile(os.path.join(directory, "dict.txt"))
        or (path.endswith(".pt") and os.path.isfile(path)),
        "tf": files.is_file(tf_checkpoint.index_file(path)),
    }
    return [name for name, has_files in is_format.items() if has_files]


def _check_format(source, path):
    names = formats(path)
    if names and source not in names:
        raise errors.UserError(
            f"--input={path}: not a model in the format {source}; pass "
            f"--from={names[0]}"
        )


def _read_config(directory):
    """(values, bytes) of the config.json in a directory."""
    path = os.path.join(directory, "config.json")
    if not files.is_file(path):
        raise errors.UserError(
            f"{path} does not exist; copy the model's config.json there"
        )
    data = files.read_bytes(path)
    return files.parse_json(data, path, "a model's config.json"), data


def _read_hf(options):
    directory = options.input
    if not os.path.isdir(directory):
        raise errors.UserError(
            f"--input {directory} is not a directory; expected one with "
            "config.json and model.safetensors"
        )
    values, config_bytes = _read_config(directory)
    path, tensors = hf_model.load(directory)
    left_out = [
        (tensors.pop(name).source, "a buffer, not a weight")
        for name in weight_names.BUFFERS
        if name in tensors
    ]
    config = _roberta_config(path, values, len(tensors))
    return Model(
        path=path,
        kind="hf",
        tensors=tensors,
        values=values,
        config_bytes=config_bytes,
        config=config,
        parts=weight_names.parts_in_hf(tensors, config, _architectures(values)),
        left_out=left_out,
        tokenizer=_tokenizer_files(directory, options, config),
    )


def _architectures(values):
    """Hugging Face's classes in a config.json."""
    names = values.get("architectures")
    if not isinstance(names, list):
        return []
    return [name for name in names if isinstance(name, str)]


def _read_fairseq(options):
    model_files = fairseq_model.find_files(
        options.input, options.vocab_file, options.merges_file
    )
    loaded = fairseq_model.load(
        model_files, options.classification_head or None
    )
    config = _roberta_config(
        model_files.model, loaded.config, len(loaded.tensors)
    )
    tokenizer = {}
    if model_files.vocab:
        tokenizer[VOCAB] = files.read_bytes(model_files.vocab)
    elif loaded.vocabulary:
        text = json.dumps(loaded.vocabulary, ensure_ascii=False)
        tokenizer[VOCAB] = text.encode("utf-8")
    if model_files.merges:
        tokenizer[MERGES] = files.read_bytes(model_files.merges)
    return Model(
        path=model_files.model,
        kind="fairseq",
        tensors=loaded.tensors,
        values=loaded.config,
        config_bytes=None,
        config=config,
        parts=weight_names.parts_in_hf(loaded.tensors, config, []),
        left_out=loaded.left_out,
        tokenizer=tokenizer,
    )


def _read_tf(options):
    prefix = options.input
    if not files.is_file(tf_checkpoint.index_file(prefix)):
        raise errors.UserError(
            f"{tf_checkpoint.index_file(prefix)} does not exist; --input is "
            "the prefix of a TensorFlow checkpoint, such as model.ckpt-1000 "
            "for the files model.ckpt-1000.index and "
            "model.ckpt-1000.data-00000-of-00001"
        )
    directory = os.path.dirname(prefix)
    values, config_bytes = _read_config(directory)
    stored = tf_checkpoint.load(prefix)
    config = _roberta_config(prefix, values, len(stored))
    model_directory.check_config(
        prefix, config, os.path.join(directory, model_directory.CONFIG)
    )
    parts = weight_names.parts_in_tf(stored, config)
    if {"pooler", "multiple_choice"} <= parts:
        raise errors.UserError(
            f"{prefix} has both bert/pooler and cls/multiple_choice/dense; "
            "Hugging Face stores both as roberta.pooler.dense, so only one of "
            "them can be converted"
        )
    known = {
        variable.tf: variable
        for variable in weight_names.variables(parts, config)
    }
    tensors, left_out = {}, []
    for name, tensor in stored.items():
        reason = weight_names.training_state(name, known)
        variable = known.get(name)
        if reason:
            left_out.append((name, reason))
        elif variable is None:
            tensors[name] = tensor
        elif variable.is_kernel:
            tensors[variable.hf] = lazy_tensors.transposed(tensor)
        else:
            tensors[variable.hf] = tensor
    return Model(
        path=prefix,
        kind="tf",
        tensors=tensors,
        values=values,
        config_bytes=config_bytes,
        config=config,
        parts=parts,
        left_out=left_out,
        tokenizer=_tokenizer_files(directory, options, config),
    )


READERS = {"hf": _read_hf, "fairseq": _read_fairseq, "tf": _read_tf}


def _tokenizer_files(directory, options, config):
    """{file name: content} of a vocabulary, given or beside the input."""
    given = {VOCAB: options.vocab_file, MERGES: options.merges_file}
    model_directory.check_same_files(
        model_directory.TokenizerFiles(*given.values()),
        directory,
        options.allow_other_tokenizer,
    )
    extras = () if any(given.values()) else _TOKENIZER_EXTRAS
    contents = {}
    for name in (*given, *extras):
        path = given.get(name) or os.path.join(directory, name)
        if given.get(name) or files.is_file(path):
            contents[name] = files.read_bytes(path)
    fast = contents.get(model_directory.TOKENIZER)
    if fast is not None:
        model_directory.warn_of_fast_tokenizer(fast)
        if not (VOCAB in contents and MERGES in contents):
            contents.update(model_directory.from_fast_tokenizer(fast))
    vocab_file = given[VOCAB] or os.path.join(directory, VOCAB)
    added = tokenization.added_tokens_file(vocab_file)
    if added:
        contents[ADDED_TOKENS] = files.read_bytes(added)
    model_directory.check_ids(
        _vocabulary(contents, directory), vocab_file, config.vocab_size
    )
    return contents


def _vocabulary(contents, directory):
    """{token: id} of a tokenizer's files."""
    ids = {}
    for name in (VOCAB, ADDED_TOKENS):
        path = os.path.join(directory, name)
        ids.update(files.parse_json(contents.get(name, b"{}"), path))
    return ids


def _described(model):
    """The tokenizer's files, completed with what transformers reads."""
    contents, directory = model.tokenizer, os.path.dirname(model.path)
    missing = [name for name in (VOCAB, MERGES) if name not in contents]
    if missing:
        logging.warning(
            "no %s in %s: the output has no complete tokenizer; pass "
            "--vocab_file and --merges_file",
            " and ".join(missing),
            directory or ".",
        )
        return contents
    lowers = (
        model_directory.lower_case_in_hf(directory)
        if model.kind == "hf"
        else bool(model_directory.lower_case(directory))
    )
    return {
        **model_directory.description(
            contents,
            lowers,
            model.config.max_sequence_length,
            contents.get(model_directory.TOKENIZER_CONFIG, b"{}"),
        ),
        **{
            name: data
            for name, data in contents.items()
            if name != model_directory.TOKENIZER_CONFIG
        },
    }


# --- Checking ---------------------------------------------------------------


def _roberta_config(path, values, tensors):
    """The RobertaConfig of config.json, with no more layers than tensors."""
    try:
        config = configuration.RobertaConfig.from_dict(values)
    except errors.UserError as error:
        raise errors.UserError(f"config of {path}: {error}") from error
    if config.num_hidden_layers > tensors:
        raise errors.UserError(
            f"the config has {config.num_hidden_layers} layers, but {path} "
            f"has only {tensors} tensors; use the config.json of the same model"
        )
    return config


def without_copies(model: Model) -> Model:
    """The model without the tensors that are stored a second time.

    Raises:
      errors.UserError: a copy differs.
    """
    tensors, left_out = dict(model.tensors), list(model.left_out)
    for name, original in weight_names.TIED.items():
        if name not in tensors:
            continue
        copy = tensors.pop(name)
        if original not in tensors:
            tensors[original] = copy
        else:
            source = tensors[original].source
            if not lazy_tensors.same_bytes(copy, tensors[original]):
                raise errors.UserError(
                    f"{model.path}: {copy.source} differs from {source}; only "
                    "a model whose output layer is tied to its embeddings can "
                    "be converted"
                )
            left_out.append((copy.source, f"the same bytes as {source}"))
    return model._replace(tensors=tensors, left_out=left_out)


def check(model: Model) -> None:
    """Checks that the tensors are exactly those that the model needs.

    Raises:
      errors.UserError: names the first that are not.
    """
    names = [tensor.source for tensor in model.tensors.values()]
    names += [name for name, _ in model.left_out]
    weight_names.check_is_roberta(
        model.path, names, model.config.type_vocab_size
    )
    known = {variable.hf for variable in model.variables}
    faults = [
        f"{model.name_of(variable)} "
        f"{model.shape_text(variable, variable.shape)} is missing"
        for variable in model.variables
        if variable.hf not in model.tensors
    ]
    faults += [
        f"{lazy_tensors.quoted(tensor.source)} "
        f"{lazy_tensors.shape_text(tensor.shape)} is not expected"
        for name, tensor in model.tensors.items()
        if name not in known
    ]
    for part in model.parts:
        faults += _misshapen(model, part)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise errors.UserError(
            f"{model.path} does not match its config: {'; '.join(faults[:5])}"
            f"{more}; use a complete checkpoint and its own config.json"
        )
    labels = _label_count(model)
    if model.kind == "hf" and labels not in (None, _named_labels(model.values)):
        raise errors.UserError(
            f"{model.path} has {labels} labels, but its config.json names "
            f"{_named_labels(model.values)!r:.40} (id2label); use the "
            "config.json of the same model"
        )


def _misshapen(model, part):
    """Tensors of another shape, or of a type that weights do not have."""
    faults, free = [], None
    for variable in weight_names.variables([part], model.config):
        tensor = model.tensors.get(variable.hf)
        if tensor is None:
            continue
        if free is None and None in variable.shape and tensor.shape:
            free = tensor.shape[0]
        shape = tuple(free if size is None else size for size in variable.shape)
        if tensor.shape != shape or not lazy_tensors.count(shape):
            faults.append(
                f"{tensor.source} is "
                f"{model.shape_text(variable, tensor.shape)}, expected "
                f"{model.shape_text(variable, shape)}"
            )
        elif tensor.dtype not in ("F32", "F16", "BF16"):
            faults.append(
                f"{tensor.source} is of type {tensor.dtype}, expected F32, "
                "F16 or BF16"
            )
    return faults


def _label_count(model):
    """Labels of the head that has any, else None."""
    for part in model.parts:
        if weight_names.PARTS[part].has_labels:
            last = weight_names.variables([part], model.config)[-1]
            return model.tensors[last.hf].shape[0]
    return None


def _named_labels(values):
    """Number of labels in a config.json; two is Hugging Face's default."""
    names = values.get("id2label")
    return (
        len(names) if isinstance(names, dict) else values.get("num_labels", 2)
    )


# --- Changing ---------------------------------------------------------------


def _with_values(model, **values):
    """The model with other values of its config.json."""
    return model._replace(
        values={**model.values, **values},
        config=dataclasses.replace(model.config, **values),
        config_bytes=None,
    )


def _with_pad_id(model, report):
    """The model whose pad_token_id is the id of `<pad>` in its vocabulary.

    Old configs have 0, with which transformers 2 did not compute: positions
    start after `<pad>`.
    """
    configured = model.config.pad_token_id
    pad_id = model.vocabulary.get("<pad>")
    if pad_id is None and configured == model.values.get("bos_token_id"):
        raise errors.UserError(
            f"config of {model.path}: pad_token_id and bos_token_id are both "
            f"{configured}; pass --vocab_file, which has the id of <pad>"
        )
    if pad_id in (None, configured):
        return model
    report(
        f"pad_token_id: {configured} in the config, written as {pad_id}, the "
        "id of <pad> in the vocabulary"
    )
    return _with_values(model, pad_token_id=pad_id)


def _with_tokens(model, path):
    """The model with a row for each token of --add_tokens."""
    vocabulary = model.vocabulary
    if not vocabulary:
        raise errors.UserError(
            f"--add_tokens={path}: the model has no vocabulary; pass "
            "--vocab_file and --merges_file"
        )
    new = resizing.read_tokens(path, vocabulary, files.read_bytes(path))
    first = max(vocabulary.values()) + 1
    rows = max(model.config.vocab_size, first + len(new))
    tensors = dict(model.tensors)
    for name, stddev in (
        (weight_names.WORDS, model.config.initializer_range),
        ("lm_head.bias", 0.0),
    ):
        if name in tensors:
            tensors[name] = resizing.with_new_rows(
                tensors[name], first, rows, stddev
            )
    added = files.parse_json(
        model.tokenizer.get(ADDED_TOKENS, b"{}"), ADDED_TOKENS
    )
    entries = [model_directory.added_token(*item) for item in new.items()]
    tokenizer = {
        **model.tokenizer,
        ADDED_TOKENS: files.json_bytes({**added, **new}),
    }
    for name, key, more in (
        (model_directory.TOKENIZER, "added_tokens", entries),
        (
            model_directory.TOKENIZER_CONFIG,
            "added_tokens_decoder",
            {str(entry.pop("id")): entry for entry in map(dict, entries)},
        ),
    ):
        values = files.parse_json(tokenizer.get(name, b"{}"), name)
        if isinstance(values.get(key), type(more)):
            values[key] = (
                values[key] + more
                if isinstance(more, list)
                else {**values[key], **more}
            )
            tokenizer[name] = files.json_bytes(values)
    return _with_values(
        model._replace(tensors=tensors, tokenizer=tokenizer), vocab_size=rows
    )


def _with_positions(model, rows):
    """The model with that many rows in its position table."""
    if rows < model.config.max_position_embeddings:
        raise errors.UserError(
            f"--max_position_embeddings={rows}: {model.path} has "
            f"{model.config.max_position_embeddings}; use more"
        )
    name = "roberta.embeddings.position_embeddings.weight"
    first = model.config.pad_token_id + 1
    table = resizing.interpolated(model.tensors[name], first, rows)
    model = _with_values(
        model._replace(tensors={**model.tensors, name: table}),
        max_position_embeddings=rows,
    )
    name = model_directory.TOKENIZER_CONFIG
    if name not in model.tokenizer:
        return model
    saved = files.parse_json(model.tokenizer[name], name)
    saved["model_max_length"] = model.config.max_sequence_length
    tokenizer = {**model.tokenizer, name: files.json_bytes(saved)}
    return model._replace(tokenizer=tokenizer)


# --- Writing ----------------------------------------------------------------


def _config_bytes(model, dtype):
    """config.json of the output; the input's file where it is the same.

    Args:
      dtype: of the tensors written, torch's name for it.
    """
    values = dict(model.values, model_type="roberta")
    architectures = _architectures(values)
    kind = weight_names.architecture(model.parts, architectures)
    if kind not in architectures:
        values["architectures"] = [kind]
    labels = _label_count(model)
    if kind == weight_names.PARTS["question_answering"].architecture:
        labels = 2  # start and end: Hugging Face counts them as labels
    if labels is not None and labels != _named_labels(values):
        values.pop("num_labels", None)
        names = [f"LABEL_{number}" for number in range(labels)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    for key in {"dtype", "torch_dtype"}.intersection(values):
        values[key] = dtype
    if values == model.values and model.config_bytes is not None:
        return model.config_bytes
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode("utf-8")


def _small_files(model, directory, dtype, overwrite):
    """{path: bytes} beside the weights, without unchanged files."""
    tokenizer = _described(model)
    contents = {
        model_directory.CONFIG: _config_bytes(model, dtype),
        **(
            model_directory.with_tokenizer_json(directory, tokenizer)
            if overwrite
            else tokenizer
        ),
    }
    task = model_directory.task_of(os.path.dirname(model.path), model.parts)
    if task.task:
        contents[model_directory.TASK] = model_directory.task_bytes(task)
    small = {
        os.path.join(directory, name): data for name, data in contents.items()
    }
    return {
        path: data
        for path, data in small.items()
        if overwrite or not _has_content(path, data)
    }


def _has_content(path, data):
    return (
        os.path.isfile(path)
        and os.path.getsize(path) == len(data)
        and files.read_exactly(path, 0, len(data)) == data
    )


def _checked(model, faulty):
    """The model; `faulty` gets the names of what is read and is not finite."""

    def checked(tensor):
        def read():
            numbers = tensor.read()
            if not lazy_tensors.is_finite(tensor, numbers):
                faulty.append(tensor.source)
            return numbers

        return tensor._replace(read=read)

    tensors = {name: checked(t) for name, t in model.tensors.items()}
    return model._replace(tensors=tensors)


def _report_written(model, outputs, tensors, report, name):
    """Reports what a tensor was written from.

    Args:
      outputs: {name in the output: Variable}.
      tensors: {name in the output: Tensor}.
    """
    variable = outputs[name]
    old, new = model.tensors[variable.hf], tensors[name]
    report(
        f"{old.source} {old.dtype} {model.shape_text(variable, old.shape)} "
        f"-> {name} {new.dtype} {lazy_tensors.shape_text(new.shape)}"
    )


def _write_tf(model, options, report):
    prefix = options.output
    if not os.path.basename(prefix) or os.path.isdir(prefix):
        raise errors.UserError(
            f"--output {prefix} is a directory; expected the prefix of a "
            f"checkpoint, such as {os.path.join(prefix, 'model.ckpt')}"
        )
    outputs = {variable.tf: variable for variable in model.variables}
    tensors = {}
    for name, variable in outputs.items():
        tensors[name] = lazy_tensors.float32(model.tensors[variable.hf])
        if variable.is_kernel:
            tensors[name] = lazy_tensors.transposed(tensors[name])
    small = _small_files(
        model, os.path.dirname(prefix), "float32", options.overwrite
    )
    data = tf_checkpoint.data_file(prefix)
    index = tf_checkpoint.index_file(prefix)
    with files.NewFiles(
        [data, *small, index], overwrite=options.overwrite
    ) as output:
        for path, content in small.items():
            output.write(path, content)
        with output.open(data) as stream:
            content = tf_checkpoint.write_data(
                stream,
                tensors,
                functools.partial(
                    _report_written, model, outputs, tensors, report
                ),
            )
        output.write(index, content)


def _card(model, options):
    """README.md of the output."""
    directory = os.path.dirname(model.path)
    return model_card.content(
        os.path.basename(os.path.abspath(options.output)),
        model_directory.task_of(directory, model.parts).task,
        model_card.read_scores(directory),
        license=options.license,
        language=options.language,
        datasets=list(
            filter(None, map(str.strip, options.datasets.split(",")))
        ),
    )


def _write_hf(model, options, report):
    start = len("roberta.") if weight_names.is_bare(model.parts) else 0
    outputs = {variable.hf[start:]: variable for variable in model.variables}
    tensors = {
        name: model.tensors[variable.hf] for name, variable in outputs.items()
    }
    kinds = {tensor.dtype for tensor in tensors.values()}
    dtype = {"F16": "float16", "BF16": "bfloat16"}.get(
        "".join(kinds), "float32"
    )
    small = _small_files(model, options.output, dtype, options.overwrite)
    card = os.path.join(options.output, model_card.FILE)
    if not os.path.exists(card):  # it may have been edited
        small[card] = _card(model, options)
        report(
            f"{card}: license={options.license} language={options.language} "
            f"datasets={options.datasets or 'none'}; edit them there"
        )
    path = os.path.join(options.output, "model.safetensors")
    with files.NewFiles([*small, path], overwrite=options.overwrite) as output:
        for name, content in small.items():
            output.write(name, content)
        with output.open(path) as stream:
            safetensors_file.write(
                stream,
                tensors,
                functools.partial(
                    _report_written, model, outputs, tensors, report
                ),
            )
