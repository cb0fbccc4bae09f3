# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes RoBERTa on multiple-choice questions about articles: RACE.

    python run_multiple_choice.py --data_dir=RACE \
      --bert_config_file=config.json --vocab_file=vocab.json \
      --merges_file=merges.txt --init_checkpoint=roberta.ckpt \
      --do_train=True --do_eval=True --do_predict=True --output_dir=output
"""

import dataclasses
import math
import os

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

import environment
import modeling
from common import command_line, errors, files
from tasks import classification, finetuning, race
from training import eval_results, run_config, warm_start

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class MultipleChoiceConfig(finetuning.TaskConfig):
    """Flags of this script, those of every fine-tuning script among them."""

    data_dir: str = command_line.flag(
        "",
        "RACE's directory, with train, dev and test, each of them middle "
        "and high.",
    )
    do_eval: bool = command_line.flag(
        False, "Whether to score the questions of eval_part."
    )
    eval_part: str = command_line.flag(
        "dev", "The directory in data_dir to score."
    )
    predict_part: str = command_line.flag(
        "test", "The directory in data_dir to answer."
    )

    def __post_init__(self):
        if not self.data_dir:
            raise errors.UserError(
                "--data_dir is not given; name RACE's directory, which holds "
                "train, dev and test"
            )


def build_model(config, run, device):
    """The finetuning.Model: cross entropy over the options.

    Source: Liu et al. 2019, section 5.3.
    """

    def outputs(features, dropout_seed=None, **options):
        ids = features["input_ids"]  # [B, C, S]
        model = modeling.RobertaModel(
            config,
            input_ids=tf.reshape(ids, _flat_shape(ids)),
            kernels=device.kernels,
            is_training=dropout_seed is not None,
            dropout_seed=dropout_seed,
            **options,
        )
        return modeling.multiple_choice_logits(
            config,
            model.get_sequence_output(),
            race.CHOICES,
            device.kernels,
            dropout_seed=dropout_seed,
        )

    def losses(features, is_training, dropout_seed):
        drops = is_training and not run.npu_bert_debug
        logits = outputs(
            features,
            dropout_seed if drops else None,
            recompute_layers=run.recompute_layers,
        )
        label = features["label"]
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=label, logits=logits
        )
        right = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), label)
        return {
            "loss": tf.reduce_sum(entropies),
            "accuracy": tf.reduce_sum(tf.cast(right, tf.float32)),
        }

    return finetuning.Model(
        losses,
        lambda features: {"outputs": outputs(features)},
        chance=math.log(race.CHOICES),
    )


def _flat_shape(ids):
    """[B * C, S] of [B, C, S], static where it is known."""
    rows, _, length = ids.shape.as_list()
    return [
        -1 if rows is None else rows * race.CHOICES,
        tf.shape(ids)[2] if length is None else length,
    ]


def questions_of(articles):
    """All questions, in their order."""
    return [question for article in articles for question in article.questions]


def sequences(part, articles, tokenizer, run, task, is_training=False):
    """finetuning.Sequences of all questions, with their answers to train."""
    encoded = race.Sequences(
        articles, tokenizer, run.max_seq_length, num_workers=task.num_workers
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
    values = {}
    if is_training:
        values["label"] = np.array(
            [question.answer for question in questions_of(articles)], np.int32
        )
    return finetuning.Sequences(
        encoded.__getitem__, encoded.lengths, values, choices=race.CHOICES
    )


def predict(tuning, part, articles, tokenizer, run, task):
    """Scores of the options of all questions: float32 [n, CHOICES]."""
    found = np.zeros([len(questions_of(articles)), race.CHOICES], np.float32)
    for index, values in tuning.predict(
        sequences(part, articles, tokenizer, run, task)
    ):
        found[index] = values["outputs"]
    return found


def evaluation_results(questions, outputs):
    """{"accuracy", "accuracy_middle", "accuracy_high", "loss", "questions"}.

    Args:
      questions: list of race.Question.
      outputs: float [n, CHOICES].
    """
    answers = np.array([question.answer for question in questions])
    right = outputs.argmax(axis=1) == answers
    results = {
        "accuracy": float(right.mean()),
        "questions": len(questions),
        "loss": classification.mean_cross_entropy(outputs, answers),
    }
    levels = np.array([question.level for question in questions])
    results.update(
        {
            "accuracy_" + level: float(right[levels == level].mean())
            for level in race.LEVELS
            if (levels == level).any()
        }
    )
    return results


def predictions_of(questions, outputs):
    """{question id: {"answer": letter, "probabilities": {letter: share}}}."""
    return {
        question.question_id: {
            "answer": race.letter(row.argmax()),
            "probabilities": {
                race.letter(place): round(float(share), 6)
                for place, share in enumerate(row)
            },
        }
        for question, row in zip(
            questions, classification.probabilities(outputs)
        )
    }


def evaluate(tuning, articles, tokenizer, run, task):
    """Scores eval_part: eval_results.txt, a log line, scalars."""
    outputs = predict(tuning, task.eval_part, articles, tokenizer, run, task)
    results = evaluation_results(questions_of(articles), outputs)
    eval_results.report_results(run, results)


def answer(tuning, articles, tokenizer, run, task):
    """Writes predictions.json."""
    questions = questions_of(articles)
    outputs = predict(tuning, task.predict_part, articles, tokenizer, run, task)
    path = os.path.join(run.output_dir, "predictions.json")
    files.write_json(path, predictions_of(questions, outputs))
    tf.logging.info("%d answers in %s", len(questions), path)


def read_data(run, task):
    """{flag's name: articles} of what the flags ask for."""
    wanted = {
        "do_train": (run.do_train, "train"),
        "do_eval": (task.do_eval, task.eval_part),
        "do_predict": (task.do_predict, task.predict_part),
    }
    return {
        name: race.read(
            os.path.join(task.data_dir, part),
            needs_answers=name != "do_predict",
        )
        for name, (is_wanted, part) in wanted.items()
        if is_wanted
    }


def main(_):
    run = command_line.build(run_config.RunConfig, FLAGS)
    task = command_line.build(MultipleChoiceConfig, FLAGS)
    options = command_line.build(environment.DeviceConfig, FLAGS)
    config, tokenizer = finetuning.begin(run, task, others=("do_eval",))
    warm_start.check(
        run,
        config,
        ["multiple_choice"],
        finetuning.required(run, "cls/multiple_choice/"),
    )
    # All input is read, and refused, before anything is written.
    data = read_data(run, task)
    device = environment.create(options)
    train = None
    if run.do_train:
        train = sequences(
            "train", data["do_train"], tokenizer, run, task, is_training=True
        )
    tuning = finetuning.FineTuning(
        build_model(config, run, device),
        train,
        config=config,
        run=run,
        task=task,
        device=device,
        head="multiple_choice",
        config_values={"architectures": ["RobertaForMultipleChoice"]},
    )
    if run.do_train:
        tuning.train()
    if device.rank == 0:
        for name, write in (("do_eval", evaluate), ("do_predict", answer)):
            if name in data:
                write(tuning, data[name], tokenizer, run, task)
    device.close()


if __name__ == "__main__":
    command_line.define(
        run_config.RunConfig,
        learning_rate=1e-5,
        train_batch_size=16,
        weight_decay_rate=0.1,
    )
    command_line.define(MultipleChoiceConfig, num_train_epochs=4.0)
    command_line.define(environment.DeviceConfig)
    command_line.run(main)
