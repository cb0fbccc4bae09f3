# SPDX-License-Identifier: Apache-2.0
"""Files of labelled words, and what their labels mean."""

import pytest

from common import errors
from tasks import conll


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return str(path)


FILE = (
    "\ufeff-DOCSTART- -X- O\r\n\r\nDol  NN I-PER\r\nkufs\tVB O\r\n\r\n"
    " \t \r\nM\u00a0r NN I-LOC\r\n-DOCSTART- -X- O\r\nzog NN O"
)


def test_sentences_end_at_blank_lines_and_documents(tmp_path):
    path = write(tmp_path / "a", FILE)
    sentences = conll.read(path, label_column=-1)
    assert [(s.words, s.labels) for s in sentences] == [
        (("Dol", "kufs"), ("I-PER", "O")),
        (("M\u00a0r",), ("I-LOC",)),
        (("zog",), ("O",)),
    ]
    assert sentences[0].place(1) == path + ", line 4"
    assert sentences[1].place(0) == path + ", line 7"


def test_columns_are_counted_from_either_end(tmp_path):
    path = write(tmp_path / "a", FILE)
    first = conll.read(path, token_column=-3, label_column=1)[0]
    assert (first.words, first.labels) == (("Dol", "kufs"), ("NN", "VB"))
    assert conll.read(write(tmp_path / "b", "Dol\nkufs\n"))[0].labels == ()


@pytest.mark.parametrize(
    "text, flags, message",
    [
        ("\n\n", {}, "no sentence; expected one word per line"),
        ("a B\nb\n", {}, "line 2: 1 columns, but 2 in the lines before it"),
        ("a B\n", {"token_column": 2}, r"no column 2 \(--token_column\)"),
        ("\na B\n", {"label_column": -3}, r"line 2: no column -3 \(--label_co"),
        ("a\n", {"label_column": -1}, "in the same column of 1"),
    ],
)
def test_files_of_another_form_are_rejected(tmp_path, text, flags, message):
    with pytest.raises(errors.UserError, match=message):
        conll.read(write(tmp_path / "a", text), **flags)


def test_other_encodings_are_rejected(tmp_path):
    (tmp_path / "a").write_bytes(b"d\xf6l O\n")
    with pytest.raises(errors.UserError, match="not UTF-8 text"):
        conll.read(str(tmp_path / "a"))


# scheme: labels and what they are in BIO
SCHEMES = {
    "IOB1": ("I-X I-X B-X I-X I-Y O I-Y", "B-X I-X B-X I-X B-Y O B-Y"),
    "BIO": ("B-X I-X B-X B-Y O B-Y", "B-X I-X B-X B-Y O B-Y"),
    "IOBES": ("S-X B-X I-X E-X O S-Y S-Y", "B-X B-X I-X I-X O B-Y B-Y"),
    "BILOU": ("U-X B-X I-X L-X O U-Y", "B-X B-X I-X I-X O B-Y"),
    "BIO with entities that begin with I-": ("B-X O I-X", "B-X O B-X"),
}


CHANGED = {
    "IOB1": 3,
    "BIO": 0,
    "IOBES": 4,
    "BILOU": 3,
    "BIO with entities that begin with I-": 1,
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_become_bio(scheme):
    labels, in_bio = (tuple(text.split()) for text in SCHEMES[scheme])
    sentence = conll.Sentence("file", 1, ("dol",) * len(labels), labels)
    (converted,), changed = conll.to_bio([sentence])
    assert converted.labels == in_bio
    assert changed == CHANGED[scheme]


def labelled(*labels):
    return [
        conll.Sentence(
            "file", 1, ("dol",) * len(text.split()), tuple(text.split())
        )
        for text in labels
    ]


def test_labels_of_words_without_entities_stay():
    sentences = labelled("NN VB", "O E-NN")
    assert conll.to_bio(sentences) == (sentences, 0)
    assert conll.labels_in(sentences).names == ("E-NN", "NN", "O", "VB")


def test_a_stray_label_is_named():
    with pytest.raises(
        errors.UserError,
        match="file, line 2: label 'B_X' among labels of entities",
    ):
        conll.to_bio(labelled("B-X B_X"))


def test_a_type_has_both_labels():
    assert conll.labels_in(labelled("B-Y O", "B-X I-X")).names == (
        "O",
        "B-X",
        "I-X",
        "B-Y",
        "I-Y",
    )


def test_the_wrong_column_is_noticed():
    with pytest.raises(
        errors.UserError,
        match="1 different labels, such as 'O'; check --label_column",
    ):
        conll.labels_in(labelled("O O"))
    with pytest.raises(errors.UserError, match="1001 different labels"):
        conll.labels_in(labelled(" ".join(map(str, range(1001)))))


def test_ids_follow_the_names():
    sentences = labelled("B-X O", "I-X")
    assert conll.label_ids(sentences, ("O", "B-X", "I-X")).tolist() == [1, 0, 2]
    with pytest.raises(
        errors.UserError,
        match="line 1: label 'I-X'; expected one of 'O', 'B-X'",
    ):
        conll.label_ids(sentences, ("O", "B-X"))


def test_what_is_written_can_be_read(tmp_path):
    sentences = labelled("B-X O", "O")
    text = conll.text_of(sentences)
    assert text == "dol B-X\ndol O\n\ndol O\n\n"
    written = conll.read(write(tmp_path / "a", text), label_column=-1)
    assert [s.labels for s in written] == [("B-X", "O"), ("O",)]
