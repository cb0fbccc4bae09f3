#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Shows the worst answers to SQuAD's questions on one HTML page.

    python scripts/inspect_predictions.py dev-v2.0.json predictions.json \
        --nbest nbest_predictions.json --null-odds null_odds.json

The lowest F1 comes first; of equal ones, the answer with the highest
confidence. Accepted and predicted answers are marked in the context. The page
needs no other file and no network, and contains no script.
"""

import argparse
import collections
import html
import math
import os
import pathlib
import re
import string
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

from common import errors, files
from question_answering import squad_scores
from scripts import script_parser

CORRECT = "correct"
KINDS = {  # with their meanings
    "wrong": "has an answer, none of its words was predicted",
    "partial": "shares words with an accepted answer",
    "missed": "has an answer, none was predicted",
    "should be empty": "has no answer, one was predicted",
}
_LISTED = 10  # of the n-best list
_NEAR = 320  # characters of a context that are shown beside a mark
_FAR = 600  # fewer further characters are not hidden
_Span = typing.Tuple[int, int]  # start and end in characters


class Question(typing.NamedTuple):
    """One question with its answer and its score."""

    entry: typing.Dict[str, typing.Any]  # the question in the file
    title: str
    context: str
    gold: list  # accepted answers: [{"text", "answer_start"}]
    prediction: typing.Optional[str]  # None: not in the file
    exact: float  # 0 or 1
    f1: float  # from 0 to 1
    kind: str
    nbest: list  # [{"text", "probability"}]
    null_odds: typing.Optional[float]

    @property
    def confidence(self) -> typing.Optional[float]:
        """Probability of the prediction, None where it is not known."""
        for answer in self.nbest:
            if answer["text"] == self.prediction:
                return answer["probability"]
        if self.null_odds is None or self.prediction is None:
            return None
        empty = 0.5 + 0.5 * math.tanh(0.5 * self.null_odds)
        return 1.0 - empty if self.prediction else empty


# --- Reading ----------------------------------------------------------------


def read_questions(arguments: argparse.Namespace) -> typing.List[Question]:
    """The questions of all files, in the data set's order.

    Args:
      arguments: dataset, predictions, and nbest and null_odds or None.
    """
    document = squad_scores.read_dataset(arguments.dataset)
    gold = dict(squad_scores.gold_answers(arguments.dataset, document))
    predictions = squad_scores.read_predictions(arguments.predictions)
    if predictions.keys().isdisjoint(gold):
        raise errors.UserError(
            f"{arguments.predictions} answers no question of "
            f"{arguments.dataset}; pass the predictions for this file"
        )
    exact, f1 = squad_scores.scores(gold, predictions)
    nbest = (
        squad_scores.read_nbest(arguments.nbest, {"probability": (0, 1)})
        if arguments.nbest
        else {}
    )
    odds = (
        squad_scores.read_null_odds(arguments.null_odds)
        if arguments.null_odds
        else {}
    )
    titles = {
        id(paragraph): article.get("title", "")
        for article in document["data"]
        for paragraph in article["paragraphs"]
    }
    questions = []
    for where, paragraph, entry in squad_scores.iterate_questions(
        arguments.dataset, document
    ):
        name = entry["id"]
        scores = exact.get(name, 0.0), f1.get(name, 0.0)
        questions.append(
            Question(
                entry,
                str(titles[id(paragraph)]),
                squad_scores.value(paragraph, "context", str, where),
                entry["answers"],
                predictions.get(name),
                *scores,
                kind_of(gold[name], predictions.get(name), *scores),
                nbest.get(name, []),
                odds.get(name),
            )
        )
    return questions


def kind_of(
    gold: typing.List[str],
    prediction: typing.Optional[str],
    exact: float,
    f1: float,
) -> str:
    """CORRECT or one of KINDS.

    Args:
      gold: accepted texts, empty for an unanswerable question.
      prediction: text, or None.
      exact, f1: the scores.
    """
    if exact:
        return CORRECT
    if not gold:
        return "should be empty"
    if not prediction:
        return "missed"
    return "partial" if f1 else "wrong"


def worst(
    questions: typing.List[Question], limit: int
) -> typing.List[Question]:
    """The questions to show: low F1 first, then high confidence."""
    wrong = [question for question in questions if question.kind != CORRECT]
    wrong.sort(key=lambda question: (question.f1, -(question.confidence or 0)))
    return wrong[:limit]


# --- Spans ------------------------------------------------------------------


def gold_spans(question: Question) -> typing.Set[_Span]:
    """The places of the accepted answers."""
    spans = set()
    for answer in question.gold:
        text, start = answer["text"], answer.get("answer_start")
        if not (
            isinstance(start, int)
            and start >= 0
            and question.context.startswith(text, start)
        ):
            start = question.context.find(text)
        if text and start >= 0:
            spans.add((start, start + len(text)))
    return spans


def predicted_span(
    question: Question, gold: typing.Set[_Span]
) -> typing.Optional[_Span]:
    """The place of the prediction, or None.

    predictions.json has no positions: of several places with the same text
    this is the one nearest to an accepted answer.
    """
    text = question.prediction
    if not text:
        return None
    # A lookahead, since places may overlap.
    starts = [
        match.start()
        for match in re.finditer(f"(?={re.escape(text)})", question.context)
    ]
    if not starts:
        return None
    middles = [start + end for start, end in gold] or [0]
    nearest = min(
        starts,
        key=lambda start: min(
            abs(2 * start + len(text) - middle) for middle in middles
        ),
    )
    return nearest, nearest + len(text)


def pieces(
    context: str, gold: typing.Set[_Span], predicted: typing.Optional[_Span]
) -> typing.Iterator[typing.Tuple[str, bool, bool]]:
    """Yields the context as (text, whether accepted, whether predicted)."""
    predictions = {predicted} if predicted else set()
    edges = {edge for span in gold | predictions for edge in span}
    cuts = sorted(edges | {0, len(context)})

    def is_in(spans, start, end):
        return any(first <= start and end <= last for first, last in spans)

    for start, end in zip(cuts, cuts[1:]):
        yield (
            context[start:end],
            is_in(gold, start, end),
            is_in(predictions, start, end),
        )


def folded(
    text: str, is_first: bool, is_last: bool
) -> typing.Tuple[str, str, str]:
    """(beginning, middle, end) of unmarked text; the page hides the middle.

    The text near a mark is shown, and the beginning of a context without
    marks. The middle is "" where it would be short; cuts are at spaces.

    Args:
      text: a part of a context without a mark in it.
      is_first: whether the context begins with it, so no mark is before it.
      is_last: whether the context ends with it.
    """
    first = 0 if is_first and not is_last else _NEAR
    last = len(text) - (0 if is_last else _NEAR)
    if last - first < _FAR:
        return text, "", ""
    first = text.rfind(" ", 0, first) + 1 or first
    space = text.find(" ", last)
    last = space if space >= 0 else last
    return text[:first], text[first:last], text[last:]


# --- The page ---------------------------------------------------------------

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --page: #f4f5f7; --card: #fff; --ink: #1c2330; --pale: #667085;
 --line: #e1e4ea; --gold: #bfe8cf; --predicted: #ffd3b0; --wrong: #c0392b;
 --partial: #96620f; --missed: #5b5fc7; --empty: #0f766e; --right: #93a1b0;
 --edge: #c2571a; }
@media (prefers-color-scheme: dark) {
:root { --page: #14171c; --card: #1d2229; --ink: #e6e9ee; --pale: #98a2b3;
 --line: #323a45; --gold: #1f5a3b; --predicted: #7a4318;
 --edge: #ff9c5b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 60rem;
 background: var(--page); color: var(--ink);
 font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .1rem; }
.pale { color: var(--pale); font-size: .88rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 14px; }
.tile { background: var(--card); border: 1px solid var(--line);
 border-radius: 10px; padding: 8px 16px; min-width: 7rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 650; }
.bar { display: flex; height: 12px; border-radius: 6px; overflow: hidden;
 margin-bottom: 16px; gap: 2px; }
.bar i { display: block; min-width: 3px; }
input.filter { position: absolute; opacity: 0; }
label { display: inline-block; margin: 0 6px 8px 0; padding: 4px 13px;
 border: 1px solid var(--line); border-radius: 99px; cursor: pointer;
 background: var(--card); font-size: .92rem; }
label i { display: inline-block; width: .7em; height: .7em;
 border-radius: 50%; margin-right: .45em; }
.wrong-colour { background: var(--wrong); }
.partial-colour { background: var(--partial); }
.missed-colour { background: var(--missed); }
.should-be-empty-colour { background: var(--empty); }
.correct-colour { background: var(--right); }
article { background: var(--card); border: 1px solid var(--line);
 border-radius: 12px; padding: 14px 20px 16px; margin: 14px 0; }
.head { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline;
 font-size: .88rem; color: var(--pale); }
.badge { color: #fff; border-radius: 5px; padding: 1px 9px; font-weight: 600; }
.head .id { margin-left: auto; overflow-wrap: anywhere; }
h2 { font-size: 1.08rem; margin: .5rem 0; }
.context { margin: 0 0 .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: var(--ink); border-radius: 3px; padding: 1px 0; }
.gold { background: var(--gold); }
.predicted { background: var(--predicted);
 border-bottom: 2px solid var(--edge); }
.both { background: linear-gradient(var(--gold) 50%, var(--predicted) 50%);
 border-bottom: 2px solid var(--edge); }
details.more, details.more summary { display: inline; margin: 0;
 font-size: 1em; }
details.more::details-content { display: none; }
details.more[open]::details-content { display: inline; }
details.more summary { border-bottom: 1px dotted; }
details.more[open] summary { display: none; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { padding: 3px 12px 3px 0; text-align: left; vertical-align: top;
 font-weight: 400; overflow-wrap: anywhere; }
th { color: var(--pale); white-space: nowrap; width: 7.5rem; }
td.number { width: 11rem; white-space: nowrap;
 font-variant-numeric: tabular-nums; }
.share { display: inline-block; height: .62em; border-radius: 2px;
 margin-left: 8px; background: var(--right); }
.nbest { margin-top: .5rem; font-size: .92rem; }
label.off { cursor: default; color: var(--pale); border-style: dashed; }
summary { cursor: pointer; color: var(--pale); }
em { color: var(--pale); }
$filters
</style></head><body>
<h1>$title</h1>
<div class="pale">$about</div>
<div class="tiles">$tiles</div>
<div class="bar">$bar</div>
$inputs
<div class="pale">Marked in the context: <mark class="gold">accepted</mark>
<mark class="predicted">predicted</mark> <mark class="both">both</mark></div>
<main>
$articles
</main></body></html>
""")


def _css(kind):
    """The name of a kind in style sheets."""
    return kind.replace(" ", "-")


def _text(text):
    """A text, or a remark for an empty one, as HTML."""
    return html.escape(text) if text else "<em>no answer</em>"


def render(
    questions: typing.List[Question],
    shown: typing.List[Question],
    arguments: argparse.Namespace,
) -> str:
    """The page as HTML.

    Args:
      questions: all of them, for the totals.
      shown: those that are listed.
      arguments: dataset and predictions, for the title.
    """
    counts = collections.Counter(question.kind for question in questions)
    total = len(questions)
    exact = 100.0 * sum(question.exact for question in questions) / total
    f1 = 100.0 * sum(question.f1 for question in questions) / total
    tiles = {
        "questions": f"{total:,}",
        "exact match": f"{exact:.2f}",
        "F1": f"{f1:.2f}",
        CORRECT: f"{counts[CORRECT]:,}",
    }
    kinds = [kind for kind in KINDS if counts[kind]]
    return _PAGE.substitute(
        title=f"Answers to {html.escape(os.path.basename(arguments.dataset))}",
        about=html.escape(
            f"{os.path.basename(arguments.predictions)}; the {len(shown)} "
            f"worst of {total - counts[CORRECT]} answers that are not exact, "
            "by F1, then by confidence"
        ),
        tiles="".join(
            f'<div class="tile"><b>{number}</b>{name}</div>'
            for name, number in tiles.items()
        ),
        bar="".join(
            f'<i class="{_css(kind)}-colour" style="flex:{counts[kind]}" '
            f'title="{kind}: {counts[kind]}"></i>'
            for kind in [CORRECT, *KINDS]
            if counts[kind]
        ),
        filters=_filter_rules(list(map(_css, kinds))),
        inputs=_filter_inputs(kinds, counts, shown),
        articles="\n".join(map(_article, shown)),
    )


def _filter_rules(names):
    """The style sheet of the radio buttons, which filter without a script."""
    selected = ", ".join(
        f"#{name}:checked ~ .{name}, #{name}:focus-visible ~ .{name}"
        for name in ["all", *names]
    )
    rules = [selected + " { border-color: var(--ink); font-weight: 600; }"]
    rules += [
        f"#{name}:checked ~ main article:not(.{name}) {{ display: none; }}"
        for name in names
    ]
    return "\n".join(rules)


def _filter_inputs(kinds, counts, shown):
    listed = collections.Counter(question.kind for question in shown)
    radios = "".join(
        f'<input class="filter" type="radio" name="kind" id="{name}"'
        f"{' checked' if name == 'all' else ''}>"
        for name in ["all", *map(_css, kinds)]
    )
    total = sum(counts[kind] for kind in kinds)
    labels = [
        f'<label class="all" for="all">all {_share(len(shown), total)}</label>'
    ]
    for kind in kinds:
        name, off, hint = _css(kind), "", ""
        if not listed[kind]:
            off, hint = " off", "; a higher --limit shows some"
        labels.append(
            f'<label class="{name}{off}" for="{name}" '
            f'title="{KINDS[kind]}{hint}"><i class="{name}-colour"></i>'
            f"{kind} {_share(listed[kind], counts[kind])}</label>"
        )
    return "\n".join([radios, *labels])


def _share(listed, count):
    return f"{count}" if listed == count else f"{listed} of {count}"


def _article(question):
    name, entry = _css(question.kind), question.entry
    head = [
        f'<span class="badge {name}-colour">{question.kind}</span>',
        f"<span>F1 {100 * question.f1:.1f}</span>",
    ]
    if question.confidence is not None:
        head.append(
            f"<span>confidence {100 * question.confidence:.1f} %</span>"
        )
    if question.null_odds is not None:
        head.append(f"<span>null odds {question.null_odds:+.2f}</span>")
    source = " · ".join(filter(None, [question.title, entry["id"]]))
    head.append(f'<span class="id">{html.escape(source)}</span>')
    gold = gold_spans(question)
    predicted = predicted_span(question, gold)
    return (
        f'<article class="{name}">'
        f'<div class="head">{"".join(head)}</div>\n'
        f'<h2 dir="auto">{html.escape(str(entry.get("question", "")))}</h2>\n'
        '<div class="context" dir="auto">'
        f"{_marked(pieces(question.context, gold, predicted))}</div>\n"
        f"{_answers(question, predicted)}{_nbest(question)}</article>"
    )


def _marked(parts):
    """The context with marks; what is far from a mark is hidden."""
    names = {
        (True, False): "gold",
        (False, True): "predicted",
        (True, True): "both",
    }
    parts, marked = list(parts), []
    for number, (text, *flags) in enumerate(parts):
        name = names.get(tuple(flags))
        if name:
            marked.append(f'<mark class="{name}">{html.escape(text)}</mark>')
            continue
        begin, middle, end = folded(text, number == 0, number == len(parts) - 1)
        if middle:
            middle = (
                f'<details class="more"><summary>… {len(middle):,} more '
                f"characters … </summary>{html.escape(middle)}</details>"
            )
        marked.append(html.escape(begin) + middle + html.escape(end))
    return "".join(marked)


def _answers(question, predicted):
    texts = dict.fromkeys(answer["text"] for answer in question.gold)
    prediction = _text(question.prediction)
    if question.prediction is None:
        prediction = "<em>none in the file</em>"
    elif question.prediction and predicted is None:
        prediction += " <em>(not in the context word for word)</em>"
    rows = {
        "accepted": " | ".join(map(_text, texts or [""])),
        "predicted": prediction,
    }
    cells = "".join(
        f'<tr><th>{name}</th><td dir="auto">{content}</td></tr>'
        for name, content in rows.items()
    )
    return f"<table>{cells}</table>"


def _nbest(question):
    if not question.nbest:
        return ""
    listed = question.nbest[:_LISTED]
    rows = "".join(
        f'<tr><td class="number">{100 * answer["probability"]:.1f} %'
        '<span class="share" '
        f'style="width:{6 * answer["probability"]:.1f}em"></span></td>'
        f'<td dir="auto">{_text(answer["text"])}</td></tr>'
        for answer in listed
    )
    return (
        '\n<details class="nbest"><summary>n-best list '
        f"({len(listed)} of {len(question.nbest)})</summary>"
        f"<table>{rows}</table></details>"
    )


def main(arguments: argparse.Namespace) -> None:
    """Writes the page."""
    if arguments.limit < 1:
        raise errors.UserError(
            f"--limit={arguments.limit}: expected a whole number >= 1"
        )
    inputs = (
        arguments.dataset,
        arguments.predictions,
        arguments.nbest,
        arguments.null_odds,
    )
    script_parser.check_output("--output", arguments.output, inputs)
    questions = read_questions(arguments)
    page = render(questions, worst(questions, arguments.limit), arguments)
    # A lone surrogate in a file becomes a question mark.
    files.write_bytes(arguments.output, page.encode("utf-8", "replace"))
    print(arguments.output)


def define_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="SQuAD file with the answers, v1.1 or v2.0",
    )
    parser.add_argument(
        "predictions",
        metavar="PREDICTIONS",
        help="JSON object, question id to answer",
    )
    parser.add_argument(
        "--nbest", metavar="F", help="nbest_predictions.json of run_squad.py"
    )
    parser.add_argument(
        "--null-odds", metavar="F", help="null_odds.json of run_squad.py (v2.0)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=200,
        metavar="N",
        help="answers on the page (default: 200)",
    )
    parser.add_argument(
        "--output",
        "-o",
        default="predictions.html",
        metavar="F",
        help="default: predictions.html",
    )


if __name__ == "__main__":
    parser = script_parser.ScriptParser(
        description="Shows the worst answers to SQuAD's questions on one HTML "
        "page."
    )
    define_arguments(parser)
    parser.run(main)
