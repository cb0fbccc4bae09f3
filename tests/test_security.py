# SPDX-License-Identifier: Apache-2.0
"""Names in files cannot leave the directory of the file."""

import json

import pytest

from common import errors
from pretraining_data import manifest, records
from training import preflight
from weights import hf_model

OUTSIDE = (
    "../secret",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "\u202etxt",
    "\ud800",
    None,
    3,
    ["a"],
)


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_manifest_cannot_leave_its_directory(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"x" * 100)
    folder = tmp_path / "records"
    folder.mkdir()
    path = folder / "manifest.json"
    path.write_text(
        json.dumps(
            {
                "format_version": manifest.FORMAT_VERSION,
                "masking": "dynamic",
                "max_seq_length": 8,
                "max_predictions_per_seq": 2,
                "vocab_size": 20,
                "bos_id": 0,
                "pad_id": 1,
                "eos_id": 2,
                "unk_id": 3,
                "mask_id": 19,
                "shards": [
                    {"name": name, "records": 1, "bytes": 1, "sha256": "0" * 64}
                ],
            }
        )
    )
    (folder / "a.tfrecord").write_bytes(b"")
    for read in (
        manifest.load_manifest,
        records.expand_inputs,
        preflight.check_shards,
    ):
        with pytest.raises(errors.UserError, match="without a directory"):
            read(str(folder))


@pytest.mark.parametrize(
    "name", [n for n in OUTSIDE if isinstance(n, str)], ids=repr
)
def test_an_index_of_weights_cannot_leave_its_directory(tmp_path, name):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    opened = []
    # A backslash is a letter of a name here, of a file that is not there.
    with pytest.raises((errors.UserError, FileNotFoundError)):
        hf_model.load_parts(
            str(path), opened.append if name != "a\\b" else open
        )
    assert opened == []
