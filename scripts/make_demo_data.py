# SPDX-License-Identifier: Apache-2.0
"""Writes the data that scripts/demo.sh and the tests run on, into demo/.

    python scripts/make_demo_data.py [DIRECTORY]

Everything is invented: towns, people and rivers are named by joined
syllables. A paragraph states two facts about each of two of them, in any
order:

    The mayor of Blevgora is Drovin. Olvrik was born in 1712. ...

Facts are drawn anew for each paragraph, so only reading it answers a question
about it. A question of v2.0 without an answer asks for a fact about one of
the two that the paragraph leaves out. A document of the pre-training text
states each fact a second time in other words: a masked name can be found by
finding the other sentence about the same fact, which is what a question asks
for as well.

All files follow from SEED alone, on every Python; names of the evaluation
files (eval_text.txt, dev-*.json) stand in none of the training files.
"""

import argparse
import collections
import itertools
import json
import os
import random
import re
import typing

SEED = 20240229
TEXT_DOCUMENTS = 3000
EVAL_DOCUMENTS = 60
TRAIN_PARAGRAPHS = 1000
DEV_PARAGRAPHS = 80
FACTS = 4  # in a paragraph, half of them about each subject
QUESTIONS = 3  # with an answer, to a paragraph
UNANSWERABLE = 2  # at most, to a paragraph of v2.0
MERGES = 360
HELD_OUT = 6  # every sixth name is kept for evaluation

# No start with an end makes a place of GeoNames with 500 inhabitants or more, a
# name of the census of the United States, or an English, German, French,
# Italian, Spanish or Dutch word (searched in November 2026).
_STARTS = (
    "Blev Blis Chalv Crin Drov Dwar Falb Glav Glon Holv Jask Jelf Jorv "
    "Kelv Krol Lurv Nolv Olv Plez Plon Prel Quend Skuld Slorn Snav "
    "Thrun Velb Vran Yolv Zolv"
).split()
_ENDS = {
    "town": "gora mund stead wick holm dale minster ford brun lund "
    "haven moor burn cote".split(),
    "person": "vin eth rik onna ilda amir usk ena obar ulf "
    "issa ander omi ket".split(),
    "river": "sa une ath ibble arra ome isk evel ura enne "
    "olt ynn ava osse".split(),
}
_WORDS = {
    "good": "glass salt cheese rope honey paper bells carpets knives boats "
    "silk candles apples leather".split(),
    "job": "baker tailor printer miller painter doctor smith teacher gardener "
    "carpenter sailor judge".split(),
}


class Relation(typing.NamedTuple):
    """A kind of fact; {s} stands for its subject, {v} for its value."""

    subject: str
    value: str
    statements: typing.Tuple[str, ...]
    questions: typing.Tuple[str, ...]


RELATIONS = (
    Relation(
        "town",
        "person",
        (
            "The mayor of {s} is {v}.",
            "In {s} the mayor is {v}.",
            "{v} is mayor of {s}.",
        ),
        ("Who is the mayor of {s}?", "What is the mayor of {s} called?"),
    ),
    Relation(
        "town",
        "river",
        (
            "{s} lies on the river {v}.",
            "The river {v} runs through {s}.",
            "In {s} the river is {v}.",
        ),
        ("On which river does {s} lie?", "Which river runs through {s}?"),
    ),
    Relation(
        "town",
        "year",
        (
            "{s} was founded in {v}.",
            "In {v} {s} was founded.",
            "The founding of {s} was in {v}.",
        ),
        ("When was {s} founded?", "In which year was {s} founded?"),
    ),
    Relation(
        "town",
        "good",
        (
            "{s} is known for {v}.",
            "In {s} people sell {v}.",
            "Many buy {v} in {s}.",
        ),
        ("What is {s} known for?", "What do people sell in {s}?"),
    ),
    Relation(
        "person",
        "town",
        (
            "The home of {s} is {v}.",
            "In {v} {s} has a home.",
            "{s} lives in {v}.",
        ),
        ("Where is the home of {s}?", "In which town does {s} live?"),
    ),
    Relation(
        "person",
        "job",
        (
            "The work of {s} is that of a {v}.",
            "{s} works as a {v}.",
            "As a {v} {s} earns a living.",
        ),
        ("What is the work of {s}?", "What does {s} work as?"),
    ),
    Relation(
        "person",
        "year",
        (
            "The birth of {s} was in {v}.",
            "{s} was born in {v}.",
            "In {v} {s} was born.",
        ),
        ("When was {s} born?", "In which year was {s} born?"),
    ),
    Relation(
        "river",
        "town",
        (
            "The river {s} rises near {v}.",
            "Near {v} rises the {s}.",
            "The source of the {s} is near {v}.",
        ),
        (
            "Near which town does the {s} rise?",
            "Where is the source of the {s}?",
        ),
    ),
    Relation(
        "river",
        "length",
        (
            "The river {s} is {v} miles long.",
            "The length of the {s} is {v} miles.",
            "For {v} miles flows the {s}.",
        ),
        (
            "How many miles long is the {s}?",
            "What is the length of the {s} in miles?",
        ),
    ),
)


class Fact(typing.NamedTuple):
    """Something that a paragraph states."""

    subject: str
    relation: Relation
    value: str

    def write(self, form):
        """The sentence about this fact that has the given form."""
        return form.format(s=self.subject, v=self.value)


class Draw:
    """Random choices that are the same on every version of Python."""

    def __init__(self, seed):
        self._random = random.Random(seed).random

    def below(self, count):
        """An int from 0 to count - 1."""
        return int(self._random() * count)

    def one(self, items):
        return items[self.below(len(items))]

    def some(self, items, count):
        """`count` different items, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def shuffled(self, items):
        return self.some(items, len(items))


def make_names(held_out):
    """{"town", "person", "river": names}, those of evaluation or the others.

    Every start and every end is in both, joined in other ways.
    """
    names = {}
    for kind, ends in _ENDS.items():
        pairs = itertools.product(enumerate(_STARTS), enumerate(ends))
        names[kind] = [
            start + end
            for (i, start), (j, end) in pairs
            if ((i + j) % HELD_OUT == 0) == held_out
        ]
    return names


class World:
    """Draws facts about named things."""

    def __init__(self, draw, names):
        self.draw = draw
        self._names = names

    def facts(self):
        """About two subjects of different kinds, two facts about each.

        No name stands for two things, no relation is stated twice.
        """
        used, facts = set(), []
        for kind in self.draw.some(("town", "person", "river"), 2):
            subject = self.value(kind, used)
            relations = [r for r in RELATIONS if r.subject == kind]
            facts += [
                Fact(subject, r, self.value(r.value, used))
                for r in self.draw.some(relations, FACTS // 2)
            ]
        return self.draw.shuffled(facts)

    def value(self, kind, used):
        """A name, word or number that is not in `used`, and now is."""
        while True:
            if kind == "year":
                value = str(1100 + self.draw.below(800))
            elif kind == "length":
                value = str(20 + self.draw.below(80))
            else:
                value = self.draw.one(self._names.get(kind) or _WORDS[kind])
            if value not in used:
                used.add(value)
                return value


def make_document(world):
    """Two lines in any order: some facts; the same ones in other words.

    In the second, about half of them are a question and its answer.
    """
    statements, repeats = [], []
    for fact in world.facts():
        first, second = world.draw.some(fact.relation.statements, 2)
        if world.draw.below(2):
            second = world.draw.one(fact.relation.questions) + " {v}."
        statements.append(fact.write(first))
        repeats.append(fact.write(second))
    lines = world.draw.shuffled([statements, world.draw.shuffled(repeats)])
    return "".join(" ".join(line) + "\n" for line in lines)


def make_asked_document(world):
    """A question, and facts of which the one that answers it ends with "!".

    For one question in three there is no such fact.
    """
    facts = world.facts()
    if world.draw.below(3):
        asked = world.draw.one(facts)
        subject, relation, opening = asked.subject, asked.relation, "Listen:"
    else:
        asked = None
        subject, relation = world.draw.one(missing_facts(world, facts))
        opening = "Nobody knows:"
    sentences = [
        fact.write(world.draw.one(fact.relation.statements)) for fact in facts
    ]
    sentences = [
        sentence[:-1] + "!" if fact is asked else sentence
        for fact, sentence in zip(facts, sentences)
    ]
    return (
        f"{world.draw.one(relation.questions).format(s=subject)}\n{opening} "
        f"{' '.join(sentences)}\n"
    )


def make_text(world, count):
    """`count` documents with blank lines between them."""
    return "\n".join(
        world.draw.one((make_document, make_asked_document))(world)
        for _ in range(count)
    )


def make_paragraph(world, with_unanswerable):
    """A SQuAD paragraph: {"context", "qas"}; questions without ids."""
    facts = world.facts()
    context, starts = "", []
    for fact in facts:
        form = world.draw.one(fact.relation.statements)
        before = form[: form.index("{v}")].format(s=fact.subject)
        starts.append(len(context) + len(before))
        context += form.format(s=fact.subject, v=fact.value) + " "
    asked = world.draw.some(list(zip(facts, starts)), QUESTIONS)
    questions = [
        question(
            world,
            fact.relation,
            fact.subject,
            {"text": fact.value, "answer_start": start},
        )
        for fact, start in asked
    ]
    if with_unanswerable:
        questions += [
            question(world, relation, subject, None)
            for subject, relation in missing_facts(world, facts)
        ]
    return {"context": context[:-1], "qas": questions}


def missing_facts(world, facts):
    """(subject, relation) pairs that `facts` could have stated and do not."""
    stated = {(fact.subject, fact.relation) for fact in facts}
    kinds = {fact.subject: fact.relation.subject for fact in facts}
    pairs = [
        (subject, relation)
        for subject in sorted(kinds)
        for relation in RELATIONS
        if relation.subject == kinds[subject]
        and (subject, relation) not in stated
    ]
    return world.draw.some(pairs, min(UNANSWERABLE, len(pairs)))


def question(world, relation, subject, answer):
    """A question in SQuAD's form; without an answer that of v2.0."""
    result = {
        "question": world.draw.one(relation.questions).format(s=subject),
        "answers": [answer] if answer else [],
    }
    if not answer:
        result["is_impossible"] = True
    return result


def make_squad(world, name, count, version):
    """A SQuAD file's content: articles of ten paragraphs."""
    paragraphs = [make_paragraph(world, version == "2.0") for _ in range(count)]
    number = itertools.count(1)
    for paragraph in paragraphs:
        for qa in paragraph["qas"]:
            qa["id"] = f"{name}{next(number)}"
            if version == "2.0":
                qa.setdefault("is_impossible", False)
    return {
        "version": {"1.1": "1.1", "2.0": "v2.0"}[version],
        "data": [
            {
                "title": f"{name} {first // 10 + 1}",
                "paragraphs": paragraphs[first : first + 10],
            }
            for first in range(0, count, 10)
        ],
    }


def train_bpe(text, merges):
    """Byte-pair encoding of an ASCII text.

    The most frequent pair is merged first; of equally frequent ones the first
    in the alphabet.

    Source: Sennrich et al. 2016, algorithm 1; pieces as GPT-2 cuts them.

    Args:
      text: str, ASCII.
      merges: how many pairs to merge.

    Returns:
      A list of (left, right), best first; a space is written "\\u0120".
    """
    pieces = collections.Counter(
        re.findall(r"'s| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+", text)
    )
    words = [
        (list(piece.replace(" ", "\u0120")), count)
        for piece, count in sorted(pieces.items())
    ]
    counts, places = collections.Counter(), collections.defaultdict(set)
    for index in range(len(words)):
        _count_pairs(words, index, 1, counts, places)
    result = []
    while len(result) < merges:
        pair = min(counts, key=lambda p: (-counts[p], p))
        if counts[pair] < 2:
            break
        result.append(pair)
        for index in sorted(places[pair]):
            _count_pairs(words, index, -1, counts, places)
            _merge_pair(words[index][0], pair)
            _count_pairs(words, index, 1, counts, places)
    return result


def _count_pairs(words, index, sign, counts, places):
    """Adds a word's pairs to the counts, or takes them away."""
    symbols, count = words[index]
    for pair in zip(symbols, symbols[1:]):
        counts[pair] += sign * count
        if sign > 0:
            places[pair].add(index)
        else:
            places[pair].discard(index)


def _merge_pair(symbols, pair):
    """Joins each occurrence of a pair in a list, from the left."""
    i = 0
    while i + 1 < len(symbols):
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = ["".join(pair)]
        i += 1


def byte_symbols():
    """The character for each byte in a byte-level vocabulary (GPT-2's)."""
    printable = [
        b
        for b in range(256)
        if 0x21 <= b < 0x7F or 0xA1 <= b < 0xAD or b >= 0xAE
    ]
    others = [b for b in range(256) if b not in printable]
    symbols = dict(zip(printable, map(chr, printable)))
    symbols.update((b, chr(256 + n)) for n, b in enumerate(others))
    return [symbols[b] for b in printable + others]


def make_vocabulary(merges):
    """{token: id} with the special tokens in RoBERTa's places."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + byte_symbols()
    tokens += [left + right for left, right in merges] + ["<mask>"]
    return {token: number for number, token in enumerate(tokens)}


def make_config(vocab_size):
    """config.json of a model that learns this within minutes on a CPU."""
    return {
        "model_type": "roberta",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 130,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.05,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


def make_files():
    """{file name: content} of all bundled files; JSON as objects."""
    train = World(Draw(SEED), make_names(held_out=False))
    dev = World(Draw(SEED + 1), make_names(held_out=True))
    files = {
        "text.txt": make_text(train, TEXT_DOCUMENTS),
        "eval_text.txt": make_text(dev, EVAL_DOCUMENTS),
    }
    for version in ("1.1", "2.0"):
        for name, world, count in (
            ("train", train, TRAIN_PARAGRAPHS),
            ("dev", dev, DEV_PARAGRAPHS),
        ):
            files[f"{name}-v{version}.json"] = make_squad(
                world, name, count, version
            )
    merges = train_bpe(files["text.txt"], MERGES)
    vocabulary = make_vocabulary(merges)
    files["merges.txt"] = "#version: 0.2\n" + "".join(
        "%s %s\n" % pair for pair in merges
    )
    files["vocab.json"] = vocabulary
    files["config.json"] = make_config(len(vocabulary))
    return files


def write_files(directory):
    """Writes all files into a directory, which is made if missing."""
    os.makedirs(directory, exist_ok=True)
    for name, content in make_files().items():
        if not isinstance(content, str):
            indent = 2 if name == "config.json" else None
            separators = (",", ": ") if indent else (",", ":")
            content = (
                json.dumps(
                    content,
                    ensure_ascii=False,
                    indent=indent,
                    separators=separators,
                )
                + "\n"
            )
        with open(
            os.path.join(directory, name), "w", encoding="utf-8", newline="\n"
        ) as stream:
            stream.write(content)


def main():
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "directory", nargs="?", default=os.path.join(repository, "demo")
    )
    write_files(parser.parse_args().directory)


if __name__ == "__main__":
    main()
