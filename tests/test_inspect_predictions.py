# SPDX-License-Identifier: Apache-2.0
"""The page of the worst answers: order, kinds, marks, nothing unescaped."""

import html.parser
import json
import re
import types

import pytest

from common import errors
from helpers import browser
from scripts import inspect_predictions as inspect

CONTEXT = "Anna sold <b>red</b> boats & blue boats in Belgora."
GOLD = {
    "right": ["red"],
    "wrong": ["Anna"],
    "partial": ["blue boats"],
    "missed": ["Belgora"],
    "surer": ["Anna"],
    "empty": [],
    "unknown": ["Belgora"],
}
PREDICTIONS = {
    "right": "red",
    "wrong": "boats",
    "partial": "boats",
    "missed": "",
    "surer": "Belgora",
    "empty": "<b>red</b>",
}
PROBABILITIES = {
    "wrong": 0.25,
    "surer": 0.75,
    "partial": 0.5,
    "right": 0.9,
    "empty": 0.625,
}


def write_files(folder, context=CONTEXT):
    """The arguments of the script for a file of seven questions."""
    questions = [
        {
            "id": name,
            "question": f"What <{name}>?",
            "answers": [
                {"text": text, "answer_start": context.index(text)}
                for text in texts
            ],
        }
        for name, texts in GOLD.items()
    ]
    files = {
        "dataset": {
            "version": "v2.0",
            "data": [
                {
                    "title": 'a "title"',
                    "paragraphs": [{"context": context, "qas": questions}],
                }
            ],
        },
        "predictions": PREDICTIONS,
        "null_odds": {"missed": 2.0, "empty": -3},
        "nbest": {
            name: [
                {"text": PREDICTIONS[name], "probability": share},
                {"text": "<i>", "probability": 0.0625},
            ]
            for name, share in PROBABILITIES.items()
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return types.SimpleNamespace(
        limit=200,
        output=str(folder / "page.html"),
        **{name: str(folder / name) for name in files},
    )


class Page(html.parser.HTMLParser):
    """Tags and texts of a page; `marks` are [(class, text)]."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.articles, self.marks, self.text = [], [], [], ""
        self._mark = None
        with open(path, encoding="utf-8") as stream:
            self.feed(stream.read())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self._mark = attributes.get("class") if tag == "mark" else None
        if tag == "article":
            self.articles.append(attributes["class"])

    def handle_data(self, data):
        self.text += data
        if self._mark:
            self.marks.append((self._mark, data))
            self._mark = None


def test_low_f1_comes_first_then_high_confidence(tmp_path):
    questions = inspect.read_questions(write_files(tmp_path))
    shown = inspect.worst(questions, 200)
    # 1 / (1 + exp(-2)) = 0.88 for the missed one.
    assert [question.entry["id"] for question in shown] == [
        "missed",
        "surer",
        "empty",
        "wrong",
        "unknown",
        "partial",
    ]
    assert shown[0].confidence == pytest.approx(0.880797)
    assert [question.kind for question in shown] == [
        "missed",
        "wrong",
        "should be empty",
        "wrong",
        "missed",
        "partial",
    ]
    # One word of two: precision 1, recall 1 / 2.
    assert shown[-1].f1 == pytest.approx(2 / 3)
    assert inspect.worst(questions, 2) == shown[:2]


def test_the_place_nearest_to_an_accepted_answer_is_marked(tmp_path):
    questions = {
        question.entry["id"]: question
        for question in inspect.read_questions(write_files(tmp_path))
    }
    question = questions["partial"]
    gold = inspect.gold_spans(question)
    predicted = inspect.predicted_span(question, gold)
    assert list(inspect.pieces(CONTEXT, gold, predicted)) == [
        ("Anna sold <b>red</b> boats & ", False, False),
        ("blue ", True, False),
        ("boats", True, True),
        (" in Belgora.", False, False),
    ]
    assert inspect.predicted_span(questions["missed"], {(43, 50)}) is None


def test_a_page_shows_answers_scores_and_questions(tmp_path):
    inspect.main(write_files(tmp_path))
    page = Page(str(tmp_path / "page.html"))
    assert page.articles == [
        "missed",
        "wrong",
        "should-be-empty",
        "wrong",
        "missed",
        "partial",
    ]
    # The first three are the legend.
    assert page.marks[3:] == [
        ("gold", "Belgora"),
        ("gold", "Anna"),
        ("predicted", "Belgora"),
        ("predicted", "<b>red</b>"),
        ("gold", "Anna"),
        ("predicted", "boats"),
        ("gold", "Belgora"),
        ("gold", "blue "),
        ("both", "boats"),
    ]
    assert page.text.count(CONTEXT) == 6
    for words in (
        "wrong 2",
        "all 6",
        "confidence 75.0 %",
        "null odds +2.00",
        "What <surer>?",
        'a "title" · surer',
        "exact match",
        "none in the file",
        "n-best list (2 of 2)",
    ):
        assert words in page.text, words
    assert f"{100 / 7:.2f}" in page.text


def test_text_far_from_a_mark_is_hidden(tmp_path):
    far = "far away " * 200
    inspect.main(write_files(tmp_path, "At first " + far + CONTEXT + far))
    page = Page(str(tmp_path / "page.html"))
    folds = [
        tag
        for tag, attributes in page.tags
        if attributes.get("class") == "more"
    ]
    assert len(folds) == 12  # before and behind, of six questions
    # Nothing is lost, and words stay whole.
    shown = re.sub("… [0-9,]+ more characters … ", "", page.text)
    assert shown.count("At first " + far + CONTEXT + far) == 6
    # Behind "Belgora": a full stop and 1,800 characters, less 320.
    assert "… 1,481 more characters … " in page.text


@pytest.mark.parametrize(
    "is_first, is_last, lengths",
    [
        (True, False, (0, 3683, 317)),
        (False, True, (320, 3680, 0)),
        (False, False, (320, 3363, 317)),
        (True, True, (320, 3680, 0)),
    ],
)
def test_a_context_keeps_what_is_near_its_marks(is_first, is_last, lengths):
    text = "abc " * 1000
    parts = inspect.folded(text, is_first, is_last)
    assert "".join(parts) == text
    assert tuple(map(len, parts)) == lengths
    assert inspect.folded(text[:900], is_first, is_last) == (text[:900], "", "")
    assert "".join(inspect.folded("x" * 1500, is_first, is_last)) == (
        "x" * 1500
    )


def test_a_browser_folds_unfolds_and_filters(tmp_path):
    inspect.main(write_files(tmp_path, "far away " * 200 + CONTEXT))
    with browser.opened(tmp_path / "profile") as window:
        window.open((tmp_path / "page.html").as_uri())
        height = "return document.querySelector('.context').offsetHeight"
        before = window.run(height)
        window.click(".more summary")
        assert window.run(height) > 2 * before
        window.click("label.missed")
        assert (
            window.run(
                "return Array.from(document.querySelectorAll("
                "'article')).filter(node => node.offsetParent).map("
                "node => node.className)"
            )
            == ["missed"] * 2
        )
        window.click("label.all")
        for _ in ("light", "dark"):  # 4.5: see test_serve.py
            contrasts = browser.contrasts(window)
            assert len(contrasts) > 40
            assert [pair for pair in contrasts if pair[1] < 4.5] == []
            window.darken()
        window.resize(360, 800)
        assert window.run("return document.documentElement.scrollWidth") == 360


def test_a_page_needs_nothing_else_and_escapes_all(tmp_path):
    inspect.main(write_files(tmp_path, "<script>\"'&</script> " + CONTEXT))
    page = Page(str(tmp_path / "page.html"))
    own = [tag for tag, attributes in page.tags if "class" not in attributes]
    assert not {"script", "link", "img", "i"} & set(own)
    assert own.count("b") == 4  # the numbers at the top
    assert not [
        name
        for _, attributes in page.tags
        for name in attributes
        if name in ("src", "href") or name.startswith("on")
    ]
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "url(" not in text and "http:" not in text and "@import" not in text
    # A brace too many would end the style sheet there.
    rules = text[: text.index("</style>")]
    for _ in range(2):  # @media contains rules
        rules = re.sub(r"\{[^{}]*\}", "", rules)
    assert "#missed:focus-visible ~ .missed" in rules
    assert re.findall("[{}]", rules) == []


def test_mistakes_name_the_file(tmp_path):
    arguments = write_files(tmp_path)
    (tmp_path / "predictions").write_text('{"other": "x"}')
    with pytest.raises(errors.UserError, match="answers no question"):
        inspect.main(arguments)
    (tmp_path / "predictions").write_text(json.dumps(PREDICTIONS))
    (tmp_path / "nbest").write_text('{"right": [{"text": "x"}]}')
    with pytest.raises(errors.UserError, match="nbest.*'probability'"):
        inspect.main(arguments)
    assert not (tmp_path / "page.html").exists()
