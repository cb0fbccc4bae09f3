# SPDX-License-Identifier: Apache-2.0
"""Files of labelled words, and what their labels mean."""

import lzma

import pytest

from common import errors
from tasks import conll, task_scores


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


COLUMNS = "\t_" * 6 + "\tSpaceAfter=No\n"
CONLL_U = "".join(
    line + (COLUMNS if "\t" in line else "\n")
    for line in (
        "# sent_id = 1",
        "1-2\tdoli\t_",
        "1\tdol\tVB",
        "2\t#i\tNN",
        "2.1\tkufs\tVB",
        "3-4\tzogs\t_",
        "3\t10 000\tCD",
        "4\t# s\tNN",
        "# text = the end",
        "",
        "# sent_id = 2",
        "1\tmer\tVB",
        "# the end",
    )
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_u_has_words_alone(tmp_path, end):
    path = write(tmp_path / "a", CONLL_U.replace("\n", end))
    sentences = conll.read(path, label_column=2)
    assert [(s.words, s.labels) for s in sentences] == [
        (("dol", "#i", "10 000", "# s"), ("VB", "NN", "CD", "NN")),
        (("mer",), ("VB",)),
    ]
    assert sentences[0].place(2) == path + ", line 7"
    assert conll.text_of(sentences).startswith("dol\tVB\n#i\tNN\n10 000\tCD")


def test_a_file_of_conll_u_has_52_words(shared):
    path = shared / "cases" / "tagging" / "allennlp_dep.conllu"
    sentences = conll.read(str(path), label_column=3)
    assert sum(len(s.words) for s in sentences) == 52
    assert sentences[0].words[:3] == ("What", "if", "Google")
    assert sentences[0].labels[:3] == ("PRON", "SCONJ", "PROPN")


@pytest.mark.parametrize(
    "text, words",
    [
        ("# id 12\tdomain=en\na _ _ O\n# _ _ O\n\n", [("a", "#")]),
        ("# id 12 domain=en\na O\n\n# a comment here\nb O\n", ["a", "b"]),
        ("#begin document (x);\na O\n#end document\n", ["a"]),
        ("# O\n#tag O\n", [("#", "#tag")]),
        ("#tag\tO\n#\tO\n", [("#tag", "#")]),
    ],
)
def test_comments_are_told_from_words(tmp_path, text, words):
    sentences = conll.read(write(tmp_path / "a", text), label_column=-1)
    assert [s.words for s in sentences] == [tuple(w) for w in words]


@pytest.mark.parametrize(
    "submission, f1", [("sub_flytxt", 0.3835), ("sub_sjtu_adapt.txt", 0.4042)]
)
def test_submissions_to_wnut17_score_as_published(shared, submission, f1):
    pytest.importorskip("seqeval")
    labels = []
    for name in ("emerging.test.annotated", submission):
        path = str(shared / "cases" / "tagging" / name)
        sentences, _ = conll.to_bio(conll.read(path, label_column=-1))
        labels.append([list(s.labels) for s in sentences])
    scores = task_scores.entity_scores(*labels)
    assert round(scores["f1"], 4) == f1


def test_entities_end_where_their_type_does():
    labels = ["B-X", "I-X", "I-Y", "B-X", "B-X", "O", "B-Y"]
    assert conll.entities(labels) == [
        ("X", 0, 2),
        ("X", 3, 4),
        ("X", 4, 5),
        ("Y", 6, 7),
    ]


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


def test_a_compressed_file_names_the_tool(tmp_path):
    (tmp_path / "a").write_bytes(lzma.compress(b"Paris B-LOC\n"))
    message = "a: compressed; decompress it with unxz$"
    with pytest.raises(errors.UserError, match=message):
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
    (converted,), changed = conll.to_bio(labelled(" ".join(labels)))
    assert converted.labels == in_bio
    assert changed == CHANGED[scheme]


def labelled(*texts):
    return [
        conll.Sentence(
            "file",
            range(1, len(labels) + 1),
            ("dol",) * len(labels),
            tuple(labels),
        )
        for labels in map(str.split, texts)
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


def test_comments_of_germeval_are_skipped(tmp_path):
    path = tmp_path / "germeval.tsv"
    path.write_text(
        "#\thttp://x\t[2009-10-23]\t\n1\tDer\tO\tO\n2\t#\tO\tO\n\n"
        "#\thttp://y\t[2009]\t\n1\tRhein\tB-LOC\tO\n"
    )
    sentences = conll.read(str(path), token_column=1, label_column=2)
    assert [s.words for s in sentences] == [("Der", "#"), ("Rhein",)]
