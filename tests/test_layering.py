# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the layers, and one place for each kind of import."""

import ast
import functools
import re

from helpers.paths import REPOSITORY

# Lowest layer first; a file imports from its own layer and those before it.
# A folder is a layer; the modules at the top are named, commands are the rest.
LAYERS = (
    ("common",),
    ("configuration", "tokenization"),
    ("weights",),
    ("pretraining_data", "question_answering", "squad"),
    ("kernels", "modeling", "optimization"),
    (
        "environment",
        "cpu_environment",
        "gpu_environment",
        "npu_environment",
        "device",
    ),
    ("training",),
    ("tasks",),
    ("inference",),
)
PLACES = {name: place for place, names in enumerate(LAYERS) for name in names}
COMMANDS = len(LAYERS)
SCRIPTS = COMMANDS + 1
DEVICES = LAYERS[5]
FILES = {
    path.relative_to(REPOSITORY)
    .with_suffix("")
    .as_posix()
    .replace("/", "."): path
    for pattern in ("*.py", "*/*.py")
    for path in REPOSITORY.glob(pattern)
    if path.parent.name not in ("tests", "demo") and path.name != "__init__.py"
}
LIBRARY = [name for name in FILES if name.split(".")[0] in PLACES]


def place(name):
    """The layer of a dotted module."""
    first = name.split(".")[0]
    return SCRIPTS if first == "scripts" else PLACES.get(first, COMMANDS)


@functools.lru_cache(maxsize=None)
def tree(name):
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def resolved(name, importer):
    """The project's module that a dotted name is, or the name."""
    beside = importer.rpartition(".")[0] + "." + name
    return (
        beside if beside in FILES and importer.startswith("scripts.") else name
    )


def imports(name, nodes):
    """The dotted modules that some statements of a module import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield resolved(alias.name, name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else resolved(node.module, name)


def all_imports(name):
    return set(imports(name, ast.walk(tree(name))))


def users(package, names):
    """The modules that import something of a package."""
    return {
        name
        for name in names
        for module in all_imports(name)
        if module.split(".")[0] == package
    }


def uses(words, names):
    """["module:line"] where a module uses one of some names or attributes."""
    return [
        f"{name}:{node.lineno}"
        for name in names
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute)
        and node.attr in words
        or isinstance(node, ast.Name)
        and node.id in words
    ]


def test_imports_point_to_lower_layers():
    assert not [
        f"{name} imports {module}"
        for name in FILES
        for module in all_imports(name)
        if module in FILES and place(module) > place(name)
    ]


def test_library_imports_no_command():
    assert not [
        f"{name} imports {module}"
        for name in LIBRARY
        for module in all_imports(name)
        if module in FILES and place(module) >= COMMANDS
    ]


def test_no_import_circle():
    needs = {name: all_imports(name) & set(FILES) for name in FILES}
    while True:
        free = [
            name for name, others in needs.items() if not others & set(needs)
        ]
        if not free:
            break
        for name in free:
            del needs[name]
    assert not needs


def test_lower_layers_do_without_tensorflow():
    assert not users(
        "tensorflow", [name for name in FILES if place(name) < place("kernels")]
    )


def test_tensorflow_is_imported_in_one_way():
    """As compat.v1, without contrib: the same files run on 1.15 and 2.15."""
    modules = {
        module
        for name in LIBRARY
        for module in all_imports(name)
        if module.split(".")[0] == "tensorflow"
    }
    assert modules == {"tensorflow.compat.v1"}
    assert not uses(["contrib"], FILES)


def test_horovod_is_imported_in_one_place():
    assert users("horovod", FILES) == {"gpu_environment"}


def test_adapter_is_named_in_one_file():
    assert {
        name
        for name, path in FILES.items()
        if re.search("npu_bridge|npu_device", path.read_text(encoding="utf-8"))
    } == {"npu_environment"}


def test_library_modules_read_no_flags():
    assert not uses(
        ["FLAGS", "DEFINE", "DEFINE_flag"],
        set(LIBRARY) - {"common.command_line"},
    )


def test_process_variables_are_read_by_environments_alone():
    # beam_builder sets one for the processes that Beam starts, startup one
    # for TensorFlow.
    assert not uses(
        ["environ", "getenv", "putenv"],
        set(LIBRARY)
        - set(DEVICES)
        - {"pretraining_data.beam_builder", "common.startup"},
    )


def test_library_modules_do_nothing_at_import():
    harmless = (
        ast.Import,
        ast.ImportFrom,
        ast.AnnAssign,
        ast.Assign,
        ast.ClassDef,
        ast.FunctionDef,
    )
    assert not [
        f"{name}:{node.lineno}"
        # common.startup acts before the commands import anything else.
        for name in set(LIBRARY) - {"common.startup"}
        for node in tree(name).body[1:]  # the first one is the docstring
        if not isinstance(node, harmless)
    ]
