#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The paths of the launchers, which source it.
set -euo pipefail

# Names the variables whose paths do not exist, if there are any: name_missing
# NAME...
name_missing() {
  local name script=scripts/${0##*/} code=1
  for name in "$@"; do
    if [[ ! -e ${!name} && ! -e ${!name}.index ]]; then  # of a checkpoint
      echo "${0##*/}: error: $name is ${!name}, which does not exist; edit $name in $script, or set it in the environment" >&2
      code=0
    fi
  done
  return "$code"
}

# Ends a launcher whose program failed, unless by a signal (128 and more):
# end_with CODE NAME...
end_with() {
  local code=$1
  shift
  if ((code < 128)); then name_missing "$@" || true; fi
  exit "$code"
}
