# SPDX-License-Identifier: Apache-2.0
r"""Trains a byte-level BPE vocabulary: vocab.json and merges.txt.

    python train_tokenizer.py --input_file='corpus/*.txt' --vocab_size=32000 \
        --output_dir=model

Hugging Face's `tokenizers` (requirements/tokenizer.txt) counts and merges; text
is read, cut into lines and stripped as create_pretraining_data.py does it. The
special tokens get RoBERTa's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> the
last.

Source: Radford et al. 2019, section 2.2 (byte-level BPE); Liu et al. 2019,
section 4.4 (50K units, no further preprocessing).
"""

import common.startup

import collections
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import types
import typing

import tqdm
from absl import flags, logging

import tokenization
from common import command_line, errors, files
from pretraining_data import corpus, text_files

FILES = ("vocab.json", "merges.txt")
# 256 bytes and the special tokens: a vocabulary without merges.
_SMALLEST = 256 + len(tokenization.SPECIAL_TOKENS)
# Additional merges, to replace some that cannot be used.
_SPARE = 100


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What is trained from what; each field is a flag."""

    input_file: str = command_line.flag(
        "",
        "Text (.txt or any name, .jsonl, both also .gz): files, globs "
        "and directories, comma separated.",
        group=command_line.FIRST,
    )
    output_dir: str = command_line.flag(
        "", "Directory that vocab.json and merges.txt are written to."
    )
    text_field: str = command_line.flag(
        "text",
        "The field of a .jsonl line that is the text.",
        group=command_line.OTHER,
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
                raise errors.UserError(f"--{name} is missing; see --help")


def read_lines(
    config: TokenizerConfig,
    inputs: typing.Sequence[text_files.TextFile],
    counts: typing.Counter[str],
) -> typing.Iterator[str]:
    """Yields the lines to train on; adds to counts "lines", "characters"."""
    total = sum(file.size for file in inputs)
    limits = corpus.chunk_limits(total)
    with tqdm.tqdm(
        total=total,
        desc="read",
        unit="B",
        unit_scale=True,
        mininterval=2.0,
        disable=None,
    ) as bar:
        for group in corpus.group_files(inputs, limits):
            for chunk in corpus.read_chunks(group, limits, config.text_field):
                bar.update(chunk.position - bar.n)
                for line, _ in corpus.sentences(chunk, config.text_field):
                    counts.update(lines=1, characters=len(line))
                    yield line.lower() if config.do_lower_case else line
        bar.update(total - bar.n)


def train_merges(
    library: types.ModuleType,
    config: TokenizerConfig,
    lines: typing.Iterable[str],
) -> typing.List[typing.Tuple[str, str]]:
    """The pairs that are merged, best first.

    Args:
      library: the package `tokenizers`.
      config: vocabulary size and minimum frequency.
      lines: read once.
    """
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
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
        merges = pathlib.Path(folder, FILES[1]).read_text("utf-8")
    # The first line names the version; no token contains a line break.
    pairs = (line.split(" ") for line in merges.split("\n")[1:-1])
    return usable_merges(
        ((left, right) for left, right in pairs), config.vocab_size - _SMALLEST
    )


def usable_merges(
    pairs: typing.Iterable[typing.Tuple[str, str]], count: int
) -> typing.List[typing.Tuple[str, str]]:
    """The first merges that make `count` tokens, without special tokens.

    "<s>" written in a text is ordinary text and must not become the id of
    `<s>`, as it would from web pages with struck-out words. Merges that use
    the product of a dropped merge are dropped too.
    """
    dropped = set(tokenization.SPECIAL_TOKENS)
    made: typing.Set[str] = set()
    kept = []
    for left, right in pairs:
        token = left + right
        if {left, right, token} & dropped:
            dropped.add(token)
        elif token in made or len(made) < count:
            made.add(token)
            kept.append((left, right))
        else:
            break
    return kept


def make_vocabulary(
    pairs: typing.Iterable[typing.Tuple[str, str]],
    alphabet: typing.Iterable[str],
) -> typing.Dict[str, int]:
    """{token: id}: special tokens, bytes, merges in their order, `<mask>`."""
    tokens = list(tokenization.SPECIAL_TOKENS[:-1]) + sorted(alphabet)
    tokens += [left + right for left, right in pairs]
    tokens = list(dict.fromkeys(tokens)) + [tokenization.MASK]
    return {token: number for number, token in enumerate(tokens)}


def run(config: TokenizerConfig) -> typing.Dict[str, int]:
    """Trains and writes vocab.json and merges.txt.

    Returns:
      {token: id}.

    Raises:
      errors.UserError: a mistake in the flags or in the text, or the package
        `tokenizers` is missing; then nothing is written.
      OSError: a file cannot be read or written.
    """
    library = errors.import_package(
        "tokenizers", "train_tokenizer.py", "tokenizer"
    )
    inputs = text_files.expand_inputs(config.input_file)
    paths = [os.path.join(config.output_dir, name) for name in FILES]
    existing = [
        name for name, path in zip(FILES, paths) if os.path.exists(path)
    ]
    if existing and not config.overwrite:
        raise errors.UserError(
            f"{config.output_dir!r} contains {' and '.join(existing)}; choose "
            "another --output_dir, or pass --overwrite to replace them"
        )
    counts: typing.Counter[str] = collections.Counter()
    pairs = train_merges(library, config, read_lines(config, inputs, counts))
    if not counts["lines"]:
        raise errors.UserError(
            f"--input_file={config.input_file} contains only white space; "
            "expected text"
        )
    vocabulary = make_vocabulary(
        pairs, library.pre_tokenizers.ByteLevel.alphabet()
    )
    merges = "".join(f"{left} {right}\n" for left, right in pairs)
    with files.NewFiles(paths, overwrite=True) as output:
        text = json.dumps(vocabulary, ensure_ascii=False) + "\n"
        output.write(paths[0], text.encode("utf-8"))
        output.write(paths[1], f"#version: 0.2\n{merges}".encode())
    _report(config, vocabulary, counts)
    return vocabulary


def _report(config, vocabulary, counts):
    if len(vocabulary) < config.vocab_size:
        logging.warning(
            "the vocabulary has %d entries, not %d: no further pair occurs "
            "%d times; give more text or a lower --min_frequency",
            len(vocabulary),
            config.vocab_size,
            config.min_frequency,
        )
    logging.info(
        'vocab_size=%d lines=%d characters=%d; set "vocab_size": %d in '
        "config.json",
        len(vocabulary),
        counts["lines"],
        counts["characters"],
        len(vocabulary),
    )


def define_flags() -> None:
    """Declares the flags of this script."""
    command_line.define(TokenizerConfig)
    flags.FLAGS.set_default("verbosity", logging.INFO)


def main(_):
    run(command_line.build(TokenizerConfig, flags.FLAGS))


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
