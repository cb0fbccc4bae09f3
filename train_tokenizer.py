# SPDX-License-Identifier: Apache-2.0
"""Trains a byte-level BPE vocabulary of one's own: vocab.json and merges.txt.

    python train_tokenizer.py --input_file='corpus/*.txt' --vocab_size=32000 \
        --output_dir=model

Hugging Face's `tokenizers` (requirements/tokenizer.txt) counts and merges; text
is read, cut into lines and stripped as create_pretraining_data.py does it. The
special tokens get RoBERTa's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> the
last. Before the files get their names, this project's tokenizer must agree
with `tokenizers` on a sample of the text.

Source: Radford et al. 2019, section 2.2 (byte-level BPE); Liu et al. 2019,
section 4.4 (50K units, no further preprocessing).
"""

import dataclasses
import json
import os
import random
import sys
import tempfile
import typing

import tqdm
from absl import flags, logging

import tokenization
from common import command_line, errors, files
from pretraining_data import corpus, text_files

FILES = ("vocab.json", "merges.txt")
# 256 bytes and the special tokens: a vocabulary without a merge.
_SMALLEST = 256 + len(tokenization.SPECIAL_TOKENS)
# Merges beyond those wanted, in place of some that cannot be used.
_SPARE = 100
_SAMPLE_LINES = 2000
_SAMPLE_CHARACTERS = 2000  # of a line; bounds the sample's memory
_DRAFT = ".draft"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What is trained from what; each field is a flag."""

    input_file: typing.Optional[str] = command_line.flag(
        None,
        "Text (.txt or any name, .jsonl, both also .gz): files, globs "
        "and directories, comma separated.",
    )
    text_field: str = command_line.flag(
        "text", "The field of a .jsonl line that is the text."
    )
    output_dir: typing.Optional[str] = command_line.flag(
        None, "Directory that vocab.json and merges.txt are written to."
    )
    vocab_size: int = command_line.flag(
        50265,
        "Entries, the 256 bytes and five special tokens among them.",
        lower=_SMALLEST,
        upper=1 << 20,
    )
    min_frequency: int = command_line.flag(
        2, "How often a pair must occur to be merged.", lower=1
    )
    do_lower_case: bool = command_line.flag(
        False, "Lower-case the text; then pass the same flag to all scripts."
    )
    overwrite: bool = command_line.flag(
        False, "Replace the files that are in the output directory."
    )

    def __post_init__(self):
        for name in ("input_file", "output_dir"):
            if not getattr(self, name):
                raise errors.UserError(
                    f"--{name} is missing; --help says what it is"
                )

    def path(self, name):
        return os.path.join(self.output_dir, name)


def load_library():
    """The package `tokenizers`.

    Raises:
      errors.UserError: it is not installed.
    """
    try:
        import tokenizers  # pylint: disable=g-import-not-at-top
    except ImportError:
        raise errors.UserError(
            "train_tokenizer.py needs the package tokenizers; pip install -r "
            "requirements/tokenizer.txt"
        ) from None
    return tokenizers


class Reader:
    """The lines of all files, one pass, with a bar; keeps a sample of them.

    Attributes:
      sample: list of str, each line of the input as likely as any other.
      lines, characters: what has been read.
    """

    def __init__(self, config, inputs):
        self._config = config
        self._files = inputs
        self._random = random.Random(0)
        self.sample = []
        self.lines = self.characters = 0

    def __iter__(self):
        config, total = self._config, sum(file.size for file in self._files)
        limits = corpus.chunk_limits(total)
        with tqdm.tqdm(
            total=total, desc="read", unit="B", unit_scale=True, mininterval=2.0
        ) as bar:
            for group in corpus.group_files(self._files, limits):
                for chunk in corpus.read_chunks(
                    group, limits, config.text_field
                ):
                    bar.update(chunk.position - bar.n)
                    for line, _ in corpus.sentences(chunk, config.text_field):
                        yield self._taken(line)
            bar.update(total - bar.n)

    def _taken(self, line):
        """A line as it is trained on, after counting it.

        Source: Vitter 1985, algorithm R.
        """
        if self._config.do_lower_case:
            line = line.lower()
        self.lines += 1
        self.characters += len(line)
        place = len(self.sample)
        if place == _SAMPLE_LINES:
            place = int(self._random.random() * self.lines)
        self.sample[place : place + 1] = [line[:_SAMPLE_CHARACTERS]] * (
            place < _SAMPLE_LINES
        )
        return line


def train_merges(library, config, lines):
    """The pairs that are merged, [(left, right)], best first.

    Args:
      library: the package `tokenizers`.
      config: TokenizerConfig.
      lines: iterable of str, read once.
    """
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = _pre_tokenizer(library)
    trainer = library.trainers.BpeTrainer(
        vocab_size=config.vocab_size + _SPARE,
        min_frequency=config.min_frequency,
        special_tokens=[],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    trained.train_from_iterator(lines, trainer)
    with tempfile.TemporaryDirectory() as folder:
        trained.model.save(folder)
        with open(os.path.join(folder, FILES[1]), encoding="utf-8") as file:
            pairs = [
                tuple(line.rstrip("\n").split(" "))
                for line in file
                if not line.startswith("#version")
            ]
    return usable_merges(pairs, config.vocab_size - _SMALLEST)


def _pre_tokenizer(library):
    return library.pre_tokenizers.ByteLevel(add_prefix_space=False)


def usable_merges(pairs, count):
    """The first merges that make `count` tokens, none of them a special one.

    "<s>" written in a text is ordinary text and must not become the id of
    `<s>`: a web page with struck-out words would teach that. What builds on
    such a merge goes with it.
    """
    dropped, made, kept = set(tokenization.SPECIAL_TOKENS), set(), []
    for left, right in pairs:
        whole = left + right
        if {left, right, whole} & dropped:
            dropped.add(whole)
        elif whole in made or len(made) < count:
            made.add(whole)
            kept.append((left, right))
        else:
            break
    return kept


def make_vocabulary(pairs, alphabet):
    """{token: id}: special tokens, bytes, merges in their order, `<mask>`."""
    tokens = list(tokenization.SPECIAL_TOKENS[:-1]) + sorted(alphabet)
    tokens += [left + right for left, right in pairs]
    tokens = list(dict.fromkeys(tokens)) + [tokenization.MASK]
    return {token: number for number, token in enumerate(tokens)}


def write_drafts(config, vocabulary, pairs):
    """Writes both files under temporary names; returns their paths."""
    os.makedirs(config.output_dir, exist_ok=True)
    drafts = [config.path(name) + _DRAFT for name in FILES]
    files.write_bytes(
        drafts[0],
        (json.dumps(vocabulary, ensure_ascii=False) + "\n").encode("utf-8"),
    )
    files.write_bytes(
        drafts[1],
        "".join(
            ["#version: 0.2\n"] + ["%s %s\n" % pair for pair in pairs]
        ).encode("utf-8"),
    )
    return drafts


def check(library, paths, sample):
    """Encodes and decodes a sample with this project's tokenizer.

    `tokenizers` knows the letters of Unicode 14; around a newer one it may
    cut a line at another place. Such lines are counted.

    Args:
      library: the package `tokenizers`.
      paths: of vocab.json and merges.txt.
      sample: list of str.

    Returns:
      (tokens of the sample, lines that are cut at another place).

    Raises:
      errors.UserError: a line gets other ids, or does not come back.
    """
    ours = tokenization.RobertaTokenizer(*paths)
    theirs = library.Tokenizer(library.models.BPE.from_file(*paths))
    theirs.pre_tokenizer = _pre_tokenizer(library)
    tokens = newer = 0
    for line in sample:
        ids, wanted = ours.encode(line), theirs.encode(line).ids
        tokens += len(ids)
        if ids != wanted:
            newer += 1
            pieces = theirs.pre_tokenizer.pre_tokenize_str(line)
            ids = [
                i
                for _, (start, end) in pieces
                for i in ours.encode(line[start:end])
            ]
        if ids != wanted or ours.decode(ids) != line:
            raise errors.UserError(
                f"tokenizers {library.__version__} and this project's "
                f"tokenizer disagree on the line {line!r:.60}; pip install -r "
                "requirements/tokenizer.txt gives the release that is known "
                "to agree"
            )
    return tokens, newer


def _refuse_existing(config):
    found = [name for name in FILES if os.path.exists(config.path(name))]
    if found and not config.overwrite:
        raise errors.UserError(
            f"{config.output_dir!r} holds {' and '.join(found)}; choose "
            "another --output_dir, or pass --overwrite to replace what is "
            "there"
        )


def _report(config, vocabulary, reader, tokens, newer):
    if len(vocabulary) < config.vocab_size:
        logging.warning(
            "the vocabulary has %d entries, not %d: no further pair occurs "
            "%d times; give more text or a lower --min_frequency",
            len(vocabulary),
            config.vocab_size,
            config.min_frequency,
        )
    if newer:
        logging.warning(
            "%d of %d lines have letters that are newer than tokenizers "
            "knows; it cut them elsewhere, which makes no difference to the "
            "files",
            newer,
            len(reader.sample),
        )
    logging.info(
        "vocab_size=%d lines=%d characters=%d checked_lines=%d "
        'characters_per_token=%.2f; set "vocab_size": %d in config.json',
        len(vocabulary),
        reader.lines,
        reader.characters,
        len(reader.sample),
        sum(map(len, reader.sample)) / max(tokens, 1),
        len(vocabulary),
    )


def run(config):
    """Trains, checks and writes vocab.json and merges.txt.

    Returns:
      {token: id}.

    Raises:
      errors.UserError: a mistake in the flags or in the text, or no package
        `tokenizers`; then nothing is written.
      OSError: a file cannot be read or written.
    """
    library = load_library()
    inputs = text_files.expand_inputs(config.input_file)
    _refuse_existing(config)
    reader = Reader(config, inputs)
    pairs = train_merges(library, config, reader)
    if not reader.lines:
        raise errors.UserError(
            f"--input_file={config.input_file} holds only white space; "
            "expected text"
        )
    vocabulary = make_vocabulary(
        pairs, library.pre_tokenizers.ByteLevel.alphabet()
    )
    drafts = write_drafts(config, vocabulary, pairs)
    try:
        tokens, newer = check(library, drafts, reader.sample)
        for draft, name in zip(drafts, FILES):
            os.replace(draft, config.path(name))
    finally:
        for draft in filter(os.path.exists, drafts):
            os.remove(draft)
    _report(config, vocabulary, reader, tokens, newer)
    return vocabulary


def main(_):
    run(command_line.build(TokenizerConfig, flags.FLAGS))


if __name__ == "__main__":
    command_line.define(TokenizerConfig)
    flags.FLAGS.set_default("verbosity", logging.INFO)
    command_line.run(main)
