# SPDX-License-Identifier: Apache-2.0
r"""Fine-tunes RoBERTa on SQuAD v1.1 or v2.0, and answers questions.

    python run_squad.py --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --init_checkpoint=roberta.ckpt \
      --do_train=True --train_file=train-v1.1.json \
      --do_predict=True --predict_file=dev-v1.1.json --output_dir=output
"""

import common.startup

import collections
import contextlib
import dataclasses
import functools
import math
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

import device as devices
import environment
import squad
from common import command_line, errors, files
from inference import graphs
from question_answering import squad_scores
from tasks import finetuning
from training import eval_results, output_directory, run_config, warm_start
from weights import model_directory

# Defaults of this script that differ from RunConfig's.
DEFAULTS = {
    "learning_rate": 1.5e-5,
    "max_seq_length": 384,
    "train_batch_size": 48,
}


@dataclasses.dataclass(frozen=True)
class SquadConfig(finetuning.TaskConfig, squad.AnswerConfig):
    """Flags of this script, including those of all fine-tuning scripts."""

    train_file: str = command_line.flag(
        "", "SQuAD JSON to train on.", group=command_line.FIRST
    )
    predict_file: str = command_line.flag("", "SQuAD JSON to answer.")
    doc_stride: int = command_line.flag(
        128,
        "Tokens from one window of a long context to the next.",
        lower=1,
        group=command_line.DATA,
    )
    skip_invalid_answers: bool = command_line.flag(
        False,
        "Leave out questions whose answer_start does not hold the "
        "answer, and count them.",
    )
    answerability_head: bool = command_line.flag(
        False,
        "v2.0: a classifier on <s> whose loss is added to the span "
        "loss (RoBERTa paper, section 5.2).",
        group=command_line.MODEL,
    )
    feature_cache_dir: str = command_line.flag(
        "",
        "Accepted, without effect: features are made in seconds.",
        group=command_line.OTHER,
    )
    use_tpu: bool = command_line.flag(False, "Accepted while False.")
    tpu_name: str = command_line.flag("", "Accepted while empty.")
    tpu_zone: str = command_line.flag("", "Accepted while empty.")
    gcp_project: str = command_line.flag("", "Accepted while empty.")
    master: str = command_line.flag("", "Accepted while empty.")
    num_tpu_cores: int = command_line.flag(8, "Accepted, without effect.")

    def __post_init__(self):
        for name in (
            "use_tpu",
            "tpu_name",
            "tpu_zone",
            "gcp_project",
            "master",
        ):
            if getattr(self, name):
                raise errors.UserError(
                    f"--{name}: TPUs are not supported; remove the flag and "
                    "choose a device with --accelerator"
                )
        if self.answerability_head and not self.version_2_with_negative:
            raise errors.UserError(
                "--answerability_head: needs --version_2_with_negative=True; "
                "v1.1 has no unanswerable questions"
            )


def span_sums(
    features: typing.Mapping[str, tf.Tensor],
    outputs: typing.Mapping[str, tf.Tensor],
) -> typing.Dict[str, tf.Tensor]:
    """The loss summed over a batch, and the number of exact spans.

    Source: Devlin et al. 2018, section 4.2 (mean of start's and end's cross
    entropy); Liu et al. 2019, section 5.2 (answerability loss added).

    Args:
      features: of a micro-batch.
      outputs: from graphs.span_logits.

    Returns:
      {"loss", "span_accuracy": float32 scalar}.
    """
    kept = functools.partial(finetuning.without_empty, features)
    spans = [
        (kept(features["start_position"]), outputs["start_logits"]),
        (kept(features["end_position"]), outputs["end_logits"]),
    ]
    entropies = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=labels, logits=logits
        )
        for labels, logits in spans
    ]
    loss = 0.5 * tf.reduce_sum(kept(entropies[0] + entropies[1]))
    if "answerable_logits" in outputs:
        has_answer = tf.cast(features["start_position"] > 0, tf.float32)
        loss += tf.reduce_sum(
            kept(
                tf.nn.sigmoid_cross_entropy_with_logits(
                    labels=has_answer, logits=outputs["answerable_logits"]
                )
            )
        )
    correct = [
        tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels)
        for labels, logits in spans
    ]
    exact = kept(tf.cast(tf.logical_and(*correct), tf.float32))
    return {"loss": loss, "span_accuracy": tf.reduce_sum(exact)}


class Data(typing.NamedTuple):
    """Questions of a file and their windows."""

    examples: typing.List[squad.Example]
    features: typing.List[squad.Feature]


def chance_loss(data: Data) -> float:
    """The span loss of a model that ignores the text.

    It knows the share of windows without an answer, and takes any token of
    the others.
    """
    empty = np.mean([feature.start_position == 0 for feature in data.features])
    context = np.mean(
        [math.log(feature.doc_length) for feature in data.features]
    )
    shares = [share for share in (empty, 1 - empty) if share > 0]
    return (1 - empty) * context - sum(p * math.log(p) for p in shares)


def build_model(
    setup: finetuning.Setup,
    device: devices.Device,
    chance: typing.Optional[float] = None,
) -> finetuning.Model:
    """The model with the heads of SQuAD.

    Args:
      setup: the run.
      device: from environment.create.
      chance: `chance_loss` of the training data, None without training.
    """

    def outputs(features, hidden, dropout_seed):
        logits = graphs.span_logits(
            setup.config,
            hidden,
            features["input_ids"],
            device.kernels,
            setup.task.answerability_head,
            finetuning.first_tokens(features, hidden, device.kernels),
        )
        for name in ("start_logits", "end_logits"):
            logits[name] = finetuning.by_sequence(
                features, logits[name], device.kernels, graphs.NO_ANSWER
            )
        return logits

    head = finetuning.Head(
        "question_answering", outputs, span_sums, chance=chance
    )
    return finetuning.Model(setup, device, head)


def read_examples(
    path: str,
    task: SquadConfig,
    is_training: bool,
    counts: typing.Optional[collections.Counter] = None,
) -> typing.List[squad.Example]:
    """The questions of a SQuAD file; see squad.read_examples."""
    if not path:
        raise errors.UserError(
            f"--{('train_file' if is_training else 'predict_file')} is not "
            "given; name a SQuAD JSON file"
        )
    examples = squad.read_examples(
        path,
        is_training,
        task.version_2_with_negative,
        skip_invalid_answers=task.skip_invalid_answers,
        counts=counts,
    )
    if (
        is_training
        and task.version_2_with_negative
        and not any(example.is_impossible for example in examples)
    ):
        tf.logging.warning(
            "%s: no question is without an answer, so the model cannot learn "
            'to answer ""; train without --version_2_with_negative, or with a '
            "file of v2.0",
            path,
        )
    return examples


def read_data(path, tokenizer, run, task, is_training, counts=None) -> Data:
    """The questions of a SQuAD file and their windows.

    Args:
      path: the file.
      tokenizer: a `tokenization.RobertaTokenizer`.
      run: RunConfig.
      task: SquadConfig.
      is_training: whether to label the windows.
      counts: a Counter that grows; see squad.
    """
    counts = collections.Counter() if counts is None else counts
    examples = read_examples(path, task, is_training, counts)
    features = list(
        squad.convert_examples_to_features(
            examples,
            tokenizer,
            run.max_seq_length,
            task.doc_stride,
            task.max_query_length,
            is_training,
            num_workers=task.num_workers or os.cpu_count() or 1,
            counts=counts,
            max_answer_length=task.max_answer_length,
        )
    )
    is_lossy = any(counts[name] for name in _HINTS)
    log = tf.logging.warning if is_lossy else tf.logging.info
    log("%s", summary(path, counts))
    return Data(examples, features)


_COUNTS = (
    "questions",
    "features",
    "truncated_questions",
    "moved_answers",
    "ignored_answers",
    "skipped_invalid_answers",
    "skipped_empty_contexts",
    "answers_in_no_window",
    "long_answers",
)
# Of counts: the flags that would help.
_HINTS = {
    "answers_in_no_window": (
        "answers in no window are trained as no answer; use a larger "
        "--max_seq_length or a smaller --doc_stride"
    ),
    "long_answers": (
        "long answers cannot be predicted in full; use a larger "
        "--max_answer_length"
    ),
}


def summary(path: str, counts: collections.Counter) -> str:
    """One line with all counts of `read_data`."""
    numbers = " ".join(f"{name}={counts[name]}" for name in _COUNTS)
    hints = [hint for name, hint in _HINTS.items() if counts[name]]
    return "; ".join([f"{path}: {numbers}", *hints])


def sequences(data: Data, is_training: bool) -> finetuning.Sequences:
    """The windows as a model reads them, with labels in training."""
    labels = ("start_position", "end_position") if is_training else ()
    return finetuning.Sequences(
        lambda index: data.features[index].input_ids,
        np.array([feature.length for feature in data.features]),
        {
            name: np.array(
                [getattr(feature, name) for feature in data.features], np.int32
            )
            for name in labels
        },
    )


class Logits(typing.NamedTuple):
    """The outputs of a model for all windows."""

    data: Data
    spans: typing.Dict[int, typing.Tuple]  # {unique_id: (start, end)}
    answerable: typing.Optional[typing.Dict[int, float]]  # by unique_id

    def decode(self, task: SquadConfig, threshold: float):
        """(predictions, nbest, null_odds), see `squad.decode`."""
        return squad.decode(
            self.data.examples,
            self.data.features,
            self.spans,
            task.n_best_size,
            task.max_answer_length,
            task.version_2_with_negative,
            threshold,
            answerable_logits=self.answerable,
        )


def logits_of(
    data: Data, outputs: typing.Iterable[typing.Tuple[int, typing.Mapping]]
) -> Logits:
    """The logits of windows, from (index of a window, {name: array})."""
    spans, answerable = {}, {}
    for index, values in outputs:
        unique_id = data.features[index].unique_id
        spans[unique_id] = values["start_logits"], values["end_logits"]
        if "answerable_logits" in values:
            answerable[unique_id] = float(values["answerable_logits"])
    return Logits(data, spans, answerable or None)


def score(
    task: SquadConfig,
    gold: squad_scores.Gold,
    logits: Logits,
    predictions: typing.Dict[str, str],
    null_odds: typing.Dict[str, float],
) -> typing.Dict[str, float]:
    """The official scores; for v2.0 also thresholds of null odds."""
    if not task.version_2_with_negative:
        return squad_scores.mean_scores_v1(gold, predictions)
    answers, _, _ = logits.decode(task, math.inf)
    return _scores_v2(dict(gold), predictions, answers, null_odds)


def score_with(
    tuning: finetuning.FineTuning, data: Data, task: SquadConfig
) -> None:
    """Scores while training, by F1.

    Raises:
      errors.UserError: --predict_file has no answers.
    """
    gold = _gold(task)
    if gold is None:
        raise errors.UserError(
            f"--predict_file={task.predict_file}: questions without answers "
            "cannot be scored; leave out --evaluate_every_steps"
        )

    def score_outputs(outputs):
        rows = (
            (index, {name: values[index] for name, values in outputs.items()})
            for index in range(len(data.features))
        )
        logits = logits_of(data, rows)
        predictions, _, null_odds = logits.decode(
            task, task.null_score_diff_threshold
        )
        return score(task, gold, logits, predictions, null_odds)

    tuning.score_with(sequences(data, False), score_outputs, "f1")


def write_predictions(logits: Logits, setup: finetuning.Setup) -> None:
    """predictions.json, nbest_predictions.json and null_odds.json.

    Where the file has answers, also eval_results.txt: the official scores,
    for v2.0 with the best null thresholds and a suggested one.
    """
    run, task = setup.run, setup.task
    predictions, nbest, null_odds = logits.decode(
        task, task.null_score_diff_threshold
    )
    outputs = {"predictions.json": predictions, "nbest_predictions.json": nbest}
    if task.version_2_with_negative:
        outputs["null_odds.json"] = null_odds
    else:  # of earlier predictions
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(run.output_dir, "null_odds.json"))
    for name, value in outputs.items():
        files.write_json(os.path.join(run.output_dir, name), value)
    tf.logging.info(
        "%d answers in %s",
        len(predictions),
        os.path.join(run.output_dir, "predictions.json"),
    )
    gold = _gold(task)
    if gold is not None:
        scores = score(task, gold, logits, predictions, null_odds)
        eval_results.report_results(
            run, scores, warm_start.global_step(setup.source)
        )
        trained = model_directory.read_task(run.output_dir)
        if run.do_train and trained.task and "suggested_thresh" in scores:
            model_directory.write_task(
                run.output_dir,
                dataclasses.replace(
                    trained,
                    null_score_diff_threshold=scores["suggested_thresh"],
                ),
            )
    _log_threshold(setup)


def _model_directory(setup):
    """The directory of the checkpoint that is evaluated."""
    return (*output_directory.models(setup.source), setup.run.output_dir)[0]


def _log_threshold(setup):
    """Logs the threshold, and that of task.json where it is another."""
    used = setup.task.null_score_diff_threshold
    if not setup.task.version_2_with_negative:
        return
    directory = _model_directory(setup)
    suggested = model_directory.read_task(directory).null_score_diff_threshold
    remark = ""
    if suggested not in (None, used):
        remark = (
            f"; predict.py and scripts/serve.py use {suggested:g}, which "
            f"{os.path.join(directory, model_directory.TASK)} suggests: pass "
            "--null_score_diff_threshold for the same answers"
        )
    tf.logging.info(
        "predictions.json: null_score_diff_threshold=%g%s", used, remark
    )


def _gold(task):
    """[(id, answers)] of --predict_file, None if it lacks answers."""
    document = squad_scores.read_dataset(task.predict_file)
    try:
        gold = squad_scores.gold_answers(task.predict_file, document)
    except errors.UserError:  # questions without "answers"
        return None
    is_complete = all(answers for _, answers in gold)
    return gold if is_complete or task.version_2_with_negative else None


def _scores_v2(gold, predictions, answers, null_odds):
    """exact and f1, both with their best and a suggested threshold.

    Args:
      gold: {id: list of accepted texts}.
      predictions: {id: text, "" where none is predicted}.
      answers: {id: best text that is not ""}.
      null_odds: {id: number}.
    """
    scores = {
        name: 100.0 * sum(values.values()) / len(gold)
        for name, values in zip(
            ("exact", "f1"), squad_scores.scores(gold, predictions)
        )
    }
    scores.update(squad_scores.find_best_thresholds(gold, answers, null_odds))
    scores["suggested_thresh"] = squad_scores.suggested_threshold(
        gold, answers, null_odds
    )
    return scores


def main(_: typing.List[str]) -> None:
    run, task, options = run_config.from_flags(SquadConfig, flags.FLAGS)
    setup = finetuning.begin(run, task, "cls/squad/")
    heads = ["question_answering"] + ["answerable"] * task.answerability_head
    warm_start.check(setup.source, setup.config, heads, "cls/squad/")
    if not run.do_train:
        squad.warn_if_other_version(
            model_directory.read_task(
                _model_directory(setup)
            ).version_2_with_negative,
            task.version_2_with_negative,
        )
    if task.feature_cache_dir:
        tf.logging.info("--feature_cache_dir: ignored; there is no cache")
    device = environment.create(options)
    # All input is read, and rejected, before anything is written.
    train = test = None
    if run.do_train:
        train = device.once_per_host(
            lambda: read_data(task.train_file, setup.tokenizer, run, task, True)
        )

    def read_test():
        return read_data(task.predict_file, setup.tokenizer, run, task, False)

    if run.evaluates:
        test = device.once_per_host(read_test)
    elif task.do_predict and device.rank == 0:
        test = read_test()
    tuning = finetuning.FineTuning(
        build_model(setup, device, chance_loss(train) if train else None),
        sequences(train, True) if train else None,
    )
    if run.evaluates:
        score_with(tuning, test, task)
    tuning.train()
    if task.do_predict and device.rank == 0:
        outputs = tuning.predict(sequences(test, False))
        write_predictions(logits_of(test, outputs), setup)


def define_flags() -> None:
    run_config.define_flags(SquadConfig, DEFAULTS)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
