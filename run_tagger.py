# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes RoBERTa to label words: entities, parts of speech.

    python run_tagger.py --train_file=train.txt --eval_file=valid.txt \
      --predict_file=test.txt --bert_config_file=config.json \
      --vocab_file=vocab.json --merges_file=merges.txt \
      --init_checkpoint=roberta.ckpt --do_train=True --do_eval=True \
      --do_predict=True --output_dir=output

Files have one word a line and a blank line after each sentence, as CoNLL's
shared tasks have them.
"""

import dataclasses
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf
from absl import flags

import environment
import modeling
from common import command_line, errors, files
from tasks import classification, conll, finetuning, task_scores, word_windows
from training import eval_results, run_config, warm_start

FLAGS = flags.FLAGS
# At tokens that no label belongs to.
IGNORED = -1


@dataclasses.dataclass(frozen=True)
class TaggerConfig(finetuning.TaskConfig):
    """Flags of this script, those of every fine-tuning script among them."""

    train_file: str = command_line.flag("", "Labelled words to train on.")
    do_eval: bool = command_line.flag(False, "Whether to score eval_file.")
    eval_file: str = command_line.flag("", "Labelled words to score.")
    predict_file: str = command_line.flag("", "Words to label.")
    token_column: int = command_line.flag(
        0,
        "The column of the words, counted from 0, or from the end: -1 is "
        "the last one.",
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


class Data(typing.NamedTuple):
    """Lists of conll.Sentence; empty where nothing is asked for."""

    train: list
    evaluation: list
    predict: list


def read_data(run, task):
    """The Data that the flags ask for.

    Raises:
      errors.UserError: a file is not given, or is none of labelled words.
    """

    def read(is_wanted, flag, label_column):
        if not is_wanted:
            return []
        path = getattr(task, flag)
        if not path:
            raise errors.UserError(
                f"--{flag} is not given; name a file of one word a line"
            )
        sentences, converted = conll.to_bio(
            conll.read(
                path, token_column=task.token_column, label_column=label_column
            )
        )
        if converted:
            tf.logging.info("%s", converted)
        return sentences

    return Data(
        read(run.do_train, "train_file", task.label_column),
        read(task.do_eval, "eval_file", task.label_column),
        read(task.do_predict, "predict_file", None),
    )


def decide_labels(run, task, train):
    """Names of a run's labels, in the order of their ids.

    Those of a checkpoint stay; only a new run's are found in its data.

    Raises:
      errors.UserError: there are none, or not those that are wanted.
    """
    wanted = classification.named_labels(task.labels) if task.labels else ()
    values = finetuning.trained_config(run)
    saved = values and classification.labels_of_config(values)
    if not saved or saved.is_regression:
        if not wanted and not train:
            raise errors.UserError(
                f"{run.bert_config_file} names no labels (id2label); give them "
                "with --labels, in the order of their ids"
            )
        return wanted or conll.labels_in(train)
    is_unnamed = all(name.startswith("LABEL_") for name in saved.names)
    if wanted and is_unnamed and len(wanted) == len(saved.names):
        return wanted
    if wanted not in ((), saved.names):
        raise errors.UserError(
            f"the checkpoint tells apart {', '.join(saved.names)}, but "
            f"--labels are {', '.join(wanted)}; train another one in another "
            "--output_dir"
        )
    return saved.names


def config_values(names):
    """What Hugging Face's config.json says of labels."""
    return {
        "architectures": ["RobertaForTokenClassification"],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def build_model(config, run, labels, device, chance=None):
    """The finetuning.Model: cross entropy over the labelled tokens.

    Args:
      labels: how many there are.

    Source: Devlin et al. 2018, section 5.3 (first tokens).
    """

    def outputs(features, dropout_seed=None, **options):
        model = modeling.RobertaModel(
            config,
            input_ids=features["input_ids"],
            kernels=device.kernels,
            is_training=dropout_seed is not None,
            dropout_seed=dropout_seed,
            **options,
        )
        return modeling.tagging_logits(
            config,
            model.get_sequence_output(),
            labels,
            device.kernels,
            dropout_seed=dropout_seed,
        )

    def losses(features, is_training, dropout_seed):
        drops = is_training and not run.npu_bert_debug
        logits = outputs(
            features,
            dropout_seed if drops else None,
            recompute_layers=run.recompute_layers,
        )  # [B, S, L]
        label, counts = features["label"], labelled(features)  # [B, S]
        # A product, for shapes that are known beforehand.
        entropies = counts * tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.maximum(label, 0), logits=logits
        )
        right = tf.equal(tf.argmax(logits, 2, output_type=tf.int32), label)
        return {
            "loss": tf.reduce_sum(entropies),
            "accuracy": tf.reduce_sum(tf.cast(right, tf.float32)),
        }

    return finetuning.Model(
        losses,
        lambda features: {"outputs": outputs(features)},
        weight=lambda features: tf.reduce_sum(labelled(features)),
        chance=chance,
    )


def labelled(features):
    """float32 [B, S]: 1 at tokens with a label, else 0."""
    return tf.cast(tf.not_equal(features["label"], IGNORED), tf.float32)


def sequences(name, encoded, ids=None):
    """finetuning.Sequences of windows, with their words' labels if given.

    Args:
      encoded: word_windows.Encoded.
      ids: int32 [words].
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
        first = window.first_word
        labels[window.places] = ids[first : first + len(window.places)]
        return labels

    return finetuning.Sequences(
        lambda index: windows[index].ids,
        np.array([len(window.ids) for window in windows]),
        token_values={} if ids is None else {"label": (labels_of, IGNORED)},
    )


def encode(sentences, tokenizer, run, task):
    return word_windows.encode(
        sentences, tokenizer, run.max_seq_length, num_workers=task.num_workers
    )


def predict(tuning, encoded, outputs):
    """The model's outputs for all words: float32 [words, outputs]."""
    windows = encoded.windows
    words = windows[-1].first_word + len(windows[-1].places)
    found = np.zeros([words, outputs], np.float32)
    for index, values in tuning.predict(
        sequences("evaluation and prediction", encoded)
    ):
        window = windows[index]
        first = window.first_word
        found[first : first + len(window.places)] = values["outputs"][
            window.places
        ]
    return found


def with_labels(sentences, names, outputs):
    """Sentences with the best label of each word; of entities in BIO.

    Args:
      sentences: list of conll.Sentence.
      names: of the labels.
      outputs: float [words, L].
    """
    best = [names[place] for place in outputs.argmax(axis=1)]
    has_entities = conll.has_entities(names)
    found, first = [], 0
    for sentence in sentences:
        labels = best[first : first + len(sentence.words)]
        first += len(labels)
        found.append(
            sentence._replace(
                labels=tuple(conll.bio(labels) if has_entities else labels)
            )
        )
    return found


def evaluation_results(names, sentences, outputs):
    """{"accuracy", "loss", "words", "sentences"} and the scores of entities.

    Args:
      names: of the labels.
      sentences: list of conll.Sentence, labelled.
      outputs: float [words, L].
    """
    expected, predicted = (
        [one.labels for one in each]
        for each in (sentences, with_labels(sentences, names, outputs))
    )
    pairs = [pair for both in zip(expected, predicted) for pair in zip(*both)]
    results = {
        "accuracy": float(np.mean([label == other for label, other in pairs])),
        "loss": classification.mean_cross_entropy(
            outputs, conll.label_ids(sentences, names)
        ),
        "words": len(pairs),
        "sentences": len(sentences),
    }
    if conll.has_entities(names):
        results.update(
            task_scores.entity_scores(
                *(
                    [list(labels) for labels in each]
                    for each in (expected, predicted)
                )
            )
        )
    return results


def evaluate_and_predict(tuning, data, names, encoded, run):
    """eval_results.txt and predictions.txt, of what is asked for.

    Args:
      encoded: word_windows.Encoded of both files' sentences.
    """
    outputs = predict(tuning, encoded, len(names))
    scored = sum(len(sentence.words) for sentence in data.evaluation)
    if data.evaluation:
        results = evaluation_results(names, data.evaluation, outputs[:scored])
        eval_results.report_results(run, results)
    if data.predict:
        path = os.path.join(run.output_dir, "predictions.txt")
        files.write_text(
            path,
            conll.text_of(with_labels(data.predict, names, outputs[scored:])),
        )
        tf.logging.info("%d labelled words in %s", len(outputs) - scored, path)


def main(_):
    run = command_line.build(run_config.RunConfig, FLAGS)
    task = command_line.build(TaggerConfig, FLAGS)
    options = command_line.build(environment.DeviceConfig, FLAGS)
    config, tokenizer = finetuning.begin(run, task, others=("do_eval",))
    # All input is read, and refused, before anything is written.
    data = read_data(run, task)
    names = decide_labels(run, task, data.train)
    train_ids = conll.label_ids(data.train, names)
    conll.label_ids(data.evaluation, names)
    if task.do_eval and conll.has_entities(names):
        task_scores.check_entities()
    warm_start.check(
        run,
        config,
        ["tagging"],
        finetuning.required(run, "cls/tagging/"),
        labels=len(names),
    )
    train_windows, others = (
        encode(each, tokenizer, run, task) if each else None
        for each in (data.train, data.evaluation + data.predict)
    )
    device = environment.create(options)
    train = chance = None
    if run.do_train:
        train = sequences("training", train_windows, train_ids)
        chance = classification.chance_loss(
            classification.Labels(names), train_ids
        )
    tuning = finetuning.FineTuning(
        build_model(config, run, len(names), device, chance),
        train,
        config=config,
        run=run,
        task=task,
        device=device,
        head="tagging",
        config_values=config_values(names),
    )
    if run.do_train:
        tuning.train()
    if others and device.rank == 0:
        evaluate_and_predict(tuning, data, names, others, run)
    device.close()


if __name__ == "__main__":
    command_line.define(
        run_config.RunConfig, learning_rate=2e-5, train_batch_size=16
    )
    command_line.define(TaggerConfig, num_train_epochs=3.0)
    command_line.define(environment.DeviceConfig)
    command_line.run(main)
