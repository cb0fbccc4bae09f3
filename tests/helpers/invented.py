# SPDX-License-Identifier: Apache-2.0
"""Texts of invented words whose class shows in their vowels.

A class has vowels of its own, in some of a text's words; a tiny model that
reads bytes learns that in seconds, and texts it was not trained on show
whether it did.
"""

import json
import random

CONSONANTS = "bdfgklmnprst"
VOWELS = ("ae", "ou", "iy")  # one pair a class


def word(chance, vowels, syllables=2):
    return "".join(
        chance.choice(CONSONANTS) + chance.choice(vowels)
        for _ in range(syllables)
    )


def text(chance, label, others=""):
    """A text of a class; other words have any vowel of `others`."""
    words = [word(chance, VOWELS[label]) for _ in range(3)]
    words += [
        word(chance, others or VOWELS[label])
        for _ in range(chance.randint(1, 3))
    ]
    chance.shuffle(words)
    return " ".join(words)


def texts(count, seed, labels=2):
    """[(text, class)], the classes in turn."""
    chance = random.Random(seed)
    return [
        (text(chance, number % labels, "uy"), number % labels)
        for number in range(count)
    ]


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join("\t".join(map(str, row)) + "\n" for row in [header] + rows)
    )


def write_sst2(folder):
    """A directory of GLUE's SST-2."""
    for name, count, seed in (("train", 240, 1), ("dev", 60, 2)):
        write_table(
            folder / (name + ".tsv"), ["sentence", "label"], texts(count, seed)
        )
    write_table(
        folder / "test.tsv",
        ["index", "sentence"],
        [(number, each) for number, (each, _) in enumerate(texts(20, 3))],
    )
    return folder


MNLI_LABELS = ("contradiction", "entailment", "neutral")


def write_mnli(folder):
    """A directory of GLUE's MNLI, with the diagnostic set in it."""
    chance = random.Random(4)
    header = ["index", "sentence1", "sentence2"]
    for name, count in (
        ("train", 24),
        ("dev_matched", 6),
        ("dev_mismatched", 9),
    ):
        write_table(
            folder / (name + ".tsv"),
            header + ["gold_label"],
            [
                (number, word(chance, "aeiou"), each, MNLI_LABELS[label])
                for number, (each, label) in enumerate(texts(count, 5, 3))
            ],
        )
    for name, count in (
        ("test_matched", 4),
        ("test_mismatched", 5),
        ("diagnostic", 3),
    ):
        write_table(
            folder / (name + ".tsv"),
            header,
            [
                (number, word(chance, "aeiou"), each)
                for number, (each, _) in enumerate(texts(count, 6, 3))
            ],
        )
    return folder


def write_scores(path, count, seed):
    """JSON lines of texts whose score is the share of `a` among vowels."""
    chance = random.Random(seed)
    with open(str(path), "w") as stream:
        for _ in range(count):
            high = chance.randint(0, 8)
            words = [
                word(chance, "a" if place < high else "o", 1)
                for place in range(8)
            ]
            chance.shuffle(words)
            stream.write(
                json.dumps({"text": " ".join(words), "label": high / 8}) + "\n"
            )
    return path


def label_sets(count, seed):
    """[(text, names of the classes of its words, of none to all)]."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        classes = [c for c in range(len(VOWELS)) if chance.random() < 0.5]
        words = [word(chance, VOWELS[c]) for c in classes for _ in range(2)]
        words.append(word(chance, "w"))
        chance.shuffle(words)
        rows.append((" ".join(words), [VOWELS[c] for c in classes]))
    return rows


def write_race(folder):
    """A directory of RACE; the right option has other vowels."""
    chance = random.Random(7)
    for part, count in (("train", 30), ("dev", 12), ("test", 2)):
        for level in ("middle", "high"):
            place = folder / part / level
            place.mkdir(parents=True)
            for number in range(count):
                article = _article(chance)
                article["id"] = f"{level}{number}.txt"
                (place / (f"{number}.txt")).write_text(json.dumps(article))
    return folder


def _article(chance):
    answers = [chance.randrange(4) for _ in range(2)]
    return {
        "article": " ".join(word(chance, "aeiou") for _ in range(4)),
        "questions": [word(chance, "aeiou") + end for end in (" ?", " _ .")],
        "options": [
            [word(chance, VOWELS[place == answer]) for place in range(4)]
            for answer in answers
        ],
        "answers": ["ABCD"[answer] for answer in answers],
    }


def tagged_sentence(chance, scheme):
    """[(word, label)]; a word's vowels tell its label's type, or O.

    Words begin with a vowel: it is their first token that has the label.
    Entities have one word or two; those of one type never touch. In IOB1, all
    of them begin with I-.
    """
    rows, before = [], None
    for _ in range(chance.randint(3, 5)):
        kind = chance.choice(
            [each for each in range(len(VOWELS)) if each == 2 or each != before]
        )
        before = kind
        if kind == 2:
            rows.append((word(chance, VOWELS[kind], 1)[::-1], "O"))
            continue
        for place in range(chance.randint(1, 2)):
            begins = place == 0 and scheme == "BIO"
            rows.append(
                (
                    word(chance, VOWELS[kind], 1)[::-1],
                    f"{('B' if begins else 'I')}-{('PER', 'LOC')[kind]}",
                )
            )
    return rows


def write_conll(folder):
    """train.txt as CoNLL-2003 came, dev.txt and test.txt as BIO."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, scheme, seed in (
        ("train", 300, "IOB1", 8),
        ("dev", 60, "BIO", 9),
        ("test", 20, "BIO", 10),
    ):
        chance = random.Random(seed)
        lines = ["-DOCSTART- -X- O", ""]
        for _ in range(count):
            lines += [
                f"{word} NN {label}"
                for word, label in tagged_sentence(chance, scheme)
            ] + [""]
        (folder / (name + ".txt")).write_text("\n".join(lines))
    return folder
