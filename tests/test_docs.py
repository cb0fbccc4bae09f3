# SPDX-License-Identifier: Apache-2.0
"""Tests of README.md, README.zh-CN.md and docs/: all that they name exists.

Commands are in bash fences. Their flags are parsed and checked as the scripts
do. Each command is run here, or says what it needs: in its line, or in an HTML
comment above the fence, which readers do not see.
"""

import ast
import collections
import fnmatch
import glob
import re
import shlex
import unicodedata

import pytest

from helpers import flag_parsing
from helpers.paths import REPOSITORY

READMES = (REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md")
# The same content in both languages; other Chinese pages choose from it.
PAIRS = (READMES,) + tuple(
    (REPOSITORY / f"docs/{name}.md", REPOSITORY / f"docs/{name}.zh-CN.md")
    for name in ("ascend", "migration")
)
PAGES = (
    READMES
    + (REPOSITORY / "CHANGELOG.md", REPOSITORY / "CONTRIBUTING.md")
    + tuple(sorted(REPOSITORY.glob("docs/*.md")))
)
CHINESE = tuple(path for path in PAGES if ".zh-CN" in path.name)
NEEDS = re.compile(
    r"(needs .*(GPU|NPU|network|data|MPI)|"
    r"需要.*(GPU|NPU|联网|数据|MPI))"
)
# Programs that are not part of the suite, and shell builtins.
FOREIGN = {
    "source",
    "export",
    "ln",
    "pip3",
    "python3.7",
    "docker",
    "curl",
    "atc",
    ".venv/bin/python",  # -m and a module of another package
}
# launcher: the script that gets its flags
LAUNCHED = {
    "scripts/create_pretraining_data.sh": "create_pretraining_data.py",
    "scripts/run_pretraining.sh": "run_pretraining.py",
    "scripts/run_squadv1.1.sh": "run_squad.py",
    "scripts/run_squadv2.0.sh": "run_squad.py",
}
TASKS = {
    "pretraining": "run_pretraining.py",
    "squad_v1.1": "run_squad.py",
    "squad_v2.0": "run_squad.py",
}
SCRIPTS = (
    "create_pretraining_data.py",
    "run_pretraining.py",
    "run_squad.py",
    "convert_checkpoint.py",
    "scripts/benchmark.py",
    "train_tokenizer.py",
    "run_classifier.py",
    "run_multiple_choice.py",
    "run_tagger.py",
    "predict.py",
    "export_model.py",
    "scripts/serve.py",
    "scripts/doctor.py",
)
# text: on one line, without comments; needs: its comments.
Command = collections.namedtuple("Command", "text needs")


# --- Reading the pages ------------------------------------------------------


def fences(path):
    """(what it needs or "", language, text) of each fence."""
    return re.findall(
        r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$",
        path.read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )


def prose(path):
    """The text without its fences."""
    return re.sub(
        r"^```.*?^```$",
        "",
        path.read_text("utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )


def english_name(path):
    """The name of a page, or of the English page of a Chinese one."""
    return path.name.replace(".zh-CN", "")


def commands(path):
    """The commands in the bash fences of a page."""
    return [
        command
        for needs, language, text in fences(path)
        if language == "bash"
        for command in _commands_of_fence(text, needs)
    ]


def _commands_of_fence(text, above=""):
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("#"):
            above = line if NEEDS.search(line) else above
        elif line.strip():
            command, _, comment = line.partition("  # ")
            yield Command(" ".join(command.split()), above + comment)


def call(command, variables):
    """(script, arguments) of a command; (None, words) without a script.

    Args:
      command: text.
      variables: {name: value}; an assignment alone is added to it.
    """
    text = re.sub(
        r"\$(\w+)",
        lambda match: variables.get(match.group(1), match.group(0)),
        command,
    )
    words = shlex.split(text)
    while words and re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    for place, word in enumerate(words):
        if re.match(r"(scripts/)?[\w.-]+\.(py|sh)$", word):
            return word, words[place + 1 :]
    return None, words


def calls(path):
    """(script, arguments) of all commands of a page."""
    variables = {}
    return [call(command.text, variables) for command in commands(path)]


def ids(paths):
    return [str(path.relative_to(REPOSITORY)) for path in paths]


# --- Commands ---------------------------------------------------------------


def test_a_fence_is_read_as_a_shell_reads_it():
    text = (
        "# a comment\nA=1 bash scripts/x.sh --b='c d' \\\n  --e  # f\n"
        'T="y.py --g"\nmpirun -x PATH python $T --h\n'
    )
    fence = list(_commands_of_fence(text, "needs an NPU"))
    assert [command.needs for command in fence] == [
        "needs an NPUf",
        "needs an NPU",
        "needs an NPU",
    ]
    variables = {}
    assert [call(command.text, variables) for command in fence] == [
        ("scripts/x.sh", ["--b=c d", "--e"]),
        (None, []),
        ("y.py", ["--g", "--h"]),
    ]


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_every_command_names_an_existing_script(path):
    for script, words in calls(path):
        if script is None:
            assert not words or words[0] in FOREIGN, words
        else:
            assert (REPOSITORY / script).is_file(), script


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].name)
def test_both_languages_have_the_same_commands(pair):
    english, chinese = (commands(path) for path in pair)
    assert len(english) > 3
    assert [c.text for c in english] == [c.text for c in chinese]
    assert [bool(NEEDS.search(c.needs)) for c in english] == [
        bool(NEEDS.search(c.needs)) for c in chinese
    ]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].name)
def test_both_languages_name_the_same_flags_and_files(pair):
    english, chinese = (
        set(re.findall(r"--[a-z][\w-]+|\w+\.(?:py|sh|json|flags)", prose(path)))
        for path in pair
    )
    assert len(english) > 10
    assert english == chinese


@pytest.mark.parametrize("path", CHINESE, ids=ids(CHINESE))
def test_chinese_commands_are_those_of_english_pages(path):
    """So they are run or parsed with them, and need the same."""

    def described(page):
        return {
            (command.text, bool(NEEDS.search(command.needs)))
            for command in commands(page)
        }

    english = set().union(*map(described, set(PAGES) - set(CHINESE)))
    assert described(path) <= english


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory):
    """The outputs of the demo, with tiny untrained models."""
    from helpers import tiny

    output = tmp_path_factory.mktemp("output")
    for name, parts in (
        ("pretraining", ["masked_lm"]),
        ("squad_v1.1", ["question_answering"]),
        ("squad_v2.0", ["question_answering"]),
    ):
        tiny.write_trained(output / "demo" / name, parts)
    return output


def complete_commands(path):
    """(script, arguments) of the commands that need nothing else."""
    return [
        call(command.text, {})
        for command in commands(path)
        if not NEEDS.search(command.needs)
    ]


# Chinese pages have commands of the others.
RUN_HERE = [
    path for path in PAGES if path not in CHINESE and complete_commands(path)
]


@pytest.mark.parametrize("path", RUN_HERE, ids=ids(RUN_HERE))
def test_commands_that_need_nothing_run(path, demo_output, forked):
    for script, words in complete_commands(path):
        words = [
            re.sub(r"(^|=)output/", rf"\1{demo_output}/", word)
            for word in words
        ]
        forked(
            script,
            *[
                re.sub(r"(^|=)demo/", rf"\1{REPOSITORY}/demo/", word)
                for word in words
            ],
        )


def test_most_commands_of_tutorials_run():
    assert len(RUN_HERE) > 7
    assert sum(len(complete_commands(path)) for path in RUN_HERE) > 20


# --- Chinese text -----------------------------------------------------------


def unrendered(text):
    """The `**` of a Markdown text that CommonMark shows as asterisks.

    Between Chinese letters and punctuation it begins no strong text, and ends
    none (CommonMark 0.31, 6.2: left-flanking and right-flanking runs).
    """

    def kind(character):
        if not character.strip():
            return "space"
        category = unicodedata.category(character)[0]
        return "punctuation" if category in "PS" else "letter"

    marks = []
    text = re.sub(r"`[^`\n]*`", "`", text)
    for number, mark in enumerate(re.finditer(r"\*\*", text)):
        sides = [text[: mark.start()][-1:], text[mark.end() :][:1]]
        outer, inner = map(kind, sides if number % 2 == 0 else sides[::-1])
        if inner == "space" or (inner, outer) == ("punctuation", "letter"):
            marks.append(text[mark.start() - 9 : mark.end() + 9])
    return marks


@pytest.mark.parametrize("path", CHINESE, ids=ids(CHINESE))
def test_chinese_text_renders(path):
    """No literal asterisk, and no space where a line ends between letters."""
    text = prose(path)
    assert unrendered(text) == []
    assert text.count("**") % 2 == 0
    assert re.findall(r".*[\u4e00-\u9fff]\n *[\u4e00-\u9fff].*", text) == []


@pytest.mark.parametrize(
    "text, shown",
    [
        ("字**字**字", 0),
        ("**字**：字", 0),
        ("* **字：**字", 1),
        ("字**（字）** 字", 1),
        ("**字 **字", 1),
        ("`2**15`、**字**", 0),
    ],
)
def test_asterisks_that_a_renderer_shows_are_noticed(text, shown):
    assert len(unrendered(text)) == shown


# --- Flags ------------------------------------------------------------------


def lists_of_flags():
    """{script: [arguments, ...]} of all pages, including those of launchers."""
    lists = {script: [] for script in SCRIPTS}
    for path in PAGES:
        for script, arguments in calls(path):
            if script == "scripts/run_8p.sh":
                script, arguments = TASKS[arguments[0]], arguments[1:]
                arguments = ["--output_dir=output"] + arguments
            elif script in LAUNCHED:
                script = LAUNCHED[script]
                if script != "create_pretraining_data.py":
                    arguments = ["--output_dir=output"] + arguments
                else:
                    arguments = [
                        f"--{name}_file=file"
                        for name in ("input", "output", "vocab", "merges")
                    ] + arguments
            elif script == "predict.py":
                arguments = arguments[1:]  # without the task
            elif script == "scripts/run_seeds.py":
                _, script, *arguments = arguments[arguments.index("--") + 1 :]
                arguments = ["--output_dir=output"] + arguments
            if script in lists:
                lists[script].append(arguments)
    return lists


@pytest.fixture(scope="module")
def parsed():
    return flag_parsing.parse(lists_of_flags())


def test_scripts_take_the_flags_they_are_given(parsed):
    lists = lists_of_flags()
    assert all(len(lists[script]) > 1 for script in SCRIPTS[:4])
    assert parsed["errors"] == []


def flags_in_source(path):
    """Flags of a shell script, or of a script that uses argparse."""
    lines = [
        line
        for line in path.read_text("utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    return set(re.findall(r"--([a-z][\w-]*)", "\n".join(lines)))


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_other_scripts_take_the_flags_they_are_given(path):
    for script, arguments in calls(path):
        if (
            script is None
            or script in SCRIPTS
            or script in LAUNCHED
            or (script == "scripts/run_8p.sh")
        ):
            continue
        known = flags_in_source(REPOSITORY / script)
        if "--" in arguments:  # the flags of another command follow
            arguments = arguments[: arguments.index("--")]
        given = {
            word[2:].split("=")[0]
            for word in arguments
            if word.startswith("--")
        }
        assert given <= known, (script, given - known)


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_every_flag_in_the_text_is_defined(path, parsed):
    # `--flag=` is any flag; absl and command_line.run declare the others.
    known = {"flag", "flagfile", "help", "helpfull", "version"}
    # Those of Beam.
    known |= {"environment_type", "job_endpoint", "dask_partition_size"}
    known |= {"logdir"}  # Of TensorBoard.
    # Those of docker run.
    known |= {"rm", "user", "volume", "shm-size", "ulimit", "gpus"}
    known = known.union(*parsed["defaults"].values())
    for script in REPOSITORY.glob("scripts/*.*"):
        known |= flags_in_source(script)
    named = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", prose(path)))
    assert named <= known, named - known


def default_tables(path):
    """[(flag, default as the page says it)] of tables `flag | default`."""
    rows, inside = [], False
    for line in path.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[:2] in (["flag", "default"], ["参数", "默认值"]):
            inside = True
        elif inside and cells[0].startswith("`--"):
            names = re.findall(r"`--(\w+)`", cells[0])
            given = [value.strip() for value in cells[1].split(", ")]
            if len(given) != len(names):
                given = given[:1] * len(names)
            rows += zip(names, given)
    return rows


def is_default(text, value):
    """Whether a page's text for a default is right.

    A number, True, False or `code` must be the value; words, such as "all
    cores", describe what becomes of None or an empty text.
    """
    code = text.strip("`")
    number = code.replace("\N{MINUS SIGN}", "-").replace(",", "")
    if code in ("True", "False"):
        return value is (code == "True")
    if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", number):
        return type(value) in (int, float) and value == float(number)
    if text.startswith("`") and text.endswith("`") and text.count("`") == 2:
        return value == code
    return value == text or value in (None, "")


def computed_defaults():
    """{(page, flag): what the code takes where the flag is None}."""
    from inference import exporting
    from pretraining_data import record_builder

    return {
        ("data.md", "dupe_factor"): record_builder.DUPE_FACTOR,
        ("export.md", "tolerance"): exporting.TOLERANCE,
    }


DEFAULTS = {
    "benchmarks.md": "scripts/benchmark.py",
    "classification.md": "run_classifier.py",
    "conversion.md": "convert_checkpoint.py",
    "data.md": "create_pretraining_data.py",
    "evaluation.md": "run_squad.py",
    "export.md": "export_model.py",
    "gpu.md": "run_pretraining.py",
    "multiple_choice.md": "run_multiple_choice.py",
    "prediction.md": "predict.py",
    "pretraining.md": "run_pretraining.py",
    "resume.md": "run_pretraining.py",
    "serving.md": "scripts/serve.py",
    "squad.md": "run_squad.py",
    "tagging.md": "run_tagger.py",
    "tokenizer.md": "train_tokenizer.py",
}


@pytest.mark.parametrize(
    "path", [path for path in PAGES if english_name(path) in DEFAULTS], ids=str
)
def test_defaults_are_those_of_the_script(path, parsed):
    defaults = parsed["defaults"][DEFAULTS[english_name(path)]]
    for (page, flag), value in computed_defaults().items():
        if page == english_name(path):
            assert defaults[flag] is None
            defaults = dict(defaults, **{flag: value})
    rows = default_tables(path)
    assert len(rows) > 3
    assert [
        (name, text, defaults.get(name))
        for name, text in rows
        if name not in defaults or not is_default(text, defaults[name])
    ] == []


@pytest.mark.parametrize(
    "text, value, other",
    [
        ("1e-5", 1e-5, 2e-5),
        ("100,000", 100000, 100),
        ("384", 384, None),
        ("0", 0, False),
        ("`auto`", "auto", "cpu"),
        ("`auto`", "auto", ""),
        ("`auto`", "auto", None),
        ("False", False, True),
        ("False", False, None),
        ("all cores", None, 2),
        ("all cores", "", 0),
        ("none", "", False),
    ],
)
def test_a_wrong_default_is_noticed(text, value, other):
    assert is_default(text, value) and not is_default(text, other)


def test_the_index_names_every_page():
    text = (REPOSITORY / "docs" / "README.md").read_text("utf-8")
    pages = {path.name for path in REPOSITORY.glob("docs/*.md")}
    linked = set(re.findall(r"\]\(([\w.-]+\.md)\)", text))
    assert pages - {"README.md"} == linked


def test_the_design_page_names_every_folder():
    from scripts import design_picture

    text = (REPOSITORY / "docs" / "design.md").read_text("utf-8")
    boxes = design_picture.rank(design_picture.read_imports())
    assert boxes["common/"] == 0 and boxes["scripts/"] == max(boxes.values())
    assert [box for box in boxes if box not in text] == []


def test_the_table_of_folders_is_complete():
    """Folders, modules at the top, and reference data are in CONTRIBUTING."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`([^`]+)`", "".join(re.findall(r"(?m)^\|.*", text)))
    expected = {path.name for path in REPOSITORY.glob("*.py")}
    for pattern in ("[!.]*/*.py", "[!.]*/*.md", "[!.]*/*.flags"):
        expected |= {f"{p.parent.name}/" for p in REPOSITORY.glob(pattern)}
    expected |= {
        f"tests/data/{path.name}" for path in REPOSITORY.glob("tests/data/*")
    }
    assert len(expected) > 20
    assert [
        name
        for name in sorted(expected)
        if not any(fnmatch.fnmatch(name, pattern) for pattern in named)
    ] == []


# --- Links, paths, messages, numbers ----------------------------------------


def anchors(path):
    """The names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in titles
    }


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_files_named_in_the_text_exist(path):
    names = re.findall(
        r"`((?:scripts|configs|docs|tests|\.ci)/[\w./{},*-]*)`", prose(path)
    )
    if path in READMES:
        names += re.findall(r"`([\w/]+\.py)`", prose(path))
        assert len(names) > 10
    for name in names:
        group = re.search(r"\{(.*)\}", name)
        parts = group.group(1).split(",") if group else [""]
        for part in parts:
            file = re.sub(r"\{.*\}", part, name)
            assert glob.glob(str(REPOSITORY / file)), file


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_no_path_of_one_machine(path):
    assert not re.search(
        r"(^|[\s=:\"'(`])/(home|root|Users|data|work)\b",
        path.read_text("utf-8"),
    )


# Of TensorFlow, CANN and TensorFlow Serving.
FOREIGN_MESSAGES = {
    "NameError",
    "ra rdev init failed, ret [-17]",
    "No versions of servable squad found",
    "No space left",
}


def messages(path):
    """The code in first cells that start with code, in tables of errors."""
    titles = "^##? (?:FAQ|Troubleshooting|Messages|常见问题)\n"
    parts = re.split(titles, prose(path), flags=re.MULTILINE)
    table = parts[-1].split("\n## ")[0] if parts[1:] else ""
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return re.findall(r"`([^`]*)`", " ".join(cells))


MESSAGES = tuple(path for path in PAGES if messages(path))


@pytest.fixture(scope="module")
def texts_of_code():
    """All texts in the code, with an ellipsis for each value in them."""
    texts = [
        file.read_text("utf-8") for file in REPOSITORY.glob("scripts/*.sh")
    ]
    for pattern in ("*.py", "*/*.py"):
        for file in set(REPOSITORY.glob(pattern)):
            if file.parent.name == "tests":
                continue
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                values = [
                    getattr(part, "s", None)
                    for part in getattr(node, "values", [node])
                ]
                texts.append(
                    "".join(v if isinstance(v, str) else "…" for v in values)
                )
    return "\n".join(texts)


@pytest.mark.parametrize("path", MESSAGES, ids=ids(MESSAGES))
def test_messages_are_those_of_the_code(path, texts_of_code):
    assert [
        (message, part)
        for message in messages(path)
        for part in map(str.strip, message.split("…"))
        if part not in FOREIGN_MESSAGES
        and part.strip(" ,;:") not in texts_of_code
    ] == []


def test_most_pages_have_a_table_of_messages():
    assert set(READMES) < set(MESSAGES) and len(MESSAGES) > 20


def test_both_languages_have_the_same_results():
    results = []
    for path, title in zip(READMES, ("Results", "结果")):
        section = path.read_text("utf-8").split(f"\n## {title}\n")[1]
        section = section.split("\n## ")[0]
        results.append(sorted(re.findall(r"\d+(?:[.,]\d+)*", section)))
    assert len(results[0]) > 20
    assert results[0] == results[1]


def ledger():
    """The rows of docs/results.md on what was measured, as lists of cells."""
    text = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
    section = text.split("\n## Measured here\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows if len(row) == 7 and "---" not in row[0]]


def test_every_measured_result_has_an_origin():
    rows = [row for row in ledger() if row[0] != "what"]
    assert len(rows) > 30
    assert [
        row[0]
        for row in rows
        if not re.fullmatch(r"20\d\d-\d\d-\d\d", row[2])
        or not re.fullmatch(r"`[0-9a-f]{7}`", row[3])
        or not all(row)
    ] == []


def measured_figures(path):
    """The figures of a README that were measured with this code."""
    text = path.read_text("utf-8")
    block = "<!-- {0}: begin -->(.*?)<!-- {0}: end -->"
    demo, benchmark = (
        re.search(block.format(name), text, re.DOTALL).group(1)
        for name in ("demo", "benchmark")
    )
    bullets = " ".join(re.findall(r"(?m)^\* \*\*.*(?:\n  .*)*", text))
    ratios = re.findall(r"(?m)\| ([^|]*) \|$", benchmark)
    decimals = r"(?<![\w.])\d+\.\d+(?:e-\d+)?(?![\w.])"
    return {
        "decimals": re.findall(decimals, bullets + demo + " ".join(ratios)),
        "kills": re.findall(r"(?:killed|终止) (\d+) (?:times|次)", bullets),
        "minutes": re.findall(
            r"(\d+)(?:(?: to |～)\d+)? (?:minutes|分钟)", text
        ),
    }


@pytest.mark.parametrize("path", READMES, ids=ids(READMES))
def test_measured_figures_are_in_the_ledger(path):
    number = r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-\d+)?"
    recorded = {
        figure for row in ledger() for figure in re.findall(number, row[1])
    }
    figures = measured_figures(path)
    assert len(figures["decimals"]) > 20
    assert figures["kills"] and len(figures["minutes"]) > 1
    assert set().union(*figures.values()) - recorded == set()


def test_both_languages_show_the_same_demo():
    shown = [
        re.search(
            r"<!-- demo: begin -->\n(.*?)<!-- demo: end -->",
            path.read_text("utf-8"),
            re.DOTALL,
        ).group(1)
        for path in READMES
    ]
    assert "squad_v1.1 exact_match=" in shown[0]
    assert "squad_v2.0 exact=" in shown[0]
    assert shown[0] == shown[1]
