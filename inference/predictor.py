# SPDX-License-Identifier: Apache-2.0
"""A trained model that stays loaded and answers one call after another.

    model = predictor.Predictor("output/squad_v1.1", "answer")
    model.answer("Where is Paris?", "Paris lies on the Seine.")["answer"]

TensorFlow computes a checkpoint, ONNX Runtime an .onnx file of export_model.py,
for which TensorFlow is not imported. After loading, a call costs little more
than the model's arithmetic. Threads may share a Predictor. Many inputs at
once are sorted by length and computed in batches with little padding, two at a
time; a batch changes the last bits of a result at most.
"""

import collections
import concurrent.futures
import contextvars
import dataclasses
import os
import re
import typing

import numpy as np
from absl import logging

import squad
import tokenization
from common import command_line, errors
from inference import onnx_engine, trained_model
from question_answering import squad_decoding
from tasks import classification, conll, sequences
from weights import model_directory

# Task: its head.
TASKS = {
    "fill-mask": "mlm",
    "answer": "squad",
    "classify": "classification",
    "embed": "encoder",
    "tag": "tagging",
}
MASK = tokenization.MASK
# run_squad.py's defaults: tokens of a window, and from one window to the next.
_ANSWER_LENGTH, _STRIDE = 384, 128
_LENGTH_STEP = 8  # lengths of batches
# Batches computed at once: where one waits for a thread, another goes ahead.
_AT_ONCE = 2
# Called before each batch; raises an error where nobody waits for the result.
before_batch: contextvars.ContextVar = contextvars.ContextVar(
    "before_batch", default=lambda: None
)


_ANSWER_FIELDS = {f.name: f for f in dataclasses.fields(squad.AnswerConfig)}


def _as_trained(name: str) -> typing.Any:
    """A field of squad.AnswerConfig whose default is that of training."""
    flag = _ANSWER_FIELDS[name].metadata
    text = f"{flag['help']} Default: as in training."
    return dataclasses.field(default=None, metadata=dict(flag, help=text))


@dataclasses.dataclass(frozen=True)
class Settings(trained_model.ModelConfig):
    """Flags of prediction; run_squad.py shares some of them."""

    max_query_length: typing.Optional[int] = _as_trained("max_query_length")
    n_best_size: int = command_line.flag(
        20,
        "Spans listed for each question, those that overlap among them.",
        lower=1,
    )
    num_answers: int = command_line.flag(
        5,
        "Answers given for each question: the most probable of the n_best_size "
        "spans that do not overlap.",
        lower=1,
    )
    max_answer_length: typing.Optional[int] = _as_trained("max_answer_length")
    version_2_with_negative: typing.Optional[bool] = _as_trained(
        "version_2_with_negative"
    )
    null_score_diff_threshold: typing.Optional[float] = _as_trained(
        "null_score_diff_threshold"
    )
    accelerator: str = command_line.flag(
        "auto",
        "Where to compute; auto takes a GPU, else the CPU.",
        choices=("auto", "cpu", "gpu"),
        group=command_line.DEVICES,
    )
    manual_fp16: bool = command_line.flag(False, "Compute the encoder in fp16.")
    use_bf16: bool = command_line.flag(
        False,
        "Compute in bfloat16 (TensorFlow 2.15), with float32 LayerNorm and "
        "softmax.",
    )
    predict_batch_size: int = command_line.flag(
        8, "Sequences of a batch.", lower=1, group=command_line.PREDICTION
    )
    max_seq_length: typing.Optional[int] = command_line.flag(
        None,
        "Tokens of a sequence at most. Default: as in training; without "
        "task.json 384 for answers, else what the model has positions for.",
        lower=4,
    )
    doc_stride: typing.Optional[int] = command_line.flag(
        None,
        "Tokens from one window of a long text to the next. Default: as in "
        "training; with another max_seq_length a third of it, 128 at most.",
        lower=1,
    )
    top_k: int = command_line.flag(5, "Words listed for each <mask>.", lower=1)
    label_threshold: float = command_line.flag(
        0.5,
        "Of several labels a text, the probability above which one is listed.",
        lower=0,
        upper=1,
    )
    pooling: str = command_line.flag(
        "mean",
        "The vector of a text: mean over its tokens, first (<s>), or "
        "tokens for one vector each.",
        choices=("mean", "first", "tokens"),
    )


class Predictor:
    """A model of one task; call the methods of that task."""

    def __init__(
        self, model: str, task: str, settings: typing.Optional[Settings] = None
    ):
        """Loads the tokenizer, the weights and the graph.

        Args:
          model: output_dir of a trainer, the prefix of a checkpoint, or an
            ONNX file with the task's files beside it.
          task: a key of TASKS.
          settings: Settings; None takes the defaults.

        Raises:
          errors.UserError: the model lacks the task's head or its files.
        """
        if task not in TASKS:
            raise errors.UserError(
                f"the task is {task!r}; expected one of {', '.join(TASKS)}"
            )
        settings = settings or Settings()
        self.task = task
        self.settings = settings
        session = parts = None
        if model.endswith(trained_model.ONNX):
            session = onnx_engine.load(model, settings)
            parts = onnx_engine.parts(session)
        self.model = trained_model.find(model, settings, parts)
        if session:
            onnx_engine.check_files(
                session, self.model, settings.allow_other_tokenizer
            )
        self.model.check_head(TASKS[task])
        self.tokenizer = _tokenizer(self.model)
        self._warn_of_unused()
        trained = self.model.trained_for(TASKS[task])
        self.answers = _answer_config(settings, trained)
        if self.answers.version_2_with_negative:
            self._log_threshold(settings, trained)
        self.max_length = self.model.sequence_length(
            settings.max_seq_length,
            TASKS[task],
            _ANSWER_LENGTH
            if task == "answer"
            else self.model.config.max_sequence_length,
        )
        stride = min(_STRIDE, self.max_length // 3)
        if self.max_length == trained.max_seq_length:
            stride = trained.doc_stride or stride
        self.doc_stride = settings.doc_stride or stride
        if session:
            engine = onnx_engine.Engine(session, self.model, settings.pooling)
        else:
            from inference import graphs  # needs TensorFlow

            engine = graphs.Engine(self.model, task, TASKS[task], settings)
        self.engine = engine.name
        self._engine = _Engine(
            engine, self.model.config.pad_token_id, settings.predict_batch_size
        )

    def _warn_of_unused(self):
        """Warnings of settings without an effect."""
        settings, kind = self.settings, self.model.values.get("problem_type")
        if (
            self.task == "classify"
            and settings.label_threshold != Settings.label_threshold
            and kind != classification.SEVERAL_LABELS
        ):
            logging.warning(
                "--label_threshold=%g has no effect: the model gives each text "
                "one label or number; compare its score instead",
                settings.label_threshold,
            )
        if (
            self.task == "answer"
            and settings.num_answers != Settings.num_answers
            and settings.num_answers > settings.n_best_size
        ):
            logging.warning(
                "--num_answers=%d: there are at most --n_best_size=%d; raise "
                "that too",
                settings.num_answers,
                settings.n_best_size,
            )

    def _log_threshold(self, settings, trained):
        """A warning where the answers are not those of run_squad's default."""
        threshold = self.answers.null_score_diff_threshold
        name, level = "the default", logging.INFO
        if settings.null_score_diff_threshold is not None:
            name = "--null_score_diff_threshold"
        elif trained.null_score_diff_threshold is not None:
            name = os.path.join(self.model.directory, model_directory.TASK)
            level = logging.WARNING if threshold else logging.INFO
        logging.log(
            level,
            "null_score_diff_threshold=%g, from %s; run_squad.py writes "
            "predictions.json with 0 by default",
            threshold,
            name,
        )

    def _check_task(self, task):
        if self.task != task:
            raise errors.UserError(
                f"this Predictor was created for {self.task}; create one for "
                f"{task}"
            )

    # --- answer ---------------------------------------------------------

    def answer(self, question: str, text: str) -> dict:
        """The answer to a question in a text that is not empty.

        See `answer_all`.
        """
        if not text.strip():
            raise errors.UserError("question 'question': the text is empty")
        return self.answer_all([squad.Example("question", question, text)])[0]

    def answer_all(
        self, examples: typing.Sequence[squad.Example]
    ) -> typing.List[dict]:
        """Answers to many questions.

        Args:
          examples: list of squad.Example with different ids.

        Returns:
          A list of {"id", "answer", "score": its probability among the listed
          ones, "start", "end": characters of the text, "nbest": [{"text",
          "probability", "start_logit", "end_logit", "start", "end"}],
          "answers": the num_answers best of these that do not overlap, with
          probabilities among such ones}; with version_2_with_negative also
          "null_odds", and no answer is "" with a start and end of None. An
          empty text has no answer.

        Raises:
          errors.UserError: a question is empty, or settings leave no room for
            the text.
        """
        self._check_task("answer")
        for example in examples:
            if not example.question.strip():
                raise errors.UserError(
                    f"question {example.question_id!r}: the question is empty"
                )
        options = self.answers
        features = list(
            squad.convert_examples_to_features(
                examples,
                self.tokenizer,
                self.max_length,
                self.doc_stride,
                options.max_query_length,
                is_training=False,
            )
        )
        results, answerable = self._span_logits(features)
        outputs = squad.decode(
            examples,
            features,
            results,
            options.n_best_size,
            options.max_answer_length,
            options.version_2_with_negative,
            options.null_score_diff_threshold,
            answerable_logits=answerable,
            with_offsets=True,
        )
        return [
            _answer(example.question_id, *outputs, self.settings.num_answers)
            for example in examples
        ]

    def _span_logits(self, features):
        """({unique_id: (start, end)}, {unique_id: answerable} or None)."""
        rows = self._engine.run(
            [feature.length for feature in features],
            lambda index: features[index].input_ids,
        )
        results = {
            index: (row["start_logits"], row["end_logits"])
            for index, row in enumerate(rows)
        }
        if not self.answers.version_2_with_negative or (
            "answerable" not in self.model.parts
        ):
            return results, None
        return results, {
            index: row["answerable_logits"] for index, row in enumerate(rows)
        }

    # --- fill-mask ------------------------------------------------------

    def fill_mask(self, text: str, top_k: typing.Optional[int] = None) -> dict:
        """The words for each <mask> of a text; see `fill_mask_all`."""
        return self.fill_mask_all([text], top_k)[0]

    def fill_mask_all(
        self, texts: typing.Sequence[str], top_k: typing.Optional[int] = None
    ) -> typing.List[dict]:
        """The most probable words for each <mask> of many texts.

        A space before `<mask>` is part of the word, as RoBERTa reads it.

        Args:
          texts: list of str.
          top_k: words per mask; None takes settings.top_k.

        Returns:
          A list of {"filled": the text with the best word for each mask,
          "masks": [[{"word", "token", "score": probability}, ...], ...]}.

        Raises:
          errors.UserError: a text has no <mask>, or is too long.
        """
        self._check_task("fill-mask")
        encoded = [self._encode_masked(text) for text in texts]
        count = min(top_k or self.settings.top_k, self.tokenizer.vocab_size)
        results: typing.List[dict] = [{}] * len(texts)
        for indices, ids in self._engine.batches(
            list(map(len, encoded)), encoded.__getitem__
        ):
            rows, columns = np.nonzero(ids == self.tokenizer.mask_id)
            best = self._engine.call(
                ids, positions=rows * ids.shape[1] + columns, top_k=count
            )
            for row, index in enumerate(indices):
                masks = rows == row
                results[index] = self._filled(
                    encoded[index],
                    best["ids"][masks],
                    best["log_probabilities"][masks],
                )
        return results

    def _encode_masked(self, text):
        parts = text.split(MASK)
        if len(parts) == 1:
            raise errors.UserError(
                f"{text!r:.60} has no {MASK}; write it in place of a word"
            )
        ids = []
        for part in parts[:-1]:
            ids += self.tokenizer.encode(part.rstrip())
            ids.append(self.tokenizer.mask_id)
        ids += self.tokenizer.encode(parts[-1])
        if len(ids) + 2 > self.max_length:
            raise errors.UserError(
                f"{text!r:.60}... has {len(ids) + 2} tokens with <s> and </s>, "
                f"more than {self.max_length}; shorten it"
            )
        return [self.tokenizer.bos_id] + ids + [self.tokenizer.eos_id]

    def _filled(self, sequence, ids, log_probabilities):
        masks = [
            [
                {
                    "word": self.tokenizer.decode([number]).strip(),
                    "token": self.tokenizer.convert_ids_to_tokens(number),
                    "score": float(np.exp(score)),
                }
                for number, score in zip(*pair)
            ]
            for pair in zip(ids.tolist(), log_probabilities)
        ]
        best = iter(ids[:, 0].tolist())
        filled = [
            next(best) if number == self.tokenizer.mask_id else number
            for number in sequence[1:-1]
        ]
        return {"filled": self.tokenizer.decode(filled), "masks": masks}

    # --- classify -------------------------------------------------------

    def classify(self, text: str, text_b: typing.Optional[str] = None) -> dict:
        """The label of a text or a pair; see `classify_all`."""
        return self.classify_all([(text, text_b)])[0]

    def classify_all(
        self, pairs: typing.Sequence[typing.Tuple[str, typing.Optional[str]]]
    ) -> typing.List[dict]:
        """Labels of many texts or pairs.

        Args:
          pairs: list of (text, second text or None).

        Returns:
          A list of {"label", "score": its probability, "scores": {label:
          probability}}; of a regression {"value": float}; of several labels a
          text (problem_type multi_label_classification) {"labels": those above
          settings.label_threshold, "scores"}. "truncated" is True where a text
          was cut off.
        """
        self._check_task("classify")
        return [
            dict(
                self._label(output["logits"].astype(np.float64)),
                truncated=truncated,
            )
            for output, _, truncated in self._run_pairs(pairs)
        ]

    def _run_pairs(self, pairs):
        """[(outputs, int32 [T] ids, whether texts were cut)] of each pair."""
        encoded = [
            sequences.encode_pair(*pair, self.tokenizer, self.max_length)
            for pair in pairs
        ]
        outputs = self._engine.run(
            [len(ids) for ids, _ in encoded], lambda index: encoded[index][0]
        )
        return [
            (output, ids, cut_tokens > 0)
            for output, (ids, cut_tokens) in zip(outputs, encoded)
        ]

    def _label(self, logits):
        kind = self.model.values.get("problem_type")
        names = self.model.labels(len(logits))
        if kind == classification.SEVERAL_LABELS:
            scores = classification.sigmoid(logits).tolist()
            return {
                "labels": [
                    name
                    for name, score in zip(names, scores)
                    if score > self.settings.label_threshold
                ],
                "scores": dict(zip(names, scores)),
            }
        if kind == classification.REGRESSION or len(logits) == 1:
            values = logits.tolist()
            return {"value": values[0] if len(values) == 1 else values}
        exponentials = np.exp(logits - logits.max())
        scores = (exponentials / exponentials.sum()).tolist()
        best = int(np.argmax(logits))
        return {
            "label": names[best],
            "score": scores[best],
            "scores": dict(zip(names, scores)),
        }

    # --- tag ------------------------------------------------------------

    def tag(self, text: typing.Union[str, typing.Sequence[str]]) -> dict:
        """The labels of a text's words; see `tag_all`."""
        return self.tag_all([text])[0]

    def tag_all(
        self, texts: typing.Sequence[typing.Union[str, typing.Sequence[str]]]
    ) -> typing.List[dict]:
        """Labels of the words of many texts, as run_tagger.py predicts them.

        Args:
          texts: list of str, which `words_in` cuts into words, or of lists of
            words.

        Returns:
          A list of {"words": [{"word", "start", "end": characters of the text,
          or of the words joined by one space, "label", "score": its
          probability}]}; of a model of entities also "entities": [{"type",
          "text", "start", "end", "score": mean of its words'}].

        Raises:
          errors.UserError: a text has no word.
        """
        self._check_task("tag")
        if not texts:
            return []
        spans = [
            words_in(text) if isinstance(text, str) else _joined_spans(text)
            for text in texts
        ]
        texts = [t if isinstance(t, str) else " ".join(t) for t in texts]
        sentences = [
            conll.Sentence(
                f"text {number}",
                [1] * len(parts),
                tuple(text[start:end] for start, end in parts),
                (),
            )
            for number, (text, parts) in enumerate(zip(texts, spans), 1)
        ]
        if not all(spans):
            empty = sentences[spans.index([])].path
            raise errors.UserError(f"{empty} has no word; pass one with words")
        windows = sequences.encode_words(
            sentences, self.tokenizer, self.max_length, num_workers=1
        ).windows
        outputs = self._engine.run(
            [len(window.ids) for window in windows],
            lambda index: windows[index].ids,
        )
        logits = np.concatenate(
            [o["logits"][w.places] for o, w in zip(outputs, windows)]
        ).astype(np.float64)
        ends = np.cumsum([len(parts) for parts in spans])[:-1]
        names = self.model.labels(logits.shape[1])
        return [
            _tagged(text, parts, names, rows)
            for text, parts, rows in zip(texts, spans, np.split(logits, ends))
        ]

    # --- embed ----------------------------------------------------------

    def embed(self, text: str) -> np.ndarray:
        """The vector of a text, float32 [H]; see `embed_all`."""
        return self.embed_all([text])[0]["vectors"]

    def embed_all(self, texts: typing.Sequence[str]) -> typing.List[dict]:
        """The last layer's vectors of many texts.

        Returns:
          A list of {"vectors": float32 [H], or [tokens, H] where pooling is
          "tokens"; "tokens": list of str, <s> and </s> among them;
          "truncated": whether the text was cut off}.

        Source of "mean": the mean over all tokens but padding, as
        sentence-transformers' Pooling.
        """
        self._check_task("embed")
        is_padded = self.settings.pooling == "tokens"
        return [
            {
                "vectors": output["vectors"][: len(ids)]
                if is_padded
                else output["vectors"],
                "truncated": truncated,
                "tokens": self.tokenizer.convert_ids_to_tokens(ids),
            }
            for output, ids, truncated in self._run_pairs(
                [(text, None) for text in texts]
            )
        ]


# Characters that are words of their own, as data sets of Chinese have them.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}](?:[^\s{_CJK}]*[^\W{_CJK}])?|\S")


def words_in(text: str) -> typing.List[typing.Tuple[int, int]]:
    """(start, end) of the words of a text, in characters.

    White space separates words; a mark at the edge of a word is a word of its
    own, as in CoNLL's data, and so is each Chinese or Japanese character.

    >>> [text[a:b] for text in ["(Don't!) 京都"] for a, b in words_in(text)]
    ['(', "Don't", '!', ')', '京', '都']
    """
    return [match.span() for match in _WORD.finditer(text)]


def _joined_spans(words):
    ends = np.cumsum([len(word) + 1 for word in words], dtype=int) - 1
    return [(end - len(word), end) for word, end in zip(words, ends.tolist())]


def _tagged(text, spans, names, logits):
    """The result of one text for `tag_all`; logits are [words, labels]."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (exponentials.max(axis=1) / exponentials.sum(axis=1)).tolist()
    labels = [names[best] for best in logits.argmax(axis=1)]
    has_entities = conll.has_entities(names) and all(
        map(conll.is_of_entity, names)
    )
    labels = conll.bio(labels) if has_entities else labels
    result = {
        "words": [
            {
                "word": text[start:end],
                "start": start,
                "end": end,
                "label": label,
                "score": score,
            }
            for (start, end), label, score in zip(spans, labels, scores)
        ]
    }
    if has_entities:
        result["entities"] = [
            {
                "type": kind,
                "text": text[spans[first][0] : spans[end - 1][1]],
                "start": spans[first][0],
                "end": spans[end - 1][1],
                "score": float(np.mean(scores[first:end])),
            }
            for kind, first, end in conll.entities(labels)
        ]
    return result


def _answer(name, predictions, nbest, null_odds, num_answers):
    entry = next(
        (entry for entry in nbest[name] if entry["text"] == predictions[name]),
        {"probability": None, "start": None, "end": None},
    )
    result = {
        "id": name,
        "answer": predictions[name],
        "score": entry["probability"],
        "start": entry["start"],
        "end": entry["end"],
        "answers": squad_decoding.distinct_answers(nbest[name], num_answers),
        "nbest": nbest[name],
    }
    if name in null_odds:
        result["null_odds"] = null_odds[name]
    return result


def _tokenizer(model):
    for name in ("vocab_file", "merges_file"):
        if not getattr(model.tokenizer, name):
            raise errors.UserError(
                f"{model.checkpoint}: no tokenizer files beside it "
                f"(--{name} is missing); pass --vocab_file and --merges_file"
            )
    return tokenization.RobertaTokenizer(*model.tokenizer)


def _answer_config(
    settings: Settings, trained: model_directory.Task
) -> squad.AnswerConfig:
    """The flags, else what the model was trained with, else the defaults."""
    flags = {k: v for k, v in vars(settings).items() if v is not None}
    values = {**trained.values(), **flags}
    squad.warn_if_other_version(
        trained.version_2_with_negative, settings.version_2_with_negative
    )
    return squad.AnswerConfig(
        **{name: values[name] for name in _ANSWER_FIELDS if name in values}
    )


class _Engine:
    """Runs an engine on batches of similar lengths."""

    def __init__(self, engine, pad_token_id, batch_size):
        self._engine = engine
        self._pad_token_id = pad_token_id
        self._batch_size = batch_size

    def batches(self, lengths, sequence):
        """Yields (indices, input_ids int32 [B, S]), longest ones first.

        Args:
          lengths: tokens of each sequence.
          sequence: function of an index, the ids of that sequence.
        """
        order = np.argsort(-np.array(lengths), kind="stable")
        for first in range(0, len(order), self._batch_size):
            indices = order[first : first + self._batch_size].tolist()
            longest = -(-lengths[indices[0]] // _LENGTH_STEP) * _LENGTH_STEP
            ids = np.full([len(indices), longest], self._pad_token_id, np.int32)
            for row, index in zip(ids, indices):
                row[: lengths[index]] = sequence(index)
            yield indices, ids

    def call(self, input_ids, **inputs):
        """{name: array} of one batch."""
        before_batch.get()()
        return self._engine.call(input_ids, **inputs)

    def run(self, lengths, sequence):
        """{name: array} of each sequence, in their order; see `batches`."""
        results = [None] * len(lengths)

        def keep(indices, call):
            for row, index in enumerate(indices):
                results[index] = {
                    name: value[row] for name, value in call.result().items()
                }

        calls = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            for indices, ids in self.batches(lengths, sequence):
                context = contextvars.copy_context()
                calls.append(
                    (indices, pool.submit(context.run, self.call, ids))
                )
                if len(calls) > _AT_ONCE:
                    keep(*calls.popleft())
            for indices, call in calls:
                keep(indices, call)
        return results
