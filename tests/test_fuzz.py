# SPDX-License-Identifier: Apache-2.0
"""A few inputs of tests/fuzz.py for each reader; by hand it runs thousands."""

import random

import pytest

import fuzz
from common import errors
from helpers import fuzz_readers, mutations


@pytest.mark.parametrize("name", sorted(fuzz_readers.READERS))
def test_only_documented_errors_come_out(tmp_path, name):
    result = fuzz.run(fuzz_readers.READERS[name](tmp_path), 40, "suite")
    assert [text for _, _, text in result.failures] == []
    assert result.peak_mb < 1024


def test_the_same_seed_gives_the_same_inputs(tmp_path):
    def inputs(folder):
        folder.mkdir()
        make = fuzz_readers.configs(folder).make
        return [make(random.Random(str(seed))) for seed in range(50)]

    assert inputs(tmp_path / "a") == inputs(tmp_path / "b")
    assert len(set(inputs(tmp_path / "c"))) > 40


def failures_of(read):
    """The texts of the failures that fuzz reports for a reader."""
    result = fuzz.run(fuzz_readers.Reader([], lambda _: b"x", read), 3, 1)
    return [text for _, _, text in result.failures]


def test_undocumented_errors_are_reported(monkeypatch):
    def bug(_):
        return {}["missing"]

    def endless(_):
        while True:
            pass

    def large(_):
        return bytearray(4 * fuzz.MEMORY_BYTES)

    class Wordy(errors.UserError):
        def __str__(self):
            return "x" * 5000

    def wordy(_):
        raise Wordy("x")

    assert "KeyError: 'missing'" in failures_of(bug)[0]
    assert "MemoryError" in failures_of(large)[0]
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    assert "TooSlow" in failures_of(endless)[0]
    assert "a message of 5000 characters" in failures_of(wordy)[0]


@pytest.mark.parametrize("error", [errors.UserError("bad"), OSError("gone")])
def test_documented_errors_are_not_failures(error):
    def reject(_):
        raise error

    assert failures_of(reject) == []


def test_json_keeps_its_shape_under_most_mutations():
    sound = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    changed = [
        mutations.of_json(sound, random.Random(str(seed)))
        for seed in range(300)
    ]
    assert sum(text[:1] in b"{" for text in changed if text) > 150
    assert any(b"[[[[" in text for text in changed)
    assert any(b"\\ud800" in text for text in changed)
