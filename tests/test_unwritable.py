# SPDX-License-Identifier: Apache-2.0
"""Paths that cannot be written to, and files that vanish during a run.

Root may write everywhere, so the tests give up that right in a child process;
a read-only file system is tested where the machine has one.
"""

import os
import pathlib
import tempfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import errors, files, tfrecord
from helpers import masked_lm_records
from training import (
    eval_results,
    input_pipeline,
    masked_lm_batches,
    output_directory,
    run_config,
    tensorflow_errors,
)

NOBODY = 65534


def as_nobody(function):
    """What a function raises in a process without root's rights, as a line."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if not child:
            try:
                if os.getuid() == 0:
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                function()
                text = "nothing was raised"
            except errors.UserError as error:
                text = str(error)
            except OSError as error:
                text = errors.describe_os_error(error)
            except BaseException as error:  # the test is to see it
                text = f"bug: {error!r}"
            os.write(answer.fileno(), text.encode())
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return answer.read().decode()


@pytest.fixture
def closed():
    """A directory that may be read and not written."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "old.tfrecord").write_bytes(b"old")
        folder.chmod(0o555)
        yield folder
        assert [path.name for path in folder.iterdir()] == ["old.tfrecord"]
        folder.chmod(0o755)


def write_record(path):
    with tfrecord.RecordWriter(str(path)) as writer:
        writer.write(b"x")


def write_weights(path):
    with files.NewFiles([str(path)], overwrite=True) as output:
        output.write(str(path), b"x")


def prepare(path):
    output_directory.prepare(run_config.RunConfig(output_dir=str(path)), None)


WRITERS = {
    "records": write_record,
    "weights": write_weights,
    "run": prepare,
    "results": lambda path: eval_results.write_results(str(path), {"a": 1}),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_directory_without_permission_is_named(closed, name):
    text = as_nobody(lambda: WRITERS[name](closed / "new"))
    assert text.startswith(f"cannot use '{closed / 'new'}")
    assert text.endswith(
        "Permission denied; make it usable or choose another path"
    )


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_file_where_a_directory_should_be_is_named(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError) as caught:
        WRITERS[name](tmp_path / "file" / "new")
    text = errors.describe_os_error(caught.value)
    assert str(tmp_path / "file") in text and text.endswith(
        "; choose another path"
    )
    assert (tmp_path / "file").read_text() == "kept"


def read_only_mount():
    """A directory on a file system that is mounted read-only, or None."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, place, _, options = line.split()[:4]
            if "ro" in options.split(",") and os.path.isdir(place):
                return pathlib.Path(place)
    return None


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_read_only_file_system_is_named(name):
    place = read_only_mount()
    if place is None:
        pytest.skip("no file system is mounted read-only here")
    with pytest.raises(OSError) as caught:
        WRITERS[name](place / "new")
    assert "new" in errors.describe_os_error(caught.value)


# Files that vanish.


@pytest.fixture
def batches(tmp_path):
    """Batches over two files, of which the first alone has been opened."""
    source = masked_lm_records.source_of(
        masked_lm_records.write_records(tmp_path / "records")
    )
    return masked_lm_batches.MaskedLmBatches(source, batch_size=4)


def read_all(batches):
    """Runs the dataset to its end, as a run does."""
    item = tf.data.make_one_shot_iterator(
        input_pipeline.dataset(batches, 0, batches.steps)
    ).get_next()
    with tensorflow_errors.reported(batches), tf.Session() as session:
        return [session.run(item) for _ in range(batches.steps)]


def test_a_file_that_vanishes_during_a_run_is_named(batches, tmp_path):
    path = tmp_path / "records" / "b.tfrecord"
    path.unlink()
    with pytest.raises(OSError) as caught:
        read_all(batches)
    assert errors.describe_os_error(caught.value) == (
        f"cannot use {str(path)!r}: No such file or directory; check the path"
    )


def test_a_file_that_is_open_may_vanish(batches, tmp_path):
    expected = batches.make(0)
    (tmp_path / "records" / "a.tfrecord").unlink()
    for name, values in batches.make(0).items():
        np.testing.assert_array_equal(values, expected[name])


def test_a_file_that_is_cut_during_a_run_is_named(batches, tmp_path):
    os.truncate(str(tmp_path / "records" / "b.tfrecord"), 40)
    with pytest.raises(errors.UserError, match=r"b\.tfrecord.*truncated"):
        read_all(batches)
