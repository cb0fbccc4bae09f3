# SPDX-License-Identifier: Apache-2.0
"""Averaged checkpoints, ensembles, several seeds and comparisons of answers.

Expected values are computed here, with NumPy and SciPy.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from helpers import tiny
from helpers.paths import REPOSITORY
from scripts import compare_predictions, ensemble_squad


def run_script(name, *arguments):
    """(exit code, standard output, standard error) of a script."""
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / name), *arguments],
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout, result.stderr


# --- average_checkpoints.py -------------------------------------------------


def test_averaged_weights_are_their_means(tmp_path):
    prefixes = [
        tiny.write_trained(
            tmp_path / str(seed), ["question_answering"], seed=seed
        )
        for seed in (1, 2, 3)
    ]
    output = tmp_path / "mean"
    code, _, stderr = run_script(
        "average_checkpoints.py", *prefixes, f"--output={output}"
    )
    assert code == 0, stderr
    sources = [tf.train.load_checkpoint(prefix) for prefix in prefixes]
    mean = tf.train.load_checkpoint(str(output / "model.ckpt-7"))
    names = set(sources[0].get_variable_to_shape_map())
    weights = {name for name in names if "/adam_" not in name}
    assert set(mean.get_variable_to_shape_map()) == weights
    assert mean.get_tensor("global_step") == 7
    for name in weights - {"global_step"}:
        expected = np.mean(
            [source.get_tensor(name) for source in sources],
            axis=0,
            dtype=np.float64,
        )
        np.testing.assert_array_equal(
            mean.get_tensor(name), expected.astype(np.float32)
        )
    for name in ("config.json", "vocab.json", "merges.txt"):
        assert (output / name).read_bytes() == (
            tmp_path / "3" / name
        ).read_bytes()


def test_a_directory_gives_its_newest_checkpoints(tmp_path):
    tiny.write_trained(tmp_path / "run", [])
    for suffix in (".index", ".data-00000-of-00001"):
        for step in (8, 10, 9):
            (tmp_path / "run" / f"model.ckpt-{step}{suffix}").write_bytes(
                (tmp_path / "run" / f"model.ckpt-7{suffix}").read_bytes()
            )
    code, stdout, stderr = run_script(
        "average_checkpoints.py",
        str(tmp_path / "run"),
        "--last=2",
        f"--output={tmp_path / 'mean'}",
    )
    assert code == 0, stderr
    assert re.findall(r"run/model\.ckpt-(\d+)", stdout) == ["9", "10"]


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"layer_norm_eps": 1e-6}, "config.json: differs"),
        ({"num_hidden_layers": 1}, "config.json: differs"),
        ("vocab.json", "vocab.json: not the same"),
    ],
)
def test_checkpoints_of_two_models_are_rejected(tmp_path, change, problem):
    first = tiny.write_trained(tmp_path / "a", [])
    values = change if isinstance(change, dict) else {}
    second = tiny.write_trained(tmp_path / "b", [], **values)
    if not values:
        path = tmp_path / "b" / change
        ids = json.loads(path.read_text())
        ids["<s>"], ids["<pad>"] = ids["<pad>"], ids["<s>"]
        path.write_text(json.dumps(ids))
    output = tmp_path / "mean"
    code, _, stderr = run_script(
        "average_checkpoints.py", first, second, f"--output={output}"
    )
    assert code == 1 and problem in stderr and stderr.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("same", [True, False])
def test_checkpoints_of_two_tasks_are_not_averaged(tmp_path, same):
    prefixes = []
    for name, version_2, threshold in (("a", True, 0.5), ("b", same, 1.5)):
        prefixes.append(tiny.write_trained(tmp_path / name, []))
        values = {
            "task": "question_answering",
            "version_2_with_negative": version_2,
            "null_score_diff_threshold": threshold,
        }
        (tmp_path / name / "task.json").write_text(json.dumps(values))
    output = tmp_path / "mean"
    code, _, stderr = run_script(
        "average_checkpoints.py", *prefixes, f"--output={output}"
    )
    assert output.exists() == same == (code == 0)
    if not same:
        assert (
            f"{tmp_path}/b/task.json: differs from that of {tmp_path}/a: "
            "version_2_with_negative False, not True; " in stderr
        )
        assert stderr.count("\n") == 1


# --- ensemble_squad.py ------------------------------------------------------


def test_a_model_is_not_combined_with_itself(tmp_path):
    folder = write_predictions(tmp_path / "a", FIRST)
    code, _, stderr = run_script(
        "ensemble_squad.py",
        folder,
        folder + "/../a",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert code == 1 and f"{folder}: given 2 times" in stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_exist_is_named(tmp_path):
    code, _, stderr = run_script(
        "average_checkpoints.py", str(tmp_path / "no"), "a", "--output=b"
    )
    assert code == 1
    assert "no: neither a directory nor the prefix of a checkpoint" in stderr


def answer(text, start, end):
    return {
        "text": text,
        "probability": 0.5,
        "start_logit": start,
        "end_logit": end,
    }


def write_predictions(folder, nbest, null_odds=None):
    folder.mkdir()
    (folder / "nbest_predictions.json").write_text(json.dumps({"q": nbest}))
    if null_odds is not None:
        (folder / "null_odds.json").write_text(json.dumps({"q": null_odds}))
    return str(folder)


FIRST = [answer("blue", 3.0, 2.0), answer("red", 2.0, 2.5)]
SECOND = [answer("", 9.0, 9.0), answer("red", 1.0, 2.0)]


def test_an_ensemble_averages_the_softmax_of_the_logits(tmp_path):
    special = pytest.importorskip("scipy.special")
    output = tmp_path / "out"
    code, _, stderr = run_script(
        "ensemble_squad.py",
        write_predictions(tmp_path / "a", FIRST),
        write_predictions(tmp_path / "b", SECOND),
        f"--output_dir={output}",
    )
    assert code == 0, stderr
    blue, red = special.softmax([5.0, 4.5]) / 2
    nbest = json.loads((output / "nbest_predictions.json").read_text())["q"]
    assert [entry["text"] for entry in nbest] == ["red", "blue"]
    np.testing.assert_allclose(
        [entry["probability"] for entry in nbest], [red + 0.5, blue]
    )
    assert (nbest[0]["start_logit"], nbest[0]["end_logit"]) == (1.5, 2.25)
    assert json.loads((output / "predictions.json").read_text()) == {"q": "red"}
    assert not (output / "null_odds.json").exists()


@pytest.mark.parametrize("threshold, expected", [("0.4", ""), ("0.6", "red")])
def test_the_mean_of_null_odds_decides(tmp_path, threshold, expected):
    output = tmp_path / "out"
    code, _, stderr = run_script(
        "ensemble_squad.py",
        write_predictions(tmp_path / "a", FIRST, -2.0),
        write_predictions(tmp_path / "b", SECOND, 3.0),
        f"--output_dir={output}",
        f"--null_score_diff_threshold={threshold}",
    )
    assert code == 0, stderr
    predictions = json.loads((output / "predictions.json").read_text())
    assert predictions == {"q": expected}
    assert json.loads((output / "null_odds.json").read_text()) == {"q": 0.5}


def test_large_logits_do_not_overflow():
    nbest = ensemble_squad.combined(
        [[answer("a", 5e3, 5e3), answer("b", -5e3, 0.0)]]
    )
    assert [entry["probability"] for entry in nbest] == [1.0, 0.0]


def test_models_of_other_questions_are_rejected(tmp_path):
    first = write_predictions(tmp_path / "a", FIRST)
    second = write_predictions(tmp_path / "b", SECOND, 1.0)
    arguments = ["ensemble_squad.py", first, second]
    output = tmp_path / "out"
    code, _, stderr = run_script(*arguments, f"--output_dir={output}")
    assert code == 1 and "a/null_odds.json: missing" in stderr
    (tmp_path / "b" / "nbest_predictions.json").write_text('{"r": []}')
    code, _, stderr = run_script(*arguments, f"--output_dir={output}")
    assert code == 1 and "other questions" in stderr
    assert not output.exists()


# --- compare_predictions.py -------------------------------------------------


def test_the_interval_is_that_of_the_bootstrap():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.RandomState(4)
    first = random.normal(50, 20, 400)
    second = first + random.normal(1, 8, 400)
    result = compare_predictions.compare(first, second, 20000, 1)
    difference = second - first
    error = difference.std() / 20  # sqrt(400)
    expected = stats.norm.interval(0.95, difference.mean(), error)
    np.testing.assert_allclose((result.low, result.high), expected, atol=0.05)
    z = difference.mean() / error
    assert abs(result.p_value - 2 * stats.norm.sf(abs(z))) < 0.01
    assert result.first == first.mean() and result.second == second.mean()
    equal = compare_predictions.compare(first, first, 100, 1)
    assert equal[2:] == (0, 0, 0, 1)


def test_both_scores_are_the_official_ones(tmp_path):
    data, paths = tmp_path / "data.json", []
    tiny.write_squad(data, version_2=True)
    for name, text in (("a", "Town 0"), ("b", "")):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(
            json.dumps({f"q{number}": text for number in range(8)})
        )
    scores = [
        json.loads(run_script("evaluate-v2.0.py", str(data), str(path))[1])
        for path in paths
    ]
    code, stdout, stderr = run_script(
        "compare_predictions.py", str(data), *map(str, paths)
    )
    assert code == 0, stderr
    for name in ("exact", "f1"):
        cells = re.search(rf"\| {name} \| (\S+) \| (\S+) \|", stdout).groups()
        assert [float(cell) for cell in cells] == [s[name] for s in scores]
    assert "8 questions, 10000 samples" in stdout


# --- run_seeds.py -----------------------------------------------------------

PROGRAM = """
import pathlib, re, sys
values = dict(re.match("--(.*)=(.*)", word).groups() for word in sys.argv[1:])
folder = pathlib.Path(values["output_dir"])
with open(folder.parent / "log", "a") as stream:
    stream.write(values["random_seed"])
if values["random_seed"] == "5" and not (folder / "tried").exists():
    (folder / "tried").touch()
    sys.exit(1)
score = {"3": 80.0, "5": 90.0, "8": 81.5}[values["random_seed"]]
(folder / "eval_results.txt").write_text(f"f1 = {score}\\nglobal_step = 7\\n")
"""


def test_seeds_are_run_once_each_and_tabled(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    output = tmp_path / "seeds"
    arguments = [
        "run_seeds.py",
        "--seeds=3,5,8",
        f"--output_dir={output}",
        "--",
        sys.executable,
        str(program),
    ]
    code, _, stderr = run_script(*arguments)
    assert code == 1 and "seed 5: the command ended with exit code 1" in stderr
    code, stdout, stderr = run_script(*arguments)
    assert code == 0, stderr
    assert (output / "log").read_text() == "3558"
    deviation = np.std([80.0, 90.0, 81.5], ddof=1)
    row = f"| f1 | 80 | 90 | 81.5 | 81.5 | 80 | 90 | {deviation:.6g} |"
    assert row in stdout
    code, _, stderr = run_script(*arguments, "--other=1")
    assert code == 1 and "of another command" in stderr


def test_predictions_of_another_file_are_rejected(tmp_path):
    data, other = tmp_path / "data.json", tmp_path / "other.json"
    tiny.write_squad(data)
    other.write_text('{"unknown": "text"}')
    code, _, stderr = run_script(
        "compare_predictions.py", str(data), str(other), str(other)
    )
    assert code == 1 and "answers no question of" in stderr
