# SPDX-License-Identifier: Apache-2.0
r"""Fine-tunes RoBERTa on multiple-choice questions about articles: RACE.

    python run_multiple_choice.py --data_dir=RACE \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --init_checkpoint=roberta.ckpt \
      --do_train=True --do_eval=True --do_predict=True --output_dir=output
"""

import common.startup

import dataclasses
import math
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

import device as devices
import environment
import modeling
from common import command_line, errors, files
from tasks import classification, finetuning, race
from training import eval_results, run_config, warm_start


@dataclasses.dataclass(frozen=True)
class MultipleChoiceConfig(finetuning.TaskConfig):
    """Flags of this script, including those of every fine-tuning script."""

    data_dir: str = command_line.flag(
        "",
        "RACE's directory, with train, dev and test, each with middle and "
        "high.",
        group=command_line.FIRST,
    )
    do_eval: bool = command_line.flag(
        False, "Whether to score the questions of eval_part."
    )
    eval_part: str = command_line.flag(
        "dev", "The directory in data_dir to score.", group=command_line.DATA
    )
    predict_part: str = command_line.flag(
        "test", "The directory in data_dir to answer."
    )

    def __post_init__(self):
        if not self.data_dir:
            raise errors.UserError(
                "--data_dir is not given; pass RACE's directory, with "
                "train, dev and test"
            )


def build_model(
    setup: finetuning.Setup, device: devices.Device
) -> finetuning.Model:
    """The model with cross entropy over the options.

    Source: Liu et al. 2019, section 5.3.
    """

    def outputs(features, hidden, dropout_seed):
        logits = modeling.multiple_choice_logits(
            setup.config,
            hidden,
            race.CHOICES,
            device.kernels,
            dropout_seed=dropout_seed,
        )
        return {"outputs": logits}  # [B, C]

    def sums(features, outputs):
        return finetuning.label_sums(outputs["outputs"], features["label"])

    head = finetuning.Head(
        "multiple_choice", outputs, sums, chance=math.log(race.CHOICES)
    )
    return finetuning.Model(setup, device, head)


_Questions = typing.List[race.Question]


def questions_of(articles: typing.Iterable[race.Article]) -> _Questions:
    """All questions, in their order."""
    return [question for article in articles for question in article.questions]


def sequences(
    part: str,
    articles: typing.Sequence[race.Article],
    setup: finetuning.Setup,
    is_training: bool = False,
) -> finetuning.Sequences:
    """Sequences of all questions, with their answers in training."""
    encoded = race.Sequences(
        articles,
        setup.tokenizer,
        setup.run.max_seq_length,
        num_workers=setup.task.num_workers,
    )
    tf.logging.info(
        "%s: articles=%d questions=%d truncated_articles=%d "
        "truncated_questions=%d",
        part,
        len(articles),
        len(encoded),
        encoded.truncated_articles,
        encoded.truncated_questions,
    )
    answers = [question.answer for question in questions_of(articles)]
    return finetuning.Sequences(
        encoded.__getitem__,
        encoded.lengths,
        {"label": np.array(answers, np.int32)} if is_training else {},
        choices=race.CHOICES,
    )


def evaluation_results(
    questions: _Questions, outputs: np.ndarray
) -> typing.Dict[str, float]:
    """{"accuracy", "accuracy_middle", "accuracy_high", "loss", "questions"}.

    Args:
      questions: with answers.
      outputs: float [n, CHOICES].
    """
    answers = np.array([question.answer for question in questions])
    levels = np.array([question.level for question in questions])
    is_correct = outputs.argmax(axis=1) == answers
    results = {
        "accuracy": float(is_correct.mean()),
        "questions": len(questions),
        "loss": classification.mean_cross_entropy(outputs, answers),
    }
    for level in race.LEVELS:
        if level in levels:
            share = is_correct[levels == level].mean()
            results["accuracy_" + level] = float(share)
    return results


def predictions_of(
    questions: _Questions, outputs: np.ndarray
) -> typing.Dict[str, typing.Dict[str, typing.Any]]:
    """{question id: {"answer": letter, "probabilities": {letter: share}}}."""
    letters = [race.letter(choice) for choice in range(race.CHOICES)]
    return {
        question.question_id: {
            "answer": race.letter(row.argmax()),
            "probabilities": classification.shares(letters, row),
        }
        for question, row in zip(
            questions, classification.probabilities(outputs)
        )
    }


def evaluate_and_predict(
    tuning: finetuning.FineTuning,
    part: str,
    articles: typing.Sequence[race.Article],
    is_evaluation: bool,
) -> None:
    """Writes eval_results.txt, or predictions.json."""
    run = tuning.setup.run
    outputs = tuning.outputs(
        sequences(part, articles, tuning.setup), race.CHOICES
    )
    questions = questions_of(articles)
    if is_evaluation:
        results = evaluation_results(questions, outputs)
        eval_results.report_results(
            run, results, warm_start.global_step(tuning.setup.source)
        )
        return
    path = os.path.join(run.output_dir, "predictions.json")
    files.write_json(path, predictions_of(questions, outputs))
    tf.logging.info("%d answers in %s", len(questions), path)


def read_data(
    run: run_config.RunConfig, task: MultipleChoiceConfig
) -> typing.Dict[str, typing.List[race.Article]]:
    """{flag: articles} of the actions that the flags name."""
    parts = {}
    if run.do_train:
        parts["do_train"] = "train"
    if task.do_eval or run.evaluates:
        parts["do_eval"] = task.eval_part
    if task.do_predict:
        parts["do_predict"] = task.predict_part
    return {
        flag: race.read(
            os.path.join(task.data_dir, part),
            needs_answers=flag != "do_predict",
        )
        for flag, part in parts.items()
    }


def define_flags() -> None:
    """Declares the flags of this script."""
    run_config.define_flags(
        MultipleChoiceConfig,
        {
            "learning_rate": 1e-5,
            "train_batch_size": 16,
            "weight_decay_rate": 0.1,
        },
        num_train_epochs=4.0,
    )


def main(_):
    run, task, options = run_config.from_flags(
        MultipleChoiceConfig, flags.FLAGS
    )
    if run.pack_sequences:
        raise errors.UserError(
            "--pack_sequences: not for multiple choice, where the options of a "
            "question are scored together; omit the flag"
        )
    setup = finetuning.begin(run, task, "cls/multiple_choice/")
    warm_start.check(
        setup.source, setup.config, ["multiple_choice"], "cls/multiple_choice/"
    )
    # All input is read and checked before anything is written.
    data = read_data(run, task)
    device = environment.create(options)
    train = None
    if run.do_train:
        train = sequences("train", data["do_train"], setup, is_training=True)
    tuning = finetuning.FineTuning(
        build_model(setup, device),
        train,
        {"architectures": ["RobertaForMultipleChoice"]},
    )
    if run.evaluates:
        questions = questions_of(data["do_eval"])
        tuning.score_with(
            sequences(task.eval_part, data["do_eval"], setup),
            lambda outputs: evaluation_results(questions, outputs["outputs"]),
            "accuracy",
        )
    tuning.train()
    if task.do_eval and device.rank == 0:
        evaluate_and_predict(tuning, task.eval_part, data["do_eval"], True)
    if task.do_predict and device.rank == 0:
        evaluate_and_predict(
            tuning, task.predict_part, data["do_predict"], False
        )


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
