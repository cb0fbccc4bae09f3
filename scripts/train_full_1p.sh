#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The model zoo's entry point for accuracy: a short pre-training, then SQuAD
# v1.1 and v2.0 with their scores, on one NPU, with the predecessor's settings.
#
#   bash scripts/train_full_1p.sh --data_path=DIR [FLAG ...]
#
# --help lists the flags. Ends with one line of key=value for each run. Edit
# the settings, or set the same names in the environment; SQUAD_FLAGS and
# PRETRAINING_FLAGS are further flags of the launchers.
set -euo pipefail

OUT_DIR=${OUT_DIR:-./output/full_1p}
PRETRAINING_FLAGS=${PRETRAINING_FLAGS:---num_train_steps=200 --save_checkpoints_steps=100}
SQUAD_FLAGS=${SQUAD_FLAGS:-}

# shellcheck source=scripts/model_zoo.sh
source "$(dirname "${BASH_SOURCE[0]}")/model_zoo.sh"
parse_flags "$@"

# shellcheck disable=SC2086
train pretraining run_pretraining.sh \
    --flagfile="$SCRIPTS/../configs/predecessor_pretraining.flags" \
    --input_files_dir="$RECORDS_DIR" \
    --iterations_per_loop=20 --display_loss_steps=20 $PRETRAINING_FLAGS

# shellcheck disable=SC2086
for version in 1.1 2.0; do
  train "squad_v$version" "run_squadv$version.sh" \
      --flagfile="$SCRIPTS/../configs/predecessor_squad_v$version.flags" \
      --display_loss_steps=100 $SQUAD_FLAGS
done

echo "------------------ Final result ------------------"
summary pretraining
summary squad_v1.1 exact_match f1
summary squad_v2.0 exact f1 best_exact best_f1
echo "seconds=$SECONDS"
