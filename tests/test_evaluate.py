# SPDX-License-Identifier: Apache-2.0
"""Scores against hand-computed cases and the official scripts' output."""

import ast
import importlib.util
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from helpers.paths import REPOSITORY
from question_answering import squad_scores

# Made for the corners: articles, punctuation, several golds, an answer that is
# nothing but an article, odds outside [0, 1], ties.
ANSWERS = {
    "a": ["the River Odra", "Odra"],
    "b": ["1,000 ships"],
    "c": ["A"],
    "d": ["Anna Bell", "Bell, Anna", "Miss Bell"],
    "e": [],
    "f": [],
    "g": ["north–east"],
    "h": [],
    "i": ["the café"],
    "j": ["Lower Mill"],
}
PREDICTIONS = {
    "a": "odra.",
    "b": "a 1000",
    "c": "",
    "d": "the Anna",
    "e": "",
    "f": "no",
    "g": "north-east",
    "h": "mill",
    "i": "Café",
    "j": "Mill, the Lower",
}
NULL_ODDS = {
    "j": -4.5,
    "i": 0.25,
    "h": 0.5,
    "g": 0.5,
    "f": 3,
    "e": 0.75,
    "d": -1,
    "c": 0.9,
    "b": 0.125,
    "a": 0,
}

# What the official scripts print for them (v1.1: without e, f, h).
OFFICIAL_V1 = '{"exact_match": 42.857142857142854, "f1": 61.904761904761905}\n'
OFFICIAL_V2 = """\
{
  "exact": 40.0,
  "f1": 63.33333333333333,
  "total": 10,
  "HasAns_exact": 42.857142857142854,
  "HasAns_f1": 76.19047619047618,
  "HasAns_total": 7,
  "NoAns_exact": 33.333333333333336,
  "NoAns_f1": 33.333333333333336,
  "NoAns_total": 3
}
"""
OFFICIAL_V2_THRESHOLD = """\
{
  "exact": 50.0,
  "f1": 73.33333333333333,
  "total": 10,
  "HasAns_exact": 28.571428571428573,
  "HasAns_f1": 61.904761904761905,
  "HasAns_total": 7,
  "NoAns_exact": 100.0,
  "NoAns_f1": 100.0,
  "NoAns_total": 3,
  "best_exact": 50.0,
  "best_exact_thresh": 0.25,
  "best_f1": 73.33333333333334,
  "best_f1_thresh": 0.25
}
"""
OFFICIAL_AREAS = {
    "pr_exact_ap": 15.238095238095237,
    "pr_f1_ap": 63.703703703703695,
    "pr_oracle_ap": 94.7845804988662,
}


def dataset(answers, version="1.1"):
    questions = [
        {
            "id": k,
            "question": "?",
            "answers": [{"text": t, "answer_start": 0} for t in texts],
        }
        for k, texts in answers.items()
    ]
    return {
        "version": version,
        "data": [
            {"title": "t", "paragraphs": [{"context": "c", "qas": questions}]}
        ],
    }


def script(version):
    return REPOSITORY / "scripts" / f"evaluate-v{version}.py"


# Without the script's directory, the environment and installed packages.
ALONE = ("-I", "-S")


@pytest.fixture
def evaluate(tmp_path):
    """Runs a copy of a script on JSON values, with nothing installed."""

    def run(version, data, predictions, *arguments, options=ALONE, **values):
        for name, value in dict(
            values, data=data, predictions=predictions
        ).items():
            (tmp_path / name).write_text(
                value if isinstance(value, str) else json.dumps(value)
            )
        copy = shutil.copy(str(script(version)), str(tmp_path))
        done = subprocess.run(
            [sys.executable, *options, copy, "data", "predictions", *arguments],
            cwd=str(tmp_path),
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def load(version):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location("script", script(version))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(module):
    """{name: source} of a module's functions and classes."""
    source = inspect.getsource(module)
    return {
        node.name: ast.dump(node)
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def test_the_scripts_and_the_package_have_the_same_metric():
    package, first, second = map(
        functions, (squad_scores, load("1.1"), load("2.0"))
    )
    metric = {"normalize_answer", "exact_match", "f1"}
    assert metric == {n for n in first if first[n] == package.get(n)}
    assert metric | {
        "scores",
        "by_null_odds",
        "best_threshold",
        "find_best_thresholds",
    } == {n for n in second if second[n] == package.get(n)}
    # Of their own functions of one name only `main` differs.
    assert {n for n in first if first[n] != second.get(n, first[n])} == {"main"}


@pytest.mark.parametrize(
    "version, arguments", [("1.1", []), ("2.0", ["--verbose"])]
)
def test_a_closed_pipe_ends_a_script_quietly(
    evaluate, tmp_path, version, arguments
):
    evaluate("2.0", dataset(answerable()), PREDICTIONS)  # writes the files
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -0` does
    done = subprocess.run(
        [sys.executable, str(script(version)), "data", "predictions"]
        + arguments,
        cwd=str(tmp_path),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "rror" not in done.stderr and "Traceback" not in done.stderr


def test_predictions_come_from_a_pipe(tmp_path):
    (tmp_path / "data").write_text(json.dumps(dataset(answerable())))
    done = subprocess.run(
        [sys.executable, *ALONE, str(script("1.1")), "data", "/dev/stdin"],
        cwd=str(tmp_path),
        input=json.dumps(PREDICTIONS),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (OFFICIAL_V1, "")


def answerable():
    return {k: v for k, v in ANSWERS.items() if v}


def test_v1_prints_what_the_official_script_prints(evaluate):
    code, out, err = evaluate("1.1", dataset(answerable()), PREDICTIONS)
    assert (code, out, err) == (0, OFFICIAL_V1, "")


def test_v2_prints_what_the_official_script_prints(evaluate):
    data = dataset(ANSWERS, "v2.0")
    assert evaluate("2.0", data, PREDICTIONS) == (0, OFFICIAL_V2, "")
    assert evaluate(
        "2.0",
        data,
        PREDICTIONS,
        "--na-prob-file",
        "odds",
        "--na-prob-thresh",
        "0.4",
        odds=NULL_ODDS,
    ) == (0, OFFICIAL_V2_THRESHOLD, "")


@pytest.mark.parametrize("version", ["1.1", "2.0"])
@pytest.mark.parametrize("shape", ["SQuAD", "datasets"])
def test_files_of_other_shapes_are_scored(evaluate, version, shape):
    """Ids that are numbers, null lists, and answers as `datasets` has them."""
    questions = [
        {"id": 17, "question": "?", "answers": {"text": ["Odra", "x"]}},
        {"id": 3.0, "question": "?", "answers": [None, {"text": "mill"}]},
    ]
    data = [dict(entry, context="c") for entry in questions]
    if shape == "SQuAD":
        data = {"data": [{"paragraphs": [{"qas": questions}]}]}
        data["data"] += [{"paragraphs": None}]
        data["data"] += [{"paragraphs": [{"qas": None}]}]
    code, out, err = evaluate(version, data, {"17": "odra", "3": "no"})
    assert (code, err) == (0, "")
    scores = json.loads(out)
    assert scores["f1"] == 50 == scores.get("exact", scores.get("exact_match"))


@pytest.mark.parametrize("question_id", [True, None, ""])
def test_an_id_is_a_text_or_a_number(evaluate, question_id):
    data = {"data": [{"paragraphs": [{"qas": [{"id": question_id}]}]}]}
    code, _, err = evaluate("1.1", data, {})
    assert code == 1 and "'id'" in err


def test_out_file_takes_the_scores_on_one_line(evaluate, tmp_path):
    code, out, _ = evaluate(
        "2.0", dataset(ANSWERS), PREDICTIONS, "-o", "scores"
    )
    assert (code, out) == (0, "")
    text = (tmp_path / "scores").read_text()
    assert text == json.dumps(json.loads(OFFICIAL_V2))


def test_images_and_areas(evaluate, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = evaluate(
        "2.0",
        dataset(ANSWERS),
        PREDICTIONS,
        "-n",
        "odds",
        "-t",
        "0.4",
        "-p",
        "new/images",
        options=(),
        odds=NULL_ODDS,
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == dict(
        json.loads(OFFICIAL_V2_THRESHOLD), **OFFICIAL_AREAS
    )
    assert sorted(p.name for p in (tmp_path / "new/images").iterdir()) == [
        "na_prob_hist_hasAns.png",
        "na_prob_hist_noAns.png",
        "pr_exact.png",
        "pr_f1.png",
        "pr_oracle.png",
    ]


def test_images_without_matplotlib_are_one_line(evaluate):
    code, out, err = evaluate(
        "2.0",
        dataset(ANSWERS),
        PREDICTIONS,
        "-n",
        "odds",
        "-p",
        "x",
        odds=NULL_ODDS,
    )
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "run bash scripts/setup.sh --extras=plots" in err


def test_images_without_probabilities_are_reported(evaluate):
    code, out, err = evaluate("2.0", dataset(ANSWERS), PREDICTIONS, "-p", "x")
    assert (code, out) == (0, OFFICIAL_V2)
    assert "--na-prob-file" in err


def test_missing_predictions_score_zero_and_are_named(evaluate):
    some = {k: PREDICTIONS[k] for k in "abij"}
    code, out, err = evaluate("1.1", dataset(answerable()), some)
    assert code == 0
    assert err == "".join(
        f"Unanswered question {k} will receive score 0.\n" for k in "cdg"
    )
    assert json.loads(out)["exact_match"] == 100 * 2 / 7

    code, out, err = evaluate(
        "2.0", dataset(ANSWERS), some, "-n", "odds", odds=NULL_ODDS
    )
    assert code == 0
    assert err == "".join(f"Missing prediction for {k}\n" for k in "cdefgh")
    result = json.loads(out)
    assert result["total"] == 10 and result["exact"] == 20.0
    assert result["NoAns_total"] == 3 and result["NoAns_exact"] == 0.0
    assert result["best_exact"] == 20.0


def test_verbose_lists_the_questions(evaluate):
    code, out, err = evaluate("2.0", dataset(ANSWERS), PREDICTIONS, "-v")
    assert (code, out) == (0, OFFICIAL_V2)
    assert err.splitlines()[0] == "id=a exact=1 f1=1.0000"
    assert len(err.splitlines()) == 10


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Cat's – hat.", "cats – hat"),
        ("an A-team\tof the\u00a0theatre", "ateam of theatre"),
        ("the. a, AN!", ""),
        ("“Quoted” “the” ’s", "“quoted” “ ” ’s"),
        ("$1,000.50", "100050"),
        ("东京, the 塔", "东京 塔"),
        ("a_the b", "athe b"),
    ],
)
def test_normalization(text, expected):
    assert squad_scores.normalize_answer(text) == expected


@pytest.mark.parametrize(
    "prediction, gold, expected",
    [
        (
            "the red house",
            "a red, red house",
            2 * 1.0 * (2 / 3) / (1.0 + 2 / 3),
        ),
        ("red", "house", 0),
        ("", "house", 0),
        ("the", "house", 0),
        ("same", "Same", 1.0),
        ("the", "", 1),
    ],
)
def test_f1(prediction, gold, expected):
    assert squad_scores.f1(prediction, gold) == expected


def test_f1_of_two_empty_answers_is_zero_in_v1():
    assert squad_scores.f1("the", "a", empty_score=0) == 0


def test_gold_answers_that_normalize_to_nothing_do_not_count_in_v2():
    exact, f1 = squad_scores.scores({"a": ["the", "house"]}, {"a": ""})
    assert (exact, f1) == ({"a": 0}, {"a": 0})


def test_best_threshold_is_at_least_as_good_as_any_other():
    exact, f1 = squad_scores.scores(ANSWERS, PREDICTIONS)
    # Without ties: within one the official script may stop half-way.
    odds = {k: i - 4.5 for i, k in enumerate("hjbaeigcfd")}
    best = squad_scores.find_best_thresholds(ANSWERS, PREDICTIONS, odds)

    def score(values, threshold):
        return 10 * sum(
            values[k] if odds[k] <= threshold else not ANSWERS[k]
            for k in ANSWERS
        )

    for name, values in (("exact", exact), ("f1", f1)):
        achieved = score(values, best[f"best_{name}_thresh"])
        assert best["best_" + name] == pytest.approx(achieved)
        assert achieved >= max(score(values, t) for t in [-9, *odds.values()])


def test_answering_nothing_can_be_best():
    best = squad_scores.find_best_thresholds(
        {"a": [], "b": ["x"]}, {"a": "y", "b": "z"}, {"a": 0.1, "b": 0.2}
    )
    assert best["best_f1"] == 50.0 and best["best_f1_thresh"] == 0.0


# Right answers whose null odds, 1, forbid them at threshold 0, and wrong ones
# to questions without an answer: gains and losses of a threshold of 1. The
# gain has to exceed 2 sqrt(gains + losses), nearly.
@pytest.mark.parametrize(
    "gains, losses, threshold",
    [(3, 0, 0.0), (5, 0, 1.0), (7, 2, 0.0), (10, 2, 1.0)],
)
def test_a_threshold_is_suggested_if_its_gain_is_significant(
    gains, losses, threshold
):
    gold = {f"right{i}": ["x"] for i in range(gains + 500)}
    gold.update((f"wrong{i}", []) for i in range(losses))
    odds = dict.fromkeys(gold, 1.0)
    odds.update((f"right{i}", -1.0) for i in range(gains, gains + 500))
    odds.update((f"wrong{i}", 0.5) for i in range(losses))
    answers = dict.fromkeys(gold, "x")
    suggested = squad_scores.suggested_threshold(gold, answers, odds)
    assert suggested == threshold


GOOD = dataset({"a": ["x"]})


@pytest.mark.parametrize(
    "version, data, predictions, named",
    [
        ("1.1", "{", {}, "not JSON"),
        ("1.1", 3, {}, "expected an object"),
        ("1.1", [], {}, "no questions"),
        ("1.1", {}, {}, "'data' is missing"),
        ("1.1", {"data": []}, {}, "no questions"),
        ("1.1", {"data": [{"paragraphs": {}}]}, {}, "article 0: 'paragraphs'"),
        (
            "1.1",
            {"data": [{"paragraphs": [{"qas": [7]}]}]},
            {},
            "article 0, paragraph 0: expected an object with 'id'",
        ),
        (
            "1.1",
            {"data": [{"paragraphs": [{"qas": [{"id": [7]}]}]}]},
            {},
            "'id' must be a string",
        ),
        (
            "2.0",
            {"data": [{"paragraphs": [{"qas": [{"id": "q"}]}]}]},
            {},
            "question 'q': 'answers' is missing",
        ),
        ("1.1", "[" * 100000, {}, "nested too deeply"),
        ("1.1", dataset({"a": []}), {}, "evaluate-v2.0.py"),
        ("1.1", GOOD, [], "expected an object"),
        ("1.1", GOOD, {"a": None}, "'a' must be a string"),
        ("2.0", GOOD, {"a": ["x"]}, "'a' must be a string"),
    ],
)
def test_bad_files_are_one_line(evaluate, version, data, predictions, named):
    code, out, err = evaluate(version, data, predictions)
    assert (code, out) == (1, "")
    assert err.startswith(f"evaluate-v{version}.py: error: ")
    assert err.count("\n") == 1 and named in err


@pytest.mark.parametrize(
    "arguments, odds, named",
    [
        (["-n", "odds"], {"b": 1}, "no number for question 'a'"),
        (["-n", "odds"], {"a": "1"}, "expected a number, got '1'"),
        (["-n", "odds"], {"a": float("nan")}, "expected a number, got nan"),
        (["-n", "odds"], {"a": 10**400}, "an integer of 401 digits"),
        (["-n", "none"], {}, "cannot use 'none': No such file"),
        (["--na-prob-thresh=x"], {}, "invalid float value: 'x'; --help"),
        (["--unknown"], {}, "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_one_line(evaluate, arguments, odds, named):
    code, out, err = evaluate("2.0", GOOD, {"a": "x"}, *arguments, odds=odds)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert named in err


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_json_size_and_encoding_are_checked(tmp_path, version):
    module, path = load(version), tmp_path / "data.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert module.read_json(str(path), "x") == {}
    with pytest.raises(module.InputError, match="larger than 4 bytes"):
        module.read_json(str(path), "x", limit=4)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(module.InputError, match="not UTF-8 at byte 7"):
        module.read_json(str(path), "x")
