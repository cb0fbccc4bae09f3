#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows the worst answers to SQuAD's questions on one HTML page.

    python scripts/inspect_predictions.py dev-v2.0.json predictions.json \
        --nbest nbest_predictions.json --null-odds null_odds.json

The lowest F1 comes first, among equals the answer that the model was surest
of. Accepted and predicted answers are marked in the context. The page needs
no other file and no network, and runs no script.
"""

import collections
import html
import math
import os
import pathlib
import string
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from common import errors  # noqa: E402
from question_answering import squad_scores  # noqa: E402
from scripts import script_parser  # noqa: E402

CORRECT = "correct"
# kind: what it means
KINDS = collections.OrderedDict(
    (
        ("wrong", "has an answer, none of its words was found"),
        ("partial", "shares words with an accepted answer"),
        ("missed", "has an answer, none was given"),
        ("should be empty", "has no answer, one was given"),
    )
)
_LISTED = 10  # of the n-best list
# Characters of a context that stay beside a mark, and how many further ones
# are folded away at least.
_NEAR, _FAR = 320, 600


class Question(typing.NamedTuple):
    """One question with its answer and its score."""

    entry: dict  # the question in the file
    title: str
    context: str
    gold: list  # accepted answers: [{"text", "answer_start"}]
    prediction: typing.Optional[str]  # None: there is none in the file
    exact: float  # 0 or 1
    f1: float  # from 0 to 1
    kind: str
    nbest: list  # [{"text", "probability"}]
    null_odds: typing.Optional[float]

    @property
    def confidence(self):
        """Probability of the answer given, None where it is not known."""
        for answer in self.nbest:
            if answer["text"] == self.prediction:
                return answer["probability"]
        if self.null_odds is None or self.prediction is None:
            return None
        empty = 0.5 + 0.5 * math.tanh(0.5 * self.null_odds)
        return 1.0 - empty if self.prediction else empty


# --- Reading ----------------------------------------------------------------


def read_questions(arguments):
    """[Question] of all files, in the data set's order."""
    document = squad_scores.read_json(arguments.dataset, "a SQuAD file")
    gold = dict(squad_scores.gold_answers(arguments.dataset, document))
    predictions = squad_scores.read_predictions(arguments.predictions)
    if not set(predictions) & set(gold):
        raise errors.UserError(
            f"{arguments.predictions} answers no question of "
            f"{arguments.dataset}; give the predictions for this file"
        )
    exact, f1 = squad_scores.scores(gold, predictions)
    nbest = _read_nbest(arguments.nbest) if arguments.nbest else {}
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


def _read_nbest(path):
    """{id: [{"text", "probability"}]}."""
    nbest = squad_scores.read_json(path, "n-best predictions")
    for name, _answers in nbest.items():
        where = f"{path}: question {name!r}"
        for answer in squad_scores.value(nbest, name, list, where):
            squad_scores.value(answer, "text", str, where)
            probability = answer.get("probability")
            if (
                not isinstance(probability, (int, float))
                or not 0 <= probability <= 1
            ):
                raise errors.UserError(
                    f"{where}: 'probability' must be a number from 0 to 1, but "
                    f"it is {probability!r:.40}"
                )
    return nbest


def kind_of(gold, prediction, exact, f1):
    """CORRECT or one of KINDS.

    Args:
      gold: list of accepted texts, empty where there is no answer.
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


def worst(questions, limit):
    """The questions to show: low F1 first, then high confidence."""
    wrong = [question for question in questions if question.kind != CORRECT]
    wrong.sort(key=lambda question: (question.f1, -(question.confidence or 0)))
    return wrong[:limit]


# --- Spans ------------------------------------------------------------------


def gold_spans(question):
    """{(start, end)} of the accepted answers, in characters."""
    spans = set()
    for answer in question.gold:
        text, start = answer["text"], answer.get("answer_start", -1)
        if (
            not isinstance(start, int)
            or question.context[max(start, 0) : max(start, 0) + len(text)]
            != text
        ):
            start = question.context.find(text)
        if text and start >= 0:
            spans.add((start, start + len(text)))
    return spans


def predicted_span(question, gold):
    """(start, end) of the prediction, or None.

    predictions.json has no positions: of several places with the same text
    the one nearest to an accepted answer is taken.
    """
    text = question.prediction
    if not text:
        return None
    starts, start = [], question.context.find(text)
    while start >= 0:
        starts.append(start)
        start = question.context.find(text, start + 1)
    if not starts:
        return None
    middles = [first + last for first, last in gold] or [0]
    best = min(
        starts,
        key=lambda start: min(
            abs(2 * start + len(text) - middle) for middle in middles
        ),
    )
    return best, best + len(text)


def pieces(context, gold, predicted):
    """Yields (text, whether accepted, whether predicted), the whole context."""
    spans = list(gold) + ([predicted] if predicted else [])
    cuts = sorted({0, len(context)} | {cut for span in spans for cut in span})
    for start, end in zip(cuts, cuts[1:]):
        yield (
            context[start:end],
            any(first <= start and end <= last for first, last in gold),
            bool(predicted) and predicted[0] <= start and end <= predicted[1],
        )


def folded(text, is_first, is_last):
    """(beginning, middle, end) of unmarked text; the middle is folded away.

    What is near a mark stays, and the beginning of a context without marks.
    The middle is "" where little would be saved; cuts are at blanks.

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
    blank = text.find(" ", last)
    last = blank if blank >= 0 else last
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
    """A text, or a word for an empty one, as HTML."""
    return html.escape(text) if text else "<em>no answer</em>"


def render(questions, shown, arguments):
    """The page, a text of HTML."""
    counts = collections.Counter(question.kind for question in questions)
    total = len(questions)
    tiles = [("questions", f"{total:,}")] + [
        (name, f"{100.0 * sum(values) / total:.2f}")
        for name, values in (
            ("exact match", [question.exact for question in questions]),
            ("F1", [question.f1 for question in questions]),
        )
    ]
    tiles.append((CORRECT, f"{counts[CORRECT]:,}"))
    kinds = [kind for kind in KINDS if counts[kind]]
    return _PAGE.substitute(
        title=f"Answers to {html.escape(os.path.basename(arguments.dataset))}",
        about=html.escape(
            f"{os.path.basename(arguments.predictions)}; the {len(shown)} "
            f"worst of {total - counts[CORRECT]} answers that are not exact, "
            "lowest F1 first, then the surest ones"
        ),
        tiles="".join(
            f'<div class="tile"><b>{number}</b>{name}</div>'
            for name, number in tiles
        ),
        bar="".join(
            f'<i class="{_css(kind)}-colour" style="flex:{counts[kind]}" '
            f'title="{kind}: {counts[kind]}"></i>'
            for kind in [CORRECT] + list(KINDS)
            if counts[kind]
        ),
        filters=_filter_rules(kinds),
        inputs=_filter_inputs(kinds, counts, shown),
        articles="\n".join(map(_article, shown)),
    )


def _filter_rules(kinds):
    """A radio button's style sheet: no script is needed to filter."""
    rules = ["#all:checked ~ .all, #all:focus-visible ~ .all"]
    rules += [
        "#{0}:checked ~ .{0}, #{0}:focus-visible ~ .{0}".format(_css(kind))
        for kind in kinds
    ]
    return (
        f"{', '.join(rules)} {{ border-color: var(--ink); font-weight: 600; "
        "}}\n"
    ) + "\n".join(
        "#{0}:checked ~ main article:not(.{0}) {{ display: none; }}".format(
            _css(kind)
        )
        for kind in kinds
    )


def _filter_inputs(kinds, counts, shown):
    listed = collections.Counter(question.kind for question in shown)
    radios = "".join(
        '<input class="filter" type="radio" name="kind" '
        f'id="{name}"{" checked" * (name == "all")}>'
        for name in ["all"] + [_css(kind) for kind in kinds]
    )
    labels = [
        '<label class="all" for="all">all '
        f"{_share(len(shown), sum(counts[kind] for kind in kinds))}</label>"
    ]
    labels += [
        '<label class="{0}{1}" for="{0}" title="{2}{3}">'
        '<i class="{0}-colour"></i>{4} {5}</label>'.format(
            _css(kind),
            "" if listed[kind] else " off",
            KINDS[kind],
            "" if listed[kind] else "; a higher --limit shows some",
            kind,
            _share(listed[kind], counts[kind]),
        )
        for kind in kinds
    ]
    return radios + "\n" + "\n".join(labels)


def _share(listed, count):
    return f"{count}" if listed == count else f"{listed} of {count}"


def _article(question):
    kind = question.kind
    head = [
        f'<span class="badge {_css(kind)}-colour">{kind}</span>',
        f"<span>F1 {100 * question.f1:.1f}</span>",
    ]
    if question.confidence is not None:
        head.append(
            f"<span>confidence {100 * question.confidence:.1f} %</span>"
        )
    if question.null_odds is not None:
        head.append(f"<span>null odds {question.null_odds:+.2f}</span>")
    head.append(
        '<span class="id">%s</span>'
        % " · ".join(
            map(
                html.escape,
                filter(None, [question.title, question.entry["id"]]),
            )
        )
    )
    gold = gold_spans(question)
    predicted = predicted_span(question, gold)
    return (
        f'<article class="{_css(kind)}"><div '
        f'class="head">{"".join(head)}</div>\n<h2 '
        f'dir="auto">{html.escape(str(question.entry.get("question", "")))}</h2>\n<div '
        'class="context" '
        f'dir="auto">{_marked(pieces(question.context, gold, predicted))}</div>\n{_answers(question, predicted)}{_nbest(question)}</article>'
    )


def _marked(parts):
    """The context: `pieces`' parts within <mark>, what is far from one folded."""
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
        marked.append(html.escape(begin))
        if middle:
            marked.append(
                f'<details class="more"><summary>… {len(middle):,} more characters … '
                f"</summary>{html.escape(middle)}</details>"
            )
        marked.append(html.escape(end))
    return "".join(marked)


def _answers(question, predicted):
    texts = list(dict.fromkeys(answer["text"] for answer in question.gold))
    given = _text(question.prediction)
    if question.prediction is None:
        given = "<em>none in the file</em>"
    elif question.prediction and predicted is None:
        given += " <em>(not in the context word for word)</em>"
    return (
        "<table><tr><th>accepted</th><td "
        f'dir="auto">{" | ".join(map(_text, texts or [""]))}</td></tr><tr><th>predicted</th><td '
        f'dir="auto">{given}</td></tr></table>'
    )


def _nbest(question):
    if not question.nbest:
        return ""
    rows = "".join(
        f'<tr><td class="number">{100 * answer["probability"]:.1f} %<span '
        'class="share" '
        f'style="width:{6 * answer["probability"]:.1f}em"></span></td><td '
        f'dir="auto">{_text(answer["text"])}</td></tr>'
        for answer in question.nbest[:_LISTED]
    )
    return (
        '\n<details class="nbest"><summary>n-best list '
        f"({min(_LISTED, len(question.nbest))} of "
        f"{len(question.nbest)})</summary><table>{rows}</table></details>"
    )


def main(arguments):
    if arguments.limit < 1:
        raise errors.UserError(
            f"--limit={arguments.limit}: expected a whole number >= 1"
        )
    script_parser.check_output(
        "--output",
        arguments.output,
        (
            arguments.dataset,
            arguments.predictions,
            arguments.nbest,
            arguments.null_odds,
        ),
    )
    questions = read_questions(arguments)
    page = render(questions, worst(questions, arguments.limit), arguments)
    draft = arguments.output + ".incomplete"
    try:
        with open(draft, "wb") as stream:
            stream.write(page.encode("utf-8", "replace"))
        os.replace(draft, arguments.output)
    finally:
        if os.path.exists(draft):
            os.remove(draft)
    print(arguments.output)


def define_arguments(parser):
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
