# SPDX-License-Identifier: Apache-2.0
"""Tests of scripts/*.sh and configs/: launchers, recipes, set-up.

Set-up runs with stand-ins for Python that note what they are asked to do, so
that nothing is downloaded.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import time

import pytest

import configuration
from helpers import flag_parsing
from helpers.paths import REPOSITORY

SHELL_FILES = sorted(REPOSITORY.glob("scripts/*.sh")) + [
    REPOSITORY / ".ci" / "run"
]
FLAG_FILES = sorted(REPOSITORY.glob("configs/*.flags"))
# launcher: (script, the predecessor's settings)
LAUNCHERS = {
    "run_pretraining.sh": ("run_pretraining.py", "predecessor_pretraining"),
    "run_squadv1.1.sh": ("run_squad.py", "predecessor_squad_v1.1"),
    "run_squadv2.0.sh": ("run_squad.py", "predecessor_squad_v2.0"),
}


def write_program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def read_flags(path):
    """The flags of a flag file, in their order."""
    return [
        line for line in path.read_text().splitlines() if line.startswith("--")
    ]


def as_dict(flags):
    return dict(flag[2:].split("=", 1) for flag in flags)


# --- All shell files --------------------------------------------------------


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shell_file_parses_and_stops_at_errors(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert re.search(r"^set -e?uo pipefail$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "path", SHELL_FILES + FLAG_FILES, ids=lambda path: path.name
)
def test_no_path_of_one_machine(path):
    assert not re.search(
        r"(^|[\s=:\"'])/(home|root|Users|data)\b", path.read_text()
    )


@pytest.mark.parametrize("name", ["demo", "lint", "setup", "test"])
def test_help_shows_the_usage(name):
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / f"{name}.sh"), "--help"],
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash scripts/{name}.sh" in done.stdout


# --- Launchers --------------------------------------------------------------


def launch(name, tmp_path, *arguments):
    """Runs a launcher with a stand-in for Python.

    Returns:
      (its calls, each a list of arguments; JOB_ID and ASCEND_DEVICE_ID as
      they saw them).
    """
    log = tmp_path / "log"
    write_program(
        tmp_path / "python",
        "#!/usr/bin/env bash\n"
        'printf \'%s\\n\' "$JOB_ID $ASCEND_DEVICE_ID" "$@" -- '
        f">> {log}\n"
        'if [ -d "an output" ]; then echo > "an output/predictions.json"; fi\n',
    )
    environment = dict(
        os.environ,
        PYTHON=str(tmp_path / "python"),
        BERT_BASE_DIR="a model",
        SQUAD_DIR="a squad",
        BookCorpus_DIR="a corpus",
        OUT_DIR="an output",
    )
    for variable in ("JOB_ID", "ASCEND_DEVICE_ID", "INIT_CHECKPOINT"):
        environment.pop(variable, None)
    for directory in ("a model/tf_model", "a squad", "a corpus"):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
    (tmp_path / "a model/tf_model/roberta_large.ckpt.index").write_text("")
    subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / name)] + list(arguments),
        env=environment,
        cwd=str(tmp_path),
        check=True,
    )
    calls = [call.split("\n") for call in log.read_text().split("\n--\n")[:-1]]
    return [call[1:] for call in calls], calls[0][0]


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_launcher_passes_paths_and_flags_on(name, tmp_path):
    calls, exported = launch(name, tmp_path, "--num_train_epochs=1", "a b")
    assert exported == "10086 0"
    assert calls[0][0] == str(REPOSITORY / LAUNCHERS[name][0])
    assert calls[0][-2:] == ["--num_train_epochs=1", "a b"]
    assert "--bert_config_file=a model/config.json" in calls[0]
    assert "--output_dir=an output" in calls[0]


def test_the_launcher_of_records_honours_python(tmp_path):
    calls, _ = launch("create_pretraining_data.sh", tmp_path, "--num_shards=2")
    assert calls[0][0] == str(REPOSITORY / "create_pretraining_data.py")
    assert calls[0][-1] == "--num_shards=2"


@pytest.mark.parametrize(
    "name, variable",
    [
        ("create_pretraining_data.sh", "BookCorpus_DIR"),
        ("run_pretraining.sh", "BookCorpus_DIR"),
        ("run_squadv1.1.sh", "INIT_CHECKPOINT"),
        ("run_squadv2.0.sh", "SQUAD_DIR"),
    ],
)
def test_a_launcher_that_fails_names_the_path_to_edit(name, variable, tmp_path):
    (tmp_path / "x.ckpt.index").write_text("")
    write_program(tmp_path / "python", "#!/bin/sh\necho program >&2\nexit 3\n")
    paths = dict(
        BERT_BASE_DIR=str(tmp_path),
        BookCorpus_DIR=str(tmp_path),
        SQUAD_DIR=str(tmp_path),
        INIT_CHECKPOINT=str(tmp_path / "x.ckpt"),
        PYTHON=str(tmp_path / "python"),
    )
    problem = (
        f"{name}: error: {variable} is no such, which does not exist; edit "
        f"{variable} in scripts/{name}, or set it in the environment\n"
    )
    wrong, both = {variable: "no such"}, (3, "program\n" + problem)
    is_directory = variable != "INIT_CHECKPOINT"  # which may be hf:NAME
    for changes, flags, expected in (
        ({}, [], (3, "program\n")),
        (wrong, [], (1, problem) if is_directory else both),
        (wrong, ["--flag"], both),
    ):
        done = subprocess.run(
            ["bash", str(REPOSITORY / "scripts" / name), *flags],
            env={**os.environ, **paths, **changes},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == expected


def test_squad_launchers_score_their_predictions(tmp_path):
    (tmp_path / "predictions.json").write_text("{}")  # of an earlier run
    calls, _ = launch("run_squadv1.1.sh", tmp_path, "--output_dir=.")
    assert len(calls) == 1
    (tmp_path / "an output").mkdir()
    (tmp_path / "log").unlink()
    calls, _ = launch("run_squadv1.1.sh", tmp_path)
    assert calls[1] == [
        str(REPOSITORY / "scripts/evaluate-v1.1.py"),
        "a squad/dev-v1.1.json",
        "an output/predictions.json",
    ]
    (tmp_path / "log").unlink()
    calls, _ = launch("run_squadv2.0.sh", tmp_path)
    assert calls[1] == [
        str(REPOSITORY / "scripts/evaluate-v2.0.py"),
        "a squad/dev-v2.0.json",
        "an output/predictions.json",
        "--na-prob-file",
        "an output/null_odds.json",
    ]
    (tmp_path / "log").unlink()
    (tmp_path / "flags").write_text("--num_workers=1\n--predict_file=c\n")
    flags = ("--output_dir=b", "--output_dir", "an output", "--flagfile=flags")
    calls, _ = launch("run_squadv1.1.sh", tmp_path, *flags)
    assert calls[1][1:] == ["c", "an output/predictions.json"]


def test_a_version_of_python_is_not_a_command(tmp_path):
    for python, code, text in ((" 3.11", 127, "not found"), ("3.11", 3, "run")):
        program = tmp_path / "bin" / "python"
        program.parent.mkdir(exist_ok=True)
        write_program(program, "#!/bin/sh\necho run >&2\nexit 3\n")
        done = subprocess.run(
            ["bash", "scripts/run_pretraining.sh", "--flag"],
            env={**os.environ, "PYTHON": python, "VENV_DIR": str(tmp_path)},
            cwd=str(REPOSITORY),
            capture_output=True,
            text=True,
        )
        assert done.returncode == code and text in done.stderr


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_launcher_has_the_recipe_of_the_flag_file(version, tmp_path):
    calls, _ = launch(f"run_squadv{version}.sh", tmp_path)
    launched = as_dict(calls[0][1:])
    recipe = as_dict(
        read_flags(REPOSITORY / "configs" / f"squad_v{version}_large.flags")
    )
    shared = set(launched) & set(recipe) - {"bert_config_file"}
    assert len(shared) > 15
    assert {name: launched[name] for name in shared} == {
        name: recipe[name] for name in shared
    }


# --- Flag files and model configs -------------------------------------------

# script: (how its recipes' names begin, how many lists of flags there are)
RECIPES = {
    "run_pretraining.py": ("pretrain", 4),
    "run_squad.py": ("squad", 8),
    "run_classifier.py": ("glue", 8),
    "run_multiple_choice.py": ("race", 1),
    "run_tagger.py": ("conll", 2),
}


@pytest.mark.parametrize("script", sorted(RECIPES))
def test_script_takes_the_flags_of_launchers_and_flag_files(script, tmp_path):
    lists = []
    for name, (its_script, predecessor) in LAUNCHERS.items():
        if its_script == script:
            directory = tmp_path / name
            directory.mkdir()
            launched = launch(name, directory)[0][0][1:]
            lists += [
                launched,
                launched + [f"--flagfile=configs/{predecessor}.flags"],
            ]
    task, count = RECIPES[script]
    data = ["--data_dir=data"] if task in ("glue", "race") else []
    lists += [
        [f"--flagfile={path}"] + data
        for path in FLAG_FILES
        if path.name.startswith(task)
    ]
    assert len(lists) == count
    lists = [["--output_dir=output", *arguments] for arguments in lists]
    assert flag_parsing.parse({script: lists})["errors"] == []


# Training examples; fairseq's rate, batch, updates and warm-up updates.
# Source: fairseq, examples/roberta/config/finetuning/*.yaml; the sizes are
# those of GLUE's training sets.
GLUE = {
    "cola": (8551, 1e-5, 16, 5336, 320),
    "sst2": (67349, 1e-5, 32, 20935, 1256),
    "mrpc": (3668, 1e-5, 16, 2296, 137),
    "stsb": (5749, 2e-5, 16, 3598, 214),
    "qqp": (363846, 1e-5, 32, 113272, 28318),
    "mnli": (392702, 1e-5, 32, 123873, 7432),
    "qnli": (104743, 1e-5, 32, 33112, 1986),
    "rte": (2490, 2e-5, 16, 2036, 122),
}


@pytest.mark.parametrize("task", sorted(GLUE))
def test_glue_recipe_is_fairseqs(task):
    examples, rate, batch, updates, warmup = GLUE[task]
    path = REPOSITORY / "configs" / f"glue_{task}_large.flags"
    flags = as_dict(read_flags(path))
    assert float(flags["learning_rate"]) == rate
    assert (
        int(flags["train_batch_size"]) * int(flags["num_accumulation_steps"])
        == batch
    )
    assert float(flags["warmup_proportion"]) == pytest.approx(
        warmup / updates, abs=6e-4
    )
    steps = int(examples * float(flags["num_train_epochs"]) / batch)
    if task != "rte":  # fairseq limits its batches' tokens there
        assert steps == pytest.approx(updates, rel=0.015)
    assert (
        f"# {examples:,} examples x 10 epochs / {batch} = {steps:,} updates"
        in path.read_text()
    )


# Rate and batch of the cards that the recipes name, and updates: the cards
# count an incomplete last batch of each epoch.
@pytest.mark.parametrize(
    "size, rate, batch, updates",
    [("base", 2e-5, 16, 2634), ("large", 2e-5, 8, 5268)],
)
def test_conll_recipe_is_that_of_its_card(size, rate, batch, updates):
    path = REPOSITORY / "configs" / f"conll2003_{size}.flags"
    flags = as_dict(read_flags(path))
    assert float(flags["learning_rate"]) == rate
    assert int(flags["train_batch_size"]) == batch
    steps = int(14041 * float(flags["num_train_epochs"]) / batch)
    assert 0 <= updates - steps <= 3
    assert (
        f"# 14,041 sentences x 3 epochs / {batch} = {steps:,} updates"
        in path.read_text()
    )


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.name)
def test_flag_file_states_its_batch(path):
    text = path.read_text()
    flags = as_dict(read_flags(path))
    rows = re.findall(
        r"^#   (\d) devices?: +(\d+) x +(\d+) x (\d) = ([\d,]+)"
        r"( \(below\))?$",
        text,
        re.MULTILINE,
    )
    assert {row[0] for row in rows} == {"1", "8"}
    for devices, batch, accumulation, again, total, below in rows:
        assert devices == again
        assert int(batch) * int(accumulation) * int(devices) == int(
            total.replace(",", "")
        )
        if below:
            assert (batch, accumulation) == (
                flags["train_batch_size"],
                flags["num_accumulation_steps"],
            )
    assert text.count("(below)") == 1


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.name)
def test_flag_file_begins_with_launch_hardware_result_source(path):
    head = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    places = [
        re.search(word, head).start()
        for word in (
            r"\.(py|sh) ",
            "# Hardware",
            "# (Expected|Published)",
            "# Source",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "size, layers, hidden, heads, feed_forward",
    [
        ("tiny", 2, 128, 2, 512),
        ("base", 12, 768, 12, 3072),
        ("large", 24, 1024, 16, 4096),
    ],
)
def test_model_config_is_complete(size, layers, hidden, heads, feed_forward):
    config = configuration.RobertaConfig.from_json_file(
        str(REPOSITORY / "configs" / f"roberta_{size}.json")
    )
    assert (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
    ) == (layers, hidden, heads, feed_forward)
    assert (config.vocab_size, config.max_position_embeddings) == (50265, 514)


def test_large_config_is_the_published_one(shared):
    published = json.loads(
        (shared / "data/roberta/roberta_large_config.json").read_text()
    )
    ours = json.loads((REPOSITORY / "configs/roberta_large.json").read_text())
    assert ours == published


# --- Set-up -----------------------------------------------------------------

TOOLS = (
    "bash",
    "cat",
    "cmp",
    "cp",
    "cut",
    "dirname",
    "env",
    "find",
    "flock",
    "grep",
    "ls",
    "mkdir",
    "rm",
    "sed",
    "sort",
    "touch",
)

# Answers setup.sh's question, makes an "environment" of itself, notes the rest.
_FAKE_PYTHON = """#!/usr/bin/env bash
echo "{version} $*" >> "{log}"
case "$*" in
  *find_spec*) echo "{minor} {version} is,{traits} $0" ;;
  "-m venv "*) directory=${{@: -1}}; mkdir -p "$directory/bin"
               cp "$0" "$directory/bin/python" ;;
  *"import tensorflow"*) echo 1.15.5 ;;
  *"pip"*) if [[ -e "{log}.fail" ]]; then exit 1; fi ;;
esac
"""


class SetUp:
    """A directory that is all of the PATH, an empty pyenv, a .venv to make."""

    def __init__(self, directory):
        self.directory = directory
        self.programs = directory / "bin"
        self.venv = directory / "venv"
        self.log = directory / "log"
        self.programs.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.programs / tool).symlink_to(found)
        write_program(self.programs / "uname", "#!/bin/sh\necho x86_64\n")

    def add_python(self, name, version, traits="ensurepip", under=None):
        path = (under or self.programs) / name
        write_program(
            path,
            _FAKE_PYTHON.format(
                version=version,
                minor=version.rsplit(".", 1)[0],
                traits=traits,
                log=self.log,
            ),
        )
        return path

    def run(self, *arguments, **environment):
        """(exit code, standard error)."""
        result = subprocess.run(
            [shutil.which("bash"), str(REPOSITORY / "scripts/setup.sh")]
            + list(arguments),
            stderr=subprocess.PIPE,
            text=True,
            env=dict(
                {
                    "PATH": str(self.programs),
                    "HOME": str(self.directory),
                    "PYENV_ROOT": str(self.directory / "pyenv"),
                    "VENV_DIR": str(self.venv),
                },
                **environment,
            ),
        )
        return result.returncode, result.stderr

    def state(self, name):
        return (self.venv / ".setup" / name).read_text().strip()

    def calls(self):
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def set_up(tmp_path):
    return SetUp(tmp_path)


def test_set_up_prefers_python_3_7(set_up):
    set_up.add_python("python3.11", "3.11.7")
    set_up.add_python("python3.7", "3.7.16")
    assert set_up.run()[0] == 0
    assert set_up.state("version") == "3.7.16"
    assert "install --requirement requirements.txt" in set_up.calls()


def test_set_up_finds_a_pyenv_python_behind_a_dead_shim(set_up):
    write_program(set_up.programs / "python3.7", "#!/bin/sh\nexit 127\n")
    folder = set_up.directory / "pyenv/versions/3.7.16/bin"
    folder.mkdir(parents=True)
    set_up.add_python("python3.7", "3.7.16", under=folder)
    set_up.add_python("python3.11", "3.11.7")
    assert set_up.run()[0] == 0
    assert set_up.state("executable") == str(folder / "python3.7")


def test_set_up_is_quick_when_nothing_is_to_do(set_up):
    set_up.add_python("python3.11", "3.11.7")
    set_up.run()
    calls = set_up.calls()
    started = time.time()
    assert set_up.run() == (0, "")
    assert time.time() - started < 1
    assert set_up.calls() == calls


def test_set_up_adds_test_requirements_to_what_is_there(set_up):
    set_up.add_python("python3.7", "3.7.16")
    set_up.run()
    set_up.log.unlink()
    assert set_up.run("--test")[0] == 0
    assert "requirements/test.txt" in set_up.calls()
    assert "venv" not in set_up.calls().replace(str(set_up.venv), "")
    assert set_up.run("--test") == (0, "")


def test_set_up_adds_extras_and_keeps_them_up_to_date(set_up):
    set_up.add_python("python3.7", "3.7.16")
    set_up.run()
    set_up.log.unlink()
    assert set_up.run("--extras=serve,hub")[0] == 0
    assert set_up.calls().count(" install ") == 2
    assert set_up.run("--extras=hub") == (0, "")
    hub = set_up.venv / ".setup" / "requirements" / "hub.txt"
    assert hub.read_text().count("==") == 2
    hub.write_text("pooch==1.0\n")
    code, words = set_up.run()
    assert code == 0 and "installing requirements/hub.txt" in words
    assert set_up.run("--extras=all")[1].count("installing requirements/") == 4
    assert set_up.run("--extras=dask")[1].count("requirements/dask.txt") == 1
    code, words = set_up.run("--extras=hub,sreve")
    assert code == 1 and "unknown 'sreve'; expected all, or some of" in words


def test_another_python_makes_the_environment_anew(set_up):
    set_up.add_python("python3.7", "3.7.16")
    other = set_up.add_python("python3.11", "3.11.7")
    set_up.run()
    code, words = set_up.run(PYTHON=str(other))
    assert code == 0 and "asks for another" in words
    assert set_up.state("version") == "3.11.7"
    code, words = set_up.run(PYTHON="3.7")
    assert code == 0 and "asks for another" in words
    assert set_up.state("version") == "3.7.16"


def test_changed_requirements_are_installed_again(set_up):
    set_up.add_python("python3.7", "3.7.16")
    set_up.run()
    (set_up.venv / ".setup/requirements.txt").write_text("six==1.0\n")
    set_up.log.unlink()
    assert set_up.run()[0] == 0
    assert "--requirement requirements.txt" in set_up.calls()


def test_an_interrupted_set_up_starts_over(set_up):
    set_up.add_python("python3.7", "3.7.16")
    (set_up.directory / "log.fail").touch()
    code, words = set_up.run()
    assert code == 1
    assert words.splitlines()[-1].startswith(
        "setup.sh: error: pip could not install"
    )
    (set_up.venv / "half").touch()
    (set_up.directory / "log.fail").unlink()
    code, words = set_up.run()
    assert code == 0 and "interrupted" in words
    assert not (set_up.venv / "half").exists()


def test_a_foreign_directory_is_left_alone(set_up):
    set_up.add_python("python3.7", "3.7.16")
    set_up.venv.mkdir()
    (set_up.venv / "thesis.txt").write_text("years of work")
    code, words = set_up.run()
    assert code == 1 and "was not made by this script" in words
    assert os.listdir(str(set_up.venv)) == ["thesis.txt"]


def test_without_a_python_set_up_says_what_to_install(set_up):
    code, words = set_up.run()
    assert code == 1
    assert len(words.splitlines()) == 1
    assert "no usable Python" in words and "python3.11-venv" in words


def test_a_python_without_venv_is_named(set_up):
    set_up.add_python("python3.10", "3.10.13", traits="")
    code, words = set_up.run()
    assert code == 1 and "apt-get install python3.10-venv" in words


@pytest.mark.parametrize("python", ["3.8", "no-such-python"])
def test_an_unusable_python_is_refused_even_when_all_is_there(set_up, python):
    set_up.add_python("python3.7", "3.7.16")
    set_up.add_python("python3.8", "3.8.18")
    set_up.run()
    code, words = set_up.run(PYTHON=python)
    assert code == 1
    assert words.splitlines()[-1].startswith(
        f"setup.sh: error: PYTHON={python}: "
    )


def test_uv_brings_a_python(set_up):
    folder = set_up.directory / "uv"
    folder.mkdir()
    brought = set_up.add_python("python3.11", "3.11.9", under=folder)
    write_program(
        set_up.programs / "uv",
        "#!/usr/bin/env bash\n"
        f'case "$2" in install) touch {folder}/there ;;\n'
        f"find) [[ -e {folder}/there ]] && echo {brought} ;; esac\n",
    )
    assert set_up.run()[0] == 0
    assert set_up.state("executable") == str(brought)


def test_on_aarch64_the_second_platform_is_taken(set_up):
    write_program(set_up.programs / "uname", "#!/bin/sh\necho aarch64\n")
    set_up.add_python("python3.7", "3.7.16")
    code, words = set_up.run()
    assert code == 1
    assert "no aarch64 wheel" in words and "--system-site-packages" in words
    set_up.add_python("python3.9", "3.9.18")
    assert set_up.run()[0] == 0
    assert set_up.state("version") == "3.9.18"


@pytest.mark.parametrize(
    "arguments, traits",
    [
        (["--system-site-packages"], "ensurepip,tensorflow"),
        ([], "ensurepip,tensorflow,npu_bridge"),
        ([], "ensurepip,tensorflow,npu_device"),
    ],
)
def test_the_tensorflow_of_an_ascend_host_is_kept(set_up, arguments, traits):
    write_program(set_up.programs / "uname", "#!/bin/sh\necho aarch64\n")
    set_up.add_python("python3.7", "3.7.16", traits=traits)
    assert set_up.run(*arguments)[0] == 0
    assert "venv --system-site-packages" in set_up.calls()
    others = (set_up.venv / ".setup/others.txt").read_text()
    assert not re.search("^(tensorflow|numpy|protobuf)", others, re.MULTILINE)
    assert "regex==" in others
    assert set_up.run() == (0, "")


def test_tensorflow_2_6_has_requirements_of_its_own(set_up):
    set_up.add_python("python3.11", "3.11.7")
    third = {"TENSORFLOW": "2.6.5"}
    code, words = set_up.run(**third)
    assert code == 1 and "install Python 3.7 to 3.9 for TensorFlow 2.6" in words
    set_up.add_python("python3.9", "3.9.18")
    assert set_up.run("--test", **third)[0] == 0
    for name in ("tensorflow2.6", "tensorflow2.6_test"):
        assert f"--requirement requirements/{name}.txt" in set_up.calls()
    assert "--requirement requirements.txt" not in set_up.calls()
    # It stays what it is.
    assert set_up.run("--test") == (0, "")
    code, words = set_up.run(TENSORFLOW="2.7")
    assert code == 1 and "TENSORFLOW=2.7: expected 2.6.5" in words


def test_horovod_without_a_compiler_is_one_line(set_up):
    set_up.add_python("python3.7", "3.7.16")
    set_up.run()
    code, words = set_up.run("--horovod")
    assert code == 1
    assert words.splitlines()[-1].startswith(
        "setup.sh: error: --horovod needs g++"
    )
    # What is there stays usable.
    assert set_up.run() == (0, "")


def test_an_unknown_argument_is_refused(set_up):
    code, words = set_up.run("--gpus")
    assert code == 1 and "--gpus" in words


# --- Requirements -----------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [REPOSITORY / "requirements.txt"]
    + sorted((REPOSITORY / "requirements").glob("*.txt")),
    ids=lambda path: path.name,
)
def test_every_pin_has_a_reason(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if "==" in line:
            assert lines[number - 1].startswith("#"), line
