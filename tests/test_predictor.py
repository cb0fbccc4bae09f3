# SPDX-License-Identifier: Apache-2.0
"""Tests of predictor.py: a model stays loaded and answers many callers.

test_end_to_end.py compares its answers with run_squad.py's.
"""

import concurrent.futures
import json

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import squad
from common import errors
from helpers import tiny
from helpers.paths import FIRST_VERSION
from inference import predictor

TEXT = "Town 1 lies on river bbb, and town 2 on river ccc."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with every head that a task needs."""
    path = tmp_path_factory.mktemp("model")
    tiny.write_trained(
        path,
        ["masked_lm", "question_answering", "classification"],
        id2label={"0": "no", "1": "maybe", "2": "yes"},
    )
    return str(path)


@pytest.fixture(scope="module")
def reader(folder):
    return predictor.Predictor(
        folder,
        "answer",
        predictor.Settings(
            max_seq_length=32, doc_stride=8, max_query_length=12
        ),
    )


@pytest.fixture(scope="module")
def filler(folder):
    return predictor.Predictor(folder, "fill-mask")


@pytest.fixture(scope="module")
def classifier(folder):
    return predictor.Predictor(
        folder, "classify", predictor.Settings(max_seq_length=16)
    )


# --- answer -----------------------------------------------------------------


def test_an_answer_is_the_text_between_its_offsets(reader):
    result = reader.answer("Where?", TEXT)
    assert result["answer"] == TEXT[result["start"] : result["end"]]
    assert len(result["nbest"]) == 20
    for entry in result["nbest"]:
        assert entry["text"] == TEXT[entry["start"] : entry["end"]]
    assert result["score"] == result["nbest"][0]["probability"]
    assert sum(e["probability"] for e in result["nbest"]) == pytest.approx(1)


def test_a_question_has_several_answers_that_do_not_overlap(reader):
    result = reader.answer("Where?", TEXT)
    answers = result["answers"]
    assert 1 < len(answers) <= 5
    assert answers[0]["text"] == result["answer"]
    spans = sorted((entry["start"], entry["end"]) for entry in answers)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))


def test_a_text_of_many_windows_is_read_to_its_end(folder):
    """Windows have room for 22 tokens of 260; all answers are listed."""
    reader = predictor.Predictor(
        folder,
        "answer",
        predictor.Settings(max_seq_length=32, doc_stride=8, n_best_size=10**5),
    )
    entries = reader.answer("Where?", TEXT * 5)["nbest"]
    assert max(entry["end"] for entry in entries) == len(TEXT) * 5


def assert_close(first, second):
    """The same answers, up to what another batch changes in float32."""
    assert [a["answer"] for a in first] == [a["answer"] for a in second]
    for answer, expected in zip(first, second):
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)


def examples(count):
    return [
        squad.Example(
            str(n), f"Where is {n}?", f"{TEXT[n % 20 :]} {n}" * (1 + n % 3)
        )
        for n in range(count)
    ]


def test_answers_do_not_depend_on_the_batch(reader):
    questions = examples(9)
    together = reader.answer_all(questions)
    assert [a["id"] for a in together] == [q.question_id for q in questions]
    assert_close(together, [reader.answer_all([q])[0] for q in questions])


def test_threads_share_a_predictor(reader):
    questions = examples(24)
    alone = [reader.answer_all([q])[0] for q in questions]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert_close(
            list(pool.map(lambda q: reader.answer_all([q])[0], questions * 2)),
            alone * 2,
        )


def test_no_answer_is_possible_in_version_2(folder):
    def answer(threshold):
        return predictor.Predictor(
            folder,
            "answer",
            predictor.Settings(
                version_2_with_negative=True,
                n_best_size=3,
                null_score_diff_threshold=threshold,
            ),
        ).answer("Where?", TEXT)

    none, some = answer(-1000.0), answer(1000.0)
    assert none["answer"] == "" and none["start"] is None
    assert some["answer"] == TEXT[some["start"] : some["end"]] != ""
    assert none["null_odds"] == some["null_odds"]
    assert "" in [entry["text"] for entry in some["nbest"]]


@pytest.mark.parametrize("question, text", [("", "a"), ("a", " \n")])
def test_an_empty_text_is_rejected(reader, question, text):
    with pytest.raises(errors.UserError, match="is empty"):
        reader.answer(question, text)


# --- fill-mask --------------------------------------------------------------


def test_every_mask_gets_its_words(filler):
    result = filler.fill_mask("ab <mask> cd<mask>.", 3)
    assert [len(words) for words in result["masks"]] == [3, 3]
    for words in result["masks"]:
        scores = [word["score"] for word in words]
        assert scores == sorted(scores, reverse=True) and scores[0] < 1
    # The space before <mask> is part of the word.
    assert result["filled"].startswith("ab") and result["filled"][2] != " "
    everything = filler.fill_mask("<mask>", 1000)["masks"][0]
    assert len(everything) == tiny.VOCAB_SIZE
    assert sum(word["score"] for word in everything) == pytest.approx(1, 1e-4)


def test_each_text_of_a_batch_gets_the_words_of_its_masks(filler):
    texts = ["a<mask>b", "<mask> one <mask> two <mask>", "x" * 40 + "<mask>"]
    together = filler.fill_mask_all(texts, 2)
    assert [len(result["masks"]) for result in together] == [1, 3, 1]
    for text, result in zip(texts, together):
        alone = filler.fill_mask(text, 2)
        assert alone["filled"] == result["filled"]
        assert [[w["token"] for w in words] for words in alone["masks"]] == [
            [w["token"] for w in words] for words in result["masks"]
        ]


@pytest.mark.parametrize(
    "text, words",
    [("no place", "has no <mask>"), ("a" * 600 + "<mask>", "603 tokens")],
)
def test_a_text_without_a_mask_is_rejected(filler, text, words):
    with pytest.raises(errors.UserError, match=words):
        filler.fill_mask(text)


# --- classify ---------------------------------------------------------------


def test_labels_have_the_names_of_the_config(classifier):
    result = classifier.classify("a town")
    assert set(result["scores"]) == {"no", "maybe", "yes"}
    assert sum(result["scores"].values()) == pytest.approx(1)
    assert result["score"] == max(result["scores"].values())
    assert result["scores"][result["label"]] == result["score"]
    assert not result["truncated"]


def test_a_pair_is_two_texts_and_not_one(classifier):
    pair, swapped, single = (
        classifier.classify(*texts)["scores"]
        for texts in (("ab", "c"), ("c", "ab"), ("abc",))
    )
    assert pair != swapped and pair != single


def test_the_longer_text_is_truncated_first(classifier):
    long = classifier.classify("a" * 30, "bcd")
    assert long["truncated"]
    # 16 tokens less <s>, </s></s> and </s> have room for 9 beside "bcd".
    assert long["scores"] == pytest.approx(
        classifier.classify("a" * 9, "bcd")["scores"]
    )


def test_of_two_texts_of_equal_length_the_second_is_truncated(folder):
    """As in run_classifier.py; an odd room cannot be shared evenly."""
    model = predictor.Predictor(
        folder, "classify", predictor.Settings(max_seq_length=15)
    )
    assert model.classify("a" * 20, "b" * 20)["scores"] == pytest.approx(
        model.classify("a" * 6, "b" * 5)["scores"]
    )


@pytest.mark.skipif(
    tf.__version__.startswith(("1.", "2.6.")), reason="bfloat16 is slow there"
)
def test_bfloat16_gives_nearly_the_same_probabilities(folder, classifier):
    half = predictor.Predictor(
        folder, "classify", predictor.Settings(max_seq_length=16, use_bf16=True)
    )
    ours, wide = [
        model.classify("a town")["scores"] for model in (half, classifier)
    ]
    assert ours != wide and ours == pytest.approx(wide, abs=0.01)
    # Weights are cast when they are restored.
    graph = half._engine._engine._session.graph
    stored = graph.get_collection(tf.GraphKeys.LOCAL_VARIABLES)
    assert stored and {v.dtype.base_dtype for v in stored} == {tf.bfloat16}


@pytest.mark.parametrize(
    "values, labels, keys",
    [
        ({}, 1, {"value", "truncated"}),
        (
            {"problem_type": "multi_label_classification"},
            1,
            {"labels", "scores", "truncated"},
        ),
        (
            {"problem_type": "multi_label_classification"},
            3,
            {"labels", "scores", "truncated"},
        ),
    ],
)
def test_the_kind_of_problem_is_that_of_the_config(
    tmp_path, values, labels, keys
):
    tiny.write_trained(tmp_path, ["classification"], labels=labels, **values)
    result = predictor.Predictor(str(tmp_path), "classify").classify("a")
    assert set(result) == keys
    for threshold in (0.5, 0.1) if "scores" in keys else ():
        settings = predictor.Settings(label_threshold=threshold)
        model = predictor.Predictor(str(tmp_path), "classify", settings)
        result = model.classify("a")
        scores = result["scores"].items()
        assert result["labels"] == [n for n, s in scores if s > threshold]


# --- embed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, settings, expected",
    [
        ("classify", {"label_threshold": 0.7}, "--label_threshold=0.7 has no"),
        ("answer", {"num_answers": 30}, "--num_answers=30: there are at most"),
        ("answer", {"n_best_size": 3}, None),
        ("answer", {"num_answers": 30, "n_best_size": 30}, None),
        ("fill-mask", {"num_answers": 30, "label_threshold": 0.7}, None),
    ],
)
def test_settings_without_effect_are_named(
    folder, monkeypatch, task, settings, expected
):
    lines = []
    monkeypatch.setattr(
        predictor.logging, "warning", lambda text, *v: lines.append(text % v)
    )
    predictor.Predictor(folder, task, predictor.Settings(**settings))
    assert len(lines) == bool(expected)
    assert lines == [] or lines[0].startswith(expected)


def test_vectors_are_of_the_text_alone(folder):
    texts = ["abc", "a longer text " * 5, "x"]
    vectors = {}
    for pooling in ("mean", "first", "tokens"):
        model = predictor.Predictor(
            folder, "embed", predictor.Settings(pooling=pooling)
        )
        vectors[pooling] = [r["vectors"] for r in model.embed_all(texts)]
    for mean, first, tokens, text in zip(
        vectors["mean"], vectors["first"], vectors["tokens"], texts
    ):
        assert tokens.shape == (len(text) + 2, 32)  # one token a character
        np.testing.assert_allclose(first, tokens[0], atol=1e-6)
        np.testing.assert_allclose(mean, tokens.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        model.embed("abc"), vectors["tokens"][0], atol=1e-5
    )


# --- Loading ----------------------------------------------------------------


def refusal(*arguments, **settings):
    with pytest.raises(errors.UserError) as caught:
        predictor.Predictor(*arguments, predictor.Settings(**settings))
    return str(caught.value)


def test_models_that_do_not_fit_the_task_are_rejected(
    folder, tmp_path, classifier
):
    assert "expected one of fill-mask, answer" in refusal(folder, "translate")
    assert "--max_seq_length is 513" in refusal(
        folder, "embed", max_seq_length=513
    )
    tiny.write_trained(tmp_path, ["masked_lm"])
    assert "without a question_answering head" in refusal(
        str(tmp_path), "answer"
    )
    (tmp_path / "merges.txt").unlink()
    assert "--merges_file is missing" in refusal(str(tmp_path), "fill-mask")
    with pytest.raises(errors.UserError, match="created for classify"):
        classifier.answer("a", "b")


@pytest.fixture
def squad_folder(tmp_path):
    """A function that writes a model of SQuAD with a task.json."""

    def write(**task):
        tiny.write_trained(tmp_path, ["question_answering", "classification"])
        (tmp_path / "task.json").write_text(
            json.dumps(dict(task, task="question_answering"))
        )
        return str(tmp_path)

    return write


def test_no_answer_needs_no_flags_after_training_on_version_2(
    squad_folder, caplog
):
    folder = squad_folder(
        version_2_with_negative=True, null_score_diff_threshold=-1000
    )

    def answer(**flags):
        return predictor.Predictor(
            folder, "answer", predictor.Settings(**flags)
        ).answer("Where?", TEXT)

    assert answer()["answer"] == ""
    # predictions.json of the training run has other answers.
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"null_score_diff_threshold=-1000, from {folder}/task.json; "
    )
    assert answer(null_score_diff_threshold=1000.0)["answer"] != ""
    assert len(caplog.records) == 1
    assert "null_odds" not in answer(version_2_with_negative=False)


def test_windows_are_those_of_training_unless_flags_say_otherwise(squad_folder):
    folder = squad_folder(
        max_seq_length=64, doc_stride=24, max_query_length=7, labels=["a", "b"]
    )

    def sizes(task, **flags):
        model = predictor.Predictor(folder, task, predictor.Settings(**flags))
        return model.max_length, model.doc_stride

    assert sizes("answer") == (64, 24)
    assert sizes("answer", doc_stride=8) == (64, 8)
    assert sizes("answer", max_seq_length=48) == (48, 16)
    assert sizes("classify")[0] == 512  # trained for another task
    model = predictor.Predictor(folder, "answer")
    assert model.answers.max_query_length == 7
    assert model.answers.max_answer_length == 30


def test_labels_have_the_names_of_the_task(tmp_path):
    tiny.write_trained(tmp_path, ["classification"], labels=2)
    (tmp_path / "task.json").write_text(
        '{"task": "classification", "labels": ["no", "yes"], '
        '"max_seq_length": 16}'
    )
    model = predictor.Predictor(str(tmp_path), "classify")
    result = model.classify("a" * 40)
    assert set(result["scores"]) == {"no", "yes"} and result["truncated"]


@pytest.mark.parametrize(
    "text", ['{"max_seq_length": 513}', '{"doc_stride": 0}', '{"task": ["a"]}']
)
def test_an_impossible_task_file_is_rejected(squad_folder, tmp_path, text):
    folder = squad_folder()
    values = dict({"task": "question_answering"}, **json.loads(text))
    (tmp_path / "task.json").write_text(json.dumps(values))
    (name,) = json.loads(text)
    assert name in refusal(folder, "answer")


def test_another_tokenizer_than_that_of_training_is_rejected(folder, tmp_path):
    vocabulary = json.loads(open(f"{folder}/vocab.json").read())
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(vocabulary))
    message = refusal(folder, "embed", vocab_file=str(path))
    assert f"{path}: not the same as {folder}/vocab.json" in message
    model = predictor.Predictor(
        folder,
        "embed",
        predictor.Settings(vocab_file=str(path), allow_other_tokenizer=True),
    )
    ids = predictor.Predictor(folder, "embed").tokenizer.encode("ab")
    assert model.tokenizer.encode("ba") == ids


def test_text_is_lower_cased_as_in_training(tmp_path):
    tiny.write_trained(tmp_path, ["masked_lm"])

    def first(text, **settings):
        return predictor.Predictor(
            str(tmp_path), "embed", predictor.Settings(**settings)
        ).embed_all([text])[0]["tokens"]

    assert first("AB")[1:-1] == ["A", "B"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert first("AB")[1:-1] == ["a", "b"]
    assert "do_lower_case is False" in refusal(
        str(tmp_path), "embed", do_lower_case=False
    )
    tokens = first("AB", do_lower_case=False, allow_other_tokenizer=True)
    assert tokens[1:-1] == ["A", "B"]


def test_a_model_of_the_first_version_answers_as_it_did(tmp_path):
    """It has no task.json, so the flags of its training are given again."""
    model = predictor.Predictor(
        str(FIRST_VERSION / "squad"),
        "answer",
        predictor.Settings(
            max_seq_length=64,
            doc_stride=32,
            max_query_length=24,
            version_2_with_negative=True,
        ),
    )
    answers = model.answer_all(
        squad.read_examples(str(FIRST_VERSION / "questions.json"), False, True)
    )
    recorded, odds = (
        json.loads((FIRST_VERSION / "squad" / name).read_text())
        for name in ("predictions.json", "null_odds.json")
    )
    assert {a["id"]: a["answer"] for a in answers} == recorded
    for answer in answers:
        assert answer["null_odds"] == pytest.approx(
            odds[answer["id"]], abs=1e-4
        )


# --- tag ---

TAGS = {"0": "O", "1": "B-PER", "2": "I-PER"}


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    tiny.write_trained(folder, ["tagging"], id2label=TAGS)
    settings = predictor.Settings(max_seq_length=12)
    return predictor.Predictor(str(folder), "tag", settings)


def test_a_tagger_labels_each_word(tagger):
    text = " (ab  cd!) 京都 don't."
    result = tagger.tag(text)
    words = ["(", "ab", "cd", "!", ")", "京", "都", "don't", "."]
    assert [word["word"] for word in result["words"]] == words
    assert all(
        text[w["start"] : w["end"]] == w["word"]
        and w["label"] in TAGS.values()
        and 1 / 3 < w["score"] < 1
        for w in result["words"]
    )
    entity_words = [w for w in result["words"] if w["label"] != "O"]
    covered = {
        place
        for entity in result["entities"]
        for place in range(entity["start"], entity["end"])
    }
    assert entity_words and all(w["start"] in covered for w in entity_words)
    for entity in result["entities"]:
        assert entity["type"] == "PER" and 1 / 3 < entity["score"] < 1
        assert text[entity["start"] : entity["end"]] == entity["text"]


def test_words_may_be_given(tagger):
    assert tagger.tag("ab cd") == tagger.tag(["ab", "cd"])
    assert tagger.tag_all([]) == []
    _, second = tagger.tag_all(["ab cd", ["ab", "c d"]])
    spans = [(w["word"], w["start"], w["end"]) for w in second["words"]]
    assert spans == [("ab", 0, 2), ("c d", 3, 6)]
    with pytest.raises(errors.UserError, match="text 2 has no word"):
        tagger.tag_all(["ab", " "])


def test_labels_that_are_not_of_entities_have_words_alone(tmp_path):
    tiny.write_trained(tmp_path, ["tagging"], id2label={"0": "NN", "1": "B-X"})
    assert set(predictor.Predictor(str(tmp_path), "tag").tag("ab")) == {"words"}
