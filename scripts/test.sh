#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sets up, then runs the tests; arguments go to pytest, whose exit code it has.
#
#   bash scripts/test.sh
#   bash scripts/test.sh -k tokenization
#   PYTHON=3.11 VENV_DIR=.venv-3.11 bash scripts/test.sh
#
# PYTHON and VENV_DIR mean what they mean in scripts/setup.sh.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV_DIR=${VENV_DIR:-$REPOSITORY/.venv}
case $VENV_DIR in /*) ;; *) VENV_DIR=$PWD/$VENV_DIR ;; esac
export VENV_DIR

bash "$REPOSITORY/scripts/setup.sh" --test

cd "$REPOSITORY"
# TensorFlow's remarks on the processor would stand between the results.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
exec "$VENV_DIR/bin/python" -m pytest "$@"
