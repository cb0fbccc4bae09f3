# SPDX-License-Identifier: Apache-2.0
"""Converted models in Hugging Face's transformers: the same ids and outputs.

    TRANSFORMERS_PYTHON=PYTHON python -m pytest tests/test_transformers.py

PYTHON is that of an environment with transformers and torch; without the
variable they are needed in this one.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from helpers import tiny
from helpers.paths import FIRST_VERSION, REPOSITORY
from inference import exporting, predictor, trained_model
from weights import conversion

PYTHON = os.environ.get("TRANSFORMERS_PYTHON", sys.executable)
ATOL = 1e-5
LONG = "Velbena lives in Prelgora, and Kufs works as a carpenter. "
MASKED = [
    "<mask>",
    "Velbena <mask> in Prelgora.",
    "Velbena<mask> in  <mask> , as of 1691.",
    "The river\n<mask> through Nolvholm\u2019s <mask>s.",
    "ÀÉÎ <mask>\u00a0<mask> straße Ⅷ.",
]
PAIRS = [
    ("Velbena lives in Prelgora.", None),
    ("Velbena lives.", "Someone LIVES there!"),
    (LONG * 90, None),
]
QUESTIONS = [
    ("Where does Velbena live?", LONG),
    ("What does Kufs WORK as?", "Nolvholm was founded in 1691. " + LONG),
]


@pytest.fixture(scope="module", autouse=True)
def transformers():
    """Its version; the tests are skipped without it."""
    done = subprocess.run(
        [PYTHON, "-c", "import transformers as t, torch; print(t.__version__)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        pytest.skip("transformers and torch are not installed")
    return done.stdout.strip()


def run(directory, items):
    """What transformers computes from a directory."""
    done = subprocess.run(
        [
            PYTHON,
            str(REPOSITORY / "tests" / "helpers" / "transformers_outputs.py"),
            str(directory),
        ],
        input="\n".join(map(json.dumps, items)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env=dict(os.environ, HF_HUB_OFFLINE="1"),
    )
    assert done.returncode == 0, done.stdout[-4000:]
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def convert(given, output, source="tf", target="hf", **options):
    conversion.convert(
        source,
        target,
        conversion.ConvertConfig(
            input=str(given), output=str(output), **options
        ),
    )


@pytest.fixture
def exported(tmp_path):
    """A function of a trainer's directory; gives one for transformers.

    The trained checkpoint and its slim export are converted to the same files.
    """

    def export(source, do_lower_case):
        folder = tmp_path / "trained"
        shutil.copytree(str(source), str(folder))
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(str(FIRST_VERSION / "squad" / name), str(folder))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"do_lower_case": do_lower_case})
        )
        model = trained_model.find(str(folder))
        slim = tmp_path / "slim"
        exporting.export(model, model.own_head, "slim", str(slim))
        convert(model.checkpoint, tmp_path / "converted")
        convert(trained_model.find(str(slim)).checkpoint, tmp_path / "hf")
        for path in (tmp_path / "hf").iterdir():
            reference = tmp_path / "converted" / path.name
            if path.name not in ("tokenizer_config.json", "README.md"):
                assert path.read_bytes() == reference.read_bytes()
        return folder, tmp_path / "hf"

    return export


@pytest.fixture
def report(transformers, record_property, capsys):
    """A function of the largest difference, which is printed and checked."""

    def check(task, differences):
        with capsys.disabled():
            print(
                f"\ntransformers {transformers} {task}: {max(differences):.3g}"
            )
        record_property(task, max(differences))
        assert max(differences) <= ATOL

    return check


cases = pytest.mark.parametrize("do_lower_case", [False, True])


@cases
def test_masks_get_the_same_words(exported, report, tmp_path, do_lower_case):
    tiny.write_trained(tmp_path / "source", ["masked_lm"], vocab_size=621)
    ours, theirs = exported(tmp_path / "source", do_lower_case)
    model = predictor.Predictor(str(ours), "fill-mask")
    results = run(theirs, [{"text": text} for text in MASKED])
    differences = []
    assert len(results) == len(MASKED)
    for text, result in zip(MASKED, results):
        assert result["ids"] == model._encode_masked(text)
        vocabulary = model.tokenizer.vocab_size
        masks = model.fill_mask(text, vocabulary)["masks"]
        assert len(masks) == len(result["scores"]) == text.count("<mask>")
        for words, scores in zip(masks, result["scores"]):
            differences += [
                abs(
                    word["score"]
                    - scores[
                        model.tokenizer.convert_tokens_to_ids(word["token"])
                    ]
                )
                for word in words
            ]
    report("fill-mask", differences)


@cases
def test_added_tokens_have_the_same_ids(exported, tmp_path, do_lower_case):
    tiny.write_trained(tmp_path / "source", ["masked_lm"], vocab_size=621)
    _, theirs = exported(tmp_path / "source", do_lower_case)
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("<x>\n<x>y z\n\u4f60\n", encoding="utf-8")
    convert(theirs, tmp_path / "more", "hf", add_tokens=str(tokens))
    convert(tmp_path / "more", tmp_path / "tf" / "m", "hf", "tf")
    model = predictor.Predictor(str(tmp_path / "tf" / "m"), "fill-mask")
    texts = [
        "a <x> b<x>y z<mask>",
        "\u4f60<x> <X>Y z <mask>  <x>",
        "\u00c9<mask>",
    ]
    results = run(tmp_path / "more", [{"text": text} for text in texts])
    for text, result in zip(texts, results):
        assert result["ids"] == model._encode_masked(text)
    assert {621, 622, 623} <= set(results[0]["ids"] + results[1]["ids"])


@cases
def test_answers_have_the_same_logits(exported, report, do_lower_case):
    ours, theirs = exported(FIRST_VERSION / "squad", do_lower_case)
    model = predictor.Predictor(
        str(ours), "answer", predictor.Settings(n_best_size=200)
    )
    items = [{"question": q, "text": text} for q, text in QUESTIONS]
    differences = []
    for (question, text), result in zip(QUESTIONS, run(theirs, items)):
        ids, offsets = model.tokenizer.encode_with_offsets(text)
        prefix = [0, *model.tokenizer.encode(question), 2, 2]
        assert result["ids"] == [*prefix, *ids, 2]
        starts, ends = (
            dict(zip(places, result[name][len(prefix) :]))
            for name, places in zip(("start", "end"), zip(*offsets))
        )
        for entry in model.answer(question, text)["nbest"]:
            differences += [
                abs(entry["start_logit"] - starts[entry["start"]]),
                abs(entry["end_logit"] - ends[entry["end"]]),
            ]
    assert len(differences) >= 400
    report("answer", differences)


@cases
@pytest.mark.parametrize(
    "problem_type",
    ["single_label_classification", "multi_label_classification"],
)
def test_classes_have_the_same_probabilities(
    exported, report, tmp_path, do_lower_case, problem_type
):
    """Also of a text that is too long."""
    tiny.write_trained(
        tmp_path / "source",
        ["classification"],
        vocab_size=621,
        id2label={"0": "no", "1": "maybe", "2": "yes"},
        label2id={"no": 0, "maybe": 1, "yes": 2},
        problem_type=problem_type,
    )
    ours, theirs = exported(tmp_path / "source", do_lower_case)
    model = predictor.Predictor(str(ours), "classify")
    items = [{"text": text, "text_b": text_b} for text, text_b in PAIRS]
    differences = []
    for pair, result in zip(PAIRS, run(theirs, items)):
        scores = model.classify(*pair)["scores"]
        assert set(scores) == set(result["scores"])
        differences += [abs(scores[k] - result["scores"][k]) for k in scores]
    assert len(result["ids"]) == 512
    report(problem_type, differences)


@cases
def test_words_have_the_same_labels(exported, report, tmp_path, do_lower_case):
    tiny.write_trained(
        tmp_path / "source",
        ["tagging"],
        vocab_size=621,
        id2label={"0": "O", "1": "NN", "2": "VB"},
        label2id={"O": 0, "NN": 1, "VB": 2},
    )
    ours, theirs = exported(tmp_path / "source", do_lower_case)
    model = predictor.Predictor(str(ours), "tag")
    # Words are encoded with a space between them, marks too.
    spaced = LONG.replace(",", " ,").replace(".", " .")
    texts = ["Velbena lives in Prelgora .", (spaced * 5).strip()]
    differences = []
    for text, result in zip(texts, run(theirs, [{"text": t} for t in texts])):
        ids, offsets = model.tokenizer.encode_with_offsets(text)
        assert result["ids"] == [0, *ids, 2]
        starts = {start: place for place, (start, _) in enumerate(offsets, 1)}
        for word in model.tag(text)["words"]:
            scores = result["scores"][starts[word["start"]]]
            assert max(scores, key=scores.get) == word["label"]
            differences.append(abs(word["score"] - scores[word["label"]]))
    assert len(differences) > 60
    report("tag", differences)
