# SPDX-License-Identifier: Apache-2.0
"""scripts/make_rank_table.py, run_8p.sh and the model zoo's entry points.

Stubs for Python record their arguments; test_npu_chain.py starts real
processes.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.paths import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
ADDRESSES = [f"192.168.1.{100 + number}" for number in range(16)]


def make_table(path, *flags, code=0):
    """The messages of make_rank_table.py, which writes a file."""
    script = str(SCRIPTS / "make_rank_table.py")
    done = subprocess.run(
        [sys.executable, script, f"--output={path}", *flags],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def devices_of(path):
    """The devices of all hosts of a table."""
    table = json.loads(path.read_text())
    return [d for server in table["server_list"] for d in server["device"]]


# --- The rank table ---------------------------------------------------------


def test_table_of_one_device(tmp_path):
    make_table(
        tmp_path / "t",
        "--hosts=10.0.0.1",
        "--devices=1",
        "--device_ips=192.168.1.100",
    )
    device = {"device_id": "0", "device_ip": "192.168.1.100", "rank_id": "0"}
    assert json.loads((tmp_path / "t").read_text()) == {
        "version": "1.0",
        "status": "completed",
        "server_count": "1",
        "server_list": [{"server_id": "10.0.0.1", "device": [device]}],
    }


def test_ranks_continue_across_hosts(tmp_path):
    make_table(
        tmp_path / "t",
        "--hosts=10.0.0.1,10.0.0.2",
        "--devices=8",
        "--device_ips=" + ",".join(ADDRESSES),
    )
    assert json.loads((tmp_path / "t").read_text())["server_count"] == "2"
    devices = devices_of(tmp_path / "t")
    assert [d["rank_id"] for d in devices] == [str(n) for n in range(16)]
    assert [d["device_id"] for d in devices] == [str(n % 8) for n in range(16)]
    assert [d["device_ip"] for d in devices] == ADDRESSES


def test_addresses_come_from_each_hosts_file(tmp_path):
    files = [tmp_path / "hccn_0.conf", tmp_path / "hccn_1.conf"]
    for host, file in enumerate(files):
        lines = [
            f"address_{n}=10.0.{host}.{n + 1}\nnetmask_{n}=255.0.0.0\n"
            for n in range(8)
        ]
        file.write_text("".join(lines))
    make_table(
        tmp_path / "t",
        "--hosts=10.9.0.1,10.9.0.2",
        "--devices=2",
        "--hccn_conf=" + ",".join(map(str, files)),
    )
    assert [d["device_ip"] for d in devices_of(tmp_path / "t")] == [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.1.1",
        "10.0.1.2",
    ]


def test_only_addresses_in_another_encoding_are_a_mistake(tmp_path):
    flags = [
        "--hosts=10.0.0.1",
        "--devices=1",
        f"--hccn_conf={tmp_path / 'conf'}",
    ]
    (tmp_path / "conf").write_bytes(b"# caf\xe9\naddress_0=192.168.1.7\n")
    make_table(tmp_path / "t", *flags)
    assert "192.168.1.7" in (tmp_path / "t").read_text()
    (tmp_path / "conf").write_bytes(b"address_0=192.168.1.\xe9\n")
    log = make_table(tmp_path / "t", *flags, code=1)
    assert "expected an address such as 10.0.0.1" in log
    assert log.count("\n") == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--hosts=10.0.0.1", "--devices=3"], "invalid choice: 3"),
        (["--hosts=", "--devices=1"], "--hosts is empty"),
        (["--hosts=localhost"], "'localhost'; expected an address"),
        (
            ["--hosts=10.0.0.1,10.0.0.1", "--devices=1"],
            "10.0.0.1 more than once",
        ),
        (
            ["--hosts=10.0.0.1", "--devices=2", "--device_ips=10.0.0.2"],
            "--device_ips has 1 addresses; expected 2",
        ),
        (
            [
                "--hosts=10.0.0.1",
                "--devices=2",
                "--device_ips=10.0.0.2,10.0.0.2",
            ],
            "10.0.0.2 more than once",
        ),
        (["--hosts=10.0.0.1,10.0.0.2"], "pass --hccn_conf=FILE,FILE"),
        (["--hosts=10.0.0.1", "--hccn_conf=no_such"], "'no_such'"),
        (["--hosts=10.0.0.1", "--hccn_conf=/dev/null"], "no line address_0="),
    ],
)
def test_mistakes_in_a_table_are_one_line(tmp_path, flags, words):
    line = make_table(tmp_path / "t", *flags, code=1)
    assert line.startswith("make_rank_table.py: error: ") and words in line
    assert line.count("\n") == 1 and not (tmp_path / "t").exists()


# --- Processes --------------------------------------------------------------

_SLEEPER = """#!/usr/bin/env bash
trap 'echo ended by SIGTERM; exit 143' TERM
echo "$@"
env | grep -E '^(RANK|ASCEND|JOB_ID|OUT_DIR)' | sort
if [ "$RANK_ID" = "%s" ]; then echo this went wrong; exit 7; fi
touch "$STARTED/$RANK_ID"
for ((i = 0; i < %d; i++)); do sleep 0.05; done
"""


@pytest.fixture
def launch(tmp_path):
    """Function that starts run_8p.sh with a stub for Python."""

    def start(
        *arguments, fails="none", rounds=0, hosts=1, devices=2, **variables
    ):
        make_table(
            tmp_path / "table",
            f"--devices={devices}",
            "--hosts=" + ",".join(ADDRESSES[-hosts:]),
            "--device_ips=" + ",".join(ADDRESSES[: hosts * devices]),
        )
        program = tmp_path / "python"
        program.write_text(_SLEEPER % (fails, rounds))
        program.chmod(0o755)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RANK", "ASCEND", "DEVICE", "SERVER"))
        }
        environment.update(
            PYTHON=str(program),
            STARTED=str(tmp_path),
            OUT_DIR=str(tmp_path / "out"),
            JOB_ID="77",
            RANK_TABLE_FILE=str(tmp_path / "table"),
            GRACE_SECONDS="10",
        )
        environment.update(variables)
        return subprocess.Popen(
            ["bash", str(SCRIPTS / "run_8p.sh")] + list(arguments),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )

    return start


def logs_of(tmp_path):
    return [
        path.read_text().splitlines()
        for path in sorted((tmp_path / "out" / "logs").glob("device_*.log"))
    ]


def test_each_device_has_a_process_with_its_variables(launch, tmp_path):
    process = launch(
        "pretraining",
        "--num_train_steps=7",
        hosts=2,
        devices=2,
        SERVER_INDEX="1",
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(logs_of(tmp_path)) == 2
    for device, log in enumerate(logs_of(tmp_path)):
        assert "run_pretraining.py" in log[0]
        assert log[0].endswith(
            "--accelerator=npu --distributed=True --num_train_steps=7"
        )
        variables = dict(line.split("=", 1) for line in log[1:])
        assert variables == {
            "RANK_ID": str(2 + device),
            "RANK_SIZE": "4",
            "JOB_ID": "77",
            "ASCEND_DEVICE_ID": str(device),
            "OUT_DIR": str(tmp_path / "out"),
            "RANK_TABLE_FILE": str(tmp_path / "table"),
        }


def test_one_device_has_no_rank_table(launch, tmp_path):
    process = launch("squad_v1.1", devices=1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    (log,) = logs_of(tmp_path)
    assert "run_squad.py" in log[0] and "--distributed=False" in log[0]
    assert "RANK_SIZE=1" in log
    assert not any(line.startswith("RANK_TABLE_FILE") for line in log)


def test_all_are_stopped_when_one_fails(launch, tmp_path):
    process = launch("squad_v2.0", fails="1", rounds=2000, devices=4)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "rank 1 (device 1) ended with code 7" in output
    # The launcher then names the paths that do not exist.
    assert "this went wrong" in output.splitlines()[-4:]
    for device in (0, 2, 3):
        assert "ended by SIGTERM" in logs_of(tmp_path)[device]


def test_sigterm_is_passed_on(launch, tmp_path):
    process = launch("squad_v1.1", rounds=2000)
    deadline = time.time() + 30
    while time.time() < deadline and not all(
        (tmp_path / rank).exists() for rank in "01"
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert [log[-1] for log in logs_of(tmp_path)] == (["ended by SIGTERM"] * 2)


@pytest.mark.parametrize(
    "arguments, variables, words",
    [
        (["train"], {}, "unknown task 'train'; expected pretraining"),
        (
            ["pretraining"],
            {"RANK_TABLE_FILE": "no_such"},
            "RANK_TABLE_FILE=no_such: cannot be read",
        ),
        (["pretraining"], {"SERVER_INDEX": "1"}, "has 2 ranks"),
        (["pretraining"], {"DEVICES": "two"}, "DEVICES is 'two'"),
        (["pretraining"], {"RANK_TABLE_FILE": "/dev/null"}, "has no rank_id"),
    ],
)
def test_mistakes_of_a_launch_are_one_line(launch, arguments, variables, words):
    process = launch(*arguments, **variables)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.startswith("run_8p.sh: error: ") and words in output
    assert output.count("\n") == 1


# --- The model zoo's entry points -------------------------------------------

_RUN = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
mkdir -p "$OUT_DIR" && touch "$OUT_DIR/predictions.json"
case $1 in
  *run_*) echo "2026-01-31 12:00:00 I global_batch=32 learning_rate=0.00002"
    echo "2026-01-31 12:00:00 I step=20 loss=7.5 learning_rate=1e-5"
    echo "2026-01-31 12:00:00 I step=40 loss=6.25 examples_per_second=80.0" ;;
  *v1.1.py) echo '{"exact_match": 83.5, "f1": 90.5}' ;;
  *v2.0.py) echo '{"exact": 80.5, "f1": 83.0, "best_exact": 81.0,'
    echo ' "best_f1": 84.25}' ;;
esac
"""


def zoo(tmp_path, script, *flags):
    """(exit code, output, the calls of Python) of an entry point."""
    program = tmp_path / "python"
    program.write_text(_RUN)
    program.chmod(0o755)
    (tmp_path / "calls").write_text("")
    done = subprocess.run(
        ["bash", str(SCRIPTS / script)] + list(flags),
        env=dict(
            os.environ,
            PYTHON=str(program),
            OUT_DIR=str(tmp_path / "o"),
            CALLS=str(tmp_path / "calls"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return (
        done.returncode,
        done.stdout.splitlines(),
        (tmp_path / "calls").read_text().splitlines(),
    )


def test_full_run_reads_its_summary_from_the_log_lines(tmp_path):
    code, output, calls = zoo(
        tmp_path,
        "train_full_1p.sh",
        f"--data_path={tmp_path}",
        "--ckpt_path=model",
        "--precision_mode=allow_mix_precision",
        "--profiling=True",
        "--data_dump_flag=False",
        "--over_dump=True",
    )
    assert code == 0, output
    speed = "steps_per_second=2.5 examples_per_second=80.0 final_loss=6.25"
    assert output[-4:-1] == [
        "pretraining " + speed,
        f"squad_v1.1 {speed} exact_match=83.5 f1=90.5",
        f"squad_v2.0 {speed} exact=80.5 f1=83.0 best_exact=81.0 best_f1=84.25",
    ]
    trainings = [call for call in calls if "/run_" in call]
    assert len(trainings) == 3 and len(calls) == 5
    for call in trainings:
        assert call.endswith(
            "--accelerator=npu --precision_mode=allow_mix_precision "
            "--profiling=True --data_dump=False --over_dump=True"
        )
        assert "--bert_config_file=model/config.json" in call


def test_performance_run_trains_once(tmp_path):
    code, output, calls = zoo(
        tmp_path, "train_performance_1p.sh", f"--data_path={tmp_path}"
    )
    assert code == 0 and len(calls) == 1
    assert output[-2].startswith("pretraining steps_per_second=2.5 ")
    assert (
        f"--input_files_dir={tmp_path}/Data/BookCorpus/pretraining_data"
        in calls[0]
    )


def test_an_entry_point_takes_a_separate_value_and_pretrain_data(tmp_path):
    records = tmp_path / "Data" / "BookCorpus" / "pretrain_data"
    records.mkdir(parents=True)
    code, _, calls = zoo(
        tmp_path, "train_performance_1p.sh", "--data_path", str(tmp_path)
    )
    assert code == 0 and f"--input_files_dir={records} " in calls[0]


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "--data_path is missing"),
        (["--data_path=no_such"], "--data_path=no_such: not a directory"),
        (["--data_path", "no_such"], "--data_path=no_such: not a directory"),
        (["--data=x"], "unknown flag '--data=x'"),
        (
            ["--data_path=.", "--data_dump_flag=True", "--over_dump=True"],
            "--data_dump_flag and --over_dump are both True; set one",
        ),
    ],
)
def test_mistakes_of_an_entry_point_are_one_line(tmp_path, flags, words):
    code, output, calls = zoo(tmp_path, "train_full_1p.sh", *flags)
    assert (code, len(output), calls) == (1, 1, [])
    assert output[0].startswith("train_full_1p.sh: error: ")
    assert words in output[0]
