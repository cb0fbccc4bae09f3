#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The end of a launcher whose program failed; the launchers source it.
set -euo pipefail

# Names the variables whose paths do not exist, unless a signal (128 and more)
# ended the program: end_with CODE NAME...
end_with() {
  local code=$1 name script
  script=scripts/$(basename "$0")
  shift
  ((code < 128)) || exit "$code"
  for name in "$@"; do
    if [[ ! -e ${!name} && ! -e ${!name}.index ]]; then  # of a checkpoint
      echo "$(basename "$0"): error: $name is ${!name}, which does not exist; edit $name in $script, or set it in the environment" >&2
    fi
  done
  exit "$code"
}
