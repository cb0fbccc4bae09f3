# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as the engine of predictor.Predictor, without TensorFlow."""

import json
import os
import typing

import numpy as np

from common import errors, files
from inference import trained_model
from weights import model_directory

# Keys of the file's metadata, which export_model.py writes.
HEAD, WEIGHTS = "head", "weights"
_TOKENIZER = (model_directory.VOCAB, model_directory.MERGES, "do_lower_case")


def load(path: str, settings: typing.Any = None) -> typing.Any:
    """The onnxruntime.InferenceSession of a file of export_model.py.

    Args:
      path: of the file.
      settings: predictor.Settings, to reject those for TensorFlow alone.

    Raises:
      errors.UserError: it is not such a file, or ONNX Runtime is missing.
    """
    onnxruntime = errors.import_package(
        "onnxruntime", f"--model={path}", "onnx"
    )
    if not os.path.isfile(path):
        raise errors.UserError(
            f"--model={path}: does not exist; write it with export_model.py "
            "--format=onnx"
        )
    if settings and (
        settings.accelerator == "gpu"
        or settings.manual_fp16
        or settings.use_bf16
    ):
        raise errors.UserError(
            f"--model={path}: computed on the CPU with the numbers in the "
            "file; remove --accelerator=gpu, --manual_fp16 and --use_bf16"
        )
    try:
        session = onnxruntime.InferenceSession(
            path, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes have no public name
        raise errors.UserError(
            f"--model={path}: ONNX Runtime cannot read it: {error}; export "
            "the model again"
        ) from error
    if _metadata(session).get(HEAD) not in trained_model.HEADS:
        raise errors.UserError(
            f"--model={path}: does not name its task; write it with this "
            "version's export_model.py --format=onnx"
        )
    return session


def _metadata(session):
    return session.get_modelmeta().custom_metadata_map


def description(
    tokenizer: model_directory.TokenizerFiles, task: model_directory.Task
) -> typing.Dict[str, str]:
    """Metadata that names the tokenizer and the task beside a file."""
    *paths, do_lower_case = tokenizer
    hashes = [files.sha256(path) if path else "" for path in paths]
    values = (*hashes, str(do_lower_case), json.dumps(task.values()))
    return dict(zip((*_TOKENIZER, model_directory.TASK), values))


def check_files(
    session: typing.Any, model: trained_model.TrainedModel, allow_other: bool
) -> None:
    """Compares a session's metadata with the files of its model.

    Files of older versions, without such metadata, are not compared.

    Args:
      session: of `load`.
      model: the model as found.
      allow_other: --allow_other_tokenizer.

    Raises:
      errors.UserError: a file is another model's.
    """
    metadata = _metadata(session)
    task = model_directory.read_task(model.directory)
    actual = description(model.tokenizer, task)
    for name, used in zip(_TOKENIZER, model.tokenizer):
        saved = metadata.get(name) or actual[name]
        if used != "" and saved != actual[name]:
            model_directory.reject_tokenizer(
                f"{name} is {used}, not that of {model.checkpoint}", allow_other
            )
    name = model_directory.TASK
    saved = metadata.get(name, actual[name]).encode("utf-8")
    differences = model_directory.task_differences(
        task.values(), files.parse_json(saved, model.checkpoint)
    )
    if differences:
        raise errors.UserError(
            f"{os.path.join(model.directory, name)}: not that of "
            f"{model.checkpoint}: {differences}; copy the files that were "
            "exported with it, or export again"
        )


def parts(session: typing.Any) -> typing.Set[str]:
    """The keys of weight_names.PARTS whose outputs a session has."""
    head = trained_model.HEADS[_metadata(session)[HEAD]]
    names = {output.name for output in session.get_outputs()}
    answerable = {"answerable"} & {name.split("_")[0] for name in names}
    return {head} | answerable


class Engine:
    """A session, whose other outputs than the graphs' NumPy computes."""

    def __init__(
        self,
        session: typing.Any,
        model: trained_model.TrainedModel,
        pooling: str,
    ):
        import onnxruntime

        weights = _metadata(session).get(WEIGHTS, "float32")
        self.name = f"ONNX Runtime {onnxruntime.__version__} ({weights})"
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        (ids,) = session.get_inputs()
        self._dtype = ids.type[len("tensor(") : -1]  # int32 or int64
        self._model = model
        self._pooling = pooling

    def call(
        self,
        input_ids: np.ndarray,
        positions: typing.Optional[np.ndarray] = None,
        top_k: int = 0,
    ) -> typing.Dict[str, np.ndarray]:
        """{name: array} of one batch, as graphs.Engine.

        Args:
          input_ids: int32 [B, S].
          positions: of mlm: int [N], rows of the flattened [B * S].
          top_k: tokens listed at each position.
        """
        values = self._session.run(
            self._names, {"input_ids": input_ids.astype(self._dtype)}
        )
        outputs = dict(zip(self._names, values))
        if positions is not None:
            logits = outputs["logits"]
            rows = logits.reshape(-1, logits.shape[-1])[positions]
            return _best_tokens(rows[:, : self._model.vocab_size], top_k)
        if "sequence_output" in outputs:
            tokens = input_ids != self._model.config.pad_token_id
            hidden = outputs["sequence_output"]
            return {"vectors": _pooled(hidden, tokens, self._pooling)}
        return outputs


def _best_tokens(logits, count):
    logits = logits - logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return {
        "ids": ids,
        "log_probabilities": np.take_along_axis(logits, ids, axis=1),
    }


def _pooled(hidden, tokens, pooling):
    """See graphs._build_embed."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "mean":
        tokens = tokens[:, :, np.newaxis].astype(hidden.dtype)
        return (hidden * tokens).sum(axis=1) / tokens.sum(axis=1)
    return hidden
