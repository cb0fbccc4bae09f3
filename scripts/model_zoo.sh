#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Functions of train_full_1p.sh and train_performance_1p.sh, which source it:
# parse the model zoo's flags, start the launchers and read their log lines.
set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DATA_PATH=""
CKPT_PATH=""
DEVICE_FLAGS=("--accelerator=${ACCELERATOR:-npu}")
export RANK_SIZE=1
export JOB_ID=${JOB_ID:-10087}

fail() {
  echo "$(basename "$0"): error: $1" >&2
  exit 1
}

usage() {
  cat << END
bash scripts/$(basename "$0") --data_path=DIR [FLAG ...]  (--data_path DIR too)
  --data_path       holds Data/BookCorpus/pretraining_data or pretrain_data
                    (records) and Data/SQuAD/data (train- and dev-v1.1.json,
                    -v2.0.json)
  --ckpt_path       holds config.json, vocab.json, merges.txt and
                    tf_model/roberta_large.ckpt; default DATA_PATH/Data/Roberta-large
  --precision_mode  precision mode of the NPU's compiler; default: see docs/ascend.md
  --profiling       True writes a profile into each output's profiling/
  --data_dump_flag  True dumps operators' outputs into each output's dump/
  --over_dump       True dumps operators that overflow into each output's dump/
END
}

# Sets the variables above from the flags.
parse_flags() {
  local flag value
  while (($#)); do
    flag=$1
    shift
    if [[ $flag == --* && $flag != *=* && $# -gt 0 && $1 != --* ]]; then
      flag=$flag=$1  # --data_path DIR
      shift
    fi
    value=${flag#*=}
    case $flag in
      --data_path=*) DATA_PATH=$value ;;
      --ckpt_path=*) CKPT_PATH=$value ;;
      --precision_mode=*) DEVICE_FLAGS+=("--precision_mode=$value") ;;
      --profiling=*) DEVICE_FLAGS+=("--profiling=$value") ;;
      --data_dump_flag=*) DEVICE_FLAGS+=("--data_dump=$value") ;;
      --over_dump=*) DEVICE_FLAGS+=("--over_dump=$value") ;;
      --help | -h) usage; exit 0 ;;
      *) fail "unknown flag '$flag'; --help lists the flags" ;;
    esac
  done
  flag=" ${DEVICE_FLAGS[*],,} "
  if [[ $flag == *" --data_dump=true "* && $flag == *" --over_dump=true "* ]]; then
    fail "--data_dump_flag and --over_dump are both True; set one of them, CANN writes one dump at a time"
  fi
  [ -n "$DATA_PATH" ] || fail "--data_path is missing; --help describes the directory"
  [ -d "$DATA_PATH" ] || fail "--data_path=$DATA_PATH: not a directory; --help describes it"
  export BERT_BASE_DIR=${CKPT_PATH:-$DATA_PATH/Data/Roberta-large}
  export SQUAD_DIR=$DATA_PATH/Data/SQuAD/data
  export BookCorpus_DIR=$DATA_PATH/Data/BookCorpus
  RECORDS_DIR=$BookCorpus_DIR/pretraining_data
  # scripts/create_pretraining_data.sh writes pretrain_data.
  if [ ! -d "$RECORDS_DIR" ] && [ -d "$BookCorpus_DIR/pretrain_data" ]; then
    RECORDS_DIR=$BookCorpus_DIR/pretrain_data
  fi
}

# Runs a launcher, its output in OUT_DIR/NAME.log: train NAME LAUNCHER [FLAG ...]
train() {
  local name=$1 launcher=$2
  shift 2
  mkdir -p "$OUT_DIR"
  echo "$name: log in $OUT_DIR/$name.log"
  OUT_DIR=$OUT_DIR/$name bash "$SCRIPTS/$launcher" "$@" "${DEVICE_FLAGS[@]}" \
      > "$OUT_DIR/$name.log" 2>&1 ||
    {
      tail -n 20 "$OUT_DIR/$name.log" >&2
      fail "$name failed; the log is $OUT_DIR/$name.log"
    }
}

# Prints the last value of a key in key=value lines: last KEY FILE
last() {
  { grep -oE "(^| )$1=[^ ]+" "$2" || true; } | tail -n 1 | cut -d= -f2
}

# Prints one line of a run's speed, loss and scores: summary NAME [SCORE ...]
summary() {
  local name=$1 log=$OUT_DIR/$1.log rate batch score
  shift
  rate=$(last examples_per_second "$log")
  batch=$(last global_batch "$log")
  printf '%s steps_per_second=%s examples_per_second=%s final_loss=%s' \
      "$name" "$(awk -v rate="$rate" -v batch="$batch" 'BEGIN {
        if (rate == "" || batch == "") print "unknown"
        else printf "%.4g", rate / batch }')" \
      "${rate:-unknown}" "$(last loss "$log")"
  for score in "$@"; do
    # The evaluation's JSON ends the log.
    printf ' %s=%s' "$score" "$(grep -oE "\"$score\": [0-9.]+" "$log" |
        tail -n 1 | awk '{ print $2 }')"
  done
  printf '\n'
}
