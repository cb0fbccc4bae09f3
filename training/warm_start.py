# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that a run starts from.

`check` compares it with the model before anything is written; `load_initial`
initializes the variables of a new run from --init_checkpoint.
"""

import atexit
import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import os
import re
import shutil
import tempfile
import typing

import tensorflow.compat.v1 as tf

import configuration
import optimization
from common import errors, files, version
from training import checkpoints, run_config
from weights import conversion, model_directory, tf_checkpoint
from weights import names as weight_names

# Checkpoint variables that are not part of the model.
_TRAINING_STATE = re.compile(
    r"(/adam_[mv]|^global_step|^loss_scale|^good_steps|^bad_steps|"
    r"^batches_seen|^records_seen)$"
)


def check(
    run: run_config.RunConfig,
    config: configuration.RobertaConfig,
    parts: typing.Iterable[str],
    head: str,
    labels: typing.Optional[int] = None,
) -> None:
    """Rejects a checkpoint that does not fit the model, naming a variable.

    A run that resumes needs all variables of the model; --init_checkpoint is
    checked only in a new run. Without training it must have the head: an
    untrained one predicts at random.

    Args:
      run: flags.
      config: of the model.
      parts: the model's heads, keys of weight_names.PARTS.
      head: prefix of the names of the head's variables, such as "cls/squad/".
      labels: of a head whose size is free; None accepts any. A new run may
        start from a head of another size (`load`).

    Raises:
      errors.UserError: a variable is missing or has another shape.
    """
    model = {
        variable.tf: variable.tf_shape
        for variable in weight_names.variables(
            {weight_names.BASE, *parts}, config
        )
    }
    latest = checkpoints.newest_whole(run.output_dir)
    path = latest or run.init_checkpoint
    if not path:
        return
    fix = (
        "use the checkpoint and the config.json of one model, with this "
        "project's variable names (convert_checkpoint.py)"
    )
    required = ("bert/embeddings/", "bert/encoder/")
    if not run.do_train:
        required += (head,)
    if latest:
        required = ("",)
        fix = "use another --output_dir for another model or task"
    reader = tf.train.load_checkpoint(path) if latest else _open(path)
    shapes = reader.get_variable_to_shape_map()
    weight_names.check_is_roberta(path, shapes, config.type_vocab_size)
    weight_names.check_layers(path, shapes, config, run.bert_config_file)
    _check_shapes(path, shapes, model, fix)
    uses_all = latest or not run.do_train
    if labels is not None and uses_all:
        _check_labels(path, shapes, model, labels)
    found = weight_names.parts_in_tf(shapes, config)
    missing = [
        name
        for name in model
        if name not in shapes and name.startswith(required)
    ]
    if missing:
        if all("/answerable/" in name for name in missing):
            fix = "pass --answerability_head=False"
        for part in () if run.do_train else parts:
            weight_names.check_fine_tuned(path, part, found)
        raise errors.UserError(
            f"{path} lacks {len(missing)} variables of the model, {missing[0]} "
            f"first; {fix}"
        )
    if uses_all and "answerable" in found - {*parts}:
        tf.logging.warning(
            "%s was trained with --answerability_head, which is not given: "
            "that head is ignored",
            path,
        )
    model_directory.check_config(
        path,
        config,
        run.bert_config_file,
        with_run=not (latest and run.do_train),  # see run_record.py
    )


def _check_exists(path):
    if not glob.glob(glob.escape(path) + "*"):
        raise errors.UserError(
            f"--init_checkpoint={path}: does not exist; expected the prefix "
            "of a checkpoint such as DIR/model.ckpt-1000, a model's directory, "
            "hf:NAME, or fairseq's model.pt"
        )


def _open(path):
    """A reader of --init_checkpoint, whose files are checked."""
    if re.search(r"\.(index|meta|data-\d+-of-\d+)$", path):
        raise errors.UserError(
            f"--init_checkpoint={path}: one file of a checkpoint; pass the "
            f"prefix of its files, {os.path.splitext(path)[0]}"
        )
    _check_exists(path)
    if os.path.exists(tf_checkpoint.index_file(path)):
        problem = checkpoints.damage(path)
        if problem:
            raise errors.UserError(f"--init_checkpoint={path}: {problem}")
    try:
        return tf.train.load_checkpoint(path)
    except (tf.errors.OpError, ValueError) as error:
        raise errors.UserError(
            f"--init_checkpoint={path}: not a TensorFlow checkpoint "
            f"({str(error).splitlines()[0]}); expected a prefix such as "
            "DIR/model.ckpt-1000, next to its .index file"
        ) from error


def _check_shapes(path, shapes, model, fix):
    """Compares the shapes in a checkpoint with {name: shape} of the model.

    None in a shape of the model fits any size.
    """
    for name, shape in model.items():
        if name not in shapes:
            continue
        if len(shapes[name]) != len(shape) or any(
            size is not None and size != actual
            for size, actual in zip(shape, shapes[name])
        ):
            raise errors.UserError(
                f"{path} has {name} with shape {list(shapes[name])}, but the "
                f"model config requires {list(shape)}; {fix}"
            )


def _check_labels(path, shapes, model, labels):
    """Compares the size of a head whose size is free with the labels."""
    for name, shape in model.items():
        count = (
            shapes[name][shape.index(None)]
            if name in shapes and None in shape
            else labels
        )
        if count != labels:
            raise errors.UserError(
                f"{path} was trained with {count} labels, but {labels} were "
                "requested; use the labels of the checkpoint (id2label in its "
                "config.json), or another --output_dir to train another model"
            )


def resolved(run: run_config.RunConfig) -> run_config.RunConfig:
    """The run whose --init_checkpoint is the prefix of a checkpoint.

    hf:NAME is downloaded. A directory stands for its newest or only checkpoint,
    else for files of Hugging Face's or fairseq's, which are converted, as is
    fairseq's model.pt. --bert_config_file defaults to the checkpoint's.

    Raises:
      errors.UserError: a directory without any, or incomplete files.
    """
    prefix = run.init_checkpoint
    if prefix.startswith("hf:"):
        prefix = _converted("hf", _from_hub(prefix[3:]), run)
    elif prefix.endswith(".pt") and os.path.isfile(prefix):
        prefix = _converted("fairseq", prefix, run)
    elif os.path.isdir(prefix):
        prefix = _in_directory(prefix, run)
    config_file = run.bert_config_file
    if prefix and not config_file:
        config_file = files.beside(prefix, model_directory.CONFIG)
        if not config_file:
            _check_exists(prefix)
    return dataclasses.replace(
        run, init_checkpoint=prefix, bert_config_file=config_file
    )


def _in_directory(path, run):
    """The prefix of a directory's checkpoint, which may be converted."""
    prefix = checkpoints.only_or_newest(path)
    if prefix:
        tf.logging.info("--init_checkpoint=%s: using %s", path, prefix)
        return prefix
    kinds = conversion.formats(path)
    if files.is_file(os.path.join(path, model_directory.CONFIG)):
        kinds.append("hf")
    if not kinds:
        raise errors.UserError(
            f"--init_checkpoint={path}: the directory has neither a TensorFlow "
            "checkpoint nor Hugging Face's config.json with model.safetensors "
            "or pytorch_model.bin, nor fairseq's model.pt with dict.txt"
        )
    return _converted(kinds[0], path, run)


def _from_hub(name):
    """The directory of a model of Hugging Face's Hub, in that library's cache.

    HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE apply. A download that was
    interrupted is resumed.

    Args:
      name: such as roberta-base or OWNER/NAME@REVISION.
    """
    huggingface_hub = errors.import_package(
        "huggingface_hub", f"--init_checkpoint=hf:{name}", "hub"
    )
    repository, _, revision = name.partition("@")
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            path = huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=["*.json", "*.txt", weights],
                resume_download=True,
                local_files_only=huggingface_hub.constants.HF_HUB_OFFLINE,
            )
            if files.matching(path, weights):
                break
        return path
    except (OSError, ValueError) as error:
        fix = (
            "check the name, the connection and HF_ENDPOINT, and run the same "
            "command again to resume (HF_HUB_OFFLINE=1 uses what is in the "
            "cache)"
        )
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            fix = (
                "HF_HUB_OFFLINE is set: copy the model into "
                f"{huggingface_hub.constants.HUGGINGFACE_HUB_CACHE}, or unset "
                "the variable to download it"
            )
        raise errors.UserError(
            f"--init_checkpoint=hf:{name}: {' '.join(str(error).split())}; "
            f"{fix}"
        ) from error


# What a conversion reads of a directory.
_MODEL_FILES = (
    "*.json",
    "*.txt",
    "*.bpe",
    "model*.safetensors",
    "pytorch_model*.bin",
)


def _converted(kind, path, run):
    """The prefix of a model converted to the cache, where it may be already.

    Args:
      kind: its format, a key of conversion.READERS.
      path: its directory, or fairseq's model.pt.
      run: flags.
    """
    flag, cache_dir = run.init_checkpoint, run.cache_dir
    cache = os.path.join(os.path.expanduser(cache_dir), "converted")
    try:
        os.makedirs(cache, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"--cache_dir={cache_dir}: cannot make {cache}: {error.strerror}; "
            "pass a directory that can be written"
        ) from error
    name = os.path.basename(os.path.abspath(flag)).replace("hf:", "")
    prefix = os.path.join(cache, f"{name}-{_digest(path)}", "model.ckpt")
    options = conversion.ConvertConfig(
        input=path, output=prefix, overwrite=True
    )
    with _locked(cache):
        if checkpoints.damage(prefix):  # or not converted yet
            tf.logging.info(
                "--init_checkpoint=%s: converting to %s", flag, prefix
            )
            try:
                conversion.convert(kind, "tf", options, tf.logging.debug)
            except errors.UserError as error:
                raise errors.UserError(
                    f"--init_checkpoint={flag}: {error}"
                ) from error
        else:
            tf.logging.info("--init_checkpoint=%s: using %s", flag, prefix)
    return prefix


def _digest(model):
    """Hexadecimal digits that change with a model's files or this version."""
    digest = hashlib.sha256(version.VERSION.encode("ascii"))
    directory, name = model, "model.pt"
    if os.path.isfile(model):
        directory, name = os.path.split(model)
    paths = [
        path
        for pattern in (*_MODEL_FILES, name)
        for path in files.matching(directory, pattern)
    ]
    for path in sorted(paths):
        name = os.path.basename(path)
        digest.update(f"{name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(directory):
    """Lets one process at a time run the block, where files can be locked."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def source(run: run_config.RunConfig, head: str) -> run_config.RunConfig:
    """The run that names the checkpoint to restore: `run`, or a variant.

    Without training, an --init_checkpoint that has the task's head is the one
    to evaluate, also where output_dir has newer ones. The variant has an empty
    output_dir, so that it is found; the directory is removed at exit.

    Args:
      run: flags.
      head: prefix of the names of the head's variables, such as "cls/squad/".

    Raises:
      errors.UserError: there is no checkpoint to evaluate.
    """
    latest = checkpoints.newest(run.output_dir)
    if not (
        run.do_train
        or run.init_checkpoint
        or run.evaluate_checkpoints == "watch"
        or latest
    ):
        raise errors.UserError(
            f"no checkpoint found in {run.output_dir}; pass --init_checkpoint "
            "or train first with --do_train=True"
        )
    if run.do_train or best(run) or not run.init_checkpoint:
        return run
    names = _open(run.init_checkpoint).get_variable_to_shape_map()
    if not latest or any(name.startswith(head) for name in names):
        empty = tempfile.mkdtemp(prefix="roberta_evaluation_")
        atexit.register(shutil.rmtree, empty, ignore_errors=True)
        return dataclasses.replace(run, output_dir=empty)
    tf.logging.info(
        "--init_checkpoint=%s has no %s: evaluating %s",
        run.init_checkpoint,
        head,
        latest,
    )
    return run


def best(run: run_config.RunConfig) -> typing.Optional[str]:
    """The checkpoint of --evaluate_checkpoints=best, None without that flag.

    Raises:
      errors.UserError: the run has kept none.
    """
    if run.evaluate_checkpoints != "best":
        return None
    return checkpoints.best(run.output_dir)


def global_step(run: run_config.RunConfig) -> int:
    """The step of the checkpoint that a run (see `source`) evaluates."""
    return checkpoints.global_step(
        best(run) or checkpoints.newest(run.output_dir) or run.init_checkpoint
    )


def load_initial(
    run: run_config.RunConfig, head: typing.Collection[str] = ()
) -> None:
    """Loads --init_checkpoint, unless the run has a checkpoint of its own.

    Args:
      run: flags.
      head: see `load`.
    """
    if run.init_checkpoint and not checkpoints.newest(run.output_dir):
        load(run.init_checkpoint, head)


def load(path: str, head: typing.Collection[str] = ()) -> None:
    """Initializes the graph's variables from a checkpoint that `check` passed.

    Args:
      path: checkpoint prefix.
      head: names of a head's variables; where one has another shape in the
        checkpoint, as with other labels, the entire head is initialized at
        random.

    Source: fairseq's RoBERTa, model.py (heads of another size).
    """
    shapes = _open(path).get_variable_to_shape_map()
    variables = {
        optimization.variable_name(variable): variable
        for variable in tf.trainable_variables()
    }
    resized = [
        name
        for name in head
        if name in variables
        and name in shapes
        and shapes[name] != variables[name].shape.as_list()
    ]
    if resized:
        tf.logging.warning(
            "%s has %s with shape %s, the model %s: the head is initialized "
            "at random",
            path,
            resized[0],
            shapes[resized[0]],
            variables[resized[0]].shape.as_list(),
        )
    loaded = {
        name: variable
        for name, variable in variables.items()
        if name in shapes and not (resized and name in head)
    }
    fresh = [name for name in variables if name not in loaded]
    unused = [
        name
        for name in shapes
        if name not in loaded and not _TRAINING_STATE.search(name)
    ]
    tf.logging.info(
        "%s: %d variables loaded, %d initialized at random (%s), %d unused "
        "(%s)",
        path,
        len(loaded),
        len(fresh),
        _some(fresh),
        len(unused),
        _some(sorted(unused)),
    )
    for name in sorted(loaded):
        tf.logging.debug("loaded %s %s", name, shapes[name])
    if loaded:
        tf.train.init_from_checkpoint(path, loaded)


def _some(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"
