#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sets up and runs the complete pipeline on the bundled data: text to records,
# pre-training, SQuAD v1.1 and v2.0, both evaluations, and baselines without
# (pre-)training. About eight minutes on two cores.
#
#   bash scripts/demo.sh
#
# OUT_DIR is the directory of all outputs, output/demo by default; a stage that
# is finished there is not repeated. PYTHON and VENV_DIR are those of
# scripts/setup.sh.
set -euo pipefail

fail() { echo "demo.sh: error: $*" >&2; exit 1; }

case ${1:-} in
  "") ;;
  -h | --help)
    sed -n '4,/^set -/{/^set -/d; s/^# \{0,1\}//; p;}' "$0"
    exit 0 ;;
  *) fail "unknown argument '$1'; bash scripts/demo.sh --help shows the usage" ;;
esac

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT_DIR=${OUT_DIR:-$REPOSITORY/output/demo}
VENV_DIR=${VENV_DIR:-$REPOSITORY/.venv}
case $OUT_DIR in /*) ;; *) OUT_DIR=$PWD/$OUT_DIR ;; esac
case $VENV_DIR in /*) ;; *) VENV_DIR=$PWD/$VENV_DIR ;; esac
export VENV_DIR

bash "$REPOSITORY/scripts/setup.sh"
cd "$REPOSITORY"
mkdir -p "$OUT_DIR"
PYTHON=$VENV_DIR/bin/python

# Lines of a log that are also for the screen, without date and time.
SHOWN='device=|features=|building the graph|documents=|step=|Restoring|evaluating|[0-9]+ answers|.*global_step='

STAGES=7 done=0
# Runs a command: its log goes to a file, its steps to the screen too.
stage() {
  local title=$1 log=$OUT_DIR/$2.log started=$SECONDS
  shift 2
  echo "--- $((++done)) of $STAGES: $title"
  if ! "$@" 2>&1 | tee "$log" |
      sed -unE "s/^[-0-9]+ [0-9:]+ I ($SHOWN)/\1/p"; then
    tail -n 5 "$log" >&2
    fail "'$title' failed; the log is $log"
  fi
  echo "    $((SECONDS - started)) s"
}

records() {
  stage "records of $1" "records_$2" "$PYTHON" create_pretraining_data.py \
      --input_file="$1" --output_file="$OUT_DIR/records_$2" \
      --vocab_file=demo/vocab.json --merges_file=demo/merges.txt \
      --max_seq_length=128 --max_predictions_per_seq=24 \
      --masked_lm_prob=0.2 --do_whole_word_mask=True --masking=dynamic \
      --packing=doc_sentences --line_break=none --overwrite
}

# fine_tune TITLE DIRECTORY VERSION [flags]
fine_tune() {
  local title=$1 directory=$2 version=$3
  shift 3
  stage "$title" "$directory" "$PYTHON" run_squad.py \
      --flagfile=demo/squad.flags --train_file="demo/train-v$version.json" \
      --predict_file="demo/dev-v$version.json" \
      --output_dir="$OUT_DIR/$directory" "$@"
}

# Prints a score line: score LABEL VERSION PREDICTIONS KEY...
score() {
  local label=$1 version=$2 predictions=$3
  shift 3
  "$PYTHON" "scripts/evaluate-v$version.py" "demo/dev-v$version.json" \
      "$predictions" | "$PYTHON" -c '
import json, sys
scores = json.load(sys.stdin)
print(sys.argv[1], *(f"{key}={scores[key]:.2f}" for key in sys.argv[2:]))' "$label" "$@"
}

records demo/text.txt train
records demo/eval_text.txt eval
stage "pre-training" pretraining "$PYTHON" run_pretraining.py \
    --flagfile=demo/pretrain.flags --input_files_dir="$OUT_DIR/records_train" \
    --eval_files_dir="$OUT_DIR/records_eval" \
    --output_dir="$OUT_DIR/pretraining"
PRETRAINED=$OUT_DIR/pretraining/model.ckpt-1200

fine_tune "baseline: a model that learned nothing" untrained 1.1 \
    --learning_rate=0 --num_train_epochs=0
fine_tune "baseline: SQuAD v1.1 without pre-training" without_pretraining 1.1 \
    --num_train_epochs=6
fine_tune "SQuAD v1.1" squad_v1.1 1.1 --num_train_epochs=6 \
    --init_checkpoint="$PRETRAINED"
fine_tune "SQuAD v2.0" squad_v2.0 2.0 --num_train_epochs=5 \
    --init_checkpoint="$PRETRAINED" --version_2_with_negative=True

# The best constant prediction for v2.0: no answer.
"$PYTHON" -c '
import json, sys
with open(sys.argv[1]) as predictions:
    ids = json.load(predictions)
with open(sys.argv[2], "w") as constant:
    json.dump(dict.fromkeys(ids, ""), constant)' \
    "$OUT_DIR/squad_v2.0/predictions.json" "$OUT_DIR/no_answer.json"

echo "--- scores"
echo "files: $OUT_DIR"
score "baseline_untrained squad_v1.1" 1.1 \
    "$OUT_DIR/untrained/predictions.json" exact_match f1
score "baseline_without_pretraining squad_v1.1" 1.1 \
    "$OUT_DIR/without_pretraining/predictions.json" exact_match f1
score "baseline_no_answer squad_v2.0" 2.0 "$OUT_DIR/no_answer.json" exact f1
score "squad_v1.1" 1.1 "$OUT_DIR/squad_v1.1/predictions.json" exact_match f1
score "squad_v2.0" 2.0 "$OUT_DIR/squad_v2.0/predictions.json" exact f1
