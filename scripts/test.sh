#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sets up, then runs the tests. Arguments are passed to pytest, whose exit code
# is returned; `-h` lists pytest's own options.
#
#   bash scripts/test.sh
#   bash scripts/test.sh -k tokenization
#   PYTHON=3.11 VENV_DIR=.venv-3.11 bash scripts/test.sh
#
# PYTHON and VENV_DIR are those of scripts/setup.sh. TEST_WORKERS is the number
# of processes, one for each core by default; 0 runs all tests in one. TEST_DATA
# is a directory with optional reference data; CONTRIBUTING.md says which.
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '4,/^set -/{/^set -/d; s/^# \{0,1\}//; p;}' "$0"
  exit 0
fi

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_DIR=${VENV_DIR:-$REPOSITORY/.venv}
case $VENV_DIR in /*) ;; *) VENV_DIR=$PWD/$VENV_DIR ;; esac
export VENV_DIR

bash "$REPOSITORY/scripts/setup.sh" --test

cd "$REPOSITORY"
# TensorFlow's messages about the processor would clutter the results.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
# The tests of a file share what its fixtures made.
exec "$VENV_DIR/bin/python" -m pytest -n "${TEST_WORKERS:-$(nproc)}" \
    --dist loadfile "$@"
