# SPDX-License-Identifier: Apache-2.0
"""Rules of the code that no single module can keep: who imports what."""
import ast
import functools

import pytest

from conftest import REPOSITORY

# A module imports from its own row and from those above; a new module is
# added to the highest row that it can stand in.
LAYERS = {
    "flags and errors": ("errors", "command_line", "strict_json",
                         "pictures"),
    "text, data and files, without TensorFlow": (
        "tokenization", "text_files", "packing", "corpus", "worker_pool",
        "masking", "tf_example", "tfrecord", "manifest", "records",
        "record_builder", "shard_output", "beam_builder", "squad_scores",
        "squad_decoding", "squad", "squad_cache", "weights",
        "safetensors_file", "torch_file", "fairseq_model", "tf_checkpoint",
        "weight_names", "downloads", "archives", "table_files", "text_pairs",
        "classification", "glue", "task_scores", "race", "conll",
        "word_windows"),
    "TensorFlow, whatever the device": (
        "modeling", "optimization", "input_pipeline"),
    "devices": ("environment", "gpu_environment", "npu_environment"),
    "training": ("progress", "checkpoints", "divergence", "interruption",
                 "warm_start", "preflight", "training", "finetuning",
                 "trained_model", "predictor", "exporting"),
    "scripts": ("create_pretraining_data", "run_pretraining", "run_squad",
                "run_classifier", "run_multiple_choice", "run_tagger",
                "convert_checkpoint", "train_tokenizer", "predict",
                "export_model"),
}
PLACES = {name: number for number, names in enumerate(LAYERS.values())
          for name in names}
SCRIPTS = LAYERS["scripts"]
LIBRARY = sorted(set(PLACES) - set(SCRIPTS))
FILES = sorted(path for pattern in ("*.py", "scripts/*.py", "tests/**/*.py")
               for path in REPOSITORY.glob(pattern))


@functools.lru_cache(maxsize=None)
def tree(name):
    path = REPOSITORY / (name + ".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes):
    """The modules that some statements import, dotted, with their line."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node.lineno


def imports_of(name):
    return list(imported(ast.walk(tree(name))))


def names_in(name):
    """Every name and attribute that a module uses, with its line."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno


def uses(words, names):
    """["module:line"] where a module uses one of some words."""
    return ["%s:%d" % (name, line) for name in names
            for word, line in names_in(name) if word in words]


def test_every_module_has_a_place():
    modules = {path.stem for path in REPOSITORY.glob("*.py")}
    assert modules == set(PLACES)


def test_imports_point_to_rows_above():
    assert not ["%s imports %s" % (name, module) for name in PLACES
                for module, _ in imports_of(name)
                if PLACES.get(module, -1) > PLACES[name] or module in SCRIPTS]


def test_no_module_needs_itself():
    needs = {name: {module for module, _ in imported(tree(name).body)
                    if module in PLACES} for name in PLACES}
    while True:
        free = [name for name, of in needs.items() if not of & set(needs)]
        if not free:
            break
        for name in free:
            del needs[name]
    assert not needs  # what is left imports each other in a circle


def test_data_modules_do_without_tensorflow():
    assert not ["%s:%d" % (name, line) for name, place in PLACES.items()
                for module, line in imports_of(name)
                if place < 2 and module.split(".")[0] == "tensorflow"]


def test_command_line_needs_absl_alone():
    needed = {module.split(".")[0]
              for module, _ in imports_of("command_line")}
    assert needed <= {"absl", "dataclasses", "errors", "os", "signal",
                      "sys"}


def test_tensorflow_is_imported_in_one_way():
    """As compat.v1, without contrib: the same files run on 1.15 and 2.15."""
    modules = {module for name in PLACES for module, _ in imports_of(name)
               if module.split(".")[0] == "tensorflow"}
    assert modules == {"tensorflow.compat.v1"}
    assert not uses(["contrib"], PLACES)


def test_horovod_is_imported_in_one_place():
    users = {name for name in PLACES for module, _ in imports_of(name)
             if module.split(".")[0] == "horovod"}
    assert users == {"gpu_environment"}


def test_npu_bridge_is_named_in_one_file():
    users = {path.stem for path in REPOSITORY.glob("*.py")
             if "npu_bridge" in path.read_text(encoding="utf-8")}
    assert users == {"npu_environment"}


def test_library_modules_read_no_flags():
    assert not uses(["FLAGS", "DEFINE", "DEFINE_flag"],
                    set(LIBRARY) - {"command_line"})


def test_process_variables_are_read_by_environments_alone():
    # beam_builder sets one for the processes that Beam starts.
    assert not uses(["environ", "getenv", "putenv"],
                    set(PLACES) - set(LAYERS["devices"]) - {"beam_builder"})


def test_modules_print_nothing():
    assert not uses(["print"], PLACES)


def test_library_modules_do_nothing_at_import():
    harmless = (ast.Import, ast.ImportFrom, ast.Assign, ast.ClassDef,
                ast.FunctionDef)
    assert not [
        "%s:%d" % (name, node.lineno) for name in LIBRARY
        for node in tree(name).body[1:]  # the first one is the docstring
        if not isinstance(node, harmless)]


def test_no_except_catches_everything_unseen():
    assert not ["%s:%d" % (name, node.lineno) for name in PLACES
                for node in ast.walk(tree(name))
                if isinstance(node, ast.ExceptHandler) and node.type is None]


def test_files_have_their_licence_first():
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        first = lines[1] if lines[0].startswith("#!") else lines[0]
        assert first == "# SPDX-License-Identifier: Apache-2.0", str(path)


def test_lines_fit_the_page():
    # Wider is only what cannot be broken, such as an address.
    assert not [
        "%s:%d" % (path.relative_to(REPOSITORY), number) for path in FILES
        for number, line in enumerate(
            path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 80 and len(line.split()) > 2]


def lengths(body, end):
    """(lines, name) of each function in a list of statements.

    A function ends where the next statement begins (Python 3.7's trees do
    not say where one ends).
    """
    for node, following in zip(body, body[1:] + [None]):
        last = end if following is None else following.lineno - 1
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                yield last - node.lineno + 1, node.name
            for found in lengths(node.body, last):
                yield found


def test_functions_are_short():
    found = []
    for name in PLACES:
        text = (REPOSITORY / (name + ".py")).read_text(encoding="utf-8")
        found += [(lines, name, function) for lines, function in lengths(
            tree(name).body, len(text.splitlines()))]
    assert len(found) > 300
    assert not [one for one in found if one[0] > 80]
