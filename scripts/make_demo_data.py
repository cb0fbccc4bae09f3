# SPDX-License-Identifier: Apache-2.0
"""Writes the data that scripts/demo.sh and the tests run on, into demo/.

    python scripts/make_demo_data.py [DIRECTORY]

Everything is invented: the names of towns, people and rivers are joined
syllables. A paragraph states two facts about each of two of them, in any
order:

    The mayor of Blevgora is Drovin. Olvrik was born in 1712. ...

Each paragraph has new random facts, so a question can be answered only by
reading the paragraph. A question of v2.0 without an answer asks for a fact
that the paragraph does not state about one of the two. A document of the
pre-training text states each fact a second time in other words: predicting a
masked name requires finding the other sentence about the same fact, as
answering a question does.

All files follow from SEED alone, on every Python; the training files contain
no name of the evaluation files (eval_text.txt, dev-*.json).
"""

import argparse
import collections
import itertools
import json
import pathlib
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
HELD_OUT = 6  # every sixth name occurs in evaluation only

# No start with an end gives a place of GeoNames with 500 inhabitants or more, a
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
    """A kind of fact; {s} is replaced by its subject, {v} by its value."""

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

    def write(self, form: str) -> str:
        """The sentence of a form about this fact."""
        return form.format(s=self.subject, v=self.value)


class Draw:
    """Random choices that are the same on every version of Python."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return int(self._random() * count)

    def choice(self, items: typing.Sequence[typing.Any]) -> typing.Any:
        """One of some items."""
        return items[self.below(len(items))]

    def sample(
        self, items: typing.Iterable[typing.Any], count: int
    ) -> typing.List[typing.Any]:
        """`count` different items, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def shuffled(
        self, items: typing.Sequence[typing.Any]
    ) -> typing.List[typing.Any]:
        """All items, in random order."""
        return self.sample(items, len(items))


def make_names(held_out: bool) -> typing.Dict[str, typing.List[str]]:
    """The names of towns, persons and rivers of evaluation or of training.

    Both have every start and every end, in different combinations.
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

    def __init__(self, draw: Draw, names: typing.Dict[str, typing.List[str]]):
        self.draw = draw
        self._names = names

    def facts(self) -> typing.List[Fact]:
        """Two facts about each of two subjects of different kinds.

        All names and relations are different.
        """
        used, facts = set(), []
        for kind in self.draw.sample(("town", "person", "river"), 2):
            subject = self.value(kind, used)
            relations = [r for r in RELATIONS if r.subject == kind]
            facts += [
                Fact(subject, r, self.value(r.value, used))
                for r in self.draw.sample(relations, FACTS // 2)
            ]
        return self.draw.shuffled(facts)

    def value(self, kind: str, used: typing.Set[str]) -> str:
        """A name, word or number that is not in `used`; adds it there."""
        while True:
            if kind == "year":
                value = str(1100 + self.draw.below(800))
            elif kind == "length":
                value = str(20 + self.draw.below(80))
            else:
                value = self.draw.choice(self._names.get(kind) or _WORDS[kind])
            if value not in used:
                used.add(value)
                return value


def make_document(world: World) -> str:
    """Two lines in any order: some facts; the same facts in other words.

    In the second, about half of the facts are a question and its answer.
    """
    statements, repeats = [], []
    for fact in world.facts():
        first, second = world.draw.sample(fact.relation.statements, 2)
        if world.draw.below(2):
            second = world.draw.choice(fact.relation.questions) + " {v}."
        statements.append(fact.write(first))
        repeats.append(fact.write(second))
    lines = world.draw.shuffled([statements, world.draw.shuffled(repeats)])
    return "".join(" ".join(line) + "\n" for line in lines)


def make_asked_document(world: World) -> str:
    """A question, and facts of which the one that answers it ends with "!".

    One question in three has no such fact.
    """
    facts = world.facts()
    if world.draw.below(3):
        asked = world.draw.choice(facts)
        subject, relation, opening = asked.subject, asked.relation, "Listen:"
    else:
        asked = None
        subject, relation = world.draw.choice(missing_facts(world, facts))
        opening = "Nobody knows:"
    sentences = [
        fact.write(world.draw.choice(fact.relation.statements))
        for fact in facts
    ]
    if asked is not None:
        place = facts.index(asked)
        sentences[place] = sentences[place][:-1] + "!"
    question = world.draw.choice(relation.questions).format(s=subject)
    return f"{question}\n{opening} {' '.join(sentences)}\n"


def make_text(world: World, count: int) -> str:
    """`count` documents with blank lines between them."""
    return "\n".join(
        world.draw.choice((make_document, make_asked_document))(world)
        for _ in range(count)
    )


def make_paragraph(
    world: World, with_unanswerable: bool
) -> typing.Dict[str, typing.Any]:
    """A SQuAD paragraph: {"context", "qas"}; questions without ids."""
    facts = world.facts()
    context, starts = "", []
    for fact in facts:
        form = world.draw.choice(fact.relation.statements)
        before = form[: form.index("{v}")].format(s=fact.subject)
        starts.append(len(context) + len(before))
        context += fact.write(form) + " "
    asked = world.draw.sample(list(zip(facts, starts)), QUESTIONS)
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


def missing_facts(
    world: World, facts: typing.List[Fact]
) -> typing.List[typing.Tuple[str, Relation]]:
    """(subject, relation) pairs that `facts` do not state."""
    stated = {(fact.subject, fact.relation) for fact in facts}
    kinds = {fact.subject: fact.relation.subject for fact in facts}
    pairs = [
        (subject, relation)
        for subject in sorted(kinds)
        for relation in RELATIONS
        if relation.subject == kinds[subject]
        and (subject, relation) not in stated
    ]
    return world.draw.sample(pairs, min(UNANSWERABLE, len(pairs)))


def question(
    world: World,
    relation: Relation,
    subject: str,
    answer: typing.Optional[typing.Dict[str, typing.Any]],
) -> typing.Dict[str, typing.Any]:
    """A question in SQuAD's form; without an answer, v2.0's."""
    entry = {
        "question": world.draw.choice(relation.questions).format(s=subject),
        "answers": [answer] if answer else [],
    }
    if not answer:
        entry["is_impossible"] = True
    return entry


def make_squad(
    world: World, name: str, count: int, version: str
) -> typing.Dict[str, typing.Any]:
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


def train_bpe(text: str, merges: int) -> typing.List[typing.Tuple[str, str]]:
    """Byte-pair encoding of an ASCII text.

    The most frequent pair is merged first; of equally frequent pairs, the
    first in alphabetical order.

    Source: Sennrich et al. 2016, algorithm 1; pieces as GPT-2 cuts them.

    Args:
      text: ASCII.
      merges: how many pairs to merge.

    Returns:
      (left, right) pairs, best first; a space is written "\\u0120".
    """
    pieces = collections.Counter(
        re.findall(r"'s| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+", text)
    )
    words = [
        (list(piece.replace(" ", "\u0120")), count)
        for piece, count in sorted(pieces.items())
    ]
    counts = collections.Counter()
    for symbols, count in words:
        _count_pairs(counts, symbols, count)
    pairs = []
    while len(pairs) < merges:
        pair = min(counts, key=lambda p: (-counts[p], p))
        if counts[pair] < 2:
            break
        pairs.append(pair)
        for symbols, count in words:
            if pair in zip(symbols, symbols[1:]):
                _count_pairs(counts, symbols, -count)
                _merge_pair(symbols, pair)
                _count_pairs(counts, symbols, count)
    return pairs


def _count_pairs(counts, symbols, count):
    """Adds a word's pairs, `count` times, to the counts."""
    for pair in zip(symbols, symbols[1:]):
        counts[pair] += count


def _merge_pair(symbols, pair):
    """Joins each occurrence of a pair in a list, from the left."""
    i = 0
    while i + 1 < len(symbols):
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = ["".join(pair)]
        i += 1


def byte_symbols() -> typing.List[str]:
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


def make_vocabulary(
    merges: typing.List[typing.Tuple[str, str]],
) -> typing.Dict[str, int]:
    """The id of each token; special tokens have RoBERTa's places."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + byte_symbols()
    tokens += [left + right for left, right in merges] + ["<mask>"]
    return {token: number for number, token in enumerate(tokens)}


def make_config(vocab_size: int) -> typing.Dict[str, typing.Any]:
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


def make_files() -> typing.Dict[str, typing.Any]:
    """The content of each bundled file by name; JSON as objects."""
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
            squad = make_squad(world, name, count, version)
            files[f"{name}-v{version}.json"] = squad
    merges = train_bpe(files["text.txt"], MERGES)
    vocabulary = make_vocabulary(merges)
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges]
    files["merges.txt"] = "\n".join(lines) + "\n"
    files["vocab.json"] = vocabulary
    files["config.json"] = make_config(len(vocabulary))
    return files


def write_files(directory: str) -> None:
    """Writes all files into a directory, which is made if missing."""
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in make_files().items():
        if name == "config.json":
            content = json.dumps(content, indent=2) + "\n"
        elif not isinstance(content, str):
            content = json.dumps(
                content, ensure_ascii=False, separators=(",", ":")
            )
            content += "\n"
        (folder / name).write_bytes(content.encode("utf-8"))


def main() -> None:
    """Writes the files into the directory of the command line."""
    demo = pathlib.Path(__file__).resolve().parent.parent / "demo"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", default=demo)
    write_files(parser.parse_args().directory)


if __name__ == "__main__":
    main()
