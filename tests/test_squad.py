# SPDX-License-Identifier: Apache-2.0
"""SQuAD's questions, windows, labels and answers."""

import collections
import json
import math
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import squad
import tokenization
from common import errors
from helpers.paths import REPOSITORY
from question_answering import squad_decoding, squad_scores

CONTEXT = (
    "Varn lies on the Odra. Its mill, built in 1780, burned down twice;"
    " Anna Bell paid for the third."
)


class WordTokenizer:
    """One id a word, mark or run of spaces; spans as RobertaTokenizer's."""

    bos_id, pad_id, eos_id = 0, 1, 2

    def __init__(self):
        self.encoded = []

    def encode(self, text):
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text):
        self.encoded.append(text)
        spans = [
            m.span(m.lastindex)
            for m in re.finditer(r" ?(\w+|[^\w\s])|(\s+)", text)
        ]
        return [10 + sum(map(ord, text[a:b])) % 500 for a, b in spans], spans


def question(question_id="q1", text="Who paid?", answer="Anna Bell", **fields):
    if "answers" not in fields:
        fields["answers"] = [
            {"text": answer, "answer_start": CONTEXT.index(answer)}
        ]
    return dict(fields, id=question_id, question=text)


def dataset(*questions):
    return {
        "version": "1.1",
        "data": [
            {
                "title": "Varn",
                "paragraphs": [{"context": CONTEXT, "qas": list(questions)}],
            }
        ],
    }


def write(directory, value):
    path = directory / "data.json"
    path.write_text(
        value if isinstance(value, str) else json.dumps(value), encoding="utf-8"
    )
    return path


def example(**fields):
    values = dict(
        question_id="q1",
        question="Who paid?",
        context=CONTEXT,
        answer_text="Anna Bell",
        answer_start=CONTEXT.index("Anna Bell"),
    )
    return squad.Example(**dict(values, **fields))


def features(
    examples,
    max_seq_length=64,
    doc_stride=4,
    max_query_length=8,
    is_training=True,
    **more,
):
    return list(
        squad.convert_examples_to_features(
            examples,
            WordTokenizer(),
            max_seq_length,
            doc_stride,
            max_query_length,
            is_training,
            **more,
        )
    )


# --- Reading ---


def test_reads_answers_for_training_and_ignores_them_for_prediction(tmp_path):
    path = write(tmp_path, dataset(question()))
    assert squad.read_examples(path, True, False) == [example()]
    path = write(tmp_path, dataset(question(answers=[{"wrong": 1}])))
    assert squad.read_examples(path, False, False) == [
        example(answer_text="", answer_start=-1)
    ]


def test_prediction_needs_no_answers(tmp_path):
    plain = {"id": "q1", "question": "Who paid?"}
    path = write(tmp_path, dataset(plain))
    assert len(squad.read_examples(path, False, False)) == 1
    assert len(squad.read_examples(path, False, True)) == 1


def test_reads_unanswerable_questions_with_the_flag(tmp_path):
    path = write(
        tmp_path,
        dataset(
            question(is_impossible=False),
            question("q2", answers=[], is_impossible=True),
            question("q3", answers=[]),
        ),
    )
    examples = squad.read_examples(path, True, True)
    assert [e.is_impossible for e in examples] == [False, True, True]
    assert examples[1].answer_start == -1


@pytest.mark.parametrize(
    "fields",
    [
        dict(answers=[], is_impossible=True),
        dict(answers=[]),
        dict(plausible_answers=[{"text": "Anna", "answer_start": 0}]),
    ],
)
def test_v2_data_needs_the_flag(tmp_path, fields):
    path = write(tmp_path, dataset(question(), question("q2", **fields)))
    with pytest.raises(
        errors.UserError,
        match="'q2' has no answer.*--version_2_with_negative=True",
    ):
        squad.read_examples(path, True, False)


def test_no_more_processes_start_than_there_is_work(monkeypatch):
    asked = []

    def map_ordered(items, create, arguments, num_workers):
        asked.append(num_workers)
        return map(create(*arguments), items)

    monkeypatch.setattr(squad.worker_pool, "map_ordered", map_ordered)
    features([example()], num_workers=500)
    assert asked == [1]


def test_invalid_answers_are_errors_or_left_out(tmp_path):
    start = CONTEXT.index("Anna Bell") + 3
    path = write(
        tmp_path,
        dataset(
            question(),
            question(
                "q2", answers=[{"text": "Anna Bell", "answer_start": start}]
            ),
        ),
    )
    with pytest.raises(errors.UserError) as caught:
        squad.read_examples(path, True, False)
    for part in (
        "data.json",
        "'q2'",
        "'a Bell pa'",
        f"which is at {start - 3}",
        "--skip_invalid_answers=True",
    ):
        assert part in str(caught.value)
    counts = collections.Counter()
    examples = squad.read_examples(path, True, False, True, counts)
    assert [e.question_id for e in examples] == ["q1"]
    assert +counts == {"questions": 1, "skipped_invalid_answers": 1}


@pytest.mark.parametrize(
    "text, start",
    [("Anna Bell", -37), ("", 3), (" ", 4), ("third.x", len(CONTEXT) - 6)],
)
def test_answers_outside_the_context_are_invalid(tmp_path, text, start):
    path = write(
        tmp_path,
        dataset(question(answers=[{"text": text, "answer_start": start}])),
    )
    with pytest.raises(
        errors.UserError, match="answer_start" if text.strip() else "is empty"
    ):
        squad.read_examples(path, True, False)
    with pytest.raises(errors.UserError, match="every question"):
        squad.read_examples(path, True, False, skip_invalid_answers=True)


def change(path, value):
    """A data set in which the value at a path of keys is another."""
    data = dataset(question())
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


PARAGRAPH = ["data", 0, "paragraphs", 0]
QUESTION = PARAGRAPH + ["qas", 0]


@pytest.mark.parametrize(
    "data, named",
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 99999, "nested too deeply"),
        ("3", "expected an object"),
        ([], "no questions"),
        (change(["data"], []), "no questions"),
        (change(["data"], {"a": 1}), "'data' must be a list"),
        (change(["data", 0], "x"), "expected an object with 'paragraphs'"),
        (change(["data", 0, "paragraphs"], None), "article 0: 'paragraphs' is"),
        (change(PARAGRAPH + ["context"], None), "paragraph 0: 'context' is"),
        (change(PARAGRAPH + ["context"], 3), "'context' must be a string"),
        (change(PARAGRAPH + ["context"], " \n"), "or its context is empty"),
        (change(PARAGRAPH + ["context"], "\ud800"), "half a surrogate pair"),
        (change(PARAGRAPH + ["qas"], {}), "paragraph 0: 'qas' must be a list"),
        (
            change(PARAGRAPH + ["qas"], [question(), question()]),
            "'q1': this id is repeated",
        ),
        (change(QUESTION + ["id"], None), "'id' is missing"),
        (change(QUESTION + ["id"], ""), "'id' is empty"),
        (change(QUESTION + ["id"], True), "'id' must be a string"),
        (change(QUESTION + ["id"], "\ud800"), "question '\\ud800': its 'id'"),
        (
            change(QUESTION + ["answers"], {"text": ["a"], "answer_start": []}),
            "'q1': 'text' and 'answer_start' have different lengths",
        ),
        (change(QUESTION + ["question"], None), "'q1': 'question' is missing"),
        (change(QUESTION + ["answers"], None), "'q1': 'answers' is missing"),
        (change(QUESTION + ["answers"], [3]), "'q1': expected an object"),
        (
            change(QUESTION + ["answers", 0, "answer_start"], True),
            "a whole number",
        ),
        (
            change(QUESTION + ["answers", 0, "text"], 5),
            "'text' must be a string",
        ),
        (change(QUESTION + ["is_impossible"], "no"), "must be true or false"),
    ],
)
def test_faults_of_shape_name_the_place(tmp_path, data, named):
    with pytest.raises(errors.UserError) as caught:
        squad.read_examples(write(tmp_path, data), True, False)
    assert named in str(caught.value) and "data.json" in str(caught.value)


def test_is_impossible_must_agree_with_the_answers(tmp_path):
    path = write(tmp_path, dataset(question(is_impossible=False, answers=[])))
    with pytest.raises(errors.UserError, match="'q1' has is_impossible="):
        squad.read_examples(path, True, True)


# file: whether it is of v2.0, questions in training and in prediction, and
# what is counted.
CASES = {
    "answer_as_dict_HF": (False, 1, 1, {}),
    "answer_longer_than_window": (False, 1, 1, {}),
    "answers_null_v2": (True, 1, 1, {}),
    "cmrc2018_later_answer_misplaced": (False, 4, 4, {"ignored_answers": 4}),
    "covid_qa_cut": (False, 3, 3, {"moved_answers": 1}),
    "haystack287_not_given_has_answer": (True, 2, 2, {"ignored_answers": 1}),
    "haystack488_empty_context": (False, 1, 2, {"skipped_empty_contexts": 1}),
    "id_int": (False, 1, 1, {}),
    "second_answer_wrong": (False, 1, 1, {"ignored_answers": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_files_of_users_are_read(shared, name):
    is_v2, training, prediction, expected = CASES[name]
    path = shared / "cases" / "squad" / f"{name}.json"
    counts = collections.Counter()
    examples = squad.read_examples(path, True, is_v2, counts=counts)
    assert len(examples) == training
    assert +counts == dict(expected, questions=training)
    assert all(
        e.context.startswith(e.answer_text, e.answer_start)
        for e in examples
        if not e.is_impossible
    )
    assert len(squad.read_examples(path, False, is_v2)) == prediction


def test_the_answer_of_covid_qa_is_moved_by_a_blank(shared):
    path = shared / "cases" / "squad" / "covid_qa_cut.json"
    examples = squad.read_examples(path, True, False)
    assert [e.question_id for e in examples] == ["1658", "1659", "1719"]
    assert examples[2].answer_text == "HCoV-OC43 and HCoV-229E"
    assert examples[2].answer_start == 4101


def flat(**fields):
    """A question beside its context, as `datasets` has it."""
    return dict(question(**fields), context=CONTEXT)


ANNA = CONTEXT.index("Anna Bell")


@pytest.mark.parametrize(
    "text, start, moved_to",
    [
        ("Anna Bell", ANNA, None),
        (" Anna Bell", ANNA, ANNA),
        (" Anna Bell\n", ANNA - 2, ANNA),
        ("\n\n\nAnna Bell", ANNA - 3, ANNA),
        ("Anna Bell", ANNA - 2, ANNA),
        ("Anna Bell", ANNA + 2, ANNA),
        ("Varn", -1, 0),
    ],
)
def test_an_answer_near_its_place_is_moved(tmp_path, text, start, moved_to):
    answers = [{"text": text, "answer_start": start}]
    path = write(tmp_path, dataset(question(answers=answers)))
    counts = collections.Counter()
    (read,) = squad.read_examples(path, True, False, counts=counts)
    assert read.answer_text == text.strip()
    assert read.answer_start == (start if moved_to is None else moved_to)
    assert counts["moved_answers"] == (moved_to is not None)


def test_white_space_before_the_context_may_not_have_been_counted(tmp_path):
    data = dataset(question())
    data["data"][0]["paragraphs"][0]["context"] = " \n\n\t" + CONTEXT
    (read,) = squad.read_examples(write(tmp_path, data), True, False)
    assert (read.answer_text, read.answer_start) == ("Anna Bell", ANNA + 4)


@pytest.mark.parametrize(
    "in_context, in_answer",
    [("Anna\u00a0Bell", "Anna Bell"), ("A\nB", "A\u3000B")],
)
def test_kinds_of_white_space_are_alike_in_an_answer(
    tmp_path, in_context, in_answer
):
    """A web page's U+00A0 is often typed as a space."""
    data = dataset(
        question(answers=[{"text": f"{in_answer} ", "answer_start": ANNA}])
    )
    paragraph = data["data"][0]["paragraphs"][0]
    paragraph["context"] = CONTEXT.replace("Anna Bell", in_context)
    counts = collections.Counter()
    path = write(tmp_path, data)
    (read,) = squad.read_examples(path, True, False, counts=counts)
    assert (read.answer_text, read.answer_start) == (in_context, ANNA)
    assert counts["moved_answers"] == 1


@pytest.mark.parametrize("distance", [-3, 3])
def test_an_answer_three_characters_away_is_invalid(tmp_path, distance):
    answers = [{"text": "Anna Bell", "answer_start": ANNA + distance}]
    path = write(tmp_path, dataset(question(answers=answers)))
    with pytest.raises(errors.UserError, match=f"which is at {ANNA}"):
        squad.read_examples(path, True, False)


@pytest.mark.parametrize(
    "question_id, text",
    [(17, "17"), (17.0, "17"), (1.5, "1.5"), (-3, "-3"), (0, "0")],
)
def test_a_number_as_id_becomes_its_decimal_text(tmp_path, question_id, text):
    path = write(tmp_path, dataset(question(question_id)))
    assert squad.read_examples(path, True, False)[0].question_id == text
    gold = squad_scores.gold_answers("a", squad_scores.read_dataset(path))
    assert gold == [(text, ["Anna Bell"])]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Anna Bell", "Bell"], "answer_start": [ANNA, 0]},
        {"text": "Anna Bell", "answer_start": ANNA},
        [{"text": "Anna Bell", "answer_start": str(ANNA)}],
        [{"text": "Anna Bell", "answer_start": float(ANNA)}],
        [None, {"text": "Anna Bell", "answer_start": ANNA}, {"text": 3}],
    ],
)
@pytest.mark.parametrize("shape", ["SQuAD", "list", "data", "lines"])
def test_answers_of_other_shapes_are_read(tmp_path, answers, shape):
    one = flat(answers=answers)
    path = tmp_path / "data.json"
    if shape == "lines":
        path = tmp_path / "data.JSONL"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(one).encode() + b"\r\n\n")
    else:
        value = {"list": [one], "data": {"data": [one]}}
        write(tmp_path, value.get(shape) or dataset(question(answers=answers)))
    assert squad.read_examples(path, True, False) == [example()]


def test_null_is_an_empty_list(tmp_path):
    data = dataset(question(), question("q2", answers=None, is_impossible=None))
    data["data"] += [
        {"title": None, "paragraphs": None},
        {"paragraphs": [{"context": "c", "qas": None}, None]},
    ]
    examples = squad.read_examples(write(tmp_path, data), True, True)
    assert [e.is_impossible for e in examples] == [False, True]


def test_a_question_without_context_is_answered_with_nothing(tmp_path):
    data = change(PARAGRAPH + ["context"], " \n")
    examples = squad.read_examples(write(tmp_path, data), False, False)
    made = features(examples, is_training=False)
    logits = {f.unique_id: (np.ones(f.length),) * 2 for f in made}
    predictions, nbest, _ = squad.decode(
        examples, made, logits, 5, 30, False, 0.0
    )
    assert predictions == {"q1": ""} and nbest["q1"][0]["text"] == ""


@pytest.mark.parametrize(
    "max_seq_length, max_answer_length, in_no_window, long_answers",
    [(64, 2, 0, 0), (64, 1, 0, 1), (6, 30, 1, 0)],
)
def test_answers_that_cannot_be_learned_are_counted(
    max_seq_length, max_answer_length, in_no_window, long_answers
):
    counts = collections.Counter()
    features(
        [example(question="?"), example(question="?", is_impossible=True)],
        max_seq_length=max_seq_length,
        doc_stride=1,
        max_answer_length=max_answer_length,
        counts=counts,
    )
    assert counts["answers_in_no_window"] == in_no_window
    assert counts["long_answers"] == long_answers


# --- Windows ---


def test_a_short_context_is_one_window_with_its_answer():
    (feature,) = features([example()])
    tokenizer = WordTokenizer()
    query, ids = tokenizer.encode("Who paid?"), tokenizer.encode(CONTEXT)
    assert feature.input_ids == [0] + query + [2, 2] + ids + [2]
    assert feature.length == len(feature.input_ids)
    assert feature.context_start == len(query) + 3
    answer = feature.input_ids[
        feature.start_position : feature.end_position + 1
    ]
    assert answer == tokenizer.encode("Anna Bell")


def test_windows_overlap_and_the_last_reaches_the_end():
    context = "a b c d e f g"
    # 7 tokens; 1 of the question and 4 special ones leave room for 4.
    made = features(
        [
            example(
                context=context, question="?", answer_text="d e", answer_start=6
            )
        ],
        9,
        2,
        8,
    )
    assert [(f.doc_start, f.doc_length) for f in made] == [
        (0, 4),
        (2, 4),
        (4, 3),
    ]
    assert [(f.start_position, f.end_position) for f in made] == [
        (0, 0),
        (5, 6),
        (0, 0),
    ]
    assert [f.unique_id for f in made] == [0, 1, 2]
    # Room for exactly all of it: one window.
    assert (
        len(
            features(
                [example(context=context, question="?")],
                12,
                2,
                8,
                is_training=False,
            )
        )
        == 1
    )


def test_labels_take_every_token_that_the_answer_touches():
    start = CONTEXT.index("urned")
    (feature,) = features(
        [example(answer_text="urned down tw", answer_start=start)]
    )
    tokens = [
        feature.document.starts[i - feature.context_start]
        for i in (feature.start_position, feature.end_position)
    ]
    assert [CONTEXT[t : t + 5] for t in tokens] == ["burne", "twice"]


def test_characters_of_several_tokens_belong_to_the_answer_whole():
    class Bytes(WordTokenizer):
        def encode_with_offsets(self, text):
            spans = [
                (i, i + 1)
                for i, c in enumerate(text)
                for _ in c.encode("utf-8")
            ]
            return list(range(10, 10 + len(spans))), spans

    made = squad.convert_examples_to_features(
        [
            example(
                context="x京y", question="?", answer_text="京", answer_start=1
            )
        ],
        Bytes(),
        20,
        4,
        8,
        True,
    )
    feature = next(made)
    assert (feature.start_position, feature.end_position) == (5, 7)


def test_impossible_questions_are_labelled_with_the_first_column():
    (feature,) = features(
        [example(answer_text="", answer_start=-1, is_impossible=True)]
    )
    assert (feature.start_position, feature.end_position) == (0, 0)
    (feature,) = features([example()], is_training=False)
    assert feature.start_position is None


def test_long_questions_are_cut_and_counted():
    counts = collections.Counter()
    made = features(
        [example(question="who " * 9), example()],
        max_query_length=3,
        counts=counts,
    )
    assert made[0].context_start == 3 + 3
    assert +counts == {"truncated_questions": 1, "features": len(made)}


def many_examples(number=600):
    """Questions on many contexts, which come back in another order."""
    contexts = [
        f"Town {i} lies on river {i * i}. " * 3 for i in range(number // 4)
    ]
    return [
        example(
            question_id=str(i),
            question=f"Where is {i}?",
            context=contexts[i * 7 % len(contexts)],
            answer_text="lies",
            answer_start=contexts[i * 7 % len(contexts)].index("lies"),
        )
        for i in range(number)
    ]


def described(made):
    return [
        (
            f.unique_id,
            f.example_index,
            f.input_ids,
            f.doc_start,
            f.start_position,
            f.end_position,
        )
        for f in made
    ]


def test_a_context_is_tokenized_once():
    tokenizer, examples = WordTokenizer(), many_examples()
    made = list(
        squad.convert_examples_to_features(examples, tokenizer, 24, 4, 8, True)
    )
    calls = collections.Counter(tokenizer.encoded)
    assert {calls[e.context] for e in examples} == {1}
    assert [f.example_index for f in made if f.doc_start == 0] == list(
        range(len(examples))
    )


def test_workers_give_the_same_features():
    examples = many_examples()
    assert described(features(examples, 24, num_workers=2)) == described(
        features(examples, 24)
    )


@pytest.mark.parametrize(
    "settings, named",
    [
        ((64, 0, 8), "--doc_stride is 0; use 1 or more"),
        ((64, 4, 0), "--max_query_length is 0"),
        ((5, 1, 8), "use 6 or more"),
        ((64, 60, 8), "--max_seq_length=64 has room for 59 tokens"),
        ((8, 1, 8), "'q1' has 4 tokens.*--max_query_length of 3 or less"),
        ((16, 9, 8), "'q1' leaves room for 8 tokens.*--doc_stride=8 or less"),
    ],
)
def test_impossible_settings_say_what_to_use(settings, named):
    with pytest.raises(errors.UserError, match=named):
        features([example(question="Who paid it?")], *settings)


def test_settings_are_checked_before_the_first_feature_is_asked_for():
    with pytest.raises(errors.UserError):
        squad.convert_examples_to_features([], None, 64, 0, 8, True)


def test_training_needs_answers():
    with pytest.raises(errors.UserError, match="'q1' has no answer to train"):
        features([example(answer_text="", answer_start=-1)])


@pytest.fixture(scope="module")
def roberta(shared):
    return tokenization.RobertaTokenizer(
        str(shared / "data/roberta/vocab.json"),
        str(shared / "data/roberta/merges.txt"),
    )


def test_windows_equal_the_recorded_ones(roberta):
    path = REPOSITORY / "tests/data/golden/squad/features.json"
    compared = 0
    for case in json.loads(path.read_text(encoding="utf-8")):
        made = list(
            squad.convert_examples_to_features(
                [
                    squad.Example(
                        case["id"],
                        case["question"],
                        case["context"],
                        case["answer_text"],
                        case["answer_start"],
                    )
                ],
                roberta,
                case["max_seq_length"],
                case["doc_stride"],
                case["max_query_length"],
                True,
            )
        )
        assert [
            {
                "doc_start": f.doc_start,
                "input_ids": f.input_ids,
                "start_position": f.start_position,
                "end_position": f.end_position,
            }
            for f in made
        ] == case["windows"]
        compared += len(made)
    assert compared == 109


# --- Decoding ---


def random_results(made, seed, columns=64):
    random = np.random.RandomState(seed)
    return {
        f.unique_id: tuple(random.randn(2, columns).astype(np.float32))
        for f in made
    }


def decode(
    examples,
    made,
    results,
    n_best_size=5,
    max_answer_length=3,
    version_2_with_negative=False,
    threshold=0.0,
    **more,
):
    return squad.decode(
        examples,
        made,
        results,
        n_best_size,
        max_answer_length,
        version_2_with_negative,
        threshold,
        **more,
    )


def has_most_context(window, windows, token):
    """BERT's rule, one token at a time."""

    def score(w):
        left = token - w.doc_start
        right = w.doc_length - 1 - left
        inside = min(left, right) >= 0
        return min(left, right) + 0.01 * w.doc_length if inside else -1

    return window is max(windows, key=score)


def expected_answers(example, windows, results, n_best_size, max_length):
    """Best (score, text) by trying every span; random scores do not tie."""
    found = []
    for window in windows:
        start, end = (x.astype(float) for x in results[window.unique_id])
        spans = []
        for i in range(window.doc_length):
            if not has_most_context(window, windows, window.doc_start + i):
                continue
            for j in range(i, min(i + max_length, window.doc_length)):
                a = window.document.starts[window.doc_start + i]
                b = window.document.ends[window.doc_start + j]
                spans.append(
                    (
                        start[window.context_start + i]
                        + end[window.context_start + j],
                        example.context[a:b],
                    )
                )
        found += sorted(spans, reverse=True)[:n_best_size]
    best = collections.OrderedDict()
    for score, text in sorted(found, reverse=True):
        best.setdefault(text, score)
    return [(s, t) for t, s in best.items()][:n_best_size]


@pytest.mark.parametrize(
    "settings", [(64, 4, 8), (16, 2, 8), (13, 5, 4), (17, 3, 2)]
)
@pytest.mark.parametrize("n_best_size, max_length", [(1, 1), (5, 3), (20, 40)])
def test_decode_finds_the_best_of_all_spans(settings, n_best_size, max_length):
    examples = [
        example(question_id=str(i), context=CONTEXT[9 * i :]) for i in range(6)
    ]
    made = features(examples, *settings, is_training=False)
    results = random_results(made, seed=sum(settings))
    predictions, nbest, odds = decode(
        examples, made, results, n_best_size, max_length
    )
    assert odds == {}
    for index, one in enumerate(examples):
        windows = [f for f in made if f.example_index == index]
        expected = expected_answers(
            one, windows, results, n_best_size, max_length
        )
        listed = nbest[one.question_id]
        assert [x["text"] for x in listed] == [t for _, t in expected]
        assert [x["start_logit"] + x["end_logit"] for x in listed] == (
            pytest.approx([s for s, _ in expected])
        )
        assert predictions[one.question_id] == expected[0][1]


def test_distinct_answers_neither_overlap_nor_repeat():
    """Of "1721", "built in 1721" and "1721 by two" the best one stays."""
    listed = [
        {"text": text, "probability": share, "start": start, "end": end}
        for text, share, start, end in [
            ("1721", 0.32, 16, 20),
            ("built in 1721", 0.2, 7, 20),
            ("", 0.16, None, None),
            ("1721 by two", 0.12, 16, 27),
            ("The mill", 0.08, 40, 48),
            (" by two", 0.08, 20, 27),  # begins where the first one ends
            ("mill,", 0.04, 60, 65),
        ]
    ]
    answers = squad_decoding.distinct_answers(listed, 3)
    assert [entry["text"] for entry in answers] == ["1721", "", "The mill"]
    shares = [entry["probability"] for entry in answers]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.125])
    assert listed[0]["probability"] == 0.32
    everything = squad_decoding.distinct_answers(listed, 9)
    assert [entry["text"] for entry in everything[3:]] == [" by two"]


def test_nbest_lists_each_text_once_with_probabilities_that_sum_to_one():
    examples = [example(context="go go go. Go go")]
    made = features(examples, 14, 3, 8, is_training=False)
    for version_2 in (False, True):
        predictions, nbest, _ = decode(
            examples, made, random_results(made, 3), 20, 2, version_2
        )
        listed = nbest["q1"]
        texts = [x["text"] for x in listed]
        assert len(set(texts)) == len(texts) > 3
        assert ("" in texts) == version_2
        probabilities = [x["probability"] for x in listed]
        assert math.isclose(sum(probabilities), 1.0)
        assert probabilities == sorted(probabilities, reverse=True)
        assert probabilities[0] / probabilities[1] == pytest.approx(
            math.exp(
                listed[0]["start_logit"]
                + listed[0]["end_logit"]
                - listed[1]["start_logit"]
                - listed[1]["end_logit"]
            )
        )
        json.dumps([predictions, nbest], allow_nan=False)


def pointing(feature, first, last, value=9.0, null=0.0):
    """Logits for one span of context tokens and for `<s>`."""
    logits = np.zeros([2, feature.length], np.float32)
    logits[0, feature.context_start + first] = value
    logits[1, feature.context_start + last] = value
    logits[:, 0] = null
    return tuple(logits)


def test_answers_are_the_exact_text_of_the_context():
    examples = [example()]
    made = features(examples)
    predictions, _, _ = decode(
        examples, made, {0: pointing(made[0], 1, 5)}, max_answer_length=8
    )
    assert predictions == {"q1": "lies on the Odra."}


def test_an_answer_begins_where_a_token_has_most_context():
    examples = [example(context="a b c d e f g", question="?")]
    made = features(examples, 9, 2, 8, is_training=False)
    # Token 3 ends the first window and stands in the middle of the second.
    results = {
        0: pointing(made[0], 3, 3, 9.0),
        1: pointing(made[1], 2, 2, 1.0),
        2: pointing(made[2], 2, 2, 0.5),
    }
    for window, column, text in ((1, 2, "e"), (1, 1, "d")):
        results[1] = pointing(made[window], column, column, 5.0)
        assert decode(examples, made, results, max_answer_length=1)[0] == {
            "q1": text
        }


def test_tokens_of_white_space_are_no_answer():
    examples = [example(context="one \n\n two")]
    made = features(examples, is_training=False)
    for first, last in ((1, 1), (0, 1), (1, 2)):
        predictions, nbest, _ = decode(
            examples, made, {0: pointing(made[0], first, last)}
        )
        assert predictions["q1"] in ("one", "two", "one \n\n two")
        assert [x["text"] for x in nbest["q1"] if not x["text"].strip()] == []


def test_logits_beyond_the_tokens_are_ignored_and_minus_infinity_masks():
    examples = [example()]
    made = features(examples, is_training=False)
    start, end = pointing(made[0], 4, 4)
    start[: made[0].context_start] = -np.inf
    tail = np.full(7, np.nan)
    predictions, nbest, odds = decode(
        examples,
        made,
        {0: (np.append(start, tail), np.append(end, tail))},
        version_2_with_negative=True,
    )
    assert predictions == {"q1": "Odra"}
    json.dumps([nbest, odds], allow_nan=False)


def two_windows():
    examples = [example(context="a b c d e f g", question="?")]
    made = features(examples, 11, 4, 8, is_training=False)
    assert len(made) == 2
    return (
        examples,
        made,
        {
            0: pointing(made[0], 1, 1, 2.0, null=3.0),
            1: pointing(made[1], 2, 2, 1.0, null=2.5),
        },
    )


def test_null_odds_take_the_smallest_null_score_of_all_windows():
    examples, made, results = two_windows()
    predictions, nbest, odds = decode(
        examples, made, results, version_2_with_negative=True
    )
    # 2.5 + 2.5 for "", 2 + 2 for "b".
    assert odds == {"q1": 1.0} and predictions == {"q1": ""}
    assert [(x["text"], x["start_logit"]) for x in nbest["q1"][:2]] == [
        ("", 2.5),
        ("b", 2.0),
    ]
    for threshold, text in ((0.99, ""), (1.0, "b"), (math.inf, "b")):
        assert decode(
            examples,
            made,
            results,
            version_2_with_negative=True,
            threshold=threshold,
        )[0] == {"q1": text}


def test_an_answerability_classifier_lowers_the_null_odds():
    examples, made, results = two_windows()
    predictions, nbest, odds = decode(
        examples,
        made,
        results,
        version_2_with_negative=True,
        answerable_logits={0: -4.0, 1: 1.5},
    )
    assert odds == {"q1": 1.0 - 1.5} and predictions == {"q1": "b"}
    assert [x["text"] for x in nbest["q1"][:2]] == ["b", ""]
    with pytest.raises(errors.UserError, match="'q1'.*feature 1 is missing"):
        decode(
            examples,
            made,
            results,
            version_2_with_negative=True,
            answerable_logits={0: 1.0},
        )


@pytest.mark.parametrize("n_best_size", [1, 2, 3])
def test_the_empty_answer_stays_in_a_short_list(n_best_size):
    examples, made, results = two_windows()
    results = {k: (s * [0] + s, e) for k, (s, e) in results.items()}
    for pair in results.values():
        pair[0][0] = -50
    _, nbest, _ = decode(
        examples, made, results, n_best_size, version_2_with_negative=True
    )
    texts = [x["text"] for x in nbest["q1"]]
    assert len(texts) == n_best_size and texts[0] == "b"
    assert n_best_size == 1 or texts[-1] == ""


def test_v1_always_answers():
    examples, made, _ = two_windows()
    results = {f.unique_id: pointing(f, 0, 0, -5.0, null=90.0) for f in made}
    predictions, nbest, odds = decode(examples, made, results, n_best_size=1)
    assert predictions["q1"] and len(nbest["q1"]) == 1 and odds == {}


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda r: r.pop(1), "'q1': no logits for its feature 1"),
        (
            lambda r: r.update({1: (r[1][0][:-1], r[1][1])}),
            "feature has 11 tokens",
        ),
        (lambda r: r[0][0].put(5, np.nan), "'q1'.*NaN or infinite"),
        (lambda r: r[1][1].put(0, np.inf), "'q1'.*NaN or infinite"),
    ],
)
def test_faulty_results_name_the_question(change, named):
    examples, made, results = two_windows()
    made[1] = made[1]._replace(doc_start=1, doc_length=6)  # 11 tokens too
    results = {f.unique_id: (np.zeros(11), np.zeros(11)) for f in made}
    change(results)
    with pytest.raises(errors.UserError, match=named):
        decode(examples, made, results)


def test_faulty_settings_of_decode_are_errors():
    examples, made, results = two_windows()
    with pytest.raises(errors.UserError, match="--n_best_size is 0"):
        decode(examples, made, results, n_best_size=0)
    with pytest.raises(errors.UserError, match="--max_answer_length is 0"):
        decode(examples, made, results, max_answer_length=0)
    with pytest.raises(errors.UserError, match="nan"):
        decode(examples, made, results, threshold=math.nan)
    with pytest.raises(errors.UserError, match="'q2' has no features"):
        decode(examples + [example(question_id="q2")], made, results)


def test_equal_scores_are_listed_in_the_order_of_the_text():
    examples = [example(context="a b c d", question="?")]
    made = features(examples, is_training=False)
    _, nbest, _ = decode(
        examples,
        made,
        {0: (np.zeros(64), np.zeros(64))},
        n_best_size=4,
        max_answer_length=2,
    )
    assert [x["text"] for x in nbest["q1"]] == ["a", "a b", "b", "b c"]
    start, end = np.zeros(64), np.zeros(64)
    start[made[0].context_start + 1] = end[made[0].context_start + 1] = 1
    end[[made[0].context_start, made[0].context_start + 2]] = 2
    _, nbest, _ = decode(
        examples, made, {0: (start, end)}, n_best_size=3, max_answer_length=2
    )
    assert [x["text"] for x in nbest["q1"]] == ["b c", "a", "b"]


def test_answers_do_not_depend_on_the_order_of_features():
    examples = many_examples(80)
    made = features(examples, 24, is_training=False)
    results = random_results(made, 11)
    assert decode(
        examples, made[::-1], results, version_2_with_negative=True
    ) == decode(examples, made, results, version_2_with_negative=True)


def test_decoding_takes_memory_for_the_windows_alone():
    peaks = []
    for tokens in (2000, 8000):
        examples = [example(context="a " * tokens)]
        made = features(examples, 32, 8, is_training=False)
        results = random_results(made, 3, columns=32)
        tracemalloc.start()
        decode(examples, made, results)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Linear: 4 times as much. A matrix of windows by tokens: 16 times.
    assert peaks[1] < 5 * peaks[0]


def oracle_scores(path, tokenizer, tmp_path, max_answer_length):
    """What evaluate-v1.1.py says of logits that point at the gold span."""
    examples = squad.read_examples(path, True, False)
    made = list(
        squad.convert_examples_to_features(
            examples, tokenizer, 384, 128, 64, True
        )
    )
    results = {}
    for f in made:
        logits = np.zeros([2, f.length], np.float32)
        # Column 0 stands for "not in this window".
        logits[[0, 1], [f.start_position, f.end_position]] = 10
        results[f.unique_id] = tuple(logits)
    predictions, _, _ = squad.decode(
        examples, made, results, 20, max_answer_length, False, 0.0
    )
    for one in examples:
        assert predictions[one.question_id] in one.context
    written = tmp_path / "predictions.json"
    written.write_text(json.dumps(predictions))
    return json.loads(
        subprocess.check_output(
            [
                sys.executable,
                str(REPOSITORY / "scripts/evaluate-v1.1.py"),
                str(path),
                str(written),
            ]
        )
    )


@pytest.mark.parametrize(
    "language, max_answer_length",
    [("en", 30), ("es", 200), ("zh", 200), ("ar", 200)],
)
def test_gold_spans_decode_to_gold_answers(
    shared, roberta, tmp_path, language, max_answer_length
):
    # RoBERTa's vocabulary takes several tokens a letter outside English.
    result = oracle_scores(
        shared / f"data/squad/xquad.{language}.json",
        roberta,
        tmp_path,
        max_answer_length,
    )
    assert result["exact_match"] >= 99.9 and result["f1"] >= 99.97


def test_a_threshold_from_null_odds_beats_zero():
    examples = [
        example(question_id=str(i), is_impossible=i % 3 == 0) for i in range(60)
    ]
    made = features(examples, is_training=False)
    random = np.random.RandomState(5)
    results = {}
    for f in made:
        token = 7 if random.rand() < 0.8 else 2  # "mill" or another word
        results[f.unique_id] = pointing(
            f,
            token,
            token,
            3.0 + 2 * (f.example_index % 3 > 0),
            null=4.0 + 3 * random.rand(),
        )
    gold = {
        e.question_id: [] if e.is_impossible else ["mill"] for e in examples
    }
    answers, _, odds = decode(
        examples,
        made,
        results,
        max_answer_length=12,
        version_2_with_negative=True,
        threshold=math.inf,
    )
    assert all(answers.values())
    best = squad_scores.find_best_thresholds(gold, answers, odds)

    def score(threshold):
        predictions, _, _ = decode(
            examples,
            made,
            results,
            max_answer_length=12,
            version_2_with_negative=True,
            threshold=threshold,
        )
        values = squad_scores.scores(gold, predictions)[1]
        return 100 * sum(values.values()) / len(gold)

    assert score(best["best_f1_thresh"]) == pytest.approx(best["best_f1"])
    assert best["best_f1"] > score(0.0)


@pytest.mark.parametrize(
    "trained, requested, warns",
    [
        (False, True, "SQuAD v1.1"),
        (True, False, "SQuAD v2.0"),
        (True, True, ""),
        (True, None, ""),
        (False, False, ""),
        (None, True, ""),
        (None, False, ""),
    ],
)
def test_a_model_of_another_version_is_warned_of(
    trained, requested, warns, caplog
):
    with caplog.at_level("WARNING"):
        squad.warn_if_other_version(trained, requested)
    assert ("trained on" in caplog.text) == bool(warns)
    assert warns in caplog.text
