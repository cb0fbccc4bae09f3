#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
r"""Runs one command with several random seeds and shows median and spread.

    python scripts/run_seeds.py --seeds=1,2,3,4,5 --output_dir=seeds -- \
        python run_squad.py --flagfile=configs/squad_v1.1_base.flags ...

Each run gets --random_seed=S and --output_dir=DIR/seed-S, and its results come
from eval_results.txt there. Given again, the same command continues where it
was interrupted. The RoBERTa paper reports medians of five runs (Liu et al.
2019, section 5).
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import common.startup

from common import errors, files
from scripts import script_parser

RESULTS = "seeds.json"
Results = typing.Dict[str, typing.Dict[str, float]]  # by seed, then by name


def read_results(path: str) -> typing.Dict[str, float]:
    """The numbers of an eval_results.txt by name."""
    lines = files.read_bytes(path).decode().splitlines()
    pairs = (line.partition(" = ")[::2] for line in lines)
    try:
        return {name: float(value) for name, value in pairs}
    except ValueError as error:
        raise errors.UserError(
            f"{path}: expected lines `name = number`: {error}"
        ) from error


def table(results: Results) -> str:
    """A Markdown table: a row for each number, a column for each seed."""
    columns = [f"seed {seed}" for seed in results]
    titles = ["", *columns, "median", "lowest", "highest", "deviation"]
    rows = [titles, ["---"] * len(titles)]
    for name in next(iter(results.values())):
        values = [result.get(name, float("nan")) for result in results.values()]
        numbers = [
            *values,
            statistics.median(values),
            min(values),
            max(values),
            statistics.stdev(values) if len(values) > 1 else 0.0,
        ]
        rows.append([name, *(f"{number:.6g}" for number in numbers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _seeds(text):
    seeds = text.split(",")
    if not all(seed.isdigit() for seed in seeds) or len(set(seeds)) < len(
        seeds
    ):
        raise errors.UserError(
            f"--seeds={text}: expected different whole numbers, such as 1,2,3"
        )
    return seeds


def _started(directory, command):
    """The results so far of the same command in a directory."""
    path = os.path.join(directory, RESULTS)
    if not os.path.exists(path):
        return {}
    saved = files.read_json(path)
    if saved.get("command") != command:
        raise errors.UserError(
            f"{path}: of another command; use another --output_dir"
        )
    return saved["results"]


def main(arguments) -> None:
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if not command:
        raise errors.UserError("the command is missing; write it after --")
    seeds = _seeds(arguments.seeds)
    results = _started(arguments.output_dir, command)
    started, left = time.time(), [s for s in seeds if s not in results]
    for number, seed in enumerate(left):
        directory = os.path.join(arguments.output_dir, f"seed-{seed}")
        os.makedirs(directory, exist_ok=True)
        print(f"seed {seed}: run {number + 1} of {len(left)}", flush=True)
        code = subprocess.call(
            [*command, f"--random_seed={seed}", f"--output_dir={directory}"]
        )
        if code:
            raise errors.UserError(
                f"seed {seed}: the command ended with exit code {code}; fix "
                "it and give the same command again"
            )
        path = os.path.join(directory, "eval_results.txt")
        if not os.path.exists(path):
            raise errors.UserError(
                f"{path}: the command did not write it; let it evaluate "
                "(--do_predict or --do_eval)"
            )
        results[seed] = read_results(path)
        files.write_json(
            os.path.join(arguments.output_dir, RESULTS),
            {"command": command, "results": results},
        )
        minutes = (time.time() - started) / 60
        rest = minutes / (number + 1) * (len(left) - number - 1)
        print(f"seed {seed}: done, about {rest:.0f} min left", flush=True)
    print(table({seed: results[seed] for seed in seeds}))


if __name__ == "__main__":
    parser = script_parser.ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="1,2,3,4,5", help="(default 1 to 5)")
    parser.add_argument(
        "--output_dir", required=True, help="of all runs and their results"
    )
    parser.add_argument(
        "command", nargs="...", help="of a run script, after --"
    )
    parser.run(main)
