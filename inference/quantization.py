# SPDX-License-Identifier: Apache-2.0
"""ONNX files in int8, which must score as the float32 file does.

Weights become int8 in the file, activations at each call (ONNX Runtime's
dynamic quantization). Single logits move too far to be compared, scores do not.
"""

import contextlib
import io
import os
import typing

import numpy as np
from absl import logging

import squad
from common import errors
from inference import onnx_engine, predictor
from question_answering import squad_scores
from tasks import classification, conll, table_files
from training import logs

# Inputs that are predicted between two updates of the progress.
_CHUNK = 64


def _predicted(function, inputs):
    results = []
    starts = range(0, len(inputs), _CHUNK)
    for first in logs.counted(starts, len(starts), "score", f"x{_CHUNK}"):
        results += function(inputs[first : first + _CHUNK])
    return results


@contextlib.contextmanager
def _read(path):
    """Names --score_file in errors of readers, whose fixes are other flags."""
    try:
        yield
    except errors.UserError as error:
        text = str(error).replace(f"{path}: ", "")
        problem = text.rpartition("; ")[0] or text
        raise errors.UserError(
            f"--score_file={path}: {problem}; use labelled data of the "
            "model's task"
        ) from error


def _f1(model, path):
    """F1 in percent, by the rules of the model's version of SQuAD."""
    has_negative = model.answers.version_2_with_negative
    with _read(path):
        gold = squad_scores.gold_answers(path, squad_scores.read_dataset(path))
        examples = squad.read_examples(path, False, has_negative)
    predictions = {
        result["id"]: result["answer"]
        for result in _predicted(model.answer_all, examples)
    }
    if not has_negative:
        return squad_scores.mean_scores_v1(gold, predictions)["f1"]
    _, f1_scores = squad_scores.scores(dict(gold), predictions)
    return 100.0 * float(np.mean(list(f1_scores.values())))


def _accuracy(expected, predicted, path, names):
    unknown = set(expected) - set(names)
    if unknown:
        raise errors.UserError(
            f"--score_file={path}: the label {min(unknown)!r} is not one of "
            f"the model's, {', '.join(names)}; use a file of its task"
        )
    return 100.0 * float(np.mean(np.array(expected) == np.array(predicted)))


def _text_accuracy(model, path):
    if "label" not in model.classify("text"):
        raise errors.UserError(
            "--quantize=int8: needs a model with one label for each text; "
            "export without --quantize"
        )
    with _read(path):
        table = table_files.read(path)
        pair = "text_b" if "text_b" in table.columns else None
        examples = classification.examples_of(
            table, classification.Columns("text", pair, "label")
        )
    results = _predicted(
        model.classify_all, [(e.text, e.pair) for e in examples]
    )
    return _accuracy(
        [example.label for example in examples],
        [result["label"] for result in results],
        path,
        results[0]["scores"],
    )


def _word_accuracy(model, path):
    with _read(path):
        sentences = conll.read(path, label_column=-1)
    results = _predicted(model.tag_all, [list(s.words) for s in sentences])
    return _accuracy(
        [label for sentence in sentences for label in sentence.labels],
        [word["label"] for result in results for word in result["words"]],
        path,
        model.model.task.labels or (),
    )


# Head: the predictor's task, its score's name, and function (Predictor, path).
SCORES: typing.Dict[str, typing.Tuple[str, str, typing.Callable]] = {
    "squad": ("answer", "F1", _f1),
    "classification": ("classify", "accuracy", _text_accuracy),
    "tagging": ("tag", "accuracy", _word_accuracy),
}


def write_int8(path: str, small: str) -> None:
    """Writes the int8 form `small` of a float32 ONNX file `path`.

    Raises:
      errors.UserError: a package is missing.
    """
    onnx = errors.import_package("onnx", "--quantize=int8", "onnx")
    onnx_quantization = errors.import_package(
        "onnxruntime.quantization", "--quantize=int8", "onnx"
    )
    with contextlib.redirect_stdout(io.StringIO()):  # a line for each product
        onnx_quantization.quantize_dynamic(
            path,
            small,
            weight_type=onnx_quantization.QuantType.QInt8,
            # Attention's products have no weights: they stay in float32.
            extra_options={"MatMulConstBOnly": True},
        )
    proto = onnx.load(small)
    proto.metadata_props.add(key=onnx_engine.WEIGHTS, value="int8")
    onnx.save(proto, small)


def _load(path, task):
    """A Predictor, without log lines that repeat those of the export."""
    logger = logging.get_absl_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        return predictor.Predictor(path, task)
    finally:
        logger.setLevel(level)


def quantize(
    path: str, head: str, score_file: str, max_score_drop: float
) -> None:
    """Replaces an ONNX file by its int8 form, if that scores as well.

    Args:
      path: of the float32 file, with the task's files beside it.
      head: a key of SCORES.
      score_file: SQuAD's JSON, a table with the columns text, text_b if there
        are pairs, and label, or words with labels in CoNLL's form.
      max_score_drop: largest fall of the score, in points of 100.

    Raises:
      errors.UserError: the score falls by more, or a package is missing.
    """
    task, metric, score = SCORES[head]
    before = score(_load(path, task), score_file)
    small = path[: -len(".onnx")] + ".int8.onnx"
    write_int8(path, small)
    after = score(_load(small, task), score_file)
    logging.info(
        "%s on %s: %.2f in float32, %.2f in int8",
        metric,
        score_file,
        before,
        after,
    )
    if before - after > max_score_drop:
        raise errors.UserError(
            f"--quantize=int8: {metric} on {score_file} falls from "
            f"{before:.2f} to {after:.2f}, by more than --max_score_drop="
            f"{max_score_drop:g}; nothing was written, export without "
            "--quantize"
        )
    os.replace(small, path)
