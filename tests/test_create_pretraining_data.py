# SPDX-License-Identifier: Apache-2.0
"""From text to records: every token, the same bytes, nothing half-written."""

import collections
import concurrent.futures
import dataclasses
import errno
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import create_pretraining_data as script
import tokenization
from common import errors, files, tf_example, tfrecord, worker_pool
from helpers import paths
from helpers.record_builds import command, digests, make_text
from pretraining_data import (
    corpus,
    forecast,
    manifest,
    packing,
    record_builder,
    records,
    shard_output,
    text_files,
)

DOCUMENTS = 200


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    return tokenization.RobertaTokenizer(
        str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt")
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(DOCUMENTS), "utf-8")
    return path


@pytest.fixture
def build(vocabulary, text_file, tmp_path):
    """Builds records in this process; returns the manifest."""

    def run(
        output="records",
        input_file=text_file,
        num_workers=1,
        num_shards=None,
        overwrite=False,
        do_lower_case=False,
        **config,
    ):
        return script.run(
            script.BuildConfig(
                input_file=str(input_file),
                output_file=str(tmp_path / output),
                vocab_file=str(vocabulary / "vocab.json"),
                merges_file=str(vocabulary / "merges.txt"),
                num_workers=num_workers,
                num_shards=num_shards,
                overwrite=overwrite,
                do_lower_case=do_lower_case,
            ),
            record_builder.RecordConfig(**config),
        )[0]

    return run


def read(path):
    """The records of a file or directory: a list of {name: array}."""
    files = records.expand_inputs(str(path))
    shards = records.ShardedRecords(files)
    return [
        tf_example.decode_example(data)
        for data in shards.read(np.arange(len(shards)))
    ]


def unmasked(record):
    """The ids of a record without padding, as they were before masking."""
    ids = record["input_ids"].copy()
    if "masked_lm_ids" in record:
        used = record["masked_lm_weights"] == 1
        ids[record["masked_lm_positions"][used]] = record["masked_lm_ids"][used]
        ids = ids[: record["input_mask"].sum()]
    return ids.tolist()


def expected_tokens(tokenizer, text):
    """The ids of each document, whose lines are joined by spaces."""
    return [
        tokenizer.encode(" ".join(map(str.strip, document.split("\n"))))
        for document in re.split(r"\n\s*\n", text.strip())
    ]


# --- What is in the records ---------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"masking": "dynamic"},
        {
            "masking": "dynamic",
            "packing": "doc_sentences",
            "short_seq_prob": 0.3,
        },
        {"dupe_factor": 1},
        {"dupe_factor": 1, "packing": "doc_sentences"},
        {"dupe_factor": 1, "do_whole_word_mask": True, "short_seq_prob": 0.3},
    ],
)
def test_every_token_of_the_text_is_in_the_records(
    build, tokenizer, tmp_path, text_file, config
):
    content = build(max_seq_length=40, num_shards=3, **config)
    sequences = [unmasked(r) for r in read(tmp_path / "records")]
    assert all(
        s[0] == 0 and s[-1] == 2 and 3 <= len(s) <= 40 for s in sequences
    )
    found = collections.Counter(i for s in sequences for i in s[1:-1] if i != 2)
    documents = expected_tokens(tokenizer, text_file.read_text("utf-8"))
    expected = sum(documents, [])
    assert found == collections.Counter(expected)
    assert content["tokens"] == len(expected)
    assert content["documents"] == DOCUMENTS
    assert content["sequences"] == len(sequences)

    # In their order within the text they are the text.
    config = record_builder.RecordConfig(max_seq_length=40, **config)
    builder = record_builder.RecordBuilder(tokenizer, config)
    files = text_files.expand_inputs(str(text_file))
    limits = config.chunk_limits(files[0].size, 3)
    in_order = []
    for group in corpus.group_files(files, limits):
        for chunk in corpus.read_chunks(group, limits):
            in_order += [
                unmasked(tf_example.decode_example(r))
                for r in builder.build(chunk).records
            ]
    assert sorted(in_order) == sorted(sequences)
    assert [i for s in in_order for i in s[1:-1] if i != 2] == expected


def test_static_records_have_the_schema(build, tmp_path, tokenizer):
    content = build(max_seq_length=40, max_predictions_per_seq=7, dupe_factor=2)
    for record in read(tmp_path / "records"):
        assert {name: (v.dtype, len(v)) for name, v in record.items()} == {
            name: (np.dtype(dtype), 7 if "masked" in name else 40)
            for name, dtype in records.STATIC_FEATURES.items()
        }
        length = record["input_mask"].sum()
        assert (record["input_mask"][:length] == 1).all()
        assert (record["input_ids"][length:] == tokenizer.pad_id).all()
        assert not record["segment_ids"].any()
        assert 1 <= record["masked_lm_weights"].sum() <= 7
        positions = record["masked_lm_positions"][
            record["masked_lm_weights"] == 1
        ]
        assert not set(record["masked_lm_ids"][: len(positions)]) & {0, 1, 2, 3}
        assert (positions > 0).all() and (positions < length - 1).all()
    assert content["dupe_factor"] == 2
    assert (
        sum(s["records"] for s in content["shards"]) == 2 * content["sequences"]
    )


def test_each_duplicate_has_other_masks(build, tmp_path):
    build(max_seq_length=64, dupe_factor=4)
    masks = collections.defaultdict(list)
    for record in read(tmp_path / "records"):
        key = tuple(unmasked(record))
        masks[key].append(tuple(record["masked_lm_positions"]))
    long = {key: m for key, m in masks.items() if len(key) > 40}
    assert len(long) > 20
    assert all(len(m) == len(set(m)) == 4 for m in long.values())


def test_whole_words_are_masked_whole(build, tmp_path, tokenizer):
    starts = tokenizer.word_start_table()
    # Lower-cased, "ölsk" is no word of the vocabulary and has several pieces.
    build(
        max_seq_length=64,
        dupe_factor=1,
        do_whole_word_mask=True,
        do_lower_case=True,
    )
    for record in read(tmp_path / "records"):
        ids = unmasked(record)
        chosen = set(
            record["masked_lm_positions"][record["masked_lm_weights"] == 1]
        )
        for position, (left, right) in enumerate(zip(ids[1:], ids[2:-1]), 1):
            if 2 not in (left, right) and not starts[right]:
                assert (position in chosen) == (position + 1 in chosen)


def test_manifest_says_what_was_built(build, tmp_path, tokenizer, vocabulary):
    content = build(
        masking="dynamic", num_shards=2, max_seq_length=50, random_seed=-7
    )
    path = tmp_path / "records"
    loaded = manifest.load_manifest(str(path))
    assert loaded == dict(content, format_version=manifest.FORMAT_VERSION)
    assert sorted(digests(path)) == [
        "manifest.json",
        "merges.txt",
        "pretrain-00000-of-00002.tfrecord",
        "pretrain-00001-of-00002.tfrecord",
        "tokenizer_config.json",
        "vocab.json",
    ]
    for shard in loaded["shards"]:
        summary = manifest.summarize_file(str(path / shard["name"]))
        assert {k: shard[k] for k in summary} == summary
        assert shard["records"] > 30
    assert (
        loaded["vocab_sha256"]
        == hashlib.sha256((vocabulary / "vocab.json").read_bytes()).hexdigest()
    )
    assert (
        manifest.decode_word_starts(
            loaded["word_starts"], loaded["vocab_size"]
        ).tolist()
        == tokenizer.word_start_table().tolist()
    )
    assert {
        k: loaded[k]
        for k in (
            "masking",
            "max_seq_length",
            "random_seed",
            "dupe_factor",
            "mask_id",
            "do_lower_case",
        )
    } == {
        "masking": "dynamic",
        "max_seq_length": 50,
        "random_seed": -7,
        "dupe_factor": 1,
        "mask_id": tokenizer.mask_id,
        "do_lower_case": False,
    }


def test_cuts_of_giant_lines_change_no_token(tokenizer, monkeypatch):
    monkeypatch.setattr(packing, "_PART_CHARACTERS", 8)
    state = np.random.RandomState(0)
    letters = list("the1 ' \t\t,.é漢Σ\u3000\xa0\x1c") + [" "] * 4
    divided = 0
    for _ in range(500):
        text = " ".join("".join(state.choice(letters, 3)) for _ in range(12))
        parts = list(packing._parts(text))
        if all(part[0] in " \t" for part in parts[1:]):  # not cut by force
            divided += len(parts) > 1
            assert sum(map(tokenizer.encode, parts), []) == tokenizer.encode(
                text
            )
    assert divided > 100


def test_chunks_are_small_where_they_become_large():
    def limits(total=10**9, **config):
        return record_builder.RecordConfig(**config).chunk_limits(total, 1)

    full = limits(masking="dynamic")
    assert full == corpus.ChunkLimits(corpus.CHUNK_BYTES, 32)
    assert limits(dupe_factor=40).size == corpus.CHUNK_BYTES // 10
    assert (
        limits(
            packing="doc_sentences",
            max_seq_length=512,
            max_predictions_per_seq=80,
        ).line_bytes
        == 168
    )
    assert limits(total=10**6, masking="dynamic").size == 250000
    assert limits(total=1).size == corpus.MIN_CHUNK_BYTES


def test_gzip_and_json_lines_give_the_same_sequences(
    build, tmp_path, text_file
):
    text = text_file.read_text("utf-8")
    (tmp_path / "a.gz").write_bytes(gzip.compress(text.encode("utf-8")))
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"body": d}) + "\n" for d in text.split("\n\n"))
    )
    found = []
    for name, source in (
        ("1", text_file),
        ("2", tmp_path / "a.gz"),
        ("3", tmp_path / "b.jsonl"),
    ):
        build(
            name,
            source,
            masking="dynamic",
            packing="doc_sentences",
            text_field="body",
        )
        found.append(
            collections.Counter(
                tuple(unmasked(r)) for r in read(tmp_path / name)
            )
        )
    # Chunks end elsewhere, which may divide a document in another place.
    for other in found[1:]:
        assert sum((found[0] & other).values()) >= 0.98 * sum(found[0].values())


@pytest.mark.parametrize("line_break", ["none", "space", "eos"])
def test_wikitext_has_all_its_tokens(shared, tmp_path, line_break):
    text = shared / "data" / "text" / "wikitext2_valid.txt"
    files = [
        str(shared / "data" / "roberta" / n)
        for n in ("vocab.json", "merges.txt")
    ]
    tokenizer = tokenization.RobertaTokenizer(*files)
    lines = [
        tokenizer.encode(line.strip())
        for line in text.read_text("utf-8").split("\n")
    ]
    if line_break == "space":
        lines = expected_tokens(tokenizer, text.read_text("utf-8"))
    expected = collections.Counter(i for line in lines for i in line)
    for masking in ("static", "dynamic"):
        content, _ = script.run(
            script.BuildConfig(
                str(text), str(tmp_path / masking), *files, num_workers=1
            ),
            record_builder.RecordConfig(
                masking=masking,
                dupe_factor=1,
                max_seq_length=512,
                line_break=line_break,
            ),
        )
        found = collections.Counter(
            i
            for r in read(tmp_path / masking)
            for i in unmasked(r)[1:-1]
            if i != 2
        )
        assert found == expected
        assert content["tokens"] == sum(expected.values())
        assert content["line_break"] == line_break
    # As Hugging Face's tokenizers counts the lines, and the documents.
    assert content["tokens"] == (251206 if line_break == "space" else 251354)


# --- The same bytes -----------------------------------------------------------


def test_bytes_do_not_depend_on_workers_or_place(build, tmp_path):
    for name, workers in (("1", 1), ("2", 2), ("3", 3)):
        build(name, num_workers=workers, num_shards=3, dupe_factor=2)
    build("4", num_shards=3, dupe_factor=2, random_seed=5)
    first = digests(tmp_path / "1")
    assert first == digests(tmp_path / "2") == digests(tmp_path / "3")
    same = set(first.values()) & set(digests(tmp_path / "4").values())
    assert same == {
        first[name]
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json")
    }


# SHA-256 of what commit 8c0f1f9, which knew no line breaks, built.
FIRST_VERSION = {
    "static": (
        {"dupe_factor": 2, "do_whole_word_mask": True, "short_seq_prob": 0.2},
        ["0fcdba81f4c02bf6", "1e797c26b952dc31", "e8ad09c4838b2f5b"],
    ),
    "dynamic": (
        {"masking": "dynamic"},
        ["dd9051bf0bdf432d", "017189627c1b584c", "6cac2067fa11fbd8"],
    ),
    "documents": (
        {
            "masking": "dynamic",
            "packing": "doc_sentences",
            "max_seq_length": 64,
        },
        ["9c10a254a1b0fd9b", "52b1c851cde8eb96", "f27e21d9a4d7b5f5"],
    ),
}


def first_version_texts(folder):
    """Text of every kind: two formats, gzip, a mark, giant lines, no words."""
    text = make_text(150, seed=7)
    windows = "\ufeff" + text.replace("\n", " \r\n\t")
    giant = " ".join(text.split() * 3)
    (folder / "a.txt").write_bytes(windows.encode("utf-8"))
    (folder / "b.txt").write_text(giant + "\n\n中文 1,234!\n", "utf-8")
    (folder / "c.jsonl").write_text(
        "".join(json.dumps({"text": d}) + "\n" for d in text.split("\n\n"))
        + json.dumps({"text": f"{giant}\n\n{giant}"}),
        "utf-8",
    )
    with gzip.open(str(folder / "d.txt.gz"), "wb") as stream:
        stream.write(make_text(20, seed=8).encode("utf-8"))


@pytest.mark.parametrize("name", FIRST_VERSION)
def test_without_line_breaks_records_are_those_of_the_first_version(
    build, tmp_path, name
):
    (tmp_path / "texts").mkdir()
    first_version_texts(tmp_path / "texts")
    settings, expected = FIRST_VERSION[name]
    build(
        input_file=tmp_path / "texts",
        num_shards=3,
        num_workers=2,
        line_break="none",
        **settings,
    )
    assert expected == [
        digest[:16]
        for file, digest in digests(tmp_path / "records").items()
        if file.endswith(".tfrecord")
    ]


def test_the_default_is_that_two_lines_are_one(build, tmp_path, tokenizer):
    lines = ["Anna sleeps in Paris.", "Bob works in Rome.", "She left."]
    for name, text in (("three", "\n".join(lines)), ("one", " ".join(lines))):
        (tmp_path / f"{name}.txt").write_text(text + "\n")
        build(name, tmp_path / f"{name}.txt", masking="dynamic")
    assert [unmasked(r) for r in read(tmp_path / "three")] == [
        [0, *tokenizer.encode(" ".join(lines)), 2]
    ]
    shard = "pretrain-00000-of-00001.tfrecord"
    assert (
        digests(tmp_path / "three")[shard] == digests(tmp_path / "one")[shard]
    )


def test_shuffled_records_are_all_there_and_few_wait(tmp_path):
    data = [b"%05d" % i for i in range(3000)]
    path = str(tmp_path / "a.tfrecord")
    with shard_output.shuffled_writer(path, 3, capacity=500) as writer:
        for low in range(0, 3000, 100):
            writer.add(
                record_builder.ChunkRecords(
                    0, data[low : low + 100], 0, 1, 2, 2, 100
                )
            )
            assert len(writer._waiting) <= 100
    shards = records.ShardedRecords([path])
    found = shards.read(np.arange(3000))
    assert sorted(found) == data and found != data
    assert writer.entry()["sequences"] == 3000
    # A buffer of 100 moves most records by less than some hundred places.
    moved = [abs(int(d) - i) for i, d in enumerate(found)]
    assert 20 < np.mean(moved) < 200


# --- Interrupted builds -------------------------------------------------------


class Stop(Exception):
    """Ends a build at a certain place."""


def stop_after(monkeypatch, shards, error=Stop):
    """Makes a build fail once that many shards are finished."""
    finish = shard_output._Output.finish

    def limited(self, entry):
        if len(self.finished) == shards:
            raise error("stopped")
        finish(self, entry)

    monkeypatch.setattr(shard_output._Output, "finish", limited)


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    build, tmp_path, text_file, monkeypatch
):
    options = {"num_shards": 5, "dupe_factor": 1}
    build("through", **options)
    tokenized = []
    work = record_builder.RecordBuilder.build

    def counted(self, chunk):
        tokenized.append(chunk.position)
        return work(self, chunk)

    monkeypatch.setattr(record_builder.RecordBuilder, "build", counted)
    for shards in (1, 2, 4):
        with monkeypatch.context() as patch:
            stop_after(patch, shards)
            with pytest.raises(Stop):
                build("parts", **options)
        # The shard that was renamed but not noted is written anew.
        assert len(list((tmp_path / "parts").glob("*.tfrecord"))) == shards + 1
    tokenized.clear()
    build("parts", **options)
    # The text of the shards that are finished is not tokenized again.
    assert min(tokenized) >= 0.8 * text_file.stat().st_size
    assert digests(tmp_path / "parts") == digests(tmp_path / "through")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3.5},
        {"name": "other.tfrecord"},
        {"tokens": "many"},
        {"records": None},
        {"sha256": "?"},
        {"documents": -1},
    ],
)
def test_a_damaged_list_of_finished_shards_is_begun_anew(
    build, tmp_path, monkeypatch, changes
):
    build("through", num_shards=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            build("parts", num_shards=2)
    path = tmp_path / "parts" / "progress.json"
    progress = json.loads(path.read_text())
    progress["shards"][0].update(changes)
    path.write_text(json.dumps(progress))
    build("parts", num_shards=2, overwrite=True)
    assert digests(tmp_path / "parts") == digests(tmp_path / "through")


def test_other_settings_do_not_go_on(build, tmp_path, monkeypatch, text_file):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            build(num_shards=3, dupe_factor=1)
    before = digests(tmp_path / "records")
    with pytest.raises(
        errors.UserError,
        match="interrupted build used other "
        "settings .max_seq_length 128, not 64",
    ):
        build(num_shards=3, dupe_factor=1, max_seq_length=64)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text_file.read_bytes())
    with pytest.raises(errors.UserError, match="other files, or files that"):
        build(input_file=copy, num_shards=3, dupe_factor=1)
    assert digests(tmp_path / "records") == before
    build(num_shards=3, dupe_factor=1, max_seq_length=64, overwrite=True)
    build("fresh", num_shards=3, dupe_factor=1, max_seq_length=64)
    assert digests(tmp_path / "records") == digests(tmp_path / "fresh")


@pytest.mark.parametrize("output", ["records", "one.tfrecord"])
def test_a_complete_build_given_again_is_left_alone(
    build, tmp_path, output, text_file
):
    first = build(output, dupe_factor=1)
    path = next(tmp_path.rglob("*.tfrecord"))
    before = os.stat(str(path))
    assert build(output, dupe_factor=1) == first
    assert os.stat(str(path)) == before
    with pytest.raises(errors.UserError, match="--overwrite|other settings"):
        build(output, dupe_factor=1, max_seq_length=64)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text_file.read_bytes())
    with pytest.raises(errors.UserError, match="pass --overwrite"):
        build(output, input_file=copy, dupe_factor=1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.UserError, match="pass --overwrite"):
        build(output, dupe_factor=1)


def test_a_finished_shard_that_was_damaged_is_written_again(
    build, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stop):
            build(num_shards=3, masking="dynamic")
    with open(
        str(tmp_path / "records" / "pretrain-00000-of-00003.tfrecord"), "ab"
    ) as stream:
        stream.write(b"x")
    build(num_shards=3, masking="dynamic")
    build("through", num_shards=3, masking="dynamic")
    assert digests(tmp_path / "records") == digests(tmp_path / "through")


def test_a_killed_build_goes_on_and_leaves_no_process(
    build, vocabulary, text_file, tmp_path
):
    big = tmp_path / "big.txt"
    big.write_bytes(text_file.read_bytes() * 12)
    arguments = command(
        vocabulary,
        f"--input_file={big}",
        "--num_workers=2",
        f"--output_file={tmp_path / 'records'}",
        "--num_shards=8",
        "--dupe_factor=4",
    )
    for shards in (1, 4):
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        while process.poll() is None and shards > len(
            list((tmp_path / "records").glob("*.tfrecord"))
        ):
            time.sleep(0.02)
        workers = children(process.pid)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL and len(workers) == 2
        end = time.time() + 30
        while any(map(is_running, workers)):
            assert time.time() < end
            time.sleep(0.02)
    result = subprocess.run(arguments, stderr=subprocess.PIPE, check=True)
    assert b"resuming an interrupted build" in result.stderr
    build("through", input_file=big, num_shards=8, dupe_factor=4)
    assert digests(tmp_path / "records") == digests(tmp_path / "through")


def children(process):
    with open(f"/proc/{process}/task/{process}/children") as stream:
        return list(map(int, stream.read().split()))


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- The forecast -------------------------------------------------------------


@pytest.fixture
def varied_texts(tmp_path, text_file):
    """A large file, many small ones, gzip and JSON: each of its own kind."""
    folder = tmp_path / "varied"
    (folder / "small").mkdir(parents=True)
    text = text_file.read_bytes()
    (folder / "a.txt").write_bytes(text * 4)
    (folder / "b.txt.gz").write_bytes(gzip.compress(text * 3))
    documents = [t for t in text.decode("utf-8").split("\n\n") if t] * 3
    (folder / "c.jsonl").write_text(
        "".join(json.dumps({"text": t, "id": 7}) + "\n" for t in documents)
    )
    for number, document in enumerate(documents):
        path = folder / "small" / f"{number:03d}.txt"
        path.write_text(f"{number} 1234567 {number}. {document}\n")
    return folder


@pytest.mark.parametrize(
    "name, config",
    [
        *((name, {}) for name in ("", "a.txt", "b.txt.gz", "c.jsonl", "small")),
        ("", {"masking": "static", "packing": "doc_sentences"}),
    ],
)
def test_a_forecast_is_within_a_tenth_of_the_build(
    build, tmp_path, varied_texts, monkeypatch, caplog, name, config
):
    caplog.set_level("INFO", "absl")
    path = varied_texts / name
    config = {"masking": "dynamic", "dupe_factor": 2, **config}
    build("small", input_file=path, num_shards=3, **config)
    assert "forecast" not in caplog.text
    monkeypatch.setattr(forecast, "WINDOW_BYTES", 4096)
    monkeypatch.setattr(forecast, "num_windows", lambda *_: 32)
    content = build("records", input_file=path, num_shards=3, **config)
    (line,) = re.findall("forecast from .*", caplog.text)
    numbers = dict(word.split("=") for word in line.split() if "=" in word)
    shards = content["shards"]
    records_built = sum(shard["records"] for shard in shards)
    megabytes = sum(shard["bytes"] for shard in shards) / 1e6
    assert int(numbers["records"]) == pytest.approx(records_built, rel=0.1)
    assert float(numbers["megabytes"]) == pytest.approx(
        megabytes, rel=0.1, abs=0.06
    )
    assert digests(tmp_path / "records") == digests(tmp_path / "small")


# --- Workers ------------------------------------------------------------------


def _multiply(factor):
    return lambda item: item * factor


def _fail_at(number):
    def work(item):
        if item == number:
            raise errors.UserError(f"no {item}")
        return item

    return work


def _die_at(number):
    def work(item):
        if item == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return work


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_items_are_not_taken_early(workers):
    taken = []
    items = (taken.append(i) or i for i in range(100))
    results = worker_pool.map_ordered(items, _multiply, (10,), workers)
    for number in range(100):
        assert next(results) == number * 10
        assert len(taken) <= number + 2 * workers + 2
    assert list(results) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_arrives(workers):
    results = worker_pool.map_ordered(iter(range(50)), _fail_at, (20,), workers)
    with pytest.raises(errors.UserError, match="no 20"):
        list(results)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_a_build_unless_ignored(
    vocabulary, tmp_path, ignored
):
    """nohup starts a command with SIGHUP ignored."""
    text = tmp_path / "text.txt"
    text.write_text("the river and the town\n" * 20000)
    output = tmp_path / "records"
    flags = [f"--input_file={text}", f"--output_file={output}"]
    build = subprocess.Popen(
        command(vocabulary, "--num_shards=20", *flags),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL
        ),
    )
    while not (output / "progress.json").exists():
        time.sleep(0.01)
    build.send_signal(signal.SIGHUP)
    _, log = build.communicate(timeout=120)
    assert build.returncode == (0 if ignored else 128 + signal.SIGHUP), log
    assert b"Traceback" not in log
    assert not list(output.glob("*" + files.INCOMPLETE))


def test_ctrl_c_while_workers_start_is_not_lost():
    """Python ignores an error in a function that it calls at a fork."""
    armed = [signal.SIGINT]
    os.register_at_fork(
        before=lambda: armed and os.kill(os.getpid(), armed.pop())
    )
    test_ends = threading.Event()  # a thread that could take the signal
    threading.Thread(target=test_ends.wait, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(worker_pool.map_ordered(iter(range(50)), _multiply, (10,), 2))
    test_ends.set()
    assert not armed


# Of the executor's two threads, one fits.
LITTLE_MEMORY = """
import resource, threading
from common import worker_pool
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
list(worker_pool.map_ordered(iter(range(50)), lambda: abs, (), 2))
"""


def test_too_little_memory_for_the_executor_is_an_error():
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY],
        stderr=subprocess.PIPE,
        cwd=str(paths.REPOSITORY),
        timeout=30,
    )
    assert done.stderr.endswith(b"MemoryError: can't start new thread\n")


def test_a_killed_worker_ends_the_work_with_an_error():
    results = worker_pool.map_ordered(iter(range(50)), _die_at, (20,), 2)
    with pytest.raises(worker_pool.WorkerError, match="was killed"):
        list(results)


def test_a_killed_worker_keeps_the_finished_shards(
    build, tmp_path, monkeypatch
):
    options = {"num_shards": 3, "masking": "dynamic"}
    with monkeypatch.context() as patch:
        stop_after(patch, 1, worker_pool.WorkerError)
        with pytest.raises(worker_pool.WorkerError):
            build(**options)
    assert (tmp_path / "records" / "progress.json").exists()
    build(**options)


# --- What is there already ----------------------------------------------------


def test_an_existing_output_is_replaced_only_when_asked(build, tmp_path):
    build(masking="dynamic", num_shards=3)
    before = digests(tmp_path / "records")
    with pytest.raises(
        errors.UserError, match="contains .*00000-of-00003.*--over"
    ):
        build(masking="dynamic", num_shards=2)
    assert digests(tmp_path / "records") == before
    (tmp_path / "records" / "notes.txt").write_text("mine")
    build(masking="dynamic", num_shards=2, overwrite=True)
    assert sorted(digests(tmp_path / "records")) == [
        "manifest.json",
        "merges.txt",
        "notes.txt",
        "pretrain-00000-of-00002.tfrecord",
        "pretrain-00001-of-00002.tfrecord",
        "tokenizer_config.json",
        "vocab.json",
    ]


@pytest.mark.parametrize("output", ["all", "all/a.tfrecord"])
def test_the_tokenizer_goes_beside_the_records(
    build, tmp_path, vocabulary, output
):
    build(output, masking="dynamic", max_seq_length=64, do_lower_case=True)
    paths = records.expand_inputs(str(tmp_path / output))
    tokenizer = manifest.find_tokenizer(paths)
    assert tokenizer.do_lower_case
    directory = os.path.dirname(tokenizer.vocab_file)
    assert directory == str(tmp_path / output) + (
        ".tokenizer" if output.endswith(".tfrecord") else ""
    )
    for name in ("vocab.json", "merges.txt"):
        assert files.sha256(os.path.join(directory, name)) == files.sha256(
            str(vocabulary / name)
        )
    with open(os.path.join(directory, "tokenizer_config.json")) as stream:
        values = json.load(stream)
    assert (values["do_lower_case"], values["model_max_length"]) == (True, 64)
    # Files of another tokenizer are not those that built the records.
    with open(tokenizer.vocab_file, "a") as stream:
        stream.write(" ")
    assert manifest.find_tokenizer(paths) is None
    other = manifest.find_tokenizer(paths, [str(vocabulary)])
    assert other.vocab_file == str(vocabulary / "vocab.json")
    assert other.do_lower_case  # says manifest.json


def test_another_vocabulary_in_the_output_is_not_overwritten(build, tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "vocab.json").write_text("{}")
    with pytest.raises(errors.UserError, match="vocab.json': of another tok"):
        build(masking="dynamic")
    assert (tmp_path / "records" / "vocab.json").read_text() == "{}"
    build(masking="dynamic", overwrite=True)


@pytest.mark.parametrize("lowers", [False, True])
def test_lower_casing_with_a_cased_vocabulary_is_warned_of(
    build, caplog, lowers
):
    build(masking="dynamic", do_lower_case=lowers)
    warnings = [
        r.getMessage() for r in caplog.records if r.levelname == "WARNING"
    ]
    assert ["is cased" in line for line in warnings] == [True] * lowers


def test_records_of_others_are_an_error(build, tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "theirs.tfrecord").write_text("x")
    with pytest.raises(errors.UserError, match="contains 'theirs.tfrecord'"):
        build(masking="dynamic")
    assert sorted(digests(tmp_path / "records")) == ["theirs.tfrecord"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            build("parts", masking="dynamic", num_shards=2)
    (tmp_path / "parts" / "theirs.tfrecord").write_text("x")
    with pytest.raises(errors.UserError, match="theirs.tfrecord' is not part"):
        build("parts", masking="dynamic", num_shards=2)


def test_single_files_share_a_manifest(build, tmp_path, tokenizer, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text("the river\n")
    first = build("all/a.tfrecord", masking="dynamic")
    build("all/b.tfrecord", other, masking="dynamic")
    content = manifest.load_manifest(str(tmp_path / "all"))
    assert [s["name"] for s in content["shards"]] == [
        "a.tfrecord",
        "b.tfrecord",
    ]
    assert content["tokens"] == first["tokens"] + len(
        tokenizer.encode("the river")
    )
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "a.tfrecord",
        "a.tfrecord.tokenizer",
        "b.tfrecord",
        "b.tfrecord.tokenizer",
        "manifest.json",
    ]
    with monkeypatch.context() as patch:  # refused before the work is done
        patch.setattr(script, "_write_shards", _raise_stop)
        with pytest.raises(errors.UserError, match="other settings .max_seq"):
            build("all/c.tfrecord", masking="dynamic", max_seq_length=64)
    with pytest.raises(errors.UserError, match="a.tfrecord'; choose another"):
        build("all/a.tfrecord", other, masking="dynamic")
    build("all/b.tfrecord", masking="dynamic", overwrite=True)
    content = manifest.load_manifest(str(tmp_path / "all"))
    assert content["tokens"] == 2 * first["tokens"]


def test_a_single_file_interrupted_before_its_manifest_goes_on(
    build, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(shard_output._Output, "_remove_progress", _multiply)
        patch.setattr(shard_output, "with_totals", _raise_stop)
        with pytest.raises(Stop):
            build("a.tfrecord", masking="dynamic")
    assert (tmp_path / "a.tfrecord").exists()
    build("a.tfrecord", masking="dynamic")
    assert len(manifest.load_manifest(str(tmp_path))["shards"]) == 1


def _raise_stop(*_):
    raise Stop()


# --- Mistakes -----------------------------------------------------------------


def bad_inputs(tmp_path):
    """(bytes, file name, message) of inputs that must be refused."""
    line = b"the river runs\n"
    return [
        (b"", "a.txt", "contains no text"),
        (b" \n\n\t\n", "a.txt", "only white space"),
        (
            line * 50 + b"\xff\n",
            "a.txt",
            "is not UTF-8: byte 0xff at offset 750",
        ),
        (line[:5].decode().encode("utf-16"), "a.txt", "is not UTF-8"),
        (gzip.compress(line * 500)[:-9], "a.txt.gz", "truncated gzip"),
        (line, "a.gz", "not an intact gzip"),
        (b'{"text": "a"}\n{"text": }\n', "a.jsonl", "line 2 of .* is not JSON"),
        (b'{"body": "a"}\n', "a.jsonl", "no field 'text'"),
        (b'{"text": null}\n', "a.jsonl", "is a NoneType; expected a text"),
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("output", ["new/records", "one.tfrecord"])
def test_bad_text_leaves_nothing_behind(
    build, tmp_path, number, output, caplog
):
    data, name, message = bad_inputs(tmp_path)[number]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(errors.UserError) as error:
        build(output, tmp_path / name)
    lines = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert re.search(message, "\n".join([*lines, str(error.value)]))
    assert bool(lines) == ("1, named above" in str(error.value))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("action", ["replace", "skip"])
@pytest.mark.parametrize("masking", ["dynamic", "static"])
def test_a_build_with_invalid_lines_is_completed_by_replacing_or_skipping(
    build, tmp_path, text_file, caplog, action, masking
):
    """Invalid lines are in the first, a middle and the last shard."""
    good = text_file.read_bytes()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"the \xff town\n\n" + good * 2)
    (tmp_path / "texts" / "b.txt").write_bytes(good + b"\xff\n" + good)
    (tmp_path / "texts" / "c.jsonl").write_bytes(b'{"text": null}\n')
    options = dict(
        input_file=tmp_path / "texts",
        num_shards=8,
        masking=masking,
        dupe_factor=1,
        num_workers=2,
    )
    with pytest.raises(errors.UserError, match="without text: 3, named above"):
        build(**options)
    named = "\n".join(r.getMessage() for r in caplog.records)
    for words in (
        "a.txt' is not UTF-8: byte 0xff at offset 4, in line 1;",
        f"b.txt' is not UTF-8: byte 0xff at offset {len(good)}, in line "
        f"{good.count(10) + 1};",
        "line 1 of .*c.jsonl': the field 'text' is a NoneType",
    ):
        assert re.search(words, named)
    kept = {
        path.name: path.stat().st_mtime_ns
        for path in (tmp_path / "records").glob("*.tfrecord")
    }
    assert 4 <= len(kept) <= 6
    assert "pretrain-00000-of-00008.tfrecord" not in kept
    content = build(invalid_text=action, **options)
    counts = content["replaced_lines"], content["skipped_lines"]
    assert counts == ((2, 1) if action == "replace" else (0, 3))
    for name, time_of_change in kept.items():
        path = tmp_path / "records" / name
        assert path.stat().st_mtime_ns == time_of_change
    build("fresh", invalid_text=action, **options)
    completed, fresh = (
        digests(tmp_path / "records"),
        digests(tmp_path / "fresh"),
    )
    assert {**completed, "manifest.json": ""} == {**fresh, "manifest.json": ""}
    # Given again it is complete; another treatment is another build.
    build(invalid_text=action, **options)
    with pytest.raises(errors.UserError, match="pass --overwrite"):
        build(**options)


@pytest.mark.parametrize("output", ["records", "one.tfrecord"])
def test_a_build_without_invalid_lines_is_complete_for_each_treatment(
    build, tmp_path, output
):
    build(output, masking="dynamic")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    build(output, masking="dynamic", invalid_text="replace")
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}


def test_an_interrupted_build_that_skips_lines_is_not_resumed_otherwise(
    build, monkeypatch
):
    options = {"num_shards": 3, "masking": "dynamic"}
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            build(invalid_text="skip", **options)
    with pytest.raises(errors.UserError, match="invalid_text 'skip', not 'er"):
        build(**options)


def test_a_full_disk_keeps_finished_shards(build, tmp_path, monkeypatch):
    written = []
    write = tfrecord.RecordWriter.write

    def limited(self, data):
        written.append(data)
        if len(written) > 350:
            raise OSError(errno.ENOSPC, "No space left on device", self.path)
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(tfrecord.RecordWriter, "write", limited)
        with pytest.raises(OSError, match="No space left"):
            build(num_shards=4, masking="dynamic", max_seq_length=64)
        assert sorted(digests(tmp_path / "records")) == [
            "pretrain-00000-of-00004.tfrecord",
            "pretrain-00001-of-00004.tfrecord",
            "progress.json",
        ]
        written[:] = range(350)
        with pytest.raises(OSError, match="No space left"):
            build("other", num_shards=4, masking="dynamic")
        assert not (tmp_path / "other").exists()
    build(num_shards=4, masking="dynamic", max_seq_length=64)
    build("through", num_shards=4, masking="dynamic", max_seq_length=64)
    assert digests(tmp_path / "records") == digests(tmp_path / "through")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"masked_lm_prob": 0.0},
            "masked_lm_prob is 0.0; use a number above 0",
        ),
        ({"masked_lm_prob": 1.0}, "masked_lm_prob is 1.0"),
        ({"masked_lm_prob": float("nan")}, "masked_lm_prob is nan"),
        (
            {"output": "a.tfrecord", "num_shards": 2},
            "num_shards is 2, but .*one",
        ),
        ({"input_file": "gone.txt"}, "no file 'gone.txt'"),
        ({"output": "text.txt"}, "text.txt is a file that does not end in"),
        ({"output": "folder.tfrecord"}, "folder.tfrecord is a directory"),
        ({"output": "a\nb.tfrecord"}, "has a line break or a backslash"),
        ({"output": "\udcff.tfrecord"}, "the name is not UTF-8"),
    ],
)
def test_mistakes_in_the_settings(build, tmp_path, options, message):
    (tmp_path / "text.txt").write_text("the river\n")
    (tmp_path / "folder.tfrecord").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(errors.UserError, match=message):
        build(**dict({"input_file": tmp_path / "text.txt"}, **options))
    assert sorted(tmp_path.iterdir()) == before


def run_script(vocabulary, *arguments):
    return subprocess.run(
        command(vocabulary, *arguments), capture_output=True, text=True
    )


def test_mistakes_are_one_line_and_exit_code_1(vocabulary, text_file, tmp_path):
    good = {"input_file": text_file, "output_file": tmp_path / "records"}
    (tmp_path / "file").write_text("")
    cases = [
        ({"input_file": tmp_path / "gone.txt"}, "no file"),
        (
            {"max_predictions_per_seq": 0},
            "max_predictions_per_seq=0: expected a whole number from 1 to",
        ),
        ({"max_seq_length": 2}, "expected a whole number from 3 to"),
        ({"num_shards": 0}, "expected a whole number from 1 to"),
        ({"masking": "both"}, "expected one of 'static', 'dynamic'"),
        ({"vocab_file": tmp_path / "gone.json"}, "gone.json"),
        ({"output_file": ""}, "--output_file is missing"),
        ({"output_file": tmp_path / "file" / "records"}, "Not a directory"),
        ({"input_fil": "a"}, "input_file"),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(
            lambda changed: run_script(
                vocabulary,
                *[f"--{n}={v}" for n, v in dict(good, **changed).items()],
            ),
            [changed for changed, _ in cases],
        )
        for (_, message), result in zip(cases, results):
            assert result.returncode == 1, result.stderr
            lines = result.stderr.splitlines()
            assert lines[-1].startswith("create_pretraining_data.py: error: ")
            assert message in lines[-1] and "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_script_reports_and_needs_no_tensorflow(
    vocabulary, text_file, tmp_path
):
    result = run_script(
        vocabulary,
        f"--input_file={text_file}",
        "--masking=dynamic",
        f"--output_file={tmp_path / 'a.tfrecord'}",
        "--dupe_factor=5",
        "--num_workers=",
        "--do_lower_case=True",
    )
    assert result.returncode == 0, result.stderr
    assert "--dupe_factor=5 is ignored" in result.stderr
    assert f"documents={DOCUMENTS} tokens=" in result.stderr
    assert "dropped_tokens=0" in result.stderr
    modules = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, create_pretraining_data\n"
            "sys.exit('tensorflow' in sys.modules)",
        ],
        cwd=str(paths.REPOSITORY),
    )
    assert modules.returncode == 0


def test_the_launcher_passes_flags_on(vocabulary, text_file, tmp_path):
    (tmp_path / "test_bookscorpus.txt").write_bytes(text_file.read_bytes())
    subprocess.run(
        [
            "bash",
            str(paths.REPOSITORY / "scripts" / "create_pretraining_data.sh"),
            "--num_shards=2",
        ],
        env=dict(
            os.environ,
            BERT_BASE_DIR=str(vocabulary),
            BookCorpus_DIR=str(tmp_path),
            VENV_DIR=sys.prefix,
        ),
        check=True,
    )
    content = manifest.load_manifest(str(tmp_path / "pretrain_data"))
    assert len(content["shards"]) == 2 and not content["do_lower_case"]
    assert (content["masking"], content["max_seq_length"]) == ("dynamic", 512)


def test_every_setting_reaches_the_manifest_or_the_build():
    fields = {f.name for f in dataclasses.fields(record_builder.RecordConfig)}
    assert fields == set(script._RECORD_SETTINGS) | {
        "dupe_factor",
        "text_field",
        "invalid_text",
    }
