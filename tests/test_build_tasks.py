# SPDX-License-Identifier: Apache-2.0
"""Records that several tasks build together are those of one process."""

import gzip
import subprocess
import time

import pytest

import create_pretraining_data as script
from common import errors
from helpers.record_builds import command, digests, make_text
from pretraining_data import manifest, record_builder

SHARDS, TASKS = 7, 3


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A large file, a compressed one and an invalid line in each."""
    folder = tmp_path_factory.mktemp("texts")
    text = make_text(200).encode("utf-8")
    (folder / "a.txt").write_bytes(text + b"\xff\n" + text)
    with gzip.open(str(folder / "b.txt.gz"), "wb") as stream:
        stream.write(b"\xff\n" + text)
    return folder


@pytest.fixture
def build(vocabulary, texts, tmp_path):
    """Builds as one task in this process; returns the manifest's content."""

    def run(output, task=None, count=TASKS, input_file=texts, **options):
        settings = dict(num_shards=SHARDS, invalid_text="replace")
        settings.update(options)
        invalid_text = settings.pop("invalid_text")
        return script.run(
            script.BuildConfig(
                input_file=str(input_file),
                output_file=str(tmp_path / output),
                vocab_file=str(vocabulary / "vocab.json"),
                merges_file=str(vocabulary / "merges.txt"),
                num_workers=1,
                task_index=task,
                task_count=None if task is None else count,
                **settings,
            ),
            record_builder.RecordConfig(
                masking="dynamic", invalid_text=invalid_text
            ),
        )[0]

    return run


@pytest.fixture
def one_process(build, tmp_path):
    """The digests of a build by one process."""
    content = build("one")
    assert (content["replaced_lines"], len(content["shards"])) == (2, SHARDS)
    return digests(tmp_path / "one")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 1, 0)])
def test_tasks_in_any_order_build_the_bytes_of_one_process(
    build, tmp_path, one_process, order
):
    for number, task in enumerate(order):
        assert not (tmp_path / "tasks" / "manifest.json").exists()
        content = build("tasks", task)
        is_last = number == len(order) - 1
        assert (len(content["shards"]) == SHARDS) == is_last
    assert digests(tmp_path / "tasks") == one_process
    assert build("tasks", 0) == content  # complete already
    assert digests(tmp_path / "tasks") == one_process


def test_tasks_at_once_one_of_them_killed(
    vocabulary, texts, tmp_path, one_process
):
    output = tmp_path / "tasks"

    def start(task):
        return subprocess.Popen(
            command(
                vocabulary,
                f"--input_file={texts}",
                f"--output_file={output}",
                "--num_workers=1",
                f"--num_shards={SHARDS}",
                "--masking=dynamic",
                "--invalid_text=replace",
                f"--task_index={task}",
                f"--task_count={TASKS}",
            ),
            stderr=subprocess.DEVNULL,
        )

    killed = start(1)
    while (
        killed.poll() is None
        and not (
            output / f"pretrain-00002-of-{SHARDS:05d}.tfrecord.incomplete"
        ).exists()
    ):
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -9
    assert [start(task).wait() for task in (0,)] == [0]
    with pytest.raises(errors.UserError, match="was interrupted"):
        manifest.check_finished(
            str(output / f"pretrain-00000-of-{SHARDS:05d}.tfrecord")
        )
    started = [start(task) for task in (0, 1, 2)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert digests(output) == one_process


def test_a_task_leaves_the_unfinished_shards_of_others(
    build, tmp_path, one_process
):
    build("tasks", 0)
    shard = tmp_path / "tasks" / f"pretrain-00006-of-{SHARDS:05d}.tfrecord"
    for path in (shard, shard.with_name(shard.name + ".incomplete")):
        path.write_bytes(b"x")
        build("tasks", 1)
        assert path.read_bytes() == b"x"
    build("tasks", 2)
    assert digests(tmp_path / "tasks") == one_process


def test_other_numbers_of_tasks_resume_the_build(build, tmp_path, one_process):
    build("tasks", 1)
    build("tasks", 4, 5)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("tasks/*.tfrecord")}
    assert len(kept) == 4
    build("tasks")  # one process
    assert digests(tmp_path / "tasks") == one_process
    for path, changed in kept.items():
        assert path.stat().st_mtime_ns == changed


def test_a_mistake_in_the_text_of_a_task_keeps_the_shards_of_others(
    build, texts, tmp_path
):
    path = tmp_path / "texts"
    path.mkdir()
    for name in ("a.txt", "b.txt.gz"):
        data = (texts / name).read_bytes()
        (path / name).write_bytes(data[: -9 if name == "b.txt.gz" else None])
    build("tasks", 0, input_file=path)
    before = digests(tmp_path / "tasks")
    with pytest.raises(errors.UserError, match="truncated gzip"):
        build("tasks", 2, input_file=path)
    assert digests(tmp_path / "tasks") == before
    with pytest.raises(errors.UserError, match="interrupted build used other"):
        build("tasks", 1)


def test_invalid_lines_are_errors_of_their_tasks(build, tmp_path, one_process):
    for task in range(TASKS):
        try:
            build("tasks", task, invalid_text="error")
        except script.InvalidTextError:
            pass
    kept = {path.name for path in (tmp_path / "tasks").glob("*.tfrecord")}
    assert 0 < len(kept) < SHARDS
    for task in range(TASKS):
        content = build("tasks", task)
    assert content["replaced_lines"] == 2
    tasks = digests(tmp_path / "tasks")
    assert {**tasks, "manifest.json": ""} == {
        **one_process,
        "manifest.json": "",
    }


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(task_index=1), "only one is set"),
        (dict(task_index=2, task_count=2), "count tasks from 0"),
        (dict(overwrite=True), "would remove the shards of other tasks"),
        (dict(output_file="one.tfrecord"), "one file; pass a directory"),
        (dict(runner="DirectRunner"), "has workers of its own"),
        (dict(num_shards=1), "--task_count is 2, but the records have 1 shard"),
    ],
)
def test_mistakes_in_the_flags_of_tasks(
    vocabulary, texts, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    settings = dict(output_file="tasks", task_index=0, task_count=2)
    if set(options) == {"task_index"}:
        del settings["task_count"]
    with pytest.raises(errors.UserError, match=message):
        script.run(
            script.BuildConfig(
                input_file=str(texts),
                vocab_file=str(vocabulary / "vocab.json"),
                merges_file=str(vocabulary / "merges.txt"),
                **{**settings, **options},
            ),
            record_builder.RecordConfig(),
        )
    assert not any(tmp_path.iterdir())
