# SPDX-License-Identifier: Apache-2.0
"""The benchmark: turns, ratios, text that grows, peers in their processes."""

import json
import math
import os
import re
import subprocess
import sys
import types

import pytest
import tensorflow.compat.v1 as tf

from common import errors
from helpers.paths import REPOSITORY
from scripts import (
    benchmark,
    benchmark_contenders,
    benchmark_peers,
    benchmark_stages,
)

TEXT = "the cat sat\nthe cat saw an Ant\n"


def row(**changes):
    return benchmark.Row(
        **dict(
            stage="step",
            title="Step",
            contender="peer",
            rate=2.0,
            unit="x/s",
            ratio=1.5,
            lowest=1.25,
            highest=2.0,
            cpu_ratio=1.0,
            peak_share=0.0,
            megabytes=0.0,
            **changes,
        )
    )


def contender(name, seconds, amount=1.0):
    return benchmark_contenders.Contender(
        name,
        "x/s",
        amount,
        lambda: benchmark_contenders.Run(next(seconds), 1.0, 7.0),
    )


def test_ratios_are_of_the_same_round_and_the_warm_up_is_left_out():
    rows = benchmark.time_stage(
        "step",
        "Step",
        [
            contender("ours", iter([99.0, 1.0, 2.0, 4.0])),
            contender("peer", iter([99.0, 6.0, 4.0, 12.0]), amount=2.0),
        ],
        3,
        0.0,
    )
    ours, peer = rows
    assert (ours.rate, ours.ratio) == (0.5, 1.0)
    assert peer.rate == pytest.approx(2.0 / 6.0)
    # 6 / 1, 4 / 2 and 12 / 4 seconds, for twice the work.
    assert (peer.lowest, peer.ratio, peer.highest) == (1.0, 1.5, 3.0)
    assert (peer.cpu_ratio, peer.megabytes) == (0.5, 7.0)


def test_a_line_is_fitted_to_the_costs():
    def costs(*ratios):
        names = [
            "this suite",
            "num_layers=2",
            "num_layers=8",
            "batch_size=4",
            "batch_size=16",
        ]
        return [
            row()._replace(
                stage="scaling", contender=name, ratio=ratio, cpu_ratio=1.0
            )
            for name, ratio in zip(names, ratios)
        ]

    lines = list(benchmark.fits(costs(1.0, 0.6, 1.8, 0.55, 1.9)))
    assert lines[0].startswith("time of a step = 0.20 + 0.80 x num_layers")
    assert lines[0].endswith("off by at most 0.0 %")
    assert lines[2].startswith("time of a step = 0.10 + 0.90 x batch_size")
    assert not list(benchmark.fits([row()]))


def test_operations_of_one_layer_by_hand():
    settings = types.SimpleNamespace(hidden_size=2, vocab_size=5, num_layers=1)
    # Keys and values of 6 tokens; 2 predictions ask, and see 3 tokens each.
    assert benchmark_stages._forward_flops(settings, 6, 3, 2) == (
        2 * 6 * 2 * 4 + 2 * 2 * 10 * 4 + 4 * 2 * 3 * 2 + 2 * 2 * 2 * (5 + 2)
    )


@pytest.mark.parametrize("stage", benchmark_stages.STAGES)
def test_every_contender_runs_for_a_tiny_step(stage, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(40 * TEXT)
    settings = benchmark.BenchmarkConfig(
        # Peers that this Python lacks run only where this names another one.
        peers_python=os.environ.get("BENCHMARK_PEERS_PYTHON", ""),
        text_file=str(text),
        cold_megabytes=0.0,
        record_length=16,
        num_layers=1,
        hidden_size=128,
        vocab_size=len(json.loads((benchmark.DEMO / "vocab.json").read_text())),
        batch_size=2,
        sequence_length=16,
        predictions=2,
        predict_features=2,
        questions=2,
        minutes=0.0,
        rounds=1,
    )
    if stage == "bf16" and tf.__version__.startswith(("1.", "2.6.")):
        pytest.skip("needs TensorFlow 2.15")
    contenders = list(benchmark_stages.STAGES[stage](settings, str(tmp_path)))
    peers = list(benchmark.start_peers(stage, settings, str(tmp_path)))
    results = {}
    for contender in contenders + [peer.contender for peer in peers]:
        run = benchmark_contenders.timed(contender.call)
        assert run.seconds > 0
        results[contender.name] = run.result
    for peer in peers:
        peer.close()
    if stage == "answers":
        results.pop("this suite, ONNX Runtime int8", None)
        assert {
            result for name, result in results.items() if "bf16" not in name
        } == {"2 of 2 answers the same"}
    if stage == "time_to_loss":
        for result in results.values():
            # An untrained model: the logarithm of the vocabulary.
            loss, updates = re.match(
                r"loss ([\d.]+), (\d+) updates", result
            ).groups()
            assert float(loss) == pytest.approx(
                math.log(settings.vocab_size), rel=0.05
            )
            assert updates == "1"


def test_a_peer_that_cannot_run_is_named_with_the_reason(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(
        benchmark_peers.PEERS, "step", {"google-research/bert": None}
    )
    settings = benchmark.BenchmarkConfig()  # without --bert_dir
    assert not list(benchmark.start_peers("step", settings, str(tmp_path)))
    assert capsys.readouterr().out == (
        "step: not timed: google-research/bert (no --bert_dir)\n"
    )


def test_every_stage_has_a_title_and_every_peer_a_stage():
    assert set(benchmark_stages.TITLES) == set(benchmark_stages.STAGES)
    assert set(benchmark_peers.PEERS) <= set(benchmark_stages.STAGES)


def test_grown_text_respells_rare_words(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text(TEXT)
    path = benchmark_contenders.grown_text(
        str(source), str(tmp_path), 3 * len(TEXT) / 1e6
    )
    copies = open(path).read().split("\n\n\n")[:3]
    assert copies[0] == TEXT.rstrip("\n")
    assert len(set(copies)) == 3
    for copy in copies:
        assert len(copy) == len(copies[0])
        assert copy.split()[:2] == ["the", "cat"] == copy.split()[3:5]
        assert copy.split()[-1][0].isupper()


def test_rows_survive_a_file(tmp_path):
    path = tmp_path / "benchmark.csv"
    rows = [row(), row()._replace(title="a, b", megabytes=1.5)]
    benchmark.write_csv(str(path), rows)
    assert benchmark.read_csv(str(path)) == rows
    path.write_text("stage,rate\nstep,fast\n")
    with pytest.raises(errors.UserError, match="is not a benchmark.csv"):
        benchmark.read_csv(str(path))


# Peers.

PEER = """
import sys
sys.path.append(%r)
from scripts import benchmark_contenders
def peer():
    %s
    return benchmark_contenders.Contender(
        "", "x/s", 3.0, lambda: print("noise"), versions={"peer": "1.0"})
benchmark_contenders.serve(peer)
"""


def start(monkeypatch, tmp_path, statement, watched=False):
    (tmp_path / "scripts").mkdir(exist_ok=True)
    (tmp_path / "scripts" / "benchmark_peers.py").write_text(
        PEER % (str(REPOSITORY), statement)
    )
    monkeypatch.setattr(benchmark_contenders, "REPOSITORY", tmp_path)
    return benchmark_contenders.PeerProcess(
        sys.executable, "step", "peer", {}, str(tmp_path), watched
    )


@pytest.mark.parametrize("watched", [False, True])
def test_a_peer_runs_in_its_own_process(monkeypatch, tmp_path, watched):
    peer = start(monkeypatch, tmp_path, "pass", watched)
    contender = peer.contender
    assert contender[:3] == ("peer", "x/s", 3.0)
    assert contender.versions == {"peer": "1.0"}
    for _ in range(2):
        run = benchmark_contenders.timed(contender.call)
        assert 0 <= run.seconds < 60
    peer.close()


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch, tmp_path):
    peer = start(monkeypatch, tmp_path, "raise ImportError")
    assert peer.contender is None
    peer.close()


def test_a_peer_that_fails_says_why(monkeypatch, tmp_path):
    with pytest.raises(errors.UserError, match="peer failed: .*no such thing"):
        start(monkeypatch, tmp_path, "raise ValueError('no such thing')")


# The script.


def test_script_times_stages_and_draws_earlier_ones(tmp_path):
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "benchmark.py"),
        f"--output_dir={tmp_path}",
    ]
    small = [
        "--stages=tokenizer,step",
        "--rounds=1",
        "--num_layers=1",
        "--hidden_size=64",
        "--vocab_size=300",
        "--batch_size=2",
        "--sequence_length=8",
        "--predictions=2",
    ]
    printed = subprocess.check_output(command + small, universal_newlines=True)
    assert "2 masked | this suite |" in printed
    assert "GFLOP/s" in printed
    rows = benchmark.read_csv(str(tmp_path / "benchmark.csv"))
    assert [line.stage for line in rows] == ["tokenizer", "step"]
    assert rows[1].title == (
        "Training step, 1 layers, H 64, V 300, 2 x 8, 2 masked"
    )
    again = subprocess.check_output(
        command + [f"--draw={tmp_path / 'benchmark.csv'}"],
        universal_newlines=True,
    )
    assert "2 masked | this suite |" in again


def test_the_page_shows_the_numbers_of_its_file():
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text("utf-8")
    rows = benchmark.read_csv(str(REPOSITORY / "docs" / "benchmarks.csv"))
    assert len(rows) > 20
    assert benchmark.table(rows) in page
