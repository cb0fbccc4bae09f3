# SPDX-License-Identifier: Apache-2.0
"""Trained vocabularies against those of Hugging Face's trainer."""

import gzip
import json
import logging

import pytest

import tokenization
import train_tokenizer
from common import errors
from helpers.paths import REPOSITORY
from helpers.tiny import command
from helpers.tiny import run as run_command

tokenizers = pytest.importorskip("tokenizers")

DEMO_TEXT = REPOSITORY / "demo" / "eval_text.txt"


def train(folder, inputs, **options):
    """The tokenizer that is trained on some files."""
    options.setdefault("vocab_size", 400)
    config = train_tokenizer.TokenizerConfig(
        input_file=",".join(map(str, inputs)), output_dir=str(folder), **options
    )
    train_tokenizer.run(config)
    return tokenization.RobertaTokenizer(
        *(folder / name for name in train_tokenizer.FILES)
    )


def merges_of(folder):
    return (folder / "merges.txt").read_text("utf-8").splitlines()[1:]


def test_files_are_those_of_hugging_faces_trainer(tmp_path):
    theirs = tokenizers.ByteLevelBPETokenizer()
    lines = [line.strip() for line in DEMO_TEXT.read_text().splitlines()]
    theirs.train_from_iterator(
        filter(None, lines),
        vocab_size=399,
        min_frequency=2,
        show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
    )
    theirs.save_model(str(tmp_path))
    expected = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    train(tmp_path / "ours", [DEMO_TEXT])
    assert merges_of(tmp_path / "ours") == merges_of(tmp_path)
    assert json.loads((tmp_path / "ours/vocab.json").read_text("utf-8")) == (
        dict(expected, **{"<mask>": 399})
    )


def test_special_tokens_have_robertas_places(tmp_path):
    tokenizer = train(tmp_path, [DEMO_TEXT], vocab_size=300)
    assert (
        tokenizer.bos_id,
        tokenizer.pad_id,
        tokenizer.eos_id,
        tokenizer.unk_id,
        tokenizer.mask_id,
    ) == (0, 1, 2, 3, 299)
    assert tokenizer.vocab_size == 300


def test_a_special_token_in_the_text_stays_ordinary_text(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old <s>price</s> and <mask>ed <s>names</s>\n" * 50)
    tokenizer = train(tmp_path, [path], vocab_size=300)
    ids = tokenizer.encode(path.read_text())
    assert not set(ids) & {0, 1, 2, 3, tokenizer.mask_id}
    assert tokenizer.decode(ids) == path.read_text()


def test_merges_that_use_a_special_token_are_dropped():
    pairs = [
        ("<", "s"),
        ("<s", ">"),
        ("a", "b"),
        ("<s>", "ab"),
        ("c", "<s>ab"),
        ("a", "bc"),
        ("ab", "c"),
        ("d", "e"),
        ("e", "d"),
    ]
    assert train_tokenizer.usable_merges(pairs, 3) == [
        ("<", "s"),
        ("a", "b"),
        ("a", "bc"),
        ("ab", "c"),
    ]


def test_all_forms_of_input_give_the_same(tmp_path):
    text = DEMO_TEXT.read_text()
    documents = text.split("\n\n")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        "".join(
            json.dumps({"body": document}) + "\n" for document in documents[:20]
        )
    )
    (folder / "b.txt.gz").write_bytes(
        gzip.compress("\n\n".join(documents[20:]).encode())
    )
    train(tmp_path / "one", [DEMO_TEXT])
    train(tmp_path / "two", [folder], text_field="body")
    for name in train_tokenizer.FILES:
        assert (tmp_path / "one" / name).read_bytes() == (
            tmp_path / "two" / name
        ).read_bytes()


def test_lower_case(tmp_path):
    tokenizer = train(tmp_path, [DEMO_TEXT], do_lower_case=True)
    merged = tokenizer.decode(range(260, 399))
    assert merged == merged.lower()


def test_rare_pairs_are_not_merged(tmp_path, caplog):
    path = tmp_path / "text"
    path.write_text("abab cdcd abab xy\n")
    with caplog.at_level(logging.WARNING):
        tokenizer = train(tmp_path, [path], min_frequency=3)
    # "ab" occurs four times in two words, "cd" twice, "xy" once.
    assert merges_of(tmp_path) == ["a b"]
    assert tokenizer.vocab_size == 262
    assert "262 entries, not 400" in caplog.text


def test_existing_files_are_kept_without_overwrite(tmp_path):
    train(tmp_path, [DEMO_TEXT])
    before = merges_of(tmp_path)
    with pytest.raises(errors.UserError, match="--overwrite"):
        train(tmp_path, [DEMO_TEXT], vocab_size=300)
    assert merges_of(tmp_path) == before
    train(tmp_path, [DEMO_TEXT], vocab_size=300, overwrite=True)
    assert len(merges_of(tmp_path)) == 300 - 261
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        train_tokenizer.FILES
    )


@pytest.mark.parametrize(
    "content, message",
    [(b"good\nbad \xff\n", "not UTF-8"), (b" \n\n", "only white space")],
)
def test_text_that_cannot_be_read_leaves_nothing(tmp_path, content, message):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=message):
        train(tmp_path / "model", [path])
    assert not (tmp_path / "model").exists()


def test_the_command_line(tmp_path):
    arguments = command(
        "train_tokenizer.py",
        [],
        input_file=DEMO_TEXT,
        output_dir=tmp_path / "model",
        vocab_size=300,
    )
    assert "vocab_size=300 lines=120" in run_command(arguments)
    (tmp_path / "tokenizers.py").write_text("raise ImportError('no')")
    output = run_command(
        arguments + ["--overwrite"], {"PYTHONPATH": str(tmp_path)}, code=1
    )
    assert output.startswith("train_tokenizer.py: error: ")
    assert "run bash scripts/setup.sh --extras=tokenizer" in output
    assert output.count("\n") == 1
