# SPDX-License-Identifier: Apache-2.0
"""The bundled data: reproducible, and fair to whoever is scored on it."""

import collections
import json
import re
import subprocess
import sys

import pytest

import squad
import tokenization
from helpers.paths import REPOSITORY
from question_answering import squad_scores

DEMO = REPOSITORY / "demo"
GENERATED = (
    "config.json",
    "dev-v1.1.json",
    "dev-v2.0.json",
    "eval_text.txt",
    "merges.txt",
    "text.txt",
    "train-v1.1.json",
    "train-v2.0.json",
    "vocab.json",
)
VERSIONS = ("v1.1", "v2.0")
MAX_BYTES = 2 << 20


def read(name):
    return (DEMO / name).read_text(encoding="utf-8")


def paragraphs(name):
    """The paragraphs of a SQuAD file, in order."""
    return [
        paragraph
        for article in json.loads(read(name))["data"]
        for paragraph in article["paragraphs"]
    ]


def questions(name):
    """(context, question) pairs of a SQuAD file."""
    return [
        (paragraph["context"], qa)
        for paragraph in paragraphs(name)
        for qa in paragraph["qas"]
    ]


def words(text):
    return set(re.findall(r"[A-Za-z]+", text))


@pytest.fixture(scope="module")
def training_words():
    """All words that pre-training or fine-tuning may see."""
    return words(
        " ".join(
            read(name)
            for name in ("text.txt", "train-v1.1.json", "train-v2.0.json")
        )
    )


def test_generator_writes_the_committed_files(tmp_path):
    script = REPOSITORY / "scripts" / "make_demo_data.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(GENERATED)
    different = [
        name
        for name in GENERATED
        if (tmp_path / name).read_bytes() != (DEMO / name).read_bytes()
    ]
    assert not different


def test_bundled_files_are_small():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < MAX_BYTES


@pytest.mark.parametrize("version", VERSIONS)
def test_scored_questions_ask_about_names_never_seen(version, training_words):
    for context, qa in questions(f"dev-{version}.json"):
        unseen = words(qa["question"]) - training_words
        assert len(unseen) == 1, qa
        assert unseen <= words(context), qa


@pytest.mark.parametrize(
    "name", ["eval_text.txt", "dev-v1.1.json", "dev-v2.0.json"]
)
def test_no_name_of_evaluation_is_seen(name, training_words):
    # Inside a sentence only names have a capital letter.
    names = set(re.findall(r"(?<=[a-z] )[A-Z][a-z]+", read(name)))
    assert len(names) > 50
    assert not names & training_words


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("part", ["train", "dev"])
def test_answers_stand_at_answer_start(version, part):
    pairs = questions(f"{part}-{version}.json")
    for context, qa in pairs:
        for answer in qa["answers"]:
            start = answer["answer_start"]
            end = start + len(answer["text"])
            assert context[start:end] == answer["text"] != "", qa
            # A whole word, in one place only.
            assert re.findall(rf"\b{answer['text']}\b", context) == [
                answer["text"]
            ], qa
    assert len({qa["id"] for _, qa in pairs}) == len(pairs)


@pytest.mark.parametrize("part", ["train", "dev"])
def test_v2_has_both_kinds_of_questions(part):
    counts = collections.Counter(
        qa["is_impossible"] for _, qa in questions(part + "-v2.0.json")
    )
    assert 0.3 < counts[True] / sum(counts.values()) < 0.5


@pytest.mark.parametrize("part", ["train", "dev"])
def test_unanswerable_questions_look_like_answerable_ones(part):
    """The same forms, of things that the paragraph names."""
    forms = collections.defaultdict(set)
    for context, qa in questions(part + "-v2.0.json"):
        (subject,) = re.findall(r"(?<=[a-z] )[A-Z][a-z]+", qa["question"])
        assert subject in words(context), qa
        forms[qa["is_impossible"]].add(qa["question"].replace(subject, "X"))
        assert qa["is_impossible"] == (not qa["answers"]), qa
    assert forms[True] <= forms[False]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("part", ["train", "dev"])
def test_run_squad_reads_the_questions(version, part):
    path = DEMO / (f"{part}-{version}.json")
    examples = squad.read_examples(str(path), True, version == "v2.0")
    assert len(examples) == len(questions(path.name))


def test_vocabulary_has_special_tokens_in_robertas_places():
    tokenizer = tokenization.RobertaTokenizer(
        str(DEMO / "vocab.json"), str(DEMO / "merges.txt")
    )
    assert tokenizer.convert_ids_to_tokens(range(4)) == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
    ]
    assert tokenizer.mask_id == tokenizer.vocab_size - 1
    assert json.loads(read("config.json"))["vocab_size"] == (
        tokenizer.vocab_size
    )
    text = read("eval_text.txt") + "\u00e9\u4e2d\U0001f600"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def answered():
    """{model: {id: (paragraph's number, gold texts, best text, null odds)}}.

    Text and null odds are those of two models of scripts/demo.sh asked the
    questions of v2.0: one has learned them, one v1.1's, which have answers.
    """
    path = REPOSITORY / "tests" / "data" / "demo_null_odds.json"
    models = json.loads(path.read_text(encoding="utf-8"))
    result = {
        model: {
            qa["id"]: (
                number,
                [answer["text"] for answer in qa["answers"]],
                *outputs[qa["id"]],
            )
            for number, paragraph in enumerate(paragraphs("dev-v2.0.json"))
            for qa in paragraph["qas"]
        }
        for model, outputs in models.items()
    }
    assert [len(items) for items in result.values()] == [
        len(outputs) for outputs in models.values()
    ]
    return result


def mean_f1(items, threshold):
    """F1 in percent where "" is answered above a null threshold."""
    gold = {key: item[1] for key, item in items.items()}
    texts = {
        key: text if odds <= threshold else ""
        for key, (_, _, text, odds) in items.items()
    }
    _, f1 = squad_scores.scores(gold, texts)
    return 100.0 * sum(f1.values()) / len(items)


@pytest.mark.parametrize(
    "is_first",
    [
        lambda number: number % 2 == 0,
        lambda number: number % 2 == 1,
        lambda number: number < 40,
        lambda number: number >= 40,
    ],
)
@pytest.mark.parametrize(
    "model, gain", [("squad_v1.1", 30.0), ("squad_v2.0", 0.0)]
)
def test_threshold_from_one_half_serves_the_other(
    answered, model, gain, is_first
):
    halves = {}, {}
    for key, item in answered[model].items():
        halves[0 if is_first(item[0]) else 1][key] = item
    chosen, other = halves
    columns = [
        {key: item[column] for key, item in chosen.items()}
        for column in (1, 2, 3)
    ]
    best = squad_scores.find_best_thresholds(*columns)
    assert mean_f1(chosen, best["best_f1_thresh"]) == pytest.approx(
        best["best_f1"]
    )
    threshold = squad_scores.suggested_threshold(*columns)
    assert mean_f1(other, threshold) >= mean_f1(other, 0.0) + gain
