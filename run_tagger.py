# SPDX-License-Identifier: Apache-2.0
r"""Fine-tunes RoBERTa to label words: entities, parts of speech.

    python run_tagger.py --train_file=train.txt --eval_file=valid.txt \
      --predict_file=test.txt --bert_config_file=config.json \
      --vocab_file=vocab.json --merges_file=merges.txt \
      --init_checkpoint=roberta.ckpt --do_train=True --do_eval=True \
      --do_predict=True --output_dir=output

Files have one word per line and a blank line after each sentence, as in CoNLL's
shared tasks.
"""

import common.startup

import dataclasses
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

import device as devices
import environment
import modeling
from common import command_line, errors, files
from tasks import classification, conll, finetuning, sequences, task_scores
from training import eval_results, run_config, warm_start

IGNORED = -1  # at tokens without a label


@dataclasses.dataclass(frozen=True)
class TaggerConfig(finetuning.TaskConfig):
    """Flags of this script, including those of every fine-tuning script."""

    train_file: str = command_line.flag(
        "", "Labelled words to train on.", group=command_line.FIRST
    )
    do_eval: bool = command_line.flag(False, "Whether to score eval_file.")
    eval_file: str = command_line.flag("", "Labelled words to score.")
    predict_file: str = command_line.flag("", "Words to label.")
    token_column: typing.Optional[int] = command_line.flag(
        None,
        "The column of the words, counted from 0, or from the end: -1 is "
        "the last one. Default: 0, in CoNLL-U 1.",
        group=command_line.DATA,
    )
    label_column: int = command_line.flag(
        -1,
        "The column of the labels, counted likewise; predict_file needs none.",
    )
    labels: str = command_line.flag(
        "",
        "All labels, comma separated, in the order of their ids. Default: "
        "the checkpoint's, else those of train_file.",
    )


_Sentences = typing.List[conll.Sentence]


class Data(typing.NamedTuple):
    """Sentences for training, evaluation and prediction; often empty."""

    train: _Sentences
    evaluation: _Sentences
    predict: _Sentences


def read_data(run: run_config.RunConfig, task: TaggerConfig) -> Data:
    """Reads the files that the flags name.

    Raises:
      errors.UserError: a file is not given, or not in the format.
    """
    return Data(
        _read(task, "train_file", task.label_column) if run.do_train else [],
        _read(task, "eval_file", task.label_column)
        if task.do_eval or run.evaluates
        else [],
        _read(task, "predict_file", None) if task.do_predict else [],
    )


def _read(task, flag, label_column):
    path = getattr(task, flag)
    if not path:
        raise errors.UserError(
            f"--{flag} is not given; pass a file of one word per line"
        )
    sentences, converted = conll.to_bio(
        conll.read(
            path, token_column=task.token_column, label_column=label_column
        )
    )
    if converted:
        tf.logging.info("%s: labels converted to BIO: %d", path, converted)
    return sentences


def labels_of_run(
    run: run_config.RunConfig, task: TaggerConfig, train: _Sentences
) -> classification.Labels:
    """The labels of a run.

    Raises:
      errors.UserError: the requested labels are not the checkpoint's.
    """
    requested = (
        classification.named_labels(task.labels) if task.labels else None
    )
    saved = classification.labels_of_config(finetuning.trained_config(run))
    if saved and saved.is_regression:
        saved = None
    if train and saved is None and requested is None:
        return conll.labels_in(train)
    return classification.decide_labels(
        saved, requested, finetuning.config_file(run)
    )


def build_model(
    setup: finetuning.Setup,
    device: devices.Device,
    labels: int,
    chance: typing.Optional[float] = None,
) -> finetuning.Model:
    """The model with cross entropy over the labelled tokens.

    Args:
      setup: the run.
      device: from environment.create.
      labels: how many there are.
      chance: see finetuning.Head.

    Source: Devlin et al. 2018, section 5.3 (first tokens).
    """

    def outputs(features, hidden, dropout_seed):
        logits = modeling.tagging_logits(
            setup.config,
            hidden,
            labels,
            device.kernels,
            dropout_seed=dropout_seed,
        )
        logits = finetuning.by_sequence(features, logits, device.kernels)
        return {"outputs": logits}  # [B, S, L]

    def sums(features, outputs):
        return finetuning.label_sums(outputs["outputs"], features["label"])

    def weight(features):
        return tf.reduce_sum(finetuning.labelled(features["label"]))

    head = finetuning.Head("tagging", outputs, sums, weight, chance)
    return finetuning.Model(setup, device, head)


def sequences_of(
    name: str,
    encoded: sequences.Windows,
    ids: typing.Optional[np.ndarray] = None,
) -> finetuning.Sequences:
    """Sequences of windows, with the labels of their words if given.

    Args:
      name: for the log.
      encoded: the windows.
      ids: int32 [words], labels of the words of all windows.
    """
    windows = encoded.windows
    tf.logging.info(
        "%s: words=%d windows=%d split_sentences=%d cut_words=%d",
        name,
        sum(len(window.places) for window in windows),
        len(windows),
        encoded.split_sentences,
        encoded.cut_words,
    )

    def labels_of(index):
        window = windows[index]
        labels = np.full(len(window.ids), IGNORED, np.int32)
        labels[window.places] = ids[window.words]
        return labels

    return finetuning.Sequences(
        lambda index: windows[index].ids,
        np.array([len(window.ids) for window in windows]),
        token_values={} if ids is None else {"label": (labels_of, IGNORED)},
    )


def encode(sentences: _Sentences, setup: finetuning.Setup) -> sequences.Windows:
    """The windows of sentences."""
    return sequences.encode_words(
        sentences,
        setup.tokenizer,
        setup.run.max_seq_length,
        num_workers=setup.task.num_workers,
    )


def of_words(
    encoded: sequences.Windows,
    outputs: typing.Iterable[typing.Tuple[int, np.ndarray]],
    size: int,
) -> np.ndarray:
    """The model's outputs for all words: float32 [words, size].

    Args:
      encoded: all windows.
      outputs: (index of a window, float32 [S, size]).
      size: number of labels.
    """
    windows = encoded.windows
    result = np.zeros([windows[-1].words.stop, size], np.float32)
    for index, values in outputs:
        window = windows[index]
        result[window.words] = values[window.places]
    return result


def with_labels(
    sentences: _Sentences, names: typing.Sequence[str], outputs: np.ndarray
) -> _Sentences:
    """Sentences with the best label of each word; of entities in BIO.

    Args:
      sentences: their labels are replaced.
      names: of the labels.
      outputs: float [words, L].
    """
    best = iter(outputs.argmax(axis=1))
    convert = conll.bio if conll.has_entities(names) else list
    return [
        sentence._replace(
            labels=tuple(convert(names[next(best)] for _ in sentence.words))
        )
        for sentence in sentences
    ]


def evaluation_results(
    names: typing.Sequence[str], sentences: _Sentences, outputs: np.ndarray
) -> typing.Dict[str, float]:
    """{"accuracy", "loss", "words", "sentences"} and the scores of entities.

    Args:
      names: of the labels.
      sentences: with labels.
      outputs: float [words, L].
    """
    expected = [list(s.labels) for s in sentences]
    predicted = [list(s.labels) for s in with_labels(sentences, names, outputs)]
    is_correct = np.concatenate(expected) == np.concatenate(predicted)
    results = {
        "accuracy": float(is_correct.mean()),
        "loss": classification.mean_cross_entropy(
            outputs, conll.label_ids(sentences, names)
        ),
        "words": len(is_correct),
        "sentences": len(sentences),
    }
    if conll.has_entities(names):
        results.update(task_scores.entity_scores(expected, predicted))
    return results


def evaluate_and_predict(
    tuning: finetuning.FineTuning,
    data: Data,
    names: typing.Sequence[str],
    encoded: sequences.Windows,
) -> None:
    """Writes eval_results.txt and predictions.txt, as far as requested.

    Args:
      tuning: the run.
      data: its sentences.
      names: of the labels.
      encoded: windows of the sentences for evaluation and prediction.
    """
    run = tuning.setup.run
    predicted = tuning.predict(
        sequences_of("evaluation and prediction", encoded)
    )
    outputs = of_words(
        encoded, ((i, values["outputs"]) for i, values in predicted), len(names)
    )
    evaluated = sum(len(sentence.words) for sentence in data.evaluation)
    if tuning.setup.task.do_eval:
        results = evaluation_results(
            names, data.evaluation, outputs[:evaluated]
        )
        eval_results.report_results(
            run, results, warm_start.global_step(tuning.setup.source)
        )
    if data.predict:
        path = os.path.join(run.output_dir, "predictions.txt")
        labelled = with_labels(data.predict, names, outputs[evaluated:])
        files.write_text(path, conll.text_of(labelled))
        tf.logging.info(
            "%d labelled words in %s", len(outputs) - evaluated, path
        )


def score_with(
    tuning: finetuning.FineTuning,
    sentences: _Sentences,
    names: typing.Sequence[str],
) -> None:
    """Scores while training: by F1 of entities, else by accuracy."""
    encoded = encode(sentences, tuning.setup)

    def score(outputs):
        words = of_words(encoded, enumerate(outputs["outputs"]), len(names))
        return evaluation_results(names, sentences, words)

    tuning.score_with(
        sequences_of("evaluation", encoded),
        score,
        "f1" if conll.has_entities(names) else "accuracy",
    )


def define_flags() -> None:
    """Declares the flags of this script."""
    run_config.define_flags(
        TaggerConfig,
        {"learning_rate": 2e-5, "train_batch_size": 16},
        num_train_epochs=3.0,
    )


def main(_):
    run, task, options = run_config.from_flags(TaggerConfig, flags.FLAGS)
    setup = finetuning.begin(run, task, "cls/tagging/")
    # All input is read and checked before anything is written.
    data = read_data(run, task)
    labels = labels_of_run(setup.source, task, data.train)
    names = labels.names
    train_ids = conll.label_ids(data.train, names)
    conll.label_ids(data.evaluation, names)
    if data.evaluation and conll.has_entities(names):
        task_scores.check_entities()
    warm_start.check(
        setup.source,
        setup.config,
        ["tagging"],
        "cls/tagging/",
        labels=len(names),
    )
    to_train = encode(data.train, setup)
    to_predict = encode(data.evaluation + data.predict, setup)
    device = environment.create(options)
    train = chance = None
    if run.do_train:
        train = sequences_of("training", to_train, train_ids)
        chance = classification.chance_loss(labels, train_ids)
    tuning = finetuning.FineTuning(
        build_model(setup, device, len(names), chance),
        train,
        classification.label_config("RobertaForTokenClassification", names),
        names,
    )
    if run.evaluates:
        score_with(tuning, data.evaluation, names)
    tuning.train()
    if (task.do_eval or task.do_predict) and device.rank == 0:
        evaluate_and_predict(tuning, data, names, to_predict)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
