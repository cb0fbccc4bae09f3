#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What the launchers share; they source it after they set REPOSITORY.
set -euo pipefail

# The environment's Python. PYTHON names another; a version, such as 3.11, is
# one for scripts/setup.sh.
VENV_DIR=${VENV_DIR:-$REPOSITORY/.venv}  # made by scripts/setup.sh
case ${PYTHON:-3} in
  */*) ;;
  [0-9]*) PYTHON=$(command -v "$VENV_DIR/bin/python" || echo python3) ;;
esac

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

# Prints the value of a flag, the last one of those given: value_of NAME VALUE
# FLAG...
value_of() {
  local name=$1 value=$2 before="" line
  shift 2
  for flag in "$@"; do
    line=$flag
    case $flag in
      --flagfile=* | -flagfile=*)
        line=$(grep -E "^--?$name=" "${flag#*=}" 2> /dev/null | tail -n 1 || true) ;;
    esac
    case $line in --"$name"=* | -"$name"=*) value=${line#*=} ;; esac
    case $before in --"$name" | -"$name") value=$flag ;; esac
    before=$flag
  done
  echo "$value"
}

ANSWERS=$(value_of output_dir "${OUT_DIR:-}" "$@")/predictions.json
answered_at() { date -r "$ANSWERS" +%s%N 2> /dev/null || true; }
EARLIER=$(answered_at)

# Scores the answers that this run wrote: score VERSION FLAG..., of SQuAD.
score() {
  local version=$1
  shift
  # With several processes, the first one alone predicts.
  if [[ ${RANK_SIZE:-1} != 1 && ${RANK_ID:-0} != 0 ]]; then return; fi
  if [[ $(answered_at) == "$EARLIER" ]]; then
    echo "${0##*/}: no score: this run did not write $ANSWERS" >&2
    return
  fi
  set -- "$(value_of predict_file "$SQUAD_DIR/dev-v$version.json" "$@")" "$ANSWERS"
  if [[ $version == 2.0 ]]; then
    set -- "$@" --na-prob-file "${ANSWERS%/*}/null_odds.json"
  fi
  "$PYTHON" "$REPOSITORY/scripts/evaluate-v$version.py" "$@" ||
    echo "${0##*/}: no score: $1 was not scored, for the reason above" >&2
}
