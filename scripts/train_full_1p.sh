#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The model zoo's entry point: fine-tunes on SQuAD v1.1 with one device and
# prints a summary; TASK=squad_v2.0 or TASK=pretraining takes another launcher.
#
#   bash scripts/train_full_1p.sh --data_path=SQUAD --ckpt_path=MODEL [FLAG ...]
#
#   --data_path=DIR        the launcher's SQUAD_DIR or BookCorpus_DIR
#   --ckpt_path=DIR        the launcher's BERT_BASE_DIR
#   --precision_mode=MODE  precision mode of the NPU's graph compiler
#   --profiling=True       a profile in OUT_DIR/profiling
#   --data_dump_flag=True  operators' outputs in OUT_DIR/dump
#   --over_dump=True       operators that overflow in OUT_DIR/dump
#
# Every other flag goes to the launcher.
set -euo pipefail

TASK=${TASK:-squad_v1.1}
export OUT_DIR=${OUT_DIR:-./output/$TASK}

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
  echo "$(basename "$0"): error: $1" >&2
  exit 1
}

data_path="" ckpt_path=""
flags=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --data_path=*) data_path=$value ;;
    --ckpt_path=*) ckpt_path=$value ;;
    --data_dump_flag=*) flags+=("--data_dump=$value") ;;
    *) flags+=("$argument") ;;
  esac
done
[[ -n $data_path ]] || fail "--data_path is not given; name the data's directory"
[[ -n $ckpt_path ]] || fail "--ckpt_path is not given; name the model's directory"
export BERT_BASE_DIR=$ckpt_path

case $TASK in
  pretraining) launcher=run_pretraining.sh; export BookCorpus_DIR=$data_path ;;
  squad_v1.1) launcher=run_squadv1.1.sh; export SQUAD_DIR=$data_path ;;
  squad_v2.0) launcher=run_squadv2.0.sh; export SQUAD_DIR=$data_path ;;
  *) fail "TASK is '$TASK'; expected pretraining, squad_v1.1 or squad_v2.0" ;;
esac

mkdir -p "$OUT_DIR"
log=$OUT_DIR/train_$(basename "$0" .sh).log
started=$SECONDS
bash "$SCRIPTS/$launcher" ${flags[@]+"${flags[@]}"} 2>&1 | tee "$log"

# The last value of a key in the log's key=value lines.
last() { { grep -oE "(^| )$1=[^ ]+" "$log" || true; } | tail -n 1 | cut -d= -f2; }

echo "--- summary"
for key in step loss learning_rate examples_per_second loss_scale overflows; do
  value=$(last "$key")
  [[ -z $value ]] || echo "$key=$value"
done
grep -E '"(exact_match|exact|f1)"' "$log" || true
echo "seconds=$((SECONDS - started))"
echo "log=$log"
