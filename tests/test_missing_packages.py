# SPDX-License-Identifier: Apache-2.0
"""With only requirements.txt, each command names the one that adds the rest."""

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from helpers import tiny, user_errors
from helpers.paths import REPOSITORY

# {package: what scripts/setup.sh is given to install it}
OPTIONAL = {
    "apache_beam": "--extras=beam",
    "anyio": "--extras=serve",
    "dask": "--extras=dask",
    "fastapi": "--extras=serve",
    "h11": "--extras=serve",
    "horovod": "--horovod",
    "huggingface_hub": "--extras=hub",
    "matplotlib": "--extras=plots",
    "onnx": "--extras=onnx",
    "onnxruntime": "--extras=onnx",
    "pooch": "--extras=hub",
    "scipy": "--extras=tasks",
    "seqeval": "--extras=tasks",
    "sklearn": "--extras=tasks",
    "starlette": "--extras=serve",
    "tf2onnx": "--extras=onnx",
    "tokenizers": "--extras=tokenizer",
    "uvicorn": "--extras=serve",
}
REQUIRED = {"absl", "numpy", "regex", "requests", "tensorflow", "tqdm"}
ASCEND = {"hccl", "npu_bridge", "npu_device"}  # come with CANN
# Python imports this module when it starts.
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {set(OPTIONAL)}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Blocker())
"""
DO_TRAIN = ["--do_train", "--train_file=gold.json"]
TRAIN = ["--do_train", "--do_eval", "--train_file=data.tsv", "--output_dir=out"]
TOKENIZER = ["--vocab_file=m/vocab.json", "--merges_file=m/merges.txt"]
DATA = ["--input_file=text.txt", "--output_file=records", *TOKENIZER]
DASK = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
START = [*TRAIN, *TOKENIZER, "--bert_config_file=m/config.json"]
EXPORT = ["--model=m", "--task=encoder", "--format=onnx", "--output=y.onnx"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small inputs of all commands, and the module that blocks packages."""
    path = tmp_path_factory.mktemp("folder")
    (path / "sitecustomize.py").write_text(BLOCKER)
    tiny.write_trained(path / "m", ["squad"])
    (path / "text.txt").write_text("one\n")
    (path / "x.onnx").write_text("")
    (path / "data.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    (path / "words.txt").write_text("Paris B-LOC\nis O\n")
    (path / "gold.json").write_text('{"version": "v2.0", "data": []}')
    (path / "odds.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    "extra, command, arguments",
    [
        ("beam", "create_pretraining_data.py", [*DATA, "--runner=FlinkRunner"]),
        ("dask", "create_pretraining_data.py", [*DATA, DASK]),
        ("hub", "scripts/get_data.py", ["squad"]),
        (
            "hub",
            "run_squad.py",
            ["--init_checkpoint=hf:a/b", "--output_dir=o", *DO_TRAIN],
        ),
        ("onnx", "export_model.py", EXPORT),
        ("onnx", "predict.py", ["fill-mask", "--model=x.onnx", "--text=a"]),
        ("plots", "scripts/plot_run.py", ["m"]),
        ("plots", "scripts/demo_picture.py", ["--output=x.png"]),
        ("plots", "scripts/design_picture.py", ["--output=x.png"]),
        (
            "plots",
            "scripts/evaluate-v2.0.py",
            ["gold.json", "odds.json", "-n", "odds.json", "-p", "x"],
        ),
        ("serve", "scripts/serve.py", ["--model=m"]),
        (
            "tasks",
            "run_classifier.py",
            [*START, "--eval_file=data.tsv", "--metrics=macro_f1"],
        ),
        (
            "tasks",
            "run_classifier.py",
            [*START, "--eval_file=data.tsv", "--regression"],
        ),
        (
            "tasks",
            "run_tagger.py",
            [*START, "--train_file=words.txt", "--eval_file=words.txt"],
        ),
        (
            "tokenizer",
            "train_tokenizer.py",
            ["--input_file=text.txt", "--output_dir=o"],
        ),
        (
            "",
            "run_classifier.py",
            [*START, "--eval_file=data.tsv", "--horovod"],
        ),
    ],
)
def test_a_command_names_what_adds_its_packages(
    extra, command, arguments, folder
):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / command), *arguments],
        cwd=str(folder),
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(folder), TF_CPP_MIN_LOG_LEVEL="3"),
    )
    flag = f"--extras={extra}$" if extra else "--horovod, or omit the flag$"
    words = [f"; run bash scripts/setup.sh {flag}|, run bash .* {flag}"]
    user_errors.check(command, done.stderr, words)
    # A package, which pip knows, not one of its modules.
    assert not re.search(r"huggingface_hub\.|matplotlib\.", done.stderr)
    assert done.returncode == 1


def _imports(path):
    """The packages that a module imports, also by importlib."""
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
    yield from re.findall(r"_(?:module|package)\(\s*\"(\w+)", text)


def _is_pythons_own(name):
    """Whether a package comes with Python or with this project."""
    # The folders of modules only: not an environment in the repository.
    for path in (name, f"{name}.py", f"[a-z]*/{name}.py"):
        if list(REPOSITORY.glob(path)):
            return True
    spec = importlib.util.find_spec(name)
    return spec is not None and "site-packages" not in str(spec.origin)


def test_every_optional_package_has_an_extra():
    files = {
        path
        for folder in ("", "*/")
        for path in REPOSITORY.glob(f"{folder}*.py")
        if "tests" not in path.parts
        # Their packages are compared with this project.
        and path.name not in ("benchmark_peers.py", "benchmark_contenders.py")
    }
    names = {
        name.partition(".")[0] for path in files for name in _imports(path)
    }
    others = {name for name in names if not _is_pythons_own(name)}
    assert len(files) > 60
    assert others - REQUIRED - ASCEND == set(OPTIONAL) - {"dask"}  # Beam's
