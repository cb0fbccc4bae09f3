# SPDX-License-Identifier: Apache-2.0
"""Records that Apache Beam builds are those of the local builder."""

import gzip
import importlib.util
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import create_pretraining_data as script
from common import errors
from helpers.paths import REPOSITORY
from helpers.record_builds import command, digests, make_text
from pretraining_data import record_builder

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(
    not HAS_BEAM, reason="apache_beam is not installed"
)
LINE_TEXTS = (
    "The tide tables hang beside the door.",
    "Ölsk lies three hours further north.",
)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """Plain text, gzip and JSON lines: several groups, many chunks."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text(make_text(300, seed=1), "utf-8")
    with gzip.open(str(folder / "b.txt.gz"), "wb") as stream:
        stream.write(make_text(100, seed=2).encode("utf-8"))
    (folder / "c.jsonl").write_text(
        "".join(f'{{"text": "{text}"}}\n' for text in LINE_TEXTS), "utf-8"
    )
    return folder


@pytest.fixture
def build(vocabulary, corpus_folder, tmp_path):
    """Builds in this process; returns the manifest and the run's summary."""

    def run(
        output,
        input_file=corpus_folder,
        runner=None,
        beam_options="",
        num_shards=4,
        overwrite=False,
        **config,
    ):
        if "://" not in output:
            output = str(tmp_path / output)
        return script.run(
            script.BuildConfig(
                input_file=str(input_file),
                output_file=output,
                vocab_file=str(vocabulary / "vocab.json"),
                merges_file=str(vocabulary / "merges.txt"),
                num_workers=1,
                num_shards=num_shards,
                overwrite=overwrite,
                runner=runner,
                beam_options=beam_options,
            ),
            record_builder.RecordConfig(**config),
        )

    return run


def counts(summary):
    """What a summary says besides the time it took."""
    return [word for word in summary.split() if "dropped" in word]


@needs_beam
@pytest.mark.parametrize(
    "config",
    [
        {"masking": "dynamic"},
        {
            "dupe_factor": 3,
            "do_whole_word_mask": True,
            "short_seq_prob": 0.2,
            "random_seed": -7,
            "line_break": "none",
        },
        {"masking": "dynamic", "line_break": "eos"},
    ],
)
def test_shards_are_those_of_the_local_builder(build, tmp_path, config):
    local, local_summary = build("local", **config)
    content, summary = build("beam", runner="DirectRunner", **config)
    assert content == local
    assert counts(summary) == counts(local_summary) == ["dropped_tokens=0"]
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")
    assert len(digests(tmp_path / "beam")) == 8  # manifest, tokenizer


@needs_beam
def test_one_file_and_empty_shards(build, tmp_path, corpus_folder):
    """One chunk leaves two of three shards empty."""
    for name, shards in (("one.tfrecord", 1), ("many", 3)):
        options = {
            "input_file": corpus_folder / "c.jsonl",
            "num_shards": shards,
            "masking": "dynamic",
        }
        build("local/" + name, **options)
        build("beam/" + name, runner="DirectRunner", **options)
    assert (tmp_path / "beam" / "one.tfrecord").read_bytes() == (
        tmp_path / "local" / "one.tfrecord"
    ).read_bytes()
    found = digests(tmp_path / "beam" / "many")
    assert found == digests(tmp_path / "local" / "many")
    assert [
        path.stat().st_size > 0
        for path in sorted((tmp_path / "beam" / "many").glob("*.tfrecord"))
    ] == [True, False, False]


@needs_beam
def test_two_worker_processes_build_the_same(
    build, vocabulary, corpus_folder, tmp_path
):
    local, _ = build("local", masking="dynamic")
    done = subprocess.run(
        command(
            vocabulary,
            f"--input_file={corpus_folder}",
            "--output_file=beam",
            "--masking=dynamic",
            "--num_shards=4",
            "--runner=DirectRunner",
            "--beam_options=--direct_num_workers="
            "2 --direct_running_mode=multi_processing",
        ),
        cwd=str(tmp_path),
        timeout=120,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    report = done.stdout.decode()
    assert done.returncode == 0, report
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")
    assert (
        f"documents={local['documents']} tokens={local['tokens']} "
        f"sequences={local['sequences']}" in report
    )


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def portable_options(tmp_path):
    """--beam_options of a job server and a worker pool that run here."""
    environment = dict(
        os.environ,
        PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        PYTHONPATH=str(REPOSITORY),
    )
    servers, ports = [], []
    for module, flag in (
        ("portability.local_job_service_main", "--port"),
        ("worker.worker_pool_main", "--service_port"),
    ):
        ports.append(free_port())
        servers.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"apache_beam.runners.{module}",
                    f"{flag}={ports[-1]}",
                ],
                cwd=str(tmp_path),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
    try:
        end = time.time() + 60
        while any(map(is_closed, ports)):
            assert time.time() < end
            time.sleep(0.1)
        yield (
            f"--job_endpoint=127.0.0.1:{ports[0]} "
            "--environment_type=EXTERNAL "
            f"--environment_config=127.0.0.1:{ports[1]}"
        )
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def is_closed(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@needs_beam
def test_a_job_server_and_a_worker_pool_build_the_same(
    build, vocabulary, corpus_folder, tmp_path, portable_options
):
    build("local", masking="dynamic")
    done = subprocess.run(
        command(
            vocabulary,
            f"--input_file={corpus_folder}",
            f"--output_file={tmp_path / 'beam'}",
            "--masking=dynamic",
            "--num_shards=4",
            "--runner=PortableRunner",
            f"--beam_options={portable_options}",
        ),
        timeout=240,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")


@needs_beam
def test_it_goes_on_from_finished_shards(build, tmp_path, monkeypatch):
    build("local", masking="dynamic")
    finish = script.shard_output._Output.finish

    def stop_after_two(output, entry):
        finish(output, entry)
        if len(output.finished) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.shard_output._Output, "finish", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            build("beam", masking="dynamic")
    kept = sorted((tmp_path / "beam").glob("*.tfrecord"))
    written = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2
    build("beam", runner="DirectRunner", masking="dynamic")
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")
    assert [path.stat().st_mtime_ns for path in kept] == written


@needs_beam
@pytest.mark.parametrize("shards", [1, 4])
def test_invalid_lines_are_treated_as_by_the_local_builder(
    build, tmp_path, caplog, shards
):
    bad = tmp_path / "bad.txt"
    text = make_text(150, seed=3).encode("utf-8")
    bad.write_bytes(b"good\n\n" + b"\xff\n" + text)
    (tmp_path / "null.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    options = dict(
        input_file=f"{bad},{tmp_path / 'null.jsonl'}",
        num_shards=shards,
        masking="dynamic",
    )
    with pytest.raises(errors.UserError, match="without text: 2, named above"):
        build("beam", runner="DirectRunner", **options)
    messages = [r.getMessage() for r in caplog.records]
    assert (
        f"{str(bad)!r} is not UTF-8: byte 0xff at offset 6, in line 3; convert "
        "it, for example with iconv -t UTF-8"
    ) in messages
    assert any("line 2 of" in m and "null.jsonl" in m for m in messages)
    kept = len(list(tmp_path.glob("beam/*.tfrecord")))
    assert (kept > 0) == (tmp_path / "beam").exists() == (shards == 4)
    content, _ = build(
        "beam", runner="DirectRunner", invalid_text="replace", **options
    )
    assert (content["replaced_lines"], content["skipped_lines"]) == (1, 1)
    build("local", invalid_text="replace", **options)
    beam, local = digests(tmp_path / "beam"), digests(tmp_path / "local")
    del beam["manifest.json"], local["manifest.json"]
    assert beam == local


@needs_beam
def test_a_wrong_option_is_one_error(build, tmp_path):
    with pytest.raises(
        errors.UserError,
        match="--beam_options=--direct_num_workers=two has a wrong value",
    ):
        build(
            "beam",
            runner="DirectRunner",
            beam_options="--direct_num_workers=two",
        )
    assert not (tmp_path / "beam").exists()


@pytest.fixture
def addresses(tmp_path):
    """A file system of its own, below test://, as Beam finds gs://."""
    from apache_beam.io import localfilesystem

    class Addressed(localfilesystem.LocalFileSystem):
        """test://x is the file x in a directory."""

        @classmethod
        def scheme(cls):
            return "test"

        def join(self, base, *paths):
            return "/".join((base.rstrip("/"),) + paths)

        def _path(self, address):
            return str(tmp_path / address.replace("test://", "", 1))

        def match(self, patterns, limits=None):
            found = super().match([self._path(p) for p in patterns], limits)
            for one in found:
                for file in one.metadata_list:
                    file.path = "test://" + os.path.relpath(
                        file.path, str(tmp_path)
                    )
            return found

        def open(self, path, *arguments, **options):
            return super().open(self._path(path), *arguments, **options)

        def create(self, path, *arguments, **options):
            return super().create(self._path(path), *arguments, **options)

        def exists(self, path):
            return super().exists(self._path(path))

        def delete(self, paths):
            for path in paths:
                os.remove(self._path(path))

        def rename(self, sources, destinations):
            super().rename(
                *(
                    [self._path(path) for path in paths]
                    for paths in (sources, destinations)
                )
            )

    return Addressed


@needs_beam
def test_files_may_have_addresses(build, corpus_folder, tmp_path, addresses):
    (tmp_path / "text").mkdir()
    for path in corpus_folder.iterdir():
        (tmp_path / "text" / path.name).write_bytes(path.read_bytes())
    local, _ = build("local", masking="dynamic")
    options = {
        "input_file": "test://text/",
        "runner": "DirectRunner",
        "masking": "dynamic",
    }
    content, _ = build("test://records", **options)
    for entry in local["shards"]:  # a remote build is never complete already
        del entry["build"]
    assert content == local
    remote, here = digests(tmp_path / "records"), digests(tmp_path / "local")
    del remote["manifest.json"], here["manifest.json"]
    assert remote == here
    with pytest.raises(errors.UserError, match="pass --overwrite"):
        build("test://records", **options)
    build("test://records", overwrite=True, num_shards=2, **options)
    assert len(digests(tmp_path / "records")) == 6
    with pytest.raises(errors.UserError, match="no text in 'test://empty/'"):
        build("test://other", **dict(options, input_file="test://empty/"))


@needs_beam
def test_remote_workers_get_the_modules_as_a_package(tmp_path):
    from pretraining_data import beam_builder

    options = beam_builder._options(
        "FlinkRunner", "--flink_master=host:8081 --parallelism=4", str(tmp_path)
    ).get_all_options()
    assert options["flink_master"] == "host:8081"
    assert options["setup_file"] == str(tmp_path / "setup.py")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist"],
        check=True,
        cwd=str(tmp_path),
    )
    (archive,) = (tmp_path / "dist").iterdir()
    shutil.unpack_archive(str(archive), str(tmp_path / "worker"))
    (worker,) = (tmp_path / "worker").iterdir()
    name = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pretraining_data import beam_builder as b;print(b.__file__)",
        ],
        check=True,
        cwd=str(worker),
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=""),
    ).stdout.decode()
    assert worker in pathlib.Path(name).parents
    assert "'regex==" in (tmp_path / "setup.py").read_text()


@pytest.mark.skipif(HAS_BEAM, reason="apache_beam is installed")
def test_without_beam_a_line_says_what_to_install(build, tmp_path):
    with pytest.raises(errors.UserError) as error:
        build("beam", runner="DirectRunner")
    assert "run bash scripts/setup.sh --extras=beam" in str(error.value)
    assert not (tmp_path / "beam").exists()


def test_options_that_do_not_go_together(build):
    with pytest.raises(errors.UserError, match="without --runner"):
        build("beam", beam_options="--parallelism=2")
    with pytest.raises(errors.UserError, match="--num_workers only applies"):
        build("beam", runner="FlinkRunner")
