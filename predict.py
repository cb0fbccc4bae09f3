# SPDX-License-Identifier: Apache-2.0
r"""Answers with a trained model: one input, a file of them, or a prompt.

    python predict.py answer --model=output/squad_v1.1 \
      --question="Where is Paris?" --text="Paris lies on the Seine."
    python predict.py fill-mask --model=output/pretraining \
      --input_file=texts.txt --output_file=filled.jsonl
    python predict.py classify --model=output/sentiment

The tasks are answer, fill-mask, classify, embed and tag. Without --text and
--input_file it prompts for inputs until they end (Ctrl-D).
"""

import common.startup

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import sys
import typing

import numpy as np
import tqdm
from absl import flags, logging

import squad
from common import command_line, errors, files
from inference import predictor
from tasks import conll, table_files
from training import logs

# Batches that are computed between two writes.
_BATCHES = 64


@dataclasses.dataclass(frozen=True)
class PredictConfig(table_files.ColumnConfig):
    """Flags of this script alone, and the columns of tables."""

    text: str = command_line.flag("", "The text.", group=command_line.FIRST)
    text_b: str = command_line.flag("", "classify: the second text of a pair.")
    question: str = command_line.flag("", "answer: the question.")
    input_file: str = command_line.flag(
        "",
        "Inputs: one text per line, or a table (.csv, .tsv, .jsonl) with "
        "columns text, text_b or question and context, and id; answer takes "
        "SQuAD's JSON too, tag words in CoNLL's form (.conll, .conllu).",
    )
    output_file: str = command_line.flag(
        "",
        "Where results go, as JSON lines; to a name in .csv or .tsv as a "
        "table; answers to a name in .json as {id: answer}; vectors to a .npy "
        "with an index beside it. Default: standard output.",
    )
    token_column: typing.Optional[int] = command_line.flag(
        None,
        "tag: the input file has one word per line, in this column from 0.",
        group=command_line.DATA,
    )

    def __post_init__(self):
        if self.input_file and (self.text or self.question):
            raise errors.UserError(
                "--input_file and --text or --question are given; pass one "
                "input or a file of inputs"
            )
        if self.output_file and not (self.input_file or self.text):
            raise errors.UserError(
                "--output_file is given without an input; pass --input_file "
                "or --text"
            )


class Item(typing.NamedTuple):
    """One input; parts that a task does not use are empty."""

    name: str
    text: str
    text_b: typing.Optional[str] = None
    question: str = ""
    words: typing.Tuple[str, ...] = ()


# --- Input ------------------------------------------------------------------


def read_items(
    task: str,
    path: str,
    version_2_with_negative: bool,
    options: "PredictConfig",
) -> typing.List[Item]:
    """The Items of a file.

    Args:
      task: a key of predictor.TASKS.
      path: a table (.csv, .tsv, .jsonl) by its columns, SQuAD's JSON for
        answer, words in CoNLL's form for tag, else one text per line.
      version_2_with_negative: whether questions may have no answer.
      options: names of columns.

    Raises:
      errors.UserError: names the file and the line.
    """
    ending = table_files.ending(path)
    if task == "answer" and ending not in table_files.ENDINGS[:3]:
        examples = squad.read_examples(path, False, version_2_with_negative)
        return [
            Item(e.question_id, e.context, None, e.question) for e in examples
        ]
    if task == "tag" and (
        options.token_column is not None or ending in (".conll", ".conllu")
    ):
        sentences = conll.read(path, token_column=options.token_column)
        return [
            Item(str(number), " ".join(s.words), words=s.words)
            for number, s in enumerate(sentences, 1)
        ]
    if ending in table_files.ENDINGS:
        items = _items_of_table(task, path, options)
    else:
        with table_files.open_text(path, newline="\n") as stream:
            lines = [line.rstrip("\r\n") for line in stream]
        items = [
            Item(str(number), line)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    if not items:
        raise errors.UserError(f"{path}: no input; expected one text per line")
    ((name, count),) = collections.Counter(i.name for i in items).most_common(1)
    if count > 1:
        raise errors.UserError(
            f"{path}: the id {name!r} is repeated; give each input its own"
        )
    return items


def _items_of_table(task, path, options):
    """Items by the columns, which rows of JSON lines may lack."""
    table = table_files.read(path, quoting=options.quoting)
    texts = [options.text_column]
    if task == "answer" and options.text_column == "text":
        texts = ["context", "text"]
    pairs = [options.text_pair_column or "text_b"]
    names = [options.index_column or "id"]

    def part(row, columns, default=None):
        for column in columns:
            if row.values.get(column) is not None:
                return table_files.text_of(table, row, column)
        return default

    def required(row, columns):
        text = part(row, columns)
        if text is None:
            raise errors.UserError(
                f"{path}, line {row.line}: no text in {columns[-1]!r}; the "
                f"columns are {', '.join(map(repr, row.values)) or 'none'}; "
                "see --text_column"
            )
        return text

    return [
        Item(
            part(row, names) or str(row.line),
            required(row, texts),
            part(row, pairs) if task == "classify" else None,
            required(row, ["question"]) if task == "answer" else "",
        )
        for row in table.rows
    ]


def given_items(
    task: str, options: PredictConfig, version_2_with_negative: bool
) -> typing.Optional[typing.List[Item]]:
    """The Items of --input_file or --text; None without them."""
    if options.input_file:
        return read_items(
            task, options.input_file, version_2_with_negative, options
        )
    if options.text:
        return [
            Item("1", options.text, options.text_b or None, options.question)
        ]
    return None


# Flag: the one task that uses it.
_TASK_OF = {
    "question": "answer",
    "text_b": "classify",
    "text_pair_column": "classify",
    "token_column": "tag",
    "top_k": "fill-mask",
    "pooling": "embed",
    "label_threshold": "classify",
    "num_answers": "answer",
    "n_best_size": "answer",
    "max_answer_length": "answer",
    "max_query_length": "answer",
    "doc_stride": "answer",
    "version_2_with_negative": "answer",
    "null_score_diff_threshold": "answer",
}


def check_flags(
    task: str, options: PredictConfig, settings: predictor.Settings
) -> None:
    """Rejects flags of another task."""
    if task == "answer" and bool(options.text) != bool(options.question):
        raise errors.UserError(
            "answer needs --question and --text; only one of them is given"
        )
    for values in (options, settings):
        for field in dataclasses.fields(values):
            owner = _TASK_OF.get(field.name, task)
            if owner != task and getattr(values, field.name) != field.default:
                raise errors.UserError(
                    f"--{field.name}: is for the task {owner}, but the task "
                    f"is {task}"
                )
    output = options.output_file
    if task == "embed" and output and not output.endswith(".npy"):
        raise errors.UserError(
            f"--output_file={output}: embed writes a .npy file; give a name "
            "that ends in .npy"
        )
    if task != "embed" and output.endswith(".npy"):
        raise errors.UserError(
            f"--output_file={output}: only embed writes a .npy file, but the "
            f"task is {task}; give a name that ends in .jsonl"
        )
    if (
        options.input_file
        and os.path.exists(output)
        and os.path.samefile(output, options.input_file)
    ):
        raise errors.UserError(
            f"--output_file={output}: is the --input_file and would be "
            "replaced; choose another name"
        )


# --- Prediction -------------------------------------------------------------


def predict(
    model: predictor.Predictor, items: typing.Sequence[Item]
) -> typing.List[dict]:
    """Results of some Items, in their order; each with its id."""
    texts = [item.text for item in items]
    if model.task == "answer":
        results = model.answer_all(
            [squad.Example(i.name, i.question, i.text) for i in items]
        )
    elif model.task == "fill-mask":
        results = model.fill_mask_all(texts)
    elif model.task == "classify":
        results = model.classify_all([(i.text, i.text_b) for i in items])
    elif model.task == "tag":
        results = model.tag_all([item.words or item.text for item in items])
    else:
        results = model.embed_all(texts)
    return [
        dict({"id": item.name}, **result)
        for item, result in zip(items, results)
    ]


def predict_all(
    model: predictor.Predictor, items: typing.Sequence[Item]
) -> typing.Generator[dict, None, None]:
    """Yields the results of all Items, with a progress bar."""
    size = _BATCHES * model.settings.predict_batch_size
    with tqdm.tqdm(
        total=len(items),
        desc=model.task,
        mininterval=2.0,
        disable=len(items) == 1 or None,
    ) as bar:
        for first in range(0, len(items), size):
            part = items[first : first + size]
            yield from predict(model, part)
            bar.update(len(part))


# --- Output -----------------------------------------------------------------


def _json(value, encoding="utf-8", **options):
    """JSON, escaped if the encoding lacks one of its characters.

    No encoding has halves of surrogate pairs, which JSON may contain.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, **options)
    return text


def _encoding():
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _plain(result):
    """A result that can be written as JSON."""
    if "vectors" in result:
        return dict(result, vectors=result["vectors"].tolist())
    return result


def write_results(results: typing.Iterable[dict], path: str) -> None:
    """Writes results by the path's ending; a file appears when complete."""
    if not path:
        for result in results:
            sys.stdout.write(_json(_plain(result), _encoding()) + "\n")
    elif path.endswith(".npy"):
        _write_vectors(results, path)
    elif table_files.ending(path) in _DELIMITERS:
        _write_table(results, path)
    elif path.endswith(".json"):
        answers = {
            result["id"]: result.get("answer", result) for result in results
        }
        _write(path, [_json(answers, indent=2)])
    else:
        _write(path, map(_json, results))


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def _write_table(results, path):
    """A row per result, of tag one per word."""
    rows = itertools.chain.from_iterable(map(_rows, results))
    with files.NewFiles([path], overwrite=True) as output:
        stream = io.TextIOWrapper(
            output.open(path), "utf-8", "backslashreplace", newline=""
        )
        with stream:
            first = next(rows)
            writer = csv.DictWriter(
                stream,
                first,
                delimiter=_DELIMITERS[table_files.ending(path)],
                lineterminator="\n",
            )
            writer.writeheader()
            writer.writerows(itertools.chain([first], rows))


def _rows(result):
    """Flat dicts; lists become JSON, n-best lists are left out."""
    if "words" in result:
        return [dict({"id": result["id"]}, **word) for word in result["words"]]
    row = {}
    for name, value in result.items():
        if isinstance(value, dict):
            row.update(
                (f"{name}.{key}", number) for key, number in value.items()
            )
        elif name != "nbest":
            row[name] = _json(value) if isinstance(value, list) else value
    return [row]


def _write(path, lines):
    with files.NewFiles([path], overwrite=True) as output:
        with output.open(path) as stream:
            for line in lines:
                stream.write((line + "\n").encode("utf-8"))


def _write_vectors(results, path):
    """PATH.npy: float32 [rows, H]; PATH.jsonl: the rows of each input."""
    vectors, lines, row = [], [], 0
    for result in results:
        part = np.atleast_2d(result.pop("vectors"))
        vectors.append(part)
        if part.shape[0] == 1:
            del result["tokens"]
        lines.append(_json(dict(result, row=row, rows=part.shape[0])))
        row += part.shape[0]
    index = path[: -len(".npy")] + ".jsonl"
    with files.NewFiles([index, path], overwrite=True) as output:
        output.write(index, ("\n".join(lines) + "\n").encode("utf-8"))
        with output.open(path) as stream:
            np.save(stream, np.concatenate(vectors))


# --- The prompt -------------------------------------------------------------


def readable(result: dict) -> typing.List[str]:
    """A result as lines for a person."""
    if "answers" in result:
        lines = ["answer: " + (result["answer"] or "(no answer)")]
        for entry in result["answers"]:
            line = entry["text"] or "(no answer)"
            if len(result["answers"]) > 1:  # alone it has 100 %
                line = f"{100 * entry['probability']:5.1f} %  {line}"
            if entry["start"] is not None:
                line += f"  [{entry['start']}:{entry['end']}]"
            lines.append(line)
        return lines
    if "words" in result:
        return [
            f"{100 * part['score']:5.1f} %  {part.get('type') or part['label']}"
            f"  {part.get('text') or part['word']}"
            f"  [{part['start']}:{part['end']}]"
            for part in result.get("entities") or result["words"]
        ]
    if "masks" in result:
        return [result["filled"]] + [
            ", ".join(f"{w['word']} {100 * w['score']:.1f} %" for w in words)
            for words in result["masks"]
        ]
    if "scores" in result:
        return [
            f"{100 * score:5.1f} %  {label}"
            for label, score in sorted(
                result["scores"].items(), key=lambda pair: -pair[1]
            )
        ]
    values = {k: v for k, v in result.items() if k in ("value", "vectors")}
    return [_json(_plain(values))]


_PROMPTS = {
    "classify": "text (of a pair: both, separated by a tab): ",
    "fill-mask": "text with <mask>: ",
}


def _ask(prompt: str) -> str:
    """A line of the standard input; EOFError at its end."""
    if sys.stdin.isatty():
        sys.stdout.write(prompt)
        sys.stdout.flush()
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"standard input: {error}; set PYTHONIOENCODING=utf-8, or pass a "
            "file with --input_file"
        ) from error
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _entered_items(task: str) -> typing.Iterator[Item]:
    """Yields what the user enters, until the input ends."""
    with contextlib.suppress(EOFError):
        while True:
            text = _ask(_PROMPTS.get(task, "text: "))
            if not text.strip():
                continue
            if task == "answer":
                while True:
                    question = _ask("question (empty: another text): ")
                    if not question.strip():
                        break
                    yield Item("1", text, question=question)
            elif task == "classify" and "\t" in text:
                yield Item("1", *text.split("\t", 1))
            else:
                yield Item("1", text)


def _show(lines):
    output = "".join(line + "\n" for line in lines)
    sys.stdout.write(
        output.encode(_encoding(), "backslashreplace").decode(_encoding())
    )
    sys.stdout.flush()


def converse(model: predictor.Predictor) -> None:
    """Asks for inputs and shows results until the input ends."""
    for item in _entered_items(model.task):
        try:
            (result,) = predict(model, [item])
            _show(readable(result))
        except errors.UserError as error:
            _show([f"error: {error}"])


def main(arguments: typing.List[str]) -> None:
    if len(arguments) != 2 or arguments[1] not in predictor.TASKS:
        raise errors.UserError(
            f"the task is {' '.join(arguments[1:])!r}; expected one of "
            f"{', '.join(predictor.TASKS)}, such as: python predict.py answer "
            "--model=DIR"
        )
    task = arguments[1]
    options = command_line.build(PredictConfig, flags.FLAGS)
    settings = command_line.build(predictor.Settings, flags.FLAGS)
    check_flags(task, options, settings)
    # Before the model loads, except SQuAD's files, whose version it knows.
    items = None if task == "answer" else given_items(task, options, False)
    logs.set_up_warnings(with_tensorflow=not settings.is_onnx)
    model = predictor.Predictor(settings.model, task, settings)
    logging.set_verbosity(logging.INFO)
    logging.info("answering with %s", model.engine)
    if task == "answer":
        items = given_items(
            task, options, model.answers.version_2_with_negative
        )
    if items is None:
        converse(model)
    elif options.text and not options.output_file and sys.stdout.isatty():
        _show(readable(*predict(model, items)))
    else:
        # Closed before an error is written, so that the bar ends first.
        with contextlib.closing(predict_all(model, items)) as results:
            write_results(results, options.output_file)


def define_flags() -> None:
    command_line.define(PredictConfig)
    command_line.define(predictor.Settings)


if __name__ == "__main__":
    define_flags()
    command_line.run(main, takes_arguments=True)
